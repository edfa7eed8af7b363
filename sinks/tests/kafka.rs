//! The Kafka sinks against a real broker: `WEIR_TEST_KAFKA` names it. Bad links are made by a proxy
//! in this process.
#![allow(clippy::unwrap_used, missing_docs)]

use arrow::array::{Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, TimeUnit};
use expect_test::expect;
use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use weir_engine::connector::{ColumnSpec, ConnectorError, Remedy, TableSpec};
use weir_engine::sink::{Author, Progress, ShardEnd, Sink, SinkReport, SinkWriter};

use proxy::{Proxy, Rule};

#[path = "kafka/proxy.rs"]
mod proxy;

const PATIENCE: Duration = Duration::from_secs(30);

fn broker() -> String {
    std::env::var("WEIR_TEST_KAFKA")
        .expect("WEIR_TEST_KAFKA names a broker: cargo xtask services up")
}

fn config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker());
    config
}

/// A topic of its own, and the name of one for its progress.
struct Topic {
    name: String,
    progress: String,
}

impl Topic {
    fn of(partitions: i32) -> Topic {
        static TOPICS: AtomicU32 = AtomicU32::new(0);
        let number = TOPICS.fetch_add(1, Ordering::Relaxed);
        let name = format!("sink-{}-{number}", std::process::id());
        let topic = Topic { progress: format!("{name}-progress"), name };
        topic.make(&topic.name, partitions, &[]);
        topic
    }

    fn make(&self, name: &str, partitions: i32, settings: &[(&str, &str)]) {
        let admin: AdminClient<DefaultClientContext> = config().create().unwrap();
        let mut topic = NewTopic::new(name, partitions, TopicReplication::Fixed(1));
        for (key, value) in settings {
            topic = topic.set(key, value);
        }
        block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    }

    fn table(&self, connector: &str, options: &[(&str, &str)]) -> TableSpec {
        let upserts = connector == "upsert-kafka";
        let column = |name: &str, data_type: DataType| ColumnSpec {
            name: name.into(),
            data_type,
            nullable: true,
            metadata: None,
        };
        let servers = broker();
        let mut all = vec![
            ("connector", connector),
            ("topic", &self.name),
            ("properties.bootstrap.servers", &servers),
            ("format", "json"),
            ("sink.progress-topic", &self.progress),
            // All jobs have one name here, and must not shut each other out.
            ("sink.transactional-id-prefix", &self.name),
        ];
        if upserts {
            all.push(("key.format", "json"));
        }
        all.retain(|(key, _)| options.iter().all(|(other, _)| other != key));
        all.extend(options);
        TableSpec {
            name: "t".into(),
            columns: vec![column("k", DataType::Utf8), column("v", DataType::Int64)],
            options: all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
            primary_key: if upserts { vec!["k".into()] } else { vec![] },
            partitioned_by: vec![],
            event_time: None,
            keyed: vec![],
            pushed: vec![],
        }
    }

    fn sink(&self, options: &[(&str, &str)]) -> Box<dyn Sink> {
        weir_sinks::kafka::sink(&self.table("kafka", options), &[]).unwrap()
    }

    fn upsert_sink(&self) -> Box<dyn Sink> {
        weir_sinks::kafka::upsert_sink(&self.table("upsert-kafka", &[])).unwrap()
    }

    /// What a reader of committed data finds in a topic: `key value`, partition after partition.
    fn committed(&self) -> Vec<String> {
        read(&self.name)
    }
}

fn read(topic: &str) -> Vec<String> {
    let consumer: BaseConsumer = config()
        .set("group.id", "test")
        .set("enable.auto.commit", "false")
        .set("isolation.level", "read_committed")
        .set("enable.partition.eof", "true")
        .create()
        .unwrap();
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE).unwrap();
    let count = metadata.topics()[0].partitions().len();
    let mut list = TopicPartitionList::new();
    for partition in 0..count {
        let partition = i32::try_from(partition).unwrap();
        list.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let mut found = vec![Vec::new(); count];
    let (mut ended, until) = (0, Instant::now() + PATIENCE);
    let text = |bytes: Option<&[u8]>| match bytes {
        Some(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        None => "-".to_owned(),
    };
    while ended < count {
        assert!(Instant::now() < until, "the topic {topic} was not read to its end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(m)) => found[usize::try_from(m.partition()).unwrap()].push(format!(
                "{} {}",
                text(m.key()),
                text(m.payload())
            )),
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(error)) => panic!("{error}"),
            None => {}
        }
    }
    found.concat()
}

