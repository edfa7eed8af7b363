//! From what a file holds to the columns of a table: METADATA, partitions, and where a row's split,
//! offset and arrival come from.

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, Int32Array, Int64Array, RecordBatch,
    RecordBatchOptions, StringArray, TimestampMillisecondArray, UInt32Array, new_null_array,
};
use arrow::buffer::ScalarBuffer;
use arrow::compute::{cast, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use std::collections::BTreeSet;
use std::sync::Arc;
use weir_connect::options::did_you_mean;
use weir_engine::connector::{ColumnSpec, ConnectorError, TableSpec};
use weir_engine::source::{BadRow, Chunk, Offsets, SplitSpec};

use super::adapt::adapt;
use super::input::Input;
use super::{Appetite, Files, FilesystemOptions, Format, SplitBy};

/// Stands for the arrival of a row that has none: the guard lets it pass.
const ARRIVAL_UNKNOWN: i64 = i64::MAX;

/// Rows as a file's decoder gives them: the columns of [`Columns::decoded`], at their ordinals.
pub(super) struct Piece {
    pub(super) rows: RecordBatch,
    pub(super) offsets: Offsets,
    pub(super) bad: Vec<BadRow>,
    /// The ordinal that follows.
    pub(super) next: u64,
}

/// What is the same for all rows of a file.
pub(super) struct FileFacts {
    /// The file's name for people, which is also what `file.path` gives.
    pub(super) name: String,
    /// One-row columns: path, name, and one per partition column.
    path: ArrayRef,
    base: ArrayRef,
    partitions: Vec<Result<ArrayRef, String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A column that the file holds, by its place among those decoded.
    Decoded(usize),
    /// A column that the folder's name holds, by its place among those.
    Partition(usize),
    Split,
    Offset,
    Arrival,
    Path,
    Base,
}

/// How a table's columns come about.
pub(super) struct Columns {
    declared: Vec<ColumnSpec>,
    parts: Vec<Part>,
    partitions: Vec<ColumnSpec>,
    default_partition: String,
    decoded: SchemaRef,
    /// How many of the decoded columns the table declares; the others only say split, offset,
    /// arrival.
    visible: usize,
    split: Option<usize>,
    offset: Option<usize>,
    arrival: Option<usize>,
    keyed: Vec<String>,
}

impl Columns {
    /// Plans the columns of a table.
    ///
    /// # Errors
    /// What is wrong with them, to be read after "table … ".
    pub(super) fn of(
        table: &TableSpec,
        options: &FilesystemOptions,
    ) -> Result<Columns, Vec<String>> {
        let mut wrong = Vec::new();
        let (mut parts, mut fields, mut partitions) = (Vec::new(), Vec::new(), Vec::new());
        for column in &table.columns {
            let part = if let Some(key) = &column.metadata {
                metadata_part(column, key, options).map_err(|what| wrong.push(what)).ok()
            } else if table.partitioned_by.contains(&column.name) {
                partitions.push(column.clone());
                Some(Part::Partition(partitions.len() - 1))
            } else {
                fields.push(field(column));
                Some(Part::Decoded(fields.len() - 1))
            };
            parts.extend(part);
        }
        let visible = fields.len();
        let mut place = |name: &Option<String>, hidden: DataType| {
            let name = name.as_ref()?;
            let known = fields.iter().position(|f: &Field| f.name() == name);
            Some(known.unwrap_or_else(|| {
                // In text, numbers and times cannot be told apart before they are read.
                let text = options.format != Format::Parquet;
                fields.push(Field::new(name, if text { DataType::Utf8 } else { hidden }, true));
                fields.len() - 1
            }))
        };
        let split = place(&options.split_column, DataType::Int64);
        let offset = place(&options.offset_column, DataType::Int64);
        let arrival = place(&options.arrival_column, instant());
        if !wrong.is_empty() {
            return Err(wrong);
        }
        Ok(Columns {
            declared: table.columns.clone(),
            parts,
            partitions,
            default_partition: options.default_partition.clone(),
            decoded: Arc::new(Schema::new(fields)),
            visible,
            split,
            offset,
            arrival,
            keyed: table.keyed.clone(),
        })
    }

    /// Names of the columns whose text may be given as dictionaries.
    pub(super) fn keyed(&self) -> &[String] {
        &self.keyed
    }

    /// The columns that a file's decoder must give.
    pub(super) fn decoded(&self) -> &SchemaRef {
        &self.decoded
    }

    /// Whether a decoded column is one that the table does not declare.
    pub(super) fn is_hidden(&self, column: usize) -> bool {
        column >= self.visible
    }

    /// What is the same for all rows of a file.
    pub(super) fn facts(&self, input: &Input) -> FileFacts {
        let name = input.name().to_owned();
        let base = name.rsplit('/').next().unwrap_or_default().to_owned();
        let partitions = self.partitions.iter().map(|column| {
            let text = partition_value(input.name(), &column.name)
                .ok_or_else(|| format!("its path has no part `{}=…`", column.name))?;
            if text == self.default_partition || text == "__HIVE_DEFAULT_PARTITION__" {
                return Ok(new_null_array(&column.data_type, 1));
            }
            parse_one(&text, &column.data_type)
                .ok_or_else(|| format!("`{}={text}` in its path does not fit", column.name))
        });
        let one = |text: &str| -> ArrayRef { Arc::new(StringArray::from(vec![text])) };
        let (path, base) = (one(&name), one(&base));
        FileFacts { partitions: partitions.collect(), path, base, name }
    }

    /// The chunk that a piece of a file makes.
    ///
    /// # Errors
    /// A split or offset column that is NULL or no number; a path that lacks its partition.
    pub(super) fn chunk(&self, piece: Piece, file: &FileFacts) -> Result<Chunk, ConnectorError> {
        let piece = self.refuse_nulls(piece);
        let rows = piece.rows.num_rows();
        let arrivals = self.arrival.map(|c| arrivals(piece.rows.column(c)));
        let numbers = |place: Option<usize>, what: &str| match place {
            None => Ok(None),
            Some(column) => {
                numbers(piece.rows.column(column), &piece.offsets).map(Some).map_err(|why| {
                    ConnectorError::fatal(format!(
                        "cannot read {}: the {what}.column {why}",
                        file.name
                    ))
                })
            }
        };
        let split_column = numbers(self.split, "split")?;
        let offsets = match numbers(self.offset, "offset")? {
            Some(each) => Offsets::Each(each),
            None => piece.offsets.clone(),
        };
        let mut columns = Vec::with_capacity(self.parts.len());
        for (part, declared) in self.parts.iter().zip(&self.declared) {
            columns.push(self.column(*part, declared, &piece, &offsets, file)?);
        }
        Ok(Chunk {
            rows: self.batch(columns, rows),
            diffs: None,
            offsets,
            arrivals,
            bad: piece.bad,
            next_offset: piece.next,
            split_column,
        })
    }

    fn column(
        &self,
        part: Part,
        declared: &ColumnSpec,
        piece: &Piece,
        offsets: &Offsets,
        file: &FileFacts,
    ) -> Result<ArrayRef, ConnectorError> {
        let rows = piece.rows.num_rows();
        let fit = |column: ArrayRef| match column.data_type() == &declared.data_type {
            true => Ok(column),
            false => cast(&column, &declared.data_type),
        };
        let made = match part {
            Part::Decoded(place) => return Ok(piece.rows.column(place).clone()),
            Part::Partition(place) => match &file.partitions[place] {
                Ok(value) => return Ok(repeat(value, rows)),
                Err(why) => {
                    return Err(ConnectorError::reconfigure(format!(
                        "cannot read {}: {why}",
                        file.name
                    )));
                }
            },
            Part::Path => return Ok(repeat(&file.path, rows)),
            Part::Base => return Ok(repeat(&file.base, rows)),
            Part::Split => match self.split {
                Some(place) => fit(piece.rows.column(place).clone()),
                None => return Ok(repeat(&file.path, rows)),
            },
            Part::Offset => {
                let each = (0..rows).map(|row| offsets.at(row).cast_signed());
                fit(Arc::new(Int64Array::from_iter_values(each)))
            }
            Part::Arrival => match self.arrival {
                Some(place) => {
                    let known = arrivals(piece.rows.column(place));
                    let each = known.iter().map(|&ms| (ms != ARRIVAL_UNKNOWN).then_some(ms));
                    let array = TimestampMillisecondArray::from_iter(each).with_timezone("UTC");
                    let array: ArrayRef = Arc::new(array);
                    adapt(&array, &declared.data_type).ok_or_else(|| {
                        arrow::error::ArrowError::CastError("an instant is no such type".into())
                    })
                }
                None => Ok(new_null_array(&declared.data_type, rows)),
            },
        };
        made.map_err(|e| {
            let column = &declared.name;
            ConnectorError::reconfigure(format!(
                "cannot read {}, column `{column}`: {e}",
                file.name
            ))
        })
    }

    /// Rows with NULL in a column that is NOT NULL are bad.
    fn refuse_nulls(&self, piece: Piece) -> Piece {
        let strict: Vec<usize> = (0..self.visible)
            .filter(|&c| !self.decoded.field(c).is_nullable())
            .filter(|&c| piece.rows.column(c).null_count() > 0)
            .collect();
        if strict.is_empty() {
            return piece;
        }
        let Piece { rows, offsets, mut bad, next } = piece;
        let mut kept = Vec::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            match strict.iter().find(|&&c| rows.column(c).is_null(row)) {
                None => kept.push(row as u32),
                Some(&c) => bad.push(BadRow {
                    offset: offsets.at(row),
                    arrival: None,
                    payload: describe(&rows, row),
                    reason: format!(
                        "NULL, but the column is NOT NULL, column {}",
                        self.decoded.field(c).name()
                    ),
                }),
            }
        }
        bad.sort_by_key(|b| b.offset);
        let offsets = Offsets::Each(kept.iter().map(|&row| offsets.at(row as usize)).collect());
        let rows = match take_record_batch(&rows, &UInt32Array::from(kept)) {
            Ok(rows) => rows,
            Err(error) => unreachable!("rows cannot be taken from their own batch: {error}"),
        };
        Piece { rows, offsets, bad, next }
    }

    /// A batch of the declared columns; dictionaries stay what they are.
    fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> RecordBatch {
        let fields = self.declared.iter().zip(&columns).map(|(declared, column)| {
            // A METADATA column may be NULL where the source knows nothing, whatever is declared.
            let nullable = declared.nullable || column.null_count() > 0;
            Field::new(&declared.name, column.data_type().clone(), nullable)
        });
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        match RecordBatch::try_new_with_options(schema, columns, &options) {
            Ok(batch) => batch,
            Err(error) => unreachable!("columns of one length make a batch: {error}"),
        }
    }
}

