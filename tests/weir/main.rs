//! The binary as a user starts it. One test binary for all of it: each more would link everything
//! again.
//!
//! Servers are those of `cargo xtask services up`.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod bad_endings;
mod checkpoints;
mod copies;
mod demo;
mod discovery;
mod first_light;
mod formats;
mod helping;
mod lasting;
