//! The table in the database: its SQL, how it is created, and what is checked of one that exists.

use std::fmt::Write;
use std::time::Duration;
use tokio_postgres::Client;
use weir_connect::options::{bad_table, bad_value};
use weir_engine::connector::{ConnectorError, OptionError, TableSpec};

use super::PostgresOptions;
use super::copy::type_of;
use super::session::{Failure, of_server};

/// Staging table of rows to write, in the connection's own temporary schema.
const STAGE: &str = "pg_temp.weir_stage";
/// Staging table of keys to delete.
const GONE: &str = "pg_temp.weir_gone";

struct Column {
    name: String,
    sql_type: String,
    nullable: bool,
}

/// A table to write to.
pub(crate) struct TargetTable {
    /// As the user wrote it.
    given: String,
    /// Quoted, for SQL.
    name: String,
    columns: Vec<Column>,
    key: Vec<usize>,
    time: Option<usize>,
    chunk_interval: Option<Duration>,
    create: bool,
}

/// What a table that exists takes.
pub(crate) struct Checked {
    /// Whether its column types are those that are sent, so that no staging is needed to convert.
    pub(crate) same_types: bool,
}

impl TargetTable {
    pub(crate) fn of(
        table: &TableSpec,
        options: &PostgresOptions,
    ) -> Result<TargetTable, Vec<OptionError>> {
        let mut errors = Vec::new();
        let mut columns = Vec::new();
        for column in &table.columns {
            match type_of(&column.data_type) {
                Some(sql_type) => columns.push(Column {
                    name: column.name.clone(),
                    sql_type,
                    nullable: column.nullable,
                }),
                None => {
                    let (name, is) = (&column.name, &column.data_type);
                    let what = format!("has the column `{name}` of {is}, which PostgreSQL has not");
                    errors.push(bad_table(table, &what));
                }
            }
        }
        if !table.partitioned_by.is_empty() {
            errors.push(bad_table(table, "cannot be PARTITIONED BY in PostgreSQL"));
        }
        let place = |name: &String| table.columns.iter().position(|c| c.name == *name);
        let key: Vec<usize> = table.primary_key.iter().filter_map(place).collect();
        let named = options.time_column.as_ref();
        if let Some(name) = named.filter(|name| place(name).is_none()) {
            let what = format!("names `{name}`, which is no column of the table");
            errors.push(bad_value(table, "timescaledb.time-column", &what));
        }
        let is_time = |&i: &usize| {
            matches!(table.columns[i].data_type, arrow::datatypes::DataType::Timestamp(..))
        };
        let of_key: Vec<usize> = key.iter().copied().filter(is_time).collect();
        let only_one = (of_key.len() == 1).then(|| of_key[0]);
        let time = named.or(table.event_time.as_ref()).and_then(place).or(only_one);
        if !errors.is_empty() {
            return Err(errors);
        }
        Ok(TargetTable {
            given: options.table_name.clone(),
            name: quoted_path(&options.table_name),
            columns,
            key,
            time,
            chunk_interval: options.chunk_interval,
            create: options.create,
        })
    }

    /// Whether rows replace each other.
    pub(crate) fn has_key(&self) -> bool {
        !self.key.is_empty()
    }

    /// The key's columns.
    pub(crate) fn key(&self) -> &[usize] {
        &self.key
    }

    /// What can be said of the table before the server was asked.
    pub(crate) fn kind_planned(&self) -> String {
        match self.hypertable_column() {
            Ok(time) => format!(
                "if it does not exist: a hypertable by `{}` where the server has TimescaleDB, else \
                 a plain table",
                self.columns[time].name
            ),
            Err(why) => format!("plain table ({why})"),
        }
    }

    /// The column to partition a hypertable by, or why there is none.
    fn hypertable_column(&self) -> Result<usize, String> {
        let time = self.time.ok_or("it has no time column")?;
        if self.has_key() && !self.key.contains(&time) {
            let name = &self.columns[time].name;
            return Err(format!("its primary key lacks the time column `{name}`"));
        }
        Ok(time)
    }

    fn names(&self, places: impl Iterator<Item = usize>) -> String {
        places.map(|i| quoted(&self.columns[i].name)).collect::<Vec<_>>().join(", ")
    }

    fn all(&self) -> String {
        self.names(0..self.columns.len())
    }

    fn declared(&self, places: impl Iterator<Item = usize>) -> String {
        let declared = places.map(|i| {
            let column = &self.columns[i];
            format!("{} {}", quoted(&column.name), column.sql_type)
        });
        declared.collect::<Vec<_>>().join(", ")
    }

