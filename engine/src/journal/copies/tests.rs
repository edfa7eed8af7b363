//! Copy servers and those who call them, over real links; and a journal whose second copy dies.

use super::super::JournalError;
use super::super::simulated::{Simulated, Whims};
use super::super::{Entry, Journal, Kind, Mirror, SUFFIX};
use super::*;
use std::sync::atomic::{AtomicUsize, Ordering};

const WAIT: Duration = Duration::from_millis(50);

fn server() -> (CopyServer, Peer) {
    let secret = new_secret().unwrap();
    let server = CopyServer::start("127.0.0.1:0", &secret).unwrap();
    let address = server.address.to_string();
    (server, Peer { process: 1, address, secret })
}

/// What a sequence of calls gives.
fn told(disk: &dyn Replacing) -> Vec<String> {
    let large: Vec<u8> = (0..3 * PIECE_BYTES + 17).map(|n| (n % 251) as u8).collect();
    let mut read = vec![0; large.len() + 9];
    let mut told = Vec::new();
    let mut tell = |done: io::Result<()>| {
        told.push(done.map_or_else(|e| format!("{:?}", e.kind()), |()| "done".to_owned()));
    };
    tell(disk.create("a"));
    tell(disk.create("a"));
    tell(disk.append("a", &large));
    tell(disk.append("none", b"x"));
    tell(disk.sync("a"));
    tell(disk.sync_names());
    tell(disk.create("b"));
    tell(disk.append("b", b"0123456789"));
    tell(disk.truncate("b", 4));
    tell(disk.remove("none"));
    tell(disk.replace("session", b"first"));
    tell(disk.read("session", 0, &mut read).map(drop));
    tell(disk.replace("session", b"second"));
    let got = disk.read("a", 5, &mut read).unwrap();
    assert_eq!(read[..got], large[5..]);
    let got = disk.read("session", 0, &mut read).unwrap();
    told.push(String::from_utf8_lossy(&read[..got]).into_owned());
    disk.remove("a").unwrap();
    told.push(format!("{:?}", disk.list().unwrap()));
    told
}

#[test]
fn a_folder_at_a_server_is_used_like_one_here() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, peer) = server();
    let there = Remote::open(&peer, &folder.path().join("there"), WAIT).unwrap();
    let here = Folder::open(&folder.path().join("here")).unwrap();
    let told_there = told(&there);
    assert_eq!(told_there, told(&here));
    assert!(told_there.iter().any(|line| line.contains("AlreadyExists")), "{told_there:?}");
    assert!(told_there.contains(&"second".to_owned()), "{told_there:?}");
}

#[test]
fn a_folder_is_one_callers_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let (server, peer) = server();
    let first = Remote::open(&peer, folder.path(), WAIT).unwrap();
    let error = Remote::open(&peer, folder.path(), WAIT).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    assert!(!is_lost(&error));
    let (calls, called) = std::sync::mpsc::channel();
    let waits = thread::spawn(move || {
        calls.send(()).unwrap();
        Remote::open(&peer, folder.path(), SECRET_WITHIN).map(drop)
    });
    called.recv().unwrap();
    thread::sleep(3 * WAIT);
    assert!(!waits.is_finished());
    drop(first);
    waits.join().unwrap().unwrap();
    server.finish();
}

#[test]
fn a_server_ends_once_nobody_has_a_copy_open() {
    let folder = tempfile::tempdir().unwrap();
    let (server, peer) = server();
    server.finish();
    let held = Remote::open(&peer, folder.path(), WAIT).unwrap();
    thread::scope(|scope| {
        let ends = scope.spawn(|| server.finish());
        thread::sleep(WAIT);
        assert!(!ends.is_finished());
        drop(held);
        ends.join().unwrap();
    });
}

