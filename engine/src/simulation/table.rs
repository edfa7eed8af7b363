//! A transactional target, as PostgreSQL is: rows and progress change together, by compare and set,
//! and what a client asks for can be refused, done without a reply, or done much later.
//!
//! # Looking closely
//! Of what takes changes: what is taken back has to be there, and a key has one line. Of what takes
//! rows: all lines of a window come in one epoch.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::fate::{Fate, Life, lock};
use super::job::rows::{Line, cells};
use crate::connector::ConnectorError;
use crate::sink::{Author, Progress, ShardEnd, Sink, SinkReport, SinkWriter};
use crate::time::Epoch;

/// Attempts at a commit before a writer gives up.
const ATTEMPTS: usize = 40;
/// Requests that are on their way for long.
const LATE_MAX: usize = 4;

/// What a target takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takes {
    /// Rows that stay.
    Rows,
    /// Lines by key, which come and go.
    Changes,
}

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
    rows: Vec<Change>,
}

/// A line with how often it comes, and in which epoch.
type Change = (Epoch, Line, i64);

#[derive(Default)]
struct State {
    owner: (u64, u64),
    progress: BTreeMap<u32, Progress>,
    /// Each with how often it is there.
    rows: BTreeMap<Line, i64>,
    /// By windows' ends, when they fired.
    fired: BTreeMap<i64, Epoch>,
    late: Vec<Request>,
    /// What was found out to be wrong.
    wrong: Option<String>,
}

/// The target.
pub(super) struct Table {
    fate: Arc<Fate>,
    pub(super) shards: u32,
    takes: Takes,
    guards: Guards,
    state: Mutex<State>,
}

impl State {
    /// Windows fire; why that cannot be right.
    fn fire(&mut self, rows: &[Change]) -> Option<String> {
        rows.iter().find_map(|(epoch, [end, ..], diff)| {
            let at = *self.fired.entry(*end).or_insert(*epoch);
            let text = || format!("the window to {end} fires in epoch {at}, and {diff} in {epoch}");
            (at != *epoch || *diff != 1).then(text)
        })
    }

    /// Why lines by key cannot be right.
    fn wrong_lines(&self) -> Option<String> {
        if let Some(line) = self.rows.iter().find(|(_, n)| **n != 1) {
            return Some(format!("{line:?} is not there once"));
        }
        let mut keys: Vec<i64> = self.rows.keys().map(|[_, key, ..]| *key).collect();
        keys.sort_unstable();
        let twice = keys.windows(2).find(|pair| pair[0] == pair[1]);
        twice.map(|pair| format!("key {} has two lines", pair[0]))
    }
}

impl Table {
    pub(super) fn of(fate: &Arc<Fate>, takes: Takes, guards: Guards) -> Arc<Table> {
        let shards = fate.between(1, 3) as u32;
        Arc::new(Table { fate: fate.clone(), shards, takes, guards, state: Mutex::default() })
    }

    /// Its rows, sorted; or why they cannot be right.
    pub(super) fn rows(&self) -> Result<Vec<Line>, String> {
        let state = lock(&self.state);
        if let Some(wrong) = &state.wrong {
            return Err(wrong.clone());
        }
        let times = |(line, n): (&Line, &i64)| vec![*line; usize::try_from(*n).unwrap_or(0)];
        Ok(state.rows.iter().flat_map(times).collect())
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
        for (_, line, diff) in &request.rows {
            *state.rows.entry(*line).or_default() += diff;
        }
        state.rows.retain(|_, n| *n != 0);
        let wrong = match self.takes {
            Takes::Rows => state.fire(&request.rows),
            Takes::Changes => state.wrong_lines(),
        };
        if let Some(wrong) = wrong {
            let (epoch, shard) = (request.to.epoch, request.shard);
            let text = format!("up to epoch {epoch}, shard {shard}: {wrong}");
            state.wrong.get_or_insert(text);
        }
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
        self.table.takes == Takes::Changes
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
    rows: Vec<Change>,
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
        epoch: Epoch,
        rows: RecordBatch,
        diffs: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError> {
        let diff = |row: usize| diffs.as_ref().map_or(1, |diffs| diffs[row]);
        let lines = cells::<4>(&rows).into_iter().enumerate();
        self.rows.extend(lines.map(|(row, line)| (epoch, line, diff(row))));
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
