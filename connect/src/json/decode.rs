//! The decoder: messages in, batches out.
//!
//! # Invariant
//! After each `push` every column has as many entries as there are rows, whether the message became
//! a row, was skipped or refused: a refused message is cut off wherever it had got to.
//!
//! # Argument
//! The careful way reads the message once for grammar and places and once for values, so that the
//! last of repeated names wins without any value being taken back. The quick way (`layout.rs`) only
//! ever answers "a row", and only where the careful way would give the same row; all errors are
//! found and worded by the careful way. So the answer does not depend on the messages before.

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Decimal128Array, ListArray, MapArray,
    PrimitiveArray, RecordBatch, RecordBatchOptions, StringArray, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Date32Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, Schema, SchemaRef, Time32MillisecondType, TimeUnit,
    TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
};
use std::sync::Arc;

use super::column::{Bytes, Columns, Data};
use super::layout::Layouts;
use super::pack::Packer;
use super::{Fault, JsonOptions, Reason, RowError, UnsupportedType, scan};

/// The ROW that is the message itself.
pub(super) const ROOT: usize = 0;

/// What became of a message that was not refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It is a row now.
    Row,
    /// It was empty: neither row nor error.
    Skipped,
}

/// Decodes JSON messages into the columns of a schema.
#[derive(Debug)]
pub struct JsonDecoder {
    schema: SchemaRef,
    columns: Columns,
    layouts: Layouts,
    /// For each column of the schema, what packs its texts.
    packers: Vec<Option<Packer>>,
    rows: usize,
}

impl JsonDecoder {
    /// A decoder for the columns of `schema`; what else a message holds is checked and skipped.
    pub fn new(schema: SchemaRef, options: JsonOptions) -> Result<Self, UnsupportedType> {
        let columns = Columns::new(&schema, &options)?;
        let packers = schema.fields().iter().map(|_| None).collect();
        Ok(Self { schema, columns, layouts: Layouts::default(), packers, rows: 0 })
    }

    /// Gives these columns, where they are STRING, as dictionaries as long as they have few values.
    /// Batches then differ from the schema in this.
    pub fn with_dictionaries(mut self, names: &[String]) -> Self {
        for (field, packer) in self.schema.fields().iter().zip(&mut self.packers) {
            let wanted = field.data_type() == &DataType::Utf8 && names.contains(field.name());
            *packer = wanted.then(Packer::new);
        }
        self
    }

    /// Decodes one message. After an error nothing of it remains.
    #[inline]
    pub fn push(&mut self, message: &[u8]) -> Result<Pushed, RowError> {
        if message.is_empty() {
            return Ok(Pushed::Skipped);
        }
        if !self.layouts.decode(&mut self.columns, message, self.rows) {
            self.push_carefully(message)?;
        }
        self.rows += 1;
        Ok(Pushed::Row)
    }

    fn push_carefully(&mut self, message: &[u8]) -> Result<(), RowError> {
        if let Err(fault) = self.general(message) {
            self.columns.truncate(ROOT, self.rows);
            let column = fault.column.map(|id| self.columns.all[id].path.clone());
            return Err(RowError { at: fault.at, column, reason: fault.reason });
        }
        self.layouts.missed(&mut self.columns, message);
        Ok(())
    }

    /// The careful way: any message, any error.
    fn general(&mut self, message: &[u8]) -> Result<(), Fault> {
        let valid = std::str::from_utf8(message);
        valid.map_err(|fault| Fault::new(fault.valid_up_to(), Reason::Utf8))?;
        let open = object_start(message);
        if message.get(open) != Some(&b'{') {
            // The root is no object: say so, unless it is not even JSON.
            let root = scan::value(message, open, 0)?;
            end_of_message(message, root.end)?;
            return Err(Fault::new(open, Reason::Expected("an object as the message")));
        }
        let mut fields = self.columns.take_fields(ROOT);
        let filled = fields
            .locate(message, open, 1)
            .and_then(|end| end_of_message(message, end))
            .and_then(|()| self.columns.fill(&fields, message, open));
        self.columns.put_fields(ROOT, fields);
        filled
    }

    /// Rows waiting for `finish`.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Roughly the bytes of memory that the waiting rows take. Counts columns, not rows: cheap.
    pub fn bytes(&self) -> usize {
        self.columns.bytes()
    }

    /// Takes the waiting rows, none of them if there are none. What was learned about the shape of
    /// messages stays.
    pub fn finish(&mut self) -> RecordBatch {
        let fields = self.columns.take_fields(ROOT);
        let mut arrays: Vec<ArrayRef> =
            fields.columns.iter().map(|&id| array(&mut self.columns, id)).collect();
        self.columns.put_fields(ROOT, fields);
        let mut schema = self.schema.clone();
        for (at, packer) in self.packers.iter_mut().enumerate() {
            if let Some(packer) = packer
                && let Some(packed) = packer.pack(arrays[at].as_string())
            {
                let mut fields = schema.fields().to_vec();
                let field = fields[at].as_ref().clone();
                fields[at] = Arc::new(field.with_data_type(packed.data_type().clone()));
                schema = Arc::new(Schema::new(fields));
                arrays[at] = packed;
            }
        }
        let options = RecordBatchOptions::new().with_row_count(Some(self.rows));
        self.rows = 0;
        RecordBatch::try_new_with_options(schema, arrays, &options)
            .expect("columns are made for the schema, and NULL was refused where it says so")
    }

