//! Typed options of connectors: one struct gives parsing, complaints and the manual.
//!
//! A connector declares its WITH options with [`options!`](crate::options!): a struct whose doc
//! comments are the manual, each field with its key and whether it is required, has a default or
//! may be absent. `read` checks a table against it and reports everything that is wrong at once:
//!
//! ```
//! use std::time::Duration;
//! use weir_connect::options::Secret;
//! # use weir_engine::connector::TableSpec;
//!
//! weir_connect::choices! {
//!     /// How rows are written.
//!     pub enum Format {
//!         /// A JSON object a line.
//!         Json = "json",
//!         /// Parquet files.
//!         Parquet = "parquet",
//!     }
//! }
//!
//! weir_connect::options! {
//!     /// Options of the `archive` sink.
//!     pub struct ArchiveOptions {
//!         /// Folder to write to.
//!         pub path: String = "path", required "archive/readings";
//!         /// How rows are written.
//!         pub format: Format = "format", default "json";
//!         /// How long rows may wait for company.
//!         pub linger: Duration = "sink.linger", default "20 ms";
//!         /// Password of the server.
//!         pub password: Option<Secret> = "password", optional;
//!     }
//! }
//!
//! # let mut table = TableSpec {
//! #     name: "a".into(), columns: vec![], options: Default::default(), primary_key: vec![],
//! #     partitioned_by: vec![], event_time: None, keyed: vec![],
//! #     pushed: vec![],
//! # };
//! # table.options.insert("connector".into(), "archive".into());
//! table.options.insert("format".into(), "jsn".into());
//! let errors = ArchiveOptions::read(&table, &[]).unwrap_err();
//! assert_eq!(errors[0].message, "connector 'archive' of table `a` needs the option 'path'");
//! assert_eq!(
//!     errors[1].message,
//!     "'format' of table `a` must be json | parquet, not 'jsn'; did you mean 'json'?"
//! );
//!
//! table.options.extend([("path".into(), "out".into()), ("format".into(), "json".into())]);
//! let options = ArchiveOptions::read(&table, &[]).unwrap();
//! assert_eq!(options.linger, Duration::from_millis(20));
//! assert_eq!(ArchiveOptions::docs()[2].default, Some("20 ms"));
//! ```
//!
//! # Limits
//! Keys are case-sensitive, values of enums and booleans are not. Checks across several options are
//! the connector's own; [`bad_value`] and [`bad_table`] make complaints of the same form.

use std::collections::BTreeMap;
use std::fmt;
use weir_engine::connector::{ENGINE_SOURCE_OPTIONS, OptionDoc, OptionError, TableSpec};

pub use suggest::did_you_mean;
pub use values::{BadValue, OptionValue, Size, parse_duration};

mod suggest;
mod values;

#[cfg(test)]
mod tests;

/// A text that is never shown: neither by `Debug` nor by `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself; only for handing it to a server.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Options under a prefix such as `properties.*`, by what follows the prefix. `Debug` shows keys
/// only, because some of the values are passwords.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Prefixed(BTreeMap<String, String>);

impl Prefixed {
    /// Keys (without the prefix) and values in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(k, v)| (k.as_str(), v.as_str()))
    }

    /// One value.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }
}

impl fmt::Debug for Prefixed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The same text with every password in a URL (`user:password@`), and every value of `password=`,
/// replaced by `***`.
///
/// It takes the last `@` of a URL for the end of the password, so that a password with an unescaped
/// `@` or `/` does not show: rather too much is hidden than too little.
pub fn mask_url(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let ends = |c: char| c.is_whitespace() || matches!(c, '\'' | '"' | '`' | '<' | '>');
        let end = after.find(ends).unwrap_or(after.len());
        let (url, remainder) = after.split_at(end);
        match url.rfind('@') {
            Some(host) if url[..host].contains(':') => {
                let user = url.find(':').unwrap_or(0);
                out.push_str(&url[..user]);
                out.push_str(":***");
                out.push_str(&url[host..]);
            }
            _ => out.push_str(url),
        }
        rest = remainder;
    }
    out.push_str(rest);
    mask_pairs(&out)
}

/// Replaces what follows `password=` up to the next `&`, blank or quote.
fn mask_pairs(text: &str) -> String {
    const PAIR: &str = "password=";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.to_ascii_lowercase().find(PAIR) {
        let (before, after) = rest.split_at(at + PAIR.len());
        out.push_str(before);
        out.push_str("***");
        // libpq's key=value form may quote a password, blanks and all.
        let quoted = after.strip_prefix('\'').and_then(|inner| Some(inner.find('\'')? + 2));
        let ends = |c: char| c.is_whitespace() || matches!(c, '&' | '"' | '`');
        let end = quoted.or_else(|| after.find(ends)).unwrap_or(after.len());
        rest = &after[end..];
    }
    out.push_str(rest);
    out
}

