//! Where a job's cut logs are: folders of this machine, or of an object store.
//!
//! In a folder (the default) a log is synced at once, and locked: a second start on this machine
//! ends at the lock. In an object store (`--log URL`) a log outlives the machine, each sync takes a
//! request, and there is no lock: whoever writes second ends (`weir_engine::journal::Bucket`).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use weir_connect::store::{Store, StoreOptions};
use weir_engine::cutlog::{Begin, Choice, CutLog, CutLogError, SEGMENT_BYTES, Summary};
use weir_engine::journal::{Bucket, Disk, Folder, JournalError};
use weir_engine::store::Objects;

use crate::lasting::of_store;
use crate::run::Trouble;

/// How long a start waits for processes that hold the logs still.
const LOCKED_FOR: Duration = Duration::from_secs(5);
/// Segments in an object store: they go as a whole, and each has many objects.
const SEGMENT_BYTES_REMOTE: u64 = 256 << 10;
/// Requests at a time while a log is read.
const REQUESTS: usize = 16;

/// The place of a job's logs.
pub(crate) enum Place {
    /// On this machine.
    Folder(PathBuf),
    /// In an object store.
    Store(Arc<Store>),
}

fn log_name(process: usize) -> String {
    format!("cuts-{process}")
}

fn aside_name(process: usize, newest: u64) -> String {
    format!("broken-{}-{newest}", log_name(process))
}

impl Place {
    /// A folder or a URL.
    pub(crate) fn of(url: &str) -> Result<Place, Trouble> {
        if !url.contains("://") || url.starts_with("file://") {
            return Ok(Place::Folder(url.strip_prefix("file://").unwrap_or(url).into()));
        }
        let store = Store::open(url, &StoreOptions::none()).map_err(of_store)?;
        Ok(Place::Store(Arc::new(store)))
    }

    /// A process's log, as a person would write it.
    fn name(&self, process: usize) -> String {
        match self {
            Place::Folder(path) => path.join(log_name(process)).display().to_string(),
            Place::Store(store) => store.name(&log_name(process)),
        }
    }

    /// The processes whose logs are there.
    fn processes(&self) -> Result<BTreeSet<usize>, Trouble> {
        let number = |name: &str| name.strip_prefix("cuts-")?.parse::<usize>().ok();
        Ok(match self {
            Place::Folder(path) => {
                let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
                entries.filter_map(|entry| entry.file_name().to_str().and_then(number)).collect()
            }
            Place::Store(store) => {
                let paths = Objects::list(store.as_ref(), "").map_err(of_store)?;
                paths.iter().filter_map(|path| number(path.split('/').next()?)).collect()
            }
        })
    }

    /// A process's log; the inner error is the log's own.
    pub(crate) fn open(
        &self,
        process: usize,
        job: &str,
        id: &str,
    ) -> Result<Result<CutLog, CutLogError>, Trouble> {
        let (disk, segment): (Arc<dyn Disk>, u64) = match self {
            Place::Folder(path) => {
                (Arc::new(locked(&path.join(log_name(process)), job)?), SEGMENT_BYTES)
            }
            Place::Store(store) => {
                let (file, store) = (log_name(process), store.clone());
                match Bucket::open(store, &file, REQUESTS) {
                    Ok(bucket) => (Arc::new(bucket), SEGMENT_BYTES_REMOTE),
                    Err(source) => {
                        let error = JournalError::Io { doing: "open", file, source };
                        return Ok(Err(error.into()));
                    }
                }
            }
        };
        Ok(CutLog::open(disk, id, segment))
    }

    fn is_remote(&self) -> bool {
        matches!(self, Place::Store(_))
    }

    /// What is wrong with a log here.
    pub(crate) fn told(&self, error: &CutLogError) -> Trouble {
        told(self.is_remote(), "", error)
    }

    /// Keeps a log that cannot be read under another name; which.
    fn set_aside(&self, process: usize, newest: u64) -> Result<String, Trouble> {
        let (log, aside) = (log_name(process), aside_name(process, newest));
        match self {
            Place::Folder(folder) => {
                let (path, aside) = (folder.join(log), folder.join(aside));
                let moved = std::fs::rename(&path, &aside);
                moved.map_err(|e| Trouble::new(format!("cannot move {}: {e}", path.display())))?;
                Ok(aside.display().to_string())
            }
            Place::Store(store) => {
                let store: &dyn Objects = store.as_ref();
                for path in store.list(&log).map_err(of_store)? {
                    let to = path.replacen(&log, &aside, 1);
                    if let Some(bytes) = store.get(&path).map_err(of_store)? {
                        store.put(&to, bytes).map_err(of_store)?;
                    }
                    store.delete(&path).map_err(of_store)?;
                }
                Ok(store.name(&aside))
            }
        }
    }
}

