//! Options of the Kafka sinks, and the client's configuration that follows from them.

use rdkafka::ClientConfig;
use std::num::NonZeroU32;
use std::time::Duration;
use weir_connect::json::{JsonOptions, TimestampStandard};
use weir_connect::kafka::{Settings, client_config};
use weir_connect::options::{Prefixed, bad_table, bad_value, mask_url};
use weir_engine::connector::{OptionDoc, OptionError, TableSpec};

use super::columns::Columns;
use super::{Kind, Plan};

weir_connect::choices! {
    /// Formats of keys and values.
    pub enum Format {
        /// A JSON object.
        Json = "json",
    }
}

weir_connect::choices! {
    /// Which columns a value has.
    pub enum Included {
        /// All of them.
        All = "ALL",
        /// Those that are not in the key.
        ExceptKey = "EXCEPT_KEY",
    }
}

weir_connect::choices! {
    /// Which partition a row goes to.
    pub enum Partitioner {
        /// By the key's hash, without a key in turn, many rows at a time.
        Default = "default",
        /// A shard has one partition.
        Fixed = "fixed",
        /// In turn, row by row.
        RoundRobin = "round-robin",
    }
}

weir_connect::choices! {
    /// How often a row is there.
    pub enum Delivery {
        /// Once.
        ExactlyOnce = "exactly-once",
        /// Once, after a failure perhaps more often.
        AtLeastOnce = "at-least-once",
    }
}

weir_connect::options! {
    /// Options of the `kafka` and `upsert-kafka` sinks.
    pub struct KafkaOptions {
        /// The topic.
        pub topic: String = "topic", required "sensor_5m";
        /// Brokers to begin with: `host:port`, separated by commas.
        pub servers: String = "properties.bootstrap.servers", required "127.0.0.1:9092";
        /// Any property of librdkafka: `security.protocol`, `sasl.*`, `ssl.*`, `compression.type`,
        /// `transaction.timeout.ms` and others.
        pub properties: Prefixed = "properties.*", prefix;
        /// Format of a message's value.
        pub format: Option<Format> = "format", optional;
        /// The same as `format`, in Flink's longer spelling.
        pub value_format: Option<Format> = "value.format", optional;
        /// Format of a message's key.
        pub key_format: Option<Format> = "key.format", optional;
        /// Sink of `kafka`: columns of a message's key, separated by `;`. Without it messages have
        /// none. The key of `upsert-kafka` is the PRIMARY KEY.
        pub key_fields: Option<Vec<String>> = "key.fields", optional;
        /// Sink: whether a value has the columns of the key too.
        pub included: Included = "value.fields-include", default "ALL";
        /// How TIMESTAMP columns look in JSON.
        pub timestamp_format: TimestampStandard =
            "json.timestamp-format.standard", default "SQL";
        /// Sink: whether columns that are NULL are left out.
        pub ignore_null: bool = "json.encode.ignore-null-fields", default "false";
        /// Accepted because Flink has it: a DECIMAL is always plain.
        pub decimal_plain: bool = "json.encode.decimal-as-plain-number", default "true";
        /// Sink: which partition a row goes to. `default`: by the key, with the hash that Java's
        /// client has; without a key in turn, many rows at a time (of 64 ms or epochs, at most
        /// 4 096 of an epoch). `round-robin`: in turn, row by row. `fixed`: to the partition of
        /// the shard's number (modulo their count). In turn means by the row's place in its epoch
        /// and the epoch's number, so that a row that is computed again goes to the same
        /// partition.
        pub partitioner: Partitioner = "sink.partitioner", default "default";
        /// Sink: number of producers that write. With a primary key each has its own keys. It stays
        /// as it is for the life of a job.
        pub shards: NonZeroU32 = "sink.parallelism", default "1";
        /// Sink: what is promised of a job that lasts (`weir run --state`). `exactly-once`: rows
        /// are in transactions, seen by readers with `isolation.level` = `read_committed`.
        /// `at-least-once`: a failure may leave rows twice. A job that does not last has
        /// `at-least-once` always.
        pub delivery: Delivery = "sink.delivery-guarantee", default "exactly-once";
        /// Sink: beginning of the transactional ids, `<prefix>/<job>/<sink>/<shard>`. It stays as
        /// it is for the life of a job.
        pub prefix: String = "sink.transactional-id-prefix", default "weir";
        /// Sink: compacted topic that remembers, for jobs that last, how far each shard is written.
        /// It is made if it does not exist. It stays as it is for the life of a job.
        pub progress_topic: String = "sink.progress-topic", default "weir-progress";
        /// Sink: the least time between two transactions: rows that come sooner wait until it is
        /// over, and share one. Rows that come after a pause do not wait. A broker is not quite
        /// done with a transaction when it says that it is committed.
        pub rest: Duration = "sink.buffer-flush.interval", default "1 ms";
        /// Sink: a transaction takes no further epoch once it has this many rows.
        pub rows_max: u32 = "sink.buffer-flush.max-rows", default "20000";
        /// Sink: how long one attempt to reach the broker may take.
        pub connect_timeout: Duration = "connect.timeout", default "5 s";
        /// Sink: how long a job that ends waits for a broker that does not answer.
        pub close_timeout: Duration = "sink.close-timeout", default "1 min";
    }
}

