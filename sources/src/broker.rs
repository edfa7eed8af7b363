//! A small MQTT 3.1.1 broker for `weir demo`: real TCP connections, in this process.
//!
//! # Why an own one
//! A demonstration that shows no losses must not lose: where other brokers drop what a slow
//! subscriber does not take, this one makes the publishers wait. A message is acknowledged to its
//! publisher once it is in the queue of every subscriber, and a queue holds [`QUEUE_BYTES_MAX`] at
//! most, so memory is bounded by the number of subscribers.
//!
//! # What it speaks
//! QoS 0 and 1 both ways, `+` and `#`, persistent sessions (clean session 0) while the broker
//! lives, takeover of a session by a second connection. Two threads a connection, on loopback.
//!
//! # Limits
//! Nothing on disk; no QoS 2, retained messages, wills, `$share`, passwords or TLS. A persistent
//! session whose client stays away blocks its publishers once its queue is full. What a client
//! publishes to itself does not wait.

mod session;
mod topics;

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::mqtt::packet::{self, Frames, Protocol};
use session::{Message, Session};

/// What a subscriber's queue holds at most, in bytes of topics and payloads.
pub const QUEUE_BYTES_MAX: usize = 4 << 20;
const PACKET_BYTES_MAX: usize = 1 << 20;
const STACK_BYTES: usize = 256 << 10;
/// How long a new connection may take for its CONNECT.
const HELLO_TIME_MAX: Duration = Duration::from_secs(10);

const REFUSED_VERSION: u8 = 1;
const REFUSED_CLIENT_ID: u8 = 2;
const SUBSCRIPTION_REFUSED: u8 = 0x80;

/// A broker that runs until the value is dropped.
pub struct Broker {
    address: SocketAddr,
    core: Arc<Core>,
}

