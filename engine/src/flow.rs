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
mod links;
mod reading;
mod recorded;
mod saved;
mod shard;
mod sink;

use std::any::Any;
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use timely::worker::Worker;

pub use driver::EpochPolicy;

use driver::Driver;

use crate::graph::Graph;
use crate::job::{Failure, JobControl};
use crate::journal::Peer;
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
    /// The process that has the second copies of this one's journals, if there is another.
    pub second_copy: Option<Peer>,
}

/// A worker's process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Host {
    /// How many workers it has.
    pub(crate) threads: usize,
    /// Whether no other process has any.
    pub(crate) alone: bool,
    /// The process that has the second copies of its journals.
    pub(crate) second_copy: Option<Peer>,
}

impl Cluster {
    fn is_alone(&self) -> bool {
        self.addresses.len() <= 1
    }

    /// Builders of the workers' channels, and what holds the connections.
    fn channels(&self, control: &JobControl) -> Result<Channels, String> {
        use timely::CommunicationConfig as Communication;
        use timely::communication::allocator::zero_copy::initialize;
        use timely::communication::allocator::{AllocatorBuilder, ProcessBuilder};
        let threads = self.threads.max(1);
        if self.is_alone() {
            return match threads {
                1 => Communication::Thread.try_build(),
                _ => Communication::Process(threads).try_build(),
            };
        }
        let failed = |e: std::io::Error| format!("processes cannot be connected: {e}");
        let ended = || control.is_broken_off() || control.is_stopping();
        let links = links::connect(&self.addresses, self.process, ended);
        if links.is_err() && ended() {
            control.interrupt();
        }
        let links = links.map_err(failed)?;
        let hooks = timely::communication::Hooks::default();
        let local =
            ProcessBuilder::new_typed_vector(threads, hooks.refill.clone(), hooks.spill.clone());
        let (builders, guard) = initialize::initialize_networking_from_sockets(
            local,
            links,
            self.process,
            threads,
            hooks,
        )
        .map_err(failed)?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), Box::new(guard)))
    }
}

/// How long a worker without work sleeps at the most.
const PARK: Duration = Duration::from_millis(100);

type Channels = (Vec<timely::communication::AllocatorBuilder>, Box<dyn Any + Send>);

/// A job's dataflow on a worker.
pub(crate) struct Placed {
    dataflow: usize,
    driver: Rc<RefCell<Driver>>,
    control: Arc<JobControl>,
}

impl Placed {
    /// Builds it.
    pub(crate) fn build(
        worker: &mut Worker,
        graph: Graph,
        job: &JobInput,
        control: &Arc<JobControl>,
        host: &Host,
    ) -> Placed {
        let dataflow = worker.next_dataflow_index();
        let driver = install::install(worker, graph, job, control, host);
        control.is_built(host.threads.max(1));
        Placed { dataflow, driver, control: control.clone() }
    }

    /// Lets the worker do something, or wait for so long for something to do. False: nothing is
    /// left to do.
    pub(crate) fn step(&self, worker: &mut Worker, wait: Duration) -> bool {
        if !worker.has_dataflows() {
            if !self.control.is_broken_off() {
                self.driver.borrow_mut().commit_all();
            }
            return false;
        }
        if self.control.is_broken_off() {
            worker.drop_dataflow(self.dataflow);
            return false;
        }
        worker.step_or_park(Some(wait));
        true
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
    let (shared, set) = (control.clone(), cluster.clone());
    let work = move |worker: &mut Worker| {
        let graph = match build(worker.peers()) {
            Ok(graph) => graph,
            Err(message) => {
                let operator = "plan".to_owned();
                return shared.fail(Failure::Operator { operator, message });
            }
        };
        // A panic must not leave the other workers waiting: it fails the job like any other cause.
        let steps = AssertUnwindSafe(|| {
            let second_copy = set.second_copy.clone();
            let host = Host { threads: set.threads, alone: set.is_alone(), second_copy };
            let placed = Placed::build(worker, graph, &job, &shared, &host);
            while placed.step(worker, PARK) {}
        });
        if let Err(panic) = catch_unwind(steps) {
            let message = format!("panicked: {}", panic_text(panic.as_ref()));
            shared.fail(Failure::Operator { operator: "worker".to_owned(), message });
            // Timely goes on stepping what is still installed.
            for dataflow in worker.installed_dataflows() {
                worker.drop_dataflow(dataflow);
            }
        }
    };
    let workers = cluster.channels(control).and_then(|(builders, links)| {
        timely::execute::execute_from(builders, links, timely::WorkerConfig::default(), work)
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
        // Nobody connects to a job that is not wanted any more.
        Err(_) if control.is_broken_off() => {}
        Err(message) => control.fail(Failure::Connection { message }),
    }
    control.failure().map_or(Ok(()), Err)
}
