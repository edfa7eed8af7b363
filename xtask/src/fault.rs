//! `cargo xtask fault`: what is killed, cut off or spoiled under load leaves no trace in results.
//!
//! A run generates meter readings with known answers (../shared/truth), publishes them at a steady
//! rate to a real Kafka, and has `weir run --state` write the job's tables to a place of the run's
//! own ([`Sink`]): a database of a real PostgreSQL, topics of the Kafka, or folders of files.
//! Meanwhile something bad happens ([`Fault`]); weir is started again as a supervisor would, each
//! time with another number of workers. In the end weir is stopped in order, and every table must
//! be what the truth says, row by row. The tables have no key, so that a row written twice shows.
//! Of topics, what a consumer reads counts that begins anew and sees only what is committed.
//!
//! # Seeds
//! A run's data, job and times follow from its seed, which is printed. The machine's own pace is
//! not replayed: a failure may need some runs of its seed to come again. The folder of a run that
//! failed stays, with data, logs, state and what the database had.
//!
//! # Void
//! Where the broker holds other messages than were published, results cannot be what the truth
//! says. Such a run is told and another takes its place.
//!
//! # MQTT
//! A broker, or a publisher, that starts again sends messages twice by right. So the table of
//! readings says what names one (`'dedup.within'`), and results are held against those of each
//! reading once.
//! The publisher sends again what it doesn't know to be safe: Mosquitto saves once a second, and
//! when it is killed forgets what it has acknowledged since.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::args::Args;
use crate::outside::Tally;
use crate::services::{Kind, Services};
use crate::truth::{Route, fresh_seed};
use crate::{places, process};

mod database;
mod disk;
mod kinds;
mod proxy;
mod publisher;
mod random;
mod sets;
mod start;
mod state;
mod target;
mod world;

use target::Sink;
use world::World;

/// Rows a second that are published.
const RATE: u64 = 20_000;
/// The same to MQTT.
const RATE_MQTT: u64 = 5_000;
/// Seconds for which rows are published, where the fault itself takes no time.
const SECONDS: u64 = 16;
const SECONDS_CI: u64 = 12;
/// Seconds for which a server is away.
const OUTAGE: u64 = 10;
const OUTAGE_FULL: u64 = 60;
const RUNS_FULL: u64 = 10;
/// Runs of a kind that may end void.
const VOID_MAX: u64 = 2;

/// What happens in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// kill −9, again and again.
    Kill,
    /// kill −9 while a checkpoint is written.
    Checkpoint,
    /// kill −9 between the database's commit and its reply.
    Reply,
    /// The connection is cut between the database's commit and its reply.
    ReplyCut,
    /// PostgreSQL crashes or is stopped, and is away for a while.
    Postgres,
    /// The Kafka broker crashes or is stopped, and is away for a while.
    Kafka,
    /// A flipped byte in the newest checkpoint.
    Corrupt,
    /// A process that was stopped for 30 s goes on after another has taken over.
    Zombie,
    /// Two go on from the same state: one on a snapshot of the other's disk.
    Twin,
    /// SIGTERM, again and again: nothing bad, but the same promise.
    Stop,
    /// The disk under the state is full for a while.
    FullDisk,
    /// kill −9 of one process of several.
    Child,
    /// One process of several stands still for 30 s.
    Hang,
    /// The disk of one process of several is lost; the state is on S3, and MQTT's journals are on
    /// two disks.
    LostDisk,
    /// All processes and their disks are lost; the state and the cut logs are on S3.
    AllDisks,
    /// The MQTT broker is stopped or crashes, again and again.
    Mqtt,
    /// The same, and kill −9.
    MqttKill,
}

