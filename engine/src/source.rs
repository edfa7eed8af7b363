//! Sources: connectors that fill one bounded queue a split from I/O threads.
//!
//! # Contract
//! - [`Source::splits`] is asked once, before the job starts, on the process that plans it; the
//!   answer travels with the job. A split's `number` is the source's own (partition, slot, place in
//!   path order).
//! - [`Source::open`] is called once a worker that owns at least one split, with that worker's
//!   splits only. It starts its I/O threads and returns at once; what goes wrong later is reported
//!   through [`SplitQueue::fail`]. The handle ends the threads when dropped.
//! - The reader pushes [`Chunk`]s of a split in the split's order. [`SplitQueue::push`] blocks
//!   while the queue is full; a thread that serves several splits asks [`SplitQueue::has_room`]
//!   first and pauses what has none. A reader never drops, reorders or invents a row.
//! - Rows that cannot be decoded are part of the chunk, as [`BadRow`]s.
//! - A reader says [`SplitQueue::finish`] after the last chunk of a bounded split, and keeps
//!   [`SplitQueue::at_end`] and [`SplitQueue::connected`] true to the facts: idleness depends on
//!   them.
//! - Lazy splits (`SplitSpec::lazy`, files) are read only once [`SplitQueue::wanted`] says so.
//!
//! The worker takes chunks with [`SplitQueue::pop`], whole or in part.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use crate::connector::{ConnectorError, Remedy};
use crate::journal::Peer;
use crate::rows::{Origin, SplitId, sliced_bytes};
use crate::time::Millis;

/// One split of a source, as planned.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SplitSpec {
    /// The source's own number of the split; unique within the source, below 2^40.
    pub number: u64,
    /// Name for people: `3` (partition), `grid/3/#` (slot), a file's path.
    pub name: String,
    /// Whether it ends by itself.
    pub bounded: bool,
    /// Whether it is only read once the engine wants it (files).
    pub lazy: bool,
    /// For an archive that carries its splits as a column (`Chunk::split_column`): the numbers of
    /// all splits that it holds, so that each of them counts in the watermark from the start.
    pub carries: Vec<u64>,
    /// Whatever else the connector needs to open it, in a form of its own.
    pub detail: serde_json::Value,
    /// Whether it came while the job lasted: the watermark does not wait for its first report, so
    /// that cuts from before it came mean what they meant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub joined: bool,
}

/// A source of one table.
pub trait Source: Send + Sync {
    /// The splits as they are now. May ask the outside world.
    fn splits(&self) -> Result<Vec<SplitSpec>, ConnectorError>;

    /// How often a job looks for splits that have come since it began; `None`: they never do.
    fn discovery(&self) -> Option<Duration> {
        None
    }

    /// Splits that are there beside those known, each from where nothing of it is lost. Asks the
    /// outside world, once.
    fn added(&self, _known: &[SplitSpec]) -> Result<Vec<SplitSpec>, ConnectorError> {
        Ok(Vec::new())
    }

    /// Starts to read these splits into their queues.
    fn open(&self, queues: Vec<Arc<SplitQueue>>) -> Result<Box<dyn SourceHandle>, ConnectorError>;

    /// The first rows of a lazy split (at least one good row unless there is none), so that its
    /// first mark is known before it is opened; `None` where the split has no row. May be called
    /// from any thread, before and after `open`.
    fn peek(&self, split: &SplitSpec) -> Result<Option<Chunk>, ConnectorError>;

    /// What EXPLAIN says of it: what survives what.
    fn guarantee(&self) -> String;
}

/// A source that is open on a worker. Dropping it ends its threads and waits for them.
pub trait SourceHandle: Send {
    /// All that was read of these splits below these offsets has been committed by every sink: the
    /// source may tell its broker. Called now and then, never in a row's path.
    fn committed(&mut self, offsets: &[(u64, u64)]);

    /// Nothing below these offsets of these splits will ever be read again by this job: a source
    /// that keeps messages itself may remove them.
    fn forget(&mut self, _offsets: &[(u64, u64)]) {}

