//! Numbers: elementary functions, and decimal arithmetic with Flink's result types.
//!
//! # Decimals
//! Computed exactly in 256 bits, rounded half up (away from zero) to the result's scale once; a
//! result with too many digits is NULL, as in Flink. Division by zero is an error of its row.

use arrow::array::{Array, ArrayRef, AsArray, Decimal128Array, Float64Array, Int32Array};
use arrow::array::{Float32Array, Int64Array};
use arrow::datatypes::i256;
use arrow::datatypes::{DataType, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type};
use std::sync::Arc;

type Done = Result<ArrayRef, String>;

/// Evaluates a function of numbers; `None` if the name is none.
pub(super) fn run(name: &str, args: &[ArrayRef], rows: usize, result: &DataType) -> Option<Done> {
    if let Some(op) = name.strip_prefix("DECIMAL") {
        return Some(decimal(op, args, result));
    }
    let constant = |value: f64| Ok(Arc::new(Float64Array::from(vec![value; rows])) as ArrayRef);
    Some(match name {
        "PI" => constant(std::f64::consts::PI),
        "E" => constant(std::f64::consts::E),
        "NOT_NULL" => not_null(args),
        "ROUND" | "TRUNCATE" => round(args, name == "ROUND"),
        "NUMBER_FLOOR" | "NUMBER_CEIL" => whole(&args[0], name == "NUMBER_FLOOR", result),
        "ABS" | "SIGN" => signs(&args[0], name == "ABS"),
        "LOG" if args.len() == 2 => {
            let (base, of) = (doubles(&args[0]), doubles(&args[1]));
            let each = |(b, x): (Option<f64>, Option<f64>)| Some(x?.ln() / b?.ln());
            Ok(Arc::new(base.iter().zip(of).map(each).collect::<Float64Array>()))
        }
        "POWER" | "ATAN2" => {
            let power = name == "POWER";
            let each = |(x, y): (Option<f64>, Option<f64>)| {
                Some(if power { x?.powf(y?) } else { x?.atan2(y?) })
            };
            let pairs = doubles(&args[0]).iter().zip(doubles(&args[1]));
            Ok(Arc::new(pairs.map(each).collect::<Float64Array>()))
        }
        _ => {
            let function = elementary(name)?;
            Ok(Arc::new(doubles(&args[0]).unary::<_, Float64Type>(function)))
        }
    })
}

fn doubles(column: &ArrayRef) -> &Float64Array {
    column.as_primitive::<Float64Type>()
}

fn elementary(name: &str) -> Option<fn(f64) -> f64> {
    Some(match name {
        "SQRT" => f64::sqrt,
        "EXP" => f64::exp,
        "LN" | "LOG" => f64::ln,
        "LOG10" => f64::log10,
        "LOG2" => f64::log2,
        "SIN" => f64::sin,
        "COS" => f64::cos,
        "TAN" => f64::tan,
        "ASIN" => f64::asin,
        "ACOS" => f64::acos,
        "ATAN" => f64::atan,
        "SINH" => f64::sinh,
        "COSH" => f64::cosh,
        "TANH" => f64::tanh,
        "DEGREES" => f64::to_degrees,
        "RADIANS" => f64::to_radians,
        _ => return None,
    })
}

fn not_null(args: &[ArrayRef]) -> Done {
    if args[0].null_count() > 0 {
        let column = args[1].as_string::<i32>();
        let name = if column.is_empty() { "" } else { column.value(0) };
        return Err(format!("NULL for the column `{name}`, which is NOT NULL"));
    }
    Ok(args[0].clone())
}

fn ten(power: u32) -> i256 {
    i256::from_i128(10).wrapping_pow(power)
}

/// `value / by`, half up, away from zero.
fn divide_rounded(value: i256, by: i256) -> i256 {
    let (quotient, rest) = (value.wrapping_div(by), value.wrapping_rem(by));
    let twice = rest.wrapping_abs().wrapping_mul(i256::from_i128(2));
    if twice < by.wrapping_abs() {
        return quotient;
    }
    let negative = (value < i256::ZERO) != (by < i256::ZERO);
    let step = if negative { i256::MINUS_ONE } else { i256::ONE };
    quotient.wrapping_add(step)
}

/// `value` of scale `from` at scale `to`.
fn rescaled(value: i256, from: i32, to: i32) -> i256 {
    if to >= from {
        value.wrapping_mul(ten((to - from) as u32))
    } else {
        divide_rounded(value, ten((from - to) as u32))
    }
}

