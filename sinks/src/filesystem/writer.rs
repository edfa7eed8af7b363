//! One shard's open files, one a partition, and when they close.
//!
//! # Invariant
//! Epoch e is committed iff no open file has rows of an epoch ≤ e. What closes, and when, depends
//! on rows, epochs and recorded times alone.
//!
//! # Checkpoints
//! For a job that lasts each file keeps its rows until a checkpoint has them (`kept.rs`); taking
//! them up again writes the same file from its beginning, so that what an undisturbed run puts is
//! put.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_connect::store::{Draft, PutOutcome};
use weir_engine::connector::ConnectorError;
use weir_engine::sink::{ShardEnd, SinkReport, SinkWriter};
use weir_engine::state::{Pieces, Restored};
use weir_engine::time::{Epoch, Millis};

use super::encode::{Encoding, FileEncoder};
use super::kept::{Kept, Reopened, Whose, reopened};
use super::partition::Layout;
use super::target::{ShardTarget, of_writing};

/// When files close.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rolling {
    /// Bytes.
    pub(crate) bytes_max: u64,
    /// Milliseconds of recorded time.
    pub(crate) age_max: Millis,
    /// Files open at a time.
    pub(crate) files_max: usize,
}

struct OpenFile {
    encoder: FileEncoder<Draft>,
    first_epoch: Epoch,
    /// Recorded time at the end of its first epoch.
    since: Option<Millis>,
    rows: u64,
    /// Where the job lasts.
    kept: Option<Kept>,
}

/// Writes one shard.
pub(crate) struct ShardWriter {
    files: ShardTarget,
    layout: Layout,
    encoding: Encoding,
    rolling: Rolling,
    /// Bytes of rows that wait in memory for a checkpoint; `None` where none will come.
    kept_bytes_max: Option<usize>,
    report: Arc<SinkReport>,
    open: BTreeMap<Arc<str>, OpenFile>,
    ended: Epoch,
}

impl ShardWriter {
    pub(crate) fn over(
        files: ShardTarget,
        layout: Layout,
        encoding: Encoding,
        rolling: Rolling,
        kept_bytes_max: Option<usize>,
        report: Arc<SinkReport>,
    ) -> ShardWriter {
        let open = BTreeMap::new();
        ShardWriter { files, layout, encoding, rolling, kept_bytes_max, report, open, ended: 0 }
    }

    fn start(&self, first_epoch: Epoch) -> Result<OpenFile, ConnectorError> {
        let draft = self.files.start(&self.files.stem(first_epoch))?;
        let encoder = self.encoding.start(draft).map_err(of_writing)?;
        let kept = self.kept_bytes_max.map(|_| Kept::default());
        Ok(OpenFile { encoder, first_epoch, since: None, rows: 0, kept })
    }

    fn append(
        &mut self,
        epoch: Epoch,
        folder: &Arc<str>,
        rows: &RecordBatch,
    ) -> Result<(), ConnectorError> {
        if !self.open.contains_key(folder) {
            let opened = self.start(epoch)?;
            self.open.insert(folder.clone(), opened);
        }
        if let Some(open) = self.open.get_mut(folder) {
            open.rows += rows.num_rows() as u64;
            open.encoder.write(rows).map_err(of_writing)?;
            if let Some(kept) = &mut open.kept {
                kept.push(rows)?;
            }
        }
        Ok(())
    }

    /// Moves rows that wait for a checkpoint to disk until few enough are in memory.
    fn spill(&mut self) -> Result<(), ConnectorError> {
        let Some(bytes_max) = self.kept_bytes_max else { return Ok(()) };
        let files = &self.files;
        let in_memory = |open: &OpenFile| open.kept.as_ref().map_or(0, Kept::bytes);
        let mut bytes: usize = self.open.values().map(in_memory).sum();
        while bytes > bytes_max {
            let Some(most) = self.open.values_mut().max_by_key(|open| in_memory(open)) else {
                break;
            };
            bytes -= in_memory(most);
            if let Some(kept) = &mut most.kept {
                let label = format!("{}-rows", files.stem(most.first_epoch));
                kept.spill(|| files.start(&label))?;
            }
        }
        Ok(())
    }

