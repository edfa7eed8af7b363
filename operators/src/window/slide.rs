//! The running window: what slides from one end to the next.
//!
//! # Three ways
//! - [`Evicting`], for invertible aggregates of hopping windows: a bucket that enters is added to
//!   its keys' running cells, one that leaves is taken away. O(groups of the buckets) a slide.
//! - [`Stacks`], for the others: two stacks a key. The entries of a key in its *front* hold the sum
//!   of themselves and all front entries after them; those in the *back* hold themselves, and their
//!   sum is kept beside them. The window is first front entry + back sum. Leaving pops the front;
//!   if that is empty, the back is summed up from its end and becomes the front. Each entry is
//!   summed once, so it is O(1) amortised; the turns of keys that began together come together, in
//!   one slide.
//! - [`Growing`], for cumulating windows: buckets enter until the longest window has fired, then
//!   all leave at once.
//!
//! # Stragglers
//! A straggler's bucket enters later than its pane, and leaves with it. Added and taken away it
//! needs no more care. In two stacks it joins the entry of its pane; in the front also all entries
//! before it.

use std::collections::{BTreeMap, VecDeque};
use weir_engine::operator::OperatorError;
use weir_engine::time::Millis;

use super::panes::{Bucket, Keys, NO_SLOT, Slots};
use super::shape::WindowShape;
use crate::aggregates::KeyInterner;

/// Keys that have a group in the running window, with what a way keeps for each.
#[derive(Debug)]
struct Live<T> {
    keys: Vec<u32>,
    of_key: Vec<(u32, T)>,
}

impl<T> Default for Live<T> {
    fn default() -> Live<T> {
        Live { keys: Vec::new(), of_key: Vec::new() }
    }
}

impl<T: Default> Live<T> {
    /// What is kept for a key; it becomes live.
    fn enter(&mut self, key: u32) -> &mut T {
        let at = key as usize;
        if self.of_key.len() <= at {
            self.of_key.resize_with(at + 1, || (NO_SLOT, T::default()));
        }
        let (place, kept) = &mut self.of_key[at];
        if *place == NO_SLOT {
            *place = self.keys.len() as u32;
            self.keys.push(key);
        }
        kept
    }

    fn get(&mut self, key: u32) -> &mut T {
        &mut self.of_key[key as usize].1
    }

    fn leave(&mut self, key: u32) {
        let place = std::mem::replace(&mut self.of_key[key as usize].0, NO_SLOT);
        self.of_key[key as usize].1 = T::default();
        self.keys.swap_remove(place as usize);
        if let Some(&moved) = self.keys.get(place as usize) {
            self.of_key[moved as usize].0 = place;
        }
    }

    /// Live keys in the order of their bytes, with their slots: O(live) where they are a good part
    /// of all keys.
    fn groups(&self, interner: &mut KeyInterner, slot: fn(&T) -> u32) -> (Vec<u32>, Vec<u32>) {
        let live = self.keys.len();
        let (mut keys, mut slots) = (Vec::with_capacity(live), Vec::with_capacity(live));
        let mut add = |key: u32| {
            if let Some((place, kept)) = self.of_key.get(key as usize)
                && *place != NO_SLOT
            {
                keys.push(key);
                slots.push(slot(kept));
            }
        };
        if live * 8 > interner.len() {
            interner.ordered().iter().copied().for_each(add);
        } else {
            let ranks = interner.ranks();
            let mut live = self.keys.clone();
            live.sort_unstable_by_key(|&key| ranks[key as usize]);
            live.into_iter().for_each(&mut add);
        }
        (keys, slots)
    }
}

/// One group of state as a snapshot holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Held {
    pub(super) key: u32,
    pub(super) part: Part,
    pub(super) pane: Millis,
    pub(super) entry: Millis,
    pub(super) slot: u32,
}

/// What a group of state is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(super) enum Part {
    /// Of a pane that has entered no window yet.
    Waiting = 0,
    /// A front entry of two stacks: the sum of itself and the front entries after it.
    Front = 1,
    /// Of a pane in the running window.
    Inside = 2,
    /// The running cells of a cumulating window.
    Grown = 3,
}

impl Part {
    pub(super) fn of(code: u8) -> Option<Part> {
        [Part::Waiting, Part::Front, Part::Inside, Part::Grown]
            .into_iter()
            .find(|p| *p as u8 == code)
    }
}

/// The running window.
#[derive(Debug)]
pub(super) enum Running {
    Evicting(Evicting),
    Stacks(Stacks),
    Growing(Growing),
}

