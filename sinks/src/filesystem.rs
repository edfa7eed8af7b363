//! The `filesystem` sink: JSON lines or Parquet in a folder or bucket, rolled by size and age.
//!
//! # What is promised
//! - A file is visible once it is whole, and never before. On a local disk it is written beside the
//!   others under a hidden name (`.part-….inprogress`), synced, linked to its name, and the folder
//!   is synced; for a bucket it is staged on the local disk and put in one piece or as a multipart
//!   upload (`weir_connect::store`). Staging needs disk for the open files, `file-size` times
//!   partitions and shards, in the system's temporary folder.
//! - Its bytes are a function of its rows in their order alone: JSON has a form for each row,
//!   Parquet is fed in slices of a fixed number of rows counted from the file's first, whatever
//!   batches the rows came in. Its name holds its first epoch.
//! - A file closes at the first epoch at which its bytes, or its age in recorded time, reach the
//!   limit; with `sink.open-files-max` files open, those that were open longest close too. So which
//!   rows a file has is a function of the cuts.
//!
//! # Each row once
//! For a job that lasts (an [`Author`] is given) a row is in exactly one file, through any crash:
//! - A file's name is made of job, sink, shard and first epoch (`target.rs`). Rows that come again
//!   make the same file, and find it there: it is compared, byte by byte, and is done. Other bytes
//!   end the job as not deterministic, and nothing is written over.
//! - An epoch is committed once all its rows are in files that are there. What was open when the
//!   job stopped is not put; it comes again, or is in a checkpoint (`kept.rs`).
//! - A generation that is still alive when the next has taken over is refused at its next put
//!   (`generation.rs`; what remains in between is told there and in `target.rs`).
//!
//! # Limits
//! The same bytes need the same build and the same options: files put after the newest checkpoint
//! must come out the same. Without a checkpoint all files come again: those of a bucket are read
//! back to be compared, those that somebody has removed are put again. A take-over lists the whole
//! target. A checkpoint names, for each open file, a piece for each checkpoint since it was opened.
//! Markers are in the folder `_weir`.
//!
//! # An existing folder
//! Without an author files of other runs stay as they are, as in Flink: a script that is run twice
//! leaves the rows twice. Live epochs are times, so names differ; a replay counts its epochs from
//! 1, and where its name is taken it adds `-r1`, `-r2` and so on. Nothing is overwritten, provided
//! that the store knows conditional puts. What a crashed run left in progress is removed when the
//! shard opens again; a run that is still alive holds locks on its own.
//!
//! # Partitions
//! `PARTITIONED BY (a, b)` gives folders `a=x/b=y`, escaped as Flink and Hive do, with the columns
//! left out of the files.

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;
use weir_connect::json::{JsonOptions, TimestampStandard};
use weir_connect::options::{Size, bad_table, bad_value};
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};
use weir_engine::sink::{Author, Sink, SinkReport, SinkWriter};
use weir_engine::time::Epoch;

use encode::Encoding;
use partition::Layout;
use target::Target;
use writer::{Rolling, ShardWriter};

mod encode;
mod generation;
mod kept;
mod partition;
mod target;
mod writer;

#[cfg(test)]
mod tests;

/// Bytes of rows that wait in a shard's memory for a checkpoint; more wait on disk.
const KEPT_BYTES_MAX: usize = 32 << 20;

weir_connect::choices! {
    /// How rows are written.
    pub enum Format {
        /// A JSON object a line.
        Json = "json",
        /// Parquet files.
        Parquet = "parquet",
    }
}

weir_connect::choices! {
    /// How the pages of Parquet files are compressed.
    pub enum Compression {
        /// Fast, read by everything.
        Snappy = "snappy",
        /// Smaller, a little slower.
        Zstd = "zstd",
        /// For old readers.
        Gzip = "gzip",
        /// Fast.
        Lz4 = "lz4_raw",
        /// Not at all.
        None = "none",
        /// Not at all, in Parquet's own word.
        Uncompressed = "uncompressed",
    }
}

