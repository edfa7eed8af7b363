//! The final counters of a job, mergeable over processes.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use weir_engine::job::JobControl;

/// Counters of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SourceReport {
    /// Good rows.
    pub rows: u64,
    /// Rows that could not be read.
    pub bad: u64,
    /// Rows stamped too far in the future.
    pub future: u64,
    /// Offsets that a server had forgotten before they were read.
    pub lost: u64,
}

/// Counters of an operator.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct OperatorReport {
    /// Rows applied, by worker.
    pub rows_by_worker: BTreeMap<usize, u64>,
    /// Rows made.
    pub rows_out: u64,
    /// Windows or sessions fired.
    pub fired: u64,
    /// Late rows: stragglers.
    pub late_straggler: u64,
    /// Late rows: after idleness.
    pub late_idle: u64,
    /// Rows for which an expression failed.
    pub failed: u64,
    /// Rows older than the versions that a table keeps.
    pub versions_gone: u64,
    /// Rows left out because a row of their key had passed.
    #[serde(default)]
    pub duplicates: u64,
}

/// Counters of a sink.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SinkReport {
    /// Rows accepted.
    pub accepted: u64,
    /// Rows that the sources had given when the first row was accepted; absent if none was.
    pub first_after: Option<u64>,
    /// Rows committed.
    pub rows: u64,
    /// Files or transactions.
    pub commits: u64,
    /// Bytes written.
    pub bytes: u64,
    /// Rows that the target cannot hold, and that were left out.
    pub refused: u64,
    /// Digest of the rows, in hexadecimal.
    pub digest: String,
}

/// Counters of checkpoints.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct CheckpointReport {
    /// Checkpoints made.
    pub made: u64,
    /// Bytes written for them.
    pub bytes: u64,
    /// Bytes of the last one.
    pub last_bytes: u64,
    /// Milliseconds from the cut of the last one until it existed.
    pub last_took_ms: f64,
    /// Milliseconds for which the last one kept operators from their rows.
    pub last_paused_ms: f64,
    /// The same of all together.
    pub paused_ms: f64,
}

