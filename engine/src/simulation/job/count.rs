//! Counts and sums by window and key, with state in pieces: those of a window stay as they are for
//! as long as its rows do.

use std::collections::BTreeMap;

use super::partial::added_up;
use super::rows::{Row, WINDOW, cells, group_of, rows_of, table};
use crate::keys::KeyGroups;
use crate::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use crate::rows::Delta;
use crate::state::{PieceRef, Pieces, Restored};
use crate::time::{MARK_END, MARK_NONE, Millis, floor_to};

/// Where a row counts, given its mark.
fn place(row: Row, mark: Millis) -> (Millis, i64) {
    let end = floor_to(row.time, WINDOW, 0) + WINDOW;
    if end - 1 <= mark { (MARK_END, -1 - row.key) } else { (end, row.key) }
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

/// Late rows count on the worker of their key.
fn owner_of(key: i64) -> crate::keys::KeyGroup {
    group_of(if key < 0 { -1 - key } else { key })
}

fn pane_part(end: Millis, pane: &Pane) -> StatePart {
    let lines: Vec<_> = pane.rows.iter().map(|(key, (n, sum))| [end, *key, *n, *sum]).collect();
    let rows = table(["end", "key", "n", "sum"], &lines);
    StatePart { kind: "pane", key_groups: KeyGroups::ALL, rows }
}

impl Operator for Count {
    fn name(&self) -> &str {
        "count"
    }

    fn push(&mut self, _port: usize, delta: Delta, _out: &mut Output) -> Result<(), OperatorError> {
        for (n, row) in rows_of(&delta).into_iter().enumerate() {
            let added = added_up(&delta, n);
            // What was added up before is late for no window.
            let mark = if added.is_some() { MARK_NONE } else { delta.mark(n).max(self.watermark) };
            let (end, key) = place(row, mark);
            let pane = self.panes.entry(end).or_default();
            pane.pieces.clear();
            let entry = pane.rows.entry(key).or_default();
            (entry.0, entry.1) = (entry.0 + added.unwrap_or(1), entry.1 + row.value);
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
            let part = pane_part(time, &entry.remove());
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
        let rows = table(["watermark"], &[[self.watermark]]);
        pieces.put(StatePart { kind: "watermark", key_groups: KeyGroups::ALL, rows });
        for (end, pane) in &mut self.panes {
            if pane.pieces.is_empty() {
                pane.pieces.push(pieces.put(pane_part(*end, pane)));
            } else {
                pane.pieces.iter().for_each(|piece| pieces.same(*piece));
            }
        }
        Ok(())
    }

    fn resume(&mut self, pieces: Vec<Restored>) -> Result<(), OperatorError> {
        for (piece, part) in pieces {
            if part.kind == "watermark" {
                let [watermark] = cells::<1>(&part.rows)[0];
                self.watermark = self.watermark.max(watermark);
                continue;
            }
            for [end, key, n, sum] in cells(&part.rows) {
                if !part.key_groups.contains(owner_of(key)) {
                    continue;
                }
                let pane = self.panes.entry(end).or_default();
                let entry = pane.rows.entry(key).or_default();
                (entry.0, entry.1) = (entry.0 + n, entry.1 + sum);
                if pane.pieces.last() != Some(&piece) {
                    pane.pieces.push(piece);
                }
            }
        }
        Ok(())
    }
}