/// Complains about the value of an option: `'key' of table … {what}`. The value is not shown.
pub fn bad_value(table: &TableSpec, key: &str, what: &str) -> OptionError {
    OptionError {
        key: Some(key.to_owned()),
        message: format!("'{key}' of table `{}` {what}", table.name),
        hint: None,
    }
}

/// Complains about the table as a whole: `table … {what}`.
pub fn bad_table(table: &TableSpec, what: &str) -> OptionError {
    OptionError { key: None, message: format!("table `{}` {what}", table.name), hint: None }
}

/// Collects values and complaints for the code that [`options!`](crate::options!) makes.
#[doc(hidden)]
pub struct Reader<'a> {
    table: &'a TableSpec,
    errors: Vec<OptionError>,
}

impl<'a> Reader<'a> {
    /// Reads the options of `table`.
    pub fn of(table: &'a TableSpec) -> Reader<'a> {
        Reader { table, errors: Vec::new() }
    }

    /// A required option; a complaint with an example where it is missing or blank.
    pub fn required<T: OptionValue>(&mut self, key: &str, example: &str) -> Option<T> {
        match self.table.option(key) {
            Some(text) if !text.trim().is_empty() => self.parsed(key, text),
            other => {
                let connector = self.table.option("connector").unwrap_or("unknown");
                let table = &self.table.name;
                let (key_at_fault, message) = match other {
                    None => (
                        None,
                        format!(
                            "connector '{connector}' of table `{table}` needs the option '{key}'"
                        ),
                    ),
                    Some(_) => (
                        Some(key.to_owned()),
                        format!("'{key}' of table `{table}` must not be empty"),
                    ),
                };
                let hint = Some(format!("add for example '{key}' = '{example}'"));
                self.errors.push(OptionError { key: key_at_fault, message, hint });
                None
            }
        }
    }

    /// An option that has a default, given as a user would write it.
    pub fn default<T: OptionValue>(&mut self, key: &str, default: &str) -> Option<T> {
        match self.table.option(key) {
            Some(text) => self.parsed(key, text),
            None => {
                let value = T::parse(default);
                assert!(value.is_ok(), "the default '{default}' of '{key}' cannot be parsed");
                value.ok()
            }
        }
    }

    /// An option that may be absent: `Some(None)` then.
    // The outer layer is "could be read", as in the other functions.
    #[allow(clippy::option_option)]
    pub fn optional<T: OptionValue>(&mut self, key: &str) -> Option<Option<T>> {
        match self.table.option(key) {
            Some(text) => self.parsed(key, text).map(Some),
            None => Some(None),
        }
    }

    /// All options under `pattern`, which ends in `*`.
    pub fn prefixed(&mut self, pattern: &str) -> Option<Prefixed> {
        let prefix = pattern.trim_end_matches('*');
        let under =
            self.table.options.iter().filter_map(|(key, value)| {
                Some((key.strip_prefix(prefix)?.to_owned(), value.clone()))
            });
        Some(Prefixed(under.filter(|(key, _)| !key.is_empty()).collect()))
    }

    fn parsed<T: OptionValue>(&mut self, key: &str, text: &str) -> Option<T> {
        match T::parse(text) {
            Ok(value) => Some(value),
            Err(bad) => {
                let shown = if T::SECRET { "***".to_owned() } else { mask_url(text) };
                let mut what = format!("must be {}, not '{shown}'", bad.expected);
                if let Some(meant) = bad.meant {
                    what.push_str(&format!("; did you mean '{meant}'?"));
                }
                let error = bad_value(self.table, key, &what);
                self.errors.push(OptionError { hint: bad.hint, ..error });
                None
            }
        }
    }

    /// Adds a complaint for every option that nobody knows, and gives all complaints.
    pub fn finish(mut self, own: &[OptionDoc], also: &[OptionDoc]) -> Vec<OptionError> {
        self.errors.extend(unknown_options(self.table, own, also));
        self.errors
    }
}

/// A complaint for every option of `table` that is neither in `own` nor in `also`, nor understood
/// by the engine, nor `connector`.
pub fn unknown_options(
    table: &TableSpec,
    own: &[OptionDoc],
    also: &[OptionDoc],
) -> Vec<OptionError> {
    let known = |key: &str| {
        let fits = |doc: &OptionDoc| match doc.key.strip_suffix('*') {
            Some(prefix) => key.len() > prefix.len() && key.starts_with(prefix),
            None => doc.key == key,
        };
        key == "connector" || own.iter().chain(also).chain(&ENGINE_SOURCE_OPTIONS).any(fits)
    };
    let connector = table.option("connector").unwrap_or("unknown");
    let unknown = table.options.keys().filter(|key| !known(key));
    unknown
        .map(|key| {
            let all = own.iter().chain(also).chain(&ENGINE_SOURCE_OPTIONS).map(|d| d.key);
            let meant = did_you_mean(key, all.chain(["connector"]));
            let mut what = format!("is no option of connector '{connector}'");
            if let Some(meant) = meant {
                what.push_str(&format!("; did you mean '{meant}'?"));
            }
            let hint = meant.is_none().then(|| {
                let keys: Vec<&str> = own.iter().map(|d| d.key).collect();
                format!("it has the options {}", keys.join(", "))
            });
            OptionError { hint, ..bad_value(table, key, &what) }
        })
        .collect()
}

/// Declares the options of a connector; see the [module](mod@crate::options) for an example.
///
/// Fields read `pub name: Type = "key", how;` where *how* is `required "example"`, `default
/// "text"`, `optional` (the type is an `Option`) or `prefix` (the key ends in `*`, the type is
/// [`Prefixed`]). Made are the struct, `docs()` and
/// `read(table, also)`: `also` are the options of the connector's other half, which pass unread.
#[macro_export]
macro_rules! options {
    (
        $(#[doc = $about:literal])*
        $vis:vis struct $name:ident {
            $(
                $(#[doc = $doc:literal])+
                $fvis:vis $field:ident : $type:ty = $key:literal, $how:ident $($text:literal)?;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Debug)]
        $vis struct $name {
            $( $(#[doc = $doc])+ $fvis $field: $type, )*
        }

        impl $name {
            /// The manual of these options.
            $vis fn docs() -> Vec<$crate::options::OptionDocOf> {
                vec![$( $crate::options::OptionDocOf {
                    key: $key,
                    kind: <$type as $crate::options::OptionKind>::KIND,
                    default: $crate::options!(@default $how $($text)?),
                    doc: concat!($($doc),+).trim_ascii(),
                }, )*]
            }

            /// Reads the options of a table. Those in `also` pass unread.
            ///
            /// # Errors
            /// Everything that is wrong: missing, unknown and unreadable options.
            $vis fn read(
                table: &$crate::options::TableSpecOf,
                also: &[$crate::options::OptionDocOf],
            ) -> Result<Self, Vec<$crate::options::OptionErrorOf>> {
                let mut reader = $crate::options::Reader::of(table);
                $( let $field = $crate::options!(@read reader $key, $how $($text)?); )*
                let errors = reader.finish(&Self::docs(), also);
                match ($($field,)*) {
                    ($(Some($field),)*) if errors.is_empty() => Ok(Self { $($field,)* }),
                    _ => Err(errors),
                }
            }
        }
    };
    (@default required $text:literal) => { None };
    (@default default $text:literal) => { Some($text) };
    (@default optional) => { Some("none") };
    (@default prefix) => { Some("none") };
    (@read $reader:ident $key:literal, required $text:literal) => { $reader.required($key, $text) };
    (@read $reader:ident $key:literal, default $text:literal) => { $reader.default($key, $text) };
    (@read $reader:ident $key:literal, optional) => { $reader.optional($key) };
    (@read $reader:ident $key:literal, prefix) => { $reader.prefixed($key) };
}

/// Declares an enum of the values that an option may have; see the [module](mod@crate::options).
#[macro_export]
macro_rules! choices {
    (
        $(#[doc = $about:literal])*
        $vis:vis enum $name:ident {
            $( #[doc = $doc0:literal] )+ $first:ident = $text0:literal
            $(, $(#[doc = $doc:literal])+ $variant:ident = $text:literal )* $(,)?
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        $vis enum $name {
            $( #[doc = $doc0] )+ $first,
            $( $(#[doc = $doc])+ $variant, )*
        }

        impl $crate::options::OptionValue for $name {
            const KIND: &'static str = concat!($text0 $(, " | ", $text)*);

            fn parse(text: &str) -> Result<Self, $crate::options::BadValue> {
                let trimmed = text.trim();
                if trimmed.eq_ignore_ascii_case($text0) {
                    return Ok($name::$first);
                }
                $( if trimmed.eq_ignore_ascii_case($text) {
                    return Ok($name::$variant);
                } )*
                Err($crate::options::BadValue::choice(
                    <Self as $crate::options::OptionValue>::KIND,
                    trimmed,
                    &[$text0 $(, $text)*],
                ))
            }
        }
    };
}

/// What an option's value is called in the manual; an `Option` is called like what it holds.
#[doc(hidden)]
pub trait OptionKind {
    /// The words.
    const KIND: &'static str;
}

impl<T: OptionValue> OptionKind for T {
    const KIND: &'static str = T::KIND;
}

impl<T: OptionValue> OptionKind for Option<T> {
    const KIND: &'static str = T::KIND;
}

impl OptionKind for Prefixed {
    const KIND: &'static str = "string";
}

#[doc(hidden)]
pub use weir_engine::connector::{
    OptionDoc as OptionDocOf, OptionError as OptionErrorOf, TableSpec as TableSpecOf,
};