fn author(generation: u64) -> Author {
    Author::of("job-1", (generation, 1), 3, "t")
}

fn open(sink: &dyn Sink, generation: u64) -> Box<dyn SinkWriter> {
    sink.open(0, Some(&author(generation)), Arc::default()).unwrap()
}

/// A generation that has taken over, and its writer.
fn take(sink: &dyn Sink, generation: u64) -> Box<dyn SinkWriter> {
    sink.take_over(&author(generation)).unwrap();
    open(sink, generation)
}

fn batch(rows: &[(&str, i64)]) -> RecordBatch {
    let keys = StringArray::from_iter_values(rows.iter().map(|r| r.0));
    let values = Int64Array::from_iter_values(rows.iter().map(|r| r.1));
    let columns: [(_, arrow::array::ArrayRef, _); 2] =
        [("k", Arc::new(keys), true), ("v", Arc::new(values), true)];
    RecordBatch::try_from_iter_with_nullable(columns).unwrap()
}

fn end(epoch: u64) -> ShardEnd {
    ShardEnd { digest: u128::MAX - u128::from(epoch), ..ShardEnd::at(epoch, 0) }
}

fn progress(epoch: u64) -> Progress {
    Progress { epoch, digest: end(epoch).digest }
}

/// Writes an epoch of one row and waits until it is committed.
fn write(writer: &mut dyn SinkWriter, epoch: u64) -> Result<u64, ConnectorError> {
    writer.write(epoch, batch(&[("k", i64::try_from(epoch).unwrap())]), None)?;
    writer.end_epoch(end(epoch))?;
    writer.flush()
}

/// What is in the topic after these epochs.
fn rows(epochs: std::ops::RangeInclusive<u64>) -> Vec<String> {
    epochs.map(|epoch| format!("- {{\"k\":\"k\",\"v\":{epoch}}}")).collect()
}

/// Looks again and again until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_generation_finds_what_the_one_before_has_written() {
    let topic = Topic::of(1);
    let sink = topic.sink(&[]);
    sink.probe().unwrap();
    assert_eq!(sink.take_over(&author(1)).unwrap(), None);
    let mut writer = open(sink.as_ref(), 1);
    assert_eq!(writer.progress(), None);
    assert_eq!(write(writer.as_mut(), 1).unwrap(), 1);
    // An epoch without rows follows; it wants no transaction.
    assert_eq!(writer.end_epoch(end(2)).unwrap(), 2);
    writer.write(3, batch(&[("k", 3)]), None).unwrap();
    writer.end_epoch(end(3)).unwrap();
    writer.write(4, batch(&[("k", 4)]), None).unwrap();
    writer.end_epoch(end(4)).unwrap();
    assert_eq!(writer.flush().unwrap(), 4);
    // A row of an epoch that never ended is not there later.
    writer.write(5, batch(&[("k", 5)]), None).unwrap();
    drop(writer);

    let again = topic.sink(&[]);
    assert_eq!(again.take_over(&author(2)).unwrap(), Some(4));
    let mut writer = open(again.as_ref(), 2);
    assert_eq!(writer.progress(), Some(progress(4)));
    write(writer.as_mut(), 5).unwrap();
    writer.finish().unwrap();
    let expected: Vec<String> = [rows(1..=1), rows(3..=5)].concat();
    assert_eq!(topic.committed(), expected);
    // A generation that has written nothing leaves the progress as it is.
    assert_eq!(again.take_over(&author(3)).unwrap(), Some(5));
    assert_eq!(again.take_over(&author(4)).unwrap(), Some(5));
    assert_eq!(open(again.as_ref(), 4).progress(), Some(progress(5)));
}

