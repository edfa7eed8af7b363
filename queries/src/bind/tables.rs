//! CREATE TABLE: columns, watermark, key, and what connectors say of the options.

use arrow::datatypes::DataType;
use std::collections::BTreeMap;
use weir_engine::connector::{ColumnSpec, ENGINE_SOURCE_OPTIONS, OptionError, TableSpec};
use weir_engine::time::Millis;

use super::{Bound, Planner, ScopeColumn};
use crate::ast::{ColumnKind, CreateTable, ExprKind};
use crate::diagnostics::{Diagnostic, Span, shown};
use crate::plan::{Datum, Scalar, ScalarKind};
use crate::tokens::Name;
use crate::types::{convert, is_timestamp, sql_name};

/// A declared table, checked.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) ast: CreateTable,
    /// Physical and metadata columns.
    pub(crate) read: Vec<ColumnSpec>,
    /// The columns as queries see them, made of those read.
    pub(crate) columns: Vec<ScopeColumn>,
    pub(crate) compute: Vec<Scalar>,
    /// Event-time column among `columns`, and the delay.
    pub(crate) time: Option<(usize, Millis)>,
    /// Columns that an INSERT fills: places among `read`.
    pub(crate) writable: Vec<usize>,
    /// `dedup.within`.
    pub(crate) dedup_within: Option<Millis>,
}

impl Table {
    pub(crate) fn name(&self) -> &str {
        &self.ast.name.text
    }

    pub(crate) fn option(&self, key: &str) -> Option<(&Name, &Name)> {
        self.ast.options.iter().find(|(k, _)| k.text == key).map(|(k, v)| (k, v))
    }

    /// Whether reading it comes to an end by itself.
    pub(crate) fn is_bounded(&self) -> bool {
        let value = |key| self.option(key).map(|(_, v)| v.text.as_str());
        match value("connector") {
            Some("filesystem") => value("source.monitor-interval").is_none(),
            _ => value("scan.bounded.mode").is_some_and(|mode| mode != "unbounded"),
        }
    }

    /// The table as a connector sees it, with these columns.
    pub(crate) fn spec(&self, columns: Vec<ColumnSpec>) -> TableSpec {
        let names = |list: &[Name]| list.iter().map(|n| n.text.clone()).collect::<Vec<_>>();
        let pair = |(k, v): &(Name, Name)| (k.text.clone(), v.text.clone());
        let time = self.time.map(|(column, _)| self.columns[column].name.clone());
        let event_time = time.filter(|t| columns.iter().any(|c| c.name == *t));
        TableSpec {
            name: self.name().to_owned(),
            columns,
            options: self.ast.options.iter().map(pair).collect::<BTreeMap<_, _>>(),
            primary_key: names(&self.ast.primary_key),
            partitioned_by: names(&self.ast.partitioned_by),
            event_time,
            keyed: Vec::new(),
            pushed: Vec::new(),
        }
    }

    /// Where columns are that exist, among those that queries see.
    pub(crate) fn places(&self, names: &[Name]) -> Vec<usize> {
        let place = |name: &Name| self.columns.iter().position(|c| c.name == name.text);
        names.iter().filter_map(place).collect()
    }

    /// The columns that an INSERT fills.
    pub(crate) fn written(&self) -> Vec<ColumnSpec> {
        self.writable.iter().map(|&i| self.read[i].clone()).collect()
    }
}

