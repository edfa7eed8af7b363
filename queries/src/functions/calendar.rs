//! The proleptic Gregorian calendar on milliseconds since 1970, and its units.
//!
//! Algorithms after Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms": an era of 400
//! years has 146 097 days; years begin in March, so that the leap day comes last.

/// Milliseconds of a day.
pub(super) const DAY: i64 = 86_400_000;

/// Year, month (1–12) and day (1–31) of a day since 1970-01-01.
pub(super) fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// The day since 1970-01-01 of a date; the day may lie beyond its month.
pub(super) fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Days of a month.
pub(super) fn month_length(year: i64, month: i64) -> i64 {
    let next = if month == 12 { days_of(year + 1, 1, 1) } else { days_of(year, month + 1, 1) };
    next - days_of(year, month, 1)
}

/// A time moved by months; the day is cut to the month's length.
pub(super) fn add_months(ms: i64, months: i64) -> i64 {
    let (year, month, day) = civil(ms.div_euclid(DAY));
    let count = year * 12 + month - 1 + months;
    let (year, month) = (count.div_euclid(12), count.rem_euclid(12) + 1);
    let day = day.min(month_length(year, month));
    days_of(year, month, day) * DAY + ms.rem_euclid(DAY)
}

/// Monday is 1.
fn iso_weekday(days: i64) -> i64 {
    (days + 3).rem_euclid(7) + 1
}

fn iso_week(days: i64) -> i64 {
    // The week belongs to the year that its Thursday is in.
    let thursday = days - iso_weekday(days) + 4;
    let (year, ..) = civil(thursday);
    (thursday - days_of(year, 1, 1)) / 7 + 1
}

/// A part of a time; `None` if the unit is unknown. Flink's DAYOFWEEK begins with Sunday as 1.
pub(super) fn part(unit: &str, ms: i64) -> Option<i64> {
    let days = ms.div_euclid(DAY);
    let of_day = ms.rem_euclid(DAY);
    let (year, month, day) = civil(days);
    Some(match unit {
        "YEAR" => year,
        "QUARTER" => (month + 2) / 3,
        "MONTH" => month,
        "WEEK" => iso_week(days),
        "DAY" | "DAYOFMONTH" => day,
        "DOY" | "DAYOFYEAR" => days - days_of(year, 1, 1) + 1,
        "DOW" | "DAYOFWEEK" => iso_weekday(days) % 7 + 1,
        "HOUR" => of_day / 3_600_000,
        "MINUTE" => of_day / 60_000 % 60,
        "SECOND" => of_day / 1000 % 60,
        "MILLISECOND" => of_day % 1000,
        "EPOCH" => ms.div_euclid(1000),
        _ => return None,
    })
}

/// The begin of the unit that a time is in.
pub(super) fn floor(unit: &str, ms: i64) -> Option<i64> {
    let days = ms.div_euclid(DAY);
    let (year, month, _) = civil(days);
    let down = |size: i64| ms.div_euclid(size) * size;
    Some(match unit {
        "YEAR" => days_of(year, 1, 1) * DAY,
        "QUARTER" => days_of(year, (month - 1) / 3 * 3 + 1, 1) * DAY,
        "MONTH" => days_of(year, month, 1) * DAY,
        // Calcite's weeks begin on Sunday.
        "WEEK" => (days - (days + 4).rem_euclid(7)) * DAY,
        "DAY" => down(DAY),
        "HOUR" => down(3_600_000),
        "MINUTE" => down(60_000),
        "SECOND" => down(1000),
        "MILLISECOND" => ms,
        _ => return None,
    })
}

/// The begin of the next unit, unless the time is one.
pub(super) fn ceil(unit: &str, ms: i64) -> Option<i64> {
    let start = floor(unit, ms)?;
    if start == ms {
        return Some(ms);
    }
    Some(match unit {
        "YEAR" => add_months(start, 12),
        "QUARTER" => add_months(start, 3),
        "MONTH" => add_months(start, 1),
        "WEEK" => start + 7 * DAY,
        "DAY" => start + DAY,
        "HOUR" => start + 3_600_000,
        "MINUTE" => start + 60_000,
        _ => start + 1000,
    })
}

/// Whole units from one time to another, towards zero.
pub(super) fn difference(unit: &str, from: i64, to: i64) -> Option<i64> {
    let whole = |size: i64| (to - from) / size;
    Some(match unit.trim_end_matches('S') {
        "SECOND" => whole(1000),
        "MINUTE" => whole(60_000),
        "HOUR" => whole(3_600_000),
        "DAY" => whole(DAY),
        "WEEK" => whole(7 * DAY),
        "MONTH" => months(from, to),
        "QUARTER" => months(from, to) / 3,
        "YEAR" => months(from, to) / 12,
        _ => return None,
    })
}

fn months(from: i64, to: i64) -> i64 {
    let count = |ms: i64| {
        let (year, month, _) = civil(ms.div_euclid(DAY));
        year * 12 + month
    };
    let mut months = count(to) - count(from);
    if months > 0 && add_months(from, months) > to {
        months -= 1;
    } else if months < 0 && add_months(from, months) < to {
        months += 1;
    }
    months
}
