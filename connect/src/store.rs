//! Files wherever they are: a local folder, an S3 bucket, memory.
//!
//! [`Store::open`] takes what a user writes as `path` and gives one blocking interface: list, read,
//! put, put if absent, and [`Draft`]s for what does not fit in memory. Paths inside are relative to
//! what was opened, with `/` between folders; `""` is the very thing that was opened, which may be
//! a single file.
//!
//! # What is durable
//! When [`Store::put`] and [`Draft::publish`] return, the object is on disk (file and folder
//! synced) or acknowledged by the server, whole. Before, nobody sees it: local files are written
//! under a name that starts with a dot and then get their own.
//!
//! # Threads
//! All network traffic runs on one thread with a small runtime, shared by the process. Callers wait
//! on their own threads. A local file is read by whoever asks for it.
//!
//! # Limits
//! Requests: 5 s to connect, 30 s each, three repetitions within 15 s; then the caller hears
//! `Remedy::Retry`. Parts of an upload have 8 MiB, two of them in flight.

use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};

use crate::options::{Secret, mask_url};

pub use draft::Draft;

mod draft;
mod exclusive;
mod fault;
mod local;
mod objects;
mod remote;

#[cfg(test)]
mod tests;

crate::options! {
    /// Options of object stores, for every connector that has a `path`.
    pub struct StoreOptions {
        /// Address of an S3 server other than Amazon's. Plain `http://` is accepted for this
        /// machine only, unless `s3.allow-http` is set.
        pub endpoint: Option<String> = "s3.endpoint", optional;
        /// Access key; without one the environment (`AWS_ACCESS_KEY_ID` …) or the instance's role.
        pub access_key: Option<String> = "s3.access-key", optional;
        /// Secret key that belongs to the access key.
        pub secret_key: Option<Secret> = "s3.secret-key", optional;
        /// Region of the bucket; without one `AWS_REGION`, else `us-east-1`.
        pub region: Option<String> = "s3.region", optional;
        /// Whether the bucket is named in the path of requests rather than in the host name.
        pub path_style: bool = "s3.path.style.access", default "true";
        /// Whether an endpoint elsewhere may be reached without TLS.
        pub allow_http: bool = "s3.allow-http", default "false";
    }
}

impl StoreOptions {
    /// The options of `table` that are about object stores; all others are somebody else's.
    ///
    /// # Errors
    /// Values that cannot be read.
    pub fn of(table: &TableSpec) -> Result<StoreOptions, Vec<OptionError>> {
        let own: Vec<OptionDoc> = StoreOptions::docs();
        let mut only = table.clone();
        only.options.retain(|key, _| own.iter().any(|doc| doc.key == key));
        StoreOptions::read(&only, &[])
    }

    /// No options: local files, memory, and S3 by the environment.
    pub fn none() -> StoreOptions {
        StoreOptions {
            endpoint: None,
            access_key: None,
            secret_key: None,
            region: None,
            path_style: true,
            allow_http: false,
        }
    }
}

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A file of this many bytes.
    File(u64),
    /// A folder (in an object store: at least one object below it).
    Folder,
    /// Nothing.
    Nothing,
}

/// A file in a listing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Path relative to what was opened; `""` if that is the file itself.
    pub path: String,
    /// Bytes.
    pub size: u64,
}

/// What to do where an object is already there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutMode {
    /// Replace it.
    Replace,
    /// Leave it, and say so.
    IfAbsent,
}

/// What became of a put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PutOutcome {
    /// The object is there as given.
    Written,
    /// Another one was there already, and is untouched. Only with [`PutMode::IfAbsent`].
    AlreadyThere,
}

#[derive(Clone)]
enum Place {
    Local(local::Folder),
    Remote(Arc<remote::Bucket>),
}

/// A folder, bucket prefix or single file.
#[derive(Clone)]
pub struct Store {
    /// As the user wrote it, without secrets and without a slash at the end.
    url: String,
    place: Place,
    /// The table whose files these are, for messages.
    table: Option<Arc<str>>,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.url).finish()
    }
}

