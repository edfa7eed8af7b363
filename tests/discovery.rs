//! A topic that gets more partitions while a job lasts: they are read, and every row is there once.
//!
//! Servers are those of `cargo xtask services up`.

#![allow(clippy::unwrap_used, missing_docs)]

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const WEIR: &str = env!("CARGO_BIN_EXE_weir");
const PATIENCE: Duration = Duration::from_secs(60);

fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: `cargo xtask services up`"))
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a query gives, as psql prints it; nothing where the table is not there yet.
fn cell(query: &str) -> String {
    let mut psql = Command::new("psql");
    let out = psql.arg(env("WEIR_TEST_POSTGRES")).args(["-X", "-A", "-t", "-c", query]).output();
    String::from_utf8(out.unwrap().stdout).unwrap().trim().to_owned()
}

/// A topic that grows, the table that it goes to, and a running weir.
struct World {
    folder: tempfile::TempDir,
    name: String,
    broker: String,
    producer: BaseProducer,
    sent: u64,
    flags: &'static [&'static str],
    weir: Option<Child>,
}

impl World {
    fn of(partitions: i32, discovery: &str, flags: &'static [&'static str]) -> World {
        let (folder, broker) = (tempfile::tempdir().unwrap(), env("WEIR_TEST_KAFKA"));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
        let name = format!("grows_{now}");
        let producer = ClientConfig::new().set("bootstrap.servers", &broker).create().unwrap();
        let world = World { folder, name, broker, producer, sent: 0, flags, weir: None };
        let topic = NewTopic::new(&world.name, partitions, TopicReplication::Fixed(1));
        let options = AdminOptions::new();
        let made = futures::executor::block_on(world.admin().create_topics([&topic], &options));
        made.unwrap()[0].as_ref().unwrap();
        let (name, broker, postgres) = (&world.name, &world.broker, env("WEIR_TEST_POSTGRES"));
        let sql = format!(
            "CREATE TABLE a (n BIGINT, ts TIMESTAMP(3), part STRING METADATA FROM 'split',
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH ('connector' = 'kafka', 'properties.bootstrap.servers' = '{broker}', 'topic' = '{name}',
  'format' = 'json', 'scan.topic-partition-discovery.interval' = '{discovery}');
CREATE TABLE b (n BIGINT, part STRING) WITH (
  'connector' = 'postgres', 'url' = '{postgres}', 'table-name' = '{name}');
CREATE TABLE c (w TIMESTAMP(3), n BIGINT) WITH (
  'connector' = 'postgres', 'url' = '{postgres}', 'table-name' = '{name}_windows');
EXECUTE STATEMENT SET BEGIN
INSERT INTO b SELECT n, part FROM a;
INSERT INTO c SELECT TUMBLE_START(ts, INTERVAL '1' SECOND), COUNT(*) FROM a
  GROUP BY TUMBLE(ts, INTERVAL '1' SECOND);
END;
"
        );
        fs::write(world.folder.path().join("script.sql"), sql).unwrap();
        world
    }

    fn admin(&self) -> AdminClient<DefaultClientContext> {
        ClientConfig::new().set("bootstrap.servers", &self.broker).create().unwrap()
    }

    fn grow(&mut self, partitions: usize) {
        let more = NewPartitions::new(&self.name, partitions);
        let options = AdminOptions::new();
        let made = futures::executor::block_on(self.admin().create_partitions([&more], &options));
        made.unwrap()[0].as_ref().unwrap();
        // A producer that knows of them.
        self.producer =
            ClientConfig::new().set("bootstrap.servers", &self.broker).create().unwrap();
        until("all partitions", || {
            let told = self.producer.client().fetch_metadata(Some(&self.name), PATIENCE).unwrap();
            told.topics()[0].partitions().len() == partitions
        });
    }

    /// Sends rows to partitions by turns, a tenth of a second of event time apart.
    fn send(&mut self, rows: u64, partitions: std::ops::Range<i32>) {
        for _ in 0..rows {
            let (n, count) = (self.sent, u64::try_from(partitions.len()).unwrap());
            let partition = partitions.start + i32::try_from(n % count).unwrap();
            let (second, tenth) = (n / 10, n % 10);
            let (minute, second) = (second / 60, second % 60);
            let ts = format!("2026-01-01 00:{minute:02}:{second:02}.{tenth}00");
            let text = format!("{{\"n\":{n},\"ts\":\"{ts}\"}}");
            let record = BaseRecord::to(&self.name).partition(partition);
            let record: BaseRecord<'_, [u8], str> = record.payload(&text);
            self.producer.send(record).map_err(|(error, _)| error).unwrap();
            self.sent += 1;
        }
        self.producer.flush(PATIENCE).unwrap();
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn start(&mut self) {
        let path = |name: &str| -> PathBuf { Path::join(self.folder.path(), name) };
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = Command::new(WEIR);
        command.args(["run", "--state"]).arg(path("state")).args(self.flags);
        command.arg(path("script.sql")).env_remove("WEIR_LOG");
        self.weir = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
    }

    fn until_all(&mut self) {
        let (name, sent) = (self.name.clone(), self.sent.to_string());
        until(&format!("{sent} rows; {}", self.said()), || {
            let ended = self.weir.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "ended: {}", self.said());
            cell(&format!("SELECT count(*) FROM {name}")) == sent
        });
        let different = cell(&format!("SELECT count(DISTINCT n) FROM {name}"));
        assert_eq!(different, sent, "some row is there twice");
    }

    fn kill(&mut self) {
        let mut weir = self.weir.take().unwrap();
        weir.kill().unwrap();
        weir.wait().unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if let Some(weir) = &mut self.weir {
            drop(weir.kill());
            drop(weir.wait());
        }
    }
}

