//! One job of the truth, run by `weir` on one route and judged.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::data::Data;
use super::judge::{Results, Verdict, judge};
use super::script::Filling;
use super::{Job, Route};
use crate::services::{Kind, Services};
use crate::{places, process};

/// The file of the run's counters, beside its script.
pub(super) const REPORT: &str = "report.json";
const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(60);
const ROWS_PER_S_MIN: u64 = 5_000;
/// A look costs the machine half a second of Python; Weir needs that time more.
const POLL: Duration = Duration::from_secs(2);
const SUBSCRIBED_POLL: Duration = Duration::from_millis(50);
const PARTITIONS: usize = 4;

/// What every job of one route has in common.
pub(super) struct Setting<'a> {
    pub(super) weir: &'a Path,
    pub(super) weir_args: &'a [String],
    pub(super) route: Route,
    pub(super) data: &'a Data,
    pub(super) services: Option<&'a Services>,
    /// A name of this run that no other run on the same servers has.
    pub(super) name: &'a str,
    /// Where scripts, results and logs go.
    pub(super) out: &'a Path,
}

impl Setting<'_> {
    fn var(&self, name: &str) -> Result<String> {
        self.services.context("no servers")?.var(name)
    }

    /// The Kafka topic, or the first level of MQTT topics. A Kafka topic is read by all jobs; what
    /// is published to MQTT is gone once read, so each job has its own.
    fn topic(&self, job: &Job) -> String {
        match self.route {
            Route::MqttS3 => format!("{}-{}", self.name, job.script),
            _ => self.name.to_owned(),
        }
    }

    /// Time enough for all rows, on a slow machine.
    fn limit(&self) -> Duration {
        START_MAX + Duration::from_secs(self.data.messages / ROWS_PER_S_MIN)
    }
}

/// What is done once for all jobs of a route.
pub(super) fn prepare(setting: &Setting) -> Result<()> {
    match setting.route {
        Route::KafkaPostgres => {
            let broker = setting.var("WEIR_TEST_KAFKA")?;
            setting.data.publish("kafka", &broker, setting.name)
        }
        Route::Files | Route::Columns | Route::MqttS3 => Ok(()),
    }
}

/// Runs a job to its end, or until it has given all that the truth expects, and judges it.
pub(super) fn run(setting: &Setting, job: &Job) -> Result<Vec<Verdict>> {
    let out = setting.out.join(job.script);
    fs::create_dir_all(&out)?;
    let script = out.join("script.sql");
    fs::write(&script, fill(setting, job, &out)?)?;
    let results = results(setting, job, &out)?;
    let judged = out.join("judged");
    let verdicts = || judge(setting.data, job, setting.route, &results, &judged);

    let mut weir = Weir::start(setting, &script, &out)?;
    if !setting.route.is_live() {
        weir.finish(setting.limit())?;
        return Ok(verdicts().collect());
    }
    if setting.route == Route::MqttS3 {
        let topic = setting.topic(job);
        let all = || subscribed(setting, &topic);
        if !weir.until(START_MAX, SUBSCRIBED_POLL, "subscribed", all)? {
            bail!("nobody subscribed to {topic}\n{}", weir.said());
        }
        setting.data.publish("mqtt", &setting.var("WEIR_TEST_MQTT")?, &topic)?;
    }
    // What never becomes equal is judged below, with its rows.
    let complete = || Ok(verdicts().all(|verdict| verdict.equal));
    let _late = weir.until(setting.limit(), POLL, "complete", complete)?;
    weir.stop()?;
    Ok(verdicts().collect())
}

/// Gives the WITH options of a result table.
type Sink = Box<dyn Fn(&str) -> String>;

fn fill(setting: &Setting, job: &Job, out: &Path) -> Result<String> {
    let folder = places::root().join("scenarios/truth");
    let text = |path: &Path| path.display().to_string();
    let mut variables = BTreeMap::from([
        ("DATA", text(&setting.data.folder)),
        ("LINES", text(&setting.data.lines)),
        ("OUT", text(out)),
        ("TOPIC", setting.topic(job)),
        ("COPIES", String::new()),
    ]);
    variables.extend(job.duplicates());
    for (name, variable) in [("KAFKA", "WEIR_TEST_KAFKA"), ("MQTT", "WEIR_TEST_MQTT")] {
        if let Ok(value) = setting.var(variable) {
            variables.insert(name, value);
        }
    }
    let sink: Sink = match setting.route {
        Route::Files | Route::Columns => {
            let out = text(out);
            Box::new(move |table| {
                format!(
                    "'connector' = 'filesystem', 'path' = '{out}/result/{table}', 'format' = 'json'"
                )
            })
        }
        Route::KafkaPostgres => {
            let (url, prefix) = (setting.var("WEIR_TEST_POSTGRES")?, prefix(setting, job));
            Box::new(move |table| {
                format!(
                    "'connector' = 'postgres', 'url' = '{url}', 'table-name' = '{prefix}_{table}'"
                )
            })
        }
        Route::MqttS3 => s3_sink(setting, job)?,
    };
    let route = setting.route.name();
    Filling { folder: &folder, route, variables, sink: &sink }.script(job.script)
}

