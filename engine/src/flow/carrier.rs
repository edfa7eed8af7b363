//! The timely container that carries a [`Delta`]: moved between threads, Arrow IPC between
//! processes.
//!
//! # Invariant
//! `record_count` is the number of rows, so that splitting a chunk by rows keeps timely's counts.
//!
//! # Form between processes
//! `u64` body length, `u64` origin tag, `u64` split or time, `u64` offset; then one Arrow IPC
//! stream (schema and batch) padded to 8 bytes. The receiver reads it without a copy; what it keeps
//! in state it copies itself.

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::ipc::reader::StreamDecoder;
use arrow::ipc::writer::{IpcWriteOptions, StreamEncoder};
use std::cell::RefCell;
use std::io::Write;
use std::ptr::NonNull;
use std::sync::Arc;
use timely::container::Accountable;
use timely::dataflow::channels::ContainerBytes;

use crate::rows::{Delta, Origin, SplitId, without_wide_dictionaries};
use crate::time::Millis;

const HEADER: usize = 32;

/// A chunk of rows on its way through timely.
#[derive(Default)]
pub(crate) struct Carrier {
    delta: Option<Delta>,
    encoded: RefCell<Option<Vec<Buffer>>>,
}

impl Clone for Carrier {
    fn clone(&self) -> Carrier {
        Carrier { delta: self.delta.clone(), encoded: RefCell::new(None) }
    }
}

impl From<Delta> for Carrier {
    fn from(delta: Delta) -> Carrier {
        Carrier { delta: Some(delta), encoded: RefCell::new(None) }
    }
}

impl Carrier {
    /// Takes the chunk out. Timely may hand a container back with what it held, so always take.
    pub(crate) fn take(&mut self) -> Option<Delta> {
        self.encoded.replace(None);
        self.delta.take()
    }
}

impl Accountable for Carrier {
    fn record_count(&self) -> i64 {
        self.delta.as_ref().map_or(0, |d| i64::try_from(d.len()).unwrap_or(i64::MAX))
    }
}

fn encode(delta: &Delta) -> Vec<Buffer> {
    let encode = || {
        // A dictionary that many chunks share here would be sent with each of them.
        let batch = without_wide_dictionaries(&delta.to_batch()?);
        let options = IpcWriteOptions::try_new(8, false, arrow::ipc::MetadataVersion::V5)?;
        StreamEncoder::try_new_with_options(&batch.schema(), options)?.encode(&batch)
    };
    match encode() {
        Ok(buffers) => buffers,
        // Every type that a plan may carry has an IPC form.
        Err(error) => unreachable!("a planned row type has no IPC form: {error}"),
    }
}

fn origin_words(origin: Origin) -> [u64; 3] {
    match origin {
        Origin::Split { split, offset } => [0, split.0, offset],
        Origin::FiredAt(time) => [1, time as u64, 0],
        Origin::Fired => [2, 0, 0],
    }
}

fn origin_of(words: [u64; 3]) -> Origin {
    match words {
        [0, split, offset] => Origin::Split { split: SplitId(split), offset },
        [1, time, _] => Origin::FiredAt(time as Millis),
        _ => Origin::Fired,
    }
}

