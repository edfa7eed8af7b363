//! Enrichment: a stream's rows with the version of a table that is valid at their event time, or
//! the latest as of the epoch.
//!
//! # Which version
//! Of the row's key the one with the greatest time ≤ the row's, of equals the last (split,
//! offset). A row of the table that is taken back (diff < 0) ends its key from its time on.
//!
//! # When
//! - *Bounded table*: the engine gives all of it before the first row of the stream. Versions
//!   count in any order, a row is joined as it comes, and the table holds no watermark.
//! - *Versioned, unbounded*: a row waits until the table's W ≥ its time. With L = max(a version's
//!   mark, the table's W before the epoch), a version counts iff its time is beyond L; others are
//!   counted as late. So when a row goes, every version that it could see has come, and what it
//!   gets depends on marks alone. The final W (the table's end, or that all its splits are idle)
//!   lets all rows go and makes no version late.
//! - *As of the epoch* (either side has no time): rows of epoch e see the table's rows of epochs ≤
//!   e. They are joined at the end of theirs.
//!
//! # Forgetting (versioned, unbounded)
//! Versions at or before W − `keep` collapse into the last of them, where W is the lesser of both
//! sides. A row of a time before L − `keep`, L = max(its mark, W before this epoch), is looked up
//! at L − `keep`: what it finds is its version if that is no newer than the row. Otherwise it has
//! none, and is counted in `versions_gone`, whether or not there once was one (not if it finds a
//! deletion). As L is never less than the W of an earlier epoch, what is still kept answers
//! exactly; idleness aside the mark is the greater, so this too depends on the row alone. (So that
//! it does, such a row waits for the table's W ≥ L − `keep`.)
//!
//! # Form
//! Per key group, `versions`: the table's columns, then `__time`, `__split`, `__offset` and
//! `__ended`, in order of keys and times; `waiting`: the stream's rows with their marks and places,
//! in order of time. `marks`: W of each input.
//!
//! # Watermark of the output
//! Rows that wait have a time beyond the table's W, rows to come one beyond the stream's W or are
//! stragglers by their own mark: so it is the lesser of the two, and the stream's if nothing
//! waits.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use std::collections::BTreeMap;
use weir_engine::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use weir_engine::rows::{Delta, Origin};
use weir_engine::time::{MARK_END, MARK_NONE, Millis, mark_less};

use super::keys::JoinKeys;
use super::store::NO_ROW;
use super::versions::{Coming, Versions};
use super::waiting::{Waiting, in_order};
use super::{MARKS, beside, marks_part, timed, times_of, unknown};

#[cfg(test)]
mod tests;

/// What a [`TemporalJoin`] does. Port 0 is the stream (left), port 1 the table (right).
#[derive(Clone, Debug)]
pub struct TemporalJoinSpec {
    /// Key columns of the stream.
    pub left_keys: Vec<usize>,
    /// Key columns of the table, pair by pair the same.
    pub right_keys: Vec<usize>,
    /// Event time of the stream; `None`: as of the epoch.
    pub left_time: Option<usize>,
    /// Version time of the table; `None`: the latest row of a key, as of the epoch.
    pub right_time: Option<usize>,
    /// Whether rows without a version stay, with NULLs.
    pub left_outer: bool,
    /// Whether the table is complete before the first row of the stream comes.
    pub bounded: bool,
    /// How long versions are kept behind W, in milliseconds.
    pub keep: Millis,
    /// Schema of the stream.
    pub left: SchemaRef,
    /// Schema of the table.
    pub right: SchemaRef,
    /// Schema of the output: the stream's columns, then the table's.
    pub output: SchemaRef,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The table is complete.
    Whole,
    /// As of the epoch.
    Epoch,
    /// By time, with a table that goes on: with the stream's time column.
    Versioned,
}

