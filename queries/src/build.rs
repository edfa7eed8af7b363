//! A plan as the engine's graph, on every worker, with cores of its own.

use arrow::datatypes::{Field, Schema, SchemaRef};
use std::sync::Arc;
use thiserror::Error;
use weir_engine::connector::{Connectors, OptionError};
use weir_engine::expression::ExpressionRef;
use weir_engine::graph::{
    Edge, Exchange, Graph, Outlet, Sharding, SinkNode, SourceNode, SourceTime,
};
use weir_engine::operator::{Operator, OperatorError};
use weir_operators::aggregates::AggregateCall;
use weir_operators::dedup::{Deduplicate, DeduplicateSpec};
use weir_operators::rowwise::{RowWise, RowWiseSpec};
use weir_operators::session::{SessionAggregate, SessionAggregateSpec};
use weir_operators::temporal::{
    TemporalJoin, TemporalJoinSpec, WindowVersionJoin, WindowVersionJoinSpec,
};
use weir_operators::window::{PreAggregate, WindowAggregate, WindowAggregateSpec, WindowShape};

use crate::compile::compile;
use crate::plan::{
    CallPlan, Input, JobPlan, Node, PLAN_VERSION, PlanColumn, PlanNode, Port, Scalar, SourcePlan,
    WindowKind, schema_of,
};

/// Why a plan cannot be built here, though it was planned.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The plan is of another version.
    #[error("the plan has version {0}, this build reads {PLAN_VERSION}")]
    Version(u32),
    /// This build lacks a connector.
    #[error("this build has no connector `{0}`")]
    Connector(String),
    /// A connector refuses its options.
    #[error("table `{table}`: {error}")]
    Option {
        /// The table.
        table: String,
        /// The first complaint.
        error: OptionError,
    },
    /// An expression does not compile.
    #[error("an expression does not compile: {0}")]
    Expression(String),
    /// An operator refuses its plan.
    #[error(transparent)]
    Operator(#[from] OperatorError),
}

/// Adds a job's nodes to an empty graph.
pub fn build(plan: &JobPlan, connectors: &Connectors, graph: &mut Graph) -> Result<(), BuildError> {
    if plan.version != PLAN_VERSION {
        return Err(BuildError::Version(plan.version));
    }
    let mut builder = Builder { plan, connectors, graph, edges: Vec::new(), sources: 0 };
    for node in &plan.nodes {
        let edge = builder.node(node)?;
        builder.edges.push(edge);
    }
    Ok(())
}

struct Builder<'a> {
    plan: &'a JobPlan,
    connectors: &'a Connectors,
    graph: &'a mut Graph,
    /// Where each node of the plan came to be; a sink's is that of its input.
    edges: Vec<Edge>,
    sources: u32,
}

fn aggregate_calls(
    calls: &[CallPlan],
    input: &SchemaRef,
) -> Result<Vec<AggregateCall>, BuildError> {
    let call = |c: &CallPlan| -> Result<AggregateCall, BuildError> {
        Ok(AggregateCall {
            function: c.function,
            distinct: c.distinct,
            arguments: compile_all(&c.arguments, input)?,
            filter: c.filter.as_ref().map(|f| compile_one(f, input)).transpose()?,
            output: c.output.clone(),
        })
    };
    calls.iter().map(call).collect()
}

fn first_error(table: &str, errors: Vec<OptionError>) -> BuildError {
    let none = OptionError { key: None, message: "refused".into(), hint: None };
    let error = errors.into_iter().next().unwrap_or(none);
    BuildError::Option { table: table.to_owned(), error }
}

