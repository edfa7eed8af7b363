//! A shard's I/O task and the bounded queue before it.
//!
//! What is in the queue counts as accepted; the queue takes no further epoch while it holds more
//! than `QUEUE_BYTES_MAX`, so a sink that stalls stops the sources in the end, and never memory.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::checkpoint::{Checkpointer, Owner};
use crate::connector::ConnectorError;
use crate::job::JobControl;
use crate::keys::KeyGroups;
use crate::sink::{Author, Progress, ShardEnd, Sink, SinkReport, SinkWriter};
use crate::state::Restored;
use crate::tasks::{Bell, Next, Running, Task};
use crate::time::Epoch;

const QUEUE_BYTES_MAX: usize = 16 << 20;

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
    bell: Arc<Bell>,
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
        drop(state);
        self.bell.ring();
    }

    /// No more epochs will come in this generation: commit what is whole and close. `whole`: none
    /// will ever come, so that all is.
    pub(crate) fn finish(&self, whole: bool) {
        self.lock().finish = Some(if whole { Finish::Whole } else { Finish::Stopped });
        self.bell.ring();
    }

    /// The job has failed: close without committing more.
    pub(crate) fn abandon(&self) {
        self.lock().abandon = true;
        self.bell.ring();
    }

    /// The newest committed epoch, whether all epochs that were pushed are committed, and whether
    /// the task is done.
    pub(crate) fn progress(&self) -> (Option<Epoch>, bool) {
        let state = self.lock();
        (state.committed, state.done)
    }

    /// The next thing to do, if there is one.
    fn next(&self) -> Option<Work> {
        let mut state = self.lock();
        if state.abandon {
            return Some(Work::Abandon);
        }
        let Some(mut epoch) = state.epochs.pop_front() else {
            return state.finish.map(Work::Finish);
        };
        epoch.end.more = !state.epochs.is_empty();
        Some(Work::Epoch(epoch))
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
    running: Option<Box<dyn Running>>,
}

