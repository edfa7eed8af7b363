//! Sessions against their rule, written down row by row, however the input is cut and dealt.
#![allow(clippy::unwrap_used)]

use super::script::{Cuts, Feed, Played, Row, play, schema};
use super::*;
use crate::aggregates::AggregateFunction;
use arrow::datatypes::{Field, Schema, TimeUnit};

use expect_test::expect;
use proptest::prelude::*;
use weir_engine::expression::{Column, ExpressionRef};

fn call(function: AggregateFunction, argument: Option<usize>) -> AggregateCall {
    let column = |index| Arc::new(Column { index, data_type: DataType::Int64 }) as ExpressionRef;
    let arguments = argument.map(column).into_iter().collect();
    AggregateCall { function, distinct: false, arguments, filter: None, output: DataType::Int64 }
}

fn spec(gap: Millis) -> SessionAggregateSpec {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    let output = Schema::new(vec![
        Field::new("k", DataType::Utf8, true),
        Field::new("window_start", time.clone(), false),
        Field::new("window_end", time, false),
        Field::new("rows", DataType::Int64, false),
        Field::new("n", DataType::Int64, true),
        Field::new("most", DataType::Int64, true),
    ]);
    SessionAggregateSpec {
        gap,
        time: 1,
        keys: vec![0],
        calls: vec![
            call(AggregateFunction::CountRows, None),
            call(AggregateFunction::Sum, Some(2)),
            call(AggregateFunction::Max, Some(2)),
        ],
        collect_late: true,
        input: schema(""),
        output: Arc::new(output),
    }
}

fn played(gap: Millis, feed: &Feed, cuts: &Cuts) -> Played {
    let make = || Box::new(SessionAggregate::new(spec(gap)).unwrap()) as Box<dyn Operator>;
    play(&make, std::slice::from_ref(feed), cuts)
}

type Session<'a> = (Millis, Millis, Vec<&'a Row>);

/// The rule, with all rows at hand: rows in order by pairs, then stragglers one after the other.
fn sessions<'a>(rows: &[&'a Row], gap: Millis) -> (Vec<Session<'a>>, Vec<&'a Row>) {
    let straggles = |r: &&&Row| r.mark != MARK_NONE && r.time <= r.mark;
    let in_order: Vec<&Row> = rows.iter().filter(|r| !straggles(r)).copied().collect();
    let mut label: Vec<usize> = (0..in_order.len()).collect();
    for (i, a) in in_order.iter().enumerate() {
        for (j, b) in in_order.iter().enumerate() {
            let apart = b.time - a.time;
            if apart >= 0 && apart <= gap && (b.mark == MARK_NONE || a.time + gap - 1 > b.mark) {
                let (old, new) = (label[i], label[j]);
                label.iter_mut().filter(|l| **l == old).for_each(|l| *l = new);
            }
        }
    }
    let mut open: Vec<Session> = Vec::new();
    for of in 0..in_order.len() {
        let members = (0..in_order.len()).filter(|&i| label[i] == of).map(|i| in_order[i]);
        let members: Vec<&Row> = members.collect();
        if let Some(first) = members.iter().map(|r| r.time).min() {
            open.push((first, members.iter().map(|r| r.time).max().unwrap(), members));
        }
    }
    let mut stragglers: Vec<&Row> = rows.iter().filter(straggles).copied().collect();
    stragglers.sort_by_key(|r| (r.mark, r.split, r.offset));
    let mut late = Vec::new();
    for row in stragglers {
        let (joined, mut rest): (Vec<Session>, Vec<Session>) =
            open.into_iter().partition(|(first, last, _)| {
                *first <= row.time + gap && row.time <= last + gap && last + gap - 1 > row.mark
            });
        if joined.is_empty() && row.time + gap - 1 <= row.mark {
            late.push(row);
        } else {
            let mut own = (row.time, row.time, vec![row]);
            for (first, last, members) in joined {
                own = (own.0.min(first), own.1.max(last), [own.2, members].concat());
            }
            rest.push(own);
        }
        open = rest;
    }
    (open, late)
}

fn expected(feed: &Feed, gap: Millis) -> (Vec<String>, Vec<String>) {
    let (mut made, mut lates) = (Vec::new(), Vec::new());
    let mut keys: Vec<_> = feed.rows().map(|r| r.key).collect();
    keys.sort();
    keys.dedup();
    for key in keys {
        let rows: Vec<&Row> = feed.rows().filter(|r| r.key == key).collect();
        let key = key.map_or("-".into(), |k| k.replace('\0', "0"));
        let (sessions, late) = sessions(&rows, gap);
        for (first, last, members) in sessions {
            let n: i64 = members.iter().map(|r| r.n).sum();
            let most = members.iter().map(|r| r.n).max().unwrap();
            made.push(format!("{key} {first} {} {} {n} {most}", last + gap, members.len()));
        }
        for r in late {
            let by = r.mark - (r.time + gap - 1);
            let place = format!("!{}@{}/{}", r.mark, r.split, r.offset);
            lates.push(format!("{key} {} {} straggler {} {by} {place}", r.time, r.n, r.mark));
        }
    }
    made.sort();
    lates.sort();
    (made, lates)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Epochs, chunks, workers, restarts and the order of splits change nothing.
    #[test]
    fn sessions_are_those_of_the_rule(
        feed in Feed::random(30, 4, false),
        cuts in Cuts::random(),
        gap in 1i64..25,
    ) {
        let (made, late) = expected(&feed, gap);
        let got = played(gap, &feed, &cuts);
        prop_assert_eq!(got.rows(), made);
        prop_assert_eq!(got.counts.late_straggler, late.len() as u64);
        prop_assert_eq!(got.counts.late_idle, 0);
        prop_assert_eq!(got.late, late);
    }

    /// The hard case for `<` and `<=`: few, small numbers, one key.
    #[test]
    fn also_on_the_edges(
        feed in Feed::random(9, 1, false),
        cuts in Cuts::random(),
        gap in 1i64..6,
    ) {
        let (made, late) = expected(&feed, gap);
        let got = played(gap, &feed, &cuts);
        prop_assert_eq!(got.rows(), made);
        prop_assert_eq!(got.late, late);
    }
}

