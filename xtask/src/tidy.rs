//! `cargo xtask tidy`: proves the arrows of the floor plan and the manners of the house.
//!
//! The rules are text searches over blanked source (`tidy/lexer.rs`) and over `cargo metadata`;
//! each has a test that feeds it bad text. `// tidy: allow <rule>: reason` justifies an exception.

use std::fs;
use std::process::Command;

use anyhow::{Result, bail};

use crate::args::Args;
use crate::{places, process};

mod arrows;
mod lexer;
mod manners;

/// Starts of absolute paths that name somebody's machine.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("/ho", "me/")];

/// Something that breaks a rule. Line 0 stands for no line: a crate or the lock file.
pub(crate) struct Finding {
    path: String,
    line: usize,
    rule: &'static str,
    text: String,
}

/// `cargo xtask tidy`
pub(crate) fn command(args: Args) -> Result<()> {
    args.finish()?;
    let found = all()?;
    for Finding { path, line, rule, text } in &found {
        match line {
            0 => println!("{path}: {rule}: {text}"),
            _ => println!("{path}:{line}: {rule}: {text}"),
        }
    }
    if !found.is_empty() {
        bail!("tidy: {} findings", found.len());
    }
    println!("tidy: all good");
    Ok(())
}

fn all() -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for path in tracked()? {
        // Files that are gone, folders and what is not text have no manners.
        let Ok(text) = fs::read_to_string(places::root().join(&path)) else { continue };
        found.extend(machine_paths(&path, &text));
        if path.ends_with(".rs") {
            found.extend(manners::check(&manners::File::new(&path, &text)));
        }
    }
    let mut cargo = process::cargo();
    cargo.args(["metadata", "--format-version", "1", "--filter-platform"]);
    cargo.arg("x86_64-unknown-linux-gnu").current_dir(places::root());
    found.extend(arrows::check(&arrows::Metadata::parse(&process::quietly(&mut cargo)?)?));
    found.extend(arrows::check_lock(&fs::read_to_string(places::root().join("Cargo.lock"))?));
    Ok(found)
}

/// Every file that is, or would be, committed.
fn tracked() -> Result<Vec<String>> {
    let mut git = Command::new("git");
    git.args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listed = process::quietly(git.current_dir(places::root()))?;
    Ok(listed.lines().map(str::to_owned).collect())
}

fn machine_paths(path: &str, text: &str) -> Vec<Finding> {
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let named = |line: &String| MACHINE_PATHS.into_iter().find(|place| names_place(line, place));
    let found = lines.iter().enumerate().filter_map(|(n, line)| {
        let text = format!("`{}` is a place on one machine only", named(line)?);
        Some(Finding { path: path.to_owned(), line: n + 1, rule: "paths", text })
    });
    found.filter(|finding| !manners::allowed(&lines, finding)).collect()
}

/// Whether a path begins here: not in the middle of another path or of a URL.
fn names_place(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/}*".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_paths_are_found() {
        let line = |start: &str, place: &str| format!("a\n{start}{place}x\n");
        for place in MACHINE_PATHS {
            for start in ["", "\"", "cd ", "--dir="] {
                assert_eq!(machine_paths("a.md", &line(start, place)).len(), 1, "{start}{place}");
            }
            assert!(machine_paths("a.md", &line("target", place)).is_empty());
            let allowed = format!("# tidy: allow paths: an example\n{place}\n");
            assert!(machine_paths("a.md", &allowed).is_empty());
        }
    }
}
