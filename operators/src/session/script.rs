//! Plays rows of several splits to cores, epoch by epoch, however cut, dealt, chunked and
//! interrupted, and writes down what comes out. For tests of operators.
#![allow(clippy::unwrap_used)]

use arrow::array::*;
use arrow::datatypes::*;
use arrow::util::display::array_value_to_string;
use proptest::prelude::*;
use std::sync::Arc;
use weir_engine::keys::{KeyGroup, KeyGroups, KeyHasher, owner};
use weir_engine::operator::{Counts, EpochEnd, Operator, Output};
use weir_engine::rows::{Delta, Origin, Provenance, SplitId, batch_of, unpack};
use weir_engine::time::{MARK_END, MARK_NONE, Millis, mark_less};

/// A row of a script.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) key: Option<&'static str>,
    pub(crate) time: Millis,
    pub(crate) n: i64,
    pub(crate) diff: i64,
    pub(crate) mark: Millis,
    pub(crate) split: u64,
    pub(crate) offset: u64,
}

const KEYS: [Option<&str>; 4] = [Some("a"), Some("b\0"), Some("c"), None];

/// The splits of one input: rows with their marks.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    pub(crate) splits: Vec<Vec<Row>>,
    pub(crate) delay: Millis,
    pub(crate) pace: Pace,
}

/// When a feed gives its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// As the cuts say.
    Steps,
    /// All in the first epoch.
    First,
    /// As the cuts say, from the second epoch on.
    Later,
}

impl Pace {
    fn rows(self, epoch: usize, step: usize) -> usize {
        match self {
            Pace::First => usize::MAX / 2,
            Pace::Later if epoch == 0 => 0,
            // One more now and then, so that every split ends whatever the steps are.
            _ => step + usize::from(epoch % 3 == 2),
        }
    }
}

impl Feed {
    /// From (key, time, diff) a row, split by split.
    pub(crate) fn of(splits: Vec<Vec<(usize, Millis, i64)>>, delay: Millis) -> Feed {
        let split = |(split, rows): (usize, Vec<(usize, Millis, i64)>)| {
            let mut greatest = MARK_NONE;
            let mut row = |(offset, (key, time, diff)): (usize, (usize, Millis, i64))| {
                let mark = mark_less(greatest, delay);
                greatest = greatest.max(time);
                let (split, offset) = (split as u64, offset as u64);
                let n = 100 * (split as i64 + 1) + offset as i64;
                Row { key: KEYS[key], time, n, diff, mark, split, offset }
            };
            rows.into_iter().enumerate().map(&mut row).collect()
        };
        let splits = splits.into_iter().enumerate().map(split).collect();
        Feed { splits, delay, pace: Pace::Steps }
    }

    pub(crate) fn paced(self, pace: Pace) -> Feed {
        Feed { pace, ..self }
    }

    pub(crate) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.splits.iter().flatten()
    }

    /// Random splits: times wander forwards, now and then far back; some rows with diff −1.
    pub(crate) fn random(span: Millis, keys: usize, deletes: bool) -> impl Strategy<Value = Feed> {
        let diff = move |d: u8| if deletes && d == 0 { -1 } else { 1 };
        let row = (0..keys, 0..span, -span..span / 2, 0u8..6);
        let split = prop::collection::vec(row, 0..14).prop_map(move |rows| {
            let mut at = 0;
            let mut rows: Vec<_> = rows
                .into_iter()
                .map(|(key, forward, back, d)| {
                    at += forward / 3;
                    (key, at + back.min(0), diff(d))
                })
                .collect();
            rows.iter_mut().for_each(|row| row.1 = row.1.max(0));
            rows
        });
        (prop::collection::vec(split, 1..4), 0..span / 2)
            .prop_map(|(splits, delay)| Feed::of(splits, delay))
    }
}

/// How a script is played.
#[derive(Clone, Debug)]
pub(crate) struct Cuts {
    /// Rows that a split gives in an epoch, over and over.
    pub(crate) steps: Vec<usize>,
    /// Workers in an epoch, over and over; another number than before means snapshot and restore.
    pub(crate) workers: Vec<usize>,
    /// Whether chunks of an epoch come in reverse, whether strings are dictionaries, and whether
    /// marks come with every chunk.
    pub(crate) flags: (bool, bool, bool),
    /// Epochs at which all state is written and read again.
    pub(crate) restart_every: usize,
}

impl Cuts {
    pub(crate) fn random() -> impl Strategy<Value = Cuts> {
        let steps = prop::collection::vec(0usize..5, 1..9)
            .prop_filter("some rows must move", |s| s.iter().any(|&n| n > 0));
        let flags = (any::<bool>(), any::<bool>(), any::<bool>());
        (steps, prop::collection::vec(1usize..4, 1..4), flags, 1usize..6).prop_map(
            |(steps, workers, flags, restart_every)| Cuts { steps, workers, flags, restart_every },
        )
    }
}

