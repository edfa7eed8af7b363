//! The `postgres` sink where a job lasts: every row once, whatever fails. Against a real server, at
//! WEIR_TEST_POSTGRES (`cargo xtask services up`).
#![allow(clippy::unwrap_used, missing_docs)]

use arrow::array::*;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::time::Duration;
use weir_engine::connector::{ColumnSpec, Remedy, TableSpec};
use weir_engine::sink::{Author, Progress, ShardEnd, Sink, SinkReport, SinkWriter};

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

/// A fresh table without a primary key, in which rows that come twice are there twice.
fn table(name: &str, url: &str, more: &[(&str, &str)]) -> Box<dyn Sink> {
    table_of(name, url, arrow::datatypes::DataType::Int64, more)
}

fn table_of(
    name: &str,
    url: &str,
    data_type: arrow::datatypes::DataType,
    more: &[(&str, &str)],
) -> Box<dyn Sink> {
    let sink = unprobed(name, url, data_type, more);
    sink.probe().unwrap();
    sink
}

fn unprobed(
    name: &str,
    url: &str,
    data_type: arrow::datatypes::DataType,
    more: &[(&str, &str)],
) -> Box<dyn Sink> {
    let mut spec = TableSpec {
        name: name.into(),
        columns: vec![ColumnSpec { name: "v".into(), data_type, nullable: true, metadata: None }],
        options: Default::default(),
        primary_key: vec![],
        partitioned_by: vec![],
        event_time: None,
        keyed: vec![],
        pushed: vec![],
    };
    let all = [("connector", "postgres"), ("url", url), ("table-name", name)];
    let progress = [("sink.progress-table", "once_progress")];
    for (key, value) in all.iter().chain(&progress).chain(more) {
        spec.options.insert((*key).to_owned(), (*value).to_owned());
    }
    weir_sinks::postgres::sink(&spec).unwrap_or_else(|e| panic!("{e:?}"))
}

fn fresh(name: &str) -> Box<dyn Sink> {
    sql(&format!("DROP TABLE IF EXISTS {name}"));
    table(name, &url(), &[])
}

fn author(job: &str, generation: u64) -> Author {
    // A name of this run, so that the progress of another is not found.
    let job = format!("{job}-{}", std::process::id());
    Author::of(&job, (generation, 1), 0, "t")
}

fn open(sink: &dyn Sink, author: &Author) -> Box<dyn SinkWriter> {
    sink.open(0, Some(author), Arc::new(SinkReport::default())).unwrap()
}

fn rows(values: &[i64]) -> RecordBatch {
    let column = Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
    RecordBatch::try_from_iter_with_nullable([("v", column, true)]).unwrap()
}

fn end(epoch: u64) -> ShardEnd {
    ShardEnd { digest: u128::from(epoch) << 100, ..ShardEnd::at(epoch, 0) }
}

/// Writes an epoch with one row, its number, and commits it.
fn put(
    writer: &mut dyn SinkWriter,
    epoch: u64,
) -> Result<u64, weir_engine::connector::ConnectorError> {
    writer.write(epoch, rows(&[epoch as i64]), None)?;
    writer.end_epoch(end(epoch))?;
    writer.flush()
}

#[test]
fn progress_is_what_is_there_and_outlives_the_writer() {
    let sink = fresh("once_progresses");
    let first = author("progresses", 1);
    assert_eq!(sink.take_over(&first).unwrap(), None);
    let mut writer = open(sink.as_ref(), &first);
    assert_eq!(writer.progress(), None);
    assert_eq!(put(writer.as_mut(), 7).unwrap(), 7);
    writer.write(9, rows(&[9]), None).unwrap();
    writer.end_epoch(end(9)).unwrap();
    drop(writer);
    assert_eq!(sql("SELECT v FROM once_progresses"), "7", "9 was not committed");
    let second = author("progresses", 2);
    assert_eq!(sink.take_over(&second).unwrap(), Some(7));
    let mut writer = open(sink.as_ref(), &second);
    assert_eq!(writer.progress(), Some(Progress { epoch: 7, digest: 7 << 100 }));
    assert_eq!(put(writer.as_mut(), 9).unwrap(), 9);
    assert_eq!(sql("SELECT v FROM once_progresses ORDER BY v"), "7\n9");
}

