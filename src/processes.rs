//! Jobs on several processes of this machine.
//!
//! The parent plans, finds the splits and chooses addresses; each child gets all of that on its
//! standard input and runs its share. Standard input stays open: when it closes, because the parent
//! wants to stop or is gone, the child stops its sources and commits. A child that fails ends all
//! the others, and its words are the ones that are shown: what the others say is only that it is
//! gone.

use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use weir_engine::flow::Cluster;

use crate::report::JobReport;
use crate::run::{PreparedJob, RunOptions, Trouble, finish, run_jobs, stop_on_signals};

/// Of what a child says, beside what it logs, the newest is kept: about so many bytes.
const SAID_MAX: usize = 64 << 10;
/// Marks the line of a child's standard output that carries its reports.
const REPORT: &str = "weir-report ";
/// Marks the line of a child's standard error that carries why it failed.
const TROUBLE: &str = "weir-trouble ";

#[derive(Serialize, Deserialize)]
struct Assignment {
    jobs: Vec<PreparedJob>,
    /// Addresses of all processes, by job.
    addresses: Vec<Vec<String>>,
    process: usize,
    workers: usize,
    digest: bool,
}

struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: JoinHandle<Option<Vec<JobReport>>>,
    stderr: JoinHandle<String>,
}

/// Runs jobs on `options.processes` children.
pub fn parent(
    jobs: Vec<PreparedJob>,
    options: &RunOptions,
    stop: &Arc<AtomicBool>,
) -> Result<(), Vec<Trouble>> {
    run_children(jobs, options, stop).map_err(|error| match error {
        Ended::Failed(troubles) => troubles,
        Ended::Broken(message) => vec![Trouble::new(message)],
    })
}

/// How children can end badly: with their own words, or without any.
enum Ended {
    Failed(Vec<Trouble>),
    Broken(String),
}

impl From<String> for Ended {
    fn from(message: String) -> Ended {
        Ended::Broken(message)
    }
}

fn run_children(
    jobs: Vec<PreparedJob>,
    options: &RunOptions,
    stop: &Arc<AtomicBool>,
) -> Result<(), Ended> {
    let addresses: Vec<Vec<String>> =
        jobs.iter().map(|_| free_addresses(options.processes)).collect::<Result<_, _>>()?;
    let mut running = Vec::new();
    for process in 0..options.processes {
        let assignment = Assignment {
            jobs: jobs.clone(),
            addresses: addresses.clone(),
            process,
            workers: options.workers,
            digest: options.digest,
        };
        running.push(start(&assignment)?);
    }
    let failed = wait(&mut running, stop);
    let mut reports: Vec<JobReport> = Vec::new();
    for (process, running) in running.into_iter().enumerate() {
        let said = running.stderr.join().unwrap_or_default();
        let report = running.stdout.join().ok().flatten();
        match (failed, report) {
            (Some(first), _) if first == process => return Err(first_cause(&said)),
            (Some(_), _) => {}
            (None, Some(report)) if reports.is_empty() => reports = report,
            (None, Some(report)) => {
                reports.iter_mut().zip(&report).for_each(|(all, one)| all.add(one));
            }
            (None, None) => {
                let message = format!("process {process} ended without a report");
                return Err(Ended::Broken(message));
            }
        }
    }
    Ok(finish(&reports, options)?)
}

/// What a child said of its failure.
fn first_cause(said: &str) -> Ended {
    let troubles = said.lines().find_map(|line| line.strip_prefix(TROUBLE));
    match troubles.and_then(|json| serde_json::from_str(json).ok()) {
        Some(troubles) => Ended::Failed(troubles),
        None => {
            let last = said.lines().rfind(|line| !line.trim().is_empty());
            let last = last.unwrap_or("it did not say why");
            Ended::Broken(format!("a process ended: {last}"))
        }
    }
}

fn free_addresses(count: usize) -> Result<Vec<String>, String> {
    let listen = |_| TcpListener::bind("127.0.0.1:0");
    // All are held until all are chosen, so that no two are the same.
    let held: Result<Vec<_>, _> = (0..count).map(listen).collect();
    let held = held.map_err(|e| format!("no free port on loopback: {e}"))?;
    held.iter().map(|l| l.local_addr().map(|a| a.to_string()).map_err(|e| e.to_string())).collect()
}

