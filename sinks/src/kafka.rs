//! The Kafka sinks: `kafka` appends rows, `upsert-kafka` writes the newest row of a key.
//!
//! # What is promised
//! - **Of a job that lasts, each row once** for readers of committed data (`isolation.level` =
//!   `read_committed`): groups of whole epochs go in one transaction, together with a record of how
//!   far the shard is written (`progress.rs` has the argument). A reply that is lost is looked up,
//!   never guessed; a generation that was overtaken gets nothing into the topic any more.
//! - **Else at least once**: an idempotent producer; what is sent again after a failure may be
//!   there twice.
//! - A broker that was reached once is tried again for ever: the group is kept, nothing further is
//!   accepted, and the notice says why. A broker that was never reached ends the job after 15 s.
//!
//! # Messages
//! Values are JSON objects. In an upsert table the key is the JSON object of the PRIMARY KEY; a row
//! taken back is a tombstone (no value), an update its new value, and of a key that changes several
//! times in a group only the last state is sent. A METADATA column `timestamp` becomes the
//! message's; where it is NULL or before 1970, and without one, a message has the time at which it
//! was sent.
//!
//! # Limits
//! - The topic must exist: one that a broker makes by itself has whatever partitions its defaults
//!   say. Partitions that are added are seen when a producer is made afresh.
//! - A transaction that is left open (a process that died) holds readers of committed data back
//!   until the job starts again or `transaction.timeout.ms` has passed.
//! - A message that is too large, or that the topic refuses, ends the job.

use arrow::datatypes::{DataType, TimeUnit};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use std::sync::Arc;
use std::time::Duration;
use weir_connect::kafka::topic_hint;
use weir_connect::retry::Retrying;
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, Remedy, TableSpec};
use weir_engine::sink::{Author, Sink, SinkReport, SinkWriter};
use weir_engine::time::Epoch;

use client::{Client, Told};
use columns::Columns;
use options::{Delivery, KafkaOptions};
use writer::Writer;

mod client;
mod columns;
mod fault;
mod options;
mod progress;
mod session;
mod writer;

#[cfg(test)]
mod tests;

/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Which of the two sinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Append,
    Upsert,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Append => "kafka",
            Kind::Upsert => "upsert-kafka",
        }
    }
}

/// The manual of the options of both sinks.
pub fn options() -> Vec<OptionDoc> {
    KafkaOptions::docs()
}

/// METADATA columns that can be written: key and natural type.
pub fn metadata() -> Vec<(&'static str, DataType)> {
    vec![("timestamp", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into())))]
}

/// The options that only a sink has, for the source of the same name to let pass. Those that decide
/// what a message is are not among them: a source that does not know them must say so.
pub fn options_of_sink_alone() -> Vec<OptionDoc> {
    let alone = |doc: &OptionDoc| {
        doc.key.starts_with("sink.")
            || doc.key.starts_with("json.encode.")
            || doc.key == "connect.timeout"
    };
    options().into_iter().filter(alone).collect()
}

/// Checks the options and makes the sink `kafka`. Touches nothing outside. Options in `also` (those
/// of the source half) pass unread.
///
/// # Errors
/// Everything that is wrong with the options and the columns.
pub fn sink(table: &TableSpec, also: &[OptionDoc]) -> Result<Box<dyn Sink>, Vec<OptionError>> {
    Ok(Box::new(KafkaSink { plan: Arc::new(options::read(table, Kind::Append, also)?) }))
}

/// Checks the options and makes the sink `upsert-kafka`. Touches nothing outside.
///
/// # Errors
/// Everything that is wrong with the options and the columns.
pub fn upsert_sink(table: &TableSpec) -> Result<Box<dyn Sink>, Vec<OptionError>> {
    Ok(Box::new(KafkaSink { plan: Arc::new(options::read(table, Kind::Upsert, &[])?) }))
}

/// What all shards of a sink share.
struct Plan {
    /// Name of the table in the script.
    table: String,
    kind: Kind,
    /// Bootstrap servers, for messages.
    servers: String,
    client: ClientConfig,
    columns: Columns,
    options: KafkaOptions,
    /// How long a transaction may take.
    transaction_max: Duration,
}

