//! Which files a table has, and the splits that they make.

use weir_connect::store::{Entry, Kind, Store, StoreOptions};
use weir_engine::connector::ConnectorError;
use weir_engine::source::SplitSpec;

use super::{Files, SplitBy};

/// Where files are looked for: what is opened, and a pattern for the paths below it.
#[derive(Clone)]
pub(super) struct Place {
    store: Store,
    pattern: Option<String>,
}

impl Place {
    pub(super) fn open(path: &str, options: &StoreOptions) -> Result<Place, ConnectorError> {
        let after_scheme = path.find("://").map_or(0, |at| at + 3);
        let wild = path[after_scheme..].find(['*', '?']).map(|at| at + after_scheme);
        let Some(wild) = wild else {
            return Ok(Place { store: Store::open(path, options)?, pattern: None });
        };
        let (folder, pattern) = match path[..wild].rfind('/') {
            Some(0) => ("/", &path[1..]),
            Some(slash) => (&path[..slash], &path[slash + 1..]),
            None => (".", path),
        };
        let store = Store::open(folder, options)?;
        Ok(Place { store, pattern: Some(pattern.to_owned()) })
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// The files, in path order.
    fn files(&self) -> Result<Vec<Entry>, ConnectorError> {
        if self.store.kind("")? == Kind::Nothing {
            // The reader knows best how to say that there is nothing, and what there is beside it.
            let error = self.store.reader("").err();
            let nothing =
                || ConnectorError::reconfigure(format!("no such file: {}", self.store.url()));
            return Err(error.unwrap_or_else(nothing));
        }
        let mut entries = self.store.list("")?;
        let hidden = |path: &str| path.split('/').any(|part| part.starts_with(['.', '_']));
        entries.retain(|entry| !hidden(&entry.path));
        if let Some(pattern) = &self.pattern {
            entries.retain(|entry| fits(pattern.as_bytes(), entry.path.as_bytes()));
            if entries.is_empty() {
                let message = format!("no file fits {}", self.store.name(pattern));
                return Err(ConnectorError::reconfigure(message).hint("check 'path'"));
            }
        }
        Ok(entries)
    }
}

/// Whether a path fits a pattern: `?` is one character and `*` any number of them within a name,
/// `**` any number across names. Bytes suffice, since `/`, `*` and `?` are no parts of other
/// characters.
fn fits(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        [b'*', b'*', b'/', rest @ ..] if fits(rest, path) => true,
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|n| fits(rest, &path[n..])),
        [b'*', rest @ ..] => {
            let name = path.iter().position(|b| *b == b'/').unwrap_or(path.len());
            (0..=name).any(|n| fits(rest, &path[n..]))
        }
        [b'?', rest @ ..] => {
            let width = path.iter().skip(1).take_while(|b| **b & 0xC0 == 0x80).count() + 1;
            !path.is_empty() && path[0] != b'/' && fits(rest, &path[width..])
        }
        [byte, rest @ ..] => path.first() == Some(byte) && fits(rest, &path[1..]),
    }
}

/// The splits of a table, `carries` left empty.
pub(super) fn splits(files: &Files) -> Result<Vec<SplitSpec>, ConnectorError> {
    let entries = files.place.files().map_err(|mut error| {
        error.message = format!("{} (table `{}`)", error.message, files.table);
        error
    })?;
    let store = files.store();
    let paths = entries.into_iter().map(|entry| entry.path);
    let split = |number: usize, name: String, paths: Vec<String>| SplitSpec {
        number: number as u64,
        name,
        bounded: true,
        // An archive's splits all count from the start, so it cannot wait for its turn.
        lazy: files.options.split_by != SplitBy::Columns,
        carries: Vec::new(),
        detail: serde_json::json!({ "paths": paths }),
        joined: false,
    };
    Ok(match files.options.split_by {
        SplitBy::File => paths
            .enumerate()
            .map(|(number, path)| split(number, store.name(&path), vec![path]))
            .collect(),
        SplitBy::All | SplitBy::Columns => {
            let paths: Vec<String> = paths.collect();
            let none = paths.is_empty();
            let one = split(0, store.url().to_owned(), paths);
            if none { Vec::new() } else { vec![one] }
        }
    })
}

/// The paths of a split's files.
pub(super) fn paths(split: &SplitSpec) -> Result<Vec<String>, ConnectorError> {
    serde_json::from_value(split.detail["paths"].clone()).map_err(|e| {
        ConnectorError::fatal(format!(
            "the split {} was planned by another version: {e}",
            split.name
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn stars_stay_within_a_name_and_two_do_not() {
        let check = |pattern: &str, path: &str| fits(pattern.as_bytes(), path.as_bytes());
        assert!(check("part-?.jsonl", "part-0.jsonl"));
        assert!(check("part-?.jsonl", "part-ü.jsonl"));
        assert!(!check("part-?.jsonl", "part-10.jsonl"));
        assert!(check("*.jsonl", "a.jsonl"));
        assert!(!check("*.jsonl", "a/b.jsonl"));
        assert!(check("**/*.jsonl", "a/b/c.jsonl"));
        assert!(check("**/*.jsonl", "c.jsonl"));
        assert!(check("day=*/x", "day=1/x"));
        assert!(!check("day=*/x", "day=1/xy"));
    }
}
