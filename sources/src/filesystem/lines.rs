//! Files of JSON lines, cut into byte ranges that end with a line.
//!
//! # Invariant
//! Units follow one another without a gap, each begins at the start of a line, and the ordinal of
//! its first line is known when it is cut: the lines before it have been counted, not decoded.
//!
//! # Cost
//! Cutting costs one read and one look at each byte for its newlines (several GB/s); the last,
//! partial line of a range is read again with the next.
//!
//! # Limits
//! A line of more than `LINE_BYTES_MAX` ends the job.

use bytes::{Bytes, BytesMut};
use flate2::read::MultiGzDecoder;
use std::collections::VecDeque;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use weir_connect::json::{JsonDecoder, Pushed};
use weir_engine::connector::ConnectorError;
use weir_engine::source::{BadRow, Chunk, Offsets};

use super::columns::{FileFacts, Piece};
use super::input::Input;
use super::{Appetite, Files, Unit, Units};

/// Bytes of a unit.
const UNIT_BYTES: u64 = 2 << 20;
const TASTE_BYTES: u64 = 64 << 10;
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Rows of a chunk.
const ROWS_MAX: usize = 32_768;

type OpenFile = Box<dyn Fn(&str) -> Result<Input, ConnectorError> + Send>;

/// The units of a split.
pub(super) struct Lines {
    shared: Arc<Shared>,
    open: OpenFile,
    paths: VecDeque<String>,
    unit_bytes: u64,
    current: Option<Current>,
    /// Ordinal of the next line in the split.
    ordinal: u64,
}

struct Shared {
    files: Arc<Files>,
    /// Decoders that have learned how the messages look.
    decoders: Mutex<Vec<JsonDecoder>>,
}

/// The file that is being cut.
struct Current {
    facts: Arc<FileFacts>,
    /// Ordinal of the file's first line.
    first: u64,
    bytes: Source,
}

enum Source {
    Plain { input: Input, at: u64 },
    Packed { input: Arc<Input>, unpacked: Box<dyn Read + Send>, rest: BytesMut, ended: bool },
}

impl Lines {
    pub(super) fn new(
        files: &Arc<Files>,
        paths: Vec<String>,
        appetite: Appetite,
        open: impl Fn(&str) -> Result<Input, ConnectorError> + Send + 'static,
    ) -> Lines {
        Lines {
            shared: Arc::new(Shared { files: files.clone(), decoders: Mutex::default() }),
            open: Box::new(open),
            paths: paths.into(),
            unit_bytes: match appetite {
                Appetite::Whole => UNIT_BYTES,
                Appetite::Taste => TASTE_BYTES,
            },
            current: None,
            ordinal: 0,
        }
    }
}

impl Units for Lines {
    fn next(&mut self) -> Result<Option<Box<dyn Unit>>, ConnectorError> {
        loop {
            if let Some(current) = &mut self.current {
                let bytes = current.bytes.next(self.unit_bytes)?;
                if !bytes.is_empty() {
                    let (facts, file_first) = (current.facts.clone(), current.first);
                    let (shared, first) = (self.shared.clone(), self.ordinal);
                    let unended = bytes.last() != Some(&b'\n');
                    let lines = memchr::memchr_iter(b'\n', &bytes).count() as u64;
                    self.ordinal += lines + u64::from(unended);
                    let unit = LinesUnit { shared, facts, file_first, first, bytes };
                    return Ok(Some(Box::new(unit)));
                }
                self.current = None;
            }
            let Some(path) = self.paths.pop_front() else { return Ok(None) };
            let input = (self.open)(&path)?;
            let facts = Arc::new(self.shared.files.columns.facts(&input));
            let bytes = if path_is_packed(&input) {
                let input = Arc::new(input);
                let unpacked = MultiGzDecoder::new(Stream::new(input.clone()));
                let unpacked = Box::new(unpacked);
                Source::Packed { input, unpacked, rest: BytesMut::new(), ended: false }
            } else {
                Source::Plain { input, at: 0 }
            };
            self.current = Some(Current { facts, first: self.ordinal, bytes });
        }
    }
}

/// Whether the file is compressed, by its name.
pub(super) fn path_is_packed(input: &Input) -> bool {
    input.name().ends_with(".gz")
}

/// A file's bytes from the beginning, in large reads.
pub(super) struct Stream {
    input: Arc<Input>,
    at: u64,
    block: Bytes,
}

impl Stream {
    pub(super) fn new(input: Arc<Input>) -> Stream {
        Stream { input, at: 0, block: Bytes::new() }
    }
}

impl Read for Stream {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        if self.block.is_empty() {
            let end = (self.at + UNIT_BYTES).min(self.input.size());
            self.block = self.input.read(self.at..end).map_err(std::io::Error::other)?;
            self.at = end;
        }
        let count = out.len().min(self.block.len());
        out[..count].copy_from_slice(&self.block.split_to(count));
        Ok(count)
    }
}

/// The world's error inside one of a reader, or one about the file's content.
pub(super) fn fault(input: &Input, error: std::io::Error) -> ConnectorError {
    match error.downcast::<ConnectorError>() {
        Ok(inner) => inner,
        Err(other) => input.unreadable(&other.to_string()),
    }
}

