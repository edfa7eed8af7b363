//! Parquet files, cut into ranges of rows within a row group.
//!
//! # Invariant
//! A row's ordinal is its place in the file, whatever is skipped: row groups that the pushed
//! predicates rule out are passed over, their rows counted, and so are rows before the first that
//! is needed.
//!
//! # Why units are parts of a row group
//! A unit's rows are all in memory before the first can go on, so it holds about `UNIT_BYTES`
//! decoded. A unit goes on with the reader that the unit before it has left. The compressed bytes
//! of the columns that a query needs are read once a row group, by the first unit that needs them,
//! if they are no more than `PREFETCH_BYTES_MAX`; else page by page.
//!
//! # Text
//! Where all pages of a text column are dictionary-encoded it is given as a dictionary, whose
//! values are the same allocation for as long as row groups repeat them; else as plain text.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use bytes::{Buf, Bytes};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::basic::Encoding;
use parquet::errors::ParquetError;
use parquet::file::metadata::RowGroupMetaData;
use parquet::file::reader::{ChunkReader, Length};
use std::collections::{BTreeMap, VecDeque};
use std::io::BufReader;
use std::sync::{Arc, Mutex, PoisonError};
use weir_connect::options::did_you_mean;
use weir_engine::connector::ConnectorError;
use weir_engine::source::{Chunk, Offsets};

use super::adapt::{adapt, fits, in_sql};
use super::columns::{FileFacts, Piece};
use super::input::Input;
use super::{Appetite, Files, Unit, Units, prune};

/// Decoded bytes that a unit aims at.
const UNIT_BYTES: usize = 1 << 20;
/// Rows of a chunk.
const CHUNK_ROWS: usize = 16_384;
const TASTE_ROWS: usize = 1_024;
const PREFETCH_BYTES_MAX: u64 = 64 << 20;
/// Readers kept of a row group. More than one is there only where threads decode side by side.
const LEFT_MAX: usize = 2;

type OpenFile = Box<dyn Fn(&str) -> Result<Input, ConnectorError> + Send>;

/// The units of a split.
pub(super) struct Groups {
    files: Arc<Files>,
    open: OpenFile,
    paths: VecDeque<String>,
    appetite: Appetite,
    current: Option<Current>,
    /// Ordinal of the next file's first row.
    ordinal: u64,
    /// Ordinal of the first row that is needed.
    from: u64,
}

/// The file that is being cut.
struct Current {
    file: Arc<ParquetFile>,
    /// Ordinal of the next row group's first row.
    ordinal: u64,
    next_group: usize,
    /// The row group that is being cut, and the first row in it that is left.
    cutting: Option<(Arc<Group>, usize)>,
}

/// An open file, and how it is read.
struct ParquetFile {
    files: Arc<Files>,
    input: Arc<Input>,
    facts: FileFacts,
    metadata: ArrowReaderMetadata,
    /// For each decoded column, its place among the file's.
    places: Vec<usize>,
    mask: ProjectionMask,
    /// The metadata with text columns as dictionaries, by which of them are.
    variants: Mutex<BTreeMap<Vec<bool>, ArrowReaderMetadata>>,
    keep: Vec<bool>,
    /// For each decoded column the newest dictionary.
    dictionaries: Mutex<Vec<Option<ArrayRef>>>,
}

struct Group {
    number: usize,
    rows: usize,
    /// Ordinal of its first row.
    first: u64,
    unit_rows: usize,
    metadata: ArrowReaderMetadata,
    bytes: Mutex<Option<Fetched>>,
    prefetch: bool,
    /// Readers that units have left behind, by the row that each gives next.
    left: Mutex<Vec<(usize, ParquetRecordBatchReader)>>,
}

impl Groups {
    pub(super) fn new(
        files: &Arc<Files>,
        paths: Vec<String>,
        appetite: Appetite,
        open: impl Fn(&str) -> Result<Input, ConnectorError> + Send + 'static,
    ) -> Groups {
        Groups {
            files: files.clone(),
            open: Box::new(open),
            paths: paths.into(),
            appetite,
            current: None,
            ordinal: 0,
            from: 0,
        }
    }

    /// Passes over what lies before a row; some rows before it may be given.
    pub(super) fn from(self, ordinal: u64) -> Groups {
        Groups { from: ordinal, ..self }
    }
}

