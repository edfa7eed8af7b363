//! The project's cases of nasty JSON: each alone, and all of one schema in one batch, there and
//! back.
//!
//! A decoder that guesses a layout from the message before may pass each case alone, so the orders
//! matter. Each case is also pushed twice in a row: the second time its own layout is known.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float64Type, Int32Type, Int64Type, TimeUnit,
    TimestampMillisecondType,
};
use serde_json::{Value, json};

use super::super::text;
use super::super::time;
use super::super::{JsonDecoder, JsonOptions, Pushed, TimestampStandard};
use super::{column, list, map, row, schema};

const CASES: &str = include_str!("../../../tests/data/json_cases.jsonl");

struct Case {
    id: String,
    raw: Vec<u8>,
    schema: Vec<(String, String)>,
    options: JsonOptions,
    expect: Value,
}

fn cases() -> Vec<Case> {
    let cases: Vec<Case> = CASES
        .lines()
        .map(|line| {
            let case: Value = serde_json::from_str(line).expect("a case is JSON");
            let text_of = |v: &Value| v.as_str().expect("text").to_owned();
            let mut raw = vec![];
            assert!(text::decode_base64(text_of(&case["raw_b64"]).as_bytes(), &mut raw));
            let columns = case["schema"].as_array().expect("columns");
            let standard = match &case["options"]["json.timestamp-format.standard"] {
                Value::String(standard) if standard == "ISO-8601" => TimestampStandard::Iso8601,
                _ => TimestampStandard::Sql,
            };
            Case {
                id: text_of(&case["id"]),
                raw,
                schema: columns.iter().map(|c| (text_of(&c[0]), text_of(&c[1]))).collect(),
                options: JsonOptions { timestamp_standard: standard, ..JsonOptions::default() },
                expect: case["expect"].clone(),
            }
        })
        .collect();
    assert_eq!(cases.len(), 398);
    cases
}

/// The arguments between a type's outer brackets.
fn arguments(sql: &str) -> Vec<&str> {
    let inner = &sql[sql.find('<').expect("arguments") + 1..sql.len() - 1];
    let (mut parts, mut depth, mut start) = (vec![], 0, 0);
    for (i, c) in inner.char_indices() {
        match c {
            '<' | '(' => depth += 1,
            '>' | ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(inner[start..i].trim());
                start = i + 1;
            }
            _ => {}
        }
    }
    parts.push(inner[start..].trim());
    parts
}

fn arrow_type(sql: &str) -> DataType {
    let numbers = || -> Vec<u8> {
        let digits = sql.split(|c: char| !c.is_ascii_digit()).filter(|d| !d.is_empty());
        digits.map(|d| d.parse().expect("a small number")).collect()
    };
    match sql.split(['<', '(']).next().expect("a name") {
        "INT" => DataType::Int32,
        "BIGINT" => DataType::Int64,
        "DOUBLE" => DataType::Float64,
        "BOOLEAN" => DataType::Boolean,
        "STRING" => DataType::Utf8,
        "BYTES" => DataType::Binary,
        "DATE" => DataType::Date32,
        "TIMESTAMP" => DataType::Timestamp(TimeUnit::Millisecond, None),
        "DECIMAL" => DataType::Decimal128(numbers()[0], numbers()[1] as i8),
        "ARRAY" => list(arrow_type(arguments(sql)[0])),
        "MAP" => map(arrow_type(arguments(sql)[1])),
        "ROW" => row(arguments(sql)
            .into_iter()
            .map(|field| field.split_once(' ').expect("a name and a type"))
            .map(|(name, sql)| column(name, arrow_type(sql)))
            .collect()),
        other => panic!("a type the cases do not have: {other}"),
    }
}

