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
//! - [`SinkWriter::flush`] is called when no epoch has come for a while, so that buffers that only
//!   wait for company are written.
//! - [`SinkWriter::finish`] commits everything; then the writer is dropped.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::connector::ConnectorError;
use crate::time::{Epoch, Millis};

/// A sink of one table.
pub trait Sink: Send + Sync {
    /// Number of shards, fixed for the life of the table.
    fn shards(&self) -> u32;

    /// Whether it can carry updates and deletions.
    fn accepts_retractions(&self) -> bool;

    /// Opens a shard for writing. Runs on the shard's I/O thread. An error here, or a server that
    /// was never reached within about 20 s, ends the job.
    fn open(
        &self,
        shard: u32,
        report: Arc<SinkReport>,
    ) -> Result<Box<dyn SinkWriter>, ConnectorError>;

    /// Checks, before any source is opened, that the target exists and can be written to.
    fn probe(&self) -> Result<(), ConnectorError>;

    /// What EXPLAIN says that it guarantees.
    fn guarantee(&self) -> String;
}

/// Writes one shard.
pub trait SinkWriter: Send {
    /// Takes rows of `epoch`: the table's columns in its order. `diffs`, where present, is +1 or -1
    /// a row.
    fn write(
        &mut self,
        epoch: Epoch,
        rows: RecordBatch,
        diffs: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError>;

    /// The epoch is complete. Returns the newest epoch that is committed.
    fn end_epoch(&mut self, epoch: Epoch, recorded_time: Millis) -> Result<Epoch, ConnectorError>;

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
