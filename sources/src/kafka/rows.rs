//! Messages of one partition, gathered into chunks.
//!
//! # Invariant
//! The decoder, `arrivals`, `keys`, `headers` and the offsets have one entry for each good row;
//! what could refuse a message is checked before any of them takes it.

use arrow::array::{
    Array, ArrayBuilder, ArrayRef, BinaryBuilder, Int32Array, Int64Array, MapArray, RecordBatch,
    RecordBatchOptions, StringArray, StringBuilder, StructArray, TimestampMillisecondArray,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use rdkafka::Message;
use rdkafka::message::{BorrowedMessage, Headers};
use std::sync::Arc;
use std::time::Instant;
use weir_connect::json::{JsonDecoder, JsonOptions, Pushed, UnsupportedType};
use weir_connect::options::did_you_mean;
use weir_engine::connector::{ColumnSpec, ConnectorError, TableSpec};
use weir_engine::source::{BadRow, Chunk, Offsets};

use super::Topic;

/// Stands for the time of a message that has none: the guard lets it pass.
const ARRIVAL_UNKNOWN: i64 = i64::MAX;

/// MAP<STRING, BYTES>.
pub(super) fn headers_type() -> DataType {
    let pair = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Binary, true),
    ]);
    let entries = Field::new("entries", DataType::Struct(pair), false);
    DataType::Map(Arc::new(entries), false)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Value(usize),
    Partition,
    Offset,
    Timestamp,
    Topic,
    Key,
    Headers,
}

/// How a table's columns come about.
pub(super) struct Columns {
    declared: Vec<ColumnSpec>,
    parts: Vec<Part>,
    decoded: SchemaRef,
    keyed: Vec<String>,
}

impl Columns {
    /// Plans the columns of a table.
    ///
    /// # Errors
    /// What is wrong with them, to be read after "table … ".
    pub(super) fn of(table: &TableSpec) -> Result<Columns, Vec<String>> {
        let (mut parts, mut fields, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        for column in &table.columns {
            match &column.metadata {
                Some(key) => match metadata_part(column, key) {
                    Ok(part) => parts.push(part),
                    Err(what) => wrong.push(what),
                },
                None => {
                    let data_type = column.data_type.clone();
                    fields.push(Field::new(&column.name, data_type, column.nullable));
                    parts.push(Part::Value(fields.len() - 1));
                }
            }
        }
        if !wrong.is_empty() {
            return Err(wrong);
        }
        let decoded = Arc::new(Schema::new(fields));
        let keyed = table.keyed.clone();
        Ok(Columns { declared: table.columns.clone(), parts, decoded, keyed })
    }

    pub(super) fn decoder(&self, json: JsonOptions) -> Result<JsonDecoder, UnsupportedType> {
        let decoder = JsonDecoder::new(self.decoded.clone(), json)?;
        Ok(decoder.with_dictionaries(&self.keyed))
    }

    fn has(&self, part: Part) -> bool {
        self.parts.contains(&part)
    }
}

fn metadata_part(column: &ColumnSpec, key: &str) -> Result<Part, String> {
    use DataType::{Binary, Int32, Int64, Map, Timestamp, Utf8};
    let (name, data_type) = (&column.name, &column.data_type);
    let number = matches!(data_type, Int32 | Int64);
    let time = matches!(data_type, Timestamp(..));
    let (part, fits, wants) = match key {
        "partition" | "split" => (Part::Partition, number || *data_type == Utf8, "INT or BIGINT"),
        "offset" => (Part::Offset, *data_type == Int64, "BIGINT"),
        "timestamp" | "arrival" => (Part::Timestamp, time, "TIMESTAMP_LTZ(3) or TIMESTAMP(3)"),
        "topic" => (Part::Topic, *data_type == Utf8, "STRING"),
        "key" => (Part::Key, matches!(data_type, Utf8 | Binary), "BYTES or STRING"),
        "headers" => {
            let pair = |pair: &DataType| match pair {
                DataType::Struct(f) => {
                    f.len() == 2 && f[0].data_type() == &Utf8 && f[1].data_type() == &Binary
                }
                _ => false,
            };
            let fits = matches!(data_type, Map(entries, _) if pair(entries.data_type()));
            (Part::Headers, fits, "MAP<STRING, BYTES>")
        }
        other => {
            let known = super::metadata();
            let keys: Vec<&str> = known.iter().map(|(key, _)| *key).collect();
            let meant = did_you_mean(other, keys.iter().copied());
            let meant = meant.map(|key| format!("; did you mean '{key}'?")).unwrap_or_default();
            return Err(format!(
                "has a column `{name}` from the metadata '{other}', but kafka has {}{meant}",
                keys.join(", ")
            ));
        }
    };
    if fits {
        return Ok(part);
    }
    Err(format!("has a column `{name}` from the metadata '{key}', which must be {wants}"))
}

enum Keys {
    Bytes(BinaryBuilder),
    Text(StringBuilder),
}

struct HeaderRows {
    ends: Vec<i32>,
    keys: StringBuilder,
    values: BinaryBuilder,
}

impl Default for HeaderRows {
    fn default() -> HeaderRows {
        let (keys, values) = (StringBuilder::new(), BinaryBuilder::new());
        HeaderRows { ends: vec![0], keys, values }
    }
}

/// Messages of one partition on their way into a chunk.
pub(super) struct Gathering {
    columns: Arc<Columns>,
    topic: Arc<Topic>,
    partition: i32,
    decoder: JsonDecoder,
    first: u64,
    /// Offsets of the rows, once they are not consecutive.
    each: Option<Vec<u64>>,
    arrivals: Vec<i64>,
    keys: Vec<Keys>,
    headers: Option<HeaderRows>,
    bad: Vec<BadRow>,
    bad_bytes: usize,
    next: u64,
    /// What has been told of already.
    told: u64,
    since: Option<Instant>,
}

impl Gathering {
    /// Nothing yet, of messages from `start` on.
    pub(super) fn of(
        topic: &Arc<Topic>,
        columns: &Arc<Columns>,
        partition: i32,
        start: u64,
    ) -> Result<Gathering, ConnectorError> {
        let decoder = columns.decoder(topic.json);
        Ok(Gathering {
            decoder: decoder.map_err(|e| ConnectorError::fatal(e.to_string()))?,
            columns: columns.clone(),
            topic: topic.clone(),
            partition,
            first: start,
            each: None,
            arrivals: Vec::new(),
            keys: keys(columns),
            headers: columns.has(Part::Headers).then(HeaderRows::default),
            bad: Vec::new(),
            bad_bytes: 0,
            next: start,
            told: start,
            since: None,
        })
    }

