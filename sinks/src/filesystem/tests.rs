//! Tests of the `filesystem` sink on local folders: names, rolling, bytes, leftovers, refusals.
#![allow(clippy::unwrap_used)]

use super::*;
use arrow::array::{Array, ArrayRef, AsArray, Float64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Float64Type};
use expect_test::expect;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use weir_engine::connector::ColumnSpec;
use weir_engine::sink::ShardEnd;

mod once;

fn table(folder: &Path, more: &[(&str, &str)]) -> TableSpec {
    let column = |name: &str, data_type| ColumnSpec {
        name: name.into(),
        data_type,
        nullable: true,
        metadata: None,
    };
    let mut options: BTreeMap<String, String> = BTreeMap::new();
    options.insert("connector".into(), "filesystem".into());
    options.insert("format".into(), "json".into());
    options.insert("path".into(), folder.to_str().unwrap().into());
    options.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    TableSpec {
        name: "archive".into(),
        columns: vec![column("meter", DataType::Utf8), column("kwh", DataType::Float64)],
        options,
        primary_key: vec![],
        partitioned_by: vec![],
        event_time: None,
        keyed: vec![],
        pushed: vec![],
    }
}

fn rows(from: usize, count: usize) -> RecordBatch {
    let meters: StringArray = (from..from + count).map(|i| Some(format!("m-{}", i % 3))).collect();
    let kwh: Float64Array = (from..from + count).map(|i| Some(i as f64 / 4.0)).collect();
    RecordBatch::try_from_iter([
        ("meter", Arc::new(meters) as ArrayRef),
        ("kwh", Arc::new(kwh) as ArrayRef),
    ])
    .unwrap()
}

fn writer(spec: &TableSpec) -> (Box<dyn SinkWriter>, Arc<SinkReport>) {
    let report = Arc::new(SinkReport::default());
    let made = sink(spec, &[]).unwrap();
    made.probe().unwrap();
    (made.open(0, None, report.clone()).unwrap(), report)
}

