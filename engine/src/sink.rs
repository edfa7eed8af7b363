//! Sinks: connectors that take the rows of complete epochs on an I/O thread of their own.
//!
//! # Contract
//! - A sink has a fixed number of shards. Rows go to shards by primary key, else by split, else all
//!   to shard 0; a shard is written by one worker at a time, its rows in an order that depends on
//!   the cuts alone.
//! - [`SinkWriter::write`] takes the rows of one epoch; returning means *accepted*: in a bounded
//!   buffer or a staged part. It blocks (or retries inside, with back-off, visibly through
//!   [`SinkReport::notice`]) while the world is not ready; the queue before it is bounded, so the
//!   sources stop in the end.
//! - [`SinkWriter::end_epoch`] follows each epoch, also one without rows; it may close files by
//!   size and by age in recorded time, and commit. What it returns as committed is durable.
//! - [`SinkWriter::flush`] is called when no epoch has come for [`SinkWriter::patience`], so that
//!   buffers that only wait for company are written.
//! - [`SinkWriter::finish`] commits everything; then the writer is dropped. It is not called where
//!   a job that lasts was only stopped: what has not been committed then comes again.
//!
//! # Once
//! A job that lasts (`weir run --state`) tells its sinks who they write for: an [`Author`]. Its
//! epochs come again after a restart with the same rows in the same order. A sink that is to hold
//! each row once either
//! - keeps its [`Progress`] a shard in the target, changes it in the very transaction that makes
//!   the rows visible, and only from what it was before (compare and set): epochs up to it are not
//!   given again ([`SinkWriter::progress`]); a retry reads it first, since the reply to a commit
//!   can be lost; or
//! - gives what it makes visible a name that is a function of the epochs in it, and finds it there.
//!
//! [`Sink::take_over`] comes before: after it nothing that an older generation writes can become
//! visible.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::connector::ConnectorError;
use crate::state::{Pieces, Restored};
use crate::time::{Epoch, Millis};

/// How long a writer that has no other wish waits for company.
const PATIENCE: Duration = Duration::from_millis(20);

/// Who writes into a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Author {
    /// The job, by a name that no other job ever has: letters, digits and `-`.
    pub job: String,
    /// The sink among the job's: its table and its number.
    pub sink: String,
    /// The generation: it grows with each start of the job.
    pub generation: u64,
    /// A random number of this start: of two that go on from copies of one state, and so have the
    /// same generation, one alone may write.
    pub holder: u64,
    /// Whether a generation before it has begun: then the target must know the job.
    pub begun: bool,
}

impl Author {
    /// The author of a job's n-th sink, counted from 0. `holder`: generation and random number.
    pub fn of(job: &str, holder: (u64, u64), number: usize, table: &str) -> Author {
        let (generation, holder) = holder;
        Author {
            job: job.to_owned(),
            sink: format!("{table}.{number}"),
            generation,
            holder,
            begun: false,
        }
    }
}

/// How far a shard is written, as its target remembers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// All rows up to this epoch are there.
    pub epoch: Epoch,
    /// The digest of all these rows, from the job's beginning on.
    pub digest: u128,
}

/// The end of an epoch, as a shard sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardEnd {
    /// The epoch that is complete.
    pub epoch: Epoch,
    /// Its recorded time.
    pub recorded_time: Millis,
    /// The digest of all rows that the shard got up to here, from the job's beginning on; 0 without
    /// an author.
    pub digest: u128,
    /// Whether another epoch is there already, so that it may share a transaction.
    pub more: bool,
}

impl ShardEnd {
    /// The end of an epoch where no author counts rows and none follows yet.
    pub fn at(epoch: Epoch, recorded_time: Millis) -> ShardEnd {
        ShardEnd { epoch, recorded_time, digest: 0, more: false }
    }
}

/// A sink of one table.
pub trait Sink: Send + Sync {
    /// Number of shards, fixed for the life of the table.
    fn shards(&self) -> u32;

