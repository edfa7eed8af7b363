//! The adapter between the dataflow and a sink's shards.
//!
//! # Order
//! Rows of an epoch go to a shard in an order that depends on the cuts alone: chunks that come
//! straight from splits by (split, offset), then rows that operators made by event time and by
//! whole row.
//!
//! # Cut log
//! Where the job's cuts are remembered, no epoch is accepted before its cut is on disk at every
//! process: one that is alone asks its memory, several know by the stream of `recorded.rs`.
//!
//! # Progress
//! Two streams without rows say how far the sink is: the frontier of the first passes e once e is
//! accepted by all shards of all workers, that of the second once it is committed.

use arrow::array::{ArrayRef, RecordBatch, UInt32Array};
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, SortField};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{DistributorPact, Pipeline};
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;
use timely::progress::frontier::MutableAntichain;

use super::adapter::least;
use super::exchange::{Deal, Dealer, Shards};
use super::lifted::{FactsStream, RowsStream};
use super::recorded::Recorded;
use super::shard::{EpochRows, Resumed, Shard, Target};
use crate::cut::EpochFacts;
use crate::digest::digest;
use crate::graph::SinkNode;
use crate::job::{JobControl, SinkCounters};
use crate::keys::encode_value;
use crate::rows::{Delta, Origin};
use crate::sink::{Author, ShardEnd};
use crate::time::{Epoch, MARK_END, MARK_NONE, Millis};

/// Accepted and committed.
pub(crate) type SinkProgress<'scope> = (StreamVec<'scope, Epoch, ()>, StreamVec<'scope, Epoch, ()>);

#[derive(Default)]
struct Pending {
    rows: Vec<Delta>,
    recorded_time: Option<Millis>,
    checkpoint: bool,
    /// Whether all that there is was read, as the cuts say.
    ended: bool,
}

struct SinkState {
    ordered: bool,
    /// Each with the digest of all rows that it got.
    shards: BTreeMap<u32, (Shard, u128)>,
    /// Whether rows are counted for the targets' sake.
    counts: bool,
    divider: Shards,
    pending: BTreeMap<Epoch, Pending>,
    control: Arc<JobControl>,
    counters: Arc<SinkCounters>,
    recorded_time: Millis,
    /// Whether the last epoch that was delivered is the last for ever. The cuts say so, to all
    /// workers alike: a process that is told to stop a moment later than another must not take the
    /// other's stop for the end.
    ended: bool,
    finished: bool,
    /// Where several processes remember cuts: below this epoch all have them on disk.
    recorded: Option<Epoch>,
}

/// A sink as it is attached.
pub(crate) struct SinkParts {
    pub(crate) node: SinkNode,
    /// Its place in the graph.
    pub(crate) place: usize,
    /// Whether chunks still are whole pieces of their splits.
    pub(crate) ordered: bool,
    pub(crate) author: Option<Author>,
    /// Which of the job's sinks it is.
    pub(crate) number: usize,
}

/// What a sink takes.
pub(crate) struct SinkInputs<'scope> {
    pub(crate) rows: RowsStream<'scope>,
    pub(crate) facts: FactsStream<'scope>,
    /// Where several processes remember cuts.
    pub(crate) recorded: Option<Recorded<'scope>>,
}

