//! Which generation of a job may put files: markers in the target.
//!
//! # Invariant
//! `_weir/<job>-<sink>/generation-<20 digits>` stands for a generation that has taken over; the
//! newest is the one that may put files. A generation looks right before a file becomes visible.
//!
//! # Argument
//! A generation puts its marker, then looks whether a newer one is there: of two that start in the
//! same moment the older sees the newer, or had its look before the newer's marker was there and is
//! refused at its first put. Markers older than one's own are removed once it is there, so that a
//! look is one short listing. A marker that has gone (a bucket that forgets old objects) is put
//! again.
//!
//! # Limits
//! A look comes when the file is synced, or all its parts are at the server, and one step is left:
//! a link, a put, the completion of an upload. A generation that is stopped between its look and
//! the end of that step may still put this one file. `target.rs` says what becomes of it.

use weir_connect::store::{PutMode, Store};
use weir_engine::connector::ConnectorError;
use weir_engine::sink::Author;
use xxhash_rust::xxh3::xxh3_64;

const FOLDER: &str = "_weir";
const MARKER: &str = "generation-";

/// What sets the files of one sink of one job apart from all others in a folder: the job, and the
/// sink as 16 hexadecimal digits (XXH3-64), because tables may have any name.
pub(crate) fn label(author: &Author) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || c == '-';
    assert!(author.job.chars().all(safe), "a job's name is made of letters, digits and -");
    format!("{}-{:016x}", author.job, xxh3_64(author.sink.as_bytes()))
}

/// A generation before the markers of its job and sink.
#[derive(Clone)]
pub(crate) struct Fence {
    store: Store,
    folder: String,
    author: Author,
}

impl Fence {
    /// The fence of `author` in a target. Touches nothing.
    pub(crate) fn of(store: &Store, author: &Author) -> Fence {
        let folder = format!("{FOLDER}/{}", label(author));
        Fence { store: store.clone(), folder, author: author.clone() }
    }

    /// Shuts out all older generations, and removes their markers.
    ///
    /// # Errors
    /// `Fatal` where a newer one is at work; what the store says.
    pub(crate) fn take_over(&self) -> Result<(), ConnectorError> {
        self.look()?;
        let marker = self.marker(self.author.generation);
        if self.store.read_all(&marker)?[..] != *self.text().as_bytes() {
            let (own, place) = (self.author.generation, self.store.url());
            let message = format!(
                "another process writes {place} as generation {own} of job {}: it goes on from a \
                 copy of the same state",
                self.author.job
            );
            let hint = "of the two one alone can go on: end the other, and start this one again";
            return Err(ConnectorError::fatal(message).hint(hint));
        }
        for older in self.markers()?.into_iter().filter(|n| *n < self.author.generation) {
            self.store.delete(&self.marker(older))?;
        }
        Ok(())
    }

    /// Whether this generation may put a file now.
    ///
    /// # Errors
    /// `Fatal` where a newer one has taken over; what the store says.
    pub(crate) fn look(&self) -> Result<(), ConnectorError> {
        if !self.is_newest()? {
            // One that is there already is as good: another thread of this generation put it.
            let marker = self.marker(self.author.generation);
            self.store.put(&marker, self.text(), PutMode::IfAbsent)?;
            self.is_newest()?;
        }
        Ok(())
    }

    /// What a marker says.
    fn text(&self) -> String {
        let Author { job, sink, generation, holder, .. } = &self.author;
        format!("generation {generation} ({holder:016x}) of job {job} writes {sink} here\n")
    }

    /// Whether the newest marker is this generation's; false where none is as new.
    fn is_newest(&self) -> Result<bool, ConnectorError> {
        let own = self.author.generation;
        let newest = self.markers()?.into_iter().max();
        if let Some(newest) = newest.filter(|newest| *newest > own) {
            let (job, place) = (&self.author.job, self.store.url());
            let message = format!("generation {newest} of job {job} has taken over {place}");
            let hint = format!("this is generation {own}, which may not write any more");
            return Err(ConnectorError::fatal(message).hint(hint));
        }
        Ok(newest == Some(own))
    }

    fn markers(&self) -> Result<Vec<u64>, ConnectorError> {
        let number = |path: &str| path.rsplit('/').next()?.strip_prefix(MARKER)?.parse().ok();
        let entries = self.store.list(&self.folder)?;
        Ok(entries.iter().filter_map(|entry| number(&entry.path)).collect())
    }

    fn marker(&self, generation: u64) -> String {
        format!("{}/{MARKER}{generation:020}", self.folder)
    }
}
