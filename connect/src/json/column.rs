//! Columns being filled, and what a JSON value is worth to each type.
//!
//! | type | from |
//! |---|---|
//! | TINYINT, SMALLINT | whole numbers; text of one, trimmed |
//! | INT, BIGINT | numbers, a fraction cut off; text of a whole number, trimmed |
//! | FLOAT, DOUBLE | numbers and text of one: the nearest, too large is ±Infinity; text `NaN` |
//! | DECIMAL(p, s) | numbers and text of one, rounded half up; NULL when too large for p |
//! | BOOLEAN | `true` and `false`; text, trimmed: is it "true" in any case?; numbers: false |
//! | STRING | text; the source text of anything else, objects and arrays without white space |
//! | BYTES | text in base64 |
//! | DATE, TIME, TIMESTAMP, TIMESTAMP_LTZ | text, see `time.rs` |
//! | ARRAY, ROW, MAP | array, object, object; a map keeps the last of repeated names |
//!
//! # Invariant
//! Between messages every column of the root has as many entries as there are rows, and every child
//! as many as its parent says. A value that fails may leave children longer; [`Columns::truncate`]
//! on the root restores the invariant.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{BooleanBufferBuilder, NullBufferBuilder};
use arrow::datatypes::{DataType, Field, FieldRef, TimeUnit};

use super::fields::Fields;
use super::scan::{self, Kind, Value};
use super::time::{self, Form, LastDate, Ticks};
use super::{Fault, JsonOptions, Reason, UnsupportedType, number, text};

/// All columns, nested ones too; the first is the ROW of the whole message.
#[derive(Debug)]
pub(super) struct Columns {
    pub(super) all: Vec<Column>,
    fail_on_missing: bool,
    unescaped: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Column {
    pub(super) path: Arc<str>,
    pub(super) field: FieldRef,
    pub(super) nulls: NullBufferBuilder,
    pub(super) data: Data,
}

/// The values of a column; a NULL has an entry here too.
#[derive(Debug)]
pub(super) enum Data {
    Boolean(BooleanBufferBuilder),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal { values: Vec<i128>, precision: u8, scale: i8 },
    Date(Vec<i32>),
    Time(Vec<i32>),
    Timestamp { values: Vec<i64>, form: Form, last: LastDate },
    Text(Bytes),
    Binary(Bytes),
    List { offsets: Vec<i32>, item: usize },
    Map { offsets: Vec<i32>, keys: Bytes, values: usize, entries: Vec<(Value, Value)> },
    Row(Fields),
}

/// Byte strings, end to end.
#[derive(Debug)]
pub(super) struct Bytes {
    pub(super) offsets: Vec<i32>,
    pub(super) bytes: Vec<u8>,
}

impl Bytes {
    fn new() -> Self {
        Self { offsets: vec![0], bytes: Vec::new() }
    }

    /// Ends the entry whose bytes were appended since the last one.
    #[inline]
    pub(super) fn end(&mut self) -> Result<(), Reason> {
        self.offsets.push(offset(self.bytes.len())?);
        Ok(())
    }

    #[inline]
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), Reason> {
        self.bytes.extend_from_slice(bytes);
        self.end()
    }

    fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len + 1);
        self.bytes.truncate(last(&self.offsets));
    }
}

#[inline]
fn offset(len: usize) -> Result<i32, Reason> {
    i32::try_from(len).map_err(|_| Reason::BatchFull)
}

/// Where the entries so far end. Offsets begin with a zero and never fall.
pub(super) fn last(offsets: &[i32]) -> usize {
    offsets.last().copied().unwrap_or_default() as usize
}

impl Columns {
    pub(super) fn new(
        schema: &arrow::datatypes::Schema,
        options: &JsonOptions,
    ) -> Result<Self, UnsupportedType> {
        let mut columns =
            Self { all: vec![], fail_on_missing: options.fail_on_missing, unescaped: vec![] };
        let root = Field::new("", DataType::Struct(schema.fields().clone()), false);
        columns.add(&Arc::new(root), "", options)?;
        Ok(columns)
    }

