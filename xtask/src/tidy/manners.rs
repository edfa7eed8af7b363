//! The manners of STYLE.md, one function a rule. Each looks at one file and says what it found.
//!
//! `// tidy: allow <rule>: reason`, on the line or on the one before, is a justified exception; for
//! rules about a whole file it may stand anywhere in it. Without a reason it is none.

use super::Finding;
use super::lexer::{Source, block_end};

const FILE_LINES_MAX: usize = 800;
const COLUMNS_MAX: usize = 100;
const FUNCTION_LINES_MAX: usize = 70;
const FOLDERS_BELOW_SRC_MAX: usize = 2;
const BAD_WORDS: [&str; 9] =
    ["util", "utils", "helper", "helpers", "common", "manager", "managers", "new", "misc"];
/// Folders whose code may look at clocks and dice.
const MAY_READ_CLOCKS: [&str; 7] =
    ["engine/src/clock.rs", "sources/", "sinks/", "connect/", "src/", "xtask/", "scenarios/"];
const CLOCKS: [&str; 4] = ["SystemTime::now", "Instant::now", "thread_rng", "rand::"];
/// Folders whose code must not touch sockets and files.
const MUST_BE_PURE: [&str; 2] = ["operators/src/", "queries/src/"];

/// A Rust file under its path from the root of the repository.
pub(super) struct File<'a> {
    pub(super) path: &'a str,
    pub(super) source: Source,
}

impl<'a> File<'a> {
    pub(super) fn new(path: &'a str, text: &str) -> Self {
        File { path, source: Source::new(text) }
    }

    /// Whether the file as a whole is a test or a bench.
    fn is_test(&self) -> bool {
        let parts: Vec<&str> = self.path.split('/').collect();
        parts.iter().any(|part| ["tests", "benches", "tests.rs"].contains(part))
    }

    fn finding(&self, rule: &'static str, line: usize, text: impl Into<String>) -> Finding {
        Finding { path: self.path.to_owned(), line: line + 1, rule, text: text.into() }
    }

    /// Lines of code outside tests, with their numbers.
    fn own_code(&self) -> impl Iterator<Item = (usize, &str)> {
        let (source, all_tests) = (&self.source, self.is_test());
        let lines = source.code.iter().zip(&source.in_test).enumerate();
        lines.filter(move |(_, (_, test))| !**test && !all_tests).map(|(n, (code, _))| (n, &**code))
    }
}

/// All that is wrong with a file, without what it justifies.
pub(super) fn check(file: &File) -> Vec<Finding> {
    let rules = [names, first_line, lengths, functions, unwraps, clocks, purity, emptiness];
    let found = rules.iter().flat_map(|rule| rule(file));
    found.filter(|finding| !allowed(&file.source.lines, finding)).collect()
}

/// Whether the source justifies a finding.
pub(super) fn allowed(lines: &[String], finding: &Finding) -> bool {
    let mark = format!("tidy: allow {}: ", finding.rule);
    let justifies =
        |line: &String| line.split_once(&mark).is_some_and(|(_, reason)| !reason.trim().is_empty());
    if ["file-lines", "file-name", "first-line"].contains(&finding.rule) {
        return lines.iter().any(justifies);
    }
    let at = finding.line - 1;
    lines.iter().take(at + 1).skip(at.saturating_sub(1)).any(justifies)
}

fn names(file: &File) -> Vec<Finding> {
    let parts: Vec<&str> = file.path.split('/').collect();
    let mut found = Vec::new();
    let name = parts.last().copied().unwrap_or_default();
    if name == "mod.rs" {
        found.push(file.finding("file-name", 0, "foo.rs beside foo/, no mod.rs"));
    }
    let stem = name.trim_end_matches(".rs");
    for word in stem.split(['_', '-']) {
        let version = word.strip_prefix('v').is_some_and(|n| n.parse::<u32>().is_ok());
        if BAD_WORDS.contains(&word) || version {
            found.push(file.finding(
                "file-name",
                0,
                format!("`{word}` says nothing of the domain"),
            ));
        }
    }
    if let Some(src) = parts.iter().position(|part| *part == "src")
        && parts.len() - src - 2 > FOLDERS_BELOW_SRC_MAX
    {
        found.push(file.finding("file-name", 0, "more than two folders below src/"));
    }
    found
}

fn first_line(file: &File) -> Vec<Finding> {
    let first = file.source.lines.first().map_or("", |line| line.trim_end());
    if first.starts_with("//! ") && !first["//! ".len()..].starts_with("placeholder") {
        return Vec::new();
    }
    vec![file.finding("first-line", 0, "the first line must say what the file is: `//! …`")]
}

