//! Running the jobs of a script: sinks probed, splits found, epochs chosen, workers started.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use weir_engine::connector::{ConnectorError, Remedy};
use weir_engine::flow::{EpochPolicy, JobInput};
use weir_engine::graph::{Graph, Node};
use weir_engine::job::Failure;
use weir_queries::JobPlan;

use crate::connectors;
use crate::here;
use crate::lasting::{Begun, LookedAt, NextGeneration, Opened, Set, StateOptions};
use crate::patience::{all_or_told, patiently, side_by_side};
use crate::report::JobReport;
use crate::supervisor;

/// Rows after which a live epoch is closed before its time.
pub const LIVE_ROWS_MAX: usize = 65_536;
/// Rows of the first epochs of a replay.
pub const REPLAY_ROWS_FIRST: usize = 32_768;
/// What the epochs of a replay grow to.
pub const REPLAY_ROWS: usize = 524_288;
/// Milliseconds of a live epoch.
pub const LIVE_MILLIS: i64 = 10;

/// How a script is to be run.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// Workers a process.
    pub workers: usize,
    /// Processes.
    pub processes: usize,
    /// How epochs are cut, if it was said.
    pub epoch: Option<EpochPolicy>,
    /// Whether digests are printed.
    pub digest: bool,
    /// Whether nothing is printed.
    pub quiet: bool,
    /// Where the state of jobs that last is.
    pub state: Option<StateOptions>,
    /// Where the final counters go as JSON.
    pub report: Option<PathBuf>,
}

/// Why a script did not run to its end.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Trouble {
    /// The table at fault, if it is one.
    pub table: Option<String>,
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// Whether it may be gone at another attempt.
    #[serde(default)]
    pub passing: bool,
}

impl Trouble {
    /// Trouble that is no table's.
    pub fn new(message: impl Into<String>) -> Trouble {
        Trouble { message: message.into(), ..Trouble::default() }
    }

    /// Trouble at a table.
    pub fn at(table: &str, error: &ConnectorError) -> Trouble {
        Trouble {
            table: Some(table.to_owned()),
            message: error.message.clone(),
            hint: error.hint.clone(),
            passing: error.remedy == Remedy::Retry,
        }
    }
}

impl From<Trouble> for String {
    fn from(trouble: Trouble) -> String {
        let table = trouble.table.map(|t| format!("table `{t}`: ")).unwrap_or_default();
        let hint = trouble.hint.map(|h| format!("\n  hint: {h}")).unwrap_or_default();
        format!("{table}{}{hint}", trouble.message)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        match failure {
            Failure::Connector { table, error } => Trouble::at(&table, &error),
            Failure::Operator { .. } | Failure::Connection { .. } => {
                Trouble::new(failure.to_string())
            }
        }
    }
}

/// A job with what every process needs to know of it.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
pub struct PreparedJob {
    /// The plan.
    pub plan: JobPlan,
    /// Splits and epochs.
    pub input: JobInput,
}

/// Builds a job's graph with fresh cores, for a job of so many workers.
pub fn graph_of(plan: &JobPlan, workers: usize) -> Result<Graph, String> {
    let mut graph = Graph { workers, ..Graph::default() };
    weir_queries::build(plan, &connectors::all(), &mut graph).map_err(|e| e.to_string())?;
    Ok(graph)
}

/// Probes a job's sinks, finds its splits and chooses its epochs. Reads the world, changes nothing
/// but what a sink's probe has to create.
pub fn prepare(plan: JobPlan, epoch: Option<EpochPolicy>) -> Result<PreparedJob, Trouble> {
    let graph = graph_of(&plan, 1).map_err(Trouble::new)?;
    let mut splits = BTreeMap::new();
    for node in &graph.nodes {
        if let Node::Source(source) = node {
            let found = source.source.splits().map_err(|e| Trouble::at(&source.table, &e))?;
            splits.insert(source.index, found);
        }
    }
    probe_sinks(&graph)?;
    let bounded = splits.values().flatten().all(|s| s.bounded);
    let by_default = if bounded {
        EpochPolicy::Replay { first: REPLAY_ROWS_FIRST, rows: REPLAY_ROWS }
    } else {
        EpochPolicy::Live { interval: LIVE_MILLIS, rows: LIVE_ROWS_MAX }
    };
    let policy = match epoch {
        Some(EpochPolicy::Replay { rows, .. }) if !bounded => {
            // A replay waits for its rows; a live input is cut by rows or by the clock.
            EpochPolicy::Live { interval: LIVE_MILLIS, rows }
        }
        Some(policy) => policy,
        None => by_default,
    };
    let splits = splits.into_values().collect();
    Ok(PreparedJob { plan, input: JobInput { policy, splits } })
}

/// Probes a job's sinks.
pub fn probe(plan: &JobPlan) -> Result<(), Trouble> {
    probe_sinks(&graph_of(plan, 1).map_err(Trouble::new)?)
}

fn probe_sinks(graph: &Graph) -> Result<(), Trouble> {
    for node in &graph.nodes {
        if let Node::Sink { sink, .. } = node {
            sink.sink.probe().map_err(|e| Trouble::at(&sink.table, &e))?;
        }
    }
    Ok(())
}

