//! The rows of a group of epochs, and what is left of them to send: the last row of each key.
//!
//! # Invariant
//! Of a key that occurs in the group, exactly one action is left: the row that a reader would find
//! after all epochs, or its deletion. Within an epoch rows have no order among diffs: what is
//! added and taken back in one epoch cancels out, and a row added wins over one taken back (an
//! update).
//!
//! # Complexity
//! One key encoding and one look-up a row; where rows are taken back, one encoding of the row more.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::collections::HashMap;
use weir_engine::keys::encode_value;
use weir_engine::rows::sliced_bytes;
use weir_engine::time::Epoch;

/// Rows of one epoch.
pub(crate) struct Part {
    pub(crate) epoch: Epoch,
    pub(crate) rows: RecordBatch,
    diffs: Option<ScalarBuffer<i64>>,
}

/// Rows that wait for their transaction.
pub(crate) struct Group {
    key: Vec<usize>,
    parts: Vec<Part>,
    rows: usize,
    bytes: usize,
}

/// What is to be done because of a row.
#[derive(Clone, Copy)]
pub(crate) struct Action {
    pub(crate) part: usize,
    pub(crate) row: usize,
    /// Whether its key goes, instead of the row standing.
    pub(crate) delete: bool,
}

impl Group {
    /// Rows with these key columns (none: rows do not replace each other).
    pub(crate) fn keyed_by(key: Vec<usize>) -> Group {
        Group { key, parts: Vec::new(), rows: 0, bytes: 0 }
    }

    pub(crate) fn push(
        &mut self,
        epoch: Epoch,
        rows: RecordBatch,
        diffs: Option<ScalarBuffer<i64>>,
    ) {
        self.rows += rows.num_rows();
        self.bytes += sliced_bytes(&rows);
        self.parts.push(Part { epoch, rows, diffs });
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn clear(&mut self) {
        self.parts.clear();
        (self.rows, self.bytes) = (0, 0);
    }

    /// The key columns.
    pub(crate) fn key(&self) -> &[usize] {
        &self.key
    }

    /// What was pushed, in order.
    pub(crate) fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// What is left to do: one action a key, in the order of the rows that it comes from.
    pub(crate) fn last_actions(&self) -> Vec<Action> {
        let mut places: HashMap<Vec<u8>, usize> = HashMap::with_capacity(self.rows);
        let mut actions: Vec<Option<Action>> = Vec::with_capacity(self.rows);
        let mut key = Vec::new();
        let mut first = 0;
        for parts in self.parts.chunk_by(|a, b| a.epoch == b.epoch) {
            let nets = Nets::of(parts);
            for (i, part) in parts.iter().enumerate() {
                for row in 0..part.rows.num_rows() {
                    let delete = part.diffs.as_ref().is_some_and(|d| d[row] < 0);
                    if !nets.holds(part, row, delete) {
                        continue;
                    }
                    key.clear();
                    let columns = part.rows.columns();
                    self.key.iter().for_each(|&c| encode_value(&columns[c], row, &mut key));
                    let before = places.get(&key).copied();
                    let action = Action { part: first + i, row, delete };
                    match before.and_then(|place| actions[place].take().map(|a| (place, a))) {
                        // Added in this epoch already: the row taken back is its predecessor.
                        Some((place, old))
                            if delete
                                && !old.delete
                                && self.parts[old.part].epoch == part.epoch =>
                        {
                            actions[place] = Some(old);
                        }
                        Some(_) => {
                            places.insert(key.clone(), actions.len());
                            actions.push(Some(action));
                        }
                        None => {
                            places.insert(key.clone(), actions.len());
                            actions.push(Some(action));
                        }
                    }
                }
            }
            first += parts.len();
        }
        actions.into_iter().flatten().collect()
    }
}

/// How often each row of an epoch counts in the end; only where rows are taken back.
struct Nets(Option<HashMap<Vec<u8>, i64>>);

impl Nets {
    fn of(parts: &[Part]) -> Nets {
        let backwards = |part: &Part| part.diffs.as_ref().is_some_and(|d| d.iter().any(|&x| x < 0));
        if !parts.iter().any(backwards) {
            return Nets(None);
        }
        let mut nets: HashMap<Vec<u8>, i64> = HashMap::new();
        for part in parts {
            for row in 0..part.rows.num_rows() {
                let diff = part.diffs.as_ref().map_or(1, |d| d[row]);
                *nets.entry(whole(part, row)).or_default() += diff;
            }
        }
        Nets(Some(nets))
    }

    /// Whether a row still stands, as what it says it is.
    fn holds(&self, part: &Part, row: usize, delete: bool) -> bool {
        let Some(nets) = &self.0 else { return true };
        let net = nets.get(&whole(part, row)).copied().unwrap_or(0);
        if delete { net < 0 } else { net > 0 }
    }
}

fn whole(part: &Part, row: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    part.rows.columns().iter().for_each(|column| encode_value(column, row, &mut bytes));
    bytes
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::Int64Type;
    use std::sync::Arc;

    /// What is left of `(epoch, key, value, diff)`, as `key=value` or `-key`.
    fn left(rows: &[(u64, i64, i64, i64)]) -> String {
        let mut group = Group::keyed_by(vec![0]);
        for &(epoch, key, value, diff) in rows {
            let column = |v| Arc::new(Int64Array::from(vec![v])) as ArrayRef;
            let batch = RecordBatch::try_from_iter([("k", column(key)), ("v", column(value))]);
            group.push(epoch, batch.unwrap(), Some(vec![diff].into()));
        }
        let actions = group.last_actions();
        let value = |a: &Action, c: usize| {
            group.parts[a.part].rows.column(c).as_primitive::<Int64Type>().value(a.row)
        };
        let shown = actions.iter().map(|a| match a.delete {
            true => format!("-{}", value(a, 0)),
            false => format!("{}={}", value(a, 0), value(a, 1)),
        });
        shown.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_last_row_of_a_key_is_left() {
        assert_eq!(left(&[(1, 7, 10, 1), (1, 8, 20, 1), (2, 7, 11, 1)]), "8=20 7=11");
        assert_eq!(left(&[(1, 7, 10, 1), (1, 7, 12, 1)]), "7=12");
    }

    #[test]
    fn an_update_is_a_row_in_whatever_order_its_halves_come() {
        assert_eq!(left(&[(2, 7, 10, -1), (2, 7, 11, 1)]), "7=11");
        assert_eq!(left(&[(2, 7, 11, 1), (2, 7, 10, -1)]), "7=11");
        assert_eq!(left(&[(1, 7, 10, 1), (2, 7, 10, -1)]), "-7");
        assert_eq!(left(&[(2, 7, 10, -1), (3, 7, 10, 1)]), "7=10");
    }

    #[test]
    fn what_comes_and_goes_in_an_epoch_leaves_no_trace() {
        assert_eq!(left(&[(2, 7, 10, 1), (2, 7, 10, -1)]), "");
        assert_eq!(left(&[(2, 7, 10, 1), (2, 7, 10, -1), (2, 7, 9, -1)]), "-7");
    }
}
