//! The cut log on a disk that loses power, and the choice between logs after anything.

use proptest::prelude::*;
use std::collections::BTreeMap;

use super::*;
use crate::cut::{CutPart, SplitFacts, SplitState};
use crate::journal::simulated::{Simulated, Whims};
use crate::rows::SplitId;

/// So small that most logs have several segments.
const SEGMENT: u64 = 600;

fn cut(generation: u64, epoch: Epoch, after: Option<Epoch>) -> Cut {
    let facts = SplitFacts {
        split: SplitId::of(1, 7),
        // What generations make of an epoch differs.
        offset: generation * 1_000_000 + epoch,
        mark: -5,
        state: SplitState::Idle,
        stride: 3,
        lost: 2,
        width: 40,
    };
    let part = CutPart {
        worker: 0,
        recorded_time: 1_700_000_000_000,
        splits: vec![facts],
        checkpoint: false,
    };
    let quiet = CutPart { worker: 1, recorded_time: 9, splits: Vec::new(), checkpoint: false };
    Cut { generation, epoch, after, parts: vec![part, quiet] }
}

fn begin(generation: u64, base: Option<Epoch>) -> Begin {
    Begin { generation, base, processes: 3, workers: 2 }
}

fn open(disk: &Arc<Simulated>) -> CutLog {
    CutLog::open(disk.clone(), "job", SEGMENT).unwrap()
}

fn kept(log: &CutLog) -> Vec<(u64, Epoch)> {
    log.cuts().map(|cut| cut.map(|cut| (cut.generation, cut.epoch)).unwrap()).collect()
}

fn extend(log: &mut CutLog, epochs: &[Epoch]) {
    for &epoch in epochs {
        let Summary { generation, last, .. } = log.summary();
        log.append_cut(cut(generation, epoch, last)).unwrap();
    }
    log.sync().unwrap();
}

