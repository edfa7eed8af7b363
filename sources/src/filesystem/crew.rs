//! Who decodes files, and puts what was decoded into the queues in order.
//!
//! # Invariant
//! Units of a split are numbered in its order; chunks enter its queue in the order of unit numbers,
//! and only while the queue has room, so that no thread ever waits for one queue while another
//! could be filled.
//!
//! # Who decodes
//! Local files are decoded by the worker that wants their rows, whenever it finds a queue empty:
//! what it has just decoded is in its cache, and no thread has to be woken. While as many workers
//! have something to read as there are processors, the crews' threads leave lanes alone that were
//! helped lately. Where splits are fewer than processors they decode beside the worker. Remote
//! files may keep a reader waiting, so that threads read them, and workers never do.
//!
//! # Argument
//! A lane (one split) is changed under its lock only. Whoever holds it pushes what is next in
//! order, then takes a unit, lets go, decodes, comes back. A queue's room only grows but by pushes,
//! and only the holder of the lock pushes, so `has_room` stays true until its push.
//!
//! # Cost and limits
//! At most `AHEAD` units of a lane are decoded and not yet pushed, and none are begun while its
//! queue is full: a lane holds its queue's limit and a few units. A thread with nothing to do looks
//! again after a millisecond (20 ms while it should read no split).

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};
use weir_engine::connector::ConnectorError;
use weir_engine::source::{Chunk, SourceHandle, SplitQueue};

use super::Units;

/// Units of a lane that may be taken before the oldest of them has been pushed.
const AHEAD: u64 = 4;
const THREADS_MAX: usize = 4;
const BUSY_WAIT: Duration = Duration::from_millis(1);
const IDLE_WAIT: Duration = Duration::from_millis(20);
/// For so long after its worker has helped a lane, threads may leave it alone.
const HELPED: Duration = Duration::from_millis(50);

/// Workers of this process, with the number of their crews that have something to read; and how
/// many workers have such crews.
static READING: Mutex<Vec<(ThreadId, usize)>> = Mutex::new(Vec::new());
static READERS: AtomicUsize = AtomicUsize::new(0);

/// Cuts a queue's split into units.
pub(super) type Open =
    Box<dyn Fn(&Arc<SplitQueue>) -> Result<Box<dyn Units>, ConnectorError> + Send + Sync>;

struct Lane {
    queue: Arc<SplitQueue>,
    /// When its worker last did.
    helped: Mutex<Option<Instant>>,
    state: Mutex<LaneState>,
}

#[derive(Default)]
struct LaneState {
    units: Option<Box<dyn Units>>,
    /// Number of the next unit to take, and of the one whose chunks are next to push.
    next_taken: u64,
    next_pushed: u64,
    decoded: BTreeMap<u64, Result<VecDeque<Chunk>, ConnectorError>>,
    /// No unit is left to take.
    ended: bool,
    done: bool,
}

struct Shared {
    lanes: Vec<Lane>,
    open: Open,
    stop: AtomicBool,
    processors: usize,
    /// The thread of the worker that opened it, and whether it counts in `READING`.
    worker: ThreadId,
    counted: AtomicBool,
    idle: Mutex<()>,
    news: Condvar,
}

/// Where the files are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Here: reading never waits long.
    Local,
    /// Elsewhere.
    Remote,
}

/// The threads of one worker.
pub(super) struct Crew {
    shared: Arc<Shared>,
    reach: Reach,
    threads: Vec<JoinHandle<()>>,
}

/// What a thread found to do in a lane.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Found {
    Work,
    Nothing,
    Unwanted,
    Done,
}

impl Crew {
    pub(super) fn start(
        table: &str,
        queues: Vec<Arc<SplitQueue>>,
        reach: Reach,
        open: Open,
    ) -> Result<Crew, ConnectorError> {
        let lane = |queue| Lane { queue, helped: Mutex::default(), state: Mutex::default() };
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let shared = Arc::new(Shared {
            lanes: queues.into_iter().map(lane).collect(),
            open,
            stop: AtomicBool::new(false),
            processors,
            worker: std::thread::current().id(),
            counted: AtomicBool::new(false),
            idle: Mutex::new(()),
            news: Condvar::new(),
        });
        let count = match reach {
            Reach::Local => (processors - 1).clamp(1, THREADS_MAX),
            Reach::Remote => processors.min(THREADS_MAX),
        };
        let mut crew = Crew { shared, reach, threads: Vec::new() };
        for number in 0..count {
            let shared = crew.shared.clone();
            let thread = std::thread::Builder::new().name(format!("files-{table}-{number}"));
            let thread = thread.spawn(move || shared.work(number)).map_err(|e| {
                ConnectorError::fatal(format!("cannot start a thread for table `{table}`: {e}"))
            })?;
            crew.threads.push(thread);
        }
        Ok(crew)
    }
}

impl SourceHandle for Crew {
    fn committed(&mut self, _offsets: &[(u64, u64)]) {}

    fn help(&mut self, split: u64) -> bool {
        if self.reach == Reach::Remote {
            return false;
        }
        let lane = self.shared.lanes.iter().find(|lane| lane.queue.split.number == split);
        lane.is_some_and(|lane| {
            *lane.helped.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
            lane.step(&self.shared.open) == Found::Work
        })
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.news.notify_all();
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            // A panic has been told to the queues already.
            let _ = thread.join();
        }
        self.shared.count(false);
    }
}

/// Tells the queues should a thread panic: a job must not wait for ever.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for lane in &self.0.lanes {
                lane.queue.fail(ConnectorError::fatal("a thread that reads files has panicked"));
            }
        }
    }
}

