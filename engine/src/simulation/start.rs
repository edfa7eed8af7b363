//! How a generation begins: the order of `weir run --state`, with everything that can go wrong.

use std::sync::Arc;

use super::Breakage;
use super::drive::Drive;
use super::fate::{End, Life, Skewed};
use super::job::Splits;
use super::runner::Runner;
use super::set::{Process, Set};
use super::world::World;
use crate::checkpoint::{Checkpointer, Loaded, Member, Wanted, load_named, load_newest};
use crate::clock::ClockRef;
use crate::connector::{ConnectorError, Remedy};
use crate::cut::CutPart;
use crate::cutlog::{
    Begin, Choice, CutLog, CutLogError, CutMemory, PastCuts, Recorder, Summary, choose,
};
use crate::job::{JobControl, Lasting};
use crate::journal::{Bucket, failed};
use crate::sink::Author;
use crate::source::{SplitSpec, Wake};
use crate::store::JobStore;
use crate::time::Epoch;

/// Why a generation has not begun.
pub(super) enum Refused {
    /// Another start may succeed.
    Passing(String),
    /// It should have.
    Wrong(String),
}

impl From<ConnectorError> for Refused {
    fn from(error: ConnectorError) -> Refused {
        match error.remedy {
            Remedy::Fatal => Refused::Wrong(error.message),
            Remedy::Retry | Remedy::Reconfigure | Remedy::Restart => {
                Refused::Passing(error.message)
            }
        }
    }
}

/// What begins.
struct Begun {
    generation: u64,
    holder: u64,
    restored: Option<(u64, Epoch)>,
    splits: Splits,
}

impl World {
    /// Begins a generation on some of the machines that are free.
    pub(super) fn start(&mut self) -> Result<Set, Refused> {
        let fate = self.outside.fate.clone();
        let free: Vec<usize> =
            (0..self.machines.len()).filter(|m| self.machines[*m].is_free()).collect();
        let mut hosts = free.clone();
        for place in (1..hosts.len()).rev() {
            hosts.swap(place, fate.index(place + 1));
        }
        // One worker is simulated much faster than several.
        let single = self.breakage != Some(Breakage::OwnLogOnly) && fate.once_in(2);
        hosts.truncate(if single { 1 } else { 1 + fate.index(hosts.len()) });
        let threads = 1 + usize::from(!single && hosts.len() < 3 && fate.once_in(2));
        let starter = Life::of(&fate);
        if self.goes_wrong(4) {
            let end = if fate.once_in(2) { End::Power } else { End::Killed };
            starter.burn(fate.below(70), end);
            self.events.count("start breaks off");
        }
        for machine in &free {
            self.machines[*machine].user = Some(starter.clone());
        }
        let (found, own) = match self.logs_in_store {
            true => ((0..self.machines.len()).collect(), (0..hosts.len()).collect()),
            false => (free, hosts.clone()),
        };
        let begun = self.begin(&starter, (&found, &own), threads);
        let ended = starter.ended().is_some();
        starter.end(End::Killed);
        self.machines.iter_mut().for_each(|machine| machine.release(&starter));
        if ended {
            return Err(Refused::Passing("the start broke off".to_owned()));
        }
        let begun = begun?;
        // From here on sources are open.
        self.newest = hosts.clone();
        let set = self.join(&begun, &hosts, threads)?;
        let Begun { generation, restored, .. } = begun;
        self.events.count(if restored.is_some() { "from a checkpoint" } else { "by cuts alone" });
        fate.note(&format!(
            "generation {generation} begins on {hosts:?} x {threads}: {restored:?}"
        ));
        Ok(set)
    }

    /// The log of a machine, or of a process where logs are in the store.
    fn log_on(&self, machine: usize, life: &Arc<Life>) -> Result<CutLog, CutLogError> {
        if self.logs_in_store {
            let (store, folder) = (self.outside.store(life), format!("cuts-{machine}"));
            let bucket = Bucket::open(store.objects().clone(), &folder, 1);
            let bucket = bucket.map_err(|e| failed("open", &folder, e))?;
            return CutLog::open(Arc::new(bucket), "job", self.segment);
        }
        let disk = self.machines[machine].disk.clone();
        let drive = Drive { disk, life: life.clone(), failing: self.failing_syncs };
        CutLog::open(Arc::new(drive), "job", self.segment)
    }

    fn logs_on(&self, found: &[usize], life: &Arc<Life>) -> Result<Vec<(usize, CutLog)>, Refused> {
        let open = |place: &usize| Ok((*place, self.log_on(*place, life).map_err(of_log)?));
        found.iter().map(open).collect()
    }

