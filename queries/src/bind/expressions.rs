//! Scalar expressions over a scope: names to columns, implicit conversions spelled out.

use arrow::datatypes::DataType;

use super::{Bound, Planner, ScopeColumn};
use crate::ast::{Expr, ExprKind, Op};
use crate::diagnostics::Diagnostic;
use crate::plan::{BinaryOp, CallPlan, Datum, Scalar, ScalarKind};
use crate::tokens::Name;
use crate::types::{cast, common_type, convert, is_number, sql_name};

/// What grouping does to expressions above it.
#[derive(Debug)]
pub(crate) struct Grouping {
    /// Grouping expressions over the input, each with what it became in the output; none for one
    /// that isn't in this grouping set.
    pub(crate) keys: Vec<(Scalar, Option<Scalar>)>,
    /// Where the calls' columns begin.
    pub(crate) first_call: usize,
    /// Calls found so far.
    pub(crate) calls: Vec<CallPlan>,
    /// The window's begin and end among the output, and the time attribute's type.
    pub(crate) window: Option<(usize, usize, DataType)>,
    /// The arguments of the group function, as bound.
    pub(crate) function: Option<(String, Vec<Scalar>)>,
}

/// Binds expressions over one scope.
pub(crate) struct ExprBinder<'p> {
    pub(crate) scope: &'p [ScopeColumn],
    pub(crate) zone: String,
    /// What the rows come from, for messages.
    pub(crate) from: String,
    pub(crate) grouping: Option<Grouping>,
}

impl Planner<'_> {
    /// A binder over these columns.
    pub(crate) fn binder<'s>(&self, scope: &'s [ScopeColumn], from: &str) -> ExprBinder<'s> {
        ExprBinder { scope, zone: self.time_zone(), from: from.to_owned(), grouping: None }
    }
}

pub(crate) fn shown(expr: &Expr) -> String {
    match &expr.kind {
        ExprKind::Path(names) => {
            let names: Vec<&str> = names.iter().map(|n| n.text.as_str()).collect();
            format!("`{}`", names.join("."))
        }
        _ => "the value".to_owned(),
    }
}

