//! EXPLAIN: a plan as text, the sinks first, each node above its inputs.

use arrow::datatypes::DataType;
use std::fmt::Write as _;
use weir_engine::connector::{Connectors, TableSpec};
use weir_operators::window::WindowShape;

use crate::bind::{in_words, inputs_of};
use crate::build::BuildError;
use crate::diagnostics::shown;
use crate::plan::{
    BinaryOp, CallPlan, Datum, Input, JobPlan, Node, Port, Scalar, ScalarKind, WindowKind,
};
use crate::types::sql_name;

/// A plan in words. Connectors say what they guarantee; nothing outside is touched.
pub fn explain(plan: &JobPlan, connectors: &Connectors) -> Result<String, BuildError> {
    let mut text = format!("Job {} (time zone {})\n", plan.name, plan.time_zone);
    let mut used = vec![false; plan.nodes.len()];
    for node in &plan.nodes {
        for input in inputs_of(&node.node) {
            used[input.node] = true;
        }
    }
    let mut shown = vec![false; plan.nodes.len()];
    for at in (0..plan.nodes.len()).filter(|&at| !used[at]) {
        write_node(plan, connectors, Input::rows(at), 1, &mut shown, &mut text);
    }
    Ok(text)
}

fn write_node(
    plan: &JobPlan,
    connectors: &Connectors,
    input: Input,
    depth: usize,
    shown: &mut [bool],
    text: &mut String,
) {
    let port = match input.port {
        Port::Rows => "",
        Port::Late => "late rows of ",
        Port::Dead => "dead letters of ",
    };
    let indent = "  ".repeat(depth);
    let node = &plan.nodes[input.node];
    if shown[input.node] {
        let _ = writeln!(text, "{indent}{port}#{} (above)", input.node);
        return;
    }
    shown[input.node] = true;
    let line = describe(plan, &node.node, connectors);
    let _ = writeln!(text, "{indent}{port}#{} {line}", input.node);
    for below in inputs_of(&node.node) {
        write_node(plan, connectors, below, depth + 1, shown, text);
    }
}

fn names(plan: &JobPlan, input: Input) -> Vec<String> {
    let columns = match input.port {
        Port::Rows => plan.nodes[input.node].columns.clone(),
        Port::Late => crate::build::late_columns(&plan.nodes, input.node),
        Port::Dead => Vec::new(),
    };
    if input.port == Port::Dead {
        let schema = weir_engine::graph::dead_letter_schema();
        return schema.fields().iter().map(|f| f.name().clone()).collect();
    }
    columns.into_iter().map(|c| c.name).collect()
}

fn list(names: &[String], columns: &[usize]) -> String {
    let name = |&c: &usize| names.get(c).cloned().unwrap_or_default();
    columns.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn describe(plan: &JobPlan, node: &Node, connectors: &Connectors) -> String {
    match node {
        Node::Source(source) => {
            let columns: Vec<String> =
                source.table.columns.iter().map(|c| c.name.clone()).collect();
            let mut line = format!("Source {} [{}]", source.table.name, columns.join(", "));
            if let Some(time) = &source.time {
                let _ = write!(line, " delay {}", in_words(time.delay));
            }
            let pushed = source.table.pushed.iter();
            let pushed: Vec<String> =
                pushed.map(|p| format!("{} {} {}", p.column, p.operator, p.literal)).collect();
            if !pushed.is_empty() {
                let _ = write!(line, " pushed [{}]", pushed.join(" and "));
            }
            if source.table_first {
                line.push_str(" read first");
            }
            let connector = connector_of(connectors, &source.table);
            let guarantee = connector.and_then(|c| c.source(&source.table).ok());
            if let Some(guarantee) = guarantee {
                let _ = write!(line, ": {}", guarantee.guarantee());
            }
            line
        }
        Node::Sink { table, .. } => {
            let mut line = format!("Sink {}", table.name);
            let connector = connector_of(connectors, table);
            if let Some(sink) = connector.and_then(|c| c.sink(table).ok()) {
                let _ = write!(line, ": {}", sink.guarantee());
            }
            line
        }
        Node::Deduplicate { input, keys, time, within } => {
            let names = names(plan, *input);
            format!(
                "Deduplicate by [{}] within {} of {}: each key once, rows further behind are late",
                list(&names, keys),
                in_words(*within),
                list(&names, &[*time])
            )
        }
        Node::RowWise { input, filter, project } => {
            let names = names(plan, *input);
            let mut line = String::new();
            if let Some(filter) = filter {
                let _ = write!(line, "Filter {} ", scalar(filter, &names));
            }
            if let Some(project) = project {
                let items: Vec<String> = project.iter().map(|s| scalar(s, &names)).collect();
                let _ = write!(line, "Project [{}]", items.join(", "));
            }
            line.trim_end().to_owned()
        }
        Node::Window { input, kind, time, keys, calls, .. } => {
            let names = names(plan, *input);
            let calls: Vec<String> = calls.iter().map(|c| call(c, &names)).collect();
            format!(
                "{} over {} by [{}] of [{}]",
                window(*kind),
                list(&names, &[*time]),
                list(&names, keys),
                calls.join(", ")
            )
        }
        Node::TemporalJoin { .. } | Node::WindowVersionJoin { .. } => join(plan, node),
        Node::Union { inputs } => format!("Union of {}", inputs.len()),
    }
}

fn connector_of<'c>(
    connectors: &'c Connectors,
    table: &TableSpec,
) -> Option<&'c dyn weir_engine::connector::Connector> {
    connectors.get(table.option("connector")?)
}

