//! The one adapter that lifts an operator core into timely.
//!
//! # Application
//! Rows of epoch e are pushed once everything before e is complete, also while e is still open;
//! when e is complete on all inputs and its cut is known, `advance` is called and what the core
//! made goes out at e. The adapter holds a capability for each epoch that has rows or a cut, and
//! drops it after `advance`.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use timely::container::NoopBuilder;
use timely::dataflow::Stream;
use timely::dataflow::channels::pact::{DistributorPact, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::frontier::MutableAntichain;

use super::carrier::Carrier;
use super::exchange::{Deal, Dealer};
use super::lifted::{FactsStream, Lifted, RowsStream, SharedCore};
use super::saved::Saved;
use crate::cut::EpochFacts;
use crate::graph::{Exchange, Outlet};
use crate::job::{JobControl, OperatorCounters};
use crate::keys::KeyHasher;
use crate::operator::{EpochEnd, OperatorError, Output};
use crate::rows::Delta;
use crate::time::{Epoch, Millis};

/// Gives the watermarks of an operator's inputs from those of the sources.
pub(crate) type InputMarks = Box<dyn Fn(&[Millis]) -> Vec<Millis>>;

#[derive(Default)]
struct Pending {
    rows: Vec<(usize, Delta)>,
    facts: Option<EpochFacts>,
    capabilities: Option<Vec<Capability<Epoch>>>,
}

/// What the adapter keeps between calls.
struct Applied {
    core: SharedCore,
    name: String,
    worker: usize,
    inputs: InputMarks,
    pending: BTreeMap<Epoch, Pending>,
    control: Arc<JobControl>,
    counters: Arc<OperatorCounters>,
    failed: bool,
    pushed: u64,
    /// Its part in checkpoints.
    saved: Option<Saved>,
}

/// The least epoch that may still come.
pub(crate) fn least(frontiers: &[MutableAntichain<Epoch>]) -> Epoch {
    let firsts = frontiers.iter().filter_map(|f| f.frontier().first().copied());
    firsts.min().unwrap_or(Epoch::MAX)
}

impl Applied {
    fn push(&mut self, rows: Vec<(usize, Delta)>, out: &mut Output) -> Result<(), OperatorError> {
        if let Some(saved) = self.saved.as_mut().filter(|_| !rows.is_empty()) {
            saved.touch();
        }
        let mut core = self.core.borrow_mut();
        for (port, delta) in rows {
            self.pushed += delta.len() as u64;
            core.push(port, delta, out)?;
        }
        Ok(())
    }

    /// Takes up what the job goes on from.
    fn resume(&mut self) {
        if let Some(loaded) = self.control.restored()
            && self.core.borrow().is_transient()
        {
            let watermarks: Vec<Millis> =
                loaded.manifest.cuts.sources.iter().map(|source| source.watermark).collect();
            self.core.borrow_mut().begin_at(&(self.inputs)(&watermarks));
        }
        let Some(saved) = &self.saved else { return };
        if let Err(error) = saved.resume(&self.core, &self.control) {
            self.failed = true;
            self.control.fail_operator(&self.name, &error);
        }
    }

    /// Applies what may be applied; gives the outputs of each epoch with a capability for it.
    fn apply(
        &mut self,
        frontier: Epoch,
        emit: &mut impl FnMut(&[Capability<Epoch>], Output),
    ) -> Result<(), OperatorError> {
        while let Some(mut entry) = self.pending.first_entry() {
            let epoch = *entry.key();
            if epoch > frontier {
                break;
            }
            let mut out = Output::default();
            let rows = std::mem::take(&mut entry.get_mut().rows);
            if epoch == frontier {
                // Still open: what has come so far may be applied, all before it is complete.
                self.push(rows, &mut out)?;
                if let Some(pending) = self.pending.get(&epoch) {
                    self.send(pending.capabilities.as_deref(), out, emit);
                }
                break;
            }
            let pending = entry.remove();
            self.push(rows, &mut out)?;
            if let Some(facts) = &pending.facts {
                let watermarks = (self.inputs)(&facts.watermarks);
                let recorded_time = facts.recorded_time;
                let end = EpochEnd { epoch, recorded_time, watermarks: &watermarks };
                if facts.checkpoint {
                    self.core.borrow_mut().flush(&mut out)?;
                }
                self.core.borrow_mut().advance(end, &mut out)?;
                if facts.checkpoint
                    && let Some(saved) = &mut self.saved
                {
                    saved.save(epoch, self.worker, &self.core, &watermarks)?;
                }
            }
            self.send(pending.capabilities.as_deref(), out, emit);
        }
        Ok(())
    }

    fn send(
        &self,
        capabilities: Option<&[Capability<Epoch>]>,
        out: Output,
        emit: &mut impl FnMut(&[Capability<Epoch>], Output),
    ) {
        self.counters.add(out.counts);
        if let Some(capabilities) = capabilities {
            emit(capabilities, out);
        }
    }

    fn count(&mut self) {
        let pushed = std::mem::take(&mut self.pushed);
        if pushed > 0 {
            let mut rows = self
                .counters
                .rows_by_worker
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            *rows.entry(self.worker).or_default() += pushed;
        }
    }

    fn note(&mut self, done: Result<(), OperatorError>) {
        self.count();
        if let Err(error) = done {
            self.failed = true;
            self.control.fail_operator(&self.name, &error);
        }
    }
}

/// What an operator node needs to be lifted.
pub(crate) struct OperatorParts<'scope> {
    pub(crate) core: SharedCore,
    pub(crate) inputs: Vec<(RowsStream<'scope>, Exchange)>,
    pub(crate) facts: FactsStream<'scope>,
    pub(crate) marks: InputMarks,
    pub(crate) outlets: Vec<Outlet>,
    pub(crate) place: usize,
    /// Its number among those with state.
    pub(crate) number: Option<usize>,
    pub(crate) control: Arc<JobControl>,
    /// Turns rows that an expression failed for into dead letters.
    pub(crate) letters: Letters,
}

/// Lifts a core. The outlets that somebody reads become streams, in the order of `parts.outlets`.
pub(crate) fn lift<'scope>(parts: OperatorParts<'scope>) -> Lifted<'scope> {
    let OperatorParts { core, inputs, facts, marks, outlets, place, number, control, letters } =
        parts;
    let scope = facts.scope();
    let name = core.borrow().name().to_owned();
    let mut builder = OperatorBuilder::new(name.clone(), scope);
    let mut handles = Vec::with_capacity(inputs.len());
    for (stream, exchange) in inputs {
        handles.push(connect(&mut builder, stream, exchange));
    }
    let mut facts_in = builder.new_input(facts, Pipeline);
    let (mut outputs, mut streams) = (Vec::new(), Vec::new());
    for outlet in outlets {
        let (output, stream) = builder.new_output::<Carrier>();
        outputs.push((outlet, OutputBuilder::<_, NoopBuilder<Carrier>>::from(output)));
        streams.push((outlet, stream));
    }
    let saved = Saved::of(&control, number, scope.index(), scope.peers());
    let mut applied = Applied {
        worker: scope.index(),
        core,
        inputs: marks,
        pending: BTreeMap::new(),
        counters: control.operator(place, &name),
        name,
        control,
        failed: false,
        pushed: 0,
        saved,
    };
    applied.resume();
    let ports = outputs.len();
    builder.build(move |capabilities| {
        drop(capabilities);
        move |frontiers| {
            for (port, handle) in handles.iter_mut().enumerate() {
                handle(
                    &mut |epoch, delta, retain: &mut dyn FnMut() -> Vec<_>| {
                        let pending = applied.pending.entry(epoch).or_default();
                        pending.capabilities.get_or_insert_with(retain);
                        pending.rows.push((port, delta));
                    },
                    ports,
                );
            }
            facts_in.for_each(|capability, facts| {
                let pending = applied.pending.entry(*capability.time()).or_default();
                pending
                    .capabilities
                    .get_or_insert_with(|| (0..ports).map(|o| capability.retain(o)).collect());
                pending.facts = facts.drain(..).next_back();
            });
            if applied.failed {
                applied.pending.clear();
                return;
            }
            let mut emit = |capabilities: &[Capability<Epoch>], out: Output| {
                send_outlets(&mut outputs, capabilities, out, &letters);
            };
            let counters = applied.counters.clone();
            let mut counted = |capabilities: &[Capability<Epoch>], out: Output| {
                count_output(&counters, &out);
                emit(capabilities, out);
            };
            let done = applied.apply(least(frontiers), &mut counted);
            applied.note(done);
        }
    });
    Lifted { streams }
}

