//! The bytes of the cut log's records. Version 1.
//!
//! Each is the payload of a journal's record (kind 0, no topic; its arrival is the recorded time of
//! a cut, else 0). All numbers are little endian.
//!
//! ```text
//! all     0  kind        1  1 begin, 2 cut, 3 rewind
//!         1  version     1  1
//!
//! begin   2  generation  8
//!        10  flags       1  1: there is a base
//!        11  base        8  epoch, 0 if there is none
//!        19  processes   4
//!        23  workers     4  of each process
//!
//! cut     2  generation  8  the one that made it
//!        10  epoch       8
//!        18  flags       1  1: there is an epoch before
//!        19  after       8  that epoch, 0 if there is none
//!        27  parts       4
//!        31  part           each part
//!
//! rewind  2  flags       1  1: there is an epoch; 2: anew
//!         3  epoch       8  cuts behind it are void; anew: all are, and a checkpoint is there
//!
//! part    0  worker      4
//!         4  time        8  the worker's clock, milliseconds since 1970
//!        12  splits      4
//!        16  split          each split that changed
//!
//! split   0  split       8  source · 2^40 + number
//!         8  offset      8
//!        16  mark        8  milliseconds
//!        24  state       1  0 waiting, 1 reading, 2 idle, 3 finished
//!        25  stride      8  milliseconds
//!        33  lost        8  offsets
//!        41  width       4  bytes
//! ```

use crate::cut::{CutPart, SplitFacts, SplitState};
use crate::rows::SplitId;
use crate::time::{Epoch, Millis};

use super::Summary;

const VERSION: u8 = 1;
const BEGIN: u8 = 1;
const CUT: u8 = 2;
const REWIND: u8 = 3;
const STATES: [SplitState; 4] =
    [SplitState::Waiting, SplitState::Reading, SplitState::Idle, SplitState::Finished];

/// The beginning of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Its number.
    pub generation: u64,
    /// The epoch that it goes on from: the last in the log.
    pub base: Option<Epoch>,
    /// Number of processes.
    pub processes: u32,
    /// Workers of each process.
    pub workers: u32,
}

/// The whole cut of an epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The generation that made it.
    pub generation: u64,
    /// The epoch that it closes.
    pub epoch: Epoch,
    /// The epoch with the cut before it.
    pub after: Option<Epoch>,
    /// The parts of all workers, in their order.
    pub parts: Vec<CutPart>,
}

/// Cuts are taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewind {
    /// The last epoch whose cut is in force.
    pub to: Option<Epoch>,
    /// No cut is in force: the log goes on from a checkpoint at `to`.
    pub anew: bool,
}

/// A record of the cut log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogRecord {
    /// A generation begins.
    Begin(Begin),
    /// An epoch is closed.
    Cut(Cut),
    /// Cuts are taken back.
    Rewind(Rewind),
}

impl LogRecord {
    /// The clock that the record goes by.
    pub(crate) fn recorded_time(&self) -> Millis {
        match self {
            LogRecord::Begin(_) | LogRecord::Rewind(_) => 0,
            LogRecord::Cut(cut) => cut.parts.iter().map(|p| p.recorded_time).max().unwrap_or(0),
        }
    }

    /// What must have been known before the first record of a log that was trimmed.
    pub(super) fn before(&self) -> Summary {
        match self {
            LogRecord::Begin(Begin { generation, base, .. }) => {
                Summary { generation: generation - 1, floor: *base, last: *base }
            }
            LogRecord::Cut(Cut { generation, after, .. }) => {
                Summary { generation: *generation, floor: *after, last: *after }
            }
            LogRecord::Rewind(Rewind { to, .. }) => {
                Summary { generation: 0, floor: *to, last: *to }
            }
        }
    }