/// All of a job's counters. Lists are in the order of the plan.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct JobReport {
    /// By table.
    pub sources: Vec<(String, SourceReport)>,
    /// By operator.
    pub operators: Vec<(String, OperatorReport)>,
    /// By table.
    pub sinks: Vec<(String, SinkReport)>,
    /// Seconds from the start of the process to the first row that a sink accepted of an epoch that
    /// no generation before had closed; absent if there was none.
    #[serde(default)]
    pub first_new_s: Option<f64>,
    /// Of a job that lasts.
    #[serde(default)]
    pub checkpoints: Option<CheckpointReport>,
    /// Whether it has failed.
    #[serde(default)]
    pub failed: bool,
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl JobReport {
    /// Reads the counters of a job.
    pub fn of(control: &JobControl) -> JobReport {
        let sources = control.sources().into_iter().map(|(name, c)| {
            let (rows, bad, future) = (get(&c.rows), get(&c.bad), get(&c.future));
            (name, SourceReport { rows, bad, future, lost: get(&c.lost) })
        });
        let operators = control.operators().into_iter().map(|(name, c)| {
            let by_worker = c.rows_by_worker.lock().unwrap_or_else(PoisonError::into_inner);
            let report = OperatorReport {
                rows_by_worker: by_worker.clone(),
                rows_out: get(&c.rows_out),
                fired: get(&c.fired),
                late_straggler: get(&c.late_straggler),
                late_idle: get(&c.late_idle),
                failed: get(&c.failed),
                versions_gone: get(&c.versions_gone),
                duplicates: get(&c.duplicates),
            };
            (name, report)
        });
        let sinks = control.sinks().into_iter().map(|(name, c)| {
            let digest = *c.digest.lock().unwrap_or_else(PoisonError::into_inner);
            let report = SinkReport {
                accepted: get(&c.accepted),
                first_after: c.first_after.get().copied(),
                rows: get(&c.report.rows),
                commits: get(&c.report.commits),
                bytes: get(&c.report.bytes),
                refused: get(&c.report.refused),
                digest: format!("{digest:032x}"),
            };
            (name, report)
        });
        let checkpoints = control.checkpoints().map(|checkpoints| {
            let c = checkpoints.counters();
            let millis = |micros: &AtomicU64| get(micros) as f64 / 1e3;
            CheckpointReport {
                made: get(&c.made),
                bytes: get(&c.bytes),
                last_bytes: get(&c.last_bytes),
                last_took_ms: millis(&c.last_took),
                last_paused_ms: millis(&c.last_paused),
                paused_ms: millis(&c.paused),
            }
        });
        JobReport {
            failed: false,
            first_new_s: control.first_new().map(|time| time.as_secs_f64()),
            checkpoints,
            sources: sources.collect(),
            operators: operators.collect(),
            sinks: sinks.collect(),
        }
    }

    /// The same of a job that has failed or has not.
    pub fn marked(self, failed: bool) -> JobReport {
        JobReport { failed, ..self }
    }

    /// The counters of a generation with those of the generations before it. Digests go on from
    /// one generation to the next by themselves.
    pub fn following(mut self, before: &JobReport) -> JobReport {
        let digests: Vec<String> = self.sinks.iter().map(|(_, s)| s.digest.clone()).collect();
        self.add(before);
        for ((_, sink), digest) in self.sinks.iter_mut().zip(digests) {
            sink.digest = digest;
        }
        self
    }

    /// Adds the counters of the same job on another process.
    pub fn add(&mut self, other: &JobReport) {
        self.failed |= other.failed;
        let firsts = self.first_new_s.into_iter().chain(other.first_new_s);
        self.first_new_s = firsts.reduce(f64::min);
        if let (Some(mine), Some(theirs)) = (&mut self.checkpoints, &other.checkpoints) {
            // Each makes its part of the same ones.
            mine.bytes += theirs.bytes;
            mine.last_bytes += theirs.last_bytes;
            mine.last_paused_ms = mine.last_paused_ms.max(theirs.last_paused_ms);
            mine.paused_ms = mine.paused_ms.max(theirs.paused_ms);
        }
        for (mine, theirs) in self.sources.iter_mut().zip(&other.sources) {
            mine.1.rows += theirs.1.rows;
            mine.1.bad += theirs.1.bad;
            mine.1.future += theirs.1.future;
            mine.1.lost += theirs.1.lost;
        }
        for (mine, theirs) in self.operators.iter_mut().zip(&other.operators) {
            for (worker, rows) in &theirs.1.rows_by_worker {
                *mine.1.rows_by_worker.entry(*worker).or_default() += rows;
            }
            mine.1.rows_out += theirs.1.rows_out;
            mine.1.fired += theirs.1.fired;
            mine.1.late_straggler += theirs.1.late_straggler;
            mine.1.late_idle += theirs.1.late_idle;
            mine.1.failed += theirs.1.failed;
            mine.1.versions_gone += theirs.1.versions_gone;
            mine.1.duplicates += theirs.1.duplicates;
        }
        for (mine, theirs) in self.sinks.iter_mut().zip(&other.sinks) {
            mine.1.accepted += theirs.1.accepted;
            // Processes count their own sources: the sum is an upper bound.
            let sum = mine.1.first_after.zip(theirs.1.first_after).map(|(a, b)| a + b);
            mine.1.first_after = sum.or(mine.1.first_after).or(theirs.1.first_after);
            mine.1.rows += theirs.1.rows;
            mine.1.commits += theirs.1.commits;
            mine.1.bytes += theirs.1.bytes;
            mine.1.refused += theirs.1.refused;
            let number = |text: &str| u128::from_str_radix(text, 16).unwrap_or(0);
            let sum = number(&mine.1.digest).wrapping_add(number(&theirs.1.digest));
            mine.1.digest = format!("{sum:032x}");
        }
    }

    /// A few lines for a person.
    pub fn summary(&self) -> String {
        let mut text = String::new();
        for (table, s) in &self.sources {
            let _ = write!(text, "source   {table}: {} rows", s.rows);
            let _ = write!(
                text,
                "{}",
                counted(&[(s.bad, "bad"), (s.future, "future"), (s.lost, "lost")])
            );
            text.push('\n');
        }
        for (name, o) in &self.operators {
            let late = o.late_straggler + o.late_idle;
            let said = [
                (o.fired, "fired"),
                (o.duplicates, "duplicates"),
                (late, "late"),
                (o.failed, "failed"),
                (o.versions_gone, "older than the versions kept"),
            ];
            if said.iter().any(|s| s.0 > 0) {
                let _ =
                    writeln!(text, "operator {name}: {} rows out{}", o.rows_out, counted(&said));
            }
        }
        for (table, s) in &self.sinks {
            let refused = counted(&[(s.refused, "refused")]);
            let (rows, commits) = (s.accepted, s.commits);
            let _ = writeln!(text, "sink     {table}: {rows} rows, {commits} commits{refused}");
        }
        if let Some(c) = &self.checkpoints {
            let _ = writeln!(
                text,
                "state    {} checkpoints, {} bytes; last {} bytes in {:.1} ms, paused {:.1} ms",
                c.made, c.bytes, c.last_bytes, c.last_took_ms, c.last_paused_ms
            );
            if let Some(seconds) = self.first_new_s {
                let _ = writeln!(text, "start    first new row after {seconds:.2} s");
            }
        }
        text
    }

    /// A line a sink: its digest.
    pub fn digests(&self) -> String {
        let line = |(table, s): &(String, SinkReport)| {
            format!("digest {table} {} {} rows\n", s.digest, s.accepted)
        };
        self.sinks.iter().map(line).collect()
    }
}

fn counted(what: &[(u64, &str)]) -> String {
    let some = what.iter().filter(|(n, _)| *n > 0);
    some.map(|(n, name)| format!(", {n} {name}")).collect()
}