impl ExprBinder<'_> {
    /// Binds an expression.
    pub(crate) fn bind(&mut self, expr: &Expr) -> Bound<Scalar> {
        if let Some(column) = self.grouped(expr) {
            return Ok(column);
        }
        match &expr.kind {
            ExprKind::Value(value) => super::literals::literal(value, expr.span),
            ExprKind::Path(names) => self.path(expr, names),
            ExprKind::Binary { op, left, right, .. } => self.binary(expr, *op, left, right),
            ExprKind::Not(inner) => Ok(negation(self.boolean(inner, "NOT")?)),
            ExprKind::Negate(inner) => self.negate(inner),
            ExprKind::IsNull { expr, negated } => {
                let is = boolean(ScalarKind::IsNull(Box::new(self.bind(expr)?)));
                Ok(if *negated { negation(is) } else { is })
            }
            ExprKind::IsTruth { expr, truth, negated } => {
                let inner = self.boolean(expr, "IS TRUE")?;
                let literal = Scalar::literal(Datum::Boolean(*truth), DataType::Boolean);
                let op = if *negated { BinaryOp::DistinctFrom } else { BinaryOp::NotDistinctFrom };
                Ok(Scalar::binary(op, inner, literal, DataType::Boolean))
            }
            ExprKind::IsDistinct { left, right, negated } => {
                let op = if *negated { BinaryOp::NotDistinctFrom } else { BinaryOp::DistinctFrom };
                let (left, right) = self.matched(expr, left, right)?;
                Ok(Scalar::binary(op, left, right, DataType::Boolean))
            }
            ExprKind::In { expr: inner, list, negated } => self.in_list(inner, list, *negated),
            ExprKind::Between { expr: inner, low, high, negated } => {
                let low = self.compare(expr, BinaryOp::GtEq, inner, low)?;
                let high = self.compare(expr, BinaryOp::LtEq, inner, high)?;
                let both = Scalar::and(low, high);
                Ok(if *negated { negation(both) } else { both })
            }
            ExprKind::Like { expr: inner, pattern, escape, similar, negated } => {
                let like = self.like(inner, pattern, escape.as_ref(), *similar)?;
                Ok(if *negated { negation(like) } else { like })
            }
            ExprKind::Case { operand, whens, otherwise } => {
                self.case(operand.as_deref(), whens, otherwise.as_deref())
            }
            ExprKind::Cast { expr: inner, data_type, safe } => self.cast(inner, data_type, *safe),
            ExprKind::Call(call) => self.call(expr, call),
            ExprKind::Field { expr: inner, name } => {
                let row = self.bind(inner)?;
                field(row, name)
            }
            ExprKind::Element { .. } => {
                Err(Diagnostic::new(expr.span, "access by [index] is not supported yet"))
            }
            ExprKind::Row(_) => {
                Err(Diagnostic::new(expr.span, "the ROW constructor is not supported yet"))
            }
        }
    }

    /// The column that a grouping expression became.
    fn grouped(&mut self, expr: &Expr) -> Option<Scalar> {
        if matches!(expr.kind, ExprKind::Value(_)) {
            return None;
        }
        let grouping = self.grouping.take()?;
        // Bound without grouping; an aggregate within makes that an error, and then it is no key.
        let plain = self.bind(expr).ok();
        let key = plain.and_then(|p| grouping.keys.iter().find(|(key, _)| *key == p).cloned());
        self.grouping = Some(grouping);
        key.map(|(key, became)| became.unwrap_or_else(|| Scalar::null(key.data_type)))
    }

    fn path(&mut self, expr: &Expr, names: &[Name]) -> Bound<Scalar> {
        let (column, rest) = self.resolve(names)?;
        if self.grouping.is_some() {
            let name = &self.scope[column].name;
            let message = format!("column `{name}` is neither in GROUP BY nor inside an aggregate");
            let hint = format!("add `{name}` to GROUP BY, or write MAX({name})");
            return Err(Diagnostic::new(expr.span, message).hint(hint));
        }
        let data_type = self.scope[column].data_type.clone();
        rest.iter().try_fold(Scalar::column(column, data_type), field)
    }

    /// The column that a path names, and the fields behind it.
    pub(crate) fn resolve<'n>(&self, names: &'n [Name]) -> Bound<(usize, &'n [Name])> {
        let first = &names[0];
        if let Some(second) = names.get(1) {
            let known = self.scope.iter().any(|c| c.table.as_deref() == Some(&first.text));
            if known {
                let found =
                    self.find(|c| c.table.as_deref() == Some(&first.text) && c.name == second.text);
                return match found.as_slice() {
                    [] => Err(self.unknown(second, Some(&first.text))),
                    [column, ..] => Ok((*column, &names[2..])),
                };
            }
        }
        let found = self.find(|c| c.name == first.text);
        match found.as_slice() {
            [column] => Ok((*column, &names[1..])),
            [] if names.len() > 1 => {
                let tables = self.scope.iter().filter_map(|c| c.table.as_deref());
                let message = format!("there is no table or column `{}` here", first.text);
                let columns = self.scope.iter().map(|c| c.name.as_str());
                Err(Diagnostic::new(first.span, message).meant(&first.text, tables.chain(columns)))
            }
            [] => Err(self.unknown(first, None)),
            several => {
                let options: Vec<String> = several
                    .iter()
                    .filter_map(|&c| self.scope[c].table.as_ref())
                    .map(|table| format!("`{table}.{}`", first.text))
                    .collect();
                let message = format!("column `{}` is ambiguous", first.text);
                let options = options.join(" or ");
                Err(Diagnostic::new(first.span, format!("{message}: write {options}")))
            }
        }
    }

    fn find(&self, accept: impl Fn(&ScopeColumn) -> bool) -> Vec<usize> {
        (0..self.scope.len()).filter(|&i| accept(&self.scope[i])).collect()
    }

    fn unknown(&self, name: &Name, table: Option<&str>) -> Diagnostic {
        let from = table.unwrap_or(&self.from);
        let message = format!("column `{}` does not exist in `{from}`", name.text);
        let within = self.scope.iter().filter(|c| table.is_none() || c.table.as_deref() == table);
        let names: Vec<&str> = within.map(|c| c.name.as_str()).collect();
        let error = Diagnostic::new(name.span, message).meant(&name.text, names.iter().copied());
        if error.label.is_some() || names.is_empty() || names.len() > 20 {
            return error;
        }
        error.detail(format!("its columns are {}", names.join(", ")))
    }

    pub(crate) fn boolean(&mut self, expr: &Expr, what: &str) -> Bound<Scalar> {
        let bound = self.bind(expr)?;
        if bound.data_type == DataType::Null {
            return Ok(Scalar::null(DataType::Boolean));
        }
        if bound.data_type != DataType::Boolean {
            let name = sql_name(&bound.data_type);
            let message = format!("{what} needs a BOOLEAN, but {} is a {name}", shown(expr));
            return Err(Diagnostic::new(expr.span, message));
        }
        Ok(bound)
    }

    /// Both sides in their common type.
    fn matched(&mut self, whole: &Expr, left: &Expr, right: &Expr) -> Bound<(Scalar, Scalar)> {
        let (l, r) = (self.bind(left)?, self.bind(right)?);
        let Some(common) = self.comparable(&l, &r) else {
            let (a, b) = (sql_name(&l.data_type), sql_name(&r.data_type));
            let message = format!("a {a} cannot be compared with a {b}");
            let hint = "convert one side with CAST";
            return Err(Diagnostic::new(whole.span, message).hint(hint));
        };
        Ok((convert(l, &common, &self.zone), convert(r, &common, &self.zone)))
    }

    /// The type in which two values are compared; Flink also compares strings with numbers and
    /// times.
    pub(crate) fn comparable(&self, left: &Scalar, right: &Scalar) -> Option<DataType> {
        let (a, b) = (&left.data_type, &right.data_type);
        if let Some(common) = common_type(a, b) {
            return Some(common);
        }
        let (text, other) = match (a, b) {
            (DataType::Utf8, other) | (other, DataType::Utf8) => (true, other),
            (_, other) => (false, other),
        };
        let readable = is_number(other)
            || matches!(other, DataType::Timestamp(_, _) | DataType::Date32 | DataType::Boolean);
        if !text || !readable {
            return None;
        }
        Some(if is_number(other) { DataType::Float64 } else { other.clone() })
    }

    fn compare(&mut self, whole: &Expr, op: BinaryOp, left: &Expr, right: &Expr) -> Bound<Scalar> {
        let (left, right) = self.matched(whole, left, right)?;
        Ok(Scalar::binary(op, left, right, DataType::Boolean))
    }

    fn binary(&mut self, expr: &Expr, op: Op, left: &Expr, right: &Expr) -> Bound<Scalar> {
        let compared = |op| (op, true);
        let (op, comparison) = match op {
            Op::And | Op::Or => {
                let sign = op.sign();
                let (left, right) = (self.boolean(left, sign)?, self.boolean(right, sign)?);
                let op = if op == Op::And { BinaryOp::And } else { BinaryOp::Or };
                return Ok(Scalar::binary(op, left, right, DataType::Boolean));
            }
            Op::Eq => compared(BinaryOp::Eq),
            Op::NotEq => compared(BinaryOp::NotEq),
            Op::Lt => compared(BinaryOp::Lt),
            Op::LtEq => compared(BinaryOp::LtEq),
            Op::Gt => compared(BinaryOp::Gt),
            Op::GtEq => compared(BinaryOp::GtEq),
            Op::Concat => {
                let args = [left, right].map(|side| self.text(side, "||"));
                let [left, right] = args;
                return Ok(Scalar::call("CONCAT", vec![left?, right?], DataType::Utf8));
            }
            Op::Plus => (BinaryOp::Plus, false),
            Op::Minus => (BinaryOp::Minus, false),
            Op::Multiply => (BinaryOp::Multiply, false),
            Op::Divide => (BinaryOp::Divide, false),
            Op::Modulo => (BinaryOp::Modulo, false),
        };
        if comparison {
            return self.compare(expr, op, left, right);
        }
        let (l, r) = (self.bind(left)?, self.bind(right)?);
        self.arithmetic(expr, op, (left, l), (right, r))
    }

    /// A string, numbers and others converted.
    fn text(&mut self, expr: &Expr, what: &str) -> Bound<Scalar> {
        let bound = self.bind(expr)?;
        match bound.data_type {
            DataType::Struct(_) | DataType::List(_) | DataType::Map(_, _) => {
                let name = sql_name(&bound.data_type);
                let message = format!("{what} needs a STRING, but {} is a {name}", shown(expr));
                Err(Diagnostic::new(expr.span, message))
            }
            _ => Ok(convert(bound, &DataType::Utf8, &self.zone)),
        }
    }

    fn negate(&mut self, inner: &Expr) -> Bound<Scalar> {
        let bound = self.bind(inner)?;
        if let ScalarKind::Literal(Datum::Integer(value)) = bound.kind {
            return Ok(Scalar::literal(Datum::Integer(value.wrapping_neg()), bound.data_type));
        }
        if !is_number(&bound.data_type) {
            let name = sql_name(&bound.data_type);
            let message = format!("`-` needs a number, but {} is a {name}", shown(inner));
            return Err(Diagnostic::new(inner.span, message));
        }
        let zero = Scalar::literal(Datum::Integer(0), DataType::Int32);
        let zero = convert(zero, &bound.data_type, &self.zone);
        let data_type = bound.data_type.clone();
        Ok(Scalar::binary(BinaryOp::Minus, zero, bound, data_type))
    }

    fn in_list(&mut self, inner: &Expr, list: &[Expr], negated: bool) -> Bound<Scalar> {
        let mut value = self.bind(inner)?;
        let mut items = Vec::new();
        for item in list {
            let bound = self.bind(item)?;
            let Some(common) = self.comparable(&value, &bound) else {
                let (a, b) = (sql_name(&value.data_type), sql_name(&bound.data_type));
                let message = format!("a {a} cannot be compared with a {b}");
                return Err(Diagnostic::new(item.span, message));
            };
            value = convert(value, &common, &self.zone);
            items.push(bound);
        }
        let common = value.data_type.clone();
        let zone = self.zone.clone();
        let mut args = vec![value];
        args.extend(items.into_iter().map(|item| convert(item, &common, &zone)));
        let is_in = Scalar::call("IN", args, DataType::Boolean);
        Ok(if negated { negation(is_in) } else { is_in })
    }

    fn like(
        &mut self,
        inner: &Expr,
        pattern: &Expr,
        escape: Option<&Name>,
        similar: bool,
    ) -> Bound<Scalar> {
        let value = self.text(inner, "LIKE")?;
        let mut with = self.text(pattern, "LIKE")?;
        if similar {
            return Ok(Scalar::call("SIMILAR", vec![value, with], DataType::Boolean));
        }
        // Arrow's escape is the backslash; Flink has none unless ESCAPE names one.
        match &mut with.kind {
            ScalarKind::Literal(Datum::Text(text)) => {
                let escape = escape.and_then(|e| e.text.chars().next());
                *text = escaped(text, escape);
            }
            _ if escape.is_some() => {
                let message = "ESCAPE needs a pattern that is a literal";
                return Err(Diagnostic::new(pattern.span, message));
            }
            _ => {
                let slash = vec![with, Scalar::text("\\"), Scalar::text("\\\\")];
                with = Scalar::call("REPLACE", slash, DataType::Utf8);
            }
        }
        Ok(Scalar::call("LIKE", vec![value, with], DataType::Boolean))
    }

    fn case(
        &mut self,
        operand: Option<&Expr>,
        whens: &[(Expr, Expr)],
        otherwise: Option<&Expr>,
    ) -> Bound<Scalar> {
        let mut conditions = Vec::new();
        let mut values = Vec::new();
        for (when, then) in whens {
            conditions.push(match operand {
                Some(operand) => self.compare(when, BinaryOp::Eq, operand, when)?,
                None => self.boolean(when, "WHEN")?,
            });
            values.push((self.bind(then)?, then.span));
        }
        if let Some(otherwise) = otherwise {
            values.push((self.bind(otherwise)?, otherwise.span));
        }
        let mut values = self.alike(values, "CASE")?;
        let last = match otherwise {
            Some(_) => values.pop().unwrap_or_else(|| Scalar::null(DataType::Null)),
            None => Scalar::null(values[0].data_type.clone()),
        };
        let data_type = last.data_type.clone();
        let whens = conditions.into_iter().zip(values).collect();
        Ok(Scalar { data_type, kind: ScalarKind::Case(whens, Box::new(last)) })
    }

    /// All values in their common type.
    pub(crate) fn alike(
        &self,
        values: Vec<(Scalar, crate::diagnostics::Span)>,
        what: &str,
    ) -> Bound<Vec<Scalar>> {
        let mut common = DataType::Null;
        for (value, span) in &values {
            let Some(both) = common_type(&common, &value.data_type) else {
                let (a, b) = (sql_name(&common), sql_name(&value.data_type));
                let message = format!("{what} has no common type for {a} and {b}");
                return Err(Diagnostic::new(*span, message).hint("convert with CAST"));
            };
            common = both;
        }
        let zone = &self.zone;
        Ok(values.into_iter().map(|(value, _)| convert(value, &common, zone)).collect())
    }

    fn cast(&mut self, inner: &Expr, to: &DataType, safe: bool) -> Bound<Scalar> {
        let bound = self.bind(inner)?;
        let scalar = |t: &DataType| !t.is_nested();
        let from = &bound.data_type;
        let numeric_time = is_number(from) && crate::types::is_timestamp(to)
            || is_number(to) && crate::types::is_timestamp(from);
        if from != to && (!scalar(from) || !scalar(to)) || numeric_time {
            let (a, b) = (sql_name(from), sql_name(to));
            let error = Diagnostic::new(inner.span, format!("cannot cast a {a} to {b}"));
            return Err(if numeric_time {
                error.hint("use TO_TIMESTAMP_LTZ(number, 3) or UNIX_TIMESTAMP(string)")
            } else {
                error
            });
        }
        if *from == DataType::Utf8 && matches!(to, DataType::Timestamp(_, None)) {
            return Ok(self.text_to_time(bound, to, safe));
        }
        Ok(cast(bound, to, safe, &self.zone))
    }

    fn text_to_time(&self, text: Scalar, to: &DataType, safe: bool) -> Scalar {
        let text = if safe { text } else { Scalar::call("BTRIM", vec![text], DataType::Utf8) };
        Scalar { data_type: to.clone(), kind: ScalarKind::Cast(Box::new(text), safe) }
    }
}

