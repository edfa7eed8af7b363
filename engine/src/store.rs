//! The state store of a job: who may write, and which checkpoints count.
//!
//! # What is in it
//! Objects that are put once and never changed (`docs/formats.md` has their forms):
//! - `job.json`: what the job is, put by its first start;
//! - `generations/N.json`: the claim of generation N, put if absent by whoever starts it;
//! - `generations/N.begun.json`: the epoch that generation N goes on from, put before it opens any
//!   source;
//! - `checkpoints/E-N.json`: the manifest of a checkpoint at epoch E by generation N; the
//!   checkpoint exists once this is there;
//! - `pieces/N-….pieces`: state that manifests name.
//!
//! # Invariant
//! A generation's number is claimed once. A manifest counts as long as no later generation has
//! begun from an epoch before it ([`crate::checkpoint::counts`]).
//!
//! # Argument
//! - *One writer*: a put that succeeds only where nothing is makes one claim of a number, whatever
//!   the number of processes that try. Sinks let only the newest generation write, so an older one
//!   that is still alive can do nothing that is seen outside.
//! - *What a zombie leaves here does no harm*: its manifests beyond the base of a later generation
//!   do not count; those before are made of the same cuts, and are as good as any.
//! - *Nothing needed is removed*: see [`crate::checkpoint::to_collect`].

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::connector::ConnectorError;
use crate::journal::crc32c;
use crate::time::Epoch;

/// Version of the forms of claims and job records.
pub const FORMAT: u32 = 1;

/// Objects by path: a folder, or a prefix of a bucket.
pub trait Objects: Send + Sync {
    /// Paths of all objects below a folder, sorted; none where there is no such folder.
    fn list(&self, folder: &str) -> Result<Vec<String>, ConnectorError>;

    /// A whole object; `None` where there is none.
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, ConnectorError>;

    /// Writes an object where none is. False: there is one, untouched. Durable when it returns.
    fn put(&self, path: &str, bytes: Vec<u8>) -> Result<bool, ConnectorError>;

    /// Removes an object; one that is not there is as good as removed.
    fn delete(&self, path: &str) -> Result<(), ConnectorError>;

    /// A path as a person would write it.
    fn name(&self, path: &str) -> String;
}

/// The state store of one job.
#[derive(Clone)]
pub struct JobStore(Arc<dyn Objects>);

/// The claim of a generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Claim {
    format: u32,
    generation: u64,
}

/// What every record but lists has.
#[derive(Deserialize)]
struct Version {
    format: u32,
}

/// Where a generation began.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Begun {
    format: u32,
    generation: u64,
    base: Option<Epoch>,
}

/// A generation, as the store knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Its number.
    pub number: u64,
    /// The epoch that it goes on from, once it has begun: `Some(None)` is from nothing.
    pub begun: Option<Option<Epoch>>,
}

fn claim_path(generation: u64) -> String {
    format!("generations/{generation:020}.json")
}

fn begun_path(generation: u64) -> String {
    format!("generations/{generation:020}.begun.json")
}

/// The number that a path's last part begins with.
pub(crate) fn number_in(path: &str) -> Option<u64> {
    path.rsplit('/').next()?.get(..20)?.parse().ok()
}

impl JobStore {
    /// Over these objects.
    pub fn over(objects: Arc<dyn Objects>) -> JobStore {
        JobStore(objects)
    }

    /// The objects.
    pub fn objects(&self) -> &Arc<dyn Objects> {
        &self.0
    }

