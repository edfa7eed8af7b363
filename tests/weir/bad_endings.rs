//! Endings that are not happy, as a user sees them: one readable error and exit code 1, or a retry
//! that is visible in the log; never a panic, a backtrace or a password.
//!
//! Standard error is no terminal here. Servers are those of `cargo xtask services up`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::helping::{Proxy, WEIR, cell, children, env, name, signal, until};

/// In every script that has a place for one; it must never be seen.
const PASSWORD: &str = "Zaunkoenig-77";

/// A running `weir run`, ended with the value.
pub(crate) struct Run {
    child: Child,
    log: PathBuf,
}

impl Run {
    fn start(folder: &Path, sql: &str) -> Run {
        Run::of(Command::new(WEIR), &[], folder, sql)
    }

    /// `command` is weir, or something that becomes weir.
    pub(crate) fn of(mut command: Command, flags: &[&str], folder: &Path, sql: &str) -> Run {
        let script = folder.join("script.sql");
        fs::write(&script, sql).unwrap();
        let log = folder.join("log");
        command.args(["run", "-q"]).args(flags).arg(&script).env_remove("WEIR_LOG");
        command.env("RUST_BACKTRACE", "1").stdout(Stdio::null());
        let child = command.stderr(File::create(&log).unwrap()).spawn().unwrap();
        Run { child, log }
    }

    pub(crate) fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap()).into_owned()
    }

    /// Its processes, once there are `count`.
    pub(crate) fn processes(&self, count: usize) -> Vec<u32> {
        children(self.child.id(), count)
    }

    fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until(&format!("the end, after {}", self.said()), || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }

    /// It ends by itself with one readable error; gives what it said.
    fn fails(mut self) -> String {
        let status = self.ended();
        let said = self.said();
        assert_eq!(status.code(), Some(1), "{said}");
        assert_eq!(said.lines().filter(|l| l.starts_with("error: ")).count(), 1, "{said}");
        presentable(&said);
        said
    }

    /// Waits until the log says something.
    fn says(&mut self, what: &str) {
        until(&format!("{what:?} in {}", self.said()), || {
            assert!(self.child.try_wait().unwrap().is_none(), "it has ended: {}", self.said());
            self.said().contains(what)
        });
    }

    /// Ctrl-C: it ends well.
    pub(crate) fn interrupted(mut self) -> String {
        signal(self.child.id(), "-INT");
        let status = self.ended();
        let said = self.said();
        assert!(status.success(), "{status} {said}");
        presentable(&said);
        said
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn presentable(said: &str) {
    for never in ["panicked", "stack backtrace", "RUST_BACKTRACE", PASSWORD, "\x1b["] {
        assert!(!said.contains(never), "{never:?} in {said}");
    }
    let retries = said.matches("trying again").count();
    assert!(retries <= 10, "a flood of {retries}: {said}");
}

/// JSON lines of `n`, and text so that they weigh about `bytes` each.
fn write_input(folder: &Path, rows: u32, bytes: usize) {
    fs::create_dir_all(folder).unwrap();
    let mut text = String::new();
    let filler = "x".repeat(bytes.saturating_sub(20));
    for n in 0..rows {
        let _ = writeln!(text, "{{\"n\":{n},\"t\":\"{filler}\"}}");
    }
    fs::write(folder.join("part.jsonl"), text).unwrap();
}

fn copy(from: &str, to: &str) -> String {
    format!(
        "CREATE TABLE a (n BIGINT, t STRING) WITH ({from});\n\
         CREATE TABLE b (n BIGINT, t STRING) WITH ({to});\n\
         INSERT INTO b SELECT n, t FROM a;\n"
    )
}

fn files(folder: &Path, format: &str) -> String {
    let path = folder.display();
    format!("'connector' = 'filesystem', 'path' = '{path}', 'format' = '{format}'")
}

/// Files that close within a second or two.
pub(crate) fn soon(folder: &Path) -> String {
    files(folder, "json") + ", 'sink.rolling-policy.rollover-interval' = '100 ms'"
}

fn to_nowhere() -> String {
    "'connector' = 'blackhole'".to_owned()
}

fn kafka(servers: &str, topic: &str, more: &str) -> String {
    format!(
        "'connector' = 'kafka', 'topic' = '{topic}', 'format' = 'json', \
         'properties.bootstrap.servers' = '{servers}'{more}"
    )
}

pub(crate) fn mqtt(address: &str, topic: &str, journal: &Path, more: &str) -> String {
    let journal = journal.display();
    format!(
        "'connector' = 'mqtt', 'url' = 'mqtt://{address}', 'topic' = '{topic}', \
         'format' = 'json', 'journal.path' = '{journal}'{more}"
    )
}

fn s3(path: &str, secret: &str) -> String {
    format!(
        "'connector' = 'filesystem', 'path' = '{path}', 'format' = 'parquet', \
         's3.endpoint' = '{}', 's3.region' = '{}', 's3.access-key' = '{}', 's3.secret-key' = '{secret}'",
        env("WEIR_TEST_S3"),
        env("WEIR_TEST_S3_REGION"),
        env("WEIR_TEST_S3_KEY"),
    )
}

#[test]
fn a_broker_that_is_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let sasl = format!(
        ", 'properties.security.protocol' = 'SASL_SSL', 'properties.sasl.mechanism' = 'PLAIN', \
         'properties.sasl.username' = 'weir', 'properties.sasl.password' = '{PASSWORD}'"
    );
    let login = format!(", 'username' = 'weir', 'password' = '{PASSWORD}'");
    let sources = [
        kafka("127.0.0.1:1", "t", ""),
        kafka("127.0.0.1:1", "t", &sasl),
        mqtt("127.0.0.1:1", "t", &folder.path().join("journal"), &login),
    ];
    let runs: Vec<Run> = sources
        .iter()
        .enumerate()
        .map(|(i, source)| {
            let own = folder.path().join(i.to_string());
            fs::create_dir(&own).unwrap();
            Run::start(&own, &copy(source, &to_nowhere()))
        })
        .collect();
    for run in runs {
        let said = run.fails();
        assert!(said.contains("127.0.0.1:1") && said.contains("refused"), "{said}");
    }
}

