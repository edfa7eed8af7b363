//! The job of the simulation: what it reads and writes, and how.
//!
//! ```text
//! feed, broker ─┬─ (partial) ── count ──┬─ table
//!               │                       └─ folder
//!               └─ enrich ── totals ────── totals
//! changes ────────┘
//! ```
//!
//! Operators are to the engine what the real ones are: one adds up before the exchange and is
//! flushed, one saves pieces, two save parts by key groups, one takes two inputs, one takes rows
//! back.

mod count;
mod enrich;
mod partial;
pub(super) mod rows;
mod totals;
pub(super) mod truth;

use std::sync::Arc;

use self::count::Count;
use self::enrich::Enrich;
use self::partial::Partial;
use self::rows::{DELAY, schema};
use self::totals::Totals;
use super::Breakage;
use super::broker::{Broker, BrokerSource};
use super::fate::{Fate, Life};
use super::feed::{Feed, FeedSource};
use super::files::{Folder, FolderSink};
use super::runner::Runner;
use super::shelf::{Shelf, Shelved};
use super::table::{Table, TableSink};
use crate::connector::ConnectorError;
use crate::flow::{EpochPolicy, JobInput};
use crate::graph::{Edge, Exchange, Graph, Sharding, SinkNode, SourceNode, SourceTime};
use crate::sink::Sink;
use crate::source::{Source, SplitSpec};
use crate::store::JobStore;
use crate::time::Millis;

/// The splits of each source.
pub(super) type Splits = Vec<Vec<SplitSpec>>;

/// Place of the changes among the sources.
const CHANGES: usize = 1;

/// What a job reads and writes, and how.
#[derive(Clone)]
pub(super) struct Outside {
    pub(super) fate: Arc<Fate>,
    pub(super) feed: Arc<Feed>,
    /// What changes a table that rows are joined with.
    pub(super) changes: Arc<Feed>,
    /// Whether all of it is read before the first row.
    pub(super) table_first: bool,
    pub(super) broker: Arc<Broker>,
    pub(super) table: Arc<Table>,
    pub(super) folder: Arc<Folder>,
    pub(super) totals: Arc<Table>,
    pub(super) shelf: Arc<Shelf>,
    pub(super) policy: EpochPolicy,
    pub(super) idle_timeout: Option<Millis>,
    pub(super) advance_after: Option<Millis>,
    pub(super) max_drift: Option<Millis>,
    pub(super) helps: bool,
    pub(super) breakage: Option<Breakage>,
}

impl Outside {
    pub(super) fn store(&self, life: &Arc<Life>) -> JobStore {
        JobStore::over(Arc::new(Shelved { shelf: self.shelf.clone(), life: life.clone() }))
    }