    fn create_sql(&self) -> String {
        let mut sql = format!("CREATE TABLE {} (", self.name);
        for (i, column) in self.columns.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            let required = if column.nullable { "" } else { " NOT NULL" };
            let _ =
                write!(sql, "{separator}{} {}{required}", quoted(&column.name), column.sql_type);
        }
        if self.has_key() {
            let _ = write!(sql, ", PRIMARY KEY ({})", self.names(self.key.iter().copied()));
        }
        sql + ")"
    }

    /// Makes the staging tables of a connection.
    pub(crate) fn stage_sql(&self) -> String {
        let mut sql = format!(
            "CREATE TEMPORARY TABLE weir_stage ({}) ON COMMIT DELETE ROWS;",
            self.declared(0..self.columns.len())
        );
        if self.has_key() {
            let key = self.declared(self.key.iter().copied());
            let _ = write!(sql, "CREATE TEMPORARY TABLE weir_gone ({key}) ON COMMIT DELETE ROWS;");
        }
        sql
    }

    pub(crate) fn copy_stage_sql(&self) -> String {
        format!("COPY {STAGE} ({}) FROM STDIN BINARY", self.all())
    }

    pub(crate) fn copy_direct_sql(&self) -> String {
        format!("COPY {} ({}) FROM STDIN BINARY", self.name, self.all())
    }

    pub(crate) fn copy_gone_sql(&self) -> String {
        format!("COPY {GONE} ({}) FROM STDIN BINARY", self.names(self.key.iter().copied()))
    }

    /// From the staging table to the table.
    pub(crate) fn insert_sql(&self) -> String {
        let all = self.all();
        let insert = format!("INSERT INTO {} ({all}) SELECT {all} FROM {STAGE}", self.name);
        if !self.has_key() {
            return insert;
        }
        let key = self.names(self.key.iter().copied());
        let rest = (0..self.columns.len()).filter(|i| !self.key.contains(i));
        let set = rest.map(|i| {
            let name = quoted(&self.columns[i].name);
            format!("{name} = EXCLUDED.{name}")
        });
        let set: Vec<String> = set.collect();
        if set.is_empty() {
            return format!("{insert} ON CONFLICT ({key}) DO NOTHING");
        }
        format!("{insert} ON CONFLICT ({key}) DO UPDATE SET {}", set.join(", "))
    }

    /// Deletes the staged keys.
    pub(crate) fn delete_sql(&self) -> String {
        let same = self.key.iter().map(|&i| {
            let name = quoted(&self.columns[i].name);
            format!("t.{name} = g.{name}")
        });
        let same = same.collect::<Vec<_>>().join(" AND ");
        format!("DELETE FROM {} t USING {GONE} g WHERE {same}", self.name)
    }

    /// Creates the table where it does not exist. Says what it is now.
    pub(crate) async fn make(&self, client: &Client) -> Result<String, Failure> {
        // Several processes may start at once: the lock makes one of them create it.
        let lock = "SELECT pg_advisory_xact_lock(8533, hashtext($1))";
        client.batch_execute("BEGIN").await?;
        client.execute(lock, &[&self.name]).await?;
        let exists = self.exists(client).await?;
        let timescale = "SELECT 1 FROM pg_extension WHERE extname = 'timescaledb'";
        let timescale = client.query_opt(timescale, &[]).await?.is_some();
        if exists {
            client.batch_execute("COMMIT").await?;
            return Ok("a table that was there already".to_owned());
        }
        if !self.create {
            let (name, what) = (&self.given, "and 'table.create' is false");
            let message = format!("table `{name}` does not exist in the database, {what}");
            return Err(Failure::Final(ConnectorError::reconfigure(message)));
        }
        client.batch_execute(&self.create_sql()).await?;
        let kind = match self.hypertable_column() {
            Err(why) => format!("a new plain table ({why})"),
            Ok(_) if !timescale => "a new plain table (the server has no TimescaleDB)".to_owned(),
            Ok(time) => {
                client.batch_execute(&self.hypertable_sql(time)).await?;
                format!("a new hypertable by `{}`", self.columns[time].name)
            }
        };
        client.batch_execute("COMMIT").await?;
        Ok(kind)
    }

    fn hypertable_sql(&self, time: usize) -> String {
        let interval = self
            .chunk_interval
            .map(|interval| format!(", INTERVAL '{} milliseconds'", interval.as_millis()));
        format!(
            "SELECT create_hypertable({}, by_range({}{}), if_not_exists => true)",
            literal(&self.name),
            literal(&self.columns[time].name),
            interval.unwrap_or_default()
        )
    }

    async fn exists(&self, client: &Client) -> Result<bool, Failure> {
        let row = client.query_one("SELECT to_regclass($1) IS NOT NULL", &[&self.name]).await?;
        Ok(row.get(0))
    }

    /// Checks that the table takes what will be sent.
    pub(crate) async fn check(&self, client: &Client) -> Result<Checked, Failure> {
        let sql = "SELECT a.attname::text, t.typname::text, format_type(a.atttypid, a.atttypmod), \
                   a.attnotnull AND NOT a.atthasdef AND a.attidentity = '' \
                   FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
                   WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped";
        let mut wrong = Vec::new();
        let mut same_types = true;
        let rows = client.query(sql, &[&self.name]).await?;
        if rows.is_empty() {
            let message = format!("table `{}` does not exist in the database", self.given);
            return Err(Failure::Final(ConnectorError::reconfigure(message)));
        }
        for column in &self.columns {
            let found = rows.iter().find(|row| row.get::<_, String>(0) == column.name);
            let Some(row) = found else {
                wrong.push(format!("column `{}` is missing", column.name));
                continue;
            };
            let (base, shown): (String, String) = (row.get(1), row.get(2));
            let sent = column.sql_type.split('(').next().unwrap_or_default();
            if !takes(sent, &base) {
                let (name, is) = (&column.name, &column.sql_type);
                wrong.push(format!("column `{name}` is {shown} and cannot take {is}"));
            }
            same_types &= base == wire_name(sent);
        }
        for row in &rows {
            let (name, required): (String, bool) = (row.get(0), row.get(3));
            if required && self.columns.iter().all(|c| c.name != name) {
                wrong.push(format!("column `{name}` is NOT NULL and would get no value"));
            }
        }
        if wrong.is_empty() && self.has_key() && !self.has_unique_index(client).await? {
            let key = self.names(self.key.iter().copied());
            wrong.push(format!("it has no unique index on ({key}), the primary key"));
        }
        if wrong.is_empty() {
            return Ok(Checked { same_types });
        }
        let message =
            format!("table `{}` in the database does not fit: {}", self.given, wrong.join("; "));
        let hint = format!("what would fit: {}", self.create_sql());
        Err(Failure::Final(ConnectorError::reconfigure(message).hint(hint)))
    }

    async fn has_unique_index(&self, client: &Client) -> Result<bool, Failure> {
        let sql = "SELECT (SELECT array_agg(a.attname::text ORDER BY a.attname::text) \
                   FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)) \
                   FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique \
                   AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indimmediate \
                   AND i.indnkeyatts = i.indnatts";
        let mut key: Vec<String> = self.key.iter().map(|&i| self.columns[i].name.clone()).collect();
        key.sort();
        let rows = client.query(sql, &[&self.name]).await?;
        Ok(rows.iter().any(|row| row.get::<_, Vec<String>>(0) == key))
    }
}

