//! Rows that come too late, counted and written down: the input's columns, then why.

use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMillisecondArray, UInt32Array};
use std::sync::Arc;
use weir_engine::graph::late_fields;
use weir_engine::operator::{LateReason, OperatorError, Output};
use weir_engine::rows::Delta;
use weir_engine::time::{MARK_NONE, Millis};

/// A late row of a chunk.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LateRow {
    /// Its place in the chunk.
    pub(crate) row: u32,
    /// Its mark.
    pub(crate) mark: Millis,
    /// L: the greater of its mark and the watermark before its epoch.
    pub(crate) limit: Millis,
    /// The last time at which it would have counted: late iff that is ≤ L.
    pub(crate) last: Millis,
}

impl LateRow {
    fn reason(&self) -> LateReason {
        if self.last <= self.mark { LateReason::Straggler } else { LateReason::Idle }
    }
}

/// Counts late rows of a chunk and, if they are wanted, emits them.
pub(crate) fn put_late(
    delta: &Delta,
    late: &[LateRow],
    wanted: bool,
    out: &mut Output,
) -> Result<(), OperatorError> {
    for row in late {
        match row.reason() {
            LateReason::Straggler => out.counts.late_straggler += 1,
            LateReason::Idle => out.counts.late_idle += 1,
        }
    }
    if !wanted || late.is_empty() {
        return Ok(());
    }
    let taken = delta.take(&late.iter().map(|l| l.row).collect::<UInt32Array>())?;
    let mark = |l: &LateRow| (l.mark != MARK_NONE).then_some(l.mark);
    let columns: [ArrayRef; 3] = [
        Arc::new(StringArray::from_iter_values(late.iter().map(|l| l.reason().name()))),
        Arc::new(late.iter().map(mark).collect::<TimestampMillisecondArray>()),
        Arc::new(late.iter().map(|l| l.limit.saturating_sub(l.last)).collect::<Int64Array>()),
    ];
    let schema = taken.rows.schema();
    let fields: Vec<_> =
        schema.fields().iter().cloned().chain(late_fields().map(Arc::new)).collect();
    let columns = taken.rows.columns().iter().cloned().chain(columns).collect();
    let schema = Arc::new(arrow::datatypes::Schema::new(fields));
    let rows = arrow::array::RecordBatch::try_new(schema, columns)?;
    out.late.push(taken.with_rows(rows));
    Ok(())
}
