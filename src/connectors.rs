//! All connectors that this build has: the halves from `weir_sources` and `weir_sinks` put
//! together.

use arrow::datatypes::DataType;
use weir_engine::connector::{Connector, Connectors, OptionDoc, OptionError, TableSpec};
use weir_engine::sink::Sink;
use weir_engine::source::Source;

type MakeSource = fn(&TableSpec) -> Result<Box<dyn Source>, Vec<OptionError>>;
type MakeSink = fn(&TableSpec) -> Result<Box<dyn Sink>, Vec<OptionError>>;

struct Composed {
    name: &'static str,
    options: Vec<fn() -> Vec<OptionDoc>>,
    metadata: fn() -> Vec<(&'static str, DataType)>,
    source: Option<MakeSource>,
    sink: Option<MakeSink>,
}

impl Composed {
    fn only(&self, is: &str, isnt: &str) -> Vec<OptionError> {
        vec![OptionError {
            key: Some("connector".to_owned()),
            message: format!("connector `{}` is a {is}, not a {isnt}", self.name),
            hint: None,
        }]
    }
}

impl Connector for Composed {
    fn name(&self) -> &'static str {
        self.name
    }

    fn options(&self) -> Vec<OptionDoc> {
        let mut docs: Vec<OptionDoc> = Vec::new();
        for doc in self.options.iter().flat_map(|options| options()) {
            if docs.iter().all(|known| known.key != doc.key) {
                docs.push(doc);
            }
        }
        docs
    }

    fn metadata(&self) -> Vec<(&'static str, DataType)> {
        (self.metadata)()
    }

    fn source(&self, table: &TableSpec) -> Result<Box<dyn Source>, Vec<OptionError>> {
        self.source.map_or_else(|| Err(self.only("sink", "source")), |make| make(table))
    }

    fn sink(&self, table: &TableSpec) -> Result<Box<dyn Sink>, Vec<OptionError>> {
        self.sink.map_or_else(|| Err(self.only("source", "sink")), |make| make(table))
    }
}

const NO_METADATA: fn() -> Vec<(&'static str, DataType)> = Vec::new;

/// All connectors.
pub fn all() -> Connectors {
    use weir_sinks::{blackhole, kafka as kafka_sink, postgres, print};
    use weir_sources::{kafka, mqtt};
    let mut connectors = Connectors::default();
    connectors.add(Composed {
        name: "filesystem",
        options: vec![weir_sources::filesystem::options, weir_sinks::filesystem::options],
        metadata: weir_sources::filesystem::metadata,
        source: Some(|t| weir_sources::filesystem::source(t, &weir_sinks::filesystem::options())),
        sink: Some(|t| weir_sinks::filesystem::sink(t, &weir_sources::filesystem::options())),
    });
    connectors.add(Composed {
        name: "kafka",
        options: vec![kafka::options, kafka_sink::options],
        metadata: kafka::metadata,
        source: Some(|t| kafka::source(t, &kafka_sink::options_of_sink_alone())),
        sink: Some(|t| kafka_sink::sink(t, &kafka::options())),
    });
    connectors.add(Composed {
        name: "upsert-kafka",
        options: vec![kafka_sink::options],
        metadata: kafka_sink::metadata,
        source: None,
        sink: Some(kafka_sink::upsert_sink),
    });
    connectors.add(Composed {
        name: "mqtt",
        options: vec![mqtt::options],
        metadata: mqtt::metadata,
        source: Some(mqtt::source),
        sink: None,
    });
    // One connector under two names: it finds TimescaleDB's extension at run time.
    for name in ["postgres", "timescaledb"] {
        connectors.add(Composed {
            name,
            options: vec![postgres::options],
            metadata: NO_METADATA,
            source: None,
            sink: Some(postgres::sink),
        });
    }
    connectors.add(Composed {
        name: "print",
        options: vec![print::options],
        metadata: NO_METADATA,
        source: None,
        sink: Some(print::sink),
    });
    connectors.add(Composed {
        name: "blackhole",
        options: vec![blackhole::options],
        metadata: NO_METADATA,
        source: None,
        sink: Some(blackhole::sink),
    });
    connectors
}