impl Units for Groups {
    fn next(&mut self) -> Result<Option<Box<dyn Unit>>, ConnectorError> {
        loop {
            if let Some(current) = &mut self.current {
                if let Some(unit) = current.cut(self.appetite, self.from)? {
                    return Ok(Some(Box::new(unit)));
                }
                self.ordinal = current.ordinal;
                self.current = None;
            }
            let Some(path) = self.paths.pop_front() else { return Ok(None) };
            let file = Arc::new(ParquetFile::open(&self.files, (self.open)(&path)?)?);
            let ordinal = self.ordinal;
            self.current = Some(Current { file, ordinal, next_group: 0, cutting: None });
        }
    }
}

impl Current {
    fn cut(&mut self, appetite: Appetite, from: u64) -> Result<Option<GroupUnit>, ConnectorError> {
        loop {
            if let Some((group, next)) = &mut self.cutting {
                let (start, group) = (*next, group.clone());
                if start < group.rows {
                    let rows = group.unit_rows.min(group.rows - start);
                    *next += rows;
                    return Ok(Some(GroupUnit { file: self.file.clone(), group, start, rows }));
                }
                self.cutting = None;
            }
            let groups = self.file.metadata.metadata().row_groups();
            let Some(meta) = groups.get(self.next_group) else { return Ok(None) };
            let rows = usize::try_from(meta.num_rows()).unwrap_or_default();
            let before = from.saturating_sub(self.ordinal);
            let before = usize::try_from(before).unwrap_or(usize::MAX).min(rows);
            if self.file.keep[self.next_group] && before < rows {
                let group = self.file.group(self.next_group, meta, self.ordinal, appetite)?;
                let next = before / group.unit_rows * group.unit_rows;
                self.cutting = Some((Arc::new(group), next));
            }
            self.ordinal += rows as u64;
            self.next_group += 1;
        }
    }
}

impl ParquetFile {
    fn open(files: &Arc<Files>, input: Input) -> Result<ParquetFile, ConnectorError> {
        let input = Arc::new(input);
        check_magic(&input)?;
        // What the writer said of Arrow's types is left aside: columns are what Parquet says they
        // are.
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
        let metadata = ArrowReaderMetadata::load(&Fetched::nothing(&input), options)
            .map_err(|e| fault(&input, "its footer", e))?;
        let mut places = Vec::new();
        for (n, wanted) in files.columns.decoded().fields().iter().enumerate() {
            let hidden = files.columns.is_hidden(n);
            places.push(find_column(&input, metadata.schema(), wanted, hidden)?);
        }
        let schema = metadata.parquet_schema();
        let mask = ProjectionMask::roots(schema, places.iter().copied());
        let keep = prune::keep(&files.pushed, files.columns.decoded(), &metadata);
        let facts = files.columns.facts(&input);
        let variants = Mutex::default();
        let dictionaries = Mutex::new(vec![None; places.len()]);
        Ok(ParquetFile {
            files: files.clone(),
            input,
            facts,
            metadata,
            places,
            mask,
            variants,
            keep,
            dictionaries,
        })
    }

    fn group(
        &self,
        number: usize,
        meta: &RowGroupMetaData,
        first: u64,
        appetite: Appetite,
    ) -> Result<Group, ConnectorError> {
        let rows = usize::try_from(meta.num_rows()).unwrap_or_default();
        let leaves = self.leaves();
        let sum = |of: &dyn Fn(usize) -> i64| -> u64 {
            leaves.iter().map(|&leaf| of(leaf).max(0).cast_unsigned()).sum()
        };
        let decoded = sum(&|leaf| meta.column(leaf).uncompressed_size());
        let packed = sum(&|leaf| meta.column(leaf).compressed_size());
        // Text of a dictionary takes four bytes a row when decoded, encoded often less.
        let row_bytes = (decoded / rows.max(1) as u64).max(8 * leaves.len().max(1) as u64);
        let aim = UNIT_BYTES / usize::try_from(row_bytes).unwrap_or(UNIT_BYTES).max(1);
        let unit_rows = match appetite {
            Appetite::Taste => TASTE_ROWS,
            // The remainder of a group is not worth a unit of its own.
            Appetite::Whole if rows <= 2 * aim => rows,
            Appetite::Whole => (aim / CHUNK_ROWS).max(1) * CHUNK_ROWS,
        };
        Ok(Group {
            number,
            rows,
            first,
            unit_rows: unit_rows.max(1),
            metadata: self.with_dictionaries(meta)?,
            bytes: Mutex::new(None),
            prefetch: appetite == Appetite::Whole && packed <= PREFETCH_BYTES_MAX,
            left: Mutex::default(),
        })
    }

