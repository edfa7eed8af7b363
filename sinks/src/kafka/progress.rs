//! How far each shard is written, as the target remembers it: records of a compacted topic, each in
//! the transaction of the rows that it speaks of.
//!
//! # Why records
//! The broker keeps offsets of consumer groups too, and changes them in transactions, but forgets
//! them when nobody has used the group for a week. A compacted topic keeps the newest record of a
//! key for ever.
//!
//! # Compare and set
//! Who writes for a shard does so with the shard's transactional id, and only after having
//! 1. shut out all others of that id (`init_transactions`: open transactions of theirs are aborted,
//!    their later ones refused), then
//! 2. read the shard's newest record.
//!
//! So between 2 and a commit that succeeds nobody else has written a record of the shard: whoever
//! shuts this producer out makes its commit fail. A reply to a commit that was lost is found out by
//! the same two steps: after 1 the transaction is decided, and 2 shows how. A generation that finds
//! a newer one's record in 2 ends; as a generation's record is written in the same way before it
//! writes rows, none that is older gets past 2 after that.
//!
//! # Reading to the end
//! What is committed before 1 lies before the partition's end, asked for after 1. Records that
//! readers of committed data may not see yet, because another writer's transaction before them is
//! open, are waited for. The newest record of a shard is the one with the greatest generation and
//! then epoch, whichever partition it is in: partitions may be added.
//!
//! # Limits
//! A transaction that a dead writer has left open in the progress topic holds the recoveries of all
//! others back until its own recovery shuts it out, or the broker ends it
//! (`transaction.timeout.ms`, a minute by default): so all sinks of a job, and all jobs of a
//! script, are taken over side by side. Jobs that share the topic and are not started again cost
//! the others that minute. The topic is read as a whole; it is made with segments of 16 MiB, of
//! which the broker's cleaner leaves few.

use futures::executor::block_on;
use rdkafka::Offset;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::TopicPartitionList;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
use weir_engine::connector::ConnectorError;
use weir_engine::sink::{Author, Progress};
use weir_engine::time::Epoch;

use super::client::{Client, Told, Waiting};
use super::{Plan, fault};

/// Version of the records.
const VERSION: u32 = 1;
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
const POLL: Duration = Duration::from_millis(100);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long reading may take beyond the time that an open transaction may.
const READ_MAX: Duration = Duration::from_secs(30);

/// How the topic is made.
const SETTINGS: [(&str, &str); 4] = [
    ("cleanup.policy", "compact"),
    ("segment.bytes", "16777216"),
    ("min.cleanable.dirty.ratio", "0.1"),
    ("delete.retention.ms", "3600000"),
];

/// A record's value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Version of this form.
    version: u32,
    pub(super) generation: u64,
    /// The start of the job that wrote it, in hexadecimal: two may have one generation.
    pub(super) holder: String,
    /// Number of shards that the sink had.
    pub(super) shards: u32,
    /// Beginning of the transactional id with which it was written.
    pub(super) prefix: String,
    /// The newest epoch whose rows are there; null before the first.
    epoch: Option<Epoch>,
    /// Of all rows up to there, in hexadecimal.
    digest: Option<String>,
}

/// A record as it is sent.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
}

impl Record {
    /// What a generation says of a shard.
    pub(super) fn of(plan: &Plan, author: &Author, progress: Option<Progress>) -> Record {
        Record {
            version: VERSION,
            generation: author.generation,
            holder: format!("{:016x}", author.holder),
            shards: plan.options.shards.get(),
            prefix: plan.options.prefix.clone(),
            epoch: progress.map(|p| p.epoch),
            digest: progress.map(|p| format!("{:032x}", p.digest)),
        }
    }

    /// Whether it shuts this author out.
    pub(super) fn overtakes(&self, author: &Author) -> bool {
        let twin = self.holder != format!("{:016x}", author.holder);
        self.generation > author.generation || self.generation == author.generation && twin
    }

