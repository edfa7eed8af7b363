//! An object store: files are staged on the local disk and put whole.
//!
//! # Argument
//! An upload that fails half-way is begun again from the staged file, so memory is bounded by a
//! part and no failure of the server loses a row. An object store shows an upload only when it is
//! complete. The name is looked up first; small files are then put only if still absent. The reply
//! of a put can be lost: a name that was free, and after a failed attempt holds exactly the staged
//! bytes, is ours.
//!
//! # Limits
//! Staging needs disk for the open files (`sink.rolling-policy.file-size` times partitions and
//! shards) in the system's temporary folder. A file larger than `SINGLE_PUT_MAX` goes up in parts,
//! whose completion is not conditional: another run that writes the same name in the same moment
//! could be overwritten.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use weir_connect::retry::Retrying;
use weir_connect::store::{Kind, PutMode, PutOutcome, Store, StoreOptions};
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};
use weir_engine::sink::SinkReport;

use super::{Files, Started};

const SINGLE_PUT_MAX: u64 = 8 << 20;
const COPY_BYTES: usize = 1 << 20;
const NAMES_MAX: u32 = 100_000;

/// Options of the store that the sink understands.
pub(crate) fn options() -> Vec<OptionDoc> {
    StoreOptions::docs()
}

/// A bucket, or a prefix in it.
pub(crate) struct Bucket {
    store: Store,
}

/// The bucket as one shard writes to it.
pub(crate) struct ShardBucket {
    store: Store,
    retrying: Retrying<'static>,
}

impl Bucket {
    pub(crate) fn of(table: &TableSpec, path: &str) -> Result<Bucket, Vec<OptionError>> {
        let options = StoreOptions::of(table)?;
        let store = Store::open(path, &options).map_err(|error| {
            let message = format!("'path' of table `{}`: {}", table.name, error.message);
            vec![OptionError { key: Some("path".to_owned()), message, hint: error.hint }]
        })?;
        Ok(Bucket { store })
    }

    pub(crate) fn probe(&self, table: &str) -> Result<(), ConnectorError> {
        let what = format!("{} for table `{table}`", self.store.url());
        Retrying::new(what, |_| (), || false).run(|| {
            self.store.probe_write().map_err(|mut error| {
                error.message = format!("cannot write for table `{table}`: {}", error.message);
                error
            })
        })
    }

    pub(crate) fn open(
        &self,
        table: &str,
        report: Arc<SinkReport>,
    ) -> Result<ShardBucket, ConnectorError> {
        let what = format!("{} for table `{table}`", self.store.url());
        let notices = report.clone();
        let mut retrying =
            Retrying::new(what, move |text| notices.notice(text), move || report.given_up());
        // The probe has reached it; from here on it is a server that was lost.
        retrying.succeeded();
        Ok(ShardBucket { store: self.store.clone(), retrying })
    }
}

/// A file that has no name any more and goes with its handle.
fn staged() -> io::Result<File> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("weir-{}-{number}.staged", std::process::id()));
    let mut options = OpenOptions::new();
    // A leftover of a process of the same number is nobody's any more.
    let file = options.read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

fn of_disk(error: &io::Error) -> ConnectorError {
    let folder = std::env::temp_dir();
    let message = format!("cannot stage a file in {}: {error}", folder.display());
    ConnectorError::fatal(message).hint("TMPDIR names another folder")
}

impl Files for ShardBucket {
    fn start(
        &mut self,
        folder: &str,
        stem: &str,
        suffix: &'static str,
    ) -> Result<(Started, File), ConnectorError> {
        let file = staged().map_err(|e| of_disk(&e))?;
        let (folder, stem) = (folder.to_owned(), stem.to_owned());
        Ok((Started { folder, stem, suffix, temporary: None }, file))
    }

    fn publish(
        &mut self,
        started: Started,
        mut file: File,
        bytes: u64,
    ) -> Result<(), ConnectorError> {
        let store = &self.store;
        for taken in 0..NAMES_MAX {
            let name = started.name(taken);
            let path = match started.folder.as_str() {
                "" => name,
                folder => format!("{folder}/{name}"),
            };
            let mut attempted = false;
            let outcome = self.retrying.run(|| {
                let there = store.kind(&path)? != Kind::Nothing;
                if there {
                    let ours = attempted && same(store, &path, &mut file, bytes)?;
                    return Ok(if ours { PutOutcome::Written } else { PutOutcome::AlreadyThere });
                }
                attempted = true;
                match put(store, &path, &mut file, bytes)? {
                    // It was free a moment ago: a lost reply, or another run's file.
                    PutOutcome::AlreadyThere if same(store, &path, &mut file, bytes)? => {
                        Ok(PutOutcome::Written)
                    }
                    outcome => Ok(outcome),
                }
            })?;
            if outcome == PutOutcome::Written {
                return Ok(());
            }
        }
        Err(ConnectorError::fatal(format!("no free name beside {}", started.name(0))))
    }

    fn failed(&self, _: &Started, error: &io::Error) -> ConnectorError {
        of_disk(error)
    }
}

fn put(
    store: &Store,
    path: &str,
    file: &mut File,
    bytes: u64,
) -> Result<PutOutcome, ConnectorError> {
    file.seek(SeekFrom::Start(0)).map_err(|e| of_disk(&e))?;
    if bytes <= SINGLE_PUT_MAX {
        let mut whole = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        file.read_to_end(&mut whole).map_err(|e| of_disk(&e))?;
        return store.put(path, whole, PutMode::IfAbsent);
    }
    let mut upload = store.upload(path)?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = file.read(&mut buffer).map_err(|e| of_disk(&e))?;
        if count == 0 {
            break;
        }
        upload.append(&buffer[..count])?;
    }
    upload.finish()?;
    Ok(PutOutcome::Written)
}

/// Whether the object holds exactly the staged bytes.
fn same(store: &Store, path: &str, file: &mut File, bytes: u64) -> Result<bool, ConnectorError> {
    let reader = store.reader(path)?;
    if reader.size() != bytes {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(0)).map_err(|e| of_disk(&e))?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut at = 0;
    while at < bytes {
        let length = (bytes - at).min(COPY_BYTES as u64);
        let ours = &mut buffer[..length as usize];
        file.read_exact(ours).map_err(|e| of_disk(&e))?;
        if reader.read(at..at + length)? != *ours {
            return Ok(false);
        }
        at += length;
    }
    Ok(true)
}
