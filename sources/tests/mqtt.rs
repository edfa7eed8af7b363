//! The `mqtt` source against Mosquitto.
#![allow(clippy::unwrap_used)]

#[path = "mqtt/server.rs"]
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Seek, SeekFrom};
use std::net::TcpListener;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use arrow::array::AsArray;
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use server::{Mosquitto, Publisher, environment, table, until};
use weir_engine::connector::{ConnectorError, Remedy, TableSpec};
use weir_engine::journal::{CopyServer, Disk, Folder, Journal, Peer, SEGMENT_BYTES, new_secret};
use weir_engine::source::{Chunk, QUEUE_BYTES_MAX, SourceHandle, SplitQueue};

/// A source that is open, and its queues.
struct Open {
    queues: Vec<Arc<SplitQueue>>,
    /// Ends the threads when dropped.
    _handle: Box<dyn SourceHandle>,
}

impl Open {
    fn of(table: &TableSpec) -> Open {
        Open::bounded(table, QUEUE_BYTES_MAX)
    }

    /// With second copies at another process.
    fn with_second(table: &TableSpec, second: &Peer) -> Result<Open, ConnectorError> {
        let source = weir_sources::mqtt::source(table).unwrap();
        let queues: Vec<_> = source
            .splits()?
            .into_iter()
            .map(|split| SplitQueue::bounded(split, QUEUE_BYTES_MAX))
            .collect();
        queues.iter().for_each(|queue| queue.set_second_copy(second.clone()));
        let handle = source.open(queues.clone())?;
        Ok(Open { queues, _handle: handle })
    }

    fn bounded(table: &TableSpec, bytes: usize) -> Open {
        let source = weir_sources::mqtt::source(table).unwrap();
        let splits = source.splits().unwrap();
        let queues: Vec<_> =
            splits.into_iter().map(|split| SplitQueue::bounded(split, bytes)).collect();
        let handle = source.open(queues.clone()).unwrap();
        Open { queues, _handle: handle }
    }

    /// Waits until all slots are connected, subscribed and quiet.
    fn ready(self) -> Open {
        until("the slots are ready", || self.queues.iter().all(|q| q.is_quiet() == (true, true)));
        self
    }

    fn chunks(&self) -> Vec<Chunk> {
        self.queues.iter().flat_map(|q| std::iter::from_fn(|| q.pop(usize::MAX))).collect()
    }

    /// The numbers of at least `count` rows, in the order of each slot.
    fn numbers(&self, count: usize) -> Vec<i64> {
        let mut all = Vec::new();
        until(&format!("{count} rows"), || {
            for chunk in self.chunks() {
                all.extend_from_slice(chunk.rows.column(0).as_primitive::<Int64Type>().values());
            }
            all.len() >= count
        });
        all
    }

    fn failure(&self) -> ConnectorError {
        let mut found = None;
        until("a failure", || {
            found = self.queues.iter().find_map(|q| q.failure());
            found.is_some()
        });
        found.unwrap()
    }
}

fn send(address: &str, topic: &str, numbers: std::ops::Range<i64>, qos: u8) {
    let mut publisher = Publisher::connect(address);
    for n in numbers {
        publisher.publish(topic, format!("{{\"n\":{n}}}").as_bytes(), qos);
    }
    publisher.finish();
}

/// A topic that no other test and no earlier run has used.
fn topic(name: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("weir-test/{name}/{now}")
}

/// What the journal of a slot holds, read while nobody uses it.
fn journaled(path: &Path, label: &str) -> Vec<String> {
    let disk: Arc<dyn Disk> = Arc::new(Folder::open(path).unwrap());
    let journal = Journal::open(disk, label, SEGMENT_BYTES).unwrap();
    let mut reader = journal.reader(journal.bounds().0);
    let mut topics = Vec::new();
    while let Some(record) = reader.read().unwrap() {
        topics.push(record.entry.topic.to_owned());
    }
    topics
}

