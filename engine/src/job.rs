//! What a running job shares between its workers and with whoever watches it: counters, the first
//! cause of a failure, the wish to stop, and the state of its watermarks.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use crate::checkpoint::{Checkpointer, Loaded};
use crate::clock::{ClockRef, uptime};
use crate::connector::{ConnectorError, Remedy};
use crate::cut::SplitFacts;
use crate::cutlog::CutMemory;
use crate::operator::{Counts, OperatorError};
use crate::sink::{Author, SinkReport};
use crate::tasks::{Tasks, Threads};
use crate::time::{Epoch, Millis};

/// Why a job failed: the first cause, not what followed from it.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The world outside, at this table.
    Connector {
        /// Table name.
        table: String,
        /// What happened.
        error: ConnectorError,
    },
    /// An operator.
    Operator {
        /// The operator's name.
        operator: String,
        /// What happened.
        message: String,
    },
    /// The job's processes cannot reach each other: no fault of the job.
    Connection {
        /// What happened.
        message: String,
    },
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Connector { table, error } => {
                write!(f, "table `{table}`: {error}")?;
                match &error.hint {
                    Some(hint) => write!(f, "\n  hint: {hint}"),
                    None => Ok(()),
                }
            }
            Failure::Operator { operator, message } => {
                write!(f, "operator {operator}: {message}")
            }
            Failure::Connection { message } => f.write_str(message),
        }
    }
}

impl std::error::Error for Failure {}

/// Counters of a source.
#[derive(Debug, Default)]
pub struct SourceCounters {
    /// Good rows taken.
    pub rows: AtomicU64,
    /// Rows that could not be read.
    pub bad: AtomicU64,
    /// Rows stamped too far in the future.
    pub future: AtomicU64,
    /// Offsets that a server had forgotten before they were read.
    pub lost: AtomicU64,
    /// Bytes of good rows, decoded.
    pub bytes: AtomicU64,
}

/// Counters of an operator.
#[derive(Debug, Default)]
pub struct OperatorCounters {
    /// Rows that reached it, per worker.
    pub rows_by_worker: Mutex<BTreeMap<usize, u64>>,
    /// Rows that it made.
    pub rows_out: AtomicU64,
    /// Windows or sessions fired.
    pub fired: AtomicU64,
    /// Late rows, stragglers.
    pub late_straggler: AtomicU64,
    /// Late rows, after idleness.
    pub late_idle: AtomicU64,
    /// Rows older than the versions that are kept.
    pub versions_gone: AtomicU64,
    /// Rows left out because a row of their key had passed.
    pub duplicates: AtomicU64,
    /// Rows that an expression failed for.
    pub failed: AtomicU64,
}

impl OperatorCounters {
    pub(crate) fn add(&self, counts: Counts) {
        let add = |to: &AtomicU64, n: u64| to.fetch_add(n, Ordering::Relaxed);
        add(&self.fired, counts.fired);
        add(&self.late_straggler, counts.late_straggler);
        add(&self.late_idle, counts.late_idle);
        add(&self.versions_gone, counts.versions_gone);
        add(&self.duplicates, counts.duplicates);
    }
}

/// Counters and reports of a sink.
#[derive(Debug, Default)]
pub struct SinkCounters {
    /// What its writers report.
    pub report: Arc<SinkReport>,
    /// Rows accepted.
    pub accepted: AtomicU64,
    /// Rows that this process's sources had given when the first row was accepted.
    pub first_after: OnceLock<u64>,
    /// Σ hash(row) · diff mod 2¹²⁸, if asked for.
    pub digest: Mutex<u128>,
}

impl SinkCounters {
    pub(crate) fn add_digest(&self, digest: u128) {
        let mut all = lock(&self.digest);
        *all = all.wrapping_add(digest);
    }
}

/// A split as SHOW WATERMARKS shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitView {
    /// Table name.
    pub table: String,
    /// The split's name.
    pub split: String,
    /// Watermark of the whole source.
    pub watermark: Millis,
    /// The split's facts.
    pub facts: SplitFacts,
}

/// What makes a job last beyond its processes.
#[derive(Clone)]
pub struct Lasting {
    /// The job, by a name that no other job ever has.
    pub job: String,
    /// The generation that starts.
    pub generation: u64,
    /// A random number of this start: see [`Author`].
    pub holder: u64,
    /// What remembers its cuts.
    pub memory: Arc<dyn CutMemory>,
    /// What makes its checkpoints.
    pub checkpoints: Option<Arc<Checkpointer>>,
    /// The checkpoint that it goes on from.
    pub restored: Option<Arc<Loaded>>,
    /// The last epoch that a generation before has closed.
    pub base: Option<Epoch>,
}

type Registry<T> = Mutex<BTreeMap<(usize, String), Arc<T>>>;