#[test]
fn nothing_is_done_for_strangers_and_nothing_outside_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let (_server, peer) = server();
    for secret in [new_secret().unwrap(), String::new(), "0".repeat(SECRET_DIGITS)] {
        let stranger = Peer { secret: secret + "\0\0\0\0", ..peer.clone() };
        let asked = folder.path().join("asked");
        let error = Remote::open(&stranger, &asked, WAIT).unwrap_err();
        assert!(is_lost(&error), "{error}");
        assert!(!asked.exists());
    }
    let there = Remote::open(&peer, &folder.path().join("there"), WAIT).unwrap();
    for name in ["../escaped", "/tmp/escaped", "..", "", "a/b"] {
        assert_eq!(there.create(name).unwrap_err().kind(), io::ErrorKind::Other, "{name}");
        assert_eq!(there.replace(name, b"").unwrap_err().kind(), io::ErrorKind::Other, "{name}");
    }
    assert!(!folder.path().join("escaped").exists());
    assert!(!format!("{peer:?}").contains(&peer.secret));
}

#[test]
fn a_server_that_has_gone_is_told_from_a_disk_that_refuses() {
    let folder = tempfile::tempdir().unwrap();
    let (server, peer) = server();
    let there = Remote::open(&peer, folder.path(), WAIT).unwrap();
    there.create("a").unwrap();
    assert!(!is_lost(&there.create("a").unwrap_err()));
    drop(server);
    for _ in 0..2 {
        let error = there.append("a", b"x").unwrap_err();
        assert!(is_lost(&error) && error.to_string().contains("process 1"), "{error}");
    }
    assert!(is_lost(&Remote::open(&peer, folder.path(), WAIT).unwrap_err()));
}

// Crashes ----------------------------------------------------------------------------------------

/// A disk whose server dies at a certain call: before it is carried out, or before it is answered.
struct Mortal {
    disk: Arc<Simulated>,
    calls: AtomicUsize,
    /// Whether the last call is carried out.
    carried_out: bool,
}

impl Mortal {
    fn call<T>(&self, work: impl FnOnce(&Simulated) -> T) -> T {
        let dies = self.calls.fetch_sub(1, Ordering::Relaxed) == 1;
        if dies && !self.carried_out {
            die();
        }
        let done = work(&self.disk);
        if dies {
            die();
        }
        done
    }
}

/// Silently: this is no panic that anybody should read about.
fn die() -> ! {
    std::panic::resume_unwind(Box::new(()))
}

impl Disk for Mortal {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.call(|disk| disk.list())
    }
    fn create(&self, name: &str) -> io::Result<()> {
        self.call(|disk| disk.create(name))
    }
    fn append(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.call(|disk| disk.append(name, bytes))
    }
    fn sync(&self, name: &str) -> io::Result<()> {
        self.call(|disk| disk.sync(name))
    }
    fn sync_names(&self) -> io::Result<()> {
        self.call(|disk| disk.sync_names())
    }
    fn read(&self, name: &str, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        self.call(|disk| disk.read(name, at, bytes))
    }
    fn truncate(&self, name: &str, size: u64) -> io::Result<()> {
        self.call(|disk| disk.truncate(name, size))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.call(|disk| disk.remove(name))
    }
}

impl Replacing for Mortal {
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.call(|disk| disk.replace(name, bytes))
    }
}

/// One generation: appends and syncs until the server dies; what was acknowledged goes to `kept`.
/// Whether each error said that the second copy is lost.
fn generation(here: &Arc<Simulated>, there: &Peer, seed: u64, kept: &mut Vec<Vec<u8>>) -> bool {
    let far = match Remote::open(there, Path::new("far"), WAIT) {
        Ok(far) => Arc::new(far),
        Err(error) => return is_lost(&error),
    };
    let mirror = match Mirror::open([here.clone(), far], SUFFIX) {
        Ok((mirror, _)) => mirror,
        Err(error) => return is_lost(&error),
    };
    let mut journal = match Journal::open(Arc::new(mirror), "test", 400) {
        Ok(journal) => journal,
        Err(error) => return error.is_lost(),
    };
    let (mut whims, mut waiting) = (Whims(seed), Vec::new());
    for n in 0..60_u64 {
        let payload = format!("{seed}-{n}-{}", "x".repeat(whims.below(60) as usize)).into_bytes();
        let entry = Entry { arrival: 0, kind: Kind::Message, topic: "t", payload: &payload };
        if let Err(error) = journal.append(&entry) {
            return error.is_lost();
        }
        waiting.push(payload);
        if whims.below(3) == 0 {
            if let Err(error) = journal.sync() {
                return error.is_lost();
            }
            kept.append(&mut waiting);
        }
    }
    true
}

