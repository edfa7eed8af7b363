//! The few things that a journal asks of a disk, and the folder of a real one.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Stopwatch;

/// How often a folder is looked at that somebody has.
const LOOK: Duration = Duration::from_millis(20);

/// A flat folder of files that grow at their ends.
///
/// What was appended is only sure to survive a crash of the machine once [`Disk::sync`] has
/// returned; that a file exists, or no longer does, only once [`Disk::sync_names`] has.
pub trait Disk: Send + Sync {
    /// All files with their sizes in bytes, in the order of their names.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Makes an empty file; an error if there is one of this name.
    fn create(&self, name: &str) -> io::Result<()>;
    /// Writes all of `bytes` at the file's end; on an error any part of them may have been written.
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Returns once everything that was appended to the file is on disk.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Returns once all creations and removals are on disk.
    fn sync_names(&self) -> io::Result<()>;
    /// Reads bytes from position `at`: fewer than asked for only at the end.
    fn read(&self, name: &str, at: u64, bytes: &mut [u8]) -> io::Result<usize>;
    /// Cuts the file to `size` bytes, and returns once that is on disk.
    fn truncate(&self, name: &str, size: u64) -> io::Result<()>;
    /// Removes a file.
    fn remove(&self, name: &str) -> io::Result<()>;
}

/// A disk that also keeps small files which change as a whole.
pub trait Replacing: Disk {
    /// Puts a file in place of the one of this name, if there is one: after a crash it is the old
    /// one or the new one. Returns once the new one is on disk.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
}

/// A folder in the file system, for one user at a time: a `lock` file sees to that.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    open: Mutex<BTreeMap<String, Arc<File>>>,
    _lock: File,
}

impl Folder {
    /// Makes the folder where it does not exist, and locks it for as long as the value lives.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] if it is in use, by this process or another.
    pub fn open(path: &Path) -> io::Result<Folder> {
        std::fs::create_dir_all(path)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(path.join("lock"))?;
        lock.try_lock().map_err(|e| match e {
            std::fs::TryLockError::WouldBlock => io::Error::from(io::ErrorKind::WouldBlock),
            std::fs::TryLockError::Error(e) => e,
        })?;
        Ok(Folder { path: path.to_owned(), open: Mutex::default(), _lock: lock })
    }

    /// The same, once whoever has it has let it go: a process that ends may have it for a moment
    /// still, and so does one that is about to become another.
    ///
    /// # Errors
    /// As [`Folder::open`], after that time.
    pub fn open_within(path: &Path, time: Duration) -> io::Result<Folder> {
        let began = Stopwatch::start();
        loop {
            match Folder::open(path) {
                Err(error)
                    if error.kind() == io::ErrorKind::WouldBlock && began.elapsed() < time =>
                {
                    std::thread::sleep(LOOK);
                }
                done => return done,
            }
        }
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Arc<File>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        let mut files = self.files();
        if let Some(file) = files.get(name) {
            return Ok(Arc::clone(file));
        }
        let file = OpenOptions::new().read(true).append(true).open(self.path.join(name))?;
        let file = Arc::new(file);
        files.insert(name.to_owned(), Arc::clone(&file));
        // Readers pass through many old segments; what they leave behind is closed, the newest
        // kept.
        while files.len() > 8 {
            files.pop_first();
        }
        Ok(file)
    }
}

impl Disk for Folder {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            if let Ok(name) = entry.file_name().into_string() {
                files.push((name, entry.metadata()?.len()));
            }
        }
        files.sort();
        Ok(files)
    }

    fn create(&self, name: &str) -> io::Result<()> {
        let file = OpenOptions::new()
            .create_new(true)
            .read(true)
            .append(true)
            .open(self.path.join(name))?;
        self.files().insert(name.to_owned(), Arc::new(file));
        Ok(())
    }

    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        (&*self.file(name)?).write_all(bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn sync_names(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn read(&self, name: &str, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let file = self.file(name)?;
        let mut filled = 0;
        while filled < bytes.len() {
            match file.read_at(&mut bytes[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(n) => filled += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(filled)
    }

    fn truncate(&self, name: &str, size: u64) -> io::Result<()> {
        let file = self.file(name)?;
        file.set_len(size)?;
        file.sync_all()
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.files().remove(name);
        std::fs::remove_file(self.path.join(name))
    }
}

impl Replacing for Folder {
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let path = self.path.join(name);
        let aside = self.path.join(format!("{name}.tmp"));
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&aside, &path)?;
        self.files().remove(name);
        self.sync_names()
    }
}
