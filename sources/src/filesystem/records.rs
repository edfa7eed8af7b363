//! CSV files: small tables, read in order by one thread at a time.
//!
//! # Rules
//! RFC 4180: fields may be quoted, and hold separators, quotes and line ends then. With a header,
//! columns are found by name, else by their place in the declaration. An unquoted or quoted field
//! that is empty is NULL, for STRING too. A record that is too short, or a field that does not
//! convert, makes a bad row. The ordinal counts records, without the header.

use arrow::array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, StringArray, UInt32Array};
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema};
use csv::ByteRecord;
use flate2::read::MultiGzDecoder;
use std::collections::VecDeque;
use std::io::Read;
use std::sync::Arc;
use weir_connect::options::did_you_mean;
use weir_engine::connector::ConnectorError;
use weir_engine::source::{BadRow, Chunk, Offsets};

use super::columns::{FileFacts, Piece};
use super::input::Input;
use super::lines::{Stream, fault, path_is_packed};
use super::{Appetite, Files, Unit, Units};

/// Records of a unit.
const UNIT_ROWS: usize = 8_192;
const TASTE_ROWS: usize = 64;

type OpenFile = Box<dyn Fn(&str) -> Result<Input, ConnectorError> + Send>;

/// The units of a split.
pub(super) struct Records {
    files: Arc<Files>,
    open: OpenFile,
    paths: VecDeque<String>,
    unit_rows: usize,
    current: Option<Current>,
    ordinal: u64,
}

struct Current {
    input: Arc<Input>,
    facts: Arc<FileFacts>,
    /// For each decoded column, its place in a record.
    places: Arc<Vec<usize>>,
    records: csv::Reader<Box<dyn Read + Send>>,
}

impl Records {
    pub(super) fn new(
        files: &Arc<Files>,
        paths: Vec<String>,
        appetite: Appetite,
        open: impl Fn(&str) -> Result<Input, ConnectorError> + Send + 'static,
    ) -> Records {
        Records {
            files: files.clone(),
            open: Box::new(open),
            paths: paths.into(),
            unit_rows: match appetite {
                Appetite::Whole => UNIT_ROWS,
                Appetite::Taste => TASTE_ROWS,
            },
            current: None,
            ordinal: 0,
        }
    }

    fn start(&self, path: &str) -> Result<Current, ConnectorError> {
        let input = Arc::new((self.open)(path)?);
        let stream = Stream::new(input.clone());
        let bytes: Box<dyn Read + Send> = match path_is_packed(&input) {
            true => Box::new(MultiGzDecoder::new(stream)),
            false => Box::new(stream),
        };
        let options = &self.files.options;
        let mut records = csv::ReaderBuilder::new()
            .has_headers(options.csv_header)
            .delimiter(options.csv_delimiter.as_bytes().first().copied().unwrap_or(b','))
            .flexible(true)
            .from_reader(bytes);
        let decoded = self.files.columns.decoded();
        let places = if options.csv_header {
            let header = records.byte_headers().map_err(|e| damaged(&input, e))?.clone();
            let names: Vec<String> =
                header.iter().map(|n| String::from_utf8_lossy(n).into_owned()).collect();
            let place = |field: &Arc<Field>| find_column(&input, &names, field.name());
            decoded.fields().iter().map(place).collect::<Result<Vec<_>, _>>()?
        } else {
            (0..decoded.fields().len()).collect()
        };
        let facts = Arc::new(self.files.columns.facts(&input));
        Ok(Current { input, facts, places: Arc::new(places), records })
    }
}

fn find_column(input: &Input, names: &[String], name: &str) -> Result<usize, ConnectorError> {
    names.iter().position(|n| n.trim_start_matches('\u{feff}') == name).ok_or_else(|| {
        let (file, table) = (input.name(), input.table());
        let message = format!("{file} has no column `{name}` (table `{table}`)");
        let meant = did_you_mean(name, names.iter().map(String::as_str));
        let hint = match meant {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("its first line names {}", names.join(", ")),
        };
        ConnectorError::reconfigure(message).hint(hint)
    })
}

fn damaged(input: &Input, error: csv::Error) -> ConnectorError {
    match error.into_kind() {
        csv::ErrorKind::Io(inner) => fault(input, inner),
        other => input.unreadable(&format!("it is no CSV: {other:?}")),
    }
}

