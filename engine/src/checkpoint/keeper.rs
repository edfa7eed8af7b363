//! The thread that makes checkpoints of what operators, sinks and cuts give.

use arrow::ipc::writer::StreamWriter;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
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
    news: Condvar,
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
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Starts the thread. `from`: the checkpoint that the job was restored from; `interval`: the
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
        let next_piece = member.first_piece(from.map_or(1, |manifest| manifest.next_piece));
        let known = from.into_iter().flat_map(|manifest| &manifest.pieces);
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            news: Condvar::new(),
            next_piece: Arc::new(AtomicU64::new(next_piece)),
            counters: CheckpointCounters::default(),
            interval,
            member,
        });
        let writer = Writer {
            store,
            generation,
            shared: shared.clone(),
            memory,
            known: known.map(|piece| (piece.id, piece.clone())).collect(),
            sound: from.into_iter().map(Manifest::name).collect(),
            behind: Behind::from(from),
        };
        let thread = std::thread::Builder::new().name("checkpoints".to_owned());
        let thread = thread.spawn(move || writer.run())?;
        Ok(Checkpointer { shared, thread: Some(thread) })
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
            self.shared.news.notify_all();
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
        self.shared.news.notify_all();
        if let Some(thread) = self.thread.take() {
            // A panic shows as a failure.
            let _ = thread.join();
        }
    }
}

struct Writer {
    store: JobStore,
    generation: u64,
    shared: Arc<Shared>,
    memory: Arc<dyn CutMemory>,
    /// Pieces that the newest checkpoint names, as far as they may be this process's.
    known: BTreeMap<PieceId, PieceRecord>,
    /// Checkpoints that this process has made, or has read whole.
    sound: BTreeSet<Name>,
    behind: Behind,
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
struct Alarm<'a>(&'a Shared);

impl Drop for Alarm<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let error = ConnectorError::fatal("the thread that writes checkpoints has panicked");
            self.0.lock().failure = Some(error);
        }
    }
}

impl Writer {
    fn run(mut self) {
        let shared = self.shared.clone();
        let _alarm = Alarm(&shared);
        loop {
            let mut state = shared.lock();
            let idle = |state: &mut State| state.ready.is_none() && !state.stop;
            let waited = shared.news.wait_while(state, idle);
            state = waited.unwrap_or_else(PoisonError::into_inner);
            if state.stop {
                return;
            }
            let Some(making) = state.ready.take() else { continue };
            drop(state);
            let (began, paused) = (making.began, making.paused);
            let done = self.make(making).and_then(|made| self.keep_trying(made));
            let mut state = shared.lock();
            match done {
                Ok(Some(bytes)) => self.count(bytes, began.elapsed(), paused),
                Ok(None) => return,
                Err(error) => state.failure = Some(error),
            }
            state.busy = false;
        }
    }

    fn count(&self, bytes: u64, took: Duration, paused: Duration) {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let counters = &self.shared.counters;
        counters.made.fetch_add(1, Ordering::Relaxed);
        counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        counters.last_bytes.store(bytes, Ordering::Relaxed);
        counters.last_took.store(micros(took), Ordering::Relaxed);
        counters.paused.fetch_add(micros(paused), Ordering::Relaxed);
        counters.last_paused.store(micros(paused), Ordering::Relaxed);
    }

