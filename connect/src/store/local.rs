//! Files on local disks.
//!
//! # Invariant
//! A name that does not start with a dot holds a whole object: it is written as a draft
//! (`draft.rs`). A crash leaves at most a file with a dot, which no listing shows.

use bytes::Bytes;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use weir_engine::connector::ConnectorError;

use super::draft::{self, Draft, DraftPlace};
use super::fault::of_disk;
use super::{Entry, Kind, PutMode, PutOutcome};
use crate::options::did_you_mean;

/// What of two files is compared at a time.
const COMPARED_BYTES: u64 = 1 << 20;

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

    pub(super) fn path(&self, path: &str) -> PathBuf {
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

    /// Whether a file that is there holds the first `size` bytes of `file` and no more; then it is
    /// synced with its folder, because whoever put it may have died before that.
    pub(super) fn holds(
        &self,
        path: &str,
        file: &File,
        size: u64,
        name: &str,
    ) -> Result<bool, ConnectorError> {
        let (there, other) = self.open_file(path, name)?;
        if there != size {
            return Ok(false);
        }
        let mut at = 0;
        while at < size {
            let end = size.min(at + COMPARED_BYTES);
            if read_at(file, at..end, name)? != read_at(&other, at..end, name)? {
                return Ok(false);
            }
            at = end;
        }
        let synced = other.sync_all().and_then(|()| {
            let full = self.path(path);
            File::open(folder_of(&full))?.sync_all()
        });
        synced.map_err(|e| of_disk(&e, "write", name))?;
        Ok(true)
    }

    pub(super) fn delete(&self, path: &str, name: &str) -> Result<(), ConnectorError> {
        match fs::remove_file(self.path(path)) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(of_disk(&e, "delete", name)),
            _ => Ok(()),
        }
    }

    pub(super) fn put(
        &self,
        path: &str,
        bytes: &[u8],
        mode: PutMode,
        name: &str,
    ) -> Result<PutOutcome, ConnectorError> {
        let fault = |e: std::io::Error| of_disk(&e, "write", name);
        let target = self.path(path);
        let Some(file_name) = target.file_name() else {
            return Err(ConnectorError::reconfigure(format!("{name} is no name of a file")));
        };
        let label = file_name.to_string_lossy();
        make_folder(folder_of(&target)).map_err(fault)?;
        let draft = draft::hidden(folder_of(&target), label.trim_start_matches('.'), name);
        let mut draft = draft.map_err(fault)?;
        draft.file.write_all(bytes).map_err(fault)?;
        match &draft.place {
            DraftPlace::Local(hidden) => {
                hidden.publish(&draft.file, &target, mode, &|| Ok(()), name)
            }
            DraftPlace::Remote { .. } => unreachable!("a hidden file is on a local disk"),
        }
    }

    pub(super) fn draft(&self, label: &str, name: &str) -> Result<Draft, ConnectorError> {
        let draft = draft::hidden(&self.0, label, name);
        draft.map_err(|e| of_disk(&e, "write", name))
    }

    pub(super) fn sweep(&self, label: &str, name: &str) -> Result<(), ConnectorError> {
        self.make(name)?;
        draft::sweep(&self.0, label).map_err(|e| of_disk(&e, "list", name))
    }

    /// Makes the folder; says what part of its path is a file, if that is in the way.
    pub(super) fn make(&self, name: &str) -> Result<(), ConnectorError> {
        make_folder(&self.0).map_err(|error| {
            let why = match self.0.ancestors().find(|part| part.is_file()) {
                Some(file) => format!("{} is a file, not a directory", file.display()),
                None => error.to_string(),
            };
            ConnectorError::reconfigure(format!("cannot create {name}: {why}"))
        })
    }
}

/// Where a file is.
pub(super) fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a folder with all folders on the way, and syncs the folder above each one made.
pub(super) fn make_folder(folder: &Path) -> std::io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if folder.parent().is_none() {
        return Err(std::io::ErrorKind::NotFound.into());
    }
    let above = folder_of(folder);
    make_folder(above)?;
    match fs::create_dir(folder) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
        Err(_) if !folder.is_dir() => return Err(std::io::ErrorKind::NotADirectory.into()),
        _ => {}
    }
    File::open(above)?.sync_all()
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
