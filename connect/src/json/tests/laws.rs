//! Laws: the quick way equals the careful one, nothing panics, errors leave no trace, and what the
//! encoder writes the decoder reads back.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, TimeUnit};
use proptest::prelude::*;

use super::super::column::{Columns, Data};
use super::super::scan;
use super::super::{JsonDecoder, JsonEncoder, JsonOptions, Pushed, RowError, TimestampStandard};
use super::{column, list, map, row, schema};

/// A column of each type, named a, b, c and so on.
fn every_type() -> Vec<Field> {
    let types = [
        DataType::Int64,
        DataType::Float64,
        DataType::Utf8,
        DataType::Timestamp(TimeUnit::Millisecond, None),
        row(vec![
            column("a", DataType::Int32),
            Field::new("b", DataType::Float32, false),
            column("c", row(vec![column("a", DataType::Utf8)])),
        ]),
        DataType::Boolean,
        DataType::Decimal128(12, 3),
        list(DataType::Int16),
        map(list(DataType::Utf8)),
        DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())),
        DataType::Date32,
        DataType::Time32(TimeUnit::Millisecond),
        DataType::Binary,
        DataType::Int8,
        list(row(vec![column("a", map(DataType::Float64)), column("b", DataType::Date32)])),
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
    ];
    let name = |i: usize| char::from(b'a' + i as u8).to_string();
    types.into_iter().enumerate().map(|(i, t)| column(&name(i), t)).collect()
}

fn new_decoder(standard: TimestampStandard) -> JsonDecoder {
    let options = JsonOptions { timestamp_standard: standard, ..JsonOptions::default() };
    JsonDecoder::new(schema(every_type()), options).expect("types that JSON has")
}

/// The source text of a value, more often than not one that some column takes.
fn value() -> impl Strategy<Value = String> {
    let number = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        (-200i64..200).prop_map(|n| n.to_string()),
        any::<f64>()
            .prop_filter("JSON has no name for it", |x| x.is_finite())
            .prop_map(|x| format!("{x:?}")),
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?",
        "-?[0-9]{1,3}\\.?[0-9]{0,3}",
    ];
    let text = prop_oneof![
        "\"[a-z ]{0,20}\"",
        "\"[a-zäß€😀\\\\nu\"0-9]{0,12}\"",
        Just(r#""\u00e9\n\ud83d\ude00""#.to_owned()),
        "\"20[0-9]{2}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?Z?\"",
        "\"20[0-9]{2}-[01][0-9]-[0-3][0-9]\"",
        "\"[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,10})?\"",
        "\"[A-Za-z0-9+/]{4}([A-Za-z0-9+/]{2}==)?\"",
        "\" ?[+-]?[0-9]{1,4}(\\.[0-9])? ?\"",
    ];
    let words = prop_oneof![Just("null"), Just("true"), Just("false"), Just("tru"), Just("")];
    let leaf = prop_oneof![4 => number, 4 => text, 2 => words.prop_map(str::to_owned)];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4)
                .prop_map(|items| format!("[{}]", items.join(","))),
            prop::collection::vec(("[a-c]", inner), 0..4).prop_map(|m| object(&m, "")),
        ]
    })
}

fn object(members: &[(String, String)], space: &str) -> String {
    let members = members.iter().map(|(name, value)| format!("{space}\"{name}\":{space}{value}"));
    format!("{{{}{space}}}", members.collect::<Vec<_>>().join(","))
}

/// Messages of which many are built alike: a few shapes, their values exchanged, now and then a
/// byte.
fn messages() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let name = prop_oneof![8 => "[a-p]", 1 => "[A-Z]{1,3}", 1 => Just("\\u0061".to_owned())];
    let member = (name, value());
    let shape = (prop::collection::vec(member, 0..8), prop_oneof![4 => Just(""), 1 => Just(" ")]);
    let edit = prop::option::weighted(0.15, (any::<prop::sample::Index>(), any::<u8>()));
    let change = (any::<prop::sample::Index>(), value());
    let message = (any::<prop::sample::Index>(), prop::option::of(change), edit);
    (prop::collection::vec(shape, 1..4), prop::collection::vec(message, 1..40)).prop_map(
        |(shapes, messages)| {
            let build = |(shape, change, edit): &(prop::sample::Index, Option<_>, Option<_>)| {
                let (mut members, space) = shape.get(&shapes).clone();
                if let (Some((at, value)), false) = (change, members.is_empty()) {
                    let at: &prop::sample::Index = at;
                    let at = at.index(members.len());
                    members[at].1 = String::clone(value);
                }
                let mut message = object(&members, space).into_bytes();
                if let Some((at, byte)) = edit {
                    let at: &prop::sample::Index = at;
                    let at = at.index(message.len());
                    message[at] = *byte;
                }
                message
            };
            messages.iter().map(build).collect()
        },
    )
}

