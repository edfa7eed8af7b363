//! Options and columns that make no sense are refused before anything is touched; rows as messages.
#![allow(clippy::unwrap_used)]

use super::*;
use arrow::array::RecordBatch;
use arrow::array::{ArrayRef, Int64Array, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, TimeUnit};
use columns::Goal;
use expect_test::expect;
use weir_engine::connector::ColumnSpec;

use crate::group::Group;

type Column<'a> = (&'a str, DataType, Option<&'a str>);

fn table(
    columns: &[Column<'_>],
    connector: &str,
    key: &[&str],
    options: &[(&str, &str)],
) -> TableSpec {
    let column = |(name, data_type, key): &Column<'_>| ColumnSpec {
        name: (*name).into(),
        data_type: data_type.clone(),
        nullable: true,
        metadata: key.map(str::to_owned),
    };
    let mut all = vec![("connector", connector), ("topic", "a"), AT];
    all.retain(|(key, _)| options.iter().all(|(other, _)| other != key));
    all.extend(options);
    TableSpec {
        name: "t".into(),
        columns: columns.iter().map(column).collect(),
        options: all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        primary_key: key.iter().map(|k| (*k).to_owned()).collect(),
        partitioned_by: vec![],
        event_time: None,
        keyed: vec![],
        pushed: vec![],
    }
}

fn refused(table: &TableSpec) -> String {
    let made = match table.option("connector") {
        Some("kafka") => sink(table, &[]),
        _ => upsert_sink(table),
    };
    let errors = made.err().unwrap_or_default();
    let shown =
        errors.iter().map(|e| format!("{}\n  {}\n", e.message, e.hint.as_deref().unwrap_or("-")));
    shown.collect()
}

const K: Column<'_> = ("k", DataType::Utf8, None);
const V: Column<'_> = ("v", DataType::Int64, None);
const TS: Column<'_> = ("ts", DataType::Timestamp(TimeUnit::Microsecond, None), Some("timestamp"));
const AT: (&str, &str) = ("properties.bootstrap.servers", "127.0.0.1:9");
const JSON: (&str, &str) = ("format", "json");
const KEYED: (&str, &str) = ("key.format", "json");

