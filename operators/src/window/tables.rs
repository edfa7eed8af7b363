//! Tables of keys: what the pieces of checkpoints call a key by number.
//!
//! # Why
//! Most keys come in every pane. Written once they cost nothing a pane, and a restart hashes each
//! once only.
//!
//! # Form
//! A piece `keys` has the key's columns and `gap`: how many numbers lie between a row's number and
//! that of the row before, or the piece's first number. JSON in the schema's metadata under
//! `weir.keys`: `table` (its name; null in its first piece, whose number the name is), `first` and
//! `end` (the piece says all about these numbers: those that are not in it are nobody's any more).
//!
//! # Invariant
//! Within a table a number is one key's for ever. Only the worker that has all keys of a table
//! gives numbers in it, so no two workers give the same one. Each checkpoint names the table that
//! goes on, and those that a bucket's piece refers to.
//!
//! # Complexity
//! New keys are a piece of their own, put together with those before it that are not twice as
//! large: a key is written O(log keys) times, and a table has O(log keys) pieces. A table with more
//! than twice as many numbers as keys are in use is given up: panes to come begin another one, and
//! it goes with the last of its panes.
//!
//! # Limits
//! A piece keeps its whole file in the store, with the panes that were written beside it: O(log
//! keys) files more than the panes need. Arrow's strings end at 2 GB: so do the keys that are new
//! at one checkpoint.

use arrow::array::{Array, ArrayRef, RecordBatch};
use arrow::datatypes::{Field, Schema};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use weir_engine::keys::{KeyGroup, KeyGroups};
use weir_engine::operator::{OperatorError, StatePart};
use weir_engine::state::{PieceRef, Pieces};

use super::panes::Bucket;
use super::state::unreadable;
use crate::aggregates::{KeyInterner, constant, narrow, widened};

/// What these pieces are called.
pub(super) const KEYS: &str = "keys";
const METADATA: &str = "weir.keys";
/// Keys of one piece at the most, unless more are new at a time.
const KEYS_MAX: usize = 1 << 20;
/// Numbers of keys no longer in use that a table may have besides as many as are in use.
const DEAD_MAX: usize = 1024;

/// No number, or a number that no key has.
const NONE: u32 = u32::MAX;
/// The number's key is another worker's.
pub(super) const FOREIGN: u32 = u32::MAX - 1;

/// A table's name: the number of its first piece.
pub(super) type TableName = u64;

/// A piece that holds a bucket, and the table that its numbers are of.
#[derive(Clone, Copy, Debug)]
pub(super) struct SavedIn {
    pub(super) piece: PieceRef,
    /// None where the keys are in the piece itself.
    pub(super) table: Option<TableName>,
}

#[derive(Serialize, Deserialize)]
struct Said {
    table: Option<TableName>,
    first: u32,
    end: u32,
}

#[derive(Debug)]
struct TablePiece {
    piece: PieceRef,
    first: u32,
    end: u32,
    /// Whether the checkpoint that is being made has got it, so that it need not be named.
    given: bool,
}

/// The table that goes on.
#[derive(Debug, Default)]
struct Table {
    name: Option<TableName>,
    pieces: Vec<TablePiece>,
    /// By number the key's id.
    ids: Vec<u32>,
}

/// A worker's tables.
#[derive(Debug, Default)]
pub(super) struct KeyTables {
    current: Table,
    /// By id the key's number in it.
    numbers: Vec<u32>,
    /// Those that are only named.
    older: BTreeMap<TableName, Vec<PieceRef>>,
}

impl KeyTables {
    /// Gives numbers to the keys of buckets, in a table whose name is returned, and a piece with
    /// those that had none.
    pub(super) fn number(
        &mut self,
        buckets: &[&Bucket],
        interner: &mut KeyInterner,
        pieces: &mut dyn Pieces,
    ) -> Result<TableName, OperatorError> {
        if self.current.ids.len() > 2 * interner.len() + DEAD_MAX {
            self.give_up();
        }
        self.numbers.resize(interner.bound(), NONE);
        let mut fresh = Vec::new();
        for &key in buckets.iter().flat_map(|bucket| &bucket.keys) {
            let number = &mut self.numbers[key as usize];
            if *number == NONE {
                *number = FOREIGN;
                fresh.push(key);
            }
        }
        if let Some(name) = self.current.name
            && fresh.is_empty()
        {
            return Ok(name);
        }
        // In the order in which groups lie in memory.
        let ranks = interner.ranks();
        fresh.sort_unstable_by_key(|&key| ranks[key as usize]);
        let before = self.current.ids.len();
        self.current.ids.extend(fresh);
        for (number, &id) in self.current.ids.iter().enumerate().skip(before) {
            self.numbers[id as usize] = number as u32;
        }
        self.put(before, interner, pieces)
    }

    fn give_up(&mut self) {
        let Table { name, pieces, ids } = std::mem::take(&mut self.current);
        let forgotten = ids.into_iter().filter(|&id| id != NONE);
        forgotten.for_each(|id| self.numbers[id as usize] = NONE);
        let pieces = pieces.into_iter().map(|known| known.piece).collect();
        self.older.extend(name.map(|name| (name, pieces)));
    }

