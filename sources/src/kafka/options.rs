//! Options of the `kafka` source, and the client's configuration that follows from them.

use rdkafka::ClientConfig;
use std::collections::BTreeMap;
use std::time::Duration;
use weir_connect::json::{JsonOptions, TimestampStandard};
use weir_connect::kafka::{Settings, client_config};
use weir_connect::options::{Prefixed, bad_value, mask_url};
use weir_engine::connector::{OptionDoc, OptionError, TableSpec};

use super::Topic;

weir_connect::choices! {
    /// Where reading starts.
    pub enum StartupMode {
        /// At the oldest message.
        Earliest = "earliest-offset",
        /// At what comes from now on.
        Latest = "latest-offset",
        /// Where the group has committed.
        Group = "group-offsets",
        /// At the first message not older than a time.
        Timestamp = "timestamp",
        /// At the offsets given.
        Specific = "specific-offsets",
    }
}

weir_connect::choices! {
    /// Where reading ends.
    pub enum BoundedMode {
        /// Never.
        Unbounded = "unbounded",
        /// At what is there when the job is planned.
        Latest = "latest-offset",
    }
}

weir_connect::choices! {
    /// What happens when the broker no longer has an offset.
    pub enum OffsetLost {
        /// The job ends.
        Fail = "fail",
        /// Reading goes on with the oldest message there is.
        Skip = "skip",
    }
}

weir_connect::choices! {
    /// Formats of a message's value.
    pub enum Format {
        /// A JSON object.
        Json = "json",
    }
}

weir_connect::options! {
    /// Options of the `kafka` source.
    pub struct KafkaOptions {
        /// The topic.
        pub topic: String = "topic", required "gateway_events";
        /// Brokers to begin with: `host:port`, separated by commas.
        pub servers: String = "properties.bootstrap.servers", required "127.0.0.1:9092";
        /// Any property of librdkafka: `group.id`, `security.protocol`, `sasl.*`, `ssl.*` and
        /// others.
        pub properties: Prefixed = "properties.*", prefix;
        /// Format of a message's value. A message without one is no row.
        pub format: Option<Format> = "format", optional;
        /// The same as `format`, in Flink's longer spelling.
        pub value_format: Option<Format> = "value.format", optional;
        /// Where reading starts. By default `group-offsets` if there is a `properties.group.id`,
        /// else
        /// `earliest-offset`. A group that has committed nothing starts at the oldest message,
        /// unless
        /// `properties.auto.offset.reset` is `latest`.
        pub startup_mode: Option<StartupMode> = "scan.startup.mode", optional;
        /// For `specific-offsets`: `partition:0,offset:42;partition:1,offset:300`. A partition that
        /// is not named starts at its oldest message.
        pub specific_offsets: Option<String> = "scan.startup.specific-offsets", optional;
        /// For `timestamp`: milliseconds since 1970.
        pub timestamp_millis: Option<u64> = "scan.startup.timestamp-millis", optional;
        /// Where reading ends; `latest-offset` is what is there when the job is planned.
        pub bounded_mode: BoundedMode = "scan.bounded.mode", default "unbounded";
        /// What happens when the broker no longer has an offset: the job ends (`fail`), or goes on
        /// with the oldest message there is (`skip`), counts what was lost and keeps the gap in its
        /// cuts.
        pub offset_lost: OffsetLost = "scan.offset-lost", default "fail";
        /// How often it is looked whether the topic has more partitions; `0 s`: only when the job
        /// starts. With `--state` they are read, from their oldest message, by a new generation
        /// that begins at once; else it is said, and the next start reads them.
        pub discovery: Duration =
            "scan.topic-partition-discovery.interval", default "1 min";
        /// How TIMESTAMP columns look in JSON.
        pub timestamp_format: TimestampStandard =
            "json.timestamp-format.standard", default "SQL";
        /// Whether a message that lacks a column is a bad row.
        pub fail_on_missing: bool = "json.fail-on-missing-field", default "false";
        /// Whether a message that cannot be read ends the job. Else it is counted, and goes to the
        /// dead-letter table if there is one.
        pub fail_on_error: bool = "json.fail-on-error", default "false";
        /// Accepted because Flink has it; see `json.fail-on-error`.
        pub ignore_parse_errors: bool = "json.ignore-parse-errors", default "false";
    }
}

/// Where a partition starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Earliest,
    Latest,
    /// Where the group is; a group without offsets starts at the end if this is set.
    Group {
        else_latest: bool,
    },
    /// Milliseconds since 1970.
    Timestamp(i64),
    /// By partition.
    Specific(BTreeMap<i32, i64>),
}

/// Properties of Java's client and of Flink that mean nothing here.
const IGNORED: [&str; 6] = [
    "key.deserializer",
    "value.deserializer",
    "enable.auto.commit",
    "auto.offset.reset",
    "partition.discovery.interval.ms",
    "transaction.timeout.ms",
];