    /// The record of a shard.
    pub(super) fn entry(&self, author: &Author, shard: u32) -> Result<Entry, ConnectorError> {
        let value = serde_json::to_vec(self)
            .map_err(|e| ConnectorError::fatal(format!("a progress record: {e}")))?;
        Ok(Entry { key: key(author, shard).into_bytes(), value })
    }

    /// How far the shard is written.
    pub(super) fn progress(&self) -> Option<Progress> {
        let digest = u128::from_str_radix(self.digest.as_deref()?, 16).ok()?;
        Some(Progress { epoch: self.epoch?, digest })
    }

    fn parse(key: &str, value: &[u8]) -> Result<Record, String> {
        let record: Record =
            serde_json::from_slice(value).map_err(|e| format!("record `{key}`: {e}"))?;
        if record.version != VERSION {
            let version = record.version;
            return Err(format!("record `{key}` has version {version}, which is not known here"));
        }
        if record.epoch.is_some() != record.progress().is_some() {
            return Err(format!("record `{key}` has no digest of its epoch"));
        }
        Ok(record)
    }
}

fn key(author: &Author, shard: u32) -> String {
    format!("{}/{}/{shard}", author.job, author.sink)
}

/// The newest records of a sink, by shard.
pub(super) type Records = BTreeMap<u32, Record>;

/// Takes a message of the topic, if it speaks of this sink.
fn take(
    records: &mut Records,
    author: &Author,
    name: &[u8],
    value: Option<&[u8]>,
) -> Result<(), String> {
    let (Ok(name), Some(value)) = (std::str::from_utf8(name), value) else { return Ok(()) };
    let Some((sink, shard)) = name.rsplit_once('/') else { return Ok(()) };
    let Some(shard) = shard.parse().ok().filter(|&shard| key(author, shard) == name) else {
        return Ok(());
    };
    let record = Record::parse(sink, value)?;
    let age = |record: &Record| (record.generation, record.epoch);
    if records.get(&shard).is_none_or(|known| age(known) <= age(&record)) {
        records.insert(shard, record);
    }
    Ok(())
}

/// A reader of committed data, not connected yet.
pub(super) type Reader = BaseConsumer<Told>;

/// Reads the newest records of a sink. `client` has shut out whoever else may write them.
///
/// # Errors
/// What the broker says; a record that cannot be read (fatal).
pub(super) fn read(
    plan: &Plan,
    reader: &Reader,
    client: &Client,
    author: &Author,
    waiting: &dyn Waiting,
) -> Result<Records, ConnectorError> {
    let topic = &plan.options.progress_topic;
    let until = Instant::now() + plan.transaction_max + READ_MAX;
    let count = client.partitions_of(topic, REQUEST_TIMEOUT)?;
    let mut list = TopicPartitionList::new();
    let mut ends = BTreeMap::new();
    for partition in 0..count {
        let end = client.end_of(topic, partition)?;
        wait_for(plan, reader, (partition, end), until, waiting)?;
        let wanted = list.add_partition_offset(topic, partition, Offset::Beginning);
        wanted.map_err(|e| fault::of(plan, topic, &e, None))?;
        ends.insert(partition, end);
    }
    reader.assign(&list).map_err(|e| fault::of(plan, topic, &e, None))?;
    let mut records = Records::new();
    while !ends.is_empty() {
        if waiting.given_up() || Instant::now() >= until {
            return Err(ConnectorError::retry(format!("the topic `{topic}` was not read in time")));
        }
        match reader.poll(POLL) {
            None => {}
            Some(Ok(message)) => {
                let name = message.key().unwrap_or_default();
                take(&mut records, author, name, message.payload())
                    .map_err(|what| ConnectorError::fatal(format!("topic `{topic}`: {what}")))?;
                let end = ends.get(&message.partition());
                if end.is_some_and(|&end| message.offset() + 1 >= end) {
                    ends.remove(&message.partition());
                }
            }
            Some(Err(KafkaError::PartitionEOF(partition))) => {
                ends.remove(&partition);
            }
            Some(Err(error)) => return Err(fault::of(plan, topic, &error, None)),
        }
    }
    Ok(records)
}

