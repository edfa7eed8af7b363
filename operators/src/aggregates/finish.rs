//! From states to results: the last step of each aggregate, and its one rounding.

use arrow::array::*;
use arrow::compute::cast;
use arrow::datatypes::*;
use std::sync::Arc;
use weir_engine::operator::OperatorError;

use super::exact::{ExactBins, FloatSums, SquareSums};
use super::extremes::double_at;
use super::states::{DecimalCell, IntegerCell, Kind, State, as_type};
use super::{AggregateFunction, Call};

type States = [(Kind, State)];

/// The results of one call. The counts of `also` are added to its own.
pub(super) fn evaluate(
    call: &Call,
    states: &States,
    also: Option<&States>,
    groups: &[u32],
) -> Result<ArrayRef, OperatorError> {
    use AggregateFunction::*;
    let at = || groups.iter().map(|&group| group as usize);
    let state = |wanted: Kind| states.iter().find(|(kind, _)| *kind == wanted).map(|s| &s.1);
    match call.function {
        CountRows | Count => {
            let mut counts = vec![0; groups.len()];
            for states in [Some(states), also].into_iter().flatten() {
                if let Some((_, state)) = states.iter().find(|(kind, _)| kind.counts()) {
                    state.add_counts(groups, &mut counts);
                }
            }
            result(Arc::new(Int64Array::from(counts)), &call.output)
        }
        Min | Max => extremes(call, states, groups),
        Sum | Avg => match states.iter().find(|(kind, _)| kind.counts() && *kind != Kind::Count) {
            Some((_, State::FloatSum(sums))) => {
                doubles(at().map(|g| float_sum(call.function, sums, g)), &call.output)
            }
            Some((_, State::IntegerSum(cells))) => {
                integer_sums(call, at().map(|group| cells[group]))
            }
            Some((_, State::DecimalSum(cells))) => {
                decimal_sums(call, at().map(|group| cells[group]))
            }
            _ => Err(missing()),
        },
        StddevPop | StddevSamp | VarPop | VarSamp => {
            match (state(Kind::FloatSum), state(Kind::Squares)) {
                (Some(State::FloatSum(sums)), Some(State::Squares(squares))) => {
                    let one = |group| variance(call.function, sums, squares, group);
                    doubles(at().map(one), &call.output)
                }
                _ => Err(missing()),
            }
        }
    }
}

fn missing() -> OperatorError {
    OperatorError::State("an aggregate has no state".into())
}

/// A column as the type of the result.
fn result(column: ArrayRef, output: &DataType) -> Result<ArrayRef, OperatorError> {
    if column.data_type() == output { Ok(column) } else { Ok(cast(&column, output)?) }
}

fn float_sum(function: AggregateFunction, sums: &FloatSums, group: usize) -> Option<f64> {
    let count = sums.count(group);
    if count <= 0 {
        return None;
    }
    let sum = sums.sum(group);
    Some(if function == AggregateFunction::Avg { sum / count as f64 } else { sum })
}

fn variance(
    function: AggregateFunction,
    sums: &FloatSums,
    squares: &SquareSums,
    group: usize,
) -> Option<f64> {
    use AggregateFunction::*;
    let n = sums.count(group);
    let divisor = if matches!(function, StddevPop | VarPop) { n } else { n - 1 };
    if n <= 0 || divisor <= 0 {
        return None;
    }
    if sums.unbounded(group).is_some() {
        return Some(f64::NAN);
    }
    let spread = ExactBins::spread(n, &sums.exact(group), &squares.exact(group));
    let variance = spread / (i128::from(n) * i128::from(divisor)) as f64;
    Some(if matches!(function, StddevPop | StddevSamp) { variance.sqrt() } else { variance })
}

/// Doubles as the type of the result. Integers truncate and saturate as Java's conversion does;
/// decimals round half up and are NULL beyond 38 digits.
fn doubles(
    values: impl Iterator<Item = Option<f64>>,
    output: &DataType,
) -> Result<ArrayRef, OperatorError> {
    match output {
        DataType::Decimal128(precision, scale) => {
            let unit = 10_f64.powi(i32::from(*scale));
            let unscaled = |x: f64| Some((x * unit).round()).filter(|x| x.abs() < 1e38);
            let column: Decimal128Array =
                values.map(|x| x.and_then(unscaled).map(|x| x as i128)).collect();
            Ok(Arc::new(column.with_precision_and_scale(*precision, *scale)?))
        }
        output if output.is_integer() => {
            let column: Int64Array = values.map(|x| x.map(|x| x as i64)).collect();
            as_type(&column, output)
        }
        _ => result(Arc::new(values.collect::<Float64Array>()), output),
    }
}

