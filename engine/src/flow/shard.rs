//! A shard's I/O thread and the bounded queue before it.
//!
//! What is in the queue counts as accepted; the queue takes no further epoch while it holds more
//! than `QUEUE_BYTES_MAX`, so a sink that stalls stops the sources in the end, and never memory.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::connector::ConnectorError;
use crate::job::JobControl;
use crate::sink::{Sink, SinkReport, SinkWriter};
use crate::time::{Epoch, Millis};

const QUEUE_BYTES_MAX: usize = 16 << 20;
/// How long a writer that has nothing to do waits before it is asked to flush.
const FLUSH_AFTER: Duration = Duration::from_millis(20);

/// The rows of a complete epoch.
pub(crate) struct EpochRows {
    pub(crate) epoch: Epoch,
    pub(crate) recorded_time: Millis,
    pub(crate) rows: Vec<(RecordBatch, Option<ScalarBuffer<i64>>)>,
    pub(crate) bytes: usize,
}

#[derive(Default)]
struct State {
    epochs: VecDeque<EpochRows>,
    bytes: usize,
    finish: bool,
    abandon: bool,
    committed: Option<Epoch>,
    done: bool,
}

/// The worker's end of a shard.
pub(crate) struct ShardQueue {
    state: Mutex<State>,
    news: Condvar,
}

impl ShardQueue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether another epoch is accepted now.
    pub(crate) fn has_room(&self) -> bool {
        self.lock().bytes < QUEUE_BYTES_MAX
    }

    /// Accepts an epoch.
    pub(crate) fn push(&self, epoch: EpochRows) {
        let mut state = self.lock();
        state.bytes += epoch.bytes;
        state.epochs.push_back(epoch);
        self.news.notify_all();
    }

    /// No more epochs will come: commit and close.
    pub(crate) fn finish(&self) {
        self.lock().finish = true;
        self.news.notify_all();
    }

    /// The job has failed: close without committing more.
    pub(crate) fn abandon(&self) {
        self.lock().abandon = true;
        self.news.notify_all();
    }

    /// The newest committed epoch, whether all epochs that were pushed are committed, and whether
    /// the thread is done.
    pub(crate) fn progress(&self) -> (Option<Epoch>, bool) {
        let state = self.lock();
        (state.committed, state.done)
    }

    /// The next thing to do, waiting at most `FLUSH_AFTER`.
    fn next(&self) -> Work {
        let idle = |s: &mut State| s.epochs.is_empty() && !s.finish && !s.abandon;
        let waited = self.news.wait_timeout_while(self.lock(), FLUSH_AFTER, idle);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.abandon {
            return Work::Abandon;
        }
        match state.epochs.pop_front() {
            Some(epoch) => Work::Epoch(epoch),
            None if state.finish => Work::Finish,
            None => Work::Flush,
        }
    }

    fn written(&self, bytes: usize, committed: Epoch) {
        let mut state = self.lock();
        state.bytes = state.bytes.saturating_sub(bytes);
        state.committed = state.committed.max(Some(committed));
    }

    fn done(&self) {
        self.lock().done = true;
    }
}

enum Work {
    Epoch(EpochRows),
    Flush,
    Finish,
    Abandon,
}

/// A running shard.
pub(crate) struct Shard {
    pub(crate) queue: Arc<ShardQueue>,
    report: Arc<SinkReport>,
    thread: Option<JoinHandle<()>>,
}

impl Shard {
    /// Starts the shard's thread. `wake` is called after each piece of work.
    pub(crate) fn start(
        sink: Arc<dyn Sink>,
        table: String,
        shard: u32,
        report: Arc<SinkReport>,
        control: Arc<JobControl>,
        wake: Box<dyn Fn() + Send>,
    ) -> Shard {
        let queue = Arc::new(ShardQueue { state: Mutex::default(), news: Condvar::new() });
        let theirs = queue.clone();
        let shown = report.clone();
        let work = move || {
            let write = AssertUnwindSafe(|| {
                let mut writer = sink.open(shard, report)?;
                write_epochs(writer.as_mut(), &theirs, wake.as_ref())
            });
            let result = catch_unwind(write).unwrap_or_else(|panic| {
                let text = super::panic_text(panic.as_ref());
                Err(ConnectorError::fatal(format!("the sink panicked: {text}")))
            });
            if let Err(error) = result {
                control.fail_connector(&table, error);
            }
            theirs.done();
            wake();
        };
        let spawned = std::thread::Builder::new().name(format!("sink-{shard}")).spawn(work);
        match spawned {
            Ok(thread) => Shard { queue, report: shown, thread: Some(thread) },
            Err(error) => panic!("the system gives no thread for a sink: {error}"),
        }
    }
}

impl Drop for Shard {
    fn drop(&mut self) {
        let (_, done) = self.queue.progress();
        if !done {
            // A writer that is trying again must not be waited for.
            self.report.give_up();
            self.queue.abandon();
        }
        if let Some(thread) = self.thread.take() {
            // Its panic has been printed by the hook; there is nothing left to do with it.
            let _ = thread.join();
        }
    }
}

fn write_epochs(
    writer: &mut dyn SinkWriter,
    queue: &ShardQueue,
    wake: &dyn Fn(),
) -> Result<(), ConnectorError> {
    let mut quiet = false;
    loop {
        match queue.next() {
            Work::Epoch(epoch) => {
                for (rows, diffs) in epoch.rows {
                    writer.write(epoch.epoch, rows, diffs)?;
                }
                let committed = writer.end_epoch(epoch.epoch, epoch.recorded_time)?;
                queue.written(epoch.bytes, committed);
                quiet = false;
                wake();
            }
            Work::Flush if quiet => {}
            Work::Flush => {
                let committed = writer.flush()?;
                queue.written(0, committed);
                quiet = true;
                wake();
            }
            Work::Finish => return writer.finish(),
            Work::Abandon => return Ok(()),
        }
    }
}
