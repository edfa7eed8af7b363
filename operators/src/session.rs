//! Session windows: rows of a key that are no more than a gap apart.
//!
//! # The rule
//! L of a row is the greater of its mark and W before its epoch. A row is *in order* if ts > L,
//! else a *straggler*. Rows in order merge when no more than the gap apart and the earlier one's
//! ts + gap − 1 > the later one's L. Stragglers then follow in order of (L, split, offset): one
//! joins every session whose extent [first, last + gap] touches its own and whose end − 1 > its L,
//! making them one; else it opens its own if ts + gap − 1 > L; else it is late. A session is
//! [first, last + gap).
//!
//! # Rows in order merge on receipt
//! Two of them less than the gap apart always merge: the later one's L < its ts ≤ the earlier
//! one's ts + gap − 1. Exactly the gap apart, they do unless the later one's L is its ts − 1: then
//! its time is *tight*. Rows of one time merge with each other, so a run is two times, what its
//! rows add up to, and whether its first time has a row that is not tight. Which runs there are
//! depends on the set of rows.
//!
//! # Stragglers are kept one by one, and played when something may fire
//! Let W be the watermark after an epoch. Rows still to come have L ≥ W. So:
//! - All stragglers with L < W are here, and no straggler with L ≥ W can join or open a session
//!   whose end − 1 ≤ W: such sessions are made by the former alone, in an order that is complete.
//! - Rows in order still to come have ts ≥ W + 1. They extend only runs with end − 1 > W (at ts =
//!   W + 1 their L is W, and they are tight), and meet a straggler only if its ts + gap ≥ W + 1.
//!   Then the session it is in has end − 1 ≥ W: it doesn't fire now, unless that is W itself and
//!   the straggler its last row. Such a session, alone, waits for W ≥ end: then all rows that its
//!   straggler may meet are here.
//! - A straggler with L < W that is late stays so: what it could still meet begins at W + 1 or
//!   later, beyond its ts + gap ≤ L + 1.
//!
//! So the sessions that fire at W, and the late rows, are those of the rule applied to all rows of
//! all time: no matter how epochs cut them or in which order splits are read. What does not fire
//! is played again from the start when it may: taking a session out of the play changes no other.
//!
//! # Watermark of the output
//! W less 1 ms, for the sessions that wait for W ≥ end: their time is end − 1.
//!
//! # Complexity
//! A row in order: a look-up of its key and a step over the key's open runs, of which there are
//! few. A key is looked at once a gap, or when a session of it may fire. Playing s stragglers of a
//! key: O(s²) at worst, once for each time that something of the key may fire or be late.

mod keeping;
mod runs;
#[cfg(test)]
pub(crate) mod script;
#[cfg(test)]
mod tests;

use arrow::array::{ArrayRef, TimestampMillisecondArray};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DataType, SchemaRef};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use weir_engine::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use weir_engine::rows::{Delta, Provenance, batch_of};
use weir_engine::time::{MARK_END, MARK_NONE, Millis, mark_less};

use crate::aggregates::{Accumulators, AggregateCall, Arguments, KeyInterner};
use crate::late::{LateRow, put_late};
use crate::rowwise::set_aside;
use crate::temporal::{RowStore, timed};
use runs::{Fired, KeySessions, Straggler};

/// What a [`SessionAggregate`] does.
#[derive(Clone, Debug)]
pub struct SessionAggregateSpec {
    /// The gap in milliseconds, at least 1.
    pub gap: Millis,
    /// Event time among the input's columns.
    pub time: usize,
    /// Key columns.
    pub keys: Vec<usize>,
    /// Aggregates.
    pub calls: Vec<AggregateCall>,
    /// Whether late rows are emitted; they are counted in any case.
    pub collect_late: bool,
    /// Schema of the input.
    pub input: SchemaRef,
    /// Schema of the output: keys, window_start (first time), window_end (last time + gap), calls.
    pub output: SchemaRef,
}

/// Ids of keys that are freed together at the least.
const VACANT_MIN: usize = 1 << 16;
/// Rows of stragglers that are gone, beyond those that wait, before the store is rewritten.
const DEAD_MIN: usize = 4096;

/// The operator.
#[derive(Debug)]
pub struct SessionAggregate {
    spec: SessionAggregateSpec,
    interner: KeyInterner,
    /// By key id.
    sessions: Vec<KeySessions>,
    /// When something of a key may fire or be late; only entries equal to the key's `due` count.
    due: BinaryHeap<Reverse<(Millis, u32)>>,
    groups: Groups,
    /// Rows of stragglers, where late rows are wanted.
    rows: RowStore,
    stragglers: usize,
    /// W before the open epoch.
    before: Millis,
}

/// Where the rows of a chunk belong.
struct Placed {
    /// The group of each row.
    groups: Vec<u32>,
    /// Groups (from, into) of runs that became one, in that order.
    merged: Vec<(u32, u32)>,
}

/// What runs and stragglers add up to, by group; a run's group is given back when it is gone.
#[derive(Debug)]
struct Groups {
    totals: Accumulators,
    next: u32,
    free: Vec<u32>,
}

