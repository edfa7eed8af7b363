//! Files in the making: written on the local disk, then made an object in one step.
//!
//! # Argument
//! For a local folder a draft has a hidden name in that folder, so that it is on the file system of
//! its final name. It is synced before it gets that name, and the folder is synced afterwards: a
//! visible file is whole, even after a power cut. While it is written its lock is held; what has no
//! lock was left by a run that died, and [`sweep`] removes it.
//!
//! For an object store a draft is a file without a name in the system's temporary folder. An upload
//! that fails half-way is begun again from it, so memory is bounded by the parts under way and no
//! failure of the server loses a byte.

use bytes::Bytes;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use weir_engine::connector::{ConnectorError, Remedy};

use super::fault::of_disk;
use super::{PutMode, PutOutcome, Store, local, remote};

const IN_PROGRESS: &str = ".inprogress";
/// Names tried for one draft before something else must be wrong.
const NAMES_MAX: u32 = 100_000;

/// A file that nobody sees yet. Dropping it removes what it left on disk.
pub struct Draft {
    pub(super) file: File,
    pub(super) size: u64,
    /// What is being written, for messages; empty for an object store.
    pub(super) name: String,
    pub(super) place: DraftPlace,
}

/// Asked right before something becomes visible.
pub(super) type May<'a> = &'a dyn Fn() -> Result<(), ConnectorError>;

pub(super) enum DraftPlace {
    Local(Hidden),
    /// The path for which a put was begun; how that ended may be unknown.
    Remote {
        tried: Option<String>,
    },
}

/// A hidden name, taken back when it is dropped.
pub(super) struct Hidden {
    path: PathBuf,
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // It is gone where it was renamed; what remains has a dot, and nobody looks at it.
        let _ = fs::remove_file(&self.path);
    }
}

impl Draft {
    /// Bytes written so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes the whole file the object at `path` of the store that it was drafted for, durably,
    /// unless one is there already; then another path may be tried. After `Retry` the same call may
    /// be repeated, whatever became of the first attempt.
    ///
    /// # Errors
    /// What the world answers; for a local disk never `Retry`, because a file whose sync has failed
    /// may be lost in parts.
    pub fn publish(&mut self, store: &Store, path: &str) -> Result<PutOutcome, ConnectorError> {
        self.publish_if(store, path, &|| Ok(()))
    }

    /// The same, if `may` says so right before the one step that makes the object visible: after
    /// the file is synced, or after all its parts are at the server.
    ///
    /// # Errors
    /// Those of [`publish`](Draft::publish), and those of `may`.
    pub fn publish_if(
        &mut self,
        store: &Store,
        path: &str,
        may: May<'_>,
    ) -> Result<PutOutcome, ConnectorError> {
        let name = store.told(path);
        match (&store.place, &mut self.place) {
            (super::Place::Local(folder), DraftPlace::Local(hidden)) => {
                let target = folder.path(path);
                let put = hidden.publish(&self.file, &target, PutMode::IfAbsent, may, &name);
                put.map_err(final_one)
            }
            (super::Place::Remote(bucket), DraftPlace::Remote { tried }) => {
                bucket.publish(path, (&mut self.file, self.size), tried, may, &name)
            }
            _ => unreachable!("a draft is published where it was made"),
        }
    }

    /// Whether the object at `path` of the store holds exactly what was written here. Where it
    /// does, it is as durable as if it had just been published.
    ///
    /// # Errors
    /// There is no object at `path`; what the world answers.
    pub fn is_at(&mut self, store: &Store, path: &str) -> Result<bool, ConnectorError> {
        let name = store.told(path);
        match &store.place {
            super::Place::Local(folder) => {
                folder.holds(path, &self.file, self.size, &name).map_err(final_one)
            }
            super::Place::Remote(bucket) => bucket.same(path, &mut self.file, self.size, &name),
        }
    }

    /// Bytes `range` of what was written so far.
    ///
    /// # Errors
    /// What the disk answers; `Fatal` where not so much was written.
    pub fn read(&self, range: Range<u64>) -> Result<Bytes, ConnectorError> {
        let name = match &self.place {
            DraftPlace::Local(_) => self.name.clone(),
            DraftPlace::Remote { .. } => remote::staging(),
        };
        local::read_at(&self.file, range, &name)
    }
}

