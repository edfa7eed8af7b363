//! Windows: table functions, group functions, and the columns that they give.

use arrow::datatypes::DataType;
use weir_engine::time::Millis;
use weir_operators::window::WindowShape;

use super::expressions::{ExprBinder, shown};
use super::operators::interval_ms;
use super::{Bound, Pending, Planner, Relation, Role, ScopeColumn, WindowInfo, in_words};
use crate::ast::{Call, Expr, ExprKind, Factor, WindowCall};
use crate::diagnostics::{Diagnostic, Span};
use crate::plan::{Datum, Scalar, ScalarKind, WindowKind};
use crate::types::{INTERVAL_MS, TIMESTAMP_MS, convert};

/// Whether a call is TUMBLE, HOP or SESSION as a group function.
pub(super) fn is_group_function(expr: &Expr) -> Option<&Call> {
    match &expr.kind {
        ExprKind::Call(call)
            if ["TUMBLE", "HOP", "SESSION"].contains(&call.name.text.to_uppercase().as_str()) =>
        {
            Some(call)
        }
        _ => None,
    }
}

impl Planner<'_> {
    /// `TUMBLE(TABLE t, DESCRIPTOR(ts), …)`: the rows of `t`, with windows that wait for GROUP BY.
    pub(super) fn window_relation(
        &mut self,
        call: &WindowCall,
        factor: &Factor,
    ) -> Bound<Relation> {
        let input = self.factor(&call.input)?;
        let mut relation = self.settled(input, factor.span)?;
        let names = [call.time.clone()];
        let from = relation.name.clone();
        let (time, _) = self.binder(&relation.scope, &from).resolve(&names)?;
        let function = call.function.text.to_uppercase();
        self.require_time(&relation, time, &function, call.time.span)?;
        let sizes = self.intervals(call, &relation)?;
        let span = call.function.span;
        let kind = window_kind(&function, &sizes, span, true)?;
        self.require_alignment(&relation.scope[time], kind, span)?;
        let mut partition_by = Vec::new();
        for name in &call.partition_by {
            let names = [name.clone()];
            partition_by.push(self.binder(&relation.scope, &from).resolve(&names)?.0);
        }
        if function != "SESSION" && !partition_by.is_empty() {
            let message = format!("PARTITION BY belongs to SESSION, not to {function}");
            return Err(Diagnostic::new(call.partition_by[0].span, message));
        }
        let time_type = relation.scope[time].data_type.clone();
        let is_shifted = is_shifted(&time_type, &self.time_zone());
        let info = std::rc::Rc::new(WindowInfo { kind, keys: 0, is_shifted });
        for (name, role, data_type, is_time) in [
            ("window_start", Role::Start(info.clone()), TIMESTAMP_MS, false),
            ("window_end", Role::End(info.clone()), TIMESTAMP_MS, false),
            ("window_time", Role::Time(info.clone()), time_type, true),
        ] {
            relation.scope.push(ScopeColumn {
                role,
                is_time,
                ..ScopeColumn::plain(name, data_type)
            });
        }
        relation.pending = Some(Pending { kind, time, function, partition_by });
        Ok(relation)
    }

    /// The literal intervals of a window table function, with their places, in order.
    fn intervals(&self, call: &WindowCall, relation: &Relation) -> Bound<Vec<(Millis, Span)>> {
        let function = call.function.text.to_uppercase();
        let order: &[&str] = match function.as_str() {
            "HOP" => &["SLIDE", "SIZE", "OFFSET"],
            "CUMULATE" => &["STEP", "SIZE", "OFFSET"],
            "SESSION" => &["GAP"],
            _ => &["SIZE", "OFFSET"],
        };
        let mut found: Vec<Option<(Millis, Span)>> = vec![None; order.len()];
        for (i, (label, expr)) in call.arguments.iter().enumerate() {
            let place = match label {
                None => i,
                Some(name) => {
                    let wanted = name.text.to_uppercase();
                    order.iter().position(|n| *n == wanted).ok_or_else(|| {
                        let message = format!("{function} has no argument `{}`", name.text);
                        Diagnostic::new(name.span, message).meant(&name.text, order.iter().copied())
                    })?
                }
            };
            let Some(slot) = found.get_mut(place) else {
                let message = format!("{function} takes {} intervals at most", order.len());
                return Err(Diagnostic::new(expr.span, message));
            };
            let bound = self.binder(&relation.scope, &relation.name).bind(expr)?;
            *slot = Some((literal_interval(&bound, expr, &function)?, expr.span));
        }
        let given: Vec<(Millis, Span)> = found.into_iter().map_while(|f| f).collect();
        Ok(given)
    }

    /// Windows need a time attribute.
    fn require_time(
        &self,
        relation: &Relation,
        column: usize,
        function: &str,
        span: Span,
    ) -> Bound<()> {
        let column = &relation.scope[column];
        if column.is_time {
            return Ok(());
        }
        Err(no_time(column, &relation.name, function, span))
    }

    /// Windows over instants are laid out in the session's zone: in another than UTC, only those
    /// that do not depend on where the day begins.
    fn require_alignment(&self, column: &ScopeColumn, kind: WindowKind, span: Span) -> Bound<()> {
        let zoned = matches!(column.data_type, DataType::Timestamp(_, Some(_)));
        let zone = self.time_zone();
        let quarter = |ms: Millis| 900_000 % ms == 0 || ms == 900_000;
        let harmless = match kind {
            WindowKind::Session(_) => true,
            WindowKind::Fixed(WindowShape::Tumble { size, .. }) => quarter(size),
            WindowKind::Fixed(WindowShape::Hop { size, slide, .. }) => {
                quarter(slide) && size % slide == 0
            }
            WindowKind::Fixed(WindowShape::Cumulate { size, .. }) => quarter(size),
        };
        if !zoned || zone == "UTC" || harmless {
            return Ok(());
        }
        let message = format!(
            "windows longer than 15 minutes over a TIMESTAMP_LTZ are only supported in UTC, \
             not in {zone}"
        );
        let hint = "set 'table.local-time-zone' to UTC, or use a TIMESTAMP(3) column";
        Err(Diagnostic::new(span, message).hint(hint))
    }

    /// A group function: its windows and its time column.
    pub(super) fn group_window(
        &self,
        relation: &Relation,
        expr: &Expr,
        call: &Call,
    ) -> Bound<(WindowKind, usize, Vec<Scalar>)> {
        let function = call.name.text.to_uppercase();
        let names = match call.args.first().map(|a| &a.kind) {
            Some(ExprKind::Path(names)) => names,
            _ => {
                let message = format!("{function} needs a time attribute as its first argument");
                let span = call.args.first().map_or(expr.span, |a| a.span);
                return Err(Diagnostic::new(span, message));
            }
        };
        let mut binder = self.binder(&relation.scope, &relation.name);
        let (time, _) = binder.resolve(names)?;
        self.require_time(relation, time, &function, call.args[0].span)?;
        let mut sizes = Vec::new();
        let mut bound = vec![binder.bind(&call.args[0])?];
        for arg in &call.args[1..] {
            let scalar = binder.bind(arg)?;
            sizes.push((literal_interval(&scalar, arg, &function)?, arg.span));
            bound.push(scalar);
        }
        let kind = window_kind(&function, &sizes, expr.span, false)?;
        self.require_alignment(&relation.scope[time], kind, expr.span)?;
        Ok((kind, time, bound))
    }

    /// A relation whose windows have been laid out: of TUMBLE, row by row; of others an error.
    pub(super) fn settled(&mut self, relation: Relation, span: Span) -> Bound<Relation> {
        let Some(pending) = &relation.pending else { return Ok(relation) };
        let WindowKind::Fixed(WindowShape::Tumble { size, offset }) = pending.kind else {
            let message = format!(
                "{} without GROUP BY window_start, window_end is not supported yet",
                pending.function
            );
            let hint = "group by window_start, window_end; only TUMBLE works without";
            return Err(Diagnostic::new(span, message).hint(hint));
        };
        let arity = relation.arity();
        let mut project: Vec<Scalar> =
            (0..arity).map(|i| Scalar::column(i, relation.scope[i].data_type.clone())).collect();
        let number = |n| Scalar::literal(Datum::Integer(n), DataType::Int64);
        let zone = self.time_zone();
        let time = project[pending.time].clone();
        let time_type = time.data_type.clone();
        let local = convert(time, &TIMESTAMP_MS, &zone);
        let args = vec![local, number(size), number(offset)];
        let start = Scalar::call("WINDOW_START", args, TIMESTAMP_MS);
        project.push(start.clone());
        project.push(moved(start.clone(), size));
        project.push(convert(moved(start, size - 1), &time_type, &zone));
        let columns = relation.scope.iter().map(ScopeColumn::plan).collect();
        let node = crate::plan::Node::RowWise {
            input: relation.input,
            filter: None,
            project: Some(project),
        };
        let input = self.add(node, columns);
        Ok(Relation { input, pending: None, ..relation })
    }
}