fn start(assignment: &Assignment) -> Result<Running, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot start a process: {e}");
    let binary = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut child = Command::new(binary)
        .arg("process")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(&e))?;
    let text = serde_json::to_string(assignment).map_err(|e| failed(&e))?;
    let mut stdin = child.stdin.take();
    if let Some(stdin) = stdin.as_mut() {
        writeln!(stdin, "{text}").map_err(|e| failed(&e))?;
    }
    let out = child.stdout.take();
    let stdout = thread::spawn(move || {
        let mut report = None;
        for line in BufReader::new(out?).lines().map_while(Result::ok) {
            match line.strip_prefix(REPORT) {
                Some(json) => report = serde_json::from_str(json).ok(),
                None => crate::cli::out(&format!("{line}\n")),
            }
        }
        report
    });
    let err = child.stderr.take();
    let stderr = thread::spawn(move || {
        let mut said = String::new();
        let Some(err) = err else { return said };
        for line in BufReader::new(err).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            if is_logged(&line) {
                eprintln!("{line}");
                continue;
            }
            if said.len() > SAID_MAX {
                let half = said.len() / 2;
                let end = said.as_bytes()[half..].iter().position(|&byte| byte == b'\n');
                said.drain(..end.map_or(said.len(), |end| half + end + 1));
            }
            said.push_str(&line);
            said.push('\n');
        }
        said
    });
    Ok(Running { child, stdin, stdout, stderr })
}

/// Whether a child has logged this line: a time and a level begin it. What else it says is kept
/// for the case that it fails.
fn is_logged(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let time = words.next().is_some_and(|word| word.starts_with("20") && word.ends_with('Z'));
    time && words.next().is_some_and(|level| ["WARN", "ERROR", "INFO"].contains(&level))
}

/// Waits for all; gives the first that failed, after which the others are ended.
fn wait(running: &mut [Running], stop: &AtomicBool) -> Option<usize> {
    let mut failed = None;
    loop {
        let mut alive = 0;
        for (process, one) in running.iter_mut().enumerate() {
            if stop.load(Ordering::SeqCst) {
                one.stdin = None;
            }
            match one.child.try_wait() {
                Ok(None) => alive += 1,
                Ok(Some(status)) if status.success() => {}
                Ok(Some(_)) | Err(_) => {
                    failed.get_or_insert(process);
                }
            }
        }
        if failed.is_some() {
            for one in running.iter_mut() {
                // It may have ended by itself meanwhile.
                let _ = one.child.kill();
                let _ = one.child.wait();
            }
            return failed;
        }
        if alive == 0 {
            return None;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// The child's side.
pub fn child() -> ExitCode {
    match run_child() {
        Ok(()) => ExitCode::SUCCESS,
        Err(troubles) => {
            let text = serde_json::to_string(&troubles).unwrap_or_default();
            eprintln!("{TROUBLE}{text}");
            ExitCode::FAILURE
        }
    }
}

fn run_child() -> Result<(), Vec<Trouble>> {
    let broken = |message: String| vec![Trouble::new(message)];
    let mut line = String::new();
    let mut stdin = BufReader::new(std::io::stdin());
    stdin.read_line(&mut line).map_err(|e| broken(e.to_string()))?;
    let assignment: Assignment = serde_json::from_str(&line)
        .map_err(|e| broken(format!("`weir process` is started by `weir run`: {e}")))?;
    let stop = stop_on_signals().map_err(broken)?;
    let asked = stop.clone();
    thread::spawn(move || {
        let mut rest = Vec::new();
        // Ends when the parent closes it.
        let _ = stdin.read_to_end(&mut rest);
        asked.store(true, Ordering::SeqCst);
    });
    let clusters: Vec<Cluster> = assignment
        .addresses
        .iter()
        .map(|addresses| Cluster {
            threads: assignment.workers,
            process: assignment.process,
            addresses: addresses.clone(),
        })
        .collect();
    let options = RunOptions {
        workers: assignment.workers,
        processes: 1,
        epoch: None,
        digest: assignment.digest,
        quiet: true,
        state: None,
        report: None,
    };
    let jobs = assignment.jobs.into_iter().map(|job| (job, None)).collect();
    let reports = run_jobs(jobs, &clusters, &options, &stop)?;
    let text = serde_json::to_string(&reports).map_err(|e| broken(e.to_string()))?;
    crate::cli::out(&format!("{REPORT}{text}\n"));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_logs_is_told_from_what_it_says_when_it_fails() {
        assert!(is_logged("2026-01-02T03:04:05.000006Z  WARN weir_connect::retry: failed"));
        assert!(!is_logged("thread 'main' panicked at src/main.rs:1:1:"));
        assert!(!is_logged("weir-trouble [{\"message\":\"20Z WARN\"}]"));
    }
}
