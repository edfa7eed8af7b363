//! A pushed source, as MQTT is: a broker that delivers messages at least once until they are
//! acknowledged, and a slot that journals them first.
//!
//! What an offset of a slot's journal holds is noted when it is read, so that it can be seen that
//! it stays what it is, and what the result has to be.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::drive::Drive;
use super::fate::{End, Fate, Life, lock};
use super::feed::{rows, spec};
use super::job::rows::{Row, batch};
use super::runner::Runner;
use crate::connector::ConnectorError;
use crate::journal::simulated::Simulated;
use crate::journal::{Disk, Entry, Journal, JournalError, Kind, Reader};
use crate::source::{Chunk, Source, SourceHandle, SplitQueue, SplitSpec};
use crate::tasks::{Bell, Next, Running, Task, Tasks};
use crate::time::MARK_END;

/// So small that journals have many segments.
const SEGMENT: u64 = 400;
/// Messages that may be on their way without having been acknowledged.
const INFLIGHT_MAX: usize = 5;

/// One message as the broker has it.
struct Message {
    row: Row,
    acknowledged: bool,
    /// How often it was sent.
    sent: u64,
}

struct State {
    messages: Vec<Message>,
    /// What is on its way to the slot.
    inbox: VecDeque<usize>,
    /// Messages sent over this connection, and not acknowledged.
    inflight: Vec<usize>,
    /// Whose session it is.
    holder: Option<Arc<Life>>,
    disk: Arc<Simulated>,
    /// What the journal holds, as it was read: numbers of messages.
    held: BTreeMap<u64, usize>,
}

/// A slot with the broker's side of it.
pub(super) struct Slot {
    fate: Arc<Fate>,
    /// Breaks it: messages are acknowledged before they are on disk.
    early: bool,
    state: Mutex<State>,
}

/// The broker. The last message of a slot says that it was the last.
pub(super) struct Broker {
    pub(super) slots: Vec<Arc<Slot>>,
}

impl Broker {
    pub(super) fn of(fate: &Arc<Fate>, slots: usize, rows_max: i64, early: bool) -> Arc<Broker> {
        let slot = |_| {
            let mut rows = rows(fate, fate.between(0, rows_max) as usize);
            rows.push(Row { key: 0, value: 0, time: MARK_END, diff: 1 });
            let message = |row| Message { row, acknowledged: false, sent: 0 };
            let state = State {
                messages: rows.into_iter().map(message).collect(),
                inbox: VecDeque::new(),
                inflight: Vec::new(),
                holder: None,
                disk: Arc::new(Simulated::default()),
                held: BTreeMap::new(),
            };
            Arc::new(Slot { fate: fate.clone(), early, state: Mutex::new(state) })
        };
        Arc::new(Broker { slots: (0..slots).map(slot).collect() })
    }

    /// A slot does what it can: delivers, delivers again, changes the order of what is on its way.
    pub(super) fn act(&self, fate: &Fate) {
        if !self.slots.is_empty() {
            self.slots[fate.index(self.slots.len())].act();
        }
    }

    /// What a process that has ended held is free; where the power went its disk has forgotten what
    /// was not synced.
    pub(super) fn released(&self, life: &Arc<Life>) {
        for slot in &self.slots {
            let mut state = lock(&slot.state);
            if state.holder.as_ref().is_some_and(|holder| Arc::ptr_eq(holder, life)) {
                if life.ended() == Some(End::Power) {
                    let whim = slot.fate.below(u64::MAX);
                    state.disk = Arc::new(state.disk.after_crash(whim));
                }
                state.disconnect();
            }
        }
    }

    /// The slots' disks have little room.
    pub(super) fn fill(&self) {
        for slot in &self.slots {
            let state = lock(&slot.state);
            let files = state.disk.list().unwrap_or_default();
            let used: u64 = files.iter().map(|(_, size)| size).sum();
            state.disk.capacity(Some(used as usize + slot.fate.index(100)));
        }
    }

    /// They have room again.
    pub(super) fn empty(&self) {
        self.slots.iter().for_each(|slot| lock(&slot.state).disk.capacity(None));
    }

    /// The rows of each slot as its journal has them.
    pub(super) fn journaled(&self) -> Vec<Vec<Row>> {
        let rows = |slot: &Arc<Slot>| {
            let state = lock(&slot.state);
            let rows = state.held.values().map(|message| state.messages[*message].row);
            rows.take_while(|row| row.time != MARK_END).collect()
        };
        self.slots.iter().map(rows).collect()
    }

