//! A shard's way to the broker: a producer that is made when it is needed, and what is known to be
//! there.
//!
//! # After a failure
//! The producer is dropped. The next attempt makes another, shuts out the one before (and any
//! stranger), reads the progress and compares: it is the group's, then the group was committed and
//! only the reply was lost; it is what it was before, then the group is sent; a newer generation's,
//! then this one ends. Anything else is a mistake that must not be written over.

use std::sync::Arc;
use std::thread;
use weir_engine::connector::{ConnectorError, Remedy};
use weir_engine::sink::{Author, Progress};

use super::Plan;
use super::client::{Client, Patient, Waiting};
use super::columns::Messages;
use super::progress::{self, Record, Records};

/// Writes one shard, with transactions if there is an author.
pub(super) struct Session {
    plan: Arc<Plan>,
    shard: u32,
    author: Option<Author>,
    client: Option<Client>,
    /// What is there, as far as this session knows.
    there: Option<Progress>,
}

impl Session {
    /// A session that is not connected yet.
    pub(super) fn of(plan: Arc<Plan>, shard: u32, author: Option<Author>) -> Session {
        Session { plan, shard, author, client: None, there: None }
    }

    /// What is there.
    pub(super) fn there(&self) -> Option<Progress> {
        self.there
    }

    /// Whether there is progress to keep.
    pub(super) fn keeps_progress(&self) -> bool {
        self.author.is_some()
    }

    /// Connects, and finds what is there.
    ///
    /// # Errors
    /// Another generation has taken over; what the broker says.
    pub(super) fn open(&mut self, waiting: &dyn Waiting) -> Result<(), ConnectorError> {
        self.there = self.reach(waiting)?;
        Ok(())
    }

    fn reach(&mut self, waiting: &dyn Waiting) -> Result<Option<Progress>, ConnectorError> {
        self.client = None;
        let id = self.author.as_ref().map(|author| self.plan.transactional_id(author, self.shard));
        let mut client = Client::of(&self.plan, self.shard, id.as_deref())?;
        client.reach(waiting)?;
        let mut there = None;
        if let Some(author) = &self.author {
            client.shut_out(waiting)?;
            let reader = progress::reader(&self.plan)?;
            let records = progress::read(&self.plan, &reader, &client, author, waiting)?;
            there = own(&self.plan, author, &records, self.shard)?;
        }
        self.client = Some(client);
        Ok(there)
    }

