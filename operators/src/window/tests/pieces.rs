//! Checkpoints of windows in pieces: after every epoch all is saved, what has changed as new pieces
//! and the rest by name; now and then other cores, fewer or more, go on from what was saved last.

use proptest::prelude::*;
use std::collections::BTreeMap;
use weir_engine::keys::{KeyGroups, owned};
use weir_engine::state::{PieceId, PieceRef, Pieces, Restored, StatePart};

use super::laws::{Case, cases, epoch, fresh, oracle, stream};
use super::*;

/// What checkpoints have written, and what the last one names.
#[derive(Default)]
struct Store {
    written: BTreeMap<PieceId, StatePart>,
    named: Vec<PieceRef>,
    mine: Option<KeyGroups>,
    put: usize,
}

impl Pieces for Store {
    fn same(&mut self, piece: PieceRef) {
        assert!(self.written.contains_key(&piece.id), "a piece that was never written");
        let key_groups = piece.key_groups.and(self.mine.unwrap());
        self.named.extend(key_groups.map(|key_groups| PieceRef { key_groups, ..piece }));
    }

    fn put(&mut self, part: StatePart) -> PieceRef {
        let id = PieceId(self.written.len() as u64);
        self.put += 1;
        self.written.insert(id, part);
        let piece = PieceRef { id, key_groups: self.mine.unwrap() };
        self.named.push(piece);
        piece
    }
}

impl Store {
    fn save(&mut self, cores: &mut [(KeyGroups, WindowAggregate)]) {
        self.named.clear();
        for (owner, core) in cores {
            self.mine = Some(*owner);
            core.save(self).unwrap();
        }
    }

    fn restored(&self, mine: KeyGroups) -> Vec<Restored> {
        let restored = |piece: &PieceRef| {
            let key_groups = piece.key_groups.and(mine)?;
            let part = StatePart { key_groups, ..self.written[&piece.id].clone() };
            Some((PieceRef { key_groups, ..*piece }, part))
        };
        self.named.iter().filter_map(restored).collect()
    }
}

fn through_restarts(case: &Case) -> Vec<(Vec<String>, Vec<String>)> {
    let mut cores = vec![(KeyGroups::ALL, fresh(case))];
    let (mut store, mut all) = (Store::default(), Vec::new());
    for (at, (rows, watermark)) in stream(case).into_iter().enumerate() {
        all.push(epoch(&mut cores, case, &rows, watermark));
        store.save(&mut cores);
        let peers = case.cuts[at % case.cuts.len()];
        if peers <= 3 && at >= case.stop {
            let owners = (0..peers).filter_map(|worker| owned(worker, peers));
            cores = owners.map(|owner| (owner, fresh(case))).collect();
            for (owner, core) in &mut cores {
                core.resume(store.restored(*owner)).unwrap();
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn windows_go_on_from_pieces_on_any_number_of_workers(case in cases()) {
        prop_assert_eq!(through_restarts(&case), oracle(&case));
    }
}

#[test]
fn a_pane_is_written_once() {
    let shape = WindowShape::Hop { size: 40, slide: 10, offset: 0 };
    let mut cores = vec![(KeyGroups::ALL, window(shape, &[0], &["rows"], false))];
    let mut store = Store::default();
    let mut written = Vec::new();
    for pane in 0..6 {
        let ts = pane * 10 + 3;
        let rows = [("a", Some(ts), 1.0, MARK_NONE, 1), ("b", Some(ts), 2.0, MARK_NONE, 1)];
        let core = &mut cores[0].1;
        core.push(0, chunk(&rows, false), &mut Output::default()).unwrap();
        let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[ts - 1] };
        core.advance(end, &mut Output::default()).unwrap();
        store.put = 0;
        store.save(&mut cores);
        written.push((store.put, store.named.len()));
        // Nothing has come: the watermark alone is written.
        store.put = 0;
        store.save(&mut cores);
        assert_eq!(store.put, 1, "an idle second");
    }
    // The watermark and the open pane, and once the keys; the others are named while a window needs
    // them.
    assert_eq!(written, [(3, 3), (2, 4), (2, 5), (2, 6), (2, 6), (2, 6)]);
}
