//! The world of a run: what the scheduler chooses from, and what may go wrong.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Breakage;
use super::broker::Broker;
use super::fate::{End, Fate, Life};
use super::feed::{Feed, Shape};
use super::files::Folder;
use super::job::Outside;
use super::set::{Events, Machine, Set};
use super::shelf::Shelf;
use super::start::Refused;
use super::table::{FENCED, Guards, Table, Takes};
use crate::checkpoint::{Name, in_force};
use crate::flow::EpochPolicy;
use crate::journal::Disk;
use crate::journal::simulated::Simulated;
use crate::time::Millis;

/// Turns in which a run has to come to its end.
const TURNS_MAX: u64 = 60_000;
/// Machines that there are.
const MACHINES: usize = 3;

/// Everything that there is in a run.
pub(super) struct World {
    pub(super) outside: Outside,
    pub(super) machines: Vec<Machine>,
    /// The machines of the newest generation whose sources were open.
    pub(super) newest: Vec<usize>,
    current: Option<Set>,
    /// Sets that others have followed, as far as something of them goes on.
    old: Vec<Set>,
    /// Checkpoints that were damaged.
    pub(super) damaged: BTreeSet<Name>,
    pub(super) events: Events,
    pub(super) interval: Millis,
    pub(super) segment: u64,
    pub(super) failing_syncs: u64,
    /// Whether cut logs are in the store, a process's own whichever machine it is on.
    pub(super) logs_in_store: bool,
    pub(super) breakage: Option<Breakage>,
    faults: u64,
    /// Until when disks are full and the store is away.
    full_until: Option<Millis>,
    away_until: Option<Millis>,
    lose_disk: bool,
    damage: bool,
}

impl World {
    pub(super) fn of(seed: u64, breakage: Option<Breakage>) -> World {
        let fate = Fate::of(seed);
        let outside = outside(&fate, breakage);
        let mut world = World {
            machines: Vec::new(),
            newest: Vec::new(),
            current: None,
            old: Vec::new(),
            damaged: BTreeSet::new(),
            events: Events::default(),
            interval: fate.between(1, 20),
            segment: fate.between(200, 2_000) as u64,
            logs_in_store: breakage.is_none() && fate.once_in(3),
            failing_syncs: if fate.once_in(4) { 60 } else { 0 },
            breakage,
            faults: fate.below(6),
            full_until: None,
            away_until: None,
            lose_disk: false,
            damage: false,
            outside,
        };
        world.machines = (0..MACHINES).map(|_| world.machine()).collect();
        world
    }

    fn machine(&self) -> Machine {
        let lying = self.breakage == Some(Breakage::LyingDisk);
        let disk = if lying { Simulated::lying() } else { Simulated::default() };
        Machine { disk: Arc::new(disk), user: None }
    }

    /// Whether something goes wrong now: once in `n` times, as long as it may.
    pub(super) fn goes_wrong(&mut self, n: u64) -> bool {
        let wrong = self.faults > 0 && self.outside.fate.once_in(n);
        self.faults -= u64::from(wrong);
        wrong
    }

    /// Runs to the end, and looks at the result.
    pub(super) fn run(&mut self) -> Result<(), String> {
        let mut turns = 0;
        while !self.turn()? {
            turns += 1;
            self.events.count("turn");
            if turns > TURNS_MAX {
                let state = self.current.as_ref().map(Set::told).unwrap_or_default();
                return Err(format!("no end within {TURNS_MAX} turns: {state}"));
            }
        }
        // What is left of old generations, and what was long on its way, changes nothing any more.
        for _ in 0..40 {
            self.zombie_acts()?;
        }
        while self.outside.arrive() {}
        self.outside.check()
    }

    /// One thing happens; true once all is done.
    fn turn(&mut self) -> Result<bool, String> {
        let fate = self.outside.fate.clone();
        fate.pass(fate.between(0, 4));
        self.recover();
        let Some(set) = &mut self.current else {
            return self.next_generation().map(|()| false);
        };
        match fate.below(100) {
            0..50 => drop(set.work(&fate)),
            50..82 => {
                let tasks = set.tasks();
                if !tasks.is_empty() {
                    let task = &tasks[fate.index(tasks.len())];
                    for _ in 0..=fate.below(3) {
                        // Done, or waiting: a step in vain is one that a bell may cause.
                        task.step();
                    }
                }
            }
            82..86 => self.zombie_acts()?,
            86..96 => self.outside.grow(),
            96 => self.add_split(),
            97 | 98 => drop(self.outside.arrive()),
            _ => self.fault(),
        }
        self.look_after()
    }