#[test]
fn the_progress_topic_is_compacted() {
    let topic = Topic::of(1);
    topic.sink(&[]).take_over(&author(1)).unwrap();
    let admin: AdminClient<DefaultClientContext> = config().create().unwrap();
    let resource = ResourceSpecifier::Topic(&topic.progress);
    let described = block_on(admin.describe_configs([&resource], &AdminOptions::new())).unwrap();
    let policy = described[0].as_ref().unwrap().get("cleanup.policy").unwrap();
    assert_eq!(policy.value.as_deref(), Some("compact"));

    let forgets = format!("{}-forgets", topic.name);
    topic.make(&forgets, 1, &[("cleanup.policy", "delete")]);
    let sink = topic.sink(&[("sink.progress-topic", &forgets)]);
    let error = sink.take_over(&author(1)).unwrap_err();
    assert_eq!(error.remedy, Remedy::Reconfigure);
    let expected = format!(
        "the topic `{forgets}` at {} has cleanup.policy=delete: it would forget what table `t` has \
         written",
        broker()
    );
    assert_eq!(error.message, expected);
}

#[test]
fn what_a_zombie_has_in_a_transaction_never_becomes_visible() {
    let topic = Topic::of(2);
    let link = Proxy::of(&broker());
    let slow = topic.sink(&[("properties.bootstrap.servers", &link.address)]);
    let mut zombie = take(slow.as_ref(), 1);
    write(zombie.as_mut(), 1).unwrap();
    link.rule(Rule::HoldEnd);
    let stuck = std::thread::spawn(move || write(zombie.as_mut(), 2));
    link.struck(1);
    // The rows are with the broker, the request to commit them is on its way.
    let sink = topic.sink(&[]);
    assert_eq!(sink.take_over(&author(2)).unwrap(), Some(1));
    let mut writer = open(sink.as_ref(), 2);
    write(writer.as_mut(), 2).unwrap();
    link.rule(Rule::Pass);
    let error = stuck.join().unwrap().unwrap_err();
    assert_eq!(error.remedy, Remedy::Fatal);
    assert_eq!(
        error.message,
        "generation 2 of job `job-1` has taken over table `t`: generation 1 writes no more"
    );
    // To find that out it has shut the live one out, which comes back.
    write(writer.as_mut(), 3).unwrap();
    let mut found = topic.committed();
    found.sort();
    assert_eq!(found, rows(1..=3));
}

#[test]
fn a_zombie_that_wakes_up_later_writes_nothing() {
    let topic = Topic::of(1);
    let sink = topic.sink(&[]);
    let mut zombie = take(sink.as_ref(), 1);
    let mut idle = open(sink.as_ref(), 1);
    let mut writer = take(sink.as_ref(), 2);
    write(writer.as_mut(), 1).unwrap();
    for late in [&mut zombie, &mut idle] {
        let error = write(late.as_mut(), 1).unwrap_err();
        assert!(error.message.starts_with("generation 2 of job `job-1` has taken over"), "{error}");
        // Having looked, it has shut out the live one, which looks too and goes on.
        let next = writer.end_epoch(end(9)).unwrap();
        assert_eq!(next, 9);
    }
    // Nor does one that starts afresh, at whatever step.
    for _ in 0..2 {
        let error = sink.take_over(&author(1)).unwrap_err();
        assert_eq!(error.remedy, Remedy::Fatal, "{error}");
        let error = sink.open(0, Some(&author(1)), Arc::default()).err().unwrap();
        assert_eq!(error.remedy, Remedy::Fatal, "{error}");
        assert!(error.message.contains("generation 2"), "{error}");
    }
    write(writer.as_mut(), 10).unwrap();
    assert_eq!(topic.committed(), [rows(1..=1), rows(10..=10)].concat());
    // One that has not taken over does not write.
    let error = sink.open(0, Some(&author(3)), Arc::default()).err().unwrap();
    assert!(error.message.contains("no record that generation 3 writes shard 0"), "{error}");
}

#[test]
fn a_commit_whose_reply_was_lost_is_not_sent_again() {
    let topic = Topic::of(1);
    let link = Proxy::of(&broker());
    let sink = topic.sink(&[
        ("properties.bootstrap.servers", &link.address),
        ("properties.transaction.timeout.ms", "1500"),
    ]);
    let mut writer = take(sink.as_ref(), 1);
    write(writer.as_mut(), 1).unwrap();
    link.rule(Rule::LoseReply);
    let writing = std::thread::spawn(move || {
        let committed = write(writer.as_mut(), 2).unwrap();
        (committed, writer)
    });
    link.struck(1);
    until("the rows are visible", || topic.committed() == rows(1..=2));
    // Long enough that the producer is given up, and another has to find out.
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(!writing.is_finished());
    link.rule(Rule::Pass);
    let (committed, mut writer) = writing.join().unwrap();
    assert_eq!(committed, 2);
    write(writer.as_mut(), 3).unwrap();
    assert_eq!(topic.committed(), rows(1..=3));
    drop(writer);
    assert_eq!(sink.take_over(&author(2)).unwrap(), Some(3));
}

