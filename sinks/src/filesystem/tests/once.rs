//! Each row once: runs that crash anywhere and come again put what an undisturbed run puts.
#![allow(clippy::unwrap_used)]

use super::{files, listing, read_parquet, rows, table};
use crate::filesystem::*;
use arrow::array::RecordBatch;
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use expect_test::expect;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::Ordering;
use weir_engine::connector::Remedy;
use weir_engine::keys::KeyGroups;
use weir_engine::sink::ShardEnd;
use weir_engine::state::{PieceRef, Pieces, Restored, StatePart};

fn author(generation: u64) -> Author {
    Author::of("theft-7", (generation, 1), 2, "archive")
}

/// The next generation's writer of shard 0.
fn writer(spec: &TableSpec, generation: u64) -> Box<dyn SinkWriter> {
    let made = sink(spec, &[]).unwrap();
    made.probe().unwrap();
    made.take_over(&author(generation)).unwrap();
    made.open(0, Some(&author(generation)), Arc::default()).unwrap()
}

/// What is in the folder, without the markers of generations.
fn put(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = files(folder);
    found.retain(|name, _| !name.starts_with("_weir/"));
    found
}

fn names(folder: &Path) -> Vec<String> {
    put(folder).into_keys().collect()
}

/// The newest checkpoint: its pieces as bytes, as a store would have them. What it does not name is
/// gone.
#[derive(Default)]
struct Checkpoint {
    stored: BTreeMap<PieceRef, (KeyGroups, Vec<u8>)>,
    named: Vec<PieceRef>,
    /// Rows of the pieces that the last save gave.
    added: Vec<usize>,
    next: u64,
}

impl Pieces for Checkpoint {
    fn same(&mut self, piece: PieceRef) {
        assert!(self.stored.contains_key(&piece), "{piece:?} is not in the store");
        self.named.push(piece);
    }

    fn put(&mut self, part: StatePart) -> PieceRef {
        assert_eq!(part.kind, "open-file");
        let id = PieceRef::all(self.next);
        self.next += 1;
        let mut bytes = StreamWriter::try_new(Vec::new(), &part.rows.schema()).unwrap();
        bytes.write(&part.rows).unwrap();
        self.stored.insert(id, (part.key_groups, bytes.into_inner().unwrap()));
        self.named.push(id);
        self.added.push(part.rows.num_rows());
        id
    }
}

impl Checkpoint {
    fn save(&mut self, writer: &mut dyn SinkWriter) {
        self.named.clear();
        self.added.clear();
        writer.save(self).unwrap();
        let named = &self.named;
        self.stored.retain(|id, _| named.contains(id));
    }

    fn restored(&self) -> Vec<Restored> {
        let restored = self.stored.iter().rev().map(|(id, (key_groups, bytes))| {
            let rows = StreamReader::try_new(&bytes[..], None).unwrap().next().unwrap().unwrap();
            (*id, StatePart { kind: "open-file", key_groups: *key_groups, rows })
        });
        restored.collect()
    }
}

fn end(writer: &mut dyn SinkWriter, epoch: Epoch) -> Epoch {
    writer.end_epoch(ShardEnd::at(epoch, epoch as i64 * 1_000)).unwrap()
}

