//! What checkpoints have written, kept in memory. For tests of operators.

use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use std::collections::{BTreeMap, BTreeSet};
use weir_engine::keys::KeyGroups;
use weir_engine::operator::Operator;
use weir_engine::state::{PieceId, PieceRef, Pieces, Restored, StatePart};

/// All pieces that were ever written, and what the last checkpoint names.
#[derive(Default)]
pub(crate) struct Kept {
    pub(crate) written: BTreeMap<PieceId, StatePart>,
    pub(crate) named: Vec<PieceRef>,
    /// What the checkpoint before named: no older piece can be named any more.
    before: BTreeSet<PieceId>,
    pub(crate) mine: Option<KeyGroups>,
    /// Pieces put so far.
    pub(crate) put: usize,
}

/// Rows as a file gives them back.
fn through_a_file(rows: &RecordBatch) -> RecordBatch {
    let mut file = Vec::new();
    let mut writer = StreamWriter::try_new(&mut file, &rows.schema()).expect("a schema");
    writer.write(rows).and_then(|()| writer.finish()).expect("rows");
    drop(writer);
    let mut reader = StreamReader::try_new(file.as_slice(), None).expect("a stream");
    reader.next().expect("a chunk").expect("rows")
}

impl Pieces for Kept {
    fn same(&mut self, piece: PieceRef) {
        assert!(self.before.contains(&piece.id), "a piece that the last checkpoint has not");
        let key_groups = piece.key_groups.and(self.mine.expect("a test is sound"));
        self.named.extend(key_groups.map(|key_groups| PieceRef { key_groups, ..piece }));
    }

    fn put(&mut self, part: StatePart) -> PieceRef {
        let id = PieceId(self.written.len() as u64);
        self.put += 1;
        let rows = through_a_file(&part.rows);
        self.written.insert(id, StatePart { rows, ..part });
        let piece = PieceRef { id, key_groups: self.mine.expect("a test is sound") };
        self.named.push(piece);
        piece
    }
}

impl Kept {
    /// A checkpoint of all cores, each with the key groups that it owns.
    pub(crate) fn save(&mut self, cores: &mut [(KeyGroups, impl Operator)]) {
        self.before = self.named.drain(..).map(|piece| piece.id).collect();
        for (owner, core) in cores {
            self.mine = Some(*owner);
            core.save(self).expect("a test is sound");
        }
        let distinct: BTreeSet<(PieceId, u8)> =
            self.named.iter().map(|piece| (piece.id, piece.key_groups.first)).collect();
        assert_eq!(distinct.len(), self.named.len(), "a piece is named once");
    }

    /// Pieces of a kind that the last checkpoint names, and their rows.
    pub(crate) fn sizes(&self, kind: &str) -> (usize, usize) {
        let parts = self.named.iter().map(|piece| &self.written[&piece.id]);
        let rows: Vec<usize> =
            parts.filter(|part| part.kind == kind).map(|part| part.rows.num_rows()).collect();
        (rows.len(), rows.iter().sum())
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
