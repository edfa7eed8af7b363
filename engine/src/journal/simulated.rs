//! A disk in memory that loses power: what was not synced is forgotten, in part or whole.
//!
//! On a crash, every 16-byte block appended since the last sync is kept, zeroed or cut off at the
//! whim of the seed, and every name made or removed since the last `sync_names` is there or not.
//! That is worse than any real disk, and as bad as the contract of [`Disk`] allows.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{Disk, Replacing};

const BLOCK_BYTES: usize = 16;

#[derive(Clone, Default)]
struct Inode {
    bytes: Vec<u8>,
    synced: usize,
}

#[derive(Clone, Default)]
struct State {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    synced_names: BTreeMap<String, usize>,
    /// Operations until the power goes; `None` means never.
    fuse: Option<usize>,
    /// Bytes that fit; `None` means any number.
    capacity: Option<usize>,
}

/// The disk; `lying` makes its `sync` return without having done anything.
#[derive(Default)]
pub struct Simulated {
    state: Mutex<State>,
    lying: bool,
}

/// SplitMix64: the whims of a crash, from a seed.
pub struct Whims(
    /// The state; the seed at first.
    pub u64,
);

impl Whims {
    /// A number below `n` (0 where `n` is 0).
    pub fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n.max(1)
    }
}

impl Simulated {
    /// A disk whose `sync` does nothing.
    pub fn lying() -> Simulated {
        Simulated { lying: true, ..Simulated::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The power goes during the operation after `operations` more.
    pub fn fuse(&self, operations: usize) {
        self.state().fuse = Some(operations);
    }

    /// No more than `bytes` fit.
    pub fn capacity(&self, bytes: Option<usize>) {
        self.state().capacity = bytes;
    }

    /// It was the process that died, not the machine: nothing is forgotten.
    pub fn power_back(&self) {
        self.state().fuse = None;
    }

    /// The disk as it is found after the power has gone.
    pub fn after_crash(&self, seed: u64) -> Simulated {
        let mut whims = Whims(seed);
        let mut state = self.state().clone();
        state.fuse = None;
        let mut names = state.synced_names.clone();
        for (name, inode) in &state.names {
            if whims.below(2) == 0 {
                names.insert(name.clone(), *inode);
            }
        }
        names.retain(|name, _| state.names.contains_key(name) || whims.below(2) == 0);
        for inode in &mut state.inodes {
            let unsynced = inode.bytes.len() - inode.synced;
            let kept = inode.synced + whims.below(unsynced as u64 + 1) as usize;
            inode.bytes.truncate(kept);
            for block in inode.bytes[inode.synced..].chunks_mut(BLOCK_BYTES) {
                if whims.below(3) == 0 {
                    block.fill(0);
                }
            }
            inode.synced = inode.bytes.len();
        }
        state.synced_names = names.clone();
        state.names = names;
        Simulated { state: Mutex::new(state), lying: self.lying }
    }

    /// Flips all bits of one byte.
    pub fn damage(&self, name: &str, at: usize) {
        let mut state = self.state();
        let inode = state.names[name];
        state.inodes[inode].bytes[at] ^= 0xFF;
    }

    /// What is in a file.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let state = self.state();
        state.inodes[state.names[name]].bytes.clone()
    }

    /// The state for one operation; false: the power goes during it.
    fn operate(&self) -> io::Result<(MutexGuard<'_, State>, bool)> {
        let mut state = self.state();
        match state.fuse {
            None => Ok((state, true)),
            Some(usize::MAX) => Err(io::Error::other("no power")),
            Some(0) => {
                state.fuse = Some(usize::MAX);
                Ok((state, false))
            }
            Some(left) => {
                state.fuse = Some(left - 1);
                Ok((state, true))
            }
        }
    }

    /// An operation that is done, or not done at all.
    fn whole(&self, work: impl FnOnce(&mut State) -> io::Result<()>) -> io::Result<()> {
        let (mut state, powered) = self.operate()?;
        if powered { work(&mut state) } else { Err(io::Error::other("the power went")) }
    }
}

fn inode(state: &mut State, name: &str) -> io::Result<usize> {
    state.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
}

impl Disk for Simulated {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let state = self.state();
        let size = |inode: &usize| state.inodes[*inode].bytes.len() as u64;
        Ok(state.names.iter().map(|(name, inode)| (name.clone(), size(inode))).collect())
    }

    fn create(&self, name: &str) -> io::Result<()> {
        self.whole(|state| {
            if state.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            state.inodes.push(Inode::default());
            state.names.insert(name.to_owned(), state.inodes.len() - 1);
            Ok(())
        })
    }

    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let (mut state, powered) = self.operate()?;
        let used: usize = state.names.values().map(|i| state.inodes[*i].bytes.len()).sum();
        let free = state.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(used));
        let fits = bytes.len().min(free);
        let inode = inode(&mut state, name)?;
        state.inodes[inode].bytes.extend_from_slice(&bytes[..fits]);
        match (powered, fits == bytes.len()) {
            (true, true) => Ok(()),
            (true, false) => Err(io::ErrorKind::StorageFull.into()),
            (false, _) => Err(io::Error::other("the power went")),
        }
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.whole(|state| {
            let inode = inode(state, name)?;
            if !self.lying {
                state.inodes[inode].synced = state.inodes[inode].bytes.len();
            }
            Ok(())
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.whole(|state| {
            state.synced_names = state.names.clone();
            Ok(())
        })
    }

    fn read(&self, name: &str, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut state = self.state();
        let inode = inode(&mut state, name)?;
        let from = state.inodes[inode].bytes.get(at as usize..).unwrap_or_default();
        let read = from.len().min(bytes.len());
        bytes[..read].copy_from_slice(&from[..read]);
        Ok(read)
    }

    fn truncate(&self, name: &str, size: u64) -> io::Result<()> {
        self.whole(|state| {
            let inode = inode(state, name)?;
            let inode = &mut state.inodes[inode];
            inode.bytes.truncate(size as usize);
            inode.synced = inode.synced.min(inode.bytes.len());
            Ok(())
        })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.whole(|state| {
            state.names.remove(name).map(|_| ()).ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }
}

impl Replacing for Simulated {
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.whole(|state| {
            state.inodes.push(Inode { bytes: bytes.to_vec(), synced: bytes.len() });
            for names in [&mut state.names, &mut state.synced_names] {
                names.insert(name.to_owned(), state.inodes.len() - 1);
            }
            Ok(())
        })
    }
}
