//! The thread that reads a worker's partitions.
//!
//! # Invariant
//! A partition's messages are taken only while its split has room, and a chunk is pushed only then,
//! so the thread never waits for one split while another could be read. What is not taken stays in
//! the client's queue of that partition; when that is full the client stops fetching for it, and
//! for no other.
//!
//! # Time
//! A chunk goes out once it has `ROWS_MAX` rows or about `CHUNK_BYTES_MAX`, or its oldest message
//! is
//! `LINGER` old. The client's queues wake the thread; splits that get room are noticed within
//! `LINGER`.
//!
//! # Which topic
//! Before a partition is read the topic is asked for its id: under the same name there may be
//! another, made after the job began. Its offsets mean other messages, and the job ends.
//!
//! # Outages
//! The client reconnects by itself, for ever. Every half second it says which leaders it can reach:
//! splits of others count as disconnected, and their notice says why. A broker that the job has
//! never reached ends it after `NEVER_REACHED_MAX`.

use rdkafka::Offset;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::TopicPartitionList;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use weir_connect::kafka::identity::Identity;
use weir_connect::retry::NEVER_REACHED_MAX;
use weir_engine::connector::{ConnectorError, Remedy};
use weir_engine::source::{SourceHandle, SplitQueue};

use super::planning::{self, Range};
use super::rows::{Columns, Gathering};
use super::watch::Watch;
use super::{Topic, fault};

const ROWS_MAX: usize = 8_192;
const CHUNK_BYTES_MAX: usize = 2 << 20;
const LINGER: Duration = Duration::from_millis(3);
/// Messages that are taken from a partition before the next has its turn.
const TURN_MESSAGES: usize = 4_096;
const IDLE_WAIT: Duration = Duration::from_millis(50);
const LOOK_EVERY: Duration = Duration::from_millis(250);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// What the client may have fetched and not yet handed over, over all partitions of a worker.
const FETCHED_BYTES_MAX: usize = 128 << 20;

type Client = Arc<BaseConsumer<Watch>>;

/// An open source.
pub(super) struct Reading {
    topic: Arc<Topic>,
    client: Client,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Reading {
    pub(super) fn start(
        topic: &Arc<Topic>,
        columns: &Arc<Columns>,
        queues: Vec<Arc<SplitQueue>>,
    ) -> Result<Reading, ConnectorError> {
        let mut sized = Topic { client: topic.client.clone(), ..copy(topic) };
        let share = (FETCHED_BYTES_MAX / queues.len().max(1)).clamp(1 << 20, 16 << 20);
        if sized.client.get("queued.max.messages.kbytes").is_none() {
            sized.client.set("queued.max.messages.kbytes", (share >> 10).to_string());
        }
        let topic = Arc::new(sized);
        let client = Arc::new(planning::client(&topic)?);
        let mut partitions = Vec::with_capacity(queues.len());
        // A job that goes on has reached it before: then it is only away.
        let reached = queues.iter().any(|queue| queue.is_known());
        for queue in queues {
            partitions.push(Partition::of(&topic, columns, queue)?);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            topic: topic.clone(),
            client: client.clone(),
            partitions,
            stop: stop.clone(),
            began: Instant::now(),
            looked: None,
            reached,
            outage: false,
        };
        let thread = std::thread::Builder::new().name(format!("kafka-{}", topic.table));
        let thread = thread.spawn(move || reader.run()).map_err(|e| {
            ConnectorError::fatal(format!("cannot start a thread for `{}`: {e}", topic.table))
        })?;
        Ok(Reading { topic, client, stop, thread: Some(thread) })
    }
}

fn copy(topic: &Topic) -> Topic {
    Topic {
        table: topic.table.clone(),
        name: topic.name.clone(),
        servers: topic.servers.clone(),
        client: topic.client.clone(),
        start: topic.start.clone(),
        ..*topic
    }
}

/// Assigns the partitions at their starts, each with a queue of its own.
fn assign(
    topic: &Topic,
    client: &Client,
    partitions: &mut [Partition],
) -> Result<(), ConnectorError> {
    let refused =
        |e: KafkaError| ConnectorError::fatal(format!("cannot read {}: {e}", topic.described()));
    let mut list = TopicPartitionList::new();
    for partition in partitions.iter().filter(|p| !p.done) {
        let start = Offset::Offset(partition.range.start);
        list.add_partition_offset(&topic.name, partition.number, start).map_err(refused)?;
    }
    client.assign(&list).map_err(refused)?;
    // What was fetched before a partition had its own queue would come out of order: by pausing it
    // is dropped, and fetched again.
    client.pause(&list).map_err(refused)?;
    for partition in partitions.iter_mut().filter(|p| !p.done) {
        let mut messages = client.split_partition_queue(&topic.name, partition.number);
        if let Some(messages) = &mut messages {
            let watch = client.context().clone();
            messages.set_nonempty_callback(move || watch.notify());
        }
        partition.messages = messages;
    }
    client.resume(&list).map_err(refused)
}

impl SourceHandle for Reading {
    fn committed(&mut self, offsets: &[(u64, u64)]) {
        if !self.topic.commits || offsets.is_empty() {
            return;
        }
        let mut list = TopicPartitionList::new();
        for &(number, offset) in offsets {
            let partition = i32::try_from(number).unwrap_or(i32::MAX);
            let offset = Offset::Offset(offset.cast_signed());
            if let Err(error) = list.add_partition_offset(&self.topic.name, partition, offset) {
                tracing::warn!(%error, partition, "an offset cannot be committed");
            }
        }
        // What the broker makes of it is told to the watch later.
        if let Err(error) = self.client.commit(&list, CommitMode::Async) {
            self.client.context().committed(Err(error));
        }
    }

    fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.client.context().notify();
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic has been told to the queues already.
            let _ = thread.join();
        }
    }
}

/// One partition on its way into its split's queue.
struct Partition {
    number: i32,
    range: Range,
    queue: Arc<SplitQueue>,
    messages: Option<PartitionQueue<Watch>>,
    gathering: Gathering,
    done: bool,
}

/// What is to be done after a turn.
enum Turn {
    Quiet,
    Busy,
    Lost,
}

impl Partition {
    fn of(
        topic: &Arc<Topic>,
        columns: &Arc<Columns>,
        queue: Arc<SplitQueue>,
    ) -> Result<Partition, ConnectorError> {
        let mut range = Range::of(&queue.split)?;
        if let Some(needed) = queue.start_offset() {
            range.start = range.start.max(needed.cast_signed());
        }
        let number = i32::try_from(queue.split.number).unwrap_or(i32::MAX);
        let start = range.start.max(0).cast_unsigned();
        let gathering = Gathering::of(topic, columns, number, start)?;
        let mut made = Partition { number, range, queue, messages: None, gathering, done: false };
        // The broker is heard of before the split counts as connected.
        made.queue.connected(false);
        if made.is_past_end() {
            made.queue.connected(true);
            made.finish();
        }
        Ok(made)
    }

    fn is_past_end(&self) -> bool {
        let next = self.gathering.next().cast_signed();
        self.range.end.is_some_and(|end| next >= end)
    }

    fn finish(&mut self) {
        self.queue.at_end(true);
        self.queue.finish();
        self.done = true;
        self.messages = None;
    }

    fn fail(&mut self, error: ConnectorError) {
        self.queue.fail(error);
        self.done = true;
        self.messages = None;
    }

    /// Pushes what waits. Only called while the split has room.
    fn flush(&mut self) {
        let Some(chunk) = self.gathering.chunk() else { return };
        if !self.queue.push(chunk) {
            self.done = true;
            self.messages = None;
        }
    }

    fn is_full(&self) -> bool {
        self.gathering.rows() >= ROWS_MAX || self.gathering.bytes() >= CHUNK_BYTES_MAX
    }

    fn is_due(&self, now: Instant) -> bool {
        self.is_full() || self.gathering.since().is_some_and(|since| now >= since + LINGER)
    }