    /// The queue of this split is empty and its worker, who calls, would wait: it may do a part of
    /// the reading itself, for some milliseconds. Never waits, for a full queue least of all.
    /// Whether it did something.
    fn help(&mut self, _split: u64) -> bool {
        false
    }

    /// Stop reading: nothing more will be taken. Returns at once.
    fn stop(&mut self);
}

/// A row that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRow {
    /// Its offset.
    pub offset: u64,
    /// Its arrival, if known.
    pub arrival: Option<Millis>,
    /// What came, as it came.
    pub payload: Vec<u8>,
    /// Why it is no row.
    pub reason: String,
}

/// Rows read from one split, in its order.
#[derive(Clone, Debug)]
pub struct Chunk {
    /// The rows: the columns of the table's spec, metadata included.
    pub rows: RecordBatch,
    /// Multiplicities, for change streams; `None` means all +1.
    pub diffs: Option<ScalarBuffer<i64>>,
    /// Offset of each row.
    pub offsets: Offsets,
    /// Arrival of each row in milliseconds, where the source knows it; `None` switches the guard
    /// off.
    pub arrivals: Option<ScalarBuffer<i64>>,
    /// Rows that could not be read, by offset.
    pub bad: Vec<BadRow>,
    /// The offset that follows all that this chunk stands for, bad and skipped rows included.
    pub next_offset: u64,
    /// For an archive that carries its splits as columns: the split number of each row, replacing
    /// the queue's. Rows of one split are in its order.
    pub split_column: Option<ScalarBuffer<u64>>,
}

/// The offsets of a chunk's rows.
#[derive(Clone, Debug, PartialEq)]
pub enum Offsets {
    /// Consecutive from here.
    From(u64),
    /// One a row, ascending.
    Each(ScalarBuffer<u64>),
}

impl Offsets {
    /// The offset of a row.
    pub fn at(&self, row: usize) -> u64 {
        match self {
            Offsets::From(first) => first + row as u64,
            Offsets::Each(each) => each[row],
        }
    }

    fn slice(&self, offset: usize, len: usize) -> Offsets {
        match self {
            Offsets::From(first) => Offsets::From(first + offset as u64),
            Offsets::Each(each) => Offsets::Each(each.slice(offset, len)),
        }
    }
}

impl Chunk {
    /// Good rows only, with consecutive offsets and nothing else.
    pub fn plain(rows: RecordBatch, first_offset: u64) -> Chunk {
        let next_offset = first_offset + rows.num_rows() as u64;
        Chunk {
            rows,
            diffs: None,
            offsets: Offsets::From(first_offset),
            arrivals: None,
            bad: Vec::new(),
            next_offset,
            split_column: None,
        }
    }

    /// Number of good rows.
    pub fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// Whether there is no good row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that count against the queue's limit.
    pub fn bytes(&self) -> usize {
        let bad: usize = self.bad.iter().map(|b| b.payload.len() + 64).sum();
        sliced_bytes(&self.rows) + bad + 64
    }

    /// Where the chunk comes from, as rows know it.
    pub fn origin(&self, split: SplitId) -> Origin {
        let offset = if self.is_empty() { self.next_offset } else { self.offsets.at(0) };
        Origin::Split { split, offset }
    }

    /// Splits off the first `len` rows, with the bad rows before the next one.
    pub fn split_front(&mut self, len: usize) -> Chunk {
        debug_assert!(len < self.len());
        let boundary = self.offsets.at(len);
        let bad = self.bad.partition_point(|b| b.offset < boundary);
        self.split(len, bad, boundary)
    }

    /// Splits off what lies below an offset; `None` where nothing does.
    fn split_below(&mut self, offset: u64) -> Option<Chunk> {
        let rows = (0..self.len()).take_while(|&row| self.offsets.at(row) < offset).count();
        let bad = self.bad.partition_point(|b| b.offset < offset);
        (rows > 0 || bad > 0).then(|| self.split(rows, bad, offset))
    }

