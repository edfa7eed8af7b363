//! Sums of doubles, and of their squares, without any rounding until they are asked for.
//!
//! # Invariant
//! A finite double is an integer below 2^53 times a power of two. A sum is kept as integers, each
//! counting units of one power of two; what they denote together is exactly the sum of what was
//! added less what was taken away. So the order of additions, merges and evictions cannot be seen.
//!
//! # Layout
//! Ordinary data of one group spans few exponents: its sum lives in one 128-bit bin of 32
//! exponents, inline in the group's cell (2^-15 … 2^17 share one). A value of the next bin up is
//! shifted into it while it fits. Whatever does not fit goes to a table beside the cells.
//!
//! # Result
//! [`FloatSums::sum`] rounds once, to nearest, ties to even: Python's `math.fsum`. A sum of zeros
//! of either sign, and of nothing, is +0.0. NaN, or infinities of both signs, give NaN; infinities
//! of one sign give that infinity (they are counted, so they can be taken away again). A finite sum
//! beyond the range of doubles is infinite.
//!
//! # Complexity and limits
//! One 128-bit addition a value; a look-up in a B-tree for a value that does not fit. No limit on
//! the number of additions: a bin that overflows spills.

use std::collections::BTreeMap;

use arrow::datatypes::i256;

use super::saved::{Exact, Form};
use super::states::{picked, picked_beside};

/// An exact number: Σ bin · 2^(32 · place), the bins in order of place, each below 2^96 in
/// magnitude.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ExactBins {
    bins: Vec<(i32, i128)>,
}

/// Sign, exponent of the lowest limb, and magnitude in limbs of 32 bits, least first.
type Limbs = (bool, i32, Vec<u32>);

impl ExactBins {
    /// Adds `value · 2^exponent`.
    pub(crate) fn add(&mut self, value: i128, exponent: i32) {
        self.add_part(value & i128::from(u64::MAX), exponent);
        self.add_part(value >> 64, exponent + 64);
    }

    /// Adds `value · 2^exponent` for a value of 256 bits.
    pub(crate) fn add_wide(&mut self, value: i256, exponent: i32) {
        let (low, high) = value.to_parts();
        self.add((low & u128::from(u64::MAX)) as i128, exponent);
        self.add((low >> 64) as i128, exponent + 64);
        self.add(high, exponent + 128);
    }

    /// Adds (`sign` 1) or takes away (-1) another number.
    pub(crate) fn combine(&mut self, other: &ExactBins, sign: i128) {
        for &(place, value) in &other.bins {
            self.carry(place, value * sign);
        }
    }

    fn add_part(&mut self, value: i128, exponent: i32) {
        self.carry(exponent.div_euclid(32), value << exponent.rem_euclid(32));
    }

    fn carry(&mut self, mut place: i32, mut value: i128) {
        while value != 0 {
            let at = match self.bins.binary_search_by_key(&place, |bin| bin.0) {
                Ok(at) => at,
                Err(at) => {
                    self.bins.insert(at, (place, 0));
                    at
                }
            };
            let total = self.bins[at].1 + value;
            if total == 0 {
                self.bins.remove(at);
                return;
            }
            if total.unsigned_abs() < 1 << 96 {
                self.bins[at].1 = total;
                return;
            }
            self.bins[at].1 = total & 0xffff_ffff;
            if self.bins[at].1 == 0 {
                self.bins.remove(at);
            }
            value = total >> 32;
            place += 1;
        }
    }

    fn limbs(&self) -> Limbs {
        let first = self.bins.first().map_or(0, |bin| bin.0);
        let (mut limbs, mut carry, mut next, mut place) = (Vec::new(), 0_i128, 0, first);
        while next < self.bins.len() || !matches!(carry, 0 | -1) {
            if let Some(&(at, value)) = self.bins.get(next)
                && at == place
            {
                carry += value;
                next += 1;
            }
            limbs.push(carry as u32);
            carry >>= 32;
            place += 1;
        }
        if carry == -1 {
            let mut one = true;
            for limb in &mut limbs {
                (*limb, one) = (!*limb).overflowing_add(u32::from(one));
            }
            if one {
                limbs.push(1);
            }
        }
        (carry == -1, first * 32, limbs)
    }

