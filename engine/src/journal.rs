//! The ingest journal: makes an offset log of an input that cannot be read again.
//!
//! A journal is a folder of segments (`record.rs` has their bytes). The writer appends entries,
//! makes them durable with one fsync for all that came meanwhile, and only then are they
//! acknowledged; readers follow behind, and see nothing that is not durable.
//!
//! # Invariant
//! Every entry whose `sync` has returned is read back, at its offset and unaltered, after a crash
//! at any moment; or the journal says which file is damaged, and where. Nothing is skipped.
//!
//! # Argument
//! - A segment is made, given its header and synced, and its name is synced, before an entry in it
//!   is acknowledged; and only after all of the segment before it is on disk. So only the last
//!   segment can be torn, and only behind what was synced.
//! - A *torn tail* and a *corrupt middle* both begin with a record that is not sound. They are told
//!   apart by a promise that each record carries: `durable`, below which all was on disk before the
//!   record was written. If a sound record further on promises the bad one, the disk has lost what
//!   it had: an error. If none does, nobody was told that the bad one is kept: it is cut off, and
//!   said so.
//! - Segments are removed oldest first, each removal on disk before the next, so a crash leaves no
//!   gap.
//! - A failed append is cut away again; after a failed fsync nobody knows what is on disk, so the
//!   journal refuses everything but reading until it is opened anew.
//!
//! # Complexity
//! An entry costs one copy and one checksum; an fsync serves any number. Opening reads the headers
//! and the last segment. Old segments are checked as they are read.
//!
//! # Limits
//! A disk that loses the very last synced entries, with nothing written after them, looks like a
//! torn tail; as does one that loses whole segments at the end. It survives the process and the
//! machine's power; the loss of a disk where there are two ([`Mirror`]), the second of which may be
//! another process's ([`CopyServer`]).

mod bucket;
mod copies;
mod crc;
pub(crate) use crc::crc32c;
mod disk;
mod mirror;
mod reader;
mod record;
pub mod simulated;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use thiserror::Error;

pub use bucket::Bucket;
pub use copies::{CopyServer, Peer, Remote, is_lost, new_secret};
pub use disk::{Disk, Folder, Replacing};
pub use mirror::{Mended, Mirror};
pub use reader::Reader;
pub use record::{Entry, Kind, Record};

use reader::{Cursor, Step};

/// Default size at which a segment is followed by the next one.
pub const SEGMENT_BYTES: u64 = 16 << 20;
const PENDING_BYTES_MAX: usize = 4 << 20;
/// What the names of segments end in.
pub const SUFFIX: &str = ".journal";

/// What can go wrong with a journal.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The disk refused; what was appended since the last sync is forgotten, all else stands.
    #[error("journal file {file}: cannot {doing}: {source}")]
    Io {
        /// `append`, `read`, …
        doing: &'static str,
        /// The file's name.
        file: String,
        /// What the system says.
        source: io::Error,
    },
    /// Bytes that were on disk are damaged or missing.
    #[error("journal file {file} is damaged at byte {at}: {reason}")]
    Corrupt {
        /// The file's name.
        file: String,
        /// Where in the file.
        at: u64,
        /// What is wrong.
        reason: String,
    },
    /// A segment of another format version.
    #[error("journal file {file} has format version {found}, this build reads version 1")]
    Version {
        /// The file's name.
        file: String,
        /// Its version.
        found: u32,
    },
    /// A journal of something else.
    #[error("journal file {file} belongs to `{found}`, not to `{wanted}`")]
    Label {
        /// The file's name.
        file: String,
        /// What it was made for.
        found: String,
        /// What it was opened for.
        wanted: String,
    },
    /// Offsets below this one have been trimmed.
    #[error("offset {wanted} is not in the journal any more, which begins at {first}")]
    Trimmed {
        /// The offset asked for.
        wanted: u64,
        /// The first one there is.
        first: u64,
    },
    /// An fsync failed earlier: nothing more is accepted.
    #[error("journal file {file}: an earlier fsync failed, so it is unknown what is on disk")]
    Unsure {
        /// The file's name.
        file: String,
    },
}

impl JournalError {
    /// Whether it says that the process with the second copy is out of reach: see [`is_lost`].
    pub fn is_lost(&self) -> bool {
        matches!(self, JournalError::Io { source, .. } if is_lost(source))
    }
}

