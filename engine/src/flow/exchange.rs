//! Dealing rows to workers: by key group for operators, by shard for sinks.
//!
//! The order of the rows of one chunk is kept among those that go to the same worker.

use arrow::array::UInt32Array;
use timely::communication::Push;
use timely::dataflow::channels::Message;
use timely::dataflow::channels::pushers::exchange::Distributor;

use super::carrier::Carrier;
use crate::graph::Sharding;
use crate::keys::{KeyGroup, KeyHasher, owner};
use crate::rows::{Delta, Origin};

/// Who gets a row.
pub(crate) enum Dealer {
    /// The owner of the row's key group.
    Keys(KeyHasher),
    /// The worker that writes the row's shard.
    Shards(Shards),
}

/// Maps rows to a sink's shards.
pub(crate) struct Shards {
    count: u32,
    hasher: Option<KeyHasher>,
}

impl Shards {
    pub(crate) fn of(count: u32, sharding: &Sharding) -> Shards {
        let hasher = match sharding {
            Sharding::Keys(columns) => Some(KeyHasher::over(columns.clone())),
            Sharding::Split => None,
        };
        Shards { count: count.max(1), hasher }
    }

    /// The shard of each row; `Err(shard)` if all rows are for one.
    fn shards(&mut self, delta: &Delta, groups: &mut Vec<u8>) -> Result<(), u32> {
        if self.count == 1 {
            return Err(0);
        }
        match (&mut self.hasher, delta.origin) {
            (Some(hasher), _) => {
                hasher.key_groups(&delta.rows, groups);
                Ok(())
            }
            (None, Origin::Split { split, .. }) => {
                Err(u32::try_from(split.number() % u64::from(self.count)).unwrap_or(0))
            }
            (None, _) => Err(0),
        }
    }

    /// Divides a chunk into the parts of its shards.
    pub(crate) fn divide(&mut self, delta: Delta) -> Vec<(u32, Delta)> {
        let mut groups = Vec::new();
        match self.shards(&delta, &mut groups) {
            Err(shard) => vec![(shard, delta)],
            Ok(()) => {
                let count = self.count as usize;
                let parts = divide(&delta, count, |row| owner(KeyGroup(groups[row]), count));
                parts.into_iter().map(|(shard, part)| (shard as u32, part)).collect()
            }
        }
    }
}

/// Divides a chunk by a function of the row; parts without rows are left out.
fn divide(delta: &Delta, count: usize, target: impl Fn(usize) -> usize) -> Vec<(usize, Delta)> {
    let mut places: Vec<Vec<u32>> = vec![Vec::with_capacity(delta.len() / count + 1); count];
    for row in 0..delta.len() {
        places[target(row)].push(row as u32);
    }
    let mut parts = Vec::with_capacity(count);
    for (to, rows) in places.into_iter().enumerate() {
        if rows.len() == delta.len() {
            return vec![(to, delta.clone())];
        }
        if !rows.is_empty() {
            match delta.take(&UInt32Array::from(rows)) {
                Ok(part) => parts.push((to, part)),
                Err(error) => unreachable!("rows cannot be taken from a chunk: {error}"),
            }
        }
    }
    parts
}

/// Timely's side of a [`Dealer`].
pub(crate) struct Deal {
    dealer: Dealer,
    groups: Vec<u8>,
}

impl Deal {
    pub(crate) fn by(dealer: Dealer) -> Deal {
        Deal { dealer, groups: Vec::new() }
    }

    fn parts(&mut self, delta: Delta, peers: usize) -> Vec<(usize, Delta)> {
        match &mut self.dealer {
            Dealer::Keys(hasher) => {
                let groups = &mut self.groups;
                hasher.key_groups(&delta.rows, groups);
                divide(&delta, peers, |row| owner(KeyGroup(groups[row]), peers))
            }
            Dealer::Shards(shards) => {
                let parts = shards.divide(delta).into_iter();
                parts.map(|(shard, part)| (shard as usize % peers, part)).collect()
            }
        }
    }
}

impl Distributor<Carrier> for Deal {
    fn partition<T: Clone, P: Push<Message<T, Carrier>>>(
        &mut self,
        container: &mut Carrier,
        time: &T,
        pushers: &mut [P],
    ) {
        let Some(delta) = container.take() else { return };
        for (to, part) in self.parts(delta, pushers.len()) {
            let mut carrier = Carrier::from(part);
            Message::push_at(&mut carrier, time.clone(), &mut pushers[to]);
        }
    }

    fn flush<T: Clone, P: Push<Message<T, Carrier>>>(&mut self, _time: &T, _pushers: &mut [P]) {}
}
