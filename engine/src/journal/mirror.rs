//! Two disks with the same files: what one loses the other has.
//!
//! # Invariant
//! What `sync` and `sync_names` have returned for is on both disks.
//!
//! # Argument
//! - Everything is done on both, and only what both have done is done. Where one refuses, the
//!   writer hears of it and takes the operation back on both.
//! - *Opening*: whatever was synced is on each disk that was not lost or put back from an older
//!   copy, and such a disk ends earlier or has fewer files. So the disk that ends last is taken as
//!   it is, and the other one is made equal to it: what follows behind the common beginning of a
//!   file is taken back, what is missing is copied, the last byte of all last, when the others are
//!   on disk. So a crash meanwhile leaves the other one behind, and the next opening does it again.
//!
//! # Complexity
//! A sync waits for both disks side by side. Opening compares the newest file byte by byte and the
//! others by their sizes: they do not change any more.
//!
//! # Limits
//! Damage in the middle of an old file is not mended: it shows when it is read. Whoever removes the
//! damaged file's folder gets it back from the other disk at the next start.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use super::{Disk, is_lost};

/// Bytes that are copied at once.
const COPY_BYTES: usize = 1 << 20;

/// Two disks as one.
pub struct Mirror {
    disks: [Arc<dyn Disk>; 2],
}

/// What an opening has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mended {
    /// The disk that was behind: 0 or 1.
    pub disk: usize,
    /// Bytes that were copied to it.
    pub bytes: u64,
}

impl Mirror {
    /// Opens the files whose names end in `suffix` on both disks, and makes them equal.
    ///
    /// # Errors
    /// The disks'.
    pub fn open(disks: [Arc<dyn Disk>; 2], suffix: &str) -> io::Result<(Mirror, Option<Mended>)> {
        let list = |disk: &Arc<dyn Disk>| -> io::Result<BTreeMap<String, u64>> {
            Ok(disk.list()?.into_iter().filter(|(name, _)| name.ends_with(suffix)).collect())
        };
        let files = [list(&disks[0])?, list(&disks[1])?];
        let extent = |files: &BTreeMap<String, u64>| {
            let last = files.last_key_value().map(|(name, size)| (name.clone(), *size));
            (last, files.len())
        };
        let whole = usize::from(extent(&files[1]) > extent(&files[0]));
        let behind = 1 - whole;
        let bytes = equalise(&*disks[whole], &*disks[behind], [&files[whole], &files[behind]])?;
        let mended = bytes.map(|bytes| Mended { disk: behind, bytes });
        Ok((Mirror { disks }, mended))
    }

    fn both(&self, act: impl Fn(&dyn Disk) -> io::Result<()>) -> io::Result<()> {
        // Also on the second where the first refuses: what is taken back is taken back on both.
        worst(self.disks.each_ref().map(|disk| act(&**disk)))
    }
}

/// What comes of two: the first error, but that a disk is lost counts before what the other one
/// says. It needs another answer.
fn worst(done: [io::Result<()>; 2]) -> io::Result<()> {
    match done {
        [_, Err(second)] if is_lost(&second) => Err(second),
        [first, second] => first.and(second),
    }
}

