//! How long a killed job takes to its first new row, with 100 000 keys × 240 panes of state.
//!
//! `scenarios/bench/hop.sql` runs as a job that lasts and is killed once a checkpoint exists whose
//! windows are full. Then it is started again and again from a copy of what the kill left; the
//! time is from the start of the process to the first row of an epoch that was not closed before.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{Asked, filled};
use crate::process::{self, Ended};

pub(super) const NAME: &str = "restart";
pub(super) const DATA: &str = "w2";
const SECONDS_MAX: f64 = 3.0;
/// By then the hour has passed: of 48 million rows in epochs that grow to 524 288, two thirds.
const FULL_EPOCH: u64 = 90;
const FILL_MAX: Duration = Duration::from_secs(300);
/// How long a job that was started again runs.
const RUN: Duration = Duration::from_secs(10);
const STOP_MAX: Duration = Duration::from_secs(60);

/// Kills a job, starts it again, prints the times; whether their median is as asked for.
pub(super) fn measure(asked: &Asked) -> Result<bool> {
    let folder = tempfile::Builder::new().prefix("weir-restart-").tempdir()?;
    let script = folder.path().join("hop.sql");
    fs::write(&script, filled(asked, "hop", &folder.path().join("out"))?)?;
    let left = folder.path().join("left");
    let mut job = start(asked, &script, &left, "1s")?;
    until_full(&mut job, &left)?;
    process::signal(job.0.id(), libc::SIGKILL);
    job.0.wait()?;
    let mut times = Vec::new();
    for run in 0..asked.runs {
        let state = folder.path().join(format!("state-{run}"));
        process::quietly(Command::new("cp").arg("-r").arg(&left).arg(&state))?;
        let mut job = start(asked, &script, &state, "1000h")?;
        let began = Instant::now();
        while began.elapsed() < RUN {
            process::check_interrupted()?;
            thread::sleep(Duration::from_millis(100));
        }
        process::signal(job.0.id(), libc::SIGTERM);
        let status = process::wait(&mut job.0, Some(STOP_MAX))?;
        let said = fs::read_to_string(state.with_extension("log"))?;
        ensure!(status.success(), "weir ended with {}\n{said}", process::ended(status));
        times.push(first_new(&state.with_extension("report")).with_context(|| said.clone())?);
        if run == 0 {
            println!("{NAME} {}", said.lines().find(|line| line.contains("goes on")).unwrap_or(""));
        }
        fs::remove_dir_all(&state)?;
    }
    let shown: Vec<String> = times.iter().map(|time| format!("{time:.2}")).collect();
    times.sort_by(f64::total_cmp);
    let median = times[times.len() / 2];
    let word = if median < SECONDS_MAX { "good" } else { "MISSED" };
    println!(
        "{NAME} first new row after {} s; median {median:.2} s, below {SECONDS_MAX}: {word}",
        shown.join(" ")
    );
    Ok(median < SECONDS_MAX)
}

fn start(asked: &Asked, script: &Path, state: &Path, interval: &str) -> Result<Ended> {
    let log = fs::File::create(state.with_extension("log"))?;
    let mut command = Command::new(&asked.weir);
    command.args(["run", "-w", &asked.workers.to_string(), "--checkpoint-interval", interval]);
    command.arg("--state").arg(state).arg("--report").arg(state.with_extension("report"));
    command.arg(script).stdout(log.try_clone()?).stderr(log);
    Ok(Ended(process::spawn(&mut command)?))
}

/// Waits for a checkpoint of full windows.
fn until_full(job: &mut Ended, state: &Path) -> Result<()> {
    let began = Instant::now();
    while newest_epoch(&state.join("result/checkpoints")) < Some(FULL_EPOCH) {
        process::check_interrupted()?;
        if let Some(status) = job.0.try_wait()? {
            bail!("weir ended with {} before its windows were full", process::ended(status));
        }
        ensure!(began.elapsed() < FILL_MAX, "no checkpoint of epoch {FULL_EPOCH} or later");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// The greatest epoch of the manifests in a folder: their names begin with it.
fn newest_epoch(folder: &Path) -> Option<u64> {
    let names = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.file_name());
    let epoch = |name: &str| name.strip_suffix(".json")?.split('-').next()?.parse().ok();
    names.filter_map(|name| epoch(name.to_str()?)).max()
}

fn first_new(report: &Path) -> Result<f64> {
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(report)?)?;
    let jobs = report.as_array().cloned().unwrap_or_else(|| vec![report]);
    let job = jobs.first().context("a report without a job")?;
    job["first_new_s"].as_f64().context("no new row came")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_by_the_names_of_manifests() -> Result<()> {
        let folder = tempfile::tempdir()?;
        assert_eq!(newest_epoch(folder.path()), None);
        for name in ["0041-0001.json", "0107-0002.json", ".0200-0001.json.tmp", "0300-1.part"] {
            fs::write(folder.path().join(name), "")?;
        }
        assert_eq!(newest_epoch(folder.path()), Some(107));
        Ok(())
    }
}