/// Builds the adapter.
pub(crate) fn attach<'scope>(
    parts: SinkParts,
    inputs: SinkInputs<'scope>,
    control: &Arc<JobControl>,
) -> SinkProgress<'scope> {
    let SinkParts { node, place, ordered, author, number } = parts;
    let SinkInputs { rows, facts, recorded } = inputs;
    let scope = rows.scope();
    let (index, peers) = (scope.index(), scope.peers());
    let mut builder = OperatorBuilder::new(format!("Sink {}", node.table), scope);
    let (count, sharding) = (node.sink.shards().max(1), node.sharding.clone());
    let dealt = sharding.clone();
    let deal = move |_: usize| Deal::by(Dealer::Shards(Shards::of(count, &dealt)));
    let mut input = builder.new_input(rows, DistributorPact(deal));
    let mut facts_in = builder.new_input(facts, Pipeline);
    let several = recorded.is_some();
    let _recorded_in = recorded.map(|recorded| builder.new_input(recorded, Pipeline));
    let (_accepted_out, accepted) = builder.new_output::<Vec<()>>();
    let (_committed_out, committed) = builder.new_output::<Vec<()>>();
    let counters = control.sink(place, &node.table);
    let address = builder.operator_info().address.to_vec();
    let wake = || -> Box<dyn Fn() + Send> {
        let activator = scope.worker().sync_activator_for(address.clone());
        Box::new(move || {
            // The worker may be gone; then nobody needs to know.
            let _ = activator.activate();
        })
    };
    // Several processes know by `recorded` what is on disk; that it never will be is seen here too.
    if let Some(memory) = control.memory() {
        memory.on_durable(wake());
    }
    let mut state = SinkState::empty(Shards::of(count, &sharding), control, &counters);
    state.ordered = ordered;
    (state.counts, state.recorded) = (author.is_some(), several.then_some(0));
    let mine = (0..count).filter(|shard| *shard as usize % peers == index);
    let start = |shard| {
        let (sink, table) = (node.sink.clone(), node.table.clone());
        let (author, resumed) = (author.clone(), Resumed::of(control, number, shard));
        let target = Target { sink, table, shard, author, number, resumed };
        (shard, start_shard(target, &counters, control, wake()))
    };
    state.shards = mine.map(start).collect();
    builder.build(move |capabilities| {
        let mut held = Some(capabilities);
        move |frontiers| {
            input.for_each(|capability, carrier| {
                state.pending(*capability.time()).rows.extend(carrier.take());
            });
            facts_in.for_each(|capability, facts| {
                state.pending(*capability.time()).note(facts.last());
            });
            if state.go_on(frontiers, held.as_mut()) {
                held = None;
            }
        }
    });
    (accepted, committed)
}

/// A shard with the digest of what it had got.
fn start_shard(
    target: Target,
    counters: &Arc<SinkCounters>,
    control: &Arc<JobControl>,
    wake: Box<dyn Fn() + Send>,
) -> (Shard, u128) {
    let digest = target.resumed.digest;
    counters.add_digest(digest);
    (Shard::start(target, counters.report.clone(), control.clone(), wake), digest)
}

/// Whether the job goes on from a checkpoint behind which nothing is.
fn has_ended(control: &JobControl) -> bool {
    let sources = control.restored().map(|loaded| &loaded.manifest.cuts.sources);
    sources.is_some_and(|sources| is_end(sources.iter().map(|source| source.watermark)))
}

impl Pending {
    fn note(&mut self, facts: Option<&EpochFacts>) {
        self.recorded_time = facts.map(|facts| facts.recorded_time);
        self.checkpoint = facts.is_some_and(|facts| facts.checkpoint);
        self.ended = facts.is_some_and(|facts| is_end(facts.watermarks.iter().copied()));
    }
}

/// Whether every source has ended, by their watermarks.
fn is_end(mut watermarks: impl Iterator<Item = Millis>) -> bool {
    watermarks.all(|watermark| watermark == MARK_END)
}

impl SinkState {
    /// Without shards.
    fn empty(divider: Shards, control: &Arc<JobControl>, counters: &Arc<SinkCounters>) -> Self {
        SinkState {
            ordered: false,
            shards: BTreeMap::new(),
            counts: false,
            divider,
            pending: BTreeMap::new(),
            control: control.clone(),
            counters: counters.clone(),
            recorded_time: MARK_NONE,
            ended: has_ended(control),
            finished: false,
            recorded: None,
        }
    }

    fn pending(&mut self, epoch: Epoch) -> &mut Pending {
        self.pending.entry(epoch).or_default()
    }