impl Source {
    /// Whole lines of about `size` bytes, at the end what is left; empty after that.
    fn next(&mut self, size: u64) -> Result<Bytes, ConnectorError> {
        match self {
            Source::Plain { input, at } => {
                let mut size = size;
                loop {
                    let end = at.saturating_add(size).min(input.size());
                    let mut bytes = input.read(*at..end)?;
                    if end < input.size() {
                        let Some(last) = memchr::memrchr(b'\n', &bytes) else {
                            size = longer(input, size)?;
                            continue;
                        };
                        bytes.truncate(last + 1);
                    }
                    *at += bytes.len() as u64;
                    return Ok(bytes);
                }
            }
            Source::Packed { input, unpacked, rest, ended } => {
                let mut size = size;
                loop {
                    let more = size.saturating_sub(rest.len() as u64);
                    if !*ended {
                        let mut block = Vec::new();
                        let got = unpacked.by_ref().take(more).read_to_end(&mut block);
                        let got = got.map_err(|e| fault(input, e))?;
                        *ended = (got as u64) < more;
                        rest.extend_from_slice(&block);
                    }
                    if *ended {
                        return Ok(rest.split().freeze());
                    }
                    match memchr::memrchr(b'\n', rest) {
                        Some(last) => return Ok(rest.split_to(last + 1).freeze()),
                        None => size = longer(input, size)?,
                    }
                }
            }
        }
    }
}

fn longer(input: &Input, size: u64) -> Result<u64, ConnectorError> {
    if size >= LINE_BYTES_MAX {
        let what = format!("a line is longer than {} MiB", LINE_BYTES_MAX >> 20);
        return Err(input.unreadable(&what));
    }
    Ok((size * 2).min(LINE_BYTES_MAX))
}

struct LinesUnit {
    shared: Arc<Shared>,
    facts: Arc<FileFacts>,
    /// Ordinal of the file's first line.
    file_first: u64,
    /// Ordinal of the first line.
    first: u64,
    bytes: Bytes,
}

/// Rows that are being gathered into a chunk.
struct Gathering {
    first: u64,
    /// Offsets of the rows, once they are not consecutive.
    each: Option<Vec<u64>>,
    bad: Vec<BadRow>,
}

impl Gathering {
    fn row(&mut self, rows_before: usize, ordinal: u64) {
        if rows_before == 0 {
            self.first = ordinal;
        }
        let expected = self.first + rows_before as u64;
        if self.each.is_none() && ordinal != expected {
            self.each = Some((self.first..expected).collect());
        }
        if let Some(each) = &mut self.each {
            each.push(ordinal);
        }
    }

    fn piece(&mut self, decoder: &mut JsonDecoder, next: u64) -> Piece {
        let offsets = match self.each.take() {
            Some(each) => Offsets::Each(each.into()),
            None => Offsets::From(self.first),
        };
        let bad = std::mem::take(&mut self.bad);
        Piece { rows: decoder.finish(), offsets, bad, next }
    }
}

impl Unit for LinesUnit {
    fn decode(self: Box<Self>) -> Result<Vec<Chunk>, ConnectorError> {
        let files = &self.shared.files;
        let kept = self.shared.decoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut decoder = match kept {
            Some(decoder) => decoder,
            None => JsonDecoder::new(files.columns.decoded().clone(), files.options.json())
                .map_err(|e| ConnectorError::fatal(format!("table `{}`: {e}", files.table)))?
                .with_dictionaries(files.columns.keyed()),
        };
        let mut chunks = Vec::new();
        let mut gathering = Gathering { first: self.first, each: None, bad: Vec::new() };
        let mut ordinal = self.first;
        let mut at = 0;
        while at < self.bytes.len() {
            let end = memchr::memchr(b'\n', &self.bytes[at..]).map_or(self.bytes.len(), |n| at + n);
            let line = &self.bytes[at..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let rows = decoder.rows();
            match decoder.push(line) {
                Ok(Pushed::Row) => gathering.row(rows, ordinal),
                Ok(Pushed::Skipped) => {}
                Err(error) if files.options.fail_on_error => {
                    return Err(self.refuse(ordinal, &error.to_string()));
                }
                Err(error) => gathering.bad.push(BadRow {
                    offset: ordinal,
                    arrival: None,
                    payload: line.to_vec(),
                    reason: error.to_string(),
                }),
            }
            ordinal += 1;
            at = end + 1;
            if decoder.rows() == ROWS_MAX {
                let piece = gathering.piece(&mut decoder, ordinal);
                chunks.push(files.columns.chunk(piece, &self.facts)?);
            }
        }
        if decoder.rows() > 0 || !gathering.bad.is_empty() || chunks.is_empty() {
            let piece = gathering.piece(&mut decoder, ordinal);
            chunks.push(files.columns.chunk(piece, &self.facts)?);
        }
        self.shared.decoders.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
        Ok(chunks)
    }
}

impl LinesUnit {
    fn refuse(&self, ordinal: u64, why: &str) -> ConnectorError {
        let (name, table) = (&self.facts.name, &self.shared.files.table);
        let line = ordinal - self.file_first + 1;
        let message = format!("{name}, line {line}: {why} (table `{table}`)");
        let hint = "without 'json.fail-on-error' such lines are counted, and go to the \
                    'dead-letter.table' if there is one";
        ConnectorError::fatal(message).hint(hint)
    }
}
