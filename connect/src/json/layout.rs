//! The quick way: a bet that a message is built like one before it.
//!
//! # Idea
//! A message is cut into values, numbers and texts for the most part, and the *literals* between
//! them: brackets, names, colons, commas and white space. Producers print the same literals again
//! and again. A [`Layout`] keeps those of one message and which column each value belongs to. Where
//! all literals of another message are equal to them byte by byte, only values are left to be read.
//!
//! # Argument
//! Let the literals be those of a message M that the careful way took, and let message N be the
//! same literals around values that each are one well-formed value in valid UTF-8. Then N is
//! well-formed and valid UTF-8, because exchanging values for values keeps the grammar. Its names
//! are those of M, and a layout is only learned where no wanted name repeats, so no value is hidden
//! by a later one and what M lacked N lacks. Each value goes to the column that the careful way
//! would choose, by the same conversion or by one of the fast ones, which give a verdict only where
//! they agree with it. The depth of a value is M's, so the limit on nesting is the same. Nothing
//! but "a row" is ever answered here.
//!
//! # Complexity and limits
//! One pass, a comparison per literal. [`LAYOUTS_MAX`] layouts, so that a few kinds of message may
//! mix; when learning does not pay, it is tried ever more rarely, up to every [`PATIENCE_MAX`]
//! misses.

use std::ops::Range;

use super::column::{Columns, Data};
use super::decode::{ROOT, object_start};
use super::{number, scan};

/// Kinds of message that are known at a time.
const LAYOUTS_MAX: usize = 4;
/// Misses between two attempts to learn, at most.
const PATIENCE_MAX: u32 = 256;
/// A message with more values, or with longer literals, is not worth learning.
const SLOTS_MAX: usize = 1024;
const LITERALS_BYTES_MAX: usize = 1 << 16;

/// The layouts known, and how well they do.
#[derive(Debug, Default)]
pub(super) struct Layouts {
    known: Vec<Layout>,
    /// The layout that fitted last: it is tried first.
    recent: usize,
    /// Misses to let pass before the next attempt to learn.
    wait: u32,
    /// What `wait` starts from.
    patience: u32,
    #[cfg(test)]
    pub(super) quick: u64,
    #[cfg(test)]
    disabled: bool,
}

/// Where the values of a message are, and whose.
#[derive(Debug)]
struct Layout {
    literals: Vec<u8>,
    slots: Vec<Slot>,
    /// The last literal, from the last value to the end of the message.
    tail: Range<usize>,
    /// Columns that the message has no value for.
    absent: Vec<usize>,
    /// ROWs below the root whose objects the message has.
    rows: Vec<usize>,
    hits: u32,
}

/// A literal and the value after it.
#[derive(Debug)]
struct Slot {
    literal: Range<usize>,
    /// None is skipped.
    column: Option<usize>,
    /// Open brackets around the value.
    depth: usize,
}

impl Layouts {
    /// Tries to decode a message by the layouts known. True: it is a row; false: nothing has
    /// changed.
    #[inline]
    pub(super) fn decode(&mut self, columns: &mut Columns, message: &[u8], rows: usize) -> bool {
        for i in 0..self.known.len() {
            // The recent one first, then the others in turn.
            let i = match i {
                0 => self.recent,
                i if i <= self.recent => i - 1,
                i => i,
            };
            match self.known[i].decode(columns, message) {
                Ok(()) => {
                    self.known[i].hits = self.known[i].hits.saturating_add(1);
                    self.recent = i;
                    self.count_quick();
                    return true;
                }
                Err(Dirty(true)) => columns.truncate(ROOT, rows),
                Err(Dirty(false)) => {}
            }
        }
        false
    }

    #[cfg(test)]
    fn count_quick(&mut self) {
        self.quick += 1;
    }

    #[cfg(not(test))]
    fn count_quick(&mut self) {}

    #[cfg(test)]
    pub(super) fn disable(&mut self) {
        self.disabled = true;
    }

    /// No layout fitted this message, which the careful way has taken: learns it, if learning pays.
    pub(super) fn missed(&mut self, columns: &mut Columns, message: &[u8]) {
        #[cfg(test)]
        if self.disabled {
            return;
        }
        if self.wait > 0 {
            self.wait -= 1;
            return;
        }
        // A layout that was replaced without ever having fitted was not worth its learning.
        let replaced = match self.known.len() < LAYOUTS_MAX {
            true => None,
            false => (0..LAYOUTS_MAX).min_by_key(|&i| self.known[i].hits),
        };
        let in_vain = replaced.is_some_and(|i| self.known[i].hits == 0);
        self.patience = if in_vain { (self.patience * 2 + 1).min(PATIENCE_MAX) } else { 0 };
        self.wait = self.patience;
        for layout in &mut self.known {
            layout.hits /= 2;
        }
        if let Some(layout) = Layout::learn(columns, message) {
            self.recent = replaced.unwrap_or(self.known.len());
            match replaced {
                Some(i) => self.known[i] = layout,
                None => self.known.push(layout),
            }
        }
    }
}

/// The layout did not fit; true: columns may have entries of the message.
struct Dirty(bool);

