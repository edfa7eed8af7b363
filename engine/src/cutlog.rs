//! The cut log: what a clock decided, on disk at every process before a sink commits it.
//!
//! A job's results are a function of its inputs and its cuts. So a job that starts again with the
//! cuts of the run before, over inputs that can be read again, gives again what that run gave.
//! Each process of a job keeps a log of the whole cuts (the parts of all workers), in a journal
//! (`journal.rs`: segments, checksums, torn tails). `record.rs` has the bytes.
//!
//! # Invariant
//! A sink commits epoch e only once every process of the generation has the cuts up to e on disk.
//! So any one log that survives holds the cuts of everything that was ever committed.
//!
//! # Generations
//! Whenever a job's processes start together, that is a *generation*, with a number that no other
//! ever had (the state store's conditional put sees to that). It goes on from a *base*: the newest
//! epoch whose cut, and the cuts of all epochs before, are in some log that saw the generation
//! before it ([`choose`]). Every process that lacks some of these takes them over
//! ([`CutLog::adopt`]) before it writes `Begin`; only when all have that on disk does any source
//! open.
//!
//! # Argument
//! - *Nothing committed is forgotten*: what generation g has committed is in every log that has
//!   g's `Begin`, since these are the logs of its processes. The next base is the greatest end of
//!   these, so it is not below. A log takes back cuts only behind those that it has in common with
//!   the base's log. If both are of generation g, what g has committed is among these.
//! - *Nothing void comes back*: cuts behind the base may differ from those that the new generation
//!   makes. They are taken back (`Rewind`) before its `Begin`; a log without that `Begin` is not
//!   listened to while some log has it. Where none has it, no source was opened.
//! - *No hole*: a cut names the epoch before it, so that a missing one shows.
//!
//! # Complexity
//! Opening reads the log once and keeps a few words a generation and a thousand cuts; cuts are read
//! one by one ([`CutLog::cuts`]), so a long log needs no memory. A cut takes 71 bytes, and 16 a
//! worker and 45 a split that changed.
//!
//! # Limits
//! One fsync's latency before a commit, the slowest process's (`flow/recorded.rs`). Where all disks
//! die together nothing is left but the newest checkpoint; a sink that is ahead of it then refuses.

mod record;
mod recorder;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::Arc;
use thiserror::Error;

pub use record::{Begin, Cut, LogRecord, Rewind};
pub use recorder::{CutMemory, PastCuts, Recorder};

use crate::journal::{Disk, Entry, Journal, JournalError, Kind, Reader};
use crate::time::Epoch;

/// Size at which a segment of the log is followed by the next one.
pub const SEGMENT_BYTES: u64 = 4 << 20;
/// Every so many records it is noted where they stand, for trimming; in tests, which have few, more
/// of them.
const NOTED: u64 = if cfg!(test) { 16 } else { 1_024 };

/// What can go wrong with a cut log.
#[derive(Debug, Error)]
pub enum CutLogError {
    /// The journal under it.
    #[error("cut log: {0}")]
    Journal(#[from] JournalError),
    /// A record that does not follow from those before it, or that this build cannot read.
    #[error("cut log: record {offset}: {reason}")]
    Record {
        /// Its offset in the log.
        offset: u64,
        /// What is wrong.
        reason: String,
    },
}

/// What a process's log holds, in short.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The newest generation that has begun in it; 0 if none has.
    pub generation: u64,
    /// The epoch that its first cut in force follows; `None`: from nothing.
    pub floor: Option<Epoch>,
    /// The epoch of its last cut in force, the floor if there is none.
    pub last: Option<Epoch>,
}

/// How the next generation begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its number, at least: whoever begins claims one that nobody has.
    pub generation: u64,
    /// The epoch that it goes on from; `None`: from nothing.
    pub base: Option<Epoch>,
    /// The log that ends with the base (its place among those given); `None` where the base is a
    /// checkpoint's, or nothing.
    pub donor: Option<usize>,
}

