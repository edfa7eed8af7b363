//! Deduplication against its rule, row by row, however the input is cut, dealt and interrupted.
#![allow(clippy::unwrap_used)]

use expect_test::expect;
use proptest::prelude::*;
use weir_engine::keys::{KeyGroup, KeyGroups, KeyHasher, owned, owner};
use weir_engine::time::MARK_END;

use super::*;
use crate::kept::Kept;
use crate::session::script::{Cuts, Feed, Row, delta, play, schema, show, watermark};

fn core(keys: &[usize], within: Millis) -> Deduplicate {
    let spec = DeduplicateSpec { keys: keys.to_vec(), time: 1, within, input: schema("") };
    Deduplicate::new(spec).unwrap()
}

/// What an epoch, or all of them, lets pass, and how many rows it counts as duplicates and late.
#[derive(Debug, Default, PartialEq)]
struct Passed {
    rows: Vec<String>,
    duplicates: u64,
    late: [u64; 2],
}

impl Passed {
    fn add(&mut self, more: Passed) {
        self.rows.extend(more.rows);
        self.rows.sort();
        self.duplicates += more.duplicates;
        self.late[0] += more.late[0];
        self.late[1] += more.late[1];
    }

    fn of(out: &Output) -> Passed {
        let c = out.counts;
        let rows = out.rows.iter().flat_map(show).collect();
        Passed { rows, duplicates: c.duplicates, late: [c.late_straggler, c.late_idle] }
    }
}

/// The rule: rows in their order, against all that have passed.
#[derive(Default)]
struct Rule<'a> {
    passed: Vec<&'a Row>,
}

impl<'a> Rule<'a> {
    fn apply(&mut self, row: &'a Row, case: &Case, before: Millis, into: &mut Passed) {
        let limit = row.mark.max(before);
        if row.time.saturating_add(case.within) <= limit {
            into.late[usize::from(row.time.saturating_add(case.within) > row.mark)] += 1;
            return;
        }
        let same = |p: &&&Row| p.key == row.key && (!case.timed || p.time == row.time);
        let remembered = |p: &Row| p.time > row.time.max(limit).saturating_sub(case.within);
        if self.passed.iter().filter(same).any(|p| remembered(p)) {
            into.duplicates += 1;
        } else {
            self.passed.push(row);
            into.rows.extend(show(&delta(std::slice::from_ref(row), false, false)));
        }
    }
}

#[derive(Clone, Debug)]
struct Case {
    feed: Feed,
    within: Millis,
    /// Whether the event time is part of the key.
    timed: bool,
    cuts: Cuts,
}

fn cases(splits: usize) -> impl Strategy<Value = Case> {
    let feed = Feed::random(60, 3, false);
    (feed, 1i64..60, any::<bool>(), Cuts::random()).prop_map(
        move |(mut feed, within, timed, cuts)| {
            feed.splits.truncate(splits);
            Case { feed, within, timed, cuts }
        },
    )
}

impl Case {
    fn keys(&self) -> &'static [usize] {
        if self.timed { &[0, 1] } else { &[0] }
    }

    /// The rows of each split that an epoch takes, and W at its end.
    fn epochs(&self) -> Vec<(Vec<&[Row]>, Millis)> {
        let mut taken = vec![0; self.feed.splits.len()];
        let mut steps = self.cuts.steps.iter().cycle();
        let mut epochs = Vec::new();
        loop {
            let mut rows = Vec::new();
            for (split, taken) in self.feed.splits.iter().zip(&mut taken) {
                let next = split.len().min(*taken + steps.next().unwrap());
                rows.push(&split[*taken..next]);
                *taken = next;
            }
            let mark = watermark(&self.feed, &taken);
            epochs.push((rows, mark));
            if mark == MARK_END || epochs.len() > 200 {
                return epochs;
            }
        }
    }

    fn by_rule(&self) -> Vec<Passed> {
        let (mut rule, mut before, mut all) = (Rule::default(), MARK_NONE, Vec::new());
        for (splits, mark) in self.epochs() {
            let mut passed = Passed::default();
            let rows = splits.into_iter().flatten();
            rows.for_each(|row| rule.apply(row, self, before, &mut passed));
            passed.rows.sort();
            all.push(passed);
            before = before.max(mark);
        }
        all
    }

    /// Cores that save after each epoch; now and then others, fewer or more, go on.
    fn by_cores(&self) -> Vec<Passed> {
        let mut cores = vec![(KeyGroups::ALL, core(self.keys(), self.within))];
        let (mut kept, mut all) = (Kept::default(), Vec::new());
        for (at, (splits, mark)) in self.epochs().into_iter().enumerate() {
            all.push(self.epoch(&mut cores, &splits, mark));
            kept.save(&mut cores);
            if at % self.cuts.restart_every == 0 {
                let peers = self.cuts.workers[at % self.cuts.workers.len()];
                let owners = (0..peers).filter_map(|worker| owned(worker, peers));
                cores = owners.map(|own| (own, core(self.keys(), self.within))).collect();
                for (own, core) in &mut cores {
                    let mut pieces = kept.restored(*own);
                    if self.cuts.flags.0 {
                        // Nothing is said of their order.
                        pieces.reverse();
                    }
                    core.resume(pieces).unwrap();
                }
            }
        }
        all
    }

    fn epoch(
        &self,
        cores: &mut [(KeyGroups, Deduplicate)],
        splits: &[&[Row]],
        mark: Millis,
    ) -> Passed {
        let (reversed, packed, marked) = self.cuts.flags;
        let halves = splits.iter().flat_map(|rows| {
            let (first, second) = rows.split_at(rows.len() / 2);
            [first, second]
        });
        let chunks = halves.filter(|rows| !rows.is_empty()).map(|r| delta(r, packed, marked));
        let mut chunks: Vec<Delta> = chunks.collect();
        if reversed {
            chunks.reverse();
        }
        let (mut passed, mut groups) = (Passed::default(), Vec::new());
        let peers = cores.len();
        for (worker, (_, core)) in cores.iter_mut().enumerate() {
            let mut out = Output::default();
            for chunk in &chunks {
                KeyHasher::over(self.keys().to_vec()).key_groups(&chunk.rows, &mut groups);
                let mine = |row: &u32| owner(KeyGroup(groups[*row as usize]), peers) == worker;
                let mine = (0..chunk.len() as u32).filter(mine).collect::<UInt32Array>();
                core.push(0, chunk.take(&mine).unwrap(), &mut out).unwrap();
            }
            let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[mark] };
            core.advance(end, &mut out).unwrap();
            passed.add(Passed::of(&out));
        }
        passed
    }
}

