//! What an aggregate keeps a group: counts, sums, extremes, each a column of cells.
//!
//! # Invariant
//! A state is a function of the multiset of what was added less what was taken away. Nothing in it
//! depends on the order. Extremes cannot take away.
//!
//! # Why columns of cells
//! What calls over one argument share is one cell (a sum with its count, a least with its
//! greatest), so that a row touches one cache line an argument; what they do not need is not there.

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, make_array};
use arrow::buffer::ScalarBuffer;
use arrow::compute::cast;
use arrow::datatypes::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_engine::operator::OperatorError;

use super::exact::{FloatSums, SquareSums};
use super::extremes::{Extremes, TextExtremes, WideExtremes};

/// Rows of a chunk on their way into groups. All slices are by row of the chunk, but for `rows`.
#[derive(Clone, Copy)]
pub(super) struct Feed<'a> {
    /// Group of each row.
    pub(super) groups: &'a [u32],
    /// Which rows take part; `None` for all.
    pub(super) rows: Option<&'a [u32]>,
    /// How often each row counts; `None` for once.
    pub(super) diffs: Option<&'a [i64]>,
}

impl Feed<'_> {
    /// Calls `visit(row, group, diff)` for each row that takes part.
    #[inline(always)]
    pub(super) fn each(self, mut visit: impl FnMut(usize, usize, i64)) {
        match (self.rows, self.diffs) {
            (None, None) => {
                self.groups.iter().enumerate().for_each(|(row, &group)| {
                    visit(row, group as usize, 1);
                });
            }
            (Some(rows), None) => rows.iter().for_each(|&row| {
                visit(row as usize, self.groups[row as usize] as usize, 1);
            }),
            (rows, Some(diffs)) => {
                let mut one = |row: usize| visit(row, self.groups[row] as usize, diffs[row]);
                match rows {
                    Some(rows) => rows.iter().for_each(|&row| one(row as usize)),
                    None => (0..self.groups.len()).for_each(one),
                }
            }
        }
    }
}

/// What a call needs to be kept of its argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Count,
    FloatSum,
    Squares,
    IntegerSum,
    DecimalSum,
    Extremes,
    WideExtremes,
    TextExtremes,
}

/// Wrapping sum of integers, and their number. Sums modulo 2^64 truncate to what a narrower sum
/// that wraps around (as Flink's does) would have given.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct IntegerCell {
    pub(super) sum: i64,
    pub(super) count: i64,
}

/// Sum of decimals' unscaled values, and their number. 256 bits cannot overflow.
#[derive(Clone, Copy, Debug)]
pub(super) struct DecimalCell {
    pub(super) sum: i256,
    pub(super) count: i64,
}

const DECIMAL_ZERO: DecimalCell = DecimalCell { sum: i256::ZERO, count: 0 };

/// The cells of one kind for all groups.
#[derive(Debug)]
pub(super) enum State {
    Count(Vec<i64>),
    FloatSum(FloatSums),
    Squares(SquareSums),
    IntegerSum(Vec<IntegerCell>),
    DecimalSum(Vec<DecimalCell>),
    Extremes(Extremes),
    WideExtremes(WideExtremes),
    TextExtremes(TextExtremes),
}

/// Runs `$body` with `$cells` bound to whatever holds the cells.
macro_rules! each_kind {
    ($state:expr, $cells:ident => $plain:expr, $owned:ident => $own:expr) => {
        match $state {
            State::Count($cells) => $plain,
            State::IntegerSum($cells) => $plain,
            State::DecimalSum($cells) => $plain,
            State::FloatSum($owned) => $own,
            State::Squares($owned) => $own,
            State::Extremes($owned) => $own,
            State::WideExtremes($owned) => $own,
            State::TextExtremes($owned) => $own,
        }
    };
}

/// The empty cell of kinds that are plain vectors.
trait Empty {
    const EMPTY: Self;
}
impl Empty for i64 {
    const EMPTY: i64 = 0;
}
impl Empty for IntegerCell {
    const EMPTY: IntegerCell = IntegerCell { sum: 0, count: 0 };
}
impl Empty for DecimalCell {
    const EMPTY: DecimalCell = DECIMAL_ZERO;
}