    /// The nearest double, ties to even.
    pub(crate) fn round(&self) -> f64 {
        let (negative, exponent, limbs) = self.limbs();
        let Some(top) = limbs.iter().rposition(|&limb| limb != 0) else { return 0.0 };
        let low = top.saturating_sub(3);
        let mut value = 0_u128;
        for &limb in limbs[low..=top].iter().rev() {
            value = value << 32 | u128::from(limb);
        }
        // With four limbs at least 97 bits are here; the rest only matters as "not exactly half".
        value |= u128::from(limbs[..low].iter().any(|&limb| limb != 0));
        round(negative, value, exponent + 32 * low as i32)
    }

    /// n · `squares` − `sum`², rounded once: the numerator of a variance.
    pub(crate) fn spread(n: i64, sum: &ExactBins, squares: &ExactBins) -> f64 {
        let mut total = ExactBins::default();
        let (negative, exponent, limbs) = squares.limbs();
        let times = if negative { -i128::from(n) } else { i128::from(n) };
        for (i, &limb) in limbs.iter().enumerate() {
            total.add(times * i128::from(limb), exponent + 32 * i as i32);
        }
        let (_, exponent, limbs) = sum.limbs();
        for (i, &a) in limbs.iter().enumerate() {
            for (j, &b) in limbs.iter().enumerate() {
                let product = i128::from(u64::from(a) * u64::from(b));
                total.add(-product, 2 * exponent + 32 * (i + j) as i32);
            }
        }
        total.round()
    }

    /// Canonical bytes: equal numbers have equal bytes.
    fn save(&self, out: &mut Vec<u8>) {
        let (negative, exponent, limbs) = self.limbs();
        let from = limbs.iter().position(|&l| l != 0).unwrap_or(limbs.len());
        let to = limbs.iter().rposition(|&l| l != 0).map_or(from, |at| at + 1);
        out.push(u8::from(negative));
        let exponent = if from == to { 0 } else { exponent + 32 * from as i32 };
        out.extend(exponent.to_le_bytes());
        limbs[from..to].iter().for_each(|limb| out.extend(limb.to_le_bytes()));
    }

    /// Sign, exponent and limbs of the number over its greatest power of two; none for 0.
    fn odd(&self) -> Limbs {
        let (negative, exponent, limbs) = self.limbs();
        let Some(from) = limbs.iter().position(|&limb| limb != 0) else {
            return (false, 0, Vec::new());
        };
        let zeros = limbs[from].trailing_zeros();
        let shifted = |at: usize| {
            let high = limbs.get(at + 1).copied().unwrap_or(0);
            ((u64::from(high) << 32 | u64::from(limbs[at])) >> zeros) as u32
        };
        let mut odd: Vec<u32> = (from..limbs.len()).map(shifted).collect();
        odd.truncate(odd.iter().rposition(|&limb| limb != 0).map_or(0, |top| top + 1));
        (negative, exponent + 32 * from as i32 + zeros as i32, odd)
    }

    /// The number as m · 2^e with an odd m (0 for 0), if m has at most 255 bits.
    fn mantissa(&self) -> Option<(i256, i32)> {
        let (negative, exponent, limbs) = self.odd();
        if limbs.len() > 8 || limbs.get(7).is_some_and(|top| top >> 31 == 1) {
            return None;
        }
        let half = |limbs: &[u32]| {
            limbs.iter().rev().fold(0_u128, |value, &limb| value << 32 | u128::from(limb))
        };
        let (low, high) = limbs.split_at(limbs.len().min(4));
        let value = i256::from_parts(half(low), half(high) as i128);
        Some((if negative { value.wrapping_neg() } else { value }, exponent))
    }