    /// This process's part, and the files that it needs.
    fn make(&self, making: Making) -> Result<Made, ConnectorError> {
        let (generation, epoch) = (self.generation, making.epoch);
        let prefix = prefix(generation, epoch, self.shared.member.process);
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
            next_piece: self.shared.next_piece.load(Ordering::Relaxed),
            shards: making.digests.into_iter().map(record).collect(),
            pieces,
        };
        Ok(Made { part, cuts: making.cuts.unwrap_or_default(), files: files.full })
    }

    /// Writes until it works; `None` where the job has ended meanwhile.
    fn keep_trying(&mut self, made: Made) -> Result<Option<u64>, ConnectorError> {
        let mut pause = PAUSE_FIRST;
        loop {
            let error = match self.write(&made) {
                Ok(None) => return Ok(None),
                Ok(Some(bytes)) => return self.tidy_up(made).map(|()| Some(bytes)),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Store(error)) => error,
            };
            if !self.pause(pause, Some(format!("the checkpoint waits: {error}"))) {
                return Ok(None);
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Waits; false where the job has ended meanwhile.
    fn pause(&self, pause: Duration, notice: Option<String>) -> bool {
        let mut state = self.shared.lock();
        if notice.is_some() {
            state.notice = notice;
        }
        let waited = self.shared.news.wait_timeout_while(state, pause, |state| !state.stop);
        !waited.unwrap_or_else(PoisonError::into_inner).0.stop
    }

    /// Writes the files, then what names them; `None` where the job has ended meanwhile.
    fn write(&mut self, made: &Made) -> Result<Option<u64>, Trouble> {
        let mut bytes = 0;
        for (name, content) in &made.files {
            // Not written where an attempt before this one was.
            self.store.objects().put(name, content.clone())?;
            bytes += content.len() as u64;
        }
        let member = self.shared.member;
        let path = if member.process > 0 {
            self.is_newest()?;
            bytes += self.put(&made.part.path(member.process), &made.part)?;
            None
        } else {
            let Some(whole) = self.gather(&made.part)? else { return Ok(None) };
            self.is_newest()?;
            let manifest = whole.into_manifest(made.cuts.clone(), member.workers);
            bytes += self.put(&manifest.name().path(), &manifest)?;
            Some(manifest.name())
        };
        self.sound.extend(path);
        let known = made.part.pieces.iter();
        self.known = known.map(|piece| (piece.id, piece.clone())).collect();
        Ok(Some(bytes))
    }

    fn put<T: serde::Serialize>(&self, path: &str, value: &T) -> Result<u64, Trouble> {
        let text = serde_json::to_string(value);
        let text = text.map_err(|e| Trouble::Final(ConnectorError::fatal(e.to_string())))?;
        let sealed = seal(&text);
        let bytes = sealed.len() as u64;
        self.store.objects().put(path, sealed)?;
        Ok(bytes)
    }

    /// All parts together, once they are there; `None` where the job has ended meanwhile.
    fn gather(&self, own: &Part) -> Result<Option<Part>, Trouble> {
        let mut whole = own.clone();
        for process in 1..self.shared.member.processes {
            let mut pause = LOOK_FIRST;
            loop {
                if let Some(part) = own.of(process, &self.store)? {
                    whole.add(part);
                    break;
                }
                if !self.pause(pause, None) {
                    return Ok(None);
                }
                pause = (pause * 2).min(LOOK_MAX);
            }
        }
        Ok(Some(whole))
    }

    /// Removes what is not needed any more. What cannot be removed now is left to the next
    /// checkpoint: this one exists.
    fn tidy_up(&mut self, made: Made) -> Result<(), ConnectorError> {
        if self.shared.member.process > 0 {
            let asked = Retained { epoch: made.part.epoch, splits: made.cuts.facts() };
            if let Some(oldest) = self.behind.next(asked) {
                self.retain(oldest);
            }
            self.shared.lock().notice = None;
            return Ok(());
        }
        let notice = match self.collect() {
            Ok(()) => None,
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Store(error)) => {
                Some(format!("old checkpoints cannot be removed: {error}"))
            }
        };
        self.shared.lock().notice = notice;
        Ok(())
    }

    /// Nothing from before this checkpoint is needed any more.
    fn retain(&self, oldest: Arc<Retained>) {
        self.memory.trim(oldest.epoch);
        self.shared.lock().retained = Some(oldest);
    }

    fn is_newest(&self) -> Result<(), Trouble> {
        let generation = self.generation;
        if self.store.is_superseded(generation)? {
            let message = format!("a newer generation than {generation} has taken the job over");
            return Err(Trouble::Final(ConnectorError::fatal(message)));
        }
        Ok(())
    }

    /// Removes what is no longer needed, here and in the cut log.
    fn collect(&mut self) -> Result<(), Trouble> {
        let objects = self.store.objects().clone();
        let (manifests, files) = (objects.list("checkpoints")?, objects.list("pieces")?);
        let generations = self.store.generations()?;
        let Some(kept) = to_keep(&manifests, &generations, &self.sound) else { return Ok(()) };
        let mut named = BTreeSet::new();
        let mut oldest: Option<Manifest> = None;
        for name in kept.iter().rev() {
            let bytes = objects.get(&name.path())?.unwrap_or_default();
            // What cannot be read names nothing, so nothing is removed.
            let Ok(manifest) = load::parse(&bytes) else { return Ok(()) };
            named.extend(manifest.pieces.iter().map(|piece| piece.file.clone()));
            oldest = Some(manifest);
        }
        self.is_newest()?;
        self.sound.retain(|name| kept.contains(name));
        if let Some(oldest) = oldest {
            let splits = oldest.cuts.facts();
            self.retain(Arc::new(Retained { epoch: oldest.epoch, splits }));
        }
        for path in to_collect(&manifests, &files, &kept, &named, self.generation) {
            objects.delete(&path)?;
        }
        // Claims that no checkpoint is older than say nothing any more.
        let least = kept.iter().map(|name| name.generation).min().unwrap_or(0);
        for path in objects.list("generations")? {
            if number_in(&path).is_some_and(|number| number < least) {
                objects.delete(&path)?;
            }
        }
        Ok(())
    }
}

struct Made {
    part: Part,
    cuts: CutSnapshot,
    files: Vec<(String, Vec<u8>)>,
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
