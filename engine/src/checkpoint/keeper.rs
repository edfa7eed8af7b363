//! The task that makes checkpoints of what operators, sinks and cuts give.
//!
//! One step puts, looks for or removes one object at the most, but for what is read to know what
//! may go: so a task never holds its thread for longer than the store takes for a few requests.

use arrow::ipc::writer::StreamWriter;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::parts::{Behind, Member, Part, prefix};
use super::{FORMAT, Manifest, Name, Owner, PieceRecord, ShardRecord, load, to_collect, to_keep};
use crate::clock::Stopwatch;
use crate::connector::ConnectorError;
use crate::cut::{CutSnapshot, SplitFacts};
use crate::cutlog::CutMemory;
use crate::journal::crc32c;
use crate::keys::KeyGroups;
use crate::state::{PieceId, PieceRef, Pieces, StatePart};
use crate::store::{JobStore, number_in, seal};
use crate::tasks::{Bell, Next, Running, Task, Tasks, Threads};
use crate::time::{Epoch, Millis};

/// Bytes of a file of pieces at which the next one begins.
const FILE_BYTES: usize = 64 << 20;
/// The first and the longest pause before another attempt to write.
const PAUSE_FIRST: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// The first and the longest pause before another look for the parts of other processes.
const LOOK_FIRST: Duration = Duration::from_millis(2);
const LOOK_MAX: Duration = Duration::from_millis(200);

/// What has been done so far.
#[derive(Debug, Default)]
pub struct CheckpointCounters {
    /// Checkpoints made.
    pub made: AtomicU64,
    /// Bytes written for them, manifests included.
    pub bytes: AtomicU64,
    /// Bytes of the last one.
    pub last_bytes: AtomicU64,
    /// Microseconds from the cut to the manifest, of the last one.
    pub last_took: AtomicU64,
    /// Microseconds for which operators were kept from their rows, in all.
    pub paused: AtomicU64,
    /// The same, of the last one.
    pub last_paused: AtomicU64,
}

/// What the oldest checkpoint that is kept needs of the sources.
#[derive(Debug)]
pub struct Retained {
    /// Its epoch.
    pub epoch: Epoch,
    /// The splits as they were then.
    pub splits: Vec<SplitFacts>,
}

enum Given {
    Same(PieceRef),
    New(PieceId, StatePart),
}

/// The pieces that one owner gives.
pub(crate) struct Collector {
    next: Arc<AtomicU64>,
    /// Pieces are numbered in turn by so many processes.
    step: u64,
    key_groups: KeyGroups,
    given: Vec<Given>,
    /// Since when its owner does nothing else.
    began: Option<Stopwatch>,
}

impl Collector {
    /// The owner was not kept from anything.
    pub(crate) fn unpaused(self) -> Collector {
        Collector { began: None, ..self }
    }
}

impl Pieces for Collector {
    fn same(&mut self, piece: PieceRef) {
        if let Some(key_groups) = piece.key_groups.and(self.key_groups) {
            self.given.push(Given::Same(PieceRef { key_groups, ..piece }));
        }
    }

    fn put(&mut self, part: StatePart) -> PieceRef {
        let id = PieceId(self.next.fetch_add(self.step, Ordering::Relaxed));
        let key_groups = part.key_groups.and(self.key_groups).unwrap_or(part.key_groups);
        self.given.push(Given::New(id, StatePart { key_groups, ..part }));
        PieceRef { id, key_groups }
    }
}

/// A checkpoint that is being made.
struct Making {
    epoch: Epoch,
    began: Stopwatch,
    cuts: Option<CutSnapshot>,
    given: BTreeMap<(Owner, usize), Vec<Given>>,
    digests: BTreeMap<(usize, u32), u128>,
    paused: Duration,
}

#[derive(Default)]
struct State {
    /// Who gives pieces: owner and worker.
    owners: BTreeSet<(Owner, usize)>,
    /// When the last one was asked for.
    asked: Option<Millis>,
    /// Whether one is under way.
    busy: bool,
    making: BTreeMap<Epoch, Making>,
    ready: Option<Making>,
    failure: Option<ConnectorError>,
    notice: Option<String>,
    retained: Option<Arc<Retained>>,
    stop: bool,
}