    fn add(
        &mut self,
        field: &FieldRef,
        path: &str,
        options: &JsonOptions,
    ) -> Result<usize, UnsupportedType> {
        let id = self.all.len();
        let nulls = NullBufferBuilder::new(0);
        // The children come behind, so the place is taken first.
        let data = Data::Boolean(BooleanBufferBuilder::new(0));
        self.all.push(Column { path: path.into(), field: field.clone(), nulls, data });
        self.all[id].data = self.data(field, path, options)?;
        Ok(id)
    }

    fn data(
        &mut self,
        field: &FieldRef,
        path: &str,
        options: &JsonOptions,
    ) -> Result<Data, UnsupportedType> {
        let standard = options.timestamp_standard;
        Ok(match field.data_type() {
            DataType::Boolean => Data::Boolean(BooleanBufferBuilder::new(0)),
            DataType::Int8 => Data::Int8(vec![]),
            DataType::Int16 => Data::Int16(vec![]),
            DataType::Int32 => Data::Int32(vec![]),
            DataType::Int64 => Data::Int64(vec![]),
            DataType::Float32 => Data::Float32(vec![]),
            DataType::Float64 => Data::Float64(vec![]),
            &DataType::Decimal128(precision, scale) if decimal_fits(precision, scale) => {
                Data::Decimal { values: vec![], precision, scale }
            }
            DataType::Date32 => Data::Date(vec![]),
            DataType::Time32(TimeUnit::Millisecond) => Data::Time(vec![]),
            DataType::Utf8 => Data::Text(Bytes::new()),
            DataType::Binary => Data::Binary(Bytes::new()),
            DataType::List(item) => {
                Data::List { offsets: vec![0], item: self.add(item, path, options)? }
            }
            // Only the root may have no fields: a query may want to know just that there is a row.
            DataType::Struct(children) if !children.is_empty() || self.all.len() == 1 => {
                let mut fields = Fields::default();
                for (i, child) in children.iter().enumerate() {
                    let path = dotted(path, child.name());
                    if children[..i].iter().any(|c| c.name() == child.name()) {
                        return Err(UnsupportedType::Repeated { column: path });
                    }
                    fields.add(child.name(), self.add(child, &path, options)?);
                }
                Data::Row(fields)
            }
            other => {
                if let Some((ticks, zulu)) = timestamp(other) {
                    let form = Form { standard, zulu, ticks };
                    return Ok(Data::Timestamp { values: vec![], form, last: LastDate::default() });
                }
                let Some(values) = map_values(other) else {
                    let (column, data_type) = (path.to_owned(), other.clone());
                    return Err(UnsupportedType::Type { column, data_type });
                };
                let values = self.add(values, path, options)?;
                Data::Map { offsets: vec![0], keys: Bytes::new(), values, entries: vec![] }
            }
        })
    }

    /// Appends a well-formed value to a column.
    pub(super) fn append(&mut self, id: usize, b: &[u8], value: Value) -> Result<(), Fault> {
        let at = value.start;
        let column = &mut self.all[id];
        if column.append_fast(b, at).is_some() {
            return Ok(());
        }
        if value.kind == Kind::Null {
            return match column.field.is_nullable() {
                true => self.append_null(id),
                false => Err(Reason::NotNull),
            }
            .map_err(|reason| Fault::new(at, reason).within(id));
        }
        let appended = match &mut column.data {
            Data::Row(_) if value.kind == Kind::Object => return self.row(id, b, at),
            Data::List { .. } if value.kind == Kind::Array => return self.list(id, b, at),
            Data::Map { .. } if value.kind == Kind::Object => return self.map(id, b, at),
            Data::Text(out) => string(out, b, value).map(|()| true),
            _ => column.convert(b, value, &mut self.unescaped),
        };
        match appended {
            Ok(valid) if valid || column.field.is_nullable() => {
                column.nulls.append(valid);
                Ok(())
            }
            Ok(_) => Err(Fault::new(at, Reason::NotNull).within(id)),
            Err(reason) => Err(Fault::new(at, reason).within(id)),
        }
    }

