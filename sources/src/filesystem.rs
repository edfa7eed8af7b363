//! The `filesystem` source: files of JSON lines, Parquet or CSV, on local disks, S3 or in memory.
//!
//! # Splits
//! By default each file is a split, numbered by its place in path order. `'split.by' = 'all'` makes
//! one split of all files in path order; `'columns'` replays an archive that carries the source's
//! split, offset and arrival as columns. A row's offset is its ordinal in the split, from 0, lines
//! that cannot be read counted (`'columns'`: the column's value).
//!
//! # How it reads
//! `finding.rs` lists files. `lines.rs`, `groups.rs` and `records.rs` cut a file into *units* (a
//! byte range that ends with a line, a range of rows of a row group) and decode them anywhere;
//! `crew.rs` says which threads do so, and pushes what came out in the order of the units.
//! `columns.rs` adds METADATA columns, and `adapt.rs` makes a Parquet file's types the declared
//! ones.
//!
//! # Limits
//! Files are listed once, before the job starts, and must not change after that. A line holds at
//! most 64 MiB. Names that begin with `.` or `_` are passed over in folders.

use arrow::datatypes::{DataType, TimeUnit};
use std::sync::Arc;
use weir_connect::json::{JsonDecoder, JsonOptions, TimestampStandard};
use weir_connect::options::{bad_table, bad_value};
use weir_connect::store::{Store, StoreOptions};
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};
use weir_engine::source::{Chunk, Source, SourceHandle, SplitQueue, SplitSpec};

mod adapt;
mod columns;
mod crew;
mod finding;
mod groups;
mod input;
mod lines;
mod prune;
mod records;

#[cfg(test)]
mod tests;

use columns::Columns;
use crew::{Crew, Reach};
use finding::Place;
use input::Input;

weir_connect::choices! {
    /// Formats of files.
    pub enum Format {
        /// A JSON object a line.
        Json = "json",
        /// Parquet.
        Parquet = "parquet",
        /// Comma-separated values.
        Csv = "csv",
    }
}

weir_connect::choices! {
    /// What a split is.
    pub enum SplitBy {
        /// Each file.
        File = "file",
        /// All files in path order together.
        All = "all",
        /// What a column says.
        Columns = "columns",
    }
}

weir_connect::options! {
    /// Options of the `filesystem` source.
    pub struct FilesystemOptions {
        /// File or folder: a local path, `file:///…`, `s3://bucket/prefix` or
        /// `memory://name/prefix`. Folders are read with all below them. `*` and `?` stand for
        /// parts of a name, `**` for folders.
        pub path: String = "path", required "data/readings";
        /// Format of the files. Files that end in `.gz` are unpacked, but for Parquet.
        pub format: Format = "format", required "json";
        /// What a split is: each `file`, `all` files in path order, or what `columns` say.
        pub split_by: SplitBy = "split.by", default "file";
        /// With `'split.by' = 'columns'`: the column that holds a row's split number.
        pub split_column: Option<String> = "split.column", optional;
        /// With `'split.by' = 'columns'`: the column that holds a row's offset.
        pub offset_column: Option<String> = "offset.column", optional;
        /// The column that holds a row's arrival; without one there is no guard against future
        /// rows.
        pub arrival_column: Option<String> = "arrival.column", optional;
        /// Name that stands for NULL where a folder is named after a partition.
        pub default_partition: String = "partition.default-name", default "__DEFAULT_PARTITION__";
        /// How TIMESTAMP columns look in JSON.
        pub timestamp_format: TimestampStandard =
            "json.timestamp-format.standard", default "SQL";
        /// Whether a line that lacks a column is a bad row.
        pub fail_on_missing: bool = "json.fail-on-missing-field", default "false";
        /// Whether a line that cannot be read ends the job. Else it is counted, and goes to the
        /// dead-letter table if there is one.
        pub fail_on_error: bool = "json.fail-on-error", default "false";
        /// Accepted because Flink has it; see `json.fail-on-error`.
        pub ignore_parse_errors: bool = "json.ignore-parse-errors", default "false";
        /// Whether the first line of a CSV file names the columns; else they count by place.
        pub csv_header: bool = "csv.header", default "true";
        /// What separates the fields of a CSV file.
        pub csv_delimiter: String = "csv.field-delimiter", default ",";
    }
}

/// The manual of the source's options.
pub fn options() -> Vec<OptionDoc> {
    let mut docs = FilesystemOptions::docs();
    docs.extend(StoreOptions::docs());
    docs
}

/// METADATA columns: key and natural type.
pub fn metadata() -> Vec<(&'static str, DataType)> {
    vec![
        ("split", DataType::Utf8),
        ("offset", DataType::Int64),
        ("arrival", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))),
        ("file.path", DataType::Utf8),
        ("file.name", DataType::Utf8),
    ]
}

