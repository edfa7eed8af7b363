//! A transactional target, as PostgreSQL is: rows and progress change together, by compare and set,
//! and what a client asks for can be refused, done without a reply, or done much later.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::count::{Line, lines};
use super::fate::{Fate, Life, lock};
use crate::connector::ConnectorError;
use crate::sink::{Author, Progress, ShardEnd, Sink, SinkReport, SinkWriter};
use crate::time::Epoch;

/// Attempts at a commit before a writer gives up.
const ATTEMPTS: usize = 40;
/// Requests that are on their way for long.
const LATE_MAX: usize = 4;

/// What holds the target together, and what tests take away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Guards {
    /// Only the newest author writes.
    pub(super) fence: bool,
    /// Progress is compared before it is set.
    pub(super) compare: bool,
}

/// A transaction.
#[derive(Clone)]
struct Request {
    shard: u32,
    author: (u64, u64),
    from: Option<Epoch>,
    to: Progress,
    rows: Vec<Line>,
}

#[derive(Default)]
struct State {
    owner: (u64, u64),
    progress: BTreeMap<u32, Progress>,
    rows: Vec<Line>,
    late: Vec<Request>,
}

/// The target.
pub(super) struct Table {
    fate: Arc<Fate>,
    pub(super) shards: u32,
    guards: Guards,
    state: Mutex<State>,
}

impl Table {
    pub(super) fn of(fate: &Arc<Fate>, guards: Guards) -> Arc<Table> {
        let shards = fate.between(1, 3) as u32;
        Arc::new(Table { fate: fate.clone(), shards, guards, state: Mutex::default() })
    }

    /// Its rows, sorted.
    pub(super) fn rows(&self) -> Vec<Line> {
        let mut rows = lock(&self.state).rows.clone();
        rows.sort_unstable();
        rows
    }

    /// Something that was long on its way arrives; false: nothing was.
    pub(super) fn arrive(&self) -> bool {
        let mut state = lock(&self.state);
        if state.late.is_empty() {
            return false;
        }
        let chosen = self.fate.index(state.late.len());
        let request = state.late.remove(chosen);
        let done = self.apply(&mut state, request);
        self.fate.note(if done.is_ok() {
            "a late commit is done"
        } else {
            "a late one is refused"
        });
        true
    }

    fn apply(&self, state: &mut State, request: Request) -> Result<(), ConnectorError> {
        if self.guards.fence && request.author != state.owner {
            return Err(ConnectorError::fatal(FENCED));
        }
        let there = state.progress.get(&request.shard).map(|progress| progress.epoch);
        if self.guards.compare && there != request.from {
            return Err(ConnectorError::fatal("the progress is not what it was"));
        }
        state.progress.insert(request.shard, request.to);
        state.rows.extend(request.rows);
        Ok(())
    }

    /// One attempt: whether it was done, as far as the client knows.
    fn attempt(&self, life: &Life, request: &Request) -> Result<(), ConnectorError> {
        let lost = || ConnectorError::retry("the connection was lost");
        if !life.goes_on() {
            return Err(ConnectorError::fatal("the process is no more"));
        }
        let mut state = lock(&self.state);
        match self.fate.below(16) {
            0 => Err(ConnectorError::retry("the commit was refused")),
            1 => self.apply(&mut state, request.clone()).and(Err(lost())),
            2 if state.late.len() < LATE_MAX => {
                self.fate.note("a commit is late");
                state.late.push(request.clone());
                Err(lost())
            }
            3 => {
                // Done, and once more later.
                if state.late.len() < LATE_MAX {
                    state.late.push(request.clone());
                }
                self.apply(&mut state, request.clone())
            }
            _ => self.apply(&mut state, request.clone()),
        }
    }

    fn progress(&self, shard: u32) -> Option<Progress> {
        lock(&self.state).progress.get(&shard).copied()
    }
}

/// What an author hears that is not the newest any more.
pub(super) const FENCED: &str = "a newer generation writes this table";