/// Waits until readers of committed data may read a partition up to there.
fn wait_for(
    plan: &Plan,
    reader: &Reader,
    (partition, end): (i32, i64),
    until: Instant,
    waiting: &dyn Waiting,
) -> Result<(), ConnectorError> {
    let topic = &plan.options.progress_topic;
    loop {
        let stable = reader.fetch_watermarks(topic, partition, REQUEST_TIMEOUT);
        let (_, stable) = stable.map_err(|e| fault::of(plan, topic, &e, None))?;
        if stable >= end {
            return Ok(());
        }
        let text = format!("another writer's transaction is open in the topic `{topic}`");
        if waiting.given_up() || Instant::now() >= until {
            return Err(ConnectorError::retry(text));
        }
        waiting.tell(text);
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Makes a reader.
///
/// # Errors
/// Properties that contradict each other.
pub(super) fn reader(plan: &Plan) -> Result<Reader, ConnectorError> {
    let mut config = plan.client.clone();
    let fixed = [
        // Nothing is committed; the library wants a name.
        ("group.id", "weir"),
        ("isolation.level", "read_committed"),
        ("enable.auto.commit", "false"),
        ("enable.partition.eof", "true"),
        ("auto.offset.reset", "error"),
        ("allow.auto.create.topics", "false"),
        ("fetch.wait.max.ms", "10"),
    ];
    for (key, value) in fixed {
        config.set(key, value);
    }
    let told = Told::of(&plan.options.progress_topic);
    config.create_with_context(told).map_err(|e| plan.no_client(&e))
}

/// Makes the topic unless it exists, and checks that it forgets nothing.
///
/// # Errors
/// A topic that is not compacted; what the broker says.
pub(super) fn make_topic(plan: &Plan, reader: &Reader) -> Result<(), ConnectorError> {
    let topic = &plan.options.progress_topic;
    let failed = |e: &KafkaError| fault::of(plan, topic, e, None);
    let metadata = reader
        .fetch_metadata(Some(topic), REQUEST_TIMEOUT)
        .map_err(|e| reached(plan, reader, &e))?;
    let found = metadata.topics().iter().find(|t| t.name() == topic.as_str());
    let code = found.and_then(|t| t.error()).map(RDKafkaErrorCode::from);
    let exists = found.is_some_and(|t| !t.partitions().is_empty());
    let admin: AdminClient<Told> =
        plan.client.create_with_context(Told::of(topic)).map_err(|e| plan.no_client(&e))?;
    let options = AdminOptions::new().request_timeout(Some(REQUEST_TIMEOUT));
    if exists {
        return check_topic(plan, &admin, &options);
    }
    if code == Some(RDKafkaErrorCode::TopicAuthorizationFailed) {
        return Err(failed(&KafkaError::MetadataFetch(RDKafkaErrorCode::TopicAuthorizationFailed)));
    }
    let mut wanted = NewTopic::new(topic, 1, TopicReplication::Fixed(-1));
    for (key, value) in SETTINGS {
        wanted = wanted.set(key, value);
    }
    let made = block_on(admin.create_topics([&wanted], &options)).map_err(|e| failed(&e))?;
    match made.into_iter().next() {
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {
            until_there(plan, reader)?;
            check_topic(plan, &admin, &options)
        }
        Some(Err((_, RDKafkaErrorCode::TopicAuthorizationFailed))) => {
            let message = format!(
                "table `{}` may not make the topic `{topic}` at {}, which is to remember what is \
                 written",
                plan.table, plan.servers
            );
            let hint = "make it with cleanup.policy=compact, or name one that exists with \
                        'sink.progress-topic'";
            Err(ConnectorError::reconfigure(message).hint(hint))
        }
        Some(Err((_, code))) => Err(failed(&KafkaError::AdminOp(code))),
        Some(Ok(_)) | None => {
            tracing::info!(%topic, "made the topic that remembers what is written");
            until_there(plan, reader)
        }
    }
}

/// Waits until brokers know the topic that has just been made.
fn until_there(plan: &Plan, reader: &Reader) -> Result<(), ConnectorError> {
    let topic = &plan.options.progress_topic;
    let until = Instant::now() + REQUEST_TIMEOUT;
    loop {
        let known = reader.fetch_metadata(Some(topic), REQUEST_TIMEOUT);
        let known = known.map_err(|e| reached(plan, reader, &e))?;
        let mut topics = known.topics().iter();
        if topics.any(|t| t.name() == topic.as_str() && !t.partitions().is_empty()) {
            return Ok(());
        }
        if Instant::now() >= until {
            return Err(ConnectorError::retry(format!(
                "the topic `{topic}` is made, and not there"
            )));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Why a request failed: what was said of brokers explains it better.
fn reached(plan: &Plan, reader: &Reader, error: &KafkaError) -> ConnectorError {
    let topic = &plan.options.progress_topic;
    // Errors wait in the client's queue until somebody polls.
    let _ = reader.poll(LOOK_AGAIN);
    match reader.context().trouble() {
        Some((trouble, reason)) => fault::of(plan, topic, &trouble, Some(&reason)),
        None => fault::of(plan, topic, error, None),
    }
}

fn check_topic(
    plan: &Plan,
    admin: &AdminClient<Told>,
    options: &AdminOptions,
) -> Result<(), ConnectorError> {
    let topic = &plan.options.progress_topic;
    let described = block_on(admin.describe_configs([&ResourceSpecifier::Topic(topic)], options));
    let policy = match described.as_deref() {
        Ok([Ok(resource)]) => resource.get("cleanup.policy").and_then(|entry| entry.value.clone()),
        Ok(_) | Err(_) => None,
    };
    match policy.as_deref() {
        Some("compact") => Ok(()),
        Some(policy) => {
            let message = format!(
                "the topic `{topic}` at {} has cleanup.policy={policy}: it would forget what table \
                 `{}` has written",
                plan.servers, plan.table
            );
            let hint = "set its cleanup.policy to compact, or name another topic with \
                        'sink.progress-topic'";
            Err(ConnectorError::reconfigure(message).hint(hint))
        }
        None => {
            tracing::warn!(%topic, "cannot see whether the topic is compacted; it must be");
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn record(generation: u64, epoch: Option<Epoch>) -> Record {
        let digest = epoch.map(|e| format!("{e:032x}"));
        let (prefix, holder) = ("weir".to_owned(), "1".to_owned());
        Record { version: VERSION, generation, holder, shards: 2, prefix, epoch, digest }
    }

    fn taken(messages: &[(&str, Record)]) -> Result<Records, String> {
        let author = Author {
            job: "j".into(),
            sink: "a/b.1".into(),
            generation: 9,
            holder: 1,
            begun: false,
        };
        let mut records = Records::new();
        for (key, record) in messages {
            let value = serde_json::to_vec(record).unwrap();
            take(&mut records, &author, key.as_bytes(), Some(&value))?;
        }
        Ok(records)
    }

    #[test]
    fn the_newest_record_of_a_shard_counts_wherever_it_is() {
        let found = taken(&[
            ("j/a/b.1/0", record(2, Some(4))),
            ("j/a/b.1/0", record(1, Some(9))),
            ("j/a/b.1/1", record(1, None)),
            ("j/a/b.1/1", record(1, Some(3))),
            ("j/a/b.1/1", record(1, Some(2))),
            ("j/a/b.10/0", record(7, Some(7))),
            ("j/a/b.1/00", record(7, Some(7))),
            ("x", record(7, Some(7))),
        ]);
        let found = found.unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[&0], record(2, Some(4)));
        assert_eq!(found[&1].progress(), Some(Progress { epoch: 3, digest: 3 }));
    }

    #[test]
    fn records_of_another_version_are_not_guessed_at() {
        let later = Record { version: 2, ..record(1, None) };
        let said = taken(&[("j/a/b.1/0", later)]).unwrap_err();
        assert_eq!(said, "record `j/a/b.1` has version 2, which is not known here");
        let cut = Record { digest: None, ..record(1, Some(1)) };
        let said = taken(&[("j/a/b.1/0", cut)]).unwrap_err();
        assert_eq!(said, "record `j/a/b.1` has no digest of its epoch");
    }
}
