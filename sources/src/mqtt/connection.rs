//! One connection to a broker: TCP or TLS, the handshake, the subscription.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use weir_connect::tls::client_config;
use weir_engine::connector::ConnectorError;

use super::options::Client;
use super::packet::{self, ConnAck, Connect, Frames, Malformed, Protocol};

const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a read waits: a reader looks that often whether it is to stop.
pub(super) const READ_TIME: Duration = Duration::from_millis(100);

enum Stream {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Read for Stream {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.read(into),
            Stream::Tls(stream) => stream.read(into),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Stream::Plain(stream) => stream.write(bytes),
            Stream::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stream::Plain(stream) => stream.flush(),
            Stream::Tls(stream) => stream.flush(),
        }
    }
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    Something,
    Nothing,
}

/// A connection whose handshake is done.
pub(super) struct Connection {
    stream: Stream,
    pub(super) frames: Frames,
    pub(super) acknowledged: ConnAck,
    /// When something was last sent, and last heard.
    sent: Instant,
    heard: Instant,
    keep_alive: Duration,
    at: String,
}

impl Connection {
    /// Connects as `client_id`, with a session that outlives the connection.
    ///
    /// # Errors
    /// `Reconfigure` for what repetition does not mend: certificates, password, version, client id.
    pub(super) fn open(client: &Client, client_id: &str) -> Result<Connection, ConnectorError> {
        let at = client.address.to_string();
        let stream = dial(client)?;
        let mut connection = Connection {
            stream,
            frames: Frames::new(client.packet_bytes_max),
            acknowledged: ConnAck::default(),
            sent: Instant::now(),
            heard: Instant::now(),
            keep_alive: client.keep_alive,
            at,
        };
        let mut hello = Vec::new();
        packet::write_connect(
            &mut hello,
            &Connect {
                protocol: client.protocol,
                client_id,
                clean_session: false,
                keep_alive_s: client.keep_alive.as_secs() as u16,
                username: client.username.as_deref(),
                password: client.password.as_ref().map(|p| p.expose()),
                session_expiry_s: client.session_expiry_s,
            },
        );
        connection.send(&hello).map_err(|e| connection.tls_or_lost(client, &e))?;
        let acknowledged = connection.answer(client, packet::CONNACK, packet::read_connack)?;
        if let Some(seconds) = acknowledged.keep_alive.filter(|seconds| *seconds > 0) {
            connection.keep_alive = Duration::from_secs(u64::from(seconds));
        }
        if acknowledged.code != 0 {
            return Err(refusal(client, &connection.at, &acknowledged));
        }
        connection.acknowledged = acknowledged;
        Ok(connection)
    }

    /// Subscribes; messages may come before the answer does, so it is left to the reader.
    pub(super) fn subscribe(&mut self, client: &Client, filter: &str) -> io::Result<()> {
        let mut bytes = Vec::new();
        packet::write_subscribe(&mut bytes, client.protocol, filter, client.qos);
        self.send(&bytes)
    }

    /// From now on reads wait for [`READ_TIME`] only.
    pub(super) fn listen(&mut self) -> io::Result<()> {
        self.socket().set_read_timeout(Some(READ_TIME))
    }

    /// Sends all of these bytes.
    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)?;
        self.stream.flush()?;
        self.sent = Instant::now();
        Ok(())
    }

    /// Reads once, for [`READ_TIME`] at most.
    pub(super) fn hear(&mut self) -> io::Result<Heard> {
        match self.frames.fill(&mut self.stream) {
            Ok(0) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the broker hung up")),
            Ok(_) => {
                self.heard = Instant::now();
                Ok(Heard::Something)
            }
            Err(e) if is_timeout(&e) || e.kind() == io::ErrorKind::Interrupted => {
                Ok(Heard::Nothing)
            }
            Err(e) => Err(e),
        }
    }

    /// Keeps the connection alive, and finds out when the broker is gone. With `deaf`, nothing is
    /// being read, so its silence means nothing.
    pub(super) fn probe(&mut self, deaf: bool) -> io::Result<()> {
        if deaf {
            self.heard = Instant::now();
        }
        if self.heard.elapsed() > self.keep_alive * 3 / 2 {
            let silent = format!("no packet for {} s", self.heard.elapsed().as_secs());
            return Err(io::Error::new(io::ErrorKind::TimedOut, silent));
        }
        let quiet = self.sent.elapsed().max(self.heard.elapsed());
        if quiet > self.keep_alive / 2 && self.sent.elapsed() > self.keep_alive / 4 {
            let mut ping = Vec::new();
            packet::write_packet(&mut ping, packet::PINGREQ, 0, &[]);
            self.send(&ping)?;
        }
        Ok(())
    }

    /// Takes leave; the session stays.
    pub(super) fn close(mut self) {
        let mut bytes = Vec::new();
        packet::write_packet(&mut bytes, packet::DISCONNECT, 0, &[]);
        // The broker notices the closed socket just as well.
        drop(self.send(&bytes));
    }

    fn socket(&self) -> &TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            Stream::Tls(stream) => &stream.sock,
        }
    }

    /// Waits for the answer of this kind, the first packet of a connection.
    fn answer<T>(
        &mut self,
        client: &Client,
        kind: u8,
        read: impl Fn(&[u8]) -> Result<T, Malformed>,
    ) -> Result<T, ConnectorError> {
        let begun = Instant::now();
        loop {
            match self.frames.next() {
                Ok(Some(frame)) if frame.kind() == kind => {
                    return read(frame.body).map_err(|e| stranger(&self.at, &e));
                }
                Ok(Some(_)) => return Err(stranger(&self.at, &Malformed("no answer to CONNECT"))),
                Ok(None) => {}
                Err(e) => return Err(stranger(&self.at, &e)),
            }
            if begun.elapsed() > ANSWER_TIME_MAX {
                let message = format!("MQTT broker at {} does not answer", self.at);
                return Err(ConnectorError::retry(message));
            }
            self.hear().map_err(|e| self.tls_or_lost(client, &e))?;
        }
    }

    fn tls_or_lost(&self, client: &Client, error: &io::Error) -> ConnectorError {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(e @ rustls::Error::InvalidCertificate(_)) => ConnectorError::reconfigure(format!(
                "TLS with the MQTT broker at {} for table `{}` fails: {e}",
                self.at, client.table
            ))
            .hint("name the file of the authority that signed its certificate in 'tls.ca'"),
            Some(e @ rustls::Error::AlertReceived(_)) => ConnectorError::reconfigure(format!(
                "the MQTT broker at {} refuses TLS with table `{}`: {e}",
                self.at, client.table
            ))
            .hint("it may want a client certificate: 'tls.cert' and 'tls.key'"),
            Some(e) => ConnectorError::reconfigure(format!(
                "the MQTT broker at {} does not speak TLS: {e}",
                self.at
            ))
            .hint("use mqtt:// for a port without TLS"),
            None => lost(&self.at, error),
        }
    }
}

