//! What the client says of brokers and topics, in words that say where and what to do.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use weir_connect::kafka::fault::{self, Place};
use weir_engine::connector::ConnectorError;

use super::Topic;

/// An error of the client; `reason` is what it said in addition, if anything.
pub(super) fn of(topic: &Topic, error: &KafkaError, reason: Option<&str>) -> ConnectorError {
    let (table, servers) = (&topic.table, &topic.servers);
    fault::of(Place { table, topic: &topic.name, servers, doing: "read" }, error, reason)
}

/// Whether the client's own repetitions will not help.
pub(super) fn is_final(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    let code = error.rdkafka_error_code();
    matches!(error, KafkaError::MessageConsumptionFatal(_))
        || matches!(
            code,
            Some(
                Code::SaslAuthenticationFailed
                    | Code::Authentication
                    | Code::TopicAuthorizationFailed
                    | Code::UnknownTopic
                    | Code::UnknownPartition
                    | Code::UnknownTopicOrPartition
            )
        )
}
