//! Sessions as state: a row a run and a row a straggler, with the key and what it adds up to.
//!
//! # Form
//! `runs`: the key columns, `__first`, `__last` BIGINT, `__loose` BOOLEAN, then the aggregates'
//! states. `stragglers`: the key columns, `__time`, `__mark`, `__limit` BIGINT, `__split`,
//! `__offset` UNSIGNED BIGINT, the states, and behind them, where late rows are wanted, the
//! input's columns. `marks`: W.

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array, UInt64Array,
};
use arrow::datatypes::{Field, Int64Type, Schema, UInt64Type};
use std::cmp::Reverse;
use std::sync::Arc;
use weir_engine::keys::{KeyGroup, KeyGroups};
use weir_engine::operator::{OperatorError, StatePart};
use weir_engine::time::Millis;

use super::SessionAggregate;
use super::runs::{Run, Straggler};
use crate::aggregates::Form;
use crate::temporal::{MARKS, marks_part, times_of, unknown};

fn bad() -> OperatorError {
    OperatorError::State("sessions in a form of another build".into())
}

/// The columns of a part, taken from the left.
struct Columns<'a>(std::slice::Iter<'a, ArrayRef>);

impl Columns<'_> {
    fn signed(&mut self) -> Result<Int64Array, OperatorError> {
        let column = self.0.next().and_then(|c| c.as_primitive_opt::<Int64Type>());
        column.cloned().ok_or_else(bad)
    }

    fn unsigned(&mut self) -> Result<UInt64Array, OperatorError> {
        let column = self.0.next().and_then(|c| c.as_primitive_opt::<UInt64Type>());
        column.cloned().ok_or_else(bad)
    }

    fn flags(&mut self) -> Result<BooleanArray, OperatorError> {
        self.0.next().and_then(|c| c.as_boolean_opt()).cloned().ok_or_else(bad)
    }
}

fn signed<T>(of: &[(u32, T)], value: impl Fn(&T) -> Millis) -> ArrayRef {
    Arc::new(of.iter().map(|(_, item)| value(item)).collect::<Int64Array>())
}

fn unsigned<T>(of: &[(u32, T)], value: impl Fn(&T) -> u64) -> ArrayRef {
    Arc::new(of.iter().map(|(_, item)| value(item)).collect::<UInt64Array>())
}

impl SessionAggregate {
    /// All state, by key group.
    pub(super) fn write(&self) -> Result<Vec<StatePart>, OperatorError> {
        let mut parts = vec![marks_part(&[self.before])?];
        let ids = || (0u32..).zip(&self.sessions).filter(|(_, key)| !key.is_vacant());
        let runs = ids().flat_map(|(id, key)| key.runs.iter().map(move |run| (id, *run)));
        for (group, runs) in self.by_key_group(runs.collect()) {
            let columns = vec![
                ("__first", signed(&runs, |run| run.first)),
                ("__last", signed(&runs, |run| run.last)),
                ("__loose", loose(&runs)),
            ];
            let groups: Vec<u32> = runs.iter().map(|(_, run)| run.group).collect();
            let rows = self.part(&runs, columns, &groups, None)?;
            parts.push(StatePart { kind: "runs", key_groups: KeyGroups::one(group), rows });
        }
        let all = ids().flat_map(|(id, key)| key.stragglers.iter().map(move |s| (id, *s)));
        for (group, all) in self.by_key_group(all.collect()) {
            let columns = vec![
                ("__time", signed(&all, |s| s.time)),
                ("__mark", signed(&all, |s| s.mark)),
                ("__limit", signed(&all, |s| s.limit)),
                ("__split", unsigned(&all, |s| s.place.0)),
                ("__offset", unsigned(&all, |s| s.place.1)),
            ];
            let groups: Vec<u32> = all.iter().map(|(_, s)| s.group).collect();
            let numbers: Vec<u32> = all.iter().map(|(_, s)| s.row).collect();
            let late = self.spec.collect_late.then(|| self.rows.batch(&numbers)).transpose()?;
            let rows = self.part(&all, columns, &groups, late)?;
            parts.push(StatePart { kind: "stragglers", key_groups: KeyGroups::one(group), rows });
        }
        Ok(parts)
    }

    /// Items with the ids of their keys, by key group; in the order of key bytes within one.
    fn by_key_group<T>(&self, items: Vec<(u32, T)>) -> Vec<(KeyGroup, Vec<(u32, T)>)> {
        let of = |id: u32| (self.interner.key_group(id), self.interner.bytes(id));
        let mut keyed: Vec<_> = items.into_iter().map(|(id, item)| (of(id), id, item)).collect();
        keyed.sort_by(|a, b| a.0.cmp(&b.0));
        let mut groups: Vec<(KeyGroup, Vec<(u32, T)>)> = Vec::new();
        for ((group, _), id, item) in keyed {
            match groups.last_mut() {
                Some((last, items)) if *last == group => items.push((id, item)),
                _ => groups.push((group, vec![(id, item)])),
            }
        }
        groups
    }