#[test]
fn a_wrong_password() {
    let folder = tempfile::tempdir().unwrap();
    let ca = env("WEIR_TEST_KAFKA_SASL_CA");
    let more = format!(
        ", 'properties.security.protocol' = 'SASL_SSL', 'properties.ssl.ca.location' = '{ca}', \
         'properties.sasl.mechanism' = 'SCRAM-SHA-512', 'properties.sasl.username' = 'weir', \
         'properties.sasl.password' = '{PASSWORD}'"
    );
    let source = kafka(&env("WEIR_TEST_KAFKA_SASL"), "t", &more);
    let said = Run::start(folder.path(), &copy(&source, &to_nowhere())).fails();
    assert!(said.contains("refuses to authenticate"), "{said}");

    let more = format!(", 'username' = 'weir', 'password' = '{PASSWORD}'");
    let journal = folder.path().join("journal");
    let source = mqtt(&env("WEIR_TEST_MQTT_PASSWORD"), "t", &journal, &more);
    let said = Run::start(folder.path(), &copy(&source, &to_nowhere())).fails();
    assert!(said.contains("refuses table `a`"), "{said}");

    let server = locked_role();
    let to = format!(
        "'connector' = 'postgres', 'table-name' = 'locked', \
         'url' = 'postgresql://weir_locked:{PASSWORD}@{server}/postgres'"
    );
    let input = folder.path().join("in");
    write_input(&input, 10, 50);
    let said = Run::start(folder.path(), &copy(&files(&input, "json"), &to)).fails();
    assert!(said.contains("password authentication failed"), "{said}");
}

/// Makes a role `weir_locked` that the server lets in with a password only: all others are trusted.
/// Gives the server's host and port.
fn locked_role() -> String {
    cell("DROP ROLE IF EXISTS weir_locked");
    cell("CREATE ROLE weir_locked LOGIN PASSWORD 'another-one'");
    cell(
        "COPY (SELECT 'host all weir_locked 127.0.0.1/32 scram-sha-256') \
         TO PROGRAM 'cat - pg_hba.conf > pg_hba.next && mv pg_hba.next pg_hba.conf'",
    );
    cell("SELECT pg_reload_conf()");
    let url = env("WEIR_TEST_POSTGRES");
    let server = url.split(['@', '/']).nth(3).unwrap().to_owned();
    let locked = format!("postgresql://weir_locked@{server}/postgres");
    until("the role is locked", || {
        let tried = Command::new("psql").args([&locked, "-w", "-c", "SELECT 1"]).output().unwrap();
        !tried.status.success()
    });
    server
}

#[test]
fn a_bucket_that_cannot_be_written_to() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_input(&input, 10, 50);
    let from = files(&input, "json");
    let ours = format!("s3://{}/bad-endings", env("WEIR_TEST_S3_BUCKET"));
    let said = Run::start(folder.path(), &copy(&from, &s3(&ours, PASSWORD))).fails();
    assert!(said.contains("access denied"), "{said}");
    let none = s3("s3://weir-no-such-bucket/x", &env("WEIR_TEST_S3_SECRET"));
    let said = Run::start(folder.path(), &copy(&from, &none)).fails();
    assert!(said.contains("no bucket `weir-no-such-bucket`"), "{said}");
}