struct Slab(#[allow(dead_code, reason = "keeps the memory alive")] timely::bytes::arc::Bytes);

impl std::panic::RefUnwindSafe for Slab {}

fn as_buffer(bytes: timely::bytes::arc::Bytes) -> Buffer {
    let length = bytes.len();
    match NonNull::new(bytes.as_ptr().cast_mut()) {
        // SAFETY: the memory is `length` bytes long, is not written any more once timely has handed
        // it over, and lives as long as the `Slab` that the buffer owns.
        Some(start) => unsafe {
            Buffer::from_custom_allocation(start, length, Arc::new(Slab(bytes)))
        },
        None => Buffer::default(),
    }
}

fn decode(mut body: Buffer) -> RecordBatch {
    let mut decoder = StreamDecoder::new();
    match decoder.decode(&mut body) {
        Ok(Some(batch)) => batch,
        // Both ends are the same build and the link is authenticated: this is a bug, not data.
        other => unreachable!("a chunk from another process does not decode: {other:?}"),
    }
}

impl ContainerBytes for Carrier {
    fn from_bytes(mut bytes: timely::bytes::arc::Bytes) -> Carrier {
        let word = |i: usize| {
            let mut eight = [0; 8];
            eight.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            u64::from_le_bytes(eight)
        };
        let length = usize::try_from(word(0)).unwrap_or(0);
        let origin = origin_of([word(1), word(2), word(3)]);
        if length == 0 {
            return Carrier::default();
        }
        bytes.extract_to(HEADER);
        let batch = decode(as_buffer(bytes.extract_to(length)));
        match Delta::from_batch(batch, origin) {
            Ok(delta) => delta.into(),
            Err(error) => unreachable!("a chunk from another process has no rows: {error}"),
        }
    }

    fn length_in_bytes(&self) -> usize {
        let mut encoded = self.encoded.borrow_mut();
        let buffers =
            encoded.get_or_insert_with(|| self.delta.as_ref().map(encode).unwrap_or_default());
        let length: usize = buffers.iter().map(Buffer::len).sum();
        HEADER + length.next_multiple_of(8)
    }

    fn into_bytes<W: Write>(&self, writer: &mut W) {
        let buffers = self
            .encoded
            .take()
            .unwrap_or_else(|| self.delta.as_ref().map(encode).unwrap_or_default());
        let length: usize = buffers.iter().map(Buffer::len).sum();
        let origin = self.delta.as_ref().map_or([2, 0, 0], |d| origin_words(d.origin));
        let mut write = || -> std::io::Result<()> {
            writer.write_all(&(length as u64).to_le_bytes())?;
            for word in origin {
                writer.write_all(&word.to_le_bytes())?;
            }
            for buffer in &buffers {
                writer.write_all(buffer.as_slice())?;
            }
            writer.write_all(&[0; 8][..length.next_multiple_of(8) - length])
        };
        if let Err(error) = write() {
            unreachable!("timely's own memory refuses a write: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::unpack;
    use arrow::array::{
        Array, ArrayRef, DictionaryArray, FixedSizeBinaryArray, Int32Array, Int64Array, NullArray,
        StringArray,
    };
    use timely::bytes::arc::BytesMut;

    fn through_bytes(delta: Delta) -> Delta {
        let mut bytes = Vec::new();
        Carrier::from(delta).into_bytes(&mut bytes);
        Carrier::from_bytes(BytesMut::from(bytes).freeze()).take().expect("rows")
    }

    /// What partial states are made of: a slice of it, with a dictionary that has NULL as a value.
    #[test]
    fn columns_of_partial_states_survive_bytes() {
        let values: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("b")]));
        let keys = Int32Array::from(vec![0, 1, 2, 2]);
        let packed = DictionaryArray::try_new(keys, values).expect("dictionary");
        let words = FixedSizeBinaryArray::try_from_iter((0..4_u8).map(|n| [n; 16]));
        let rows = RecordBatch::try_from_iter_with_nullable([
            ("k", Arc::new(packed) as ArrayRef, true),
            ("none", Arc::new(NullArray::new(4)), true),
            ("m", Arc::new(words.expect("words")), true),
        ])
        .expect("rows");
        for (start, length) in [(0, 4), (1, 2)] {
            let rows = rows.slice(start, length);
            let back = through_bytes(Delta::fired(rows.clone())).rows;
            assert_eq!(back.column(1).len(), length);
            assert_eq!(unpack(&back), unpack(&rows));
        }
    }

    #[test]
    fn survives_bytes() {
        let rows = RecordBatch::try_from_iter([
            ("a", Arc::new(Int64Array::from(vec![Some(1), None])) as _),
            ("b", Arc::new(StringArray::from(vec!["x", "yy"])) as _),
        ])
        .expect("rows");
        for origin in [
            Origin::Split { split: SplitId::of(3, 4), offset: 5 },
            Origin::FiredAt(-7),
            Origin::Fired,
        ] {
            let mut delta = Delta::fired(rows.clone());
            delta.origin = origin;
            delta.diffs = Some(vec![1, -1].into());
            let carrier = Carrier::from(delta.clone());
            let mut bytes = Vec::new();
            let length = carrier.length_in_bytes();
            carrier.into_bytes(&mut bytes);
            assert_eq!(bytes.len(), length);
            let mut back = Carrier::from_bytes(BytesMut::from(bytes).freeze());
            let back = back.take().expect("rows");
            assert_eq!((back.rows, back.diffs, back.origin), (rows.clone(), delta.diffs, origin));
        }
    }
}
