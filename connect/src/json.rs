//! JSON messages to Arrow batches and back, with the semantics of Flink's `json` format.
//!
//! [`JsonDecoder`] reads one message at a time into columns, only those of its schema;
//! [`JsonEncoder`] writes one line per row. Both are strict and deterministic: the same messages
//! give the same columns in whatever order they come, and the same batch gives the same bytes.
//!
//! # What counts
//! 1. RFC 8259 to the letter, in skipped values too, over valid UTF-8; one byte order mark may
//!    lead. The root is an object. An empty message is neither row nor error.
//! 2. Columns are found by name. A missing one and `null` are NULL; of a repeated name the last
//!    wins.
//! 3. Values convert as in Flink (`JsonParserToRowDataConverters`); the table is in `column.rs`.
//!    What does not convert refuses the message as a whole: no row, no NULL in its place. The one
//!    exception is Flink's own, a DECIMAL too large for its precision, which is NULL.
//! 4. NULL in a column that is NOT NULL refuses the message.
//!
//! ```
//! use std::sync::Arc;
//! use arrow::datatypes::{DataType, Field, Schema};
//! use weir_connect::json::{JsonDecoder, JsonEncoder, JsonOptions, Pushed};
//!
//! let schema = Arc::new(Schema::new(vec![Field::new("kwh", DataType::Float64, true)]));
//! let mut decoder = JsonDecoder::new(schema.clone(), JsonOptions::default())?;
//! assert_eq!(decoder.push(br#"{"meter":"m1","kwh":0.25}"#), Ok(Pushed::Row));
//! let error = decoder.push(br#"{"meter":"m1","kwh":{}}"#).unwrap_err();
//! assert_eq!(error.to_string(), "expected a number (DOUBLE) at byte 20, column kwh");
//!
//! let batch = decoder.finish();
//! let encoder = JsonEncoder::new(schema, JsonOptions::default())?;
//! assert_eq!(encoder.encode(&batch), b"{\"kwh\":0.25}\n");
//! # Ok::<(), weir_connect::json::UnsupportedType>(())
//! ```
//!
//! # How it is fast
//! `scan.rs` knows the grammar and `column.rs` the types. `decode.rs` takes any message in two
//! passes, places first and then values, because the last of repeated names wins. `layout.rs` bets
//! that a message is built like one before it and then needs one pass; it proves its bet or gives
//! way.

mod column;
mod decode;
mod encode;
mod fields;
mod layout;
mod number;
mod pack;
mod scan;
mod text;
mod time;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::datatypes::DataType;

pub use decode::{JsonDecoder, Pushed};
pub use encode::{JsonEncoder, RowWriter};

/// Flink's `json.*` options that decide what a message means. The default is Flink's.
///
/// `json.ignore-parse-errors` is not among them: what becomes of a refused row is for the source to
/// decide, which counts it and may keep it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct JsonOptions {
    /// `json.timestamp-format.standard`.
    pub timestamp_standard: TimestampStandard,
    /// `json.fail-on-missing-field`: a column or ROW field that a message lacks refuses the
    /// message.
    pub fail_on_missing: bool,
    /// `json.encode.ignore-null-fields`: columns and ROW fields that are NULL are left out.
    pub ignore_null_fields: bool,
}

/// How a TIMESTAMP looks as text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TimestampStandard {
    /// `2024-03-10 07:08:09.5`.
    #[default]
    Sql,
    /// `2024-03-10T07:08:09.5`.
    Iso8601,
}

/// A column that JSON cannot carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedType {
    /// No conversion between JSON and this type.
    #[error("column {column}: JSON has no form for {data_type}")]
    Type {
        /// Dotted path of the column.
        column: String,
        /// Its Arrow type.
        data_type: DataType,
    },
    /// Columns are found by name, so a name must be one column's.
    #[error("column {column} is there twice")]
    Repeated {
        /// Dotted path of the column.
        column: String,
    },
}

/// Why a message is no row. It never quotes the message: what is in it may be confidential.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason} at byte {at}{}", column_suffix(.column.as_deref()))]
pub struct RowError {
    /// Position in the message, in bytes from 0.
    pub at: usize,
    /// Dotted path of the column concerned, if the message is well-formed JSON up to there.
    pub column: Option<Arc<str>>,
    /// What was wrong.
    pub reason: Reason,
}

/// What is wrong with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// Not JSON, or with something after it.
    #[error("not JSON: expected {0}")]
    Grammar(&'static str),
    /// The bytes are no UTF-8.
    #[error("not UTF-8")]
    Utf8,
    /// An escaped surrogate without its other half has no UTF-8.
    #[error("not UTF-8: half a surrogate pair")]
    LoneSurrogate,
    /// More levels of arrays and objects than `scan::DEPTH_MAX`.
    #[error("nested deeper than {} levels", scan::DEPTH_MAX)]
    TooDeep,
    /// The value does not convert to the type of the column.
    #[error("expected {0}")]
    Expected(&'static str),
    /// `json.fail-on-missing-field` is set and the field is not there.
    #[error("missing")]
    Missing,
    /// NULL, or nothing, for a column that is NOT NULL.
    #[error("NULL, but the column is NOT NULL")]
    NotNull,
    /// The batch would pass Arrow's limit of 2^31 - 1 bytes or elements in a column.
    #[error("the batch is full: a column would pass 2 GiB")]
    BatchFull,
}

fn column_suffix(column: Option<&str>) -> String {
    column.map(|column| format!(", column {column}")).unwrap_or_default()
}

/// A [`RowError`] on its way out, before its column has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    at: usize,
    /// Which column, as an index into [`column::Columns`].
    column: Option<usize>,
    reason: Reason,
}

impl Fault {
    fn new(at: usize, reason: Reason) -> Self {
        Self { at, column: None, reason }
    }

    fn grammar(at: usize, expected: &'static str) -> Self {
        Self::new(at, Reason::Grammar(expected))
    }

    /// Names the column, unless a place further in has named its own.
    fn within(mut self, column: usize) -> Self {
        self.column = self.column.or(Some(column));
        self
    }
}