/// What came out.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Played {
    /// Result rows as text, epoch by epoch.
    pub(crate) epochs: Vec<Vec<String>>,
    pub(crate) late: Vec<String>,
    pub(crate) failed: Vec<String>,
    pub(crate) counts: Counts,
}

impl Played {
    /// All result rows, sorted.
    pub(crate) fn rows(&self) -> Vec<String> {
        let mut rows: Vec<String> = self.epochs.concat();
        rows.sort();
        rows
    }
}

/// The schema of every input: k STRING, t TIMESTAMP(3), n BIGINT.
pub(crate) fn schema(prefix: &str) -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    Arc::new(Schema::new(vec![
        Field::new(format!("{prefix}k"), DataType::Utf8, true),
        Field::new(format!("{prefix}t"), time, true),
        Field::new(format!("{prefix}n"), DataType::Int64, true),
    ]))
}

/// A chunk of rows of one split.
pub(crate) fn delta(rows: &[Row], packed: bool, marked: bool) -> Delta {
    let keys = StringArray::from_iter(rows.iter().map(|r| r.key));
    let packing = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    let keys: ArrayRef = match packed {
        true => arrow::compute::cast(&keys, &packing).expect("a test script is sound"),
        false => Arc::new(keys),
    };
    let times: TimestampMillisecondArray = rows.iter().map(|r| Some(r.time)).collect();
    let n: Int64Array = rows.iter().map(|r| Some(r.n)).collect();
    let columns: Vec<ArrayRef> = vec![keys, Arc::new(times), Arc::new(n)];
    let marked = marked || rows.iter().any(|r| r.mark != MARK_NONE && r.time <= r.mark + 1);
    let provenance = Provenance {
        marks: rows.iter().map(|r| r.mark).collect(),
        splits: rows.iter().map(|r| r.split).collect(),
        offsets: rows.iter().map(|r| r.offset).collect(),
    };
    let diffs = rows.iter().map(|r| r.diff).collect();
    Delta {
        rows: batch_of(&schema(""), columns, rows.len()).expect("a test script is sound"),
        diffs: rows.iter().any(|r| r.diff != 1).then_some(diffs),
        provenance: marked.then_some(provenance),
        attached: None,
        origin: Origin::Split { split: SplitId(rows[0].split), offset: rows[0].offset },
    }
}

/// Rows as text: their cells, then what is not plain about them.
pub(crate) fn show(delta: &Delta) -> Vec<String> {
    let rows = unpack(&delta.rows);
    let line = |row: usize| {
        let cell = |column: &ArrayRef| {
            if column.is_null(row) {
                return "-".to_owned();
            }
            match column.data_type() {
                DataType::Timestamp(_, _) => {
                    column.as_primitive::<TimestampMillisecondType>().value(row).to_string()
                }
                _ => array_value_to_string(column, row)
                    .expect("a test script is sound")
                    .replace('\0', "0"),
            }
        };
        let mut text = rows.columns().iter().map(cell).collect::<Vec<_>>().join(" ");
        let time = rows.columns().iter().find_map(|column| {
            column.as_primitive_opt::<TimestampMillisecondType>().map(|times| times.value(row))
        });
        let (mark, time) = (delta.mark(row), time.unwrap_or(0));
        if mark != MARK_NONE && time <= mark + 1 {
            let (split, offset) = delta.place(row);
            text += &format!(" !{mark}@{}/{offset}", split.number());
        }
        match delta.diffs.as_ref().map_or(1, |d| d[row]) {
            1 => text,
            diff => format!("{text} x{diff}"),
        }
    };
    (0..delta.len()).map(line).collect()
}

type Make<'a> = &'a dyn Fn() -> Box<dyn Operator>;

/// Cores that share the keys.
struct Workers<'a> {
    make: Make<'a>,
    cores: Vec<Box<dyn Operator>>,
}

impl Workers<'_> {
    /// Writes all state and reads it again with this many workers.
    fn restart(&mut self, count: usize) {
        let parts: Vec<_> =
            self.cores.iter().flat_map(|c| c.snapshot().expect("a test script is sound")).collect();
        let mine = |worker: usize| {
            let owned = |group: u8| owner(KeyGroup(group), count) == worker;
            let covers = |g: KeyGroups| (g.first..=g.last).any(owned);
            let mine = parts.iter().filter(|p| covers(p.key_groups));
            let mut core = (self.make)();
            core.restore(mine.cloned().collect()).expect("a test script is sound");
            core
        };
        self.cores = (0..count).map(mine).collect();
    }

    fn push(&mut self, port: usize, delta: &Delta, outs: &mut [Output]) {
        let mut groups = Vec::new();
        KeyHasher::over(vec![0]).key_groups(&delta.rows, &mut groups);
        for (worker, core) in self.cores.iter_mut().enumerate() {
            let peers = outs.len();
            let mine = (0..delta.len() as u32)
                .filter(|&row| owner(KeyGroup(groups[row as usize]), peers) == worker);
            let part = delta.take(&mine.collect::<UInt32Array>()).expect("a test script is sound");
            if !part.is_empty() {
                core.push(port, part, &mut outs[worker]).expect("a test script is sound");
            }
        }
    }
}

