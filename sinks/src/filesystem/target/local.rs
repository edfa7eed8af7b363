//! A folder on a local disk.
//!
//! # Argument
//! A file is written under a hidden name in the table's own folder, so that it is on the file
//! system of its final name. It is synced before it is linked there, and a link fails where a name
//! exists: so a visible file is whole, even after a power cut, and no file is ever replaced. Then
//! its folder is synced. While it is written its lock is held; what has no lock was left by a run
//! that died.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use weir_engine::connector::ConnectorError;

use super::{Files, Started};

const IN_PROGRESS: &str = ".inprogress";
/// Names tried for one file before something else must be wrong.
const NAMES_MAX: u32 = 100_000;

/// The folder of a table.
pub(crate) struct Folder {
    path: PathBuf,
}

/// The folder as one shard writes to it.
pub(crate) struct ShardFolder {
    table: String,
    path: PathBuf,
    files_started: u64,
}

impl Folder {
    pub(crate) fn at(path: &str) -> Folder {
        Folder { path: PathBuf::from(path) }
    }

    fn make(&self, table: &str) -> Result<(), ConnectorError> {
        fs::create_dir_all(&self.path).map_err(|error| blocked(&self.path, table, &error))
    }

    pub(crate) fn probe(&self, table: &str) -> Result<(), ConnectorError> {
        self.make(table)?;
        let attempt = self.path.join(format!(".part-probe-{}{IN_PROGRESS}", std::process::id()));
        let wrote = File::create(&attempt).and_then(|_| fs::remove_file(&attempt));
        wrote.map_err(|error| {
            let path = self.path.display();
            let message = format!("cannot write to {path} for table `{table}`: {}", plain(&error));
            ConnectorError::reconfigure(message)
        })
    }

    pub(crate) fn open(&self, table: &str, shard: u32) -> Result<ShardFolder, ConnectorError> {
        self.make(table)?;
        let prefix = format!(".part-{shard}-");
        let entries = fs::read_dir(&self.path).map_err(|e| blocked(&self.path, table, &e))?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(&prefix) && name.ends_with(IN_PROGRESS) {
                remove_left_over(&entry.path());
            }
        }
        Ok(ShardFolder { table: table.to_owned(), path: self.path.clone(), files_started: 0 })
    }
}

fn remove_left_over(path: &Path) {
    let unlocked = File::open(path).is_ok_and(|file| file.try_lock().is_ok());
    if unlocked && fs::remove_file(path).is_ok() {
        tracing::info!(file = %path.display(), "removed an unfinished file of an earlier run");
    }
}

/// Says why a folder cannot be made; names the part of its path that is a file, if that is it.
fn blocked(path: &Path, table: &str, error: &io::Error) -> ConnectorError {
    let file = path.ancestors().find(|part| part.is_file());
    let why = match file {
        Some(file) => format!("{} is a file, not a directory", file.display()),
        None => plain(error),
    };
    let shown = path.display();
    ConnectorError::reconfigure(format!("cannot create {shown} for table `{table}`: {why}"))
}

/// The error without its number.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_owned()
}

impl ShardFolder {
    fn blame(&self, what: &str, path: &Path, error: &io::Error) -> ConnectorError {
        let (path, table, why) = (path.display(), &self.table, plain(error));
        let message = format!("cannot {what} {path} for table `{table}`: {why}");
        ConnectorError::fatal(message).hint("files that were closed before are whole")
    }
}

impl Files for ShardFolder {
    fn start(
        &mut self,
        folder: &str,
        stem: &str,
        suffix: &'static str,
    ) -> Result<(Started, File), ConnectorError> {
        self.files_started += 1;
        let (number, process) = (self.files_started, std::process::id());
        // The number of the process is only in the hidden name: it tells two living runs apart.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create_new(true);
        let opened = (0..NAMES_MAX).find_map(|taken| {
            let path = self.path.join(format!(".{stem}-{number}-{process}-{taken}{IN_PROGRESS}"));
            match options.open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => None,
                Err(error) => Some(Err(self.blame("create", &path, &error))),
                Ok(file) => Some(Ok((path, file))),
            }
        });
        let (path, file) = opened
            .unwrap_or_else(|| Err(ConnectorError::fatal("no free name for an unfinished file")))?;
        match file.try_lock() {
            // A file system without locks: a crash then leaves the file until someone removes it.
            Ok(()) | Err(TryLockError::Error(_)) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(ConnectorError::fatal(format!("{} is in use", path.display())));
            }
        }
        let (folder, stem) = (folder.to_owned(), stem.to_owned());
        Ok((Started { folder, stem, suffix, temporary: Some(path) }, file))
    }

    fn publish(&mut self, started: Started, file: File, _: u64) -> Result<(), ConnectorError> {
        file.sync_all().map_err(|e| self.failed(&started, &e))?;
        let folder = self.path.join(&started.folder);
        if !folder.is_dir() {
            make_synced(&folder, &self.path).map_err(|e| self.blame("create", &folder, &e))?;
        }
        let temporary = started.temporary.clone().unwrap_or_default();
        for taken in 0..NAMES_MAX {
            let name = folder.join(started.name(taken));
            match link(&temporary, &name) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(self.blame("write", &name, &error)),
                Ok(()) => {
                    let synced = File::open(&folder).and_then(|dir| dir.sync_all());
                    return synced.map_err(|e| self.blame("write", &name, &e));
                }
            }
        }
        let name = folder.join(started.name(0));
        Err(self.blame("find a free name beside", &name, &ErrorKind::AlreadyExists.into()))
    }

    fn failed(&self, started: &Started, error: &io::Error) -> ConnectorError {
        self.blame("write", &self.path.join(&started.folder).join(started.name(0)), error)
    }
}

/// Gives a file its visible name unless the name is taken.
fn link(temporary: &Path, name: &Path) -> io::Result<()> {
    match fs::hard_link(temporary, name) {
        // File systems without hard links: look, then rename. Only another run that writes the same
        // name in the same moment could come between.
        Err(error)
            if matches!(error.kind(), ErrorKind::Unsupported | ErrorKind::PermissionDenied) =>
        {
            if name.exists() {
                return Err(ErrorKind::AlreadyExists.into());
            }
            fs::rename(temporary, name)
        }
        other => other,
    }
}

/// Makes `folder` below `root`, with every step of the way on disk.
fn make_synced(folder: &Path, root: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    for part in folder.ancestors().skip(1).take_while(|part| part.starts_with(root)) {
        File::open(part)?.sync_all()?;
    }
    Ok(())
}
