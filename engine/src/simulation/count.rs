//! The operator of the simulation: counts and sums by key and window, with state in pieces, and the
//! same computed naively over what the splits hold.

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::TimestampMillisecondType;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::keys::{KeyGroups, encode_value, key_group};
use crate::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use crate::rows::Delta;
use crate::state::{PieceRef, Pieces, Restored};
use crate::time::{MARK_END, MARK_NONE, Millis, floor_to, mark_less};

/// The width of a window.
const WINDOW: Millis = 50;
/// The delay of the watermark.
pub(super) const DELAY: Millis = 20;

/// A row: key, value, event time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) key: i64,
    pub(super) value: i64,
    pub(super) time: Millis,
}

pub(super) fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, false),
        Field::new("value", DataType::Int64, false),
        Field::new("ts", time, false),
    ]))
}

/// Rows as a source gives them.
pub(super) fn batch(rows: &[Row]) -> RecordBatch {
    let column = |cell: fn(&Row) -> i64| Int64Array::from_iter_values(rows.iter().map(cell));
    let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.time));
    let columns: Vec<Arc<dyn Array>> =
        vec![Arc::new(column(|row| row.key)), Arc::new(column(|row| row.value)), Arc::new(times)];
    let rows = RecordBatch::try_new(schema(), columns);
    rows.unwrap_or_else(|error| panic!("the columns are those of the schema: {error}"))
}

/// A line of the result: window end, key (late ones: −1 − key, under `MARK_END`), count, sum.
pub(super) type Line = [i64; 4];

/// The lines of a batch that the operator made.
pub(super) fn lines(rows: &RecordBatch) -> Vec<Line> {
    let cell = |c: usize, row: usize| rows.column(c).as_primitive::<Int64Type>().value(row);
    (0..rows.num_rows()).map(|row| [0, 1, 2, 3].map(|c| cell(c, row))).collect()
}

/// Where a row counts, given its mark.
fn place(row: Row, mark: Millis) -> (Millis, i64) {
    let end = floor_to(row.time, WINDOW, 0) + WINDOW;
    if end - 1 <= mark { (MARK_END, -1 - row.key) } else { (end, row.key) }
}

/// The result over splits that were never idle, sorted.
pub(super) fn truth(splits: &[Vec<Row>]) -> Vec<Line> {
    let mut counts: BTreeMap<(Millis, i64), (i64, i64)> = BTreeMap::new();
    for rows in splits {
        let mut greatest = MARK_NONE;
        for row in rows {
            let entry = counts.entry(place(*row, mark_less(greatest, DELAY))).or_default();
            (entry.0, entry.1) = (entry.0 + 1, entry.1 + row.value);
            greatest = greatest.max(row.time);
        }
    }
    counts.into_iter().map(|((end, key), (n, sum))| [end, key, n, sum]).collect()
}

/// Counts and sums by key alone, late or not: what holds whatever was idle when.
pub(super) fn by_key(lines: &[Line]) -> BTreeMap<i64, (i64, i64)> {
    let mut all: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for [_, key, n, sum] in lines {
        let entry = all.entry(if *key < 0 { -1 - key } else { *key }).or_default();
        (entry.0, entry.1) = (entry.0 + n, entry.1 + sum);
    }
    all
}

/// A window's counts, and the pieces that have them as they are.
#[derive(Default)]
struct Pane {
    rows: BTreeMap<i64, (i64, i64)>,
    pieces: Vec<PieceRef>,
}

/// The operator.
pub(super) struct Count {
    panes: BTreeMap<Millis, Pane>,
    watermark: Millis,
}

impl Count {
    pub(super) fn start() -> Count {
        Count { panes: BTreeMap::new(), watermark: MARK_NONE }
    }
}

fn int(values: impl Iterator<Item = i64>) -> Arc<dyn Array> {
    Arc::new(Int64Array::from_iter_values(values))
}

