//! The grammar of RFC 8259: finds the end of a value and refuses everything that is no JSON.
//!
//! # Invariant
//! A function that returns `Ok(end)` has proved the bytes up to `end` to be well-formed, escapes
//! and surrogate pairs included; only UTF-8 is left to the caller. Kept and skipped values take
//! this same way, so a skipped value is checked no less than a kept one.
//!
//! # Complexity and limits
//! One pass, no recursion, no allocation: open brackets are bits in a fixed array, so that twenty
//! thousand of them are an error and no stack overflow. [`DEPTH_MAX`] bounds them.

use super::{Fault, Reason};

/// Levels of arrays and objects in one message, the message's own object included.
pub(super) const DEPTH_MAX: usize = 512;

/// A well-formed value: what it is, and its bytes `start..end` of the message, quotes included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) kind: Kind,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// What a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Null,
    True,
    False,
    Number,
    /// Text whose bytes between the quotes are the characters themselves.
    Plain,
    /// Text with at least one backslash.
    Escaped,
    Object,
    Array,
}

impl Value {
    /// The bytes of the value as they stand in the message.
    pub(super) fn source(self, message: &[u8]) -> &[u8] {
        &message[self.start..self.end]
    }

    /// What stands between the quotes of a text, escapes and all.
    pub(super) fn inner(self, message: &[u8]) -> &[u8] {
        debug_assert!(matches!(self.kind, Kind::Plain | Kind::Escaped));
        &message[self.start + 1..self.end - 1]
    }
}

/// The value that starts at `pos`, below `depth` open brackets.
pub(super) fn value(b: &[u8], pos: usize, depth: usize) -> Result<Value, Fault> {
    match b.get(pos) {
        Some(b'{') => Ok(Value { kind: Kind::Object, start: pos, end: nested(b, pos, depth)? }),
        Some(b'[') => Ok(Value { kind: Kind::Array, start: pos, end: nested(b, pos, depth)? }),
        _ => scalar(b, pos),
    }
}

/// The first byte at or after `pos` that is no white space.
#[inline]
pub(super) fn space(b: &[u8], mut pos: usize) -> usize {
    while let Some(b' ' | b'\t' | b'\n' | b'\r') = b.get(pos) {
        pos += 1;
    }
    pos
}

/// A name and its colon: the name as a text value, and where its value starts.
#[inline]
pub(super) fn name(b: &[u8], pos: usize) -> Result<(Value, usize), Fault> {
    if b.get(pos) != Some(&b'"') {
        return Err(Fault::grammar(pos, "a name in double quotes"));
    }
    let name = text(b, pos)?;
    let colon = space(b, name.end);
    if b.get(colon) != Some(&b':') {
        return Err(Fault::grammar(colon, "a colon"));
    }
    Ok((name, space(b, colon + 1)))
}

#[inline]
fn scalar(b: &[u8], pos: usize) -> Result<Value, Fault> {
    match b.get(pos) {
        Some(b'"') => text(b, pos),
        Some(b'-' | b'0'..=b'9') => {
            Ok(Value { kind: Kind::Number, start: pos, end: number(b, pos)? })
        }
        Some(b't') => literal(b, pos, b"true", Kind::True),
        Some(b'f') => literal(b, pos, b"false", Kind::False),
        Some(b'n') => literal(b, pos, b"null", Kind::Null),
        _ => Err(Fault::grammar(pos, "a value")),
    }
}

#[inline]
fn literal(b: &[u8], start: usize, word: &[u8], kind: Kind) -> Result<Value, Fault> {
    if b[start..].starts_with(word) {
        return Ok(Value { kind, start, end: start + word.len() });
    }
    Err(Fault::grammar(start, "a value"))
}