impl Layout {
    #[inline]
    fn decode(&self, columns: &mut Columns, b: &[u8]) -> Result<(), Dirty> {
        let mut pos = 0;
        let mut dirty = false;
        for slot in &self.slots {
            pos = after(b, pos, &self.literals[slot.literal.clone()]).ok_or(Dirty(dirty))?;
            dirty = true;
            let end = match slot.column {
                Some(column) => columns.all[column].append_fast(b, pos),
                None => skip_fast(b, pos),
            };
            pos = match end {
                Some(end) => end,
                None => take(columns, slot, b, pos).ok_or(Dirty(true))?,
            };
        }
        if b[pos..] != self.literals[self.tail.clone()] {
            return Err(Dirty(dirty));
        }
        for &row in &self.rows {
            columns.all[row].nulls.append_non_null();
        }
        for &column in &self.absent {
            columns.append_missing(column, 0).map_err(|_| Dirty(true))?;
        }
        Ok(())
    }

    /// Learns the layout of a message that the careful way has taken. None: not to be had.
    fn learn(columns: &mut Columns, message: &[u8]) -> Option<Self> {
        let (literals, slots, absent, rows) = (vec![], vec![], vec![], vec![]);
        let mut layout = Self { literals, slots, tail: 0..0, absent, rows, hits: 0 };
        let mut learner = Learner { layout: &mut layout, columns, message, from: 0 };
        learner.object(Some(ROOT), object_start(message), 1)?;
        let from = learner.from;
        layout.tail = layout.add_literal(&message[from..])?;
        layout.rows.retain(|&row| row != ROOT);
        Some(layout)
    }

    fn add_literal(&mut self, literal: &[u8]) -> Option<Range<usize>> {
        let start = self.literals.len();
        self.literals.extend_from_slice(literal);
        (self.literals.len() <= LITERALS_BYTES_MAX).then_some(start..self.literals.len())
    }
}

/// Walks a message whose layout is learned. Its objects are walked into, its arrays are values.
struct Learner<'a> {
    layout: &'a mut Layout,
    columns: &'a mut Columns,
    message: &'a [u8],
    /// Where the literal begins that the next value ends.
    from: usize,
}

impl Learner<'_> {
    /// The object at `open` and the ROW it is for, if any. Recursion is bounded by
    /// `scan::DEPTH_MAX`.
    fn object(&mut self, row: Option<usize>, open: usize, depth: usize) -> Option<usize> {
        let b = self.message;
        let mut wanted = row.map(|row| self.children(row)).unwrap_or_default();
        let mut likely = 0;
        let mut pos = scan::space(b, open + 1);
        while b.get(pos) != Some(&b'}') {
            let (name, at) = scan::name(b, pos).ok()?;
            let mut column = None;
            if let Some(field) = row.and_then(|row| self.field(row, name, likely)) {
                // A wanted name that repeats: which value counts is the careful way's business.
                column = Some(wanted[field].take()?);
                likely = field + 1;
            }
            let is_row = |id: usize| matches!(self.columns.all[id].data, Data::Row(_));
            let end = match b.get(at) {
                Some(b'{') if column.is_none_or(is_row) => self.object(column, at, depth + 1)?,
                _ => self.value(column, at, depth)?,
            };
            pos = scan::space(b, end);
            if b.get(pos) == Some(&b',') {
                pos = scan::space(b, pos + 1);
            }
        }
        self.layout.absent.extend(wanted.into_iter().flatten());
        self.layout.rows.extend(row);
        Some(pos + 1)
    }

    fn value(&mut self, column: Option<usize>, at: usize, depth: usize) -> Option<usize> {
        let value = scan::value(self.message, at, depth).ok()?;
        let literal = self.layout.add_literal(&self.message[self.from..at])?;
        self.layout.slots.push(Slot { literal, column, depth });
        self.from = value.end;
        (self.layout.slots.len() <= SLOTS_MAX).then_some(value.end)
    }

    fn children(&mut self, row: usize) -> Vec<Option<usize>> {
        match &self.columns.all[row].data {
            Data::Row(fields) => fields.columns.iter().copied().map(Some).collect(),
            _ => vec![],
        }
    }

    fn field(&mut self, row: usize, name: scan::Value, likely: usize) -> Option<usize> {
        match &mut self.columns.all[row].data {
            Data::Row(fields) => fields.field(self.message, name, likely),
            _ => None,
        }
    }
}

/// Where `literal` ends, if it is what stands at `pos`.
///
/// Literals have ten bytes or so: two loads that overlap beat a call.
#[inline]
fn after(b: &[u8], pos: usize, literal: &[u8]) -> Option<usize> {
    let end = pos + literal.len();
    let there = b.get(pos..end)?;
    let equal = match (there.first_chunk::<8>(), literal.first_chunk::<8>()) {
        (Some(first), Some(expected)) if literal.len() <= 16 => {
            first == expected && there.last_chunk::<8>() == literal.last_chunk::<8>()
        }
        _ => there == literal,
    };
    equal.then_some(end)
}

/// Skips a text of plain ASCII or a short number. None is no verdict.
#[inline]
fn skip_fast(b: &[u8], pos: usize) -> Option<usize> {
    match b.get(pos)? {
        b'"' => {
            let end = scan::plain(b, pos + 1, scan::BEYOND_ASCII);
            (b.get(end) == Some(&b'"')).then_some(end + 1)
        }
        _ => number::double_fast(b, pos).map(|(_, end)| end),
    }
}

/// Takes any other value: checked, converted and appended as the careful way does it.
#[cold]
fn take(columns: &mut Columns, slot: &Slot, b: &[u8], pos: usize) -> Option<usize> {
    let value = scan::value(b, pos, slot.depth).ok()?;
    // A value begins and ends in ASCII, so it is valid by itself or not at all.
    std::str::from_utf8(value.source(b)).ok()?;
    if let Some(column) = slot.column {
        columns.append(column, b, value).ok()?;
    }
    Some(value.end)
}
