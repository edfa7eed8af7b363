//! Keys as bytes, and the 256 key groups that they map to for ever.
//!
//! # Encoding
//! A key is the concatenation of its columns' encodings; each starts with a tag byte (0 for NULL)
//! so that no two different keys share bytes:
//! - integers, dates, times, timestamps, booleans: tag 1, then the value as 8 bytes big-endian with
//!   the sign bit flipped;
//! - floats: tag 2, then the bits of the double, ordered (-0.0 is written as 0.0, NaN as one NaN);
//! - strings and bytes: tag 3, the bytes with each 0x00 written as 0x00 0xff, then 0x00 0x00;
//! - decimals: tag 4, scale, then 16 bytes big-endian with the sign bit flipped;
//! - rows, lists, maps: tag 5, then the elements' encodings, then tag 0xff.
//!
//! Byte order is value order within a type, so "in order of key bytes" is what a user expects. The
//! encoding and the hash (XXH3-64, seed 0x77656972) are part of the on-disk format: golden values
//! in the tests must never change.

use arrow::array::*;
use arrow::datatypes::*;
use std::collections::VecDeque;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Number of key groups.
pub const KEY_GROUPS: usize = 256;
const SEED: u64 = 0x7765_6972;

/// A key group: state, progress and rescaling speak of these, never of workers.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct KeyGroup(pub u8);

/// A run of key groups, both ends included.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct KeyGroups {
    /// The first.
    pub first: u8,
    /// The last.
    pub last: u8,
}

impl KeyGroups {
    /// All of them.
    pub const ALL: KeyGroups = KeyGroups { first: 0, last: 255 };

    /// Just one.
    pub fn one(group: KeyGroup) -> KeyGroups {
        KeyGroups { first: group.0, last: group.0 }
    }

    /// The groups that are in both, if there are any.
    pub fn and(self, other: KeyGroups) -> Option<KeyGroups> {
        let both =
            KeyGroups { first: self.first.max(other.first), last: self.last.min(other.last) };
        self.meets(other).then_some(both)
    }

    /// Whether some group is in both.
    pub fn meets(self, other: KeyGroups) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Whether a group is among them.
    pub fn contains(self, group: KeyGroup) -> bool {
        (self.first..=self.last).contains(&group.0)
    }
}

/// The worker (of `peers`) that owns a key group.
pub fn owner(group: KeyGroup, peers: usize) -> usize {
    usize::from(group.0) * peers / KEY_GROUPS
}

/// The key groups that a worker (of `peers`) owns; none with more workers than key groups.
pub fn owned(worker: usize, peers: usize) -> Option<KeyGroups> {
    let mine = |group: &u8| owner(KeyGroup(*group), peers) == worker;
    let first = (0..=u8::MAX).find(mine)?;
    let last = (0..=u8::MAX).rfind(mine)?;
    Some(KeyGroups { first, last })
}

/// The key group of an encoded key.
pub fn key_group(key: &[u8]) -> KeyGroup {
    KeyGroup((xxh3_64_with_seed(key, SEED) >> 56) as u8)
}

/// Appends the encoding of one value to `out`. Types that cannot be keys do not reach here: the
/// planner refuses them.
pub fn encode_value(column: &dyn Array, row: usize, out: &mut Vec<u8>) {
    if column.is_null(row) {
        out.push(0);
        return;
    }
    match column.data_type() {
        DataType::Dictionary(_, _) => {
            let any = column.as_any_dictionary();
            let at = any.keys();
            let place = integer(at, row);
            encode_value(any.values().as_ref(), usize::try_from(place).unwrap_or(0), out);
        }
        DataType::Utf8 => bytes(column.as_string::<i32>().value(row).as_bytes(), out),
        DataType::LargeUtf8 => bytes(column.as_string::<i64>().value(row).as_bytes(), out),
        DataType::Utf8View => bytes(column.as_string_view().value(row).as_bytes(), out),
        DataType::Binary => bytes(column.as_binary::<i32>().value(row), out),
        DataType::Float32 => {
            float(f64::from(column.as_primitive::<Float32Type>().value(row)), out);
        }
        DataType::Float64 => float(column.as_primitive::<Float64Type>().value(row), out),
        DataType::Decimal128(_, scale) => {
            out.extend([4, *scale as u8]);
            let value = column.as_primitive::<Decimal128Type>().value(row);
            out.extend(((value as u128) ^ (1 << 127)).to_be_bytes());
        }
        DataType::Struct(_) => {
            out.push(5);
            for child in column.as_struct().columns() {
                encode_value(child.as_ref(), row, out);
            }
            out.push(0xff);
        }
        DataType::List(_) => {
            out.push(5);
            let items = column.as_list::<i32>().value(row);
            (0..items.len()).for_each(|i| encode_value(items.as_ref(), i, out));
            out.push(0xff);
        }
        DataType::Map(_, _) => {
            out.push(5);
            let items = column.as_map().value(row);
            (0..items.len()).for_each(|i| encode_value(&items, i, out));
            out.push(0xff);
        }
        _ => {
            out.push(1);
            out.extend(((integer(column, row) as u64) ^ (1 << 63)).to_be_bytes());
        }
    }
}

