//! Sources: each connector that brings rows in, in a folder of its own.

pub mod broker;
pub mod filesystem;
pub mod kafka;
pub mod mqtt;