    /// Whether it can carry updates and deletions.
    fn accepts_retractions(&self) -> bool;

    /// Makes this generation the only one that can write, and gives the newest epoch that is there,
    /// over all shards; `None` where nothing is, or where the target keeps no progress. Called once
    /// a generation, before any source is opened.
    ///
    /// # Errors
    /// A newer generation is at work; what the target says.
    fn take_over(&self, _author: &Author) -> Result<Option<Epoch>, ConnectorError> {
        Ok(None)
    }

    /// Opens a shard for writing; `author` where the job lasts. Runs on the shard's I/O thread. An
    /// error here, or a server that was never reached within about 20 s, ends the job.
    fn open(
        &self,
        shard: u32,
        author: Option<&Author>,
        report: Arc<SinkReport>,
    ) -> Result<Box<dyn SinkWriter>, ConnectorError>;

    /// Checks, before any source is opened, that the target exists and can be written to.
    fn probe(&self) -> Result<(), ConnectorError>;

    /// What EXPLAIN says that it guarantees.
    fn guarantee(&self) -> String;
}

/// Writes one shard.
pub trait SinkWriter: Send {
    /// What the target has of this shard. Asked once, before anything is written: epochs up to it
    /// are not given again.
    fn progress(&self) -> Option<Progress> {
        None
    }

    /// Whether the target keeps progress, so that `None` means: nothing was written.
    fn keeps_progress(&self) -> bool {
        false
    }

    /// Takes rows of `epoch`: the table's columns in its order. `diffs`, where present, is +1 or -1
    /// a row.
    fn write(
        &mut self,
        epoch: Epoch,
        rows: RecordBatch,
        diffs: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError>;

    /// Gives a checkpoint what is accepted as of the last epoch's end and cannot be committed yet,
    /// for instance the rows of a file that is still open. What is not given here is committed when
    /// it returns.
    fn save(&mut self, _pieces: &mut dyn Pieces) -> Result<(), ConnectorError> {
        self.flush().map(|_| ())
    }

    /// Takes up what [`SinkWriter::save`] of this shard gave, on a fresh writer, before any row:
    /// the epochs up to it do not come again.
    fn resume(&mut self, _pieces: Vec<Restored>) -> Result<(), ConnectorError> {
        Ok(())
    }

    /// The epoch is complete. Returns the newest epoch that is committed.
    fn end_epoch(&mut self, end: ShardEnd) -> Result<Epoch, ConnectorError>;

    /// How long what is accepted may wait for the next epoch; then it is flushed.
    fn patience(&self) -> Duration {
        PATIENCE
    }

    /// Nothing came for a while. Returns the newest epoch that is committed.
    fn flush(&mut self) -> Result<Epoch, ConnectorError>;

    /// Commits everything and closes.
    fn finish(&mut self) -> Result<(), ConnectorError>;
}

/// What a shard tells the world while it works.
#[derive(Debug, Default)]
pub struct SinkReport {
    /// Rows committed.
    pub rows: AtomicU64,
    /// Files or transactions committed.
    pub commits: AtomicU64,
    /// Bytes written.
    pub bytes: AtomicU64,
    /// Rows that the target cannot hold: data errors, counted and left out.
    pub refused: AtomicU64,
    notice: Mutex<Option<String>>,
    given_up: AtomicBool,
}

impl SinkReport {
    /// Counts a commit of `rows` rows and `bytes` bytes.
    pub fn committed(&self, rows: u64, bytes: u64) {
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// Nobody waits for the shard any more: its retries end with an error.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    /// Whether retries are to end.
    pub fn given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// What a person should know now (`retrying: connection refused`), or nothing.
    pub fn notice(&self, text: Option<String>) {
        *self.notice.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    /// The notice as it stands.
    pub fn current_notice(&self) -> Option<String> {
        self.notice.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