impl Planner<'_> {
    /// Checks a declaration.
    pub(crate) fn table(&mut self, ast: CreateTable) -> Bound<Table> {
        let key: Vec<&str> = ast.primary_key.iter().map(|n| n.text.as_str()).collect();
        let mut read = Vec::new();
        let mut writable = Vec::new();
        for column in &ast.columns {
            let twice = ast.columns.iter().filter(|c| c.name.text == column.name.text).count() > 1;
            if twice {
                let message = format!("column `{}` is declared twice", column.name.text);
                return Err(Diagnostic::new(column.name.span, message));
            }
            let (data_type, not_null, metadata) = match &column.kind {
                ColumnKind::Physical { data_type, not_null } => (data_type, *not_null, None),
                ColumnKind::Metadata { data_type, key, not_null, .. } => {
                    let key = key.as_ref().map_or(&column.name.text, |k| &k.text);
                    (data_type, *not_null, Some(key.clone()))
                }
                ColumnKind::Computed(_) => continue,
            };
            let is_virtual = matches!(column.kind, ColumnKind::Metadata { is_virtual: true, .. });
            if !is_virtual {
                writable.push(read.len());
            }
            read.push(ColumnSpec {
                name: column.name.text.clone(),
                data_type: data_type.clone(),
                nullable: !not_null && !key.contains(&column.name.text.as_str()),
                metadata,
            });
        }
        let (columns, compute) = self.computed(&ast, &read)?;
        let mut table =
            Table { ast, read, columns, compute, time: None, writable, dedup_within: None };
        self.watermark(&mut table)?;
        for name in table.ast.primary_key.iter().chain(&table.ast.partitioned_by) {
            if !table.columns.iter().any(|c| c.name == name.text) {
                let partition = table.ast.partitioned_by.iter().any(|p| p.span == name.span);
                let what = if partition { "partition" } else { "key" };
                let (name_text, of) = (&name.text, table.name());
                let message = format!("{what} column `{name_text}` does not exist in `{of}`");
                let names = table.columns.iter().map(|c| c.name.as_str());
                return Err(Diagnostic::new(name.span, message).meant(&name.text, names));
            }
        }
        table.dedup_within = self.dedup_within(&table)?;
        Ok(table)
    }

    /// How long keys are remembered, if duplicates are to go.
    fn dedup_within(&self, table: &Table) -> Bound<Option<Millis>> {
        let key = "dedup.within";
        let Some((option, value)) = table.option(key) else { return Ok(None) };
        let name = table.name();
        if table.ast.primary_key.is_empty() {
            let message =
                format!("'{key}' needs a PRIMARY KEY on `{name}`: rows of one key are one");
            let hint = "declare what names a row: PRIMARY KEY (id, ts) NOT ENFORCED";
            return Err(Diagnostic::new(option.span, message).hint(hint));
        }
        if table.time.is_none() {
            let message = format!("'{key}' needs a WATERMARK on `{name}`: it is in event time");
            let hint = "declare one: WATERMARK FOR ts AS ts - INTERVAL '5' SECOND";
            return Err(Diagnostic::new(option.span, message).hint(hint));
        }
        match self.duration(table, key)? {
            Some(0) => {
                let message = format!("'{key}' must be longer than '{}'", value.text);
                let hint =
                    "duplicates that come later than this behind the watermark are not known";
                Err(Diagnostic::new(value.span, message).hint(hint))
            }
            within => Ok(within),
        }
    }

    fn computed(
        &self,
        ast: &CreateTable,
        read: &[ColumnSpec],
    ) -> Bound<(Vec<ScopeColumn>, Vec<Scalar>)> {
        let base: Vec<ScopeColumn> = read
            .iter()
            .map(|c| ScopeColumn {
                nullable: c.nullable,
                ..ScopeColumn::plain(&c.name, c.data_type.clone())
            })
            .collect();
        let mut columns = Vec::new();
        let mut compute = Vec::new();
        let mut at = 0;
        for column in &ast.columns {
            if let ColumnKind::Computed(expr) = &column.kind {
                let scalar = self.binder(&base, &ast.name.text).bind(expr)?;
                let mut made = ScopeColumn::plain(&column.name.text, scalar.data_type.clone());
                made.is_proctime = matches!(&expr.kind, ExprKind::Call(call)
                    if call.name.text.eq_ignore_ascii_case("PROCTIME"));
                columns.push(made);
                compute.push(scalar);
            } else {
                compute.push(Scalar::column(at, base[at].data_type.clone()));
                columns.push(base[at].clone());
                at += 1;
            }
        }
        Ok((columns, compute))
    }

    fn watermark(&self, table: &mut Table) -> Bound<()> {
        let Some((name, expr)) = table.ast.watermark.clone() else { return Ok(()) };
        let Some(column) = table.columns.iter().position(|c| c.name == name.text) else {
            let message = format!("column `{}` does not exist in `{}`", name.text, table.name());
            let names = table.columns.iter().map(|c| c.name.as_str());
            return Err(Diagnostic::new(name.span, message).meant(&name.text, names));
        };
        let data_type = table.columns[column].data_type.clone();
        let fits = matches!(&data_type, DataType::Timestamp(unit, _)
            if *unit == arrow::datatypes::TimeUnit::Millisecond);
        if !fits {
            let is = sql_name(&data_type);
            let message = format!(
                "a watermark needs a TIMESTAMP(3) or TIMESTAMP_LTZ(3) column, but `{}` is a {is}",
                name.text
            );
            let hint = if is_timestamp(&data_type) {
                format!("declare `{}` with precision 3", name.text)
            } else {
                format!("add a computed column: event_time AS TO_TIMESTAMP({})", name.text)
            };
            return Err(Diagnostic::new(name.span, message).hint(hint));
        }
        let bound = self.binder(&table.columns, table.name()).bind(&expr)?;
        let delay = delay(&bound, column).ok_or_else(|| {
            let message = format!("the watermark must be `{0} - INTERVAL …` or `{0}`", name.text);
            Diagnostic::new(expr.span, message)
        })?;
        if delay < 0 {
            let message = "the watermark must not run ahead of its column";
            return Err(Diagnostic::new(expr.span, message));
        }
        table.columns[column].is_time = true;
        table.time = Some((column, delay));
        Ok(())
    }

    /// Asks the connector whether the options will do, for reading or writing, once.
    pub(crate) fn check_options(&mut self, table: &Table, reading: bool) -> Bound<()> {
        if !self.checked.insert((table.name().to_owned(), reading)) {
            return Ok(());
        }
        let Some((_, name)) = table.option("connector") else {
            return Err(missing_connector(table));
        };
        let Some(connector) = self.connectors.get(&name.text) else {
            let known = self.connectors.iter().map(|c| c.name());
            let names: Vec<&str> = known.collect();
            let message = format!("unknown connector '{}'", name.text);
            let error = Diagnostic::new(name.span, message)
                .meant(&name.text, names.iter().copied())
                .detail(format!("this build has {}", names.join(", ")));
            self.broken.insert(table.name().to_owned());
            return Err(error);
        };
        if reading {
            self.check_metadata(table)?;
        }
        let complaints = if reading {
            connector.source(&table.spec(table.read.clone())).err()
        } else {
            connector.sink(&table.spec(table.written())).err()
        };
        let errors: Vec<Diagnostic> = complaints
            .into_iter()
            .flatten()
            .map(|complaint| option_diagnostic(table, &complaint))
            .collect();
        if errors.is_empty() {
            return Ok(());
        }
        self.broken.insert(table.name().to_owned());
        self.errors.extend(errors);
        Err(super::reported(table.ast.name.span))
    }

    /// Checks the connectors' names of tables that no query has used.
    pub(crate) fn check_unused(&mut self) {
        let tables: Vec<_> = self.tables.values().cloned().collect();
        for table in tables {
            let name = table.name().to_owned();
            let used = [true, false].iter().any(|&r| self.checked.contains(&(name.clone(), r)));
            let known = table
                .option("connector")
                .is_some_and(|(_, v)| self.connectors.get(&v.text).is_some());
            if !used
                && !known
                && let Err(error) = self.check_options(&table, true)
            {
                self.errors.push(error);
            }
        }
    }

    fn check_metadata(&self, table: &Table) -> Bound<()> {
        let Some((_, name)) = table.option("connector") else { return Ok(()) };
        let Some(connector) = self.connectors.get(&name.text) else { return Ok(()) };
        let known = connector.metadata();
        for column in &table.ast.columns {
            let ColumnKind::Metadata { key, .. } = &column.kind else { continue };
            let key = key.as_ref().unwrap_or(&column.name);
            if !known.iter().any(|(k, _)| *k == key.text) {
                let message =
                    format!("connector '{}' has no metadata key '{}'", name.text, key.text);
                let keys: Vec<&str> = known.iter().map(|(k, _)| *k).collect();
                let error = Diagnostic::new(key.span, message)
                    .meant(&key.text, keys.iter().copied())
                    .detail(format!("its keys are {}", keys.join(", ")));
                return Err(error);
            }
        }
        Ok(())
    }

    /// A duration among the engine's own options; `Ok(None)` where it isn't set.
    pub(crate) fn duration(&self, table: &Table, key: &str) -> Bound<Option<Millis>> {
        let Some((_, value)) = table.option(key) else { return Ok(None) };
        match duration_ms(&value.text) {
            Some(ms) => Ok(Some(ms)),
            None => Err(bad_duration(key, value)),
        }
    }

    /// A switch among the engine's own options.
    pub(crate) fn switch(&self, table: &Table, key: &str) -> Bound<bool> {
        let Some((_, value)) = table.option(key) else { return Ok(false) };
        match value.text.to_lowercase().as_str() {
            "true" => Ok(true),
            "false" => Ok(false),
            _ => {
                let message = format!("'{key}' must be 'true' or 'false', not '{}'", value.text);
                Err(Diagnostic::new(value.span, message))
            }
        }
    }
}