fn text(gap: Millis, splits: Vec<Vec<(usize, Millis, i64)>>, delay: Millis) -> String {
    let cuts = Cuts {
        steps: vec![1],
        workers: vec![1],
        flags: (false, true, false),
        restart_every: usize::MAX,
    };
    let got = played(gap, &Feed::of(splits, delay), &cuts);
    let epochs = got.epochs.iter().enumerate();
    let lines = epochs.map(|(at, rows)| format!("{at}: {}\n", rows.join(", ")));
    lines.collect::<String>() + &format!("late {:?}\n", got.late)
}

#[test]
fn a_session_fires_once_its_gap_has_passed() {
    // Two rows of key a 10 apart, one of b between; the watermark trails by 2.
    let rows = vec![(0, 100, 1), (1, 105, 1), (0, 110, 1), (2, 116, 1), (2, 122, 1), (2, 200, 1)];
    expect![[r#"
        0: 
        1: 
        2: b0 105 115 1 101 101
        3: a 100 120 2 202 102
        4: c 116 132 2 207 104, c 200 210 1 105 105
        late []
    "#]]
    .assert_eq(&text(10, vec![rows], 2));
}

#[test]
fn a_straggler_joins_what_it_touches_or_is_late() {
    // Of key a: 108 joins what begins at 115, not what ended at 110 = its L; 20 is late; 130 opens
    // its own.
    let rows = vec![(0, 100, 1), (1, 112, 1), (0, 115, 1), (0, 108, 1), (0, 20, 1), (1, 138, 1)];
    let more = vec![(0, 130, 1), (1, 150, 1)];
    expect![[r#"
        0: 
        1: 
        2: a 100 110 1 100 100
        3: 
        4: b0 112 122 1 101 101, a 108 125 2 205 103
        5: a 130 140 1 106 106, b0 138 148 1 105 105, b0 150 160 1 107 107
        late ["a 20 104 straggler 110 81 !110@0/4"]
    "#]]
    .assert_eq(&text(10, vec![[rows, more].concat()], 5));
}

#[test]
fn what_begins_at_the_end_of_a_straggler_joins_it() {
    // The straggler's session ends at 19, and W reaches 18 before the row at 19 (L = 18) has come.
    let first = vec![(1, 10, 1), (0, 9, 1), (1, 18, 1), (0, 19, 1), (1, 60, 1)];
    expect![[r#"
        0: 
        1: 
        2: 
        3: b0 10 28 2 202 102, a 9 29 2 204 103, b0 60 70 1 104 104
        late []
    "#]]
    .assert_eq(&text(10, vec![first], 0));
}

#[test]
fn memory_follows_what_is_open() {
    let mut core = SessionAggregate::new(spec(10)).unwrap();
    for at in 0..20_000i64 {
        let key = [Some("a"), Some("b"), Some("c")][at as usize % 3];
        let row = |time, mark, offset| Row { key, time, n: at, diff: 1, mark, split: 0, offset };
        let rows =
            [row(20 * at, MARK_NONE, 2 * at as u64), row(20 * at - 3, 20 * at, 2 * at as u64)];
        let mut out = Output::default();
        core.push(0, script::delta(&rows, false, false), &mut out).unwrap();
        let end = EpochEnd { epoch: at as u64, recorded_time: 0, watermarks: &[20 * at] };
        core.advance(end, &mut out).unwrap();
    }
    assert!(core.groups.next < 20, "{}", core.groups.next);
    assert!(core.rows.next() < 2 * DEAD_MIN as u32, "{}", core.rows.next());
    assert!(core.due.len() < 20, "{}", core.due.len());
}

#[test]
fn a_split_that_was_idle_is_late_against_the_watermark() {
    let mut core = SessionAggregate::new(spec(10)).unwrap();
    let mut out = Output::default();
    let rows =
        [Row { key: Some("a"), time: 50, n: 1, diff: 1, mark: MARK_NONE, split: 1, offset: 0 }];
    for (epoch, watermark) in [(1, 100), (2, 101)] {
        if epoch == 2 {
            core.push(0, script::delta(&rows, true, false), &mut out).unwrap();
        }
        let end = EpochEnd { epoch, recorded_time: 0, watermarks: &[watermark] };
        core.advance(end, &mut out).unwrap();
    }
    let late: Vec<String> = out.late.iter().flat_map(script::show).collect();
    expect![["a 50 1 idle - 41"]].assert_eq(&late.concat());
    assert_eq!((out.counts.late_straggler, out.counts.late_idle), (0, 1));
}

#[test]
fn what_cannot_be_taken_back_is_refused() {
    let mut core = SessionAggregate::new(spec(10)).unwrap();
    let feed = Feed::of(vec![vec![(0, 10, -1)]], 0);
    let chunk = script::delta(&feed.splits[0], false, false);
    assert!(core.push(0, chunk, &mut Output::default()).is_err());
    assert!(SessionAggregate::new(spec(0)).is_err());
}
