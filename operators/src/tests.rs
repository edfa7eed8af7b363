//! Pieces as earlier builds wrote them (`tests/golden`): each is read for ever, and is what the
//! same rows give today.
//!
//! A line a piece: its kind, its first and last key group, and its Arrow IPC stream in hexadecimal.
//! A form that changes on purpose gets a file of its own beside the older one.
#![allow(clippy::unwrap_used)]

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use expect_test::{Expect, expect};
use std::fmt::Write;
use std::sync::Arc;
use weir_engine::expression::{Column, Evaluated, Expression, ExpressionRef};
use weir_engine::keys::KeyGroups;
use weir_engine::operator::{EpochEnd, Operator, Output, StatePart};
use weir_engine::time::{MARK_END, MARK_NONE, Millis};

use crate::aggregates::{AggregateCall, AggregateFunction};
use crate::dedup::{Deduplicate, DeduplicateSpec};
use crate::session::script::{Row, delta, schema, show};
use crate::session::{SessionAggregate, SessionAggregateSpec};
use crate::temporal::{TemporalJoin, TemporalJoinSpec, WindowVersionJoin, WindowVersionJoinSpec};

/// Rows of an epoch, by port, and the watermarks at its end.
type Epoch<'a> = (&'a [(usize, Vec<Row>)], [Millis; 2]);

fn read(golden: &str) -> Vec<StatePart> {
    let part = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [kind, first, last, hex] = words[..] else { panic!("{line}") };
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..hex.len() / 2).map(byte).collect();
        let mut stream = StreamReader::try_new(bytes.as_slice(), None).unwrap();
        StatePart {
            // As when a checkpoint is loaded: kinds are few.
            kind: Box::leak(kind.to_owned().into_boxed_str()),
            key_groups: KeyGroups { first: first.parse().unwrap(), last: last.parse().unwrap() },
            rows: stream.next().unwrap().unwrap(),
        }
    };
    golden.lines().map(part).collect()
}

fn written(parts: &[StatePart]) -> String {
    let mut text = String::new();
    for part in parts {
        let mut bytes = Vec::new();
        let mut stream = StreamWriter::try_new(&mut bytes, &part.rows.schema()).unwrap();
        stream.write(&part.rows).and_then(|()| stream.finish()).unwrap();
        let KeyGroups { first, last } = part.key_groups;
        write!(text, "{} {first} {last} ", part.kind).unwrap();
        bytes.iter().for_each(|byte| write!(text, "{byte:02x}").unwrap());
        text.push('\n');
    }
    text
}

fn play(core: &mut dyn Operator, (rows, watermarks): &Epoch<'_>, out: &mut Output) {
    for (port, rows) in *rows {
        core.push(*port, delta(rows, false, true), out).unwrap();
    }
    core.advance(EpochEnd { epoch: 1, recorded_time: 0, watermarks }, out).unwrap();
}