    /// Takes messages while there are some and there is room.
    fn turn(&mut self, topic: &Topic, now: Instant) -> Turn {
        if !self.queue.has_room() {
            return Turn::Quiet;
        }
        let mut taken = 0;
        let mut lost = false;
        while taken < TURN_MESSAGES && !self.is_full() && !self.done {
            let polled = match &self.messages {
                Some(messages) => messages.poll(Duration::ZERO),
                None => None,
            };
            let Some(polled) = polled else { break };
            taken += 1;
            match polled {
                Ok(message) => {
                    let past = self.range.end.is_some_and(|end| message.offset() >= end);
                    if past {
                        drop(message);
                        self.flush();
                        self.finish();
                        return Turn::Busy;
                    }
                    if let Err(error) = self.gathering.take(&message, now) {
                        drop(message);
                        self.flush();
                        self.fail(error);
                        return Turn::Busy;
                    }
                    self.queue.at_end(false);
                }
                Err(KafkaError::PartitionEOF(_)) => {
                    self.flush();
                    self.queue.at_end(true);
                    if self.range.end.is_some() {
                        // Behind the last message there may only have been marks of transactions.
                        self.finish();
                    }
                }
                Err(error) => {
                    use RDKafkaErrorCode::{AutoOffsetReset, OffsetOutOfRange};
                    lost |= matches!(
                        error.rdkafka_error_code(),
                        Some(AutoOffsetReset | OffsetOutOfRange)
                    );
                    if fault::is_final(&error) {
                        self.flush();
                        self.fail(fault::of(topic, &error, None));
                    }
                }
            }
        }
        if self.is_past_end() && !self.done {
            self.flush();
            self.finish();
        } else if self.is_due(now) && !self.done {
            self.flush();
        }
        match (lost, taken) {
            (true, _) => Turn::Lost,
            (false, 0) => Turn::Quiet,
            (false, _) => Turn::Busy,
        }
    }
}

struct Reader {
    topic: Arc<Topic>,
    client: Client,
    partitions: Vec<Partition>,
    stop: Arc<AtomicBool>,
    began: Instant,
    looked: Option<Instant>,
    reached: bool,
    /// Whether an outage that lasts has been logged.
    outage: bool,
}

/// Tells the queues should the thread panic: a job must not wait for ever.
struct Alarm(Vec<Arc<SplitQueue>>);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for queue in &self.0 {
                queue.fail(ConnectorError::fatal("the thread that reads Kafka has panicked"));
            }
        }
    }
}

