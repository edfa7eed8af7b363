//! State in pieces: what a checkpoint writes, and what it only names.
//!
//! A checkpoint is a set of *pieces*. Whoever has state (an operator, a sink's shard) gives the
//! pieces that are new or have changed since the last checkpoint, and names the others by the
//! number that it got for them: those are in the store already. So the cost of a checkpoint is what
//! has changed, not what there is.
//!
//! A piece is never changed. State that has changed is a new piece, and the old one is no longer
//! named; the store forgets it once no checkpoint that is kept names it.

use arrow::array::RecordBatch;
use serde::{Deserialize, Serialize};

use crate::keys::KeyGroups;

/// The number of a piece, unique within its job.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PieceId(pub u64);

/// A piece, and the key groups for which it counts: with other workers than wrote it, these may be
/// fewer than it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PieceRef {
    /// Its number.
    pub id: PieceId,
    /// The key groups of which it says something.
    pub key_groups: KeyGroups,
}

impl PieceRef {
    /// A piece for all key groups.
    pub fn all(id: u64) -> PieceRef {
        PieceRef { id: PieceId(id), key_groups: KeyGroups::ALL }
    }
}

/// One piece of state.
#[derive(Clone, Debug)]
pub struct StatePart {
    /// What the piece is, chosen by its owner, for instance `pane`.
    pub kind: &'static str,
    /// The key groups that it belongs to; parts of other key groups than the worker's are not
    /// restored.
    pub key_groups: KeyGroups,
    /// The state.
    pub rows: RecordBatch,
}

/// Where the pieces of a checkpoint go.
pub trait Pieces {
    /// Names a piece that was given before, by this owner or by the one that it was restored from.
    fn same(&mut self, piece: PieceRef);

    /// Gives a piece. It is written later, by another thread; the number names it from now on.
    fn put(&mut self, part: StatePart) -> PieceRef;

    /// Gives one of the pieces that make up the whole state, where its owner does not know whether
    /// it has changed: if it has not, it is named. One a kind and key groups.
    fn put_changed(&mut self, part: StatePart) -> PieceRef {
        self.put(part)
    }
}

/// A piece as it is restored. Rows of other key groups than its own may be in it, and do not count.
pub type Restored = (PieceRef, StatePart);
