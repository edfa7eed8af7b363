//! Scalar expressions as the engine and the operators see them: columns in, a column out.
//!
//! Who compiles them is not known here. An expression is a function of the rows and of the epoch's
//! recorded time alone.

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::DataType;
use std::fmt::Debug;
use std::sync::Arc;

use crate::time::Millis;

/// A row of a chunk for which an expression has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowFailure {
    /// The row's place in the chunk.
    pub row: usize,
    /// What went wrong, in the words of the expression.
    pub reason: String,
}

/// What an evaluation gives: a value a row, or the rows that failed.
pub type Evaluated = Result<ArrayRef, Vec<RowFailure>>;

/// A compiled scalar expression.
///
/// `evaluate` gives a column with one value a row. Where some rows fail, it gives *all* failing
/// rows, so that the caller can set them aside and evaluate the rest.
pub trait Expression: Debug + Send + Sync {
    /// The type of the column.
    fn data_type(&self) -> DataType;

    /// Evaluates over `rows` at the epoch's recorded time.
    fn evaluate(&self, rows: &RecordBatch, recorded_time: Millis) -> Evaluated;

    /// If the expression is just a column: its place. Lets callers pass columns on without a call.
    fn column(&self) -> Option<usize> {
        None
    }
}

/// A shared compiled expression.
pub type ExpressionRef = Arc<dyn Expression>;

/// The expression that is a column.
#[derive(Clone, Debug)]
pub struct Column {
    /// The column's place.
    pub index: usize,
    /// Its type.
    pub data_type: DataType,
}

impl Expression for Column {
    fn data_type(&self) -> DataType {
        self.data_type.clone()
    }

    fn evaluate(&self, rows: &RecordBatch, _recorded_time: Millis) -> Evaluated {
        Ok(rows.column(self.index).clone())
    }

    fn column(&self) -> Option<usize> {
        Some(self.index)
    }
}
