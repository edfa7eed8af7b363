//! `weir demo`: a whole system in one process, from simulated devices to files, and a judge at the
//! end.
//!
//! *smart-grid*: meters of a small town send readings over MQTT to a broker within the process; the
//! SQL in `scenarios/smart-grid` reads them there like any user's script would; the judge reads the
//! files that it wrote and compares them with the truth, which Weir never sees.

mod history;
mod home;
mod instants;
mod judge;
mod publish;
mod random;
mod reference;
mod results;
mod screen;
mod stream;
mod verdict;
mod world;

use clap::{Args, ValueEnum};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use weir_engine::clock::SystemClock;
use weir_engine::flow::Cluster;
use weir_engine::job::JobControl;
use weir_sources::broker::Broker;

use crate::connectors;
use crate::jobs::{self, RunningJob};
use crate::report::JobReport;
use crate::run;
use publish::{Pace, Progress};
use results::Suspects;
use screen::{Facts, Screen};
use stream::{RegionStream, Sent};
use world::{REGIONS, World, WorldSpec};

const SCRIPT: &str = include_str!("../scenarios/smart-grid/smart-grid.sql");
/// How long sources may take until they have subscribed, and until what was sent has been read.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long after Ctrl-C nothing may have come before what was sent is given up.
const PATIENCE_STOPPED: Duration = Duration::from_secs(3);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The demos.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Scenario {
    /// Theft of electricity among simulated smart meters
    SmartGrid,
}

/// Flags of `weir demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Which one
    scenario: Scenario,
    /// Meters at homes
    #[arg(long, default_value_t = 2000)]
    #[arg(value_parser = clap::value_parser!(u32).range(10..=200_000))]
    meters: u32,
    /// Minutes of event time
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=400))]
    minutes: u32,
    /// Seconds of event time a second
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    speed: u32,
    /// What the world is drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Workers (threads)
    #[arg(short, long, default_value_t = 1)]
    workers: usize,
    /// Folder for data and results; it must not hold anything yet. By default a new one in
    /// `weir-demo`
    #[arg(long)]
    out: Option<PathBuf>,
    /// Prints the outcome only
    #[arg(short, long)]
    quiet: bool,
}

/// Runs a demo to its end.
///
/// # Errors
/// In words: a folder or socket that cannot be had, a job that failed.
pub fn run(args: &DemoArgs) -> Result<(), String> {
    match args.scenario {
        Scenario::SmartGrid => smart_grid(args),
    }
}

fn smart_grid(args: &DemoArgs) -> Result<(), String> {
    let stop = run::stop_on_signals()?;
    let folder = folder(args.out.as_deref())?;
    let mut screen = Screen::new(args.quiet);
    screen.say(&format!(
        "{} meters, {} minutes at {}× speed, seed {}; all files in {}",
        args.meters,
        args.minutes,
        args.speed,
        args.seed,
        folder.display()
    ));
    let world = World::drawn(WorldSpec {
        seed: args.seed,
        meters: args.meters as usize,
        minutes: i64::from(args.minutes),
    });
    screen.say("looking back on 14 days for the baseline …");
    reference::write(&world, &folder)
        .map_err(|e| format!("cannot write to {}: {e}", folder.display()))?;
    let broker = Broker::start("127.0.0.1:0").map_err(|e| format!("the MQTT broker: {e}"))?;
    let jobs = Jobs::start(&folder, &broker, args.workers)?;
    jobs.await_subscriptions(&broker, &stop)?;
    screen.say(&format!("{} gateways publish to mqtt://{}", REGIONS.len(), broker.address()));
    let mut suspects = Suspects::of(folder.join("suspects"));
    let sent = show(args, &world, &broker, &jobs, &mut screen, &mut suspects, &stop)?;
    let shown = jobs.watermark().min(world.end);
    let reports = jobs.end()?;
    let outcome = verdict::Outcome {
        world: &world,
        folder: &folder,
        facts: Facts::of(&reports),
        sent,
        shown,
    };
    crate::cli::out(&outcome.text()?);
    Ok(())
}

/// The folder of a run: the one that was named, or the next free one.
fn folder(named: Option<&Path>) -> Result<PathBuf, String> {
    let made = |path: &Path| {
        fs::create_dir_all(path).map_err(|e| format!("cannot make {}: {e}", path.display()))
    };
    if let Some(path) = named {
        made(path)?;
        let mut inside = fs::read_dir(path).map_err(|e| format!("{}: {e}", path.display()))?;
        if inside.next().is_some() {
            return Err(format!(
                "the folder {} is not empty\n  hint: name another one with --out",
                path.display()
            ));
        }
        return Ok(path.to_owned());
    }
    let free = |number: &u32| !Path::new("weir-demo").join(number.to_string()).exists();
    let number = (1..).find(free).unwrap_or(u32::MAX);
    let path = Path::new("weir-demo").join(number.to_string());
    made(&path)?;
    Ok(path)
}

/// The script with its places filled in.
fn script(folder: &Path, broker: &str) -> String {
    let folder = folder.display().to_string().replace('\'', "''");
    let filled = SCRIPT.replace("'${OUT}/", &format!("'{folder}/"));
    filled.replace("'${DATA}/", &format!("'{folder}/")).replace("${MQTT}", broker)
}

/// The running jobs of the script.
struct Jobs {
    controls: Vec<Arc<JobControl>>,
    threads: Vec<RunningJob>,
}

