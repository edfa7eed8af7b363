//! The driver without timely: a clock, queues and outlets in the hands of the test.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::clock::ManualClock;
use crate::connector::ConnectorError;
use crate::cut::{EpochFacts, SourcePlan};
use crate::graph::SourceTime;
use crate::source::{Chunk, Source, SplitQueue, SplitSpec};
use crate::time::MARK_END;
use arrow::array::{RecordBatch, TimestampMillisecondArray};

struct NoSource;

impl Source for NoSource {
    fn splits(&self) -> Result<Vec<SplitSpec>, ConnectorError> {
        Ok(Vec::new())
    }
    fn open(&self, _: Vec<Arc<SplitQueue>>) -> Result<Box<dyn SourceHandle>, ConnectorError> {
        Err(ConnectorError::fatal("not a real source"))
    }
    fn peek(&self, _: &SplitSpec) -> Result<Option<Chunk>, ConnectorError> {
        Ok(None)
    }
    fn guarantee(&self) -> String {
        String::new()
    }
}

fn rows(times: &[Millis]) -> RecordBatch {
    let column = Arc::new(TimestampMillisecondArray::from(times.to_vec())) as _;
    RecordBatch::try_from_iter([("ts", column)]).unwrap()
}

/// One worker with sources of one split each; everything is resolved at once, as with one worker.
struct Rig {
    clock: Arc<ManualClock>,
    driver: Driver,
    known: Rc<RefCell<Known>>,
    queues: Vec<Arc<SplitQueue>>,
    rows: usize,
    facts: Vec<(Epoch, EpochFacts)>,
    open: Epoch,
}

struct Sent<'a>(&'a mut usize, &'a mut Vec<CutPart>);

impl Outlets for Sent<'_> {
    fn rows(&mut self, _source: usize, delta: Delta) {
        *self.0 += delta.len();
    }
    fn dead(&mut self, _source: usize, _delta: Delta) {}
    fn part(&mut self, part: CutPart) {
        self.1.push(part);
    }
}

const NOTHING_ACCEPTED: Accepted = Accepted { below: Some(0), committed_below: Some(0) };
const ALL_ACCEPTED: Accepted = Accepted { below: None, committed_below: None };

/// Fills the queue with one row a call, as a source that reads on its worker's thread.
struct Helper(Arc<SplitQueue>, i64);

impl SourceHandle for Helper {
    fn committed(&mut self, _: &[(u64, u64)]) {}
    fn help(&mut self, split: u64) -> bool {
        assert_eq!(split, self.0.split.number);
        self.1 += 1;
        let mut chunk = Chunk::plain(rows(&[self.1]), self.1 as u64);
        chunk.split_column = Some(vec![3].into());
        self.0.push(chunk)
    }
    fn stop(&mut self) {}
}

impl Rig {
    /// A replay whose first epoch has this many rows.
    fn replay(rows: usize) -> Rig {
        let mut rig = Rig::live(&[false]);
        rig.driver.policy = EpochPolicy::rows(rows);
        let quota = Quota { split: SplitId::of(0, 0), rows };
        rig.known.borrow_mut().decisions.push_back((1, vec![quota]));
        rig
    }

    fn live(tables_first: &[bool]) -> Rig {
        let clock = Arc::new(ManualClock::at(1_000));
        let control = JobControl::new(clock.clone(), false);
        let mut sources = Vec::new();
        let mut plans = Vec::new();
        let mut queues = Vec::new();
        for (index, table_first) in tables_first.iter().enumerate() {
            let node = Arc::new(SourceNode {
                index: index as u32,
                table: format!("t{index}"),
                source: Arc::new(NoSource),
                compute: None,
                schema: rows(&[]).schema(),
                time: Some(SourceTime { column: 0, delay: 5, max_ahead: None }),
                table_first: *table_first,
                dead_letters: false,
                idle_timeout: Some(300),
                idle_on_disconnect: false,
                max_drift: None,
                advance_after: None,
            });
            let split = SplitSpec {
                number: 0,
                name: "0".into(),
                bounded: false,
                lazy: false,
                carries: Vec::new(),
                detail: serde_json::Value::Null,
                joined: false,
            };
            let queue = SplitQueue::bounded(split, 1 << 20);
            let id = SplitId::of(index as u32, 0);
            plans.push(SourcePlan {
                splits: vec![id],
                first: 1,
                queues: vec![id],
                table_first: *table_first,
                timed: true,
                delay: 5,
                advance_after: None,
            });
            let counters = control.source(index, &node.table);
            let readings = vec![Reading::open(node.clone(), queue.clone(), counters)];
            sources.push(SourceRuntime { node, readings, handle: None });
            queues.push(queue);
        }
        let state = CutState::start(plans);
        let known = Known {
            state,
            seen: 0,
            decisions: VecDeque::new(),
            recent: VecDeque::new(),
            decided: 0,
            closed: None,
            policy: EpochPolicy::Live { interval: 1, rows: 1 },
        };
        let known = Rc::new(RefCell::new(known));
        let policy = EpochPolicy::Live { interval: 10, rows: 1_000 };
        let driver = Driver::start(0, policy, control, known.clone(), sources);
        Rig { clock, driver, known, queues, rows: 0, facts: Vec::new(), open: 0 }
    }

