//! Speed of the JSON decoder beside arrow-json's, and of the encoder, in one run.
//!
//! `cargo bench -p weir-connect --bench json --profile dev` prints, by workload, million rows per
//! second of both and their ratio: medians of rounds that alternate, so that noise meets both
//! alike. arrow-json gets whole buffers of lines, its best way; ours gets messages, as sources have
//! them.
#![allow(clippy::print_stdout)]

use std::sync::Arc;
use std::time::Instant;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use weir_connect::json::{JsonDecoder, JsonEncoder, JsonOptions, TimestampStandard};

const ROWS: usize = 8192;

struct Workload {
    name: &'static str,
    schema: SchemaRef,
    messages: Vec<String>,
    target: f64,
}

fn main() {
    // `cargo test` runs this too: then only to see that it runs.
    let rounds = if std::env::args().any(|arg| arg == "--bench") { 31 } else { 1 };
    for workload in workloads() {
        measure(&workload, rounds);
    }
}

fn measure(workload: &Workload, rounds: usize) {
    let messages: Vec<&[u8]> = workload.messages.iter().map(|m| m.as_bytes()).collect();
    let lines = workload.messages.join("\n") + "\n";
    let options =
        JsonOptions { timestamp_standard: TimestampStandard::Iso8601, ..JsonOptions::default() };
    let mut ours = JsonDecoder::new(workload.schema.clone(), options).expect("supported types");
    let encoder = JsonEncoder::new(workload.schema.clone(), options).expect("supported types");
    let mut theirs = arrow_json::ReaderBuilder::new(workload.schema.clone())
        .with_batch_size(ROWS)
        .build_decoder()
        .expect("supported types");
    let (mut our_times, mut their_times, mut encode_times) = (vec![], vec![], vec![]);
    for _ in 0..rounds {
        let start = Instant::now();
        for _ in 0..4 {
            for message in &messages {
                ours.push(message).expect("a row");
            }
            std::hint::black_box(ours.finish());
        }
        our_times.push(start.elapsed().as_secs_f64() / 4.0);
        let start = Instant::now();
        for _ in 0..4 {
            let read = theirs.decode(lines.as_bytes()).expect("rows");
            assert_eq!(read, lines.len());
            std::hint::black_box(theirs.flush().expect("rows"));
        }
        their_times.push(start.elapsed().as_secs_f64() / 4.0);
        for message in &messages {
            ours.push(message).expect("a row");
        }
        let batch = ours.finish();
        theirs.decode(lines.as_bytes()).expect("rows");
        assert_eq!(Some(&batch), theirs.flush().expect("rows").as_ref(), "both read the same");
        let start = Instant::now();
        std::hint::black_box(encoder.encode(&batch));
        encode_times.push(start.elapsed().as_secs_f64());
    }
    let (ours, theirs, encode) =
        (median(&mut our_times), median(&mut their_times), median(&mut encode_times));
    let speed = |seconds: f64| ROWS as f64 / seconds / 1e6;
    println!(
        "{:<28} {:>4} B  ours {:>6.2} M/s ({:>4.0} MB/s)  arrow-json {:>5.2} M/s  ratio {:>5.2} \
         (target {:.1})  encode {:>5.2} M/s",
        workload.name,
        lines.len() / ROWS,
        speed(ours),
        lines.len() as f64 / ours / 1e6,
        speed(theirs),
        theirs / ours,
        workload.target,
        speed(encode),
    );
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn meter(i: usize) -> Vec<String> {
    let (minute, milli) = (i / 60 % 60, i * 250 % 1000);
    vec![
        format!(r#""meter_id":"meter-{:06}""#, i * 7919 % 100_000),
        format!(r#""ts":"2026-03-01T00:{minute:02}:{:02}.{milli:03}Z""#, i % 60),
        format!(r#""kwh":0.{:06}"#, i * 31 % 10_000),
        format!(r#""voltage":{}.{}"#, 220 + i % 20, i % 9 + 1),
        format!(r#""current":{}.{:02}"#, i % 16, i % 99 + 1),
        format!(r#""seq":{i}"#),
        format!(r#""device":{{"fw":"2.4.{}","rssi":-{}}}"#, i % 10, 40 + i % 50),
    ]
}

/// A permutation of `members` that differs from message to message.
fn permuted(mut members: Vec<String>, i: usize) -> Vec<String> {
    let mut state = (i as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for last in (1..members.len()).rev() {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        members.swap(last, (state >> 33) as usize % (last + 1));
    }
    members
}

fn meter_fields() -> Vec<Field> {
    let zoned = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    vec![
        Field::new("meter_id", DataType::Utf8, true),
        Field::new("ts", zoned, true),
        Field::new("kwh", DataType::Float64, true),
        Field::new("voltage", DataType::Float64, true),
        Field::new("current", DataType::Float64, true),
        Field::new("seq", DataType::Int64, true),
    ]
}

fn workloads() -> Vec<Workload> {
    let flat: SchemaRef = Arc::new(Schema::new(meter_fields()));
    let three: SchemaRef = Arc::new(Schema::new(meter_fields()[..3].to_vec()));
    let device = Fields::from(vec![
        Field::new("fw", DataType::Utf8, true),
        Field::new("rssi", DataType::Int32, true),
    ]);
    let mut all = meter_fields();
    all.push(Field::new("device", DataType::Struct(device), true));
    let all: SchemaRef = Arc::new(Schema::new(all));
    let sensor: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("sensor_id", DataType::Utf8, true),
        Field::new("ts", DataType::Int64, true),
        Field::new("temperature", DataType::Float64, true),
        Field::new("humidity", DataType::Float64, true),
    ]));
    let messages = |line: &dyn Fn(usize) -> String| (0..ROWS).map(line).collect::<Vec<_>>();
    let plain = messages(&|i| format!("{{{}}}", meter(i).join(",")));
    let sensors = messages(&|i| {
        let (ts, t, h) = (1_700_000_100_000 + i * 250, i % 40, 30 + i % 60);
        format!(
            r#"{{"sensor_id":"sensor-{}","ts":{ts},"temperature":{t}.5,"humidity":{h}.1}}"#,
            i % 500
        )
    });
    let mixed = messages(&|i| {
        let line = format!("{{ {} }}", permuted(meter(i), i).join(" , "));
        line.replace("meter-", r"m\u00e4ter\/").replace("\":", "\" : ")
    });
    let shuffled = messages(&|i| format!("{{{}}}", permuted(meter(i), i).join(",")));
    let workload = |name, schema: &SchemaRef, messages: &Vec<String>, target| Workload {
        name,
        schema: schema.clone(),
        messages: messages.clone(),
        target,
    };
    vec![
        workload("meter, all flat columns", &flat, &plain, 2.5),
        workload("meter, three columns", &three, &plain, 2.5),
        workload("meter, with its ROW", &all, &plain, 2.5),
        workload("sensor, four columns", &sensor, &sensors, 2.5),
        workload("permuted", &flat, &shuffled, 1.0),
        workload("permuted, escapes, spaces", &flat, &mixed, 1.0),
        workload("the same, with its ROW", &all, &mixed, 1.0),
    ]
}
