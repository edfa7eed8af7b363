//! Sources: each connector that brings rows in, in a folder of its own, and the ingest journal that
//! makes an offset log of those that cannot be read again.

pub mod broker;
pub mod filesystem;
pub mod journal;
pub mod kafka;
pub mod mqtt;