fn decimal(op: &str, args: &[ArrayRef], result: &DataType) -> Done {
    let (left, right) =
        (args[0].as_primitive::<Decimal128Type>(), args[1].as_primitive::<Decimal128Type>());
    let (s1, s2) = (i32::from(left.scale()), i32::from(right.scale()));
    let DataType::Decimal128(precision, scale) = *result else {
        return Err("decimal arithmetic gives decimals".into());
    };
    let to = i32::from(scale);
    let limit = 10_i128.pow(u32::from(precision).min(38));
    let each = |(a, b): (Option<i128>, Option<i128>)| -> Result<Option<i128>, String> {
        let (Some(a), Some(b)) = (a, b) else { return Ok(None) };
        let (a, b) = (i256::from_i128(a), i256::from_i128(b));
        let common = s1.max(s2);
        let (ca, cb) = (rescaled(a, s1, common), rescaled(b, s2, common));
        if matches!(op, "/" | "%") && b == i256::ZERO {
            return Err("division by zero".into());
        }
        let value = match op {
            "+" => rescaled(ca.wrapping_add(cb), common, to),
            "-" => rescaled(ca.wrapping_sub(cb), common, to),
            "*" => rescaled(a.wrapping_mul(b), s1 + s2, to),
            "/" => {
                // a / b at scale `to` is a · 10^(to + s2 − s1) / b.
                let shift = to + s2 - s1;
                if shift >= 0 {
                    divide_rounded(a.wrapping_mul(ten(shift as u32)), b)
                } else {
                    divide_rounded(a, b.wrapping_mul(ten((-shift) as u32)))
                }
            }
            _ => rescaled(ca.wrapping_rem(cb), common, to),
        };
        Ok(value.to_i128().filter(|v| v.abs() < limit))
    };
    let values: Result<Decimal128Array, String> = left.iter().zip(right).map(each).collect();
    let made = values?.with_precision_and_scale(precision, scale).map_err(|e| e.to_string())?;
    Ok(Arc::new(made))
}

/// ROUND or TRUNCATE to a number of digits, in the argument's type.
fn round(args: &[ArrayRef], round: bool) -> Done {
    let digits = args[1].as_primitive::<Int32Type>();
    match args[0].data_type() {
        DataType::Float64 => {
            let each = |(v, d): (Option<f64>, Option<i32>)| Some(round_double(v?, d?, round));
            let pairs = doubles(&args[0]).iter().zip(digits);
            Ok(Arc::new(pairs.map(each).collect::<Float64Array>()))
        }
        DataType::Decimal128(precision, scale) => {
            let column = args[0].as_primitive::<Decimal128Type>();
            let (precision, scale) = (*precision, *scale);
            let each = |(v, d): (Option<i128>, Option<i32>)| {
                let drop = i32::from(scale) - d?;
                let v = v?;
                if drop <= 0 {
                    return Some(v);
                }
                Some(drop_digits(v, drop.min(38) as u32, round))
            };
            let values: Decimal128Array = column.iter().zip(digits).map(each).collect();
            let made = values.with_precision_and_scale(precision, scale);
            Ok(Arc::new(made.map_err(|e| e.to_string())?))
        }
        DataType::Int64 => {
            let column = args[0].as_primitive::<Int64Type>();
            let each = |(v, d): (Option<i64>, Option<i32>)| {
                let (v, d) = (v?, d?);
                if d >= 0 {
                    return Some(v);
                }
                i64::try_from(drop_digits(v.into(), (-d).min(38) as u32, round)).ok()
            };
            Ok(Arc::new(column.iter().zip(digits).map(each).collect::<Int64Array>()))
        }
        other => Err(format!("ROUND of {other} is not defined")),
    }
}

fn drop_digits(value: i128, digits: u32, round: bool) -> i128 {
    let Some(by) = 10_i128.checked_pow(digits) else { return 0 };
    let rest = value % by;
    let cut = value - rest;
    if round && rest.abs() >= by / 2 { cut + by * value.signum() } else { cut }
}