#[test]
fn rows_come_with_their_metadata_and_bad_ones_are_kept() {
    let address = environment("WEIR_TEST_MQTT");
    let journal = tempfile::tempdir().unwrap();
    let base = topic("rows");
    let more = [("packet.bytes-max", "2 kB")];
    let filter = format!("nowhere/#;{base}/+/x");
    let open =
        Open::of(&table(&format!("mqtt://{address}"), &filter, journal.path(), &more)).ready();
    let mut publisher = Publisher::connect(&address);
    publisher.publish(&format!("{base}/1/x"), b"{\"n\":1}", 1);
    publisher.publish(&format!("{base}/1/y"), b"{\"n\":99}", 1);
    publisher.publish(&format!("{base}/2/x"), b"{\"n\":\"word\"}", 1);
    publisher.publish(&format!("{base}/2/x"), &vec![b' '; 300_000], 1);
    publisher.publish(&format!("{base}/2/x"), b"", 1);
    publisher.publish(&format!("{base}/2/x"), b"{\"n\":2}", 0);
    publisher.finish();

    let (mut rows, mut bad) = (Vec::new(), Vec::new());
    until("two rows", || {
        for chunk in open.chunks() {
            for row in 0..chunk.len() {
                let n = chunk.rows.column(0).as_primitive::<Int64Type>().value(row);
                let slot = chunk.rows.column(1).as_string::<i32>().value(row).to_owned();
                let offset = chunk.rows.column(2).as_primitive::<Int64Type>().value(row);
                let topic = chunk.rows.column(3).as_string::<i32>().value(row).to_owned();
                let came = chunk.rows.column(4).as_primitive::<TimestampMillisecondType>();
                assert_eq!(came.value(row), chunk.arrivals.as_ref().unwrap()[row]);
                assert_eq!(chunk.offsets.at(row) as i64, offset);
                rows.push((n, slot, offset, topic));
            }
            bad.extend(chunk.bad);
        }
        rows.len() == 2
    });
    assert_eq!(rows[0], (1, "1".to_owned(), 0, format!("{base}/1/x")));
    assert_eq!(rows[1], (2, "1".to_owned(), 4, format!("{base}/2/x")));
    assert_eq!(bad.iter().map(|b| b.offset).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(bad[0].payload, b"{\"n\":\"word\"}");
    assert!(bad[1].reason.contains("packet.bytes-max") && bad[1].payload.len() == 1_024);
    assert!(open.queues[1].report().1.unwrap().contains("1 messages larger"));
}

#[test]
fn what_comes_while_weir_is_away_comes_later_and_the_journal_comes_first() {
    let address = environment("WEIR_TEST_MQTT");
    for version in ["3.1.1", "5"] {
        let journal = tempfile::tempdir().unwrap();
        let topic = topic("away");
        let more = [("mqtt.version", version)];
        let table = table(&format!("mqtt://{address}"), &topic, journal.path(), &more);
        let open = Open::of(&table).ready();
        send(&address, &topic, 0..1_000, 1);
        assert!(open.numbers(1_000).into_iter().eq(0..1_000));
        let again = weir_sources::mqtt::source(&table).unwrap().open(open.queues.clone());
        let error = again.err().unwrap();
        assert!(error.message.contains("in use") && error.remedy == Remedy::Reconfigure);
        drop(open);

        send(&address, &topic, 1_000..2_000, 1);
        let open = Open::of(&table);
        assert!(open.numbers(2_000).into_iter().eq(0..2_000), "version {version}");
        assert_eq!(open.queues[0].report().1, None);
    }
}

#[test]
fn with_two_copies_the_loss_of_either_disk_loses_nothing() {
    let address = environment("WEIR_TEST_MQTT");
    let disks = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let copy = disks[1].path().to_str().unwrap();
    let (base, more) = (topic("copies"), [("journal.copies", "2"), ("journal.copy-path", copy)]);
    let table = table(&format!("mqtt://{address}"), &base, disks[0].path(), &more);
    let mut sent = 0;
    for lost in [0, 1, 0] {
        let open = Open::of(&table).ready();
        send(&address, &base, sent..sent + 100, 1);
        sent += 100;
        assert_eq!(open.numbers(sent as usize), (0..sent).collect::<Vec<_>>());
        drop(open);
        // While Weir is away the broker keeps what comes for its session, which is known still.
        std::fs::remove_dir_all(disks[lost].path().join("0")).unwrap();
        send(&address, &base, sent..sent + 10, 1);
        sent += 10;
    }
    let open = Open::of(&table);
    assert_eq!(open.numbers(sent as usize), (0..sent).collect::<Vec<_>>());
}

#[test]
fn slots_of_a_shared_subscription_divide_the_messages() {
    let address = environment("WEIR_TEST_MQTT");
    let journal = tempfile::tempdir().unwrap();
    let topic = topic("shared");
    let filter = format!("$share/weir/{topic}");
    let more = [("slots", "3")];
    let open =
        Open::of(&table(&format!("mqtt://{address}"), &filter, journal.path(), &more)).ready();
    assert_eq!(open.queues.len(), 3);
    send(&address, &topic, 0..3_000, 1);
    let mut numbers = open.numbers(3_000);
    numbers.sort_unstable();
    assert!(numbers.into_iter().eq(0..3_000));
    drop(open);
    for slot in 0..3 {
        let share = journaled(&journal.path().join(slot.to_string()), &filter).len();
        assert!(share > 500, "slot {slot} got {share}");
    }
}

#[test]
fn receiving_never_waits_for_the_dataflow() {
    let address = environment("WEIR_TEST_MQTT");
    let journal = tempfile::tempdir().unwrap();
    let topic = topic("lag");
    let table = table(&format!("mqtt://{address}"), &topic, journal.path(), &[]);
    let open = Open::bounded(&table, 1_000).ready();
    send(&address, &topic, 0..50_000, 1);
    until("the rest is in the journal", || {
        let (lag, _) = open.queues[0].report();
        lag as usize + open.queues[0].rows_waiting() >= 49_000
    });
    assert!(open.queues[0].rows_waiting() <= 8_192, "one chunk beyond the limit at most");
    assert!(!open.queues[0].is_quiet().0);
    assert!(open.numbers(50_000).into_iter().eq(0..50_000));
}

#[test]
fn a_full_journal_stops_receiving_and_says_so() {
    let address = environment("WEIR_TEST_MQTT");
    let journal = tempfile::tempdir().unwrap();
    let topic = topic("full");
    let more = [("journal.bytes-max", "1 MB")];
    let table = table(&format!("mqtt://{address}"), &topic, journal.path(), &more);
    let open = Open::of(&table).ready();
    send(&address, &topic, 0..20_000, 1);
    until("the notice", || {
        open.queues[0].report().1.is_some_and(|text| text.contains("receiving has stopped"))
    });
    drop(open);
    let more = [("journal.bytes-max", "1 GB")];
    let open = Open::of(&self::table(&format!("mqtt://{address}"), &topic, journal.path(), &more));
    let kept: BTreeSet<i64> = open.numbers(20_000).into_iter().collect();
    assert!(kept.into_iter().eq(0..20_000), "what was not acknowledged came again");
}

#[test]
fn a_reader_that_goes_on_waits_for_its_broker() {
    let journals = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let topic = topic("gone");
    let open = |known: bool| {
        let journal = journals[usize::from(known)].path();
        let table = table("mqtt://127.0.0.1:9", &topic, journal, &[]);
        let source = weir_sources::mqtt::source(&table).unwrap();
        let split = source.splits().unwrap().remove(0);
        let queue = SplitQueue::bounded(split, QUEUE_BYTES_MAX);
        if known {
            queue.set_known();
        }
        (queue.clone(), source.open(vec![queue]).unwrap())
    };
    let ((first, _a), (next, _b)) = (open(false), open(true));
    until("a first start gives up", || first.failure().is_some());
    assert_eq!(first.failure().unwrap().remedy, Remedy::Retry);
    std::thread::sleep(Duration::from_secs(2));
    assert!(next.failure().is_none(), "{:?}", next.failure());
    assert!(next.report().1.unwrap().starts_with("trying to reach MQTT broker"));
}

/// A process of a set, as one that has second copies.
fn other() -> (CopyServer, Peer) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let secret = new_secret().unwrap();
    (CopyServer::start(&address, &secret).unwrap(), Peer { process: 1, address, secret })
}

