//! Tests of option reading: everything wrong is said at once, and no secret is shown.
#![allow(clippy::unwrap_used)]

use super::*;
use expect_test::expect;
use std::time::Duration;

use crate::json::TimestampStandard;

crate::choices! {
    /// Formats.
    pub(crate) enum Format {
        /// Lines.
        Json = "json",
        /// Columns.
        Parquet = "parquet",
    }
}

crate::options! {
    /// Options for the tests.
    struct Sample {
        /// Where rows are read from,
        /// in two lines.
        pub topic: String = "topic", required "gateway_events";
        /// Form.
        pub format: Format = "format", default "json";
        /// Size.
        pub size: Size = "size", default "128 MB";
        /// Wait.
        pub wait: Duration = "wait", default "20 ms";
        /// Count.
        pub shards: std::num::NonZeroU32 = "shards", default "1";
        /// Flag.
        pub flag: bool = "flag", default "false";
        /// Password.
        pub password: Option<Secret> = "password", optional;
        /// Client options.
        pub properties: Prefixed = "properties.*", prefix;
    }
}

fn table(options: &[(&str, &str)]) -> TableSpec {
    let mut all: BTreeMap<String, String> =
        options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    all.entry("connector".into()).or_insert_with(|| "kafka".into());
    TableSpec {
        name: "readings".into(),
        columns: vec![],
        options: all,
        primary_key: vec![],
        partitioned_by: vec![],
        event_time: None,
        keyed: vec![],
        pushed: vec![],
    }
}

fn complaints(options: &[(&str, &str)]) -> String {
    let errors = Sample::read(&table(options), &[]).unwrap_err();
    let line = |e: &OptionError| {
        let hint = e.hint.as_ref().map_or(String::new(), |h| format!("\n    {h}"));
        format!("[{}] {}{hint}", e.key.as_deref().unwrap_or("-"), e.message)
    };
    errors.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn reads_values_and_defaults() {
    let read = Sample::read(
        &table(&[
            ("topic", "t"),
            ("format", "PARQUET"),
            ("size", "8 MiB"),
            ("wait", "5min"),
            ("properties.sasl.password", "geheim"),
            ("properties.a", "b"),
            ("password", "geheim"),
            ("scan.watermark.idle-timeout", "1 s"),
        ]),
        &[],
    );
    let read = read.unwrap();
    assert_eq!(read.topic, "t");
    assert_eq!((read.format, read.size, read.flag), (Format::Parquet, Size(8 << 20), false));
    assert_eq!((read.wait, read.shards.get()), (Duration::from_secs(300), 1));
    assert_eq!(read.properties.get("a"), Some("b"));
    assert_eq!(read.password.as_ref().unwrap().expose(), "geheim");
    assert!(!format!("{read:?}").contains("geheim"), "{read:?}");
}

#[test]
fn says_everything_that_is_wrong_at_once() {
    expect![[r#"
        [-] connector 'kafka' of table `readings` needs the option 'topic'
            add for example 'topic' = 'gateway_events'
        [format] 'format' of table `readings` must be json | parquet, not 'jsn'; did you mean 'json'?
        [size] 'size' of table `readings` must be a size, not 'large'
            write a number and a unit (B, KB, MB, GB), for example '128 MB'
        [wait] 'wait' of table `readings` must be a duration, not 'five minutes'
            write a number and a unit (ms, s, min, h, d), for example '5 min'
        [shards] 'shards' of table `readings` must be a positive whole number, not '0'
            write a whole number from 1 to 4294967295
        [flag] 'flag' of table `readings` must be true or false, not 'yes'
        [properties.] 'properties.' of table `readings` is no option of connector 'kafka'; did you mean 'properties.*'?
        [quux] 'quux' of table `readings` is no option of connector 'kafka'
            it has the options topic, format, size, wait, shards, flag, password, properties.*
        [topci] 'topci' of table `readings` is no option of connector 'kafka'; did you mean 'topic'?"#]]
    .assert_eq(&complaints(&[
        ("topci", "x"),
        ("format", "jsn"),
        ("size", "large"),
        ("wait", "five minutes"),
        ("shards", "0"),
        ("flag", "yes"),
        ("properties.", "x"),
        ("quux", "x"),
    ]));
}

#[test]
fn options_of_the_other_half_pass() {
    let other = OptionDoc { key: "scan.own", kind: "string", default: None, doc: "" };
    let spec = table(&[("topic", "t"), ("scan.own", "1")]);
    assert!(Sample::read(&spec, &[]).is_err());
    assert!(Sample::read(&spec, &[other]).is_ok());
}

#[test]
fn the_manual_is_made_of_the_comments() {
    let docs = Sample::docs();
    assert_eq!(docs[0].doc, "Where rows are read from, in two lines.");
    assert_eq!((docs[0].kind, docs[0].default), ("string", None));
    assert_eq!((docs[1].kind, docs[1].default), ("json | parquet", Some("json")));
    assert_eq!((docs[6].kind, docs[6].default), ("secret", Some("none")));
}

#[test]
fn times_in_json_have_flinks_names() {
    assert_eq!(TimestampStandard::parse("sql").unwrap(), TimestampStandard::Sql);
    assert_eq!(TimestampStandard::parse(" ISO-8601 ").unwrap(), TimestampStandard::Iso8601);
    let bad = TimestampStandard::parse("ISO8601").unwrap_err();
    assert_eq!((bad.expected.as_str(), bad.meant.as_deref()), ("SQL | ISO-8601", Some("ISO-8601")));
}

#[test]
fn durations_and_sizes_in_flinks_spelling() {
    let millis = |text: &str| parse_duration(text).map(|d| d.as_millis());
    let texts = ["30 s", "5min", "500 ms", "1 day", "2h", "40", "1 m", "7 DAYS", "0 s"];
    let got: Vec<_> = texts.iter().map(|t| millis(t)).collect();
    let want = [30_000, 300_000, 500, 86_400_000, 7_200_000, 40, 60_000, 604_800_000, 0];
    assert_eq!(got, want.map(Some));
    for bad in ["", "s", "five minutes", "-1 s", "1.5 s", "1 parsec", "99999999999999999999 d"] {
        assert_eq!(millis(bad), None, "{bad}");
    }
    let bytes = |text: &str| Size::parse(text).map(|s| s.0).ok();
    assert_eq!(bytes("128 mb"), Some(128 << 20));
    assert_eq!(bytes("1048576"), Some(1 << 20));
    assert_eq!(bytes("4 kb"), Some(4096));
    assert_eq!(bytes("18446744073709551615 kb"), None);
}

#[test]
fn passwords_in_urls_never_show() {
    let cases = [
        ("postgresql://weir:geheim@db/x", "postgresql://weir:***@db/x"),
        ("at 'postgresql://w:gehe@im/geheim@db:1/x' now", "at 'postgresql://w:***@db:1/x' now"),
        ("postgresql://weir@db/x", "postgresql://weir@db/x"),
        ("http://host:80/path", "http://host:80/path"),
        (
            "postgresql://db/x?user=a&password=geheim&y=1",
            "postgresql://db/x?user=a&password=***&y=1",
        ),
        ("host=db password=geheim user=x", "host=db password=*** user=x"),
        ("password='ge he' user=x", "password=*** user=x"),
        ("mqtt://:geheim@h, mqtt://u:geheim@h", "mqtt://:***@h, mqtt://u:***@h"),
    ];
    for (text, want) in cases {
        assert_eq!(mask_url(text), want);
    }
}
