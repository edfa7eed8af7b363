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

use crate::checkpoint::{Checkpointer, Owner};
use crate::connector::ConnectorError;
use crate::job::JobControl;
use crate::keys::KeyGroups;
use crate::sink::{Author, Progress, ShardEnd, Sink, SinkReport, SinkWriter};
use crate::state::Restored;
use crate::time::Epoch;

const QUEUE_BYTES_MAX: usize = 16 << 20;
/// How long a writer that has nothing to do waits before it is asked to flush.
const FLUSH_AFTER: Duration = Duration::from_millis(20);

/// The rows of a complete epoch.
pub(crate) struct EpochRows {
    pub(crate) end: ShardEnd,
    pub(crate) rows: Vec<(RecordBatch, Option<ScalarBuffer<i64>>)>,
    pub(crate) bytes: usize,
    /// Whether a checkpoint is made at its end.
    pub(crate) checkpoint: bool,
}

#[derive(Default)]
struct State {
    epochs: VecDeque<EpochRows>,
    bytes: usize,
    finish: Option<Finish>,
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

    /// No more epochs will come in this generation: commit what is whole and close. `whole`: none
    /// will ever come, so that all is.
    pub(crate) fn finish(&self, whole: bool) {
        self.lock().finish = Some(if whole { Finish::Whole } else { Finish::Stopped });
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
        let idle = |s: &mut State| s.epochs.is_empty() && s.finish.is_none() && !s.abandon;
        let waited = self.news.wait_timeout_while(self.lock(), FLUSH_AFTER, idle);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.abandon {
            return Work::Abandon;
        }
        match (state.epochs.pop_front(), state.finish) {
            (Some(epoch), _) => Work::Epoch(epoch),
            (None, Some(finish)) => Work::Finish(finish),
            (None, None) => Work::Flush,
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
    Finish(Finish),
    Abandon,
}

/// How a shard ends well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Finish {
    /// All is written that ever will be.
    Whole,
    /// The job goes on at another time.
    Stopped,
}

/// What a shard writes to.
pub(crate) struct Target {
    pub(crate) sink: Arc<dyn Sink>,
    pub(crate) table: String,
    pub(crate) shard: u32,
    pub(crate) author: Option<Author>,
    /// Which of the job's sinks it is.
    pub(crate) number: usize,
    pub(crate) resumed: Resumed,
}

/// What a checkpoint says of a shard.
#[derive(Default)]
pub(crate) struct Resumed {
    epoch: Option<Epoch>,
    pub(crate) digest: u128,
    pieces: Vec<Restored>,
}

impl Resumed {
    pub(crate) fn of(control: &JobControl, sink: usize, shard: u32) -> Resumed {
        let Some(loaded) = control.restored() else { return Resumed::default() };
        let mut shards = loaded.manifest.shards.iter();
        let record = shards.find(|record| record.shard == (sink, shard));
        let digest = record.and_then(|record| u128::from_str_radix(&record.digest, 16).ok());
        Resumed {
            epoch: Some(loaded.manifest.epoch),
            digest: digest.unwrap_or(0),
            pieces: loaded.pieces_of(&Owner::Shard(sink, shard)),
        }
    }
}

/// How a shard gives its part of a checkpoint.
struct Saving {
    checkpoints: Option<Arc<Checkpointer>>,
    sink: usize,
    shard: u32,
}

impl Saving {
    fn save(&self, end: ShardEnd, writer: &mut dyn SinkWriter) -> Result<(), ConnectorError> {
        let Some(checkpoints) = &self.checkpoints else { return Ok(()) };
        let mut pieces = checkpoints.collector(KeyGroups::ALL);
        writer.save(&mut pieces)?;
        let (owner, shard) = (Owner::Shard(self.sink, self.shard), (self.sink, self.shard));
        checkpoints.digest(end.epoch, shard, end.digest);
        // Its own thread, so the operators were not kept from anything.
        checkpoints.give(end.epoch, (owner, 0), pieces.unpaused());
        Ok(())
    }
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
        target: Target,
        report: Arc<SinkReport>,
        control: Arc<JobControl>,
        wake: Box<dyn Fn() + Send>,
    ) -> Shard {
        let queue = Arc::new(ShardQueue { state: Mutex::default(), news: Condvar::new() });
        let theirs = queue.clone();
        let shown = report.clone();
        let Target { sink, table, shard, author, number, resumed } = target;
        let checkpoints = control.checkpoints().cloned();
        if let Some(checkpoints) = &checkpoints {
            checkpoints.expect(Owner::Shard(number, shard), 0);
        }
        let saving = Saving { checkpoints, sink: number, shard };
        let work = move || {
            let write = AssertUnwindSafe(|| {
                let mut writer = sink.open(shard, author.as_ref(), report)?;
                let progress = writer.progress();
                if progress.is_none() && writer.keeps_progress() && resumed.digest != 0 {
                    return Err(lacking("nothing", &resumed));
                }
                let there = There::of(progress, &resumed)?;
                writer.resume(resumed.pieces)?;
                write_epochs(writer.as_mut(), there, &saving, &theirs, wake.as_ref())
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
    mut there: There,
    saving: &Saving,
    queue: &ShardQueue,
    wake: &dyn Fn(),
) -> Result<(), ConnectorError> {
    let mut quiet = false;
    loop {
        match queue.next() {
            Work::Epoch(EpochRows { end, bytes, .. }) if there.has(end)? => {
                queue.written(bytes, end.epoch);
                wake();
            }
            Work::Epoch(EpochRows { end, rows, bytes, checkpoint }) => {
                for (rows, diffs) in rows {
                    writer.write(end.epoch, rows, diffs)?;
                }
                let mut committed = writer.end_epoch(end)?;
                if checkpoint {
                    saving.save(end, writer)?;
                    committed = committed.max(writer.flush()?);
                }
                queue.written(bytes, committed);
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
            Work::Finish(Finish::Whole) => return writer.finish(),
            Work::Finish(Finish::Stopped) => return writer.flush().map(|_| ()),
            Work::Abandon => return Ok(()),
        }
    }
}

/// What the target has from generations before.
struct There(Option<Progress>);

/// The target lacks what was written.
fn lacking(there: &str, resumed: &Resumed) -> ConnectorError {
    let from = resumed.epoch.unwrap_or_default();
    let message = format!(
        "the target has {there} only, though all rows up to the checkpoint at epoch {from} were \
         written"
    );
    let hint = "was it restored from an older backup? Start the job anew under another state";
    ConnectorError::fatal(message).hint(hint)
}

impl There {
    /// What of it is behind the checkpoint that the shard goes on from.
    ///
    /// # Errors
    /// The target lacks rows of before the checkpoint.
    fn of(progress: Option<Progress>, resumed: &Resumed) -> Result<There, ConnectorError> {
        let Some(there) = progress.filter(|there| Some(there.epoch) <= resumed.epoch) else {
            return Ok(There(progress));
        };
        if there.digest == resumed.digest {
            return Ok(There(None));
        }
        Err(lacking(&format!("rows up to epoch {}", there.epoch), resumed))
    }

    /// Whether an epoch that has come again is there already.
    ///
    /// # Errors
    /// The rows are not those that are there.
    fn has(&mut self, end: ShardEnd) -> Result<bool, ConnectorError> {
        let Some(there) = self.0 else { return Ok(false) };
        if end.epoch < there.epoch {
            return Ok(true);
        }
        self.0 = None;
        if end.epoch == there.epoch && end.digest == there.digest {
            return Ok(true);
        }
        let epoch = there.epoch;
        let message = format!(
            "not deterministic: the rows up to epoch {epoch}, computed again, are not those that \
             were written"
        );
        let hint = "something that the job reads has changed, or its query depends on more than \
                    its inputs; nothing was written over";
        Err(ConnectorError::fatal(message).hint(hint))
    }
}
