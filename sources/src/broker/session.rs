//! A client's session: what it has subscribed to, and what it still has to get.
//!
//! # Invariant
//! A message is in `queue` or in `unacknowledged` from its delivery until it has been written (QoS
//! 0) or acknowledged (QoS 1). Its bytes count in `bytes` for as long, and a publisher adds to the
//! queue only while that is below the limit.

use std::collections::VecDeque;
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::QUEUE_BYTES_MAX;
use super::topics::takes_in;
use crate::mqtt::packet::{self, Publish};

/// Messages of QoS 1 that a subscriber may have unacknowledged.
const WINDOW: usize = 1_000;
const WRITE_BYTES: usize = 64 << 10;
/// Answers that a client has not read, beyond which nothing more is read from it.
const ANSWER_BYTES_MAX: usize = 256 << 10;

/// A message, shared by all who get it.
#[derive(Clone, Debug)]
pub(super) struct Message {
    topic: Arc<str>,
    payload: Arc<[u8]>,
    qos: u8,
    /// Whether it was sent before.
    again: bool,
}

impl Message {
    pub(super) fn of(publish: &Publish<'_>) -> Message {
        Message {
            topic: publish.topic.into(),
            payload: publish.payload.into(),
            qos: publish.qos,
            again: false,
        }
    }

    fn bytes(&self) -> usize {
        self.topic.len() + self.payload.len() + 64
    }
}

#[derive(Default)]
struct State {
    filters: Vec<(String, u8)>,
    queue: VecDeque<Message>,
    unacknowledged: VecDeque<(u16, Message)>,
    bytes: usize,
    packet_id: u16,
    answers: Vec<u8>,
    /// The connection that holds the session, 0 for none, and its socket.
    connection: u64,
    socket: Option<TcpStream>,
    clean: bool,
    ended: bool,
}

impl State {
    /// The packet id of the next message, `None` while the window is full.
    fn next_id(&self) -> Option<u16> {
        let id = self.packet_id.checked_add(1).unwrap_or(1);
        // Ids go round in order, so the oldest unacknowledged one is the first to be met again.
        let free = self.unacknowledged.front().is_none_or(|(oldest, _)| *oldest != id);
        (free && self.unacknowledged.len() < WINDOW).then_some(id)
    }

    fn can_send(&self) -> bool {
        self.queue.front().is_some_and(|m| m.qos == 0 || self.next_id().is_some())
    }

    /// Moves what may be sent now into bytes.
    fn take_bytes(&mut self) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.answers);
        while out.len() < WRITE_BYTES && self.can_send() {
            let Some(message) = self.queue.pop_front() else { break };
            let id = if message.qos > 0 { self.next_id().unwrap_or_default() } else { 0 };
            let publish = Publish {
                qos: message.qos,
                topic: &message.topic,
                packet_id: id,
                payload: &message.payload,
            };
            packet::write_publish(&mut out, &publish, message.again);
            if message.qos > 0 {
                self.packet_id = id;
                self.unacknowledged.push_back((id, message));
            } else {
                self.bytes -= message.bytes();
            }
        }
        out
    }
}

/// A session; threads of its connection and of publishers meet here.
pub(super) struct Session {
    id: String,
    state: Mutex<State>,
    news: Condvar,
}

impl Session {
    pub(super) fn begin(id: String) -> Session {
        Session { id, state: Mutex::default(), news: Condvar::new() }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.news.wait(state).unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection takes the session over, from another one if there is one; its first packet is
    /// `answer`, and then comes again what was not acknowledged.
    pub(super) fn join(&self, connection: u64, clean: bool, socket: TcpStream, answer: &[u8]) {
        let mut state = self.state();
        detach(&mut state);
        state.connection = connection;
        state.clean = clean;
        state.socket = Some(socket);
        state.answers = answer.to_vec();
        drop(state);
        self.news.notify_all();
    }

    /// The connection is over; whether the session is, too.
    pub(super) fn leave(&self, connection: u64) -> bool {
        let mut state = self.state();
        if state.connection == connection {
            detach(&mut state);
            state.ended |= state.clean;
        }
        let ended = state.ended;
        drop(state);
        self.news.notify_all();
        ended
    }

    /// The session is over: nobody waits for it any more.
    pub(super) fn end(&self) {
        let mut state = self.state();
        detach(&mut state);
        state.ended = true;
        drop(state);
        self.news.notify_all();
    }

    pub(super) fn has_subscribed(&self) -> bool {
        let state = self.state();
        !state.ended && !state.filters.is_empty()
    }

    /// Subscribes, and gives the QoS granted.
    pub(super) fn subscribe(&self, filter: &str, qos: u8) -> u8 {
        let mut state = self.state();
        state.filters.retain(|(known, _)| known != filter);
        state.filters.push((filter.to_owned(), qos));
        qos
    }

    pub(super) fn unsubscribe(&self, filter: &str) {
        self.state().filters.retain(|(known, _)| known != filter);
    }

    /// Queues a message if a filter takes it in, once however many do; may wait for room.
    pub(super) fn deliver(&self, message: &Message, wait: bool) {
        let mut state = self.state();
        let wanted = state.filters.iter().filter(|(filter, _)| takes_in(filter, &message.topic));
        let Some(granted) = wanted.map(|(_, qos)| *qos).max() else { return };
        while wait && state.bytes >= QUEUE_BYTES_MAX && !state.ended {
            state = self.wait(state);
        }
        if state.ended {
            return;
        }
        state.bytes += message.bytes();
        state.queue.push_back(Message { qos: message.qos.min(granted), ..message.clone() });
        drop(state);
        self.news.notify_all();
    }

    /// The client has this message.
    pub(super) fn acknowledged(&self, id: u16) {
        let mut state = self.state();
        let at = state.unacknowledged.iter().position(|(known, _)| *known == id);
        if let Some((_, message)) = at.and_then(|at| state.unacknowledged.remove(at)) {
            state.bytes -= message.bytes();
        }
        drop(state);
        self.news.notify_all();
    }

    /// Hands answers to the writing thread; waits for a client that does not read them.
    pub(super) fn answer(&self, bytes: &[u8]) {
        let mut state = self.state();
        while state.answers.len() >= ANSWER_BYTES_MAX && state.socket.is_some() {
            state = self.wait(state);
        }
        state.answers.extend_from_slice(bytes);
        drop(state);
        self.news.notify_all();
    }

    /// Writes what there is for the client until the connection no longer holds the session.
    pub(super) fn write_to(&self, mut socket: TcpStream, connection: u64) {
        loop {
            let mut state = self.state();
            while state.connection == connection && state.answers.is_empty() && !state.can_send() {
                state = self.wait(state);
            }
            if state.connection != connection {
                return;
            }
            let bytes = state.take_bytes();
            drop(state);
            self.news.notify_all();
            if socket.write_all(&bytes).is_err() {
                // The reading thread notices, and takes the session off this connection.
                drop(socket.shutdown(Shutdown::Both));
                return;
            }
        }
    }
}

/// Takes the session off its connection, if it has one; the unacknowledged go back to the queue.
fn detach(state: &mut State) {
    if let Some(socket) = state.socket.take() {
        // Its threads wake up, and find that they hold nothing any more.
        drop(socket.shutdown(Shutdown::Both));
    }
    state.connection = 0;
    state.answers.clear();
    while let Some((_, message)) = state.unacknowledged.pop_back() {
        state.queue.push_front(Message { again: true, ..message });
    }
}