/// Reads and checks the options.
pub(super) fn read(table: &TableSpec, also: &[OptionDoc]) -> Result<Topic, Vec<OptionError>> {
    let options = KafkaOptions::read(table, also)?;
    let mut errors = Vec::new();
    if options.format.is_none() && options.value_format.is_none() {
        let message =
            format!("connector 'kafka' of table `{}` needs the option 'format'", table.name);
        let hint = Some("add for example 'format' = 'json'".to_owned());
        errors.push(OptionError { key: None, message, hint });
    }
    if options.topic.contains([';', ',']) {
        errors.push(bad_value(table, "topic", "must be one topic; declare a table for each"));
    }
    let start = start(table, &options).map_err(|e| errors.push(e)).ok();
    let client = client(table, &options, &mut errors);
    match start {
        Some(start) if errors.is_empty() => Ok(Topic {
            table: table.name.clone(),
            name: options.topic.trim().to_owned(),
            servers: mask_url(&options.servers),
            client,
            commits: options.properties.get("group.id").is_some(),
            start,
            bounded: options.bounded_mode == BoundedMode::Latest,
            discovery: (!options.discovery.is_zero()).then_some(options.discovery),
            skip_lost: options.offset_lost == OffsetLost::Skip,
            fail_on_error: options.fail_on_error,
            json: JsonOptions {
                timestamp_standard: options.timestamp_format,
                fail_on_missing: options.fail_on_missing,
                ..JsonOptions::default()
            },
        }),
        _ => Err(errors),
    }
}

fn start(table: &TableSpec, options: &KafkaOptions) -> Result<Start, OptionError> {
    let grouped = options.properties.get("group.id").is_some();
    let mode = options.startup_mode.unwrap_or(match grouped {
        true => StartupMode::Group,
        false => StartupMode::Earliest,
    });
    let needs = |mode: &str, key: &str, example: &str| OptionError {
        hint: Some(format!("add for example '{key}' = '{example}'")),
        ..bad_value(table, "scan.startup.mode", &format!("is '{mode}', which needs '{key}'"))
    };
    match mode {
        StartupMode::Earliest => Ok(Start::Earliest),
        StartupMode::Latest => Ok(Start::Latest),
        StartupMode::Group if !grouped => {
            Err(needs("group-offsets", "properties.group.id", "weir"))
        }
        StartupMode::Group => {
            let reset = options.properties.get("auto.offset.reset").unwrap_or("earliest");
            Ok(Start::Group { else_latest: matches!(reset, "latest" | "largest" | "end") })
        }
        StartupMode::Timestamp => match options.timestamp_millis {
            Some(ms) => Ok(Start::Timestamp(i64::try_from(ms).unwrap_or(i64::MAX))),
            None => Err(needs("timestamp", "scan.startup.timestamp-millis", "1767225600000")),
        },
        StartupMode::Specific => {
            let key = "scan.startup.specific-offsets";
            let example = "partition:0,offset:42;partition:1,offset:300";
            let Some(text) = &options.specific_offsets else {
                return Err(needs("specific-offsets", key, example));
            };
            specific_offsets(text).map(Start::Specific).ok_or_else(|| OptionError {
                hint: Some(format!("write '{example}'")),
                ..bad_value(table, key, &format!("must be partitions and offsets, not '{text}'"))
            })
        }
    }
}

/// `partition:0,offset:42;partition:1,offset:300`.
fn specific_offsets(text: &str) -> Option<BTreeMap<i32, i64>> {
    let mut offsets = BTreeMap::new();
    for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
        let (partition, offset) = part.split_once(',')?;
        let partition = partition.trim().strip_prefix("partition:")?.trim().parse().ok()?;
        let offset: i64 = offset.trim().strip_prefix("offset:")?.trim().parse().ok()?;
        if offset < 0 || offsets.insert(partition, offset).is_some() {
            return None;
        }
    }
    (!offsets.is_empty()).then_some(offsets)
}

/// librdkafka's configuration: our defaults, the user's properties, then what must be so.
fn client(
    table: &TableSpec,
    options: &KafkaOptions,
    errors: &mut Vec<OptionError>,
) -> ClientConfig {
    let defaults = [
        ("client.id", "weir"),
        // Some group is needed by the library even where nothing is committed.
        ("group.id", "weir"),
        ("socket.keepalive.enable", "true"),
        ("socket.connection.setup.timeout.ms", "10000"),
        ("reconnect.backoff.max.ms", "10000"),
        ("fetch.max.bytes", "16777216"),
        // Of each partition and request, as compressed. Unpacked, and with what the client keeps of
        // each message, it is 25 times as much and more, beyond the limits of all queues. A link
        // with a long way to go may want more.
        ("fetch.message.max.bytes", "131072"),
        // A partition whose queue was full is fetched again soon: the default is a second.
        ("fetch.queue.backoff.ms", "10"),
        ("fetch.error.backoff.ms", "100"),
        ("fetch.wait.max.ms", "100"),
    ];
    let fixed = [
        ("enable.auto.commit", "false"),
        ("enable.auto.offset.store", "false"),
        ("auto.offset.reset", "error"),
        ("enable.partition.eof", "true"),
        ("allow.auto.create.topics", "false"),
        ("statistics.interval.ms", "500"),
    ];
    let settings = Settings { defaults: &defaults, ignored: &IGNORED, fixed: &fixed };
    client_config(table, &options.properties, settings, errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specific_offsets_in_flinks_spelling() {
        let both = BTreeMap::from([(0, 42), (1, 300)]);
        let text = "partition:0,offset:42;partition:1,offset:300";
        assert_eq!(specific_offsets(text), Some(both.clone()));
        assert_eq!(
            specific_offsets(" partition: 0 , offset: 42 ; partition:1,offset:300;"),
            Some(both)
        );
        for wrong in ["", "0:42", "partition:0", "partition:0,offset:-1", "partition:x,offset:1"] {
            assert_eq!(specific_offsets(wrong), None, "{wrong}");
        }
        assert_eq!(specific_offsets("partition:0,offset:1;partition:0,offset:2"), None);
    }
}
