//! The shared corpora, where they are at hand: places of errors, and what of the conformance cases
//! is planned.

use std::path::{Path, PathBuf};

use super::connectors;
use crate::plan_script;

fn shared(part: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared").join(part);
    path.exists().then_some(path)
}

fn places(case: &serde_json::Value) -> Vec<String> {
    let place = |line: &serde_json::Value, column: &serde_json::Value| format!(":{line}:{column}");
    let mut out = vec![place(&case["line"], &case["column"])];
    for also in case["also_at"].as_array().into_iter().flatten() {
        out.push(place(&also[0], &also[1]));
    }
    out
}

/// What a message says, without quoted lines and places.
fn said(message: &str) -> String {
    let quoted = |l: &&str| l.contains("--> ") || l.trim_start().contains('|') && !l.contains('^');
    message.lines().filter(|l| !quoted(l)).collect::<Vec<_>>().join("\n")
}

fn missing(case: &serde_json::Value, message: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let at = |p: &String| message.lines().any(|l| l.contains("--> ") && l.ends_with(p.as_str()));
    if !places(case).iter().any(at) {
        wrong.push(format!("place {}", places(case)[0]));
    }
    for pattern in case["mention"].as_array().into_iter().flatten() {
        // The look-behinds of the corpus are word boundaries; this engine has no look-around.
        let simple = pattern.as_str().unwrap_or_default();
        let simple = ["(?<!\\w)", "(?!\\w)", "(?<![\\w-])", "(?![\\w-])", "(?!\\d)", "(?<!\\d)"]
            .iter()
            .fold(simple.to_owned(), |s, look| s.replace(look, "\\b"));
        let found = regex::Regex::new(&format!("(?i){simple}")).unwrap().is_match(&said(message));
        if !found {
            wrong.push(format!("mention {pattern}"));
        }
    }
    wrong
}

#[test]
fn errors_of_the_corpus_have_their_places() {
    let Some(folder) = shared("errors") else { return };
    let mut checked = 0;
    let cases = std::fs::read_to_string(folder.join("cases.jsonl")).unwrap();
    let mut wrong = Vec::new();
    for line in cases.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let id = case["id"].as_str().unwrap();
        checked += 1;
        let text = std::fs::read_to_string(folder.join(format!("scripts/{id}.sql"))).unwrap();
        let planned = plan_script("script.sql", &text, &connectors());
        if case["phase"] == "run" {
            if let Err(error) = planned {
                wrong.push(format!("{id}: refused: {error}"));
            }
            continue;
        }
        let Err(error) = planned else {
            wrong.push(format!("{id}: accepted"));
            continue;
        };
        let message = error.to_string();
        let mut faults = missing(&case, &message);
        if case["second"].is_object() {
            faults.extend(missing(&case["second"], &message));
        }
        if !faults.is_empty() {
            wrong.push(format!("{id}: {}\n{message}", faults.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked >= 36, "only {checked} cases");
}

/// Why a conformance case may be refused: what SQL here does not have yet.
const NOT_YET: [&str; 5] = [
    "unknown format 'debezium-json'",
    "OVER` is not supported yet",
    "JOIN without FOR SYSTEM_TIME AS OF is not supported yet",
    "is a semi join, which is not supported yet",
    "a subquery as a value is not supported",
];

#[test]
fn conformance_cases_are_planned_or_refused() {
    let Some(folder) = shared("conformance") else { return };
    let index = std::fs::read_to_string(folder.join("index.jsonl")).unwrap();
    let (mut planned, mut report) = (0, String::new());
    for line in index.lines() {
        let case: serde_json::Value = serde_json::from_str(line).unwrap();
        let id = case["id"].as_str().unwrap();
        let text = std::fs::read_to_string(folder.join(id).join("script.sql")).unwrap();
        match plan_script(id, &text, &connectors()) {
            Ok(_) => {
                planned += 1;
                report.push_str(&format!("ok      {id}\n"));
            }
            Err(error) => {
                assert!(error.errors.iter().all(|e| e.span.line > 0));
                let first = error.errors.first().map(|e| e.message.clone()).unwrap_or_default();
                let known = NOT_YET.iter().any(|reason| first.contains(reason));
                assert!(known, "{id} is refused: {first}");
                report.push_str(&format!("refused {id}: {first}\n"));
            }
        }
    }
    println!("{report}");
    assert!(planned >= 30, "only {planned} cases are planned\n{report}");
}
