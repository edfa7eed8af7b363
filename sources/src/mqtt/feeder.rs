//! The feeding thread of a slot: journal to rows to queue.
//!
//! It follows the journal from its beginning: first what an earlier run left there, then what
//! comes. What waits for the dataflow waits on disk, so memory stays what the queue and one chunk
//! hold.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, RecordBatchOptions, StringBuilder};
use arrow::array::{StringArray, TimestampMillisecondArray};
use arrow::buffer::ScalarBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::error::ArrowError;
use weir_connect::json::{JsonDecoder, JsonOptions, Pushed, UnsupportedType};
use weir_engine::connector::{ColumnSpec, ConnectorError, TableSpec};
use weir_engine::source::{BadRow, Chunk, Offsets, SplitQueue};

use super::receiver::Shared;
use weir_engine::journal::{Kind, Reader, Record};

const CHUNK_ROWS_MAX: usize = 8_192;
const CHUNK_BYTES_MAX: usize = 1 << 20;
const WAIT: Duration = Duration::from_millis(100);

/// Where a column comes from.
#[derive(Clone, Debug)]
enum Origin {
    /// The message: this column of the decoder.
    Message(usize),
    Split,
    Offset,
    Arrival,
    Topic,
}

/// The columns of a table, and which metadata they want.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    schema: SchemaRef,
    decoded: SchemaRef,
    origins: Vec<Origin>,
    keyed: Vec<String>,
}