#[test]
fn a_truncated_parquet_file() {
    let folder = tempfile::tempdir().unwrap();
    let (input, parquet) = (folder.path().join("in"), folder.path().join("parquet"));
    write_input(&input, 50_000, 60);
    let sql = copy(&files(&input, "json"), &files(&parquet, "parquet"));
    assert!(Run::start(folder.path(), &sql).ended().success());
    let file = fs::read_dir(&parquet).unwrap().next().unwrap().unwrap().path();
    let whole = fs::metadata(&file).unwrap().len();
    let out = folder.path().join("out");
    for length in [whole - 1, whole / 2, 3, 0] {
        File::options().write(true).open(&file).unwrap().set_len(length).unwrap();
        let sql = copy(&files(&parquet, "parquet"), &files(&out, "json"));
        let said = Run::start(folder.path(), &sql).fails();
        let named = file.file_name().unwrap().to_str().unwrap();
        assert!(said.contains(named) && said.contains("table `a`"), "{length}: {said}");
    }
}

/// A shell with a disk of its own at `disk`, that runs `before` on it and then becomes weir. The
/// disk is a tmpfs in a mount namespace that only this process and its children see.
fn on_small_disk(disk: &Path, size: &str, before: &str) -> Command {
    fs::create_dir_all(disk).unwrap();
    let mount = format!("mount -t tmpfs -o size={size} none '{}'", disk.display());
    let works = |flags: &&str| {
        let tried = Command::new("unshare").args([flags, "sh", "-c", &mount]).output();
        tried.is_ok_and(|tried| tried.status.success())
    };
    let flags = ["-m", "-rm"].into_iter().find(works).unwrap_or_else(|| {
        panic!("this test mounts a tmpfs: it needs root or user namespaces (`unshare -rm`)")
    });
    let mut command = Command::new("unshare");
    let script = format!("{mount} && {before} exec '{WEIR}' \"$@\"");
    command.args([flags, "sh", "-c", &script, "sh"]);
    command
}

#[test]
fn a_disk_that_fills_up_under_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let (input, disk) = (folder.path().join("in"), folder.path().join("disk"));
    write_input(&input, 40_000, 100);
    for format in ["json", "parquet"] {
        let small = if format == "json" { "1m" } else { "64k" };
        let to = files(&disk.join("out"), format);
        let sql = copy(&files(&input, "json"), &to);
        let run = Run::of(on_small_disk(&disk, small, ""), &[], folder.path(), &sql);
        let said = run.fails().to_lowercase();
        assert!(said.contains("no space left") && said.contains("table `b`"), "{format}: {said}");
        assert!(said.contains("disk/out"), "{said}");
    }
    // Files for a bucket are staged on a disk too.
    let to = s3(&format!("s3://{}/full", env("WEIR_TEST_S3_BUCKET")), &env("WEIR_TEST_S3_SECRET"));
    let mut command = on_small_disk(&disk, "64k", "");
    command.env("TMPDIR", &disk);
    let sql = copy(&files(&input, "json"), &to);
    let said = Run::of(command, &[], folder.path(), &sql).fails().to_lowercase();
    assert!(said.contains("no space left") && said.contains("tmpdir"), "{said}");
}

pub(crate) fn publish(address: &str, topic: &str, lines: &str) {
    let (host, port) = address.split_once(':').unwrap();
    let mut client = Command::new("mosquitto_pub")
        .args(["-h", host, "-p", port, "-q", "1", "-l", "-t", topic])
        .stdin(Stdio::piped())
        .spawn()
        .expect("mosquitto_pub is installed");
    client.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    assert!(client.wait().unwrap().success());
}

/// Waits until the slot of a journal has subscribed.
fn subscribed(journal: &Path) {
    until("a subscription", || {
        let session = journal.join("0/session");
        fs::read_to_string(session).is_ok_and(|text| text.lines().count() == 2)
    });
}

/// How many different rows are in JSON files below a folder.
fn distinct_rows(folder: &Path) -> usize {
    let mut rows = std::collections::BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with('.') {
            let text = fs::read_to_string(entry.path()).unwrap();
            rows.extend(text.lines().map(str::to_owned));
        }
    }
    rows.len()
}

