//! What a table is to a connector, and how connectors say what they cannot do.
//!
//! The SQL front end makes a [`TableSpec`] of CREATE TABLE; the composition root finds the
//! connector by name and asks it for a [`Source`] or a
//! [`Sink`]. Complaints about options come back as [`OptionError`]s, which the
//! front end turns into messages with a place in the script.

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use thiserror::Error;

use crate::sink::Sink;
use crate::source::Source;

/// One physical or metadata column that a connector reads or writes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ColumnSpec {
    /// Name, case-sensitive.
    pub name: String,
    /// Arrow type. TIMESTAMP(p) is a timestamp without zone, TIMESTAMP_LTZ(p) one in `UTC`; p ≤ 3
    /// is in milliseconds, ≤ 6 in microseconds, ≤ 9 in nanoseconds.
    pub data_type: DataType,
    /// Whether NULL is allowed.
    pub nullable: bool,
    /// For a METADATA column: the connector's key, for instance `offset`.
    pub metadata: Option<String>,
}

/// A declared table, as far as a connector needs it. Computed columns are not part of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TableSpec {
    /// Name.
    pub name: String,
    /// Physical and metadata columns in the order of declaration. For a source: those that the
    /// query needs, in this order, and no others.
    pub columns: Vec<ColumnSpec>,
    /// The WITH options. `connector` is among them.
    pub options: BTreeMap<String, String>,
    /// Names of the PRIMARY KEY columns, empty without one.
    pub primary_key: Vec<String>,
    /// Names of the PARTITIONED BY columns.
    pub partitioned_by: Vec<String>,
    /// Name of the event-time column if the table has a WATERMARK and the column is physical.
    pub event_time: Option<String>,
    /// Names of the columns that the query uses as keys: a source may give their text as
    /// dictionaries, and need not.
    #[serde(default)]
    pub keyed: Vec<String>,
    /// Predicates on physical columns of a source that hold for every row that matters; a connector
    /// may use them to skip what cannot match, and need not.
    pub pushed: Vec<Pushed>,
}

/// A predicate that statistics can decide.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pushed {
    /// Column name.
    pub column: String,
    /// Comparison: `=`, `<`, `<=`, `>`, `>=`.
    pub operator: String,
    /// The literal as text: numbers in decimal, timestamps in milliseconds, strings as they are.
    pub literal: String,
}

impl TableSpec {
    /// The columns as an Arrow schema.
    pub fn schema(&self) -> SchemaRef {
        let fields: Vec<Field> = self
            .columns
            .iter()
            .map(|c| Field::new(&c.name, c.data_type.clone(), c.nullable))
            .collect();
        Arc::new(Schema::new(fields))
    }

    /// An option's value.
    pub fn option(&self, key: &str) -> Option<&str> {
        self.options.get(key).map(String::as_str)
    }
}

/// What is wrong with the options of a table. The front end adds the place.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct OptionError {
    /// The option at fault, `None` if one is missing or the table as a whole is at fault.
    pub key: Option<String>,
    /// What is wrong, with the table's name where that helps. Never a secret.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// How a failure of the world is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Try again, with back-off; visible while it lasts.
    Retry,
    /// The configuration must change: wrong password, no such topic.
    Reconfigure,
    /// Nothing helps: the job fails.
    Fatal,
    /// Another process of the job is out of reach, which is no fault of the job: where it lasts,
    /// its next generation goes on.
    Restart,
}

/// A failure of the world outside: broker, database, disk.
#[derive(Clone, Debug, Error)]
#[error("{message}")]
pub struct ConnectorError {
    /// What to do about it.
    pub remedy: Remedy,
    /// What happened, where (server, file, table), for a person. Never a secret.
    pub message: String,
    /// What to do, if that can be said.
    pub hint: Option<String>,
}

impl ConnectorError {
    /// An error with this remedy.
    pub fn new(remedy: Remedy, message: impl Into<String>) -> ConnectorError {
        ConnectorError { remedy, message: message.into(), hint: None }
    }

    /// Worth trying again.
    pub fn retry(message: impl Into<String>) -> ConnectorError {
        ConnectorError::new(Remedy::Retry, message)
    }