/// Late rows count on the worker of their key.
fn group_of(key: i64) -> crate::keys::KeyGroup {
    let mut bytes = Vec::new();
    encode_value(&Int64Array::from(vec![if key < 0 { -1 - key } else { key }]), 0, &mut bytes);
    key_group(&bytes)
}

fn pane_part(end: Millis, pane: &Pane) -> Result<StatePart, OperatorError> {
    let rows = RecordBatch::try_from_iter([
        ("end", int(pane.rows.keys().map(|_| end))),
        ("key", int(pane.rows.keys().copied())),
        ("n", int(pane.rows.values().map(|(n, _)| *n))),
        ("sum", int(pane.rows.values().map(|(_, sum)| *sum))),
    ])?;
    Ok(StatePart { kind: "pane", key_groups: KeyGroups::ALL, rows })
}

impl Operator for Count {
    fn name(&self) -> &str {
        "count"
    }

    fn push(&mut self, _port: usize, delta: Delta, _out: &mut Output) -> Result<(), OperatorError> {
        let cell =
            |c: usize, row: usize| delta.rows.column(c).as_primitive::<Int64Type>().value(row);
        let times = delta.rows.column(2).as_primitive::<TimestampMillisecondType>();
        for n in 0..delta.len() {
            let row = Row { key: cell(0, n), value: cell(1, n), time: times.value(n) };
            let (end, key) = place(row, delta.mark(n).max(self.watermark));
            let pane = self.panes.entry(end).or_default();
            pane.pieces.clear();
            let entry = pane.rows.entry(key).or_default();
            (entry.0, entry.1) = (entry.0 + 1, entry.1 + row.value);
        }
        Ok(())
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        self.watermark = end.watermark();
        let open = |end: Millis| end != MARK_END && end - 1 > self.watermark;
        let last = self.watermark == MARK_END;
        while let Some(entry) = self.panes.first_entry() {
            let time = *entry.key();
            if !last && (time == MARK_END || open(time)) {
                break;
            }
            let part = pane_part(time, &entry.remove())?;
            out.rows.push(Delta::fired_at(part.rows, time));
        }
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        inputs[0]
    }

    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        Err(OperatorError::State("only pieces are saved".to_owned()))
    }

    fn restore(&mut self, _parts: Vec<StatePart>) -> Result<(), OperatorError> {
        Err(OperatorError::State("only pieces are resumed".to_owned()))
    }

    fn save(&mut self, pieces: &mut dyn Pieces) -> Result<(), OperatorError> {
        let rows = RecordBatch::try_from_iter([("watermark", int([self.watermark].into_iter()))])?;
        pieces.put(StatePart { kind: "watermark", key_groups: KeyGroups::ALL, rows });
        for (end, pane) in &mut self.panes {
            if pane.pieces.is_empty() {
                pane.pieces.push(pieces.put(pane_part(*end, pane)?));
            } else {
                pane.pieces.iter().for_each(|piece| pieces.same(*piece));
            }
        }
        Ok(())
    }

    fn resume(&mut self, pieces: Vec<Restored>) -> Result<(), OperatorError> {
        for (piece, part) in pieces {
            let cell =
                |c: usize, row: usize| part.rows.column(c).as_primitive::<Int64Type>().value(row);
            if part.kind == "watermark" {
                self.watermark = self.watermark.max(cell(0, 0));
                continue;
            }
            for row in 0..part.rows.num_rows() {
                let (end, key) = (cell(0, row), cell(1, row));
                if !part.key_groups.contains(group_of(key)) {
                    continue;
                }
                let pane = self.panes.entry(end).or_default();
                let entry = pane.rows.entry(key).or_default();
                (entry.0, entry.1) = (entry.0 + cell(2, row), entry.1 + cell(3, row));
                if pane.pieces.last() != Some(&piece) {
                    pane.pieces.push(piece);
                }
            }
        }
        Ok(())
    }
}