struct Shared {
    state: Mutex<State>,
    bell: Arc<Bell>,
    next_piece: Arc<AtomicU64>,
    counters: CheckpointCounters,
    interval: Millis,
    member: Member,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a job's checkpoints: on process 0 whole ones, on any other its part of them.
pub struct Checkpointer {
    shared: Arc<Shared>,
    running: Option<Box<dyn Running>>,
}

impl Checkpointer {
    /// Starts the task. `from`: the checkpoint that the job was restored from; `interval`: the
    /// least time between two, in milliseconds; `member`: which process this is.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(
        store: JobStore,
        generation: u64,
        from: Option<&Manifest>,
        interval: Millis,
        memory: Arc<dyn CutMemory>,
        member: Member,
    ) -> std::io::Result<Checkpointer> {
        Checkpointer::start_on(&Threads, store, generation, from, interval, memory, member)
    }

    /// The same, run by these.
    pub(crate) fn start_on(
        tasks: &dyn Tasks,
        store: JobStore,
        generation: u64,
        from: Option<&Manifest>,
        interval: Millis,
        memory: Arc<dyn CutMemory>,
        member: Member,
    ) -> std::io::Result<Checkpointer> {
        let next_piece = member.first_piece(from.map_or(1, |manifest| manifest.next_piece));
        let known = from.into_iter().flat_map(|manifest| &manifest.pieces);
        let bell = Arc::new(Bell::default());
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            bell: bell.clone(),
            next_piece: Arc::new(AtomicU64::new(next_piece)),
            counters: CheckpointCounters::default(),
            interval,
            member,
        });
        let writer = Writer {
            store,
            generation,
            alarm: Alarm(shared.clone()),
            memory,
            known: known.map(|piece| (piece.id, piece.clone())).collect(),
            sound: from.into_iter().map(Manifest::name).collect(),
            behind: Behind::from(from),
            doing: None,
        };
        let running = tasks.start("checkpoints".to_owned(), bell, Box::new(writer))?;
        Ok(Checkpointer { shared, running: Some(running) })
    }

    /// Says that this owner gives pieces on this worker, before any epoch is complete.
    pub(crate) fn expect(&self, owner: Owner, worker: usize) {
        self.shared.lock().owners.insert((owner, worker));
    }

    /// Whether the next cut is to be a checkpoint; true once for each, on process 0.
    pub(crate) fn is_due(&self, now: Millis) -> bool {
        if self.shared.member.process > 0 {
            return false;
        }
        let mut state = self.shared.lock();
        let asked = *state.asked.get_or_insert(now);
        // A clock that stepped back must not end them.
        let early = (0..self.shared.interval).contains(&now.saturating_sub(asked));
        if state.busy || early || state.failure.is_some() {
            return false;
        }
        state.busy = true;
        state.asked = Some(now);
        true
    }

    /// For the pieces of an owner that has these key groups.
    pub(crate) fn collector(&self, key_groups: KeyGroups) -> Collector {
        let (next, began) = (self.shared.next_piece.clone(), Some(Stopwatch::start()));
        let step = self.shared.member.processes.max(1) as u64;
        Collector { next, step, key_groups, given: Vec::new(), began }
    }

    fn with(&self, epoch: Epoch, change: impl FnOnce(&mut Making)) {
        let mut state = self.shared.lock();
        let fresh = || Making {
            epoch,
            began: Stopwatch::start(),
            cuts: None,
            given: BTreeMap::new(),
            digests: BTreeMap::new(),
            paused: Duration::ZERO,
        };
        let making = state.making.entry(epoch).or_insert_with(fresh);
        change(making);
        let all = making.cuts.is_some() && making.given.len() == state.owners.len();
        if all && let Some(making) = state.making.remove(&epoch) {
            state.ready = Some(making);
            drop(state);
            self.shared.bell.ring();
        }
    }

    /// What the cuts say at the end of the epoch; once a process.
    pub(crate) fn cuts(&self, epoch: Epoch, cuts: CutSnapshot) {
        self.with(epoch, |making| making.cuts = Some(cuts));
    }

    /// An owner's pieces, on a worker.
    pub(crate) fn give(&self, epoch: Epoch, owner: (Owner, usize), pieces: Collector) {
        let paused = pieces.began.map_or(Duration::ZERO, |began| began.elapsed());
        self.with(epoch, |making| {
            making.paused = making.paused.max(paused);
            making.given.insert(owner, pieces.given);
        });
    }

    /// A shard's digest, before its pieces.
    pub(crate) fn digest(&self, epoch: Epoch, shard: (usize, u32), digest: u128) {
        self.with(epoch, |making| {
            making.digests.insert(shard, digest);
        });
    }

    /// Why no more can be made, if that is so.
    pub(crate) fn failure(&self) -> Option<ConnectorError> {
        self.shared.lock().failure.clone()
    }

    /// What a person should know.
    pub(crate) fn notice(&self) -> Option<String> {
        self.shared.lock().notice.clone()
    }

    /// What sources have to keep.
    pub(crate) fn retained(&self) -> Option<Arc<Retained>> {
        self.shared.lock().retained.clone()
    }

    /// What has been done so far.
    pub fn counters(&self) -> &CheckpointCounters {
        &self.shared.counters
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.bell.ring();
        if let Some(running) = self.running.take() {
            running.join();
        }
    }
}

