//! The one timely operator that makes a job's epochs on a worker: it takes chunks from the queues
//! of the worker's splits, gives their rows to the dataflow, and closes the epochs with cuts.
//!
//! # Live
//! An epoch is open until its time is over, its rows are enough, or another worker is seen ahead;
//! its number is the clock in milliseconds on the grid of the interval, and never below what was
//! seen. An epoch in which nothing changed is passed over without a part, so an idle job costs
//! nothing.
//!
//! # Replay
//! Epochs count from 1. What is read in epoch e was decided by every worker alike from the cut of
//! epoch e − LEAD, so it depends on files and options alone. A worker reads its own splits' share
//! of the decision and closes the epoch when it has all of it, however long that takes. An epoch's
//! bytes are bounded by what the first rows of its splits weigh; rows of one split that grow a
//! hundredfold make epochs that grow with them.
//!
//! # Back-pressure
//! A worker is at most `AHEAD_EPOCHS_MAX` epochs (of a replay `REPLAY_AHEAD_MAX`) and
//! `AHEAD_BYTES_MAX` ahead of what all sinks have accepted. Beyond that it takes nothing from its
//! queues; they fill, and their readers wait. With full queues a live epoch could take up all its
//! rows at once, however few the sinks can take: so where a worker had to wait, its epochs are no
//! larger than what was accepted within a second.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use relive::Past;

use super::reading::{Reading, Taken};
use crate::cut::{CutPart, CutState, Quota, SplitState};
use crate::graph::SourceNode;
use crate::job::JobControl;
use crate::rows::{Delta, SplitId};
use crate::source::SourceHandle;
use crate::time::{Epoch, MARK_NONE, Millis};

/// How epochs are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum EpochPolicy {
    /// By the clock: an epoch lasts this many milliseconds, or fewer if this many rows are there.
    Live {
        /// Milliseconds, at least 1.
        interval: Millis,
        /// Rows a worker at the most.
        rows: usize,
    },
    /// By rows: this many in all an epoch. Only for inputs that end.
    Replay {
        /// Rows of the first 32 epochs. Those that follow grow by half each until they have
        /// `rows`, or as many as make 32 MiB: first results come soon, and what follows costs
        /// little an epoch.
        first: usize,
        /// Rows at the most.
        rows: usize,
    },
}

impl EpochPolicy {
    /// Epochs of a replay that have this many rows each.
    pub fn rows(rows: usize) -> EpochPolicy {
        EpochPolicy::Replay { first: rows, rows }
    }

    /// Rows of a replay's epoch.
    pub(crate) fn replay_rows(self, epoch: Epoch) -> usize {
        let EpochPolicy::Replay { first, rows } = self else { return 0 };
        let mut size = first.max(1);
        for _ in FIRST_EPOCHS..epoch {
            if size >= rows {
                break;
            }
            size += size / 2 + 1;
        }
        size.min(rows.max(1))
    }
}

/// Epochs between a cut and the reading that it decides.
pub(crate) const LEAD: u64 = 3;
const AHEAD_EPOCHS_MAX: usize = 8;
/// The same of a replay, whose epochs are large: what is under way has to be done before a
/// checkpoint is, and again after a crash.
const REPLAY_AHEAD_MAX: usize = LEAD as usize + 1;
const AHEAD_BYTES_MAX: usize = 64 << 20;
/// Epochs of a replay before they grow.
const FIRST_EPOCHS: Epoch = 32;
/// What a replay reads before operators have their turn.
const STEP_BYTES: usize = 4 << 20;
const CHUNK_ROWS_MAX: usize = 16_384;
const HEARTBEAT: Millis = 1_000;
/// Over this time it is counted what the sinks accept.
const PACE_WINDOW: Millis = 1_000;
/// The least that a live epoch may have, however slow the sinks are.
const PACED_ROWS_MIN: usize = 1_024;