    /// That each acknowledged message is in the journal, and no oftener than it was sent.
    pub(super) fn check(&self) -> Result<(), String> {
        for slot in &self.slots {
            let state = lock(&slot.state);
            let mut times = BTreeMap::<usize, u64>::new();
            state.held.values().for_each(|message| *times.entry(*message).or_default() += 1);
            for (number, message) in state.messages.iter().enumerate() {
                let held = times.get(&number).copied().unwrap_or(0);
                if held > message.sent || (message.acknowledged && held == 0) {
                    let Message { sent, acknowledged, .. } = message;
                    return Err(format!(
                        "message {number} was sent {sent} times (acknowledged: {acknowledged}) \
                         and is in the journal {held} times"
                    ));
                }
            }
            // Offsets are without holes.
            if state.held.keys().enumerate().any(|(n, offset)| n as u64 != *offset) {
                return Err("the journal has holes".to_owned());
            }
        }
        Ok(())
    }
}

impl State {
    fn disconnect(&mut self) {
        self.holder = None;
        self.inbox.clear();
        self.inflight.clear();
    }
}

impl Slot {
    fn act(&self) {
        let mut state = lock(&self.state);
        if state.holder.as_ref().is_none_or(|holder| holder.ended().is_some()) {
            return;
        }
        let again = !state.inflight.is_empty() && self.fate.once_in(12);
        let sent = if again {
            let chosen = self.fate.index(state.inflight.len());
            Some(state.inflight[chosen])
        } else {
            let last = state.messages.len() - 1;
            let inflight = &state.inflight;
            let mut open = state.messages.iter().enumerate();
            let next = open.find(|(n, m)| !m.acknowledged && !inflight.contains(n));
            // The last one comes alone.
            let next = next.map(|(n, _)| n).filter(|n| *n < last || inflight.is_empty());
            next.filter(|_| state.inflight.len() < INFLIGHT_MAX)
        };
        if let Some(message) = sent {
            state.messages[message].sent += 1;
            if !again {
                state.inflight.push(message);
            }
            let place = state.inbox.len() - self.fate.index(2.min(state.inbox.len() + 1));
            state.inbox.insert(place, message);
        }
    }

    fn acknowledge(&self, life: &Life, message: usize) {
        // A reply can be lost.
        if life.goes_on() && !self.fate.once_in(25) {
            let mut state = lock(&self.state);
            state.messages[message].acknowledged = true;
            state.inflight.retain(|inflight| *inflight != message);
        }
    }

    /// What the journal has at an offset is noted, or is what was noted.
    fn note(&self, offset: u64, message: usize) -> Option<usize> {
        let mut state = lock(&self.state);
        let known = *state.held.entry(offset).or_insert(message);
        (known != message).then_some(known)
    }
}

/// Takes messages from the broker, journals them and acknowledges them.
struct Ingest {
    slot: Arc<Slot>,
    life: Arc<Life>,
    journal: Arc<Mutex<Journal>>,
    stop: Arc<AtomicBool>,
    /// Appended, and not known to be on disk.
    pending: Vec<usize>,
}

impl Task for Ingest {
    fn step(&mut self, _timed_out: bool) -> Next {
        if self.stop.load(Ordering::Relaxed) || self.life.ended().is_some() {
            return Next::Done;
        }
        let fresh: Vec<usize> = {
            let mut state = lock(&self.slot.state);
            let count = self.slot.fate.index(4).min(state.inbox.len());
            state.inbox.drain(..count).collect()
        };
        self.pending.extend(fresh);
        if self.pending.is_empty() {
            return Next::Wait(Some(Duration::from_millis(2)));
        }
        let mut journal = lock(&self.journal);
        let mut done = Ok(());
        for message in &self.pending {
            let payload = (*message as u64).to_le_bytes();
            let arrival = self.slot.fate.now();
            let entry = Entry { arrival, kind: Kind::Message, topic: "t", payload: &payload };
            done = done.and_then(|()| journal.append(&entry).map(|_| ()));
        }
        if self.slot.early {
            self.pending.iter().for_each(|message| self.slot.acknowledge(&self.life, *message));
        }
        match done.and_then(|()| journal.sync().map(|_| ())) {
            Ok(()) => {
                let done = std::mem::take(&mut self.pending);
                done.iter().for_each(|message| self.slot.acknowledge(&self.life, *message));
                Next::Again
            }
            // Nothing of it is kept: all is appended again.
            Err(JournalError::Io { .. }) if !journal.is_unsure() => {
                Next::Wait(Some(Duration::from_millis(5)))
            }
            Err(_) => Next::Done,
        }
    }
}

/// Reads the journal into the slot's queue.
struct Follow {
    slot: Arc<Slot>,
    life: Arc<Life>,
    reader: Reader,
    queue: Arc<SplitQueue>,
    stop: Arc<AtomicBool>,
}

