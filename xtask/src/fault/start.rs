//! How the process under test is started: `weir run --state`, as a supervisor would.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::weir::Weir;

/// What a start is told.
#[derive(Clone, Debug)]
pub(super) struct Start<'a> {
    pub(super) program: &'a Path,
    pub(super) script: &'a Path,
    /// A folder or a URL.
    pub(super) state: String,
    /// Where the logs are, if not beside the state.
    pub(super) log: Option<String>,
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

impl Start<'_> {
    /// Starts it; should this process be killed, so is it.
    pub(super) fn weir(&self, log: PathBuf) -> Result<Weir> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).args(self.before).arg(self.program);
        command.args(["run", "-w", &self.workers.to_string(), "--state", &self.state]);
        command.args(["--processes", &self.processes.to_string()]);
        command.args(self.log.iter().flat_map(|log| ["--log", log]));
        command.envs(self.env.iter().cloned());
        command.envs(self.off.map(|guard| ("WEIR_BREAK", guard)));
        command.args(["--checkpoint-interval", self.interval]).arg(self.script);
        Weir::start(command.env("WEIR_LOG", "info"), log)
    }
}
