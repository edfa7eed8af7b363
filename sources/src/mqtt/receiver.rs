//! The receiving thread of a slot: broker to journal, and nothing else.
//!
//! It never waits for the dataflow, because brokers drop what waits too long; it stops receiving
//! only when the journal has reached its limit. All that a read brings shares one fsync, and the
//! next read follows at once, so a faster stream makes larger groups.
//!
//! # Sessions
//! The client id is stable, and the session outlives the connection: what comes meanwhile is kept
//! by the broker. A file beside the journal remembers the id and what was subscribed. If the broker
//! knows no session where there was one, it has forgotten what came meanwhile: that is said.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use weir_connect::retry::Retrying;
use weir_engine::connector::ConnectorError;
use weir_engine::source::SplitQueue;

use super::connection::{Connection, Heard, READ_TIME, lost, stranger};
use super::inbox::Batch;
use super::options::Client;
use super::packet::{self, Malformed, Protocol};
use super::{SlotFolder, lost_copy};
use weir_engine::journal::{Journal, JournalError, is_lost};

const BREAK_TIME: Duration = Duration::from_secs(1);
/// The file in a slot's folders that has its [`Identity`].
const IDENTITY: &str = "session";
const IDENTITY_BYTES_MAX: usize = 64 << 10;

/// What receiver, feeder and handle of a slot know of each other.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) stop: AtomicBool,
    /// Nothing came at the last read, and the subscription stands.
    pub(super) quiet: AtomicBool,
    /// Messages beyond the size limit since the start.
    pub(super) cut: AtomicU64,
    /// Messages below this offset will not be read again.
    pub(super) needed_from: AtomicU64,
}

/// What the broker and this slot know of each other, kept beside the journal.
pub(super) struct Identity {
    /// In each of them it is kept.
    folders: Vec<SlotFolder>,
    client_id: String,
    /// Filter and QoS that were subscribed, if the broker confirmed it.
    subscribed: Option<String>,
}

impl Identity {
    /// Reads it from the slot's folders, or makes it.
    pub(super) fn open(
        client: &Client,
        folders: Vec<SlotFolder>,
        slot: u64,
    ) -> io::Result<Identity> {
        let mut kept = String::new();
        for folder in &folders {
            let mut bytes = vec![0; IDENTITY_BYTES_MAX];
            match folder.disk.read(IDENTITY, 0, &mut bytes) {
                Ok(read) if kept.is_empty() => {
                    bytes.truncate(read);
                    kept = String::from_utf8(bytes).map_err(io::Error::other)?;
                }
                Ok(_) => {}
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(e),
            }
        }
        let mut lines = kept.lines().map(str::to_owned);
        let (kept_id, subscribed) = (lines.next(), lines.next());
        let client_id = match (&client.client_id, &kept_id) {
            (Some(prefix), _) => format!("{prefix}-{slot}"),
            (None, Some(id)) => id.clone(),
            (None, None) => {
                let chance = RandomState::new().build_hasher().finish() as u32;
                format!("weir-{}-{chance:08x}-{slot}", client.table)
            }
        };
        // Another id is another session.
        let subscribed = subscribed.filter(|_| kept_id.as_ref() == Some(&client_id));
        let identity = Identity { folders, client_id, subscribed };
        identity.keep()?;
        Ok(identity)
    }

    fn keep(&self) -> io::Result<()> {
        let text =
            format!("{}\n{}", self.client_id, self.subscribed.as_deref().unwrap_or_default());
        let text = text.trim_end().as_bytes();
        self.folders.iter().try_for_each(|folder| folder.disk.replace(IDENTITY, text))
    }

    fn subscribed(&mut self, what: &str) -> io::Result<()> {
        if self.subscribed.as_deref() == Some(what) {
            return Ok(());
        }
        self.subscribed = Some(what.to_owned());
        self.keep()
    }
}

/// The parts of what a person should know about the slot, put together in one notice.
#[derive(Default)]
struct Notices {
    session: Option<String>,
    journal: Option<String>,
    /// Why nothing is trimmed; for the log alone.
    trim: Option<String>,
    cut: Option<String>,
}

/// The receiving end of a slot.
pub(super) struct Receiver {
    pub(super) client: Client,
    pub(super) filter: String,
    pub(super) slot: u64,
    pub(super) journal: Journal,
    pub(super) identity: Identity,
    pub(super) queue: Arc<SplitQueue>,
    pub(super) shared: Arc<Shared>,
}

/// Why a connection's work is over.
enum End {
    Stopped,
    Lost(ConnectorError),
}