impl Task for Follow {
    fn step(&mut self, _timed_out: bool) -> Next {
        if self.stop.load(Ordering::Relaxed) || self.queue.is_closed() {
            return Next::Done;
        }
        let (first, mut rows) = (self.reader.offset(), Vec::new());
        for _ in 0..1 + self.slot.fate.below(5) {
            let message = match self.reader.read() {
                Ok(Some(record)) => {
                    let number = <[u8; 8]>::try_from(record.entry.payload).unwrap_or_default();
                    (record.offset, u64::from_le_bytes(number) as usize)
                }
                Ok(None) => break,
                Err(error) => {
                    if self.life.ended().is_none() {
                        self.queue.fail(ConnectorError::fatal(error.to_string()));
                    }
                    return Next::Done;
                }
            };
            if let Some(known) = self.slot.note(message.0, message.1) {
                let text =
                    format!("offset {} held message {known}, and holds {}", message.0, message.1);
                self.queue.fail(ConnectorError::fatal(text));
                return Next::Done;
            }
            let row = lock(&self.slot.state).messages[message.1].row;
            if row.time == MARK_END {
                let ended = rows.is_empty() || self.queue.push(Chunk::plain(batch(&rows), first));
                self.queue.finish();
                return if ended { Next::Done } else { Next::Again };
            }
            rows.push(row);
        }
        self.queue.at_end(rows.is_empty());
        if rows.is_empty() {
            return Next::Wait(Some(Duration::from_millis(2)));
        }
        if self.queue.push(Chunk::plain(batch(&rows), first)) { Next::Again } else { Next::Done }
    }
}

/// The source, as a process has it.
pub(super) struct BrokerSource {
    pub(super) broker: Arc<Broker>,
    pub(super) runner: Arc<Runner>,
}

struct Open {
    journals: Vec<(u64, Arc<Mutex<Journal>>)>,
    stop: Arc<AtomicBool>,
    running: Vec<Box<dyn Running>>,
    slots: Vec<Arc<Slot>>,
    life: Arc<Life>,
}

impl BrokerSource {
    fn open_slot(&self, queue: &Arc<SplitQueue>, open: &mut Open) -> Result<(), JournalError> {
        let (slot, life) =
            (self.broker.slots[queue.split.number as usize].clone(), &self.runner.life);
        let mut state = lock(&slot.state);
        let held = state.holder.as_ref().is_some_and(|holder| holder.ended().is_none());
        assert!(!held, "a slot is opened twice");
        state.disconnect();
        state.holder = Some(life.clone());
        let drive = Drive { disk: state.disk.clone(), life: life.clone(), failing: 0 };
        drop(state);
        let journal = Journal::open(Arc::new(drive), "slot", SEGMENT)?;
        let start = queue.start_offset().unwrap_or(journal.bounds().0);
        let (stop, reader) = (open.stop.clone(), journal.reader(start));
        let (life, queue) = (life.clone(), queue.clone());
        let journal = Arc::new(Mutex::new(journal));
        let follow =
            Follow { slot: slot.clone(), life: life.clone(), reader, queue: queue.clone(), stop };
        let (stop, pending) = (open.stop.clone(), Vec::new());
        open.journals.push((queue.split.number, journal.clone()));
        open.slots.push(slot.clone());
        let ingest = Ingest { slot, life, journal, stop, pending };
        for task in [Box::new(follow) as Box<dyn Task>, Box::new(ingest)] {
            let bell = Arc::new(Bell::default());
            open.running.push(
                self.runner
                    .start("slot".to_owned(), bell, task)
                    .unwrap_or_else(|error| panic!("a simulated task always starts: {error}")),
            );
        }
        Ok(())
    }
}

impl Source for BrokerSource {
    fn splits(&self) -> Result<Vec<SplitSpec>, ConnectorError> {
        Ok((0..self.broker.slots.len() as u64).map(|number| spec(number, "slot")).collect())
    }

    fn open(&self, queues: Vec<Arc<SplitQueue>>) -> Result<Box<dyn SourceHandle>, ConnectorError> {
        let (journals, running, slots) = (Vec::new(), Vec::new(), Vec::new());
        let stop = Arc::new(AtomicBool::new(false));
        let life = self.runner.life.clone();
        let mut open = Open { journals, stop, running, slots, life };
        for queue in queues {
            if let Err(error) = self.open_slot(&queue, &mut open) {
                return Err(ConnectorError::fatal(error.to_string()));
            }
        }
        Ok(Box::new(open))
    }

    fn peek(&self, _split: &SplitSpec) -> Result<Option<Chunk>, ConnectorError> {
        Ok(None)
    }

    fn guarantee(&self) -> String {
        "at least once".to_owned()
    }
}

impl SourceHandle for Open {
    fn committed(&mut self, _offsets: &[(u64, u64)]) {}

    fn forget(&mut self, offsets: &[(u64, u64)]) {
        for (split, offset) in offsets {
            let journal = self.journals.iter().find(|(number, _)| number == split);
            if let Some((_, journal)) = journal {
                // What cannot be removed now is removed later.
                drop(lock(journal).trim(*offset));
            }
        }
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.stop();
        self.running.drain(..).for_each(|running| running.join());
        // The session ends with the handle.
        for slot in &self.slots {
            let mut state = lock(&slot.state);
            if state.holder.as_ref().is_some_and(|holder| Arc::ptr_eq(holder, &self.life)) {
                state.disconnect();
            }
        }
    }
}