fn bad_duration(key: &str, value: &Name) -> Diagnostic {
    let message = format!(
        "'{key}' must be a duration, not '{}'; write a number and a unit (ms, s, min, h, d), \
         for example '5 min'",
        value.text
    );
    Diagnostic::new(value.span, message)
}

fn missing_connector(table: &Table) -> Diagnostic {
    let near = table
        .ast
        .options
        .iter()
        .find(|(k, _)| crate::diagnostics::nearest(&k.text, ["connector"]).is_some());
    match near {
        Some((key, _)) => Diagnostic::new(key.span, format!("unknown option '{}'", key.text))
            .meant(&key.text, ["connector"]),
        None => {
            let message = format!("table `{}` has no option 'connector'", table.name());
            let hint = "add for example 'connector' = 'filesystem'";
            Diagnostic::new(table.ast.name.span, message).hint(hint)
        }
    }
}

/// An option's complaint with its place.
fn option_diagnostic(table: &Table, complaint: &OptionError) -> Diagnostic {
    let place = complaint.key.as_deref().and_then(|key| table.option(key));
    let engine = |k: &str| ENGINE_SOURCE_OPTIONS.iter().any(|o| o.key == k);
    let span = match (&complaint.key, place) {
        (Some(key), Some((k, v))) => {
            // An unknown option is wrong in its name, a known one in its value.
            let unknown = complaint.message.to_lowercase().contains("unknown option");
            if unknown && !engine(key) { k.span } else { v.span }
        }
        _ => table.option("connector").map_or(table.ast.name.span, |(_, v)| v.span),
    };
    let mut message = complaint.message.clone();
    for (key, value) in &table.ast.options {
        if shown(&key.text, &value.text) != value.text && value.text.len() > 2 {
            message = message.replace(&value.text, &shown(&key.text, &value.text));
        }
    }
    let error = Diagnostic::new(span, message);
    match &complaint.hint {
        Some(hint) => error.hint(hint.clone()),
        None => error,
    }
}

