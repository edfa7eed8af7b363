//! `cargo xtask`: everything that is done to Weir's source besides compiling it.
//!
//! Each command is a module of the same name. What a check needs beyond Rust it installs or names in
//! one line; what it starts it stops.
#![allow(clippy::print_stdout, reason = "a command line speaks on standard output")]

use std::process::ExitCode;

use anyhow::{Result, bail};

use crate::args::Args;

mod args;
mod places;
mod process;
mod services;
mod tidy;

fn main() -> ExitCode {
    process::handle_signals();
    match dispatch() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let args = Args::new(words);
    match command.as_str() {
        "services" => services::command(args),
        "tidy" => tidy::command(args),
        _ => bail!("usage: {}", services::help()),
    }
}
