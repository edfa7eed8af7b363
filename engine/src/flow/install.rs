//! Building a job's dataflow on a worker.

use arrow::array::{ArrayRef, BinaryArray, Int64Array, StringArray, TimestampMillisecondArray};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use timely::container::{CapacityContainerBuilder, NoopBuilder};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::core::Concatenate;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::dataflow::operators::probe::{Handle as ProbeHandle, Probe};
use timely::dataflow::{Scope, StreamVec};
use timely::scheduling::Activator;
use timely::worker::Worker;

use super::adapter::{InputMarks, OperatorParts, lift, share};
use super::carrier::Carrier;
use super::cuts::{Addressed, CutParts, SplitNames, resolve};
use super::driver::{Accepted, Driver, Known, Next, Outlets, SourceRuntime};
use super::lifted::{FactsStream, RowsStream};
use super::reading::{Reading, ids, planned_batch};
use super::recorded::recorded;
use super::sink::{SinkInputs, SinkParts, attach};
use super::{Host, JobInput};
use crate::cut::{CutPart, CutState, SourcePlan, SplitFacts, SplitState};
use crate::graph::{Edge, Exchange, Graph, Node, Outlet, SourceNode, dead_letter_schema};
use crate::job::JobControl;
use crate::rows::{Delta, SplitId};
use crate::source::{QUEUE_BYTES_MAX, SplitQueue, SplitSpec, Start};
use crate::time::{Epoch, MARK_END, Millis};

/// The watermark of an edge as a function of those of the sources.
type EdgeMark = Rc<dyn Fn(&[Millis]) -> Millis>;

struct Built<'scope> {
    streams: BTreeMap<Edge, RowsStream<'scope>>,
    marks: BTreeMap<usize, EdgeMark>,
    /// Nodes whose chunks are whole pieces of their splits.
    ordered: BTreeSet<usize>,
}

/// Builds the dataflow of `graph`. Failures to open a source go to `control`.
pub(crate) fn install(
    worker: &mut Worker,
    graph: Graph,
    job: &JobInput,
    control: &Arc<JobControl>,
    host: &Host,
) -> Rc<RefCell<Driver>> {
    let (index, peers) = (worker.index(), worker.peers());
    let used = used_edges(&graph);
    let nodes: Vec<(usize, Arc<SourceNode>)> = sources(&graph);
    let (mut known, names) = what_is_known(&nodes, job);
    if let Some(loaded) = control.restored() {
        known.resume(&loaded.manifest);
    }
    let known = Rc::new(RefCell::new(known));
    let sources = open_sources(&nodes, job, control, host, (index, peers));
    let driver = Driver::start(index, job.policy, control.clone(), known.clone(), sources);
    let driver = Rc::new(RefCell::new(driver));
    let shared_driver = driver.clone();
    worker.dataflow::<Epoch, _, _>(|scope| {
        let (accepted, committed) = (ProbeHandle::new(), ProbeHandle::new());
        let activator = Rc::new(RefCell::new(None));
        let progress = (accepted.clone(), committed.clone());
        let made = drive(scope, shared_driver, &nodes, &used, progress, &activator);
        let memory = control.keep_cuts();
        let shared = CutParts { known, driver: activator, control: control.clone(), names, memory };
        let facts = resolve(made.parts, shared);
        let memory = control.memory().filter(|_| !host.alone);
        let recorded = memory.map(|memory| recorded(facts.clone(), memory));
        let mut built = Built {
            streams: made.streams,
            marks: BTreeMap::new(),
            ordered: nodes.iter().map(|n| n.0).collect(),
        };
        for (source, (node, _)) in nodes.iter().enumerate() {
            built.marks.insert(*node, Rc::new(move |w: &[Millis]| w[source]));
        }
        let (mut sinks, mut owners) = (0.., 0..);
        for (place, node) in graph.nodes.into_iter().enumerate() {
            match node {
                Node::Source(_) => {}
                Node::Union(inputs) => union(&mut built, place, &inputs, scope),
                Node::Operator { core, inputs } => {
                    // Sinks and operators with state are the same with any number of workers.
                    let number = if core.is_transient() { None } else { owners.next() };
                    let node = OperatorNode { place, number, core, inputs };
                    operator(&mut built, node, facts.clone(), &used, control);
                }
                Node::Sink { sink, input } => {
                    let rows = built.streams[&input].clone();
                    let ordered = built.ordered.contains(&input.node);
                    let number = sinks.next().unwrap_or(place);
                    let author = control.author(number, &sink.table);
                    let parts = SinkParts { node: sink, place, ordered, author, number };
                    let (facts, recorded) = (facts.clone(), recorded.clone());
                    let inputs = SinkInputs { rows, facts, recorded };
                    let (a, c) = attach(parts, inputs, control);
                    a.probe_with(&accepted);
                    c.probe_with(&committed);
                }
            }
        }
    });
    driver
}