fn bytes(value: &[u8], out: &mut Vec<u8>) {
    out.push(3);
    for &b in value {
        out.push(b);
        if b == 0 {
            out.push(0xff);
        }
    }
    out.extend([0, 0]);
}

fn float(value: f64, out: &mut Vec<u8>) {
    let value = if value == 0.0 {
        0.0
    } else if value.is_nan() {
        f64::NAN
    } else {
        value
    };
    let bits = value.to_bits();
    let ordered = if bits >> 63 == 1 { !bits } else { bits | (1 << 63) };
    out.push(2);
    out.extend(ordered.to_be_bytes());
}

fn integer(column: &dyn Array, row: usize) -> i64 {
    macro_rules! values {
        ($($t:ty),*) => { $(
            if let Some(a) = column.as_any().downcast_ref::<PrimitiveArray<$t>>() {
                return i64::try_from(a.value(row)).unwrap_or(i64::MAX);
            }
        )* };
    }
    if let Some(a) = column.as_any().downcast_ref::<BooleanArray>() {
        return i64::from(a.value(row));
    }
    values!(Int64Type, Int32Type, Int16Type, Int8Type, UInt64Type, UInt32Type, UInt16Type);
    values!(TimestampMillisecondType, TimestampMicrosecondType, TimestampNanosecondType);
    values!(TimestampSecondType, Date32Type, Date64Type, Time32MillisecondType, Time32SecondType);
    values!(Time64MicrosecondType, Time64NanosecondType, UInt8Type);
    unreachable!("{} is no key type; the planner refuses it", column.data_type())
}

/// Maps rows to key groups, remembering what it has hashed of dictionaries.
///
/// # Complexity
/// One encoding and one hash a row; for a single dictionary column one a dictionary value, then a
/// look-up a row.
#[derive(Debug, Default)]
pub struct KeyHasher {
    columns: Vec<usize>,
    /// Dictionaries with the groups of their values, the newest last.
    dictionaries: VecDeque<(ArrayRef, Arc<[u8]>)>,
    /// Bytes of these dictionaries.
    held: usize,
    buffer: Vec<u8>,
}

/// Dictionaries that a hasher remembers, and bytes of them before it forgets the oldest.
const DICTIONARIES_MAX: usize = 64;
const DICTIONARY_BYTES_MAX: usize = 8 << 20;
/// A dictionary with more values than this for each row is not worth hashing as a whole.
const DICTIONARY_VALUES_A_ROW: usize = 4;

impl KeyHasher {
    /// A hasher over these columns. None at all is one key: everything is in one group.
    pub fn over(columns: Vec<usize>) -> KeyHasher {
        KeyHasher { columns, ..KeyHasher::default() }
    }

    /// The key group of each row, into `groups`.
    pub fn key_groups(&mut self, rows: &RecordBatch, groups: &mut Vec<u8>) {
        groups.clear();
        if let [column] = self.columns[..]
            && let Some(any) = rows.column(column).as_any_dictionary_opt()
            && any.keys().data_type() == &DataType::Int32
            && any.keys().null_count() == 0
        {
            let keys = any.keys().as_primitive::<Int32Type>().values();
            if let Some(of_value) = self.of_dictionary(any.values(), rows.num_rows()) {
                groups.extend(keys.iter().map(|&k| of_value[k as usize]));
            } else {
                let values = any.values().as_ref();
                groups.extend(keys.iter().map(|&k| self.of_value(values, k as usize)));
            }
            return;
        }
        let mut key = std::mem::take(&mut self.buffer);
        for row in 0..rows.num_rows() {
            key.clear();
            for &column in &self.columns {
                encode_value(rows.column(column).as_ref(), row, &mut key);
            }
            groups.push(key_group(&key).0);
        }
        self.buffer = key;
    }