#[test]
fn a_commit_that_never_arrived_is_sent_again() {
    let topic = Topic::of(1);
    let link = Proxy::of(&broker());
    let sink = topic.sink(&[
        ("properties.bootstrap.servers", &link.address),
        ("properties.transaction.timeout.ms", "1500"),
    ]);
    let report = Arc::new(SinkReport::default());
    sink.take_over(&author(1)).unwrap();
    let mut writer = sink.open(0, Some(&author(1)), report.clone()).unwrap();
    write(writer.as_mut(), 1).unwrap();
    link.rule(Rule::HoldEnd);
    let writing = std::thread::spawn(move || write(writer.as_mut(), 2).map(|_| writer));
    link.struck(1);
    // The request is lost with its link.
    link.rule(Rule::Down);
    until("somebody is told", || report.current_notice().is_some());
    let notice = report.current_notice().unwrap();
    assert!(notice.contains("table `t`"), "{notice}");
    std::thread::sleep(Duration::from_millis(2_500));
    assert!(!writing.is_finished());
    link.rule(Rule::Pass);
    let mut writer = writing.join().unwrap().unwrap();
    until("the notice goes", || report.current_notice().is_none());
    write(writer.as_mut(), 3).unwrap();
    assert_eq!(topic.committed(), rows(1..=3));
    assert_eq!(report.rows.load(Ordering::Relaxed), 3);
}

#[test]
fn whatever_links_and_generations_do_each_row_is_there_once() {
    let topic = Topic::of(1);
    let stop = Arc::new(AtomicBool::new(false));
    let mut zombie: Option<(Proxy, JoinHandle<ConnectorError>)> = None;
    for generation in 1..=4 {
        let link = Proxy::of(&broker());
        let sink = topic.sink(&[
            ("properties.bootstrap.servers", &link.address),
            ("properties.transaction.timeout.ms", "1000"),
        ]);
        let there = sink.take_over(&author(generation)).unwrap();
        let mut writer = open(sink.as_ref(), generation);
        assert_eq!(writer.progress().map(|p| p.epoch), there);
        let mut epoch = there.unwrap_or(0);
        let done = stop.clone();
        let writing = std::thread::spawn(move || {
            loop {
                if done.load(Ordering::Relaxed) {
                    return ConnectorError::retry(epoch.to_string());
                }
                epoch += 1;
                if let Err(error) = write(writer.as_mut(), epoch) {
                    return error;
                }
            }
        });
        if let Some((old, zombie)) = zombie.take() {
            // What it holds in its hands is too late; the live one is shut out in between.
            old.rule(Rule::Pass);
            let error = zombie.join().unwrap();
            assert_eq!(error.remedy, Remedy::Fatal, "{error}");
            let begins = format!("generation {generation} of job `job-1` has taken over");
            assert!(error.message.starts_with(&begins), "{error}");
        }
        for (rule, millis) in [
            (Rule::HoldEnd, 300),
            (Rule::Pass, 300),
            (Rule::LoseReply, 1_200 / generation),
            (Rule::Pass, 700),
            (Rule::Down, 150 * generation),
            (Rule::Pass, 500),
            (Rule::HoldEnd, 400 * (generation - 1)),
        ] {
            link.rule(rule);
            std::thread::sleep(Duration::from_millis(millis));
        }
        zombie = Some((link, writing));
    }
    stop.store(true, Ordering::Relaxed);
    let (link, last) = zombie.unwrap();
    link.rule(Rule::Pass);
    let written: u64 = last.join().unwrap().message.parse().unwrap();
    assert!(written > 20, "{written} epochs");
    assert_eq!(topic.committed(), rows(1..=written));
}

