//! Functions of time. Times are TIMESTAMP(3) without zone unless said otherwise.

use arrow::array::{
    Array, ArrayRef, AsArray, Date32Array, Int32Array, Int64Array, PrimitiveArray, StringArray,
    TimestampMicrosecondArray, TimestampMillisecondArray, TimestampNanosecondArray,
};
use arrow::datatypes::{
    DataType, DurationMillisecondType, Int32Type, Int64Type, IntervalYearMonthType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
};
use std::sync::Arc;

use super::calendar::{DAY, add_months, ceil, difference, floor, part};
use super::format::{format_time, java_float, parse_iso, parse_time, timestamp_text};

type Done = Result<ArrayRef, String>;

/// Evaluates a function of time; `None` if the name is none.
pub(super) fn run(name: &str, args: &[ArrayRef], result: &DataType) -> Option<Done> {
    Some(match name {
        "YEAR" | "QUARTER" | "MONTH" | "WEEK" | "DAYOFYEAR" | "DAYOFMONTH" | "DAYOFWEEK"
        | "HOUR" | "MINUTE" | "SECOND" => parts(&args[0], name),
        "EXTRACT" => extract(args),
        "FLOOR_TO" | "CEIL_TO" => round_to(args, name == "FLOOR_TO"),
        "WINDOW_START" => window_start(args),
        "DATE_FORMAT" => date_format(args),
        "TO_TIMESTAMP" => parsed(args).map(|ms| Arc::new(ms) as ArrayRef),
        "TO_DATE" => parsed(args).map(|ms| {
            let days = |ms: i64| i32::try_from(ms.div_euclid(DAY)).unwrap_or(0);
            Arc::new(ms.iter().map(|ms| ms.map(days)).collect::<Date32Array>()) as ArrayRef
        }),
        "TIMESTAMPDIFF" => timestamp_difference(args),
        "TIME_ADD" => time_add(args, result),
        "FROM_EPOCH" => from_epoch(args),
        "TO_EPOCH_SECONDS" => to_epoch_seconds(&args[0]),
        "TO_LOCAL" => to_local(&args[0], zone(args, 1), result),
        "TO_INSTANT" => to_instant(&args[0], zone(args, 1), result),
        "TO_STRING" => to_string(&args[0]),
        _ => return None,
    })
}

fn millis(column: &ArrayRef) -> &TimestampMillisecondArray {
    column.as_primitive::<TimestampMillisecondType>()
}

fn times(values: impl Iterator<Item = Option<i64>>) -> TimestampMillisecondArray {
    values.collect()
}

fn parts(column: &ArrayRef, unit: &str) -> Done {
    let values = millis(column).iter().map(|ms| part(unit, ms?));
    Ok(Arc::new(values.collect::<Int64Array>()))
}

fn extract(args: &[ArrayRef]) -> Done {
    let units = args[0].as_string::<i32>();
    let pairs = units.iter().zip(millis(&args[1]));
    let values = pairs.map(|(unit, ms)| part(unit?, ms?));
    Ok(Arc::new(values.collect::<Int64Array>()))
}

fn round_to(args: &[ArrayRef], down: bool) -> Done {
    let units = args[1].as_string::<i32>();
    let pairs = millis(&args[0]).iter().zip(units);
    let each = |(ms, unit): (Option<i64>, Option<&str>)| {
        if down { floor(unit?, ms?) } else { ceil(unit?, ms?) }
    };
    Ok(Arc::new(times(pairs.map(each))))
}

/// Begin of the tumbling window: time, size, offset.
fn window_start(args: &[ArrayRef]) -> Done {
    let (size, offset) = (args[1].as_primitive::<Int64Type>(), args[2].as_primitive::<Int64Type>());
    let column = millis(&args[0]);
    let each = |row: usize| {
        let ms = column.is_valid(row).then(|| column.value(row))?;
        Some(weir_engine::time::floor_to(ms, size.value(row), offset.value(row)))
    };
    Ok(Arc::new(times((0..column.len()).map(each))))
}

