//! Windows against an oracle that puts each row into every window, by the letter of the rules; and
//! snapshots: whatever is stopped, split by key group and restored goes on as if nothing had been.

use proptest::prelude::*;
use std::collections::BTreeMap;
use weir_engine::keys::{KeyGroups, encode_value, key_group};

use super::*;

const KEYS: [&str; 5] = ["a", "b", "ab", "-", "c"];

/// Split, key, step of time, value in eighths.
type Step = (usize, usize, i64, i32);

#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) shape: WindowShape,
    delay: Millis,
    pub(super) dictionary: bool,
    extremes: bool,
    /// Per epoch: rows, and a split that is idle.
    epochs: Vec<(Vec<Step>, Option<usize>)>,
    /// Seeds of chunking.
    pub(super) cuts: Vec<usize>,
    /// The epoch after which all is snapshotted, and whether two cores go on.
    pub(super) stop: usize,
    split: bool,
}

fn shapes() -> impl Strategy<Value = WindowShape> {
    prop_oneof![
        (1..30_i64, -7..7_i64).prop_map(|(size, offset)| WindowShape::Tumble { size, offset }),
        (1..30_i64, 1..30_i64, -7..7_i64).prop_map(|(size, slide, offset)| WindowShape::Hop {
            size,
            slide,
            offset
        }),
        (10..40_i64, 1..6_i64, -7..7_i64).prop_map(|(size, slide, offset)| WindowShape::Hop {
            size,
            slide,
            offset
        }),
        (1..6_i64, 1..7_i64, -7..7_i64).prop_map(|(step, steps, offset)| WindowShape::Cumulate {
            size: step * steps,
            step,
            offset
        }),
    ]
}

pub(super) fn cases() -> impl Strategy<Value = Case> {
    let row = (0..3_usize, 0..KEYS.len(), -25..35_i64, -40..40_i32);
    let epoch = (prop::collection::vec(row, 0..12), prop::option::of(0..3_usize));
    (
        shapes(),
        0..12_i64,
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec(epoch, 1..9),
        prop::collection::vec(1..6_usize, 4),
        0..9_usize,
        any::<bool>(),
    )
        .prop_map(|(shape, delay, dictionary, extremes, epochs, cuts, stop, split)| Case {
            shape,
            delay,
            dictionary,
            extremes,
            epochs,
            cuts,
            stop,
            split,
        })
}

/// Rows with their marks, and W, epoch by epoch, as a source with three splits gives them.
pub(super) fn stream(case: &Case) -> Vec<(Vec<Row>, Millis)> {
    let mut greatest = [MARK_NONE; 3];
    let (mut watermark, mut clock) = (MARK_NONE, 0);
    let mark = |greatest: Millis| {
        if greatest == MARK_NONE { MARK_NONE } else { greatest - case.delay }
    };
    let mut epochs = Vec::new();
    for (rows, idle) in &case.epochs {
        let mut made = Vec::new();
        for &(split, key, step, value) in rows {
            let ts = clock + step;
            clock = clock.max(ts - 5);
            made.push((KEYS[key], Some(ts), f64::from(value) / 8.0, mark(greatest[split]), 1));
            greatest[split] = greatest[split].max(ts);
        }
        let active =
            (0..3).filter(|split| Some(*split) != *idle).map(|split| mark(greatest[split]));
        watermark = watermark.max(active.min().unwrap_or(MARK_NONE));
        epochs.push((made, watermark));
    }
    epochs.push((Vec::new(), MARK_END));
    epochs
}

/// Ends of the windows that hold a time, by definition.
fn windows_of(shape: WindowShape, ts: Millis) -> Vec<(Millis, Millis)> {
    let (size, slide, offset) = match shape {
        WindowShape::Tumble { size, offset } => (size, size, offset),
        WindowShape::Hop { size, slide, offset } => (size, slide, offset),
        WindowShape::Cumulate { size, step, offset } => {
            let start = (ts - offset).div_euclid(size) * size + offset;
            return (1..=size / step)
                .map(|n| (start, start + n * step))
                .filter(|window| ts < window.1)
                .collect();
        }
    };
    (-300..=300)
        .map(|n| ((ts - offset).div_euclid(slide) + n) * slide + offset)
        .map(|start| (start, start + size))
        .filter(|window| window.0 <= ts && ts < window.1)
        .collect()
}

/// Results in one line, as [`lines`] shows them.
fn result(values: &[f64], extremes: bool) -> String {
    let (n, sum) = (values.len(), values.iter().sum::<f64>());
    let mut distinct = values.to_vec();
    distinct.sort_by(f64::total_cmp);
    distinct.dedup();
    let sums = format!("{n} {:?} {:?} {}", sum, sum / n as f64, distinct.len());
    if extremes {
        return format!("{sums} {:?} {:?}", distinct[0], distinct[distinct.len() - 1]);
    }
    let squares: f64 = values.iter().map(|v| v * v).sum();
    let variance = (n as f64 * squares - sum * sum) / (n * n) as f64;
    format!("{sums} {variance:?}")
}

const SUMS: [&str; 5] = ["rows", "sum", "avg", "count distinct", "var"];
const EXTREMES: [&str; 6] = ["rows", "sum", "avg", "count distinct", "min", "max"];

