//! The statements of a script as they stand there, with places.

use arrow::datatypes::DataType;

use crate::diagnostics::Span;
use crate::tokens::Name;

/// A statement.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    CreateTable(CreateTable),
    CreateView(CreateView),
    Drop {
        name: Name,
        if_exists: bool,
        view: bool,
    },
    Set {
        key: Name,
        value: Name,
    },
    Explain(Box<Statement>),
    Insert(Insert),
    /// A query by itself, in EXPLAIN.
    Query(Query),
    Set_(Vec<Insert>),
}

#[derive(Clone, Debug)]
pub(crate) struct CreateTable {
    pub(crate) name: Name,
    pub(crate) if_not_exists: bool,
    pub(crate) columns: Vec<ColumnDef>,
    pub(crate) watermark: Option<(Name, Expr)>,
    pub(crate) primary_key: Vec<Name>,
    pub(crate) partitioned_by: Vec<Name>,
    pub(crate) options: Vec<(Name, Name)>,
}

#[derive(Clone, Debug)]
pub(crate) struct ColumnDef {
    pub(crate) name: Name,
    pub(crate) kind: ColumnKind,
}

#[derive(Clone, Debug)]
pub(crate) enum ColumnKind {
    Physical { data_type: DataType, not_null: bool },
    Metadata { data_type: DataType, key: Option<Name>, not_null: bool, is_virtual: bool },
    Computed(Expr),
}

#[derive(Clone, Debug)]
pub(crate) struct CreateView {
    pub(crate) name: Name,
    pub(crate) if_not_exists: bool,
    pub(crate) columns: Vec<Name>,
    pub(crate) query: Query,
}

#[derive(Clone, Debug)]
pub(crate) struct Insert {
    pub(crate) table: Name,
    pub(crate) columns: Vec<Name>,
    pub(crate) query: Query,
}

/// A query: one SELECT, or several by UNION ALL, with the late clause at its end.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    pub(crate) selects: Vec<Select>,
    pub(crate) late: Option<Late>,
}

/// ON LATE DROP or ON LATE INTO t.
#[derive(Clone, Debug)]
pub(crate) struct Late {
    pub(crate) span: Span,
    pub(crate) into: Option<Name>,
}

#[derive(Clone, Debug)]
pub(crate) struct Select {
    pub(crate) span: Span,
    pub(crate) items: Vec<Item>,
    pub(crate) from: Option<From>,
    pub(crate) filter: Option<Expr>,
    pub(crate) group_by: Option<GroupBy>,
    pub(crate) having: Option<Expr>,
}

#[derive(Clone, Debug)]
pub(crate) enum Item {
    /// `*` or `t.*`.
    All {
        table: Option<Name>,
        span: Span,
    },
    Expr {
        expr: Expr,
        alias: Option<Name>,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct GroupBy {
    pub(crate) span: Span,
    /// Expressions in all sets.
    pub(crate) plain: Vec<Expr>,
    /// The sets of GROUPING SETS, ROLLUP or CUBE; empty without one.
    pub(crate) sets: Vec<Vec<Expr>>,
}

/// What stands behind FROM.
#[derive(Clone, Debug)]
pub(crate) struct From {
    pub(crate) first: Factor,
    pub(crate) joins: Vec<Join>,
}

#[derive(Clone, Debug)]
pub(crate) struct Factor {
    pub(crate) kind: FactorKind,
    pub(crate) alias: Option<Name>,
    pub(crate) span: Span,
    /// FOR SYSTEM_TIME AS OF.
    pub(crate) as_of: Option<Expr>,
}

#[derive(Clone, Debug)]
pub(crate) enum FactorKind {
    Table(Name),
    Query(Box<Query>),
    /// A window table function.
    Window(WindowCall),
}

#[derive(Clone, Debug)]
pub(crate) struct WindowCall {
    pub(crate) function: Name,
    /// Table or subquery.
    pub(crate) input: Box<Factor>,
    pub(crate) time: Name,
    pub(crate) partition_by: Vec<Name>,
    /// The intervals with the names given to them, if any.
    pub(crate) arguments: Vec<(Option<Name>, Expr)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Join {
    pub(crate) span: Span,
    pub(crate) left_outer: bool,
    /// What kind of join it is, as written, where it isn't inner or left.
    pub(crate) other: Option<String>,
    pub(crate) factor: Factor,
    pub(crate) on: Option<Expr>,
}

/// An expression with its place.
#[derive(Clone, Debug)]
pub(crate) struct Expr {
    pub(crate) span: Span,
    pub(crate) kind: ExprKind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    Null,
    Boolean(bool),
    Number(String),
    String(String),
    /// DATE '…', TIME '…', TIMESTAMP '…'.
    Date(String),
    Time(String),
    Timestamp(String),
    /// Milliseconds.
    Interval(i64),
    Months(i32),
}

#[derive(Clone, Debug)]
pub(crate) enum ExprKind {
    Value(Value),
    /// `a`, `t.a`, `t.a.b`, `a.b`.
    Path(Vec<Name>),
    Binary {
        op: Op,
        left: Box<Expr>,
        right: Box<Expr>,
    },
    Not(Box<Expr>),
    Negate(Box<Expr>),
    IsNull {
        expr: Box<Expr>,
        negated: bool,
    },
    /// IS \[NOT\] TRUE | FALSE.
    IsTruth {
        expr: Box<Expr>,
        truth: bool,
        negated: bool,
    },
    IsDistinct {
        left: Box<Expr>,
        right: Box<Expr>,
        negated: bool,
    },
    In {
        expr: Box<Expr>,
        list: Vec<Expr>,
        negated: bool,
    },
    Between {
        expr: Box<Expr>,
        low: Box<Expr>,
        high: Box<Expr>,
        negated: bool,
    },
    Like {
        expr: Box<Expr>,
        pattern: Box<Expr>,
        escape: Option<Name>,
        similar: bool,
        negated: bool,
    },
    Case {
        operand: Option<Box<Expr>>,
        whens: Vec<(Expr, Expr)>,
        otherwise: Option<Box<Expr>>,
    },
    Cast {
        expr: Box<Expr>,
        data_type: DataType,
        safe: bool,
    },
    Call(Call),
    Element {
        expr: Box<Expr>,
        index: Box<Expr>,
    },
    Field {
        expr: Box<Expr>,
        name: Name,
    },
    /// ROW(a, b) or (a, b).
    Row(Vec<Expr>),
}

#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) name: Name,
    pub(crate) distinct: bool,
    /// `COUNT(*)`.
    pub(crate) star: bool,
    pub(crate) args: Vec<Expr>,
    pub(crate) filter: Option<Box<Expr>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Or,
    And,
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
    Concat,
}

impl Op {
    pub(crate) fn sign(self) -> &'static str {
        match self {
            Op::Or => "OR",
            Op::And => "AND",
            Op::Eq => "=",
            Op::NotEq => "<>",
            Op::Lt => "<",
            Op::LtEq => "<=",
            Op::Gt => ">",
            Op::GtEq => ">=",
            Op::Plus => "+",
            Op::Minus => "-",
            Op::Multiply => "*",
            Op::Divide => "/",
            Op::Modulo => "%",
            Op::Concat => "||",
        }
    }
}
