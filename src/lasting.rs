//! Jobs that last (`weir run --state`): what is stored of them, and how the next generation begins.
//!
//! # Layout
//! Each job of a script has a folder in the state store, named by the tables that it writes to:
//! `job.json` (what it is), and what `weir_engine::store` describes. The cut log is on this
//! machine: in the same folder where the store is local, else in `--log`.
//!
//! # Order of a start
//! 1. The cut log is locked: a second process of this job on this machine ends here.
//! 2. The generation is claimed; its number is greater than all before.
//! 3. Every sink is taken over: from here on nobody else can commit.
//! 4. The newest sound checkpoint is read, and the base is chosen: the last epoch of the log, or
//!    the checkpoint's where the log is gone. No sink may be ahead of it.
//! 5. `Begin` is written to the log, then to the store. Only then does a source open.
//!
//! # The plan
//! The first start stores the plan and the splits, with the offsets where their reading begins;
//! later starts use these, so that another build plans nothing anew and `latest-offset` stays where
//! it was. Secrets are not stored: options come from the script at each start, and all others must
//! be what they were.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weir_connect::options::mask_url;
use weir_connect::store::{Store, StoreOptions};
use weir_engine::checkpoint::{Checkpointer, Loaded, load_newest};
use weir_engine::connector::{ConnectorError, Connectors, TableSpec};
use weir_engine::cutlog::{self, Begin, CutLog, Recorder, SEGMENT_BYTES};
use weir_engine::flow::{EpochPolicy, JobInput};
use weir_engine::graph::Node;
use weir_engine::job::Lasting;
use weir_engine::journal::Folder;
use weir_engine::sink::Author;
use weir_engine::store::{FORMAT, JobStore};
use weir_engine::time::{Epoch, Millis};
use weir_queries::JobPlan;

use crate::connectors;
use crate::run::{PreparedJob, Trouble, graph_of, prepare, probe};

/// Where a job's state is.
#[derive(Clone, Debug)]
pub struct StateOptions {
    /// A folder, or the URL of an object store.
    pub store: String,
    /// Folder of the cut logs, where the store is not local.
    pub log: Option<PathBuf>,
    /// The least time between two checkpoints, in milliseconds.
    pub interval: Millis,
}

/// What a job is, as its first start stored it.
#[derive(Serialize, Deserialize)]
struct JobRecord {
    format: u32,
    /// A name that no other job ever has.
    id: String,
    /// The version of Weir that planned it.
    weir: String,
    /// The plan, without secrets.
    plan: Value,
    input: JobInput,
}

impl LastingJob {
    /// Where it goes on, in a line.
    pub fn told(&self) -> String {
        let (name, generation) = (&self.job.plan.name, self.lasting.generation);
        let from = match (&self.lasting.restored, self.base) {
            (Some(loaded), Some(base)) => {
                let epoch = loaded.manifest.epoch;
                format!("goes on from the checkpoint at epoch {epoch}, by recorded cuts to {base}")
            }
            (None, Some(base)) => format!("goes again by its recorded cuts, to epoch {base}"),
            _ => "begins".to_owned(),
        };
        format!("job {name}, generation {generation}: {from}")
    }
}

const JOB: &str = "job.json";
const SECRET: &str = "(secret)";

/// A job with what makes it last.
pub struct LastingJob {
    /// The job as it was planned first.
    pub job: PreparedJob,
    /// What the engine needs to know.
    pub lasting: Lasting,
    /// The epoch that it goes on from.
    pub base: Option<Epoch>,
}

impl StateOptions {
    /// Opens a job's state and begins its next generation. `same` counts the jobs before it in the
    /// script that write to the same tables.
    ///
    /// # Errors
    /// The state store's and the cut log's; a plan that is not the stored one; a sink that is ahead
    /// of all that is known.
    pub fn begin(
        &self,
        plan: JobPlan,
        same: usize,
        epoch: Option<EpochPolicy>,
        workers: usize,
    ) -> Result<LastingJob, Trouble> {
        let folder = folder_of(&plan.name, same);
        let (store, log) = self.open(&folder)?;
        let name = plan.name.clone();
        let (record, job) = settle(&store, plan, epoch)?;
        let disk = Folder::open(&log).map_err(|e| locked(&name, &log, &e))?;
        let log = CutLog::open(Arc::new(disk), &record.id, SEGMENT_BYTES)
            .map_err(|e| Trouble::new(e.to_string()))?;
        let (lasting, base) = start(&store, &record, &job, log, workers, self.interval)?;
        Ok(LastingJob { job, lasting, base })
    }

