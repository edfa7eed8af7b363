//! Aggregates by text, and their laws: order, merges, evictions and restarts cannot be seen.
#![allow(clippy::unwrap_used)]

use arrow::array::*;
use arrow::datatypes::*;
use expect_test::{Expect, expect};
use proptest::prelude::*;
use std::sync::Arc;
use weir_engine::expression::{Column, ExpressionRef};

use super::AggregateFunction::*;
use super::*;

fn batch(columns: Vec<ArrayRef>) -> RecordBatch {
    let named = columns.into_iter().enumerate().map(|(at, c)| (format!("c{at}"), c));
    RecordBatch::try_from_iter_with_nullable(named.map(|(name, c)| (name, c, true))).unwrap()
}

fn column(rows: &RecordBatch, index: usize) -> ExpressionRef {
    Arc::new(Column { index, data_type: rows.column(index).data_type().clone() })
}

fn call(function: AggregateFunction, argument: ExpressionRef, output: DataType) -> AggregateCall {
    AggregateCall { function, distinct: false, arguments: vec![argument], filter: None, output }
}

/// The results over all rows as one group, then over none.
fn check(calls: &[AggregateCall], rows: &RecordBatch, expected: Expect) {
    let mut accumulators = Accumulators::new(calls).unwrap();
    accumulators.grow(2);
    let arguments = accumulators.arguments(rows).unwrap();
    accumulators.update(&vec![0; rows.num_rows()], &arguments, None).unwrap();
    expected.assert_eq(&show(&accumulators, &[0, 1]));
}

fn show(accumulators: &Accumulators, groups: &[u32]) -> String {
    let columns = accumulators.evaluate(groups).unwrap();
    let cell = |column: &ArrayRef, row: usize| {
        if column.is_null(row) {
            return "NULL".into();
        }
        arrow::util::display::array_value_to_string(column, row).unwrap()
    };
    (0..groups.len())
        .map(|row| columns.iter().map(|c| cell(c, row)).collect::<Vec<_>>().join(" ") + "\n")
        .collect()
}

