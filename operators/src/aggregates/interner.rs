//! Keys as dense `u32` ids: a key is hashed and compared once, then it is an index.
//!
//! # Invariant
//! Two rows have one id exactly when their keys have one encoding (`engine::keys`). An id is its
//! key's until it is freed; freed ids are given out again, so memory follows the keys that are in
//! use.
//!
//! # Complexity
//! One dictionary column: a look-up by value place a row, and one hash a dictionary value. One
//! string or integer column: one hash and one comparison a row, without encoding. Otherwise an
//! encoding, a hash and a comparison a row. Order of key bytes is kept: O(n) after O(new · log new)
//! for new keys.
//!
//! # Limits
//! 2^32 − 1 keys in use. Each takes its encoding twice and about 60 bytes.

use arrow::array::*;
use arrow::compute::{concat, take};
use arrow::datatypes::{DataType, Decimal128Type, Int32Type, Schema};
use hashbrown::HashTable;
use std::sync::Arc;
use weir_engine::keys::{KeyGroup, encode_value, key_group};
use weir_engine::operator::OperatorError;
use xxhash_rust::xxh3::xxh3_64;

use super::states::{as_type, integers};
use super::{plain, plain_type};

/// An id that no key has.
const NO_ID: u32 = u32::MAX;
/// Dictionaries whose ids are remembered.
const DICTIONARIES_MAX: usize = 64;
/// Bytes of them before the oldest are forgotten.
const DICTIONARY_BYTES_MAX: usize = 8 << 20;
/// Of a dictionary with more values than this for each row each row is looked up by itself.
const DICTIONARY_VALUES_A_ROW: usize = 4;

/// Bytes of keys up to which their columns are kept; Arrow's strings end at 2 GB.
const KEPT_BYTES_MAX: usize = 1 << 30;

/// How a row's key is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    /// No column: everything is one key.
    Everything,
    /// One string column, plain or in a dictionary.
    Text,
    /// One integer, time or boolean column, plain or in a dictionary.
    Integer,
    /// Any columns.
    Encoded,
}

/// Keys in use, by id.
#[derive(Debug)]
pub struct KeyInterner {
    columns: Vec<usize>,
    types: Vec<DataType>,
    path: Path,
    /// Whether a key has rows, lists or maps: then its values are kept beside its bytes.
    nested: bool,
    table: HashTable<u32>,
    keys: Vec<Key>,
    free: Vec<u32>,
    dictionaries: Vec<Dictionary>,
    /// Ids in order of key bytes; those of `unordered` are still to be merged in.
    order: Vec<u32>,
    unordered: Vec<u32>,
    rank: Vec<u32>,
    /// The key columns of all ids in that order, once many were wanted at a time.
    in_order: Option<Vec<ArrayRef>>,
    buffer: Vec<u8>,
}

#[derive(Clone, Debug, Default)]
struct Key {
    hash: u64,
    bytes: Box<[u8]>,
    values: Vec<ArrayRef>,
    used: bool,
}

/// Ids of a dictionary's values, `NO_ID` for those not seen yet. It holds the values, so that their
/// address cannot become another dictionary's.
#[derive(Debug)]
struct Dictionary {
    values: ArrayRef,
    ids: Vec<u32>,
}

