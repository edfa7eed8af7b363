//! A machine's disk as a process sees it: it ends with the process, in the middle of an append too.

use std::io;
use std::sync::Arc;

use super::fate::Life;
use crate::journal::Disk;
use crate::journal::simulated::Simulated;

/// The disk of a machine, for one process.
pub(super) struct Drive {
    pub(super) disk: Arc<Simulated>,
    pub(super) life: Arc<Life>,
    /// Once in so many times an fsync fails; 0 for never.
    pub(super) failing: u64,
}

impl Drive {
    fn operate(&self) -> io::Result<()> {
        if self.life.goes_on() { Ok(()) } else { Err(io::Error::other("the process is no more")) }
    }
}

impl Disk for Drive {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.operate()?;
        self.disk.list()
    }

    fn create(&self, name: &str) -> io::Result<()> {
        self.operate()?;
        self.disk.create(name)
    }

    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let whole = self.life.ended().is_none();
        if let Err(error) = self.operate() {
            if whole {
                // It ends in the middle of it.
                let part = self.life.fate.index(bytes.len() + 1);
                self.disk.append(name, &bytes[..part])?;
            }
            return Err(error);
        }
        self.disk.append(name, bytes)
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.operate()?;
        if self.failing > 0 && self.life.fate.once_in(self.failing) {
            self.life.fate.note("an fsync fails");
            return Err(io::Error::other("fsync failed"));
        }
        self.disk.sync(name)
    }

    fn sync_names(&self) -> io::Result<()> {
        self.operate()?;
        self.disk.sync_names()
    }

    fn read(&self, name: &str, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.operate()?;
        self.disk.read(name, at, bytes)
    }

    fn truncate(&self, name: &str, size: u64) -> io::Result<()> {
        self.operate()?;
        self.disk.truncate(name, size)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.operate()?;
        self.disk.remove(name)
    }
}