impl Builder<'_> {
    fn edge(&self, input: Input) -> Edge {
        let outlet = match input.port {
            Port::Rows => Outlet::Rows,
            Port::Late => Outlet::Late,
            Port::Dead => Outlet::Dead,
        };
        self.edges[input.node].outlet(outlet)
    }

    fn schema(&self, input: Input) -> SchemaRef {
        match input.port {
            Port::Rows => schema_of(&self.plan.nodes[input.node].columns),
            Port::Late => schema_of(&late_columns(&self.plan.nodes, input.node)),
            Port::Dead => weir_engine::graph::dead_letter_schema(),
        }
    }

    fn node(&mut self, node: &PlanNode) -> Result<Edge, BuildError> {
        let output = schema_of(&node.columns);
        match &node.node {
            Node::Source(source) => self.source(source, output),
            Node::Union { inputs } => {
                let edges = inputs.iter().map(|&i| self.edge(i)).collect();
                Ok(self.graph.union(edges))
            }
            Node::Sink { input, table, keys } => {
                let name = table.option("connector").unwrap_or_default();
                let connector = self.connectors.get(name);
                let connector = connector.ok_or_else(|| BuildError::Connector(name.to_owned()))?;
                let sink = connector.sink(table).map_err(|e| first_error(&table.name, e))?;
                let sharding =
                    if keys.is_empty() { Sharding::Split } else { Sharding::Keys(keys.clone()) };
                let edge = self.edge(*input);
                let node = SinkNode { table: table.name.clone(), sink: Arc::from(sink), sharding };
                self.graph.sink(node, edge);
                Ok(edge)
            }
            node => self.operator(node, output),
        }
    }

    fn source(&mut self, plan: &SourcePlan, schema: SchemaRef) -> Result<Edge, BuildError> {
        let name = plan.table.option("connector").unwrap_or_default();
        let connector = self.connectors.get(name);
        let connector = connector.ok_or_else(|| BuildError::Connector(name.to_owned()))?;
        let source = connector.source(&plan.table).map_err(|e| first_error(&plan.table.name, e))?;
        let read = plan.table.schema();
        let compute = plan.compute.as_ref().map(|c| compile_all(c, &read)).transpose()?;
        let index = self.sources;
        self.sources += 1;
        let time = plan.time.as_ref().map(|t| SourceTime {
            column: t.column,
            delay: t.delay,
            max_ahead: t.max_ahead,
        });
        Ok(self.graph.source(SourceNode {
            index,
            table: plan.table.name.clone(),
            source: Arc::from(source),
            compute,
            schema,
            time,
            table_first: plan.table_first,
            dead_letters: plan.dead_letters,
            idle_timeout: plan.idle_timeout,
            idle_on_disconnect: plan.idle_on_disconnect,
            max_drift: plan.max_drift,
            advance_after: plan.advance_after,
        }))
    }

    fn operator(&mut self, node: &Node, output: SchemaRef) -> Result<Edge, BuildError> {
        let keyed = |edge: Edge, keys: &[usize]| (edge, Exchange::Keys(keys.to_vec()));
        let (core, inputs): (Box<dyn Operator>, Vec<(Edge, Exchange)>) = match node {
            Node::RowWise { input, filter, project } => {
                let core = self.row_wise(*input, filter.as_ref(), project.as_deref(), output)?;
                (core, vec![(self.edge(*input), Exchange::Stay)])
            }
            Node::Deduplicate { input, keys, .. } => {
                (self.deduplicate(node)?, vec![keyed(self.edge(*input), keys)])
            }
            Node::Window { input, keys, .. } => {
                let mut edge = self.edge(*input);
                if let Some(before) = self.pre_aggregate(node, &output)? {
                    edge = self.graph.operator(before, vec![(edge, Exchange::Stay)]);
                }
                (self.window(node, output)?, vec![keyed(edge, keys)])
            }
            Node::TemporalJoin { left, right, left_keys, right_keys, .. }
            | Node::WindowVersionJoin { left, right, left_keys, right_keys, .. } => {
                let inputs =
                    vec![keyed(self.edge(*left), left_keys), keyed(self.edge(*right), right_keys)];
                (self.join(node, output)?, inputs)
            }
            Node::Source(_) | Node::Union { .. } | Node::Sink { .. } => {
                unreachable!("made elsewhere")
            }
        };
        Ok(self.graph.operator(core, inputs))
    }

    fn deduplicate(&self, node: &Node) -> Result<Box<dyn Operator>, BuildError> {
        let Node::Deduplicate { input, keys, time, within } = node else {
            unreachable!("asked for a deduplication")
        };
        let (input, keys) = (self.schema(*input), keys.clone());
        let spec = DeduplicateSpec { keys, time: *time, within: *within, input };
        Ok(Box::new(Deduplicate::new(spec)?))
    }

    fn row_wise(
        &self,
        input: Input,
        filter: Option<&Scalar>,
        project: Option<&[Scalar]>,
        output: SchemaRef,
    ) -> Result<Box<dyn Operator>, BuildError> {
        let schema = self.schema(input);
        let all = filter.into_iter().chain(project.unwrap_or_default());
        let uses_time = all.into_iter().any(Scalar::uses_time);
        Ok(Box::new(RowWise::new(RowWiseSpec {
            filter: filter.map(|f| compile_one(f, &schema)).transpose()?,
            project: project.map(|p| compile_all(p, &schema)).transpose()?,
            output,
            uses_time,
        })))
    }

    /// What adds rows up before they go to another worker, if there is one.
    fn pre_aggregate(
        &self,
        node: &Node,
        output: &SchemaRef,
    ) -> Result<Option<Box<dyn Operator>>, BuildError> {
        let Node::Window { kind: WindowKind::Fixed(shape), .. } = node else { return Ok(None) };
        let spec = self.fixed_window(node, *shape, output.clone())?;
        if self.graph.workers < 2 || !PreAggregate::is_worth_trying(&spec) {
            return Ok(None);
        }
        Ok(Some(Box::new(PreAggregate::new(spec)?)))
    }

    fn fixed_window(
        &self,
        node: &Node,
        shape: WindowShape,
        output: SchemaRef,
    ) -> Result<WindowAggregateSpec, BuildError> {
        let Node::Window { input, time, keys, calls, collect_late, .. } = node else {
            unreachable!("asked for a window")
        };
        let input = self.schema(*input);
        let (time, keys, collect_late) = (*time, keys.clone(), *collect_late);
        let calls = aggregate_calls(calls, &input)?;
        Ok(WindowAggregateSpec { shape, time, keys, calls, collect_late, input, output })
    }

    fn window(&self, node: &Node, output: SchemaRef) -> Result<Box<dyn Operator>, BuildError> {
        let Node::Window { input, kind, time, keys, calls, collect_late } = node else {
            unreachable!("asked for a window")
        };
        let (time, keys, collect_late) = (*time, keys.clone(), *collect_late);
        Ok(match *kind {
            WindowKind::Fixed(shape) => {
                Box::new(WindowAggregate::new(self.fixed_window(node, shape, output)?)?)
            }
            WindowKind::Session(gap) => {
                let input = self.schema(*input);
                let calls = aggregate_calls(calls, &input)?;
                let spec =
                    SessionAggregateSpec { gap, time, keys, calls, collect_late, input, output };
                Box::new(SessionAggregate::new(spec)?)
            }
        })
    }

    fn join(&self, node: &Node, output: SchemaRef) -> Result<Box<dyn Operator>, BuildError> {
        Ok(match node {
            Node::TemporalJoin {
                left,
                right,
                left_keys,
                right_keys,
                left_time,
                right_time,
                left_outer,
                bounded,
                keep,
            } => Box::new(TemporalJoin::new(TemporalJoinSpec {
                left_keys: left_keys.clone(),
                right_keys: right_keys.clone(),
                left_time: *left_time,
                right_time: *right_time,
                left_outer: *left_outer,
                bounded: *bounded,
                keep: *keep,
                left: self.schema(*left),
                right: self.schema(*right),
                output,
            })?),
            Node::WindowVersionJoin {
                left,
                right,
                left_keys,
                right_keys,
                left_time,
                right_version,
                version_is_end,
                slide,
                offset,
                left_outer,
                collect_late,
            } => Box::new(WindowVersionJoin::new(WindowVersionJoinSpec {
                left_keys: left_keys.clone(),
                right_keys: right_keys.clone(),
                left_time: *left_time,
                right_version: *right_version,
                version_is_end: *version_is_end,
                slide: *slide,
                offset: *offset,
                left_outer: *left_outer,
                collect_late: *collect_late,
                left: self.schema(*left),
                right: self.schema(*right),
                output,
            })?),
            _ => unreachable!("asked for a join"),
        })
    }
}

