//! Tumbling, hopping and cumulating windows on one store of panes.
//!
//! # Invariant
//! A row is in exactly one bucket: its pane's, or, for a straggler that is late for some windows
//! over its pane, one beside it under the first end that it may enter. A bucket waits until that
//! end fires; it then is in the running window until the last window over its pane has fired.
//! Before a `push` of epoch e, exactly the windows with end − 1 ≤ W(e − 1) have fired.
//!
//! # Argument
//! A row is late for a window iff end − 1 ≤ L = max(mark, W(e − 1)). Its bucket waits for an end
//! with end − 1 > L ≥ W(e − 1): no bucket that rows still come for has entered. Windows of a row
//! that are not late are those from that end on: exactly those that the bucket is in. So a result
//! depends on the rows and their marks alone, whatever the order of chunks.
//!
//! # Complexity
//! A row costs a key look-up, a pane look-up and its aggregates, whatever size ÷ slide. A firing
//! costs O(groups in the window) to emit and O(groups of the panes that enter or leave) to slide
//! (see `slide`). Stretches without rows cost nothing: windows without a group are not visited.
//!
//! # Retractions
//! Rows with negative diffs are taken away if the aggregates can be (no MIN, no MAX), else the job
//! fails. A group whose rows are all taken away is not emitted. A late retraction is a late row.
//!
//! # Limits
//! Memory: open panes × groups in each; 2^32 − 1 of them.

mod panes;
mod partial;
mod pieces;
mod shape;
mod slide;
mod state;
mod tables;
#[cfg(test)]
mod tests;

use arrow::array::TimestampMillisecondArray;
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, concat, filter_record_batch};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, TimeUnit, TimestampMillisecondType};
use std::sync::Arc;
use weir_engine::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use weir_engine::rows::Delta;
use weir_engine::state::{Pieces, Restored};
use weir_engine::time::{MARK_END, MARK_NONE, Millis};

use crate::aggregates::{Accumulators, AggregateCall, AggregateFunction, Arguments, KeyInterner};
use crate::late::{LateRow, put_late};
use panes::{Keys, NO_SLOT, Slots, Waiting};
pub use partial::PreAggregate;
use shape::Pane;
pub use shape::WindowShape;
use slide::Running;

/// Rows of a result batch, roughly.
const EMIT_ROWS: usize = 32_768;

/// What a window aggregate computes.
#[derive(Clone, Debug)]
pub struct WindowAggregateSpec {
    /// The windows.
    pub shape: WindowShape,
    /// Place of the event time, a timestamp in milliseconds, in the input.
    pub time: usize,
    /// Places of the key columns in the input; none: one group for all rows.
    pub keys: Vec<usize>,
    /// The aggregates.
    pub calls: Vec<AggregateCall>,
    /// Whether late rows are wanted in `Output::late`; they are counted in any case.
    pub collect_late: bool,
    /// The input's columns.
    pub input: SchemaRef,
    /// The output's columns: the keys, window_start, window_end, then one a call.
    pub output: SchemaRef,
}

/// The operator core.
#[derive(Debug)]
pub struct WindowAggregate {
    spec: WindowAggregateSpec,
    slots: Slots,
    keys: Keys,
    waiting: Waiting,
    running: Running,
    /// W of the epoch before.
    watermark: Millis,
    /// By row of a chunk: the key's id, and the slot; kept to save allocations.
    ids: Vec<u32>,
    placed: Vec<u32>,
}

/// A run of result rows before they are a batch.
#[derive(Default)]
struct Fired {
    keys: Vec<u32>,
    starts: Vec<Millis>,
    ends: Vec<Millis>,
    /// Evaluated calls, in parts as long together as `keys` less `slots`.
    parts: Vec<Vec<ArrayRef>>,
    /// Slots of the last rows, not evaluated yet.
    slots: Vec<u32>,
}

