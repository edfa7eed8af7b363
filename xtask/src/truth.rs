//! `cargo xtask truth`: Weir's results against answers that another program computed.
//!
//! Meter readings are generated with ../shared/truth, go through Weir on one of four routes, and
//! are compared row by row. The SQL is in `scenarios/truth`, one script a job, with the source and
//! the sinks of a route filled in (`truth/script.rs`).

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::args::Args;
use crate::outside::Tally;
use crate::services::{Kind, Services, install};
use crate::{places, process};

mod bytes;
mod counters;
mod data;
mod judge;
mod run;
mod script;

pub(crate) use data::{Asked, Data, own_script, tool};
pub(crate) use judge::{Results, Verdict, files_below, judge};
pub(crate) use script::Filling;

/// How readings come in and results go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// JSON lines, a file a partition, to JSON lines.
    Files,
    /// Parquet that carries split, offset and arrival as columns, to JSON lines.
    Columns,
    /// Four Kafka partitions to PostgreSQL.
    KafkaPostgres,
    /// MQTT with QoS 1 to Parquet on S3.
    MqttS3,
}

impl Route {
    pub(crate) const ALL: [Route; 4] =
        [Route::Files, Route::Columns, Route::KafkaPostgres, Route::MqttS3];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Route::Files => "files",
            Route::Columns => "columns",
            Route::KafkaPostgres => "kafka-postgres",
            Route::MqttS3 => "mqtt-s3",
        }
    }

    /// The servers that it needs.
    pub(crate) fn servers(self) -> &'static [Kind] {
        match self {
            Route::Files | Route::Columns => &[],
            Route::KafkaPostgres => &[Kind::Kafka, Kind::Postgres],
            Route::MqttS3 => &[Kind::Mosquitto, Kind::S3],
        }
    }

    /// Whether the input never ends, so that the last windows never fire.
    fn is_live(self) -> bool {
        matches!(self, Route::KafkaPostgres | Route::MqttS3)
    }

    /// Whether Weir knows when a row arrived, so that it can guard against rows from the future.
    fn knows_arrival(self) -> bool {
        matches!(self, Route::Columns | Route::KafkaPostgres)
    }

    /// Whether messages that cannot be decoded get as far as Weir.
    fn has_bad_rows(self) -> bool {
        self != Route::Columns
    }
}

impl FromStr for Route {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Route> {
        let known = Route::ALL.into_iter().find(|route| route.name() == word);
        known.with_context(|| format!("no route {word}"))
    }
}

/// One script, and the tables that it fills: each is a kind of the truth.
pub(crate) struct Job {
    pub(crate) script: &'static str,
    pub(crate) kinds: &'static [&'static str],
    /// The kind whose rows the late counters of all its operators count.
    pub(crate) late_counted: Option<&'static str>,
}

impl Job {
    /// What its table of readings says of duplicates: the places KEY and WITHIN.
    pub(crate) fn duplicates(&self) -> [(&'static str, String); 2] {
        let (key, within) = match self.script.ends_with("_dedup") {
            true => (
                ",\n  PRIMARY KEY (meter_id, ts, seq) NOT ENFORCED",
                ",\n  'dedup.within' = '10 min'",
            ),
            false => ("", ""),
        };
        [("KEY", key.to_owned()), ("WITHIN", within.to_owned())]
    }
}

/// All jobs. `bad` is the dead-letter table.
pub(crate) const JOBS: [Job; 7] = [
    Job { script: "tumble5m", kinds: &["tumble5m", "late", "bad"], late_counted: Some("late") },
    Job {
        script: "region1m",
        kinds: &["region1m", "late_region1m"],
        late_counted: Some("late_region1m"),
    },
    Job { script: "tumble5m_dedup", kinds: &["tumble5m_dedup"], late_counted: None },
    Job { script: "region1m_dedup", kinds: &["region1m_dedup"], late_counted: None },
    Job { script: "hop", kinds: &["hop"], late_counted: None },
    Job { script: "theft", kinds: &["theft", "late_theft"], late_counted: None },
    Job { script: "sessions", kinds: &["sessions", "late_sessions"], late_counted: None },
];

/// One pass over all jobs.
struct Pass {
    route: Route,
    asked: Asked,
    weir_args: Vec<String>,
}

impl Pass {
    fn new(route: Route, asked: Asked, weir_args: &str) -> Pass {
        let weir_args = weir_args.split_whitespace().map(str::to_owned).collect();
        Pass { route, asked: asked.for_route(route), weir_args }
    }