    /// The leaf columns that are read.
    fn leaves(&self) -> Vec<usize> {
        let count = self.metadata.parquet_schema().num_columns();
        (0..count).filter(|&leaf| self.mask.leaf_included(leaf)).collect()
    }

    /// The metadata that reads text columns as dictionaries where the row group has them so.
    fn with_dictionaries(
        &self,
        meta: &RowGroupMetaData,
    ) -> Result<ArrowReaderMetadata, ConnectorError> {
        let schema = self.metadata.schema();
        let parquet = self.metadata.parquet_schema();
        let is_dictionary = |(root, field): (usize, &Arc<Field>)| {
            let leaf =
                || (0..parquet.num_columns()).find(|&l| parquet.get_column_root_idx(l) == root);
            self.places.contains(&root)
                && field.data_type() == &DataType::Utf8
                && leaf().is_some_and(|leaf| all_dictionary(meta, leaf))
        };
        let which: Vec<bool> = schema.fields().iter().enumerate().map(is_dictionary).collect();
        let mut variants = self.variants.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = variants.get(&which) {
            return Ok(known.clone());
        }
        let fields = schema.fields().iter().zip(&which).map(|(field, dictionary)| {
            let text = || Box::new(DataType::Utf8);
            match dictionary {
                true => field
                    .as_ref()
                    .clone()
                    .with_data_type(DataType::Dictionary(Box::new(DataType::Int32), text())),
                false => field.as_ref().clone(),
            }
        });
        let hinted = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true).with_schema(hinted);
        let made = ArrowReaderMetadata::try_new(self.metadata.metadata().clone(), options)
            .map_err(|e| fault(&self.input, "its schema", e))?;
        variants.insert(which, made.clone());
        Ok(made)
    }
}

/// Whether every data page of a column chunk is dictionary-encoded.
fn all_dictionary(meta: &RowGroupMetaData, leaf: usize) -> bool {
    let column = meta.column(leaf);
    let coded = |e: Encoding| matches!(e, Encoding::PLAIN_DICTIONARY | Encoding::RLE_DICTIONARY);
    if let Some(mask) = column.page_encoding_stats_mask() {
        return mask.encodings().all(coded);
    }
    if let Some(stats) = column.page_encoding_stats() {
        use parquet::basic::PageType;
        let data = |t: PageType| matches!(t, PageType::DATA_PAGE | PageType::DATA_PAGE_V2);
        return stats.iter().filter(|s| data(s.page_type)).all(|s| coded(s.encoding));
    }
    // Without statistics: PLAIN may be the dictionary's own page or data; only its absence is sure.
    column.dictionary_page_offset().is_some()
        && column.encodings().any(coded)
        && !column.encodings().any(|e| e == Encoding::PLAIN)
}

fn check_magic(input: &Input) -> Result<(), ConnectorError> {
    let size = input.size();
    let ends = |at: u64| -> Result<bool, ConnectorError> {
        Ok(size >= 12 && input.read(at..at + 4)?.as_ref() == b"PAR1")
    };
    if ends(size.saturating_sub(4))? {
        return Ok(());
    }
    let (name, table) = (input.name(), input.table());
    let what = if size == 0 {
        "is not a Parquet file: it is empty"
    } else if ends(0)? {
        "is truncated: it begins as a Parquet file, but has no footer"
    } else {
        "is not a Parquet file: it does not end with the magic bytes PAR1"
    };
    let message = format!("{name} {what} (table `{table}`)");
    Err(ConnectorError::reconfigure(message).hint("check 'path' and 'format'"))
}

fn find_column(
    input: &Input,
    schema: &Schema,
    wanted: &Field,
    hidden: bool,
) -> Result<usize, ConnectorError> {
    let (name, table, file) = (wanted.name(), input.table(), input.name());
    let Ok(place) = schema.index_of(name) else {
        let names: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        let hint = match did_you_mean(name, names.iter().copied()) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("it has {}", names.join(", ")),
        };
        let message = format!("{file} has no column `{name}` (table `{table}`)");
        return Err(ConnectorError::reconfigure(message).hint(hint));
    };
    let found = schema.field(place).data_type();
    // A hidden arrival may be a number of milliseconds.
    let number = hidden && matches!(found, DataType::Int64);
    if number || fits(found, wanted.data_type()) {
        return Ok(place);
    }
    let (is, declared) = (in_sql(found), in_sql(wanted.data_type()));
    let message =
        format!("column `{name}` of {file} is {is}, but table `{table}` declares {declared}");
    Err(ConnectorError::reconfigure(message).hint(format!("declare `{name}` as {is}")))
}