impl Shard {
    /// Starts the shard's task. `wake` is called after each piece of work.
    pub(crate) fn start(
        target: Target,
        report: Arc<SinkReport>,
        control: Arc<JobControl>,
        wake: Box<dyn Fn() + Send>,
    ) -> Shard {
        let bell = Arc::new(Bell::default());
        let queue = Arc::new(ShardQueue { state: Mutex::default(), bell: bell.clone() });
        let (sink, shard) = (target.number, target.shard);
        let checkpoints = control.checkpoints().cloned();
        if let Some(checkpoints) = &checkpoints {
            checkpoints.expect(Owner::Shard(sink, shard), 0);
        }
        let work = Writing {
            table: target.table.clone(),
            state: Stage::Closed(target),
            saving: Saving { checkpoints, sink, shard },
            queue: queue.clone(),
            report: report.clone(),
            control: control.clone(),
            wake,
            quiet: false,
        };
        match control.tasks().start(format!("sink-{shard}"), bell, Box::new(work)) {
            Ok(running) => Shard { queue, report, running: Some(running) },
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
        if let Some(running) = self.running.take() {
            running.join();
        }
    }
}

/// How far a shard's task is.
enum Stage {
    Closed(Target),
    Open(Box<dyn SinkWriter>, There),
    Ended,
}

/// A shard's task.
struct Writing {
    table: String,
    state: Stage,
    saving: Saving,
    queue: Arc<ShardQueue>,
    report: Arc<SinkReport>,
    control: Arc<JobControl>,
    wake: Box<dyn Fn() + Send>,
    /// Whether nothing has come since the writer was asked to flush.
    quiet: bool,
}

impl Task for Writing {
    fn step(&mut self, timed_out: bool) -> Next {
        let worked = catch_unwind(AssertUnwindSafe(|| self.work(timed_out)));
        let result = worked.unwrap_or_else(|panic| {
            let text = super::panic_text(panic.as_ref());
            Err(ConnectorError::fatal(format!("the sink panicked: {text}")))
        });
        match result {
            Ok(Next::Done) => {}
            Ok(next) => return next,
            // What was given up for it is no cause.
            Err(error) if self.control.is_interrupted() => {
                let table = &self.table;
                match self.report.given_up() {
                    true => tracing::debug!(%table, %error, "left for the next start"),
                    false => tracing::warn!(%table, %error, "left for the next start"),
                }
            }
            Err(error) => self.control.fail_connector(&self.table, error),
        }
        self.state = Stage::Ended;
        self.queue.done();
        (self.wake)();
        Next::Done
    }
}

impl Writing {
    fn work(&mut self, timed_out: bool) -> Result<Next, ConnectorError> {
        let (writer, there) = match &mut self.state {
            Stage::Open(writer, there) => (writer, there),
            stage => {
                if let Stage::Closed(target) = std::mem::replace(stage, Stage::Ended) {
                    *stage = open(target, self.report.clone())?;
                    return Ok(Next::Again);
                }
                return Ok(Next::Done);
            }
        };
        match self.queue.next() {
            Some(Work::Epoch(EpochRows { end, bytes, .. })) if there.has(end)? => {
                self.queue.written(bytes, end.epoch);
            }
            Some(Work::Epoch(EpochRows { end, rows, bytes, checkpoint })) => {
                for (rows, diffs) in rows {
                    writer.write(end.epoch, rows, diffs)?;
                }
                let mut committed = writer.end_epoch(end)?;
                if checkpoint {
                    self.saving.save(end, writer.as_mut())?;
                    committed = committed.max(writer.flush()?);
                }
                self.queue.written(bytes, committed);
                self.quiet = false;
            }
            Some(Work::Finish(Finish::Whole)) => return writer.finish().map(|()| Next::Done),
            Some(Work::Finish(Finish::Stopped)) => return writer.flush().map(|_| Next::Done),
            Some(Work::Abandon) => return Ok(Next::Done),
            None if self.quiet => return Ok(Next::Wait(None)),
            None if !timed_out => return Ok(Next::Wait(Some(writer.patience()))),
            None => {
                let committed = writer.flush()?;
                self.queue.written(0, committed);
                self.quiet = true;
            }
        }
        (self.wake)();
        Ok(Next::Again)
    }
}

/// Opens the target and goes on where it is.
fn open(target: Target, report: Arc<SinkReport>) -> Result<Stage, ConnectorError> {
    let Target { sink, shard, author, resumed, .. } = target;
    let mut writer = sink.open(shard, author.as_ref(), report)?;
    let progress = writer.progress();
    if progress.is_none() && writer.keeps_progress() && resumed.digest != 0 {
        return Err(lacking("nothing", &resumed));
    }
    let there = There::of(progress, &resumed)?;
    writer.resume(resumed.pieces)?;
    Ok(Stage::Open(writer, there))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Accepts everything, and waits for company as long as it was told.
    struct Waiting(Duration);

    impl SinkWriter for Waiting {
        fn write(
            &mut self,
            _: Epoch,
            _: RecordBatch,
            _: Option<ScalarBuffer<i64>>,
        ) -> Result<(), ConnectorError> {
            Ok(())
        }
        fn end_epoch(&mut self, end: ShardEnd) -> Result<Epoch, ConnectorError> {
            Ok(end.epoch - 1)
        }
        fn patience(&self) -> Duration {
            self.0
        }
        fn flush(&mut self) -> Result<Epoch, ConnectorError> {
            Ok(7)
        }
        fn finish(&mut self) -> Result<(), ConnectorError> {
            Ok(())
        }
    }

    #[test]
    fn what_waits_is_flushed_after_the_patience_of_its_writer() {
        let queue = Arc::new(ShardQueue { state: Mutex::default(), bell: Arc::default() });
        let control = JobControl::new(Arc::new(crate::clock::SystemClock), false);
        let patience = Duration::from_millis(3);
        let mut work = Writing {
            table: "t".into(),
            state: Stage::Open(Box::new(Waiting(patience)), There(None)),
            saving: Saving { checkpoints: None, sink: 0, shard: 0 },
            queue: queue.clone(),
            report: Arc::default(),
            control,
            wake: Box::new(|| ()),
            quiet: false,
        };
        let end = ShardEnd::at(7, 0);
        queue.push(EpochRows { end, rows: Vec::new(), bytes: 0, checkpoint: false });
        assert_eq!(work.step(false), Next::Again);
        assert_eq!((work.step(false), queue.progress().0), (Next::Wait(Some(patience)), Some(6)));
        assert_eq!((work.step(true), queue.progress().0), (Next::Again, Some(7)));
        assert_eq!(work.step(false), Next::Wait(None));
    }

    #[test]
    fn an_epoch_says_whether_another_waits() {
        let queue = ShardQueue { state: Mutex::default(), bell: Arc::default() };
        let push = |epoch| {
            let end = ShardEnd::at(epoch, 0);
            queue.push(EpochRows { end, rows: Vec::new(), bytes: 0, checkpoint: false });
        };
        let next = || match queue.next() {
            Some(Work::Epoch(epoch)) => Some((epoch.end.epoch, epoch.end.more)),
            _ => None,
        };
        (1..=3).for_each(push);
        assert_eq!((next(), next(), next()), (Some((1, true)), Some((2, true)), Some((3, false))));
        push(4);
        queue.finish(true);
        assert_eq!((next(), next()), (Some((4, false)), None));
    }
}