weir_connect::options! {
    /// Options of the `filesystem` sink.
    pub struct FilesystemSinkOptions {
        /// Folder that the files go to: a path, `file:///path` or `s3://bucket/path`. It is made
        /// if it does not exist.
        pub path: String = "path", required "archive/readings";
        /// Format of the files. Names end in `.jsonl` or `.parquet`.
        pub format: Format = "format", required "json";
        /// A file closes at the first epoch at which it is at least this large.
        pub file_size: Size = "sink.rolling-policy.file-size", default "128 MB";
        /// A file closes at the first epoch at which it has been open for this long, in recorded
        /// time.
        pub rollover: Duration = "sink.rolling-policy.rollover-interval", default "30 min";
        /// Number of writers. Each has files of its own.
        pub shards: NonZeroU32 = "sink.shards", default "1";
        /// Files that a writer keeps open at a time, one a partition; beyond that the oldest close
        /// early.
        pub open_files_max: NonZeroU32 = "sink.open-files-max", default "256";
        /// Name of the partition of rows whose partition column is NULL or empty.
        pub default_partition: String = "partition.default-name", default "__DEFAULT_PARTITION__";
        /// Compression of Parquet pages.
        pub compression: Compression = "parquet.compression", default "snappy";
        /// Rows of a row group in Parquet files.
        pub row_group_rows: NonZeroU32 = "parquet.row-group-rows", default "131072";
        /// How TIMESTAMPs look in JSON.
        pub timestamps: TimestampStandard = "json.timestamp-format.standard", default "SQL";
        /// Whether columns that are NULL are left out of JSON.
        pub ignore_null_fields: bool = "json.encode.ignore-null-fields", default "false";
    }
}

/// The manual of the sink's options.
pub fn options() -> Vec<OptionDoc> {
    FilesystemSinkOptions::docs()
}

/// Checks the options and makes the sink. Touches nothing outside. Options in `also` (those of the
/// source half) pass unread.
///
/// # Errors
/// Everything that is wrong with the options or the columns.
pub fn sink(table: &TableSpec, also: &[OptionDoc]) -> Result<Box<dyn Sink>, Vec<OptionError>> {
    made(table, also).map(|sink| -> Box<dyn Sink> { Box::new(sink) })
}

fn made(table: &TableSpec, also: &[OptionDoc]) -> Result<FilesystemSink, Vec<OptionError>> {
    let known: Vec<OptionDoc> = also.iter().cloned().chain(target::options()).collect();
    let options = FilesystemSinkOptions::read(table, &known)?;
    let mut errors = Vec::new();
    let names: BTreeSet<&str> = table.columns.iter().map(|c| c.name.as_str()).collect();
    let unknown = table.partitioned_by.iter().filter(|name| !names.contains(name.as_str()));
    errors.extend(unknown.map(|name| bad_table(table, &format!("has no column `{name}`"))));
    if !table.columns.is_empty() && table.partitioned_by.len() >= table.columns.len() {
        errors.push(bad_table(table, "has no column beside those that it is partitioned by"));
    }
    let target = Target::of(table, &options.path).map_err(|mut e| errors.append(&mut e)).ok();
    let layout = Layout::of(&table.schema(), &table.partitioned_by, &options.default_partition);
    let encoding = Encoding::of(layout.file_schema(), &options)
        .map_err(|what| errors.push(bad_value(table, "format", &format!("cannot hold {what}"))))
        .ok();
    match (target, encoding) {
        (Some(target), Some(encoding)) if errors.is_empty() => Ok(FilesystemSink {
            target,
            layout,
            encoding,
            rolling: Rolling {
                bytes_max: options.file_size.0.max(1),
                age_max: i64::try_from(options.rollover.as_millis()).unwrap_or(i64::MAX),
                files_max: options.open_files_max.get() as usize,
            },
            kept_bytes_max: KEPT_BYTES_MAX,
            shards: options.shards.get(),
        }),
        _ => Err(errors),
    }
}

impl FilesystemSinkOptions {
    fn json(&self) -> JsonOptions {
        JsonOptions {
            timestamp_standard: self.timestamps,
            ignore_null_fields: self.ignore_null_fields,
            ..JsonOptions::default()
        }
    }
}

struct FilesystemSink {
    target: Target,
    layout: Layout,
    encoding: Encoding,
    rolling: Rolling,
    kept_bytes_max: usize,
    shards: u32,
}

impl Sink for FilesystemSink {
    fn shards(&self) -> u32 {
        self.shards
    }

    fn accepts_retractions(&self) -> bool {
        false
    }

    fn take_over(&self, author: &Author) -> Result<Option<Epoch>, ConnectorError> {
        self.target.take_over(author)
    }

    fn open(
        &self,
        shard: u32,
        author: Option<&Author>,
        report: Arc<SinkReport>,
    ) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        let files = self.target.open(shard, author, report.clone())?;
        let (layout, encoding, rolling) =
            (self.layout.clone(), self.encoding.clone(), self.rolling);
        let kept = author.map(|_| self.kept_bytes_max);
        Ok(Box::new(ShardWriter::over(files, layout, encoding, rolling, kept, report)))
    }

    fn probe(&self) -> Result<(), ConnectorError> {
        self.target.probe()
    }

    fn guarantee(&self) -> String {
        "whole files, put once; with `weir run --state` each row is in one file, exactly once, \
         whose name and bytes follow from the epochs in it, and a file that is there with other \
         bytes ends the job; without, a run adds files under names made of shard and first epoch, \
         never overwrites, and a restarted job may write rows again"
            .to_owned()
    }
}