    /// The value of an option of weir.
    fn weir_option(&self, name: &str) -> Option<&str> {
        let at = self.weir_args.iter().position(|arg| arg == name)?;
        self.weir_args.get(at + 1).map(String::as_str)
    }

    /// How epochs are cut; runs that cut them alike must write the same bytes.
    fn epoch(&self) -> Option<&str> {
        self.weir_option("--epoch")
    }

    /// Workers of all processes.
    fn workers(&self) -> usize {
        let number = |name| self.weir_option(name).and_then(|n| n.parse().ok()).unwrap_or(1);
        number("-w") * number("--processes")
    }

    fn describe(&self) -> String {
        let asked = &self.asked;
        format!(
            "{}: {} meters × {}+{} min, seed {} {} {}",
            self.route.name(),
            asked.meters,
            asked.warmup_minutes,
            asked.minutes,
            asked.seed,
            asked.options.join(" "),
            self.weir_args.join(" ")
        )
    }
}

/// `cargo xtask truth [--path ROUTE | --set ci | --set full] [--seed S] [--meters N] …`
pub(crate) fn command(mut args: Args) -> Result<()> {
    let seed = args.option("--seed")?.unwrap_or_else(fresh_seed);
    let weir = args.option::<PathBuf>("--weir")?;
    let jobs = args.option::<String>("--jobs")?;
    let keep = args.option::<PathBuf>("--keep")?;
    let report = args.option::<PathBuf>("--report")?;
    let passes = match args.option::<String>("--set")?.as_deref() {
        Some("ci") => ci_passes(seed),
        Some("full") => full_passes(seed),
        Some(other) => anyhow::bail!("--set is ci or full, not {other}"),
        None => {
            let route = args.option("--path")?.unwrap_or(Route::Files);
            let weir_args = args.option::<String>("--weir-args")?.unwrap_or_default();
            vec![Pass::new(route, Asked::from_args(&mut args, seed)?, &weir_args)]
        }
    };
    args.finish()?;
    install(&[])?;
    let wanted = |job: &&Job| jobs.as_ref().is_none_or(|j| j.split(',').any(|j| j == job.script));
    let jobs: Vec<&Job> = JOBS.iter().filter(wanted).collect();
    let mut kinds: Vec<Kind> = Vec::new();
    for kind in passes.iter().flat_map(|pass| pass.route.servers()) {
        if !kinds.contains(kind) {
            kinds.push(*kind);
        }
    }
    let services = if kinds.is_empty() { None } else { Some(Services::start(&kinds)?) };
    let weir = places::weir(weir)?;
    let done = run_passes(&passes, &jobs, &weir, services.as_ref(), keep)?;
    if let Some(path) = report {
        fs::write(path, done.report)?;
    }
    done.tally.verdict()
}

/// The passes of CI, one factor at a time, on servers that run already.
pub(crate) fn ci(weir: &Path, services: &Services) -> Result<Tally> {
    let jobs: Vec<&Job> = JOBS.iter().collect();
    Ok(run_passes(&ci_passes(fresh_seed()), &jobs, weir, Some(services), None)?.tally)
}

fn ci_passes(seed: u64) -> Vec<Pass> {
    let few = Asked { meters: 300, ..Asked::full(seed) };
    vec![
        Pass::new(Route::Files, few.clone(), ""),
        Pass::new(Route::Files, few.clone(), "-w 2"),
        Pass::new(Route::Files, few.clone(), "--processes 2"),
        Pass::new(Route::Files, few.clone(), "--epoch 1ms"),
        Pass::new(Route::Files, few.clone(), "--epoch 10ms -w 2"),
        Pass::new(Route::Files, few.clone(), "--epoch 100000rows"),
        Pass::new(Route::Files, few.clone().with(&["--edges"]), ""),
        Pass::new(Route::Files, few.clone().with(&["--faults", "20", "--late-max", "1800"]), ""),
        Pass::new(Route::Columns, few.clone(), ""),
        Pass::new(Route::KafkaPostgres, few.clone(), "-w 2"),
        Pass::new(Route::MqttS3, few, "-w 2"),
    ]
}

fn full_passes(seed: u64) -> Vec<Pass> {
    let all = Asked::full(seed);
    let shapes = [
        all.clone(),
        all.clone().with(&["--edges"]),
        all.clone().with(&["--faults", "20", "--late-max", "1800"]),
    ];
    let each = |route| shapes.clone().into_iter().map(move |s| Pass::new(route, s, "-w 2"));
    let ways = ["", "--processes 2", "--epoch 1ms", "--epoch 10ms", "--epoch 100000rows -w 2"];
    let ways = ways.into_iter().map(|way| Pass::new(Route::Files, all.clone(), way));
    ways.chain(Route::ALL.into_iter().flat_map(each)).collect()
}

/// A seed that no run before had; it is printed, so that the run can be repeated.
pub(crate) fn fresh_seed() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(1, |since| since.as_millis() as u64 % 1_000_000_000)
}