/// A time some milliseconds later.
pub(super) fn moved(time: Scalar, by: Millis) -> Scalar {
    let data_type = time.data_type.clone();
    let by = Scalar::literal(Datum::Integer(by), INTERVAL_MS);
    Scalar::call("TIME_ADD", vec![time, by], data_type)
}

/// Why a column is no time attribute, and what to do.
pub(super) fn no_time(column: &ScopeColumn, from: &str, what: &str, span: Span) -> Diagnostic {
    let name = &column.name;
    let message = format!("{what} needs a time attribute, but `{name}` has no watermark");
    let table = column.table.as_deref().unwrap_or(from);
    let hint = format!(
        "add to `{table}`: WATERMARK FOR {name} AS {name} - INTERVAL '5' SECOND; a watermark is \
         kept by filters, windows and temporal joins, not by computing with the column"
    );
    Diagnostic::new(span, message).hint(hint)
}

fn literal_interval(bound: &Scalar, expr: &Expr, function: &str) -> Bound<Millis> {
    interval_ms(bound).ok_or_else(|| {
        let message = format!(
            "{function} needs a literal interval of days to seconds here, not {}",
            shown(expr)
        );
        Diagnostic::new(expr.span, message).hint("write for example INTERVAL '5' MINUTE")
    })
}

