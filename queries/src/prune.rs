//! Column pruning: a node makes only the columns that someone behind it reads.
//!
//! # Argument
//! Needs are collected from the last node to the first (inputs come before the nodes that read
//! them); then each node is rewritten with the places that its inputs' columns have now. A window
//! keeps its keys and both times, a join its keys and versions, whether or not anyone reads them.
//! Where late rows are wanted, the columns of the input that they carry to a reader are kept.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::{CallPlan, Input, Node, PlanNode, Port, Scalar, SourcePlan};

/// By node, the columns that are read, each with whether it is a key of someone.
type Needs = Vec<BTreeMap<usize, bool>>;

/// Prunes all nodes of a plan.
pub(crate) fn prune(nodes: &mut [PlanNode]) {
    let mut needs: Needs = vec![BTreeMap::new(); nodes.len()];
    for at in (0..nodes.len()).rev() {
        collect(nodes, at, &mut needs);
    }
    // old place -> new place, per node
    let mut places: Vec<Vec<usize>> = Vec::new();
    for at in 0..nodes.len() {
        let kept = rewrite(nodes, at, &needs, &places);
        let mut place = vec![usize::MAX; nodes[at].columns.len()];
        for (new, &old) in kept.iter().enumerate() {
            place[old] = new;
        }
        let columns = kept.iter().map(|&old| nodes[at].columns[old].clone()).collect();
        nodes[at].columns = columns;
        places.push(place);
    }
}

/// The node whose columns a late row of this node starts with.
fn late_input(nodes: &[PlanNode], at: usize) -> Option<Input> {
    match &nodes[at].node {
        Node::Window { input, .. } => Some(*input),
        Node::WindowVersionJoin { left, .. } => Some(*left),
        _ => None,
    }
}

fn need(nodes: &[PlanNode], needs: &mut Needs, input: Input, column: usize, keyed: bool) {
    match input.port {
        Port::Rows => {
            *needs[input.node].entry(column).or_default() |= keyed;
        }
        Port::Late => {
            if let Some(first) = late_input(nodes, input.node)
                && column < nodes[first.node].columns.len()
            {
                needs[first.node].entry(column).or_default();
            }
        }
        Port::Dead => {}
    }
}

fn need_scalar(nodes: &[PlanNode], needs: &mut Needs, input: Input, scalar: &Scalar) {
    scalar.for_each_column(&mut |column| need(nodes, needs, input, column, false));
}

/// What is read of a node is read of its input.
fn pass_on(nodes: &[PlanNode], needs: &mut Needs, own: &BTreeMap<usize, bool>, input: Input) {
    own.iter().for_each(|(&column, &keyed)| need(nodes, needs, input, column, keyed));
}

fn collect(nodes: &[PlanNode], at: usize, needs: &mut Needs) {
    let own = needs[at].clone();
    match &nodes[at].node {
        Node::Source(_) => {}
        Node::Deduplicate { input, keys, time, .. } => {
            pass_on(nodes, needs, &own, *input);
            keys.iter().chain([time]).for_each(|&c| need(nodes, needs, *input, c, false));
        }
        Node::RowWise { input, filter, project } => {
            if let Some(filter) = filter {
                need_scalar(nodes, needs, *input, filter);
            }
            for (column, keyed) in own {
                let same = match project {
                    Some(project) => project[column].as_column(),
                    None => Some(column),
                };
                match (same, project) {
                    (Some(column), _) => need(nodes, needs, *input, column, keyed),
                    (None, Some(project)) => need_scalar(nodes, needs, *input, &project[column]),
                    (None, None) => {}
                }
            }
        }
        Node::Window { input, time, keys, calls, .. } => {
            need(nodes, needs, *input, *time, false);
            for &key in keys {
                need(nodes, needs, *input, key, true);
            }
            for (i, call) in calls.iter().enumerate() {
                if own.contains_key(&(keys.len() + 2 + i)) {
                    for scalar in call.arguments.iter().chain(&call.filter) {
                        need_scalar(nodes, needs, *input, scalar);
                    }
                }
            }
        }
        Node::TemporalJoin {
            left, right, left_keys, right_keys, left_time, right_time, ..
        } => {
            let fixed_left = left_keys.iter().chain(left_time);
            let fixed_right = right_keys.iter().chain(right_time);
            join_needs(nodes, needs, &own, (*left, *right), fixed_left, fixed_right);
        }
        Node::WindowVersionJoin {
            left,
            right,
            left_keys,
            right_keys,
            left_time,
            right_version,
            ..
        } => {
            let fixed_left = left_keys.iter().chain([left_time]);
            let fixed_right = right_keys.iter().chain([right_version]);
            join_needs(nodes, needs, &own, (*left, *right), fixed_left, fixed_right);
        }
        Node::Union { inputs } => {
            inputs.iter().for_each(|&input| pass_on(nodes, needs, &own, input));
        }
        Node::Sink { input, .. } => {
            for column in 0..nodes[input.node].columns.len() {
                need(nodes, needs, *input, column, false);
            }
        }
    }
}