    fn step(&mut self, accepted: Accepted) -> Next {
        let mut parts = Vec::new();
        let next = self.driver.step(accepted, &mut Sent(&mut self.rows, &mut parts));
        if !parts.is_empty() {
            let facts = self.known.borrow_mut().state.close(parts);
            self.facts.push((self.open, facts));
            self.known.borrow_mut().seen = self.open;
        }
        if let Next::Epoch(epoch) = next {
            assert!(epoch > self.open, "epochs go forward: {epoch} after {}", self.open);
            self.open = epoch;
        }
        next
    }

    /// Steps through some milliseconds.
    fn pass(&mut self, millis: Millis, accepted: Accepted) {
        let start = crate::clock::Clock::now(self.clock.as_ref());
        for now in (start..=start + millis).step_by(5) {
            self.clock.set(now);
            while let Next::Epoch(_) = self.step(accepted) {}
        }
    }

    fn watermark(&self, source: usize) -> Millis {
        self.facts.last().unwrap().1.watermarks[source]
    }

    fn push(&self, source: usize, from: u64, times: &[Millis]) {
        assert!(self.queues[source].has_room(), "nobody takes from the queue");
        assert!(self.queues[source].push(Chunk::plain(rows(times), from)));
    }
}

#[test]
fn an_idle_split_lets_go_of_the_watermark_but_a_disconnected_one_does_not() {
    let mut rig = Rig::live(&[false, false]);
    for source in [0, 1] {
        rig.push(source, 0, &[100]);
        rig.queues[source].at_end(true);
    }
    rig.queues[1].connected(false);
    rig.pass(1_000, ALL_ACCEPTED);
    let views: Vec<_> = rig.known.borrow().state.splits().map(|(s, _, f)| (s, f.state)).collect();
    assert_eq!(views, [(0, SplitState::Idle), (1, SplitState::Reading)]);
    // It comes back where it was, and holds again without moving the watermark back.
    rig.push(0, 1, &[101]);
    rig.pass(50, ALL_ACCEPTED);
    assert_eq!(rig.watermark(0), 96);
    assert_eq!(rig.known.borrow().state.splits().next().unwrap().2.state, SplitState::Reading);
}

#[test]
fn what_was_idle_holds_the_watermark_when_the_job_goes_on() {
    let mut rig = Rig::live(&[false, false]);
    rig.push(0, 0, &[100]);
    rig.queues[0].at_end(true);
    rig.pass(1_000, ALL_ACCEPTED);
    let state = |rig: &Rig| rig.known.borrow().state.splits().next().unwrap().2.state;
    assert_eq!(state(&rig), SplitState::Idle);
    // Since the restart nobody knows what it has.
    rig.queues[0].at_end(false);
    rig.driver.restored = true;
    rig.pass(50, ALL_ACCEPTED);
    assert_eq!(state(&rig), SplitState::Reading);
    rig.queues[0].at_end(true);
    rig.pass(1_000, ALL_ACCEPTED);
    assert_eq!(state(&rig), SplitState::Idle, "found at its end, it may be idle again");
}

#[test]
fn an_epoch_of_a_replay_ends_however_many_bytes_it_has() {
    const ROWS: usize = 1 << 16;
    let mut rig = Rig::replay(200 * ROWS);
    assert_eq!(rig.step(NOTHING_ACCEPTED), Next::Epoch(1));
    for n in 0..200 {
        rig.push(0, (n * ROWS) as u64, &vec![n as i64; ROWS]);
        let next = rig.step(NOTHING_ACCEPTED);
        assert!(rig.driver.bytes_here == 0 || rig.driver.bytes_here == (n + 1) * 8 * ROWS);
        assert_eq!(matches!(next, Next::Epoch(2)), n == 199);
    }
    const { assert!(200 * 8 * ROWS > AHEAD_BYTES_MAX) };
    assert_eq!(rig.rows, 200 * ROWS);
}

#[test]
fn operators_have_their_turn_within_an_epoch() {
    let mut rig = Rig::replay(2 << 20);
    assert_eq!(rig.step(ALL_ACCEPTED), Next::Epoch(1));
    let room = SplitQueue::bounded(rig.queues[0].split.clone(), usize::MAX);
    let counters = rig.driver.control.source(0, "t0");
    let node = rig.driver.sources[0].node.clone();
    rig.driver.sources[0].readings = vec![Reading::open(node, room.clone(), counters)];
    for n in 0..32 {
        assert!(room.push(Chunk::plain(rows(&vec![1; 1 << 16]), n << 16)));
    }
    for turn in 1..4 {
        assert_eq!(rig.step(ALL_ACCEPTED), Next::Wait(Duration::ZERO));
        assert_eq!(rig.rows * 8, turn * STEP_BYTES);
    }
}