/// What is wrong with a log. It may pass where logs are in a store: that may be away, and another
/// process may be about to end.
fn told(remote: bool, log: &str, error: &CutLogError) -> Trouble {
    let passing = remote
        && match error {
            CutLogError::Journal(JournalError::Io { source, .. }) => {
                source.kind() != std::io::ErrorKind::InvalidData
            }
            CutLogError::Journal(JournalError::Unsure { .. }) => true,
            _ => false,
        };
    Trouble { passing, ..Trouble::new(format!("{log}{error}")) }
}

/// A folder of this machine, once whoever had it has let it go.
fn locked(path: &Path, job: &str) -> Result<Folder, Trouble> {
    Folder::open_within(path, LOCKED_FOR).map_err(|error| {
        let shown = path.display();
        if error.kind() != std::io::ErrorKind::WouldBlock {
            return Trouble::new(format!("cannot open the cut log {shown}: {error}"));
        }
        let mut trouble = Trouble::new(format!("the job `{job}` runs already, in another process"));
        trouble.hint = Some(format!("{shown} is locked by it"));
        // A generation that follows another may wait for what is left of that.
        trouble.passing = true;
        trouble
    })
}

/// The logs of a job that were found, those of processes that are no more among them.
pub(crate) struct Logs {
    pub(crate) of: BTreeMap<usize, CutLog>,
    pub(crate) remote: bool,
}

impl Logs {
    /// Opens those that are there, and those of `processes`. What cannot be read is given up only
    /// where another one has seen the generation `begun`, the newest that has begun; and in a store
    /// only once nobody else can commit (`fenced`).
    pub(crate) fn open(
        place: &Place,
        (job, id): (&str, &str),
        processes: usize,
        begun: u64,
        fenced: bool,
    ) -> Result<Logs, Trouble> {
        let mut numbers: BTreeSet<usize> = (0..processes).collect();
        numbers.extend(place.processes()?);
        let remote = place.is_remote();
        let (mut of, mut broken) = (BTreeMap::new(), Vec::new());
        for number in numbers {
            match place.open(number, job, id)? {
                Ok(log) => drop(of.insert(number, log)),
                Err(error) => broken.push((number, error)),
            }
        }
        let newest = of.values().map(|log| log.summary().generation).max().unwrap_or(0);
        for (number, error) in broken {
            let log = place.name(number);
            let trouble = told(remote, &format!("{log}: "), &error);
            if trouble.passing || newest == 0 || newest < begun {
                return Err(trouble);
            }
            if remote && !fenced {
                // Somebody may be writing to it.
                continue;
            }
            let kept = place.set_aside(number, newest)?;
            tracing::warn!(%log, %error, %kept,
                "this cut log cannot be read; it is made again from another process's");
            if number < processes {
                let log = place.open(number, job, id)?.map_err(|e| place.told(&e))?;
                of.insert(number, log);
            }
        }
        Ok(Logs { of, remote })
    }

    /// What is wrong with one of them.
    pub(crate) fn told(&self, error: &CutLogError) -> Trouble {
        told(self.remote, "", error)
    }

    pub(crate) fn summaries(&self) -> Vec<Summary> {
        self.of.values().map(CutLog::summary).collect()
    }

    pub(crate) fn newest_generation(&self) -> u64 {
        self.of.values().map(|log| log.summary().generation).max().unwrap_or(0)
    }

    /// Begins a generation in the logs of its processes.
    pub(crate) fn begin(&mut self, begin: Begin) -> Result<(), Trouble> {
        let (remote, processes) = (self.remote, begin.processes as usize);
        let mut mine = self.of.range_mut(..processes).map(|(_, log)| log);
        mine.try_for_each(|log| log.begin(begin)).map_err(|e| told(remote, "", &e))
    }

    /// Brings the logs of a set to the base, from the one that has it.
    pub(crate) fn settle(&mut self, choice: &Choice, processes: usize) -> Result<(), CutLogError> {
        let numbers: Vec<usize> = self.of.keys().copied().collect();
        let donor = choice.donor.map(|place| numbers[place]);
        for process in 0..processes {
            if Some(process) == donor {
                continue;
            }
            let from = donor.and_then(|donor| self.of.get(&donor));
            let given = from.map(|log| (log.summary().floor, log.cuts()));
            let Some(log) = self.of.get_mut(&process) else { continue };
            match given {
                Some((floor, cuts)) => log.adopt(floor, cuts)?,
                // Of what the log holds nothing counts any more: it begins behind the checkpoint.
                None if log.summary().last != choice.base => {
                    log.adopt(choice.base, std::iter::empty())?;
                }
                None => {}
            }
        }
        Ok(())
    }
}