#[test]
fn a_disk_that_fills_up_under_the_journal_has_room_again() {
    let folder = tempfile::tempdir().unwrap();
    let (disk, out) = (folder.path().join("disk"), folder.path().join("out"));
    let room = folder.path().join("make-room");
    // Nobody outside sees the disk, so what is to happen on it is arranged before.
    let before = format!(
        "cd '{}' && head -c 3500k /dev/zero > filler && \
         {{ (while [ ! -e '{room}' ]; do sleep 0.1; done; rm filler) & }} ; cd / ;",
        disk.display(),
        room = room.display()
    );
    let (broker, topic) = (env("WEIR_TEST_MQTT"), name("full-journal"));
    let source = mqtt(&broker, &topic, &disk.join("journal"), "");
    let command = on_small_disk(&disk, "4m", &before);
    let mut run = Run::of(command, &[], folder.path(), &copy(&source, &soon(&out)));
    let log = PathBuf::from(env("WEIR_TEST_MQTT_LOG"));
    until("a subscription", || {
        String::from_utf8_lossy(&fs::read(&log).unwrap()).contains(topic.as_str())
    });
    let filler = "y".repeat(480);
    let lines: String = (0..4_000).map(|n| format!("{{\"n\":{n},\"t\":\"{filler}\"}}\n")).collect();
    publish(&broker, &topic, &lines);
    run.says("trying again");
    assert!(run.said().to_lowercase().contains("no space left"), "{}", run.said());
    fs::write(&room, "").unwrap();
    run.says("reached again");
    until("all rows", || distinct_rows(&out) == 4_000);
    run.interrupted();
}

/// A Mosquitto of the test's own.
struct Broker {
    child: Child,
    conf: PathBuf,
    port: u16,
}

impl Broker {
    fn start(folder: &Path) -> Broker {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let conf = folder.join("broker.conf");
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap();
        let text = format!("user {user}allow_anonymous true\nlistener {port} 127.0.0.1\n");
        fs::write(&conf, text).unwrap();
        let mut broker = Broker { child: Broker::launch(&conf), conf, port };
        broker.ready();
        broker
    }

    fn launch(conf: &Path) -> Child {
        let known = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"];
        let program = known.into_iter().find(|path| Path::new(path).exists());
        Command::new(program.unwrap_or("mosquitto"))
            .arg("-c")
            .arg(conf)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is installed")
    }

    fn ready(&mut self) {
        until("mosquitto listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_broker_that_goes_away_in_the_middle_is_said_and_waited_for() {
    for processes in ["1", "2"] {
        let folder = tempfile::tempdir().unwrap();
        let mut broker = Broker::start(folder.path());
        let address = format!("127.0.0.1:{}", broker.port);
        let (journal, out) = (folder.path().join("journal"), folder.path().join("out"));
        let source = mqtt(&address, "t", &journal, "");
        let sql = copy(&source, &soon(&out));
        let flags = ["--processes", processes];
        let mut run = Run::of(Command::new(WEIR), &flags, folder.path(), &sql);
        subscribed(&journal);
        publish(&address, "t", "{\"n\":1,\"t\":\"before\"}\n");
        until("the first row", || distinct_rows(&out) == 1);
        broker.kill();
        run.says("trying again");
        broker.child = Broker::launch(&broker.conf);
        broker.ready();
        run.says("reached again");
        // The new broker knows no session: until it has subscribed again, it gets nothing.
        run.says("forgotten the session");
        until("the second row", || {
            publish(&address, "t", "{\"n\":2,\"t\":\"after\"}\n");
            distinct_rows(&out) == 2
        });
        run.interrupted();
    }
}

#[test]
fn a_database_that_goes_away_in_the_middle_is_said_and_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let topic = name("lost-database");
    let table = topic.replace('-', "_");
    let proxy = Proxy::to_postgres(&topic);
    let listen = proxy.listen;
    let to = format!(
        "'connector' = 'postgres', 'table-name' = '{table}', \
         'url' = 'postgresql://postgres:{PASSWORD}@{listen}/postgres'"
    );
    let broker = env("WEIR_TEST_MQTT");
    let journal = folder.path().join("journal");
    let mut run = Run::start(folder.path(), &copy(&mqtt(&broker, &topic, &journal, ""), &to));
    subscribed(&journal);
    publish(&broker, &topic, "{\"n\":1,\"t\":\"before\"}\n");
    let count = format!("SELECT count(*) FROM {table}");
    until("the first row", || cell(&count) == "1");
    proxy.enable(false);
    publish(&broker, &topic, "{\"n\":2,\"t\":\"meanwhile\"}\n");
    run.says("trying again");
    proxy.enable(true);
    run.says("reached again");
    until("the second row", || cell(&count) == "2");
    let said = run.interrupted();
    assert!(said.contains("PostgreSQL at postgresql://postgres@127.0.0.1"), "{said}");
    cell(&format!("DROP TABLE {table}"));
}
