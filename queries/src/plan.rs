//! Weir's own plan: what is stored with a job, shipped to every worker, and used at every restart.
//!
//! Serialisable and versioned; nothing of DataFusion or of the SQL is in it.

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use weir_engine::connector::TableSpec;
use weir_engine::time::Millis;
use weir_operators::aggregates::AggregateFunction;
use weir_operators::window::WindowShape;

/// Version of the form of plans; a plan of another version is refused.
pub const PLAN_VERSION: u32 = 1;

/// A job: an INSERT, or a STATEMENT SET. Inputs of a node come before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobPlan {
    /// See [`PLAN_VERSION`].
    pub version: u32,
    /// The sinks' names, for people.
    pub name: String,
    /// `table.local-time-zone`.
    pub time_zone: String,
    /// The nodes.
    pub nodes: Vec<PlanNode>,
}

/// A node with the columns of its result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanNode {
    /// Columns of the result; a sink has none.
    pub columns: Vec<PlanColumn>,
    /// What it does.
    pub node: Node,
}

/// A column of a result.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlanColumn {
    /// Name; need not be unique.
    pub name: String,
    /// Type.
    pub data_type: DataType,
    /// Whether it can be NULL.
    pub nullable: bool,
}

/// Which outlet of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Port {
    /// Results.
    Rows,
    /// Late rows: the columns of the node's first input, then three of their own.
    Late,
    /// Dead letters.
    Dead,
}

/// An input: a node before this one, and its outlet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Input {
    /// The node's place.
    pub node: usize,
    /// The outlet.
    pub port: Port,
}

impl Input {
    /// Results of a node.
    pub fn rows(node: usize) -> Input {
        Input { node, port: Port::Rows }
    }
}

/// Event time of a source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TimePlan {
    /// The column among the output's columns.
    pub column: usize,
    /// The delay of WATERMARK FOR.
    pub delay: Millis,
    /// `watermark.max-ahead`; `None` switches the guard off.
    pub max_ahead: Option<Millis>,
}

/// A source.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SourcePlan {
    /// The table, with the columns that are read.
    pub table: TableSpec,
    /// What makes the output columns of the columns read; `None` if they are the same.
    pub compute: Option<Vec<Scalar>>,
    /// Event time.
    pub time: Option<TimePlan>,
    /// Read to its end before streams start.
    pub table_first: bool,
    /// Whether dead letters are wanted.
    pub dead_letters: bool,
    /// `scan.watermark.idle-timeout`; `None` means never.
    pub idle_timeout: Option<Millis>,
    /// `scan.watermark.idle-on-disconnect`.
    pub idle_on_disconnect: bool,
    /// `scan.watermark.alignment.max-drift`.
    pub max_drift: Option<Millis>,
    /// `watermark.advance-after`.
    pub advance_after: Option<Millis>,
}

/// Windows of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WindowKind {
    /// Of fixed length.
    Fixed(WindowShape),
    /// Sessions with this gap.
    Session(Millis),
}

/// One aggregate call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CallPlan {
    /// The function.
    pub function: AggregateFunction,
    /// DISTINCT.
    pub distinct: bool,
    /// The arguments.
    pub arguments: Vec<Scalar>,
    /// FILTER (WHERE …).
    pub filter: Option<Scalar>,
    /// Type of the result.
    pub output: DataType,
}

