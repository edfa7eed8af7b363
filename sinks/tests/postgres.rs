//! The `postgres` sink against a real server, at WEIR_TEST_POSTGRES (`cargo xtask services up`).
#![allow(clippy::unwrap_used, missing_docs)]

use arrow::array::*;
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::*;
use expect_test::expect;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use weir_engine::connector::{ColumnSpec, Remedy, TableSpec};
use weir_engine::sink::{ShardEnd, Sink, SinkReport, SinkWriter};

fn url() -> String {
    std::env::var("WEIR_TEST_POSTGRES")
        .expect("WEIR_TEST_POSTGRES names a server; `cargo xtask services up postgres` starts one")
}

/// Statements on a connection of the test's own; rows as `a|b`, one a line.
fn sql(text: &str) -> String {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (client, connection) =
            tokio_postgres::connect(&url(), tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(async { drop(connection.await) });
        let mut lines = Vec::new();
        for message in client.simple_query(text).await.unwrap() {
            if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
                let cell = |i| row.get(i).unwrap_or("NULL").to_owned();
                lines.push((0..row.len()).map(cell).collect::<Vec<_>>().join("|"));
            }
        }
        lines.join("\n")
    })
}

fn spec(name: &str, rows: &RecordBatch, key: &[&str], more: &[(&str, &str)]) -> TableSpec {
    let mut spec = TableSpec {
        name: name.into(),
        columns: vec![],
        options: Default::default(),
        primary_key: key.iter().map(|k| (*k).to_owned()).collect(),
        partitioned_by: vec![],
        event_time: None,
        keyed: vec![],
        pushed: vec![],
    };
    for field in rows.schema().fields() {
        spec.columns.push(ColumnSpec {
            name: field.name().clone(),
            data_type: field.data_type().clone(),
            nullable: true,
            metadata: None,
        });
    }
    let url = url();
    let all = [("connector", "postgres"), ("url", url.as_str()), ("table-name", name)];
    for (key, value) in all.iter().chain(more) {
        spec.options.insert((*key).to_owned(), (*value).to_owned());
    }
    spec
}

fn made(spec: &TableSpec) -> Box<dyn Sink> {
    weir_sinks::postgres::sink(spec).unwrap_or_else(|e| panic!("{e:?}"))
}

fn open(spec: &TableSpec) -> (Box<dyn SinkWriter>, Arc<SinkReport>) {
    let sink = made(spec);
    sink.probe().unwrap();
    let report = Arc::new(SinkReport::default());
    (sink.open(0, None, report.clone()).unwrap(), report)
}

fn kv(rows: &[(i64, &str)]) -> RecordBatch {
    let keys: Int64Array = rows.iter().map(|r| Some(r.0)).collect();
    let values: StringArray = rows.iter().map(|r| Some(r.1)).collect();
    RecordBatch::try_from_iter_with_nullable([
        ("k", Arc::new(keys) as ArrayRef, true),
        ("v", Arc::new(values) as ArrayRef, true),
    ])
    .unwrap()
}

fn diffs(values: &[i64]) -> Option<ScalarBuffer<i64>> {
    Some(values.to_vec().into())
}

#[test]
fn a_key_keeps_its_last_row_and_loses_what_is_taken_back() {
    sql("DROP TABLE IF EXISTS upserts");
    let spec = spec("upserts", &kv(&[]), &["k"], &[]);
    let (mut out, report) = open(&spec);
    out.write(1, kv(&[(1, "a"), (2, "b")]), None).unwrap();
    out.write(1, kv(&[(1, "c")]), None).unwrap();
    out.end_epoch(ShardEnd::at(1, 0)).unwrap();
    assert_eq!(out.flush().unwrap(), 1);
    assert_eq!(sql("SELECT * FROM upserts ORDER BY k"), "1|c\n2|b");
    out.write(2, kv(&[(1, "d"), (1, "c"), (2, "b")]), diffs(&[1, -1, -1])).unwrap();
    out.end_epoch(ShardEnd::at(2, 0)).unwrap();
    out.write(3, kv(&[(3, "e")]), None).unwrap();
    out.end_epoch(ShardEnd::at(3, 0)).unwrap();
    out.finish().unwrap();
    assert_eq!(sql("SELECT * FROM upserts ORDER BY k"), "1|d\n3|e");
    assert_eq!(report.rows.load(Ordering::Relaxed), 7);

    // A table that is there is used as it is.
    let (mut again, _) = open(&spec);
    again.write(1, kv(&[(3, "f")]), None).unwrap();
    again.finish().unwrap();
    assert_eq!(sql("SELECT * FROM upserts ORDER BY k"), "1|d\n3|f");
}

