//! Rows in, rows and failures out.
#![allow(clippy::unwrap_used)]

use super::*;
use arrow::array::{Array, ArrayRef, DictionaryArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int32Type, Schema};
use expect_test::{Expect, expect};
use std::sync::Arc;
use weir_engine::expression::{Column, Evaluated, Expression};
use weir_engine::rows::{Origin, SplitId};

/// `a` × 10, or `a` × recorded time; fails for each of these values.
#[derive(Debug)]
struct Scaled {
    fails: Vec<i64>,
    by_time: bool,
}

impl Expression for Scaled {
    fn data_type(&self) -> DataType {
        DataType::Int64
    }

    fn evaluate(&self, rows: &RecordBatch, now: Millis) -> Evaluated {
        let values = rows.column(0).as_primitive::<Int64Type>().values();
        let failed = |(row, value): (usize, &i64)| {
            let reason = format!("{value} is too much");
            self.fails.contains(value).then_some(RowFailure { row, reason })
        };
        let failures: Vec<_> = values.iter().enumerate().filter_map(failed).collect();
        let by = if self.by_time { now } else { 10 };
        match failures.is_empty() {
            true => Ok(Arc::new(values.iter().map(|v| v * by).collect::<Int64Array>())),
            false => Err(failures),
        }
    }
}

/// True for odd, NULL for multiples of 4; fails for 9.
#[derive(Debug)]
struct Odd;

impl Expression for Odd {
    fn data_type(&self) -> DataType {
        DataType::Boolean
    }

    fn evaluate(&self, rows: &RecordBatch, _now: Millis) -> Evaluated {
        let values = rows.column(0).as_primitive::<Int64Type>().values();
        if let Some(row) = values.iter().position(|v| *v == 9) {
            return Err(vec![RowFailure { row, reason: "nine".into() }]);
        }
        let odd = |v: &i64| (v % 4 != 0).then_some(v % 2 == 1);
        Ok(Arc::new(values.iter().map(odd).collect::<BooleanArray>()))
    }
}

fn chunk(values: &[i64]) -> Delta {
    let texts: DictionaryArray<Int32Type> =
        values.iter().map(|v| if v % 2 == 0 { "even" } else { "odd" }).collect();
    let columns: [(&str, ArrayRef); 2] =
        [("a", Arc::new(Int64Array::from(values.to_vec()))), ("t", Arc::new(texts))];
    let rows = RecordBatch::try_from_iter(columns).unwrap();
    let count = values.len() as u64;
    Delta {
        rows,
        diffs: Some((0..values.len()).map(|i| if i % 2 == 0 { 1 } else { -1 }).collect()),
        provenance: Some(Provenance {
            marks: values.iter().map(|v| v + 100).collect(),
            splits: (0..count).map(|_| 3).collect(),
            offsets: (0..count).map(|i| 50 + i).collect(),
        }),
        attached: None,
        origin: Origin::Split { split: SplitId(3), offset: 50 },
    }
}

fn show(out: &Output) -> String {
    let line = |delta: &Delta, row: usize| {
        let rows = weir_engine::rows::unpack(&delta.rows);
        let mut cells: Vec<String> = Vec::new();
        for column in rows.columns() {
            cells.push(match column.as_any().downcast_ref::<StringArray>() {
                Some(texts) => texts.value(row).to_owned(),
                None => column.as_primitive::<Int64Type>().value(row).to_string(),
            });
        }
        let p = delta.provenance.as_ref().unwrap();
        let diff = delta.diffs.as_ref().unwrap()[row];
        format!("{} x{diff} mark {} at {}", cells.join(" "), p.marks[row], p.offsets[row])
    };
    let mut text = String::new();
    for delta in &out.rows {
        text += &format!("{:?}\n", delta.origin);
        (0..delta.len()).for_each(|row| text += &format!("  {}\n", line(delta, row)));
    }
    for (delta, reasons) in &out.failed {
        for (row, reason) in reasons.iter().enumerate() {
            text += &format!("failed: {}: {reason}\n", line(delta, row));
        }
    }
    text
}