fn grow_cells<T: Empty + Clone>(cells: &mut Vec<T>, groups: usize) {
    cells.resize(groups.max(cells.len()), T::EMPTY);
}

fn clear_cells<T: Empty>(cells: &mut [T], groups: &[u32]) {
    groups.iter().for_each(|&group| cells[group as usize] = T::EMPTY);
}

/// Some cells, in this order.
pub(super) fn picked<T: Clone>(cells: &[T], groups: &[u32]) -> Vec<T> {
    groups.iter().map(|&group| cells[group as usize].clone()).collect()
}

/// What is beside the cells of some groups, under their new numbers.
pub(super) fn picked_beside<T: Clone>(
    beside: &BTreeMap<usize, T>,
    groups: &[u32],
) -> BTreeMap<usize, T> {
    if beside.is_empty() {
        return BTreeMap::new();
    }
    let pairs = groups.iter().enumerate();
    pairs.filter_map(|(n, &group)| Some((n, beside.get(&(group as usize))?.clone()))).collect()
}

impl State {
    pub(super) fn new(kind: Kind) -> State {
        match kind {
            Kind::Count => State::Count(Vec::new()),
            Kind::FloatSum => State::FloatSum(FloatSums::default()),
            Kind::Squares => State::Squares(SquareSums::default()),
            Kind::IntegerSum => State::IntegerSum(Vec::new()),
            Kind::DecimalSum => State::DecimalSum(Vec::new()),
            Kind::Extremes => State::Extremes(Extremes::default()),
            Kind::WideExtremes => State::WideExtremes(WideExtremes::default()),
            Kind::TextExtremes => State::TextExtremes(TextExtremes::default()),
        }
    }

    pub(super) fn grow(&mut self, groups: usize) {
        each_kind!(self, cells => grow_cells(cells, groups), owned => owned.grow(groups));
    }

    pub(super) fn clear(&mut self, groups: &[u32]) {
        each_kind!(self, cells => clear_cells(cells, groups),
            owned => groups.iter().for_each(|&group| owned.clear(group as usize)));
    }

    /// The cells of `groups` as a state of its own, in this order.
    pub(super) fn pick(&self, groups: &[u32]) -> State {
        match self {
            State::Count(cells) => State::Count(picked(cells, groups)),
            State::IntegerSum(cells) => State::IntegerSum(picked(cells, groups)),
            State::DecimalSum(cells) => State::DecimalSum(picked(cells, groups)),
            State::FloatSum(sums) => State::FloatSum(sums.pick(groups)),
            State::Squares(sums) => State::Squares(sums.pick(groups)),
            State::Extremes(cells) => State::Extremes(cells.pick(groups)),
            State::WideExtremes(cells) => State::WideExtremes(cells.pick(groups)),
            State::TextExtremes(cells) => State::TextExtremes(cells.pick(groups)),
        }
    }

    pub(super) fn is_invertible(&self) -> bool {
        !matches!(self, State::Extremes(_) | State::WideExtremes(_) | State::TextExtremes(_))
    }

