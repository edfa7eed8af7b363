//! The program that publishes a run's readings, beside everything else.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};

use anyhow::{Context, Result, ensure};

use crate::services::Services;
use crate::truth::{Data, Route, own_script, tool};
use crate::{places, process};

/// Partitions of the generated data.
pub(super) const PARTITIONS: usize = 4;

/// It runs, or has run, or not yet.
pub(super) struct Publisher {
    pub(super) route: Route,
    pub(super) broker: String,
    pub(super) topic: String,
    log: PathBuf,
    child: Option<Child>,
}

impl Publisher {
    /// To the broker of a route. A topic of Kafka is made, so that the reader can be there first.
    pub(super) fn to(
        route: Route,
        services: &Services,
        topic: String,
        log: PathBuf,
    ) -> Result<Publisher> {
        let broker = match route {
            Route::MqttS3 => services.var("WEIR_TEST_MQTT")?,
            _ => services.var("WEIR_TEST_KAFKA")?,
        };
        if route == Route::KafkaPostgres {
            let mut make = own_script("kafka_topic.py");
            process::quietly(make.args([&broker, &topic, &PARTITIONS.to_string()]))?;
        }
        Ok(Publisher { route, broker, topic, log, child: None })
    }

    /// Begins to publish so many rows a second.
    pub(super) fn start(&mut self, data: &Data, rate: u64) -> Result<()> {
        let mut publish = match self.route {
            Route::MqttS3 => self.mqtt(data, rate)?,
            _ => self.kafka(data, rate)?,
        };
        let log = File::create(&self.log)?;
        publish.stdout(log.try_clone()?).stderr(log);
        self.child = Some(process::spawn(&mut publish)?);
        Ok(())
    }

    fn kafka(&self, data: &Data, rate: u64) -> Result<Command> {
        let mut publish = tool("publish.py")?;
        publish.arg(&data.folder).args(["kafka", "--to", &self.broker, "--topic", &self.topic]);
        publish.args(["--rate", &rate.to_string(), "--patience", "300"]);
        Ok(publish)
    }

    /// That of ../shared/truth ends with the connection; ours takes it up again.
    fn mqtt(&self, data: &Data, rate: u64) -> Result<Command> {
        let mut publish = own_script("publish_mqtt.py");
        publish.env("PYTHONPATH", places::shared_or_fail()?.join("truth"));
        publish.env("PYTHONDONTWRITEBYTECODE", "1");
        publish.arg(&data.folder).args([&self.broker, &self.topic, &rate.to_string()]);
        Ok(publish)
    }

    /// Whether it has published everything; that it fails is an error.
    pub(super) fn has_ended(&mut self) -> Result<bool> {
        let child = self.child.as_mut().context("nothing is published")?;
        let Some(status) = child.try_wait()? else { return Ok(false) };
        let ended = process::ended(status);
        ensure!(status.success(), "the publisher ended with {ended}: {}", self.said());
        Ok(true)
    }

    /// What the broker holds beside what was published, if that can be told: then results cannot be
    /// what the truth says, and it is not Weir's doing. A broker that crashes sometimes takes what
    /// an idempotent producer sends again for new.
    pub(super) fn surplus(&self) -> Result<Option<String>> {
        if self.route != Route::KafkaPostgres {
            return Ok(None);
        }
        let mut ask = own_script("kafka_ends.py");
        let ends =
            process::quietly(ask.args([&self.broker, &self.topic, &PARTITIONS.to_string()]))?;
        let said = self.said();
        let sent = said.lines().filter(|line| line.starts_with("partition "));
        let (sent, ends): (Vec<&str>, Vec<&str>) = (sent.collect(), ends.trim().lines().collect());
        let differs = sent.len() == PARTITIONS && sent != ends;
        Ok(differs
            .then(|| format!("published {}, the broker has {}", sent.join(", "), ends.join(", "))))
    }

    /// All that it has said.
    pub(super) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child
            && matches!(child.try_wait(), Ok(None))
        {
            process::end(child);
        }
    }
}
