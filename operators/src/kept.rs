//! What checkpoints have written, kept in memory. For tests of operators.

use std::collections::BTreeMap;
use weir_engine::keys::KeyGroups;
use weir_engine::operator::Operator;
use weir_engine::state::{PieceId, PieceRef, Pieces, Restored, StatePart};

/// All pieces that were ever written, and what the last checkpoint names.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) written: BTreeMap<PieceId, StatePart>,
    pub(crate) named: Vec<PieceRef>,
    mine: Option<KeyGroups>,
    /// Pieces put so far.
    pub(crate) put: usize,
}

impl Pieces for Kept {
    fn same(&mut self, piece: PieceRef) {
        assert!(self.written.contains_key(&piece.id), "a piece that was never written");
        let key_groups = piece.key_groups.and(self.mine.expect("a test is sound"));
        self.named.extend(key_groups.map(|key_groups| PieceRef { key_groups, ..piece }));
    }

    fn put(&mut self, part: StatePart) -> PieceRef {
        let id = PieceId(self.written.len() as u64);
        self.put += 1;
        self.written.insert(id, part);
        let piece = PieceRef { id, key_groups: self.mine.expect("a test is sound") };
        self.named.push(piece);
        piece
    }
}

impl Kept {
    /// A checkpoint of all cores, each with the key groups that it owns.
    pub(crate) fn save(&mut self, cores: &mut [(KeyGroups, impl Operator)]) {
        self.named.clear();
        for (owner, core) in cores {
            self.mine = Some(*owner);
            core.save(self).expect("a test is sound");
        }
    }

    /// What a core with these key groups goes on from.
    pub(crate) fn restored(&self, mine: KeyGroups) -> Vec<Restored> {
        let restored = |piece: &PieceRef| {
            let key_groups = piece.key_groups.and(mine)?;
            let part = StatePart { key_groups, ..self.written[&piece.id].clone() };
            Some((PieceRef { key_groups, ..*piece }, part))
        };
        self.named.iter().filter_map(restored).collect()
    }
}
