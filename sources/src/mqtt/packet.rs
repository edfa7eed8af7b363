//! The packets of MQTT 3.1.1 and 5 that a subscriber and a small broker need, and nothing more.
//!
//! Sources: OASIS MQTT 3.1.1 (2014) and MQTT 5 (2019). Bodies are parsed in place, without a copy.
//!
//! # Why not a client library's
//! A message beyond the size limit must be read past and acknowledged: a library that breaks the
//! connection instead gets the same message again from a persistent session, for ever. And an
//! acknowledgement belongs to the connection it answers: here it cannot outlive it.
//!
//! # Limits
//! No QoS 2, no topic aliases (never offered), no enhanced authentication, no wills.

use std::io::{self, Read};
use thiserror::Error;

/// A protocol version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// MQTT 3.1.1.
    V311,
    /// MQTT 5.
    V5,
}

pub(crate) const CONNECT: u8 = 1;
pub(crate) const CONNACK: u8 = 2;
pub(crate) const PUBLISH: u8 = 3;
pub(crate) const PUBACK: u8 = 4;
pub(crate) const SUBSCRIBE: u8 = 8;
pub(crate) const SUBACK: u8 = 9;
pub(crate) const UNSUBSCRIBE: u8 = 10;
pub(crate) const UNSUBACK: u8 = 11;
pub(crate) const PINGREQ: u8 = 12;
pub(crate) const PINGRESP: u8 = 13;
pub(crate) const DISCONNECT: u8 = 14;

/// Greatest value of a packet's "remaining length".
const BODY_BYTES_MAX: usize = 268_435_455;
/// Of a packet beyond the limit at least this much is kept: topic, packet id and first bytes.
const KEPT_BYTES_MIN: usize = 128 << 10;
const READ_BYTES: usize = 256 << 10;

/// Bytes that are no MQTT.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the peer does not speak MQTT: {0}")]
pub(crate) struct Malformed(pub(crate) &'static str);

/// A packet: its kind and flags, and what follows its length.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    first: u8,
    /// The body; only its beginning for a packet beyond the limit.
    pub(crate) body: &'a [u8],
    /// The body's whole size in bytes.
    pub(crate) whole: usize,
}

impl Frame<'_> {
    /// The kind, for instance [`PUBLISH`].
    pub(crate) fn kind(&self) -> u8 {
        self.first >> 4
    }
}

/// Cuts a stream of bytes into packets. Holds at most one packet of the limit and one read.
#[derive(Debug)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    limit: usize,
    /// Bytes of the frame given last, or of what is to be kept of a packet beyond the limit.
    used: usize,
    /// Bytes of the current packet to be read past.
    skip: usize,
}

impl Frames {
    /// Packets with bodies of up to `limit` bytes are given whole.
    pub(crate) fn new(limit: usize) -> Frames {
        Frames { buffer: Vec::new(), start: 0, end: 0, limit, used: 0, skip: 0 }
    }

    /// Reads once; the number of bytes, 0 at the stream's end. Call when `next` gave `None`.
    pub(crate) fn fill(&mut self, from: &mut impl Read) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        if self.buffer.len() < self.end + READ_BYTES {
            self.buffer.resize(self.end + READ_BYTES, 0);
        }
        let read = from.read(&mut self.buffer[self.end..])?;
        self.end += read;
        Ok(read)
    }

    /// The next packet, if all of it is there.
    pub(crate) fn next(&mut self) -> Result<Option<Frame<'_>>, Malformed> {
        self.start += std::mem::take(&mut self.used);
        let bytes = &self.buffer[self.start..self.end];
        let Some((whole, head)) = remaining_length(bytes)? else { return Ok(None) };
        let kept =
            if whole <= self.limit { whole } else { whole.min(self.limit.max(KEPT_BYTES_MIN)) };
        if bytes.len() < head + kept {
            return Ok(None);
        }
        // What is beyond the limit is dropped as it comes, behind the part that is kept.
        let over = (bytes.len() - head - kept).min(whole - kept - self.skip);
        if over > 0 {
            let gap = self.start + head + kept;
            self.buffer.copy_within(gap + over..self.end, gap);
            self.end -= over;
            self.skip += over;
        }
        if kept + self.skip < whole {
            return Ok(None);
        }
        self.skip = 0;
        self.used = head + kept;
        let packet = &self.buffer[self.start..self.start + head + kept];
        Ok(Some(Frame { first: packet[0], body: &packet[head..], whole }))
    }
}