impl Jobs {
    fn start(folder: &Path, broker: &Broker, workers: usize) -> Result<Jobs, String> {
        let text = script(folder, &broker.address().to_string());
        let path = folder.join("smart-grid.sql");
        fs::write(&path, &text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
        let name = path.display().to_string();
        let script = weir_queries::plan_script(&name, &text, &connectors::all())
            .map_err(|diagnostics| diagnostics.to_string())?;
        let mut jobs = Jobs { controls: Vec::new(), threads: Vec::new() };
        for plan in script.jobs {
            let job = run::prepare(plan, None)?;
            let control = JobControl::new(Arc::new(SystemClock), false);
            let cluster = Cluster { threads: workers.max(1), ..Cluster::default() };
            jobs.threads.push(jobs::start(job, &cluster, &control));
            jobs.controls.push(control);
        }
        Ok(jobs)
    }

    /// What is published before anybody has subscribed is lost, so nothing is.
    fn await_subscriptions(&self, broker: &Broker, stop: &AtomicBool) -> Result<(), String> {
        let since = Instant::now();
        while broker.subscribers() < REGIONS.len() {
            if since.elapsed() > PATIENCE {
                return Err("nobody has subscribed to the readings within a minute".to_owned());
            }
            if self.ended() || stop.load(Ordering::SeqCst) {
                break;
            }
            thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    fn ended(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }

    fn reports(&self) -> Vec<JobReport> {
        self.controls.iter().map(|c| JobReport::of(c)).collect()
    }

    /// The event time that all is known up to.
    fn watermark(&self) -> i64 {
        let splits = self.controls.iter().flat_map(|c| c.splits());
        let readings = splits.filter(|s| s.table == "readings");
        readings.map(|s| s.watermark).min().unwrap_or(i64::MIN)
    }

    /// Stops the sources, waits until everything that has fired is in files.
    fn end(self) -> Result<Vec<JobReport>, String> {
        self.controls.iter().for_each(|c| c.stop());
        for thread in self.threads {
            jobs::ended(thread)?;
        }
        Ok(self.controls.iter().map(|c| JobReport::of(c)).collect())
    }
}

/// Publishes the world, shows what flows, and waits until what was sent has been read.
fn show(
    args: &DemoArgs,
    world: &World,
    broker: &Broker,
    jobs: &Jobs,
    screen: &mut Screen,
    suspects: &mut Suspects,
    stop: &AtomicBool,
) -> Result<Sent, String> {
    let progress = Progress::default();
    let address = broker.address();
    thread::scope(|scope| {
        // Drawing the evening before takes a moment; it is no part of the time that is shown.
        let streams: Vec<_> = (0..REGIONS.len())
            .map(|region| scope.spawn(move || RegionStream::of(world, region)))
            .collect::<Vec<_>>()
            .into_iter()
            .map(|drawing| drawing.join().expect("a region that was drawn"))
            .collect();
        let pace = Pace { began: Instant::now(), from: world.start, speed: f64::from(args.speed) };
        let mut gateways = Vec::new();
        for (mut stream, (region, ..)) in streams.into_iter().zip(REGIONS) {
            let progress = &progress;
            gateways.push(scope.spawn(move || {
                let client_id = format!("gateway-{region}");
                publish::publish(address, &client_id, &mut stream, pace, progress, stop)
            }));
        }
        let look = |screen: &mut Screen, suspects: &mut Suspects| -> Result<Facts, String> {
            let facts = Facts::of(&jobs.reports());
            suspects.fresh()?.into_iter().for_each(|suspect| screen.suspect(suspect));
            screen.paint(progress.reached.load(Ordering::Relaxed), &jobs.controls, &facts);
            thread::sleep(LOOK_EVERY);
            Ok(facts)
        };
        while !jobs.ended() && gateways.iter().any(|g| !g.is_finished()) {
            look(screen, suspects).inspect_err(|_| stop.store(true, Ordering::SeqCst))?;
        }
        if jobs.ended() {
            stop.store(true, Ordering::SeqCst);
        }
        let mut sent = Sent::default();
        for gateway in gateways {
            match gateway.join() {
                Ok(Ok(theirs)) => sent.add(theirs),
                // The job's own failure says more.
                Ok(Err(_)) if jobs.ended() => {}
                Ok(Err(error)) => return Err(format!("a gateway: {error}")),
                Err(_) => return Err("a gateway panicked; this is a bug in the demo".to_owned()),
            }
        }
        let (mut read, mut changed) = (0, Instant::now());
        // Whoever has asked for the end does not wait for what may never come.
        let patience = || if stop.load(Ordering::SeqCst) { PATIENCE_STOPPED } else { PATIENCE };
        while !jobs.ended() && read < sent.messages && changed.elapsed() < patience() {
            let facts = look(screen, suspects)?;
            if facts.readings + facts.bad > read {
                (read, changed) = (facts.readings + facts.bad, Instant::now());
            }
        }
        Ok(sent)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_place_of_the_script_stays_open() {
        let text = script(Path::new("it's/here"), "127.0.0.1:1883");
        let code = text.lines().filter(|line| !line.starts_with("--"));
        assert!(code.clone().all(|line| !line.contains("${")), "{text}");
        assert!(text.contains("'mqtt://127.0.0.1:1883'"));
        assert!(text.contains("'it''s/here/suspects'"));
    }
}
