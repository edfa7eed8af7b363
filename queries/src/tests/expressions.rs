//! Expressions by their values: each is planned, compiled and evaluated over a few rows.

use arrow::array::{
    ArrayRef, Decimal128Array, Float64Array, Int32Array, Int64Array, RecordBatch,
    RecordBatchOptions, StringArray, StructArray, TimestampMillisecondArray,
};
use arrow::datatypes::{DataType, Field};
use arrow::util::display::array_value_to_string;
use expect_test::{Expect, expect};
use std::sync::Arc;

use super::{TABLES, connectors};
use crate::compile::compile;
use crate::plan::{Node, schema_of};
use crate::types::sql_name;

/// Three rows of `readings`, the last one with NULLs.
fn column(name: &str) -> ArrayRef {
    match name {
        "meter" => Arc::new(StringArray::from(vec![Some("m-01"), Some("über"), None])),
        "kwh" => Arc::new(Float64Array::from(vec![Some(1.5), Some(-0.25), None])),
        "n" => Arc::new(Int32Array::from(vec![Some(7), Some(0), None])),
        "price" => Arc::new(
            Decimal128Array::from(vec![Some(1050), Some(-333), None])
                .with_precision_and_scale(10, 2)
                .unwrap(),
        ),
        "ts" => {
            Arc::new(TimestampMillisecondArray::from(vec![Some(1_709_211_909_120), Some(-1), None]))
        }
        "o" => Arc::new(Int64Array::from(vec![10, 11, 12])),
        _ => {
            let fw: ArrayRef = Arc::new(StringArray::from(vec![Some("1.2"), None, Some("3")]));
            Arc::new(StructArray::from(vec![(
                Arc::new(Field::new("fw", DataType::Utf8, true)),
                fw,
            )]))
        }
    }
}

fn values(expression: &str) -> String {
    let text = format!(
        "{TABLES}CREATE VIEW v AS SELECT {expression} AS x FROM readings;
         EXPLAIN SELECT x FROM v;"
    );
    let parsed = crate::parse::parse_script(&text);
    let connectors = connectors();
    let mut planner = crate::bind::Planner::new(&connectors, Vec::new());
    let mut planned = crate::bind::Planned::default();
    parsed.statements.into_iter().for_each(|s| planner.statement(s, &mut planned));
    let errors: Vec<_> = planner.errors.iter().chain(&parsed.errors).collect();
    if let Some(error) = errors.iter().find(|e| !e.message.is_empty()) {
        return format!("{expression}: error: {}\n", error.message);
    }
    let nodes = &planned.explained[0].nodes;
    let found = nodes.iter().find_map(|n| match &n.node {
        Node::RowWise { input, project: Some(project), .. } => Some((*input, project[0].clone())),
        _ => None,
    });
    let (input, scalar) = found.unwrap();
    let schema = schema_of(&nodes[input.node].columns);
    let columns = schema.fields().iter().map(|f| match f.name().as_str() {
        "twice" => column("n"),
        name => column(name),
    });
    let options = RecordBatchOptions::new().with_row_count(Some(3));
    let rows = RecordBatch::try_new_with_options(schema.clone(), columns.collect(), &options);
    let compiled = compile(&scalar, &schema).unwrap();
    let shown = match compiled.evaluate(&rows.unwrap(), 1_000) {
        Ok(array) => (0..3)
            .map(|i| match arrow::array::Array::is_null(&array, i) {
                true => "NULL".to_owned(),
                false => array_value_to_string(&array, i).unwrap(),
            })
            .collect::<Vec<_>>()
            .join(" | "),
        Err(failures) => failures
            .iter()
            .map(|f| format!("row {}: {}", f.row, f.reason))
            .collect::<Vec<_>>()
            .join("; "),
    };
    format!("{expression}: {} {shown}\n", sql_name(&scalar.data_type))
}

