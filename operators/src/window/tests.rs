//! Windows by text: rows and watermarks in, firings and late rows out.
#![allow(clippy::unwrap_used)]

mod laws;
mod partial;
mod pieces;

use arrow::array::*;
use arrow::datatypes::*;
use expect_test::{Expect, expect};
use std::fmt::Write;
use std::sync::Arc;
use weir_engine::expression::{Column, ExpressionRef};
use weir_engine::operator::{EpochEnd, Operator, Output};
use weir_engine::rows::{Delta, Origin, Provenance};
use weir_engine::time::{MARK_END, MARK_NONE, Millis};

use super::{WindowAggregate, WindowAggregateSpec, WindowShape};
use crate::aggregates::{AggregateCall, AggregateFunction};

/// A row: key, time, value, mark, diff.
type Row = (&'static str, Option<Millis>, f64, Millis, i64);

fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, None)
}

fn input(dictionary: bool) -> SchemaRef {
    let packed = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    Arc::new(Schema::new(vec![
        Field::new("key", if dictionary { packed } else { DataType::Utf8 }, true),
        Field::new("ts", time_type(), true),
        Field::new("v", DataType::Float64, true),
    ]))
}

fn call(text: &str) -> AggregateCall {
    use AggregateFunction::*;
    let value: ExpressionRef = Arc::new(Column { index: 2, data_type: DataType::Float64 });
    let (name, distinct) = text.strip_suffix(" distinct").map_or((text, false), |n| (n, true));
    let function = match name {
        "rows" => CountRows,
        "count" => Count,
        "sum" => Sum,
        "avg" => Avg,
        "min" => Min,
        "max" => Max,
        "var" => VarPop,
        other => panic!("no function {other}"),
    };
    let counts = matches!(function, CountRows | Count);
    AggregateCall {
        function,
        distinct,
        arguments: if function == CountRows { vec![] } else { vec![value] },
        filter: None,
        output: if counts { DataType::Int64 } else { DataType::Float64 },
    }
}

fn spec(
    shape: WindowShape,
    keys: &[usize],
    calls: &[&str],
    dictionary: bool,
) -> WindowAggregateSpec {
    let calls: Vec<AggregateCall> = calls.iter().map(|text| call(text)).collect();
    let plain = input(false);
    let key =
        |&at: &usize| Field::new(format!("key{at}"), plain.field(at).data_type().clone(), true);
    let mut fields: Vec<Field> = keys.iter().map(key).collect();
    fields.push(Field::new("window_start", time_type(), false));
    fields.push(Field::new("window_end", time_type(), false));
    fields.extend(calls.iter().map(|call| Field::new("call", call.output.clone(), true)));
    WindowAggregateSpec {
        shape,
        time: 1,
        keys: keys.to_vec(),
        calls,
        collect_late: true,
        input: input(dictionary),
        output: Arc::new(Schema::new(fields)),
    }
}

fn window(shape: WindowShape, keys: &[usize], calls: &[&str], dictionary: bool) -> WindowAggregate {
    WindowAggregate::new(spec(shape, keys, calls, dictionary)).unwrap()
}

/// A chunk as the engine would make it: provenance only where a row is a straggler.
fn chunk(rows: &[Row], dictionary: bool) -> Delta {
    let keys = rows.iter().map(|row| Some(row.0).filter(|key| *key != "-"));
    let keys: ArrayRef = if dictionary {
        Arc::new(keys.collect::<DictionaryArray<Int32Type>>())
    } else {
        Arc::new(keys.collect::<StringArray>())
    };
    let times: TimestampMillisecondArray = rows.iter().map(|row| row.1).collect();
    let values = Float64Array::from_iter_values(rows.iter().map(|row| row.2));
    let columns = vec![keys, Arc::new(times) as ArrayRef, Arc::new(values)];
    let straggler = |row: &Row| row.1.is_some_and(|ts| ts <= row.3.saturating_add(1));
    Delta {
        rows: RecordBatch::try_new(input(dictionary), columns).unwrap(),
        diffs: rows
            .iter()
            .any(|row| row.4 != 1)
            .then(|| rows.iter().map(|row| row.4).collect::<Vec<_>>().into()),
        provenance: rows.iter().any(straggler).then(|| Provenance {
            marks: rows.iter().map(|row| row.3).collect(),
            splits: rows.iter().map(|_| 0).collect(),
            offsets: (0..rows.len() as u64).collect(),
        }),
        attached: None,
        origin: Origin::default(),
    }
}