fn sources(graph: &Graph) -> Vec<(usize, Arc<SourceNode>)> {
    let source = |(place, node): (usize, &Node)| match node {
        Node::Source(source) => Some((place, Arc::new(source.clone()))),
        _ => None,
    };
    let mut sources: Vec<_> = graph.nodes.iter().enumerate().filter_map(source).collect();
    sources.sort_by_key(|(_, s)| s.index);
    debug_assert!(sources.iter().enumerate().all(|(i, (_, s))| s.index as usize == i));
    sources
}

fn used_edges(graph: &Graph) -> BTreeSet<Edge> {
    let inputs = graph.nodes.iter().flat_map(|node| match node {
        Node::Source(_) => Vec::new(),
        Node::Operator { inputs, .. } => inputs.iter().map(|i| i.0).collect(),
        Node::Union(inputs) => inputs.clone(),
        Node::Sink { input, .. } => vec![*input],
    });
    inputs.collect()
}

fn what_is_known(nodes: &[(usize, Arc<SourceNode>)], job: &JobInput) -> (Known, SplitNames) {
    let mut names = SplitNames::new();
    let mut plans = Vec::new();
    for (_, node) in nodes {
        let mut plan = SourcePlan {
            splits: Vec::new(),
            first: 0,
            queues: Vec::new(),
            table_first: node.table_first,
            timed: node.time.is_some(),
            delay: node.time.as_ref().map_or(0, |t| t.delay),
            advance_after: node.advance_after,
        };
        for spec in job.splits.get(node.index as usize).into_iter().flatten() {
            let (id, splits) = ids(node, &spec.number, &spec.carries);
            for split in &splits {
                let name = if *split == id {
                    spec.name.clone()
                } else {
                    format!("{} of {}", split.number(), spec.name)
                };
                names.insert(*split, (node.table.clone(), name));
            }
            if !splits.contains(&id) {
                plan.splits.push(id);
            }
            plan.queues.push(id);
            plan.splits.extend(splits);
            if !spec.joined {
                plan.first = plan.splits.len();
            }
        }
        plans.push(plan);
    }
    let state = CutState::start(plans);
    (
        Known {
            state,
            seen: 0,
            decisions: VecDeque::new(),
            recent: VecDeque::new(),
            decided: 0,
            closed: None,
            policy: job.policy,
        },
        names,
    )
}

/// Opens this worker's splits: the i-th of a source belongs to worker i mod peers.
fn open_sources(
    nodes: &[(usize, Arc<SourceNode>)],
    job: &JobInput,
    control: &Arc<JobControl>,
    host: &Host,
    (index, peers): (usize, usize),
) -> Vec<SourceRuntime> {
    let now = control.clock.now();
    let facts = control.restored().map(|loaded| loaded.manifest.cuts.facts()).unwrap_or_default();
    let facts: BTreeMap<SplitId, SplitFacts> = facts.into_iter().map(|f| (f.split, f)).collect();
    let mut runtimes = Vec::new();
    for (_, node) in nodes {
        let counters = control.source(node.index as usize, &node.table);
        let specs = job.splits.get(node.index as usize).into_iter().flatten().enumerate();
        let mine = specs.filter(|(i, _)| i % peers == index).map(|(_, spec)| spec.clone());
        let queue = |spec: SplitSpec| {
            let (id, splits) = ids(node, &spec.number, &spec.carries);
            let start = match facts.get(&id) {
                None => Start::Beginning,
                Some(facts) if splits.contains(&id) => Start::Offset(facts.offset),
                Some(facts) => Start::Rows(facts.offset),
            };
            let queue = SplitQueue::from(spec, QUEUE_BYTES_MAX, start);
            if control.goes_on() {
                queue.set_known();
            }
            if let Some(peer) = &host.second_copy {
                queue.set_second_copy(peer.clone());
            }
            queue
        };
        let queues: Vec<_> = mine.map(queue).collect();
        let mut readings = Vec::new();
        for queue in &queues {
            let mut reading = Reading::open(node.clone(), queue.clone(), counters.clone());
            if facts.contains_key(&reading.id) {
                reading.resume(&facts);
            } else if queue.split.lazy && !node.table_first && node.time.is_some() {
                match node.source.peek(&queue.split) {
                    Ok(first) => reading.hold_at(first, now),
                    Err(error) => control.fail_connector(&node.table, error),
                }
            }
            readings.push(reading);
        }
        // What was read to its end is not opened again.
        let left = queues.into_iter().zip(&readings);
        let left = left.filter(|(_, reading)| reading.state != SplitState::Finished);
        let queues: Vec<_> = left.map(|(queue, _)| queue).collect();
        let mut handle = None;
        if !queues.is_empty() {
            match node.source.open(queues) {
                Ok(opened) => handle = Some(opened),
                Err(error) => control.fail_connector(&node.table, error),
            }
        }
        runtimes.push(SourceRuntime { node: node.clone(), readings, handle });
    }
    runtimes
}