    fn open(&self, folder: &str) -> Result<(JobStore, PathBuf), Trouble> {
        let url = format!("{}/{folder}", self.store.trim_end_matches('/'));
        let store = Store::open(&url, &StoreOptions::none()).map_err(of_store)?;
        let log = match (&self.log, store.is_local()) {
            (Some(log), _) => log.join(folder),
            (None, true) => Path::new(url.strip_prefix("file://").unwrap_or(&url)).to_owned(),
            (None, false) => {
                let mut trouble = Trouble::new(format!("{} is not on this machine", store.url()));
                trouble.hint = Some("say where the cut log goes: --log FOLDER".to_owned());
                return Err(trouble);
            }
        };
        Ok((JobStore::over(Arc::new(store)), log.join("cuts-0")))
    }
}

fn of_store(error: ConnectorError) -> Trouble {
    Trouble { table: None, message: format!("state: {}", error.message), hint: error.hint }
}

fn locked(job: &str, log: &Path, error: &std::io::Error) -> Trouble {
    if error.kind() == std::io::ErrorKind::WouldBlock {
        let mut trouble = Trouble::new(format!("the job `{job}` runs already, in another process"));
        trouble.hint = Some(format!("{} is locked by it", log.display()));
        return trouble;
    }
    Trouble::new(format!("cannot open the cut log {}: {error}", log.display()))
}

/// The folder of a job: its tables' names, in letters that every store takes.
fn folder_of(name: &str, same: usize) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let mut folder: String = name.chars().map(plain).take(80).collect();
    folder = folder.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-");
    if same > 0 {
        folder.push_str(&format!("-{}", same + 1));
    }
    folder
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    // Seeded by the system's random numbers.
    std::hash::RandomState::new().build_hasher().finish()
}

/// A name that no other job has.
fn fresh_id(folder: &str) -> String {
    let random = random();
    let short: String = folder.replace('_', "-").chars().take(32).collect();
    format!("{short}-{random:016x}")
}

/// The job as stored, or stores it as it is planned now.
fn settle(
    store: &JobStore,
    plan: JobPlan,
    epoch: Option<EpochPolicy>,
) -> Result<(JobRecord, PreparedJob), Trouble> {
    let connectors = connectors::all();
    if let Some(record) = store.get::<JobRecord>(JOB).map_err(of_store)? {
        return take_stored(record, plan, epoch, &connectors);
    }
    let job = prepare(plan, epoch)?;
    let record = JobRecord {
        format: FORMAT,
        id: fresh_id(&folder_of(&job.plan.name, 0)),
        weir: env!("CARGO_PKG_VERSION").to_owned(),
        plan: masked(&job.plan, &connectors)?,
        input: job.input.clone(),
    };
    if !store.put(JOB, &record).map_err(of_store)? {
        return Err(Trouble::new("the job is being started by another process at this moment"));
    }
    Ok((record, job))
}

