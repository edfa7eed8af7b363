//! The `filesystem` source on a real S3 server: `WEIR_TEST_S3` and its companions name it.
#![allow(clippy::unwrap_used, missing_docs)]

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use parquet::arrow::ArrowWriter;
use parquet::file::properties::WriterProperties;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weir_connect::store::{PutMode, Store, StoreOptions};
use weir_engine::connector::{ColumnSpec, ConnectorError, TableSpec};
use weir_engine::source::{QUEUE_BYTES_MAX, SplitQueue};

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: cargo xtask services up"))
}

fn table(path: &str, format: &str) -> TableSpec {
    let column = |name: &str, data_type| ColumnSpec {
        name: name.into(),
        data_type,
        nullable: true,
        metadata: None,
    };
    let mut options = vec![
        ("connector".to_owned(), "filesystem".to_owned()),
        ("path".to_owned(), path.to_owned()),
        ("format".to_owned(), format.to_owned()),
    ];
    let places = [("endpoint", ""), ("access-key", "_KEY"), ("secret-key", "_SECRET")];
    options.extend(
        places.map(|(key, name)| (format!("s3.{key}"), variable(&format!("WEIR_TEST_S3{name}")))),
    );
    TableSpec {
        name: "t".into(),
        columns: vec![column("n", DataType::Int64), column("id", DataType::Utf8)],
        options: options.into_iter().collect(),
        primary_key: vec![],
        partitioned_by: vec![],
        event_time: None,
        keyed: vec![],
        pushed: vec![],
    }
}

/// Names of the splits, and the numbers in each.
fn read(table: &TableSpec) -> Result<Vec<(String, Vec<i64>)>, ConnectorError> {
    let source = weir_sources::filesystem::source(table, &[]).unwrap();
    let splits = source.splits()?;
    let queues: Vec<_> =
        splits.into_iter().map(|s| SplitQueue::bounded(s, QUEUE_BYTES_MAX)).collect();
    let handle = source.open(queues.clone())?;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut all = Vec::new();
    for queue in &queues {
        queue.want();
        let mut numbers = Vec::new();
        while !queue.is_finished() {
            assert!(Instant::now() < deadline, "{queue:?} does not end");
            if let Some(error) = queue.failure() {
                return Err(error);
            }
            match queue.pop(usize::MAX) {
                Some(chunk) => {
                    let column = chunk.rows.column(0).as_primitive::<Int64Type>();
                    numbers.extend_from_slice(column.values());
                }
                None => std::thread::yield_now(),
            }
        }
        all.push((queue.split.name.clone(), numbers));
    }
    drop(handle);
    Ok(all)
}

#[test]
fn json_and_parquet_are_read_from_a_bucket() {
    const ROWS: i64 = 200_000;
    let bucket = variable("WEIR_TEST_S3_BUCKET");
    let url = format!("s3://{bucket}/source-{}", std::process::id());
    let store = Store::open(&url, &StoreOptions::of(&table(&url, "json")).unwrap()).unwrap();
    let mut lines = String::new();
    for n in 0..ROWS {
        writeln!(lines, "{{\"id\":\"meter-{}\",\"n\":{n}}}", n % 100).unwrap();
    }
    store.put("json/a.jsonl", lines, PutMode::Replace).unwrap();
    let n: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS));
    let ids = (0..ROWS).map(|n| format!("meter-{}", n % 100));
    let id: ArrayRef = Arc::new(StringArray::from_iter_values(ids));
    let batch = RecordBatch::try_from_iter([("id", id), ("n", n)]).unwrap();
    let properties = WriterProperties::builder().set_max_row_group_row_count(Some(60_000));
    let mut draft = store.draft("a").unwrap();
    let mut writer =
        ArrowWriter::try_new(&mut draft, batch.schema(), Some(properties.build())).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
    draft.publish(&store, "parquet/day=1/a.parquet").unwrap();

    let numbers: Vec<i64> = (0..ROWS).collect();
    let json = read(&table(&format!("{url}/json"), "json")).unwrap();
    assert!(json == [(format!("{url}/json/a.jsonl"), numbers.clone())]);
    let parquet = read(&table(&format!("{url}/parquet/*/*.parquet"), "parquet")).unwrap();
    assert!(parquet == [(format!("{url}/parquet/day=1/a.parquet"), numbers)]);

    let nothing = read(&table(&format!("{url}/nothing"), "json")).unwrap_err();
    assert_eq!(nothing.message, format!("no such object: {url}/nothing (table `t`)"));
}
