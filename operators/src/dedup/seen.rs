//! Keys that have passed, with their times, in buckets that are forgotten one after the other.
//!
//! # Invariant
//! Each key has at most one slot; it leads to the entry with the key's greatest time. A bucket only
//! grows until it is forgotten, so a checkpoint writes its new end (see `keeping.rs`). An entry
//! without a slot is that of a key which has passed again since.
//!
//! # Complexity
//! A row: a hash, a look-up, and its key's bytes behind those of the others; no allocation of its
//! own. Forgetting an entry: a hash and a look-up. An epoch forgets [`FORGOTTEN_MIN`] entries, or
//! twice what it has noted if that is more: no epoch pays for a whole bucket, and memory follows
//! what is in use.
//!
//! # Memory
//! A key takes its encoding and about 40 bytes, from its time until W is the horizon and a bucket
//! beyond it.

use hashbrown::HashTable;
use std::collections::BTreeMap;
use weir_engine::operator::OperatorError;
use weir_engine::state::PieceRef;
use weir_engine::time::{Millis, mark_less};
use xxhash_rust::xxh3::xxh3_64;

/// Buckets in a horizon.
const BUCKETS: Millis = 16;
/// Entries that an epoch forgets at least, if so many are to be forgotten: some milliseconds.
const FORGOTTEN_MIN: usize = 1 << 16;
/// Slots below which the table is not made smaller.
const SLOTS_MIN: usize = 1 << 10;

/// Where a key is.
#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u64,
    bucket: u32,
    entry: u32,
}

/// The keys of a stretch of time, in the order in which they passed.
#[derive(Debug, Default)]
pub(super) struct Bucket {
    bytes: Vec<u8>,
    /// Where each key ends in `bytes`.
    ends: Vec<u32>,
    times: Vec<Millis>,
    /// Pieces of checkpoints, and up to which entry each goes; they follow one another.
    pub(super) pieces: Vec<(PieceRef, usize)>,
    /// Entries that are forgotten already, from the first on.
    forgotten: usize,
}

impl Bucket {
    pub(super) fn len(&self) -> usize {
        self.times.len()
    }

    pub(super) fn entry(&self, at: usize) -> (&[u8], Millis) {
        let from = at.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        (&self.bytes[from..self.ends[at] as usize], self.times[at])
    }

    fn push(&mut self, key: &[u8], time: Millis) -> Result<u32, OperatorError> {
        let end = u32::try_from(self.bytes.len() + key.len()).map_err(|_| {
            let text = "a sixteenth of 'dedup.within' has more than 4 GB of keys";
            OperatorError::State(text.into())
        })?;
        self.bytes.extend_from_slice(key);
        self.ends.push(end);
        self.times.push(time);
        // Fewer entries than bytes: a key has at least one.
        Ok(self.times.len() as u32 - 1)
    }
}

/// The keys.
#[derive(Debug)]
pub(super) struct Seen {
    within: Millis,
    width: Millis,
    table: HashTable<Slot>,
    buckets: Vec<Bucket>,
    vacant: Vec<u32>,
    /// Places of the buckets in use, by their time divided by the width.
    open: BTreeMap<i64, u32>,
    /// Entries added since something was forgotten.
    noted: usize,
}

impl Seen {
    pub(super) fn new(within: Millis) -> Seen {
        Seen {
            within,
            width: (within / BUCKETS).max(1),
            table: HashTable::new(),
            buckets: Vec::new(),
            vacant: Vec::new(),
            open: BTreeMap::new(),
            noted: 0,
        }
    }

    /// Notes a key at a time; false if it is there already with a time after `oldest`.
    pub(super) fn note(
        &mut self,
        key: &[u8],
        time: Millis,
        oldest: Millis,
    ) -> Result<bool, OperatorError> {
        let hash = xxh3_64(key);
        let found = self.find(hash, key);
        if found.is_some_and(|slot| self.entry(slot).1 > oldest) {
            return Ok(false);
        }
        let slot = self.add(hash, key, time)?;
        self.lead_to(slot, found.is_some());
        Ok(true)
    }

    /// Takes up an entry of a checkpoint; the bucket that has it.
    pub(super) fn take_up(&mut self, key: &[u8], time: Millis) -> Result<i64, OperatorError> {
        let hash = xxh3_64(key);
        let found = self.find(hash, key);
        let slot = self.add(hash, key, time)?;
        if found.is_none_or(|slot| self.entry(slot).1 < time) {
            self.lead_to(slot, found.is_some());
        }
        Ok(time.div_euclid(self.width))
    }