pub(crate) fn boolean(kind: ScalarKind) -> Scalar {
    Scalar { data_type: DataType::Boolean, kind }
}

pub(crate) fn negation(inner: Scalar) -> Scalar {
    boolean(ScalarKind::Not(Box::new(inner)))
}

fn escaped(pattern: &str, escape: Option<char>) -> String {
    let mut out = String::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        if Some(c) == escape {
            out.push('\\');
            out.extend(chars.next());
        } else if c == '\\' {
            out.push_str("\\\\");
        } else {
            out.push(c);
        }
    }
    out
}

fn field(row: Scalar, name: &Name) -> Bound<Scalar> {
    let DataType::Struct(fields) = &row.data_type else {
        let of = sql_name(&row.data_type);
        let message = format!("`.{}` needs a ROW, but here is a {of}", name.text);
        return Err(Diagnostic::new(name.span, message));
    };
    let Some((_, found)) = fields.find(&name.text) else {
        let message = format!("the row has no field `{}`", name.text);
        let names = fields.iter().map(|f| f.name().as_str());
        return Err(Diagnostic::new(name.span, message).meant(&name.text, names));
    };
    let data_type = found.data_type().clone();
    Ok(Scalar { data_type, kind: ScalarKind::Field(Box::new(row), name.text.clone()) })
}
