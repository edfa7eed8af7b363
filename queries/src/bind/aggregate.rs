//! GROUP BY with a window: which windows, which keys, what is computed before and after.
//!
//! # Windows that rows bring with them
//! Rows of a windowed query that are grouped by its window_start and window_end again belong to
//! that very window, whatever its kind. They are aggregated in windows of 1 ms over their
//! window_time (the window's last millisecond) with window_start as one more key: end and firing
//! are those of the window.

use std::rc::Rc;
use weir_operators::window::WindowShape;

use super::expressions::Grouping;
use super::select::{contains_aggregate, item_name};
use super::windows::{in_zone, is_group_function, is_shifted, moved};
use super::{Bound, Planner, Relation, Role, ScopeColumn, WindowInfo, reported};
use crate::ast::{Expr, GroupBy, Item, Select};
use crate::diagnostics::Diagnostic;
use crate::plan::{CallPlan, Input, Node, PlanColumn, Scalar, WindowKind};
use crate::types::{TIMESTAMP_MS, convert};

/// An item of a select list with its name.
type NamedScalar = (String, Scalar);

/// How a query groups, over the columns of its input.
struct Plan {
    kind: WindowKind,
    /// The kind that the result's columns speak of.
    shown: WindowKind,
    time: Scalar,
    /// Grouping expressions that are no part of the window.
    keys: Vec<Scalar>,
    /// Of windows that rows bring with them: their begin, a key behind all others.
    brought: Option<Scalar>,
    /// Which input columns stand for begin, end and time of the window.
    parts: [Vec<Scalar>; 3],
    function: Option<(String, Vec<Scalar>)>,
}

/// The output of one window node, ready for the expressions above it.
struct Grouped {
    grouping: Grouping,
    start: Scalar,
    end: Scalar,
    time: Scalar,
    key_places: Vec<Option<Scalar>>,
}

