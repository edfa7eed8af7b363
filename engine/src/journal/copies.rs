//! Second copies of journals, at another process of the set.
//!
//! A copy server listens; whoever knows its secret opens a folder of its machine and uses it as a
//! [`Disk`], through [`Remote`]. With a [`Mirror`](super::Mirror) of a folder here and one there,
//! what a process has acknowledged is on the disks of two.
//!
//! # Invariant
//! A call that returned without an error was carried out by the folder there, once, behind all
//! calls before it.
//!
//! # Argument
//! - A link is one folder's, and has one call under way at a time; the server answers when the
//!   folder has.
//! - After a lost link nobody knows whether the last call was carried out. So the disk answers no
//!   more calls, each error says so ([`is_lost`]), and whoever gets one ends the generation. The
//!   next one opens the folders again, which makes both copies equal.
//! - The folder is locked for as long as the link stands, and let go when it ends. What is left of
//!   an old generation has links to servers of its own: they hold the lock until they end, and a
//!   new one is refused the folder until then.
//! - Before the secret has come nothing else is read from a link.
//!
//! # Format
//! A frame is the length of its head and of its bytes (two big-endian `u32`), a head in JSON and
//! the bytes. A call has a `Call` in its head, an answer an `Answer`. Both ends are the same
//! binary: the secret is of one set.
//!
//! # Complexity
//! A call is one round trip. Appends and reads travel in pieces of 1 MiB. Each link has a thread
//! at the server.
//!
//! # Limits
//! The secret goes over the link as it is, and the server does not prove itself: for loopback.
//! Whoever has the secret may open any folder that the server's user may. A folder that takes more
//! than [`ANSWER_WITHIN`] for a call is lost, and opened anew by the next generation.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::{Disk, Folder, Replacing};
use crate::clock::Stopwatch;

/// Bytes that an append or a read carries at the most.
const PIECE_BYTES: usize = 1 << 20;
/// A longer head is not one of ours.
const HEAD_BYTES_MAX: usize = 8 << 20;
/// How long a caller has to say the secret.
const SECRET_WITHIN: Duration = Duration::from_secs(5);
/// Callers at a time that have not said it.
const STRANGERS_MAX: usize = 64;
/// The pause after a call that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);
/// A server that takes longer for an answer is lost.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Hexadecimal digits of a secret.
const SECRET_DIGITS: usize = 32;

/// Another process, as one that has second copies.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its number.
    pub process: usize,
    /// Where its copy server listens: `host:port`.
    pub address: String,
    /// The secret of its set.
    pub secret: String,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} at {}", self.process, self.address)
    }
}

/// A new secret for a set, from the system's source of randomness.
///
/// # Errors
/// There is none.
pub fn new_secret() -> io::Result<String> {
    let mut bytes = [0; SECRET_DIGITS / 2];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// What a caller asks for.
#[derive(Debug, Serialize, Deserialize)]
enum Call {
    /// First of all: the folder, which may be somebody else's for so many milliseconds.
    Open {
        path: PathBuf,
        wait: u64,
    },
    List,
    Create(String),
    Append(String),
    Sync(String),
    SyncNames,
    Read {
        name: String,
        at: u64,
        bytes: usize,
    },
    Truncate {
        name: String,
        size: u64,
    },
    Remove(String),
    Replace(String),
}

/// What comes of a call.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Done,
    /// The files, with their sizes.
    Files(Vec<(String, u64)>),
    Refused(Why, String),
}

/// The kinds of refusal that callers tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Why {
    InUse,
    Missing,
    There,
    Full,
    Denied,
    Damaged,
    Other,
}

const KINDS: [(Why, io::ErrorKind); 7] = [
    (Why::InUse, io::ErrorKind::WouldBlock),
    (Why::Missing, io::ErrorKind::NotFound),
    (Why::There, io::ErrorKind::AlreadyExists),
    (Why::Full, io::ErrorKind::StorageFull),
    (Why::Denied, io::ErrorKind::PermissionDenied),
    (Why::Damaged, io::ErrorKind::InvalidData),
    (Why::Other, io::ErrorKind::Other),
];

impl Answer {
    fn refused(error: &io::Error) -> Answer {
        let known = KINDS.iter().find(|(_, kind)| *kind == error.kind());
        Answer::Refused(known.map_or(Why::Other, |(why, _)| *why), error.to_string())
    }
}