pub(super) fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

/// The connection broke.
pub(super) fn lost(at: &str, error: &io::Error) -> ConnectorError {
    ConnectorError::retry(format!("connection to the MQTT broker at {at} lost: {error}"))
}

/// Whoever is there does not speak MQTT as it should.
pub(super) fn stranger(at: &str, error: &Malformed) -> ConnectorError {
    ConnectorError::retry(format!("server at {at}: {error}"))
}

fn dial(client: &Client) -> Result<Stream, ConnectorError> {
    let at = &client.address;
    let unreachable = |e: &dyn std::fmt::Display| {
        ConnectorError::retry(format!(
            "cannot reach the MQTT broker at {at} for table `{}`: {e}",
            client.table
        ))
    };
    let addresses = (at.host.as_str(), at.port).to_socket_addrs().map_err(|e| unreachable(&e))?;
    let mut last = io::Error::other("its name has no address");
    let mut connected = None;
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIME_MAX) {
            Ok(stream) => {
                connected = Some(stream);
                break;
            }
            Err(e) => last = e,
        }
    }
    let stream = connected.ok_or_else(|| unreachable(&last))?;
    stream
        .set_nodelay(true)
        .and_then(|()| stream.set_read_timeout(Some(ANSWER_TIME_MAX)))
        .and_then(|()| stream.set_write_timeout(Some(ANSWER_TIME_MAX)))
        .map_err(|e| unreachable(&e))?;
    if !at.tls {
        return Ok(Stream::Plain(stream));
    }
    let name = ServerName::try_from(at.host.clone()).map_err(|e| {
        ConnectorError::reconfigure(format!("'{}' is no name that TLS can check: {e}", at.host))
    })?;
    let config = Arc::new(client_config(&client.tls)?);
    let session = ClientConnection::new(config, name)
        .map_err(|e| ConnectorError::fatal(format!("TLS cannot be set up: {e}")))?;
    Ok(Stream::Tls(Box::new(StreamOwned::new(session, stream))))
}

/// What a CONNACK with a code other than 0 means.
fn refusal(client: &Client, at: &str, ack: &ConnAck) -> ConnectorError {
    let (mends, why, hint) = match (client.protocol, ack.code) {
        (_, 1 | 0x84) => (false, "it does not speak this version", "change 'mqtt.version'"),
        (_, 2 | 0x85) => (false, "it does not accept the client id", "set 'client-id'"),
        (Protocol::V311, 3) | (Protocol::V5, 0x88 | 0x89) => (true, "it is not available now", ""),
        (_, 4 | 0x86) => (false, "wrong user name or password", "check 'username' and 'password'"),
        (_, 5 | 0x87 | 0x8A) => {
            (false, "not authorised", "check 'username' and 'password', and the broker's rules")
        }
        _ => (true, "it gives no reason", ""),
    };
    let said = ack.reason.as_deref().map(|r| format!(" ({r})")).unwrap_or_default();
    let message = format!(
        "the MQTT broker at {at} refuses table `{}`: {why}{said}, code {}",
        client.table, ack.code
    );
    if mends {
        ConnectorError::retry(message)
    } else {
        ConnectorError::reconfigure(message).hint(hint)
    }
}
