//! Jobs on timely: the same input through 1 worker, several workers and other epochs.

#![allow(clippy::unwrap_used)]

mod checkpoints;
mod recovery;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::TimestampMillisecondType;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use weir_engine::clock::SystemClock;
use weir_engine::connector::ConnectorError;
use weir_engine::cutlog::{Begin, Cut, CutLog, CutMemory, Recorder, SEGMENT_BYTES};
use weir_engine::flow::{Cluster, EpochPolicy, JobInput, run};
use weir_engine::graph::{Exchange, Graph, Sharding, SinkNode, SourceNode, SourceTime};
use weir_engine::job::{JobControl, Lasting};
use weir_engine::journal::simulated::Simulated;
use weir_engine::keys::{KeyGroups, encode_value, key_group};
use weir_engine::operator::{EpochEnd, Operator, OperatorError, Output, StatePart};
use weir_engine::rows::Delta;
use weir_engine::sink::{Author, ShardEnd, Sink, SinkReport, SinkWriter};
use weir_engine::source::{Chunk, Source, SourceHandle, SplitQueue, SplitSpec};
use weir_engine::time::{Epoch, MARK_END, MARK_NONE, Millis, floor_to};

const ROWS: i64 = 20_000;
const SPLITS: i64 = 5;

fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, false),
        Field::new("ts", time, false),
    ]))
}

/// Rows `split, split + SPLITS, …` of a stream in which every tenth row comes 40 ms late.
fn rows_of(split: u64, from: i64, to: i64) -> RecordBatch {
    let own = (from..to).map(|i| i * SPLITS + split as i64);
    let keys: Vec<i64> = own.clone().map(|n| n % 37).collect();
    let times: Vec<i64> = own.map(|n| if n % 10 == 7 { n - 40 } else { n }).collect();
    RecordBatch::try_new(
        schema(),
        vec![Arc::new(Int64Array::from(keys)), Arc::new(TimestampMillisecondArray::from(times))],
    )
    .unwrap()
}

struct Numbers;
struct Open;

impl Source for Numbers {
    fn splits(&self) -> Result<Vec<SplitSpec>, ConnectorError> {
        let spec = |number| SplitSpec {
            number,
            name: number.to_string(),
            bounded: true,
            lazy: true,
            carries: Vec::new(),
            detail: serde_json::Value::Null,
            joined: false,
        };
        Ok((0..SPLITS as u64).map(spec).collect())
    }

    fn open(&self, queues: Vec<Arc<SplitQueue>>) -> Result<Box<dyn SourceHandle>, ConnectorError> {
        let read = |queue: Arc<SplitQueue>| {
            std::thread::spawn(move || {
                for from in (0..ROWS / SPLITS).step_by(300) {
                    let to = (from + 300).min(ROWS / SPLITS);
                    let rows = rows_of(queue.split.number, from, to);
                    if !queue.push(Chunk::plain(rows, from as u64)) {
                        return;
                    }
                }
                queue.finish();
            })
        };
        queues.into_iter().map(read).for_each(drop);
        Ok(Box::new(Open))
    }

    fn peek(&self, split: &SplitSpec) -> Result<Option<Chunk>, ConnectorError> {
        Ok(Some(Chunk::plain(rows_of(split.number, 0, 10), 0)))
    }

    fn guarantee(&self) -> String {
        "test".into()
    }
}

impl SourceHandle for Open {
    fn committed(&mut self, _offsets: &[(u64, u64)]) {}
    fn stop(&mut self) {}
}

/// A job that lasts, if there is something to remember its cuts.
fn control_of(digests: bool, memory: Option<Arc<dyn CutMemory>>) -> Arc<JobControl> {
    let clock = Arc::new(SystemClock);
    match memory {
        None => JobControl::new(clock, digests),
        Some(memory) => {
            let lasting = Lasting {
                job: "test".into(),
                generation: 1,
                holder: 1,
                memory,
                checkpoints: None,
                restored: None,
                base: None,
            };
            JobControl::lasting(clock, digests, lasting)
        }
    }
}

type Written = Arc<Mutex<Vec<(Epoch, RecordBatch)>>>;

struct Collect(Written);
struct Collecting(Written);

impl Sink for Collect {
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
        Ok(Box::new(Collecting(self.0.clone())))
    }
    fn probe(&self) -> Result<(), ConnectorError> {
        Ok(())
    }
    fn guarantee(&self) -> String {
        "test".into()
    }
}