/// The operator.
#[derive(Debug)]
pub struct TemporalJoin {
    spec: TemporalJoinSpec,
    mode: Mode,
    /// The columns of both times, where the join is by time.
    times: Option<(usize, usize)>,
    keys: JoinKeys,
    versions: Versions,
    /// Rows of the open epoch, as of which they are joined.
    open: Vec<Delta>,
    waiting: Waiting,
    /// Before the open epoch: the lesser W of both sides, and the table's; neither is ever the
    /// final one.
    before: [Millis; 2],
}

impl TemporalJoin {
    /// An operator with an empty table. An error if a key column is not in its schema.
    pub fn new(spec: TemporalJoinSpec) -> Result<TemporalJoin, OperatorError> {
        let times = spec.left_time.zip(spec.right_time);
        let mode = match (spec.bounded, times) {
            (true, _) => Mode::Whole,
            (false, None) => Mode::Epoch,
            (false, Some(_)) => Mode::Versioned,
        };
        let keys = JoinKeys::new(spec.left_keys.clone(), spec.right_keys.clone(), &spec.right)?;
        Ok(TemporalJoin {
            versions: Versions::new(&spec.right, mode != Mode::Whole)?,
            waiting: Waiting::new(spec.left_time.unwrap_or(0), spec.keep),
            open: Vec::new(),
            before: [MARK_NONE; 2],
            keys,
            times,
            mode,
            spec,
        })
    }

    fn take_versions(&mut self, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        let (delta, times) = match self.times {
            Some((_, right)) => {
                let (delta, times) = timed(delta, right, out)?;
                (delta, Some(times))
            }
            None => (delta, None),
        };
        let placed = delta.provenance.is_some() || matches!(delta.origin, Origin::Split { .. });
        let mut coming = Vec::with_capacity(delta.len());
        for row in 0..delta.len() {
            let time = times.as_ref().map_or(0, |t| t[row]);
            let (mark, watermark) = (delta.mark(row), self.before[1]);
            if self.mode == Mode::Versioned && time <= mark.max(watermark) {
                out.counts.late_straggler += u64::from(time <= mark);
                out.counts.late_idle += u64::from(time > mark);
                continue;
            }
            // What an operator made has no place: its values decide among rows of one time.
            let place = if placed { delta.place(row) } else { Default::default() };
            let ended = delta.diffs.as_ref().is_some_and(|d| d[row] < 0);
            coming.push(Coming { row: row as u32, time, place: (place.0.0, place.1), ended });
        }
        let ids = self.keys.right(&delta.rows)?;
        self.versions.add(&delta.rows, &ids, &coming)
    }

    /// Joins rows in their order. All versions must be settled.
    fn join(&mut self, delta: Delta, ids: &[u32], out: &mut Output) -> Result<(), OperatorError> {
        let times = match self.times {
            Some((left, _)) => Some(times_of(&delta.rows, left)?),
            None => None,
        };
        let versioned = self.mode == Mode::Versioned;
        let mut found = Vec::with_capacity(delta.len());
        for (row, &id) in ids.iter().enumerate() {
            let Some(times) = &times else {
                found.push(self.versions.row_at(id, MARK_END));
                continue;
            };
            let time = times[row];
            let oldest = match versioned {
                true => mark_less(delta.mark(row).max(self.before[0]), self.spec.keep),
                false => MARK_NONE,
            };
            if time >= oldest {
                found.push(self.versions.row_at(id, time));
                continue;
            }
            match self.versions.at(id, oldest) {
                // A deletion may have been forgotten by now, so that it says nothing either way.
                None => found.push(NO_ROW),
                Some(version) if version.ended => found.push(NO_ROW),
                Some(version) if version.time > time => {
                    out.counts.versions_gone += 1;
                    found.push(NO_ROW);
                }
                Some(version) => found.push(version.row),
            }
        }
        let store = &self.versions.store;
        let joined = beside(delta, found, store, self.spec.left_outer, &self.spec.output)?;
        if !joined.is_empty() {
            out.rows.push(joined);
        }
        let versions = &self.versions;
        self.keys.shed(versions.occupied(), |id| versions.is_vacant(id));
        Ok(())
    }