    /// Appends what a missing field is worth.
    pub(super) fn append_missing(&mut self, id: usize, at: usize) -> Result<(), Fault> {
        let fault = match self.all[id].field.is_nullable() {
            _ if self.fail_on_missing => Err(Reason::Missing),
            true => self.append_null(id),
            false => Err(Reason::NotNull),
        };
        fault.map_err(|reason| Fault::new(at, reason).within(id))
    }

    /// Appends a NULL, also to the fields of a ROW: below a NULL they may be NULL whatever they
    /// say.
    pub(super) fn append_null(&mut self, id: usize) -> Result<(), Reason> {
        let column = &mut self.all[id];
        column.nulls.append_null();
        match &mut column.data {
            Data::Boolean(values) => values.append(false),
            Data::Int8(values) => values.push(0),
            Data::Int16(values) => values.push(0),
            Data::Int32(values) | Data::Date(values) | Data::Time(values) => values.push(0),
            Data::Int64(values) | Data::Timestamp { values, .. } => values.push(0),
            Data::Float32(values) => values.push(0.0),
            Data::Float64(values) => values.push(0.0),
            Data::Decimal { values, .. } => values.push(0),
            Data::Text(values) | Data::Binary(values) => values.end()?,
            Data::List { offsets, .. } | Data::Map { offsets, .. } => {
                offsets.push(last(offsets) as i32);
            }
            Data::Row(fields) => {
                for i in 0..fields.columns.len() {
                    self.append_null(self.child(id, i))?;
                }
            }
        }
        Ok(())
    }

    fn child(&self, id: usize, i: usize) -> usize {
        match &self.all[id].data {
            Data::Row(fields) => fields.columns[i],
            _ => unreachable!("only a ROW has fields"),
        }
    }

    /// Takes the fields out of a ROW, to have them beside the other columns. They must come back.
    pub(super) fn take_fields(&mut self, id: usize) -> Fields {
        match &mut self.all[id].data {
            Data::Row(fields) => std::mem::take(fields),
            _ => unreachable!("only a ROW has fields"),
        }
    }

    pub(super) fn put_fields(&mut self, id: usize, fields: Fields) {
        self.all[id].data = Data::Row(fields);
    }

    fn row(&mut self, id: usize, b: &[u8], open: usize) -> Result<(), Fault> {
        let mut fields = self.take_fields(id);
        // The depth was checked when the message was scanned as a whole.
        let filled = fields.locate(b, open, 0).and_then(|_| self.fill(&fields, b, open));
        self.put_fields(id, fields);
        self.all[id].nulls.append_non_null();
        filled
    }

    /// Appends to each field's column the value that was located for it.
    pub(super) fn fill(&mut self, fields: &Fields, b: &[u8], at: usize) -> Result<(), Fault> {
        for (&id, found) in fields.columns.iter().zip(&fields.found) {
            match *found {
                Some(value) => self.append(id, b, value)?,
                None => self.append_missing(id, at)?,
            }
        }
        Ok(())
    }

    fn list(&mut self, id: usize, b: &[u8], open: usize) -> Result<(), Fault> {
        let &Data::List { item, .. } = &self.all[id].data else { return Ok(()) };
        let mut pos = scan::space(b, open + 1);
        while b.get(pos) != Some(&b']') {
            let value = scan::value(b, pos, 0)?;
            self.append(item, b, value)?;
            pos = scan::space(b, value.end);
            if b.get(pos) == Some(&b',') {
                pos = scan::space(b, pos + 1);
            }
        }
        let end = offset(self.all[item].nulls.len());
        let column = &mut self.all[id];
        if let Data::List { offsets, .. } = &mut column.data {
            offsets.push(end.map_err(|reason| Fault::new(open, reason).within(id))?);
        }
        column.nulls.append_non_null();
        Ok(())
    }

