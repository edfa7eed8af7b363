//! Pre-aggregation: rows of one worker added up before they travel, where that makes them few.
//!
//! # Invariant
//! What [`PreAggregate`] gives instead of rows adds up to them: whenever a pane fires, the window
//! behind it is in the same state as if the rows themselves had come.
//!
//! # Argument
//! Aggregates are exact and mergeable, so a group may be added as a whole. Only rows of one pane
//! are added up, and only in chunks without stragglers in which every time is above W(e − 1): such
//! rows are late for no window, so each waits for the first end over its pane, wherever it is
//! added. What was added up of a pane is given out at the end of the epoch in which W reaches that
//! first end, before the window behind fires; or earlier, to save memory.
//!
//! # Form
//! A partial chunk has the columns of the input, and the aggregates' states attached to it; from
//! another process they come as columns behind it. Keys are in their columns and the pane's start
//! in the column of the event time (unless that is a key), so that it is dealt to workers like the
//! rows themselves; all other columns are of type NULL.
//!
//! # When
//! Each time that panes are given out it is judged how many rows fell into a group. Where they
//! were few, rows pass as they are for a while: for 16 times as many rows as the vain attempt took,
//! twice as many after each that follows. Chunks with diffs, stragglers or failing arguments always
//! pass.
//!
//! # Limits
//! At most about `GROUPS_MAX` groups are open; beyond that all are given out. The rows of a split
//! are added up by the one worker that reads it, which costs it little more than dealing them out
//! would.

use arrow::array::{Array, AsArray};
use arrow::array::{ArrayRef, NullArray, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, TimestampMillisecondType};
use std::sync::Arc;
use weir_engine::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use weir_engine::rows::{Attached, Delta};
use weir_engine::time::{MARK_END, MARK_NONE, Millis};

use super::{WindowAggregate, WindowAggregateSpec};
use crate::aggregates::Accumulators;

/// Rows a group at the least for adding up to be worth it.
const ROWS_A_GROUP: u64 = 8;
/// Open groups at the most.
const GROUPS_MAX: usize = 65_536;
/// Rows that pass after a vain attempt, as a multiple of the rows that it took.
const PASS_MIN: u64 = 16;
const PASS_MAX: u64 = 1_024;

/// Adds up rows in front of a [`WindowAggregate`] of the same spec.
#[derive(Debug)]
pub struct PreAggregate {
    window: WindowAggregate,
    /// Rows added up and groups given out since it was last judged.
    rows: u64,
    groups: u64,
    /// Groups that were open then.
    open: u64,
    /// Rows a group at the least: [`ROWS_A_GROUP`].
    pub(super) rows_a_group: u64,
    /// Rows that still pass as they are.
    passing: u64,
    /// Multiple of the rows that pass after the next vain attempt.
    patience: u64,
}

impl PreAggregate {
    /// An operator without state. An error where [`WindowAggregate::new`] gives one.
    pub fn new(spec: WindowAggregateSpec) -> Result<PreAggregate, OperatorError> {
        let window = WindowAggregate::new(spec)?;
        Ok(PreAggregate {
            window,
            rows: 0,
            groups: 0,
            open: 0,
            rows_a_group: ROWS_A_GROUP,
            passing: 0,
            patience: PASS_MIN,
        })
    }

    /// Whether it can do anything for these calls: DISTINCT would carry all values along.
    pub fn is_worth_trying(spec: &WindowAggregateSpec) -> bool {
        spec.calls.iter().all(|call| !call.distinct)
    }

    /// Adds up a chunk, or gives it back.
    fn add(&mut self, delta: Delta) -> Result<Option<Delta>, OperatorError> {
        let time = delta.rows.column(self.window.spec.time);
        if delta.diffs.is_some() || delta.provenance.is_some() || time.null_count() > 0 {
            return Ok(Some(delta));
        }
        let times = time.as_primitive::<TimestampMillisecondType>().values().clone();
        if times.iter().any(|&ts| ts <= self.window.watermark) {
            return Ok(Some(delta));
        }
        let Ok(arguments) = self.window.slots.accumulators.arguments(&delta.rows) else {
            return Ok(Some(delta));
        };
        self.rows += delta.len() as u64;
        self.window.place_on_time(&delta.rows, &times)?;
        self.window.add(arguments, None)?;
        Ok(None)
    }

    /// Decides whether the next rows pass; then nothing stays here. A group counts when it opens,
    /// as if its rows were complete.
    fn judge(&mut self, out: &mut Output) -> Result<(), OperatorError> {
        let open = self.window.slots.used() as u64;
        // Those that were open the last time were counted then.
        let groups = (self.groups + open).saturating_sub(self.open);
        self.open = open;
        if self.rows < groups * self.rows_a_group {
            self.passing = self.rows * self.patience;
            self.patience = (self.patience * 2).min(PASS_MAX);
            self.give(MARK_END, out)?;
            self.open = 0;
        } else {
            self.patience = PASS_MIN;
        }
        (self.rows, self.groups) = (0, 0);
        Ok(())
    }