/// Chooses what the next generation begins with, from the logs that were found (those of all
/// processes that were ever part of the job, as far as their disks are there) and the newest sound
/// checkpoint: its generation and its epoch.
///
/// A checkpoint counts as a log that ends with its epoch: it is made of committed cuts.
///
/// # Errors
/// Cuts that begin behind the checkpoint: going on would leave out what lies between.
pub fn choose(logs: &[Summary], checkpoint: Option<(u64, Epoch)>) -> Result<Choice, String> {
    let newest = logs.iter().map(|log| log.generation).chain(checkpoint.map(|c| c.0)).max();
    let newest = newest.unwrap_or(0);
    let kept = checkpoint.map(|c| c.1);
    let mut choice = Choice { generation: newest + 1, base: kept, donor: None };
    let mut floor = kept;
    for (at, log) in logs.iter().enumerate() {
        let better = match choice.donor {
            None => log.last >= choice.base,
            Some(_) => log.last > choice.base || log.last == choice.base && log.floor < floor,
        };
        if log.generation == newest && log.last.is_some() && better {
            (choice.base, choice.donor, floor) = (log.last, Some(at), log.floor);
        }
    }
    if floor > kept {
        let (floor, kept) = (shown(floor), shown(kept));
        return Err(format!("the cuts begin behind {floor}, the newest checkpoint is at {kept}"));
    }
    Ok(choice)
}

/// A `Rewind` in the log, and the last epoch before it that it leaves in force.
#[derive(Clone, Copy, Debug)]
struct Turn {
    offset: u64,
    keeps: Option<Epoch>,
}

/// What is known of the records so far.
#[derive(Clone, Debug, Default)]
struct Known {
    summary: Summary,
    /// Whether the log's beginning is gone.
    trimmed: bool,
    /// The generation of the last cut in force, or less.
    of_last: u64,
    turns: Vec<Turn>,
    /// Offsets of some cuts, with the epochs that they follow.
    noted: Vec<(u64, Option<Epoch>)>,
}

/// The log of one process.
pub struct CutLog {
    journal: Journal,
    known: Known,
    /// As of the last sync.
    durable: Known,
}

impl CutLog {
    /// Opens the log on this disk, or begins it, and reads it through. `job` says whose it is.
    ///
    /// # Errors
    /// Those of [`Journal::open`]; records that this build cannot read, or that do not follow from
    /// each other.
    pub fn open(disk: Arc<dyn Disk>, job: &str, segment_bytes: u64) -> Result<CutLog, CutLogError> {
        let journal = Journal::open(disk, &format!("cuts of {job}"), segment_bytes)?;
        let mut reader = journal.reader(journal.bounds().0);
        let mut known = Known { trimmed: journal.bounds().0 > 0, ..Known::default() };
        let mut first = true;
        while let Some((offset, record)) = next(&mut reader)? {
            if std::mem::take(&mut first) {
                known.summary = record.before();
            }
            known.take(offset, &record)?;
        }
        let mut log = CutLog { journal, durable: known.clone(), known };
        log.settle_floor()?;
        Ok(log)
    }

    /// What a trimmed log begins with may have been taken back: its floor is below the first cut
    /// in force.
    fn settle_floor(&mut self) -> Result<(), CutLogError> {
        if self.known.trimmed {
            let first = self.cuts().next().transpose()?;
            let floor = first.map_or(self.durable.summary.last, |cut| cut.after);
            (self.known.summary.floor, self.durable.summary.floor) = (floor, floor);
        }
        Ok(())
    }

    /// What it holds, also what is not on disk yet.
    pub fn summary(&self) -> Summary {
        self.known.summary
    }

    /// Begins a generation. On disk when it returns.
    ///
    /// # Errors
    /// Those of [`Journal::sync`]; a generation that is not newer than all before it, or a base
    /// that the log does not end with.
    pub fn begin(&mut self, begin: Begin) -> Result<(), CutLogError> {
        self.append(&LogRecord::Begin(begin))?;
        self.sync()
    }

