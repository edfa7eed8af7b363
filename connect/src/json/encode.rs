//! The encoder: batches in, one line of JSON per row out.
//!
//! Follows Flink's `RowDataToJsonConverters` and Jackson: names in the order of the schema, NULL as
//! `null`, BYTES in base64, NaN and the infinities as text, DOUBLE as Java's `Double.toString` (the
//! shortest digits that read back; between 10^-3 and 10^7 plain, else like `1.0E10`), times with as
//! many fraction digits as they need (see `time.rs`). Three differences, all for what a row means
//! to stay: a DECIMAL is always plain, with all digits of its scale (Flink drops zeros at the end
//! and may write an exponent), a TIME keeps its fraction, and the digits of a DOUBLE are the
//! shortest on every machine (Java before 19 sometimes wrote one more).
//!
//! The bytes depend on the batch alone: what the decoder reads back is equal, NaN for NaN.

use std::io::Write;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Decimal128Array, RecordBatch, StringArray,
};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Fields, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, SchemaRef, Time32MillisecondType, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType,
};

use super::column::{self, Columns};
use super::time::{self, Form};
use super::{JsonOptions, UnsupportedType, text};

/// Encodes the batches of a schema as JSON.
#[derive(Debug, Clone)]
pub struct JsonEncoder {
    schema: SchemaRef,
    options: JsonOptions,
}

impl JsonEncoder {
    /// An encoder for batches of `schema`.
    pub fn new(schema: SchemaRef, options: JsonOptions) -> Result<Self, UnsupportedType> {
        // What can be written and what can be read are the same types.
        Columns::new(&schema, &options)?;
        Ok(Self { schema, options })
    }

    /// All rows of a batch, each with a line feed at its end. No other line feed occurs.
    ///
    /// # Panics
    /// If the batch is not of the encoder's schema.
    pub fn encode(&self, batch: &RecordBatch) -> Vec<u8> {
        let rows = self.rows(batch);
        let mut out = Vec::with_capacity(batch.num_rows() * 64);
        for row in 0..batch.num_rows() {
            rows.write(row, &mut out);
            out.push(b'\n');
        }
        out
    }

    /// The rows of a batch, to be written one by one.
    ///
    /// # Panics
    /// If the batch is not of the encoder's schema.
    pub fn rows<'a>(&self, batch: &'a RecordBatch) -> RowWriter<'a> {
        let same = batch.schema_ref().fields().iter().map(|field| field.data_type());
        assert!(
            same.eq(self.schema.fields().iter().map(|field| field.data_type())),
            "the batch is not of the encoder's schema"
        );
        RowWriter { members: members(self.schema.fields(), batch.columns(), &self.options) }
    }
}

/// Writes the rows of one batch.
#[derive(Debug)]
pub struct RowWriter<'a> {
    members: Members<'a>,
}

impl RowWriter<'_> {
    /// Appends a row as a JSON object, without a line feed.
    pub fn write(&self, row: usize, out: &mut Vec<u8>) {
        self.members.write(row, out);
    }
}

/// The members of an object: of the row itself, or of a ROW in it.
#[derive(Debug)]
struct Members<'a> {
    /// A member's name in quotes with its colon, and its values.
    members: Vec<(Vec<u8>, Cells<'a>)>,
    ignore_null: bool,
}

impl Members<'_> {
    fn write(&self, row: usize, out: &mut Vec<u8>) {
        out.push(b'{');
        let mut first = true;
        for (name, cells) in &self.members {
            if self.ignore_null && cells.array.is_null(row) {
                continue;
            }
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(name);
            cells.write(row, out);
        }
        out.push(b'}');
    }
}

fn members<'a>(fields: &Fields, arrays: &'a [ArrayRef], options: &JsonOptions) -> Members<'a> {
    let members = fields.iter().zip(arrays).map(|(field, array)| {
        let mut name = Vec::with_capacity(field.name().len() + 3);
        text::write_text(&mut name, field.name().as_bytes());
        name.push(b':');
        (name, cells(array, options))
    });
    Members { members: members.collect(), ignore_null: options.ignore_null_fields }
}

/// A column with its type found once, not once per row.
#[derive(Debug)]
struct Cells<'a> {
    array: &'a ArrayRef,
    values: Values<'a>,
}