/// A segment as far as it is durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) name: String,
    pub(crate) base: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Default)]
struct Durable {
    segments: Vec<Segment>,
    end: u64,
    closed: bool,
}

/// What the writer and the readers of a journal share: how far it is durable.
pub(crate) struct Shared {
    pub(crate) disk: Arc<dyn Disk>,
    label: String,
    durable: Mutex<Durable>,
    grown: Condvar,
}

impl Shared {
    fn durable(&self) -> MutexGuard<'_, Durable> {
        self.durable.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The segment that holds `offset`, and the one after it.
    pub(crate) fn segment_of(&self, offset: u64) -> Option<(Segment, Option<Segment>)> {
        let durable = self.durable();
        let after = durable.segments.partition_point(|s| s.base <= offset);
        let segment = durable.segments.get(after.checked_sub(1)?)?.clone();
        Some((segment, durable.segments.get(after).cloned()))
    }

    fn bounds(&self) -> (u64, u64) {
        let durable = self.durable();
        (durable.segments.first().map_or(durable.end, |s| s.base), durable.end)
    }
}

/// The writing end of a journal; there is one.
pub struct Journal {
    shared: Arc<Shared>,
    segment_bytes: u64,
    /// Encoded, and not yet handed to the disk.
    pending: Vec<u8>,
    /// Bytes of the last segment handed to the disk, durable or not.
    appended: u64,
    next: u64,
    durable_end: u64,
    unsure: bool,
}

impl Journal {
    /// Opens the journal on this disk, or begins it; cuts off a torn tail.
    ///
    /// `label` says what the journal belongs to (a topic filter); it is part of each header.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`], [`JournalError::Version`], [`JournalError::Label`] and
    /// [`JournalError::Io`]; the journal is left as it was found.
    pub fn open(
        disk: Arc<dyn Disk>,
        label: &str,
        segment_bytes: u64,
    ) -> Result<Journal, JournalError> {
        let mut segments = find_segments(disk.as_ref(), label)?;
        let mut end = segments.last().map_or(0, |s| s.base);
        if let Some(last) = segments.last() {
            match recover(&disk, last)? {
                Some(sound) => {
                    end = sound.end;
                    let name = last.name.clone();
                    segments.pop();
                    segments.push(Segment { name, base: sound.base, bytes: sound.bytes });
                }
                // A segment that never got its header holds nothing; its predecessor was complete.
                None => {
                    let name = last.name.clone();
                    disk.remove(&name).map_err(|e| failed("remove", &name, e))?;
                    disk.sync_names().map_err(|e| failed("sync the folder of", &name, e))?;
                    segments.pop();
                    return Journal::open(disk, label, segment_bytes);
                }
            }
        }
        if let Some(last) = segments.last() {
            // A process that died may have left what it had not synced, and it counts from now on.
            disk.sync(&last.name).map_err(|e| failed("sync", &last.name, e))?;
            // Its name too: the process may have died between making it and syncing the folder.
            disk.sync_names().map_err(|e| failed("sync the folder of", &last.name, e))?;
        }
        let appended = segments.last().map_or(0, |s| s.bytes);
        let durable = Durable { segments, end, closed: false };
        let shared = Arc::new(Shared {
            disk,
            label: label.to_owned(),
            durable: Mutex::new(durable),
            grown: Condvar::new(),
        });
        Ok(Journal {
            shared,
            segment_bytes,
            pending: Vec::new(),
            appended,
            next: end,
            durable_end: end,
            unsure: false,
        })
    }

    /// Takes an entry in and returns its offset; it is neither durable nor readable before `sync`.
    ///
    /// # Errors
    /// As [`Journal::sync`]: whatever was appended since the last sync is then forgotten.
    pub fn append(&mut self, entry: &Entry<'_>) -> Result<u64, JournalError> {
        if self.unsure {
            return Err(JournalError::Unsure { file: self.current() });
        }
        if self.next == self.durable_end {
            self.roll()?;
        }
        let offset = self.next;
        record::write_record(&mut self.pending, offset, self.durable_end, entry);
        self.next += 1;
        if self.pending.len() >= PENDING_BYTES_MAX {
            self.write_pending()?;
        }
        Ok(offset)
    }

