//! Predicates that a source may skip by: offered to its connector, still applied behind it.
//!
//! # What may be offered
//! Only what every reader of the source asks for: the filters that follow it one after the other,
//! with no second reader on the way, and no table of dead letters, which wants bad rows whatever
//! else is in them.
//!
//! # Event time
//! Rows that are skipped do not move their split's mark. A source with event time is therefore only
//! offered lower bounds of it. Let them be ts ≥ c. A row that passes has ts ≥ c; a skipped row
//! alone would have taken the mark to less than c − delay, which makes no such row late. So a row
//! that passes is late by its mark with or without the skipping. An upper bound, or a bound of
//! another column, would leave out rows that make others late.
//!
//! # Limits
//! `=`, `<`, `<=`, `>`, `>=` between a column of the table and a literal of its type, also of
//! `TO_TIMESTAMP_LTZ(column, 3)`. Bad rows in what is skipped are not counted.

use arrow::datatypes::{DataType, TimeUnit};
use weir_engine::connector::{Pushed, TableSpec};

use crate::bind::inputs_of;
use crate::plan::{BinaryOp, Datum, Node, PlanNode, Port, Scalar, ScalarKind, SourcePlan};

/// Finds the predicates of all sources of a plan.
pub(crate) fn push(nodes: &mut [PlanNode]) {
    for at in 0..nodes.len() {
        let Node::Source(source) = &nodes[at].node else { continue };
        let pushed = if source.dead_letters { Vec::new() } else { offered(nodes, at, source) };
        if let Node::Source(source) = &mut nodes[at].node {
            source.table.pushed = pushed;
        }
    }
}

/// What the filters behind a source ask of the columns of its table.
fn offered(nodes: &[PlanNode], at: usize, source: &SourcePlan) -> Vec<Pushed> {
    let made = |column: usize| match &source.compute {
        Some(compute) => compute[column].clone(),
        None => Scalar::column(column, nodes[at].columns[column].data_type.clone()),
    };
    let time = source.time.as_ref().map(|time| made(time.column));
    let mut columns: Vec<Scalar> = (0..nodes[at].columns.len()).map(made).collect();
    let (mut pushed, mut node) = (Vec::new(), at);
    while let Some(reader) = only_reader(nodes, node) {
        let Node::RowWise { filter, project, .. } = &nodes[reader].node else { break };
        if let Some(filter) = filter {
            let mut parts = Vec::new();
            conjuncts(&filter.clone().substitute(&columns), &mut parts);
            let allowed = parts.iter().filter_map(|part| predicate(part, time.as_ref()));
            let allowed = allowed.filter(|(column, ..)| is_physical(&source.table, *column));
            pushed.extend(allowed.map(|(column, operator, literal)| Pushed {
                column: source.table.columns[column].name.clone(),
                operator: operator.to_owned(),
                literal,
            }));
        }
        if let Some(project) = project {
            columns = project.iter().map(|scalar| scalar.clone().substitute(&columns)).collect();
        }
        node = reader;
    }
    pushed
}

/// Whether a file or message itself holds the column.
fn is_physical(table: &TableSpec, column: usize) -> bool {
    let column = &table.columns[column];
    column.metadata.is_none() && !table.partitioned_by.contains(&column.name)
}

/// The one node that reads a node's rows, if there is only one, and nobody reads anything else.
fn only_reader(nodes: &[PlanNode], of: usize) -> Option<usize> {
    let mut found = None;
    for (at, node) in nodes.iter().enumerate() {
        for input in inputs_of(&node.node).into_iter().filter(|input| input.node == of) {
            if found.is_some() || input.port != Port::Rows {
                return None;
            }
            found = Some(at);
        }
    }
    found
}

fn conjuncts(scalar: &Scalar, out: &mut Vec<Scalar>) {
    match &scalar.kind {
        ScalarKind::Binary(BinaryOp::And, left, right) => {
            conjuncts(left, out);
            conjuncts(right, out);
        }
        _ => out.push(scalar.clone()),
    }
}

/// Column of the table, comparison and literal, if the predicate has this form and is allowed.
fn predicate(scalar: &Scalar, time: Option<&Scalar>) -> Option<(usize, &'static str, String)> {
    let ScalarKind::Binary(op, left, right) = &scalar.kind else { return None };
    let (side, datum, op) = match (&left.kind, &right.kind) {
        (_, ScalarKind::Literal(datum)) => (left, datum, *op),
        (ScalarKind::Literal(datum), _) => (right, datum, mirrored(*op)?),
        _ => return None,
    };
    let (column, in_ms) = column_of(side)?;
    let is_time = time.is_some_and(|time| column_of(time).is_some_and(|(c, _)| c == column));
    if time.is_some() && !(is_time && matches!(op, BinaryOp::Gt | BinaryOp::GtEq)) {
        return None;
    }
    Some((column, sign(op)?, literal(datum, &side.data_type, in_ms)?))
}

/// The column that a scalar is, or is the time of in milliseconds.
fn column_of(scalar: &Scalar) -> Option<(usize, bool)> {
    if let Some(column) = scalar.as_column() {
        return Some((column, false));
    }
    match &scalar.kind {
        ScalarKind::Call(name, arguments) if name == "FROM_EPOCH" => {
            let is_ms =
                |scalar: &Scalar| matches!(scalar.kind, ScalarKind::Literal(Datum::Integer(3)));
            let column = arguments.first()?.as_column()?;
            (arguments.get(1).is_some_and(is_ms)).then_some((column, true))
        }
        _ => None,
    }
}

fn mirrored(op: BinaryOp) -> Option<BinaryOp> {
    Some(match op {
        BinaryOp::Eq => BinaryOp::Eq,
        BinaryOp::Lt => BinaryOp::Gt,
        BinaryOp::LtEq => BinaryOp::GtEq,
        BinaryOp::Gt => BinaryOp::Lt,
        BinaryOp::GtEq => BinaryOp::LtEq,
        _ => return None,
    })
}

fn sign(op: BinaryOp) -> Option<&'static str> {
    Some(match op {
        BinaryOp::Eq => "=",
        BinaryOp::Lt => "<",
        BinaryOp::LtEq => "<=",
        BinaryOp::Gt => ">",
        BinaryOp::GtEq => ">=",
        _ => return None,
    })
}

/// The literal in the form of [`Pushed`]; `None` for types that statistics do not decide.
fn literal(datum: &Datum, data_type: &DataType, in_ms: bool) -> Option<String> {
    use DataType::{Int8, Int16, Int32, Int64, Timestamp, Utf8};
    match (datum, data_type) {
        (Datum::Text(text), Utf8) => Some(text.clone()),
        (Datum::Integer(number), Int8 | Int16 | Int32 | Int64) => Some(number.to_string()),
        (Datum::Integer(ms), Timestamp(TimeUnit::Millisecond, _)) => Some(ms.to_string()),
        // Finer than a millisecond only where nothing is lost.
        (Datum::Integer(us), Timestamp(TimeUnit::Microsecond, _)) if !in_ms && us % 1_000 == 0 => {
            Some((us / 1_000).to_string())
        }
        (Datum::Integer(ns), Timestamp(TimeUnit::Nanosecond, _))
            if !in_ms && ns % 1_000_000 == 0 =>
        {
            Some((ns / 1_000_000).to_string())
        }
        _ => None,
    }
}
