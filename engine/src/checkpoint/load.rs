//! Finding the newest sound checkpoint, and reading its pieces.

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::ipc::reader::StreamReader;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::{FORMAT, Manifest, Member, Name, Owner, PieceRecord, in_force};
use crate::connector::ConnectorError;
use crate::journal::crc32c;
use crate::keys::owned;
use crate::state::{PieceRef, Restored, StatePart};
use crate::store::JobStore;

/// A checkpoint that was read whole.
#[derive(Debug)]
pub struct Loaded {
    /// Its manifest.
    pub manifest: Manifest,
    /// Its pieces, until all workers have taken theirs.
    pieces: Mutex<BTreeMap<Owner, Vec<Restored>>>,
}

impl Loaded {
    /// The pieces of an owner.
    pub(crate) fn pieces_of(&self, owner: &Owner) -> Vec<Restored> {
        let pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        pieces.get(owner).cloned().unwrap_or_default()
    }

    /// All have taken what is theirs: the pieces need no memory any more.
    pub(crate) fn let_go(&self) {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// A checkpoint that was passed over, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsound {
    /// Its name.
    pub name: Name,
    /// What is wrong with it.
    pub reason: String,
}

/// Which pieces of a checkpoint are to be kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of them.
    All,
    /// None: they are only looked at.
    Nothing,
    /// Those of this process's workers.
    Of(Member),
}

impl Wanted {
    fn takes(self, piece: &PieceRecord) -> bool {
        let Wanted::Of(member) = self else { return self == Wanted::All };
        let peers = member.workers.max(1);
        let threads = peers / member.processes.max(1);
        let mine = member.process * threads..(member.process + 1) * threads;
        match piece.owner {
            Owner::Operator(_) => mine
                .filter_map(|worker| owned(worker, peers))
                .any(|groups| groups.meets(piece.key_groups)),
            Owner::Shard(_, shard) => mine.contains(&(shard as usize % peers)),
        }
    }
}

/// A checkpoint that was found sound before.
///
/// # Errors
/// The store's; what is wrong with it.
pub fn load_named(store: &JobStore, name: Name, wanted: Wanted) -> Result<Loaded, ConnectorError> {
    load(store, name, wanted)?.map_err(|reason| {
        let epoch = name.epoch;
        ConnectorError::fatal(format!("the checkpoint at epoch {epoch}: {reason}"))
    })
}

/// The newest sound checkpoint that counts, with those that were passed over. All that it names is
/// looked at; only what is wanted is kept.
///
/// # Errors
/// The store's: a store that does not answer is no unsound checkpoint.
pub fn load_newest(
    store: &JobStore,
    wanted: Wanted,
) -> Result<(Option<Loaded>, Vec<Unsound>), ConnectorError> {
    let generations = store.generations()?;
    let paths = store.objects().list("checkpoints")?;
    let mut unsound = Vec::new();
    for name in in_force(&paths, &generations) {
        match load(store, name, wanted)? {
            Ok(loaded) => return Ok((Some(loaded), unsound)),
            Err(reason) => unsound.push(Unsound { name, reason }),
        }
    }
    Ok((None, unsound))
}

/// What is wrong with a checkpoint, if anything is; else its manifest.
///
/// # Errors
/// The store's.
pub fn verify(store: &JobStore, name: Name) -> Result<Result<Manifest, String>, ConnectorError> {
    Ok(load(store, name, Wanted::All)?.map(|loaded| loaded.manifest))
}

fn load(
    store: &JobStore,
    name: Name,
    wanted: Wanted,
) -> Result<Result<Loaded, String>, ConnectorError> {
    let Some(bytes) = store.objects().get(&name.path())? else {
        return Ok(Err("its manifest is gone".to_owned()));
    };
    let manifest = match parse(&bytes) {
        Ok(manifest) => manifest,
        Err(reason) => return Ok(Err(format!("its manifest {reason}"))),
    };
    // What is only looked at is looked at whole.
    let partly = matches!(wanted, Wanted::Of(_));
    let read_in = manifest.pieces.iter().filter(|piece| !partly || wanted.takes(piece));
    let files: BTreeSet<&String> = read_in.map(|piece| &piece.file).collect();
    let files: Vec<&String> = files.into_iter().collect();
    let mut pieces: BTreeMap<Owner, Vec<Restored>> = BTreeMap::new();
    for read in in_parallel(&files, |file| read_file(store, &manifest, file, wanted)) {
        match read? {
            Ok(read) => {
                read.into_iter()
                    .for_each(|(owner, one)| pieces.entry(owner).or_default().push(one));
            }
            Err(reason) => return Ok(Err(reason)),
        }
    }
    Ok(Ok(Loaded { manifest, pieces: Mutex::new(pieces) }))
}

