//! The bytes of a journal segment: a header, then records. Format version 1.
//!
//! All numbers are little endian.
//!
//! ```text
//! header  0  magic       8  "WEIRJRNL"
//!         8  version     4  1
//!        12  label size  4
//!        16  base        8  offset of the first record
//!        24  label          UTF-8: what the journal belongs to
//!         …  CRC-32C     4  of all of the above
//!
//! record  0  marker      4  "WREC"
//!         4  CRC-32C     4  of everything after it
//!         8  size        4  of topic and payload
//!        12  topic size  2
//!        14  kind        1  0 message, 1 cut (a message beyond the size limit: its first bytes)
//!        15  zero        1
//!        16  offset      8
//!        24  arrival     8  milliseconds since 1970, when it was received
//!        32  durable     8  every offset below it was on disk before this record was written
//!        40  topic          UTF-8
//!         …  payload
//! ```
//!
//! `durable` tells a torn tail from a corrupt middle: see `journal.rs`.

use super::crc::crc32c;

pub(crate) const MAGIC: [u8; 8] = *b"WEIRJRNL";
pub(crate) const MARKER: [u8; 4] = *b"WREC";
pub(crate) const VERSION: u32 = 1;
pub(crate) const RECORD_HEAD_BYTES: usize = 40;
pub(crate) const HEADER_HEAD_BYTES: usize = 24;

/// Greatest size of topic and payload: what one MQTT packet can hold.
pub(crate) const BODY_BYTES_MAX: usize = 256 << 20;
/// Greatest size of a label.
pub(crate) const LABEL_BYTES_MAX: usize = 1 << 16;

/// What a record holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A message as it came.
    Message,
    /// The first bytes of a message beyond the size limit.
    Cut,
}

/// A message to be journaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// When it was received, in milliseconds since 1970.
    pub arrival: i64,
    /// Whether it is whole.
    pub kind: Kind,
    /// Its topic, at most 65 535 bytes.
    pub topic: &'a str,
    /// Its payload.
    pub payload: &'a [u8],
}

/// A message read back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// Its number in the journal, from 0.
    pub offset: u64,
    /// What was journaled.
    pub entry: Entry<'a>,
}

/// The fields of a record's head that are needed before its body is at hand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub(crate) crc: u32,
    pub(crate) body: usize,
    pub(crate) topic: usize,
    pub(crate) kind: u8,
    pub(crate) offset: u64,
    pub(crate) arrival: i64,
    pub(crate) durable: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Appends a segment's header.
pub(crate) fn write_header(out: &mut Vec<u8>, label: &str, base: u64) {
    let start = out.len();
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&(label.len() as u32).to_le_bytes());
    out.extend_from_slice(&base.to_le_bytes());
    out.extend_from_slice(label.as_bytes());
    let crc = crc32c(&out[start..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

/// What the first bytes of a segment turn out to be.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Header {
    /// A sound header of that many bytes.
    Sound { label: String, base: u64, bytes: usize },
    /// A header of a format that this build does not know.
    Version(u32),
    /// No sound header.
    Bad,
}

/// Reads a segment's header from its first bytes (all of them, or as many as a header can have).
pub(crate) fn read_header(bytes: &[u8]) -> Header {
    if bytes.len() < HEADER_HEAD_BYTES || bytes[..8] != MAGIC {
        return Header::Bad;
    }
    let version = u32_at(bytes, 8);
    if version != VERSION {
        return Header::Version(version);
    }
    let end = HEADER_HEAD_BYTES + u32_at(bytes, 12) as usize;
    if end > HEADER_HEAD_BYTES + LABEL_BYTES_MAX || bytes.len() < end + 4 {
        return Header::Bad;
    }
    let label = std::str::from_utf8(&bytes[HEADER_HEAD_BYTES..end]);
    match label {
        Ok(label) if crc32c(&bytes[..end]) == u32_at(bytes, end) => {
            Header::Sound { label: label.to_owned(), base: u64_at(bytes, 16), bytes: end + 4 }
        }
        _ => Header::Bad,
    }
}

/// Appends a record.
pub(crate) fn write_record(out: &mut Vec<u8>, offset: u64, durable: u64, entry: &Entry<'_>) {
    let start = out.len();
    let body = entry.topic.len() + entry.payload.len();
    out.reserve(RECORD_HEAD_BYTES + body);
    out.extend_from_slice(&MARKER);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&(body as u32).to_le_bytes());
    out.extend_from_slice(&(entry.topic.len() as u16).to_le_bytes());
    out.extend_from_slice(&[u8::from(entry.kind == Kind::Cut), 0]);
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(&entry.arrival.to_le_bytes());
    out.extend_from_slice(&durable.to_le_bytes());
    out.extend_from_slice(entry.topic.as_bytes());
    out.extend_from_slice(entry.payload);
    let crc = crc32c(&out[start + 8..]);
    out[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// Reads the head of a record from at least [`RECORD_HEAD_BYTES`] bytes; the error says what is
/// wrong.
pub(crate) fn read_head(bytes: &[u8]) -> Result<Head, &'static str> {
    if bytes[..4] != MARKER {
        return Err("no record begins here");
    }
    let head = Head {
        crc: u32_at(bytes, 4),
        body: u32_at(bytes, 8) as usize,
        topic: usize::from(u16::from_le_bytes([bytes[12], bytes[13]])),
        kind: bytes[14],
        offset: u64_at(bytes, 16),
        arrival: u64_at(bytes, 24) as i64,
        durable: u64_at(bytes, 32),
    };
    let possible = head.body <= BODY_BYTES_MAX && head.topic <= head.body && head.kind <= 1;
    if possible { Ok(head) } else { Err("a record's head holds impossible sizes") }
}

/// Checks a whole record (`bytes` begins at its marker and holds all of it).
pub(crate) fn check_record(head: &Head, bytes: &[u8]) -> Result<(), &'static str> {
    let end = RECORD_HEAD_BYTES + head.body;
    if crc32c(&bytes[8..end]) != head.crc {
        return Err("a record's checksum does not match its bytes");
    }
    let topic = &bytes[RECORD_HEAD_BYTES..RECORD_HEAD_BYTES + head.topic];
    std::str::from_utf8(topic).map_err(|_| "a record's topic is not UTF-8").map(|_| ())
}

/// The record of a head that was checked, and its bytes.
pub(crate) fn view<'a>(head: &Head, bytes: &'a [u8]) -> Record<'a> {
    let topic_end = RECORD_HEAD_BYTES + head.topic;
    let topic = std::str::from_utf8(&bytes[RECORD_HEAD_BYTES..topic_end]).unwrap_or_default();
    let payload = &bytes[topic_end..RECORD_HEAD_BYTES + head.body];
    let kind = if head.kind == 1 { Kind::Cut } else { Kind::Message };
    Record { offset: head.offset, entry: Entry { arrival: head.arrival, kind, topic, payload } }
}

/// The greatest `durable` of any sound record in `bytes`, wherever it begins.
pub(crate) fn durable_in(bytes: &[u8]) -> Option<u64> {
    let mut found = None;
    let mut at = 0;
    while at + RECORD_HEAD_BYTES <= bytes.len() {
        let rest = &bytes[at..];
        let sound = read_head(rest).ok().filter(|head| {
            RECORD_HEAD_BYTES + head.body <= rest.len() && check_record(head, rest).is_ok()
        });
        match sound {
            Some(head) => {
                found = found.max(Some(head.durable));
                at += RECORD_HEAD_BYTES + head.body;
            }
            None => at += 1,
        }
    }
    found
}
