//! Tables as sources of a job, with the options that the engine reads.

use weir_engine::connector::ColumnSpec;

use super::{Bound, Job, Planner, Relation, Table};
use crate::diagnostics::Diagnostic;
use crate::plan::{Input, Node, Port, Scalar, SourcePlan, TimePlan};

/// `watermark.max-ahead` without the option.
const MAX_AHEAD_DEFAULT: i64 = 5 * 60_000;
/// `scan.watermark.idle-timeout` without the option.
const IDLE_TIMEOUT_DEFAULT: i64 = 30_000;

impl Planner<'_> {
    /// The source of a table; one a job, another if it is read to its end first.
    pub(super) fn source(&mut self, table: &Table, table_first: bool) -> Bound<Relation> {
        let key = (table.name().to_owned(), table_first);
        if let Some(known) = self.job.sources.get(&key) {
            return Ok(known.clone());
        }
        self.check_options(table, true)?;
        let idle = self.duration(table, "scan.watermark.idle-timeout")?;
        let idle_timeout = Some(idle.unwrap_or(IDLE_TIMEOUT_DEFAULT)).filter(|&ms| ms > 0);
        let max_ahead = match table.option("watermark.max-ahead") {
            Some((_, v)) if v.text.eq_ignore_ascii_case("none") => None,
            _ => Some(self.duration(table, "watermark.max-ahead")?.unwrap_or(MAX_AHEAD_DEFAULT)),
        };
        let plain = table.compute.iter().enumerate().all(|(i, s)| s.as_column() == Some(i));
        let plan = SourcePlan {
            table: table.spec(table.read.clone()),
            compute: (!plain).then(|| table.compute.clone()),
            time: table.time.map(|(column, delay)| TimePlan { column, delay, max_ahead }),
            table_first,
            dead_letters: table.option("dead-letter.table").is_some(),
            idle_timeout,
            idle_on_disconnect: self.switch(table, "scan.watermark.idle-on-disconnect")?,
            max_drift: self.duration(table, "scan.watermark.alignment.max-drift")?,
            advance_after: self.duration(table, "watermark.advance-after")?,
        };
        let columns: Vec<_> = table.columns.iter().map(super::ScopeColumn::plan).collect();
        let mut input = self.add(Node::Source(Box::new(plan)), columns.clone());
        if let (Some(within), Some((time, _))) = (table.dedup_within, table.time) {
            let keys = table.places(&table.ast.primary_key);
            input = self.add(Node::Deduplicate { input, keys, time, within }, columns);
        }
        let relation = Relation {
            input,
            scope: table.columns.clone(),
            pending: None,
            name: table.name().to_owned(),
            late_nodes: Vec::new(),
        };
        self.job.sources.insert(key, relation.clone());
        Ok(relation)
    }

    /// Sends the dead letters of sources, and of the operators behind them, to their tables.
    pub(super) fn dead_letters(&mut self) -> Bound<()> {
        let count = self.job.nodes.len();
        let mut letters: Vec<Option<String>> = vec![None; count];
        for at in 0..count {
            let target = match &self.job.nodes[at].node {
                Node::Source(source) => source.table.option("dead-letter.table").map(str::to_owned),
                Node::Sink { .. } | Node::Union { .. } => None,
                node => inputs_of(node).iter().find_map(|i| letters[i.node].clone()),
            };
            letters[at] = match &self.job.nodes[at].node {
                Node::Union { inputs } => inputs.iter().find_map(|i| letters[i.node].clone()),
                _ => target,
            };
        }
        for (at, target) in letters.into_iter().enumerate() {
            let Some(target) = target else { continue };
            if matches!(self.job.nodes[at].node, Node::Union { .. } | Node::Sink { .. }) {
                continue;
            }
            self.dead_letters_of(at, &target)?;
        }
        Ok(())
    }

    fn dead_letters_of(&mut self, at: usize, target: &str) -> Bound<()> {
        let place = match &self.job.nodes[at].node {
            Node::Source(source) => self
                .tables
                .get(&source.table.name)
                .and_then(|t| t.option("dead-letter.table").map(|(_, value)| value.span)),
            _ => None,
        };
        let span = place.unwrap_or(crate::diagnostics::Span {
            line: 1,
            column: 1,
            end_line: 1,
            end_column: 2,
        });
        let Some(table) = self.tables.get(target).cloned() else {
            let message = format!("table `{target}` for dead letters does not exist");
            let names: Vec<String> = self.tables.keys().cloned().collect();
            let names = names.iter().map(String::as_str);
            return Err(Diagnostic::new(span, message).meant(target, names));
        };
        self.check_options(&table, false)?;
        let schema = weir_engine::graph::dead_letter_schema();
        let have: Vec<(String, Scalar)> = schema
            .fields()
            .iter()
            .enumerate()
            .map(|(i, f)| (f.name().clone(), Scalar::column(i, f.data_type().clone())))
            .collect();
        let input = Input { node: at, port: Port::Dead };
        let project = self.by_name(&table, &have, span)?;
        self.feed(&table, input, project);
        Ok(())
    }

    /// A table's columns from others by name; what isn't there is an error.
    pub(super) fn by_name(
        &self,
        table: &Table,
        have: &[(String, Scalar)],
        span: crate::diagnostics::Span,
    ) -> Bound<Vec<Scalar>> {
        let zone = self.time_zone();
        let column = |c: &ColumnSpec| {
            let Some((_, value)) = have.iter().find(|(name, _)| *name == c.name) else {
                let names: Vec<&str> = have.iter().map(|(name, _)| name.as_str()).collect();
                let message = format!(
                    "`{}` has a column `{}`, which these rows do not have",
                    table.name(),
                    c.name
                );
                let error = Diagnostic::new(span, message).meant(&c.name, names.iter().copied());
                return Err(error.detail(format!("their columns are {}", names.join(", "))));
            };
            let value = if c.data_type == arrow::datatypes::DataType::Utf8
                && value.data_type == arrow::datatypes::DataType::Binary
            {
                crate::types::cast(value.clone(), &c.data_type, true, &zone)
            } else {
                value.clone()
            };
            super::tables::assigned(value, c, table.name(), span, &zone)
        };
        table.written().iter().map(column).collect()
    }

    /// Adds rows to a sink.
    pub(super) fn feed(&mut self, table: &Table, input: Input, project: Vec<Scalar>) {
        let columns = table
            .written()
            .iter()
            .map(|c| crate::plan::PlanColumn {
                name: c.name.clone(),
                data_type: c.data_type.clone(),
                nullable: c.nullable,
            })
            .collect();
        let node = Node::RowWise { input, filter: None, project: Some(project) };
        let input = self.add(node, columns);
        self.job.feed_sink(table.name(), input);
    }
}

impl Job {
    fn feed_sink(&mut self, table: &str, input: Input) {
        match self.sinks.iter_mut().find(|(name, _)| name == table) {
            Some((_, inputs)) => inputs.push(input),
            None => self.sinks.push((table.to_owned(), vec![input])),
        }
    }

    /// The sinks' names with their inputs, in the order of first use.
    pub(super) fn take_sinks(&mut self) -> Vec<(String, Vec<Input>)> {
        std::mem::take(&mut self.sinks)
    }
}

/// The inputs of a node.
pub(crate) fn inputs_of(node: &Node) -> Vec<Input> {
    match node {
        Node::Source(_) => Vec::new(),
        Node::Deduplicate { input, .. }
        | Node::RowWise { input, .. }
        | Node::Window { input, .. }
        | Node::Sink { input, .. } => vec![*input],
        Node::TemporalJoin { left, right, .. } | Node::WindowVersionJoin { left, right, .. } => {
            vec![*left, *right]
        }
        Node::Union { inputs } => inputs.clone(),
    }
}
