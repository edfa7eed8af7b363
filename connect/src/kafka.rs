//! What Kafka's source and its sinks share: the client's configuration, which follows from
//! `properties.*`, and what the client's errors mean.
//!
//! # Names
//! Properties are librdkafka's. Names that only Java's client has, and that Flink users write, are
//! translated where librdkafka has the same thing by another name; those that mean nothing here are
//! passed over by name, and any other unknown name is refused. A property with several names is set
//! under one of them: the library would set two in any order.

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use weir_engine::connector::{OptionError, TableSpec};

use crate::options::{Prefixed, bad_value, did_you_mean};

pub mod fault;
pub mod identity;

/// What a client is given besides the user's properties.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// What the user may set otherwise.
    pub defaults: &'a [(&'a str, &'a str)],
    /// Properties of the user's that mean nothing to this client.
    pub ignored: &'a [&'a str],
    /// What must be so.
    pub fixed: &'a [(&'a str, &'a str)],
}

/// Other names of properties, and those under which they are set.
const ALIASES: [(&str, &str); 9] = [
    ("acks", "request.required.acks"),
    ("compression.type", "compression.codec"),
    ("delivery.timeout.ms", "message.timeout.ms"),
    ("linger.ms", "queue.buffering.max.ms"),
    ("max.in.flight", "max.in.flight.requests.per.connection"),
    ("max.partition.fetch.bytes", "fetch.message.max.bytes"),
    ("max.request.size", "message.max.bytes"),
    ("metadata.broker.list", "bootstrap.servers"),
    ("retries", "message.send.max.retries"),
];

/// librdkafka's configuration: the defaults, the user's properties, then what must be so. What is
/// wrong with the properties goes to `errors`; their values are never shown.
pub fn client_config(
    table: &TableSpec,
    properties: &Prefixed,
    settings: Settings<'_>,
    errors: &mut Vec<OptionError>,
) -> ClientConfig {
    let mut config = ClientConfig::new();
    for &(key, value) in settings.defaults {
        config.set(canonical(key), value);
    }
    for (key, value) in properties.iter().filter(|(key, _)| !settings.ignored.contains(key)) {
        if key == "sasl.jaas.config" {
            match jaas(value) {
                Some((user, password)) => {
                    config.set("sasl.username", user).set("sasl.password", password);
                }
                None => errors.push(OptionError {
                    hint: Some("use 'properties.sasl.username' and '….password'".to_owned()),
                    ..bad_value(table, "properties.sasl.jaas.config", "names no user and password")
                }),
            }
            continue;
        }
        match property_fault(canonical(key), value) {
            None => {
                config.set(canonical(key), value);
            }
            Some(what) => errors.push(OptionError {
                hint: java_hint(key),
                ..bad_value(table, &format!("properties.{key}"), &what)
            }),
        }
    }
    for &(key, value) in settings.fixed {
        config.set(canonical(key), value);
    }
    config
}

fn canonical(key: &str) -> &str {
    ALIASES.iter().find(|(alias, _)| *alias == key).map_or(key, |(_, name)| name)
}

/// What librdkafka has against a property; the value is not told.
fn property_fault(key: &str, value: &str) -> Option<String> {
    let mut alone = ClientConfig::new();
    alone.set(key, value);
    match alone.create_native_config() {
        Ok(_) => None,
        Err(KafkaError::ClientConfig(
            rdkafka::types::RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN,
            ..,
        )) => Some("is no property of librdkafka".to_owned()),
        Err(_) => Some("has a value that librdkafka does not accept".to_owned()),
    }
}

fn java_hint(key: &str) -> Option<String> {
    let hint = match key {
        "ssl.truststore.location" | "ssl.truststore.password" | "ssl.truststore.type" => {
            "export the trust store as PEM and name it in 'properties.ssl.ca.location'"
        }
        "ssl.keystore.location" | "ssl.keystore.type" => {
            "use 'properties.ssl.certificate.location' and 'properties.ssl.key.location'"
        }
        _ => "librdkafka's CONFIGURATION.md lists all properties",
    };
    Some(hint.to_owned())
}

/// User and password in the configuration of Java's login modules: `… username="u" password="p";`.
fn jaas(text: &str) -> Option<(String, String)> {
    let value = |key: &str| {
        let after = &text[text.find(&format!("{key}=\""))? + key.len() + 2..];
        Some(after[..after.find('"')?].to_owned())
    };
    Some((value("username")?, value("password")?))
}

/// What to do about a topic that does not exist, where these do.
pub fn topic_hint<'a>(topic: &str, existing: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = existing.filter(|name| !name.starts_with("__")).collect();
    names.sort_unstable();
    match did_you_mean(topic, names.iter().copied()) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None if names.is_empty() => "the broker has no topics; create it first".to_owned(),
        None => {
            let more = if names.len() > 10 { ", …" } else { "" };
            names.truncate(10);
            format!("the broker has {}{more}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn javas_login_configuration_names_user_and_password() {
        let text = "org.apache.kafka.common.security.plain.PlainLoginModule required \
                    username=\"al\" password=\"se cret\";";
        assert_eq!(jaas(text), Some(("al".into(), "se cret".into())));
        assert_eq!(jaas("required username=\"al\";"), None);
    }

    #[test]
    fn every_name_that_is_translated_to_is_librdkafkas() {
        for (alias, name) in ALIASES {
            let value = if name == "compression.codec" { "zstd" } else { "1000" };
            assert_eq!(property_fault(name, value), None, "{alias}");
            assert_eq!(canonical(name), name);
        }
    }
}
