//! The demo as a user starts it: small, fast, to its end.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::helping::{WEIR, signal, until};

fn demo(out: &Path, flags: &[&str]) -> Output {
    let command = ["demo", "smart-grid", "--out"];
    Command::new(WEIR).args(command).arg(out).args(flags).output().unwrap()
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

/// All files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    paths.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

#[test]
fn ctrl_c_ends_it_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("grid");
    let (log, said) = (folder.path().join("log"), folder.path().join("said"));
    // At this speed it would take ten minutes.
    let flags = ["--meters", "200", "--minutes", "100", "--speed", "10", "-q"];
    let mut running = Command::new(WEIR)
        .args(["demo", "smart-grid", "--out"])
        .arg(&out)
        .args(flags)
        .stdout(std::fs::File::create(&said).unwrap())
        .stderr(std::fs::File::create(&log).unwrap())
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let unfinished = |path: &PathBuf| path.to_string_lossy().ends_with(".inprogress");
    until("rows in files", || {
        assert!(running.try_wait().unwrap().is_none(), "it has ended: {}", read(&log));
        // A sink's probe has an unfinished file too, before there is a row.
        let is_probe = |path: &&PathBuf| path.to_string_lossy().contains("weir-probe");
        files(&out).iter().filter(|path| !is_probe(path)).any(unfinished)
    });
    signal(running.id(), "-INT");
    let mut status = None;
    until(&format!("its end: {}", read(&log)), || {
        status = running.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(0), "{}", read(&log));
    assert!(read(&said).contains("hardened rule: "), "{}", read(&said));
    let files = files(&out);
    assert!(!files.iter().any(unfinished), "{files:?}");
    assert!(files.iter().any(|path| path.extension().is_some_and(|e| e == "parquet")), "{files:?}");
}