    /// Makes the cuts in force those of another log, whose floor and cuts are given: what differs
    /// or is beyond them is taken back, what is missing is appended. On disk when it returns.
    ///
    /// # Errors
    /// Those of [`Journal::sync`] and of reading either log.
    pub fn adopt(
        &mut self,
        floor: Option<Epoch>,
        cuts: impl Iterator<Item = Result<Cut, CutLogError>>,
    ) -> Result<(), CutLogError> {
        let own = self.summary();
        if floor > own.floor || floor < own.floor && own.floor == own.last {
            // Nothing that can be told to be in common.
            self.append(&LogRecord::Rewind(Rewind { to: floor, anew: true }))?;
            for cut in cuts {
                self.append_cut(cut?)?;
            }
            return self.sync();
        }
        let floor = own.floor;
        let beyond =
            |cut: &Result<Cut, CutLogError>| cut.as_ref().is_ok_and(|cut| Some(cut.epoch) <= floor);
        let mut mine = self.cuts().skip_while(beyond);
        let (mut common, mut differs) = (floor, false);
        for cut in cuts.skip_while(beyond) {
            let cut = cut?;
            if !differs && mine.next().transpose()?.is_some_and(|own| own == cut) {
                common = Some(cut.epoch);
                continue;
            }
            if !std::mem::replace(&mut differs, true) {
                self.rewind(common)?;
            }
            self.append_cut(cut)?;
        }
        if !differs {
            self.rewind(common)?;
        }
        self.sync()
    }

    /// Takes back the cuts behind an epoch, if there are any.
    fn rewind(&mut self, to: Option<Epoch>) -> Result<(), CutLogError> {
        if self.summary().last == to {
            return Ok(());
        }
        self.append(&LogRecord::Rewind(Rewind { to, anew: false }))
    }

    /// Appends a cut; it is on disk once [`CutLog::sync`] has returned.
    ///
    /// # Errors
    /// Those of [`Journal::append`]: what was appended since the last sync is then forgotten. A cut
    /// that does not follow the one before it.
    pub fn append_cut(&mut self, cut: Cut) -> Result<(), CutLogError> {
        self.append(&LogRecord::Cut(cut))
    }

    fn append(&mut self, record: &LogRecord) -> Result<(), CutLogError> {
        self.known.take(self.journal.next_offset(), record)?;
        let (payload, arrival) = (record.encode(), record.recorded_time());
        let entry = Entry { arrival, kind: Kind::Message, topic: "", payload: &payload };
        let done = self.journal.append(&entry).map(|_| ());
        self.or_forget(done)
    }

    /// Returns once everything appended is on disk.
    ///
    /// # Errors
    /// Those of [`Journal::sync`]: what was appended since the last sync is then forgotten.
    pub fn sync(&mut self) -> Result<(), CutLogError> {
        let done = self.journal.sync().map(|_| ());
        self.or_forget(done)?;
        let (known, durable) = (&self.known, &mut self.durable);
        (durable.summary, durable.of_last) = (known.summary, known.of_last);
        // What is noted changes seldom, and only with its length or a turn.
        if (known.noted.len(), known.turns.len()) != (durable.noted.len(), durable.turns.len()) {
            durable.noted.clone_from(&known.noted);
            durable.turns.clone_from(&known.turns);
        }
        Ok(())
    }

    fn or_forget(&mut self, done: Result<(), JournalError>) -> Result<(), CutLogError> {
        if done.is_err() {
            self.known = self.durable.clone();
            self.journal.forget();
        }
        Ok(done?)
    }

    /// The cuts in force, one by one, as far as they are on disk.
    pub fn cuts(&self) -> Cuts {
        let reader = self.journal.reader(self.journal.bounds().0);
        let mut turns = self.durable.turns.clone();
        // What one leaves in force, a later one may take away.
        for at in (1..turns.len()).rev() {
            turns[at - 1].keeps = turns[at - 1].keeps.min(turns[at].keeps);
        }
        Cuts { reader, turns: turns.into(), last: None }
    }

    /// Removes what lies before the cuts that follow `epoch`, as far as whole segments go.
    ///
    /// # Errors
    /// Those of [`Journal::trim`].
    pub fn trim(&mut self, epoch: Epoch) -> Result<(), CutLogError> {
        let noted = self.durable.noted.iter().rev();
        let mut safe = noted.filter(|(_, after)| *after <= Some(epoch));
        if let Some(&(offset, _)) = safe.next() {
            let before = self.journal.bounds().0;
            self.journal.trim(offset)?;
            let first = self.journal.bounds().0;
            if first == before {
                return Ok(());
            }
            for known in [&mut self.known, &mut self.durable] {
                known.trimmed = first > 0;
                known.noted.retain(|(noted, _)| *noted >= first);
                // Of what was taken back before nothing is left.
                known.turns.retain(|turn| turn.offset >= first);
            }
            self.settle_floor()?;
        }
        Ok(())
    }

