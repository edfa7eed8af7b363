//! The decoder against the project's cases, and the laws of decoder and encoder.

mod cases;
mod laws;

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};

use super::{JsonDecoder, JsonOptions, Pushed, Reason, TimestampStandard, UnsupportedType};

fn schema(fields: Vec<Field>) -> SchemaRef {
    Arc::new(Schema::new(fields))
}

fn column(name: &str, data_type: DataType) -> Field {
    Field::new(name, data_type, true)
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(column("item", item)))
}

fn row(fields: Vec<Field>) -> DataType {
    DataType::Struct(Fields::from(fields))
}

fn map(values: DataType) -> DataType {
    let pair = vec![Field::new("key", DataType::Utf8, false), column("value", values)];
    DataType::Map(Arc::new(Field::new("entries", row(pair), false)), false)
}

fn decoder(fields: Vec<Field>) -> JsonDecoder {
    JsonDecoder::new(schema(fields), JsonOptions::default()).expect("types that JSON has")
}

#[test]
fn errors_say_where_and_what() {
    let device = row(vec![column("rssi", DataType::Int32)]);
    let mut decoder = decoder(vec![
        Field::new("id", DataType::Utf8, false),
        column("kwh", DataType::Float64),
        column("device", device),
    ]);
    let mut check = |message: &str, expected: &str| {
        let error = decoder.push(message.as_bytes()).expect_err(message);
        assert_eq!(error.to_string(), expected, "{message}");
    };
    check(r#"{"id":"a","kwh":true}"#, "expected a number (DOUBLE) at byte 16, column kwh");
    check(
        r#"{"id":"a","device":{"rssi":2147483648}}"#,
        "expected a number from -2147483648 to 2147483647 (INT) at byte 27, column device.rssi",
    );
    check(r#"{"id":"a","device":[]}"#, "expected an object (ROW) at byte 19, column device");
    check(r#"{"id":null}"#, "NULL, but the column is NOT NULL at byte 6, column id");
    check(r#"{}"#, "NULL, but the column is NOT NULL at byte 0, column id");
    check(r#"{"id":"a""#, "not JSON: expected a comma or } at byte 9");
    check(r#"{"id":"a"}x"#, "not JSON: expected nothing after the object at byte 10");
    check("[]", "expected an object as the message at byte 0");
    check(r#"{"id":"\ud800"}"#, "not UTF-8: half a surrogate pair at byte 7");
    assert_eq!(decoder.rows(), 0);
}

#[test]
fn a_missing_field_fails_where_it_is_told_to() {
    let fields =
        vec![column("a", DataType::Int32), column("r", row(vec![column("p", DataType::Int8)]))];
    let options = JsonOptions { fail_on_missing: true, ..JsonOptions::default() };
    let mut decoder = JsonDecoder::new(schema(fields), options).expect("types that JSON has");
    assert_eq!(decoder.push(br#"{"r":{"p":1},"a":1}"#), Ok(Pushed::Row));
    assert_eq!(decoder.push(br#"{"r":null,"a":null}"#), Ok(Pushed::Row));
    let error = decoder.push(br#"{"a":1}"#).expect_err("r is missing");
    assert_eq!((error.reason, error.column.as_deref()), (Reason::Missing, Some("r")));
    let error = decoder.push(br#"{"r":{},"a":1}"#).expect_err("r.p is missing");
    assert_eq!((error.reason, error.column.as_deref()), (Reason::Missing, Some("r.p")));
    assert_eq!(decoder.finish().num_rows(), 2);
}

#[test]
fn types_that_json_has_no_form_for_are_refused() {
    let zoned = DataType::Timestamp(TimeUnit::Millisecond, Some("Europe/Berlin".into()));
    let int_keys = vec![Field::new("key", DataType::Int32, false), column("value", DataType::Utf8)];
    let int_map = DataType::Map(Arc::new(Field::new("entries", row(int_keys), false)), false);
    for data_type in [DataType::UInt8, zoned, int_map, row(vec![]), DataType::Decimal128(5, -1)] {
        let fields = vec![column("outer", list(data_type.clone()))];
        let refused = JsonDecoder::new(schema(fields), JsonOptions::default()).err();
        let expected = UnsupportedType::Type { column: "outer".into(), data_type };
        assert_eq!(refused, Some(expected));
    }
    let twice = vec![column("a", DataType::Int8), column("a", DataType::Int8)];
    let refused = JsonDecoder::new(schema(twice), JsonOptions::default()).err();
    assert_eq!(refused, Some(UnsupportedType::Repeated { column: "a".into() }));
}

#[test]
fn no_columns_still_count_rows_and_check_messages() {
    let mut decoder = decoder(vec![]);
    for message in ["{}", r#"{"a":1}"#, r#"{"a":2}"#, "", r#"{"a":2]"#] {
        let _ = decoder.push(message.as_bytes());
    }
    assert_eq!((decoder.rows(), decoder.finish().num_rows(), decoder.rows()), (3, 3, 0));
}

#[test]
fn nesting_has_one_limit_on_both_ways() {
    let deep = |levels: usize| {
        // The message's own object is a level, and so is the object around the array.
        let (open, close) = ("[".repeat(levels - 2), "]".repeat(levels - 2));
        format!(r#"{{"a":1,"x":{{"y":{open}{close}}}}}"#)
    };
    let mut decoder = decoder(vec![column("a", DataType::Int32)]);
    for _ in 0..3 {
        assert_eq!(decoder.push(deep(3).as_bytes()), Ok(Pushed::Row));
        assert_eq!(decoder.push(deep(512).as_bytes()), Ok(Pushed::Row));
        let error = decoder.push(deep(513).as_bytes()).expect_err("too deep");
        assert_eq!(error.reason, Reason::TooDeep);
    }
    assert!(decoder.quick() >= 4, "the depth has to be checked on the quick way too");
}

#[test]
fn kinds_of_message_may_mix_on_the_quick_way() {
    let mut decoder = decoder(vec![column("a", DataType::Int32), column("b", DataType::Utf8)]);
    for i in 0..1000 {
        let message = match i % 3 {
            0 => format!(r#"{{"a":{i},"b":"x"}}"#),
            1 => format!(r#"{{"b":"x","a":{i}}}"#),
            _ => format!(r#"{{ "a": {i} }}"#),
        };
        assert_eq!(decoder.push(message.as_bytes()), Ok(Pushed::Row));
    }
    assert_eq!(decoder.quick(), 997);
}

#[test]
fn columns_beyond_the_walk_are_found_by_hash() {
    let names: Vec<String> = (0..40).map(|i| format!("c{i}")).collect();
    let mut decoder =
        decoder(names.iter().map(|name| column(name, DataType::Int64)).collect()).without_layouts();
    let members: Vec<String> = (0..40).rev().map(|i| format!(r#""c{i}":{i},"d{i}":0"#)).collect();
    let message = format!("{{{}}}", members.join(","));
    assert_eq!(decoder.push(message.as_bytes()), Ok(Pushed::Row));
    let batch = decoder.finish();
    for (i, array) in batch.columns().iter().enumerate() {
        let array = array.as_any().downcast_ref::<arrow::array::Int64Array>();
        assert_eq!(array.map(|a| a.value(0)), Some(i as i64));
    }
}

#[test]
fn ltz_wants_its_z_and_times_are_cut_off_to_their_unit() {
    use arrow::array::AsArray;
    use arrow::datatypes::{Time32MillisecondType, TimestampMicrosecondType};
    let zoned = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let fields = vec![column("t", zoned), column("c", DataType::Time32(TimeUnit::Millisecond))];
    for (standard, middle) in [(TimestampStandard::Sql, " "), (TimestampStandard::Iso8601, "T")] {
        let options = JsonOptions { timestamp_standard: standard, ..JsonOptions::default() };
        let mut decoder = JsonDecoder::new(schema(fields.clone()), options).expect("types");
        for _ in 0..3 {
            let t = format!("1969-12-31{middle}23:59:59.9999999Z");
            let good = format!(r#"{{"t":"{t}","c":"00:00:01.0019"}}"#);
            assert_eq!(decoder.push(good.as_bytes()), Ok(Pushed::Row));
            decoder.push(good.replace('Z', "").as_bytes()).expect_err("no Z");
            decoder.push(good.replace('Z', "+00:00").as_bytes()).expect_err("an offset");
            decoder.push(good.replace("\"00:", "\"24:").as_bytes()).expect_err("hour 24");
        }
        let batch = decoder.finish();
        let times = batch.column(0).as_primitive::<TimestampMicrosecondType>();
        assert_eq!(times.values().as_ref(), [-1; 3]);
        let clocks = batch.column(1).as_primitive::<Time32MillisecondType>();
        assert_eq!(clocks.values().as_ref(), [1001; 3]);
    }
}
