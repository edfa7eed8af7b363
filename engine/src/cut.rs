//! Cuts: what closes an epoch, and what every worker concludes from them.
//!
//! # Invariant
//! Each worker closes an epoch for its own splits and sends its part to all workers. The state
//! after epoch e is a function of all parts up to e alone, so every worker computes the same
//! watermarks and, in a replay, the same decision about what is read next.
//!
//! # Watermark of a source
//! The least mark over its splits that are neither idle nor finished; it never goes back; it is
//! unset until every split that the job began with has reported, and final once all have finished;
//! one that came later counts from its first report on. A table that is
//! read before the streams start never holds one: its watermark is final from the beginning.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::rows::SplitId;
use crate::time::{Epoch, MARK_END, MARK_NONE, Millis};

/// What a split is doing, as far as the watermark is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SplitState {
    /// Not opened yet; its mark says where it will hold the watermark.
    Waiting,
    /// Being read.
    Reading,
    /// At its end for longer than the idle time-out.
    Idle,
    /// Read to the end.
    Finished,
}

/// A split in a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitFacts {
    /// The split.
    pub split: SplitId,
    /// The offset reached.
    pub offset: u64,
    /// Its mark.
    pub mark: Millis,
    /// What it is doing.
    pub state: SplitState,
    /// Event time that it advanced by in this epoch: how far its neighbours may run ahead.
    pub stride: Millis,
    /// Offsets that its server had forgotten before they were read: the size of all gaps so far.
    pub lost: u64,
    /// Bytes of a row, as its first rows have them; 0 where nobody has looked.
    pub width: u32,
}

/// One worker's part of a cut.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutPart {
    /// The worker that made it.
    pub worker: usize,
    /// The worker's clock when it closed the epoch.
    pub recorded_time: Millis,
    /// The splits that changed.
    pub splits: Vec<SplitFacts>,
    /// Whether a checkpoint is made at the end of the epoch. Not recorded: it changes no result.
    #[serde(default)]
    pub checkpoint: bool,
}

/// What a job knows of one of its sources before it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourcePlan {
    /// All its splits, those that came later behind those that the job began with.
    pub splits: Vec<SplitId>,
    /// With how many of them the job began.
    pub first: usize,
    /// The splits that queues are read for; several `splits` may travel in one of them.
    pub queues: Vec<SplitId>,
    /// Whether it is read to the end before the others start.
    pub table_first: bool,
    /// Whether rows have an event time.
    pub timed: bool,
    /// The delay of its watermark.
    pub delay: Millis,
    /// After how long with all splits idle the watermark follows the recorded time.
    pub advance_after: Option<Millis>,
}

struct SourceCut {
    plan: SourcePlan,
    facts: BTreeMap<SplitId, SplitFacts>,
    watermark: Millis,
    /// Recorded time and watermark when the last split became idle.
    all_idle: Option<(Millis, Millis)>,
}

impl SourceCut {
    fn finished(&self) -> bool {
        self.facts.len() == self.plan.splits.len()
            && self.facts.values().all(|f| f.state == SplitState::Finished)
    }

    /// Whether every split that the job began with has reported.
    fn reported(&self) -> bool {
        let first = &self.plan.splits[..self.plan.first];
        // Most of the time all have, and counting is enough.
        self.facts.len() == self.plan.splits.len()
            || self.facts.len() >= first.len() && first.iter().all(|s| self.facts.contains_key(s))
    }

    fn advance(&mut self, recorded_time: Millis) -> Millis {
        if self.plan.table_first || self.finished() {
            self.watermark = MARK_END;
        } else if self.plan.timed && self.reported() {
            let holding = self
                .facts
                .values()
                .filter(|f| matches!(f.state, SplitState::Waiting | SplitState::Reading))
                .map(|f| f.mark);
            let least = holding.min();
            self.watermark = self.watermark.max(least.unwrap_or(MARK_NONE));
            if least.is_none() {
                self.follow(recorded_time);
            } else {
                self.all_idle = None;
            }
        }
        self.watermark
    }