impl SinkWriter for Collecting {
    fn write(
        &mut self,
        epoch: Epoch,
        rows: RecordBatch,
        _diffs: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError> {
        self.0.lock().unwrap().push((epoch, rows));
        Ok(())
    }
    fn end_epoch(&mut self, end: ShardEnd) -> Result<Epoch, ConnectorError> {
        Ok(end.epoch)
    }
    fn flush(&mut self) -> Result<Epoch, ConnectorError> {
        Ok(0)
    }
    fn finish(&mut self) -> Result<(), ConnectorError> {
        Ok(())
    }
}

/// Counts rows by key and 100 ms, and late ones under the negative of their key less one.
struct CountByKey {
    open: BTreeMap<(Millis, i64), i64>,
    watermark: Millis,
    panics: bool,
}

impl Operator for CountByKey {
    fn name(&self) -> &str {
        "count"
    }
    fn push(&mut self, _port: usize, delta: Delta, _out: &mut Output) -> Result<(), OperatorError> {
        let keys = delta.rows.column(0).as_primitive::<Int64Type>();
        let times = delta.rows.column(1).as_primitive::<TimestampMillisecondType>();
        for row in 0..delta.len() {
            let end = floor_to(times.value(row), 100, 0) + 100;
            let late = end - 1 <= delta.mark(row).max(self.watermark);
            assert!(!self.panics, "a test's own panic");
            let key = if late { -1 - keys.value(row) } else { keys.value(row) };
            *self.open.entry((if late { MARK_END } else { end }, key)).or_default() += 1;
        }
        Ok(())
    }
    fn advance(&mut self, end: EpochEnd<'_>, out: &mut Output) -> Result<(), OperatorError> {
        self.watermark = end.watermark();
        while let Some(entry) = self.open.first_entry() {
            let (time, key) = *entry.key();
            if time != MARK_END && time - 1 > self.watermark || self.watermark == MARK_NONE {
                break;
            }
            if time == MARK_END && self.watermark != MARK_END {
                break;
            }
            let count = entry.remove();
            let column = |v: i64| Arc::new(Int64Array::from(vec![v])) as Arc<dyn Array>;
            let rows = RecordBatch::try_from_iter([
                ("end", column(time)),
                ("key", column(key)),
                ("n", column(count)),
            ])?;
            out.rows.push(Delta::fired_at(rows, time));
        }
        Ok(())
    }
    fn output_watermark(&self, inputs: &[Millis]) -> Millis {
        inputs[0]
    }
    fn snapshot(&self) -> Result<Vec<StatePart>, OperatorError> {
        let column = |v: i64| Arc::new(Int64Array::from(vec![v])) as Arc<dyn Array>;
        let rows = RecordBatch::try_from_iter([("watermark", column(self.watermark))])?;
        let mut parts = vec![StatePart { kind: "watermark", key_groups: KeyGroups::ALL, rows }];
        for ((end, key), n) in &self.open {
            let mut bytes = Vec::new();
            // Late rows count under a key of their own, on the worker of the key.
            let of = if *key < 0 { -1 - *key } else { *key };
            encode_value(&Int64Array::from(vec![of]), 0, &mut bytes);
            let key_groups = KeyGroups::one(key_group(&bytes));
            let cells = [("end", column(*end)), ("key", column(*key)), ("n", column(*n))];
            let rows = RecordBatch::try_from_iter(cells)?;
            parts.push(StatePart { kind: "count", key_groups, rows });
        }
        Ok(parts)
    }
    fn restore(&mut self, parts: Vec<StatePart>) -> Result<(), OperatorError> {
        for part in parts {
            let cell = |c: usize| part.rows.column(c).as_primitive::<Int64Type>().value(0);
            match part.kind {
                "watermark" => self.watermark = self.watermark.max(cell(0)),
                _ => *self.open.entry((cell(0), cell(1))).or_default() += cell(2),
            }
        }
        Ok(())
    }
}

fn graph(aggregate: bool, panics: bool, written: &Written) -> Graph {
    let mut graph = Graph::default();
    let rows = graph.source(SourceNode {
        index: 0,
        table: "numbers".into(),
        source: Arc::new(Numbers),
        compute: None,
        schema: schema(),
        time: Some(SourceTime { column: 1, delay: 20, max_ahead: None }),
        table_first: false,
        dead_letters: false,
        idle_timeout: None,
        idle_on_disconnect: false,
        max_drift: None,
        advance_after: None,
    });
    let edge = if aggregate {
        let core = CountByKey { open: BTreeMap::new(), watermark: MARK_NONE, panics };
        graph.operator(Box::new(core), vec![(rows, Exchange::Keys(vec![0]))])
    } else {
        rows
    };
    let sink = Arc::new(Collect(written.clone()));
    graph.sink(SinkNode { table: "out".into(), sink, sharding: Sharding::Split }, edge);
    graph
}

type Lines = Vec<(Epoch, Vec<i64>)>;

/// Runs the job; gives its rows in the order in which the sink got them, and its digest.
fn outcome(threads: usize, policy: EpochPolicy, aggregate: bool) -> (Lines, u128) {
    outcome_of(threads, policy, aggregate, None).unwrap()
}

/// The same with a memory of its cuts; or why it failed.
fn outcome_of(
    threads: usize,
    policy: EpochPolicy,
    aggregate: bool,
    memory: Option<Arc<dyn CutMemory>>,
) -> Result<(Lines, u128), String> {
    let written = Written::default();
    let control = control_of(true, memory);
    let job = JobInput { policy, splits: vec![Numbers.splits().unwrap()] };
    let theirs = written.clone();
    let cluster = Cluster { threads, ..Cluster::default() };
    run(&cluster, job, &control, move |_| Ok(graph(aggregate, false, &theirs)))
        .map_err(|e| e.to_string())?;
    let digest = *control.sinks()[0].1.digest.lock().unwrap();
    Ok((lines_of(&written), digest))
}

/// Free addresses on loopback.
fn addresses(count: usize) -> Vec<String> {
    let listen = |_| std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let held: Vec<_> = (0..count).map(listen).collect();
    held.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

fn lines_of(written: &Written) -> Lines {
    let rows = written.lock().unwrap();
    let lines = rows.iter().flat_map(|(epoch, rows)| {
        (0..rows.num_rows()).map(move |row| {
            let cell = |c: &Arc<dyn Array>| {
                let plain = arrow::compute::cast(c, &DataType::Int64).unwrap();
                plain.as_primitive::<Int64Type>().value(row)
            };
            (*epoch, rows.columns().iter().map(cell).collect())
        })
    });
    lines.collect()
}

const REPLAY: EpochPolicy = EpochPolicy::Replay { first: 1_000, rows: 1_000 };

#[test]
fn the_same_rows_in_the_same_order_on_any_number_of_workers() {
    for aggregate in [false, true] {
        let one = outcome(1, REPLAY, aggregate);
        let rows: i64 = if aggregate { one.0.iter().map(|r| r.1[2]).sum() } else { ROWS };
        assert_eq!(rows, ROWS);
        for threads in [2, 3] {
            assert_eq!(outcome(threads, REPLAY, aggregate), one, "{threads} workers");
        }
    }
}

#[test]
fn the_same_rows_under_other_epochs() {
    let one = outcome(1, REPLAY, true).1;
    assert_ne!(one, 0);
    let live = |interval| EpochPolicy::Live { interval, rows: 700 };
    for policy in
        [EpochPolicy::rows(77), EpochPolicy::Replay { first: 10, rows: 200 }, live(1), live(10)]
    {
        for threads in [1, 2] {
            assert_eq!(outcome(threads, policy, true).1, one, "{policy:?} on {threads}");
        }
    }
}

#[test]
fn some_rows_are_late_so_the_rule_is_exercised() {
    let (lines, _) = outcome(2, REPLAY, true);
    let late: i64 = lines.iter().filter(|l| l.1[1] < 0).map(|l| l.1[2]).sum();
    assert!(late > 10, "{late} late rows");
}

#[test]
fn an_operator_that_panics_ends_the_job_on_all_workers() {
    let control = JobControl::new(Arc::new(SystemClock), false);
    let job = JobInput { policy: REPLAY, splits: vec![Numbers.splits().unwrap()] };
    let cluster = Cluster { threads: 3, ..Cluster::default() };
    let failed = run(&cluster, job, &control, |_| Ok(graph(true, true, &Written::default())));
    let failed = failed.unwrap_err().to_string();
    assert!(failed.contains("a test's own panic"), "{failed}");
}
