//! No code: see `Cargo.toml` for the features of shared dependencies that this crate holds together.