/// What the cut operator tells the driver of its worker.
pub(crate) struct Known {
    pub(crate) state: CutState,
    /// The greatest epoch of any part that has arrived.
    pub(crate) seen: Epoch,
    /// Decisions of a replay, by epoch, and the last epoch that was decided.
    pub(crate) decisions: VecDeque<(Epoch, Vec<Quota>)>,
    /// The newest of them, whether they were taken up or not.
    pub(crate) recent: VecDeque<(Epoch, Vec<Quota>)>,
    pub(crate) decided: Epoch,
    /// The last epoch that all workers have closed.
    pub(crate) closed: Option<Epoch>,
    pub(crate) policy: EpochPolicy,
}

/// A source on this worker.
pub(crate) struct SourceRuntime {
    pub(crate) node: Arc<SourceNode>,
    pub(crate) readings: Vec<Reading>,
    pub(crate) handle: Option<Box<dyn SourceHandle>>,
}

/// Where the driver's rows go; timely's outputs, seen from here.
pub(crate) trait Outlets {
    /// Rows of source `source` at the open epoch.
    fn rows(&mut self, source: usize, delta: Delta);
    /// Dead letters of source `source` at the open epoch.
    fn dead(&mut self, source: usize, delta: Delta);
    /// This worker's part of the open epoch's cut, for every worker.
    fn part(&mut self, part: CutPart);
}

/// What the driver wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The open epoch is closed; go on at this one and call again at once.
    Epoch(Epoch),
    /// Call again after this time, or when something happens.
    Wait(Duration),
    /// All is read: no more epochs.
    Done,
}

/// How far the sinks of all workers are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Accepted {
    /// Everything below is accepted; `None` when all is.
    pub(crate) below: Option<Epoch>,
    /// Everything below is committed.
    pub(crate) committed_below: Option<Epoch>,
}

struct Issued {
    epoch: Epoch,
    rows: usize,
    bytes: usize,
    offsets: Vec<Vec<(u64, u64)>>,
}

/// How many rows a live epoch may have where the sinks are slower than the sources.
struct Pace {
    since: Millis,
    /// Rows accepted since then.
    accepted: usize,
    /// Whether the worker had to wait since then.
    waited: bool,
    rows_max: usize,
}

impl Pace {
    fn start(now: Millis) -> Pace {
        Pace { since: now, accepted: 0, waited: false, rows_max: usize::MAX }
    }

    /// The limit for the open epoch; `ahead` says that the worker has to wait.
    fn rows_max(&mut self, now: Millis, ahead: bool) -> usize {
        self.waited |= ahead;
        if !(0..PACE_WINDOW).contains(&now.saturating_sub(self.since)) {
            let paced = self.accepted.max(PACED_ROWS_MIN);
            let rows_max = if self.waited { paced } else { usize::MAX };
            *self = Pace { rows_max, ..Pace::start(now) };
        }
        self.rows_max
    }
}

/// The state of a worker's epochs.
pub(crate) struct Driver {
    worker: usize,
    policy: EpochPolicy,
    control: Arc<JobControl>,
    known: Rc<RefCell<Known>>,
    sources: Vec<SourceRuntime>,
    places: BTreeMap<SplitId, (usize, usize)>,
    epoch: Epoch,
    /// Whether `epoch` is that of the checkpoint that the job goes on from.
    restored: bool,
    /// The epoch up to which sources were told that nothing is needed any more.
    trimmed: Option<Epoch>,
    opened: Millis,
    last_part: Millis,
    noticed: Millis,
    rows_here: usize,
    bytes_here: usize,
    issued: VecDeque<Issued>,
    uncommitted: VecDeque<Issued>,
    quotas: Option<Vec<Quota>>,
    turn: usize,
    pace: Pace,
    /// What rows of the open epoch see as the time, once it has any.
    time: Option<Millis>,
    /// Recorded cuts that are still to be gone by.
    past: Option<Past>,
}

impl Driver {
    pub(crate) fn start(
        worker: usize,
        policy: EpochPolicy,
        control: Arc<JobControl>,
        known: Rc<RefCell<Known>>,
        sources: Vec<SourceRuntime>,
    ) -> Driver {
        let place = |(s, source): (usize, &SourceRuntime)| -> Vec<_> {
            source.readings.iter().enumerate().map(|(r, x)| (x.id, (s, r))).collect()
        };
        let places = sources.iter().enumerate().flat_map(place).collect();
        let now = control.clock.now();
        let restored = control.restored().map(|loaded| loaded.manifest.epoch);
        let past = control.memory().and_then(|memory| Past::of(memory.past(), restored, &sources));
        Driver {
            worker,
            policy,
            control,
            known,
            sources,
            places,
            epoch: restored.unwrap_or(0),
            restored: restored.is_some(),
            trimmed: None,
            opened: now,
            last_part: now,
            noticed: MARK_NONE / 2,
            rows_here: 0,
            bytes_here: 0,
            issued: VecDeque::new(),
            uncommitted: VecDeque::new(),
            quotas: None,
            turn: 0,
            pace: Pace::start(now),
            time: None,
            past,
        }
    }

