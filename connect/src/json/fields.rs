//! The fields of an object that are wanted, by name: of a message, or of a ROW inside it.

use std::collections::HashMap;

use super::scan::{self, Kind, Value};
use super::{Fault, text};

/// Up to so many fields a walk over all of them beats hashing.
const WALK_MAX: usize = 16;

/// Names, their columns, and where the object read last has their values.
#[derive(Debug, Default)]
pub(super) struct Fields {
    names: Vec<Box<[u8]>>,
    /// The columns of the names, as indices into `Columns`.
    pub(super) columns: Vec<usize>,
    by_name: HashMap<Box<[u8]>, usize>,
    /// By field: the value the last object has for it, of repeated ones the last.
    pub(super) found: Vec<Option<Value>>,
    unescaped: Vec<u8>,
}

impl Fields {
    pub(super) fn add(&mut self, name: &str, column: usize) {
        self.by_name.insert(name.as_bytes().into(), self.names.len());
        self.names.push(name.as_bytes().into());
        self.columns.push(column);
        self.found.push(None);
    }

    /// Reads the object that opens at `open` and notes where its wanted values are. Checks the
    /// whole object; `depth` counts the brackets around its values. Returns its end.
    pub(super) fn locate(&mut self, b: &[u8], open: usize, depth: usize) -> Result<usize, Fault> {
        self.found.fill(None);
        let mut pos = scan::space(b, open + 1);
        if b.get(pos) == Some(&b'}') {
            return Ok(pos + 1);
        }
        let mut likely = 0;
        loop {
            let (name, at) = scan::name(b, pos)?;
            let value = scan::value(b, at, depth)?;
            if let Some(field) = self.field(b, name, likely) {
                self.found[field] = Some(value);
                likely = field + 1;
            }
            pos = scan::space(b, value.end);
            match b.get(pos) {
                Some(b',') => pos = scan::space(b, pos + 1),
                Some(b'}') => return Ok(pos + 1),
                _ => return Err(Fault::grammar(pos, "a comma or }")),
            }
        }
    }

    /// The field of a name as it stands in the message; `likely` is tried first.
    #[inline]
    pub(super) fn field(&mut self, b: &[u8], name: Value, likely: usize) -> Option<usize> {
        if name.kind == Kind::Escaped {
            let mut unescaped = std::mem::take(&mut self.unescaped);
            unescaped.clear();
            text::unescape(name.inner(b), &mut unescaped);
            let field = self.field_of(&unescaped, likely);
            self.unescaped = unescaped;
            return field;
        }
        self.field_of(name.inner(b), likely)
    }

    #[inline]
    fn field_of(&self, name: &[u8], likely: usize) -> Option<usize> {
        if self.names.get(likely).is_some_and(|n| **n == *name) {
            return Some(likely);
        }
        if self.names.len() > WALK_MAX {
            return self.by_name.get(name).copied();
        }
        self.names.iter().position(|n| **n == *name)
    }
}