#[test]
fn a_zombie_writes_nothing_once_another_has_taken_over() {
    let sink = fresh("once_zombies");
    let (old, new) = (author("zombies", 1), author("zombies", 2));
    sink.take_over(&old).unwrap();
    let mut zombie = open(sink.as_ref(), &old);
    put(zombie.as_mut(), 1).unwrap();
    // It has rows in hand when the other comes.
    zombie.write(2, rows(&[2]), None).unwrap();
    assert_eq!(sink.take_over(&new).unwrap(), Some(1));
    let error = zombie.end_epoch(end(2)).and_then(|_| zombie.flush()).unwrap_err();
    assert_eq!(error.remedy, Remedy::Fatal);
    assert!(error.message.contains("generation 2 of the job"), "{}", error.message);
    assert_eq!(sql("SELECT v FROM once_zombies"), "1");
    let mut writer = open(sink.as_ref(), &new);
    put(writer.as_mut(), 3).unwrap();
    assert_eq!(sql("SELECT v FROM once_zombies ORDER BY v"), "1\n3");
    let late = sink.take_over(&old).unwrap_err();
    assert!(late.message.contains("has taken over"), "{}", late.message);
    assert!(sink.open(0, Some(&old), Arc::new(SinkReport::default())).is_err());
}

#[test]
fn of_two_that_go_on_from_copies_of_one_state_one_alone_writes() {
    let sink = fresh("once_twins");
    let (first, second) = (author("twins", 2), Author { holder: 2, ..author("twins", 2) });
    sink.take_over(&first).unwrap();
    sink.take_over(&first).unwrap();
    let error = sink.take_over(&second).unwrap_err();
    assert!(error.message.contains("a copy of the same state"), "{}", error.message);
    let mut writer = open(sink.as_ref(), &first);
    put(writer.as_mut(), 1).unwrap();
    assert!(sink.open(0, Some(&second), Arc::new(SinkReport::default())).is_err());
    assert_eq!(sql("SELECT v FROM once_twins"), "1");
}