/// A value as the cases write it.
fn shown(array: &ArrayRef, i: usize) -> Value {
    if array.is_null(i) {
        return Value::Null;
    }
    let items =
        |items: ArrayRef| -> Vec<Value> { (0..items.len()).map(|i| shown(&items, i)).collect() };
    match array.data_type() {
        DataType::Int32 => json!(array.as_primitive::<Int32Type>().value(i)),
        DataType::Int64 => json!(array.as_primitive::<Int64Type>().value(i)),
        DataType::Boolean => json!(array.as_boolean().value(i)),
        DataType::Utf8 => json!(array.as_string::<i32>().value(i)),
        DataType::Float64 => {
            // The bits say more than digits: -0.0 is not 0.0.
            let value = array.as_primitive::<Float64Type>().value(i);
            json!(if value.is_nan() { "NaN".to_owned() } else { format!("{:x}", value.to_bits()) })
        }
        &DataType::Decimal128(_, scale) => {
            let unscaled = array.as_primitive::<Decimal128Type>().value(i);
            let digits = format!("{:0width$}", unscaled.unsigned_abs(), width = scale as usize + 1);
            let (whole, fraction) = digits.split_at(digits.len() - scale as usize);
            let sign = if unscaled < 0 { "-" } else { "" };
            json!(format!("{sign}{whole}{}{fraction}", if scale > 0 { "." } else { "" }))
        }
        DataType::Date32 => {
            let mut out = vec![];
            time::write_date(&mut out, array.as_primitive::<Date32Type>().value(i).into());
            json!(String::from_utf8(out).expect("ASCII"))
        }
        DataType::Timestamp(..) => {
            let millis = array.as_primitive::<TimestampMillisecondType>().value(i);
            let mut out = vec![];
            time::write_date(&mut out, millis.div_euclid(86_400_000));
            let clock = millis.rem_euclid(86_400_000);
            let (second, millis) = (clock / 1000, clock % 1000);
            let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
            let day = String::from_utf8(out).expect("ASCII");
            json!(format!("{day}T{h:02}:{m:02}:{s:02}.{millis:03}"))
        }
        DataType::Binary => {
            let mut out = vec![];
            text::write_base64(&mut out, array.as_binary::<i32>().value(i));
            json!(String::from_utf8(out).expect("ASCII"))
        }
        DataType::List(_) => json!(items(array.as_list::<i32>().value(i))),
        DataType::Map(..) => {
            let entries = array.as_map().value(i);
            let keys = entries.column(0).as_string::<i32>();
            let values = items(entries.column(1).clone());
            keys.iter().map(|key| key.unwrap_or_default().to_owned()).zip(values).collect()
        }
        DataType::Struct(_) => {
            json!(array.as_struct().columns().iter().map(|c| shown(c, i)).collect::<Vec<_>>())
        }
        other => panic!("a type the cases do not have: {other}"),
    }
}

/// The expected value, with each DOUBLE as its bits.
fn expected(value: &Value, sql: &str) -> Value {
    match (value, sql.split(['<', '(']).next().expect("a name")) {
        (Value::String(digits), "DOUBLE") if digits != "NaN" => {
            let digits = digits.replace("Infinity", "inf");
            json!(format!("{:x}", digits.parse::<f64>().expect("a number").to_bits()))
        }
        (Value::Array(items), "ARRAY") => {
            items.iter().map(|item| expected(item, arguments(sql)[0])).collect()
        }
        (Value::Array(fields), "ROW") => {
            let types = arguments(sql).into_iter().map(|f| f.split_once(' ').expect("a type").1);
            fields.iter().zip(types).map(|(field, sql)| expected(field, sql)).collect()
        }
        (Value::Object(entries), "MAP") => {
            let entry = |(k, v): (&String, &Value)| (k.clone(), expected(v, arguments(sql)[1]));
            entries.iter().map(entry).collect()
        }
        _ => value.clone(),
    }
}

fn decoder_for(case: &Case) -> JsonDecoder {
    let fields = case.schema.iter().map(|(name, sql)| column(name, arrow_type(sql)));
    JsonDecoder::new(schema(fields.collect()), case.options).expect("types that JSON has")
}

