//! Tests of the crate as a whole: plans under snapshot, errors with their places, the shared
//! corpora.
#![allow(clippy::unwrap_used)]

mod corpora;
mod dedup;
mod errors;
mod expressions;
mod plans;

use arrow::datatypes::DataType;
use std::sync::Arc;
use weir_engine::connector::{
    Connector, ConnectorError, Connectors, ENGINE_SOURCE_OPTIONS, OptionDoc, OptionError, TableSpec,
};
use weir_engine::sink::{Author, Sink, SinkReport, SinkWriter};
use weir_engine::source::{Chunk, Source, SourceHandle, SplitQueue, SplitSpec};

use crate::{Script, plan_script};

/// A connector that checks the names of its options, formats and what it must have, and does
/// nothing.
struct Fake {
    name: &'static str,
    options: &'static [&'static str],
    required: &'static [&'static str],
}

struct Nothing;

impl Source for Nothing {
    fn splits(&self) -> Result<Vec<SplitSpec>, ConnectorError> {
        Ok(Vec::new())
    }
    fn open(&self, _queues: Vec<Arc<SplitQueue>>) -> Result<Box<dyn SourceHandle>, ConnectorError> {
        Err(ConnectorError::fatal("a fake"))
    }
    fn peek(&self, _split: &SplitSpec) -> Result<Option<Chunk>, ConnectorError> {
        Ok(None)
    }
    fn guarantee(&self) -> String {
        "read again from the start".into()
    }
}

impl Sink for Nothing {
    fn shards(&self) -> u32 {
        1
    }
    fn accepts_retractions(&self) -> bool {
        false
    }
    fn open(
        &self,
        _shard: u32,
        _author: Option<&Author>,
        _report: Arc<SinkReport>,
    ) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        Err(ConnectorError::fatal("a fake"))
    }
    fn probe(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
    fn guarantee(&self) -> String {
        "rows once".into()
    }
}

impl Fake {
    fn complaints(&self, table: &TableSpec) -> Vec<OptionError> {
        let mut out = Vec::new();
        let known: Vec<&str> = self
            .options
            .iter()
            .copied()
            .chain(["connector", "format"])
            .chain(ENGINE_SOURCE_OPTIONS.iter().map(|o| o.key))
            .collect();
        for key in table.options.keys() {
            let prefixed = key.starts_with("properties.") || key.starts_with("json.");
            if !prefixed && !known.contains(&key.as_str()) {
                out.push(OptionError {
                    key: Some(key.clone()),
                    message: format!("unknown option '{key}'"),
                    hint: None,
                });
            }
        }
        for key in self.required {
            if !table.options.contains_key(*key) {
                let message = format!("connector '{}' needs the option '{key}'", self.name);
                out.push(OptionError { key: None, message, hint: None });
            }
        }
        match table.option("format") {
            None | Some("json" | "parquet") => {}
            Some(format) => out.push(OptionError {
                key: Some("format".into()),
                message: format!("unknown format '{format}'; did you mean 'json'?"),
                hint: None,
            }),
        }
        out
    }
}

impl Connector for Fake {
    fn name(&self) -> &'static str {
        self.name
    }
    fn options(&self) -> Vec<OptionDoc> {
        Vec::new()
    }
    fn metadata(&self) -> Vec<(&'static str, DataType)> {
        vec![("split", DataType::Utf8), ("offset", DataType::Int64)]
    }
    fn source(&self, table: &TableSpec) -> Result<Box<dyn Source>, Vec<OptionError>> {
        let out = self.complaints(table);
        if out.is_empty() { Ok(Box::new(Nothing)) } else { Err(out) }
    }
    fn sink(&self, table: &TableSpec) -> Result<Box<dyn Sink>, Vec<OptionError>> {
        let out = self.complaints(table);
        if out.is_empty() { Ok(Box::new(Nothing)) } else { Err(out) }
    }
}

fn connectors() -> Connectors {
    let mut connectors = Connectors::default();
    connectors.add(Fake { name: "filesystem", options: &["path"], required: &["path"] });
    connectors.add(Fake {
        name: "kafka",
        options: &["topic", "scan.startup.mode"],
        required: &["topic"],
    });
    connectors.add(Fake {
        name: "postgres",
        options: &["url", "table-name", "username", "password"],
        required: &["url"],
    });
    connectors.add(Fake {
        name: "mqtt",
        options: &["url", "topic", "username", "password"],
        required: &["url"],
    });
    connectors
}

/// Tables that the tests' queries use.
const TABLES: &str = "
CREATE TABLE readings (
  meter STRING, kwh DOUBLE, n INT, price DECIMAL(10, 2), ts TIMESTAMP(3), device ROW<fw STRING>,
  o BIGINT METADATA FROM 'offset' VIRTUAL, twice AS n * 2,
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH ('connector' = 'kafka', 'topic' = 'readings', 'format' = 'json');
CREATE TABLE devices (
  meter STRING, owner STRING, since TIMESTAMP(3), PRIMARY KEY (meter) NOT ENFORCED,
  WATERMARK FOR since AS since
) WITH ('connector' = 'filesystem', 'path' = '/devices', 'format' = 'json');
CREATE TABLE late (meter STRING, o BIGINT, late_reason STRING, late_by BIGINT)
WITH ('connector' = 'filesystem', 'path' = '/late', 'format' = 'json');
";

fn plan(text: &str) -> Result<Script, String> {
    plan_script("test.sql", text, &connectors()).map_err(|e| e.to_string())
}

/// The plan of an INSERT into a sink with these columns, behind the tables of [`TABLES`].
fn explained(sink: &str, query: &str) -> String {
    let text = format!(
        "{TABLES}CREATE TABLE out ({sink}) WITH ('connector' = 'filesystem', 'path' = '/out');
EXPLAIN INSERT INTO out {query};"
    );
    match plan(&text) {
        Ok(script) => script.explains.join("\n"),
        Err(errors) => errors,
    }
}
