//! Queries: FROM, WHERE, the select list, UNION ALL, the late clause.

use super::{Bound, Planner, Relation, ScopeColumn, reported};
use crate::ast::{Expr, ExprKind, Factor, FactorKind, Item, Late, Query, Select};
use crate::build::late_columns;
use crate::diagnostics::Diagnostic;
use crate::plan::{Input, Node, Port, Scalar};
use crate::tokens::Name;
use crate::types::{common_type, convert, sql_name};

impl Planner<'_> {
    /// A query.
    pub(crate) fn query(&mut self, query: &Query) -> Bound<Relation> {
        let mut relations = Vec::new();
        let mut failed = None;
        for select in &query.selects {
            match self.select(select) {
                Ok(relation) => relations.push(relation),
                Err(error) => failed = Some(self.note(error)),
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        if let Some(late) = &query.late {
            if relations.len() > 1 {
                let message = "ON LATE belongs to one SELECT with a window, not to a UNION ALL";
                return Err(Diagnostic::new(late.span, message).hint("put that SELECT in a view"));
            }
            self.late_clause(&relations[0], late)?;
        }
        if relations.len() == 1 {
            return Ok(relations.remove(0));
        }
        self.union(query, relations)
    }

    /// Keeps an error; what goes on upwards says that it has been kept.
    pub(super) fn note(&mut self, error: Diagnostic) -> Diagnostic {
        let span = error.span;
        self.errors.push(error);
        reported(span)
    }

    fn union(&mut self, query: &Query, relations: Vec<Relation>) -> Bound<Relation> {
        let zone = self.time_zone();
        let mut scope: Vec<ScopeColumn> = relations[0].scope.clone();
        for (relation, select) in relations.iter().zip(&query.selects).skip(1) {
            if relation.scope.len() != scope.len() {
                let (a, b) = (scope.len(), relation.scope.len());
                let message = format!("UNION ALL of {a} columns and {b} columns");
                return Err(Diagnostic::new(select.span, message));
            }
            for (column, other) in scope.iter_mut().zip(&relation.scope) {
                let both = common_type(&column.data_type, &other.data_type);
                column.data_type = both.ok_or_else(|| {
                    let (a, b) = (sql_name(&column.data_type), sql_name(&other.data_type));
                    let message =
                        format!("UNION ALL: `{}` is a {a} here and a {b} there", column.name);
                    Diagnostic::new(select.span, message)
                })?;
                column.is_time &= other.is_time;
                column.nullable = true;
                column.role = super::Role::Plain;
            }
        }
        let columns: Vec<_> = scope.iter().map(ScopeColumn::plan).collect();
        let mut inputs = Vec::new();
        for relation in &relations {
            let project = relation.scope.iter().enumerate().zip(&scope).map(|((i, from), to)| {
                convert(Scalar::column(i, from.data_type.clone()), &to.data_type, &zone)
            });
            let project = Some(project.collect());
            let node = Node::RowWise { input: relation.input, filter: None, project };
            inputs.push(self.add(node, columns.clone()));
        }
        let input = self.add(Node::Union { inputs }, columns);
        let name = "the union".to_owned();
        for column in &mut scope {
            column.table = None;
        }
        Ok(Relation { input, scope, pending: None, name, late_nodes: Vec::new() })
    }

    /// ON LATE DROP or INTO behind the query that holds the window.
    fn late_clause(&mut self, relation: &Relation, late: &Late) -> Bound<()> {
        if relation.late_nodes.is_empty() {
            let message =
                "ON LATE belongs to the query that holds the window, and this one has none";
            return Err(Diagnostic::new(late.span, message));
        }
        let Some(into) = &late.into else { return Ok(()) };
        let table = self.sink_table(into)?;
        for &at in &relation.late_nodes {
            match &mut self.job.nodes[at].node {
                Node::Window { collect_late, .. }
                | Node::WindowVersionJoin { collect_late, .. } => {
                    *collect_late = true;
                }
                _ => continue,
            }
            let columns = late_columns(&self.job.nodes, at);
            let have: Vec<(String, Scalar)> = columns
                .iter()
                .enumerate()
                .map(|(i, c)| (c.name.clone(), Scalar::column(i, c.data_type.clone())))
                .collect();
            let project = self.by_name(&table, &have, into.span)?;
            self.feed(&table, Input { node: at, port: Port::Late }, project);
        }
        Ok(())
    }

    fn select(&mut self, select: &Select) -> Bound<Relation> {
        let Some(from) = &select.from else {
            let message = "a SELECT without FROM is not supported";
            return Err(Diagnostic::new(select.span, message));
        };
        let relation = self.from(from)?;
        let aggregates = select.group_by.is_some()
            || select.having.is_some()
            || select.items.iter().any(|item| match item {
                Item::Expr { expr, .. } => contains_aggregate(expr),
                Item::All { .. } => false,
            });
        if aggregates {
            let before = relation.late_nodes.clone();
            let mut made = self.aggregated(relation, select)?;
            made.late_nodes.extend(before);
            return Ok(made);
        }
        let relation = self.settled(relation, select.span)?;
        let filter = match &select.filter {
            Some(expr) => Some(self.where_clause(&relation, expr)?),
            None => None,
        };
        let (scope, project) = self.items(&relation, select)?;
        let same = project.len() == relation.scope.len()
            && project.iter().enumerate().all(|(i, s)| s.as_column() == Some(i));
        if same && filter.is_none() {
            return Ok(Relation { scope, ..relation });
        }
        let columns = scope.iter().map(ScopeColumn::plan).collect();
        let node = Node::RowWise { input: relation.input, filter, project: Some(project) };
        let input = self.add(node, columns);
        Ok(Relation { input, scope, pending: None, ..relation })
    }

    fn items(
        &mut self,
        relation: &Relation,
        select: &Select,
    ) -> Bound<(Vec<ScopeColumn>, Vec<Scalar>)> {
        let mut scope = Vec::new();
        let mut project = Vec::new();
        let mut errors = Vec::new();
        let mut binder = self.binder(&relation.scope, &relation.name);
        for (i, item) in select.items.iter().enumerate() {
            match item {
                Item::All { table, span } => {
                    let wanted = table.as_ref().map(|t| t.text.as_str());
                    let before = scope.len();
                    for (place, column) in relation.scope.iter().enumerate() {
                        if wanted.is_none() || column.table.as_deref() == wanted {
                            project.push(Scalar::column(place, column.data_type.clone()));
                            scope.push(ScopeColumn { table: None, ..column.clone() });
                        }
                    }
                    if scope.len() == before {
                        let name = wanted.unwrap_or("*");
                        let message = format!("there is no table `{name}` here");
                        errors.push(Diagnostic::new(*span, message));
                    }
                }
                Item::Expr { expr, alias } => match binder.bind(expr) {
                    Ok(scalar) => {
                        let name = item_name(expr, alias.as_ref(), i);
                        let base = ScopeColumn::plain(&name, scalar.data_type.clone());
                        scope.push(match scalar.as_column() {
                            Some(place) => {
                                ScopeColumn { table: None, name, ..relation.scope[place].clone() }
                            }
                            None => base,
                        });
                        project.push(scalar);
                    }
                    Err(error) => errors.push(error),
                },
            }
        }
        if errors.is_empty() {
            return Ok((scope, project));
        }
        self.errors.extend(errors);
        Err(reported(select.span))
    }

    /// One thing behind FROM, under its alias.
    pub(super) fn factor(&mut self, factor: &Factor) -> Bound<Relation> {
        let relation = match &factor.kind {
            FactorKind::Table(name) => self.named(name, false)?.aliased(&name.text),
            FactorKind::Query(query) => {
                let mut relation = self.query(query)?;
                relation.late_nodes.clear();
                relation.name = "the subquery".to_owned();
                relation
            }
            FactorKind::Window(call) => self.window_relation(call, factor)?,
        };
        Ok(match &factor.alias {
            Some(alias) => relation.aliased(&alias.text),
            None => relation,
        })
    }

    /// A table or view by name.
    pub(super) fn named(&mut self, name: &Name, table_first: bool) -> Bound<Relation> {
        if self.job.open_views.contains(&name.text) {
            let message = format!("view `{}` refers to itself", name.text);
            return Err(Diagnostic::new(name.span, message));
        }
        if self.broken.contains(&name.text) {
            return Err(reported(name.span));
        }
        if let Some(table) = self.tables.get(&name.text).cloned() {
            return self.source(&table, table_first);
        }
        if let Some(known) = self.job.views.get(&name.text) {
            return Ok(known.clone());
        }
        let Some(view) = self.views.get(&name.text).cloned() else {
            let names = self.tables.keys().chain(self.views.keys()).map(String::as_str);
            let message = format!("table `{}` does not exist", name.text);
            return Err(Diagnostic::new(name.span, message).meant(&name.text, names));
        };
        self.job.open_views.push(name.text.clone());
        let bound = self.query(&view.ast.query);
        self.job.open_views.pop();
        let mut relation = match bound {
            Ok(relation) => relation,
            Err(error) => {
                self.broken.insert(name.text.clone());
                return Err(error);
            }
        };
        relation.late_nodes.clear();
        relation.name = name.text.clone();
        if !view.ast.columns.is_empty() {
            if view.ast.columns.len() != relation.scope.len() {
                let (a, b) = (view.ast.columns.len(), relation.scope.len());
                let message =
                    format!("view `{}` names {a} columns, its query gives {b}", name.text);
                return Err(Diagnostic::new(view.ast.name.span, message));
            }
            for (column, name) in relation.scope.iter_mut().zip(&view.ast.columns) {
                column.name = name.text.clone();
            }
        }
        self.job.views.insert(name.text.clone(), relation.clone());
        Ok(relation)
    }
}

/// The name of a select item.
pub(super) fn item_name(expr: &Expr, alias: Option<&Name>, place: usize) -> String {
    match (alias, &expr.kind) {
        (Some(alias), _) => alias.text.clone(),
        (None, ExprKind::Path(names)) => names.last().map_or_else(String::new, |n| n.text.clone()),
        (None, ExprKind::Field { name, .. }) => name.text.clone(),
        _ => format!("EXPR${place}"),
    }
}

/// Whether an aggregate is called anywhere in it.
pub(super) fn contains_aggregate(expr: &Expr) -> bool {
    let any = contains_aggregate;
    match &expr.kind {
        ExprKind::Call(call) => {
            super::calls::aggregate(&call.name.text).is_some() || call.args.iter().any(any)
        }
        ExprKind::Value(_) | ExprKind::Path(_) => false,
        ExprKind::Binary { left, right, .. } | ExprKind::IsDistinct { left, right, .. } => {
            any(left) || any(right)
        }
        ExprKind::Not(e)
        | ExprKind::Negate(e)
        | ExprKind::IsNull { expr: e, .. }
        | ExprKind::IsTruth { expr: e, .. }
        | ExprKind::Cast { expr: e, .. }
        | ExprKind::Field { expr: e, .. } => any(e),
        ExprKind::In { expr, list, .. } => any(expr) || list.iter().any(any),
        ExprKind::Between { expr, low, high, .. } => any(expr) || any(low) || any(high),
        ExprKind::Like { expr, pattern, .. } => any(expr) || any(pattern),
        ExprKind::Case { operand, whens, otherwise } => {
            operand.as_deref().is_some_and(any)
                || whens.iter().any(|(when, then)| any(when) || any(then))
                || otherwise.as_deref().is_some_and(any)
        }
        ExprKind::Element { expr, index } => any(expr) || any(index),
        ExprKind::Row(list) => list.iter().any(any),
    }
}
