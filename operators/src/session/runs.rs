//! The open sessions of one key: runs of rows in order, and stragglers one by one.

use weir_engine::time::{MARK_END, Millis};

/// Rows in order that have merged.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Run {
    pub(super) first: Millis,
    pub(super) last: Millis,
    /// Whether a row at `first` has L < first − 1, so that it merges with one exactly the gap
    /// before.
    pub(super) loose: bool,
    pub(super) group: u32,
}

/// A row with ts ≤ L.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Straggler {
    pub(super) time: Millis,
    pub(super) mark: Millis,
    /// L.
    pub(super) limit: Millis,
    pub(super) place: (u64, u64),
    pub(super) group: u32,
    /// Its number among the rows kept for `ON LATE`, 0 where none are.
    pub(super) row: u32,
}

impl Straggler {
    /// The least W at which a session of it may fire, or it may be late.
    pub(super) fn due(&self, gap: Millis) -> Millis {
        let end = self.time.saturating_add(gap - 1);
        if end > self.limit { end } else { self.limit.saturating_add(1) }
    }
}

/// A session that fires: [first, last + gap).
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fired {
    pub(super) first: Millis,
    pub(super) last: Millis,
    pub(super) group: u32,
    /// Groups that are to be added to it.
    pub(super) others: Vec<u32>,
}

/// The open sessions of a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct KeySessions {
    /// In order of time; no two of them merge.
    pub(super) runs: Vec<Run>,
    /// In the order in which they came.
    pub(super) stragglers: Vec<Straggler>,
    /// The least W at which something may happen, or an earlier one; `MARK_END` if nothing is
    /// open.
    pub(super) due: Millis,
}

impl Default for KeySessions {
    fn default() -> KeySessions {
        KeySessions { runs: Vec::new(), stragglers: Vec::new(), due: MARK_END }
    }
}

/// A session in play: some runs and stragglers.
struct Playing {
    first: Millis,
    last: Millis,
    /// Whether a straggler is at `last`: then what begins at its end may still join it.
    open_ended: bool,
    runs: Vec<usize>,
    stragglers: Vec<usize>,
}

impl Playing {
    fn fires_at(&self, gap: Millis) -> Millis {
        self.last.saturating_add(gap - 1).saturating_add(Millis::from(self.open_ended))
    }

    fn join(&mut self, other: Playing) {
        self.open_ended = match self.last.cmp(&other.last) {
            std::cmp::Ordering::Less => other.open_ended,
            std::cmp::Ordering::Equal => self.open_ended || other.open_ended,
            std::cmp::Ordering::Greater => self.open_ended,
        };
        self.first = self.first.min(other.first);
        self.last = self.last.max(other.last);
        self.runs.extend(other.runs);
        self.stragglers.extend(other.stragglers);
    }
}

impl KeySessions {
    /// Whether nothing is open.
    pub(super) fn is_vacant(&self) -> bool {
        self.runs.is_empty() && self.stragglers.is_empty()
    }

    /// Adds a row in order. Gives its group and the least W at which its run may fire; what became
    /// part of another run goes to `merged` as (from, into), in that order.
    pub(super) fn add(
        &mut self,
        time: Millis,
        loose: bool,
        gap: Millis,
        group: impl FnOnce() -> u32,
        merged: &mut Vec<(u32, u32)>,
    ) -> (u32, Millis) {
        // Nearly always the row is in reach of the last run and the only one to be so.
        if let Some(run) = self.runs.last_mut()
            && time > run.first
            && (time - run.last < gap || (time - run.last == gap && loose))
        {
            run.last = run.last.max(time);
            return (run.group, run.last.saturating_add(gap - 1));
        }
        let next = self.runs.partition_point(|run| run.first <= time);
        let group = match next.checked_sub(1).map(|at| &mut self.runs[at]) {
            Some(run) if time <= run.last => {
                run.loose |= loose && time == run.first;
                run.group
            }
            _ => {
                let group = group();
                self.runs.insert(next, Run { first: time, last: time, loose, group });
                group
            }
        };
        let mut at = self.runs.partition_point(|run| run.first <= time) - 1;
        if self.meet(at, gap) {
            self.merge(at, merged);
        }
        if at > 0 && self.meet(at - 1, gap) {
            at -= 1;
            self.merge(at, merged);
        }
        // The row's group may have been merged away: its rows are added before the merges are
        // made.
        (group, self.runs[at].last.saturating_add(gap - 1))
    }

