//! A meter gateway: sends the messages of a region over one MQTT connection, at the demo's pace.
//!
//! Speaks the few packets of MQTT 3.1.1 that a publisher needs, with QoS 1: what is not
//! acknowledged is counted as open, and no more than [`OPEN_MAX`] messages are.

use std::io::{self, BufWriter, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::stream::{RegionStream, Sent};

/// Messages that may wait for their acknowledgement.
const OPEN_MAX: u64 = 2_000;
/// Messages due within this time travel together.
const TOGETHER: Duration = Duration::from_millis(4);
/// How long a gateway sleeps on after somebody has asked for the end.
const STOP_LOOK: Duration = Duration::from_millis(100);
/// How long the broker may take to acknowledge anything at all.
const PATIENCE: Duration = Duration::from_secs(60);

/// When messages are due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// When the demo began.
    pub(super) began: Instant,
    /// The event time of that moment.
    pub(super) from: i64,
    /// Seconds of event time a second.
    pub(super) speed: f64,
}

impl Pace {
    fn due(&self, sent: i64) -> Instant {
        let seconds = (sent - self.from).max(0) as f64 / 1000.0 / self.speed;
        self.began + Duration::from_secs_f64(seconds)
    }
}

/// How far the gateways are.
#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Messages acknowledged.
    pub(super) acknowledged: AtomicU64,
    /// Event time that has been reached.
    pub(super) reached: AtomicI64,
}

/// What the two directions of a connection share.
#[derive(Default)]
struct Open {
    count: Mutex<u64>,
    fewer: Condvar,
    broken: AtomicBool,
}

