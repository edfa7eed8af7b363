//! States as columns: what a snapshot holds, and what processes send each other of groups.
//!
//! # Form
//! | state | columns |
//! |---|---|
//! | count | Int64 |
//! | sum of integers | Int64 count, Int64 sum |
//! | sum of decimals | Int64 count, 32 bytes sum |
//! | sum of doubles | Int64 count, 16 bytes m, Int32 e, Binary rest: the sum is m · 2^e |
//! | sum of squares | 32 bytes m, Int32 e, Binary rest |
//! | least and greatest | Int64 each in their order; 16 bytes of a decimal; Binary of text |
//!
//! `rest` is there where the sum has more bits than m can hold (m is 0 then), or
//! where infinities or NaN are in it. Numbers in bytes are little-endian. Groups without values
//! have least > greatest.
//!
//! # Invariant
//! Of [`Form::Equal`], equal states give equal columns, whatever the way they came about: m is odd
//! or 0. [`Form::AsKept`] leaves that out, and has a column of type Null for bytes that are not
//! there; it is quicker. [`Form::Narrow`] is the same in as few bytes as the values need (see
//! `narrow`): an ordinary sum of doubles takes 8 to 12 bytes instead of 28. All are loaded alike.

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, Int32Array, Int64Array, NullArray};
use arrow::datatypes::{DataType, i256};
use std::sync::Arc;

use super::narrow::{
    bytes_column, constant, low_zeros, narrow, narrow_bytes, widened, widened_bytes,
};
use super::states::{Kind, State};

const BYTES_16: DataType = DataType::FixedSizeBinary(16);
const BYTES_32: DataType = DataType::FixedSizeBinary(32);

/// How the numbers are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Equal states have equal columns.
    Equal,
    /// As they are kept.
    AsKept,
    /// In few bytes.
    Narrow,
}

/// An exact number: mantissa, exponent, and what does not fit.
pub(super) type Exact<T, Rest = Vec<u8>> = (T, i32, Option<Rest>);

impl Kind {
    /// The types of the columns that [`State::save`] gives.
    pub(super) fn types(self) -> &'static [DataType] {
        use DataType::{Binary, Int32, Int64};
        match self {
            Kind::Count => &[Int64],
            Kind::IntegerSum => &[Int64, Int64],
            Kind::DecimalSum => &[Int64, BYTES_32],
            Kind::FloatSum => &[Int64, BYTES_16, Int32, Binary],
            Kind::Squares => &[BYTES_32, Int32, Binary],
            Kind::Extremes => &[Int64, Int64],
            Kind::WideExtremes => &[BYTES_16, BYTES_16],
            Kind::TextExtremes => &[Binary, Binary],
        }
    }
}

fn numbers(form: Form, values: impl Iterator<Item = i64>) -> ArrayRef {
    match form {
        Form::Narrow => narrow(&values.collect::<Vec<_>>()),
        Form::Equal | Form::AsKept => Arc::new(Int64Array::from_iter_values(values)),
    }
}

fn fixed<const N: usize>(form: Form, values: impl Iterator<Item = [u8; N]>) -> ArrayRef {
    let values: Vec<[u8; N]> = values.collect();
    match form {
        Form::Narrow => narrow_bytes(&values, 0),
        Form::Equal | Form::AsKept => bytes_column(N, values.into_flattened()),
    }
}

/// The three columns of exact numbers.
fn exact<T, const N: usize>(
    groups: &[u32],
    form: Form,
    one: impl Fn(usize) -> Exact<T>,
    bytes: impl Fn(T) -> [u8; N],
) -> Vec<ArrayRef> {
    let mut mantissas = Vec::with_capacity(groups.len());
    let mut exponents = Vec::with_capacity(groups.len());
    let mut rests: Vec<Option<Vec<u8>>> = Vec::new();
    for &group in groups {
        let (mantissa, exponent, rest) = one(group as usize);
        if rest.is_some() {
            rests.resize(exponents.len(), None);
            rests.push(rest);
        }
        mantissas.push(bytes(mantissa));
        exponents.push(exponent);
    }
    let rests: ArrayRef = if rests.is_empty() {
        no_bytes(exponents.len(), form)
    } else {
        rests.resize(exponents.len(), None);
        Arc::new(BinaryArray::from_iter(rests))
    };
    let (mantissas, exponents) = match form {
        Form::Narrow => narrow_exact(&mantissas, exponents),
        Form::Equal | Form::AsKept => {
            let exponents: ArrayRef = Arc::new(Int32Array::from(exponents));
            (bytes_column(N, mantissas.into_flattened()), exponents)
        }
    };
    vec![mantissas, exponents, rests]
}