/// The sinks of `authors` are taken over at the same moment.
fn at_once(progress: &str, authors: Vec<Author>) -> Vec<Result<Option<u64>, String>> {
    let sink = table("once_at_once", &url(), &[("sink.progress-table", progress)]);
    let start = Barrier::new(authors.len());
    std::thread::scope(|scope| {
        let take = |author: Author| {
            let (sink, start) = (sink.as_ref(), &start);
            move || {
                start.wait();
                sink.take_over(&author).map_err(|e| e.message)
            }
        };
        let threads: Vec<_> = authors.into_iter().map(|author| scope.spawn(take(author))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn sinks_that_begin_side_by_side_make_one_progress_table() {
    for _ in 0..5 {
        sql("DROP TABLE IF EXISTS once_first_progress");
        let authors = (0..8).map(|i| author(&format!("first-{i}"), 1)).collect();
        assert_eq!(at_once("once_first_progress", authors), vec![Ok(None); 8]);
    }
    assert_eq!(sql("SELECT count(*) FROM once_first_progress"), "8");
}

#[test]
fn generations_that_take_over_at_once_leave_the_newest() {
    for round in 0..5 {
        let authors = (1..=4).map(|g| author(&format!("same-{round}"), g)).collect();
        let taken = at_once("once_progress", authors);
        assert_eq!(taken[3], Ok(None), "the newest always can");
        for other in taken.into_iter().filter_map(Result::err) {
            assert!(other.contains("has taken over"), "{other}");
        }
    }
}

#[test]
fn a_server_that_was_there_when_it_was_taken_over_is_waited_for() {
    let number = arrow::datatypes::DataType::Int64;
    let nowhere = "postgresql://postgres@127.0.0.1:9/postgres";
    let nowhere = unprobed("once_nowhere", nowhere, number, &[]);
    let report = Arc::new(SinkReport::default());
    let waits = report.clone();
    std::thread::spawn(move || {
        // Longer than a server is looked for that was never there.
        std::thread::sleep(Duration::from_secs(18));
        waits.give_up();
    });
    let error = nowhere.open(0, Some(&author("nowhere", 1)), report).err().unwrap();
    assert!(error.message.starts_with("gave up on PostgreSQL at"), "{error}");
}

#[test]
fn progress_that_is_gone_is_told_before_a_row_comes_twice() {
    let sink = fresh("once_gone");
    sink.take_over(&author("gone", 1)).unwrap();
    let next = Author { begun: true, ..author("gone", 2) };
    sink.take_over(&next).unwrap();
    sql(&format!("DELETE FROM once_progress WHERE job = '{}'", next.job));
    let error = sink.take_over(&Author { generation: 3, ..next }).unwrap_err();
    assert!(error.message.contains("is gone from"), "{}", error.message);
}

#[test]
fn another_number_of_shards_is_refused() {
    let sink = fresh("once_shards");
    sink.take_over(&author("shards", 1)).unwrap();
    let more = table("once_shards", &url(), &[("sink.shards", "3")]);
    let error = more.take_over(&author("shards", 2)).unwrap_err();
    assert!(error.message.contains("'sink.shards' was 1"), "{}", error.message);
}

#[test]
fn rows_that_are_left_out_are_in_the_progress_too() {
    sql("DROP TABLE IF EXISTS once_refuses");
    let text = arrow::datatypes::DataType::Utf8;
    let sink = table_of("once_refuses", &url(), text, &[]);
    let author = author("refuses", 1);
    sink.take_over(&author).unwrap();
    let mut writer = open(sink.as_ref(), &author);
    let column = Arc::new(StringArray::from(vec!["a\0b"])) as ArrayRef;
    let rows = RecordBatch::try_from_iter_with_nullable([("v", column, true)]).unwrap();
    writer.write(3, rows, None).unwrap();
    writer.end_epoch(end(3)).unwrap();
    writer.flush().unwrap();
    assert_eq!(sql("SELECT count(*) FROM once_refuses"), "0");
    let again = open(sink.as_ref(), &author);
    assert_eq!(again.progress(), Some(Progress { epoch: 3, digest: 3 << 100 }));
}

/// A way to the server that can lose the reply to the next COMMIT.
struct Way {
    port: u16,
    lose_reply: Arc<AtomicBool>,
}

impl Way {
    fn open() -> Way {
        let server = url();
        let place = server.split('@').next_back().unwrap();
        let place = place.rsplit("//").next().unwrap().split('/').next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let lose_reply = Arc::new(AtomicBool::new(false));
        let lose = lose_reply.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let server = TcpStream::connect(&place).unwrap();
                let (mut up, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || drop(std::io::copy(&mut up, &mut to)));
                let lose = lose.clone();
                std::thread::spawn(move || pass(server, client, &lose));
            }
        });
        Way { port, lose_reply }
    }

    fn url(&self) -> String {
        let url = url();
        let (head, tail) = url.rsplit_once(':').unwrap();
        let rest = tail.find(['/', '?']).map_or("", |at| &tail[at..]);
        format!("{head}:{}{rest}", self.port)
    }
}

/// Passes replies on; one that says COMMIT is lost with its connection if that was asked for.
fn pass(mut server: TcpStream, mut client: TcpStream, lose: &AtomicBool) {
    let mut bytes = [0; 8192];
    while let Ok(n @ 1..) = server.read(&mut bytes) {
        let commit = bytes[..n].windows(7).any(|window| window == b"COMMIT\0");
        if commit && lose.swap(false, Ordering::SeqCst) {
            let _ = client.shutdown(std::net::Shutdown::Both);
            return;
        }
        if client.write_all(&bytes[..n]).is_err() {
            return;
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_commit_whose_reply_is_lost_is_not_sent_twice() {
    sql("DROP TABLE IF EXISTS once_replies");
    let way = Way::open();
    // The way must be able to read along.
    let sink = table("once_replies", &way.url(), &[("ssl.mode", "disable")]);
    let author = author("replies", 1);
    sink.take_over(&author).unwrap();
    let mut writer = open(sink.as_ref(), &author);
    put(writer.as_mut(), 1).unwrap();
    for epoch in [2, 3] {
        way.lose_reply.store(true, Ordering::SeqCst);
        assert_eq!(put(writer.as_mut(), epoch).unwrap(), epoch);
        assert!(!way.lose_reply.load(Ordering::SeqCst), "a reply was lost");
    }
    put(writer.as_mut(), 4).unwrap();
    assert_eq!(sql("SELECT v FROM once_replies ORDER BY v"), "1\n2\n3\n4");
}

#[test]
fn a_progress_that_somebody_changed_stops_the_writer() {
    let sink = fresh("once_changes");
    let author = author("changes", 1);
    sink.take_over(&author).unwrap();
    let mut writer = open(sink.as_ref(), &author);
    put(writer.as_mut(), 1).unwrap();
    sql(&format!("UPDATE once_progress SET epoch = 55 WHERE job = '{}'", author.job));
    let error = put(writer.as_mut(), 2).unwrap_err();
    assert!(error.message.contains("its progress is at epoch 55"), "{}", error.message);
    assert_eq!(sql("SELECT v FROM once_changes"), "1");
}