#[test]
fn without_a_key_rows_are_appended_and_cannot_be_taken_back() {
    sql("DROP TABLE IF EXISTS appends; CREATE TABLE appends (v varchar(9), k int4, extra int)");
    let spec = spec("appends", &kv(&[]), &[], &[]);
    assert!(!made(&spec).accepts_retractions());
    let (mut out, _) = open(&spec);
    out.write(1, kv(&[(1, "a"), (1, "a")]), None).unwrap();
    out.end_epoch(ShardEnd::at(1, 0)).unwrap();
    assert!(out.write(2, kv(&[(1, "a")]), diffs(&[-1])).is_err());
    out.finish().unwrap();
    assert_eq!(sql("SELECT * FROM appends"), "a|1|NULL\na|1|NULL");
}

fn all_types() -> RecordBatch {
    let decimals = |values: Vec<Option<i128>>, scale| -> ArrayRef {
        let array = Decimal128Array::from(values);
        Arc::new(array.with_precision_and_scale(38, scale).unwrap())
    };
    let big = 10_i128.pow(38) - 1;
    let inner = Arc::new(Field::new("x", DataType::Float64, true));
    let x: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.5), None, Some(2.0)]));
    let mut list = ListBuilder::new(Int32Builder::new());
    list.append_value([Some(1), None]);
    list.append_null();
    list.append_value([]);
    RecordBatch::try_from_iter_with_nullable([
        ("id", Arc::new(Int32Array::from(vec![1, 2, 3])) as ArrayRef, true),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])), true),
        ("i8", Arc::new(Int8Array::from(vec![Some(-128), None, Some(127)])), true),
        ("i16", Arc::new(Int16Array::from(vec![Some(-32768), None, Some(32767)])), true),
        ("i64", Arc::new(Int64Array::from(vec![Some(i64::MIN), None, Some(i64::MAX)])), true),
        ("f32", Arc::new(Float32Array::from(vec![Some(0.5), None, Some(f32::NAN)])), true),
        ("f64", Arc::new(Float64Array::from(vec![Some(-1e300), None, Some(1e-5)])), true),
        ("d2", decimals(vec![Some(-123_456_705), None, Some(0)], 2), true),
        ("d0", decimals(vec![Some(big), None, Some(10_000)], 0), true),
        ("d38", decimals(vec![Some(-big), None, Some(1)], 38), true),
        ("t", Arc::new(StringArray::from(vec![Some("ü'\"\\\n"), None, Some("")])), true),
        ("y", Arc::new(BinaryArray::from(vec![Some(&b"\0\xff"[..]), None, Some(b"")])), true),
        ("d", Arc::new(Date32Array::from(vec![Some(-1), None, Some(19_858)])), true),
        ("tm", Arc::new(Time32MillisecondArray::from(vec![Some(86_399_999), None, Some(0)])), true),
        (
            "ts",
            Arc::new(TimestampMillisecondArray::from(vec![
                Some(-1),
                None,
                Some(1_714_521_615_250),
            ])),
            true,
        ),
        (
            "tz",
            Arc::new(
                TimestampNanosecondArray::from(vec![
                    Some(-1),
                    None,
                    Some(1_714_521_615_250_001_999),
                ])
                .with_timezone("UTC"),
            ),
            true,
        ),
        ("l", Arc::new(list.finish()), true),
        ("r", Arc::new(StructArray::from(vec![(inner, x)])), true),
    ])
    .unwrap()
}

