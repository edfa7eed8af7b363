//! Options of the `mqtt` source, and the slots that follow from them.

use std::path::PathBuf;
use std::time::Duration;
use url::Url;
use weir_connect::json::{JsonOptions, TimestampStandard};
use weir_connect::options::{Secret, Size, bad_value};
use weir_connect::tls::TlsOptions;
use weir_engine::connector::{OptionError, TableSpec};

use super::packet::Protocol;

weir_connect::choices! {
    /// Versions of the protocol.
    pub enum Version {
        /// MQTT 3.1.1.
        V311 = "3.1.1",
        /// MQTT 5.
        V5 = "5",
    }
}

weir_connect::choices! {
    /// How often a message is delivered.
    pub enum Qos {
        /// At most once: what is under way when something fails is lost.
        AtMostOnce = "0",
        /// At least once.
        AtLeastOnce = "1",
    }
}

weir_connect::choices! {
    /// Disks that a journal is on.
    pub enum Copies {
        /// One.
        One = "1",
        /// Two.
        Two = "2",
    }
}

weir_connect::choices! {
    /// Formats of a payload.
    pub enum Format {
        /// One JSON object a message.
        Json = "json",
    }
}

weir_connect::options! {
    /// Options of the `mqtt` source.
    pub struct MqttOptions {
        /// The broker: `mqtt://host:1883`, or `mqtts://host:8883` with TLS.
        pub url: String = "url", required "mqtt://127.0.0.1:1883";
        /// Topic filters, separated by `;`. Each is a slot: a connection, a journal and a
        /// split of its own. A message that fits two filters comes twice.
        pub topic: Vec<String> = "topic", required "grid/#";
        /// How many slots share a subscription; only for filters that begin with `$share/<group>/`.
        pub slots: u32 = "slots", default "1";
        /// Version of the protocol.
        pub version: Version = "mqtt.version", default "3.1.1";
        /// With 1, a message is acknowledged once the journal has it on disk. With 0,
        /// what is under way when something fails is lost.
        pub qos: Qos = "qos", default "1";
        /// User name.
        pub username: Option<String> = "username", optional;
        /// Password.
        pub password: Option<Secret> = "password", optional;
        /// PEM file of the authorities to trust with `mqtts://`; the system's by default.
        pub tls_ca: Option<String> = "tls.ca", optional;
        /// PEM file of the client's certificate.
        pub tls_cert: Option<String> = "tls.cert", optional;
        /// PEM file of the client's private key.
        pub tls_key: Option<String> = "tls.key", optional;
        /// What client ids begin with; the slot's number follows. Without it, a name made
        /// once and kept beside the journal.
        pub client_id: Option<String> = "client-id", optional;
        /// After this time without a packet the connection is probed.
        pub keep_alive: Duration = "keep-alive", default "30 s";
        /// MQTT 5: how long the broker keeps what comes while Weir is away. With 3.1.1
        /// the broker decides.
        pub session_expiry: Duration = "session.expiry", default "7 d";
        /// Folder of the ingest journal, one folder a slot in it; `weir-journal/<table>`
        /// by default.
        pub journal_path: Option<String> = "journal.path", optional;
        /// With 2, a message is acknowledged once it is on disk in 'journal.copy-path' too, where
        /// another process of the job writes it if there are several: the loss of one of the two
        /// disks loses nothing.
        pub journal_copies: Copies = "journal.copies", default "1";
        /// Folder of the second copy, on another disk than 'journal.path'.
        pub journal_copy_path: Option<String> = "journal.copy-path", optional;
        /// Size at which a slot's journal stops receiving; from 80 % on there is a warning.
        pub journal_bytes_max: Size = "journal.bytes-max", default "10 GB";
        /// Larger messages are bad rows: counted, and their first bytes kept.
        pub packet_bytes_max: Size = "packet.bytes-max", default "1 MB";
        /// Format of the payloads. An empty payload is no row.
        pub format: Format = "format", default "json";
        /// How TIMESTAMP columns look in JSON.
        pub timestamp_format: TimestampStandard =
            "json.timestamp-format.standard", default "SQL";
        /// Whether a message that lacks a column is a bad row.
        pub fail_on_missing: bool = "json.fail-on-missing-field", default "false";
        /// Accepted because Flink has it. Either way a message that is no row is counted,
        /// and goes to the dead-letter table if there is one.
        pub ignore_parse_errors: bool = "json.ignore-parse-errors", default "false";
    }
}

/// Where the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) tls: bool,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// All that a slot's client needs to know.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) table: String,
    pub(crate) address: Address,
    pub(crate) tls: TlsOptions,
    pub(crate) protocol: Protocol,
    pub(crate) qos: u8,
    pub(crate) username: Option<String>,
    pub(crate) password: Option<Secret>,
    pub(crate) client_id: Option<String>,
    pub(crate) keep_alive: Duration,
    pub(crate) session_expiry_s: u32,
    pub(crate) journal_path: PathBuf,
    pub(crate) journal_copy_path: Option<PathBuf>,
    pub(crate) journal_bytes_max: u64,
    pub(crate) packet_bytes_max: usize,
    pub(crate) json: JsonOptions,
}