impl Receiver {
    /// Receives until somebody asks to stop or it cannot go on.
    pub(super) fn run(mut self) {
        let (queue, shared) = (Arc::clone(&self.queue), Arc::clone(&self.shared));
        let retrying = Retrying::new(
            format!(
                "MQTT broker at {} for table `{}`, slot {}",
                self.client.address, self.client.table, self.slot
            ),
            |notice| queue.notice(notice),
            || shared.stop.load(Ordering::Relaxed),
        );
        let mut retrying = retrying.known(queue.is_known());
        queue.connected(false);
        loop {
            let begun = Instant::now();
            let end = match Connection::open(&self.client, &self.identity.client_id) {
                Ok(connection) => {
                    retrying.succeeded();
                    self.serve(connection)
                }
                Err(e) => End::Lost(e),
            };
            queue.connected(false);
            shared.quiet.store(false, Ordering::Relaxed);
            let error = match end {
                End::Stopped => return,
                End::Lost(error) => error,
            };
            if self.stopped() {
                return;
            }
            let now = Instant::now();
            match retrying.failed(error, now) {
                // Connections that break as soon as they are made must not follow each other
                // closely.
                Ok(wait) => self.rest(wait.max(BREAK_TIME.saturating_sub(now - begun))),
                Err(error) => {
                    queue.fail(error);
                    return;
                }
            }
        }
    }

    fn stopped(&self) -> bool {
        self.shared.stop.load(Ordering::Relaxed) || self.queue.is_closed()
    }

    fn rest(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() && !self.stopped() {
            let nap = left.min(READ_TIME);
            std::thread::sleep(nap);
            left -= nap;
        }
    }

    /// Serves one connection until it ends.
    fn serve(&mut self, mut connection: Connection) -> End {
        let mut notices = Notices::default();
        let ready = self.resume(&mut connection, &mut notices);
        if let Err(e) = ready.and_then(|()| connection.listen()) {
            return End::Lost(self.lost(&e));
        }
        self.queue.connected(true);
        self.say(&notices);
        let mut batch = Batch::default();
        // What the broker kept for the session may have come with its answer to CONNECT.
        if let Err(e) = self.digest(&mut connection, &mut batch, &mut notices) {
            return End::Lost(e);
        }
        loop {
            if self.stopped() {
                connection.close();
                return End::Stopped;
            }
            let full = match self.watch_size(&mut notices) {
                Ok(full) => full,
                Err(e) => return End::Lost(e),
            };
            if let Err(e) = connection.probe(full) {
                return End::Lost(self.lost(&e));
            }
            if full {
                self.shared.quiet.store(false, Ordering::Relaxed);
                std::thread::sleep(READ_TIME);
                continue;
            }
            match connection.hear() {
                Ok(Heard::Something) => self.shared.quiet.store(false, Ordering::Relaxed),
                Ok(Heard::Nothing) => {
                    self.shared.quiet.store(self.identity.subscribed.is_some(), Ordering::Relaxed);
                    continue;
                }
                Err(e) => return End::Lost(self.lost(&e)),
            }
            if let Err(e) = self.digest(&mut connection, &mut batch, &mut notices) {
                return End::Lost(e);
            }
        }
    }

    /// Everything that one read brought: into the journal, on disk, acknowledged.
    fn digest(
        &mut self,
        connection: &mut Connection,
        batch: &mut Batch,
        notices: &mut Notices,
    ) -> Result<(), ConnectorError> {
        let at = self.client.address.to_string();
        let arrival = now_ms();
        loop {
            let frame = match connection.frames.next() {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(e) => return Err(stranger(&at, &e)),
            };
            match frame.kind() {
                packet::PUBLISH => {
                    let publish = packet::read_publish(&frame, self.client.protocol)
                        .map_err(|e| stranger(&at, &e))?;
                    let whole = frame.body.len() == frame.whole;
                    if !whole {
                        let n = self.shared.cut.fetch_add(1, Ordering::Relaxed) + 1;
                        notices.cut = Some(self.too_large(publish.topic, frame.whole, n));
                    }
                    batch
                        .take(&mut self.journal, &publish, whole, arrival)
                        .map_err(|e| self.journal_error(&e))?;
                }
                packet::SUBACK => {
                    let code = packet::read_suback(frame.body, self.client.protocol)
                        .map_err(|e| stranger(&at, &e))?;
                    self.subscribed(code)?;
                }
                packet::DISCONNECT => return Err(self.dismissed(frame.body)),
                packet::PINGRESP => {}
                _ => return Err(stranger(&at, &Malformed("a packet out of place"))),
            }
        }
        let acknowledgements =
            batch.commit(&mut self.journal).map_err(|e| journal_error(&self.client, &e))?;
        if !acknowledgements.is_empty() {
            connection.send(acknowledgements).map_err(|e| lost(&at, &e))?;
        }
        if notices.cut.is_some() {
            self.say(notices);
        }
        Ok(())
    }

    /// Goes on with the session that the broker has kept, or subscribes.
    fn resume(&mut self, connection: &mut Connection, notices: &mut Notices) -> io::Result<()> {
        let wanted = self.wanted();
        let present = connection.acknowledged.session_present;
        let known = self.identity.subscribed.is_some();
        if known && !present {
            let text =
                "the broker has forgotten the session: what came while Weir was away is lost";
            tracing::warn!(table = self.client.table, slot = self.slot, "{text}");
            notices.session = Some(text.to_owned());
            self.identity.subscribed = None;
        }
        if present && self.identity.subscribed.as_deref() == Some(&wanted) {
            return Ok(());
        }
        self.identity.subscribed = None;
        connection.subscribe(&self.client, &self.filter)
    }