impl WindowAggregate {
    /// A core without state. An error if a call or the shape makes no sense.
    pub fn new(spec: WindowAggregateSpec) -> Result<WindowAggregate, OperatorError> {
        if let Some(complaint) = spec.shape.complaint() {
            return Err(OperatorError::Expression(complaint));
        }
        if !matches!(
            spec.input.field(spec.time).data_type(),
            DataType::Timestamp(TimeUnit::Millisecond, _)
        ) {
            let text = "the event time of a window must be a timestamp in milliseconds";
            return Err(OperatorError::Expression(text.into()));
        }
        // One more call counts rows, to tell groups whose rows were all taken back.
        let mut calls = spec.calls.clone();
        calls.push(AggregateCall {
            function: AggregateFunction::CountRows,
            distinct: false,
            arguments: Vec::new(),
            filter: None,
            output: DataType::Int64,
        });
        let accumulators = Accumulators::new(&calls)?;
        let running = Running::new(spec.shape, accumulators.is_invertible());
        let interner = KeyInterner::new(&spec.input, spec.keys.clone());
        Ok(WindowAggregate {
            spec,
            slots: Slots::new(accumulators),
            keys: Keys::new(interner),
            waiting: Waiting::default(),
            running,
            watermark: MARK_NONE,
            ids: Vec::new(),
            placed: Vec::new(),
        })
    }

    /// Sets rows without event time or with a failing argument aside; gives the others and their
    /// arguments.
    fn sound_rows(
        &self,
        mut delta: Delta,
        out: &mut Output,
    ) -> Result<(Delta, Arguments), OperatorError> {
        let time = delta.rows.column(self.spec.time);
        if time.null_count() > 0 {
            let null = |row: &usize| time.is_null(*row);
            let rows = (0..delta.len()).filter(null).map(|row| (row, "event time is NULL".into()));
            let rows = rows.collect();
            delta = set_aside(&delta, rows, out)?;
        }
        loop {
            match self.slots.accumulators.arguments(&delta.rows) {
                Ok(arguments) => return Ok((delta, arguments)),
                Err(failures) => {
                    let rows = failures.into_iter().map(|f| (f.row, f.reason)).collect();
                    delta = set_aside(&delta, rows, out)?;
                }
            }
        }
    }

    /// Finds the slot of each row of a chunk without stragglers, `NO_SLOT` where no window holds
    /// it.
    fn place_all(&mut self, times: &[Millis]) {
        let (mut pane, mut place) = (Pane::NOWHERE, 0);
        let mut other = (pane, place);
        let mut row = 0;
        while let Some(&ts) = times.get(row) {
            if !pane.holds(ts) {
                std::mem::swap(&mut other.0, &mut pane);
                std::mem::swap(&mut other.1, &mut place);
                if !pane.holds(ts) {
                    let Some(found) = self.spec.shape.pane(ts) else {
                        self.placed.push(NO_SLOT);
                        row += 1;
                        continue;
                    };
                    pane = found;
                    let entry = self.spec.shape.first_end(pane);
                    let (slots, keys) = (&mut self.slots, &mut self.keys);
                    place = self.waiting.place_of_many(pane.start, entry, slots, keys);
                }
            }
            let bucket = self.waiting.at(place);
            let run = times[row..].iter().take_while(|&&ts| pane.holds(ts)).count();
            for &id in &self.ids[row..row + run] {
                self.placed.push(bucket.slot(id, &mut self.slots, &mut self.keys));
            }
            row += run;
        }
    }

    /// The same for a chunk where some row may be late; gives the rows that are, for all windows.
    fn place_each(&mut self, delta: &Delta, times: &[Millis]) -> Vec<LateRow> {
        let mut late = Vec::new();
        for (row, &time) in times.iter().enumerate() {
            let slot = match self.spec.shape.pane(time) {
                None => NO_SLOT,
                Some(pane) => {
                    let (mark, first) = (delta.mark(row), self.spec.shape.first_end(pane));
                    let limit = mark.max(self.watermark);
                    let entry = if time > limit { first } else { self.entry(pane, first, limit) };
                    let last_end = self.spec.shape.last_end(pane.start);
                    if entry > last_end {
                        let (row, last) = (row as u32, last_end - 1);
                        late.push(LateRow { row, time, mark, limit, last });
                        NO_SLOT
                    } else {
                        let place = self.waiting.place(pane.start, entry);
                        let id = self.ids[row];
                        self.waiting.at(place).slot(id, &mut self.slots, &mut self.keys)
                    }
                }
            };
            self.placed.push(slot);
        }
        late
    }

    /// The end of the first window over the pane with end − 1 > `limit`, whether or not one
    /// exists.
    fn entry(&self, pane: Pane, first: Millis, limit: Millis) -> Millis {
        if limit == MARK_END {
            return MARK_END;
        }
        debug_assert!(first >= pane.end);
        first.max(self.spec.shape.end_after(limit.saturating_add(1)))
    }