fn frame(head: &impl Serialize, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let head = serde_json::to_vec(head)?;
    let mut frame = Vec::with_capacity(8 + head.len() + bytes.len());
    for part in [&head, bytes] {
        let length = u32::try_from(part.len()).map_err(io::Error::other)?;
        frame.extend_from_slice(&length.to_be_bytes());
    }
    frame.extend_from_slice(&head);
    frame.extend_from_slice(bytes);
    Ok(frame)
}

fn receive<Head: for<'a> Deserialize<'a>>(link: &mut impl Read) -> io::Result<(Head, Vec<u8>)> {
    let mut lengths = [0; 8];
    link.read_exact(&mut lengths)?;
    let length = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&lengths[at..at + 4]);
        u32::from_be_bytes(bytes) as usize
    };
    let (head, bytes) = (length(0), length(4));
    if head > HEAD_BYTES_MAX || bytes > PIECE_BYTES {
        let what = format!("a frame of {head} and {bytes} bytes, which is not one of ours");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    let (mut text, mut rest) = (vec![0; head], vec![0; bytes]);
    link.read_exact(&mut text)?;
    link.read_exact(&mut rest)?;
    Ok((serde_json::from_slice(&text)?, rest))
}

// The server -------------------------------------------------------------------------------------

/// What a server and its links share.
#[derive(Default)]
struct Links {
    standing: Mutex<Standing>,
    ended: Condvar,
}

#[derive(Default)]
struct Standing {
    /// Links whose callers have said the secret, by number.
    links: BTreeMap<u64, TcpStream>,
    last: u64,
    /// Those who have called and not said it.
    strangers: usize,
    /// No more are taken.
    closed: bool,
}

impl Links {
    fn lock(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a link for as long as what is returned lives.
    fn count(self: &Arc<Links>, link: &TcpStream) -> io::Result<Counted> {
        let mut standing = self.lock();
        if standing.closed {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        standing.last += 1;
        let number = standing.last;
        standing.links.insert(number, link.try_clone()?);
        Ok(Counted { links: self.clone(), number })
    }
}

struct Counted {
    links: Arc<Links>,
    number: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.links.lock().links.remove(&self.number);
        self.links.ended.notify_all();
    }
}

/// How a folder is opened that may be somebody else's for a while.
type OpenFolder = dyn Fn(&Path, Duration) -> io::Result<Arc<dyn Replacing>> + Send + Sync;

/// Listens, and has copies for other processes; ends when dropped, and its links with it.
pub struct CopyServer {
    links: Arc<Links>,
    address: SocketAddr,
}

impl CopyServer {
    /// Starts one that listens at this address, `host:port`.
    ///
    /// # Errors
    /// The address is not free; no thread can be started.
    pub fn start(address: &str, secret: &str) -> io::Result<CopyServer> {
        let open = |path: &Path, wait| -> io::Result<Arc<dyn Replacing>> {
            Ok(Arc::new(Folder::open_within(path, wait)?))
        };
        CopyServer::over(TcpListener::bind(address)?, secret, Arc::new(open))
    }

    /// One whose folders are opened by `open`.
    fn over(listener: TcpListener, secret: &str, open: Arc<OpenFolder>) -> io::Result<CopyServer> {
        let (links, address) = (Arc::new(Links::default()), listener.local_addr()?);
        let (shared, secret) = (links.clone(), secret.to_owned());
        let answer = move |link: io::Result<TcpStream>| {
            let link = link?;
            if shared.lock().strangers >= STRANGERS_MAX {
                return Err(io::Error::other("too many callers without the secret"));
            }
            let (shared, secret, open) = (shared.clone(), secret.clone(), open.clone());
            // Why a link has ended its caller knows.
            let serve = move || drop(serve(link, &secret, &shared, &*open));
            thread::Builder::new().name("second-copy".to_owned()).spawn(serve).map(drop)
        };
        let closed = links.clone();
        let listen = move || {
            let mut refused = false;
            for link in listener.incoming() {
                if closed.lock().closed {
                    return;
                }
                let answered = answer(link);
                let before = std::mem::replace(&mut refused, answered.is_err());
                if let Err(error) = answered {
                    if !before {
                        tracing::warn!(%error, "a caller for a second copy is not answered");
                    }
                    thread::sleep(PAUSE);
                }
            }
        };
        thread::Builder::new().name("second-copies".to_owned()).spawn(listen)?;
        Ok(CopyServer { links, address })
    }