impl Fault {
    const ALL: [Fault; 17] = [
        Fault::Kill,
        Fault::Checkpoint,
        Fault::Reply,
        Fault::ReplyCut,
        Fault::Postgres,
        Fault::Kafka,
        Fault::Corrupt,
        Fault::Zombie,
        Fault::Twin,
        Fault::Stop,
        Fault::FullDisk,
        Fault::Child,
        Fault::Hang,
        Fault::LostDisk,
        Fault::AllDisks,
        Fault::Mqtt,
        Fault::MqttKill,
    ];
    /// The name on the command line.
    fn name(self) -> &'static str {
        match self {
            Fault::Kill => "kill",
            Fault::Checkpoint => "checkpoint",
            Fault::Reply => "reply",
            Fault::ReplyCut => "reply-cut",
            Fault::Postgres => "postgres",
            Fault::Kafka => "kafka",
            Fault::Corrupt => "corrupt",
            Fault::Zombie => "zombie",
            Fault::Twin => "twin",
            Fault::Stop => "stop",
            Fault::FullDisk => "full-disk",
            Fault::Child => "child",
            Fault::Hang => "hang",
            Fault::LostDisk => "lost-disk",
            Fault::AllDisks => "all-disks",
            Fault::Mqtt => "mqtt",
            Fault::MqttKill => "mqtt-kill",
        }
    }

    /// Where the rows of a run come from. What is on a disk that is lost is a cut log, and with
    /// MQTT a journal too; the second copies of a process's journals are another's.
    fn route(self, seed: u64) -> Route {
        match self {
            Fault::Mqtt | Fault::MqttKill => Route::MqttS3,
            _ if self.has_copies() && !seed.is_multiple_of(2) => Route::MqttS3,
            _ => Route::KafkaPostgres,
        }
    }

    /// Whether journals of MQTT have second copies, where its rows come from there.
    fn has_copies(self) -> bool {
        matches!(self, Fault::LostDisk | Fault::Child | Fault::Hang)
    }

    /// The servers that its runs need, but for that of the results.
    fn servers(self) -> &'static [Kind] {
        match self {
            Fault::LostDisk => &[Kind::Kafka, Kind::Mosquitto, Kind::S3],
            Fault::AllDisks => &[Kind::Kafka, Kind::S3],
            Fault::Child | Fault::Hang => &[Kind::Kafka, Kind::Mosquitto],
            Fault::Mqtt | Fault::MqttKill => &[Kind::Mosquitto],
            _ => &[Kind::Kafka],
        }
    }

    /// Whether it can happen to a job that writes there. What befalls a database needs one.
    fn befalls(self, sink: Sink) -> bool {
        let of_database = matches!(self, Fault::Reply | Fault::ReplyCut | Fault::Postgres);
        sink == Sink::Postgres || !of_database
    }

    /// Seconds for which nothing can be done, during which rows go on coming.
    fn outage(self, plan: &Plan) -> u64 {
        match self {
            Fault::Postgres | Fault::Kafka => plan.outage,
            Fault::FullDisk | Fault::Mqtt | Fault::MqttKill => OUTAGE,
            Fault::Hang => OUTAGE * 2,
            Fault::Zombie => OUTAGE * 3,
            _ => 0,
        }
    }

    /// Whether weir runs as several processes.
    fn is_of_sets(self) -> bool {
        matches!(self, Fault::Child | Fault::Hang | Fault::LostDisk | Fault::AllDisks)
    }

    /// How many times the usual data.
    fn times(self) -> u64 {
        if self == Fault::Postgres { 2 } else { 1 }
    }
}

impl FromStr for Fault {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Fault> {
        let known = Fault::ALL.into_iter().find(|fault| fault.name() == word);
        let names = Fault::ALL.map(Fault::name).join(" ");
        known.with_context(|| format!("no kind `{word}`: {names}"))
    }
}

/// A fault, and where the results of its runs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Case {
    fault: Fault,
    sink: Sink,
}

impl Case {
    /// Those of CI.
    const CI: [Case; 7] = [
        Case { fault: Fault::Kill, sink: Sink::Postgres },
        Case { fault: Fault::Checkpoint, sink: Sink::Postgres },
        Case { fault: Fault::Reply, sink: Sink::Postgres },
        Case { fault: Fault::Corrupt, sink: Sink::Postgres },
        Case { fault: Fault::Child, sink: Sink::Postgres },
        Case { fault: Fault::Kill, sink: Sink::Kafka },
        Case { fault: Fault::Checkpoint, sink: Sink::Files },
    ];

    /// All faults that can happen to a job that writes there.
    fn all(sink: Sink) -> Vec<Case> {
        let faults = Fault::ALL.into_iter().filter(|fault| fault.befalls(sink));
        faults.map(|fault| Case { fault, sink }).collect()
    }

    /// Those of a set, or of faults that are named; a sink that is named leaves only its own.
    fn chosen(set: Option<&str>, faults: &[Fault], sink: Option<Sink>) -> Result<Vec<Case>> {
        if !faults.is_empty() {
            let sink = sink.unwrap_or(Sink::Postgres);
            let case = |&fault: &Fault| {
                let (kind, place) = (fault.name(), sink.name());
                ensure!(fault.befalls(sink), "--kind {kind} cannot go with --sink {place}");
                Ok(Case { fault, sink })
            };
            return faults.iter().map(case).collect();
        }
        let mut cases: Vec<Case> = match set {
            Some("ci") => Case::CI.to_vec(),
            Some(_) => Sink::ALL.into_iter().flat_map(Case::all).collect(),
            None => Case::all(sink.unwrap_or(Sink::Postgres)),
        };
        cases.retain(|case| sink.is_none_or(|sink| case.sink == sink));
        Ok(cases)
    }

