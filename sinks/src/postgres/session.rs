//! A connection that is made when it is needed, and one transaction a group.
//!
//! # Time
//! A transaction may take `statement.timeout`, and beyond that as long as its bytes need at 1
//! KiB/s: a slow link is no dead one, and repeating a group that can never be in time would never
//! end. A dead one is found by TCP keep-alives and `tcp_user_timeout`. A connection that failed is
//! never used again.

use bytes::Bytes;
use futures::SinkExt;
use std::error::Error;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::timeout;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls, Statement};
use weir_connect::options::mask_url;
use weir_connect::tls::client_config;
use weir_engine::connector::{ConnectorError, Remedy};
use weir_engine::time::Epoch;

use super::Plan;
use super::group::Prepared;
use super::progress::{MOVED, ProgressTable, ShardRow};
use super::tls::Tls;

/// Bytes handed to the client at a time.
const SEND_BYTES: usize = 64 << 10;
/// The slowest link that is waited for.
const BYTES_PER_SECOND_MIN: u64 = 1024;

/// Why something on a connection did not work.
pub(crate) enum Failure {
    /// With what to do about it.
    Final(ConnectorError),
    /// The server took too long.
    TooSlow(Duration),
}

impl Failure {
    fn told(self, what: &str) -> ConnectorError {
        match self {
            Failure::Final(error) => error,
            Failure::TooSlow(time) => {
                ConnectorError::retry(format!("no answer to {what} within {time:?}"))
            }
        }
    }
}

/// A connection to be.
pub(crate) struct Session {
    plan: Arc<Plan>,
    runtime: Runtime,
    tls: Option<Tls>,
    link: Option<Link>,
}

struct Link {
    client: Client,
    copy: Statement,
    insert: Option<Statement>,
    delete: Option<(Statement, Statement)>,
}

impl Session {
    pub(crate) fn of(plan: Arc<Plan>) -> Result<Session, ConnectorError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime
            .map_err(|e| ConnectorError::fatal(format!("no runtime for PostgreSQL: {e}")))?;
        let tls = match &plan.address.tls {
            None => None,
            Some(options) => Some(Tls(Arc::new(client_config(options)?))),
        };
        Ok(Session { plan, runtime, tls, link: None })
    }

    /// Creates the table where it does not exist, and checks it. Says what it is.
    pub(crate) fn prepare(&mut self) -> Result<String, ConnectorError> {
        let (plan, tls) = (&self.plan, self.tls.clone());
        let limit = plan.options.statement_timeout;
        let work = async {
            let client = connect(plan, tls).await?;
            within(limit, async {
                let kind = plan.target.make(&client).await?;
                plan.target.check(&client).await?;
                Ok(kind)
            })
            .await
        };
        self.runtime.block_on(work).map_err(|f| f.told("CREATE TABLE"))
    }

    /// Connects, unless it is connected.
    pub(crate) fn reach(&mut self) -> Result<(), ConnectorError> {
        if self.link.as_ref().is_some_and(|link| !link.client.is_closed()) {
            return Ok(());
        }
        self.link = None;
        let (plan, tls) = (&self.plan, self.tls.clone());
        let work = async {
            let client = connect(plan, tls).await?;
            within(plan.options.statement_timeout, Link::over(client, plan)).await
        };
        self.link = Some(self.runtime.block_on(work).map_err(|f| f.told("the first statements"))?);
        Ok(())
    }

    /// Something short on the connection, which is made if it is not there.
    fn ask<T>(
        &mut self,
        what: &str,
        work: impl AsyncFnOnce(&Client) -> Result<T, Failure>,
    ) -> Result<T, ConnectorError> {
        self.reach()?;
        let limit = self.plan.options.statement_timeout;
        let Some(link) = self.link.take() else {
            return Err(ConnectorError::retry("the connection is gone"));
        };
        let done = self.runtime.block_on(within(limit, work(&link.client)));
        let done = done.map_err(|f| f.told(what))?;
        self.link = Some(link);
        Ok(done)
    }

    /// Makes a generation the only one that can commit.
    pub(crate) fn take_over(
        &mut self,
        progress: &ProgressTable,
        shards: u32,
    ) -> Result<Option<Epoch>, ConnectorError> {
        self.ask("the progress table", async |client| progress.take_over(client, shards).await)
    }

    /// A shard's progress.
    pub(crate) fn progress(
        &mut self,
        progress: &ProgressTable,
        shard: u32,
    ) -> Result<ShardRow, ConnectorError> {
        self.ask("the progress table", async |client| progress.read(client, shard).await)
    }

    /// Sends a group in one transaction that ends with `commit`.
    pub(crate) fn send(&mut self, group: &Prepared, commit: &str) -> Result<(), ConnectorError> {
        self.reach()?;
        let Some(link) = self.link.take() else { return Ok(()) };
        let bytes =
            group.written.as_ref().map_or(0, Vec::len) + group.gone.as_ref().map_or(0, Vec::len);
        let sending = Duration::from_secs(bytes as u64 / BYTES_PER_SECOND_MIN);
        let limit = self.plan.options.statement_timeout.saturating_add(sending);
        let sent = self.runtime.block_on(within(limit, link.transact(group, commit)));
        sent.map_err(|f| f.told("a transaction"))?;
        // Only a connection on which all went well is kept.
        self.link = Some(link);
        Ok(())
    }
}