    /// The offset that follows all that was taken.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Reading goes on from `offset`, because what was before it is lost.
    pub(super) fn skip_to(&mut self, offset: u64) {
        self.next = self.next.max(offset);
    }

    /// Good rows that wait.
    pub(super) fn rows(&self) -> usize {
        self.decoder.rows()
    }

    /// Roughly the bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.decoder.bytes() + self.bad_bytes
    }

    /// When the oldest of what waits came.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Takes a message.
    ///
    /// # Errors
    /// One that cannot be read, with `json.fail-on-error`.
    pub(super) fn take(
        &mut self,
        message: &BorrowedMessage<'_>,
        now: Instant,
    ) -> Result<(), ConnectorError> {
        let offset = message.offset().max(0).cast_unsigned();
        if offset < self.next {
            // A message again, after a seek or a reconnect: it has been taken.
            return Ok(());
        }
        self.next = offset + 1;
        self.since.get_or_insert(now);
        // Without a payload it deletes a key: no row of an appending table.
        let Some(payload) = message.payload() else { return Ok(()) };
        let arrival = message.timestamp().to_millis();
        let text_key = self.keys.iter().any(|keys| matches!(keys, Keys::Text(_)));
        if text_key && std::str::from_utf8(message.key().unwrap_or_default()).is_err() {
            return self.refuse(offset, arrival, payload, "the message's key is not UTF-8");
        }
        let rows = self.decoder.rows();
        match self.decoder.push(payload) {
            Ok(Pushed::Row) => {}
            Ok(Pushed::Skipped) => return Ok(()),
            Err(error) => return self.refuse(offset, arrival, payload, &error.to_string()),
        }
        if rows == 0 {
            self.first = offset;
        }
        let expected = self.first + rows as u64;
        if self.each.is_none() && offset != expected {
            self.each = Some((self.first..expected).collect());
        }
        if let Some(each) = &mut self.each {
            each.push(offset);
        }
        self.arrivals.push(arrival.unwrap_or(ARRIVAL_UNKNOWN));
        self.take_metadata(message);
        Ok(())
    }

    fn take_metadata(&mut self, message: &BorrowedMessage<'_>) {
        for keys in &mut self.keys {
            match keys {
                Keys::Bytes(keys) => keys.append_option(message.key()),
                Keys::Text(keys) => {
                    keys.append_option(message.key().and_then(|k| std::str::from_utf8(k).ok()));
                }
            }
        }
        if let Some(headers) = &mut self.headers {
            for header in message.headers().iter().flat_map(|headers| headers.iter()) {
                headers.keys.append_value(header.key);
                headers.values.append_option(header.value);
            }
            headers.ends.push(i32::try_from(headers.keys.len()).unwrap_or(i32::MAX));
        }
    }

    fn refuse(
        &mut self,
        offset: u64,
        arrival: Option<i64>,
        payload: &[u8],
        why: &str,
    ) -> Result<(), ConnectorError> {
        if self.topic.fail_on_error {
            let (topic, table, partition) = (&self.topic.name, &self.topic.table, self.partition);
            return Err(ConnectorError::fatal(format!(
                "topic `{topic}`, partition {partition}, offset {offset}: {why} (table `{table}`)"
            ))
            .hint("without 'json.fail-on-error' such messages are counted"));
        }
        self.bad_bytes += payload.len();
        let payload = payload.to_vec();
        self.bad.push(BadRow { offset, arrival, payload, reason: why.to_owned() });
        Ok(())
    }