impl Columns {
    /// The columns of a table; the error says what is wrong with one.
    pub(super) fn of(table: &TableSpec) -> Result<Columns, Vec<String>> {
        let (mut origins, mut physical, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        let schema = table.schema();
        for (n, column) in table.columns.iter().enumerate() {
            match origin(column, physical.len()) {
                Ok(origin) => {
                    if matches!(origin, Origin::Message(_)) {
                        physical.push(n);
                    }
                    origins.push(origin);
                }
                Err(text) => wrong.push(text),
            }
        }
        match schema.project(&physical) {
            Ok(decoded) if wrong.is_empty() => {
                let keyed = table.keyed.clone();
                Ok(Columns { schema, decoded: Arc::new(decoded), origins, keyed })
            }
            Ok(_) => Err(wrong),
            Err(e) => Err(vec![e.to_string()]),
        }
    }

    /// The decoder of the columns that messages carry.
    pub(super) fn decoder(&self, options: JsonOptions) -> Result<JsonDecoder, UnsupportedType> {
        let decoder = JsonDecoder::new(Arc::clone(&self.decoded), options)?;
        Ok(decoder.with_dictionaries(&self.keyed))
    }
}

fn origin(column: &ColumnSpec, message_column: usize) -> Result<Origin, String> {
    use DataType::{Int32, Int64, Timestamp, UInt32, UInt64, Utf8, Utf8View};
    let Some(key) = &column.metadata else { return Ok(Origin::Message(message_column)) };
    let name = &column.name;
    let number = matches!(column.data_type, Int32 | Int64 | UInt32 | UInt64);
    let text = matches!(column.data_type, Utf8 | Utf8View);
    let (origin, fits, wants) = match key.as_str() {
        "split" => (Origin::Split, number || text, "BIGINT, INT or STRING"),
        "offset" => (Origin::Offset, matches!(column.data_type, Int64 | UInt64), "BIGINT"),
        "arrival" => (
            Origin::Arrival,
            matches!(column.data_type, Timestamp(..)),
            "TIMESTAMP or TIMESTAMP_LTZ",
        ),
        "topic" => (Origin::Topic, text, "STRING"),
        other => {
            return Err(format!(
                "column `{name}` wants metadata '{other}'; mqtt has split, offset, arrival, topic"
            ));
        }
    };
    if fits {
        Ok(origin)
    } else {
        Err(format!("column `{name}` holds the metadata '{key}' and has to be {wants}"))
    }
}

/// The feeding end of a slot.
pub(super) struct Feeder {
    pub(super) slot: u64,
    pub(super) reader: Reader,
    pub(super) decoder: JsonDecoder,
    pub(super) columns: Columns,
    pub(super) packet_bytes_max: usize,
    pub(super) queue: Arc<SplitQueue>,
    pub(super) shared: Arc<Shared>,
}

/// What a chunk is made of beside the decoder's rows.
#[derive(Default)]
struct Gathered {
    offsets: Vec<u64>,
    arrivals: Vec<i64>,
    topics: StringBuilder,
    bad: Vec<BadRow>,
    bad_bytes: usize,
}

impl Feeder {
    /// Feeds until somebody asks to stop or the journal cannot be read.
    pub(super) fn run(mut self) {
        while !self.stopped() && !self.reader.is_over() {
            self.queue.lag_rows(self.reader.behind());
            if !self.reader.wait(WAIT) {
                self.queue.at_end(self.shared.quiet.load(Ordering::Relaxed));
                continue;
            }
            self.queue.at_end(false);
            // Only this thread pushes: where there is room, `push` does not wait.
            if !self.queue.wait_room(WAIT) {
                continue;
            }
            match self.chunk() {
                Ok(chunk) => {
                    if !self.queue.push(chunk) {
                        return;
                    }
                }
                Err(error) => {
                    self.queue.fail(error);
                    return;
                }
            }
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || self.queue.is_closed()
    }

    /// The next rows, as many as there are and a chunk holds.
    fn chunk(&mut self) -> Result<Chunk, ConnectorError> {
        let mut gathered = Gathered::default();
        let failed = |e: &dyn std::fmt::Display| {
            ConnectorError::fatal(format!("slot {}: {e}", self.slot))
                .hint("nothing was skipped; mend the file or set it aside, and start again")
        };
        while gathered.offsets.len() + gathered.bad.len() < CHUNK_ROWS_MAX
            && self.decoder.bytes() + gathered.bad_bytes < CHUNK_BYTES_MAX
        {
            match self.reader.read() {
                Ok(Some(record)) => {
                    take(&mut self.decoder, &mut gathered, &record, self.packet_bytes_max);
                }
                Ok(None) => break,
                Err(e) => return Err(failed(&e)),
            }
        }
        let next_offset = self.reader.offset();
        self.assemble(gathered, next_offset)
            .map_err(|e| ConnectorError::fatal(format!("slot {}: {e}", self.slot)))
    }

    fn assemble(&mut self, gathered: Gathered, next_offset: u64) -> Result<Chunk, ArrowError> {
        let Gathered { offsets, arrivals, mut topics, bad, .. } = gathered;
        let decoded = self.decoder.finish();
        let rows = decoded.num_rows();
        let topics: ArrayRef = Arc::new(topics.finish());
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.columns.origins.len());
        let mut fields = Vec::with_capacity(self.columns.origins.len());
        for (origin, field) in self.columns.origins.iter().zip(self.columns.schema.fields()) {
            let column: ArrayRef = match origin {
                Origin::Message(n) => Arc::clone(decoded.column(*n)),
                Origin::Split
                    if matches!(field.data_type(), DataType::Utf8 | DataType::Utf8View) =>
                {
                    Arc::new(StringArray::from(vec![self.slot.to_string(); rows]))
                }
                Origin::Split => Arc::new(Int64Array::from(vec![self.slot as i64; rows])),
                Origin::Offset => {
                    Arc::new(Int64Array::from_iter_values(offsets.iter().map(|o| *o as i64)))
                }
                Origin::Arrival => {
                    let utc = matches!(field.data_type(), DataType::Timestamp(_, Some(_)));
                    let times = TimestampMillisecondArray::from(arrivals.clone());
                    Arc::new(times.with_timezone_opt(utc.then_some("UTC")))
                }
                Origin::Topic => Arc::clone(&topics),
            };
            let column = match origin {
                // As the decoder gives it: text may be in a dictionary.
                Origin::Message(_) => column,
                _ => cast(&column, field.data_type())?,
            };
            let data_type = column.data_type().clone();
            fields.push(field.as_ref().clone().with_data_type(data_type));
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let schema = Arc::new(Schema::new(fields));
        let consecutive = offsets.first().filter(|first| {
            offsets.last().is_some_and(|last| last - *first + 1 == offsets.len() as u64)
        });
        Ok(Chunk {
            rows: RecordBatch::try_new_with_options(schema, columns, &options)?,
            diffs: None,
            offsets: match consecutive {
                Some(first) => Offsets::From(*first),
                None => Offsets::Each(ScalarBuffer::from(offsets)),
            },
            arrivals: Some(ScalarBuffer::from(arrivals)),
            bad,
            next_offset,
            split_column: None,
        })
    }
}

fn take(decoder: &mut JsonDecoder, gathered: &mut Gathered, record: &Record<'_>, limit: usize) {
    let entry = &record.entry;
    let reason = match entry.kind {
        Kind::Cut => {
            format!("larger than 'packet.bytes-max' ({limit} bytes); its first bytes are kept")
        }
        Kind::Message => match decoder.push(entry.payload) {
            Ok(Pushed::Row) => {
                gathered.offsets.push(record.offset);
                gathered.arrivals.push(entry.arrival);
                gathered.topics.append_value(entry.topic);
                return;
            }
            Ok(Pushed::Skipped) => return,
            Err(error) => error.to_string(),
        },
    };
    gathered.bad_bytes += entry.payload.len();
    gathered.bad.push(BadRow {
        offset: record.offset,
        arrival: Some(entry.arrival),
        payload: entry.payload.to_vec(),
        reason,
    });
}
