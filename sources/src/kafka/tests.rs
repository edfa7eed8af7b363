//! Options and columns that make no sense are refused before anything is touched.
#![allow(clippy::unwrap_used)]

use super::*;
use expect_test::expect;
use weir_engine::connector::ColumnSpec;

fn refused(columns: &[(&str, DataType, Option<&str>)], options: &[(&str, &str)]) -> String {
    let column = |(name, data_type, key): &(&str, DataType, Option<&str>)| ColumnSpec {
        name: (*name).into(),
        data_type: data_type.clone(),
        nullable: true,
        metadata: key.map(str::to_owned),
    };
    let mut all = vec![("connector", "kafka")];
    all.extend(options);
    let table = TableSpec {
        name: "t".into(),
        columns: columns.iter().map(column).collect(),
        options: all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        primary_key: vec![],
        partitioned_by: vec![],
        event_time: None,
        keyed: vec![],
        pushed: vec![],
    };
    let errors = source(&table, &[]).err().unwrap_or_default();
    let shown =
        errors.iter().map(|e| format!("{}\n  {}\n", e.message, e.hint.as_deref().unwrap_or("-")));
    shown.collect()
}

const VALUE: (&str, DataType, Option<&str>) = ("v", DataType::Int32, None);
const AT: (&str, &str) = ("properties.bootstrap.servers", "127.0.0.1:9");

#[test]
fn what_is_missing_and_misspelt_is_said_at_once() {
    expect![[r#"
        connector 'kafka' of table `t` needs the option 'topic'
          add for example 'topic' = 'gateway_events'
        connector 'kafka' of table `t` needs the option 'properties.bootstrap.servers'
          add for example 'properties.bootstrap.servers' = '127.0.0.1:9092'
        'scan.startup.mod' of table `t` is no option of connector 'kafka'; did you mean 'scan.startup.mode'?
          -
    "#]]
    .assert_eq(&refused(&[VALUE], &[("scan.startup.mod", "earliest-offset")]));
    expect![[r#"
        connector 'kafka' of table `t` needs the option 'format'
          add for example 'format' = 'json'
        'scan.startup.mode' of table `t` is 'group-offsets', which needs 'properties.group.id'
          add for example 'properties.group.id' = 'weir'
    "#]]
    .assert_eq(&refused(&[VALUE], &[AT, ("topic", "a"), ("scan.startup.mode", "group-offsets")]));
    expect![[r#"
        'topic' of table `t` must be one topic; declare a table for each
          -
        'scan.startup.mode' of table `t` is 'timestamp', which needs 'scan.startup.timestamp-millis'
          add for example 'scan.startup.timestamp-millis' = '1767225600000'
    "#]]
    .assert_eq(&refused(
        &[VALUE],
        &[AT, ("topic", "a;b"), ("format", "json"), ("scan.startup.mode", "timestamp")],
    ));
}

#[test]
fn properties_are_checked_and_their_values_never_shown() {
    let options = [
        AT,
        ("topic", "a"),
        ("value.format", "json"),
        ("properties.sasl.pasword", "geheim"),
        ("properties.security.protocol", "geheim"),
        ("properties.ssl.truststore.location", "geheim.jks"),
        ("properties.sasl.jaas.config", "geheim"),
    ];
    expect![[r#"
        'properties.sasl.jaas.config' of table `t` names no user and password
          use 'properties.sasl.username' and '….password'
        'properties.sasl.pasword' of table `t` is no property of librdkafka
          librdkafka's CONFIGURATION.md lists all properties
        'properties.security.protocol' of table `t` has a value that librdkafka does not accept
          librdkafka's CONFIGURATION.md lists all properties
        'properties.ssl.truststore.location' of table `t` has a value that librdkafka does not accept
          export the trust store as PEM and name it in 'properties.ssl.ca.location'
    "#]]
    .assert_eq(&refused(&[VALUE], &options));
}

#[test]
fn metadata_columns_have_their_types() {
    let columns = [
        ("p", DataType::Float64, Some("partition")),
        ("o", DataType::Int32, Some("offset")),
        ("h", DataType::Utf8, Some("headers")),
        ("x", DataType::Utf8, Some("heders")),
    ];
    let all = refused(&columns, &[AT, ("topic", "a"), ("format", "json")]);
    let lines: Vec<&str> = all.lines().filter(|l| l.starts_with("table")).collect();
    let [partition, offset, headers, unknown] = lines[..] else { panic!("{all}") };
    assert!(partition.ends_with("which must be INT or BIGINT"), "{partition}");
    assert!(offset.ends_with("which must be BIGINT"), "{offset}");
    assert!(headers.ends_with("which must be MAP<STRING, BYTES>"), "{headers}");
    assert!(unknown.ends_with("did you mean 'headers'?"), "{unknown}");
}