    /// With all splits idle for long enough, the watermark moves by the time that passes.
    fn follow(&mut self, recorded_time: Millis) {
        let (since, from) = *self.all_idle.get_or_insert((recorded_time, self.watermark));
        let passed = recorded_time.saturating_sub(since);
        if from != MARK_NONE && self.plan.advance_after.is_some_and(|after| passed >= after) {
            self.watermark = self.watermark.max(from.saturating_add(passed));
        }
    }
}

/// The end of an epoch as all workers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochFacts {
    /// The greatest clock of the parts.
    pub recorded_time: Millis,
    /// The watermark of each source, in the order of the plan.
    pub watermarks: Vec<Millis>,
    /// Whether a checkpoint is made of what is after it.
    pub checkpoint: bool,
}

/// What all cuts up to an epoch say, as a checkpoint keeps it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutSnapshot {
    /// The greatest recorded time.
    pub recorded_time: Millis,
    /// Source by source.
    pub sources: Vec<SourceSnapshot>,
    /// Of a replay: what is read in epochs to come.
    pub decisions: Vec<(Epoch, Vec<Quota>)>,
}

/// A source in a [`CutSnapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceSnapshot {
    /// Its watermark.
    pub watermark: Millis,
    /// Recorded time and watermark when the last split became idle.
    pub all_idle: Option<(Millis, Millis)>,
    /// Its splits.
    pub splits: Vec<SplitFacts>,
}

impl CutSnapshot {
    /// All splits of all sources.
    pub fn facts(&self) -> Vec<SplitFacts> {
        self.sources.iter().flat_map(|source| source.splits.iter().copied()).collect()
    }
}

/// How many rows to read from a split in an epoch of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quota {
    /// The split (one that has a queue).
    pub split: SplitId,
    /// Rows, unless it ends before.
    pub rows: usize,
}

/// What all cuts so far say.
pub struct CutState {
    sources: Vec<SourceCut>,
    recorded_time: Millis,
}

/// The most splits of a source that a replay reads at the same time.
pub const OPEN_SPLITS_MAX: usize = 16;
/// Bytes of an epoch of a replay at which its rows end to grow.
const EPOCH_BYTES: usize = 32 << 20;
/// Bytes of a row where nobody has looked.
const WIDTH_UNKNOWN: usize = 512;

impl CutState {
    /// Before the first cut.
    pub fn start(plans: Vec<SourcePlan>) -> CutState {
        let cut =
            |plan| SourceCut { plan, facts: BTreeMap::new(), watermark: MARK_NONE, all_idle: None };
        CutState { sources: plans.into_iter().map(cut).collect(), recorded_time: MARK_NONE }
    }

    /// Takes up all parts of an epoch.
    pub fn close(&mut self, parts: impl IntoIterator<Item = CutPart>) -> EpochFacts {
        let mut checkpoint = false;
        for part in parts {
            checkpoint |= part.checkpoint;
            self.recorded_time = self.recorded_time.max(part.recorded_time);
            for facts in part.splits {
                if let Some(source) = self.sources.get_mut(facts.split.source() as usize) {
                    source.facts.insert(facts.split, facts);
                }
            }
        }
        let recorded_time = self.recorded_time;
        let watermarks = self.sources.iter_mut().map(|s| s.advance(recorded_time)).collect();
        EpochFacts { recorded_time, watermarks, checkpoint }
    }

    /// What a checkpoint keeps of it.
    pub fn snapshot(&self) -> CutSnapshot {
        let source = |source: &SourceCut| SourceSnapshot {
            watermark: source.watermark,
            all_idle: source.all_idle,
            splits: source.facts.values().copied().collect(),
        };
        let sources = self.sources.iter().map(source).collect();
        CutSnapshot { recorded_time: self.recorded_time, sources, decisions: Vec::new() }
    }

    /// Takes up what a checkpoint has kept of the same sources.
    pub fn restore(&mut self, snapshot: &CutSnapshot) {
        self.recorded_time = snapshot.recorded_time;
        for (source, kept) in self.sources.iter_mut().zip(&snapshot.sources) {
            (source.watermark, source.all_idle) = (kept.watermark, kept.all_idle);
            source.facts = kept.splits.iter().map(|facts| (facts.split, *facts)).collect();
        }
    }

    /// Whether every table that is read first has been read.
    pub fn tables_loaded(&self) -> bool {
        self.sources.iter().filter(|s| s.plan.table_first).all(SourceCut::finished)
    }

