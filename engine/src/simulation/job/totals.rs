//! Totals by key, told as changes: what a line was is taken back, what it is now is given.

use arrow::buffer::ScalarBuffer;
use std::collections::BTreeMap;

use super::rows::{Line, cells, group_of, table};
use crate::keys::{KeyGroup, KeyGroups};
use crate::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use crate::rows::Delta;
use crate::time::Millis;

const NAMES: [&str; 4] = ["mix", "key", "n", "sum"];

/// The operator.
#[derive(Default)]
pub(super) struct Totals {
    totals: BTreeMap<i64, Line>,
    /// What those were that have changed in the open epoch.
    before: BTreeMap<i64, Option<Line>>,
}

impl Operator for Totals {
    fn name(&self) -> &str {
        "totals"
    }

    fn push(&mut self, _port: usize, delta: Delta, _out: &mut Output) -> Result<(), OperatorError> {
        for [mix, key, n, value] in cells(&delta.rows) {
            let was = self.totals.get(&key).copied();
            self.before.entry(key).or_insert(was);
            let total = self.totals.entry(key).or_insert([0, key, 0, 0]);
            *total = [total[0].wrapping_add(mix), key, total[2] + n, total[3] + value];
        }
        Ok(())
    }

    fn advance(&mut self, _end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        let mut changes: Vec<(Line, i64)> = Vec::new();
        for (key, was) in std::mem::take(&mut self.before) {
            changes.extend(was.map(|was| (was, -1)));
            changes.extend(self.totals.get(&key).map(|now| (*now, 1)));
        }
        if !changes.is_empty() {
            let (lines, diffs): (Vec<Line>, Vec<i64>) = changes.into_iter().unzip();
            let diffs = Some(ScalarBuffer::from(diffs));
            out.rows.push(Delta { diffs, ..Delta::fired(table(NAMES, &lines)) });
        }
        Ok(())
    }

    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        inputs[0]
    }

    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        let mut groups: BTreeMap<KeyGroup, Vec<Line>> = BTreeMap::new();
        for (key, line) in &self.totals {
            groups.entry(group_of(*key)).or_default().push(*line);
        }
        let part = |(group, lines): (KeyGroup, Vec<Line>)| StatePart {
            kind: "totals",
            key_groups: KeyGroups::one(group),
            rows: table(NAMES, &lines),
        };
        Ok(groups.into_iter().map(part).collect())
    }

    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        let lines = parts.iter().flat_map(|part| cells::<4>(&part.rows));
        self.totals = lines.map(|line| (line[1], line)).collect();
        Ok(())
    }
}