/// The windows that intervals describe, or what is wrong with them.
fn window_kind(
    function: &str,
    sizes: &[(Millis, Span)],
    span: Span,
    table_function: bool,
) -> Bound<WindowKind> {
    let positive = |(ms, at): (Millis, Span), what: &str| {
        if ms > 0 {
            return Ok(ms);
        }
        let message =
            format!("the {what} of a window must be positive, here it is {}", in_words(ms));
        Err(Diagnostic::new(at, message))
    };
    let get = |i: usize, what: &str| {
        sizes.get(i).copied().map(|s| positive(s, what)).unwrap_or_else(|| {
            let place = ["second", "third", "fourth"][i.min(2)];
            let usage = usage(function, table_function);
            let message = format!("{function} needs a {what} as its {place} argument: {usage}");
            Err(Diagnostic::new(span, message))
        })
    };
    let offset = |i: usize| sizes.get(i).map_or(0, |&(ms, _)| ms);
    let shape = match function {
        "SESSION" => return Ok(WindowKind::Session(get(0, "gap")?)),
        "HOP" => {
            let (slide, size) = (get(0, "slide")?, get(1, "size")?);
            if table_function && size % slide != 0 {
                let message = if slide > size {
                    format!(
                        "the slide ({}) is larger than the size ({}), so rows would fall between \
                         the windows; HOP takes the slide first, then the size",
                        in_words(slide),
                        in_words(size)
                    )
                } else {
                    format!(
                        "the size ({}) must be a multiple of the slide ({}) in TABLE(HOP(…))",
                        in_words(size),
                        in_words(slide)
                    )
                };
                return Err(Diagnostic::new(sizes[0].1, message));
            }
            WindowShape::Hop { size, slide, offset: offset(2) }
        }
        "CUMULATE" => {
            let (step, size) = (get(0, "step")?, get(1, "size")?);
            if size % step != 0 {
                let message = format!(
                    "the size ({}) must be a multiple of the step ({})",
                    in_words(size),
                    in_words(step)
                );
                return Err(Diagnostic::new(sizes[0].1, message));
            }
            WindowShape::Cumulate { size, step, offset: offset(2) }
        }
        _ => WindowShape::Tumble { size: get(0, "size")?, offset: offset(1) },
    };
    Ok(WindowKind::Fixed(shape))
}

