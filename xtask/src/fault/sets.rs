//! Faults of one process of several: the supervisor starts the set again by itself.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::kinds::{PATIENCE, STOPPED, goes_on};
use super::world::World;
use crate::process;

/// By then the supervisor has given it up.
const GIVEN_UP: Duration = Duration::from_secs(15);
/// What a parent's end takes to end its children.
const ORPHANED: Duration = Duration::from_secs(10);
/// Disks that are lost in a run.
const LOSSES: usize = 3;

/// Kills one process of the set; now and then all of them with their parent, or stops them.
pub(super) fn child(world: &mut World) -> Result<()> {
    while goes_on(world)? {
        if world.faults.is_multiple_of(2) {
            world.until_commit_or_end(PATIENCE)?;
        }
        let time = world.random.millis(300, 2_000);
        world.work(time)?;
        match world.random.below(6) {
            0 => {
                world.kill()?;
                world.start()?;
            }
            1 => {
                world.weir()?.stop()?;
                world.faults += 1;
                world.start()?;
            }
            _ => {
                let pid = pick(world)?;
                world.begin_restart();
                process::signal(pid, libc::SIGKILL);
                world.faults += 1;
            }
        }
    }
    Ok(())
}

/// Stops one process of the set for 30 s: the others go on without it, as a new generation.
pub(super) fn hang(world: &mut World) -> Result<()> {
    world.until_commit(PATIENCE)?;
    let pid = pick(world)?;
    world.begin_restart();
    process::signal(pid, libc::SIGSTOP);
    world.faults += 1;
    let began = Instant::now();
    world.until("the set without the stopped process", GIVEN_UP, |world| {
        Ok(!world.weir()?.children().contains(&pid))
    })?;
    println!("    given up after {:.1} s", began.elapsed().as_secs_f64());
    world.until_commit(PATIENCE)?;
    world.work(STOPPED.saturating_sub(began.elapsed()))?;
    ensure!(world.weir()?.said().contains("has said nothing"), "{}", world.weir()?.tail());
    // Of the process nothing is left that could go on.
    process::signal(pid, libc::SIGCONT);
    world.work(Duration::from_secs(1))
}

/// The disk of one process is lost with it: its cut log is made again from another's, and journals
/// of MQTT that were on it from those on the other.
pub(super) fn lost_disk(world: &mut World) -> Result<()> {
    for _ in 0..LOSSES {
        world.until_commit(PATIENCE)?;
        let time = world.random.millis(500, 3_000);
        world.work(time)?;
        kill_all(world)?;
        let logs = world.logs()?;
        let lost = world.random.below(logs.len() as u64) as usize;
        println!("    {} is lost", logs[lost].display());
        fs::remove_dir_all(&logs[lost])?;
        let journals = world.journals();
        if !journals.is_empty() {
            let lost = world.random.below(journals.len() as u64) as usize;
            println!("    {} is lost", journals[lost].display());
            fs::remove_dir_all(&journals[lost])?;
        }
        world.start()?;
    }
    Ok(())
}

/// All processes are lost with their disks: nothing that the next ones need was on these.
pub(super) fn all_disks(world: &mut World) -> Result<()> {
    for _ in 0..LOSSES {
        world.until_commit(PATIENCE)?;
        let time = world.random.millis(500, 3_000);
        world.work(time)?;
        kill_all(world)?;
        world.start()?;
    }
    for folder in ["logs", "state"] {
        let local = world.folder.join(folder);
        ensure!(!local.exists(), "something of the job is on this machine: {}", local.display());
    }
    Ok(())
}

/// Kills a set, and waits until no process of it is left.
fn kill_all(world: &mut World) -> Result<()> {
    let children = world.weir()?.children();
    world.kill()?;
    let began = Instant::now();
    let alive = |pid: &u32| fs::exists(format!("/proc/{pid}")).unwrap_or(false);
    while children.iter().any(alive) {
        ensure!(began.elapsed() < ORPHANED, "processes outlive their parent: {children:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A process of the set that runs.
fn pick(world: &mut World) -> Result<u32> {
    world.until("a whole set", PATIENCE, |world| Ok(!world.weir()?.children().is_empty()))?;
    let children = world.weir()?.children();
    let place = world.random.below(children.len() as u64) as usize;
    children.get(place).copied().context("a process")
}
