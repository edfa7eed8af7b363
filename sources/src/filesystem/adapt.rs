//! A Parquet file's types made the declared ones, where no value changes its meaning.
//!
//! # Rules
//! Whole numbers and floats widen; DECIMALs gain digits; times are cut down to their declared unit
//! (towards the past, also before 1970); a time with a zone and one without are the same number, in
//! UTC. Text may stay a dictionary. ROWs are matched by field name. Anything else is refused when
//! the file is opened, by [`fits`].

use arrow::array::{Array, ArrayRef, AsArray, ListArray, MapArray, StructArray, new_empty_array};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{
    DataType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};
use std::sync::Arc;

/// Whether values of a file's type can be given as the declared one.
pub(super) fn fits(file: &DataType, declared: &DataType) -> bool {
    adapt(&new_empty_array(file), declared).is_some()
}

/// The column as the declared type (text also as a dictionary of it); `None` if it does not fit.
pub(super) fn adapt(column: &ArrayRef, declared: &DataType) -> Option<ArrayRef> {
    use DataType::{
        Binary, Date32, Decimal128, Dictionary, FixedSizeBinary, Float16, Float32, Float64, Int8,
        Int16, Int32, Int64, LargeBinary, LargeUtf8, List, Map, Struct, Time32, Time64, Timestamp,
        UInt8, UInt16, UInt32, Utf8, Utf8View,
    };
    let file = column.data_type();
    if file == declared {
        return Some(column.clone());
    }
    match (file, declared) {
        (Dictionary(_, values), Utf8) if **values == Utf8 => Some(column.clone()),
        (Timestamp(from, _), Timestamp(to, zone)) => {
            Some(time_in(column, *from, *to, zone.clone()))
        }
        (Int8, Int16 | Int32 | Int64 | Float32 | Float64)
        | (Int16 | UInt8, Int32 | Int64 | Float32 | Float64)
        | (UInt8, Int16)
        | (Int32 | UInt16, Int64 | Float64)
        | (UInt16, Int32)
        | (UInt32, Int64 | Float64)
        | (Float16, Float32 | Float64)
        | (Float32, Float64)
        | (LargeUtf8 | Utf8View, Utf8)
        | (LargeBinary | FixedSizeBinary(_), Binary)
        | (Binary, Utf8)
        | (DataType::Date64, Date32)
        | (Time32(_) | Time64(_), Time32(_) | Time64(_)) => exactly(column, declared),
        (Dictionary(_, values), _) => {
            let plain = exactly(column, values)?;
            adapt(&plain, declared)
        }
        (Decimal128(p, s), Decimal128(to_p, to_s)) => {
            let whole = i16::from(*p) - i16::from(*s);
            let wide = to_s >= s && i16::from(*to_p) - i16::from(*to_s) >= whole;
            if wide { exactly(column, declared) } else { None }
        }
        (Struct(_), Struct(fields)) => {
            let from = column.as_struct();
            let children =
                fields.iter().map(|f| adapt_nested(from.column_by_name(f.name())?, f.data_type()));
            let children = children.collect::<Option<Vec<_>>>()?;
            let nulls = from.nulls().cloned();
            StructArray::try_new(fields.clone(), children, nulls)
                .ok()
                .map(|a| Arc::new(a) as ArrayRef)
        }
        (List(_), List(field)) => {
            let from = column.as_list::<i32>();
            let values = adapt_nested(from.values(), field.data_type())?;
            let (offsets, nulls) = (from.offsets().clone(), from.nulls().cloned());
            ListArray::try_new(field.clone(), offsets, values, nulls)
                .ok()
                .map(|a| Arc::new(a) as ArrayRef)
        }
        (Map(_, _), Map(field, sorted)) => {
            let from = column.as_map();
            let Struct(pair) = field.data_type() else { return None };
            let keys = adapt_nested(from.keys(), pair.first()?.data_type())?;
            let values = adapt_nested(from.values(), pair.get(1)?.data_type())?;
            let entries = StructArray::try_new(pair.clone(), vec![keys, values], None).ok()?;
            let (offsets, nulls) = (from.offsets().clone(), from.nulls().cloned());
            MapArray::try_new(field.clone(), offsets, entries, nulls, *sorted)
                .ok()
                .map(|a| Arc::new(a) as ArrayRef)
        }
        _ => None,
    }
}

/// As [`adapt`], but text inside of other columns is spelled out.
fn adapt_nested(column: &ArrayRef, declared: &DataType) -> Option<ArrayRef> {
    let adapted = adapt(column, declared)?;
    if adapted.data_type() == declared { Some(adapted) } else { exactly(&adapted, declared) }
}