struct Writer {
    store: JobStore,
    generation: u64,
    memory: Arc<dyn CutMemory>,
    /// Pieces that the newest checkpoint names, as far as they may be this process's.
    known: BTreeMap<PieceId, PieceRecord>,
    /// Checkpoints that this process has made, or has read whole.
    sound: BTreeSet<Name>,
    behind: Behind,
    doing: Option<Doing>,
    #[allow(dead_code, reason = "tells of a panic when it is dropped")]
    alarm: Alarm,
}

/// Files of pieces as they are filled.
struct Files {
    prefix: String,
    number: usize,
    open: Vec<u8>,
    full: Vec<(String, Vec<u8>)>,
}

impl Files {
    fn name(&self) -> String {
        format!("{}-{}.pieces", self.prefix, self.number)
    }

    fn close(&mut self) {
        if !self.open.is_empty() {
            self.full.push((self.name(), std::mem::take(&mut self.open)));
            self.number += 1;
        }
    }

    fn add(&mut self, id: PieceId, owner: &Owner, part: &StatePart) -> Result<PieceRecord, String> {
        let offset = self.open.len();
        let told = |e: arrow::error::ArrowError| e.to_string();
        let mut writer =
            StreamWriter::try_new(&mut self.open, &part.rows.schema()).map_err(told)?;
        writer.write(&part.rows).and_then(|()| writer.finish()).map_err(told)?;
        drop(writer);
        let bytes = &self.open[offset..];
        let record = PieceRecord {
            id,
            owner: owner.clone(),
            kind: part.kind.to_owned(),
            key_groups: part.key_groups,
            file: self.name(),
            offset: offset as u64,
            length: bytes.len() as u64,
            checksum: crc32c(bytes),
        };
        if self.open.len() >= FILE_BYTES {
            self.close();
        }
        Ok(record)
    }
}

/// A panic must not leave the job without checkpoints in silence.
struct Alarm(Arc<Shared>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = ConnectorError::fatal("the thread that writes checkpoints has panicked");
            self.0.lock().failure = Some(error);
        }
    }
}

/// A checkpoint that is being written.
struct Doing {
    made: Made,
    stage: Stage,
    bytes: u64,
    began: Stopwatch,
    paused: Duration,
    /// The next pause after an error, and the next one while something is waited for.
    pause: Duration,
    look: Duration,
}

/// What is to be done next.
enum Stage {
    /// The n-th file is to be put.
    File(usize),
    /// The part of this process is to be looked for and added.
    Gather(usize),
    /// What names the files is to be put.
    Name,
    /// It exists; what is not needed any more is to be found.
    Tidy,
    /// These may be removed, the last one first.
    Remove(Vec<String>),
}

/// What a step of writing has come to.
enum Step {
    Go(Stage),
    /// Nothing is there yet.
    NotYet,
    Made,
}

impl Task for Writer {
    fn step(&mut self, _timed_out: bool) -> Next {
        let mut state = self.alarm.0.lock();
        // What is under way is finished, unless there is something to wait for.
        let stop = state.stop;
        let Some(mut doing) = self.doing.take() else {
            if stop {
                return Next::Done;
            }
            let Some(making) = state.ready.take() else { return Next::Wait(None) };
            drop(state);
            match self.begin(making) {
                Ok(doing) => self.doing = Some(doing),
                Err(error) => self.end(Some(error)),
            }
            return Next::Again;
        };
        drop(state);
        match self.go_on(&mut doing) {
            Ok(Step::Go(stage)) => {
                self.doing = Some(Doing { stage, pause: PAUSE_FIRST, look: LOOK_FIRST, ..doing });
                Next::Again
            }
            Ok(Step::NotYet) if stop => Next::Done,
            Ok(Step::NotYet) => {
                let wait = doing.look;
                let look = (wait * 2).min(LOOK_MAX);
                self.doing = Some(Doing { look, ..doing });
                Next::Wait(Some(wait))
            }
            Ok(Step::Made) => {
                self.count(doing.bytes, doing.began.elapsed(), doing.paused);
                self.end(None);
                Next::Again
            }
            Err(Trouble::Final(error)) => {
                self.end(Some(error));
                Next::Again
            }
            Err(Trouble::Store(error)) if matches!(doing.stage, Stage::Tidy | Stage::Remove(_)) => {
                // What cannot be removed now is left to the next one: this one exists.
                let text = format!("old checkpoints cannot be removed: {error}");
                self.count(doing.bytes, doing.began.elapsed(), doing.paused);
                self.end(None);
                self.alarm.0.lock().notice = Some(text);
                Next::Again
            }
            Err(Trouble::Store(_)) if stop => Next::Done,
            Err(Trouble::Store(error)) => {
                self.alarm.0.lock().notice = Some(format!("the checkpoint waits: {error}"));
                let wait = doing.pause;
                let pause = (wait * 2).min(PAUSE_MAX);
                self.doing = Some(Doing { pause, ..doing });
                Next::Wait(Some(wait))
            }
        }
    }
}