    /// Adds the rows of `column`, all of them non-null.
    pub(super) fn update(&mut self, feed: Feed<'_>, column: Option<&ArrayRef>) {
        match (self, column) {
            (State::Count(cells), _) => feed.each(|_, group, diff| cells[group] += diff),
            (_, None) => {}
            (State::FloatSum(sums), Some(column)) => match feed {
                Feed { groups, rows: None, diffs: None }
                    if column.data_type() == &DataType::Float64 =>
                {
                    let values = column.as_primitive::<Float64Type>().values();
                    sums.add_each(groups.iter().map(|&g| g as usize).zip(values.iter().copied()));
                }
                _ => each_double(feed, column, |group, x, n| sums.add_times(group, x, n)),
            },
            (State::Squares(sums), Some(column)) => {
                each_double(feed, column, |group, x, diff| sums.add(group, x, diff));
            }
            (State::IntegerSum(cells), Some(column)) => {
                each_integer(feed, column, |group, x, diff| {
                    let cell = &mut cells[group];
                    cell.sum = cell.sum.wrapping_add(x.wrapping_mul(diff));
                    cell.count += diff;
                });
            }
            (State::DecimalSum(cells), Some(column)) => {
                let values = column.as_primitive::<Decimal128Type>().values();
                feed.each(|row, group, diff| {
                    let (x, n) = (i256::from_i128(values[row]), i256::from_i128(diff.into()));
                    let cell = &mut cells[group];
                    cell.sum = cell.sum.wrapping_add(x.wrapping_mul(n));
                    cell.count += diff;
                });
            }
            (State::Extremes(extremes), Some(column)) => extremes.update(feed, column),
            (State::WideExtremes(extremes), Some(column)) => {
                let values = column.as_primitive::<Decimal128Type>().values();
                feed.each(|row, group, _| extremes.add(group, values[row]));
            }
            (State::TextExtremes(extremes), Some(column)) => extremes.update(feed, column),
        }
    }

    /// Adds (`sign` 1) or takes away (-1) groups `from` of `other` (`None`: of this state itself)
    /// to groups `into`, pair by pair. Extremes ignore the sign: the caller never asks them to take
    /// away.
    pub(super) fn combine(&mut self, other: Option<&State>, from: &[u32], into: &[u32], sign: i64) {
        macro_rules! other {
            ($kind:path) => {
                match other {
                    Some($kind(other)) => Some(other),
                    _ => None,
                }
            };
        }
        let pairs = from.iter().zip(into).map(|(&from, &into)| (from as usize, into as usize));
        match self {
            State::Count(cells) => {
                let other = other!(State::Count);
                for (from, into) in pairs {
                    cells[into] += sign * other.map_or_else(|| cells[from], |other| other[from]);
                }
            }
            State::IntegerSum(cells) => {
                let other = other!(State::IntegerSum);
                for (from, into) in pairs {
                    let more = other.map_or_else(|| cells[from], |other| other[from]);
                    let cell = &mut cells[into];
                    cell.sum = cell.sum.wrapping_add(more.sum.wrapping_mul(sign));
                    cell.count += sign * more.count;
                }
            }
            State::DecimalSum(cells) => {
                let other = other!(State::DecimalSum);
                for (from, into) in pairs {
                    let more = other.map_or_else(|| cells[from], |other| other[from]);
                    let cell = &mut cells[into];
                    let sum = more.sum.wrapping_mul(i256::from_i128(sign.into()));
                    cell.sum = cell.sum.wrapping_add(sum);
                    cell.count += sign * more.count;
                }
            }
            State::FloatSum(sums) => {
                let other = other!(State::FloatSum);
                pairs.for_each(|(from, into)| sums.combine(other, from, into, sign));
            }
            State::Squares(sums) => {
                let other = other!(State::Squares);
                pairs.for_each(|(from, into)| sums.combine(other, from, into, sign));
            }
            State::Extremes(cells) => {
                let other = other!(State::Extremes);
                pairs.for_each(|(from, into)| cells.combine(other, from, into));
            }
            State::WideExtremes(cells) => {
                let other = other!(State::WideExtremes);
                pairs.for_each(|(from, into)| cells.combine(other, from, into));
            }
            State::TextExtremes(cells) => {
                let other = other!(State::TextExtremes);
                pairs.for_each(|(from, into)| cells.combine(other, from, into));
            }
        }
    }

    /// Number of non-null arguments of a group, where this kind knows it.
    pub(super) fn count(&self, group: usize) -> Option<i64> {
        match self {
            State::Count(cells) => Some(cells[group]),
            State::FloatSum(sums) => Some(sums.count(group)),
            State::IntegerSum(cells) => Some(cells[group].count),
            State::DecimalSum(cells) => Some(cells[group].count),
            _ => None,
        }
    }