/// Makes dead letters of rows and reasons.
pub(crate) type Letters = Rc<dyn Fn(&Delta, &[String]) -> Delta>;

fn count_output(counters: &OperatorCounters, out: &Output) {
    use std::sync::atomic::Ordering::Relaxed;
    let rows: usize = out.rows.iter().map(Delta::len).sum();
    counters.rows_out.fetch_add(rows as u64, Relaxed);
    let failed: usize = out.failed.iter().map(|(d, _)| d.len()).sum();
    counters.failed.fetch_add(failed as u64, Relaxed);
}

type Outputs = Vec<(Outlet, OutputBuilder<Epoch, NoopBuilder<Carrier>>)>;

fn send_outlets(
    outputs: &mut Outputs,
    capabilities: &[Capability<Epoch>],
    mut out: Output,
    letters: &Letters,
) {
    for ((outlet, output), capability) in outputs.iter_mut().zip(capabilities) {
        let deltas = match outlet {
            Outlet::Rows => std::mem::take(&mut out.rows),
            Outlet::Late => std::mem::take(&mut out.late),
            Outlet::Dead => out.failed.iter().map(|(d, why)| letters(d, why)).collect(),
        };
        let mut deltas = deltas.into_iter().filter(|d| !d.is_empty()).peekable();
        if deltas.peek().is_none() {
            continue;
        }
        let mut session = output.activate();
        let mut session = session.session_with_builder(capability);
        deltas.for_each(|delta| session.give_container(&mut Carrier::from(delta)));
    }
}

