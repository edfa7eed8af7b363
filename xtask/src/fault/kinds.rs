//! The faults, one function a kind. Each finds weir at work under load, and leaves it at work.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::proxy::Trap;
use super::world::World;
use super::{Fault, sets, state};
use crate::process;
use crate::services::Kind;

/// Kills, and the like, that a run has at least, and at most while rows come in.
const FAULTS_MIN: usize = 5;
const FAULTS_MAX: usize = 15;
/// Flipped bytes of a run.
const FLIPS: usize = 3;
/// On a machine that is busy with other things.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How often a folder is looked at, to be there before the manifest is.
const WATCH: Duration = Duration::from_micros(300);
/// After this a broker has saved what it was told.
const SAVED: Duration = Duration::from_secs(5);
/// After so long without a row there is nothing new to write.
const STILL: Duration = Duration::from_secs(5);
/// How long a process is stopped.
pub(super) const STOPPED: Duration = Duration::from_secs(30);
/// How long a disk is full.
const FULL: Duration = Duration::from_secs(5);

/// Does to weir what the kind is about.
pub(super) fn inflict(world: &mut World, fault: Fault) -> Result<()> {
    match fault {
        Fault::Kill => kill(world),
        Fault::Checkpoint => checkpoint(world),
        Fault::Reply => reply(world),
        Fault::ReplyCut => reply_cut(world),
        Fault::Postgres => outage(world, Kind::Postgres),
        Fault::Kafka => outage(world, Kind::Kafka),
        Fault::Mqtt | Fault::MqttKill => mqtt(world, fault == Fault::MqttKill),
        Fault::Corrupt => corrupt(world),
        Fault::Zombie => zombie(world),
        Fault::Twin => twin(world),
        Fault::Stop => stop(world),
        Fault::FullDisk => full_disk(world),
        Fault::Child => sets::child(world),
        Fault::Hang => sets::hang(world),
        Fault::AllDisks => sets::all_disks(world),
        Fault::LostDisk => sets::lost_disk(world),
    }
}

/// Whether one more is wanted.
pub(super) fn goes_on(world: &mut World) -> Result<bool> {
    Ok(world.faults < FAULTS_MIN || world.faults < FAULTS_MAX && world.under_load()?)
}

/// Kills some time after the start, by turns at once or when it has committed.
fn kill(world: &mut World) -> Result<()> {
    while goes_on(world)? {
        if world.faults.is_multiple_of(2) {
            world.until_commit_or_end(PATIENCE)?;
        }
        let time = world.random.millis(300, 2_000);
        world.work(time)?;
        world.kill()?;
        world.start()?;
    }
    Ok(())
}

/// Kills while a checkpoint is written: at a new file of pieces, or a little later.
fn checkpoint(world: &mut World) -> Result<()> {
    let mut caught = 0;
    while goes_on(world)? {
        let time = world.random.millis(0, 1_000);
        world.work(time)?;
        // By turns at the draft, at the file, and some time behind it.
        let (drafts, later) = match world.random.below(3) {
            0 => (true, Duration::ZERO),
            1 => (false, Duration::ZERO),
            _ => (false, world.random.millis(0, 8)),
        };
        let Some(file) = until_piece(world, drafts)? else { break };
        thread::sleep(later);
        world.kill()?;
        caught += usize::from(!state::is_named(&world.state, &file));
        world.start()?;
    }
    println!("    {caught} of {} before their manifest was there", world.faults);
    ensure!(caught > 0, "no kill came before a manifest");
    Ok(())
}