fn field(column: &ColumnSpec) -> Field {
    Field::new(&column.name, column.data_type.clone(), column.nullable)
}

/// TIMESTAMP_LTZ(3).
fn instant() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

fn metadata_part(
    column: &ColumnSpec,
    key: &str,
    options: &FilesystemOptions,
) -> Result<Part, String> {
    use DataType::{Int32, Int64, Timestamp, Utf8};
    let name = &column.name;
    let text = column.data_type == Utf8;
    let number = matches!(column.data_type, Int32 | Int64);
    let by_columns = options.split_by == SplitBy::Columns;
    let (part, fits, wants) = match key {
        "split" if by_columns => (Part::Split, text || number, "STRING, INT or BIGINT"),
        "split" => (Part::Split, text, "STRING: it is the file's path"),
        "offset" => (Part::Offset, column.data_type == Int64, "BIGINT"),
        "arrival" => {
            let fits = matches!(column.data_type, Timestamp(..));
            (Part::Arrival, fits, "TIMESTAMP_LTZ(3) or TIMESTAMP(3)")
        }
        "file.path" => (Part::Path, text, "STRING"),
        "file.name" => (Part::Base, text, "STRING"),
        other => {
            let keys: Vec<&str> = super::metadata().iter().map(|(key, _)| *key).collect();
            let meant = did_you_mean(other, keys.iter().copied());
            let meant = meant.map(|key| format!("; did you mean '{key}'?")).unwrap_or_default();
            return Err(format!(
                "has a column `{name}` from the metadata '{other}', but filesystem has {}{meant}",
                keys.join(", ")
            ));
        }
    };
    if !fits {
        return Err(format!(
            "has a column `{name}` from the metadata '{key}', which must be {wants}"
        ));
    }
    if part == Part::Arrival && options.arrival_column.is_none() {
        let needs = "which needs the option 'arrival.column'";
        return Err(format!("has a column `{name}` from the metadata 'arrival', {needs}"));
    }
    Ok(part)
}