fn usage(function: &str, table_function: bool) -> String {
    let intervals = match function {
        "HOP" | "CUMULATE" => "INTERVAL '1' MINUTE, INTERVAL '10' MINUTE",
        _ => "INTERVAL '10' MINUTE",
    };
    if table_function {
        format!("{function}(TABLE t, DESCRIPTOR(ts), {intervals})")
    } else {
        format!("{function}(ts, {intervals})")
    }
}

impl ExprBinder<'_> {
    /// TUMBLE_START and its kin, and GROUPING; `None` for other functions.
    pub(super) fn window_part(
        &mut self,
        expr: &Expr,
        call: &Call,
        upper: &str,
    ) -> Bound<Option<Scalar>> {
        if matches!(upper, "GROUPING" | "GROUPING_ID") {
            return self.grouping_id(expr, call).map(Some);
        }
        if matches!(upper, "TUMBLE" | "HOP" | "SESSION" | "CUMULATE") {
            let message = format!("{upper} belongs into GROUP BY, or into FROM TABLE({upper}(…))");
            return Err(Diagnostic::new(expr.span, message));
        }
        let parts = ["START", "END", "ROWTIME", "PROCTIME"];
        let found = upper.split_once('_').filter(|(function, part)| {
            matches!(*function, "TUMBLE" | "HOP" | "SESSION") && parts.contains(part)
        });
        let Some((function, part)) = found else { return Ok(None) };
        let missing = || {
            let message = format!("{upper} needs the same {function}(…) in GROUP BY");
            Diagnostic::new(expr.span, message)
        };
        let grouping = self.grouping.take().ok_or_else(missing)?;
        let args: Bound<Vec<Scalar>> = call.args.iter().map(|a| self.bind(a)).collect();
        let same = match (&grouping.function, args) {
            (Some((name, bound)), Ok(args)) => name == function && *bound == args,
            _ => false,
        };
        let window = grouping.window.clone();
        self.grouping = Some(grouping);
        let Some((start, end, time_type)) = window.filter(|_| same) else { return Err(missing()) };
        let begin = Scalar::column(start, TIMESTAMP_MS);
        let finish = Scalar::column(end, TIMESTAMP_MS);
        Ok(Some(match part {
            "START" => self.to_zone(begin, &time_type),
            "END" => self.to_zone(finish, &time_type),
            "ROWTIME" => {
                let last = moved(finish, -1);
                convert(last, &time_type, "UTC")
            }
            _ => {
                let message = format!("{upper} is not supported: windows are in event time");
                return Err(Diagnostic::new(expr.span, message));
            }
        }))
    }

    /// Begin and end of windows over instants are shown by the session's clocks.
    fn to_zone(&self, time: Scalar, time_type: &DataType) -> Scalar {
        in_zone(time, time_type, &self.zone)
    }

    /// A number of one bit an argument, 1 where it is not grouped by.
    fn grouping_id(&mut self, expr: &Expr, call: &Call) -> Bound<Scalar> {
        let Some(grouping) = self.grouping.take() else {
            let message = "GROUPING_ID needs GROUP BY with GROUPING SETS, ROLLUP or CUBE";
            return Err(Diagnostic::new(expr.span, message));
        };
        let mut id = 0;
        let mut wrong = None;
        for arg in &call.args {
            let bound = self.bind(arg)?;
            match grouping.keys.iter().find(|(key, _)| *key == bound) {
                Some((_, place)) => id = id * 2 + i64::from(place.is_none()),
                None => wrong = Some(arg.span),
            }
        }
        self.grouping = Some(grouping);
        match wrong {
            Some(span) => Err(Diagnostic::new(span, "GROUPING_ID of what is not in GROUP BY")),
            None => Ok(Scalar {
                data_type: DataType::Int64,
                kind: ScalarKind::Literal(Datum::Integer(id)),
            }),
        }
    }
}

/// A TIMESTAMP in UTC as the session's clocks show it, if the windows are over instants.
pub(super) fn in_zone(time: Scalar, time_type: &DataType, zone: &str) -> Scalar {
    if !is_shifted(time_type, zone) {
        return time;
    }
    let instant = convert(time, &crate::types::ltz_ms(), "UTC");
    convert(instant, &TIMESTAMP_MS, zone)
}

/// Whether windows over a time of this type have begins and ends that differ from the instants.
pub(super) fn is_shifted(time_type: &DataType, zone: &str) -> bool {
    matches!(time_type, DataType::Timestamp(_, Some(_))) && zone != "UTC"
}