    fn load(&mut self, bytes: &[u8]) -> Option<()> {
        let (&negative, rest) = bytes.split_first()?;
        let (exponent, limbs) = rest.split_first_chunk::<4>()?;
        let exponent = i32::from_le_bytes(*exponent);
        if limbs.len() % 4 != 0 || !(-100_000..100_000).contains(&exponent) {
            return None;
        }
        for (i, limb) in limbs.chunks_exact(4).enumerate() {
            let value = i128::from(u32::from_le_bytes(limb.try_into().ok()?));
            let value = if negative == 1 { -value } else { value };
            self.add(value, exponent + 32 * i as i32);
        }
        Some(())
    }
}

/// `value · 2^exponent` as the nearest double, ties to even.
fn round(negative: bool, value: u128, exponent: i32) -> f64 {
    let bits = 128 - value.leading_zeros() as i32;
    // The result's last place: 53 bits below the top, but no lower than the subnormals'.
    let mut unit = (exponent + bits - 53).max(-1074);
    let drop = unit - exponent;
    let mut mantissa = if drop <= 0 {
        value << -drop
    } else if drop > 127 {
        0
    } else {
        let (kept, rest, half) = (value >> drop, value & ((1 << drop) - 1), 1 << (drop - 1));
        kept + u128::from(rest > half || rest == half && kept & 1 == 1)
    };
    if mantissa == 1 << 53 {
        (mantissa, unit) = (1 << 52, unit + 1);
    }
    let magnitude = if mantissa < 1 << 52 {
        f64::from_bits(mantissa as u64)
    } else if unit + 52 > 1023 {
        f64::INFINITY
    } else {
        f64::from_bits(((unit + 1075) as u64) << 52 | mantissa as u64 & FRACTION)
    };
    if negative { -magnitude } else { magnitude }
}

const FRACTION: u64 = (1 << 52) - 1;
/// Unit of the inline bin 0 is 2^-UNIT; bin n is 32 n above.
const UNIT: i32 = 1091;
/// Unit of the inline bin 0 of squares is 2^-SQUARE_UNIT; bin n is 64 n above.
const SQUARE_UNIT: i32 = 134;

/// Mantissa with its sign, and exponent, of a finite double.
fn parts(x: f64) -> (i64, i32) {
    let bits = x.to_bits();
    let biased = (bits >> 52 & 0x7ff) as i32;
    let fraction = (bits & FRACTION) as i64;
    let (mantissa, biased) = if biased == 0 { (fraction, 1) } else { (fraction | 1 << 52, biased) };
    (if x.is_sign_negative() { -mantissa } else { mantissa }, biased - 1075)
}

/// What of a group's sum is not in its cell.
#[derive(Clone, Debug, Default, PartialEq)]
struct Beside {
    bins: ExactBins,
    nan: i64,
    plus: i64,
    minus: i64,
}

impl Beside {
    fn add_unbounded(&mut self, x: f64, diff: i64) {
        match (x.is_nan(), x > 0.0) {
            (true, _) => self.nan += diff,
            (_, true) => self.plus += diff,
            (_, false) => self.minus += diff,
        }
    }

    fn combine(&mut self, other: &Beside, sign: i64) {
        self.bins.combine(&other.bins, i128::from(sign));
        self.nan += sign * other.nan;
        self.plus += sign * other.plus;
        self.minus += sign * other.minus;
    }

    fn unbounded(&self) -> Option<f64> {
        match (self.nan != 0, self.plus != 0, self.minus != 0) {
            (false, false, false) => None,
            (false, true, false) => Some(f64::INFINITY),
            (false, false, true) => Some(f64::NEG_INFINITY),
            _ => Some(f64::NAN),
        }
    }

    fn save(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(48);
        [self.nan, self.plus, self.minus].iter().for_each(|n| out.extend(n.to_le_bytes()));
        self.bins.save(&mut out);
        out
    }