#[test]
fn a_broker_that_is_away_is_waited_for_until_nobody_does() {
    let topic = Topic::of(1);
    let link = Proxy::of(&broker());
    let sink = topic.sink(&[("properties.bootstrap.servers", &link.address)]);
    let report = Arc::new(SinkReport::default());
    sink.take_over(&author(1)).unwrap();
    let mut writer = sink.open(0, Some(&author(1)), report.clone()).unwrap();
    write(writer.as_mut(), 1).unwrap();
    link.rule(Rule::Down);
    let writing = std::thread::spawn(move || write(writer.as_mut(), 2).map(|_| writer));
    until("somebody is told", || report.current_notice().is_some());
    assert!(!writing.is_finished());
    link.rule(Rule::Pass);
    let mut writer = writing.join().unwrap().unwrap();
    assert_eq!(report.current_notice(), None);
    assert_eq!(topic.committed(), rows(1..=2));

    link.rule(Rule::Down);
    let writing = std::thread::spawn(move || write(writer.as_mut(), 3).map(|_| ()));
    until("somebody is told", || report.current_notice().is_some());
    report.give_up();
    let began = Instant::now();
    let error = writing.join().unwrap().unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(error.message.starts_with("gave up on Kafka topic"), "{error}");
    assert_eq!(topic.committed(), rows(1..=2));
}

#[test]
fn an_open_transaction_of_another_writer_is_waited_for() {
    let topic = Topic::of(1);
    let sink = topic.sink(&[]);
    let mut writer = take(sink.as_ref(), 1);
    write(writer.as_mut(), 1).unwrap();
    let stranger: BaseProducer =
        config().set("transactional.id", format!("stranger-{}", topic.name)).create().unwrap();
    stranger.init_transactions(PATIENCE).unwrap();
    stranger.begin_transaction().unwrap();
    stranger.send(BaseRecord::to(&topic.progress).key("other/t.1/0").payload("{}")).unwrap();
    stranger.flush(PATIENCE).unwrap();
    // Its record lies behind the stranger's, who is not done.
    write(writer.as_mut(), 2).unwrap();
    drop(writer);
    let theirs = topic.sink(&[]);
    let taking = std::thread::spawn(move || theirs.take_over(&author(2)));
    std::thread::sleep(Duration::from_millis(1_500));
    assert!(!taking.is_finished());
    stranger.commit_transaction(PATIENCE).unwrap();
    assert_eq!(taking.join().unwrap().unwrap(), Some(2));
}

