//! Seen keys as state.
//!
//! # Form
//! `seen`: `key` BYTES, the key's encoding (`engine::keys`), and `time` BIGINT. `marks`: W.
//!
//! # Checkpoints
//! A bucket only grows, so a checkpoint gets the entries that it has not yet seen of each bucket,
//! as a piece of that bucket alone, and the names of the pieces before. A piece takes the place of
//! those before it that are no more than twice as large: so a bucket has O(log n) pieces, and an
//! entry is written O(log n) times.

use arrow::array::{
    ArrayRef, AsArray, BinaryArray, BinaryBuilder, Int64Array, Int64Builder, RecordBatch,
};
use arrow::datatypes::Int64Type;
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_engine::keys::{KeyGroup, KeyGroups, key_group};
use weir_engine::operator::{OperatorError, StatePart};
use weir_engine::state::{PieceRef, Pieces};
use weir_engine::time::Millis;

use super::Deduplicate;
use super::seen::Bucket;
use crate::temporal::{MARKS, marks_part, times_of, unknown};

const SEEN: &str = "seen";

fn bad() -> OperatorError {
    OperatorError::State("seen keys in a form of another build".into())
}

impl Deduplicate {
    /// All state, by key group, in the order of key bytes.
    pub(super) fn whole(&self) -> Result<Vec<StatePart>, OperatorError> {
        let mut by_group: BTreeMap<KeyGroup, Vec<(&[u8], Millis)>> = BTreeMap::new();
        for (number, bucket) in self.seen.buckets(self.before) {
            for at in (0..bucket.len()).filter(|&at| self.seen.is_last(number, at)) {
                let entry = bucket.entry(at);
                by_group.entry(key_group(entry.0)).or_default().push(entry);
            }
        }
        let mut parts = vec![marks_part(&[self.before])?];
        for (group, mut entries) in by_group {
            entries.sort_unstable();
            let rows = batch(entries.into_iter())?;
            parts.push(StatePart { kind: SEEN, key_groups: KeyGroups::one(group), rows });
        }
        Ok(parts)
    }

    /// What has changed since the last checkpoint, and the names of the rest.
    pub(super) fn save_changes(&mut self, pieces: &mut dyn Pieces) -> Result<(), OperatorError> {
        pieces.put(marks_part(&[self.before])?);
        let numbers: Vec<i64> = self.seen.buckets(self.before).map(|(number, _)| number).collect();
        for number in numbers {
            if let Some(bucket) = self.seen.bucket_mut(number) {
                save_bucket(bucket, pieces)?;
            }
        }
        Ok(())
    }

    /// Takes up a part, a piece of a checkpoint with its name.
    pub(super) fn load(
        &mut self,
        piece: Option<PieceRef>,
        part: &StatePart,
    ) -> Result<(), OperatorError> {
        if ![SEEN, MARKS].contains(&part.kind) {
            return Err(unknown(part.kind));
        }
        if part.kind == MARKS {
            let marks = times_of(&part.rows, 0)?;
            self.before = marks.iter().copied().fold(self.before, Millis::max);
            return Ok(());
        }
        let [keys, times] = part.rows.columns() else { return Err(bad()) };
        let keys = keys.as_binary_opt::<i32>().ok_or_else(bad)?;
        let times = times.as_primitive_opt::<Int64Type>().ok_or_else(bad)?;
        let mut numbers = Vec::new();
        for (key, time) in keys.iter().zip(times) {
            let (key, time) = key.zip(time).ok_or_else(bad)?;
            if part.key_groups.contains(key_group(key)) {
                let number = self.seen.take_up(key, time)?;
                if numbers.last() != Some(&number) {
                    numbers.push(number);
                }
            }
        }
        match (piece, &numbers[..]) {
            (None, _) | (_, []) => Ok(()),
            (Some(piece), &[number]) => {
                if let Some(bucket) = self.seen.bucket_mut(number) {
                    let upto = bucket.len();
                    bucket.pieces.push((piece, upto));
                }
                Ok(())
            }
            (Some(_), _) => Err(bad()),
        }
    }
}

fn save_bucket(bucket: &mut Bucket, pieces: &mut dyn Pieces) -> Result<(), OperatorError> {
    let upto = |bucket: &Bucket, pieces: usize| match pieces.checked_sub(1) {
        Some(last) => bucket.pieces[last].1,
        None => 0,
    };
    let (mut kept, mut from) = (bucket.pieces.len(), upto(bucket, bucket.pieces.len()));
    if from < bucket.len() {
        while kept > 0 && from - upto(bucket, kept - 1) <= 2 * (bucket.len() - from) {
            kept -= 1;
            from = upto(bucket, kept);
        }
        bucket.pieces.truncate(kept);
    }
    bucket.pieces.iter().for_each(|(piece, _)| pieces.same(*piece));
    if from < bucket.len() {
        let rows = batch((from..bucket.len()).map(|at| bucket.entry(at)))?;
        let piece = pieces.put(StatePart { kind: SEEN, key_groups: KeyGroups::ALL, rows });
        bucket.pieces.push((piece, bucket.len()));
    }
    Ok(())
}

fn batch<'a>(
    entries: impl Iterator<Item = (&'a [u8], Millis)>,
) -> Result<RecordBatch, OperatorError> {
    let (mut keys, mut times) = (BinaryBuilder::new(), Int64Builder::new());
    for (key, time) in entries {
        keys.append_value(key);
        times.append_value(time);
    }
    let (keys, times): (BinaryArray, Int64Array) = (keys.finish(), times.finish());
    let columns = [("key", Arc::new(keys) as ArrayRef), ("time", Arc::new(times) as ArrayRef)];
    Ok(RecordBatch::try_from_iter(columns)?)
}
