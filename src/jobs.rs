//! Jobs that run in this process, side by side: each fails alone, and its failure is told at once.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use weir_engine::clock::SystemClock;
use weir_engine::flow::Cluster;
use weir_engine::job::{Failure, JobControl, Lasting};

use crate::report::JobReport;
use crate::run::{PreparedJob, Trouble, graph_of};

/// How often jobs are looked at.
const LOOK: Duration = Duration::from_millis(5);
/// How long a job that lasts may take to commit what is whole once it is told to stop: whoever
/// stops containers waits 30 s.
const STOP_MAX: Duration = Duration::from_secs(20);

/// A job with what makes it last, if it does.
pub type Startable = (PreparedJob, Option<Lasting>);

/// What happens to a job.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum News {
    /// It has failed. With several processes it ends only once all of them know.
    Failed(Trouble),
    /// Its processes cannot reach each other, which is no fault of the job.
    Disconnected(String),
    /// It is about to end with an epoch half done, as it was asked to; the next start does that
    /// again.
    Interrupted,
    /// It has ended here, in whatever way; its final counters.
    Ended(JobReport),
}

/// Jobs that have been started.
pub struct Jobs {
    controls: Vec<Arc<JobControl>>,
    threads: Vec<Option<RunningJob>>,
    /// Whether the failure, and whether the interruption was told.
    told: Vec<[bool; 2]>,
    /// Which of them last.
    lasting: Vec<bool>,
}

/// A job that runs on threads of its own.
pub type RunningJob = JoinHandle<Result<(), Failure>>;

impl Jobs {
    /// Starts jobs, `clusters[i]` for the i-th.
    pub fn start(jobs: Vec<Startable>, clusters: &[Cluster], digest: bool) -> Jobs {
        let clock = || Arc::new(SystemClock);
        let control = |lasting: &Option<Lasting>| match lasting {
            None => JobControl::new(clock(), digest),
            Some(lasting) => JobControl::lasting(clock(), digest, lasting.clone()),
        };
        let lasting = jobs.iter().map(|(_, lasting)| lasting.is_some()).collect();
        let controls: Vec<Arc<JobControl>> = jobs.iter().map(|(_, l)| control(l)).collect();
        let started = jobs.into_iter().zip(&controls).zip(clusters);
        let threads = started.map(|(((job, _), control), set)| Some(start(job, set, control)));
        let threads: Vec<_> = threads.collect();
        Jobs { told: vec![[false; 2]; threads.len()], controls, threads, lasting }
    }

    /// What the jobs share with whoever watches them.
    pub fn controls(&self) -> &[Arc<JobControl>] {
        &self.controls
    }

    /// Waits for the end of all, and asks them to stop once `stop` says so; what happens goes to
    /// `tell`, with the job's number.
    ///
    /// A target may be away for hours: a job that lasts and has not stopped in time is interrupted,
    /// and loses nothing by it. One that does not last waits.
    pub fn wait(mut self, stop: impl Fn() -> bool, mut tell: impl FnMut(usize, News)) {
        let mut stopped = None;
        while self.threads.iter().any(Option::is_some) {
            if stop() {
                self.controls.iter().for_each(|control| control.stop());
                if stopped.get_or_insert_with(Instant::now).elapsed() >= STOP_MAX {
                    self.interrupt();
                }
            }
            for job in 0..self.threads.len() {
                self.look(job, &mut tell);
            }
            thread::sleep(LOOK);
        }
    }

    /// Interrupts the jobs that last and have not ended.
    fn interrupt(&self) {
        let jobs = self.controls.iter().zip(&self.threads).zip(&self.lasting);
        for ((control, thread), lasting) in jobs {
            if *lasting && thread.is_some() && !control.is_interrupted() {
                let seconds = STOP_MAX.as_secs();
                let why: Vec<String> = control
                    .notices()
                    .into_iter()
                    .map(|(about, text)| about + ": " + &text)
                    .collect();
                let why = why.join("; ");
                tracing::warn!(%why, "not all is committed {seconds} s after the stop; the next \
                    start goes on where it was");
                control.interrupt();
            }
        }
    }

    /// Tells what there is to tell of a job, everything once.
    fn look(&mut self, job: usize, tell: &mut impl FnMut(usize, News)) {
        let finished = self.threads[job].take_if(|thread| thread.is_finished());
        let ends = finished.is_some();
        let panicked = finished.and_then(|thread| ended(thread).err()).map(News::Failed);
        let control = &self.controls[job];
        let failed = control.failure().map(|failure| match failure {
            Failure::Connection { message } => News::Disconnected(message),
            failure => News::Failed(failure.into()),
        });
        let interrupted = control.is_interrupted().then_some(News::Interrupted);
        for (news, told) in [failed.or(panicked), interrupted].into_iter().zip(&mut self.told[job])
        {
            if let Some(news) = news
                && !std::mem::replace(told, true)
            {
                tell(job, news);
            }
        }
        if ends {
            tell(job, News::Ended(JobReport::of(control)));
        }
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use weir_engine::connector::ConnectorError;

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
