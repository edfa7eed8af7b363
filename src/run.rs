//! Running the jobs of a script: sinks probed, splits found, epochs chosen, workers started.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use weir_engine::clock::SystemClock;
use weir_engine::connector::ConnectorError;
use weir_engine::flow::{Cluster, EpochPolicy, JobInput};
use weir_engine::graph::{Graph, Node};
use weir_engine::job::{Failure, JobControl, Lasting};
use weir_queries::JobPlan;

use crate::connectors;
use crate::lasting::{LastingJob, StateOptions};
use crate::processes;
use crate::report::JobReport;
use crate::status::Status;

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
            Failure::Operator { .. } => Trouble::new(failure.to_string()),
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

/// Prepares a script's jobs; those that last begin their next generation.
fn prepare_all(
    plans: Vec<JobPlan>,
    options: &RunOptions,
) -> Result<Vec<(PreparedJob, Option<Lasting>)>, Trouble> {
    let mut names: Vec<String> = Vec::new();
    let mut jobs = Vec::new();
    for plan in plans {
        let same = names.iter().filter(|name| **name == plan.name).count();
        names.push(plan.name.clone());
        jobs.push(match &options.state {
            None => (prepare(plan, options.epoch)?, None),
            Some(_) if options.processes > 1 => {
                return Err(Trouble::new("--state works with one process for now"));
            }
            Some(state) => {
                let begun = state.begin(plan, same, options.epoch, options.workers)?;
                if !options.quiet {
                    eprintln!("{}", begun.told());
                }
                let LastingJob { job, lasting, .. } = begun;
                (job, Some(lasting))
            }
        });
    }
    Ok(jobs)
}

/// Runs all jobs of a script, side by side, until they end.
pub fn run_script(plans: Vec<JobPlan>, options: &RunOptions) -> Result<(), Vec<Trouble>> {
    let one = |trouble: Trouble| vec![trouble];
    let stop = stop_on_signals().map_err(Trouble::new).map_err(one)?;
    let jobs = prepare_all(plans, options).map_err(one)?;
    if options.processes > 1 {
        let jobs = jobs.into_iter().map(|(job, _)| job).collect();
        return processes::parent(jobs, options, &stop);
    }
    let cluster = Cluster { threads: options.workers, ..Cluster::default() };
    let clusters = vec![cluster; jobs.len()];
    let reports = run_jobs(jobs, &clusters, options, &stop)?;
    finish(&reports, options).map_err(Trouble::new).map_err(one)
}

/// Prints what came of the jobs.
pub fn finish(reports: &[JobReport], options: &RunOptions) -> Result<(), String> {
    if let Some(path) = &options.report {
        let text = serde_json::to_string_pretty(reports).map_err(|e| e.to_string())?;
        std::fs::write(path, text)
            .map_err(|e| format!("cannot write the report {}: {e}", path.display()))?;
    }
    if !options.quiet {
        reports.iter().for_each(|r| eprint!("{}", r.summary()));
    }
    if options.digest {
        reports.iter().for_each(|r| crate::cli::out(&r.digests()));
    }
    Ok(())
}

/// Runs prepared jobs in this process, `clusters[i]` for the i-th.
pub fn run_jobs(
    jobs: Vec<(PreparedJob, Option<Lasting>)>,
    clusters: &[Cluster],
    options: &RunOptions,
    stop: &Arc<AtomicBool>,
) -> Result<Vec<JobReport>, Vec<Trouble>> {
    let clock = || Arc::new(SystemClock);
    let control = |lasting: &Option<Lasting>| match lasting {
        None => JobControl::new(clock(), options.digest),
        Some(lasting) => JobControl::lasting(clock(), options.digest, lasting.clone()),
    };
    let controls: Vec<Arc<JobControl>> = jobs.iter().map(|(_, l)| control(l)).collect();
    let status = Status::start(controls.clone(), options.quiet);
    let started = jobs.into_iter().zip(&controls).zip(clusters);
    let threads: Vec<_> =
        started.map(|(((job, _), control), cluster)| start(job, cluster, control)).collect();
    while threads.iter().any(|t| !t.is_finished()) {
        if stop.load(Ordering::SeqCst) {
            controls.iter().for_each(|c| c.stop());
        }
        thread::sleep(Duration::from_millis(5));
    }
    status.end();
    let failures: Vec<Trouble> = threads.into_iter().filter_map(|t| ended(t).err()).collect();
    if failures.is_empty() {
        Ok(controls.iter().map(|c| JobReport::of(c)).collect())
    } else {
        Err(failures)
    }
}

/// A job that runs on threads of its own.
pub type RunningJob = JoinHandle<Result<(), Failure>>;

/// Starts a prepared job in this process.
pub fn start(job: PreparedJob, cluster: &Cluster, control: &Arc<JobControl>) -> RunningJob {
    let (cluster, control) = (cluster.clone(), control.clone());
    thread::spawn(move || {
        let plan = Arc::new(job.plan);
        let build = move |workers| graph_of(&plan, workers);
        weir_engine::flow::run(&cluster, job.input, &control, build)
    })
}

/// Waits for a job's end.
pub fn ended(job: RunningJob) -> Result<(), Trouble> {
    match job.join() {
        Ok(ended) => ended.map_err(Trouble::from),
        Err(_) => Err(Trouble::new("a thread panicked; this is a bug in Weir")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_became_of_a_job_is_told() {
        let error = ConnectorError::fatal("the disk is gone").hint("look there");
        let failed = thread::spawn(|| Err(Failure::Connector { table: "out".into(), error }));
        let trouble = String::from(ended(failed).unwrap_err());
        assert_eq!(trouble, "table `out`: the disk is gone\n  hint: look there");
        assert_eq!(ended(thread::spawn(|| Ok(()))), Ok(()));
        let panicked = ended(thread::spawn(|| panic!("a test's own panic"))).unwrap_err();
        assert!(panicked.message.contains("a bug in Weir"), "{panicked:?}");
    }
}