impl Writer {
    /// Another one may be asked for, unless this one failed for good.
    fn end(&mut self, failure: Option<ConnectorError>) {
        let mut state = self.alarm.0.lock();
        state.busy = false;
        match failure {
            None => state.notice = None,
            failure => state.failure = failure,
        }
    }

    fn begin(&self, making: Making) -> Result<Doing, ConnectorError> {
        let (began, paused) = (making.began, making.paused);
        let made = self.make(making)?;
        let (pause, look) = (PAUSE_FIRST, LOOK_FIRST);
        Ok(Doing { made, stage: Stage::File(0), bytes: 0, began, paused, pause, look })
    }

    /// Does what is next.
    fn go_on(&mut self, doing: &mut Doing) -> Result<Step, Trouble> {
        let (member, objects) = (self.alarm.0.member, self.store.objects().clone());
        match &mut doing.stage {
            Stage::File(n) => {
                let Some((name, content)) = doing.made.files.get(*n) else {
                    let first = if member.process > 0 { member.processes } else { 1 };
                    return Ok(Step::Go(Stage::Gather(first)));
                };
                objects.put(name, content.clone())?;
                doing.bytes += content.len() as u64;
                Ok(Step::Go(Stage::File(*n + 1)))
            }
            Stage::Gather(process) if *process >= member.processes => {
                self.is_newest()?;
                Ok(Step::Go(Stage::Name))
            }
            Stage::Gather(process) => {
                let of_process = doing.made.part.of(*process, &self.store)?;
                let Some(part) = of_process else { return Ok(Step::NotYet) };
                doing.made.others.push(part);
                Ok(Step::Go(Stage::Gather(*process + 1)))
            }
            Stage::Name => {
                doing.bytes += self.name(&doing.made)?;
                let known = doing.made.part.pieces.iter();
                self.known = known.map(|piece| (piece.id, piece.clone())).collect();
                Ok(Step::Go(Stage::Tidy))
            }
            Stage::Tidy if member.process > 0 => {
                let Made { part, cuts, .. } = &doing.made;
                let asked = Retained { epoch: part.epoch, splits: cuts.facts() };
                if let Some(oldest) = self.behind.next(asked) {
                    self.retain(oldest);
                }
                Ok(Step::Made)
            }
            Stage::Tidy => Ok(Step::Go(Stage::Remove(self.collect()?))),
            Stage::Remove(paths) => {
                let Some(path) = paths.last() else { return Ok(Step::Made) };
                objects.delete(path)?;
                paths.pop();
                Ok(Step::Go(Stage::Remove(std::mem::take(paths))))
            }
        }
    }