async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    timeout(limit, work).await.unwrap_or(Err(Failure::TooSlow(limit)))
}

async fn connect(plan: &Plan, tls: Option<Tls>) -> Result<Client, Failure> {
    let config = &plan.address.config;
    // The client's own limit is for TCP, a host at a time; this one is for the handshakes too.
    let hosts = u32::try_from(config.get_hosts().len()).unwrap_or(1);
    let limit = plan.options.connect_timeout.saturating_mul(hosts + 1);
    let work = async {
        let client = match tls {
            None => {
                let (client, connection) = config.connect(NoTls).await?;
                tokio::spawn(async { drop(connection.await) });
                client
            }
            Some(tls) => {
                let (client, connection) = config.connect(tls).await?;
                // What ends the connection is seen by the next statement.
                tokio::spawn(async { drop(connection.await) });
                client
            }
        };
        let settings = "SET TIME ZONE 'UTC'; SET idle_in_transaction_session_timeout = '60s'; \
                        SET statement_timeout = 0; SET client_min_messages = warning";
        client.batch_execute(settings).await?;
        Ok(client)
    };
    within(limit, work).await
}

impl Link {
    async fn over(client: Client, plan: &Plan) -> Result<Link, Failure> {
        let table = &plan.target;
        let checked = table.check(&client).await?;
        if !table.has_key() && checked.same_types {
            let copy = client.prepare(&table.copy_direct_sql()).await?;
            return Ok(Link { client, copy, insert: None, delete: None });
        }
        client.batch_execute(&table.stage_sql()).await?;
        let copy = client.prepare(&table.copy_stage_sql()).await?;
        let insert = Some(client.prepare(&table.insert_sql()).await?);
        let delete = match table.has_key() {
            false => None,
            true => {
                let copy_gone = client.prepare(&table.copy_gone_sql()).await?;
                Some((copy_gone, client.prepare(&table.delete_sql()).await?))
            }
        };
        Ok(Link { client, copy, insert, delete })
    }

    async fn transact(&self, group: &Prepared, commit: &str) -> Result<(), Failure> {
        self.client.batch_execute("BEGIN").await?;
        if let Some(bytes) = &group.written {
            self.copy_in(&self.copy, bytes).await?;
            if let Some(insert) = &self.insert {
                self.client.execute(insert, &[]).await?;
            }
        }
        if let (Some(bytes), Some((copy, delete))) = (&group.gone, &self.delete) {
            self.copy_in(copy, bytes).await?;
            self.client.execute(delete, &[]).await?;
        }
        self.client.batch_execute(commit).await?;
        Ok(())
    }

    async fn copy_in(&self, statement: &Statement, bytes: &[u8]) -> Result<(), Failure> {
        let mut copy = pin!(self.client.copy_in::<_, Bytes>(statement).await?);
        for chunk in bytes.chunks(SEND_BYTES) {
            copy.send(Bytes::copy_from_slice(chunk)).await?;
        }
        copy.finish().await?;
        Ok(())
    }
}

/// What the client or the server says, and what to do about it.
pub(crate) fn of_server(error: &tokio_postgres::Error) -> ConnectorError {
    let Some(db) = error.as_db_error() else {
        let text = with_causes(error);
        // The client has no codes for its own errors, only these beginnings.
        let hopeless = ["authentication error", "invalid configuration"];
        let untrusted = text.contains("invalid peer certificate");
        let remedy = if untrusted || hopeless.iter().any(|start| text.starts_with(start)) {
            Remedy::Reconfigure
        } else {
            Remedy::Retry
        };
        return ConnectorError::new(remedy, mask_url(&text));
    };
    if db.code().code() == MOVED {
        return ConnectorError::retry("the progress is not where this writer left it");
    }
    let mut text = format!("{} (SQLSTATE {})", db.message(), db.code().code());
    if let Some(detail) = db.detail() {
        text.push_str(&format!("; {detail}"));
    }
    let mut made = ConnectorError::new(remedy_of(db.code()), mask_url(&text));
    made.hint = db.hint().map(mask_url);
    made
}

/// By class: what passes by itself, what the configuration has wrong, and what the rows have.
fn remedy_of(code: &SqlState) -> Remedy {
    let code = code.code();
    match (&code[..2.min(code.len())], code) {
        // Connections, resources, an operator's intervention, lock and transaction conflicts.
        ("08" | "53" | "57" | "58", _) | (_, "40001" | "40P01" | "55P03" | "25P03") => {
            Remedy::Retry
        }
        // Authorisation, names, syntax, a server that only reads.
        ("28" | "3D" | "3F" | "42", _) | (_, "25006") => Remedy::Reconfigure,
        _ => Remedy::Fatal,
    }
}

fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = inner.source();
    }
    text
}
