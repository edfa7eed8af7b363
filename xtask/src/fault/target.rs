//! Where the results of a run go: tables of PostgreSQL, topics of Kafka, or folders of files.
//!
//! Each is a place of the run's own, and is looked at in two ways: now and then for its progress,
//! and for its rows. Of a topic only what readers of committed data see counts, of a folder only
//! files that are visible.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

use super::database::Database;
use crate::process;
use crate::services::{Kind, Services};
use crate::truth::{Job, Results, files_below, own_script};

/// Partitions of a topic of results.
const PARTITIONS: &str = "3";
/// Shards of a table of results, in topics and in files.
const SHARDS: usize = 2;
/// How old a file of results gets. Rows are committed with their file.
const ROLLOVER: &str = "1 s";

/// What the job writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sink {
    /// Tables of PostgreSQL.
    Postgres,
    /// Topics, written in transactions.
    Kafka,
    /// Files on a local disk: Parquet and JSON lines by turns.
    Files,
}

impl Sink {
    pub(super) const ALL: [Sink; 3] = [Sink::Postgres, Sink::Kafka, Sink::Files];

    /// The name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Sink::Postgres => "postgres",
            Sink::Kafka => "kafka",
            Sink::Files => "files",
        }
    }

    /// The server that it needs.
    pub(super) fn server(self) -> Option<Kind> {
        match self {
            Sink::Postgres => Some(Kind::Postgres),
            Sink::Kafka => Some(Kind::Kafka),
            Sink::Files => None,
        }
    }
}

impl FromStr for Sink {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Sink> {
        let known = Sink::ALL.into_iter().find(|sink| sink.name() == word);
        let names = Sink::ALL.map(Sink::name).join(" ");
        known.with_context(|| format!("no sink `{word}`: {names}"))
    }
}

/// The place of one run.
pub(super) enum Target {
    Database(Database),
    Topics(Topics),
    Folder { path: PathBuf, format: &'static str },
}

impl Target {
    /// Makes it, with nothing in it; `folder` is the run's.
    pub(super) fn make(
        sink: Sink,
        services: &Services,
        (name, seed): (&str, u64),
        job: &Job,
        folder: &Path,
    ) -> Result<Target> {
        Ok(match sink {
            Sink::Postgres => {
                Target::Database(Database::make(&services.var("WEIR_TEST_POSTGRES")?, name)?)
            }
            Sink::Kafka => {
                let broker = services.var("WEIR_TEST_KAFKA")?;
                Target::Topics(Topics::make(broker, name, job, folder)?)
            }
            Sink::Files => {
                let format = if (seed / 2).is_multiple_of(2) { "parquet" } else { "json" };
                Target::Folder { path: folder.join("results"), format }
            }
        })
    }

    /// The database, where it is one.
    pub(super) fn database(&self) -> Result<&Database> {
        match self {
            Target::Database(database) => Ok(database),
            _ => bail!("the results are not in a database"),
        }
    }

    /// The WITH options of a table of results; only a database is reached through a proxy.
    pub(super) fn options(&self, table: &str, proxy: Option<SocketAddr>) -> String {
        match self {
            Target::Database(database) => database.options(table, proxy),
            Target::Topics(topics) => topics.options(table),
            Target::Folder { path, format } => format!(
                "'connector' = 'filesystem', 'path' = '{}', 'format' = '{format}', \
                 'sink.shards' = '{SHARDS}', \
                 'sink.rolling-policy.rollover-interval' = '{ROLLOVER}'",
                path.join(table).display()
            ),
        }
    }

    /// What is committed, in words that change when that does; `None` where it cannot be told now.
    pub(super) fn progress(&self) -> Option<String> {
        match self {
            Target::Database(database) => database.progress(),
            Target::Topics(topics) => topics.progress(),
            Target::Folder { path, .. } => files(path),
        }
    }

    pub(super) fn results(&self) -> Results {
        match self {
            Target::Database(database) => database.results(),
            Target::Topics(topics) => topics.results(),
            Target::Folder { path, .. } => Results::Folder(path.clone()),
        }
    }