/// Where all numbers but 0 have one exponent, bytes that are 0 in all of them go into it.
fn narrow_exact<const N: usize>(
    mantissas: &[[u8; N]],
    exponents: Vec<i32>,
) -> (ArrayRef, ArrayRef) {
    let numbers = || mantissas.iter().zip(&exponents).filter(|(m, _)| **m != [0; N]);
    let first = numbers().next().map_or(0, |(_, &exponent)| exponent);
    if numbers().all(|(_, &exponent)| exponent == first) {
        let low = low_zeros(mantissas);
        let exponent = i64::from(first) + 8 * low as i64;
        return (narrow_bytes(mantissas, low), narrow(&vec![exponent; mantissas.len()]));
    }
    let exponents: Vec<i64> = exponents.into_iter().map(i64::from).collect();
    (narrow_bytes(mantissas, 0), narrow(&exponents))
}

impl State {
    /// The cells of `groups` as columns.
    pub(super) fn save(&self, groups: &[u32], form: Form) -> Vec<ArrayRef> {
        let at = || groups.iter().map(|&group| group as usize);
        let texts = |one: &dyn Fn(usize) -> Option<Box<[u8]>>| -> ArrayRef {
            Arc::new(BinaryArray::from_iter(at().map(one)))
        };
        match self {
            State::Count(cells) => vec![numbers(form, at().map(|g| cells[g]))],
            State::IntegerSum(cells) => vec![
                numbers(form, at().map(|g| cells[g].count)),
                numbers(form, at().map(|g| cells[g].sum)),
            ],
            State::DecimalSum(cells) => vec![
                numbers(form, at().map(|g| cells[g].count)),
                fixed(form, at().map(|g| cells[g].sum.to_le_bytes())),
            ],
            State::FloatSum(sums) => {
                let mut columns = vec![numbers(form, at().map(|g| sums.count(g)))];
                columns.extend(exact(groups, form, |g| sums.save(g, form), i128::to_le_bytes));
                columns
            }
            State::Squares(sums) => exact(groups, form, |g| sums.save(g, form), i256::to_le_bytes),
            State::Extremes(cells) => vec![
                numbers(form, at().map(|g| cells.cell(g).0)),
                numbers(form, at().map(|g| cells.cell(g).1)),
            ],
            State::WideExtremes(cells) => vec![
                fixed(form, at().map(|g| cells.cell(g).0.to_le_bytes())),
                fixed(form, at().map(|g| cells.cell(g).1.to_le_bytes())),
            ],
            State::TextExtremes(cells) => vec![
                texts(&|g| cells.get(g).map(|(least, _)| least.into())),
                texts(&|g| cells.get(g).map(|(_, greatest)| greatest.into())),
            ],
        }
    }