#[test]
fn the_second_copy_is_another_processs_and_without_it_nothing_is_acknowledged() {
    let address = environment("WEIR_TEST_MQTT");
    let (journal, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let copy_path = copy.path().to_string_lossy();
    let topic = topic("second");
    let more = [("journal.copies", "2"), ("journal.copy-path", &copy_path)];
    let table = table(&format!("mqtt://{address}"), &topic, journal.path(), &more);
    let (first, peer) = other();
    let open = Open::with_second(&table, &peer).unwrap().ready();
    send(&address, &topic, 0..1_000, 1);
    assert!(open.numbers(1_000).into_iter().eq(0..1_000));
    drop(first);
    send(&address, &topic, 1_000..2_000, 1);
    let error = open.failure();
    assert_eq!(error.remedy, Remedy::Restart, "{error}");
    assert!(error.message.contains("process 1"), "{error}");
    drop(open);
    // What is on one disk only may be there; what is on both is equal.
    let folders = [journal.path().join("0"), copy.path().join("0")];
    let [here, there] = folders.each_ref().map(|folder| journaled(folder, &topic).len());
    assert!((1_000..=here).contains(&there), "{here} here, {there} there");
    let session = folders.each_ref().map(|folder| std::fs::read(folder.join("session")).unwrap());
    assert!(session[0] == session[1] && !session[0].is_empty());

    // A process that cannot be reached is no fault of the disk, nor of the job.
    let error = Open::with_second(&table, &peer).err().unwrap();
    assert_eq!(error.remedy, Remedy::Restart, "{error}");
    // The next set, without the first disk: what was not acknowledged comes again.
    std::fs::remove_dir_all(journal.path()).unwrap();
    let (_next, peer) = other();
    let open = Open::with_second(&table, &peer).unwrap().ready();
    let numbers: BTreeSet<i64> = open.numbers(2_000).into_iter().collect();
    assert!(numbers.into_iter().eq(0..2_000));
    assert_eq!(journaled_bytes(&folders[0]), journaled_bytes(&folders[1]));
}

/// All segments, byte by byte.
fn journaled_bytes(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let segments = files.filter(|path| path.extension().is_some_and(|end| end == "journal"));
    let named = |path: &PathBuf| PathBuf::from(path.file_name().unwrap());
    segments.map(|path| (named(&path), std::fs::read(path).unwrap())).collect()
}

#[test]
fn passwords_are_checked_and_never_shown() {
    let url = format!("mqtt://{}", environment("WEIR_TEST_MQTT_PASSWORD"));
    let user = environment("WEIR_TEST_MQTT_PASSWORD_USER");
    let secret = environment("WEIR_TEST_MQTT_PASSWORD_SECRET");
    for version in ["3.1.1", "5"] {
        let journal = tempfile::tempdir().unwrap();
        let name = topic("password");
        let right =
            [("username", user.as_str()), ("password", secret.as_str()), ("mqtt.version", version)];
        drop(Open::of(&table(&url, &name, journal.path(), &right)).ready());
        let wrong = [("username", "weir"), ("password", "wr0ng-one"), ("mqtt.version", version)];
        let error = Open::of(&table(&url, &name, journal.path(), &wrong)).failure();
        assert_eq!(error.remedy, Remedy::Reconfigure);
        assert!(error.message.contains("refuses table `readings`"), "{}", error.message);
        assert!(!format!("{error:?}").contains("wr0ng"));
    }
}

#[test]
fn tls_checks_the_broker_and_shows_a_certificate() {
    let ca = environment("WEIR_TEST_MQTT_TLS_CA");
    let tls = format!("mqtts://{}", environment("WEIR_TEST_MQTT_TLS"));
    let mutual = format!("mqtts://{}", environment("WEIR_TEST_MQTT_MTLS"));
    let cert = environment("WEIR_TEST_MQTT_MTLS_CERT");
    let key = environment("WEIR_TEST_MQTT_MTLS_KEY");
    let journal = tempfile::tempdir().unwrap();
    let path = |name: &str| journal.path().join(name);
    let name = topic("tls");

    let open = Open::of(&table(&tls, &name, &path("a"), &[("tls.ca", &ca)])).ready();
    send(&environment("WEIR_TEST_MQTT"), &name, 0..5_000, 1);
    assert!(open.numbers(5_000).into_iter().eq(0..5_000));
    let shown = [("tls.ca", ca.as_str()), ("tls.cert", &cert), ("tls.key", &key)];
    drop(Open::of(&table(&mutual, &name, &path("b"), &shown)).ready());

    let stranger = Open::of(&table(&tls, &name, &path("c"), &[])).failure();
    assert_eq!(stranger.remedy, Remedy::Reconfigure);
    assert!(stranger.message.contains("certificate"), "{}", stranger.message);
    let plain = format!("mqtts://{}", environment("WEIR_TEST_MQTT"));
    let none = Open::of(&table(&plain, &name, &path("d"), &[("tls.ca", &ca)])).failure();
    assert_eq!(none.remedy, Remedy::Retry, "{}", none.message);
}

#[test]
fn a_broker_that_is_not_there_is_an_error_after_a_while() {
    let journal = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let open = Open::of(&table("mqtt://127.0.0.1:1", "t", journal.path(), &[]));
    let error = open.failure();
    assert!((5..20).contains(&begun.elapsed().as_secs()), "{:?}", begun.elapsed());
    assert!(error.message.contains("127.0.0.1:1"), "{}", error.message);
}

#[test]
fn a_broker_that_is_killed_is_found_again_and_a_forgotten_session_is_said() {
    let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut broker = Mosquitto::start(folder.path(), "");
    let open = Open::of(&table(&broker.url(), "t", journal.path(), &[])).ready();
    let address = format!("127.0.0.1:{}", broker.port);
    send(&address, "t", 0..100, 1);
    assert!(open.numbers(100).into_iter().eq(0..100));
    broker.kill();
    until("the loss is seen", || !open.queues[0].is_quiet().1);
    until("the loss is said", || open.queues[0].report().1.is_some_and(|t| t.contains("trying")));
    // Without persistence on disk the new process knows no session.
    broker.restart();
    let open = open.ready();
    assert!(open.queues[0].report().1.unwrap().contains("forgotten the session"));
    send(&address, "t", 100..200, 1);
    assert!(open.numbers(100).into_iter().eq(100..200));
}

#[test]
fn the_broker_of_the_demo_will_do() {
    let broker = weir_sources::broker::Broker::start("127.0.0.1:0").unwrap();
    let (address, journal) = (broker.address().to_string(), tempfile::tempdir().unwrap());
    let table = table(&format!("mqtt://{address}"), "grid/#", journal.path(), &[]);
    let open = Open::of(&table).ready();
    let begun = Instant::now();
    send(&address, "grid/3/m", 0..100_000, 1);
    assert!(open.numbers(100_000).into_iter().eq(0..100_000));
    eprintln!("through the demo's broker: {:.0} a second", 1e5 / begun.elapsed().as_secs_f64());
    drop(open);
    send(&address, "grid/3/m", 100_000..100_100, 1);
    // They come in one piece with the answer to CONNECT, and must not wait for the next packet.
    let begun = Instant::now();
    let open = Open::of(&table);
    assert!(open.numbers(100_100).into_iter().eq(0..100_100));
    assert!(begun.elapsed() < Duration::from_secs(10));
    assert_eq!(open.queues[0].report().1, None);
}

/// Messages a second, publishing these.
fn rate(open: &Open, broker: &Mosquitto, numbers: Range<i64>) -> f64 {
    let (address, all) = (format!("127.0.0.1:{}", broker.port), numbers.clone());
    let count = numbers.end - numbers.start;
    let begun = Instant::now();
    let publisher = std::thread::spawn(move || {
        let mut publisher = Publisher::connect(&address);
        for n in all {
            let filler = "x".repeat(135);
            publisher.publish("t", format!("{{\"n\":{n},\"f\":\"{filler}\"}}").as_bytes(), 1);
        }
        publisher.finish();
    });
    assert!(open.numbers(usize::try_from(count).unwrap()).into_iter().eq(numbers));
    let rate = count as f64 / begun.elapsed().as_secs_f64();
    publisher.join().unwrap();
    rate
}

/// What second copies cost, on one disk: here, and at another process.
#[test]
fn messages_per_second_with_two_copies() {
    let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Mosquitto::start(folder.path(), "max_inflight_messages 5000");
    let (copies_there, peer) = other();
    let mut rates = [const { Vec::new() }; 3];
    for turn in 0..3 {
        for (way, rates) in rates.iter_mut().enumerate() {
            let path = |name: &str| journal.path().join(format!("{turn}-{way}-{name}"));
            let copy = path("copy").display().to_string();
            let copies = [("journal.copies", "2"), ("journal.copy-path", copy.as_str())];
            let copies = if way == 0 { &[][..] } else { &copies };
            let table = table(&broker.url(), "t", &path("first"), copies);
            let open = match way {
                2 => Open::with_second(&table, &peer).unwrap(),
                _ => Open::of(&table),
            };
            rates.push(rate(&open.ready(), &broker, 0..30_000));
        }
    }
    copies_there.finish();
    let [one, two, far] = rates.each_mut().map(|rates| {
        rates.sort_by(f64::total_cmp);
        rates[1]
    });
    let (here, there) = (two / one, far / one);
    eprintln!("two copies beside one: {here:.2} here, {there:.2} at another process");
    // A round trip on loopback is little beside an fsync.
    assert!(far > two / 3.0, "{far:.0} a second beside {two:.0}");
}

#[test]
fn messages_per_second() {
    let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (window, settings, floor) in [
        ("its window of 20", "", 4_000.0),
        ("a window of 5000", "max_inflight_messages 5000", 20_000.0),
    ] {
        let broker = Mosquitto::start(folder.path(), settings);
        let path = journal.path().join(broker.port.to_string());
        let open = Open::of(&table(&broker.url(), "t", &path, &[])).ready();
        let rate = rate(&open, &broker, 0..100_000);
        eprintln!("150-byte messages a second with {window}: {rate:.0}");
        // Half of what a quiet machine reaches several times over: builds run beside the tests.
        assert!(rate > floor / 2.0, "{rate:.0} a second with {window}");
    }
}

const CHILD: &str = "WEIR_TEST_MQTT_CHILD";

/// In the process that `killed_at_any_moment_…` kills: receives until then. Alone it only shows
/// that no such process is wanted.
#[test]
fn receives_until_it_is_killed() {
    let Ok(what) = std::env::var(CHILD) else {
        assert!(std::env::var_os(CHILD).is_none());
        return;
    };
    let (url, journal) = what.split_once(' ').unwrap();
    let open = Open::of(&table(url, "k/#", Path::new(journal), &[]));
    loop {
        drop(open.chunks());
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Messages a second while receivers are killed.
const KILLED_RATE: u64 = 5_000;
/// What the publisher must reach on average for the test to have shown that.
const KILLED_RATE_MIN: f64 = 4_000.0;

/// Publishes `k/0`, `k/1` and so on at a steady rate until it is told to end, and waits until the
/// broker has them. Says how many there are, and how many were sent a second.
fn publish_steadily(address: &str, end: &AtomicBool) -> (u64, f64) {
    let mut publisher = Publisher::connect(address);
    let (begun, mut n) = (Instant::now(), 0);
    while !end.load(Ordering::Relaxed) {
        publisher.publish(&format!("k/{n}"), format!("{{\"n\":{n}}}").as_bytes(), 1);
        n += 1;
        if n % 50 == 0 {
            publisher.flush();
            let due = Duration::from_secs(1) * n as u32 / KILLED_RATE as u32;
            std::thread::sleep(due.saturating_sub(begun.elapsed()));
        }
    }
    publisher.flush();
    let rate = n as f64 / begun.elapsed().as_secs_f64();
    publisher.finish();
    (n, rate)
}

/// Five kills; `WEIR_TEST_KILLS=50` makes it as many as the issue asks for.
#[test]
fn killed_at_any_moment_it_has_what_it_acknowledged() {
    let kills: u32 = std::env::var("WEIR_TEST_KILLS").map_or(5, |n| n.parse().unwrap());
    let (folder, journal) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let broker = Mosquitto::start(folder.path(), "log_type all\nmax_inflight_messages 1000");
    let child = || {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "receives_until_it_is_killed"])
            .env(CHILD, format!("{} {}", broker.url(), journal.path().display()))
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    };
    let slot = journal.path().join("0");
    let mut receiving = child();
    until("it has subscribed", || {
        std::fs::read_to_string(slot.join("session")).is_ok_and(|text| text.lines().count() == 2)
    });
    let address = format!("127.0.0.1:{}", broker.port);
    let end = Arc::new(AtomicBool::new(false));
    let asked = end.clone();
    let publisher = std::thread::spawn(move || publish_steadily(&address, &asked));
    let mut log = BrokerLog::of(folder.path().join("log"));
    let mut fresh = Vec::new();
    for kill in 0..kills {
        std::thread::sleep(Duration::from_millis(300 + 37 * u64::from(kill % 7)));
        receiving.kill().unwrap();
        receiving.wait().unwrap();
        let before = log.acknowledged.len();
        log.read_on();
        fresh.push(log.acknowledged.len() - before);
        log.check(&journaled(&slot, "k/#"));
        receiving = child();
    }
    end.store(true, Ordering::Relaxed);
    let (messages, rate) = publisher.join().unwrap();
    until("everything has been acknowledged", || {
        log.read_on();
        log.acknowledged.len() as u64 == messages
    });
    receiving.kill().unwrap();
    receiving.wait().unwrap();
    log.check(&journaled(&slot, "k/#"));
    fresh.sort_unstable();
    eprintln!(
        "{kills} kills, {messages} messages at {rate:.0} a second; acknowledged between two kills: \
         at least {}, in the middle {}; none lost",
        fresh[0],
        fresh[fresh.len() / 2]
    );
    assert!(fresh[fresh.len() / 2] > 100, "kills came before anything was acknowledged: {fresh:?}");
    assert!(rate >= KILLED_RATE_MIN, "only {rate:.0} messages a second were published");
}

/// What Mosquitto has logged of acknowledgements, read as it grows.
struct BrokerLog {
    path: PathBuf,
    read: u64,
    /// Topics by message id, until they are acknowledged.
    sent: BTreeMap<u32, String>,
    acknowledged: BTreeSet<String>,
}

impl BrokerLog {
    fn of(path: PathBuf) -> BrokerLog {
        BrokerLog { path, read: 0, sent: BTreeMap::new(), acknowledged: BTreeSet::new() }
    }

    /// Reads the whole lines that are new, such as
    /// `Sending PUBLISH to weir-… (d0, q1, r0, m7, 'k/6', ... (7 bytes))` and
    /// `Received PUBACK from weir-… (Mid: 7, RC:0)`.
    fn read_on(&mut self) {
        let mut file = std::fs::File::open(&self.path).unwrap();
        file.seek(SeekFrom::Start(self.read)).unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        let whole = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |last| last + 1);
        self.read += whole as u64;
        let number = |text: &str| text.split(',').next().unwrap().parse::<u32>().unwrap();
        for line in String::from_utf8_lossy(&bytes[..whole]).lines() {
            if line.contains(": Sending PUBLISH to weir-") {
                let id = number(line.split(", m").nth(1).unwrap());
                self.sent.insert(id, line.split('\'').nth(1).unwrap().to_owned());
            } else if line.contains(": Received PUBACK from weir-") {
                let id = number(line.split("Mid: ").nth(1).unwrap());
                self.acknowledged.extend(self.sent.remove(&id));
            }
        }
    }

    /// Every message that the broker saw acknowledged is in the journal.
    fn check(&self, journaled: &[String]) {
        let kept: BTreeSet<&str> = journaled.iter().map(String::as_str).collect();
        let lost: Vec<_> =
            self.acknowledged.iter().filter(|t| !kept.contains(t.as_str())).collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    }
}