    fn close(&mut self, folder: &Arc<str>) -> Result<(), ConnectorError> {
        let Some(open) = self.open.remove(folder) else { return Ok(()) };
        let draft = open.encoder.finish().map_err(of_writing)?;
        let (stem, bytes) = (self.files.stem(open.first_epoch), draft.size());
        let put = self.files.publish(draft, folder, &stem, self.encoding.suffix())?;
        if put == PutOutcome::Written {
            self.report.committed(open.rows, bytes);
        }
        Ok(())
    }

    /// Writes a file again from the rows that a checkpoint has.
    fn reopen(&mut self, folder: &Arc<str>, file: Reopened) -> Result<(), ConnectorError> {
        let mut given = Vec::new();
        for (whose, id, rows) in file.parts {
            if !self.open.contains_key(folder) {
                let opened = self.start(whose.first_epoch)?;
                self.open.insert(folder.clone(), opened);
            }
            if let Some(open) = self.open.get_mut(folder) {
                open.since = whose.since;
                open.rows += rows.num_rows() as u64;
                open.encoder.write(&rows).map_err(of_writing)?;
            }
            self.ended = self.ended.max(whose.ended);
            given.push(id);
        }
        if let Some(open) = self.open.get_mut(folder) {
            open.kept = self.kept_bytes_max.map(|_| Kept::given(given));
        }
        Ok(())
    }

    fn committed(&self) -> Epoch {
        let oldest = self.open.values().map(|f| f.first_epoch).min();
        oldest.map_or(self.ended, |first| first.saturating_sub(1).min(self.ended))
    }
}

impl SinkWriter for ShardWriter {
    fn write(
        &mut self,
        epoch: Epoch,
        rows: RecordBatch,
        diffs: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError> {
        if diffs.is_some_and(|d| d.iter().any(|&diff| diff < 0)) {
            return Err(ConnectorError::fatal("files cannot take rows back"));
        }
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let divided = self.layout.divide(&rows);
        let parts = divided.map_err(|e| ConnectorError::fatal(format!("partitions: {e}")))?;
        parts.iter().try_for_each(|(folder, part)| self.append(epoch, folder, part))?;
        self.spill()
    }

    fn save(&mut self, pieces: &mut dyn Pieces) -> Result<(), ConnectorError> {
        for (folder, open) in &mut self.open {
            let Some(kept) = &mut open.kept else { continue };
            debug_assert!(open.since.is_some(), "a checkpoint is at the end of an epoch");
            let whose = Whose::of(folder, open.first_epoch, open.since, self.ended);
            kept.save(whose, pieces)?;
        }
        Ok(())
    }

    fn resume(&mut self, pieces: Vec<Restored>) -> Result<(), ConnectorError> {
        let files = reopened(pieces)?;
        files.into_iter().try_for_each(|(folder, file)| self.reopen(&folder, file))
    }

    fn end_epoch(&mut self, end: ShardEnd) -> Result<Epoch, ConnectorError> {
        let ShardEnd { epoch, recorded_time, .. } = end;
        self.ended = epoch;
        let rolling = self.rolling;
        let mut due = Vec::new();
        for (folder, open) in &mut self.open {
            let since = *open.since.get_or_insert(recorded_time);
            let age = recorded_time.saturating_sub(since);
            if age >= rolling.age_max || open.encoder.bytes() >= rolling.bytes_max {
                due.push(folder.clone());
            }
        }
        let left = self.open.len() - due.len();
        if left > rolling.files_max {
            let mut rest: Vec<_> = self.open.iter().filter(|(f, _)| !due.contains(f)).collect();
            rest.sort_by_key(|(folder, open)| (open.first_epoch, Arc::clone(folder)));
            let early = rest.iter().take(left - rolling.files_max).map(|(f, _)| Arc::clone(f));
            due.extend(early.collect::<Vec<_>>());
        }
        due.iter().try_for_each(|folder| self.close(folder))?;
        Ok(self.committed())
    }

    fn flush(&mut self) -> Result<Epoch, ConnectorError> {
        Ok(self.committed())
    }

    fn finish(&mut self) -> Result<(), ConnectorError> {
        while let Some(folder) = self.open.keys().next().cloned() {
            self.close(&folder)?;
        }
        Ok(())
    }
}