    fn part<T>(
        &self,
        items: &[(u32, T)],
        own: Vec<(&str, ArrayRef)>,
        groups: &[u32],
        late: Option<RecordBatch>,
    ) -> Result<RecordBatch, OperatorError> {
        let ids: Vec<u32> = items.iter().map(|(id, _)| *id).collect();
        let keys = (0..).zip(self.interner.columns(&ids)?);
        let mut columns: Vec<(String, ArrayRef)> =
            keys.map(|(at, column): (u32, _)| (format!("__key{at}"), column)).collect();
        columns.extend(own.into_iter().map(|(name, column)| (name.to_owned(), column)));
        let totals = &self.groups.totals;
        let states =
            totals.state_fields("__state").into_iter().zip(totals.state(groups, Form::Equal));
        columns.extend(states.map(|(field, column)| (field.name().clone(), column)));
        let mut fields: Vec<Arc<Field>> = Vec::new();
        for (name, column) in &columns {
            fields.push(Arc::new(Field::new(name, column.data_type().clone(), true)));
        }
        let mut columns: Vec<ArrayRef> = columns.into_iter().map(|(_, column)| column).collect();
        if let Some(late) = late {
            fields.extend(late.schema().fields().iter().cloned());
            columns.extend(late.columns().iter().cloned());
        }
        Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
    }

    /// Takes up a part.
    pub(super) fn read(&mut self, part: StatePart) -> Result<(), OperatorError> {
        match part.kind {
            "runs" => self.read_runs(&part.rows),
            "stragglers" => self.read_stragglers(&part.rows),
            MARKS => {
                let marks = times_of(&part.rows, 0)?;
                self.before = marks.iter().copied().fold(self.before, Millis::max);
                Ok(())
            }
            kind => Err(unknown(kind)),
        }
    }

    fn read_keys(&mut self, rows: &RecordBatch) -> Result<Vec<u32>, OperatorError> {
        let columns: Vec<usize> = (0..self.spec.keys.len()).collect();
        let mut ids = Vec::with_capacity(rows.num_rows());
        self.interner.intern(&rows.project(&columns)?, &mut ids)?;
        self.sessions.resize_with(self.interner.bound(), Default::default);
        Ok(ids)
    }

    /// Groups with the states in the columns from `at` on.
    fn read_states(&mut self, rows: &RecordBatch, at: usize) -> Result<Vec<u32>, OperatorError> {
        let groups: Vec<u32> = (0..rows.num_rows()).map(|_| self.groups.take()).collect();
        self.groups.totals.grow(self.groups.next as usize);
        let upto = at + self.groups.totals.state_fields("").len();
        let columns = rows.columns().get(at..upto).ok_or_else(bad)?;
        self.groups.totals.restore(&groups, columns)?;
        Ok(groups)
    }

    fn expect(&mut self, id: u32, due: Millis) {
        let key = &mut self.sessions[id as usize];
        if due < key.due {
            key.due = due;
            self.due.push(Reverse((due, id)));
        }
    }

    fn read_runs(&mut self, rows: &RecordBatch) -> Result<(), OperatorError> {
        let ids = self.read_keys(rows)?;
        let keys = self.spec.keys.len();
        let groups = self.read_states(rows, keys + 3)?;
        let mut columns = Columns(rows.columns().get(keys..).ok_or_else(bad)?.iter());
        let (first, last) = (columns.signed()?, columns.signed()?);
        let loose = columns.flags()?;
        for (row, (&id, &group)) in ids.iter().zip(&groups).enumerate() {
            let (first, last) = (first.value(row), last.value(row));
            let runs = &mut self.sessions[id as usize].runs;
            let at = runs.partition_point(|run| run.first < first);
            runs.insert(at, Run { first, last, loose: loose.value(row), group });
            self.expect(id, last.saturating_add(self.spec.gap - 1));
        }
        Ok(())
    }

    fn read_stragglers(&mut self, rows: &RecordBatch) -> Result<(), OperatorError> {
        let ids = self.read_keys(rows)?;
        let keys = self.spec.keys.len();
        let groups = self.read_states(rows, keys + 5)?;
        let mut columns = Columns(rows.columns().get(keys..).ok_or_else(bad)?.iter());
        let (time, mark, limit) = (columns.signed()?, columns.signed()?, columns.signed()?);
        let (split, offset) = (columns.unsigned()?, columns.unsigned()?);
        let first = self.rows.next();
        self.stragglers += rows.num_rows();
        if self.spec.collect_late {
            let from = keys + 5 + self.groups.totals.state_fields("").len();
            let input: Vec<usize> = (from..rows.num_columns()).collect();
            let all: UInt32Array = (0..rows.num_rows() as u32).collect();
            self.rows.push(&rows.project(&input)?, &all)?;
        }
        for (row, (&id, &group)) in ids.iter().zip(&groups).enumerate() {
            let straggler = Straggler {
                time: time.value(row),
                mark: mark.value(row),
                limit: limit.value(row),
                place: (split.value(row), offset.value(row)),
                group,
                row: if self.spec.collect_late { first + row as u32 } else { 0 },
            };
            self.sessions[id as usize].stragglers.push(straggler);
            // A part doesn't say whether it has been in play already; the next W will.
            self.expect(id, straggler.due(self.spec.gap).min(self.before.saturating_add(1)));
        }
        Ok(())
    }
}

fn loose(runs: &[(u32, Run)]) -> ArrayRef {
    Arc::new(runs.iter().map(|(_, run)| Some(run.loose)).collect::<BooleanArray>())
}