/// What came of all passes.
struct Done {
    tally: Tally,
    /// A table in Markdown, for the docs.
    report: String,
}

fn run_passes(
    passes: &[Pass],
    jobs: &[&Job],
    weir: &Path,
    services: Option<&Services>,
    keep: Option<PathBuf>,
) -> Result<Done> {
    let temporary = tempfile::Builder::new().prefix("weir-truth-").tempdir()?;
    let out = match &keep {
        Some(folder) => std::path::absolute(folder)?,
        None => temporary.path().to_owned(),
    };
    let report = "| run | kind | result |\n|---|---|---|\n".to_owned();
    let mut done = Done { tally: Tally::default(), report };
    let mut generated: BTreeMap<&Asked, Data> = BTreeMap::new();
    let mut files = bytes::Ledger::default();
    for (number, pass) in passes.iter().enumerate() {
        println!("truth {}", pass.describe());
        if !generated.contains_key(&pass.asked) {
            let folder = out.join(format!("data-{number}"));
            generated.insert(&pass.asked, Data::generate(&pass.asked, &folder)?);
        }
        let setting = run::Setting {
            weir,
            weir_args: &pass.weir_args,
            route: pass.route,
            data: &generated[&pass.asked],
            services,
            name: &format!("truth-{}-{number}", pass.asked.seed),
            out: &out.join(format!("pass-{number}")),
        };
        run::prepare(&setting)?;
        for job in jobs {
            if run_job(&setting, job, pass, &mut done)? {
                counters(&setting, job, pass, &mut files, &mut done.tally)?;
            }
        }
    }
    Ok(done)
}

/// Holds a run's report against the truth, and a replay against other replays of the same data.
fn counters(
    setting: &run::Setting,
    job: &Job,
    pass: &Pass,
    files: &mut bytes::Ledger,
    tally: &mut Tally,
) -> Result<()> {
    let out = setting.out.join(job.script);
    let report = match counters::Report::read(&out.join(run::REPORT)) {
        Ok(report) => report,
        Err(error) => {
            tally.fail(format!("truth {} {}: {error:#}", pass.describe(), job.script));
            return Ok(());
        }
    };
    let wrong = report.differences(setting.data, job, pass.route, pass.workers());
    match wrong.is_empty() {
        true => tally.pass(),
        false => {
            let wrong = wrong.join("; ");
            tally.fail(format!("truth {} {}: {wrong}", pass.describe(), job.script));
        }
    }
    if pass.route.is_live() {
        return Ok(());
    }
    let data = format!("{:?} {} {}", pass.asked, pass.route.name(), job.script);
    files.digests(data.clone(), &pass.describe(), report.digests(), tally);
    let cuts = format!("{data} {:?}", pass.epoch());
    files.compare(cuts, &pass.describe(), &out.join("result"), tally)
}

/// Runs and judges a job; whether it ran to its end.
fn run_job(setting: &run::Setting, job: &Job, pass: &Pass, done: &mut Done) -> Result<bool> {
    let began = Instant::now();
    let verdicts = match run::run(setting, job) {
        Ok(verdicts) => verdicts,
        Err(error) => {
            process::check_interrupted()?;
            done.tally.fail(format!("truth {} {}: {error:#}", pass.describe(), job.script));
            return Ok(false);
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    for judge::Verdict { kind, equal, text } in verdicts {
        let last = text.lines().last().unwrap_or_default();
        let word = if equal { "equal" } else { "WRONG" };
        println!("  {kind:15} {word}  {last}  ({seconds:.1} s)");
        writeln!(done.report, "| {} | {kind} | {word}: {last} |", pass.describe().trim_end())?;
        if equal {
            done.tally.pass();
        } else {
            done.tally.fail(format!("truth {} {kind}\n{text}", pass.describe()));
        }
    }
    Ok(true)
}