    /// Sends a group; with an author, in one transaction with the progress after it.
    ///
    /// # Errors
    /// As [`open`](Session::open). After one that is worth trying again the same group is to be
    /// sent again.
    pub(super) fn send(
        &mut self,
        messages: &Messages,
        after: Progress,
        waiting: &dyn Waiting,
    ) -> Result<(), ConnectorError> {
        if self.client.is_none() {
            let there = self.reach(waiting)?;
            if self.author.is_some() && there == Some(after) {
                tracing::info!(table = %self.plan.table, epoch = after.epoch, "was committed");
                self.there = there;
                return Ok(());
            }
            if there != self.there {
                return Err(self.astray(there));
            }
        }
        // Only a producer on which all went well is kept.
        let Some(client) = self.client.take() else { return Ok(()) };
        let Some(author) = &self.author else {
            client.send(messages, waiting)?;
            self.client = Some(client);
            return Ok(());
        };
        let entry = Record::of(&self.plan, author, Some(after)).entry(author, self.shard)?;
        match client.transact(messages, &entry, waiting) {
            Ok(()) => {
                self.there = Some(after);
                self.client = Some(client);
                Ok(())
            }
            // The next producer of this id ends the transaction; here none follows.
            Err(error) if error.remedy != Remedy::Retry || waiting.given_up() => {
                client.abandon();
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    fn astray(&self, found: Option<Progress>) -> ConnectorError {
        let shown = |p: Option<Progress>| p.map_or("nothing".to_owned(), |p| p.epoch.to_string());
        let (found, known) = (shown(found), shown(self.there));
        ConnectorError::fatal(format!(
            "the progress of shard {} of table `{}` is {found}, not {known}: somebody else has \
             written it",
            self.shard, self.plan.table
        ))
    }
}

/// What the records say of a shard, if its generation is at work.
fn own(
    plan: &Plan,
    author: &Author,
    records: &Records,
    shard: u32,
) -> Result<Option<Progress>, ConnectorError> {
    if let Some(error) = overtaken(plan, author, records) {
        return Err(error);
    }
    match records.get(&shard).filter(|record| record.generation == author.generation) {
        Some(record) => Ok(record.progress()),
        None => {
            let (generation, topic) = (author.generation, &plan.options.progress_topic);
            let message = format!(
                "the topic `{topic}` at {} has no record that generation {generation} writes shard \
                 {shard} of table `{}`",
                plan.servers, plan.table
            );
            let hint = "was the topic made anew or cut short? Nothing more was written";
            Err(ConnectorError::fatal(message).hint(hint))
        }
    }
}

/// Who else may write, and this author no more.
fn overtaken(plan: &Plan, author: &Author, records: &Records) -> Option<ConnectorError> {
    let others = records.values().filter(|record| record.overtakes(author));
    let newer = others.map(|record| record.generation).max()?;
    let (Author { job, generation, .. }, table) = (author, &plan.table);
    if newer == *generation {
        let message = format!(
            "another process writes table `{table}` as generation {newer} of job `{job}`: it goes \
             on from a copy of the same state"
        );
        let hint = "of the two one alone can go on: end the other, and start this one again";
        return Some(ConnectorError::fatal(message).hint(hint));
    }
    let message = format!(
        "generation {newer} of job `{job}` has taken over table `{table}`: generation \
         {generation} writes no more"
    );
    Some(ConnectorError::fatal(message))
}

/// Makes a generation the only one that can write. Gives the newest epoch over all shards.
///
/// # Errors
/// A newer generation; a sink of other shards or another prefix; what the broker says.
pub(super) fn take_over(
    plan: &Arc<Plan>,
    author: &Author,
) -> Result<Option<weir_engine::time::Epoch>, ConnectorError> {
    let reader = progress::reader(plan)?;
    progress::make_topic(plan, &reader)?;
    let clients = all_shut_out(plan, author)?;
    let Some((_, first)) = clients.first() else { return Ok(None) };
    let records = progress::read(plan, &reader, first, author, &Patient)?;
    if let Some(error) = overtaken(plan, author, &records) {
        return Err(error);
    }
    same_sink(plan, &records)?;
    if records.is_empty() && author.begun {
        let (job, topic) = (&author.job, &plan.options.progress_topic);
        let message = format!("the progress of the job {job} is gone from the topic `{topic}`");
        let hint = "going on would write rows twice: start the job anew under another state, into \
                    an empty topic";
        return Err(ConnectorError::fatal(message).hint(hint));
    }
    for (shard, client) in clients {
        let progress = records.get(&shard).and_then(Record::progress);
        let entry = Record::of(plan, author, progress).entry(author, shard)?;
        client.transact(&Messages::default(), &entry, &Patient)?;
    }
    Ok(records.values().filter_map(Record::progress).map(|p| p.epoch).max())
}

/// A client of each shard that has shut out whoever else could write for it. Side by side: with an
/// open transaction to end it takes a broker half a second.
fn all_shut_out(plan: &Arc<Plan>, author: &Author) -> Result<Vec<(u32, Client)>, ConnectorError> {
    let one = |shard: u32| {
        let id = plan.transactional_id(author, shard);
        let mut client = Client::of(plan, shard, Some(&id))?;
        client.reach(&Patient)?;
        client.shut_out(&Patient)?;
        Ok((shard, client))
    };
    thread::scope(|scope| {
        let one = &one;
        let shards = 0..plan.options.shards.get();
        let threads: Vec<_> = shards.map(|shard| scope.spawn(move || one(shard))).collect();
        let panicked = |_| Err(ConnectorError::fatal("a thread panicked; this is a bug in Weir"));
        let mut done: Vec<_> =
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect();
        // What does not pass is said rather than what may.
        done.sort_by_key(|one| !one.as_ref().is_err_and(|e| e.remedy != Remedy::Retry));
        let mut clients = done.into_iter().collect::<Result<Vec<_>, _>>()?;
        clients.sort_by_key(|(shard, _)| *shard);
        Ok(clients)
    })
}

/// Whether an older generation had the same shards, under the same ids: of others nobody could be
/// shut out, and nothing known.
fn same_sink(plan: &Plan, records: &Records) -> Result<(), ConnectorError> {
    let (shards, prefix) = (plan.options.shards.get(), &plan.options.prefix);
    for record in records.values() {
        let (key, was) = if record.shards != shards {
            ("sink.parallelism", record.shards.to_string())
        } else if record.prefix != *prefix {
            ("sink.transactional-id-prefix", record.prefix.clone())
        } else {
            continue;
        };
        let message = format!(
            "'{key}' of table `{}` was '{was}' when the job began, and cannot change",
            plan.table
        );
        let hint = format!("set '{key}' = '{was}', or start the job anew");
        return Err(ConnectorError::reconfigure(message).hint(hint));
    }
    Ok(())
}
