//! A link to PostgreSQL that can lose the reply to a commit.
//!
//! Bytes pass unchanged. What comes from the server is read message by message (a type byte, a
//! length that counts itself, a body). Once armed, the first `CommandComplete` of a `COMMIT` is not
//! passed on: the rows are in the database, and the client doesn't know. Then the client is killed,
//! or only its connection is cut.

use std::io::{self, BufReader, BufWriter, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::Result;

use crate::process;

/// What happens at the next commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trap {
    /// The client is killed, and never hears of it.
    Kill,
    /// The connection is cut.
    Cut,
}

const SAFE: u8 = 0;
const KILL: u8 = 1;
const CUT: u8 = 2;
/// More than PostgreSQL ever sends at once here.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

struct Shared {
    upstream: String,
    armed: AtomicU8,
    /// The client's process; 0 while there is none.
    victim: AtomicU32,
    sprung: AtomicUsize,
    /// Clients so far: what a dead one left on its way springs no trap.
    clients: AtomicUsize,
    ended: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
}

/// The proxy; dropping it ends its connections.
pub(super) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Listens on a free port of the loopback interface.
    pub(super) fn before(upstream: &str) -> Result<Proxy> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            armed: AtomicU8::new(SAFE),
            victim: AtomicU32::new(0),
            sprung: AtomicUsize::new(0),
            clients: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            open: Mutex::default(),
        });
        let theirs = shared.clone();
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if theirs.ended.load(Ordering::SeqCst) {
                    return;
                }
                let shared = theirs.clone();
                // A connection that fails is closed; its client sees that.
                thread::spawn(move || drop(serve(&client, &shared)));
            }
        });
        Ok(Proxy { address, shared })
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// From here on connections are those of a new client.
    pub(super) fn next_client(&self) {
        self.shared.clients.fetch_add(1, Ordering::SeqCst);
    }

    /// Whom [`Trap::Kill`] kills.
    pub(super) fn aim(&self, pid: u32) {
        self.shared.victim.store(pid, Ordering::SeqCst);
    }

    /// The next commit's reply is lost.
    pub(super) fn arm(&self, trap: Trap) {
        let armed = if trap == Trap::Kill { KILL } else { CUT };
        self.shared.armed.store(armed, Ordering::SeqCst);
    }

    /// All replies pass again.
    pub(super) fn disarm(&self) {
        self.shared.armed.store(SAFE, Ordering::SeqCst);
    }

    /// Replies that were lost so far.
    pub(super) fn sprung(&self) -> usize {
        self.shared.sprung.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        // Wakes the listener, which then ends.
        drop(TcpStream::connect(self.address));
        let open = self.shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().for_each(close);
    }
}

fn close(stream: &TcpStream) {
    // It may be closed already.
    let _closed = stream.shutdown(Shutdown::Both);
}

fn serve(client: &TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let number = shared.clients.load(Ordering::SeqCst);
    let server = TcpStream::connect(&shared.upstream)?;
    for stream in [client, &server] {
        stream.set_nodelay(true)?;
        let mut open = shared.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.push(stream.try_clone()?);
    }
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let there = thread::spawn(move || {
        let _ended = io::copy(&mut from, &mut to);
        let _closed = to.shutdown(Shutdown::Write);
    });
    let _ended = replies(BufReader::new(server.try_clone()?), BufWriter::new(client), || {
        number == shared.clients.load(Ordering::SeqCst) && spring(shared, client)
    });
    close(client);
    close(&server);
    // It ends with the streams.
    let _panicked = there.join();
    Ok(())
}

/// Whether this reply is to be lost; then its client is dead, or is about to be cut off.
fn spring(shared: &Shared, client: &TcpStream) -> bool {
    let armed = shared.armed.swap(SAFE, Ordering::SeqCst);
    if armed == SAFE {
        return false;
    }
    // Whoever sees the client dead must see why.
    shared.sprung.fetch_add(1, Ordering::SeqCst);
    match armed {
        KILL => {
            let victim = shared.victim.swap(0, Ordering::SeqCst);
            if victim != 0 {
                process::signal(victim, libc::SIGKILL);
            }
        }
        _ => close(client),
    }
    true
}

/// Passes messages of the server on, until one is a commit's reply that `lost` claims.
fn replies(
    mut from: BufReader<impl Read>,
    mut to: impl Write,
    lost: impl Fn() -> bool,
) -> io::Result<()> {
    let (mut head, mut body, mut begun) = ([0; 5], Vec::new(), false);
    loop {
        from.read_exact(&mut head[..1])?;
        // The answer to a wish for TLS is a byte alone.
        if !begun && !matches!(head[0], b'R' | b'E') {
            to.write_all(&head[..1])?;
            to.flush()?;
            continue;
        }
        begun = true;
        from.read_exact(&mut head[1..])?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let Some(length) = length.checked_sub(4).filter(|length| *length <= MESSAGE_BYTES_MAX)
        else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        body.resize(length, 0);
        from.read_exact(&mut body)?;
        if head[0] == b'C' && body == b"COMMIT\0" {
            to.flush()?;
            if lost() {
                return Ok(());
            }
        }
        to.write_all(&head)?;
        to.write_all(&body)?;
        if from.buffer().is_empty() {
            to.flush()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u32 + 4).to_be_bytes();
        [&[kind][..], &length, body].concat()
    }

    #[test]
    fn only_the_reply_to_a_commit_is_lost() {
        let before = [
            b"N".to_vec(),
            message(b'R', &[0; 4]),
            message(b'C', b"BEGIN\0"),
            message(b'C', b"SELECT 1\0"),
        ];
        let from = [before.concat(), message(b'C', b"COMMIT\0"), message(b'Z', b"I")].concat();
        let passed = |lost: bool| {
            let mut to = Vec::new();
            let ended = replies(BufReader::new(&from[..]), &mut to, || lost);
            (to, ended.is_ok())
        };
        assert_eq!(passed(true), (before.concat(), true));
        assert_eq!(passed(false), (from.clone(), false), "the server closed");
    }

    #[test]
    fn an_armed_link_cuts_its_client_off_once() -> Result<()> {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let proxy = Proxy::before(&server.local_addr()?.to_string())?;
        let said = [message(b'R', &[0; 4]), message(b'C', b"COMMIT\0")].concat();
        let all = said.clone();
        let talk = thread::spawn(move || -> io::Result<()> {
            for _ in 0..2 {
                server.accept()?.0.write_all(&all)?;
            }
            Ok(())
        });
        proxy.arm(Trap::Cut);
        for heard in [9, said.len()] {
            let mut bytes = Vec::new();
            TcpStream::connect(proxy.address())?.read_to_end(&mut bytes)?;
            assert_eq!(bytes, said[..heard]);
        }
        assert_eq!(proxy.sprung(), 1);
        assert!(talk.join().is_ok_and(|talked| talked.is_ok()));
        Ok(())
    }
}
