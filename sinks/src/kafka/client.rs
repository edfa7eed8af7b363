//! A producer of one shard: rows go out as one transaction, or without one.
//!
//! # Waiting
//! Every call of the client that may block is made in slices, so that a job that has given up is
//! not held, and somebody who looks is told what is waited for. A producer on which anything failed
//! is never used again: what it left is undone by the next one of its transactional id.

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, PurgeConfig};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use weir_engine::connector::{ConnectorError, Remedy};

use super::Plan;
use super::columns::{Goal, Messages};
use super::fault::{self, Undelivered};
use super::progress::Entry;

/// The longest call.
const SLICE: Duration = Duration::from_millis(500);
/// A rest between two looks at the client's events. The client's own wait spins for what is below
/// a millisecond.
const REST: Duration = Duration::from_micros(500);
/// A wait that is longer is told.
const SILENT_MAX: Duration = Duration::from_secs(1);
/// How long what was purged is waited for.
const PURGE_MAX: Duration = Duration::from_millis(50);
/// Calls that are made to give up a transaction of a job that ends.
const ABANDON_TRIES: u32 = 2;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);

/// Who waits for a client.
pub(super) trait Waiting {
    /// Whether nobody waits any more.
    fn given_up(&self) -> bool;
    /// What a person should know now.
    fn tell(&self, text: String);
}

/// Waits that only time ends.
pub(super) struct Patient;

impl Waiting for Patient {
    fn given_up(&self) -> bool {
        false
    }

    fn tell(&self, _: String) {}
}

/// What the client has told.
#[derive(Default)]
struct Seen {
    trouble: Option<(KafkaError, String)>,
    undelivered: Option<Undelivered>,
}

/// The client's context: gathers what it tells.
pub(super) struct Told {
    topic: String,
    seen: Mutex<Seen>,
}

impl Told {
    pub(super) fn of(topic: &str) -> Told {
        Told { topic: topic.to_owned(), seen: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest trouble with brokers, and what was said.
    pub(super) fn trouble(&self) -> Option<(KafkaError, String)> {
        self.lock().trouble.clone()
    }
}

impl ClientContext for Told {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // What matters of it comes as an error too, and is logged where it is handled.
        tracing::debug!(topic = %self.topic, ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(topic = %self.topic, %error, reason);
        let mut seen = self.lock();
        // `All brokers are down` says less than what was said before it.
        let vague = error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown);
        if !vague || seen.trouble.is_none() {
            seen.trouble = Some((error, reason.to_owned()));
        }
    }
}

impl rdkafka::consumer::ConsumerContext for Told {}

impl ProducerContext for Told {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let Err((error, message)) = result else { return };
        let mut seen = self.lock();
        let known = seen.undelivered.as_ref().is_some_and(|first| !fault::is_purged(&first.error));
        if !known {
            let bytes = message.payload_len() + message.key_len();
            let topic = message.topic().to_owned();
            seen.undelivered = Some(Undelivered { error: error.clone(), topic, bytes });
        }
    }
}

/// A producer.
pub(super) struct Client {
    plan: Arc<Plan>,
    producer: BaseProducer<Told>,
    shard: u32,
    partitions: i32,
}

impl Client {
    /// A producer that is not connected yet; with a transactional id if its rows go in
    /// transactions.
    ///
    /// # Errors
    /// Properties that contradict each other.
    pub(super) fn of(
        plan: &Arc<Plan>,
        shard: u32,
        transactional_id: Option<&str>,
    ) -> Result<Client, ConnectorError> {
        let mut config = plan.client.clone();
        if let Some(id) = transactional_id {
            config.set("transactional.id", id);
        }
        // For `end_of`: a producer reads nothing.
        config.set("isolation.level", "read_uncommitted");
        let producer = config
            .create_with_context(Told::of(&plan.options.topic))
            .map_err(|e| plan.no_client(&e))?;
        Ok(Client { plan: plan.clone(), producer, shard, partitions: 0 })
    }

    /// Connects and learns the partitions.
    pub(super) fn reach(&mut self, waiting: &dyn Waiting) -> Result<(), ConnectorError> {
        let until = Instant::now() + self.plan.options.connect_timeout;
        self.partitions = loop {
            match self.partitions_of(&self.plan.options.topic, SLICE) {
                Ok(count) => break count,
                Err(error) => self.go_on(waiting, until, error)?,
            }
        };
        Ok(())
    }

    /// Ends what other producers of the transactional id have begun, and shuts them out.
    pub(super) fn shut_out(&self, waiting: &dyn Waiting) -> Result<(), ConnectorError> {
        let until = Instant::now() + self.plan.options.connect_timeout;
        loop {
            match self.producer.init_transactions(SLICE) {
                Ok(()) => return Ok(()),
                Err(error) if may_go_on(&error) => {
                    self.go_on(waiting, until, self.fault(&error))?;
                }
                Err(error) => return Err(self.fault(&error)),
            }
        }
    }