fn check(expressions: &[&str], want: Expect) {
    want.assert_eq(&expressions.iter().map(|e| values(e)).collect::<String>());
}

#[test]
fn numbers() {
    check(
        &[
            "n / 2",
            "n % 4",
            "7 / n",
            "price * 2",
            "price / 3",
            "price + 1",
            "0.908 * o",
            "kwh * n",
            "MOD(o, 3)",
            "ROUND(price, 1)",
            "ROUND(kwh)",
            "ABS(price)",
            "FLOOR(kwh)",
            "CEIL(price)",
            "POWER(n, 2)",
            "CAST(kwh AS STRING)",
            "CAST(kwh AS INT)",
            "CAST(meter AS INT)",
            "TRY_CAST(meter AS INT)",
            "GREATEST(n, o)",
            "-price",
            "CASE WHEN n > 3 THEN 'big' ELSE 'small' END",
            "COALESCE(n, -1)",
            "NULLIF(n, 7)",
            "IF(n > 3, kwh, 0)",
            "n IN (7, 8)",
            "n BETWEEN 1 AND 9",
            "n IS DISTINCT FROM 7",
            "LOG(2, 8)",
            "price > 1",
            "SIGN(kwh)",
        ],
        expect![[r#"
            n / 2: INT 3 | 0 | NULL
            n % 4: INT 3 | 0 | NULL
            7 / n: INT row 1: Divide by zero error
            price * 2: DECIMAL(20, 2) 21.00 | -6.66 | NULL
            price / 3: DECIMAL(21, 13) 3.5000000000000 | -1.1100000000000 | NULL
            price + 1: DECIMAL(13, 2) 11.50 | -2.33 | NULL
            0.908 * o: DECIMAL(23, 3) 9.080 | 9.988 | 10.896
            kwh * n: DOUBLE 10.5 | -0.0 | NULL
            MOD(o, 3): INT 1 | 2 | 0
            ROUND(price, 1): DECIMAL(10, 1) 10.5 | -3.3 | NULL
            ROUND(kwh): DOUBLE 2.0 | 0.0 | NULL
            ABS(price): DECIMAL(10, 2) 10.50 | 3.33 | NULL
            FLOOR(kwh): DOUBLE 1.0 | -1.0 | NULL
            CEIL(price): DECIMAL(9, 0) 11 | -3 | NULL
            POWER(n, 2): DOUBLE 49.0 | 0.0 | NULL
            CAST(kwh AS STRING): STRING 1.5 | -0.25 | NULL
            CAST(kwh AS INT): INT 1 | 0 | NULL
            CAST(meter AS INT): INT row 0: Cast error: Cannot cast string 'm-01' to value of Int32 type; row 1: Cast error: Cannot cast string 'über' to value of Int32 type
            TRY_CAST(meter AS INT): INT NULL | NULL | NULL
            GREATEST(n, o): BIGINT 10 | 11 | NULL
            -price: DECIMAL(10, 2) -10.50 | 3.33 | NULL
            CASE WHEN n > 3 THEN 'big' ELSE 'small' END: STRING big | small | small
            COALESCE(n, -1): INT 7 | 0 | -1
            NULLIF(n, 7): INT NULL | 0 | NULL
            IF(n > 3, kwh, 0): DOUBLE 1.5 | 0.0 | 0.0
            n IN (7, 8): BOOLEAN true | false | NULL
            n BETWEEN 1 AND 9: BOOLEAN true | false | NULL
            n IS DISTINCT FROM 7: BOOLEAN false | true | true
            LOG(2, 8): DOUBLE 3.0 | 3.0 | 3.0
            price > 1: BOOLEAN true | false | NULL
            SIGN(kwh): DOUBLE 1.0 | -1.0 | NULL
        "#]],
    );
}

#[test]
fn strings() {
    check(
        &[
            "UPPER(meter)",
            "CHAR_LENGTH(meter)",
            "SUBSTRING(meter, 2, 2)",
            "SUBSTR(meter, -2)",
            "meter || '-' || n",
            "CONCAT(meter, 'x')",
            "CONCAT_WS('/', meter, 'x')",
            "SPLIT_INDEX(meter, '-', 1)",
            "REGEXP_EXTRACT(meter, '([a-z])-(\\d+)', 2)",
            "REGEXP_REPLACE(meter, '(\\d)', '<$1>')",
            "POSITION('e' IN meter)",
            "TRIM(LEADING 'm' FROM meter)",
            "LPAD(meter, 6, '*')",
            "meter LIKE 'm-%'",
            "meter LIKE 'm!_%' ESCAPE '!'",
            "meter SIMILAR TO '(m|x)-[0-9]+'",
            "REPLACE(meter, 'm', '')",
            "INITCAP(meter)",
            "LEFT(meter, 2)",
            "device.fw",
            "readings.device.fw",
            "LOCATE('0', meter)",
        ],
        expect![[r#"
            UPPER(meter): STRING M-01 | ÜBER | NULL
            CHAR_LENGTH(meter): INT 4 | 4 | NULL
            SUBSTRING(meter, 2, 2): STRING -0 | be | NULL
            SUBSTR(meter, -2): STRING 01 | er | NULL
            meter || '-' || n: STRING m-01-7 | über-0 | NULL
            CONCAT(meter, 'x'): STRING m-01x | überx | NULL
            CONCAT_WS('/', meter, 'x'): STRING m-01/x | über/x | x
            SPLIT_INDEX(meter, '-', 1): STRING 01 | NULL | NULL
            REGEXP_EXTRACT(meter, '([a-z])-(\d+)', 2): STRING 01 | NULL | NULL
            REGEXP_REPLACE(meter, '(\d)', '<$1>'): STRING m-<0><1> | über | NULL
            POSITION('e' IN meter): INT 0 | 3 | NULL
            TRIM(LEADING 'm' FROM meter): STRING -01 | über | NULL
            LPAD(meter, 6, '*'): STRING **m-01 | **über | NULL
            meter LIKE 'm-%': BOOLEAN true | false | NULL
            meter LIKE 'm!_%' ESCAPE '!': BOOLEAN false | false | NULL
            meter SIMILAR TO '(m|x)-[0-9]+': BOOLEAN true | false | NULL
            REPLACE(meter, 'm', ''): STRING -01 | über | NULL
            INITCAP(meter): STRING M-01 | Über | NULL
            LEFT(meter, 2): STRING m- | üb | NULL
            device.fw: STRING 1.2 | NULL | 3
            readings.device.fw: STRING 1.2 | NULL | 3
            LOCATE('0', meter): INT 3 | 0 | NULL
        "#]],
    );
}

#[test]
fn times() {
    check(
        &[
            "HOUR(ts)",
            "EXTRACT(DOW FROM ts)",
            "DATE_FORMAT(ts, 'yyyy-MM-dd HH:mm')",
            "ts + INTERVAL '1' HOUR",
            "ts - INTERVAL '1' MONTH",
            "FLOOR(ts TO DAY)",
            "CEIL(ts TO MONTH)",
            "TO_TIMESTAMP('2024-01-31 10:00:00')",
            "TO_TIMESTAMP_LTZ(o, 0)",
            "TO_TIMESTAMP_LTZ(n, 3)",
            "TO_TIMESTAMP_LTZ(n, CASE WHEN o = 10 THEN 0 ELSE 3 END)",
            "FROM_UNIXTIME(o)",
            "UNIX_TIMESTAMP('1970-01-01 00:01:00')",
            "TIMESTAMPDIFF(DAY, ts, TIMESTAMP '2024-03-01 00:00:00')",
            "TIMESTAMPADD(DAY, 1, ts)",
            "CAST(ts AS STRING)",
            "CAST(ts AS DATE)",
            "NOW()",
            "CAST('2024-01-31 10:00:00.5' AS TIMESTAMP(3))",
            "ts > TIMESTAMP '2000-01-01 00:00:00'",
            "CAST(ts AS TIMESTAMP_LTZ(3))",
            "WEEK(ts)",
            "DATE '2024-02-29'",
        ],
        expect![[r#"
            HOUR(ts): BIGINT 13 | 23 | NULL
            EXTRACT(DOW FROM ts): BIGINT 5 | 4 | NULL
            DATE_FORMAT(ts, 'yyyy-MM-dd HH:mm'): STRING 2024-02-29 13:05 | 1969-12-31 23:59 | NULL
            ts + INTERVAL '1' HOUR: TIMESTAMP(3) 2024-02-29T14:05:09.120 | 1970-01-01T00:59:59.999 | NULL
            ts - INTERVAL '1' MONTH: TIMESTAMP(3) 2024-01-29T13:05:09.120 | 1969-11-30T23:59:59.999 | NULL
            FLOOR(ts TO DAY): TIMESTAMP(3) 2024-02-29T00:00:00 | 1969-12-31T00:00:00 | NULL
            CEIL(ts TO MONTH): TIMESTAMP(3) 2024-03-01T00:00:00 | 1970-01-01T00:00:00 | NULL
            TO_TIMESTAMP('2024-01-31 10:00:00'): TIMESTAMP(3) 2024-01-31T10:00:00 | 2024-01-31T10:00:00 | 2024-01-31T10:00:00
            TO_TIMESTAMP_LTZ(o, 0): TIMESTAMP_LTZ(3) 1970-01-01T00:00:10Z | 1970-01-01T00:00:11Z | 1970-01-01T00:00:12Z
            TO_TIMESTAMP_LTZ(n, 3): TIMESTAMP_LTZ(3) 1970-01-01T00:00:00.007Z | 1970-01-01T00:00:00Z | NULL
            TO_TIMESTAMP_LTZ(n, CASE WHEN o = 10 THEN 0 ELSE 3 END): TIMESTAMP_LTZ(3) 1970-01-01T00:00:07Z | 1970-01-01T00:00:00Z | NULL
            FROM_UNIXTIME(o): STRING 1970-01-01 00:00:10 | 1970-01-01 00:00:11 | 1970-01-01 00:00:12
            UNIX_TIMESTAMP('1970-01-01 00:01:00'): BIGINT 60 | 60 | 60
            TIMESTAMPDIFF(DAY, ts, TIMESTAMP '2024-03-01 00:00:00'): INT 0 | 19783 | NULL
            TIMESTAMPADD(DAY, 1, ts): TIMESTAMP(3) 2024-03-01T13:05:09.120 | 1970-01-01T23:59:59.999 | NULL
            CAST(ts AS STRING): STRING 2024-02-29 13:05:09.120 | 1969-12-31 23:59:59.999 | NULL
            CAST(ts AS DATE): DATE 2024-02-29 | 1969-12-31 | NULL
            NOW(): TIMESTAMP_LTZ(3) 1970-01-01T00:00:01Z | 1970-01-01T00:00:01Z | 1970-01-01T00:00:01Z
            CAST('2024-01-31 10:00:00.5' AS TIMESTAMP(3)): TIMESTAMP(3) 2024-01-31T10:00:00.500 | 2024-01-31T10:00:00.500 | 2024-01-31T10:00:00.500
            ts > TIMESTAMP '2000-01-01 00:00:00': BOOLEAN true | false | NULL
            CAST(ts AS TIMESTAMP_LTZ(3)): TIMESTAMP_LTZ(3) 2024-02-29T13:05:09.120Z | 1969-12-31T23:59:59.999Z | NULL
            WEEK(ts): BIGINT 9 | 1 | NULL
            DATE '2024-02-29': DATE 2024-02-29 | 2024-02-29 | 2024-02-29
        "#]],
    );
}