fn join_needs<'a>(
    nodes: &[PlanNode],
    needs: &mut Needs,
    own: &BTreeMap<usize, bool>,
    (left, right): (Input, Input),
    fixed_left: impl Iterator<Item = &'a usize>,
    fixed_right: impl Iterator<Item = &'a usize>,
) {
    let arity = nodes[left.node].columns.len();
    for (&column, &keyed) in own {
        if column < arity {
            need(nodes, needs, left, column, keyed);
        } else {
            need(nodes, needs, right, column - arity, keyed);
        }
    }
    fixed_left.for_each(|&c| need(nodes, needs, left, c, true));
    fixed_right.for_each(|&c| need(nodes, needs, right, c, true));
}

/// The new place of an input's column; late rows have three columns behind those of the input.
fn place(nodes: &[PlanNode], places: &[Vec<usize>], input: Input, column: usize) -> usize {
    match input.port {
        Port::Rows => places[input.node][column],
        Port::Dead => column,
        Port::Late => match late_input(nodes, input.node) {
            None => column,
            Some(first) => {
                let before = &places[first.node];
                match before.get(column) {
                    Some(&new) => new,
                    None => nodes[first.node].columns.len() + column - before.len(),
                }
            }
        },
    }
}

/// Rewrites a node; the columns that it keeps, by their old places.
fn rewrite(nodes: &mut [PlanNode], at: usize, needs: &Needs, places: &[Vec<usize>]) -> Vec<usize> {
    let own = &needs[at];
    let wanted: Vec<usize> = own.keys().copied().collect();
    let mut node = nodes[at].node.clone();
    let kept = match &mut node {
        Node::Source(source) => prune_source(source, own),
        Node::Deduplicate { input, keys, time, .. } => {
            let to = |c: usize| place(nodes, places, *input, c);
            keys.iter_mut().chain([time]).for_each(|c| *c = to(*c));
            present(places, *input)
        }
        Node::RowWise { input, filter, project } => {
            let input = *input;
            let moved = |scalar: &mut Scalar| {
                scalar.move_columns(&|c| place(nodes, places, input, c));
            };
            filter.iter_mut().for_each(moved);
            match project {
                Some(project) => {
                    *project = wanted.iter().map(|&c| project[c].clone()).collect();
                    project.iter_mut().for_each(moved);
                    wanted
                }
                // Without a projection what comes in goes out.
                None => present(places, input),
            }
        }
        Node::Window { input, time, keys, calls, .. } => {
            let to = |c: usize| place(nodes, places, *input, c);
            keys.iter_mut().chain([time]).for_each(|c| *c = to(*c));
            prune_calls(calls, keys.len() + 2, own, &to)
        }
        Node::TemporalJoin {
            left, right, left_keys, right_keys, left_time, right_time, ..
        } => {
            let (l, r) = (*left, *right);
            left_keys.iter_mut().chain(left_time).for_each(|c| *c = places[l.node][*c]);
            right_keys.iter_mut().chain(right_time).for_each(|c| *c = places[r.node][*c]);
            both_sides(places, l, r)
        }
        Node::WindowVersionJoin {
            left,
            right,
            left_keys,
            right_keys,
            left_time,
            right_version,
            ..
        } => {
            let (l, r) = (*left, *right);
            left_keys.iter_mut().chain([left_time]).for_each(|c| *c = places[l.node][*c]);
            right_keys.iter_mut().chain([right_version]).for_each(|c| *c = places[r.node][*c]);
            both_sides(places, l, r)
        }
        Node::Union { .. } => wanted,
        Node::Sink { .. } => Vec::new(),
    };
    nodes[at].node = node;
    kept
}