    /// The record's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(128);
        match self {
            LogRecord::Begin(begin) => {
                out.extend([BEGIN, VERSION]);
                out.extend(begin.generation.to_le_bytes());
                out.push(u8::from(begin.base.is_some()));
                out.extend(begin.base.unwrap_or(0).to_le_bytes());
                out.extend(begin.processes.to_le_bytes());
                out.extend(begin.workers.to_le_bytes());
            }
            LogRecord::Cut(cut) => {
                out.extend([CUT, VERSION]);
                out.extend(cut.generation.to_le_bytes());
                out.extend(cut.epoch.to_le_bytes());
                out.push(u8::from(cut.after.is_some()));
                out.extend(cut.after.unwrap_or(0).to_le_bytes());
                out.extend((cut.parts.len() as u32).to_le_bytes());
                cut.parts.iter().for_each(|part| encode_part(part, &mut out));
            }
            LogRecord::Rewind(rewind) => {
                out.extend([REWIND, VERSION]);
                out.push(u8::from(rewind.to.is_some()) | u8::from(rewind.anew) << 1);
                out.extend(rewind.to.unwrap_or(0).to_le_bytes());
            }
        }
        out
    }

    /// Reads a record; the error says what is wrong with it.
    pub fn decode(bytes: &[u8]) -> Result<LogRecord, String> {
        let mut rest = Rest(bytes);
        let short = || "it ends too early".to_owned();
        let kind = rest.byte().ok_or_else(short)?;
        let version = rest.byte().ok_or_else(short)?;
        if version != VERSION || !(BEGIN..=REWIND).contains(&kind) {
            return Err(format!(
                "it has kind {kind} and version {version}: another Weir wrote it; this one reads \
                 kinds 1 to 3 of version {VERSION}"
            ));
        }
        let record = match kind {
            BEGIN => rest.begin(),
            CUT => rest.cut(),
            _ => rest.rewind(),
        };
        let record = record.ok_or_else(short)?;
        if rest.0.is_empty() { Ok(record) } else { Err("it has bytes left over".to_owned()) }
    }
}

fn encode_part(part: &CutPart, out: &mut Vec<u8>) {
    out.extend((part.worker as u32).to_le_bytes());
    out.extend(part.recorded_time.to_le_bytes());
    out.extend((part.splits.len() as u32).to_le_bytes());
    for facts in &part.splits {
        out.extend(facts.split.0.to_le_bytes());
        out.extend(facts.offset.to_le_bytes());
        out.extend(facts.mark.to_le_bytes());
        out.push(STATES.iter().position(|s| *s == facts.state).map_or(0, |place| place as u8));
        out.extend(facts.stride.to_le_bytes());
        out.extend(facts.lost.to_le_bytes());
        out.extend(facts.width.to_le_bytes());
    }
}

/// Bytes not read yet. `None` where they are too few, or impossible.
struct Rest<'a>(&'a [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, tail) = self.0.split_first_chunk::<N>()?;
        self.0 = tail;
        Some(*head)
    }

    fn byte(&mut self) -> Option<u8> {
        Some(self.take::<1>()?[0])
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn i64(&mut self) -> Option<i64> {
        self.take().map(i64::from_le_bytes)
    }

    fn begin(&mut self) -> Option<LogRecord> {
        let generation = self.u64()?;
        let flags = self.byte()?;
        let base = self.u64()?;
        let (processes, workers) = (self.u32()?, self.u32()?);
        let base = (flags & 1 == 1).then_some(base);
        Some(LogRecord::Begin(Begin { generation, base, processes, workers }))
    }

    fn rewind(&mut self) -> Option<LogRecord> {
        let flags = self.byte()?;
        let to = Some(self.u64()?).filter(|_| flags & 1 == 1);
        Some(LogRecord::Rewind(Rewind { to, anew: flags & 2 == 2 }))
    }

    fn cut(&mut self) -> Option<LogRecord> {
        let (generation, epoch) = (self.u64()?, self.u64()?);
        let has_after = self.byte()? & 1 == 1;
        let after = Some(self.u64()?).filter(|_| has_after);
        let parts = (0..self.u32()?).map(|_| self.part()).collect::<Option<_>>()?;
        Some(LogRecord::Cut(Cut { generation, epoch, after, parts }))
    }

    fn part(&mut self) -> Option<CutPart> {
        let worker = self.u32()? as usize;
        let recorded_time = self.i64()?;
        let splits = (0..self.u32()?).map(|_| self.facts()).collect::<Option<_>>()?;
        Some(CutPart { worker, recorded_time, splits, checkpoint: false })
    }

    fn facts(&mut self) -> Option<SplitFacts> {
        Some(SplitFacts {
            split: SplitId(self.u64()?),
            offset: self.u64()?,
            mark: self.i64()?,
            state: *STATES.get(usize::from(self.byte()?))?,
            stride: self.i64()?,
            lost: self.u64()?,
            width: self.u32()?,
        })
    }
}