    fn count(&self, bytes: u64, took: Duration, paused: Duration) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let counters = &self.alarm.0.counters;
        counters.made.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        counters.last_bytes.store(bytes, Ordering::Relaxed);
        counters.last_took.store(micros(took), Ordering::Relaxed);
        counters.paused.fetch_add(micros(paused), Ordering::Relaxed);
        counters.last_paused.store(micros(paused), Ordering::Relaxed);
        let (took_ms, paused_ms) = (took.as_millis() as u64, paused.as_secs_f64() * 1e3);
        tracing::info!(bytes, took_ms, paused_ms, "checkpoint made");
    }

    /// This process's part, and the files that it needs.
    fn make(&self, making: Making) -> Result<Made, ConnectorError> {
        let (generation, epoch) = (self.generation, making.epoch);
        let prefix = prefix(generation, epoch, self.alarm.0.member.process);
        let mut files = Files { prefix, number: 0, open: Vec::new(), full: Vec::new() };
        let mut pieces = Vec::new();
        for ((owner, _), given) in making.given {
            for one in given {
                pieces.push(match one {
                    Given::New(id, part) => files
                        .add(id, &owner, &part)
                        .map_err(|e| ConnectorError::fatal(format!("a piece of state: {e}")))?,
                    Given::Same(piece) => match self.known.get(&piece.id) {
                        Some(known) => {
                            PieceRecord { key_groups: piece.key_groups, ..known.clone() }
                        }
                        None => {
                            let message = format!("piece {} was never written", piece.id.0);
                            return Err(ConnectorError::fatal(message));
                        }
                    },
                });
            }
        }
        files.close();
        let record = |(shard, digest): ((usize, u32), u128)| ShardRecord {
            shard,
            digest: format!("{digest:032x}"),
        };
        let part = Part {
            format: FORMAT,
            generation,
            epoch,
            next_piece: self.alarm.0.next_piece.load(Ordering::Relaxed),
            shards: making.digests.into_iter().map(record).collect(),
            pieces,
        };
        let cuts = making.cuts.unwrap_or_default();
        Ok(Made { part, cuts, files: files.full, others: Vec::new() })
    }

    /// Puts what names the files: a part, or the manifest of all parts; gives its bytes.
    fn name(&mut self, made: &Made) -> Result<u64, Trouble> {
        let member = self.alarm.0.member;
        if member.process > 0 {
            return self.put(&made.part.path(member.process), &made.part);
        }
        let mut whole = made.part.clone();
        made.others.iter().for_each(|part| whole.add(part.clone()));
        let manifest = whole.into_manifest(made.cuts.clone(), member.workers);
        let bytes = self.put(&manifest.name().path(), &manifest)?;
        self.sound.insert(manifest.name());
        Ok(bytes)
    }

    fn put<T: serde::Serialize>(&self, path: &str, value: &T) -> Result<u64, Trouble> {
        let text = serde_json::to_string(value);
        let text = text.map_err(|e| Trouble::Final(ConnectorError::fatal(e.to_string())))?;
        let sealed = seal(&text);
        let bytes = sealed.len() as u64;
        self.store.objects().put(path, sealed)?;
        Ok(bytes)
    }

    /// Nothing from before this checkpoint is needed any more.
    fn retain(&self, oldest: Arc<Retained>) {
        self.memory.trim(oldest.epoch);
        self.alarm.0.lock().retained = Some(oldest);
    }

    fn is_newest(&self) -> Result<(), Trouble> {
        let generation = self.generation;
        if self.store.is_superseded(generation)? {
            let message = format!("a newer generation than {generation} has taken the job over");
            return Err(Trouble::Final(ConnectorError::fatal(message)));
        }
        Ok(())
    }

    /// Finds what is no longer needed, the last to go first, and lets go of it in the cut log.
    fn collect(&mut self) -> Result<Vec<String>, Trouble> {
        let objects = self.store.objects().clone();
        let (manifests, files) = (objects.list("checkpoints")?, objects.list("pieces")?);
        let generations = self.store.generations()?;
        let kept = to_keep(&manifests, &generations, &self.sound);
        let Some(kept) = kept else { return Ok(Vec::new()) };
        let mut named = BTreeSet::new();
        let mut oldest: Option<Manifest> = None;
        for name in kept.iter().rev() {
            let bytes = objects.get(&name.path())?.unwrap_or_default();
            // What cannot be read names nothing, so nothing is removed.
            let Ok(manifest) = load::parse(&bytes) else { return Ok(Vec::new()) };
            named.extend(manifest.pieces.iter().map(|piece| piece.file.clone()));
            oldest = Some(manifest);
        }
        // Claims that no checkpoint is older than say nothing any more.
        let least = kept.iter().map(|name| name.generation).min().unwrap_or(0);
        let mut claims = objects.list("generations")?;
        claims.retain(|path| number_in(path).is_some_and(|number| number < least));
        self.is_newest()?;
        self.sound.retain(|name| kept.contains(name));
        if let Some(oldest) = oldest {
            let splits = oldest.cuts.facts();
            self.retain(Arc::new(Retained { epoch: oldest.epoch, splits }));
        }
        let mut paths = to_collect(&manifests, &files, &kept, &named, self.generation);
        paths.extend(claims);
        paths.reverse();
        Ok(paths)
    }
}

struct Made {
    part: Part,
    cuts: CutSnapshot,
    files: Vec<(String, Vec<u8>)>,
    /// The parts of the processes that follow, as far as they were found.
    others: Vec<Part>,
}

/// Why a checkpoint was not written.
enum Trouble {
    /// The store did not do what it was asked: another attempt may succeed.
    Store(ConnectorError),
    Final(ConnectorError),
}

impl From<ConnectorError> for Trouble {
    fn from(error: ConnectorError) -> Trouble {
        Trouble::Store(error)
    }
}
