//! Where files go, a local folder or a bucket, and what they are called there.
//!
//! # Names
//! A run's files are `part-<shard>-<first epoch>`, with `-r1` and so on where that is taken. A
//! job's files are `part-<job>-<sink>-<shard>-<first epoch>`, and nothing else: the name says which
//! rows are in it, so that what is there already must be the same to the byte.
//!
//! # An older generation's files
//! A generation that was stopped while it put a file may end that put after the next has taken over
//! (`generation.rs`). The rows are of epochs whose cuts were on disk, so that the next generation
//! makes the same file, or finds at its put that it is another and fails. Only if cuts were lost
//! can there be a file that the next does not make: if it was there at the take-over, its epoch is
//! beyond what the job goes on from, and [`Target::take_over`] says so; if it came later, it stays.

use std::io;
use std::sync::Arc;
use weir_connect::retry::Retrying;
use weir_connect::store::{Draft, PutOutcome, Store, StoreOptions};
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};
use weir_engine::sink::{Author, SinkReport};
use weir_engine::time::Epoch;

use super::generation::{Fence, label};

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
    /// What the names of its files begin with.
    prefix: String,
    /// Where a job that lasts writes.
    fence: Option<Fence>,
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

    /// Makes this generation the only one that can put files. Gives the newest epoch that a name
    /// shows, of the files that the job has put through this sink: rows of it are there, and maybe
    /// of later ones. This lists all files of the target.
    ///
    /// # Errors
    /// A newer generation is at work.
    pub(crate) fn take_over(&self, author: &Author) -> Result<Option<Epoch>, ConnectorError> {
        let fence = Fence::of(&self.store, author);
        let mut retrying = Retrying::new(&self.shown, |_| (), || false);
        retrying.run(|| fence.take_over())?;
        let entries = retrying.run(|| self.store.list(""))?;
        let own = format!("part-{}-", label(author));
        let epoch = |path: &str| -> Option<Epoch> {
            let shard_and_epoch = path.rsplit('/').next()?.strip_prefix(&own)?;
            shard_and_epoch.split_once('-')?.1.split('.').next()?.parse().ok()
        };
        Ok(entries.iter().filter_map(|entry| epoch(&entry.path)).max())
    }

    /// Opens it for one shard, and clears away what a shard of this number, of the same job and
    /// sink, left when it died.
    pub(crate) fn open(
        &self,
        shard: u32,
        author: Option<&Author>,
        report: Arc<SinkReport>,
    ) -> Result<ShardTarget, ConnectorError> {
        let prefix = match author {
            Some(author) => format!("part-{}-{shard}-", label(author)),
            None => format!("part-{shard}-"),
        };
        self.store.sweep(&prefix)?;
        let notices = report.clone();
        let (notice, stop) = (move |text| notices.notice(text), move || report.given_up());
        // The probe has reached it; from here on it is a server that was lost.
        let retrying = Retrying::new(&self.shown, notice, stop).known(true);
        let fence = author.map(|author| Fence::of(&self.store, author));
        Ok(ShardTarget { store: self.store.clone(), retrying, prefix, fence })
    }
}

impl ShardTarget {
    /// The name, without its suffix, of a file whose first rows are of this epoch.
    pub(crate) fn stem(&self, first_epoch: Epoch) -> String {
        format!("{}{first_epoch:020}", self.prefix)
    }

    /// A file to write to.
    pub(crate) fn start(&self, stem: &str) -> Result<Draft, ConnectorError> {
        self.store.draft(stem)
    }

    /// Makes a whole file visible, durably, in `folder`. `AlreadyThere`: an earlier generation has
    /// put the very same.
    ///
    /// # Errors
    /// A newer generation has taken over; the job's file of this name has other bytes.
    pub(crate) fn publish(
        &mut self,
        draft: Draft,
        folder: &str,
        stem: &str,
        suffix: &str,
    ) -> Result<PutOutcome, ConnectorError> {
        let folder = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let stem = format!("{folder}{stem}");
        match self.fence.clone() {
            Some(fence) => self.publish_once(draft, &format!("{stem}{suffix}"), &fence),
            None => self.publish_beside(draft, &stem, suffix),
        }
    }

    fn publish_once(
        &mut self,
        mut draft: Draft,
        path: &str,
        fence: &Fence,
    ) -> Result<PutOutcome, ConnectorError> {
        let store = &self.store;
        // A put that is tried for hours must not succeed for a generation that is gone by then.
        let put = self.retrying.run(|| draft.publish_if(store, path, &|| fence.look()))?;
        if put == PutOutcome::AlreadyThere && !self.retrying.run(|| draft.is_at(store, path))? {
            return Err(not_the_same(&store.name(path)));
        }
        Ok(put)
    }

    /// Puts it under the first free name of its stem.
    fn publish_beside(
        &mut self,
        mut draft: Draft,
        stem: &str,
        suffix: &str,
    ) -> Result<PutOutcome, ConnectorError> {
        let store = &self.store;
        for taken in 0..NAMES_MAX {
            let path = match taken {
                0 => format!("{stem}{suffix}"),
                _ => format!("{stem}-r{taken}{suffix}"),
            };
            let put = self.retrying.run(|| draft.publish(store, &path))?;
            if put == PutOutcome::Written {
                return Ok(put);
            }
        }
        let name = store.name(&format!("{stem}{suffix}"));
        Err(ConnectorError::fatal(format!("no free name beside {name}")))
    }
}

fn not_the_same(name: &str) -> ConnectorError {
    let message = format!(
        "not deterministic: {name} is there, and its rows, computed again, do not give the same \
         bytes"
    );
    let hint = "something that the job reads has changed, or its query depends on more than its \
                inputs, or the file was changed, or another build of weir wrote it; nothing was \
                written over";
    ConnectorError::fatal(message).hint(hint)
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
