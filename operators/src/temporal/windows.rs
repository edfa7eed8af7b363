//! Readings with the one window of a view that is valid at their event time: the theft ratio's
//! join.
//!
//! # Which window
//! A window that ends at e is valid for e ≤ ts < e + slide, and for no longer: a reading at ts
//! joins the row of its key with e = floor of ts to the slide, which never holds the reading
//! itself. If there is none: no row, or NULLs with a left join.
//!
//! # When
//! A view's rows of end e have all come once its W ≥ e − 1: then a reading is released, at the end
//! of that epoch. A reading is late iff ts ≤ L = max(its mark, W of the readings before its
//! epoch); so whether it is joined, and with what, depends on what the splits hold and on nothing
//! else.
//!
//! # What is kept
//! A reading that is not late has ts > W of the readings. So a window is dropped once that W ≥ e +
//! slide − 1, unless its own release is still to come. Per end: one table of key to row, and the
//! rows.
//!
//! # Form
//! Per end and key group, `windows`: the view's rows; per key group, `waiting`: readings with their
//! marks and places, in order of time. `marks`: W of the readings.
//!
//! # Watermark of the output
//! Readings that wait after an epoch have an e with e − 1 > W of the view, so ts ≥ e ≥ the least
//! window end beyond W + 1; readings to come have ts > W of the readings. The output's watermark
//! is the lesser of W of the readings and that end − 1: where both sides read one source, W
//! itself, with no hold.
//!
//! # Limits
//! The view must only append and have one row a key and end; of several the greatest by its bytes
//! counts.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use weir_engine::keys::{KeyGroup, KeyGroups};
use weir_engine::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use weir_engine::rows::Delta;
use weir_engine::time::{MARK_END, MARK_NONE, Millis, floor_to};

use super::keys::{JoinKeys, NO_KEY};
use super::store::{NO_ROW, RowStore};
use super::waiting::{Waiting, in_order};
use super::{MARKS, beside, marks_part, timed, times_of, unknown};
use crate::late::{LateRow, put_late};

#[cfg(test)]
mod tests;

/// What a [`WindowVersionJoin`] does. Port 0 has the readings (left), port 1 the view's rows
/// (right).
#[derive(Clone, Debug)]
pub struct WindowVersionJoinSpec {
    /// Key columns of the readings.
    pub left_keys: Vec<usize>,
    /// Key columns of the view, pair by pair the same.
    pub right_keys: Vec<usize>,
    /// Event time of the readings.
    pub left_time: usize,
    /// The view's version column: `window_end` or `window_time`.
    pub right_version: usize,
    /// Whether that column is the window's end; if not it is its last millisecond, the end − 1.
    pub version_is_end: bool,
    /// The windows' slide, in milliseconds: how long each is valid.
    pub slide: Millis,
    /// The windows' offset, in milliseconds.
    pub offset: Millis,
    /// Whether readings without a window stay, with NULLs.
    pub left_outer: bool,
    /// Whether late readings are emitted; they are counted in any case.
    pub collect_late: bool,
    /// Schema of the readings.
    pub left: SchemaRef,
    /// Schema of the view.
    pub right: SchemaRef,
    /// Schema of the output: the readings' columns, then the view's.
    pub output: SchemaRef,
}