/// Messages that all columns take, so that rows are likely: one value per type.
fn rows() -> impl Strategy<Value = Vec<String>> {
    let timestamp = "20[0-9]{2}-0[1-9]-[0-2][1-8]T[01][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,9})?";
    let nullable = |strategy: BoxedStrategy<String>| {
        prop_oneof![9 => strategy, 1 => Just("null".to_owned())].boxed()
    };
    let quoted = |pattern: &'static str| pattern.prop_map(|text| format!("\"{text}\"")).boxed();
    let text = any::<String>().prop_map(|s| serde_json::to_string(&s).expect("text")).boxed();
    let double = any::<f64>()
        .prop_map(|x| format!("{x:?}").replace("inf", "1e999").replace("NaN", "\"NaN\""));
    let nested =
        (any::<i32>(), any::<f32>().prop_filter("finite", |x| x.is_finite()), text.clone())
            .prop_map(|(a, b, c)| format!(r#"{{"b":{b:?},"a":{a},"c":{{"a":{c}}}}}"#));
    let ints = prop::collection::vec(any::<i16>(), 0..4).prop_map(|v| format!("{v:?}"));
    let texts =
        prop::collection::btree_map("[a-d]{0,2}", prop::collection::vec(text.clone(), 0..3), 0..3)
            .prop_map(|m| {
                let members: Vec<_> =
                    m.iter().map(|(k, v)| (k.clone(), format!("[{}]", v.join(",")))).collect();
                object(&members, "")
            });
    let rows = "0|-?[1-9][0-9]{0,2}\\.[0-9]"
        .prop_map(|n| format!(r#"[{{"a":{{"k":{n}}},"b":"2024-02-29"}},null,{{}}]"#));
    let columns: Vec<BoxedStrategy<String>> = vec![
        any::<i64>().prop_map(|n| n.to_string()).boxed(),
        double.boxed(),
        text,
        quoted(timestamp),
        nested.boxed(),
        any::<bool>().prop_map(|b| b.to_string()).boxed(),
        "-?[1-9][0-9]{0,8}(\\.[0-9]{1,5})?".boxed(),
        ints.boxed(),
        texts.boxed(),
        timestamp.prop_map(|t| format!("\"{t}Z\"")).boxed(),
        quoted("[0-9]{4}-0[1-9]-[0-2][1-8]"),
        quoted("[01][0-9]:[0-5][0-9]:[0-5][0-9](\\.[0-9]{1,3})?"),
        quoted("([A-Za-z0-9+/]{4}){0,3}([A-Za-z0-9+/]{3}=)?"),
        any::<i8>().prop_map(|n| n.to_string()).boxed(),
        rows.boxed(),
        timestamp.prop_map(|t| format!("\"{t}Z\"")).boxed(),
    ];
    let columns: Vec<_> = columns.into_iter().map(nullable).collect();
    let message = columns.prop_map(|values| {
        let name = |i: usize| char::from(b'a' + i as u8).to_string();
        let members: Vec<_> = values.into_iter().enumerate().map(|(i, v)| (name(i), v)).collect();
        object(&members, "")
    });
    prop::collection::vec(message, 1..12)
}

fn options() -> impl Strategy<Value = JsonOptions> {
    let standard = prop_oneof![Just(TimestampStandard::Sql), Just(TimestampStandard::Iso8601)];
    (standard, any::<bool>()).prop_map(|(timestamp_standard, ignore_null_fields)| JsonOptions {
        timestamp_standard,
        ignore_null_fields,
        ..JsonOptions::default()
    })
}

fn bytes() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 1..60), 1..8)
}

fn push_all(decoder: &mut JsonDecoder, messages: &[Vec<u8>]) -> Vec<Result<Pushed, RowError>> {
    messages.iter().map(|message| decoder.push(message)).collect()
}

/// Batches compared by their debug text: NaN equals NaN there, and -0.0 is not 0.0.
fn text_of(batch: &RecordBatch) -> String {
    format!("{:?}", batch.columns())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn quick_equals_careful(messages in messages(), iso in any::<bool>()) {
        let standard = if iso { TimestampStandard::Iso8601 } else { TimestampStandard::Sql };
        let mut quick = new_decoder(standard);
        let mut careful = new_decoder(standard).without_layouts();
        prop_assert_eq!(push_all(&mut quick, &messages), push_all(&mut careful, &messages));
        let (quick, careful) = (quick.finish(), careful.finish());
        prop_assert_eq!(text_of(&quick), text_of(&careful));
        prop_assert_eq!(quick.num_rows(), careful.num_rows());
    }

    #[test]
    fn quick_equals_careful_on_rows(messages in rows()) {
        let messages: Vec<Vec<u8>> = messages.into_iter().map(String::into_bytes).collect();
        let mut quick = new_decoder(TimestampStandard::Iso8601);
        let mut careful = new_decoder(TimestampStandard::Iso8601).without_layouts();
        let pushed = push_all(&mut quick, &messages);
        prop_assert!(pushed.iter().all(|p| *p == Ok(Pushed::Row)), "{:?}", pushed);
        prop_assert_eq!(pushed, push_all(&mut careful, &messages));
        prop_assert_eq!(text_of(&quick.finish()), text_of(&careful.finish()));
    }

    #[test]
    fn an_error_leaves_no_trace(messages in messages()) {
        let mut all = new_decoder(TimestampStandard::Sql);
        let pushed = push_all(&mut all, &messages);
        let good: Vec<Vec<u8>> = messages
            .iter()
            .zip(&pushed)
            .filter(|(_, pushed)| pushed.is_ok())
            .map(|(message, _)| message.clone())
            .collect();
        let mut only_good = new_decoder(TimestampStandard::Sql);
        let pushed = push_all(&mut only_good, &good);
        prop_assert!(pushed.iter().all(Result::is_ok));
        prop_assert_eq!(text_of(&all.finish()), text_of(&only_good.finish()));
    }

    #[test]
    fn accepted_is_what_serde_json_accepts(messages in messages()) {
        let options = JsonOptions::default();
        let mut decoder = JsonDecoder::new(schema(vec![]), options).expect("no types");
        for message in messages {
            // serde_json refuses nothing in a number's size here: the value is not looked at.
            let oracle = serde_json::from_slice::<serde::de::IgnoredAny>(&message).is_ok()
                && message.trim_ascii_start().starts_with(b"{")
                && std::str::from_utf8(&message).is_ok();
            let ours = decoder.push(&message);
            // It does not look at surrogates in values it ignores; ours is stricter there.
            let surrogates = message.windows(3).any(|w| w.eq_ignore_ascii_case(b"\\ud"));
            prop_assert!(surrogates || ours.is_ok() == oracle, "{:?} {:?}", ours, message);
        }
    }

    #[test]
    fn no_bytes_panic(messages in bytes()) {
        let mut decoder = new_decoder(TimestampStandard::Sql);
        for message in &messages {
            let _ = decoder.push(message);
            let mut braced = b"{\"a\":".to_vec();
            braced.extend_from_slice(message);
            let _ = decoder.push(&braced);
        }
        let rows = decoder.rows();
        prop_assert_eq!(decoder.finish().num_rows(), rows);
    }

    #[test]
    fn what_is_written_reads_back(messages in rows(), options in options()) {
        let mut first = new_decoder(TimestampStandard::Iso8601);
        for message in &messages {
            prop_assert_eq!(first.push(message.as_bytes()), Ok(Pushed::Row));
        }
        let batch = first.finish();
        let encoder = JsonEncoder::new(batch.schema(), options).expect("types");
        let lines = encoder.encode(&batch);
        let mut second = JsonDecoder::new(Arc::clone(&batch.schema()), options).expect("types");
        for line in lines.split_inclusive(|&c| c == b'\n') {
            let pushed = second.push(line);
            prop_assert_eq!(pushed, Ok(Pushed::Row), "{}", String::from_utf8_lossy(line));
        }
        let back = second.finish();
        prop_assert_eq!(text_of(&back), text_of(&batch));
        prop_assert_eq!(encoder.encode(&back), &lines[..]);
        let last = encoder.encode(&batch.slice(batch.num_rows() - 1, 1));
        prop_assert!(lines.ends_with(&last), "a slice is written as what it is part of");
    }
}

/// The source text of a value that the fast conversions might take.
fn simple_value() -> impl Strategy<Value = String> {
    let time = "20[0-9]{2}-[01][0-9]-[0-3][0-9][T ][0-2][0-9]:[0-5][0-9]:[0-5][0-9]";
    prop_oneof![
        "-?(0|[1-9][0-9]{0,11})\\.[0-9]{1,12}",
        "-?(0|[1-9][0-9]{0,20})(\\.[0-9]{1,22})?([eE][+-]?[0-9]{1,2})?",
        "-?[0-9]{0,4}(\\.[0-9]{0,3})?",
        any::<i64>().prop_map(|n| n.to_string()),
        any::<i32>().prop_map(|n| (i64::from(n) * 2).to_string()),
        (time, "(\\.[0-9]{0,10})?Z?").prop_map(|(time, rest)| format!("\"{time}{rest}\"")),
        "\"[a-zäß€😀]{0,20}\"",
    ]
}

/// The values of a column, without what it remembers.
fn values_of(data: &Data) -> String {
    match data {
        Data::Timestamp { values, .. } => format!("{values:?}"),
        data => format!("{data:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8192))]

    #[test]
    fn fast_conversions_agree(source in simple_value(), options in options()) {
        let utc = || Some("UTC".into());
        let types = [
            DataType::Float64,
            DataType::Int64,
            DataType::Int32,
            DataType::Timestamp(TimeUnit::Millisecond, None),
            DataType::Timestamp(TimeUnit::Microsecond, utc()),
            DataType::Timestamp(TimeUnit::Nanosecond, utc()),
        ];
        let b = source.as_bytes();
        let value = scan::value(b, 0, 0);
        for data_type in types {
            let one = schema(vec![column("a", data_type)]);
            let mut fast = Columns::new(&one, &options).expect("a type");
            let mut careful = Columns::new(&one, &options).expect("a type");
            if let Some(end) = fast.all[1].append_fast(b, 0) {
                let value = value.expect("a verdict only on what is JSON");
                prop_assert_eq!(end, value.end);
                prop_assert_eq!(careful.all[1].convert(b, value, &mut vec![]), Ok(true));
                let (fast, careful) = (&fast.all[1].data, &careful.all[1].data);
                prop_assert_eq!(values_of(fast), values_of(careful), "{}", source);
            }
        }
    }
}

#[test]
fn written_as_flink_writes() {
    let mut decoder = new_decoder(TimestampStandard::Iso8601);
    let message = r#"{"a":-5,"b":1e10,"c":"é\"\\\u0001\u001f\n/","d":"2024-01-01T00:00:00.120",
        "e":{"a":1,"b":20.5,"c":{}},"f":true,"g":-0.5,"h":[1,null],"i":{"k":["x"]},
        "j":"2024-01-01T00:00:00.000000001Z","k":"+12345-01-01","l":"01:02:03.5","m":"/w==",
        "n":-128}"#;
    assert_eq!(decoder.push(message.as_bytes()), Ok(Pushed::Row));
    assert_eq!(decoder.push(br#"{"b":"NaN","d":"0000-01-01T00:00"}"#), Ok(Pushed::Row));
    let batch = decoder.finish();
    let encode = |options: JsonOptions| {
        let encoder = JsonEncoder::new(batch.schema(), options).expect("types");
        String::from_utf8(encoder.encode(&batch)).expect("UTF-8")
    };
    let written = encode(JsonOptions::default());
    let expected = [
        r#"{"a":-5,"b":1.0E10,"c":"é\"\\\u0001\u001F\n/","d":"2024-01-01 00:00:00.12","#,
        r#""e":{"a":1,"b":20.5,"c":{"a":null}},"f":true,"g":-0.500,"h":[1,null],"i":{"k":["x"]},"#,
        r#""j":"2024-01-01 00:00:00.000000001Z","k":"+12345-01-01","l":"01:02:03.5","m":"/w==","#,
        r#""n":-128,"o":null,"p":null}"#,
        "\n",
        r#"{"a":null,"b":"NaN","c":null,"d":"0000-01-01 00:00:00","e":null,"f":null,"g":null,"#,
        r#""h":null,"i":null,"j":null,"k":null,"l":null,"m":null,"n":null,"o":null,"p":null}"#,
        "\n",
    ];
    assert_eq!(written, expected.concat());
    let short = encode(JsonOptions {
        timestamp_standard: TimestampStandard::Iso8601,
        ignore_null_fields: true,
        ..JsonOptions::default()
    });
    assert_eq!(short.lines().last(), Some(r#"{"b":"NaN","d":"0000-01-01T00:00:00"}"#));
}

#[test]
fn doubles_are_written_as_java_does() {
    let fields = schema(vec![column("x", DataType::Float64), column("y", DataType::Float32)]);
    let cases = [
        ("0.0", "0.0"),
        ("-0.0", "-0.0"),
        ("1", "1.0"),
        ("9999999", "9999999.0"),
        ("10000000", "1.0E7"),
        ("0.001", "0.001"),
        ("0.00099", "9.9E-4"),
        ("123456.789e-2", "1234.56789"),
        ("-1.5e300", "-1.5E300"),
        // Java writes 4.9E-324: two digits at least, though one reads back.
        ("5e-324", "5.0E-324"),
        ("0.1", "0.1"),
    ];
    for (source, expected) in cases {
        let mut decoder = JsonDecoder::new(fields.clone(), JsonOptions::default()).expect("types");
        let message = format!(r#"{{"x":{source}}}"#);
        assert_eq!(decoder.push(message.as_bytes()), Ok(Pushed::Row));
        let encoder = JsonEncoder::new(fields.clone(), JsonOptions::default()).expect("types");
        let written = encoder.encode(&decoder.finish());
        let line = format!("{{\"x\":{expected},\"y\":null}}\n");
        assert_eq!(String::from_utf8_lossy(&written), line);
    }
}
