//! What a home draws, reading by reading: spiky, as homes are.
//!
//! A home is a stand-by load, a fridge that cycles, for some a heater on a thermostat, a daily
//! curve of lights and screens that flickers, and appliances that start by chance. An honest home
//! is below half of its own hourly average for a fifth of the time, which is what makes theft hard
//! to tell.

use super::random::Random;

/// Milliseconds between two readings of a meter.
pub(super) const INTERVAL_MS: i64 = 15_000;
pub(super) const HOUR_MS: i64 = 3_600_000;
pub(super) const DAY_MS: i64 = 24 * HOUR_MS;

/// Watts of lights, screens and the like at the full hour, for three ways of living: out at work, a
/// family, at home all day.
const LIVING_W: [[f64; 24]; 3] = [
    [
        55., 45., 40., 40., 45., 80., 160., 200., 110., 60., 55., 55., 60., 60., 60., 65., 110.,
        240., 370., 410., 380., 290., 180., 95.,
    ],
    [
        65., 55., 50., 50., 60., 110., 210., 260., 190., 130., 120., 130., 160., 150., 140., 170.,
        240., 350., 430., 420., 370., 280., 190., 110.,
    ],
    [
        120., 80., 60., 55., 55., 65., 90., 150., 190., 210., 225., 235., 245., 235., 230., 235.,
        260., 310., 350., 360., 360., 350., 290., 200.,
    ],
];

/// When something is started, by hour of the day; the mean of each is about 1.
const BY_DAY: [f64; 24] = [
    0.3, 0.2, 0.1, 0.1, 0.2, 0.7, 1.7, 1.9, 1.5, 1.2, 1.1, 1.2, 1.4, 1.2, 1.0, 1.1, 1.3, 1.5, 1.5,
    1.3, 1.1, 0.9, 0.8, 0.6,
];
const BY_EVENING: [f64; 24] = [
    0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.4, 0.6, 0.5, 0.5, 0.8, 1.2, 1.4, 0.8, 0.6, 0.9, 1.9, 3.5, 3.8,
    2.7, 1.7, 1.1, 0.6, 0.3,
];
const BY_NIGHT: [f64; 24] = [
    2.3, 2.0, 1.6, 1.2, 0.9, 0.6, 0.4, 0.3, 0.3, 0.3, 0.3, 0.4, 0.4, 0.4, 0.4, 0.6, 0.8, 1.3, 1.6,
    1.5, 1.4, 1.5, 1.8, 2.0,
];

/// A kind of appliance.
struct Kind {
    /// Share of homes that have one.
    owned: f64,
    watts: f64,
    /// Shortest and longest run, in seconds.
    run_s: (f64, f64),
    starts_a_day: f64,
    by_hour: &'static [f64; 24],
    /// Full power for so long, in seconds; then on for `duty` of every two minutes.
    full_s: i64,
    duty: f64,
}

const ALWAYS_FULL: i64 = i64::MAX;
const KINDS: [Kind; 8] = [
    kind(0.95, 2100., (100., 260.), 6.0, &BY_DAY, ALWAYS_FULL, 1.0),
    kind(0.90, 1200., (45., 280.), 5.0, &BY_DAY, ALWAYS_FULL, 1.0),
    kind(1.00, 320., (60., 1500.), 18.0, &BY_DAY, ALWAYS_FULL, 1.0),
    kind(0.80, 2200., (1400., 3500.), 0.9, &BY_EVENING, 500, 0.4),
    kind(0.70, 1900., (2400., 5200.), 0.8, &BY_DAY, 800, 0.12),
    kind(0.20, 8000., (240., 560.), 1.9, &BY_DAY, ALWAYS_FULL, 1.0),
    kind(0.60, 700., (300., 1800.), 0.7, &BY_EVENING, ALWAYS_FULL, 1.0),
    kind(0.10, 7000., (3600., 10_500.), 0.8, &BY_NIGHT, ALWAYS_FULL, 1.0),
];

const fn kind(
    owned: f64,
    watts: f64,
    run_s: (f64, f64),
    starts_a_day: f64,
    by_hour: &'static [f64; 24],
    full_s: i64,
    duty: f64,
) -> Kind {
    Kind { owned, watts, run_s, starts_a_day, by_hour, full_s, duty }
}

/// A load that a thermostat switches.
#[derive(Clone, Debug)]
struct Cycle {
    watts: f64,
    period_ms: i64,
    on_ms: i64,
    offset_ms: i64,
}

