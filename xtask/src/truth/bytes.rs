//! The promise of DESIGN.md, section 1: same files, same bytes out, on any number of workers and
//! processes.
//!
//! A replay's cuts are a function of its files and options, so the first run of a job over some
//! data sets the bytes that every later run over the same data must write.

use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hasher};
use std::path::Path;

use anyhow::Result;

use crate::outside::Tally;

/// Path below the result's folder, and a hash of the content.
type Files = BTreeMap<String, u64>;

/// What the first run of each job wrote, and who it was.
#[derive(Default)]
pub(super) struct Ledger {
    first: BTreeMap<String, (String, Files)>,
    digests: BTreeMap<String, (String, String)>,
}

impl Ledger {
    /// Compares a run's digests with those of the first run under the same key.
    pub(super) fn digests(&mut self, key: String, run: &str, digests: String, tally: &mut Tally) {
        match self.digests.get(&key) {
            None => {
                self.digests.insert(key, (run.to_owned(), digests));
            }
            Some((_, first)) if *first == digests => tally.pass(),
            Some((who, first)) => tally.fail(format!(
                "truth {run}: other digests than {who}\n{digests}instead of\n{first}"
            )),
        }
    }

    /// Compares a run's files with those of the first run under the same key.
    pub(super) fn compare(
        &mut self,
        key: String,
        run: &str,
        folder: &Path,
        tally: &mut Tally,
    ) -> Result<()> {
        let mut files = Files::new();
        collect(folder, folder, &mut files)?;
        match self.first.get(&key) {
            None => {
                self.first.insert(key, (run.to_owned(), files));
            }
            Some((_, first)) if *first == files => tally.pass(),
            Some((who, first)) => {
                let differs = |path: &&String| first.get(*path) != files.get(*path);
                let path = first.keys().chain(files.keys()).find(differs);
                let path = path.map_or("", String::as_str);
                tally.fail(format!("truth {run}: {path} has other bytes than in {who}"));
            }
        }
        Ok(())
    }
}

fn collect(root: &Path, folder: &Path, files: &mut Files) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, files)?;
        } else {
            let mut hasher = DefaultHasher::new();
            hasher.write(&fs::read(&path)?);
            let name = path.strip_prefix(root)?.display().to_string();
            files.insert(name, hasher.finish());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_bytes_and_other_names_are_told() -> Result<()> {
        let run = |ledger: &mut Ledger, name: &str, text: &str| -> Result<(usize, usize)> {
            let folder = tempfile::tempdir()?;
            fs::create_dir(folder.path().join("t"))?;
            fs::write(folder.path().join("t").join(name), text)?;
            let mut tally = Tally::default();
            ledger.compare("job".to_owned(), "run", folder.path(), &mut tally)?;
            Ok((tally.passed, tally.failures.len()))
        };
        let mut ledger = Ledger::default();
        assert_eq!(run(&mut ledger, "a", "1")?, (0, 0));
        assert_eq!(run(&mut ledger, "a", "1")?, (1, 0));
        assert_eq!(run(&mut ledger, "a", "2")?, (0, 1));
        assert_eq!(run(&mut ledger, "b", "1")?, (0, 1));
        Ok(())
    }
}
