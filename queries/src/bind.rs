//! Binding: names to tables and columns, types to expressions, clauses to operators.
//!
//! A [`Planner`] holds what a script has declared and the nodes of the job at hand. A query becomes
//! a [`Relation`]: a node of the plan and, beside each of its columns, what SQL knows of it: its
//! name and table, whether it is a time attribute, which part of a window it is.

mod aggregate;
mod calls;
mod expressions;
mod insert;
mod joins;
mod literals;
mod operators;
mod select;
mod source;
mod tables;
mod windows;

use arrow::datatypes::DataType;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use weir_engine::connector::Connectors;
use weir_engine::time::Millis;

use crate::ast::CreateView;
use crate::diagnostics::{Diagnostic, Span};
use crate::plan::{Input, Node, PlanColumn, PlanNode, WindowKind};
pub(crate) use insert::Planned;
pub(crate) use source::inputs_of;
pub(crate) use tables::Table;

pub(crate) type Bound<T> = Result<T, Diagnostic>;

/// An error that has been reported already.
pub(crate) fn reported(span: Span) -> Diagnostic {
    Diagnostic::new(span, "")
}

/// A window that columns of a relation belong to.
#[derive(Debug)]
pub(crate) struct WindowInfo {
    pub(crate) kind: WindowKind,
    /// Number of grouping keys: all of them make a row unique within its window.
    pub(crate) keys: usize,
    /// Whether begin and end are shown by the clocks of another zone than UTC.
    pub(crate) is_shifted: bool,
}

/// What part of a window a column is.
#[derive(Clone, Debug)]
pub(crate) enum Role {
    Plain,
    /// A grouping key of the window.
    Key(Rc<WindowInfo>),
    Start(Rc<WindowInfo>),
    End(Rc<WindowInfo>),
    Time(Rc<WindowInfo>),
}

/// A column as a query sees it; its place is that in the relation's node.
#[derive(Clone, Debug)]
pub(crate) struct ScopeColumn {
    /// Alias of its table.
    pub(crate) table: Option<String>,
    pub(crate) name: String,
    pub(crate) data_type: DataType,
    pub(crate) nullable: bool,
    /// Whether it is an event-time attribute.
    pub(crate) is_time: bool,
    /// Whether it is PROCTIME().
    pub(crate) is_proctime: bool,
    pub(crate) role: Role,
}

/// A window table function whose windows have not been grouped by yet.
#[derive(Clone, Debug)]
pub(crate) struct Pending {
    pub(crate) kind: WindowKind,
    pub(crate) time: usize,
    pub(crate) function: String,
    /// PARTITION BY of SESSION.
    pub(crate) partition_by: Vec<usize>,
}

/// Rows of a query or table.
#[derive(Clone, Debug)]
pub(crate) struct Relation {
    pub(crate) input: Input,
    /// One a column of the node; with `pending` three more: window_start, window_end, window_time.
    pub(crate) scope: Vec<ScopeColumn>,
    pub(crate) pending: Option<Pending>,
    /// For people: what it is called.
    pub(crate) name: String,
    /// Nodes of this query's own level that can put late rows aside.
    pub(crate) late_nodes: Vec<usize>,
}

/// The nodes of the job at hand.
#[derive(Debug, Default)]
pub(crate) struct Job {
    pub(crate) nodes: Vec<PlanNode>,
    sources: BTreeMap<(String, bool), Relation>,
    views: BTreeMap<String, Relation>,
    /// Rows for each sink: name, place of its first use, inputs in the sink's columns.
    sinks: Vec<(String, Vec<Input>)>,
    /// Views that are being bound, to find circles.
    open_views: Vec<String>,
}

/// A view as declared.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) ast: CreateView,
}

/// What a script has declared so far.
pub(crate) struct Planner<'a> {
    pub(crate) connectors: &'a Connectors,
    pub(crate) tables: BTreeMap<String, Rc<Table>>,
    pub(crate) views: BTreeMap<String, Rc<View>>,
    /// Names whose declaration has an error: no complaints about their use.
    pub(crate) broken: BTreeSet<String>,
    pub(crate) settings: BTreeMap<String, String>,
    pub(crate) errors: Vec<Diagnostic>,
    pub(crate) job: Job,
    /// The sink of the INSERT at hand.
    pub(crate) sink: Option<String>,
    /// Tables whose options have been checked, for reading and for writing.
    pub(crate) checked: BTreeSet<(String, bool)>,
}

impl<'a> Planner<'a> {
    pub(crate) fn new(connectors: &'a Connectors, broken: Vec<String>) -> Planner<'a> {
        Planner {
            connectors,
            tables: BTreeMap::new(),
            views: BTreeMap::new(),
            broken: broken.into_iter().collect(),
            settings: BTreeMap::new(),
            errors: Vec::new(),
            job: Job::default(),
            sink: None,
            checked: BTreeSet::new(),
        }
    }

    /// The session's time zone.
    pub(crate) fn time_zone(&self) -> String {
        self.settings.get("table.local-time-zone").cloned().unwrap_or_else(|| "UTC".to_owned())
    }

    pub(crate) fn add(&mut self, node: Node, columns: Vec<PlanColumn>) -> Input {
        self.job.nodes.push(PlanNode { columns, node });
        Input::rows(self.job.nodes.len() - 1)
    }

    /// Columns of an outlet.
    pub(crate) fn columns(&self, input: Input) -> &[PlanColumn] {
        &self.job.nodes[input.node].columns
    }
}

impl Relation {
    /// Number of columns that the node really has.
    pub(crate) fn arity(&self) -> usize {
        self.scope.len() - if self.pending.is_some() { 3 } else { 0 }
    }

    /// The same rows under an alias.
    #[must_use]
    pub(crate) fn aliased(mut self, alias: &str) -> Relation {
        for column in &mut self.scope {
            column.table = Some(alias.to_owned());
        }
        self.name = alias.to_owned();
        self
    }
}

impl ScopeColumn {
    /// A column that SQL knows nothing more of.
    pub(crate) fn plain(name: &str, data_type: DataType) -> ScopeColumn {
        ScopeColumn {
            table: None,
            name: name.to_owned(),
            data_type,
            nullable: true,
            is_time: false,
            is_proctime: false,
            role: Role::Plain,
        }
    }

    pub(crate) fn plan(&self) -> PlanColumn {
        PlanColumn {
            name: self.name.clone(),
            data_type: self.data_type.clone(),
            nullable: self.nullable,
        }
    }
}

/// A length of time in words.
pub(crate) fn in_words(ms: Millis) -> String {
    let units = [(86_400_000, "day"), (3_600_000, "hour"), (60_000, "minute"), (1000, "second")];
    for (size, word) in units {
        if ms != 0 && ms % size == 0 {
            let count = ms / size;
            return format!("{count} {word}{}", if count.abs() == 1 { "" } else { "s" });
        }
    }
    if ms == 0 { "0 seconds".to_owned() } else { format!("{ms} ms") }
}
