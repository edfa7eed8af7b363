//! Checkpoints of windows in pieces: after every epoch all is saved, what has changed as new pieces
//! and the rest by name; now and then other cores, fewer or more, go on from what was saved last.

use proptest::prelude::*;
use weir_engine::keys::{KeyGroups, owned};

use super::laws::{Case, cases, epoch, fresh, oracle, stream};
use super::*;
use crate::kept::Kept;

fn through_restarts(case: &Case) -> Vec<(Vec<String>, Vec<String>)> {
    let mut cores = vec![(KeyGroups::ALL, fresh(case))];
    let (mut store, mut all) = (Kept::default(), Vec::new());
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
    let mut store = Kept::default();
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
    // The watermark and the open pane; the others are named while a window needs them.
    assert_eq!(written, [(2, 2), (2, 3), (2, 4), (2, 5), (2, 5), (2, 5)]);
}
