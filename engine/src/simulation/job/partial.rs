//! Adds rows up before they travel, as pre-aggregation does: without state but for what it gives
//! out where a checkpoint is made.
//!
//! # Invariant
//! Only rows that are late for no window are added up, and what was added up of a window is given
//! out no later than with the epoch in which it fires.

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::Int64Type;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::rows::{Row, WINDOW, batch, rows_of};
use crate::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use crate::rows::Delta;
use crate::time::{MARK_END, MARK_NONE, Millis, floor_to};

/// Groups that are open at the most.
const GROUPS_MAX: usize = 12;

/// The operator.
pub(super) struct Partial {
    /// By window's end and key: rows and sum.
    groups: BTreeMap<(Millis, i64), (i64, i64)>,
    watermark: Millis,
    /// Breaks it: nothing is given out for a checkpoint.
    keeps: bool,
}

impl Partial {
    pub(super) fn start(keeps: bool) -> Partial {
        Partial { groups: BTreeMap::new(), watermark: MARK_NONE, keeps }
    }

    /// Gives out the windows that end here or before.
    fn give(&mut self, end: Millis, out: &mut Output) -> Result<(), OperatorError> {
        let kept = self.groups.split_off(&(end.saturating_add(1), i64::MIN));
        let given = std::mem::replace(&mut self.groups, kept);
        if given.is_empty() {
            return Ok(());
        }
        let row = |(&(end, key), &(_, value)): (&(Millis, i64), &(i64, i64))| Row {
            time: end - WINDOW,
            key,
            value,
            diff: 1,
        };
        let rows: Vec<Row> = given.iter().map(row).collect();
        let counts = given.values().map(|(n, _)| *n);
        out.rows.push(Delta::fired(counted(&batch(&rows), counts)?));
        Ok(())
    }
}

/// Rows with how many each stands for: 0 for one that passes as it is.
fn counted(
    rows: &RecordBatch,
    counts: impl Iterator<Item = i64>,
) -> Result<RecordBatch, OperatorError> {
    let names = ["key", "value", "ts"].into_iter().zip(rows.columns().iter().cloned());
    let counts: ArrayRef = Arc::new(Int64Array::from_iter_values(counts));
    Ok(RecordBatch::try_from_iter(names.chain([("n", counts)]))?)
}

/// How many rows were added up to a row of a chunk, if any were.
pub(super) fn added_up(delta: &Delta, row: usize) -> Option<i64> {
    let counts = delta.rows.columns().get(3)?;
    Some(counts.as_primitive::<Int64Type>().value(row)).filter(|count| *count > 0)
}

impl Operator for Partial {
    fn name(&self) -> &str {
        "partial"
    }

    fn push(&mut self, _port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        let rows = rows_of(&delta);
        let late = |row: &Row| row.time <= self.watermark;
        if delta.provenance.is_some() || rows.iter().any(late) {
            let rows = counted(&delta.rows, rows.iter().map(|_| 0))?;
            out.rows.push(delta.with_rows(rows));
            return Ok(());
        }
        for row in rows {
            let end = floor_to(row.time, WINDOW, 0) + WINDOW;
            let entry = self.groups.entry((end, row.key)).or_default();
            (entry.0, entry.1) = (entry.0 + 1, entry.1 + row.value);
        }
        if self.groups.len() > GROUPS_MAX {
            self.give(MARK_END, out)?;
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut Output) -> Result<(), OperatorError> {
        if self.keeps { Ok(()) } else { self.give(MARK_END, out) }
    }

    fn begin_at(&mut self, watermarks: &[Millis]) {
        // Or rows that are late would be added up, as if they were not.
        self.watermark = watermarks.iter().copied().min().unwrap_or(MARK_NONE);
    }

    fn is_transient(&self) -> bool {
        true
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        self.watermark = self.watermark.max(end.watermark());
        self.give(self.watermark.saturating_add(1), out)
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        inputs[0]
    }

    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        Err(OperatorError::State("it has none".to_owned()))
    }

    fn restore(&mut self, _parts: Vec<StatePart>) -> Result<(), OperatorError> {
        Err(OperatorError::State("it has none".to_owned()))
    }
}