    /// Says what wakes the worker when a queue has news.
    pub(crate) fn on_news(&self, wake: impl Fn() -> crate::source::Wake) {
        let readings = self.sources.iter().flat_map(|s| &s.readings);
        readings.for_each(|r| r.queue.on_news(wake()));
    }

    /// Does what can be done now.
    pub(crate) fn step(&mut self, accepted: Accepted, out: &mut impl Outlets) -> Next {
        if let Some(failed) = self.failure() {
            self.control.fail_connector(&failed.0, failed.1);
            let half_done = self.past.is_some() || self.restored;
            return if half_done { self.freeze() } else { self.finish(out) };
        }
        if self.control.is_stopping() {
            if self.past.is_some() || self.restored {
                self.control.interrupt();
                return self.freeze();
            }
            return self.finish(out);
        }
        self.settle(accepted);
        self.pass_notices_on();
        if let Some(next) = self.relive(out) {
            self.restored = false;
            return next;
        }
        if std::mem::take(&mut self.restored) {
            self.wake_idle_splits();
            self.epoch = self.next_epoch(self.control.clock.now());
            return if self.all_finished() { Next::Done } else { Next::Epoch(self.epoch) };
        }
        if self.epoch == 0 {
            return self.close(out, true);
        }
        match self.policy {
            EpochPolicy::Live { interval, rows } => self.live(interval.max(1), rows, out),
            EpochPolicy::Replay { .. } => self.replay(out),
        }
    }

    /// A few times a second, what readers want people to know.
    fn pass_notices_on(&mut self) {
        let now = self.control.clock.now();
        if (0..HEARTBEAT / 4).contains(&(now - self.noticed)) {
            return;
        }
        self.noticed = now;
        self.forget();
        for source in &self.sources {
            for reading in &source.readings {
                let (lag, notice) = reading.queue.report();
                let about = format!("{} {}", source.node.table, reading.queue.split.name);
                self.control.set_lag(&about, lag);
                self.control.set_notice(&about, notice);
            }
        }
    }

    fn failure(&self) -> Option<(String, crate::connector::ConnectorError)> {
        self.sources.iter().find_map(|s| {
            let failed = s.readings.iter().find_map(|r| r.queue.failure())?;
            Some((s.node.table.clone(), failed))
        })
    }

    /// Forgets epochs that the sinks have accepted, and tells sources what is committed.
    fn settle(&mut self, accepted: Accepted) {
        let passed = |below: Option<Epoch>, epoch: Epoch| below.is_none_or(|b| epoch < b);
        while self.issued.front().is_some_and(|i| passed(accepted.below, i.epoch)) {
            let issued = self.issued.pop_front();
            self.pace.accepted += issued.as_ref().map_or(0, |i| i.rows);
            self.uncommitted.extend(issued);
        }
        let mut newest = None;
        while self.uncommitted.front().is_some_and(|i| passed(accepted.committed_below, i.epoch)) {
            newest = self.uncommitted.pop_front();
        }
        let Some(newest) = newest else { return };
        for (source, offsets) in self.sources.iter_mut().zip(newest.offsets) {
            if let Some(handle) = source.handle.as_mut().filter(|_| !offsets.is_empty()) {
                handle.committed(&offsets);
            }
        }
    }

    /// What was idle when the job stopped may have rows by now: until it is found at its end again
    /// it holds the watermark, lest what came meanwhile be late.
    fn wake_idle_splits(&mut self) {
        if matches!(self.policy, EpochPolicy::Replay { .. }) {
            return;
        }
        let readings = self.sources.iter_mut().flat_map(|source| &mut source.readings);
        for reading in readings.filter(|reading| reading.state == SplitState::Idle) {
            (reading.state, reading.changed, reading.quiet_since) =
                (SplitState::Reading, true, None);
        }
    }

