//! Snapshots of windows: every group of every bucket as one Arrow row.
//!
//! # Form
//! Per key group one part `groups`: the key's columns, `part` (what the group is, see `Part`),
//! `pane` and `entry` (times), then the aggregates' state; in order of key bytes, part, pane and
//! entry. One part `watermark` for all key groups. What can be summed up again (running cells, the
//! sum of a back stack) is not written; aggregates are exact, so summing up again gives the same.

use arrow::array::{
    ArrayRef, AsArray, Int64Array, RecordBatch, TimestampMillisecondArray, UInt8Array,
};
use arrow::datatypes::{
    DataType, Field, Int64Type, Schema, TimeUnit, TimestampMillisecondType, UInt8Type,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_engine::keys::{KeyGroup, KeyGroups};
use weir_engine::operator::{OperatorError, StatePart};
use weir_engine::time::Millis;

use super::WindowAggregate;
use super::panes::Bucket;
use super::slide::{Held, Part};
use crate::aggregates::Form;

const WATERMARK: &str = "watermark";
const GROUPS: &str = "groups";

impl WindowAggregate {
    pub(super) fn save(&self) -> Result<Vec<StatePart>, OperatorError> {
        let watermark = Int64Array::from(vec![self.watermark]);
        let rows = RecordBatch::try_from_iter([(WATERMARK, Arc::new(watermark) as ArrayRef)])?;
        let mut parts = vec![StatePart { kind: WATERMARK, key_groups: KeyGroups::ALL, rows }];
        let mut by_group: BTreeMap<KeyGroup, Vec<Held>> = BTreeMap::new();
        for held in self.held() {
            by_group.entry(self.keys.interner.key_group(held.key)).or_default().push(held);
        }
        for (group, held) in by_group {
            let key_groups = KeyGroups::one(group);
            parts.push(StatePart { kind: GROUPS, key_groups, rows: self.rows_of(held)? });
        }
        Ok(parts)
    }

    fn held(&self) -> Vec<Held> {
        let mut held = Vec::new();
        self.running.held(self.spec.shape, &mut held);
        for bucket in self.waiting.iter() {
            let (pane, entry) = (bucket.pane, bucket.entry);
            let members = bucket.keys.iter().zip(&bucket.slots);
            held.extend(members.map(|(&key, &slot)| Held {
                key,
                part: Part::Waiting,
                pane,
                entry,
                slot,
            }));
        }
        held
    }

    fn rows_of(&self, mut held: Vec<Held>) -> Result<RecordBatch, OperatorError> {
        let bytes = |held: &Held| self.keys.interner.bytes(held.key);
        held.sort_unstable_by(|a, b| {
            let order = |h: &Held| (h.part, h.pane, h.entry);
            bytes(a).cmp(bytes(b)).then_with(|| order(a).cmp(&order(b)))
        });
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

    pub(super) fn load(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        let mut inside = BTreeMap::new();
        for part in parts {
            match part.kind {
                WATERMARK => {
                    let column = part.rows.columns().first();
                    let watermark = column
                        .and_then(|c| c.as_primitive_opt::<Int64Type>())
                        .and_then(|c| c.values().first().copied())
                        .ok_or_else(|| unreadable("no watermark"))?;
                    self.watermark = self.watermark.max(watermark);
                }
                GROUPS => self.load_groups(&part.rows, &mut inside)?,
                other => return Err(unreadable(&format!("a part `{other}`"))),
            }
        }
        for bucket in inside.into_values() {
            let shape = self.spec.shape;
            self.running.enter(bucket, shape, &mut self.slots, &mut self.keys)?;
        }
        Ok(())
    }

    fn load_groups(
        &mut self,
        rows: &RecordBatch,
        inside: &mut BTreeMap<(Millis, Millis), Bucket>,
    ) -> Result<(), OperatorError> {
        let states = self.slots.accumulators.state_fields("state").len();
        let width = self.spec.keys.len();
        if rows.num_columns() != width + 3 + states {
            return Err(unreadable("another number of columns"));
        }
        let mut ids = Vec::new();
        let (keys, rest) = rows.columns().split_at(width);
        self.keys.interner.intern_columns(keys, rows.num_rows(), &mut ids)?;
        self.keys.settle();
        let wrong = || unreadable("a column of another type");
        let codes = rest[0].as_primitive_opt::<UInt8Type>().ok_or_else(wrong)?;
        let panes = rest[1].as_primitive_opt::<TimestampMillisecondType>().ok_or_else(wrong)?;
        let entries = rest[2].as_primitive_opt::<TimestampMillisecondType>().ok_or_else(wrong)?;
        let mut slots: Vec<u32> = Vec::with_capacity(ids.len());
        for (row, &key) in ids.iter().enumerate() {
            slots.push(match Part::of(codes.value(row)) {
                // Parts of what several workers had added up may hold one group several times.
                Some(Part::Waiting) => {
                    let place = self.waiting.place(panes.value(row), entries.value(row));
                    self.waiting.at(place).slot(key, &mut self.slots, &mut self.keys)
                }
                _ => self.slots.take(),
            });
        }
        self.slots.settle();
        self.slots.accumulators.restore(&slots, &rest[3..])?;
        for (row, (&key, &slot)) in ids.iter().zip(&slots).enumerate() {
            let part = Part::of(codes.value(row)).ok_or_else(|| unreadable("an unknown part"))?;
            let (pane, entry) = (panes.value(row), entries.value(row));
            match part {
                Part::Waiting => {}
                Part::Inside => inside
                    .entry((pane, entry))
                    .or_insert_with(|| Bucket::new(pane, entry))
                    .adopt(key, slot, &mut self.keys),
                Part::Front | Part::Grown => {
                    let held = Held { key, part, pane, entry, slot };
                    self.running.restore(held, &mut self.slots, &mut self.keys)?;
                }
            }
        }
        Ok(())
    }
}

fn unreadable(what: &str) -> OperatorError {
    OperatorError::State(format!("windows: {what}"))
}