    /// Gives a piece with all keys from `first` on, and from pieces before it that are not much
    /// larger.
    fn put(
        &mut self,
        mut first: usize,
        interner: &KeyInterner,
        pieces: &mut dyn Pieces,
    ) -> Result<TableName, OperatorError> {
        let Table { name, pieces: known, ids } = &mut self.current;
        while let Some(last) = known.last()
            && (last.end - last.first) as usize <= 2 * (ids.len() - first)
            && ids.len() - last.first as usize <= KEYS_MAX
        {
            first = first.min(last.first as usize);
            known.pop();
        }
        let place = |number: usize| {
            let number = u32::try_from(number).ok().filter(|&number| number < FOREIGN);
            number.ok_or_else(|| OperatorError::State("more than 2^32 keys in a table".into()))
        };
        let (start, end) = (place(first)?, place(ids.len())?);
        let alive = || (start..end).filter(|&number| ids[number as usize] != NONE);
        let members: Vec<u32> = alive().map(|number| ids[number as usize]).collect();
        let mut columns = interner.columns(&members)?;
        columns.push(gaps(&alive().collect::<Vec<_>>(), start));
        let names = (0..columns.len() - 1).map(|at| format!("key{at}")).chain(["gap".to_owned()]);
        let said = Said { table: *name, first: start, end };
        let rows = labelled(names.zip(columns).collect(), METADATA, &said)?;
        let part = StatePart { kind: KEYS, key_groups: KeyGroups::ALL, rows };
        let piece = pieces.put(part);
        known.push(TablePiece { piece, first: start, end, given: true });
        Ok(*name.get_or_insert(piece.id.0))
    }

    /// Names the pieces of the table that goes on and of those that are `used`; the others are
    /// forgotten.
    pub(super) fn name(&mut self, used: &BTreeSet<TableName>, pieces: &mut dyn Pieces) {
        for known in &mut self.current.pieces {
            if !std::mem::take(&mut known.given) {
                pieces.same(known.piece);
            }
        }
        self.older.retain(|name, _| used.contains(name));
        self.older.values().flatten().for_each(|piece| pieces.same(*piece));
    }

    /// Keys whose ids are given up.
    pub(super) fn forget(&mut self, ids: &[u32]) {
        for &id in ids {
            if let Some(number) = self.numbers.get_mut(id as usize)
                && *number != NONE
            {
                self.current.ids[*number as usize] = NONE;
                *number = NONE;
            }
        }
    }

    /// Numbers and slots of a bucket whose keys have numbers, in the order of the numbers.
    pub(super) fn numbered(&self, bucket: &Bucket) -> (Vec<u32>, Vec<u32>) {
        let number = |key: u32| self.numbers[key as usize];
        let members = bucket.keys.iter().map(|&key| number(key)).zip(bucket.slots.iter().copied());
        if bucket.keys.len() * 8 < self.current.ids.len() {
            let mut members: Vec<(u32, u32)> = members.collect();
            members.sort_unstable();
            return members.into_iter().unzip();
        }
        let mut slots = vec![NONE; self.current.ids.len()];
        members.for_each(|(number, slot)| slots[number as usize] = slot);
        let pairs = slots.into_iter().enumerate().filter(|pair| pair.1 != NONE);
        pairs.map(|(number, slot)| (number as u32, slot)).unzip()
    }
}

/// Tables as a checkpoint brings them back.
#[derive(Default)]
pub(super) struct LoadedTables(BTreeMap<TableName, LoadedTable>);

#[derive(Default)]
struct LoadedTable {
    pieces: Vec<TablePiece>,
    /// By number the key's id and group.
    ids: Vec<u32>,
    groups: Vec<u8>,
    /// The same for some key groups, `FOREIGN` where the key is in none of them.
    own: Vec<(KeyGroups, Rc<[u32]>)>,
}

impl LoadedTables {
    /// Takes up a piece.
    pub(super) fn add(
        &mut self,
        piece: PieceRef,
        part: &StatePart,
        interner: &mut KeyInterner,
    ) -> Result<(), OperatorError> {
        let rows = &part.rows;
        let said: Said = label(rows, METADATA)?;
        let (gap, columns) = rows.columns().split_last().ok_or_else(|| unreadable("no keys"))?;
        let numbers = numbers(gap, said.first)?;
        if said.end < said.first || numbers.last().is_some_and(|&last| last >= said.end) {
            return Err(unreadable("a table's numbers do not fit"));
        }
        let mut ids = Vec::new();
        interner.intern_columns(columns, rows.num_rows(), &mut ids)?;
        let table = self.0.entry(said.table.unwrap_or(piece.id.0)).or_default();
        let end = table.ids.len().max(said.end as usize);
        table.ids.resize(end, NONE);
        table.groups.resize(end, 0);
        for (&number, &id) in numbers.iter().zip(&ids) {
            table.ids[number as usize] = id;
            table.groups[number as usize] = interner.key_group(id).0;
        }
        table.pieces.push(TablePiece { piece, first: said.first, end: said.end, given: false });
        Ok(())
    }

