//! A disk that is a folder of an object store: for logs that must outlive the machine.
//!
//! Each append is one object, put where none is: `FILE/0000000000`, then `FILE/0000000001`. A file
//! is what its objects hold, one after the other.
//!
//! # Invariant
//! Of two that write to one file, whatever they think of each other, one alone gets on: after a
//! common beginning both want the same name next, and the store gives it once. The other finds
//! another's bytes there, and writes nothing more, ever.
//!
//! # Argument
//! - *A lost reply*: a put that failed may have happened, or may still happen. What was tried at a
//!   name is kept. If it is found there the next time, it counts as written, as far as what is to
//!   be written now begins with it; if what is to be written does not, nobody knows any more what
//!   the file ought to be, and it is given up.
//! - *What is cut off* stays where it is: somebody may have read it already, and have gone on
//!   behind it. It is there for the next append, as what a lost reply was about.
//! - *Removal* begins with a file's first object, so that a file without one is about to go: it is
//!   removed when the folder is opened.
//! - *A hole* cannot come about, since a name is asked for only once the one before is there; a
//!   file that has one is damaged, and said to be.
//!
//! # Complexity
//! An append takes one request. Opening reads all objects once, several at a time, and keeps up to
//! [`KEPT_BYTES`] of what it has read for the reader that follows.
//!
//! # Limits
//! Only what was appended and not synced can be cut off, and what is appended next must begin with
//! it. There is no lock: a second user takes the first one's place. Removal makes names free again:
//! a writer that slept while others went on, and removed the file it was in, finds its next name
//! free. What it writes there is removed when the folder is opened next, but for a file that it
//! begins: a journal with such a one behind removed ones says that it is damaged. (Sinks let it
//! commit nothing.)

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::Disk;
use crate::connector::ConnectorError;
use crate::store::Objects;

/// Bytes that are kept of what was read when it was opened.
const KEPT_BYTES: usize = 16 << 20;

/// A folder of an object store, whose files grow at their ends.
pub struct Bucket {
    objects: Arc<dyn Objects>,
    folder: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Vec<Part>>,
    /// The put whose outcome is not known.
    tried: Option<(String, Vec<u8>)>,
    /// What is there behind the end of a file, since it was cut off.
    cut: (String, VecDeque<Vec<u8>>),
    /// Somebody else writes here.
    taken: bool,
}

/// What one object holds of a file.
struct Part {
    at: u64,
    size: u64,
    bytes: Option<Vec<u8>>,
    /// Whether it was appended here, and not synced: then its bytes are at hand.
    fresh: bool,
}

fn end(parts: &[Part]) -> u64 {
    parts.last().map_or(0, |part| part.at + part.size)
}

impl State {
    /// What is there already at the end of a file.
    fn there(&mut self, name: &str) -> Option<Vec<u8>> {
        if self.cut.0 == name { self.cut.1.pop_front() } else { None }
    }
}

fn of_store(error: ConnectorError) -> io::Error {
    io::Error::other(error.message)
}