/// Pushes a case and returns the row it expects, if it expects one.
fn push(decoder: &mut JsonDecoder, case: &Case) -> Option<Value> {
    let before = decoder.rows();
    let pushed = decoder.push(&case.raw);
    let row = case.expect["row"].as_array();
    let as_expected = match &pushed {
        Ok(Pushed::Row) => row.is_some(),
        Ok(Pushed::Skipped) => case.expect["skip"] == true,
        Err(_) => case.expect["error"] == true,
    };
    assert!(as_expected, "{}: {pushed:?}, expected {}", case.id, case.expect);
    assert_eq!(decoder.rows() - before, usize::from(row.is_some()), "{}", case.id);
    let columns = row?.iter().zip(&case.schema);
    Some(columns.map(|(value, (_, sql))| expected(value, sql)).collect())
}

fn rows(batch: &RecordBatch) -> Vec<Value> {
    let row = |i| batch.columns().iter().map(|array| shown(array, i)).collect();
    (0..batch.num_rows()).map(row).collect()
}

#[test]
fn each_case_alone() {
    for case in &cases() {
        for times in 1..=3 {
            let mut decoder = decoder_for(case);
            let expected: Vec<Value> =
                (0..times).filter_map(|_| push(&mut decoder, case)).collect();
            assert_eq!(rows(&decoder.finish()), expected, "{} {times} times", case.id);
        }
    }
}

#[test]
fn each_case_after_a_row_of_the_plainest_layout() {
    for case in &cases() {
        // All columns in order, NULL, without white space: many refused cases are built like it.
        let members: Vec<String> =
            case.schema.iter().map(|(name, _)| format!("{}:null", json!(name))).collect();
        let plainest = format!("{{{}}}", members.join(","));
        let mut decoder = decoder_for(case);
        assert_eq!(decoder.push(plainest.as_bytes()), Ok(Pushed::Row), "{}", case.id);
        let expected = push(&mut decoder, case);
        let rows = rows(&decoder.finish());
        assert_eq!(rows[1..], Vec::from_iter(expected), "{}", case.id);
    }
}

#[test]
fn cases_of_one_schema_together_there_and_back() {
    let all = cases();
    let mut by_schema: BTreeMap<String, Vec<&Case>> = BTreeMap::new();
    for case in &all {
        let key = format!("{:?} {:?}", case.schema, case.options.timestamp_standard);
        by_schema.entry(key).or_default().push(case);
    }
    for cases in by_schema.values() {
        for stride in 1..=cases.len() {
            // Forwards, backwards, and with others between neighbours, each once and each twice.
            let there: Vec<&&Case> =
                (0..stride).flat_map(|start| cases.iter().skip(start).step_by(stride)).collect();
            let twice = there.iter().flat_map(|case| [*case, *case]).collect();
            let back = there.iter().rev().copied().collect();
            for order in [there.clone(), back, twice] {
                let mut decoder = decoder_for(cases[0]);
                let expected: Vec<Value> =
                    order.iter().filter_map(|case| push(&mut decoder, case)).collect();
                assert_eq!(rows(&decoder.finish()), expected, "stride {stride}");
            }
        }
    }
}

#[test]
fn rows_of_all_cases_survive_the_encoder() {
    for case in &cases() {
        let mut decoder = decoder_for(case);
        push(&mut decoder, case);
        let batch = decoder.finish();
        let encoder = super::super::JsonEncoder::new(batch.schema(), case.options);
        let lines = encoder.expect("types that JSON has").encode(&batch);
        for line in lines.split_inclusive(|&c| c == b'\n') {
            assert_eq!(decoder.push(line), Ok(Pushed::Row), "{}", case.id);
        }
        assert_eq!(rows(&decoder.finish()), rows(&batch), "{}", case.id);
        let _: Arc<_> = batch.schema();
    }
}
