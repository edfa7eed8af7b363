//! The floor plan (DESIGN.md, section 2) and the licences, judged on what `cargo metadata` says.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Deserialize;

use super::Finding;

/// No floor but a list of third-party features, without code: anyone may stand on it.
const FEATURES: &str = "weir-features";

/// Which of our crates a crate may name in `[dependencies]`.
const ARROWS: [(&str, &[&str]); 9] = [
    (FEATURES, &[]),
    ("weir-engine", &[]),
    ("weir-connect", &["weir-engine"]),
    ("weir-operators", &["weir-engine"]),
    ("weir-sources", &["weir-engine", "weir-connect"]),
    ("weir-sinks", &["weir-engine", "weir-connect"]),
    ("weir-queries", &["weir-engine", "weir-operators"]),
    (
        "weir",
        &[
            "weir-engine",
            "weir-connect",
            "weir-operators",
            "weir-sources",
            "weir-sinks",
            "weir-queries",
        ],
    ),
    ("xtask", &[]),
];

/// Names that only some of our crates may use, in any kind of dependency.
const RESERVED: [(&str, &[&str]); 4] = [
    ("datafusion", &["weir-queries"]),
    ("sqlparser", &["weir-queries"]),
    ("timely", &["weir-engine", "weir-operators"]),
    ("differential", &["weir-engine", "weir-operators"]),
];

/// Licences that must not get into the binary; `LGPL` is among what contains `GPL`.
const REFUSED_LICENCES: [&str; 4] = ["GPL", "BUSL", "SSPL", "PROPRIETARY"];

/// The part of `cargo metadata` that is looked at.
#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
    pub(super) workspace_members: Vec<String>,
}

#[derive(Deserialize)]
pub(super) struct Package {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) version: String,
    pub(super) license: Option<String>,
    pub(super) license_file: Option<String>,
    pub(super) dependencies: Vec<Dependency>,
}

#[derive(Deserialize)]
pub(super) struct Dependency {
    pub(super) name: String,
    /// `None` for `[dependencies]`, else `dev` or `build`.
    pub(super) kind: Option<String>,
}

impl Metadata {
    pub(super) fn parse(json: &str) -> Result<Metadata> {
        Ok(serde_json::from_str(json)?)
    }

    fn is_ours(&self, package: &Package) -> bool {
        self.workspace_members.contains(&package.id)
    }
}

/// Everything that breaks the floor plan or has a licence that we cannot take.
pub(super) fn check(metadata: &Metadata) -> Vec<Finding> {
    let mut found = Vec::new();
    for package in &metadata.packages {
        if metadata.is_ours(package) {
            found.extend(arrows(package));
            found.extend(reserved(package));
        } else {
            found.extend(licence(package));
        }
    }
    found
}

fn finding(package: &Package, rule: &'static str, text: String) -> Finding {
    Finding { path: package.name.clone(), line: 0, rule, text }
}

fn arrows(package: &Package) -> Vec<Finding> {
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == package.name) else {
        let text = "this crate has no floor in the plan".to_owned();
        return vec![finding(package, "arrows", text)];
    };
    let ours = |name: &str| ARROWS.iter().any(|(crate_name, _)| *crate_name == name);
    let named = package.dependencies.iter().filter(|d| d.kind.as_deref() != Some("dev"));
    let may = |name: &str| name == FEATURES || allowed.contains(&name);
    let bad = named.filter(|d| ours(&d.name) && !may(&d.name));
    bad.map(|d| finding(package, "arrows", format!("must not name `{}`", d.name))).collect()
}

fn reserved(package: &Package) -> Vec<Finding> {
    let mut found = Vec::new();
    for dependency in &package.dependencies {
        for (prefix, allowed) in RESERVED {
            if dependency.name.starts_with(prefix) && !allowed.contains(&package.name.as_str()) {
                let text = format!("only {} may name `{}`", allowed.join(", "), dependency.name);
                found.push(finding(package, "arrows", text));
            }
        }
    }
    found
}

/// An expression is fine if one of its alternatives names nothing that we refuse.
fn licence(package: &Package) -> Option<Finding> {
    let named = format!("{} {}", package.name, package.version);
    let Some(expression) = &package.license else {
        let problem = "names no licence (and no file with one)";
        let silent = package.license_file.is_none();
        return silent.then(|| finding(package, "licences", format!("{named} {problem}")));
    };
    let refused = |text: &str| REFUSED_LICENCES.iter().any(|bad| text.contains(bad));
    let upper = expression.to_uppercase().replace('/', " OR ");
    let acceptable = upper.split(" OR ").any(|alternative| !refused(alternative));
    (!acceptable).then(|| finding(package, "licences", format!("{named} is under {expression}")))
}

