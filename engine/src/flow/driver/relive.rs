//! The driver as long as it goes by recorded cuts: what the last generation did is done again.
//!
//! # Invariant
//! When a recorded cut's epoch is closed, each split of this worker stands where the cut says, with
//! the mark that the cut says. So rows, epochs and watermarks are those of the run before, on any
//! number of workers.
//!
//! # Argument
//! A split's rows and marks depend on the split alone. They are taken up to the recorded offset,
//! and the recorded facts, with their clock, are sent instead of our own. If a mark comes out
//! differently, or a split has ended before, its data is not what was read: the job fails and says
//! so, rather than write something else under the same epochs.
//!
//! An epoch is never left half done: on a stop or a failure no part is sent and no capability is
//! dropped, so that nobody takes for whole what is not.
//!
//! # Limits
//! Of an archive that carries its splits as columns rows are counted, so that rows that cannot be
//! decoded at the very end of an epoch may come with the next one. Marks show that data has
//! changed, not every change shows in them: where there is no event time they show nothing.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::{Driver, Next, Outlets, STEP_BYTES, SourceRuntime};
use crate::connector::ConnectorError;
use crate::cut::{CutPart, SplitFacts, SplitState};
use crate::cutlog::{Cut, CutLogError, PastCuts};
use crate::flow::reading::Reading;
use crate::rows::SplitId;
use crate::source::Below;
use crate::time::{Epoch, Millis};

/// What is wrong, and with which table.
type Wrong = (String, ConnectorError);

/// A queue of this worker, and where it has to stand.
struct Goal {
    place: (usize, usize),
    facts: SplitFacts,
    /// The clock of the worker that had it.
    time: Millis,
    reached: bool,
}

/// The recorded cut whose epoch is open.
struct Open {
    recorded_time: Millis,
    /// This worker's part of it.
    splits: Vec<SplitFacts>,
    goals: Vec<Goal>,
}

/// Recorded epochs that a worker may have closed before all workers have.
const AHEAD: usize = 16;

/// Recorded cuts.
pub(super) struct Past {
    first: Option<Result<Cut, CutLogError>>,
    cuts: PastCuts,
    open: Option<Open>,
    /// Epochs closed here that are not known to be closed everywhere.
    closed: VecDeque<Epoch>,
    /// The queues that this worker's splits are in, those of archives among them.
    owners: BTreeMap<SplitId, (usize, usize)>,
    over: bool,
}

impl Past {
    /// `None` where nothing is recorded behind the epoch `after`.
    pub(super) fn of(
        mut cuts: PastCuts,
        after: Option<Epoch>,
        sources: &[SourceRuntime],
    ) -> Option<Past> {
        let before =
            |cut: &Result<Cut, CutLogError>| cut.as_ref().is_ok_and(|cut| Some(cut.epoch) <= after);
        let first = Some(cuts.find(|cut| !before(cut))?);
        let mut owners = BTreeMap::new();
        for (s, source) in sources.iter().enumerate() {
            for (r, reading) in source.readings.iter().enumerate() {
                let splits = reading.splits().chain([reading.id]);
                owners.extend(splits.map(|split| (split, (s, r))));
            }
        }
        Some(Past { first, cuts, open: None, closed: VecDeque::new(), owners, over: false })
    }

    fn read(&mut self) -> Result<Option<Cut>, Wrong> {
        let unreadable = |error: CutLogError| {
            ("the cut log".to_owned(), ConnectorError::fatal(error.to_string()))
        };
        self.first.take().or_else(|| self.cuts.next()).transpose().map_err(unreadable)
    }
}

impl Driver {
    /// Goes on with the recorded cuts; `None` where there is none any more.
    pub(super) fn relive(&mut self, out: &mut impl Outlets) -> Option<Next> {
        let mut past = self.past.take()?;
        match self.relive_step(&mut past, out) {
            Ok(next) => {
                self.past = Some(past).filter(|past| !past.over);
                next
            }
            Err((table, error)) => {
                self.control.fail_connector(&table, error);
                self.past = Some(past);
                Some(self.freeze())
            }
        }
    }

    fn relive_step(
        &mut self,
        past: &mut Past,
        out: &mut impl Outlets,
    ) -> Result<Option<Next>, Wrong> {
        if past.open.is_none() {
            return Ok(match past.read()? {
                Some(cut) => Some(self.open_recorded(past, cut)),
                None => {
                    past.over = true;
                    self.wake_idle_splits();
                    None
                }
            });
        }
        if self.has_to_wait_for_others(past) {
            return Ok(Some(Next::Wait(Duration::from_millis(2))));
        }
        let Some(open) = &mut past.open else { return Ok(None) };
        // An epoch that was begun alone is never too far ahead: nothing else would end it.
        if !self.issued.is_empty() && self.is_ahead() {
            return Ok(Some(Next::Wait(Duration::from_micros(300))));
        }
        let pause = self.bytes_here + STEP_BYTES;
        for goal in open.goals.iter_mut().filter(|goal| !goal.reached) {
            goal.reached = self.approach(goal, pause, out)?;
            if self.bytes_here >= pause {
                // The operators' turn.
                return Ok(Some(Next::Wait(Duration::ZERO)));
            }
        }
        if open.goals.iter().any(|goal| !goal.reached) {
            return Ok(Some(Next::Wait(Duration::from_millis(2))));
        }
        let Some(open) = past.open.take() else { return Ok(None) };
        self.close_recorded(open, &past.owners, out)?;
        past.closed.push_back(self.epoch);
        if self.all_finished() {
            return Ok(Some(Next::Done));
        }
        Ok(Some(match past.read()? {
            Some(cut) => self.open_recorded(past, cut),
            None => {
                past.over = true;
                self.wake_idle_splits();
                self.control.set_notice("recovery", None);
                self.epoch = self.next_epoch(self.control.clock.now());
                Next::Epoch(self.epoch)
            }
        }))
    }

