//! Error messages under snapshot.

use expect_test::{Expect, expect};

use super::{TABLES, explained, plan};

fn check(query: &str, want: Expect) {
    want.assert_eq(&explained("a STRING, b BIGINT", query));
}

#[test]
fn names_are_suggested() {
    check(
        "SELECT metr, n FROM readings",
        expect![[r#"
        error: column `metr` does not exist in `readings`; did you mean `meter`?
          --> test.sql:14:32
           |
        14 | EXPLAIN INSERT INTO out SELECT metr, n FROM readings;
           |                                ^^^^ did you mean `meter`?
    "#]],
    );
    check(
        "SELECT meter, ABSS(n) FROM reading",
        expect![[r#"
        error: table `reading` does not exist; did you mean `readings`?
          --> test.sql:14:52
           |
        14 | EXPLAIN INSERT INTO out SELECT meter, ABSS(n) FROM reading;
           |                                                    ^^^^^^^ did you mean `readings`?
    "#]],
    );
}

#[test]
fn several_errors_at_once() {
    check(
        "SELECT kwhh, SUBSTR(n) FROM readings",
        expect![[r#"
        error: column `kwhh` does not exist in `readings`; did you mean `kwh`?
          --> test.sql:14:32
           |
        14 | EXPLAIN INSERT INTO out SELECT kwhh, SUBSTR(n) FROM readings;
           |                                ^^^^ did you mean `kwh`?

        error: SUBSTR takes 2 to 3 arguments, SUBSTR(string, start[, length]); here it has 1
          --> test.sql:14:38
           |
        14 | EXPLAIN INSERT INTO out SELECT kwhh, SUBSTR(n) FROM readings;
           |                                      ^^^^^^^^^
    "#]],
    );
}

#[test]
fn clauses_are_refused_by_name() {
    check(
        "SELECT DISTINCT meter, n FROM readings",
        expect![[r#"
        error: SELECT DISTINCT needs endless state on a stream; not supported yet
          --> test.sql:14:32
           |
        14 | EXPLAIN INSERT INTO out SELECT DISTINCT meter, n FROM readings;
           |                                ^^^^^^^^
           = hint: group by the columns and a window instead
    "#]],
    );
    check(
        "SELECT meter, COUNT(*) FROM readings GROUP BY meter",
        expect![[r#"
        error: GROUP BY without a window changes rows that were already written: `out` would have to take updates (by a PRIMARY KEY); updating queries are not supported yet
          --> test.sql:14:62
           |
        14 | EXPLAIN INSERT INTO out SELECT meter, COUNT(*) FROM readings GROUP BY meter;
           |                                                              ^^^^^^^^
           = hint: aggregate per window: GROUP BY …, TUMBLE(ts, INTERVAL '5' MINUTE), or group by window_start, window_end of TABLE(TUMBLE(…))
    "#]],
    );
    check(
        "SELECT meter, SUM(n) OVER (PARTITION BY meter ORDER BY ts) FROM readings",
        expect![[r#"
        error: `SUM … OVER` is not supported yet
          --> test.sql:14:46
           |
        14 | EXPLAIN INSERT INTO out SELECT meter, SUM(n) OVER (PARTITION BY meter ORDER BY ts) FROM readings;
           |                                              ^^^^
           = hint: aggregate in a window: GROUP BY …, TUMBLE(ts, INTERVAL …) or HOP, SESSION
    "#]],
    );
    let joined = "SELECT r.meter, d.n FROM readings r JOIN readings d ON r.meter = d.meter";
    check(
        joined,
        expect![[r#"
        error: JOIN without FOR SYSTEM_TIME AS OF is not supported yet: a regular join keeps every row for ever and no time attribute (event time)
          --> test.sql:14:61
           |
        14 | EXPLAIN INSERT INTO out SELECT r.meter, d.n FROM readings r JOIN readings d ON r.meter = d.meter;
           |                                                             ^^^^
           = hint: join a table with a PRIMARY KEY: JOIN t FOR SYSTEM_TIME AS OF l.ts AS t ON …; interval joins and window joins are not supported yet
    "#]],
    );
}

#[test]
fn secrets_are_masked() {
    let text = format!(
        "{TABLES}CREATE TABLE pg (m STRING, x DOUBLE) WITH ('connector' = 'postgres',
  'url' = 'postgresql://weir:geheim@db/x', 'passwort' = 'offen', 'password' = 'geheim');
INSERT INTO pg SELECT meter, kwh FROM readings;"
    );
    let errors = plan(&text).unwrap_err();
    assert!(!errors.contains("geheim"), "{errors}");
    expect![[r#"
        error: unknown option 'passwort'
          --> test.sql:14:44
           |
        14 |   'url' = 'postgresql://weir:***@db/x', 'passwort' = '***', 'password' = '***');
           |                                            ^^^^^^^^^^
    "#]]
    .assert_eq(&errors);
}