    /// Makes everything appended durable, shows it to the readers, and returns the offset after it.
    ///
    /// # Errors
    /// [`JournalError::Io`]: nothing since the last sync is kept, it may be appended again.
    /// [`JournalError::Unsure`]: after a failed fsync, for good.
    pub fn sync(&mut self) -> Result<u64, JournalError> {
        if self.next == self.durable_end {
            return Ok(self.durable_end);
        }
        self.write_pending()?;
        let name = self.current();
        if let Err(e) = self.shared.disk.sync(&name) {
            self.unsure = true;
            return Err(failed("sync", &name, e));
        }
        self.durable_end = self.next;
        let mut durable = self.shared.durable();
        durable.end = self.next;
        if let Some(last) = durable.segments.last_mut() {
            last.bytes = self.appended;
        }
        drop(durable);
        self.shared.grown.notify_all();
        Ok(self.durable_end)
    }

    /// Whether an fsync failed: the journal has to be opened anew.
    pub fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// The first offset there is, and the one after the last durable one.
    pub fn bounds(&self) -> (u64, u64) {
        self.shared.bounds()
    }

    /// The offset that the next entry gets.
    pub fn next_offset(&self) -> u64 {
        self.next
    }

    /// Bytes on disk, durable ones only.
    pub fn bytes(&self) -> u64 {
        self.shared.durable().segments.iter().map(|s| s.bytes).sum()
    }

    /// Removes all segments that hold only offsets below `offset`; never the last segment.
    ///
    /// # Errors
    /// [`JournalError::Io`]; what was removed so far stays removed.
    pub fn trim(&mut self, offset: u64) -> Result<(), JournalError> {
        loop {
            let mut durable = self.shared.durable();
            if durable.segments.get(1).is_none_or(|second| second.base > offset) {
                return Ok(());
            }
            let oldest = durable.segments.remove(0);
            drop(durable);
            let disk = &self.shared.disk;
            if let Err(error) = disk.remove(&oldest.name) {
                let error = failed("remove", &oldest.name, error);
                // The one after it must not go before it.
                self.shared.durable().segments.insert(0, oldest);
                return Err(error);
            }
            disk.sync_names().map_err(|e| failed("sync the folder of", &oldest.name, e))?;
        }
    }

    /// A reader that begins at `offset`.
    pub fn reader(&self, offset: u64) -> Reader {
        Reader::new(Arc::clone(&self.shared), offset)
    }

    fn current(&self) -> String {
        self.shared.durable().segments.last().map(|s| s.name.clone()).unwrap_or_default()
    }

    /// Begins the next segment where the last is full or there is none. Everything is durable.
    fn roll(&mut self) -> Result<(), JournalError> {
        if self.appended > 0 && self.appended < self.segment_bytes {
            return Ok(());
        }
        let name = format!("{:020}{SUFFIX}", self.next);
        let mut header = Vec::new();
        record::write_header(&mut header, &self.shared.label, self.next);
        let disk = &self.shared.disk;
        let made = disk
            .create(&name)
            .and_then(|()| disk.append(&name, &header))
            .and_then(|()| disk.sync(&name))
            .and_then(|()| disk.sync_names());
        if let Err(e) = made {
            // Nothing is in it yet: without it the journal is as it was. A failed removal shows
            // when the name is taken at the next attempt.
            drop(disk.remove(&name));
            return Err(failed("begin", &name, e));
        }
        self.appended = header.len() as u64;
        let segment = Segment { name, base: self.next, bytes: self.appended };
        self.shared.durable().segments.push(segment);
        Ok(())
    }

    fn write_pending(&mut self) -> Result<(), JournalError> {
        let name = self.current();
        if self.unsure {
            return Err(JournalError::Unsure { file: name });
        }
        match self.shared.disk.append(&name, &self.pending) {
            Ok(()) => {
                self.appended += self.pending.len() as u64;
                self.pending.clear();
                Ok(())
            }
            Err(e) => match self.take_back() {
                // What the disk said may pass, and this does not.
                Err(lost) if is_lost(&lost) => Err(failed("cut back", &name, lost)),
                _ => Err(failed("append to", &name, e)),
            },
        }
    }

    /// Drops everything since the last sync.
    pub fn forget(&mut self) {
        // A disk that cannot takes nothing more: `unsure`.
        drop(self.take_back());
    }

    fn take_back(&mut self) -> io::Result<()> {
        self.pending.clear();
        self.next = self.durable_end;
        let Some(last) = self.shared.durable().segments.last().cloned() else { return Ok(()) };
        self.appended = last.bytes;
        let done = self.shared.disk.truncate(&last.name, last.bytes);
        self.unsure |= done.is_err();
        done
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.shared.durable().closed = true;
        self.shared.grown.notify_all();
    }
}