impl Store {
    /// Opens `url`: a local path or `file://…`, `s3://bucket/prefix` (also `s3a://`), or
    /// `memory://name/prefix`, which lives as long as the process. Touches nothing outside.
    ///
    /// # Errors
    /// `Reconfigure` where the URL or the options make no sense.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Store, ConnectorError> {
        let shown = mask_url(url);
        let trimmed = shown.trim_end_matches('/');
        let shown = if trimmed.is_empty() || trimmed.ends_with(':') { &shown } else { trimmed };
        let place = match url.split_once("://") {
            _ if url.starts_with("file:") => Place::Local(local::Folder::at_url(url, shown)?),
            None => Place::Local(local::Folder::at(url)),
            Some((scheme, rest)) => Place::Remote(remote::Bucket::open(scheme, rest, options)?),
        };
        Ok(Store { url: shown.to_owned(), place, table: None })
    }

    /// The same, whose messages say that it is for this table.
    #[must_use]
    pub fn for_table(mut self, table: &str) -> Store {
        self.table = Some(table.into());
        self
    }

    /// What was opened, as the user wrote it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A path inside, as a person would write it.
    pub fn name(&self, path: &str) -> String {
        match (path, self.url.ends_with('/')) {
            ("", _) => self.url.clone(),
            (_, true) => format!("{}{path}", self.url),
            _ => format!("{}/{path}", self.url),
        }
    }

    /// [`name`](Store::name) in a message.
    fn told(&self, path: &str) -> String {
        let name = self.name(path);
        match &self.table {
            Some(table) => format!("{name} for table `{table}`"),
            None => name,
        }
    }

    /// What is at `path`.
    pub fn kind(&self, path: &str) -> Result<Kind, ConnectorError> {
        match &self.place {
            Place::Local(folder) => folder.kind(path, &self.told(path)),
            Place::Remote(bucket) => bucket.kind(path, &self.told(path)),
        }
    }

    /// All files at or below `path`, sorted by path, byte by byte. Nothing there: an empty list.
    /// Uploads that have not finished are not part of it.
    pub fn list(&self, path: &str) -> Result<Vec<Entry>, ConnectorError> {
        let mut entries = match &self.place {
            Place::Local(folder) => folder.list(path, &self.told(path))?,
            Place::Remote(bucket) => bucket.list(path, &self.told(path))?,
        };
        entries.sort_unstable();
        Ok(entries)
    }

    /// Opens a file for reading.
    ///
    /// # Errors
    /// `Reconfigure` where there is no such file or it may not be read; the message says what is
    /// beside it.
    pub fn reader(&self, path: &str) -> Result<FileReader, ConnectorError> {
        let name = self.told(path);
        let (size, place) = match &self.place {
            Place::Local(folder) => {
                let (size, file) = folder.open_file(path, &name)?;
                (size, ReaderPlace::Local(Arc::new(file)))
            }
            Place::Remote(bucket) => {
                let size = bucket.size(path, &name)?;
                (size, ReaderPlace::Remote(bucket.clone(), path.to_owned()))
            }
        };
        Ok(FileReader { name, size, place })
    }

    /// Bytes `range` of a file.
    pub fn read(&self, path: &str, range: Range<u64>) -> Result<Bytes, ConnectorError> {
        self.reader(path)?.read(range)
    }

    /// A whole file.
    pub fn read_all(&self, path: &str) -> Result<Bytes, ConnectorError> {
        let reader = self.reader(path)?;
        reader.read(0..reader.size())
    }

    /// Writes a whole object; folders on the way are made.
    pub fn put(
        &self,
        path: &str,
        bytes: impl Into<Bytes>,
        mode: PutMode,
    ) -> Result<PutOutcome, ConnectorError> {
        let (bytes, name) = (bytes.into(), self.told(path));
        match &self.place {
            Place::Local(folder) => folder.put(path, &bytes, mode, &name),
            Place::Remote(bucket) => bucket.put(path, bytes, mode, &name),
        }
    }

    /// Starts a file of any size. Nothing is to be seen of it until it is published; dropping it
    /// gives it up. `label` is part of its hidden name.
    pub fn draft(&self, label: &str) -> Result<Draft, ConnectorError> {
        match &self.place {
            Place::Local(folder) => folder.draft(label, &self.told("")),
            Place::Remote(_) => draft::nameless(),
        }
    }

    /// Makes the folder, and removes drafts left there by runs that died, if their label starts
    /// with `label`. An object store has neither.
    pub fn sweep(&self, label: &str) -> Result<(), ConnectorError> {
        match &self.place {
            Place::Local(folder) => folder.sweep(label, &self.told("")),
            Place::Remote(_) => Ok(()),
        }
    }

    /// Removes a file. One that is not there is as good as removed.
    pub fn delete(&self, path: &str) -> Result<(), ConnectorError> {
        match &self.place {
            Place::Local(folder) => folder.delete(path, &self.told(path)),
            Place::Remote(bucket) => bucket.delete(path, &self.told(path)),
        }
    }

    /// Whether it is a folder of this machine.
    pub fn is_local(&self) -> bool {
        matches!(self.place, Place::Local(_))
    }

    /// Checks that objects can be written here, by writing and removing a small one. A local folder
    /// is made.
    pub fn probe_write(&self) -> Result<(), ConnectorError> {
        if let Place::Local(folder) = &self.place {
            folder.make(&self.told(""))?;
        }
        let path = format!(".weir-probe-{}", std::process::id());
        self.put(&path, Bytes::from_static(b"weir"), PutMode::Replace)?;
        self.delete(&path)
    }
}

enum ReaderPlace {
    Local(Arc<std::fs::File>),
    Remote(Arc<remote::Bucket>, String),
}

/// A file that is open for reading. Its size is what it was when it was opened.
pub struct FileReader {
    name: String,
    size: u64,
    place: ReaderPlace,
}

impl FileReader {
    /// The file's name for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes `range`, all of them.
    ///
    /// # Errors
    /// `Fatal` where the file has become shorter, else what the world answers.
    pub fn read(&self, range: Range<u64>) -> Result<Bytes, ConnectorError> {
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        match &self.place {
            ReaderPlace::Local(file) => local::read_at(file, range, &self.name),
            ReaderPlace::Remote(bucket, path) => bucket.read(path, range, &self.name),
        }
    }
}
