//! A target of files: rows of several epochs become one object, put once under a name that follows
//! from its first epoch. Until then a checkpoint has them.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::fate::{Fate, Life, lock};
use super::job::rows::{Line, cells, table};
use crate::connector::ConnectorError;
use crate::keys::KeyGroups;
use crate::sink::{Author, ShardEnd, Sink, SinkReport, SinkWriter};
use crate::state::{Pieces, Restored, StatePart};
use crate::time::Epoch;

/// Rows at which a file is closed.
const FILE_ROWS: usize = 9;

/// The folder.
pub(super) struct Folder {
    fate: Arc<Fate>,
    pub(super) shards: u32,
    files: Mutex<BTreeMap<(u32, Epoch), Vec<Line>>>,
    /// What was found out to be wrong.
    wrong: Mutex<Option<String>>,
}

impl Folder {
    pub(super) fn of(fate: &Arc<Fate>) -> Arc<Folder> {
        let shards = fate.between(1, 2) as u32;
        let (files, wrong) = (Mutex::default(), Mutex::default());
        Arc::new(Folder { fate: fate.clone(), shards, files, wrong })
    }

    /// All rows, sorted; or why they cannot be right.
    pub(super) fn rows(&self) -> Result<Vec<Line>, String> {
        if let Some(wrong) = lock(&self.wrong).clone() {
            return Err(wrong);
        }
        let mut rows: Vec<Line> = lock(&self.files).values().flatten().copied().collect();
        rows.sort_unstable();
        Ok(rows)
    }

    fn put(&self, name: (u32, Epoch), rows: &[Line]) {
        let mut files = lock(&self.files);
        let there = files.entry(name).or_insert_with(|| rows.to_vec());
        if there != rows {
            let text = format!("file {name:?} has other rows the second time");
            lock(&self.wrong).get_or_insert(text);
        }
    }
}

/// The sink, as a process has it.
pub(super) struct FolderSink {
    pub(super) folder: Arc<Folder>,
    pub(super) life: Arc<Life>,
}

impl Sink for FolderSink {
    fn shards(&self) -> u32 {
        self.folder.shards
    }

    fn accepts_retractions(&self) -> bool {
        false
    }

    fn open(
        &self,
        shard: u32,
        _author: Option<&Author>,
        _report: Arc<SinkReport>,
    ) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        let (folder, life) = (self.folder.clone(), self.life.clone());
        Ok(Box::new(Writer { folder, life, shard, first: None, rows: Vec::new(), last: 0 }))
    }

    fn probe(&self) -> Result<(), ConnectorError> {
        Ok(())
    }

    fn guarantee(&self) -> String {
        "exactly once".to_owned()
    }
}

struct Writer {
    folder: Arc<Folder>,
    life: Arc<Life>,
    shard: u32,
    /// The first epoch of the open file.
    first: Option<Epoch>,
    rows: Vec<Line>,
    last: Epoch,
}

impl Writer {
    fn close(&mut self) -> Result<(), ConnectorError> {
        let Some(first) = self.first.take() else { return Ok(()) };
        let rows = std::mem::take(&mut self.rows);
        // Tried until it works; some are done without a reply, and done again.
        loop {
            if !self.life.goes_on() {
                return Err(ConnectorError::fatal("the process is no more"));
            }
            match self.folder.fate.below(8) {
                0 => {}
                1 => self.folder.put((self.shard, first), &rows),
                _ => break self.folder.put((self.shard, first), &rows),
            }
        }
        Ok(())
    }

    /// The newest epoch of which nothing is in the open file.
    fn committed(&self) -> Epoch {
        self.first.map_or(self.last, |first| first.saturating_sub(1))
    }
}

impl SinkWriter for Writer {
    fn write(
        &mut self,
        epoch: Epoch,
        rows: RecordBatch,
        _diffs: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError> {
        self.first.get_or_insert(epoch);
        self.rows.extend(cells::<4>(&rows));
        Ok(())
    }

    fn save(&mut self, pieces: &mut dyn Pieces) -> Result<(), ConnectorError> {
        let Some(first) = self.first else { return Ok(()) };
        let line = |[end, key, n, sum]: &Line| [*end, *key, *n, *sum, first as i64];
        let lines: Vec<[i64; 5]> = self.rows.iter().map(line).collect();
        let rows = table(["end", "key", "n", "sum", "first"], &lines);
        pieces.put(StatePart { kind: "open", key_groups: KeyGroups::ALL, rows });
        Ok(())
    }

    fn resume(&mut self, pieces: Vec<Restored>) -> Result<(), ConnectorError> {
        for (_, part) in pieces {
            self.rows.extend(cells::<4>(&part.rows));
            let first = cells::<5>(&part.rows).first().map(|[.., first]| *first as Epoch);
            self.first = first;
        }
        Ok(())
    }

    fn end_epoch(&mut self, end: ShardEnd) -> Result<Epoch, ConnectorError> {
        self.last = end.epoch;
        if self.rows.len() >= FILE_ROWS {
            self.close()?;
        }
        Ok(self.committed())
    }

    fn flush(&mut self) -> Result<Epoch, ConnectorError> {
        Ok(self.committed())
    }

    fn finish(&mut self) -> Result<(), ConnectorError> {
        self.close()
    }
}