    /// What was put at a path with [`JobStore::put`].
    ///
    /// # Errors
    /// The store's; `Fatal` where it is not whole or not of this form.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<Option<T>, ConnectorError> {
        self.get_of(FORMAT, path)
    }

    /// The same of a form with a version of its own.
    ///
    /// # Errors
    /// As [`JobStore::get`].
    pub(crate) fn get_of<T: DeserializeOwned>(
        &self,
        format: u32,
        path: &str,
    ) -> Result<Option<T>, ConnectorError> {
        let Some(bytes) = self.0.get(path)? else { return Ok(None) };
        let broken = |why: String| ConnectorError::fatal(format!("{}: {why}", self.0.name(path)));
        let text = open(&bytes).map_err(broken)?;
        // Of another version's record nothing else need be known.
        if let Ok(Version { format: found }) = serde_json::from_str(text)
            && found != format
        {
            return Err(broken(format!("has format {found}, this build reads {format}")));
        }
        serde_json::from_str(text).map(Some).map_err(|e| broken(format!("cannot be read: {e}")))
    }

    /// Puts a value as a line of JSON with a checksum, where nothing is; false where there is
    /// something.
    ///
    /// # Errors
    /// The store's.
    pub fn put<T: Serialize>(&self, path: &str, value: &T) -> Result<bool, ConnectorError> {
        let text = serde_json::to_string(value);
        let text = text.map_err(|e| ConnectorError::fatal(format!("{path}: {e}")))?;
        self.0.put(path, seal(&text))
    }

    /// All generations that were ever claimed, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub fn generations(&self) -> Result<Vec<Generation>, ConnectorError> {
        let mut found: Vec<Generation> = Vec::new();
        for path in self.0.list("generations")? {
            let Some(number) = number_in(&path) else { continue };
            if found.last().is_none_or(|last| last.number != number) {
                found.push(Generation { number, begun: None });
            }
            if path == begun_path(number)
                && let Some(begun) = self.get::<Begun>(&path)?
                && let Some(last) = found.last_mut()
            {
                last.begun = Some(begun.base);
            }
        }
        Ok(found)
    }

    /// Claims a number of at least `least`, greater than all that were claimed.
    ///
    /// # Errors
    /// The store's; another start that claims the same number at this moment.
    pub fn claim(&self, least: u64) -> Result<u64, ConnectorError> {
        let newest = self.generations()?.last().map_or(0, |last| last.number);
        let generation = least.max(newest + 1);
        let claimed = self.put(&claim_path(generation), &Claim { format: FORMAT, generation })?;
        if !claimed {
            let message = format!("generation {generation} is being started by another process");
            let hint = "start a job once; its processes are started together";
            return Err(ConnectorError::reconfigure(message).hint(hint));
        }
        Ok(generation)
    }

    /// Says where a generation goes on from.
    ///
    /// # Errors
    /// The store's; a generation that has begun before.
    pub fn begin(&self, generation: u64, base: Option<Epoch>) -> Result<(), ConnectorError> {
        let begun = Begun { format: FORMAT, generation, base };
        if !self.put(&begun_path(generation), &begun)? {
            let message = format!("generation {generation} has begun before");
            return Err(ConnectorError::fatal(message));
        }
        Ok(())
    }

    /// Whether a newer generation was claimed.
    ///
    /// # Errors
    /// The store's.
    pub fn is_superseded(&self, generation: u64) -> Result<bool, ConnectorError> {
        let paths = self.0.list("generations")?;
        Ok(paths.iter().filter_map(|path| number_in(path)).any(|number| number > generation))
    }
}

/// A line with its checksum behind it.
pub fn seal(text: &str) -> Vec<u8> {
    format!("{text}\n{:08x}\n", crc32c(text.as_bytes())).into_bytes()
}

/// The line that was sealed.
///
/// # Errors
/// What is wrong with it.
pub fn open(bytes: &[u8]) -> Result<&str, String> {
    let text = std::str::from_utf8(bytes).map_err(|_| "is not text".to_owned())?;
    let (line, sum) = text.split_once('\n').ok_or("ends before its checksum")?;
    let sum = u32::from_str_radix(sum.trim_end(), 16).map_err(|_| "has no checksum".to_owned())?;
    if sum != crc32c(line.as_bytes()) {
        return Err("has a wrong checksum".to_owned());
    }
    Ok(line)
}
