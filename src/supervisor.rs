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
use weir_engine::time::Epoch;
use weir_queries::JobPlan;

use crate::jobs::News;
use crate::lasting::{NextGeneration, Set};
use crate::patience::{PAUSE, patiently, pause_after, rest, side_by_side};
use crate::processes::{Assigned, Processes, SetEnd};
use crate::report::JobReport;
use crate::run::{RunOptions, Trouble, begin, numbered, prepare};

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
    let jobs: Vec<(JobPlan, usize, Standing)> =
        numbered(plans).into_iter().map(|(plan, same)| (plan, same, Standing::default())).collect();
    let mut all = All { jobs, set, options, stop, cause: None };
    while all.jobs.iter().any(|(_, _, job)| !job.is_over(set)) {
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
    Ok(reports(all.jobs))
}

/// All jobs of a script.
struct All<'a> {
    jobs: Vec<(JobPlan, usize, Standing)>,
    set: Set,
    options: &'a RunOptions,
    stop: &'a AtomicBool,
    /// Why the last set was lost.
    cause: Option<String>,
}

impl All<'_> {
    /// Begins the next generation of those that are not over; with their numbers. None where it is
    /// stopped meanwhile.
    fn begin(
        &mut self,
        tell: &mut dyn FnMut(Trouble),
    ) -> Result<(Vec<usize>, Vec<Assigned>), Trouble> {
        let (mut numbers, mut assigned) = (Vec::new(), Vec::new());
        let (set, cause) = (self.set, self.cause.as_deref());
        let left = self.jobs.iter_mut().enumerate().filter(|(_, (_, _, job))| !job.is_over(set));
        let left: Vec<_> = left.collect();
        // Side by side: one may wait for a server that the others do not need.
        let begun = left.iter().map(|(_, (plan, same, _))| (plan, *same)).collect();
        let begun = side_by_side(begun, |(plan, same)| {
            next(plan, same, self.options, set, (cause, self.stop))
        });
        if begun.iter().any(|next| matches!(next, Ok(None))) {
            return Ok((Vec::new(), Vec::new()));
        }
        for ((number, (plan, _, standing)), next) in left.into_iter().zip(begun) {
            (standing.report, standing.ended) = (None, 0);
            match next {
                Ok(None) => {}
                Ok(Some(job)) => {
                    let base = job.begun.as_ref().map(|begun| begun.base);
                    if base.is_some_and(|base| !standing.begins(base)) {
                        standing.failed = true;
                        tell(at_fault(&plan.name, base.flatten(), cause));
                        continue;
                    }
                    numbers.push(number);
                    assigned.push(job);
                }
                Err(trouble) if cause.is_none() => return Err(trouble),
                Err(trouble) => {
                    standing.failed = true;
                    tell(trouble);
                }
            }
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
                let standing = &mut self.jobs[numbers[job]].2;
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
        if passing {
            numbers.iter().for_each(|number| self.jobs[*number].2.forgive());
        }
        let tries = numbers.iter().filter_map(|number| Some(self.jobs[*number].2.begun?.1)).min();
        let pause = pause_after(tries.unwrap_or(0));
        rest(if passing { pause.max(PAUSE) } else { pause }, self.stop);
    }
}

/// A job's next generation; `None` where it is stopped while it waits for one. After a loss what
/// may pass is waited for.
fn next(
    plan: &JobPlan,
    same: usize,
    options: &RunOptions,
    set: Set,
    (cause, stop): (Option<&str>, &AtomicBool),
) -> Result<Option<Assigned>, Trouble> {
    let Some(state) = &options.state else {
        let job = prepare(plan.clone(), options.epoch)?;
        return Ok(Some(Assigned { job, begun: None }));
    };
    let next = || begin(state, (plan.clone(), same), options, set);
    let begun = if cause.is_some() { patiently(stop, next) } else { Some(next()) };
    let assigned = |NextGeneration { job, begun, .. }| Assigned { job, begun: Some(begun) };
    begun.transpose().map(|next| next.map(assigned))
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

fn reports(jobs: Vec<(JobPlan, usize, Standing)>) -> Vec<JobReport> {
    let report =
        |(_, _, job): (JobPlan, usize, Standing)| job.report.unwrap_or_default().marked(job.failed);
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
