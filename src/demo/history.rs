//! The long baseline: what each meter used, by hour of the day, on the working days before the
//! demo.
//!
//! It is frozen: what happens during the demo, a theft above all, cannot creep into it. From the
//! same days comes what is lost in the cable of each feeder.

use std::thread;

use super::home::{HOUR_MS, Home, INTERVAL_MS};
use super::world::{Fate, Feeder, World};

/// Days like that of the demo that are looked back on.
const DAYS: u64 = 14;

/// What an hour of the day was like at a meter. Kilowatt-hours are those of one reading.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct UsualHour {
    /// The hour's begin on the day of the demo, event time.
    pub(super) from: i64,
    pub(super) mean_kwh: f64,
    /// The lowest reading.
    pub(super) low_kwh: f64,
}

/// What a feeder's past says.
#[derive(Clone, Debug)]
pub(super) struct Past {
    /// By meter, in the feeder's order; empty for a meter that was not there.
    pub(super) usual: Vec<Vec<UsualHour>>,
    /// What is lost of the kilowatt-hours `d` that a reading says were delivered: `linear · d +
    /// square · d²`, for a gauge that is off and a cable that gets warm.
    pub(super) loss_linear: f64,
    pub(super) loss_square: f64,
}

/// Kilowatt-hours of one reading at so many watts.
pub(super) fn kwh_of(watts: f64) -> f64 {
    watts * INTERVAL_MS as f64 / HOUR_MS as f64 / 1000.0
}

/// The past of all feeders.
pub(super) fn of(world: &World) -> Vec<Past> {
    let threads = thread::available_parallelism().map_or(1, usize::from).min(8);
    let share = world.feeders.len().div_ceil(threads).max(1);
    thread::scope(|scope| {
        let work = |feeders: &'_ [Feeder]| -> Vec<Past> {
            feeders.iter().map(|feeder| of_feeder(world, feeder)).collect()
        };
        let threads: Vec<_> =
            world.feeders.chunks(share).map(|feeders| scope.spawn(move || work(feeders))).collect();
        // A thread that panicked found a bug; so does this one.
        threads.into_iter().flat_map(|t| t.join().expect("the past of feeders")).collect()
    })
}

fn of_feeder(world: &World, feeder: &Feeder) -> Past {
    let first = world.start - world.start.rem_euclid(HOUR_MS);
    let hours = (world.end - first).div_euclid(HOUR_MS) + 1;
    let ticks = (HOUR_MS / INTERVAL_MS) as usize;
    let mut usual = Vec::new();
    let mut loads = vec![0.0; DAYS as usize * hours as usize * ticks];
    for meter in feeder.meters.clone() {
        if matches!(world.meters[meter].fate, Fate::Added { .. }) {
            usual.push(Vec::new());
            continue;
        }
        let mut home = Home::drawn(world.spec.seed, meter as u64);
        let mut means = vec![0.0; hours as usize];
        let mut lows = vec![f64::INFINITY; hours as usize];
        let mut load = loads.iter_mut();
        for day in 0..DAYS {
            home.begin_day(world.spec.seed, meter as u64, day + 1);
            for at in 0..ticks as i64 {
                // An hour earlier: what is on when the first hour begins.
                home.watts(first - HOUR_MS + at * INTERVAL_MS, 1.0);
            }
            for hour in 0..hours as usize {
                for tick in 1..=ticks {
                    let at = first + hour as i64 * HOUR_MS + tick as i64 * INTERVAL_MS;
                    let watts = home.watts(at, 1.0);
                    means[hour] += watts / (DAYS as usize * ticks) as f64;
                    lows[hour] = watts.min(lows[hour]);
                    if let Some(load) = load.next() {
                        *load += watts;
                    }
                }
            }
        }
        let hour = |(hour, (mean, low)): (usize, (f64, f64))| UsualHour {
            from: first + hour as i64 * HOUR_MS,
            mean_kwh: kwh_of(mean),
            low_kwh: kwh_of(low),
        };
        usual.push(means.into_iter().zip(lows).enumerate().map(hour).collect());
    }
    let points = loads.iter().map(|load| (kwh_of(feeder.delivered(*load)), kwh_of(*load)));
    let (loss_linear, loss_square) =
        fit(points.map(|(delivered, used)| (delivered, delivered - used)));
    Past { usual, loss_linear, loss_square }
}

/// Least squares of `y = a · x + b · x²`; zeros where the points say nothing.
fn fit(points: impl Iterator<Item = (f64, f64)>) -> (f64, f64) {
    let [mut xx, mut xxx, mut xxxx, mut xy, mut xxy] = [0.0; 5];
    for (x, y) in points {
        let square = x * x;
        xx += square;
        xxx += square * x;
        xxxx += square * square;
        xy += x * y;
        xxy += square * y;
    }
    let determinant = xx * xxxx - xxx * xxx;
    if determinant.abs() <= 1e-12 * xx * xxxx {
        return (0.0, 0.0);
    }
    ((xy * xxxx - xxy * xxx) / determinant, (xx * xxy - xxx * xy) / determinant)
}

#[cfg(test)]
mod tests {
    use super::super::world::WorldSpec;
    use super::*;

    #[test]
    fn a_fit_finds_what_made_the_points() {
        let points = (1..20).map(|i| f64::from(i) / 10.0).map(|x| (x, 0.01 * x + 0.2 * x * x));
        let (a, b) = fit(points);
        assert!((a - 0.01).abs() < 1e-9 && (b - 0.2).abs() < 1e-9, "{a} {b}");
        assert_eq!(fit(std::iter::empty()), (0.0, 0.0));
    }

    #[test]
    fn the_past_has_every_hour_of_the_demo_and_explains_the_losses() {
        let world = World::drawn(WorldSpec { seed: 1, meters: 60, minutes: 90 });
        let past = of(&world);
        assert_eq!(past.len(), world.feeders.len());
        for (feeder, past) in world.feeders.iter().zip(&past) {
            assert_eq!(past.usual.len(), feeder.meters.len());
            for hours in &past.usual {
                assert!(hours.len() == 2 || hours.is_empty());
                assert!(hours.iter().all(|h| 0.0 < h.low_kwh && h.low_kwh < h.mean_kwh));
            }
            let (load, delivered) = (kwh_of(9000.0), kwh_of(feeder.delivered(9000.0)));
            let lost = past.loss_linear * delivered + past.loss_square * delivered * delivered;
            assert!((delivered - lost - load).abs() < 0.002 * load, "{delivered} {lost} {load}");
        }
    }
}
