//! Reference data that lies beside the stream before it begins: customers, feeders, the long
//! baseline.

use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use super::history::{self, Past};
use super::home::DAY_MS;
use super::instants::iso;
use super::random::Random;
use super::world::{Fate, REGIONS, World};

const STREETS: [&str; 8] = [
    "Mill Lane",
    "Weir Road",
    "Station Street",
    "High Street",
    "Dam Hill",
    "Church Row",
    "Quay Side",
    "Sluice Way",
];

/// Writes `customers.jsonl`, `feeders.jsonl` and `usual_hours.jsonl` to a folder.
pub(super) fn write(world: &World, folder: &Path) -> std::io::Result<()> {
    let past = history::of(world);
    lines(&folder.join("customers.jsonl"), customers(world))?;
    lines(&folder.join("feeders.jsonl"), feeders(world, &past))?;
    lines(&folder.join("usual_hours.jsonl"), usual_hours(world, &past))
}

fn lines(path: &Path, rows: impl Iterator<Item = Value>) -> std::io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    for row in rows {
        writeln!(file, "{row}")?;
    }
    file.flush()
}

/// A version of each meter's customer, two for those that are cut off on the way; substations too,
/// which have none.
fn customers(world: &World) -> impl Iterator<Item = Value> {
    let long_ago = world.start - 400 * DAY_MS;
    let homes = world.meters.iter().enumerate().flat_map(move |(number, meter)| {
        let mut random = Random::of(world.spec.seed, 2 << 32, number as u64);
        let feeder = &world.feeders[meter.feeder];
        let (region, lat, lon) = REGIONS[feeder.region];
        let street = STREETS[random.whole(0, STREETS.len() as i64) as usize];
        let mut row = json!({
            "meter_id": meter.id,
            "valid_from": iso(long_ago),
            "customer_id": format!("customer-{:06}", number + 1),
            "address": format!("{} {street}", random.whole(1, 180)),
            "feeder_id": feeder.id,
            "region": region,
            "lat": (1e5 * (lat + random.between(-0.4, 0.4))).round() / 1e5,
            "lon": (1e5 * (lon + random.between(-0.4, 0.4))).round() / 1e5,
            "account_status": if random.chance(0.03) { "in arrears" } else { "active" },
            "meter_connected": true,
            "is_substation": false,
        });
        let mut versions = Vec::new();
        match meter.fate {
            Fate::Disconnected { from, .. } => {
                if from >= world.start {
                    versions.push(row.clone());
                    row["valid_from"] = json!(iso(from));
                }
                row["account_status"] = json!("closed");
                row["meter_connected"] = json!(false);
            }
            Fate::Added { from } => row["valid_from"] = json!(iso(from)),
            _ => {}
        }
        versions.push(row);
        versions
    });
    let substations = world.feeders.iter().enumerate().map(move |(number, feeder)| {
        json!({
            "meter_id": format!("substation-{number:04}"),
            "valid_from": iso(long_ago),
            "feeder_id": feeder.id,
            "region": REGIONS[feeder.region].0,
            "meter_connected": true,
            "is_substation": true,
        })
    });
    homes.chain(substations)
}

/// A version of each feeder for each number of homes that are connected.
fn feeders<'a>(world: &'a World, past: &'a [Past]) -> impl Iterator<Item = Value> + 'a {
    let long_ago = world.start - 400 * DAY_MS;
    world.feeders.iter().zip(past).flat_map(move |(feeder, past)| {
        let mut changes: Vec<(i64, i64)> = vec![(long_ago, 0)];
        for meter in feeder.meters.clone() {
            match world.meters[meter].fate {
                Fate::Disconnected { from, .. } => changes.extend([(long_ago, 1), (from, -1)]),
                Fate::Added { from } => changes.push((from, 1)),
                _ => changes.push((long_ago, 1)),
            }
        }
        changes.sort_unstable();
        let mut homes = 0;
        let mut versions = Vec::new();
        for at in changes.chunk_by(|a, b| a.0 == b.0) {
            homes += at.iter().map(|change| change.1).sum::<i64>();
            versions.push(json!({
                "feeder_id": feeder.id,
                "valid_from": iso(at[0].0),
                "homes": homes,
                "loss_linear": past.loss_linear,
                "loss_square": past.loss_square,
            }));
        }
        versions
    })
}

/// The long baseline: a version an hour.
fn usual_hours<'a>(world: &'a World, past: &'a [Past]) -> impl Iterator<Item = Value> + 'a {
    let of_feeders = world.feeders.iter().zip(past);
    let of_meters = of_feeders.flat_map(|(feeder, past)| feeder.meters.clone().zip(&past.usual));
    of_meters.flat_map(move |(meter, hours)| {
        hours.iter().map(move |hour| {
            json!({
                "meter_id": world.meters[meter].id,
                "valid_from": iso(hour.from),
                "usual_kwh": (1e6 * hour.mean_kwh).round() / 1e6,
                "low_kwh": (1e6 * hour.low_kwh).round() / 1e6,
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::super::world::WorldSpec;
    use super::*;

    #[test]
    fn a_home_that_is_cut_off_has_two_versions_and_leaves_its_feeder() {
        let mut world = World::drawn(WorldSpec { seed: 1, meters: 40, minutes: 60 });
        world.meters.iter_mut().for_each(|m| m.fate = Fate::Honest);
        let from = world.start + 60_000;
        world.meters[3].fate = Fate::Disconnected { from, talks: true };
        let of = |rows: Vec<Value>, key: &str, id: &str| -> Vec<Value> {
            rows.into_iter().filter(|row| row[key] == id).collect()
        };
        let versions = of(customers(&world).collect(), "meter_id", "meter-000003");
        let connected: Vec<_> = versions.iter().map(|v| v["meter_connected"].as_bool()).collect();
        assert_eq!(connected, [Some(true), Some(false)]);
        assert_eq!(versions[1]["valid_from"], iso(from));
        let past = history::of(&world);
        let feeders = of(feeders(&world, &past).collect(), "feeder_id", "feeder-0000");
        let homes: Vec<_> = feeders.iter().map(|f| f["homes"].as_u64()).collect();
        let all = world.feeders[0].meters.len() as u64;
        assert_eq!(homes, [Some(all), Some(all - 1)]);
    }
}