impl Running {
    pub(super) fn new(shape: WindowShape, invertible: bool) -> Running {
        match shape {
            WindowShape::Cumulate { .. } => Running::Growing(Growing::default()),
            _ if invertible => Running::Evicting(Evicting::default()),
            _ => Running::Stacks(Stacks::default()),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        match self {
            Running::Evicting(running) => running.live.keys.is_empty(),
            Running::Stacks(running) => running.live.keys.is_empty(),
            Running::Growing(running) => running.live.keys.is_empty(),
        }
    }

    /// Adds a bucket.
    pub(super) fn enter(
        &mut self,
        mut bucket: Bucket,
        shape: WindowShape,
        slots: &mut Slots,
        keys: &mut Keys,
    ) -> Result<(), OperatorError> {
        if !matches!(self, Running::Evicting(_)) {
            bucket.unpack(slots)?;
        }
        match self {
            Running::Evicting(running) => running.enter(bucket, slots),
            Running::Stacks(running) => running.enter(&bucket, slots, keys),
            Running::Growing(running) => {
                running.until = shape.last_end(bucket.pane);
                running.enter(&bucket, slots, keys)
            }
        }
    }

    /// Lets go of all buckets that are in no window ending at `end` or later.
    pub(super) fn evict_before(
        &mut self,
        end: Millis,
        shape: WindowShape,
        slots: &mut Slots,
        keys: &mut Keys,
    ) -> Result<(), OperatorError> {
        let leaves = |pane: Millis| shape.last_end(pane) < end;
        match self {
            Running::Evicting(running) => {
                while let Some(first) = running.inside.first_entry()
                    && leaves(first.key().0)
                {
                    let mut bucket = first.remove();
                    bucket.unpack(slots)?;
                    running.evict(&bucket, slots, keys)?;
                }
            }
            Running::Stacks(running) => {
                while let Some(first) = running.inside.first_entry()
                    && leaves(*first.key())
                {
                    let gone = first.remove();
                    running.evict(&gone, slots, keys)?;
                }
            }
            Running::Growing(running) if running.until < end => running.drain(slots, keys),
            Running::Growing(_) => {}
        }
        Ok(())
    }

    /// Keys and slots of all groups of the window, in order of key bytes.
    pub(super) fn groups(&self, interner: &mut KeyInterner) -> (Vec<u32>, Vec<u32>) {
        match self {
            Running::Evicting(Evicting { live, .. }) => live.groups(interner, |cell| cell.slot),
            Running::Growing(Growing { live, .. }) => live.groups(interner, |slot| *slot),
            Running::Stacks(Stacks { live, .. }) => live.groups(interner, |slot| *slot),
        }
    }

    /// The buckets in the window, where they stay as they entered.
    pub(super) fn buckets(&self) -> Option<impl Iterator<Item = &Bucket>> {
        match self {
            Running::Evicting(running) => Some(running.inside.values()),
            Running::Stacks(_) | Running::Growing(_) => None,
        }
    }

    /// The same, to be saved.
    pub(super) fn buckets_mut(&mut self) -> Option<impl Iterator<Item = &mut Bucket>> {
        match self {
            Running::Evicting(running) => Some(running.inside.values_mut()),
            Running::Stacks(_) | Running::Growing(_) => None,
        }
    }

    /// Everything, for a snapshot, in any order.
    pub(super) fn held(&self, shape: WindowShape, out: &mut Vec<Held>) {
        match self {
            Running::Evicting(running) => {
                for (&(pane, entry), bucket) in &running.inside {
                    let members = bucket.keys.iter().zip(&bucket.slots);
                    out.extend(members.map(|(&key, &slot)| Held {
                        key,
                        part: Part::Inside,
                        pane,
                        entry,
                        slot,
                    }));
                }
            }
            Running::Stacks(running) => {
                for &key in &running.live.keys {
                    let stacks = &running.stacks[key as usize];
                    for (at, &(pane, slot)) in stacks.entries.iter().enumerate() {
                        let part = if at < stacks.front { Part::Front } else { Part::Inside };
                        out.push(Held { key, part, pane, entry: pane, slot });
                    }
                }
            }
            Running::Growing(running) => {
                let (pane, entry) = (shape.start_of(running.until), running.until);
                for &key in &running.live.keys {
                    let slot = running.live.of_key[key as usize].1;
                    out.push(Held { key, part: Part::Grown, pane, entry, slot });
                }
            }
        }
    }

    /// Takes back a front entry or a running cell; entries of a key come in order of pane.
    pub(super) fn restore(
        &mut self,
        held: Held,
        slots: &mut Slots,
        keys: &mut Keys,
    ) -> Result<(), OperatorError> {
        match self {
            Running::Stacks(running) if held.part == Part::Front => {
                return running.restore(held, slots, keys);
            }
            Running::Growing(running) if held.part == Part::Grown => {
                *running.live.enter(held.key) = held.slot;
                running.until = held.entry;
                keys.hold(held.key);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Adds and takes away.
#[derive(Debug, Default)]
pub(super) struct Evicting {
    live: Live<RunningCell>,
    /// Buckets in the window, by pane and entry.
    inside: BTreeMap<(Millis, Millis), Bucket>,
}

/// A key's running slot, and how many buckets are summed in it.
#[derive(Debug, Default)]
struct RunningCell {
    slot: u32,
    buckets: u32,
}

impl Evicting {
    fn enter(&mut self, bucket: Bucket, slots: &mut Slots) -> Result<(), OperatorError> {
        let running = |&key: &u32| {
            let cell = self.live.enter(key);
            if cell.buckets == 0 {
                cell.slot = slots.take();
            }
            cell.buckets += 1;
            cell.slot
        };
        let into: Vec<u32> = bucket.keys.iter().map(running).collect();
        slots.settle();
        slots.accumulators.merge_within(&bucket.slots, &into[..bucket.slots.len()])?;
        bucket.add_packed(&mut slots.accumulators, &into)?;
        self.inside.insert((bucket.pane, bucket.entry), bucket.sealed());
        Ok(())
    }

    fn evict(
        &mut self,
        bucket: &Bucket,
        slots: &mut Slots,
        keys: &mut Keys,
    ) -> Result<(), OperatorError> {
        let (mut from, mut into, mut empty) = (Vec::new(), Vec::new(), Vec::new());
        for (&key, &slot) in bucket.keys.iter().zip(&bucket.slots) {
            let cell = self.live.get(key);
            cell.buckets -= 1;
            if cell.buckets == 0 {
                empty.push(cell.slot);
                self.live.leave(key);
            } else {
                from.push(slot);
                into.push(cell.slot);
            }
        }
        slots.accumulators.subtract_within(&from, &into)?;
        slots.release(&empty);
        slots.release(&bucket.slots);
        keys.release(&bucket.keys);
        Ok(())
    }
}

/// Two stacks a key.
#[derive(Debug, Default)]
pub(super) struct Stacks {
    /// The slot of a key's window: first front entry + back sum.
    live: Live<u32>,
    stacks: Vec<KeyStacks>,
    /// Keys with an entry, by pane.
    inside: BTreeMap<Millis, Vec<u32>>,
}

#[derive(Debug)]
struct KeyStacks {
    /// Pane and slot in order of pane; the first `front` are the front.
    entries: VecDeque<(Millis, u32)>,
    front: usize,
    /// Sum of the back, `NO_SLOT` if it is empty, or the front is: then it is the window's.
    back: u32,
}

impl Default for KeyStacks {
    fn default() -> KeyStacks {
        KeyStacks { entries: VecDeque::new(), front: 0, back: NO_SLOT }
    }
}

/// Merges to be done, pair by pair in order.
#[derive(Default)]
struct Merges {
    from: Vec<u32>,
    into: Vec<u32>,
}

impl Merges {
    fn add(&mut self, from: u32, into: u32) {
        self.from.push(from);
        self.into.push(into);
    }

    fn run(&self, slots: &mut Slots) -> Result<(), OperatorError> {
        slots.settle();
        slots.accumulators.merge_within(&self.from, &self.into)
    }
}

impl Stacks {
    /// What is kept for a key, which becomes live.
    fn stacks(&mut self, key: u32, slots: &mut Slots) -> (&mut KeyStacks, u32) {
        let at = key as usize;
        if self.stacks.len() <= at {
            self.stacks.resize_with(at + 1, KeyStacks::default);
        }
        let stacks = &mut self.stacks[at];
        let sum = self.live.enter(key);
        if stacks.entries.is_empty() {
            *sum = slots.take();
        }
        (stacks, *sum)
    }

    fn enter(
        &mut self,
        bucket: &Bucket,
        slots: &mut Slots,
        keys: &mut Keys,
    ) -> Result<(), OperatorError> {
        let (mut merges, mut joined) = (Merges::default(), (Vec::new(), Vec::new()));
        let pane = bucket.pane;
        let mut of_pane = self.inside.remove(&pane).unwrap_or_default();
        for (&key, &slot) in bucket.keys.iter().zip(&bucket.slots) {
            let (stacks, sum) = self.stacks(key, slots);
            merges.add(slot, sum);
            let at = match stacks.entries.back() {
                Some(last) if last.0 >= pane => {
                    stacks.entries.partition_point(|entry| entry.0 < pane)
                }
                _ => stacks.entries.len(),
            };
            let there = stacks.entries.get(at).is_some_and(|entry| entry.0 == pane);
            if at < stacks.front {
                // Every front entry up to this pane holds it too.
                let before = at + usize::from(there);
                stacks.entries.range(..before).for_each(|entry| merges.add(slot, entry.1));
                if !there {
                    merges.add(stacks.entries[at].1, slot);
                    stacks.front += 1;
                }
            } else {
                if stacks.front > 0 {
                    if stacks.back == NO_SLOT {
                        stacks.back = slots.take();
                    }
                    merges.add(slot, stacks.back);
                }
                if there {
                    merges.add(slot, stacks.entries[at].1);
                }
            }
            if there {
                joined.0.push(key);
                joined.1.push(slot);
            } else {
                stacks.entries.insert(at, (pane, slot));
                of_pane.push(key);
            }
        }
        self.inside.insert(pane, of_pane);
        merges.run(slots)?;
        keys.release(&joined.0);
        slots.release(&joined.1);
        Ok(())
    }

    fn evict(
        &mut self,
        gone: &[u32],
        slots: &mut Slots,
        keys: &mut Keys,
    ) -> Result<(), OperatorError> {
        let (mut turns, mut sums) = (Merges::default(), Merges::default());
        let (mut empty, mut changed) = (Vec::new(), Vec::new());
        for &key in gone {
            let stacks = &mut self.stacks[key as usize];
            let sum = *self.live.get(key);
            if stacks.front == 0 {
                stacks.front = stacks.entries.len();
                for at in (1..stacks.front).rev() {
                    turns.add(stacks.entries[at].1, stacks.entries[at - 1].1);
                }
            }
            stacks.front -= 1;
            empty.extend(stacks.entries.pop_front().map(|entry| entry.1));
            if stacks.entries.is_empty() {
                self.live.leave(key);
                empty.push(sum);
            } else if stacks.front == 0 {
                *self.live.get(key) = std::mem::replace(&mut stacks.back, NO_SLOT);
                empty.push(sum);
            } else {
                changed.push(sum);
                sums.add(stacks.entries[0].1, sum);
                if stacks.back != NO_SLOT {
                    sums.add(stacks.back, sum);
                }
            }
        }
        turns.run(slots)?;
        slots.accumulators.clear(&changed);
        sums.run(slots)?;
        slots.release(&empty);
        keys.release(gone);
        Ok(())
    }

    /// Takes back front entries, their panes ascending within each key. Their keys' windows are the
    /// first entries of each.
    fn restore(
        &mut self,
        held: Held,
        slots: &mut Slots,
        keys: &mut Keys,
    ) -> Result<(), OperatorError> {
        let (stacks, sum) = self.stacks(held.key, slots);
        let first = stacks.entries.is_empty();
        stacks.entries.push_back((held.pane, held.slot));
        stacks.front += 1;
        self.inside.entry(held.pane).or_default().push(held.key);
        keys.hold(held.key);
        if first {
            slots.settle();
            slots.accumulators.merge_within(&[held.slot], &[sum])?;
        }
        Ok(())
    }
}

/// Only adds.
#[derive(Debug, Default)]
pub(super) struct Growing {
    live: Live<u32>,
    /// End of the longest window over the pane that entered last.
    until: Millis,
}

impl Growing {
    fn enter(
        &mut self,
        bucket: &Bucket,
        slots: &mut Slots,
        keys: &mut Keys,
    ) -> Result<(), OperatorError> {
        let (mut merges, mut joined) = (Merges::default(), Vec::new());
        for (&key, &slot) in bucket.keys.iter().zip(&bucket.slots) {
            let known = self.live.keys.len();
            let running = *self.live.enter(key);
            if self.live.keys.len() > known {
                *self.live.get(key) = slot;
            } else {
                merges.add(slot, running);
                joined.push(key);
            }
        }
        merges.run(slots)?;
        keys.release(&joined);
        slots.release(&merges.from);
        Ok(())
    }

    fn drain(&mut self, slots: &mut Slots, keys: &mut Keys) {
        let gone = std::mem::take(&mut self.live.keys);
        let cells: Vec<u32> = gone.iter().map(|&key| *self.live.get(key)).collect();
        gone.iter().for_each(|&key| self.live.of_key[key as usize] = (NO_SLOT, 0));
        slots.release(&cells);
        keys.release(&gone);
    }
}