/// What a node does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Node {
    /// Reads a table.
    Source(Box<SourcePlan>),
    /// Lets the first row of each key pass.
    Deduplicate {
        /// Its input: a source.
        input: Input,
        /// Key columns.
        keys: Vec<usize>,
        /// Event-time column.
        time: usize,
        /// `dedup.within`.
        within: Millis,
    },
    /// Filters and projects.
    RowWise {
        /// Its input.
        input: Input,
        /// BOOLEAN.
        filter: Option<Scalar>,
        /// `None`: all columns as they are.
        project: Option<Vec<Scalar>>,
    },
    /// Aggregates in windows. Columns: keys, window_start, window_end, calls.
    Window {
        /// Its input.
        input: Input,
        /// The windows.
        kind: WindowKind,
        /// Event-time column.
        time: usize,
        /// Key columns.
        keys: Vec<usize>,
        /// The calls.
        calls: Vec<CallPlan>,
        /// Whether late rows are wanted.
        collect_late: bool,
    },
    /// Joins a table as of a time. Columns: the stream's, then the table's.
    TemporalJoin {
        /// The stream.
        left: Input,
        /// The table.
        right: Input,
        /// Key columns of the stream.
        left_keys: Vec<usize>,
        /// Key columns of the table.
        right_keys: Vec<usize>,
        /// Event time of the stream; `None`: as of the epoch.
        left_time: Option<usize>,
        /// Version time of the table; `None`: the latest as of the epoch.
        right_time: Option<usize>,
        /// Whether rows without a version stay.
        left_outer: bool,
        /// Whether the table ends before the stream starts.
        bounded: bool,
        /// `versions.keep`.
        keep: Millis,
    },
    /// Joins a view over windows, each valid for one slide after its end.
    WindowVersionJoin {
        /// The stream.
        left: Input,
        /// The view.
        right: Input,
        /// Key columns of the stream.
        left_keys: Vec<usize>,
        /// Key columns of the view.
        right_keys: Vec<usize>,
        /// Event time of the stream.
        left_time: usize,
        /// `window_end` or `window_time` of the view.
        right_version: usize,
        /// Whether it is `window_end`.
        version_is_end: bool,
        /// The windows' slide.
        slide: Millis,
        /// Where the ends lie, modulo the slide.
        offset: Millis,
        /// Whether rows without a window stay.
        left_outer: bool,
        /// Whether late rows are wanted.
        collect_late: bool,
    },
    /// All rows of several inputs.
    Union {
        /// Its inputs.
        inputs: Vec<Input>,
    },
    /// Writes a table.
    Sink {
        /// Its input, with the table's columns in its order.
        input: Input,
        /// The table.
        table: TableSpec,
        /// Places of the primary key's columns.
        keys: Vec<usize>,
    },
}

impl Node {
    /// The table that it reads or writes.
    pub fn table(&self) -> Option<&TableSpec> {
        match self {
            Node::Source(source) => Some(&source.table),
            Node::Sink { table, .. } => Some(table),
            _ => None,
        }
    }

    /// The table that it reads or writes, to be changed.
    pub fn table_mut(&mut self) -> Option<&mut TableSpec> {
        match self {
            Node::Source(source) => Some(&mut source.table),
            Node::Sink { table, .. } => Some(table),
            _ => None,
        }
    }
}

/// A scalar expression over the columns of a node's input, typed, all conversions spelled out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Scalar {
    /// Type of the value.
    pub data_type: DataType,
    /// What it is.
    pub kind: ScalarKind,
}

/// A literal value; its type stands beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Datum {
    /// NULL.
    Null,
    /// TRUE or FALSE.
    Boolean(bool),
    /// Integers, dates (days), times, timestamps and intervals (in the type's unit).
    Integer(i64),
    /// Strings as they are, floats and decimals as decimal text.
    Text(String),
}

/// Operators whose two sides have one type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum BinaryOp {
    And,
    Or,
    Eq,
    NotEq,
    Lt,
    LtEq,
    Gt,
    GtEq,
    Plus,
    Minus,
    Multiply,
    Divide,
    Modulo,
    DistinctFrom,
    NotDistinctFrom,
}

/// Kinds of expressions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ScalarKind {
    /// A column of the input.
    Column(usize),
    /// A literal.
    Literal(Datum),
    /// An operator.
    Binary(BinaryOp, Box<Scalar>, Box<Scalar>),
    /// NOT.
    Not(Box<Scalar>),
    /// IS NULL.
    IsNull(Box<Scalar>),
    /// CASE WHEN … THEN … ELSE; conditions are BOOLEAN.
    Case(Vec<(Scalar, Scalar)>, Box<Scalar>),
    /// CAST; with `true` what cannot be converted is NULL.
    Cast(Box<Scalar>, bool),
    /// A field of a ROW.
    Field(Box<Scalar>, String),
    /// A function of Weir's, by name.
    Call(String, Vec<Scalar>),
    /// The epoch's recorded time.
    RecordedTime,
}

impl Scalar {
    /// A column.
    pub fn column(index: usize, data_type: DataType) -> Scalar {
        Scalar { data_type, kind: ScalarKind::Column(index) }
    }

