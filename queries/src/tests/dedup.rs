//! `'dedup.within'`: plans and errors under snapshot.

use expect_test::{Expect, expect};

use super::{TABLES, connectors, plan};
use crate::plan::{JobPlan, Node};

/// A table of readings with these clauses and options, and a sink, before a statement.
fn script(clauses: &str, options: &str, statement: &str) -> String {
    format!(
        "{TABLES}CREATE TABLE twice (
  meter STRING, ts TIMESTAMP(3), seq INT, kwh DOUBLE, v DOUBLE, twice_seq AS seq * 2{clauses}
) WITH ('connector' = 'mqtt', 'url' = 'mqtt://b', 'topic' = 'grid/#', 'format' = 'json'{options});
CREATE TABLE late_twice (meter STRING, kwh DOUBLE, late_by BIGINT)
WITH ('connector' = 'filesystem', 'path' = '/late');
CREATE TABLE out (a STRING, b DOUBLE) WITH ('connector' = 'filesystem', 'path' = '/out');
{statement};"
    )
}

const WATERMARK: &str = ",\n  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND";
const KEY: &str = ",\n  PRIMARY KEY (meter, ts, seq) NOT ENFORCED";
const WITHIN: &str = ",\n  'dedup.within' = '10 min'";

fn check(clauses: &str, options: &str, query: &str, want: Expect) {
    let text = script(clauses, options, &format!("EXPLAIN INSERT INTO out {query}"));
    want.assert_eq(&plan(&text).map_or_else(|errors| errors, |script| script.explains.concat()));
}

