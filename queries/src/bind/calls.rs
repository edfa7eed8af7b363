//! Function calls: signatures, the functions with rules of their own, and aggregates.

use arrow::datatypes::DataType;
use weir_operators::aggregates::AggregateFunction;

use super::Bound;
use super::expressions::{ExprBinder, boolean, shown};
use crate::ast::{Call, Expr, ExprKind, Value};
use crate::diagnostics::Diagnostic;
use crate::functions::{Arg, Function, lookup, names};
use crate::plan::{BinaryOp, CallPlan, Datum, Scalar, ScalarKind};
use crate::types::{
    INTERVAL_MONTHS, INTERVAL_MS, TIMESTAMP_MS, cast, common_type, convert, is_float, is_integer,
    is_number, is_timestamp, ltz_ms, sql_name,
};

/// Aggregates that exist in Flink and not yet here.
const LATER: &[&str] = &[
    "FIRST_VALUE",
    "LAST_VALUE",
    "LISTAGG",
    "COLLECT",
    "ARRAY_AGG",
    "APPROX_COUNT_DISTINCT",
    "PERCENTILE",
    "JSON_OBJECTAGG",
    "JSON_ARRAYAGG",
    "ROW_NUMBER",
    "RANK",
    "DENSE_RANK",
    "LAG",
    "LEAD",
    "NTILE",
];

/// The aggregate of this name.
pub(super) fn aggregate(name: &str) -> Option<AggregateFunction> {
    Some(match name.to_uppercase().as_str() {
        "COUNT" => AggregateFunction::Count,
        "SUM" => AggregateFunction::Sum,
        "AVG" => AggregateFunction::Avg,
        "MIN" => AggregateFunction::Min,
        "MAX" => AggregateFunction::Max,
        "STDDEV_POP" => AggregateFunction::StddevPop,
        "STDDEV_SAMP" | "STDDEV" => AggregateFunction::StddevSamp,
        "VAR_POP" => AggregateFunction::VarPop,
        "VAR_SAMP" | "VARIANCE" => AggregateFunction::VarSamp,
        _ => return None,
    })
}

