//! The versions of a table, by key and time.
//!
//! # Invariant
//! Of each key the versions are in order of (time, split, offset), at most one a time: the last.
//! They depend on the set of rows that came, never on their order: a version that comes out of
//! order marks its key, and [`Versions::settle`] puts it in place before the next look-up.
//!
//! # Forgetting
//! Versions at or before the horizon collapse into the last of them, so that a look-up at or after
//! the horizon gives what it would have given. A key whose only version is a deletion before the
//! horizon is forgotten. Each version waits once in a heap by time, so this costs O(log n) a
//! version.

use arrow::array::{AsArray, BooleanArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt64Type};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::sync::Arc;
use weir_engine::keys::KeyGroups;
use weir_engine::operator::{OperatorError, StatePart};
use weir_engine::time::{MARK_NONE, Millis};

use super::keys::{JoinKeys, NO_KEY};
use super::store::{NO_ROW, RowStore};

/// Dead rows that the store may hold beyond the number of live ones.
const DEAD_MIN: usize = 4096;

/// A version of a key.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Version {
    /// From when it holds.
    pub(super) time: Millis,
    /// Where it came from; of equal times the greater place wins.
    pub(super) place: (u64, u64),
    /// Its number in the store.
    pub(super) row: u32,
    /// Whether the key has no row from then on.
    pub(super) ended: bool,
}

/// A version that comes, before it has a number.
pub(super) struct Coming {
    pub(super) row: u32,
    pub(super) time: Millis,
    pub(super) place: (u64, u64),
    pub(super) ended: bool,
}

/// All versions.
#[derive(Debug)]
pub(super) struct Versions {
    pub(super) store: RowStore,
    by_key: Vec<Vec<Version>>,
    /// Keys that have a version, and versions.
    occupied: usize,
    live: usize,
    unsettled: Vec<u32>,
    /// Versions by time, for forgetting; not kept where nothing is forgotten.
    aging: Option<BinaryHeap<Reverse<(Millis, u32)>>>,
}

impl Versions {
    /// No versions of rows of this schema; `forgets`: whether [`Versions::forget`] will be called.
    pub(super) fn new(schema: &SchemaRef, forgets: bool) -> Result<Versions, OperatorError> {
        Ok(Versions {
            store: RowStore::new(schema)?,
            by_key: Vec::new(),
            occupied: 0,
            live: 0,
            unsettled: Vec::new(),
            aging: forgets.then(BinaryHeap::new),
        })
    }

    /// Adds versions that come as rows of one chunk; `ids` has the key of each row of the chunk.
    pub(super) fn add(
        &mut self,
        rows: &RecordBatch,
        ids: &[u32],
        coming: &[Coming],
    ) -> Result<(), OperatorError> {
        let coming: Vec<&Coming> =
            coming.iter().filter(|c| ids[c.row as usize] != NO_KEY).collect();
        if coming.is_empty() {
            return Ok(());
        }
        let first = self.store.next();
        self.store.push(rows, &coming.iter().map(|c| c.row).collect())?;
        for (row, come) in (first..).zip(coming) {
            let id = ids[come.row as usize];
            if self.by_key.len() <= id as usize {
                self.by_key.resize(id as usize + 1, Vec::new());
            }
            if let Some(aging) = &mut self.aging {
                aging.push(Reverse((come.time, id)));
            }
            let versions = &mut self.by_key[id as usize];
            self.occupied += usize::from(versions.is_empty());
            let version = Version { time: come.time, place: come.place, row, ended: come.ended };
            match versions.last_mut() {
                Some(last) if (last.time, last.place) >= (version.time, version.place) => {
                    versions.push(version);
                    self.live += 1;
                    self.unsettled.push(id);
                }
                Some(last) if last.time == version.time => *last = version,
                _ => {
                    versions.push(version);
                    self.live += 1;
                }
            }
        }
        Ok(())
    }

