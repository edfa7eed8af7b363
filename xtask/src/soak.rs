//! `cargo xtask soak`: half an hour of rows, and a kill −9 every minute.
//!
//! One `weir run --state` has two jobs: windows of ten seconds over a Kafka topic, and the same of
//! MQTT, without duplicates; both go to PostgreSQL. Once a second its memory, its open files, the
//! bytes of its state and those of the MQTT journals are looked at. What a life (the time between
//! two kills) had at its end must be the same in the last third of the lives as in the first, and
//! every row must be counted once.
//!
//! The first two lives are left out: tables and pools are made in them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::args::Args;
use crate::process::Ended;
use crate::services::{Kind, Services};
use crate::throttled::Table;
use crate::truth::own_script;
use crate::weir::Weir;
use crate::{places, process};

const MINUTES: u64 = 30;
const MINUTES_MIN: u64 = 9;
const RATE: u64 = 20_000;
/// Of the rows, one in so many goes by MQTT.
const MQTT_SHARE: u64 = 5;
const LIFE: Duration = Duration::from_secs(60);
const SAMPLE: Duration = Duration::from_secs(1);
/// Samples at the end of a life that count.
const LAST: usize = 15;
/// Lives that are not compared.
const YOUNG: usize = 2;
/// What the last third of the lives may have more than the first.
const GROWTH_MAX: f64 = 1.1;
/// The same of bytes on disk. They are cut off a segment at a time: the greatest counts.
const GROWTH_MAX_DISK: f64 = 1.25;
const DRAIN_MAX: Duration = Duration::from_secs(180);
const START_MAX: Duration = Duration::from_secs(60);
const METERS: u64 = 1000;
const MEASURES: [Measure; 4] = [
    Measure { name: "resident memory, MiB", of_many: mean, growth_max: GROWTH_MAX },
    Measure { name: "open files", of_many: mean, growth_max: GROWTH_MAX },
    Measure { name: "state and cut logs, MiB", of_many: greatest, growth_max: GROWTH_MAX_DISK },
    Measure { name: "journals, MiB", of_many: greatest, growth_max: GROWTH_MAX_DISK },
];

/// What is looked at.
struct Measure {
    name: &'static str,
    /// What counts of several lives.
    of_many: fn(&[f64]) -> f64,
    growth_max: f64,
}

type Sample = [f64; MEASURES.len()];

/// `cargo xtask soak [--minutes M] [--rate R] [--weir PATH] [--weir-args '-w 2']`
pub(crate) fn command(mut args: Args) -> Result<()> {
    let minutes: u64 = args.option("--minutes")?.unwrap_or(MINUTES);
    let rate: u64 = args.option("--rate")?.unwrap_or(RATE);
    let weir = places::weir(args.option::<PathBuf>("--weir")?)?;
    let weir_args = args.option::<String>("--weir-args")?.unwrap_or_default();
    args.finish()?;
    ensure!(minutes >= MINUTES_MIN, "--minutes must be at least {MINUTES_MIN}");
    ensure!(rate >= MQTT_SHARE, "--rate must be at least {MQTT_SHARE}");
    let services = Services::start(&[Kind::Kafka, Kind::Mosquitto, Kind::Postgres])?;
    let folder = tempfile::Builder::new().prefix("weir-soak-").tempdir()?;
    let mut soak = Soak::make(&services, weir, &weir_args, folder.path())?;
    soak.start()?;
    soak.until_subscribed(&services.log(Kind::Mosquitto))?;
    let by_mqtt = rate / MQTT_SHARE;
    let seconds = minutes * 60;
    let mut loads = [
        Load::start("kafka", &soak.brokers[0], &soak.name, rate - by_mqtt, seconds)?,
        Load::start("mqtt", &soak.brokers[1], &soak.name, by_mqtt, seconds)?,
    ];
    let lives = soak.live(Duration::from_secs(seconds), &mut loads)?;
    let mut published = Vec::new();
    for load in loads {
        published.push(load.finish()?);
    }
    let counted = soak.until_all_is_counted(&published)?;
    println!("soak: {} lives; {counted}", lives.len());
    judge(&lives)
}