impl Bucket {
    /// What is in a folder of the store, read with so many requests at a time.
    ///
    /// # Errors
    /// The store's; [`io::ErrorKind::InvalidData`] where an object is missing.
    pub fn open(objects: Arc<dyn Objects>, folder: &str, requests: usize) -> io::Result<Bucket> {
        let bucket = Bucket { objects, folder: folder.to_owned(), state: Mutex::default() };
        let mut names: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for path in bucket.objects.list(folder).map_err(of_store)? {
            let part = path.strip_prefix(folder).and_then(|rest| rest.strip_prefix('/'));
            let Some((file, number)) = part.and_then(|part| part.split_once('/')) else { continue };
            if let Ok(number) = number.parse() {
                names.entry(file.to_owned()).or_default().push(number);
            }
        }
        for (file, mut numbers) in names {
            numbers.sort_unstable();
            if numbers.first() != Some(&0) {
                for number in numbers {
                    bucket.objects.delete(&bucket.path(&file, number)).map_err(of_store)?;
                }
                continue;
            }
            if let Some(missing) = (0..).zip(&numbers).find(|(n, found)| n != *found) {
                let path = bucket.objects.name(&bucket.path(&file, missing.0));
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{path} is missing, though there are later ones"),
                ));
            }
            let parts = bucket.load(&file, numbers.len(), requests)?;
            bucket.state().files.insert(file, parts);
        }
        Ok(bucket)
    }

    fn path(&self, file: &str, number: u64) -> String {
        format!("{}/{file}/{number:010}", self.folder)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads all objects of a file.
    fn load(&self, file: &str, count: usize, requests: usize) -> io::Result<Vec<Part>> {
        let next = AtomicUsize::new(0);
        let work = || -> io::Result<Vec<(usize, Vec<u8>)>> {
            let mut got = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= count {
                    return Ok(got);
                }
                got.push((number, self.get(&self.path(file, number as u64))?));
            }
        };
        let mut all = if requests <= 1 {
            work()?
        } else {
            thread::scope(|scope| {
                let threads: Vec<_> = (0..requests.min(count)).map(|_| scope.spawn(work)).collect();
                let mut all = Vec::with_capacity(count);
                for thread in threads {
                    let got = thread.join().unwrap_or_else(|_| Err(io::Error::other("a panic")));
                    all.extend(got?);
                }
                io::Result::Ok(all)
            })?
        };
        all.sort_unstable_by_key(|(number, _)| *number);
        let (mut parts, mut kept) = (Vec::with_capacity(count), 0);
        for (_, bytes) in all {
            let (at, size) = (end(&parts), bytes.len() as u64);
            kept += bytes.len();
            let bytes = Some(bytes).filter(|_| kept <= KEPT_BYTES);
            parts.push(Part { at, size, bytes, fresh: false });
        }
        Ok(parts)
    }

    fn get(&self, path: &str) -> io::Result<Vec<u8>> {
        let missing = || {
            let path = self.objects.name(path);
            io::Error::new(io::ErrorKind::NotFound, format!("{path} is gone"))
        };
        self.objects.get(path).map_err(of_store)?.ok_or_else(missing)
    }

    /// Puts bytes where nothing is; how many of them are there now.
    fn put(&self, state: &mut State, path: String, bytes: &[u8]) -> io::Result<usize> {
        if state.taken {
            return Err(self.is_taken());
        }
        let tried = state.tried.replace((path.clone(), bytes.to_vec()));
        let absent = match self.objects.put(&path, bytes.to_vec()) {
            Ok(absent) => absent,
            Err(error) => {
                // Either of the two may be there in the end: the longer one begins with the other.
                if let Some((at, before)) = tried
                    && at == path
                    && before.starts_with(bytes)
                {
                    state.tried = Some((at, before));
                }
                return Err(of_store(error));
            }
        };
        if absent {
            state.tried = None;
            return Ok(bytes.len());
        }
        let found = self.get(&path)?;
        let own = |(at, tried): &(String, Vec<u8>)| *at == path && tried.starts_with(&found);
        let is_own = found == bytes || tried.as_ref().is_some_and(own);
        if !is_own || !bytes.starts_with(&found) {
            state.taken = true;
            return Err(self.is_taken());
        }
        state.tried = None;
        Ok(found.len())
    }

    fn is_taken(&self) -> io::Error {
        let folder = self.objects.name(&self.folder);
        io::Error::other(format!("another process writes to {folder}"))
    }
}

