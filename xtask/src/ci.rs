//! `cargo xtask ci`: what must hold before anything lands, the cheap first.

use std::time::Instant;

use anyhow::Result;

use crate::args::Args;
use crate::{places, process, services, testing, tidy};

/// `cargo xtask ci [--quick]`
pub(crate) fn command(mut args: Args) -> Result<()> {
    let quick = args.flag("--quick");
    args.finish()?;
    services::prerequisites()?;
    cargo(&["fmt", "--all", "--check"], &[])?;
    tidy::command(Args::new([]))?;
    cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])?;
    let docs = ["doc", "--workspace", "--no-deps", "--document-private-items"];
    cargo(&docs, &[("RUSTDOCFLAGS", "-D warnings")])?;
    testing::command(Args::new(quick.then(|| "--quick".to_owned())))
}

fn cargo(words: &[&str], env: &[(&str, &str)]) -> Result<()> {
    let (words_shown, began) = (words.join(" "), Instant::now());
    println!("cargo {words_shown}");
    let mut cargo = process::cargo();
    cargo.args(words).envs(env.iter().copied()).current_dir(places::root());
    process::run(&mut cargo)?;
    println!("cargo {words_shown}: {} s", began.elapsed().as_secs());
    Ok(())
}