    fn join_now(&mut self, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        self.versions.settle()?;
        let delta = match self.times {
            Some((left, _)) => timed(delta, left, out)?.0,
            None => delta,
        };
        let ids = self.keys.left(&delta.rows)?;
        self.join(delta, &ids, out)
    }

    fn release(&mut self, upto: Millis, out: &mut Output) -> Result<(), OperatorError> {
        self.versions.settle()?;
        let Some(released) = self.waiting.release(upto)? else { return Ok(()) };
        let Some((left, _)) = self.times else { return Ok(()) };
        let times = times_of(&released.rows, left)?;
        let ids = self.keys.left(&released.rows)?;
        let (released, ids) = in_order(released, &times, ids, self.keys.ranks())?;
        self.join(released, &ids, out)
    }
}

impl Operator for TemporalJoin {
    fn name(&self) -> &str {
        "enrich"
    }

    fn push(&mut self, port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        if delta.is_empty() {
            return Ok(());
        }
        match (port, self.mode, self.times) {
            (1, _, _) => self.take_versions(delta, out),
            (_, Mode::Whole, _) => {
                self.versions.store.settle()?;
                self.join_now(delta, out)
            }
            (_, Mode::Versioned, Some((left, _))) => {
                let (delta, _) = timed(delta, left, out)?;
                let rows = (0..delta.len() as u32).collect();
                self.waiting.push(&delta, rows)
            }
            _ => {
                self.open.push(delta);
                Ok(())
            }
        }
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        let mark = |port: usize| end.watermarks.get(port).copied().unwrap_or(MARK_NONE);
        match self.mode {
            Mode::Whole => {}
            Mode::Epoch => {
                self.versions.settle()?;
                for delta in std::mem::take(&mut self.open) {
                    self.join_now(delta, out)?;
                }
                // All versions are at time 0, so this drops the keys that were deleted.
                self.versions.forget(0);
            }
            Mode::Versioned => {
                self.release(mark(1), out)?;
                let horizon = mark(0).min(mark(1));
                if horizon != MARK_END {
                    self.versions.forget(mark_less(horizon, self.spec.keep));
                }
            }
        }
        for (before, now) in self.before.iter_mut().zip([mark(0).min(mark(1)), mark(1)]) {
            if now != MARK_END {
                *before = now.max(*before);
            }
        }
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        let mark = |port: usize| inputs.get(port).copied().unwrap_or(MARK_NONE);
        match self.mode {
            Mode::Whole | Mode::Epoch => mark(0),
            Mode::Versioned => mark(0).min(mark(1)),
        }
    }

    /// Parts: `versions`, `waiting`, `marks`.
    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        let mut parts = vec![marks_part(&self.before)?];
        parts.extend(self.versions.snapshot(&self.keys)?);
        parts.extend(self.waiting.snapshot(self.keys.left_columns())?);
        Ok(parts)
    }

    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        let mut by_kind: BTreeMap<&str, Vec<RecordBatch>> = BTreeMap::new();
        for part in parts {
            if !["versions", "waiting", MARKS].contains(&part.kind) {
                return Err(unknown(part.kind));
            }
            by_kind.entry(part.kind).or_default().push(part.rows);
        }
        self.versions.restore(&mut self.keys, by_kind.get("versions").map_or(&[], |v| v))?;
        for rows in by_kind.remove("waiting").unwrap_or_default() {
            self.waiting.restore(rows)?;
        }
        for rows in by_kind.remove(MARKS).unwrap_or_default() {
            let marks = times_of(&rows, 0)?;
            for (mine, &theirs) in self.before.iter_mut().zip(marks.iter()) {
                *mine = theirs.max(*mine);
            }
        }
        Ok(())
    }
}