    fn map(&mut self, id: usize, b: &[u8], open: usize) -> Result<(), Fault> {
        let Data::Map { keys, values, entries, .. } = &mut self.all[id].data else { return Ok(()) };
        let (values, mut entries) = (*values, std::mem::take(entries));
        let full = |reason| Fault::new(open, reason).within(id);
        collect_entries(b, open, &mut entries)?;
        for (key, _) in &entries {
            append_characters(b, *key, &mut keys.bytes);
            keys.end().map_err(full)?;
        }
        for (_, value) in &entries {
            self.append(values, b, *value)?;
        }
        entries.clear();
        let end = offset(self.all[values].nulls.len()).map_err(full)?;
        let column = &mut self.all[id];
        if let Data::Map { offsets, entries: room, .. } = &mut column.data {
            offsets.push(end);
            *room = entries;
        }
        column.nulls.append_non_null();
        Ok(())
    }

    /// Cuts a column and all below it back to `len` entries.
    pub(super) fn truncate(&mut self, id: usize, len: usize) {
        let column = &mut self.all[id];
        column.nulls.truncate(len);
        match &mut column.data {
            Data::Boolean(values) => values.truncate(len),
            Data::Int8(values) => values.truncate(len),
            Data::Int16(values) => values.truncate(len),
            Data::Int32(values) | Data::Date(values) | Data::Time(values) => values.truncate(len),
            Data::Int64(values) | Data::Timestamp { values, .. } => values.truncate(len),
            Data::Float32(values) => values.truncate(len),
            Data::Float64(values) => values.truncate(len),
            Data::Decimal { values, .. } => values.truncate(len),
            Data::Text(values) | Data::Binary(values) => values.truncate(len),
            Data::List { offsets, item } => {
                offsets.truncate(len + 1);
                let (item, len) = (*item, last(offsets));
                self.truncate(item, len);
            }
            Data::Map { offsets, keys, values, .. } => {
                offsets.truncate(len + 1);
                let (values, len) = (*values, last(offsets));
                keys.truncate(len);
                self.truncate(values, len);
            }
            Data::Row(fields) => {
                for i in 0..fields.columns.len() {
                    self.truncate(self.child(id, i), len);
                }
            }
        }
    }

    /// Bytes that the entries of all columns take, without room kept for more.
    pub(super) fn bytes(&self) -> usize {
        self.all.iter().map(Column::bytes).sum()
    }
}

impl Column {
    /// Appends a value of the usual shape for its column and returns its end. None is no verdict,
    /// and then nothing is appended; a verdict is the one the table at the top would come to.
    #[inline]
    pub(super) fn append_fast(&mut self, b: &[u8], pos: usize) -> Option<usize> {
        let end = match &mut self.data {
            Data::Float64(values) => {
                let (value, end) = number::double_fast(b, pos)?;
                values.push(value);
                end
            }
            Data::Int64(values) => {
                let (value, end) = number::whole_fast(b, pos)?;
                values.push(value);
                end
            }
            Data::Int32(values) => {
                let (value, end) = number::whole_fast(b, pos)?;
                values.push(i32::try_from(value).ok()?);
                end
            }
            Data::Timestamp { values, form, last } => {
                let (value, end) = form.parse_fast(b, pos, last)?;
                values.push(value);
                end
            }
            Data::Text(values) => {
                if b.get(pos) != Some(&b'"') {
                    return None;
                }
                let end = scan::plain(b, pos + 1, scan::BEYOND_ASCII);
                if b.get(end) != Some(&b'"') || values.bytes.len() + (end - pos) > i32::MAX as usize
                {
                    return None;
                }
                values.push(&b[pos + 1..end]).ok()?;
                end + 1
            }
            _ => return None,
        };
        self.nulls.append_non_null();
        Some(end)
    }

    fn bytes(&self) -> usize {
        let width = match &self.data {
            Data::Boolean(_) | Data::Row(_) => 1,
            Data::Int8(_) => 1,
            Data::Int16(_) => 2,
            Data::Int32(_) | Data::Float32(_) | Data::Date(_) | Data::Time(_) => 4,
            Data::Int64(_) | Data::Float64(_) | Data::Timestamp { .. } => 8,
            Data::Decimal { .. } => 16,
            Data::Text(values) | Data::Binary(values) => {
                return values.bytes.len() + 4 * values.offsets.len();
            }
            Data::List { .. } => 4,
            Data::Map { keys, .. } => {
                return keys.bytes.len() + 4 * keys.offsets.len() + 4 * self.nulls.len();
            }
        };
        width * self.nulls.len()
    }