    /// Wants another configuration.
    pub fn reconfigure(message: impl Into<String>) -> ConnectorError {
        ConnectorError::new(Remedy::Reconfigure, message)
    }

    /// Final.
    pub fn fatal(message: impl Into<String>) -> ConnectorError {
        ConnectorError::new(Remedy::Fatal, message)
    }

    /// The same with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> ConnectorError {
        self.hint = Some(hint.into());
        self
    }
}

/// Documentation of one option; the manual is made of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionDoc {
    /// The key, for instance `scan.startup.mode`; a trailing `*` stands for any suffix.
    pub key: &'static str,
    /// Type in words: `duration`, `string`, `size`, `boolean`, or the values allowed.
    pub kind: &'static str,
    /// The default in words, `None` if it is required.
    pub default: Option<&'static str>,
    /// What it does.
    pub doc: &'static str,
}

/// A kind of connector, for instance `kafka`.
pub trait Connector: Send + Sync {
    /// The value of `'connector'`.
    fn name(&self) -> &'static str;

    /// All options, for the manual and for "did you mean".
    fn options(&self) -> Vec<OptionDoc>;

    /// Metadata columns that a source can give: key, type.
    fn metadata(&self) -> Vec<(&'static str, DataType)>;

    /// Checks all options for reading and makes a source. Touches nothing outside.
    fn source(&self, table: &TableSpec) -> Result<Box<dyn Source>, Vec<OptionError>>;

    /// Checks all options for writing and makes a sink. Touches nothing outside.
    fn sink(&self, table: &TableSpec) -> Result<Box<dyn Sink>, Vec<OptionError>>;
}

/// The connectors that this build has; the composition root fills it.
#[derive(Default)]
pub struct Connectors(Vec<Box<dyn Connector>>);

impl Connectors {
    /// Adds one.
    pub fn add(&mut self, connector: impl Connector + 'static) {
        self.0.push(Box::new(connector));
    }

    /// The one of this name.
    pub fn get(&self, name: &str) -> Option<&dyn Connector> {
        self.0.iter().find(|c| c.name() == name).map(AsRef::as_ref)
    }

    /// All of them, in the order of their registration.
    pub fn iter(&self) -> impl Iterator<Item = &dyn Connector> {
        self.0.iter().map(AsRef::as_ref)
    }
}

/// Options that every source understands; the engine reads them, connectors let them pass.
pub const ENGINE_SOURCE_OPTIONS: [OptionDoc; 8] = [
    OptionDoc {
        key: "scan.watermark.idle-timeout",
        kind: "duration",
        default: Some("30 s"),
        doc: "A split that is connected, polled, not paused and at its end for this long stops \
              holding the watermark back. `0 s` means never.",
    },
    OptionDoc {
        key: "scan.watermark.idle-on-disconnect",
        kind: "boolean",
        default: Some("false"),
        doc: "Whether a split may also become idle while its server cannot be reached.",
    },
    OptionDoc {
        key: "scan.watermark.alignment.max-drift",
        kind: "duration",
        default: Some("none"),
        doc: "Splits whose mark is further than this ahead of the slowest are paused.",
    },
    OptionDoc {
        key: "watermark.max-ahead",
        kind: "duration",
        default: Some("5 min"),
        doc: "A row stamped further than this beyond its arrival does not move the watermark, and \
              is counted as a future row.",
    },
    OptionDoc {
        key: "watermark.advance-after",
        kind: "duration",
        default: Some("none"),
        doc: "With all splits idle for this long, the watermark follows the recorded time.",
    },
    OptionDoc {
        key: "dead-letter.table",
        kind: "table name",
        default: Some("none"),
        doc: "Rows that cannot be decoded go to this table, by column name: payload, source, \
              split, offset, arrival, reason.",
    },
    OptionDoc {
        key: "versions.keep",
        kind: "duration",
        default: Some("1 day"),
        doc: "How far behind the watermark a versioned table keeps old versions.",
    },
    OptionDoc {
        key: "dedup.within",
        kind: "duration",
        default: Some("none"),
        doc: "Of the rows with one PRIMARY KEY only the first is read: as long as the watermark is \
              not this far beyond its event time. A row that is this far behind is late: counted, \
              and not read. It needs a WATERMARK. A copy of a row in another split may come \
              through in its place; copies are taken to be equal.",
    },
];
