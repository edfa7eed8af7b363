//! What goes wrong with a producer, and what to do about it.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use weir_connect::kafka::fault::{self, Place};
use weir_engine::connector::ConnectorError;

use super::Plan;

/// A message that was not delivered.
#[derive(Clone, Debug)]
pub(super) struct Undelivered {
    pub(super) error: KafkaError,
    pub(super) topic: String,
    /// Bytes of key and value.
    pub(super) bytes: usize,
}

/// An error of the client with a topic; `reason` is what it said in addition, if anything. What a
/// producer that is made afresh may mend is worth trying again: time-outs, lost connections, also
/// having been fenced, which the progress then decides on.
pub(super) fn of(
    plan: &Plan,
    topic: &str,
    error: &KafkaError,
    reason: Option<&str>,
) -> ConnectorError {
    use RDKafkaErrorCode as Code;
    let (table, servers) = (&plan.table, &plan.servers);
    let said = error.rdkafka_error_code().map_or_else(|| error.to_string(), |c| c.to_string());
    let refused = |what: &str| {
        let said = reason.unwrap_or(&said);
        ConnectorError::reconfigure(format!("table `{table}` {what} at {servers}: {said}"))
    };
    match error.rdkafka_error_code() {
        Some(Code::TransactionalIdAuthorizationFailed) => {
            refused("may not use its transactional ids")
                .hint("allow the ids that begin with 'sink.transactional-id-prefix'")
        }
        Some(Code::ClusterAuthorizationFailed) => refused("may not use an idempotent producer")
            .hint("allow IDEMPOTENT_WRITE on the cluster, or WRITE on the topic"),
        Some(Code::InvalidTransactionTimeout) => refused("wants transactions that last too long")
            .hint("lower 'properties.transaction.timeout.ms', or raise the broker's maximum"),
        Some(Code::UnsupportedFeature | Code::UnsupportedVersion) => {
            refused("needs what the broker does not have")
        }
        Some(
            Code::PolicyViolation
            | Code::InvalidRecord
            | Code::InvalidTimestamp
            | Code::InvalidMessage
            | Code::InvalidMessageSize,
        ) => {
            let message = format!("the topic `{topic}` refuses rows of table `{table}`: {said}");
            ConnectorError::fatal(message)
        }
        Some(Code::Fenced | Code::ProducerFenced | Code::InvalidProducerEpoch) => {
            ConnectorError::retry("another producer took the transactional id")
        }
        _ => {
            let place = Place { table, topic, servers, doing: "write to" };
            fault::of(place, error, reason)
        }
    }
}

/// What became of a message.
pub(super) fn of_message(plan: &Plan, failed: &Undelivered) -> ConnectorError {
    let Undelivered { error, topic, bytes } = failed;
    if is_purged(error) {
        return ConnectorError::retry("the client has given the rows up");
    }
    if error.rdkafka_error_code() != Some(RDKafkaErrorCode::MessageSizeTooLarge) {
        return of(plan, topic, error, None);
    }
    let message = format!(
        "a message of {bytes} bytes of table `{}` is too large for the topic `{topic}` at {}",
        plan.table, plan.servers
    );
    let hint = "raise 'properties.message.max.bytes' (1000000 without it) and the topic's own \
                'max.message.bytes'";
    ConnectorError::fatal(message).hint(hint)
}

/// Whether a message failed only because others were given up.
pub(super) fn is_purged(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(error.rdkafka_error_code(), Some(Code::PurgeQueue | Code::PurgeInflight))
}
