//! Jobs that last (`weir run --state`): what is stored of them, and how the next generation begins.
//!
//! # Layout
//! Each job of a script has a folder in the state store, named by the tables that it writes to:
//! `job.json` (what it is), and what `weir_engine::store` describes. The cut log is in the same
//! folder where the store is on this machine, else in `--log` (`logs.rs`).
//!
//! # Order of a start
//! 1. The cut logs of all processes are locked: a second start of this job on this machine ends
//!    here. Where processes of a start before are still about to end, it waits a little. Logs in an
//!    object store have no lock: they are read again after step 3, when nobody else can commit.
//! 2. The generation is claimed; its number is greater than all before.
//! 3. Every sink is taken over: from here on nobody else can commit.
//! 4. The newest sound checkpoint is read, and the base is chosen: the last epoch of the logs, or
//!    the checkpoint's where they are gone. No sink may be ahead of it.
//! 5. Sources are asked for splits that have come since; if there are any, all splits are stored
//!    again under the generation's number (`splits/`), and later starts use the newest list.
//! 6. Logs that lack something take it over from one that has all; `Begin` is written to each, then
//!    to the store.
//! 7. Each process opens its own log and takes up its share of the checkpoint. Only then does a
//!    source open.
//!
//! # Logs that are lost
//! A log that is gone or cannot be read is made again from that of another process, if one is left
//! that saw the newest generation; what cannot be read is kept beside it. With one process, or
//! where none is left, what cannot be read ends the start.
//!
//! # The plan
//! The first start stores the plan and the splits, with the offsets where their reading begins;
//! later starts use these, so that another build plans nothing anew and `latest-offset` stays where
//! it was. Secrets are not stored: options come from the script at each start, and all others must
//! be what they were.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use weir_connect::options::mask_url;
use weir_connect::store::{Store, StoreOptions};
use weir_engine::checkpoint::{
    Checkpointer, Loaded, Member, Name, Wanted, load_named, load_newest,
};
use weir_engine::connector::{ConnectorError, Connectors, Remedy, TableSpec};
use weir_engine::cutlog::{self, Begin, CutLog, Recorder};
use weir_engine::flow::{EpochPolicy, JobInput};
use weir_engine::graph::Node;
use weir_engine::job::Lasting;
use weir_engine::sink::{Author, Sink};
use weir_engine::source::SplitSpec;
use weir_engine::store::{FORMAT, JobStore};
use weir_engine::time::{Epoch, Millis};
use weir_queries::JobPlan;

use crate::connectors;
use crate::discovery;
use crate::logs::{Logs, Place};
use crate::patience::{all_of, side_by_side};
use crate::run::{PreparedJob, Trouble, graph_of, prepare, probe};

/// Where a job's state is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StateOptions {
    /// A folder, or the URL of an object store.
    pub store: String,
    /// Folder or URL of the cut logs, where they are not with a local store.
    pub log: Option<String>,
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

/// A generation of a job that has begun, as each of its processes is told.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Begun {
    /// The job's folder in the store.
    folder: String,
    /// The job's name for ever.
    id: String,
    /// Number of the generation.
    pub generation: u64,
    holder: u64,
    /// Generation and epoch of the checkpoint that it goes on from.
    checkpoint: Option<(u64, Epoch)>,
    /// The epoch that it goes on from.
    pub base: Option<Epoch>,
}

const JOB: &str = "job.json";
const SPLITS: &str = "splits";
const SECRET: &str = "(secret)";

/// A job that can begin, as far as it could be seen without changing anything.
pub struct LookedAt {
    folder: String,
    store: JobStore,
    logs: Place,
    record: JobRecord,
    job: PreparedJob,
    /// Whether the record is in the store.
    stored: bool,
}

/// The next generation of a job.
pub struct NextGeneration {
    /// The job as it was planned first.
    pub job: PreparedJob,
    /// What its processes need to know.
    pub begun: Begun,
    /// What a process that is alone need not open again.
    pub opened: Option<Opened>,
}

/// A log and a checkpoint.
pub struct Opened {
    log: CutLog,
    restored: Option<Loaded>,
}

/// Processes and workers of a set.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Set {
    /// Processes.
    pub processes: usize,
    /// Workers a process.
    pub workers: usize,
}

impl Set {
    fn member(self, process: usize) -> Member {
        let Set { processes, workers } = self;
        Member { process, processes, workers: processes * workers }
    }
}

impl NextGeneration {
    /// Where it goes on, in a line.
    pub fn told(&self) -> String {
        let (name, generation) = (&self.job.plan.name, self.begun.generation);
        let from = match (self.begun.checkpoint, self.begun.base) {
            (Some((_, epoch)), Some(base)) => {
                format!("goes on from the checkpoint at epoch {epoch}, by recorded cuts to {base}")
            }
            (None, Some(base)) => format!("goes again by its recorded cuts, to epoch {base}"),
            _ => "begins".to_owned(),
        };
        format!("job {name}, generation {generation}: {from}")
    }
}

