//! Rows of open files that no checkpoint has yet.
//!
//! # Invariant
//! The rows of an open file are those of the pieces that were given for it, then those that were
//! spilled, then those that wait in memory, in the order in which they came. All of it goes when
//! the file closes.
//!
//! # Why rows
//! Half a Parquet file cannot be taken up again, so a checkpoint holds rows. A file's bytes are a
//! function of its rows in their order (`encode.rs`): neither the batches that they came in nor
//! where a checkpoint cut them needs to be known.
//!
//! # Limits
//! A shard keeps `kept_bytes_max` bytes in memory; beyond that the file that has most goes to disk
//! as Arrow IPC, beside its draft. Without checkpoints that disk holds, at most, the rows of the
//! open files as Arrow has them, so the rolling policy bounds it. A checkpoint has in memory what
//! came since the one before.

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take_record_batch};
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::io::{Cursor, Write};
use std::ops::Range;
use std::sync::Arc;
use weir_connect::store::Draft;
use weir_engine::connector::ConnectorError;
use weir_engine::keys::KeyGroups;
use weir_engine::rows::sliced_bytes;
use weir_engine::state::{PieceRef, Pieces, Restored, StatePart};
use weir_engine::time::{Epoch, Millis};

use super::target::of_writing;

/// What the pieces are called.
const KIND: &str = "open-file";
/// Where a piece says, in its schema's metadata, which file it is of.
const WHOSE: &str = "weir.open-file";
/// The version of what is said there (`docs/formats.md`).
const VERSION: u32 = 1;
/// Bytes of rows in a piece; more that came between two checkpoints make several.
const PIECE_BYTES_MAX: usize = 64 << 20;

/// Which file a piece is of, and which piece it is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Whose {
    version: u32,
    /// The folder of its partition.
    pub(crate) folder: String,
    pub(crate) first_epoch: Epoch,
    /// Recorded time at the end of its first epoch.
    pub(crate) since: Option<Millis>,
    /// The newest epoch whose end the shard had seen.
    pub(crate) ended: Epoch,
    /// The number of the file's pieces that come before.
    before: usize,
}

/// The rows of one open file that no checkpoint has.
#[derive(Default)]
pub(crate) struct Kept {
    given: Vec<PieceRef>,
    spilled: Option<(Draft, Vec<Range<u64>>)>,
    waiting: Vec<RecordBatch>,
    bytes: usize,
}

impl Kept {
    /// Of a file whose rows so far are in these pieces.
    pub(crate) fn given(given: Vec<PieceRef>) -> Kept {
        Kept { given, ..Kept::default() }
    }

    /// Keeps rows: a copy, because a slice would keep alive what it is a slice of.
    pub(crate) fn push(&mut self, rows: &RecordBatch) -> Result<(), ConnectorError> {
        let all: UInt32Array = (0..rows.num_rows() as u32).collect();
        let schema = nullable(&rows.schema());
        let copy = take_record_batch(rows, &all)
            .and_then(|copy| RecordBatch::try_new(schema, copy.columns().to_vec()))
            .map_err(of_arrow)?;
        self.bytes += sliced_bytes(&copy);
        self.waiting.push(copy);
        Ok(())
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Moves what is in memory to disk. `start` gives a file to write to.
    pub(crate) fn spill(
        &mut self,
        start: impl FnOnce() -> Result<Draft, ConnectorError>,
    ) -> Result<(), ConnectorError> {
        let Some(first) = self.waiting.first() else { return Ok(()) };
        let mut writer = StreamWriter::try_new(Vec::new(), &first.schema()).map_err(of_arrow)?;
        self.waiting.iter().try_for_each(|rows| writer.write(rows)).map_err(of_arrow)?;
        let bytes = writer.into_inner().map_err(of_arrow)?;
        let (mut draft, mut ranges) = match self.spilled.take() {
            Some(spilled) => spilled,
            None => (start()?, Vec::new()),
        };
        let from = draft.size();
        draft.write_all(&bytes).map_err(of_writing)?;
        ranges.push(from..draft.size());
        self.spilled = Some((draft, ranges));
        self.waiting.clear();
        self.bytes = 0;
        Ok(())
    }

    /// Gives a checkpoint all rows of the file.
    pub(crate) fn save(
        &mut self,
        mut whose: Whose,
        pieces: &mut dyn Pieces,
    ) -> Result<(), ConnectorError> {
        self.given.iter().for_each(|piece| pieces.same(*piece));
        let mut group = Group::default();
        if let Some((draft, ranges)) = self.spilled.take() {
            for range in ranges {
                let bytes = Cursor::new(draft.read(range)?);
                for rows in StreamReader::try_new(bytes, None).map_err(of_arrow)? {
                    group.push(rows.map_err(of_arrow)?);
                    if group.bytes >= PIECE_BYTES_MAX {
                        self.give(&mut group, &mut whose, pieces)?;
                    }
                }
            }
        }
        for rows in std::mem::take(&mut self.waiting) {
            group.push(rows);
            if group.bytes >= PIECE_BYTES_MAX {
                self.give(&mut group, &mut whose, pieces)?;
            }
        }
        self.bytes = 0;
        self.give(&mut group, &mut whose, pieces)
    }

    /// Gives the rows of a group as a piece.
    fn give(
        &mut self,
        group: &mut Group,
        whose: &mut Whose,
        pieces: &mut dyn Pieces,
    ) -> Result<(), ConnectorError> {
        let Some(first) = group.rows.first() else { return Ok(()) };
        whose.before = self.given.len();
        let schema = whose.written_into(&first.schema())?;
        let rows = concat_batches(&schema, &group.rows).map_err(of_arrow)?;
        let part = StatePart { kind: KIND, key_groups: KeyGroups::ALL, rows };
        self.given.push(pieces.put(part));
        *group = Group::default();
        Ok(())
    }
}

/// Rows on the way to a piece.
#[derive(Default)]
struct Group {
    rows: Vec<RecordBatch>,
    bytes: usize,
}

impl Group {
    fn push(&mut self, rows: RecordBatch) {
        self.bytes += sliced_bytes(&rows);
        self.rows.push(rows);
    }
}

impl Whose {
    /// The first piece of an open file.
    pub(crate) fn of(
        folder: &str,
        first_epoch: Epoch,
        since: Option<Millis>,
        ended: Epoch,
    ) -> Whose {
        let folder = folder.to_owned();
        Whose { version: VERSION, folder, first_epoch, since, ended, before: 0 }
    }

