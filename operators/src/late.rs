//! Rows that come too late: counted, and handed on with why and by how much.

use arrow::array::{
    ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray, UInt32Array,
};
use arrow::datatypes::{FieldRef, Schema};
use std::sync::Arc;
use weir_engine::graph::late_fields;
use weir_engine::operator::{LateReason, OperatorError, Output};
use weir_engine::rows::Delta;
use weir_engine::time::Millis;

/// A row of a chunk that no window, session or version waits for any more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LateRow {
    /// Its place in the chunk.
    pub(crate) row: u32,
    /// Its event time.
    pub(crate) time: Millis,
    /// Its mark.
    pub(crate) mark: Millis,
    /// L: the greater of its mark and the watermark of the epoch before.
    pub(crate) limit: Millis,
    /// The last time at which it would have counted: late iff that is ≤ L.
    pub(crate) last: Millis,
}

impl LateRow {
    /// `Straggler` if the mark alone makes the row late.
    fn reason(&self) -> LateReason {
        if self.last <= self.mark { LateReason::Straggler } else { LateReason::Idle }
    }

    /// The mark, where the row depends on it. Above its mark by more than a millisecond a row may
    /// come without, as chunks happen to be cut; so it is always left out there.
    fn shown_mark(&self) -> Option<Millis> {
        (self.time <= self.mark.saturating_add(1)).then_some(self.mark)
    }
}

/// Counts late rows of a chunk and, if they are wanted, puts them out.
pub(crate) fn put_late(
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
    let rows: UInt32Array = late.iter().map(|row| row.row).collect::<Vec<_>>().into();
    let taken = delta.take(&rows)?;
    let reasons = late.iter().map(|row| row.reason().name());
    let marks = late.iter().map(LateRow::shown_mark);
    let behind = late.iter().map(|row| row.limit.saturating_sub(row.last));
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
