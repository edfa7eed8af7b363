//! Checkpoints of several processes: each puts its part, process 0 puts the manifest.
//!
//! # How
//! A process writes the files of its own pieces, then a *part* that names them, beside them in the
//! store. Process 0 looks for the parts of all others, and puts the manifest of all together. So
//! the manifest exists only where all that it names does.
//!
//! # What may go
//! A checkpoint is begun only when the one before is done. So a process that is asked for its k-th
//! part knows that checkpoint k − 1 exists, and process 0 keeps that and k − 2: the process needs
//! nothing from before k − 2 ([`Behind`]).
//!
//! # Limits
//! Process 0 asks the store again and again while it waits, a few times a second at most.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::sync::Arc;

use super::keeper::Retained;
use super::{FORMAT, KEPT, Manifest, PieceRecord, ShardRecord};
use crate::connector::ConnectorError;
use crate::cut::CutSnapshot;
use crate::store::JobStore;
use crate::time::Epoch;

/// Which of a job's processes this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its number.
    pub process: usize,
    /// How many there are.
    pub processes: usize,
    /// Workers of all of them together.
    pub workers: usize,
}

impl Member {
    /// A process that is alone.
    pub fn alone(workers: usize) -> Member {
        Member { process: 0, processes: 1, workers }
    }

    /// The least number of a piece that is this process's own, at `least` or above: pieces are
    /// numbered in turn.
    pub(super) fn first_piece(self, least: u64) -> u64 {
        let processes = self.processes.max(1) as u64;
        least.div_ceil(processes) * processes + self.process as u64
    }
}

/// What one process has of a checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Part {
    pub(super) format: u32,
    pub(super) generation: u64,
    pub(super) epoch: Epoch,
    pub(super) next_piece: u64,
    pub(super) shards: Vec<ShardRecord>,
    pub(super) pieces: Vec<PieceRecord>,
}

/// The files of a process's pieces: what their names begin with.
pub(super) fn prefix(generation: u64, epoch: Epoch, process: usize) -> String {
    format!("pieces/{generation:020}-{epoch:020}-{process}")
}

impl Part {
    pub(super) fn path(&self, process: usize) -> String {
        format!("{}.part.json", prefix(self.generation, self.epoch, process))
    }

    /// The same process's part of the whole.
    pub(super) fn into_manifest(self, cuts: CutSnapshot, workers: usize) -> Manifest {
        Manifest {
            format: FORMAT,
            weir: env!("CARGO_PKG_VERSION").to_owned(),
            generation: self.generation,
            epoch: self.epoch,
            workers,
            next_piece: self.next_piece,
            cuts,
            shards: self.shards,
            pieces: self.pieces,
        }
    }

    /// The part of another process; `None` where it is not there yet.
    pub(super) fn of(
        &self,
        process: usize,
        store: &JobStore,
    ) -> Result<Option<Part>, ConnectorError> {
        store.get_of(FORMAT, &self.path(process))
    }

    /// Adds what another process has.
    pub(super) fn add(&mut self, other: Part) {
        self.next_piece = self.next_piece.max(other.next_piece);
        self.shards.extend(other.shards);
        self.pieces.extend(other.pieces);
    }
}

/// What a process other than the first knows of the checkpoints behind it.
#[derive(Debug, Default)]
pub(super) struct Behind(VecDeque<Arc<Retained>>);

impl Behind {
    /// Begins with the checkpoint that the job goes on from.
    pub(super) fn from(manifest: Option<&Manifest>) -> Behind {
        let retained = |manifest: &Manifest| {
            Arc::new(Retained { epoch: manifest.epoch, splits: manifest.cuts.facts() })
        };
        Behind(manifest.into_iter().map(retained).collect())
    }

    /// Another one is asked for; gives the oldest that is kept, once there are enough of them.
    pub(super) fn next(&mut self, asked: Retained) -> Option<Arc<Retained>> {
        while self.0.len() > KEPT {
            self.0.pop_front();
        }
        let oldest = self.0.front().filter(|_| self.0.len() == KEPT).cloned();
        self.0.push_back(Arc::new(asked));
        oldest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_processes_number_a_piece_alike() {
        for least in 0..20 {
            let firsts: Vec<u64> = (0..3)
                .map(|process| Member { process, processes: 3, workers: 3 }.first_piece(least))
                .collect();
            assert!(firsts.iter().all(|first| *first >= least && *first < least + 5));
            assert_eq!(firsts.iter().map(|n| n % 3).collect::<Vec<_>>(), [0, 1, 2]);
        }
    }

    #[test]
    fn a_process_keeps_what_the_older_of_two_checkpoints_needs() {
        let asked = |epoch| Retained { epoch, splits: Vec::new() };
        let mut behind = Behind::default();
        let kept: Vec<Option<Epoch>> =
            [1, 2, 3, 4].map(|epoch| behind.next(asked(epoch)).map(|kept| kept.epoch)).into();
        // Asked for the third, checkpoints 1 and 2 exist.
        assert_eq!(kept, [None, None, Some(1), Some(2)]);
    }
}
