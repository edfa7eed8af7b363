//! What the client says of brokers and topics, in words that say where and what to do.

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use weir_engine::connector::ConnectorError;

/// Where something went wrong.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The table.
    pub table: &'a str,
    /// The topic.
    pub topic: &'a str,
    /// The brokers, for messages.
    pub servers: &'a str,
    /// What is done with the topic: `read` or `write to`.
    pub doing: &'a str,
}

/// An error of the client; `reason` is what it said in addition, if anything. What is not known to
/// be final is worth trying again.
pub fn of(place: Place<'_>, error: &KafkaError, reason: Option<&str>) -> ConnectorError {
    use RDKafkaErrorCode as Code;
    let Place { table, topic, servers, doing } = place;
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
            "table `{table}` may not {doing} the topic `{topic}` at {servers}"
        ))
        .hint("the broker's access list decides that"),
        Some(Code::GroupAuthorizationFailed) => ConnectorError::reconfigure(format!(
            "table `{table}` may not use its group at {servers}"
        ))
        .hint("check 'properties.group.id' and the broker's access list"),
        Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition) => {
            ConnectorError::reconfigure(format!(
                "there is no topic `{topic}` at {servers} (table `{table}`)"
            ))
        }
        _ => ConnectorError::retry(said),
    }
}

/// Whether a handshake failed because of a certificate; others may pass (a broker that restarts).
fn is_untrusted(said: &str) -> bool {
    said.contains("certificate verify failed") || said.contains("certificate could not be verified")
}
