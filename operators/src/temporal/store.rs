//! Rows of a table, kept in columns and addressed by dense numbers.
//!
//! # Invariant
//! Row 0 is a row of NULLs, so that a join which finds nothing is a look-up like any other.
//! Numbers are stable until [`RowStore::keep`]: parts are only ever joined to their neighbours.
//!
//! # Complexity
//! A part is joined to the one before unless that is more than twice as big, so there are O(log n)
//! parts and each row is copied O(log n) times. `gather` copies each value once.
//!
//! # Limits
//! 2^32 − 1 rows between two calls of `keep`. Rows are copied on the way in: a chunk from another
//! process pins the memory that it was received in.

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array, new_null_array};
use arrow::compute::{concat, interleave, take, take_record_batch};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use std::sync::Arc;
use weir_engine::operator::OperatorError;
use weir_engine::rows::{batch_of, unpack};

/// The row of NULLs.
pub(super) const NO_ROW: u32 = 0;

#[derive(Debug)]
struct Part {
    base: u32,
    rows: RecordBatch,
}

/// The rows.
#[derive(Debug)]
pub(crate) struct RowStore {
    schema: SchemaRef,
    parts: Vec<Part>,
}

impl RowStore {
    /// An empty store for rows of this schema; dictionaries are spelled out in it.
    pub(crate) fn new(schema: &Schema) -> Result<RowStore, OperatorError> {
        let plain = |t: &DataType| match t {
            DataType::Dictionary(_, values) => values.as_ref().clone(),
            other => other.clone(),
        };
        let fields = schema
            .fields()
            .iter()
            .map(|f| f.as_ref().clone().with_data_type(plain(f.data_type())).with_nullable(true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let nulls = schema.fields().iter().map(|f| new_null_array(f.data_type(), 1)).collect();
        let rows = batch_of(&schema, nulls, 1)?;
        Ok(RowStore { schema, parts: vec![Part { base: 0, rows }] })
    }

    /// The number that the next row will get; also that of all rows, the row of NULLs included.
    pub(crate) fn next(&self) -> u32 {
        self.parts.last().map_or(0, |p| p.base + p.rows.num_rows() as u32)
    }

    /// Adds the rows at `indices`; the first gets number `next()`, the others follow.
    pub(crate) fn push(
        &mut self,
        rows: &RecordBatch,
        indices: &UInt32Array,
    ) -> Result<(), OperatorError> {
        let base = self.next();
        let full = u64::from(base) + indices.len() as u64 > u64::from(u32::MAX);
        if full {
            return Err(OperatorError::State("a table has more than 2^32 rows".into()));
        }
        let plain = unpack(&take_record_batch(rows, indices)?);
        let rows = batch_of(&self.schema, plain.columns().to_vec(), plain.num_rows())?;
        self.parts.push(Part { base, rows });
        while let [.., before, last] = &self.parts[..] {
            if before.rows.num_rows() > 2 * last.rows.num_rows() {
                break;
            }
            self.join_last()?;
        }
        Ok(())
    }

    fn join_last(&mut self) -> Result<(), OperatorError> {
        if let (Some(last), Some(before)) = (self.parts.pop(), self.parts.pop()) {
            let columns = before.rows.columns().iter().zip(last.rows.columns());
            let joined = columns.map(|(a, b)| concat(&[a.as_ref(), b.as_ref()]));
            let joined = joined.collect::<Result<Vec<_>, _>>()?;
            let count = before.rows.num_rows() + last.rows.num_rows();
            let rows = batch_of(&self.schema, joined, count)?;
            self.parts.push(Part { base: before.base, rows });
        }
        Ok(())
    }

    /// Joins all parts to one: worth it before many look-ups.
    pub(super) fn settle(&mut self) -> Result<(), OperatorError> {
        while self.parts.len() > 1 {
            self.join_last()?;
        }
        Ok(())
    }

    /// The columns of these rows.
    pub(super) fn gather(&self, numbers: &[u32]) -> Result<Vec<ArrayRef>, OperatorError> {
        if let [one] = &self.parts[..] {
            let numbers = UInt32Array::from(numbers.to_vec());
            let columns = one.rows.columns().iter().map(|c| take(c, &numbers, None));
            return Ok(columns.collect::<Result<_, _>>()?);
        }
        let place = |&number: &u32| {
            let part = self.parts.partition_point(|p| p.base <= number) - 1;
            (part, (number - self.parts[part].base) as usize)
        };
        let places: Vec<(usize, usize)> = numbers.iter().map(place).collect();
        let column = |at: usize| {
            let parts: Vec<&dyn Array> =
                self.parts.iter().map(|p| p.rows.column(at).as_ref()).collect();
            interleave(&parts, &places)
        };
        Ok((0..self.schema.fields().len()).map(column).collect::<Result<_, _>>()?)
    }

    /// The rows as a batch.
    pub(crate) fn batch(&self, numbers: &[u32]) -> Result<RecordBatch, OperatorError> {
        let columns = self.gather(numbers)?;
        Ok(batch_of(&self.schema, columns, numbers.len())?)
    }

    /// Keeps only these rows: they get the numbers 1, 2, … in the order given.
    pub(crate) fn keep(&mut self, numbers: &[u32]) -> Result<(), OperatorError> {
        let rows = self.batch(numbers)?;
        self.parts.truncate(1);
        let nulls = self.parts[0].rows.slice(0, 1);
        self.parts[0].rows = nulls;
        let all: UInt32Array = (0..rows.num_rows() as u32).collect();
        self.push(&rows, &all)
    }

    /// The row's values as bytes: the last resort for an order among rows of one place.
    pub(super) fn bytes(&self, number: u32) -> Result<Vec<u8>, OperatorError> {
        let mut bytes = Vec::new();
        for column in self.gather(&[number])? {
            weir_engine::keys::encode_value(column.as_ref(), 0, &mut bytes);
        }
        Ok(bytes)
    }
}
