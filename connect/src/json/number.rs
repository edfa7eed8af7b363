//! Numbers: whole, floating and decimal, from the source text of a JSON number or from a text.
//!
//! # Argument
//! Nothing passes through a type that could round it on the way: whole numbers and decimals are
//! read digit by digit from the text. Floating numbers take Clinger's exact path (W. D. Clinger,
//! "How to read floating point numbers accurately", 1990): a mantissa up to 2^53 and a power of ten
//! up to 10^22 are both exact, so one IEEE division or multiplication rounds once, as the standard
//! library's parser does for all others.
//!
//! # Limits
//! Exponents saturate at ±2^62, far beyond what any type here can tell apart from infinity or zero.

/// A number taken apart: its digits without point and leading zeros, and where the point belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Digits<'a> {
    negative: bool,
    whole: &'a [u8],
    fraction: &'a [u8],
    /// The value is 0.DIGITS × 10^point, DIGITS being `whole` then `fraction` from `skip` on.
    point: i64,
    skip: usize,
}

impl<'a> Digits<'a> {
    /// Takes `[+-]?(digits[.digits*]|.digits)([eE][+-]?digits)?` apart: JSON's numbers, and the few
    /// more that Java reads from a text. None for anything else.
    fn parse(source: &'a [u8]) -> Option<Self> {
        let (negative, rest) = sign(source);
        let (whole, rest) = rest.split_at(digits_len(rest));
        let (fraction, rest) = match rest.strip_prefix(b".") {
            Some(rest) => rest.split_at(digits_len(rest)),
            None => (&[][..], rest),
        };
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let exponent = match rest {
            [] => 0,
            [b'e' | b'E', rest @ ..] => exponent(rest)?,
            _ => return None,
        };
        let skip = whole.iter().chain(fraction).take_while(|&&d| d == b'0').count();
        let point = (whole.len() as i64 - skip as i64).saturating_add(exponent);
        Some(Self { negative, whole, fraction, point, skip })
    }

    fn iter(&self) -> impl Iterator<Item = u8> + 'a {
        self.whole.iter().chain(self.fraction).skip(self.skip).map(|d| d - b'0')
    }

    fn is_zero(&self) -> bool {
        self.skip == self.whole.len() + self.fraction.len()
    }
}

fn sign(source: &[u8]) -> (bool, &[u8]) {
    match source {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, source),
    }
}

fn digits_len(source: &[u8]) -> usize {
    source.iter().take_while(|d| d.is_ascii_digit()).count()
}

fn exponent(source: &[u8]) -> Option<i64> {
    let (negative, digits) = sign(source);
    if digits.is_empty() || digits_len(digits) < digits.len() {
        return None;
    }
    let size = digits
        .iter()
        .fold(0i64, |n, d| n.saturating_mul(10).saturating_add(i64::from(d - b'0')).min(1 << 62));
    Some(if negative { -size } else { size })
}

/// What Java's `trim` leaves: everything up to U+0020 goes.
pub(super) fn trim(text: &[u8]) -> &[u8] {
    let start = text.iter().position(|&c| c > b' ').unwrap_or(text.len());
    let end = text.iter().rposition(|&c| c > b' ').map_or(start, |last| last + 1);
    &text[start..end]
}

/// A JSON number as a whole one: a fraction is cut off towards zero, but what is out of range with
/// its fraction is out of range (Flink's INT and BIGINT). None is out of range.
pub(super) fn whole_from_number(source: &[u8], min: i64, max: i64) -> Option<i64> {
    let n = Digits::parse(source)?;
    if n.is_zero() || n.point <= 0 {
        return Some(0);
    }
    // 19 digits hold every i64; more before the point are out of range, leading zeros being gone.
    if n.point > 19 {
        return None;
    }
    let kept = n.iter().chain(std::iter::repeat(0)).take(n.point as usize);
    let size = kept.fold(0i128, |size, d| size * 10 + i128::from(d));
    let value = if n.negative { -size } else { size };
    let beyond = n.iter().skip(n.point as usize).any(|d| d != 0);
    let (min, max) = (i128::from(min), i128::from(max));
    let inside = min <= value && value <= max && !(beyond && (value == min || value == max));
    inside.then_some(value as i64)
}

/// A whole number with an optional sign, as Java's `parseInt` reads it. None is no such number or
/// out of range.
pub(super) fn whole_from_text(text: &[u8], min: i64, max: i64) -> Option<i64> {
    let (negative, digits) = sign(text);
    if digits.is_empty() || digits_len(digits) < digits.len() {
        return None;
    }
    let size = digits.iter().try_fold(0i64, |n, d| {
        // Counted downwards: there is one more negative number than positive ones.
        n.checked_mul(10)?.checked_sub(i64::from(d - b'0'))
    })?;
    let value = if negative { size } else { size.checked_neg()? };
    (min <= value && value <= max).then_some(value)
}

