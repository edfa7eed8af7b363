//! A job as a graph of sources, operator cores and sinks, before timely knows of it.
//!
//! Each worker builds the same graph from the job's plan, in the same order, with cores of its own;
//! the `flow` module then lifts it into timely. Edges only point to nodes that exist already, so a
//! graph has no cycles.

use arrow::datatypes::SchemaRef;
use std::sync::Arc;

use crate::expression::ExpressionRef;
use crate::operator::Operator;
use crate::sink::Sink;
use crate::source::Source;
use crate::time::Millis;

/// How rows reach the workers of a node's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// They stay on the worker where they are.
    Stay,
    /// By key group of these columns; no column at all means all rows on one worker.
    Keys(Vec<usize>),
}

/// An output of a node: rows of one schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Edge {
    /// The node's place in the graph.
    pub node: usize,
    /// Which of its outputs.
    pub output: Outlet,
}

/// The outputs that a node can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outlet {
    /// Results.
    Rows,
    /// Late rows: the input's columns, then `late_reason` STRING, `mark` TIMESTAMP(3), `late_by`
    /// BIGINT.
    Late,
    /// Dead letters: see [`dead_letter_schema`].
    Dead,
}

/// How event time and marks come out of a source's rows.
#[derive(Clone, Debug)]
pub struct SourceTime {
    /// The event-time column among the source's output columns (after `compute`), in milliseconds.
    pub column: usize,
    /// The delay of WATERMARK FOR, in milliseconds.
    pub delay: Millis,
    /// `watermark.max-ahead`; `None` switches the guard off.
    pub max_ahead: Option<Millis>,
}

/// A source within a job.
#[derive(Clone)]
pub struct SourceNode {
    /// Place of the source in the plan; part of every `SplitId`.
    pub index: u32,
    /// Table name.
    pub table: String,
    /// The connector's source.
    pub source: Arc<dyn Source>,
    /// What makes the output columns (physical, metadata and computed) of the rows that the source
    /// reads; `None` if they are the same.
    pub compute: Option<Vec<ExpressionRef>>,
    /// Schema of the output.
    pub schema: SchemaRef,
    /// Event time, if the table has a watermark.
    pub time: Option<SourceTime>,
    /// Whether it is read to its end before other sources start (a bounded table of a temporal
    /// join). Such a source never holds a watermark.
    pub table_first: bool,
    /// Whether dead letters are wanted.
    pub dead_letters: bool,
    /// `scan.watermark.idle-timeout`, `None` for never.
    pub idle_timeout: Option<Millis>,
    /// `scan.watermark.idle-on-disconnect`.
    pub idle_on_disconnect: bool,
    /// `scan.watermark.alignment.max-drift`.
    pub max_drift: Option<Millis>,
    /// `watermark.advance-after`.
    pub advance_after: Option<Millis>,
}

/// How rows are dealt to a sink's shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sharding {
    /// By key group of these columns: the primary key.
    Keys(Vec<usize>),
    /// By split; rows made by operators go to shard 0.
    Split,
}

/// A sink within a job.
#[derive(Clone)]
pub struct SinkNode {
    /// Table name.
    pub table: String,
    /// The connector's sink.
    pub sink: Arc<dyn Sink>,
    /// How rows are dealt to its shards.
    pub sharding: Sharding,
}

/// A node with its inputs.
pub enum Node {
    /// A source.
    Source(SourceNode),
    /// An operator core with its inputs, one a port.
    Operator {
        /// The core of this worker.
        core: Box<dyn Operator>,
        /// Inputs, one a port.
        inputs: Vec<(Edge, Exchange)>,
    },
    /// All rows of several edges of one schema.
    Union(Vec<Edge>),
    /// A sink.
    Sink {
        /// The sink.
        sink: SinkNode,
        /// Its input.
        input: Edge,
    },
}

/// A job's graph, built by adding nodes.
#[derive(Default)]
pub struct Graph {
    /// The nodes in the order in which they were added.
    pub nodes: Vec<Node>,
    /// How many workers build this graph, on all processes; 0 if that is not known.
    pub workers: usize,
}

impl Graph {
    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    /// Adds a source. Its outlets are `Rows` and `Dead`.
    pub fn source(&mut self, source: SourceNode) -> Edge {
        Edge { node: self.add(Node::Source(source)), output: Outlet::Rows }
    }

    /// Adds an operator. Its outlets are `Rows`, `Late` and `Dead`.
    pub fn operator(&mut self, core: Box<dyn Operator>, inputs: Vec<(Edge, Exchange)>) -> Edge {
        Edge { node: self.add(Node::Operator { core, inputs }), output: Outlet::Rows }
    }

    /// Adds a union.
    pub fn union(&mut self, inputs: Vec<Edge>) -> Edge {
        Edge { node: self.add(Node::Union(inputs)), output: Outlet::Rows }
    }

    /// Adds a sink.
    pub fn sink(&mut self, sink: SinkNode, input: Edge) {
        self.add(Node::Sink { sink, input });
    }
}

impl Edge {
    /// Another outlet of the same node.
    #[must_use]
    pub fn outlet(self, output: Outlet) -> Edge {
        Edge { node: self.node, output }
    }
}

/// The schema of dead letters: payload BYTES, source STRING, split STRING, offset BIGINT,
/// arrival TIMESTAMP_LTZ(3), reason STRING.
pub fn dead_letter_schema() -> SchemaRef {
    use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
    let arrival = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("payload", DataType::Binary, true),
        Field::new("source", DataType::Utf8, false),
        Field::new("split", DataType::Utf8, false),
        Field::new("offset", DataType::Int64, false),
        Field::new("arrival", arrival, true),
        Field::new("reason", DataType::Utf8, false),
    ]))
}

/// The three columns that follow the input's columns in a late row.
pub fn late_fields() -> [arrow::datatypes::Field; 3] {
    use arrow::datatypes::{DataType, Field, TimeUnit};
    [
        Field::new("late_reason", DataType::Utf8, false),
        Field::new("mark", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("late_by", DataType::Int64, false),
    ]
}