/// For encoders. The [`ConnectorError`] is inside the [`io::Error`].
impl Write for Draft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.file.write(bytes) {
            Ok(count) => {
                self.size += count as u64;
                Ok(count)
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Err(error),
            Err(error) => Err(io::Error::other(match &self.place {
                DraftPlace::Local(_) => final_one(of_disk(&error, "write", &self.name)),
                DraftPlace::Remote { .. } => remote::of_staging(&error),
            })),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What was written so far cannot be written again, so no failure of the disk is worth another try.
fn final_one(mut error: ConnectorError) -> ConnectorError {
    if error.remedy == Remedy::Retry {
        error.remedy = Remedy::Fatal;
    }
    error
}

/// A draft in the folder of its final name. `name` is for messages.
pub(super) fn hidden(folder: &Path, label: &str, name: &str) -> io::Result<Draft> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    for _ in 0..NAMES_MAX {
        // Another run may have the same number of process, in a container of its own.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = folder.join(format!(".{label}-{}-{number}{IN_PROGRESS}", std::process::id()));
        let file = match options.open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            other => other?,
        };
        match file.try_lock() {
            // A file system without locks: a crash then leaves the file until someone removes it.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            // Somebody is about to sweep it away.
            Err(TryLockError::WouldBlock) => continue,
        }
        let place = DraftPlace::Local(Hidden { path });
        return Ok(Draft { file, size: 0, name: name.to_owned(), place });
    }
    Err(ErrorKind::AlreadyExists.into())
}

/// A draft for an object store: a file that has no name any more and goes with its handle.
pub(super) fn nameless() -> Result<Draft, ConnectorError> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let folder = std::env::temp_dir();
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("weir-{}-{number}.staged", std::process::id()));
    let mut options = OpenOptions::new();
    // A leftover of a process of the same number is nobody's any more.
    let opened = options.read(true).write(true).create(true).truncate(true).open(&path);
    let opened = opened.and_then(|file| fs::remove_file(&path).map(|()| file));
    let file = opened.map_err(|error| remote::of_staging(&error))?;
    let place = DraftPlace::Remote { tried: None };
    Ok(Draft { file, size: 0, name: String::new(), place })
}

/// Removes drafts in `folder` whose label starts with `label` and that no living run holds.
pub(super) fn sweep(folder: &Path, label: &str) -> io::Result<()> {
    let prefix = format!(".{label}");
    for entry in fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with(&prefix) || !name.ends_with(IN_PROGRESS) {
            continue;
        }
        let path = entry.path();
        let unlocked = File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if unlocked && fs::remove_file(&path).is_ok() {
            tracing::info!(file = %path.display(), "removed an unfinished file of an earlier run");
        }
    }
    Ok(())
}

impl Hidden {
    /// Gives the file its visible name, if it may.
    pub(super) fn publish(
        &self,
        file: &File,
        target: &Path,
        mode: PutMode,
        may: May<'_>,
        name: &str,
    ) -> Result<PutOutcome, ConnectorError> {
        let fault = |e: io::Error| of_disk(&e, "write", name);
        let folder = local::folder_of(target);
        file.sync_all().and_then(|()| local::make_folder(folder)).map_err(fault)?;
        may()?;
        self.appear(folder, target, mode).map_err(fault)
    }

    fn appear(&self, folder: &Path, target: &Path, mode: PutMode) -> io::Result<PutOutcome> {
        match mode {
            PutMode::Replace => fs::rename(&self.path, target)?,
            PutMode::IfAbsent => match self.link(target) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists => {
                    return Ok(PutOutcome::AlreadyThere);
                }
                other => other?,
            },
        }
        File::open(folder)?.sync_all()?;
        Ok(PutOutcome::Written)
    }

    /// A hard link is the one way to give a name only if it is free.
    fn link(&self, target: &Path) -> io::Result<()> {
        match fs::hard_link(&self.path, target) {
            // File systems without hard links: look, then rename. Only another run that writes the
            // same name in the same moment could come between.
            Err(error)
                if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) =>
            {
                if target.exists() {
                    return Err(ErrorKind::AlreadyExists.into());
                }
                fs::rename(&self.path, target)
            }
            other => other,
        }
    }
}