    /// By number of a table the key's id, or `FOREIGN`.
    pub(super) fn own(
        &mut self,
        name: TableName,
        key_groups: KeyGroups,
    ) -> Result<Rc<[u32]>, OperatorError> {
        let table = self.0.get_mut(&name).ok_or_else(|| unreadable("a table of keys is gone"))?;
        if let Some((_, known)) = table.own.iter().find(|own| own.0 == key_groups) {
            return Ok(known.clone());
        }
        let own = |(&id, &group): (&u32, &u8)| {
            if id == NONE || key_groups.contains(KeyGroup(group)) { id } else { FOREIGN }
        };
        let own: Rc<[u32]> = table.ids.iter().zip(&table.groups).map(own).collect();
        table.own.push((key_groups, own.clone()));
        Ok(own)
    }

    /// The tables of a worker that has these key groups. The largest of those whose keys are all
    /// its own goes on.
    pub(super) fn settle(mut self, bound: usize, mine: &[bool; 256]) -> KeyTables {
        let mut tables = KeyTables::default();
        let keys = |table: &LoadedTable| table.ids.iter().filter(|&&id| id != NONE).count();
        let is_own = |table: &LoadedTable| {
            let mut each = table.ids.iter().zip(&table.groups);
            each.all(|(&id, &group)| id == NONE || mine[usize::from(group)])
        };
        let own = self.0.iter().filter(|(_, table)| keys(table) > 0 && is_own(table));
        let largest = own.max_by_key(|(name, table)| (keys(table), **name)).map(|(name, _)| *name);
        if let Some(name) = largest
            && let Some(LoadedTable { mut pieces, ids, .. }) = self.0.remove(&name)
        {
            // It may come to hold keys of all groups of this worker, whoever wrote these pieces.
            pieces.iter_mut().for_each(|known| known.piece.key_groups = KeyGroups::ALL);
            pieces.sort_by_key(|known| (known.first, known.piece));
            pieces.dedup_by_key(|known| known.piece.id);
            tables.numbers.resize(bound, NONE);
            for (number, &id) in ids.iter().enumerate().filter(|(_, id)| **id != NONE) {
                tables.numbers[id as usize] = number as u32;
            }
            tables.current = Table { name: Some(name), pieces, ids };
        }
        let named = |table: LoadedTable| table.pieces.into_iter().map(|known| known.piece);
        tables.older = self.0.into_iter().map(|(name, t)| (name, named(t).collect())).collect();
        tables
    }
}

/// Ascending numbers as the gaps between them.
pub(super) fn gaps(numbers: &[u32], first: u32) -> ArrayRef {
    let mut next = first;
    let gap = |&number: &u32| {
        let gap = number - next;
        next = number + 1;
        i64::from(gap)
    };
    narrow(&numbers.iter().map(gap).collect::<Vec<_>>())
}

/// The ids that a bucket's numbers stand for.
pub(super) fn members(gaps: &ArrayRef, own: &[u32]) -> Result<Vec<u32>, OperatorError> {
    let ids: Option<Vec<u32>> = if constant(gaps) == Some(0) {
        own.get(..gaps.len()).map(<[u32]>::to_vec)
    } else {
        numbers(gaps, 0)?.into_iter().map(|number| own.get(number as usize).copied()).collect()
    };
    let ids = ids.filter(|ids| !ids.contains(&NONE));
    ids.ok_or_else(|| unreadable("a number that no key has"))
}

/// The inverse of [`gaps`].
fn numbers(gaps: &ArrayRef, first: u32) -> Result<Vec<u32>, OperatorError> {
    let wrong = || unreadable("a column of numbers does not fit");
    let mut next = first;
    let mut numbers = Vec::with_capacity(gaps.len());
    for &gap in widened(gaps).ok_or_else(wrong)?.iter() {
        let number = u32::try_from(gap).ok().and_then(|gap| next.checked_add(gap));
        let number = number.filter(|&number| number < FOREIGN).ok_or_else(wrong)?;
        numbers.push(number);
        next = number + 1;
    }
    Ok(numbers)
}

/// Rows with something said about all of them.
pub(super) fn labelled(
    columns: Vec<(String, ArrayRef)>,
    under: &str,
    said: &impl Serialize,
) -> Result<RecordBatch, OperatorError> {
    let text = serde_json::to_string(said).map_err(|e| OperatorError::State(e.to_string()))?;
    let field =
        |(name, column): &(String, ArrayRef)| Field::new(name, column.data_type().clone(), true);
    let fields: Vec<Field> = columns.iter().map(field).collect();
    let schema = Schema::new_with_metadata(fields, [(under.to_owned(), text)].into());
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    Ok(RecordBatch::try_new(Arc::new(schema), columns)?)
}

/// What is said about all rows.
pub(super) fn label<T: for<'a> Deserialize<'a>>(
    rows: &RecordBatch,
    under: &str,
) -> Result<T, OperatorError> {
    let schema = rows.schema_ref();
    let text = schema.metadata().get(under).ok_or_else(|| unreadable("nothing said of rows"))?;
    serde_json::from_str(text).map_err(|e| unreadable(&format!("{under}: {e}")))
}
