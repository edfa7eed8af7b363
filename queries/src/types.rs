//! Flink's types: their names, implicit conversions and result types, on Arrow's `DataType`.

use arrow::datatypes::{DataType, IntervalUnit, TimeUnit};

use crate::plan::{Datum, Scalar, ScalarKind};

/// TIMESTAMP(3).
pub(crate) const TIMESTAMP_MS: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);
/// An interval of days to seconds, in milliseconds.
pub(crate) const INTERVAL_MS: DataType = DataType::Duration(TimeUnit::Millisecond);
/// An interval of years and months, in months.
pub(crate) const INTERVAL_MONTHS: DataType = DataType::Interval(IntervalUnit::YearMonth);

/// TIMESTAMP_LTZ(3).
pub(crate) fn ltz_ms() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// The type as Flink names it.
pub(crate) fn sql_name(data_type: &DataType) -> String {
    let precision = |unit: &TimeUnit| match unit {
        TimeUnit::Second | TimeUnit::Millisecond => 3,
        TimeUnit::Microsecond => 6,
        TimeUnit::Nanosecond => 9,
    };
    match data_type {
        DataType::Null => "NULL".into(),
        DataType::Boolean => "BOOLEAN".into(),
        DataType::Int8 => "TINYINT".into(),
        DataType::Int16 => "SMALLINT".into(),
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Float32 => "FLOAT".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Utf8 => "STRING".into(),
        DataType::Binary => "BYTES".into(),
        DataType::Date32 => "DATE".into(),
        DataType::Time32(_) => "TIME".into(),
        DataType::Decimal128(p, s) => format!("DECIMAL({p}, {s})"),
        DataType::Timestamp(unit, None) => format!("TIMESTAMP({})", precision(unit)),
        DataType::Timestamp(unit, Some(_)) => format!("TIMESTAMP_LTZ({})", precision(unit)),
        DataType::Duration(_) => "INTERVAL DAY TO SECOND".into(),
        DataType::Interval(_) => "INTERVAL YEAR TO MONTH".into(),
        DataType::List(element) => format!("ARRAY<{}>", sql_name(element.data_type())),
        DataType::Struct(fields) => {
            let field = |f: &arrow::datatypes::FieldRef| {
                format!("{} {}", f.name(), sql_name(f.data_type()))
            };
            format!("ROW<{}>", fields.iter().map(field).collect::<Vec<_>>().join(", "))
        }
        DataType::Map(_, _) => "MAP".into(),
        other => other.to_string(),
    }
}

pub(crate) fn is_integer(t: &DataType) -> bool {
    matches!(t, DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64)
}

pub(crate) fn is_float(t: &DataType) -> bool {
    matches!(t, DataType::Float32 | DataType::Float64)
}

pub(crate) fn is_decimal(t: &DataType) -> bool {
    matches!(t, DataType::Decimal128(_, _))
}

pub(crate) fn is_number(t: &DataType) -> bool {
    is_integer(t) || is_float(t) || is_decimal(t)
}

pub(crate) fn is_timestamp(t: &DataType) -> bool {
    matches!(t, DataType::Timestamp(_, _))
}

pub(crate) fn is_interval(t: &DataType) -> bool {
    *t == INTERVAL_MS || *t == INTERVAL_MONTHS
}

/// An exact number as precision and scale.
pub(crate) fn as_decimal(t: &DataType) -> Option<(i32, i32)> {
    Some(match t {
        DataType::Int8 => (3, 0),
        DataType::Int16 => (5, 0),
        DataType::Int32 => (10, 0),
        DataType::Int64 => (19, 0),
        DataType::Decimal128(p, s) => (i32::from(*p), i32::from(*s)),
        _ => return None,
    })
}

/// Flink's rule for results beyond 38 digits: digits before the point are kept, at least 6 behind.
fn fitted(precision: i32, scale: i32) -> DataType {
    if precision <= 38 {
        return DataType::Decimal128(precision as u8, scale as i8);
    }
    let kept = (38 - (precision - scale)).max(scale.min(6));
    DataType::Decimal128(38, kept as i8)
}

/// Result type of decimal arithmetic, of `+ - * / %`.
pub(crate) fn decimal_result(op: char, left: (i32, i32), right: (i32, i32)) -> DataType {
    let ((p1, s1), (p2, s2)) = (left, right);
    match op {
        '+' | '-' => {
            let scale = s1.max(s2);
            fitted((p1 - s1).max(p2 - s2) + scale + 1, scale)
        }
        '*' => fitted(p1 + p2, s1 + s2),
        '/' => {
            let scale = (s1 + p2 + 1).max(6);
            fitted(p1 - s1 + s2 + scale, scale)
        }
        _ => {
            let scale = s1.max(s2);
            fitted((p1 - s1).min(p2 - s2) + scale, scale)
        }
    }
}

fn finer(a: TimeUnit, b: TimeUnit) -> TimeUnit {
    a.max(b)
}

