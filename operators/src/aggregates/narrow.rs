//! Columns of numbers in as few bytes as their values need, for state that is kept for long.
//!
//! # Form
//! Integers have the narrowest signed type that holds all of them, or, where they are all equal,
//! one run. Long numbers, little-endian in two's complement, have one width: bytes at the top that
//! repeat the sign are left out, and bytes at the bottom that are 0 in all where the caller can
//! keep their number elsewhere. What is loaded does not tell how narrow a column was.

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeBinaryArray, RunArray};
use arrow::array::{Int8Array, Int16Array, Int32Array, Int64Array};
use arrow::buffer::{Buffer, ScalarBuffer};
use arrow::datatypes::{DataType, Int8Type, Int16Type, Int32Type, Int64Type};
use std::borrow::Cow;
use std::sync::Arc;

/// Integers in the narrowest type.
pub(crate) fn narrow(values: &[i64]) -> ArrayRef {
    let mut range: Option<(i64, i64)> = None;
    for &value in values {
        let (least, greatest) = range.unwrap_or((value, value));
        range = Some((least.min(value), greatest.max(value)));
    }
    let (least, greatest) = range.unwrap_or((0, 1));
    if least == greatest
        && let Some(run) = one_run(values.len(), least)
    {
        return run;
    }
    macro_rules! narrowed {
        ($native:ty, $array:ty) => {
            if <$native>::try_from(least).is_ok() && <$native>::try_from(greatest).is_ok() {
                let values = values.iter().map(|&value| value as $native);
                return Arc::new(<$array>::from_iter_values(values));
            }
        };
    }
    narrowed!(i8, Int8Array);
    narrowed!(i16, Int16Array);
    narrowed!(i32, Int32Array);
    Arc::new(Int64Array::from(values.to_vec()))
}

fn one_run(length: usize, value: i64) -> Option<ArrayRef> {
    let ends = Int32Array::from(vec![i32::try_from(length).ok()?]);
    let run = RunArray::try_new(&ends, &Int64Array::from(vec![value])).ok()?;
    Some(Arc::new(run))
}

/// The integer that a column of one run has everywhere.
pub(crate) fn constant(column: &ArrayRef) -> Option<i64> {
    let runs = column.as_any().downcast_ref::<RunArray<Int32Type>>()?;
    let values = runs.values().as_primitive_opt::<Int64Type>()?;
    match values.values()[..] {
        [only] if values.null_count() == 0 => Some(only),
        _ => None,
    }
}

/// The integers of a column as [`narrow`] makes it, or of 64 bits. `None`: no such column.
pub(crate) fn widened(column: &ArrayRef) -> Option<ScalarBuffer<i64>> {
    macro_rules! wide {
        ($of:ty) => {
            column.as_primitive::<$of>().values().iter().map(|&value| i64::from(value)).collect()
        };
    }
    if let Some(only) = constant(column) {
        return Some(vec![only; column.len()].into());
    }
    if column.logical_null_count() > 0 {
        return None;
    }
    Some(match column.data_type() {
        DataType::Int64 => column.as_primitive::<Int64Type>().values().clone(),
        DataType::Int32 => wide!(Int32Type),
        DataType::Int16 => wide!(Int16Type),
        DataType::Int8 => wide!(Int8Type),
        DataType::RunEndEncoded(_, _) => {
            let runs = column.as_any().downcast_ref::<RunArray<Int32Type>>()?;
            let values = runs.values().as_primitive_opt::<Int64Type>()?;
            match values.values()[..] {
                [only] => vec![only; column.len()].into(),
                _ => {
                    (0..column.len()).map(|at| values.value(runs.get_physical_index(at))).collect()
                }
            }
        }
        _ => return None,
    })
}

/// Bytes as a column.
pub(super) fn bytes_column(width: usize, bytes: Vec<u8>) -> ArrayRef {
    match FixedSizeBinaryArray::try_new(width as i32, Buffer::from_vec(bytes), None) {
        Ok(array) => Arc::new(array),
        Err(error) => unreachable!("bytes of one width do not make a column: {error}"),
    }
}