/// The text whose opening quote is at `start`.
#[inline]
pub(super) fn text(b: &[u8], start: usize) -> Result<Value, Fault> {
    let mut kind = Kind::Plain;
    let mut pos = start + 1;
    loop {
        pos = plain(b, pos, 0);
        match b.get(pos) {
            Some(b'"') => return Ok(Value { kind, start, end: pos + 1 }),
            Some(b'\\') => {
                kind = Kind::Escaped;
                pos = escape(b, pos)?;
            }
            Some(_) => return Err(Fault::grammar(pos, "an escape for this control character")),
            None => return Err(Fault::grammar(pos, "the end of a text")),
        }
    }
}

const LOW: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;

/// The first quote, backslash or control character at or after `pos`, or the end; with `also` set
/// to [`BEYOND_ASCII`] the first byte that is not ASCII too.
///
/// Eight bytes at a time: subtracting sets the high bit of each byte that was below the bound. A
/// borrow can only make a *higher* byte look special, and the lowest one decides, so it never lies.
#[inline]
pub(super) fn plain(b: &[u8], mut pos: usize, also: u64) -> usize {
    while let Some(chunk) = b.get(pos..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*chunk);
        let quote = word ^ (LOW * b'"' as u64);
        let backslash = word ^ (LOW * b'\\' as u64);
        let special = (quote.wrapping_sub(LOW) & !quote)
            | (backslash.wrapping_sub(LOW) & !backslash)
            | (word.wrapping_sub(LOW * 0x20) & !word)
            | (word & also);
        if special & HIGH != 0 {
            return pos + ((special & HIGH).trailing_zeros() / 8) as usize;
        }
        pos += 8;
    }
    while let Some(&byte) = b.get(pos) {
        if byte == b'"' || byte == b'\\' || byte < 0x20 || (also != 0 && byte >= 0x80) {
            break;
        }
        pos += 1;
    }
    pos
}

/// Makes [`plain`] stop at bytes that are not ASCII as well.
pub(super) const BEYOND_ASCII: u64 = HIGH;

/// The end of the escape whose backslash is at `pos`. A surrogate pair is one escape.
fn escape(b: &[u8], pos: usize) -> Result<usize, Fault> {
    match b.get(pos + 1) {
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(pos + 2),
        Some(b'u') => match hex(b, pos + 2) {
            Some(0xD800..0xDC00) => {
                let second = b.get(pos + 6) == Some(&b'\\') && b.get(pos + 7) == Some(&b'u');
                match hex(b, pos + 8).filter(|_| second) {
                    Some(0xDC00..0xE000) => Ok(pos + 12),
                    _ => Err(Fault::new(pos, Reason::LoneSurrogate)),
                }
            }
            Some(0xDC00..0xE000) => Err(Fault::new(pos, Reason::LoneSurrogate)),
            Some(_) => Ok(pos + 6),
            None => Err(Fault::grammar(pos, "four hexadecimal digits after \\u")),
        },
        _ => Err(Fault::grammar(pos, "an escape that JSON has")),
    }
}

/// Four hexadecimal digits at `pos`, and no sign: `from_str_radix` would take one.
#[inline]
pub(super) fn hex(b: &[u8], pos: usize) -> Option<u32> {
    let digits = b.get(pos..pos + 4)?;
    digits.iter().try_fold(0, |n, &d| Some(n * 16 + (d as char).to_digit(16)?))
}

/// The end of the number at `pos`, by the letter of RFC 8259 §6.
#[inline]
fn number(b: &[u8], start: usize) -> Result<usize, Fault> {
    let mut pos = start + usize::from(b.get(start) == Some(&b'-'));
    pos = match b.get(pos) {
        Some(b'0') => pos + 1,
        Some(b'1'..=b'9') => digits(b, pos),
        _ => return Err(Fault::grammar(pos, "a digit")),
    };
    if b.get(pos) == Some(&b'.') {
        pos = some_digits(b, pos + 1)?;
    }
    if let Some(b'e' | b'E') = b.get(pos) {
        let sign = usize::from(matches!(b.get(pos + 1), Some(b'+' | b'-')));
        pos = some_digits(b, pos + 1 + sign)?;
    }
    Ok(pos)
}