#[test]
fn right_behind_the_source_with_its_key() {
    // Nobody else reads `seq`, and `v` is read by none.
    check(
        &format!("{WATERMARK}{KEY}"),
        WITHIN,
        "SELECT meter, SUM(kwh) FROM twice
         WHERE kwh > 0 GROUP BY meter, TUMBLE(ts, INTERVAL '5' MINUTE) ON LATE INTO late_twice",
        expect![[r#"
            Job out, late_twice (time zone UTC)
              #7 Sink out: rows once
                #6 Project [meter, EXPR$1]
                  #4 Project [meter, call0]
                    #3 Tumble 5 minutes over ts by [meter] of [Sum(kwh)]
                      #2 Filter (kwh > 0) Project [meter, ts, kwh]
                        #1 Deduplicate by [meter, ts, seq] within 10 minutes of ts: each key once, rows further behind are late
                          #0 Source twice [meter, ts, seq, kwh] delay 5 seconds: read again from the start
              #8 Sink late_twice: rows once
                #5 Project [meter, kwh, late_by]
                  late rows of #3 (above)
        "#]],
    );
    // Two readers of one table share what it has seen.
    check(
        &format!("{WATERMARK},\n  PRIMARY KEY (twice_seq) NOT ENFORCED"),
        WITHIN,
        "SELECT meter, kwh FROM twice UNION ALL SELECT d.owner, r.kwh FROM twice AS r
         JOIN devices FOR SYSTEM_TIME AS OF r.ts AS d ON d.meter = r.meter
         WHERE r.ts > TIMESTAMP '2024-01-01 00:00:00'",
        expect![[r#"
            Job out (time zone UTC)
              #10 Sink out: rows once
                #9 Project [meter, kwh]
                  #8 Union of 2
                    #6 Project [meter, kwh]
                      #2 Project [meter, kwh]
                        #1 Deduplicate by [twice_seq] within 10 minutes of ts: each key once, rows further behind are late
                          #0 Source twice [meter, ts, seq, kwh] delay 5 seconds: read again from the start
                    #7 Project [owner, kwh]
                      #5 Filter (ts > 1704067200000) Project [owner, kwh]
                        #4 Inner temporal join [meter] = [meter] as of ts, table loaded first
                          #1 (above)
                          #3 Source devices [meter, owner, since] delay 0 seconds read first: read again from the start
        "#]],
    );
}

#[test]
fn without_the_option_a_key_says_nothing_of_duplicates() {
    let query = "SELECT meter, kwh FROM twice";
    let keyed = script(&format!("{WATERMARK}{KEY}"), "", &format!("INSERT INTO out {query}"));
    let job = plan(&keyed).unwrap().jobs.remove(0);
    assert!(!job.nodes.iter().any(|node| matches!(node.node, Node::Deduplicate { .. })));
}

#[test]
fn it_is_stored_and_built() {
    let text = script(
        &format!("{WATERMARK}{KEY}"),
        &format!("{WITHIN}, 'dead-letter.table' = 'bad'"),
        "CREATE TABLE bad (payload BYTES, reason STRING)
         WITH ('connector' = 'filesystem', 'path' = '/bad');
         INSERT INTO out SELECT meter, kwh FROM twice",
    );
    let job = plan(&text).unwrap().jobs.remove(0);
    let stored = serde_json::to_string(&job).unwrap();
    assert_eq!(serde_json::from_str::<JobPlan>(&stored).unwrap(), job);
    let mut graph = weir_engine::graph::Graph::default();
    crate::build(&job, &connectors(), &mut graph).unwrap();
    let cores = graph.nodes.iter().filter_map(|node| match node {
        weir_engine::graph::Node::Operator { core, inputs } => {
            Some(format!("{} {:?}", core.name(), inputs[0].1))
        }
        _ => None,
    });
    expect![[r#"
        deduplicate Keys([0, 1, 2])
        project Stay
        project Stay
        project Stay
        project Stay
        project Stay
        project Stay"#]]
    .assert_eq(&cores.collect::<Vec<_>>().join("\n"));
}

#[test]
fn what_is_missing_is_said() {
    let query = "SELECT meter, kwh FROM twice";
    check(
        WATERMARK,
        WITHIN,
        query,
        expect![[r#"
        error: 'dedup.within' needs a PRIMARY KEY on `twice`: rows of one key are one
          --> test.sql:17:3
           |
        17 |   'dedup.within' = '10 min');
           |   ^^^^^^^^^^^^^^
           = hint: declare what names a row: PRIMARY KEY (id, ts) NOT ENFORCED
    "#]],
    );
    check(
        KEY,
        WITHIN,
        query,
        expect![[r#"
        error: 'dedup.within' needs a WATERMARK on `twice`: it is in event time
          --> test.sql:17:3
           |
        17 |   'dedup.within' = '10 min');
           |   ^^^^^^^^^^^^^^
           = hint: declare one: WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
    "#]],
    );
}

#[test]
fn what_is_wrong_is_said() {
    let query = "SELECT meter, kwh FROM twice";
    let both = format!("{WATERMARK}{KEY}");
    check(
        &both,
        ", 'dedup.within' = '0 s'",
        query,
        expect![[r#"
        error: 'dedup.within' must be longer than '0 s'
          --> test.sql:17:107
           |
        17 | ) WITH ('connector' = 'mqtt', 'url' = 'mqtt://b', 'topic' = 'grid/#', 'format' = 'json', 'dedup.within' = '0 s');
           |                                                                                                           ^^^^^
           = hint: duplicates that come later than this behind the watermark are not known
    "#]],
    );
    check(
        &both,
        ", 'dedup.within' = 'soon'",
        query,
        expect![[r#"
        error: 'dedup.within' must be a duration, not 'soon'; write a number and a unit (ms, s, min, h, d), for example '5 min'
          --> test.sql:17:107
           |
        17 | ) WITH ('connector' = 'mqtt', 'url' = 'mqtt://b', 'topic' = 'grid/#', 'format' = 'json', 'dedup.within' = 'soon');
           |                                                                                                           ^^^^^^
    "#]],
    );
    check(
        &both,
        ", 'dedup.withn' = '1 min'",
        query,
        expect![[r#"
        error: unknown option 'dedup.withn'
          --> test.sql:17:90
           |
        17 | ) WITH ('connector' = 'mqtt', 'url' = 'mqtt://b', 'topic' = 'grid/#', 'format' = 'json', 'dedup.withn' = '1 min');
           |                                                                                          ^^^^^^^^^^^^^
    "#]],
    );
    check(
        &format!("{WATERMARK},\n  PRIMARY KEY (meter) NOT ENFORCED"),
        WITHIN,
        "SELECT t.meter, t.kwh FROM readings AS r
         JOIN twice FOR SYSTEM_TIME AS OF r.ts AS t ON t.meter = r.meter",
        expect![[r#"
            error: `twice` is joined FOR SYSTEM_TIME AS OF: its rows are versions of their PRIMARY KEY, but 'dedup.within' would drop all but the first
              --> test.sql:18:3
               |
            18 |   'dedup.within' = '10 min');
               |   ^^^^^^^^^^^^^^
               = hint: leave 'dedup.within' out: a version that comes twice changes nothing
        "#]],
    );
}