    /// Adds the cells in `columns`, as [`State::save`] gave them, to `groups`, row by row. `None`:
    /// these are not such columns.
    pub(super) fn load(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Option<()> {
        let at = || groups.iter().map(|&group| group as usize).enumerate();
        let numbers = |n: usize| widened(&columns[n]);
        let wide = |n: usize| widened_bytes::<16>(&columns[n]);
        match self {
            State::Count(_) if constant(&columns[0]) == Some(0) => {}
            State::Count(cells) => {
                let counts = numbers(0)?;
                at().for_each(|(row, group)| cells[group] += counts[row]);
            }
            State::IntegerSum(cells) => {
                let (counts, sums) = (numbers(0)?, numbers(1)?);
                for (row, group) in at() {
                    cells[group].count += counts[row];
                    cells[group].sum = cells[group].sum.wrapping_add(sums[row]);
                }
            }
            State::DecimalSum(cells) => {
                let (counts, sums) = (numbers(0)?, widened_bytes::<32>(&columns[1])?);
                for (row, group) in at() {
                    cells[group].count += counts[row];
                    let sum = i256::from_le_bytes(sums[row]);
                    cells[group].sum = cells[group].sum.wrapping_add(sum);
                }
            }
            State::FloatSum(sums) => {
                let (counts, mantissas) = (numbers(0)?, wide(1)?);
                let exponents = Exponents::of(&columns[2])?;
                let rests = Rests::of(&columns[3])?;
                for (row, group) in at() {
                    let rest = rests.get(row);
                    let sum = (i128::from_le_bytes(mantissas[row]), exponents.get(row), rest);
                    sums.load(group, counts[row], sum)?;
                }
            }
            State::Squares(sums) => {
                let mantissas = widened_bytes::<32>(&columns[0])?;
                let exponents = Exponents::of(&columns[1])?;
                let rests = Rests::of(&columns[2])?;
                for (row, group) in at() {
                    let rest = rests.get(row);
                    sums.load(
                        group,
                        (i256::from_le_bytes(mantissas[row]), exponents.get(row), rest),
                    )?;
                }
            }
            State::Extremes(cells) => {
                let (least, greatest) = (numbers(0)?, numbers(1)?);
                at().for_each(|(row, group)| cells.load(group, least[row], greatest[row]));
            }
            State::WideExtremes(cells) => {
                let (least, greatest) = (wide(0)?, wide(1)?);
                for (row, group) in at() {
                    let value = |words: &[[u8; 16]]| i128::from_le_bytes(words[row]);
                    cells.load(group, value(&least), value(&greatest));
                }
            }
            State::TextExtremes(cells) => {
                for column in columns {
                    let texts = column.as_binary_opt::<i32>()?;
                    for (row, group) in at().filter(|&(row, _)| texts.is_valid(row)) {
                        cells.add(group, texts.value(row));
                    }
                }
            }
        }
        Some(())
    }
}

/// A column without a value.
fn no_bytes(rows: usize, form: Form) -> ArrayRef {
    match form {
        Form::Equal => Arc::new(BinaryArray::new_null(rows)),
        Form::AsKept | Form::Narrow => Arc::new(NullArray::new(rows)),
    }
}

/// What did not fit: a column of bytes, or nothing at all.
struct Rests<'a>(Option<&'a BinaryArray>);

impl Rests<'_> {
    fn of(column: &ArrayRef) -> Option<Rests<'_>> {
        if column.data_type() == &DataType::Null {
            return Some(Rests(None));
        }
        let bytes = column.as_binary_opt::<i32>()?;
        Some(Rests((bytes.null_count() < bytes.len()).then_some(bytes)))
    }

    fn get(&self, row: usize) -> Option<&[u8]> {
        self.0.filter(|bytes| bytes.is_valid(row)).map(|bytes| bytes.value(row))
    }
}

/// Powers of two: one for all rows, or one each.
enum Exponents {
    All(i32),
    Each(Vec<i32>),
}

impl Exponents {
    fn of(column: &ArrayRef) -> Option<Exponents> {
        let sound =
            |exponent: i64| (-100_000..100_000).contains(&exponent).then_some(exponent as i32);
        if let Some(only) = constant(column) {
            return sound(only).map(Exponents::All);
        }
        let each = widened(column)?;
        each.iter().map(|&exponent| sound(exponent)).collect::<Option<_>>().map(Exponents::Each)
    }

    #[inline(always)]
    fn get(&self, row: usize) -> i32 {
        match self {
            Exponents::All(exponent) => *exponent,
            Exponents::Each(exponents) => exponents[row],
        }
    }
}