/// A script's plans, each with how many jobs before it write to the same tables.
pub fn numbered(plans: Vec<JobPlan>) -> Vec<(JobPlan, usize)> {
    let mut names: BTreeMap<String, usize> = BTreeMap::new();
    let number = |plan: JobPlan| {
        let seen = names.entry(plan.name.clone()).or_default();
        *seen += 1;
        (plan, *seen - 1)
    };
    plans.into_iter().map(number).collect()
}

/// A job that is ready to be run; one that lasts has begun a generation.
pub(crate) struct Ready {
    pub(crate) job: PreparedJob,
    pub(crate) begun: Option<Begun>,
    /// What a process that is alone need not open again.
    pub(crate) opened: Option<Opened>,
}

/// A job that could begin, as far as can be seen without changing anything.
enum Looked<'a> {
    Passing(PreparedJob),
    Lasting(&'a StateOptions, Box<LookedAt>),
}

/// Makes all jobs ready, side by side, once all of them look as if they could begin: where one does
/// not, none has begun. One that cannot for another reason (its log, a sink that is ahead) leaves
/// the others with a generation that nobody runs. What is wrong with more than one goes to `tell`.
pub(crate) fn begin_all(
    plans: &[(JobPlan, usize)],
    options: &RunOptions,
    set: Set,
    tell: &mut dyn FnMut(Trouble),
) -> Result<Vec<Ready>, Trouble> {
    let all = plans.iter().collect();
    let looked = side_by_side(all, |plan| look(plan, options), |_, _| {});
    let looked = all_or_told(looked, tell)?;
    all_or_told(side_by_side(looked, |looked| ready(looked, options, set), |_, _| {}), tell)
}

/// Makes a job ready that ran until now: what may pass is waited for. `None` where it is stopped
/// meanwhile.
pub(crate) fn begin_again(
    plan: &(JobPlan, usize),
    options: &RunOptions,
    set: Set,
    stop: &AtomicBool,
) -> Result<Option<Ready>, Trouble> {
    let begin = || look(plan, options).and_then(|looked| ready(looked, options, set));
    patiently(stop, begin).transpose()
}

fn look<'a>(
    (plan, same): &(JobPlan, usize),
    options: &'a RunOptions,
) -> Result<Looked<'a>, Trouble> {
    let plan = plan.clone();
    Ok(match &options.state {
        None => Looked::Passing(prepare(plan, options.epoch)?),
        Some(state) => Looked::Lasting(state, Box::new(state.look(plan, *same, options.epoch)?)),
    })
}

/// One that lasts begins its next generation, and says so.
fn ready(looked: Looked<'_>, options: &RunOptions, set: Set) -> Result<Ready, Trouble> {
    let (state, looked) = match looked {
        Looked::Passing(job) => return Ok(Ready { job, begun: None, opened: None }),
        Looked::Lasting(state, looked) => (state, looked),
    };
    let next = state.begin(*looked, set)?;
    if !options.quiet {
        eprintln!("{}", next.told());
    }
    let NextGeneration { job, begun, opened } = next;
    Ok(Ready { job, begun: Some(begun), opened })
}

/// Runs all jobs of a script, side by side, until they end. What goes wrong goes to `tell` when it
/// happens; a job that fails leaves the others alone. True: nothing went wrong.
pub fn run_script(
    plans: Vec<JobPlan>,
    options: &RunOptions,
    tell: &mut dyn FnMut(Trouble),
) -> bool {
    let mut well = true;
    let mut told = |trouble: Trouble| {
        well = false;
        tell(trouble);
    };
    let done = stop_on_signals().map_err(Trouble::new).and_then(|stop| {
        let reports = if options.processes > 1 {
            supervisor::run(plans, options, &stop, &mut told)?
        } else {
            here::run(plans, options, &stop, &mut told)?
        };
        finish(&reports, options).map_err(Trouble::new)
    });
    if let Err(trouble) = done {
        told(trouble);
    }
    well
}

/// Prints what came of the jobs.
fn finish(reports: &[JobReport], options: &RunOptions) -> Result<(), String> {
    if let Some(path) = &options.report {
        let text = serde_json::to_string_pretty(reports).map_err(|e| e.to_string())?;
        std::fs::write(path, text)
            .map_err(|e| format!("cannot write the report {}: {e}", path.display()))?;
    }
    let well = || reports.iter().filter(|report| !report.failed);
    if !options.quiet {
        well().for_each(|r| eprint!("{}", r.summary()));
    }
    if options.digest {
        well().for_each(|r| crate::cli::out(&r.digests()));
    }
    Ok(())
}

/// A flag that SIGINT and SIGTERM set; a second SIGINT ends the process at once.
pub fn stop_on_signals() -> Result<Arc<AtomicBool>, String> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 130, stop.clone())
            .and_then(|_| signal_hook::flag::register(signal, stop.clone()))
            .map_err(|e| format!("cannot listen for signals: {e}"))?;
    }
    Ok(stop)
}