fn integer_sums(
    call: &Call,
    cells: impl Iterator<Item = IntegerCell>,
) -> Result<ArrayRef, OperatorError> {
    let avg = call.function == AggregateFunction::Avg;
    if call.output.is_floating() {
        let one = |cell: IntegerCell| {
            let divisor = if avg { cell.count as f64 } else { 1.0 };
            (cell.count > 0).then(|| cell.sum as f64 / divisor)
        };
        return doubles(cells.map(one), &call.output);
    }
    let one = |cell: IntegerCell| {
        (cell.count > 0).then(|| if avg { cell.sum.wrapping_div(cell.count) } else { cell.sum })
    };
    as_type(&cells.map(one).collect(), &call.output)
}

fn decimal_sums(
    call: &Call,
    cells: impl Iterator<Item = DecimalCell>,
) -> Result<ArrayRef, OperatorError> {
    let (Some(DataType::Decimal128(_, from)), DataType::Decimal128(precision, scale)) =
        (&call.argument, &call.output)
    else {
        return Err(missing());
    };
    let limit = i256::from_i128(10_i128.pow(u32::from(*precision).min(38)));
    let widest = i256::from_i128(10_i128.pow(38));
    let fits = |x: &i256, limit: i256| *x < limit && *x > limit.wrapping_neg();
    let up = power_of_ten(scale - from);
    let avg = call.function == AggregateFunction::Avg;
    let one = |cell: DecimalCell| {
        let sum = Some(cell.sum).filter(|sum| cell.count > 0 && fits(sum, widest))?;
        let count = if avg { i256::from_i128(cell.count.into()) } else { i256::ONE };
        let down = power_of_ten(from - scale).wrapping_mul(count);
        let value = divide_half_up(sum.wrapping_mul(up), down);
        fits(&value, limit).then(|| value.to_i128()).flatten()
    };
    let column: Decimal128Array = cells.map(one).collect();
    Ok(Arc::new(column.with_precision_and_scale(*precision, *scale)?))
}

/// 10^n, or 1 for a negative n.
fn power_of_ten(n: i8) -> i256 {
    i256::from_i128(10_i128.pow(u32::try_from(n).unwrap_or(0).min(38)))
}

/// Rounds halves away from zero, as Java's HALF_UP.
fn divide_half_up(dividend: i256, divisor: i256) -> i256 {
    let (quotient, rest) = (dividend.wrapping_div(divisor), dividend.wrapping_rem(divisor));
    let twice = rest.wrapping_abs().wrapping_add(rest.wrapping_abs());
    match (twice >= divisor, dividend.is_negative()) {
        (false, _) => quotient,
        (true, false) => quotient.wrapping_add(i256::ONE),
        (true, true) => quotient.wrapping_sub(i256::ONE),
    }
}

fn extremes(call: &Call, states: &States, groups: &[u32]) -> Result<ArrayRef, OperatorError> {
    let least = call.function == AggregateFunction::Min;
    let argument = call.argument.as_ref().ok_or_else(missing)?;
    let at = || groups.iter().map(|&group| group as usize);
    let found = states.iter().find(|(_, state)| !state.is_invertible()).map(|(_, state)| state);
    let column: ArrayRef = match found {
        Some(State::Extremes(cells)) => {
            let one = |g| cells.get(g).map(|(a, b)| if least { a } else { b });
            extreme_column(&at().map(one).collect(), argument)?
        }
        Some(State::WideExtremes(cells)) => {
            let one = |g| cells.get(g).map(|(a, b)| if least { a } else { b });
            let column: Decimal128Array = at().map(one).collect();
            Arc::new(column.with_data_type(argument.clone()))
        }
        Some(State::TextExtremes(cells)) => {
            let one = |g| cells.get(g).map(|(a, b)| if least { a } else { b });
            let column = BinaryArray::from_iter(at().map(one));
            // The bytes came from a column of this type.
            cast(&column, argument)?
        }
        _ => return Err(missing()),
    };
    result(column, &call.output)
}

fn extreme_column(places: &Int64Array, argument: &DataType) -> Result<ArrayRef, OperatorError> {
    Ok(match argument {
        DataType::Float64 => Arc::new(places.unary::<_, Float64Type>(double_at)),
        DataType::Float32 => Arc::new(places.unary::<_, Float32Type>(|x| double_at(x) as f32)),
        DataType::UInt64 => Arc::new(places.unary::<_, UInt64Type>(|x| (x ^ i64::MIN) as u64)),
        other => as_type(places, other)?,
    })
}
