//! Files of each format through the whole source: rows, offsets, bad rows, splits, messages.
#![allow(clippy::unwrap_used)]

use super::*;
use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, Float64Array, Int32Array, Int64Array, RecordBatch,
    StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{Field, Int32Type, Schema};
use expect_test::expect;
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use std::io::Write;
use std::time::{Duration, Instant};
use weir_connect::store::PutMode;
use weir_engine::connector::{ColumnSpec, Pushed};
use weir_engine::source::{QUEUE_BYTES_MAX, Start};

const MS: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);

fn ltz() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))
}

/// A table `t` of these columns; `name@key` is a METADATA column.
fn table(columns: &[(&str, DataType)], options: &[(&str, &str)]) -> TableSpec {
    let column = |(name, data_type): &(&str, DataType)| {
        let (name, metadata) = name.split_once('@').map_or((*name, None), |(n, k)| (n, Some(k)));
        let (name, nullable) = name.strip_suffix('!').map_or((name, true), |n| (n, false));
        let metadata = metadata.map(str::to_owned);
        ColumnSpec { name: name.into(), data_type: data_type.clone(), nullable, metadata }
    };
    let mut all = vec![("connector", "filesystem")];
    all.extend(options);
    TableSpec {
        name: "t".into(),
        columns: columns.iter().map(column).collect(),
        options: all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        primary_key: vec![],
        partitioned_by: vec![],
        event_time: None,
        keyed: vec![],
        pushed: vec![],
    }
}

/// Reads everything: for each split its name, then a line a row and bad row.
fn read_all(table: &TableSpec) -> String {
    read_with(table, QUEUE_BYTES_MAX).unwrap()
}

fn read_with(table: &TableSpec, limit: usize) -> Result<String, ConnectorError> {
    let source = source(table, &[]).unwrap();
    let splits = source.splits()?;
    let queues: Vec<_> = splits.iter().map(|s| SplitQueue::bounded(s.clone(), limit)).collect();
    let mut handle = source.open(queues.clone())?;
    queues.iter().for_each(|q| q.want());
    let mut out = String::new();
    for queue in &queues {
        out.push_str(&format!("{} {}\n", queue.split.number, queue.split.name));
        drain(queue, handle.as_mut(), &mut out)?;
    }
    drop(handle);
    Ok(out)
}

/// Takes what threads have read, and now and then helps them.
fn drain(
    queue: &SplitQueue,
    handle: &mut dyn SourceHandle,
    out: &mut String,
) -> Result<(), ConnectorError> {
    let deadline = Instant::now() + Duration::from_secs(20);
    for turn in 0_u64.. {
        if let Some(chunk) = queue.pop(usize::MAX) {
            show(&chunk, out);
        } else if let Some(error) = queue.failure() {
            return Err(error);
        } else if queue.is_finished() {
            return Ok(());
        } else {
            assert!(Instant::now() < deadline, "nothing came: {out}");
            if !turn.is_multiple_of(3) || !handle.help(queue.split.number) {
                std::thread::yield_now();
            }
        }
    }
    Ok(())
}

#[test]
fn a_worker_helps_to_read_local_files_to_their_end() {
    let folder = tempfile::tempdir().unwrap();
    for file in 0..3 {
        let lines: String = (0..20_000).map(|n| format!("{{\"a\":{n}}}\n")).collect();
        std::fs::write(folder.path().join(format!("{file}.json")), lines).unwrap();
    }
    let path = folder.path().to_str().unwrap();
    let table = table(&[("a", DataType::Int64)], &[("path", path), ("format", "json")]);
    let source = source(&table, &[]).unwrap();
    let splits = source.splits().unwrap();
    let queues: Vec<_> = splits.iter().map(|s| SplitQueue::bounded(s.clone(), 1 << 16)).collect();
    // Threads do nothing for splits that nobody wants.
    let mut handle = source.open(queues.clone()).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(queues.iter().all(|queue| !queue.has_chunk()));
    // They end, so that whatever comes was read by the helper.
    handle.stop();
    std::thread::sleep(Duration::from_millis(100));
    for queue in &queues {
        queue.want();
        let mut rows = 0;
        while !queue.is_finished() {
            assert!(handle.help(queue.split.number) || queue.has_chunk());
            rows += queue.pop(usize::MAX).map_or(0, |chunk| chunk.len());
        }
        assert_eq!(rows, 20_000);
        assert!(!handle.help(queue.split.number), "there is nothing left");
    }
}