impl KeyInterner {
    /// An interner of the keys in these columns of rows of this schema.
    pub fn new(schema: &Schema, columns: Vec<usize>) -> KeyInterner {
        let types: Vec<DataType> =
            columns.iter().map(|&at| plain_type(schema.field(at).data_type())).collect();
        let text =
            |t: &DataType| matches!(t, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        let path = match &types[..] {
            [] => Path::Everything,
            [one] if text(one) => Path::Text,
            [one] if is_integer(one) => Path::Integer,
            _ => Path::Encoded,
        };
        let nested = types.iter().any(DataType::is_nested);
        KeyInterner {
            columns,
            types,
            path,
            nested,
            table: HashTable::new(),
            keys: Vec::new(),
            free: Vec::new(),
            dictionaries: Vec::new(),
            order: Vec::new(),
            unordered: Vec::new(),
            rank: Vec::new(),
            in_order: None,
            buffer: Vec::new(),
        }
    }

    /// All ids in use are below this.
    pub fn bound(&self) -> usize {
        self.keys.len()
    }

    /// Number of keys in use.
    pub fn len(&self) -> usize {
        self.keys.len() - self.free.len()
    }

    /// Whether no key is in use.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The id of each row's key, into `ids`.
    pub fn intern(&mut self, rows: &RecordBatch, ids: &mut Vec<u32>) -> Result<(), OperatorError> {
        let columns: Vec<ArrayRef> =
            self.columns.iter().map(|&at| rows.column(at).clone()).collect();
        self.intern_columns(&columns, rows.num_rows(), ids)
    }

    /// The id of each of `rows` keys in columns of their own, as [`Self::columns`] gives them.
    pub fn intern_columns(
        &mut self,
        columns: &[ArrayRef],
        rows: usize,
        ids: &mut Vec<u32>,
    ) -> Result<(), OperatorError> {
        ids.clear();
        match (self.path, columns) {
            (Path::Everything, _) => {
                if rows > 0 {
                    let id = self.encoded(columns, 0)?;
                    ids.resize(rows, id);
                }
            }
            (Path::Text | Path::Integer, [column]) => match column.as_any_dictionary_opt() {
                Some(packed) if packed.keys().data_type() == &DataType::Int32 => {
                    self.packed(packed, ids)?;
                }
                _ => self.plain(&plain(column.clone()), ids)?,
            },
            _ => {
                for row in 0..rows {
                    ids.push(self.encoded(columns, row)?);
                }
            }
        }
        Ok(())
    }

    /// A dictionary: each of its values is looked up once.
    fn packed(
        &mut self,
        packed: &dyn AnyDictionaryArray,
        ids: &mut Vec<u32>,
    ) -> Result<(), OperatorError> {
        let keys = packed.keys().as_primitive::<Int32Type>();
        let is_known = self.dictionaries.iter().any(|d| Arc::ptr_eq(&d.values, packed.values()));
        let few = packed.values().len() > DICTIONARY_VALUES_A_ROW * keys.len();
        if few && !is_known && keys.null_count() == 0 {
            for &key in keys.values() {
                ids.push(self.of_plain(packed.values(), key as usize)?);
            }
            return Ok(());
        }
        let mut known = self.dictionary(packed.values());
        let mut one = |this: &mut KeyInterner, key: i32| {
            let at = key as usize;
            if known.ids[at] == NO_ID {
                known.ids[at] = this.of_plain(&known.values, at)?;
            }
            Ok::<u32, OperatorError>(known.ids[at])
        };
        if keys.null_count() == 0 {
            for &key in keys.values() {
                ids.push(one(self, key)?);
            }
        } else {
            let null = new_null_array(&self.types[0], 1);
            for key in keys {
                ids.push(match key {
                    Some(key) => one(self, key)?,
                    None => self.of_plain(&null, 0)?,
                });
            }
        }
        self.dictionaries.push(known);
        Ok(())
    }

    /// What is known of a dictionary, taken out of the table of those remembered.
    fn dictionary(&mut self, values: &ArrayRef) -> Dictionary {
        let same = |d: &Dictionary| Arc::ptr_eq(&d.values, values);
        if let Some(at) = self.dictionaries.iter().position(same) {
            return self.dictionaries.remove(at);
        }
        let bytes = |d: &Dictionary| d.values.get_array_memory_size() + 4 * d.ids.len();
        while self.dictionaries.len() >= DICTIONARIES_MAX
            || self.dictionaries.iter().map(bytes).sum::<usize>() > DICTIONARY_BYTES_MAX
        {
            self.dictionaries.remove(0);
        }
        Dictionary { values: values.clone(), ids: vec![NO_ID; values.len()] }
    }

    fn plain(&mut self, column: &ArrayRef, ids: &mut Vec<u32>) -> Result<(), OperatorError> {
        if self.path == Path::Integer && column.null_count() == 0 {
            for &value in integers(column).iter() {
                ids.push(self.of_integer(value)?);
            }
            return Ok(());
        }
        for row in 0..column.len() {
            ids.push(self.of_plain(column, row)?);
        }
        Ok(())
    }

    fn of_plain(&mut self, column: &ArrayRef, row: usize) -> Result<u32, OperatorError> {
        if column.is_null(row) || self.path != Path::Text {
            return self.encoded(std::slice::from_ref(column), row);
        }
        let text = match column.data_type() {
            DataType::Utf8 => column.as_string::<i32>().value(row),
            DataType::LargeUtf8 => column.as_string::<i64>().value(row),
            _ => column.as_string_view().value(row),
        };
        let text = text.as_bytes();
        let hash = xxh3_64(text);
        // The encoding of a text without a zero byte is itself between a tag and two zero bytes.
        // One with a zero byte has a longer encoding, so it cannot be taken for another here.
        let same = |&id: &u32| {
            let bytes = &self.keys[id as usize].bytes;
            bytes.len() == text.len() + 3 && &bytes[1..=text.len()] == text
        };
        if let Some(&id) = self.table.find(hash, same) {
            return Ok(id);
        }
        self.encode(std::slice::from_ref(column), row);
        self.find_or_add(hash, std::slice::from_ref(column), row)
    }

    fn of_integer(&mut self, value: i64) -> Result<u32, OperatorError> {
        let encoded = ((value as u64) ^ (1 << 63)).to_be_bytes();
        let hash = xxh3_64(&encoded);
        let same = |&id: &u32| self.keys[id as usize].bytes.get(1..) == Some(&encoded[..]);
        if let Some(&id) = self.table.find(hash, same) {
            return Ok(id);
        }
        self.buffer.clear();
        self.buffer.push(1);
        self.buffer.extend(encoded);
        self.find_or_add(hash, &[], 0)
    }

    fn encode(&mut self, columns: &[ArrayRef], row: usize) {
        self.buffer.clear();
        for column in columns {
            encode_value(column.as_ref(), row, &mut self.buffer);
        }
    }

    fn encoded(&mut self, columns: &[ArrayRef], row: usize) -> Result<u32, OperatorError> {
        self.encode(columns, row);
        let hash = self.hash_of_buffer();
        self.find_or_add(hash, columns, row)
    }

    /// The hash of the encoding in the buffer, the same as the fast paths take.
    fn hash_of_buffer(&self) -> u64 {
        match (self.path, self.buffer.get(1..)) {
            (Path::Integer, Some(value)) => xxh3_64(value),
            (Path::Text, Some(text)) if text.len() >= 2 => {
                let text = &text[..text.len() - 2];
                if !text.contains(&0) {
                    return xxh3_64(text);
                }
                let mut raw = Vec::with_capacity(text.len());
                let mut bytes = text.iter();
                while let Some(&byte) = bytes.next() {
                    raw.push(byte);
                    if byte == 0 {
                        bytes.next();
                    }
                }
                xxh3_64(&raw)
            }
            _ => xxh3_64(&self.buffer),
        }
    }

    /// The id of the key in the buffer.
    fn find_or_add(
        &mut self,
        hash: u64,
        columns: &[ArrayRef],
        row: usize,
    ) -> Result<u32, OperatorError> {
        let same = |&id: &u32| self.keys[id as usize].bytes[..] == self.buffer[..];
        if let Some(&id) = self.table.find(hash, same) {
            return Ok(id);
        }
        let values = if self.nested {
            // A copy: a slice would pin the whole chunk.
            let row = UInt32Array::from(vec![row as u32]);
            columns.iter().map(|c| take(c, &row, None).map(plain)).collect::<Result<_, _>>()?
        } else {
            Vec::new()
        };
        let key = Key { hash, bytes: self.buffer.as_slice().into(), values, used: true };
        let id = match self.free.pop() {
            Some(id) => {
                self.keys[id as usize] = key;
                id
            }
            None => {
                self.keys.push(key);
                u32::try_from(self.keys.len() - 1)
                    .ok()
                    .filter(|&id| id != NO_ID)
                    .ok_or_else(|| OperatorError::State("more than 2^32 - 2 keys in use".into()))?
            }
        };
        self.table.insert_unique(hash, id, |&id| self.keys[id as usize].hash);
        self.unordered.push(id);
        Ok(id)
    }

    /// Frees ids that nothing refers to any more.
    pub fn free(&mut self, ids: &[u32]) {
        if ids.is_empty() {
            return;
        }
        self.settle_order();
        for &id in ids {
            let key = std::mem::take(&mut self.keys[id as usize]);
            if let Ok(entry) = self.table.find_entry(key.hash, |&other| other == id) {
                entry.remove();
                self.free.push(id);
            }
        }
        self.order.retain(|&id| self.keys[id as usize].used);
        self.number_order();
        self.dictionaries.clear();
        if self.table.len() * 4 < self.table.capacity() {
            self.table.shrink_to_fit(|&id| self.keys[id as usize].hash);
        }
    }

    /// The encoding of a key.
    pub fn bytes(&self, id: u32) -> &[u8] {
        &self.keys[id as usize].bytes
    }

    /// The key group of a key.
    pub fn key_group(&self, id: u32) -> KeyGroup {
        key_group(self.bytes(id))
    }

    /// Place of each id (by index) in the order of key bytes, valid until a key is added or freed.
    pub fn ranks(&mut self) -> &[u32] {
        self.settle_order();
        &self.rank
    }

    /// All ids in use in order of key bytes, valid until a key is added or freed.
    pub fn ordered(&mut self) -> &[u32] {
        self.settle_order();
        &self.order
    }

    fn settle_order(&mut self) {
        if self.unordered.is_empty() {
            return;
        }
        let keys = &self.keys;
        let bytes = |id: &u32| &keys[*id as usize].bytes;
        self.unordered.sort_unstable_by(|a, b| bytes(a).cmp(bytes(b)));
        let mut merged = Vec::with_capacity(self.order.len() + self.unordered.len());
        let mut fresh = self.unordered.drain(..).peekable();
        for &id in &self.order {
            while let Some(other) = fresh.next_if(|other| bytes(other) < bytes(&id)) {
                merged.push(other);
            }
            merged.push(id);
        }
        merged.extend(fresh);
        self.order = merged;
        self.number_order();
    }

    fn number_order(&mut self) {
        self.in_order = None;
        self.rank.clear();
        self.rank.resize(self.keys.len(), NO_ID);
        for (rank, &id) in self.order.iter().enumerate() {
            self.rank[id as usize] = rank as u32;
        }
    }

    /// The key columns of some ids, dictionaries unpacked. Where many are wanted, all are kept in
    /// their order, so that the next time costs a copy and no cache miss a key.
    pub fn columns_of_many(&mut self, ids: &[u32]) -> Result<Vec<ArrayRef>, OperatorError> {
        if !self.keep_in_order(ids.len())? {
            return self.columns(ids);
        }
        let rows: UInt32Array =
            ids.iter().map(|&id| self.rank[id as usize]).collect::<Vec<_>>().into();
        let columns = self.in_order.iter().flatten();
        Ok(columns.map(|column| take(column, &rows, None)).collect::<Result<_, _>>()?)
    }

    /// The same, but a single text column may be a dictionary: of all keys in use, and the same one
    /// until a key comes or goes, so that others need to look at each key once only.
    pub fn packed_columns_of_many(&mut self, ids: &[u32]) -> Result<Vec<ArrayRef>, OperatorError> {
        if self.path != Path::Text || !self.keep_in_order(ids.len())? {
            return self.columns_of_many(ids);
        }
        let Some([keys]) = self.in_order.as_deref() else { return self.columns_of_many(ids) };
        let places = ids.iter().map(|&id| self.rank[id as usize] as i32);
        let places = Int32Array::from_iter_values(places);
        Ok(vec![Arc::new(DictionaryArray::try_new(places, keys.clone())?)])
    }

    /// Keeps the key columns of all ids in their order, if this many ids are worth it.
    fn keep_in_order(&mut self, wanted: usize) -> Result<bool, OperatorError> {
        self.settle_order();
        if self.in_order.is_none() {
            let bytes = |&id: &u32| self.bytes(id).len();
            if wanted * 2 < self.len()
                || self.order.iter().map(bytes).sum::<usize>() > KEPT_BYTES_MAX
            {
                return Ok(false);
            }
            self.in_order = Some(self.columns(&self.order)?);
        }
        Ok(true)
    }

    /// The key columns of some ids, dictionaries unpacked.
    pub fn columns(&self, ids: &[u32]) -> Result<Vec<ArrayRef>, OperatorError> {
        if self.nested {
            let column = |at: usize, data_type: &DataType| {
                let parts: Vec<&dyn Array> =
                    ids.iter().map(|&id| self.keys[id as usize].values[at].as_ref()).collect();
                if parts.is_empty() { Ok(new_empty_array(data_type)) } else { concat(&parts) }
            };
            let columns = self.types.iter().enumerate().map(|(at, t)| column(at, t));
            return Ok(columns.collect::<Result<_, _>>()?);
        }
        let mut rest: Vec<&[u8]> = ids.iter().map(|&id| self.bytes(id)).collect();
        self.types.iter().map(|data_type| decode_column(&mut rest, data_type)).collect()
    }
}

fn is_integer(data_type: &DataType) -> bool {
    let other = matches!(
        data_type,
        DataType::Float16 | DataType::Float32 | DataType::Float64 | DataType::Interval(_)
    );
    data_type == &DataType::Boolean
        || data_type.is_primitive() && !other && data_type.primitive_width() <= Some(8)
}

/// Reads one column off the front of the encodings.
fn decode_column(rest: &mut [&[u8]], data_type: &DataType) -> Result<ArrayRef, OperatorError> {
    let bad = || OperatorError::State(format!("a key does not hold {data_type}"));
    let tagged = |tag: u8, key: &mut &'_ [u8]| -> Result<bool, OperatorError> {
        let (&first, tail) = key.split_first().ok_or_else(bad)?;
        *key = tail;
        if first == 0 || first == tag { Ok(first != 0) } else { Err(bad()) }
    };
    match data_type {
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Binary => {
            let mut texts = StringBuilder::with_capacity(rest.len(), 16 * rest.len());
            let mut binaries = BinaryBuilder::new();
            let binary = data_type == &DataType::Binary;
            let mut unescaped = Vec::new();
            for key in rest.iter_mut() {
                let text = if tagged(3, key)? {
                    Some(decode_bytes(key, &mut unescaped).ok_or_else(bad)?)
                } else {
                    None
                };
                if binary {
                    binaries.append_option(text);
                } else {
                    let text = text.map(std::str::from_utf8).transpose().map_err(|_| bad())?;
                    texts.append_option(text);
                }
            }
            let column: ArrayRef =
                if binary { Arc::new(binaries.finish()) } else { Arc::new(texts.finish()) };
            Ok(arrow::compute::cast(&column, data_type)?)
        }
        DataType::Float32 | DataType::Float64 => {
            let mut values = Float64Builder::with_capacity(rest.len());
            for key in rest.iter_mut() {
                let some = tagged(2, key)?;
                let bits =
                    if some { Some(u64::from_be_bytes(split(key).ok_or_else(bad)?)) } else { None };
                let bits = bits.map(|b| if b >> 63 == 1 { b & !(1 << 63) } else { !b });
                values.append_option(bits.map(f64::from_bits));
            }
            Ok(arrow::compute::cast(&values.finish(), data_type)?)
        }
        DataType::Decimal128(_, _) => {
            let mut values: PrimitiveBuilder<Decimal128Type> =
                PrimitiveBuilder::with_capacity(rest.len());
            for key in rest.iter_mut() {
                if tagged(4, key)? {
                    let [_scale] = split(key).ok_or_else(bad)?;
                    let bits = u128::from_be_bytes(split(key).ok_or_else(bad)?);
                    values.append_value((bits ^ (1 << 127)) as i128);
                } else {
                    values.append_null();
                }
            }
            Ok(Arc::new(values.finish().with_data_type(data_type.clone())))
        }
        _ => {
            let mut values = Int64Builder::with_capacity(rest.len());
            for key in rest.iter_mut() {
                let some = tagged(1, key)?;
                let bits =
                    if some { Some(u64::from_be_bytes(split(key).ok_or_else(bad)?)) } else { None };
                values.append_option(bits.map(|bits| (bits ^ (1 << 63)) as i64));
            }
            as_type(&values.finish(), data_type)
        }
    }
}

fn split<const N: usize>(key: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = key.split_first_chunk::<N>()?;
    *key = tail;
    Some(*head)
}

/// The bytes of a text up to its end mark; `unescaped` holds them where they had zero bytes.
fn decode_bytes<'a: 'b, 'b>(key: &mut &'a [u8], unescaped: &'b mut Vec<u8>) -> Option<&'b [u8]> {
    let whole = *key;
    let zero = whole.iter().position(|&byte| byte == 0)?;
    if whole.get(zero + 1) == Some(&0) {
        *key = &whole[zero + 2..];
        return Some(&whole[..zero]);
    }
    unescaped.clear();
    let mut at = 0;
    while let Some(&byte) = whole.get(at) {
        match (byte, whole.get(at + 1)) {
            (0, Some(0)) => {
                *key = &whole[at + 2..];
                return Some(unescaped);
            }
            (0, _) => at += 2,
            _ => at += 1,
        }
        unescaped.push(byte);
    }
    None
}
