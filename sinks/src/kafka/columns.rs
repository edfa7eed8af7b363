//! Which columns are the key, which the value, which the timestamp; and rows as messages.
//!
//! # Invariant
//! The messages of a group are a function of its rows and their epochs alone, so that a group that
//! is sent again is the same to the byte. In an upsert table they are one message a key (see
//! `group.rs`); without a key they are the rows in their order.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit, TimestampMillisecondType};
use arrow::error::ArrowError;
use std::ops::Range;
use weir_connect::json::{JsonEncoder, JsonOptions};
use weir_connect::options::{bad_table, bad_value, did_you_mean};
use weir_engine::connector::{OptionError, TableSpec};

use super::Kind;
use super::options::{Included, KafkaOptions, Partitioner};
use crate::group::{Action, Group};

/// The columns of a table by what becomes of them.
pub(super) struct Columns {
    /// The columns that rows replace each other by; none where they only append.
    pub(super) primary: Vec<usize>,
    key: Option<Part>,
    value: Part,
    timestamp: Option<usize>,
    partitioner: Partitioner,
}

/// Columns that are one JSON object.
struct Part {
    places: Vec<usize>,
    encoder: JsonEncoder,
}

/// Where a message goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// By its key.
    Key,
    /// To the partition of the shard.
    Shard,
    /// To the partition of this number, modulo the number of partitions.
    Turn(u64),
}

/// A message, as places in the bytes of its group.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) key: Option<Range<usize>>,
    /// `None` is a tombstone.
    pub(super) value: Option<Range<usize>>,
    /// Milliseconds since 1970.
    pub(super) timestamp: Option<i64>,
    pub(super) goal: Goal,
}

/// The messages of a group.
#[derive(Debug, Default)]
pub(super) struct Messages {
    pub(super) bytes: Vec<u8>,
    pub(super) list: Vec<Message>,
    /// Rows that they were made of.
    pub(super) rows: u64,
}

impl Columns {
    pub(super) fn of(
        table: &TableSpec,
        kind: Kind,
        options: &KafkaOptions,
        json: JsonOptions,
    ) -> Result<Columns, Vec<OptionError>> {
        let mut errors = Vec::new();
        let physical: Vec<usize> =
            (0..table.columns.len()).filter(|&i| table.columns[i].metadata.is_none()).collect();
        let place =
            |name: &String| physical.iter().copied().find(|&i| table.columns[i].name == *name);
        let mut named = |names: &[String], key: Option<&str>| -> Vec<usize> {
            let mut places = Vec::with_capacity(names.len());
            for name in names {
                match place(name) {
                    Some(place) => places.push(place),
                    None => errors.push(no_column(table, name, key)),
                }
            }
            places
        };
        let primary = named(&table.primary_key, None);
        let key = match (kind, &options.key_fields) {
            (Kind::Upsert, _) => primary.clone(),
            (Kind::Append, Some(names)) => named(names, Some("key.fields")),
            (Kind::Append, None) => Vec::new(),
        };
        let timestamp = timestamp(table).map_err(|mut e| errors.append(&mut e)).ok().flatten();
        let in_value = |i: &usize| options.included == Included::All || !key.contains(i);
        let value: Vec<usize> = physical.iter().copied().filter(in_value).collect();
        if value.is_empty() {
            errors.push(bad_table(table, "leaves no column for a message's value"));
        }
        let mut part = |places: Vec<usize>| match Part::of(table, places, json) {
            Ok(part) => Some(part),
            Err(error) => {
                errors.push(error);
                None
            }
        };
        let value = part(value);
        let key = if key.is_empty() { None } else { part(key) };
        let primary = if kind == Kind::Upsert { primary } else { Vec::new() };
        match value {
            Some(value) if errors.is_empty() => {
                let partitioner = options.partitioner;
                Ok(Columns { primary, key, value, timestamp, partitioner })
            }
            _ => Err(errors),
        }
    }