fn show(chunk: &Chunk, out: &mut String) {
    let mut lines = Vec::new();
    for row in 0..chunk.len() {
        let values = chunk.rows.columns().iter().map(|c| {
            let text = arrow::util::display::array_value_to_string(c, row).unwrap();
            if c.is_null(row) { "NULL".to_owned() } else { text }
        });
        let mut line = values.collect::<Vec<_>>().join(" | ");
        if let Some(splits) = &chunk.split_column {
            line.push_str(&format!(" of {}", splits[row]));
        }
        if let Some(arrivals) = &chunk.arrivals {
            line.push_str(&format!(" came {}", arrivals[row]));
        }
        lines.push((chunk.offsets.at(row), line));
    }
    for bad in &chunk.bad {
        let payload = String::from_utf8_lossy(&bad.payload);
        lines.push((bad.offset, format!("BAD {payload} ({})", bad.reason)));
    }
    if chunk.split_column.is_none() {
        lines.sort_by_key(|l| l.0);
    }
    for (offset, line) in lines {
        out.push_str(&format!("  {offset}: {line}\n"));
    }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn of(files: &[(&str, &[u8])]) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        let store = Store::open(folder.path(), &StoreOptions::none()).unwrap();
        for (name, bytes) in files {
            store.put(name, bytes.to_vec(), PutMode::Replace).unwrap();
        }
        folder
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    /// The text with the folder's own name taken out.
    fn without(&self, text: &str) -> String {
        text.replace(self.path(), "F")
    }

    fn read(&self, columns: &[(&str, DataType)], options: &[(&str, &str)]) -> String {
        let mut all = vec![("path", self.path())];
        all.extend(options);
        self.without(&read_all(&table(columns, &all)))
    }

    fn refused(
        &self,
        path: &str,
        columns: &[(&str, DataType)],
        options: &[(&str, &str)],
    ) -> String {
        let path = format!("{}/{path}", self.path());
        let mut all = vec![("path", path.as_str())];
        all.extend(options);
        let error = read_with(&table(columns, &all), QUEUE_BYTES_MAX).unwrap_err();
        let hint = error.hint.unwrap_or_default();
        folded(&self.without(&format!("{:?}: {}\n{hint}\n", error.remedy, error.message)))
    }
}

/// Long lines broken, as expectations stay within 100 columns.
fn folded(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut width = 0;
        for word in line.split(' ') {
            if width + word.len() > 80 {
                out.push_str("\n ");
                width = 0;
            }
            let gap = if width == 0 && out.ends_with('\n') || out.is_empty() { "" } else { " " };
            out.push_str(gap);
            out.push_str(word);
            width += word.len() + 1;
        }
        out.push('\n');
    }
    out
}

