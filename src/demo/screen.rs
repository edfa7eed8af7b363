//! What flows through the demo, live: in place on a terminal, else as a line now and then.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_engine::job::JobControl;

use super::instants::iso;
use super::results::Suspect;
use crate::report::JobReport;
use crate::status;

const PAINT_EVERY: Duration = Duration::from_millis(500);
const SAY_EVERY: Duration = Duration::from_secs(10);
/// Suspects that are shown at a time.
const SUSPECTS_SHOWN_MAX: usize = 12;

/// The figures that are shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Facts {
    pub(super) readings: u64,
    pub(super) bad: u64,
    pub(super) late: u64,
    pub(super) fired: u64,
    /// Rows and files by table.
    pub(super) tables: BTreeMap<String, (u64, u64)>,
}

impl Facts {
    /// The figures of the demo's jobs.
    pub(super) fn of(reports: &[JobReport]) -> Facts {
        let mut facts = Facts::default();
        for report in reports {
            for (_, source) in report.sources.iter().filter(|(table, _)| table == "readings") {
                facts.readings += source.rows;
                facts.bad += source.bad;
            }
            facts.fired += report.operators.iter().map(|(_, o)| o.fired).sum::<u64>();
            for (table, sink) in &report.sinks {
                let of_table = facts.tables.entry(table.clone()).or_default();
                of_table.0 += sink.accepted;
                of_table.1 += sink.commits;
            }
        }
        facts.late = facts.tables.get("late_readings").map_or(0, |t| t.0);
        facts
    }

    fn flagged(&self) -> u64 {
        self.tables.get("literal_flags").map_or(0, |t| t.0)
    }

    /// A line a table: its rows and files.
    pub(super) fn written(&self) -> String {
        let line = |(name, (rows, files)): (&String, &(u64, u64))| {
            let s = if *files == 1 { "" } else { "s" };
            format!("  {name}: {} rows in {files} file{s}\n", grouped(*rows))
        };
        self.tables.iter().map(line).collect()
    }
}

/// The screen.
pub(super) struct Screen {
    quiet: bool,
    terminal: bool,
    painted: usize,
    at: Instant,
    readings: u64,
    /// The latest of each suspect, the newest last.
    suspects: Vec<Suspect>,
}

impl Screen {
    /// A screen on standard error.
    pub(super) fn new(quiet: bool) -> Screen {
        let terminal = std::io::stderr().is_terminal();
        let at = Instant::now();
        Screen { quiet, terminal, painted: 0, at, readings: 0, suspects: Vec::new() }
    }

    /// A line that stays.
    pub(super) fn say(&mut self, line: &str) {
        if !self.quiet {
            self.painted = 0;
            eprintln!("{line}");
        }
    }

    /// Shows a suspect: once where lines stay, else with its latest ratio.
    pub(super) fn suspect(&mut self, suspect: Suspect) {
        match self.suspects.iter_mut().find(|s| s.meter_id == suspect.meter_id) {
            Some(known) => *known = suspect,
            None => {
                if !self.terminal {
                    self.say(&shown(&suspect));
                }
                self.suspects.push(suspect);
            }
        }
    }

    /// Shows the figures, if it is time.
    pub(super) fn paint(&mut self, reached: i64, jobs: &[Arc<JobControl>], facts: &Facts) {
        let every = if self.terminal { PAINT_EVERY } else { SAY_EVERY };
        if self.quiet || self.at.elapsed() < every {
            return;
        }
        let seconds = self.at.elapsed().as_secs_f64();
        let rate = facts.readings.saturating_sub(self.readings) as f64 / seconds;
        (self.at, self.readings) = (Instant::now(), facts.readings);
        if self.terminal {
            let text = self.frame(reached, rate, jobs, facts);
            self.repaint(&text);
        } else {
            self.say(&format!(
                "{}  {} rows/s  {} readings, {} late, {} bad, {} windows fired, {} suspects",
                clock(reached),
                grouped(rate as u64),
                grouped(facts.readings),
                grouped(facts.late),
                grouped(facts.bad),
                grouped(facts.fired),
                self.suspects.len()
            ));
        }
    }

    fn frame(&self, reached: i64, rate: f64, jobs: &[Arc<JobControl>], facts: &Facts) -> String {
        let mut text = String::new();
        let share = 100.0 * facts.flagged() as f64 / facts.readings.max(1) as f64;
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{}  {} rows/s  {} readings, {} late, {} bad, {} windows fired",
            clock(reached),
            grouped(rate as u64),
            grouped(facts.readings),
            grouped(facts.late),
            grouped(facts.bad),
            grouped(facts.fired)
        );
        for job in jobs {
            let lines = status::watermarks(job);
            // Tables that lie beside the stream are read at once.
            lines.lines().filter(|l| l.contains("readings")).for_each(|line| {
                let _ = writeln!(text, "{line}");
            });
            for (about, notice) in job.notices() {
                let _ = writeln!(text, "notice {about}: {notice}");
            }
        }
        text.push_str(&facts.written());
        let _ = writeln!(text, "literal rule: {share:.1} % of all readings flagged");
        let _ = writeln!(text, "suspects: {}", self.suspects.len());
        for suspect in self.suspects.iter().rev().take(SUSPECTS_SHOWN_MAX) {
            let _ = writeln!(text, "  {}", shown(suspect));
        }
        text
    }

    fn repaint(&mut self, text: &str) {
        // Lines that are too long are cut off, not wrapped: the next frame must find its place.
        let mut frame = String::from("\x1b[?7l");
        if self.painted > 0 {
            let _ = write!(frame, "\x1b[{}A", self.painted);
        }
        for line in text.lines() {
            let _ = writeln!(frame, "\x1b[2K{line}");
        }
        let lines = text.lines().count();
        for _ in lines..self.painted {
            frame.push_str("\x1b[2K\n");
        }
        frame.push_str("\x1b[?7h");
        self.painted = lines.max(self.painted);
        // A terminal that is gone needs no picture.
        let _ = std::io::stderr().lock().write_all(frame.as_bytes());
    }
}

/// Time of day of an event time.
pub(super) fn clock(at: i64) -> String {
    iso(at)[11..19].to_owned()
}

/// A suspect with what speaks against it.
fn shown(suspect: &Suspect) -> String {
    let watts = |kwh: f64| kwh * 240_000.0;
    format!(
        "suspect {} {}: ratio {:.2} ({:.0} W, never below {:.0} W at this hour), \
         {} readings too low, \
         {:.0} W of {:.0} W on average, {} misses {:.0} W, {}",
        suspect.meter_id,
        suspect.window_end.get(11..16).unwrap_or_default(),
        suspect.ratio,
        watts(suspect.reading_kwh),
        watts(suspect.baseline_kwh),
        suspect.low_readings,
        watts(suspect.avg_kwh),
        watts(suspect.usual_kwh),
        suspect.feeder_id,
        suspect.missing_w,
        suspect.severity
    )
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_times_for_a_person() {
        assert_eq!([grouped(0), grouped(999), grouped(1_234_567)], ["0", "999", "1 234 567"]);
        assert_eq!(clock(1_739_293_265_250), "17:01:05");
    }
}
