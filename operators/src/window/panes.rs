//! Panes as buckets of groups, and the slots that their accumulators live in.
//!
//! # Invariant
//! A slot is a group id of the operator's one set of accumulators; it belongs to one bucket and
//! key, or to one running window and key, or a bucket reserves it, or it is free; the last two are
//! empty. A key's references count the buckets that hold it; a key without any may be freed.
//!
//! # Order in memory
//! Groups leave a bucket in the order of their keys. Where most keys come in every pane, a fresh
//! bucket reserves a slot for each of them in that order, so that they are read as they lie; but
//! not while many that are reserved are not used, so that sparse panes cost no more than one pane.
//!
//! # Memory
//! Per key and bucket its cells and 8 bytes; while a bucket takes rows also a table from key to
//! slot, dense (4 bytes a key of the operator) once a sixteenth of all keys are in it, hashed
//! before; and 4 bytes a key where slots are reserved.
//!
//! # Packed
//! A bucket that a checkpoint brings back inside the running window stays as it was read, in
//! columns, until it leaves: only then do its groups get slots. So a restart costs one addition a
//! group, and each slide behind it the slots of one bucket.

use arrow::array::RecordBatch;
use hashbrown::HashTable;
use std::collections::BTreeMap;
use weir_engine::operator::OperatorError;
use weir_engine::time::Millis;

use super::tables::{KeyTables, SavedIn};
use crate::aggregates::{Accumulators, KeyInterner};

/// No slot.
pub(super) const NO_SLOT: u32 = u32::MAX;

/// All accumulators, and which of them are free.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) accumulators: Accumulators,
    free: Vec<u32>,
    next: u32,
    /// How many are reserved: neither free nor used.
    reserved: usize,
}

impl Slots {
    pub(super) fn new(accumulators: Accumulators) -> Slots {
        Slots { accumulators, free: Vec::new(), next: 0, reserved: 0 }
    }

    /// An empty slot. Its cells exist once [`Slots::settle`] was called.
    #[inline]
    pub(super) fn take(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.next += 1;
            self.next - 1
        })
    }

    /// Number of slots that hold a group.
    pub(super) fn used(&self) -> usize {
        self.next as usize - self.free.len() - self.reserved
    }

    /// Makes cells for all slots taken.
    pub(super) fn settle(&mut self) {
        self.accumulators.grow(self.next as usize);
    }

    /// Empties slots and gives them back; their states as a set of its own, in this order.
    pub(super) fn split_off(&mut self, slots: &[u32]) -> Result<Accumulators, OperatorError> {
        let states = self.accumulators.split_off(slots)?;
        self.give_back(slots);
        Ok(states)
    }

    /// Empties slots and gives them back.
    pub(super) fn release(&mut self, slots: &[u32]) {
        self.accumulators.clear(slots);
        self.give_back(slots);
    }

    fn give_back(&mut self, slots: &[u32]) {
        // Backwards, so that the next bucket takes them in the order in which they lie in memory.
        self.free.extend(slots.iter().rev());
    }
}

/// Keys with their ids and how many buckets hold each.
#[derive(Debug)]
pub(super) struct Keys {
    pub(super) interner: KeyInterner,
    /// Their numbers in the pieces of checkpoints.
    pub(super) tables: KeyTables,
    references: Vec<u32>,
    /// Keys that have references, and how many they lately were at most.
    referenced: usize,
    peak: usize,
}

impl Keys {
    pub(super) fn new(interner: KeyInterner) -> Keys {
        Keys {
            interner,
            tables: KeyTables::default(),
            references: Vec::new(),
            referenced: 0,
            peak: 0,
        }
    }

    /// Makes room for keys interned since.
    pub(super) fn settle(&mut self) {
        self.references.resize(self.interner.bound(), 0);
    }

    #[inline]
    pub(super) fn hold(&mut self, key: u32) {
        let references = &mut self.references[key as usize];
        if *references == 0 {
            self.referenced += 1;
        }
        *references += 1;
    }

    pub(super) fn release(&mut self, keys: &[u32]) {
        self.peak = self.peak.max(self.referenced);
        for &key in keys {
            let references = &mut self.references[key as usize];
            *references -= 1;
            if *references == 0 {
                self.referenced -= 1;
            }
        }
    }

    /// Frees keys that nothing refers to. A key that comes with every window has no reference
    /// between two of them, so keys stay until they are twice as many as lately were in use: then
    /// at least half of them go, which makes it O(1) a key.
    pub(super) fn collect(&mut self) {
        self.peak = self.referenced.max(self.peak - self.peak / 16);
        if self.interner.len() <= 2 * self.peak + 1024 {
            return;
        }
        self.free_idle(|_, _| true);
    }

