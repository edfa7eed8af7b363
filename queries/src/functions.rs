//! Flink's scalar functions: which there are, what they take, and what they give.
//!
//! Arguments reach `run` as columns of exactly the types that the signature says; a NULL argument
//! gives NULL unless a function says otherwise. What a function refuses is an error for the whole
//! chunk: the caller looks for the rows at fault.

mod arithmetic;
mod calendar;
mod format;
mod text;
mod time;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;

use crate::types::TIMESTAMP_MS;
pub(crate) use format::parse_iso;

/// What an argument is converted to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arg {
    Text,
    Double,
    Int,
    Long,
    Time,
}

/// A function's signature.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Function {
    pub(crate) name: &'static str,
    /// All arguments; those from `required` on may be left out.
    pub(crate) args: &'static [Arg],
    pub(crate) required: usize,
    /// Whether the last argument may be repeated.
    pub(crate) variadic: bool,
    pub(crate) result: Gives,
    /// How it is written.
    pub(crate) usage: &'static str,
}

/// Type of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gives {
    Text,
    Double,
    Int,
    Long,
    Boolean,
    Time,
    Date,
}

impl Arg {
    pub(crate) fn data_type(self) -> DataType {
        match self {
            Arg::Text => DataType::Utf8,
            Arg::Double => DataType::Float64,
            Arg::Int => DataType::Int32,
            Arg::Long => DataType::Int64,
            Arg::Time => TIMESTAMP_MS,
        }
    }
}

impl Gives {
    pub(crate) fn data_type(self) -> DataType {
        match self {
            Gives::Text => DataType::Utf8,
            Gives::Double => DataType::Float64,
            Gives::Int => DataType::Int32,
            Gives::Long => DataType::Int64,
            Gives::Boolean => DataType::Boolean,
            Gives::Time => TIMESTAMP_MS,
            Gives::Date => DataType::Date32,
        }
    }
}

const fn f(
    name: &'static str,
    args: &'static [Arg],
    required: usize,
    result: Gives,
    usage: &'static str,
) -> Function {
    Function { name, args, required, variadic: false, result, usage }
}

const fn many(
    name: &'static str,
    args: &'static [Arg],
    required: usize,
    usage: &'static str,
) -> Function {
    Function { name, args, required, variadic: true, result: Gives::Text, usage }
}

use Arg::{Double as D, Int as I, Long as L, Text as T, Time as S};

/// The functions with fixed signatures.
const FUNCTIONS: &[Function] = &[
    f("UPPER", &[T], 1, Gives::Text, "UPPER(string)"),
    f("LOWER", &[T], 1, Gives::Text, "LOWER(string)"),
    f("INITCAP", &[T], 1, Gives::Text, "INITCAP(string)"),
    f("REVERSE", &[T], 1, Gives::Text, "REVERSE(string)"),
    f("CHAR_LENGTH", &[T], 1, Gives::Int, "CHAR_LENGTH(string)"),
    f("CHARACTER_LENGTH", &[T], 1, Gives::Int, "CHARACTER_LENGTH(string)"),
    f("ASCII", &[T], 1, Gives::Int, "ASCII(string)"),
    f("CHR", &[L], 1, Gives::Text, "CHR(integer)"),
    f("TRIM", &[T, T, T], 3, Gives::Text, "TRIM(string)"),
    f("LTRIM", &[T], 1, Gives::Text, "LTRIM(string)"),
    f("RTRIM", &[T], 1, Gives::Text, "RTRIM(string)"),
    f("BTRIM", &[T], 1, Gives::Text, "BTRIM(string)"),
    f("REPLACE", &[T, T, T], 3, Gives::Text, "REPLACE(string, search, replacement)"),
    f("SUBSTRING", &[T, I, I], 2, Gives::Text, "SUBSTRING(string, start[, length])"),
    f("SUBSTR", &[T, I, I], 2, Gives::Text, "SUBSTR(string, start[, length])"),
    f("LEFT", &[T, I], 2, Gives::Text, "LEFT(string, length)"),
    f("RIGHT", &[T, I], 2, Gives::Text, "RIGHT(string, length)"),
    f("LPAD", &[T, I, T], 3, Gives::Text, "LPAD(string, length, pad)"),
    f("RPAD", &[T, I, T], 3, Gives::Text, "RPAD(string, length, pad)"),
    f("REPEAT", &[T, I], 2, Gives::Text, "REPEAT(string, times)"),
    f("POSITION", &[T, T], 2, Gives::Int, "POSITION(search IN string)"),
    f("LOCATE", &[T, T, I], 2, Gives::Int, "LOCATE(search, string[, start])"),
    f("INSTR", &[T, T], 2, Gives::Int, "INSTR(string, search)"),
    f("STARTSWITH", &[T, T], 2, Gives::Boolean, "STARTSWITH(string, start)"),
    f("ENDSWITH", &[T, T], 2, Gives::Boolean, "ENDSWITH(string, end)"),
    f("SPLIT_INDEX", &[T, T, I], 3, Gives::Text, "SPLIT_INDEX(string, separator, index)"),
    f("REGEXP", &[T, T], 2, Gives::Boolean, "REGEXP(string, pattern)"),
    f("REGEXP_EXTRACT", &[T, T, I], 2, Gives::Text, "REGEXP_EXTRACT(string, pattern[, group])"),
    f("REGEXP_REPLACE", &[T, T, T], 3, Gives::Text, "REGEXP_REPLACE(string, pattern, by)"),
    many("CONCAT", &[T], 1, "CONCAT(string, …)"),
    many("CONCAT_WS", &[T, T], 2, "CONCAT_WS(separator, string, …)"),
    f("SQRT", &[D], 1, Gives::Double, "SQRT(number)"),
    f("POWER", &[D, D], 2, Gives::Double, "POWER(base, exponent)"),
    f("EXP", &[D], 1, Gives::Double, "EXP(number)"),
    f("LN", &[D], 1, Gives::Double, "LN(number)"),
    f("LOG10", &[D], 1, Gives::Double, "LOG10(number)"),
    f("LOG2", &[D], 1, Gives::Double, "LOG2(number)"),
    f("LOG", &[D, D], 1, Gives::Double, "LOG([base, ]number)"),
    f("SIN", &[D], 1, Gives::Double, "SIN(number)"),
    f("COS", &[D], 1, Gives::Double, "COS(number)"),
    f("TAN", &[D], 1, Gives::Double, "TAN(number)"),
    f("ASIN", &[D], 1, Gives::Double, "ASIN(number)"),
    f("ACOS", &[D], 1, Gives::Double, "ACOS(number)"),
    f("ATAN", &[D], 1, Gives::Double, "ATAN(number)"),
    f("ATAN2", &[D, D], 2, Gives::Double, "ATAN2(y, x)"),
    f("SINH", &[D], 1, Gives::Double, "SINH(number)"),
    f("COSH", &[D], 1, Gives::Double, "COSH(number)"),
    f("TANH", &[D], 1, Gives::Double, "TANH(number)"),
    f("DEGREES", &[D], 1, Gives::Double, "DEGREES(number)"),
    f("RADIANS", &[D], 1, Gives::Double, "RADIANS(number)"),
    f("PI", &[], 0, Gives::Double, "PI()"),
    f("E", &[], 0, Gives::Double, "E()"),
    f("YEAR", &[S], 1, Gives::Long, "YEAR(timestamp)"),
    f("QUARTER", &[S], 1, Gives::Long, "QUARTER(timestamp)"),
    f("MONTH", &[S], 1, Gives::Long, "MONTH(timestamp)"),
    f("WEEK", &[S], 1, Gives::Long, "WEEK(timestamp)"),
    f("DAYOFYEAR", &[S], 1, Gives::Long, "DAYOFYEAR(timestamp)"),
    f("DAYOFMONTH", &[S], 1, Gives::Long, "DAYOFMONTH(timestamp)"),
    f("DAYOFWEEK", &[S], 1, Gives::Long, "DAYOFWEEK(timestamp)"),
    f("HOUR", &[S], 1, Gives::Long, "HOUR(timestamp)"),
    f("MINUTE", &[S], 1, Gives::Long, "MINUTE(timestamp)"),
    f("SECOND", &[S], 1, Gives::Long, "SECOND(timestamp)"),
    f("EXTRACT", &[T, S], 2, Gives::Long, "EXTRACT(unit FROM timestamp)"),
    f("DATE_FORMAT", &[S, T], 2, Gives::Text, "DATE_FORMAT(timestamp, format)"),
    f("TO_TIMESTAMP", &[T, T], 1, Gives::Time, "TO_TIMESTAMP(string[, format])"),
    f("TO_DATE", &[T, T], 1, Gives::Date, "TO_DATE(string[, format])"),
    f("TIMESTAMPDIFF", &[T, S, S], 3, Gives::Int, "TIMESTAMPDIFF(unit, from, to)"),
];

