//! Checkpoints: the state of a job at an epoch, so that a restart need not begin at the beginning.
//!
//! # How one is made
//! 1. The first driver that finds it due marks its part of a cut: the checkpoint is at that epoch,
//!    and every worker learns it with the cut.
//! 2. Once an operator has applied the epoch it gives its pieces ([`crate::state`]); a sink's shard
//!    does once it has taken the epoch's rows, and has then committed all or given the rest as
//!    pieces. The cut operator gives what the cuts say.
//! 3. A thread writes the new pieces to files, then the manifest, by a put that succeeds only where
//!    nothing is. The checkpoint exists once that has returned. Of several processes each writes
//!    its own files, and the first the manifest (`parts.rs`).
//! 4. What no longer is named is removed, and the cut log is trimmed.
//!
//! # Invariant
//! Everything up to the epoch of a manifest is committed or in its pieces; everything behind it is
//! a function of its pieces, the cuts that follow and the sources from the offsets in it.
//!
//! # Argument
//! - Rows of an epoch and its cut are applied by every operator before its pieces are taken, and no
//!   row of a later one is: adapters apply epochs in order. What adds rows up before they travel
//!   gives everything out at the epoch of a checkpoint, so it has no state.
//! - A sink takes an epoch only when its cut is on disk, so a manifest is never ahead of the log.
//! - *Nothing needed is removed* ([`to_keep`], [`to_collect`]): two checkpoints are kept that this
//!   process has made or has read whole; before there are two nothing goes, and the cut log is not
//!   trimmed. A file goes only if no manifest that is kept names it, if it is of this generation or
//!   an older one, and if, after all that was listed, this generation was still the newest. A newer
//!   one that appears behind that look starts from one of the manifests that are kept, and writes
//!   files of its own.
//!
//! # Limits
//! One checkpoint is made at a time. The pieces of one wait in memory until they are written.

mod keeper;
mod load;
mod parts;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

pub use keeper::{CheckpointCounters, Checkpointer, Retained};
pub use load::{Loaded, Unsound, Wanted, load_named, load_newest, verify};
pub use parts::Member;

use crate::cut::CutSnapshot;
use crate::keys::KeyGroups;
use crate::state::PieceId;
use crate::store::Generation;
use crate::time::Epoch;

/// Version of the form of manifests and piece files.
pub const FORMAT: u32 = 1;
/// Checkpoints that are kept: the newest, and the one before should it turn out unsound.
pub const KEPT: usize = 2;

/// Whose state a piece is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Owner {
    /// The n-th operator of the job that has state, counted from 0.
    Operator(usize),
    /// A shard of the job's n-th sink.
    Shard(usize, u32),
}

/// Where a piece is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PieceRecord {
    /// Its number.
    pub id: PieceId,
    /// Whose it is.
    pub owner: Owner,
    /// What it is, in the owner's words.
    pub kind: String,
    /// The key groups for which it counts.
    pub key_groups: KeyGroups,
    /// The file that it is in.
    pub file: String,
    /// Bytes before it in the file.
    pub offset: u64,
    /// Its bytes: an Arrow IPC stream.
    pub length: u64,
    /// CRC-32C of these bytes.
    pub checksum: u32,
}

/// What a shard had been given.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardRecord {
    /// The sink's number and the shard's.
    pub shard: (usize, u32),
    /// Digest of all rows up to the epoch, in hexadecimal.
    pub digest: String,
}

/// A checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`FORMAT`].
    pub format: u32,
    /// The version of Weir that wrote it.
    pub weir: String,
    /// The generation that made it.
    pub generation: u64,
    /// The epoch at the end of which the state is.
    pub epoch: Epoch,
    /// Number of workers that made it.
    pub workers: usize,
    /// The least number that no piece has.
    pub next_piece: u64,
    /// What the cuts say.
    pub cuts: CutSnapshot,
    /// The sinks' shards.
    pub shards: Vec<ShardRecord>,
    /// The pieces.
    pub pieces: Vec<PieceRecord>,
}

impl Manifest {
    /// Its name.
    pub fn name(&self) -> Name {
        Name { epoch: self.epoch, generation: self.generation }
    }
}

/// A manifest by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// Its epoch.
    pub epoch: Epoch,
    /// The generation that made it.
    pub generation: u64,
}

impl Name {
    /// Its path in the store.
    pub fn path(self) -> String {
        format!("checkpoints/{:020}-{:020}.json", self.epoch, self.generation)
    }

    /// The name that a path has, if it is a manifest's.
    pub fn of(path: &str) -> Option<Name> {
        let name = path.strip_prefix("checkpoints/")?.strip_suffix(".json")?;
        let (epoch, generation) = name.split_once('-')?;
        Some(Name { epoch: epoch.parse().ok()?, generation: generation.parse().ok()? })
    }
}

/// Whether a manifest counts: no later generation has begun from before its epoch.
pub fn counts(name: Name, generations: &[Generation]) -> bool {
    let later = generations.iter().filter(|g| g.number > name.generation);
    let mut bases = later.filter_map(|g| g.begun);
    bases.all(|base| base >= Some(name.epoch))
}

/// The manifests that count, newest first.
pub fn in_force(paths: &[String], generations: &[Generation]) -> Vec<Name> {
    let names = paths.iter().filter_map(|path| Name::of(path));
    let mut names: Vec<Name> = names.filter(|name| counts(*name, generations)).collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    names
}

/// The manifests to keep: the newest [`KEPT`] that count and are known to be sound; none as long as
/// these are fewer: then everything is still needed.
pub fn to_keep(
    manifests: &[String],
    generations: &[Generation],
    sound: &BTreeSet<Name>,
) -> Option<BTreeSet<Name>> {
    let sound = in_force(manifests, generations).into_iter().filter(|name| sound.contains(name));
    let kept: BTreeSet<Name> = sound.take(KEPT).collect();
    (kept.len() == KEPT).then_some(kept)
}

/// What may be removed: of the paths listed, manifests that are not `kept`, and files of pieces
/// that are not `named` (by those that are kept). Those of generations newer than `generation`
/// stay.
pub fn to_collect(
    manifests: &[String],
    files: &[String],
    kept: &BTreeSet<Name>,
    named: &BTreeSet<String>,
    generation: u64,
) -> Vec<String> {
    let kept: BTreeSet<String> = kept.iter().map(|name| name.path()).collect();
    let newer = |path: &str| {
        let of_manifest = Name::of(path).map(|name| name.generation);
        of_manifest.or(crate::store::number_in(path)).is_none_or(|number| number > generation)
    };
    let manifests = manifests.iter().filter(|path| !kept.contains(*path));
    let files = files.iter().filter(|path| !named.contains(*path));
    manifests.chain(files).filter(|path| !newer(path)).cloned().collect()
}
