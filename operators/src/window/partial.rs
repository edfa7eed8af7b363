//! Pre-aggregation: rows of one worker added up before they travel, where that makes them few.
//!
//! # Invariant
//! What [`PreAggregate`] gives instead of rows adds up to them: the window behind it ends an epoch
//! in the same state as if the rows themselves had come.
//!
//! # Argument
//! Aggregates are exact and mergeable, so a group may be added as a whole. Only rows of one pane
//! are added up, and only in chunks without stragglers in which every time is above W(e − 1): such
//! rows are late for no window, so each waits for the first end over its pane, wherever it is
//! added. What was added up in epoch e is given out at its end, before the window behind fires.
//! Nothing is kept beyond an epoch but W.
//!
//! # Form
//! A partial chunk has the columns of the input, and behind them the aggregates' state. Keys are in
//! their columns and the pane's start in the column of the event time (unless that is a key), so
//! that it is dealt to workers like the rows themselves; all other columns are NULL.
//!
//! # When
//! The first rows of an epoch are a sample. Where they fall into few groups the rest of the epoch
//! is added up too; else rows pass as they are, and the next sample is taken after twice as many
//! epochs as the last time. Chunks with diffs, stragglers or failing arguments always pass.

use arrow::array::{Array, AsArray};
use arrow::array::{ArrayRef, RecordBatch, TimestampMillisecondArray, new_null_array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMillisecondType};
use std::sync::Arc;
use weir_engine::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use weir_engine::rows::Delta;
use weir_engine::time::{MARK_END, Millis};

use super::{WindowAggregate, WindowAggregateSpec};

/// Rows of a sample.
const SAMPLE_ROWS: usize = 2_048;
/// Rows a group at the least for adding up to be worth it.
const ROWS_A_GROUP: usize = 8;
/// Groups of an epoch at the most.
const GROUPS_MAX: usize = 4_096;
/// Epochs between two samples at the most.
const PAUSE_MAX: u32 = 256;

/// Adds up rows in front of a [`WindowAggregate`] of the same spec.
#[derive(Debug)]
pub struct PreAggregate {
    window: WindowAggregate,
    /// Rows of the open epoch that have been added up.
    rows: usize,
    /// Whether the open epoch's rows pass.
    is_passing: bool,
    /// Epochs until the next sample, and after that if it says no.
    pause: u32,
    next_pause: u32,
}

impl PreAggregate {
    /// An operator without state. An error where [`WindowAggregate::new`] gives one.
    pub fn new(spec: WindowAggregateSpec) -> Result<PreAggregate, OperatorError> {
        let window = WindowAggregate::new(spec)?;
        Ok(PreAggregate { window, rows: 0, is_passing: false, pause: 0, next_pause: 1 })
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
        self.rows += delta.len();
        self.window.place_on_time(&delta.rows, &times)?;
        self.window.add(arguments, None)?;
        Ok(None)
    }

    fn groups(&self) -> usize {
        self.window.waiting.iter().map(|bucket| bucket.keys.len()).sum()
    }

    /// Decides on the rest of the epoch.
    fn judge(&mut self) {
        let groups = self.groups();
        if groups > GROUPS_MAX || self.rows < groups * ROWS_A_GROUP {
            self.is_passing = true;
            self.pause = self.next_pause;
            self.next_pause = (self.next_pause * 2).min(PAUSE_MAX);
        } else {
            self.next_pause = 1;
        }
    }

    /// Gives out what has been added up, and forgets it.
    fn give(&mut self, out: &mut Output) -> Result<(), OperatorError> {
        self.rows = 0;
        while let Some(bucket) = self.window.waiting.pop(MARK_END) {
            let input = &self.window.spec.input;
            let count = bucket.keys.len();
            let mut columns: Vec<ArrayRef> = Vec::with_capacity(input.fields().len());
            for field in input.fields() {
                columns.push(new_null_array(field.data_type(), count));
            }
            let time = self.window.spec.time;
            let starts = TimestampMillisecondArray::from(vec![bucket.pane; count]);
            columns[time] = match input.field(time).data_type() {
                DataType::Timestamp(_, zone) => Arc::new(starts.with_timezone_opt(zone.clone())),
                _ => Arc::new(starts),
            };
            // Last, for the event time may be a key itself; it then lies in the same pane.
            let keys = self.window.keys.interner.columns(&bucket.keys)?;
            for (&place, column) in self.window.spec.keys.iter().zip(keys) {
                columns[place] = column;
            }
            columns.extend(self.window.slots.accumulators.state(&bucket.slots));
            out.rows.push(Delta::fired(RecordBatch::try_new(self.schema(&columns), columns)?));
            self.window.keys.release(&bucket.keys);
            self.window.slots.release(&bucket.slots);
        }
        self.window.keys.collect();
        Ok(())
    }

    fn schema(&self, columns: &[ArrayRef]) -> SchemaRef {
        let states = self.window.slots.accumulators.state_fields("__state");
        let input = self.window.spec.input.fields().iter().map(|field| field.as_ref().clone());
        let fields = input.chain(states).zip(columns);
        let typed = |(field, column): (Field, &ArrayRef)| {
            field.with_data_type(column.data_type().clone()).with_nullable(true)
        };
        Arc::new(Schema::new(fields.map(typed).collect::<Vec<_>>()))
    }
}

impl Operator for PreAggregate {
    fn name(&self) -> &str {
        "pre-aggregate"
    }

    fn push(&mut self, _port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        let mut rest = Some(delta);
        while let Some(delta) = rest.take_if(|_| !self.is_passing) {
            let sampled = self.rows >= SAMPLE_ROWS;
            let part = if sampled { delta.len() } else { SAMPLE_ROWS.min(delta.len()) };
            rest = (part < delta.len()).then(|| delta.slice(part, delta.len() - part));
            if let Some(back) = self.add(delta.slice(0, part))? {
                out.rows.push(back);
            } else if self.rows >= SAMPLE_ROWS {
                self.judge();
            }
        }
        out.rows.extend(rest);
        Ok(())
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        let had_rows = self.rows > 0;
        if had_rows && self.rows < SAMPLE_ROWS {
            // Too few rows in an epoch to be worth a detour.
            self.judge();
        }
        self.give(out)?;
        self.window.watermark = self.window.watermark.max(end.watermark());
        if self.is_passing {
            self.is_passing = self.pause > 0;
            self.pause = self.pause.saturating_sub(1);
        }
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        self.window.output_watermark(inputs)
    }

    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        self.window.save()
    }

    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        self.window.load(parts)
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
        if delta.rows.num_columns() <= before {
            return Ok(Some(delta));
        }
        let times = delta.rows.column(self.spec.time).as_primitive::<TimestampMillisecondType>();
        self.place_on_time(&delta.rows, times.values())?;
        self.slots.settle();
        self.slots.accumulators.restore(&self.placed, &delta.rows.columns()[before..])?;
        Ok(None)
    }
}
