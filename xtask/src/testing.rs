//! `cargo xtask test`: every test there is, against real servers, with one line at the end.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::args::Args;
use crate::outside::{self, Tally};
use crate::services::{Kind, Services};
use crate::{fault, places, process, throttled, truth};

/// Half of what the issue asks for: memory that stands still for 30 s more stands still.
const THROTTLED_SECONDS: u64 = 60;
/// The workspace's tests with their build, cold, take half of this: beyond it one of them hangs.
const LIMIT: Duration = Duration::from_mins(45);

/// `cargo xtask test [--quick]`
pub(crate) fn command(mut args: Args) -> Result<()> {
    let quick = args.flag("--quick");
    args.finish()?;
    all(quick)?.verdict()
}

fn all(quick: bool) -> Result<Tally> {
    let mut parts = Parts(Instant::now());
    let mut services = Services::start(&Kind::ALL)?;
    parts.ended("starting the servers");
    let mut tally = workspace(&services)?;
    parts.ended("cargo test");
    if places::shared().is_none() {
        println!(
            "no ../shared beside the repository: conformance, errors and truth did not run \
             (tests of the workspace did)"
        );
        if std::env::var("CI").is_ok_and(|ci| ci == "true") {
            bail!("CI needs ../shared");
        }
        return Ok(tally);
    }
    // The workspace's tests start it, so cargo has just built it, with the same features.
    let weir = places::weir(None)?;
    tally.add(outside::errors(&weir, "", false)?);
    tally.add(outside::conformance(&weir, "", false)?);
    if quick {
        println!("--quick: the truth, the faults and the throttled sink did not run");
    } else {
        parts.ended("errors and conformance");
        tally.add(truth::ci(&weir, &services)?);
        parts.ended("truth");
        tally.add(fault::ci(&weir, &mut services)?);
        parts.ended("faults");
        tally.add(fault::broken(&mut services)?);
        parts.ended("faults without a guard");
        match throttled::run(&weir, "", &services, THROTTLED_SECONDS) {
            Ok(()) => tally.pass(),
            Err(error) => {
                process::check_interrupted()?;
                tally.fail(format!("throttled: {error:#}"));
            }
        }
        parts.ended("the throttled sink");
    }
    Ok(tally)
}

/// Says how long each part took, so that what grows is seen.
struct Parts(Instant);

impl Parts {
    fn ended(&mut self, what: &str) {
        println!("{what}: {} s", self.0.elapsed().as_secs());
        self.0 = Instant::now();
    }
}

/// `cargo test --workspace`, with its output passed through and its results counted.
fn workspace(services: &Services) -> Result<Tally> {
    let mut cargo = cargo_test(places::root());
    cargo.envs(services.env());
    let mut child = process::spawn(cargo.stdout(Stdio::piped()))?;
    let stdout = child.stdout.take().context("no output")?;
    let lines = std::thread::spawn(move || {
        let mut tally = Tally::default();
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            println!("{line}");
            count(&line, &mut tally);
        }
        tally
    });
    let status = process::wait(&mut child, Some(LIMIT))
        .context("cargo test: a test that began above has not ended")?;
    let mut tally = lines.join().unwrap_or_default();
    if !status.success() && tally.failures.is_empty() {
        tally.fail(format!("cargo test ended with {}", process::ended(status)));
    }
    Ok(tally)
}

fn cargo_test(root: &Path) -> Command {
    let mut cargo = process::cargo();
    cargo.args(["test", "--workspace", "--no-fail-fast"]).current_dir(root);
    cargo
}

/// Counts what the test harness says of each test: `test name ... ok`.
fn count(line: &str, tally: &mut Tally) {
    let Some((name, result)) = line.strip_prefix("test ").and_then(|l| l.rsplit_once(" ... "))
    else {
        return;
    };
    match result.split([',', ' ']).next() {
        Some("ok") => tally.pass(),
        Some("FAILED") => tally.failures.push(name.to_owned()),
        // No test of ours is ignored: one that cannot run has failed.
        Some("ignored") => tally.failures.push(format!("{name} is ignored")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted() {
        let mut tally = Tally::default();
        for line in [
            "test a::b ... ok",
            "test a::c - should panic ... ok",
            "test a::d ... FAILED",
            "test a::e ... ignored, because",
            "test result: ok. 3 passed; 0 failed",
            "running 4 tests",
        ] {
            count(line, &mut tally);
        }
        assert_eq!((tally.passed, tally.failures.len()), (2, 2));
    }
}
