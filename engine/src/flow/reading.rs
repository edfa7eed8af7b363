//! One queue of a source on the worker that owns it: chunks in, rows with marks out.

use arrow::array::{Array, AsArray, BinaryArray, Int64Array, StringArray, UInt32Array};
use arrow::array::{ArrayRef, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{SchemaRef, TimestampMillisecondType};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::cut::{SplitFacts, SplitState};
use crate::expression::ExpressionRef;
use crate::graph::{SourceNode, dead_letter_schema};
use crate::job::SourceCounters;
use crate::marks::SplitMark;
use crate::rows::{Delta, Origin, Provenance, SplitId, batch_of, sliced_bytes, unpack};
use crate::source::{BadRow, Below, Chunk, Offsets, SplitQueue};
use crate::time::{MARK_END, MARK_NONE, Millis};

/// Marks the number of a queue whose rows carry other splits than its own.
const ARCHIVE: u64 = 1 << 39;

/// The mark of a lazy split without a row: it holds nothing back. No row has led to it, so that it
/// stays what it is when a job goes on from a checkpoint.
const NO_ROW: Millis = MARK_END - 1;

/// What came of a chunk.
#[derive(Default)]
pub(crate) struct Taken {
    pub(crate) rows: Vec<Delta>,
    pub(crate) dead: Option<Delta>,
}

/// A queue with the marks of the splits that it carries.
pub(crate) struct Reading {
    pub(crate) queue: Arc<SplitQueue>,
    /// The id by which schedules name the queue.
    pub(crate) id: SplitId,
    pub(crate) state: SplitState,
    pub(crate) changed: bool,
    node: Arc<SourceNode>,
    counters: Arc<SourceCounters>,
    marks: BTreeMap<SplitId, (SplitMark, u64)>,
    hold: Millis,
    stride: Millis,
    lost: u64,
    /// Of these, what the queue has said.
    noted: u64,
    width: u32,
    /// Of an archive: rows taken, but for those that could not be decoded.
    rows: u64,
    pub(crate) quiet_since: Option<Millis>,
}

impl Reading {
    pub(crate) fn open(
        node: Arc<SourceNode>,
        queue: Arc<SplitQueue>,
        counters: Arc<SourceCounters>,
    ) -> Reading {
        let (id, splits) = ids(&node, &queue.split.number, &queue.split.carries);
        let (delay, ahead) = node.time.as_ref().map_or((0, None), |t| (t.delay, t.max_ahead));
        let marks = splits.into_iter().map(|s| (s, (SplitMark::start(delay, ahead), 0))).collect();
        let state = if queue.split.lazy { SplitState::Waiting } else { SplitState::Reading };
        Reading {
            queue,
            id,
            state,
            changed: true,
            node,
            counters,
            marks,
            hold: MARK_NONE,
            stride: 0,
            lost: 0,
            noted: 0,
            width: 0,
            rows: 0,
            quiet_since: None,
        }
    }

    /// Takes up what a checkpoint says of the splits.
    pub(crate) fn resume(&mut self, facts: &BTreeMap<SplitId, SplitFacts>) {
        let delay = self.node.time.as_ref().map_or(0, |t| t.delay);
        for (split, (mark, offset)) in &mut self.marks {
            if let Some(facts) = facts.get(split) {
                *offset = facts.offset;
                if facts.state != SplitState::Waiting && facts.mark != NO_ROW {
                    mark.resume(facts.mark, delay);
                }
            }
        }
        let Some(own) = facts.get(&self.id) else { return };
        if !self.marks.contains_key(&self.id) {
            self.rows = own.offset;
        }
        (self.state, self.lost, self.width) = (own.state, own.lost, own.width);
        let held = own.state == SplitState::Waiting || own.mark == NO_ROW;
        self.hold = if held { own.mark } else { MARK_NONE };
        self.changed = false;
    }

    /// All splits that the queue carries.
    pub(crate) fn splits(&self) -> impl Iterator<Item = SplitId> {
        self.marks.keys().copied()
    }

    /// How far the queue was read: the split's offset; of an archive the rows that were decoded.
    pub(crate) fn position(&self) -> u64 {
        self.marks.get(&self.id).map_or(self.rows, |(_, offset)| *offset)
    }

    /// Nothing lies between its position and this one.
    pub(crate) fn stand_at(&mut self, position: u64) {
        match self.marks.get_mut(&self.id) {
            Some((_, offset)) => *offset = position,
            None => self.rows = position,
        }
    }

    /// Takes what lies between its position and this one.
    pub(crate) fn pop_towards(&self, position: u64) -> Below {
        if self.marks.contains_key(&self.id) {
            return self.queue.pop_below(position);
        }
        let left = usize::try_from(position.saturating_sub(self.rows)).unwrap_or(usize::MAX);
        self.queue.pop_rows(left)
    }

    /// Learns from the first rows of a lazy split how wide they are, and where it holds the
    /// watermark until it is read.
    pub(crate) fn hold_at(&mut self, first: Option<Chunk>, now: Millis) {
        if let Some(first) = first.as_ref().filter(|first| !first.is_empty()) {
            // Spelled out, so that it does not depend on who has read what before.
            let bytes = sliced_bytes(&unpack(&first.rows)).div_ceil(first.len());
            self.width = u32::try_from(bytes.max(1)).unwrap_or(u32::MAX);
        }
        let Some(time) = self.node.time.clone() else { return };
        let Some(first) = first else {
            // Without a row it holds nothing back, and is opened last.
            self.hold = NO_ROW;
            return;
        };
        let (chunk, _) = self.compute(first, now);
        let (chunk, _) = self.drop_null_times(chunk);
        let times = times(&chunk.rows, time.column);
        let mark = SplitMark::start(time.delay, time.max_ahead);
        let arrivals = chunk.arrivals.as_ref().map(|a| &a[..]);
        if let Some(hold) = mark.hold(times.values(), arrivals) {
            self.hold = hold;
        }
    }

    /// The least mark over the splits that the queue carries.
    pub(crate) fn mark(&self) -> Millis {
        let least = self.marks.values().map(|(m, _)| m.mark()).min().unwrap_or(MARK_NONE);
        if self.state == SplitState::Waiting { self.hold } else { least.max(self.hold) }
    }

    /// What the cut says of it; the stride starts again.
    pub(crate) fn facts(&mut self, out: &mut Vec<SplitFacts>) {
        let stride = std::mem::take(&mut self.stride);
        let (state, hold, lost, width) = (self.state, self.hold, self.lost, self.width);
        let waiting = state == SplitState::Waiting;
        for (split, (mark, offset)) in &self.marks {
            let mark = if waiting { hold } else { mark.mark().max(hold) };
            let offset = *offset;
            out.push(SplitFacts { split: *split, offset, mark, state, stride, lost, width });
        }
        if !self.marks.contains_key(&self.id) {
            let mark = self.mark();
            let (split, offset) = (self.id, self.rows);
            out.push(SplitFacts { split, offset, mark, state, stride, lost, width });
        }
        self.changed = false;
    }

    /// Learns of offsets that the server had forgotten: the next cut records the gap.
    pub(crate) fn note_gaps(&mut self) {
        let lost = self.queue.offsets_lost();
        let fresh = lost.saturating_sub(self.noted);
        if fresh > 0 {
            self.counters.lost.fetch_add(fresh, Ordering::Relaxed);
            (self.noted, self.changed) = (lost, true);
            self.lost += fresh;
        }
    }

    /// Offsets reached, as the source numbers its splits.
    pub(crate) fn offset(&self) -> Option<(u64, u64)> {
        self.marks.get(&self.id).map(|(_, offset)| (self.id.number(), *offset))
    }

    /// Takes up a chunk: computed columns, event time, marks.
    pub(crate) fn take(&mut self, chunk: Chunk, now: Millis) -> Taken {
        self.changed = true;
        self.quiet_since = None;
        self.state = SplitState::Reading;
        let before = self.mark();
        let (next_offset, decoded) = (chunk.next_offset, chunk.len() as u64);
        let (chunk, mut bad) = self.compute(chunk, now);
        let (chunk, without_time) = self.drop_null_times(chunk);
        bad.extend(without_time);
        bad.sort_by_key(|b| b.offset);
        let add = |to: &std::sync::atomic::AtomicU64, n: usize| {
            to.fetch_add(n as u64, Ordering::Relaxed);
        };
        add(&self.counters.rows, chunk.len());
        add(&self.counters.bytes, chunk.bytes());
        add(&self.counters.bad, bad.len());
        let mut taken = Taken { rows: Vec::new(), dead: self.dead_letters(&bad) };
        if self.marks.contains_key(&self.id) {
            let id = self.id;
            if !chunk.is_empty() {
                taken.rows.push(self.marked(chunk, id));
            }
            if let Some((_, offset)) = self.marks.get_mut(&id) {
                *offset = next_offset;
            }
        } else {
            self.rows += decoded;
            self.deal(chunk, &mut taken.rows);
        }
        let after = self.mark();
        if before != MARK_NONE && after > before {
            self.stride = self.stride.saturating_add(after - before);
        }
        taken
    }

    /// An archive's rows, dealt to the splits that they once came from.
    fn deal(&mut self, chunk: Chunk, out: &mut Vec<Delta>) {
        let Some(numbers) = chunk.split_column.clone() else { return };
        let mut places: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (row, number) in numbers.iter().enumerate() {
            places.entry(*number).or_default().push(row as u32);
        }
        for (number, rows) in places {
            let split = SplitId::of(self.node.index, number);
            let part = take_rows(&chunk, &UInt32Array::from(rows));
            let next = part.offsets.at(part.len() - 1) + 1;
            let delta = self.marked(part, split);
            out.push(delta);
            if let Some((_, offset)) = self.marks.get_mut(&split) {
                *offset = next;
            }
        }
    }

    /// Rows of one split with their marks, where one of them needs them.
    fn marked(&mut self, chunk: Chunk, split: SplitId) -> Delta {
        let origin = chunk.origin(split);
        let mut delta = Delta { diffs: chunk.diffs, origin, ..Delta::fired(chunk.rows) };
        let Some(time) = &self.node.time else { return delta };
        let Some((mark, _)) = self.marks.get_mut(&split) else { return delta };
        let column = times(&delta.rows, time.column);
        let arrivals = chunk.arrivals.as_ref().map(|a| &a[..]);
        let got = mark.take(column.values(), arrivals);
        self.counters.future.fetch_add(got.future, Ordering::Relaxed);
        let rows = delta.len();
        delta.provenance = got.marks.map(|marks| Provenance {
            marks: marks.into(),
            splits: vec![split.0; rows].into(),
            offsets: (0..rows).map(|row| chunk.offsets.at(row)).collect(),
        });
        delta
    }

    /// Evaluates the output columns; rows for which that fails become bad rows.
    fn compute(&self, mut chunk: Chunk, now: Millis) -> (Chunk, Vec<BadRow>) {
        let mut bad = std::mem::take(&mut chunk.bad);
        let Some(expressions) = &self.node.compute else { return (chunk, bad) };
        match evaluate(expressions, &chunk.rows, now) {
            Ok(columns) => {
                chunk.rows = planned_batch(&self.node.schema, columns, chunk.len());
            }
            Err(failed) => {
                let reasons = failed.iter().map(|(row, why)| (*row, why.clone()));
                bad.extend(reasons.map(|(row, reason)| bad_row(&chunk, row, reason)));
                let good = |row: &u32| !failed.contains_key(&(*row as usize));
                let kept: Vec<u32> = (0..chunk.len() as u32).filter(good).collect();
                let rest = take_rows(&chunk, &UInt32Array::from(kept));
                let (rest, more) = self.compute(rest, now);
                bad.extend(more);
                return (rest, bad);
            }
        }
        (chunk, bad)
    }

    /// Rows without an event time are data errors.
    fn drop_null_times(&self, chunk: Chunk) -> (Chunk, Vec<BadRow>) {
        let Some(time) = &self.node.time else { return (chunk, Vec::new()) };
        let column = chunk.rows.column(time.column).clone();
        if column.null_count() == 0 {
            return (chunk, Vec::new());
        }
        let schema = chunk.rows.schema();
        let name = schema.field(time.column).name();
        let reason = format!("event time `{name}` is NULL");
        let null = |row: &u32| column.is_null(*row as usize);
        let nulls = (0..chunk.len() as u32).filter(null);
        let bad = nulls.map(|row| bad_row(&chunk, row as usize, reason.clone())).collect();
        let kept: Vec<u32> = (0..chunk.len() as u32).filter(|row| !null(row)).collect();
        (take_rows(&chunk, &UInt32Array::from(kept)), bad)
    }

    fn dead_letters(&self, bad: &[BadRow]) -> Option<Delta> {
        if bad.is_empty() || !self.node.dead_letters {
            return None;
        }
        let split = &self.queue.split.name;
        let columns: Vec<ArrayRef> = vec![
            Arc::new(BinaryArray::from_iter_values(bad.iter().map(|b| &b.payload))),
            Arc::new(StringArray::from_iter_values(bad.iter().map(|_| &self.node.table))),
            Arc::new(StringArray::from_iter_values(bad.iter().map(|_| split))),
            Arc::new(Int64Array::from_iter_values(
                bad.iter().map(|b| i64::try_from(b.offset).unwrap_or(i64::MAX)),
            )),
            Arc::new(
                TimestampMillisecondArray::from_iter(bad.iter().map(|b| b.arrival))
                    .with_timezone("UTC"),
            ),
            Arc::new(StringArray::from_iter_values(bad.iter().map(|b| &b.reason))),
        ];
        let mut delta = Delta::fired(planned_batch(&dead_letter_schema(), columns, bad.len()));
        delta.origin = Origin::Split { split: self.id, offset: bad[0].offset };
        Some(delta)
    }
}

/// The id of a queue, and those of the splits that it carries.
pub(crate) fn ids(node: &SourceNode, number: &u64, carries: &[u64]) -> (SplitId, Vec<SplitId>) {
    if carries.is_empty() {
        let id = SplitId::of(node.index, *number);
        return (id, vec![id]);
    }
    let splits = carries.iter().map(|n| SplitId::of(node.index, *n)).collect();
    (SplitId::of(node.index, number | ARCHIVE), splits)
}

fn times(rows: &RecordBatch, column: usize) -> &TimestampMillisecondArray {
    rows.column(column).as_primitive::<TimestampMillisecondType>()
}

/// A batch of columns that were planned for this schema.
pub(crate) fn planned_batch(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> RecordBatch {
    match batch_of(schema, columns, rows) {
        Ok(batch) => batch,
        Err(error) => unreachable!("planned columns do not make a batch: {error}"),
    }
}

fn evaluate(
    expressions: &[ExpressionRef],
    rows: &RecordBatch,
    now: Millis,
) -> Result<Vec<ArrayRef>, BTreeMap<usize, String>> {
    let mut columns = Vec::with_capacity(expressions.len());
    let mut failed = BTreeMap::new();
    for expression in expressions {
        match expression.evaluate(rows, now) {
            Ok(column) => columns.push(column),
            Err(failures) => {
                failed.extend(failures.into_iter().map(|f| (f.row, f.reason)));
            }
        }
    }
    if failed.is_empty() { Ok(columns) } else { Err(failed) }
}

/// A row that was read but could not be computed: its payload is its columns, as text.
fn bad_row(chunk: &Chunk, row: usize, reason: String) -> BadRow {
    let schema = chunk.rows.schema();
    let text = |(i, field): (usize, &Arc<arrow::datatypes::Field>)| {
        let column = chunk.rows.column(i);
        let value = arrow::util::display::array_value_to_string(column, row);
        format!("{}={}", field.name(), value.unwrap_or_default())
    };
    let payload: Vec<String> = schema.fields().iter().enumerate().map(text).collect();
    BadRow {
        offset: chunk.offsets.at(row),
        arrival: chunk.arrivals.as_ref().map(|a| a[row]),
        payload: payload.join(", ").into_bytes(),
        reason,
    }
}

fn take_rows(chunk: &Chunk, rows: &UInt32Array) -> Chunk {
    let pick = |values: &arrow::buffer::ScalarBuffer<i64>| {
        rows.values().iter().map(|&r| values[r as usize]).collect()
    };
    let taken = match arrow::compute::take_record_batch(&chunk.rows, rows) {
        Ok(taken) => taken,
        Err(error) => unreachable!("rows cannot be taken from a chunk: {error}"),
    };
    Chunk {
        rows: taken,
        diffs: chunk.diffs.as_ref().map(pick),
        offsets: Offsets::Each(
            rows.values().iter().map(|&r| chunk.offsets.at(r as usize)).collect(),
        ),
        arrivals: chunk.arrivals.as_ref().map(pick),
        bad: Vec::new(),
        next_offset: chunk.next_offset,
        split_column: chunk
            .split_column
            .as_ref()
            .map(|s| rows.values().iter().map(|&r| s[r as usize]).collect()),
    }
}
