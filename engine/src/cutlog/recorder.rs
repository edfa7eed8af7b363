//! What a running job does with its cuts: the thread that brings them to disk.
//!
//! # Invariant
//! [`Recorder::is_durable`] says yes to an epoch only when its cut, and all before it, are on disk.
//! Cuts reach the log in the order of their epochs, each once, whatever failed in between.
//!
//! # Argument
//! One worker of a process hands over each cut as it resolves it, in order. The thread takes all
//! that wait, appends them and syncs once, so that a slow disk makes groups, not a queue. Where
//! that fails the log has forgotten the whole group, and the thread still has it: it tries again
//! until it succeeds. After a failed fsync nobody knows what is on disk: the job fails.
//!
//! # Limits
//! What waits is bounded by how far sources may be ahead of the sinks, which accept nothing that
//! is not durable; but for epochs without rows, of which there is one a second.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Cut, CutLog, CutLogError, Cuts};
use crate::cut::CutPart;
use crate::journal::JournalError;
use crate::source::Wake;
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
    news: Condvar,
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

/// A cut log with the thread that writes it.
pub struct Recorder {
    shared: Arc<Shared>,
    past: Mutex<Vec<Cuts>>,
    thread: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Starts recording in a log in which the generation has begun. `workers`: how many workers of
    /// this process will ask for the past.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(log: CutLog, workers: usize) -> std::io::Result<Recorder> {
        let last = log.summary().last;
        let past = (0..workers).map(|_| log.cuts()).collect();
        let state = State { taken: last, durable: last, ..State::default() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            news: Condvar::new(),
            wakes: Mutex::default(),
        });
        let theirs = shared.clone();
        let thread = std::thread::Builder::new().name("cut-log".to_owned());
        let thread = thread.spawn(move || write(log, &theirs))?;
        Ok(Recorder { shared, past: Mutex::new(past), thread: Some(thread) })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.news.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic shows as a failure to record.
            let _ = thread.join();
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
        self.shared.news.notify_all();
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

/// Tells should the thread panic: sinks must not wait for ever.
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.lock().failure = Some("the thread that writes the cut log has panicked".into());
            self.0.wake_all();
        }
    }
}

fn write(mut log: CutLog, shared: &Shared) {
    let _alarm = Alarm(shared);
    let mut group: Vec<(Epoch, Vec<CutPart>)> = Vec::new();
    loop {
        let mut state = shared.lock();
        if group.is_empty() {
            let idle = |state: &mut State| state.waiting.is_empty() && !state.stop;
            let waited = shared.news.wait_while(state, idle);
            state = waited.unwrap_or_else(PoisonError::into_inner);
        }
        group.extend(state.waiting.drain(..));
        let trim = state.trim.take();
        if group.is_empty() {
            return;
        }
        drop(state);
        let done = append(&mut log, &group);
        if let Some(epoch) = trim.filter(|_| done.is_ok())
            && let Err(error) = log.trim(epoch)
        {
            // What stays does no harm; the next checkpoint tries again.
            tracing::warn!(%error, "the cut log could not be trimmed");
        }
        let mut state = shared.lock();
        match done {
            Ok(()) => {
                state.durable = group.last().map(|(epoch, _)| *epoch);
                state.notice = None;
                group.clear();
            }
            Err(CutLogError::Journal(error @ JournalError::Io { .. })) if !log.is_unsure() => {
                state.notice = Some(format!("the cut log waits: {error}"));
                if state.stop {
                    return;
                }
                drop(state);
                shared.wake_all();
                drop(shared.news.wait_timeout(shared.lock(), PAUSE));
                continue;
            }
            Err(error) => {
                state.failure = Some(error.to_string());
                drop(state);
                return shared.wake_all();
            }
        }
        drop(state);
        shared.wake_all();
    }
}

fn append(log: &mut CutLog, group: &[(Epoch, Vec<CutPart>)]) -> Result<(), CutLogError> {
    for (epoch, parts) in group {
        let (generation, after) = (log.summary().generation, log.summary().last);
        log.append_cut(Cut { generation, epoch: *epoch, after, parts: parts.clone() })?;
    }
    log.sync()
}