fn check(filter: Option<ExpressionRef>, project: Option<Vec<ExpressionRef>>, expected: Expect) {
    let fields = match &project {
        Some(columns) if columns.len() == 1 => vec![("a", DataType::Int64)],
        _ => vec![("a", DataType::Int64), ("t", DataType::Utf8)],
    };
    let fields: Vec<_> = fields.into_iter().map(|(n, t)| Field::new(n, t, true)).collect();
    let output = Arc::new(Schema::new(fields));
    let mut core = RowWise::new(RowWiseSpec { filter, project, output, uses_time: false });
    let mut out = Output::default();
    core.push(0, chunk(&[1, 2, 3, 4, 5, 9, 7]), &mut out).unwrap();
    expected.assert_eq(&show(&out));
}

fn scaled(fails: Vec<i64>) -> ExpressionRef {
    Arc::new(Scaled { fails, by_time: false })
}

fn text() -> ExpressionRef {
    Arc::new(Column { index: 1, data_type: DataType::Utf8 })
}

#[test]
fn rows_that_pass_keep_what_travels_beside_them() {
    check(
        Some(Arc::new(Odd)),
        None,
        expect![[r#"
        Split { split: SplitId(3), offset: 50 }
          1 odd x1 mark 101 at 50
          3 odd x1 mark 103 at 52
          5 odd x1 mark 105 at 54
          7 odd x1 mark 107 at 56
        failed: 9 odd x-1 mark 109 at 55: nine
    "#]],
    );
}

#[test]
fn rows_that_fail_go_aside_and_the_rest_goes_on() {
    let columns = vec![scaled(vec![3, 5]), text()];
    check(
        Some(Arc::new(Odd)),
        Some(columns),
        expect![[r#"
        Split { split: SplitId(3), offset: 50 }
          10 odd x1 mark 101 at 50
          70 odd x1 mark 107 at 56
        failed: 9 odd x-1 mark 109 at 55: nine
        failed: 3 odd x1 mark 103 at 52: 3 is too much
        failed: 5 odd x1 mark 105 at 54: 5 is too much
    "#]],
    );
    // Two expressions fail for one row: the first reason is given, and the row leaves once.
    let columns = vec![scaled(vec![3, 5]), text(), scaled(vec![5, 7])];
    let fields = vec![
        Field::new("x", DataType::Int64, true),
        Field::new("t", DataType::Utf8, true),
        Field::new("y", DataType::Int64, true),
    ];
    let output = Arc::new(Schema::new(fields));
    let spec = RowWiseSpec { filter: None, project: Some(columns), output, uses_time: false };
    let mut out = Output::default();
    RowWise::new(spec).push(0, chunk(&[1, 3, 5, 7]), &mut out).unwrap();
    expect![[r#"
        Split { split: SplitId(3), offset: 50 }
          10 odd 10 x1 mark 101 at 50
        failed: 3 odd x-1 mark 103 at 51: 3 is too much
        failed: 5 odd x1 mark 105 at 52: 5 is too much
        failed: 7 odd x-1 mark 107 at 53: 7 is too much
    "#]]
    .assert_eq(&show(&out));
}

#[test]
fn columns_that_are_only_passed_on_are_filtered_last() {
    let first = Arc::new(Column { index: 0, data_type: DataType::Int64 });
    check(
        Some(Arc::new(Odd)),
        Some(vec![first]),
        expect![[r#"
        Split { split: SplitId(3), offset: 50 }
          1 x1 mark 101 at 50
          3 x1 mark 103 at 52
          5 x1 mark 105 at 54
          7 x1 mark 107 at 56
        failed: 9 odd x-1 mark 109 at 55: nine
    "#]],
    );
}

#[test]
fn the_recorded_time_is_that_of_the_epochs_end() {
    let output = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
    let project: Vec<ExpressionRef> = vec![Arc::new(Scaled { fails: vec![2], by_time: true })];
    let spec = RowWiseSpec { filter: None, project: Some(project), output, uses_time: true };
    let mut core = RowWise::new(spec);
    let mut out = Output::default();
    core.push(0, chunk(&[1, 2, 3]), &mut out).unwrap();
    assert!(out.rows.is_empty() && out.failed.is_empty());
    for recorded_time in [1000, 2000] {
        let end = EpochEnd { epoch: 1, recorded_time, watermarks: &[MARK_NONE] };
        core.advance(end, &mut out).unwrap();
    }
    expect![[r#"
        Split { split: SplitId(3), offset: 50 }
          1000 x1 mark 101 at 50
          3000 x1 mark 103 at 52
        failed: 2 even x-1 mark 102 at 51: 2 is too much
    "#]]
    .assert_eq(&show(&out));
}
