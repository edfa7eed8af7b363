//! What a running job does with its cuts: the task that brings them to disk.
//!
//! # Invariant
//! [`Recorder::is_durable`] says yes to an epoch only when its cut, and all before it, are on disk.
//! Cuts reach the log in the order of their epochs, each once, whatever failed in between.
//!
//! # Argument
//! One worker of a process hands over each cut as it resolves it, in order. The task takes all
//! that wait, appends them and syncs once, so that a slow disk makes groups, not a queue. Where
//! that fails the log has forgotten the whole group, and the task still has it: it tries again
//! until it succeeds. After a failed fsync nobody knows what is on disk: the job fails.
//!
//! # Limits
//! What waits is bounded by how far sources may be ahead of the sinks, which accept nothing that
//! is not durable; but for epochs without rows, of which there is one a second.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Cut, CutLog, CutLogError, Cuts};
use crate::cut::CutPart;
use crate::journal::JournalError;
use crate::source::Wake;
use crate::tasks::{Bell, Next, Running, Task, Tasks, Threads};
use crate::time::Epoch;

/// The pause before another attempt to write.
const PAUSE: Duration = Duration::from_millis(200);

/// Cuts that a job goes by before it makes its own, oldest first.
pub type PastCuts = Box<dyn Iterator<Item = Result<Cut, CutLogError>> + Send>;

/// What remembers a job's cuts, on one process.
pub trait CutMemory: Send + Sync {
    /// The cuts to go by. Asked once a worker.
    fn past(&self) -> PastCuts;

    /// Takes a whole cut, in the order of epochs; those of the past come again and are known.
    fn keep(&self, epoch: Epoch, parts: &[CutPart]);

    /// Cuts up to this epoch are not needed any more.
    fn trim(&self, epoch: Epoch);

    /// Whether the cut of an epoch is on disk.
    fn is_durable(&self, epoch: Epoch) -> bool;

    /// Says what to call when more is on disk.
    fn on_durable(&self, wake: Wake);

    /// Why no more can be kept, if that is so.
    fn failure(&self) -> Option<String>;

    /// What a person should know, for instance that the disk is full.
    fn notice(&self) -> Option<String>;
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Epoch, Vec<CutPart>)>,
    taken: Option<Epoch>,
    durable: Option<Epoch>,
    /// Cuts up to here may go, with the next that are written.
    trim: Option<Epoch>,
    failure: Option<String>,
    notice: Option<String>,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    bell: Arc<Bell>,
    wakes: Mutex<Vec<Wake>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake_all(&self) {
        self.wakes.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(|wake| wake());
    }
}

/// A cut log with the task that writes it.
pub struct Recorder {
    shared: Arc<Shared>,
    past: Mutex<Vec<Cuts>>,
    running: Option<Box<dyn Running>>,
}

impl Recorder {
    /// Starts recording in a log in which the generation has begun. `workers`: how many workers of
    /// this process will ask for the past.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(log: CutLog, workers: usize) -> std::io::Result<Recorder> {
        Recorder::start_on(&Threads, log, workers)
    }

    /// The same, run by these.
    pub(crate) fn start_on(
        tasks: &dyn Tasks,
        log: CutLog,
        workers: usize,
    ) -> std::io::Result<Recorder> {
        let last = log.summary().last;
        let past = (0..workers).map(|_| log.cuts()).collect();
        let state = State { taken: last, durable: last, ..State::default() };
        let bell = Arc::new(Bell::default());
        let (state, wakes) = (Mutex::new(state), Mutex::default());
        let shared = Arc::new(Shared { state, bell: bell.clone(), wakes });
        let alarm = Alarm(shared.clone());
        let writer = Writer { log, group: Vec::new(), alarm };
        let running = tasks.start("cut-log".to_owned(), bell, Box::new(writer))?;
        Ok(Recorder { shared, past: Mutex::new(past), running: Some(running) })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.bell.ring();
        if let Some(running) = self.running.take() {
            running.join();
        }
    }
}

impl CutMemory for Recorder {
    fn past(&self) -> PastCuts {
        match self.past.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            Some(cuts) => Box::new(cuts),
            None => {
                let reason = "more workers ask for the past than were told of".to_owned();
                Box::new(std::iter::once(Err(CutLogError::Record { offset: 0, reason })))
            }
        }
    }

    fn keep(&self, epoch: Epoch, parts: &[CutPart]) {
        let mut state = self.shared.lock();
        if Some(epoch) <= state.taken {
            return;
        }
        state.taken = Some(epoch);
        state.waiting.push_back((epoch, parts.to_vec()));
        drop(state);
        self.shared.bell.ring();
    }

    fn trim(&self, epoch: Epoch) {
        let mut state = self.shared.lock();
        state.trim = state.trim.max(Some(epoch));
    }

    fn is_durable(&self, epoch: Epoch) -> bool {
        Some(epoch) <= self.shared.lock().durable
    }

    fn on_durable(&self, wake: Wake) {
        self.shared.wakes.lock().unwrap_or_else(PoisonError::into_inner).push(wake);
    }

    fn failure(&self) -> Option<String> {
        self.shared.lock().failure.clone()
    }

    fn notice(&self) -> Option<String> {
        self.shared.lock().notice.clone()
    }
}

/// Tells should the task panic: sinks must not wait for ever.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().failure = Some("the thread that writes the cut log has panicked".into());
            self.0.wake_all();
        }
    }
}

/// Writes the log.
struct Writer {
    log: CutLog,
    /// Taken, and not on disk yet.
    group: Vec<(Epoch, Vec<CutPart>)>,
    alarm: Alarm,
}

impl Task for Writer {
    fn step(&mut self, _timed_out: bool) -> Next {
        let shared = &self.alarm.0;
        let mut state = shared.lock();
        self.group.extend(state.waiting.drain(..));
        if self.group.is_empty() {
            return if state.stop { Next::Done } else { Next::Wait(None) };
        }
        drop(state);
        let done = append(&mut self.log, &self.group);
        let mut state = shared.lock();
        let trim = state.trim.take_if(|_| done.is_ok());
        let next = match done {
            Ok(()) => {
                state.durable = self.group.last().map(|(epoch, _)| *epoch);
                state.notice = None;
                self.group.clear();
                Next::Again
            }
            Err(CutLogError::Journal(error @ JournalError::Io { .. })) if !self.log.is_unsure() => {
                state.notice = Some(format!("the cut log waits: {error}"));
                if state.stop { Next::Done } else { Next::Wait(Some(PAUSE)) }
            }
            Err(error) => {
                state.failure = Some(error.to_string());
                Next::Done
            }
        };
        drop(state);
        shared.wake_all();
        // Behind what waits for it: it may take longer than a write.
        if let Some(epoch) = trim
            && let Err(error) = self.log.trim(epoch)
        {
            // What stays does no harm; the next checkpoint tries again.
            tracing::warn!(%error, "the cut log could not be trimmed");
        }
        next
    }
}

fn append(log: &mut CutLog, group: &[(Epoch, Vec<CutPart>)]) -> Result<(), CutLogError> {
    for (epoch, parts) in group {
        let (generation, after) = (log.summary().generation, log.summary().last);
        log.append_cut(Cut { generation, epoch: *epoch, after, parts: parts.clone() })?;
    }
    log.sync()
}