/// The remaining length and the size of the fixed header, once they are there.
fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>, Malformed> {
    match bytes.get(1..).map(varint) {
        None | Some(Varint::Short) => Ok(None),
        Some(Varint::Bad) => Err(Malformed("a length of more than four bytes")),
        Some(Varint::Value(value, size)) => Ok(Some((value, 1 + size))),
    }
}

enum Varint {
    Short,
    Bad,
    Value(usize, usize),
}

fn varint(bytes: &[u8]) -> Varint {
    let mut value = 0;
    for (n, byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * n);
        if byte & 0x80 == 0 {
            return Varint::Value(value, n + 1);
        }
    }
    if bytes.len() < 4 { Varint::Short } else { Varint::Bad }
}

/// Takes fields off a body, one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) =
            self.0.split_at_checked(bytes).ok_or(Malformed("a packet ends within a field"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn binary(&mut self) -> Result<&'a [u8], Malformed> {
        let size = self.u16()?;
        self.take(usize::from(size))
    }

    fn text(&mut self) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.binary()?).map_err(|_| Malformed("a text that is not UTF-8"))
    }

    fn properties(&mut self) -> Result<Fields<'a>, Malformed> {
        match varint(self.0) {
            Varint::Value(size, head) => {
                self.take(head)?;
                Ok(Fields(self.take(size)?))
            }
            _ => Err(Malformed("properties without a length")),
        }
    }
}

/// A message as it travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Publish<'a> {
    pub(crate) qos: u8,
    pub(crate) topic: &'a str,
    /// 0 with QoS 0.
    pub(crate) packet_id: u16,
    pub(crate) payload: &'a [u8],
}

/// Reads a PUBLISH packet.
pub(crate) fn read_publish<'a>(
    frame: &Frame<'a>,
    protocol: Protocol,
) -> Result<Publish<'a>, Malformed> {
    let qos = frame.first >> 1 & 3;
    let mut fields = Fields(frame.body);
    let topic = fields.text()?;
    let packet_id = match qos {
        0 => 0,
        1 => fields.u16()?,
        _ => return Err(Malformed("a message of QoS 2")),
    };
    if protocol == Protocol::V5 {
        fields.properties()?;
    }
    Ok(Publish { qos, topic, packet_id, payload: fields.0 })
}

/// A broker's answer to CONNECT.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ConnAck {
    pub(crate) session_present: bool,
    /// 0 for accepted.
    pub(crate) code: u8,
    /// What the broker says about it (MQTT 5).
    pub(crate) reason: Option<String>,
    /// The keep-alive in seconds that the broker asks for instead (MQTT 5).
    pub(crate) keep_alive: Option<u16>,
}

/// Reads a CONNACK packet. A broker that does not know MQTT 5 answers without properties.
pub(crate) fn read_connack(body: &[u8]) -> Result<ConnAck, Malformed> {
    let mut fields = Fields(body);
    let mut ack = ConnAck {
        session_present: fields.u8()? & 1 == 1,
        code: fields.u8()?,
        ..ConnAck::default()
    };
    if fields.0.is_empty() {
        return Ok(ack);
    }
    let mut properties = fields.properties()?;
    while !properties.0.is_empty() {
        match properties.u8()? {
            0x13 => ack.keep_alive = Some(properties.u16()?),
            0x1F => ack.reason = Some(properties.text()?.to_owned()),
            0x24 | 0x25 | 0x28..=0x2A => drop(properties.take(1)?),
            0x21 | 0x22 => drop(properties.take(2)?),
            0x11 | 0x27 => drop(properties.take(4)?),
            0x12 | 0x15 | 0x16 | 0x1A | 0x1C => drop(properties.binary()?),
            0x26 => {
                properties.binary()?;
                properties.binary()?;
            }
            _ => return Err(Malformed("an unknown property of CONNACK")),
        }
    }
    Ok(ack)
}