impl Open {
    /// Waits until fewer than `most` messages are open.
    fn wait_below(&self, most: u64) -> io::Result<()> {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        while *count >= most {
            if self.broken.load(Ordering::SeqCst) {
                return Err(io::Error::other("the broker has closed the connection"));
            }
            let waited = self.fewer.wait_timeout(count, PATIENCE);
            let (now, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            if timeout.timed_out() {
                return Err(io::Error::other("the broker acknowledges nothing any more"));
            }
            count = now;
        }
        Ok(())
    }

    fn count(&self) -> u64 {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    }

    fn acknowledged(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_sub(1);
        self.fewer.notify_all();
    }
}

/// Sends all of a stream and waits until all of it is acknowledged; stops early when told to.
///
/// # Errors
/// Those of the connection, and a broker that refuses or falls silent.
pub(super) fn publish(
    broker: SocketAddr,
    client_id: &str,
    stream: &mut RegionStream<'_>,
    pace: Pace,
    progress: &Progress,
    stop: &AtomicBool,
) -> io::Result<Sent> {
    let connection = connect(broker, client_id)?;
    let open = Arc::new(Open::default());
    let reading = connection.try_clone()?;
    thread::scope(|scope| {
        let heard = scope.spawn(|| hear(reading, &open, progress));
        let sent = send(&connection, stream, pace, progress, stop, &open);
        // The other direction ends with the connection.
        // If the broker was quicker, there is nothing left to close.
        let _ = connection.shutdown(std::net::Shutdown::Both);
        // A thread that panicked found a bug; it has been printed.
        let _ = heard.join();
        sent
    })?;
    Ok(stream.sent())
}

fn send(
    connection: &TcpStream,
    stream: &mut RegionStream<'_>,
    pace: Pace,
    progress: &Progress,
    stop: &AtomicBool,
    open: &Open,
) -> io::Result<()> {
    let mut out = BufWriter::with_capacity(64 << 10, connection);
    let mut packet_id: u16 = 0;
    for message in stream.by_ref() {
        let due = pace.due(message.sent);
        let now = Instant::now();
        if due > now {
            out.flush()?;
            progress.reached.fetch_max(message.sent, Ordering::Relaxed);
            rest_until(due.max(now + TOGETHER), stop);
        }
        if open.count() >= OPEN_MAX {
            out.flush()?;
            open.wait_below(OPEN_MAX)?;
        }
        packet_id = packet_id.checked_add(1).unwrap_or(1);
        open.add();
        out.write_all(&publication(&message.topic, packet_id, &message.payload))?;
        // Not before: the stream counts as sent what it has given.
        if stop.load(Ordering::SeqCst) {
            break;
        }
    }
    out.flush()?;
    open.wait_below(1)?;
    out.write_all(&[0xe0, 0])?;
    out.flush()
}

/// Sleeps, but not for long once somebody asks for the end.
fn rest_until(due: Instant, stop: &AtomicBool) {
    loop {
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() || stop.load(Ordering::SeqCst) {
            return;
        }
        thread::sleep(left.min(STOP_LOOK));
    }
}

/// Counts acknowledgements until the connection ends.
fn hear(mut connection: TcpStream, open: &Open, progress: &Progress) {
    // PUBACK is all that comes after CONNACK: two bytes of header, two of packet id.
    let mut packet = [0; 4];
    while connection.read_exact(&mut packet).is_ok() && packet[..2] == [0x40, 2] {
        open.acknowledged();
        progress.acknowledged.fetch_add(1, Ordering::Relaxed);
    }
    open.broken.store(true, Ordering::SeqCst);
    open.fewer.notify_all();
}

fn connect(broker: SocketAddr, client_id: &str) -> io::Result<TcpStream> {
    let mut connection = TcpStream::connect(broker)?;
    connection.set_nodelay(true)?;
    // Protocol level 4, clean session, no keep-alive.
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', 4, 2, 0, 0];
    text(&mut body, client_id);
    connection.write_all(&packet(0x10, &body))?;
    let mut answer = [0; 4];
    connection.read_exact(&mut answer)?;
    if answer != [0x20, 2, 0, 0] {
        return Err(io::Error::other("the broker refused the connection"));
    }
    Ok(connection)
}

fn publication(topic: &str, packet_id: u16, payload: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(topic.len() + payload.len() + 4);
    text(&mut body, topic);
    body.extend(packet_id.to_be_bytes());
    body.extend(payload);
    packet(0x32, &body)
}

/// A packet: first byte, length in groups of seven bits, body.
fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(body.len() + 5);
    packet.push(first);
    let mut rest = body.len();
    while rest >= 128 {
        packet.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    packet.push(rest as u8);
    packet.extend(body);
    packet
}

/// A string with its length before it; ours are all short.
fn text(body: &mut Vec<u8>, text: &str) {
    body.extend((text.len() as u16).to_be_bytes());
    body.extend(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::super::world::{World, WorldSpec};
    use super::*;

    #[test]
    fn packets_are_as_the_standard_has_them() {
        assert_eq!(publication("a/b", 10, b"xy"), b"\x32\x09\x00\x03a/b\x00\x0axy");
        assert_eq!(packet(0x30, &[0; 200])[..3], [0x30, 0xc8, 0x01]);
    }

    #[test]
    #[allow(clippy::unwrap_used)]
    fn a_broker_acknowledges_every_message_of_a_region() {
        let broker = weir_sources::broker::Broker::start("127.0.0.1:0").unwrap();
        let world = World::drawn(WorldSpec { seed: 1, meters: 300, minutes: 20 });
        let mut stream = RegionStream::of(&world, 0);
        let pace = Pace { began: Instant::now(), from: world.start, speed: 1e6 };
        let (progress, stop) = (Progress::default(), AtomicBool::new(false));
        let sent = publish(broker.address(), "g", &mut stream, pace, &progress, &stop).unwrap();
        assert!(sent.messages > 2 * OPEN_MAX, "{sent:?}");
        assert_eq!(progress.acknowledged.load(Ordering::Relaxed), sent.messages);
    }

    #[test]
    fn a_message_is_due_by_the_pace() {
        let began = Instant::now();
        let pace = Pace { began, from: 1000, speed: 60.0 };
        assert_eq!(pace.due(61_000), began + Duration::from_secs(1));
        assert_eq!(pace.due(0), began);
    }
}
