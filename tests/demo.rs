//! The demo as a user starts it: small, fast, to its end.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output};

fn demo(out: &Path, flags: &[&str]) -> Output {
    let weir = env!("CARGO_BIN_EXE_weir");
    let command = ["demo", "smart-grid", "--out"];
    Command::new(weir).args(command).arg(out).args(flags).output().unwrap()
}

/// What the outcome says of a counter and of its truth.
fn counted(said: &str, what: &str) -> (u64, u64) {
    let (before, after) = said.split_once(what).unwrap();
    let number = |text: &str| text.split_whitespace().collect::<String>().parse::<u64>().unwrap();
    let ours = before.rsplit(|c: char| !c.is_ascii_digit() && c != ' ').next().unwrap();
    let truth = after.split(')').next().unwrap();
    (number(ours), number(truth))
}

#[test]
fn a_small_grid_is_shown_and_judged() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("grid");
    let flags = ["--meters", "300", "--minutes", "60", "--speed", "600", "--seed", "5", "-q"];
    let ended = demo(&out, &flags);
    let said = String::from_utf8(ended.stdout).unwrap();
    assert!(ended.status.success(), "{said}{}", String::from_utf8_lossy(&ended.stderr));
    let (late, late_truth) = counted(&said, "rows were late (truth: ");
    let (bad, bad_truth) = counted(&said, "were bad (truth: ");
    assert!(late > 0 && late == late_truth, "{said}");
    assert!(bad > 0 && bad == bad_truth, "{said}");
    assert!(said.contains("hardened rule: "), "{said}");
    assert!(out.join("smart-grid.sql").exists());
    let again = demo(&out, &flags);
    assert_eq!(again.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is not empty"));
}