    /// Gives out the panes whose first end is at `end` or before, and forgets them.
    fn give(&mut self, end: Millis, out: &mut Output) -> Result<(), OperatorError> {
        while let Some(mut bucket) = self.window.waiting.pop(end, &mut self.window.slots) {
            // In one order everywhere, so that groups that are merged lie side by side.
            bucket.close(&mut self.window.keys.interner);
            self.groups += bucket.keys.len() as u64;
            out.rows.push(self.partial(bucket.pane, &bucket.keys, &bucket.slots)?);
            self.window.keys.release(&bucket.keys);
        }
        self.window.keys.collect();
        Ok(())
    }

    /// A partial chunk of these groups; their slots are free after it.
    fn partial(
        &mut self,
        pane: Millis,
        ids: &[u32],
        slots: &[u32],
    ) -> Result<Delta, OperatorError> {
        let (count, spec) = (ids.len(), &self.window.spec);
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(spec.input.fields().len());
        for _ in spec.input.fields() {
            columns.push(Arc::new(NullArray::new(count)));
        }
        let starts = TimestampMillisecondArray::from(vec![pane; count]);
        columns[spec.time] = match spec.input.field(spec.time).data_type() {
            DataType::Timestamp(_, zone) => Arc::new(starts.with_timezone_opt(zone.clone())),
            _ => Arc::new(starts),
        };
        // Last, for the event time may be a key itself; it then lies in the same pane.
        let keys = self.window.keys.interner.packed_columns_of_many(ids)?;
        for (&place, column) in spec.keys.iter().zip(keys) {
            columns[place] = column;
        }
        let typed = |(field, column): (&Arc<Field>, &ArrayRef)| {
            field.as_ref().clone().with_data_type(column.data_type().clone()).with_nullable(true)
        };
        let fields = spec.input.fields().iter().zip(&columns).map(typed);
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let mut delta = Delta::fired(RecordBatch::try_new(schema, columns)?);
        delta.attached = Some(Attached {
            all: Arc::new(self.window.slots.split_off(slots)?),
            pieces: (0..count as u32).collect(),
        });
        Ok(delta)
    }
}

impl Operator for PreAggregate {
    fn name(&self) -> &str {
        "pre-aggregate"
    }

    fn push(&mut self, _port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        if self.passing > 0 {
            self.passing = self.passing.saturating_sub(delta.len() as u64);
            out.rows.push(delta);
        } else if let Some(back) = self.add(delta)? {
            out.rows.push(back);
        } else if self.window.slots.used() > GROUPS_MAX {
            self.give(MARK_END, out)?;
            self.judge(out)?;
        }
        Ok(())
    }

    fn flush(&mut self, out: &mut Output) -> Result<(), OperatorError> {
        self.give(MARK_END, out)?;
        // Nobody can say what these groups would have become.
        (self.rows, self.groups, self.open) = (0, 0, 0);
        Ok(())
    }

    fn begin_at(&mut self, watermarks: &[Millis]) {
        // Or rows that are late would be added up, as if they were not.
        self.window.watermark = watermarks.iter().copied().min().unwrap_or(MARK_NONE);
    }

    fn is_transient(&self) -> bool {
        true
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        self.window.watermark = self.window.watermark.max(end.watermark());
        self.give(self.window.watermark.saturating_add(1), out)?;
        if self.groups > 0 && self.passing == 0 {
            self.judge(out)?;
        }
        self.groups = 0;
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        self.window.output_watermark(inputs)
    }

    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        self.window.whole()
    }

    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        self.window.restore(parts)
    }
}

impl WindowAggregate {
    /// Finds the slots of rows that are late for no window.
    pub(super) fn place_on_time(
        &mut self,
        rows: &RecordBatch,
        times: &[Millis],
    ) -> Result<(), OperatorError> {
        let mut ids = std::mem::take(&mut self.ids);
        self.keys.interner.intern(rows, &mut ids)?;
        self.ids = ids;
        self.keys.settle();
        self.placed.clear();
        self.place_all(times);
        Ok(())
    }

    /// Takes up a partial chunk; `None` if it is one, else the chunk.
    pub(super) fn take_up(&mut self, delta: Delta) -> Result<Option<Delta>, OperatorError> {
        let before = self.spec.input.fields().len();
        if delta.attached.is_none() && delta.rows.num_columns() <= before {
            return Ok(Some(delta));
        }
        let times = delta.rows.column(self.spec.time).as_primitive::<TimestampMillisecondType>();
        self.place_on_time(&delta.rows, times.values())?;
        self.slots.settle();
        let accumulators = &mut self.slots.accumulators;
        match &delta.attached {
            None => accumulators.restore(&self.placed, &delta.rows.columns()[before..])?,
            Some(attached) => match attached.downcast::<Accumulators>() {
                Some(states) => accumulators.merge(states, &attached.pieces, &self.placed)?,
                None => return Err(OperatorError::State("rows with another's states".into())),
            },
        }
        Ok(None)
    }
}
