//! A source that can be read again, as Kafka's partitions can: rows that follow from the seed and
//! become available by and by, and splits that come later.
//!
//! # How it ends
//! No split ends before all have come: what can get more splits does not end in the world either.

use arrow::buffer::ScalarBuffer;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::fate::{Fate, Life, lock};
use super::job::rows::{KEYS_OF_LATER, Row, batch};
use super::runner::Runner;
use crate::connector::ConnectorError;
use crate::source::{Chunk, Offsets, Source, SourceHandle, SplitQueue, SplitSpec};
use crate::tasks::{Bell, Next, Running, Task, Tasks};

/// Rows that a reader pushes at a time.
const CHUNK_ROWS: u64 = 6;

/// One split: its rows with their offsets, and how many of them are there yet.
pub(super) struct FeedSplit {
    pub(super) rows: Vec<Row>,
    offsets: Vec<u64>,
    there: AtomicUsize,
}

/// What a feed is like.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Splits that are there from the beginning, and those that come later.
    pub(super) splits: usize,
    pub(super) later: usize,
    pub(super) rows_max: i64,
    /// Whether the splits are as files: whole, and opened only when they are wanted.
    pub(super) lazy: bool,
    /// Whether some rows are taken back.
    pub(super) changes: bool,
    /// Breaks it: a split that comes later is read from where it ends.
    pub(super) from_end: bool,
}

/// All splits.
pub(super) struct Feed {
    fate: Arc<Fate>,
    pub(super) splits: Vec<FeedSplit>,
    pub(super) shape: Shape,
    /// How many splits have come.
    come: AtomicUsize,
}

/// Rows in event time that runs on, with disorder and stragglers.
pub(super) fn rows(fate: &Fate, count: usize) -> Vec<Row> {
    let mut time = fate.between(0, 60);
    let mut rows = Vec::new();
    for _ in 0..count {
        time += fate.between(0, 12);
        let back = match fate.below(12) {
            0 => fate.between(20, 90),
            1..=4 => fate.between(0, 19),
            _ => 0,
        };
        rows.push(Row {
            key: fate.between(0, 8),
            value: fate.between(-9, 99),
            time: time - back,
            diff: 1,
        });
    }
    rows
}

impl Feed {
    pub(super) fn of(fate: &Arc<Fate>, shape: Shape) -> Arc<Feed> {
        let split = |number| {
            let mut rows = rows(fate, fate.between(0, shape.rows_max) as usize);
            for row in rows.iter_mut().filter(|_| shape.changes) {
                row.diff = if fate.once_in(5) { -1 } else { 1 };
            }
            if number >= shape.splits {
                // Some find that all others are far ahead.
                let ahead = fate.between(0, 400);
                rows.iter_mut().for_each(|row| row.time += ahead);
                rows.iter_mut().for_each(|row| row.key += KEYS_OF_LATER);
            }
            let mut at = fate.below(5);
            let mut offset = |_: &Row| {
                // Transaction markers and what was compacted away leave gaps.
                at += 1 + if fate.once_in(6) { fate.below(4) } else { 0 };
                at - 1
            };
            let offsets = rows.iter().map(&mut offset).collect();
            let there = AtomicUsize::new(if shape.lazy { rows.len() } else { 0 });
            FeedSplit { rows, offsets, there }
        };
        let splits = (0..shape.splits + shape.later).map(split).collect();
        let come = AtomicUsize::new(shape.splits);
        Arc::new(Feed { fate: fate.clone(), splits, shape, come })
    }

    /// How many splits have come.
    pub(super) fn come(&self) -> usize {
        self.come.load(Ordering::Relaxed)
    }

    /// Another split comes, if one is left; whether it does.
    pub(super) fn add_split(&self) -> bool {
        let comes = self.come() < self.splits.len();
        self.come.fetch_add(usize::from(comes), Ordering::Relaxed);
        comes
    }

    /// The rows of all splits.
    pub(super) fn rows(&self) -> Vec<Vec<Row>> {
        self.splits.iter().map(|split| split.rows.clone()).collect()
    }

    /// Some more rows become available.
    pub(super) fn grow(&self) {
        let split = &self.splits[self.fate.index(self.come())];
        let more = split.there.load(Ordering::Relaxed) + 1 + self.fate.index(16);
        split.there.store(more.min(split.rows.len()), Ordering::Relaxed);
    }

    pub(super) fn is_whole(&self) -> bool {
        self.splits.iter().all(|s| s.there.load(Ordering::Relaxed) == s.rows.len())
    }
}

/// The source, as a process has it.
pub(super) struct FeedSource {
    pub(super) feed: Arc<Feed>,
    pub(super) runner: Arc<Runner>,
    /// Whether workers read themselves, or tasks do.
    pub(super) helps: bool,
    /// Whether its generation knows all splits that ever come.
    pub(super) all: bool,
}

/// Reads one split.
struct Reader {
    feed: Arc<Feed>,
    life: Arc<Life>,
    queue: Arc<SplitQueue>,
    at: usize,
    /// Whether the split ends behind its last row.
    ends: bool,
}

