//! Rows as they travel: an Arrow batch, how often each row counts, and where it came from.
//!
//! # Invariants
//! `diffs`, `provenance` and `attached`, where present, have exactly one entry a row. `None` for
//! `diffs` means all +1. `None` for `provenance` means that no row of the chunk is a straggler: the
//! `ts` of every row is above its mark + 1, so nothing downstream depends on its mark.
//!
//! # Why the one extra millisecond
//! A session's rule compares an earlier row's `ts + gap - 1` with a later row's mark. For a later
//! row no more than the gap away, that can only matter if its own `ts - 1` is not above its mark.

use arrow::array::{
    Array, ArrayRef, AsArray, Int64Array, RecordBatch, RecordBatchOptions, UInt32Array, UInt64Array,
};
use arrow::buffer::ScalarBuffer;
use arrow::compute::{concat_batches, take, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use std::any::Any;
use std::fmt::Debug;
use std::sync::Arc;

use crate::time::Millis;

/// Identifies a split within a job: the source's place in the plan, and the split's own number
/// there.
///
/// The number is the source's (Kafka partition, MQTT slot, place of a file in path order), so that
/// it does not depend on which worker or generation reads it. It orders rows of equal event time.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
)]
pub struct SplitId(pub u64);

impl SplitId {
    /// The split `number` (below 2^40) of the job's source `source`.
    pub fn of(source: u32, number: u64) -> SplitId {
        SplitId((u64::from(source) << 40) | number)
    }

    /// The source's place in the plan.
    pub fn source(self) -> u32 {
        u32::try_from(self.0 >> 40).unwrap_or(u32::MAX)
    }

    /// The split's number within its source.
    pub fn number(self) -> u64 {
        self.0 & ((1 << 40) - 1)
    }
}

/// Per row: the mark of its split just before it, its split and its offset there.
#[derive(Clone, Debug, PartialEq)]
pub struct Provenance {
    /// The row's mark, `MARK_NONE` where its split had none yet.
    pub marks: ScalarBuffer<i64>,
    /// `SplitId` of each row.
    pub splits: ScalarBuffer<u64>,
    /// The source's own offset of each row.
    pub offsets: ScalarBuffer<u64>,
}

/// Where the rows of a chunk come from; orders chunks of one epoch at a sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Origin {
    /// All rows are from one split, in its order, the first at or after this offset.
    Split {
        /// The split.
        split: SplitId,
        /// Offset at or before that of the first row, above that of the chunk before.
        offset: u64,
    },
    /// Made by an operator at this event time (a window's end); sinks order by it, then by whole
    /// row.
    FiredAt(Millis),
    /// Made by an operator; sinks order such rows by the whole row.
    #[default]
    Fired,
}

/// What travels beside rows as it lies in memory, without a copy between workers of one process.
/// Elsewhere it becomes columns behind those of the rows; whoever takes it up takes up either.
pub trait Attachment: Any + Debug + Send + Sync {
    /// Some pieces as columns, in this order.
    fn columns(&self, pieces: &[u32]) -> Vec<(Field, ArrayRef)>;
}

/// An attachment, and which piece of it goes with each row.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The pieces, possibly of other rows too.
    pub all: Arc<dyn Attachment>,
    /// By row the number of its piece.
    pub pieces: ScalarBuffer<u32>,
}

impl Attached {
    /// The attachment, if it is of this type.
    pub fn downcast<T: Attachment>(&self) -> Option<&T> {
        (self.all.as_ref() as &dyn Any).downcast_ref()
    }
}

/// A chunk of rows with what travels beside them.
#[derive(Clone, Debug)]
pub struct Delta {
    /// The rows.
    pub rows: RecordBatch,
    /// Multiplicity of each row; `None` means +1 for all.
    pub diffs: Option<ScalarBuffer<i64>>,
    /// Marks and places of the rows, carried only where a row is a straggler.
    pub provenance: Option<Provenance>,
    /// What else belongs to the rows: an operator's partial states on their way to the next.
    pub attached: Option<Attached>,
    /// Where the chunk comes from.
    pub origin: Origin,
}

impl Delta {
    /// Rows made by an operator.
    pub fn fired(rows: RecordBatch) -> Delta {
        Delta { rows, diffs: None, provenance: None, attached: None, origin: Origin::Fired }
    }

