//! No code: `Cargo.toml` says which features of shared dependencies this crate holds together.