#[test]
fn names_say_job_sink_shard_and_epoch_and_a_second_run_adds_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let spec = table(folder.path(), &[("sink.rolling-policy.file-size", "60 b")]);
    let run = |generation| {
        let report = Arc::new(SinkReport::default());
        let made = sink(&spec, &[]).unwrap();
        let newest = made.take_over(&author(generation)).unwrap();
        let mut out = made.open(0, Some(&author(generation)), report.clone()).unwrap();
        for epoch in 1..=4 {
            out.write(epoch, rows(epoch as usize * 2, 2), None).unwrap();
            end(out.as_mut(), epoch);
        }
        out.write(5, rows(10, 1), None).unwrap();
        end(out.as_mut(), 5);
        out.finish().unwrap();
        (newest, report.rows.load(Ordering::Relaxed))
    };
    assert_eq!(run(1), (None, 9));
    let first = put(folder.path());
    let shown = expect![[r#"
        _weir/theft-7-38042611a5125fc2/generation-00000000000000000001 69
        part-theft-7-38042611a5125fc2-0-00000000000000000001.jsonl 106
        part-theft-7-38042611a5125fc2-0-00000000000000000003.jsonl 106
        part-theft-7-38042611a5125fc2-0-00000000000000000005.jsonl 26"#]];
    shown.assert_eq(&listing(folder.path()));
    assert_eq!(run(12), (Some(5), 0), "what is there is not written again");
    assert!(put(folder.path()) == first);
    let markers = files(folder.path()).into_keys().filter(|name| name.starts_with("_weir/"));
    let markers: Vec<_> = markers.collect();
    assert_eq!(markers, ["_weir/theft-7-38042611a5125fc2/generation-00000000000000000012"]);
}

#[test]
fn sinks_and_jobs_share_a_folder() {
    let folder = tempfile::tempdir().unwrap();
    let spec = table(folder.path(), &[]);
    let made = sink(&spec, &[]).unwrap();
    for (job, place) in [("theft-7", 2), ("theft-7", 3), ("theft-8", 2)] {
        let author = Author::of(job, (1, 1), place, "archive");
        assert_eq!(made.take_over(&author).unwrap(), None);
        for shard in [0, 1] {
            let mut out = made.open(shard, Some(&author), Arc::default()).unwrap();
            out.write(1, rows(place * 10, 1), None).unwrap();
            out.finish().unwrap();
        }
    }
    assert_eq!(names(folder.path()).len(), 6);
}

#[test]
fn other_rows_under_a_name_that_is_taken_end_the_job() {
    for (format, count) in [("json", 3), ("parquet", 9_000)] {
        let folder = tempfile::tempdir().unwrap();
        let spec = table(folder.path(), &[("format", format)]);
        let mut first = writer(&spec, 1);
        first.write(1, rows(0, count), None).unwrap();
        first.finish().unwrap();
        let before = put(folder.path());
        // One row more, other rows, and in JSON rows of as many bytes.
        for (from, count) in [(0, count + 1), (1, count), (24, count)] {
            let mut again = writer(&spec, 2);
            again.write(1, rows(from, count), None).unwrap();
            let error = again.finish().unwrap_err();
            assert_eq!(error.remedy, Remedy::Fatal);
            let name = before.keys().next().unwrap();
            let shown = error.message.replace(folder.path().to_str().unwrap(), "F");
            assert_eq!(
                shown,
                format!(
                    "not deterministic: F/{name} is there, and its rows, computed again, do not \
                     give the same bytes"
                )
            );
            drop(again);
            assert!(put(folder.path()) == before, "nothing is written over");
        }
    }
}

#[test]
fn an_older_generation_puts_no_file_more() {
    let folder = tempfile::tempdir().unwrap();
    let spec = table(folder.path(), &[("sink.rolling-policy.file-size", "1 b")]);
    let mut old = writer(&spec, 9);
    old.write(1, rows(0, 1), None).unwrap();
    assert_eq!(end(old.as_mut(), 1), 1);
    old.write(2, rows(1, 1), None).unwrap();
    let made = sink(&spec, &[]).unwrap();
    assert_eq!(made.take_over(&author(10)).unwrap(), Some(1));
    let before = put(folder.path());
    assert_eq!(before.len(), 2, "a file and the draft of one");
    let error = old.end_epoch(ShardEnd::at(2, 2_000)).unwrap_err();
    assert_eq!(error.remedy, Remedy::Fatal);
    let place = folder.path().display();
    let expected = format!("generation 10 of job theft-7 has taken over {place}");
    assert_eq!(error.message, expected);
    drop(old);
    assert_eq!(names(folder.path()).len(), 1);

    let late = made.take_over(&author(9)).unwrap_err();
    assert_eq!((late.remedy, late.message), (Remedy::Fatal, expected));
    // Another job's generations are its own.
    let other = Author::of("theft-8", (1, 1), 2, "archive");
    made.take_over(&other).unwrap();
    let mut new = made.open(0, Some(&author(10)), Arc::default()).unwrap();
    new.write(2, rows(1, 1), None).unwrap();
    // Whatever tidies buckets may take a marker: it is put again.
    fs::remove_dir_all(folder.path().join("_weir")).unwrap();
    assert_eq!(end(new.as_mut(), 2), 2);
    assert_eq!(files(folder.path()).len(), 3, "{}", listing(folder.path()));
}

#[test]
fn a_job_that_is_stopped_leaves_no_part_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let spec = table(folder.path(), &[]);
    let mut out = writer(&spec, 1);
    out.write(4, rows(0, 5), None).unwrap();
    assert_eq!(end(out.as_mut(), 4), 3);
    assert_eq!(out.flush().unwrap(), 3);
    drop(out);
    assert!(names(folder.path()).is_empty());

    let left = |label: &str| folder.path().join(format!(".part-{label}-9-1-1-0.inprogress"));
    let own = "theft-7-38042611a5125fc2-0";
    let others = ["theft-7-38042611a5125fc2-1", "theft-7-0000000000000000-0", "theft-8-0", "0"];
    others.iter().chain([&own]).for_each(|label| fs::write(left(label), "half").unwrap());
    let made = sink(&spec, &[]).unwrap();
    let out = made.open(0, Some(&author(2)), Arc::default()).unwrap();
    assert!(!left(own).exists());
    assert!(others.iter().all(|label| left(label).exists()));
    drop(out);
}