impl Reader {
    fn run(mut self) {
        let _alarm = Alarm(self.partitions.iter().map(|p| p.queue.clone()).collect());
        if self.is_the_planned_topic() {
            self.assign();
        }
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            self.serve_client();
            let mut busy = false;
            for n in 0..self.partitions.len() {
                if self.partitions[n].done {
                    continue;
                }
                match self.partitions[n].turn(&self.topic, now) {
                    Turn::Quiet => {}
                    Turn::Busy => busy = true,
                    Turn::Lost => self.lost(n),
                }
            }
            if self.looked.is_none_or(|looked| now >= looked + LOOK_EVERY) {
                self.looked = Some(now);
                self.look(now);
            }
            if self.partitions.iter().all(|p| p.done) {
                // Offsets may still be committed, and that is answered through the client's queue.
                self.client.context().wait(IDLE_WAIT);
            } else if !busy {
                let waits = |p: &Partition| {
                    !p.done && (p.gathering.since().is_some() || !p.queue.has_room())
                };
                let soon = self.partitions.iter().any(waits);
                self.client.context().wait(if soon { LINGER } else { IDLE_WAIT });
            }
        }
        for partition in &mut self.partitions {
            partition.messages = None;
        }
    }

    /// Lets the client tell what it has to tell; a message among it belongs to no queue of its own.
    fn serve_client(&mut self) {
        while let Some(event) = self.client.poll(Duration::ZERO) {
            match event {
                Ok(message) => stray(&mut self.partitions, &message),
                Err(error) if fault::is_final(&error) => {
                    let trouble = self.client.context().trouble();
                    let reason = trouble.as_ref().map(|(_, reason)| reason.as_str());
                    let error = fault::of(&self.topic, &error, reason);
                    for partition in self.partitions.iter_mut().filter(|p| !p.done) {
                        partition.fail(error.clone());
                    }
                }
                Err(_) => {}
            }
        }
    }

    /// The broker no longer has the offset that comes next.
    fn lost(&mut self, n: usize) {
        let (topic, client) = (&self.topic, &self.client);
        let partition = &mut self.partitions[n];
        if partition.done {
            return;
        }
        let (number, next) = (partition.number, partition.gathering.next());
        let bounds = client.fetch_watermarks(&topic.name, number, REQUEST_TIMEOUT);
        let has = match &bounds {
            Ok((low, high)) => format!("it has {low} to {high}"),
            Err(error) => format!("what it has is not known: {error}"),
        };
        let (name, table) = (&topic.name, &topic.table);
        let what = format!(
            "the broker does not have offset {next} of partition {number} of `{name}` any more \
             (table `{table}`); {has}"
        );
        let low = bounds.map(|(low, _)| low).ok().filter(|low| low.cast_unsigned() > next);
        if let Some(low) = low.filter(|_| topic.skip_lost) {
            tracing::warn!(topic = %name, partition = number, next, low, "offsets skipped");
            partition.flush();
            partition.gathering.skip_to(low.cast_unsigned());
            partition.queue.skipped(low.cast_unsigned() - next);
            partition.queue.notice(Some(format!("skipped: {what}")));
            self.assign_again();
            return;
        }
        partition.flush();
        let hint = "rows are lost: 'scan.offset-lost' = 'skip' goes on with the oldest there is, \
                    'scan.startup.mode' says where to start";
        partition.fail(ConnectorError::fatal(what).hint(hint));
    }

    /// Whether the topic is the one that the splits were planned on; waits for an answer. If not,
    /// all partitions have failed.
    fn is_the_planned_topic(&mut self) -> bool {
        let planned = self.partitions.iter().find_map(|p| planning::planned_id(&p.queue.split));
        let Some(planned) = planned else { return true };
        let mut missing = None;
        while !self.stop.load(Ordering::Acquire) && self.partitions.iter().any(|p| !p.done) {
            let found = self.found(&planned);
            if found.is_err() {
                missing = None;
            }
            let late = !self.reached && self.began.elapsed() >= NEVER_REACHED_MAX;
            // A broker that has just started may not know its topics yet; one of several, a
            // partition that was just made.
            let mut lacks = |error: ConnectorError| {
                let since = missing.get_or_insert_with(Instant::now);
                (since.elapsed() >= NEVER_REACHED_MAX).then_some(error)
            };
            let failed = match found {
                Ok((Identity::Known(id), _)) if id != planned => Some(self.is_another()),
                Ok((Identity::Known(_), Some(partition))) => {
                    let what = self.topic.described();
                    let text =
                        format!("{what} has no partition {partition}, which was read before");
                    lacks(ConnectorError::fatal(text))
                }
                Ok((Identity::Known(_) | Identity::NoIds, _)) => {
                    // It has been reached; what the partitions have to say comes a little later.
                    self.began = Instant::now();
                    return true;
                }
                Ok((Identity::Missing, _)) => {
                    let unknown = KafkaError::MetadataFetch(RDKafkaErrorCode::UnknownTopic);
                    lacks(fault::of(&self.topic, &unknown, None))
                }
                Err(error) => (late || error.remedy != Remedy::Retry).then_some(error),
            };
            if let Some(error) = failed {
                for partition in self.partitions.iter_mut().filter(|p| !p.done) {
                    partition.fail(error.clone());
                }
                return false;
            }
            self.serve_client();
            self.look(Instant::now());
            self.client.context().wait(IDLE_WAIT);
        }
        false
    }

    /// What the topic's name means to the broker that was asked; if it is what was planned, also a
    /// partition that this broker does not know.
    fn found(&self, planned: &str) -> Result<(Identity, Option<i32>), ConnectorError> {
        let found = planning::identity(&self.topic, &self.client)?;
        if !matches!(&found, Identity::Known(id) if id == planned) {
            return Ok((found, None));
        }
        let there = match planning::partitions(&self.topic, &self.client) {
            Err(error) if error.remedy == Remedy::Retry => return Err(error),
            there => there.unwrap_or_default(),
        };
        let mut wanted = self.partitions.iter().filter(|p| !p.done).map(|p| p.number);
        Ok((found, wanted.find(|number| !there.contains(number))))
    }

    fn is_another(&self) -> ConnectorError {
        let what = self.topic.described();
        let message =
            format!("{what} was deleted and made anew: the job's offsets mean nothing in it");
        let hint = "start the job anew, under another state: it begins where 'scan.startup.mode' \
                    says";
        ConnectorError::fatal(message).hint(hint)
    }

    /// Reads on from where each partition is; what the client has fetched is fetched again.
    fn assign_again(&mut self) {
        for partition in &mut self.partitions {
            partition.messages = None;
            partition.range.start = partition.gathering.next().cast_signed();
        }
        self.assign();
    }

    fn assign(&mut self) {
        if let Err(error) = assign(&self.topic, &self.client, &mut self.partitions) {
            for partition in self.partitions.iter_mut().filter(|p| !p.done) {
                partition.fail(error.clone());
            }
        }
    }

    /// Tells lag, connection and troubles.
    fn look(&mut self, now: Instant) {
        let watch = self.client.context();
        let mut all_up = true;
        for partition in self.partitions.iter().filter(|p| !p.done) {
            let view = watch.partition(partition.number);
            if let Some(view) = view {
                let next = partition.gathering.next().cast_signed();
                partition.queue.lag_rows((view.end - next).max(0).cast_unsigned());
            }
            let up = view.is_some_and(|view| view.up);
            all_up &= up;
            let (_, was_up) = partition.queue.is_quiet();
            if up && !was_up {
                partition.queue.connected(true);
                partition.queue.notice(None);
            } else if !up {
                partition.queue.connected(false);
                if let Some((_, reason)) = watch.trouble() {
                    let what = self.topic.described();
                    partition.queue.notice(Some(format!("trying to reach {what} again: {reason}")));
                }
            }
            self.reached |= up;
        }
        let target = self.topic.described();
        if all_up {
            watch.no_trouble();
            if std::mem::take(&mut self.outage) {
                tracing::warn!(%target, "reached again");
            }
        } else if let Some((_, reason)) = watch.trouble().filter(|_| !self.outage) {
            tracing::warn!(%target, error = %reason, "failed; trying again");
            self.outage = true;
        }
        if !all_up && !self.reached && now >= self.began + NEVER_REACHED_MAX {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        let trouble = self.client.context().trouble();
        let reason = trouble.map_or_else(|| "no answer".to_owned(), |(_, reason)| reason);
        let seconds = self.began.elapsed().as_secs();
        let what = self.topic.described();
        let message = format!("cannot reach {what} (tried for {seconds} s): {reason}");
        let hint = "is the broker running, and is 'properties.bootstrap.servers' right?";
        let error = ConnectorError::reconfigure(message).hint(hint);
        for partition in self.partitions.iter_mut().filter(|p| !p.done) {
            partition.fail(error.clone());
        }
    }
}

/// A message that came before its partition had a queue of its own: there should be none.
fn stray(partitions: &mut [Partition], message: &BorrowedMessage<'_>) {
    let offset = message.offset();
    tracing::warn!(partition = message.partition(), offset, "a message outside of its queue");
    let owner = partitions.iter_mut().find(|p| p.number == message.partition() && !p.done);
    if let Some(partition) = owner
        && let Err(error) = partition.gathering.take(message, Instant::now())
    {
        partition.fail(error);
    }
}