/// Waits until the journal's durable end is above `offset`, it is closed, or the time is over;
/// gives the durable end.
pub(crate) fn wait_beyond(shared: &Shared, offset: u64, time: Duration) -> u64 {
    let waited =
        shared.grown.wait_timeout_while(shared.durable(), time, |d| d.end <= offset && !d.closed);
    waited.unwrap_or_else(PoisonError::into_inner).0.end
}

pub(crate) fn failed(doing: &'static str, file: &str, source: io::Error) -> JournalError {
    JournalError::Io { doing, file: file.to_owned(), source }
}

/// The segments by name, their headers checked (a bad one is left to recovery if it is the last).
fn find_segments(disk: &dyn Disk, label: &str) -> Result<Vec<Segment>, JournalError> {
    let files = disk.list().map_err(|e| failed("list", "folder", e))?;
    let mut segments = Vec::new();
    for (name, bytes) in files {
        let base = name.strip_suffix(SUFFIX).and_then(|digits| digits.parse().ok());
        if let Some(base) = base {
            segments.push(Segment { name, base, bytes });
        }
    }
    for (n, segment) in segments.iter().enumerate() {
        let corrupt = |reason: String| {
            Err(JournalError::Corrupt { file: segment.name.clone(), at: 0, reason })
        };
        match reader::header_of(disk, segment)? {
            record::Header::Version(found) => {
                return Err(JournalError::Version { file: segment.name.clone(), found });
            }
            record::Header::Sound { label: found, .. } if found != label => {
                let (file, wanted) = (segment.name.clone(), label.to_owned());
                return Err(JournalError::Label { file, found, wanted });
            }
            record::Header::Sound { base, .. } if base != segment.base => {
                return corrupt(format!("its header says that it begins with offset {base}"));
            }
            record::Header::Bad if n + 1 < segments.len() => {
                return corrupt("its header is not sound".to_owned());
            }
            _ => {}
        }
    }
    Ok(segments)
}

struct Sound {
    base: u64,
    end: u64,
    bytes: u64,
}

/// Finds how far the last segment is sound, and cuts off a torn tail; `None` for a segment whose
/// header never reached the disk.
fn recover(disk: &Arc<dyn Disk>, last: &Segment) -> Result<Option<Sound>, JournalError> {
    let header = match reader::header_of(disk.as_ref(), last)? {
        record::Header::Sound { bytes, .. } => bytes as u64,
        _ => {
            return match durable_beyond(disk.as_ref(), last, 0)? {
                // A record in it was written after its header had been synced.
                Some(_) => Err(JournalError::Corrupt {
                    file: last.name.clone(),
                    at: 0,
                    reason: "its header is not sound, yet records follow".to_owned(),
                }),
                None => Ok(None),
            };
        }
    };
    let mut cursor = Cursor::new(Arc::clone(disk), last.name.clone(), header, last.bytes);
    let mut end = last.base;
    let reason = loop {
        match cursor.step(end)? {
            Step::Record(_) => end += 1,
            Step::End => break None,
            Step::Bad(reason) => break Some(reason),
        }
    };
    let at = cursor.position();
    if let Some(reason) = reason {
        let promised = durable_beyond(disk.as_ref(), last, at)?;
        if promised.is_some_and(|durable| durable > end) {
            return Err(JournalError::Corrupt { file: last.name.clone(), at, reason });
        }
        tracing::warn!(
            file = last.name,
            at,
            bytes = last.bytes - at,
            offset = end,
            reason,
            "the journal's torn tail is cut off; nothing in it had been acknowledged"
        );
        disk.truncate(&last.name, at).map_err(|e| failed("truncate", &last.name, e))?;
    }
    Ok(Some(Sound { base: last.base, end, bytes: at }))
}

/// The greatest promise of any sound record behind byte `at`.
fn durable_beyond(
    disk: &dyn Disk,
    segment: &Segment,
    at: u64,
) -> Result<Option<u64>, JournalError> {
    let mut rest = vec![0; (segment.bytes - at) as usize];
    let read =
        disk.read(&segment.name, at, &mut rest).map_err(|e| failed("read", &segment.name, e))?;
    Ok(record::durable_in(&rest[..read]))
}
