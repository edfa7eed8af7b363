//! What flows, live on the terminal: rows, watermarks, late and bad rows, windows, sinks.
//!
//! Printed to standard error, in place, only where that is a terminal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use weir_engine::cut::SplitState;
use weir_engine::job::JobControl;
use weir_engine::time::{MARK_END, MARK_NONE, Millis};

use crate::report::JobReport;

const EVERY: Duration = Duration::from_millis(500);

/// The jobs that are shown, as they are now.
#[derive(Clone, Default)]
pub struct Shown(Arc<Mutex<BTreeMap<usize, Vec<Arc<JobControl>>>>>);

impl Shown {
    /// Shows these at a place, instead of those that were there.
    pub fn set(&self, place: usize, jobs: &[Arc<JobControl>]) {
        self.lock().insert(place, jobs.to_vec());
    }

    fn jobs(&self) -> Vec<Arc<JobControl>> {
        self.lock().values().flatten().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<usize, Vec<Arc<JobControl>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that paints until it is told to end.
pub struct Status {
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Status {
    /// Starts to paint, if there is a terminal and it is wanted.
    pub fn start(jobs: Shown, quiet: bool) -> Status {
        let end = Arc::new(AtomicBool::new(false));
        let theirs = end.clone();
        let paint = move || {
            let mut painter = Painter { lines: 0, rows: 0, at: Instant::now() };
            while !theirs.load(Ordering::SeqCst) {
                thread::park_timeout(EVERY);
                painter.paint(&jobs.jobs());
            }
        };
        let wanted = !quiet && std::io::stderr().is_terminal();
        Status { end, thread: wanted.then(|| thread::spawn(paint)) }
    }

    /// Paints a last time and ends.
    pub fn end(mut self) {
        self.end.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A painter that panicked has nothing left to say.
            let _ = thread.join();
        }
    }
}

struct Painter {
    lines: usize,
    rows: u64,
    at: Instant,
}

impl Painter {
    fn paint(&mut self, jobs: &[Arc<JobControl>]) {
        let reports: Vec<JobReport> = jobs.iter().map(|j| JobReport::of(j)).collect();
        let rows = reports.iter().flat_map(|r| &r.sources).map(|s| s.1.rows).sum::<u64>();
        let seconds = self.at.elapsed().as_secs_f64().max(0.001);
        let rate = rows.saturating_sub(self.rows) as f64 / seconds;
        (self.rows, self.at) = (rows, Instant::now());
        let mut text = String::new();
        let _ = writeln!(text, "{rate:.0} rows/s");
        for (job, report) in jobs.iter().zip(&reports) {
            text.push_str(&report.summary());
            text.push_str(&watermarks(job));
            for (about, notice) in job.notices() {
                let _ = writeln!(text, "notice   {about}: {notice}");
            }
            for (table, sink) in job.sinks() {
                if let Some(notice) = sink.report.current_notice() {
                    let _ = writeln!(text, "notice   {table}: {notice}");
                }
            }
        }
        let mut frame = String::new();
        if self.lines > 0 {
            let _ = write!(frame, "\x1b[{}A", self.lines);
        }
        for line in text.lines() {
            let _ = writeln!(frame, "\x1b[2K{line}");
        }
        let lines = text.lines().count();
        for _ in lines..self.lines {
            frame.push_str("\x1b[2K\n");
        }
        self.lines = lines.max(self.lines);
        // A terminal that is gone needs no picture.
        let _ = std::io::stderr().lock().write_all(frame.as_bytes());
    }
}

/// A line a source: its watermark, and which split holds it back.
pub fn watermarks(job: &JobControl) -> String {
    let mut text = String::new();
    let splits = job.splits();
    let lags = job.lags();
    let mut tables: Vec<&str> = splits.iter().map(|s| s.table.as_str()).collect();
    tables.dedup();
    for table in tables {
        let mine: Vec<_> = splits.iter().filter(|s| s.table == table).collect();
        let Some(first) = mine.first() else { continue };
        let holding = mine
            .iter()
            .filter(|s| matches!(s.facts.state, SplitState::Reading | SplitState::Waiting))
            .min_by_key(|s| s.facts.mark);
        let idle = mine.iter().filter(|s| s.facts.state == SplitState::Idle).count();
        let _ = write!(text, "watermark {table}: {}", show(first.watermark));
        if let Some(split) = holding.filter(|_| mine.len() > 1) {
            let _ = write!(text, ", held by {} at {}", split.split, show(split.facts.mark));
        }
        if idle > 0 {
            let _ = write!(text, ", {idle} of {} splits idle", mine.len());
        }
        let lag: u64 = lags
            .iter()
            .filter(|(about, _)| about.starts_with(&format!("{table} ")))
            .map(|(_, lag)| lag)
            .sum();
        if lag > 0 {
            let _ = write!(text, ", {lag} rows behind");
        }
        text.push('\n');
    }
    text
}

/// A mark as a person reads it, in UTC.
fn show(mark: Millis) -> String {
    match mark {
        MARK_NONE => "none yet".to_owned(),
        MARK_END => "end of input".to_owned(),
        _ => {
            let time = arrow::array::TimestampMillisecondArray::from(vec![mark]);
            arrow::util::display::array_value_to_string(&time, 0).unwrap_or_default()
        }
    }
}
