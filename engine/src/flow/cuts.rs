//! The operator that puts the parts of each epoch's cut together, on every worker alike.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::scheduling::Activator;

use super::adapter::least;
use super::driver::{EpochPolicy, Known, LEAD};
use super::lifted::FactsStream;
use crate::checkpoint::Manifest;
use crate::cut::{CutPart, CutSnapshot, EpochFacts};
use crate::cutlog::CutMemory;
use crate::job::{JobControl, SplitView};
use crate::rows::SplitId;
use crate::time::Epoch;

/// A part with the worker that it is for.
pub(crate) type Addressed = (u64, CutPart);

/// Names for people: table and split.
pub(crate) type SplitNames = BTreeMap<SplitId, (String, String)>;

/// What the cut operator shares with the rest of its worker.
pub(crate) struct CutParts {
    pub(crate) known: Rc<RefCell<Known>>,
    pub(crate) driver: Rc<RefCell<Option<Activator>>>,
    pub(crate) control: Arc<JobControl>,
    pub(crate) names: SplitNames,
    /// Where this worker hands its process's cuts.
    pub(crate) memory: Option<Arc<dyn CutMemory>>,
}

/// Resolves parts into facts.
pub(crate) fn resolve<'scope>(
    parts: StreamVec<'scope, Epoch, Addressed>,
    shared: CutParts,
) -> FactsStream<'scope> {
    let scope = parts.scope();
    let mut builder = OperatorBuilder::new("Cuts".to_owned(), scope);
    let by_target = Exchange::new(|addressed: &Addressed| addressed.0);
    let mut input = builder.new_input(parts, by_target);
    let (output, facts) = builder.new_output();
    let mut output =
        OutputBuilder::<Epoch, CapacityContainerBuilder<Vec<EpochFacts>>>::from(output);
    let mut pending: BTreeMap<Epoch, (Vec<CutPart>, Capability<Epoch>)> = BTreeMap::new();
    let mut ended = false;
    let first_worker = scope.index() == 0;
    builder.build(move |capabilities| {
        drop(capabilities);
        move |frontiers| {
            let mut seen = 0;
            input.for_each(|capability, parts| {
                let epoch = *capability.time();
                let entry =
                    pending.entry(epoch).or_insert_with(|| (Vec::new(), capability.retain(0)));
                entry.0.extend(parts.drain(..).map(|(_, part)| part));
                seen = seen.max(epoch);
            });
            let frontier = least(frontiers);
            let mut changed = false;
            while let Some(entry) = pending.first_entry() {
                if *entry.key() >= frontier {
                    break;
                }
                let (epoch, (mut parts, capability)) = entry.remove_entry();
                parts.sort_by_key(|p| p.worker);
                if let Some(memory) = &shared.memory {
                    memory.keep(epoch, &parts);
                }
                let facts = shared.known.borrow_mut().close(epoch, parts);
                if facts.checkpoint
                    && shared.memory.is_some()
                    && let Some(checkpoints) = shared.control.checkpoints()
                {
                    checkpoints.cuts(epoch, shared.known.borrow().snapshot(epoch));
                }
                output.activate().session(&capability).give(facts);
                changed = true;
            }
            let mut known = shared.known.borrow_mut();
            changed |= seen > known.seen;
            known.seen = known.seen.max(seen);
            if changed && first_worker {
                shared.control.set_splits(views(&known, &shared.names));
            }
            ended |= frontier == Epoch::MAX;
            if changed
                && !ended
                && let Some(driver) = shared.driver.borrow().as_ref()
            {
                driver.activate();
            }
        }
    });
    facts
}

fn views(known: &Known, names: &SplitNames) -> Vec<SplitView> {
    let view = |(_, watermark, facts): (usize, i64, &crate::cut::SplitFacts)| {
        let (table, split) = names.get(&facts.split)?.clone();
        Some(SplitView { table, split, watermark, facts: *facts })
    };
    known.state.splits().filter_map(view).collect()
}

impl Known {
    /// Closes an epoch and, in a replay, decides what is read `LEAD` epochs later.
    fn close(&mut self, epoch: Epoch, parts: Vec<CutPart>) -> EpochFacts {
        let facts = self.state.close(parts);
        self.closed = Some(epoch);
        // The first cut decides for all epochs that have no cut of their own to go by; so does a
        // recorded one behind which epochs were passed over.
        for later in self.decided.max(epoch) + 1..=epoch + LEAD {
            let EpochPolicy::Replay { first, .. } = self.policy else { break };
            let rows = self.policy.replay_rows(later);
            let decision = (later, self.state.decide(rows, first));
            self.recent.push_back(decision.clone());
            self.decisions.push_back(decision);
            self.decided = later;
        }
        while self.recent.front().is_some_and(|decision| decision.0 <= epoch) {
            self.recent.pop_front();
        }
        facts
    }

    /// What a checkpoint keeps at the end of an epoch.
    fn snapshot(&self, epoch: Epoch) -> CutSnapshot {
        let decisions = self.recent.iter().filter(|decision| decision.0 > epoch).cloned();
        CutSnapshot { decisions: decisions.collect(), ..self.state.snapshot() }
    }

    /// Goes on from a checkpoint.
    pub(crate) fn resume(&mut self, manifest: &Manifest) {
        self.state.restore(&manifest.cuts);
        self.recent = manifest.cuts.decisions.clone().into();
        self.decisions = self.recent.clone();
        self.decided = self.recent.back().map_or(manifest.epoch, |decision| decision.0);
        (self.seen, self.closed) = (manifest.epoch, Some(manifest.epoch));
    }
}