/// A server over this disk that dies at a certain call.
fn mortal(there: &Arc<Simulated>, calls: usize, carried_out: bool) -> (CopyServer, Peer) {
    let disk = Arc::new(Mortal { disk: there.clone(), calls: calls.into(), carried_out });
    let (listener, secret) = (TcpListener::bind("127.0.0.1:0").unwrap(), new_secret().unwrap());
    let open = move |_: &Path, _| -> io::Result<Arc<dyn Replacing>> { Ok(disk.clone()) };
    let server = CopyServer::over(listener, &secret, Arc::new(open)).unwrap();
    let address = server.address.to_string();
    (server, Peer { process: 1, address, secret })
}

#[test]
fn a_copy_that_is_lost_while_the_disk_here_is_full_is_lost_and_nothing_worse() {
    let (mut full, mut lost) = (0, 0);
    for calls in 1..60 {
        let (here, there) = (Arc::<Simulated>::default(), Arc::<Simulated>::default());
        let (_server, peer) = mortal(&there, calls, calls % 2 == 0);
        let Ok(far) = Remote::open(&peer, Path::new("far"), WAIT) else { continue };
        let Ok((mirror, _)) = Mirror::open([here.clone(), Arc::new(far)], SUFFIX) else { continue };
        let Ok(mut journal) = Journal::open(Arc::new(mirror), "test", 4_000) else { continue };
        here.capacity(Some(300));
        let entry = Entry { arrival: 0, kind: Kind::Message, topic: "t", payload: &[b'x'; 40] };
        let mut tries = (0..20).map(|_| journal.append(&entry).and_then(|_| journal.sync()));
        // The first refusal may pass; whatever comes until the copy is lost must, too.
        if let Some(error) = tries.by_ref().find_map(Result::err).filter(|e| !e.is_lost()) {
            full += 1;
            assert!(matches!(error, JournalError::Io { doing: "append to", .. }), "{error}");
            let next = tries.find_map(|next| next.err().filter(|e| !is_full(e)));
            assert!(next.as_ref().is_none_or(JournalError::is_lost), "{calls}: {next:?}");
            lost += usize::from(next.is_some());
        }
    }
    assert!(full > 10 && lost > 5, "{full} times full, {lost} times lost after that");
}

fn is_full(error: &JournalError) -> bool {
    matches!(error, JournalError::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull)
}

#[test]
fn what_was_acknowledged_survives_servers_that_die_and_either_disk() {
    for seed in 0..150 {
        let mut whims = Whims(seed ^ 0xca11);
        let (mut here, mut there) = (Arc::<Simulated>::default(), Arc::<Simulated>::default());
        let mut kept = Vec::new();
        for turn in 0..4 {
            let (calls, carried_out) = (1 + whims.below(90) as usize, whims.below(2) == 0);
            let (_server, peer) = mortal(&there, calls, carried_out);
            let said = generation(&here, &peer, seed * 10 + turn, &mut kept);
            assert!(said, "seed {seed}: an error that did not say that the copy is lost");
            // With it may go the power of either machine, and one of the disks.
            if whims.below(2) == 0 {
                here = Arc::new(here.after_crash(seed + turn));
            }
            if whims.below(2) == 0 {
                there = Arc::new(there.after_crash(seed + turn));
            }
            match whims.below(4) {
                0 => here = Arc::default(),
                1 => there = Arc::default(),
                _ => {}
            }
            let (mirror, _) = Mirror::open([here.clone(), there.clone()], SUFFIX).unwrap();
            let journal = Journal::open(Arc::new(mirror), "test", 400).unwrap();
            let mut reader = journal.reader(0);
            let mut found = Vec::new();
            while let Some(record) = reader.read().unwrap() {
                found.push(record.entry.payload.to_vec());
            }
            let mut found = found.iter();
            let all = kept.iter().all(|entry| found.any(|other| other == entry));
            assert!(all, "seed {seed}: an acknowledged message is gone");
        }
    }
}