fn cell(column: &ArrayRef, row: usize) -> String {
    let options = arrow::util::display::FormatOptions::default().with_null("NULL");
    match column.data_type() {
        DataType::Timestamp(_, _) if column.is_valid(row) => {
            column.as_primitive::<TimestampMillisecondType>().value(row).to_string()
        }
        _ => arrow::util::display::array_value_to_string(column, row)
            .map(|text| if column.is_null(row) { "NULL".into() } else { text })
            .unwrap_or_else(|_| format!("{options:?}")),
    }
}

/// One line a row: columns of results, or `late` and the columns of a late row.
fn lines(out: &Output) -> Vec<String> {
    let mut lines = Vec::new();
    for (prefix, deltas) in [("", &out.rows), ("late ", &out.late)] {
        for delta in deltas {
            for row in 0..delta.len() {
                let cells: Vec<String> =
                    delta.rows.columns().iter().map(|column| cell(column, row)).collect();
                lines.push(format!("{prefix}{}", cells.join(" ")));
            }
        }
    }
    for (delta, reasons) in &out.failed {
        (0..delta.len()).for_each(|row| lines.push(format!("failed row: {}", reasons[row])));
    }
    lines
}

fn parse(line: &'static str) -> Row {
    let mut row: Row = ("", None, 0.0, MARK_NONE, 1);
    for (at, word) in line.split_whitespace().enumerate() {
        match (at, word.split_at(1)) {
            (0, _) => row.0 = word,
            (1, _) => row.1 = word.parse().ok(),
            (_, ("@", mark)) => row.3 = mark.parse().unwrap(),
            (_, ("x", diff)) => row.4 = diff.parse().unwrap(),
            _ => row.2 = word.parse().unwrap(),
        }
    }
    row
}

/// Lines `key time value [@mark] [xdiff]` are rows of one chunk, `W time` ends an epoch, `W end`
/// the input. After each epoch: its output, behind `> W`.
fn run(mut operator: WindowAggregate, script: &'static str) -> String {
    let (mut rows, mut shown, mut out) = (Vec::new(), String::new(), Output::default());
    for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let Some(mark) = line.strip_prefix("W ") else {
            rows.push(parse(line));
            continue;
        };
        operator.push(0, chunk(&std::mem::take(&mut rows), false), &mut out).unwrap();
        let watermark = if mark == "end" { MARK_END } else { mark.parse().unwrap() };
        let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[watermark] };
        operator.advance(end, &mut out).unwrap();
        writeln!(shown, "> {mark}").unwrap();
        lines(&out).iter().for_each(|line| writeln!(shown, "{line}").unwrap());
        out.rows.clear();
        out.late.clear();
        out.failed.clear();
    }
    let counts = out.counts;
    let (straggler, idle) = (counts.late_straggler, counts.late_idle);
    writeln!(shown, "fired {} stragglers {straggler} idle {idle}", counts.fired).unwrap();
    shown
}

fn check(shape: WindowShape, calls: &[&str], script: &'static str, expected: Expect) {
    expected.assert_eq(&run(window(shape, &[0], calls, false), script));
}

const TUMBLE_10: WindowShape = WindowShape::Tumble { size: 10, offset: 0 };
const HOP_10_5: WindowShape = WindowShape::Hop { size: 10, slide: 5, offset: 0 };

