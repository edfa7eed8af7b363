//! Cases that come from outside, beside the repository: conformance and errors, under a ratchet.
//!
//! # The ratchet
//! `xtask/ratchet/*.txt` lists the cases that must pass; `--bless` adds those that do so now, and
//! never takes one out. A case that is not listed must fail in the right way:
//! - conformance: it is refused at submission (error at a place in the script, nothing written).
//!   Wrong rows, a crash or a hang are failures, listed or not.
//! - errors: it is refused, without a crash and in time; only the words may still be wrong.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::args::Args;
use crate::{places, process, services};

const JOBS: &str = "2";
const TIME_LIMIT_S: &str = "60";

/// How many cases passed, and which did not and why.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) passed: usize,
    pub(crate) failures: Vec<String>,
}

impl Tally {
    pub(crate) fn pass(&mut self) {
        self.passed += 1;
    }

    pub(crate) fn fail(&mut self, text: impl Into<String>) {
        let text = text.into();
        println!("FAIL {text}");
        self.failures.push(text);
    }

    pub(crate) fn add(&mut self, other: Tally) {
        self.passed += other.passed;
        self.failures.extend(other.failures);
    }

    /// An error if anything failed.
    pub(crate) fn verdict(&self) -> Result<()> {
        println!("{} passed, {} failed", self.passed, self.failures.len());
        match self.failures.len() {
            0 => Ok(()),
            failed => bail!("{failed} failed"),
        }
    }
}

/// What both commands can be told.
struct Asked {
    weir: PathBuf,
    filter: String,
    bless: bool,
}

impl Asked {
    fn new(mut args: Args) -> Result<Asked> {
        let asked = Asked {
            weir: places::weir(args.option("--weir")?)?,
            filter: args.option("--filter")?.unwrap_or_default(),
            bless: args.flag("--bless"),
        };
        args.finish()?;
        services::install(&[])?;
        Ok(asked)
    }
}

/// `cargo xtask conformance`
pub(crate) fn conformance_command(args: Args) -> Result<()> {
    let asked = Asked::new(args)?;
    conformance(&asked.weir, &asked.filter, asked.bless)?.verdict()
}

/// `cargo xtask errors`
pub(crate) fn errors_command(args: Args) -> Result<()> {
    let asked = Asked::new(args)?;
    errors(&asked.weir, &asked.filter, asked.bless)?.verdict()
}

/// Runs the conformance corpus.
pub(crate) fn conformance(weir: &Path, filter: &str, bless: bool) -> Result<Tally> {
    #[derive(Deserialize)]
    struct Case {
        id: String,
        status: String,
        message: String,
    }
    let out = tempfile::tempdir()?;
    unpack(filter, out.path())?;
    // The engine's exit code, which the report doesn't hold, is kept beside the case's output.
    let engine = format!("{} run {{script}}; c=$?; echo $c > {{dir}}/code; exit $c", quoted(weir));
    let mut check = check_py("conformance", &engine, filter, out.path())?;
    check.args(["-q", "--timeout", TIME_LIMIT_S, "--out"]).arg(out.path().join("cases"));
    let cases: Vec<Case> = report(&mut check, out.path())?;

    let ratchet = Ratchet::load("conformance")?;
    let (mut tally, mut passing) = (Tally::default(), BTreeSet::new());
    let asked = cases.len();
    for Case { id, status, message } in cases {
        if status == "PASS" {
            passing.insert(id);
            tally.pass();
        } else if ratchet.listed.contains(&id) {
            tally.fail(format!("conformance {id}: {status}: {message}"));
        } else if status != "ERROR" {
            tally.fail(format!("conformance {id}: {status}, not refused: {message}"));
        } else {
            match refusal(&out.path().join("cases").join(&id)) {
                Ok(()) => tally.pass(),
                Err(problem) => tally.fail(format!("conformance {id}: {problem}: {message}")),
            }
        }
    }
    println!("conformance: {} of {asked} answered rightly", passing.len());
    ratchet.turn(&passing, bless)?;
    Ok(tally)
}

/// Lets check.py unpack the data sets that cases share, one by one: two cases that unpack the same
/// set at once would take each other's draft away.
fn unpack(filter: &str, out: &Path) -> Result<()> {
    let sets = fs::read_dir(places::shared_or_fail()?.join("conformance/_data"))?;
    let unpacked = std::env::temp_dir().join("conformance_shared");
    let missing = |set: fs::DirEntry| !unpacked.join(set.file_name()).join(".done").exists();
    if sets.flatten().any(missing) {
        let mut check = check_py("conformance", "false", filter, out)?;
        check.args(["-j", "1", "--out"]).arg(out.join("unpack"));
        process::capture(&mut check)?;
    }
    Ok(())
}

/// Whether a case was refused as it should be: at submission, naming the clause.
fn refusal(case: &Path) -> Result<()> {
    let text = |name: &str| fs::read_to_string(case.join(name)).unwrap_or_default();
    let code: i32 = text("code").trim().parse().context("no exit code")?;
    if code == 0 || code == 101 || code >= 126 {
        bail!("exit code {code}");
    }
    let said = text("stderr");
    if said.contains("panicked") {
        bail!("panicked");
    }
    if !names_place(&said) {
        bail!("the refusal names no place in the script");
    }
    if case.join("result.jsonl").exists() {
        bail!("refused, but something was written");
    }
    Ok(())
}