#[inline]
fn digits(b: &[u8], mut pos: usize) -> usize {
    while let Some(b'0'..=b'9') = b.get(pos) {
        pos += 1;
    }
    pos
}

#[inline]
fn some_digits(b: &[u8], pos: usize) -> Result<usize, Fault> {
    match digits(b, pos) {
        end if end > pos => Ok(end),
        _ => Err(Fault::grammar(pos, "a digit")),
    }
}

/// The end of the array or object that starts at `start`, below `depth` open brackets.
fn nested(b: &[u8], start: usize, depth: usize) -> Result<usize, Fault> {
    let mut open = Brackets { bits: [0; DEPTH_MAX / 64], count: 0, count_max: DEPTH_MAX - depth };
    let mut pos = start;
    loop {
        // `pos` is where a value has to start.
        match b.get(pos) {
            Some(bracket @ (b'{' | b'[')) => {
                let object = *bracket == b'{';
                open.push(object, pos)?;
                pos = space(b, pos + 1);
                if b.get(pos) != Some(&(if object { b'}' } else { b']' })) {
                    pos = if object { name(b, pos)?.1 } else { pos };
                    continue;
                }
                open.count -= 1;
                pos += 1;
            }
            _ => pos = scalar(b, pos)?.end,
        }
        // A value has ended: close what closes here, until a comma asks for the next value.
        loop {
            if open.count == 0 {
                return Ok(pos);
            }
            pos = space(b, pos);
            match (b.get(pos), open.in_object()) {
                (Some(b','), true) => pos = name(b, space(b, pos + 1))?.1,
                (Some(b','), false) => pos = space(b, pos + 1),
                (Some(b'}'), true) | (Some(b']'), false) => {
                    open.count -= 1;
                    pos += 1;
                    continue;
                }
                (_, true) => return Err(Fault::grammar(pos, "a comma or }")),
                (_, false) => return Err(Fault::grammar(pos, "a comma or ]")),
            }
            break;
        }
    }
}

/// The open brackets around a place: bit i is set where the i-th is an object's.
struct Brackets {
    bits: [u64; DEPTH_MAX / 64],
    count: usize,
    count_max: usize,
}

impl Brackets {
    fn push(&mut self, object: bool, at: usize) -> Result<(), Fault> {
        if self.count >= self.count_max {
            return Err(Fault::new(at, Reason::TooDeep));
        }
        let (word, bit) = (self.count / 64, self.count % 64);
        self.bits[word] = self.bits[word] & !(1 << bit) | (u64::from(object) << bit);
        self.count += 1;
        Ok(())
    }

    fn in_object(&self) -> bool {
        let last = self.count - 1;
        self.bits[last / 64] >> (last % 64) & 1 == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eight_bytes_at_a_time_see_what_one_at_a_time_sees() {
        let naive = |b: &[u8], pos: usize, also: u64| {
            let special = |&c: &u8| {
                c == b'"' || c == b'\\' || c < 0x20 || (also == BEYOND_ASCII && c >= 0x80)
            };
            b[pos..].iter().position(special).map_or(b.len(), |n| pos + n)
        };
        // Two bytes of any kind in plain text: the second one must not hide or fake the first.
        for (first, second) in (0..=255).flat_map(|a| (0..=255).map(move |b| (a, b))) {
            for place in [0, 3, 6, 7, 8, 15, 17] {
                let mut text = *b"plain text of 20 by.";
                (text[place], text[place + 1]) = (first, second);
                for (pos, also) in [(0, 0), (0, BEYOND_ASCII), (1, 0), (5, BEYOND_ASCII)] {
                    let (fast, slow) = (plain(&text, pos, also), naive(&text, pos, also));
                    assert_eq!(fast, slow, "{first:#x} {second:#x} at {place} from {pos}");
                }
            }
        }
    }
}
