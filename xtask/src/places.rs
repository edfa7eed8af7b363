//! Where things are: the repository, what lies beside it, and folders that git doesn't see.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The root of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The folder of checks that come from outside, if it lies beside the repository.
pub(crate) fn shared() -> Option<PathBuf> {
    let shared = root().parent()?.join("shared");
    shared.join("truth").is_dir().then_some(shared)
}

/// As [`shared`], for commands that are nothing without it.
pub(crate) fn shared_or_fail() -> Result<PathBuf> {
    shared().context("this needs the folder ../shared beside the repository")
}

/// Cargo's target folder.
pub(crate) fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// Where installed servers and the Python environment are kept: `$WEIR_SERVICES_DIR`.
pub(crate) fn installed() -> PathBuf {
    match std::env::var_os("WEIR_SERVICES_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => target().join("services"),
    }
}

/// The Python interpreter of the checks and the oracle; `cargo xtask services install` makes it.
pub(crate) fn python() -> PathBuf {
    installed().join("venv/bin/python")
}

/// The binary under test: as given, or what cargo builds here.
pub(crate) fn weir(given: Option<PathBuf>) -> Result<PathBuf> {
    let path = given.unwrap_or_else(|| target().join("debug/weir"));
    match path.canonicalize() {
        Ok(path) => Ok(path),
        Err(_) => bail!("there is no {}: `cargo build` makes it", path.display()),
    }
}
