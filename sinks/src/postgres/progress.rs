//! How far each shard is, in a table beside its rows.
//!
//! # Invariant
//! A shard's row of the progress table changes in the very transaction that makes rows visible, and
//! only from what the writer knows it to be: its own generation, and the epoch that it committed
//! last. So rows of an epoch are there exactly if the progress has reached it.
//!
//! # Argument
//! - *A zombie*: taking over raises the generation of all rows at once. A transaction of an older
//!   generation either had moved the progress before, then what it wrote counts and is seen by the
//!   generation that takes over; or it finds another generation there, and fails as a whole.
//! - *A lost reply*: before a group is sent again the progress is read: it says whether the commit
//!   has happened. A commit that is still under way on a connection that was given up holds the
//!   row's lock, or will find it changed: of two transactions of one group one fails.
//! - *No wait between*: the move and the commit travel as one message, so that a client that stops
//!   in between holds no lock.

use tokio_postgres::Client;
use weir_engine::connector::ConnectorError;
use weir_engine::sink::{Author, Progress};
use weir_engine::time::Epoch;

use super::broken::{Guard, is_off};
use super::schema::quoted_path;
use super::session::Failure;

/// What SQLSTATE says where the progress was not what it should have been: a division by zero.
pub(crate) const MOVED: &str = "22012";

/// The progress table, as one sink of a job uses it.
#[derive(Clone, Debug)]
pub(crate) struct ProgressTable {
    /// Quoted, for SQL.
    name: String,
    /// The table that is written, for people.
    table: String,
    author: Author,
}

/// A shard's row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardRow {
    pub(crate) generation: u64,
    pub(crate) progress: Option<Progress>,
}

