//! An operator's part in checkpoints: what it gives, and what need not be given again.
//!
//! # What is not written again
//! - *Nothing has happened*: an operator that got no rows, and whose inputs' watermarks are where
//!   they were, has the state that it had. It is not asked; all its pieces are named.
//! - *A part is as it was*: operators that give their whole state each time give it in parts of one
//!   key group. A part whose bytes are those of the last checkpoint is named. They are compared by
//!   XXH3-128: two states that differ are taken for equal once in 2¹²⁸.
//!
//! # Complexity
//! The second kind costs the state's size on the worker's thread, and writes what has changed.

use arrow::array::RecordBatch;
use arrow::ipc::writer::StreamWriter;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::sync::Arc;
use xxhash_rust::xxh3::Xxh3;

use super::lifted::SharedCore;
use crate::checkpoint::{Checkpointer, Owner};
use crate::job::JobControl;
use crate::keys::{KeyGroups, owned};
use crate::operator::OperatorError;
use crate::state::{PieceRef, Pieces, Restored, StatePart};
use crate::time::{Epoch, Millis};

/// A part by what it is, and what it said when it was given.
type Known = BTreeMap<(&'static str, KeyGroups), (u128, PieceRef)>;

/// An operator's part in checkpoints.
pub(super) struct Saved {
    checkpoints: Arc<Checkpointer>,
    owner: Owner,
    key_groups: KeyGroups,
    /// The pieces of the last checkpoint, and the watermarks of the inputs then.
    last: Option<(Vec<PieceRef>, Vec<Millis>)>,
    /// Whether rows have come since.
    touched: bool,
    known: Known,
}

impl Saved {
    /// `None` where the operator has no state here, or the job makes no checkpoints.
    pub(super) fn of(
        control: &JobControl,
        number: Option<usize>,
        worker: usize,
        peers: usize,
    ) -> Option<Saved> {
        let (checkpoints, owner) = (control.checkpoints()?.clone(), Owner::Operator(number?));
        let key_groups = owned(worker, peers)?;
        checkpoints.expect(owner.clone(), worker);
        let (last, known) = (None, Known::new());
        Some(Saved { checkpoints, owner, key_groups, last, touched: false, known })
    }

    /// Gives the operator what the checkpoint has that the job goes on from.
    pub(super) fn resume(
        &self,
        core: &SharedCore,
        control: &JobControl,
    ) -> Result<(), OperatorError> {
        let Some(loaded) = control.restored() else { return Ok(()) };
        let restricted = |(piece, part): &Restored| {
            let key_groups = part.key_groups.and(self.key_groups)?;
            let part = StatePart { key_groups, ..part.clone() };
            Some((PieceRef { key_groups, ..*piece }, part))
        };
        let pieces = loaded.pieces_of(&self.owner);
        core.borrow_mut().resume(pieces.iter().filter_map(restricted).collect())
    }

    /// Rows have come.
    pub(super) fn touch(&mut self) {
        self.touched = true;
    }

    /// Gives a checkpoint the operator's pieces.
    pub(super) fn save(
        &mut self,
        epoch: Epoch,
        worker: usize,
        core: &SharedCore,
        watermarks: &[Millis],
    ) -> Result<(), OperatorError> {
        let mut collector = self.checkpoints.collector(self.key_groups);
        let as_it_was = self.last.as_ref().filter(|(_, at)| !self.touched && at == watermarks);
        if let Some((pieces, _)) = as_it_was {
            pieces.iter().for_each(|piece| collector.same(*piece));
        } else {
            let mut sieve = Sieve {
                pieces: &mut collector,
                given: Vec::new(),
                before: std::mem::take(&mut self.known),
                known: Known::new(),
            };
            core.borrow_mut().save(&mut sieve)?;
            let Sieve { given, known, .. } = sieve;
            self.last = Some((given, watermarks.to_vec()));
            (self.known, self.touched) = (known, false);
        }
        self.checkpoints.give(epoch, (self.owner.clone(), worker), collector);
        Ok(())
    }
}

/// Lets through what is new.
struct Sieve<'a> {
    pieces: &'a mut dyn Pieces,
    given: Vec<PieceRef>,
    before: Known,
    known: Known,
}

impl Pieces for Sieve<'_> {
    fn same(&mut self, piece: PieceRef) {
        self.given.push(piece);
        self.pieces.same(piece);
    }

    fn put(&mut self, part: StatePart) -> PieceRef {
        let piece = self.pieces.put(part);
        self.given.push(piece);
        piece
    }

    fn put_changed(&mut self, part: StatePart) -> PieceRef {
        let place = (part.kind, part.key_groups);
        let hash = hash_of(&part.rows);
        let before = self.before.remove(&place).filter(|(was, _)| *was == hash);
        let piece = match before {
            Some((_, piece)) => {
                self.same(piece);
                piece
            }
            None => self.put(part),
        };
        self.known.insert(place, (hash, piece));
        piece
    }
}

/// Of the bytes that would be written.
fn hash_of(rows: &RecordBatch) -> u128 {
    struct Hashing(Xxh3);
    impl Write for Hashing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut hashing = Hashing(Xxh3::new());
    let written = StreamWriter::try_new(&mut hashing, &rows.schema())
        .and_then(|mut writer| writer.write(rows).and_then(|()| writer.finish()));
    debug_assert!(written.is_ok(), "rows cannot be written: {written:?}");
    hashing.0.digest128()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::KeyGroup;
    use crate::state::PieceId;
    use arrow::array::Int64Array;

    /// Numbers pieces, and notes what was put and named.
    #[derive(Default)]
    struct Noted {
        next: u64,
        put: Vec<u64>,
        same: Vec<u64>,
    }

    impl Pieces for Noted {
        fn same(&mut self, piece: PieceRef) {
            self.same.push(piece.id.0);
        }
        fn put(&mut self, part: StatePart) -> PieceRef {
            self.next += 1;
            self.put.push(self.next);
            PieceRef { id: PieceId(self.next), key_groups: part.key_groups }
        }
    }

    fn part(group: u8, values: Vec<i64>) -> StatePart {
        let column = Arc::new(Int64Array::from(values)) as _;
        let rows = RecordBatch::try_from_iter([("a", column)]).expect("rows");
        StatePart { kind: "part", key_groups: KeyGroups::one(KeyGroup(group)), rows }
    }

    #[test]
    fn only_parts_that_have_changed_are_put() {
        let mut noted = Noted::default();
        let mut known = Known::new();
        let mut save = |parts: Vec<StatePart>, noted: &mut Noted| {
            noted.put.clear();
            noted.same.clear();
            let before = std::mem::take(&mut known);
            let mut sieve = Sieve { pieces: noted, given: Vec::new(), before, known: Known::new() };
            for part in parts {
                sieve.put_changed(part);
            }
            let given: Vec<u64> = sieve.given.iter().map(|piece| piece.id.0).collect();
            known = sieve.known;
            given
        };
        let first = vec![part(1, vec![1, 2]), part(2, vec![3])];
        assert_eq!(save(first.clone(), &mut noted), [1, 2]);
        assert_eq!(save(first, &mut noted), [1, 2]);
        assert_eq!((&noted.put[..], &noted.same[..]), (&[][..], &[1, 2][..]));
        // One changes, one goes, one comes.
        assert_eq!(save(vec![part(1, vec![1, 7]), part(3, vec![3])], &mut noted), [3, 4]);
        assert_eq!(save(vec![part(1, vec![1, 7]), part(2, vec![3])], &mut noted), [3, 5]);
    }
}