    /// The targets that keep their progress, with their numbers and names.
    pub(super) fn tables(&self, life: &Arc<Life>) -> [(usize, &'static str, Arc<dyn Sink>); 2] {
        let sink = |table: &Arc<Table>| -> Arc<dyn Sink> {
            Arc::new(TableSink { table: table.clone(), life: life.clone() })
        };
        [(0, "table", sink(&self.table)), (2, "totals", sink(&self.totals))]
    }

    /// More is there to be read.
    pub(super) fn grow(&self) {
        match self.fate.below(5) {
            0 if !self.broker.slots.is_empty() => {
                for _ in 0..=self.fate.below(3) {
                    self.broker.act(&self.fate);
                }
            }
            0..=2 => self.feed.grow(),
            _ => self.changes.grow(),
        }
    }

    /// Another split comes to one of the feeds, if one is left; whether it does.
    pub(super) fn add_split(&self) -> bool {
        let comes = match self.fate.once_in(2) {
            true => self.feed.add_split(),
            false => self.changes.add_split(),
        };
        if comes {
            self.fate.note("a split comes");
        }
        comes
    }

    /// Something that was long on its way arrives; false: nothing was.
    pub(super) fn arrive(&self) -> bool {
        self.table.arrive() || self.totals.arrive() || self.shelf.arrive()
    }

    /// Whether a feed has more than these splits.
    pub(super) fn has_more_than(&self, splits: &Splits) -> bool {
        let feeds = [&self.feed, &self.changes];
        feeds.into_iter().zip(splits).any(|(feed, known)| feed.come() > known.len())
    }

    /// What happens by and by has happened.
    pub(super) fn is_whole(&self) -> bool {
        self.feed.is_whole() && self.changes.is_whole()
    }

    fn sources(&self, runner: &Arc<Runner>, splits: &Splits) -> Vec<Arc<dyn Source>> {
        let feeds = [&self.feed, &self.changes].into_iter().enumerate();
        let feed = |(place, feed): (usize, &Arc<Feed>)| -> Arc<dyn Source> {
            let all = splits.get(place).is_some_and(|known| known.len() == feed.splits.len());
            let (feed, runner) = (feed.clone(), runner.clone());
            Arc::new(FeedSource { feed, runner, helps: self.helps, all })
        };
        let mut sources: Vec<Arc<dyn Source>> = feeds.map(feed).collect();
        if !self.broker.slots.is_empty() {
            let (broker, runner) = (self.broker.clone(), runner.clone());
            sources.push(Arc::new(BrokerSource { broker, runner }));
        }
        sources
    }

    /// The splits with which the job began.
    pub(super) fn first_splits(&self, runner: &Arc<Runner>) -> Splits {
        let sources = self.sources(runner, &Vec::new());
        sources.iter().map(|source| source.splits().unwrap_or_default()).collect()
    }

    /// What each source has beside these.
    pub(super) fn added(
        &self,
        runner: &Arc<Runner>,
        splits: &Splits,
    ) -> Vec<Result<Vec<SplitSpec>, ConnectorError>> {
        let sources = self.sources(runner, splits).into_iter().zip(splits);
        sources.map(|(source, known)| source.added(known)).collect()
    }

    pub(super) fn input(&self, splits: &Splits) -> JobInput {
        JobInput { policy: self.policy, splits: splits.clone() }
    }

    fn source(&self, graph: &mut Graph, place: usize, source: Arc<dyn Source>) -> Edge {
        graph.source(SourceNode {
            index: place as u32,
            table: format!("source {place}"),
            source,
            compute: None,
            schema: schema(),
            time: Some(SourceTime { column: 2, delay: DELAY, max_ahead: None }),
            table_first: place == CHANGES && self.table_first,
            dead_letters: false,
            idle_timeout: self.idle_timeout,
            idle_on_disconnect: false,
            max_drift: self.max_drift,
            advance_after: self.advance_after,
        })
    }

    /// The dataflow. `partial`: rows are added up before they are counted; a generation may do so
    /// whatever others did.
    pub(super) fn graph(
        &self,
        runner: &Arc<Runner>,
        (workers, splits): (usize, &Splits),
        partial: bool,
    ) -> Graph {
        let is = |what| self.breakage == Some(what);
        let mut graph = Graph { workers, ..Graph::default() };
        let sources = self.sources(runner, splits).into_iter().enumerate();
        let mut streams: Vec<Edge> =
            sources.map(|(place, source)| self.source(&mut graph, place, source)).collect();
        let changes = streams.remove(CHANGES);
        let rows = if streams.len() > 1 { graph.union(streams) } else { streams[0] };
        let by_key = Exchange::Keys(vec![0]);
        let mut counted = rows;
        if partial {
            let core = Box::new(Partial::start(is(Breakage::NoFlush)));
            counted = graph.operator(core, vec![(rows, Exchange::Stay)]);
        }
        let counts = graph.operator(Box::new(Count::start()), vec![(counted, by_key.clone())]);
        let enrich = Enrich::start(self.table_first, is(Breakage::ForgottenGroup));
        let inputs = vec![(rows, by_key.clone()), (changes, by_key)];
        let joined = graph.operator(Box::new(enrich), inputs);
        let by_key = Exchange::Keys(vec![1]);
        let totals = graph.operator(Box::new(Totals::default()), vec![(joined, by_key)]);
        let [table, changing] = self.tables(&runner.life).map(|(_, _, sink)| sink);
        let (folder, life) = (self.folder.clone(), runner.life.clone());
        let folder = Arc::new(FolderSink { folder, life });
        let sinks: [(&str, Arc<dyn Sink>, Edge); 3] =
            [("table", table, counts), ("folder", folder, counts), ("totals", changing, totals)];
        for (name, sink, input) in sinks {
            let sharding = Sharding::Keys(vec![1]);
            graph.sink(SinkNode { table: name.to_owned(), sink, sharding }, input);
        }
        graph
    }

    /// That the targets hold what the splits say, each row once.
    pub(super) fn check(&self) -> Result<(), String> {
        self.broker.check()?;
        let (mut rows, changes) = (self.feed.rows(), self.changes.rows());
        rows.extend(self.broker.journaled());
        let counts = truth::counts(&rows);
        let totals = truth::totals(&rows, &changes, self.table_first);
        let exact = self.idle_timeout.is_none();
        let targets = [
            ("table", self.table.rows(), &counts),
            ("folder", self.folder.rows(), &counts),
            ("totals", self.totals.rows(), &totals),
        ];
        for (name, lines, truth) in targets {
            let lines = lines.map_err(|wrong| format!("{name}: {wrong}"))?;
            if let Some(difference) = truth::difference(&lines, truth, exact) {
                return Err(format!("{name}: {difference}"));
            }
        }
        if !self.is_whole() {
            return Err("the run has ended before all was there".to_owned());
        }
        Ok(())
    }
}
