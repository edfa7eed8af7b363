//! What the client says of brokers and topics, in words that say where and what to do.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use weir_engine::connector::ConnectorError;

use super::Topic;

/// An error of the client; `reason` is what it said in addition, if anything.
pub(super) fn of(topic: &Topic, error: &KafkaError, reason: Option<&str>) -> ConnectorError {
    use RDKafkaErrorCode as Code;
    let (name, servers, table) = (&topic.name, &topic.servers, &topic.table);
    let said = match reason {
        Some(reason) => reason.to_owned(),
        None => error.rdkafka_error_code().map_or_else(|| error.to_string(), |c| c.to_string()),
    };
    match error.rdkafka_error_code() {
        Some(Code::SaslAuthenticationFailed | Code::Authentication) => ConnectorError::reconfigure(
            format!("the Kafka broker {servers} refuses to authenticate table `{table}`: {said}"),
        )
        .hint("check 'properties.sasl.username' and 'properties.sasl.password'"),
        Some(Code::SSL) if is_untrusted(&said) => ConnectorError::reconfigure(format!(
            "the Kafka broker {servers} of table `{table}` cannot be trusted: {said}"
        ))
        .hint("'properties.ssl.ca.location' names the PEM file of the authority that it is of"),
        Some(Code::TopicAuthorizationFailed) => ConnectorError::reconfigure(format!(
            "table `{table}` may not read the topic `{name}` at {servers}"
        ))
        .hint("the broker's access list decides that"),
        Some(Code::GroupAuthorizationFailed) => ConnectorError::reconfigure(format!(
            "table `{table}` may not use its group at {servers}"
        ))
        .hint("check 'properties.group.id' and the broker's access list"),
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
            ConnectorError::reconfigure(format!(
                "there is no topic `{name}` at {servers} (table `{table}`)"
            ))
        }
        _ => ConnectorError::retry(said),
    }
}

/// Whether a handshake failed because of a certificate; others may pass (a broker that restarts).
fn is_untrusted(said: &str) -> bool {
    said.contains("certificate verify failed") || said.contains("certificate could not be verified")
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
