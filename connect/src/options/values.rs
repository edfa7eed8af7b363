//! The types that an option can have, in Flink's spelling: durations, sizes, numbers, booleans,
//! texts.

use std::num::NonZeroU32;
use std::time::Duration;

use super::{Secret, did_you_mean};
use crate::json::TimestampStandard;

/// Why a text is not the value of an option. The reader adds key, table and the text itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadValue {
    /// What it must be: `a duration`.
    pub expected: String,
    /// What was probably meant.
    pub meant: Option<String>,
    /// How to write it.
    pub hint: Option<String>,
}

impl BadValue {
    /// A complaint that says what is expected and how it is written.
    pub fn new(expected: impl Into<String>, hint: impl Into<String>) -> BadValue {
        BadValue { expected: expected.into(), meant: None, hint: Some(hint.into()) }
    }

    /// A complaint about a value that is not among those allowed.
    pub fn choice(expected: &str, text: &str, allowed: &[&'static str]) -> BadValue {
        let meant = did_you_mean(text, allowed.iter().copied()).map(str::to_owned);
        BadValue { expected: expected.to_owned(), meant, hint: None }
    }
}

/// A type that an option can have.
pub trait OptionValue: Sized {
    /// What the manual calls it.
    const KIND: &'static str;
    /// Whether complaints must not show the text.
    const SECRET: bool = false;

    /// Reads the text.
    ///
    /// # Errors
    /// What was expected instead.
    fn parse(text: &str) -> Result<Self, BadValue>;
}

impl OptionValue for String {
    const KIND: &'static str = "string";

    fn parse(text: &str) -> Result<Self, BadValue> {
        Ok(text.to_owned())
    }
}

impl OptionValue for Secret {
    const KIND: &'static str = "secret";
    const SECRET: bool = true;

    fn parse(text: &str) -> Result<Self, BadValue> {
        Ok(Secret::new(text))
    }
}

/// How TIMESTAMPs look in JSON, for the sources and sinks that have the option.
impl OptionValue for TimestampStandard {
    const KIND: &'static str = "SQL | ISO-8601";

    fn parse(text: &str) -> Result<Self, BadValue> {
        match text.trim() {
            t if t.eq_ignore_ascii_case("SQL") => Ok(TimestampStandard::Sql),
            t if t.eq_ignore_ascii_case("ISO-8601") => Ok(TimestampStandard::Iso8601),
            other => Err(BadValue::choice(Self::KIND, other, &["SQL", "ISO-8601"])),
        }
    }
}

/// A list as Flink writes it: separated by `;`, blanks around the items ignored, empty items
/// dropped.
impl OptionValue for Vec<String> {
    const KIND: &'static str = "list separated by `;`";

    fn parse(text: &str) -> Result<Self, BadValue> {
        let items = text.split(';').map(str::trim).filter(|item| !item.is_empty());
        Ok(items.map(str::to_owned).collect())
    }
}

impl OptionValue for bool {
    const KIND: &'static str = "boolean";

    fn parse(text: &str) -> Result<Self, BadValue> {
        match text.trim() {
            t if t.eq_ignore_ascii_case("true") => Ok(true),
            t if t.eq_ignore_ascii_case("false") => Ok(false),
            t => {
                let meant = did_you_mean(t, ["true", "false"]).map(str::to_owned);
                Err(BadValue { expected: "true or false".into(), meant, hint: None })
            }
        }
    }
}

macro_rules! integers {
    ($($type:ty, $kind:literal);*) => { $(
        impl OptionValue for $type {
            const KIND: &'static str = $kind;

            fn parse(text: &str) -> Result<Self, BadValue> {
                let digits: String = text.trim().chars().filter(|c| *c != '_').collect();
                digits.parse().map_err(|_| {
                    let range = format!("from {} to {}", <$type>::MIN, <$type>::MAX);
                    BadValue::new(concat!("a ", $kind), format!("write a whole number {range}"))
                })
            }
        }
    )* };
}
integers!(u16, "whole number"; u32, "whole number"; u64, "whole number"; usize, "whole number";
          i32, "whole number"; i64, "whole number"; NonZeroU32, "positive whole number");

impl OptionValue for f64 {
    const KIND: &'static str = "number";

    fn parse(text: &str) -> Result<Self, BadValue> {
        let number = text.trim().parse().ok().filter(|n: &f64| n.is_finite());
        number.ok_or_else(|| BadValue::new("a number", "write for example '0.5'"))
    }
}

impl OptionValue for Duration {
    const KIND: &'static str = "duration";

    fn parse(text: &str) -> Result<Self, BadValue> {
        parse_duration(text).ok_or_else(|| {
            let hint = "write a number and a unit (ms, s, min, h, d), for example '5 min'";
            BadValue::new("a duration", hint)
        })
    }
}

/// Reads a duration in Flink's spelling: `30 s`, `5min`, `500 ms`, `1 day`, `2h`; a bare number is
/// milliseconds. `None` if it is none, or longer than 2^63 ms.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let (number, unit) = number_and_unit(text)?;
    let nanos: u128 = match unit.to_ascii_lowercase().as_str() {
        "ns" | "nano" | "nanos" | "nanosecond" | "nanoseconds" => 1,
        "us" | "µs" | "micro" | "micros" | "microsecond" | "microseconds" => 1_000,
        "" | "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1_000_000,
        "s" | "sec" | "secs" | "second" | "seconds" => 1_000_000_000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60 * 1_000_000_000,
        "h" | "hr" | "hrs" | "hour" | "hours" => 3_600 * 1_000_000_000,
        "d" | "day" | "days" => 86_400 * 1_000_000_000,
        _ => return None,
    };
    let total = u128::from(number).checked_mul(nanos)?;
    let seconds = u64::try_from(total / 1_000_000_000).ok()?;
    // Marks are milliseconds in an i64: nothing longer has a meaning.
    let fits = seconds <= (i64::MAX / 1_000).unsigned_abs();
    fits.then(|| Duration::new(seconds, (total % 1_000_000_000) as u32))
}

/// A number of bytes: `128 MB`, `8 MiB`, `64k`, `1048576`. As in Flink, all units are powers of
/// 1024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl OptionValue for Size {
    const KIND: &'static str = "size";

    fn parse(text: &str) -> Result<Self, BadValue> {
        let parsed = number_and_unit(text).and_then(|(number, unit)| {
            let shift = match unit.to_ascii_lowercase().as_str() {
                "" | "b" | "byte" | "bytes" => 0,
                "k" | "kb" | "kib" | "kibibytes" => 10,
                "m" | "mb" | "mib" | "mebibytes" => 20,
                "g" | "gb" | "gib" | "gibibytes" => 30,
                "t" | "tb" | "tib" | "tebibytes" => 40,
                _ => return None,
            };
            number.checked_mul(1_u64 << shift)
        });
        parsed.map(Size).ok_or_else(|| {
            BadValue::new(
                "a size",
                "write a number and a unit (B, KB, MB, GB), for example '128 MB'",
            )
        })
    }
}

fn number_and_unit(text: &str) -> Option<(u64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, text[end..].trim_start()))
}