/// The type that values of both types can have without loss (floats aside), for comparison, CASE,
/// COALESCE and UNION.
pub(crate) fn common_type(a: &DataType, b: &DataType) -> Option<DataType> {
    use DataType::{Date32, Float32, Float64, Null, Timestamp};
    if a == b {
        return Some(a.clone());
    }
    match (a, b) {
        (Null, other) | (other, Null) => Some(other.clone()),
        (Timestamp(u, za), Timestamp(v, zb)) => {
            // TIMESTAMP and TIMESTAMP_LTZ meet at TIMESTAMP_LTZ.
            Some(Timestamp(finer(*u, *v), za.clone().or_else(|| zb.clone())))
        }
        (Timestamp(_, _), Date32) => Some(a.clone()),
        (Date32, Timestamp(_, _)) => Some(b.clone()),
        (Float32, other) | (other, Float32) if is_integer(other) => {
            Some(if matches!(other, DataType::Int64 | DataType::Int32) { Float64 } else { Float32 })
        }
        _ if is_float(a) && is_number(b) || is_float(b) && is_number(a) => Some(Float64),
        _ if is_integer(a) && is_integer(b) => {
            Some(if as_decimal(a) >= as_decimal(b) { a.clone() } else { b.clone() })
        }
        _ => {
            let ((p1, s1), (p2, s2)) = (as_decimal(a)?, as_decimal(b)?);
            let scale = s1.max(s2);
            let precision = ((p1 - s1).max(p2 - s2) + scale).min(38);
            Some(DataType::Decimal128(precision as u8, scale as i8))
        }
    }
}

/// Converts an expression to a type; literals are converted here and now where that is plain.
pub(crate) fn convert(expr: Scalar, to: &DataType, time_zone: &str) -> Scalar {
    cast(expr, to, false, time_zone)
}

/// CAST or TRY_CAST, with Flink's meaning.
pub(crate) fn cast(expr: Scalar, to: &DataType, safe: bool, time_zone: &str) -> Scalar {
    if expr.data_type == *to {
        return expr;
    }
    if matches!(expr.kind, ScalarKind::Literal(Datum::Null)) {
        return Scalar::null(to.clone());
    }
    if let Some(literal) = literal_cast(&expr, to) {
        return literal;
    }
    let safe = safe || is_decimal(&expr.data_type) && is_decimal(to);
    let zoned = |t: &DataType| matches!(t, DataType::Timestamp(_, Some(_)));
    let from = expr.data_type.clone();
    if zoned(&from) && !zoned(to) && !is_number(to) {
        let DataType::Timestamp(unit, _) = from else { return expr };
        let local = DataType::Timestamp(unit, None);
        let zone = Scalar::text(time_zone);
        return cast(Scalar::call("TO_LOCAL", vec![expr, zone], local), to, safe, time_zone);
    }
    if zoned(to) && !zoned(&from) && !is_number(&from) {
        let DataType::Timestamp(unit, _) = to else { return expr };
        let local = cast(expr, &DataType::Timestamp(*unit, None), safe, time_zone);
        return Scalar::call("TO_INSTANT", vec![local, Scalar::text(time_zone)], to.clone());
    }
    let spelled = is_float(&from) || is_timestamp(&from) || from == DataType::Boolean;
    if *to == DataType::Utf8 && spelled {
        return Scalar::call("TO_STRING", vec![expr], DataType::Utf8);
    }
    Scalar { data_type: to.clone(), kind: ScalarKind::Cast(Box::new(expr), safe) }
}

fn literal_cast(expr: &Scalar, to: &DataType) -> Option<Scalar> {
    let ScalarKind::Literal(datum) = &expr.kind else { return None };
    let made = match (datum, &expr.data_type) {
        (Datum::Integer(n), from) if is_integer(from) => match to {
            DataType::Int8 => i8::try_from(*n).is_ok().then(|| datum.clone())?,
            DataType::Int16 => i16::try_from(*n).is_ok().then(|| datum.clone())?,
            DataType::Int32 => i32::try_from(*n).is_ok().then(|| datum.clone())?,
            DataType::Int64 => datum.clone(),
            DataType::Float32 | DataType::Float64 => Datum::Text(n.to_string()),
            DataType::Decimal128(p, s) if n.to_string().len() + *s as usize <= usize::from(*p) => {
                Datum::Text(n.to_string())
            }
            _ => return None,
        },
        (Datum::Text(text), DataType::Decimal128(_, _)) if is_float(to) => {
            Datum::Text(text.clone())
        }
        (Datum::Text(text), DataType::Decimal128(p1, s1)) => match to {
            DataType::Decimal128(p, s)
                if s >= s1 && i16::from(*p) - i16::from(*s) >= i16::from(*p1) - i16::from(*s1) =>
            {
                Datum::Text(text.clone())
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(Scalar::literal(made, to.clone()))
}

/// Whether INSERT converts a value of one type to a column of another without being asked.
pub(crate) fn assignable(from: &DataType, to: &DataType) -> bool {
    use DataType::{Binary, Date32, Null, Utf8};
    if from == to || *from == Null {
        return true;
    }
    match (from, to) {
        _ if is_number(from) && is_number(to) => true,
        _ if is_timestamp(from) && (is_timestamp(to) || *to == Date32) => true,
        (Date32, _) => is_timestamp(to),
        (DataType::Struct(a), DataType::Struct(b)) => {
            a.len() == b.len()
                && a.iter().zip(b).all(|(a, b)| assignable(a.data_type(), b.data_type()))
        }
        (DataType::List(a), DataType::List(b)) => assignable(a.data_type(), b.data_type()),
        (Utf8, Binary) | (Binary, Utf8) => false,
        _ => false,
    }
}
