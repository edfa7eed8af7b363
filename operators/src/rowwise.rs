//! Filter and projection, row by row, without state.
//!
//! # Contract
//! A row passes if the filter is true (not false, not NULL); then it gets the projected columns.
//! Rows keep their order, diffs, provenance and the chunk's origin. A row for which the filter or
//! a column cannot be evaluated goes to the dead letters as it came in, with the first reason; the
//! rest goes on.
//!
//! # Recorded time
//! An expression that reads it can only be evaluated once the epoch's cut is known: such an
//! operator keeps the chunks of the open epoch until `advance`. All others work in `push` and hold
//! nothing.
//!
//! # Dictionaries
//! A string column that comes in as a dictionary stays one, whatever the planned schema says: see
//! [`batch_of`].

#[cfg(test)]
mod tests;

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, UInt32Array, UInt64Array};
use arrow::buffer::{BooleanBuffer, ScalarBuffer};
use arrow::compute::{FilterBuilder, FilterPredicate};
use arrow::datatypes::{Int64Type, SchemaRef, UInt64Type};
use arrow::error::ArrowError;
use std::collections::BTreeMap;
use weir_engine::expression::{ExpressionRef, RowFailure};
use weir_engine::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use weir_engine::rows::{Delta, Provenance, batch_of};
use weir_engine::time::{MARK_NONE, Millis};

/// What a [`RowWise`] does.
#[derive(Clone, Debug)]
pub struct RowWiseSpec {
    /// BOOLEAN; only rows where it is true pass. `None`: all do.
    pub filter: Option<ExpressionRef>,
    /// The output's columns; `None`: those of the input.
    pub project: Option<Vec<ExpressionRef>>,
    /// Schema of the output; string columns may come as dictionaries.
    pub output: SchemaRef,
    /// Whether any expression reads the recorded time. If not, they are evaluated at `MARK_NONE`.
    pub uses_time: bool,
}

/// The operator.
#[derive(Debug)]
pub struct RowWise {
    spec: RowWiseSpec,
    /// Chunks of the open epoch, where expressions read the recorded time.
    open: Vec<Delta>,
}

impl RowWise {
    /// An operator without state.
    pub fn new(spec: RowWiseSpec) -> RowWise {
        RowWise { spec, open: Vec::new() }
    }

    fn apply(&self, delta: Delta, now: Millis, out: &mut Output) -> Result<(), OperatorError> {
        let Some((delta, mask)) = self.filter(delta, now, out)? else { return Ok(()) };
        // Columns that are passed on cannot fail, so a narrow projection saves the filter's work.
        let narrow = self.spec.project.iter().flatten().all(|e| e.column().is_some());
        if narrow {
            let projected = self.project(delta, now, out)?;
            return emit(keep(projected, mask)?, out);
        }
        let kept = keep(delta, mask)?;
        if kept.is_empty() {
            return Ok(());
        }
        let projected = self.project(kept, now, out)?;
        emit(projected, out)
    }

    /// The rows that the filter has a value for, and that value; `None` where no row is left.
    fn filter(
        &self,
        mut delta: Delta,
        now: Millis,
        out: &mut Output,
    ) -> Result<Option<Masked>, OperatorError> {
        let Some(filter) = &self.spec.filter else {
            return Ok((!delta.is_empty()).then_some((delta, None)));
        };
        while !delta.is_empty() {
            match filter.evaluate(&delta.rows, now) {
                Ok(column) => {
                    let mask = column.as_boolean_opt().ok_or_else(|| {
                        let text = format!("a filter is {}, not BOOLEAN", column.data_type());
                        OperatorError::Expression(text)
                    })?;
                    return Ok(Some((delta, Some(mask.clone()))));
                }
                Err(failures) => delta = set_aside(delta, failures, out)?,
            }
        }
        Ok(None)
    }

