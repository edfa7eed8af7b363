//! Checkpoints of windows: a piece a bucket, and only where the bucket has changed.
//!
//! # Form
//! A piece `pane` holds one bucket: `gap` (its keys by number, see `tables`), then the aggregates'
//! state in its narrow form. JSON in the schema's metadata under `weir.pane`: `table`, `pane` and
//! `entry` (times). A piece `watermark` holds W. Cells of two stacks and of cumulating windows
//! change with every slide, and are given whole, as a snapshot holds them (see `state`). Buckets of
//! older checkpoints are pieces `groups`, which are read like a snapshot's.
//!
//! # Argument
//! Whether a bucket waits or is inside the running window follows from the watermark: it enters as
//! soon as W reaches its first end. So one that enters needs no new piece. The running cells are
//! not written: they are the sum of the buckets inside, and adding up again gives the same.
//!
//! # Restart
//! One addition a group of the buckets inside, which stay packed until they leave (see `panes`).

use arrow::array::{ArrayRef, BooleanArray, RecordBatch};
use arrow::compute::filter_record_batch;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use weir_engine::keys::KeyGroups;
use weir_engine::operator::{OperatorError, StatePart};
use weir_engine::state::{PieceRef, Pieces};
use weir_engine::time::Millis;

use super::WindowAggregate;
use super::panes::{Bucket, Waiting};
use super::slide::Running;
use super::state::{GROUPS, LoadedBuckets, unreadable};
use super::tables::{FOREIGN, KeyTables, LoadedTables, SavedIn, TableName};
use super::tables::{gaps, label, labelled, members};
use crate::aggregates::{Accumulators, Form};

/// What these pieces are called.
pub(super) const PANE: &str = "pane";
const METADATA: &str = "weir.pane";

#[derive(Serialize, Deserialize)]
struct Said {
    table: TableName,
    pane: Millis,
    entry: Millis,
}

impl WindowAggregate {
    /// What has changed since the last checkpoint, and the names of the rest.
    pub(super) fn save_changes(&mut self, pieces: &mut dyn Pieces) -> Result<(), OperatorError> {
        pieces.put(self.watermark_part()?);
        let mut cells = Vec::new();
        if self.running.buckets().is_none() {
            self.running.held(self.spec.shape, &mut cells);
        }
        if !cells.is_empty() {
            let rows = self.rows_of(&self.slots.accumulators, &cells)?;
            pieces.put(StatePart { kind: GROUPS, key_groups: KeyGroups::ALL, rows });
        }
        let WindowAggregate { waiting, running, keys, slots, .. } = self;
        let is_changed = |bucket: &&Bucket| bucket.saved.is_empty() && !bucket.keys.is_empty();
        let changed: Vec<&Bucket> = buckets(waiting, running).filter(is_changed).collect();
        let mut saved: BTreeMap<(Millis, Millis), SavedIn> = BTreeMap::new();
        if !changed.is_empty() {
            let table = keys.tables.number(&changed, &mut keys.interner, pieces)?;
            for bucket in changed {
                let rows = pane_rows(bucket, table, &keys.tables, &slots.accumulators)?;
                let part = StatePart { kind: PANE, key_groups: KeyGroups::ALL, rows };
                let place = (bucket.pane, bucket.entry);
                saved.insert(place, SavedIn { piece: pieces.put(part), table: Some(table) });
            }
        }
        let mut used = BTreeSet::new();
        for bucket in buckets_mut(waiting, running) {
            match saved.get(&(bucket.pane, bucket.entry)) {
                Some(fresh) => bucket.saved.push(*fresh),
                None => bucket.saved.iter().for_each(|known| pieces.same(known.piece)),
            }
            used.extend(bucket.saved.iter().filter_map(|known| known.table));
        }
        keys.tables.name(&used, pieces);
        Ok(())
    }

    /// Takes up a bucket.
    pub(super) fn load_pane(
        &mut self,
        piece: PieceRef,
        part: &StatePart,
        tables: &mut LoadedTables,
        loaded: &mut LoadedBuckets,
    ) -> Result<(), OperatorError> {
        let Said { table, pane, entry } = label(&part.rows, METADATA)?;
        let own = tables.own(table, part.key_groups)?;
        let (states, ids) = self.own_states(&part.rows, &own)?;
        if ids.is_empty() {
            return Ok(());
        }
        if entry.saturating_sub(1) <= self.watermark {
            let fresh = || Bucket::new(pane, entry);
            let bucket = loaded.inside.entry((pane, entry)).or_insert_with(fresh);
            bucket.adopt_packed(&ids, states, &mut self.keys);
        } else {
            let place = self.waiting.place(pane, entry);
            let bucket = self.waiting.at(place);
            let slot = |&key: &u32| bucket.slot(key, &mut self.slots, &mut self.keys);
            let slots: Vec<u32> = ids.iter().map(slot).collect();
            self.slots.settle();
            self.slots.accumulators.restore(&slots, states.columns())?;
        }
        let saved = SavedIn { piece, table: Some(table) };
        loaded.pieces.entry((pane, entry)).or_default().push(saved);
        Ok(())
    }

    /// The states of this worker's keys in a piece, and their ids.
    fn own_states(
        &self,
        rows: &RecordBatch,
        own: &[u32],
    ) -> Result<(RecordBatch, Vec<u32>), OperatorError> {
        let expected = self.slots.accumulators.state_fields("state").len() + 1;
        if rows.num_columns() != expected {
            return Err(unreadable("another number of columns"));
        }
        let states: Vec<usize> = (1..expected).collect();
        let states = rows.project(&states)?;
        let mut ids = members(rows.column(0), own)?;
        if !ids.contains(&FOREIGN) {
            return Ok((states, ids));
        }
        let mine: BooleanArray = ids.iter().map(|&id| Some(id != FOREIGN)).collect();
        ids.retain(|&id| id != FOREIGN);
        Ok((filter_record_batch(&states, &mine)?, ids))
    }
}

fn pane_rows(
    bucket: &Bucket,
    table: TableName,
    tables: &KeyTables,
    accumulators: &Accumulators,
) -> Result<RecordBatch, OperatorError> {
    let (numbers, slots) = tables.numbered(bucket);
    let mut columns: Vec<(String, ArrayRef)> = vec![("gap".to_owned(), gaps(&numbers, 0))];
    let states = accumulators.state(&slots, Form::Narrow);
    columns.extend(states.into_iter().enumerate().map(|(at, c)| (format!("state{at}"), c)));
    let said = Said { table, pane: bucket.pane, entry: bucket.entry };
    labelled(columns, METADATA, &said)
}

/// The buckets that wait, and those inside as far as they are kept.
pub(super) fn buckets<'a>(
    waiting: &'a Waiting,
    running: &'a Running,
) -> impl Iterator<Item = &'a Bucket> {
    waiting.iter().chain(running.buckets().into_iter().flatten())
}

fn buckets_mut<'a>(
    waiting: &'a mut Waiting,
    running: &'a mut Running,
) -> impl Iterator<Item = &'a mut Bucket> {
    waiting.iter_mut().chain(running.buckets_mut().into_iter().flatten())
}