fn date_format(args: &[ArrayRef]) -> Done {
    let patterns = args[1].as_string::<i32>();
    let each = |(ms, pattern): (Option<i64>, Option<&str>)| match (ms, pattern) {
        (Some(ms), Some(pattern)) => format_time(ms, pattern).map(Some),
        _ => Ok(None),
    };
    let texts: Result<StringArray, String> =
        millis(&args[0]).iter().zip(patterns).map(each).collect();
    Ok(Arc::new(texts?))
}

/// What doesn't fit is NULL, as in Flink.
fn parsed(args: &[ArrayRef]) -> Result<TimestampMillisecondArray, String> {
    let texts = args[0].as_string::<i32>();
    let each = |row: usize| {
        let text = texts.is_valid(row).then(|| texts.value(row))?;
        match args.get(1) {
            None => parse_iso(text),
            Some(patterns) => {
                let patterns = patterns.as_string::<i32>();
                parse_time(text, patterns.is_valid(row).then(|| patterns.value(row))?)
            }
        }
    };
    Ok(times((0..texts.len()).map(each)))
}

fn timestamp_difference(args: &[ArrayRef]) -> Done {
    let units = args[0].as_string::<i32>();
    let each = |row: usize| {
        if args.iter().any(|a| a.is_null(row)) {
            return Ok(None);
        }
        let (from, to) = (millis(&args[1]).value(row), millis(&args[2]).value(row));
        let unit = units.value(row);
        let whole = difference(unit, from, to).ok_or_else(|| format!("unknown unit {unit}"))?;
        Ok(Some(i32::try_from(whole).map_err(|_| "TIMESTAMPDIFF exceeds INT".to_owned())?))
    };
    let values: Result<Int32Array, String> = (0..units.len()).map(each).collect();
    Ok(Arc::new(values?))
}

/// A timestamp of any unit and an interval of milliseconds or months.
fn time_add(args: &[ArrayRef], result: &DataType) -> Done {
    let DataType::Timestamp(unit, _) = result else {
        return Err("TIME_ADD gives a timestamp".into());
    };
    let per_milli: i64 = match unit {
        TimeUnit::Second | TimeUnit::Millisecond => 1,
        TimeUnit::Microsecond => 1_000,
        TimeUnit::Nanosecond => 1_000_000,
    };
    let raw = raw_i64(&args[0])?;
    let overflow = || "a timestamp beyond its range".to_owned();
    let each = |row: usize| -> Result<Option<i64>, String> {
        if args.iter().any(|a| a.is_null(row)) {
            return Ok(None);
        }
        let value = raw.value(row);
        if let Some(months) = args[1].as_primitive_opt::<IntervalYearMonthType>() {
            let (ms, below) = (value.div_euclid(per_milli), value.rem_euclid(per_milli));
            return Ok(Some(add_months(ms, months.value(row).into()) * per_milli + below));
        }
        let by = args[1].as_primitive::<DurationMillisecondType>().value(row);
        let scaled = by.checked_mul(per_milli).ok_or_else(overflow)?;
        Ok(Some(value.checked_add(scaled).ok_or_else(overflow)?))
    };
    let values: Result<Int64Array, String> = (0..raw.len()).map(each).collect();
    arrow::compute::cast(&values?, result).map_err(|e| e.to_string())
}

fn raw_i64(column: &ArrayRef) -> Result<Int64Array, String> {
    let plain = arrow::compute::cast(column, &DataType::Int64).map_err(|e| e.to_string())?;
    Ok(plain.as_primitive::<Int64Type>().clone())
}