impl StateOptions {
    /// Looks whether a job can begin; changes nothing but what a sink's probe has to create. `same`
    /// counts the jobs before it in the script that write to the same tables.
    ///
    /// # Errors
    /// The state store's; a plan that is not the stored one; a source or a sink that is not as the
    /// plan wants it.
    pub fn look(
        &self,
        plan: JobPlan,
        same: usize,
        epoch: Option<EpochPolicy>,
    ) -> Result<LookedAt, Trouble> {
        let folder = folder_of(&plan.name, same);
        let (store, logs) = self.open(&folder)?;
        let (record, job, stored) = settle(&store, plan, epoch)?;
        Ok(LookedAt { folder, store, logs, record, job, stored })
    }

    /// Begins a job's next generation.
    ///
    /// # Errors
    /// The state store's and the cut logs'; a sink that is ahead of all that is known.
    pub fn begin(&self, job: LookedAt, set: Set) -> Result<NextGeneration, Trouble> {
        let LookedAt { folder, store, logs, record, mut job, stored } = job;
        if !stored && !store.put(JOB, &record).map_err(of_store)? {
            return Err(Trouble::new("the job is being started by another process at this moment"));
        }
        let name = job.plan.name.clone();
        let generations = store.generations().map_err(of_store)?;
        let begun = generations.iter().filter(|g| g.begun.is_some()).map(|g| g.number).max();
        let begun = begun.unwrap_or(0);
        let open = |fenced| Logs::open(&logs, (&name, &record.id), set.processes, begun, fenced);
        let (begun, mut logs, restored) = start(&store, &folder, &record, &mut job, &open, set)?;
        let log = (set.processes == 1).then(|| logs.of.remove(&0)).flatten();
        let opened = log.map(|log| Opened { log, restored });
        Ok(NextGeneration { job, begun, opened })
    }

    /// Takes part in a generation that has begun, as its `process`-th process.
    ///
    /// # Errors
    /// The state store's and the cut log's.
    pub fn join(
        &self,
        begun: &Begun,
        opened: Option<Opened>,
        set: Set,
        process: usize,
    ) -> Result<Lasting, Trouble> {
        let no_thread = |e: std::io::Error| Trouble::new(format!("no thread for the state: {e}"));
        let (store, logs) = self.open(&begun.folder)?;
        let member = set.member(process);
        let Opened { log, restored } = match opened {
            Some(opened) => opened,
            None => {
                let log = logs.open(process, &begun.folder, &begun.id)?;
                let log = log.map_err(|e| logs.told(&e))?;
                let found = log.summary();
                if (found.generation, found.last) != (begun.generation, begun.base) {
                    let (now, generation) = (found.generation, begun.generation);
                    let message = format!("generation {now} has taken over from {generation}");
                    return Err(Trouble::new(message));
                }
                let name = begun.checkpoint.map(|(generation, epoch)| Name { epoch, generation });
                let load = |name| load_named(&store, name, Wanted::Of(member)).map_err(of_store);
                Opened { log, restored: name.map(load).transpose()? }
            }
        };
        let restored = restored.map(Arc::new);
        let memory = Arc::new(Recorder::start(log, set.workers).map_err(no_thread)?);
        let from = restored.as_ref().map(|loaded| &loaded.manifest);
        let (generation, interval) = (begun.generation, self.interval);
        let checkpoints =
            Checkpointer::start(store, generation, from, interval, memory.clone(), member)
                .map_err(no_thread)?;
        Ok(Lasting {
            job: begun.id.clone(),
            generation,
            holder: begun.holder,
            memory,
            checkpoints: Some(Arc::new(checkpoints)),
            restored,
            base: begun.base,
        })
    }

    /// The job's part of the store, and the place of its logs.
    fn open(&self, folder: &str) -> Result<(JobStore, Place), Trouble> {
        let url = format!("{}/{folder}", self.store.trim_end_matches('/'));
        let store = Store::open(&url, &StoreOptions::none()).map_err(of_store)?;
        let logs = match (&self.log, store.is_local()) {
            (Some(log), _) => Place::of(&format!("{}/{folder}", log.trim_end_matches('/')))?,
            (None, true) => Place::of(&url)?,
            (None, false) => {
                let mut trouble = Trouble::new(format!("{} is not on this machine", store.url()));
                trouble.hint = Some(
                    "say where the cut log goes: --log FOLDER, or --log URL for one that outlives \
                     this machine, at the price of the store's latency"
                        .to_owned(),
                );
                return Err(trouble);
            }
        };
        Ok((JobStore::over(Arc::new(store)), logs))
    }
}