/// The value of `name=value` among the folders of a path, unescaped.
fn partition_value(path: &str, name: &str) -> Option<String> {
    let (folders, _) = path.rsplit_once('/')?;
    let parts = folders.rsplit('/').filter_map(|part| part.split_once('='));
    let (_, value) = parts.into_iter().find(|(key, _)| unescape(key) == name)?;
    Some(unescape(value))
}

/// Undoes `%XX`.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = text.get(at + 1..at + 3).filter(|_| bytes[at] == b'%');
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                out.push(byte);
                at += 3;
            }
            None => {
                out.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A value from its text, `None` if it does not fit the type.
fn parse_one(text: &str, data_type: &DataType) -> Option<ArrayRef> {
    let column = cast(&StringArray::from(vec![text]), data_type).ok()?;
    column.is_valid(0).then_some(column)
}

/// One value for many rows; a text is stored once.
fn repeat(value: &ArrayRef, rows: usize) -> ArrayRef {
    if let DataType::Utf8 = value.data_type()
        && value.is_valid(0)
    {
        let keys = Int32Array::from(vec![0; rows]);
        return Arc::new(DictionaryArray::new(keys, value.clone()));
    }
    let all = UInt32Array::from(vec![0; rows]);
    match arrow::compute::take(value, &all, None) {
        Ok(column) => column,
        Err(error) => unreachable!("a value cannot be repeated: {error}"),
    }
}

/// Whole numbers from 0.
fn numbers(column: &ArrayRef, ordinals: &Offsets) -> Result<ScalarBuffer<u64>, String> {
    let cast = cast(column, &DataType::Int64).map_err(|e| format!("holds no numbers: {e}"))?;
    let values = cast.as_primitive::<Int64Type>();
    let bad = (0..values.len()).find(|&row| values.is_null(row) || values.value(row) < 0);
    match bad {
        Some(row) => Err(format!(
            "holds what is no whole number from 0, in the row with ordinal {}",
            ordinals.at(row)
        )),
        None => Ok(values.values().iter().map(|&n| n.cast_unsigned()).collect()),
    }
}

/// Milliseconds since the epoch; what cannot be read is unknown.
fn arrivals(column: &ArrayRef) -> ScalarBuffer<i64> {
    let text = matches!(column.data_type(), DataType::Utf8 | DataType::Dictionary(..));
    let unknown = || vec![ARRIVAL_UNKNOWN; column.len()].into();
    let known = if text {
        let numbers = cast(column, &DataType::Int64).ok();
        let times = cast(column, &instant()).and_then(|t| cast(&t, &DataType::Int64)).ok();
        match (numbers, times) {
            (Some(numbers), Some(times)) => {
                let (numbers, times) =
                    (numbers.as_primitive::<Int64Type>(), times.as_primitive::<Int64Type>());
                let either = |row: usize| match (numbers.is_valid(row), times.is_valid(row)) {
                    (true, _) => numbers.value(row),
                    (false, true) => times.value(row),
                    (false, false) => ARRIVAL_UNKNOWN,
                };
                return (0..column.len()).map(either).collect();
            }
            (numbers, times) => numbers.or(times),
        }
    } else {
        adapt(column, &instant())
            .or_else(|| Some(column.clone()))
            .and_then(|c| cast(&c, &DataType::Int64).ok())
    };
    let Some(known) = known else { return unknown() };
    let known = known.as_primitive::<Int64Type>();
    let ms = |row: usize| if known.is_null(row) { ARRIVAL_UNKNOWN } else { known.value(row) };
    (0..column.len()).map(ms).collect()
}

/// A row as text, for people.
fn describe(rows: &RecordBatch, row: usize) -> Vec<u8> {
    let schema = rows.schema();
    let values = schema.fields().iter().zip(rows.columns()).map(|(field, column)| {
        let value = arrow::util::display::array_value_to_string(column, row);
        format!("{}={}", field.name(), value.unwrap_or_default())
    });
    values.collect::<Vec<_>>().join(", ").into_bytes()
}

/// The numbers in the split column of all files of a split.
pub(super) fn carried(files: &Files, split: &SplitSpec) -> Result<Vec<u64>, ConnectorError> {
    let only = Columns {
        keyed: Vec::new(),
        declared: Vec::new(),
        parts: Vec::new(),
        partitions: Vec::new(),
        default_partition: String::new(),
        decoded: match files.columns.split {
            Some(place) => Arc::new(Schema::new(vec![files.columns.decoded.field(place).clone()])),
            None => return Ok(Vec::new()),
        },
        visible: usize::from(!files.columns.split.is_some_and(|s| files.columns.is_hidden(s))),
        split: Some(0),
        offset: None,
        arrival: None,
    };
    let scan = Arc::new(Files {
        table: files.table.clone(),
        place: files.place.clone(),
        columns: Arc::new(only),
        pushed: Arc::default(),
        options: files.options.clone(),
    });
    let mut found = BTreeSet::new();
    let mut units = scan.units(split, Appetite::Whole, None)?;
    while let Some(unit) = units.next()? {
        for chunk in unit.decode()? {
            found.extend(chunk.split_column.iter().flat_map(|numbers| numbers.iter().copied()));
        }
    }
    Ok(found.into_iter().collect())
}