/// Plays the feeds, one a port, and checks on the way that no row comes out behind the watermark
/// of the output unless its own mark says so.
pub(crate) fn play(make: Make<'_>, feeds: &[Feed], cuts: &Cuts) -> Played {
    let mut taken: Vec<Vec<usize>> = feeds.iter().map(|f| vec![0; f.splits.len()]).collect();
    let mut workers = Workers { make, cores: vec![make()] };
    let mut played = Played::default();
    let (mut steps, mut out_mark) = (cuts.steps.iter().cycle(), MARK_NONE);
    for epoch in 0.. {
        let count = cuts.workers[epoch % cuts.workers.len()];
        if count != workers.cores.len() || epoch % cuts.restart_every == 0 {
            workers.restart(count);
        }
        let mut chunks = Vec::new();
        for (port, (feed, taken)) in feeds.iter().zip(&mut taken).enumerate() {
            for (split, taken) in feed.splits.iter().zip(taken) {
                let next = split.len().min(
                    *taken + feed.pace.rows(epoch, *steps.next().expect("a test script is sound")),
                );
                if next > *taken {
                    chunks.push((port, delta(&split[*taken..next], cuts.flags.1, cuts.flags.2)));
                }
                *taken = next;
            }
        }
        if cuts.flags.0 {
            chunks.reverse();
        }
        let watermarks: Vec<Millis> =
            feeds.iter().zip(&taken).map(|(feed, taken)| watermark(feed, taken)).collect();
        let mut outs: Vec<Output> = (0..count).map(|_| Output::default()).collect();
        chunks.iter().for_each(|(port, chunk)| workers.push(*port, chunk, &mut outs));
        for (core, out) in workers.cores.iter_mut().zip(&mut outs) {
            let end = EpochEnd { epoch: epoch as u64, recorded_time: 0, watermarks: &watermarks };
            core.advance(end, out).expect("a test script is sound");
        }
        note(&mut played, outs, out_mark);
        out_mark = workers.cores[0].output_watermark(&watermarks);
        if watermarks.iter().all(|&mark| mark == MARK_END) {
            return played;
        }
    }
    played
}

/// W of a feed of which so many rows are taken of each split.
pub(crate) fn watermark(feed: &Feed, taken: &[usize]) -> Millis {
    let splits = || feed.splits.iter().zip(taken);
    if splits().all(|(split, &taken)| taken == split.len()) {
        return MARK_END;
    }
    let mark = |(split, &taken): (&Vec<Row>, &usize)| {
        let greatest = split[..taken].iter().map(|r| r.time).max().unwrap_or(MARK_NONE);
        mark_less(greatest, feed.delay)
    };
    splits().filter(|(split, taken)| **taken < split.len()).map(mark).min().unwrap_or(MARK_END)
}

fn note(played: &mut Played, outs: Vec<Output>, out_mark: Millis) {
    let mut rows = Vec::new();
    for out in outs {
        for delta in &out.rows {
            check_time(delta, out_mark);
            rows.extend(show(delta));
        }
        out.late.iter().for_each(|late| played.late.extend(show(late)));
        for (delta, reasons) in &out.failed {
            let lines = show(delta).into_iter().zip(reasons);
            played.failed.extend(lines.map(|(line, why)| format!("{line}: {why}")));
        }
        let (sum, more) = (&mut played.counts, out.counts);
        sum.fired += more.fired;
        sum.late_straggler += more.late_straggler;
        sum.late_idle += more.late_idle;
        sum.versions_gone += more.versions_gone;
        sum.duplicates += more.duplicates;
    }
    played.late.sort();
    played.epochs.push(rows);
}

fn check_time(delta: &Delta, out_mark: Millis) {
    // The time of what passes through is its own; that of a window's row, the window's end less 1
    // ms.
    let (column, less) = match delta.rows.schema().index_of("window_end") {
        Ok(column) => (column, 1),
        Err(_) => (1, 0),
    };
    let times = delta.rows.column(column).as_primitive::<TimestampMillisecondType>();
    for row in 0..delta.len() {
        let (time, mark) = (times.value(row) - less, delta.mark(row));
        assert!(time > out_mark || time <= mark, "{time} is behind {out_mark}");
    }
}