/// All epochs but the last leave what the golden file says; one that begins with the file goes on
/// as one that was never interrupted.
fn check(make: &dyn Fn() -> Box<dyn Operator>, golden: &str, epochs: &[Epoch<'_>], goes: Expect) {
    let mut undisturbed = make();
    let (last, before) = epochs.split_last().unwrap();
    before.iter().for_each(|epoch| play(undisturbed.as_mut(), epoch, &mut Output::default()));
    let parts = undisturbed.snapshot().unwrap();
    let form = |parts: &[StatePart]| -> Vec<(&'static str, KeyGroups, RecordBatch)> {
        parts.iter().map(|part| (part.kind, part.key_groups, part.rows.clone())).collect()
    };
    let today = written(&parts);
    assert!(form(&read(golden)) == form(&parts), "other pieces; today's are\n{today}");
    let mut restored = make();
    restored.restore(read(golden)).unwrap();
    let [mut expected, mut got] = [Output::default(), Output::default()];
    play(undisturbed.as_mut(), last, &mut expected);
    play(restored.as_mut(), last, &mut got);
    let text = |out: Output| {
        let late: Vec<String> = out.late.iter().flat_map(show).collect();
        let rows: Vec<String> = out.rows.iter().flat_map(show).collect();
        format!("{}\nlate {late:?}\n{:?}\n", rows.join("\n"), out.counts)
    };
    let got = text(got);
    assert_eq!(got, text(expected));
    goes.assert_eq(&got);
}

fn row(key: Option<&'static str>, time: Millis, mark: Millis, offset: u64) -> Row {
    let n = 1000 * time + offset as i64;
    Row { key, time, n, diff: 1, mark, split: 3, offset }
}

fn fresh(key: &'static str, time: Millis, offset: u64) -> Row {
    row(Some(key), time, MARK_NONE, offset)
}

/// The column `n` as another type.
#[derive(Debug)]
struct Cast(DataType);

impl Expression for Cast {
    fn data_type(&self) -> DataType {
        self.0.clone()
    }

    fn evaluate(&self, rows: &RecordBatch, _recorded_time: Millis) -> Evaluated {
        Ok(cast(rows.column(2), &self.0).unwrap())
    }
}

/// Every kind of state that an aggregate has.
fn calls() -> Vec<AggregateCall> {
    use AggregateFunction::{Count, CountRows, Max, Min, Sum, VarPop};
    let integers =
        || -> ExpressionRef { Arc::new(Column { index: 2, data_type: DataType::Int64 }) };
    let text: ExpressionRef = Arc::new(Column { index: 0, data_type: DataType::Utf8 });
    let of = |data_type: DataType| -> ExpressionRef { Arc::new(Cast(data_type)) };
    let (double, decimal) = (DataType::Float64, DataType::Decimal128(20, 2));
    let call = |function, argument: Option<ExpressionRef>, output| AggregateCall {
        function,
        distinct: function == Count,
        arguments: argument.into_iter().collect(),
        filter: None,
        output,
    };
    vec![
        call(CountRows, None, DataType::Int64),
        call(Count, Some(integers()), DataType::Int64),
        call(Sum, Some(integers()), DataType::Int64),
        call(Sum, Some(of(decimal.clone())), DataType::Decimal128(38, 2)),
        call(Sum, Some(of(double.clone())), double.clone()),
        call(VarPop, Some(of(double.clone())), double),
        call(Max, Some(integers()), DataType::Int64),
        call(Min, Some(of(decimal.clone())), decimal),
        call(Max, Some(text), DataType::Utf8),
    ]
}

fn sessions() -> Box<dyn Operator> {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    let mut fields = vec![
        Field::new("k", DataType::Utf8, true),
        Field::new("window_start", time.clone(), false),
        Field::new("window_end", time, false),
    ];
    let results = calls().into_iter().enumerate();
    fields.extend(results.map(|(at, c)| Field::new(format!("call{at}"), c.output, true)));
    let output: SchemaRef = Arc::new(Schema::new(fields));
    let (input, calls) = (schema(""), calls());
    let (keys, collect_late) = (vec![0], true);
    let spec = SessionAggregateSpec { gap: 10, time: 1, keys, calls, collect_late, input, output };
    Box::new(SessionAggregate::new(spec).unwrap())
}

#[test]
fn runs_and_stragglers_of_sessions_are_read_for_ever() {
    let in_order = vec![
        fresh("a", 100, 0),
        fresh("b\0", 112, 1),
        fresh("a", 115, 2),
        row(None, 104, MARK_NONE, 3),
        fresh("a", 117, 4),
    ];
    // 93 is behind the watermark, not its mark, and joins what begins at 100; 20 is late.
    let stragglers = vec![row(Some("a"), 93, 90, 5), row(Some("c"), 20, 97, 6)];
    // Late by the recorded watermark alone.
    let idle = vec![row(Some("c"), 50, MARK_NONE, 7)];
    check(
        &sessions,
        include_str!("../tests/golden/sessions-1.txt"),
        &[
            (&[(0, in_order)], [95; 2]),
            (&[(0, stragglers)], [95; 2]),
            (&[(0, idle)], [MARK_END; 2]),
        ],
        expect![[r#"
            a 93 110 2 2 193005 193005.00 193005.0 12232506.25 100000 93005.00 a
            - 104 114 1 1 104003 104003.00 104003.0 0.0 104003 104003.00 -
            b0 112 122 1 1 112001 112001.00 112001.0 0.0 112001 112001.00 b0
            a 115 127 2 2 232006 232006.00 232006.0 1002001.0 117004 115002.00 a
            late ["c 50 50007 idle - 36", "c 20 20006 straggler 97 68 !97@3/6"]
            Counts { fired: 4, late_straggler: 1, late_idle: 1, versions_gone: 0, duplicates: 0 }
        "#]],
    );
}

fn beside() -> SchemaRef {
    let (left, right) = (schema(""), schema("r"));
    Arc::new(Schema::new([left.fields().to_vec(), right.fields().to_vec()].concat()))
}

fn enrich() -> Box<dyn Operator> {
    let spec = TemporalJoinSpec {
        left_keys: vec![0],
        right_keys: vec![0],
        left_time: Some(1),
        right_time: Some(1),
        left_outer: true,
        bounded: false,
        keep: 1000,
        left: schema(""),
        right: schema("r"),
        output: beside(),
    };
    Box::new(TemporalJoin::new(spec).unwrap())
}

#[test]
fn versions_and_rows_that_wait_for_them_are_read_for_ever() {
    let ended = Row { diff: -1, ..fresh("a", 20, 3) };
    let table = vec![fresh("a", 5, 0), fresh("b\0", 12, 1), fresh("a", 15, 2), ended];
    let stream = vec![fresh("a", 10, 0), fresh("a", 18, 1), row(Some("b\0"), 11, 13, 2)];
    let nothing = vec![row(None, 19, 13, 3), fresh("a", 25, 4)];
    // The first is late by the recorded watermark alone.
    let more = vec![fresh("a", 9, 4), fresh("a", 22, 5)];
    check(
        &enrich,
        include_str!("../tests/golden/enrich-1.txt"),
        &[(&[(1, table), (0, stream), (0, nothing)], [8, 9]), (&[(1, more)], [MARK_END; 2])],
        expect![[r#"
            a 10 10000 a 5 5000
            b0 11 11002 - - - !13@3/2
            a 18 18001 a 15 15002
            - 19 19003 - - -
            a 25 25004 a 22 22005
            late []
            Counts { fired: 0, late_straggler: 0, late_idle: 1, versions_gone: 0, duplicates: 0 }
        "#]],
    );
}

fn as_of_windows() -> Box<dyn Operator> {
    let spec = WindowVersionJoinSpec {
        left_keys: vec![0],
        right_keys: vec![0],
        left_time: 1,
        right_version: 1,
        version_is_end: true,
        slide: 10,
        offset: 0,
        left_outer: true,
        collect_late: true,
        left: schema(""),
        right: schema("r"),
        output: beside(),
    };
    Box::new(WindowVersionJoin::new(spec).unwrap())
}

#[test]
fn windows_and_readings_that_wait_for_them_are_read_for_ever() {
    let view = vec![fresh("a", 10, 0), fresh("b\0", 10, 1), fresh("a", 20, 2)];
    let readings = vec![fresh("a", 12, 0), fresh("a", 25, 1), row(None, 21, MARK_NONE, 2)];
    let marked = vec![row(Some("b\0"), 24, 23, 3)];
    // 11 is late by the recorded watermark alone, 19 finds a window of before.
    let more = vec![fresh("b\0", 11, 4), fresh("b\0", 19, 5), fresh("b\0", 26, 6)];
    check(
        &as_of_windows,
        include_str!("../tests/golden/as-of-windows-1.txt"),
        &[
            (&[(1, view), (0, readings), (0, marked)], [11, 10]),
            (&[(1, vec![fresh("b\0", 20, 3)]), (0, more)], [MARK_END; 2]),
        ],
        expect![[r#"
            b0 19 19005 b0 10 10001
            - 21 21002 - - -
            b0 24 24003 b0 20 20003 !23@3/3
            a 25 25001 a 20 20002
            b0 26 26006 b0 20 20003
            late ["b0 11 11004 idle - 0"]
            Counts { fired: 0, late_straggler: 0, late_idle: 1, versions_gone: 0, duplicates: 0 }
        "#]],
    );
}

fn first_ones() -> Box<dyn Operator> {
    let spec = DeduplicateSpec { keys: vec![0], time: 1, within: 10, input: schema("") };
    Box::new(Deduplicate::new(spec).unwrap())
}

#[test]
fn keys_that_were_seen_are_read_for_ever() {
    let before = vec![
        fresh("a", 50, 0),
        fresh("b\0", 52, 1),
        fresh("a", 55, 2),
        row(None, 51, MARK_NONE, 3),
    ];
    // 58 is a copy, 63 is not any more, 35 is late by the recorded watermark alone.
    let more = vec![fresh("a", 58, 4), fresh("b\0", 63, 5), fresh("c", 35, 6)];
    check(
        &first_ones,
        include_str!("../tests/golden/dedup-1.txt"),
        &[(&[(0, before)], [49; 2]), (&[(0, more)], [MARK_END; 2])],
        expect![[r#"
            b0 63 63005
            late []
            Counts { fired: 0, late_straggler: 0, late_idle: 1, versions_gone: 0, duplicates: 1 }
        "#]],
    );
}