    /// Sends rows and the progress in one transaction. After an error it is not known whether the
    /// transaction is committed.
    pub(super) fn transact(
        &self,
        messages: &Messages,
        entry: &Entry,
        waiting: &dyn Waiting,
    ) -> Result<(), ConnectorError> {
        let until = Instant::now() + self.plan.transaction_max;
        self.producer.begin_transaction().map_err(|e| self.fault(&e))?;
        // The client tells the broker of a transaction's partitions as they come up, one request
        // at a time. With the progress first its partition and that of the first rows share one.
        let topic = &self.plan.options.progress_topic;
        let record = BaseRecord::to(topic).key(&entry.key[..]).payload(&entry.value[..]);
        self.put_one(record, until, waiting)?;
        self.put(messages, until, waiting)?;
        self.delivered(until, waiting)?;
        loop {
            match self.producer.commit_transaction(SLICE) {
                Ok(()) => break,
                Err(error) if may_go_on(&error) => {
                    self.go_on(waiting, until, self.fault(&error))?;
                }
                Err(error) => return Err(self.fault(&error)),
            }
        }
        self.producer.context().lock().trouble = None;
        Ok(())
    }

    /// Gives an open transaction up, as well as that can be done now: readers of committed data do
    /// not get past it else, until its time is over.
    pub(super) fn abandon(self) {
        self.producer.purge(PurgeConfig::default().queue().inflight());
        // The client says of each message that it is purged, and aborts once it has been heard.
        let purged = Instant::now();
        while self.producer.in_flight_count() > 0 && purged.elapsed() < PURGE_MAX {
            self.serve();
            std::thread::sleep(REST);
        }
        for _ in 0..ABANDON_TRIES {
            self.serve();
            match self.producer.abort_transaction(SLICE) {
                Err(error) if may_go_on(&error) => {}
                // Done, or there was none.
                _ => return,
            }
        }
    }

    /// Sends rows, and waits until the broker has them.
    pub(super) fn send(
        &self,
        messages: &Messages,
        waiting: &dyn Waiting,
    ) -> Result<(), ConnectorError> {
        let until = Instant::now() + self.plan.transaction_max;
        self.put(messages, until, waiting)?;
        self.delivered(until, waiting)?;
        self.producer.context().lock().trouble = None;
        Ok(())
    }

