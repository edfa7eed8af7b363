//! Least and greatest value of a group, in one cell.
//!
//! # Order
//! Integers, dates, times, booleans by value; strings and bytes by bytes; floats by IEEE total
//! order with every NaN made one that is greater than all: −∞ < … < −0.0 < 0.0 < … < ∞ < NaN.
//!
//! # Layout
//! Each value of up to 64 bits maps to an `i64` in the same order. An empty cell has least >
//! greatest, so that an update is two comparisons without a flag.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::*;

use super::states::{Feed, integers, picked};

/// The place of a double in total order, NaN greatest.
pub(super) fn place_of(x: f64) -> i64 {
    let bits = if x.is_nan() { f64::NAN.to_bits() & !(1 << 63) } else { x.to_bits() } as i64;
    bits ^ ((bits >> 63) as u64 >> 1) as i64
}

/// The double at a place.
pub(super) fn double_at(place: i64) -> f64 {
    f64::from_bits((place ^ ((place >> 63) as u64 >> 1) as i64) as u64)
}

const SIGN: i64 = i64::MIN;

#[derive(Clone, Copy, Debug)]
struct Cell<T> {
    least: T,
    greatest: T,
}

impl<T: Ord + Copy> Cell<T> {
    /// Takes up another cell.
    #[inline]
    fn widen(&mut self, least: T, greatest: T) {
        self.least = self.least.min(least);
        self.greatest = self.greatest.max(greatest);
    }
}

const EMPTY: Cell<i64> = Cell { least: i64::MAX, greatest: i64::MIN };
const WIDE_EMPTY: Cell<i128> = Cell { least: i128::MAX, greatest: i128::MIN };

/// Extremes of values of up to 64 bits.
#[derive(Debug, Default)]
pub(crate) struct Extremes {
    cells: Vec<Cell<i64>>,
}

impl Extremes {
    /// Some groups as extremes of their own, in this order.
    pub(super) fn pick(&self, groups: &[u32]) -> Extremes {
        Extremes { cells: picked(&self.cells, groups) }
    }

    pub(super) fn grow(&mut self, groups: usize) {
        self.cells.resize(groups.max(self.cells.len()), EMPTY);
    }

    pub(super) fn clear(&mut self, group: usize) {
        self.cells[group] = EMPTY;
    }

    #[inline]
    fn add(&mut self, group: usize, place: i64) {
        self.cells[group].widen(place, place);
    }

    pub(super) fn update(&mut self, feed: Feed<'_>, column: &ArrayRef) {
        match column.data_type() {
            DataType::Float64 => {
                let values = column.as_primitive::<Float64Type>().values();
                feed.each(|row, group, _| self.add(group, place_of(values[row])));
            }
            DataType::Float32 => {
                let values = column.as_primitive::<Float32Type>().values();
                feed.each(|row, group, _| self.add(group, place_of(values[row].into())));
            }
            DataType::UInt64 => {
                let values = integers(column);
                feed.each(|row, group, _| self.add(group, values[row] ^ SIGN));
            }
            _ => {
                let values = integers(column);
                feed.each(|row, group, _| self.add(group, values[row]));
            }
        }
    }

    pub(super) fn combine(&mut self, other: Option<&Extremes>, from: usize, into: usize) {
        let more = other.map_or_else(|| self.cells[from], |other| other.cells[from]);
        self.load(into, more.least, more.greatest);
    }

    /// Places of the least and the greatest value.
    pub(super) fn get(&self, group: usize) -> Option<(i64, i64)> {
        let cell = self.cells[group];
        (cell.least <= cell.greatest).then_some((cell.least, cell.greatest))
    }

    /// Least and greatest as they are kept.
    pub(super) fn cell(&self, group: usize) -> (i64, i64) {
        (self.cells[group].least, self.cells[group].greatest)
    }

    /// Adds a cell.
    pub(super) fn load(&mut self, group: usize, least: i64, greatest: i64) {
        self.cells[group].widen(least, greatest);
    }
}