impl Plan {
    /// The topic, for people.
    fn what(&self) -> String {
        let Plan { table, servers, options, .. } = self;
        format!("Kafka topic `{}` at {servers} for table `{table}`", options.topic)
    }

    fn transactional_id(&self, author: &Author, shard: u32) -> String {
        format!("{}/{}/{}/{shard}", self.options.prefix, author.job, author.sink)
    }

    fn no_client(&self, error: &KafkaError) -> ConnectorError {
        let message = format!("cannot make a client for {}: {error}", self.what());
        ConnectorError::reconfigure(message).hint("check the options that begin with 'properties.'")
    }
}

struct KafkaSink {
    plan: Arc<Plan>,
}

impl KafkaSink {
    fn is_exact(&self) -> bool {
        self.plan.options.delivery == Delivery::ExactlyOnce
    }

    fn patiently<T>(
        &self,
        attempt: impl FnMut() -> Result<T, ConnectorError>,
    ) -> Result<T, ConnectorError> {
        Retrying::new(self.plan.what(), |_| (), || false).run(attempt)
    }
}

impl Sink for KafkaSink {
    fn shards(&self) -> u32 {
        self.plan.options.shards.get()
    }

    fn accepts_retractions(&self) -> bool {
        self.plan.kind == Kind::Upsert
    }

    fn take_over(&self, author: &Author) -> Result<Option<Epoch>, ConnectorError> {
        if !self.is_exact() {
            return Ok(None);
        }
        self.patiently(|| session::take_over(&self.plan, author))
    }

    fn open(
        &self,
        shard: u32,
        author: Option<&Author>,
        report: Arc<SinkReport>,
    ) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        let author = author.filter(|_| self.is_exact());
        Ok(Box::new(Writer::open(self.plan.clone(), shard, author, report)?))
    }

    fn probe(&self) -> Result<(), ConnectorError> {
        // Properties that contradict each other are found when a producer is made.
        Client::of(&self.plan, 0, self.is_exact().then_some("weir"))?;
        let partitions = self.patiently(|| look(&self.plan))?;
        let Plan { table, options, servers, .. } = &*self.plan;
        tracing::info!(%table, topic = %options.topic, %servers, partitions, "sink");
        Ok(())
    }

    fn guarantee(&self) -> String {
        let rows = match self.plan.kind {
            Kind::Append => "appends",
            Kind::Upsert => "upserts by primary key, tombstones for rows taken back",
        };
        let topic = &self.plan.options.progress_topic;
        match self.is_exact() {
            true => format!(
                "{rows}; with --state exactly once for readers of committed data: whole epochs and \
                 their progress (topic `{topic}`) a transaction; else at least once"
            ),
            false => format!("{rows}; at least once: what is sent again may be there twice"),
        }
    }
}

/// Whether the topic exists; gives its partitions.
fn look(plan: &Plan) -> Result<i32, ConnectorError> {
    let topic = &plan.options.topic;
    let mut config = plan.client.clone();
    // A consumer: asked by a producer, some brokers make the topic.
    config.set("group.id", "weir").set("allow.auto.create.topics", "false");
    let client: BaseConsumer<Told> =
        config.create_with_context(Told::of(topic)).map_err(|e| plan.no_client(&e))?;
    let failed = |e: &KafkaError| {
        // Errors wait in the client's queue until somebody polls.
        let _ = client.poll(Duration::from_millis(20));
        match client.context().trouble() {
            Some((trouble, reason)) => fault::of(plan, topic, &trouble, Some(&reason)),
            None => fault::of(plan, topic, e, None),
        }
    };
    let metadata = client.fetch_metadata(Some(topic), REQUEST_TIMEOUT).map_err(|e| failed(&e))?;
    match client::partitions(plan, topic, &metadata) {
        Err(error) if error.remedy == Remedy::Reconfigure && error.hint.is_none() => {
            let Ok(all) = client.fetch_metadata(None, REQUEST_TIMEOUT) else { return Err(error) };
            let hint = topic_hint(topic, all.topics().iter().map(|t| t.name()));
            Err(error.hint(format!("create it first: a sink makes no topic for rows; {hint}")))
        }
        partitions => partitions,
    }
}