/// Functions that the binder knows by itself, for "did you mean".
pub(crate) const SPECIAL: &[&str] = &[
    "COALESCE",
    "NULLIF",
    "IF",
    "IFNULL",
    "GREATEST",
    "LEAST",
    "ABS",
    "MOD",
    "ROUND",
    "FLOOR",
    "CEIL",
    "CEILING",
    "SIGN",
    "TRUNCATE",
    "TO_TIMESTAMP_LTZ",
    "FROM_UNIXTIME",
    "UNIX_TIMESTAMP",
    "TIMESTAMPADD",
    "NOW",
    "CURRENT_TIMESTAMP",
    "LOCALTIMESTAMP",
    "CURRENT_DATE",
    "PROCTIME",
    "CURRENT_ROW_TIMESTAMP",
    "GROUPING",
    "GROUPING_ID",
    "COUNT",
    "SUM",
    "AVG",
    "MIN",
    "MAX",
    "STDDEV_POP",
    "STDDEV_SAMP",
    "STDDEV",
    "VAR_POP",
    "VAR_SAMP",
    "VARIANCE",
    "TUMBLE",
    "HOP",
    "SESSION",
    "TUMBLE_START",
    "TUMBLE_END",
    "TUMBLE_ROWTIME",
    "HOP_START",
    "HOP_END",
    "HOP_ROWTIME",
    "SESSION_START",
    "SESSION_END",
    "SESSION_ROWTIME",
];

/// The signature of a function, by its name in any case.
pub(crate) fn lookup(name: &str) -> Option<&'static Function> {
    let upper = name.to_uppercase();
    let name = match upper.as_str() {
        "LENGTH" => "CHAR_LENGTH",
        "POW" => "POWER",
        other => other,
    };
    FUNCTIONS.iter().find(|f| f.name == name)
}

/// All names.
pub(crate) fn names() -> impl Iterator<Item = &'static str> {
    FUNCTIONS.iter().map(|f| f.name).chain(SPECIAL.iter().copied())
}

/// Evaluates a function of this name over columns of `rows` rows.
pub(crate) fn run(
    name: &str,
    args: &[ArrayRef],
    rows: usize,
    result: &DataType,
) -> Result<ArrayRef, String> {
    if let Some(done) = text::run(name, args) {
        return done;
    }
    if let Some(done) = time::run(name, args, result) {
        return done;
    }
    match arithmetic::run(name, args, rows, result) {
        Some(done) => done,
        None => Err(format!("this build has no function {name}")),
    }
}