    /// Adds the rows that were placed to their slots.
    fn add(&mut self, arguments: Arguments, diffs: Option<&[i64]>) -> Result<(), OperatorError> {
        self.slots.settle();
        if !self.placed.contains(&NO_SLOT) {
            return self.slots.accumulators.update(&self.placed, &arguments, diffs);
        }
        let kept = || (0..self.placed.len()).filter(|&row| self.placed[row] != NO_SLOT);
        let rows: UInt32Array = kept().map(|row| row as u32).collect::<Vec<_>>().into();
        let placed: Vec<u32> = kept().map(|row| self.placed[row]).collect();
        let diffs: Option<Vec<i64>> = diffs.map(|diffs| kept().map(|row| diffs[row]).collect());
        self.slots.accumulators.update(&placed, &arguments.take(&rows)?, diffs.as_deref())
    }

    /// Fires all windows with end − 1 ≤ `watermark`: of disjoint windows each bucket is one.
    fn fire_disjoint(&mut self, watermark: Millis, out: &mut Output) -> Result<(), OperatorError> {
        let mut fired = Fired::default();
        let mut spent = (Vec::new(), Vec::new());
        while let Some(end) = self.waiting.first_entry()
            && end - 1 <= watermark
        {
            let Some(mut bucket) = self.waiting.pop(end, &mut self.slots) else { break };
            bucket.close(&mut self.keys.interner);
            fired.slots.extend(&bucket.slots);
            fired.add(&bucket.keys, self.spec.shape.start_of(end), end);
            spent.0.extend(bucket.keys);
            spent.1.extend(bucket.slots);
            if fired.keys.len() >= EMIT_ROWS {
                self.emit(std::mem::take(&mut fired), out)?;
                self.keys.release(&std::mem::take(&mut spent.0));
                self.slots.release(&std::mem::take(&mut spent.1));
            }
        }
        self.emit(fired, out)?;
        self.keys.release(&spent.0);
        self.slots.release(&spent.1);
        Ok(())
    }

    /// Fires all windows with end − 1 ≤ `watermark`: the running window slides from end to end, and
    /// jumps where it is empty.
    fn fire_sliding(&mut self, watermark: Millis, out: &mut Output) -> Result<(), OperatorError> {
        let shape = self.spec.shape;
        let mut fired = Fired::default();
        let mut done = match self.watermark {
            MARK_NONE | MARK_END => self.watermark,
            before => before + 1,
        };
        loop {
            let next = if self.running.is_empty() {
                self.waiting.first_entry()
            } else {
                Some(shape.end_after(done))
            };
            let Some(end) = next.filter(|end| end - 1 <= watermark) else { break };
            self.running.evict_before(end, shape, &mut self.slots, &mut self.keys)?;
            if self.running.is_empty() && self.waiting.first_entry() != Some(end) {
                done = end;
                continue;
            }
            while let Some(bucket) = self.waiting.pop(end, &mut self.slots) {
                self.running.enter(bucket, shape, &mut self.slots, &mut self.keys)?;
            }
            let (keys, slots) = self.running.groups(&mut self.keys.interner);
            fired.add(&keys, shape.start_of(end), end);
            fired.parts.push(self.slots.accumulators.evaluate(&slots)?);
            if fired.keys.len() >= EMIT_ROWS {
                self.emit(std::mem::take(&mut fired), out)?;
            }
            done = end;
        }
        self.emit(fired, out)?;
        // What is in no window to come goes now, so that memory and snapshots hold no more than
        // needed.
        let next = if watermark == MARK_END { MARK_END } else { shape.end_after(watermark + 1) };
        self.running.evict_before(next, shape, &mut self.slots, &mut self.keys)
    }