    /// The servers that its runs need.
    fn servers(self) -> Vec<Kind> {
        let mut servers = self.fault.servers().to_vec();
        servers.extend(self.sink.server().filter(|server| !servers.contains(server)));
        servers
    }

    /// Its name in what is printed.
    fn name(self) -> String {
        match self.sink {
            Sink::Postgres => self.fault.name().to_owned(),
            sink => format!("{} to {}", self.fault.name(), sink.name()),
        }
    }
}

/// What all runs have in common.
struct Plan {
    weir: PathBuf,
    cases: Vec<Case>,
    /// Of each case.
    runs: u64,
    seed: u64,
    rate: Option<u64>,
    seconds: u64,
    outage: u64,
    /// The guard that weir does without.
    off: Option<&'static str>,
}

/// Guards of the sinks, and the fault that finds each missing. See `sinks/src/postgres/broken.rs`.
/// Which of two gets in first is chance: a run may end before anything is written twice.
const BROKEN_RUNS: usize = 3;
const GUARDS: [(&str, Fault); 2] = [("fence", Fault::Twin), ("progress", Fault::ReplyCut)];

/// `cargo xtask fault [--kind K]… [--sink S] [--set ci|full] [--runs N] [--seed S] … | --broken`
pub(crate) fn command(mut args: Args) -> Result<()> {
    if args.flag("--broken") {
        args.finish()?;
        return broken(&mut Services::start(&[Kind::Kafka, Kind::Postgres])?)?.verdict();
    }
    let mut faults = Vec::new();
    while let Some(fault) = args.option("--kind")? {
        faults.push(fault);
    }
    let sink = args.option("--sink")?;
    let set = args.option::<String>("--set")?;
    let (runs, seconds, outage) = match set.as_deref() {
        Some("ci") => (1, SECONDS_CI, OUTAGE),
        Some("full") => (RUNS_FULL, SECONDS, OUTAGE_FULL),
        Some(other) => bail!("--set is ci or full, not {other}"),
        None => (1, SECONDS, OUTAGE),
    };
    let plan = Plan {
        weir: places::weir(args.option::<PathBuf>("--weir")?)?,
        cases: Case::chosen(set.as_deref(), &faults, sink)?,
        runs: args.option("--runs")?.unwrap_or(runs),
        seed: args.option("--seed")?.unwrap_or_else(fresh_seed),
        rate: args.option("--rate")?,
        seconds: args.option("--seconds")?.unwrap_or(seconds),
        outage: args.option("--outage")?.unwrap_or(outage),
        off: None,
    };
    let record = args.option::<PathBuf>("--record")?;
    args.finish()?;
    ensure!(plan.rate != Some(0), "--rate must be at least 1");
    let mut servers: Vec<Kind> = Vec::new();
    for kind in plan.cases.iter().flat_map(|case| case.servers()) {
        if !servers.contains(&kind) {
            servers.push(kind);
        }
    }
    let mut services = Services::start(&servers)?;
    run(&plan, &mut services, record.as_deref())?.verdict()
}

/// The runs of CI, on servers that run already.
pub(crate) fn ci(weir: &Path, services: &mut Services) -> Result<Tally> {
    let plan = Plan {
        weir: weir.to_owned(),
        cases: Case::CI.to_vec(),
        runs: 1,
        seed: fresh_seed(),
        rate: None,
        seconds: SECONDS_CI,
        outage: OUTAGE,
        off: None,
    };
    run(&plan, services, None)
}

/// Runs of a weir without a guard: they must find rows that are there twice.
pub(crate) fn broken(services: &mut Services) -> Result<Tally> {
    let mut build = process::cargo();
    build.args(["build", "-q", "-p", "weir", "--features", "breakable"]);
    build.args(["--bin", "weir-breakable"]).current_dir(places::root());
    process::run(&mut build)?;
    let weir = places::weir(Some(places::target().join("debug/weir-breakable")))?;
    let mut tally = Tally::default();
    for (guard, fault) in GUARDS {
        let mut found = Err(anyhow::anyhow!("no run"));
        for _ in 0..BROKEN_RUNS {
            found = finds(&weir, services, guard, fault)?;
            if found.is_ok() {
                break;
            }
        }
        match found {
            Ok(()) => tally.pass(),
            Err(error) => tally.fail(format!("{error:#}")),
        }
    }
    Ok(tally)
}

