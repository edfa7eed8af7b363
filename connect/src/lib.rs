//! What sources and sinks share: formats, client options, TLS, retry.
//!
//! [`mod@options`] turns WITH options into typed structs whose doc comments are the manual. Nothing
//! here is a connector; what belongs to one server alone ([`kafka`]) is here because its source and
//! its sinks both need it.

pub mod json;
pub mod kafka;
pub mod options;
pub mod retry;
pub mod store;
pub mod tls;