fn fault(input: &Input, what: &str, error: ParquetError) -> ConnectorError {
    match error {
        ParquetError::External(inner) => match inner.downcast::<ConnectorError>() {
            Ok(world) => *world,
            Err(other) => input.unreadable(&format!("{what} is damaged: {other}")),
        },
        other => input.unreadable(&format!("{what} is damaged: {other}")),
    }
}

/// A file, parts of which are in memory.
#[derive(Clone)]
struct Fetched {
    input: Arc<Input>,
    parts: Arc<Vec<(u64, Bytes)>>,
}

impl Fetched {
    fn nothing(input: &Arc<Input>) -> Fetched {
        Fetched { input: input.clone(), parts: Arc::default() }
    }

    fn part(&self, start: u64, length: u64) -> Option<Bytes> {
        self.parts.iter().find_map(|(at, bytes)| {
            let from = start.checked_sub(*at)?;
            let inside = from + length <= bytes.len() as u64;
            inside.then(|| bytes.slice(from as usize..(from + length) as usize))
        })
    }

    /// From `start` to the end of the part that holds it.
    fn rest_of_part(&self, start: u64) -> Option<Bytes> {
        self.parts.iter().find_map(|(at, bytes)| {
            let from = start.checked_sub(*at)?;
            (from < bytes.len() as u64).then(|| bytes.slice(from as usize..))
        })
    }
}

impl Length for Fetched {
    fn len(&self) -> u64 {
        self.input.size()
    }
}

/// Reads on from a place in a file, in blocks.
struct From {
    input: Arc<Input>,
    at: u64,
}

impl std::io::Read for From {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        let end = self.at.saturating_add(out.len() as u64).min(self.input.size());
        let bytes = self.input.read(self.at.min(end)..end).map_err(std::io::Error::other)?;
        out[..bytes.len()].copy_from_slice(&bytes);
        self.at = end;
        Ok(bytes.len())
    }
}

impl ChunkReader for Fetched {
    type T = Box<dyn std::io::Read>;

    fn get_read(&self, start: u64) -> Result<Self::T, ParquetError> {
        Ok(match self.rest_of_part(start) {
            Some(bytes) => Box::new(bytes.reader()),
            None => Box::new(BufReader::new(From { input: self.input.clone(), at: start })),
        })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes, ParquetError> {
        if let Some(bytes) = self.part(start, length as u64) {
            return Ok(bytes);
        }
        let end = start.saturating_add(length as u64);
        if end > self.input.size() {
            return Err(ParquetError::EOF(format!("byte {end} is beyond its end")));
        }
        self.input.read(start..end).map_err(|e| ParquetError::External(Box::new(e)))
    }
}

struct GroupUnit {
    file: Arc<ParquetFile>,
    group: Arc<Group>,
    /// First row, within the row group.
    start: usize,
    rows: usize,
}

impl Unit for GroupUnit {
    fn decode(self: Box<Self>) -> Result<Vec<Chunk>, ConnectorError> {
        let file = &self.file;
        let what = format!("row group {}", self.group.number);
        let damaged = |e: ParquetError| fault(&file.input, &what, e);
        let mut reader = self.reader()?;
        let mut ordinal = self.group.first + self.start as u64;
        let end = ordinal + self.rows as u64;
        let mut chunks = Vec::with_capacity(self.rows.div_ceil(CHUNK_ROWS));
        while ordinal < end {
            let Some(batch) = reader.next() else { break };
            let batch = batch.map_err(|e| damaged(ParquetError::from(e)))?;
            let rows = file.adapted(&batch)?;
            let next = ordinal + rows.num_rows() as u64;
            let offsets = Offsets::From(ordinal);
            let piece = Piece { rows, offsets, bad: Vec::new(), next };
            chunks.push(file.files.columns.chunk(piece, &file.facts)?);
            ordinal = next;
        }
        if ordinal != end {
            let missing = end - ordinal;
            return Err(file.input.unreadable(&format!("{what} lacks {missing} rows")));
        }
        if self.start + self.rows < self.group.rows {
            let mut left = self.group.left.lock().unwrap_or_else(PoisonError::into_inner);
            if left.len() >= LEFT_MAX {
                left.remove(0);
            }
            left.push((self.start + self.rows, reader));
        }
        Ok(chunks)
    }
}

impl GroupUnit {
    /// A reader that stands at the unit's first row: the one that the unit before has left, if it
    /// is through, since a new one has to decode the dictionaries and skip to its place.
    fn reader(&self) -> Result<ParquetRecordBatchReader, ConnectorError> {
        let (file, group) = (&self.file, &self.group);
        let mut left = group.left.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = left.iter().position(|(next, _)| *next == self.start) {
            return Ok(left.remove(at).1);
        }
        drop(left);
        let metadata = group.metadata.clone();
        ParquetRecordBatchReaderBuilder::new_with_metadata(self.fetched()?, metadata)
            .with_row_groups(vec![group.number])
            .with_projection(file.mask.clone())
            .with_batch_size(CHUNK_ROWS.min(group.unit_rows))
            .with_offset(self.start)
            .build()
            .map_err(|e| fault(&file.input, &format!("row group {}", group.number), e))
    }

