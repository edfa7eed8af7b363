//! Enrichment against a join written down by its definition, however the input is cut and dealt.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::session::script::{Cuts, Feed, Pace, Played, Row, play, schema};
use arrow::datatypes::Schema;
use expect_test::expect;
use proptest::prelude::*;
use std::sync::Arc;

fn spec(bounded: bool, times: bool, left_outer: bool, keep: Millis) -> TemporalJoinSpec {
    let (left, right) = (schema(""), schema("r"));
    let fields: Vec<_> = left.fields().iter().chain(right.fields()).cloned().collect();
    TemporalJoinSpec {
        left_keys: vec![0],
        right_keys: vec![0],
        left_time: Some(1),
        right_time: times.then_some(1),
        left_outer,
        bounded,
        keep,
        left,
        right,
        output: Arc::new(Schema::new(fields)),
    }
}

fn played(spec: &TemporalJoinSpec, feeds: &[Feed], cuts: &Cuts) -> Played {
    play(&|| Box::new(TemporalJoin::new(spec.clone()).unwrap()), feeds, cuts)
}

/// Left rows with the version that each should get, and the late and the forgotten versions.
fn expected(spec: &TemporalJoinSpec, stream: &Feed, table: &Feed) -> (Vec<String>, u64, u64) {
    let on_time = |r: &&Row| spec.bounded || r.time > r.mark;
    let versions: Vec<&Row> = table.rows().filter(on_time).collect();
    let late = table.rows().count() - versions.len();
    let find = |row: &Row, time: Millis| {
        let mine = versions.iter().filter(|v| v.key.is_some() && v.key == row.key);
        mine.filter(|v| v.time <= time).max_by_key(|v| (v.time, v.split, v.offset))
    };
    let (mut rows, mut gone) = (Vec::new(), 0);
    for row in stream.rows() {
        let oldest = mark_less(row.mark, spec.keep);
        let mut found = find(row, row.time);
        if !spec.bounded && row.mark != MARK_NONE && row.time < oldest {
            found = find(row, oldest);
            if found.is_some_and(|v| v.time > row.time) {
                gone += u64::from(found.is_some_and(|v| v.diff > 0));
                found = None;
            }
        }
        let straggler = row.mark != MARK_NONE && row.time <= row.mark + 1;
        let mark = match straggler {
            true => format!(" !{}@{}/{}", row.mark, row.split, row.offset),
            false => String::new(),
        };
        let diff = if row.diff == 1 { String::new() } else { format!(" x{}", row.diff) };
        let text = |r: &Row| {
            let key = r.key.map_or("-".to_owned(), |k| k.replace('\0', "0"));
            format!("{key} {} {}", r.time, r.n)
        };
        match found.filter(|v| v.diff > 0) {
            Some(v) => rows.push(format!("{} {}{mark}{diff}", text(row), text(v))),
            None if spec.left_outer => rows.push(format!("{} - - -{mark}{diff}", text(row))),
            None => {}
        }
    }
    rows.sort();
    (rows, late as u64, gone)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// An unbounded table by time: what each row gets depends on nothing but what the splits hold.
    #[test]
    fn a_row_gets_the_version_of_its_time(
        stream in Feed::random(40, 4, true),
        table in Feed::random(40, 4, true),
        cuts in Cuts::random(),
        left_outer in any::<bool>(),
        keep in 0i64..60,
    ) {
        let spec = spec(false, true, left_outer, keep);
        let (rows, late, gone) = expected(&spec, &stream, &table);
        let got = played(&spec, &[stream, table], &cuts);
        prop_assert_eq!(got.rows(), rows);
        prop_assert_eq!(got.counts.late_straggler, late);
        prop_assert_eq!(got.counts.versions_gone, gone);
        prop_assert_eq!(got.counts.late_idle, 0);
    }

    /// A bounded table, loaded before: versions count in any order.
    #[test]
    fn a_bounded_table_counts_in_any_order(
        stream in Feed::random(40, 4, false),
        table in Feed::random(40, 4, true),
        cuts in Cuts::random(),
        left_outer in any::<bool>(),
    ) {
        let spec = spec(true, true, left_outer, 0);
        let (rows, _, _) = expected(&spec, &stream, &table);
        let feeds = [stream.paced(Pace::Later), table.paced(Pace::First)];
        prop_assert_eq!(played(&spec, &feeds, &cuts).rows(), rows);
    }

    /// As of the epoch: the cuts decide, but neither workers nor the order of chunks, nor
    /// restarts.
    #[test]
    fn as_of_the_epoch_only_the_cuts_matter(
        stream in Feed::random(40, 4, true),
        table in Feed::random(40, 4, true),
        cuts in Cuts::random(),
    ) {
        let spec = spec(false, false, true, 0);
        let plain = Cuts {
            workers: vec![1],
            flags: (false, false, false),
            restart_every: usize::MAX,
            ..cuts.clone()
        };
        let feeds = [stream, table];
        let sorted = |played: Played| {
            let sort = |mut rows: Vec<String>| {
                // Marks come or not with the chunk.
                rows.sort();
                rows
            };
            played.epochs.into_iter().map(sort).collect::<Vec<_>>()
        };
        prop_assert_eq!(
            sorted(played(&spec, &feeds, &cuts)),
            sorted(played(&spec, &feeds, &plain))
        );
    }
}

