//! `cargo xtask throttled`: a sink that takes 100 rows a second under 50 000 a second of input.
//!
//! A real `weir run` copies a Kafka topic of four partitions to PostgreSQL through toxiproxy, whose
//! link lets 8 kB a second pass: 100 rows. Meanwhile resident memory must stand still and the lag
//! of the source grow; then the link is freed, and every row must arrive, once.
//!
//! An epoch is never cut, so rows become visible in steps. A first row goes all the way before the
//! others come, so that the job doesn't begin with what waited for it, in one epoch.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::args::Args;
use crate::process::Ended;
use crate::services::{Kind, Services};
use crate::truth::own_script;
use crate::weir::Weir;
use crate::{places, process};

/// Rows a second that come in.
const RATE: u64 = 50_000;
/// Below this share of it the test has not shown what it is for.
const RATE_SHARE_MIN: f64 = 0.8;
/// A row is 80 bytes of binary COPY, so this is 100 rows a second.
const LINK_KB_PER_S: u64 = 8;
const ROWS_PER_S: u64 = 100;
/// When memory is first looked at, after the start.
const SETTLED: Duration = Duration::from_secs(30);
const SECONDS_MIN: u64 = 45;
const MEMORY_GROWTH_MAX: f64 = 1.1;
/// Samples whose mean counts: one may fall into a purge of the allocator.
const SAMPLES: usize = 3;
const SAMPLE: Duration = Duration::from_secs(1);
/// The slowest machine puts this many rows a second into the table once the link is free.
const DRAIN_ROWS_PER_S_MIN: u64 = 10_000;
const START_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(500);
const PROXY: &str = "slow-postgres";

/// `cargo xtask throttled [--seconds S] [--weir PATH] [--weir-args '-w 2']`
pub(crate) fn command(mut args: Args) -> Result<()> {
    let seconds = args.option("--seconds")?.unwrap_or(120);
    let weir = places::weir(args.option::<PathBuf>("--weir")?)?;
    let weir_args = args.option::<String>("--weir-args")?.unwrap_or_default();
    args.finish()?;
    let services = Services::start(&[Kind::Kafka, Kind::Postgres, Kind::Toxiproxy])?;
    run(&weir, &weir_args, &services, seconds)
}

/// What was seen.
struct Seen {
    rss_settled: f64,
    rss_end: f64,
    lag_settled: u64,
    lag_end: u64,
    /// Rows in the table when the link was freed.
    passed: u64,
}

/// Runs the whole thing; an error says which bar was missed.
pub(crate) fn run(weir: &Path, weir_args: &str, services: &Services, seconds: u64) -> Result<()> {
    ensure!(seconds >= SECONDS_MIN, "--seconds must be at least {SECONDS_MIN}");
    let folder = tempfile::tempdir()?;
    let name = format!("throttled-{}", std::process::id());
    let link = Link::make(services)?;
    link.throttle()?;
    let table = Table { url: services.var("WEIR_TEST_POSTGRES")?, name: name.replace('-', "_") };
    table.query(&format!("DROP TABLE IF EXISTS {}", table.name))?;

    let broker = services.var("WEIR_TEST_KAFKA")?;
    process::quietly(own_script("kafka_load.py").args(["first", &broker, &name]))?;
    let lag = Lag::watch(&broker, &name)?;
    let script = folder.path().join("throttled.sql");
    fs::write(&script, sql(&broker, &name, &table, &link))?;
    let mut command = Command::new(weir);
    command.arg("run").args(weir_args.split_whitespace()).arg(&script);
    let mut job = Weir::start(&mut command, folder.path().join("weir.log"))?;
    await_rows(&mut job, &table, 1, START_MAX)?;
    let producer = Producer::start(&broker, &name, seconds)?;
    let watched = watch(&mut job, &table, &lag, seconds)?;
    let (rows, rate) = producer.finish()?;
    link.free()?;
    let took = drain(&mut job, &table, rows)?;
    job.stop()?;
    drop(lag);
    table.query(&format!("DROP TABLE {}", table.name))?;
    report(&watched, seconds, rows, rate, took);
    judge(&watched, seconds, rows, rate)
}

fn report(seen: &Seen, seconds: u64, rows: u64, rate: f64, took: Duration) {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    println!(
        "throttled: {rows} rows at {rate:.0}/s for {seconds} s, {} had passed the link ({:.0}/s)",
        seen.passed,
        seen.passed as f64 / seconds as f64
    );
    println!(
        "  resident memory {:.0} MiB after {} s, {:.0} MiB at the end: x {:.3} (bar {})",
        mib(seen.rss_settled),
        SETTLED.as_secs(),
        mib(seen.rss_end),
        seen.rss_end / seen.rss_settled,
        MEMORY_GROWTH_MAX
    );
    println!(
        "  source lag {} rows, then {}; all there {:.0} s after the link was freed",
        seen.lag_settled,
        seen.lag_end,
        took.as_secs_f64()
    );
}

