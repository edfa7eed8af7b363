//! What runs the tasks of a simulated process: step by step, as the scheduler says.

use std::io;
use std::sync::{Arc, Mutex};

use super::fate::{Life, lock};
use crate::tasks::{Bell, Next, Running, Task, Tasks};
use crate::time::Millis;

/// Steps in which a task that was told to end has to.
const STEPS_TO_END: usize = 10_000;

/// When a task is called next.
#[derive(Clone, Copy, Debug)]
enum When {
    Now,
    At(Option<Millis>),
}

/// A task, until it is done.
pub(super) struct Slot {
    pub(super) name: String,
    life: Arc<Life>,
    bell: Arc<Bell>,
    task: Mutex<Option<Box<dyn Task>>>,
    /// When it is called, and whether its bell was heard.
    when: Mutex<(When, bool)>,
}

impl Slot {
    /// Whether it has something to do now.
    pub(super) fn is_ready(&self) -> bool {
        let mut when = lock(&self.when);
        when.1 |= self.bell.take();
        match when.0 {
            When::Now => true,
            When::At(time) => when.1 || time.is_some_and(|time| time <= self.life.fate.now()),
        }
    }

    /// Does a step; false once it is done.
    pub(super) fn step(&self) -> bool {
        let Some(mut task) = lock(&self.task).take() else { return false };
        let (when, rung) = std::mem::replace(&mut *lock(&self.when), (When::Now, false));
        let next = task.step(matches!(when, When::At(_)) && !rung);
        let at = match next {
            Next::Done => return false,
            Next::Again => When::Now,
            Next::Wait(None) => When::At(None),
            Next::Wait(Some(time)) => {
                let time = Millis::try_from(time.as_millis()).unwrap_or(Millis::MAX);
                When::At(Some(self.life.fate.now() + time.max(1)))
            }
        };
        lock(&self.when).0 = at;
        *lock(&self.task) = Some(task);
        true
    }

    /// Drops the task as it is.
    fn forget(&self) {
        drop(lock(&self.task).take());
    }
}

/// The tasks of a process.
pub(super) struct Runner {
    pub(super) life: Arc<Life>,
    slots: Mutex<Vec<Arc<Slot>>>,
}

impl Runner {
    pub(super) fn of(life: &Arc<Life>) -> Arc<Runner> {
        Arc::new(Runner { life: life.clone(), slots: Mutex::default() })
    }

    /// The tasks that have something to do now.
    pub(super) fn ready(&self) -> Vec<Arc<Slot>> {
        let mut slots = lock(&self.slots);
        slots.retain(|slot| lock(&slot.task).is_some());
        slots.iter().filter(|slot| slot.is_ready()).cloned().collect()
    }

    /// The tasks as they stand.
    pub(super) fn told(&self) -> String {
        let slots = lock(&self.slots);
        let told = slots.iter().map(|slot| format!("{} {:?}", slot.name, *lock(&slot.when)));
        told.collect::<Vec<_>>().join(", ")
    }

    /// The process is no more.
    pub(super) fn forget(&self) {
        let slots = std::mem::take(&mut *lock(&self.slots));
        slots.iter().for_each(|slot| slot.forget());
    }
}

impl Tasks for Runner {
    fn start(
        &self,
        name: String,
        bell: Arc<Bell>,
        task: Box<dyn Task>,
    ) -> io::Result<Box<dyn Running>> {
        let (task, when) = (Mutex::new(Some(task)), Mutex::new((When::Now, false)));
        let slot = Arc::new(Slot { name, life: self.life.clone(), bell, task, when });
        lock(&self.slots).push(slot.clone());
        Ok(Box::new(Started(slot)))
    }
}

struct Started(Arc<Slot>);

impl Running for Started {
    fn join(self: Box<Self>) {
        let slot = &self.0;
        for _ in 0..STEPS_TO_END {
            // What has ended does not wait for anything.
            if slot.life.ended().is_some() {
                return slot.forget();
            }
            let ready = slot.is_ready();
            let waits_for_ever = matches!(lock(&slot.when).0, When::At(None)) && !ready;
            assert!(!waits_for_ever, "{} was told to end, and waits for ever", slot.name);
            if !slot.step() {
                return;
            }
        }
        panic!("{} was told to end, and does not", slot.name);
    }
}
