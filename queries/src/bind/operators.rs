//! Arithmetic: numbers with Flink's result types, times with intervals.

use arrow::datatypes::DataType;

use super::Bound;
use super::expressions::{ExprBinder, shown};
use crate::ast::Expr;
use crate::diagnostics::Diagnostic;
use crate::plan::{BinaryOp, Datum, Scalar, ScalarKind};
use crate::types::{
    INTERVAL_MS, TIMESTAMP_MS, as_decimal, common_type, convert, decimal_result, is_decimal,
    is_float, is_interval, is_number, is_timestamp, sql_name,
};

fn sign(op: BinaryOp) -> char {
    match op {
        BinaryOp::Plus => '+',
        BinaryOp::Minus => '-',
        BinaryOp::Multiply => '*',
        BinaryOp::Divide => '/',
        _ => '%',
    }
}

impl ExprBinder<'_> {
    /// `left op right`.
    pub(super) fn arithmetic(
        &self,
        whole: &Expr,
        op: BinaryOp,
        (left_expr, left): (&Expr, Scalar),
        (right_expr, right): (&Expr, Scalar),
    ) -> Bound<Scalar> {
        let (a, b) = (left.data_type.clone(), right.data_type.clone());
        if is_interval(&a) || is_interval(&b) {
            return self.with_interval(whole, op, (left_expr, left), (right_expr, right));
        }
        for (expr, side) in [(left_expr, &left), (right_expr, &right)] {
            if !is_number(&side.data_type) && side.data_type != DataType::Null {
                let name = sql_name(&side.data_type);
                let message =
                    format!("`{}` needs numbers, but {} is a {name}", sign(op), shown(expr));
                let hint = "convert it first, for example CAST(… AS DOUBLE)";
                return Err(Diagnostic::new(expr.span, message).hint(hint));
            }
        }
        if is_float(&a) || is_float(&b) {
            let common = common_type(&a, &b).unwrap_or(DataType::Float64);
            let (left, right) =
                (convert(left, &common, &self.zone), convert(right, &common, &self.zone));
            return Ok(Scalar::binary(op, left, right, common));
        }
        if is_decimal(&a) || is_decimal(&b) {
            return Ok(self.decimals(op, left, right));
        }
        let Some(common) = common_type(&a, &b) else { return Ok(Scalar::null(DataType::Int32)) };
        let (left, right) = (self.to(left, &common), self.to(right, &common));
        let made = Scalar::binary(op, left, right, common);
        // The rest of a division has the divisor's type.
        Ok(if op == BinaryOp::Modulo { convert(made, &b, &self.zone) } else { made })
    }

    fn to(&self, scalar: Scalar, data_type: &DataType) -> Scalar {
        convert(scalar, data_type, &self.zone)
    }

    fn decimals(&self, op: BinaryOp, left: Scalar, right: Scalar) -> Scalar {
        let side = |scalar: Scalar| {
            let (p, s) = as_decimal(&scalar.data_type).unwrap_or((1, 0));
            (self.to(scalar, &DataType::Decimal128(p as u8, s as i8)), (p, s))
        };
        let ((left, a), (right, b)) = (side(left), side(right));
        Scalar::binary(op, left, right, decimal_result(sign(op), a, b))
    }

    fn with_interval(
        &self,
        whole: &Expr,
        op: BinaryOp,
        (left_expr, left): (&Expr, Scalar),
        (right_expr, right): (&Expr, Scalar),
    ) -> Bound<Scalar> {
        let (a, b) = (left.data_type.clone(), right.data_type.clone());
        let timelike = |t: &DataType| is_timestamp(t) || *t == DataType::Date32;
        match op {
            BinaryOp::Plus if timelike(&a) => return Ok(self.moved(left, right)),
            BinaryOp::Plus if timelike(&b) => return Ok(self.moved(right, left)),
            BinaryOp::Minus if timelike(&a) => {
                if let Some(negative) = negated(&right) {
                    return Ok(self.moved(left, negative));
                }
            }
            BinaryOp::Multiply | BinaryOp::Plus | BinaryOp::Minus => {
                if let Some(folded) = folded(op, &left, &right) {
                    return Ok(folded);
                }
            }
            _ => {}
        }
        let (culprit, other) = if is_interval(&a) { (right_expr, &b) } else { (left_expr, &a) };
        let name = sql_name(other);
        let does =
            if op == BinaryOp::Plus { "add an INTERVAL to" } else { "combine an INTERVAL and" };
        let message =
            format!("cannot {does} {}, which is a {name} (`{}`)", shown(culprit), sign(op));
        let error = Diagnostic::new(whole.span, message);
        let name = shown(culprit);
        Err(match other {
            DataType::Utf8 => {
                let name = name.trim_matches('`');
                error.hint(format!("convert it first: TO_TIMESTAMP({name})"))
            }
            _ => error,
        })
    }

    /// A time and a literal interval.
    fn moved(&self, time: Scalar, by: Scalar) -> Scalar {
        let time = match time.data_type {
            DataType::Date32 => self.to(time, &TIMESTAMP_MS),
            _ => time,
        };
        let data_type = time.data_type.clone();
        Scalar::call("TIME_ADD", vec![time, by], data_type)
    }
}

/// The other way round.
fn negated(interval: &Scalar) -> Option<Scalar> {
    match interval.kind {
        ScalarKind::Literal(Datum::Integer(n)) => {
            Some(Scalar::literal(Datum::Integer(n.checked_neg()?), interval.data_type.clone()))
        }
        _ => None,
    }
}

/// Intervals among themselves, as literals.
fn folded(op: BinaryOp, left: &Scalar, right: &Scalar) -> Option<Scalar> {
    let value = |s: &Scalar| match s.kind {
        ScalarKind::Literal(Datum::Integer(n)) => Some(n),
        _ => None,
    };
    let (a, b) = (value(left)?, value(right)?);
    let interval = if is_interval(&left.data_type) { &left.data_type } else { &right.data_type };
    let result = match op {
        BinaryOp::Multiply if left.data_type != right.data_type => a.checked_mul(b)?,
        BinaryOp::Plus if left.data_type == right.data_type => a.checked_add(b)?,
        BinaryOp::Minus if left.data_type == right.data_type => a.checked_sub(b)?,
        _ => return None,
    };
    Some(Scalar::literal(Datum::Integer(result), interval.clone()))
}

/// A literal interval in milliseconds.
pub(super) fn interval_ms(scalar: &Scalar) -> Option<i64> {
    match scalar.kind {
        ScalarKind::Literal(Datum::Integer(n)) if scalar.data_type == INTERVAL_MS => Some(n),
        _ => None,
    }
}