    /// Does what the frontiers allow; true once everything is committed.
    fn go_on(
        &mut self,
        frontiers: &[MutableAntichain<Epoch>],
        held: Option<&mut Vec<Capability<Epoch>>>,
    ) -> bool {
        let (inputs, recorded) = frontiers.split_at(2);
        let frontier = least(inputs);
        self.recorded = self.recorded.map(|_| least(recorded));
        let waiting = self.accept(frontier);
        self.settle(frontier, waiting, held)
    }

    /// Hands complete epochs to the shards while these have room; gives the first that has to wait.
    fn accept(&mut self, frontier: Epoch) -> Option<Epoch> {
        // Here, since drivers are gone once everything is read.
        self.control.look_after_keepers();
        if self.control.is_broken_off() {
            self.pending.clear();
        }
        while let Some((&epoch, _)) = self.pending.first_key_value() {
            if epoch >= frontier {
                return None;
            }
            if !self.is_recorded(epoch) || self.shards.values().any(|(s, _)| !s.queue.has_room()) {
                return Some(epoch);
            }
            let pending = self.pending.remove(&epoch).unwrap_or_default();
            self.recorded_time = pending.recorded_time.unwrap_or(self.recorded_time);
            self.ended |= pending.ended;
            self.deliver(epoch, pending.rows, pending.checkpoint);
        }
        None
    }

    /// Whether the epoch's cut is on disk, where cuts are remembered.
    fn is_recorded(&self, epoch: Epoch) -> bool {
        match (self.recorded, self.control.memory()) {
            (Some(below), _) => epoch < below,
            (None, Some(memory)) => memory.is_durable(epoch),
            (None, None) => true,
        }
    }

    fn deliver(&mut self, epoch: Epoch, deltas: Vec<Delta>, checkpoint: bool) {
        let mut by_shard: BTreeMap<u32, Vec<Delta>> = BTreeMap::new();
        for delta in deltas {
            for (shard, part) in self.divider.divide(delta) {
                by_shard.entry(shard).or_default().push(part);
            }
        }
        for (number, (shard, sum)) in &mut self.shards {
            let deltas = by_shard.remove(number).unwrap_or_default();
            let rows = in_order(deltas, self.ordered);
            let count: usize = rows.iter().map(Delta::len).sum();
            self.counters.accepted.fetch_add(count as u64, Ordering::Relaxed);
            if count > 0 {
                self.control.accepted(epoch);
                self.counters.first_after.get_or_init(|| self.control.rows_given());
            }
            if self.counts || self.control.digests {
                let added = rows.iter().fold(0_u128, |sum, d| sum.wrapping_add(digest(d)));
                *sum = sum.wrapping_add(added);
                self.counters.add_digest(added);
            }
            let plain = |d: Delta| (crate::rows::unpack(&d.rows), d.diffs);
            let rows: Vec<_> = rows.into_iter().map(plain).collect();
            // Of what waits in the queue: texts may be much longer than their places in a
            // dictionary.
            let bytes = rows.iter().map(|(rows, _)| crate::rows::sliced_bytes(rows)).sum();
            let end = ShardEnd { digest: *sum, ..ShardEnd::at(epoch, self.recorded_time) };
            shard.queue.push(EpochRows { end, rows, bytes, checkpoint });
        }
        debug_assert!(by_shard.is_empty(), "rows of a shard that this worker does not write");
    }