    /// Steps 1 to 5 of a start, with the logs that are found and those of its processes.
    fn begin(
        &mut self,
        life: &Arc<Life>,
        (found, hosts): (&[usize], &[usize]),
        threads: usize,
    ) -> Result<Begun, Refused> {
        let mut logs = self.logs_on(found, life)?;
        let store = self.outside.store(life);
        let newest = logs.iter().map(|(_, log)| log.summary().generation).max().unwrap_or(0);
        let generation = store.claim(newest + 1)?;
        let begun = store.generations()?.iter().any(|g| g.begun.is_some());
        let holder = self.outside.fate.below(u64::MAX);
        let mut there = None;
        for (number, name, sink) in self.outside.tables(life) {
            let author = Author::of("job", (generation, holder), number, name);
            there = there.max(sink.take_over(&Author { begun, ..author })?);
        }
        if self.logs_in_store {
            logs = self.logs_on(found, life)?;
        }
        let summaries: Vec<Summary> = logs.iter().map(|(_, log)| log.summary()).collect();
        let from_nothing = summaries.iter().any(|log| log.floor.is_none());
        let restored = self.newest_checkpoint(&store, from_nothing)?;
        let restored = restored.map(|loaded| (loaded.manifest.generation, loaded.manifest.epoch));
        let choice = choose(&summaries, restored).map_err(Refused::Wrong)?;
        if there > choice.base {
            let base = choice.base;
            return Err(Refused::Wrong(format!("the table is at {there:?}, the logs at {base:?}")));
        }
        let splits = self.splits(&store, life, begun.then_some(generation))?;
        settle(&mut logs, choice, hosts).map_err(of_log)?;
        for (machine, log) in &mut logs {
            let (base, workers) = (choice.base, threads as u32);
            let begin = Begin { generation, base, processes: hosts.len() as u32, workers };
            if hosts.contains(machine) {
                log.begin(begin).map_err(of_log)?;
            }
        }
        store.begin(generation, choice.base)?;
        Ok(Begun { generation, holder, restored, splits })
    }

    /// The splits as they were stored, with those that have come since: these are stored under the
    /// generation that begins, unless it is the first.
    fn splits(
        &mut self,
        store: &JobStore,
        life: &Arc<Life>,
        generation: Option<u64>,
    ) -> Result<Splits, Refused> {
        let runner = Runner::of(life);
        let mut splits = self.outside.first_splits(&runner);
        if let Some(newest) = store.objects().list("splits")?.last()
            && let Some(all) = store.get(newest)?
        {
            splits = all;
        }
        let Some(generation) = generation else { return Ok(splits) };
        let mut grown = false;
        let joined = self.breakage != Some(Breakage::NotJoined);
        let added = self.outside.added(&runner, &splits);
        // A source that does not answer keeps nobody from reading what is known.
        for (known, added) in splits.iter_mut().zip(added) {
            let added = added.unwrap_or_default();
            grown |= !added.is_empty();
            known.extend(added.into_iter().map(|split| SplitSpec { joined, ..split }));
        }
        if grown && self.breakage != Some(Breakage::SplitsForgotten) {
            store.put(&format!("splits/{generation:020}.json"), &splits)?;
            self.events.count("splits join");
        }
        Ok(splits)
    }

    fn newest_checkpoint(
        &mut self,
        store: &JobStore,
        from_nothing: bool,
    ) -> Result<Option<Loaded>, Refused> {
        let (loaded, unsound) = load_newest(store, Wanted::Nothing)?;
        for bad in &unsound {
            if !self.damaged.contains(&bad.name) {
                let (epoch, reason) = (bad.name.epoch, &bad.reason);
                let text = format!("nobody has damaged the checkpoint at {epoch}: {reason}");
                return Err(Refused::Wrong(text));
            }
            self.events.count("unsound checkpoint passed over");
        }
        match (loaded, &unsound[..]) {
            (None, [_]) if from_nothing => Ok(None),
            (None, [bad, ..]) => Err(Refused::Wrong(format!("no checkpoint is sound: {bad:?}"))),
            (loaded, _) => Ok(loaded),
        }
    }