fn judge(seen: &Seen, seconds: u64, rows: u64, rate: f64) -> Result<()> {
    ensure!(rate >= RATE as f64 * RATE_SHARE_MIN, "only {rate:.0} rows/s were published");
    let most = 3 * ROWS_PER_S * seconds;
    ensure!(seen.passed <= most, "{} rows passed the link: it is no slow one", seen.passed);
    let growth = seen.rss_end / seen.rss_settled;
    ensure!(growth <= MEMORY_GROWTH_MAX, "resident memory grew to {growth:.3} times");
    // All that was published since then, but for a little, must be waiting in the broker.
    let since = rows as f64 * (1.0 - SETTLED.as_secs_f64() / seconds as f64);
    let grown = seen.lag_end.saturating_sub(seen.lag_settled) as f64;
    ensure!(grown >= since * 0.7, "the lag grew by {grown} of {since:.0} rows only");
    Ok(())
}

fn sql(broker: &str, topic: &str, table: &Table, link: &Link) -> String {
    let database = link.through(&table.url);
    format!(
        "CREATE TABLE readings (n BIGINT, meter_id STRING, kwh DOUBLE)\n\
         WITH ('connector' = 'kafka', 'topic' = '{topic}', 'format' = 'json',\n\
         'properties.bootstrap.servers' = '{broker}', 'properties.group.id' = '{topic}',\n\
         'scan.startup.mode' = 'earliest-offset');\n\
         CREATE TABLE kept (n BIGINT, meter_id STRING, kwh DOUBLE)\n\
         WITH ('connector' = 'postgres', 'url' = '{database}', 'table-name' = '{}');\n\
         INSERT INTO kept SELECT n, meter_id, kwh FROM readings;\n",
        table.name
    )
}

/// Looks at memory and lag until the time is over.
fn watch(job: &mut Weir, table: &Table, lag: &Lag, seconds: u64) -> Result<Seen> {
    let began = Instant::now();
    let (mut samples, mut settled) = (Vec::new(), None);
    while began.elapsed() < Duration::from_secs(seconds) {
        thread::sleep(SAMPLE);
        samples.push(job.resident()?);
        if settled.is_none() && began.elapsed() >= SETTLED {
            settled = Some((mean(&samples), lag.rows()));
        }
    }
    let (rss_settled, lag_settled) = settled.context("too short")?;
    let shown: Vec<String> = samples.iter().step_by(10).map(|b| format!("{}", b >> 20)).collect();
    println!("  resident memory every 10 s, MiB: {}", shown.join(" "));
    let passed = table.query(&format!("SELECT count(*) FROM {}", table.name))?;
    let passed = passed.parse()?;
    let (rss_end, lag_end) = (mean(&samples), lag.rows());
    Ok(Seen { rss_settled, rss_end, lag_settled, lag_end, passed })
}

/// The mean of the newest samples.
fn mean(samples: &[u64]) -> f64 {
    let newest = &samples[samples.len().saturating_sub(SAMPLES)..];
    newest.iter().sum::<u64>() as f64 / newest.len() as f64
}

/// Waits until all rows are in the table, and looks whether they are the right ones, each once.
fn drain(job: &mut Weir, table: &Table, rows: u64) -> Result<Duration> {
    let rows = rows + 1;
    let limit = START_MAX + Duration::from_secs(rows / DRAIN_ROWS_PER_S_MIN);
    let took = await_rows(job, table, rows, limit)?;
    let sums = "SELECT count(*) || ' ' || count(DISTINCT n) || ' ' || sum(n) || ' ' || max(n)";
    let found = table.query(&format!("{sums} FROM {}", table.name))?;
    let expected = format!("{rows} {rows} {} {}", rows * (rows - 1) / 2, rows - 1);
    ensure!(
        found == expected,
        "rows, different ones, their sum and maximum: {found}, not {expected}"
    );
    Ok(took)
}

/// Waits until the table has this many rows; says how long that took.
fn await_rows(job: &mut Weir, table: &Table, rows: u64, limit: Duration) -> Result<Duration> {
    let began = Instant::now();
    // The job makes the table.
    let made = format!("SELECT to_regclass('{}') IS NOT NULL", table.name);
    let count = format!("SELECT count(*) FROM {}", table.name);
    loop {
        job.check()?;
        let there: u64 = match table.query(&made)?.as_str() {
            "t" => table.query(&count)?.parse()?,
            _ => 0,
        };
        if there >= rows {
            return Ok(began.elapsed());
        }
        if began.elapsed() > limit {
            let s = limit.as_secs();
            bail!("{there} of {rows} rows are in the table after {s} s\n{}", job.said());
        }
        thread::sleep(POLL);
    }
}

/// A table of PostgreSQL, asked on a link that is not slow.
pub(crate) struct Table {
    pub(crate) url: String,
    pub(crate) name: String,
}