    /// Keeps what it knows of the progress in a file, for who looks into a failure.
    pub(super) fn keep_progress(&self, file: &Path) {
        match self {
            Target::Database(database) => {
                let rows = database.query("SELECT * FROM weir_progress ORDER BY 1, 2, 3");
                let _not_there = fs::write(file, rows.unwrap_or_default());
            }
            Target::Topics(topics) => topics.keep_progress(file),
            // The files themselves stay with the run's folder.
            Target::Folder { .. } => {}
        }
    }

    /// Removes what would stay on a server for long. Topics go with their broker.
    pub(super) fn clear(&self) -> Result<()> {
        match self {
            Target::Database(database) => database.drop(),
            Target::Topics(_) | Target::Folder { .. } => Ok(()),
        }
    }
}

/// The newest file of each folder of results, and how many there are.
fn files(path: &Path) -> Option<String> {
    let mut newest: BTreeMap<PathBuf, (usize, PathBuf)> = BTreeMap::new();
    for file in files_below(path) {
        let (count, name) = newest.entry(file.parent()?.to_owned()).or_default();
        (*count, *name) = (*count + 1, file);
    }
    let words = newest.values().map(|(count, name)| format!("{count} {}", name.display()));
    let words: Vec<String> = words.collect();
    (!words.is_empty()).then(|| words.join("; "))
}

/// Topics of one run, and a reader that goes along with them.
pub(super) struct Topics {
    broker: String,
    name: String,
    counts: PathBuf,
    reader: Child,
}

impl Topics {
    fn make(broker: String, name: &str, job: &Job, folder: &Path) -> Result<Topics> {
        let topics: Vec<String> = job.kinds.iter().map(|kind| format!("{name}_{kind}")).collect();
        for topic in &topics {
            process::quietly(own_script("kafka_topic.py").args([&broker, topic, PARTITIONS]))?;
        }
        let counts = folder.join("committed.txt");
        let log = File::create(folder.join("reader.log"))?;
        let mut follow = own_script("kafka_follow.py");
        follow.arg(&broker).arg(&counts).args(&topics).stdout(log.try_clone()?).stderr(log);
        let reader = process::spawn(&mut follow)?;
        Ok(Topics { broker, name: name.to_owned(), counts, reader })
    }

    /// The topic in which the sink remembers how far it is.
    fn progress_topic(&self) -> String {
        format!("{}_progress", self.name)
    }

    fn options(&self, table: &str) -> String {
        let (name, broker, progress) = (&self.name, &self.broker, self.progress_topic());
        format!(
            "'connector' = 'kafka', 'topic' = '{name}_{table}', \
             'properties.bootstrap.servers' = '{broker}', 'format' = 'json', \
             'sink.parallelism' = '{SHARDS}', 'sink.progress-topic' = '{progress}', \
             'sink.transactional-id-prefix' = '{name}'"
        )
    }

    fn progress(&self) -> Option<String> {
        fs::read_to_string(&self.counts).ok()
    }

    fn results(&self) -> Results {
        Results::Kafka { broker: self.broker.clone(), prefix: self.name.clone() }
    }

    fn keep_progress(&self, file: &Path) {
        let mut read = own_script("kafka_rows.py");
        let _not_there =
            process::quietly(read.args([&self.broker, &self.progress_topic()]).arg(file));
    }
}

impl Drop for Topics {
    fn drop(&mut self) {
        process::end(&mut self.reader);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sinks_by_name() -> Result<()> {
        for sink in Sink::ALL {
            assert_eq!(sink.name().parse::<Sink>()?, sink);
        }
        assert!("file".parse::<Sink>().is_err());
        Ok(())
    }

    #[test]
    fn the_progress_of_files_is_what_is_visible() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("results");
        assert_eq!(files(&path), None);
        let table = path.join("theft");
        for name in ["part-0-1.jsonl", ".part-0-2.jsonl.inprogress", "_weir/job/generation-1"] {
            let file = table.join(name);
            fs::create_dir_all(file.parent().context("a folder")?)?;
            fs::write(file, "")?;
        }
        let first = table.join("part-0-1.jsonl");
        assert_eq!(files(&path), Some(format!("1 {}", first.display())));
        fs::write(table.join("part-0-3.jsonl"), "")?;
        assert_ne!(files(&path), Some(format!("1 {}", first.display())));
        Ok(())
    }
}
