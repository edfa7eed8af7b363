//! Where files go: a local folder or a bucket, behind one small trait.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use weir_connect::options::bad_value;
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};
use weir_engine::sink::SinkReport;

use bucket::Bucket;
use local::Folder;

mod bucket;
mod local;

/// The files of one shard.
pub(crate) trait Files: Send {
    /// A file to write to, which becomes `<folder>/<stem><suffix>` once it is published.
    fn start(
        &mut self,
        folder: &str,
        stem: &str,
        suffix: &'static str,
    ) -> Result<(Started, File), ConnectorError>;

    /// Makes a whole file visible, durably, under the first free name of its stem.
    fn publish(&mut self, started: Started, file: File, bytes: u64) -> Result<(), ConnectorError>;

    /// What to say when writing to the file has failed.
    fn failed(&self, started: &Started, error: &io::Error) -> ConnectorError;
}

/// A file between its start and its publication. Dropping it removes what it left on disk.
pub(crate) struct Started {
    folder: String,
    stem: String,
    suffix: &'static str,
    temporary: Option<PathBuf>,
}

impl Started {
    /// The name in its folder that is tried after `taken` names were not free.
    fn name(&self, taken: u32) -> String {
        let (stem, suffix) = (&self.stem, self.suffix);
        if taken == 0 { format!("{stem}{suffix}") } else { format!("{stem}-r{taken}{suffix}") }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        if let Some(path) = &self.temporary {
            // It may be gone with its folder; the next run looks for it in any case.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Where the files of a sink go.
pub(crate) enum Target {
    Folder(Folder),
    Bucket(Box<Bucket>),
}

/// Options of object stores that the sink understands.
pub(crate) fn options() -> Vec<OptionDoc> {
    bucket::options()
}

impl Target {
    /// Reads `path`.
    pub(crate) fn of(table: &TableSpec, path: &str) -> Result<Target, Vec<OptionError>> {
        if path.starts_with("file:") {
            // `file:///absolute/path`, escapes and all.
            let local = url::Url::parse(path).ok().and_then(|url| url.to_file_path().ok());
            let local = local.and_then(|path| path.into_os_string().into_string().ok());
            return local.map(|local| Target::Folder(Folder::at(&local))).ok_or_else(|| {
                let hint = "write file:///absolute/path, or just the path".to_owned();
                let error = bad_value(table, "path", "is no URL of a local folder");
                vec![OptionError { hint: Some(hint), ..error }]
            });
        }
        if path.contains("://") {
            return Ok(Target::Bucket(Box::new(Bucket::of(table, path)?)));
        }
        Ok(Target::Folder(Folder::at(path)))
    }

    /// Whether it can be written to; makes the folder.
    pub(crate) fn probe(&self, table: &str) -> Result<(), ConnectorError> {
        match self {
            Target::Folder(folder) => folder.probe(table),
            Target::Bucket(bucket) => bucket.probe(table),
        }
    }

    /// Opens it for one shard.
    pub(crate) fn open(
        &self,
        table: &str,
        shard: u32,
        report: Arc<SinkReport>,
    ) -> Result<Box<dyn Files>, ConnectorError> {
        match self {
            Target::Folder(folder) => Ok(Box::new(folder.open(table, shard)?)),
            Target::Bucket(bucket) => Ok(Box::new(bucket.open(table, report)?)),
        }
    }
}
