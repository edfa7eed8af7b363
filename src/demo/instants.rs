//! Event times as text: ISO 8601 in UTC, both ways.
//!
//! Days to civil dates and back: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".

use super::home::DAY_MS;

/// An event time with milliseconds and `Z`.
pub(super) fn iso(at: i64) -> String {
    let (days, of_day) = (at.div_euclid(DAY_MS), at.rem_euclid(DAY_MS));
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, milli) = (of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

/// The event time of a text like `2025-02-11T17:01:05.25Z`; `None` if it is none.
pub(super) fn parse(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z').unwrap_or(text).split_once(['T', ' '])?;
    let number = |text: &str| text.parse::<i64>().ok();
    let mut date = date.splitn(3, '-').map(number);
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (whole, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut whole = whole.splitn(3, ':').map(number);
    let (hour, minute) = (whole.next()??, whole.next()??);
    let second = whole.next().unwrap_or(Some(0))?;
    let milli = number(format!("{fraction:0<3}").get(..3)?)?;
    let shifted_year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (shifted_year.div_euclid(400), shifted_year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * DAY_MS + ((hour * 60 + minute) * 60 + second) * 1000 + milli)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_text_and_back() {
        for (at, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_001, "2000-02-29T00:00:00.001Z"),
            (1_739_293_265_250, "2025-02-11T17:01:05.250Z"),
            (-1, "1969-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(iso(at), text);
            assert_eq!(parse(text), Some(at));
        }
        assert_eq!(parse("2025-02-11T17:01:05.2Z"), Some(1_739_293_265_200));
        assert_eq!(parse("2025-02-11 17:01Z"), Some(1_739_293_260_000));
        assert_eq!(parse("soon"), None);
    }
}
