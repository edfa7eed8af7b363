//! The process under test: `weir run --state`, started as a supervisor would, and mistreated.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::process;

const STOP_MAX: Duration = Duration::from_secs(60);
const LINES_SHOWN: usize = 25;

/// What a start is told.
#[derive(Clone, Debug)]
pub(super) struct Start<'a> {
    pub(super) program: &'a Path,
    pub(super) script: &'a Path,
    /// A folder or a URL.
    pub(super) state: String,
    /// Where the logs are, if not beside the state.
    pub(super) log: Option<&'a Path>,
    /// Variables that it needs.
    pub(super) env: &'a [(String, String)],
    /// The least time between two checkpoints, as on the command line.
    pub(super) interval: &'a str,
    pub(super) processes: usize,
    pub(super) workers: usize,
    /// Words that come before the program, for instance `nsenter …`.
    pub(super) before: &'a [String],
    /// The guard that it does without.
    pub(super) off: Option<&'a str>,
}

/// A process that runs, or has run.
pub(super) struct Weir {
    child: Child,
    log: PathBuf,
}

impl Weir {
    /// Starts it; should this process be killed, so is it.
    pub(super) fn start(start: &Start, log: PathBuf) -> Result<Weir> {
        let file = File::create(&log)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(start.before).arg(start.program);
        command.args(["run", "-w", &start.workers.to_string(), "--state", &start.state]);
        command.args(["--processes", &start.processes.to_string()]);
        command.args(start.log.iter().flat_map(|log| ["--log".as_ref(), log.as_os_str()]));
        command.envs(start.env.iter().cloned());
        command.envs(start.off.map(|guard| ("WEIR_BREAK", guard)));
        command.args(["--checkpoint-interval", start.interval]).arg(start.script);
        command.env("WEIR_LOG", "info").stdout(file.try_clone()?).stderr(file);
        Ok(Weir { child: process::spawn(&mut command)?, log })
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processes of its set.
    pub(super) fn children(&self) -> Vec<u32> {
        let pid = self.child.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// How it has ended, if it has.
    pub(super) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        process::check_interrupted()?;
        Ok(self.child.try_wait()?)
    }

    /// An error if it has ended by itself.
    pub(super) fn check(&mut self) -> Result<()> {
        match self.ended()? {
            Some(status) => bail!("weir ended with {}\n{}", process::ended(status), self.tail()),
            None => Ok(()),
        }
    }

    /// All that it has said.
    pub(super) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last of what it has said, with where the rest is.
    pub(super) fn tail(&self) -> String {
        let text = self.said();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
        format!("{}:\n{last}", self.log.display())
    }

    /// Kills it, which must be running.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.check()?;
        self.signal(libc::SIGKILL);
        self.killed()
    }

    /// Waits for the end of what was killed.
    pub(super) fn killed(&mut self) -> Result<()> {
        let status = process::wait(&mut self.child, Some(STOP_MAX))?;
        let by_us = status.signal() == Some(libc::SIGKILL);
        ensure!(by_us, "weir ended with {}\n{}", process::ended(status), self.tail());
        Ok(())
    }

    pub(super) fn signal(&self, signal: libc::c_int) {
        process::signal(self.child.id(), signal);
    }

    /// Waits until it has ended by itself; how.
    pub(super) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        process::wait(&mut self.child, Some(limit))
    }

    /// As a user would stop it: SIGTERM, then what has fired is committed and the exit code is 0.
    pub(super) fn stop(&mut self) -> Result<()> {
        self.check()?;
        self.signal(libc::SIGTERM);
        let status = self.wait(STOP_MAX)?;
        ensure!(
            status.success(),
            "SIGTERM ended it with {}\n{}",
            process::ended(status),
            self.tail()
        );
        Ok(())
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.signal(libc::SIGKILL);
            let _gone = self.child.wait();
        }
    }
}