    /// Splits off so many good and bad rows.
    fn split(&mut self, len: usize, bad: usize, boundary: u64) -> Chunk {
        let rest = self.len() - len;
        let bad_rest = self.bad.split_off(bad);
        let front = Chunk {
            rows: self.rows.slice(0, len),
            diffs: self.diffs.as_ref().map(|d| d.slice(0, len)),
            offsets: self.offsets.slice(0, len),
            arrivals: self.arrivals.as_ref().map(|a| a.slice(0, len)),
            bad: std::mem::take(&mut self.bad),
            next_offset: boundary,
            split_column: self.split_column.as_ref().map(|s| s.slice(0, len)),
        };
        *self = Chunk {
            rows: self.rows.slice(len, rest),
            diffs: self.diffs.as_ref().map(|d| d.slice(len, rest)),
            offsets: self.offsets.slice(len, rest),
            arrivals: self.arrivals.as_ref().map(|a| a.slice(len, rest)),
            bad: bad_rest,
            next_offset: self.next_offset,
            split_column: self.split_column.as_ref().map(|s| s.slice(len, rest)),
        };
        front
    }
}

/// What a queue has below an offset.
#[derive(Debug)]
pub enum Below {
    /// This.
    Some(Chunk),
    /// Nothing: what comes next is at the offset or beyond it.
    Beyond,
    /// Nothing: the split has ended.
    Ended,
    /// Nothing yet.
    NotYet,
}

/// Default limit of a split's queue.
pub const QUEUE_BYTES_MAX: usize = 8 << 20;

/// Where a split is needed from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// Its beginning.
    #[default]
    Beginning,
    /// This offset.
    Offset(u64),
    /// Of an archive: what follows this many good rows.
    Rows(u64),
}

#[derive(Default)]
struct QueueState {
    /// Good rows that are still to be passed over.
    skip: u64,
    chunks: VecDeque<Chunk>,
    bytes: usize,
    finished: bool,
    closed: bool,
    failed: Option<ConnectorError>,
}

/// What wakes the worker that takes from a queue.
pub type Wake = Box<dyn Fn() + Send>;

/// The bounded queue between a split's reader and its worker.
pub struct SplitQueue {
    /// The split.
    pub split: SplitSpec,
    limit: usize,
    start: Start,
    state: Mutex<QueueState>,
    room: Condvar,
    worker: Mutex<Option<Wake>>,
    wanted: AtomicBool,
    known: AtomicBool,
    second_copy: OnceLock<Peer>,
    at_end: AtomicBool,
    connected: AtomicBool,
    lag_rows: AtomicU64,
    offsets_lost: AtomicU64,
    notice: Mutex<Option<String>>,
}

impl std::fmt::Debug for SplitQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SplitQueue").field("split", &self.split.name).finish_non_exhaustive()
    }
}

impl SplitQueue {
    /// An empty queue that holds at most about `limit` bytes (one chunk more than that at the
    /// most).
    pub fn bounded(split: SplitSpec, limit: usize) -> Arc<SplitQueue> {
        SplitQueue::from(split, limit, Start::Beginning)
    }

    /// The same for a split of which the first part is not needed any more.
    pub fn from(split: SplitSpec, limit: usize, start: Start) -> Arc<SplitQueue> {
        let skip = match start {
            Start::Rows(rows) => rows,
            Start::Beginning | Start::Offset(_) => 0,
        };
        Arc::new(SplitQueue {
            wanted: AtomicBool::new(!split.lazy),
            split,
            limit,
            start,
            state: Mutex::new(QueueState { skip, ..QueueState::default() }),
            room: Condvar::new(),
            worker: Mutex::new(None),
            known: AtomicBool::new(start != Start::Beginning),
            second_copy: OnceLock::new(),
            at_end: AtomicBool::new(false),
            connected: AtomicBool::new(true),
            lag_rows: AtomicU64::new(0),
            offsets_lost: AtomicU64::new(0),
            notice: Mutex::new(None),
        })
    }

    fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn wake_worker(&self) {
        let worker = self.worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(wake) = worker.as_ref() {
            wake();
        }
    }

    // Reader's side ------------------------------------------------------------------------------