    fn load(bytes: &[u8]) -> Option<Beside> {
        let mut loaded = Beside::default();
        let mut rest = bytes;
        for count in [&mut loaded.nan, &mut loaded.plus, &mut loaded.minus] {
            let (head, tail) = rest.split_first_chunk::<8>()?;
            *count = i64::from_le_bytes(*head);
            rest = tail;
        }
        loaded.bins.load(rest)?;
        Some(loaded)
    }
}

/// Sum and count of one group: 32 bytes.
#[derive(Clone, Copy, Debug)]
struct Cell {
    sum: i128,
    count: i64,
    /// The inline bin; -1 while there is none. Only 1 ..= 63 are ever inline, so that the fast path
    /// need not tell subnormals (bin 0), infinities and NaN (bin 64) apart.
    bin: i32,
    /// Whether there is more of this group beside the cells.
    beside: bool,
}

const EMPTY: Cell = Cell { sum: 0, count: 0, bin: -1, beside: false };

/// Exact sums, with counts, by group.
#[derive(Debug, Default)]
pub(crate) struct FloatSums {
    cells: Vec<Cell>,
    beside: BTreeMap<usize, Beside>,
}

impl FloatSums {
    /// Some groups as sums of their own, in this order.
    pub(super) fn pick(&self, groups: &[u32]) -> FloatSums {
        let (cells, beside) = (&self.cells, &self.beside);
        FloatSums { cells: picked(cells, groups), beside: picked_beside(beside, groups) }
    }

    pub(crate) fn grow(&mut self, groups: usize) {
        self.cells.resize(groups.max(self.cells.len()), EMPTY);
    }

    /// Adds the value of each row to its group, once.
    pub(crate) fn add_each(&mut self, rows: impl Iterator<Item = (usize, f64)>) {
        // What does not fit is put off: the order cannot be seen, and the loop has no call in it.
        let mut others: Vec<(usize, f64)> = Vec::new();
        let cells = &mut self.cells[..];
        for (group, x) in rows {
            let bits = x.to_bits();
            let at = (bits >> 52 & 0x7ff) as u32 + 16;
            let (bin, shift) = ((at >> 5) as i32, at & 31);
            let mantissa = bits & FRACTION | 1 << 52;
            // The two halves of mantissa << shift, for a shift below 32.
            let high = u128::from((mantissa >> 33) >> (31 - shift));
            let wide = high << 64 | u128::from(mantissa << shift);
            let sign = i128::from(bits as i64 >> 63);
            let value = (wide as i128 ^ sign).wrapping_sub(sign);
            let cell = &mut cells[group];
            if cell.bin == bin {
                let (sum, over) = cell.sum.overflowing_add(value);
                if !over {
                    cell.sum = sum;
                    cell.count = cell.count.wrapping_add(1);
                    continue;
                }
            } else if cell.sum == 0 && bin & 63 != 0 {
                (cell.sum, cell.bin) = (value, bin);
                cell.count = cell.count.wrapping_add(1);
                continue;
            }
            if x == 0.0 {
                cell.count = cell.count.wrapping_add(1);
                continue;
            }
            others.push((group, x));
        }
        others.into_iter().for_each(|(group, x)| self.add_times(group, x, 1));
    }

    /// Adds `x` `diff` times.
    pub(crate) fn add_times(&mut self, group: usize, x: f64, diff: i64) {
        self.cells[group].count += diff;
        if x == 0.0 {
            return;
        }
        if !x.is_finite() {
            self.beside(group).add_unbounded(x, diff);
            return;
        }
        let (mantissa, exponent) = parts(x);
        self.put(group, i128::from(mantissa) * i128::from(diff), exponent);
    }

