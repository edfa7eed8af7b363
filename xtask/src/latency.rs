//! `cargo xtask latency`: how long a row takes from a Kafka broker to whoever reads the result.
//!
//! A real `weir run --state`, with a checkpoint a second, copies a topic of four partitions that
//! gets rows at a steady rate: to PostgreSQL, where a client asks again and again what there is,
//! and to another topic, where a consumer reads what is committed. A row's time is from the
//! broker's timestamp until it has been seen; each must be there once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::args::Args;
use crate::services::{Kind, Services};
use crate::truth::own_script;
use crate::weir::Weir;
use crate::{places, process};

const RATE: u64 = 10_000;
const SECONDS: u64 = 60;
/// Of these none is counted, by default: a broker that has just begun is slow, while its machine
/// compiles.
const WARM_SECONDS: u64 = 30;
const PARTITIONS: &str = "4";
/// Milliseconds.
const P50_MAX: f64 = 25.0;
const P99_MAX: f64 = 100.0;
const START_MAX: Duration = Duration::from_secs(60);

/// Where the rows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum To {
    Postgres,
    Kafka,
}

/// What a reader has seen; times in milliseconds.
#[derive(Debug, Deserialize)]
struct Seen {
    rows: u64,
    different: u64,
    counted: u64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// `cargo xtask latency [--seconds S] [--warm S] [--rate R] [--weir PATH] [--weir-args '-w 2']`
pub(crate) fn command(mut args: Args) -> Result<()> {
    let seconds: u64 = args.option("--seconds")?.unwrap_or(SECONDS);
    let warm: u64 = args.option("--warm")?.unwrap_or(WARM_SECONDS);
    let rate: u64 = args.option("--rate")?.unwrap_or(RATE);
    let weir = places::weir(args.option::<PathBuf>("--weir")?)?;
    let weir_args = args.option::<String>("--weir-args")?.unwrap_or_default();
    args.finish()?;
    let least = warm + 10;
    ensure!(seconds >= least, "--seconds must be at least {least}");
    let services = Services::start(&[Kind::Kafka, Kind::Postgres])?;
    let mut missed = Vec::new();
    for to in [To::Postgres, To::Kafka] {
        let seen = measure(&weir, &weir_args, &services, to, (rate, seconds, warm))
            .with_context(|| format!("{to:?}"))?;
        println!(
            "Kafka to {to:?} at {rate} rows/s for {seconds} s (the first {warm} not \
             counted): p50 {:.1} ms (bar {P50_MAX}), p90 {:.1} ms, p99 {:.1} ms (bar {P99_MAX}), \
             greatest {:.0} ms; {} rows counted",
            seen.p50, seen.p90, seen.p99, seen.max, seen.counted
        );
        ensure!(
            seen.rows == rate * seconds && seen.different == seen.rows,
            "{} rows, {} different ones, of {}",
            seen.rows,
            seen.different,
            rate * seconds
        );
        if seen.p50 >= P50_MAX || seen.p99 >= P99_MAX {
            missed.push(format!("{to:?}"));
        }
    }
    ensure!(missed.is_empty(), "bars are missed: {}", missed.join(", "));
    Ok(())
}

fn measure(
    weir: &Path,
    weir_args: &str,
    services: &Services,
    to: To,
    (rate, seconds, warm): (u64, u64, u64),
) -> Result<Seen> {
    let folder = tempfile::tempdir()?;
    let name = format!("latency_{}_{}", std::process::id(), u8::from(to == To::Kafka));
    let broker = services.var("WEIR_TEST_KAFKA")?;
    let url = services.var("WEIR_TEST_POSTGRES")?;
    let (from, into) = (format!("{name}_in"), format!("{name}_out"));
    let topic = |name: &str, stamped: &str| {
        let stamped = format!("message.timestamp.type={stamped}");
        process::quietly(own_script("kafka_topic.py").args([&broker, name, PARTITIONS, &stamped]))
    };
    topic(&from, "LogAppendTime")?;
    let query = |text: &str| {
        let mut psql = Command::new("psql");
        process::quietly(psql.arg(&url).args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", text]))
    };
    match to {
        To::Kafka => drop(topic(&into, "CreateTime")?),
        To::Postgres => drop(query(&format!(
            "CREATE TABLE {into} (n BIGINT, meter_id TEXT, kwh DOUBLE PRECISION, part TEXT, \
             off BIGINT, arrival TIMESTAMPTZ); CREATE INDEX ON {into} (part, off)"
        ))?),
    }
    let script = folder.path().join("latency.sql");
    fs::write(&script, sql(&broker, &from, &into, (to == To::Postgres).then_some(&url)))?;
    let state = folder.path().join("state");
    let mut command = Command::new(weir);
    command.args(["run", "--checkpoint-interval", "1s", "--state"]).arg(&state);
    command.args(weir_args.split_whitespace()).arg(&script);
    let mut job = Weir::start(&mut command, folder.path().join("weir.log"))?;
    until_reading(&mut job, &state)?;
    let rows = (rate * seconds).to_string();
    let warm = warm.to_string();
    let reader = match to {
        To::Postgres => ["table", &url, &into, &rows, &warm].map(str::to_owned),
        To::Kafka => ["topic", &broker, &into, &rows, &warm].map(str::to_owned),
    };
    let reader = own_script("latency.py").args(reader).stdout(Stdio::piped()).spawn()?;
    let (rate, seconds) = (rate.to_string(), seconds.to_string());
    let load = ["load", &broker, &from, "--rate", &rate, "--seconds", &seconds];
    process::quietly(own_script("latency.py").args(load))?;
    let read = reader.wait_with_output()?;
    job.stop()?;
    if to == To::Postgres {
        query(&format!("DROP TABLE {into}"))?;
    }
    ensure!(read.status.success(), "the reader ended with {}", process::ended(read.status));
    serde_json::from_slice(&read.stdout).context("the reader's answer")
}

fn sql(broker: &str, from: &str, into: &str, postgres: Option<&String>) -> String {
    let target = match postgres {
        Some(url) => {
            format!("'connector' = 'postgres', 'url' = '{url}', 'table-name' = '{into}'")
        }
        None => format!(
            "'connector' = 'kafka', 'properties.bootstrap.servers' = '{broker}', \
             'topic' = '{into}', 'format' = 'json'"
        ),
    };
    format!(
        "CREATE TABLE readings (n BIGINT, meter_id STRING, kwh DOUBLE,
  part STRING METADATA FROM 'split', off BIGINT METADATA FROM 'offset',
  arrival TIMESTAMP_LTZ(3) METADATA FROM 'arrival')
WITH ('connector' = 'kafka', 'properties.bootstrap.servers' = '{broker}', 'topic' = '{from}',
      'scan.startup.mode' = 'earliest-offset', 'format' = 'json');
CREATE TABLE result (n BIGINT, meter_id STRING, kwh DOUBLE, part STRING, off BIGINT,
  arrival TIMESTAMP_LTZ(3))
WITH ({target});
INSERT INTO result SELECT n, meter_id, kwh, part, off, arrival FROM readings;
"
    )
}

/// Waits for the first checkpoint: then all is connected.
fn until_reading(job: &mut Weir, state: &Path) -> Result<()> {
    let began = Instant::now();
    while !state.join("result/checkpoints").exists() {
        job.check()?;
        ensure!(began.elapsed() < START_MAX, "no checkpoint yet\n{}", job.tail());
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_name_their_target() {
        let table = sql("b:1", "in", "out", Some(&"postgresql://u@h/d".to_owned()));
        assert!(table.contains("'connector' = 'postgres'") && table.contains("'out'"));
        let topic = sql("b:1", "in", "out", None);
        assert!(topic.contains("'topic' = 'out'") && !topic.contains("postgres"));
    }
}
