//! Joins as of a time: on a table with a primary key, and on a view over windows.

use std::rc::Rc;
use weir_engine::time::Millis;
use weir_operators::window::WindowShape;

use super::windows::no_time;
use super::{Bound, Planner, Relation, Role, ScopeColumn, Table, WindowInfo};
use crate::ast::{Expr, ExprKind, FactorKind, From, Join, Op};
use crate::diagnostics::{Diagnostic, Span};
use crate::plan::{Node, Scalar, ScalarKind, WindowKind};
use crate::types::convert;

/// `versions.keep` without the option.
const KEEP_DEFAULT: Millis = 86_400_000;

/// The ON condition taken apart.
#[derive(Default)]
struct Condition {
    /// Pairs of columns: of the left side, of the right side.
    equal: Vec<(Scalar, usize)>,
    /// Everything else, over both sides' columns.
    rest: Option<Scalar>,
}

impl Planner<'_> {
    /// FROM with its joins.
    pub(super) fn from(&mut self, from: &From) -> Bound<Relation> {
        if let Some(as_of) = &from.first.as_of {
            let message = "FOR SYSTEM_TIME AS OF belongs to the right side of a JOIN";
            return Err(Diagnostic::new(as_of.span, message));
        }
        let mut left = self.factor(&from.first)?;
        for join in &from.joins {
            left = self.settled(left, join.span)?;
            left = self.join(left, join)?;
        }
        Ok(left)
    }

    fn join(&mut self, left: Relation, join: &Join) -> Bound<Relation> {
        let Some(as_of) = join.factor.as_of.as_ref().filter(|_| join.other.is_none()) else {
            return self.refused_join(left, join);
        };
        let FactorKind::Table(name) = &join.factor.kind else {
            let message = "FOR SYSTEM_TIME AS OF needs a table or a view";
            return Err(Diagnostic::new(join.factor.span, message));
        };
        let table = self.tables.get(&name.text).cloned();
        let first = table.as_ref().is_some_and(|t| t.is_bounded());
        let alias = join.factor.alias.as_ref().unwrap_or(name);
        let right = self.named(name, first)?.aliased(&alias.text);
        let time = self.as_of_column(&left, as_of)?;
        match table {
            Some(table) => self.enrichment(left, right, &table, join, time),
            None => self.version_join(left, right, join, time, as_of.span),
        }
    }

    /// Says that a join is not run; goes on with both sides' columns to find more errors.
    fn refused_join(&mut self, left: Relation, join: &Join) -> Bound<Relation> {
        let right = self.factor(&join.factor)?;
        let kind = join.other.clone().unwrap_or_else(|| {
            if join.left_outer { "LEFT JOIN".to_owned() } else { "JOIN".to_owned() }
        });
        let message = format!(
            "{kind} without FOR SYSTEM_TIME AS OF is not supported yet: a regular join keeps every \
             row for ever and no time attribute (event time)"
        );
        let hint = "join a table with a PRIMARY KEY: JOIN t FOR SYSTEM_TIME AS OF l.ts AS t \
                    ON …; interval joins and window joins are not supported yet";
        self.errors.push(Diagnostic::new(join.span, message).hint(hint));
        let mut scope = left.scope.clone();
        scope.extend(right.scope.iter().cloned());
        let node = Node::Union { inputs: vec![left.input] };
        let input = self.add(node, scope.iter().map(ScopeColumn::plan).collect());
        let name = format!("{} and {}", left.name, right.name);
        Ok(Relation { input, scope, pending: None, name, late_nodes: Vec::new() })
    }

    /// The left side's event time; `None` for PROCTIME().
    fn as_of_column(&self, left: &Relation, as_of: &Expr) -> Bound<Option<usize>> {
        match &as_of.kind {
            ExprKind::Call(call) if call.name.text.eq_ignore_ascii_case("PROCTIME") => Ok(None),
            ExprKind::Path(names) => {
                let (column, _) = self.binder(&left.scope, &left.name).resolve(names)?;
                let found = &left.scope[column];
                if found.is_proctime {
                    return Ok(None);
                }
                if !found.is_time {
                    let what = "FOR SYSTEM_TIME AS OF";
                    return Err(no_time(found, &left.name, what, as_of.span));
                }
                Ok(Some(column))
            }
            _ => {
                let message = "FOR SYSTEM_TIME AS OF needs a time attribute or PROCTIME()";
                Err(Diagnostic::new(as_of.span, message))
            }
        }
    }

    fn condition(&self, left: &Relation, right: &Relation, join: &Join) -> Bound<Condition> {
        let Some(on) = &join.on else {
            let message = "a join FOR SYSTEM_TIME AS OF needs ON with the key";
            return Err(Diagnostic::new(join.span, message));
        };
        let mut scope = left.scope.clone();
        scope.extend(right.scope.iter().cloned());
        let arity = left.scope.len();
        let mut made = Condition::default();
        let mut parts = vec![on];
        while let Some(part) = parts.pop() {
            if let ExprKind::Binary { op: Op::And, left, right, .. } = &part.kind {
                parts.push(right);
                parts.push(left);
                continue;
            }
            let mut binder = self.binder(&scope, &left.name);
            if let ExprKind::Binary { op: Op::Eq, left: a, right: b, .. } = &part.kind {
                let (a, b) = (binder.bind(a)?, binder.bind(b)?);
                if let Some(pair) = equal_pair(&a, &b, arity).or_else(|| equal_pair(&b, &a, arity))
                {
                    made.equal.push(pair);
                    continue;
                }
            }
            let bound = binder.boolean(part, "ON")?;
            made.rest = Some(match made.rest.take() {
                Some(rest) => Scalar::and(rest, bound),
                None => bound,
            });
        }
        Ok(made)
    }

    fn enrichment(
        &mut self,
        left: Relation,
        right: Relation,
        table: &Table,
        join: &Join,
        time: Option<usize>,
    ) -> Bound<Relation> {
        if table.ast.primary_key.is_empty() {
            let name = table.name();
            let message = format!("a join FOR SYSTEM_TIME AS OF needs a PRIMARY KEY on `{name}`");
            let hint = "declare PRIMARY KEY (…) NOT ENFORCED";
            return Err(Diagnostic::new(join.factor.span, message).hint(hint));
        }
        if let Some((option, _)) = table.option("dedup.within") {
            let name = table.name();
            let message = format!(
                "`{name}` is joined FOR SYSTEM_TIME AS OF: its rows are versions of their PRIMARY \
                 KEY, but 'dedup.within' would drop all but the first"
            );
            let hint = "leave 'dedup.within' out: a version that comes twice changes nothing";
            return Err(Diagnostic::new(option.span, message).hint(hint));
        }
        let condition = self.condition(&left, &right, join)?;
        let keys = table.places(&table.ast.primary_key);
        let missing = |column: usize| {
            let (name, of) = (&right.scope[column].name, table.name());
            let message =
                format!("ON must equate the whole PRIMARY KEY of `{of}`: `{name}` is missing");
            Diagnostic::new(join.on.as_ref().map_or(join.span, |on| on.span), message)
        };
        let (left, left_keys, condition) = self.keyed(left, &right, &keys, condition, missing)?;
        let right_time = time.and(table.time.map(|(column, _)| column));
        if let (Some(l), Some(r)) = (time, right_time)
            && self.time_zone() != "UTC"
            && left.scope[l].data_type != right.scope[r].data_type
        {
            let message = "TIMESTAMP and TIMESTAMP_LTZ meet in a temporal join in UTC only";
            return Err(Diagnostic::new(join.span, message));
        }
        let keep = self.duration(table, "versions.keep")?.unwrap_or(KEEP_DEFAULT);
        let node = Node::TemporalJoin {
            left: left.input,
            right: right.input,
            left_keys,
            right_keys: keys,
            left_time: right_time.and(time),
            right_time,
            left_outer: join.left_outer,
            bounded: table.is_bounded(),
            keep,
        };
        self.joined(left, right, node, condition, join)
    }

    /// The left side with a column for each key of the right side.
    fn keyed(
        &mut self,
        mut left: Relation,
        right: &Relation,
        keys: &[usize],
        mut condition: Condition,
        missing: impl Fn(usize) -> Diagnostic,
    ) -> Bound<(Relation, Vec<usize>, Condition)> {
        let zone = self.time_zone();
        let arity = left.scope.len();
        let mut project: Vec<Scalar> =
            (0..arity).map(|i| Scalar::column(i, left.scope[i].data_type.clone())).collect();
        let mut scope = left.scope.clone();
        let mut places = Vec::new();
        for &key in keys {
            let found = condition.equal.iter().position(|(_, column)| *column == key);
            let (value, _) = condition.equal.remove(found.ok_or_else(|| missing(key))?);
            let wanted = &right.scope[key].data_type;
            if super::calls::joinable(&value.data_type, wanted).is_none() {
                return Err(missing(key).detail("its type is not that of the other side"));
            }
            let value = convert(value, wanted, &zone);
            places.push(value.as_column().unwrap_or_else(|| {
                scope.push(ScopeColumn::plain("", value.data_type.clone()));
                project.push(value.clone());
                project.len() - 1
            }));
        }
        if project.len() > arity {
            let columns = scope.iter().map(ScopeColumn::plan).collect();
            let node = Node::RowWise { input: left.input, filter: None, project: Some(project) };
            left.input = self.add(node, columns);
            left.scope = scope;
            // The right side's columns moved behind the new ones.
            let by = left.scope.len() - arity;
            if let Some(rest) = &mut condition.rest {
                rest.move_columns(&|c| if c < arity { c } else { c + by });
            }
        }
        // Equalities beyond the key are conditions like any other.
        let width = left.scope.len();
        for (value, column) in std::mem::take(&mut condition.equal) {
            let there = Scalar::column(width + column, right.scope[column].data_type.clone());
            let value = convert(value, &there.data_type, &zone);
            let equal = Scalar::binary(
                crate::plan::BinaryOp::Eq,
                value,
                there,
                arrow::datatypes::DataType::Boolean,
            );
            condition.rest = Some(match condition.rest.take() {
                Some(rest) => Scalar::and(rest, equal),
                None => equal,
            });
        }
        Ok((left, places, condition))
    }

    fn version_join(
        &mut self,
        left: Relation,
        right: Relation,
        join: &Join,
        time: Option<usize>,
        span: Span,
    ) -> Bound<Relation> {
        let Some(window) = window_of(&right) else {
            let name = &right.name;
            let message = format!(
                "a join FOR SYSTEM_TIME AS OF on the view `{name}` needs a PRIMARY KEY, or its \
                 window_end (or window_time) among its columns"
            );
            let hint = "a view over a tumbling or hopping window is versioned by its window_end";
            return Err(Diagnostic::new(join.factor.span, message).hint(hint));
        };
        let Some(left_time) = time else {
            let message = "a join with a view over windows is in event time, not PROCTIME()";
            return Err(Diagnostic::new(span, message));
        };
        let (info, right_version, version_is_end) = window;
        let (size, slide, offset) = match info.kind {
            WindowKind::Fixed(WindowShape::Tumble { size, offset }) => (size, size, offset),
            WindowKind::Fixed(WindowShape::Hop { size, slide, offset }) => (size, slide, offset),
            _ => {
                let message = "only views over TUMBLE and HOP can be joined as of a time";
                return Err(Diagnostic::new(join.factor.span, message));
            }
        };
        if info.is_shifted && version_is_end {
            let message = "a view over windows of TIMESTAMP_LTZ in another zone than UTC must show \
                           its window_time, and not its window_end, to be joined as of a time";
            return Err(Diagnostic::new(join.factor.span, message));
        }
        let is_key = |c: &ScopeColumn| matches!(&c.role, Role::Key(i) if Rc::ptr_eq(i, &info));
        let keys: Vec<usize> =
            (0..right.scope.len()).filter(|&i| is_key(&right.scope[i])).collect();
        if keys.len() < info.keys {
            let message =
                format!("the view `{}` does not show all columns it groups by", right.name);
            return Err(Diagnostic::new(join.factor.span, message));
        }
        let condition = self.condition(&left, &right, join)?;
        let missing = |column: usize| {
            let (name, of) = (&right.scope[column].name, &right.name);
            let message =
                format!("ON must equate all grouping columns of `{of}`: `{name}` is missing");
            Diagnostic::new(join.on.as_ref().map_or(join.span, |on| on.span), message)
        };
        let (left, left_keys, condition) = self.keyed(left, &right, &keys, condition, missing)?;
        let node = Node::WindowVersionJoin {
            left: left.input,
            right: right.input,
            left_keys,
            right_keys: keys,
            left_time,
            right_version,
            version_is_end,
            slide,
            offset: (offset + size).rem_euclid(slide),
            left_outer: join.left_outer,
            collect_late: false,
        };
        self.joined(left, right, node, condition, join)
    }

    /// The join's node, and what its other conditions ask for.
    fn joined(
        &mut self,
        left: Relation,
        right: Relation,
        node: Node,
        condition: Condition,
        join: &Join,
    ) -> Bound<Relation> {
        let width = left.scope.len();
        let mut scope = left.scope.clone();
        scope.extend(right.scope.iter().map(|c| ScopeColumn {
            is_time: false,
            is_proctime: false,
            role: Role::Plain,
            nullable: c.nullable || join.left_outer,
            ..c.clone()
        }));
        let columns: Vec<_> = scope.iter().map(ScopeColumn::plan).collect();
        let has_late = matches!(node, Node::WindowVersionJoin { .. });
        let mut input = self.add(node, columns.clone());
        // Of several joins, each that has late rows gives them to the query's ON LATE.
        let mut late_nodes = left.late_nodes.clone();
        late_nodes.extend(has_late.then_some(input.node));
        if let Some(rest) = condition.rest {
            let plain = |i: usize| Scalar::column(i, scope[i].data_type.clone());
            let node = if join.left_outer {
                // A version that the condition refuses is none: its columns are NULL.
                let project = (0..scope.len()).map(|i| {
                    if i < width {
                        return plain(i);
                    }
                    let data_type = scope[i].data_type.clone();
                    let null = Box::new(Scalar::null(data_type.clone()));
                    let kind = ScalarKind::Case(vec![(rest.clone(), plain(i))], null);
                    Scalar { data_type, kind }
                });
                Node::RowWise { input, filter: None, project: Some(project.collect()) }
            } else {
                Node::RowWise { input, filter: Some(rest), project: None }
            };
            input = self.add(node, columns);
        }
        // Key columns that were computed for the join are nobody's.
        for column in &mut scope {
            if column.name.is_empty() {
                column.table = None;
            }
        }
        let name = format!("{} and {}", left.name, right.name);
        Ok(Relation { input, scope, pending: None, name, late_nodes })
    }
}

/// `left = right` where one side reads only the left relation and the other is a column of the
/// right.
fn equal_pair(a: &Scalar, b: &Scalar, arity: usize) -> Option<(Scalar, usize)> {
    let mut only_left = true;
    let mut columns = 0;
    a.for_each_column(&mut |c| {
        only_left &= c < arity;
        columns += 1;
    });
    let column = b.as_column().filter(|&c| c >= arity)?;
    (only_left && columns > 0).then(|| (a.clone(), column - arity))
}

/// The window that versions a relation, the column, and whether that is the window's end.
fn window_of(relation: &Relation) -> Option<(Rc<WindowInfo>, usize, bool)> {
    let end = relation.scope.iter().enumerate().find_map(|(i, c)| match &c.role {
        Role::End(info) => Some((info.clone(), i, true)),
        _ => None,
    });
    end.or_else(|| {
        relation.scope.iter().enumerate().find_map(|(i, c)| match &c.role {
            Role::Time(info) => Some((info.clone(), i, false)),
            _ => None,
        })
    })
}
