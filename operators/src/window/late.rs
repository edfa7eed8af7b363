//! Late rows: counted, and handed on with why and by how much.

use arrow::array::{
    ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array,
};
use arrow::datatypes::{FieldRef, Schema};
use std::sync::Arc;
use weir_engine::graph::late_fields;
use weir_engine::operator::{LateReason, OperatorError, Output};
use weir_engine::rows::Delta;
use weir_engine::time::Millis;

/// A row that is late for all its windows.
#[derive(Clone, Copy, Debug)]
pub(super) struct LateRow {
    /// Place in the chunk.
    pub(super) row: usize,
    pub(super) ts: Millis,
    pub(super) mark: Millis,
    /// What it is late against: the greater of its mark and the watermark of the epoch before.
    pub(super) late_at: Millis,
    /// End of the last window that would have held it.
    pub(super) last_end: Millis,
}

impl LateRow {
    /// `Straggler` if the mark alone makes the row late.
    fn reason(self) -> LateReason {
        if self.last_end - 1 <= self.mark { LateReason::Straggler } else { LateReason::Idle }
    }

    /// The mark, where the row depends on it. Above its mark by more than a millisecond a row may
    /// come without, as chunks happen to be cut; so it is always left out there.
    fn shown_mark(self) -> Option<Millis> {
        (self.ts <= self.mark.saturating_add(1)).then_some(self.mark)
    }
}

/// Counts late rows of a chunk and, if they are wanted, puts them out.
pub(super) fn put(
    late: &[LateRow],
    delta: &Delta,
    wanted: bool,
    out: &mut Output,
) -> Result<(), OperatorError> {
    let stragglers = late.iter().filter(|row| row.reason() == LateReason::Straggler).count() as u64;
    out.counts.late_straggler += stragglers;
    out.counts.late_idle += late.len() as u64 - stragglers;
    if !wanted || late.is_empty() {
        return Ok(());
    }
    let rows: UInt32Array = late.iter().map(|row| row.row as u32).collect::<Vec<_>>().into();
    let taken = delta.take(&rows)?;
    let reasons = late.iter().map(|row| row.reason().name());
    let marks = late.iter().map(|row| row.shown_mark());
    let behind = late.iter().map(|row| row.late_at.saturating_sub(row.last_end - 1));
    let mut columns: Vec<ArrayRef> = taken.rows.columns().to_vec();
    columns.push(Arc::new(StringArray::from_iter_values(reasons)));
    columns.push(Arc::new(marks.collect::<TimestampMillisecondArray>()));
    columns.push(Arc::new(Int64Array::from_iter_values(behind)));
    let schema = taken.rows.schema();
    let fields: Vec<FieldRef> =
        schema.fields().iter().cloned().chain(late_fields().map(Arc::new)).collect();
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
    out.late.push(taken.with_rows(batch));
    Ok(())
}