/// TO_TIMESTAMP_LTZ: a number of seconds (precision 0) or milliseconds (3).
fn from_epoch(args: &[ArrayRef]) -> Done {
    let (numbers, scale) =
        (args[0].as_primitive::<Int64Type>(), args[1].as_primitive::<Int32Type>());
    if scale.null_count() == 0 && !scale.values().contains(&0) {
        let same = numbers.reinterpret_cast::<TimestampMillisecondType>();
        return Ok(Arc::new(same.with_timezone("UTC")));
    }
    let each = |row: usize| {
        let whole = numbers.is_valid(row) && scale.is_valid(row);
        let number = whole.then(|| numbers.value(row))?;
        if scale.value(row) == 0 { number.checked_mul(1000) } else { Some(number) }
    };
    let values = times((0..numbers.len()).map(each));
    Ok(Arc::new(values.with_timezone("UTC")))
}

fn to_epoch_seconds(column: &ArrayRef) -> Done {
    let values = millis(column).iter().map(|ms| Some(ms?.div_euclid(1000)));
    Ok(Arc::new(values.collect::<Int64Array>()))
}

fn zone(args: &[ArrayRef], arg: usize) -> &str {
    let column = args[arg].as_string::<i32>();
    if column.is_empty() { "UTC" } else { column.value(0) }
}

/// An instant as the clocks of a zone show it.
fn to_local(column: &ArrayRef, zone: &str, result: &DataType) -> Done {
    let DataType::Timestamp(unit, _) = result else { return Err("no timestamp".into()) };
    let there = DataType::Timestamp(*unit, Some(zone.into()));
    let moved = arrow::compute::cast(column, &there).map_err(|e| e.to_string())?;
    arrow::compute::cast(&moved, result).map_err(|e| e.to_string())
}

/// The instant at which the clocks of a zone show a time; of two, and of none, see arrow's cast.
fn to_instant(column: &ArrayRef, zone: &str, result: &DataType) -> Done {
    let DataType::Timestamp(unit, _) = result else { return Err("no timestamp".into()) };
    let there = DataType::Timestamp(*unit, Some(zone.into()));
    let moved = arrow::compute::cast(column, &there).map_err(|e| e.to_string())?;
    arrow::compute::cast(&moved, result).map_err(|e| e.to_string())
}

fn stamps<T: arrow::datatypes::ArrowPrimitiveType<Native = i64>>(
    column: &PrimitiveArray<T>,
    per_second: i64,
    digits: usize,
) -> StringArray {
    let text = |v: i64| {
        let second = v.div_euclid(per_second);
        let nanos = v.rem_euclid(per_second) * (1_000_000_000 / per_second);
        timestamp_text(second * 1000, nanos, digits)
    };
    column.iter().map(|v| v.map(text)).collect()
}

/// CAST to STRING where Java's form is not Arrow's.
fn to_string(column: &ArrayRef) -> Done {
    let texts: StringArray = match column.data_type() {
        DataType::Boolean => {
            let word = |v| if v { "TRUE" } else { "FALSE" };
            column.as_boolean().iter().map(|v| v.map(word)).collect()
        }
        DataType::Float64 => {
            let values = column.as_primitive::<arrow::datatypes::Float64Type>();
            values.iter().map(|v| v.map(|v| java_float(v, &format!("{v:e}")))).collect()
        }
        DataType::Float32 => {
            let values = column.as_primitive::<arrow::datatypes::Float32Type>();
            values.iter().map(|v| v.map(|v| java_float(v.into(), &format!("{v:e}")))).collect()
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            let column: &TimestampMillisecondArray =
                column.as_primitive::<TimestampMillisecondType>();
            stamps(column, 1000, 3)
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            let column: &TimestampMicrosecondArray =
                column.as_primitive::<TimestampMicrosecondType>();
            stamps(column, 1_000_000, 6)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            let column: &TimestampNanosecondArray =
                column.as_primitive::<TimestampNanosecondType>();
            stamps(column, 1_000_000_000, 9)
        }
        other => return Err(format!("no text for {other}")),
    };
    Ok(Arc::new(texts))
}