#[derive(Debug)]
enum Values<'a> {
    Boolean(&'a BooleanArray),
    Int8(&'a [i8]),
    Int16(&'a [i16]),
    Int32(&'a [i32]),
    Int64(&'a [i64]),
    Float32(&'a [f32]),
    Float64(&'a [f64]),
    Decimal(&'a Decimal128Array, u32),
    Date(&'a [i32]),
    Time(&'a [i32]),
    Timestamp(&'a [i64], Form),
    Text(&'a StringArray),
    Binary(&'a BinaryArray),
    List(&'a [i32], Box<Cells<'a>>),
    Map(&'a [i32], &'a StringArray, Box<Cells<'a>>),
    Row(Members<'a>),
}

fn cells<'a>(array: &'a ArrayRef, options: &JsonOptions) -> Cells<'a> {
    let values = match array.data_type() {
        DataType::Boolean => Values::Boolean(array.as_boolean()),
        DataType::Int8 => Values::Int8(array.as_primitive::<Int8Type>().values()),
        DataType::Int16 => Values::Int16(array.as_primitive::<Int16Type>().values()),
        DataType::Int32 => Values::Int32(array.as_primitive::<Int32Type>().values()),
        DataType::Int64 => Values::Int64(array.as_primitive::<Int64Type>().values()),
        DataType::Float32 => Values::Float32(array.as_primitive::<Float32Type>().values()),
        DataType::Float64 => Values::Float64(array.as_primitive::<Float64Type>().values()),
        &DataType::Decimal128(_, scale) => {
            let array = array.as_primitive::<Decimal128Type>();
            Values::Decimal(array, u32::from(scale.unsigned_abs()))
        }
        DataType::Date32 => Values::Date(array.as_primitive::<Date32Type>().values()),
        DataType::Time32(_) => Values::Time(array.as_primitive::<Time32MillisecondType>().values()),
        DataType::Utf8 => Values::Text(array.as_string()),
        DataType::Binary => Values::Binary(array.as_binary()),
        DataType::List(_) => {
            let list = array.as_list::<i32>();
            Values::List(list.value_offsets(), Box::new(cells(list.values(), options)))
        }
        DataType::Map(..) => {
            let map = array.as_map();
            let values = Box::new(cells(map.values(), options));
            Values::Map(map.value_offsets(), map.keys().as_string(), values)
        }
        DataType::Struct(fields) => {
            Values::Row(members(fields, array.as_struct().columns(), options))
        }
        other => timestamps(array, other, options),
    };
    Cells { array, values }
}

fn timestamps<'a>(array: &'a ArrayRef, data_type: &DataType, options: &JsonOptions) -> Values<'a> {
    let Some((ticks, zulu)) = column::timestamp(data_type) else {
        unreachable!("the types were checked when the encoder was made")
    };
    let values = match data_type {
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            array.as_primitive::<TimestampMillisecondType>().values()
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            array.as_primitive::<TimestampMicrosecondType>().values()
        }
        _ => array.as_primitive::<TimestampNanosecondType>().values(),
    };
    Values::Timestamp(values, Form { standard: options.timestamp_standard, zulu, ticks })
}

impl Cells<'_> {
    fn write(&self, row: usize, out: &mut Vec<u8>) {
        if self.array.is_null(row) {
            out.extend_from_slice(b"null");
            return;
        }
        match &self.values {
            Values::Boolean(array) => {
                out.extend_from_slice(if array.value(row) { b"true" } else { b"false" });
            }
            Values::Int8(values) => write_whole(out, values[row].into()),
            Values::Int16(values) => write_whole(out, values[row].into()),
            Values::Int32(values) => write_whole(out, values[row].into()),
            Values::Int64(values) => write_whole(out, values[row]),
            Values::Float32(values) => {
                let value = values[row];
                write_float(out, value.into(), format_args!("{value:e}"));
            }
            Values::Float64(values) => {
                let value = values[row];
                write_float(out, value, format_args!("{value:e}"));
            }
            Values::Decimal(array, scale) => write_decimal(out, array.value(row), *scale),
            Values::Text(array) => text::write_text(out, array.value(row).as_bytes()),
            Values::Binary(array) => {
                quoted(out, |out| text::write_base64(out, array.value(row)));
            }
            Values::Date(days) => quoted(out, |out| time::write_date(out, days[row].into())),
            Values::Time(millis) => quoted(out, |out| time::write_time(out, millis[row])),
            Values::Timestamp(values, form) => quoted(out, |out| form.write(out, values[row])),
            Values::List(offsets, items) => {
                out.push(b'[');
                separated(offsets, row, out, |item, out| items.write(item, out));
                out.push(b']');
            }
            Values::Map(offsets, keys, values) => {
                out.push(b'{');
                separated(offsets, row, out, |entry, out| {
                    text::write_text(out, keys.value(entry).as_bytes());
                    out.push(b':');
                    values.write(entry, out);
                });
                out.push(b'}');
            }
            Values::Row(members) => members.write(row, out),
        }
    }
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

/// Writes the children that belong to `row`, with commas between them.
fn separated(offsets: &[i32], row: usize, out: &mut Vec<u8>, write: impl Fn(usize, &mut Vec<u8>)) {
    let (start, end) = (offsets[row] as usize, offsets[row + 1] as usize);
    for child in start..end {
        if child > start {
            out.push(b',');
        }
        write(child, out);
    }
}

fn write_whole(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    time::write_padded(out, value.unsigned_abs(), 1);
}

fn write_decimal(out: &mut Vec<u8>, unscaled: i128, scale: u32) {
    if unscaled < 0 {
        out.push(b'-');
    }
    let one = 10u128.pow(scale);
    let size = unscaled.unsigned_abs();
    write_wide(out, size / one, 1);
    if scale > 0 {
        out.push(b'.');
        write_wide(out, size % one, scale as usize);
    }
}

/// Writes up to 38 digits, with leading zeros up to `width`.
fn write_wide(out: &mut Vec<u8>, n: u128, width: usize) {
    const SPLIT: u128 = 10u128.pow(19);
    match width > 19 || n >= SPLIT {
        true => {
            time::write_padded(out, (n / SPLIT) as u64, width.saturating_sub(19).max(1));
            time::write_padded(out, (n % SPLIT) as u64, 19);
        }
        false => time::write_padded(out, n as u64, width),
    }
}

/// Lays out a float as Java does. `shortest` is its shortest digits, `d.ddde-n`, as the standard
/// library writes them for the float's own width.
fn write_float(out: &mut Vec<u8>, value: f64, shortest: std::fmt::Arguments<'_>) {
    if !value.is_finite() {
        out.extend_from_slice(match value {
            f64::INFINITY => b"\"Infinity\"",
            f64::NEG_INFINITY => b"\"-Infinity\"",
            _ => b"\"NaN\"",
        });
        return;
    }
    // 17 digits, sign, point, and an exponent of at most five bytes.
    let mut buffer = [0u8; 32];
    let mut rest = &mut buffer[..];
    let written = rest.write_fmt(shortest);
    debug_assert!(written.is_ok());
    let len = 32 - rest.len();
    let (mantissa, exponent) = split_exponent(&buffer[..len]);
    let (sign, mantissa) = mantissa.split_at(usize::from(value.is_sign_negative()));
    out.extend_from_slice(sign);
    let mut digits = [b'0'; 24];
    let mut count = 0;
    for &digit in mantissa.iter().filter(|&&c| c != b'.') {
        digits[count] = digit;
        count += 1;
    }
    match exponent {
        // 123.45: the point falls into the digits, or behind them and zeros.
        0..7 => {
            let whole = exponent as usize + 1;
            out.extend_from_slice(&digits[..whole]);
            out.push(b'.');
            out.extend_from_slice(&digits[whole..count.max(whole + 1)]);
        }
        -3..0 => {
            out.extend_from_slice(&b"0.00"[..1 + exponent.unsigned_abs() as usize]);
            out.extend_from_slice(&digits[..count]);
        }
        _ => {
            out.push(digits[0]);
            out.push(b'.');
            out.extend_from_slice(&digits[1..count.max(2)]);
            out.push(b'E');
            write_whole(out, exponent);
        }
    }
}

fn split_exponent(shortest: &[u8]) -> (&[u8], i64) {
    let e = shortest.iter().position(|&c| c == b'e').unwrap_or(shortest.len());
    let (negative, digits) = match shortest.get(e + 1..) {
        Some([b'-', digits @ ..]) => (true, digits),
        Some(digits) => (false, digits),
        None => (false, &[][..]),
    };
    let size = digits.iter().fold(0, |n, d| n * 10 + i64::from(d - b'0'));
    (&shortest[..e], if negative { -size } else { size })
}
