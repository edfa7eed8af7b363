//! A `weir run` that works while it is looked at, and mistreated.

use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::process;

const STOP_MAX: Duration = Duration::from_secs(60);
const LINES_SHOWN: usize = 25;

/// A process that runs, or has run. It is killed with the value.
pub(crate) struct Weir {
    child: Child,
    log: PathBuf,
}

impl Weir {
    /// Starts it; what it says is added to `log`.
    pub(crate) fn start(command: &mut Command, log: PathBuf) -> Result<Weir> {
        let file = File::options().create(true).append(true).open(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        Ok(Weir { child: process::spawn(command)?, log })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The processes of its set.
    pub(crate) fn children(&self) -> Vec<u32> {
        let pid = self.id();
        let path = format!("/proc/{pid}/task/{pid}/children");
        let text = fs::read_to_string(path).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
    }

    /// How it has ended, if it has.
    pub(crate) fn ended(&mut self) -> Result<Option<ExitStatus>> {
        process::check_interrupted()?;
        Ok(self.child.try_wait()?)
    }

    /// An error if it has ended by itself.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.ended()? {
            Some(status) => bail!("weir ended with {}\n{}", process::ended(status), self.tail()),
            None => Ok(()),
        }
    }

    /// All that it has said.
    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last of what it has said, with where the rest is.
    pub(crate) fn tail(&self) -> String {
        let text = self.said();
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n");
        format!("{}:\n{last}", self.log.display())
    }

    /// Kills it, which must be running.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.check()?;
        self.signal(libc::SIGKILL);
        self.killed()
    }

    /// Waits for the end of what was killed.
    pub(crate) fn killed(&mut self) -> Result<()> {
        let status = process::wait(&mut self.child, Some(STOP_MAX))?;
        let by_us = status.signal() == Some(libc::SIGKILL);
        ensure!(by_us, "weir ended with {}\n{}", process::ended(status), self.tail());
        Ok(())
    }

    /// Bytes of memory that it has now.
    pub(crate) fn resident(&mut self) -> Result<u64> {
        self.check()?;
        process::resident(self.id())
    }

    pub(crate) fn signal(&self, signal: libc::c_int) {
        process::signal(self.id(), signal);
    }

    /// Waits until it has ended by itself; how.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        process::wait(&mut self.child, Some(limit))
    }

    /// As a user would stop it: SIGTERM, then what has fired is committed and the exit code is 0.
    pub(crate) fn stop(&mut self) -> Result<()> {
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
