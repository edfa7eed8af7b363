//! The `filesystem` sink on a real S3 server, at WEIR_TEST_S3 (`cargo xtask services up`).
#![allow(clippy::unwrap_used, missing_docs)]

use arrow::array::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_connect::store::{Store, StoreOptions};
use weir_engine::connector::{ColumnSpec, Remedy, TableSpec};
use weir_engine::sink::{Author, ShardEnd, Sink, SinkReport, SinkWriter};
use weir_engine::state::{PieceRef, Pieces, Restored, StatePart};

fn env(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is missing; `cargo xtask services up s3` gives it"))
}

fn rows(from: i64, count: i64) -> RecordBatch {
    let region: StringArray =
        (from..from + count).map(|i| Some(["a/b", "c"][i as usize % 2])).collect();
    let id: Int64Array = (from..from + count).map(Some).collect();
    // Values that do not compress, so that a file needs an upload in parts.
    let noise: StringArray = (from..from + count)
        .map(|i| {
            Some(format!("{:x}", (i as u128 + 1).pow(3).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c)))
        })
        .collect();
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(id) as ArrayRef, true),
        ("region", Arc::new(region) as ArrayRef, true),
        ("noise", Arc::new(noise) as ArrayRef, true),
    ])
    .unwrap()
}

/// A table below a prefix that no other run has used.
fn spec(place: &str, format: &str) -> TableSpec {
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    for (key, value) in [
        ("connector", "filesystem".to_owned()),
        ("format", format.to_owned()),
        (
            "path",
            format!("s3://{}/sinks/{}/{place}", env("WEIR_TEST_S3_BUCKET"), std::process::id()),
        ),
        ("s3.endpoint", env("WEIR_TEST_S3")),
        ("s3.access-key", env("WEIR_TEST_S3_KEY")),
        ("s3.secret-key", env("WEIR_TEST_S3_SECRET")),
        ("s3.region", env("WEIR_TEST_S3_REGION")),
    ] {
        options.insert(key.to_owned(), value);
    }
    let columns = rows(0, 1).schema();
    let columns = columns.fields().iter().map(|field| ColumnSpec {
        name: field.name().clone(),
        data_type: field.data_type().clone(),
        nullable: true,
        metadata: None,
    });
    TableSpec {
        name: "archive".into(),
        columns: columns.collect(),
        options,
        primary_key: vec![],
        partitioned_by: vec![],
        event_time: None,
        keyed: vec![],
        pushed: vec![],
    }
}

fn made(spec: &TableSpec) -> Box<dyn Sink> {
    weir_sinks::filesystem::sink(spec, &[]).unwrap_or_else(|e| panic!("{e:?}"))
}

fn store(spec: &TableSpec) -> Store {
    Store::open(spec.option("path").unwrap(), &StoreOptions::of(spec).unwrap()).unwrap()
}

fn run(spec: &TableSpec, batches: &[RecordBatch]) {
    let sink = made(spec);
    sink.probe().unwrap();
    let mut out = sink.open(0, None, Arc::new(SinkReport::default())).unwrap();
    for batch in batches {
        out.write(7, batch.clone(), None).unwrap();
    }
    out.end_epoch(ShardEnd::at(7, 0)).unwrap();
    assert!(store(spec).list("").unwrap().is_empty() || batches.is_empty(), "visible too early");
    out.finish().unwrap();
}

#[test]
fn files_appear_whole_under_their_partitions_and_keep_the_names_of_others() {
    let mut spec = spec("partitions", "json");
    spec.partitioned_by = vec!["region".into()];
    run(&spec, &[rows(0, 3)]);
    let store = store(&spec);
    let paths = || store.list("").unwrap().into_iter().map(|e| e.path).collect::<Vec<_>>();
    let name = "part-0-00000000000000000007";
    assert_eq!(paths(), [format!("region=a%2Fb/{name}.jsonl"), format!("region=c/{name}.jsonl")]);
    let text = store.read_all(&paths()[1]).unwrap();
    assert!(text.starts_with(b"{\"id\":1,\"noise\":\""), "{text:?}");

    let sink = made(&spec);
    let mut again = sink.open(0, None, Arc::new(SinkReport::default())).unwrap();
    again.write(7, rows(1, 1), None).unwrap();
    again.finish().unwrap();
    assert_eq!(paths()[1], format!("region=c/{name}-r1.jsonl"));
    assert_eq!(paths().len(), 3);
}

#[test]
fn a_large_file_goes_up_in_parts_with_the_bytes_of_a_local_one() {
    let mut spec = spec("large", "parquet");
    spec.options.insert("parquet.compression".into(), "none".into());
    let batches: Vec<RecordBatch> = (0..40).map(|i| rows(i * 10_000, 10_000)).collect();
    run(&spec, &batches);
    let entries = store(&spec).list("").unwrap();
    assert_eq!(entries.len(), 1);
    assert!(entries[0].size > 9 << 20, "{} bytes are one part", entries[0].size);
    let there = store(&spec).read_all(&entries[0].path).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let mut local = spec.clone();
    local.options.retain(|key, _| !key.starts_with("s3."));
    local.options.insert("path".into(), folder.path().to_str().unwrap().into());
    let mut out = made(&local).open(0, None, Arc::new(SinkReport::default())).unwrap();
    batches.into_iter().for_each(|batch| out.write(7, batch, None).unwrap());
    out.finish().unwrap();
    let here = std::fs::read(folder.path().join(&entries[0].path)).unwrap();
    assert!(here == there, "{} bytes here, {} there", here.len(), there.len());
}