/// Extremes of decimals of one scale.
#[derive(Debug, Default)]
pub(crate) struct WideExtremes {
    cells: Vec<Cell<i128>>,
}

impl WideExtremes {
    /// Some groups as extremes of their own, in this order.
    pub(super) fn pick(&self, groups: &[u32]) -> WideExtremes {
        WideExtremes { cells: picked(&self.cells, groups) }
    }

    pub(super) fn grow(&mut self, groups: usize) {
        self.cells.resize(groups.max(self.cells.len()), WIDE_EMPTY);
    }

    pub(super) fn clear(&mut self, group: usize) {
        self.cells[group] = WIDE_EMPTY;
    }

    pub(super) fn add(&mut self, group: usize, value: i128) {
        self.cells[group].widen(value, value);
    }

    pub(super) fn combine(&mut self, other: Option<&WideExtremes>, from: usize, into: usize) {
        let more = other.map_or_else(|| self.cells[from], |other| other.cells[from]);
        self.load(into, more.least, more.greatest);
    }

    pub(super) fn get(&self, group: usize) -> Option<(i128, i128)> {
        let cell = self.cells[group];
        (cell.least <= cell.greatest).then_some((cell.least, cell.greatest))
    }

    /// Least and greatest as they are kept.
    pub(super) fn cell(&self, group: usize) -> (i128, i128) {
        (self.cells[group].least, self.cells[group].greatest)
    }

    /// Adds a cell.
    pub(super) fn load(&mut self, group: usize, least: i128, greatest: i128) {
        self.cells[group].widen(least, greatest);
    }
}

/// Least and greatest.
type Texts = (Box<[u8]>, Box<[u8]>);

/// Extremes of strings and bytes: two allocations a group that has any.
#[derive(Debug, Default)]
pub(crate) struct TextExtremes {
    cells: Vec<Option<Texts>>,
}

impl TextExtremes {
    /// Some groups as extremes of their own, in this order.
    pub(super) fn pick(&self, groups: &[u32]) -> TextExtremes {
        TextExtremes { cells: picked(&self.cells, groups) }
    }

    pub(super) fn grow(&mut self, groups: usize) {
        self.cells.resize(groups.max(self.cells.len()), None);
    }

    pub(super) fn clear(&mut self, group: usize) {
        self.cells[group] = None;
    }

    pub(super) fn add(&mut self, group: usize, text: &[u8]) {
        match &mut self.cells[group] {
            None => self.cells[group] = Some((text.into(), text.into())),
            Some((least, _)) if text < &**least => *least = text.into(),
            Some((_, greatest)) if text > &**greatest => *greatest = text.into(),
            Some(_) => {}
        }
    }

    pub(super) fn update(&mut self, feed: Feed<'_>, column: &ArrayRef) {
        match column.data_type() {
            DataType::Utf8 => {
                let values = column.as_string::<i32>();
                feed.each(|row, group, _| self.add(group, values.value(row).as_bytes()));
            }
            DataType::LargeUtf8 => {
                let values = column.as_string::<i64>();
                feed.each(|row, group, _| self.add(group, values.value(row).as_bytes()));
            }
            DataType::Utf8View => {
                let values = column.as_string_view();
                feed.each(|row, group, _| self.add(group, values.value(row).as_bytes()));
            }
            _ => {
                let values = column.as_binary::<i32>();
                feed.each(|row, group, _| self.add(group, values.value(row)));
            }
        }
    }

    pub(super) fn combine(&mut self, other: Option<&TextExtremes>, from: usize, into: usize) {
        let cells = other.map_or(&self.cells, |other| &other.cells);
        let Some((least, greatest)) = cells[from].clone() else { return };
        self.add(into, &least);
        self.add(into, &greatest);
    }

    pub(super) fn get(&self, group: usize) -> Option<(&[u8], &[u8])> {
        self.cells[group].as_ref().map(|(least, greatest)| (&**least, &**greatest))
    }
}
