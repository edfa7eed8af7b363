//! Compares results with the truth, kind by kind, with ../shared/truth/check.py.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::data::{Data, own_script, tool};
use super::{Job, Route};
use crate::process;

/// Where the rows of one run are.
pub(crate) enum Results {
    /// Below `FOLDER/TABLE/`.
    Folder(PathBuf),
    /// In tables `PREFIX_TABLE`.
    Postgres { url: String, prefix: String },
    /// In topics `PREFIX_TABLE`, as JSON.
    Kafka { broker: String, prefix: String },
}

/// What became of one kind.
pub(crate) struct Verdict {
    pub(crate) kind: &'static str,
    pub(crate) equal: bool,
    /// Counts, or why they could not be had; with the first rows that differ.
    pub(crate) text: String,
}

/// Compares every kind of a job; `work` is for what must be written on the way.
pub(crate) fn judge<'a>(
    data: &'a Data,
    job: &'a Job,
    route: Route,
    results: &'a Results,
    work: &'a Path,
) -> impl Iterator<Item = Verdict> + 'a {
    let kinds = job.kinds.iter().copied();
    let kinds = kinds.filter(move |kind| *kind != "bad" || route.has_bad_rows());
    kinds.map(move |kind| {
        // What cannot be read or compared is a verdict too, not the end of all checks.
        let (equal, text) = compare(data, kind, route, results, work)
            .unwrap_or_else(|error| (false, format!("{error:#}")));
        Verdict { kind, equal, text }
    })
}

fn compare(
    data: &Data,
    kind: &'static str,
    route: Route,
    results: &Results,
    work: &Path,
) -> Result<(bool, String)> {
    fs::create_dir_all(work)?;
    let mut files = match results {
        Results::Folder(folder) => files_below(&folder.join(kind)),
        Results::Postgres { url, prefix } => vec![export(url, prefix, kind, work)?],
        Results::Kafka { broker, prefix } => vec![consume(broker, prefix, kind, work)?],
    };
    if kind == "bad" || kind.starts_with("late") {
        let numbered = work.join(format!("{kind}.numbered.jsonl"));
        let mut number = own_script("number_splits.py");
        process::quietly(number.arg(&numbered).args(&files))?;
        files = vec![numbered];
    }
    let mut check = if kind == "bad" {
        let mut check = own_script("check_bad.py");
        check.arg(&data.folder);
        check
    } else {
        let mut check = tool("check.py")?;
        check.arg(&data.folder).args(["--kind", kind]);
        // These are known to be late as soon as they come: all of them must be there.
        let at_once = ["late", "late_region1m"].contains(&kind);
        if route.is_live() && !at_once {
            check.args(["--through", "watermark"]);
        }
        // Few sessions end within the data, and fewer before the last watermark.
        let rare = route.is_live() && kind.ends_with("sessions");
        if data.expected(kind) == Some(0) || rare {
            check.arg("--allow-empty");
        }
        check
    };
    if files.is_empty() {
        let none = work.join("none.jsonl");
        fs::write(&none, "")?;
        files.push(none);
    }
    let done = process::capture(check.args(&files))?;
    let said = if done.status.code() == Some(2) { done.stderr } else { done.stdout };
    Ok((done.status.success(), said.trim_end().to_owned()))
}

/// Files of rows below a folder, or the file itself. Names that begin with a dot are drafts; the
/// folder `_weir` holds marks of the sink.
pub(crate) fn files_below(path: &Path) -> Vec<PathBuf> {
    let is_of_rows = |name: &OsStr| !name.as_encoded_bytes().starts_with(b".") && name != "_weir";
    if !path.file_name().is_some_and(is_of_rows) {
        return Vec::new();
    }
    if path.is_file() {
        return vec![path.to_owned()];
    }
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.flatten().flat_map(|e| files_below(&e.path())).collect();
    files.sort();
    files
}

/// A table of PostgreSQL as CSV, with times in UTC.
fn export(url: &str, prefix: &str, kind: &str, work: &Path) -> Result<PathBuf> {
    let path = work.join(format!("{kind}.csv"));
    let mut psql = Command::new("psql");
    psql.arg(url).args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c"]).env("PGTZ", "UTC");
    psql.arg(format!("COPY (SELECT * FROM \"{prefix}_{kind}\") TO STDOUT (FORMAT csv, HEADER)"));
    let rows = process::quietly(&mut psql).with_context(|| format!("reading {prefix}_{kind}"))?;
    fs::write(&path, rows)?;
    Ok(path)
}

/// What is committed of a topic, as JSON lines.
fn consume(broker: &str, prefix: &str, kind: &str, work: &Path) -> Result<PathBuf> {
    let path = work.join(format!("{kind}.jsonl"));
    let mut read = own_script("kafka_rows.py");
    process::quietly(read.args([broker, &format!("{prefix}_{kind}")]).arg(&path))?;
    Ok(path)
}
