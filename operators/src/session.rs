//! Session windows: rows of a key that are no more than a gap apart.

pub(crate) mod late;
#[cfg(test)]
pub(crate) mod script;