    fn project(
        &self,
        mut delta: Delta,
        now: Millis,
        out: &mut Output,
    ) -> Result<Delta, OperatorError> {
        let Some(project) = &self.spec.project else {
            let rows = batch_of(&self.spec.output, delta.rows.columns().to_vec(), delta.len())?;
            return Ok(delta.with_rows(rows));
        };
        loop {
            let (mut columns, mut failures) = (Vec::with_capacity(project.len()), Vec::new());
            for expression in project {
                match expression.column() {
                    Some(column) => columns.push(delta.rows.column(column).clone()),
                    None => match expression.evaluate(&delta.rows, now) {
                        Ok(column) => columns.push(column),
                        Err(failed) => failures.extend(failed),
                    },
                }
            }
            if failures.is_empty() && columns.len() == project.len() {
                let rows = batch_of(&self.spec.output, columns, delta.len())?;
                return Ok(delta.with_rows(rows));
            }
            delta = set_aside(delta, failures, out)?;
        }
    }
}

/// A chunk and which of its rows pass; `None`: all.
type Masked = (Delta, Option<BooleanArray>);

fn emit(delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
    if !delta.is_empty() {
        out.rows.push(delta);
    }
    Ok(())
}

/// The rows where the mask is true.
fn keep(delta: Delta, mask: Option<BooleanArray>) -> Result<Delta, OperatorError> {
    let Some(mask) = mask else { return Ok(delta) };
    let passing = mask.true_count();
    if passing == delta.len() {
        return Ok(delta);
    }
    if passing == 0 {
        return Ok(delta.slice(0, 0));
    }
    let mask = if mask.null_count() > 0 {
        let valid = mask.nulls().map(|n| n.inner().clone());
        let both: BooleanBuffer =
            valid.map_or_else(|| mask.values().clone(), |v| &v & mask.values());
        BooleanArray::new(both, None)
    } else {
        mask
    };
    let predicate = FilterBuilder::new(&mask).optimize().build();
    let signed = |values: &ScalarBuffer<i64>| -> Result<ScalarBuffer<i64>, ArrowError> {
        let column = predicate.filter(&Int64Array::new(values.clone(), None))?;
        Ok(column.as_primitive::<Int64Type>().values().clone())
    };
    let provenance = match &delta.provenance {
        None => None,
        Some(p) => Some(Provenance {
            marks: signed(&p.marks)?,
            splits: unsigned(&predicate, &p.splits)?,
            offsets: unsigned(&predicate, &p.offsets)?,
        }),
    };
    Ok(Delta {
        rows: predicate.filter_record_batch(&delta.rows)?,
        diffs: delta.diffs.as_ref().map(signed).transpose()?,
        provenance,
        attached: None,
        origin: delta.origin,
    })
}

fn unsigned(
    predicate: &FilterPredicate,
    values: &ScalarBuffer<u64>,
) -> Result<ScalarBuffer<u64>, ArrowError> {
    let column = predicate.filter(&UInt64Array::new(values.clone(), None))?;
    Ok(column.as_primitive::<UInt64Type>().values().clone())
}

/// Moves the rows that failed to `out.failed`, each with its first reason; gives the others.
///
/// An error where no row of the chunk is named: then there is nothing to set aside.
pub fn set_aside(
    delta: Delta,
    failures: Vec<RowFailure>,
    out: &mut Output,
) -> Result<Delta, OperatorError> {
    let mut reasons = BTreeMap::new();
    for failure in failures.into_iter().filter(|f| f.row < delta.len()) {
        reasons.entry(failure.row).or_insert(failure.reason);
    }
    if reasons.is_empty() {
        let text = "an expression failed without naming a row".to_owned();
        return Err(OperatorError::Expression(text));
    }
    let place = |row: usize| row as u32;
    let bad: UInt32Array = reasons.keys().map(|&row| place(row)).collect();
    let good: UInt32Array =
        (0..delta.len()).filter(|row| !reasons.contains_key(row)).map(place).collect();
    out.failed.push((delta.take(&bad)?, reasons.into_values().collect()));
    Ok(delta.take(&good)?)
}

impl Operator for RowWise {
    fn name(&self) -> &str {
        match self.spec.filter {
            Some(_) => "filter",
            None => "project",
        }
    }

    fn push(&mut self, _port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        if self.spec.uses_time {
            self.open.push(delta);
            return Ok(());
        }
        self.apply(delta, MARK_NONE, out)
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        for delta in std::mem::take(&mut self.open) {
            self.apply(delta, end.recorded_time, out)?;
        }
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        inputs.iter().copied().min().unwrap_or(MARK_NONE)
    }

    /// Nothing outlives an epoch.
    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _parts: Vec<StatePart>) -> Result<(), OperatorError> {
        Ok(())
    }
}