// The driver in timely ---------------------------------------------------------------------------

type RowsOutput = OutputBuilder<Epoch, NoopBuilder<Carrier>>;
type PartsOutput = OutputBuilder<Epoch, CapacityContainerBuilder<Vec<Addressed>>>;

struct Made<'scope> {
    streams: BTreeMap<Edge, RowsStream<'scope>>,
    parts: StreamVec<'scope, Epoch, Addressed>,
}

/// An output with the capability for the open epoch; `None` where nobody reads it.
type Port = Option<(RowsOutput, Capability<Epoch>)>;

/// The driver's outputs with their capabilities.
struct Ports {
    peers: usize,
    /// By source: its rows, its dead letters.
    sources: Vec<[Port; 2]>,
    parts: (PartsOutput, Capability<Epoch>),
}

impl Ports {
    fn send(port: &mut Port, delta: Delta) {
        if let Some((output, capability)) = port.as_mut().filter(|_| !delta.is_empty()) {
            let mut session = output.activate();
            session.session_with_builder(capability).give_container(&mut Carrier::from(delta));
        }
    }

    fn downgrade(&mut self, epoch: Epoch) {
        for (_, capability) in self.sources.iter_mut().flatten().flatten() {
            capability.downgrade(&epoch);
        }
        self.parts.1.downgrade(&epoch);
    }
}

impl Outlets for Ports {
    fn rows(&mut self, source: usize, delta: Delta) {
        Ports::send(&mut self.sources[source][0], delta);
    }

    fn dead(&mut self, source: usize, delta: Delta) {
        Ports::send(&mut self.sources[source][1], delta);
    }

    fn part(&mut self, part: CutPart) {
        let mut session = self.parts.0.activate();
        let mut session = session.session(&self.parts.1);
        for target in 0..self.peers {
            session.give((target as u64, part.clone()));
        }
    }
}

fn drive<'scope>(
    scope: Scope<'scope, Epoch>,
    driver: Rc<RefCell<Driver>>,
    nodes: &[(usize, Arc<SourceNode>)],
    used: &BTreeSet<Edge>,
    progress: (ProbeHandle<Epoch>, ProbeHandle<Epoch>),
    shared: &Rc<RefCell<Option<Activator>>>,
) -> Made<'scope> {
    let mut builder = OperatorBuilder::new("Driver".to_owned(), scope);
    let mut streams = BTreeMap::new();
    let mut outputs = Vec::new();
    for (place, _) in nodes {
        outputs.push([Outlet::Rows, Outlet::Dead].map(|output| {
            let edge = Edge { node: *place, output };
            used.contains(&edge).then(|| {
                let (output, stream) = builder.new_output::<Carrier>();
                streams.insert(edge, stream);
                RowsOutput::from(output)
            })
        }));
    }
    let (parts_out, parts) = builder.new_output::<Vec<Addressed>>();
    let address = builder.operator_info().address;
    driver.borrow().on_news(|| {
        let activator = scope.worker().sync_activator_for(address.to_vec());
        Box::new(move || {
            // The worker may be gone; then nobody needs to know.
            let _ = activator.activate();
        })
    });
    let activator = scope.activator_for(address.clone());
    *shared.borrow_mut() = Some(scope.activator_for(address));
    let peers = scope.peers();
    builder.build(move |capabilities| {
        let mut capabilities = capabilities.into_iter();
        let mut next = || capabilities.next().unwrap_or_else(|| unreachable!("one an output"));
        let sources = outputs
            .into_iter()
            .map(|pair| pair.map(|output| output.map(|output| (output, next()))))
            .collect();
        let parts = (PartsOutput::from(parts_out), next());
        let mut ports = Some(Ports { peers, sources, parts });
        move |_| {
            let Some(open) = ports.as_mut() else { return };
            let below = |probe: &ProbeHandle<Epoch>| probe.with_frontier(|f| f.first().copied());
            let accepted =
                Accepted { below: below(&progress.0), committed_below: below(&progress.1) };
            let next = driver.borrow_mut().step(accepted, open);
            match next {
                Next::Epoch(epoch) => {
                    open.downgrade(epoch);
                    activator.activate();
                }
                Next::Wait(time) if time.is_zero() => activator.activate(),
                Next::Wait(time) => activator.activate_after(time),
                Next::Done => ports = None,
            }
        }
    });
    Made { streams, parts }
}

