//! Pre-aggregation: whatever is added up before, the window behind it says the same.

use arrow::array::UInt32Array;
use proptest::prelude::*;
use weir_engine::keys::KeyGroups;
use weir_engine::operator::StatePart;

use super::laws::{Case, calls_of, cases, oracle, stream};
use super::*;
use crate::window::PreAggregate;

const ONE_KEY: &[&str] = &["rows", "avg", "max"];

fn before(case: &Case) -> PreAggregate {
    let spec = spec(case.shape, &[0], calls_of(case), case.dictionary);
    let mut operator = PreAggregate::new(spec).unwrap();
    // So few rows as a case has would mostly pass.
    if case.stop.is_multiple_of(2) {
        operator.rows_a_group = 0;
    }
    operator
}

/// As many operators that share out what these have of each key group.
fn restarted(case: &Case, workers: [PreAggregate; 2]) -> [PreAggregate; 2] {
    let parts: Vec<StatePart> = workers.iter().flat_map(|w| w.snapshot().unwrap()).collect();
    [0, 1].map(|owner| {
        let mine = |part: &StatePart| {
            part.key_groups == KeyGroups::ALL || part.key_groups.first % 2 == owner
        };
        let mut fresh = before(case);
        fresh.restore(parts.iter().filter(|part| mine(part)).cloned().collect()).unwrap();
        fresh
    })
}

/// What two workers' rows come to when each adds its own up first; each is restarted once.
fn real(case: &Case) -> Vec<(Vec<String>, Vec<String>)> {
    let mut workers = [before(case), before(case)];
    let mut window = window(case.shape, &[0], calls_of(case), case.dictionary);
    let mut all = Vec::new();
    for (at, (rows, watermark)) in stream(case).into_iter().enumerate() {
        let (mut given, mut out) = (Output::default(), Output::default());
        let size = case.cuts[at % case.cuts.len()];
        for (number, rows) in rows.chunks(size).enumerate() {
            workers[number % 2].push(0, chunk(rows, case.dictionary), &mut given).unwrap();
        }
        let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[watermark] };
        workers.iter_mut().for_each(|worker| worker.advance(end, &mut given).unwrap());
        for (number, delta) in given.rows.into_iter().enumerate() {
            // Dealt out as between workers; some as if from another process.
            let (far, count) = ((number + at) % 2 == 1, delta.len() as u32);
            for part in [0, 1] {
                let rows: Vec<u32> = (0..count).filter(|row| row % 2 == part).collect();
                let delta = delta.take(&UInt32Array::from(rows)).unwrap();
                let delta = if far { delta.detached().unwrap() } else { delta };
                window.push(0, delta, &mut out).unwrap();
            }
        }
        window.advance(end, &mut out).unwrap();
        let (mut late, fired): (Vec<String>, Vec<String>) =
            lines(&out).into_iter().partition(|line| line.starts_with("late"));
        late.sort();
        all.push((fired, late));
        if at == case.stop {
            workers = restarted(case, workers);
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn what_was_added_up_before_says_the_same(case in cases()) {
        prop_assert_eq!(real(&case), oracle(&case));
    }
}

/// Rows that leave the operator for an epoch of `rows` rows of `keys` keys, 1 ms each from `from`
/// on, when W reaches the last.
fn given(operator: &mut PreAggregate, from: Millis, rows: usize, keys: usize) -> usize {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let row = |n: usize| (NAMES[n % keys % 4], Some(from + (n / keys) as i64), 1.0, MARK_NONE, 1);
    let mut out = Output::default();
    let all: Vec<Row> = (0..rows).map(row).collect();
    all.chunks(5_000).for_each(|part| operator.push(0, chunk(part, false), &mut out).unwrap());
    let end = from + (rows / keys) as i64 - 1;
    let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[end] };
    operator.advance(end, &mut out).unwrap();
    out.rows.iter().map(Delta::len).sum()
}

#[test]
fn groups_of_many_rows_are_added_up_until_their_pane_ends() {
    let shape = WindowShape::Tumble { size: 10_000, offset: 0 };
    let mut operator = PreAggregate::new(spec(shape, &[0], ONE_KEY, false)).unwrap();
    let epoch = |n: Millis| given(&mut operator, n * 5_000, 20_000, 4);
    assert_eq!([0, 1, 2, 3, 4, 5].map(epoch), [0, 4, 0, 4, 0, 4]);
}

