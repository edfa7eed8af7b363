//! Interval literals: milliseconds, or months.

use sqlparser::tokenizer::Token;

use super::Parsed;
use crate::ast::{Expr, ExprKind, Value};
use crate::diagnostics::Diagnostic;
use crate::tokens::{Cursor, Name};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Unit {
    Year,
    Month,
    Week,
    Day,
    Hour,
    Minute,
    Second,
}

impl Unit {
    fn of(word: &str) -> Option<Unit> {
        Some(match word.to_uppercase().as_str() {
            "YEAR" | "YEARS" => Unit::Year,
            "MONTH" | "MONTHS" => Unit::Month,
            "WEEK" | "WEEKS" => Unit::Week,
            "DAY" | "DAYS" => Unit::Day,
            "HOUR" | "HOURS" => Unit::Hour,
            "MINUTE" | "MINUTES" => Unit::Minute,
            "SECOND" | "SECONDS" => Unit::Second,
            _ => return None,
        })
    }

    fn millis(self) -> i64 {
        match self {
            Unit::Year | Unit::Month => 0,
            Unit::Week => 7 * 86_400_000,
            Unit::Day => 86_400_000,
            Unit::Hour => 3_600_000,
            Unit::Minute => 60_000,
            Unit::Second => 1_000,
        }
    }
}

impl Cursor {
    /// What follows INTERVAL.
    pub(super) fn interval(&mut self) -> Parsed<Expr> {
        let start = self.expect_word("INTERVAL")?;
        let negative = self.take(&Token::Minus);
        let text = self.string("the interval's length in quotes")?;
        let unit = self.interval_unit()?;
        let last = if self.take_word("TO") { Some(self.interval_unit()?) } else { None };
        let span = start.to(self.last_span());
        let value = interval_value(&text, unit, last).ok_or_else(|| {
            let message = format!("'{}' is no interval of this unit", text.text);
            let hint =
                "write for example INTERVAL '10' MINUTE or INTERVAL '1 12:00:00' DAY TO SECOND";
            Diagnostic::new(text.span, message).hint(hint)
        })?;
        let value = match value {
            Value::Interval(ms) if negative => Value::Interval(-ms),
            Value::Months(months) if negative => Value::Months(-months),
            value => value,
        };
        Ok(Expr { span, kind: ExprKind::Value(value) })
    }

    fn interval_unit(&mut self) -> Parsed<Unit> {
        let found = match &self.peek().token {
            Token::Word(w) => Unit::of(&w.value),
            _ => None,
        };
        let Some(unit) = found else {
            return Err(self.unexpected("a unit: SECOND, MINUTE, HOUR, DAY, WEEK, MONTH or YEAR"));
        };
        self.next();
        if self.take(&Token::LParen) {
            while !self.at_end() && !self.take(&Token::RParen) {
                self.next();
            }
        }
        Ok(unit)
    }
}

fn interval_value(text: &Name, unit: Unit, last: Option<Unit>) -> Option<Value> {
    let trimmed = text.text.trim();
    let (negative, digits) = match trimmed.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    if unit <= Unit::Month {
        let months: i32 = match (unit, last) {
            (Unit::Year, Some(Unit::Month)) => {
                let (years, months) = digits.split_once('-')?;
                years.parse::<i32>().ok()?.checked_mul(12)?.checked_add(months.parse().ok()?)?
            }
            (Unit::Year, None) => digits.parse::<i32>().ok()?.checked_mul(12)?,
            (Unit::Month, None) => digits.parse().ok()?,
            _ => return None,
        };
        return Some(Value::Months(if negative { -months } else { months }));
    }
    let ms = match last {
        None | Some(Unit::Year | Unit::Month | Unit::Week) => scaled(digits, unit.millis())?,
        Some(last) => compound(digits, unit, last)?,
    };
    Some(Value::Interval(if negative { -ms } else { ms }))
}

/// A decimal number times `millis`, exactly; below the millisecond is cut off.
fn scaled(digits: &str, millis: i64) -> Option<i64> {
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() || !fraction.bytes().all(|b| b.is_ascii_digit()) || fraction.len() > 12 {
        return None;
    }
    let whole: i64 = whole.parse().ok().filter(|&w: &i64| w >= 0)?;
    let part = match fraction {
        "" => 0,
        fraction => {
            let number = fraction.parse::<i128>().ok()? * i128::from(millis);
            i64::try_from(number / 10_i128.pow(fraction.len() as u32)).ok()?
        }
    };
    whole.checked_mul(millis)?.checked_add(part)
}

/// `1 12:00:00.5` DAY TO SECOND and its shorter kinds.
fn compound(digits: &str, first: Unit, last: Unit) -> Option<i64> {
    let parts: Vec<&str> = digits.split([' ', ':']).filter(|p| !p.is_empty()).collect();
    let units = [Unit::Day, Unit::Hour, Unit::Minute, Unit::Second];
    let named: Vec<Unit> = units.into_iter().filter(|&u| first <= u && u <= last).collect();
    if named.len() != parts.len() {
        return None;
    }
    let mut sum: i64 = 0;
    for (part, unit) in parts.iter().zip(named) {
        sum = sum.checked_add(scaled(part, unit.millis())?)?;
    }
    Some(sum)
}