/// Whether a run without a guard shows rows that are there twice; the inner error says what it was
/// instead.
fn finds(
    weir: &Path,
    services: &mut Services,
    guard: &'static str,
    fault: Fault,
) -> Result<Result<()>> {
    let seed = fresh_seed();
    let case = Case { fault, sink: Sink::Postgres };
    let (weir, cases) = (weir.to_owned(), vec![case]);
    let (seconds, outage, off) = (SECONDS_CI, OUTAGE, Some(guard));
    let plan = Plan { weir, cases, runs: 1, seed, rate: None, seconds, outage, off };
    let (outcome, folder) = run_once(&plan, services, case, seed)?;
    println!("  without {guard}: {}", outcome.line(case, seed));
    let [.., extra, _] = outcome.rows;
    let Some(folder) = folder else {
        return Ok(Err(anyhow::anyhow!("{} does not find that {guard} is off", fault.name())));
    };
    if extra == 0 {
        let (wrong, kept) = (outcome.wrong.trim_end(), folder.display());
        let what = format!("without {guard} no row is there twice, but:\n{wrong}\nkept: {kept}");
        return Ok(Err(anyhow::anyhow!(what)));
    }
    fs::remove_dir_all(folder)?;
    Ok(Ok(()))
}

/// What came of one run.
#[derive(Default)]
struct Outcome {
    job: &'static str,
    faults: usize,
    /// Rows expected, matched, missing, extra, differing, in all tables.
    rows: [u64; 5],
    /// Seconds from a restart to its first commit: of the last one, and the worst.
    resumed: Option<(f64, f64)>,
    /// Nothing if it passed.
    wrong: String,
    /// Why it says nothing about Weir.
    void: Option<String>,
}

impl Outcome {
    /// The counts of all tables, and the rows that differ.
    fn judge(&mut self, world: &World) {
        for verdict in world.verdicts(false) {
            let last = verdict.text.lines().last().unwrap_or_default();
            match counts(last) {
                Some(counts) => {
                    self.rows.iter_mut().zip(counts).for_each(|(all, count)| *all += count);
                }
                None => self.blame(format!("{} cannot be judged", verdict.kind)),
            }
            if !verdict.equal {
                self.blame(format!("{}\n{}", verdict.kind, verdict.text));
            }
        }
    }

    fn blame(&mut self, text: impl AsRef<str>) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.wrong, "{}", text.as_ref());
    }

    fn line(&self, case: Case, seed: u64) -> String {
        let [expected, matched, missing, extra, differ] = self.rows;
        let resumed = self
            .resumed
            .map_or("-".to_owned(), |(last, worst)| format!("{last:.1} s (worst {worst:.1})"));
        format!(
            "{:10} seed {seed} {:9} {:2} faults, {expected} expected, {matched} matched, \
             {missing} missing, {extra} extra, {differ} differ, resumed in {resumed}: {}",
            case.name(),
            self.job,
            self.faults,
            match (&self.void, self.wrong.is_empty()) {
                (Some(why), _) => format!("void, {why}"),
                (None, true) => "equal".to_owned(),
                (None, false) => "FAILED".to_owned(),
            }
        )
    }
}

/// The numbers of `N expected, N matched, N missing, N extra, N differ`.
fn counts(line: &str) -> Option<[u64; 5]> {
    let numbers = line.split(", ").map(|part| part.split(' ').next()?.parse().ok());
    numbers.collect::<Option<Vec<u64>>>()?.try_into().ok()
}

fn run(plan: &Plan, services: &mut Services, record: Option<&Path>) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut table = Vec::new();
    for (place, &case) in plan.cases.iter().enumerate() {
        let (mut passed, mut void) = (0, 0);
        let mut number = 0;
        while number < plan.runs {
            let seed = plan.seed + place as u64 + number + void;
            let began = Instant::now();
            let (outcome, folder) = run_once(plan, services, case, seed)?;
            let line = outcome.line(case, seed);
            println!("  {line}  ({:.0} s)", began.elapsed().as_secs_f64());
            if let Some(path) = record {
                let mut file = File::options().create(true).append(true).open(path)?;
                writeln!(file, "- {line}")?;
            }
            if outcome.void.is_some() && void < VOID_MAX {
                // Another takes its place; the folder stays.
                void += 1;
                continue;
            }
            number += 1;
            match folder {
                None => {
                    passed += 1;
                    tally.pass();
                }
                Some(folder) => {
                    let wrong = outcome.wrong.trim_end();
                    tally.fail(format!("fault {line}\n{wrong}\nkept: {}", folder.display()));
                }
            }
        }
        table.push((case, passed));
    }
    println!("| fault | runs | passed |\n|---|---|---|");
    for (case, passed) in table {
        println!("| {} | {} | {passed} |", case.name(), plan.runs);
    }
    Ok(tally)
}

