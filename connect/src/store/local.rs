//! Files on local disks.
//!
//! # Invariant
//! A name that does not start with a dot holds a whole object: it is written under a name of its
//! own, synced, then renamed, and the folder is synced. A crash leaves at most a file with a dot,
//! which no listing shows.

use bytes::Bytes;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use weir_engine::connector::ConnectorError;

use super::fault::of_disk;
use super::{Entry, Kind, PutMode, PutOutcome};
use crate::options::did_you_mean;

/// A local folder, or a single file.
#[derive(Clone)]
pub(super) struct Folder(PathBuf);

impl Folder {
    pub(super) fn at(path: &str) -> Folder {
        Folder(PathBuf::from(path))
    }

    pub(super) fn at_url(url: &str, shown: &str) -> Result<Folder, ConnectorError> {
        let path = url::Url::parse(url).ok().and_then(|url| url.to_file_path().ok());
        path.map(Folder).ok_or_else(|| {
            ConnectorError::reconfigure(format!("{shown} is no URL of a local file"))
                .hint("write file:///absolute/path, or just the path")
        })
    }

    fn path(&self, path: &str) -> PathBuf {
        if path.is_empty() { self.0.clone() } else { self.0.join(path) }
    }

    pub(super) fn kind(&self, path: &str, name: &str) -> Result<Kind, ConnectorError> {
        match fs::metadata(self.path(path)) {
            Ok(meta) if meta.is_dir() => Ok(Kind::Folder),
            Ok(meta) => Ok(Kind::File(meta.len())),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Kind::Nothing),
            Err(e) => Err(of_disk(&e, "read", name)),
        }
    }

    pub(super) fn list(&self, path: &str, name: &str) -> Result<Vec<Entry>, ConnectorError> {
        match self.kind(path, name)? {
            Kind::Nothing => Ok(Vec::new()),
            Kind::File(size) => Ok(vec![Entry { path: path.to_owned(), size }]),
            Kind::Folder => {
                let mut entries = Vec::new();
                walk(&self.path(path), path, name, &mut entries)?;
                Ok(entries)
            }
        }
    }

    pub(super) fn open_file(&self, path: &str, name: &str) -> Result<(u64, File), ConnectorError> {
        let full = self.path(path);
        let open = || {
            let file = File::open(&full)?;
            let meta = file.metadata()?;
            if meta.is_dir() {
                return Err(std::io::ErrorKind::IsADirectory.into());
            }
            Ok((meta.len(), file))
        };
        open().map_err(|e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => missing(&full, name),
            _ => of_disk(&e, "read", name),
        })
    }

    pub(super) fn delete(&self, path: &str, name: &str) -> Result<(), ConnectorError> {
        match fs::remove_file(self.path(path)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(of_disk(&e, "delete", name)),
            _ => Ok(()),
        }
    }

    /// Opens the staging file of an object.
    pub(super) fn stage(&self, path: &str, name: &str) -> Result<Staged, ConnectorError> {
        static STAGED: AtomicU64 = AtomicU64::new(0);
        let target = self.path(path);
        let fault = |e: std::io::Error| of_disk(&e, "write", name);
        let (Some(folder), Some(file_name)) = (target.parent(), target.file_name()) else {
            return Err(ConnectorError::reconfigure(format!("{name} is no name of a file")));
        };
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        make_folder(folder).map_err(fault)?;
        let number = STAGED.fetch_add(1, Ordering::Relaxed);
        let stem = file_name.to_string_lossy();
        let stem = stem.trim_start_matches('.');
        let staging = folder.join(format!(".{stem}.{}-{number}.part", std::process::id()));
        let file = File::create(&staging).map_err(fault)?;
        Ok(Staged {
            file,
            staging: Some(staging),
            folder: folder.to_owned(),
            target: target.clone(),
            name: name.to_owned(),
        })
    }
}

/// Makes a folder with all folders on the way, and syncs the folder above each one made.
fn make_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder.parent().filter(|p| !p.as_os_str().is_empty()) {
        make_folder(above)?;
        match fs::create_dir(folder) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
            Err(_) if !folder.is_dir() => return Err(std::io::ErrorKind::NotADirectory.into()),
            _ => {}
        }
        File::open(above)?.sync_all()
    } else {
        fs::create_dir_all(folder)
    }
}

