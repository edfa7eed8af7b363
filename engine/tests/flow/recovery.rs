//! Going by recorded cuts.

use super::*;

pub(crate) const LIVE: EpochPolicy = EpochPolicy::Live { interval: 1, rows: 700 };

pub(crate) fn log_on(disk: &Arc<Simulated>) -> CutLog {
    CutLog::open(disk.clone(), "job", SEGMENT_BYTES).unwrap()
}

/// The next generation's memory on this disk.
pub(crate) fn memory_on(disk: &Arc<Simulated>, workers: usize) -> Arc<Recorder> {
    let mut log = log_on(disk);
    let (generation, base) = (log.summary().generation + 1, log.summary().last);
    log.begin(Begin { generation, base, processes: 1, workers: workers as u32 }).unwrap();
    Arc::new(Recorder::start(log, workers).unwrap())
}

pub(crate) fn cuts_on(disk: &Arc<Simulated>) -> Vec<Cut> {
    log_on(disk).cuts().map(Result::unwrap).collect()
}

/// A disk with these cuts on it.
pub(crate) fn disk_with(cuts: &[Cut]) -> Arc<Simulated> {
    let disk = Arc::new(Simulated::default());
    log_on(&disk).adopt(None, cuts.iter().cloned().map(Ok)).unwrap();
    disk
}

/// A live run by two workers that remembers its cuts.
fn lived(aggregate: bool) -> (Lines, u128, Vec<Cut>) {
    let disk = Arc::new(Simulated::default());
    let (lines, digest) = outcome_of(2, LIVE, aggregate, Some(memory_on(&disk, 2))).unwrap();
    (lines, digest, cuts_on(&disk))
}

#[test]
fn recorded_cuts_give_the_same_rows_in_the_same_epochs_on_any_number_of_workers() {
    for aggregate in [false, true] {
        let (lines, digest, cuts) = lived(aggregate);
        assert_eq!(cuts[0].epoch, 0);
        assert!(cuts.len() > 10, "{} cuts", cuts.len());
        for workers in [1, 2, 3] {
            let disk = disk_with(&cuts);
            let again = outcome_of(workers, LIVE, aggregate, Some(memory_on(&disk, workers)));
            assert_eq!(again.unwrap(), (lines.clone(), digest), "{workers} workers");
            assert_eq!(cuts_on(&disk).len(), cuts.len(), "no cut is made anew");
        }
    }
}

#[test]
fn after_the_recorded_cuts_the_job_goes_on_by_itself() {
    let (lines, _, cuts) = lived(false);
    let (_, whole) = outcome(1, REPLAY, false);
    for (kept, policy) in [(0, LIVE), (1, LIVE), (5, LIVE), (cuts.len() - 1, LIVE), (9, REPLAY)] {
        for workers in [1, 3] {
            let disk = disk_with(&cuts[..kept]);
            let again = outcome_of(workers, policy, false, Some(memory_on(&disk, workers)));
            let (now, digest) = again.unwrap();
            assert_eq!(digest, whole, "{kept} cuts, {workers} workers");
            let base = cuts[..kept].last().map(|cut| cut.epoch);
            let until = |lines: &Lines| -> Lines {
                lines.iter().filter(|line| Some(line.0) <= base).cloned().collect()
            };
            assert_eq!(until(&now), until(&lines));
            let all = cuts_on(&disk);
            assert_eq!(all[..kept], cuts[..kept]);
            assert!(all.len() > kept);
            // What it has made of it can be gone by in turn.
            let third = outcome_of(2, LIVE, false, Some(memory_on(&disk, 2))).unwrap();
            assert_eq!(third, (now, digest));
        }
    }
}

#[test]
fn data_that_has_changed_since_is_noticed() {
    let (_, _, mut cuts) = lived(false);
    let failure = |cuts: &[Cut]| {
        outcome_of(2, LIVE, false, Some(memory_on(&disk_with(cuts), 2))).unwrap_err()
    };
    let last = cuts.len() - 1;
    let ends = cuts[last].clone();
    for part in &mut cuts[last].parts {
        part.splits.iter_mut().for_each(|split| split.offset += 1);
    }
    let error = failure(&cuts);
    assert!(error.contains("is not what it was when it was read before: it ends"), "{error}");
    cuts[last] = ends;
    let place = cuts.iter().rposition(|cut| cut.parts.iter().any(|p| !p.splits.is_empty()));
    for part in &mut cuts[place.unwrap()].parts {
        part.splits.iter_mut().for_each(|split| split.mark -= 1);
    }
    let error = failure(&cuts);
    assert!(error.contains("its watermark is"), "{error}");
}

