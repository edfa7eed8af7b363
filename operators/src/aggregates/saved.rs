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
//! there; it is quicker. Both are loaded alike.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, FixedSizeBinaryArray, Int32Array, Int64Array, NullArray,
};
use arrow::buffer::Buffer;
use arrow::datatypes::{DataType, Int32Type, Int64Type, i256};
use std::sync::Arc;

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

fn numbers(values: impl Iterator<Item = i64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values))
}

fn fixed<const N: usize>(values: impl Iterator<Item = [u8; N]>) -> ArrayRef {
    let bytes: Vec<[u8; N]> = values.collect();
    let buffer = Buffer::from_vec(bytes.into_flattened());
    match FixedSizeBinaryArray::try_new(N as i32, buffer, None) {
        Ok(array) => Arc::new(array),
        Err(error) => unreachable!("bytes of one width do not make a column: {error}"),
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
    vec![fixed(mantissas.into_iter()), Arc::new(Int32Array::from(exponents)), rests]
}

impl State {
    /// The cells of `groups` as columns.
    pub(super) fn save(&self, groups: &[u32], form: Form) -> Vec<ArrayRef> {
        let at = || groups.iter().map(|&group| group as usize);
        let texts = |one: &dyn Fn(usize) -> Option<Box<[u8]>>| -> ArrayRef {
            Arc::new(BinaryArray::from_iter(at().map(one)))
        };
        match self {
            State::Count(cells) => vec![numbers(at().map(|g| cells[g]))],
            State::IntegerSum(cells) => {
                vec![numbers(at().map(|g| cells[g].count)), numbers(at().map(|g| cells[g].sum))]
            }
            State::DecimalSum(cells) => vec![
                numbers(at().map(|g| cells[g].count)),
                fixed(at().map(|g| cells[g].sum.to_le_bytes())),
            ],
            State::FloatSum(sums) => {
                let mut columns = vec![numbers(at().map(|g| sums.count(g)))];
                columns.extend(exact(groups, form, |g| sums.save(g, form), i128::to_le_bytes));
                columns
            }
            State::Squares(sums) => exact(groups, form, |g| sums.save(g, form), i256::to_le_bytes),
            State::Extremes(cells) => {
                vec![numbers(at().map(|g| cells.cell(g).0)), numbers(at().map(|g| cells.cell(g).1))]
            }
            State::WideExtremes(cells) => vec![
                fixed(at().map(|g| cells.cell(g).0.to_le_bytes())),
                fixed(at().map(|g| cells.cell(g).1.to_le_bytes())),
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
        let numbers = |n: usize| Some(columns[n].as_primitive_opt::<Int64Type>()?.values());
        let wide = |n: usize| words::<16>(&columns[n]);
        match self {
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
                let (counts, sums) = (numbers(0)?, words::<32>(&columns[1])?);
                for (row, group) in at() {
                    cells[group].count += counts[row];
                    let sum = i256::from_le_bytes(sums[row]);
                    cells[group].sum = cells[group].sum.wrapping_add(sum);
                }
            }
            State::FloatSum(sums) => {
                let (counts, mantissas) = (numbers(0)?, wide(1)?);
                let exponents = exponents(&columns[2])?;
                let rests = Rests::of(&columns[3])?;
                for (row, group) in at() {
                    let rest = rests.get(row);
                    let sum = (i128::from_le_bytes(mantissas[row]), exponents[row], rest);
                    sums.load(group, counts[row], sum)?;
                }
            }
            State::Squares(sums) => {
                let mantissas = words::<32>(&columns[0])?;
                let exponents = exponents(&columns[1])?;
                let rests = Rests::of(&columns[2])?;
                for (row, group) in at() {
                    let rest = rests.get(row);
                    sums.load(group, (i256::from_le_bytes(mantissas[row]), exponents[row], rest))?;
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
                    cells.load(group, value(least), value(greatest));
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
        Form::AsKept => Arc::new(NullArray::new(rows)),
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

fn words<const N: usize>(column: &ArrayRef) -> Option<&[[u8; N]]> {
    let column = column.as_fixed_size_binary_opt()?;
    (column.value_length() == N as i32).then(|| column.value_data().as_chunks::<N>().0)
}

fn exponents(column: &ArrayRef) -> Option<&[i32]> {
    let values = column.as_primitive_opt::<Int32Type>()?.values();
    values.iter().all(|exponent| (-100_000..100_000).contains(exponent)).then_some(values)
}