type Retain<'a> = &'a mut dyn FnMut() -> Vec<Capability<Epoch>>;
type Receive<'a> = &'a mut dyn FnMut(Epoch, Delta, Retain<'_>);
type Handle = Box<dyn FnMut(Receive<'_>, usize)>;

/// Connects an input; the handle gives what has come, with a way to keep capabilities for it.
fn connect<'scope>(
    builder: &mut OperatorBuilder<'scope, Epoch>,
    stream: Stream<'scope, Epoch, Carrier>,
    exchange: Exchange,
) -> Handle {
    macro_rules! handle {
        ($input:expr) => {{
            let mut input = $input;
            Box::new(move |receive: Receive<'_>, ports: usize| {
                input.for_each(|capability, carrier| {
                    if let Some(delta) = carrier.take() {
                        let mut retain =
                            || (0..ports).map(|o| capability.retain(o)).collect::<Vec<_>>();
                        receive(*capability.time(), delta, &mut retain);
                    }
                });
            })
        }};
    }
    match exchange {
        Exchange::Stay => handle!(builder.new_input(stream, Pipeline)),
        Exchange::Keys(columns) => {
            let deal = move |_: usize| Deal::by(Dealer::Keys(KeyHasher::over(columns.clone())));
            handle!(builder.new_input(stream, DistributorPact(deal)))
        }
    }
}

/// A core that an adapter and the watermark functions behind it share.
pub(crate) fn share(core: Box<dyn crate::operator::Operator>) -> SharedCore {
    Rc::new(RefCell::new(core))
}
