//! Deduplication: of the rows with one key only the first passes, within a horizon of event time.
//!
//! # The rule
//! Let L of a row be the greater of its mark and W before its epoch, and h the horizon. A row with
//! ts ≤ L − h is *late*: whether its like has passed, nobody remembers. It is counted, and does not
//! pass. Any other row is a *duplicate* if a row of its key has passed whose ts is greater than the
//! later of (its own ts, its L) less h. So a key that contains the event time is unique for good,
//! and one that is used again after more than the horizon names another row.
//!
//! # The first
//! Rows are taken in order of (epoch, split, offset). Within a split that is the order of offsets,
//! so with one split, or if a key never changes its split, what passes depends on the rows alone: L
//! is the mark, a row that carries no mark has L < ts, and what is forgotten by W says nothing to
//! rows whose L is W or more.
//!
//! # Limits
//! Of copies in several splits the one in the earlier epoch passes, and which that is depends on
//! the cuts. Copies are the same row, as with QoS 1, so the rows that pass are the same but for
//! their marks and offsets; only if one copy is late for what follows and the other not, results
//! differ. Late rows do not reach the ON LATE clause of the query: they are counted here.
//! Rows wait for the end of their epoch.
//!
//! # State
//! The keys in `Seen`, by time: h behind W are forgotten. What passes keeps its provenance, and
//! the watermark stays as it is.

mod keeping;
mod seen;
#[cfg(test)]
mod tests;

use arrow::array::UInt32Array;
use arrow::datatypes::SchemaRef;
use weir_engine::keys::encode_value;
use weir_engine::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use weir_engine::rows::Delta;
use weir_engine::state::{Pieces, Restored};
use weir_engine::time::{MARK_NONE, Millis, mark_less};

use crate::late::{LateRow, put_late};
use crate::temporal::{timed, times_of};
use seen::Seen;

/// What a [`Deduplicate`] does.
#[derive(Clone, Debug)]
pub struct DeduplicateSpec {
    /// Key columns.
    pub keys: Vec<usize>,
    /// Event time.
    pub time: usize,
    /// How long a key is remembered, in milliseconds of event time; at least 1.
    pub within: Millis,
    /// Schema of the input, and of the output.
    pub input: SchemaRef,
}

/// The operator.
#[derive(Debug)]
pub struct Deduplicate {
    spec: DeduplicateSpec,
    seen: Seen,
    /// Chunks of the open epoch: each of one split.
    open: Vec<Delta>,
    /// W before the open epoch.
    before: Millis,
    /// The key at hand.
    key: Vec<u8>,
}

impl Deduplicate {
    /// An operator that has seen nothing. An error if a column is not in the input, or the horizon
    /// is not positive.
    pub fn new(spec: DeduplicateSpec) -> Result<Deduplicate, OperatorError> {
        if spec.within <= 0 {
            let text = "the horizon of a deduplication is not positive";
            return Err(OperatorError::Expression(text.into()));
        }
        spec.input.project(&spec.keys)?;
        spec.input.project(&[spec.time])?;
        let seen = Seen::new(spec.within);
        Ok(Deduplicate { spec, seen, open: Vec::new(), before: MARK_NONE, key: Vec::new() })
    }

    /// Lets the rows of a chunk pass that are the first of their key.
    fn admit(&mut self, delta: &Delta, out: &mut Output) -> Result<(), OperatorError> {
        let times = times_of(&delta.rows, self.spec.time)?;
        let keys: Vec<_> = self.spec.keys.iter().map(|&at| delta.rows.column(at)).collect();
        let within = self.spec.within;
        let (mut first, mut late) = (Vec::with_capacity(delta.len()), Vec::new());
        for (row, &time) in times.iter().enumerate() {
            let mark = delta.mark(row);
            let limit = mark.max(self.before);
            let last = time.saturating_add(within);
            if last <= limit {
                late.push(LateRow { row: row as u32, time, mark, limit, last });
                continue;
            }
            self.key.clear();
            keys.iter().for_each(|column| encode_value(column.as_ref(), row, &mut self.key));
            if self.seen.note(&self.key, time, mark_less(time.max(limit), within))? {
                first.push(row as u32);
            }
        }
        out.counts.duplicates += (delta.len() - first.len() - late.len()) as u64;
        put_late(&late, delta, false, out)?;
        if first.len() == delta.len() {
            out.rows.push(delta.clone());
        } else if !first.is_empty() {
            out.rows.push(delta.take(&UInt32Array::from(first))?);
        }
        Ok(())
    }
}

impl Operator for Deduplicate {
    fn name(&self) -> &str {
        "deduplicate"
    }

    fn push(&mut self, _port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        if delta.diffs.as_ref().is_some_and(|d| d.iter().any(|&diff| diff < 0)) {
            let text = "a deduplication cannot take back a row: the input must be append-only";
            return Err(OperatorError::Expression(text.into()));
        }
        let (delta, _) = timed(delta, self.spec.time, out)?;
        if !delta.is_empty() {
            self.open.push(delta);
        }
        Ok(())
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        let mut open = std::mem::take(&mut self.open);
        // The offset of a chunk is at or before that of its first row, and above that of the chunk
        // before.
        open.sort_by_key(|delta| delta.place(0));
        open.iter().try_for_each(|delta| self.admit(delta, out))?;
        self.before = self.before.max(end.watermark());
        self.seen.forget(self.before);
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        inputs.iter().copied().min().unwrap_or(MARK_NONE)
    }

    /// Parts: `seen`, `marks`.
    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        self.whole()
    }

    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        parts.into_iter().try_for_each(|part| self.load(None, &part))
    }

    fn save(&mut self, pieces: &mut dyn Pieces) -> Result<(), OperatorError> {
        self.save_changes(pieces)
    }

    fn resume(&mut self, pieces: Vec<Restored>) -> Result<(), OperatorError> {
        pieces.into_iter().try_for_each(|(piece, part)| self.load(Some(piece), &part))
    }
}