    /// Puts versions that came out of order in their places.
    pub(super) fn settle(&mut self) -> Result<(), OperatorError> {
        let mut unsettled = std::mem::take(&mut self.unsettled);
        unsettled.sort_unstable();
        unsettled.dedup();
        for id in unsettled {
            let versions = &mut self.by_key[id as usize];
            let before = versions.len();
            // Rows of one place (of an operator that gives none) are told apart by their values.
            let mut ties = BTreeMap::new();
            versions.sort_by_key(|v| (v.time, v.place));
            for pair in versions.windows(2) {
                if (pair[0].time, pair[0].place) == (pair[1].time, pair[1].place) {
                    for v in pair {
                        ties.insert(v.row, (v.ended, self.store.bytes(v.row)?));
                    }
                }
            }
            if !ties.is_empty() {
                versions.sort_by_key(|v| (v.time, v.place, ties.get(&v.row)));
            }
            versions.reverse();
            versions.dedup_by_key(|v| v.time);
            versions.reverse();
            self.live -= before - versions.len();
        }
        if self.store.next() as usize > 2 * self.live + DEAD_MIN {
            self.compact()?;
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<(), OperatorError> {
        let mut kept = Vec::with_capacity(self.live);
        for version in self.by_key.iter_mut().flatten() {
            kept.push(version.row);
            version.row = kept.len() as u32;
        }
        self.store.keep(&kept)
    }

    /// The version of a key at a time, a deletion included. All must be settled.
    pub(super) fn at(&self, id: u32, time: Millis) -> Option<&Version> {
        let versions = self.by_key.get(id as usize)?;
        let count = match &versions[..] {
            [only] => usize::from(only.time <= time),
            all => all.partition_point(|v| v.time <= time),
        };
        count.checked_sub(1).map(|last| &versions[last])
    }

    /// The row of a key at a time.
    pub(super) fn row_at(&self, id: u32, time: Millis) -> u32 {
        self.at(id, time).map_or(NO_ROW, |v| if v.ended { NO_ROW } else { v.row })
    }

    /// Number of keys that have versions.
    pub(super) fn occupied(&self) -> usize {
        self.occupied
    }

    /// Whether a key has no version.
    pub(super) fn is_vacant(&self, id: u32) -> bool {
        self.by_key.get(id as usize).is_none_or(Vec::is_empty)
    }

    /// Collapses the versions at or before the horizon.
    pub(super) fn forget(&mut self, horizon: Millis) {
        let Some(aging) = &mut self.aging else { return };
        if horizon == MARK_NONE {
            return;
        }
        while let Some(&Reverse((time, id))) = aging.peek()
            && time <= horizon
        {
            aging.pop();
            let Some(versions) = self.by_key.get_mut(id as usize) else { continue };
            let past = versions.partition_point(|v| v.time <= horizon);
            let Some(last) = past.checked_sub(1) else { continue };
            let dropped = last + usize::from(versions[last].ended);
            versions.drain(..dropped);
            self.live -= dropped;
            if versions.is_empty() {
                *versions = Vec::new();
                self.occupied -= usize::from(dropped > 0);
            }
        }
    }

    /// All versions as state, by key group.
    pub(super) fn snapshot(&self, keys: &JoinKeys) -> Result<Vec<StatePart>, OperatorError> {
        let mut all: Vec<(u8, u32, Version)> = Vec::with_capacity(self.live);
        for (id, versions) in (0u32..).zip(&self.by_key) {
            if !versions.is_empty() {
                let group = keys.key_group(id).0;
                all.extend(versions.iter().map(|&v| (group, id, v)));
            }
        }
        all.sort_by_key(|(group, id, v)| (*group, *id, v.time, v.place));
        let mut parts = Vec::new();
        for run in all.chunk_by(|a, b| a.0 == b.0) {
            let group = weir_engine::keys::KeyGroup(run[0].0);
            let versions: Vec<Version> = run.iter().map(|r| r.2).collect();
            let rows = self.to_batch(&versions)?;
            parts.push(StatePart { kind: "versions", key_groups: KeyGroups::one(group), rows });
        }
        Ok(parts)
    }

    fn to_batch(&self, versions: &[Version]) -> Result<RecordBatch, OperatorError> {
        use arrow::array::{Int64Array, UInt64Array};
        let numbers: Vec<u32> = versions.iter().map(|v| v.row).collect();
        let rows = self.store.batch(&numbers)?;
        let mut fields: Vec<_> = rows.schema().fields().iter().cloned().collect();
        let mut columns = rows.columns().to_vec();
        for (name, data_type) in STATE_FIELDS {
            fields.push(Arc::new(Field::new(name, data_type, false)));
        }
        columns.push(Arc::new(versions.iter().map(|v| v.time).collect::<Int64Array>()));
        columns.push(Arc::new(versions.iter().map(|v| v.place.0).collect::<UInt64Array>()));
        columns.push(Arc::new(versions.iter().map(|v| v.place.1).collect::<UInt64Array>()));
        let ended = versions.iter().map(|v| Some(v.ended)).collect::<BooleanArray>();
        columns.push(Arc::new(ended));
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// Takes up parts of kind `versions`.
    pub(super) fn restore(
        &mut self,
        keys: &mut JoinKeys,
        parts: &[RecordBatch],
    ) -> Result<(), OperatorError> {
        let Some(first) = parts.first() else { return Ok(()) };
        let rows = concat_batches(&first.schema(), parts)?;
        let bad = || OperatorError::State("versions of a table without their times".into());
        let base = rows.num_columns().checked_sub(STATE_FIELDS.len()).ok_or_else(bad)?;
        let times = rows.column(base).as_primitive_opt::<Int64Type>().ok_or_else(bad)?;
        let splits = rows.column(base + 1).as_primitive_opt::<UInt64Type>().ok_or_else(bad)?;
        let offsets = rows.column(base + 2).as_primitive_opt::<UInt64Type>().ok_or_else(bad)?;
        let ended = rows.column(base + 3).as_boolean_opt().ok_or_else(bad)?;
        let coming = |row: usize| Coming {
            row: row as u32,
            time: times.value(row),
            place: (splits.value(row), offsets.value(row)),
            ended: ended.value(row),
        };
        let coming: Vec<Coming> = (0..rows.num_rows()).map(coming).collect();
        let columns: Vec<usize> = (0..base).collect();
        let rows = rows.project(&columns)?;
        let ids = keys.right(&rows)?;
        self.add(&rows, &ids, &coming)?;
        self.settle()
    }
}

const STATE_FIELDS: [(&str, DataType); 4] = [
    ("__time", DataType::Int64),
    ("__split", DataType::UInt64),
    ("__offset", DataType::UInt64),
    ("__ended", DataType::Boolean),
];