    /// Rows made by an operator at an event time, for instance the end of their window.
    pub fn fired_at(rows: RecordBatch, time: Millis) -> Delta {
        Delta { origin: Origin::FiredAt(time), ..Delta::fired(rows) }
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.num_rows()
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The mark of a row: `MARK_NONE` where the chunk carries none.
    pub fn mark(&self, row: usize) -> Millis {
        self.provenance.as_ref().map_or(crate::time::MARK_NONE, |p| p.marks[row])
    }

    /// The same chunk with other columns (as many rows).
    pub fn with_rows(&self, rows: RecordBatch) -> Delta {
        debug_assert_eq!(rows.num_rows(), self.len());
        Delta {
            rows,
            diffs: self.diffs.clone(),
            provenance: self.provenance.clone(),
            attached: self.attached.clone(),
            origin: self.origin,
        }
    }

    /// The rows at `indices`, in that order, with what travels beside them.
    pub fn take(&self, indices: &UInt32Array) -> Result<Delta, ArrowError> {
        let pick = |values: &ScalarBuffer<i64>| -> ScalarBuffer<i64> {
            indices.values().iter().map(|&i| values[i as usize]).collect()
        };
        let pick_u64 = |values: &ScalarBuffer<u64>| -> ScalarBuffer<u64> {
            indices.values().iter().map(|&i| values[i as usize]).collect()
        };
        Ok(Delta {
            rows: take_record_batch(&self.rows, indices)?,
            diffs: self.diffs.as_ref().map(pick),
            provenance: self.provenance.as_ref().map(|p| Provenance {
                marks: pick(&p.marks),
                splits: pick_u64(&p.splits),
                offsets: pick_u64(&p.offsets),
            }),
            attached: self.attached.as_ref().map(|a| Attached {
                all: a.all.clone(),
                pieces: indices.values().iter().map(|&i| a.pieces[i as usize]).collect(),
            }),
            origin: self.origin,
        })
    }

    /// Rows `offset .. offset + len`, without a copy.
    pub fn slice(&self, offset: usize, len: usize) -> Delta {
        Delta {
            rows: self.rows.slice(offset, len),
            diffs: self.diffs.as_ref().map(|d| d.slice(offset, len)),
            provenance: self.provenance.as_ref().map(|p| Provenance {
                marks: p.marks.slice(offset, len),
                splits: p.splits.slice(offset, len),
                offsets: p.offsets.slice(offset, len),
            }),
            attached: self
                .attached
                .as_ref()
                .map(|a| Attached { all: a.all.clone(), pieces: a.pieces.slice(offset, len) }),
            origin: self.origin,
        }
    }

    /// Rough bytes held by the rows, without what is attached.
    pub fn bytes(&self) -> usize {
        sliced_bytes(&self.rows)
    }

    /// The same chunk with what is attached as columns behind the rows.
    pub fn detached(mut self) -> Result<Delta, ArrowError> {
        let Some(Attached { all, pieces }) = self.attached.take() else { return Ok(self) };
        let schema = self.rows.schema();
        let (more, columns): (Vec<Field>, Vec<_>) = all.columns(&pieces).into_iter().unzip();
        let fields = schema.fields().iter().cloned().chain(more.into_iter().map(Arc::new));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let columns = self.rows.columns().iter().cloned().chain(columns).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(self.len()));
        self.rows = RecordBatch::try_new_with_options(schema, columns, &options)?;
        Ok(self)
    }