#[test]
fn what_is_missing_and_misspelt_is_said_at_once() {
    expect![[r#"
        connector 'kafka' of table `t` needs the option 'format'
          add for example 'format' = 'json'
        connector 'kafka' of table `t` needs the option 'key.format'
          add for example 'key.format' = 'json'
        table `t` has a PRIMARY KEY, but connector 'kafka' only appends
          use the connector 'upsert-kafka', or declare no PRIMARY KEY
        'key.fields' of table `t` names `kk`, which is no column to be written
          did you mean `k`?
    "#]]
    .assert_eq(&refused(&table(&[K, V], "kafka", &["k"], &[("key.fields", "kk")])));
    expect![[r#"
        'sink.delivery-guarantee' of table `t` must be exactly-once | at-least-once, not 'exactly_once'; did you mean 'exactly-once'?
          -
        'sink.partitoner' of table `t` is no option of connector 'kafka'; did you mean 'sink.partitioner'?
          -
    "#]]
    .assert_eq(&refused(&table(
        &[V],
        "kafka",
        &[],
        &[JSON, ("sink.partitoner", "fixed"), ("sink.delivery-guarantee", "exactly_once")],
    )));
    expect![[r#"
        connector 'upsert-kafka' of table `t` needs the option 'value.format'
          add for example 'value.format' = 'json'
        connector 'upsert-kafka' of table `t` needs the option 'key.format'
          add for example 'key.format' = 'json'
        table `t` needs a PRIMARY KEY for connector 'upsert-kafka'
          add for example PRIMARY KEY (id) NOT ENFORCED
        'sink.partitioner' of table `t` cannot be 'round-robin': messages of one key need one partition
          -
    "#]]
    .assert_eq(&refused(&table(
        &[K, V],
        "upsert-kafka",
        &[],
        &[("sink.partitioner", "round-robin")],
    )));
}

#[test]
fn properties_in_javas_names_pass_and_the_sinks_own_do_not() {
    let options = [
        JSON,
        ("properties.acks", "all"),
        ("properties.max.request.size", "2000000"),
        ("properties.delivery.timeout.ms", "30000"),
        ("properties.key.serializer", "org.apache.kafka.common.serialization.StringSerializer"),
        ("properties.transactional.id", "x"),
        ("properties.sasl.pasword", "geheim"),
    ];
    expect![[r#"
        'properties.transactional.id' of table `t` cannot be set
          the sink makes it; 'sink.transactional-id-prefix' is its beginning
        'properties.sasl.pasword' of table `t` is no property of librdkafka
          librdkafka's CONFIGURATION.md lists all properties
    "#]]
    .assert_eq(&refused(&table(&[V], "kafka", &[], &options)));
    let plan = options::read(&table(&[V], "kafka", &[], &options[..5]), Kind::Append, &[]).unwrap();
    assert_eq!(plan.client.get("message.max.bytes"), Some("2000000"));
    assert_eq!(plan.client.get("message.timeout.ms"), Some("30000"));
}

#[test]
fn only_the_timestamp_can_be_written_as_metadata() {
    let columns =
        [V, ("p", DataType::Int32, Some("partition")), ("at", DataType::Int64, Some("timestamp"))];
    expect![[r#"
        table `t` cannot write METADATA 'partition' (column `p`)
          declare `p` METADATA FROM 'partition' VIRTUAL
        table `t` has METADATA 'timestamp' as `at`, which must be TIMESTAMP(3)
          -
    "#]]
    .assert_eq(&refused(&table(&columns, "kafka", &[], &[JSON])));
    let only_key = [JSON, KEYED, ("key.fields", "v"), ("value.fields-include", "EXCEPT_KEY")];
    expect![[r#"
        table `t` leaves no column for a message's value
          -
    "#]]
    .assert_eq(&refused(&table(&[V], "kafka", &[], &only_key)));
}

/// Rows `(epoch, k, v, ts, diff)` as messages: `key value @timestamp goal`.
fn messages(spec: &TableSpec, kind: Kind, rows: &[(u64, &str, i64, Option<i64>, i64)]) -> String {
    let plan = options::read(spec, kind, &[]).unwrap();
    let mut group = Group::keyed_by(plan.columns.primary.clone());
    for &(epoch, key, value, time, diff) in rows {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("k", Arc::new(StringArray::from(vec![key]))),
            ("v", Arc::new(Int64Array::from(vec![value]))),
            ("ts", Arc::new(TimestampMicrosecondArray::from(vec![time]))),
        ];
        let batch = RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, column)| (name, column, true)),
        );
        group.push(epoch, batch.unwrap(), (kind == Kind::Upsert).then(|| vec![diff].into()));
    }
    let made = plan.columns.messages(&group).unwrap();
    assert_eq!(made.rows, rows.len() as u64);
    let text = |place: &Option<std::ops::Range<usize>>| match place {
        Some(place) => String::from_utf8(made.bytes[place.clone()].to_vec()).unwrap(),
        None => "-".to_owned(),
    };
    let line = |m: &columns::Message| {
        let time = m.timestamp.map_or(String::new(), |ms| format!(" @{ms}"));
        let goal = match m.goal {
            Goal::Key => "key".to_owned(),
            Goal::Shard => "shard".to_owned(),
            Goal::Turn(turn) => turn.to_string(),
        };
        format!("{} {}{time} {goal}\n", text(&m.key), text(&m.value))
    };
    made.list.iter().map(line).collect()
}

#[test]
fn rows_that_append_are_messages_in_their_order() {
    let rows = [(7, "a", 1, Some(5_000), 1), (7, "b", 2, None, 1), (8, "a", 3, Some(-1), 1)];
    expect![[r#"
        - {"k":"a","v":1} @5 0
        - {"k":"b","v":2} 0
        - {"k":"a","v":3} 0
    "#]]
    .assert_eq(&messages(&table(&[K, V, TS], "kafka", &[], &[JSON]), Kind::Append, &rows));
    let keyed = [JSON, KEYED, ("key.fields", "v;k"), ("sink.partitioner", "fixed")];
    expect![[r#"
        {"v":1,"k":"a"} {"k":"a","v":1} @5 shard
        {"v":2,"k":"b"} {"k":"b","v":2} shard
        {"v":3,"k":"a"} {"k":"a","v":3} shard
    "#]]
    .assert_eq(&messages(&table(&[K, V, TS], "kafka", &[], &keyed), Kind::Append, &rows));
}

#[test]
fn of_a_key_the_last_state_is_left_and_none_is_a_tombstone() {
    let rows = [
        (1, "a", 1, None, 1),
        (1, "b", 2, None, 1),
        (1, "c", 3, None, 1),
        (2, "a", 1, None, -1),
        (2, "a", 9, None, 1),
        (3, "b", 2, None, -1),
    ];
    let options = [KEYED, ("value.format", "json"), ("value.fields-include", "EXCEPT_KEY")];
    expect![[r#"
        {"k":"c"} {"v":3} key
        {"k":"a"} {"v":9} key
        {"k":"b"} - key
    "#]]
    .assert_eq(&messages(
        &table(&[K, V, TS], "upsert-kafka", &["k"], &options),
        Kind::Upsert,
        &rows,
    ));
}
