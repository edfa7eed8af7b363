//! The engine: time, rows, keys, the traits of sources, operators and sinks, and the dataflow that
//! runs them on timely.
//!
//! Read [`time`], [`rows`] and [`operator`] first: everything else stands on their words.

pub mod checkpoint;
pub mod clock;
pub mod connector;
pub mod cut;
pub mod cutlog;
pub mod digest;
pub mod expression;
pub mod flow;
pub mod graph;
pub mod job;
pub mod journal;
pub mod keys;
pub mod marks;
pub mod operator;
pub mod rows;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod simulation;
pub mod sink;
pub mod source;
pub mod state;
pub mod store;
mod tasks;
pub mod time;