#[test]
fn no_row_reaches_a_sink_before_its_cut_is_on_disk() {
    let disk = Arc::new(Simulated::default());
    let memory = memory_on(&disk, 2);
    // Room for a few cuts.
    disk.capacity(Some(3_000));
    let written = Written::default();
    let control = control_of(false, Some(memory.clone()));
    let job = JobInput { policy: LIVE, splits: vec![Numbers.splits().unwrap()] };
    let (theirs, shared) = (written.clone(), control.clone());
    let running = std::thread::spawn(move || {
        let cluster = Cluster { threads: 2, ..Cluster::default() };
        run(&cluster, job, &shared, move |_| Ok(graph(false, false, &theirs)))
    });
    while memory.notice().is_none() {
        std::thread::yield_now();
    }
    assert!(memory.notice().unwrap().contains("the cut log waits"));
    assert!(!running.is_finished());
    // What the sink has is there even if the power goes now.
    let durable = || {
        let lines = lines_of(&written);
        let left: Vec<Epoch> =
            cuts_on(&Arc::new(disk.after_crash(1))).iter().map(|cut| cut.epoch).collect();
        lines.iter().all(|line| left.contains(&line.0))
    };
    assert!(durable());
    disk.capacity(None);
    running.join().unwrap().unwrap();
    assert_eq!(lines_of(&written).len() as i64, ROWS);
    assert!(durable());
}

#[test]
fn a_stop_in_the_middle_of_the_past_leaves_it_as_it_is() {
    let (_, _, cuts) = lived(false);
    for (cuts, goes_again) in [(&cuts[..], true), (&[][..], false)] {
        let (disk, written) = (disk_with(cuts), Written::default());
        let memory = memory_on(&disk, 2);
        let control = control_of(false, Some(memory));
        control.stop();
        let job = JobInput { policy: LIVE, splits: vec![Numbers.splits().unwrap()] };
        let cluster = Cluster { threads: 2, ..Cluster::default() };
        let theirs = written.clone();
        let ended = run(&cluster, job, &control, move |_| Ok(graph(false, false, &theirs)));
        ended.unwrap();
        if goes_again {
            assert_eq!(cuts_on(&disk), cuts);
        }
        assert!(lines_of(&written).is_empty());
    }
}

#[test]
fn no_process_commits_what_another_has_not_on_disk() {
    let disks = [Arc::new(Simulated::default()), Arc::new(Simulated::default())];
    // The sink is on the first process, the disk of the second has room for a few cuts.
    disks[1].capacity(Some(3_000));
    let (written, addresses) = (Written::default(), addresses(2));
    let memories: Vec<_> = disks.iter().map(|disk| memory_on(disk, 1)).collect();
    let start = |process: usize| {
        let control = control_of(false, Some(memories[process].clone()));
        let job = JobInput { policy: LIVE, splits: vec![Numbers.splits().unwrap()] };
        let (theirs, addresses) = (written.clone(), addresses.clone());
        std::thread::spawn(move || {
            let cluster = Cluster { threads: 1, process, addresses, second_copy: None };
            run(&cluster, job, &control, move |_| Ok(graph(false, false, &theirs)))
        })
    };
    let running = [start(0), start(1)];
    while memories[1].notice().is_none() {
        std::thread::yield_now();
    }
    // The other one goes on recording for as long as it may be ahead.
    std::thread::sleep(std::time::Duration::from_millis(200));
    let durable = || {
        let left: Vec<Epoch> =
            cuts_on(&Arc::new(disks[1].after_crash(1))).iter().map(|cut| cut.epoch).collect();
        lines_of(&written).iter().all(|line| left.contains(&line.0))
    };
    assert!(durable());
    assert!(cuts_on(&Arc::new(disks[0].after_crash(1))).len() > 1);
    disks[1].capacity(None);
    running.into_iter().for_each(|process| process.join().unwrap().unwrap());
    assert_eq!(lines_of(&written).len() as i64, ROWS);
    assert!(durable());
}