#[test]
fn all_types_arrive_as_they_were() {
    sql("DROP TABLE IF EXISTS types");
    let rows = all_types();
    for key in [&["id"][..], &[]] {
        sql("DROP TABLE IF EXISTS types");
        let (mut out, _) = open(&spec("types", &rows, key, &[]));
        out.write(1, rows.clone(), None).unwrap();
        out.end_epoch(ShardEnd::at(1, 0)).unwrap();
        out.finish().unwrap();
        expect![[r#"
            1|t|-128|-32768|-9223372036854775808|0.5|-1e+300|-1234567.05|99999999999999999999999999999999999999|-0.99999999999999999999999999999999999999|ü'"\
            |\x00ff|1969-12-31|23:59:59.999|1969-12-31 23:59:59.999|1969-12-31 23:59:59.999999|[1, null]|{"x": 1.5}
            2|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|NULL|{"x": null}
            3|f|127|32767|9223372036854775807|NaN|1e-05|0.00|10000|0.00000000000000000000000000000000000001||\x|2024-05-15|00:00:00|2024-05-01 00:00:15.25|2024-05-01 00:00:15.250001|[]|{"x": 2.0}"#]]
        .assert_eq(&sql(
            "SELECT id, b, i8, i16, i64, f32, f64, d2, d0, d38, t, y, d, tm, ts, \
             tz AT TIME ZONE 'UTC', l, r FROM types ORDER BY id",
        ));
    }
}

#[test]
fn a_table_that_does_not_fit_is_refused_with_all_its_faults() {
    sql("DROP TABLE IF EXISTS misfit; CREATE TABLE misfit (k text, must int NOT NULL)");
    let error = made(&spec("misfit", &kv(&[]), &["k"], &[])).probe().unwrap_err();
    assert_eq!(error.remedy, Remedy::Reconfigure);
    expect![[r#"
        table `misfit` in the database does not fit: column `k` is text and cannot take bigint
        column `v` is missing
        column `must` is NOT NULL and would get no value"#]]
    .assert_eq(&error.message.replace("; ", "\n"));
    sql("DROP TABLE misfit; CREATE TABLE misfit (k int8, v text)");
    let error = made(&spec("misfit", &kv(&[]), &["k"], &[])).probe().unwrap_err();
    assert!(
        error.message.ends_with(r#"it has no unique index on ("k"), the primary key"#),
        "{error}"
    );
    let error = made(&spec("no_such", &kv(&[]), &[], &[("table.create", "false")])).probe();
    assert!(error.unwrap_err().message.contains("`no_such` does not exist"));
    let error = made(&spec("no_schema.x", &kv(&[]), &[], &[])).probe().unwrap_err();
    assert_eq!(error.remedy, Remedy::Reconfigure, "{error}");
}

#[test]
fn a_nul_character_ends_no_job() {
    for (choice, expected) in
        [("refuse", "1|a\n3|c\n4|d"), ("replace", "1|a\n2|\u{fffd}b\n3|c\n4|d")]
    {
        sql("DROP TABLE IF EXISTS nuls");
        let spec = spec("nuls", &kv(&[]), &["k"], &[("text.nul-character", choice)]);
        let (mut out, report) = open(&spec);
        out.write(1, kv(&[(1, "a"), (2, "\0b"), (3, "c")]), None).unwrap();
        out.end_epoch(ShardEnd::at(1, 0)).unwrap();
        out.write(2, kv(&[(4, "d"), (2, "\0b")]), diffs(&[1, 1])).unwrap();
        out.end_epoch(ShardEnd::at(2, 0)).unwrap();
        out.finish().unwrap();
        assert_eq!(sql("SELECT * FROM nuls ORDER BY k"), expected);
        let refused = report.refused.load(Ordering::Relaxed);
        assert_eq!(refused, if choice == "refuse" { 2 } else { 0 });
    }
}

/// Passes bytes on to the server; `cut` ends all connections and takes no more until `mend`.
struct Proxy {
    port: u16,
    cut: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
}

impl Proxy {
    fn start() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let cut = Arc::new(AtomicBool::new(false));
        let streams: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
        let (is_cut, all) = (cut.clone(), streams.clone());
        let config: tokio_postgres::Config = url().parse().unwrap();
        let to = config.get_ports()[0];
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let client = client.unwrap();
                if is_cut.load(Ordering::SeqCst) {
                    continue;
                }
                let server = TcpStream::connect(("127.0.0.1", to)).unwrap();
                for (mut from, mut to) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap()),
                    (server.try_clone().unwrap(), client.try_clone().unwrap()),
                ] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
                all.lock().unwrap().extend([client, server]);
            }
        });
        Proxy { port, cut, streams }
    }

    fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
        for stream in self.streams.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