fn take_stored(
    record: JobRecord,
    fresh: JobPlan,
    epoch: Option<EpochPolicy>,
    connectors: &Connectors,
) -> Result<(JobRecord, PreparedJob), Trouble> {
    if record.format != FORMAT {
        let found = record.format;
        let message = format!("the job's state has format {found}, this build reads {FORMAT}");
        return Err(Trouble::new(message));
    }
    let stored: JobPlan = serde_json::from_value(record.plan.clone())
        .map_err(|e| Trouble::new(format!("the stored plan cannot be read: {e}")))?;
    let now: JobPlan = serde_json::from_value(masked(&fresh, connectors)?)
        .map_err(|e| Trouble::new(format!("the plan cannot be compared: {e}")))?;
    let same_build = record.weir == env!("CARGO_PKG_VERSION");
    if let Some(what) = difference(&stored, &now, same_build) {
        let name = &fresh.name;
        let mut trouble =
            Trouble::new(format!("the job `{name}` is not what its state was made by: {what}"));
        trouble.hint = Some(
            "run the script as it was, or start the changed one under another --state".to_owned(),
        );
        return Err(trouble);
    }
    // Operators as they were planned, options as they are written now.
    let mut plan = stored;
    let options = tables(&fresh).map(|table| table.options.clone()).collect::<Vec<_>>();
    for (table, options) in tables_mut(&mut plan).zip(options) {
        table.options = options;
    }
    probe(&plan)?;
    let mut input = record.input.clone();
    let live = matches!(input.policy, EpochPolicy::Live { .. });
    if let Some(policy) = epoch.filter(|p| matches!(p, EpochPolicy::Live { .. }) == live) {
        input.policy = policy;
    }
    Ok((record, PreparedJob { plan, input }))
}

/// What is not as it was, in words.
fn difference(stored: &JobPlan, now: &JobPlan, same_build: bool) -> Option<String> {
    let pairs = tables(stored).zip(tables(now));
    for (was, is) in pairs {
        if was.name != is.name {
            return Some(format!("table `{}` stands where `{}` was", is.name, was.name));
        }
        let mut keys = was.options.keys().chain(is.options.keys());
        if let Some(key) = keys.find(|key| was.options.get(*key) != is.options.get(*key)) {
            return Some(format!("table `{}` has another '{key}'", is.name));
        }
        if was != is {
            return Some(format!("table `{}` has other columns or keys", is.name));
        }
    }
    if tables(stored).count() != tables(now).count() {
        return Some("it has other tables".to_owned());
    }
    (same_build && stored != now).then(|| "its query has changed".to_owned())
}

fn tables(plan: &JobPlan) -> impl Iterator<Item = &TableSpec> {
    plan.nodes.iter().filter_map(|node| node.node.table())
}

fn tables_mut(plan: &mut JobPlan) -> impl Iterator<Item = &mut TableSpec> {
    plan.nodes.iter_mut().filter_map(|node| node.node.table_mut())
}

/// The plan as JSON, without secrets.
fn masked(plan: &JobPlan, connectors: &Connectors) -> Result<Value, Trouble> {
    let mut plan = plan.clone();
    for table in tables_mut(&mut plan) {
        let connector = table.options.get("connector").and_then(|name| connectors.get(name));
        let docs = connector.map(|c| c.options()).unwrap_or_default();
        for (key, value) in &mut table.options {
            let secret = docs.iter().any(|doc| doc.key == key && doc.kind == "secret")
                || ["password", "secret", "jaas"].iter().any(|word| key.contains(word));
            *value = if secret { SECRET.to_owned() } else { mask_url(value) };
        }
    }
    serde_json::to_value(&plan).map_err(|e| Trouble::new(format!("the plan is no JSON: {e}")))
}