/// A job's shared side. One a process.
pub struct JobControl {
    /// The clock.
    pub clock: ClockRef,
    /// Whether sinks compute digests.
    pub digests: bool,
    lasting: Option<Lasting>,
    tasks: Arc<dyn Tasks>,
    /// Whether some worker hands cuts to the memory.
    keeper: AtomicBool,
    stopping: AtomicBool,
    /// Whether it ends where it is, with an epoch half done.
    interrupted: AtomicBool,
    /// Workers that have built their dataflow.
    built: AtomicU64,
    /// How long the process had run when a sink accepted the first row that is new.
    first_new: OnceLock<Duration>,
    failure: Mutex<Option<Failure>>,
    sources: Registry<SourceCounters>,
    operators: Registry<OperatorCounters>,
    sinks: Registry<SinkCounters>,
    splits: Mutex<Vec<SplitView>>,
    notices: Mutex<BTreeMap<String, String>>,
    lags: Mutex<BTreeMap<String, u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn entry<T: Default>(registry: &Registry<T>, place: usize, name: &str) -> Arc<T> {
    lock(registry).entry((place, name.to_owned())).or_default().clone()
}

fn list<T>(registry: &Registry<T>) -> Vec<(String, Arc<T>)> {
    lock(registry).iter().map(|((_, name), value)| (name.clone(), value.clone())).collect()
}

impl JobControl {
    /// A job that has not started, and forgets its cuts.
    pub fn new(clock: ClockRef, digests: bool) -> Arc<JobControl> {
        JobControl::start(clock, digests, None, Arc::new(Threads))
    }

    /// A job that has not started. It goes by the cuts that its memory has, makes more, and its
    /// sinks accept no epoch whose cut is not on disk.
    pub fn lasting(clock: ClockRef, digests: bool, lasting: Lasting) -> Arc<JobControl> {
        JobControl::start(clock, digests, Some(lasting), Arc::new(Threads))
    }

    /// The same, with something else than threads to run its sinks.
    pub(crate) fn start(
        clock: ClockRef,
        digests: bool,
        lasting: Option<Lasting>,
        tasks: Arc<dyn Tasks>,
    ) -> Arc<JobControl> {
        Arc::new(JobControl {
            clock,
            digests,
            lasting,
            tasks,
            keeper: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            interrupted: AtomicBool::new(false),
            built: AtomicU64::new(0),
            first_new: OnceLock::new(),
            failure: Mutex::default(),
            sources: Mutex::default(),
            operators: Mutex::default(),
            sinks: Mutex::default(),
            splits: Mutex::default(),
            notices: Mutex::default(),
            lags: Mutex::default(),
        })
    }

    /// A sink has accepted rows of an epoch.
    pub(crate) fn accepted(&self, epoch: Epoch) {
        let base = self.lasting.as_ref().and_then(|lasting| lasting.base);
        if self.first_new.get().is_none() && base.is_none_or(|base| epoch > base) {
            self.first_new.get_or_init(uptime);
        }
    }

    /// How long this process had run when a sink accepted the first row that no generation before
    /// had an epoch for.
    pub fn first_new(&self) -> Option<Duration> {
        self.first_new.get().copied()
    }

    /// What runs the job's sinks.
    pub(crate) fn tasks(&self) -> &dyn Tasks {
        self.tasks.as_ref()
    }

    /// What remembers the job's cuts.
    pub(crate) fn memory(&self) -> Option<&Arc<dyn CutMemory>> {
        self.lasting.as_ref().map(|lasting| &lasting.memory)
    }

    /// What makes the job's checkpoints.
    pub fn checkpoints(&self) -> Option<&Arc<Checkpointer>> {
        self.lasting.as_ref()?.checkpoints.as_ref()
    }

    /// Whether the next cut is to be a checkpoint; true once for each.
    pub(crate) fn is_checkpoint_due(&self, now: Millis) -> bool {
        self.checkpoints().is_some_and(|checkpoints| checkpoints.is_due(now))
    }

    /// The checkpoint that the job goes on from.
    pub(crate) fn restored(&self) -> Option<&Arc<Loaded>> {
        self.lasting.as_ref()?.restored.as_ref()
    }

    /// A notice that is logged too: when it begins, changes and is over.
    fn tell(&self, about: &str, notice: Option<String>) {
        if lock(&self.notices).get(about) == notice.as_ref() {
            return;
        }
        match &notice {
            Some(text) => tracing::warn!("{text}; trying again until it works"),
            None => tracing::warn!("{about}: it works again"),
        }
        self.set_notice(about, notice);
    }

    /// A worker of `workers` here has built its dataflow.
    pub(crate) fn is_built(&self, workers: usize) {
        if self.built.fetch_add(1, Ordering::SeqCst) + 1 == workers as u64
            && let Some(loaded) = self.restored()
        {
            loaded.let_go();
        }
    }

