//! Where files go, a local folder or a bucket, and what they are called there.

use std::io;
use std::sync::Arc;
use weir_connect::retry::Retrying;
use weir_connect::store::{Draft, PutOutcome, Store, StoreOptions};
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};
use weir_engine::sink::SinkReport;

/// Names tried for one file before something else must be wrong.
const NAMES_MAX: u32 = 100_000;

/// Options of object stores that the sink understands.
pub(crate) fn options() -> Vec<OptionDoc> {
    StoreOptions::docs()
}

/// Where the files of a table go.
pub(crate) struct Target {
    store: Store,
    /// The place and the table, for notices.
    shown: String,
}

/// The same as one shard writes to it.
pub(crate) struct ShardTarget {
    store: Store,
    retrying: Retrying<'static>,
}

impl Target {
    /// Reads `path`.
    pub(crate) fn of(table: &TableSpec, path: &str) -> Result<Target, Vec<OptionError>> {
        let options = StoreOptions::of(table)?;
        let store = Store::open(path, &options).map_err(|error| {
            let message = format!("'path' of table `{}`: {}", table.name, error.message);
            vec![OptionError { key: Some("path".to_owned()), message, hint: error.hint }]
        })?;
        let shown = format!("{} for table `{}`", store.url(), table.name);
        Ok(Target { store: store.for_table(&table.name), shown })
    }

    /// Whether it can be written to; makes the folder.
    pub(crate) fn probe(&self) -> Result<(), ConnectorError> {
        Retrying::new(&self.shown, |_| (), || false).run(|| self.store.probe_write())
    }

    /// Opens it for one shard, and clears away what a shard of this number left when it died.
    pub(crate) fn open(
        &self,
        shard: u32,
        report: Arc<SinkReport>,
    ) -> Result<ShardTarget, ConnectorError> {
        self.store.sweep(&format!("part-{shard}-"))?;
        let notices = report.clone();
        let mut retrying =
            Retrying::new(&self.shown, move |text| notices.notice(text), move || report.given_up());
        // The probe has reached it; from here on it is a server that was lost.
        retrying.succeeded();
        Ok(ShardTarget { store: self.store.clone(), retrying })
    }
}

impl ShardTarget {
    /// A file to write to.
    pub(crate) fn start(&self, stem: &str) -> Result<Draft, ConnectorError> {
        self.store.draft(stem)
    }

    /// Makes a whole file visible, durably, in `folder` under the first free name of its stem.
    pub(crate) fn publish(
        &mut self,
        mut draft: Draft,
        folder: &str,
        stem: &str,
        suffix: &str,
    ) -> Result<(), ConnectorError> {
        let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let store = &self.store;
        for taken in 0..NAMES_MAX {
            let path = match taken {
                0 => format!("{folder}{stem}{suffix}"),
                _ => format!("{folder}{stem}-r{taken}{suffix}"),
            };
            match self.retrying.run(|| draft.publish(store, &path))? {
                PutOutcome::Written => return Ok(()),
                PutOutcome::AlreadyThere => {}
            }
        }
        let name = store.name(&format!("{folder}{stem}{suffix}"));
        Err(ConnectorError::fatal(format!("no free name beside {name}")))
    }
}

/// What an encoder's failure says: the disk's own error where it is one.
pub(crate) fn of_writing(error: io::Error) -> ConnectorError {
    let error = error.downcast::<ConnectorError>();
    let error = error.unwrap_or_else(|e| ConnectorError::fatal(format!("cannot encode rows: {e}")));
    match error.hint {
        Some(_) => error,
        None => error.hint("files that were closed before are whole"),
    }
}
