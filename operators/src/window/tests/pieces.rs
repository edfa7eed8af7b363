//! Checkpoints of windows in pieces: after every epoch all is saved, what has changed as new pieces
//! and the rest by name; now and then other cores, fewer or more, go on from what was saved last.

use proptest::prelude::*;
use weir_engine::keys::{KeyGroups, encode_value, key_group, owned};
use weir_engine::state::{PieceId, Pieces, Restored};

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

    /// What stays packed is in snapshots and in later pieces as if it had slots.
    #[test]
    fn a_snapshot_is_the_same_after_any_number_of_restarts_from_pieces(case in cases()) {
        let mut plain = vec![(KeyGroups::ALL, fresh(&case))];
        let (mut cores, mut store) = (vec![(KeyGroups::ALL, fresh(&case))], Kept::default());
        for (rows, watermark) in stream(&case) {
            epoch(&mut plain, &case, &rows, watermark);
            epoch(&mut cores, &case, &rows, watermark);
            store.save(&mut cores);
            cores = vec![(KeyGroups::ALL, fresh(&case))];
            cores[0].1.resume(store.restored(KeyGroups::ALL)).unwrap();
            let rows = |core: &WindowAggregate| {
                let parts = core.snapshot().unwrap().into_iter();
                parts.map(|part| (part.key_groups, part.rows)).collect::<Vec<_>>()
            };
            prop_assert_eq!(rows(&cores[0].1), rows(&plain[0].1));
        }
    }
}

const SLIDING: WindowShape = WindowShape::Hop { size: 40, slide: 10, offset: 0 };

fn value(key: &str) -> f64 {
    key.trim_start_matches("meter-").parse::<f64>().unwrap() / 8.0
}

/// One epoch with a row for each of these keys; gives what fires.
fn feed(cores: &mut [(KeyGroups, WindowAggregate)], ts: Millis, keys: &[String]) -> Vec<String> {
    let mut fired = Vec::new();
    for (groups, core) in cores {
        let own = |key: &&String| {
            let mut bytes = Vec::new();
            encode_value(&StringArray::from(vec![key.as_str()]), 0, &mut bytes);
            groups.contains(key_group(&bytes))
        };
        let keys: Vec<&str> = keys.iter().filter(own).map(String::as_str).collect();
        let mut delta = chunk(&[("", Some(ts), 1.5, MARK_NONE, 1)], false);
        delta.rows = RecordBatch::try_new(
            input(false),
            vec![
                Arc::new(StringArray::from(keys.clone())) as ArrayRef,
                Arc::new(TimestampMillisecondArray::from(vec![ts; keys.len()])),
                Arc::new(Float64Array::from_iter_values(keys.iter().map(|key| value(key)))),
            ],
        )
        .unwrap();
        let mut out = Output::default();
        core.push(0, delta, &mut out).unwrap();
        let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[ts - 1] };
        core.advance(end, &mut out).unwrap();
        fired.extend(lines(&out));
    }
    fired
}

fn named_keys(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("meter-{n}")).collect()
}

fn sliding(owner: KeyGroups) -> (KeyGroups, WindowAggregate) {
    (owner, window(SLIDING, &[0], &["sum", "avg", "count distinct"], false))
}

fn resumed(store: &Kept, peers: usize) -> Vec<(KeyGroups, WindowAggregate)> {
    let owners = (0..peers).filter_map(|worker| owned(worker, peers));
    let mut cores: Vec<_> = owners.map(sliding).collect();
    for (owner, core) in &mut cores {
        core.resume(store.restored(*owner)).unwrap();
    }
    cores
}

#[test]
fn keys_that_come_and_go_leave_the_tables() {
    let (mut cores, mut store) = (vec![sliding(KeyGroups::ALL)], Kept::default());
    let mut undisturbed = vec![sliding(KeyGroups::ALL)];
    for (pane, peers) in (0..40).zip([1, 1, 1, 1, 3, 3, 2, 1].into_iter().cycle()) {
        let keys = named_keys(pane * 700..pane * 700 + 900);
        let sorted = |mut lines: Vec<String>| {
            lines.sort();
            lines
        };
        let ts = pane as Millis * 10 + 3;
        let (real, expected) = (feed(&mut cores, ts, &keys), feed(&mut undisturbed, ts, &keys));
        assert!(sorted(real) == sorted(expected), "pane {pane}");
        store.save(&mut cores);
        if pane % 2 == 1 {
            cores = resumed(&store, peers);
        }
        // 3 000 keys are in the panes of a window, 900 in each.
        let (pieces, rows) = store.sizes("keys");
        assert!(rows < 30_000 && pieces < 60, "{rows} keys in {pieces} pieces at pane {pane}");
    }
}

#[test]
fn a_table_is_given_up_when_most_of_its_keys_are_gone() {
    let (mut cores, mut store) = (vec![sliding(KeyGroups::ALL)], Kept::default());
    for pane in 0..60 {
        let keys = named_keys(pane * 700..pane * 700 + 900);
        feed(&mut cores, pane as Millis * 10 + 3, &keys);
        store.save(&mut cores);
        // A table with a number for each key that ever was would end at 700 a pane.
        let parts = store.named.iter().map(|piece| &store.written[&piece.id].rows);
        let said = parts.filter_map(|rows| rows.schema_ref().metadata().get("weir.keys").cloned());
        for said in said.map(|said| serde_json::from_str::<serde_json::Value>(&said).unwrap()) {
            assert!(said["end"].as_u64() < Some(20_000), "{said} at pane {pane}");
        }
    }
    let (pieces, rows) = store.sizes("keys");
    assert!(rows < 30_000 && pieces < 40, "{rows} keys in {pieces} pieces");
}

