//! Which partitions there are, and where each of them starts and ends.

use rdkafka::Offset;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};
use weir_connect::kafka::identity::{self, Identity};
use weir_connect::kafka::topic_hint;
use weir_connect::retry::Retrying;
use weir_engine::connector::ConnectorError;
use weir_engine::source::SplitSpec;

use super::options::Start;
use super::watch::Watch;
use super::{Topic, fault};

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// How often a job's start asks for the id of the topic.
const ID_TRIES: u32 = 2;

/// How long the client is listened to, to find out why a request failed.
const TROUBLES_WAIT: Duration = Duration::from_millis(20);

/// Offsets of a partition, as they travel with its split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Range {
    /// The first offset to read.
    pub(super) start: i64,
    /// The first offset not to read.
    pub(super) end: Option<i64>,
}

/// What travels with a split.
#[derive(Debug, Serialize, Deserialize)]
struct Detail {
    #[serde(flatten)]
    range: Range,
    /// The id of the topic that the offsets are of, where its brokers give ids.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    topic_id: Option<String>,
}

/// The id of the topic that a split's offsets are of.
pub(super) fn planned_id(split: &SplitSpec) -> Option<String> {
    serde_json::from_value(split.detail.clone()).ok().and_then(|detail: Detail| detail.topic_id)
}

impl Range {
    pub(super) fn of(split: &SplitSpec) -> Result<Range, ConnectorError> {
        serde_json::from_value(split.detail.clone()).map_err(|e| {
            let partition = &split.name;
            ConnectorError::fatal(format!("partition {partition} was planned otherwise: {e}"))
        })
    }
}

type Client = BaseConsumer<Watch>;

/// The partitions as splits. Waits a while for a broker that cannot be reached.
pub(super) fn splits(topic: &Topic) -> Result<Vec<SplitSpec>, ConnectorError> {
    let client: Client = client(topic)?;
    let what = format!("the Kafka broker {} of table `{}`", topic.servers, topic.table);
    let mut retrying = Retrying::new(what, |_| (), || false);
    let partitions = retrying.run(|| partitions(topic, &client))?;
    let id = first_id(topic, &client);
    let ranges = retrying.run(|| ranges(topic, &client, &topic.start, &partitions))?;
    let all = partitions.into_iter().zip(ranges);
    Ok(all.map(|(partition, range)| split(partition, range, id.clone())).collect())
}

fn split(partition: i32, range: Range, topic_id: Option<String>) -> SplitSpec {
    SplitSpec {
        number: number(partition),
        name: partition.to_string(),
        bounded: range.end.is_some(),
        lazy: false,
        carries: Vec::new(),
        detail: serde_json::json!(Detail { range, topic_id }),
        joined: false,
    }
}

fn number(partition: i32) -> u64 {
    u64::from(partition.unsigned_abs())
}

/// Partitions that the topic has beside those known, from their oldest messages. Asks once.
pub(super) fn added(topic: &Topic, known: &[SplitSpec]) -> Result<Vec<SplitSpec>, ConnectorError> {
    let client: Client = client(topic)?;
    let mut fresh = partitions(topic, &client)?;
    fresh.retain(|&partition| known.iter().all(|split| split.number != number(partition)));
    if fresh.is_empty() {
        return Ok(Vec::new());
    }
    let id = known.iter().find_map(planned_id);
    let ranges = ranges(topic, &client, &Start::Earliest, &fresh)?;
    let all = fresh.into_iter().zip(ranges);
    Ok(all.map(|(partition, range)| split(partition, range, id.clone())).collect())
}

/// A client, not connected yet.
pub(super) fn client(topic: &Topic) -> Result<Client, ConnectorError> {
    topic.client.create_with_context(Watch::on(&topic.name)).map_err(|e| {
        let (topic, table) = (&topic.name, &topic.table);
        ConnectorError::reconfigure(format!(
            "cannot make a client for the Kafka topic `{topic}` of table `{table}`: {e}"
        ))
        .hint("check the options that begin with 'properties.'")
    })
}

/// What the client says when a request fails: the reason of its newest trouble, if there is one.
fn failed(topic: &Topic, client: &Client, error: &KafkaError) -> ConnectorError {
    // Errors wait in the client's queue until somebody polls.
    let until = Instant::now() + TROUBLES_WAIT;
    while Instant::now() < until {
        client.poll(TROUBLES_WAIT / 4);
    }
    match client.context().trouble() {
        Some((trouble, reason)) => fault::of(topic, &trouble, Some(&reason)),
        None => fault::of(topic, error, None),
    }
}

