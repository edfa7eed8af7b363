//! Plans under snapshot.

use expect_test::{Expect, expect};

use weir_engine::connector::ENGINE_SOURCE_OPTIONS;

use super::{TABLES, connectors, explained, plan};
use crate::plan::{JobPlan, Node};

fn check(sink: &str, query: &str, want: Expect) {
    want.assert_eq(&explained(sink, query));
}

#[test]
fn tumbling_windows_read_only_what_they_need() {
    check(
        "meter STRING, s TIMESTAMP(3), a DOUBLE, c BIGINT",
        "SELECT meter, TUMBLE_START(ts, INTERVAL '5' MINUTE), AVG(kwh), COUNT(*) FROM readings
         WHERE n > 3 GROUP BY meter, TUMBLE(ts, INTERVAL '5' MINUTE) ON LATE INTO late",
        expect![[r#"
            Job out, late (time zone UTC)
              #6 Sink out: rows once
                #5 Project [meter, EXPR$1, EXPR$2, EXPR$3]
                  #3 Project [meter, window_start, call0, call1]
                    #2 Tumble 5 minutes over ts by [meter] of [Avg(kwh), CountRows()]
                      #1 Filter (n > 3) Project [meter, kwh, ts, o]
                        #0 Source readings [meter, kwh, n, ts, o] delay 5 seconds: read again from the start
              #7 Sink late: rows once
                #4 Project [meter, o, late_reason, late_by]
                  late rows of #2 (above)
        "#]],
    );
}

#[test]
fn table_functions_and_cascades() {
    check(
        "c BIGINT, s TIMESTAMP(3), e TIMESTAMP(3), n BIGINT",
        "SELECT cnt, window_start, window_end, COUNT(*) FROM (
           SELECT meter, window_start, window_end, COUNT(DISTINCT n) AS cnt
           FROM TABLE(HOP(TABLE readings, DESCRIPTOR(ts), INTERVAL '1' MINUTE, INTERVAL '1' HOUR))
           GROUP BY meter, window_start, window_end)
         GROUP BY cnt, window_start, window_end",
        expect![[r#"
            Job out (time zone UTC)
              #7 Sink out: rows once
                #6 Project [cnt, window_start, window_end, EXPR$3]
                  #5 Project [cnt, window_start, window_end, call0]
                    #4 Tumble 1 ms over window_time by [cnt, window_start] of [CountRows()]
                      #3 Project [window_start, cnt, TIME_ADD(window_end, -1 ms)]
                        #2 Project [window_start, window_end, call0]
                          #1 Hop 1 hour by 1 minute over ts by [meter] of [Count(DISTINCT n)]
                            #0 Source readings [meter, n, ts] delay 5 seconds: read again from the start
        "#]],
    );
}

#[test]
fn theft_ratio() {
    let text = format!(
        "{TABLES}CREATE VIEW baseline AS SELECT meter, window_end, AVG(kwh) AS mean
         FROM TABLE(HOP(TABLE readings, DESCRIPTOR(ts), INTERVAL '15' SECOND, INTERVAL '1' HOUR))
         GROUP BY meter, window_start, window_end;
         CREATE TABLE out (meter STRING, ratio DOUBLE, owner STRING)
         WITH ('connector' = 'filesystem', 'path' = '/out');
         EXPLAIN INSERT INTO out SELECT r.meter, r.kwh / b.mean, d.owner FROM readings AS r
         JOIN baseline FOR SYSTEM_TIME AS OF r.ts AS b ON r.meter = b.meter
         LEFT JOIN devices FOR SYSTEM_TIME AS OF r.ts AS d ON d.meter = r.meter AND r.kwh > 1
         WHERE b.mean > 0;"
    );
    let got = plan(&text).map_or_else(|e| e, |s| s.explains.concat());
    expect![[r#"
        Job out (time zone UTC)
          #9 Sink out: rows once
            #8 Project [meter, EXPR$1, owner]
              #7 Filter (mean > 0) Project [meter, (kwh / mean), owner]
                #6 Project [meter, kwh, mean, CASE WHEN (kwh > 1) THEN owner ELSE NULL END]
                  #5 Left temporal join [meter] = [meter] as of ts, table loaded first
                    #3 Inner join [meter] = [meter] as of ts, window_end valid for 15 seconds
                      #0 Source readings [meter, kwh, ts] delay 5 seconds: read again from the start
                      #2 Project [meter, window_end, call0]
                        #1 Hop 1 hour by 15 seconds over ts by [meter] of [Avg(kwh)]
                          #0 (above)
                    #4 Source devices [meter, owner, since] delay 0 seconds read first: read again from the start
    "#]].assert_eq(&got);
}

#[test]
fn grouping_sets_and_sessions() {
    check(
        "g BIGINT, meter STRING, s TIMESTAMP(3), c BIGINT",
        "SELECT GROUPING_ID(meter), meter, window_start, COUNT(*)
         FROM TABLE(TUMBLE(TABLE readings, DESCRIPTOR(ts), INTERVAL '5' SECOND))
         GROUP BY GROUPING SETS ((meter), ()), window_start, window_end",
        expect![[r#"
            Job out (time zone UTC)
              #7 Sink out: rows once
                #6 Project [EXPR$0, meter, window_start, EXPR$3]
                  #5 Union of 2
                    #2 Project [0, meter, window_start, call0]
                      #1 Tumble 5 seconds over ts by [meter] of [CountRows()]
                        #0 Source readings [meter, ts] delay 5 seconds: read again from the start
                    #4 Project [1, NULL, window_start, call0]
                      #3 Tumble 5 seconds over ts by [] of [CountRows()]
                        #0 (above)
        "#]],
    );
    check(
        "meter STRING, t TIMESTAMP(3), c BIGINT",
        "SELECT meter, SESSION_ROWTIME(ts, INTERVAL '10' MINUTE), COUNT(*) FROM readings
         GROUP BY meter, SESSION(ts, INTERVAL '10' MINUTE) HAVING COUNT(*) > 1",
        expect![[r#"
            Job out (time zone UTC)
              #4 Sink out: rows once
                #3 Project [meter, EXPR$1, EXPR$2]
                  #2 Filter (call0 > 1) Project [meter, TIME_ADD(window_end, -1 ms), call0]
                    #1 Session gap 10 minutes over ts by [meter] of [CountRows()]
                      #0 Source readings [meter, ts] delay 5 seconds: read again from the start
        "#]],
    );
}

#[test]
fn plans_survive_their_stored_form() {
    let text = format!(
        "{TABLES}CREATE TABLE out (m STRING, p DECIMAL(38, 2))
         WITH ('connector' = 'filesystem', 'path' = '/out');
         INSERT INTO out SELECT meter, SUM(price * 1.5) FROM readings
         GROUP BY meter, HOP(ts, INTERVAL '1' MINUTE, INTERVAL '1' HOUR) ON LATE INTO late;"
    );
    let job = plan(&text).unwrap().jobs.remove(0);
    let stored = serde_json::to_string(&job).unwrap();
    assert_eq!(serde_json::from_str::<JobPlan>(&stored).unwrap(), job);
    let mut graph = weir_engine::graph::Graph::default();
    crate::build(&job, &connectors(), &mut graph).unwrap();
    assert_eq!(graph.nodes.len(), job.nodes.len());
}

/// The predicates offered to the source of a query.
fn pushed(query: &str) -> String {
    let text = explained("meter STRING, n BIGINT", query);
    let sources: Vec<&str> = text.lines().filter(|line| line.contains("Source")).collect();
    let pushed = |line: &&str| {
        let part = line.split(" pushed ").nth(1)?;
        Some(part.split(':').next()?.split(" read first").next()?.to_owned())
    };
    sources.iter().filter_map(pushed).collect::<Vec<_>>().join("; ")
}

#[test]
fn filters_are_offered_to_the_source_where_lateness_cannot_tell() {
    let cases = [
        // With event time: lower bounds of it, and nothing else.
        "SELECT meter, n FROM readings WHERE ts >= TIMESTAMP '2024-01-01 00:00:00' AND n > 3",
        "SELECT meter, n FROM readings WHERE TIMESTAMP '2024-01-01 00:00:00' < ts",
        "SELECT meter, n FROM readings WHERE ts < TIMESTAMP '2024-01-01 00:00:00'",
        "SELECT meter, n FROM readings WHERE ts = TIMESTAMP '2024-01-01 00:00:00'",
        // Through views and projections.
        "SELECT meter, n FROM (SELECT meter, n, ts AS t FROM readings WHERE n > 1)
         WHERE t > TIMESTAMP '2024-01-01 00:00:00'",
        // Two readers want different rows.
        "SELECT meter, n FROM readings WHERE ts > TIMESTAMP '2024-01-01 00:00:00'
         UNION ALL SELECT meter, n FROM readings WHERE ts > TIMESTAMP '2025-01-01 00:00:00'",
    ];
    let got: Vec<String> = cases.iter().map(|query| pushed(query)).collect();
    expect![[r#"
        [ts >= 1704067200000]
        [ts > 1704067200000]


        [ts > 1704067200000]
    "#]]
    .assert_eq(&got.join("\n"));
}

/// The defaults are written down twice, where they are told and where they are used.
#[test]
fn the_manual_names_the_defaults_of_the_engines_options() {
    let planned = |option: &str| {
        let option = if option.is_empty() { String::new() } else { format!(", {option}") };
        let place = if option.contains("versions.keep") { "'/devices'" } else { "'readings'" };
        let tables = TABLES.replace(place, &format!("{place}{option}"));
        let text = format!(
            "{tables}CREATE TABLE out (m STRING, o STRING)
             WITH ('connector' = 'filesystem', 'path' = '/out');
             INSERT INTO out SELECT r.meter, d.owner FROM readings AS r
             LEFT JOIN devices FOR SYSTEM_TIME AS OF r.ts AS d ON d.meter = r.meter;"
        );
        let mut job = plan(&text).unwrap().jobs.remove(0);
        for node in &mut job.nodes {
            if let Node::Source(source) = &mut node.node {
                source.table.options.clear();
            }
        }
        job
    };
    let without = planned("");
    for option in &ENGINE_SOURCE_OPTIONS {
        let Some(default) = option.default.filter(|d| *d != "none") else { continue };
        let given = planned(&format!("'{}' = '{default}'", option.key));
        assert_eq!(given, without, "{}", option.key);
    }
}

#[test]
fn without_event_time_all_is_offered_that_the_files_themselves_hold() {
    let text = "CREATE TABLE archive (
           meter STRING, n INT, day STRING, at STRING METADATA FROM 'split' VIRTUAL
         ) PARTITIONED BY (day)
         WITH ('connector' = 'filesystem', 'path' = '/archive', 'format' = 'parquet');
         CREATE TABLE out (meter STRING, n INT)
         WITH ('connector' = 'filesystem', 'path' = '/out', 'format' = 'parquet');
         INSERT INTO out SELECT meter, n FROM archive
         WHERE 3 < n AND meter = 'x' AND day = '2024' AND at >= '10' AND n * 2 > 1";
    let script = plan(text).unwrap();
    let pushed = script.jobs[0].nodes.iter().find_map(|node| match &node.node {
        crate::plan::Node::Source(source) => Some(source.table.pushed.clone()),
        _ => None,
    });
    let lines = pushed.unwrap().into_iter().map(|p| {
        let weir_engine::connector::Pushed { column, operator, literal } = p;
        format!("{column} {operator} {literal}")
    });
    assert_eq!(lines.collect::<Vec<_>>(), ["n > 3", "meter = x"]);
}