/// By way of the decimal text, as Java's BigDecimal: 2.675 to 2 digits is 2.68.
fn round_double(value: f64, digits: i32, round: bool) -> f64 {
    if !value.is_finite() {
        return value;
    }
    let text = format!("{:e}", value.abs());
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let all: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    // all = d.ddd without its point: the value is all · 10^(exponent − len + 1).
    let scale = exponent - all.len() as i32 + 1;
    let drop = -scale - digits;
    let Ok(number) = all.parse::<i128>() else { return value };
    let kept = match u32::try_from(drop) {
        Ok(drop) if drop > 0 => drop_digits(number, drop.min(38), round),
        _ => number,
    };
    if kept == 0 {
        return 0.0;
    }
    let rounded: f64 = format!("{kept}e{scale}").parse().unwrap_or(value.abs());
    if value.is_sign_negative() { -rounded } else { rounded }
}

fn whole(column: &ArrayRef, down: bool, result: &DataType) -> Done {
    match column.data_type() {
        DataType::Float64 => {
            let step = if down { f64::floor } else { f64::ceil };
            Ok(Arc::new(doubles(column).unary::<_, Float64Type>(step)))
        }
        DataType::Float32 => {
            let step = if down { f32::floor } else { f32::ceil };
            Ok(Arc::new(column.as_primitive::<Float32Type>().unary::<_, Float32Type>(step)))
        }
        DataType::Decimal128(_, scale) => {
            let by = 10_i128.pow(u32::try_from(*scale).unwrap_or(0));
            let each = |v: i128| {
                let low = v.div_euclid(by);
                if down || v.rem_euclid(by) == 0 { low } else { low + 1 }
            };
            let values = column.as_primitive::<Decimal128Type>();
            let whole: Decimal128Array = values.iter().map(|v| v.map(each)).collect();
            let DataType::Decimal128(p, s) = *result else { return Err("no decimal".into()) };
            Ok(Arc::new(whole.with_precision_and_scale(p, s).map_err(|e| e.to_string())?))
        }
        _ => Ok(column.clone()),
    }
}

fn signs(column: &ArrayRef, absolute: bool) -> Done {
    Ok(match column.data_type() {
        DataType::Float64 => {
            let sign = |v: f64| if v == 0.0 { v } else { v.signum() };
            let each = if absolute { f64::abs } else { sign };
            Arc::new(doubles(column).unary::<_, Float64Type>(each))
        }
        DataType::Float32 => {
            let sign = |v: f32| if v == 0.0 { v } else { v.signum() };
            let each = if absolute { f32::abs } else { sign };
            let made: Float32Array = column.as_primitive::<Float32Type>().unary(each);
            Arc::new(made)
        }
        DataType::Int32 => {
            let each = if absolute { i32::wrapping_abs } else { i32::signum };
            let made: Int32Array = column.as_primitive::<Int32Type>().unary(each);
            Arc::new(made)
        }
        DataType::Int64 => {
            let each = if absolute { i64::wrapping_abs } else { i64::signum };
            let made: Int64Array = column.as_primitive::<Int64Type>().unary(each);
            Arc::new(made)
        }
        DataType::Decimal128(p, s) => {
            let one = 10_i128.pow(u32::try_from(*s).unwrap_or(0));
            let values = column.as_primitive::<Decimal128Type>();
            let each = |v: i128| if absolute { v.abs() } else { v.signum() * one };
            let made: Decimal128Array = values.unary(each);
            Arc::new(made.with_precision_and_scale(*p, *s).map_err(|e| e.to_string())?)
        }
        other => return Err(format!("ABS of {other} is not defined")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rounds_decimal_text() {
        assert_eq!(round_double(2.675, 2, true), 2.68);
        assert_eq!(round_double(-2.5, 0, true), -3.0);
        assert_eq!(round_double(1234.5, -2, true), 1200.0);
        assert_eq!(round_double(2.679, 2, false), 2.67);
    }

    #[test]
    fn divides_decimals_half_up() {
        let make = |v: i128, s: i8| {
            let array = Decimal128Array::from(vec![v]).with_precision_and_scale(20, s).unwrap();
            Arc::new(array) as ArrayRef
        };
        let run = |op, a, b| decimal(op, &[a, b], &DataType::Decimal128(38, 6)).unwrap();
        let value = |a: ArrayRef| a.as_primitive::<Decimal128Type>().value(0);
        assert_eq!(value(run("/", make(2, 0), make(3, 0))), 666_667);
        assert_eq!(value(run("*", make(15, 1), make(15, 1))), 2_250_000);
        assert!(decimal("/", &[make(1, 0), make(0, 0)], &DataType::Decimal128(38, 6)).is_err());
    }
}