    /// All that waits as a chunk; `None` if nothing has come since the last one.
    pub(super) fn chunk(&mut self) -> Option<Chunk> {
        self.since = None;
        if self.next == self.told {
            return None;
        }
        self.told = self.next;
        let offsets = match self.each.take() {
            Some(each) => Offsets::Each(each.into()),
            None => Offsets::From(self.first),
        };
        let arrivals: ScalarBuffer<i64> = std::mem::take(&mut self.arrivals).into();
        self.bad_bytes = 0;
        let values = self.decoder.finish();
        Some(Chunk {
            rows: self.batch(&values, &offsets, &arrivals),
            diffs: None,
            offsets,
            arrivals: Some(arrivals),
            bad: std::mem::take(&mut self.bad),
            next_offset: self.next,
            split_column: None,
        })
    }

    fn batch(
        &mut self,
        values: &RecordBatch,
        offsets: &Offsets,
        arrivals: &ScalarBuffer<i64>,
    ) -> RecordBatch {
        let rows = values.num_rows();
        let mut taken_keys = std::mem::replace(&mut self.keys, keys(&self.columns)).into_iter();
        let mut headers = self.headers.as_mut().map(std::mem::take);
        let (mut columns, mut fields) = (Vec::new(), Vec::new());
        for (part, declared) in self.columns.parts.iter().zip(&self.columns.declared) {
            let natural: ArrayRef = match part {
                Part::Value(place) => values.column(*place).clone(),
                Part::Partition => Arc::new(Int32Array::from(vec![self.partition; rows])),
                Part::Offset => Arc::new(Int64Array::from_iter_values(
                    (0..rows).map(|row| offsets.at(row).cast_signed()),
                )),
                Part::Timestamp => {
                    let known = arrivals.iter().map(|&t| (t != ARRIVAL_UNKNOWN).then_some(t));
                    Arc::new(TimestampMillisecondArray::from_iter(known).with_timezone("UTC"))
                }
                Part::Topic => {
                    let names = std::iter::repeat_n(self.topic.name.as_str(), rows);
                    Arc::new(StringArray::from_iter_values(names))
                }
                Part::Key => match taken_keys.next() {
                    Some(Keys::Bytes(mut keys)) => Arc::new(keys.finish()),
                    Some(Keys::Text(mut keys)) => Arc::new(keys.finish()),
                    None => unreachable!("each key column has its builder"),
                },
                Part::Headers => headers_array(headers.take().unwrap_or_default(), declared),
            };
            let column = match part {
                // As the decoder gives it: text may be in a dictionary.
                Part::Value(_) => natural,
                _ => fitted(natural, &declared.data_type),
            };
            let nullable = declared.nullable || column.null_count() > 0;
            fields.push(Field::new(&declared.name, column.data_type().clone(), nullable));
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        match RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options) {
            Ok(batch) => batch,
            Err(error) => unreachable!("columns of one length make a batch: {error}"),
        }
    }
}

/// A builder for each key column.
fn keys(columns: &Columns) -> Vec<Keys> {
    let of_key = columns.parts.iter().zip(&columns.declared).filter(|(p, _)| **p == Part::Key);
    let builder = |(_, declared): (&Part, &ColumnSpec)| match declared.data_type {
        DataType::Utf8 => Keys::Text(StringBuilder::new()),
        _ => Keys::Bytes(BinaryBuilder::new()),
    };
    of_key.map(builder).collect()
}

fn headers_array(mut headers: HeaderRows, declared: &ColumnSpec) -> ArrayRef {
    let DataType::Map(entries, sorted) = &declared.data_type else {
        unreachable!("headers were checked to be a map")
    };
    let DataType::Struct(pair) = entries.data_type() else {
        unreachable!("a map's entries are pairs")
    };
    let columns: Vec<ArrayRef> =
        vec![Arc::new(headers.keys.finish()), Arc::new(headers.values.finish())];
    let pairs = StructArray::new(pair.clone(), columns, None);
    let offsets = OffsetBuffer::new(headers.ends.into());
    Arc::new(MapArray::new(entries.clone(), offsets, pairs, None, *sorted))
}

/// A METADATA column in its declared type, which was checked to fit.
fn fitted(column: ArrayRef, declared: &DataType) -> ArrayRef {
    if column.data_type() == declared {
        return column;
    }
    // From LTZ to a time without zone only the name of the type changes, in whatever unit.
    let column = match declared {
        DataType::Timestamp(_, None) => cast(&column, &DataType::Int64)
            .and_then(|ms| cast(&ms, &DataType::Timestamp(TimeUnit::Millisecond, None))),
        _ => Ok(column),
    };
    match column.and_then(|column| cast(&column, declared)) {
        Ok(column) => column,
        Err(error) => unreachable!("a metadata column does not fit its declared type: {error}"),
    }
}
