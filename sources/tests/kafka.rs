//! The `kafka` source against a real broker: `WEIR_TEST_KAFKA` names it. Outages, which cannot be
//! made on a broker that others use too, are shown on librdkafka's mock cluster.
#![allow(clippy::unwrap_used, missing_docs)]

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Field, Fields, Int64Type, TimeUnit};
use expect_test::expect;
use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use weir_engine::connector::{ColumnSpec, ConnectorError, Remedy, TableSpec};
use weir_engine::source::{Chunk, QUEUE_BYTES_MAX, Source, SplitQueue, SplitSpec, Start};

const PATIENCE: Duration = Duration::from_secs(30);

fn broker() -> String {
    std::env::var("WEIR_TEST_KAFKA")
        .expect("WEIR_TEST_KAFKA names a broker: cargo xtask services up")
}

fn config(servers: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("message.timeout.ms", "10000");
    config
}

/// A topic of its own.
struct Topic {
    name: String,
    servers: String,
    producer: BaseProducer,
}

impl Topic {
    fn of(partitions: i32) -> Topic {
        static TOPICS: AtomicU32 = AtomicU32::new(0);
        let number = TOPICS.fetch_add(1, Ordering::Relaxed);
        let name = format!("source-{}-{number}", std::process::id());
        let servers = broker();
        let admin: AdminClient<DefaultClientContext> = config(&servers).create().unwrap();
        let topic = NewTopic::new(&name, partitions, TopicReplication::Fixed(1));
        block_on(admin.create_topics([&topic], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
        let producer = config(&servers).create().unwrap();
        Topic { name, servers, producer }
    }

    fn send(&self, partition: i32, payload: Option<&str>) {
        self.send_with(partition, payload, |record| record);
    }

    fn send_with(
        &self,
        partition: i32,
        payload: Option<&str>,
        more: impl for<'a> Fn(BaseRecord<'a, [u8], str>) -> BaseRecord<'a, [u8], str>,
    ) {
        let mut record =
            more(BaseRecord::to(&self.name).partition(partition).timestamp(1_000 * 60));
        if let Some(payload) = payload {
            record = record.payload(payload);
        }
        self.producer.send(record).unwrap();
    }

    fn send_many(&self, partition: i32, range: std::ops::Range<u64>) {
        for n in range {
            let payload = format!("{{\"n\":{n}}}");
            let mut record: BaseRecord<'_, [u8], str> =
                BaseRecord::to(&self.name).partition(partition).payload(payload.as_str());
            while let Err((error, again)) = self.producer.send(record) {
                let full = rdkafka::types::RDKafkaErrorCode::QueueFull;
                assert_eq!(error.rdkafka_error_code(), Some(full));
                self.producer.poll(Duration::from_millis(5));
                record = again;
            }
        }
    }

    fn sent(&self) {
        self.producer.flush(PATIENCE).unwrap();
    }

    fn table(&self, columns: &[(&str, DataType)], options: &[(&str, &str)]) -> TableSpec {
        table(&self.name, &self.servers, columns, options)
    }

    /// Makes the broker forget what is before these offsets.
    fn forget(&self, before: &[(i32, i64)]) {
        let admin: AdminClient<DefaultClientContext> = config(&self.servers).create().unwrap();
        let mut list = TopicPartitionList::new();
        for &(partition, offset) in before {
            list.add_partition_offset(&self.name, partition, Offset::Offset(offset)).unwrap();
        }
        block_on(admin.delete_records(&list, &AdminOptions::new())).unwrap();
    }
}

fn table(
    topic: &str,
    servers: &str,
    columns: &[(&str, DataType)],
    options: &[(&str, &str)],
) -> TableSpec {
    let column = |(name, data_type): &(&str, DataType)| {
        let (name, metadata) = name.split_once('@').map_or((*name, None), |(n, k)| (n, Some(k)));
        let metadata = metadata.map(str::to_owned);
        ColumnSpec { name: name.into(), data_type: data_type.clone(), nullable: true, metadata }
    };
    let mut all = vec![
        ("connector", "kafka"),
        ("topic", topic),
        ("properties.bootstrap.servers", servers),
        ("format", "json"),
    ];
    all.extend(options);
    TableSpec {
        name: "t".into(),
        columns: columns.iter().map(column).collect(),
        options: all.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        primary_key: vec![],
        partitioned_by: vec![],
        event_time: None,
        keyed: vec![],
        pushed: vec![],
    }
}

fn source(table: &TableSpec) -> Box<dyn Source> {
    weir_sources::kafka::source(table, &[]).unwrap()
}

fn queues(source: &dyn Source, limit: usize) -> Vec<Arc<SplitQueue>> {
    source.splits().unwrap().into_iter().map(|s| SplitQueue::bounded(s, limit)).collect()
}

/// Looks again and again until it is so.
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Takes chunks until the split has ended.
fn to_the_end(queue: &SplitQueue) -> Result<Vec<Chunk>, ConnectorError> {
    let mut chunks = Vec::new();
    let mut failed = None;
    until("the end", || {
        chunks.extend(queue.pop(usize::MAX));
        failed = queue.failure();
        queue.is_finished() || failed.is_some()
    });
    failed.map_or(Ok(chunks), Err)
}

fn show(chunks: &[Chunk]) -> String {
    let mut out = String::new();
    for chunk in chunks {
        let mut lines = Vec::new();
        for row in 0..chunk.len() {
            let values = chunk.rows.columns().iter().map(|c| {
                let text = arrow::util::display::array_value_to_string(c, row).unwrap();
                if c.is_null(row) { "NULL".to_owned() } else { text }
            });
            let line = values.collect::<Vec<_>>().join(" | ");
            let arrival = chunk.arrivals.as_ref().unwrap()[row];
            lines.push((chunk.offsets.at(row), format!("{line} came {arrival}")));
        }
        for bad in &chunk.bad {
            let payload = String::from_utf8_lossy(&bad.payload);
            lines.push((bad.offset, format!("BAD {payload} ({})", bad.reason)));
        }
        lines.sort();
        for (offset, line) in lines {
            out.push_str(&format!("  {offset}: {line}\n"));
        }
    }
    if let Some(last) = chunks.last() {
        out.push_str(&format!("  next {}\n", last.next_offset));
    }
    out
}

/// Reads a bounded table: for each partition its rows.
fn read(table: &TableSpec) -> Result<String, ConnectorError> {
    let source = source(table);
    let queues = queues(source.as_ref(), QUEUE_BYTES_MAX);
    let handle = source.open(queues.clone())?;
    let mut out = String::new();
    for queue in &queues {
        out.push_str(&format!("partition {}\n", queue.split.name));
        out.push_str(&show(&to_the_end(queue)?));
    }
    drop(handle);
    Ok(out)
}

const N: (&str, DataType) = ("n", DataType::Int64);
const BOUNDED: (&str, &str) = ("scan.bounded.mode", "latest-offset");

#[test]
fn partitions_metadata_tombstones_and_what_is_no_row() {
    let topic = Topic::of(3);
    topic.send(0, Some("{\"n\":1}"));
    topic.send(0, None);
    topic.send(0, Some(""));
    topic.send(0, Some("{\"n\":"));
    topic.send(0, Some("{\"n\":2,\"more\":[]}"));
    topic.send_with(2, Some("{\"n\":3}"), |record| {
        let header = Header { key: "trace", value: Some("ab") };
        let headers = OwnedHeaders::new().insert(header);
        record.key(b"meter-1").headers(headers.insert(Header::<&str> { key: "none", value: None }))
    });
    topic.send_with(2, Some("{\"n\":4}"), |record| record.key(b"\xff"));
    topic.sent();
    let pair = Fields::from(vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("value", DataType::Binary, true),
    ]);
    let entries = Field::new("entries", DataType::Struct(pair), false);
    let columns = [
        ("p@partition", DataType::Int32),
        N,
        ("o@offset", DataType::Int64),
        ("ts@timestamp", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))),
        ("local@arrival", DataType::Timestamp(TimeUnit::Millisecond, None)),
        ("key@key", DataType::Binary),
        ("text@key", DataType::Utf8),
        ("headers@headers", DataType::Map(Arc::new(entries), false)),
    ];
    expect![[r#"
        partition 0
          0: 0 | 1 | 0 | 1970-01-01T00:01:00Z | 1970-01-01T00:01:00 | NULL | NULL | {} came 60000
          3: BAD {"n": (not JSON: expected a value at byte 5)
          4: 0 | 2 | 4 | 1970-01-01T00:01:00Z | 1970-01-01T00:01:00 | NULL | NULL | {} came 60000
          next 5
        partition 1
        partition 2
          0: 2 | 3 | 0 | 1970-01-01T00:01:00Z | 1970-01-01T00:01:00 | 6d657465722d31 | meter-1 | {trace: 6162, none: } came 60000
          1: BAD {"n":4} (the message's key is not UTF-8)
          next 2
    "#]]
    .assert_eq(&read(&topic.table(&columns, &[BOUNDED])).unwrap());

    let strict = topic.table(&[N], &[BOUNDED, ("json.fail-on-error", "true")]);
    let error = read(&strict).unwrap_err();
    assert_eq!(error.remedy, Remedy::Fatal);
    let expected = format!("topic `{}`, partition 0, offset 3: not JSON", topic.name);
    assert!(error.message.starts_with(&expected), "{error}");
}

#[test]
fn starts_where_it_is_told() {
    let topic = Topic::of(2);
    for n in 0..5 {
        let payload = format!("{{\"n\":{n}}}");
        topic.send_with(0, Some(&payload), |record| record.timestamp(1_000 * n + 1));
    }
    topic.send(1, Some("{\"n\":9}"));
    topic.sent();
    let read = |options: &[(&str, &str)]| {
        let mut all = vec![BOUNDED];
        all.extend(options);
        let text = read(&topic.table(&[("o@offset", DataType::Int64)], &all)).unwrap();
        text.lines()
            .filter(|l| l.starts_with("partition") || l.contains("came"))
            .map(|l| if l.starts_with('p') { ";" } else { l.trim().split(':').next().unwrap() })
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(read(&[]), "; 0 1 2 3 4 ; 0");
    assert_eq!(read(&[("scan.startup.mode", "latest-offset")]), "; ;");
    let by_time = [("scan.startup.mode", "timestamp"), ("scan.startup.timestamp-millis", "2500")];
    assert_eq!(read(&by_time), "; 3 4 ; 0");
    let specific = [
        ("scan.startup.mode", "specific-offsets"),
        ("scan.startup.specific-offsets", "partition:0,offset:4"),
    ];
    assert_eq!(read(&specific), "; 4 ; 0");

    let group = format!("{}-group", topic.name);
    let grouped = ("properties.group.id", group.as_str());
    assert_eq!(read(&[grouped]), "; 0 1 2 3 4 ; 0");
    let source = source(&topic.table(&[N], &[grouped]));
    let open = queues(source.as_ref(), QUEUE_BYTES_MAX);
    let mut handle = source.open(open).unwrap();
    handle.committed(&[(0, 3)]);
    until("the group's offsets", || read(&[grouped]) == "; 3 4 ; 0");
    drop(handle);
    let from_the_end = [grouped, ("properties.auto.offset.reset", "latest")];
    assert_eq!(read(&from_the_end), "; 3 4 ;");
}

#[test]
fn a_bounded_read_ends_behind_the_marks_of_a_transaction() {
    let topic = Topic::of(1);
    let mut config = config(&topic.servers);
    let producer: BaseProducer =
        config.set("transactional.id", format!("{}-tx", topic.name)).create().unwrap();
    producer.init_transactions(PATIENCE).unwrap();
    for (n, commit) in [(1, true), (2, false), (3, true)] {
        producer.begin_transaction().unwrap();
        let payload = format!("{{\"n\":{n}}}");
        let record: BaseRecord<'_, [u8], str> =
            BaseRecord::to(&topic.name).partition(0).payload(payload.as_str()).timestamp(7);
        producer.send(record).unwrap();
        producer.flush(PATIENCE).unwrap();
        match commit {
            true => producer.commit_transaction(PATIENCE).unwrap(),
            false => producer.abort_transaction(PATIENCE).unwrap(),
        }
    }
    expect![[r#"
        partition 0
          0: 1 came 7
          4: 3 came 7
          next 5
    "#]]
    .assert_eq(&read(&topic.table(&[N], &[BOUNDED])).unwrap());
}

/// Values of the first column.
fn values(chunk: &Chunk) -> Vec<i64> {
    chunk.rows.column(0).as_primitive::<Int64Type>().values().to_vec()
}

#[test]
fn a_split_without_room_holds_up_no_other_and_loses_nothing() {
    const ROWS: u64 = 60_000;
    let topic = Topic::of(3);
    topic.send_many(0, 0..ROWS);
    topic.send_many(1, 0..ROWS);
    topic.sent();
    let source = source(&topic.table(&[N], &[]));
    let queues = queues(source.as_ref(), 64 << 10);
    let handle = source.open(queues.clone()).unwrap();
    let (mut zeroth, mut first) = (Vec::new(), Vec::new());
    until("all of partition 1", || {
        first.extend(queues[1].pop(usize::MAX).iter().flat_map(values));
        first.len() as u64 == ROWS
    });
    assert!((queues[0].rows_waiting() as u64) < ROWS / 2, "the queue has no bound");
    until("the end of partition 1", || queues[1].is_quiet() == (true, true));
    until("the end of partition 2", || queues[2].is_quiet() == (true, true));
    assert!(!queues[0].is_quiet().0, "what waits in the client is not at its end");
    until("the lag of partition 0", || queues[0].report().0 > ROWS / 2);
    until("all of partition 0", || {
        zeroth.extend(queues[0].pop(usize::MAX).iter().flat_map(values));
        zeroth.len() as u64 == ROWS
    });
    let expected: Vec<i64> = (0..ROWS.cast_signed()).collect();
    assert!(zeroth == expected && first == expected, "out of order");

    // Rows that come now are there soon.
    let mut waits = Vec::new();
    for n in 0..20 {
        let sent = Instant::now();
        topic.send_many(2, n..n + 1);
        until("a row of partition 2", || queues[2].pop(1).is_some_and(|c| c.len() == 1));
        waits.push(sent.elapsed());
    }
    waits.sort_unstable();
    println!("from sent to queued: median {:?}, worst {:?}", waits[10], waits[19]);
    drop(handle);
}

#[test]
fn offsets_that_are_gone_end_the_job_unless_they_may_be_skipped() {
    let topic = Topic::of(2);
    topic.send_many(0, 0..10);
    topic.send_many(1, 0..3);
    topic.sent();
    topic.forget(&[(0, 6)]);
    let from_two = [
        BOUNDED,
        ("scan.startup.mode", "specific-offsets"),
        ("scan.startup.specific-offsets", "partition:0,offset:2"),
    ];
    let error = read(&topic.table(&[N], &from_two)).unwrap_err();
    let message = error.message.replace(&topic.name, "T");
    let expected = "the broker does not have offset 2 of partition 0 of `T` any more (table `t`); \
                    it has 6 to 10";
    assert_eq!(message, expected);
    assert_eq!(error.remedy, Remedy::Fatal);
    let mut skipping = from_two.to_vec();
    skipping.push(("scan.offset-lost", "skip"));
    let rows = read(&topic.table(&[("o@offset", DataType::Int64)], &skipping)).unwrap();
    let offsets: Vec<&str> =
        rows.lines().filter_map(|l| l.trim().split_once(": ").map(|(o, _)| o)).collect();
    assert_eq!(offsets, ["6", "7", "8", "9", "0", "1", "2"]);

    // The gap is said, for the cut to record: offsets 2 to 5.
    let source = source(&topic.table(&[N], &skipping));
    let queues = queues(source.as_ref(), QUEUE_BYTES_MAX);
    let handle = source.open(queues.clone()).unwrap();
    for queue in &queues {
        to_the_end(queue).unwrap();
    }
    assert_eq!(queues.iter().map(|q| q.offsets_lost()).collect::<Vec<_>>(), [4, 0]);
    assert!(
        queues[0].report().1.unwrap().starts_with("skipped: the broker does not have offset 2")
    );
    drop(handle);
}

#[test]
fn a_topic_that_is_not_there_is_named_with_one_that_is() {
    let topic = Topic::of(1);
    let misspelt = format!("{}x", topic.name);
    let error = source(&table(&misspelt, &topic.servers, &[N], &[])).splits().unwrap_err();
    assert_eq!(error.remedy, Remedy::Reconfigure);
    let expected = format!("there is no topic `{misspelt}` at {} (table `t`)", topic.servers);
    assert_eq!(error.message, expected);
    assert!(error.hint.unwrap().starts_with("did you mean `source-"));
}

#[test]
fn a_broker_that_was_never_reached_ends_it() {
    let began = Instant::now();
    let error = source(&table("a", "127.0.0.1:9", &[N], &[])).splits().unwrap_err();
    assert_eq!(error.remedy, Remedy::Retry);
    assert!(error.message.contains("127.0.0.1:9 of table `t`"), "{error}");
    assert!(error.message.contains("Connection refused"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(22), "{:?}", began.elapsed());
}

#[test]
fn a_reader_that_goes_on_waits_for_its_broker() {
    let topic = Topic::of(1);
    let split = source(&topic.table(&[N], &[])).splits().unwrap().remove(0);
    let away = source(&table(&topic.name, "127.0.0.1:9", &[N], &[]));
    let first = SplitQueue::bounded(split.clone(), QUEUE_BYTES_MAX);
    let next = SplitQueue::from(split, QUEUE_BYTES_MAX, Start::Offset(0));
    let handles = [&first, &next].map(|queue| away.open(vec![queue.clone()]).unwrap());
    until("a first start gives up", || first.failure().is_some());
    assert_eq!(first.failure().unwrap().remedy, Remedy::Retry);
    std::thread::sleep(Duration::from_secs(2));
    assert!(next.failure().is_none(), "{:?}", next.failure());
    assert!(next.report().1.unwrap().starts_with("trying to reach Kafka topic"));
    drop(handles);
}

/// A table on the listener that wants TLS and a password.
fn secured(topic: &Topic, options: &[(&str, &str)]) -> TableSpec {
    let variable = |name: &str| {
        std::env::var(name)
            .unwrap_or_else(|_| panic!("{name} is not set: `cargo xtask services up kafka`"))
    };
    let ca = variable("WEIR_TEST_KAFKA_SASL_CA");
    let user = variable("WEIR_TEST_KAFKA_SASL_USER");
    let secret = variable("WEIR_TEST_KAFKA_SASL_SECRET");
    let mut all = vec![
        BOUNDED,
        ("properties.security.protocol", "SASL_SSL"),
        ("properties.ssl.ca.location", ca.as_str()),
        ("properties.sasl.username", user.as_str()),
        ("properties.sasl.password", secret.as_str()),
    ];
    all.extend(options);
    table(&topic.name, &variable("WEIR_TEST_KAFKA_SASL"), &[N], &all)
}

#[test]
fn tls_and_passwords_of_each_mechanism() {
    let topic = Topic::of(1);
    topic.send_many(0, 0..3);
    topic.sent();
    let plain_text = read(&topic.table(&[N], &[BOUNDED])).unwrap();
    let jaas = "org.apache.kafka.common.security.plain.PlainLoginModule required \
                username=\"weir\" password=\"weir-secret\";";
    for options in [
        &[("properties.sasl.mechanism", "PLAIN")][..],
        &[("properties.sasl.mechanism", "PLAIN"), ("properties.sasl.jaas.config", jaas)],
        &[("properties.sasl.mechanisms", "SCRAM-SHA-512")],
    ] {
        let rows = |text: &str| text.lines().filter(|l| l.contains("came")).count();
        let came = read(&secured(&topic, options)).unwrap();
        assert_eq!(rows(&came), 3, "{came}");
        assert_eq!(rows(&plain_text), 3);
    }
}

#[test]
fn a_wrong_password_or_certificate_ends_it_and_is_not_shown() {
    let topic = Topic::of(1);
    for mechanism in ["PLAIN", "SCRAM-SHA-512"] {
        let wrong = [
            ("properties.sasl.mechanism", mechanism),
            ("properties.sasl.password", "Zaunkoenig-77"),
        ];
        let error = source(&secured(&topic, &wrong)).splits().unwrap_err();
        assert_eq!(error.remedy, Remedy::Reconfigure, "{error}");
        assert!(error.message.contains("refuses to authenticate table `t`"), "{error}");
        assert!(!format!("{error:?}").contains("Zaunkoenig"), "{error:?}");
    }
    let mut spec = secured(&topic, &[("properties.sasl.mechanism", "PLAIN")]);
    spec.options.remove("properties.ssl.ca.location");
    let began = Instant::now();
    let error = source(&spec).splits().unwrap_err();
    assert_eq!(error.remedy, Remedy::Reconfigure, "{error}");
    assert!(error.message.contains("certificate"), "{error}");
    assert!(began.elapsed() < Duration::from_secs(12), "it was tried again and again");
}

#[test]
fn an_outage_shows_and_passes() {
    let cluster = MockCluster::new(1).unwrap();
    cluster.create_topic("a", 1, 1).unwrap();
    let servers = cluster.bootstrap_servers();
    let producer: BaseProducer = config(&servers).create().unwrap();
    let send = |n: i32| {
        let payload = format!("{{\"n\":{n}}}");
        let record: BaseRecord<'_, [u8], str> =
            BaseRecord::to("a").partition(0).payload(payload.as_str());
        producer.send(record).unwrap();
        producer.flush(PATIENCE).unwrap();
    };
    send(1);
    let source = source(&table("a", &servers, &[N], &[]));
    let queues = queues(source.as_ref(), QUEUE_BYTES_MAX);
    let queue = &queues[0];
    let handle = source.open(queues.clone()).unwrap();
    let mut got = Vec::new();
    until("the first row", || {
        got.extend(queue.pop(usize::MAX).iter().flat_map(values));
        got == [1]
    });
    until("connected", || queue.is_quiet() == (true, true));
    cluster.broker_down(1).unwrap();
    until("disconnected", || !queue.is_quiet().1 && queue.report().1.is_some());
    let notice = queue.report().1.unwrap();
    assert!(notice.starts_with("trying to reach Kafka topic `a`"), "{notice}");
    assert!(queue.failure().is_none());
    cluster.broker_up(1).unwrap();
    until("connected again", || queue.is_quiet().1 && queue.report().1.is_none());
    send(2);
    until("the second row", || {
        got.extend(queue.pop(usize::MAX).iter().flat_map(values));
        got == [1, 2]
    });
    drop(handle);
}

#[test]
fn a_topic_that_was_made_anew_is_not_the_one_that_was_read() {
    let topic = Topic::of(2);
    topic.send_many(0, 0..5);
    topic.sent();
    let table = topic.table(&[("n", DataType::Int64)], &[]);
    let source = source(&table);
    let splits = source.splits().unwrap();
    let open = || {
        let from = |split: &SplitSpec| {
            SplitQueue::from(split.clone(), QUEUE_BYTES_MAX, Start::Offset(3 - split.number * 3))
        };
        let queues: Vec<_> = splits.iter().map(from).collect();
        let handle = source.open(queues.clone()).unwrap();
        queues.iter().for_each(|queue| queue.want());
        (queues, handle)
    };
    let (queues, handle) = open();
    until("the rest of the messages", || queues[0].rows_waiting() == 2);
    drop(handle);

    let admin: AdminClient<DefaultClientContext> = config(&topic.servers).create().unwrap();
    block_on(admin.delete_topics(&[&topic.name], &AdminOptions::new())).unwrap();
    let made = NewTopic::new(&topic.name, 2, TopicReplication::Fixed(1));
    // A broker may still be about to delete it.
    until("the topic is made anew", || {
        block_on(admin.create_topics([&made], &AdminOptions::new())).unwrap()[0].is_ok()
    });
    let producer: BaseProducer = config(&topic.servers).create().unwrap();
    let again = Topic { producer, ..topic };
    again.send_many(0, 100..110);
    again.sent();

    let (queues, handle) = open();
    until("both partitions fail", || queues.iter().all(|queue| queue.failure().is_some()));
    let error = queues[0].failure().unwrap();
    assert_eq!(error.remedy, Remedy::Fatal);
    assert_eq!(
        error.message,
        format!(
            "Kafka topic `{}` at {} of table `t` was deleted and made anew: the job's offsets mean \
             nothing in it",
            again.name, again.servers
        )
    );
    let hint = "start the job anew, under another state: it begins where 'scan.startup.mode' says";
    assert_eq!(error.hint.as_deref(), Some(hint));
    assert!(queues.iter().all(|queue| queue.rows_waiting() == 0));
    drop(handle);
}

#[test]
fn partitions_that_came_later_are_found_with_all_that_is_in_them() {
    let topic = Topic::of(1);
    let table = topic.table(&[("n", DataType::Int64)], &[("scan.startup.mode", "latest-offset")]);
    let source = source(&table);
    let splits = source.splits().unwrap();
    assert_eq!(source.added(&splits).unwrap(), []);
    assert_eq!(source.discovery(), Some(Duration::from_secs(60)));

    let admin: AdminClient<DefaultClientContext> = config(&topic.servers).create().unwrap();
    let more = NewPartitions::new(&topic.name, 3);
    block_on(admin.create_partitions([&more], &AdminOptions::new())).unwrap()[0].as_ref().unwrap();
    topic.send_many(2, 0..5);
    topic.sent();
    let mut added = Vec::new();
    until("both are told of", || {
        added = source.added(&splits).unwrap();
        added.len() == 2
    });
    let id = &splits[0].detail["topic_id"];
    for (number, split) in (1..).zip(&added) {
        assert_eq!((split.number, split.name.as_str()), (number, &*number.to_string()));
        assert_eq!((&split.detail["start"], &split.detail["topic_id"]), (&0.into(), id));
    }
    let all: Vec<SplitSpec> = splits.into_iter().chain(added).collect();
    assert_eq!(source.added(&all).unwrap(), []);

    // What is read to its end now does not grow.
    let bounded = topic.table(&[("n", DataType::Int64)], &[("scan.bounded.mode", "latest-offset")]);
    let bounded = self::source(&bounded);
    assert_eq!(bounded.added(&all[..1]).unwrap(), []);
    assert_eq!(bounded.discovery(), None);
}
