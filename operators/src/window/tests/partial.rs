//! Pre-aggregation: whatever is added up before, the window behind it says the same.

use proptest::prelude::*;
use weir_engine::operator::StatePart;

use super::laws::{Case, calls_of, cases, oracle, stream};
use super::*;
use crate::window::PreAggregate;

const ONE_KEY: &[&str] = &["rows", "avg", "max"];

fn before(case: &Case) -> PreAggregate {
    PreAggregate::new(spec(case.shape, &[0], calls_of(case), case.dictionary)).unwrap()
}

fn restarted(case: &Case, parts: Vec<StatePart>) -> PreAggregate {
    let mut fresh = before(case);
    fresh.restore(parts).unwrap();
    fresh
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
        given.rows.into_iter().for_each(|delta| window.push(0, delta, &mut out).unwrap());
        window.advance(end, &mut out).unwrap();
        let (mut late, fired): (Vec<String>, Vec<String>) =
            lines(&out).into_iter().partition(|line| line.starts_with("late"));
        late.sort();
        all.push((fired, late));
        if at == case.stop {
            workers = workers.map(|worker| restarted(case, worker.snapshot().unwrap()));
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

/// Rows that leave the operator for an epoch of `rows` rows of `keys` keys.
fn given(operator: &mut PreAggregate, rows: usize, keys: usize) -> usize {
    const NAMES: [&str; 4] = ["a", "b", "c", "d"];
    let row = |n: usize| (NAMES[n % keys % 4], Some((n / keys / 4) as i64), 1.0, MARK_NONE, 1);
    let mut out = Output::default();
    let all: Vec<Row> = (0..rows).map(row).collect();
    all.chunks(5_000).for_each(|part| operator.push(0, chunk(part, false), &mut out).unwrap());
    let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[MARK_NONE] };
    operator.advance(end, &mut out).unwrap();
    out.rows.iter().map(Delta::len).sum()
}

#[test]
fn few_groups_are_added_up_and_many_pass() {
    let shape = WindowShape::Tumble { size: 1_000_000, offset: 0 };
    let mut few = PreAggregate::new(spec(shape, &[0], ONE_KEY, false)).unwrap();
    assert_eq!([given(&mut few, 20_000, 4), given(&mut few, 20_000, 4)], [4, 4]);

    let shape = WindowShape::Tumble { size: 1, offset: 0 };
    let mut many = PreAggregate::new(spec(shape, &[0], ONE_KEY, false)).unwrap();
    // A window of 1 ms has 16 rows of four keys: little is gained, and ever more seldom looked for.
    let sampled = 20_000 - 2_048 + 512;
    let passed: Vec<usize> = (0..8).map(|_| given(&mut many, 20_000, 4)).collect();
    let all = 20_000;
    assert_eq!(passed, [sampled, all, sampled, all, all, sampled, all, all]);
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