    fn of_value(&mut self, values: &dyn Array, at: usize) -> u8 {
        self.buffer.clear();
        encode_value(values, at, &mut self.buffer);
        key_group(&self.buffer).0
    }

    /// The group of each value, unless the dictionary is too large to be hashed for so few rows.
    fn of_dictionary(&mut self, values: &ArrayRef, rows: usize) -> Option<Arc<[u8]>> {
        if let Some((_, groups)) = self.dictionaries.iter().find(|(v, _)| Arc::ptr_eq(v, values)) {
            return Some(groups.clone());
        }
        if values.len() > DICTIONARY_VALUES_A_ROW * rows {
            return None;
        }
        let groups: Arc<[u8]> =
            (0..values.len()).map(|at| self.of_value(values.as_ref(), at)).collect();
        while self.dictionaries.len() >= DICTIONARIES_MAX || self.held > DICTIONARY_BYTES_MAX {
            let Some((old, _)) = self.dictionaries.pop_front() else { break };
            self.held -= old.get_array_memory_size();
        }
        // The array is kept alive beside its groups, so its address cannot be another dictionary's.
        self.held += values.get_array_memory_size();
        self.dictionaries.push_back((values.clone(), groups.clone()));
        Some(groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(column: &dyn Array, row: usize) -> Vec<u8> {
        let mut out = Vec::new();
        encode_value(column, row, &mut out);
        out
    }

    /// These values are on disk in checkpoints: they must never change.
    #[test]
    fn golden_key_groups() {
        let strings = StringArray::from(vec![Some("meter-000123"), Some(""), None, Some("a\0b")]);
        let got: Vec<u8> = (0..4).map(|i| key_group(&encoded(&strings, i)).0).collect();
        let numbers = Int64Array::from(vec![0, -1, i64::MAX]);
        let more: Vec<u8> = (0..3).map(|i| key_group(&encoded(&numbers, i)).0).collect();
        expect_test::expect!["[104, 82, 225, 89] [168, 57, 169]"]
            .assert_eq(&format!("{got:?} {more:?}"));
    }

    #[test]
    fn byte_order_is_value_order() {
        let floats = Float64Array::from(vec![f64::NEG_INFINITY, -1.5, 0.0, 1e-300, 7.0, f64::NAN]);
        assert!((1..6).all(|i| encoded(&floats, i - 1) < encoded(&floats, i)));
        let numbers = Int32Array::from(vec![i32::MIN, -1, 0, 1, i32::MAX]);
        assert!((1..5).all(|i| encoded(&numbers, i - 1) < encoded(&numbers, i)));
        let texts = StringArray::from(vec!["", "\0", "\0\0", "a", "a\0", "ab"]);
        assert!((1..6).all(|i| encoded(&texts, i - 1) < encoded(&texts, i)));
    }

    #[test]
    fn dictionaries_hash_like_their_values() {
        let plain = StringArray::from(vec!["x", "y", "x", "zz"]);
        let packed: DictionaryArray<Int32Type> = vec!["x", "y", "x", "zz"].into_iter().collect();
        let batch = |c: ArrayRef| RecordBatch::try_from_iter([("k", c)]).unwrap();
        let (mut a, mut b) = (Vec::new(), Vec::new());
        KeyHasher::over(vec![0]).key_groups(&batch(Arc::new(plain)), &mut a);
        KeyHasher::over(vec![0]).key_groups(&batch(Arc::new(packed)), &mut b);
        assert_eq!(a, b);
    }

    #[test]
    fn owners_cover_all_groups_evenly() {
        for peers in 1..=7 {
            let owners: Vec<usize> = (0..=255).map(|g| owner(KeyGroup(g), peers)).collect();
            assert!(owners.is_sorted() && owners[255] == peers - 1 && owners[0] == 0);
        }
    }
}
