//! Splits that come while a job lasts, for instance partitions that a topic gets.
//!
//! # How they join
//! The splits of a generation are fixed. So whoever sees that there are more ends the generation;
//! each start asks the sources, and stores what has come before anything of it is read
//! (`lasting.rs`). Rows that are behind the watermark by then are late, as those of any
//! split that comes back: the sooner it is seen, the fewer.
//!
//! A job whose sink waits for its target is left alone meanwhile: its sources go on receiving, and
//! a generation that cannot begin would not.
//!
//! # Limits
//! A generation that begins does again what came after the newest checkpoint: what reached a target
//! that keeps no progress may come there twice. Of a set of processes all jobs begin anew, and all
//! are killed for it; only the sinks of its first process are asked whether they wait. A job that
//! does not last cannot begin again without reading its rows twice: there it is said, once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use weir_engine::connector::ConnectorError;
use weir_engine::graph::{Node, SourceNode};
use weir_engine::job::JobControl;
use weir_engine::source::SplitSpec;

use crate::run::{PreparedJob, graph_of};

/// What a source has beside what is known, with its place and its table.
pub type Added = (usize, String, Result<Vec<SplitSpec>, ConnectorError>);

/// Asks every source of a job what it has beside what is known.
pub fn added(job: &PreparedJob) -> Vec<Added> {
    let sources = sources(job).into_iter().enumerate();
    let ask = |(place, (node, known)): (usize, (Arc<SourceNode>, Vec<SplitSpec>))| {
        (place, node.table.clone(), node.source.added(&known))
    };
    sources.map(ask).collect()
}

/// Sources in the order of the job's splits, with these.
fn sources(job: &PreparedJob) -> Vec<(Arc<SourceNode>, Vec<SplitSpec>)> {
    // A plan that could not be built ends its job elsewhere.
    let nodes = graph_of(&job.plan, 1).map(|graph| graph.nodes).unwrap_or_default();
    let sources = nodes.into_iter().filter_map(|node| match node {
        Node::Source(source) => Some(Arc::new(source)),
        _ => None,
    });
    let mut sources: Vec<Arc<SourceNode>> = sources.collect();
    sources.sort_by_key(|source| source.index);
    sources.into_iter().zip(job.input.splits.iter().cloned()).collect()
}

/// Says that what has come must wait: the job does not last.
pub fn next_time(words: &str) {
    tracing::warn!("{words}; it is read from the next start on");
}

/// The sources of jobs that may get more splits.
pub struct Watch(Vec<Watched>);

impl Watch {
    /// Of these jobs.
    pub fn of<'a>(jobs: impl IntoIterator<Item = &'a PreparedJob>) -> Watch {
        let mut all = Vec::new();
        for (job, prepared) in jobs.into_iter().enumerate() {
            for (node, known) in sources(prepared) {
                if let Some(every) = node.source.discovery() {
                    all.push(Watched { job, node, known, every, asked: Instant::now() });
                }
            }
        }
        Watch(all)
    }
}

/// A thread that looks now and then until this is dropped. It is not waited for: it may be asking a
/// server that does not answer.
pub struct Discovery {
    end: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Discovery {
    /// Starts to look for splits of jobs that run, with what they share with whoever watches them.
    /// The first that are found go to `found`, in words.
    pub fn start(
        watch: Watch,
        controls: &[Arc<JobControl>],
        found: impl Fn(&str) + Send + 'static,
    ) -> Discovery {
        let end = Arc::new(AtomicBool::new(false));
        let (mut watched, controls) = (watch.0, controls.to_vec());
        let theirs = end.clone();
        let look = move || {
            while let Some(wait) = watched.iter().map(Watched::wait).min() {
                thread::park_timeout(wait);
                if theirs.load(Ordering::SeqCst) {
                    return;
                }
                let words = watched.iter_mut().find_map(|one| one.look(&controls[one.job]));
                if let Some(words) = words.filter(|_| !theirs.load(Ordering::SeqCst)) {
                    return found(&words);
                }
            }
        };
        Discovery { end, thread: thread::spawn(look) }
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.end.store(true, Ordering::SeqCst);
        self.thread.thread().unpark();
    }
}

/// A source that may get more splits.
struct Watched {
    job: usize,
    node: Arc<SourceNode>,
    known: Vec<SplitSpec>,
    every: Duration,
    asked: Instant,
}

impl Watched {
    /// How long it is until it is asked again.
    fn wait(&self) -> Duration {
        self.every.saturating_sub(self.asked.elapsed())
    }

    /// What has come, in words, if it is time to ask. What goes wrong while asking is left to those
    /// who read.
    fn look(&mut self, control: &JobControl) -> Option<String> {
        if !self.wait().is_zero() {
            return None;
        }
        if control.failure().is_some() || control.waits_for_a_target() {
            self.asked = Instant::now();
            return None;
        }
        let added = self.node.source.added(&self.known);
        self.asked = Instant::now();
        let names: Vec<String> = added.ok()?.into_iter().map(|split| split.name).collect();
        let (table, names) = (&self.node.table, names.join(", "));
        (!names.is_empty()).then(|| format!("table `{table}` has more to read: {names}"))
    }
}