    /// Notices who has ended, and why.
    fn look_after(&mut self) -> Result<bool, String> {
        let Some(set) = &mut self.current else { return Ok(false) };
        let dead =
            set.left().into_iter().find(|place| set.processes[*place].life().ended().is_some());
        if let Some(place) = dead {
            let end = set.processes[place].life().ended().unwrap_or(End::Killed);
            self.events.count(if end == End::Power { "power goes" } else { "process killed" });
            self.outside.fate.note(&format!("process {place} is no more: {end:?}"));
            self.break_up(place, end);
            return Ok(false);
        }
        if let Some((place, cause)) = set.failure() {
            if !cause.contains("fsync") {
                return Err(format!("generation {} fails: {cause}", set.generation));
            }
            self.events.count("fsync fails");
            self.break_up(place, End::Killed);
            return Ok(false);
        }
        if self.outside.fate.once_in(20) {
            set.spread(&self.outside.fate);
        }
        if !set.is_done() {
            if !set.stopped
                && self.outside.has_more_than(&set.splits)
                && self.outside.fate.once_in(20)
            {
                self.renew();
            }
            return Ok(false);
        }
        set.close();
        let (stopped, lives) = (set.stopped, self.lives_of_current());
        self.current = None;
        lives.iter().for_each(|life| self.release(life));
        Ok(!stopped)
    }

    /// The generation ends since splits have come: a process that is alone stops, several are
    /// killed.
    fn renew(&mut self) {
        let fate = self.outside.fate.clone();
        let Some(set) = &mut self.current else { return };
        self.events.count("generation ends for splits");
        fate.note("the generation ends for splits that have come");
        match set.processes.len() {
            1 => set.stop(&fate),
            count => self.break_up(fate.index(count), End::Killed),
        }
    }

    /// A split comes, if one is left.
    fn add_split(&mut self) {
        if self.outside.add_split() {
            self.events.count("split comes");
        }
    }

    fn lives_of_current(&self) -> Vec<Arc<Life>> {
        let processes = self.current.iter().flat_map(|set| &set.processes);
        processes.map(|process| process.life().clone()).collect()
    }

    fn release(&mut self, life: &Arc<Life>) {
        self.machines.iter_mut().for_each(|machine| machine.release(life));
        self.outside.broker.released(life);
    }

    /// A process of the current set has ended: the set is an old one now, and what is left of it
    /// goes on for a while, or not.
    fn break_up(&mut self, place: usize, end: End) {
        let Some(mut set) = self.current.take() else { return };
        let life = set.processes[place].life().clone();
        set.bury(place, end);
        self.release(&life);
        self.old.push(set);
        if self.outside.fate.once_in(2) {
            self.bury_old(|_, _| true);
        }
    }

    /// Ends processes of old sets, of which this is so.
    fn bury_old(&mut self, which: impl Fn(&Set, usize) -> bool) {
        let mut old = std::mem::take(&mut self.old);
        for set in &mut old {
            for place in set.left() {
                if which(set, place) {
                    let end = set.processes[place].life().ended().unwrap_or(End::Killed);
                    set.bury(place, end);
                    let life = set.processes[place].life().clone();
                    self.release(&life);
                }
            }
        }
        old.retain(|set| !set.left().is_empty());
        self.old = old;
    }