/// Waits for a file of pieces that was not there before. None if no more rows come: checkpoints of
/// a state that stands still write none.
fn until_piece(world: &mut World, drafts: bool) -> Result<Option<String>> {
    let began = Instant::now();
    let mut still = None;
    let known = state::names(&world.state, "pieces");
    loop {
        let names = state::names(&world.state, "pieces");
        let fresh = |name: &&String| drafts == name.starts_with('.') && !known.contains(name);
        if let Some(name) = names.iter().find(fresh) {
            return Ok(Some(name.clone()));
        }
        world.weir()?.check()?;
        if !world.under_load()? && still.get_or_insert_with(Instant::now).elapsed() > STILL {
            return Ok(None);
        }
        if began.elapsed() > PATIENCE {
            bail!("no checkpoint within {PATIENCE:?}\n{}", world.weir()?.tail());
        }
        thread::sleep(WATCH);
    }
}

/// Kills between the database's commit and its reply.
fn reply(world: &mut World) -> Result<()> {
    while goes_on(world)? {
        // Some at once: the first commit is that of taking the sink over.
        let time = if world.random.below(4) == 0 {
            Duration::ZERO
        } else {
            world.random.millis(300, 2_000)
        };
        world.work(time)?;
        if !lose_reply(world, Trap::Kill)? {
            break;
        }
        world.weir()?.killed()?;
        world.faults += 1;
        world.start()?;
    }
    Ok(())
}

/// Cuts the connection between the database's commit and its reply.
fn reply_cut(world: &mut World) -> Result<()> {
    while goes_on(world)? {
        let time = world.random.millis(300, 1_500);
        world.work(time)?;
        if !lose_reply(world, Trap::Cut)? {
            break;
        }
        world.faults += 1;
    }
    Ok(())
}

