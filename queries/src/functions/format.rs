//! Times as text by Java's patterns (`yyyy-MM-dd HH:mm:ss.SSS`), and numbers as Java writes them.

use super::calendar::{DAY, civil, days_of, month_length, part};

/// Runs of one letter, and literal text.
enum Piece {
    Field(char, usize),
    Literal(String),
}

fn pieces(pattern: &str) -> Vec<Piece> {
    let mut out = Vec::new();
    let chars: Vec<char> = pattern.chars().collect();
    let mut i = 0;
    while i < chars.len() {
        let c = chars[i];
        if c == '\'' {
            let end = (i + 1..chars.len()).find(|&j| chars[j] == '\'').unwrap_or(chars.len());
            let quoted: String = chars[i + 1..end].iter().collect();
            out.push(Piece::Literal(if quoted.is_empty() { "'".into() } else { quoted }));
            i = end + 1;
        } else if c.is_ascii_alphabetic() {
            let run = chars[i..].iter().take_while(|&&d| d == c).count();
            out.push(Piece::Field(c, run));
            i += run;
        } else {
            out.push(Piece::Literal(c.to_string()));
            i += 1;
        }
    }
    out
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] =
    ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A time by a pattern; an error names a letter that isn't known.
pub(super) fn format_time(ms: i64, pattern: &str) -> Result<String, String> {
    let mut out = String::new();
    let get = |unit: &str| part(unit, ms).unwrap_or(0);
    for piece in pieces(pattern) {
        let (letter, run) = match piece {
            Piece::Literal(text) => {
                out.push_str(&text);
                continue;
            }
            Piece::Field(letter, run) => (letter, run),
        };
        let number = match letter {
            'y' | 'u' if run == 2 => get("YEAR").rem_euclid(100),
            'y' | 'u' | 'Y' => get("YEAR"),
            'M' | 'L' if run >= 3 => {
                let name = MONTHS[(get("MONTH") - 1) as usize];
                out.push_str(if run == 3 { &name[..3] } else { name });
                continue;
            }
            'E' => {
                let name = DAYS[(get("DOW") - 1) as usize];
                out.push_str(if run <= 3 { &name[..3] } else { name });
                continue;
            }
            'a' => {
                out.push_str(if get("HOUR") < 12 { "AM" } else { "PM" });
                continue;
            }
            'S' => {
                let digits = format!("{:03}000000", get("MILLISECOND"));
                out.push_str(&digits[..run.min(9)]);
                continue;
            }
            'M' | 'L' => get("MONTH"),
            'd' => get("DAY"),
            'D' => get("DOY"),
            'H' => get("HOUR"),
            'k' => (get("HOUR") + 23) % 24 + 1,
            'h' => (get("HOUR") + 11) % 12 + 1,
            'K' => get("HOUR") % 12,
            'm' => get("MINUTE"),
            's' => get("SECOND"),
            _ => {
                return Err(format!("the time pattern '{pattern}' has an unknown letter {letter}"));
            }
        };
        out.push_str(&format!("{number:0run$}"));
    }
    Ok(out)
}

/// The time that a text spells by a pattern; `None` if it doesn't fit.
pub(super) fn parse_time(text: &str, pattern: &str) -> Option<i64> {
    let (mut year, mut month, mut day) = (1970, 1, 1);
    let (mut hour, mut minute, mut second, mut milli) = (0, 0, 0, 0);
    let mut afternoon = None;
    let mut rest = text;
    let pieces = pieces(pattern);
    for (i, piece) in pieces.iter().enumerate() {
        let (letter, run) = match piece {
            Piece::Literal(literal) => {
                rest = rest.strip_prefix(literal.as_str())?;
                continue;
            }
            Piece::Field(letter, run) => (*letter, *run),
        };
        if letter == 'a' {
            afternoon = Some(rest.get(..2)?.eq_ignore_ascii_case("PM"));
            rest = &rest[2..];
            continue;
        }
        if letter == 'M' && run == 3 {
            let name = rest.get(..3)?;
            month = MONTHS.iter().position(|m| m[..3].eq_ignore_ascii_case(name))? as i64 + 1;
            rest = &rest[3..];
            continue;
        }
        // Digits run on to the next literal; before another field only as many as letters.
        let fixed = matches!(pieces.get(i + 1), Some(Piece::Field(..)));
        let max = if fixed { run } else { run.max(if letter == 'y' { 9 } else { 2 }).max(run) };
        let digits = rest.bytes().take(if letter == 'S' { 9 } else { max });
        let length = digits.take_while(u8::is_ascii_digit).count();
        let number: i64 = rest.get(..length).filter(|d| !d.is_empty())?.parse().ok()?;
        match letter {
            'y' | 'u' => year = if run == 2 { 2000 + number } else { number },
            'M' => month = number,
            'd' => day = number,
            'H' | 'k' | 'h' | 'K' => hour = number,
            'm' => minute = number,
            's' => second = number,
            'S' => {
                milli = rest[..length]
                    .chars()
                    .chain("00".chars())
                    .take(3)
                    .collect::<String>()
                    .parse()
                    .ok()?
            }
            _ => return None,
        }
        rest = &rest[length..];
    }
    if let Some(afternoon) = afternoon {
        hour = hour % 12 + if afternoon { 12 } else { 0 };
    }
    let in_range = (1..=12).contains(&month)
        && (1..=month_length(year, month.clamp(1, 12))).contains(&day)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..60).contains(&second);
    if !rest.is_empty() || !in_range {
        return None;
    }
    let of_day = ((hour * 60 + minute) * 60 + second) * 1000 + milli;
    Some(days_of(year, month, day) * DAY + of_day)
}