/// Everything below `folder` but names that start with a dot.
fn walk(
    folder: &Path,
    path: &str,
    name: &str,
    entries: &mut Vec<Entry>,
) -> Result<(), ConnectorError> {
    let fault = |e: std::io::Error| of_disk(&e, "list", name);
    for item in fs::read_dir(folder).map_err(fault)? {
        let item = item.map_err(fault)?;
        let file_name = item.file_name();
        let Some(file_name) = file_name.to_str() else {
            return Err(ConnectorError::reconfigure(format!(
                "cannot list {name}: it holds a name that is not UTF-8: {}",
                file_name.to_string_lossy()
            )));
        };
        if file_name.starts_with('.') {
            continue;
        }
        let below =
            if path.is_empty() { file_name.to_owned() } else { format!("{path}/{file_name}") };
        // Follows links; one that leads nowhere is passed over, as is a file just removed.
        match fs::metadata(item.path()) {
            Ok(meta) if meta.is_dir() => walk(&item.path(), &below, name, entries)?,
            Ok(meta) => entries.push(Entry { path: below, size: meta.len() }),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(fault(e)),
        }
    }
    Ok(())
}

/// No such file, and what there is beside it.
fn missing(path: &Path, name: &str) -> ConnectorError {
    let error = ConnectorError::reconfigure(format!("no such file: {name}"));
    let folder = path.parent().map(|p| if p.as_os_str().is_empty() { Path::new(".") } else { p });
    let Some(folder) = folder.filter(|f| f.is_dir()) else {
        return error.hint("its folder does not exist either; check 'path'");
    };
    let mut beside: Vec<String> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|item| item.ok()?.file_name().into_string().ok())
        .filter(|other| !other.starts_with('.'))
        .collect();
    beside.sort_unstable();
    let wanted = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match did_you_mean(&wanted, beside.iter().map(String::as_str)) {
        Some(similar) => error.hint(format!("beside it there is {similar}")),
        None => error.hint("check 'path'; a relative path starts where weir was started"),
    }
}

/// A file that nobody sees yet.
pub(super) struct Staged {
    file: File,
    /// `None` once it has its name.
    staging: Option<PathBuf>,
    folder: PathBuf,
    target: PathBuf,
    name: String,
}

impl Staged {
    pub(super) fn append(&mut self, bytes: &[u8]) -> Result<(), ConnectorError> {
        self.file.write_all(bytes).map_err(|e| of_disk(&e, "write", &self.name))
    }

    pub(super) fn finish(mut self, mode: PutMode) -> Result<PutOutcome, ConnectorError> {
        let outcome = self.publish(mode).map_err(|e| of_disk(&e, "write", &self.name))?;
        Ok(outcome)
    }

    fn publish(&mut self, mode: PutMode) -> std::io::Result<PutOutcome> {
        self.file.sync_all()?;
        let Some(staging) = &self.staging else { return Ok(PutOutcome::Written) };
        match mode {
            PutMode::Replace => {
                fs::rename(staging, &self.target)?;
                self.staging = None;
            }
            // A hard link is the one way to give a name only if it is free.
            PutMode::IfAbsent => match fs::hard_link(staging, &self.target) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    return Ok(PutOutcome::AlreadyThere);
                }
                Err(e) => return Err(e),
            },
        }
        File::open(&self.folder)?.sync_all()?;
        Ok(PutOutcome::Written)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(staging) = &self.staging {
            // What remains of it has a dot, and nobody looks at it.
            let _ = fs::remove_file(staging);
        }
    }
}

/// Bytes `range` of an open file.
pub(super) fn read_at(file: &File, range: Range<u64>, name: &str) -> Result<Bytes, ConnectorError> {
    let length = (range.end - range.start) as usize;
    // Not zeroed before: pages that the system has to clear cost more than the reading itself.
    let mut bytes = Vec::with_capacity(length);
    while bytes.len() < length {
        let at = range.start + bytes.len() as u64;
        match rustix::io::pread(file, rustix::buffer::spare_capacity(&mut bytes), at) {
            Ok(0) => {
                let short = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(of_disk(&short, "read", name));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(of_disk(&error.into(), "read", name)),
        }
    }
    bytes.truncate(length);
    Ok(Bytes::from(bytes))
}