#[test]
fn a_worker_reads_for_an_archive_that_it_waits_for() {
    let mut rig = Rig::replay(5);
    let mut split = rig.queues[0].split.clone();
    split.carries = vec![3];
    let queue = SplitQueue::bounded(split, 1 << 20);
    let counters = rig.driver.control.source(0, "t0");
    let source = &mut rig.driver.sources[0];
    source.readings = vec![Reading::open(source.node.clone(), queue.clone(), counters)];
    source.handle = Some(Box::new(Helper(queue, 0)));
    let id = source.readings[0].id;
    rig.driver.places = BTreeMap::from([(id, (0, 0))]);
    rig.known.borrow_mut().decisions = VecDeque::from([(1, vec![Quota { split: id, rows: 5 }])]);
    assert_eq!(rig.step(ALL_ACCEPTED), Next::Epoch(1));
    assert_eq!(rig.step(ALL_ACCEPTED), Next::Epoch(2));
    assert_eq!(rig.rows, 5);
}

#[test]
fn the_epochs_of_a_replay_grow() {
    let policy = EpochPolicy::Replay { first: 1_000, rows: 8_000 };
    let sizes = [1, 32, 33, 34, 40].map(|epoch| policy.replay_rows(epoch));
    assert_eq!(sizes, [1_000, 1_000, 1_501, 2_252, 8_000]);
    assert_eq!([1, 100].map(|epoch| EpochPolicy::rows(77).replay_rows(epoch)), [77, 77]);
}

#[test]
fn a_split_with_more_to_read_is_never_idle() {
    let mut rig = Rig::live(&[false]);
    rig.push(0, 0, &[100]);
    rig.pass(1_000, ALL_ACCEPTED);
    assert_eq!(rig.known.borrow().state.splits().next().unwrap().2.state, SplitState::Reading);
}

#[test]
fn epochs_go_forward_when_the_clock_steps_back() {
    let mut rig = Rig::live(&[false]);
    rig.push(0, 0, &[100]);
    rig.pass(100, ALL_ACCEPTED);
    rig.clock.set(200);
    rig.push(0, 1, &[200]);
    rig.pass(100, ALL_ACCEPTED);
    assert_eq!((rig.rows, rig.watermark(0)), (2, 195));
}

#[test]
fn nothing_is_taken_while_the_sinks_have_accepted_too_little() {
    let mut rig = Rig::live(&[false]);
    let mut taken = Vec::new();
    for i in 0..30 {
        rig.push(0, i, &[100 + i as Millis]);
        rig.pass(20, NOTHING_ACCEPTED);
        taken.push(rig.rows);
    }
    assert_eq!(rig.rows, AHEAD_EPOCHS_MAX, "{taken:?}");
    rig.pass(200, ALL_ACCEPTED);
    assert_eq!(rig.rows, 30);
}

#[test]
fn streams_wait_for_the_tables_that_are_read_first() {
    let mut rig = Rig::live(&[false, true]);
    rig.push(0, 0, &[100]);
    rig.push(1, 0, &[1, 2, 3]);
    rig.pass(200, ALL_ACCEPTED);
    assert_eq!((rig.rows, rig.watermark(1)), (3, MARK_END));
    rig.queues[1].finish();
    rig.pass(50, ALL_ACCEPTED);
    assert_eq!((rig.rows, rig.watermark(0)), (4, 95));
}

#[test]
fn a_gap_is_in_the_cut_and_in_the_counters() {
    let mut rig = Rig::live(&[false]);
    rig.push(0, 0, &[100]);
    rig.pass(50, ALL_ACCEPTED);
    rig.queues[0].skipped(7);
    rig.pass(1_100, ALL_ACCEPTED);
    rig.push(0, 8, &[200]);
    rig.pass(50, ALL_ACCEPTED);
    let known = rig.known.borrow();
    let facts = known.state.splits().next().unwrap().2;
    assert_eq!((facts.offset, facts.lost), (9, 7));
    let (_, counters) = rig.driver.control.sources().pop().unwrap();
    assert_eq!(counters.lost.load(std::sync::atomic::Ordering::Relaxed), 7);
}

#[test]
fn epochs_are_small_where_the_sinks_are_slow_and_large_again_where_they_are_not() {
    let mut pace = Pace::start(0);
    assert_eq!(pace.rows_max(10, false), usize::MAX);
    assert_eq!(pace.rows_max(20, true), usize::MAX, "not before it is known what is accepted");
    pace.accepted = 40;
    assert_eq!(pace.rows_max(1_000, true), PACED_ROWS_MIN);
    pace.accepted = 5_000;
    assert_eq!(pace.rows_max(1_900, false), PACED_ROWS_MIN);
    assert_eq!(pace.rows_max(2_000, true), 5_000);
    assert_eq!(pace.rows_max(3_000, false), usize::MAX, "nobody has waited");
}