impl Disk for Bucket {
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let state = self.state();
        Ok(state.files.iter().map(|(name, parts)| (name.clone(), end(parts))).collect())
    }

    fn create(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        if state.files.contains_key(name) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        state.files.insert(name.to_owned(), Vec::new());
        Ok(())
    }

    fn append(&self, name: &str, mut bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        while !bytes.is_empty() {
            let Some(parts) = state.files.get(name) else {
                return Err(io::Error::from(io::ErrorKind::NotFound));
            };
            let (at, path) = (end(parts), self.path(name, parts.len() as u64));
            let size = match state.there(name) {
                None => self.put(&mut state, path, bytes)?,
                Some(there) if bytes.starts_with(&there) => there.len(),
                Some(_) => {
                    state.taken = true;
                    return Err(self.is_taken());
                }
            };
            let part =
                Part { at, size: size as u64, bytes: Some(bytes[..size].to_vec()), fresh: true };
            state.files.entry(name.to_owned()).or_default().push(part);
            bytes = &bytes[size..];
        }
        Ok(())
    }

    fn sync(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let parts = state.files.get_mut(name).into_iter().flatten();
        for part in parts.rev().take_while(|part| part.fresh) {
            (part.bytes, part.fresh) = (None, false);
        }
        Ok(())
    }

    fn sync_names(&self) -> io::Result<()> {
        Ok(())
    }

    fn read(&self, name: &str, at: u64, bytes: &mut [u8]) -> io::Result<usize> {
        let state = self.state();
        let Some(parts) = state.files.get(name) else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        let first = parts.partition_point(|part| part.at + part.size <= at);
        let (mut filled, mut at) = (0, at);
        for (number, part) in parts.iter().enumerate().skip(first) {
            if filled == bytes.len() {
                break;
            }
            let read;
            let held = match &part.bytes {
                Some(held) => held,
                None => {
                    read = self.get(&self.path(name, number as u64))?;
                    &read
                }
            };
            let from = &held[(at - part.at) as usize..];
            let count = from.len().min(bytes.len() - filled);
            bytes[filled..filled + count].copy_from_slice(&from[..count]);
            (filled, at) = (filled + count, at + count as u64);
        }
        Ok(filled)
    }

    fn truncate(&self, name: &str, size: u64) -> io::Result<()> {
        let mut state = self.state();
        if state.taken {
            return Err(self.is_taken());
        }
        let Some(parts) = state.files.get_mut(name) else {
            return Err(io::Error::from(io::ErrorKind::NotFound));
        };
        let mut cut = VecDeque::new();
        while end(parts) > size {
            match parts.pop() {
                Some(Part { at, bytes: Some(bytes), fresh: true, .. }) if at >= size => {
                    cut.push_front(bytes);
                }
                _ => {
                    state.taken = true;
                    let path = self.objects.name(&format!("{}/{name}", self.folder));
                    let message = format!("{path} is damaged behind byte {size}");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, message));
                }
            }
        }
        if !cut.is_empty() {
            if state.cut.0 == name {
                cut.append(&mut state.cut.1);
            }
            state.cut = (name.to_owned(), cut);
        }
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.state();
        let count = state.files.get(name).map_or(0, Vec::len);
        for number in 0..count as u64 {
            self.objects.delete(&self.path(name, number)).map_err(of_store)?;
        }
        state.files.remove(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::journal::{Entry, Journal, JournalError, Kind};

    /// A store whose next puts have these outcomes: done, done without a reply, not done.
    #[derive(Default)]
    struct Store {
        objects: Mutex<BTreeMap<String, Vec<u8>>>,
        fates: Mutex<VecDeque<Fate>>,
    }

    #[derive(Clone, Copy)]
    enum Fate {
        Done,
        ReplyLost,
        Lost,
    }

    impl Store {
        fn next(&self, fates: impl IntoIterator<Item = Fate>) {
            self.fates.lock().unwrap().extend(fates);
        }
    }

    impl Objects for Store {
        fn list(&self, folder: &str) -> Result<Vec<String>, ConnectorError> {
            let under = format!("{folder}/");
            let objects = self.objects.lock().unwrap();
            Ok(objects.keys().filter(|path| path.starts_with(&under)).cloned().collect())
        }
        fn get(&self, path: &str) -> Result<Option<Vec<u8>>, ConnectorError> {
            Ok(self.objects.lock().unwrap().get(path).cloned())
        }
        fn put(&self, path: &str, bytes: Vec<u8>) -> Result<bool, ConnectorError> {
            let fate = self.fates.lock().unwrap().pop_front().unwrap_or(Fate::Done);
            let mut objects = self.objects.lock().unwrap();
            let absent = !objects.contains_key(path);
            if !matches!(fate, Fate::Lost) {
                objects.entry(path.to_owned()).or_insert(bytes);
            }
            match fate {
                Fate::Done => Ok(absent),
                Fate::ReplyLost | Fate::Lost => Err(ConnectorError::retry("no reply")),
            }
        }
        fn delete(&self, path: &str) -> Result<(), ConnectorError> {
            self.objects.lock().unwrap().remove(path);
            Ok(())
        }
        fn name(&self, path: &str) -> String {
            format!("s3://b/{path}")
        }
    }

    fn journal(store: &Arc<Store>) -> Result<Journal, JournalError> {
        let bucket = Bucket::open(store.clone(), "log", 3).unwrap();
        Journal::open(Arc::new(bucket), "test", 200)
    }

    fn add(journal: &mut Journal, words: &[&str]) -> Result<u64, JournalError> {
        for word in words {
            let payload = word.as_bytes();
            let entry = Entry { arrival: 1, kind: Kind::Message, topic: "", payload };
            journal.append(&entry)?;
        }
        journal.sync()
    }

    fn words(journal: &Journal) -> Vec<String> {
        let mut reader = journal.reader(journal.bounds().0);
        let mut found = Vec::new();
        while let Some(record) = reader.read().unwrap() {
            found.push(String::from_utf8(record.entry.payload.to_vec()).unwrap());
        }
        found
    }

    #[test]
    fn what_was_synced_is_there_and_old_segments_go() {
        let store = Arc::new(Store::default());
        let mut log = journal(&store).unwrap();
        for n in 0..20 {
            add(&mut log, &[&format!("a{n}"), &format!("b{n}")]).unwrap();
        }
        let all = words(&log);
        assert_eq!((all.len(), all[39].as_str()), (40, "b19"));
        assert_eq!(words(&journal(&store).unwrap()), all);
        log.trim(30).unwrap();
        let left = words(&log);
        assert!(left.len() < 20 && all.ends_with(&left), "{left:?}");
        assert_eq!(words(&journal(&store).unwrap()), left);
        assert!(add(&mut log, &["c"]).is_ok());
    }

    #[test]
    fn of_two_writers_one_alone_gets_on() {
        let store = Arc::new(Store::default());
        let mut old = journal(&store).unwrap();
        add(&mut old, &["a"]).unwrap();
        let mut new = journal(&store).unwrap();
        add(&mut new, &["b"]).unwrap();
        let error = add(&mut old, &["c"]).unwrap_err().to_string();
        assert!(error.contains("another process writes to s3://b/log"), "{error}");
        old.forget();
        assert!(old.is_unsure());
        add(&mut new, &["d"]).unwrap();
        assert_eq!(words(&journal(&store).unwrap()), ["a", "b", "d"]);
        // The same where it is the old one that comes first.
        let (mut old, mut new) = (journal(&store).unwrap(), journal(&store).unwrap());
        add(&mut old, &["e"]).unwrap();
        assert!(add(&mut new, &["f"]).is_err());
    }

    #[test]
    fn a_lost_reply_is_no_second_entry() {
        for fates in [
            vec![Fate::ReplyLost],
            vec![Fate::Lost],
            vec![Fate::ReplyLost, Fate::Lost],
            vec![Fate::Lost, Fate::ReplyLost],
            vec![Fate::Lost, Fate::Lost, Fate::ReplyLost, Fate::Lost],
        ] {
            for before in [&[][..], &["x"]] {
                let store = Arc::new(Store::default());
                let mut log = journal(&store).unwrap();
                if !before.is_empty() {
                    add(&mut log, before).unwrap();
                }
                store.next(fates.clone());
                // Each attempt has what the last one had, and more.
                let mut tries = 0;
                let given = ["a", "b", "c", "d", "e", "f", "g", "h"];
                while add(&mut log, &given[..=tries]).is_err() {
                    log.forget();
                    assert!(!log.is_unsure());
                    tries += 1;
                }
                let expected = [before, &given[..=tries]].concat();
                assert_eq!(words(&log), expected);
                assert_eq!(words(&journal(&store).unwrap()), expected);
            }
        }
    }

    #[test]
    fn what_is_cut_off_is_taken_up_by_what_begins_with_it() {
        let store = Arc::new(Store::default());
        let bucket = Bucket::open(store.clone(), "log", 1).unwrap();
        bucket.create("f").unwrap();
        bucket.append("f", b"one").unwrap();
        bucket.sync("f").unwrap();
        bucket.append("f", b"two").unwrap();
        bucket.append("f", b"three").unwrap();
        bucket.truncate("f", 3).unwrap();
        assert_eq!(bucket.list().unwrap(), [("f".to_owned(), 3)]);
        bucket.append("f", b"twothreefour").unwrap();
        let mut all = [0; 20];
        assert_eq!(bucket.read("f", 2, &mut all).unwrap(), 13);
        assert_eq!(&all[..13], b"etwothreefour");
        bucket.truncate("f", 3).unwrap();
        assert!(bucket.append("f", b"other").is_err());
        assert!(bucket.append("f", b"two").is_err(), "it is given up for good");
        // What was synced, or found, is not cut off.
        let again = Bucket::open(store, "log", 1).unwrap();
        let error = again.truncate("f", 3).unwrap_err().to_string();
        assert!(error.contains("s3://b/log/f is damaged behind byte 3"), "{error}");
    }

    #[test]
    fn a_removal_that_broke_off_is_ended_and_a_hole_is_told() {
        let store = Arc::new(Store::default());
        let bucket = Bucket::open(store.clone(), "log", 1).unwrap();
        for file in ["f", "g"] {
            bucket.create(file).unwrap();
            (0..4).for_each(|_| bucket.append(file, b"words").unwrap());
        }
        store.delete("log/f/0000000000").unwrap();
        let left = Bucket::open(store.clone(), "log", 1).unwrap().list().unwrap();
        assert_eq!(left, [("g".to_owned(), 20)]);
        assert_eq!(store.list("log/f").unwrap(), [""; 0]);
        store.delete("log/g/0000000002").unwrap();
        let error = Bucket::open(store, "log", 1).err().unwrap().to_string();
        assert!(error.starts_with("s3://b/log/g/0000000002 is missing"), "{error}");
    }
}