impl Planner<'_> {
    /// A SELECT with GROUP BY or aggregates.
    pub(super) fn aggregated(&mut self, relation: Relation, select: &Select) -> Bound<Relation> {
        let none = GroupBy { span: select.span, plain: Vec::new(), sets: Vec::new() };
        let group = select.group_by.as_ref().unwrap_or(&none);
        let grouped = group.plain.iter().find_map(is_group_function).is_some();
        let relation = if grouped { self.settled(relation, group.span)? } else { relation };
        let plan = self.window_plan(&relation, group, select)?;
        let mut sets = Vec::new();
        for set in &group.sets {
            let mut bound = Vec::new();
            for expr in set {
                bound.push(self.binder(&relation.scope, &relation.name).bind(expr)?);
            }
            sets.push(bound);
        }
        let mut all = plan.keys.clone();
        for key in sets.iter().flatten() {
            if !all.contains(key) {
                all.push(key.clone());
            }
        }
        let (input, places, time) = self.before(&relation, select, &plan, &all)?;
        let groups = if sets.is_empty() {
            vec![all.clone()]
        } else {
            let own = |set: &Vec<Scalar>| plan.keys.iter().chain(set).cloned().collect();
            sets.iter().map(own).collect::<Vec<Vec<Scalar>>>()
        };
        let mut results = Vec::new();
        for keys in &groups {
            let chosen: Vec<Option<usize>> =
                all.iter().zip(&places).map(|(k, &p)| keys.contains(k).then_some(p)).collect();
            let brought = places.get(all.len()).copied();
            let at = (input, time, brought);
            results.push(self.one_set(&relation, select, &plan, &all, &chosen, at)?);
        }
        self.joined_sets(results)
    }

    /// Rows of all grouping sets together.
    fn joined_sets(&mut self, mut results: Vec<Relation>) -> Bound<Relation> {
        if results.len() == 1 {
            return Ok(results.remove(0));
        }
        let inputs: Vec<Input> = results.iter().map(|r| r.input).collect();
        let mut first = results.remove(0);
        let columns = self.columns(first.input).to_vec();
        first.input = self.add(Node::Union { inputs }, columns);
        Ok(first)
    }

    fn window_plan(
        &mut self,
        relation: &Relation,
        group: &GroupBy,
        select: &Select,
    ) -> Bound<Plan> {
        let mut keys = Vec::new();
        let mut function = None;
        for expr in &group.plain {
            if let Some(call) = is_group_function(expr) {
                if function.is_some() {
                    return Err(Diagnostic::new(expr.span, "a query has one window at most"));
                }
                let (kind, time, bound) = self.group_window(relation, expr, call)?;
                function = Some((kind, time, (call.name.text.to_uppercase(), bound)));
            } else {
                if contains_aggregate(expr) {
                    let message = "an aggregate cannot be grouped by";
                    return Err(Diagnostic::new(expr.span, message));
                }
                keys.push(self.binder(&relation.scope, &relation.name).bind(expr)?);
            }
        }
        if let Some((kind, time, bound)) = function {
            let time = Scalar::column(time, relation.scope[time].data_type.clone());
            let parts = [vec![], vec![], vec![]];
            let function = Some(bound);
            return Ok(Plan { kind, shown: kind, time, keys, brought: None, parts, function });
        }
        if let Some(plan) = self.pending_plan(relation, &keys, group)? {
            return Ok(plan);
        }
        if let Some(plan) = brought_plan(relation, &keys) {
            return Ok(plan);
        }
        Err(self.no_window(group, select))
    }

    fn no_window(&self, group: &GroupBy, select: &Select) -> Diagnostic {
        let what = if select.group_by.is_some() { "GROUP BY" } else { "an aggregate" };
        let sink = match &self.sink {
            Some(sink) => format!("`{sink}` would have to take updates (by a PRIMARY KEY)"),
            None => "that would be an updating result".to_owned(),
        };
        let message = format!(
            "{what} without a window changes rows that were already written: {sink}; updating \
             queries are not supported yet"
        );
        let hint = "aggregate per window: GROUP BY …, TUMBLE(ts, INTERVAL '5' MINUTE), or group \
                    by window_start, window_end of TABLE(TUMBLE(…))";
        Diagnostic::new(group.span, message).hint(hint)
    }

    /// The windows of a table function, if the query groups by begin and end.
    fn pending_plan(
        &self,
        relation: &Relation,
        keys: &[Scalar],
        group: &GroupBy,
    ) -> Bound<Option<Plan>> {
        let Some(pending) = &relation.pending else { return Ok(None) };
        let arity = relation.arity();
        let part =
            |i: usize| Scalar::column(arity + i, relation.scope[arity + i].data_type.clone());
        let (start, end, time) = (part(0), part(1), part(2));
        if !keys.contains(&start) || !keys.contains(&end) {
            let message = format!(
                "windows of {} must be grouped by window_start and window_end, both",
                pending.function
            );
            let hint = "write GROUP BY …, window_start, window_end";
            return Err(Diagnostic::new(group.span, message).hint(hint));
        }
        let own = |k: &&Scalar| **k != start && **k != end && **k != time;
        let keys: Vec<Scalar> = keys.iter().filter(own).cloned().collect();
        if pending.function == "SESSION" {
            let grouped = |c: &usize| keys.iter().any(|k| k.as_column() == Some(*c));
            let same = keys.len() == pending.partition_by.len()
                && pending.partition_by.iter().all(grouped);
            if !same {
                let message =
                    "sessions must be grouped by exactly the columns of their PARTITION BY";
                let hint = "write SESSION(TABLE t PARTITION BY k, …) and GROUP BY k, \
                            window_start, window_end";
                return Err(Diagnostic::new(group.span, message).hint(hint));
            }
        }
        let time_type = relation.scope[pending.time].data_type.clone();
        Ok(Some(Plan {
            kind: pending.kind,
            shown: pending.kind,
            time: Scalar::column(pending.time, time_type),
            keys,
            brought: None,
            parts: [vec![start], vec![end], vec![time]],
            function: None,
        }))
    }

    /// The filter and the computed keys before the window: the input, the places of the keys (that
    /// of a begin that was brought behind them), and of the time.
    fn before(
        &mut self,
        relation: &Relation,
        select: &Select,
        plan: &Plan,
        keys: &[Scalar],
    ) -> Bound<(Input, Vec<usize>, usize)> {
        let filter = match &select.filter {
            Some(expr) => Some(self.where_clause(relation, expr)?),
            None => None,
        };
        let arity = relation.arity();
        let plain = |i: usize| Scalar::column(i, relation.scope[i].data_type.clone());
        let mut project: Vec<Scalar> = (0..arity).map(plain).collect();
        let mut columns: Vec<PlanColumn> =
            relation.scope[..arity].iter().map(ScopeColumn::plan).collect();
        let mut place = |scalar: &Scalar, name: &str| match scalar.as_column() {
            Some(column) => column,
            None => project.iter().position(|p| p == scalar).unwrap_or_else(|| {
                columns.push(PlanColumn {
                    name: name.to_owned(),
                    data_type: scalar.data_type.clone(),
                    nullable: true,
                });
                project.push(scalar.clone());
                project.len() - 1
            }),
        };
        let mut places: Vec<usize> = keys.iter().map(|k| place(k, "key")).collect();
        places.extend(plan.brought.as_ref().map(|b| place(b, "window_start")));
        let time = place(&plan.time, "window_time");
        if filter.is_none() && project.len() == arity {
            return Ok((relation.input, places, time));
        }
        let node = Node::RowWise { input: relation.input, filter, project: Some(project) };
        Ok((self.add(node, columns), places, time))
    }

    /// WHERE over a relation; of windows that are not laid out yet it can know nothing.
    pub(super) fn where_clause(&self, relation: &Relation, expr: &Expr) -> Bound<Scalar> {
        let filter = self.binder(&relation.scope, &relation.name).boolean(expr, "WHERE")?;
        let mut beyond = false;
        filter.for_each_column(&mut |c| beyond |= c >= relation.arity());
        if beyond {
            let message = "WHERE on window_start, window_end or window_time is not supported here";
            return Err(Diagnostic::new(expr.span, message).hint("use HAVING"));
        }
        Ok(filter)
    }

    fn one_set(
        &mut self,
        relation: &Relation,
        select: &Select,
        plan: &Plan,
        all: &[Scalar],
        chosen: &[Option<usize>],
        (input, time, brought): (Input, usize, Option<usize>),
    ) -> Bound<Relation> {
        let mut keys: Vec<usize> = chosen.iter().copied().flatten().collect();
        keys.extend(brought);
        let mut grouped = self.grouped(plan, all, chosen, keys.len());
        let (items, having) = self.above(relation, select, &mut grouped)?;
        let calls = std::mem::take(&mut grouped.grouping.calls);
        let columns = self.window_columns(input, &keys, &calls);
        let kind = plan.kind;
        let collect_late = false;
        let node = Node::Window { input, kind, time, keys, calls, collect_late };
        let window = self.add(node, columns);
        let shown = all.len();
        let info = Rc::new(WindowInfo {
            kind: plan.shown,
            keys: shown,
            is_shifted: is_shifted(&plan.time.data_type, &self.time_zone()),
        });
        let mut scope = Vec::new();
        let mut project = Vec::new();
        for (name, scalar) in items {
            let mut column = ScopeColumn::plain(&name, scalar.data_type.clone());
            if scalar == grouped.start {
                column.role = Role::Start(info.clone());
            } else if scalar == grouped.end {
                column.role = Role::End(info.clone());
            } else if scalar == grouped.time {
                column.role = Role::Time(info.clone());
                column.is_time = true;
            } else if grouped.key_places.iter().flatten().any(|k| *k == scalar) {
                column.role = Role::Key(info.clone());
            }
            scope.push(column);
            project.push(scalar);
        }
        let columns = scope.iter().map(ScopeColumn::plan).collect();
        let node = Node::RowWise { input: window, filter: having, project: Some(project) };
        let input = self.add(node, columns);
        let name = relation.name.clone();
        Ok(Relation { input, scope, pending: None, name, late_nodes: vec![window.node] })
    }

    fn grouped(
        &self,
        plan: &Plan,
        all: &[Scalar],
        chosen: &[Option<usize>],
        keys: usize,
    ) -> Grouped {
        let zone = self.time_zone();
        let time_type = plan.time.data_type.clone();
        let (first, last) = (keys, keys + 1);
        let end = Scalar::column(last, TIMESTAMP_MS);
        let (start, shown_end) = match &plan.brought {
            // The begin is the last key, the end is that of the 1 ms window.
            Some(brought) => {
                let start = Scalar::column(keys - 1, brought.data_type.clone());
                (start, in_zone(end.clone(), &time_type, &zone))
            }
            None => {
                let start = Scalar::column(first, TIMESTAMP_MS);
                (in_zone(start, &time_type, &zone), in_zone(end.clone(), &time_type, &zone))
            }
        };
        let time = convert(moved(end, -1), &time_type, "UTC");
        let mut next = 0;
        let mut key_places = Vec::new();
        for (key, place) in all.iter().zip(chosen) {
            key_places.push(place.map(|_| {
                next += 1;
                Scalar::column(next - 1, key.data_type.clone())
            }));
        }
        let mut map: Vec<(Scalar, Option<Scalar>)> =
            all.iter().cloned().zip(key_places.iter().cloned()).collect();
        let became = [&start, &shown_end, &time];
        for (parts, became) in plan.parts.iter().zip(became) {
            map.extend(parts.iter().map(|p| (p.clone(), Some(became.clone()))));
        }
        let window = plan.function.is_some().then_some((first, last, time_type));
        let grouping = Grouping {
            keys: map,
            first_call: keys + 2,
            calls: Vec::new(),
            window,
            function: plan.function.clone(),
        };
        Grouped { grouping, start, end: shown_end, time, key_places }
    }

    /// The select list and HAVING over the window's output.
    fn above(
        &mut self,
        relation: &Relation,
        select: &Select,
        grouped: &mut Grouped,
    ) -> Bound<(Vec<NamedScalar>, Option<Scalar>)> {
        let mut binder = self.binder(&relation.scope, &relation.name);
        let placeholder = Grouping {
            keys: Vec::new(),
            first_call: 0,
            calls: Vec::new(),
            window: None,
            function: None,
        };
        binder.grouping = Some(std::mem::replace(&mut grouped.grouping, placeholder));
        let mut errors = Vec::new();
        let mut items = Vec::new();
        for (i, item) in select.items.iter().enumerate() {
            match item {
                Item::All { span, .. } => {
                    let message = "`*` cannot stand beside GROUP BY; name the columns";
                    errors.push(Diagnostic::new(*span, message));
                }
                Item::Expr { expr, alias } => match binder.bind(expr) {
                    Ok(scalar) => items.push((item_name(expr, alias.as_ref(), i), scalar)),
                    Err(error) => errors.push(error),
                },
            }
        }
        let having = match &select.having {
            Some(having) => match binder.boolean(having, "HAVING") {
                Ok(scalar) => Some(scalar),
                Err(error) => {
                    errors.push(error);
                    None
                }
            },
            None => None,
        };
        if let Some(grouping) = binder.grouping.take() {
            grouped.grouping = grouping;
        }
        if errors.is_empty() {
            return Ok((items, having));
        }
        self.errors.extend(errors);
        Err(reported(select.span))
    }

    fn window_columns(&self, input: Input, keys: &[usize], calls: &[CallPlan]) -> Vec<PlanColumn> {
        let from = self.columns(input);
        let column = |name: &str, data_type, nullable| PlanColumn {
            name: name.to_owned(),
            data_type,
            nullable,
        };
        let mut columns: Vec<PlanColumn> =
            keys.iter().map(|&k| column(&from[k].name, from[k].data_type.clone(), true)).collect();
        columns.push(column("window_start", TIMESTAMP_MS, true));
        columns.push(column("window_end", TIMESTAMP_MS, true));
        for (i, call) in calls.iter().enumerate() {
            columns.push(column(&format!("call{i}"), call.output.clone(), true));
        }
        columns
    }
}

