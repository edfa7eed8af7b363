//! Literals with their types.

use arrow::datatypes::DataType;

use super::Bound;
use crate::ast::Value;
use crate::diagnostics::{Diagnostic, Span};
use crate::functions::parse_iso;
use crate::plan::{Datum, Scalar};
use crate::types::{INTERVAL_MONTHS, INTERVAL_MS, TIMESTAMP_MS};

/// A literal as an expression.
pub(super) fn literal(value: &Value, span: Span) -> Bound<Scalar> {
    let time = |text: &str, what: &str| {
        let message = format!("'{text}' is no {what}");
        let hint = "write DATE '2024-01-31', TIME '12:30:00', TIMESTAMP '2024-01-31 12:30:00'";
        parse_iso(text).ok_or_else(|| Diagnostic::new(span, message).hint(hint))
    };
    Ok(match value {
        Value::Null => Scalar::null(DataType::Null),
        Value::Boolean(value) => Scalar::literal(Datum::Boolean(*value), DataType::Boolean),
        Value::String(text) => Scalar::text(text.clone()),
        Value::Interval(ms) => Scalar::literal(Datum::Integer(*ms), INTERVAL_MS),
        Value::Months(n) => Scalar::literal(Datum::Integer((*n).into()), INTERVAL_MONTHS),
        Value::Timestamp(text) => {
            Scalar::literal(Datum::Integer(time(text, "timestamp")?), TIMESTAMP_MS)
        }
        Value::Date(text) => {
            let days = time(text, "date")?.div_euclid(86_400_000);
            Scalar::literal(Datum::Integer(days), DataType::Date32)
        }
        Value::Time(text) => {
            let ms = time(&format!("1970-01-01 {text}"), "time")?;
            let of_day = DataType::Time32(arrow::datatypes::TimeUnit::Millisecond);
            Scalar::literal(Datum::Integer(ms), of_day)
        }
        Value::Number(text) => number(text, span)?,
    })
}

/// INT or BIGINT where it fits, DECIMAL with a point, DOUBLE with an exponent.
fn number(text: &str, span: Span) -> Bound<Scalar> {
    if text.contains(['e', 'E']) {
        return Ok(Scalar::literal(Datum::Text(text.to_owned()), DataType::Float64));
    }
    if let Ok(value) = text.parse::<i64>() {
        let narrow = i32::try_from(value).is_ok();
        let data_type = if narrow { DataType::Int32 } else { DataType::Int64 };
        return Ok(Scalar::literal(Datum::Integer(value), data_type));
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = whole.trim_start_matches('-').trim_start_matches('0').len();
    let scale = fraction.len();
    let precision = (digits + scale).max(scale + 1);
    if precision > 38 {
        return Err(Diagnostic::new(span, "a number with more than 38 digits"));
    }
    let data_type = DataType::Decimal128(precision as u8, scale as i8);
    Ok(Scalar::literal(Datum::Text(text.to_owned()), data_type))
}