    /// Adds the counts of `groups` to `counts`, where this kind knows them.
    pub(super) fn add_counts(&self, groups: &[u32], counts: &mut [i64]) {
        let pairs = counts.iter_mut().zip(groups.iter().map(|&group| group as usize));
        match self {
            State::Count(cells) => pairs.for_each(|(count, group)| *count += cells[group]),
            State::FloatSum(sums) => pairs.for_each(|(count, group)| *count += sums.count(group)),
            _ => pairs.for_each(|(count, group)| *count += self.count(group).unwrap_or(0)),
        }
    }
}

/// Visits (group, value, diff) of a numeric column as doubles. Integers beyond 2^53 and decimals
/// are rounded to the nearest double first.
fn each_double(feed: Feed<'_>, column: &ArrayRef, mut visit: impl FnMut(usize, f64, i64)) {
    match column.data_type() {
        DataType::Float64 => {
            let values = column.as_primitive::<Float64Type>().values();
            feed.each(|row, group, diff| visit(group, values[row], diff));
        }
        DataType::Float32 => {
            let values = column.as_primitive::<Float32Type>().values();
            feed.each(|row, group, diff| visit(group, f64::from(values[row]), diff));
        }
        DataType::Decimal128(_, scale) => {
            let unit = 10_f64.powi(i32::from(*scale));
            let values = column.as_primitive::<Decimal128Type>().values();
            feed.each(|row, group, diff| visit(group, values[row] as f64 / unit, diff));
        }
        _ => each_integer(feed, column, |group, x, diff| visit(group, x as f64, diff)),
    }
}

fn each_integer(feed: Feed<'_>, column: &ArrayRef, mut visit: impl FnMut(usize, i64, i64)) {
    let values = integers(column);
    feed.each(|row, group, diff| visit(group, values[row], diff));
}

/// The values of an integer, date, time, timestamp or boolean column; others are empty. 64-bit
/// columns are not copied. Unsigned 64-bit values keep their bits.
pub(super) fn integers(column: &ArrayRef) -> ScalarBuffer<i64> {
    let data = column.to_data();
    let (offset, length) = (data.offset(), data.len());
    macro_rules! widened {
        ($native:ty) => {
            ScalarBuffer::<$native>::new(data.buffers()[0].clone(), offset, length)
                .iter()
                .map(|&x| i64::from(x))
                .collect()
        };
    }
    match column.data_type() {
        DataType::Boolean => column.as_boolean().values().iter().map(i64::from).collect(),
        DataType::Int8 => widened!(i8),
        DataType::UInt8 => widened!(u8),
        DataType::Int16 => widened!(i16),
        DataType::UInt16 => widened!(u16),
        DataType::UInt32 => widened!(u32),
        other => match other.primitive_width() {
            Some(8) => ScalarBuffer::new(data.buffers()[0].clone(), offset, length),
            Some(4) => widened!(i32),
            _ => ScalarBuffer::default(),
        },
    }
}

/// The inverse of [`integers`]: values as a column of an integer, date, time or boolean type, cut
/// to its width (which is what wrapping around there would have given).
pub(super) fn as_type(values: &Int64Array, wanted: &DataType) -> Result<ArrayRef, OperatorError> {
    Ok(match wanted {
        DataType::Boolean => {
            Arc::new(values.iter().map(|x| x.map(|x| x == 1)).collect::<BooleanArray>())
        }
        DataType::Int8 => Arc::new(values.unary::<_, Int8Type>(|x| x as i8)),
        DataType::Int16 => Arc::new(values.unary::<_, Int16Type>(|x| x as i16)),
        DataType::UInt8 => Arc::new(values.unary::<_, UInt8Type>(|x| x as u8)),
        DataType::UInt16 => Arc::new(values.unary::<_, UInt16Type>(|x| x as u16)),
        other => {
            let data = match other.primitive_width() {
                Some(4) => values.unary::<_, Int32Type>(|x| x as i32).into_data(),
                Some(8) => values.to_data(),
                _ => return Ok(cast(values, other)?),
            };
            make_array(data.into_builder().data_type(other.clone()).build()?)
        }
    })
}