    /// Takes up what keepers of cuts and checkpoints want people to know.
    pub(crate) fn look_after_keepers(&self) {
        if let Some(memory) = self.memory() {
            self.tell("cut log", memory.notice());
            if let Some(message) = memory.failure() {
                self.fail(Failure::Operator { operator: "cut log".to_owned(), message });
            }
        }
        if let Some(checkpoints) = self.checkpoints() {
            self.tell("checkpoint", checkpoints.notice());
            if let Some(error) = checkpoints.failure() {
                let message = error.to_string();
                self.fail(Failure::Operator { operator: "checkpoint".to_owned(), message });
            }
        }
    }

    /// Who writes into a sink, where the job lasts.
    pub(crate) fn author(&self, number: usize, table: &str) -> Option<Author> {
        let Lasting { job, generation, holder, .. } = self.lasting.as_ref()?;
        Some(Author::of(job, (*generation, *holder), number, table))
    }

    /// The memory, for the first worker that asks.
    pub(crate) fn keep_cuts(&self) -> Option<Arc<dyn CutMemory>> {
        let first = !self.keeper.swap(true, Ordering::SeqCst);
        self.memory().cloned().filter(|_| first)
    }

    /// Asks the sources to stop; what has fired is committed, what has not does not fire.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether the job is to stop.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }

    /// Ends the job at once and well: what is not committed is done again by the next start.
    pub fn interrupt(&self) {
        self.interrupted.store(true, Ordering::SeqCst);
    }

    /// Whether it ends, or has ended, with an epoch half done.
    pub fn is_interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }

    /// Whether nothing more is to be done, though not all is read: it failed, or is interrupted.
    pub(crate) fn is_broken_off(&self) -> bool {
        self.is_interrupted() || self.failure().is_some()
    }

    /// Ends the job. The first cause is kept.
    pub fn fail(&self, failure: Failure) {
        lock(&self.failure).get_or_insert(failure);
    }

    pub(crate) fn fail_operator(&self, operator: &str, error: &OperatorError) {
        let failure =
            Failure::Operator { operator: operator.to_owned(), message: error.to_string() };
        self.fail(failure);
    }

    pub(crate) fn fail_connector(&self, table: &str, error: ConnectorError) {
        self.fail(match error.remedy {
            Remedy::Restart => Failure::Connection { message: format!("table `{table}`: {error}") },
            _ => Failure::Connector { table: table.to_owned(), error },
        });
    }

    /// The first cause, if the job has failed.
    pub fn failure(&self) -> Option<Failure> {
        lock(&self.failure).clone()
    }

    /// Counters of all sources by table.
    pub fn sources(&self) -> Vec<(String, Arc<SourceCounters>)> {
        list(&self.sources)
    }

    /// Counters of all operators by name, in the order of the plan.
    pub fn operators(&self) -> Vec<(String, Arc<OperatorCounters>)> {
        list(&self.operators)
    }

    /// Counters of all sinks by table.
    pub fn sinks(&self) -> Vec<(String, Arc<SinkCounters>)> {
        list(&self.sinks)
    }

    /// Splits and watermarks as of the last complete epoch.
    pub fn splits(&self) -> Vec<SplitView> {
        lock(&self.splits).clone()
    }

    /// What a person should know now, by table or split.
    pub fn notices(&self) -> Vec<(String, String)> {
        lock(&self.notices).clone().into_iter().collect()
    }

    /// Whether it goes on from where a generation before it was.
    pub(crate) fn goes_on(&self) -> bool {
        self.lasting.as_ref().is_some_and(|lasting| lasting.base.is_some())
    }

    /// Whether a sink of this process is trying to reach its target.
    pub fn waits_for_a_target(&self) -> bool {
        lock(&self.sinks).values().any(|sink| sink.report.current_notice().is_some())
    }

    /// Good rows that all sources have given so far.
    pub(crate) fn rows_given(&self) -> u64 {
        lock(&self.sources).values().map(|source| source.rows.load(Ordering::Relaxed)).sum()
    }

    pub(crate) fn source(&self, place: usize, table: &str) -> Arc<SourceCounters> {
        entry(&self.sources, place, table)
    }

    pub(crate) fn operator(&self, place: usize, name: &str) -> Arc<OperatorCounters> {
        entry(&self.operators, place, name)
    }

    pub(crate) fn sink(&self, place: usize, table: &str) -> Arc<SinkCounters> {
        entry(&self.sinks, place, table)
    }

    pub(crate) fn set_splits(&self, splits: Vec<SplitView>) {
        *lock(&self.splits) = splits;
    }

    /// Rows that each split holds beyond what was read, by table and split.
    pub fn lags(&self) -> BTreeMap<String, u64> {
        lock(&self.lags).clone()
    }

    pub(crate) fn set_lag(&self, about: &str, rows: u64) {
        let mut lags = lock(&self.lags);
        if let Some(lag) = lags.get_mut(about) {
            *lag = rows;
        } else {
            lags.insert(about.to_owned(), rows);
        }
    }

    pub(crate) fn set_notice(&self, about: &str, notice: Option<String>) {
        let mut notices = lock(&self.notices);
        match notice {
            Some(text) => notices.insert(about.to_owned(), text),
            None => notices.remove(about),
        };
    }
}