    /// Adds `value · 2^exponent`, inline if it fits.
    fn put(&mut self, group: usize, value: i128, exponent: i32) {
        let cell = &mut self.cells[group];
        let bin = (exponent + UNIT) >> 5;
        if cell.sum == 0 && (1..64).contains(&bin) {
            cell.bin = bin;
        }
        if bin < cell.bin && bin > 0 {
            let up = 32 * (cell.bin - bin);
            if cell.sum.unsigned_abs().leading_zeros() as i32 > up + 1 {
                // The inline bin moves down to where this value fits too.
                cell.sum <<= up;
                cell.bin = bin;
            }
        }
        let shift = exponent + UNIT - 32 * cell.bin;
        if shift >= 0
            && cell.bin > 0
            && value.unsigned_abs().leading_zeros() as i32 > shift + 1
            && let Some(sum) = cell.sum.checked_add(value << shift)
        {
            cell.sum = sum;
        } else {
            self.beside(group).bins.add(value, exponent);
        }
    }

    fn beside(&mut self, group: usize) -> &mut Beside {
        self.cells[group].beside = true;
        self.beside.entry(group).or_default()
    }

    /// Adds (`sign` 1) or takes away (-1) the group `from` of `other`, or of these sums themselves.
    #[inline]
    pub(crate) fn combine(
        &mut self,
        other: Option<&FloatSums>,
        from: usize,
        into: usize,
        sign: i64,
    ) {
        let source = other.map_or_else(|| self.cells[from], |other| other.cells[from]);
        let cell = &mut self.cells[into];
        cell.count += sign * source.count;
        if cell.sum == 0 {
            cell.bin = source.bin;
        }
        let value = if sign < 0 { source.sum.checked_neg() } else { Some(source.sum) };
        let sum = value.and_then(|value| cell.sum.checked_add(value));
        match sum {
            Some(sum) if cell.bin == source.bin => cell.sum = sum,
            _ if source.sum == 0 => {}
            // 2^127 has no negation, and no room for a shift: it goes in two halves.
            _ => {
                let exponent = 32 * source.bin - UNIT;
                let (high, low) = (source.sum >> 64, source.sum & i128::from(u64::MAX));
                self.put(into, low * i128::from(sign), exponent);
                if high != 0 {
                    self.put_high(into, high * i128::from(sign), exponent);
                }
            }
        }
        if source.beside {
            let more = other.map_or(&self.beside, |other| &other.beside).get(&from).cloned();
            if let Some(more) = more {
                self.beside(into).combine(&more, sign);
            }
        }
    }

    fn put_high(&mut self, group: usize, value: i128, exponent: i32) {
        let cell = &mut self.cells[group];
        let inline = (32 * cell.bin - UNIT == exponent && (-(1 << 61)..1 << 61).contains(&value))
            .then(|| cell.sum.checked_add(value << 64))
            .flatten();
        match inline {
            Some(sum) => cell.sum = sum,
            None => self.beside(group).bins.add(value, exponent + 64),
        }
    }

    pub(crate) fn clear(&mut self, group: usize) {
        if self.cells[group].beside {
            self.beside.remove(&group);
        }
        self.cells[group] = EMPTY;
    }

    pub(crate) fn count(&self, group: usize) -> i64 {
        self.cells[group].count
    }

    /// The sum, rounded once.
    pub(crate) fn sum(&self, group: usize) -> f64 {
        let cell = &self.cells[group];
        if cell.sum == 0 && !cell.beside {
            return 0.0;
        }
        if !cell.beside && (8..60).contains(&cell.bin) {
            // A conversion rounds to nearest even; the scaling is exact, for the result is normal.
            let scale = f64::from_bits(((32 * cell.bin - UNIT + 1023) as u64) << 52);
            return cell.sum as f64 * scale;
        }
        self.unbounded(group).unwrap_or_else(|| self.exact(group).round())
    }

    /// NaN or an infinity where the sum is one because of its inputs.
    pub(crate) fn unbounded(&self, group: usize) -> Option<f64> {
        self.beside.get(&group).and_then(Beside::unbounded)
    }

    /// The finite part of the sum.
    pub(crate) fn exact(&self, group: usize) -> ExactBins {
        self.whole(group).bins
    }