fn join(plan: &JobPlan, node: &Node) -> String {
    match node {
        Node::TemporalJoin {
            left,
            left_keys,
            left_time,
            left_outer,
            bounded,
            right,
            right_keys,
            ..
        } => {
            let (l, r) = (names(plan, *left), names(plan, *right));
            let kind = if *left_outer { "Left" } else { "Inner" };
            let time = left_time.map_or("the epoch".to_owned(), |t| list(&l, &[t]));
            let whole = if *bounded { ", table loaded first" } else { "" };
            let (l, r) = (list(&l, left_keys), list(&r, right_keys));
            format!("{kind} temporal join [{l}] = [{r}] as of {time}{whole}")
        }
        Node::WindowVersionJoin {
            left,
            left_keys,
            left_time,
            left_outer,
            right,
            right_keys,
            right_version,
            slide,
            ..
        } => {
            let (l, r) = (names(plan, *left), names(plan, *right));
            let kind = if *left_outer { "Left" } else { "Inner" };
            let version = list(&r, &[*right_version]);
            let time = list(&l, &[*left_time]);
            let (l, r) = (list(&l, left_keys), list(&r, right_keys));
            let valid = in_words(*slide);
            format!("{kind} join [{l}] = [{r}] as of {time}, {version} valid for {valid}")
        }
        _ => String::new(),
    }
}

fn window(kind: WindowKind) -> String {
    let shifted = |offset: i64| {
        if offset == 0 { String::new() } else { format!(" offset {}", in_words(offset)) }
    };
    match kind {
        WindowKind::Session(gap) => format!("Session gap {}", in_words(gap)),
        WindowKind::Fixed(WindowShape::Tumble { size, offset }) => {
            format!("Tumble {}{}", in_words(size), shifted(offset))
        }
        WindowKind::Fixed(WindowShape::Hop { size, slide, offset }) => {
            format!("Hop {} by {}{}", in_words(size), in_words(slide), shifted(offset))
        }
        WindowKind::Fixed(WindowShape::Cumulate { size, step, offset }) => {
            format!("Cumulate {} by {}{}", in_words(size), in_words(step), shifted(offset))
        }
    }
}

fn call(call: &CallPlan, names: &[String]) -> String {
    let args: Vec<String> = call.arguments.iter().map(|a| scalar(a, names)).collect();
    let distinct = if call.distinct { "DISTINCT " } else { "" };
    let name = format!("{:?}", call.function);
    let mut text = format!("{name}({distinct}{})", args.join(", "));
    if let Some(filter) = &call.filter {
        let _ = write!(text, " where {}", scalar(filter, names));
    }
    text
}

fn scalar(s: &Scalar, names: &[String]) -> String {
    let sub = |s: &Scalar| scalar(s, names);
    match &s.kind {
        ScalarKind::Column(c) => names.get(*c).cloned().unwrap_or_else(|| format!("${c}")),
        ScalarKind::Literal(Datum::Null) => "NULL".to_owned(),
        ScalarKind::Literal(Datum::Boolean(b)) => b.to_string().to_uppercase(),
        ScalarKind::Literal(Datum::Integer(n)) if s.data_type == crate::types::INTERVAL_MS => {
            in_words(*n)
        }
        ScalarKind::Literal(Datum::Integer(n)) => n.to_string(),
        ScalarKind::Literal(Datum::Text(text)) if s.data_type != DataType::Utf8 => text.clone(),
        ScalarKind::Literal(Datum::Text(text)) => shown("", &format!("'{text}'")),
        ScalarKind::Binary(op, left, right) => {
            format!("({} {} {})", sub(left), sign(*op), sub(right))
        }
        ScalarKind::Not(e) => format!("NOT {}", sub(e)),
        ScalarKind::IsNull(e) => format!("{} IS NULL", sub(e)),
        ScalarKind::Case(whens, otherwise) => {
            let when = |(w, t): &(Scalar, Scalar)| format!("WHEN {} THEN {}", sub(w), sub(t));
            let whens: Vec<String> = whens.iter().map(when).collect();
            format!("CASE {} ELSE {} END", whens.join(" "), sub(otherwise))
        }
        ScalarKind::Cast(e, safe) => {
            let cast = if *safe { "TRY_CAST" } else { "CAST" };
            format!("{cast}({} AS {})", sub(e), sql_name(&s.data_type))
        }
        ScalarKind::Field(e, name) => format!("{}.{name}", sub(e)),
        ScalarKind::Call(name, args) => {
            let args: Vec<String> = args.iter().map(sub).collect();
            format!("{name}({})", args.join(", "))
        }
        ScalarKind::RecordedTime => "recorded_time".to_owned(),
    }
}

fn sign(op: BinaryOp) -> &'static str {
    match op {
        BinaryOp::And => "AND",
        BinaryOp::Or => "OR",
        BinaryOp::Eq => "=",
        BinaryOp::NotEq => "<>",
        BinaryOp::Lt => "<",
        BinaryOp::LtEq => "<=",
        BinaryOp::Gt => ">",
        BinaryOp::GtEq => ">=",
        BinaryOp::Plus => "+",
        BinaryOp::Minus => "-",
        BinaryOp::Multiply => "*",
        BinaryOp::Divide => "/",
        BinaryOp::Modulo => "%",
        BinaryOp::DistinctFrom => "IS DISTINCT FROM",
        BinaryOp::NotDistinctFrom => "IS NOT DISTINCT FROM",
    }
}
