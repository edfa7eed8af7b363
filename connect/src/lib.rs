//! What sources and sinks share: formats, client options, TLS, retry.
//!
//! Nothing here knows a particular connector. [`mod@options`] turns WITH options into typed structs
//! whose doc comments are the manual.

pub mod json;
pub mod options;
pub mod retry;
pub mod store;
pub mod tls;