/// Properties of Java's client and of Flink that mean nothing here.
const IGNORED: [&str; 9] = [
    "key.serializer",
    "value.serializer",
    "key.deserializer",
    "value.deserializer",
    "group.id",
    "auto.offset.reset",
    "enable.auto.commit",
    "buffer.memory",
    "max.block.ms",
];

/// Properties that are the sink's own, and what to use instead.
const OWN: [(&str, &str); 3] = [
    ("transactional.id", "the sink makes it; 'sink.transactional-id-prefix' is its beginning"),
    ("enable.idempotence", "it is always on"),
    ("partitioner.class", "use 'sink.partitioner'"),
];

/// Reads and checks options and columns. Options in `also` pass unread.
pub(super) fn read(
    table: &TableSpec,
    kind: Kind,
    also: &[OptionDoc],
) -> Result<Plan, Vec<OptionError>> {
    let mut options = KafkaOptions::read(table, also)?;
    let mut errors = Vec::new();
    check(table, kind, &options, &mut errors);
    for (key, instead) in OWN {
        if options.properties.get(key).is_some() {
            errors.push(OptionError {
                hint: Some(instead.to_owned()),
                ..bad_value(table, &format!("properties.{key}"), "cannot be set")
            });
        }
    }
    let client = client(table, &options, &mut errors);
    let json = JsonOptions {
        timestamp_standard: options.timestamp_format,
        ignore_null_fields: options.ignore_null,
        ..JsonOptions::default()
    };
    let columns = Columns::of(table, kind, &options, json).map_err(|e| errors.extend(e)).ok();
    match columns {
        Some(columns) if errors.is_empty() => {
            options.topic = options.topic.trim().to_owned();
            Ok(Plan {
                table: table.name.clone(),
                servers: mask_url(&options.servers),
                transaction_max: transaction_max(&client),
                client,
                columns,
                options,
                kind,
            })
        }
        _ => Err(errors),
    }
}

fn check(table: &TableSpec, kind: Kind, options: &KafkaOptions, errors: &mut Vec<OptionError>) {
    let mut needs = |key: &str| {
        let message = format!(
            "connector '{}' of table `{}` needs the option '{key}'",
            kind.name(),
            table.name
        );
        let hint = Some(format!("add for example '{key}' = 'json'"));
        errors.push(OptionError { key: None, message, hint });
    };
    if options.format.is_none() && options.value_format.is_none() {
        needs(if kind == Kind::Upsert { "value.format" } else { "format" });
    }
    if options.key_format.is_none() && (kind == Kind::Upsert || options.key_fields.is_some()) {
        needs("key.format");
    }
    if options.topic.contains([';', ',']) {
        errors.push(bad_value(table, "topic", "must be one topic; declare a table for each"));
    }
    if options.progress_topic.trim().is_empty() || options.progress_topic == options.topic {
        let what = "must be a topic of its own";
        errors.push(bad_value(table, "sink.progress-topic", what));
    }
    match kind {
        Kind::Append if !table.primary_key.is_empty() => errors.push(OptionError {
            hint: Some("use the connector 'upsert-kafka', or declare no PRIMARY KEY".to_owned()),
            ..bad_table(table, "has a PRIMARY KEY, but connector 'kafka' only appends")
        }),
        Kind::Append if options.key_format.is_some() && options.key_fields.is_none() => {
            let what = "is there, but no 'key.fields'";
            errors.push(bad_value(table, "key.format", what));
        }
        Kind::Append => {}
        Kind::Upsert => {
            if table.primary_key.is_empty() {
                let hint = "add for example PRIMARY KEY (id) NOT ENFORCED";
                errors.push(OptionError {
                    hint: Some(hint.to_owned()),
                    ..bad_table(table, "needs a PRIMARY KEY for connector 'upsert-kafka'")
                });
            }
            if options.key_fields.is_some() {
                let what = "cannot be set: the key of 'upsert-kafka' is the PRIMARY KEY";
                errors.push(bad_value(table, "key.fields", what));
            }
            if options.partitioner == Partitioner::RoundRobin {
                let what = "cannot be 'round-robin': messages of one key need one partition";
                errors.push(bad_value(table, "sink.partitioner", what));
            }
        }
    }
}

/// librdkafka's configuration: our defaults, the user's properties, then what must be so.
fn client(
    table: &TableSpec,
    options: &KafkaOptions,
    errors: &mut Vec<OptionError>,
) -> ClientConfig {
    let defaults = [
        ("client.id", "weir"),
        ("socket.keepalive.enable", "true"),
        ("socket.connection.setup.timeout.ms", "10000"),
        ("reconnect.backoff.max.ms", "2000"),
        // A group is sent as a whole: there is nothing to wait for.
        ("linger.ms", "0"),
        ("compression.type", "none"),
        ("transaction.timeout.ms", "60000"),
        // As Java's client and all that follow it.
        ("partitioner", "murmur2_random"),
    ];
    let fixed = [("enable.idempotence", "true"), ("statistics.interval.ms", "0")];
    let own = OWN.iter().map(|(key, _)| *key);
    let ignored: Vec<&str> = IGNORED.into_iter().chain(own).collect();
    let settings = Settings { defaults: &defaults, ignored: &ignored, fixed: &fixed };
    client_config(table, &options.properties, settings, errors)
}

/// How long a transaction may take.
fn transaction_max(client: &ClientConfig) -> Duration {
    let set = client.get("transaction.timeout.ms").and_then(|ms| ms.trim().parse().ok());
    Duration::from_millis(set.unwrap_or(60_000))
}
