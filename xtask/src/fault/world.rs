//! One run's surroundings: fresh data, a topic and a place for results of its own, and the job in
//! them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::disk::SmallDisk;
use super::proxy::Proxy;
use super::publisher::{PARTITIONS, Publisher};
use super::random::Random;
use super::start::Start;
use super::target::Target;
use super::{Case, Fault, Plan, RATE, RATE_MQTT};
use crate::places;
use crate::services::{Kind, Services};
use crate::truth::{Asked, Data, Filling, Job, Route, Verdict, judge};
use crate::weir::Weir;

/// Each start has another number of workers.
const WORKERS: [usize; 3] = [1, 3, 2];
/// Processes and workers of those that run as a set.
const SETS: [(usize, usize); 3] = [(2, 1), (3, 1), (2, 2)];
/// Journals of MQTT, where there are two; `readings.mqtt-s3.sql` names the first.
const JOURNALS: [&str; 2] = ["journal", "journal-copy"];
const POLL: Duration = Duration::from_millis(100);
/// A look costs the machine half a second of Python; Weir needs that time more.
const LOOK: Duration = Duration::from_secs(2);
const START_MAX: Duration = Duration::from_secs(60);
/// Results that are not complete, and have not grown for so long, never will be.
const STILL_MAX: Duration = Duration::from_secs(40);
/// Where nothing comes in and nothing goes out for so long, nothing more will.
const IDLE: Duration = Duration::from_secs(10);
const ROWS_PER_S_MIN: u64 = 3_000;
/// Rows of the generator a meter: warm-up and measured time, every 15 s.
const MINUTES: u32 = 60;
const WARMUP_MINUTES: u32 = 75;
const ROWS_A_METER: u64 = 4 * (MINUTES + WARMUP_MINUTES) as u64;

/// Jobs by turns, with all tables that they fill.
const JOBS: [Job; 3] = [
    Job { script: "tumble5m", kinds: &["tumble5m", "late", "bad"], late_counted: None },
    Job { script: "theft", kinds: &["theft", "late_theft", "bad"], late_counted: None },
    Job { script: "region1m", kinds: &["region1m", "late_region1m", "bad"], late_counted: None },
];

/// The same from MQTT, where messages come twice by right: of each reading the first counts.
const JOBS_MQTT: [Job; 2] = [
    Job { script: "tumble5m_dedup", kinds: &["tumble5m_dedup"], late_counted: None },
    Job { script: "region1m_dedup", kinds: &["region1m_dedup"], late_counted: None },
];

/// Everything of one run.
pub(super) struct World<'a> {
    pub(super) plan: &'a Plan,
    pub(super) services: &'a mut Services,
    pub(super) random: Random,
    pub(super) seed: u64,
    /// Logs, data and state of this run.
    pub(super) folder: PathBuf,
    pub(super) state: PathBuf,
    pub(super) disk: Option<SmallDisk>,
    remote: Option<Remote>,
    pub(super) proxy: Option<Proxy>,
    /// The one that is meant to work.
    pub(super) weir: Option<Weir>,
    /// Kills and other faults so far.
    pub(super) faults: usize,
    /// What went as it should not have, though the results may be equal.
    pub(super) complaints: Vec<String>,
    fault: Fault,
    data: Data,
    /// Rows a second that are published.
    rate: u64,
    job: &'static Job,
    target: Target,
    script: PathBuf,
    publisher: Publisher,
    starts: usize,
    /// A restart, and the progress before it, until there is a commit.
    restarted: Option<(Instant, String)>,
    /// Seconds from each restart to its first commit.
    pub(super) resumed: Vec<f64>,
}