/// Makes `to` equal to `from`; bytes copied, if anything had to be done.
fn equalise(
    from: &dyn Disk,
    to: &dyn Disk,
    [wanted, found]: [&BTreeMap<String, u64>; 2],
) -> io::Result<Option<u64>> {
    let mut done = None;
    let newest = wanted.last_key_value().map(|(name, _)| name);
    let oldest = wanted.first_key_value().map(|(name, _)| name);
    for name in found.keys().filter(|name| !wanted.contains_key(*name)) {
        if oldest < Some(name) && Some(name) < newest {
            let what = format!("{name} is on one of the two only, in the midst of the others");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        to.remove(name)?;
        done = done.or(Some(0));
    }
    for (name, &size) in wanted {
        let there = found.get(name).copied();
        if there.is_none() {
            to.create(name)?;
        }
        let there = there.unwrap_or(0);
        let common = if there == size && Some(name) != newest {
            size
        } else {
            in_common(from, to, name, there.min(size))?
        };
        if common < there {
            to.truncate(name, common)?;
        }
        let but_one = if Some(name) == newest { size.saturating_sub(1) } else { size };
        if common < but_one {
            copy(from, to, name, common, but_one)?;
            to.sync(name)?;
        }
        copy(from, to, name, common.max(but_one), size)?;
        if common < size || common < there {
            to.sync(name)?;
            done = Some(done.unwrap_or(0) + (size - common));
        }
    }
    if done.is_some() {
        to.sync_names()?;
    }
    Ok(done)
}

/// Bytes from the beginning that a file has in common on two disks, of the first `most`.
fn in_common(a: &dyn Disk, b: &dyn Disk, name: &str, most: u64) -> io::Result<u64> {
    let (mut left, mut right) = (vec![0; COPY_BYTES], vec![0; COPY_BYTES]);
    let mut at = 0;
    while at < most {
        let want = usize::try_from(most - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let read =
            a.read(name, at, &mut left[..want])?.min(b.read(name, at, &mut right[..want])?);
        let same = left[..read].iter().zip(&right[..read]).take_while(|(a, b)| a == b).count();
        at += same as u64;
        if same < want {
            break;
        }
    }
    Ok(at)
}

fn copy(from: &dyn Disk, to: &dyn Disk, name: &str, mut at: u64, until: u64) -> io::Result<()> {
    let mut bytes = vec![0; COPY_BYTES];
    while at < until {
        let want = usize::try_from(until - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        let read = from.read(name, at, &mut bytes[..want])?;
        if read == 0 {
            return Ok(());
        }
        to.append(name, &bytes[..read])?;
        at += read as u64;
    }
    Ok(())
}

impl Disk for Mirror {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.disks[0].list()
    }

    fn create(&self, name: &str) -> io::Result<()> {
        self.both(|disk| disk.create(name))
    }

    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.both(|disk| disk.append(name, bytes))
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let [first, second] = &self.disks;
        std::thread::scope(|scope| {
            let other = scope.spawn(|| second.sync(name));
            let done = first.sync(name);
            let panicked = |_| Err(io::Error::other("the thread of the second disk panicked"));
            worst([done, other.join().unwrap_or_else(panicked)])
        })
    }

    fn sync_names(&self) -> io::Result<()> {
        self.both(|disk| disk.sync_names())
    }

    fn read(&self, name: &str, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.disks[0].read(name, at, bytes)
    }

    fn truncate(&self, name: &str, size: u64) -> io::Result<()> {
        self.both(|disk| disk.truncate(name, size))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let done = self.disks.each_ref().map(|disk| disk.remove(name));
        let is_missing = |done: &io::Result<()>| {
            done.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
        };
        if done.iter().all(is_missing) {
            return worst(done);
        }
        // One that had it no more did its part when the other refused.
        worst(done.map(|done| if is_missing(&done) { Ok(()) } else { done }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::simulated::{Simulated, Whims};
    use super::super::{Entry, Journal, JournalError, Kind, SUFFIX};
    use super::*;

    const SEGMENT: u64 = 400;

    type Opened = Result<(Journal, Option<Mended>), JournalError>;

    fn try_open(disks: &[Arc<Simulated>; 2]) -> Opened {
        let disks = disks.each_ref().map(|disk| disk.clone() as Arc<dyn Disk>);
        let (mirror, mended) = Mirror::open(disks, SUFFIX).expect("both disks work");
        Ok((Journal::open(Arc::new(mirror), "test", SEGMENT)?, mended))
    }

    fn open(disks: &[Arc<Simulated>; 2]) -> (Journal, Option<Mended>) {
        try_open(disks).expect("a journal")
    }

    fn entries(journal: &Journal) -> Result<Vec<Vec<u8>>, JournalError> {
        let mut reader = journal.reader(0);
        let mut found = Vec::new();
        while let Some(record) = reader.read()? {
            found.push(record.entry.payload.to_vec());
        }
        Ok(found)
    }

    /// Appends and syncs until the power goes; what was acknowledged.
    fn work(disks: &[Arc<Simulated>; 2], seed: u64, kept: &mut Vec<Vec<u8>>) {
        let Ok((mut journal, _)) = try_open(disks) else { return };
        let mut whims = Whims(seed);
        disks[whims.below(2) as usize].fuse(whims.below(60) as usize);
        let mut waiting = Vec::new();
        for n in 0..40_u64 {
            let payload = format!("{seed}-{n}-{}", "x".repeat(whims.below(60) as usize));
            let payload = payload.into_bytes();
            let entry = Entry { arrival: 0, kind: Kind::Message, topic: "t", payload: &payload };
            if journal.append(&entry).is_err() {
                return;
            }
            waiting.push(payload.clone());
            if whims.below(3) == 0 {
                if journal.sync().is_err() {
                    return;
                }
                kept.append(&mut waiting);
            }
        }
    }

    /// Several crashes of the machine, each with or without the loss of a disk.
    fn survives(seed: u64, fresh: fn() -> Simulated) -> bool {
        let mut disks = [(); 2].map(|()| Arc::new(fresh()));
        let (mut kept, mut whims) = (Vec::new(), Whims(seed ^ 0x5eed));
        for turn in 0..4 {
            work(&disks, seed * 10 + turn, &mut kept);
            disks = disks.map(|disk| Arc::new(disk.after_crash(seed + turn)));
            if whims.below(2) == 0 {
                disks[whims.below(2) as usize] = Arc::new(fresh());
            }
            let there = try_open(&disks).and_then(|(journal, _)| entries(&journal));
            let Ok(there) = there else { return false };
            // Behind what was acknowledged there may be more, each entry once.
            let mut there = there.iter();
            if !kept.iter().all(|entry| there.any(|found| found == entry)) {
                return false;
            }
        }
        true
    }

    #[test]
    fn what_was_acknowledged_survives_crashes_and_the_loss_of_either_disk() {
        for seed in 0..300 {
            assert!(survives(seed, Simulated::default), "seed {seed}");
        }
    }

    #[test]
    fn disks_that_lie_about_syncs_are_caught() {
        assert!((0..100).any(|seed| !survives(seed, Simulated::lying)));
    }

    #[test]
    fn a_lost_disk_is_made_again_and_told() {
        let disks = [(); 2].map(|()| Arc::new(Simulated::default()));
        let mut kept = Vec::new();
        work(&disks, 4, &mut kept);
        let disks = disks.map(|disk| Arc::new(disk.after_crash(1)));
        for lost in 0..2 {
            let mut disks = disks.clone();
            drop(open(&disks));
            disks[lost] = Arc::new(Simulated::default());
            let (journal, mended) = open(&disks);
            assert!(mended.is_some_and(|mended| mended.disk == lost && mended.bytes > 0));
            let all = entries(&journal).expect("sound records");
            assert!(kept.iter().all(|entry| all.contains(entry)));
            assert_eq!(open(&disks).1, None, "both are equal now");
        }
    }

    /// A disk that refuses removals for a while.
    struct Stubborn(Arc<Simulated>, std::sync::atomic::AtomicBool);

    impl Disk for Stubborn {
        fn list(&self) -> io::Result<Vec<(String, u64)>> {
            self.0.list()
        }
        fn create(&self, name: &str) -> io::Result<()> {
            self.0.create(name)
        }
        fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
            self.0.append(name, bytes)
        }
        fn sync(&self, name: &str) -> io::Result<()> {
            self.0.sync(name)
        }
        fn sync_names(&self) -> io::Result<()> {
            self.0.sync_names()
        }
        fn read(&self, name: &str, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
            self.0.read(name, at, bytes)
        }
        fn truncate(&self, name: &str, size: u64) -> io::Result<()> {
            self.0.truncate(name, size)
        }
        fn remove(&self, name: &str) -> io::Result<()> {
            match self.1.load(std::sync::atomic::Ordering::Relaxed) {
                true => Err(io::ErrorKind::ResourceBusy.into()),
                false => self.0.remove(name),
            }
        }
    }

    #[test]
    fn a_removal_that_one_disk_refused_is_done_the_next_time() {
        for stubborn in 0..2 {
            let disks = [(); 2].map(|()| Arc::new(Simulated::default()));
            let refusing = Arc::new(Stubborn(disks[stubborn].clone(), true.into()));
            let mut both = disks.each_ref().map(|disk| disk.clone() as Arc<dyn Disk>);
            both[stubborn] = refusing.clone();
            let (mirror, _) = Mirror::open(both, SUFFIX).unwrap();
            let mut journal = Journal::open(Arc::new(mirror), "test", SEGMENT).unwrap();
            let payload = [b'x'; 100];
            let entry = Entry { arrival: 0, kind: Kind::Message, topic: "t", payload: &payload };
            for _ in 0..12 {
                journal.append(&entry).unwrap();
                journal.sync().unwrap();
            }
            let segments = || disks.each_ref().map(|disk| disk.list().unwrap().len());
            let before = segments();
            assert!(before[0] > 2 && before[0] == before[1], "{before:?}");
            let end = journal.bounds().1;
            assert!(journal.trim(end).is_err());
            refusing.1.store(false, std::sync::atomic::Ordering::Relaxed);
            journal.trim(end).unwrap();
            assert_eq!(segments(), [1, 1]);
        }
    }
}