    /// The chunk as one batch with the columns `__diff`, `__mark`, `__split`, `__offset` behind the
    /// rows where they are present, what is attached before them: the form between processes and
    /// in snapshots.
    pub fn to_batch(&self) -> Result<RecordBatch, ArrowError> {
        if self.attached.is_some() {
            return self.clone().detached()?.to_batch();
        }
        let schema = self.rows.schema();
        let mut fields: Vec<_> = schema.fields().iter().cloned().collect();
        let mut columns: Vec<ArrayRef> = self.rows.columns().to_vec();
        let mut push = |name: &str, column: ArrayRef| {
            fields.push(Arc::new(Field::new(name, column.data_type().clone(), false)));
            columns.push(column);
        };
        if let Some(diffs) = &self.diffs {
            push("__diff", Arc::new(Int64Array::new(diffs.clone(), None)));
        }
        if let Some(p) = &self.provenance {
            push("__mark", Arc::new(Int64Array::new(p.marks.clone(), None)));
            push("__split", Arc::new(UInt64Array::new(p.splits.clone(), None)));
            push("__offset", Arc::new(UInt64Array::new(p.offsets.clone(), None)));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows.num_rows()));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
    }

    /// The inverse of [`Delta::to_batch`], but that what was attached stays columns; the origin
    /// travels separately.
    pub fn from_batch(batch: RecordBatch, origin: Origin) -> Result<Delta, ArrowError> {
        use arrow::datatypes::{Int64Type, UInt64Type};
        let schema = batch.schema();
        let place = |name: &str| schema.index_of(name).ok();
        let i64s = |i: usize| batch.column(i).as_primitive::<Int64Type>().values().clone();
        let u64s = |i: usize| batch.column(i).as_primitive::<UInt64Type>().values().clone();
        let diffs = place("__diff").map(i64s);
        let provenance = match (place("__mark"), place("__split"), place("__offset")) {
            (Some(m), Some(s), Some(o)) => {
                Some(Provenance { marks: i64s(m), splits: u64s(s), offsets: u64s(o) })
            }
            _ => None,
        };
        let extra = usize::from(diffs.is_some()) + 3 * usize::from(provenance.is_some());
        let kept: Vec<usize> = (0..batch.num_columns() - extra).collect();
        Ok(Delta { rows: batch.project(&kept)?, diffs, provenance, attached: None, origin })
    }

    /// Concatenates chunks of one schema without attachments; diffs and provenance appear if any
    /// chunk has them.
    pub fn concat(deltas: &[Delta]) -> Result<Option<Delta>, ArrowError> {
        let Some(first) = deltas.first() else { return Ok(None) };
        if deltas.len() == 1 {
            return Ok(Some(first.clone()));
        }
        if deltas.iter().any(|d| d.attached.is_some()) {
            // As columns their types depend on what is in them.
            let text = "chunks with something attached do not concatenate";
            return Err(ArrowError::InvalidArgumentError(text.into()));
        }
        let rows = concat_batches(&first.rows.schema(), deltas.iter().map(|d| &d.rows))?;
        let diffs = deltas.iter().any(|d| d.diffs.is_some()).then(|| {
            deltas
                .iter()
                .flat_map(|d| (0..d.len()).map(move |i| d.diffs.as_ref().map_or(1, |x| x[i])))
                .collect()
        });
        let provenance = deltas.iter().any(|d| d.provenance.is_some()).then(|| {
            let all = || deltas.iter().flat_map(|d| (0..d.len()).map(move |i| (d, i)));
            Provenance {
                marks: all().map(|(d, i)| d.mark(i)).collect(),
                splits: all().map(|(d, i)| d.place(i).0.0).collect(),
                offsets: all().map(|(d, i)| d.place(i).1).collect(),
            }
        });
        Ok(Some(Delta { rows, diffs, provenance, attached: None, origin: first.origin }))
    }

    /// Split and offset of a row, as exactly as the chunk knows them.
    pub fn place(&self, row: usize) -> (SplitId, u64) {
        match (&self.provenance, self.origin) {
            (Some(p), _) => (SplitId(p.splits[row]), p.offsets[row]),
            (None, Origin::Split { split, offset }) => (split, offset + row as u64),
            (None, _) => (SplitId::default(), row as u64),
        }
    }
}

/// Bytes of a batch that count against a limit: of a slice, its share.
pub fn sliced_bytes(rows: &RecordBatch) -> usize {
    rows.columns().iter().map(column_bytes).sum()
}

fn column_bytes(column: &ArrayRef) -> usize {
    if let Some(packed) = column.as_any_dictionary_opt() {
        // Many chunks share a dictionary: each counts for no more than it has rows.
        let (keys, values) = (packed.keys(), packed.values());
        let share = values.slice(0, values.len().min(keys.len()));
        return 4 * keys.len() + column_bytes(&share);
    }
    column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_array_memory_size())
}

/// The same rows without dictionaries that hold more values than there are rows.
pub(crate) fn without_wide_dictionaries(rows: &RecordBatch) -> RecordBatch {
    let wide = |c: &ArrayRef| c.as_any_dictionary_opt().is_some_and(|d| d.values().len() > c.len());
    if rows.columns().iter().any(wide) { unpack(rows) } else { rows.clone() }
}

/// The same rows with dictionary columns spelled out.
pub fn unpack(rows: &RecordBatch) -> RecordBatch {
    let schema = rows.schema();
    let packed = |t: &DataType| matches!(t, DataType::Dictionary(_, _));
    if !schema.fields().iter().any(|f| packed(f.data_type())) {
        return rows.clone();
    }
    let spell = |(field, column): (&Arc<Field>, &ArrayRef)| match column.data_type() {
        DataType::Dictionary(_, values) => match arrow::compute::cast(column, values) {
            Ok(plain) => (field.as_ref().clone().with_data_type(values.as_ref().clone()), plain),
            Err(error) => unreachable!("a dictionary does not unpack: {error}"),
        },
        _ => (field.as_ref().clone(), column.clone()),
    };
    let (fields, columns): (Vec<Field>, Vec<ArrayRef>) =
        schema.fields().iter().zip(rows.columns()).map(spell).unzip();
    let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
    match RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options) {
        Ok(batch) => batch,
        Err(error) => unreachable!("unpacked columns do not make a batch: {error}"),
    }
}

