//! The values of a DISTINCT aggregate: a set with counts per group.
//!
//! # Invariant
//! Per group and value the number of times that it was added, less the times it was taken away. The
//! ordinary states beside a set hold each value whose number is above zero exactly once: a number
//! that crosses zero is handed to them as one row with diff +1 or −1.
//!
//! # Complexity
//! O(log values) a row. Values are kept as bytes of Arrow's row format, which is reversible, so
//! merges and restores can hand values on.

use arrow::array::{Array, ArrayRef, BinaryArray};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_engine::operator::OperatorError;

use super::states::{Feed, picked};

type Counts = BTreeMap<Box<[u8]>, i64>;

/// Values that came into or left groups.
pub(super) struct Changed {
    pub(super) groups: Vec<u32>,
    pub(super) diffs: Vec<i64>,
    pub(super) columns: Vec<ArrayRef>,
}

/// Sets with counts by group.
#[derive(Debug)]
pub(super) struct DistinctValues {
    types: Vec<DataType>,
    converter: RowConverter,
    cells: Vec<Counts>,
}

/// Counts `value` in; +1 or −1 if it has come or gone.
fn count_in(counts: &mut Counts, value: &[u8], diff: i64) -> i64 {
    let Some(count) = counts.get_mut(value) else {
        if diff != 0 {
            counts.insert(value.into(), diff);
        }
        return i64::from(diff > 0);
    };
    let before = *count > 0;
    *count += diff;
    let after = *count > 0;
    if *count == 0 {
        counts.remove(value);
    }
    i64::from(after) - i64::from(before)
}

impl DistinctValues {
    pub(super) fn new(types: Vec<DataType>) -> Result<DistinctValues, OperatorError> {
        let fields = types.iter().cloned().map(SortField::new).collect();
        Ok(DistinctValues { types, converter: RowConverter::new(fields)?, cells: Vec::new() })
    }

    /// The sets of some groups, in this order.
    pub(super) fn pick(&self, groups: &[u32]) -> Result<DistinctValues, OperatorError> {
        let fresh = DistinctValues::new(self.types.clone())?;
        Ok(DistinctValues { cells: picked(&self.cells, groups), ..fresh })
    }

    pub(super) fn grow(&mut self, groups: usize) {
        self.cells.resize(groups.max(self.cells.len()), Counts::new());
    }

    pub(super) fn clear(&mut self, groups: &[u32]) {
        groups.iter().for_each(|&group| self.cells[group as usize].clear());
    }

    /// Rows whose value came or went, and by row +1 or −1 for them.
    pub(super) fn update(
        &mut self,
        feed: Feed<'_>,
        columns: &[ArrayRef],
    ) -> Result<(Vec<u32>, Vec<i64>), OperatorError> {
        let columns: Vec<ArrayRef> = columns.iter().map(one_nan).collect();
        let values = self.converter.convert_columns(&columns)?;
        let (mut rows, mut diffs) = (Vec::new(), vec![0; feed.groups.len()]);
        feed.each(|row, group, diff| {
            diffs[row] = count_in(&mut self.cells[group], values.row(row).as_ref(), diff);
            if diffs[row] != 0 {
                rows.push(row as u32);
            }
        });
        Ok((rows, diffs))
    }

    /// Adds or takes away the sets of other groups, pair by pair.
    pub(super) fn combine(
        &mut self,
        other: Option<&DistinctValues>,
        from: &[u32],
        into: &[u32],
        sign: i64,
    ) -> Result<Changed, OperatorError> {
        let mut changes = Vec::new();
        for (&from, &into) in from.iter().zip(into) {
            let taken;
            let more = match other {
                Some(other) => &other.cells[from as usize],
                None => {
                    taken = self.cells[from as usize].clone();
                    &taken
                }
            };
            for (value, count) in more {
                self.change(into, value, sign * count, &mut changes);
            }
        }
        self.changed(changes)
    }

    fn change(
        &mut self,
        group: u32,
        value: &[u8],
        diff: i64,
        out: &mut Vec<(u32, i64, Box<[u8]>)>,
    ) {
        let crossed = count_in(&mut self.cells[group as usize], value, diff);
        if crossed != 0 {
            out.push((group, crossed, value.into()));
        }
    }

    fn changed(&self, changes: Vec<(u32, i64, Box<[u8]>)>) -> Result<Changed, OperatorError> {
        let parser = self.converter.parser();
        let rows = changes.iter().map(|(_, _, value)| parser.parse(value));
        Ok(Changed {
            columns: self.converter.convert_rows(rows)?,
            groups: changes.iter().map(|change| change.0).collect(),
            diffs: changes.iter().map(|change| change.1).collect(),
        })
    }

    /// Per group: count (8 bytes), length (4), value, and so on, in order of values.
    pub(super) fn save(&self, groups: &[u32]) -> ArrayRef {
        let saved = groups.iter().map(|&group| {
            let mut out = Vec::new();
            for (value, count) in &self.cells[group as usize] {
                out.extend(count.to_le_bytes());
                out.extend((value.len() as u32).to_le_bytes());
                out.extend(&value[..]);
            }
            out
        });
        Arc::new(BinaryArray::from_iter_values(saved))
    }

    /// Adds what [`DistinctValues::save`] wrote.
    pub(super) fn load(
        &mut self,
        groups: &[u32],
        saved: &BinaryArray,
    ) -> Result<Changed, OperatorError> {
        let bad = || OperatorError::State("a set of distinct values is cut off".into());
        let mut changes = Vec::new();
        for (&group, mut rest) in groups.iter().zip(saved.iter().map(Option::unwrap_or_default)) {
            while !rest.is_empty() {
                let (count, tail) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
                let (length, tail) = tail.split_first_chunk::<4>().ok_or_else(bad)?;
                let length = u32::from_le_bytes(*length) as usize;
                let (value, tail) = tail.split_at_checked(length).ok_or_else(bad)?;
                self.change(group, value, i64::from_le_bytes(*count), &mut changes);
                rest = tail;
            }
        }
        self.changed(changes)
    }
}

/// All NaN as one, so that they count as one value.
fn one_nan(column: &ArrayRef) -> ArrayRef {
    use arrow::array::AsArray;
    use arrow::datatypes::{Float32Type, Float64Type};
    match column.data_type() {
        DataType::Float64 => {
            let one = |x: f64| if x.is_nan() { f64::NAN } else { x };
            Arc::new(column.as_primitive::<Float64Type>().unary::<_, Float64Type>(one))
        }
        DataType::Float32 => {
            let one = |x: f32| if x.is_nan() { f32::NAN } else { x };
            Arc::new(column.as_primitive::<Float32Type>().unary::<_, Float32Type>(one))
        }
        _ => column.clone(),
    }
}