/// What each epoch gives: firings in order, late rows sorted.
pub(super) fn oracle(case: &Case) -> Vec<(Vec<String>, Vec<String>)> {
    type Windows = BTreeMap<(Millis, Vec<u8>), (String, Millis, Vec<f64>)>;
    let (mut open, mut before, mut all) = (Windows::new(), MARK_NONE, Vec::new());
    for (rows, watermark) in stream(case) {
        let mut late = Vec::new();
        for (key, ts, value, mark, _) in rows {
            let (ts, late_at) = (ts.unwrap(), mark.max(before));
            let windows = windows_of(case.shape, ts);
            let name = if key == "-" { "NULL" } else { key };
            for &(start, end) in windows.iter().filter(|window| window.1 - 1 > late_at) {
                let key = StringArray::from(vec![Some(key).filter(|key| *key != "-")]);
                let mut bytes = Vec::new();
                encode_value(&key, 0, &mut bytes);
                let entry = open.entry((end, bytes));
                entry.or_insert_with(|| (name.into(), start, Vec::new())).2.push(value);
            }
            if let Some(last) = windows.last()
                && last.1 - 1 <= late_at
            {
                let reason = if last.1 - 1 <= mark { "straggler" } else { "idle" };
                let mark =
                    if ts <= mark.saturating_add(1) { mark.to_string() } else { "NULL".into() };
                let by = late_at - (last.1 - 1);
                late.push(format!("late {name} {ts} {value:?} {reason} {mark} {by}"));
            }
        }
        let mut fired = Vec::new();
        while let Some(first) = open.first_entry()
            && first.key().0 - 1 <= watermark
        {
            let ((end, _), (key, start, values)) = first.remove_entry();
            fired.push(format!("{key} {start} {end} {}", result(&values, case.extremes)));
        }
        late.sort();
        all.push((fired, late));
        before = watermark;
    }
    all
}

pub(super) fn calls_of(case: &Case) -> &'static [&'static str] {
    if case.extremes { &EXTREMES } else { &SUMS }
}

pub(super) fn fresh(case: &Case) -> WindowAggregate {
    window(case.shape, &[0], calls_of(case), case.dictionary)
}

fn group_of(key: &str) -> u8 {
    let mut bytes = Vec::new();
    let key = StringArray::from(vec![Some(key).filter(|key| *key != "-")]);
    encode_value(&key, 0, &mut bytes);
    key_group(&bytes).0
}

/// What a set of cores, each with its key groups, gives for one epoch.
pub(super) fn epoch(
    cores: &mut [(KeyGroups, WindowAggregate)],
    case: &Case,
    rows: &[Row],
    watermark: Millis,
) -> (Vec<String>, Vec<String>) {
    let (mut fired, mut late) = (Vec::new(), Vec::new());
    for (groups, core) in cores {
        let mut out = Output::default();
        let own = |row: &&Row| (groups.first..=groups.last).contains(&group_of(row.0));
        let mut rows: Vec<Row> = rows.iter().filter(own).copied().collect();
        // Chunks of any size, in any order.
        let mut chunks = Vec::new();
        for cut in case.cuts.iter().cycle() {
            let rest = rows.split_off(rows.len().min(*cut));
            chunks.push(chunk(&std::mem::replace(&mut rows, rest), case.dictionary));
            if rows.is_empty() {
                break;
            }
        }
        if case.cuts[0].is_multiple_of(2) {
            chunks.reverse();
        }
        chunks.into_iter().for_each(|chunk| core.push(0, chunk, &mut out).unwrap());
        let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[watermark] };
        core.advance(end, &mut out).unwrap();
        let (late_lines, fired_lines): (Vec<String>, Vec<String>) =
            lines(&out).into_iter().partition(|line| line.starts_with("late"));
        fired.push(fired_lines);
        late.extend(late_lines);
    }
    late.sort();
    (merged(fired), late)
}

/// Firings of several cores in order of (end, key bytes).
fn merged(fired: Vec<Vec<String>>) -> Vec<String> {
    let order = |line: &String| {
        let words: Vec<&str> = line.split(' ').collect();
        let key = if words[0] == "NULL" { String::new() } else { words[0].to_owned() };
        (words[2].parse::<Millis>().unwrap(), key)
    };
    if fired.len() == 1 {
        return fired.into_iter().flatten().collect();
    }
    let mut all: Vec<String> = fired.into_iter().flatten().collect();
    all.sort_by_key(order);
    all
}

fn real(case: &Case) -> Vec<(Vec<String>, Vec<String>)> {
    let mut cores = vec![(KeyGroups::ALL, fresh(case))];
    let mut all = Vec::new();
    for (at, (rows, watermark)) in stream(case).into_iter().enumerate() {
        all.push(epoch(&mut cores, case, &rows, watermark));
        if at == case.stop {
            let parts = cores[0].1.snapshot().unwrap();
            let halves = [KeyGroups { first: 0, last: 127 }, KeyGroups { first: 128, last: 255 }];
            let owners: &[KeyGroups] = if case.split { &halves } else { &[KeyGroups::ALL] };
            cores = owners.iter().map(|owner| (*owner, fresh(case))).collect();
            for (owner, core) in &mut cores {
                let mine = parts.iter().filter(|part| {
                    part.key_groups == KeyGroups::ALL
                        || (owner.first..=owner.last).contains(&part.key_groups.first)
                });
                core.restore(mine.cloned().collect()).unwrap();
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn windows_are_what_the_rules_say_through_any_chunking_and_restart(case in cases()) {
        prop_assert_eq!(real(&case), oracle(&case));
    }

    #[test]
    fn a_snapshot_is_the_same_after_a_restart(case in cases()) {
        let mut cores = vec![(KeyGroups::ALL, fresh(&case))];
        for (rows, watermark) in stream(&case).into_iter().take(case.stop) {
            epoch(&mut cores, &case, &rows, watermark);
        }
        let before = cores[0].1.snapshot().unwrap();
        let mut after = fresh(&case);
        after.restore(before.clone()).unwrap();
        let rows = |parts: Vec<weir_engine::operator::StatePart>| {
            parts.into_iter().map(|part| part.rows).collect::<Vec<_>>()
        };
        prop_assert_eq!(rows(before), rows(after.snapshot().unwrap()));
    }
}