fn lengths(file: &File) -> Vec<Finding> {
    let lines = &file.source.lines;
    let mut found = Vec::new();
    if lines.len() > FILE_LINES_MAX {
        let text = format!("{} lines, at most {FILE_LINES_MAX}", lines.len());
        found.push(file.finding("file-lines", FILE_LINES_MAX, text));
    }
    for (number, line) in lines.iter().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX && !file.source.in_string[number] {
            let text = format!("{columns} columns, at most {COLUMNS_MAX}");
            found.push(file.finding("columns", number, text));
        }
    }
    found
}

fn functions(file: &File) -> Vec<Finding> {
    let code = &file.source.code;
    let mut found = Vec::new();
    for (number, line) in code.iter().enumerate() {
        let Some((column, name)) = function(line) else { continue };
        let last = block_end(code, number, column).unwrap_or(code.len() - 1);
        let length = last + 1 - number;
        if length > FUNCTION_LINES_MAX {
            let text = format!("`{name}` has {length} lines, at most {FUNCTION_LINES_MAX}");
            found.push(file.finding("function-lines", number, text));
        }
    }
    found
}

/// The column after `fn` and the name, where a line defines a function. A function type (`fn(u8)`)
/// has no name.
fn function(line: &str) -> Option<(usize, String)> {
    let at = word_at(line, "fn")?;
    let rest = line[at + 2..].trim_start();
    let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then(|| (line[..at].chars().count() + 2, name))
}

/// Where a text stands in a line, not as a part of a longer word.
fn word_at(line: &str, text: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(text).map(|(at, _)| at).find(|&at| {
        let before = line[..at].chars().next_back();
        let after = line[at + text.len()..].chars().next();
        let goes_on = text.ends_with(is_word) && after.is_some_and(is_word);
        !before.is_some_and(is_word) && !goes_on
    })
}

fn unwraps(file: &File) -> Vec<Finding> {
    let bad = file.own_code().filter(|(_, line)| line.contains(".unwrap()"));
    bad.map(|(n, _)| file.finding("unwrap", n, "no unwrap on data: say what must hold")).collect()
}

fn clocks(file: &File) -> Vec<Finding> {
    if MAY_READ_CLOCKS.iter().any(|place| file.path.starts_with(place)) {
        return Vec::new();
    }
    let clock = |line: &str| CLOCKS.into_iter().find(|clock| word_at(line, clock).is_some());
    let bad = file.own_code().filter_map(|(n, line)| Some((n, clock(line)?)));
    bad.map(|(n, clock)| {
        file.finding("clock", n, format!("`{clock}`: only engine::clock and the edges read clocks"))
    })
    .collect()
}

fn purity(file: &File) -> Vec<Finding> {
    if !MUST_BE_PURE.iter().any(|place| file.path.starts_with(place)) {
        return Vec::new();
    }
    let impure = |line: &str| {
        let grouped = line.split_once("std::{").is_some_and(|(_, names)| {
            word_at(names, "fs").is_some() || word_at(names, "net").is_some()
        });
        let named =
            ["std::fs", "std::net", "tokio"].into_iter().find(|n| word_at(line, n).is_some());
        named.or(grouped.then_some("std::{fs, net}"))
    };
    let bad = file.own_code().filter_map(|(n, line)| Some((n, impure(line)?)));
    bad.map(|(n, name)| file.finding("purity", n, format!("`{name}`: no sockets or files here")))
        .collect()
}

