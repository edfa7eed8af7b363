//! A generation of a job: processes with their tasks, and their workers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::crew::{Crew, Seat};
use super::fate::{End, Fate, Life, Skewed};
use super::job::{Outside, Splits};
use super::runner::{Runner, Slot};
use crate::clock::Clock;
use crate::flow::Host;
use crate::job::JobControl;
use crate::time::Millis;

/// A process of a set.
pub(super) struct Process {
    pub(super) runner: Arc<Runner>,
    pub(super) machine: usize,
    pub(super) clock: Arc<Skewed>,
    /// Until it is buried.
    pub(super) control: Option<Arc<JobControl>>,
}

impl Process {
    pub(super) fn life(&self) -> &Arc<Life> {
        &self.runner.life
    }
}

/// A generation at work, or what is left of one.
pub(super) struct Set {
    pub(super) generation: u64,
    pub(super) splits: Splits,
    pub(super) processes: Vec<Process>,
    /// Workers a process.
    threads: usize,
    crew: Crew,
    pub(super) stopped: bool,
    /// A process whose cut log gets nothing done until then.
    pub(super) slow: Option<(usize, Millis)>,
}

impl Set {
    pub(super) fn start(
        outside: &Outside,
        (generation, splits): (u64, Splits),
        processes: Vec<Process>,
        (threads, alone): (usize, bool),
        bytes: bool,
    ) -> Result<Set, String> {
        let partial = outside.fate.once_in(2);
        let seat = |worker: usize| {
            let process = &processes[worker / threads];
            let (outside, runner) = (outside.clone(), process.runner.clone());
            let (job, splits) = (outside.input(&splits), splits.clone());
            let graph = move |workers| outside.graph(&runner, (workers, &splits), partial);
            let graph = Box::new(graph);
            let control = process.control.clone()?;
            Some(Seat { control, graph, job, host: Host { threads, alone, second_copy: None } })
        };
        let seats = (0..processes.len() * threads).filter_map(seat).collect();
        let crew = Crew::start(seats, bytes)?;
        Ok(Set { generation, splits, processes, threads, crew, stopped: false, slow: None })
    }

    /// Whether all workers have ended well.
    pub(super) fn is_done(&self) -> bool {
        self.crew.is_done()
    }

    /// Lets one worker that still can do a step; false where none can.
    pub(super) fn work(&mut self, fate: &Fate) -> bool {
        let count = self.processes.len() * self.threads;
        let able: Vec<usize> = (0..count).filter(|worker| !self.crew.has_ended(*worker)).collect();
        if able.is_empty() {
            return false;
        }
        let worker = able[fate.index(able.len())];
        for _ in 0..=fate.below(3) {
            self.crew.step(worker);
        }
        true
    }

    /// Tasks that could do something.
    pub(super) fn tasks(&self) -> Vec<Arc<Slot>> {
        let mut tasks = Vec::new();
        for (place, process) in self.processes.iter().enumerate() {
            let now = process.life().fate.now();
            let slow = self.slow.is_some_and(|(slow, until)| slow == place && now < until);
            let ready = process.runner.ready().into_iter();
            tasks.extend(ready.filter(|slot| !slow || slot.name != "cut-log"));
        }
        tasks
    }

    /// The first cause on the first process that has failed.
    pub(super) fn failure(&self) -> Option<(usize, String)> {
        self.processes.iter().enumerate().find_map(|(place, process)| {
            Some((place, process.control.as_ref()?.failure()?.to_string()))
        })
    }

    /// How it stands.
    pub(super) fn told(&self) -> String {
        let mut told = format!("stopped: {}", self.stopped);
        for process in &self.processes {
            told += &format!("; {} at {}", process.runner.told(), process.life().fate.now());
            let Some(control) = &process.control else { continue };
            let splits = control.splits().into_iter().map(|view| view.facts);
            let splits: Vec<_> = splits.map(|f| (f.offset, f.mark, f.state)).collect();
            let (notices, lags) = (control.notices(), control.lags());
            told += &format!("; {notices:?} {lags:?} {splits:?}");
        }
        let able = (0..self.processes.len() * self.threads).filter(|w| !self.crew.has_ended(*w));
        told + &format!("; workers left: {:?}", able.collect::<Vec<_>>())
    }

    /// Processes that are not buried.
    pub(super) fn left(&self) -> Vec<usize> {
        let places = self.processes.iter().enumerate();
        places.filter(|(_, p)| p.control.is_some()).map(|(place, _)| place).collect()
    }

    /// A process ends: its workers and tasks are no more.
    pub(super) fn bury(&mut self, place: usize, end: End) {
        self.processes[place].life().end(end);
        for worker in place * self.threads..(place + 1) * self.threads {
            self.crew.end(worker);
        }
        let process = &mut self.processes[place];
        process.runner.forget();
        process.control = None;
    }

    /// All have done what they could: what they hold is closed in order.
    pub(super) fn close(&mut self) {
        for process in &mut self.processes {
            process.control = None;
            process.life().end(End::Killed);
            process.runner.forget();
        }
    }

    /// Whoever started the processes tells the others to stop where one does, and to end where one
    /// has ended in the middle of something.
    pub(super) fn spread(&self, fate: &Fate) {
        let controls = || self.processes.iter().filter_map(|process| process.control.as_ref());
        if self.stopped && fate.once_in(6) {
            controls().for_each(|control| control.stop());
        }
        if controls().any(|control| control.is_interrupted()) {
            controls().for_each(|control| control.interrupt());
        }
    }

    /// A process is told to stop.
    pub(super) fn stop(&mut self, fate: &Fate) {
        self.stopped = true;
        let process = &self.processes[fate.index(self.processes.len())];
        process.control.iter().for_each(|control| control.stop());
    }

    /// A process's clock goes wrong, or stands for a while.
    pub(super) fn disturb_clock(&self, fate: &Fate) {
        let clock = &self.processes[fate.index(self.processes.len())].clock;
        if fate.once_in(2) {
            *super::fate::lock(&clock.stands) = (clock.now(), fate.now() + fate.between(20, 900));
        } else {
            clock.off.fetch_add(fate.between(-80, 80), Ordering::Relaxed);
        }
    }
}

/// A machine: a disk, and the process that uses it.
pub(super) struct Machine {
    pub(super) disk: Arc<crate::journal::simulated::Simulated>,
    pub(super) user: Option<Arc<Life>>,
}

impl Machine {
    pub(super) fn is_free(&self) -> bool {
        self.user.as_ref().is_none_or(|user| user.ended().is_some())
    }

    /// Its process has ended; where its power went, the disk has forgotten what was not synced.
    pub(super) fn release(&mut self, life: &Arc<Life>) {
        if self.user.as_ref().is_some_and(|user| Arc::ptr_eq(user, life)) {
            self.user = None;
            if life.ended() == Some(End::Power) {
                self.disk = Arc::new(self.disk.after_crash(life.fate.below(u64::MAX)));
            }
        }
    }
}

/// What was done how often: runs in which nothing happens show nothing.
#[derive(Clone, Debug, Default)]
pub(super) struct Events(pub(super) BTreeMap<&'static str, u64>);

impl Events {
    pub(super) fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }
}