impl Shared {
    fn work(&self, first: usize) {
        let _alarm = Alarm(self);
        let mut start = first;
        while !self.stop.load(Ordering::Acquire) {
            self.count(self.lanes.iter().any(Lane::is_open));
            let is_busy = READERS.load(Ordering::Relaxed) >= self.processors;
            let lanes = (0..self.lanes.len()).map(|n| (start + n) % self.lanes.len());
            let mut all = Found::Done;
            for n in lanes {
                let lane = &self.lanes[n];
                let left_alone = is_busy && lane.was_helped();
                let found = if left_alone { Found::Unwanted } else { lane.step(&self.open) };
                if found == Found::Work {
                    self.news.notify_all();
                    start = n + 1;
                    all = found;
                    break;
                }
                if all == Found::Done || found == Found::Nothing {
                    all = found;
                }
            }
            match all {
                Found::Work => {}
                Found::Nothing => self.rest(BUSY_WAIT),
                Found::Unwanted => self.rest(IDLE_WAIT),
                Found::Done => return self.count(false),
            }
        }
    }

    /// Counts the crew among those that have something to read, or no longer.
    fn count(&self, reads: bool) {
        if self.counted.load(Ordering::Relaxed) == reads {
            return;
        }
        let mut reading = READING.lock().unwrap_or_else(PoisonError::into_inner);
        if self.counted.swap(reads, Ordering::Relaxed) == reads {
            return;
        }
        let place = reading.iter().position(|(worker, _)| *worker == self.worker);
        match place {
            Some(place) if reads => reading[place].1 += 1,
            Some(place) if reading[place].1 > 1 => reading[place].1 -= 1,
            Some(place) => drop(reading.swap_remove(place)),
            None if reads => reading.push((self.worker, 1)),
            None => {}
        }
        READERS.store(reading.len(), Ordering::Relaxed);
    }

    fn rest(&self, time: Duration) {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.stop.load(Ordering::Acquire) {
            drop(self.news.wait_timeout(idle, time));
        }
    }
}

impl Lane {
    /// Whether it is wanted and has something left.
    fn is_open(&self) -> bool {
        self.queue.wanted() && !self.queue.is_finished() && !self.queue.is_closed()
    }

    fn was_helped(&self) -> bool {
        let helped = *self.helped.lock().unwrap_or_else(PoisonError::into_inner);
        helped.is_some_and(|since| since.elapsed() < HELPED)
    }

    /// Pushes what can be pushed, and decodes one unit if there is room for it.
    fn step(&self, open: &Open) -> Found {
        if !self.queue.wanted() {
            return if self.queue.is_closed() { Found::Done } else { Found::Unwanted };
        }
        let Ok(mut state) = self.state.try_lock() else { return Found::Nothing };
        let pushed = self.push(&mut state);
        if state.done {
            return Found::Done;
        }
        let room = self.queue.has_room() && state.next_taken - state.next_pushed < AHEAD;
        // Units are cheaper one after the other; side by side only where the taker is faster.
        let starving = !state.is_decoding() || !self.queue.has_chunk();
        if state.ended || !room || !starving {
            return if pushed { Found::Work } else { Found::Nothing };
        }
        let number = state.next_taken;
        let unit = match self.take(&mut state, open) {
            Ok(Some(unit)) => unit,
            Ok(None) => {
                state.ended = true;
                self.push(&mut state);
                return Found::Work;
            }
            Err(error) => {
                state.ended = true;
                state.next_taken += 1;
                state.decoded.insert(number, Err(error));
                self.push(&mut state);
                return Found::Work;
            }
        };
        state.next_taken += 1;
        drop(state);
        let chunks = unit.decode().map(VecDeque::from);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.decoded.insert(number, chunks);
        self.push(&mut state);
        Found::Work
    }

    fn take(
        &self,
        state: &mut LaneState,
        open: &Open,
    ) -> Result<Option<Box<dyn super::Unit>>, ConnectorError> {
        if state.units.is_none() {
            state.units = Some(open(&self.queue)?);
        }
        match &mut state.units {
            Some(units) => units.next(),
            None => Ok(None),
        }
    }

    /// Pushes decoded chunks in order while there is room; says whether it could do anything.
    fn push(&self, state: &mut LaneState) -> bool {
        let mut any = false;
        while !state.done {
            let next = state.next_pushed;
            match state.decoded.get_mut(&next) {
                Some(Ok(chunks)) => {
                    while let Some(chunk) = chunks.pop_front() {
                        if !self.queue.has_room() {
                            chunks.push_front(chunk);
                            return any;
                        }
                        any = true;
                        if !self.queue.push(chunk) {
                            state.close();
                            return any;
                        }
                    }
                    state.decoded.remove(&next);
                    state.next_pushed += 1;
                }
                Some(Err(_)) => {
                    if let Some(Err(error)) = state.decoded.remove(&next) {
                        self.queue.fail(error);
                    }
                    state.close();
                    return true;
                }
                None => {
                    if state.ended && state.next_pushed == state.next_taken {
                        self.queue.finish();
                        state.close();
                        return true;
                    }
                    return any;
                }
            }
        }
        any
    }
}

impl LaneState {
    /// Whether some unit was taken and has not come back.
    fn is_decoding(&self) -> bool {
        self.next_taken - self.next_pushed > self.decoded.len() as u64
    }

    fn close(&mut self) {
        self.done = true;
        self.units = None;
        self.decoded.clear();
    }
}
