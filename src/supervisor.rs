//! What keeps jobs of several processes going: a lost process ends its set, and the next generation
//! of all jobs is started at once.
//!
//! # Jobs that fail
//! A job that fails says why, and is not started again; the others go on. Where a process dies it
//! need not be clear whose fault that was: a job that three generations have begun at one epoch,
//! and none got beyond it, is failed before the fourth.
//!
//! # Limits
//! A process that dies within moments may take the blame of another job's rows: jobs that had no
//! time to get on are failed with it. Jobs that do not last are not started again. After a loss
//! all jobs begin before any runs: a server that is away for one keeps the others waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use weir_engine::time::Epoch;
use weir_queries::JobPlan;

use crate::jobs::News;
use crate::lasting::Set;
use crate::patience::{pause_after, rest, side_by_side};
use crate::processes::{Assigned, Processes, SetEnd};
use crate::report::JobReport;
use crate::run::{Ready, RunOptions, Trouble, begin_again, begin_all, numbered};

/// How many generations may begin a job at one epoch.
const TRIES: u32 = 3;

/// What has become of a job.
#[derive(Default)]
struct Standing {
    failed: bool,
    /// Where its generations begin, and how often in a row they did there.
    begun: Option<(Option<Epoch>, u32)>,
    /// Its counters on those processes of the newest set where it has ended.
    report: Option<JobReport>,
    ended: usize,
}

impl Standing {
    /// A generation begins at this epoch; false where too many have.
    fn begins(&mut self, base: Option<Epoch>) -> bool {
        let times = self.begun.filter(|(at, _)| *at == base).map_or(0, |(_, times)| times);
        self.begun = Some((base, times + 1));
        times < TRIES
    }

    /// The generation could not begin, through no fault of the job.
    fn forgive(&mut self) {
        if let Some((_, times)) = &mut self.begun {
            *times = times.saturating_sub(1);
        }
    }

    fn take(&mut self, report: JobReport) {
        self.ended += 1;
        match &mut self.report {
            Some(all) => all.add(&report),
            None => self.report = Some(report),
        }
    }

    /// Whether nothing is left to do for it.
    fn is_over(&self, set: Set) -> bool {
        self.failed || self.ended == set.processes
    }
}

/// Runs jobs on `options.processes` processes until they end; where they last, for as many
/// generations as it takes. What goes wrong with a job goes to `tell`.
///
/// # Errors
/// A job cannot be begun for the first time; a process of jobs that do not last is lost.
pub fn run(
    plans: Vec<JobPlan>,
    options: &RunOptions,
    stop: &AtomicBool,
    tell: &mut dyn FnMut(Trouble),
) -> Result<Vec<JobReport>, Trouble> {
    let set = Set { processes: options.processes, workers: options.workers };
    let jobs = numbered(plans).into_iter().map(|plan| (plan, Standing::default())).collect();
    let mut all = All { jobs, set, options, stop, cause: None, passing: 0 };
    while all.jobs.iter().any(|(_, job)| !job.is_over(set)) {
        let (numbers, assigned) = all.begin(tell)?;
        if assigned.is_empty() || stop.load(Ordering::SeqCst) {
            break;
        }
        let SetEnd::Lost { why, passing } = all.run_set(&numbers, &assigned, tell)? else { break };
        if options.state.is_none() {
            return Err(Trouble::new(why));
        }
        if stop.load(Ordering::SeqCst) {
            // The next start does again what is not committed.
            tracing::warn!("{why}, while it was to stop");
            break;
        }
        tracing::warn!("{why}; the next generation begins");
        all.rest_after(&numbers, passing);
        all.cause = Some(why);
    }
    Ok(reports(all.jobs, set))
}

/// All jobs of a script.
struct All<'a> {
    jobs: Vec<((JobPlan, usize), Standing)>,
    set: Set,
    options: &'a RunOptions,
    stop: &'a AtomicBool,
    /// Why the last set was lost.
    cause: Option<String>,
    /// How many sets in a row were lost through no fault of a job, and none got on.
    passing: u32,
}