pub(crate) fn of_store(error: ConnectorError) -> Trouble {
    let passing = error.remedy == Remedy::Retry;
    let message = format!("state: {}", error.message);
    Trouble { table: None, message, hint: error.hint, passing }
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

/// The job as stored, or as it is planned now; and which of the two.
fn settle(
    store: &JobStore,
    plan: JobPlan,
    epoch: Option<EpochPolicy>,
) -> Result<(JobRecord, PreparedJob, bool), Trouble> {
    let connectors = connectors::all();
    if let Some(record) = store.get::<JobRecord>(JOB).map_err(of_store)? {
        let (record, job) = take_stored(record, plan, epoch, &connectors)?;
        return Ok((record, job, true));
    }
    let job = prepare(plan, epoch)?;
    let record = JobRecord {
        format: FORMAT,
        id: fresh_id(&folder_of(&job.plan.name, 0)),
        weir: env!("CARGO_PKG_VERSION").to_owned(),
        plan: masked(&job.plan, &connectors)?,
        input: job.input.clone(),
    };
    Ok((record, job, false))
}

fn take_stored(
    record: JobRecord,
    fresh: JobPlan,
    epoch: Option<EpochPolicy>,
    connectors: &Connectors,
) -> Result<(JobRecord, PreparedJob), Trouble> {
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

/// Where all splits are, if more have come when a generation begins.
fn splits_path(generation: u64) -> String {
    format!("{SPLITS}/{generation:020}.json")
}

/// Adds the splits that have come since the job began to its own; whether there are any. A source
/// that does not answer keeps nobody from reading what is known.
fn add_splits(job: &mut PreparedJob) -> bool {
    let mut grown = false;
    for (place, table, added) in discovery::added(job) {
        match added {
            Ok(added) if added.is_empty() => {}
            Ok(added) => {
                let names: Vec<&str> = added.iter().map(|split| split.name.as_str()).collect();
                let names = names.join(", ");
                tracing::warn!(%table, splits = %names, "these have come since the job began");
                let joined = added.into_iter().map(|split| SplitSpec { joined: true, ..split });
                job.input.splits[place].extend(joined);
                grown = true;
            }
            Err(error) => {
                tracing::warn!(%table, %error, "whether there are more splits is not known");
            }
        }
    }
    grown
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

/// Steps 2 to 6 of the start.
fn start(
    store: &JobStore,
    folder: &str,
    record: &JobRecord,
    job: &mut PreparedJob,
    open: &dyn Fn(bool) -> Result<Logs, Trouble>,
    set: Set,
) -> Result<(Begun, Logs, Option<Loaded>), Trouble> {
    let mut logs = open(false)?;
    let generation = store.claim(logs.newest_generation() + 1).map_err(of_store)?;
    let holder = random();
    let begun = store.generations().map_err(of_store)?.iter().any(|g| g.begun.is_some());
    let there = take_over(&job.plan, &record.id, (generation, holder), begun)?;
    if logs.remote {
        // No lock has kept others from committing until now.
        logs = open(true)?;
    }
    let from_nothing = logs.summaries().iter().any(|log| log.floor.is_none());
    let wanted = if set.processes == 1 { Wanted::All } else { Wanted::Nothing };
    let restored = newest_checkpoint(store, from_nothing, wanted)?;
    let name = restored.as_ref().map(|loaded| (loaded.manifest.generation, loaded.manifest.epoch));
    let choice = cutlog::choose(&logs.summaries(), name).map_err(Trouble::new)?;
    let base = choice.base;
    if let Some((table, ahead)) = there.into_iter().find(|(_, ahead)| *ahead > base) {
        return Err(is_ahead(&table, ahead, base));
    }
    if let Some(newest) = store.objects().list(SPLITS).map_err(of_store)?.last()
        && let Some(all) = store.get(newest).map_err(of_store)?
    {
        job.input.splits = all;
    }
    if begun && add_splits(job) {
        store.put(&splits_path(generation), &job.input.splits).map_err(of_store)?;
    }
    logs.settle(&choice, set.processes).map_err(|e| logs.told(&e))?;
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (processes, workers) = (count(set.processes), count(set.workers));
    logs.begin(Begin { generation, base, processes, workers })?;
    store.begin(generation, base).map_err(of_store)?;
    let (folder, id) = (folder.to_owned(), record.id.clone());
    Ok((Begun { folder, id, generation, holder, checkpoint: name, base }, logs, restored))
}

/// The newest sound checkpoint; what is wrong with newer ones is said. `from_nothing`: the log goes
/// back to the beginning.
fn newest_checkpoint(
    store: &JobStore,
    from_nothing: bool,
    wanted: Wanted,
) -> Result<Option<Loaded>, Trouble> {
    let (loaded, unsound) = load_newest(store, wanted).map_err(of_store)?;
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

/// Takes every sink over; gives what each has. All at once: one may wait for what the generation
/// before has left open in another, and each takes time where servers must be asked.
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
    let sinks: Vec<_> = sinks.map(|sink| (&sink.table, &*sink.sink)).enumerate().collect();
    let one = |(place, (table, sink)): (usize, (&String, &dyn Sink))| {
        let author = Author { begun, ..Author::of(id, holder, place, table) };
        let epoch = sink.take_over(&author).map_err(|e| Trouble::at(table, &e))?;
        Ok((table.clone(), epoch))
    };
    all_of(side_by_side(sinks, one, |_, _| {}))
}

fn is_ahead(table: &str, ahead: Option<Epoch>, base: Option<Epoch>) -> Trouble {
    let known = base.map_or("nothing".to_owned(), |epoch| format!("epoch {epoch}"));
    let ahead = ahead.unwrap_or_default();
    Trouble {
        passing: false,
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
