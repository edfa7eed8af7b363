//! The judge: what the files say about whom, against the truth.
//!
//! Suspicions of a meter no further than [`GAP_MS`] apart are one *episode*. An episode is right
//! if one of its suspicions overlaps with a theft at that meter, else it is a false alarm. A theft
//! is *due* if at least [`DUE_MS`] of it lie within the demo; recall is the share of the due ones
//! that were found, delay the event time from the theft's begin to the end of the first window
//! that tells.

use std::collections::BTreeMap;

use super::world::{Fate, MINUTE_MS, World};

const GAP_MS: i64 = 10 * MINUTE_MS;
const DUE_MS: i64 = 15 * MINUTE_MS;

/// Something that speaks against a meter, for the event times `from ..= until`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Suspicion {
    pub(super) meter_id: String,
    pub(super) from: i64,
    pub(super) until: i64,
}

/// A thief, and when it was found.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Thief {
    pub(super) meter_id: String,
    pub(super) from: i64,
    pub(super) until: i64,
    /// The share of the load that is hidden.
    pub(super) hidden: f64,
    /// Whether enough of it lies within the demo.
    pub(super) due: bool,
    /// End of the first window that tells.
    pub(super) found: Option<i64>,
}

/// An episode at a meter that does not steal then.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct FalseAlarm {
    pub(super) meter_id: String,
    /// What the meter really is.
    pub(super) truth: &'static str,
    pub(super) first: i64,
    pub(super) last: i64,
}

/// The outcome.
#[derive(Clone, Debug, Default)]
pub(super) struct Verdict {
    pub(super) thieves: Vec<Thief>,
    pub(super) episodes: usize,
    pub(super) false_alarms: Vec<FalseAlarm>,
}

impl Verdict {
    /// Thefts that are due, and how many of them were found.
    pub(super) fn recall(&self) -> (usize, usize) {
        let due = self.thieves.iter().filter(|t| t.due);
        (due.clone().count(), due.filter(|t| t.found.is_some()).count())
    }

    /// Delays of those found, in milliseconds, in ascending order.
    pub(super) fn delays(&self) -> Vec<i64> {
        let mut delays: Vec<i64> =
            self.thieves.iter().filter_map(|t| t.found.map(|at| at - t.from)).collect();
        delays.sort_unstable();
        delays
    }
}

/// The value below which the share `part` of sorted values lies (nearest rank).
pub(super) fn quantile(sorted: &[i64], part: f64) -> Option<i64> {
    let rank = (part * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).or(sorted.last()).copied()
}

/// Compares suspicions with the truth of a world that was shown up to `shown`.
pub(super) fn judge(world: &World, suspicions: Vec<Suspicion>, shown: i64) -> Verdict {
    let mut by_meter: BTreeMap<String, Vec<Suspicion>> = BTreeMap::new();
    for suspicion in suspicions {
        by_meter.entry(suspicion.meter_id.clone()).or_default().push(suspicion);
    }
    let mut verdict = Verdict::default();
    for meter in &world.meters {
        let mut mine = by_meter.remove(&meter.id).unwrap_or_default();
        mine.sort_by_key(|s| (s.until, s.from));
        let theft = match &meter.fate {
            Fate::Thief { during, .. } => Some(during.clone()),
            _ => None,
        };
        let tells = |s: &Suspicion| {
            theft.as_ref().is_some_and(|theft| s.until > theft.start && s.from < theft.end)
        };
        for episode in mine.chunk_by(|a, b| b.until - a.until <= GAP_MS) {
            verdict.episodes += 1;
            if !episode.iter().any(tells) {
                verdict.false_alarms.push(FalseAlarm {
                    meter_id: meter.id.clone(),
                    truth: truth(&meter.fate),
                    first: episode[0].until,
                    last: episode[episode.len() - 1].until,
                });
            }
        }
        if let (Some(theft), Fate::Thief { keeps, .. }) = (&theft, &meter.fate)
            && theft.start < shown
        {
            let until = theft.end.min(shown);
            verdict.thieves.push(Thief {
                meter_id: meter.id.clone(),
                from: theft.start,
                until,
                hidden: 1.0 - keeps,
                due: until - theft.start >= DUE_MS,
                found: mine.iter().find(|s| tells(s)).map(|s| s.until),
            });
        }
    }
    // What is no meter of ours, a substation for instance, cannot be a thief.
    for (meter_id, all) in by_meter {
        let until = all.iter().map(|s| s.until);
        let (first, last) = (until.clone().min().unwrap_or(0), until.max().unwrap_or(0));
        verdict.episodes += 1;
        verdict.false_alarms.push(FalseAlarm { meter_id, truth: "no home", first, last });
    }
    verdict
}

