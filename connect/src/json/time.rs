//! Dates and times as text: Flink's `TimeFormats`, read and written.
//!
//! A TIMESTAMP is `2024-03-10 07:08:09.5` (SQL) or `2024-03-10T07:08:09.5` (ISO-8601, which also
//! takes a small `t` and lets the seconds go), a TIMESTAMP_LTZ the same with a `Z` and a capital
//! `T`. Fractions have one to nine digits; what is finer than the column is cut off towards the
//! past. Written are as many fraction digits as are needed and no point without any, as Java's
//! `appendFraction(0, 9)` does. Years beyond four digits carry a sign (`+12345`), as in Java's
//! `ISO_LOCAL_DATE`.
//!
//! Unlike Flink's SQL formatter, which moves them, 30 February and hour 24 are errors here.
//!
//! # Argument
//! Days and dates convert by H. Hinnant's `days_from_civil`: years begin in March, so that the leap
//! day is the last one, and 400 years always have 146 097 days. Exact for every `i64` within the
//! bounds of Java's `LocalDate` (years ±999 999 999).

use super::TimestampStandard;

const DAY_SECONDS: i64 = 86_400;
const YEAR_MAX: i64 = 999_999_999;

/// Ticks per second of a timestamp column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticks(pub(super) i64);

/// How the texts of a timestamp column look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    pub(super) standard: TimestampStandard,
    /// TIMESTAMP_LTZ: the text ends in `Z`.
    pub(super) zulu: bool,
    pub(super) ticks: Ticks,
}

/// The date of the row before: in a stream most rows have the same one.
#[derive(Debug, Clone)]
pub(super) struct LastDate {
    text: [u8; 10],
    day: i64,
}

impl Default for LastDate {
    /// A real date: any other text here would be taken for one.
    fn default() -> Self {
        Self { text: *b"1970-01-01", day: 0 }
    }
}

impl Form {
    fn is_separator(self, c: u8) -> bool {
        match self.standard {
            TimestampStandard::Sql => c == b' ',
            TimestampStandard::Iso8601 => c == b'T' || (c == b't' && !self.zulu),
        }
    }

    /// The ticks since 1970 of a second and its nanoseconds. None is out of range.
    #[inline]
    fn count(self, second: i64, nanos: u32) -> Option<i64> {
        let Ticks(per_second) = self.ticks;
        let part = i64::from(nanos) / (1_000_000_000 / per_second);
        // Before 1677 a nanosecond count overflows on the second alone, though the sum may just
        // fit.
        i64::try_from(i128::from(second) * i128::from(per_second) + i128::from(part)).ok()
    }

    /// A whole text as a timestamp. None is no such timestamp, or one out of range.
    pub(super) fn parse(self, text: &[u8]) -> Option<i64> {
        let middle = text.iter().position(|&c| self.is_separator(c))?;
        let clock = match self.zulu {
            true => text[middle + 1..].strip_suffix(b"Z")?,
            false => &text[middle + 1..],
        };
        let day = date(&text[..middle])?;
        let (second, nanos) = clock_time(clock, self.standard == TimestampStandard::Sql)?;
        self.count(day * DAY_SECONDS + i64::from(second), nanos)
    }

    /// The usual form with quotes around it at `pos`, and its end. None is no verdict.
    #[inline]
    pub(super) fn parse_fast(
        self,
        b: &[u8],
        pos: usize,
        last: &mut LastDate,
    ) -> Option<(i64, usize)> {
        let text = b.get(pos..)?.first_chunk::<20>()?;
        let [b'"', date_text @ .., b'T' | b' ', h1, h2, b':', m1, m2, b':', s1, s2] = text else {
            return None;
        };
        if !self.is_separator(text[11]) {
            return None;
        }
        if *date_text != last.text {
            *last = LastDate { text: *date_text, day: date(date_text)? };
        }
        let second = clock(two(*h1, *h2)?, two(*m1, *m2)?, two(*s1, *s2)?)?;
        let mut end = pos + 20;
        let mut nanos = 0;
        if b.get(end) == Some(&b'.') {
            let first = end + 1;
            end = first;
            while let Some(d) = b.get(end).map(|d| d.wrapping_sub(b'0')).filter(|&d| d < 10) {
                if end - first == 9 {
                    return None;
                }
                nanos = nanos * 10 + u32::from(d);
                end += 1;
            }
            nanos *= NANO_STEPS[end - first];
            if end == first {
                return None;
            }
        }
        if self.zulu {
            end += usize::from(b.get(end) == Some(&b'Z'));
            if b[end - 1] != b'Z' {
                return None;
            }
        }
        if b.get(end) != Some(&b'"') {
            return None;
        }
        Some((self.count(last.day * DAY_SECONDS + i64::from(second), nanos)?, end + 1))
    }

