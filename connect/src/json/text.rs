//! Texts: escapes undone and written, objects and arrays as compact text, base64.
//!
//! What is read here has passed `scan`, so nothing is checked twice; input that had not would give
//! wrong text, never a panic. What is written follows Jackson: the least escapes, the other control
//! characters as `\u` with four capital digits.

use std::collections::HashMap;
use std::ops::Range;

use super::scan;

/// Appends the characters that `inner`, the part between the quotes, stands for.
pub(super) fn unescape(inner: &[u8], out: &mut Vec<u8>) {
    let mut pos = 0;
    while pos < inner.len() {
        let next = inner[pos..].iter().position(|&c| c == b'\\').map_or(inner.len(), |n| pos + n);
        out.extend_from_slice(&inner[pos..next]);
        let Some(&letter) = inner.get(next + 1) else { return };
        pos = next + 2;
        match letter {
            b'b' => out.push(0x08),
            b'f' => out.push(0x0C),
            b'n' => out.push(b'\n'),
            b'r' => out.push(b'\r'),
            b't' => out.push(b'\t'),
            b'u' => pos = unescape_unicode(inner, pos, out),
            other => out.push(other),
        }
    }
}

/// Appends the character of the `\u` escape whose digits start at `pos`, and returns its end.
fn unescape_unicode(inner: &[u8], pos: usize, out: &mut Vec<u8>) -> usize {
    let mut end = pos + 4;
    let mut code = scan::hex(inner, pos).unwrap_or_default();
    if (0xD800..0xDC00).contains(&code) {
        let low = scan::hex(inner, pos + 6).unwrap_or_default();
        code = 0x10000 + ((code - 0xD800) << 10) + (low & 0x3FF);
        end += 6;
    }
    let character = char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER);
    out.extend_from_slice(character.encode_utf8(&mut [0; 4]).as_bytes());
    end
}

/// Writes a text in quotes with the least escapes.
pub(super) fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    out.push(b'"');
    let mut pos = 0;
    loop {
        let next = scan::plain(text, pos, 0);
        out.extend_from_slice(&text[pos..next]);
        let Some(&special) = text.get(next) else { break };
        match special {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', special]),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0C => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            other => {
                const HEX: &[u8; 16] = b"0123456789ABCDEF";
                out.extend_from_slice(b"\\u00");
                out.push(HEX[usize::from(other >> 4)]);
                out.push(HEX[usize::from(other & 15)]);
            }
        }
        pos = next + 1;
    }
    out.push(b'"');
}

/// Appends the well-formed value at `pos` without white space, and returns its end: a STRING
/// column's view of an object or array. Numbers keep their source text; of a repeated name the last
/// value wins and stands where the first one stood. Recursion is bounded by `scan::DEPTH_MAX`.
pub(super) fn compact(b: &[u8], pos: usize, out: &mut Vec<u8>) -> usize {
    match b.get(pos) {
        Some(b'"') => {
            let Ok(text) = scan::text(b, pos) else { return b.len() };
            match text.kind {
                scan::Kind::Plain => out.extend_from_slice(text.source(b)),
                _ => {
                    let mut plain = Vec::with_capacity(text.end - pos);
                    unescape(text.inner(b), &mut plain);
                    write_text(out, &plain);
                }
            }
            text.end
        }
        Some(b'{') => compact_object(b, pos, out),
        Some(b'[') => {
            out.push(b'[');
            let mut pos = scan::space(b, pos + 1);
            while !matches!(b.get(pos), Some(b']') | None) {
                pos = scan::space(b, compact(b, pos, out));
                if b.get(pos) == Some(&b',') {
                    out.push(b',');
                    pos = scan::space(b, pos + 1);
                }
            }
            out.push(b']');
            pos + 1
        }
        _ => {
            let Ok(value) = scan::value(b, pos, 0) else { return b.len() };
            out.extend_from_slice(value.source(b));
            value.end
        }
    }
}

fn compact_object(b: &[u8], open: usize, out: &mut Vec<u8>) -> usize {
    let start = out.len();
    let mut members: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    out.push(b'{');
    let mut pos = scan::space(b, open + 1);
    while !matches!(b.get(pos), Some(b'}') | None) {
        let name_start = out.len();
        pos = scan::space(b, compact(b, pos, out));
        let name = name_start..out.len();
        out.push(b':');
        let value_start = out.len();
        // Here `pos` is at the colon.
        pos = scan::space(b, compact(b, scan::space(b, pos + 1), out));
        members.push((name, value_start..out.len()));
        if b.get(pos) == Some(&b',') {
            out.push(b',');
            pos = scan::space(b, pos + 1);
        }
    }
    out.push(b'}');
    let mut last: HashMap<&[u8], Range<usize>> = HashMap::with_capacity(members.len());
    for (name, value) in &members {
        last.insert(&out[name.clone()], value.clone());
    }
    if last.len() < members.len() {
        let mut once = vec![b'{'];
        for (name, _) in &members {
            // Taken out of the map at its first place, a name is written once.
            if let Some(value) = last.remove(&out[name.clone()]) {
                if once.len() > 1 {
                    once.push(b',');
                }
                once.extend_from_slice(&out[name.clone()]);
                once.push(b':');
                once.extend_from_slice(&out[value]);
            }
        }
        once.push(b'}');
        out.truncate(start);
        out.extend_from_slice(&once);
    }
    pos + 1
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Sextets by letter; 64 and above is no letter of the alphabet.
const SEXTETS: [u8; 256] = {
    let mut table = [64; 256];
    let mut i = 0;
    while i < 64 {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// Appends what base64 (RFC 4648 §4, with padding) stands for; false if it is not base64. Left-over
/// bits are ignored, as Jackson and Python do.
pub(super) fn decode_base64(text: &[u8], out: &mut Vec<u8>) -> bool {
    let (groups, rest) = text.as_chunks::<4>();
    if !rest.is_empty() {
        return false;
    }
    for (i, group) in groups.iter().enumerate() {
        let padding = match group {
            [_, _, b'=', b'='] => 2,
            [_, _, _, b'='] => 1,
            _ => 0,
        };
        if padding > 0 && i + 1 < groups.len() {
            return false;
        }
        let mut bits = 0u32;
        for &letter in &group[..4 - padding] {
            let sextet = SEXTETS[usize::from(letter)];
            if sextet >= 64 {
                return false;
            }
            bits = bits << 6 | u32::from(sextet);
        }
        let [_, bytes @ ..] = (bits << (6 * padding)).to_be_bytes();
        out.extend_from_slice(&bytes[..3 - padding]);
    }
    true
}

/// Writes base64 with padding, without quotes.
pub(super) fn write_base64(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or_default());
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let letter = ALPHABET[(bits >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { letter } else { b'=' });
        }
    }
}