/// Spreads dense ids; they come from an interner, not from an adversary.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u32(u32::from(byte)));
    }

    fn write_u32(&mut self, id: u32) {
        self.0 = (self.0.rotate_left(32) ^ u64::from(id)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

/// The view's rows of one end.
#[derive(Debug)]
struct Windows {
    store: RowStore,
    rows: HashMap<u32, u32, BuildHasherDefault<IdHasher>>,
}

/// The operator.
#[derive(Debug)]
pub struct WindowVersionJoin {
    spec: WindowVersionJoinSpec,
    keys: JoinKeys,
    /// By end.
    windows: BTreeMap<Millis, Windows>,
    waiting: Waiting,
    /// W of the readings before the open epoch.
    before: Millis,
    /// The row of NULLs, for readings without a window.
    nothing: RowStore,
}

impl WindowVersionJoin {
    /// An operator that holds nothing. An error if a key column is not in its schema, or the slide
    /// is not positive.
    pub fn new(spec: WindowVersionJoinSpec) -> Result<WindowVersionJoin, OperatorError> {
        if spec.slide <= 0 {
            return Err(OperatorError::Expression("a window's slide is not positive".into()));
        }
        let keys = JoinKeys::new(spec.left_keys.clone(), spec.right_keys.clone(), &spec.right)?;
        Ok(WindowVersionJoin {
            windows: BTreeMap::new(),
            waiting: Waiting::new(spec.left_time, Millis::MAX),
            before: MARK_NONE,
            nothing: RowStore::new(&spec.right)?,
            keys,
            spec,
        })
    }

    fn end_of(&self, time: Millis) -> Millis {
        floor_to(time, self.spec.slide, self.spec.offset)
    }

    /// Readings of at most this time find all their windows once the view's W is `watermark`.
    fn complete(&self, watermark: Millis) -> Millis {
        match watermark {
            MARK_NONE | MARK_END => watermark,
            _ => self.end_of(watermark.saturating_add(1)).saturating_add(self.spec.slide - 1),
        }
    }

    fn take_readings(&mut self, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        let (delta, times) = timed(delta, self.spec.left_time, out)?;
        let (mut late, mut kept) = (Vec::new(), Vec::with_capacity(delta.len()));
        for (row, &last) in (0u32..).zip(times.iter()) {
            let mark = delta.mark(row as usize);
            let limit = mark.max(self.before);
            match last <= limit {
                true => late.push(LateRow { row, time: last, mark, limit, last }),
                false => kept.push(row),
            }
        }
        put_late(&late, &delta, self.spec.collect_late, out)?;
        self.waiting.push(&delta, kept)
    }

    fn take_windows(&mut self, delta: &Delta, out: &mut Output) -> Result<(), OperatorError> {
        if delta.diffs.as_ref().is_some_and(|d| d.iter().any(|&diff| diff < 0)) {
            let text = "a view whose rows are taken back cannot be joined as of its windows";
            return Err(OperatorError::Expression(text.into()));
        }
        let (delta, versions) = timed(delta.clone(), self.spec.right_version, out)?;
        let ids = self.keys.right(&delta.rows)?;
        let later = Millis::from(!self.spec.version_is_end);
        let mut rows: Vec<u32> = (0..delta.len() as u32).collect();
        rows.retain(|&row| ids[row as usize] != NO_KEY);
        let end = |row: &u32| versions[*row as usize].saturating_add(later);
        if !rows.is_sorted_by_key(end) {
            rows.sort_by_key(end);
        }
        for run in rows.chunk_by(|a, b| end(a) == end(b)) {
            self.add(end(&run[0]), &delta.rows, run, &ids)?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        end: Millis,
        rows: &RecordBatch,
        run: &[u32],
        ids: &[u32],
    ) -> Result<(), OperatorError> {
        let windows = match self.windows.entry(end) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let store = RowStore::new(&self.spec.right)?;
                entry.insert(Windows { store, rows: HashMap::default() })
            }
        };
        let first = windows.store.next();
        windows.store.push(rows, &run.to_vec().into())?;
        for (number, &row) in (first..).zip(run) {
            let slot = windows.rows.entry(ids[row as usize]).or_insert(number);
            if *slot != number && windows.store.bytes(*slot)? < windows.store.bytes(number)? {
                *slot = number;
            }
        }
        Ok(())
    }

    fn release(&mut self, upto: Millis, out: &mut Output) -> Result<(), OperatorError> {
        let Some(released) = self.waiting.release(upto)? else { return Ok(()) };
        let times = times_of(&released.rows, self.spec.left_time)?;
        let ids = self.keys.left(&released.rows)?;
        let (released, ids) = in_order(released, &times, ids, self.keys.ranks())?;
        let times = times_of(&released.rows, self.spec.left_time)?;
        let (slide, offset) = (self.spec.slide, self.spec.offset);
        let end_of = |time: Millis| floor_to(time, slide, offset);
        let mut from = 0;
        // In order of time, so the readings of one window follow one another.
        for run in times.chunk_by(|&a, &b| end_of(a) == end_of(b)) {
            let delta = released.slice(from, run.len());
            let ids = &ids[from..from + run.len()];
            from += run.len();
            let joined = match self.windows.get_mut(&end_of(run[0])) {
                Some(windows) => {
                    windows.store.settle()?;
                    let row = |id: &u32| windows.rows.get(id).copied().unwrap_or(NO_ROW);
                    let found = ids.iter().map(row).collect();
                    beside(delta, found, &windows.store, self.spec.left_outer, &self.spec.output)?
                }
                None => {
                    let found = vec![NO_ROW; ids.len()];
                    beside(delta, found, &self.nothing, self.spec.left_outer, &self.spec.output)?
                }
            };
            if !joined.is_empty() {
                out.rows.push(joined);
            }
        }
        Ok(())
    }

    /// Drops the windows that no reading can need: see the module.
    fn drop_windows(&mut self, readings: Millis, view: Millis) {
        let mut dropped = false;
        while let Some(first) = self.windows.first_entry() {
            let end = *first.key();
            let served = end.saturating_sub(1) <= view;
            let past = end.saturating_add(self.spec.slide - 1) <= readings;
            if !(served && past) {
                break;
            }
            first.remove();
            dropped = true;
        }
        if dropped {
            let most = self.windows.values().map(|w| w.rows.len()).max().unwrap_or(0);
            let windows = &self.windows;
            let vacant = |id| !windows.values().any(|w| w.rows.contains_key(&id));
            self.keys.shed(2 * most, vacant);
        }
    }
}

impl Operator for WindowVersionJoin {
    fn name(&self) -> &str {
        "window version join"
    }

    fn push(&mut self, port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        match port {
            _ if delta.is_empty() => Ok(()),
            0 => self.take_readings(delta, out),
            _ => self.take_windows(&delta, out),
        }
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        let mark = |port: usize| end.watermarks.get(port).copied().unwrap_or(MARK_NONE);
        let (readings, view) = (mark(0), mark(1));
        self.release(self.complete(view), out)?;
        self.drop_windows(readings, view);
        self.before = self.before.max(readings);
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        let mark = |port: usize| inputs.get(port).copied().unwrap_or(MARK_NONE);
        mark(0).min(self.complete(mark(1)))
    }

    /// Parts: `windows`, `waiting`, `marks`.
    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        let mut parts = vec![marks_part(&[self.before])?];
        for windows in self.windows.values() {
            let mut numbers: Vec<(KeyGroup, u32)> = Vec::with_capacity(windows.rows.len());
            for id in 0..self.keys.bound() as u32 {
                if let Some(&number) = windows.rows.get(&id) {
                    numbers.push((self.keys.key_group(id), number));
                }
            }
            numbers.sort_unstable();
            for run in numbers.chunk_by(|a, b| a.0 == b.0) {
                let key_groups = KeyGroups::one(run[0].0);
                let numbers: Vec<u32> = run.iter().map(|r| r.1).collect();
                let rows = windows.store.batch(&numbers)?;
                parts.push(StatePart { kind: "windows", key_groups, rows });
            }
        }
        parts.extend(self.waiting.snapshot(self.keys.left_columns())?);
        Ok(parts)
    }

    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        for part in parts {
            match part.kind {
                "windows" => {
                    self.take_windows(&Delta::fired(part.rows), &mut Output::default())?;
                }
                "waiting" => self.waiting.restore(part.rows)?,
                MARKS => {
                    let marks = times_of(&part.rows, 0)?;
                    self.before = marks.iter().copied().fold(self.before, Millis::max);
                }
                kind => return Err(unknown(kind)),
            }
        }
        Ok(())
    }
}
