//! Beside the tests: a Mosquitto of a test's own, a publisher on a plain socket, and a table.
//!
//! The publisher shares no code with Weir, so that a misreading of the standard shows.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arrow::datatypes::DataType;
use weir_engine::connector::{ColumnSpec, TableSpec};

/// What a test reads from the environment; `cargo xtask services up` sets it.
pub(crate) fn environment(name: &str) -> String {
    std::env::var(name)
        .unwrap_or_else(|_| panic!("{name} is not set: run `cargo xtask services up` and set it"))
}

/// Waits until something holds, for a generous time.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(60), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A Mosquitto process, killed with the value.
pub(crate) struct Mosquitto {
    child: Child,
    folder: PathBuf,
    pub(crate) port: u16,
}

impl Mosquitto {
    /// Starts one with these further settings, data and log in `folder`.
    pub(crate) fn start(folder: &Path, settings: &str) -> Mosquitto {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let user = Command::new("id").arg("-un").output().unwrap().stdout;
        let user = String::from_utf8(user).unwrap();
        let shown = folder.display();
        let config = format!(
            "user {user}allow_anonymous true\nlistener {port} 127.0.0.1\nmax_queued_messages 0\n\
             persistence_location {shown}/\nlog_dest file {shown}/log\n{settings}\n"
        );
        std::fs::write(folder.join("conf"), config).unwrap();
        let child = Mosquitto::launch(folder);
        let server = Mosquitto { child, folder: folder.to_owned(), port };
        server.wait();
        server
    }

    fn launch(folder: &Path) -> Child {
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "mosquitto"]
            .into_iter()
            .find(|path| !path.starts_with('/') || Path::new(path).exists())
            .unwrap();
        Command::new(program)
            .arg("-c")
            .arg(folder.join("conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("mosquitto is installed")
    }

    fn wait(&self) {
        until("mosquitto listens", || TcpStream::connect(("127.0.0.1", self.port)).is_ok());
    }

    pub(crate) fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.child = Mosquitto::launch(&self.folder);
        self.wait();
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A publisher of MQTT 3.1.1, QoS 0 and 1, on one connection.
pub(crate) struct Publisher {
    stream: TcpStream,
    buffer: Vec<u8>,
    received: Vec<u8>,
    id: u16,
    unacknowledged: usize,
}

impl Publisher {
    pub(crate) fn connect(address: &str) -> Publisher {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut publisher = Publisher {
            stream,
            buffer: Vec::new(),
            received: Vec::new(),
            id: 0,
            unacknowledged: 0,
        };
        // CONNECT, clean session, no keep-alive, the broker chooses a client id.
        publisher.stream.write_all(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00").unwrap();
        let mut answer = [0; 4];
        publisher.stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [0x20, 2, 0, 0]);
        publisher
    }

    /// Sends a message, and keeps no more than 20 000 of them unacknowledged: a
    /// publisher that stops for every few waits for answers that brokers hold back (Nagle).
    pub(crate) fn publish(&mut self, topic: &str, payload: &[u8], qos: u8) {
        let mut left = 2 + topic.len() + payload.len() + if qos > 0 { 2 } else { 0 };
        self.buffer.push(0x30 | qos << 1);
        while left > 127 {
            self.buffer.push((left % 128) as u8 | 0x80);
            left /= 128;
        }
        self.buffer.push(left as u8);
        self.buffer.extend_from_slice(&(topic.len() as u16).to_be_bytes());
        self.buffer.extend_from_slice(topic.as_bytes());
        if qos > 0 {
            self.id = self.id.checked_add(1).unwrap_or(1);
            self.buffer.extend_from_slice(&self.id.to_be_bytes());
            self.unacknowledged += 1;
        }
        self.buffer.extend_from_slice(payload);
        if self.buffer.len() > 1 << 16 || self.unacknowledged >= 20_000 {
            self.flush();
            while self.unacknowledged >= 20_000 {
                self.hear();
            }
        }
    }

    pub(crate) fn flush(&mut self) {
        self.stream.write_all(&self.buffer).unwrap();
        self.buffer.clear();
    }

    /// Sends everything and waits until the broker has it.
    pub(crate) fn finish(&mut self) {
        self.flush();
        while self.unacknowledged > 0 {
            self.hear();
        }
    }

    /// Every packet that a publisher gets with these features is a PUBACK of four bytes.
    fn hear(&mut self) {
        let mut bytes = [0; 4096];
        let read = self.stream.read(&mut bytes).unwrap();
        assert_ne!(read, 0, "the broker hung up");
        self.received.extend_from_slice(&bytes[..read]);
        let whole = self.received.len() / 4;
        assert!(self.received.chunks_exact(4).all(|ack| ack[..2] == [0x40, 2]));
        self.received.drain(..whole * 4);
        self.unacknowledged -= whole;
    }
}

/// A table of the columns `n BIGINT NOT NULL`, `split`, `offset`, `topic`, `arrival`.
pub(crate) fn table(url: &str, topic: &str, journal: &Path, more: &[(&str, &str)]) -> TableSpec {
    let column = |name: &str, data_type: DataType, metadata: Option<&str>| ColumnSpec {
        name: name.to_owned(),
        data_type,
        nullable: metadata.is_some(),
        metadata: metadata.map(str::to_owned),
    };
    let journal = journal.display().to_string();
    let mut options = BTreeMap::from([
        ("connector".to_owned(), "mqtt".to_owned()),
        ("url".to_owned(), url.to_owned()),
        ("topic".to_owned(), topic.to_owned()),
        ("journal.path".to_owned(), journal),
        ("format".to_owned(), "json".to_owned()),
    ]);
    options.extend(more.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())));
    let utc = DataType::Timestamp(arrow::datatypes::TimeUnit::Millisecond, Some("UTC".into()));
    TableSpec {
        name: "readings".to_owned(),
        columns: vec![
            column("n", DataType::Int64, None),
            column("slot", DataType::Utf8, Some("split")),
            column("at", DataType::Int64, Some("offset")),
            column("topic", DataType::Utf8, Some("topic")),
            column("came", utc, Some("arrival")),
        ],
        options,
        primary_key: Vec::new(),
        partitioned_by: Vec::new(),
        event_time: None,
        keyed: Vec::new(),
        pushed: Vec::new(),
    }
}