impl Cycle {
    fn drawn(
        random: &mut Random,
        watts: (f64, f64),
        minutes: (f64, f64),
        duty: (f64, f64),
    ) -> Cycle {
        let period_ms = (random.between(minutes.0, minutes.1) * 60_000.0) as i64;
        Cycle {
            watts: random.between(watts.0, watts.1),
            period_ms,
            on_ms: (random.between(duty.0, duty.1) * period_ms as f64) as i64,
            offset_ms: random.whole(0, period_ms),
        }
    }

    fn watts(&self, at: i64) -> f64 {
        let on = (at + self.offset_ms).rem_euclid(self.period_ms) < self.on_ms;
        if on { self.watts } else { 0.0 }
    }
}

#[derive(Clone, Debug)]
struct Appliance {
    kind: usize,
    watts: f64,
    started: i64,
    until: i64,
}

/// A home.
#[derive(Clone, Debug)]
pub(super) struct Home {
    random: Random,
    level: f64,
    way: usize,
    shift_ms: i64,
    standby: f64,
    fridge: Cycle,
    heater: Option<Cycle>,
    appliances: Vec<Appliance>,
    /// How busy the day is, against the home's own average.
    day_factor: f64,
}

impl Home {
    /// The home number `number` of the world `seed`.
    pub(super) fn drawn(seed: u64, number: u64) -> Home {
        let mut random = Random::of(seed, 1, number);
        let works_at_night = if random.chance(0.06) { 10.0 } else { 0.0 };
        let shift_h = random.normal() * 1.3 + works_at_night;
        let mut appliances = Vec::new();
        for (kind, facts) in KINDS.iter().enumerate() {
            let (owned, watts) = (random.chance(facts.owned), random.between(0.85, 1.15));
            if owned {
                appliances.push(Appliance {
                    kind,
                    watts: facts.watts * watts,
                    started: 0,
                    until: 0,
                });
            }
        }
        Home {
            level: (random.normal() * 0.4).exp(),
            way: random.whole(0, LIVING_W.len() as i64) as usize,
            shift_ms: (shift_h * HOUR_MS as f64) as i64,
            standby: random.between(30.0, 120.0),
            fridge: Cycle::drawn(&mut random, (70., 160.), (28., 60.), (0.25, 0.45)),
            heater: random
                .chance(0.25)
                .then(|| Cycle::drawn(&mut random, (600., 1600.), (12., 45.), (0.15, 0.6))),
            appliances,
            day_factor: 1.0,
            random,
        }
    }

    /// Begins a day: other dice, nothing running, busier or quieter than the last.
    pub(super) fn begin_day(&mut self, seed: u64, number: u64, day: u64) {
        self.random = Random::of(seed, 2 + day, number);
        self.day_factor = (self.random.normal() * 0.2).exp();
        self.fridge.offset_ms = self.random.whole(0, self.fridge.period_ms);
        if let Some(heater) = &mut self.heater {
            heater.offset_ms = self.random.whole(0, heater.period_ms);
        }
        self.appliances.iter_mut().for_each(|a| a.until = 0);
    }

    /// The mean draw in watts over the interval that ends at `at`. `presence` is 1 with everybody
    /// at home as usual, 0 with nobody. To be asked interval by interval.
    pub(super) fn watts(&mut self, at: i64, presence: f64) -> f64 {
        let of_day = (at + self.shift_ms).rem_euclid(DAY_MS);
        let hour = (of_day / HOUR_MS) as usize;
        let part = (of_day % HOUR_MS) as f64 / HOUR_MS as f64;
        let curve = &LIVING_W[self.way];
        let living = curve[hour] * (1.0 - part) + curve[(hour + 1) % 24] * part;
        let flicker = (0.15 * self.random.normal()).exp();
        let mut total = self.standby + self.fridge.watts(at);
        total += self.level * self.day_factor * living * flicker * presence;
        total += self
            .heater
            .as_ref()
            .map_or(0.0, |heater| if presence > 0.3 { heater.watts(at) } else { 0.0 });
        for appliance in &mut self.appliances {
            let kind = &KINDS[appliance.kind];
            if appliance.until <= at {
                let starts = kind.starts_a_day * kind.by_hour[hour] * self.day_factor;
                let chance = starts * (INTERVAL_MS as f64 / DAY_MS as f64) * presence;
                if !self.random.chance(chance) {
                    continue;
                }
                let run_s = self.random.between(kind.run_s.0, kind.run_s.1);
                appliance.started = at;
                appliance.until = at + (run_s * 1000.0) as i64;
            }
            let for_s = (at - appliance.started) / 1000;
            if for_s < kind.full_s || (for_s % 120) as f64 <= kind.duty * 120.0 {
                total += appliance.watts;
            }
        }
        total
    }
}