    /// Stops reading and does nothing more, the open epoch least of all.
    pub(super) fn freeze(&mut self) -> Next {
        self.stop_sources();
        Next::Wait(Duration::from_millis(100))
    }

    /// Whether other workers are too far behind.
    fn has_to_wait_for_others(&mut self, past: &mut Past) -> bool {
        let mut known = self.known.borrow_mut();
        while past.closed.front().is_some_and(|epoch| Some(*epoch) <= known.closed) {
            past.closed.pop_front();
        }
        while known.decisions.front().is_some_and(|decision| decision.0 < self.epoch) {
            known.decisions.pop_front();
        }
        past.closed.len() >= AHEAD
    }

    /// Opens the epoch of a recorded cut.
    fn open_recorded(&mut self, past: &mut Past, cut: Cut) -> Next {
        let recorded_time = cut.parts.iter().map(|part| part.recorded_time).max();
        let (mut splits, mut goals) = (Vec::new(), Vec::new());
        for part in cut.parts {
            for facts in part.splits {
                let Some(&place) = past.owners.get(&facts.split) else { continue };
                if self.places.contains_key(&facts.split) {
                    goals.push(Goal { place, facts, time: part.recorded_time, reached: false });
                }
                splits.push(facts);
            }
        }
        let recorded_time = recorded_time.unwrap_or_else(|| self.control.clock.now());
        past.open = Some(Open { recorded_time, splits, goals });
        self.epoch = cut.epoch;
        Next::Epoch(self.epoch)
    }

    /// Reads on towards a goal, until about `pause` bytes are taken; whether it is reached.
    fn approach(
        &mut self,
        goal: &Goal,
        pause: usize,
        out: &mut impl Outlets,
    ) -> Result<bool, Wrong> {
        let Goal { place, facts, time, .. } = goal;
        let (to, ends) = (facts.offset, facts.state == SplitState::Finished);
        loop {
            let source = &mut self.sources[place.0];
            let reading = &mut source.readings[place.1];
            let (table, at) = (&source.node.table, reading.position());
            if facts.state != SplitState::Waiting {
                reading.queue.want();
            }
            if at >= to && !ends {
                return Ok(true);
            }
            match reading.pop_towards(to) {
                Below::Some(chunk) => {
                    let taken = reading.take(chunk, *time);
                    self.emit(*place, taken, out);
                    if self.bytes_here >= pause {
                        return Ok(false);
                    }
                }
                Below::Ended if at >= to => return Ok(true),
                Below::Ended => {
                    let what = format!("it ends at offset {at}, and was read up to {to}");
                    return Err(changed(table, reading, &what));
                }
                Below::Beyond if ends => {
                    let what = format!("it goes on beyond offset {to}, where it ended");
                    return Err(changed(table, reading, &what));
                }
                Below::Beyond => reading.stand_at(to),
                Below::NotYet if self.help(*place) => {}
                Below::NotYet => {
                    if reading_is_short(&self.sources[place.0].readings[place.1], to) {
                        let name = &self.sources[place.0].readings[place.1].queue.split.name;
                        let text = format!("{name} ends at {at}; waits for {to}, read before");
                        self.control.set_notice("recovery", Some(text));
                    }
                    return Ok(false);
                }
            }
        }
    }

    /// Closes the epoch of a recorded cut, if all is as it was.
    fn close_recorded(
        &mut self,
        open: Open,
        owners: &BTreeMap<SplitId, (usize, usize)>,
        out: &mut impl Outlets,
    ) -> Result<(), Wrong> {
        let mut now = Vec::new();
        for goal in &open.goals {
            let reading = &mut self.sources[goal.place.0].readings[goal.place.1];
            reading.state = goal.facts.state;
            reading.facts(&mut now);
        }
        let marks: BTreeMap<SplitId, Millis> = now.iter().map(|f| (f.split, f.mark)).collect();
        let differs =
            |facts: &&SplitFacts| marks.get(&facts.split).is_some_and(|m| *m != facts.mark);
        if let Some(facts) = open.splits.iter().find(differs)
            && let Some(place) = owners.get(&facts.split)
        {
            let (source, mark) = (&self.sources[place.0], marks[&facts.split]);
            let (offset, was) = (facts.offset, facts.mark);
            let what = format!("at offset {offset} its watermark is {mark}, and was {was}");
            return Err(changed(&source.node.table, &source.readings[place.1], &what));
        }
        let (worker, recorded_time) = (self.worker, open.recorded_time);
        out.part(CutPart { worker, recorded_time, splits: open.splits, checkpoint: false });
        self.issue();
        Ok(())
    }
}

/// Whether a split has all that its server holds, and that is less than was read before.
fn reading_is_short(reading: &Reading, to: u64) -> bool {
    reading.queue.is_quiet() == (true, true) && reading.position() < to
}

fn changed(table: &str, reading: &Reading, what: &str) -> Wrong {
    let name = &reading.queue.split.name;
    let message = format!("{name} is not what it was when it was read before: {what}");
    let hint = "bring the data back, or start the job anew under another state";
    (table.to_owned(), ConnectorError::fatal(message).hint(hint))
}
