//! Sinks: connectors that take the rows of complete epochs, each in a file or folder of its own.
//!
//! Every connector here looks like every other: a struct of options whose comments are its manual,
//! `options()` for that manual, `sink()` that checks a table and touches nothing outside, and an
//! implementation of [`Sink`](weir_engine::sink::Sink). The composition root joins them with the
//! source halves of the same name.

pub mod blackhole;
pub mod filesystem;
pub mod kafka;
pub mod postgres;
pub mod print;

mod group;
mod pace;