/// A cast that fails as a whole rather than give NULL.
fn exactly(column: &ArrayRef, to: &DataType) -> Option<ArrayRef> {
    let options = CastOptions { safe: false, ..CastOptions::default() };
    cast_with_options(column, to, &options).ok()
}

/// Times in another unit, cut off towards the past.
fn time_in(column: &ArrayRef, from: TimeUnit, to: TimeUnit, zone: Option<Arc<str>>) -> ArrayRef {
    let per_second = |unit| match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000_i64,
    };
    let (from_rate, to_rate) = (per_second(from), per_second(to));
    let number = |value: i64| {
        if to_rate >= from_rate {
            value.saturating_mul(to_rate / from_rate)
        } else {
            value.div_euclid(from_rate / to_rate)
        }
    };
    macro_rules! convert {
        ($from:ty) => {
            match to {
                TimeUnit::Second => into_unit!($from, TimestampSecondType),
                TimeUnit::Millisecond => into_unit!($from, TimestampMillisecondType),
                TimeUnit::Microsecond => into_unit!($from, TimestampMicrosecondType),
                TimeUnit::Nanosecond => into_unit!($from, TimestampNanosecondType),
            }
        };
    }
    macro_rules! into_unit {
        ($from:ty, $to:ty) => {
            Arc::new(column.as_primitive::<$from>().unary::<_, $to>(number).with_timezone_opt(zone))
                as ArrayRef
        };
    }
    match from {
        TimeUnit::Second => convert!(TimestampSecondType),
        TimeUnit::Millisecond => convert!(TimestampMillisecondType),
        TimeUnit::Microsecond => convert!(TimestampMicrosecondType),
        TimeUnit::Nanosecond => convert!(TimestampNanosecondType),
    }
}

/// The type in SQL's words, for messages.
pub(super) fn in_sql(data_type: &DataType) -> String {
    use DataType::{
        Binary, Boolean, Date32, Decimal128, Dictionary, Float32, Float64, Int8, Int16, Int32,
        Int64, LargeUtf8, Timestamp, Utf8, Utf8View,
    };
    match data_type {
        Boolean => "BOOLEAN".to_owned(),
        Int8 => "TINYINT".to_owned(),
        Int16 => "SMALLINT".to_owned(),
        Int32 => "INT".to_owned(),
        Int64 => "BIGINT".to_owned(),
        Float32 => "FLOAT".to_owned(),
        Float64 => "DOUBLE".to_owned(),
        Utf8 | LargeUtf8 | Utf8View => "STRING".to_owned(),
        Binary => "BYTES".to_owned(),
        Date32 => "DATE".to_owned(),
        Decimal128(p, s) => format!("DECIMAL({p}, {s})"),
        Dictionary(_, values) => in_sql(values),
        Timestamp(unit, zone) => {
            let name = if zone.is_some() { "TIMESTAMP_LTZ" } else { "TIMESTAMP" };
            let digits = match unit {
                TimeUnit::Second => 0,
                TimeUnit::Millisecond => 3,
                TimeUnit::Microsecond => 6,
                TimeUnit::Nanosecond => 9,
            };
            format!("{name}({digits})")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow::array::{Int64Array, TimestampNanosecondArray};

    #[test]
    fn times_are_cut_off_towards_the_past() {
        let ns: ArrayRef =
            Arc::new(TimestampNanosecondArray::from(vec![Some(-1), Some(1_999_999), None]));
        let ms =
            adapt(&ns, &DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))).unwrap();
        let ms = ms.as_primitive::<TimestampMillisecondType>();
        assert_eq!(ms.iter().collect::<Vec<_>>(), [Some(-1), Some(1), None]);
        assert_eq!(ms.timezone(), Some("UTC"));
    }

    #[test]
    fn nothing_narrows() {
        assert!(fits(&DataType::Int32, &DataType::Int64));
        assert!(!fits(&DataType::Int64, &DataType::Int32));
        assert!(!fits(&DataType::Int64, &DataType::Timestamp(TimeUnit::Millisecond, None)));
        assert!(!fits(&DataType::Float64, &DataType::Float32));
        assert!(fits(&DataType::Decimal128(10, 2), &DataType::Decimal128(12, 4)));
        assert!(!fits(&DataType::Decimal128(10, 2), &DataType::Decimal128(10, 4)));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        assert!(adapt(&numbers, &DataType::Utf8).is_none());
    }
}
