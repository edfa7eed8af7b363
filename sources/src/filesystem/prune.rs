//! Which row groups can hold rows that matter, by the statistics that their writer left.
//!
//! # Argument
//! A row group goes only if its least and greatest value, both known, prove that no row satisfies
//! one of the predicates. Floats are never decided (NaN is in no statistics), nor are DECIMALs, nor
//! texts whose bounds come from writers that sorted them otherwise.

use arrow::array::{Array, ArrayRef, AsArray, Scalar, StringArray};
use arrow::compute::cast;
use arrow::compute::kernels::cmp;
use arrow::datatypes::{DataType, Schema, TimeUnit};
use parquet::arrow::arrow_reader::ArrowReaderMetadata;
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use weir_engine::connector::Pushed;

use super::adapt::adapt;

/// For each row group, whether it must be read.
pub(super) fn keep(pushed: &[Pushed], declared: &Schema, file: &ArrowReaderMetadata) -> Vec<bool> {
    let mut keep = vec![true; file.metadata().num_row_groups()];
    for predicate in pushed {
        if let Some(possible) = possible(predicate, declared, file) {
            for (keep, possible) in keep.iter_mut().zip(possible) {
                *keep &= possible;
            }
        }
    }
    keep
}

fn decidable(data_type: &DataType) -> bool {
    use DataType::{Boolean, Date32, Int8, Int16, Int32, Int64, Timestamp, Utf8};
    matches!(data_type, Boolean | Date32 | Int8 | Int16 | Int32 | Int64 | Timestamp(..) | Utf8)
}

/// For each row group, whether a row of it may satisfy the predicate; `None` if that is not known.
fn possible(
    predicate: &Pushed,
    declared: &Schema,
    file: &ArrowReaderMetadata,
) -> Option<Vec<bool>> {
    let wanted = declared.field_with_name(&predicate.column).ok()?.data_type();
    if !decidable(wanted) {
        return None;
    }
    let literal = Scalar::new(literal(&predicate.literal, wanted)?);
    let groups = file.metadata().row_groups();
    let name = &predicate.column;
    let bounds = StatisticsConverter::try_new(name, file.schema(), file.parquet_schema()).ok()?;
    let place = bounds.parquet_column_index()?;
    let old = |group: &parquet::file::metadata::RowGroupMetaData| {
        group.column(place).statistics().is_some_and(|s| s.is_min_max_deprecated())
    };
    if wanted == &DataType::Utf8 && groups.iter().any(old) {
        return None;
    }
    let fitted = |bound: ArrayRef| adapt(&bound, wanted).filter(|b| b.data_type() == wanted);
    let least = fitted(bounds.row_group_mins(groups).ok()?)?;
    let greatest = fitted(bounds.row_group_maxes(groups).ok()?)?;
    let test = |kernel: Kernel, bound: &ArrayRef| -> Option<Vec<bool>> {
        let answers = kernel(bound, &literal).ok()?;
        // An unknown bound decides nothing.
        Some(answers.iter().map(|answer| answer.unwrap_or(true)).collect())
    };
    match predicate.operator.as_str() {
        "<" => test(cmp::lt, &least),
        "<=" => test(cmp::lt_eq, &least),
        ">" => test(cmp::gt, &greatest),
        ">=" => test(cmp::gt_eq, &greatest),
        "=" => {
            let (low, high) = (test(cmp::lt_eq, &least)?, test(cmp::gt_eq, &greatest)?);
            Some(low.into_iter().zip(high).map(|(l, h)| l && h).collect())
        }
        _ => None,
    }
}

type Kernel = fn(
    &dyn arrow::array::Datum,
    &dyn arrow::array::Datum,
) -> Result<arrow::array::BooleanArray, arrow::error::ArrowError>;

/// The literal as one value of the column's type.
fn literal(text: &str, data_type: &DataType) -> Option<ArrayRef> {
    let plain = StringArray::from(vec![text]);
    let value = match data_type {
        DataType::Timestamp(_, zone) => {
            let ms = cast(&plain, &DataType::Int64).ok()?;
            let ms = cast(&ms, &DataType::Timestamp(TimeUnit::Millisecond, zone.clone())).ok()?;
            adapt(&ms, data_type)?
        }
        _ => cast(&plain, data_type).ok()?,
    };
    debug_assert!(value.as_any_dictionary_opt().is_none());
    value.is_valid(0).then_some(value)
}
