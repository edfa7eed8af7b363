//! Lifting a job's graph into timely, and running it on P processes of T workers.
//!
//! Every worker builds the same dataflow: one driver that makes the epochs, one operator that
//! resolves cuts into watermarks, one adapter an operator core, one a sink. Watermarks do not
//! travel from operator to operator: the watermark of an edge is a function of the watermarks of
//! the sources, which every worker knows from the cuts, so each adapter computes those of its own
//! inputs.

mod adapter;
mod carrier;
mod cuts;
mod driver;
mod exchange;
mod install;
mod lifted;
mod reading;
mod shard;
mod sink;

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;
use timely::worker::Worker;

pub use driver::EpochPolicy;

use crate::graph::Graph;
use crate::job::{Failure, JobControl};
use crate::source::SplitSpec;

/// What a job needs beside its graph; the same on every process.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct JobInput {
    /// How epochs are cut.
    pub policy: EpochPolicy,
    /// The splits of each source, in the order of the plan.
    pub splits: Vec<Vec<SplitSpec>>,
}

/// Processes and workers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Workers a process.
    pub threads: usize,
    /// This process.
    pub process: usize,
    /// Addresses of all processes; at most one means that this process is alone.
    pub addresses: Vec<String>,
}

impl Cluster {
    fn config(&self) -> timely::Config {
        use timely::{CommunicationConfig as Communication, WorkerConfig};
        let threads = self.threads.max(1);
        let communication = if self.addresses.len() > 1 {
            Communication::Cluster {
                threads,
                process: self.process,
                addresses: self.addresses.clone(),
                report: false,
                zerocopy: false,
            }
        } else if threads > 1 {
            Communication::Process(threads)
        } else {
            Communication::Thread
        };
        timely::Config { communication, worker: WorkerConfig::default() }
    }
}

fn run_worker(
    worker: &mut Worker,
    graph: Graph,
    job: &JobInput,
    control: &Arc<JobControl>,
    threads: usize,
) {
    let dataflow = worker.next_dataflow_index();
    let driver = install::install(worker, graph, job, control);
    control.is_built(threads);
    while worker.has_dataflows() {
        if control.is_broken_off() {
            worker.drop_dataflow(dataflow);
            break;
        }
        worker.step_or_park(Some(Duration::from_millis(100)));
    }
    if !control.is_broken_off() {
        driver.borrow_mut().commit_all();
    }
}

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message")
}

/// Runs a job to its end on this process's workers. `build` is called once a worker, with
/// the number of all workers.
///
/// Returns when all sources have ended or were stopped and all sinks have committed, or with the
/// first cause of a failure.
pub fn run(
    cluster: &Cluster,
    job: JobInput,
    control: &Arc<JobControl>,
    build: impl Fn(usize) -> Result<Graph, String> + Send + Sync + 'static,
) -> Result<(), Failure> {
    if control.memory().is_some() && cluster.addresses.len() > 1 {
        // A sink asks its own process's log only.
        let message = "a job of several processes cannot remember its cuts yet".to_owned();
        return Err(Failure::Operator { operator: "cut log".to_owned(), message });
    }
    let (shared, threads) = (control.clone(), cluster.threads.max(1));
    let workers = timely::execute(cluster.config(), move |worker| {
        let graph = match build(worker.peers()) {
            Ok(graph) => graph,
            Err(message) => {
                let operator = "plan".to_owned();
                return shared.fail(Failure::Operator { operator, message });
            }
        };
        // A panic must not leave the other workers waiting: it fails the job like any other cause.
        let steps = AssertUnwindSafe(|| run_worker(worker, graph, &job, &shared, threads));
        if let Err(panic) = catch_unwind(steps) {
            let message = format!("panicked: {}", panic_text(panic.as_ref()));
            shared.fail(Failure::Operator { operator: "worker".to_owned(), message });
            // Timely goes on stepping what is still installed.
            for dataflow in worker.installed_dataflows() {
                worker.drop_dataflow(dataflow);
            }
        }
    });
    let failed = |operator: &str, message: String| {
        control.fail(Failure::Operator { operator: operator.to_owned(), message });
    };
    match workers {
        Ok(guards) => {
            for result in guards.join() {
                if let Err(message) = result {
                    failed("worker", message);
                }
            }
        }
        Err(message) => failed("cluster", message),
    }
    control.failure().map_or(Ok(()), Err)
}