/// Reads and checks the options: the client, and the topic filter of each slot.
pub(crate) fn read(table: &TableSpec) -> Result<(Client, Vec<String>), Vec<OptionError>> {
    let options = MqttOptions::read(table, &[])?;
    let mut errors = Vec::new();
    let address = address(table, &options.url).map_err(|e| errors.push(e)).ok();
    let slots = slots(table, &options).map_err(|e| errors.extend(e)).ok();
    errors.extend(check_numbers(table, &options));
    if options.tls_cert.is_some() != options.tls_key.is_some() {
        let key = if options.tls_cert.is_some() { "tls.cert" } else { "tls.key" };
        errors.push(bad_value(table, key, "needs the other one of 'tls.cert' and 'tls.key' too"));
    }
    if options.password.is_some() && options.username.is_none() {
        errors.push(bad_value(table, "password", "needs a 'username' beside it"));
    }
    let (Some(address), Some(slots), true) = (address, slots, errors.is_empty()) else {
        return Err(errors);
    };
    let path = |path: Option<String>| path.map(PathBuf::from);
    let default_path = || PathBuf::from("weir-journal").join(&table.name);
    let standard = options.timestamp_format;
    let client = Client {
        table: table.name.clone(),
        address,
        tls: TlsOptions {
            ca_file: path(options.tls_ca),
            cert_file: path(options.tls_cert),
            key_file: path(options.tls_key),
            ..TlsOptions::default()
        },
        protocol: if options.version == Version::V5 { Protocol::V5 } else { Protocol::V311 },
        qos: u8::from(options.qos == Qos::AtLeastOnce),
        username: options.username,
        password: options.password,
        client_id: options.client_id,
        keep_alive: options.keep_alive,
        session_expiry_s: u32::try_from(options.session_expiry.as_secs()).unwrap_or(u32::MAX),
        journal_path: path(options.journal_path).unwrap_or_else(default_path),
        journal_copy_path: path(options.journal_copy_path),
        journal_bytes_max: options.journal_bytes_max.0,
        packet_bytes_max: usize::try_from(options.packet_bytes_max.0).unwrap_or(usize::MAX),
        json: JsonOptions {
            timestamp_standard: standard,
            fail_on_missing: options.fail_on_missing,
            ..JsonOptions::default()
        },
    };
    Ok((client, slots))
}