    fn written_into(&self, schema: &Schema) -> Result<SchemaRef, ConnectorError> {
        let text = serde_json::to_string(self);
        let text = text.map_err(|e| ConnectorError::fatal(format!("cannot save rows: {e}")))?;
        let metadata = HashMap::from([(WHOSE.to_owned(), text)]);
        Ok(Arc::new(schema.clone().with_metadata(metadata)))
    }

    fn read_from(part: &StatePart) -> Result<Whose, ConnectorError> {
        let schema = part.rows.schema();
        let text = schema.metadata().get(WHOSE).filter(|_| part.kind == KIND);
        let whose: Option<Whose> = text.and_then(|text| serde_json::from_str(text).ok());
        let whose = whose.ok_or_else(|| {
            let message = format!("a checkpoint's piece `{}` is not of an open file", part.kind);
            ConnectorError::fatal(message)
        })?;
        if whose.version == VERSION {
            return Ok(whose);
        }
        let version = whose.version;
        let message = format!(
            "a checkpoint has an open file in version {version}; this build reads {VERSION}"
        );
        Err(ConnectorError::fatal(message))
    }
}

/// A file as a checkpoint has it.
#[derive(Default)]
pub(crate) struct Reopened {
    /// In order.
    pub(crate) parts: Vec<(Whose, PieceRef, RecordBatch)>,
}

/// The files that were open at a checkpoint, by folder.
///
/// # Errors
/// A piece is missing, or none of ours.
pub(crate) fn reopened(
    pieces: Vec<Restored>,
) -> Result<BTreeMap<Arc<str>, Reopened>, ConnectorError> {
    let mut files: BTreeMap<Arc<str>, Reopened> = BTreeMap::new();
    for (id, part) in pieces {
        let whose = Whose::read_from(&part)?;
        let file = files.entry(Arc::from(whose.folder.as_str())).or_default();
        file.parts.push((whose, id, part.rows));
    }
    for (folder, file) in &mut files {
        file.parts.sort_by_key(|(whose, ..)| (whose.first_epoch, whose.before));
        let first = file.parts.first().map(|(whose, ..)| whose.first_epoch);
        let sound = |(place, (whose, ..)): (usize, &(Whose, _, _))| {
            whose.before == place && Some(whose.first_epoch) == first
        };
        if !file.parts.iter().enumerate().all(sound) {
            let message = format!("a checkpoint lacks rows of the open file in `{folder}`");
            return Err(ConnectorError::fatal(message));
        }
    }
    Ok(files)
}

/// One schema for all chunks of a file, whatever each of them says about NULLs.
fn nullable(schema: &Schema) -> SchemaRef {
    let fields = schema.fields().iter();
    let fields = fields.map(|f| Field::new(f.name(), f.data_type().clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

fn of_arrow(error: ArrowError) -> ConnectorError {
    ConnectorError::fatal(format!("cannot keep rows for a checkpoint: {error}"))
}
