//! The `postgres` sink, also named `timescaledb`: COPY into a staging table, then one upsert.
//!
//! # What is promised
//! - The rows of an epoch become visible together: groups of whole epochs go in one short
//!   transaction, as soon as the one before is done and has rested (`pace.rs`). No transaction
//!   stays open while nothing is sent, and nothing is prepared in two phases: on a hypertable that
//!   would block every writer that needs a new chunk.
//! - Where the job lasts (`weir run --state`) each row gets there exactly once, at the latency of a
//!   transaction: the progress is in the same transaction, fenced by generation (`progress.rs`).
//!   Else:
//! - With a PRIMARY KEY a row replaces the one of its key (the last of a group wins), a row taken
//!   back deletes it, and sending a group twice changes nothing. Without one, rows are appended; a
//!   group whose COMMIT was lost on the way is sent again and may be there twice.
//! - A server that was reached once is tried again for ever: the group is kept, nothing further is
//!   accepted, and the notice says why. A server that was never reached ends the job after 15 s.
//!
//! # The table
//! It is created where it does not exist; where the server has TimescaleDB and there is a time
//! column that every unique index may hold, as a hypertable. Of a table that exists, columns,
//! types and the unique index of the key are checked before any source is opened. Types: STRING
//! text, TIMESTAMP timestamp, TIMESTAMP_LTZ timestamptz, DECIMAL numeric, DOUBLE float8, BYTES
//! bytea, and so on; ARRAY, ROW and MAP are jsonb. Nanoseconds are cut to PostgreSQL's
//! microseconds.
//!
//! # Rows that cannot be held
//! PostgreSQL takes no NUL character in text. Such a row is a data error: it is left out and
//! counted as refused, or goes in with U+FFFD for each NUL (`text.nul-character`). It never ends
//! the job.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use weir_connect::options::Secret;
use weir_connect::retry::Retrying;
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};
use weir_engine::sink::{Author, Sink, SinkReport, SinkWriter};
use weir_engine::time::Epoch;

use address::Address;
use progress::ProgressTable;
use schema::TargetTable;
use session::Session;
use writer::Writer;

mod address;
mod broken;
mod copy;
mod group;
mod nul;
mod progress;
mod schema;
mod session;
mod tls;
mod writer;

weir_connect::choices! {
    /// How a connection is encrypted, as in libpq.
    pub enum SslMode {
        /// Not at all.
        Disable = "disable",
        /// Encrypted if the server can, whoever it is.
        Prefer = "prefer",
        /// Encrypted, whoever the server is.
        Require = "require",
        /// Encrypted, with a certificate of a trusted authority.
        VerifyCa = "verify-ca",
        /// Encrypted, with a certificate of a trusted authority for the server's name.
        VerifyFull = "verify-full",
    }
}

weir_connect::choices! {
    /// What becomes of a row whose text holds a NUL character.
    pub enum OnNul {
        /// It is left out and counted.
        Refuse = "refuse",
        /// The replacement character takes its place.
        Replace = "replace",
    }
}

weir_connect::options! {
    /// Options of the `postgres` sink.
    pub struct PostgresOptions {
        /// Address of the database: `postgresql://user@host:port/database`. Several hosts may be
        /// named, separated by commas.
        pub url: String = "url", required "postgresql://weir@db:5432/telemetry";
        /// Table to write to, with its schema if that is not in the search path.
        pub table_name: String = "table-name", required "public.sensor_5m";
        /// User; goes before the one in the URL.
        pub username: Option<String> = "username", optional;
        /// Password; goes before the one in the URL.
        pub password: Option<Secret> = "password", optional;
        /// Encryption of the connection; goes before `sslmode` in the URL. Without both: `prefer`.
        pub ssl_mode: Option<SslMode> = "ssl.mode", optional;
        /// PEM file of the authorities to trust, for `verify-ca` and `verify-full`. Without it the
        /// system's own are trusted.
        pub ca_file: Option<String> = "ssl.ca-file", optional;
        /// PEM file of the client's certificate.
        pub cert_file: Option<String> = "ssl.cert-file", optional;
        /// PEM file of the key of the client's certificate.
        pub key_file: Option<String> = "ssl.key-file", optional;
        /// The least time between two transactions: rows that come sooner wait until it is over,
        /// and share one. Rows that come after a pause do not wait.
        pub rest: Duration = "sink.buffer-flush.interval", default "1 ms";
        /// A transaction takes no further epoch once it has this many rows.
        pub rows_max: NonZeroU32 = "sink.buffer-flush.max-rows", default "20000";
        /// Number of connections that write. With a primary key each has its own keys.
        pub shards: NonZeroU32 = "sink.shards", default "1";
        /// Whether a table that does not exist is created.
        pub create: bool = "table.create", default "true";
        /// Table in which jobs that last note how far they are, with its schema if that is not in
        /// the search path. It is created where it does not exist.
        pub progress_table: String = "sink.progress-table", default "weir_progress";
        /// What becomes of a row whose text holds a NUL character, which PostgreSQL cannot store:
        /// it is left out and counted (`refuse`), or U+FFFD takes the place of the NUL
        /// (`replace`; not in ARRAY, ROW and MAP, and not in the primary key, where it could make
        /// two keys one).
        pub on_nul: OnNul = "text.nul-character", default "refuse";
        /// Time column of the hypertable. Without it: the event-time column, else the only
        /// TIMESTAMP column of the primary key.
        pub time_column: Option<String> = "timescaledb.time-column", optional;
        /// Time that a chunk of the hypertable covers. Without it: TimescaleDB's own default.
        pub chunk_interval: Option<Duration> = "timescaledb.chunk-interval", optional;
        /// How long an attempt to connect may take.
        pub connect_timeout: Duration = "connect.timeout", default "5 s";
        /// How long the server may take for a transaction, besides the time for sending its bytes
        /// at 1 KiB/s. A server that takes longer counts as lost.
        pub statement_timeout: Duration = "statement.timeout", default "30 s";
        /// How long a job that ends waits for a server that does not answer.
        pub close_timeout: Duration = "sink.close-timeout", default "1 min";
    }
}