    /// Tells sources what no checkpoint that is kept needs.
    fn forget(&mut self) {
        let Some(retained) = self.control.checkpoints().and_then(|c| c.retained()) else { return };
        if Some(retained.epoch) <= self.trimmed {
            return;
        }
        self.trimmed = Some(retained.epoch);
        let offsets: BTreeMap<SplitId, u64> =
            retained.splits.iter().map(|facts| (facts.split, facts.offset)).collect();
        for source in &mut self.sources {
            let readings = source.readings.iter();
            let kept = readings.filter_map(|r| Some((r.id.number(), *offsets.get(&r.id)?)));
            let kept: Vec<_> = kept.collect();
            if let Some(handle) = source.handle.as_mut().filter(|_| !kept.is_empty()) {
                handle.forget(&kept);
            }
        }
    }

    /// The job has ended well, so all that was read is committed: sources may tell their brokers.
    pub(crate) fn commit_all(&mut self) {
        for source in &mut self.sources {
            let offsets: Vec<_> = source.readings.iter().filter_map(Reading::offset).collect();
            if let Some(handle) = source.handle.as_mut().filter(|_| !offsets.is_empty()) {
                handle.committed(&offsets);
            }
        }
    }

    fn is_ahead(&self) -> bool {
        let bytes: usize = self.issued.iter().map(|i| i.bytes).sum();
        self.issued.len() >= AHEAD_EPOCHS_MAX || bytes + self.bytes_here >= AHEAD_BYTES_MAX
    }

    fn finish(&mut self, out: &mut impl Outlets) -> Next {
        self.stop_sources();
        self.close(out, false);
        Next::Done
    }

    fn stop_sources(&mut self) {
        for source in &mut self.sources {
            if let Some(handle) = source.handle.as_mut() {
                handle.stop();
            }
            source.readings.iter().for_each(|r| r.queue.close());
        }
    }

    /// Closes the open epoch and chooses the next.
    fn close(&mut self, out: &mut impl Outlets, always: bool) -> Next {
        let now = self.control.clock.now();
        let mut splits = Vec::new();
        let first = self.epoch == 0;
        let mut readings: Vec<_> =
            self.sources.iter_mut().flat_map(|s| s.readings.iter_mut()).collect();
        readings.iter_mut().for_each(|r| r.note_gaps());
        let readings = readings.into_iter();
        readings.filter(|r| r.changed || first).for_each(|r| r.facts(&mut splits));
        let quiet = splits.is_empty() && self.rows_here == 0;
        if always || !quiet {
            let recorded_time = self.time.unwrap_or(now);
            let checkpoint = self.control.is_checkpoint_due(now);
            out.part(CutPart { worker: self.worker, recorded_time, splits, checkpoint });
            self.last_part = now;
        }
        self.issue();
        self.opened = now;
        self.epoch = self.next_epoch(now);
        if self.all_finished() { Next::Done } else { Next::Epoch(self.epoch) }
    }

    /// Notes what was given to the dataflow in the epoch that is closed.
    fn issue(&mut self) {
        if self.rows_here > 0 {
            let offsets =
                |s: &SourceRuntime| s.readings.iter().filter_map(Reading::offset).collect();
            let offsets = self.sources.iter().map(offsets).collect();
            let (epoch, rows, bytes) = (self.epoch, self.rows_here, self.bytes_here);
            self.issued.push_back(Issued { epoch, rows, bytes, offsets });
        }
        (self.rows_here, self.bytes_here, self.time) = (0, 0, None);
    }

    fn next_epoch(&self, now: Millis) -> Epoch {
        match self.policy {
            EpochPolicy::Live { interval, .. } => {
                let grid = now.max(0) / interval.max(1) * interval.max(1);
                let seen = self.known.borrow().seen;
                (grid as u64).max(self.epoch + 1).max(seen + 1)
            }
            EpochPolicy::Replay { .. } => self.epoch + 1,
        }
    }

    fn all_finished(&self) -> bool {
        self.sources.iter().all(|s| s.readings.iter().all(|r| r.state == SplitState::Finished))
    }