impl Reader {
    /// Pushes some rows, if there are any; `None` once nothing will come any more.
    fn read(&mut self) -> Option<bool> {
        if self.queue.is_closed() || !self.life.goes_on() {
            return None;
        }
        let split = &self.feed.splits[self.queue.split.number as usize];
        let there = split.there.load(Ordering::Relaxed);
        if !self.queue.wanted() {
            return Some(false);
        }
        if self.at == split.rows.len() && self.ends {
            self.queue.finish();
            return None;
        }
        self.queue.at_end(self.at == there);
        if self.at == there {
            return Some(false);
        }
        let to = there.min(self.at + 1 + self.feed.fate.below(CHUNK_ROWS) as usize);
        let offsets: ScalarBuffer<u64> = split.offsets[self.at..to].iter().copied().collect();
        let next_offset = split.offsets[to - 1] + 1;
        let rows = &split.rows[self.at..to];
        let taken_back = rows.iter().any(|row| row.diff != 1);
        let diffs = taken_back.then(|| rows.iter().map(|row| row.diff).collect());
        let offsets = Offsets::Each(offsets);
        let chunk = Chunk { diffs, offsets, next_offset, ..Chunk::plain(batch(rows), 0) };
        self.at = to;
        self.queue.push(chunk).then_some(true)
    }
}

/// A reader with a task of its own.
struct Reading {
    reader: Reader,
    stop: Arc<AtomicBool>,
}

impl Task for Reading {
    fn step(&mut self, _timed_out: bool) -> Next {
        if self.stop.load(Ordering::Relaxed) {
            return Next::Done;
        }
        match self.reader.read() {
            None => Next::Done,
            Some(true) => Next::Again,
            Some(false) => Next::Wait(Some(Duration::from_millis(3))),
        }
    }
}

/// The source, open on a worker.
struct Open {
    readers: Mutex<Vec<Reader>>,
    stop: Arc<AtomicBool>,
    running: Vec<Box<dyn Running>>,
}

impl Source for FeedSource {
    fn splits(&self) -> Result<Vec<SplitSpec>, ConnectorError> {
        let Shape { splits, lazy, .. } = self.feed.shape;
        let specs = (0..splits as u64).map(|number| spec(number, "feed"));
        Ok(specs.map(|spec| SplitSpec { lazy, ..spec }).collect())
    }

    fn added(&self, known: &[SplitSpec]) -> Result<Vec<SplitSpec>, ConnectorError> {
        if !self.runner.life.goes_on() || self.feed.fate.once_in(6) {
            return Err(ConnectorError::retry("the source cannot be reached"));
        }
        let is_known = |number: &u64| known.iter().any(|split| split.number == *number);
        let fresh = (0..self.feed.come() as u64).filter(|number| !is_known(number));
        Ok(fresh.map(|number| spec(number, "feed")).collect())
    }

    fn open(&self, queues: Vec<Arc<SplitQueue>>) -> Result<Box<dyn SourceHandle>, ConnectorError> {
        let reader = |queue: Arc<SplitQueue>| {
            let split = &self.feed.splits[queue.split.number as usize];
            let at = match queue.start_offset() {
                None if self.feed.shape.from_end && queue.split.joined => {
                    split.there.load(Ordering::Relaxed)
                }
                start => split.offsets.partition_point(|offset| Some(*offset) < start),
            };
            let (feed, life) = (self.feed.clone(), self.runner.life.clone());
            Reader { feed, life, queue, at, ends: self.all }
        };
        let readers: Vec<Reader> = queues.into_iter().map(reader).collect();
        let stop = Arc::new(AtomicBool::new(false));
        if self.helps {
            let (readers, running) = (Mutex::new(readers), Vec::new());
            return Ok(Box::new(Open { readers, stop, running }));
        }
        let start = |reader| {
            let task = Box::new(Reading { reader, stop: stop.clone() });
            let started = self.runner.start("reader".to_owned(), Arc::new(Bell::default()), task);
            started.unwrap_or_else(|error| panic!("a simulated task always starts: {error}"))
        };
        let running = readers.into_iter().map(start).collect();
        Ok(Box::new(Open { readers: Mutex::default(), stop: stop.clone(), running }))
    }

    fn peek(&self, split: &SplitSpec) -> Result<Option<Chunk>, ConnectorError> {
        let rows = &self.feed.splits[split.number as usize].rows;
        let first = &rows[..rows.len().min(3)];
        Ok((!first.is_empty()).then(|| Chunk::plain(batch(first), 0)))
    }

    fn guarantee(&self) -> String {
        "can be read again".to_owned()
    }
}

impl SourceHandle for Open {
    fn committed(&mut self, _offsets: &[(u64, u64)]) {}

    fn help(&mut self, split: u64) -> bool {
        let mut readers = lock(&self.readers);
        let reader = readers.iter_mut().find(|reader| reader.queue.split.number == split);
        reader.is_some_and(|reader| reader.read() == Some(true))
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop();
        self.running.drain(..).for_each(|running| running.join());
    }
}

/// A split that ends, in the end.
pub(super) fn spec(number: u64, name: &str) -> SplitSpec {
    SplitSpec {
        number,
        name: format!("{name} {number}"),
        bounded: true,
        lazy: false,
        carries: Vec::new(),
        detail: serde_json::Value::Null,
        joined: false,
    }
}