#[test]
fn a_server_that_was_lost_is_waited_for_and_nothing_is_lost() {
    sql("DROP TABLE IF EXISTS lost; DROP ROLE IF EXISTS lost_writer");
    sql("CREATE ROLE lost_writer LOGIN SUPERUSER");
    let proxy = Proxy::start();
    let through = format!("postgresql://lost_writer@127.0.0.1:{}/postgres", proxy.port);
    let spec = spec("lost", &kv(&[]), &["k"], &[("url", &through)]);
    let (mut out, report) = open(&spec);
    out.write(1, kv(&[(1, "a")]), None).unwrap();
    out.end_epoch(ShardEnd::at(1, 0)).unwrap();
    assert_eq!(out.flush().unwrap(), 1);

    // One connection dies: the next transaction goes over a new one.
    let ended = sql("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity \
                     WHERE usename = 'lost_writer'");
    assert_eq!(ended, "t", "the writer's one connection ends");
    out.write(2, kv(&[(2, "b")]), None).unwrap();
    out.end_epoch(ShardEnd::at(2, 0)).unwrap();
    assert_eq!(out.flush().unwrap(), 2);
    assert_eq!(sql("SELECT count(*) FROM lost"), "2");

    // The server is away: the writer blocks and says so, then goes on.
    proxy.cut();
    let writer = std::thread::spawn(move || {
        out.write(3, kv(&[(3, "c")]), None).unwrap();
        out.end_epoch(ShardEnd::at(3, 0)).unwrap();
        let committed = out.flush().unwrap();
        out.finish().unwrap();
        committed
    });
    let began = Instant::now();
    while report.current_notice().is_none() {
        assert!(began.elapsed() < Duration::from_secs(20), "no notice");
        std::thread::yield_now();
    }
    let notice = report.current_notice().unwrap();
    assert!(
        notice.starts_with("trying to reach PostgreSQL at postgresql://lost_writer@127"),
        "{notice}"
    );
    assert_eq!(sql("SELECT count(*) FROM lost"), "2");
    proxy.cut.store(false, Ordering::SeqCst);
    assert_eq!(writer.join().unwrap(), 3);
    assert_eq!(report.current_notice(), None);
    assert_eq!(sql("SELECT * FROM lost ORDER BY k"), "1|a\n2|b\n3|c");
}

#[test]
fn a_job_that_ended_waits_no_longer_than_it_may() {
    sql("DROP TABLE IF EXISTS closing");
    let proxy = Proxy::start();
    let through = format!("postgresql://postgres@127.0.0.1:{}/postgres", proxy.port);
    let more = [("url", through.as_str()), ("sink.close-timeout", "300 ms")];
    let (mut out, _) = open(&spec("closing", &kv(&[]), &["k"], &more));
    out.write(1, kv(&[(1, "a")]), None).unwrap();
    proxy.cut();
    let error = out.finish().unwrap_err();
    assert!(error.message.ends_with("(1 rows were not written)"), "{error}");
}