/// Windows that the rows bring with them, if the query groups by their begin and end.
fn brought_plan(relation: &Relation, keys: &[Scalar]) -> Option<Plan> {
    let role = |k: &Scalar| k.as_column().map(|c| relation.scope[c].role.clone());
    let start = keys.iter().find(|k| matches!(role(k), Some(Role::Start(_))))?;
    let end = keys.iter().find(|k| matches!(role(k), Some(Role::End(_))))?;
    let (Some(Role::Start(a)), Some(Role::End(b))) = (role(start), role(end)) else { return None };
    if !Rc::ptr_eq(&a, &b) {
        return None;
    }
    let is_part = |k: &&Scalar| match role(k) {
        Some(Role::Start(i) | Role::End(i) | Role::Time(i)) => Rc::ptr_eq(&i, &a),
        _ => false,
    };
    let own: Vec<Scalar> = keys.iter().filter(|k| !is_part(k)).cloned().collect();
    let is_time = |c: &ScopeColumn| matches!(&c.role, Role::Time(i) if Rc::ptr_eq(i, &a));
    let time_column = relation.scope.iter().position(is_time);
    // Shifted ends do not say when the window fires.
    if time_column.is_none() && a.is_shifted {
        return None;
    }
    let time = match time_column {
        Some(column) => Scalar::column(column, relation.scope[column].data_type.clone()),
        None => moved(end.clone(), -1),
    };
    let times = time_column.map(|_| time.clone()).into_iter().collect();
    Some(Plan {
        kind: WindowKind::Fixed(WindowShape::Tumble { size: 1, offset: 0 }),
        shown: a.kind,
        time,
        keys: own,
        brought: Some(start.clone()),
        parts: [vec![start.clone()], vec![end.clone()], times],
        function: None,
    })
}