fn sum(epochs: Vec<Passed>) -> Passed {
    let mut all = Passed::default();
    epochs.into_iter().for_each(|passed| all.add(passed));
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    /// Any chunks, any number of workers, any restarts from pieces: the rule.
    #[test]
    fn the_rule_holds(case in cases(3)) {
        prop_assert_eq!(case.by_cores(), case.by_rule());
    }

    /// With one split nothing depends on the cuts: marks alone decide.
    #[test]
    fn one_split_knows_no_epochs(case in cases(1)) {
        let (mut rule, mut want) = (Rule::default(), Passed::default());
        case.feed.rows().for_each(|row| rule.apply(row, &case, MARK_NONE, &mut want));
        want.rows.sort();
        prop_assert_eq!(sum(case.by_cores()), want);
    }

    /// The same through whole snapshots.
    #[test]
    fn snapshots_hold_all(case in cases(1)) {
        let case = Case { timed: false, ..case };
        let make = || Box::new(core(&[0], case.within)) as Box<dyn Operator>;
        let played = play(&make, std::slice::from_ref(&case.feed), &case.cuts);
        let (mut rule, mut want) = (Rule::default(), Passed::default());
        case.feed.rows().for_each(|row| rule.apply(row, &case, MARK_NONE, &mut want));
        want.rows.sort();
        prop_assert_eq!((played.rows(), played.counts.duplicates), (want.rows, want.duplicates));
    }
}

/// Rows of one split whose keys are their numbers, with the watermark right behind them.
fn numbered(from: i64, upto: i64) -> Delta {
    use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMillisecondArray};
    use std::sync::Arc;
    use weir_engine::rows::{Origin, SplitId, batch_of};
    let keys = StringArray::from_iter_values((from..upto).map(|n| format!("meter-{n:07}")));
    let times = TimestampMillisecondArray::from_iter_values(from..upto);
    let numbers = Int64Array::from_iter_values(from..upto);
    let columns: Vec<ArrayRef> = vec![Arc::new(keys), Arc::new(times), Arc::new(numbers)];
    let rows = batch_of(&schema(""), columns, (upto - from) as usize).unwrap();
    let origin = Origin::Split { split: SplitId(0), offset: from as u64 };
    Delta { origin, ..Delta::fired(rows) }
}

fn advance(core: &mut Deduplicate, watermark: Millis) -> Output {
    let mut out = Output::default();
    let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[watermark] };
    core.advance(end, &mut out).unwrap();
    out
}