    fn emit(&mut self, place: (usize, usize), taken: Taken, out: &mut impl Outlets) {
        for delta in taken.rows {
            self.rows_here += delta.len();
            self.bytes_here += delta.bytes();
            out.rows(place.0, delta);
        }
        if let Some(dead) = taken.dead {
            self.rows_here += dead.len();
            self.bytes_here += dead.bytes();
            out.dead(place.0, dead);
        }
    }

    // Live ---------------------------------------------------------------------------------------

    fn live(&mut self, interval: Millis, rows_max: usize, out: &mut impl Outlets) -> Next {
        let now = self.control.clock.now();
        let ahead = self.is_ahead();
        let rows_max = rows_max.min(self.pace.rows_max(now, ahead));
        let more = !ahead && self.take_live(rows_max, now, out);
        self.note_idleness(now, ahead);
        let changed =
            self.rows_here > 0 || self.sources.iter().any(|s| s.readings.iter().any(|r| r.changed));
        let seen_ahead = self.known.borrow().seen >= self.epoch;
        let age = now.saturating_sub(self.opened);
        let full = self.rows_here >= rows_max;
        let heartbeat = now.saturating_sub(self.last_part) >= HEARTBEAT;
        // A clock that stepped back must not hold an epoch open.
        if full || (changed && !(0..interval).contains(&age)) || seen_ahead || heartbeat {
            return self.close(out, heartbeat);
        }
        let wait = if more {
            0
        } else if ahead {
            1
        } else if changed {
            interval - age
        } else {
            HEARTBEAT / 20
        };
        Next::Wait(Duration::from_millis(wait.max(0) as u64))
    }

    /// Takes chunks in turn from all queues; says whether more is waiting.
    fn take_live(&mut self, rows_max: usize, now: Millis, out: &mut impl Outlets) -> bool {
        let loaded = self.known.borrow().state.tables_loaded();
        let places: Vec<(usize, usize)> = self.places.values().copied().collect();
        let mut more = false;
        for turn in 0..places.len() {
            let place = places[(self.turn + turn) % places.len()];
            let node = &self.sources[place.0].node;
            // Tables first, and nothing else until all workers have all of them.
            if node.table_first == loaded {
                continue;
            }
            if self.is_drifting(place) {
                continue;
            }
            more |= self.take_one(place, rows_max, now, out);
            if self.rows_here >= rows_max {
                break;
            }
        }
        self.turn = self.turn.wrapping_add(1);
        if more || self.rows_here >= rows_max {
            return more;
        }
        // Nothing waits anywhere: one split at the most is helped, so that no other waits long.
        let is_open = |this: &Driver, place: &(usize, usize)| {
            this.sources[place.0].node.table_first != loaded && !this.is_drifting(*place)
        };
        let turn = self.turn;
        let places = (0..places.len()).map(|n| places[(turn + n) % places.len()]);
        places.into_iter().any(|place| is_open(self, &place) && self.help(place))
    }

    fn take_one(
        &mut self,
        place: (usize, usize),
        rows_max: usize,
        now: Millis,
        out: &mut impl Outlets,
    ) -> bool {
        let budget = rows_max.saturating_sub(self.rows_here).clamp(1, CHUNK_ROWS_MAX);
        let reading = &mut self.sources[place.0].readings[place.1];
        if reading.state == SplitState::Finished {
            return false;
        }
        reading.queue.want();
        if let Some(chunk) = reading.queue.pop(budget) {
            let taken = reading.take(chunk, *self.time.get_or_insert(now));
            let more = reading.queue.has_chunk();
            self.emit(place, taken, out);
            return more;
        }
        if reading.queue.is_finished() {
            reading.state = SplitState::Finished;
            reading.changed = true;
            return false;
        }
        if reading.state == SplitState::Waiting {
            reading.state = SplitState::Reading;
            reading.changed = true;
        }
        false
    }

    /// Whether a split is too far ahead of its source's slowest one.
    fn is_drifting(&self, place: (usize, usize)) -> bool {
        let source = &self.sources[place.0];
        let Some(drift) = source.node.max_drift else { return false };
        let slowest = self.known.borrow().state.slowest(place.0);
        let mark = source.readings[place.1].mark();
        slowest != MARK_NONE && mark > slowest.saturating_add(drift)
    }

