//! What the targets have to hold, computed naively over what the splits hold.
//!
//! # Limits
//! What is late depends on marks alone, and so on the splits, where none was ever idle and all were
//! there from the beginning. Else it is only known how many rows a key has, and their sum.

use std::collections::BTreeMap;

use super::rows::{DELAY, KEYS_OF_LATER, Line, Row, WINDOW};
use crate::time::{MARK_END, MARK_NONE, Millis, mark_less};

/// What a row is joined with for which there is nothing, and one that is late.
pub(crate) const NOTHING: i64 = -1_000;
pub(crate) const LATE: i64 = -2_000;

/// The rows of a split with their marks.
fn marked(rows: &[Row]) -> impl Iterator<Item = (Row, Millis)> {
    let mut greatest = MARK_NONE;
    rows.iter().map(move |row| {
        let mark = mark_less(greatest, DELAY);
        greatest = greatest.max(row.time);
        (*row, mark)
    })
}

/// Counts and sums by window and key, sorted.
pub(crate) fn counts(splits: &[Vec<Row>]) -> Vec<Line> {
    let mut counts: BTreeMap<(Millis, i64), (i64, i64)> = BTreeMap::new();
    for (row, mark) in splits.iter().flat_map(|rows| marked(rows)) {
        let end = (row.time.div_euclid(WINDOW) + 1) * WINDOW;
        let place = if end > mark.saturating_add(1) { (end, row.key) } else { late(row.key) };
        let entry = counts.entry(place).or_default();
        (entry.0, entry.1) = (entry.0 + 1, entry.1 + row.value);
    }
    counts.into_iter().map(|((end, key), (n, sum))| [end, key, n, sum]).collect()
}

fn late(key: i64) -> (Millis, i64) {
    (MARK_END, -1 - key)
}

/// By key: what its rows were joined with, how many there are, and their sum; sorted. `whole`: all
/// changes are there before the first row.
pub(crate) fn totals(splits: &[Vec<Row>], changes: &[Vec<Row>], whole: bool) -> Vec<Line> {
    let mut versions = Vec::new();
    for (split, rows) in changes.iter().enumerate() {
        let on_time = marked(rows).enumerate().filter(|(_, (row, mark))| whole || row.time > *mark);
        versions.extend(on_time.map(|(at, (row, _))| ((row.time, split, at), row)));
    }
    let mut totals: BTreeMap<i64, Line> = BTreeMap::new();
    for (row, mark) in splits.iter().flat_map(|rows| marked(rows)) {
        let known = versions.iter().filter(|(_, v)| v.key == row.key && v.time <= row.time);
        let newest = known.max_by_key(|(place, _)| *place).map(|(_, version)| version);
        let found = match newest {
            _ if row.time <= mark => LATE,
            Some(version) if version.diff > 0 => version.value,
            _ => NOTHING,
        };
        let total = totals.entry(row.key).or_insert([0, row.key, 0, 0]);
        let [mix, _, n, sum] = *total;
        *total = [mix.wrapping_add(mixed(row, found)), row.key, n + 1, sum + row.value];
    }
    let mut lines: Vec<Line> = totals.into_values().collect();
    lines.sort_unstable();
    lines
}

/// What tells with what a row was joined, to be added up.
pub(crate) fn mixed(row: Row, found: i64) -> i64 {
    let mut mixed = 0x9E37_79B9_i64;
    for part in [row.time, row.value, found] {
        mixed = (mixed ^ part).wrapping_mul(0x5851_F42D_4C95_7F2D);
        mixed ^= mixed >> 29;
    }
    mixed
}

/// How lines differ from the truth. `exact`: no split was ever idle.
pub(crate) fn difference(lines: &[Line], truth: &[Line], exact: bool) -> Option<String> {
    let of_first = |lines: &[Line]| -> Vec<Line> {
        let counts = |line: &&Line| exact && key_of(line) < KEYS_OF_LATER;
        lines.iter().filter(counts).copied().collect()
    };
    let mut places: Vec<[i64; 2]> = lines.iter().map(|[place, key, ..]| [*place, *key]).collect();
    places.sort_unstable();
    if let Some(pair) = places.windows(2).find(|pair| pair[0] == pair[1]) {
        return Some(format!("two lines for {:?}", pair[0]));
    }
    if of_first(lines) == of_first(truth) && by_key(lines) == by_key(truth) {
        return None;
    }
    let more: Vec<_> = lines.iter().filter(|line| !truth.contains(line)).collect();
    let less: Vec<_> = truth.iter().filter(|line| !lines.contains(line)).collect();
    let (has, wants) = (lines.len(), truth.len());
    Some(format!("{has} lines, not {wants}; too much {more:?}, lacks {less:?}"))
}

fn key_of(line: &Line) -> i64 {
    if line[1] < 0 { -1 - line[1] } else { line[1] }
}

/// Counts and sums by key alone, late or not: what holds whatever was idle when.
fn by_key(lines: &[Line]) -> BTreeMap<i64, (i64, i64)> {
    let mut all: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
    for line in lines {
        let entry = all.entry(key_of(line)).or_default();
        (entry.0, entry.1) = (entry.0 + line[2], entry.1 + line[3]);
    }
    all
}