#[test]
fn integers_wrap_around_and_truncate() {
    let ints = Int32Array::from(vec![Some(i32::MAX), Some(2), None, Some(-7)]);
    let rows = batch(vec![Arc::new(ints)]);
    let x = || column(&rows, 0);
    let calls = [
        call(Count, x(), DataType::Int64),
        call(Sum, x(), DataType::Int32),
        call(Sum, x(), DataType::Int64),
        call(Avg, x(), DataType::Int32),
        call(Avg, x(), DataType::Float64),
        call(Min, x(), DataType::Int32),
        call(Max, x(), DataType::Int32),
        call(VarPop, x(), DataType::Float64),
    ];
    check(
        &calls,
        &rows,
        expect![[r#"
        3 2147483642 2147483642 715827880 715827880.6666666 -7 2147483647 1.024819116637742e18
        0 NULL NULL NULL NULL NULL NULL NULL
    "#]],
    );
    let few = batch(vec![Arc::new(Int32Array::from(vec![i32::MAX, 1]))]);
    check(
        &calls[1..3],
        &few,
        expect![[r#"
        -2147483648 2147483648
        NULL NULL
    "#]],
    );
}

#[test]
fn decimals_round_half_up_and_are_null_beyond_38_digits() {
    let decimals = |values: Vec<i128>, precision| -> RecordBatch {
        let column = Decimal128Array::from(values).with_precision_and_scale(precision, 2).unwrap();
        batch(vec![Arc::new(column)])
    };
    let calls = |rows: &RecordBatch| {
        [
            call(Sum, column(rows, 0), DataType::Decimal128(38, 2)),
            call(Avg, column(rows, 0), DataType::Decimal128(38, 6)),
            call(Min, column(rows, 0), DataType::Decimal128(10, 2)),
            call(StddevPop, column(rows, 0), DataType::Decimal128(38, 6)),
        ]
    };
    let rows = decimals(vec![100, -250, 50, 299, 1, 1, 1], 10);
    check(
        &calls(&rows),
        &rows,
        expect![[r#"
        2.02 0.288571 -2.50 1.505110
        NULL NULL NULL NULL
    "#]],
    );
    let huge = 99_999_999_999_999_999_999_999_999_999_999_999_999;
    let rows = decimals(vec![huge, 1], 38);
    check(
        &calls(&rows)[..2],
        &rows,
        expect![[r#"
        NULL NULL
        NULL NULL
    "#]],
    );
    let rows = decimals(vec![huge, 1, -1], 38);
    check(
        &calls(&rows)[..1],
        &rows,
        expect![[r#"
        999999999999999999999999999999999999.99
        NULL
    "#]],
    );
}

#[test]
fn extremes_of_every_kind() {
    let zone = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    let times = TimestampMillisecondArray::from(vec![5, 1, 3]).with_data_type(zone.clone());
    let packed: DictionaryArray<Int32Type> = vec!["x", "y", "x"].into_iter().collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![Some("b"), None, Some("ab")])),
        Arc::new(times),
        Arc::new(BooleanArray::from(vec![true, false, true])),
        Arc::new(Float64Array::from(vec![0.0, f64::NAN, -0.0])),
        Arc::new(Date32Array::from(vec![3, -1, 2])),
        Arc::new(UInt64Array::from(vec![u64::MAX, 1, 2])),
        Arc::new(packed),
    ];
    let rows = batch(columns);
    let calls: Vec<AggregateCall> = (0..7)
        .flat_map(|at| {
            let output = plain_type(rows.column(at).data_type());
            [Min, Max].map(|function| call(function, column(&rows, at), output.clone()))
        })
        .collect();
    check(
        &calls,
        &rows,
        expect![[r#"
        ab b 1970-01-01T00:00:00.001Z 1970-01-01T00:00:00.005Z false true -0.0 NaN 1969-12-31 1970-01-04 1 18446744073709551615 x y
        NULL NULL NULL NULL NULL NULL NULL NULL NULL NULL NULL NULL NULL NULL
    "#]],
    );
}

#[test]
fn filters_nulls_and_distinct() {
    let values = Float64Array::from(vec![Some(1.5), Some(1.5), None, Some(2.0), Some(f64::NAN)]);
    let passes = BooleanArray::from(vec![Some(true), Some(true), Some(true), Some(true), None]);
    let words = StringArray::from(vec![Some("a"), Some("a"), Some("b"), None, Some("c")]);
    let rows = batch(vec![Arc::new(values), Arc::new(passes), Arc::new(words)]);
    let filtered = |mut call: AggregateCall| {
        call.filter = Some(column(&rows, 1));
        call
    };
    let distinct = |mut call: AggregateCall| {
        call.distinct = true;
        call
    };
    let (v, w) = (|| column(&rows, 0), || column(&rows, 2));
    let count_rows =
        || AggregateCall { arguments: vec![], ..call(CountRows, v(), DataType::Int64) };
    let both = AggregateCall { arguments: vec![v(), w()], ..call(Count, v(), DataType::Int64) };
    check(
        &[
            count_rows(),
            filtered(count_rows()),
            call(Count, v(), DataType::Int64),
            filtered(call(Sum, v(), DataType::Float64)),
            call(Sum, v(), DataType::Float64),
            distinct(call(Count, w(), DataType::Int64)),
            distinct(call(Count, v(), DataType::Int64)),
            distinct(filtered(call(Sum, v(), DataType::Float64))),
            distinct(filtered(call(Avg, v(), DataType::Float64))),
            both.clone(),
            distinct(both),
        ],
        &rows,
        expect![[r#"
            5 4 4 5.0 NaN 3 3 3.5 1.75 3 2
            0 0 0 NULL NULL 0 0 NULL NULL 0 0
        "#]],
    );
}

#[test]
fn spread_of_values_far_from_zero_is_exact() {
    let rows = batch(vec![Arc::new(Float64Array::from(vec![1e9 + 4.0, 1e9 + 7.0, 1e9 + 13.0]))]);
    let of = |function| call(function, column(&rows, 0), DataType::Float64);
    check(
        &[of(VarPop), of(VarSamp), of(StddevSamp)],
        &rows,
        expect![[r#"
        14.0 21.0 4.58257569495584
        NULL NULL NULL
    "#]],
    );
    let one = batch(vec![Arc::new(Float64Array::from(vec![3.0]))]);
    check(
        &[of(VarPop), of(VarSamp), of(StddevSamp)],
        &one,
        expect![[r#"
        0.0 NULL NULL
        NULL NULL NULL
    "#]],
    );
}

#[test]
fn what_is_not_defined_is_refused() {
    let rows = batch(vec![Arc::new(StringArray::from(vec!["a"]))]);
    let refused = Accumulators::new(&[call(Sum, column(&rows, 0), DataType::Utf8)]);
    expect!["Sum of Utf8 is not defined"].assert_eq(&refused.unwrap_err().to_string());
}

/// Calls over (a nullable double, a nullable string); without extremes they are invertible.
fn mixed(rows: &RecordBatch, extremes: bool) -> Vec<AggregateCall> {
    let distinct = |function, at, output| {
        let mut call = call(function, column(rows, at), output);
        call.distinct = true;
        call
    };
    let mut calls = vec![
        call(Avg, column(rows, 0), DataType::Float64),
        call(StddevSamp, column(rows, 0), DataType::Float64),
        distinct(Sum, 0, DataType::Float64),
        distinct(Count, 1, DataType::Int64),
        AggregateCall { arguments: vec![], ..call(CountRows, column(rows, 0), DataType::Int64) },
    ];
    if extremes {
        calls.push(call(Max, column(rows, 1), DataType::Utf8));
        calls.push(call(Min, column(rows, 0), DataType::Float64));
    }
    calls
}

/// Two parts, each added up alone, put together by what was split off and by columns.
fn merged_as_columns(
    fresh: &dyn Fn() -> Accumulators,
    one: (&[u32], &Arguments),
    other: (&[u32], &Arguments),
) -> Accumulators {
    let [mut left, mut right, mut merged] = [fresh(), fresh(), fresh()];
    left.update(one.0, one.1, None).unwrap();
    right.update(other.0, other.1, None).unwrap();
    let split = left.split_off(&[2, 1, 0]).unwrap();
    let columns: Vec<ArrayRef> = split.columns(&[2, 0]).into_iter().map(|c| c.1).collect();
    merged.restore(&[0, 2], &columns).unwrap();
    merged.merge(&split, &[1], &[1]).unwrap();
    merged.restore(&[0, 1, 2], &right.state(&[0, 1, 2], Form::Narrow)).unwrap();
    assert_eq!(show(&left, &[0, 1, 2]), show(&fresh(), &[0, 1, 2]), "they are empty then");
    merged
}

/// What a snapshot of three groups brings back, in either form.
fn restarted(fresh: &dyn Fn() -> Accumulators, before: &Accumulators) -> Accumulators {
    let saved = |made: &Accumulators| made.state(&[2, 1, 0], Form::Equal);
    let fields = before.state_fields("s");
    assert!(saved(before).iter().zip(&fields).all(|(c, f)| c.data_type() == f.data_type()));
    let (mut restored, mut from_narrow) = (fresh(), fresh());
    restored.restore(&[2, 1, 0], &saved(before)).unwrap();
    from_narrow.restore(&[2, 1, 0], &before.state(&[2, 1, 0], Form::Narrow)).unwrap();
    assert_eq!(saved(&from_narrow), saved(&restored));
    restored
}

proptest! {
    #[test]
    fn order_merges_evictions_and_restarts_cannot_be_seen(
        rows in prop::collection::vec(
            (
                0..3_u32,
                prop::option::of(-1e6..1e6_f64),
                prop::option::of("[ab]{0,2}"),
                any::<bool>(),
            ),
            0..40,
        ),
        cut in 0..40_usize,
        extremes in any::<bool>(),
    ) {
        let rounded = |x: f64| (x * 8.0).round() / 8.0;
        let values: Float64Array = rows.iter().map(|row| row.1.map(rounded)).collect();
        let words: StringArray = rows.iter().map(|row| row.2.clone()).collect();
        let all = batch(vec![Arc::new(values), Arc::new(words)]);
        let groups: Vec<u32> = rows.iter().map(|row| row.0).collect();
        let calls = mixed(&all, extremes);
        let fresh = || {
            let mut made = Accumulators::new(&calls).unwrap();
            made.grow(6);
            made
        };
        // As they come, without those that are taken away below.
        let gone = |row: usize| !extremes && rows[row].3;
        let (taken, kept): (Vec<u32>, Vec<u32>) =
            (0..rows.len() as u32).partition(|&row| gone(row as usize));
        let mut plain = fresh();
        let arguments = plain.arguments(&all).unwrap();
        let of_kept = arguments.take(&kept.clone().into()).unwrap();
        let kept_groups: Vec<u32> = kept.iter().map(|&row| groups[row as usize]).collect();
        plain.update(&kept_groups, &of_kept, None).unwrap();

        // In two parts, one of them backwards, merged, and then less some rows, by diffs or as a
        // group.
        let cut = cut.min(rows.len());
        let (mut left, mut right) = (fresh(), fresh());
        let part = |range: Vec<u32>| {
            let groups: Vec<u32> = range.iter().map(|&row| groups[row as usize]).collect();
            (groups, arguments.take(&range.into()).unwrap())
        };
        let (front, of_front) = part((0..cut as u32).collect());
        let (back, of_back) = part((cut as u32..rows.len() as u32).rev().collect());
        left.update(&front, &of_front, None).unwrap();
        right.update(&back, &of_back, None).unwrap();
        left.merge(&right, &[0, 1, 2], &[0, 1, 2]).unwrap();
        let (lost, of_lost) = part(taken);
        if cut % 2 == 0 {
            left.update(&lost, &of_lost, Some(&vec![-1; lost.len()])).unwrap_or_default();
        } else if left.is_invertible() {
            let beside: Vec<u32> = lost.iter().map(|group| group + 3).collect();
            left.update(&beside, &of_lost, None).unwrap();
            left.subtract_within(&[3, 4, 5], &[0, 1, 2]).unwrap();
            left.clear(&[3, 4, 5]);
        }
        prop_assert_eq!(show(&left, &[0, 1, 2, 3]), show(&plain, &[0, 1, 2, 3]));

        // Merged through columns.
        let mut whole = fresh();
        whole.update(&groups, &arguments, None).unwrap();
        let merged = merged_as_columns(&fresh, (&front, &of_front), (&back, &of_back));
        prop_assert_eq!(show(&merged, &[0, 1, 2]), show(&whole, &[0, 1, 2]));

        // Through its columns.
        let saved = |made: &Accumulators| made.state(&[2, 1, 0], Form::Equal);
        prop_assert_eq!(saved(&left), saved(&plain));
        let restored = restarted(&fresh, &left);
        prop_assert_eq!(show(&restored, &[0, 1, 2, 3]), show(&plain, &[0, 1, 2, 3]));
    }

    /// Ids stand for encodings, in all forms that a column has, through frees.
    #[test]
    fn keys_have_one_id_and_come_back_in_order(
        rows in prop::collection::vec(
            (prop::option::of("[a\u{0}é]{0,3}"), prop::option::of(-3..3_i64), any::<bool>()),
            1..30,
        ),
        wide in 0..4_usize,
        packed in any::<bool>(),
    ) {
        let words: StringArray = rows.iter().map(|row| row.0.clone()).collect();
        let words: ArrayRef = if packed {
            let each = rows.iter().map(|row| row.0.as_deref());
            Arc::new(each.collect::<DictionaryArray<Int32Type>>())
        } else {
            Arc::new(words)
        };
        let floats: Float64Array = rows.iter().map(|row| row.1.map(|x| x as f64 / 2.0)).collect();
        let ints: Int64Array = rows.iter().map(|row| row.1).collect();
        let all = batch(vec![words, Arc::new(ints), Arc::new(floats)]);
        let columns = [vec![0], vec![1], vec![0, 1, 2], vec![]][wide].clone();
        let encoded = |row: usize| {
            let mut bytes = Vec::new();
            let each = columns.iter().map(|&at| all.column(at));
            each.for_each(|c| weir_engine::keys::encode_value(c.as_ref(), row, &mut bytes));
            bytes
        };
        let mut interner = KeyInterner::new(&all.schema(), columns.clone());
        let mut ids = Vec::new();
        interner.intern(&all, &mut ids).unwrap();
        let gone: Vec<u32> = {
            let mut gone: Vec<u32> =
                ids.iter().zip(&rows).filter(|(_, row)| row.2).map(|(&id, _)| id).collect();
            gone.sort_unstable();
            gone.dedup();
            gone
        };
        interner.free(&gone);
        interner.intern(&all, &mut ids).unwrap();
        for (row, &id) in ids.iter().enumerate() {
            prop_assert_eq!(interner.bytes(id), &encoded(row)[..]);
        }
        let mut distinct: Vec<Vec<u8>> = (0..rows.len()).map(encoded).collect();
        distinct.sort();
        distinct.dedup();
        let order = interner.ordered().to_vec();
        let ordered: Vec<Vec<u8>> = order.iter().map(|&id| interner.bytes(id).to_vec()).collect();
        prop_assert_eq!(interner.len(), distinct.len());
        prop_assert_eq!(ordered, distinct);
        let shown = interner.columns_of_many(&ids).unwrap();
        prop_assert_eq!(&shown, &interner.columns(&ids).unwrap());
        for (column, &at) in shown.iter().zip(&columns) {
            prop_assert_eq!(column, &plain(all.column(at).clone()));
        }
    }
}