/// Keeps the calls that are read; the columns of their window, of which `first` come before them.
fn prune_calls(
    calls: &mut Vec<CallPlan>,
    first: usize,
    own: &BTreeMap<usize, bool>,
    to: &impl Fn(usize) -> usize,
) -> Vec<usize> {
    let mut kept: Vec<usize> = (0..first).collect();
    let mut chosen = Vec::new();
    for (i, mut call) in std::mem::take(calls).into_iter().enumerate() {
        if own.contains_key(&(first + i)) {
            let scalars = call.arguments.iter_mut().chain(&mut call.filter);
            scalars.for_each(|s| s.move_columns(to));
            chosen.push(call);
            kept.push(first + i);
        }
    }
    *calls = chosen;
    kept
}

/// The columns that an input still has, by their old places.
fn present(places: &[Vec<usize>], input: Input) -> Vec<usize> {
    let place = &places[input.node];
    (0..place.len()).filter(|&c| place[c] != usize::MAX).collect()
}

fn both_sides(places: &[Vec<usize>], left: Input, right: Input) -> Vec<usize> {
    let arity = places[left.node].len();
    let right = present(places, right).into_iter().map(|c| c + arity);
    present(places, left).into_iter().chain(right).collect()
}

/// Keeps the columns that are read, and of the table those that they are made of.
fn prune_source(source: &mut SourcePlan, own: &BTreeMap<usize, bool>) -> Vec<usize> {
    let mut kept: BTreeSet<usize> = own.keys().copied().collect();
    kept.extend(source.time.as_ref().map(|t| t.column));
    if kept.is_empty() {
        // Rows without a column have no number: one column is read to count them.
        kept.insert(0);
    }
    let kept: Vec<usize> = kept.into_iter().collect();
    let table_column = |c: usize| match &source.compute {
        Some(compute) => compute[c].as_column(),
        None => Some(c),
    };
    let keys = own.iter().filter(|(_, keyed)| **keyed).filter_map(|(&c, _)| table_column(c));
    source.table.keyed = keys.map(|c| source.table.columns[c].name.clone()).collect();
    if let Some(time) = &mut source.time {
        time.column = kept.iter().position(|&c| c == time.column).unwrap_or(0);
    }
    let read: BTreeSet<usize> = match &mut source.compute {
        None => kept.iter().copied().collect(),
        Some(compute) => {
            *compute = kept.iter().map(|&c| compute[c].clone()).collect();
            let mut read = BTreeSet::new();
            for scalar in compute.iter() {
                scalar.for_each_column(&mut |c| {
                    read.insert(c);
                });
            }
            read
        }
    };
    let read: Vec<usize> = read.into_iter().collect();
    if let Some(compute) = &mut source.compute {
        let to = |c: usize| read.iter().position(|&r| r == c).unwrap_or(0);
        compute.iter_mut().for_each(|s| s.move_columns(&to));
        let plain = |(i, s): (usize, &Scalar)| s.as_column() == Some(i);
        if compute.len() == read.len() && compute.iter().enumerate().all(plain) {
            source.compute = None;
        }
    }
    let columns = std::mem::take(&mut source.table.columns);
    source.table.columns = read.iter().map(|&c| columns[c].clone()).collect();
    kept
}
