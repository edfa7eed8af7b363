//! Snapshots of windows: every group of every bucket as one Arrow row.
//!
//! # Form
//! Per key group one part `groups`: the key's columns, `part` (what the group is, see `Part`),
//! `pane` and `entry` (times), then the aggregates' state; in order of key bytes, part, pane and
//! entry. One part `watermark` for all key groups. What can be summed up again (running cells, the
//! sum of a back stack) is not written; aggregates are exact, so summing up again gives the same.
//! Checkpoints have a form of their own (see `pieces`).

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, TimestampMillisecondArray, UInt8Array,
};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{
    DataType, Field, Int64Type, Schema, TimeUnit, TimestampMillisecondType, UInt8Type,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_engine::keys::{KeyGroup, KeyGroups};
use weir_engine::operator::{OperatorError, StatePart};
use weir_engine::state::PieceRef;
use weir_engine::time::Millis;

use super::WindowAggregate;
use super::panes::Bucket;
use super::pieces::{PANE, buckets};
use super::slide::{Held, Part};
use super::tables::{KEYS, LoadedTables, SavedIn};
use crate::aggregates::{Accumulators, Form};

const WATERMARK: &str = "watermark";
pub(super) const GROUPS: &str = "groups";

impl WindowAggregate {
    pub(super) fn whole(&self) -> Result<Vec<StatePart>, OperatorError> {
        let mut parts = vec![self.watermark_part()?];
        let mut held = self.held();
        let unpacked = self.unpacked(&mut held)?;
        let accumulators = unpacked.as_ref().unwrap_or(&self.slots.accumulators);
        let mut by_group: BTreeMap<KeyGroup, Vec<Held>> = BTreeMap::new();
        for held in held {
            by_group.entry(self.keys.interner.key_group(held.key)).or_default().push(held);
        }
        for (group, held) in by_group {
            let key_groups = KeyGroups::one(group);
            let rows = self.rows_of(accumulators, &self.in_order(held))?;
            parts.push(StatePart { kind: GROUPS, key_groups, rows });
        }
        Ok(parts)
    }

    /// All groups that have slots.
    fn held(&self) -> Vec<Held> {
        let mut held = Vec::new();
        self.running.held(self.spec.shape, &mut held);
        self.waiting.iter().for_each(|bucket| held.extend(members(bucket)));
        held
    }

    /// Where buckets are packed: their groups too, all with slots in accumulators of their own.
    fn unpacked(&self, held: &mut Vec<Held>) -> Result<Option<Accumulators>, OperatorError> {
        let mut packed = buckets(&self.waiting, &self.running).filter(|b| b.is_packed()).peekable();
        if packed.peek().is_none() {
            return Ok(None);
        }
        let slots: Vec<u32> = held.iter().map(|held| held.slot).collect();
        let mut all = self.slots.accumulators.pick(&slots)?;
        held.iter_mut().zip(0..).for_each(|(held, slot)| held.slot = slot);
        for bucket in packed {
            let (with, first) = (bucket.slots.len(), held.len());
            let mut into = vec![0; with];
            for &key in &bucket.keys[with..] {
                let (part, pane, entry) = (Part::Inside, bucket.pane, bucket.entry);
                let slot = held.len() as u32;
                held.push(Held { key, part, pane, entry, slot });
                into.push(slot);
            }
            debug_assert_eq!(held.len() - first, into.len() - with);
            all.grow(held.len());
            bucket.add_packed(&mut all, &into)?;
        }
        Ok(Some(all))
    }

    pub(super) fn watermark_part(&self) -> Result<StatePart, OperatorError> {
        let watermark = Int64Array::from(vec![self.watermark]);
        let rows = RecordBatch::try_from_iter([(WATERMARK, Arc::new(watermark) as ArrayRef)])?;
        Ok(StatePart { kind: WATERMARK, key_groups: KeyGroups::ALL, rows })
    }

    /// In the order of key bytes, part, pane and entry.
    fn in_order(&self, mut held: Vec<Held>) -> Vec<Held> {
        let bytes = |held: &Held| self.keys.interner.bytes(held.key);
        held.sort_unstable_by(|a, b| {
            let order = |h: &Held| (h.part, h.pane, h.entry);
            bytes(a).cmp(bytes(b)).then_with(|| order(a).cmp(&order(b)))
        });
        held
    }

    pub(super) fn rows_of(
        &self,
        accumulators: &Accumulators,
        held: &[Held],
    ) -> Result<RecordBatch, OperatorError> {
        let keys: Vec<u32> = held.iter().map(|h| h.key).collect();
        let slots: Vec<u32> = held.iter().map(|h| h.slot).collect();
        let times = |time: fn(&Held) -> Millis| -> ArrayRef {
            Arc::new(TimestampMillisecondArray::from_iter_values(held.iter().map(time)))
        };
        let mut columns = self.keys.interner.columns(&keys)?;
        let mut fields: Vec<Field> = (columns.iter().enumerate())
            .map(|(at, column)| Field::new(format!("key{at}"), column.data_type().clone(), true))
            .collect();
        let time = DataType::Timestamp(TimeUnit::Millisecond, None);
        fields.push(Field::new("part", DataType::UInt8, false));
        fields.push(Field::new("pane", time.clone(), false));
        fields.push(Field::new("entry", time, false));
        columns.push(Arc::new(UInt8Array::from_iter_values(held.iter().map(|h| h.part as u8))));
        columns.extend([times(|h| h.pane), times(|h| h.entry)]);
        fields.extend(accumulators.state_fields("state"));
        columns.extend(accumulators.state(&slots, Form::Equal));
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// Takes up parts, those of a checkpoint with their names.
    pub(super) fn load(
        &mut self,
        mut parts: Vec<(Option<PieceRef>, StatePart)>,
    ) -> Result<(), OperatorError> {
        // The watermark says what is inside, and what has slots comes before what is packed.
        parts.sort_by_key(|(_, part)| {
            (part.kind != WATERMARK, part.kind != KEYS, part.kind == PANE)
        });
        let (mut loaded, mut tables) = (LoadedBuckets::default(), LoadedTables::default());
        let mut mine = [false; 256];
        for (piece, part) in parts {
            let groups = usize::from(part.key_groups.first)..=usize::from(part.key_groups.last);
            mine[groups].fill(true);
            match (part.kind, piece) {
                (WATERMARK, _) => {
                    let column = part.rows.columns().first();
                    let watermark = column
                        .and_then(|c| c.as_primitive_opt::<Int64Type>())
                        .and_then(|c| c.values().first().copied())
                        .ok_or_else(|| unreadable("no watermark"))?;
                    self.watermark = self.watermark.max(watermark);
                }
                (GROUPS, _) => self.load_groups(piece, &part, &mut loaded)?,
                (KEYS, Some(piece)) => {
                    tables.add(piece, &part, &mut self.keys.interner)?;
                    self.keys.settle();
                }
                (PANE, Some(piece)) => self.load_pane(piece, &part, &mut tables, &mut loaded)?,
                (other, _) => return Err(unreadable(&format!("a part `{other}`"))),
            }
        }
        self.keys.tables = tables.settle(self.keys.interner.bound(), &mine);
        let LoadedBuckets { inside, mut pieces } = loaded;
        for bucket in self.waiting.iter_mut() {
            bucket.saved = pieces.remove(&(bucket.pane, bucket.entry)).unwrap_or_default();
        }
        for (place, mut bucket) in inside {
            bucket.saved = pieces.remove(&place).unwrap_or_default();
            let shape = self.spec.shape;
            self.running.enter(bucket, shape, &mut self.slots, &mut self.keys)?;
        }
        // Other workers' keys.
        self.keys.free_idle(|interner, id| !mine[usize::from(interner.key_group(id).0)]);
        Ok(())
    }

    fn load_groups(
        &mut self,
        piece: Option<PieceRef>,
        state: &StatePart,
        loaded: &mut LoadedBuckets,
    ) -> Result<(), OperatorError> {
        let states = self.slots.accumulators.state_fields("state").len();
        let width = self.spec.keys.len();
        if state.rows.num_columns() != width + 3 + states {
            return Err(unreadable("another number of columns"));
        }
        let (rows, ids) = self.own_rows(state)?;
        let rest = &rows.columns()[width..];
        let wrong = || unreadable("a column of another type");
        let codes = rest[0].as_primitive_opt::<UInt8Type>().ok_or_else(wrong)?;
        let panes = rest[1].as_primitive_opt::<TimestampMillisecondType>().ok_or_else(wrong)?;
        let entries = rest[2].as_primitive_opt::<TimestampMillisecondType>().ok_or_else(wrong)?;
        let mut parts = Vec::with_capacity(ids.len());
        for row in 0..ids.len() {
            let part = Part::of(codes.value(row)).ok_or_else(|| unreadable("an unknown part"))?;
            let entered = entries.value(row).saturating_sub(1) <= self.watermark;
            let inside = part == Part::Waiting && entered;
            parts.push(if inside { Part::Inside } else { part });
        }
        let mut slots: Vec<u32> = Vec::with_capacity(ids.len());
        for (row, &key) in ids.iter().enumerate() {
            slots.push(match parts[row] {
                // Parts of what several workers had added up may hold one group several times.
                Part::Waiting => {
                    let place = self.waiting.place(panes.value(row), entries.value(row));
                    self.waiting.at(place).slot(key, &mut self.slots, &mut self.keys)
                }
                _ => self.slots.take(),
            });
        }
        self.slots.settle();
        self.slots.accumulators.restore(&slots, &rest[3..])?;
        for (row, (&key, &slot)) in ids.iter().zip(&slots).enumerate() {
            let (part, pane, entry) = (parts[row], panes.value(row), entries.value(row));
            match part {
                Part::Waiting => {}
                Part::Inside => loaded
                    .inside
                    .entry((pane, entry))
                    .or_insert_with(|| Bucket::new(pane, entry))
                    .adopt(key, slot, &mut self.keys),
                Part::Front | Part::Grown => {
                    let held = Held { key, part, pane, entry, slot };
                    self.running.restore(held, &mut self.slots, &mut self.keys)?;
                }
            }
        }
        // A piece of a checkpoint holds one bucket, unless it holds running cells.
        if let Some(piece) = piece
            && !ids.is_empty()
            && !parts.iter().any(|part| matches!(part, Part::Front | Part::Grown))
        {
            let place = (panes.value(0), entries.value(0));
            loaded.pieces.entry(place).or_default().push(SavedIn { piece, table: None });
        }
        Ok(())
    }

    /// The rows of the part's key groups, with their keys.
    fn own_rows(&mut self, state: &StatePart) -> Result<(RecordBatch, Vec<u32>), OperatorError> {
        let width = self.spec.keys.len();
        let mut ids = Vec::new();
        let rows = &state.rows;
        self.keys.interner.intern_columns(&rows.columns()[..width], rows.num_rows(), &mut ids)?;
        self.keys.settle();
        let mut own: Vec<Option<bool>> = vec![None; self.keys.interner.bound()];
        let interner = &self.keys.interner;
        let mut counts = |id: u32| {
            *own[id as usize]
                .get_or_insert_with(|| state.key_groups.contains(interner.key_group(id)))
        };
        let mine: BooleanArray = ids.iter().map(|&id| Some(counts(id))).collect();
        if mine.true_count() == ids.len() {
            return Ok((rows.clone(), ids));
        }
        let kept = ids.iter().zip(mine.values().iter()).filter(|(_, mine)| *mine);
        let kept = kept.map(|(&id, _)| id).collect();
        Ok((filter_record_batch(rows, &mine)?, kept))
    }
}

/// What parts have held of buckets.
#[derive(Default)]
pub(super) struct LoadedBuckets {
    pub(super) inside: BTreeMap<(Millis, Millis), Bucket>,
    pub(super) pieces: BTreeMap<(Millis, Millis), Vec<SavedIn>>,
}

fn members(bucket: &Bucket) -> impl Iterator<Item = Held> + '_ {
    let (part, pane, entry) = (Part::Waiting, bucket.pane, bucket.entry);
    let members = bucket.keys.iter().zip(&bucket.slots);
    members.map(move |(&key, &slot)| Held { key, part, pane, entry, slot })
}

pub(super) fn unreadable(what: &str) -> OperatorError {
    OperatorError::State(format!("windows: {what}"))
}