    /// The bytes that it needs, in memory if they are not too many.
    fn fetched(&self) -> Result<Fetched, ConnectorError> {
        let (file, group) = (&self.file, &self.group);
        if !group.prefetch {
            return Ok(Fetched::nothing(&file.input));
        }
        let mut bytes = group.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(fetched) = &*bytes {
            return Ok(fetched.clone());
        }
        let meta = file.metadata.metadata().row_group(group.number);
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for leaf in file.leaves() {
            let (start, length) = meta.column(leaf).byte_range();
            let end = start.saturating_add(length).min(file.input.size());
            match ranges.last_mut() {
                // Columns that lie side by side are one request.
                Some(last) if last.1 == start => last.1 = end,
                _ => ranges.push((start.min(end), end)),
            }
        }
        let read = |(start, end): (u64, u64)| Ok((start, file.input.read(start..end)?));
        let parts = ranges.into_iter().map(read).collect::<Result<Vec<_>, ConnectorError>>()?;
        let fetched = Fetched { input: file.input.clone(), parts: Arc::new(parts) };
        *bytes = Some(fetched.clone());
        Ok(fetched)
    }
}

impl ParquetFile {
    /// A dictionary column with the allocation of the dictionary before it, where both say the
    /// same: writers often repeat a dictionary in each row group, and whoever has hashed it once
    /// need not do so again.
    fn with_known_dictionary(&self, n: usize, column: ArrayRef) -> ArrayRef {
        let Some(packed) = column.as_any_dictionary_opt() else { return column };
        let values = packed.values();
        let lock = || self.dictionaries.lock().unwrap_or_else(PoisonError::into_inner);
        let known = lock()[n].clone();
        match known {
            // The reader wraps the same memory anew for each batch.
            Some(known) if known.to_data().ptr_eq(&values.to_data()) || &known == values => {
                packed.with_values(known)
            }
            _ => {
                lock()[n] = Some(values.clone());
                column
            }
        }
    }

    /// The columns in their declared order and types.
    fn adapted(&self, batch: &RecordBatch) -> Result<RecordBatch, ConnectorError> {
        let decoded = self.files.columns.decoded();
        let mut sorted = self.places.clone();
        sorted.sort_unstable();
        sorted.dedup();
        let (mut fields, mut columns) = (Vec::new(), Vec::new());
        for (n, (wanted, place)) in decoded.fields().iter().zip(&self.places).enumerate() {
            // The reader gives the file's columns in the file's order.
            let column = sorted.binary_search(place).ok().map(|at| batch.column(at));
            let hidden = self.files.columns.is_hidden(n);
            let adapted = column.and_then(|column| match column.data_type() {
                DataType::Int64 if hidden => Some(column.clone()),
                _ => adapt(column, wanted.data_type()),
            });
            let Some(column) = adapted else {
                let what = format!("column `{}` holds what its type cannot", wanted.name());
                return Err(self.input.unreadable(&what));
            };
            let column = self.with_known_dictionary(n, column);
            fields.push(Field::new(wanted.name(), column.data_type().clone(), true));
            columns.push(column);
        }
        let options =
            arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)
            .map_err(|e| self.input.unreadable(&e.to_string()))
    }
}