#[test]
fn what_is_forgotten_is_let_go() {
    let mut core = core(&[0, 1], 10_000);
    let mut most = (0, 0, 0);
    for at in 0..400 {
        let (from, upto) = (at * 1_000, (at + 1) * 1_000);
        core.push(0, numbered(from, upto), &mut Output::default()).unwrap();
        let out = advance(&mut core, upto - 1);
        assert_eq!((out.rows.len(), out.counts.duplicates), (1, 0));
        let (keys, entries, bytes) = core.seen.size();
        most = (keys.max(most.0), entries.max(most.1), bytes.max(most.2));
    }
    // A horizon, a bucket, and an epoch's rows; bytes in vectors that have just doubled.
    assert!(most.0 <= 11_700 && most.1 <= 11_700, "{most:?}");
    assert!(most.2 < 11_700 * 120, "{most:?}");
    assert!(core.seen.places() < 24, "{}", core.seen.places());
    // All keys at once, more than an epoch forgets: it takes some epochs, and nothing is left.
    let mut core = super::tests::core(&[0, 1], 100_000);
    core.push(0, numbered(0, 500_000), &mut Output::default()).unwrap();
    advance(&mut core, 1);
    let before = core.seen.size();
    assert_eq!(before.0, 500_000);
    let epochs = (1..).find(|_| {
        advance(&mut core, 10_000_000);
        core.seen.size().0 == 0
    });
    assert!((2..10).contains(&epochs.unwrap()), "{epochs:?}");
    let (keys, entries, bytes) = core.seen.size();
    assert!((keys, entries) == (0, 0) && bytes < 100_000, "{bytes} bytes of {before:?} are left");
}

#[test]
fn a_checkpoint_writes_what_is_new() {
    let mut cores = vec![(KeyGroups::ALL, core(&[0], 16_000))];
    let mut kept = Kept::default();
    let mut lines = String::new();
    for at in 0..12 {
        let core = &mut cores[0].1;
        core.push(0, numbered(at * 250, (at + 1) * 250), &mut Output::default()).unwrap();
        advance(core, at * 250);
        let written = kept.written.len();
        kept.save(&mut cores);
        let pieces = kept.written.values().skip(written).filter(|part| part.kind == "seen");
        let rows: Vec<usize> = pieces.map(|part| part.rows.num_rows()).collect();
        lines += &format!("{rows:?} of {}\n", kept.named.len() - 1);
    }
    // Taken up by two and then by one again, nothing is new: the watermark alone is written.
    for peers in [2, 1] {
        let before = kept.put;
        let owners = (0..peers).filter_map(|worker| owned(worker, peers));
        cores = owners.map(|own| (own, super::tests::core(&[0], 16_000))).collect();
        for (own, core) in &mut cores {
            core.resume(kept.restored(*own)).unwrap();
        }
        kept.save(&mut cores);
        assert_eq!(kept.put, before + peers);
        assert_eq!(cores.iter().map(|(_, core)| core.seen.size().1).sum::<usize>(), 3_000);
    }
    expect![[r#"
        [250] of 1
        [500] of 1
        [750] of 1
        [250] of 2
        [250] of 3
        [500] of 3
        [750] of 3
        [250] of 4
        [250] of 5
        [500] of 5
        [750] of 5
        [250] of 6
    "#]]
    .assert_eq(&lines);
}

#[test]
fn late_rows_and_rows_that_cannot_be() {
    let mut core = core(&[0], 10);
    let row =
        |time, mark, offset| Row { key: Some("a"), time, n: 0, diff: 1, mark, split: 0, offset };
    let rows = [row(50, MARK_NONE, 0), row(60, 50, 1), row(40, 60, 2), row(50, 60, 3)];
    let mut out = Output::default();
    core.push(0, delta(&rows, false, true), &mut out).unwrap();
    let out = advance(&mut core, 49);
    // The key is free again at 60: 50 is 10 behind. The last two are 10 and more behind their mark.
    assert_eq!(Passed::of(&out).rows, ["a 50 0", "a 60 0"]);
    assert_eq!((out.counts.late_straggler, out.counts.late_idle), (2, 0));
    // After idleness W alone makes a row late.
    advance(&mut core, 80);
    let mut kept = Kept::default();
    let mut cores = vec![(KeyGroups::ALL, core)];
    kept.save(&mut cores);
    let (mut resumed, mut restored) = (super::tests::core(&[0], 10), super::tests::core(&[0], 10));
    resumed.resume(kept.restored(KeyGroups::ALL)).unwrap();
    restored.restore(cores[0].1.snapshot().unwrap()).unwrap();
    for core in [&mut cores[0].1, &mut resumed, &mut restored] {
        let mut out = Output::default();
        core.push(0, delta(&[row(70, MARK_NONE, 4)], false, true), &mut out).unwrap();
        let out = advance(core, 80);
        assert_eq!((out.counts.late_straggler, out.counts.late_idle), (0, 1));
        assert!(out.rows.is_empty() && out.late.is_empty());
    }
    let taken_back = Row { diff: -1, ..row(90, MARK_NONE, 5) };
    let error = restored.push(0, delta(&[taken_back], false, true), &mut Output::default());
    assert!(error.unwrap_err().to_string().contains("append-only"));
    let spec = DeduplicateSpec { keys: vec![0], time: 1, within: 0, input: schema("") };
    assert!(Deduplicate::new(spec).is_err());
}
