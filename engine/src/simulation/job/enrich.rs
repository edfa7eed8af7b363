//! Rows with the version of a table that is valid at their time: two ports, and state in parts of
//! one key group, of which a checkpoint takes those that have changed.
//!
//! # Which version
//! Of a row's key the one with the greatest time ≤ the row's; one that is taken back ends its key
//! from its time on. A row waits until the table's watermark says that all such versions have come.
//! It is late if its time is not beyond its mark and its watermark before the epoch: then it goes
//! at once, without a version. A version that is late does not count; of a table that is read first
//! all do.
//!
//! # Forgetting
//! Rows to come, and those that wait, have times beyond the lesser watermark: of the versions up to
//! it the last of each key is enough. Not so of a table that is read first: as long as it is,
//! versions come in any order.

use std::collections::BTreeMap;

use super::rows::{Row, cells, group_of, rows_of, table};
use super::truth::{LATE, NOTHING, mixed};
use crate::keys::{KeyGroup, KeyGroups};
use crate::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use crate::rows::Delta;
use crate::time::{MARK_END, MARK_NONE, Millis};

/// Port of the table's changes.
const CHANGES: usize = 1;
/// The key whose group is not restored, where that is broken.
const KEY_FORGOTTEN: i64 = 3;

/// A version's place in time: its time, split and offset.
type Place = (Millis, i64, i64);

/// The operator.
pub(super) struct Enrich {
    /// Whether the table is complete before the first row.
    whole: bool,
    /// Breaks it: one key group is not restored.
    forgets: bool,
    /// By key: values, `None` from where on there is none.
    versions: BTreeMap<i64, BTreeMap<Place, Option<i64>>>,
    waiting: Vec<Row>,
    /// The watermarks before the open epoch.
    before: [Millis; 2],
}

impl Enrich {
    pub(super) fn start(whole: bool, forgets: bool) -> Enrich {
        let (versions, waiting) = (BTreeMap::new(), Vec::new());
        Enrich { whole, forgets, versions, waiting, before: [MARK_NONE; 2] }
    }

    fn version(&self, row: Row) -> i64 {
        let versions = self.versions.get(&row.key);
        let until = (row.time, i64::MAX, i64::MAX);
        let found = versions.and_then(|versions| versions.range(..=until).next_back());
        found.and_then(|(_, value)| *value).unwrap_or(NOTHING)
    }

    fn forget(&mut self, upto: Millis) {
        for versions in self.versions.values_mut() {
            let kept = versions.split_off(&(upto.saturating_add(1), i64::MIN, i64::MIN));
            let last = std::mem::replace(versions, kept).pop_last();
            versions.extend(last.filter(|(_, value)| value.is_some()));
        }
        self.versions.retain(|_, versions| !versions.is_empty());
    }
}

/// Rows as they are joined.
fn joined(rows: impl Iterator<Item = (Row, i64)>) -> arrow::array::RecordBatch {
    let line = |(row, found): (Row, i64)| [mixed(row, found), row.key, 1, row.value];
    table(["mix", "key", "n", "value"], &rows.map(line).collect::<Vec<_>>())
}

impl Operator for Enrich {
    fn name(&self) -> &str {
        "enrich"
    }

    fn push(&mut self, port: usize, delta: Delta, out: &mut Output) -> Result<(), OperatorError> {
        let mut late = Vec::new();
        for (n, row) in rows_of(&delta).into_iter().enumerate() {
            let is_late = row.time <= delta.mark(n).max(self.before[port]);
            match port {
                CHANGES if is_late && !self.whole => {}
                CHANGES => {
                    let (split, offset) = delta.place(n);
                    let place = (row.time, split.0 as i64, offset as i64);
                    let value = (row.diff > 0).then_some(row.value);
                    self.versions.entry(row.key).or_default().insert(place, value);
                }
                _ if is_late => late.push((row, LATE)),
                _ => self.waiting.push(row),
            }
        }
        if !late.is_empty() {
            out.rows.push(Delta::fired(joined(late.into_iter())));
        }
        Ok(())
    }

    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        let watermarks = [end.watermarks[0], end.watermarks[1]];
        let (mut ready, waiting): (Vec<Row>, Vec<Row>) =
            self.waiting.drain(..).partition(|row| row.time <= watermarks[CHANGES]);
        self.waiting = waiting;
        ready.sort_unstable();
        for rows in ready.chunk_by(|a, b| a.time == b.time) {
            let rows_joined = joined(rows.iter().map(|row| (*row, self.version(*row))));
            out.rows.push(Delta::fired_at(rows_joined, rows[0].time));
        }
        if !self.whole && end.watermark() != MARK_END {
            self.forget(end.watermark());
        }
        for (before, now) in self.before.iter_mut().zip(watermarks) {
            if now != MARK_END {
                *before = now.max(*before);
            }
        }
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        inputs[0].min(inputs[1])
    }

    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        let mut versions: BTreeMap<KeyGroup, Vec<[i64; 6]>> = BTreeMap::new();
        for (key, of_key) in &self.versions {
            let group = versions.entry(group_of(*key)).or_default();
            group.extend(of_key.iter().map(|((time, split, offset), value)| {
                let gone = i64::from(value.is_none());
                [*key, *time, *split, *offset, value.unwrap_or(0), gone]
            }));
        }
        let mut waiting: BTreeMap<KeyGroup, Vec<[i64; 3]>> = BTreeMap::new();
        let mut rows = self.waiting.clone();
        rows.sort_unstable();
        for Row { time, key, value, .. } in rows {
            waiting.entry(group_of(key)).or_default().push([key, value, time]);
        }
        let rows = table(["stream", "table"], &[self.before]);
        let mut parts = vec![StatePart { kind: "marks", key_groups: KeyGroups::ALL, rows }];
        for (group, rows) in versions {
            let rows = table(["key", "time", "split", "offset", "value", "gone"], &rows);
            parts.push(StatePart { kind: "versions", key_groups: KeyGroups::one(group), rows });
        }
        for (group, rows) in waiting {
            let rows = table(["key", "value", "time"], &rows);
            parts.push(StatePart { kind: "waiting", key_groups: KeyGroups::one(group), rows });
        }
        Ok(parts)
    }

    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        for StatePart { kind, key_groups, rows } in parts {
            if self.forgets && key_groups == KeyGroups::one(group_of(KEY_FORGOTTEN)) {
                continue;
            }
            match kind {
                "marks" => {
                    let [marks] = cells::<2>(&rows)[..] else { continue };
                    self.before = std::array::from_fn(|port| self.before[port].max(marks[port]));
                }
                "versions" => {
                    for [key, time, split, offset, value, gone] in cells(&rows) {
                        let value = (gone == 0).then_some(value);
                        let versions = self.versions.entry(key).or_default();
                        versions.insert((time, split, offset), value);
                    }
                }
                _ => {
                    let row = |[key, value, time]: [i64; 3]| Row { time, key, value, diff: 1 };
                    self.waiting.extend(cells(&rows).into_iter().map(row));
                }
            }
        }
        Ok(())
    }
}