    /// Something is done by what is left of old generations.
    fn zombie_acts(&mut self) -> Result<(), String> {
        let fate = self.outside.fate.clone();
        if self.old.is_empty() {
            return Ok(());
        }
        let chosen = fate.index(self.old.len());
        let set = &mut self.old[chosen];
        let tasks = set.tasks();
        if fate.once_in(2) && !tasks.is_empty() {
            tasks[fate.index(tasks.len())].step();
        } else {
            set.work(&fate);
        }
        self.events.count("zombie acts");
        if let Some((place, cause)) = set.failure() {
            let known = ["fsync", "no more", "newer generation", "another process writes", FENCED];
            if !known.iter().any(|text| cause.contains(text)) {
                return Err(format!("process {place} of an old generation fails: {cause}"));
            }
            let generation = set.generation;
            self.events.count("zombie is told");
            self.bury_old(|set, at| set.generation == generation && at == place);
        }
        self.bury_old(|set, at| set.processes[at].life().ended().is_some());
        if fate.once_in(80) {
            self.bury_old(|_, _| fate.once_in(2));
        }
        Ok(())
    }

    /// What was away for a while is back.
    fn recover(&mut self) {
        let now = self.outside.fate.now();
        if self.full_until.is_some_and(|until| until <= now) {
            self.full_until = None;
            self.machines.iter().for_each(|machine| machine.disk.capacity(None));
            self.outside.broker.empty();
        }
        if self.away_until.is_some_and(|until| until <= now) {
            self.away_until = None;
            self.outside.shelf.away(false);
        }
    }

    /// Something goes wrong.
    fn fault(&mut self) {
        let fate = self.outside.fate.clone();
        let Some(set) = &mut self.current else { return };
        if self.faults == 0 {
            return;
        }
        self.faults -= 1;
        match fate.below(10) {
            kind @ 0..=3 => {
                let end = if kind % 2 == 0 { End::Power } else { End::Killed };
                let place = fate.index(set.processes.len());
                set.processes[place].life().burn(fate.below(20), end);
                self.lose_disk |= fate.once_in(3);
                self.damage |= fate.once_in(2);
            }
            4 | 5 => {
                self.outside.broker.fill();
                let chosen = fate.index(set.processes.len());
                let disk = &self.machines[set.processes[chosen].machine].disk;
                let used: u64 = disk.list().unwrap_or_default().iter().map(|(_, size)| size).sum();
                disk.capacity(Some(used as usize + fate.index(200)));
                self.full_until = Some(fate.now() + fate.between(50, 900));
                self.events.count("disk is full");
            }
            6 => {
                self.outside.shelf.away(true);
                self.away_until = Some(fate.now() + fate.between(50, 900));
                self.events.count("store is away");
            }
            7 => {
                let place = fate.index(set.processes.len());
                set.slow = Some((place, fate.now() + fate.between(50, 900)));
                // The others go on, and one of them may not for long.
                let other = fate.index(set.processes.len());
                set.processes[other].life().burn(fate.below(40), End::Killed);
                self.lose_disk |= fate.once_in(2);
                self.events.count("disk is slow");
            }
            8 => {
                set.disturb_clock(&fate);
                self.events.count("clock goes wrong");
            }
            _ => {
                set.stop(&fate);
                self.events.count("stop");
            }
        }
    }

    /// Tries to begin the next generation.
    fn next_generation(&mut self) -> Result<(), String> {
        let fate = self.outside.fate.clone();
        if fate.once_in(2) && !self.old.is_empty() {
            return self.zombie_acts();
        }
        // Where nothing is left of the newest one, something of it has to come back.
        let free = |world: &World| {
            let mut newest = world.newest.iter();
            world.newest.is_empty() || newest.any(|machine| world.machines[*machine].is_free())
        };
        let any = self.machines.iter().any(Machine::is_free);
        // A slot's journal is locked by whoever has it, or is about to have it.
        if !any || !free(self) || !self.outside.broker.slots.is_empty() {
            self.bury_old(|_, _| true);
        }
        self.lose_a_disk();
        self.damage_a_checkpoint();
        if fate.once_in(4) {
            self.add_split();
        }
        match self.start() {
            Ok(set) => {
                self.events.count("generation");
                self.current = Some(set);
                Ok(())
            }
            Err(Refused::Passing(why)) => {
                fate.note(&format!("no start: {why}"));
                Ok(())
            }
            Err(Refused::Wrong(why)) => Err(format!("no generation can begin: {why}")),
        }
    }