// Other nodes ------------------------------------------------------------------------------------

fn union<'scope>(
    built: &mut Built<'scope>,
    place: usize,
    inputs: &[Edge],
    scope: Scope<'scope, Epoch>,
) {
    let streams: Vec<_> = inputs.iter().map(|edge| built.streams[edge].clone()).collect();
    let marks: Vec<EdgeMark> = inputs.iter().map(|e| built.marks[&e.node].clone()).collect();
    let mark = move |w: &[Millis]| marks.iter().map(|m| m(w)).min().unwrap_or(MARK_END);
    built.marks.insert(place, Rc::new(mark));
    if inputs.iter().all(|e| built.ordered.contains(&e.node)) {
        built.ordered.insert(place);
    }
    let edge = Edge { node: place, output: Outlet::Rows };
    built.streams.insert(edge, scope.concatenate(streams));
}

/// An operator of the graph.
struct OperatorNode {
    place: usize,
    /// Its number among those with state.
    number: Option<usize>,
    core: Box<dyn crate::operator::Operator>,
    inputs: Vec<(Edge, Exchange)>,
}

fn operator<'scope>(
    built: &mut Built<'scope>,
    node: OperatorNode,
    facts: FactsStream<'scope>,
    used: &BTreeSet<Edge>,
    control: &Arc<JobControl>,
) {
    let OperatorNode { place, number, core, inputs } = node;
    let core = share(core);
    let marks: Vec<EdgeMark> = inputs.iter().map(|(e, _)| built.marks[&e.node].clone()).collect();
    let (of_inputs, behind) = (marks.clone(), core.clone());
    let input_marks: InputMarks = Box::new(move |w| of_inputs.iter().map(|m| m(w)).collect());
    let mark = move |w: &[Millis]| {
        let inputs: Vec<Millis> = marks.iter().map(|m| m(w)).collect();
        behind.borrow().output_watermark(&inputs)
    };
    built.marks.insert(place, Rc::new(mark));
    let stays = |(e, x): &(Edge, Exchange)| *x == Exchange::Stay && built.ordered.contains(&e.node);
    if inputs.len() == 1 && inputs.iter().all(stays) {
        built.ordered.insert(place);
    }
    let outlets = [Outlet::Rows, Outlet::Late, Outlet::Dead];
    let outlets = outlets.into_iter().filter(|o| used.contains(&Edge { node: place, output: *o }));
    let name = core.borrow().name().to_owned();
    let parts = OperatorParts {
        core,
        inputs: inputs.into_iter().map(|(e, x)| (built.streams[&e].clone(), x)).collect(),
        facts,
        marks: input_marks,
        outlets: outlets.collect(),
        place,
        number,
        control: control.clone(),
        letters: Rc::new(move |delta, reasons| letters(&name, delta, reasons)),
    };
    for (output, stream) in lift(parts).streams {
        built.streams.insert(Edge { node: place, output }, stream);
    }
}

/// Dead letters of rows that an operator's expression failed for: the row as text.
fn letters(operator: &str, delta: &Delta, reasons: &[String]) -> Delta {
    let schema = delta.rows.schema();
    let text = |row: usize| {
        let value = |(field, column): (&Arc<arrow::datatypes::Field>, &ArrayRef)| {
            let value = arrow::util::display::array_value_to_string(column, row);
            format!("{}={}", field.name(), value.unwrap_or_default())
        };
        let values = schema.fields().iter().zip(delta.rows.columns()).map(value);
        values.collect::<Vec<_>>().join(", ")
    };
    let rows = delta.len();
    let place = |row: usize| delta.place(row);
    let offset = |row: usize| i64::try_from(place(row).1).unwrap_or(i64::MAX);
    let reason = |row: usize| reasons.get(row).map_or("", String::as_str);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(BinaryArray::from_iter_values((0..rows).map(|r| text(r).into_bytes()))),
        Arc::new(StringArray::from_iter_values((0..rows).map(|_| operator))),
        Arc::new(StringArray::from_iter_values((0..rows).map(|r| place(r).0.number().to_string()))),
        Arc::new(Int64Array::from_iter_values((0..rows).map(offset))),
        Arc::new(TimestampMillisecondArray::new_null(rows).with_timezone("UTC")),
        Arc::new(StringArray::from_iter_values((0..rows).map(reason))),
    ];
    let mut letters = Delta::fired(planned_batch(&dead_letter_schema(), columns, rows));
    letters.origin = delta.origin;
    letters
}
