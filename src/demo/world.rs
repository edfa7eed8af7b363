//! The grid of the demo: who hangs where, and who is what from when to when. All of it follows
//! from a seed; the truth that the judge compares with is part of it.

use std::ops::Range;

use super::home::{DAY_MS, HOUR_MS, INTERVAL_MS};
use super::random::Random;

pub(super) const MINUTE_MS: i64 = 60_000;
/// 2025-02-11T00:00:00Z, a Tuesday. A fixed day, so that a run is the same on every day.
const DAY: i64 = 1_739_232_000_000;
/// Hour of the day at which the demo begins.
const START_HOUR: i64 = 17;
/// Homes on a feeder, on average: a small low-voltage feeder.
const HOMES_A_FEEDER: usize = 20;
/// Regions, each with the place of its middle. A region's readings come over a connection of their
/// own.
pub(super) const REGIONS: [(&str, f64, f64); 4] =
    [("north", 54.9, -1.6), ("midlands", 52.6, -1.5), ("east", 52.3, 0.6), ("south", 51.2, -0.9)];
// Shares of the meters that are not just honest.
const THIEVES: f64 = 0.01;
const DISCONNECTED: f64 = 0.005;
const HOLIDAYS: f64 = 0.01;
const ADDED: f64 = 0.005;
const SILENT: f64 = 0.005;

/// What the world is made from.
#[derive(Clone, Copy, Debug)]
pub(super) struct WorldSpec {
    pub(super) seed: u64,
    pub(super) meters: usize,
    /// Minutes of event time.
    pub(super) minutes: i64,
}

/// What is true of a meter. Times are event times in milliseconds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fate {
    Honest,
    /// Shows only the share `keeps` of what is drawn, while it lasts.
    Thief {
        during: Range<i64>,
        keeps: f64,
    },
    /// Draws nothing from then on. Some send zeros, others nothing.
    Disconnected {
        from: i64,
        talks: bool,
    },
    /// Less and less from then on, over so many milliseconds, until nobody is at home.
    Holiday {
        from: i64,
        over: i64,
    },
    /// Installed then: no history.
    Added {
        from: i64,
    },
    /// Draws as usual, but its radio is down.
    Silent {
        during: Range<i64>,
    },
}

/// A meter at a home.
#[derive(Clone, Debug)]
pub(super) struct Meter {
    pub(super) id: String,
    pub(super) feeder: usize,
    /// When within each interval it is read.
    pub(super) phase_ms: i64,
    pub(super) fate: Fate,
}

/// A low-voltage feeder, with a meter at its substation.
#[derive(Clone, Debug)]
pub(super) struct Feeder {
    pub(super) id: String,
    pub(super) region: usize,
    /// Numbers of its meters.
    pub(super) meters: Range<usize>,
    /// Losses in the cable: this share of the load at 10 kW, and in proportion to the load's
    /// square.
    resistance: f64,
    /// What its meter is off by, as a factor.
    gauge: f64,
}

impl Feeder {
    /// Watts that the substation delivers when the homes draw `load`.
    pub(super) fn delivered(&self, load: f64) -> f64 {
        load * (1.0 + self.resistance * load / 10_000.0) * self.gauge
    }
}

/// The grid.
#[derive(Clone, Debug)]
pub(super) struct World {
    pub(super) spec: WorldSpec,
    /// Event time at which the demo begins.
    pub(super) start: i64,
    /// Event time at which it ends.
    pub(super) end: i64,
    pub(super) meters: Vec<Meter>,
    pub(super) feeders: Vec<Feeder>,
}

impl World {
    /// The world of a spec.
    pub(super) fn drawn(spec: WorldSpec) -> World {
        let mut random = Random::of(spec.seed, 0, 0);
        let start = DAY + START_HOUR * HOUR_MS;
        let end = start + spec.minutes * MINUTE_MS;
        let feeders = feeders(&mut random, spec.meters);
        let mut meters: Vec<Meter> = Vec::with_capacity(spec.meters);
        for (number, feeder) in feeders.iter().enumerate() {
            for meter in feeder.meters.clone() {
                meters.push(Meter {
                    id: format!("meter-{meter:06}"),
                    feeder: number,
                    phase_ms: random.whole(0, INTERVAL_MS),
                    fate: Fate::Honest,
                });
            }
        }
        let mut world = World { spec, start, end, meters, feeders };
        world.draw_fates(&mut random);
        world
    }

    /// A moment between two shares of the demo's time.
    fn moment(&self, random: &mut Random, low: f64, high: f64) -> i64 {
        self.start + ((self.end - self.start) as f64 * random.between(low, high)) as i64
    }

    fn draw_fates(&mut self, random: &mut Random) {
        let mut order: Vec<usize> = (0..self.meters.len()).collect();
        random.shuffle(&mut order);
        let mut rest = order.into_iter();
        let count = |share: f64| (share * self.spec.meters as f64).round() as usize;
        let counts = [THIEVES, DISCONNECTED, HOLIDAYS, ADDED, SILENT].map(count);
        for (what, count) in counts.into_iter().enumerate() {
            for (nth, meter) in rest.by_ref().take(count).enumerate() {
                self.meters[meter].fate = self.fate(random, what, nth);
            }
        }
    }