    fn whole(&self, group: usize) -> Beside {
        let cell = &self.cells[group];
        let mut whole = self.beside.get(&group).cloned().unwrap_or_default();
        whole.bins.add(cell.sum, 32 * cell.bin - UNIT);
        whole
    }

    /// The sum.
    pub(super) fn save(&self, group: usize, form: Form) -> Exact<i128> {
        let cell = &self.cells[group];
        if cell.sum == 0 && !cell.beside {
            return (0, 0, None);
        }
        if !cell.beside && form != Form::Equal {
            return (cell.sum, 32 * cell.bin - UNIT, None);
        }
        if !cell.beside {
            let zeros = cell.sum.trailing_zeros();
            return (cell.sum >> zeros, 32 * cell.bin - UNIT + zeros as i32, None);
        }
        let whole = self.whole(group);
        let narrow = whole.bins.mantissa().and_then(|(m, e)| Some((m.to_i128()?, e)));
        match narrow {
            Some((m, e)) if whole.unbounded().is_none() => (m, e, None),
            _ => (0, 0, Some(whole.save())),
        }
    }

    /// Adds `count` and a sum as [`FloatSums::save`] gave it. `None`: not such a sum.
    pub(super) fn load(&mut self, group: usize, count: i64, sum: Exact<i128, &[u8]>) -> Option<()> {
        let (mut mantissa, mut exponent, rest) = sum;
        let cell = &mut self.cells[group];
        cell.count += count;
        // To the unit of a bin, where there is room.
        let up = (exponent + UNIT) & 31;
        if mantissa.unsigned_abs().leading_zeros() as i32 > up + 1 {
            (mantissa, exponent) = (mantissa << up, exponent - up);
        }
        match cell.sum.checked_add(mantissa) {
            Some(sum) if 32 * cell.bin - UNIT == exponent => cell.sum = sum,
            _ if mantissa == 0 => {}
            _ => self.put(group, mantissa, exponent),
        }
        if let Some(rest) = rest {
            self.beside(group).combine(&Beside::load(rest)?, 1);
        }
        Some(())
    }
}

/// Sum of squares of one group: 48 bytes. A square is an integer below 2^106, and a bin spans 64
/// exponents, so 2^-15 … 2^17 square into one bin with 2^85 additions of room.
#[derive(Clone, Copy, Debug)]
struct SquareCell {
    sum: i256,
    bin: i32,
    beside: bool,
}

const SQUARE_ZERO: SquareCell = SquareCell { sum: i256::ZERO, bin: 0, beside: false };

/// Exact sums of squares by group. NaN and infinities are the business of the plain sums beside
/// them.
#[derive(Debug, Default)]
pub(crate) struct SquareSums {
    cells: Vec<SquareCell>,
    beside: BTreeMap<usize, ExactBins>,
}

impl SquareSums {
    /// Some groups as sums of their own, in this order.
    pub(super) fn pick(&self, groups: &[u32]) -> SquareSums {
        let (cells, beside) = (&self.cells, &self.beside);
        SquareSums { cells: picked(cells, groups), beside: picked_beside(beside, groups) }
    }

    pub(crate) fn grow(&mut self, groups: usize) {
        self.cells.resize(groups.max(self.cells.len()), SQUARE_ZERO);
    }

    /// Adds `x`² `diff` times.
    pub(crate) fn add(&mut self, group: usize, x: f64, diff: i64) {
        if !x.is_finite() || x == 0.0 {
            return;
        }
        let (mantissa, exponent) = parts(x);
        let square = i256::from_i128(i128::from(mantissa) * i128::from(mantissa));
        let value = square.wrapping_mul(i256::from_i128(i128::from(diff)));
        let at = 2 * exponent + SQUARE_UNIT;
        let cell = &mut self.cells[group];
        if cell.sum == i256::ZERO {
            cell.bin = at >> 6;
        }
        let sum = cell.sum.checked_add(value << (at & 63) as u8);
        match sum {
            // A product of 106 and 63 bits leaves no room for the shift.
            Some(sum) if cell.bin == at >> 6 && diff.unsigned_abs() < 1 << 32 => cell.sum = sum,
            _ => self.beside(group).add_wide(value, 2 * exponent),
        }
    }

