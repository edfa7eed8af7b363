//! `cargo xtask bench`: whole runs of Weir beside DuckDB (or beside itself) on the same files.
//!
//! The two sides take turns, so that a machine that slows down slows both; each figure is a median.
//! Times of one call compare only within it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::args::Args;
use crate::process::Cost;
use crate::truth::Filling;
use crate::{places, process, services};

mod restart;

const RUNS: usize = 5;
const MB: f64 = 1e6;

/// What Weir is measured against.
enum Against {
    /// The reference's query on the same files; results must agree.
    DuckDb { form: &'static str },
    /// Another script on the same rows.
    Script(&'static str),
    /// The same script with one worker, bound to one core.
    OneCore,
    /// The same script without checkpoints; ours makes one a second. Both are jobs that last.
    NoCheckpoints,
}

/// One bench: a script of `scenarios/bench`, the reference's data set, and what is asked of the
/// ratio.
struct Bench {
    name: &'static str,
    script: &'static str,
    data: &'static str,
    against: Against,
    ratio_max: f64,
    peak_mb_max: Option<f64>,
    /// The share of the rows after which the sink must have its first one.
    first_share_max: Option<f64>,
}

/// Throughput of at least 90 %.
const CHECKPOINTS_RATIO_MAX: f64 = 1.0 / 0.9;

const BENCHES: [Bench; 8] = [
    Bench {
        name: "w1",
        script: "w1",
        data: "w1",
        against: Against::DuckDb { form: "pq" },
        ratio_max: 1.0,
        peak_mb_max: Some(600.0),
        first_share_max: Some(0.06),
    },
    Bench {
        name: "w1j",
        script: "w1j",
        data: "w1",
        against: Against::DuckDb { form: "json" },
        ratio_max: 0.8,
        peak_mb_max: None,
        first_share_max: None,
    },
    Bench {
        name: "w3",
        script: "w3",
        data: "w3",
        against: Against::DuckDb { form: "pq" },
        ratio_max: 1.2,
        peak_mb_max: None,
        first_share_max: None,
    },
    Bench {
        name: "w4",
        script: "w4",
        data: "w4",
        against: Against::DuckDb { form: "pq" },
        ratio_max: 1.2,
        peak_mb_max: None,
        first_share_max: None,
    },
    Bench {
        name: "hop",
        script: "hop",
        data: "w2",
        against: Against::Script("tumble"),
        ratio_max: 3.0,
        peak_mb_max: None,
        first_share_max: None,
    },
    Bench {
        name: "cores",
        script: "w1",
        data: "w1",
        against: Against::OneCore,
        ratio_max: 0.65,
        peak_mb_max: None,
        first_share_max: None,
    },
    Bench {
        name: "checkpoints",
        script: "tumble",
        data: "w2",
        against: Against::NoCheckpoints,
        ratio_max: CHECKPOINTS_RATIO_MAX,
        peak_mb_max: None,
        first_share_max: None,
    },
    Bench {
        name: "checkpoints-hop",
        script: "hop",
        data: "w2",
        against: Against::NoCheckpoints,
        ratio_max: CHECKPOINTS_RATIO_MAX,
        peak_mb_max: None,
        first_share_max: None,
    },
];

/// What the command line asks for.
struct Asked {
    weir: PathBuf,
    data: PathBuf,
    shared: PathBuf,
    runs: usize,
    workers: usize,
}

/// `cargo xtask bench [NAME…]`
pub(crate) fn command(mut args: Args) -> Result<()> {
    let data = args.option("--data")?.unwrap_or_else(|| places::target().join("bench-data"));
    let asked = Asked {
        weir: places::weir(args.option("--weir")?)?,
        data: std::path::absolute(data)?,
        shared: places::shared_or_fail()?.join("bench"),
        runs: args.option("--runs")?.unwrap_or(RUNS),
        workers: args.option("--workers")?.unwrap_or(2),
    };
    ensure!(asked.runs > 0, "--runs must be at least 1");
    let names = args.words();
    args.finish()?;
    services::install(&[])?;
    let known = |name: &str| name == restart::NAME || BENCHES.iter().any(|b| b.name == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let all = BENCHES.map(|bench| bench.name).join(" ");
        bail!("no bench `{unknown}`: {all} {}", restart::NAME);
    }
    let wanted = |bench: &&Bench| names.is_empty() || names.iter().any(|name| name == bench.name);
    let mut missed = Vec::new();
    for bench in BENCHES.iter().filter(wanted) {
        generate(&asked, bench.data)?;
        if !measure(&asked, bench)? {
            missed.push(bench.name);
        }
    }
    if names.is_empty() || names.iter().any(|name| name == restart::NAME) {
        generate(&asked, restart::DATA)?;
        if !restart::measure(&asked)? {
            missed.push(restart::NAME);
        }
    }
    match missed.is_empty() {
        true => Ok(()),
        false => bail!("not as asked for: {}", missed.join(" ")),
    }
}

/// Makes a data set once; it is kept for later calls.
fn generate(asked: &Asked, set: &str) -> Result<()> {
    let place = asked.data.join(set);
    if place.exists() {
        return Ok(());
    }
    println!("generating {set} in {}", asked.data.display());
    fs::create_dir_all(&asked.data)?;
    let draft = tempfile::Builder::new().prefix(".draft-").tempdir_in(&asked.data)?;
    let mut gen_py = Command::new(places::python());
    gen_py.arg(asked.shared.join("gen.py")).arg(draft.path()).arg(set);
    process::quietly(&mut gen_py)?;
    Ok(fs::rename(draft.path().join(set), place)?)
}

/// Runs both sides in turn and prints what they cost; whether all is as asked for.
fn measure(asked: &Asked, bench: &Bench) -> Result<bool> {
    let out = tempfile::Builder::new().prefix("weir-bench-").tempdir()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let mut agreed = true;
    for turn in 0..asked.runs {
        let result = out.path().join(format!("{}-{turn}", bench.name));
        let workers = asked.workers.to_string();
        let interval = match bench.against {
            Against::NoCheckpoints => &["--checkpoint-interval", "1s"][..],
            _ => &[],
        };
        let args = [&["-w", &workers], interval].concat();
        ours.push(weir(asked, bench.script, &result, &args, &[])?);
        theirs.push(match bench.against {
            Against::DuckDb { form } => {
                let (cost, theirs) = duckdb(asked, bench.data, form, out.path())?;
                let mine = check(asked, bench.data, &result)?;
                if mine != theirs {
                    println!("  {}: our result is {mine}, DuckDB's {theirs}", bench.name);
                    agreed = false;
                }
                cost
            }
            Against::Script(script) => {
                let result = out.path().join(format!("{script}-{turn}"));
                weir(asked, script, &result, &["-w", &workers], &[])?
            }
            Against::NoCheckpoints => {
                let result = out.path().join(format!("{}-none-{turn}", bench.name));
                let args = ["-w", &workers, "--checkpoint-interval", "1000h"];
                weir(asked, bench.script, &result, &args, &[])?
            }
            Against::OneCore => {
                let result = out.path().join(format!("one-{turn}"));
                weir(asked, bench.script, &result, &["-w", "1"], &["taskset", "-c", "0"])?
            }
        });
        let _in_the_way = fs::remove_dir_all(&result);
    }
    let (a, b) = (median(&ours), median(&theirs));
    let ratio = a.wall_s / b.wall_s;
    let peak_mb = a.peak_bytes as f64 / MB;
    let first_share = first_share(&out.path().join(format!("{}-0.report", bench.name)))?;
    let good = agreed
        && ratio <= bench.ratio_max
        && bench.first_share_max.is_none_or(|limit| first_share < limit)
        && bench.peak_mb_max.is_none_or(|limit| peak_mb <= limit);
    let limit = bench.peak_mb_max.map_or(String::new(), |mb| format!(", peak at most {mb} MB"));
    if let Some(limit) = bench.first_share_max {
        let (share, limit) = (100.0 * first_share, 100.0 * limit);
        println!("{:6} first row accepted after {share:.2} % of the rows, at most {limit} %", "");
    }
    println!(
        "{:6} weir {:.2} s, {peak_mb:.0} MB, cpu {:.2} s; other {:.2} s, {:.0} MB",
        bench.name,
        a.wall_s,
        a.cpu_s,
        b.wall_s,
        b.peak_bytes as f64 / MB
    );
    let word = if good { "good" } else { "MISSED" };
    println!("       ratio {ratio:.2}, at most {}{limit}: {word}", bench.ratio_max);
    Ok(good)
}

/// One whole run of Weir, behind another command such as `taskset`. With an interval of checkpoints
/// the job is one that lasts.
fn weir(asked: &Asked, script: &str, out: &Path, args: &[&str], before: &[&str]) -> Result<Cost> {
    let path = out.with_extension("sql");
    fs::write(&path, filled(asked, script, out)?)?;
    let state = out.with_extension("state");
    let mut command = match before.split_first() {
        Some((program, words)) => {
            let mut command = Command::new(program);
            command.args(words).arg(&asked.weir);
            command
        }
        None => Command::new(&asked.weir),
    };
    let log = fs::File::create(out.with_extension("log"))?;
    command.arg("run").args(args);
    if args.contains(&"--checkpoint-interval") {
        command.arg("--state").arg(&state);
    }
    command.arg("--report").arg(out.with_extension("report"));
    command.arg(&path).stdout(log.try_clone()?).stderr(log);
    let cost = process::measure(&mut command).with_context(|| {
        let said = fs::read_to_string(out.with_extension("log")).unwrap_or_default();
        said.lines().take(20).collect::<Vec<_>>().join("\n")
    });
    let _none_there = fs::remove_dir_all(&state);
    cost
}

/// A script of `scenarios/bench`, filled in.
fn filled(asked: &Asked, script: &str, out: &Path) -> Result<String> {
    let folder = places::root().join("scenarios/bench");
    let text = |path: &Path| path.display().to_string();
    let variables = BTreeMap::from([("DATA", text(&asked.data)), ("OUT", text(out))]);
    let sink = |table: &str| format!("'path' = '{table}'");
    Filling { folder: &folder, route: "", variables, sink: &sink }.script(script)
}

/// The share of all rows that had been read when the sink accepted its first one.
fn first_share(report: &Path) -> Result<f64> {
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(report)?)?;
    let jobs = report.as_array().cloned().unwrap_or_else(|| vec![report]);
    let job = jobs.first().context("a report without a job")?;
    let figure = |list: &str, name: &str| job[list][0][1][name].as_f64();
    let rows = figure("sources", "rows").context("a report without rows")?;
    Ok(figure("sinks", "first_after").map_or(1.0, |after| after / rows))
}

/// One whole run of the reference, and its check sum.
fn duckdb(asked: &Asked, work: &str, form: &str, out: &Path) -> Result<(Cost, String)> {
    let log = out.join("duckdb.log");
    let mut command = Command::new(places::python());
    command.arg(asked.shared.join("duckdb_ref.py")).args([work, form]).arg(&asked.data);
    command.stdout(fs::File::create(&log)?).stderr(Stdio::inherit());
    let cost = process::measure(&mut command)?;
    let said = fs::read_to_string(log)?;
    let words = said.split_whitespace().filter(|w| w.starts_with("out=") || w.starts_with("chk="));
    Ok((cost, words.collect::<Vec<_>>().join(" ")))
}

fn check(asked: &Asked, work: &str, result: &Path) -> Result<String> {
    let mut command = Command::new(places::python());
    command.arg(places::root().join("xtask/python/bench_check.py"));
    Ok(process::quietly(command.arg(&asked.shared).arg(work).arg(result))?.trim().to_owned())
}

/// The median of each figure by itself.
fn median(costs: &[Cost]) -> Cost {
    let middle = |figure: &dyn Fn(&Cost) -> f64| {
        let mut figures: Vec<f64> = costs.iter().map(figure).collect();
        figures.sort_by(f64::total_cmp);
        figures[figures.len() / 2]
    };
    Cost {
        wall_s: middle(&|cost| cost.wall_s),
        cpu_s: middle(&|cost| cost.cpu_s),
        peak_bytes: middle(&|cost| cost.peak_bytes as f64) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_taken_figure_by_figure() {
        let cost = |wall_s, peak_bytes| Cost { wall_s, cpu_s: 0.0, peak_bytes };
        let middle = median(&[cost(3.0, 10), cost(1.0, 30), cost(2.0, 20)]);
        assert_eq!((middle.wall_s, middle.peak_bytes), (2.0, 20));
    }

    #[test]
    fn every_bench_has_its_scripts() {
        let folder = places::root().join("scenarios/bench");
        for bench in &BENCHES {
            assert!(folder.join(format!("{}.sql", bench.script)).exists(), "{}", bench.name);
            if let Against::Script(other) = bench.against {
                assert!(folder.join(format!("{other}.sql")).exists(), "{other}");
            }
        }
    }
}