pub(super) fn partitions(topic: &Topic, client: &Client) -> Result<Vec<i32>, ConnectorError> {
    let metadata = client
        .fetch_metadata(Some(&topic.name), REQUEST_TIMEOUT)
        .map_err(|e| failed(topic, client, &e))?;
    let found = metadata.topics().iter().find(|t| t.name() == topic.name);
    let code = found.and_then(|t| t.error()).map(rdkafka::types::RDKafkaErrorCode::from);
    if let Some(code) = code {
        let error = fault::of(topic, &KafkaError::MetadataFetch(code), None);
        return Err(suggest(topic, client, error));
    }
    let partitions = found.map(|t| t.partitions()).unwrap_or_default();
    let mut numbers: Vec<i32> = partitions.iter().map(|p| p.id()).collect();
    numbers.sort_unstable();
    if numbers.is_empty() {
        let unknown = KafkaError::MetadataFetch(rdkafka::types::RDKafkaErrorCode::UnknownTopic);
        return Err(suggest(topic, client, fault::of(topic, &unknown, None)));
    }
    Ok(numbers)
}

/// Which topic the name means now.
pub(super) fn identity(topic: &Topic, client: &Client) -> Result<Identity, ConnectorError> {
    identity::identity(client.client(), &topic.name, REQUEST_TIMEOUT)
        .map_err(|e| failed(topic, client, &e))
}

/// The topic's id, where its brokers give ids. A broker that does all else may not answer this.
fn first_id(topic: &Topic, client: &Client) -> Option<String> {
    let mut last = None;
    for _ in 0..ID_TRIES {
        match identity(topic, client) {
            Ok(Identity::Known(id)) => return Some(id),
            Ok(_) => return None,
            Err(error) => last = Some(error),
        }
    }
    if let Some(error) = last {
        let topic = &topic.name;
        tracing::warn!(%topic, %error, "no topic id: a topic made anew would not be told from it");
    }
    None
}

/// Adds the topics that there are, if the topic is not among them.
fn suggest(topic: &Topic, client: &Client, error: ConnectorError) -> ConnectorError {
    if error.remedy != weir_engine::connector::Remedy::Reconfigure || error.hint.is_some() {
        return error;
    }
    let Ok(all) = client.fetch_metadata(None, REQUEST_TIMEOUT) else { return error };
    error.hint(topic_hint(&topic.name, all.topics().iter().map(|t| t.name())))
}

fn ranges(
    topic: &Topic,
    client: &Client,
    begin: &Start,
    partitions: &[i32],
) -> Result<Vec<Range>, ConnectorError> {
    let request = |e: KafkaError| failed(topic, client, &e);
    let mut wanted = TopicPartitionList::new();
    for &partition in partitions {
        wanted.add_partition(&topic.name, partition);
    }
    let found = match begin {
        Start::Group { .. } => {
            Some(client.committed_offsets(wanted, REQUEST_TIMEOUT).map_err(request)?)
        }
        Start::Timestamp(ms) => {
            wanted.set_all_offsets(Offset::Offset(*ms)).map_err(request)?;
            Some(client.offsets_for_times(wanted, REQUEST_TIMEOUT).map_err(request)?)
        }
        _ => None,
    };
    let found =
        |partition: i32| match found.as_ref()?.find_partition(&topic.name, partition)?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
    let mut ranges = Vec::with_capacity(partitions.len());
    for &partition in partitions {
        let (low, high) =
            client.fetch_watermarks(&topic.name, partition, REQUEST_TIMEOUT).map_err(request)?;
        let start = match begin {
            Start::Earliest => low,
            Start::Latest => high,
            Start::Group { else_latest: true } => found(partition).unwrap_or(high),
            Start::Group { else_latest: false } => found(partition).unwrap_or(low),
            // No message is that new: what comes from now on is.
            Start::Timestamp(_) => found(partition).unwrap_or(high),
            Start::Specific(offsets) => offsets.get(&partition).copied().unwrap_or(low),
        };
        ranges.push(Range { start, end: topic.bounded.then_some(high) });
    }
    if let Start::Specific(offsets) = begin
        && let Some(unknown) = offsets.keys().find(|p| !partitions.contains(p))
    {
        let (count, name) = (partitions.len(), &topic.name);
        let message = format!(
            "'scan.startup.specific-offsets' of table `{}` names partition {unknown}, but `{name}` \
             has {count} partitions",
            topic.table
        );
        return Err(ConnectorError::reconfigure(message));
    }
    Ok(ranges)
}