impl Table {
    pub(crate) fn query(&self, text: &str) -> Result<String> {
        let mut psql = Command::new("psql");
        psql.arg(&self.url).args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
        Ok(process::quietly(&mut psql)?.trim().to_owned())
    }
}

/// A link through toxiproxy.
struct Link {
    control: String,
    /// Where it listens.
    address: String,
}

impl Link {
    fn make(services: &Services) -> Result<Link> {
        let url = services.var("WEIR_TEST_POSTGRES")?;
        let upstream = host_of(&url).context("no host in the database's URL")?;
        let mut link =
            Link { control: services.var("WEIR_TEST_TOXIPROXY")?, address: String::new() };
        let wanted = json!({ "name": PROXY, "listen": "127.0.0.1:0", "upstream": upstream });
        let made = link.ask("POST", "/proxies", Some(&wanted))?;
        let made: Value = serde_json::from_str(&made)?;
        made["listen"].as_str().context("no address of the proxy")?.clone_into(&mut link.address);
        Ok(link)
    }

    fn throttle(&self) -> Result<()> {
        let toxic = json!({
            "name": "slow", "type": "bandwidth", "stream": "upstream",
            "attributes": { "rate": LINK_KB_PER_S },
        });
        self.ask("POST", &format!("/proxies/{PROXY}/toxics"), Some(&toxic)).map(|_| ())
    }

    fn free(&self) -> Result<()> {
        self.ask("DELETE", &format!("/proxies/{PROXY}/toxics/slow"), None).map(|_| ())
    }

    /// The database's URL with the link in the place of its host.
    fn through(&self, url: &str) -> String {
        url.replace(host_of(url).unwrap_or_default(), &self.address)
    }

    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> Result<String> {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--fail-with-body", "-X", method]);
        if let Some(body) = body {
            curl.args(["-d", &body.to_string()]);
        }
        process::quietly(curl.arg(format!("http://{}{path}", self.control)))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // The servers may outlive this command.
        let _gone = self.ask("DELETE", &format!("/proxies/{PROXY}"), None);
    }
}

/// `host:port` in `postgresql://user@host:port/database`.
fn host_of(url: &str) -> Option<&str> {
    url.split_once('@')?.1.split('/').next()
}

/// The program that publishes.
struct Producer {
    child: Ended,
    lines: BufReader<std::process::ChildStdout>,
}

#[derive(Deserialize)]
struct Published {
    rows: u64,
    rate: f64,
}

impl Producer {
    fn start(broker: &str, topic: &str, seconds: u64) -> Result<Producer> {
        let mut produce = own_script("kafka_load.py");
        produce.args(["produce", broker, topic, "--rate", &RATE.to_string()]);
        produce.args(["--seconds", &seconds.to_string()]).stdout(Stdio::piped());
        let mut child = Ended(process::spawn(&mut produce)?);
        let lines = BufReader::new(child.0.stdout.take().context("no output")?);
        Ok(Producer { child, lines })
    }

    fn finish(mut self) -> Result<(u64, f64)> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        let status = process::wait(&mut self.child.0, Some(STOP_MAX))?;
        ensure!(status.success(), "the producer ended with {}", process::ended(status));
        let published: Published = serde_json::from_str(&line)?;
        Ok((published.rows, published.rate))
    }
}

/// What the group has not committed.
struct Lag {
    _child: Ended,
    rows: Arc<AtomicU64>,
}

impl Lag {
    fn watch(broker: &str, topic: &str) -> Result<Lag> {
        let mut lag = own_script("kafka_load.py");
        lag.args(["lag", broker, topic, topic]).stdout(Stdio::piped());
        let mut child = process::spawn(&mut lag)?;
        let lines = BufReader::new(child.stdout.take().context("no output")?).lines();
        let rows = Arc::new(AtomicU64::new(0));
        let newest = rows.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Ok(behind) = line.trim().parse() {
                    newest.store(behind, Ordering::Relaxed);
                }
            }
        });
        Ok(Lag { _child: Ended(child), rows })
    }

    fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(rss_end: f64, lag_end: u64) -> Seen {
        Seen { rss_settled: 100.0, rss_end, lag_settled: 1_400_000, lag_end, passed: 5_000 }
    }

    #[test]
    fn each_bar_is_a_bar() {
        let judged = |seen: &Seen, rate| judge(seen, 120, 6_000_000, rate).is_ok();
        assert!(judged(&seen(109.0, 5_900_000), 50_000.0));
        assert!(!judged(&seen(111.0, 5_900_000), 50_000.0), "memory");
        assert!(!judged(&seen(100.0, 2_000_000), 50_000.0), "lag");
        assert!(!judged(&seen(100.0, 5_900_000), 30_000.0), "rate");
        let fast = Seen { passed: 500_000, ..seen(100.0, 5_900_000) };
        assert!(!judged(&fast, 50_000.0), "a fast link");
    }
}