/// A server that asks for a password and refuses it, as PostgreSQL does: the real one here trusts
/// all.
fn refusing_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut length = [0; 4];
            stream.read_exact(&mut length).unwrap();
            let mut startup = vec![0; u32::from_be_bytes(length) as usize - 4];
            stream.read_exact(&mut startup).unwrap();
            stream.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3]).unwrap();
            let mut password = [0; 512];
            let _ = stream.read(&mut password).unwrap();
            let fields = b"SFATAL\0C28P01\0Mpassword authentication failed for user \"weir\"\0\0";
            let mut refusal = vec![b'E'];
            refusal.extend((fields.len() as u32 + 4).to_be_bytes());
            refusal.extend(fields);
            stream.write_all(&refusal).unwrap();
        }
    });
    port
}

#[test]
fn a_wrong_password_is_said_at_once_and_never_shown() {
    let port = refusing_server();
    let address = format!("postgresql://weir:Zaunkoenig@127.0.0.1:{port}/grid");
    for more in [
        &[("url", address.as_str()), ("ssl.mode", "disable")][..],
        &[("url", address.as_str()), ("password", "kV9-koenig-77"), ("ssl.mode", "disable")],
    ] {
        let sink = made(&spec("grid", &kv(&[]), &[], more));
        let began = Instant::now();
        let error = sink.probe().unwrap_err();
        assert!(began.elapsed() < Duration::from_secs(5), "it was tried again");
        assert_eq!(error.remedy, Remedy::Reconfigure);
        let said = format!("{error:?} {}", sink.guarantee());
        assert!(said.contains("password authentication failed"), "{said}");
        assert!(!said.contains("Zaun") && !said.contains("koenig"), "{said}");
    }
}

#[test]
fn a_server_that_was_never_there_ends_it_in_time() {
    let more = [("url", "postgresql://weir:Zaunkoenig@127.0.0.1:9/grid")];
    let began = Instant::now();
    let error = made(&spec("grid", &kv(&[]), &[], &more)).probe().unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(20));
    let start = "cannot reach PostgreSQL at postgresql://weir@127.0.0.1:9/grid for table `grid`";
    assert!(error.message.starts_with(start), "{error}");
    assert!(error.message.to_lowercase().contains("connection refused"), "{error}");
    assert!(!format!("{error:?}").contains("Zaun"));
}

