//! Going on from checkpoints.

use super::recovery::{cuts_on, log_on, memory_on};
use super::*;
use weir_engine::checkpoint::{
    Checkpointer, Loaded, Member, Name, Wanted, load_named, load_newest,
};
use weir_engine::store::{JobStore, Objects};

/// Many epochs, so that there is time for checkpoints.
const LIVE: EpochPolicy = EpochPolicy::Live { interval: 1, rows: 15 };

/// Objects in memory; what is removed is only noted.
#[derive(Default)]
struct Memory {
    objects: Mutex<BTreeMap<String, Vec<u8>>>,
    removed: Mutex<Vec<String>>,
}

impl Objects for Memory {
    fn list(&self, folder: &str) -> Result<Vec<String>, ConnectorError> {
        let under = format!("{folder}/");
        let objects = self.objects.lock().unwrap();
        Ok(objects.keys().filter(|path| path.starts_with(&under)).cloned().collect())
    }
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, ConnectorError> {
        Ok(self.objects.lock().unwrap().get(path).cloned())
    }
    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<bool, ConnectorError> {
        let mut objects = self.objects.lock().unwrap();
        let absent = !objects.contains_key(path);
        objects.entry(path.to_owned()).or_insert(bytes);
        Ok(absent)
    }
    fn delete(&self, path: &str) -> Result<(), ConnectorError> {
        self.removed.lock().unwrap().push(path.to_owned());
        Ok(())
    }
    fn name(&self, path: &str) -> String {
        path.to_owned()
    }
}

impl Memory {
    /// The manifests, oldest first.
    fn names(&self) -> Vec<Name> {
        let mut names: Vec<Name> =
            self.list("checkpoints").unwrap().iter().filter_map(|path| Name::of(path)).collect();
        names.sort_unstable();
        names
    }

    /// The same up to a manifest.
    fn until(&self, last: Name) -> Arc<Memory> {
        let objects = self.objects.lock().unwrap();
        let kept = |path: &String| Name::of(path).is_none_or(|name| name <= last);
        let objects = objects.iter().filter(|(path, _)| kept(path));
        let objects = objects.map(|(path, bytes)| (path.clone(), bytes.clone())).collect();
        Arc::new(Memory { objects: Mutex::new(objects), removed: Mutex::default() })
    }
}

/// A run that makes a checkpoint whenever it can, going on from the newest there is. A process a
/// disk, each with so many workers.
fn run_on(
    store: &Arc<Memory>,
    disks: &[Arc<Simulated>],
    workers: usize,
    policy: EpochPolicy,
) -> (Lines, Option<Arc<Loaded>>) {
    let objects = JobStore::over(store.clone());
    let (restored, unsound) = load_newest(&objects, Wanted::Nothing).unwrap();
    assert_eq!(unsound, []);
    let summary = log_on(&disks[0]).summary();
    let generation = objects.claim(summary.generation + 1).unwrap();
    objects.begin(generation, summary.last).unwrap();
    let written = Written::default();
    let addresses = addresses(disks.len());
    let restored = restored.map(Arc::new);
    let start = |(process, disk): (usize, &Arc<Simulated>)| {
        let member = Member { process, processes: disks.len(), workers: disks.len() * workers };
        let memory = memory_on(disk, workers);
        let name = restored.as_ref().map(|loaded| loaded.manifest.name());
        let restored = name.map(|name| load_named(&objects, name, Wanted::Of(member)).unwrap());
        let restored = restored.map(Arc::new);
        let from = restored.as_ref().map(|loaded| &loaded.manifest);
        let checkpoints =
            Checkpointer::start(objects.clone(), generation, from, 1, memory.clone(), member);
        let lasting = Lasting {
            job: "test".into(),
            generation,
            holder: 1,
            memory,
            checkpoints: Some(Arc::new(checkpoints.unwrap())),
            restored,
            base: None,
        };
        let control = JobControl::lasting(Arc::new(SystemClock), false, lasting);
        let job = JobInput { policy, splits: vec![Numbers.splits().unwrap()] };
        let theirs = written.clone();
        let cluster =
            Cluster { threads: workers, process, addresses: addresses.clone(), second_copy: None };
        std::thread::spawn(move || {
            run(&cluster, job, &control, move |_| Ok(graph(true, false, &theirs))).unwrap();
        })
    };
    let running: Vec<_> = disks.iter().enumerate().map(start).collect();
    running.into_iter().for_each(|process| process.join().unwrap());
    (lines_of(&written), restored)
}

fn empty_disks(count: usize) -> Vec<Arc<Simulated>> {
    (0..count).map(|_| Arc::new(Simulated::default())).collect()
}