    /// Forgets what no row can be a duplicate of any more.
    pub(super) fn forget(&mut self, watermark: Millis) {
        let mut left = FORGOTTEN_MIN.max(2 * std::mem::take(&mut self.noted));
        while let Some((&number, &place)) = self.open.first_key_value() {
            if left == 0 || !self.is_over(number, watermark) {
                break;
            }
            let bucket = &self.buckets[place as usize];
            let upto = bucket.len().min(bucket.forgotten + left);
            left -= upto - bucket.forgotten;
            for at in bucket.forgotten..upto {
                let hash = xxh3_64(bucket.entry(at).0);
                let mine = |slot: &Slot| slot.bucket == place && slot.entry == at as u32;
                if let Ok(slot) = self.table.find_entry(hash, mine) {
                    slot.remove();
                }
            }
            if upto == bucket.len() {
                self.open.remove(&number);
                self.buckets[place as usize] = Bucket::default();
                self.vacant.push(place);
            } else {
                self.buckets[place as usize].forgotten = upto;
            }
        }
        if self.table.len().max(SLOTS_MIN) * 4 < self.table.capacity() {
            self.table.shrink_to(2 * self.table.len(), |slot| slot.hash);
        }
    }

    /// The buckets that still count at this watermark, in the order of their times.
    pub(super) fn buckets(&self, watermark: Millis) -> impl Iterator<Item = (i64, &Bucket)> {
        let counts = move |(number, _): &(&i64, &u32)| !self.is_over(**number, watermark);
        let bucket = |(&number, &place): (&i64, &u32)| (number, &self.buckets[place as usize]);
        self.open.iter().filter(counts).map(bucket)
    }

    pub(super) fn bucket_mut(&mut self, number: i64) -> Option<&mut Bucket> {
        self.open.get(&number).map(|&place| &mut self.buckets[place as usize])
    }

    /// Whether an entry of the bucket is its key's last.
    pub(super) fn is_last(&self, number: i64, entry: usize) -> bool {
        let Some(&place) = self.open.get(&number) else { return false };
        let hash = xxh3_64(self.buckets[place as usize].entry(entry).0);
        let same = |slot: &Slot| slot.bucket == place && slot.entry == entry as u32;
        self.table.find(hash, same).is_some()
    }

    /// No row that still comes is at or before W, so an entry that is the horizon behind W is
    /// nothing to any of them.
    fn is_over(&self, number: i64, watermark: Millis) -> bool {
        let last = number.saturating_add(1).saturating_mul(self.width).saturating_sub(1);
        last <= mark_less(watermark, self.within)
    }

    fn find(&self, hash: u64, key: &[u8]) -> Option<Slot> {
        let same = |slot: &Slot| slot.hash == hash && self.entry(*slot).0 == key;
        self.table.find(hash, same).copied()
    }

    fn entry(&self, slot: Slot) -> (&[u8], Millis) {
        self.buckets[slot.bucket as usize].entry(slot.entry as usize)
    }

    fn add(&mut self, hash: u64, key: &[u8], time: Millis) -> Result<Slot, OperatorError> {
        let place = self.open.entry(time.div_euclid(self.width)).or_insert_with(|| {
            self.vacant.pop().unwrap_or_else(|| {
                self.buckets.push(Bucket::default());
                self.buckets.len() as u32 - 1
            })
        });
        self.noted += 1;
        let entry = self.buckets[*place as usize].push(key, time)?;
        Ok(Slot { hash, bucket: *place, entry })
    }

    /// Makes the key's slot lead here; `known` if it has one.
    fn lead_to(&mut self, slot: Slot, known: bool) {
        let buckets = &self.buckets;
        let key = |slot: &Slot| buckets[slot.bucket as usize].entry(slot.entry as usize).0;
        if known {
            let same = |other: &Slot| other.hash == slot.hash && key(other) == key(&slot);
            if let Some(there) = self.table.find_mut(slot.hash, same) {
                *there = slot;
            }
        } else {
            self.table.insert_unique(slot.hash, slot, |slot| slot.hash);
        }
    }
}

#[cfg(test)]
impl Seen {
    /// Buckets, in use or not.
    pub(super) fn places(&self) -> usize {
        self.buckets.len()
    }

    /// Keys, entries, and bytes held of them all.
    pub(super) fn size(&self) -> (usize, usize, usize) {
        let entries = self.buckets.iter().map(Bucket::len).sum();
        let bytes =
            |b: &Bucket| b.bytes.capacity() + 4 * b.ends.capacity() + 8 * b.times.capacity();
        let slots = self.table.capacity() * size_of::<Slot>();
        (self.table.len(), entries, slots + self.buckets.iter().map(bytes).sum::<usize>())
    }
}