/// The code of the single subscription that a SUBACK answers; 0x80 and above is a refusal.
pub(crate) fn read_suback(body: &[u8], protocol: Protocol) -> Result<u8, Malformed> {
    let mut fields = Fields(body);
    fields.u16()?;
    if protocol == Protocol::V5 {
        fields.properties()?;
    }
    fields.u8()
}

/// The packet id at the start of a body (PUBACK).
pub(crate) fn read_packet_id(body: &[u8]) -> Result<u16, Malformed> {
    Fields(body).u16()
}

/// A client's first packet, as far as a small broker cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// 4 for MQTT 3.1.1.
    pub(crate) level: u8,
    pub(crate) client_id: String,
    pub(crate) clean_session: bool,
    pub(crate) keep_alive_s: u16,
}

/// Reads a CONNECT packet of MQTT 3.1.1; of another version only `level` means anything.
pub(crate) fn read_connect(body: &[u8]) -> Result<Hello, Malformed> {
    let mut fields = Fields(body);
    if fields.text()? != "MQTT" {
        return Err(Malformed("CONNECT of another protocol"));
    }
    let level = fields.u8()?;
    let clean_session = fields.u8()? & 2 != 0;
    let keep_alive_s = fields.u16()?;
    let client_id = if level == 4 { fields.text()?.to_owned() } else { String::new() };
    Ok(Hello { level, client_id, clean_session, keep_alive_s })
}

/// Topic filters, each with the QoS asked for.
type Filters<'a> = Vec<(&'a str, u8)>;

/// Packet id and filters of a SUBSCRIBE (3.1.1).
pub(crate) fn read_subscribe(body: &[u8]) -> Result<(u16, Filters<'_>), Malformed> {
    let mut fields = Fields(body);
    let packet_id = fields.u16()?;
    let mut filters = Vec::new();
    while !fields.0.is_empty() {
        filters.push((fields.text()?, fields.u8()? & 3));
    }
    Ok((packet_id, filters))
}

/// Packet id and topic filters of an UNSUBSCRIBE (3.1.1).
pub(crate) fn read_unsubscribe(body: &[u8]) -> Result<(u16, Vec<&str>), Malformed> {
    let mut fields = Fields(body);
    let packet_id = fields.u16()?;
    let mut filters = Vec::new();
    while !fields.0.is_empty() {
        filters.push(fields.text()?);
    }
    Ok((packet_id, filters))
}

/// What a CONNECT packet says.
#[derive(Clone, Debug)]
pub(crate) struct Connect<'a> {
    pub(crate) protocol: Protocol,
    pub(crate) client_id: &'a str,
    pub(crate) clean_session: bool,
    pub(crate) keep_alive_s: u16,
    pub(crate) username: Option<&'a str>,
    pub(crate) password: Option<&'a str>,
    /// MQTT 5: how long the broker keeps the session of a client that is away.
    pub(crate) session_expiry_s: u32,
}