/// The manual of the sink's options.
pub fn options() -> Vec<OptionDoc> {
    PostgresOptions::docs()
}

/// Checks the options and makes the sink. Touches nothing outside.
///
/// # Errors
/// Everything that is wrong with the options or the columns.
pub fn sink(table: &TableSpec) -> Result<Box<dyn Sink>, Vec<OptionError>> {
    let options = PostgresOptions::read(table, &[])?;
    let mut errors = Vec::new();
    let address = Address::of(table, &options).map_err(|e| errors.push(e)).ok();
    let target = TargetTable::of(table, &options).map_err(|mut e| errors.append(&mut e)).ok();
    match (address, target) {
        (Some(address), Some(target)) => Ok(Box::new(PostgresSink {
            plan: Arc::new(Plan { table: table.name.clone(), address, target, options }),
            kind: Mutex::new(None),
        })),
        _ => Err(errors),
    }
}

/// What all shards of a sink share.
pub(crate) struct Plan {
    /// Name of the table in the script.
    table: String,
    address: Address,
    target: TargetTable,
    options: PostgresOptions,
}

impl Plan {
    /// The server, for people.
    fn what(&self) -> String {
        format!("PostgreSQL at {} for table `{}`", self.address.shown, self.table)
    }
}

struct PostgresSink {
    plan: Arc<Plan>,
    /// What the table has turned out to be.
    kind: Mutex<Option<String>>,
}

impl PostgresSink {
    fn progress(&self, author: &Author) -> ProgressTable {
        let options = &self.plan.options;
        ProgressTable::of(&options.progress_table, &self.plan.table, author)
    }
}

impl Sink for PostgresSink {
    fn shards(&self) -> u32 {
        self.plan.options.shards.get()
    }

    fn accepts_retractions(&self) -> bool {
        self.plan.target.has_key()
    }

    fn open(
        &self,
        shard: u32,
        author: Option<&Author>,
        report: Arc<SinkReport>,
    ) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        let once = author.map(|author| self.progress(author));
        Ok(Box::new(Writer::open(self.plan.clone(), shard, once, report)?))
    }

    fn take_over(&self, author: &Author) -> Result<Option<Epoch>, ConnectorError> {
        let mut session = Session::of(self.plan.clone())?;
        let (progress, shards) = (self.progress(author), self.shards());
        Retrying::new(self.plan.what(), |_| (), || false)
            .run(|| session.take_over(&progress, shards))
            .map_err(|e| self.plan.blamed(e))
    }

    fn probe(&self) -> Result<(), ConnectorError> {
        let mut session = Session::of(self.plan.clone())?;
        let kind = Retrying::new(self.plan.what(), |_| (), || false).run(|| session.prepare())?;
        tracing::info!(table = %self.plan.table, target = %self.plan.address.shown, %kind, "sink");
        *self.kind.lock().unwrap_or_else(PoisonError::into_inner) = Some(kind);
        Ok(())
    }

    fn guarantee(&self) -> String {
        let kind = self.kind.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let kind = kind.unwrap_or_else(|| self.plan.target.kind_planned());
        let rows = if self.plan.target.has_key() {
            "exactly once with --state (rows and progress in one transaction); without: upserts by \
             primary key, whole epochs a transaction, a retry changes nothing"
        } else {
            "exactly once with --state (rows and progress in one transaction); without: appends, \
             whole epochs a transaction, a lost reply to COMMIT may leave rows twice"
        };
        format!("{rows}; {kind}")
    }
}