    /// Whether every split of every source has finished.
    pub fn all_finished(&self) -> bool {
        self.sources.iter().all(SourceCut::finished)
    }

    /// The least mark over a source's splits that hold its watermark, for alignment.
    pub fn slowest(&self, source: usize) -> Millis {
        let holding =
            |f: &&SplitFacts| matches!(f.state, SplitState::Waiting | SplitState::Reading);
        let facts = self.sources[source].facts.values();
        facts.filter(holding).map(|f| f.mark).min().unwrap_or(MARK_NONE)
    }

    /// All splits as they stand, source by source, for SHOW WATERMARKS.
    pub fn splits(&self) -> impl Iterator<Item = (usize, Millis, &SplitFacts)> {
        self.sources
            .iter()
            .enumerate()
            .flat_map(|(i, s)| s.facts.values().map(move |f| (i, s.watermark, f)))
    }

    /// What a replay reads in an epoch, from the state some epochs before: `rows` in all, from the
    /// splits that are furthest behind and from those that are within reach of them, so that state
    /// stays small whether files follow one another or overlap. Beyond `sure` rows in all, what is
    /// read of a split is also bounded in bytes, by its width.
    pub fn decide(&self, rows: usize, sure: usize) -> Vec<Quota> {
        let loading = !self.tables_loaded();
        let sources = self.sources.iter().filter(|s| s.plan.table_first == loading);
        let open: Vec<(Millis, Millis, SplitId, usize)> =
            sources.flat_map(|s| s.candidates()).collect();
        let Some(least) = open.iter().map(|c| c.0).min() else { return Vec::new() };
        let reach = open.iter().filter(|c| c.0 == least).map(|c| c.1).max().unwrap_or(0);
        let limit = least.saturating_add(reach);
        let mut chosen: Vec<_> = open.into_iter().filter(|c| c.0 <= limit).collect();
        chosen.sort_by_key(|c| (c.0, c.2));
        chosen.truncate(OPEN_SPLITS_MAX);
        let count = chosen.len().max(1);
        let (share, sure) = (rows.div_ceil(count).max(1), sure.div_ceil(count).max(1));
        let quota = |(_, _, split, width): (_, _, SplitId, usize)| {
            let rows = share.min((EPOCH_BYTES / count / width).max(sure));
            Quota { split, rows }
        };
        chosen.into_iter().map(quota).collect()
    }
}

