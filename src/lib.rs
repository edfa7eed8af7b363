//! Weir: a distributed SQL stream processor for telemetry.
//!
//! This crate is the composition root: it knows all connectors, plans scripts, runs jobs on one or
//! several processes, and shows what flows. What is behind it: `weir_queries` turns SQL into plans
//! and plans into graphs, `weir_engine` runs graphs on timely, `weir_operators` holds the operator
//! cores, `weir_sources` and `weir_sinks` the connectors.

pub mod checkpoints;
pub mod cli;
pub mod connectors;
pub mod demo;
pub mod discovery;
pub mod here;
pub mod jobs;
pub mod lasting;
mod logs;
pub mod manual;
mod patience;
pub mod processes;
pub mod report;
pub mod run;
pub mod status;
pub mod supervisor;