    /// The messages of a group.
    ///
    /// # Errors
    /// A batch that has other columns than the table.
    pub(super) fn messages(&self, group: &Group) -> Result<Messages, ArrowError> {
        let mut out = Messages { rows: group.rows() as u64, ..Messages::default() };
        let actions = match self.primary.is_empty() {
            true => all_rows(group),
            false => group.last_actions(),
        };
        let mut turns = Turns::default();
        for run in actions.chunk_by(|a, b| a.part == b.part) {
            let part = &group.parts()[run[0].part];
            let turn = turns.begin(part.epoch, part.rows.num_rows());
            self.append(&part.rows, run, turn, &mut out)?;
        }
        Ok(out)
    }

    /// Appends messages of one batch.
    fn append(
        &self,
        rows: &RecordBatch,
        actions: &[Action],
        turn: Turn,
        out: &mut Messages,
    ) -> Result<(), ArrowError> {
        let keys = self.key.as_ref().map(|key| rows.project(&key.places)).transpose()?;
        let keys = self.key.as_ref().zip(keys.as_ref()).map(|(key, rows)| key.encoder.rows(rows));
        let values = rows.project(&self.value.places)?;
        let values = self.value.encoder.rows(&values);
        let times = self.timestamp.map(|i| millis(rows.column(i))).transpose()?;
        let Messages { bytes, list, .. } = out;
        for action in actions {
            let mut written = |write: &dyn Fn(&mut Vec<u8>)| {
                let start = bytes.len();
                write(bytes);
                start..bytes.len()
            };
            let key = keys.as_ref().map(|keys| written(&|out| keys.write(action.row, out)));
            let value = (!action.delete).then(|| written(&|out| values.write(action.row, out)));
            let time = times.as_ref().map(|times| times.as_primitive::<TimestampMillisecondType>());
            let time = time.filter(|times| times.is_valid(action.row));
            // The client takes 0 for "now", and brokers take nothing before 1970.
            let timestamp = time.map(|times| times.value(action.row)).filter(|&ms| ms > 0);
            let goal = match self.partitioner {
                Partitioner::Fixed => Goal::Shard,
                Partitioner::Default if key.is_some() => Goal::Key,
                Partitioner::Default => Goal::Turn(turn.of_many(action.row as u64)),
                Partitioner::RoundRobin => Goal::Turn(turn.of_each(action.row as u64)),
            };
            list.push(Message { key, value, timestamp, goal });
        }
        Ok(())
    }
}

fn all_rows(group: &Group) -> Vec<Action> {
    let rows = |(part, rows): (usize, usize)| {
        (0..rows).map(move |row| Action { part, row, delete: false })
    };
    group.parts().iter().map(|p| p.rows.num_rows()).enumerate().flat_map(rows).collect()
}

/// Rows that stay together when rows go to partitions in turn: `2^STAY_ROWS` of an epoch, and those
/// of `2^STAY_EPOCHS` epochs (milliseconds). A broker answers one request of a connection at a
/// time, and each partition is a request of its own.
const STAY_ROWS: u32 = 12;
const STAY_EPOCHS: u32 = 6;

/// Where a batch begins: its epoch, and the place in it of the batch's first row.
#[derive(Clone, Copy)]
struct Turn {
    epoch: u64,
    first: u64,
}

impl Turn {
    /// The turn of a row of the batch if each row is the next one's.
    fn of_each(self, row: u64) -> u64 {
        self.epoch.wrapping_add(self.first).wrapping_add(row)
    }

    /// The turn of a row of the batch if many rows share one.
    fn of_many(self, row: u64) -> u64 {
        mixed(self.epoch >> STAY_EPOCHS).wrapping_add(self.first.wrapping_add(row) >> STAY_ROWS)
    }
}