/// What `Cargo.lock` must hold only once: types of two versions would not fit together.
pub(super) fn check_lock(lock: &str) -> Vec<Finding> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        if let Some(text) = quoted(line, "name = ") {
            name = text;
        } else if let Some(version) = quoted(line, "version = ") {
            versions.entry(name).or_default().push(version);
        }
    }
    let single = ["arrow", "parquet", "object_store", "timely", "differential-dataflow"];
    let mut found = Vec::new();
    for name in single {
        if let Some(several) = versions.get(name)
            && several.len() > 1
        {
            let text = format!("`{name}` in versions {}", several.join(" and "));
            found.push(Finding { path: "Cargo.lock".to_owned(), line: 0, rule: "versions", text });
        }
    }
    found
}

fn quoted<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.strip_prefix(key)?.strip_prefix('"')?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(
        name: &str,
        licence: Option<&str>,
        dependencies: &[(&str, Option<&str>)],
    ) -> Package {
        let dependency = |&(name, kind): &(&str, Option<&str>)| Dependency {
            name: name.to_owned(),
            kind: kind.map(str::to_owned),
        };
        Package {
            id: name.to_owned(),
            name: name.to_owned(),
            version: "1.0.0".to_owned(),
            license: licence.map(str::to_owned),
            license_file: None,
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    fn problems(package: Package, ours: bool) -> usize {
        let workspace_members = if ours { vec![package.id.clone()] } else { Vec::new() };
        check(&Metadata { packages: vec![package], workspace_members }).len()
    }

    #[test]
    fn arrows_go_down() {
        let ours = |name, deps: &[(&str, Option<&str>)]| problems(package(name, None, deps), true);
        assert_eq!(ours("weir-sinks", &[("weir-engine", None), ("weir-connect", None)]), 0);
        assert_eq!(ours("weir-sinks", &[("weir-sources", None)]), 1);
        assert_eq!(ours("weir-engine", &[("weir-operators", None)]), 1);
        assert_eq!(ours("weir-engine", &[("weir-operators", Some("build"))]), 1);
        assert_eq!(ours("weir-engine", &[("weir-operators", Some("dev"))]), 0);
        assert_eq!(ours("weir-engine", &[("weir-features", None)]), 0);
        assert_eq!(ours("weir-features", &[("weir-engine", None)]), 1);
        assert_eq!(ours("weir-attic", &[]), 1);
    }

    #[test]
    fn names_that_belong_to_few() {
        let ours = |name, dep| problems(package(name, None, &[(dep, None)]), true);
        assert_eq!(ours("weir-queries", "datafusion-sql"), 0);
        assert_eq!(ours("weir-operators", "datafusion-common"), 1);
        assert_eq!(ours("weir", "sqlparser"), 1);
        assert_eq!(ours("weir", "timely"), 1);
        assert_eq!(ours("weir-sources", "differential-dataflow"), 1);
        assert_eq!(ours("weir-operators", "timely"), 0);
    }

    #[test]
    fn licences() {
        let licence = |text| problems(package("x", text, &[]), false);
        assert_eq!(licence(Some("MIT OR Apache-2.0")), 0);
        assert_eq!(licence(Some("Apache-2.0/GPL-2.0")), 0);
        assert_eq!(licence(Some("MIT OR Apache-2.0 OR LGPL-2.1-or-later")), 0);
        for bad in ["GPL-3.0-only", "AGPL-3.0", "MIT AND GPL-2.0", "BUSL-1.1"] {
            assert_eq!(licence(Some(bad)), 1, "{bad}");
        }
        assert_eq!(licence(None), 1);
    }

    #[test]
    fn one_version_of_what_is_shared() {
        let entry = |name: &str, version: &str| {
            format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n\n")
        };
        let one = entry("arrow", "59.3.0") + &entry("timely", "0.31.0") + &entry("rand", "0.8.0");
        assert!(check_lock(&(one.clone() + &entry("rand", "0.9.0"))).is_empty());
        assert_eq!(check_lock(&(one.clone() + &entry("arrow", "58.0.0"))).len(), 1);
        assert_eq!(check_lock(&(one + &entry("timely", "0.30.0"))).len(), 1);
    }
}