    fn beside(&mut self, group: usize) -> &mut ExactBins {
        self.cells[group].beside = true;
        self.beside.entry(group).or_default()
    }

    pub(crate) fn combine(
        &mut self,
        other: Option<&SquareSums>,
        from: usize,
        into: usize,
        sign: i64,
    ) {
        let source = other.map_or_else(|| self.cells[from], |other| other.cells[from]);
        let value = if sign < 0 { i256::ZERO.checked_sub(source.sum) } else { Some(source.sum) };
        let cell = &mut self.cells[into];
        if cell.sum == i256::ZERO {
            cell.bin = source.bin;
        }
        match value.and_then(|value| cell.sum.checked_add(value)) {
            Some(sum) if cell.bin == source.bin => cell.sum = sum,
            _ => {
                let mut part = ExactBins::default();
                part.add_wide(source.sum, 64 * source.bin - SQUARE_UNIT);
                self.beside(into).combine(&part, i128::from(sign));
            }
        }
        if source.beside {
            let more = other.map_or(&self.beside, |other| &other.beside).get(&from).cloned();
            if let Some(more) = more {
                self.beside(into).combine(&more, i128::from(sign));
            }
        }
    }

    pub(crate) fn clear(&mut self, group: usize) {
        if self.cells[group].beside {
            self.beside.remove(&group);
        }
        self.cells[group] = SQUARE_ZERO;
    }

    pub(crate) fn exact(&self, group: usize) -> ExactBins {
        let cell = &self.cells[group];
        let mut whole = self.beside.get(&group).cloned().unwrap_or_default();
        whole.add_wide(cell.sum, 64 * cell.bin - SQUARE_UNIT);
        whole
    }

    /// The sum.
    pub(super) fn save(&self, group: usize, form: Form) -> Exact<i256> {
        let cell = &self.cells[group];
        if cell.sum == i256::ZERO && !cell.beside {
            return (i256::ZERO, 0, None);
        }
        if !cell.beside && form != Form::Equal {
            return (cell.sum, 64 * cell.bin - SQUARE_UNIT, None);
        }
        if !cell.beside {
            let zeros = cell.sum.trailing_zeros();
            let exponent = 64 * cell.bin - SQUARE_UNIT + zeros as i32;
            return (cell.sum >> zeros as u8, exponent, None);
        }
        let whole = self.exact(group);
        match whole.mantissa() {
            Some((mantissa, exponent)) => (mantissa, exponent, None),
            None => {
                let mut rest = Vec::new();
                whole.save(&mut rest);
                (i256::ZERO, 0, Some(rest))
            }
        }
    }

    /// Adds a sum as [`SquareSums::save`] gave it, in the cell where it fits. `None`: not such a
    /// sum.
    pub(super) fn load(&mut self, group: usize, sum: Exact<i256, &[u8]>) -> Option<()> {
        let (mantissa, exponent, rest) = sum;
        if mantissa != i256::ZERO {
            let at = exponent + SQUARE_UNIT;
            let cell = &mut self.cells[group];
            if cell.sum == i256::ZERO {
                cell.bin = at >> 6;
            }
            let shift = at - 64 * cell.bin;
            let room = mantissa.wrapping_abs().leading_zeros() as i32;
            let inline = ((0..255).contains(&shift) && room > shift + 1)
                .then(|| cell.sum.checked_add(mantissa << shift as u8))
                .flatten();
            match inline {
                Some(sum) => cell.sum = sum,
                None => self.beside(group).add_wide(mantissa, exponent),
            }
        }
        if let Some(rest) = rest {
            let mut loaded = ExactBins::default();
            loaded.load(rest)?;
            self.beside(group).combine(&loaded, 1);
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