    /// Frees keys that nothing refers to and that are not wanted.
    pub(super) fn free_idle(&mut self, gone: impl Fn(&KeyInterner, u32) -> bool) {
        self.settle();
        let idle: Vec<u32> = (self.interner.ordered().iter().copied())
            .filter(|&id| self.references[id as usize] == 0)
            .collect();
        let idle: Vec<u32> = idle.into_iter().filter(|&id| gone(&self.interner, id)).collect();
        self.tables.forget(&idle);
        self.interner.free(&idle);
    }
}

/// The groups of one pane, or of its stragglers with one first end.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Start of the pane.
    pub(super) pane: Millis,
    /// End of the first window that these rows enter.
    pub(super) entry: Millis,
    /// Keys, and their slots: those of the first ones, where some are packed.
    pub(super) keys: Vec<u32>,
    pub(super) slots: Vec<u32>,
    /// The states of the other keys, in their order.
    packed: Vec<RecordBatch>,
    lookup: Lookup,
    /// By key the slot that is reserved for it.
    reserved: Vec<u32>,
    /// The pieces of a checkpoint that hold all of it; none once it has changed.
    pub(super) saved: Vec<SavedIn>,
}

#[derive(Debug)]
enum Lookup {
    /// Places in `keys`.
    Sparse(HashTable<u32>),
    /// Slot by key.
    Dense(Vec<u32>),
}