impl Broker {
    /// Listens on this address; port 0 stands for any free one.
    ///
    /// # Errors
    /// Those of binding a socket, and of starting a thread.
    pub fn start(address: &str) -> io::Result<Broker> {
        let listener = TcpListener::bind(address)?;
        let address = listener.local_addr()?;
        let core = Arc::new(Core::default());
        let broker = Broker { address, core: Arc::clone(&core) };
        spawn(&core.clone(), "broker-accept", move || {
            for stream in listener.incoming() {
                if core.stopped() {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let core_of_it = Arc::clone(&core);
                let served = spawn(&core, "broker-read", move || serve(&core_of_it, stream));
                if let Err(error) = served {
                    tracing::error!(%error, "the broker cannot serve another connection");
                }
            }
        })?;
        Ok(broker)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many clients have subscribed to something; what is published before is lost to them.
    pub fn subscribers(&self) -> usize {
        self.core.subscribers().len()
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        self.core.stop.store(true, Ordering::Release);
        // The accepting thread looks at the flag once somebody comes.
        drop(TcpStream::connect(self.address));
        for session in self.core.sessions().values() {
            session.end();
        }
        let threads = self.core.threads.lock().unwrap_or_else(PoisonError::into_inner);
        // A connection that says nothing yet is not in the list; it ends with its time-out.
        let ended = self.core.ended.wait_timeout_while(threads, HELLO_TIME_MAX, |n| *n > 0);
        drop(ended);
    }
}

#[derive(Default)]
struct Core {
    stop: AtomicBool,
    /// By client id: those that are connected, and those that persist.
    sessions: Mutex<BTreeMap<String, Arc<Session>>>,
    /// Those among them that have subscribed to something; replaced as a whole.
    subscribers: Mutex<Arc<Vec<Arc<Session>>>>,
    connections: AtomicU64,
    threads: Mutex<usize>,
    ended: Condvar,
}

impl Core {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Session>>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn subscribers(&self) -> Arc<Vec<Arc<Session>>> {
        Arc::clone(&self.subscribers.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Finds out anew who has subscribed.
    fn count_subscribers(&self) {
        let sessions = self.sessions();
        let found = sessions.values().filter(|s| s.has_subscribed()).cloned().collect();
        *self.subscribers.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(found);
    }

    /// Gives a message to all that want it; waits for those whose queues are full.
    fn publish(&self, from: &Arc<Session>, message: &Message) {
        for session in self.subscribers().iter() {
            session.deliver(message, !Arc::ptr_eq(session, from));
        }
    }
}

/// Starts a thread that the broker's end waits for.
fn spawn(core: &Arc<Core>, name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    struct Leaving(Arc<Core>);
    impl Drop for Leaving {
        fn drop(&mut self) {
            *self.0.threads.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            self.0.ended.notify_all();
        }
    }
    *core.threads.lock().unwrap_or_else(PoisonError::into_inner) += 1;
    // Dropped by the thread at its end, or here if there is none.
    let leaving = Leaving(Arc::clone(core));
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES).spawn(move || {
        let _leaving = leaving;
        work();
    })?;
    Ok(())
}

/// Serves a connection until it ends; whatever is wrong with it ends it.
fn serve(core: &Arc<Core>, mut stream: TcpStream) {
    let mut frames = Frames::new(PACKET_BYTES_MAX);
    let Ok(Some((session, connection))) = welcome(core, &mut stream, &mut frames) else { return };
    let (writer, mut copy) = (Arc::clone(&session), stream.try_clone());
    let started = match &mut copy {
        Ok(_) => spawn(core, "broker-write", move || {
            if let Ok(copy) = copy {
                writer.write_to(copy, connection);
            }
        }),
        Err(_) => Err(io::Error::other("the socket cannot be shared")),
    };
    if started.is_ok() {
        // An error has no other consequence than the end of the connection.
        drop(listen(core, &session, &mut stream, &mut frames));
    }
    if session.leave(connection) {
        let mut sessions = core.sessions();
        if sessions.get(session.id()).is_some_and(|known| Arc::ptr_eq(known, &session)) {
            sessions.remove(session.id());
        }
    }
    core.count_subscribers();
}

/// Answers CONNECT; gives the session and the number of this connection, or `None` if refused.
fn welcome(
    core: &Core,
    stream: &mut TcpStream,
    frames: &mut Frames,
) -> io::Result<Option<(Arc<Session>, u64)>> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(HELLO_TIME_MAX))?;
    let hello = loop {
        if let Some(frame) = frames.next().map_err(io::Error::other)? {
            if frame.kind() != packet::CONNECT {
                return Ok(None);
            }
            break packet::read_connect(frame.body).map_err(io::Error::other)?;
        }
        if frames.fill(stream)? == 0 {
            return Ok(None);
        }
    };
    let refused = match (hello.level, hello.client_id.is_empty(), hello.clean_session) {
        (4, true, false) => Some(REFUSED_CLIENT_ID),
        (4, ..) => None,
        _ => Some(REFUSED_VERSION),
    };
    let mut answer = Vec::new();
    if let Some(code) = refused {
        packet::write_packet(&mut answer, packet::CONNACK, 0, &[0, code]);
        stream.write_all(&answer)?;
        return Ok(None);
    }
    let patience = Duration::from_secs(u64::from(hello.keep_alive_s)) * 3 / 2;
    stream.set_read_timeout((!patience.is_zero()).then_some(patience))?;

    let connection = core.connections.fetch_add(1, Ordering::Relaxed) + 1;
    let id = match hello.client_id.as_str() {
        "" => format!("anonymous-{connection}"),
        id => id.to_owned(),
    };
    let mut sessions = core.sessions();
    if core.stopped() {
        return Ok(None);
    }
    let kept = sessions.get(&id).filter(|_| !hello.clean_session).cloned();
    let present = kept.is_some();
    let session = kept.unwrap_or_else(|| Arc::new(Session::begin(id.clone())));
    let before = sessions.insert(id, Arc::clone(&session));
    if let Some(other) = before.filter(|before| !Arc::ptr_eq(before, &session)) {
        other.end();
    }
    drop(sessions);
    packet::write_packet(&mut answer, packet::CONNACK, 0, &[u8::from(present), 0]);
    session.join(connection, hello.clean_session, stream.try_clone()?, &answer);
    Ok(Some((session, connection)))
}

/// Takes packets from a client until it leaves.
fn listen(
    core: &Arc<Core>,
    session: &Arc<Session>,
    stream: &mut TcpStream,
    frames: &mut Frames,
) -> io::Result<()> {
    let mut answer = Vec::new();
    while !core.stopped() {
        while let Some(frame) = frames.next().map_err(io::Error::other)? {
            match frame.kind() {
                packet::PUBLISH if frame.body.len() == frame.whole => {
                    let publish = packet::read_publish(&frame, Protocol::V311);
                    let publish = publish.map_err(io::Error::other)?;
                    core.publish(session, &Message::of(&publish));
                    if publish.qos > 0 {
                        packet::write_puback(&mut answer, publish.packet_id);
                    }
                }
                packet::PUBACK => {
                    let id = packet::read_packet_id(frame.body).map_err(io::Error::other)?;
                    session.acknowledged(id);
                }
                packet::SUBSCRIBE => {
                    let (id, filters) =
                        packet::read_subscribe(frame.body).map_err(io::Error::other)?;
                    let mut body = id.to_be_bytes().to_vec();
                    for (filter, qos) in filters {
                        body.push(match topics::is_filter(filter) {
                            true => session.subscribe(filter, qos.min(1)),
                            false => SUBSCRIPTION_REFUSED,
                        });
                    }
                    core.count_subscribers();
                    packet::write_packet(&mut answer, packet::SUBACK, 0, &body);
                }
                packet::UNSUBSCRIBE => {
                    let (id, filters) =
                        packet::read_unsubscribe(frame.body).map_err(io::Error::other)?;
                    filters.iter().for_each(|filter| session.unsubscribe(filter));
                    core.count_subscribers();
                    packet::write_packet(&mut answer, packet::UNSUBACK, 0, &id.to_be_bytes());
                }
                packet::PINGREQ => packet::write_packet(&mut answer, packet::PINGRESP, 0, &[]),
                // A message that is too large, or something that a client may not send.
                _ => return Ok(()),
            }
        }
        if !answer.is_empty() {
            session.answer(&answer);
            answer.clear();
        }
        if frames.fill(stream)? == 0 {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