impl Units for Records {
    fn next(&mut self) -> Result<Option<Box<dyn Unit>>, ConnectorError> {
        loop {
            if let Some(current) = &mut self.current {
                let mut records = Vec::new();
                let mut record = ByteRecord::new();
                while records.len() < self.unit_rows {
                    let got = current.records.read_byte_record(&mut record);
                    if !got.map_err(|e| damaged(&current.input, e))? {
                        break;
                    }
                    records.push(std::mem::take(&mut record));
                }
                if !records.is_empty() {
                    let first = self.ordinal;
                    self.ordinal += records.len() as u64;
                    return Ok(Some(Box::new(RecordsUnit {
                        files: self.files.clone(),
                        facts: current.facts.clone(),
                        places: current.places.clone(),
                        first,
                        records,
                    })));
                }
                self.current = None;
            }
            let Some(path) = self.paths.pop_front() else { return Ok(None) };
            self.current = Some(self.start(&path)?);
        }
    }
}

struct RecordsUnit {
    files: Arc<Files>,
    facts: Arc<FileFacts>,
    places: Arc<Vec<usize>>,
    /// Ordinal of the first record.
    first: u64,
    records: Vec<ByteRecord>,
}

impl Unit for RecordsUnit {
    fn decode(self: Box<Self>) -> Result<Vec<Chunk>, ConnectorError> {
        let decoded = self.files.columns.decoded();
        let count = self.records.len();
        let mut reasons: Vec<Option<String>> = vec![None; count];
        let (mut fields, mut columns) = (Vec::new(), Vec::<ArrayRef>::new());
        for (field, &place) in decoded.fields().iter().zip(self.places.iter()) {
            let text = self.text(place, field.name(), &mut reasons);
            let column = match field.data_type() {
                DataType::Utf8 => Arc::new(text) as ArrayRef,
                other => {
                    let values = cast(&text, other).map_err(|e| {
                        let (table, name) = (&self.files.table, field.name());
                        let why = format!("table `{table}`: CSV has no form for `{name}`: {e}");
                        ConnectorError::reconfigure(why)
                    })?;
                    for (row, reason) in reasons.iter_mut().enumerate() {
                        if values.is_null(row) && text.is_valid(row) {
                            let what = || format!("expected {other}, column {}", field.name());
                            reason.get_or_insert_with(what);
                        }
                    }
                    values
                }
            };
            fields.push(Field::new(field.name(), column.data_type().clone(), true));
            columns.push(column);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let rows =
            RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
                .map_err(|e| ConnectorError::fatal(e.to_string()))?;
        let piece = self.sorted_out(rows, reasons)?;
        Ok(vec![self.files.columns.chunk(piece, &self.facts)?])
    }
}

impl RecordsUnit {
    /// One field of all records; an empty one is NULL.
    fn text(&self, place: usize, name: &str, reasons: &mut [Option<String>]) -> StringArray {
        let fields = self.records.iter().zip(reasons).map(|(record, reason)| {
            match record.get(place).map(std::str::from_utf8) {
                Some(Ok("")) => None,
                Some(Ok(text)) => Some(text),
                Some(Err(_)) => {
                    reason.get_or_insert_with(|| format!("not UTF-8, column {name}"));
                    None
                }
                None => {
                    reason.get_or_insert_with(|| format!("missing, column {name}"));
                    None
                }
            }
        });
        StringArray::from_iter(fields)
    }

    /// A record's fields, unquoted.
    fn as_it_came(&self, row: usize) -> Vec<u8> {
        let fields: Vec<&[u8]> = self.records[row].iter().collect();
        fields.join(self.files.options.csv_delimiter.as_bytes())
    }

    /// Good rows apart from bad ones.
    fn sorted_out(
        &self,
        rows: RecordBatch,
        reasons: Vec<Option<String>>,
    ) -> Result<Piece, ConnectorError> {
        let next = self.first + self.records.len() as u64;
        if reasons.iter().all(Option::is_none) {
            return Ok(Piece { rows, offsets: Offsets::From(self.first), bad: Vec::new(), next });
        }
        let (mut kept, mut bad) = (Vec::new(), Vec::new());
        for (row, reason) in reasons.into_iter().enumerate() {
            match reason {
                None => kept.push(row as u32),
                Some(reason) => bad.push(BadRow {
                    offset: self.first + row as u64,
                    arrival: None,
                    payload: self.as_it_came(row),
                    reason,
                }),
            }
        }
        let offsets = kept.iter().map(|&row| self.first + u64::from(row)).collect();
        let rows = take_record_batch(&rows, &UInt32Array::from(kept))
            .map_err(|e| ConnectorError::fatal(e.to_string()))?;
        Ok(Piece { rows, offsets: Offsets::Each(offsets), bad, next })
    }
}