/// The next generation of a job that lasts, on shard 0.
fn lasting(spec: &TableSpec, generation: u64) -> Box<dyn SinkWriter> {
    let (sink, author) = (made(spec), Author::of("theft-7", (generation, 1), 0, "archive"));
    sink.take_over(&author).unwrap();
    sink.open(0, Some(&author), Arc::new(SinkReport::default())).unwrap()
}

/// What is there, but for the markers of generations.
fn there(spec: &TableSpec) -> Vec<(String, Vec<u8>)> {
    let store = store(spec);
    let entries = store.list("").unwrap().into_iter().filter(|e| !e.path.starts_with("_weir/"));
    entries.map(|e| (e.path.clone(), store.read_all(&e.path).unwrap().to_vec())).collect()
}

/// A checkpoint's pieces.
#[derive(Default)]
struct Saved(Vec<Restored>);

impl Pieces for Saved {
    fn same(&mut self, piece: PieceRef) {
        assert!(self.0.iter().any(|(id, _)| *id == piece));
    }

    fn put(&mut self, part: StatePart) -> PieceRef {
        let id = PieceRef::all(self.0.len() as u64);
        self.0.push((id, part));
        id
    }
}

#[test]
fn a_job_that_comes_again_finds_its_files_large_and_small() {
    let mut spec = spec("once", "parquet");
    spec.options.insert("parquet.compression".into(), "none".into());
    spec.options.insert("sink.rolling-policy.file-size".into(), "9 mb".into());
    let write = |out: &mut dyn SinkWriter, epochs: std::ops::Range<i64>| {
        for epoch in epochs {
            out.write(1 + epoch as u64, rows(epoch * 50_000, 50_000), None).unwrap();
            out.end_epoch(ShardEnd::at(1 + epoch as u64, epoch)).unwrap();
        }
    };
    let mut calm = lasting(&spec, 1);
    write(calm.as_mut(), 0..8);
    calm.finish().unwrap();
    let expected = there(&spec);
    let sizes: Vec<usize> = expected.iter().map(|(_, bytes)| bytes.len()).collect();
    assert!(sizes.len() == 2 && sizes[0] > 9 << 20 && sizes[1] < 8 << 20, "{sizes:?}");

    // From the beginning, over what is there.
    let mut again = lasting(&spec, 2);
    write(again.as_mut(), 0..8);
    again.finish().unwrap();
    assert!(there(&spec) == expected);

    // From a checkpoint in the first file, where nothing is there.
    for (path, _) in &expected {
        store(&spec).delete(path).unwrap();
    }
    let mut saved = Saved::default();
    let mut dies = lasting(&spec, 3);
    write(dies.as_mut(), 0..3);
    dies.save(&mut saved).unwrap();
    write(dies.as_mut(), 3..4);
    drop(dies);
    assert!(there(&spec).is_empty());
    let mut resumed = lasting(&spec, 4);
    resumed.resume(saved.0).unwrap();
    write(resumed.as_mut(), 3..8);
    resumed.finish().unwrap();
    assert!(there(&spec) == expected);

    // Other rows, in a file as large.
    let mut other = lasting(&spec, 5);
    other.write(1, rows(1, 50_000), None).unwrap();
    let mut fails = || -> Result<(), weir_engine::connector::ConnectorError> {
        for epoch in 1..8 {
            other.write(1 + epoch as u64, rows(epoch * 50_000, 50_000), None)?;
            other.end_epoch(ShardEnd::at(1 + epoch as u64, epoch))?;
        }
        Ok(())
    };
    let error = fails().unwrap_err();
    assert_eq!(error.remedy, Remedy::Fatal);
    assert!(error.message.starts_with("not deterministic: s3://"), "{error}");
    assert!(error.message.contains(&expected[0].0), "{error}");
    drop(other);
    assert!(there(&spec) == expected);
}

#[test]
fn an_older_generation_is_shut_out_of_the_bucket() {
    let spec = spec("fenced", "json");
    let mut old = lasting(&spec, 1);
    old.write(1, rows(0, 1), None).unwrap();
    old.finish().unwrap();
    old.write(2, rows(1, 1), None).unwrap();
    let author = Author::of("theft-7", (2, 1), 0, "archive");
    assert_eq!(made(&spec).take_over(&author).unwrap(), Some(1));
    let error = old.finish().unwrap_err();
    assert_eq!(error.remedy, Remedy::Fatal);
    let place = spec.option("path").unwrap();
    assert_eq!(error.message, format!("generation 2 of job theft-7 has taken over {place}"));
    assert_eq!(there(&spec).len(), 1);
    let markers = store(&spec).list("_weir").unwrap();
    assert_eq!(markers.len(), 1, "{markers:?}");
    assert!(markers[0].path.ends_with("/generation-00000000000000000002"), "{markers:?}");
}

#[test]
fn a_bucket_that_is_not_there_or_not_ours_is_said_at_once() {
    let mut missing = spec("x", "json");
    missing.options.insert("path".into(), "s3://weir-no-such-bucket/x".into());
    let error = made(&missing).probe().unwrap_err();
    assert!(error.message.contains("weir-no-such-bucket"), "{error}");
    assert!(error.message.contains("`archive`"), "{error}");

    let mut wrong = spec("x", "json");
    wrong.options.insert("s3.secret-key".into(), "not-the-secret-77".into());
    let error = made(&wrong).probe().unwrap_err();
    assert!(!format!("{error:?}").contains("secret-77"), "{error}");
    assert!(error.message.contains("archive"), "{error}");
}