    /// Turns the quick way off, to compare it with the careful one.
    #[cfg(test)]
    pub(super) fn without_layouts(mut self) -> Self {
        self.layouts.disable();
        self
    }

    /// Messages that took the quick way.
    #[cfg(test)]
    pub(super) fn quick(&self) -> u64 {
        self.layouts.quick
    }
}

/// Where the message's object opens: after a byte order mark and white space.
pub(super) fn object_start(message: &[u8]) -> usize {
    let mark = if message.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
    scan::space(message, mark)
}

fn end_of_message(message: &[u8], pos: usize) -> Result<(), Fault> {
    let end = scan::space(message, pos);
    match end == message.len() {
        true => Ok(()),
        false => Err(Fault::grammar(end, "nothing after the object")),
    }
}

/// Takes a vector and leaves an empty one with room for as much again.
fn take<T>(values: &mut Vec<T>) -> Vec<T> {
    let room = Vec::with_capacity(values.len());
    std::mem::replace(values, room)
}

/// Takes the entries of a column as an array.
fn array(columns: &mut Columns, id: usize) -> ArrayRef {
    let column = &mut columns.all[id];
    let nulls = column.nulls.finish();
    let data_type = column.field.data_type().clone();
    match &mut column.data {
        Data::Boolean(values) => Arc::new(BooleanArray::new(values.finish(), nulls)),
        Data::Int8(values) => primitive::<Int8Type>(values, nulls, data_type),
        Data::Int16(values) => primitive::<Int16Type>(values, nulls, data_type),
        Data::Int32(values) => primitive::<Int32Type>(values, nulls, data_type),
        Data::Int64(values) => primitive::<Int64Type>(values, nulls, data_type),
        Data::Float32(values) => primitive::<Float32Type>(values, nulls, data_type),
        Data::Float64(values) => primitive::<Float64Type>(values, nulls, data_type),
        Data::Date(values) => primitive::<Date32Type>(values, nulls, data_type),
        Data::Time(values) => primitive::<Time32MillisecondType>(values, nulls, data_type),
        Data::Decimal { values, .. } => {
            let values = ScalarBuffer::from(take(values));
            Arc::new(Decimal128Array::new(values, nulls).with_data_type(data_type))
        }
        Data::Timestamp { values, .. } => match data_type {
            DataType::Timestamp(TimeUnit::Millisecond, _) => {
                primitive::<TimestampMillisecondType>(values, nulls, data_type)
            }
            DataType::Timestamp(TimeUnit::Microsecond, _) => {
                primitive::<TimestampMicrosecondType>(values, nulls, data_type)
            }
            _ => primitive::<TimestampNanosecondType>(values, nulls, data_type),
        },
        Data::Text(values) => {
            let (offsets, bytes) = take_bytes(values);
            Arc::new(StringArray::new(offsets, bytes.into(), nulls))
        }
        Data::Binary(values) => {
            let (offsets, bytes) = take_bytes(values);
            Arc::new(BinaryArray::new(offsets, bytes.into(), nulls))
        }
        Data::List { .. } | Data::Map { .. } | Data::Row(_) => {
            nested_array(columns, id, data_type, nulls)
        }
    }
}

fn nested_array(
    columns: &mut Columns,
    id: usize,
    data_type: DataType,
    nulls: Option<NullBuffer>,
) -> ArrayRef {
    match (&mut columns.all[id].data, data_type) {
        (Data::List { offsets, item }, DataType::List(field)) => {
            let (offsets, item) = (take_offsets(offsets), *item);
            Arc::new(ListArray::new(field, offsets, array(columns, item), nulls))
        }
        (Data::Map { offsets, keys, values, .. }, DataType::Map(field, sorted)) => {
            let (offsets, values) = (take_offsets(offsets), *values);
            let (key_offsets, key_bytes) = take_bytes(keys);
            let keys: ArrayRef = Arc::new(StringArray::new(key_offsets, key_bytes.into(), None));
            let values = array(columns, values);
            let DataType::Struct(pair) = field.data_type().clone() else {
                unreachable!("the entries of a map are pairs")
            };
            let entries = StructArray::new(pair, vec![keys, values], None);
            Arc::new(MapArray::new(field, offsets, entries, nulls, sorted))
        }
        (Data::Row(_), DataType::Struct(children)) => {
            let fields = columns.take_fields(id);
            let arrays: Vec<_> = fields.columns.iter().map(|&id| array(columns, id)).collect();
            columns.put_fields(id, fields);
            Arc::new(StructArray::new(children, arrays, nulls))
        }
        _ => unreachable!("a column is made for its type"),
    }
}

fn primitive<T: ArrowPrimitiveType>(
    values: &mut Vec<T::Native>,
    nulls: Option<NullBuffer>,
    data_type: DataType,
) -> ArrayRef {
    let values = ScalarBuffer::from(take(values));
    Arc::new(PrimitiveArray::<T>::new(values, nulls).with_data_type(data_type))
}

fn take_offsets(offsets: &mut Vec<i32>) -> OffsetBuffer<i32> {
    let taken = take(offsets);
    offsets.push(0);
    OffsetBuffer::new(ScalarBuffer::from(taken))
}

fn take_bytes(values: &mut Bytes) -> (OffsetBuffer<i32>, Vec<u8>) {
    (take_offsets(&mut values.offsets), take(&mut values.bytes))
}