    /// Whether a run and the next one are one.
    fn meet(&self, at: usize, gap: Millis) -> bool {
        let (Some(run), Some(next)) = (self.runs.get(at), self.runs.get(at + 1)) else {
            return false;
        };
        let apart = next.first.saturating_sub(run.last);
        apart < gap || (apart == gap && next.loose)
    }

    fn merge(&mut self, at: usize, merged: &mut Vec<(u32, u32)>) {
        let next = self.runs.remove(at + 1);
        let run = &mut self.runs[at];
        run.last = run.last.max(next.last);
        merged.push((next.group, run.group));
    }

    /// Fires what fires at `watermark` and takes out what is late; the rest stays as it was.
    pub(super) fn fire(
        &mut self,
        watermark: Millis,
        gap: Millis,
        mut fired: impl FnMut(Fired),
        late: &mut Vec<Straggler>,
    ) {
        if self.stragglers.is_empty() {
            self.due = MARK_END;
            self.runs.retain(|run| {
                let at = run.last.saturating_add(gap - 1);
                if at <= watermark {
                    let (first, last) = (run.first, run.last);
                    fired(Fired { first, last, group: run.group, others: Vec::new() });
                    return false;
                }
                self.due = self.due.min(at);
                true
            });
            return;
        }
        let (sessions, lates) = self.play(watermark, gap);
        let mut gone_runs = vec![false; self.runs.len()];
        let mut gone = vec![false; self.stragglers.len()];
        self.due = MARK_END;
        for session in sessions {
            if session.fires_at(gap) > watermark {
                self.due = self.due.min(session.fires_at(gap));
                continue;
            }
            session.runs.iter().for_each(|&at| gone_runs[at] = true);
            session.stragglers.iter().for_each(|&at| gone[at] = true);
            let runs = session.runs.iter().map(|&at| self.runs[at].group);
            let stragglers = session.stragglers.iter().map(|&at| self.stragglers[at].group);
            let mut groups = runs.chain(stragglers);
            if let Some(group) = groups.next() {
                let (first, last) = (session.first, session.last);
                fired(Fired { first, last, group, others: groups.collect() });
            }
        }
        for at in lates {
            gone[at] = true;
            late.push(self.stragglers[at]);
        }
        let (mut run, mut straggler) = (gone_runs.into_iter(), gone.into_iter());
        self.runs.retain(|_| run.next() == Some(false));
        self.stragglers.retain(|_| straggler.next() == Some(false));
        let waiting = self.stragglers.iter().filter(|s| s.limit >= watermark);
        self.due = waiting.map(|s| s.due(gap)).fold(self.due, Millis::min);
    }

    /// The sessions made of the runs and of the stragglers with L < `watermark`, and the places of
    /// those that are late.
    fn play(&self, watermark: Millis, gap: Millis) -> (Vec<Playing>, Vec<usize>) {
        let run = |(at, run): (usize, &Run)| Playing {
            first: run.first,
            last: run.last,
            open_ended: false,
            runs: vec![at],
            stragglers: Vec::new(),
        };
        let mut sessions: Vec<Playing> = self.runs.iter().enumerate().map(run).collect();
        let mut order: Vec<usize> = (0..self.stragglers.len()).collect();
        order.retain(|&at| self.stragglers[at].limit < watermark);
        order.sort_by_key(|&at| {
            let straggler = &self.stragglers[at];
            (straggler.limit, straggler.place, straggler.time)
        });
        let mut late = Vec::new();
        for at in order {
            let Straggler { time, limit, .. } = self.stragglers[at];
            let touches = |s: &mut Playing| {
                s.first <= time.saturating_add(gap)
                    && time <= s.last.saturating_add(gap)
                    && s.last.saturating_add(gap - 1) > limit
            };
            let mut own = Playing {
                first: time,
                last: time,
                open_ended: true,
                runs: Vec::new(),
                stragglers: vec![at],
            };
            let joined: Vec<Playing> = sessions.extract_if(.., touches).collect();
            if joined.is_empty() && time.saturating_add(gap - 1) <= limit {
                late.push(at);
                continue;
            }
            joined.into_iter().for_each(|session| own.join(session));
            sessions.push(own);
        }
        (sessions, late)
    }
}