fn one(workers: usize, step: usize) -> Cuts {
    Cuts {
        steps: vec![step],
        workers: vec![workers],
        flags: (false, true, false),
        restart_every: 9,
    }
}

fn text(played: &Played) -> String {
    let mut text = String::new();
    for (epoch, rows) in played.epochs.iter().enumerate() {
        text += &format!("{epoch}: {}\n", rows.join("\n   "));
    }
    text + &format!("{:?}\n", played.counts)
}

#[test]
fn rows_wait_for_the_table_and_come_in_order_of_time() {
    let stream = vec![(0, 10, 1), (1, 12, 1), (0, 30, 1), (0, 20, 1), (2, 40, 1), (0, 41, 1)];
    let table = vec![(0, 5, 1), (1, 12, 1), (0, 15, 1), (0, 20, -1), (0, 40, 1), (0, 14, 1)];
    let feeds = [Feed::of(vec![stream], 100), Feed::of(vec![table], 3)];
    expect![[r#"
        0: 
        1: 
        2: a 10 100 a 5 100
           b0 12 101 b0 12 101
        3: a 20 103 - - -
           a 30 102 - - -
        4: c 40 104 - - -
           a 41 105 a 40 104
        Counts { fired: 0, late_straggler: 1, late_idle: 0, versions_gone: 0, duplicates: 0 }
    "#]]
    .assert_eq(&text(&played(&spec(false, true, true, 1000), &feeds, &one(1, 1))));
    expect![[r#"
        0: 
        1: a 10 100 a 5 100
           b0 12 101 b0 12 101
        2: a 41 105 a 40 104
        Counts { fired: 0, late_straggler: 1, late_idle: 0, versions_gone: 0, duplicates: 0 }
    "#]]
    .assert_eq(&text(&played(&spec(false, true, false, 1000), &feeds, &one(2, 2))));
}

#[test]
fn as_of_the_epoch_the_last_row_counts_and_its_deletion() {
    let stream = (0..5).map(|at| (0, at, 1)).collect();
    let table = vec![(0, 9, 1), (0, 2, 1), (1, 0, 1), (0, 0, -1), (0, 1, 1)];
    let feeds = [Feed::of(vec![stream], 0), Feed::of(vec![table], 0)];
    expect![[r#"
        0: a 0 100 a 9 100
        1: a 1 101 a 2 101 !0@0/1
        2: a 2 102 - - - !1@0/2
           a 3 103 - - - !2@0/3
        3: a 4 104 a 1 104 !3@0/4
        Counts { fired: 0, late_straggler: 0, late_idle: 0, versions_gone: 0, duplicates: 0 }
    "#]]
    .assert_eq(&text(&played(&spec(false, false, true, 0), &feeds, &one(1, 1))));
}

#[test]
fn a_row_older_than_what_is_kept_is_counted_unless_its_version_is_known() {
    let stream = vec![(0, 100, 1), (0, 15, 1), (0, 25, 1), (1, 1, 1), (2, 1, 1)];
    let table = vec![(0, 10, 1), (1, 1, 1), (0, 20, 1), (0, 99, 1)];
    let feeds = [Feed::of(vec![stream], 0), Feed::of(vec![table], 0)];
    expect![[r#"
        0: 
        1: 
        2: b0 1 103 - - - !100@0/3
           a 15 101 - - - !100@0/1
           a 25 102 a 20 102 !100@0/2
           a 100 100 a 99 103
        3: c 1 104 - - - !100@0/4
        Counts { fired: 0, late_straggler: 1, late_idle: 0, versions_gone: 1, duplicates: 0 }
    "#]]
    .assert_eq(&text(&played(&spec(false, true, true, 30), &feeds, &one(1, 1))));
}

#[test]
fn versions_are_forgotten_in_time() {
    let mut core = TemporalJoin::new(spec(false, true, true, 10)).unwrap();
    let mut out = Output::default();
    let row = |time: Millis| Row {
        key: Some("a"),
        time,
        n: time,
        diff: 1,
        mark: time - 1,
        split: 0,
        offset: time as u64,
    };
    for time in 0..50_000i64 {
        core.push(1, crate::session::script::delta(&[row(time)], false, false), &mut out).unwrap();
        let end = EpochEnd { epoch: time as u64, recorded_time: 0, watermarks: &[time, time] };
        core.advance(end, &mut out).unwrap();
    }
    let kept: usize = core.snapshot().unwrap().iter().map(|p| p.rows.num_rows()).sum();
    assert_eq!(kept, 2 + 11);
    assert!(core.versions.store.next() < 5_000);
}
