//! Going on from checkpoints.

use super::recovery::{cuts_on, log_on, memory_on};
use super::*;
use weir_engine::checkpoint::{Checkpointer, Loaded, Name, load_newest};
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

/// A run that makes a checkpoint whenever it can, going on from the newest there is.
fn run_on(
    store: &Arc<Memory>,
    disk: &Arc<Simulated>,
    workers: usize,
    policy: EpochPolicy,
) -> (Lines, Option<Arc<Loaded>>) {
    let objects = JobStore::over(store.clone());
    let (restored, unsound) = load_newest(&objects).unwrap();
    assert_eq!(unsound, []);
    let restored = restored.map(Arc::new);
    let generation = objects.claim(log_on(disk).summary().generation + 1).unwrap();
    objects.begin(generation, log_on(disk).summary().last).unwrap();
    let memory = memory_on(disk, workers);
    let from = restored.as_ref().map(|loaded| &loaded.manifest);
    let checkpoints = Checkpointer::start(objects, generation, from, 1, memory.clone()).unwrap();
    let checkpoints = Arc::new(checkpoints);
    let lasting = Lasting {
        job: "test".into(),
        generation,
        holder: 1,
        memory,
        checkpoints: Some(checkpoints.clone()),
        restored: restored.clone(),
    };
    let control = JobControl::lasting(Arc::new(SystemClock), false, lasting);
    let job = JobInput { policy, splits: vec![Numbers.splits().unwrap()] };
    let written = Written::default();
    let theirs = written.clone();
    let cluster = Cluster { threads: workers, ..Cluster::default() };
    run(&cluster, job, &control, move |_| Ok(graph(true, false, &theirs))).unwrap();
    (lines_of(&written), restored)
}

fn sorted(lines: impl Iterator<Item = Vec<i64>>) -> Vec<Vec<i64>> {
    let mut lines: Vec<_> = lines.collect();
    lines.sort_unstable();
    lines
}

#[test]
fn going_on_from_any_checkpoint_gives_what_an_undisturbed_run_gives() {
    let whole = sorted(outcome(1, REPLAY, true).0.into_iter().map(|line| line.1));
    for (workers, policy) in [(1, LIVE), (2, LIVE), (3, EpochPolicy::rows(30))] {
        let (store, disk) = (Arc::new(Memory::default()), Arc::new(Simulated::default()));
        let (lines, _) = run_on(&store, &disk, workers, policy);
        let names = store.names();
        assert!(names.len() > 1, "{} checkpoints", names.len());
        let cuts = cuts_on(&disk);
        for (place, name) in names.iter().enumerate().step_by(names.len() / 4 + 1) {
            // With all recorded cuts, or with none behind the checkpoint.
            for recorded in [true, false] {
                let disk = Arc::new(Simulated::default());
                let kept = cuts.iter().filter(|cut| recorded || cut.epoch <= name.epoch);
                log_on(&disk).adopt(None, kept.cloned().map(Ok)).unwrap();
                let others = 1 + (workers + place) % 3;
                let (more, restored) = run_on(&store.until(*name), &disk, others, policy);
                assert_eq!(restored.unwrap().manifest.epoch, name.epoch);
                assert!(more.iter().all(|line| line.0 > name.epoch));
                let before = lines.iter().filter(|line| line.0 <= name.epoch);
                let all = before.chain(&more).map(|line| line.1.clone());
                assert_eq!(sorted(all), whole, "{workers} to {others} at {}", name.epoch);
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
    let (store, disk) = (Arc::new(Memory::default()), Arc::new(Simulated::default()));
    run_on(&store, &disk, 2, LIVE);
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
    let (store, disk) = (Arc::new(Memory::default()), Arc::new(Simulated::default()));
    run_on(&store, &disk, 1, LIVE);
    let names = store.names();
    let newest = names[names.len() - 1];
    let objects = JobStore::over(store.clone());
    let manifest = weir_engine::checkpoint::verify(&objects, newest).unwrap().unwrap();
    let damage = |path: &str, at: usize| {
        store.objects.lock().unwrap().get_mut(path).unwrap()[at] ^= 1;
        let (loaded, unsound) = load_newest(&objects).unwrap();
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
    assert_eq!(load_newest(&objects).unwrap().1, []);
}