/// Steps 2 to 5 of the start.
fn start(
    store: &JobStore,
    record: &JobRecord,
    job: &PreparedJob,
    mut log: CutLog,
    workers: usize,
    interval: Millis,
) -> Result<(Lasting, Option<Epoch>), Trouble> {
    let failed = |e: cutlog::CutLogError| Trouble::new(e.to_string());
    let no_thread = |e: std::io::Error| Trouble::new(format!("no thread for the state: {e}"));
    let generation = store.claim(log.summary().generation + 1).map_err(of_store)?;
    let holder = random();
    let begun = store.generations().map_err(of_store)?.iter().any(|g| g.begun.is_some());
    let there = take_over(&job.plan, &record.id, (generation, holder), begun)?;
    let restored = newest_checkpoint(store, log.summary().floor.is_none())?.map(Arc::new);
    let name = restored.as_ref().map(|loaded| (loaded.manifest.generation, loaded.manifest.epoch));
    let choice = cutlog::choose(&[log.summary()], name).map_err(Trouble::new)?;
    let base = choice.base;
    if let Some((table, ahead)) = there.into_iter().find(|(_, ahead)| *ahead > base) {
        return Err(is_ahead(&table, ahead, base));
    }
    if choice.donor.is_none() && log.summary().last != base {
        // Of what the log holds nothing counts any more: it begins anew behind the checkpoint.
        log.adopt(base, std::iter::empty()).map_err(failed)?;
    }
    let workers = u32::try_from(workers).unwrap_or(u32::MAX);
    log.begin(Begin { generation, base, processes: 1, workers }).map_err(failed)?;
    store.begin(generation, base).map_err(of_store)?;
    let memory = Arc::new(Recorder::start(log, workers as usize).map_err(no_thread)?);
    let from = restored.as_ref().map(|loaded| &loaded.manifest);
    let checkpoints =
        Checkpointer::start(store.clone(), generation, from, interval, memory.clone())
            .map_err(no_thread)?;
    let lasting = Lasting {
        job: record.id.clone(),
        generation,
        holder,
        memory,
        checkpoints: Some(Arc::new(checkpoints)),
        restored,
    };
    Ok((lasting, base))
}

/// The newest sound checkpoint; what is wrong with newer ones is said. `from_nothing`: the log goes
/// back to the beginning.
fn newest_checkpoint(store: &JobStore, from_nothing: bool) -> Result<Option<Loaded>, Trouble> {
    let (loaded, unsound) = load_newest(store).map_err(of_store)?;
    for bad in &unsound {
        let (epoch, reason) = (bad.name.epoch, &bad.reason);
        tracing::warn!(epoch, %reason, "checkpoint passed over");
    }
    match (loaded, &unsound[..]) {
        // As long as there is one alone, the log and the sources are whole: all is read again.
        (None, [_]) if from_nothing => Ok(None),
        (None, [bad, ..]) => {
            let epoch = bad.name.epoch;
            let message =
                format!("no checkpoint is sound; of that at epoch {epoch}: {}", bad.reason);
            let hint = "bring back the files of the state, or start the job anew under another one";
            Err(Trouble { hint: Some(hint.to_owned()), ..Trouble::new(message) })
        }
        (loaded, _) => Ok(loaded),
    }
}

/// Takes every sink over; gives what each has.
fn take_over(
    plan: &JobPlan,
    id: &str,
    holder: (u64, u64),
    begun: bool,
) -> Result<Vec<(String, Option<Epoch>)>, Trouble> {
    let graph = graph_of(plan, 1).map_err(Trouble::new)?;
    let sinks = graph.nodes.iter().filter_map(|node| match node {
        Node::Sink { sink, .. } => Some(sink),
        _ => None,
    });
    let mut there = Vec::new();
    for (place, sink) in sinks.enumerate() {
        let author = Author { begun, ..Author::of(id, holder, place, &sink.table) };
        let epoch = sink.sink.take_over(&author).map_err(|e| Trouble::at(&sink.table, &e))?;
        there.push((sink.table.clone(), epoch));
    }
    Ok(there)
}

fn is_ahead(table: &str, ahead: Option<Epoch>, base: Option<Epoch>) -> Trouble {
    let known = base.map_or("nothing".to_owned(), |epoch| format!("epoch {epoch}"));
    let ahead = ahead.unwrap_or_default();
    Trouble {
        table: Some(table.to_owned()),
        message: format!(
            "it holds rows up to epoch {ahead}, but the job's state ends with {known}: going on \
             would write rows twice"
        ),
        hint: Some(
            "bring back the cut log of the last run (its folder `cuts-0`), or write to an empty \
             table under another --state"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_made_of_what_every_store_takes() {
        assert_eq!(folder_of("theft_ratio", 0), "theft_ratio");
        assert_eq!(folder_of("a, b/../c", 1), "a-b-c-2");
        assert_ne!(fresh_id("a_b"), fresh_id("a_b"));
        assert!(fresh_id("a_b").starts_with("a-b-"));
    }
}
