//! The keys of both sides of a join as dense ids.

use arrow::array::{Array, RecordBatch};
use arrow::datatypes::{Schema, SchemaRef};
use weir_engine::keys::KeyGroup;
use weir_engine::operator::OperatorError;

use crate::aggregates::KeyInterner;

/// The id of a key that has a NULL: it meets nothing.
pub(super) const NO_KEY: u32 = u32::MAX;
/// Keys without a version that are kept before the first clearing.
const VACANT_MIN: usize = 1 << 16;

/// Ids for keys of either side. A key of the left side that the right side does not know gets an
/// id as well; such ids are given back once they outnumber the others.
#[derive(Debug)]
pub(super) struct JoinKeys {
    interner: KeyInterner,
    left: Vec<usize>,
    right: Vec<usize>,
}

impl JoinKeys {
    /// Keys in these columns of the two sides.
    pub(super) fn new(
        left: Vec<usize>,
        right: Vec<usize>,
        schema: &SchemaRef,
    ) -> Result<JoinKeys, OperatorError> {
        let projected: Schema = schema.project(&right)?;
        let interner = KeyInterner::new(&projected, (0..right.len()).collect());
        Ok(JoinKeys { interner, left, right })
    }

    /// Ids of the left side's rows.
    pub(super) fn left(&mut self, rows: &RecordBatch) -> Result<Vec<u32>, OperatorError> {
        ids(&mut self.interner, rows, &self.left)
    }

    /// Ids of the right side's rows.
    pub(super) fn right(&mut self, rows: &RecordBatch) -> Result<Vec<u32>, OperatorError> {
        ids(&mut self.interner, rows, &self.right)
    }

    /// The columns of the left side.
    pub(super) fn left_columns(&self) -> &[usize] {
        &self.left
    }

    /// All ids are below this.
    pub(super) fn bound(&self) -> usize {
        self.interner.bound()
    }

    /// Place of each id in the order of key bytes.
    pub(super) fn ranks(&mut self) -> &[u32] {
        self.interner.ranks()
    }

    /// A key's group.
    pub(super) fn key_group(&self, id: u32) -> KeyGroup {
        self.interner.key_group(id)
    }

    /// Gives back ids that nothing is kept for, once they outnumber the `occupied` others.
    pub(super) fn shed(&mut self, occupied: usize, vacant: impl Fn(u32) -> bool) {
        if self.interner.len() > 2 * occupied + VACANT_MIN {
            let ids: Vec<u32> =
                self.interner.ordered().iter().copied().filter(|&id| vacant(id)).collect();
            self.interner.free(&ids);
        }
    }
}

fn ids(
    interner: &mut KeyInterner,
    rows: &RecordBatch,
    columns: &[usize],
) -> Result<Vec<u32>, OperatorError> {
    let mut ids = Vec::with_capacity(rows.num_rows());
    interner.intern(&rows.project(columns)?, &mut ids)?;
    for &column in columns {
        let column = rows.column(column);
        if column.logical_null_count() > 0 {
            let nulls = column.logical_nulls();
            for (row, id) in ids.iter_mut().enumerate() {
                if nulls.as_ref().is_some_and(|n| n.is_null(row)) {
                    *id = NO_KEY;
                }
            }
        }
    }
    Ok(ids)
}