/// One run; its folder, if it failed. An error is one that ends all runs.
fn run_once(
    plan: &Plan,
    services: &mut Services,
    case: Case,
    seed: u64,
) -> Result<(Outcome, Option<PathBuf>)> {
    let prefix = format!("weir-fault-{}-", case.name().replace(' ', "-"));
    let folder = tempfile::Builder::new().prefix(&prefix).tempdir()?;
    let mut outcome = Outcome::default();
    let ended = run_in(plan, services, case, seed, (folder.path(), &mut outcome));
    if let Err(error) = ended {
        process::check_interrupted()?;
        outcome.blame(format!("{error:#}"));
    }
    if outcome.wrong.is_empty() {
        return Ok((outcome, None));
    }
    let kept = folder.keep();
    fs::write(kept.join("wrong.txt"), &outcome.wrong)?;
    // A server that could not be started again must not fail the other runs.
    for kind in case.servers() {
        if !services.runs(kind)? {
            services.revive(kind)?;
        }
    }
    Ok((outcome, Some(kept)))
}

fn run_in(
    plan: &Plan,
    services: &mut Services,
    case: Case,
    seed: u64,
    (folder, outcome): (&Path, &mut Outcome),
) -> Result<()> {
    let mut world = World::make(plan, services, case, seed, folder.to_owned())?;
    outcome.job = world.job();
    let done = work(&mut world, case.fault);
    outcome.faults = world.faults;
    if let Some(&last) = world.resumed.last() {
        outcome.resumed = Some((last, world.resumed.iter().copied().fold(last, f64::max)));
    }
    if let Err(error) = done {
        process::check_interrupted()?;
        outcome.blame(format!("{error:#}"));
    }
    for complaint in &world.complaints {
        outcome.blame(complaint);
    }
    let well = outcome.wrong.is_empty();
    // What is there counts, whatever went wrong before.
    outcome.judge(&world);
    if !outcome.wrong.is_empty() {
        world.keep_progress();
        if well {
            // A bad input explains rows that differ, and nothing else.
            outcome.void = world.bad_input()?;
        }
    }
    world.weir = None;
    world.clear()
}

fn work(world: &mut World, fault: Fault) -> Result<()> {
    world.start()?;
    world.publish()?;
    kinds::inflict(world, fault)?;
    world.complete()?;
    world.until_trimmed()?;
    world.weir()?.stop()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_by_name() -> Result<()> {
        for fault in Fault::ALL {
            assert_eq!(fault.name().parse::<Fault>()?, fault);
        }
        assert!("kil".parse::<Fault>().is_err());
        Ok(())
    }

    #[test]
    fn the_last_line_of_a_verdict() {
        let line = "10 expected, 8 matched, 1 missing, 3 extra, 1 differ";
        assert_eq!(counts(line), Some([10, 8, 1, 3, 1]));
        assert_eq!(counts("cannot compare: no column ts"), None);
    }

    #[test]
    fn what_is_wrong_shows_in_the_line() {
        let mut outcome = Outcome { rows: [10, 10, 0, 0, 0], ..Outcome::default() };
        let case = Case { fault: Fault::Kill, sink: Sink::Files };
        assert!(outcome.line(case, 7).ends_with("equal"));
        outcome.blame("x");
        assert!(outcome.line(case, 7).ends_with("FAILED"));
    }

    #[test]
    fn faults_and_sinks_that_go_together() -> Result<()> {
        let named = |sink| Case::chosen(None, &[Fault::Kill, Fault::Reply], sink);
        assert!(named(None)?.iter().all(|case| case.sink == Sink::Postgres));
        let said = named(Some(Sink::Kafka)).map_err(|error| error.to_string());
        assert_eq!(said, Err("--kind reply cannot go with --sink kafka".to_owned()));
        assert_eq!(Case::all(Sink::Postgres).len(), Fault::ALL.len());
        let ci = Case::chosen(Some("ci"), &[], Some(Sink::Files))?;
        assert_eq!(ci, [Case { fault: Fault::Checkpoint, sink: Sink::Files }]);
        assert_eq!(ci[0].servers(), [Kind::Kafka]);
        assert!(Case::CI.iter().all(|case| case.fault.befalls(case.sink)));
        Ok(())
    }
}
