//! Rows of the stream that wait until a watermark lets them go.
//!
//! # Invariant
//! A row is due at its time, or at its mark less `reach` if that is later. Each piece is sorted by
//! when its rows are due and carries the place of each row, so a release is a prefix of each
//! piece, and what is released together can be put into one order.
//!
//! # Complexity
//! A row is copied once when it comes and once when it goes. Pieces of which little is left are
//! joined once there are more than `PIECES_MAX`, so a row stamped far ahead pins itself, not its
//! chunk.

use arrow::array::{RecordBatch, UInt32Array};
use weir_engine::keys::{KeyGroups, KeyHasher};
use weir_engine::operator::{OperatorError, StatePart};
use weir_engine::rows::{Delta, Origin, Provenance, unpack};
use weir_engine::time::{MARK_NONE, Millis, mark_less};

use super::times_of;

/// Pieces that are kept apart.
const PIECES_MAX: usize = 64;

#[derive(Debug)]
struct Piece {
    delta: Delta,
    /// When each row is due, ascending.
    due: Vec<Millis>,
    /// Rows that have gone.
    gone: usize,
}

impl Piece {
    fn left(&self) -> usize {
        self.due.len() - self.gone
    }

    fn rest(&self) -> Delta {
        self.delta.slice(self.gone, self.left())
    }
}

/// The rows.
#[derive(Debug)]
pub(super) struct Waiting {
    time: usize,
    reach: Millis,
    pieces: Vec<Piece>,
}

impl Waiting {
    /// Nothing waits; `time` is the event-time column. With a `reach` of `Millis::MAX` marks mean
    /// nothing.
    pub(super) fn new(time: usize, reach: Millis) -> Waiting {
        Waiting { time, reach, pieces: Vec::new() }
    }

    fn due(&self, delta: &Delta) -> Result<Vec<Millis>, OperatorError> {
        let times = times_of(&delta.rows, self.time)?;
        let due = |(at, &time): (usize, &Millis)| time.max(mark_less(delta.mark(at), self.reach));
        Ok(times.iter().enumerate().map(due).collect())
    }

    /// Adds the rows at `rows` of a chunk.
    pub(super) fn push(&mut self, delta: &Delta, mut rows: Vec<u32>) -> Result<(), OperatorError> {
        if rows.is_empty() {
            return Ok(());
        }
        let due = self.due(delta)?;
        if !rows.is_sorted_by_key(|&row| due[row as usize]) {
            rows.sort_by_key(|&row| due[row as usize]);
        }
        let place = |&row: &u32| delta.place(row as usize);
        let provenance = Provenance {
            marks: rows.iter().map(|&row| delta.mark(row as usize)).collect(),
            splits: rows.iter().map(|row| place(row).0.0).collect(),
            offsets: rows.iter().map(|row| place(row).1).collect(),
        };
        let due = rows.iter().map(|&row| due[row as usize]).collect();
        let mut taken = delta.take(&UInt32Array::from(rows))?;
        taken.rows = unpack(&taken.rows);
        taken.provenance = Some(provenance);
        taken.origin = Origin::Fired;
        self.pieces.push(Piece { delta: taken, due, gone: 0 });
        if self.pieces.len() > PIECES_MAX {
            self.tidy()?;
        }
        Ok(())
    }

    /// Joins pieces of which little is left.
    fn tidy(&mut self) -> Result<(), OperatorError> {
        let most = self.pieces.iter().map(Piece::left).max().unwrap_or(0);
        let small = |p: &Piece| 2 * p.left() <= most || 2 * p.left() <= p.due.len();
        let (small, big): (Vec<Piece>, Vec<Piece>) =
            std::mem::take(&mut self.pieces).into_iter().partition(small);
        // All of one size: any pairing will do, and joining all keeps their number down.
        let (small, big) = if small.len() < 2 { (big, small) } else { (small, big) };
        self.pieces = big;
        let rests: Vec<Delta> = small.iter().map(Piece::rest).collect();
        if let Some(joined) = Delta::concat(&rests)? {
            let due = self.due(&joined)?;
            let mut order: Vec<u32> = (0..due.len() as u32).collect();
            order.sort_by_key(|&row| due[row as usize]);
            let due = order.iter().map(|&row| due[row as usize]).collect();
            let delta = joined.take(&UInt32Array::from(order))?;
            self.pieces.push(Piece { delta, due, gone: 0 });
        }
        Ok(())
    }

    /// Takes out all rows that are due by then, in no particular order.
    pub(super) fn release(&mut self, upto: Millis) -> Result<Option<Delta>, OperatorError> {
        let mut released = Vec::new();
        for piece in &mut self.pieces {
            let going = piece.due[piece.gone..].partition_point(|&due| due <= upto);
            if going > 0 {
                released.push(piece.delta.slice(piece.gone, going));
                piece.gone += going;
            }
        }
        self.pieces.retain(|piece| piece.left() > 0);
        Ok(Delta::concat(&released)?)
    }

    /// The rows as state, by key group of the columns `keys`.
    pub(super) fn snapshot(&self, keys: &[usize]) -> Result<Vec<StatePart>, OperatorError> {
        let rests: Vec<Delta> = self.pieces.iter().map(Piece::rest).collect();
        let Some(all) = Delta::concat(&rests)? else { return Ok(Vec::new()) };
        let mut groups = Vec::new();
        KeyHasher::over(keys.to_vec()).key_groups(&all.rows, &mut groups);
        let times = times_of(&all.rows, self.time)?;
        let mut order: Vec<u32> = (0..all.len() as u32).collect();
        let key = |row: u32| (groups[row as usize], times[row as usize], all.place(row as usize));
        order.sort_by_key(|&row| key(row));
        let mut parts = Vec::new();
        for rows in order.chunk_by(|&a, &b| groups[a as usize] == groups[b as usize]) {
            let group = weir_engine::keys::KeyGroup(groups[rows[0] as usize]);
            let rows = all.take(&UInt32Array::from(rows.to_vec()))?.to_batch()?;
            parts.push(StatePart { kind: "waiting", key_groups: KeyGroups::one(group), rows });
        }
        Ok(parts)
    }

    /// Takes up a part of kind `waiting`.
    pub(super) fn restore(&mut self, rows: RecordBatch) -> Result<(), OperatorError> {
        let delta = Delta::from_batch(rows, Origin::Fired)?;
        let all = (0..delta.len() as u32).collect();
        self.push(&delta, all)
    }
}

/// Released rows in the order (time, key bytes, split, offset), with their marks only if one of
/// them has any: without, none is a straggler.
pub(super) fn in_order(
    released: Delta,
    times: &[Millis],
    ids: Vec<u32>,
    ranks: &[u32],
) -> Result<(Delta, Vec<u32>), OperatorError> {
    let rank = |row: u32| ranks.get(ids[row as usize] as usize).copied().unwrap_or(u32::MAX);
    let mut order: Vec<u32> = (0..released.len() as u32).collect();
    let place = |row: u32| released.place(row as usize);
    order.sort_by_cached_key(|&row| (times[row as usize], rank(row), place(row)));
    let ids = order.iter().map(|&row| ids[row as usize]).collect();
    let mut delta = released.take(&UInt32Array::from(order))?;
    let marked = |p: &Provenance| p.marks.iter().any(|&mark| mark != MARK_NONE);
    if !delta.provenance.as_ref().is_some_and(marked) {
        delta.provenance = None;
    }
    Ok((delta, ids))
}