fn sorted(lines: impl Iterator<Item = Vec<i64>>) -> Vec<Vec<i64>> {
    let mut lines: Vec<_> = lines.collect();
    lines.sort_unstable();
    lines
}

#[test]
fn going_on_from_any_checkpoint_gives_what_an_undisturbed_run_gives() {
    let whole = sorted(outcome(1, REPLAY, true).0.into_iter().map(|line| line.1));
    let sets =
        [(1, 1, LIVE), (1, 2, LIVE), (1, 3, EpochPolicy::rows(30)), (2, 1, LIVE), (3, 2, LIVE)];
    for (processes, workers, policy) in sets {
        let (store, disks) = (Arc::new(Memory::default()), empty_disks(processes));
        let (lines, _) = run_on(&store, &disks, workers, policy);
        let names = store.names();
        assert!(names.len() > 1, "{} checkpoints of {processes} x {workers}", names.len());
        let cuts = cuts_on(&disks[0]);
        assert!(disks.iter().all(|disk| cuts_on(disk) == cuts), "each process has all cuts");
        for (place, name) in names.iter().enumerate().step_by(names.len() / 4 + 1) {
            // With all recorded cuts, or with none behind the checkpoint.
            for recorded in [true, false] {
                let disks = empty_disks(1 + (processes + place) % 2);
                for disk in &disks {
                    let kept = cuts.iter().filter(|cut| recorded || cut.epoch <= name.epoch);
                    log_on(disk).adopt(None, kept.cloned().map(Ok)).unwrap();
                }
                let others = 1 + (workers + place) % 3;
                let (more, restored) = run_on(&store.until(*name), &disks, others, policy);
                assert_eq!(restored.unwrap().manifest.epoch, name.epoch);
                assert!(more.iter().all(|line| line.0 > name.epoch));
                let before = lines.iter().filter(|line| line.0 <= name.epoch);
                let all = before.chain(&more).map(|line| line.1.clone());
                let what = format!("{processes} x {workers} to {} x {others}", disks.len());
                assert_eq!(sorted(all), whole, "{what} at {}", name.epoch);
                if recorded {
                    let behind = lines.iter().filter(|line| line.0 > name.epoch);
                    assert_eq!(more, behind.cloned().collect::<Lines>());
                }
            }
        }
    }
}

#[test]
fn two_checkpoints_are_kept_and_all_that_they_name() {
    let (store, disks) = (Arc::new(Memory::default()), empty_disks(1));
    run_on(&store, &disks, 2, LIVE);
    let removed = store.removed.lock().unwrap().clone();
    let (names, objects) = (store.names(), JobStore::over(store.clone()));
    let left = names.iter().filter(|name| !removed.contains(&name.path())).count();
    assert_eq!(left, 2);
    for name in names.iter().rev().take(2) {
        let manifest = weir_engine::checkpoint::verify(&objects, *name).unwrap().unwrap();
        assert!(manifest.pieces.iter().all(|piece| !removed.contains(&piece.file)));
        assert!(!manifest.pieces.is_empty() || name.epoch > 0);
    }
    assert!(removed.iter().any(|path| path.ends_with(".pieces")), "pieces are removed");
}

#[test]
fn a_broken_checkpoint_is_told_and_the_one_before_is_used() {
    let (store, disks) = (Arc::new(Memory::default()), empty_disks(1));
    run_on(&store, &disks, 1, LIVE);
    let names = store.names();
    let newest = names[names.len() - 1];
    let objects = JobStore::over(store.clone());
    let manifest = weir_engine::checkpoint::verify(&objects, newest).unwrap().unwrap();
    let damage = |path: &str, at: usize| {
        store.objects.lock().unwrap().get_mut(path).unwrap()[at] ^= 1;
        let (loaded, unsound) = load_newest(&objects, Wanted::All).unwrap();
        store.objects.lock().unwrap().get_mut(path).unwrap()[at] ^= 1;
        assert_eq!(loaded.unwrap().manifest.epoch, names[names.len() - 2].epoch);
        assert_eq!(unsound.len(), 1);
        unsound[0].reason.clone()
    };
    assert!(damage(&newest.path(), 40).contains("its manifest has a wrong checksum"));
    let own = format!("{:020}", newest.epoch);
    let piece = manifest.pieces.iter().find(|piece| piece.file.contains(&own)).unwrap();
    let at = usize::try_from(piece.offset + piece.length - 9).unwrap();
    let reason = damage(&piece.file, at);
    assert!(reason.contains("has a wrong checksum") && reason.contains(&piece.file), "{reason}");
    assert_eq!(load_newest(&objects, Wanted::All).unwrap().1, []);
}
