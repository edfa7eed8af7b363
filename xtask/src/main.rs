//! `cargo xtask`: everything that is done to Weir's source besides compiling it.
//!
//! Each command is a module of the same name. What a check needs beyond Rust it installs or names
//! in one line; what it starts it stops.
#![allow(clippy::print_stdout, reason = "a command line speaks on standard output")]

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::args::Args;

mod args;
mod bench;
mod ci;
mod fault;
mod latency;
mod outside;
mod places;
mod process;
mod services;
mod soak;
mod testing;
mod throttled;
mod tidy;
mod truth;
mod weir;

const USAGE: &str = "\
cargo xtask COMMAND

  ci [--quick]          format, tidy, clippy, docs, then test: what .ci/run runs
  test [--quick]        all tests against real servers, and the cases from outside
  tidy                  arrows between crates, manners, versions, licences
  services install [S…] | up [S…] | down | env
                        S: kafka mosquitto postgres s3 toxiproxy
  conformance           the conformance corpus   [--filter RE] [--bless] [--weir PATH]
  errors                scripts to be refused    [--filter RE] [--bless] [--weir PATH]
  truth                 results against computed answers
      --path files|columns|kafka-postgres|mqtt-s3     or --set ci|full
      --seed S --meters N --minutes M --warmup M --edges --faults X --late-max S
      --jobs tumble5m,tumble5m_dedup,region1m,region1m_dedup,hop,theft,sessions --weir-args '-w 2'
      --weir PATH --keep DIR --report FILE
  throttled             50 000 rows/s into a link of 100 rows/s: memory stands still, nothing is lost
      --seconds S --weir-args '-w 2' --weir PATH
  fault                 kills, outages and lost replies under load: the results stay equal
      --kind K (again and again) or --set ci|full
      K: kill checkpoint reply reply-cut postgres kafka corrupt zombie twin stop full-disk child hang
         lost-disk all-disks mqtt mqtt-kill
      --sink postgres|kafka|files    where results go; reply, reply-cut and postgres need postgres
      --runs N --seed S --rate ROWS/S --seconds S --outage S --weir PATH --record FILE
      --broken          runs of a weir without its fence, and without its progress: they must fail
  latency               from a Kafka broker to a SELECT and to a consumer, 10 000 rows/s, exactly once
      --seconds S --rate ROWS/S --weir-args '-w 2' --weir PATH
  soak                  a kill -9 a minute: memory, open files, state and journals stand still
      --minutes M --rate ROWS/S --weir-args '-w 2' --weir PATH
  bench [B…]            against DuckDB on the same files; B: w1 w1j w3 w4 hop cores
                        checkpoints checkpoints-hop restart
      --runs N --workers N --weir PATH --data DIR";

fn main() -> ExitCode {
    process::handle_signals();
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let args = Args::new(words);
    match command.as_str() {
        "ci" => ci::command(args),
        "test" => testing::command(args),
        "tidy" => tidy::command(args),
        "services" => services::command(args),
        "conformance" => outside::conformance_command(args),
        "errors" => outside::errors_command(args),
        "truth" => truth::command(args),
        "throttled" => throttled::command(args),
        "fault" => fault::command(args),
        "latency" => latency::command(args),
        "soak" => soak::command(args),
        "bench" => bench::command(args),
        "help" | "--help" | "-h" => {
            println!("{USAGE}");
            Ok(())
        }
        _ => bail!("no command `{command}`\n\n{USAGE}"),
    }
}
