//! A link to a Kafka broker that can be cut, and that can hold or lose what ends a transaction.
//!
//! Brokers tell clients where to connect, so a plain TCP proxy is left at once: here the broker's
//! address is replaced by the proxy's in all that it answers.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

const HOST: &[u8] = b"127.0.0.1";
/// The request `EndTxn` in Kafka's protocol.
const END_TRANSACTION: [u8; 2] = [0, 26];
const PATIENCE: Duration = Duration::from_secs(30);

/// What becomes of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// They pass.
    Pass,
    /// Nobody gets through, and all links are cut.
    Down,
    /// The next end of a transaction waits before the broker, until the rule is another.
    HoldEnd,
    /// The next end of a transaction passes; the reply to it is lost, and the link goes down.
    LoseReply,
}

#[derive(Debug)]
struct State {
    rule: Rule,
    /// How often an end of a transaction was held, or a reply lost.
    struck: usize,
    links: Vec<TcpStream>,
}

/// A link that can be cut.
pub(crate) struct Proxy {
    /// Where clients connect.
    pub(crate) address: String,
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    news: Condvar,
    broker: u16,
    own: u16,
}

impl Proxy {
    /// A proxy of the broker at `127.0.0.1:port`.
    pub(crate) fn of(broker: &str) -> Proxy {
        let broker = broker.strip_prefix("127.0.0.1:").expect("the test broker is local");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let own = listener.local_addr().unwrap().port();
        let state = State { rule: Rule::Pass, struck: 0, links: Vec::new() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            news: Condvar::new(),
            broker: broker.parse().unwrap(),
            own,
        });
        let theirs = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                theirs.link(client);
            }
        });
        Proxy { address: format!("127.0.0.1:{own}"), shared }
    }

    /// Sets the rule.
    pub(crate) fn rule(&self, rule: Rule) {
        self.shared.set(rule);
    }

    /// Waits until the rule has struck so often.
    pub(crate) fn struck(&self, times: usize) {
        let state = self.shared.state.lock().unwrap();
        let waiting = |s: &mut State| s.struck < times;
        let waited = self.shared.news.wait_timeout_while(state, PATIENCE, waiting).unwrap();
        assert!(!waited.1.timed_out(), "the rule has not struck");
    }
}

impl Shared {
    fn set(&self, rule: Rule) {
        let mut state = self.state.lock().unwrap();
        state.rule = rule;
        if rule == Rule::Down {
            for link in state.links.drain(..) {
                // It may be gone already.
                let _ = link.shutdown(std::net::Shutdown::Both);
            }
        }
        self.news.notify_all();
    }

    fn link(self: &Arc<Self>, client: TcpStream) {
        if self.state.lock().unwrap().rule == Rule::Down {
            return;
        }
        let broker = TcpStream::connect((Ipv4Addr::LOCALHOST, self.broker)).unwrap();
        client.set_nodelay(true).unwrap();
        broker.set_nodelay(true).unwrap();
        let links = [client.try_clone().unwrap(), broker.try_clone().unwrap()];
        self.state.lock().unwrap().links.extend(links);
        // The correlation id of the request whose reply is to be lost.
        let lost: Arc<Mutex<Option<[u8; 4]>>> = Arc::default();
        let (there, back) = (self.clone(), self.clone());
        let (mut from, mut to) = (client.try_clone().unwrap(), broker.try_clone().unwrap());
        let wanted = lost.clone();
        std::thread::spawn(move || {
            while let Some(frame) = frame(&mut from) {
                if frame[4..6] == END_TRANSACTION {
                    there.end(&frame, &wanted);
                }
                if to.write_all(&frame).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
        let (mut from, mut to) = (broker, client);
        std::thread::spawn(move || {
            while let Some(mut frame) = frame(&mut from) {
                if lost.lock().unwrap().is_some_and(|id| frame[4..8] == id) {
                    back.state.lock().unwrap().struck += 1;
                    back.set(Rule::Down);
                    break;
                }
                back.move_here(&mut frame);
                if to.write_all(&frame).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Both);
        });
    }

    /// An end of a transaction is on its way.
    fn end(&self, frame: &[u8], lost: &Mutex<Option<[u8; 4]>>) {
        let mut state = self.state.lock().unwrap();
        if state.rule == Rule::LoseReply {
            *lost.lock().unwrap() = Some(frame[8..12].try_into().unwrap());
        }
        if state.rule == Rule::HoldEnd {
            state.struck += 1;
            self.news.notify_all();
            let holding = |s: &mut State| s.rule == Rule::HoldEnd;
            drop(self.news.wait_timeout_while(state, PATIENCE, holding).unwrap());
        }
    }

    /// Puts the proxy's address in the place of the broker's.
    fn move_here(&self, frame: &mut [u8]) {
        let address = |port: u16| [HOST, &u32::from(port).to_be_bytes()].concat();
        let (theirs, ours) = (address(self.broker), address(self.own));
        let mut at = 0;
        while at + theirs.len() <= frame.len() {
            if frame[at..].starts_with(&theirs) {
                frame[at..at + ours.len()].copy_from_slice(&ours);
            }
            at += 1;
        }
    }
}

/// A request or an answer with its length before it; none at the end.
fn frame(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut frame = vec![0; 4];
    from.read_exact(&mut frame).ok()?;
    let length = u32::from_be_bytes(frame[..4].try_into().unwrap()) as usize;
    frame.resize(4 + length, 0);
    from.read_exact(&mut frame[4..]).ok()?;
    Some(frame)
}