/// The delay of `ts`, or of `ts - INTERVAL …`.
fn delay(bound: &Scalar, column: usize) -> Option<Millis> {
    match &bound.kind {
        ScalarKind::Column(c) if *c == column => Some(0),
        ScalarKind::Call(name, args) if name == "TIME_ADD" => {
            match (&args[0].kind, &args[1].kind) {
                (ScalarKind::Column(c), ScalarKind::Literal(Datum::Integer(by)))
                    if *c == column && args[1].data_type == crate::types::INTERVAL_MS =>
                {
                    by.checked_neg()
                }
                _ => None,
            }
        }
        // A conversion to the column's own kind of timestamp moves nothing.
        ScalarKind::Cast(inner, _) => delay(inner, column),
        _ => None,
    }
}

/// `30 s`, `5 min`, `500 ms`, `1 day`, `PT5M` is not read; a bare number is milliseconds.
pub(super) fn duration_ms(text: &str) -> Option<Millis> {
    let text = text.trim().to_lowercase();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: i64 = text.get(..digits)?.parse().ok()?;
    let scale = match text[digits..].trim() {
        "" | "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1,
        "s" | "sec" | "secs" | "second" | "seconds" => 1000,
        "m" | "min" | "mins" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        _ => return None,
    };
    number.checked_mul(scale)
}

/// A value converted to a column's type, or why it cannot be.
pub(super) fn assigned(
    value: Scalar,
    column: &ColumnSpec,
    table: &str,
    span: Span,
    zone: &str,
) -> Bound<Scalar> {
    let to = &column.data_type;
    if !crate::types::assignable(&value.data_type, to) {
        let (is, wants) = (sql_name(&value.data_type), sql_name(to));
        let name = &column.name;
        let message = format!("`{name}` of `{table}` is a {wants}, but the query gives a {is}");
        let hint = format!("convert it: CAST(… AS {wants})");
        return Err(Diagnostic::new(span, message).hint(hint));
    }
    let made = convert(value, to, zone);
    if column.nullable {
        return Ok(made);
    }
    let data_type = made.data_type.clone();
    Ok(Scalar::call("NOT_NULL", vec![made, Scalar::text(&column.name)], data_type))
}