impl All<'_> {
    /// Begins the next generation of those that are not over; with their numbers. None where it is
    /// stopped meanwhile.
    fn begin(
        &mut self,
        tell: &mut dyn FnMut(Trouble),
    ) -> Result<(Vec<usize>, Vec<Assigned>), Trouble> {
        let (set, options, stop) = (self.set, self.options, self.stop);
        let left: Vec<usize> =
            (0..self.jobs.len()).filter(|job| !self.jobs[*job].1.is_over(set)).collect();
        let plan = |job: &usize| self.jobs[*job].0.clone();
        let plans: Vec<(JobPlan, usize)> = left.iter().map(plan).collect();
        let begun = if self.cause.is_none() {
            let ready = begin_all(&plans, options, set, tell)?;
            ready.into_iter().map(|ready| Ok(Some(ready))).collect()
        } else {
            // A job that cannot begin is told at once, while others may wait for their servers.
            let told = |_, next: &Result<_, Trouble>| {
                if let Err(trouble) = next {
                    tell(trouble.clone());
                }
            };
            let again = |plan| begin_again(plan, options, set, stop);
            side_by_side(plans.iter().collect(), again, told)
        };
        let stopped = begun.iter().any(|next| matches!(next, Ok(None)));
        let (mut numbers, mut assigned, mut moved) = (Vec::new(), Vec::new(), false);
        for (number, next) in left.into_iter().zip(begun) {
            let ((plan, _), standing) = &mut self.jobs[number];
            (standing.report, standing.ended) = (None, 0);
            match next {
                Ok(Some(Ready { job, begun, .. })) if !stopped => {
                    let base = begun.as_ref().map(|begun| begun.base);
                    moved |= standing.begun.map(|(at, _)| at) != base;
                    if base.is_some_and(|base| !standing.begins(base)) {
                        standing.failed = true;
                        tell(at_fault(&plan.name, base.flatten(), self.cause.as_deref()));
                        continue;
                    }
                    numbers.push(number);
                    assigned.push(Assigned { job, begun });
                }
                Ok(_) => {}
                Err(_) => standing.failed = true,
            }
        }
        if moved {
            self.passing = 0;
        }
        Ok((numbers, assigned))
    }

    /// Runs a set to its end.
    fn run_set(
        &mut self,
        numbers: &[usize],
        assigned: &[Assigned],
        tell: &mut dyn FnMut(Trouble),
    ) -> Result<SetEnd, Trouble> {
        match Processes::start(assigned, self.options, self.set) {
            Ok(processes) => Ok(processes.wait(self.stop, |job, news| {
                let standing = &mut self.jobs[numbers[job]].1;
                match news {
                    News::Failed(trouble) => {
                        standing.failed = true;
                        tell(trouble);
                    }
                    News::Interrupted | News::Disconnected(_) => {}
                    News::Ended(report) => standing.take(report),
                }
            })),
            Err(why) if self.cause.is_none() => Err(Trouble::new(why)),
            Err(why) => Ok(SetEnd::Lost { why, passing: true }),
        }
    }

    /// Waits before the next generation: where some job got on, there is nothing to wait for.
    fn rest_after(&mut self, numbers: &[usize], passing: bool) {
        let mut pause = Duration::ZERO;
        if passing {
            numbers.iter().for_each(|number| self.jobs[*number].1.forgive());
            self.passing += 1;
            pause = pause_after(self.passing + 1);
        }
        let tries = numbers.iter().filter_map(|number| Some(self.jobs[*number].1.begun?.1)).min();
        rest(pause.max(pause_after(tries.unwrap_or(0))), self.stop);
    }
}

fn at_fault(job: &str, base: Option<Epoch>, cause: Option<&str>) -> Trouble {
    let at = base.map_or("its beginning".to_owned(), |epoch| format!("epoch {epoch}"));
    let cause = cause.unwrap_or("no process was lost");
    let mut trouble = Trouble::new(format!(
        "job `{job}`: {TRIES} generations have begun at {at} and none got beyond it; the last one: \
         {cause}"
    ));
    trouble.hint = Some("start it again once the cause is gone; nothing is lost".to_owned());
    trouble
}

/// What came of the jobs. What some processes of a set counted that was lost says nothing.
fn reports(jobs: Vec<((JobPlan, usize), Standing)>, set: Set) -> Vec<JobReport> {
    let report = |(_, job): (_, Standing)| {
        let whole = job.report.filter(|_| job.ended == set.processes);
        whole.unwrap_or_default().marked(job.failed)
    };
    jobs.into_iter().map(report).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_that_gets_no_further_is_begun_three_times() {
        let mut job = Standing::default();
        assert!([None, None, None].into_iter().all(|base| job.begins(base)));
        assert!(!job.begins(None));
        let mut job = Standing::default();
        let bases = [Some(1), Some(1), Some(2), Some(2), Some(2), Some(3)];
        assert!(bases.into_iter().all(|base| job.begins(base)));
    }
}
