//! Statements: declarations, INSERT INTO, and the jobs that they make.

use std::rc::Rc;

use super::tables::assigned;
use super::{Bound, Job, Planner, Table, View, reported};
use crate::ast::{CreateView, Insert, Statement};
use crate::build;
use crate::diagnostics::Diagnostic;
use crate::plan::{Input, JobPlan, Node, PLAN_VERSION, Scalar};
use crate::prune::prune;
use crate::push::push;
use crate::tokens::Name;

/// What a script asks for, as far as it is planned.
#[derive(Debug, Default)]
pub(crate) struct Planned {
    pub(crate) jobs: Vec<JobPlan>,
    pub(crate) explained: Vec<JobPlan>,
}

impl Planner<'_> {
    /// Takes up one statement; its errors are kept.
    pub(crate) fn statement(&mut self, statement: Statement, out: &mut Planned) {
        let done = match statement {
            Statement::CreateTable(ast) => self.create_table(ast),
            Statement::CreateView(ast) => self.create_view(ast),
            Statement::Drop { name, if_exists, view } => self.drop_named(&name, if_exists, view),
            Statement::Set { key, value } => self.set(&key, &value),
            Statement::Insert(insert) => self.job(&[insert]).map(|job| out.jobs.extend(job)),
            Statement::Set_(inserts) => self.job(&inserts).map(|job| out.jobs.extend(job)),
            Statement::Explain(inner) => self.explained(*inner, out),
            Statement::Query(query) => {
                let span = query.selects.first().map(|s| s.span);
                span.map_or(Ok(()), |span| {
                    let message = "a SELECT by itself has nowhere to go";
                    Err(Diagnostic::new(span, message).hint("write INSERT INTO t SELECT …"))
                })
            }
        };
        if let Err(error) = done {
            self.errors.push(error);
        }
    }

    fn create_table(&mut self, ast: crate::ast::CreateTable) -> Bound<()> {
        if !self.may_declare(&ast.name, ast.if_not_exists)? {
            return Ok(());
        }
        let name = ast.name.text.clone();
        match self.table(ast) {
            Ok(table) => {
                self.tables.insert(name, Rc::new(table));
                Ok(())
            }
            Err(error) => {
                self.broken.insert(name);
                Err(error)
            }
        }
    }

    fn create_view(&mut self, ast: CreateView) -> Bound<()> {
        if !self.may_declare(&ast.name, ast.if_not_exists)? {
            return Ok(());
        }
        let name = ast.name.text.clone();
        self.views.insert(name.clone(), Rc::new(View { ast }));
        // Bound once for its errors, whether or not anyone reads it.
        let job = std::mem::take(&mut self.job);
        let view = self.views.get(&name).cloned();
        let span = view.as_ref().map(|v| v.ast.name.span);
        let reference = span.map(|span| Name { text: name.clone(), span });
        let bound = reference.map_or(Ok(()), |name| self.named(&name, false).map(|_| ()));
        self.job = job;
        if bound.is_err() {
            self.broken.insert(name);
        }
        bound
    }

    /// Whether a name is free; an error if not, unless IF NOT EXISTS.
    fn may_declare(&mut self, name: &Name, if_not_exists: bool) -> Bound<bool> {
        let table = self.tables.get(&name.text).map(|t| t.ast.name.span);
        let view = self.views.get(&name.text).map(|v| v.ast.name.span);
        let Some(first) = table.or(view) else { return Ok(true) };
        if if_not_exists {
            return Ok(false);
        }
        let message = format!("table `{}` already exists (line {})", name.text, first.line);
        Err(Diagnostic::new(name.span, message))
    }

    fn drop_named(&mut self, name: &Name, if_exists: bool, view: bool) -> Bound<()> {
        let known = if view {
            self.views.remove(&name.text).is_some()
        } else {
            self.tables.remove(&name.text).is_some()
        };
        if known || if_exists || self.broken.contains(&name.text) {
            return Ok(());
        }
        let what = if view { "view" } else { "table" };
        let message = format!("{what} `{}` does not exist", name.text);
        Err(Diagnostic::new(name.span, message))
    }

    fn set(&mut self, key: &Name, value: &Name) -> Bound<()> {
        if key.text == "table.local-time-zone" && !known_zone(&value.text) {
            let message = format!("'{}' is no time zone", value.text);
            let hint = "write for example 'UTC' or 'Europe/Zurich'";
            return Err(Diagnostic::new(value.span, message).hint(hint));
        }
        self.settings.insert(key.text.clone(), value.text.clone());
        Ok(())
    }

    fn explained(&mut self, statement: Statement, out: &mut Planned) -> Bound<()> {
        let inserts = match statement {
            Statement::Insert(insert) => vec![insert],
            Statement::Set_(inserts) => inserts,
            Statement::Query(query) => {
                self.job = Job::default();
                self.query(&query)?;
                let mut nodes = std::mem::take(&mut self.job).nodes;
                if let Some(last) = nodes.last().cloned() {
                    // Everything that the query gives is wanted.
                    let project = last.columns.iter().enumerate();
                    let project =
                        project.map(|(i, c)| Scalar::column(i, c.data_type.clone())).collect();
                    let input = Input::rows(nodes.len() - 1);
                    let node = Node::RowWise { input, filter: None, project: Some(project) };
                    nodes.push(crate::plan::PlanNode { columns: last.columns, node });
                }
                out.explained.push(self.plan("query".to_owned(), nodes));
                return Ok(());
            }
            _ => return Ok(()),
        };
        let job = self.job(&inserts)?;
        out.explained.extend(job);
        Ok(())
    }

    /// The job of an INSERT or of a statement set.
    fn job(&mut self, inserts: &[Insert]) -> Bound<Option<JobPlan>> {
        self.job = Job::default();
        let before = self.errors.len();
        let mut failed = false;
        for insert in inserts {
            self.sink = Some(insert.table.text.clone());
            if let Err(error) = self.insert(insert) {
                self.errors.push(error);
                failed = true;
            }
        }
        self.sink = None;
        if failed || self.errors.len() > before {
            return Ok(None);
        }
        self.dead_letters()?;
        let mut sinks = self.job.take_sinks();
        // What the statements name comes before late rows and dead letters.
        sinks.sort_by_key(|(name, _)| !inserts.iter().any(|i| i.table.text == *name));
        let name = sinks.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        for (table, inputs) in sinks {
            self.add_sink(&table, inputs);
        }
        let nodes = std::mem::take(&mut self.job).nodes;
        let mut plan = self.plan(name, nodes);
        prune(&mut plan.nodes);
        push(&mut plan.nodes);
        if let Err(error) = build::check(&plan) {
            let span = inserts.first().map(|i| i.table.span);
            let message = format!("this query cannot be run: {error}");
            return Err(span.map_or_else(
                || Diagnostic::new(crate::diagnostics::Span::START, message.clone()),
                |span| Diagnostic::new(span, message.clone()),
            ));
        }
        Ok(Some(plan))
    }

    fn plan(&self, name: String, nodes: Vec<crate::plan::PlanNode>) -> JobPlan {
        JobPlan { version: PLAN_VERSION, name, time_zone: self.time_zone(), nodes }
    }

    fn add_sink(&mut self, table: &str, mut inputs: Vec<Input>) {
        let Some(table) = self.tables.get(table).cloned() else { return };
        let input = if inputs.len() == 1 {
            inputs.remove(0)
        } else {
            let columns = self.columns(inputs[0]).to_vec();
            self.add(Node::Union { inputs }, columns)
        };
        let spec = table.spec(table.written());
        let place = |key: &String| spec.columns.iter().position(|c| c.name == *key);
        let keys = spec.primary_key.iter().filter_map(place).collect();
        self.add(Node::Sink { input, table: spec, keys }, Vec::new());
    }

    /// A table that can be written.
    pub(super) fn sink_table(&mut self, name: &Name) -> Bound<Rc<Table>> {
        if self.broken.contains(&name.text) {
            return Err(reported(name.span));
        }
        if self.views.contains_key(&name.text) {
            let message = format!("`{}` is a view and cannot be written", name.text);
            return Err(Diagnostic::new(name.span, message));
        }
        let Some(table) = self.tables.get(&name.text).cloned() else {
            let names: Vec<String> = self.tables.keys().cloned().collect();
            let message = format!("table `{}` does not exist", name.text);
            let names = names.iter().map(String::as_str);
            return Err(Diagnostic::new(name.span, message).meant(&name.text, names));
        };
        self.check_options(&table, false)?;
        Ok(table)
    }

    fn insert(&mut self, insert: &Insert) -> Bound<()> {
        // Errors of the sink and of the query are found in one go.
        let table = self.sink_table(&insert.table);
        let table = match table {
            Ok(table) => Ok(table),
            Err(error) => Err(self.note(error)),
        };
        let span = insert.query.selects.first().map_or(insert.table.span, |s| s.span);
        let relation = self.query(&insert.query)?;
        let relation = self.settled(relation, span)?;
        let table = table?;
        let written = table.written();
        let zone = self.time_zone();
        let mut targets: Vec<usize> = (0..written.len()).collect();
        if !insert.columns.is_empty() {
            targets.clear();
            for name in &insert.columns {
                let Some(place) = written.iter().position(|c| c.name == name.text) else {
                    let (column, of) = (&name.text, table.name());
                    let message = format!("column `{column}` does not exist in `{of}`");
                    let names = written.iter().map(|c| c.name.as_str());
                    return Err(Diagnostic::new(name.span, message).meant(column, names));
                };
                targets.push(place);
            }
        }
        if targets.len() != relation.scope.len() {
            return Err(wrong_count(insert, &table, &targets, relation.scope.len()));
        }
        let items = insert.query.selects.first().map(|s| s.items.as_slice()).unwrap_or_default();
        let mut project = Vec::new();
        for (place, column) in written.iter().enumerate() {
            let from = targets.iter().position(|&t| t == place);
            let value = match from {
                Some(i) => Scalar::column(i, relation.scope[i].data_type.clone()),
                None => Scalar::null(column.data_type.clone()),
            };
            let at = match from.and_then(|i| items.get(i)) {
                Some(crate::ast::Item::Expr { expr, .. }) if items.len() == targets.len() => {
                    expr.span
                }
                _ => insert.table.span,
            };
            match assigned(value, column, table.name(), at, &zone) {
                Ok(value) => project.push(value),
                Err(error) => self.errors.push(error),
            }
        }
        if project.len() < written.len() {
            return Err(reported(insert.table.span));
        }
        self.feed(&table, relation.input, project);
        Ok(())
    }
}

fn wrong_count(insert: &Insert, table: &Table, targets: &[usize], given: usize) -> Diagnostic {
    let written = table.written();
    let (name, wanted) = (table.name(), targets.len());
    let mut message = format!("`{name}` has {wanted} columns, but the query gives {given}");
    if let Some(&first) = targets.get(given) {
        message = format!("{message}: nothing for `{}`", written[first].name);
    }
    let hint = format!("name the columns that are filled: INSERT INTO {name} (…) SELECT …");
    Diagnostic::new(insert.table.span, message).hint(hint)
}

/// Whether arrow knows a time zone of this name.
fn known_zone(name: &str) -> bool {
    name.parse::<arrow::array::timezone::Tz>().is_ok()
}