impl SourceCut {
    /// Unfinished queues with their mark, how far others may run ahead of it, and their width.
    fn candidates(&self) -> Vec<(Millis, Millis, SplitId, usize)> {
        let queues = self.plan.queues.iter();
        let facts = queues.filter_map(|split| Some((split, self.facts.get(split)?)));
        let unfinished = facts.filter(|(_, f)| f.state != SplitState::Finished);
        unfinished
            .map(|(split, f)| {
                let reach = self.plan.delay.max(f.stride).saturating_add(1);
                let width = if f.width == 0 { WIDTH_UNKNOWN } else { f.width as usize };
                (f.mark, reach, *split, width)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(number: u64) -> SplitId {
        SplitId::of(0, number)
    }

    fn facts(number: u64, mark: Millis, state: SplitState) -> SplitFacts {
        SplitFacts { split: split(number), offset: 0, mark, state, stride: 0, lost: 0, width: 0 }
    }

    fn two() -> CutState {
        let splits = vec![split(0), split(1)];
        CutState::start(vec![SourcePlan {
            queues: splits.clone(),
            first: splits.len(),
            splits,
            table_first: false,
            timed: true,
            delay: 5,
            advance_after: Some(1_000),
        }])
    }

    fn close(state: &mut CutState, splits: Vec<SplitFacts>) -> Millis {
        state.close([CutPart { worker: 0, recorded_time: 0, splits, checkpoint: false }]).watermarks
            [0]
    }

    #[test]
    fn the_slowest_split_that_is_not_idle_holds() {
        let mut state = two();
        assert_eq!(close(&mut state, vec![facts(0, 100, SplitState::Reading)]), MARK_NONE);
        assert_eq!(close(&mut state, vec![facts(1, 40, SplitState::Reading)]), 40);
        assert_eq!(close(&mut state, vec![facts(1, 40, SplitState::Idle)]), 100);
        // Back from idleness, behind: the watermark does not go back.
        assert_eq!(close(&mut state, vec![facts(1, 50, SplitState::Reading)]), 100);
        assert_eq!(close(&mut state, vec![facts(0, 200, SplitState::Idle)]), 100);
        assert_eq!(close(&mut state, vec![facts(1, 300, SplitState::Idle)]), 100);
        let end = vec![facts(0, 1, SplitState::Finished), facts(1, 1, SplitState::Finished)];
        assert_eq!(close(&mut state, end), MARK_END);
        assert!(state.all_finished());
    }

    #[test]
    fn a_split_that_came_later_counts_from_its_first_report_on() {
        let mut state = two();
        state.sources[0].plan.first = 1;
        assert_eq!(close(&mut state, Vec::new()), MARK_NONE);
        assert_eq!(close(&mut state, vec![facts(0, 100, SplitState::Reading)]), 100);
        assert_eq!(close(&mut state, vec![facts(1, 40, SplitState::Reading)]), 100);
        assert_eq!(close(&mut state, vec![facts(0, 200, SplitState::Reading)]), 100);
        assert_eq!(close(&mut state, vec![facts(1, 150, SplitState::Reading)]), 150);
        // A stranger's report is not that of the first.
        let mut state = two();
        state.sources[0].plan.first = 1;
        assert_eq!(close(&mut state, vec![facts(1, 40, SplitState::Reading)]), MARK_NONE);
    }

    #[test]
    fn with_all_idle_for_long_the_watermark_follows_the_recorded_time() {
        let mut state = two();
        let at = |state: &mut CutState, recorded_time, splits| {
            state
                .close([CutPart { worker: 0, recorded_time, splits, checkpoint: false }])
                .watermarks[0]
        };
        let idle = vec![facts(0, 40, SplitState::Idle), facts(1, 90, SplitState::Reading)];
        assert_eq!(at(&mut state, 5_000, idle), 90);
        assert_eq!(at(&mut state, 9_000, vec![facts(1, 90, SplitState::Idle)]), 90);
        assert_eq!(at(&mut state, 9_999, Vec::new()), 90);
        assert_eq!(at(&mut state, 10_000, Vec::new()), 1_090);
        assert_eq!(at(&mut state, 12_000, Vec::new()), 3_090);
        // A row ends it; what has passed has passed.
        assert_eq!(at(&mut state, 12_500, vec![facts(1, 95, SplitState::Reading)]), 3_090);
        assert_eq!(at(&mut state, 20_000, vec![facts(1, 95, SplitState::Reading)]), 3_090);
    }

    #[test]
    fn a_replay_reads_what_is_behind_and_what_is_near() {
        let mut state = two();
        close(
            &mut state,
            vec![facts(0, 100, SplitState::Waiting), facts(1, 104, SplitState::Waiting)],
        );
        let both = [Quota { split: split(0), rows: 5 }, Quota { split: split(1), rows: 5 }];
        assert_eq!(state.decide(10, 10), both);
        close(&mut state, vec![facts(1, 107, SplitState::Reading)]);
        assert_eq!(state.decide(10, 10), [Quota { split: split(0), rows: 10 }]);
        close(&mut state, vec![facts(0, 100, SplitState::Finished)]);
        assert_eq!(state.decide(10, 10), [Quota { split: split(1), rows: 10 }]);
    }

    #[test]
    fn wide_rows_make_small_epochs() {
        let mut state = two();
        let wide = |width| SplitFacts { width, ..facts(0, 100, SplitState::Reading) };
        let mut rows = |width, sure| {
            close(&mut state, vec![wide(width), facts(1, 0, SplitState::Finished)]);
            state.decide(1 << 20, sure)[0].rows
        };
        assert_eq!([rows(16, 10), rows(64, 10), rows(1 << 20, 10)], [1 << 20, 1 << 19, 32]);
        assert_eq!(rows(1 << 26, 10), 10, "some are sure");
        assert_eq!(rows(0, 10), 1 << 16, "nobody has looked");
        assert_eq!(rows(1 << 20, 1 << 20), 1 << 20, "as many as were asked for");
    }
}