/// Lets the reply to the next commit be lost; false if there is nothing left to commit.
fn lose_reply(world: &mut World, trap: Trap) -> Result<bool> {
    let pid = world.weir()?.id();
    let proxy = world.proxy.as_ref().context("no proxy")?;
    let before = proxy.sprung();
    let sprung = |world: &World| world.proxy.as_ref().is_some_and(|p| p.sprung() > before);
    proxy.aim(pid);
    proxy.arm(trap);
    let waited = world.until_or_end("a commit", PATIENCE, |world| Ok(sprung(world)));
    if let Some(proxy) = &world.proxy {
        proxy.disarm();
    }
    match waited {
        // That it has ended is no error then.
        _ if sprung(world) => Ok(true),
        Ok(_) => {
            ensure!(world.faults > 0, "no reply was lost");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// A server crashes, or is stopped in order, by turns, and is away for a while; in half of the
/// runs weir is killed meanwhile, and started again once the server is back.
fn outage(world: &mut World, kind: Kind) -> Result<()> {
    let time = world.random.millis(2_000, 6_000);
    world.work(time)?;
    world.until_commit(PATIENCE)?;
    if world.seed.is_multiple_of(2) {
        world.services.crash(kind)?;
    } else {
        world.services.stop(kind)?;
    }
    world.faults += 1;
    let half = Duration::from_secs(world.plan.outage) / 2;
    world.work(half)?;
    let killed = (world.seed / 3).is_multiple_of(2);
    if killed {
        world.kill()?;
        thread::sleep(half);
    } else {
        world.work(half)?;
    }
    world.services.revive(kind)?;
    if killed { world.start() } else { Ok(()) }
}

/// The MQTT broker goes, by turns in order and by crashing, and comes back with what it has saved;
/// with `kills`, weir is killed too: with the broker, or by itself.
fn mqtt(world: &mut World, kills: bool) -> Result<()> {
    // A broker that crashes before it has saved the sessions would forget weir.
    world.work(SAVED)?;
    while goes_on(world)? {
        let time = world.random.millis(300, 3_000);
        world.work(time)?;
        let (broker, weir) = match world.random.below(3) {
            _ if !kills => (true, false),
            0 => (true, true),
            1 => (true, false),
            _ => (false, true),
        };
        if broker {
            if world.faults.is_multiple_of(2) {
                world.services.crash(Kind::Mosquitto)?;
            } else {
                world.services.stop(Kind::Mosquitto)?;
            }
            world.faults += 1;
            let away = world.random.millis(0, 2_000);
            world.work(away)?;
        }
        if weir {
            world.kill()?;
        }
        if broker {
            let away = world.random.millis(0, 1_000);
            thread::sleep(away);
            world.services.revive(Kind::Mosquitto)?;
        }
        if weir {
            world.start()?;
        }
    }
    Ok(())
}

/// Flips a byte of the newest checkpoint between a kill and the next start.
fn corrupt(world: &mut World) -> Result<()> {
    let mut before = String::new();
    for turn in 0..FLIPS {
        world.until("another checkpoint", PATIENCE, |world| {
            let all = state::manifests(&world.state);
            Ok(all.len() > 1 && all.last().is_some_and(|last| *last > before))
        })?;
        // Half of the time no second one has been made since the last that was spoiled.
        let time = world.random.millis(0, 1_500);
        if world.random.below(2) == 0 {
            world.work(time)?;
        }
        world.kill()?;
        let (manifest, own) = state::newest(&world.state)?;
        let named = manifest.file_name().context("a name")?.to_string_lossy().into_owned();
        let spoiled = match own {
            Some(own) if (turn as u64 + world.seed).is_multiple_of(2) => own,
            _ => manifest,
        };
        let permille = world.random.below(1_000);
        let at = state::flip(&spoiled, permille)?;
        println!("    byte {at} of {} flipped", spoiled.display());
        before = named;
        world.start()?;
        world.until("a word on the bad checkpoint", PATIENCE, |world| {
            Ok(world.weir()?.said().contains("checkpoint passed over"))
        })?;
    }
    Ok(())
}

/// One that was stopped goes on after another has taken over.
fn zombie(world: &mut World) -> Result<()> {
    world.until("two checkpoints", PATIENCE, |world| {
        Ok(state::manifests(&world.state).len() > 1 && world.progress().is_some())
    })?;
    let time = world.random.millis(0, 2_000);
    world.work(time)?;
    world.weir()?.signal(libc::SIGSTOP);
    let stopped = Instant::now();
    world.faults += 1;

    let own = world.state.clone();
    let mut second = world.launch(&own)?;
    let status = second.wait(PATIENCE).with_context(|| second.tail())?;
    ensure!(
        status.code() == Some(1) && second.said().contains("runs already"),
        "a second one on the same folder ended with {}\n{}",
        process::ended(status),
        second.tail()
    );
    let snapshot = world.folder.join("snapshot");
    state::copy(&own, &snapshot)?;
    let mut first = world.weir.take().context("weir runs")?;
    world.state = snapshot;
    world.start()?;
    world.until_commit(PATIENCE).context("the second one, on a snapshot of the state")?;
    world.work(STOPPED.saturating_sub(stopped.elapsed()))?;
    ensure!(world.under_load()?, "too late: all is published");
    first.signal(libc::SIGCONT);
    let began = Instant::now();
    let status = loop {
        if let Some(status) = first.ended()? {
            break status;
        }
        let tail = first.tail();
        ensure!(began.elapsed() < PATIENCE, "the first one has not ended after SIGCONT\n{tail}");
        world.work(Duration::from_millis(100))?;
    };
    println!("    the first one ended {:.1} s after SIGCONT", began.elapsed().as_secs_f64());
    let said = first.said();
    ensure!(
        status.code() == Some(1) && said.contains("taken") && said.contains("over"),
        "the first one ended with {}\n{}",
        process::ended(status),
        first.tail()
    );
    Ok(())
}

/// Two go on from the same state: the one that was killed, and another on a snapshot of its disk.
fn twin(world: &mut World) -> Result<()> {
    world.until("two checkpoints", PATIENCE, |world| {
        Ok(state::manifests(&world.state).len() > 1 && world.progress().is_some())
    })?;
    let time = world.random.millis(0, 2_000);
    world.work(time)?;
    world.kill()?;
    let snapshot = world.folder.join("snapshot");
    state::copy(&world.state, &snapshot)?;
    world.start()?;
    let mut second = world.launch(&snapshot)?;
    // Without the guard that ends one of them nothing else does.
    let patience = if world.plan.off.is_some() { PATIENCE / 4 } else { PATIENCE };
    let began = Instant::now();
    let (status, tail) = loop {
        if let Some(status) = world.weir()?.ended()? {
            let tail = world.weir()?.tail();
            world.state.clone_from(&snapshot);
            world.weir = Some(second);
            break (status, tail);
        }
        if let Some(status) = second.ended()? {
            break (status, second.tail());
        }
        let tail = second.tail();
        ensure!(began.elapsed() < patience, "both go on\n{tail}\n{}", world.weir()?.tail());
        thread::sleep(Duration::from_millis(20));
    };
    println!("    one of two ended after {:.1} s", began.elapsed().as_secs_f64());
    let clear = tail.contains("has taken over") || tail.contains("a copy of the same state");
    if status.code() != Some(1) || !clear {
        let ended = process::ended(status);
        world.complaints.push(format!("the one that lost ended with {ended}\n{tail}"));
    }
    Ok(())
}

/// Stops it in order and starts it again, as for a new version.
fn stop(world: &mut World) -> Result<()> {
    while goes_on(world)? {
        if world.faults.is_multiple_of(2) {
            world.until_commit_or_end(PATIENCE)?;
        }
        let time = world.random.millis(300, 2_000);
        world.work(time)?;
        world.weir()?.stop()?;
        world.faults += 1;
        world.start()?;
    }
    Ok(())
}

/// The state's disk is full for a while; in every second run weir is killed and started on it.
fn full_disk(world: &mut World) -> Result<()> {
    world.until("two checkpoints", PATIENCE, |world| {
        Ok(state::manifests(&world.state).len() > 1 && world.progress().is_some())
    })?;
    let time = world.random.millis(0, 2_000);
    world.work(time)?;
    keep_full(world, FULL * 2, says_full)?;
    world.faults += 1;
    if !says_full(world)? {
        let tail = world.weir()?.tail();
        world.complaints.push(format!("it does not say that it waits for the disk\n{tail}"));
    }
    keep_full(world, FULL, |_| Ok(false))?;
    let before = world.progress();
    keep_full(world, FULL / 2, |_| Ok(false))?;
    if world.progress() != before {
        world.complaints.push("it commits what it cannot remember: the disk is full".to_owned());
    }
    if (world.seed / 3).is_multiple_of(2) {
        world.kill()?;
        start_on_full(world)?;
    }
    world.disk.as_ref().context("a disk")?.free()
}

fn says_full(world: &mut World) -> Result<bool> {
    let said = world.weir()?.said().to_lowercase();
    Ok(said.contains("no space left") || said.contains("waits"))
}

/// What is freed meanwhile is filled again.
fn keep_full(
    world: &mut World,
    time: Duration,
    mut enough: impl FnMut(&mut World) -> Result<bool>,
) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < time && !enough(world)? {
        world.disk.as_ref().context("a disk")?.fill()?;
        world.work(Duration::from_millis(100))?;
    }
    Ok(())
}

/// A start on a full disk may wait, or say why it cannot; then a supervisor starts it again.
fn start_on_full(world: &mut World) -> Result<()> {
    let disk = world.disk.as_ref().context("a disk")?;
    disk.fill()?;
    world.start()?;
    thread::sleep(FULL);
    let weir = world.weir()?;
    let Some(status) = weir.ended()? else { return Ok(()) };
    let clear = status.code() == Some(1) && weir.said().to_lowercase().contains("no space left");
    ensure!(clear, "on a full disk it ended with {}\n{}", process::ended(status), weir.tail());
    world.disk.as_ref().context("a disk")?.free()?;
    world.start()
}