/// Partitions come while it works, and while it is down.
fn grows(flags: &'static [&'static str]) {
    let mut world = World::of(2, "300 ms", flags);
    world.send(100, 0..2);
    world.start();
    world.until_all();
    world.grow(4);
    // Nothing to the others: they hold the watermark, so that no row is late.
    world.send(200, 2..4);
    world.until_all();
    let said = world.said();
    assert!(said.contains("table `a` has more to read: 2, 3"), "{said}");
    assert!(said.contains("generation 2: goes "), "{said}");

    world.kill();
    world.grow(5);
    world.send(100, 2..5);
    world.start();
    world.until_all();
    // What has come is remembered: nothing more comes.
    world.kill();
    world.send(100, 0..5);
    world.start();
    world.until_all();
    assert_eq!(world.said().matches("has more to read").count(), 1, "{}", world.said());

    // 500 rows, ten a second: windows that end by 45 s have fired, each once and whole.
    let name = world.name.clone();
    let count = || cell(&format!("SELECT count(*) FROM {name}_windows"));
    until("windows", || count().parse().is_ok_and(|windows: u64| windows > 40));
    let of_ten = "count(*) = count(DISTINCT w) AND min(n) = 10 AND max(n) = 10";
    assert_eq!(cell(&format!("SELECT {of_ten} FROM {name}_windows")), "t");

    let pid = world.weir.as_ref().unwrap().id().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(world.weir.take().unwrap().wait().unwrap().success(), "{}", world.said());
}

#[test]
fn partitions_that_come_later_are_read_by_a_new_generation() {
    grows(&["--checkpoint-interval", "200ms"]);
}

#[test]
fn cuts_of_before_they_came_mean_what_they_meant() {
    // Without a checkpoint each start goes again by all cuts.
    grows(&["--checkpoint-interval", "1h"]);
}

#[test]
fn partitions_that_come_later_are_read_by_the_next_set() {
    grows(&["--checkpoint-interval", "200ms", "--processes", "2"]);
}