fn address(table: &TableSpec, text: &str) -> Result<Address, OptionError> {
    let refuse = |what: &str| {
        let hint = Some("write for example 'mqtt://broker:1883' or 'mqtts://broker:8883'".into());
        OptionError { hint, ..bad_value(table, "url", what) }
    };
    let url = Url::parse(text.trim()).map_err(|e| refuse(&format!("is no URL: {e}")))?;
    let tls = match url.scheme() {
        "mqtt" => false,
        "mqtts" => true,
        other => {
            return Err(refuse(&format!("must begin with mqtt:// or mqtts://, not {other}://")));
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse("must not hold a user: use 'username' and 'password'"));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() {
        return Err(refuse("must end after the port"));
    }
    let host =
        url.host_str().filter(|host| !host.is_empty()).ok_or_else(|| refuse("names no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok(Address { host, port: url.port().unwrap_or(if tls { 8883 } else { 1883 }), tls })
}

fn slots(table: &TableSpec, options: &MqttOptions) -> Result<Vec<String>, Vec<OptionError>> {
    let mut errors = Vec::new();
    if options.topic.is_empty() {
        errors.push(bad_value(table, "topic", "names no topic filter"));
    }
    let shared = |filter: &str| filter.starts_with("$share/");
    if !(1..=1_000).contains(&options.slots) {
        errors.push(bad_value(table, "slots", "must be from 1 to 1000"));
    } else if options.slots > 1 && !options.topic.iter().any(|filter| shared(filter)) {
        let hint = "write for example 'topic' = '$share/weir/grid/#'".to_owned();
        let what = "above 1 needs a filter that begins with $share/<group>/";
        errors.push(OptionError { hint: Some(hint), ..bad_value(table, "slots", what) });
    }
    let mut slots: Vec<String> = Vec::new();
    for filter in &options.topic {
        if let Some(fault) = filter_fault(filter) {
            errors.push(bad_value(table, "topic", &format!("holds '{filter}', {fault}")));
        }
        if slots.contains(filter) {
            errors.push(bad_value(table, "topic", &format!("holds '{filter}' twice")));
        }
        let times = if shared(filter) { options.slots.clamp(1, 1_000) } else { 1 };
        slots.extend(std::iter::repeat_n(filter.clone(), times as usize));
    }
    if errors.is_empty() { Ok(slots) } else { Err(errors) }
}

/// What is wrong with a topic filter by section 4.7 of the standard.
fn filter_fault(filter: &str) -> Option<&'static str> {
    let plain = match filter.strip_prefix("$share/") {
        None => filter,
        Some(rest) => match rest.split_once('/') {
            Some((group, plain)) if !group.is_empty() && !group.contains(['+', '#']) => plain,
            _ => return Some("where $share/ needs a group and a topic filter"),
        },
    };
    if plain.is_empty() || filter.len() > 65_535 || filter.contains('\0') {
        return Some("which is empty or too long");
    }
    let mut levels = plain.split('/').rev();
    let last = levels.next().unwrap_or_default();
    let wild = |level: &str| level.len() > 1 && level.contains(['+', '#']);
    if wild(last) || levels.any(|level| wild(level) || level == "#") {
        return Some("where # must be last, and + and # a level");
    }
    None
}

fn check_numbers(table: &TableSpec, options: &MqttOptions) -> Vec<OptionError> {
    let mut errors = Vec::new();
    let seconds = options.keep_alive.as_secs();
    if !(1..=65_535).contains(&seconds) {
        errors.push(bad_value(table, "keep-alive", "must be from 1 s to 65535 s"));
    }
    if !(1_024..=(256 << 20)).contains(&options.packet_bytes_max.0) {
        errors.push(bad_value(table, "packet.bytes-max", "must be from 1 kB to 256 MB"));
    }
    if options.journal_bytes_max.0 < (1 << 20) {
        errors.push(bad_value(table, "journal.bytes-max", "must be at least 1 MB"));
    }
    match (options.journal_copies, &options.journal_copy_path) {
        (Copies::Two, None) => {
            let what = "needs a folder on another disk, 'journal.copy-path'";
            errors.push(bad_value(table, "journal.copies", what));
        }
        (Copies::One, Some(_)) => {
            errors.push(bad_value(table, "journal.copy-path", "needs 'journal.copies' = '2'"));
        }
        (_, copy) if copy.is_some() && *copy == options.journal_path => {
            let what = "must be another folder than 'journal.path'";
            errors.push(bad_value(table, "journal.copy-path", what));
        }
        _ => {}
    }
    errors
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use expect_test::{Expect, expect};

    pub(crate) fn table(options: &[(&str, &str)]) -> TableSpec {
        TableSpec {
            name: "readings".to_owned(),
            columns: Vec::new(),
            options: options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            primary_key: Vec::new(),
            partitioned_by: Vec::new(),
            event_time: None,
            keyed: Vec::new(),
            pushed: Vec::new(),
        }
    }

    fn check(options: &[(&str, &str)], expected: Expect) {
        let shown = match read(&table(options)) {
            Ok((client, slots)) => format!("{} {slots:?}", client.address),
            Err(errors) => errors.iter().map(|e| e.message.clone()).collect::<Vec<_>>().join("\n"),
        };
        expected.assert_eq(&shown);
    }

    #[test]
    fn filters_become_slots() {
        check(
            &[("url", "mqtt://b"), ("topic", "grid/0/#; grid/+/x ; $share/g/#"), ("slots", "2")],
            expect![[r#"b:1883 ["grid/0/#", "grid/+/x", "$share/g/#", "$share/g/#"]"#]],
        );
        check(&[("url", "mqtts://[::1]"), ("topic", "#")], expect![[r##"::1:8883 ["#"]"##]]);
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        check(
            &[("url", "tcp://b"), ("topic", "a/#/b;x;x"), ("slots", "3"), ("password", "hush")],
            expect![[r#"
                'url' of table `readings` must begin with mqtt:// or mqtts://, not tcp://
                'slots' of table `readings` above 1 needs a filter that begins with $share/<group>/
                'topic' of table `readings` holds 'a/#/b', where # must be last, and + and # a level
                'topic' of table `readings` holds 'x' twice
                'password' of table `readings` needs a 'username' beside it"#]],
        );
        check(
            &[("url", "mqtt://me:hush@b"), ("topic", "x"), ("keep-alive", "0 s")],
            expect![[r#"
                'url' of table `readings` must not hold a user: use 'username' and 'password'
                'keep-alive' of table `readings` must be from 1 s to 65535 s"#]],
        );
        let at = |more: &[(&'static str, &'static str)], expected: Expect| {
            check(&[&[("url", "mqtt://b"), ("topic", "x")], more].concat(), expected);
        };
        at(
            &[("journal.copies", "2")],
            expect![[r#"
                'journal.copies' of table `readings` needs a folder on another disk, 'journal.copy-path'"#]],
        );
        at(
            &[("journal.copy-path", "/b")],
            expect!["'journal.copy-path' of table `readings` needs 'journal.copies' = '2'"],
        );
        at(
            &[("journal.copies", "2"), ("journal.path", "/b"), ("journal.copy-path", "/b")],
            expect![
                "'journal.copy-path' of table `readings` must be another folder than 'journal.path'"
            ],
        );
    }
}