    /// A disk is lost for ever, if another of the newest generation is at hand.
    fn lose_a_disk(&mut self) {
        if !std::mem::take(&mut self.lose_disk) {
            return;
        }
        let lost = self.outside.fate.index(self.machines.len());
        // Disks are not lost that none of the newest generation could stand in for.
        let left = |machine: &&usize| **machine != lost && self.machines[**machine].is_free();
        if self.machines[lost].is_free() && self.newest.iter().any(|machine| left(&machine)) {
            self.machines[lost] = self.machine();
            self.events.count("disk lost");
            self.outside.fate.note(&format!("disk {lost} is lost"));
        }
    }

    /// Some bits of the newest checkpoint are not what they were, if the one before is whole.
    fn damage_a_checkpoint(&mut self) {
        if !self.damage || !self.old.is_empty() {
            return;
        }
        let (shelf, life) = (self.outside.shelf.clone(), Life::of(&self.outside.fate));
        let Ok(generations) = self.outside.store(&life).generations() else { return };
        let paths: Vec<String> =
            shelf.under("checkpoints/").into_iter().map(|(path, _)| path).collect();
        let names = in_force(&paths, &generations);
        let [newest, before, ..] = names[..] else { return };
        if self.damaged.contains(&newest) || self.damaged.contains(&before) {
            return;
        }
        let start = format!("pieces/{:020}-{:020}", newest.generation, newest.epoch);
        let files = shelf.under(&start).into_iter().map(|(path, _)| path);
        let mut files: Vec<String> = files.filter(|path| path.ends_with(".pieces")).collect();
        files.push(newest.path());
        self.damage = false;
        shelf.damage(&files[self.outside.fate.index(files.len())]);
        self.damaged.insert(newest);
        self.events.count("checkpoint damaged");
        self.outside.fate.note(&format!("checkpoint {newest:?} is damaged"));
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // What still runs ends as it is.
        let sets = self.current.take().into_iter().chain(std::mem::take(&mut self.old));
        for mut set in sets {
            set.left().into_iter().for_each(|place| set.bury(place, End::Killed));
        }
    }
}

/// What the fate of a run was.
impl World {
    pub(super) fn fate(&self) -> &Fate {
        &self.outside.fate
    }
}

/// What is around a job, and how it is.
fn outside(fate: &Arc<Fate>, breakage: Option<Breakage>) -> Outside {
    let is = |what| breakage == Some(what);
    let pushed = if fate.once_in(3) { 1 + fate.index(2) } else { 0 };
    let policy = match fate.below(4) {
        0 => EpochPolicy::rows(fate.between(4, 30) as usize),
        _ => {
            EpochPolicy::Live { interval: fate.between(1, 12), rows: fate.between(4, 30) as usize }
        }
    };
    // A replay has all splits before it begins, and so has what is read first.
    let is_live = matches!(policy, EpochPolicy::Live { .. });
    let table_first = fate.once_in(5);
    let feed = |splits: usize, rows_max: i64, changes: bool| {
        let lazy = fate.once_in(5);
        let grows = is_live && !lazy && !(changes && table_first);
        let more = grows && (is(Breakage::SplitsForgotten) || fate.once_in(3));
        let later = if more { 1 + fate.index(2) } else { 0 };
        let from_end = is(Breakage::LaterFromEnd);
        Feed::of(fate, Shape { splits, later, rows_max, lazy, changes, from_end })
    };
    let guards = Guards { fence: !is(Breakage::NoFence), compare: !is(Breakage::NoCompare) };
    Outside {
        feed: feed(1 + fate.index(3 - usize::from(pushed > 0)), 60, false),
        changes: feed(1 + fate.index(2), 30, true),
        table_first,
        broker: Broker::of(fate, pushed, 40, is(Breakage::EarlyAcknowledgement)),
        table: Table::of(fate, Takes::Rows, guards),
        folder: Folder::of(fate),
        totals: Table::of(fate, Takes::Changes, guards),
        shelf: Shelf::of(fate, is(Breakage::PiecesLast)),
        policy,
        idle_timeout: fate.once_in(4).then(|| fate.between(5, 40)),
        advance_after: fate.once_in(2).then(|| fate.between(0, 40)),
        max_drift: fate.once_in(4).then(|| fate.between(0, 150)),
        helps: fate.once_in(2),
        fate: fate.clone(),
        breakage,
    }
}