    /// Writes a timestamp without quotes.
    pub(super) fn write(self, out: &mut Vec<u8>, value: i64) {
        let Ticks(per_second) = self.ticks;
        let second = value.div_euclid(per_second);
        let nanos = value.rem_euclid(per_second) * (1_000_000_000 / per_second);
        write_date(out, second.div_euclid(DAY_SECONDS));
        out.push(match self.standard {
            TimestampStandard::Sql => b' ',
            TimestampStandard::Iso8601 => b'T',
        });
        write_clock(out, second.rem_euclid(DAY_SECONDS), nanos);
        if self.zulu {
            out.push(b'Z');
        }
    }
}

/// What n fraction digits are multiplied by to be nanoseconds.
const NANO_STEPS: [u32; 10] =
    [1_000_000_000, 100_000_000, 10_000_000, 1_000_000, 100_000, 10_000, 1_000, 100, 10, 1];

/// Milliseconds of the day from a TIME text: `07:08:09` with up to nine fraction digits.
pub(super) fn time(text: &[u8]) -> Option<i32> {
    let (second, nanos) = clock_time(text, true)?;
    i32::try_from(second * 1000 + nanos / 1_000_000).ok()
}

/// Days since 1970-01-01 from a DATE text. None where the calendar has no such day.
pub(super) fn date(text: &[u8]) -> Option<i64> {
    let (year, rest) = text.split_at_checked(text.len().checked_sub(6)?)?;
    let [b'-', m1, m2, b'-', d1, d2] = rest else { return None };
    let (digits, negative) = match year {
        [b'+', digits @ ..] if digits.len() > 4 => (digits, false),
        [b'-', digits @ ..] if digits.len() >= 4 => (digits, true),
        digits if digits.len() == 4 => (digits, false),
        _ => return None,
    };
    if digits.len() > 10 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let size = digits.iter().fold(0i64, |n, d| n * 10 + i64::from(d - b'0'));
    if size > YEAR_MAX || (negative && size == 0) {
        return None;
    }
    let year = if negative { -size } else { size };
    let (month, day) = (two(*m1, *m2)?, two(*d1, *d2)?);
    let valid = (1..=12).contains(&month) && (1..=month_days(year, month)).contains(&day);
    valid.then(|| day_number(year, i64::from(month), i64::from(day)))
}

/// `HH:MM`, then `:SS` if `whole` or wanted, then up to nine fraction digits: second and
/// nanosecond.
fn clock_time(text: &[u8], whole: bool) -> Option<(u32, u32)> {
    let (hour_minute, rest) = text.split_at_checked(5)?;
    let [h1, h2, b':', m1, m2] = hour_minute else { return None };
    let (hour, minute) = (two(*h1, *h2)?, two(*m1, *m2)?);
    match rest {
        [] if !whole => Some((clock(hour, minute, 0)?, 0)),
        [b':', s1, s2] => Some((clock(hour, minute, two(*s1, *s2)?)?, 0)),
        [b':', s1, s2, b'.', digits @ ..] => {
            let fits = (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit);
            let n = fits.then(|| digits.iter().fold(0, |n, d| n * 10 + u32::from(d - b'0')))?;
            Some((clock(hour, minute, two(*s1, *s2)?)?, n * NANO_STEPS[digits.len()]))
        }
        _ => None,
    }
}

