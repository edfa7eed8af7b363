//! Finding the newest sound checkpoint, and reading its pieces.

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::ipc::reader::StreamReader;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Cursor;
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
    let mut pieces: BTreeMap<Owner, Vec<Restored>> = BTreeMap::new();
    for file in files {
        let Some(bytes) = store.objects().get(file)? else {
            return Ok(Err(format!("its file {file} is gone")));
        };
        for piece in manifest.pieces.iter().filter(|piece| piece.file == *file) {
            let (id, key_groups) = (piece.id, piece.key_groups);
            let content = checked(piece, &bytes);
            let read = match content {
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
                    pieces.entry(piece.owner.clone()).or_default().push((named, part));
                }
                Err(reason) => {
                    let (id, offset) = (id.0, piece.offset);
                    let what = format!("piece {id} in {file} at byte {offset} {reason}");
                    return Ok(Err(what));
                }
            }
        }
    }
    Ok(Ok(Loaded { manifest, pieces: Mutex::new(pieces) }))
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
