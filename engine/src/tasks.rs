//! The engine's I/O threads as *tasks*: what brings cuts to disk, makes checkpoints and writes to
//! sinks works step by step, so that a thread can run it, or a simulation that decides what comes
//! next.
//!
//! # Contract
//! - [`Task::step`] does one piece of work and says when it wants to be called again. It blocks for
//!   the outside world only, never for another task or a worker.
//! - A task that waits is called again once its [`Bell`] has been rung, or the time is over. A ring
//!   during a step counts for the wait that follows it, so none is lost; a ring whose cause was
//!   found by an earlier step makes a call in vain.
//! - A task that panics is dropped in the course of it: what has to be told is told by its `Drop`.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// When a task wants to be called again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// At once.
    Again,
    /// When the bell is rung, or after this time.
    Wait(Option<Duration>),
    /// Never.
    Done,
}

/// Work that is done step by step.
pub(crate) trait Task: Send {
    /// Does a piece of work. `timed_out`: the time that it wanted to wait for is over, and nobody
    /// has rung.
    fn step(&mut self, timed_out: bool) -> Next;
}

/// What wakes a task.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    rung: Mutex<bool>,
    news: Condvar,
}

impl Bell {
    fn lock(&self) -> MutexGuard<'_, bool> {
        self.rung.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the task.
    pub(crate) fn ring(&self) {
        *self.lock() = true;
        self.news.notify_all();
    }

    /// Whether it was rung since it was asked last.
    #[cfg(test)]
    pub(crate) fn take(&self) -> bool {
        std::mem::take(&mut *self.lock())
    }

    /// Waits until it is rung, or the time is over; whether it was rung.
    fn wait(&self, time: Option<Duration>) -> bool {
        let quiet = |rung: &mut bool| !*rung;
        let mut rung = match time {
            None => {
                self.news.wait_while(self.lock(), quiet).unwrap_or_else(PoisonError::into_inner)
            }
            Some(time) => {
                let waited = self.news.wait_timeout_while(self.lock(), time, quiet);
                waited.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        std::mem::take(&mut rung)
    }
}

/// A task that was started.
pub(crate) trait Running: Send + Sync {
    /// Returns once the task is done. Whoever calls has told it to end, and rung.
    fn join(self: Box<Self>);
}

/// What runs tasks.
pub(crate) trait Tasks: Send + Sync {
    /// Starts a task.
    ///
    /// # Errors
    /// The system gives no thread.
    fn start(
        &self,
        name: String,
        bell: Arc<Bell>,
        task: Box<dyn Task>,
    ) -> io::Result<Box<dyn Running>>;
}

/// Runs each task on a thread of its own.
#[derive(Debug, Default)]
pub(crate) struct Threads;

impl Tasks for Threads {
    fn start(
        &self,
        name: String,
        bell: Arc<Bell>,
        mut task: Box<dyn Task>,
    ) -> io::Result<Box<dyn Running>> {
        let work = move || {
            let mut timed_out = false;
            loop {
                timed_out = match task.step(timed_out) {
                    Next::Again => false,
                    Next::Wait(time) => !bell.wait(time),
                    Next::Done => return,
                };
            }
        };
        let thread = std::thread::Builder::new().name(name).spawn(work)?;
        Ok(Box::new(Thread(thread)))
    }
}

struct Thread(JoinHandle<()>);

impl Running for Thread {
    fn join(self: Box<Self>) {
        // A panic was told by the task, and printed by the hook.
        let _ = self.0.join();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts up to a number, whenever it is rung.
    struct Counting {
        shared: Arc<(Mutex<u32>, Bell)>,
        timeouts: u32,
    }

    impl Task for Counting {
        fn step(&mut self, timed_out: bool) -> Next {
            let mut left = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            self.timeouts += u32::from(timed_out);
            if *left == 0 && self.timeouts > 1 {
                self.shared.1.ring();
                return Next::Done;
            }
            *left = left.saturating_sub(1);
            if *left > 0 { Next::Again } else { Next::Wait(Some(Duration::from_millis(1))) }
        }
    }

    #[test]
    fn a_thread_steps_a_task_until_it_is_done() {
        let shared = Arc::new((Mutex::new(5), Bell::default()));
        let (bell, timeouts) = (Arc::new(Bell::default()), 0);
        let task = Box::new(Counting { shared: shared.clone(), timeouts });
        let running = Threads.start("counting".to_owned(), bell.clone(), task);
        bell.ring();
        running.unwrap_or_else(|e| panic!("{e}")).join();
        assert!(shared.1.take() && !shared.1.take());
    }
}