    /// A literal.
    pub fn literal(datum: Datum, data_type: DataType) -> Scalar {
        Scalar { data_type, kind: ScalarKind::Literal(datum) }
    }

    /// A string literal.
    pub fn text(text: impl Into<String>) -> Scalar {
        Scalar::literal(Datum::Text(text.into()), DataType::Utf8)
    }

    /// NULL of a type.
    pub fn null(data_type: DataType) -> Scalar {
        Scalar::literal(Datum::Null, data_type)
    }

    /// A call of one of Weir's functions.
    pub fn call(name: &str, args: Vec<Scalar>, data_type: DataType) -> Scalar {
        Scalar { data_type, kind: ScalarKind::Call(name.to_owned(), args) }
    }

    /// An operator.
    pub fn binary(op: BinaryOp, left: Scalar, right: Scalar, data_type: DataType) -> Scalar {
        Scalar { data_type, kind: ScalarKind::Binary(op, Box::new(left), Box::new(right)) }
    }

    /// Both hold.
    pub fn and(left: Scalar, right: Scalar) -> Scalar {
        Scalar::binary(BinaryOp::And, left, right, DataType::Boolean)
    }

    /// The parts that the expression is made of.
    pub fn children(&self) -> Vec<&Scalar> {
        match &self.kind {
            ScalarKind::Column(_) | ScalarKind::Literal(_) | ScalarKind::RecordedTime => vec![],
            ScalarKind::Binary(_, left, right) => vec![left, right],
            ScalarKind::Not(e)
            | ScalarKind::IsNull(e)
            | ScalarKind::Cast(e, _)
            | ScalarKind::Field(e, _) => vec![e],
            ScalarKind::Case(whens, otherwise) => {
                let pairs = whens.iter().flat_map(|(when, then)| [when, then]);
                pairs.chain([otherwise.as_ref()]).collect()
            }
            ScalarKind::Call(_, args) => args.iter().collect(),
        }
    }

    fn children_mut(&mut self) -> Vec<&mut Scalar> {
        match &mut self.kind {
            ScalarKind::Column(_) | ScalarKind::Literal(_) | ScalarKind::RecordedTime => vec![],
            ScalarKind::Binary(_, left, right) => vec![left, right],
            ScalarKind::Not(e)
            | ScalarKind::IsNull(e)
            | ScalarKind::Cast(e, _)
            | ScalarKind::Field(e, _) => vec![e],
            ScalarKind::Case(whens, otherwise) => {
                let pairs = whens.iter_mut().flat_map(|(when, then)| [when, then]);
                pairs.chain([otherwise.as_mut()]).collect()
            }
            ScalarKind::Call(_, args) => args.iter_mut().collect(),
        }
    }

    /// Calls `visit` for each column.
    pub fn for_each_column(&self, visit: &mut impl FnMut(usize)) {
        if let ScalarKind::Column(index) = self.kind {
            visit(index);
        }
        for child in self.children() {
            child.for_each_column(visit);
        }
    }

    /// Gives columns other places.
    pub fn move_columns(&mut self, place: &impl Fn(usize) -> usize) {
        if let ScalarKind::Column(index) = &mut self.kind {
            *index = place(*index);
        }
        for child in self.children_mut() {
            child.move_columns(place);
        }
    }

    /// Puts expressions in the place of columns.
    #[must_use]
    pub fn substitute(mut self, columns: &[Scalar]) -> Scalar {
        if let ScalarKind::Column(index) = self.kind {
            return columns[index].clone();
        }
        for child in self.children_mut() {
            let inner = std::mem::replace(child, Scalar::null(DataType::Null));
            *child = inner.substitute(columns);
        }
        self
    }

    /// Whether it reads the recorded time.
    pub fn uses_time(&self) -> bool {
        self.kind == ScalarKind::RecordedTime || self.children().iter().any(|c| c.uses_time())
    }

    /// The column, if it is just that.
    pub fn as_column(&self) -> Option<usize> {
        match self.kind {
            ScalarKind::Column(index) => Some(index),
            _ => None,
        }
    }
}

/// Columns as an Arrow schema.
pub fn schema_of(columns: &[PlanColumn]) -> SchemaRef {
    let field = |c: &PlanColumn| Field::new(&c.name, c.data_type.clone(), c.nullable);
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}