    /// Appends a scalar; false stands for NULL, which has its entry then.
    pub(super) fn convert(
        &mut self,
        b: &[u8],
        value: Value,
        spare: &mut Vec<u8>,
    ) -> Result<bool, Reason> {
        let expected = Reason::Expected(self.data.expects());
        let source = match value.kind {
            Kind::Number => value.source(b),
            Kind::Plain => value.inner(b),
            Kind::Escaped => {
                spare.clear();
                text::unescape(value.inner(b), spare);
                spare
            }
            Kind::True | Kind::False => {
                let Data::Boolean(values) = &mut self.data else { return Err(expected) };
                values.append(value.kind == Kind::True);
                return Ok(true);
            }
            Kind::Null | Kind::Object | Kind::Array => return Err(expected),
        };
        let is_number = value.kind == Kind::Number;
        match (&mut self.data, is_number) {
            (Data::Boolean(values), true) => values.append(false),
            (Data::Boolean(values), false) => {
                values.append(number::trim(source).eq_ignore_ascii_case(b"true"));
            }
            (Data::Float32(values), _) => values.push(float(source, is_number).ok_or(expected)?),
            (Data::Float64(values), _) => values.push(float(source, is_number).ok_or(expected)?),
            (Data::Decimal { values, precision, scale }, _) => {
                let source = number::trim(source);
                let fitted = number::decimal(source, *precision, *scale).ok_or(expected)?;
                let number::Decimal::Fits(unscaled) = fitted else {
                    values.push(0);
                    return Ok(false);
                };
                values.push(unscaled);
            }
            (Data::Binary(values), false) => {
                if !text::decode_base64(source, &mut values.bytes) {
                    return Err(expected);
                }
                values.end()?;
            }
            (Data::Date(values), false) => {
                let day = time::date(source).and_then(|day| i32::try_from(day).ok());
                values.push(day.ok_or(expected)?);
            }
            (Data::Time(values), false) => values.push(time::time(source).ok_or(expected)?),
            (Data::Timestamp { values, form, .. }, false) => {
                values.push(form.parse(source).ok_or(expected)?);
            }
            (data, _) => data.push_whole(source, is_number).ok_or(expected)?,
        }
        Ok(true)
    }
}

impl Data {
    /// What a column takes, for the reader of an error.
    fn expects(&self) -> &'static str {
        use super::TimestampStandard::{Iso8601, Sql};
        match self {
            Data::Boolean(_) => "true or false (BOOLEAN)",
            Data::Int8(_) => "a whole number from -128 to 127 (TINYINT)",
            Data::Int16(_) => "a whole number from -32768 to 32767 (SMALLINT)",
            Data::Int32(_) => "a number from -2147483648 to 2147483647 (INT)",
            Data::Int64(_) => "a number within 64 bits (BIGINT)",
            Data::Float32(_) => "a number (FLOAT)",
            Data::Float64(_) => "a number (DOUBLE)",
            Data::Decimal { .. } => "a number (DECIMAL)",
            Data::Date(_) => "text like 2024-03-10 (DATE)",
            Data::Time(_) => "text like 07:08:09 (TIME)",
            Data::Timestamp { form, .. } => match (form.standard, form.zulu) {
                (Sql, false) => "text like 2024-03-10 07:08:09.123 (TIMESTAMP, standard SQL)",
                (Sql, true) => "text like 2024-03-10 07:08:09.123Z (TIMESTAMP_LTZ, standard SQL)",
                (Iso8601, false) => "text like 2024-03-10T07:08:09.123 (TIMESTAMP, ISO-8601)",
                (Iso8601, true) => "text like 2024-03-10T07:08:09.123Z (TIMESTAMP_LTZ, ISO-8601)",
            },
            Data::Text(_) => "text (STRING)",
            Data::Binary(_) => "text in base64 (BYTES)",
            Data::List { .. } => "an array (ARRAY)",
            Data::Map { .. } => "an object (MAP)",
            Data::Row(_) => "an object (ROW)",
        }
    }

    /// Appends to a column of whole numbers; None where the value does not fit, or the column.
    fn push_whole(&mut self, source: &[u8], is_number: bool) -> Option<()> {
        let trimmed = number::trim(source);
        // Flink cuts fractions off for INT and BIGINT only.
        let wide = |min, max| match is_number {
            true => number::whole_from_number(trimmed, min, max),
            false => number::whole_from_text(trimmed, min, max),
        };
        let narrow = |min, max| number::whole_from_text(trimmed, min, max);
        match self {
            Data::Int8(values) => values.push(narrow(i8::MIN.into(), i8::MAX.into())? as i8),
            Data::Int16(values) => values.push(narrow(i16::MIN.into(), i16::MAX.into())? as i16),
            Data::Int32(values) => values.push(wide(i32::MIN.into(), i32::MAX.into())? as i32),
            Data::Int64(values) => values.push(wide(i64::MIN, i64::MAX)?),
            _ => return None,
        }
        Some(())
    }
}

