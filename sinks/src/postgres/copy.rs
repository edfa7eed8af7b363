//! Arrow rows in PostgreSQL's binary COPY format.
//!
//! The format: a header, then a row as its number of columns (2 bytes) and each column as its
//! length (4 bytes, -1 for NULL) and its binary form, then -1. All numbers are big-endian; dates
//! and times count from 2000-01-01. Source: PostgreSQL's documentation of COPY, and `numeric_recv`.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::*;
use arrow::error::ArrowError;
use std::sync::Arc;
use weir_connect::json::{JsonEncoder, JsonOptions};

const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
const TRAILER: [u8; 2] = (-1_i16).to_be_bytes();
/// 2000-01-01 in days and microseconds since 1970-01-01.
const EPOCH_DAYS: i32 = 10_957;
const EPOCH_MICROS: i64 = 946_684_800_000_000;

/// The PostgreSQL type that a column is sent as; `None` if there is none.
pub(crate) fn type_of(data_type: &DataType) -> Option<String> {
    Some(match data_type {
        DataType::Boolean => "boolean".into(),
        DataType::Int8 | DataType::Int16 => "smallint".into(),
        DataType::Int32 => "integer".into(),
        DataType::Int64 => "bigint".into(),
        DataType::Float32 => "real".into(),
        DataType::Float64 => "double precision".into(),
        DataType::Decimal128(precision, scale) if *scale >= 0 => {
            format!("numeric({precision},{scale})")
        }
        DataType::Utf8 => "text".into(),
        DataType::Binary => "bytea".into(),
        DataType::Date32 => "date".into(),
        DataType::Time32(TimeUnit::Second | TimeUnit::Millisecond) | DataType::Time64(_) => {
            "time".into()
        }
        DataType::Timestamp(_, None) => "timestamp".into(),
        DataType::Timestamp(_, Some(_)) => "timestamptz".into(),
        DataType::List(_) | DataType::Struct(_) | DataType::Map(_, _) => {
            let schema = Arc::new(Schema::new(vec![Field::new("v", data_type.clone(), true)]));
            JsonEncoder::new(schema, JsonOptions::default()).ok()?;
            "jsonb".into()
        }
        _ => return None,
    })
}

/// A stream of COPY data.
pub(crate) struct CopyStream {
    bytes: Vec<u8>,
}

impl CopyStream {
    pub(crate) fn start() -> CopyStream {
        CopyStream { bytes: HEADER.to_vec() }
    }

    /// Adds `rows` of `columns`, in that order.
    pub(crate) fn append(
        &mut self,
        columns: &[ArrayRef],
        rows: impl Iterator<Item = usize>,
    ) -> Result<(), ArrowError> {
        let encoders: Vec<Column<'_>> = columns.iter().map(Column::of).collect::<Result<_, _>>()?;
        let count = (columns.len() as i16).to_be_bytes();
        for row in rows {
            self.bytes.extend(count);
            encoders.iter().for_each(|column| column.write(row, &mut self.bytes));
        }
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.extend(TRAILER);
        self.bytes
    }
}

/// A column with its type found once.
struct Column<'a> {
    array: &'a dyn Array,
    nulls: bool,
    kind: Kind<'a>,
}