    /// A split that is connected, polled, not paused and at its end for the time-out becomes idle.
    fn note_idleness(&mut self, now: Millis, ahead: bool) {
        for source in &mut self.sources {
            let Some(timeout) = source.node.idle_timeout else { continue };
            for reading in &mut source.readings {
                let (at_end, connected) = reading.queue.is_quiet();
                let reachable = connected || source.node.idle_on_disconnect;
                let quiet = at_end && reachable && !ahead && !reading.queue.has_chunk();
                if !quiet || reading.state != SplitState::Reading {
                    reading.quiet_since = None;
                    continue;
                }
                let since = *reading.quiet_since.get_or_insert(now);
                if now.saturating_sub(since) >= timeout {
                    reading.state = SplitState::Idle;
                    reading.changed = true;
                }
            }
        }
    }

    // Replay -------------------------------------------------------------------------------------

    fn replay(&mut self, out: &mut impl Outlets) -> Next {
        if self.quotas.is_none() {
            let mut known = self.known.borrow_mut();
            while known.decisions.front().is_some_and(|d| d.0 < self.epoch) {
                known.decisions.pop_front();
            }
            if known.decisions.front().is_none_or(|d| d.0 != self.epoch) {
                return Next::Wait(Duration::from_millis(20));
            }
            let mine = |q: &Quota| self.places.contains_key(&q.split);
            let decided = known.decisions.pop_front().map(|d| d.1).unwrap_or_default();
            self.quotas = Some(decided.into_iter().filter(mine).collect());
        }
        // An epoch that was begun alone is never too far ahead: nothing else would end it.
        if self.issued.len() >= REPLAY_AHEAD_MAX || !self.issued.is_empty() && self.is_ahead() {
            return Next::Wait(Duration::from_micros(300));
        }
        let now = self.opened;
        let pause = self.bytes_here + STEP_BYTES;
        let mut quotas = self.quotas.take().unwrap_or_default();
        for quota in &mut quotas {
            let Some(&place) = self.places.get(&quota.split) else { continue };
            while quota.rows > 0 && (self.take_quota(place, quota, now, out) || self.help(place)) {
                if self.bytes_here >= pause {
                    // The operators' turn.
                    self.quotas = Some(quotas);
                    return Next::Wait(Duration::ZERO);
                }
            }
        }
        quotas.retain(|q| q.rows > 0);
        if quotas.is_empty() {
            return self.close(out, true);
        }
        self.quotas = Some(quotas);
        // A queue that gets its first chunk wakes the worker; help may be possible before.
        Next::Wait(Duration::from_millis(2))
    }

    /// Reads for a split whose queue is empty, if that can be done here; whether it was.
    fn help(&mut self, place: (usize, usize)) -> bool {
        let source = &mut self.sources[place.0];
        let reading = &source.readings[place.1];
        let wants = reading.state != SplitState::Finished && !reading.queue.has_chunk();
        let split = reading.queue.split.number;
        wants && source.handle.as_mut().is_some_and(|handle| handle.help(split))
    }

    /// Takes a chunk against a quota. False: none is there yet, or the split has ended.
    fn take_quota(
        &mut self,
        place: (usize, usize),
        quota: &mut Quota,
        now: Millis,
        out: &mut impl Outlets,
    ) -> bool {
        let reading = &mut self.sources[place.0].readings[place.1];
        if reading.state == SplitState::Finished {
            quota.rows = 0;
            return false;
        }
        reading.queue.want();
        // Asked before the pop, so that a last chunk cannot slip in between.
        let finished = reading.queue.is_finished();
        match reading.queue.pop(quota.rows) {
            Some(chunk) => {
                quota.rows -= chunk.len();
                let taken = reading.take(chunk, *self.time.get_or_insert(now));
                self.emit(place, taken, out);
                true
            }
            None => {
                if finished {
                    reading.state = SplitState::Finished;
                    reading.changed = true;
                    quota.rows = 0;
                }
                false
            }
        }
    }
}

mod relive;
#[cfg(test)]
mod tests;