fn put_length(out: &mut Vec<u8>, mut value: usize) {
    debug_assert!(value <= BODY_BYTES_MAX);
    loop {
        let low = (value & 0x7F) as u8;
        value >>= 7;
        out.push(if value > 0 { low | 0x80 } else { low });
        if value == 0 {
            return;
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

/// Appends a packet of these flags and this body.
pub(crate) fn write_packet(out: &mut Vec<u8>, kind: u8, flags: u8, body: &[u8]) {
    out.push(kind << 4 | flags);
    put_length(out, body.len());
    out.extend_from_slice(body);
}

/// Appends a CONNECT packet.
pub(crate) fn write_connect(out: &mut Vec<u8>, connect: &Connect<'_>) {
    /// With MQTT 5 a client may ask for a larger window than the broker's default.
    const RECEIVE_MAX: u16 = 8_192;
    let mut body = Vec::new();
    put_text(&mut body, b"MQTT");
    body.push(if connect.protocol == Protocol::V5 { 5 } else { 4 });
    let flag = |on: bool, bit: u8| u8::from(on) << bit;
    body.push(
        flag(connect.clean_session, 1)
            | flag(connect.password.is_some(), 6)
            | flag(connect.username.is_some(), 7),
    );
    body.extend_from_slice(&connect.keep_alive_s.to_be_bytes());
    if connect.protocol == Protocol::V5 {
        let mut properties = vec![0x11];
        properties.extend_from_slice(&connect.session_expiry_s.to_be_bytes());
        properties.push(0x21);
        properties.extend_from_slice(&RECEIVE_MAX.to_be_bytes());
        put_length(&mut body, properties.len());
        body.extend_from_slice(&properties);
    }
    put_text(&mut body, connect.client_id.as_bytes());
    for text in [connect.username, connect.password].into_iter().flatten() {
        put_text(&mut body, text.as_bytes());
    }
    write_packet(out, CONNECT, 0, &body);
}

/// Appends a SUBSCRIBE packet for one topic filter.
pub(crate) fn write_subscribe(out: &mut Vec<u8>, protocol: Protocol, filter: &str, qos: u8) {
    let mut body = vec![0, 1];
    if protocol == Protocol::V5 {
        body.push(0);
    }
    put_text(&mut body, filter.as_bytes());
    body.push(qos);
    write_packet(out, SUBSCRIBE, 2, &body);
}

/// Appends a PUBACK packet, which is the same in both versions.
pub(crate) fn write_puback(out: &mut Vec<u8>, packet_id: u16) {
    write_packet(out, PUBACK, 0, &packet_id.to_be_bytes());
}

/// Appends a PUBLISH packet of MQTT 3.1.1.
pub(crate) fn write_publish(out: &mut Vec<u8>, publish: &Publish<'_>, again: bool) {
    let id_bytes = if publish.qos > 0 { 2 } else { 0 };
    out.push(PUBLISH << 4 | u8::from(again) << 3 | publish.qos << 1);
    put_length(out, 2 + publish.topic.len() + id_bytes + publish.payload.len());
    put_text(out, publish.topic.as_bytes());
    if publish.qos > 0 {
        out.extend_from_slice(&publish.packet_id.to_be_bytes());
    }
    out.extend_from_slice(publish.payload);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn publish(topic: &str, packet_id: u16, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_publish(&mut out, &Publish { qos: 1, topic, packet_id, payload }, false);
        out
    }

    /// Gives the stream out a few bytes at a time.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = self.0.len().min(self.1).min(into.len());
            into[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    #[test]
    fn packets_are_found_however_the_bytes_arrive_and_too_large_ones_are_read_past() {
        let mut stream = publish("a/b", 1, b"first");
        stream.extend(publish("a/large", 2, &vec![7; 300_000]));
        stream.extend(publish("a/b", 3, b""));
        for step in [1, 7, 1_000, 1 << 20] {
            let (mut frames, mut from) = (Frames::new(1_000), Dribble(&stream, step));
            let mut seen = Vec::new();
            loop {
                while let Some(frame) = frames.next().unwrap() {
                    let read = read_publish(&frame, Protocol::V311).unwrap();
                    let cut = frame.body.len() < frame.whole;
                    seen.push((read.topic.to_owned(), read.packet_id, read.payload.len(), cut));
                }
                if frames.fill(&mut from).unwrap() == 0 {
                    break;
                }
            }
            assert_eq!(seen[0], ("a/b".to_owned(), 1, 5, false));
            assert_eq!((seen[1].1, seen[1].3), (2, true));
            assert_eq!(seen[2], ("a/b".to_owned(), 3, 0, false), "{step} bytes at a time");
            assert!(frames.buffer.len() < KEPT_BYTES_MIN + 2 * READ_BYTES);
        }
    }

    #[test]
    fn what_is_no_mqtt_is_refused() {
        let mut frames = Frames::new(100);
        frames.fill(&mut Dribble(b"0\xFF\xFF\xFF\xFF\x01", 9)).unwrap();
        assert!(frames.next().is_err());
        let body = [0, 9, b'a'];
        let frame = Frame { first: PUBLISH << 4, body: &body, whole: 3 };
        assert!(read_publish(&frame, Protocol::V311).is_err());
    }

    #[test]
    fn a_connack_of_version_5_gives_keep_alive_and_reason() {
        let body = [0, 0x87, 11, 0x13, 0, 20, 0x24, 1, 0x1F, 0, 3, b'n', b'o', b'!'];
        let ack = read_connack(&body).unwrap();
        assert_eq!((ack.code, ack.keep_alive), (0x87, Some(20)));
        assert_eq!(ack.reason.as_deref(), Some("no!"));
        assert!(read_connack(&[1, 0]).unwrap().session_present);
    }
}