#[test]
fn groups_of_few_rows_pass_and_are_tried_ever_more_seldom() {
    let shape = WindowShape::Tumble { size: 2, offset: 0 };
    let mut operator = PreAggregate::new(spec(shape, &[0], ONE_KEY, false)).unwrap();
    // Two rows a group: 1 000 rows become 500; then 16 000 rows pass, then 32 000.
    let epoch = |n: Millis| given(&mut operator, n * 250, 1_000, 4);
    let sizes: Vec<usize> = (0..60).map(epoch).collect();
    let tried: Vec<usize> = (0..60).filter(|&n| sizes[n] == 500).collect();
    assert_eq!(tried, [0, 17, 50]);
    assert!(sizes.iter().all(|&size| size == 500 || size == 1_000));
}

#[test]
fn panes_that_overlap_by_the_delay_are_worth_it_all_the_same() {
    let shape = WindowShape::Tumble { size: 100, offset: 0 };
    let mut operator = PreAggregate::new(spec(shape, &[0], ONE_KEY, false)).unwrap();
    let mut given = 0;
    for n in 0..100 {
        let row = |i: i64| (["a", "b"][i as usize % 2], Some(n * 100 + i), 1.0, MARK_NONE, 1);
        let rows: Vec<Row> = (0..100).map(row).collect();
        let mut out = Output::default();
        operator.push(0, chunk(&rows, false), &mut out).unwrap();
        // Ten panes are always open, with 50 rows a group.
        let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[n * 100 - 1_000] };
        operator.advance(end, &mut out).unwrap();
        given += out.rows.iter().map(Delta::len).sum::<usize>();
    }
    assert_eq!(given, 2 * 90 - 2);
}

#[test]
fn memory_is_bounded() {
    let shape = WindowShape::Tumble { size: 100, offset: 0 };
    let mut operator = PreAggregate::new(spec(shape, &[0, 1], ONE_KEY, false)).unwrap();
    let rows: Vec<Row> =
        (0..400_000).map(|n| ("a", Some(i64::from(n)), 1.0, MARK_NONE, 1)).collect();
    let mut out = Output::default();
    for part in rows.chunks(5_000) {
        operator.push(0, chunk(part, false), &mut out).unwrap();
    }
    let held: usize = operator.snapshot().unwrap().iter().map(|part| part.rows.num_rows()).sum();
    assert!(held < 75_000, "{held} groups");
    assert!(out.rows.iter().map(Delta::len).sum::<usize>() > 300_000);
}

#[test]
fn stragglers_pass() {
    let shape = WindowShape::Tumble { size: 10, offset: 0 };
    let mut operator = PreAggregate::new(spec(shape, &[0], ONE_KEY, false)).unwrap();
    let mut out = Output::default();
    let rows = [("a", Some(5), 1.0, 9, 1), ("a", Some(6), 1.0, MARK_NONE, 1)];
    operator.push(0, chunk(&rows, false), &mut out).unwrap();
    assert_eq!(out.rows.len(), 1);
    assert!(out.rows[0].provenance.is_some());
}

#[test]
fn the_event_time_may_be_a_key() {
    let shape = WindowShape::Tumble { size: 10, offset: 0 };
    let rows: Vec<Row> =
        (0..40).map(|n| ("a", Some(20 + n % 4), f64::from(n as i32), MARK_NONE, 1)).collect();
    let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[MARK_END] };
    let spec = || spec(shape, &[1, 0], &["rows", "sum"], false);
    let fired = |deltas: Vec<Delta>| {
        let (mut out, mut window) = (Output::default(), WindowAggregate::new(spec()).unwrap());
        deltas.into_iter().for_each(|delta| window.push(0, delta, &mut out).unwrap());
        window.advance(end, &mut out).unwrap();
        lines(&out)
    };
    let (mut before, mut given) = (PreAggregate::new(spec()).unwrap(), Output::default());
    before.push(0, chunk(&rows, false), &mut given).unwrap();
    before.advance(end, &mut given).unwrap();
    assert_eq!(given.rows.iter().map(Delta::len).sum::<usize>(), 4, "they are added up");
    assert_eq!(fired(given.rows), fired(vec![chunk(&rows, false)]));
}

#[test]
fn where_a_job_goes_on_late_rows_are_not_added_up() {
    let shape = WindowShape::Tumble { size: 10, offset: 0 };
    let mut operator = PreAggregate::new(spec(shape, &[0], &["rows"], false)).unwrap();
    operator.begin_at(&[100, 120]);
    let rows = [("a", Some(95), 1.0, MARK_NONE, 1)];
    let mut out = Output::default();
    operator.push(0, chunk(&rows, false), &mut out).unwrap();
    assert_eq!(out.rows.len(), 1, "it passes as it is");
    let rows = [("a", Some(101), 1.0, MARK_NONE, 1)];
    operator.push(0, chunk(&rows, false), &mut out).unwrap();
    assert_eq!(out.rows.len(), 1, "it is held");
}
