//! PostgreSQL: a cluster of its own, trusting everyone on loopback.
//!
//! `initdb` and `postgres` refuse to run as root: as root they run as the user `postgres`, who owns
//! the data folder.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Kind, Life, Server, command_for, free_ports, launch, pair};
use crate::process;

pub(super) fn start(data: &Path, life: Life) -> Result<Server> {
    let programs = programs().context("no PostgreSQL below /usr/lib/postgresql")?;
    let [port] = free_ports()?;
    let owner = owner()?;
    if let Some((uid, gid)) = owner {
        chown(data, Some(uid), Some(gid))?;
    }
    let cluster = data.join("data");
    let mut init = as_owner(&programs.join("initdb"), owner, Life::Detached);
    init.arg("-D").arg(&cluster).args(["-U", "postgres", "-A", "trust", "--no-sync"]);
    process::quietly(init.args(["-E", "UTF8", "--locale=C.UTF-8"]).current_dir(data))?;

    let data = data.to_owned();
    let launch = move || {
        let mut server = as_owner(&programs.join("postgres"), owner, life);
        server.arg("-D").arg(&cluster).args(["-p", &port.to_string()]).current_dir(&data);
        server.args(["-c", "listen_addresses=127.0.0.1"]);
        server.arg("-c").arg(format!("unix_socket_directories={}", data.display()));
        let ready = || {
            let mut probe = Command::new(programs.join("pg_isready"));
            probe.args(["-q", "-h", "127.0.0.1", "-p", &port.to_string()]);
            process::quietly(&mut probe).is_ok()
        };
        launch(server, &data, ready)
    };
    let url = format!("postgresql://postgres@127.0.0.1:{port}/postgres");
    // SIGTERM would wait for clients that stay; SIGINT is PostgreSQL's fast shutdown.
    let env = vec![pair("WEIR_TEST_POSTGRES", url)];
    Server::start(Kind::Postgres, libc::SIGINT, env, Box::new(launch))
}

/// The newest installed version's programs.
pub(super) fn programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut found: Vec<(u32, PathBuf)> = versions
        .flatten()
        .filter_map(|v| Some((v.file_name().to_str()?.parse().ok()?, v.path().join("bin"))))
        .filter(|(_, bin)| bin.join("postgres").is_file())
        .collect();
    found.sort();
    found.pop().map(|(_, bin)| bin)
}

/// User and group `postgres` if we are root, else nobody: we are who we are.
fn owner() -> Result<Option<(u32, u32)>> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let fields: Vec<&str> = line.context("no user postgres")?.split(':').collect();
    let id = |at: usize| fields.get(at).and_then(|id| id.parse().ok());
    Ok(Some((id(2).context("no user id")?, id(3).context("no group id")?)))
}

fn as_owner(program: &Path, owner: Option<(u32, u32)>, life: Life) -> Command {
    let Some((uid, gid)) = owner else {
        return command_for(program, life, "INT");
    };
    let mut command = Command::new("setpriv");
    command.args([format!("--reuid={uid}"), format!("--regid={gid}")]).arg("--clear-groups");
    if life == Life::Ours {
        command.args(["--pdeathsig", "INT"]);
    }
    command.arg("--").arg(program);
    command
}