/// The crate that holds features together is a list, not a floor of the house.
fn emptiness(file: &File) -> Vec<Finding> {
    let code = file.source.code.iter().position(|line| !line.trim().is_empty());
    let found = code.filter(|_| file.path.starts_with("features/"));
    found.into_iter().map(|n| file.finding("arrows", n, "this crate holds no code")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rules that a text breaks under a path.
    fn broken(path: &str, text: &str) -> Vec<&'static str> {
        check(&File::new(path, text)).into_iter().map(|finding| finding.rule).collect()
    }

    const GOOD: &str = "//! A file.\n\nfn f() {\n    g();\n}\n";

    #[test]
    fn a_good_file_is_clean() {
        assert!(broken("engine/src/rows.rs", GOOD).is_empty());
    }

    #[test]
    fn names_of_files() {
        for path in ["a/src/mod.rs", "a/src/json_utils.rs", "a/src/plan_v2.rs", "a/src/common.rs"] {
            assert_eq!(broken(path, GOOD), ["file-name"], "{path}");
        }
        assert_eq!(broken("a/src/b/c/d/e.rs", GOOD), ["file-name"]);
        assert!(broken("a/src/b/c/e.rs", GOOD).is_empty());
        assert!(broken("a/src/renewal.rs", GOOD).is_empty());
    }

    #[test]
    fn the_first_line_says_what_it_is() {
        assert_eq!(broken("a/src/b.rs", "fn f() {}\n"), ["first-line"]);
        assert_eq!(broken("a/src/b.rs", ""), ["first-line"]);
        assert_eq!(broken("a/src/b.rs", "//! placeholder\n"), ["first-line"]);
    }

    #[test]
    fn long_files_lines_and_functions() {
        let long_file = format!("//! A file.\n{}", "\n".repeat(FILE_LINES_MAX));
        assert_eq!(broken("a/src/b.rs", &long_file), ["file-lines"]);
        let wide = format!("//! A file.\n// {}\n", "ä".repeat(COLUMNS_MAX - 2));
        assert_eq!(broken("a/src/b.rs", &wide), ["columns"]);
        let narrow = format!("//! A file.\n// {}\n", "ä".repeat(COLUMNS_MAX - 3));
        assert!(broken("a/src/b.rs", &narrow).is_empty());
        let data = format!("//! A file.\nconst A: &str = r\"\n{}\n\";\n", "x".repeat(200));
        assert!(broken("a/src/b.rs", &data).is_empty());
        let body = |lines: usize| {
            format!("//! A file.\nfn f(\n) -> [u8; 3]\n{{\n{}}}\n", "    g(\"}\");\n".repeat(lines))
        };
        assert!(broken("a/src/b.rs", &body(FUNCTION_LINES_MAX - 4)).is_empty());
        assert_eq!(broken("a/src/b.rs", &body(FUNCTION_LINES_MAX - 3)), ["function-lines"]);
    }

    #[test]
    fn unwrap_only_in_tests() {
        let text = "//! A file.\nfn f() {\n    g().unwrap();\n}\n";
        assert_eq!(broken("a/src/b.rs", text), ["unwrap"]);
        assert!(broken("a/tests/b.rs", text).is_empty());
        assert!(broken("a/src/b/tests.rs", text).is_empty());
        let tested = "//! A file.\n#[cfg(test)]\nmod tests {\n    fn f() { g().unwrap(); }\n}\n";
        assert!(broken("a/src/b.rs", tested).is_empty());
        assert!(broken("a/src/b.rs", "//! A file.\n// g().unwrap()\n").is_empty());
    }

    #[test]
    fn clocks_only_at_the_edges() {
        for call in ["Instant::now()", "std::time::SystemTime::now()", "rand::random()"] {
            let text = format!("//! A file.\nfn f() {{ {call}; }}\n");
            assert_eq!(broken("operators/src/b.rs", &text), ["clock"], "{call}");
            assert!(broken("engine/src/clock.rs", &text).is_empty());
            assert!(broken("sinks/src/b.rs", &text).is_empty());
        }
        assert!(broken("engine/src/b.rs", "//! A file.\nuse operand::add;\n").is_empty());
    }

    #[test]
    fn operators_and_queries_are_pure() {
        for call in ["std::fs::read(p)", "tokio::spawn(f)", "use std::{fs, io};"] {
            let text = format!("//! A file.\nfn f() {{ {call} }}\n");
            assert_eq!(broken("queries/src/b.rs", &text), ["purity"], "{call}");
            assert!(broken("connect/src/b.rs", &text).is_empty());
        }
        assert!(broken("queries/src/b.rs", "//! A file.\nuse std::{fmt, io};\n").is_empty());
    }

    #[test]
    fn the_list_of_features_is_no_floor() {
        assert_eq!(broken("features/src/lib.rs", "//! A file.\n\npub fn f() {}\n"), ["arrows"]);
        assert!(broken("features/src/lib.rs", "//! A file.\n").is_empty());
    }

    #[test]
    fn an_exception_needs_its_rule_and_a_reason() {
        let with = |comment: &str| format!("//! A file.\n{comment}\nfn f() {{ g().unwrap(); }}\n");
        assert!(broken("a/src/b.rs", &with("// tidy: allow unwrap: checked above")).is_empty());
        assert_eq!(broken("a/src/b.rs", &with("// tidy: allow unwrap: ")), ["unwrap"]);
        assert_eq!(broken("a/src/b.rs", &with("// tidy: allow clock: because")), ["unwrap"]);
    }
}