/// `2024-01-31`, with a time behind a space or `T`, with a fraction, with `Z` where it is allowed.
pub(crate) fn parse_iso(text: &str) -> Option<i64> {
    let text = text.trim();
    let text = text.strip_suffix('Z').unwrap_or(text);
    if text.len() <= 10 {
        return parse_time(text, "yyyy-MM-dd");
    }
    let spaced = text.replacen('T', " ", 1);
    let colons = spaced.matches(':').count();
    let pattern = match (colons, spaced.contains('.')) {
        (1, false) => "yyyy-MM-dd HH:mm",
        (2, false) => "yyyy-MM-dd HH:mm:ss",
        (2, true) => "yyyy-MM-dd HH:mm:ss.SSS",
        _ => return None,
    };
    parse_time(&spaced, pattern)
}

/// A time as CAST writes it, with `digits` of fraction taken from `nanos` of the second.
pub(super) fn timestamp_text(ms: i64, nanos: i64, digits: usize) -> String {
    let (year, month, day) = civil(ms.div_euclid(DAY));
    let get = |unit: &str| part(unit, ms).unwrap_or(0);
    let (hour, minute, second) = (get("HOUR"), get("MINUTE"), get("SECOND"));
    let fraction = &format!("{nanos:09}")[..digits];
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{fraction}")
}

/// A double as Java writes it; `shortest` are its shortest digits by Rust (`1.5e-7`).
pub(super) fn java_float(value: f64, shortest: &str) -> String {
    if value.is_nan() {
        return "NaN".into();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((shortest, "0"));
    let size = value.abs();
    if size != 0.0 && !(1e-3..1e7).contains(&size) {
        let point = if mantissa.contains('.') { "" } else { ".0" };
        return format!("{mantissa}{point}E{exponent}");
    }
    let plain = format!("{}", shortest.parse::<f64>().unwrap_or(value));
    if plain.contains('.') { plain } else { plain + ".0" }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_go_to_text_and_back() {
        let ms = parse_iso("2024-02-29T13:05:09.120").unwrap();
        assert_eq!(format_time(ms, "yyyy-MM-dd HH:mm:ss.SSS").unwrap(), "2024-02-29 13:05:09.120");
        assert_eq!(format_time(ms, "EEE, d MMM yy hh:mm a").unwrap(), "Thu, 29 Feb 24 01:05 PM");
        assert_eq!(parse_time("29.2.2024", "dd.MM.yyyy"), Some(ms.div_euclid(DAY) * DAY));
        assert_eq!(parse_iso("2023-02-29"), None);
        assert_eq!(parse_time("20240229", "yyyyMMdd"), Some(ms.div_euclid(DAY) * DAY));
        assert_eq!(timestamp_text(-1, 999_000_000, 3), "1969-12-31 23:59:59.999");
    }

    #[test]
    fn floats_are_javas() {
        let text = |v: f64| java_float(v, &format!("{v:e}"));
        assert_eq!(text(1.0), "1.0");
        assert_eq!(text(0.001), "0.001");
        assert_eq!(text(1.5e-7), "1.5E-7");
        assert_eq!(text(1e10), "1.0E10");
        assert_eq!(text(123_456.75), "123456.75");
    }
}