fn s3_sink(setting: &Setting, job: &Job) -> Result<Sink> {
    let prefix = prefix(setting, job);
    let bucket = setting.var("WEIR_TEST_S3_BUCKET")?;
    let endpoint = setting.var("WEIR_TEST_S3")?;
    let (key, secret) = (setting.var("WEIR_TEST_S3_KEY")?, setting.var("WEIR_TEST_S3_SECRET")?);
    Ok(Box::new(move |table| {
        format!(
            "'connector' = 'filesystem', 'path' = 's3://{bucket}/{prefix}/{table}', \
             'format' = 'parquet', 's3.endpoint' = '{endpoint}', 's3.access-key' = '{key}', \
             's3.secret-key' = '{secret}', 'sink.rolling-policy.rollover-interval' = '5 s'"
        )
    }))
}

/// A name for tables and objects of one job, with letters that need no quotes.
fn prefix(setting: &Setting, job: &Job) -> String {
    format!("{}_{}", setting.name.replace('-', "_"), job.script)
}

fn results(setting: &Setting, job: &Job, out: &Path) -> Result<Results> {
    Ok(match setting.route {
        Route::Files | Route::Columns => Results::Folder(out.join("result")),
        Route::KafkaPostgres => Results::Postgres {
            url: setting.var("WEIR_TEST_POSTGRES")?,
            prefix: prefix(setting, job),
        },
        Route::MqttS3 => {
            let bucket = PathBuf::from(setting.var("WEIR_TEST_S3_FOLDER")?);
            Results::Folder(bucket.join(prefix(setting, job)))
        }
    })
}

/// Whether the broker has seen a subscription to each partition: its log names them.
fn subscribed(setting: &Setting, topic: &str) -> Result<bool> {
    let log = setting.services.context("no servers")?.log(Kind::Mosquitto);
    let log = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    Ok((0..PARTITIONS).all(|k| log.contains(&format!("{topic}/{k}/#"))))
}

/// A running `weir run`.
struct Weir {
    child: Child,
    log: PathBuf,
}

impl Weir {
    fn start(setting: &Setting, script: &Path, out: &Path) -> Result<Weir> {
        let log = out.join("weir.log");
        let file = File::create(&log)?;
        let mut command = Command::new(setting.weir);
        command.arg("run").args(setting.weir_args);
        command.arg("--digest").arg("--report").arg(out.join(REPORT)).arg(script);
        command.stdout(file.try_clone()?).stderr(file);
        Ok(Weir { child: process::spawn(&mut command)?, log })
    }

    fn said(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Waits for the end, which must be a good one.
    fn finish(&mut self, limit: Duration) -> Result<()> {
        let status = process::wait(&mut self.child, Some(limit))?;
        if !status.success() {
            bail!("weir ended with {}\n{}", process::ended(status), self.said());
        }
        Ok(())
    }

    /// Waits until something holds; false when it doesn't in time. That weir ends is an error.
    fn until(
        &mut self,
        limit: Duration,
        poll: Duration,
        what: &str,
        holds: impl Fn() -> Result<bool>,
    ) -> Result<bool> {
        let began = Instant::now();
        while began.elapsed() < limit {
            process::check_interrupted()?;
            if let Some(status) = self.child.try_wait()? {
                let ended = process::ended(status);
                bail!("weir ended with {ended} before it was {what}\n{}", self.said());
            }
            if holds()? {
                return Ok(true);
            }
            thread::sleep(poll);
        }
        println!("not {what} after {} s", limit.as_secs());
        Ok(false)
    }

    /// As a user would stop it: SIGTERM, then what has fired is committed and the exit code is 0.
    fn stop(&mut self) -> Result<()> {
        process::signal(self.child.id(), libc::SIGTERM);
        self.finish(STOP_MAX)
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            process::end(&mut self.child);
        }
    }
}