    /// Adds a chunk, waiting while the queue is full. False: nobody wants it any more, stop
    /// reading.
    #[must_use]
    pub fn push(&self, chunk: Chunk) -> bool {
        let Some(chunk) = self.needed(chunk) else { return !self.is_closed() };
        let bytes = chunk.bytes();
        let mut state = self.lock();
        while state.bytes >= self.limit && !state.closed {
            state = self.room.wait(state).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
        if state.closed {
            return false;
        }
        state.bytes += bytes;
        let first = state.chunks.is_empty();
        state.chunks.push_back(chunk);
        drop(state);
        if first {
            self.wake_worker();
        }
        true
    }

    /// What of a chunk lies behind the start.
    fn needed(&self, mut chunk: Chunk) -> Option<Chunk> {
        match self.start {
            Start::Beginning => Some(chunk),
            Start::Offset(start) if chunk.next_offset <= start => None,
            Start::Offset(start) => {
                chunk.split_below(start);
                Some(chunk)
            }
            Start::Rows(_) => {
                let mut state = self.lock();
                if state.skip > 0 && chunk.is_empty() {
                    return None;
                }
                let skip = state.skip.min(chunk.len() as u64);
                state.skip -= skip;
                if skip > 0 && skip == chunk.len() as u64 {
                    return None;
                }
                if skip > 0 {
                    chunk.split_front(usize::try_from(skip).unwrap_or(usize::MAX));
                }
                Some(chunk)
            }
        }
    }

    /// Its job has read it before: whoever holds it has been reached.
    pub fn set_known(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// Whether its job has read it before. A server that is not there now is away then: it is
    /// waited for, however long.
    pub fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// What its reader keeps of it on this machine is to have its second copy there. Which process
    /// that is depends on where the split is read.
    pub fn set_second_copy(&self, peer: Peer) {
        self.second_copy.get_or_init(|| peer);
    }

    /// The process that has the second copy; `None` where there is no other.
    pub fn second_copy(&self) -> Option<&Peer> {
        self.second_copy.get()
    }

    /// The least offset that is needed, where that is known: a reader that can begin there saves
    /// the way. What it pushes of before is passed over.
    pub fn start_offset(&self) -> Option<u64> {
        match self.start {
            Start::Offset(offset) => Some(offset),
            Start::Beginning | Start::Rows(_) => None,
        }
    }

    /// Whether `push` would not wait.
    pub fn has_room(&self) -> bool {
        let state = self.lock();
        state.bytes < self.limit || state.closed
    }

    /// Waits until there is room, the queue is closed, or the time is over; says whether there is
    /// room.
    pub fn wait_room(&self, time: Duration) -> bool {
        let state = self.lock();
        let waited =
            self.room.wait_timeout_while(state, time, |s| s.bytes >= self.limit && !s.closed);
        let (state, _) = waited.unwrap_or_else(std::sync::PoisonError::into_inner);
        state.bytes < self.limit
    }

    /// Whether the worker is gone: stop reading.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// The last chunk of a bounded split has been pushed.
    pub fn finish(&self) {
        self.lock().finished = true;
        self.wake_worker();
    }

    /// The split cannot be read any further: the job ends with this error.
    pub fn fail(&self, error: ConnectorError) {
        self.lock().failed.get_or_insert(error);
        self.wake_worker();
    }

    /// Says whether all that the split holds at present has been pushed.
    pub fn at_end(&self, at_end: bool) {
        self.at_end.store(at_end, Ordering::Relaxed);
    }

    /// Says whether the server can be reached.
    pub fn connected(&self, connected: bool) {
        self.connected.store(connected, Ordering::Relaxed);
    }

    /// Says how many rows the split holds beyond what was pushed.
    pub fn lag_rows(&self, rows: u64) {
        self.lag_rows.store(rows, Ordering::Relaxed);
    }

    /// Says that the server has forgotten this many offsets, and that reading goes on behind them:
    /// a gap, which the cut records.
    pub fn skipped(&self, offsets: u64) {
        self.offsets_lost.fetch_add(offsets, Ordering::Relaxed);
    }

    /// What a person should know about the split now (`retrying: connection refused`), or nothing.
    pub fn notice(&self, text: Option<String>) {
        *self.notice.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = text;
    }

    /// Whether a lazy split is to be read now.
    pub fn wanted(&self) -> bool {
        self.wanted.load(Ordering::Acquire)
    }

    // Worker's side ------------------------------------------------------------------------------

    /// Says what to call when the queue gets its first chunk, ends or fails.
    pub fn on_news(&self, wake: Wake) {
        *self.worker.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(wake);
    }

    /// Asks for a lazy split.
    pub fn want(&self) {
        self.wanted.store(true, Ordering::Release);
        self.room.notify_all();
    }

    /// Takes at most `rows_max` good rows (and the bad ones among them).
    pub fn pop(&self, rows_max: usize) -> Option<Chunk> {
        let mut state = self.lock();
        let front = state.chunks.front_mut()?;
        let whole = front.len() <= rows_max;
        let chunk = if whole { state.chunks.pop_front()? } else { front.split_front(rows_max) };
        self.taken(state, &chunk);
        Some(chunk)
    }

    /// Takes from the first chunk what lies below an offset.
    pub fn pop_below(&self, offset: u64) -> Below {
        let mut state = self.lock();
        let ended = state.finished;
        let Some(front) = state.chunks.front_mut() else {
            return if ended { Below::Ended } else { Below::NotYet };
        };
        let whole = front.next_offset <= offset;
        let chunk = if whole { state.chunks.pop_front() } else { front.split_below(offset) };
        let Some(chunk) = chunk else { return Below::Beyond };
        self.taken(state, &chunk);
        Below::Some(chunk)
    }

    /// Takes at most `rows_max` good rows from the first chunk; with 0 it takes one without any.
    pub fn pop_rows(&self, rows_max: usize) -> Below {
        let mut state = self.lock();
        let ended = state.finished;
        let Some(front) = state.chunks.front_mut() else {
            return if ended { Below::Ended } else { Below::NotYet };
        };
        let whole = front.len() <= rows_max;
        let chunk = match whole {
            true => state.chunks.pop_front(),
            false => (rows_max > 0).then(|| front.split_front(rows_max)),
        };
        let Some(chunk) = chunk else { return Below::Beyond };
        self.taken(state, &chunk);
        Below::Some(chunk)
    }

    fn taken(&self, mut state: MutexGuard<'_, QueueState>, chunk: &Chunk) {
        // A slice counts by its share, so what was added is what is taken away, give or take
        // rounding.
        state.bytes = state.bytes.saturating_sub(chunk.bytes());
        if state.chunks.is_empty() {
            state.bytes = 0;
        }
        let room = state.bytes < self.limit;
        drop(state);
        if room {
            self.room.notify_all();
        }
    }

    /// Whether a chunk waits.
    pub fn has_chunk(&self) -> bool {
        !self.lock().chunks.is_empty()
    }

    /// Good rows that wait.
    pub fn rows_waiting(&self) -> usize {
        self.lock().chunks.iter().map(Chunk::len).sum()
    }

    /// Whether the split has ended and everything was taken.
    pub fn is_finished(&self) -> bool {
        let state = self.lock();
        state.finished && state.chunks.is_empty()
    }

    /// The failure, once what was read before it has been taken: at once where all is read again.
    pub fn failure(&self) -> Option<ConnectorError> {
        let state = self.lock();
        let again = |error: &ConnectorError| error.remedy == Remedy::Restart;
        state.failed.clone().filter(|error| state.chunks.is_empty() || again(error))
    }

    /// At its end, and connected.
    pub fn is_quiet(&self) -> (bool, bool) {
        (self.at_end.load(Ordering::Relaxed), self.connected.load(Ordering::Relaxed))
    }

    /// Rows beyond what was pushed, as the reader last said, and its notice.
    pub fn report(&self) -> (u64, Option<String>) {
        let notice = self.notice.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (self.lag_rows.load(Ordering::Relaxed), notice.clone())
    }

    /// Offsets in all gaps so far.
    pub fn offsets_lost(&self) -> u64 {
        self.offsets_lost.load(Ordering::Relaxed)
    }

    /// Nobody will take anything any more.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.chunks.clear();
        state.bytes = 0;
        drop(state);
        self.room.notify_all();
    }
}