/// What runs.
struct Soak {
    weir: PathBuf,
    weir_args: Vec<String>,
    folder: PathBuf,
    script: PathBuf,
    name: String,
    /// Kafka's and Mosquitto's addresses.
    brokers: [String; 2],
    tables: [Table; 2],
    job: Option<Weir>,
}

impl Soak {
    fn make(services: &Services, weir: PathBuf, weir_args: &str, folder: &Path) -> Result<Soak> {
        let name = format!("soak_{}", std::process::id());
        let brokers = [services.var("WEIR_TEST_KAFKA")?, services.var("WEIR_TEST_MQTT")?];
        let url = services.var("WEIR_TEST_POSTGRES")?;
        process::quietly(own_script("kafka_topic.py").args([&brokers[0], &name, "4"]))?;
        let table = |from: &str| Table { url: url.clone(), name: format!("{name}_{from}") };
        let tables = [table("kafka"), table("mqtt")];
        let script = folder.join("soak.sql");
        let journal = folder.join("journal");
        let [kafka, mqtt] = &brokers;
        let sources = [
            format!(
                ") WITH ('connector' = 'kafka', 'properties.bootstrap.servers' = '{kafka}', \
                 'topic' = '{name}', 'scan.startup.mode' = 'earliest-offset', 'format' = 'json');"
            ),
            format!(
                ", PRIMARY KEY (n) NOT ENFORCED) WITH ('connector' = 'mqtt', 'url' = \
                 'mqtt://{mqtt}', 'topic' = '{}', 'client-id' = '{name}', 'qos' = '1', \
                 'journal.path' = '{}', 'dedup.within' = '1 min', 'format' = 'json');",
                (0..4).map(|slot| format!("{name}/{slot}/#")).collect::<Vec<_>>().join(";"),
                journal.display()
            ),
        ];
        let jobs = sources.iter().zip(&tables);
        let sql: String = jobs.map(|(source, table)| job_sql(source, table)).collect();
        fs::write(&script, sql)?;
        let weir_args = weir_args.split_whitespace().map(str::to_owned).collect();
        let folder = folder.to_owned();
        Ok(Soak { weir, weir_args, folder, script, name, brokers, tables, job: None })
    }

    fn start(&mut self) -> Result<&mut Weir> {
        let mut command = Command::new(&self.weir);
        command.args(["run", "--checkpoint-interval", "1s", "--state"]);
        command.arg(self.folder.join("state")).args(&self.weir_args).arg(&self.script);
        let job = Weir::start(&mut command, self.folder.join("weir.log"))?;
        Ok(self.job.insert(job))
    }

    fn job(&mut self) -> Result<&mut Weir> {
        self.job.as_mut().context("weir was not started")
    }