fn float<F: std::str::FromStr>(source: &[u8], is_number: bool) -> Option<F> {
    match is_number {
        true => number::float_from_number(source),
        false => number::float_from_text(number::trim(source)),
    }
}

/// The STRING of a value that is not null.
fn string(out: &mut Bytes, b: &[u8], value: Value) -> Result<(), Reason> {
    match value.kind {
        Kind::Plain | Kind::Escaped => append_characters(b, value, &mut out.bytes),
        Kind::Object | Kind::Array => {
            text::compact(b, value.start, &mut out.bytes);
        }
        _ => out.bytes.extend_from_slice(value.source(b)),
    }
    out.end()
}

fn append_characters(b: &[u8], value: Value, out: &mut Vec<u8>) {
    match value.kind {
        Kind::Escaped => text::unescape(value.inner(b), out),
        _ => out.extend_from_slice(value.inner(b)),
    }
}

/// The names and values of the object at `open`: of a repeated name the last value, in the place of
/// the first.
fn collect_entries(b: &[u8], open: usize, entries: &mut Vec<(Value, Value)>) -> Result<(), Fault> {
    let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
    entries.clear();
    let mut pos = scan::space(b, open + 1);
    while b.get(pos) != Some(&b'}') {
        let (name, at) = scan::name(b, pos)?;
        let value = scan::value(b, at, 0)?;
        let mut characters = Vec::with_capacity(name.end - name.start);
        append_characters(b, name, &mut characters);
        let place = *places.entry(characters).or_insert(entries.len());
        match entries.get_mut(place) {
            Some(entry) => entry.1 = value,
            None => entries.push((name, value)),
        }
        pos = scan::space(b, value.end);
        if b.get(pos) == Some(&b',') {
            pos = scan::space(b, pos + 1);
        }
    }
    Ok(())
}

fn dotted(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn decimal_fits(precision: u8, scale: i8) -> bool {
    (1..=38).contains(&precision) && scale >= 0 && scale as u8 <= precision
}

/// TIMESTAMP and TIMESTAMP_LTZ: their ticks, and whether they are in UTC.
pub(super) fn timestamp(data_type: &DataType) -> Option<(Ticks, bool)> {
    let DataType::Timestamp(unit, zone) = data_type else { return None };
    let ticks = match unit {
        TimeUnit::Second => return None,
        TimeUnit::Millisecond => Ticks(1_000),
        TimeUnit::Microsecond => Ticks(1_000_000),
        TimeUnit::Nanosecond => Ticks(1_000_000_000),
    };
    match zone.as_deref() {
        None => Some((ticks, false)),
        Some("UTC") => Some((ticks, true)),
        Some(_) => None,
    }
}

/// The field of the values of a MAP from STRING.
pub(super) fn map_values(data_type: &DataType) -> Option<&FieldRef> {
    let DataType::Map(entries, _) = data_type else { return None };
    let DataType::Struct(pair) = entries.data_type() else { return None };
    match pair.as_ref() {
        [key, value] if *key.data_type() == DataType::Utf8 => Some(value),
        _ => None,
    }
}