/// Checks the options and makes the source. Touches nothing outside. Options in `also` (those of
/// the sink half) pass unread.
///
/// # Errors
/// Everything that is wrong with the options and the columns.
pub fn source(table: &TableSpec, also: &[OptionDoc]) -> Result<Box<dyn Source>, Vec<OptionError>> {
    let known: Vec<OptionDoc> = also.iter().cloned().chain(StoreOptions::docs()).collect();
    let store_options = StoreOptions::of(table);
    let options = FilesystemOptions::read(table, &known);
    let (store_options, options) = match (store_options, options) {
        (Ok(store), Ok(own)) => (store, own),
        (store, own) => {
            let errors = [store.err(), own.err()];
            return Err(errors.into_iter().flatten().flatten().collect());
        }
    };
    let mut errors = check(table, &options);
    let place = Place::open(&options.path, &store_options).map_err(|e| {
        let error = bad_value(table, "path", &format!("cannot be used: {e}"));
        errors.push(OptionError { hint: e.hint, ..error });
    });
    let columns = Columns::of(table, &options).map_err(|wrong| {
        errors.extend(wrong.iter().map(|what| bad_table(table, what)));
    });
    if let Ok(columns) = &columns
        && options.format == Format::Json
        && let Err(e) = JsonDecoder::new(columns.decoded().clone(), options.json())
    {
        errors.push(bad_value(table, "format", &format!("does not fit: {e}")));
    }
    match (place, columns) {
        (Ok(place), Ok(columns)) if errors.is_empty() => {
            let files = Files {
                table: table.name.clone(),
                place,
                columns: Arc::new(columns),
                pushed: Arc::new(table.pushed.clone()),
                options,
            };
            Ok(Box::new(Filesystem(Arc::new(files))))
        }
        _ => Err(errors),
    }
}

fn check(table: &TableSpec, options: &FilesystemOptions) -> Vec<OptionError> {
    let mut errors = Vec::new();
    let by_columns = options.split_by == SplitBy::Columns;
    if by_columns && options.split_column.is_none() {
        let error = bad_value(table, "split.by", "is 'columns', so 'split.column' must name one");
        let hint = Some("add for example 'split.column' = 'split'".to_owned());
        errors.push(OptionError { hint, ..error });
    }
    let columns =
        [("split.column", &options.split_column), ("offset.column", &options.offset_column)];
    for (key, column) in columns {
        if column.is_some() && !by_columns {
            errors.push(bad_value(table, key, "has no effect without 'split.by' = 'columns'"));
        }
    }
    if options.csv_delimiter.len() != 1 {
        errors.push(bad_value(table, "csv.field-delimiter", "must be one ASCII character"));
    }
    errors
}

impl FilesystemOptions {
    fn json(&self) -> JsonOptions {
        JsonOptions {
            timestamp_standard: self.timestamp_format,
            fail_on_missing: self.fail_on_missing,
            ..JsonOptions::default()
        }
    }
}

/// All that is known of a table's files before they are looked at.
struct Files {
    table: String,
    place: Place,
    columns: Arc<Columns>,
    pushed: Arc<Vec<weir_engine::connector::Pushed>>,
    options: FilesystemOptions,
}

/// How much of a file one unit takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Appetite {
    /// For work.
    Whole,
    /// For a look at the first rows.
    Taste,
}

/// A split's files, cut into units in order.
trait Units: Send {
    /// The next unit, `None` at the end. Quick: what has to be done in order, and no more.
    fn next(&mut self) -> Result<Option<Box<dyn Unit>>, ConnectorError>;
}

/// A part of a file that can be decoded on any thread.
trait Unit: Send {
    /// Its rows.
    fn decode(self: Box<Self>) -> Result<Vec<Chunk>, ConnectorError>;
}

impl Files {
    fn store(&self) -> &Store {
        self.place.store()
    }

    /// Cuts a split's files into units. With a queue, an outage of the store is waited for.
    fn units(
        self: &Arc<Files>,
        split: &SplitSpec,
        appetite: Appetite,
        queue: Option<&Arc<SplitQueue>>,
    ) -> Result<Box<dyn Units>, ConnectorError> {
        let paths = finding::paths(split)?;
        let files = self.clone();
        let known = queue.and_then(|queue| queue.start_offset());
        let queue = queue.cloned();
        let open = move |path: &str| Input::open(files.store(), path, &files.table, queue.clone());
        Ok(match self.options.format {
            Format::Json => Box::new(lines::Lines::new(self, paths, appetite, open)),
            Format::Parquet => {
                // The offsets of an archive are in its rows.
                let counted = self.options.split_by != SplitBy::Columns;
                let from = known.filter(|_| counted).unwrap_or(0);
                Box::new(groups::Groups::new(self, paths, appetite, open).from(from))
            }
            Format::Csv => Box::new(records::Records::new(self, paths, appetite, open)),
        })
    }
}

struct Filesystem(Arc<Files>);

impl Source for Filesystem {
    fn splits(&self) -> Result<Vec<SplitSpec>, ConnectorError> {
        let mut splits = finding::splits(&self.0)?;
        if self.0.options.split_by == SplitBy::Columns {
            for split in &mut splits {
                split.carries = columns::carried(&self.0, split)?;
            }
        }
        Ok(splits)
    }

    fn open(&self, queues: Vec<Arc<SplitQueue>>) -> Result<Box<dyn SourceHandle>, ConnectorError> {
        let files = self.0.clone();
        let name = self.0.table.clone();
        let open =
            move |queue: &Arc<SplitQueue>| files.units(&queue.split, Appetite::Whole, Some(queue));
        let reach = if self.0.store().is_local() { Reach::Local } else { Reach::Remote };
        Ok(Box::new(Crew::start(&name, queues, reach, Box::new(open))?))
    }

    fn peek(&self, split: &SplitSpec) -> Result<Option<Chunk>, ConnectorError> {
        let mut units = self.0.units(split, Appetite::Taste, None)?;
        while let Some(unit) = units.next()? {
            let good = unit.decode()?.into_iter().find(|chunk| !chunk.is_empty());
            if good.is_some() {
                return Ok(good);
            }
        }
        Ok(None)
    }

    fn guarantee(&self) -> String {
        "read again from the beginning after a restart; files must not change".to_owned()
    }
}