/// Files that are read at a time at the most.
const READERS_MAX: usize = 4;

/// What `one` gives for each item, in their order, by several threads.
fn in_parallel<T: Sync, R: Send>(items: &[T], one: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let work = || {
        let taken = std::iter::from_fn(|| {
            let at = next.fetch_add(1, Ordering::Relaxed);
            items.get(at).map(|item| (at, one(item)))
        });
        taken.collect::<Vec<_>>()
    };
    let mut done = std::thread::scope(|scope| {
        let others = (1..threads.min(READERS_MAX).min(items.len())).map(|_| scope.spawn(work));
        let others: Vec<_> = others.collect();
        let mut done = work();
        for other in others {
            match other.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, result)| result).collect()
}

type Pieces = Vec<(Owner, Restored)>;

/// The pieces of a file.
fn read_file(
    store: &JobStore,
    manifest: &Manifest,
    file: &String,
    wanted: Wanted,
) -> Result<Result<Pieces, String>, ConnectorError> {
    let Some(bytes) = store.objects().get(file)? else {
        return Ok(Err(format!("its file {file} is gone")));
    };
    let mut pieces = Vec::new();
    for piece in manifest.pieces.iter().filter(|piece| piece.file == *file) {
        let (id, key_groups) = (piece.id, piece.key_groups);
        let read = match checked(piece, &bytes) {
            Ok(content) if wanted.takes(piece) => {
                decode(content).map(Some).map_err(|e| format!("cannot be read: {e}"))
            }
            content => content.map(|_| None),
        };
        match read {
            Ok(None) => {}
            Ok(Some(rows)) => {
                let part = StatePart { kind: lasting(&piece.kind), key_groups, rows };
                let named = PieceRef { id, key_groups };
                pieces.push((piece.owner.clone(), (named, part)));
            }
            Err(reason) => {
                let (id, offset) = (id.0, piece.offset);
                return Ok(Err(format!("piece {id} in {file} at byte {offset} {reason}")));
            }
        }
    }
    Ok(Ok(pieces))
}

/// A manifest from its bytes.
pub(super) fn parse(bytes: &[u8]) -> Result<Manifest, String> {
    let line = crate::store::open(bytes)?;
    #[derive(serde::Deserialize)]
    struct Version {
        format: u32,
        weir: String,
    }
    let version: Version = serde_json::from_str(line).map_err(|e| format!("is unreadable: {e}"))?;
    if version.format != FORMAT {
        let (found, weir) = (version.format, version.weir);
        return Err(format!("has format {found} (Weir {weir}); this build reads {FORMAT}"));
    }
    serde_json::from_str(line).map_err(|e| format!("is unreadable: {e}"))
}

/// The bytes of a piece, if they are whole.
fn checked<'a>(piece: &PieceRecord, file: &'a [u8]) -> Result<&'a [u8], String> {
    let end = piece.offset.checked_add(piece.length).filter(|end| *end <= file.len() as u64);
    let Some(end) = end else { return Err("ends behind the file's end".to_owned()) };
    let bytes = &file[piece.offset as usize..end as usize];
    if crc32c(bytes) != piece.checksum {
        return Err("has a wrong checksum".to_owned());
    }
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<RecordBatch, arrow::error::ArrowError> {
    let reader = StreamReader::try_new(Cursor::new(bytes), None)?;
    let schema = reader.schema();
    let batches = reader.collect::<Result<Vec<_>, _>>()?;
    match <[RecordBatch; 1]>::try_from(batches) {
        Ok([only]) => Ok(only),
        Err(batches) => concat_batches(&schema, &batches),
    }
}

/// The kinds of pieces are few, and written in the code: each is kept once.
fn lasting(kind: &str) -> &'static str {
    static KINDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut kinds = KINDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = kinds.get(kind) {
        return known;
    }
    let known: &'static str = Box::leak(kind.to_owned().into_boxed_str());
    kinds.insert(known);
    known
}