/// Files below a folder, by relative path, with their bytes.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
                found.insert(name, fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn listing(folder: &Path) -> String {
    let shown = files(folder).into_iter().map(|(name, bytes)| format!("{name} {}", bytes.len()));
    shown.collect::<Vec<_>>().join("\n")
}

#[test]
fn files_close_by_size_and_by_age_and_count_as_committed_then() {
    let folder = tempfile::tempdir().unwrap();
    let spec = table(
        folder.path(),
        &[
            ("sink.rolling-policy.file-size", "60 b"),
            ("sink.rolling-policy.rollover-interval", "10 s"),
        ],
    );
    let (mut out, report) = writer(&spec);
    out.write(5, rows(0, 1), None).unwrap();
    assert_eq!(out.end_epoch(ShardEnd::at(5, 1_000)).unwrap(), 4);
    assert!(files(folder.path()).keys().all(|name| name.starts_with('.')), "not visible yet");
    out.write(6, rows(1, 2), None).unwrap();
    assert_eq!(out.end_epoch(ShardEnd::at(6, 1_010)).unwrap(), 6, "60 bytes are reached");
    out.write(7, rows(3, 1), None).unwrap();
    assert_eq!(out.end_epoch(ShardEnd::at(7, 2_000)).unwrap(), 6);
    assert_eq!(out.end_epoch(ShardEnd::at(8, 11_999)).unwrap(), 6);
    assert_eq!(
        out.end_epoch(ShardEnd::at(9, 12_000)).unwrap(),
        9,
        "ten seconds have passed, without a row"
    );
    out.write(10, rows(4, 1), None).unwrap();
    out.end_epoch(ShardEnd::at(10, 12_001)).unwrap();
    out.finish().unwrap();
    drop(out);
    expect![[r#"
        part-0-00000000000000000005.jsonl 79
        part-0-00000000000000000007.jsonl 27
        part-0-00000000000000000010.jsonl 26"#]]
    .assert_eq(&listing(folder.path()));
    assert_eq!(report.rows.load(std::sync::atomic::Ordering::Relaxed), 5);
    assert_eq!(report.commits.load(std::sync::atomic::Ordering::Relaxed), 3);
}

#[test]
fn a_second_run_adds_files_and_a_run_without_rows_only_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("a/b");
    let spec = table(&target, &[]);
    let run = |count: usize| {
        let (mut out, _) = writer(&spec);
        if count > 0 {
            out.write(1, rows(0, count), None).unwrap();
        }
        out.end_epoch(ShardEnd::at(1, 0)).unwrap();
        out.finish().unwrap();
    };
    run(0);
    assert_eq!(listing(&target), "");
    run(1);
    run(2);
    run(1);
    expect![[r#"
        part-0-00000000000000000001-r1.jsonl 53
        part-0-00000000000000000001-r2.jsonl 26
        part-0-00000000000000000001.jsonl 26"#]]
    .assert_eq(&listing(&target));
}

#[test]
fn partitions_are_folders_and_leave_their_columns_out() {
    let folder = tempfile::tempdir().unwrap();
    let mut spec = table(folder.path(), &[("sink.open-files-max", "2")]);
    spec.partitioned_by = vec!["meter".into()];
    let (mut out, _) = writer(&spec);
    out.write(3, rows(0, 4), None).unwrap();
    out.write(3, rows(4, 2), None).unwrap();
    out.end_epoch(ShardEnd::at(3, 0)).unwrap();
    let visible = files(folder.path()).into_keys().filter(|n| !n.starts_with('.')).count();
    assert_eq!(visible, 1, "three are open, two may be");
    out.finish().unwrap();
    drop(out);
    let shown = files(folder.path()).into_iter();
    let shown = shown.map(|(n, b)| format!("{n} {}", String::from_utf8(b).unwrap()));
    expect![[r#"
        meter=m-0/part-0-00000000000000000003.jsonl {"kwh":0.0}
        {"kwh":0.75}

        meter=m-1/part-0-00000000000000000003.jsonl {"kwh":0.25}
        {"kwh":1.0}

        meter=m-2/part-0-00000000000000000003.jsonl {"kwh":0.5}
        {"kwh":1.25}
    "#]]
    .assert_eq(&shown.collect::<Vec<_>>().join("\n"));
}

#[test]
fn what_a_crash_left_goes_and_what_is_alive_stays() {
    let folder = tempfile::tempdir().unwrap();
    let spec = table(folder.path(), &[]);
    let left = folder.path().join(".part-0-00000000000000000009-1-1-0.inprogress");
    fs::write(&left, "half").unwrap();
    fs::write(folder.path().join("notes.txt"), "mine").unwrap();
    let (mut alive, _) = writer(&spec);
    assert!(!left.exists());
    alive.write(1, rows(0, 1), None).unwrap();
    let (other, _) = writer(&spec);
    alive.finish().unwrap();
    drop(alive);
    drop(other);
    assert_eq!(files(folder.path()).len(), 2, "{}", listing(folder.path()));

    // A job that fails drops its writer: nothing half-written is left, nothing whole is touched.
    let (mut failed, _) = writer(&spec);
    failed.write(2, rows(0, 1), None).unwrap();
    drop(failed);
    assert_eq!(files(folder.path()).len(), 2, "{}", listing(folder.path()));
}

#[test]
fn refusals_say_where_and_why() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("readings.jsonl");
    fs::write(&file, "{}").unwrap();
    let message = |path: &Path| {
        let error = sink(&table(path, &[]), &[]).unwrap().probe().unwrap_err();
        error.message.replace(folder.path().to_str().unwrap(), "F")
    };
    let below = message(&file.join("alerts"));
    assert_eq!(
        below,
        "cannot create F/readings.jsonl/alerts for table `archive`: F/readings.jsonl is a file, \
         not a directory"
    );
    assert!(message(&file).ends_with("F/readings.jsonl is a file, not a directory"));
    let kernel = sink(&table(Path::new("/proc/weir"), &[]), &[]).unwrap().probe().unwrap_err();
    assert!(kernel.message.starts_with("cannot create /proc/weir for table `archive`: "));

    let mut all = table(folder.path(), &[("format", "jsn"), ("paht", "x")]);
    let errors = sink(&all, &[]).err().unwrap();
    assert_eq!(errors.len(), 2, "{errors:?}");
    all = table(folder.path(), &[]);
    all.partitioned_by = vec!["meter".into(), "kwh".into()];
    assert!(sink(&all, &[]).err().unwrap()[0].message.contains("no column beside"));
}

/// `/dev/full` takes no byte: what a full disk answers.
#[test]
fn a_full_disk_is_said_with_the_place() {
    let spec = table(Path::new("out"), &[]);
    let made = FilesystemSinkOptions::read(&spec, &[]).unwrap();
    let encoding = Encoding::of(spec.schema(), &made).unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut encoder = encoding.start(full).unwrap();
    let error = encoder.write(&rows(0, 20_000)).and_then(|()| encoder.finish().map(drop));
    assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::StorageFull);

    let mut parquet = spec.clone();
    parquet.options.insert("format".into(), "parquet".into());
    let made = FilesystemSinkOptions::read(&parquet, &[]).unwrap();
    let encoding = Encoding::of(spec.schema(), &made).unwrap();
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut encoder = encoding.start(full).unwrap();
    let error = encoder.write(&rows(0, 20_000)).and_then(|()| encoder.finish().map(drop));
    assert_eq!(error.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
}

fn read_parquet(path: &Path) -> Vec<RecordBatch> {
    let file = fs::File::open(path).unwrap();
    let reader = parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file);
    reader.unwrap().build().unwrap().collect::<Result<_, _>>().unwrap()
}

#[test]
fn parquet_reads_back() {
    let folder = tempfile::tempdir().unwrap();
    let spec = table(folder.path(), &[("format", "parquet"), ("parquet.compression", "zstd")]);
    let (mut out, _) = writer(&spec);
    (0..5).for_each(|e| out.write(1 + e, rows(e as usize * 5_000, 5_000), None).unwrap());
    out.finish().unwrap();
    let batches = read_parquet(&folder.path().join("part-0-00000000000000000001.parquet"));
    let kwh =
        batches.iter().flat_map(|b| b.column(1).as_primitive::<Float64Type>().values().to_vec());
    assert!(kwh.eq((0..25_000).map(|i| f64::from(i) / 4.0)));
    assert_eq!(batches[0].column(0).as_string::<i32>().value(4), "m-1");
    assert_eq!(batches[0].column(0).null_count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The bytes of a file are a function of its rows, not of the batches that they came in.
    #[test]
    fn bytes_do_not_depend_on_batches(
        sizes in prop::collection::vec(1usize..9_000, 1..8),
        format in prop::sample::select(vec!["json", "parquet"]),
    ) {
        let total: usize = sizes.iter().sum();
        let written = |sizes: &[usize]| {
            let folder = tempfile::tempdir().unwrap();
            let more = [("format", format), ("parquet.row-group-rows", "50000")];
            let (mut out, _) = writer(&table(folder.path(), &more));
            let mut from = 0;
            for &size in sizes {
                out.write(1, rows(from, size), None).unwrap();
                from += size;
            }
            out.end_epoch(ShardEnd::at(1, 0)).unwrap();
            out.finish().unwrap();
            files(folder.path())
        };
        prop_assert!(written(&sizes) == written(&[total]));
    }
}
