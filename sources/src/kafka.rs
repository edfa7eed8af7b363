//! The `kafka` source: the partitions of a topic as splits, Kafka's offsets as theirs.
//!
//! # How it reads
//! Where each partition begins (and, if bounded, ends) is found out once, when the job is planned
//! (`planning.rs`), and travels with the split: no worker depends on what a group has committed.
//! Each worker has one consumer and one thread (`reader.rs`), which takes messages from a queue a
//! partition and decodes them into chunks (`rows.rs`). A partition whose split has no room is left
//! alone, and librdkafka stops to fetch for it; the others go on.
//!
//! # What is promised
//! Every message from the start on becomes a row or a bad row, in order, but tombstones (no
//! payload) and empty messages, which are neither. Committed transactions only, unless the
//! properties say otherwise. Offsets that the broker no longer has end the job, unless
//! `'scan.offset-lost' = 'skip'`.
//!
//! # Partitions that come later
//! They are no part of a job before a generation begins with them, each from its oldest message.
//!
//! # Limits
//! Memory: for each worker about 128 MiB of what is fetched, plus the
//! queues.

use arrow::datatypes::{DataType, TimeUnit};
use rdkafka::ClientConfig;
use std::sync::Arc;
use std::time::Duration;
use weir_connect::options::{bad_table, bad_value};
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};
use weir_engine::source::{Chunk, Source, SourceHandle, SplitQueue, SplitSpec};

mod fault;
mod options;
mod planning;
mod reader;
mod rows;
mod watch;

#[cfg(test)]
mod tests;

use options::{KafkaOptions, Start};
use rows::Columns;

/// The manual of the options.
pub fn options() -> Vec<OptionDoc> {
    KafkaOptions::docs()
}

/// METADATA columns: key and natural type.
pub fn metadata() -> Vec<(&'static str, DataType)> {
    let instant = || DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    vec![
        ("partition", DataType::Int32),
        ("split", DataType::Int64),
        ("offset", DataType::Int64),
        ("timestamp", instant()),
        ("arrival", instant()),
        ("topic", DataType::Utf8),
        ("key", DataType::Binary),
        ("headers", rows::headers_type()),
    ]
}

/// Checks the options and makes the source. Touches nothing outside. Options in `also` (those of
/// the sink half) pass unread.
///
/// # Errors
/// Everything that is wrong with the options and the columns.
pub fn source(table: &TableSpec, also: &[OptionDoc]) -> Result<Box<dyn Source>, Vec<OptionError>> {
    let (topic, mut errors) = match options::read(table, also) {
        Ok(topic) => (Some(topic), Vec::new()),
        Err(errors) => (None, errors),
    };
    let columns = match Columns::of(table) {
        Ok(columns) => Some(columns),
        Err(wrong) => {
            errors.extend(wrong.iter().map(|what| bad_table(table, what)));
            None
        }
    };
    if let (Some(topic), Some(columns)) = (&topic, &columns)
        && let Err(e) = columns.decoder(topic.json)
    {
        errors.push(bad_value(table, "format", &format!("does not fit: {e}")));
    }
    match (topic, columns) {
        (Some(topic), Some(columns)) if errors.is_empty() => {
            Ok(Box::new(Kafka { topic: Arc::new(topic), columns: Arc::new(columns) }))
        }
        _ => Err(errors),
    }
}

/// A topic, and how it is read.
struct Topic {
    table: String,
    name: String,
    /// Bootstrap servers, for messages.
    servers: String,
    client: ClientConfig,
    /// Whether the user named a group: then its offsets are committed.
    commits: bool,
    start: Start,
    bounded: bool,
    /// How often it is looked for more partitions.
    discovery: Option<Duration>,
    skip_lost: bool,
    fail_on_error: bool,
    json: weir_connect::json::JsonOptions,
}

impl Topic {
    /// The topic as messages call it.
    fn described(&self) -> String {
        format!("Kafka topic `{}` at {} of table `{}`", self.name, self.servers, self.table)
    }
}

struct Kafka {
    topic: Arc<Topic>,
    columns: Arc<Columns>,
}

impl Source for Kafka {
    fn splits(&self) -> Result<Vec<SplitSpec>, ConnectorError> {
        planning::splits(&self.topic)
    }

    fn discovery(&self) -> Option<Duration> {
        self.topic.discovery.filter(|_| !self.topic.bounded)
    }

    fn added(&self, known: &[SplitSpec]) -> Result<Vec<SplitSpec>, ConnectorError> {
        match self.topic.bounded {
            true => Ok(Vec::new()),
            false => planning::added(&self.topic, known),
        }
    }

    fn open(&self, queues: Vec<Arc<SplitQueue>>) -> Result<Box<dyn SourceHandle>, ConnectorError> {
        Ok(Box::new(reader::Reading::start(&self.topic, &self.columns, queues)?))
    }

    fn peek(&self, split: &SplitSpec) -> Result<Option<Chunk>, ConnectorError> {
        Err(ConnectorError::fatal(format!("partition {} is not a lazy split", split.name)))
    }

    fn guarantee(&self) -> String {
        let topic = &self.topic;
        match topic.commits {
            true => format!(
                "offsets of `{}`; the group's are committed once every sink has committed",
                topic.name
            ),
            false => format!("offsets of `{}`; none are committed to the broker", topic.name),
        }
    }
}
