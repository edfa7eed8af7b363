//! Rows as splits hold them, lines as targets hold them, and both as columns.

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::TimestampMillisecondType;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use std::sync::Arc;

use crate::keys::{KeyGroup, encode_value, key_group};
use crate::rows::Delta;
use crate::time::Millis;

/// The width of a window.
pub(crate) const WINDOW: Millis = 50;
/// The delay of the watermark.
pub(crate) const DELAY: Millis = 20;
/// Keys in splits that come later begin here: what is late of their rows depends on when they come,
/// and is the business of no other key.
pub(crate) const KEYS_OF_LATER: i64 = 100;

/// A row: key, value, event time; −1 for one that is taken back, or else 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Row {
    pub(crate) time: Millis,
    pub(crate) key: i64,
    pub(crate) value: i64,
    pub(crate) diff: i64,
}

/// A line of a result: of counts the window's end, of totals what tells with what the rows were
/// joined; the key (of late rows that are counted: −1 − key); how many rows; the sum of their
/// values.
pub(crate) type Line = [i64; 4];

/// The schema of rows.
pub(crate) fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, false),
        Field::new("value", DataType::Int64, false),
        Field::new("ts", time, false),
    ]))
}

/// Rows as a source gives them.
pub(crate) fn batch(rows: &[Row]) -> RecordBatch {
    let column = |cell: fn(&Row) -> i64| Int64Array::from_iter_values(rows.iter().map(cell));
    let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.time));
    let columns: Vec<ArrayRef> =
        vec![Arc::new(column(|row| row.key)), Arc::new(column(|row| row.value)), Arc::new(times)];
    let rows = RecordBatch::try_new(schema(), columns);
    rows.unwrap_or_else(|error| panic!("the columns are those of the schema: {error}"))
}

/// The rows of a chunk, as an operator gets them.
pub(crate) fn rows_of(delta: &Delta) -> Vec<Row> {
    let times = delta.rows.column(2).as_primitive::<TimestampMillisecondType>();
    let row = |(n, [key, value]): (usize, [i64; 2])| {
        let diff = delta.diffs.as_ref().map_or(1, |diffs| diffs[n]);
        Row { time: times.value(n), key, value, diff }
    };
    cells::<2>(&delta.rows).into_iter().enumerate().map(row).collect()
}

/// Numbers as columns with these names.
pub(crate) fn table<const N: usize>(names: [&str; N], rows: &[[i64; N]]) -> RecordBatch {
    let column = |c: usize| -> ArrayRef {
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row[c])))
    };
    let columns = names.into_iter().enumerate().map(|(c, name)| (name, column(c)));
    let rows = RecordBatch::try_from_iter(columns);
    rows.unwrap_or_else(|error| panic!("the columns are of one length: {error}"))
}

/// The first columns, which are numbers.
pub(crate) fn cells<const N: usize>(rows: &RecordBatch) -> Vec<[i64; N]> {
    let cell = |c: usize, row: usize| rows.column(c).as_primitive::<Int64Type>().value(row);
    (0..rows.num_rows()).map(|row| std::array::from_fn(|c| cell(c, row))).collect()
}

/// The key group of a key.
pub(crate) fn group_of(key: i64) -> KeyGroup {
    let mut bytes = Vec::new();
    encode_value(&Int64Array::from(vec![key]) as &dyn Array, 0, &mut bytes);
    key_group(&bytes)
}
