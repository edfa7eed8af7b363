//! One shard's open files, one a partition, and when they close.
//!
//! # Invariant
//! Epoch e is committed iff no open file has rows of an epoch ≤ e. What closes, and when, depends
//! on rows, epochs and recorded times alone.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_connect::store::Draft;
use weir_engine::connector::ConnectorError;
use weir_engine::sink::{ShardEnd, SinkReport, SinkWriter};
use weir_engine::time::{Epoch, Millis};

use super::encode::{Encoding, FileEncoder};
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
}

/// Writes one shard.
pub(crate) struct ShardWriter {
    shard: u32,
    files: ShardTarget,
    layout: Layout,
    encoding: Encoding,
    rolling: Rolling,
    report: Arc<SinkReport>,
    open: BTreeMap<Arc<str>, OpenFile>,
    ended: Epoch,
}

impl ShardWriter {
    pub(crate) fn over(
        shard: u32,
        files: ShardTarget,
        layout: Layout,
        encoding: Encoding,
        rolling: Rolling,
        report: Arc<SinkReport>,
    ) -> ShardWriter {
        let open = BTreeMap::new();
        ShardWriter { shard, files, layout, encoding, rolling, report, open, ended: 0 }
    }

    fn append(
        &mut self,
        epoch: Epoch,
        folder: &Arc<str>,
        rows: &RecordBatch,
    ) -> Result<(), ConnectorError> {
        if !self.open.contains_key(folder) {
            let draft = self.files.start(&stem(self.shard, epoch))?;
            let encoder = self.encoding.start(draft).map_err(of_writing)?;
            let opened = OpenFile { encoder, first_epoch: epoch, since: None, rows: 0 };
            self.open.insert(folder.clone(), opened);
        }
        if let Some(open) = self.open.get_mut(folder) {
            open.rows += rows.num_rows() as u64;
            open.encoder.write(rows).map_err(of_writing)?;
        }
        Ok(())
    }

    fn close(&mut self, folder: &Arc<str>) -> Result<(), ConnectorError> {
        let Some(open) = self.open.remove(folder) else { return Ok(()) };
        let draft = open.encoder.finish().map_err(of_writing)?;
        let (stem, bytes) = (stem(self.shard, open.first_epoch), draft.size());
        self.files.publish(draft, folder, &stem, self.encoding.suffix())?;
        self.report.committed(open.rows, bytes);
        Ok(())
    }

    fn committed(&self) -> Epoch {
        let oldest = self.open.values().map(|f| f.first_epoch).min();
        oldest.map_or(self.ended, |first| first.saturating_sub(1).min(self.ended))
    }
}

/// A file's name without its suffix.
fn stem(shard: u32, first_epoch: Epoch) -> String {
    format!("part-{shard}-{first_epoch:020}")
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
        parts.iter().try_for_each(|(folder, part)| self.append(epoch, folder, part))
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