    fn fate(&self, random: &mut Random, what: usize, nth: usize) -> Fate {
        match what {
            0 => {
                let from = self.moment(random, 0.05, 0.8);
                let minutes = random.between(20.0, 60.0);
                let ends = nth % 2 == 1;
                let until =
                    if ends { from + (minutes * MINUTE_MS as f64) as i64 } else { i64::MAX };
                Fate::Thief { during: from..until, keeps: 1.0 - random.between(0.55, 1.0) }
            }
            1 => {
                let cut_off = self.moment(random, 0.1, 0.9);
                let from = if nth.is_multiple_of(2) { cut_off } else { self.start - DAY_MS };
                Fate::Disconnected { from, talks: nth % 3 != 2 }
            }
            2 => {
                // Most have begun to leave before we look.
                let hours = |hours: f64| (hours * HOUR_MS as f64) as i64;
                let from = self.start + hours(random.between(-20.0, 1.0));
                Fate::Holiday { from, over: hours(random.between(6.0, 24.0)) }
            }
            3 => Fate::Added { from: self.moment(random, 0.05, 0.7) },
            _ => {
                let from = self.moment(random, 0.1, 0.6);
                let minutes = random.between(10.0, 40.0);
                Fate::Silent { during: from..from + (minutes * MINUTE_MS as f64) as i64 }
            }
        }
    }

    /// The customer's share of a usual presence at home.
    pub(super) fn presence(&self, meter: usize, at: i64) -> f64 {
        match self.meters[meter].fate {
            Fate::Holiday { from, over } => {
                1.0 - ((at - from) as f64 / over as f64).clamp(0.0, 1.0)
            }
            _ => 1.0,
        }
    }
}

/// Feeders of half to one and a half times the usual number of homes, spread over the regions.
fn feeders(random: &mut Random, meters: usize) -> Vec<Feeder> {
    let usual = HOMES_A_FEEDER as i64;
    let mut feeders: Vec<Feeder> = Vec::new();
    let mut next = 0;
    while next < meters {
        let homes = random.whole(usual / 2, usual * 3 / 2 + 1) as usize;
        let last = (next + homes).min(meters);
        let number = feeders.len();
        feeders.push(Feeder {
            id: format!("feeder-{number:04}"),
            region: number % REGIONS.len(),
            meters: next..last,
            resistance: random.between(0.004, 0.012),
            gauge: 1.0 + 0.003 * random.normal(),
        });
        next = last;
    }
    feeders
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(seed: u64) -> World {
        World::drawn(WorldSpec { seed, meters: 2000, minutes: 120 })
    }

    #[test]
    fn a_seed_says_it_all() {
        assert_eq!(format!("{:?}", world(1)), format!("{:?}", world(1)));
        assert_ne!(format!("{:?}", world(1)), format!("{:?}", world(2)));
    }

    #[test]
    fn every_meter_is_on_one_feeder() {
        let world = world(3);
        assert_eq!(world.meters.len(), 2000);
        for (number, feeder) in world.feeders.iter().enumerate() {
            assert!(feeder.meters.clone().all(|m| world.meters[m].feeder == number));
            assert!(feeder.meters.len() <= 30);
        }
        assert_eq!(world.feeders.iter().map(|f| f.meters.len()).sum::<usize>(), 2000);
    }

    #[test]
    fn fates_have_their_shares_and_lie_within_the_time() {
        let world = world(5);
        let count = |is: fn(&Fate) -> bool| world.meters.iter().filter(|m| is(&m.fate)).count();
        assert_eq!(count(|f| matches!(f, Fate::Thief { .. })), 20);
        assert_eq!(count(|f| matches!(f, Fate::Disconnected { .. })), 10);
        assert_eq!(count(|f| matches!(f, Fate::Holiday { .. })), 20);
        assert_eq!(count(|f| matches!(f, Fate::Added { .. })), 10);
        assert_eq!(count(|f| matches!(f, Fate::Silent { .. })), 10);
        for meter in &world.meters {
            if let Fate::Thief { during, keeps } = &meter.fate {
                assert!((world.start..world.end).contains(&during.start));
                assert!(during.end - during.start >= 20 * MINUTE_MS);
                assert!((0.0..=0.45).contains(keeps));
            }
        }
    }

    #[test]
    fn presence_falls_gradually() {
        let mut world = world(5);
        let from = world.start;
        world.meters[0].fate = Fate::Holiday { from, over: HOUR_MS };
        let presence = |minutes: i64| world.presence(0, from + minutes * MINUTE_MS);
        assert_eq!([presence(-5), presence(30), presence(90)], [1.0, 0.5, 0.0]);
    }
}