/// Whether a text holds `script.sql:LINE:COLUMN`.
fn names_place(text: &str) -> bool {
    text.match_indices("script.sql:").any(|(at, found)| {
        let mut numbers = text[at + found.len()..].splitn(3, ':');
        let number = |part: Option<&str>| {
            part.is_some_and(|part| part.starts_with(|c: char| c.is_ascii_digit()))
        };
        let line = numbers.next();
        number(line) && line.is_some_and(|l| l.parse::<u32>().is_ok()) && number(numbers.next())
    })
}

/// Runs the scripts that must be refused.
pub(crate) fn errors(weir: &Path, filter: &str, bless: bool) -> Result<Tally> {
    #[derive(Deserialize)]
    struct Case {
        id: String,
        passed: bool,
        problems: Vec<String>,
    }
    /// What no case may do, however little of its clause is built.
    const NEVER: [&str; 6] =
        ["exit code", "says 'panicked'", "backtrace", "time limit", "print /", "wrote output"];
    let out = tempfile::tempdir()?;
    let engine = format!("{} run {{script}}", quoted(weir));
    let cases: Vec<Case> =
        report(&mut check_py("errors", &engine, filter, out.path())?, out.path())?;

    let ratchet = Ratchet::load("errors")?;
    let (mut tally, mut passing, mut waiting) = (Tally::default(), BTreeSet::new(), 0);
    for Case { id, passed, problems } in cases {
        let unbearable = problems.iter().find(|p| NEVER.iter().any(|never| p.contains(never)));
        if passed {
            passing.insert(id);
            tally.pass();
        } else if ratchet.listed.contains(&id) {
            tally.fail(format!("errors {id}: {}", problems.join("; ")));
        } else if let Some(problem) = unbearable {
            tally.fail(format!("errors {id}: {problem}"));
        } else {
            waiting += 1;
        }
    }
    if waiting > 0 {
        println!("errors: {waiting} cases are refused in other words than asked for (not listed)");
    }
    println!("errors: {} refused as asked for", passing.len());
    ratchet.turn(&passing, bless)?;
    Ok(tally)
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display())
}

fn check_py(suite: &str, engine: &str, filter: &str, out: &Path) -> Result<Command> {
    let mut check = Command::new(places::python());
    check.arg(places::shared_or_fail()?.join(suite).join("check.py"));
    check.args(["--engine", engine, "-j", JOBS, "--json"]).arg(out.join("report.json"));
    if !filter.is_empty() {
        check.args(["--filter", filter]);
    }
    Ok(check)
}

/// Runs a check and reads its report; that cases failed is for us to judge.
fn report<T: serde::de::DeserializeOwned>(check: &mut Command, out: &Path) -> Result<Vec<T>> {
    println!("running {}", process::shown(check));
    let done = process::capture(check)?;
    let Ok(text) = fs::read_to_string(out.join("report.json")) else {
        bail!("no report\n{}{}", done.stdout, done.stderr);
    };
    Ok(serde_json::from_str(&text)?)
}

/// The list of cases that must pass.
struct Ratchet {
    file: PathBuf,
    listed: BTreeSet<String>,
}

impl Ratchet {
    fn load(suite: &str) -> Result<Ratchet> {
        let file = places::root().join("xtask/ratchet").join(format!("{suite}.txt"));
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
        Ok(Ratchet { listed: lines.map(str::to_owned).collect(), file })
    }

    /// Names what passes beyond the list, or adds it.
    fn turn(&self, passing: &BTreeSet<String>, bless: bool) -> Result<()> {
        let new: Vec<&String> = passing.difference(&self.listed).collect();
        if new.is_empty() {
            return Ok(());
        }
        if !bless {
            println!("{} cases pass beyond {} (--bless adds them)", new.len(), self.file.display());
            return Ok(());
        }
        let before = fs::read_to_string(&self.file)?;
        let mut text = String::new();
        for comment in before.lines().filter(|line| line.starts_with('#')) {
            writeln!(text, "{comment}")?;
        }
        for id in self.listed.union(passing) {
            writeln!(text, "{id}")?;
        }
        fs::write(&self.file, text)?;
        println!("{} cases added to {}", new.len(), self.file.display());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_a_place() {
        assert!(names_place("error: no\n --> /tmp/x/script.sql:7:8\n"));
        for bad in ["", "script.sql", "script.sql:7", "script.sql:x:8", "script.sql: 7:8"] {
            assert!(!names_place(bad), "{bad}");
        }
    }

    #[test]
    fn refusals_are_judged() -> Result<()> {
        let case = tempfile::tempdir()?;
        let put = |name: &str, text: &str| fs::write(case.path().join(name), text);
        put("code", "2\n")?;
        put("stderr", "error: `x` is not built\n --> script.sql:1:2\n")?;
        assert!(refusal(case.path()).is_ok());
        put("code", "101\n")?;
        assert!(refusal(case.path()).is_err());
        put("code", "2\n")?;
        put("stderr", "error: no\n")?;
        assert!(refusal(case.path()).is_err());
        put("stderr", "thread panicked at script.sql:1:2\n")?;
        assert!(refusal(case.path()).is_err());
        put("stderr", "script.sql:1:2\n")?;
        put("result.jsonl", "")?;
        assert!(refusal(case.path()).is_err());
        Ok(())
    }
}