    /// Waits until nobody has a folder open any more. Processes of a set end together, so that
    /// this is a matter of moments; whoever ended earlier would take another's second copy with it.
    pub fn finish(&self) {
        let mut standing = self.links.lock();
        while !standing.links.is_empty() {
            standing = self.links.ended.wait(standing).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for CopyServer {
    fn drop(&mut self) {
        let mut standing = self.links.lock();
        standing.closed = true;
        for link in standing.links.values() {
            // One that has ended already needs no end.
            drop(link.shutdown(Shutdown::Both));
        }
        drop(standing);
        // So that the listener's thread looks up.
        drop(TcpStream::connect(self.address));
    }
}

/// Hears the secret, all of it in time.
fn identify(link: &mut TcpStream, secret: &str) -> io::Result<()> {
    let began = Stopwatch::start();
    let (mut said, mut heard) = ([0; SECRET_DIGITS], 0);
    while heard < said.len() {
        let left = SECRET_WITHIN.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        link.set_read_timeout(Some(left))?;
        match link.read(&mut said[heard..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            more => heard += more,
        }
    }
    // In a time that says nothing of where they differ.
    let differs = said.iter().zip(secret.as_bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    if differs != 0 || secret.len() != SECRET_DIGITS {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    link.set_read_timeout(None)
}

/// Serves a link until its other end closes it.
fn serve(
    mut link: TcpStream,
    secret: &str,
    links: &Arc<Links>,
    open: &OpenFolder,
) -> io::Result<()> {
    links.lock().strangers += 1;
    let known = link.set_nodelay(true).and_then(|()| identify(&mut link, secret));
    links.lock().strangers -= 1;
    known?;
    let _counted = links.count(&link)?;
    let mut reader = BufReader::new(link.try_clone()?);
    let (first, _) = receive(&mut reader)?;
    let Call::Open { path, wait } = first else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let folder = match open(&path, Duration::from_millis(wait)) {
        Ok(folder) => folder,
        Err(error) => return link.write_all(&frame(&Answer::refused(&error), &[])?),
    };
    link.write_all(&frame(&Answer::Done, &[])?)?;
    loop {
        let (call, bytes) = receive(&mut reader)?;
        let (answer, bytes) = match carry_out(&*folder, call, &bytes) {
            Ok(done) => done,
            Err(error) => (Answer::refused(&error), Vec::new()),
        };
        link.write_all(&frame(&answer, &bytes)?)?;
    }
}

fn carry_out(folder: &dyn Replacing, call: Call, bytes: &[u8]) -> io::Result<(Answer, Vec<u8>)> {
    let mut back = Vec::new();
    match call {
        Call::Open { .. } => return Err(io::Error::from(io::ErrorKind::InvalidData)),
        Call::List => return Ok((Answer::Files(folder.list()?), back)),
        Call::Create(name) => folder.create(file(&name)?)?,
        Call::Append(name) => folder.append(file(&name)?, bytes)?,
        Call::Sync(name) => folder.sync(file(&name)?)?,
        Call::SyncNames => folder.sync_names()?,
        Call::Read { name, at, bytes } => {
            back.resize(bytes.min(PIECE_BYTES), 0);
            let read = folder.read(file(&name)?, at, &mut back)?;
            back.truncate(read);
        }
        Call::Truncate { name, size } => folder.truncate(file(&name)?, size)?,
        Call::Remove(name) => folder.remove(file(&name)?)?,
        Call::Replace(name) => folder.replace(file(&name)?, bytes)?,
    }
    Ok((Answer::Done, back))
}

/// A name that is a file's in the folder.
fn file(name: &str) -> io::Result<&str> {
    let plain = Path::new(name).file_name().is_some_and(|file| file == name);
    if plain { Ok(name) } else { Err(io::Error::from(io::ErrorKind::InvalidInput)) }
}

// The caller -------------------------------------------------------------------------------------

/// A folder at another process's copy server.
#[derive(Debug)]
pub struct Remote {
    /// `None` once it is lost.
    link: Mutex<Option<TcpStream>>,
    process: usize,
    /// For people.
    name: String,
}

/// The link to a copy server is lost.
#[derive(Debug)]
struct Lost {
    process: usize,
    why: String,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Lost { process, why } = self;
        write!(f, "the connection to process {process}, which has the second copy, is lost: {why}")
    }
}

impl std::error::Error for Lost {}

/// Whether an error says that another process is out of reach: no disk is at fault, and the next
/// generation goes on.
pub fn is_lost(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Lost>())
}

impl Remote {
    /// Opens a folder there, once nobody has it any more, for so long as `wait`.
    ///
    /// # Errors
    /// As [`Folder::open_within`], of the folder there; those of [`is_lost`].
    pub fn open(peer: &Peer, path: &Path, wait: Duration) -> io::Result<Remote> {
        let lost = |error: io::Error| lost(peer.process, &error);
        let link = TcpStream::connect(&peer.address).map_err(lost)?;
        let greet = |mut link: &TcpStream| {
            link.set_nodelay(true)?;
            link.set_read_timeout(Some(ANSWER_WITHIN))?;
            link.set_write_timeout(Some(ANSWER_WITHIN))?;
            link.write_all(peer.secret.as_bytes())
        };
        greet(&link).map_err(lost)?;
        let name = format!("{} at process {}", path.display(), peer.process);
        let remote = Remote { link: Mutex::new(Some(link)), process: peer.process, name };
        let wait = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
        remote.call(&Call::Open { path: path.to_owned(), wait }, &[])?;
        Ok(remote)
    }

    /// The folder and its process, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn call(&self, call: &Call, bytes: &[u8]) -> io::Result<(Answer, Vec<u8>)> {
        let call = frame(call, bytes)?;
        let mut slot = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(link) = slot.as_mut() else {
            return Err(lost(self.process, &"it was lost before"));
        };
        match link.write_all(&call).and_then(|()| receive::<Answer>(link)) {
            Ok((Answer::Refused(why, text), _)) => {
                let kind = KINDS.iter().find(|(known, _)| *known == why).map(|(_, kind)| *kind);
                let text = format!("second copy {}: {text}", self.name);
                Err(io::Error::new(kind.unwrap_or(io::ErrorKind::Other), text))
            }
            Ok(answer) => Ok(answer),
            Err(error) => {
                *slot = None;
                Err(lost(self.process, &error))
            }
        }
    }

    fn done(&self, call: &Call) -> io::Result<()> {
        self.call(call, &[]).map(drop)
    }
}

fn lost(process: usize, why: &dyn fmt::Display) -> io::Error {
    let inner = Lost { process, why: why.to_string() };
    io::Error::new(io::ErrorKind::ConnectionAborted, inner)
}

impl Disk for Remote {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        match self.call(&Call::List, &[])?.0 {
            Answer::Files(files) => Ok(files),
            other => Err(io::Error::other(format!("an answer out of place: {other:?}"))),
        }
    }

    fn create(&self, name: &str) -> io::Result<()> {
        self.done(&Call::Create(name.to_owned()))
    }

    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let call = Call::Append(name.to_owned());
        bytes.chunks(PIECE_BYTES).try_for_each(|piece| self.call(&call, piece).map(drop))
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        self.done(&Call::Sync(name.to_owned()))
    }

    fn sync_names(&self) -> io::Result<()> {
        self.done(&Call::SyncNames)
    }

    fn read(&self, name: &str, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        for piece in bytes.chunks_mut(PIECE_BYTES) {
            let (name, at) = (name.to_owned(), at + filled as u64);
            let (_, found) = self.call(&Call::Read { name, at, bytes: piece.len() }, &[])?;
            let read = found.len().min(piece.len());
            piece[..read].copy_from_slice(&found[..read]);
            filled += read;
            if read < piece.len() {
                break;
            }
        }
        Ok(filled)
    }

    fn truncate(&self, name: &str, size: u64) -> io::Result<()> {
        self.done(&Call::Truncate { name: name.to_owned(), size })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.done(&Call::Remove(name.to_owned()))
    }
}

impl Replacing for Remote {
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > PIECE_BYTES {
            return Err(io::Error::from(io::ErrorKind::FileTooLarge));
        }
        self.call(&Call::Replace(name.to_owned()), bytes).map(drop)
    }
}

#[cfg(test)]
mod tests;
