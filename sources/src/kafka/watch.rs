//! What the client's own threads tell: errors, how far partitions reach, which brokers are up.

use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::statistics::Statistics;
use rdkafka::topic_partition_list::TopicPartitionList;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A partition as the client last reported it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PartitionView {
    /// Offset behind the last message.
    pub(super) end: i64,
    /// Whether its leader can be reached.
    pub(super) up: bool,
}

#[derive(Default)]
struct Seen {
    news: bool,
    /// The newest error of the client, and what it said.
    trouble: Option<(KafkaError, String)>,
    partitions: BTreeMap<i32, PartitionView>,
}

/// The client's context: gathers what it tells, and wakes the reader.
pub(super) struct Watch {
    topic: String,
    seen: Mutex<Seen>,
    wake: Condvar,
    /// Whether commits fail, and that has been logged.
    commits_fail: AtomicBool,
}

impl Watch {
    pub(super) fn on(topic: &str) -> Watch {
        Watch {
            topic: topic.to_owned(),
            seen: Mutex::default(),
            wake: Condvar::new(),
            commits_fail: AtomicBool::new(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is something to read, or to stop for.
    pub(super) fn notify(&self) {
        self.lock().news = true;
        self.wake.notify_all();
    }

    /// Waits for news, or until the time is over.
    pub(super) fn wait(&self, time: Duration) {
        let waited = self.wake.wait_timeout_while(self.lock(), time, |seen| !seen.news);
        let (mut seen, _) = waited.unwrap_or_else(PoisonError::into_inner);
        seen.news = false;
    }

    /// Says what came of a commit; logged once until one works again.
    pub(super) fn committed(&self, result: KafkaResult<()>) {
        let failed = result.is_err();
        let before = self.commits_fail.swap(failed, Ordering::Relaxed);
        if let (Err(error), false) = (result, before) {
            tracing::warn!(topic = %self.topic, %error, "offsets are not committed to the broker");
        }
    }

    /// The newest error, and what was said. It stays.
    pub(super) fn trouble(&self) -> Option<(KafkaError, String)> {
        self.lock().trouble.clone()
    }

    /// Everything works again.
    pub(super) fn no_trouble(&self) {
        self.lock().trouble = None;
    }

    /// A partition, once the client has told of it.
    pub(super) fn partition(&self, partition: i32) -> Option<PartitionView> {
        self.lock().partitions.get(&partition).copied()
    }
}

impl ClientContext for Watch {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // What matters of it comes as an error too, and is logged where it is handled.
        tracing::debug!(topic = %self.topic, ?level, facility, "{message}");
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // An end of a partition is told this way too, and is none.
        use rdkafka::error::RDKafkaErrorCode::{AutoOffsetReset, PartitionEOF};
        if matches!(error.rdkafka_error_code(), Some(PartitionEOF | AutoOffsetReset)) {
            return;
        }
        tracing::debug!(topic = %self.topic, %error, reason);
        let mut seen = self.lock();
        // `All brokers are down` says less than what was said before it.
        use rdkafka::error::RDKafkaErrorCode::AllBrokersDown;
        let vague = error.rdkafka_error_code() == Some(AllBrokersDown);
        if !vague || seen.trouble.is_none() {
            seen.trouble = Some((error, reason.to_owned()));
        }
    }

    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.topic) else { return };
        let up =
            |node: i32| statistics.brokers.values().any(|b| b.nodeid == node && b.state == "UP");
        let mut found = BTreeMap::new();
        for partition in topic.partitions.values().filter(|p| p.partition >= 0) {
            let view = PartitionView { end: partition.hi_offset, up: up(partition.leader) };
            found.insert(partition.partition, view);
        }
        self.lock().partitions = found;
    }
}

impl ConsumerContext for Watch {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        self.committed(result);
    }
}
