//! A topic that gets more partitions while a job lasts: they are read, and every row is there once.

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::helping::{Proxy, WEIR, cell, env, name, rows_of, signal, until};

const PATIENCE: Duration = Duration::from_secs(60);

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
    fn of(partitions: i32, flags: &'static [&'static str]) -> World {
        let (folder, broker) = (tempfile::tempdir().unwrap(), env("WEIR_TEST_KAFKA"));
        let name = name("grows").replace('-', "_");
        let producer = ClientConfig::new().set("bootstrap.servers", &broker).create().unwrap();
        let world = World { folder, name, broker, producer, sent: 0, flags, weir: None };
        let topic = NewTopic::new(&world.name, partitions, TopicReplication::Fixed(1));
        let options = AdminOptions::new();
        let made = futures::executor::block_on(world.admin().create_topics([&topic], &options));
        made.unwrap()[0].as_ref().unwrap();
        world
    }

    /// A job with a window; the topic is looked at three times a second.
    fn script(&self, postgres: &str) -> String {
        let World { name, broker, .. } = self;
        format!(
            "CREATE TABLE a (n BIGINT, ts TIMESTAMP(3), part STRING METADATA FROM 'split',
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH ('connector' = 'kafka', 'properties.bootstrap.servers' = '{broker}', 'topic' = '{name}',
  'format' = 'json', 'scan.topic-partition-discovery.interval' = '300 ms');
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
        )
    }

    /// A job of a single copy, with tables of other names.
    fn script_of_copy(&self) -> String {
        let (World { name, broker, .. }, postgres) = (self, env("WEIR_TEST_POSTGRES"));
        format!(
            "CREATE TABLE d (n BIGINT) WITH ('connector' = 'kafka', 'topic' = '{name}',
  'properties.bootstrap.servers' = '{broker}', 'format' = 'json');
CREATE TABLE e (n BIGINT) WITH (
  'connector' = 'postgres', 'url' = '{postgres}', 'table-name' = '{name}');
INSERT INTO e SELECT n FROM d;
"
        )
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

    fn start(&mut self, sql: &str) {
        fs::write(self.folder.path().join("script.sql"), sql).unwrap();
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
            let ended = self.weir.as_mut().and_then(|weir| weir.try_wait().unwrap());
            assert!(ended.is_none(), "ended: {}", self.said());
            rows_of(&name) == self.sent
        });
        let different = cell(&format!("SELECT count(DISTINCT n) FROM {name}"));
        assert_eq!(different, sent, "some row is there twice");
    }

    /// Ends it in order.
    fn stop(&mut self) {
        let mut weir = self.weir.take().unwrap();
        signal(weir.id(), "-TERM");
        assert!(weir.wait().unwrap().success(), "{}", self.said());
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
    let mut world = World::of(2, flags);
    let sql = world.script(&env("WEIR_TEST_POSTGRES"));
    world.send(100, 0..2);
    world.start(&sql);
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
    world.start(&sql);
    world.until_all();
    // What has come is remembered: nothing more comes.
    world.kill();
    world.send(100, 0..5);
    world.start(&sql);
    world.until_all();
    assert_eq!(world.said().matches("has more to read").count(), 1, "{}", world.said());

    // 500 rows, ten a second: windows that end by 45 s have fired, each once and whole.
    let windows = format!("{}_windows", world.name);
    until("windows", || rows_of(&windows) > 40);
    let of_ten = "count(*) = count(DISTINCT w) AND min(n) = 10 AND max(n) = 10";
    assert_eq!(cell(&format!("SELECT {of_ten} FROM {windows}")), "t");

    world.stop();
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

#[test]
fn a_job_that_begins_anew_leaves_another_alone() {
    let mut world = World::of(2, &["--checkpoint-interval", "200ms"]);
    let mut other = World::of(1, &[]);
    let sql = world.script(&env("WEIR_TEST_POSTGRES")) + &other.script_of_copy();
    world.send(100, 0..2);
    other.send(10, 0..1);
    world.start(&sql);
    world.until_all();
    other.until_all();
    world.grow(4);
    world.send(200, 2..4);
    other.send(10, 0..1);
    world.until_all();
    other.until_all();
    let said = world.said();
    assert_eq!(said.matches("generation 1: ").count(), 2, "{said}");
    assert_eq!(said.matches("generation 2: ").count(), 1, "{said}");
    assert_eq!(said.matches("generation 2: goes ").count(), 1, "{said}");
    world.stop();
}

#[test]
fn a_stop_is_heard_while_a_generation_cannot_begin() {
    let mut world = World::of(2, &["--checkpoint-interval", "200ms"]);
    let proxy = Proxy::to_postgres(&world.name);
    let sql = world.script(&format!("postgresql://postgres@{}/postgres", proxy.listen));
    world.send(100, 0..2);
    world.start(&sql);
    world.until_all();
    proxy.enable(false);
    world.grow(4);
    world.send(100, 2..4);
    let log = world.log();
    let said = || fs::read_to_string(&log).unwrap();
    until("a try in vain", || said().contains("trying again until it works"));
    let began = Instant::now();
    world.stop();
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());

    // What has come meanwhile is read by the next start, once the database is back.
    proxy.enable(true);
    world.start(&sql);
    world.until_all();
    world.stop();
}