fn hash(key: u32) -> u64 {
    (u64::from(key) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Bucket {
    pub(super) fn new(pane: Millis, entry: Millis) -> Bucket {
        let lookup = Lookup::Sparse(HashTable::new());
        Bucket {
            pane,
            entry,
            keys: Vec::new(),
            slots: Vec::new(),
            packed: Vec::new(),
            lookup,
            reserved: Vec::new(),
            saved: Vec::new(),
        }
    }

    /// Reserves a slot for every key in use, in the order of the keys.
    fn reserve(&mut self, slots: &mut Slots, keys: &mut Keys) {
        let mut free: Vec<u32> = (0..keys.interner.len()).map(|_| slots.take()).collect();
        free.sort_unstable();
        slots.reserved += free.len();
        self.reserved.resize(keys.interner.bound(), NO_SLOT);
        for (&key, slot) in keys.interner.ordered().iter().zip(free) {
            self.reserved[key as usize] = slot;
        }
    }

    /// Gives back what is reserved and was not needed.
    fn settle(&mut self, slots: &mut Slots) {
        let reserved = std::mem::take(&mut self.reserved);
        let left: Vec<u32> = reserved.into_iter().filter(|&slot| slot != NO_SLOT).collect();
        slots.reserved -= left.len();
        slots.give_back(&left);
    }

    /// The slot of a key, made if need be.
    #[inline]
    pub(super) fn slot(&mut self, key: u32, slots: &mut Slots, keys: &mut Keys) -> u32 {
        if let Lookup::Dense(dense) = &self.lookup
            && let Some(&slot) = dense.get(key as usize)
            && slot != NO_SLOT
        {
            return slot;
        }
        self.find_or_add(key, slots, keys)
    }

    #[inline(never)]
    fn find_or_add(&mut self, key: u32, slots: &mut Slots, keys: &mut Keys) -> u32 {
        if let Lookup::Sparse(table) = &self.lookup {
            let same = |&place: &u32| self.keys[place as usize] == key;
            if let Some(&place) = table.find(hash(key), same) {
                return self.slots[place as usize];
            }
        }
        let slot = match self.reserved.get_mut(key as usize) {
            Some(reserved) if *reserved != NO_SLOT => {
                slots.reserved -= 1;
                std::mem::replace(reserved, NO_SLOT)
            }
            _ => slots.take(),
        };
        self.adopt(key, slot, keys);
        slot
    }

    /// Adds a key that the bucket has not, with a slot of its own.
    pub(super) fn adopt(&mut self, key: u32, slot: u32, keys: &mut Keys) {
        keys.hold(key);
        let place = self.keys.len() as u32;
        self.keys.push(key);
        self.slots.push(slot);
        let all = keys.interner.bound();
        match &mut self.lookup {
            Lookup::Dense(dense) => {
                if dense.len() <= key as usize {
                    dense.resize(all, NO_SLOT);
                }
                dense[key as usize] = slot;
            }
            Lookup::Sparse(_) if self.keys.len() * 16 > all => {
                let mut dense = vec![NO_SLOT; all];
                for (&key, &slot) in self.keys.iter().zip(&self.slots) {
                    dense[key as usize] = slot;
                }
                self.lookup = Lookup::Dense(dense);
            }
            Lookup::Sparse(table) => {
                table.insert_unique(hash(key), place, |&p| hash(self.keys[p as usize]));
            }
        }
    }

    /// Adds keys that the bucket has not, with the columns of their states. The bucket takes no
    /// more rows.
    pub(super) fn adopt_packed(&mut self, members: &[u32], states: RecordBatch, keys: &mut Keys) {
        members.iter().for_each(|&key| keys.hold(key));
        self.keys.extend(members);
        self.packed.push(states);
    }

    /// Whether groups are packed.
    pub(super) fn is_packed(&self) -> bool {
        !self.packed.is_empty()
    }

    /// Adds the states that are packed to a set of accumulators, those of key n to `into[n]`.
    pub(super) fn add_packed(
        &self,
        accumulators: &mut Accumulators,
        into: &[u32],
    ) -> Result<(), OperatorError> {
        let mut rest = &into[self.slots.len()..];
        for states in &self.packed {
            let (some, others) = rest.split_at(states.num_rows());
            accumulators.restore(some, states.columns())?;
            rest = others;
        }
        Ok(())
    }

    /// Gives slots to what is packed.
    pub(super) fn unpack(&mut self, slots: &mut Slots) -> Result<(), OperatorError> {
        if self.is_packed() {
            let mut all = self.slots.clone();
            all.extend((self.slots.len()..self.keys.len()).map(|_| slots.take()));
            slots.settle();
            self.add_packed(&mut slots.accumulators, &all)?;
            (self.slots, self.packed) = (all, Vec::new());
        }
        Ok(())
    }

    /// The bucket without its table: it takes no more rows.
    pub(super) fn sealed(mut self) -> Bucket {
        self.lookup = Lookup::Sparse(HashTable::new());
        self
    }

    /// Puts the members in the order of key bytes. The bucket takes no more rows.
    pub(super) fn close(&mut self, interner: &mut KeyInterner) {
        let lookup = std::mem::replace(&mut self.lookup, Lookup::Sparse(HashTable::new()));
        if let Lookup::Dense(dense) = &lookup
            && self.keys.len() * 8 > interner.len()
        {
            let slot = |key: u32| dense.get(key as usize).copied().unwrap_or(NO_SLOT);
            self.keys.clear();
            self.slots.clear();
            for &key in interner.ordered() {
                if slot(key) != NO_SLOT {
                    self.keys.push(key);
                    self.slots.push(slot(key));
                }
            }
            return;
        }
        let ranks = interner.ranks();
        let mut members: Vec<(u32, u32, u32)> = (self.keys.iter().zip(&self.slots))
            .map(|(&key, &slot)| (ranks[key as usize], key, slot))
            .collect();
        members.sort_unstable();
        self.keys = members.iter().map(|member| member.1).collect();
        self.slots = members.iter().map(|member| member.2).collect();
    }
}

/// Buckets that have not entered a window yet, by (first end, pane).
#[derive(Debug, Default)]
pub(super) struct Waiting {
    places: BTreeMap<(Millis, Millis), usize>,
    buckets: Vec<Option<Bucket>>,
    vacant: Vec<usize>,
    /// Keys of the bucket that was taken out last.
    lately: usize,
}

impl Waiting {
    /// The place of a bucket, made if need be. It holds until the bucket is taken out.
    pub(super) fn place(&mut self, pane: Millis, entry: Millis) -> usize {
        *self.places.entry((entry, pane)).or_insert_with(|| {
            let bucket = Some(Bucket::new(pane, entry));
            match self.vacant.pop() {
                Some(place) => {
                    self.buckets[place] = bucket;
                    place
                }
                None => {
                    self.buckets.push(bucket);
                    self.buckets.len() - 1
                }
            }
        })
    }

    /// The same; a fresh bucket reserves slots if the last one held most keys.
    pub(super) fn place_of_many(
        &mut self,
        pane: Millis,
        entry: Millis,
        slots: &mut Slots,
        keys: &mut Keys,
    ) -> usize {
        let before = self.places.len();
        let place = self.place(pane, entry);
        // Ids that are free have their places in the table too.
        let (fresh, all) = (self.places.len() > before, keys.interner.bound());
        if fresh && self.lately * 2 > all && slots.reserved * 4 <= all {
            self.at(place).reserve(slots, keys);
        }
        place
    }

    /// The bucket at a place that [`Waiting::place`] gave, to be changed.
    #[inline]
    pub(super) fn at(&mut self, place: usize) -> &mut Bucket {
        match &mut self.buckets[place] {
            Some(bucket) => {
                bucket.saved.clear();
                bucket
            }
            None => unreachable!("a place is used only while its bucket waits"),
        }
    }

    /// Whether no bucket waits.
    pub(super) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The first end that a bucket waits for.
    pub(super) fn first_entry(&self) -> Option<Millis> {
        self.places.keys().next().map(|&(entry, _)| entry)
    }

    /// Takes out the first bucket if it waits for `end` or an earlier one.
    pub(super) fn pop(&mut self, end: Millis, slots: &mut Slots) -> Option<Bucket> {
        let first = self.places.first_entry().filter(|first| first.key().0 <= end)?;
        let place = first.remove();
        self.vacant.push(place);
        let mut bucket = self.buckets[place].take()?;
        self.lately = bucket.keys.len();
        bucket.settle(slots);
        Some(bucket)
    }

    /// All buckets in order, to be saved.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.buckets.iter_mut().flatten()
    }

    /// All buckets in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Bucket> {
        self.places.values().filter_map(|&place| self.buckets[place].as_ref())
    }
}