impl ExprBinder<'_> {
    /// A call of any kind.
    pub(super) fn call(&mut self, expr: &Expr, call: &Call) -> Bound<Scalar> {
        let upper = call.name.text.to_uppercase();
        if aggregate(&upper).is_some() {
            return self.aggregate_call(expr, call);
        }
        if let Some(part) = self.window_part(expr, call, &upper)? {
            return Ok(part);
        }
        if LATER.contains(&upper.as_str()) {
            let message = format!("{upper} is not supported yet");
            let hint =
                "COUNT, SUM, AVG, MIN, MAX, STDDEV_POP, STDDEV_SAMP, VAR_POP and VAR_SAMP are";
            return Err(Diagnostic::new(call.name.span, message).hint(hint));
        }
        if call.star || call.distinct || call.filter.is_some() {
            let message = format!("{upper} is no aggregate: `*`, DISTINCT and FILTER do not apply");
            return Err(Diagnostic::new(expr.span, message));
        }
        match lookup(&upper) {
            Some(function) => self.known(function, expr, call),
            None => self.special(expr, call, &upper),
        }
    }

    fn wrong_count(&self, expr: &Expr, call: &Call, takes: &str, usage: &str) -> Diagnostic {
        let name = call.name.text.to_uppercase();
        let has = call.args.len();
        let message = format!("{name} takes {takes} arguments, {usage}; here it has {has}");
        Diagnostic::new(expr.span, message)
    }

    fn known(&mut self, function: &Function, expr: &Expr, call: &Call) -> Bound<Scalar> {
        let (least, most) = (function.required, function.args.len());
        let count = call.args.len();
        if count < least || count > most && !function.variadic {
            let takes = match (function.variadic, least == most) {
                (true, _) => format!("{least} or more"),
                (false, true) => least.to_string(),
                (false, false) => format!("{least} to {most}"),
            };
            return Err(self.wrong_count(expr, call, &takes, function.usage));
        }
        let mut args = Vec::with_capacity(count);
        for (i, arg) in call.args.iter().enumerate() {
            let Some(&wants) = function.args.get(i).or(function.args.last()) else { break };
            args.push(self.argument(function.name, arg, wants)?);
        }
        self.check_unit(function.name, call)?;
        Ok(Scalar::call(function.name, args, function.result.data_type()))
    }

    /// Units of EXTRACT and TIMESTAMPDIFF are checked here, where they have a place.
    fn check_unit(&self, function: &str, call: &Call) -> Bound<()> {
        let units: &[&str] = match function {
            "EXTRACT" => &[
                "YEAR",
                "QUARTER",
                "MONTH",
                "WEEK",
                "DAY",
                "DOY",
                "DOW",
                "HOUR",
                "MINUTE",
                "SECOND",
                "MILLISECOND",
                "EPOCH",
            ],
            "TIMESTAMPDIFF" => {
                &["SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR"]
            }
            _ => return Ok(()),
        };
        unit_of(&call.args[0], units).map(|_| ())
    }

    fn argument(&mut self, function: &str, expr: &Expr, wants: Arg) -> Bound<Scalar> {
        let bound = self.bind(expr)?;
        let target = wants.data_type();
        let from = &bound.data_type;
        let fits = *from == DataType::Null
            || match wants {
                Arg::Text => matches!(from, DataType::Utf8),
                Arg::Double => is_number(from),
                Arg::Int | Arg::Long => is_integer(from),
                Arg::Time => {
                    is_timestamp(from) || matches!(from, DataType::Date32 | DataType::Utf8)
                }
            };
        if !fits {
            let (is, needs) = (sql_name(from), sql_name(&target));
            let message = format!("{function} needs a {needs}, but {} is a {is}", shown(expr));
            let hint = format!("convert it: CAST(… AS {needs})");
            return Err(Diagnostic::new(expr.span, message).hint(hint));
        }
        Ok(convert(bound, &target, &self.zone))
    }

    fn special(&mut self, expr: &Expr, call: &Call, upper: &str) -> Bound<Scalar> {
        let now = Scalar { data_type: ltz_ms(), kind: ScalarKind::RecordedTime };
        match (upper, call.args.len()) {
            ("NOW" | "CURRENT_TIMESTAMP" | "PROCTIME" | "CURRENT_ROW_TIMESTAMP", 0) => Ok(now),
            ("LOCALTIMESTAMP", 0) => Ok(convert(now, &TIMESTAMP_MS, &self.zone)),
            ("CURRENT_DATE", 0) => Ok(convert(now, &DataType::Date32, &self.zone)),
            ("UNIX_TIMESTAMP", 0) => {
                let utc = convert(now, &TIMESTAMP_MS, "UTC");
                Ok(Scalar::call("TO_EPOCH_SECONDS", vec![utc], DataType::Int64))
            }
            ("UNIX_TIMESTAMP", 1 | 2) => {
                let args = self.arguments(call, &[Arg::Text, Arg::Text])?;
                let local = Scalar::call("TO_TIMESTAMP", args, TIMESTAMP_MS);
                let instant = convert(local, &ltz_ms(), &self.zone);
                let utc = convert(instant, &TIMESTAMP_MS, "UTC");
                Ok(Scalar::call("TO_EPOCH_SECONDS", vec![utc], DataType::Int64))
            }
            ("FROM_UNIXTIME", 1 | 2) => self.unixtime_text(call),
            ("TO_TIMESTAMP_LTZ", 1 | 2) => {
                let mut args = self.arguments(call, &[Arg::Long, Arg::Int])?;
                if args.len() == 1 {
                    args.push(Scalar::literal(Datum::Integer(3), DataType::Int32));
                }
                Ok(Scalar::call("FROM_EPOCH", args, ltz_ms()))
            }
            ("COALESCE", 1..) => self.coalesce(call),
            ("IFNULL", 2) => self.coalesce(call),
            ("NULLIF", 2) => self.null_if(expr, call),
            ("IF", 3) => self.if_then(call),
            ("GREATEST" | "LEAST", 1..) => self.extreme(call, upper == "GREATEST"),
            ("MOD", 2) => {
                let (left, right) = (self.bind(&call.args[0])?, self.bind(&call.args[1])?);
                let (l, r) = ((&call.args[0], left), (&call.args[1], right));
                self.arithmetic(expr, BinaryOp::Modulo, l, r)
            }
            ("ABS" | "SIGN", 1) => self.same_type(call, upper),
            ("ROUND" | "TRUNCATE", 1 | 2) => self.round(call, upper),
            ("FLOOR" | "CEIL" | "CEILING", 1) => self.whole(call, upper == "FLOOR"),
            ("FLOOR" | "CEIL" | "CEILING", 2) => self.floor_to(call, upper == "FLOOR"),
            ("TIMESTAMPADD", 3) => self.timestamp_add(call),
            ("RAND" | "RAND_INTEGER" | "UUID", _) => {
                let message = format!("{upper} is refused: a result must depend on the data alone");
                Err(Diagnostic::new(call.name.span, message))
            }
            (_, _) if names().any(|n| n == upper) => {
                Err(self.wrong_count(expr, call, "another number of", upper))
            }
            _ => {
                let message = format!("function `{}` does not exist", call.name.text);
                Err(Diagnostic::new(call.name.span, message).meant(&call.name.text, names()))
            }
        }
    }

    fn arguments(&mut self, call: &Call, wants: &[Arg]) -> Bound<Vec<Scalar>> {
        let name = call.name.text.to_uppercase();
        let pairs = call.args.iter().zip(wants);
        pairs.map(|(arg, &wants)| self.argument(&name, arg, wants)).collect()
    }

    fn unixtime_text(&mut self, call: &Call) -> Bound<Scalar> {
        let mut args = self.arguments(call, &[Arg::Long, Arg::Text])?.into_iter();
        let seconds = args.next().unwrap_or_else(|| Scalar::null(DataType::Int64));
        let pattern = args.next().unwrap_or_else(|| Scalar::text("yyyy-MM-dd HH:mm:ss"));
        let scale = Scalar::literal(Datum::Integer(0), DataType::Int32);
        let instant = Scalar::call("FROM_EPOCH", vec![seconds, scale], ltz_ms());
        let local = convert(instant, &TIMESTAMP_MS, &self.zone);
        Ok(Scalar::call("DATE_FORMAT", vec![local, pattern], DataType::Utf8))
    }

    fn values(&mut self, call: &Call) -> Bound<Vec<Scalar>> {
        let mut values = Vec::new();
        for arg in &call.args {
            values.push((self.bind(arg)?, arg.span));
        }
        self.alike(values, &call.name.text.to_uppercase())
    }

    fn coalesce(&mut self, call: &Call) -> Bound<Scalar> {
        let mut values = self.values(call)?;
        let last = values.pop().unwrap_or_else(|| Scalar::null(DataType::Null));
        let data_type = last.data_type.clone();
        let present = |v: &Scalar| {
            super::expressions::negation(boolean(ScalarKind::IsNull(Box::new(v.clone()))))
        };
        let whens: Vec<_> = values.into_iter().map(|v| (present(&v), v)).collect();
        if whens.is_empty() {
            return Ok(last);
        }
        Ok(Scalar { data_type, kind: ScalarKind::Case(whens, Box::new(last)) })
    }

    fn null_if(&mut self, expr: &Expr, call: &Call) -> Bound<Scalar> {
        let (left, right) = (self.bind(&call.args[0])?, self.bind(&call.args[1])?);
        let Some(common) = self.comparable(&left, &right) else {
            return Err(Diagnostic::new(expr.span, "NULLIF needs two values that can be compared"));
        };
        let data_type = left.data_type.clone();
        let equal = Scalar::binary(
            BinaryOp::Eq,
            convert(left.clone(), &common, &self.zone),
            convert(right, &common, &self.zone),
            DataType::Boolean,
        );
        let whens = vec![(equal, Scalar::null(data_type.clone()))];
        Ok(Scalar { data_type, kind: ScalarKind::Case(whens, Box::new(left)) })
    }

    fn if_then(&mut self, call: &Call) -> Bound<Scalar> {
        let condition = self.boolean(&call.args[0], "IF")?;
        let then = (self.bind(&call.args[1])?, call.args[1].span);
        let otherwise = (self.bind(&call.args[2])?, call.args[2].span);
        let mut both = self.alike(vec![then, otherwise], "IF")?;
        let otherwise = both.remove(1);
        let then = both.remove(0);
        let data_type = then.data_type.clone();
        Ok(Scalar {
            data_type,
            kind: ScalarKind::Case(vec![(condition, then)], Box::new(otherwise)),
        })
    }

    /// NULL if any argument is NULL.
    fn extreme(&mut self, call: &Call, greatest: bool) -> Bound<Scalar> {
        let values = self.values(call)?;
        let mut values = values.into_iter();
        let mut best = values.next().unwrap_or_else(|| Scalar::null(DataType::Null));
        let data_type = best.data_type.clone();
        let op = if greatest { BinaryOp::GtEq } else { BinaryOp::LtEq };
        for value in values {
            let null = Scalar::null(data_type.clone());
            let order = |a: &Scalar, b: &Scalar| {
                Scalar::binary(op, a.clone(), b.clone(), DataType::Boolean)
            };
            let whens =
                vec![(order(&best, &value), best.clone()), (order(&value, &best), value.clone())];
            best = Scalar {
                data_type: data_type.clone(),
                kind: ScalarKind::Case(whens, Box::new(null)),
            };
        }
        Ok(best)
    }

    fn number(&mut self, call: &Call) -> Bound<Scalar> {
        let bound = self.bind(&call.args[0])?;
        if !is_number(&bound.data_type) {
            let (name, is) = (call.name.text.to_uppercase(), sql_name(&bound.data_type));
            let message = format!("{name} needs a number, but {} is a {is}", shown(&call.args[0]));
            return Err(Diagnostic::new(call.args[0].span, message));
        }
        Ok(bound)
    }

    fn same_type(&mut self, call: &Call, name: &str) -> Bound<Scalar> {
        let bound = self.number(call)?;
        let data_type = bound.data_type.clone();
        let narrow = matches!(data_type, DataType::Int8 | DataType::Int16);
        let wide = if narrow { convert(bound, &DataType::Int32, &self.zone) } else { bound };
        let wide_type = wide.data_type.clone();
        Ok(convert(Scalar::call(name, vec![wide], wide_type), &data_type, &self.zone))
    }

    fn round(&mut self, call: &Call, name: &str) -> Bound<Scalar> {
        let bound = self.number(call)?;
        let data_type = bound.data_type.clone();
        let digits = match call.args.get(1) {
            Some(arg) => self.argument(name, arg, Arg::Int)?,
            None => Scalar::literal(Datum::Integer(0), DataType::Int32),
        };
        let wide = match &data_type {
            t if is_integer(t) => DataType::Int64,
            DataType::Float32 => DataType::Float64,
            t => t.clone(),
        };
        let args = vec![convert(bound, &wide, &self.zone), digits.clone()];
        let rounded = Scalar::call(name, args, wide);
        // Flink: ROUND of DECIMAL(p, s) to n digits is DECIMAL(p − s + 1 + n, n).
        if let (DataType::Decimal128(p, s), ScalarKind::Literal(Datum::Integer(n))) =
            (&data_type, &digits.kind)
            && (0..i64::from(*s)).contains(n)
        {
            let precision = (i64::from(*p) - i64::from(*s) + 1 + n).min(38);
            let to = DataType::Decimal128(precision as u8, *n as i8);
            return Ok(convert(rounded, &to, &self.zone));
        }
        Ok(convert(rounded, &data_type, &self.zone))
    }

    fn whole(&mut self, call: &Call, down: bool) -> Bound<Scalar> {
        let bound = self.number(call)?;
        let data_type = match &bound.data_type {
            DataType::Decimal128(p, s) => {
                let precision = (i32::from(*p) - i32::from(*s) + 1).clamp(1, 38);
                DataType::Decimal128(precision as u8, 0)
            }
            other => other.clone(),
        };
        let name = if down { "NUMBER_FLOOR" } else { "NUMBER_CEIL" };
        Ok(Scalar::call(name, vec![bound], data_type))
    }

    fn floor_to(&mut self, call: &Call, down: bool) -> Bound<Scalar> {
        let units =
            ["YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND", "MILLISECOND"];
        let unit = unit_of(&call.args[1], &units)?;
        let name = if down { "FLOOR" } else { "CEIL" };
        let given = self.bind(&call.args[0])?.data_type;
        let time = self.argument(name, &call.args[0], Arg::Time)?;
        let name = if down { "FLOOR_TO" } else { "CEIL_TO" };
        let made = Scalar::call(name, vec![time, Scalar::text(unit)], TIMESTAMP_MS);
        let back = given == DataType::Date32 || is_timestamp(&given);
        Ok(if back { convert(made, &given, &self.zone) } else { made })
    }

    fn timestamp_add(&mut self, call: &Call) -> Bound<Scalar> {
        let unit = unit_of(
            &call.args[0],
            &["SECOND", "MINUTE", "HOUR", "DAY", "WEEK", "MONTH", "QUARTER", "YEAR"],
        )?;
        let count = self.bind(&call.args[1])?;
        let ScalarKind::Literal(Datum::Integer(n)) = count.kind else {
            let message = "TIMESTAMPADD needs a whole number as a literal";
            return Err(Diagnostic::new(call.args[1].span, message));
        };
        let time = self.bind(&call.args[2])?;
        if !is_timestamp(&time.data_type) && time.data_type != DataType::Date32 {
            let message = format!("TIMESTAMPADD needs a time, not a {}", sql_name(&time.data_type));
            return Err(Diagnostic::new(call.args[2].span, message));
        }
        let interval = |n: i64, data_type| Scalar::literal(Datum::Integer(n), data_type);
        let by = match unit.as_str() {
            "SECOND" => interval(n * 1000, INTERVAL_MS),
            "MINUTE" => interval(n * 60_000, INTERVAL_MS),
            "HOUR" => interval(n * 3_600_000, INTERVAL_MS),
            "DAY" => interval(n * 86_400_000, INTERVAL_MS),
            "WEEK" => interval(n * 7 * 86_400_000, INTERVAL_MS),
            "MONTH" => interval(n, INTERVAL_MONTHS),
            "QUARTER" => interval(n * 3, INTERVAL_MONTHS),
            _ => interval(n * 12, INTERVAL_MONTHS),
        };
        let wide = if is_timestamp(&time.data_type) {
            time
        } else {
            convert(time, &TIMESTAMP_MS, &self.zone)
        };
        let data_type = wide.data_type.clone();
        Ok(Scalar::call("TIME_ADD", vec![wide, by], data_type))
    }

    fn aggregate_call(&mut self, expr: &Expr, call: &Call) -> Bound<Scalar> {
        let upper = call.name.text.to_uppercase();
        let Some(mut grouping) = self.grouping.take() else {
            let message = format!("{upper} is an aggregate and cannot stand here");
            return Err(Diagnostic::new(expr.span, message));
        };
        let made = self.plan_call(expr, call, &upper);
        let bound = made.map(|(plan, result)| {
            let known = grouping.calls.iter().position(|c| *c == plan);
            let place = known.unwrap_or_else(|| {
                grouping.calls.push(plan.clone());
                grouping.calls.len() - 1
            });
            let column = Scalar::column(grouping.first_call + place, plan.output);
            cast(column, &result, false, &self.zone)
        });
        self.grouping = Some(grouping);
        bound
    }

    /// The call, and the type that SQL gives its result.
    fn plan_call(&mut self, expr: &Expr, call: &Call, name: &str) -> Bound<(CallPlan, DataType)> {
        let filter = match &call.filter {
            Some(filter) => Some(self.boolean(filter, "FILTER")?),
            None => None,
        };
        let function = aggregate(name).unwrap_or(AggregateFunction::Count);
        let count = function == AggregateFunction::Count;
        if call.star {
            if !count {
                return Err(Diagnostic::new(expr.span, format!("{name}(*) does not exist")));
            }
            let plan = CallPlan {
                function: AggregateFunction::CountRows,
                distinct: false,
                arguments: Vec::new(),
                filter,
                output: DataType::Int64,
            };
            return Ok((plan, DataType::Int64));
        }
        if call.args.is_empty() || call.args.len() > 1 && !count {
            return Err(self.wrong_count(expr, call, "1", &format!("{name}(value)")));
        }
        let mut arguments =
            call.args.iter().map(|a| self.bind(a)).collect::<Bound<Vec<Scalar>>>()?;
        if let Some(timed) = arguments.iter().position(Scalar::uses_time) {
            let message = "an aggregate of the current time is not supported";
            return Err(Diagnostic::new(call.args[timed].span, message));
        }
        let result = if count {
            DataType::Int64
        } else {
            result_type(function, name, &call.args[0], &arguments[0].data_type)?
        };
        let mut output = result.clone();
        let spread = !matches!(
            function,
            AggregateFunction::Sum
                | AggregateFunction::Avg
                | AggregateFunction::Min
                | AggregateFunction::Max
                | AggregateFunction::Count
        );
        if spread {
            // Computed in DOUBLE; Flink then cuts it to the argument's type.
            let argument = arguments.remove(0);
            arguments.push(convert(argument, &DataType::Float64, &self.zone));
            output = DataType::Float64;
        }
        Ok((CallPlan { function, distinct: call.distinct, arguments, filter, output }, result))
    }
}