/// A whole number at `pos` of at most 18 digits, and its end. None where the careful way has to
/// look: a leading zero, more digits, a fraction or an exponent.
#[inline]
pub(super) fn whole_fast(b: &[u8], pos: usize) -> Option<(i64, usize)> {
    let negative = *b.get(pos)? == b'-';
    let start = pos + usize::from(negative);
    let (mantissa, end) = mantissa(b, start, 0);
    let count = end - start;
    let zero_leads = b.get(start) == Some(&b'0') && count > 1;
    if count == 0 || count > 18 || zero_leads || matches!(b.get(end), Some(b'.' | b'e' | b'E')) {
        return None;
    }
    let size = mantissa as i64;
    Some((if negative { -size } else { size }, end))
}

/// The digits from `pos` on, appended to `n`, and their end. The caller bounds their count: beyond
/// 19 the number wraps.
#[inline]
fn mantissa(b: &[u8], mut pos: usize, mut n: u64) -> (u64, usize) {
    while let Some(digit) = b.get(pos).map(|d| d.wrapping_sub(b'0')).filter(|&d| d < 10) {
        n = n.wrapping_mul(10).wrapping_add(u64::from(digit));
        pos += 1;
    }
    (n, pos)
}

const TENS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// A DOUBLE without exponent at `pos` and its end, where Clinger's path is exact. None is no
/// verdict.
#[inline]
pub(super) fn double_fast(b: &[u8], pos: usize) -> Option<(f64, usize)> {
    let negative = *b.get(pos)? == b'-';
    let start = pos + usize::from(negative);
    let (mut n, mut end) = mantissa(b, start, 0);
    let mut count = end - start;
    if count == 0 || (b.get(start) == Some(&b'0') && count > 1) {
        return None;
    }
    let mut scale = 0;
    if b.get(end) == Some(&b'.') {
        let point = end;
        (n, end) = mantissa(b, point + 1, n);
        scale = end - point - 1;
        count += scale;
        if scale == 0 {
            return None;
        }
    }
    if count > 19 || n > 1 << 53 || matches!(b.get(end), Some(b'e' | b'E')) {
        return None;
    }
    let size = n as f64 / TENS[scale];
    Some((if negative { -size } else { size }, end))
}

/// A DOUBLE or FLOAT from a JSON number: beyond the range infinity, below it zero, as in Java.
pub(super) fn float_from_number<F: std::str::FromStr>(source: &[u8]) -> Option<F> {
    std::str::from_utf8(source).ok()?.parse().ok()
}

/// A DOUBLE or FLOAT from a trimmed text: also `NaN`, `Infinity`, `.5`, `5.` and a plus sign.
pub(super) fn float_from_text<F: std::str::FromStr>(text: &[u8]) -> Option<F> {
    let (negative, rest) = sign(text);
    match rest {
        // Every NaN is the same one, whatever sign stood before it.
        b"NaN" => float_from_number(b"NaN"),
        b"Infinity" if negative => float_from_number(b"-inf"),
        b"Infinity" => float_from_number(b"inf"),
        // The standard library also reads `inf`, `nan` and more; this shape it reads as Java does.
        _ => Digits::parse(text).and_then(|_| float_from_number(text)),
    }
}

/// What a number is as DECIMAL(precision, scale).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decimal {
    Fits(i128),
    /// Too large for the precision: NULL, as in Flink.
    TooLarge,
}

/// A DECIMAL from a JSON number or a trimmed text, rounded half up, once, from all its digits. None
/// is no number.
pub(super) fn decimal(source: &[u8], precision: u8, scale: i8) -> Option<Decimal> {
    let n = Digits::parse(source)?;
    let kept = n.point.saturating_add(i64::from(scale));
    if n.is_zero() || kept < 0 {
        return Some(Decimal::Fits(0));
    }
    // The first digit is not zero, so more than `precision` places never fit.
    if kept > i64::from(precision) {
        return Some(Decimal::TooLarge);
    }
    let mut digits = n.iter().chain(std::iter::repeat(0));
    let size = digits.by_ref().take(kept as usize).fold(0i128, |n, d| n * 10 + i128::from(d));
    let size = size + i128::from(digits.next() >= Some(5));
    if size >= 10i128.pow(u32::from(precision)) {
        return Some(Decimal::TooLarge);
    }
    Some(Decimal::Fits(if n.negative { -size } else { size }))
}