/// A batch of these columns under this schema, except that a column planned as a string may be a
/// dictionary of strings: its field then says so. Columns of any other type than planned are an
/// error.
pub fn batch_of(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
) -> Result<RecordBatch, ArrowError> {
    let packed = |(field, column): (&Arc<Field>, &ArrayRef)| match column.data_type() {
        found @ DataType::Dictionary(_, values) if field.data_type() != found => {
            field.data_type() == values.as_ref()
        }
        _ => false,
    };
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    if !schema.fields().iter().zip(&columns).any(packed) {
        return RecordBatch::try_new_with_options(schema.clone(), columns, &options);
    }
    let adapted = |pair: (&Arc<Field>, &ArrayRef)| {
        let (field, column) = pair;
        match packed(pair) {
            true => Arc::new(field.as_ref().clone().with_data_type(column.data_type().clone())),
            false => field.clone(),
        }
    };
    let fields: Vec<Arc<Field>> = schema.fields().iter().zip(&columns).map(adapted).collect();
    let schema = Schema::new_with_metadata(fields, schema.metadata().clone());
    RecordBatch::try_new_with_options(Arc::new(schema), columns, &options)
}

/// Takes rows of one column; a thin name for arrow's kernel.
pub fn take_column(column: &ArrayRef, indices: &UInt32Array) -> Result<ArrayRef, ArrowError> {
    take(column, indices, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta() -> Delta {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
        let rows =
            RecordBatch::try_new(schema, vec![Arc::new(Int64Array::from(vec![1, 2, 3]))]).unwrap();
        Delta {
            rows,
            diffs: Some(vec![1, -1, 2].into()),
            provenance: Some(Provenance {
                marks: vec![5, 6, 7].into(),
                splits: vec![1, 1, 1].into(),
                offsets: vec![10, 11, 12].into(),
            }),
            attached: None,
            origin: Origin::Split { split: SplitId(1), offset: 10 },
        }
    }

    #[test]
    fn survives_the_form_between_processes() {
        let before = delta();
        let after = Delta::from_batch(before.to_batch().unwrap(), before.origin).unwrap();
        assert_eq!(after.rows, before.rows);
        assert_eq!(after.diffs, before.diffs);
        assert_eq!(after.provenance, before.provenance);
    }

    #[test]
    fn takes_and_concatenates_what_travels_beside_the_rows() {
        let before = delta();
        let parts = [before.slice(0, 1), before.take(&UInt32Array::from(vec![1, 2])).unwrap()];
        let after = Delta::concat(&parts).unwrap().unwrap();
        assert_eq!(after.rows, before.rows);
        assert_eq!(after.diffs, before.diffs);
        assert_eq!(after.provenance, before.provenance);
    }

    #[derive(Debug)]
    struct Names(Vec<&'static str>);

    impl Attachment for Names {
        fn columns(&self, pieces: &[u32]) -> Vec<(Field, ArrayRef)> {
            let names = pieces.iter().map(|&piece| self.0[piece as usize]);
            let names: arrow::array::StringArray = names.map(Some).collect();
            vec![(Field::new("name", DataType::Utf8, true), Arc::new(names))]
        }
    }

    #[test]
    fn what_is_attached_goes_with_its_row() {
        let mut whole = delta();
        let all = Arc::new(Names(vec!["one", "two", "three"]));
        whole.attached = Some(Attached { all, pieces: vec![0, 1, 2].into() });
        assert!(whole.attached.as_ref().unwrap().downcast::<Names>().is_some());
        let part = whole.take(&UInt32Array::from(vec![2, 0])).unwrap().slice(0, 1);
        let batch = part.to_batch().unwrap();
        let back = Delta::from_batch(batch, part.origin).unwrap();
        assert_eq!(back.rows.column(1).as_string::<i32>().value(0), "three");
        assert_eq!((back.len(), back.diffs, back.provenance), (1, part.diffs, part.provenance));
        assert!(Delta::concat(&[whole.clone(), whole]).is_err());
    }

    #[test]
    fn a_column_of_another_type_than_planned_is_an_error() {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, true)]));
        let column: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        assert!(batch_of(&schema, vec![column], 1).is_err());
        assert_eq!(batch_of(&Arc::new(Schema::empty()), vec![], 3).unwrap().num_rows(), 3);
    }
}