#[test]
fn lines_have_ordinals_whatever_they_hold() {
    let folder = Folder::of(&[
        ("b.jsonl", b"{\"a\":1}\n\n{\"a\":\n{\"a\":2}\r\n\r\n{\"a\":3}"),
        ("a.jsonl", b"nothing\n{\"a\":9}\n"),
        ("c/d.jsonl", b"{\"a\":4}\n"),
        ("c/empty.jsonl", b""),
        ("_SUCCESS", b"x"),
        (".hidden", b"x"),
        ("c/_temporary/e.jsonl", b"x"),
    ]);
    let columns = [
        ("a", DataType::Int32),
        ("n@offset", DataType::Int64),
        ("s@split", DataType::Utf8),
        ("f@file.name", DataType::Utf8),
    ];
    expect![[r#"
        0 F/a.jsonl
          0: BAD nothing (not JSON: expected a value at byte 0)
          1: 9 | 1 | F/a.jsonl | a.jsonl
        1 F/b.jsonl
          0: 1 | 0 | F/b.jsonl | b.jsonl
          2: BAD {"a": (not JSON: expected a value at byte 5)
          3: 2 | 3 | F/b.jsonl | b.jsonl
          5: 3 | 5 | F/b.jsonl | b.jsonl
        2 F/c/d.jsonl
          0: 4 | 0 | F/c/d.jsonl | d.jsonl
        3 F/c/empty.jsonl
    "#]]
    .assert_eq(&folder.read(&columns, &[("format", "json")]));
    expect![[r#"
        0 F
          0: BAD nothing (not JSON: expected a value at byte 0)
          1: 9 | 1 | F/a.jsonl | a.jsonl
          2: 1 | 2 | F/b.jsonl | b.jsonl
          4: BAD {"a": (not JSON: expected a value at byte 5)
          5: 2 | 5 | F/b.jsonl | b.jsonl
          7: 3 | 7 | F/b.jsonl | b.jsonl
          8: 4 | 8 | F/c/d.jsonl | d.jsonl
    "#]]
    .assert_eq(&folder.read(&columns, &[("format", "json"), ("split.by", "all")]));
}

#[test]
fn patterns_choose_files_and_folders_name_partitions() {
    let folder = Folder::of(&[
        ("day=1/part=a%20b/x.jsonl", b"{\"a\":1}\n"),
        ("day=2/part=__DEFAULT_PARTITION__/x.jsonl", b"{\"a\":2}\n"),
        ("day=2/part=c/x.csv", b"{\"a\":3}\n"),
    ]);
    let pattern = format!("{}/day=*/*/x.jsonl", folder.path());
    let columns = [("part", DataType::Utf8), ("a", DataType::Int32), ("day", DataType::Int32)];
    let mut table = table(&columns, &[("path", &pattern), ("format", "json")]);
    table.partitioned_by = vec!["day".into(), "part".into()];
    expect![[r#"
        0 F/day=1/part=a%20b/x.jsonl
          0: a b | 1 | 1
        1 F/day=2/part=__DEFAULT_PARTITION__/x.jsonl
          0: NULL | 2 | 2
    "#]]
    .assert_eq(&folder.without(&read_all(&table)));
}

/// `rows` lines, some bad, some empty, of very different lengths.
fn many_lines(rows: u64) -> Vec<u8> {
    let mut text = String::new();
    for n in 0..rows {
        match n % 1009 {
            7 => text.push_str("{\"n\":oops}\n"),
            8 => text.push('\n'),
            9 => text.push_str(&format!("{{\"pad\":\"{}\",\"n\":{n}}}\n", "x".repeat(90_000))),
            _ => text.push_str(&format!("{{\"n\":{n},\"pad\":\"{}\"}}\n", n * n)),
        }
    }
    text.into_bytes()
}

/// The good ordinals that `many_lines` makes.
fn expected_lines(rows: u64) -> (Vec<i64>, usize) {
    let good = (0..rows).filter(|n| !matches!(n % 1009, 7 | 8)).map(|n| n as i64).collect();
    (good, (0..rows).filter(|n| n % 1009 == 7).count())
}

#[test]
fn many_units_come_out_in_order_through_a_small_queue() {
    let text = many_lines(300_000);
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&text).unwrap();
    let folder = Folder::of(&[("a.jsonl", &text), ("b.jsonl.gz", &packed.finish().unwrap())]);
    let columns = [("n", DataType::Int64), ("o@offset", DataType::Int64)];
    let table = table(&columns, &[("path", folder.path()), ("format", "json")]);
    let source = source(&table, &[]).unwrap();
    let splits = source.splits().unwrap();
    let queues: Vec<_> = splits.iter().map(|s| SplitQueue::bounded(s.clone(), 100_000)).collect();
    let handle = source.open(queues.clone()).unwrap();
    // Nobody wants the second: the first is read to its end by then.
    queues[0].want();
    for queue in &queues {
        let (mut ns, mut offsets, mut bad, mut next) = (Vec::new(), Vec::new(), 0, 0);
        queue.want();
        while !queue.is_finished() {
            let Some(chunk) = queue.pop(10_000) else {
                std::thread::yield_now();
                continue;
            };
            let column =
                |c: usize| chunk.rows.column(c).as_primitive::<arrow::datatypes::Int64Type>();
            ns.extend_from_slice(column(0).values());
            offsets.extend_from_slice(column(1).values());
            assert!(chunk.bad.iter().all(|b| b.offset >= next && b.offset < chunk.next_offset));
            bad += chunk.bad.len();
            next = chunk.next_offset;
        }
        let (expected, expected_bad) = expected_lines(300_000);
        assert_eq!(ns, expected, "{}", queue.split.name);
        assert_eq!(offsets, expected);
        assert_eq!((bad, next), (expected_bad, 300_000));
    }
    drop(handle);
}

#[test]
fn a_look_at_the_first_rows_finds_a_good_one_and_opens_nothing() {
    let mut text = b"bad\n".repeat(50_000);
    text.extend_from_slice(b"{\"a\":7}\n{\"a\":8}\n");
    let folder = Folder::of(&[("a.jsonl", &text), ("b.jsonl", b"bad\n")]);
    let columns = [("a", DataType::Int32)];
    let table = table(&columns, &[("path", folder.path()), ("format", "json")]);
    let source = source(&table, &[]).unwrap();
    let splits = source.splits().unwrap();
    let first = source.peek(&splits[0]).unwrap().unwrap();
    assert_eq!((first.len(), first.offsets.at(0)), (2, 50_000));
    assert!(source.peek(&splits[1]).unwrap().is_none());
}

#[test]
fn a_strict_import_says_where_it_stopped() {
    let folder = Folder::of(&[(
        "readings.jsonl",
        b"{\"m\":\"m-1\",\"kwh\":0.25}\n\n{\"m\":\"m-3\",\"kwh\":0.3.1}\n",
    )]);
    let columns = [("m", DataType::Utf8), ("kwh", DataType::Float64)];
    let strict = [("format", "json"), ("json.fail-on-error", "true")];
    expect![[r#"
        Fatal: F/readings.jsonl, line 3: not JSON: expected a comma or } at byte 20
          (table `t`)
        without 'json.fail-on-error' such lines are counted, and go to the
          'dead-letter.table' if there is one
    "#]]
    .assert_eq(&folder.refused("readings.jsonl", &columns, &strict));
    expect![[r#"
        Reconfigure: no such file: F/redings.jsonl (table `t`)
        beside it there is readings.jsonl
    "#]]
    .assert_eq(&folder.refused("redings.jsonl", &columns, &strict));
    expect![[r#"
        Reconfigure: no file fits F/*.parquet (table `t`)
        check 'path'
    "#]]
    .assert_eq(&folder.refused("*.parquet", &columns, &strict));
}

/// Ids, times and values in row groups of 100 rows; the ids of the second column as plain text.
fn parquet(rows: i32) -> Vec<u8> {
    let fields = vec![
        Field::new("id", DataType::Utf8, true),
        Field::new("plain", DataType::Utf8, true),
        Field::new("ts", DataType::Timestamp(TimeUnit::Microsecond, None), true),
        Field::new("n", DataType::Int32, true),
        Field::new("v", DataType::Float64, true),
    ];
    let text = || -> ArrayRef {
        Arc::new(StringArray::from_iter_values((0..rows).map(|n| format!("m{}", n % 7))))
    };
    let micros = (0..rows).map(|n| i64::from(n) * 1_000_001 - 500);
    let columns: Vec<ArrayRef> = vec![
        text(),
        text(),
        Arc::new(TimestampMicrosecondArray::from_iter_values(micros)),
        Arc::new(Int32Array::from_iter((0..rows).map(|n| (n % 5 != 4).then_some(n)))),
        Arc::new(Float64Array::from_iter_values((0..rows).map(|n| f64::from(n) / 4.0))),
    ];
    let batch = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap();
    write_parquet(&batch, 100, Some("plain"))
}

fn write_parquet(batch: &RecordBatch, group_rows: usize, plain: Option<&str>) -> Vec<u8> {
    let mut properties = WriterProperties::builder().set_max_row_group_row_count(Some(group_rows));
    if let Some(plain) = plain {
        properties = properties.set_column_dictionary_enabled(plain.into(), false);
    }
    let mut bytes = Vec::new();
    let mut writer =
        ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties.build())).unwrap();
    writer.write(batch).unwrap();
    writer.close().unwrap();
    bytes
}

#[test]
fn parquet_columns_take_their_declared_order_and_types() {
    let folder = Folder::of(&[("a.parquet", &parquet(6))]);
    let columns = [
        ("v", DataType::Float64),
        ("ts", ltz()),
        ("o@offset", DataType::Int64),
        ("n", DataType::Int64),
        ("id", DataType::Utf8),
    ];
    expect![[r#"
        0 F/a.parquet
          0: 0.0 | 1969-12-31T23:59:59.999Z | 0 | 0 | m0
          1: 0.25 | 1970-01-01T00:00:00.999Z | 1 | 1 | m1
          2: 0.5 | 1970-01-01T00:00:01.999Z | 2 | 2 | m2
          3: 0.75 | 1970-01-01T00:00:02.999Z | 3 | 3 | m3
          4: 1.0 | 1970-01-01T00:00:03.999Z | 4 | NULL | m4
          5: 1.25 | 1970-01-01T00:00:04.999Z | 5 | 5 | m5
    "#]]
    .assert_eq(&folder.read(&columns, &[("format", "parquet")]));
    expect![[r#"
        0 F/a.parquet
          0: 0
          1: 1
          2: 2
          3: 3
          4: BAD n=, v=1.0 (NULL, but the column is NOT NULL, column n)
          5: 5
    "#]]
    .assert_eq(&{
        let strict = [("n!", DataType::Int32), ("v", DataType::Float64)];
        let both = folder.read(&strict, &[("format", "parquet")]);
        both.lines().map(|l| l.split(" | ").next().unwrap().to_owned() + "\n").collect::<String>()
    });
}

#[test]
fn text_stays_a_dictionary_where_the_file_has_it_so() {
    let folder = Folder::of(&[("a.parquet", &parquet(250))]);
    let columns = [("plain", DataType::Utf8), ("id", DataType::Utf8)];
    let table = table(&columns, &[("path", folder.path()), ("format", "parquet")]);
    let source = source(&table, &[]).unwrap();
    let chunk = source.peek(&source.splits().unwrap()[0]).unwrap().unwrap();
    assert_eq!(chunk.rows.column(0).data_type(), &DataType::Utf8);
    let dictionary: &DictionaryArray<Int32Type> = chunk.rows.column(1).as_dictionary();
    assert_eq!((chunk.len(), dictionary.values().len()), (100, 7));
}

#[test]
fn row_groups_that_cannot_matter_are_passed_over_and_counted() {
    let folder = Folder::of(&[("a.parquet", &parquet(1000))]);
    let columns = [("ts", MS), ("n", DataType::Int32)];
    let offsets = |column: &str, operator: &str, literal: &str| {
        let mut table = table(&columns, &[("path", folder.path()), ("format", "parquet")]);
        table.pushed = vec![Pushed {
            column: column.into(),
            operator: operator.into(),
            literal: literal.into(),
        }];
        let all = read_all(&table);
        let ordinals = all.lines().skip(1).map(|l| l.trim().split(':').next().unwrap());
        let ordinals: Vec<u64> = ordinals.map(|o| o.parse().unwrap()).collect();
        assert!(ordinals.windows(2).all(|w| w[0] < w[1]));
        let mut groups: Vec<u64> = ordinals.iter().map(|o| o / 100).collect();
        groups.dedup();
        assert_eq!(ordinals.len(), groups.len() * 100);
        groups
    };
    assert_eq!(offsets("n", ">=", "750"), [7, 8, 9]);
    assert_eq!(offsets("n", "<", "100"), [0]);
    assert_eq!(offsets("n", "<=", "100"), [0, 1]);
    assert_eq!(offsets("n", "=", "333"), [3]);
    assert_eq!(offsets("n", ">", "898"), [9]);
    assert_eq!(offsets("n", ">", "897"), [8, 9]);
    assert_eq!(offsets("ts", "<", "99999"), [0]);
    assert_eq!(offsets("ts", ">", "900000"), [9]);
    assert_eq!(offsets("n", "!=", "1").len(), 10);
}

#[test]
fn large_row_groups_are_cut_into_units() {
    let rows = 1_300_000;
    let n: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
    let id = (0..rows).map(|n| format!("meter-{}", n % 1000));
    let id: ArrayRef = Arc::new(StringArray::from_iter_values(id));
    let batch = RecordBatch::try_from_iter([("n", n), ("id", id)]).unwrap();
    let folder = Folder::of(&[("a.parquet", &write_parquet(&batch, 1_000_000, None))]);
    let columns = [("id", DataType::Utf8), ("n", DataType::Int64)];
    let table = table(&columns, &[("path", folder.path()), ("format", "parquet")]);
    let source = source(&table, &[]).unwrap();
    let split = source.splits().unwrap().remove(0);
    let queue = SplitQueue::bounded(split, 1 << 20);
    let handle = source.open(vec![queue.clone()]).unwrap();
    queue.want();
    let (mut next, mut chunks) = (0_i64, 0);
    while !queue.is_finished() {
        assert!(queue.failure().is_none(), "{:?}", queue.failure());
        let Some(chunk) = queue.pop(usize::MAX) else {
            std::thread::yield_now();
            continue;
        };
        assert_eq!(chunk.offsets.at(0), next as u64);
        let ns = chunk.rows.column(1).as_primitive::<arrow::datatypes::Int64Type>();
        assert!(ns.values().iter().copied().eq(next..next + ns.len() as i64));
        let id = arrow::util::display::array_value_to_string(chunk.rows.column(0), 0).unwrap();
        assert_eq!(id, format!("meter-{}", next % 1000));
        next += ns.len() as i64;
        chunks += 1;
    }
    assert_eq!(next, rows);
    assert!(chunks >= rows / 16_384);
    drop(handle);
}

#[test]
fn what_lies_before_the_start_is_not_read() {
    let whole = parquet(1000);
    // The first column's first page: whoever looks into it fails.
    let mut damaged = whole.clone();
    damaged[4..60].fill(0x5A);
    let columns = [("id", DataType::Utf8)];
    for (split_by, files) in [
        ("file", vec![("a.parquet", damaged.as_slice())]),
        ("all", vec![("a.parquet", &whole[..]), ("b.parquet", &damaged[..])]),
    ] {
        let folder = Folder::of(&files);
        let options = [("path", folder.path()), ("format", "parquet"), ("split.by", split_by)];
        let table = table(&columns, &options);
        let source = source(&table, &[]).unwrap();
        let read = |start: u64| -> Result<String, ConnectorError> {
            let split = source.splits()?.remove(0);
            let queue = SplitQueue::from(split, QUEUE_BYTES_MAX, Start::Offset(start));
            let mut handle = source.open(vec![queue.clone()])?;
            queue.want();
            let mut out = String::new();
            drain(&queue, handle.as_mut(), &mut out).map(|()| out)
        };
        let (before, rows) = (1000 * (files.len() as u64 - 1), 1000 * files.len() as u64);
        for start in [before + 100, before + 107, before + 333, before + 999] {
            let found = read(start).unwrap();
            let ordinals = found.lines().map(|l| l.trim().split(':').next().unwrap());
            assert!(
                ordinals.map(|o| o.parse::<u64>().unwrap()).eq(start..rows),
                "{split_by} {start}"
            );
        }
        assert_eq!(read(rows).unwrap(), "");
        assert!(read(before + 99).is_err());
    }
}

#[test]
fn what_is_no_parquet_or_another_table_is_refused_by_name() {
    let whole = parquet(300);
    let mut damaged = whole.clone();
    damaged[200..1200].fill(0x5A);
    let folder = Folder::of(&[
        ("a.parquet", &whole),
        ("text.parquet", b"meter_id,kwh,ts\nm-1,21.5,2024-01-10 00:00:00\n"),
        ("cut.parquet", &whole[..whole.len() / 2]),
        ("empty.parquet", b""),
        ("damaged.parquet", &damaged),
    ]);
    let format = [("format", "parquet")];
    let value = [("v", DataType::Float64)];
    let all = [
        folder.refused("text.parquet", &value, &format),
        folder.refused("cut.parquet", &value, &format),
        folder.refused("empty.parquet", &value, &format),
        folder.refused("a.parquet", &[("vv", DataType::Float64)], &format),
        folder.refused("a.parquet", &[("v", DataType::Int64)], &format),
        folder.refused("a.parquet", &[("n", MS)], &format),
    ];
    expect![[r#"
        Reconfigure: F/text.parquet is not a Parquet file: it does not end with the
          magic bytes PAR1 (table `t`)
        check 'path' and 'format'

        Reconfigure: F/cut.parquet is truncated: it begins as a Parquet file, but has no
          footer (table `t`)
        check 'path' and 'format'

        Reconfigure: F/empty.parquet is not a Parquet file: it is empty (table `t`)
        check 'path' and 'format'

        Reconfigure: F/a.parquet has no column `vv` (table `t`)
        did you mean `v`?

        Reconfigure: column `v` of F/a.parquet is DOUBLE, but table `t` declares BIGINT
        declare `v` as DOUBLE

        Reconfigure: column `n` of F/a.parquet is INT, but table `t` declares
          TIMESTAMP(3)
        declare `n` as INT
    "#]]
    .assert_eq(&all.join("\n"));
    let damaged = folder.refused("damaged.parquet", &[("plain", DataType::Utf8)], &format);
    assert!(damaged.starts_with("Fatal: cannot read F/damaged.parquet: row group "), "{damaged}");
}

#[test]
fn an_archive_is_replayed_by_its_columns() {
    let i64s = |values: &[i64]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
    let batch = RecordBatch::try_from_iter([
        ("split", Arc::new(Int32Array::from(vec![2, 0, 2, 5])) as ArrayRef),
        ("offset", i64s(&[10, 3, 11, 0])),
        ("arrival", i64s(&[1000, 1001, 1002, 1003])),
        ("v", Arc::new(Float64Array::from(vec![0.5, 1.5, 2.5, 3.5])) as ArrayRef),
    ]);
    let parquet = write_parquet(&batch.unwrap(), 3, None);
    let lines = b"{\"split\":2,\"offset\":10,\"v\":0.5,\"arrival\":1000}\noops\n\
        {\"split\":\"0\",\"offset\":3,\"v\":1.5,\"arrival\":\"1970-01-01T00:00:01.001Z\"}\n";
    let by_columns = [
        ("split.by", "columns"),
        ("split.column", "split"),
        ("offset.column", "offset"),
        ("arrival.column", "arrival"),
    ];
    let read = |name: &str, bytes: &[u8], format: &str, columns: &[(&str, DataType)]| {
        let folder = Folder::of(&[(name, bytes)]);
        let mut options = by_columns.to_vec();
        options.push(("format", format));
        let path = folder.path().to_owned();
        options.push(("path", &path));
        let split = source(&table(columns, &options), &[]).unwrap().splits().unwrap().remove(0);
        assert!(!split.lazy);
        format!("{:?}\n{}", split.carries, folder.without(&read_all(&table(columns, &options))))
    };
    let metadata = [
        ("s@split", DataType::Int64),
        ("o@offset", DataType::Int64),
        ("a@arrival", ltz()),
        ("v", DataType::Float64),
    ];
    expect![[r#"
        [0, 2, 5]
        0 F
          10: 2 | 10 | 1970-01-01T00:00:01Z | 0.5 of 2 came 1000
          3: 0 | 3 | 1970-01-01T00:00:01.001Z | 1.5 of 0 came 1001
          11: 2 | 11 | 1970-01-01T00:00:01.002Z | 2.5 of 2 came 1002
          0: 5 | 0 | 1970-01-01T00:00:01.003Z | 3.5 of 5 came 1003
    "#]]
    .assert_eq(&read("a.parquet", &parquet, "parquet", &metadata));
    expect![[r#"
        [0, 2]
        0 F
          10: 2 | 10 | 1970-01-01T00:00:01Z | 0.5 of 2 came 1000
          3: 0 | 3 | 1970-01-01T00:00:01.001Z | 1.5 of 0 came 1001
          1: BAD oops (not JSON: expected a value at byte 0)
    "#]]
    .assert_eq(&read("a.jsonl", lines, "json", &metadata));
    let declared = [("split", DataType::Int32), ("s@split", DataType::Utf8)];
    let shown = read("a.parquet", &parquet, "parquet", &declared);
    assert!(shown.contains("10: 2 | 2 of 2 came 1000"), "{shown}");
}

#[test]
fn csv_finds_columns_by_its_header_and_keeps_what_does_not_fit() {
    let text = b"id,name,since,rate\r\n1,\"a, \"\"b\"\"\nc\",2026-03-01T00:00:00Z,1.50\r\n\
        x,b,2026-03-01T00:00:00Z,2\r\n3,,,\r\n4,short\r\n";
    let folder = Folder::of(&[("customers.csv", text)]);
    let columns = [
        ("rate", DataType::Decimal128(6, 2)),
        ("since", ltz()),
        ("id", DataType::Int32),
        ("name", DataType::Utf8),
    ];
    expect![[r#"
        0 F/customers.csv
          0: 1.50 | 2026-03-01T00:00:00Z | 1 | a, "b"
        c
          1: BAD x,b,2026-03-01T00:00:00Z,2 (expected Int32, column id)
          2: NULL | NULL | 3 | NULL
          3: BAD 4,short (missing, column rate)
    "#]]
    .assert_eq(&folder.read(&columns, &[("format", "csv")]));
    let by_place = [("a", DataType::Utf8), ("b", DataType::Utf8)];
    let folder = Folder::of(&[("a.csv", b"1;x\n2;y\n")]);
    let options = [("format", "csv"), ("csv.header", "false"), ("csv.field-delimiter", ";")];
    expect![[r#"
        0 F/a.csv
          0: 1 | x
          1: 2 | y
    "#]]
    .assert_eq(&folder.read(&by_place, &options));
}

#[test]
fn options_that_make_no_sense_are_refused_together() {
    let columns =
        [("a", DataType::Int32), ("k@key", DataType::Binary), ("s@split", DataType::Int64)];
    let options = [
        ("path", "gs://bucket/x"),
        ("format", "json"),
        ("split.column", "a"),
        ("csv.field-delimiter", ""),
    ];
    let errors = source(&table(&columns, &options), &[]).err().unwrap();
    let all: Vec<String> =
        errors.into_iter().map(|e| format!("{}\n  {:?}\n", e.message, e.hint)).collect();
    expect![[r#"
        'split.column' of table `t` has no effect without 'split.by' = 'columns'
          None
        'csv.field-delimiter' of table `t` must be one ASCII character
          None
        'path' of table `t` cannot be used: there is no storage called gs://
          Some("write a local path, s3://bucket/prefix or memory://name/prefix")
        table `t` has a column `k` from the metadata 'key', but filesystem has split,
          offset, arrival, file.path, file.name
          None
        table `t` has a column `s` from the metadata 'split', which must be STRING: it
          is the file's path
          None
    "#]]
    .assert_eq(&folded(&all.concat()));
}