    /// Whether an fsync failed: the log has to be opened anew.
    pub fn is_unsure(&self) -> bool {
        self.journal.is_unsure()
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.journal.bytes()
    }
}

impl Known {
    /// Takes up a record; an error if it does not follow from those before it.
    fn take(&mut self, offset: u64, record: &LogRecord) -> Result<(), CutLogError> {
        let wrong = |reason: String| Err(CutLogError::Record { offset, reason });
        let summary = &mut self.summary;
        match record {
            LogRecord::Begin(Begin { generation, base, .. }) => {
                if *generation <= summary.generation {
                    let old = summary.generation;
                    return wrong(format!("generation {generation} begins after {old}"));
                }
                if *base != summary.last {
                    let (base, last) = (shown(*base), shown(summary.last));
                    return wrong(format!(
                        "generation {generation} goes on from {base}, but the log ends with {last}"
                    ));
                }
                summary.generation = *generation;
            }
            LogRecord::Rewind(Rewind { to, anew }) => {
                if self.trimmed && *to < summary.floor {
                    summary.floor = *to;
                } else if !anew && (*to < summary.floor || *to > summary.last) {
                    let (floor, last) = (shown(summary.floor), shown(summary.last));
                    let to = shown(*to);
                    return wrong(format!("back to {to}, but the cuts go from {floor} to {last}"));
                }
                if *anew {
                    summary.floor = *to;
                }
                (summary.last, self.of_last) = (*to, 0);
                self.turns.push(Turn { offset, keeps: to.filter(|_| !anew) });
                self.noted.retain(|(_, after)| !anew && *after < *to);
            }
            LogRecord::Cut(cut) => {
                if cut.generation < self.of_last {
                    let (found, before) = (cut.generation, self.of_last);
                    return wrong(format!("a cut of generation {found} after one of {before}"));
                }
                if cut.after != summary.last || Some(cut.epoch) <= summary.last {
                    let (epoch, after) = (cut.epoch, shown(cut.after));
                    let last = shown(summary.last);
                    return wrong(format!("epoch {epoch} follows {after}, but {last} was before"));
                }
                (summary.last, self.of_last) = (Some(cut.epoch), cut.generation);
                if self.noted.last().is_none_or(|(noted, _)| offset >= noted + NOTED) {
                    self.noted.push((offset, cut.after));
                }
            }
        }
        Ok(())
    }
}

fn shown(epoch: Option<Epoch>) -> String {
    epoch.map_or("nothing".to_owned(), |epoch| format!("epoch {epoch}"))
}

/// The cuts in force of a log, oldest first.
pub struct Cuts {
    reader: Reader,
    /// `Rewind`s that are still ahead, with the last epoch that all of them leave in force.
    turns: VecDeque<Turn>,
    /// The epoch of the last one.
    last: Option<Epoch>,
}

impl Iterator for Cuts {
    type Item = Result<Cut, CutLogError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let (offset, record) = match next(&mut self.reader) {
                Ok(Some(found)) => found,
                Ok(None) => return None,
                Err(error) => return Some(Err(error)),
            };
            while self.turns.front().is_some_and(|turn| turn.offset <= offset) {
                self.turns.pop_front();
            }
            if let LogRecord::Cut(cut) = record
                && self.turns.front().is_none_or(|turn| Some(cut.epoch) <= turn.keeps)
            {
                if self.last.is_some() && self.last != cut.after {
                    let (last, after) = (shown(self.last), shown(cut.after));
                    let epoch = cut.epoch;
                    let reason = format!("epoch {epoch} follows {after}, but {last} was before");
                    return Some(Err(CutLogError::Record { offset, reason }));
                }
                self.last = Some(cut.epoch);
                return Some(Ok(cut));
            }
        }
    }
}

/// The next record with its offset.
fn next(reader: &mut Reader) -> Result<Option<(u64, LogRecord)>, CutLogError> {
    let Some(record) = reader.read()? else { return Ok(None) };
    let offset = record.offset;
    match LogRecord::decode(record.entry.payload) {
        Ok(decoded) => Ok(Some((offset, decoded))),
        Err(reason) => Err(CutLogError::Record { offset, reason }),
    }
}