    /// Moves the two capabilities to where the sink is; true once everything is committed.
    fn settle(
        &mut self,
        frontier: Epoch,
        waiting: Option<Epoch>,
        held: Option<&mut Vec<Capability<Epoch>>>,
    ) -> bool {
        let Some(held) = held else { return true };
        let accepted = waiting.unwrap_or(frontier);
        let failed = self.control.is_broken_off();
        if accepted == Epoch::MAX && !self.finished {
            self.finished = true;
            let whole = !self.counts || self.ended;
            self.shards.values().for_each(|(s, _)| s.queue.finish(whole));
        }
        let progress: Vec<_> = self.shards.values().map(|(s, _)| s.queue.progress()).collect();
        let done = self.finished && progress.iter().all(|p| p.1);
        if done || failed {
            // Dropping the shards waits for their threads.
            self.shards.clear();
            return true;
        }
        // Up to what was handed over, an epoch in which this worker had nothing is committed.
        let least_committed = progress.iter().map(|p| p.0.map_or(0, |e| e + 1)).min();
        let committed = least_committed.unwrap_or(accepted).min(accepted);
        for (capability, to) in held.iter_mut().zip([accepted, committed]) {
            if to != Epoch::MAX && *capability.time() < to {
                capability.downgrade(&to);
            }
        }
        false
    }
}

/// Chunks in the order in which a shard gets them.
fn in_order(deltas: Vec<Delta>, ordered: bool) -> Vec<Delta> {
    let straight = |d: &Delta| ordered && matches!(d.origin, Origin::Split { .. });
    let (mut first, made): (Vec<_>, Vec<_>) = deltas.into_iter().partition(straight);
    first.sort_by_key(|d| d.origin);
    let mut by_time: BTreeMap<Origin, Vec<Delta>> = BTreeMap::new();
    for delta in made {
        let time = match delta.origin {
            Origin::FiredAt(_) => delta.origin,
            _ => Origin::Fired,
        };
        by_time.entry(time).or_default().push(delta);
    }
    for deltas in by_time.into_values() {
        match Delta::concat(&plain(deltas)) {
            Ok(Some(delta)) => first.push(sorted(&delta)),
            Ok(None) => {}
            Err(error) => unreachable!("chunks of one edge do not concatenate: {error}"),
        }
    }
    first.retain(|d| !d.is_empty());
    first
}

/// Chunks of one schema: strings that travel as dictionaries become plain where chunks differ.
fn plain(deltas: Vec<Delta>) -> Vec<Delta> {
    let same = deltas.windows(2).all(|w| w[0].rows.schema() == w[1].rows.schema());
    let dictionary = |d: &Delta| {
        d.rows.columns().iter().any(|c| matches!(c.data_type(), DataType::Dictionary(_, _)))
    };
    if same && !deltas.iter().any(dictionary) {
        return deltas;
    }
    deltas.into_iter().map(|d| d.with_rows(crate::rows::unpack(&d.rows))).collect()
}

/// All rows ordered by the whole row; equal rows cannot be told apart.
fn sorted(delta: &Delta) -> Delta {
    let order = order_of(&delta.rows);
    match delta.take(&UInt32Array::from(order)) {
        Ok(delta) => delta,
        Err(error) => unreachable!("rows cannot be taken from a chunk: {error}"),
    }
}

/// The order of rows: by the timestamps in them, then by all columns. A window's bounds are
/// timestamps, so windows come out one after the other.
fn order_of(rows: &RecordBatch) -> Vec<u32> {
    let is_time = |c: &&ArrayRef| matches!(c.data_type(), DataType::Timestamp(_, _));
    let times = rows.columns().iter().filter(is_time);
    let others = rows.columns().iter().filter(|c| !is_time(c));
    let columns: Vec<ArrayRef> = times.chain(others).cloned().collect();
    let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
    let fields = columns.iter().map(|c| SortField::new(c.data_type().clone())).collect();
    let converted =
        RowConverter::new(fields).and_then(|converter| converter.convert_columns(&columns));
    match converted {
        Ok(keys) => order.sort_by(|a, b| keys.row(*a as usize).cmp(&keys.row(*b as usize))),
        // Types that arrow has no order for have one by their key encoding.
        Err(_) => {
            let key = |row: usize| {
                let mut key = Vec::new();
                columns.iter().for_each(|c| encode_value(c.as_ref(), row, &mut key));
                key
            };
            order.sort_by_cached_key(|row| key(*row as usize));
        }
    }
    order
}