    /// Makes rows of what has fired. Their slots must not have been released.
    fn emit(&mut self, mut fired: Fired, out: &mut Output) -> Result<(), OperatorError> {
        if fired.keys.is_empty() {
            return Ok(());
        }
        if !fired.slots.is_empty() {
            fired.parts.push(self.slots.accumulators.evaluate(&fired.slots)?);
        }
        let mut columns = self.keys.interner.columns_of_many(&fired.keys)?;
        columns.push(Arc::new(TimestampMillisecondArray::from(fired.starts)));
        columns.push(Arc::new(TimestampMillisecondArray::from(fired.ends)));
        for call in 0..=self.spec.calls.len() {
            let parts: Vec<&dyn Array> =
                fired.parts.iter().map(|part| part[call].as_ref()).collect();
            columns.push(concat(&parts)?);
        }
        let rows = columns.pop();
        let fields = self.spec.output.fields().iter();
        let columns = columns.into_iter().zip(fields).map(|(column, field)| {
            if column.data_type() == field.data_type() {
                Ok(column)
            } else {
                cast(&column, field.data_type())
            }
        });
        let mut batch =
            RecordBatch::try_new(self.spec.output.clone(), columns.collect::<Result<_, _>>()?)?;
        if let Some(rows) = rows {
            let rows = rows.as_primitive::<Int64Type>().values();
            if rows.iter().any(|&rows| rows <= 0) {
                let some: BooleanArray = rows.iter().map(|&rows| Some(rows > 0)).collect();
                batch = filter_record_batch(&batch, &some)?;
            }
        }
        out.counts.fired += batch.num_rows() as u64;
        if batch.num_rows() > 0 {
            out.rows.push(Delta::fired(batch));
        }
        Ok(())
    }
}

impl Fired {
    fn add(&mut self, keys: &[u32], start: Millis, end: Millis) {
        self.keys.extend(keys);
        self.starts.resize(self.keys.len(), start);
        self.ends.resize(self.keys.len(), end);
    }
}

/// Moves rows with their reasons to the failed ones; gives the rest.
fn set_aside(
    delta: &Delta,
    failed: Vec<(usize, String)>,
    out: &mut Output,
) -> Result<Delta, OperatorError> {
    let mut fails = vec![false; delta.len()];
    failed.iter().for_each(|&(row, _)| fails[row] = true);
    let some = |wanted: bool| -> UInt32Array {
        (0..delta.len())
            .filter(|&row| fails[row] == wanted)
            .map(|row| row as u32)
            .collect::<Vec<_>>()
            .into()
    };
    let reasons = failed.into_iter().map(|(_, reason)| reason).collect();
    out.failed.push((delta.take(&some(true))?, reasons));
    Ok(delta.take(&some(false))?)
}

impl Operator for WindowAggregate {
    fn name(&self) -> &str {
        self.spec.shape.name()
    }

    fn push(&mut self, _port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        let Some(delta) = self.take_up(delta)? else { return Ok(()) };
        let (delta, arguments) = self.sound_rows(delta, out)?;
        if delta.is_empty() {
            return Ok(());
        }
        let mut ids = std::mem::take(&mut self.ids);
        self.keys.interner.intern(&delta.rows, &mut ids)?;
        self.ids = ids;
        self.keys.settle();
        self.placed.clear();
        let times = delta.rows.column(self.spec.time).as_primitive::<TimestampMillisecondType>();
        let times = times.values();
        let least = times.iter().copied().min().unwrap_or(MARK_END);
        // Without provenance every row is above its mark, so that only W can make one late.
        if delta.provenance.is_none() && least > self.watermark {
            self.place_all(times);
        } else {
            let late = self.place_each(&delta, times);
            put_late(&late, &delta, self.spec.collect_late, out)?;
        }
        self.add(arguments, delta.diffs.as_deref())
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        let watermark = end.watermark();
        if watermark <= self.watermark {
            return Ok(());
        }
        let fired = out.counts.fired;
        if self.spec.shape.is_disjoint() {
            self.fire_disjoint(watermark, out)?;
        } else {
            self.fire_sliding(watermark, out)?;
        }
        self.watermark = watermark;
        if out.counts.fired > fired || self.waiting.is_empty() {
            self.keys.collect();
        }
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        inputs.iter().copied().min().unwrap_or(MARK_NONE)
    }

    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        self.whole()
    }

    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        self.load(parts.into_iter().map(|part| (None, part)).collect())
    }

    fn save(&mut self, pieces: &mut dyn Pieces) -> Result<(), OperatorError> {
        self.save_changes(pieces)
    }

    fn resume(&mut self, pieces: Vec<Restored>) -> Result<(), OperatorError> {
        self.load(pieces.into_iter().map(|(piece, part)| (Some(piece), part)).collect())
    }
}
