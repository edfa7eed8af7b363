//! What an operator is to the engine: a pure core that takes rows and watermarks and gives rows.
//!
//! # Contract
//! The engine drives one core a worker. For each epoch, in order: any number of `push` calls with
//! the epoch's rows, in any order between chunks; then one `advance`. `push` is only called for an
//! epoch when the one before is complete. A result may depend on the *set* of rows of an epoch,
//! never on the order in which chunks of different splits arrive.
//!
//! `advance` fires windows and timers in order of (time, key bytes). What is emitted in `push` or
//! `advance` belongs to that epoch.
//!
//! # Snapshots
//! `snapshot` writes the whole state as Arrow rows, per key group, without changing it. `restore`
//! is called on a fresh core, before anything else, with the parts of all its key groups, possibly
//! written by several workers. Restoring and going on gives what going on would have given. A
//! checkpoint asks for the same by `save` and gives it back by `resume` (see [`crate::state`]).

use thiserror::Error;

pub use crate::state::StatePart;

use crate::rows::Delta;
use crate::state::{Pieces, Restored};
use crate::time::{Epoch, Millis};

/// The end of an epoch, as an operator sees it.
#[derive(Clone, Copy, Debug)]
pub struct EpochEnd<'a> {
    /// The epoch that is complete.
    pub epoch: Epoch,
    /// The epoch's recorded time: the only clock an operator may know.
    pub recorded_time: Millis,
    /// W(e) of each input, `MARK_NONE` where it is not known yet, `MARK_END` after its last row.
    pub watermarks: &'a [Millis],
}

impl EpochEnd<'_> {
    /// The least watermark over all inputs.
    pub fn watermark(&self) -> Millis {
        self.watermarks.iter().copied().min().unwrap_or(crate::time::MARK_NONE)
    }
}

/// Why a row left the query by its side door.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LateReason {
    /// Behind the mark of its own split.
    Straggler,
    /// Behind the watermark only, because its split had been idle.
    Idle,
}

impl LateReason {
    /// The text in `late_reason`.
    pub fn name(self) -> &'static str {
        match self {
            LateReason::Straggler => "straggler",
            LateReason::Idle => "idle",
        }
    }
}

/// Where an operator puts what it makes.
#[derive(Debug, Default)]
pub struct Output {
    /// Result rows.
    pub rows: Vec<Delta>,
    /// Late rows: the input's columns, then `late_reason`, `mark`, `late_by` (ms), in that order.
    /// Filled only where the plan asked for late rows; always counted.
    pub late: Vec<Delta>,
    /// Rows that an expression could not be evaluated for, with a reason each: they go to the dead
    /// letters, the rest of their chunk goes on.
    pub failed: Vec<(Delta, Vec<String>)>,
    /// What happened, to be added to the job's counters.
    pub counts: Counts,
}

/// Counters that an operator adds to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Windows or sessions fired (one a key).
    pub fired: u64,
    /// Late rows by `LateReason::Straggler`.
    pub late_straggler: u64,
    /// Late rows by `LateReason::Idle`.
    pub late_idle: u64,
    /// Rows of a stream for which a temporal table no longer holds a version that old.
    pub versions_gone: u64,
    /// Rows left out because a row of their key had passed.
    pub duplicates: u64,
}

/// Why an operator cannot go on. All of them end the job.
#[derive(Debug, Error)]
pub enum OperatorError {
    /// An Arrow kernel refused; a bug or an overflow of its limits.
    #[error("{0}")]
    Arrow(#[from] arrow::error::ArrowError),
    /// An expression failed for a whole chunk.
    #[error("{0}")]
    Expression(String),
    /// State that this build cannot read.
    #[error("cannot restore operator state: {0}")]
    State(String),
}

/// An operator core. See the module for the contract.
pub trait Operator {
    /// A short name for logs, EXPLAIN and metrics, for instance `tumble`.
    fn name(&self) -> &str;

    /// Takes rows of input `port`.
    fn push(&mut self, port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError>;

    /// Takes up the end of an epoch: all its rows have been pushed.
    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError>;

    /// Gives out what is held back only to save work. Called at the end of an epoch, before
    /// `advance`, where a checkpoint is made.
    fn flush(&mut self, _out: &mut Output) -> Result<(), OperatorError> {
        Ok(())
    }

    /// Where the job goes on: the watermarks of the inputs at the epoch of its checkpoint. Called
    /// on transient operators, before anything else.
    fn begin_at(&mut self, _watermarks: &[Millis]) {}

    /// Whether it has no state after [`Operator::flush`], so that a job may have it or not.
    fn is_transient(&self) -> bool {
        false
    }

    /// The watermark of the output, given those of the inputs: their minimum less what is held
    /// back.
    fn output_watermark(&self, inputs: &[Millis]) -> Millis;

    /// The whole state, in a stable order.
    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError>;

    /// Takes up state written by `snapshot`.
    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError>;

    /// Gives the state to a checkpoint: what has changed since the last one, and the names of the
    /// rest. By default the parts of a snapshot, as far as they have changed.
    fn save(&mut self, pieces: &mut dyn Pieces) -> Result<(), OperatorError> {
        for part in self.snapshot()? {
            pieces.put_changed(part);
        }
        Ok(())
    }

    /// [`Operator::restore`] with the names of the pieces, which stay valid while they stay as they
    /// are.
    fn resume(&mut self, pieces: Vec<Restored>) -> Result<(), OperatorError> {
        self.restore(pieces.into_iter().map(|(_, part)| part).collect())
    }
}
