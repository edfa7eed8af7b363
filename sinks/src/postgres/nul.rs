//! What PostgreSQL's text cannot hold: the NUL character.
//!
//! A row with one is a data error, not a fault of the server: it must not end the job. It is left
//! out and counted, or goes in with U+FFFD in the place of each NUL, as the table's options say.
//!
//! # Complexity
//! A scan for a zero byte over the text of a chunk; rows are looked at one by one only where there
//! is one.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::buffer::ScalarBuffer;
use arrow::compute::{filter, filter_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use arrow::error::ArrowError;
use std::sync::Arc;

use super::OnNul;

/// Rows with what belongs to them.
pub(crate) type Rows = (RecordBatch, Option<ScalarBuffer<i64>>);

/// The rows as PostgreSQL can take them, and the places of those that it cannot. In the columns
/// `key` nothing is replaced: that could make two keys one.
pub(crate) fn fit(
    rows: Rows,
    on_nul: OnNul,
    key: &[usize],
) -> Result<(Rows, Vec<usize>), ArrowError> {
    if !rows.0.columns().iter().any(may_hold_nul) {
        return Ok((rows, Vec::new()));
    }
    let (batch, diffs) = rows;
    let batch = match on_nul {
        OnNul::Refuse => batch,
        OnNul::Replace => {
            let fitted = |(place, column): (usize, &ArrayRef)| match key.contains(&place) {
                true => column.clone(),
                false => replaced(column),
            };
            let columns = batch.columns().iter().enumerate().map(fitted).collect();
            RecordBatch::try_new(batch.schema(), columns)?
        }
    };
    // In nested values and keys nothing is replaced, so a row may still not fit.
    let columns: Vec<&ArrayRef> = batch.columns().iter().filter(|c| may_hold_nul(c)).collect();
    let unfit = |row: &usize| columns.iter().any(|column| holds_nul(column, *row));
    let refused: Vec<usize> = (0..batch.num_rows()).filter(unfit).collect();
    if refused.is_empty() {
        return Ok(((batch, diffs), refused));
    }
    let kept: BooleanArray =
        (0..batch.num_rows()).map(|row| Some(refused.binary_search(&row).is_err())).collect();
    let diffs = match diffs {
        None => None,
        Some(diffs) => {
            let diffs = arrow::array::Int64Array::new(diffs, None);
            Some(filter(&diffs, &kept)?.as_primitive::<Int64Type>().values().clone())
        }
    };
    Ok(((filter_record_batch(&batch, &kept)?, diffs), refused))
}

/// Text with U+FFFD for each NUL; other columns as they are.
fn replaced(column: &ArrayRef) -> ArrayRef {
    if column.data_type() != &DataType::Utf8 || !may_hold_nul(column) {
        return column.clone();
    }
    let texts = column.as_string::<i32>().iter();
    let texts: StringArray = texts.map(|t| t.map(|t| t.replace('\0', "\u{fffd}"))).collect();
    Arc::new(texts)
}

/// Whether some row of the column could hold a NUL; without looking at rows.
fn may_hold_nul(column: &ArrayRef) -> bool {
    match column.data_type() {
        DataType::Utf8 => {
            let text = column.as_string::<i32>();
            let (first, last) = (text.value_offsets().first(), text.value_offsets().last());
            let range = first.copied().unwrap_or(0) as usize..last.copied().unwrap_or(0) as usize;
            text.value_data()[range].contains(&0)
        }
        DataType::List(_) => may_hold_nul(column.as_list::<i32>().values()),
        DataType::Struct(_) => column.as_struct().columns().iter().any(may_hold_nul),
        DataType::Map(_, _) => column.as_map().entries().columns().iter().any(may_hold_nul),
        _ => false,
    }
}

fn holds_nul(column: &ArrayRef, row: usize) -> bool {
    if column.is_null(row) {
        return false;
    }
    let any = |values: &ArrayRef| (0..values.len()).any(|i| holds_nul(values, i));
    match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value(row).contains('\0'),
        DataType::List(_) => any(&column.as_list::<i32>().value(row)),
        DataType::Struct(_) => column.as_struct().columns().iter().any(|c| holds_nul(c, row)),
        DataType::Map(_, _) => column.as_map().value(row).columns().iter().any(any),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow::array::{Int64Array, ListBuilder, StringBuilder};

    fn rows() -> Rows {
        let mut lists = ListBuilder::new(StringBuilder::new());
        lists.append_value([Some("a"), None]);
        lists.append_value([Some("b")]);
        lists.append_null();
        lists.append_value([Some("c"), Some("\0")]);
        let batch = RecordBatch::try_from_iter_with_nullable([
            ("n", Arc::new(Int64Array::from(vec![1, 2, 3, 4])) as ArrayRef, true),
            ("t", Arc::new(StringArray::from(vec![Some("x"), Some("\0y"), None, Some("z")])), true),
            ("l", Arc::new(lists.finish()), true),
        ]);
        (batch.unwrap(), Some(vec![1, 1, -1, 1].into()))
    }

    fn numbers(rows: &Rows) -> Vec<i64> {
        rows.0.column(0).as_primitive::<Int64Type>().values().to_vec()
    }

    #[test]
    fn rows_with_a_nul_are_left_out_with_their_diffs() {
        let (kept, refused) = fit(rows(), OnNul::Refuse, &[]).unwrap();
        assert_eq!((numbers(&kept), refused), (vec![1, 3], vec![1, 3]));
        assert_eq!(kept.1.unwrap().to_vec(), [1, -1]);
    }

    #[test]
    fn in_text_it_can_be_replaced_and_in_nested_values_not() {
        let (kept, refused) = fit(rows(), OnNul::Replace, &[0]).unwrap();
        assert_eq!((numbers(&kept), refused), (vec![1, 2, 3], vec![3]));
        assert_eq!(kept.0.column(1).as_string::<i32>().value(1), "\u{fffd}y");
    }

    #[test]
    fn in_keys_it_is_not_replaced() {
        let (kept, refused) = fit(rows(), OnNul::Replace, &[1]).unwrap();
        assert_eq!((numbers(&kept), refused), (vec![1, 3], vec![1, 3]));
    }

    #[test]
    fn other_rows_are_not_touched() {
        let (batch, diffs) = rows();
        // The NULs are before and behind the slice.
        let (kept, refused) = fit((batch.slice(2, 1), diffs), OnNul::Refuse, &[]).unwrap();
        assert_eq!((numbers(&kept), refused.len()), (vec![3], 0));
    }
}