    fn put(
        &self,
        messages: &Messages,
        until: Instant,
        waiting: &dyn Waiting,
    ) -> Result<(), ConnectorError> {
        let partitions = u64::from(self.partitions.unsigned_abs().max(1));
        let modulo = |n: u64| i32::try_from(n % partitions).unwrap_or(0);
        for message in &messages.list {
            let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&self.plan.options.topic);
            record.key = message.key.clone().map(|place| &messages.bytes[place]);
            record.payload = message.value.clone().map(|place| &messages.bytes[place]);
            record.timestamp = message.timestamp;
            record.partition = match message.goal {
                Goal::Key => None,
                Goal::Shard => Some(modulo(self.shard.into())),
                Goal::Turn(turn) => Some(modulo(turn.wrapping_add(self.shard.into()))),
            };
            self.put_one(record, until, waiting)?;
        }
        Ok(())
    }

    fn put_one(
        &self,
        mut record: BaseRecord<'_, [u8], [u8]>,
        until: Instant,
        waiting: &dyn Waiting,
    ) -> Result<(), ConnectorError> {
        let topic = record.topic;
        let bytes = record.key.map_or(0, <[u8]>::len) + record.payload.map_or(0, <[u8]>::len);
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((error, again))
                    if error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull) =>
                {
                    self.go_on(waiting, until, self.fault(&error))?;
                    record = again;
                }
                Err((error, _)) => {
                    let failed = Undelivered { error, topic: topic.to_owned(), bytes };
                    return Err(fault::of_message(&self.plan, &failed));
                }
            }
        }
    }

    /// Waits until the broker has everything that was put.
    fn delivered(&self, until: Instant, waiting: &dyn Waiting) -> Result<(), ConnectorError> {
        while self.producer.in_flight_count() > 0 {
            let late = ConnectorError::retry("the broker has not taken the rows yet");
            self.go_on(waiting, until, late)?;
        }
        let failed = self.producer.context().lock().undelivered.take();
        failed.map_or(Ok(()), |failed| Err(fault::of_message(&self.plan, &failed)))
    }

    /// One more round, unless it is too late for `error` or something final is known.
    fn go_on(
        &self,
        waiting: &dyn Waiting,
        until: Instant,
        error: ConnectorError,
    ) -> Result<(), ConnectorError> {
        self.serve();
        let now = Instant::now();
        if error.remedy != Remedy::Retry || waiting.given_up() || now >= until {
            return Err(error);
        }
        let told = self.told().unwrap_or(error);
        if told.remedy != Remedy::Retry {
            return Err(told);
        }
        waiting.tell(told.message);
        std::thread::sleep(REST);
        Ok(())
    }

    /// Takes what the client has to tell: one event at a time, as long as that ends messages.
    fn serve(&self) {
        let mut in_flight = self.producer.in_flight_count();
        loop {
            self.producer.poll(Duration::ZERO);
            let left = self.producer.in_flight_count();
            if left >= in_flight {
                return;
            }
            in_flight = left;
        }
    }

    /// The newest trouble with brokers.
    fn told(&self) -> Option<ConnectorError> {
        let (error, reason) = self.producer.context().trouble()?;
        Some(fault::of(&self.plan, &self.plan.options.topic, &error, Some(&reason)))
    }

    /// What an operation's error means; what was said about brokers before explains it better,
    /// unless the error itself is a plain one.
    fn fault(&self, error: &KafkaError) -> ConnectorError {
        self.serve();
        let failed = self.producer.context().lock().undelivered.take();
        if let Some(failed) = failed.filter(|failed| !fault::is_purged(&failed.error)) {
            return fault::of_message(&self.plan, &failed);
        }
        if may_go_on(error)
            && let Some(told) = self.told()
        {
            return told;
        }
        let reason = match error {
            KafkaError::Transaction(error) => Some(error.string()),
            _ => None,
        };
        fault::of(&self.plan, &self.plan.options.topic, error, reason.as_deref())
    }

    /// Number of partitions of a topic.
    pub(super) fn partitions_of(
        &self,
        topic: &str,
        timeout: Duration,
    ) -> Result<i32, ConnectorError> {
        let failed = |e: &KafkaError| {
            self.serve();
            self.told().unwrap_or_else(|| fault::of(&self.plan, topic, e, None))
        };
        let metadata = self.producer.client().fetch_metadata(Some(topic), timeout);
        let metadata = metadata.map_err(|e| failed(&e))?;
        partitions(&self.plan, topic, &metadata)
    }

    /// The offset behind the last message of a partition, committed or not.
    pub(super) fn end_of(&self, topic: &str, partition: i32) -> Result<i64, ConnectorError> {
        let ends = self.producer.client().fetch_watermarks(topic, partition, REQUEST_TIMEOUT);
        ends.map(|(_, end)| end).map_err(|e| fault::of(&self.plan, topic, &e, None))
    }
}

/// Whether the same call may be made again, and goes on where it was.
fn may_go_on(error: &KafkaError) -> bool {
    match error {
        KafkaError::Transaction(error) => error.is_retriable() && !error.txn_requires_abort(),
        KafkaError::Flush(_) => true,
        _ => false,
    }
}

/// Number of partitions of a topic, as a broker has told it.
pub(super) fn partitions(
    plan: &Plan,
    topic: &str,
    metadata: &rdkafka::metadata::Metadata,
) -> Result<i32, ConnectorError> {
    let found = metadata.topics().iter().find(|t| t.name() == topic);
    let code = found.and_then(|t| t.error()).map(RDKafkaErrorCode::from);
    let count = found.map_or(0, |t| t.partitions().len());
    let unknown = (count == 0).then_some(RDKafkaErrorCode::UnknownTopic);
    match code.or(unknown) {
        Some(code) => Err(fault::of(plan, topic, &KafkaError::MetadataFetch(code), None)),
        None => Ok(i32::try_from(count).unwrap_or(i32::MAX)),
    }
}

/// Tells a report, but nothing of what is over soon.
pub(super) struct Reporting<'a> {
    report: &'a weir_engine::sink::SinkReport,
    what: String,
    since: Instant,
    told: std::cell::Cell<bool>,
}

impl<'a> Reporting<'a> {
    pub(super) fn to(report: &'a weir_engine::sink::SinkReport, what: String) -> Reporting<'a> {
        Reporting { report, what, since: Instant::now(), told: std::cell::Cell::new(false) }
    }

    /// It went well: the notice goes, if there is one.
    pub(super) fn over(self) {
        if self.told.get() {
            self.report.notice(None);
        }
    }
}

impl Waiting for Reporting<'_> {
    fn given_up(&self) -> bool {
        self.report.given_up()
    }

    fn tell(&self, text: String) {
        let waited = self.since.elapsed();
        if waited > SILENT_MAX {
            self.told.set(true);
            let seconds = waited.as_secs();
            self.report.notice(Some(format!("waiting for {} for {seconds} s: {text}", self.what)));
        }
    }
}
