//! Rows to bytes of a file, the same bytes whatever batches the rows come in.
//!
//! # Invariant
//! The Parquet writer decides about pages by what one call brings it. So it is fed slices of
//! exactly `SLICE_ROWS` rows counted from the start of the file (the last may be shorter): what it
//! sees is a function of the rows alone. JSON has no such state.

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_writer::ArrowWriterOptions;
use parquet::basic::{Compression as Codec, GzipLevel, ZstdLevel};
use parquet::file::properties::WriterProperties;
use std::collections::VecDeque;
use std::io::{self, BufWriter, Write};
use weir_connect::json::JsonEncoder;

use super::{Compression, FilesystemSinkOptions, Format};

/// Rows of one call of the Parquet writer.
const SLICE_ROWS: usize = 8192;
/// Batches that wait at a time before they are joined.
const PARTS_MAX: usize = 64;
const BUFFER_BYTES: usize = 256 << 10;

/// How the files of a sink are encoded.
#[derive(Clone)]
pub(crate) enum Encoding {
    /// A JSON object a line.
    Json(JsonEncoder),
    /// Parquet with these properties.
    Parquet(SchemaRef, Box<WriterProperties>),
}

impl Encoding {
    /// The encoding that the options ask for; an error names what it cannot hold.
    pub(crate) fn of(
        schema: SchemaRef,
        options: &FilesystemSinkOptions,
    ) -> Result<Encoding, String> {
        match options.format {
            Format::Json => JsonEncoder::new(schema, options.json())
                .map(Encoding::Json)
                .map_err(|e| e.to_string()),
            Format::Parquet => {
                let codec = match options.compression {
                    Compression::Snappy => Codec::SNAPPY,
                    Compression::Zstd => Codec::ZSTD(ZstdLevel::default()),
                    Compression::Gzip => Codec::GZIP(GzipLevel::default()),
                    Compression::Lz4 => Codec::LZ4_RAW,
                    Compression::None | Compression::Uncompressed => Codec::UNCOMPRESSED,
                };
                let properties = WriterProperties::builder()
                    .set_compression(codec)
                    .set_max_row_group_row_count(Some(options.row_group_rows.get() as usize))
                    .build();
                // A type that the writer refuses is found here, not at the first row.
                let attempt =
                    ArrowWriter::try_new(io::sink(), schema.clone(), Some(properties.clone()));
                attempt.map_err(|e| e.to_string())?;
                Ok(Encoding::Parquet(schema, Box::new(properties)))
            }
        }
    }

    /// What names of files end in.
    pub(crate) fn suffix(&self) -> &'static str {
        match self {
            Encoding::Json(_) => ".jsonl",
            Encoding::Parquet(..) => ".parquet",
        }
    }

    /// Starts a file.
    pub(crate) fn start<W: Write + Send>(&self, file: W) -> io::Result<FileEncoder<W>> {
        let out = BufWriter::with_capacity(BUFFER_BYTES, file);
        Ok(match self {
            Encoding::Json(encoder) => {
                FileEncoder::Json { encoder: encoder.clone(), out, bytes: 0 }
            }
            Encoding::Parquet(schema, properties) => {
                let options = ArrowWriterOptions::new().with_properties((**properties).clone());
                let writer = ArrowWriter::try_new_with_options(out, schema.clone(), options)?;
                let waiting = Slices::of(schema.clone());
                FileEncoder::Parquet { writer: Box::new(writer), waiting }
            }
        })
    }
}

/// A file that is being written.
pub(crate) enum FileEncoder<W: Write + Send> {
    Json { encoder: JsonEncoder, out: BufWriter<W>, bytes: u64 },
    Parquet { writer: Box<ArrowWriter<BufWriter<W>>>, waiting: Slices },
}

impl<W: Write + Send> FileEncoder<W> {
    /// Adds rows.
    pub(crate) fn write(&mut self, rows: &RecordBatch) -> io::Result<()> {
        match self {
            FileEncoder::Json { encoder, out, bytes } => {
                let text = encoder.encode(rows);
                *bytes += text.len() as u64;
                out.write_all(&text)
            }
            FileEncoder::Parquet { writer, waiting } => {
                waiting.push(rows)?;
                while let Some(slice) = waiting.pop()? {
                    writer.write(&slice).map_err(disk_error)?;
                }
                Ok(())
            }
        }
    }

    /// Bytes so far; for Parquet with an estimate of the row group that is not written yet.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            FileEncoder::Json { bytes, .. } => *bytes,
            FileEncoder::Parquet { writer, .. } => {
                (writer.bytes_written() + writer.in_progress_size()) as u64
            }
        }
    }

    /// Writes what is left and gives the file back, not synced yet.
    pub(crate) fn finish(self) -> io::Result<W> {
        let out = match self {
            FileEncoder::Json { out, .. } => out,
            FileEncoder::Parquet { mut writer, mut waiting } => {
                if let Some(slice) = waiting.rest()? {
                    writer.write(&slice).map_err(disk_error)?;
                }
                writer.into_inner().map_err(disk_error)?
            }
        };
        out.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

/// The disk's own words where Parquet wraps them.
fn disk_error(error: parquet::errors::ParquetError) -> io::Error {
    match error {
        parquet::errors::ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(inner) => *inner,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}

/// Rows that wait until there are `SLICE_ROWS` of them.
///
/// Short batches are copied and joined now and then: a slice of a message from another process
/// would keep the whole message alive.
pub(crate) struct Slices {
    schema: SchemaRef,
    parts: VecDeque<RecordBatch>,
    rows: usize,
}

impl Slices {
    fn of(schema: SchemaRef) -> Slices {
        Slices { schema, parts: VecDeque::new(), rows: 0 }
    }

    fn push(&mut self, rows: &RecordBatch) -> io::Result<()> {
        self.rows += rows.num_rows();
        if rows.num_rows() >= SLICE_ROWS / 4 {
            self.parts.push_back(rows.clone());
            return Ok(());
        }
        let all: UInt32Array = (0..rows.num_rows() as u32).collect();
        self.parts.push_back(take_record_batch(rows, &all).map_err(io::Error::other)?);
        if self.parts.len() > PARTS_MAX {
            let joined = concat_batches(&self.schema, self.parts.iter());
            self.parts = VecDeque::from([joined.map_err(io::Error::other)?]);
        }
        Ok(())
    }

    fn pop(&mut self) -> io::Result<Option<RecordBatch>> {
        if self.rows < SLICE_ROWS { Ok(None) } else { self.take(SLICE_ROWS).map(Some) }
    }

    fn rest(&mut self) -> io::Result<Option<RecordBatch>> {
        if self.rows == 0 { Ok(None) } else { self.take(self.rows).map(Some) }
    }

    fn take(&mut self, count: usize) -> io::Result<RecordBatch> {
        let mut taken = Vec::new();
        let mut missing = count;
        while let Some(part) = self.parts.pop_front() {
            if part.num_rows() > missing {
                taken.push(part.slice(0, missing));
                self.parts.push_front(part.slice(missing, part.num_rows() - missing));
                break;
            }
            missing -= part.num_rows();
            taken.push(part);
            if missing == 0 {
                break;
            }
        }
        self.rows -= count;
        concat_batches(&self.schema, taken.iter()).map_err(io::Error::other)
    }
}
