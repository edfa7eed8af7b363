//! Joins of a stream with what a table, or a windowed view, held at the row's own time.
//!
//! [`TemporalJoin`] enriches rows with the version of a table that was valid at their event time,
//! or as of the epoch. [`WindowVersionJoin`] joins them with the one window of a view that is
//! valid then: the theft ratio's baseline. Both give the left row's columns, then the right row's,
//! NULLs where a left join finds nothing. SQL's equality holds for keys: NULL meets nothing.

mod enrich;
mod keys;
mod store;
mod versions;
mod waiting;
mod windows;

pub use enrich::{TemporalJoin, TemporalJoinSpec};
pub use windows::{WindowVersionJoin, WindowVersionJoinSpec};

use arrow::array::{Array, AsArray, RecordBatch, UInt32Array};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimeUnit, TimestampMillisecondType};
use weir_engine::expression::RowFailure;
use weir_engine::operator::{OperatorError, Output};
use weir_engine::rows::{Delta, batch_of};
use weir_engine::time::Millis;

use crate::rowwise::set_aside;
use store::NO_ROW;
pub(crate) use store::RowStore;

/// The event times of a chunk, in milliseconds. Rows whose time is NULL fail and leave the chunk.
pub(crate) fn timed(
    mut delta: Delta,
    column: usize,
    out: &mut Output,
) -> Result<(Delta, ScalarBuffer<i64>), OperatorError> {
    let times = delta.rows.column(column);
    if times.null_count() > 0 {
        let failed = |row: usize| RowFailure { row, reason: "the event time is NULL".into() };
        let failures = (0..times.len()).filter(|&row| times.is_null(row)).map(failed).collect();
        delta = set_aside(delta, failures, out)?;
    }
    let values = times_of(&delta.rows, column)?;
    Ok((delta, values))
}

/// A column of event times as milliseconds.
pub(crate) fn times_of(
    rows: &RecordBatch,
    column: usize,
) -> Result<ScalarBuffer<i64>, OperatorError> {
    let times = rows.column(column);
    match times.data_type() {
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            Ok(times.as_primitive::<TimestampMillisecondType>().values().clone())
        }
        DataType::Int64 => Ok(times.as_primitive::<Int64Type>().values().clone()),
        other => {
            let text = format!("an event time is {other}, not TIMESTAMP(3)");
            Err(OperatorError::Expression(text))
        }
    }
}

/// Puts each row of `left` beside its row of the store; rows that have none go, or stay with
/// NULLs.
fn beside(
    left: Delta,
    found: Vec<u32>,
    store: &RowStore,
    left_outer: bool,
    output: &SchemaRef,
) -> Result<Delta, OperatorError> {
    let all = left_outer || !found.contains(&NO_ROW);
    let (left, found) = if all {
        (left, found)
    } else {
        let kept = (0..found.len()).filter(|&row| found[row] != NO_ROW);
        let kept: UInt32Array = kept.map(|row| row as u32).collect();
        let left = left.take(&kept)?;
        (left, found.into_iter().filter(|&row| row != NO_ROW).collect())
    };
    let mut columns = left.rows.columns().to_vec();
    columns.extend(store.gather(&found)?);
    let rows = batch_of(output, columns, found.len())?;
    Ok(left.with_rows(rows))
}

/// A watermark of a state part.
pub(crate) fn marks_part(
    marks: &[Millis],
) -> Result<weir_engine::operator::StatePart, OperatorError> {
    let column = std::sync::Arc::new(arrow::array::Int64Array::from(marks.to_vec()));
    let rows = RecordBatch::try_from_iter([("mark", column as _)])?;
    let key_groups = weir_engine::keys::KeyGroups::ALL;
    Ok(weir_engine::operator::StatePart { kind: MARKS, key_groups, rows })
}

/// The kind of a part that has marks.
pub(crate) const MARKS: &str = "marks";

/// A part that this build does not know.
pub(crate) fn unknown(kind: &str) -> OperatorError {
    OperatorError::State(format!("pieces of kind `{kind}` are of another build"))
}