fn truth(fate: &Fate) -> &'static str {
    match fate {
        Fate::Honest => "honest",
        Fate::Thief { .. } => "not stealing then",
        Fate::Disconnected { .. } => "disconnected",
        Fate::Holiday { .. } => "on holiday",
        Fate::Added { .. } => "new",
        Fate::Silent { .. } => "silent for a while",
    }
}

#[cfg(test)]
mod tests {
    use super::super::world::WorldSpec;
    use super::*;

    /// Sixty minutes with one thief, from minute 20 to 50, and one home on holiday.
    fn world() -> World {
        let mut world = World::drawn(WorldSpec { seed: 1, meters: 5, minutes: 60 });
        let at = |minutes: i64| world.start + minutes * MINUTE_MS;
        let during = at(20)..at(50);
        let holiday = Fate::Holiday { from: at(0), over: MINUTE_MS };
        world.meters.iter_mut().for_each(|m| m.fate = Fate::Honest);
        world.meters[1].fate = Fate::Thief { during, keeps: 0.25 };
        world.meters[2].fate = holiday;
        world
    }

    fn suspicion(world: &World, meter: usize, from: i64, until: i64) -> Suspicion {
        let at = |minutes: i64| world.start + minutes * MINUTE_MS;
        let meter_id = world.meters[meter].id.clone();
        Suspicion { meter_id, from: at(from), until: at(until) }
    }

    fn judged(said: &[(usize, i64, i64)]) -> Verdict {
        let world = world();
        let said = said.iter().map(|&(m, from, until)| suspicion(&world, m, from, until));
        judge(&world, said.collect(), world.end)
    }

    #[test]
    fn a_theft_is_found_by_the_first_window_that_overlaps() {
        let verdict = judged(&[(1, 1, 26), (1, 0, 25), (1, 25, 55)]);
        assert_eq!(verdict.recall(), (1, 1));
        assert_eq!(verdict.delays(), [5 * MINUTE_MS]);
        assert_eq!((verdict.episodes, verdict.false_alarms.len()), (2, 0));
    }

    #[test]
    fn who_is_suspected_before_and_after_was_not_stealing_then() {
        let verdict = judged(&[(1, 0, 19), (1, 52, 58)]);
        assert_eq!(verdict.recall(), (1, 0));
        let truths: Vec<_> = verdict.false_alarms.iter().map(|f| f.truth).collect();
        assert_eq!(truths, ["not stealing then"; 2]);
    }

    #[test]
    fn suspicions_within_the_gap_are_one_episode() {
        let verdict = judged(&[(2, 0, 10), (2, 1, 11), (2, 6, 16), (2, 17, 27), (0, 0, 5)]);
        let said: Vec<_> = verdict.false_alarms.iter().map(|f| (f.truth, f.last)).collect();
        let start = world().start;
        let at = |minutes: i64| start + minutes * MINUTE_MS;
        assert_eq!(said, [("honest", at(5)), ("on holiday", at(16)), ("on holiday", at(27))]);
    }

    #[test]
    fn what_is_shown_too_short_is_not_due() {
        let world = world();
        let verdict = judge(&world, Vec::new(), world.start + 34 * MINUTE_MS);
        assert_eq!((verdict.thieves.len(), verdict.recall()), (1, (0, 0)));
        let verdict = judge(&world, Vec::new(), world.start + 10 * MINUTE_MS);
        assert!(verdict.thieves.is_empty());
    }

    #[test]
    fn quantiles_by_nearest_rank() {
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[1, 2, 3, 4], 0.5), Some(2));
        assert_eq!(quantile(&[1, 2, 3, 4], 0.99), Some(4));
        assert_eq!(quantile(&[7], 0.0), Some(7));
    }
}