/// Flink's result type of an aggregate.
fn result_type(
    function: AggregateFunction,
    name: &str,
    expr: &Expr,
    argument: &DataType,
) -> Bound<DataType> {
    use AggregateFunction::{Avg, Max, Min, Sum};
    if matches!(function, Min | Max) {
        let ordered = is_number(argument)
            || is_timestamp(argument)
            || matches!(argument, DataType::Utf8 | DataType::Boolean | DataType::Date32)
            || matches!(argument, DataType::Time32(_));
        if ordered {
            return Ok(argument.clone());
        }
        let message = format!("{name} is not defined for a {}", sql_name(argument));
        return Err(Diagnostic::new(expr.span, message));
    }
    match argument {
        DataType::Decimal128(_, s) if function == Sum => Ok(DataType::Decimal128(38, *s)),
        DataType::Decimal128(_, s) => Ok(DataType::Decimal128(38, (*s).max(6))),
        t if is_integer(t) || is_float(t) => Ok(t.clone()),
        other => {
            let what = shown(expr);
            let message = format!("{name} needs a number, but {what} is a {}", sql_name(other));
            let inner = what.trim_matches('`').to_owned();
            let hint = format!("write {name}(CAST({inner} AS DOUBLE))");
            let _ = Avg;
            Err(Diagnostic::new(expr.span, format!("{message}; {hint}")))
        }
    }
}

/// A unit of time among those allowed.
fn unit_of(expr: &Expr, allowed: &[&str]) -> Bound<String> {
    let ExprKind::Value(Value::String(unit)) = &expr.kind else {
        return Err(Diagnostic::new(expr.span, "expected a unit of time"));
    };
    if allowed.contains(&unit.as_str()) {
        return Ok(unit.clone());
    }
    let message = format!("`{unit}` is no unit of time that is known here");
    Err(Diagnostic::new(expr.span, message).meant(unit, allowed.iter().copied()))
}

/// Kept for callers that compare types of both sides of a join.
pub(super) fn joinable(left: &DataType, right: &DataType) -> Option<DataType> {
    common_type(left, right)
}
