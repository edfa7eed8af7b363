//! Text columns as dictionaries that last over many batches.
//!
//! # Invariant
//! A packed column says what the plain one said. A dictionary that was given out never changes; the
//! next one begins with its values.
//!
//! # When one is made anew
//! Whoever hashes keys behind it does so once a value, for as long as batches share one allocation.
//! A longer dictionary is another one, and costs that for all of its values. So it is made only
//! after twice as many rows as it has values; a batch with a value that is not in the last one
//! stays plain until then. That way a row costs half a value at the most, however slowly new ones
//! come.
//!
//! # Limits
//! A column with more than `VALUES_MAX` values, or `BYTES_MAX` bytes of them, is plain for the next
//! `PLAIN_MIN` rows; then it starts anew. Each time that is in vain it is plain for twice as long,
//! so that a column of ever new values costs next to nothing, and one whose values change with the
//! day is packed again.

use arrow::array::{Array, ArrayRef, DictionaryArray, Int32Array, StringArray};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use hashbrown::HashTable;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64;

const VALUES_MAX: usize = 1 << 15;
const BYTES_MAX: usize = 1 << 20;
const PLAIN_MIN: usize = 1 << 20;
const PLAIN_MAX: usize = 1 << 30;

/// Packs one column.
#[derive(Debug)]
pub(super) struct Packer {
    table: HashTable<u32>,
    values: Values,
    /// The newest dictionary.
    given: ArrayRef,
    /// Rows since it was made.
    rows: usize,
    /// Rows that stay plain, and how many will when there are too many values again.
    plain: usize,
    plain_next: usize,
}

/// Texts, end to end.
#[derive(Debug, Default)]
struct Values {
    ends: Vec<i32>,
    bytes: Vec<u8>,
}

impl Values {
    fn get(&self, place: u32) -> &[u8] {
        let place = place as usize;
        let start = if place == 0 { 0 } else { self.ends[place - 1] as usize };
        &self.bytes[start..self.ends[place] as usize]
    }

    fn push(&mut self, text: &[u8]) -> u32 {
        self.bytes.extend_from_slice(text);
        // Both are far below 2^31: see the limits.
        self.ends.push(self.bytes.len() as i32);
        self.ends.len() as u32 - 1
    }

    fn array(&self) -> ArrayRef {
        let offsets = std::iter::once(0).chain(self.ends.iter().copied()).collect::<Vec<_>>();
        let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
        Arc::new(StringArray::new(offsets, self.bytes.clone().into(), None))
    }
}

impl Packer {
    pub(super) fn new() -> Packer {
        Packer {
            table: HashTable::new(),
            values: Values::default(),
            given: Arc::new(StringArray::new_null(0)),
            rows: 0,
            plain: 0,
            plain_next: PLAIN_MIN,
        }
    }

    /// The column as a dictionary; `None` if it stays as it is.
    pub(super) fn pack(&mut self, column: &StringArray) -> Option<ArrayRef> {
        if self.plain > 0 {
            self.plain = self.plain.saturating_sub(column.len());
            return None;
        }
        let mut keys = Vec::with_capacity(column.len());
        for row in 0..column.len() {
            keys.push(if column.is_null(row) { 0 } else { self.place(column.value(row)) });
        }
        self.rows += column.len();
        let count = self.values.ends.len();
        if count > VALUES_MAX || self.values.bytes.len() > BYTES_MAX {
            // Nothing of it is needed any more, not even the memory.
            let plain_next = (self.plain_next * 2).min(PLAIN_MAX);
            *self = Packer { plain: self.plain_next, plain_next, ..Packer::new() };
            return None;
        }
        let given = self.given.len();
        if count > given && (given == 0 || self.rows >= 2 * count) {
            self.given = self.values.array();
            self.rows = 0;
        }
        let known = self.given.len() as i32;
        if keys.iter().any(|&key| key >= known) && column.null_count() < column.len() {
            return None;
        }
        let keys = Int32Array::new(keys.into(), column.nulls().cloned());
        let packed = DictionaryArray::try_new(keys, self.given.clone()).ok()?;
        Some(Arc::new(packed))
    }

    #[inline]
    fn place(&mut self, text: &str) -> i32 {
        let text = text.as_bytes();
        let hash = xxh3_64(text);
        let values = &self.values;
        if let Some(&place) = self.table.find(hash, |&place| values.get(place) == text) {
            return place as i32;
        }
        let place = self.values.push(text);
        self.table.insert_unique(hash, place, |&place| xxh3_64(self.values.get(place)));
        place as i32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::compute::cast;
    use arrow::datatypes::DataType;
    use proptest::prelude::*;

    fn values(packed: &ArrayRef) -> ArrayRef {
        packed.as_any_dictionary().values().clone()
    }

    proptest! {
        #[test]
        fn a_packed_column_says_the_same(
            batches in prop::collection::vec(
                prop::collection::vec(prop::option::of("[a-c]{0,2}"), 0..40),
                0..12,
            ),
        ) {
            let mut packer = Packer::new();
            for batch in batches {
                let plain = StringArray::from(batch);
                if let Some(packed) = packer.pack(&plain) {
                    let unpacked = cast(&packed, &DataType::Utf8).unwrap();
                    prop_assert_eq!(unpacked.as_string::<i32>(), &plain);
                }
            }
        }
    }

    #[test]
    fn batches_share_a_dictionary_until_enough_rows_have_passed() {
        let mut packer = Packer::new();
        let first = packer.pack(&StringArray::from(vec!["a", "b", "a"])).unwrap();
        let second = packer.pack(&StringArray::from(vec!["b"])).unwrap();
        assert!(Arc::ptr_eq(&values(&first), &values(&second)));
        assert!(packer.pack(&StringArray::from(vec!["c"])).is_none(), "too early for another");
        assert!(packer.pack(&StringArray::from(vec!["a", "b", "a"])).is_some());
        let grown = packer.pack(&StringArray::from(vec!["c", "a"])).unwrap();
        assert_eq!(values(&grown).len(), 3);
    }

    #[test]
    fn a_column_of_ever_new_values_is_plain_for_ever_longer() {
        let mut packer = Packer::new();
        let mut fresh = 0;
        let mut overflow = |packer: &mut Packer| {
            while packer.plain == 0 {
                let texts = (fresh..fresh + 1000).map(|n| Some(n.to_string()));
                packer.pack(&texts.collect::<StringArray>());
                fresh += 1000;
            }
            assert!(packer.table.is_empty() && packer.given.is_empty());
            packer.plain
        };
        assert_eq!(overflow(&mut packer), PLAIN_MIN);
        let same = StringArray::from(vec!["a"; 1 << 16]);
        for _ in 0..PLAIN_MIN >> 16 {
            assert!(packer.pack(&same).is_none());
        }
        assert!(packer.pack(&same).is_some(), "its values have become few");
        assert_eq!(overflow(&mut packer), 2 * PLAIN_MIN);
    }
}
