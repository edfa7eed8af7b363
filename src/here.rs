//! The jobs of a script in this process alone, each for as many generations as splits come to it.
//!
//! Each has a thread that waits for its end and begins it anew: a job that waits for a server which
//! is away keeps no other from anything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::thread::{self, ScopedJoinHandle};
use weir_engine::flow::Cluster;
use weir_queries::JobPlan;

use crate::discovery::{self, Discovery, Watch};
use crate::jobs::{Jobs, News, Startable};
use crate::lasting::Set;
use crate::report::JobReport;
use crate::run::{Ready, RunOptions, Trouble, begin_again, begin_all, numbered};
use crate::status::{Shown, Status};

/// Runs jobs in this process until they end. What goes wrong with one goes to `tell`.
///
/// # Errors
/// A job cannot be begun for the first time.
pub fn run(
    plans: Vec<JobPlan>,
    options: &RunOptions,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Trouble),
) -> Result<Vec<JobReport>, Trouble> {
    let plans = numbered(plans);
    let ready = begin_all(&plans, options, alone(options), tell)?;
    let ready: Result<Vec<Startable>, Trouble> =
        ready.into_iter().map(|ready| startable(ready, options)).collect();
    let shown = Shown::default();
    let status = Status::start(shown.clone(), options.quiet);
    let (sender, troubles) = channel();
    let ready = plans.iter().zip(ready?).enumerate();
    let reports = thread::scope(|scope| {
        let lane = |(number, (plan, job))| {
            let (shown, tell) = (shown.clone(), sender.clone());
            let lane = Lane { number, plan, options, stop, shown, tell };
            scope.spawn(move || lane.run(job))
        };
        let lanes: Vec<_> = ready.map(lane).collect();
        drop(sender);
        troubles.into_iter().for_each(&mut *tell);
        let ended = |lane: ScopedJoinHandle<'_, JobReport>| {
            lane.join().unwrap_or_else(|_| {
                tell(Trouble::new("a thread panicked; this is a bug in Weir"));
                JobReport::default().marked(true)
            })
        };
        lanes.into_iter().map(ended).collect()
    });
    status.end();
    Ok(reports)
}

/// A job as one of this process alone.
fn startable(ready: Ready, options: &RunOptions) -> Result<Startable, Trouble> {
    let Ready { job, begun, opened } = ready;
    let lasting = match (&options.state, begun) {
        (Some(state), Some(begun)) => Some(state.join(&begun, opened, alone(options), 0)?),
        _ => None,
    };
    Ok((job, lasting))
}

fn alone(options: &RunOptions) -> Set {
    Set { processes: 1, workers: options.workers }
}

/// A job, over all its generations.
struct Lane<'a> {
    number: usize,
    plan: &'a (JobPlan, usize),
    options: &'a RunOptions,
    stop: &'a AtomicBool,
    shown: Shown,
    tell: Sender<Trouble>,
}

impl Lane<'_> {
    fn run(&self, mut job: Startable) -> JobReport {
        let mut all: Option<JobReport> = None;
        loop {
            let come = Arc::new(AtomicBool::new(false));
            let (report, failed) = self.generation(job, &come);
            let report = match &all {
                Some(before) => report.following(before),
                None => report,
            };
            if failed || self.is_stopping() || !come.load(Ordering::SeqCst) {
                return report.marked(failed);
            }
            // Whoever still holds it holds the log that the next generation needs.
            self.shown.set(self.number, &[]);
            // What may pass is waited for.
            let set = alone(self.options);
            let again = begin_again(self.plan, self.options, set, self.stop);
            let again =
                again.and_then(|next| next.map(|ready| startable(ready, self.options)).transpose());
            match again {
                Ok(None) => return report,
                Ok(Some(next)) => job = next,
                Err(trouble) => {
                    self.say(trouble);
                    return report.marked(true);
                }
            }
            all = Some(report);
        }
    }

    fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    fn say(&self, trouble: Trouble) {
        // Whoever listens does so until all lanes have ended.
        let _ = self.tell.send(trouble);
    }

    /// Runs until the job ends, or is stopped since splits have `come`. What it counted, and
    /// whether it failed.
    fn generation(&self, job: Startable, come: &Arc<AtomicBool>) -> (JobReport, bool) {
        let (lasting, news) = (self.options.state.is_some(), come.clone());
        let watch = Watch::of([&job.0]);
        let cluster = Cluster { threads: self.options.workers, ..Cluster::default() };
        let jobs = Jobs::start(vec![job], &[cluster], self.options.digest);
        self.shown.set(self.number, jobs.controls());
        let _discovery = Discovery::start(watch, jobs.controls(), move |words| {
            if !lasting {
                return discovery::next_time(words);
            }
            tracing::warn!("{words}; the next generation begins");
            news.store(true, Ordering::SeqCst);
        });
        let (mut report, mut failed) = (JobReport::default(), false);
        let stop = || come.load(Ordering::SeqCst) || self.is_stopping();
        jobs.wait(stop, |_, news| match news {
            News::Failed(trouble) => {
                failed = true;
                self.say(trouble);
            }
            News::Disconnected(message) => {
                failed = true;
                self.say(Trouble::new(message));
            }
            News::Interrupted => {}
            News::Ended(ended) => report = ended,
        });
        (report, failed)
    }
}
