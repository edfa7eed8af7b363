//! An open file whose reader waits out an outage of the store.

use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use weir_connect::retry::Retrying;
use weir_connect::store::{FileReader, Store};
use weir_engine::connector::ConnectorError;
use weir_engine::source::SplitQueue;

/// An open file.
pub(super) struct Input {
    file: FileReader,
    table: String,
    queue: Option<Arc<SplitQueue>>,
}

impl Input {
    pub(super) fn open(
        store: &Store,
        path: &str,
        table: &str,
        queue: Option<Arc<SplitQueue>>,
    ) -> Result<Input, ConnectorError> {
        let name = store.name(path);
        let file = patiently(&name, table, queue.as_ref(), false, || store.reader(path))?;
        Ok(Input { file, table: table.to_owned(), queue })
    }

    /// The file's name for people.
    pub(super) fn name(&self) -> &str {
        self.file.name()
    }

    /// The table that it belongs to.
    pub(super) fn table(&self) -> &str {
        &self.table
    }

    /// Bytes.
    pub(super) fn size(&self) -> u64 {
        self.file.size()
    }

    /// Bytes `range`.
    pub(super) fn read(&self, range: Range<u64>) -> Result<Bytes, ConnectorError> {
        let again = || self.file.read(range.clone());
        patiently(self.name(), &self.table, self.queue.as_ref(), true, again)
    }

    /// An error about the file's content.
    pub(super) fn unreadable(&self, what: &str) -> ConnectorError {
        ConnectorError::fatal(format!(
            "cannot read {}: {what} (table `{}`)",
            self.name(),
            self.table
        ))
    }
}

/// Tries until it works, if there is a queue to say so on; once if not.
fn patiently<T>(
    name: &str,
    table: &str,
    queue: Option<&Arc<SplitQueue>>,
    reached: bool,
    attempt: impl FnMut() -> Result<T, ConnectorError>,
) -> Result<T, ConnectorError> {
    let mut attempt = attempt;
    let first = attempt();
    let Some(queue) = queue else { return first };
    match first {
        Err(e) if e.remedy == weir_engine::connector::Remedy::Retry => {}
        done => return done,
    }
    let stop = || queue.is_closed();
    let what = format!("{name} of table `{table}`");
    let mut retrying = Retrying::new(what, |text| queue.notice(text), stop).known(reached);
    queue.connected(false);
    let done = retrying.run(attempt);
    queue.connected(true);
    done
}
