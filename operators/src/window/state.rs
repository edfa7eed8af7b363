//! Snapshots of windows: every group of every bucket as one Arrow row.
//!
//! # Form
//! Per key group one part `groups`: the key's columns, `part` (what the group is, see `Part`),
//! `pane` and `entry` (times), then the aggregates' state; in order of key bytes, part, pane and
//! entry. One part `watermark` for all key groups. What can be summed up again (running cells, the
//! sum of a back stack) is not written; aggregates are exact, so summing up again gives the same.
//!
//! # Checkpoints
//! A checkpoint gets a part `groups` a bucket, for all key groups of the worker, and only where the
//! bucket has changed since the last one. Whether a bucket waits or is inside the running window
//! follows from the watermark: it enters as soon as W reaches its first end; so one that enters
//! needs no new piece. Cells of two stacks and of cumulating windows change with every slide, and
//! are given whole.

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
use weir_engine::state::{PieceRef, Pieces};
use weir_engine::time::Millis;

use super::WindowAggregate;
use super::panes::Bucket;
use super::slide::{Held, Part};
use crate::aggregates::Form;

const WATERMARK: &str = "watermark";
const GROUPS: &str = "groups";

impl WindowAggregate {
    pub(super) fn whole(&self) -> Result<Vec<StatePart>, OperatorError> {
        let mut parts = vec![self.watermark_part()?];
        let mut by_group: BTreeMap<KeyGroup, Vec<Held>> = BTreeMap::new();
        for held in self.held() {
            by_group.entry(self.keys.interner.key_group(held.key)).or_default().push(held);
        }
        for (group, held) in by_group {
            let key_groups = KeyGroups::one(group);
            let rows = self.rows_of(&self.in_order(held))?;
            parts.push(StatePart { kind: GROUPS, key_groups, rows });
        }
        Ok(parts)
    }

    fn held(&self) -> Vec<Held> {
        let mut held = Vec::new();
        self.running.held(self.spec.shape, &mut held);
        self.waiting.iter().for_each(|bucket| held.extend(members(bucket)));
        held
    }

    /// What has changed since the last checkpoint, and the names of the rest.
    pub(super) fn save_changes(&mut self, pieces: &mut dyn Pieces) -> Result<(), OperatorError> {
        pieces.put(self.watermark_part()?);
        let mut changed: Vec<(Millis, Millis)> = Vec::new();
        let mut running = Vec::new();
        if self.running.buckets_mut().is_none() {
            self.running.held(self.spec.shape, &mut running);
        }
        for bucket in self.buckets_mut() {
            bucket.saved.iter().for_each(|piece| pieces.same(*piece));
            if bucket.saved.is_empty() && !bucket.keys.is_empty() {
                changed.push((bucket.pane, bucket.entry));
            }
        }
        let part = |rows| StatePart { kind: GROUPS, key_groups: KeyGroups::ALL, rows };
        if !running.is_empty() {
            pieces.put(part(self.rows_of(&running)?));
        }
        // Rows first: they need the accumulators, as the buckets do.
        let mut rows = Vec::with_capacity(changed.len());
        for bucket in self.buckets() {
            if bucket.saved.is_empty() && !bucket.keys.is_empty() {
                let held: Vec<Held> = members(bucket).collect();
                rows.push(((bucket.pane, bucket.entry), self.rows_of(&held)?));
            }
        }
        let mut saved: BTreeMap<(Millis, Millis), PieceRef> = BTreeMap::new();
        for (place, rows) in rows {
            saved.insert(place, pieces.put(part(rows)));
        }
        for bucket in self.buckets_mut() {
            bucket.saved.extend(saved.get(&(bucket.pane, bucket.entry)));
        }
        Ok(())
    }

    /// The buckets that wait, and those inside as far as they are kept.
    fn buckets(&self) -> impl Iterator<Item = &Bucket> {
        self.waiting.iter().chain(self.running.buckets().into_iter().flatten())
    }

    fn buckets_mut(&mut self) -> impl Iterator<Item = &mut Bucket> {
        self.waiting.iter_mut().chain(self.running.buckets_mut().into_iter().flatten())
    }

    fn watermark_part(&self) -> Result<StatePart, OperatorError> {
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

    fn rows_of(&self, held: &[Held]) -> Result<RecordBatch, OperatorError> {
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
        fields.extend(self.slots.accumulators.state_fields("state"));
        columns.extend(self.slots.accumulators.state(&slots, Form::Equal));
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// Takes up parts, those of a checkpoint with their names.
    pub(super) fn load(
        &mut self,
        mut parts: Vec<(Option<PieceRef>, StatePart)>,
    ) -> Result<(), OperatorError> {
        // The watermark says what is inside.
        parts.sort_by_key(|(_, part)| part.kind != WATERMARK);
        let mut loaded = LoadedBuckets::default();
        for (piece, part) in parts {
            match part.kind {
                WATERMARK => {
                    let column = part.rows.columns().first();
                    let watermark = column
                        .and_then(|c| c.as_primitive_opt::<Int64Type>())
                        .and_then(|c| c.values().first().copied())
                        .ok_or_else(|| unreadable("no watermark"))?;
                    self.watermark = self.watermark.max(watermark);
                }
                GROUPS => self.load_groups(piece, &part, &mut loaded)?,
                other => return Err(unreadable(&format!("a part `{other}`"))),
            }
        }
        let LoadedBuckets { inside, mut pieces } = loaded;
        for bucket in self.waiting.iter_mut() {
            bucket.saved = pieces.remove(&(bucket.pane, bucket.entry)).unwrap_or_default();
        }
        for (place, mut bucket) in inside {
            bucket.saved = pieces.remove(&place).unwrap_or_default();
            let shape = self.spec.shape;
            self.running.enter(bucket, shape, &mut self.slots, &mut self.keys)?;
        }
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
            loaded.pieces.entry(place).or_default().push(piece);
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
struct LoadedBuckets {
    inside: BTreeMap<(Millis, Millis), Bucket>,
    pieces: BTreeMap<(Millis, Millis), Vec<PieceRef>>,
}

fn members(bucket: &Bucket) -> impl Iterator<Item = Held> + '_ {
    let (part, pane, entry) = (Part::Waiting, bucket.pane, bucket.entry);
    let members = bucket.keys.iter().zip(&bucket.slots);
    members.map(move |(&key, &slot)| Held { key, part, pane, entry, slot })
}

fn unreadable(what: &str) -> OperatorError {
    OperatorError::State(format!("windows: {what}"))
}
