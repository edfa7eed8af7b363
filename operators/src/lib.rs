//! Operator cores: windows, joins, enrichment, deduplication, and the aggregates they keep.

pub mod aggregates;
pub mod dedup;
#[cfg(test)]
mod kept;
mod late;
pub mod rowwise;
pub mod session;
pub mod temporal;
#[cfg(test)]
mod tests;
pub mod window;