    /// Waits until the MQTT broker has seen a subscription to each part: its log names them. What
    /// is published before that is for nobody.
    fn until_subscribed(&mut self, log: &Path) -> Result<()> {
        let began = Instant::now();
        loop {
            self.job()?.check()?;
            let log = String::from_utf8_lossy(&fs::read(log)?).into_owned();
            if (0..4).all(|slot| log.contains(&format!("{}/{slot}/#", self.name))) {
                return Ok(());
            }
            ensure!(began.elapsed() < START_MAX, "no subscription\n{}", self.job()?.tail());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Kills weir after each life but the last, and starts it again; what each had at its end.
    fn live(&mut self, time: Duration, loads: &mut [Load]) -> Result<Vec<Sample>> {
        let (began, mut lives) = (Instant::now(), Vec::new());
        loop {
            let born = Instant::now();
            let mut samples = Vec::new();
            while born.elapsed() < LIFE && began.elapsed() < time {
                thread::sleep(SAMPLE);
                self.job()?.check()?;
                loads.iter_mut().try_for_each(Load::check)?;
                samples.push(self.sample()?);
            }
            if born.elapsed() >= LIFE {
                let life = at_its_end(&samples);
                println!("  {:2}: {}", lives.len() + 1, shown(&life));
                lives.push(life);
            }
            if began.elapsed() >= time {
                return Ok(lives);
            }
            self.job()?.kill()?;
            self.start()?;
        }
    }

    fn sample(&mut self) -> Result<Sample> {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (resident, pid) = (self.job()?.resident()?, self.job()?.id());
        let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok([
            mib(resident),
            files as f64,
            mib(bytes_below(&self.folder.join("state"))),
            mib(bytes_below(&self.folder.join("journal"))),
        ])
    }

    /// Waits until every row is in a window that is in its table, then stops weir in order.
    fn until_all_is_counted(&mut self, published: &[u64]) -> Result<String> {
        let began = Instant::now();
        let mut found = Vec::new();
        for (table, &rows) in self.tables.iter().zip(published) {
            let name = &table.name;
            found.push((format!("SELECT coalesce(sum(c), 0) FROM {name}"), rows));
        }
        loop {
            self.job()?.check()?;
            let mut there = Vec::new();
            for ((count, _), table) in found.iter().zip(&self.tables) {
                there.push(table.query(count)?.parse::<u64>()?);
            }
            if there.iter().zip(&found).all(|(there, (_, rows))| there >= rows) {
                break;
            }
            if began.elapsed() > DRAIN_MAX {
                bail!("{there:?} of {published:?} rows are counted\n{}", self.job()?.tail());
            }
            thread::sleep(SAMPLE);
        }
        let took = began.elapsed().as_secs();
        self.job()?.stop()?;
        for (table, &rows) in self.tables.iter().zip(published) {
            check_sums(table, rows)?;
            table.query(&format!("DROP TABLE {}", table.name))?;
        }
        Ok(format!(
            "{published:?} rows of Kafka and MQTT, each counted once {took} s after the last"
        ))
    }
}

/// Declarations and INSERT of one job. `source`: how its table of rows ends.
fn job_sql(source: &str, table: &Table) -> String {
    let Table { url, name } = table;
    format!(
        "CREATE TABLE {name}_rows (n BIGINT, meter_id STRING, ts BIGINT, kwh DOUBLE, \
         t AS TO_TIMESTAMP_LTZ(ts, 3), WATERMARK FOR t AS t - INTERVAL '5' SECOND{source}\n\
         CREATE TABLE {name} (meter_id STRING, w TIMESTAMP_LTZ(3), c BIGINT, s BIGINT, \
         kwh DOUBLE) WITH ('connector' = 'postgres', 'url' = '{url}', 'table-name' = '{name}');\n\
         INSERT INTO {name} SELECT meter_id, TUMBLE_START(t, INTERVAL '10' SECOND) AS w, \
         COUNT(*) AS c, SUM(n) AS s, AVG(kwh) AS kwh FROM {name}_rows \
         GROUP BY meter_id, TUMBLE(t, INTERVAL '10' SECOND);\n"
    )
}

/// Whether rows 1 to `rows` are counted once each, in windows that are there once each.
fn check_sums(table: &Table, rows: u64) -> Result<()> {
    let sums = "sum(c) || ' ' || sum(s) || ' ' || count(*) - count(DISTINCT (meter_id, w)) || ' ' \
                || count(DISTINCT meter_id)";
    let found = table.query(&format!("SELECT {sums} FROM {}", table.name))?;
    let expected = format!("{rows} {} 0 {METERS}", rows * (rows + 1) / 2);
    ensure!(
        found == expected,
        "{}: rows, sum of their numbers, windows that are there twice, meters: {found}, not \
         {expected}",
        table.name
    );
    Ok(())
}

/// The mean of the last samples.
fn at_its_end(samples: &[Sample]) -> Sample {
    let last = &samples[samples.len().saturating_sub(LAST)..];
    std::array::from_fn(|n| mean(&last.iter().map(|sample| sample[n]).collect::<Vec<_>>()))
}

fn shown(sample: &Sample) -> String {
    let figure = |(figure, of): (&f64, &Measure)| format!("{} {figure:.1}", of.name);
    sample.iter().zip(&MEASURES).map(figure).collect::<Vec<_>>().join("; ")
}

fn judge(lives: &[Sample]) -> Result<()> {
    let grown = lives.get(YOUNG..).unwrap_or_default();
    let third = grown.len() / 3;
    ensure!(third > 0, "{} lives are too few", lives.len());
    let mut wrong = Vec::new();
    for (n, Measure { name, of_many, growth_max }) in MEASURES.iter().enumerate() {
        let of = |lives: &[Sample]| of_many(&lives.iter().map(|life| life[n]).collect::<Vec<_>>());
        let (first, last) = (of(&grown[..third]), of(&grown[grown.len() - third..]));
        let growth = last / first.max(f64::MIN_POSITIVE);
        println!("  {name}: {first:.1}, then {last:.1}: x {growth:.3} (bar {growth_max})");
        if growth > *growth_max {
            wrong.push(*name);
        }
    }
    ensure!(wrong.is_empty(), "not flat: {}", wrong.join("; "));
    Ok(())
}

fn mean(figures: &[f64]) -> f64 {
    figures.iter().sum::<f64>() / figures.len().max(1) as f64
}

fn greatest(figures: &[f64]) -> f64 {
    figures.iter().copied().fold(0.0, f64::max)
}

/// Bytes of all files below a folder; files come and go meanwhile.
fn bytes_below(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => bytes_below(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.flatten().map(of).sum()
}

/// A program that publishes.
struct Load {
    child: Ended,
    lines: BufReader<std::process::ChildStdout>,
    rate: u64,
}

#[derive(Deserialize)]
struct Published {
    rows: u64,
    rate: f64,
}

impl Load {
    fn start(kind: &str, to: &str, topic: &str, rate: u64, seconds: u64) -> Result<Load> {
        let mut load = own_script("soak_load.py");
        load.args([kind, to, topic, "--rate", &rate.to_string()]);
        load.args(["--seconds", &seconds.to_string()]).stdout(Stdio::piped());
        load.env("PYTHONPATH", places::shared_or_fail()?.join("truth"));
        let mut child = Ended(process::spawn(&mut load)?);
        let lines = BufReader::new(child.0.stdout.take().context("no output")?);
        Ok(Load { child, lines, rate })
    }

    /// An error if it has failed.
    fn check(&mut self) -> Result<()> {
        match self.child.0.try_wait()? {
            Some(status) if !status.success() => {
                bail!("a publisher ended with {}", process::ended(status))
            }
            _ => Ok(()),
        }
    }

    /// How many rows it has published.
    fn finish(mut self) -> Result<u64> {
        let status = process::wait(&mut self.child.0, Some(DRAIN_MAX))?;
        ensure!(status.success(), "a publisher ended with {}", process::ended(status));
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        let published: Published = serde_json::from_str(&line)?;
        println!("  {} rows at {:.0}/s (of {})", published.rows, published.rate, self.rate);
        Ok(published.rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_found() {
        let flat = vec![[100.0, 40.0, 8.0, 3.0]; 8];
        assert!(judge(&flat).is_ok());
        for n in 0..MEASURES.len() {
            let mut grows = flat.clone();
            grows.iter_mut().enumerate().for_each(|(at, life)| life[n] *= 1.0 + at as f64 * 0.1);
            let error = judge(&grows).err().map(|error| error.to_string()).unwrap_or_default();
            assert_eq!(error, format!("not flat: {}", MEASURES[n].name));
        }
        // Young lives do not count.
        let mut young = flat.clone();
        young[0] = [1.0, 1.0, 1.0, 1.0];
        assert!(judge(&young).is_ok());
        assert!(judge(&flat[..4]).is_err());
    }

    #[test]
    fn a_life_is_what_it_had_at_its_end() {
        let samples: Vec<Sample> = (0..60).map(|n| [f64::from(n); 4]).collect();
        assert_eq!(at_its_end(&samples), [52.0; 4]);
    }
}