/// A number's bits, mixed (SplitMix64's last step): windows fire at multiples of something, which
/// may have a divisor in common with the number of partitions.
fn mixed(n: u64) -> u64 {
    let n = (n ^ (n >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    n ^ (n >> 31)
}

/// Counts the rows of an epoch.
#[derive(Default)]
struct Turns {
    epoch: Option<u64>,
    next: u64,
}

impl Turns {
    /// Where a batch of so many rows begins.
    fn begin(&mut self, epoch: u64, rows: usize) -> Turn {
        if self.epoch != Some(epoch) {
            (self.epoch, self.next) = (Some(epoch), 0);
        }
        let first = self.next;
        self.next = self.next.wrapping_add(rows as u64);
        Turn { epoch, first }
    }
}

fn millis(times: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    let zone = match times.data_type() {
        DataType::Timestamp(_, zone) => zone.clone(),
        _ => None,
    };
    cast(times, &DataType::Timestamp(TimeUnit::Millisecond, zone))
}

impl Part {
    fn of(table: &TableSpec, places: Vec<usize>, json: JsonOptions) -> Result<Part, OptionError> {
        let unfit = |what: String| bad_value(table, "format", &format!("does not fit: {what}"));
        let schema = table.schema().project(&places).map_err(|e| unfit(e.to_string()))?;
        let encoder = JsonEncoder::new(schema.into(), json).map_err(|e| unfit(e.to_string()))?;
        Ok(Part { places, encoder })
    }
}

/// The METADATA column of the timestamp; others cannot be written.
fn timestamp(table: &TableSpec) -> Result<Option<usize>, Vec<OptionError>> {
    let (mut found, mut errors) = (None, Vec::new());
    for (i, column) in table.columns.iter().enumerate() {
        let Some(key) = &column.metadata else { continue };
        let name = &column.name;
        if key != "timestamp" {
            let what = format!("cannot write METADATA '{key}' (column `{name}`)");
            let hint = Some(format!("declare `{name}` METADATA FROM '{key}' VIRTUAL"));
            errors.push(OptionError { hint, ..bad_table(table, &what) });
        } else if !matches!(column.data_type, DataType::Timestamp(..)) {
            let what = format!("has METADATA 'timestamp' as `{name}`, which must be TIMESTAMP(3)");
            errors.push(bad_table(table, &what));
        } else if found.replace(i).is_some() {
            errors.push(bad_table(table, "has METADATA 'timestamp' twice"));
        }
    }
    if errors.is_empty() { Ok(found) } else { Err(errors) }
}

fn no_column(table: &TableSpec, name: &str, key: Option<&str>) -> OptionError {
    let names = table.columns.iter().filter(|c| c.metadata.is_none()).map(|c| c.name.as_str());
    // `did_you_mean` gives back one of the names, which live as long as the table.
    let hint = did_you_mean(name, names).map(|meant| format!("did you mean `{meant}`?"));
    match key {
        Some(key) => OptionError {
            hint,
            ..bad_value(table, key, &format!("names `{name}`, which is no column to be written"))
        },
        None => OptionError {
            hint,
            ..bad_table(table, &format!("has no column `{name}` that can be part of the key"))
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_any_length_reach_every_partition() {
        for seconds in [8, 16, 600, 3600] {
            for partitions in 2..=10_u64 {
                let firing = |n: u64| Turn { epoch: n * seconds * 1000 + 7, first: 0 }.of_many(0);
                let mut reached: Vec<u64> = (0..200).map(|n| firing(n) % partitions).collect();
                reached.sort_unstable();
                reached.dedup();
                assert_eq!(reached.len() as u64, partitions, "{seconds} s, {partitions}");
            }
        }
    }

    #[test]
    fn neighbours_share_a_turn_and_many_rows_take_several() {
        let mut turns = Turns::default();
        let first = turns.begin(640, 4_000);
        let second = turns.begin(640, 200);
        let next = turns.begin(645, 1);
        let turn = mixed(10);
        assert_eq!((first.of_many(0), first.of_many(3_999)), (turn, turn));
        assert_eq!((second.of_many(95), second.of_many(96)), (turn, turn + 1));
        assert_eq!(next.of_many(0), turn);
        assert_eq!(turns.begin(704, 1).of_many(0), mixed(11));
        assert_eq!((first.of_each(1), second.of_each(1), next.of_each(0)), (641, 4_641, 645));
    }
}