    /// Step 6: each process takes up its share.
    fn join(&mut self, begun: &Begun, hosts: &[usize], threads: usize) -> Result<Set, Refused> {
        let mut processes = Vec::new();
        for (process, machine) in hosts.iter().enumerate() {
            let (fate, workers) = (self.outside.fate.clone(), hosts.len() * threads);
            let life = Life::of(&fate);
            let (runner, clock) = (Runner::of(&life), Arc::new(Skewed::of(&fate)));
            self.machines[*machine].user = Some(life.clone());
            let member = Member { process, processes: hosts.len(), workers };
            let log = if self.logs_in_store { process } else { *machine };
            let lasting = self.lasting(begun, log, member, threads, &runner);
            let lasting = match lasting {
                Ok(lasting) => lasting,
                Err(refused) => {
                    life.end(End::Killed);
                    processes.iter().for_each(|p: &Process| p.life().end(End::Killed));
                    processes.iter().for_each(|p: &Process| p.runner.forget());
                    return Err(refused);
                }
            };
            let time: ClockRef = clock.clone();
            let control = JobControl::start(time, false, Some(lasting), runner.clone());
            processes.push(Process { runner, machine: *machine, clock, control: Some(control) });
        }
        let bytes = self.outside.fate.once_in(4);
        let alone = hosts.len() == 1 || self.breakage == Some(Breakage::OwnLogOnly);
        let what = (begun.generation, begun.splits.clone());
        Set::start(&self.outside, what, processes, (threads, alone), bytes).map_err(Refused::Wrong)
    }

    fn lasting(
        &self,
        begun: &Begun,
        log: usize,
        member: Member,
        threads: usize,
        runner: &Arc<Runner>,
    ) -> Result<Lasting, Refused> {
        let Begun { generation, holder, restored, .. } = *begun;
        let store = self.outside.store(&runner.life);
        let log = self.log_on(log, &runner.life).map_err(of_log)?;
        let name =
            restored.map(|(generation, epoch)| crate::checkpoint::Name { epoch, generation });
        let wanted = if member.processes == 1 { Wanted::All } else { Wanted::Of(member) };
        let restored = name.map(|name| load_named(&store, name, wanted)).transpose()?.map(Arc::new);
        let tasks = runner.as_ref();
        let no_thread = |e: std::io::Error| Refused::Wrong(e.to_string());
        let memory = Recorder::start_on(tasks, log, threads).map_err(no_thread)?;
        let memory: Arc<dyn CutMemory> = match self.breakage {
            Some(Breakage::Hasty) => Arc::new(Hasty(memory)),
            _ => Arc::new(memory),
        };
        let from = restored.as_ref().map(|loaded| &loaded.manifest);
        let checkpoints = Checkpointer::start_on(
            tasks,
            store,
            generation,
            from,
            self.interval,
            memory.clone(),
            member,
        );
        let checkpoints = Some(Arc::new(checkpoints.map_err(no_thread)?));
        Ok(Lasting {
            job: "job".to_owned(),
            generation,
            holder,
            memory,
            checkpoints,
            restored,
            base: None,
        })
    }
}

fn of_log(error: CutLogError) -> Refused {
    use crate::journal::JournalError::{Io, Unsure};
    match error {
        CutLogError::Journal(Io { .. } | Unsure { .. }) => Refused::Passing(error.to_string()),
        error => Refused::Wrong(error.to_string()),
    }
}

/// Brings the logs of a set to the base, from the one that has it.
fn settle(
    logs: &mut [(usize, CutLog)],
    choice: Choice,
    hosts: &[usize],
) -> Result<(), CutLogError> {
    for place in 0..logs.len() {
        if Some(place) == choice.donor || !hosts.contains(&logs[place].0) {
            continue;
        }
        let given = choice.donor.map(|donor| {
            let from = &logs[donor].1;
            (from.summary().floor, from.cuts())
        });
        let log = &mut logs[place].1;
        match given {
            Some((floor, cuts)) => log.adopt(floor, cuts)?,
            None if log.summary().last != choice.base => {
                log.adopt(choice.base, std::iter::empty())?;
            }
            None => {}
        }
    }
    Ok(())
}

/// Breaks it: says of every cut that it is on disk.
struct Hasty(Recorder);

impl CutMemory for Hasty {
    fn past(&self) -> PastCuts {
        self.0.past()
    }

    fn keep(&self, epoch: Epoch, parts: &[CutPart]) {
        self.0.keep(epoch, parts);
    }

    fn trim(&self, epoch: Epoch) {
        self.0.trim(epoch);
    }

    fn is_durable(&self, _epoch: Epoch) -> bool {
        true
    }

    fn on_durable(&self, wake: Wake) {
        self.0.on_durable(wake);
    }

    fn failure(&self) -> Option<String> {
        self.0.failure()
    }

    fn notice(&self) -> Option<String> {
        self.0.notice()
    }
}
