//! `services up` and `services down`: servers that outlive the command, for work by hand.
//!
//! What runs is written to `running.json` (process ids, each with its start time: an id that the
//! system has given to someone else is never signalled) and, for a shell, to `running.env`.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::{Kind, Life, POLL, STOP_MAX, Services, install, pair, run_folder};
use crate::args::Args;
use crate::{places, process};

#[derive(Serialize, Deserialize)]
struct Running {
    kind: String,
    pid: u32,
    /// Start of the process in clock ticks since boot: with the id, a name that is never reused.
    started: u64,
    stop_signal: i32,
    env: Vec<(String, String)>,
    data: PathBuf,
}

const USAGE: &str = "usage: services install [NAME…] | up [NAME…] | down | env";

/// `cargo xtask services …`
pub(crate) fn command(mut args: Args) -> Result<()> {
    let words = args.words();
    args.finish()?;
    let Some((verb, names)) = words.split_first() else { bail!(USAGE) };
    match verb.as_str() {
        "install" => install(&Kind::named(names)?),
        "up" => up(&Kind::named(names)?),
        "down" => down(),
        "env" => {
            print!("{}", fs::read_to_string(env_file()).context("nothing is up")?);
            Ok(())
        }
        _ => bail!(USAGE),
    }
}

fn list_file() -> PathBuf {
    places::installed().join("running.json")
}

fn env_file() -> PathBuf {
    places::installed().join("running.env")
}

/// Starts what does not run yet.
fn up(kinds: &[Kind]) -> Result<()> {
    let mut running = load()?;
    let runs = |kind: &Kind| running.iter().any(|server| server.kind == kind.name());
    let new: Vec<Kind> = kinds.iter().copied().filter(|kind| !runs(kind)).collect();
    if !new.is_empty() {
        install(&new)?;
        let services = Services::start_in(run_folder()?, &new, Life::Detached)?;
        for server in &services.servers {
            running.push(Running {
                kind: server.kind.name().to_owned(),
                pid: server.child.id(),
                started: start_time(server.child.id()).context("the server is gone")?,
                stop_signal: server.stop_signal,
                env: server.env.clone(),
                data: services.folder.join(server.kind.name()),
            });
        }
        save(&running)?;
        // They live on, and so does their data.
        std::mem::forget(services);
    }
    print!("{}", fs::read_to_string(env_file())?);
    println!(
        "# in a shell: eval \"$(cargo xtask services env)\"; cargo xtask services down ends it"
    );
    Ok(())
}

/// Stops what `up` started.
fn down() -> Result<()> {
    let running = load()?;
    for server in running.iter().rev() {
        process::signal(server.pid, server.stop_signal);
    }
    let asked = Instant::now();
    for server in &running {
        while alive(server) && asked.elapsed() < STOP_MAX {
            thread::sleep(POLL);
        }
        if alive(server) {
            process::signal(server.pid, libc::SIGKILL);
        }
        println!("{} stopped", server.kind);
        let _left_behind = fs::remove_dir_all(&server.data);
        if let Some(parent) = server.data.parent() {
            // Not empty as long as another server has its data there.
            let _in_use = fs::remove_dir(parent);
        }
    }
    for file in [list_file(), env_file()] {
        let _absent = fs::remove_file(file);
    }
    Ok(())
}

/// What runs, without what has ended since.
fn load() -> Result<Vec<Running>> {
    let Ok(text) = fs::read_to_string(list_file()) else { return Ok(Vec::new()) };
    let mut running: Vec<Running> = serde_json::from_str(&text)?;
    running.retain(alive);
    Ok(running)
}

fn save(running: &[Running]) -> Result<()> {
    fs::write(list_file(), serde_json::to_string_pretty(running)?)?;
    let mut pairs: Vec<_> = running.iter().flat_map(|server| server.env.clone()).collect();
    pairs.push(pair("WEIR_PYTHON", places::python().display()));
    let text: String =
        pairs.iter().map(|(name, value)| format!("export {name}='{value}'\n")).collect();
    Ok(fs::write(env_file(), text)?)
}

fn alive(server: &Running) -> bool {
    start_time(server.pid) == Some(server.started)
}

/// Field 22 of `/proc/PID/stat`; the name before it may hold spaces, so count from its bracket.
/// A process that has ended and waits to be reaped is not alive.
fn start_time(pid: u32) -> Option<u64> {
    let text = fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).ok()?;
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_whitespace().collect();
    (*fields.first()? != "Z").then_some(())?;
    fields.get(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_time_names_a_living_process() -> Result<()> {
        assert!(start_time(std::process::id()).is_some());
        let mut child = process::spawn(std::process::Command::new("true").arg("x"))?;
        child.wait()?;
        assert_eq!(start_time(child.id()), None);
        Ok(())
    }
}