#[test]
fn a_checkpoint_gives_what_came_since_the_one_before() {
    for kept_bytes_max in [0, 32 << 20] {
        let folder = tempfile::tempdir().unwrap();
        let mut spec = table(folder.path(), &[("sink.rolling-policy.file-size", "150 b")]);
        spec.partitioned_by = vec!["meter".into()];
        let mut made = made(&spec, &[]).unwrap();
        made.kept_bytes_max = kept_bytes_max;
        made.take_over(&author(1)).unwrap();
        let mut out = made.open(0, Some(&author(1)), Arc::default()).unwrap();
        let mut checkpoint = Checkpoint::default();
        let out = out.as_mut();
        out.write(1, rows(0, 5), None).unwrap();
        out.write(1, rows(5, 4), None).unwrap();
        end(out, 1);
        let hidden = names(folder.path()).len();
        assert_eq!(hidden, if kept_bytes_max == 0 { 6 } else { 3 }, "three drafts, spilled rows");
        checkpoint.save(out);
        assert_eq!((&checkpoint.added[..], checkpoint.named.len()), (&[3, 3, 3][..], 3));
        assert_eq!(names(folder.path()).len(), 3, "nothing waits any more");
        checkpoint.save(out);
        assert_eq!((&checkpoint.added[..], checkpoint.named.len()), (&[][..], 3));
        out.write(2, rows(0, 1), None).unwrap();
        out.write(2, rows(0, 1), None).unwrap();
        assert_eq!(end(out, 2), 0);
        checkpoint.save(out);
        assert_eq!((&checkpoint.added[..], checkpoint.named.len()), (&[2][..], 4));
        (0..9).for_each(|_| out.write(3, rows(1, 1), None).unwrap());
        assert_eq!(end(out, 3), 0);
        checkpoint.save(out);
        assert_eq!((&checkpoint.added[..], checkpoint.named.len()), (&[][..], 3), "one closed");

        // A piece that is lost is said, and not passed over.
        let fresh = || made.open(1, Some(&author(1)), Arc::default()).unwrap();
        let mut pieces = checkpoint.restored();
        assert_eq!(pieces.len(), 3);
        pieces.retain(|(id, _)| *id != PieceRef::all(0));
        let error = fresh().resume(pieces).unwrap_err();
        assert_eq!(error.message, "a checkpoint lacks rows of the open file in `meter=m-0`");
        let said = |(_, part): &Restored| part.rows.schema().metadata()["weir.open-file"].clone();
        let mut all: Vec<String> = checkpoint.restored().iter().map(said).collect();
        all.sort_unstable();
        expect![[r#"
            {"version":1,"folder":"meter=m-0","first_epoch":1,"since":1000,"ended":1,"before":0}
            {"version":1,"folder":"meter=m-0","first_epoch":1,"since":1000,"ended":2,"before":1}
            {"version":1,"folder":"meter=m-2","first_epoch":1,"since":1000,"ended":1,"before":0}"#]]
        .assert_eq(&all.join("\n"));
        let mut strange = checkpoint.restored();
        strange[0].1.rows = rows(0, 1);
        let error = fresh().resume(strange).unwrap_err();
        assert_eq!(error.message, "a checkpoint's piece `open-file` is not of an open file");

        let mut newer = checkpoint.restored();
        let (schema, columns, _) = newer[0].1.rows.clone().into_parts();
        let text = schema.metadata()["weir.open-file"].replace("\"version\":1", "\"version\":2");
        let metadata = [("weir.open-file".to_owned(), text)].into();
        let schema = Arc::new(schema.as_ref().clone().with_metadata(metadata));
        newer[0].1.rows = RecordBatch::try_new(schema, columns).unwrap();
        let error = fresh().resume(newer).unwrap_err();
        assert_eq!(error.message, "a checkpoint has an open file in version 2; this build reads 1");

        let mut again = fresh();
        again.resume(checkpoint.restored()).unwrap();
        assert_eq!(again.flush().unwrap(), 0, "the oldest open file is of epoch 1");
    }
}

/// Rows on disk and in memory, and the age of the file, are taken up where they were.
#[test]
fn what_a_checkpoint_has_goes_on_as_if_nothing_had_happened() {
    let run = |kept_bytes_max: usize, dies: bool| {
        let folder = tempfile::tempdir().unwrap();
        let spec = table(folder.path(), &[("sink.rolling-policy.rollover-interval", "2 s")]);
        let mut made = made(&spec, &[]).unwrap();
        made.kept_bytes_max = kept_bytes_max;
        made.take_over(&author(1)).unwrap();
        let open = || made.open(0, Some(&author(1)), Arc::default()).unwrap();
        let mut out = open();
        out.write(1, rows(0, 50), None).unwrap();
        out.write(1, rows(50, 50), None).unwrap();
        out.write(1, rows(100, 1), None).unwrap();
        assert_eq!(end(out.as_mut(), 1), 0);
        if dies {
            let mut checkpoint = Checkpoint::default();
            checkpoint.save(out.as_mut());
            out.write(2, rows(7, 1), None).unwrap();
            out = open();
            out.resume(checkpoint.restored()).unwrap();
        }
        out.write(2, rows(101, 1), None).unwrap();
        assert_eq!(end(out.as_mut(), 2), 0);
        assert_eq!(end(out.as_mut(), 3), 3, "two seconds after the end of its first epoch");
        drop(out);
        put(folder.path())
    };
    let expected = run(32 << 20, false);
    assert_eq!(expected.len(), 1);
    for kept_bytes_max in [0, 1_000, 32 << 20] {
        assert!(run(kept_bytes_max, true) == expected, "{kept_bytes_max} bytes in memory");
    }
}

/// What comes, and what happens meanwhile.
#[derive(Clone, Debug)]
struct Story {
    format: &'static str,
    partitioned: bool,
    more: Vec<(&'static str, &'static str)>,
    kept_bytes_max: usize,
    /// Of each epoch: rows of its chunks, and milliseconds until it ends.
    epochs: Vec<(Vec<usize>, i64)>,
    /// Epochs after which there is a checkpoint.
    saves: Vec<bool>,
    crashes: Vec<Crash>,
}

/// The end of a generation.
#[derive(Clone, Copy, Debug)]
struct Crash {
    /// Calls that its writer got.
    calls: usize,
    /// The next goes on from the newest checkpoint, not from the beginning.
    resumes: bool,
    /// It was only stopped, and goes on once the next has taken over.
    comes_back: bool,
}

fn stories() -> impl Strategy<Value = Story> {
    let epoch =
        (prop::collection::vec(prop_oneof![0usize..40, 3_000..9_000usize], 0..3), 0..900i64);
    let crash = (0usize..30, prop::bool::weighted(0.75), any::<bool>());
    let crash = crash.prop_map(|(calls, resumes, comes_back)| Crash { calls, resumes, comes_back });
    let limits = (
        prop::sample::select(vec!["300 b", "40 kb", "100 mb"]),
        prop::sample::select(vec!["2 s", "30 min"]),
        prop::sample::select(vec!["1", "2", "256"]),
        prop::sample::select(vec![0, 5_000, 32 << 20]),
    );
    (
        (prop::sample::select(vec!["json", "parquet"]), any::<bool>(), limits),
        prop::collection::vec(epoch, 1..8),
        prop::collection::vec(prop::bool::weighted(0.7), 8),
        prop::collection::vec(crash, 0..4),
    )
        .prop_map(
            |((format, partitioned, (size, age, open, kept_bytes_max)), epochs, s, c)| Story {
                format,
                partitioned,
                more: vec![
                    ("sink.rolling-policy.file-size", size),
                    ("sink.rolling-policy.rollover-interval", age),
                    ("sink.open-files-max", open),
                    ("parquet.row-group-rows", "10000"),
                ],
                kept_bytes_max,
                epochs,
                saves: s,
                crashes: c,
            },
        )
}

impl Story {
    fn sink(&self, folder: &Path) -> FilesystemSink {
        let mut spec = table(folder, &self.more);
        spec.options.insert("format".into(), self.format.into());
        spec.partitioned_by = if self.partitioned { vec!["meter".into()] } else { vec![] };
        let mut made = made(&spec, &[]).unwrap();
        made.kept_bytes_max = self.kept_bytes_max;
        made
    }

    /// The calls of an epoch. In a later generation its rows come in other chunks.
    fn chunks(&self, epoch: usize, generation: usize) -> Vec<RecordBatch> {
        let count = |e: usize| -> usize { self.epochs[e].0.iter().sum() };
        let mut from: usize = (0..epoch).map(count).sum();
        let whole = [count(epoch)];
        let sizes = if generation.is_multiple_of(2) { &self.epochs[epoch].0[..] } else { &whole };
        let chunk = |size: &usize| {
            let chunk = rows(from, *size);
            from += size;
            chunk
        };
        sizes.iter().map(chunk).collect()
    }

    fn time(&self, epoch: usize) -> i64 {
        self.epochs[..=epoch].iter().map(|(_, millis)| millis).sum()
    }

    /// One generation from epoch `from` on, until its end or for `calls` calls; whether it ended.
    fn live(
        &self,
        out: &mut dyn SinkWriter,
        folder: &Path,
        (from, generation, calls): (usize, usize, usize),
        checkpoint: &mut Option<(usize, Checkpoint)>,
    ) -> bool {
        let mut left = calls;
        let mut dies = || {
            left = left.saturating_sub(1);
            left == 0
        };
        for epoch in from..self.epochs.len() {
            let number = 1 + epoch as u64;
            for chunk in self.chunks(epoch, generation) {
                out.write(number, chunk, None).unwrap();
                if dies() {
                    return false;
                }
            }
            let committed = out.end_epoch(ShardEnd::at(number, self.time(epoch))).unwrap();
            assert!(committed <= number);
            self.check_committed(folder, committed as usize);
            assert_eq!(out.flush().unwrap(), committed);
            if dies() {
                return false;
            }
            if self.saves[epoch] {
                let (_, mut pieces) = checkpoint.take().unwrap_or_default();
                pieces.save(out);
                *checkpoint = Some((epoch + 1, pieces));
                if dies() {
                    return false;
                }
            }
        }
        out.finish().unwrap();
        true
    }

    /// What is committed is to be seen.
    fn check_committed(&self, folder: &Path, committed: usize) {
        let rows: usize = self.epochs[..committed].iter().flat_map(|(chunks, _)| chunks).sum();
        let visible = put(folder).into_iter().filter(|(name, _)| !name.contains("/."));
        let visible: BTreeMap<_, _> = visible.filter(|(name, _)| !name.starts_with('.')).collect();
        let found = self.count(folder, &visible);
        assert!(found >= rows, "{found} of {rows} rows that are committed");
    }

    fn count(&self, folder: &Path, files: &BTreeMap<String, Vec<u8>>) -> usize {
        let count = |(name, bytes): (&String, &Vec<u8>)| match self.format {
            "json" => bytes.iter().filter(|b| **b == b'\n').count(),
            _ => read_parquet(&folder.join(name)).iter().map(RecordBatch::num_rows).sum(),
        };
        files.iter().map(count).sum()
    }

    fn run(&self, folder: &Path, crashes: &[Crash]) -> BTreeMap<String, Vec<u8>> {
        let made = self.sink(folder);
        let mut checkpoint: Option<(usize, Checkpoint)> = None;
        let mut crashed: Option<(Crash, Box<dyn SinkWriter>)> = None;
        for generation in 0..=crashes.len() {
            let author = author(1 + generation as u64);
            made.take_over(&author).unwrap();
            let resumes = crashed.as_ref().is_some_and(|(crash, _)| crash.resumes);
            if let Some((crash, mut old)) = crashed.take()
                && crash.comes_back
            {
                let visible = || -> Vec<String> {
                    names(folder).into_iter().filter(|n| !n.contains(".inprogress")).collect()
                };
                let before = visible();
                // Where a file was open it is refused, and its draft goes with the writer.
                let _refused = old.finish();
                assert_eq!(visible(), before);
            }
            let mut out = made.open(0, Some(&author), Arc::default()).unwrap();
            if !resumes {
                checkpoint = None;
            }
            let from = checkpoint.as_ref().map_or(0, |(epoch, _)| *epoch);
            if let Some((_, pieces)) = &checkpoint {
                out.resume(pieces.restored()).unwrap();
            }
            let crash = crashes.get(generation);
            let calls = crash.map_or(usize::MAX, |crash| crash.calls);
            self.live(out.as_mut(), folder, (from, generation, calls), &mut checkpoint);
            crashed = crash.map(|crash| (*crash, out));
        }
        put(folder)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Crashes anywhere, from the beginning or from a checkpoint: the files of an undisturbed run.
    #[test]
    fn crashes_change_no_byte(story in stories()) {
        let (calm, wild) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let calm_story = Story { saves: vec![false; 8], ..story.clone() };
        let expected = calm_story.run(calm.path(), &[]);
        let found = story.run(wild.path(), &story.crashes);
        prop_assert!(
            found == expected,
            "{:?}\nexpected\n{}\nfound\n{}",
            story,
            listing(calm.path()),
            listing(wild.path())
        );
        let rows: usize = story.epochs.iter().map(|(chunks, _)| chunks.iter().sum::<usize>()).sum();
        prop_assert_eq!(story.count(wild.path(), &found), rows);
    }
}