#[test]
fn a_window_fires_once_the_watermark_reaches_its_last_millisecond() {
    check(
        TUMBLE_10,
        &["rows", "avg", "min", "max"],
        "b 1 1
         a 9 2
         a 0 3
         a 10 4
         W 8
         W 9
         a 19 5
         W end",
        expect![[r#"
            > 8
            > 9
            a 0 10 2 2.5 2.0 3.0
            b 0 10 1 1.0 1.0 1.0
            > end
            a 10 20 2 4.5 4.0 5.0
            fired 3 stragglers 0 idle 0
        "#]],
    );
}

#[test]
fn a_row_is_late_iff_its_window_ends_at_or_before_its_mark_or_the_watermark() {
    check(
        TUMBLE_10,
        &["rows"],
        "a 5 1 @8
         a 6 1 @9
         W 3
         a 7 1
         W 25
         a 19 1
         a 20 1 @28
         a 20 1 @29
         a 21 1
         W end",
        expect![[r#"
            > 3
            late a 6 1.0 straggler 9 0
            > 25
            a 0 10 2
            > end
            a 20 30 2
            late a 19 1.0 idle NULL 6
            late a 20 1.0 straggler 29 0
            fired 2 stragglers 2 idle 1
        "#]],
    );
}

#[test]
fn a_straggler_enters_the_windows_that_it_is_not_late_for() {
    check(
        HOP_10_5,
        &["rows", "sum"],
        "a 3 1
         a 4 10 @4
         a 4 100 @9
         W 3
         W end",
        expect![[r#"
            > 3
            late a 4 100.0 straggler 9 0
            > end
            a -5 5 1 1.0
            a 0 10 2 11.0
            fired 2 stragglers 1 idle 0
        "#]],
    );
}

#[test]
fn a_straggler_enters_two_stacks_too() {
    check(
        WindowShape::Hop { size: 20, slide: 5, offset: 0 },
        &["rows", "max"],
        "a 1 1
         a 6 1
         a 11 3
         W 14
         a 7 9 @15
         W 20
         a 3 7
         W 23
         a 18 2
         W end",
        expect![[r#"
            > 14
            a -15 5 1 1.0
            a -10 10 2 1.0
            a -5 15 3 3.0
            > 20
            a 0 20 4 9.0
            > 23
            late a 3 7.0 idle NULL 1
            > end
            a 5 25 4 9.0
            a 10 30 2 3.0
            a 15 35 1 2.0
            fired 7 stragglers 0 idle 1
        "#]],
    );
}

#[test]
fn between_windows_there_is_nothing_to_be_late_for() {
    check(
        WindowShape::Hop { size: 3, slide: 10, offset: 1 },
        &["rows"],
        "a 1 1
         a 3 1
         a 4 1
         a 0 1
         W 100
         a 5 1
         W end",
        expect![[r#"
            > 100
            a 1 4 2
            > end
            fired 1 stragglers 0 idle 0
        "#]],
    );
}

#[test]
fn cumulating_windows_repeat_what_they_hold_until_the_longest_has_fired() {
    check(
        WindowShape::Cumulate { size: 10, step: 5, offset: 0 },
        &["rows", "max"],
        "a 1 1
         b 7 2
         a 16 3
         a 2 9 @5
         W end",
        expect![[r#"
            > end
            a 0 5 1 1.0
            a 0 10 2 9.0
            b 0 10 1 2.0
            a 10 20 1 3.0
            fired 4 stragglers 0 idle 0
        "#]],
    );
}

#[test]
fn retractions_take_rows_away_and_empty_groups_do_not_fire() {
    check(
        HOP_10_5,
        &["rows", "sum", "count distinct"],
        "a 1 5
         b 1 5
         a 2 7 x2
         b 1 5 x-1
         a 6 7 x-1
         W end",
        expect![[r#"
            > end
            a -5 5 3 19.0 2
            a 0 10 2 12.0 2
            fired 2 stragglers 0 idle 0
        "#]],
    );
    let mut extreme = window(TUMBLE_10, &[0], &["max"], false);
    let refused = extreme.push(
        0,
        chunk(&[("a", Some(1), 1.0, MARK_NONE, -1)], false),
        &mut Output::default(),
    );
    expect!["MIN and MAX cannot take back a row: the input must be append-only"]
        .assert_eq(&refused.unwrap_err().to_string());
}

#[test]
fn without_a_key_there_is_one_group_and_null_is_a_key() {
    let script = "a 1 5
         - 2 7
         c null 7
         W end";
    expect![[r#"
        > end
        0 10 2 12.0
        failed row: event time is NULL
        fired 1 stragglers 0 idle 0
    "#]]
    .assert_eq(&run(window(TUMBLE_10, &[], &["rows", "sum"], false), script));
    expect![[r#"
        > end
        NULL 0 10 1 7.0
        a 0 10 1 5.0
        failed row: event time is NULL
        fired 2 stragglers 0 idle 0
    "#]]
    .assert_eq(&run(window(TUMBLE_10, &[0], &["rows", "sum"], false), script));
}

#[test]
fn a_gap_of_millions_of_slides_costs_nothing() {
    check(
        WindowShape::Hop { size: 2, slide: 1, offset: 0 },
        &["rows", "min"],
        "a 0 5
         a 4000000000000 5
         W end",
        expect![[r#"
            > end
            a -1 1 1 5.0
            a 0 2 1 5.0
            a 3999999999999 4000000000001 1 5.0
            a 4000000000000 4000000000002 1 5.0
            fired 4 stragglers 0 idle 0
        "#]],
    );
}

#[test]
fn panes_that_stay_sparse_after_a_full_one_reserve_little() {
    let shape = WindowShape::Tumble { size: 10, offset: 0 };
    let mut operator = window(shape, &[0], &["sum"], false);
    let names: Vec<&'static str> = (0..1_000).map(|n| &*format!("k{n}").leak()).collect();
    let push = |operator: &mut WindowAggregate, rows: &[Row]| {
        operator.push(0, chunk(rows, false), &mut Output::default()).unwrap();
    };
    let all = |at: Millis| names.iter().map(move |&k| (k, Some(at), 1.0, MARK_NONE, 1));
    let full: Vec<Row> = all(5).collect();
    push(&mut operator, &full);
    let end = EpochEnd { epoch: 1, recorded_time: 0, watermarks: &[9] };
    operator.advance(end, &mut Output::default()).unwrap();
    (2..200).for_each(|pane| push(&mut operator, &[("k1", Some(pane * 10), 1.0, MARK_NONE, 1)]));
    let cells = operator.slots.accumulators.len();
    assert!((1_000..1_500).contains(&cells), "{cells} cells");
    // The one that has reserved uses what it has.
    let full: Vec<Row> = all(25).collect();
    push(&mut operator, &full);
    assert!(operator.slots.accumulators.len() < 1_500);
    assert_eq!(operator.slots.used(), 1_000 + 197);
}

#[test]
fn groups_of_full_panes_lie_in_the_order_of_their_keys() {
    let shape = WindowShape::Tumble { size: 10, offset: 0 };
    let mut operator = window(shape, &[0], &["sum"], false);
    for pane in 0..3 {
        let rows = ["d", "a", "c", "b"].map(|k| (k, Some(pane * 10), 1.0, MARK_NONE, 1));
        operator.push(0, chunk(&rows, false), &mut Output::default()).unwrap();
        let Some(mut bucket) = operator.waiting.pop(MARK_END, &mut operator.slots) else {
            panic!("no pane is open")
        };
        bucket.close(&mut operator.keys.interner);
        assert_eq!(bucket.slots.is_sorted(), pane > 0, "{:?}", bucket.slots);
        operator.slots.release(&bucket.slots);
    }
}