#[test]
fn upserts_and_tombstones() {
    let topic = Topic::of(1);
    let sink = topic.upsert_sink();
    let mut writer = take(sink.as_ref(), 1);
    let mut send = |epoch, rows: &[(&str, i64)], diffs: &[i64]| {
        writer.write(epoch, batch(rows), Some(diffs.to_vec().into())).unwrap();
        writer.end_epoch(end(epoch)).unwrap();
        writer.flush().unwrap();
    };
    send(1, &[("a", 1), ("b", 2)], &[1, 1]);
    send(2, &[("a", 1), ("a", 3)], &[-1, 1]);
    send(3, &[("b", 2), ("c", 4), ("c", 4)], &[-1, 1, -1]);
    assert!(sink.accepts_retractions());
    expect![[r#"
        [
            "{\"k\":\"a\"} {\"k\":\"a\",\"v\":1}",
            "{\"k\":\"b\"} {\"k\":\"b\",\"v\":2}",
            "{\"k\":\"a\"} {\"k\":\"a\",\"v\":3}",
            "{\"k\":\"b\"} -",
        ]
    "#]]
    .assert_debug_eq(&topic.committed());

    let appends = topic.sink(&[]);
    assert!(!appends.accepts_retractions());
    let mut writer = appends.open(0, None, Arc::default()).unwrap();
    let error = writer.write(1, batch(&[("a", 1)]), Some(vec![-1].into())).unwrap_err();
    assert_eq!(error.message, "table `t`: connector 'kafka' cannot take rows back");
}

#[test]
fn a_message_that_is_too_large_says_what_to_do() {
    for author in [None, Some(author(1))] {
        let topic = Topic::of(2);
        // What the client refuses, and what the broker does.
        for options in [&[][..], &[("properties.max.request.size", "5000000")]] {
            let sink = topic.sink(options);
            if let Some(author) = &author {
                sink.take_over(author).unwrap();
            }
            let mut writer = sink.open(0, author.as_ref(), Arc::default()).unwrap();
            // The first row goes to another partition, which takes it.
            writer.write(1, batch(&[("k", 1), (&"x".repeat(2_000_000), 1)]), None).unwrap();
            let error = writer.end_epoch(end(1)).unwrap_err();
            assert_eq!(error.remedy, Remedy::Fatal, "{error}");
            let expected = format!(
                "a message of 2000014 bytes of table `t` is too large for the topic `{}` at {}",
                topic.name,
                broker()
            );
            assert_eq!(error.message, expected);
            assert!(error.hint.unwrap().contains("max.message.bytes"));
        }
        if author.is_some() {
            // Nor is a transaction left open, which would hide what comes after.
            let mut after = topic.sink(&[]).open(0, None, Arc::default()).unwrap();
            write(after.as_mut(), 1).unwrap();
            write(after.as_mut(), 2).unwrap();
            let mut found = topic.committed();
            found.sort();
            assert_eq!(found, rows(1..=2));
        }
    }
}

#[test]
fn shards_and_prefix_stay_as_they_are() {
    let topic = Topic::of(3);
    let two = topic.sink(&[("sink.parallelism", "2")]);
    assert_eq!(two.shards(), 2);
    two.take_over(&author(1)).unwrap();
    let mut shards: Vec<_> =
        (0..2).map(|s| two.open(s, Some(&author(1)), Arc::default()).unwrap()).collect();
    write(shards[0].as_mut(), 1).unwrap();
    write(shards[1].as_mut(), 2).unwrap();
    assert_eq!(two.take_over(&author(2)).unwrap(), Some(2));
    let first = two.open(0, Some(&author(2)), Arc::default()).unwrap();
    assert_eq!(first.progress(), Some(progress(1)));
    let error = topic.sink(&[]).take_over(&author(3)).unwrap_err();
    assert_eq!(error.remedy, Remedy::Reconfigure);
    assert_eq!(
        error.message,
        "'sink.parallelism' of table `t` was '2' when the job began, and cannot change"
    );
    let options = [("sink.parallelism", "2"), ("sink.transactional-id-prefix", "other")];
    let error = topic.sink(&options).take_over(&author(3)).unwrap_err();
    let hint = format!("set 'sink.transactional-id-prefix' = '{}', or", topic.name);
    assert!(error.hint.unwrap().starts_with(&hint));
    let mut found = topic.committed();
    found.sort();
    assert_eq!(found, rows(1..=2));
}

#[test]
fn without_an_author_rows_are_there_at_least_once() {
    let topic = Topic::of(3);
    let sink = topic.sink(&[("sink.partitioner", "round-robin")]);
    assert!(sink.guarantee().contains("else at least once"));
    let mut writer = sink.open(0, None, Arc::default()).unwrap();
    assert_eq!(writer.progress(), None);
    for epoch in 1..=9 {
        write(writer.as_mut(), epoch).unwrap();
    }
    writer.finish().unwrap();
    // Three partitions in turn, one after the other.
    let turns = [3, 6, 9, 1, 4, 7, 2, 5, 8];
    let expected: Vec<String> = turns.iter().flat_map(|&e| rows(e..=e)).collect();
    assert_eq!(topic.committed(), expected);

    // By default neighbours stay together.
    let together = Topic::of(3);
    let mut writer = together.sink(&[]).open(0, None, Arc::default()).unwrap();
    for epoch in 1..=9 {
        write(writer.as_mut(), epoch).unwrap();
    }
    writer.finish().unwrap();
    assert_eq!(together.committed(), rows(1..=9));

    let lax = topic.sink(&[("sink.delivery-guarantee", "at-least-once")]);
    assert_eq!(lax.take_over(&author(1)).unwrap(), None);
    write(open(lax.as_ref(), 1).as_mut(), 12).unwrap();
    assert_eq!(topic.committed().len(), 10);
}

#[test]
fn topics_and_brokers_that_are_not_there() {
    let topic = Topic::of(1);
    let missing = format!("{}x", topic.name);
    let error = topic.sink(&[("topic", &missing)]).probe().unwrap_err();
    assert_eq!(error.remedy, Remedy::Reconfigure);
    let expected = format!("there is no topic `{missing}` at {} (table `t`)", broker());
    assert_eq!(error.message, expected);
    let hint = error.hint.unwrap();
    assert!(hint.starts_with("create it first: a sink makes no topic for rows; "), "{hint}");

    let contradiction = topic.sink(&[("properties.acks", "1")]).probe().unwrap_err();
    assert_eq!(contradiction.remedy, Remedy::Reconfigure);

    let began = Instant::now();
    let nowhere = topic.sink(&[("properties.bootstrap.servers", "127.0.0.1:9")]);
    let error = nowhere.take_over(&author(1)).unwrap_err();
    assert_eq!(error.remedy, Remedy::Retry, "{error}");
    assert!(error.message.starts_with("cannot reach Kafka topic"), "{error}");
    assert!(error.message.contains("Connection refused"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());

    // Where the sink was taken over it was there: it is waited for, until nobody does any more.
    let report = Arc::new(SinkReport::default());
    let waits = report.clone();
    std::thread::spawn(move || {
        // Longer than a broker is looked for that was never there.
        std::thread::sleep(Duration::from_secs(18));
        waits.give_up();
    });
    let error = nowhere.open(0, Some(&author(1)), report).err().unwrap();
    assert!(error.message.starts_with("gave up on Kafka topic"), "{error}");
}

#[test]
fn the_timestamp_is_the_messages() {
    let topic = Topic::of(1);
    let mut table = topic.table("kafka", &[]);
    table.columns[1] = ColumnSpec {
        name: "v".into(),
        data_type: DataType::Timestamp(TimeUnit::Millisecond, None),
        nullable: true,
        metadata: Some("timestamp".into()),
    };
    let sink = weir_sinks::kafka::sink(&table, &[]).unwrap();
    let mut writer = sink.open(0, None, Arc::default()).unwrap();
    let times = arrow::array::TimestampMillisecondArray::from(vec![1_700_000_000_123]);
    let keys = StringArray::from(vec!["a"]);
    let columns: [(_, arrow::array::ArrayRef, _); 2] =
        [("k", Arc::new(keys), true), ("v", Arc::new(times), true)];
    let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
    writer.write(1, batch, None).unwrap();
    writer.end_epoch(end(1)).unwrap();
    let consumer: BaseConsumer = config().set("group.id", "test").create().unwrap();
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(&topic.name, 0, Offset::Beginning).unwrap();
    consumer.assign(&list).unwrap();
    let mut found = None;
    until("the message is there", || {
        // Nothing is also what the client gives when it has something else to do.
        found = consumer
            .poll(Duration::from_millis(100))
            .map(Result::unwrap)
            .map(|m| (m.payload().map(<[u8]>::to_vec), m.timestamp().to_millis()));
        found.is_some()
    });
    assert_eq!(found.unwrap(), (Some(b"{\"k\":\"a\"}".to_vec()), Some(1_700_000_000_123)));
}

/// A sink through TLS and a password.
fn secured(topic: &Topic, options: &[(&str, &str)]) -> Box<dyn Sink> {
    let variable = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: `cargo xtask services up kafka`"))
    };
    let [servers, user, secret, ca] = ["", "_USER", "_SECRET", "_CA"]
        .map(|part| variable(&format!("WEIR_TEST_KAFKA_SASL{part}")));
    let mut all = vec![
        ("properties.bootstrap.servers", servers.as_str()),
        ("properties.security.protocol", "SASL_SSL"),
        ("properties.sasl.mechanism", "PLAIN"),
        ("properties.ssl.ca.location", &ca),
        ("properties.sasl.username", &user),
        ("properties.sasl.password", &secret),
    ];
    all.retain(|(key, _)| options.iter().all(|(other, _)| other != key));
    all.extend(options);
    topic.sink(&all)
}

#[test]
fn a_wrong_password_ends_it_wherever_it_is_found() {
    let topic = Topic::of(1);
    let sink = secured(&topic, &[]);
    sink.probe().unwrap();
    write(take(sink.as_ref(), 1).as_mut(), 1).unwrap();
    assert_eq!(topic.committed(), rows(1..=1));

    let sink = secured(&topic, &[("properties.sasl.password", "Zaunkoenig-77")]);
    let began = Instant::now();
    let errors = [
        sink.probe().unwrap_err(),
        sink.take_over(&author(2)).unwrap_err(),
        sink.open(0, Some(&author(1)), Arc::default()).err().unwrap(),
        sink.open(0, None, Arc::default()).err().unwrap(),
    ];
    for error in errors {
        assert_eq!(error.remedy, Remedy::Reconfigure, "{error}");
        assert!(error.message.contains("refuses to authenticate table `t`"), "{error}");
        assert!(!format!("{error:?}").contains("Zaunkoenig"), "{error:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "it was tried again and again");
}