    fn wanted(&self) -> String {
        format!("{} {}", self.client.qos, self.filter)
    }

    fn subscribed(&mut self, code: u8) -> Result<(), ConnectorError> {
        let address = &self.client.address;
        if code >= 0x80 {
            let filter = &self.filter;
            let message = format!(
                "the MQTT broker at {address} refuses to subscribe to '{filter}', code {code}"
            );
            return Err(ConnectorError::reconfigure(message)
                .hint("check 'topic', and what the broker allows this user"));
        }
        if code < self.client.qos {
            tracing::warn!(
                table = self.client.table,
                slot = self.slot,
                "the broker grants QoS 0 only: what is under way when something fails is lost"
            );
        }
        let wanted = self.wanted();
        self.identity.subscribed(&wanted).map_err(|e| {
            if is_lost(&e) {
                return lost_copy(&self.client, &e);
            }
            let path = self.client.journal_path.display();
            let message = format!("cannot write `{IDENTITY}` of slot {} in {path}: {e}", self.slot);
            ConnectorError::fatal(message)
        })
    }

    /// What a broker of MQTT 5 says when it closes a connection.
    fn dismissed(&self, body: &[u8]) -> ConnectorError {
        let address = &self.client.address;
        let code = body.first().copied().unwrap_or_default();
        let why = match code {
            0x8E => "another client has taken over its session (is the same job running twice?)",
            0x8B => "it is shutting down",
            0x89 => "it is busy",
            0x97 => "a quota is exceeded",
            _ => "no reason known here",
        };
        debug_assert!(self.client.protocol == Protocol::V5 || body.is_empty());
        ConnectorError::retry(format!(
            "the MQTT broker at {address} closed the connection: {why}, code {code}"
        ))
    }

    fn lost(&self, error: &io::Error) -> ConnectorError {
        lost(&self.client.address.to_string(), error)
    }

    fn journal_error(&self, error: &JournalError) -> ConnectorError {
        journal_error(&self.client, error)
    }

    fn too_large(&self, topic: &str, bytes: usize, n: u64) -> String {
        let limit = self.client.packet_bytes_max;
        // The first, the tenth, the hundredth: a device that does it once does it all day.
        if n.checked_ilog10() != (n - 1).checked_ilog10() {
            tracing::warn!(
                table = self.client.table,
                slot = self.slot,
                topic,
                bytes,
                limit,
                messages = n,
                "message larger than 'packet.bytes-max': a bad row"
            );
        }
        format!("{n} messages larger than 'packet.bytes-max' ({limit} bytes) are bad rows")
    }

    /// Trims the journal, and says when it nears its limit; whether it has reached it.
    fn watch_size(&mut self, notices: &mut Notices) -> Result<bool, ConnectorError> {
        match self.journal.trim(self.shared.needed_from.load(Ordering::Relaxed)) {
            Ok(()) => notices.trim = None,
            Err(error) if error.is_lost() => return Err(self.journal_error(&error)),
            Err(error) => {
                // What stays does no harm, and is tried again.
                let text = format!("the journal is not trimmed: {error}");
                if notices.trim.as_ref() != Some(&text) {
                    tracing::warn!(table = self.client.table, slot = self.slot, "{text}");
                    notices.trim = Some(text);
                }
            }
        }
        let (bytes, limit) = (self.journal.bytes(), self.client.journal_bytes_max);
        let alarm = bytes >= limit / 10 * 8;
        if alarm != notices.journal.is_some() || bytes >= limit {
            let mb = |bytes: u64| bytes >> 20;
            let text = alarm.then(|| {
                let stopped = if bytes >= limit { ", receiving has stopped" } else { "" };
                format!("the journal holds {} of {} MB{stopped}", mb(bytes), mb(limit))
            });
            if text != notices.journal {
                if let Some(text) = &text {
                    tracing::warn!(
                        table = self.client.table,
                        slot = self.slot,
                        "{text}; raise 'journal.bytes-max'"
                    );
                }
                notices.journal = text;
                self.say(notices);
            }
        }
        Ok(bytes >= limit)
    }

    fn say(&self, notices: &Notices) {
        let parts = [&notices.session, &notices.journal, &notices.cut];
        let text: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        self.queue.notice(if text.is_empty() { None } else { Some(text.join("; ")) });
    }
}

/// A full disk may have room again; what was not acknowledged comes again.
fn journal_error(client: &Client, error: &JournalError) -> ConnectorError {
    let path = client.journal_path.display();
    let message = format!("table `{}`, {path}: {error}", client.table);
    match error {
        error if error.is_lost() => lost_copy(client, error),
        JournalError::Io { doing: "append to" | "begin", .. } => ConnectorError::retry(message),
        _ => ConnectorError::fatal(message),
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
