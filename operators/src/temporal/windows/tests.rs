//! The join as of windows against its definition, however the input is cut and dealt.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::session::script::{Cuts, Feed, Played, Row, play, schema};
use arrow::datatypes::Schema;
use expect_test::expect;
use proptest::prelude::*;
use std::sync::Arc;

fn spec(
    slide: Millis,
    offset: Millis,
    left_outer: bool,
    version_is_end: bool,
) -> WindowVersionJoinSpec {
    let (left, right) = (schema(""), schema("r"));
    let fields: Vec<_> = left.fields().iter().chain(right.fields()).cloned().collect();
    WindowVersionJoinSpec {
        left_keys: vec![0],
        right_keys: vec![0],
        left_time: 1,
        right_version: 1,
        version_is_end,
        slide,
        offset,
        left_outer,
        collect_late: true,
        left,
        right,
        output: Arc::new(Schema::new(fields)),
    }
}

/// Windows that a view over the readings could fire: a row at end − 1 for some keys and ends, in
/// order.
fn view(spec: &WindowVersionJoinSpec, some: &[bool], last: Millis) -> Feed {
    let mut rows = Vec::new();
    let mut end = floor_to(0, spec.slide, spec.offset);
    for (place, &some) in some.iter().enumerate() {
        let version = if spec.version_is_end { end } else { end - 1 };
        if some && version >= 0 && end <= last {
            rows.push((place % 3, version, 1));
        }
        if place % 3 == 2 {
            end += spec.slide;
        }
    }
    // A view's W may pass end − 1 only with the end's rows: so its mark trails them by one.
    Feed::of(vec![rows], if spec.version_is_end { 2 } else { 1 })
}

fn played(spec: &WindowVersionJoinSpec, feeds: &[Feed], cuts: &Cuts) -> Played {
    play(&|| Box::new(WindowVersionJoin::new(spec.clone()).unwrap()), feeds, cuts)
}

fn text(r: &Row) -> String {
    format!("{} {} {}", r.key.map_or("-".into(), |k| k.replace('\0', "0")), r.time, r.n)
}

fn expected(
    spec: &WindowVersionJoinSpec,
    readings: &Feed,
    view: &Feed,
) -> (Vec<String>, Vec<String>) {
    let (mut rows, mut late) = (Vec::new(), Vec::new());
    for row in readings.rows() {
        let straggler = row.mark != MARK_NONE && row.time <= row.mark + 1;
        let place = format!(" !{}@{}/{}", row.mark, row.split, row.offset);
        let place = if straggler { place } else { String::new() };
        if row.mark != MARK_NONE && row.time <= row.mark {
            let by = row.mark - row.time;
            late.push(format!("{} straggler {} {by}{place}", text(row), row.mark));
            continue;
        }
        let end = floor_to(row.time, spec.slide, spec.offset);
        let version = if spec.version_is_end { end } else { end - 1 };
        let of = |w: &&Row| w.key.is_some() && w.key == row.key && w.time == version;
        match view.rows().find(of) {
            Some(w) => rows.push(format!("{} {}{place}", text(row), text(w))),
            None if spec.left_outer => rows.push(format!("{} - - -{place}", text(row))),
            None => {}
        }
    }
    rows.sort();
    late.sort();
    (rows, late)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// Each reading that is not late gets the window that ends at or just before it.
    #[test]
    fn a_reading_gets_its_window(
        readings in Feed::random(40, 4, false),
        some in prop::collection::vec(any::<bool>(), 0..40),
        cuts in Cuts::random(),
        slide in 1i64..30,
        offset in 0i64..30,
        flags in any::<(bool, bool)>(),
    ) {
        let spec = spec(slide, offset, flags.0, flags.1);
        let view = view(&spec, &some, 1000);
        let (rows, late) = expected(&spec, &readings, &view);
        let got = played(&spec, &[readings, view], &cuts);
        prop_assert_eq!(got.rows(), rows);
        prop_assert_eq!(got.counts.late_straggler, late.len() as u64);
        prop_assert_eq!(got.late, late);
    }
}

#[test]
fn readings_wait_for_their_window_and_come_in_order() {
    let spec = spec(10, 0, true, true);
    let readings =
        vec![(1, 8, 1), (0, 25, 1), (0, 12, 1), (1, 19, 1), (0, 31, 1), (2, 60, 1), (0, 9, 1)];
    let view = vec![(0, 10, 1), (1, 10, 1), (0, 20, 1), (1, 30, 1), (0, 50, 1)];
    let feeds = [Feed::of(vec![readings], 15), Feed::of(vec![view], 2)];
    let cuts =
        Cuts { steps: vec![1], workers: vec![1], flags: (false, true, true), restart_every: 3 };
    let got = played(&spec, &feeds, &cuts);
    let epochs: Vec<String> = got.epochs.iter().map(|rows| rows.join(", ")).collect();
    expect![[r#"
        b0 8 100 - - -

        a 12 102 a 10 100, b0 19 103 b0 10 101, a 25 101 a 20 102
        a 31 104 - - -
        c 60 105 - - -

        late ["a 9 106 straggler 45 36 !45@0/6"]
        Counts { fired: 0, late_straggler: 1, late_idle: 0, versions_gone: 0, duplicates: 0 }
    "#]]
    .assert_eq(&format!("{}\nlate {:?}\n{:?}\n", epochs.join("\n"), got.late, got.counts));
}

#[test]
fn windows_are_dropped_in_time() {
    let mut core = WindowVersionJoin::new(spec(10, 0, true, true)).unwrap();
    let row = |time: Millis| Row {
        key: Some("a"),
        time,
        n: time,
        diff: 1,
        mark: MARK_NONE,
        split: 0,
        offset: time as u64,
    };
    for at in 1..200i64 {
        let mut out = Output::default();
        let chunk = |time| crate::session::script::delta(&[row(time)], false, false);
        core.push(1, chunk(10 * at), &mut out).unwrap();
        core.push(0, chunk(10 * at + 1), &mut out).unwrap();
        let watermarks = [10 * at - 5, 10 * at - 5];
        let end = EpochEnd { epoch: at as u64, recorded_time: 0, watermarks: &watermarks };
        core.advance(end, &mut out).unwrap();
    }
    assert_eq!(core.windows.len(), 2);
    assert_eq!(core.windows.keys().copied().collect::<Vec<_>>(), [1980, 1990]);
}

#[test]
fn a_view_that_takes_rows_back_is_refused() {
    let mut core = WindowVersionJoin::new(spec(10, 0, true, true)).unwrap();
    let taken_back = Feed::of(vec![vec![(0, 10, -1)]], 0);
    let chunk = crate::session::script::delta(&taken_back.splits[0], false, false);
    assert!(core.push(1, chunk, &mut Output::default()).is_err());
}