#[test]
fn a_few_fresh_keys_at_a_time_make_few_pieces() {
    let (mut cores, mut store) = (vec![sliding(KeyGroups::ALL)], Kept::default());
    let mut written = 0;
    for pane in 0..200 {
        feed(&mut cores, pane as Millis * 10 + 3, &named_keys(0..300 + pane));
        let before = store.written.len() as u64;
        store.save(&mut cores);
        let fresh = store.written.range(PieceId(before)..).map(|(_, part)| part);
        written += fresh.filter(|p| p.kind == "keys").map(|p| p.rows.num_rows()).sum::<usize>();
        let (pieces, rows) = store.sizes("keys");
        assert!(pieces <= 7 && rows == 300 + pane, "{rows} keys in {pieces} pieces");
    }
    assert!(written < 3000, "{written} keys written");
}

#[test]
fn pieces_that_do_not_fit_are_refused() {
    let (mut cores, mut store) = (vec![sliding(KeyGroups::ALL)], Kept::default());
    feed(&mut cores, 3, &named_keys(0..3));
    feed(&mut cores, 13, &named_keys(0..5));
    store.save(&mut cores);
    let refused = |change: &dyn Fn(&mut Restored) -> bool| {
        let mut pieces = store.restored(KeyGroups::ALL);
        pieces.retain_mut(|piece| change(piece));
        sliding(KeyGroups::ALL).1.resume(pieces).unwrap_err().to_string()
    };
    let gone = refused(&|(_, part)| part.kind != "keys");
    assert!(gone.ends_with("windows: a table of keys is gone"), "{gone}");
    let shorter = refused(&|(_, part)| {
        if part.kind == "keys" {
            part.rows = part.rows.slice(0, 4);
        }
        true
    });
    assert!(shorter.ends_with("windows: a number that no key has"), "{shorter}");
    let unknown = refused(&|(_, part)| {
        part.kind = if part.kind == "pane" { "pane-9" } else { part.kind };
        true
    });
    assert!(unknown.ends_with("windows: a part `pane-9`"), "{unknown}");
}

/// A bucket as older checkpoints hold it: keys and times in columns of their own.
#[test]
fn older_pieces_are_read_and_named() {
    let mut before = vec![sliding(KeyGroups::ALL)];
    let mut undisturbed = vec![sliding(KeyGroups::ALL)];
    feed(&mut before, 3, &named_keys(0..1));
    feed(&mut undisturbed, 3, &named_keys(0..1));
    let mut store = Kept::default();
    for part in before[0].1.snapshot().unwrap() {
        store.mine = Some(KeyGroups::ALL);
        store.put(part);
    }
    let mut cores = resumed(&store, 1);
    for pane in 1..8 {
        let keys = named_keys(0..2);
        let ts = pane * 10 + 3;
        assert_eq!(feed(&mut cores, ts, &keys), feed(&mut undisturbed, ts, &keys), "pane {pane}");
        store.save(&mut cores);
        assert_eq!(store.sizes("groups").0, usize::from(pane < 4), "pane {pane}");
        cores = resumed(&store, 1);
    }
}

#[test]
fn pieces_have_this_form() {
    let (mut cores, mut store) = (vec![sliding(KeyGroups::ALL)], Kept::default());
    feed(&mut cores, 3, &named_keys(0..3));
    store.save(&mut cores);
    let mut text = String::new();
    for part in store.written.values() {
        let schema = part.rows.schema();
        writeln!(text, "{} {:?}", part.kind, schema.metadata()).unwrap();
        for (field, column) in schema.fields().iter().zip(part.rows.columns()) {
            let values: Vec<String> = (0..column.len()).map(|row| cell(column, row)).collect();
            let data_type = match field.data_type() {
                DataType::RunEndEncoded(_, _) => "runs".to_owned(),
                other => other.to_string(),
            };
            writeln!(text, "  {} {data_type}: {}", field.name(), values.join(", ")).unwrap();
        }
    }
    expect![[r#"
        watermark {}
          watermark Int64: 2
        keys {"weir.keys": "{\"table\":null,\"first\":0,\"end\":3}"}
          key0 Utf8: meter-0, meter-1, meter-2
          gap runs: 0, 0, 0
        pane {"weir.pane": "{\"table\":1,\"pane\":0,\"entry\":10}"}
          gap runs: 0, 0, 0
          state0 runs: 1, 1, 1
          state1 FixedSizeBinary(1): 00, 01, 02
          state2 runs: -3, -3, -3
          state3 Null: , , 
          state4 Binary: 010000000000000009000000018000000000000000, 01000000000000000900000001bfc0000000000000, 01000000000000000900000001bfd0000000000000
          state5 runs: 0, 0, 0
    "#]].assert_eq(&text);
}

#[test]
fn a_pane_is_written_once() {
    let mut cores = vec![(KeyGroups::ALL, window(SLIDING, &[0], &["rows"], false))];
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
    // The watermark and the open pane, and once the keys; the others are named while a window needs
    // them.
    assert_eq!(written, [(3, 3), (2, 4), (2, 5), (2, 6), (2, 6), (2, 6)]);
}