/// TimescaleDB is in no registry: its two functions are played, what is asked of them is real.
#[test]
fn where_timescaledb_is_a_hypertable_is_asked_for() {
    sql("DROP DATABASE IF EXISTS played_timescale");
    sql("CREATE DATABASE played_timescale");
    let config: tokio_postgres::Config = url().parse().unwrap();
    let port = config.get_ports()[0];
    let there = format!("postgresql://postgres@127.0.0.1:{port}/played_timescale");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ask = |text: &str| {
        runtime.block_on(async {
            let (client, link) =
                tokio_postgres::connect(&there, tokio_postgres::NoTls).await.unwrap();
            tokio::spawn(async { drop(link.await) });
            let rows = client.simple_query(text).await.unwrap();
            let cells = rows.iter().filter_map(|m| match m {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            cells.collect::<Vec<_>>().join("\n")
        })
    };
    ask("SET allow_system_table_mods = on; \
         INSERT INTO pg_extension VALUES (99999, 'timescaledb', 10, 2200, false, '2.28', NULL, NULL); \
         CREATE TABLE asked (what text); \
         CREATE FUNCTION by_range(c name, i interval) RETURNS text \
           LANGUAGE sql AS $$ SELECT c || ' ' || i $$; \
         CREATE FUNCTION create_hypertable(t regclass, d text, if_not_exists bool) RETURNS void \
           LANGUAGE sql AS $$ INSERT INTO asked VALUES (t || ' ' || d) $$");
    let ends: ArrayRef = Arc::new(TimestampMillisecondArray::from(vec![0]));
    let rows = RecordBatch::try_from_iter_with_nullable([
        ("meter", Arc::new(StringArray::from(vec!["m"])) as ArrayRef, true),
        ("ends", ends, true),
    ])
    .unwrap();
    let more = [("url", there.as_str()), ("timescaledb.chunk-interval", "1 day")];
    let both = made(&spec("Both", &rows, &["meter", "ends"], &more));
    assert!(both.guarantee().contains("a hypertable by `ends` where the server has TimescaleDB"));
    both.probe().unwrap();
    assert!(both.guarantee().ends_with("a new hypertable by `ends`"), "{}", both.guarantee());
    assert_eq!(ask("SELECT what FROM asked"), r#""Both" ends 24:00:00"#);

    let more = [("url", there.as_str()), ("timescaledb.time-column", "ends")];
    let lacks = made(&spec("lacks", &rows, &["meter"], &more));
    lacks.probe().unwrap();
    let said = lacks.guarantee();
    assert!(said.ends_with("plain table (its primary key lacks the time column `ends`)"), "{said}");
    assert_eq!(ask("SELECT count(*) FROM asked"), "1");
}

/// The server makes itself an authority and a certificate for `localhost`, and switches TLS on.
fn switch_tls_on() -> String {
    let make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt \
           -subj /CN=weir-ca -days 2 \
        && openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj /CN=localhost \
        && printf ''subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n'' > server.ext \
        && openssl x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out server.crt \
           -days 2 -extfile server.ext && chmod 600 server.key";
    sql(&format!("COPY (SELECT 1) TO PROGRAM '({make}) >/dev/null 2>&1'"));
    sql("ALTER SYSTEM SET ssl = on");
    sql("SELECT pg_reload_conf()");
    let began = Instant::now();
    while sql("SHOW ssl") != "on" {
        assert!(began.elapsed() < Duration::from_secs(20), "TLS does not come on");
        std::thread::yield_now();
    }
    sql("SELECT pg_read_file('ca.crt')")
}

#[test]
fn tls_is_checked_as_far_as_asked() {
    sql("DROP TABLE IF EXISTS tls; DROP ROLE IF EXISTS tls_writer");
    sql("CREATE ROLE tls_writer LOGIN SUPERUSER");
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.crt");
    std::fs::write(&ca, switch_tls_on()).unwrap();
    let config: tokio_postgres::Config = url().parse().unwrap();
    let port = config.get_ports()[0];
    let probe = |host: &str, mode: &str, ca_file: Option<&str>| {
        let address = format!("postgresql://tls_writer@{host}:{port}/postgres");
        let mut spec = spec("tls", &kv(&[]), &["k"], &[("url", &address), ("ssl.mode", mode)]);
        if let Some(file) = ca_file {
            spec.options.insert("ssl.ca-file".into(), file.into());
        }
        let sink = made(&spec);
        sink.probe().map(|()| sink.open(0, None, Arc::new(SinkReport::default())).unwrap())
    };
    let encrypted = || {
        sql("SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
             WHERE ssl AND usename = 'tls_writer'")
    };
    let ca = ca.to_str();
    assert_eq!(encrypted(), "0");
    let open = probe("127.0.0.1", "require", None).unwrap();
    assert_eq!(encrypted(), "1");
    drop(open);
    probe("localhost", "verify-full", ca).unwrap();
    probe("127.0.0.1", "verify-ca", ca).unwrap();
    let name = probe("127.0.0.1", "verify-full", ca).err().unwrap();
    assert!(name.remedy == Remedy::Reconfigure && name.message.contains("certificate"), "{name}");
    let stranger = probe("localhost", "verify-full", None).err().unwrap();
    assert!(stranger.message.contains("certificate"), "{stranger}");
}
