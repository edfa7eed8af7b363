//! Weir's own counters against the generator's truth: `weir run --report`.
//!
//! Counters are never evidence for rows; here they must match what the generator did, which is not
//! computed from Weir's output: bad messages, rows from the future, late rows, rows of each worker.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::data::Data;
use super::{Job, Route};

/// Of two workers, each applies at least this share of the rows.
const SHARE_MIN: f64 = 0.4;

/// The part of the report that is looked at; lists are in the order of the plan.
#[derive(Deserialize)]
pub(super) struct Report {
    sources: Vec<(String, Source)>,
    operators: Vec<(String, Operator)>,
    sinks: Vec<(String, Sink)>,
}

#[derive(Deserialize)]
struct Source {
    rows: u64,
    bad: u64,
    future: u64,
}

#[derive(Deserialize)]
struct Operator {
    rows_by_worker: BTreeMap<usize, u64>,
    fired: u64,
    late_straggler: u64,
    late_idle: u64,
}

#[derive(Deserialize)]
struct Sink {
    accepted: u64,
    digest: String,
}

impl Report {
    pub(super) fn read(path: &Path) -> Result<Report> {
        let text = fs::read(path).with_context(|| format!("no report {}", path.display()))?;
        let mut jobs: Vec<Report> = serde_json::from_slice(&text)?;
        anyhow::ensure!(jobs.len() == 1, "the report is of {} jobs, not of one", jobs.len());
        Ok(jobs.remove(0))
    }

    /// The sinks with their digests, as one text.
    pub(super) fn digests(&self) -> String {
        let line = |(table, sink): &(String, Sink)| {
            format!("{table} {} {} rows\n", sink.digest, sink.accepted)
        };
        let mut lines: Vec<String> = self.sinks.iter().map(line).collect();
        lines.sort();
        lines.concat()
    }

    /// Everything that differs from the truth.
    pub(super) fn differences(
        &self,
        data: &Data,
        job: &Job,
        route: Route,
        workers: usize,
    ) -> Vec<String> {
        let mut found = Vec::new();
        let mut expect = |what: &str, is: u64, should: u64| {
            if is != should {
                found.push(format!("{what}: {is}, but the truth is {should}"));
            }
        };
        for (_, source) in self.sources.iter().filter(|(name, _)| name == "readings") {
            if route.has_bad_rows() {
                expect("bad rows", source.bad, data.bad);
            }
            if route.knows_arrival() {
                expect("rows from the future", source.future, data.future);
            }
            if !route.is_live() {
                expect("rows", source.rows, data.readings);
            }
        }
        if let Some(late) = job.late_counted.and_then(|kind| data.expected(kind)) {
            let late_rows = |(_, o): &(String, Operator)| o.late_straggler + o.late_idle;
            expect("late rows", self.operators.iter().map(late_rows).sum(), late);
        }
        // A few regions cannot be dealt evenly; meters can.
        if !job.script.starts_with("region1m") {
            found.extend(self.idle_workers(workers));
        }
        found
    }

    /// Workers that apply too few rows of an operator that fires.
    fn idle_workers(&self, workers: usize) -> Vec<String> {
        let mut found = Vec::new();
        for (name, operator) in self.operators.iter().filter(|(_, o)| workers == 2 && o.fired > 0) {
            let all: u64 = operator.rows_by_worker.values().sum();
            let least = operator.rows_by_worker.values().min().copied().unwrap_or_default();
            let share = least as f64 / all.max(1) as f64;
            if operator.rows_by_worker.len() != workers || share < SHARE_MIN {
                let rows = &operator.rows_by_worker;
                found.push(format!("{name}: one of two workers idles: {rows:?}"));
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rows_by_worker: &str) -> Result<Report> {
        let text = format!(
            r#"{{"sources":[["readings",{{"rows":9,"bad":1,"future":0}}]],
                "operators":[["window",{{"rows_by_worker":{rows_by_worker},"rows_out":1,"fired":1,
                              "late_straggler":2,"late_idle":0,"failed":0,"versions_gone":0}}]],
                "sinks":[["t",{{"accepted":1,"rows":1,"commits":1,"bytes":1,"digest":"0a"}}]]}}"#
        );
        Ok(serde_json::from_str(&text)?)
    }

    #[test]
    fn both_of_two_workers_work() -> Result<()> {
        assert!(report(r#"{"0":5,"1":4}"#)?.idle_workers(2).is_empty());
        assert_eq!(report(r#"{"0":9,"1":1}"#)?.idle_workers(2).len(), 1);
        assert_eq!(report(r#"{"0":9}"#)?.idle_workers(2).len(), 1);
        assert!(report(r#"{"0":9}"#)?.idle_workers(1).is_empty());
        Ok(())
    }

    #[test]
    fn counters_are_held_against_the_truth() -> Result<()> {
        let job = Job { script: "t", kinds: &["t"], late_counted: Some("late") };
        let report = report(r#"{"0":9}"#)?;
        let truth = |readings, bad, late| Data::for_tests(readings, bad, 3, ("late", late));
        let wrong = |data: &Data, route| report.differences(data, &job, route, 1).len();
        assert_eq!(wrong(&truth(9, 1, 2), Route::Files), 0);
        assert_eq!(wrong(&truth(8, 1, 2), Route::Files), 1);
        assert_eq!(wrong(&truth(9, 2, 2), Route::Files), 1);
        assert_eq!(wrong(&truth(9, 1, 3), Route::Files), 1);
        // The report says that no row was from the future; three were.
        assert_eq!(wrong(&truth(9, 1, 2), Route::KafkaPostgres), 1);
        Ok(())
    }
}