/// The columns of a node's late rows: those of its first input, then the three of their own.
pub(crate) fn late_columns(nodes: &[PlanNode], node: usize) -> Vec<PlanColumn> {
    let input = match &nodes[node].node {
        Node::Window { input, .. } => *input,
        Node::WindowVersionJoin { left, .. } => *left,
        _ => Input::rows(node),
    };
    let mut columns = nodes[input.node].columns.clone();
    columns.extend(weir_engine::graph::late_fields().into_iter().map(|f| PlanColumn {
        name: f.name().clone(),
        data_type: f.data_type().clone(),
        nullable: f.is_nullable(),
    }));
    columns
}

fn compile_one(scalar: &Scalar, input: &SchemaRef) -> Result<ExpressionRef, BuildError> {
    compile(scalar, input).map_err(BuildError::Expression)
}

fn compile_all(scalars: &[Scalar], input: &SchemaRef) -> Result<Vec<ExpressionRef>, BuildError> {
    scalars.iter().map(|s| compile_one(s, input)).collect()
}

/// Compiles every expression of a plan, so that what would fail on the workers fails at planning.
pub(crate) fn check(plan: &JobPlan) -> Result<(), BuildError> {
    let none = Connectors::default();
    let mut graph = Graph::default();
    let builder = Builder { plan, connectors: &none, graph: &mut graph, edges: vec![], sources: 0 };
    for node in &plan.nodes {
        let output = schema_of(&node.columns);
        match &node.node {
            Node::Source(source) => {
                let read: SchemaRef = Arc::new(Schema::new(
                    source.table.schema().fields().iter().cloned().collect::<Vec<Arc<Field>>>(),
                ));
                compile_all(source.compute.as_deref().unwrap_or_default(), &read)?;
            }
            Node::Deduplicate { .. } => {
                builder.deduplicate(&node.node)?;
            }
            Node::RowWise { input, filter, project } => {
                builder.row_wise(*input, filter.as_ref(), project.as_deref(), output)?;
            }
            Node::Window { .. } => {
                builder.window(&node.node, output)?;
            }
            Node::TemporalJoin { .. } | Node::WindowVersionJoin { .. } => {
                builder.join(&node.node, output)?;
            }
            Node::Union { .. } | Node::Sink { .. } => {}
        }
    }
    Ok(())
}