impl Groups {
    fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    fn give_back(&mut self, groups: Vec<u32>) {
        self.totals.clear(&groups);
        self.free.extend(groups);
    }
}

impl SessionAggregate {
    /// An operator without a session. An error if a call isn't defined for its argument, a key is
    /// not in the input, or the gap is not positive.
    pub fn new(spec: SessionAggregateSpec) -> Result<SessionAggregate, OperatorError> {
        if spec.gap <= 0 {
            return Err(OperatorError::Expression("a session's gap is not positive".into()));
        }
        let keys = spec.input.project(&spec.keys)?;
        Ok(SessionAggregate {
            interner: KeyInterner::new(&keys, (0..spec.keys.len()).collect()),
            sessions: Vec::new(),
            due: BinaryHeap::new(),
            groups: Groups { totals: Accumulators::new(&spec.calls)?, next: 0, free: Vec::new() },
            rows: RowStore::new(&spec.input)?,
            stragglers: 0,
            before: MARK_NONE,
            spec,
        })
    }

    /// Rows with their arguments and times, those that fail set aside.
    fn evaluated(
        &mut self,
        delta: Delta,
        out: &mut Output,
    ) -> Result<(Delta, ScalarBuffer<i64>, Arguments), OperatorError> {
        let (mut delta, _) = timed(delta, self.spec.time, out)?;
        loop {
            match self.groups.totals.arguments(&delta.rows) {
                Ok(arguments) => {
                    let (delta, times) = timed(delta, self.spec.time, out)?;
                    return Ok((delta, times, arguments));
                }
                Err(failures) => delta = set_aside(delta, failures, out)?,
            }
        }
    }

    /// Finds or makes each row's run, or keeps it as a straggler.
    fn place(
        &mut self,
        delta: &Delta,
        times: &[Millis],
        ids: &[u32],
    ) -> Result<Placed, OperatorError> {
        let (mut groups, mut merged) = (Vec::with_capacity(ids.len()), Vec::new());
        let mut waiting = Vec::new();
        let gap = self.spec.gap;
        for (row, (&id, &time)) in ids.iter().zip(times).enumerate() {
            let mark = delta.mark(row);
            let limit = mark.max(self.before);
            let key = &mut self.sessions[id as usize];
            let (group, due) = if time > limit {
                let loose = limit == MARK_NONE || time - 1 > limit;
                key.add(time, loose, gap, || self.groups.take(), &mut merged)
            } else {
                let (group, (split, offset)) = (self.groups.take(), delta.place(row));
                let place = (split.0, offset);
                let straggler = Straggler { time, mark, limit, place, group, row: 0 };
                key.stragglers.push(straggler);
                waiting.push((row as u32, id, key.stragglers.len() - 1));
                (group, straggler.due(gap))
            };
            groups.push(group);
            if due < key.due {
                key.due = due;
                self.due.push(Reverse((due, id)));
            }
        }
        self.keep_rows(delta, &waiting)?;
        Ok(Placed { groups, merged })
    }

    fn keep_rows(
        &mut self,
        delta: &Delta,
        waiting: &[(u32, u32, usize)],
    ) -> Result<(), OperatorError> {
        self.stragglers += waiting.len();
        if !self.spec.collect_late || waiting.is_empty() {
            return Ok(());
        }
        let first = self.rows.next();
        self.rows.push(&delta.rows, &waiting.iter().map(|w| w.0).collect())?;
        for (number, &(_, id, at)) in (first..).zip(waiting) {
            self.sessions[id as usize].stragglers[at].row = number;
        }
        Ok(())
    }

    /// Makes the sessions that fire at `watermark`, and the stragglers that are late.
    fn play(&mut self, watermark: Millis) -> (Vec<(u32, Fired)>, Vec<Straggler>) {
        let (mut fired, mut late) = (Vec::new(), Vec::new());
        while let Some(&Reverse((due, id))) = self.due.peek()
            && due <= watermark
        {
            self.due.pop();
            let key = &mut self.sessions[id as usize];
            if key.due != due {
                continue;
            }
            let before = key.stragglers.len();
            key.fire(watermark, self.spec.gap, |session| fired.push((id, session)), &mut late);
            self.stragglers -= before - key.stragglers.len();
            if key.due != MARK_END {
                self.due.push(Reverse((key.due, id)));
            }
        }
        let bytes = |id: u32| self.interner.bytes(id);
        fired.sort_unstable_by(|(a, x), (b, y)| {
            x.last.cmp(&y.last).then_with(|| bytes(*a).cmp(bytes(*b)))
        });
        late.sort_unstable_by_key(|s| (s.limit, s.place, s.time));
        (fired, late)
    }