/// A step of a shard, as a part of a transaction.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) shard: u32,
    pub(crate) from: Option<Epoch>,
    pub(crate) to: Progress,
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl ProgressTable {
    /// The progress table `name`, for what is written to `table`.
    pub(crate) fn of(name: &str, table: &str, author: &Author) -> ProgressTable {
        let (name, table) = (quoted_path(name), table.to_owned());
        ProgressTable { name, table, author: author.clone() }
    }

    fn mine(&self) -> String {
        let Author { job, sink, .. } = &self.author;
        format!("job = {} AND sink = {}", literal(job), literal(sink))
    }

    /// Makes the table where it does not exist, and the author's generation the only one that can
    /// commit. Gives the newest epoch of all shards.
    pub(crate) async fn take_over(
        &self,
        client: &Client,
        shards: u32,
    ) -> Result<Option<Epoch>, Failure> {
        self.make(client).await?;
        let (name, mine) = (&self.name, self.mine());
        client.batch_execute("BEGIN").await?;
        let sql = format!(
            "SELECT shard, generation, epoch, holder FROM {name} WHERE {mine} ORDER BY shard \
             FOR UPDATE"
        );
        let rows = client.query(&sql, &[]).await?;
        for row in &rows {
            self.is_mine(row.get::<_, i64>(1) as u64, row.get::<_, Option<String>>(3))?;
        }
        if rows.is_empty() && self.author.begun {
            return Err(Failure::Final(self.is_gone()));
        }
        if !rows.is_empty() && rows.len() != shards as usize {
            let was = rows.len();
            let message = format!("'sink.shards' was {was} when the job began, and is {shards}");
            return Err(Failure::Final(ConnectorError::reconfigure(message)));
        }
        let (generation, holder) = (self.author.generation, self.holder());
        if rows.is_empty() {
            self.begin(client, shards).await?;
        }
        let sql = format!(
            "UPDATE {name} SET generation = {generation}, holder = {holder} WHERE {mine}; COMMIT"
        );
        client.batch_execute(&sql).await?;
        Ok(rows.iter().filter_map(|row| row.get::<_, Option<i64>>(2)).max().map(|e| e as u64))
    }

    /// Makes the table where it does not exist. Sinks, jobs and processes begin side by side, and
    /// `IF NOT EXISTS` alone fails where two make it at once: the lock makes one of them wait. A
    /// table that is there needs no right to create one.
    async fn make(&self, client: &Client) -> Result<(), Failure> {
        let name = &self.name;
        let exists = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[name]).await?;
        if exists.get(0) {
            return Ok(());
        }
        // One message: a process that is stopped in between does not keep the lock.
        let sql = format!(
            "BEGIN; SELECT pg_advisory_xact_lock(8533, hashtext({})); \
             CREATE TABLE IF NOT EXISTS {name} (job text, sink text, shard integer, \
             generation bigint NOT NULL, holder text, epoch bigint, digest text, \
             written timestamptz NOT NULL DEFAULT now(), PRIMARY KEY (job, sink, shard)); COMMIT",
            literal(name)
        );
        Ok(client.batch_execute(&sql).await?)
    }

    /// The rows of a job's first generation.
    async fn begin(&self, client: &Client, shards: u32) -> Result<(), Failure> {
        let (name, generation) = (&self.name, self.author.generation);
        let (job, sink) = (literal(&self.author.job), literal(&self.author.sink));
        let sql = format!(
            "INSERT INTO {name} (job, sink, shard, generation) \
             SELECT {job}, {sink}, shard, {generation} FROM generate_series(0, {}) shard \
             ON CONFLICT DO NOTHING",
            shards.saturating_sub(1)
        );
        if client.execute(&sql, &[]).await? == u64::from(shards) {
            return Ok(());
        }
        let other = "another process took over at the same moment";
        Err(Failure::Final(ConnectorError::retry(other)))
    }

    /// A shard's row, which must be of the author's generation.
    pub(crate) async fn read(&self, client: &Client, shard: u32) -> Result<ShardRow, Failure> {
        let (name, mine) = (&self.name, self.mine());
        let sql = format!(
            "SELECT generation, epoch, digest, holder FROM {name} WHERE {mine} AND shard = {shard}"
        );
        let rows = client.query(&sql, &[]).await?;
        let Some(row) = rows.first() else {
            return Err(Failure::Final(self.is_gone()));
        };
        let generation = row.get::<_, i64>(0) as u64;
        self.is_mine(generation, row.get::<_, Option<String>>(3))?;
        let digest = row.get::<_, Option<String>>(2);
        let digest = digest.and_then(|hex| u128::from_str_radix(&hex, 16).ok()).unwrap_or(0);
        let epoch = row.get::<_, Option<i64>>(1).map(|epoch| epoch as u64);
        let progress = epoch.map(|epoch| Progress { epoch, digest });
        Ok(ShardRow { generation, progress })
    }

    fn is_gone(&self) -> ConnectorError {
        let (name, job) = (&self.name, &self.author.job);
        let message = format!("the progress of the job {job} is gone from {name}");
        let hint = "going on would write rows twice: bring the table back, or start the job anew \
                    under another state, into an empty table";
        ConnectorError::fatal(message).hint(hint)
    }

    fn holder(&self) -> String {
        format!("'{:016x}'", self.author.holder)
    }

    /// Whether what is found lets this generation write.
    fn is_mine(&self, found: u64, holder: Option<String>) -> Result<(), Failure> {
        if is_off(Guard::Fence) {
            return Ok(());
        }
        let Author { job, generation, .. } = &self.author;
        let table = &self.table;
        let other = holder.is_some_and(|holder| format!("'{holder}'") != self.holder());
        if found == *generation && other {
            let message = format!(
                "another process writes table `{table}` as generation {found} of the job {job}: it \
                 goes on from a copy of the same state"
            );
            let hint = "of the two one alone can go on: end the other, and start this one again";
            return Err(Failure::Final(ConnectorError::fatal(message).hint(hint)));
        }
        if found <= *generation {
            return Ok(());
        }
        let message = format!(
            "generation {found} of the job {job} has taken over table `{table}`; this is \
             generation {generation}, and must not write any more"
        );
        Err(Failure::Final(ConnectorError::fatal(message)))
    }

    /// The end of a transaction: the step and the commit, or neither.
    pub(crate) fn commit_sql(&self, step: Step) -> String {
        let (name, mine, generation) = (&self.name, self.mine(), self.author.generation);
        let holder = self.holder();
        let Step { shard, from, to } = step;
        let from = from.map_or("NULL".to_owned(), |epoch| number(epoch).to_string());
        let (epoch, digest) = (number(to.epoch), to.digest);
        let author = format!("generation = {generation} AND holder = {holder}");
        let known = match (is_off(Guard::Fence), is_off(Guard::Progress)) {
            (true, _) => "true".to_owned(),
            (_, true) => author,
            _ => format!("{author} AND epoch IS NOT DISTINCT FROM {from}"),
        };
        format!(
            "WITH moved AS (UPDATE {name} SET epoch = {epoch}, digest = '{digest:032x}', \
             written = now() WHERE {mine} AND shard = {shard} AND {known} RETURNING 1) \
             SELECT 1 / count(*) FROM moved; COMMIT"
        )
    }
}
