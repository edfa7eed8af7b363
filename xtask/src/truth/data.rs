//! Generated meter readings with their answers, made by ../shared/truth.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Route;
use crate::args::Args;
use crate::{places, process};

/// What the generator is asked for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Asked {
    pub(crate) seed: u64,
    pub(crate) meters: u32,
    pub(crate) minutes: u32,
    pub(crate) warmup_minutes: u32,
    /// Further options of gen.py, as they stand.
    pub(crate) options: Vec<String>,
}

impl Asked {
    /// The size of the full set, under a seed.
    pub(crate) fn full(seed: u64) -> Asked {
        Asked { seed, meters: 2000, minutes: 60, warmup_minutes: 75, options: Vec::new() }
    }

    /// Takes what is given on the command line; the rest is the full set.
    pub(crate) fn from_args(args: &mut Args, seed: u64) -> Result<Asked> {
        let full = Asked::full(seed);
        let mut options = Vec::new();
        if args.flag("--edges") {
            options.push("--edges".to_owned());
        }
        for name in ["--faults", "--late-max"] {
            if let Some(value) = args.option::<f64>(name)? {
                options.extend([name.to_owned(), value.to_string()]);
            }
        }
        Ok(Asked {
            seed: args.option("--seed")?.unwrap_or(full.seed),
            meters: args.option("--meters")?.unwrap_or(full.meters),
            minutes: args.option("--minutes")?.unwrap_or(full.minutes),
            warmup_minutes: args.option("--warmup")?.unwrap_or(full.warmup_minutes),
            options,
        })
    }

    pub(crate) fn with(mut self, options: &[&str]) -> Asked {
        self.options.extend(options.iter().map(|option| (*option).to_owned()));
        self
    }

    /// A reader without the recorded arrival cannot guard against rows from the future.
    pub(crate) fn for_route(self, route: Route) -> Asked {
        match route {
            Route::Files | Route::MqttS3 => self.with(&["--no-future"]),
            Route::Columns | Route::KafkaPostgres => self,
        }
    }
}

/// A folder that gen.py and expect.py have filled.
pub(crate) struct Data {
    pub(crate) folder: PathBuf,
    /// Only the lines: `part-K.jsonl`.
    pub(crate) lines: PathBuf,
    pub(crate) messages: u64,
    /// Messages that can be parsed.
    pub(crate) readings: u64,
    /// Messages that were damaged.
    pub(crate) bad: u64,
    /// Readings that were stamped far ahead of their time.
    pub(crate) future: u64,
    summary: Summary,
}

#[derive(Deserialize)]
struct Summary {
    rows: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
struct Manifest {
    counts: Counts,
}

#[derive(Deserialize)]
struct Counts {
    messages: u64,
    readings: u64,
    bad: BTreeMap<String, u64>,
}

impl Data {
    /// Generates into a new folder.
    pub(crate) fn generate(asked: &Asked, folder: &Path) -> Result<Data> {
        let mut gen_py = tool("gen.py")?;
        gen_py.args(["--seed", &asked.seed.to_string(), "--meters", &asked.meters.to_string()]);
        gen_py.args(["--minutes", &asked.minutes.to_string()]);
        gen_py.args(["--warmup", &asked.warmup_minutes.to_string()]);
        process::quietly(gen_py.args(&asked.options).arg("--out").arg(folder))?;
        process::quietly(tool("expect.py")?.arg(folder))?;
        let lines = folder.join("lines");
        fs::create_dir_all(&lines)?;
        for entry in fs::read_dir(folder.join("arrivals"))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                fs::hard_link(&path, lines.join(path.file_name().context("a file name")?))?;
            }
        }
        let manifest: Manifest = read_json(&folder.join("manifest.json"))?;
        let future = process::quietly(own_script("count_future.py").arg(folder))?;
        Ok(Data {
            folder: folder.to_owned(),
            lines,
            messages: manifest.counts.messages,
            readings: manifest.counts.readings,
            bad: manifest.counts.bad.values().sum(),
            future: future.trim().parse()?,
            summary: read_json(&folder.join("expected/summary.json"))?,
        })
    }

    #[cfg(test)]
    pub(crate) fn for_tests(readings: u64, bad: u64, future: u64, kind: (&str, u64)) -> Data {
        Data {
            folder: PathBuf::new(),
            lines: PathBuf::new(),
            messages: readings + bad,
            readings,
            bad,
            future,
            summary: Summary { rows: [(kind.0.to_owned(), kind.1)].into() },
        }
    }

    /// How many rows of a kind are expected; `None` for kinds that expect.py doesn't know.
    pub(crate) fn expected(&self, kind: &str) -> Option<u64> {
        self.summary.rows.get(kind).copied()
    }

    /// Publishes everything to a broker and waits until it has it.
    pub(crate) fn publish(&self, broker: &str, address: &str, topic: &str) -> Result<()> {
        let mut publish = tool("publish.py")?;
        publish.arg(&self.folder).args([broker, "--to", address, "--topic", topic]);
        process::quietly(&mut publish).map(|_| ())
    }
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// A script of ours, beside this crate.
pub(crate) fn own_script(name: &str) -> Command {
    let mut command = Command::new(places::python());
    command.arg(places::root().join("xtask/python").join(name));
    command
}

/// A tool of ../shared/truth; that folder is read-only, so nothing is compiled into it.
pub(crate) fn tool(name: &str) -> Result<Command> {
    let mut command = Command::new(places::python());
    command.env("PYTHONDONTWRITEBYTECODE", "1");
    command.arg(places::shared_or_fail()?.join("truth").join(name));
    Ok(command)
}