#[inline]
fn two(tens: u8, ones: u8) -> Option<u32> {
    let (tens, ones) = (tens.wrapping_sub(b'0'), ones.wrapping_sub(b'0'));
    (tens < 10 && ones < 10).then(|| u32::from(tens) * 10 + u32::from(ones))
}

#[inline]
fn clock(hour: u32, minute: u32, second: u32) -> Option<u32> {
    (hour < 24 && minute < 60 && second < 60).then(|| hour * 3600 + minute * 60 + second)
}

fn month_days(year: i64, month: u32) -> u32 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

fn day_number(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn year_month_day(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// Writes a DATE without quotes.
pub(super) fn write_date(out: &mut Vec<u8>, days: i64) {
    let (year, month, day) = year_month_day(days);
    match year {
        ..0 => out.push(b'-'),
        10_000.. => out.push(b'+'),
        _ => {}
    }
    write_padded(out, year.unsigned_abs(), 4);
    out.push(b'-');
    write_padded(out, month.unsigned_abs(), 2);
    out.push(b'-');
    write_padded(out, day.unsigned_abs(), 2);
}

/// Writes a TIME without quotes. Flink leaves the milliseconds out; they are data, so here they
/// stay.
pub(super) fn write_time(out: &mut Vec<u8>, millis: i32) {
    let millis = i64::from(millis);
    write_clock(out, millis.div_euclid(1000), millis.rem_euclid(1000) * 1_000_000);
}

fn write_clock(out: &mut Vec<u8>, second: i64, nanos: i64) {
    write_padded(out, (second / 3600).unsigned_abs(), 2);
    out.push(b':');
    write_padded(out, (second / 60 % 60).unsigned_abs(), 2);
    out.push(b':');
    write_padded(out, (second % 60).unsigned_abs(), 2);
    if nanos != 0 {
        out.push(b'.');
        write_padded(out, nanos.unsigned_abs(), 9);
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

/// Writes a whole number with leading zeros up to `width` digits.
pub(super) fn write_padded(out: &mut Vec<u8>, mut n: u64, width: usize) {
    let mut digits = [b'0'; 20];
    let mut start = digits.len();
    while n > 0 || digits.len() - start < width {
        start -= 1;
        digits[start] = b'0' + (n % 10) as u8;
        n /= 10;
    }
    out.extend_from_slice(&digits[start..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_and_dates_are_inverse() {
        for days in (-800_000_000..800_000_000).step_by(7_919).chain(-1000..60_000) {
            let mut text = Vec::new();
            write_date(&mut text, days);
            assert_eq!(date(&text), Some(days), "{}", String::from_utf8_lossy(&text));
        }
        assert_eq!(date(b"1970-01-01"), Some(0));
        assert_eq!(date(b"2000-03-01"), Some(11_017));
    }

    #[test]
    fn the_fast_way_agrees_with_the_careful_one() {
        let no_date = "\0\0\0\0\0\0\0\0\0\0T00:00:00";
        let seconds =
            ["2024-02-29T23:59:59", "2023-02-29T00:00:00", "1969-12-31T24:00:00", no_date];
        let tails = ["", "Z", ".1", ".123456789Z", ".1234567891Z", ".", ".Z", ".25", "ZZ", "x"];
        for standard in [TimestampStandard::Sql, TimestampStandard::Iso8601] {
            for (zulu, ticks) in [(false, 1000), (true, 1000), (false, 1_000_000_000)] {
                let form = Form { standard, zulu, ticks: Ticks(ticks) };
                for (s, t) in seconds.iter().flat_map(|s| tails.iter().map(move |t| (s, t))) {
                    for text in [format!("{s}{t}"), format!("{s}{t}").replace('T', " ")] {
                        let quoted = format!("\"{text}\"");
                        let fast = form.parse_fast(quoted.as_bytes(), 0, &mut LastDate::default());
                        let careful = form.parse(text.as_bytes());
                        assert_eq!(fast.map(|(t, _)| t), careful, "{text} {form:?}");
                    }
                }
            }
        }
    }
}