/// Bytes at the bottom that are 0 in all the numbers.
pub(super) fn low_zeros<const N: usize>(values: &[[u8; N]]) -> usize {
    let mut any = [0; N];
    for value in values {
        (0..N).for_each(|at| any[at] |= value[at]);
    }
    any.iter().position(|&byte| byte != 0).unwrap_or(0)
}

/// Long numbers without the `low` bytes at the bottom, in the least width.
pub(super) fn narrow_bytes<const N: usize>(values: &[[u8; N]], low: usize) -> ArrayRef {
    // Bits that differ from the number's sign: the highest of them needs the bit above it too.
    let mut unlike = [0; N];
    for value in values {
        let sign = ((value[N - 1] as i8) >> 7) as u8;
        (0..N).for_each(|at| unlike[at] |= value[at] ^ sign);
    }
    let top = unlike.iter().rposition(|&byte| byte != 0).unwrap_or(0);
    let end = top + 1 + usize::from(unlike[top] >> 7);
    let width = end.max(low + 1) - low;
    let mut bytes = Vec::with_capacity(width * values.len());
    values.iter().for_each(|value| bytes.extend_from_slice(&value[low..low + width]));
    bytes_column(width, bytes)
}

/// Long numbers in their full width. `None`: not such a column.
pub(super) fn widened_bytes<const N: usize>(column: &ArrayRef) -> Option<Cow<'_, [[u8; N]]>> {
    let column = column.as_fixed_size_binary_opt()?;
    let (width, data) = (column.value_length() as usize, column.value_data());
    if width == N {
        return Some(Cow::Borrowed(data.as_chunks::<N>().0));
    }
    // The usual widths without a call a number.
    Some(Cow::Owned(match width {
        7 => spread::<7, N>(data),
        8 => spread::<8, N>(data),
        9 => spread::<9, N>(data),
        10 => spread::<10, N>(data),
        11 => spread::<11, N>(data),
        12 => spread::<12, N>(data),
        1..=32 if width < N => data.chunks_exact(width).map(full).collect(),
        _ => return None,
    }))
}

fn spread<const W: usize, const N: usize>(data: &[u8]) -> Vec<[u8; N]> {
    data.as_chunks::<W>().0.iter().map(|number| full(number)).collect()
}

#[inline(always)]
fn full<const N: usize>(number: &[u8]) -> [u8; N] {
    let sign = number.last().map_or(0, |&top| ((top as i8) >> 7) as u8);
    let mut value = [sign; N];
    value[..number.len()].copy_from_slice(number);
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_come_back_from_the_narrowest_type() {
        let cases: [(&[i64], Option<DataType>); 6] = [
            (&[], Some(DataType::Int8)),
            (&[-128, 127], Some(DataType::Int8)),
            (&[-129, 127], Some(DataType::Int16)),
            (&[1, 1 << 31], Some(DataType::Int64)),
            (&[i64::MIN, i64::MAX], Some(DataType::Int64)),
            (&[7, 7, 7], None),
        ];
        for (values, data_type) in cases {
            let column = narrow(values);
            let run = matches!(column.data_type(), DataType::RunEndEncoded(_, _));
            assert!(data_type.map_or(run, |t| *column.data_type() == t), "{values:?}");
            assert_eq!(&widened(&column).unwrap()[..], values);
        }
    }

    #[test]
    fn long_numbers_come_back_from_every_width() {
        for bits in 0..127 {
            let (one, low) = (1_i128 << bits, bits / 8 / 2);
            let values = [one, -one, one - 1, -one - 1, 0].map(|v| (v << (8 * low)).to_le_bytes());
            let fits = (one << (8 * low)) >> (8 * low) == one;
            let column = narrow_bytes(&values, low);
            let back = widened_bytes::<16>(&column).unwrap();
            let shifted = values.map(|v| (i128::from_le_bytes(v) >> (8 * low)).to_le_bytes());
            assert!(!fits || back[..] == shifted, "{bits} bits");
            assert!(low_zeros(&values) >= low);
        }
        assert_eq!(narrow_bytes(&[[0; 16]], 0).len(), 1);
        assert_eq!(low_zeros(&[[0; 16]]), 0);
    }
}