/// The sink, as a process has it.
pub(super) struct TableSink {
    pub(super) table: Arc<Table>,
    pub(super) life: Arc<Life>,
}

impl Sink for TableSink {
    fn shards(&self) -> u32 {
        self.table.shards
    }

    fn accepts_retractions(&self) -> bool {
        false
    }

    fn take_over(&self, author: &Author) -> Result<Option<Epoch>, ConnectorError> {
        if !self.life.goes_on() || self.table.fate.once_in(20) {
            return Err(ConnectorError::retry("the target cannot be reached"));
        }
        let mut state = lock(&self.table.state);
        let owner = (author.generation, author.holder);
        if self.table.guards.fence && state.owner.0 >= owner.0 {
            return Err(ConnectorError::fatal(FENCED));
        }
        state.owner = owner;
        Ok(state.progress.values().map(|progress| progress.epoch).max())
    }

    fn open(
        &self,
        shard: u32,
        author: Option<&Author>,
        report: Arc<SinkReport>,
    ) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        let author = author.map_or((0, 0), |author| (author.generation, author.holder));
        if self.table.guards.fence && lock(&self.table.state).owner != author {
            return Err(ConnectorError::fatal(FENCED));
        }
        let (table, life) = (self.table.clone(), self.life.clone());
        let progress = table.progress(shard);
        let from = progress.map(|progress| progress.epoch);
        let (rows, to, committed) = (Vec::new(), None, from.unwrap_or(0));
        let opened = progress;
        Ok(Box::new(Writer {
            table,
            life,
            report,
            shard,
            author,
            opened,
            from,
            to,
            rows,
            committed,
        }))
    }

    fn probe(&self) -> Result<(), ConnectorError> {
        Ok(())
    }

    fn guarantee(&self) -> String {
        "exactly once".to_owned()
    }
}

struct Writer {
    table: Arc<Table>,
    life: Arc<Life>,
    report: Arc<SinkReport>,
    shard: u32,
    author: (u64, u64),
    opened: Option<Progress>,
    /// What the target has.
    from: Option<Epoch>,
    /// Up to where `rows` go.
    to: Option<Progress>,
    rows: Vec<Line>,
    committed: Epoch,
}

impl Writer {
    fn commit(&mut self) -> Result<Epoch, ConnectorError> {
        let Some(to) = self.to else { return Ok(self.committed) };
        let (shard, author, from) = (self.shard, self.author, self.from);
        let request = Request { shard, author, from, to, rows: std::mem::take(&mut self.rows) };
        for _ in 0..ATTEMPTS {
            let done = self.table.attempt(&self.life, &request);
            match done {
                Ok(()) => {}
                Err(error) if error.remedy == crate::connector::Remedy::Fatal => return Err(error),
                // Was it done? The progress says so.
                Err(_) if self.table.progress(self.shard) == Some(to) => {}
                Err(error) if self.report.given_up() => return Err(error),
                Err(_) => continue,
            }
            (self.from, self.to, self.committed) = (Some(to.epoch), None, to.epoch);
            return Ok(to.epoch);
        }
        Err(ConnectorError::fatal("the target refuses for ever"))
    }
}

impl SinkWriter for Writer {
    fn progress(&self) -> Option<Progress> {
        self.opened
    }

    fn keeps_progress(&self) -> bool {
        true
    }

    fn write(
        &mut self,
        _epoch: Epoch,
        rows: RecordBatch,
        _diffs: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError> {
        self.rows.extend(lines(&rows));
        Ok(())
    }

    fn end_epoch(&mut self, end: ShardEnd) -> Result<Epoch, ConnectorError> {
        self.to = Some(Progress { epoch: end.epoch, digest: end.digest });
        // Some epochs wait for company.
        if self.table.fate.once_in(2) { self.commit() } else { Ok(self.committed) }
    }

    fn flush(&mut self) -> Result<Epoch, ConnectorError> {
        self.commit()
    }

    fn finish(&mut self) -> Result<(), ConnectorError> {
        self.commit().map(|_| ())
    }
}