/// Whether a column of type `base` (its `typname`) takes values of the type that is sent, by a cast
/// that an INSERT does by itself.
fn takes(sent: &str, base: &str) -> bool {
    let numbers = ["int2", "int4", "int8", "float4", "float8", "numeric"];
    match sent {
        "smallint" | "integer" | "bigint" | "real" | "double precision" | "numeric" => {
            numbers.contains(&base)
        }
        "text" => ["text", "varchar", "bpchar", "name", "citext"].contains(&base),
        "timestamp" | "timestamptz" => ["timestamp", "timestamptz"].contains(&base),
        "date" => ["date", "timestamp", "timestamptz"].contains(&base),
        "jsonb" => ["jsonb", "json"].contains(&base),
        other => wire_name(other) == base,
    }
}

/// The catalogue's name of a type.
fn wire_name(sql_type: &str) -> &str {
    match sql_type {
        "boolean" => "bool",
        "smallint" => "int2",
        "integer" => "int4",
        "bigint" => "int8",
        "real" => "float4",
        "double precision" => "float8",
        other => other,
    }
}

/// A name with the schema that may stand before it, quoted.
pub(crate) fn quoted_path(name: &str) -> String {
    name.split('.').map(quoted).collect::<Vec<_>>().join(".")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

impl From<tokio_postgres::Error> for Failure {
    fn from(error: tokio_postgres::Error) -> Failure {
        Failure::Final(of_server(&error))
    }
}