    fn emit(&mut self, fired: Vec<(u32, Fired)>, out: &mut Output) -> Result<(), OperatorError> {
        if fired.is_empty() {
            return Ok(());
        }
        let (mut from, mut into) = (Vec::new(), Vec::new());
        for (_, session) in &fired {
            from.extend_from_slice(&session.others);
            into.resize(from.len(), session.group);
        }
        self.groups.totals.merge_within(&from, &into)?;
        let groups: Vec<u32> = fired.iter().map(|(_, session)| session.group).collect();
        let ids: Vec<u32> = fired.iter().map(|(id, _)| *id).collect();
        let mut columns = self.interner.columns(&ids)?;
        let gap = self.spec.gap;
        let edge = |at: usize, time: &dyn Fn(&Fired) -> Millis| -> ArrayRef {
            let times: TimestampMillisecondArray =
                fired.iter().map(|(_, session)| Some(time(session))).collect();
            match self.spec.output.field(at).data_type() {
                DataType::Timestamp(_, zone) => Arc::new(times.with_timezone_opt(zone.clone())),
                _ => Arc::new(times),
            }
        };
        columns.push(edge(columns.len(), &|session| session.first));
        columns.push(edge(columns.len(), &|session| session.last.saturating_add(gap)));
        columns.extend(self.groups.totals.evaluate(&groups)?);
        let rows = batch_of(&self.spec.output, columns, fired.len())?;
        out.rows.push(Delta::fired(rows));
        out.counts.fired += fired.len() as u64;
        self.groups.give_back(from);
        self.groups.give_back(groups);
        Ok(())
    }

    fn emit_late(&mut self, late: Vec<Straggler>, out: &mut Output) -> Result<(), OperatorError> {
        if late.is_empty() {
            return Ok(());
        }
        let reach = self.spec.gap - 1;
        let row = |(row, s): (usize, &Straggler)| {
            let last = s.time.saturating_add(reach);
            LateRow { row: row as u32, time: s.time, mark: s.mark, limit: s.limit, last }
        };
        let rows: Vec<LateRow> = late.iter().enumerate().map(row).collect();
        let numbers: Vec<u32> = late.iter().map(|s| s.row).collect();
        let provenance = Provenance {
            marks: late.iter().map(|s| s.mark).collect(),
            splits: late.iter().map(|s| s.place.0).collect(),
            offsets: late.iter().map(|s| s.place.1).collect(),
        };
        let delta =
            Delta { provenance: Some(provenance), ..Delta::fired(self.rows.batch(&numbers)?) };
        put_late(&rows, &delta, self.spec.collect_late, out)?;
        self.groups.give_back(late.iter().map(|s| s.group).collect());
        Ok(())
    }

    /// Frees keys without sessions and rewrites the rows of stragglers, now and then.
    fn tidy(&mut self) -> Result<(), OperatorError> {
        if self.spec.collect_late && self.rows.next() as usize > 2 * self.stragglers + DEAD_MIN {
            let mut kept = Vec::with_capacity(self.stragglers);
            for straggler in self.sessions.iter_mut().flat_map(|key| &mut key.stragglers) {
                kept.push(straggler.row);
                straggler.row = kept.len() as u32;
            }
            self.rows.keep(&kept)?;
        }
        // Open runs and stragglers have a group each, so there are at least as many keys without
        // any as there are keys beyond the groups.
        let groups = self.groups.next as usize - self.groups.free.len();
        if self.interner.len() > 2 * groups + VACANT_MIN {
            let vacant = |id: &u32| self.sessions[*id as usize].is_vacant();
            let ids: Vec<u32> = self.interner.ordered().iter().copied().filter(vacant).collect();
            self.interner.free(&ids);
        }
        Ok(())
    }
}

impl Operator for SessionAggregate {
    fn name(&self) -> &str {
        "session"
    }

    fn push(&mut self, _port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        if delta.diffs.as_ref().is_some_and(|d| d.iter().any(|&diff| diff < 0)) {
            let text = "a session cannot take back a row: the input must be append-only";
            return Err(OperatorError::Expression(text.into()));
        }
        let (delta, times, arguments) = self.evaluated(delta, out)?;
        if delta.is_empty() {
            return Ok(());
        }
        let mut ids = Vec::with_capacity(delta.len());
        self.interner.intern(&delta.rows.project(&self.spec.keys)?, &mut ids)?;
        self.sessions.resize_with(self.interner.bound(), KeySessions::default);
        let Placed { groups, merged } = self.place(&delta, &times, &ids)?;
        self.groups.totals.grow(self.groups.next as usize);
        self.groups.totals.update(&groups, &arguments, delta.diffs.as_deref())?;
        // In the order in which they became one: the target of one pair may be the next one's
        // source.
        for &(from, into) in &merged {
            self.groups.totals.merge_within(&[from], &[into])?;
        }
        self.groups.give_back(merged.into_iter().map(|(from, _)| from).collect());
        Ok(())
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        let watermark = end.watermark();
        let (fired, late) = self.play(watermark);
        self.emit(fired, out)?;
        self.emit_late(late, out)?;
        self.tidy()?;
        self.before = self.before.max(watermark);
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        mark_less(inputs.iter().copied().min().unwrap_or(MARK_NONE), 1)
    }

    /// Parts: `runs`, `stragglers`, `marks`.
    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        self.write()
    }

    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        parts.into_iter().try_for_each(|part| self.read(part))
    }
}