#[test]
fn the_bytes_of_records_stay() {
    let records = [
        LogRecord::Begin(begin(1, None)),
        LogRecord::Begin(begin(9, Some(258))),
        LogRecord::Rewind(Rewind { to: Some(258), anew: false }),
        LogRecord::Rewind(Rewind { to: None, anew: true }),
        LogRecord::Cut(cut(2, 1_023, None)),
        LogRecord::Cut(cut(2, 1_024, Some(1_023))),
    ];
    let hex = |record: &LogRecord| -> String {
        record.encode().iter().map(|byte| format!("{byte:02x}")).collect()
    };
    let golden = include_str!("../../tests/golden/cutlog-1.txt");
    assert_eq!(records.each_ref().map(hex).join("\n"), golden.trim_end());
    for (record, line) in records.iter().zip(golden.lines()) {
        let bytes: Vec<u8> = (0..line.len() / 2)
            .map(|at| u8::from_str_radix(&line[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        assert_eq!(&LogRecord::decode(&bytes).unwrap(), record);
        for short in 0..bytes.len() {
            assert!(LogRecord::decode(&bytes[..short]).is_err());
        }
        let longer = [&bytes[..], &[0]].concat();
        assert!(LogRecord::decode(&longer).is_err());
    }
}

#[test]
fn a_record_of_a_later_version_is_named() {
    let mut bytes = LogRecord::Begin(begin(1, None)).encode();
    bytes[1] = 2;
    let error = LogRecord::decode(&bytes).unwrap_err();
    assert!(error.contains("version 2: another Weir wrote it"), "{error}");
}

/// Goes back to an epoch, on disk.
fn back(log: &mut CutLog, to: Option<Epoch>, anew: bool) {
    log.append(&LogRecord::Rewind(Rewind { to, anew })).unwrap();
    log.sync().unwrap();
}

#[test]
fn cuts_that_are_taken_back_are_void() {
    let disk = Arc::new(Simulated::default());
    let mut log = open(&disk);
    log.begin(begin(1, None)).unwrap();
    extend(&mut log, &[10, 20, 30, 40]);
    back(&mut log, Some(30), false);
    log.begin(begin(2, Some(30))).unwrap();
    extend(&mut log, &[35, 45, 55]);
    back(&mut log, Some(35), false);
    log.begin(begin(3, Some(35))).unwrap();
    extend(&mut log, &[36]);
    let left = [(1, 10), (1, 20), (1, 30), (2, 35), (3, 36)];
    assert_eq!(kept(&log), left);
    drop(log);
    let mut log = open(&disk);
    assert_eq!(kept(&log), left);
    assert_eq!(log.summary(), Summary { generation: 3, floor: None, last: Some(36) });
    // A later one takes away what earlier ones left.
    back(&mut log, Some(10), false);
    assert_eq!(kept(&log), [(1, 10)]);
    back(&mut log, Some(90), true);
    log.begin(begin(5, Some(90))).unwrap();
    extend(&mut log, &[91]);
    assert_eq!(kept(&log), [(5, 91)]);
    assert_eq!(log.summary(), Summary { generation: 5, floor: Some(90), last: Some(91) });
}

#[test]
fn what_does_not_follow_is_refused() {
    let disk = Arc::new(Simulated::default());
    let mut log = open(&disk);
    log.begin(begin(2, None)).unwrap();
    extend(&mut log, &[10, 20]);
    let mut refused = |record: LogRecord| log.append(&record).unwrap_err().to_string();
    assert_eq!(
        refused(LogRecord::Cut(cut(2, 30, Some(10)))),
        "cut log: record 3: epoch 30 follows epoch 10, but epoch 20 was before"
    );
    assert_eq!(
        refused(LogRecord::Cut(cut(2, 20, Some(20)))),
        "cut log: record 3: epoch 20 follows epoch 20, but epoch 20 was before"
    );
    assert_eq!(
        refused(LogRecord::Cut(cut(1, 30, Some(20)))),
        "cut log: record 3: a cut of generation 1 after one of 2"
    );
    assert_eq!(
        refused(LogRecord::Begin(begin(2, Some(20)))),
        "cut log: record 3: generation 2 begins after 2"
    );
    assert_eq!(
        refused(LogRecord::Begin(begin(3, Some(10)))),
        "cut log: record 3: generation 3 goes on from epoch 10, but the log ends with epoch 20"
    );
    assert_eq!(
        refused(LogRecord::Rewind(Rewind { to: Some(21), anew: false })),
        "cut log: record 3: back to epoch 21, but the cuts go from nothing to epoch 20"
    );
    assert_eq!(kept(&log), [(2, 10), (2, 20)]);
}

#[test]
fn another_log_is_taken_over() {
    let log_of = |floor: Option<Epoch>, cuts: &[(u64, Epoch)]| {
        let mut log = open(&Arc::new(Simulated::default()));
        if floor.is_some() {
            back(&mut log, floor, true);
        }
        for &(generation, epoch) in cuts {
            let after = log.summary().last;
            log.append_cut(cut(generation, epoch, after)).unwrap();
        }
        log.sync().unwrap();
        log
    };
    type Log<'a> = (Option<Epoch>, &'a [(u64, Epoch)]);
    let taken = |own: Log<'_>, other: Log<'_>| {
        let (mut own, other) = (log_of(own.0, own.1), log_of(other.0, other.1));
        own.adopt(other.summary().floor, other.cuts()).unwrap();
        assert_eq!(own.summary().last, other.summary().last);
        (own.summary().floor, kept(&own))
    };
    let whole: &[(u64, Epoch)] = &[(1, 10), (1, 20), (2, 30), (2, 40)];
    let rest: &[(u64, Epoch)] = &[(2, 30), (2, 40)];
    for own in [&[][..], &whole[..1], &whole[..3], whole, &[(1, 10), (1, 20), (1, 25), (1, 30)]] {
        assert_eq!(taken((None, own), (None, whole)), (None, whole.to_vec()));
    }
    assert_eq!(taken((None, whole), (None, &whole[..2])), (None, whole[..2].to_vec()));
    assert_eq!(taken((None, whole), (None, &[])), (None, Vec::new()));
    // Logs that were trimmed, or begun at a checkpoint.
    assert_eq!(taken((None, &whole[..3]), (Some(20), rest)), (Some(20), rest.to_vec()));
    // Of these 18 may be void, and 20 is missing.
    let other: &[(u64, Epoch)] = &[(1, 10), (1, 18), (1, 25)];
    assert_eq!(taken((None, other), (Some(20), rest)), (Some(20), rest.to_vec()));
    assert_eq!(taken((Some(20), &rest[..1]), (None, whole)), (Some(20), rest.to_vec()));
    assert_eq!(taken((None, &whole[..1]), (Some(20), rest)), (Some(20), rest.to_vec()));
    assert_eq!(taken((Some(90), &[]), (Some(20), rest)), (Some(20), rest.to_vec()));
    assert_eq!(taken((Some(90), &[]), (None, whole)), (None, whole.to_vec()));
}

#[test]
fn a_trimmed_log_goes_on_from_where_it_was_trimmed() {
    let disk = Arc::new(Simulated::default());
    let mut log = open(&disk);
    log.begin(begin(1, None)).unwrap();
    let epochs: Vec<Epoch> = (1..=5_000).map(|n| n * 10).collect();
    epochs.chunks(500).for_each(|part| extend(&mut log, part));
    let before = log.bytes();
    log.trim(9).unwrap();
    assert_eq!(log.bytes(), before, "all that follows epoch 9 is needed");
    log.trim(40_000).unwrap();
    assert!(log.bytes() < before / 2, "{} of {before} bytes", log.bytes());
    let first = kept(&log)[0].1;
    assert!((10_250..=40_010).contains(&first), "{first}");
    assert_eq!(log.summary().floor, Some(first - 10));
    drop(log);
    let log = open(&disk);
    assert_eq!(
        log.summary(),
        Summary { generation: 1, floor: Some(first - 10), last: Some(50_000) }
    );
    assert_eq!(kept(&log).len() as u64, (50_000 - first) / 10 + 1);
}

#[test]
fn a_log_that_was_trimmed_within_what_was_taken_back_opens() {
    let disk = Arc::new(Simulated::default());
    let mut log = open(&disk);
    log.begin(begin(1, None)).unwrap();
    (1..=3_000).collect::<Vec<Epoch>>().chunks(50).for_each(|part| extend(&mut log, part));
    back(&mut log, Some(1_500), false);
    log.begin(begin(2, Some(1_500))).unwrap();
    (4_000..=6_000).collect::<Vec<Epoch>>().chunks(50).for_each(|part| extend(&mut log, part));
    log.trim(4_500).unwrap();
    let (floor, cuts) = (log.summary().floor, kept(&log));
    assert!(floor < Some(4_500) && cuts.last() == Some(&(2, 6_000)), "{floor:?}");
    drop(log);
    let log = open(&disk);
    assert_eq!((log.summary().floor, kept(&log)), (floor, cuts));
    assert!(log.journal.bounds().0 > 1_500, "the boundary lies behind the rewind's goal");
}

#[test]
fn a_full_disk_forgets_what_was_not_synced_and_goes_on_later() {
    let disk = Arc::new(Simulated::default());
    let mut log = CutLog::open(disk.clone(), "job", 1 << 20).unwrap();
    log.begin(begin(1, None)).unwrap();
    extend(&mut log, &[10]);
    disk.capacity(Some(log.bytes() as usize + 50));
    log.append_cut(cut(1, 20, Some(10))).unwrap();
    assert!(matches!(log.sync(), Err(CutLogError::Journal(JournalError::Io { .. }))));
    assert_eq!(log.summary().last, Some(10));
    disk.capacity(None);
    extend(&mut log, &[20, 30]);
    assert_eq!(kept(&log), [(1, 10), (1, 20), (1, 30)]);
}

// The choice ------------------------------------------------------------------------------------

/// `None` where the power went; nothing else may go wrong.
fn powered(done: Result<(), CutLogError>) -> Option<()> {
    match done {
        Ok(()) => Some(()),
        Err(CutLogError::Journal(JournalError::Io { .. } | JournalError::Unsure { .. })) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Processes with their disks, driven through generations by a seed.
struct World {
    disks: Vec<Arc<Simulated>>,
    whims: Whims,
    /// By epoch the generation whose cut something was committed for.
    committed: BTreeMap<Epoch, u64>,
    clock: Epoch,
    /// The newest number that was claimed in the state store.
    claimed: u64,
}

impl World {
    /// Starts a generation on all disks but those in `away`, as the module says. `None` where the
    /// power goes before all have begun.
    fn start(&mut self, away: usize) -> Option<Vec<CutLog>> {
        let here = || self.disks.iter().enumerate().filter(|(at, _)| *at != away);
        let mut logs: Vec<CutLog> = here().map(|(_, disk)| open(disk)).collect();
        let summaries: Vec<Summary> = logs.iter().map(CutLog::summary).collect();
        let choice = choose(&summaries, None).unwrap();
        let generation = choice.generation.max(self.claimed + 1);
        self.claimed = generation;
        let (floor, cuts): (_, Vec<Cut>) = match choice.donor {
            None => (choice.base, Vec::new()),
            Some(donor) => {
                let cuts = logs[donor].cuts().map(Result::unwrap).collect();
                (logs[donor].summary().floor, cuts)
            }
        };
        if self.whims.below(2) == 0 {
            let (disk, operations) = (self.whims.below(logs.len() as u64), self.whims.below(12));
            here().nth(disk as usize).unwrap().1.fuse(operations as usize);
        }
        for log in &mut logs {
            powered(log.adopt(floor, cuts.iter().cloned().map(Ok)))?;
            powered(log.begin(begin(generation, choice.base)))?;
        }
        Some(logs)
    }

    /// Runs a generation for a while; a sink commits what all processes have on disk.
    fn run(&mut self, mut logs: Vec<CutLog>) {
        let mut durable = vec![0; logs.len()];
        // Often one of them writes nothing to disk, so that nothing is committed.
        let lazy = self.whims.below(5) as usize;
        for _ in 0..self.whims.below(7) {
            let Summary { generation, last, .. } = logs[0].summary();
            self.clock = self.clock.max(last.unwrap_or(0)) + 1 + self.whims.below(5);
            for (at, (log, durable)) in logs.iter_mut().zip(&mut durable).enumerate() {
                if powered(log.append_cut(cut(generation, self.clock, last))).is_none() {
                    return;
                }
                if at != lazy && self.whims.below(2) == 0 {
                    if powered(log.sync()).is_none() {
                        return;
                    }
                    *durable = self.clock;
                }
            }
            let all = durable.iter().copied().min().unwrap_or(0);
            for cut in logs[0].cuts().map(Result::unwrap).filter(|cut| cut.epoch <= all) {
                self.committed.entry(cut.epoch).or_insert(cut.generation);
            }
        }
    }

    fn crash(&mut self) {
        for disk in &mut self.disks {
            *disk = Arc::new(disk.after_crash(self.whims.below(u64::MAX)));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    /// Whatever crashes when, and whichever one disk is away each time: what was committed stays,
    /// as it was.
    #[test]
    fn nothing_committed_is_forgotten(seed in any::<u64>()) {
        let disks = (0..3).map(|_| Arc::new(Simulated::default())).collect();
        let (whims, committed) = (Whims(seed), BTreeMap::new());
        let mut world = World { disks, whims, committed, clock: 0, claimed: 0 };
        for _ in 0..16 {
            let away = world.whims.below(4) as usize;
            // A clock that steps back.
            world.clock -= world.whims.below(world.clock.min(60) + 1);
            if let Some(logs) = world.start(away) {
                for log in &logs {
                    let held = kept(log).into_iter().map(|(g, e)| (e, g));
                    let held: BTreeMap<Epoch, u64> = held.collect();
                    for (epoch, generation) in &world.committed {
                        prop_assert_eq!(held.get(epoch), Some(generation), "epoch {}", epoch);
                    }
                }
                world.run(logs);
            }
            world.crash();
        }
    }
}

#[test]
fn the_choice_goes_by_the_newest_generation() {
    let log = |generation, last| Summary { generation, floor: None, last };
    let chosen = |logs: &[Summary], checkpoint| {
        let Choice { generation, base, donor } = choose(logs, checkpoint).unwrap();
        (generation, base, donor)
    };
    assert_eq!(chosen(&[], None), (1, None, None));
    assert_eq!(chosen(&[log(0, None), log(0, None)], None), (1, None, None));
    assert_eq!(chosen(&[log(3, None)], None), (4, None, None));
    // The longest of the newest; an older generation's longer log is void there.
    let logs = [log(2, Some(90)), log(3, Some(40)), log(3, Some(50)), log(3, Some(50))];
    assert_eq!(chosen(&logs, None), (4, Some(50), Some(2)));
    assert_eq!(chosen(&logs, Some((2, 30))), (4, Some(50), Some(2)));
    assert_eq!(chosen(&logs, Some((3, 50))), (4, Some(50), Some(2)));
    // All disks of generation 5 are gone, its checkpoint is not.
    assert_eq!(chosen(&logs, Some((5, 70))), (6, Some(70), None));
    // Of equal ends the one that reaches back further; one that reaches no checkpoint is no good.
    let late = Summary { generation: 3, floor: Some(40), last: Some(50) };
    assert_eq!(chosen(&[late, log(3, Some(50))], None), (4, Some(50), Some(1)));
    assert_eq!(chosen(&[late], Some((3, 40))), (4, Some(50), Some(0)));
    let error = choose(&[late], Some((3, 39))).unwrap_err();
    assert_eq!(error, "the cuts begin behind epoch 40, the newest checkpoint is at epoch 39");
    assert!(choose(&[late], None).is_err());
}