impl<'a> World<'a> {
    /// Makes data, topics, the place of the results and the script.
    pub(super) fn make(
        plan: &'a Plan,
        services: &'a mut Services,
        case: Case,
        seed: u64,
        folder: PathBuf,
    ) -> Result<World<'a>> {
        let fault = case.fault;
        let route = fault.route(seed);
        let job = job_of(fault, seed);
        let rate = plan.rate.unwrap_or(if route == Route::MqttS3 { RATE_MQTT } else { RATE });
        let rows = rate * (plan.seconds + fault.outage(plan)) * fault.times();
        let meters = u32::try_from(rows.div_ceil(ROWS_A_METER))?.max(100);
        let asked =
            Asked { meters, minutes: MINUTES, warmup_minutes: WARMUP_MINUTES, ..Asked::full(seed) };
        let data = Data::generate(&asked.for_route(route), &folder.join("data"))?;
        let name = format!("fault_{}_{}_{seed}", fault.name().replace('-', "_"), case.sink.name());
        let target = Target::make(case.sink, services, (&name, seed), job, &folder)?;
        let publisher = Publisher::to(route, services, name.clone(), folder.join("publish.log"))?;
        let proxy = match fault {
            Fault::Reply | Fault::ReplyCut => Some(Proxy::before(target.database()?.address())?),
            _ => None,
        };
        let script = folder.join("script.sql");
        let sink = |table: &str| target.options(table, proxy.as_ref().map(Proxy::address));
        let from = (&publisher, fault.has_copies());
        fs::write(&script, fill(job, &data, from, &folder, &sink)?)?;
        let disk = match fault {
            Fault::FullDisk => Some(SmallDisk::make(&folder.join("disk"))?),
            _ => None,
        };
        let remote = match fault {
            Fault::LostDisk => Some(Remote::of(services, &name, Some(folder.join("logs")))?),
            Fault::AllDisks => Some(Remote::of(services, &name, None)?),
            _ => None,
        };
        let state = disk.as_ref().map_or(folder.join("state"), |disk| disk.outside.join("state"));
        let state = remote.as_ref().map_or(state, |remote| remote.folder.clone());
        Ok(World {
            plan,
            services,
            random: Random::seeded(seed),
            seed,
            folder,
            state,
            disk,
            remote,
            proxy,
            weir: None,
            faults: 0,
            complaints: Vec::new(),
            fault,
            data,
            rate,
            job,
            target,
            script,
            publisher,
            starts: 0,
            restarted: None,
            resumed: Vec::new(),
        })
    }

    pub(super) fn job(&self) -> &'static str {
        self.job.script
    }

    /// Begins to publish.
    pub(super) fn publish(&mut self) -> Result<()> {
        if self.publisher.route == Route::MqttS3 {
            self.until("subscribed", START_MAX, |world| world.is_subscribed())?;
        }
        self.publisher.start(&self.data, self.rate)
    }

    /// Whether the MQTT broker has seen a subscription to each partition: its log names them. What
    /// is published before that is for nobody.
    fn is_subscribed(&self) -> Result<bool> {
        let log = fs::read(self.services.log(Kind::Mosquitto))?;
        let log = String::from_utf8_lossy(&log);
        let topic = &self.publisher.topic;
        Ok((0..PARTITIONS).all(|k| log.contains(&format!("{topic}/{k}/#"))))
    }

    /// Waits until the journals of MQTT hold no more than a restart needs, and tells of them.
    pub(super) fn until_trimmed(&mut self) -> Result<()> {
        if self.publisher.route != Route::MqttS3 {
            return Ok(());
        }
        let folder = self.folder.join(JOURNALS[0]);
        // Offsets of messages that came since the older of two checkpoints are in the last two.
        self.until("journals trimmed", START_MAX, |_| {
            Ok(journals(&folder)?.iter().all(|segments| segments.len() <= 2))
        })?;
        let begins =
            journals(&folder)?.into_iter().filter_map(|segments| segments.first().copied());
        let begins: Vec<u64> = begins.collect();
        let said = self.publisher.said();
        println!("    {}; journals begin at {begins:?}", said.lines().last().unwrap_or_default());
        Ok(())
    }

    /// Whether rows still come in.
    pub(super) fn under_load(&mut self) -> Result<bool> {
        Ok(!self.publisher.has_ended()?)
    }

    /// Starts weir, with another number of workers than the last time.
    pub(super) fn start(&mut self) -> Result<()> {
        let before = self.target.progress();
        if let Some(proxy) = &self.proxy {
            proxy.next_client();
        }
        let state = self.state.clone();
        self.weir = Some(self.launch(&state)?);
        if self.starts > 1 {
            self.restarted = Some((Instant::now(), before.unwrap_or_default()));
        }
        Ok(())
    }

    /// A weir on this state folder.
    pub(super) fn launch(&mut self, state: &Path) -> Result<Weir> {
        let workers = WORKERS[self.starts % WORKERS.len()];
        self.starts += 1;
        let log = self.folder.join(format!("weir.{:02}.log", self.starts));
        let (inside, before) = match &self.disk {
            Some(disk) => (disk.inside.join("state"), disk.enter()),
            None => (state.to_owned(), Vec::new()),
        };
        let (processes, workers) =
            if self.fault.is_of_sets() { SETS[(self.starts - 1) % 3] } else { (1, workers) };
        let remote = self.remote.as_ref();
        let start = Start {
            program: &self.plan.weir,
            script: &self.script,
            state: remote.map_or(inside.display().to_string(), |remote| remote.url.clone()),
            log: remote.map(Remote::log),
            env: remote.map_or(&[], |remote| &remote.env),
            interval: if self.fault == Fault::Checkpoint { "100ms" } else { "500ms" },
            processes,
            workers,
            before: &before,
            off: self.plan.off,
        };
        start.weir(log)
    }

    /// A restart begins by itself: from here on its first commit is waited for.
    pub(super) fn begin_restart(&mut self) {
        self.look();
        let before = self.target.progress().unwrap_or_default();
        self.restarted = Some((Instant::now(), before));
    }

    /// The folders of all cut logs.
    pub(super) fn logs(&self) -> Result<Vec<PathBuf>> {
        let remote = self.remote.as_ref().context("the state is beside the logs")?;
        let mut logs = Vec::new();
        let folder = remote.logs.as_ref().context("the logs are not on this machine")?;
        for job in fs::read_dir(folder)? {
            for log in fs::read_dir(job?.path())? {
                logs.push(log?.path());
            }
        }
        logs.sort();
        ensure!(!logs.is_empty(), "no cut logs");
        Ok(logs)
    }

    pub(super) fn weir(&mut self) -> Result<&mut Weir> {
        self.weir.as_mut().context("weir is not started")
    }

    /// Kills weir.
    pub(super) fn kill(&mut self) -> Result<()> {
        self.look();
        self.weir()?.kill()?;
        self.faults += 1;
        Ok(())
    }

    /// Lets it work for a time; that it ends is an error.
    pub(super) fn work(&mut self, time: Duration) -> Result<()> {
        let began = Instant::now();
        loop {
            self.weir()?.check()?;
            let left = time.saturating_sub(began.elapsed());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(POLL));
            self.look();
        }
    }

    /// Lets it work until something holds; that it doesn't in time, or that weir ends, is an error.
    pub(super) fn until(
        &mut self,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<()> {
        let began = Instant::now();
        while !holds(self)? {
            if began.elapsed() > limit {
                let tail = self.weir()?.tail();
                bail!("not within {} s: {what}\n{tail}", limit.as_secs());
            }
            self.work(POLL)?;
        }
        Ok(())
    }

    /// The folders of MQTT's journals, each on a disk of its own.
    pub(super) fn journals(&self) -> Vec<PathBuf> {
        let both = JOURNALS.map(|name| self.folder.join(name));
        both.into_iter().filter(|path| path.exists()).collect()
    }

    /// What is committed of the job's results.
    pub(super) fn progress(&self) -> Option<String> {
        self.target.progress()
    }

    /// Waits until more has been committed.
    pub(super) fn until_commit(&mut self, limit: Duration) -> Result<()> {
        let before = self.progress();
        self.until("a commit", limit, |world| Ok(world.has_more_than(before.as_deref())))
    }

    /// As [`World::until_commit`]; false if there is nothing left to commit.
    pub(super) fn until_commit_or_end(&mut self, limit: Duration) -> Result<bool> {
        let before = self.progress();
        self.until_or_end("a commit", limit, |world| Ok(world.has_more_than(before.as_deref())))
    }

    /// As [`World::until`]; false if all is published and for a while nothing has been committed.
    pub(super) fn until_or_end(
        &mut self,
        what: &str,
        limit: Duration,
        mut holds: impl FnMut(&mut Self) -> Result<bool>,
    ) -> Result<bool> {
        let (mut grew, mut before) = (Instant::now(), self.progress());
        let mut held = false;
        self.until(what, limit, |world| {
            held = holds(world)?;
            let now = world.progress();
            if now != before || world.under_load()? {
                (grew, before) = (Instant::now(), now);
            }
            Ok(held || grew.elapsed() > IDLE)
        })?;
        Ok(held)
    }

    /// Whether more is committed than was.
    fn has_more_than(&self, before: Option<&str>) -> bool {
        let now = self.progress();
        now.is_some() && now.as_deref() != before
    }

    /// Notes the first commit after a restart.
    fn look(&mut self) {
        let Some((since, before)) = &self.restarted else { return };
        if self.target.progress().is_some_and(|now| now != *before) {
            self.resumed.push(since.elapsed().as_secs_f64());
            self.restarted = None;
        }
    }

    /// Waits until all is published and the results are what they should be, or stand still.
    pub(super) fn complete(&mut self) -> Result<()> {
        let limit = START_MAX + Duration::from_secs(self.data.messages / ROWS_PER_S_MIN);
        self.until("all published", limit * 2, |world| world.publisher.has_ended())?;
        let (began, mut grew, mut before) = (Instant::now(), Instant::now(), self.progress());
        while !self.verdicts(true).iter().all(|verdict| verdict.equal) {
            self.work(LOOK)?;
            let now = self.progress();
            if now != before {
                (grew, before) = (Instant::now(), now);
            }
            if grew.elapsed() > STILL_MAX || began.elapsed() > limit {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Compares the tables; at `most` as far as the first that is not equal.
    pub(super) fn verdicts(&self, quickly: bool) -> Vec<Verdict> {
        let results = self.target.results();
        let work = self.folder.join("judged");
        let mut all = Vec::new();
        for verdict in judge(&self.data, self.job, self.publisher.route, &results, &work) {
            let equal = verdict.equal;
            all.push(verdict);
            if quickly && !equal {
                break;
            }
        }
        all
    }

    /// What is wrong with the input, if anything is.
    pub(super) fn bad_input(&self) -> Result<Option<String>> {
        self.publisher.surplus()
    }

    /// Keeps what is known of the progress beside the logs, for who looks into a failure.
    pub(super) fn keep_progress(&self) {
        self.target.keep_progress(&self.folder.join("progress.txt"));
    }

    /// Removes what the run left on the servers.
    pub(super) fn clear(&self) -> Result<()> {
        self.target.clear()
    }
}

/// The job of a run.
fn job_of(fault: Fault, seed: u64) -> &'static Job {
    let jobs: &[Job] = if fault.route(seed) == Route::MqttS3 { &JOBS_MQTT } else { &JOBS };
    // Of these the odd seeds are those of MQTT.
    let turn = if fault.has_copies() { seed / 2 } else { seed };
    &jobs[(turn % jobs.len() as u64) as usize]
}

/// The script of a job; whether journals of MQTT have a second disk.
fn fill(
    job: &Job,
    data: &Data,
    (from, copies): (&Publisher, bool),
    out: &Path,
    sink: &dyn Fn(&str) -> String,
) -> Result<String> {
    let folder = places::root().join("scenarios/truth");
    let mut variables = BTreeMap::from([
        ("DATA", data.folder.display().to_string()),
        ("OUT", out.display().to_string()),
        ("KAFKA", from.broker.clone()),
        ("MQTT", from.broker.clone()),
        ("TOPIC", from.topic.clone()),
        ("COPIES", if copies { second_journal(out) } else { String::new() }),
    ]);
    variables.extend(job.duplicates());
    Filling { folder: &folder, route: from.route.name(), variables, sink }.script(job.script)
}

/// A state in a bucket, with the logs on disks of this machine.
struct Remote {
    url: String,
    /// Where the server keeps these objects.
    folder: PathBuf,
    /// The folder of cut logs that are not there too.
    logs: Option<PathBuf>,
    env: Vec<(String, String)>,
}

impl Remote {
    fn of(services: &Services, name: &str, logs: Option<PathBuf>) -> Result<Remote> {
        let bucket = services.var("WEIR_TEST_S3_BUCKET")?;
        let pairs = [
            ("AWS_ENDPOINT_URL_S3", "WEIR_TEST_S3"),
            ("AWS_ACCESS_KEY_ID", "WEIR_TEST_S3_KEY"),
            ("AWS_SECRET_ACCESS_KEY", "WEIR_TEST_S3_SECRET"),
            ("AWS_REGION", "WEIR_TEST_S3_REGION"),
        ];
        let var = |(name, from): (&str, &str)| Ok((name.to_owned(), services.var(from)?));
        Ok(Remote {
            url: format!("s3://{bucket}/{name}"),
            folder: PathBuf::from(services.var("WEIR_TEST_S3_FOLDER")?).join(name),
            logs,
            env: pairs.into_iter().map(var).collect::<Result<_>>()?,
        })
    }

    /// Where the cut logs go.
    fn log(&self) -> String {
        let there = || format!("{}-logs", self.url);
        self.logs.as_ref().map_or_else(there, |logs| logs.display().to_string())
    }
}

/// The options of a second journal.
fn second_journal(out: &Path) -> String {
    let path = out.join(JOURNALS[1]).display().to_string();
    format!(",\n  'journal.copies' = '2',\n  'journal.copy-path' = '{path}'")
}

/// The segments of each journal below a folder: offsets of their first messages.
fn journals(folder: &Path) -> Result<Vec<Vec<u64>>> {
    let mut journals = Vec::new();
    for slot in fs::read_dir(folder)? {
        let mut segments = Vec::new();
        for file in fs::read_dir(slot?.path())? {
            let name = file?.file_name().to_string_lossy().into_owned();
            if let Some(offset) = name.strip_suffix(".journal") {
                segments.push(offset.parse()?);
            }
        }
        segments.sort_unstable();
        journals.push(segments);
    }
    Ok(journals)
}