enum Kind<'a> {
    Bool(&'a arrow::array::BooleanArray),
    Int8(&'a [i8]),
    Int16(&'a [i16]),
    Int32(&'a [i32]),
    Int64(&'a [i64]),
    Float32(&'a [f32]),
    Float64(&'a [f64]),
    Decimal(&'a [i128], usize),
    Text(&'a arrow::array::StringArray),
    Bytes(&'a arrow::array::BinaryArray),
    Date(&'a [i32]),
    /// Microseconds of the day: value times the factor.
    Time32(&'a [i32], i64),
    /// Value, multiplier, divisor, and what is taken off.
    Micros(&'a [i64], i64, i64, i64),
    Json(RecordBatch, JsonEncoder),
}

impl<'a> Column<'a> {
    fn of(array: &'a ArrayRef) -> Result<Column<'a>, ArrowError> {
        macro_rules! values {
            ($type:ty) => {
                array.as_primitive::<$type>().values().as_ref()
            };
        }
        let kind = match array.data_type() {
            DataType::Boolean => Kind::Bool(array.as_boolean()),
            DataType::Int8 => Kind::Int8(values!(Int8Type)),
            DataType::Int16 => Kind::Int16(values!(Int16Type)),
            DataType::Int32 => Kind::Int32(values!(Int32Type)),
            DataType::Int64 => Kind::Int64(values!(Int64Type)),
            DataType::Float32 => Kind::Float32(values!(Float32Type)),
            DataType::Float64 => Kind::Float64(values!(Float64Type)),
            DataType::Decimal128(_, scale) => {
                Kind::Decimal(values!(Decimal128Type), usize::try_from(*scale).unwrap_or(0))
            }
            DataType::Utf8 => Kind::Text(array.as_string()),
            DataType::Binary => Kind::Bytes(array.as_binary()),
            DataType::Date32 => Kind::Date(values!(Date32Type)),
            DataType::Time32(TimeUnit::Second) => {
                Kind::Time32(values!(Time32SecondType), 1_000_000)
            }
            DataType::Time32(_) => Kind::Time32(values!(Time32MillisecondType), 1_000),
            DataType::Time64(TimeUnit::Nanosecond) => {
                Kind::Micros(values!(Time64NanosecondType), 1, 1_000, 0)
            }
            DataType::Time64(_) => Kind::Micros(values!(Time64MicrosecondType), 1, 1, 0),
            DataType::Timestamp(unit, _) => match unit {
                TimeUnit::Second => {
                    Kind::Micros(values!(TimestampSecondType), 1_000_000, 1, EPOCH_MICROS)
                }
                TimeUnit::Millisecond => {
                    Kind::Micros(values!(TimestampMillisecondType), 1_000, 1, EPOCH_MICROS)
                }
                TimeUnit::Microsecond => {
                    Kind::Micros(values!(TimestampMicrosecondType), 1, 1, EPOCH_MICROS)
                }
                TimeUnit::Nanosecond => {
                    Kind::Micros(values!(TimestampNanosecondType), 1, 1_000, EPOCH_MICROS)
                }
            },
            _ => {
                let batch = RecordBatch::try_from_iter_with_nullable([("v", array.clone(), true)])?;
                let encoder = JsonEncoder::new(batch.schema(), JsonOptions::default());
                Kind::Json(batch, encoder.map_err(|e| ArrowError::SchemaError(e.to_string()))?)
            }
        };
        Ok(Column { array: array.as_ref(), nulls: array.null_count() > 0, kind })
    }

    fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.nulls && self.array.is_null(row) {
            out.extend((-1_i32).to_be_bytes());
            return;
        }
        match &self.kind {
            Kind::Bool(a) => field(out, &[u8::from(a.value(row))]),
            Kind::Int8(v) => field(out, &i16::from(v[row]).to_be_bytes()),
            Kind::Int16(v) => field(out, &v[row].to_be_bytes()),
            Kind::Int32(v) => field(out, &v[row].to_be_bytes()),
            Kind::Int64(v) => field(out, &v[row].to_be_bytes()),
            Kind::Float32(v) => field(out, &v[row].to_be_bytes()),
            Kind::Float64(v) => field(out, &v[row].to_be_bytes()),
            Kind::Decimal(v, scale) => numeric(v[row], *scale, out),
            Kind::Text(a) => field(out, a.value(row).as_bytes()),
            Kind::Bytes(a) => field(out, a.value(row)),
            Kind::Date(v) => field(out, &v[row].saturating_sub(EPOCH_DAYS).to_be_bytes()),
            Kind::Time32(v, factor) => field(out, &(i64::from(v[row]) * factor).to_be_bytes()),
            Kind::Micros(v, times, by, less) => {
                let micros = v[row].saturating_mul(*times).div_euclid(*by).saturating_sub(*less);
                field(out, &micros.to_be_bytes());
            }
            Kind::Json(batch, encoder) => json(batch, encoder, row, out),
        }
    }
}

fn field(out: &mut Vec<u8>, bytes: &[u8]) {
    // Arrow's own lengths are below 2^31.
    out.extend((bytes.len() as i32).to_be_bytes());
    out.extend(bytes);
}

/// jsonb: version 1, then the text. The value is what stands between `{"v":` and `}`.
fn json(batch: &RecordBatch, encoder: &JsonEncoder, row: usize, out: &mut Vec<u8>) {
    let mut object = Vec::new();
    encoder.rows(batch).write(row, &mut object);
    let value = &object[5..object.len() - 1];
    out.extend((value.len() as i32 + 1).to_be_bytes());
    out.push(1);
    out.extend(value);
}

/// numeric: groups of four decimal digits, the weight of the first, sign and scale.
fn numeric(value: i128, scale: usize, out: &mut Vec<u8>) {
    let digits = format!("{:0>width$}", value.unsigned_abs(), width = scale + 1);
    let (whole, fraction) = digits.split_at(digits.len() - scale);
    let lead = (4 - whole.len() % 4) % 4;
    let tail = (4 - fraction.len() % 4) % 4;
    let padded = format!("{}{whole}{fraction}{}", "0".repeat(lead), "0".repeat(tail));
    let groups = padded.as_bytes().chunks_exact(4);
    let groups: Vec<i16> = groups
        .map(|four| four.iter().fold(0_i16, |sum, digit| sum * 10 + i16::from(digit - b'0')))
        .collect();
    let mut weight = ((whole.len() + lead) / 4) as i16 - 1;
    let first = groups.iter().position(|&g| g != 0).unwrap_or(groups.len());
    let last = groups.iter().rposition(|&g| g != 0).map_or(first, |p| p + 1);
    weight -= first as i16;
    let kept = &groups[first..last];
    out.extend((8 + 2 * kept.len() as i32).to_be_bytes());
    out.extend((kept.len() as i16).to_be_bytes());
    out.extend(if kept.is_empty() { 0_i16 } else { weight }.to_be_bytes());
    out.extend(if value < 0 { 0x4000_u16 } else { 0 }.to_be_bytes());
    out.extend((scale as u16).to_be_bytes());
    kept.iter().for_each(|group| out.extend(group.to_be_bytes()));
}
