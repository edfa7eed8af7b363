//! What the meters of a region send, message by message in the order of sending, with all that goes
//! wrong on the way: disorder, delays, repetitions, nonsense.
//!
//! A home's load is constant over the 15 s between two of its readings; a substation is read at
//! the full interval, so what it delivers is each home's two overlapping loads in their
//! proportion.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use super::history::kwh_of;
use super::home::{Home, INTERVAL_MS};
use super::instants::iso;
use super::random::Random;
use super::world::{Fate, MINUTE_MS, REGIONS, World};

/// Delay of the watermark in the scenario's SQL; the truth about late rows depends on it.
pub(super) const DELAY_MS: i64 = 5_000;
/// Windows of the scenario's SQL that the truth about late rows is for.
const USAGE_MS: i64 = 5 * MINUTE_MS;
/// From reading to sending, at least.
const LATENCY_MS: i64 = 250;
// Faults, as shares of the messages.
const DISPLACED: f64 = 0.02;
const DELAYED: f64 = 0.001;
const TWICE: f64 = 0.002;
const NONSENSE: f64 = 0.0005;

/// A message as it is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Message {
    /// Event time at which it is sent.
    pub(super) sent: i64,
    pub(super) topic: String,
    pub(super) payload: Vec<u8>,
}

/// What is true of the messages of a region.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) messages: u64,
    /// No reading can be made of these.
    pub(super) bad: u64,
    /// Sent a second time.
    pub(super) twice: u64,
    /// Readings too late for their five minutes.
    pub(super) late: u64,
}

impl Sent {
    /// Adds another region's.
    pub(super) fn add(&mut self, other: Sent) {
        self.messages += other.messages;
        self.bad += other.bad;
        self.twice += other.twice;
        self.late += other.late;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Pending {
    sent: i64,
    number: u64,
    /// Event time of the reading, `None` if the message is nonsense.
    ts: Option<i64>,
    topic: String,
    payload: Vec<u8>,
}

struct Source {
    meter: usize,
    home: Home,
    /// Watts over the interval before.
    before: f64,
}

/// The messages of one region, in order.
pub(super) struct RegionStream<'a> {
    world: &'a World,
    feeders: Vec<usize>,
    sources: Vec<Source>,
    random: Random,
    tick: i64,
    ticks: i64,
    numbered: u64,
    pending: BinaryHeap<Reverse<Pending>>,
    newest: Option<i64>,
    sent: Sent,
}

impl<'a> RegionStream<'a> {
    /// The stream of a region.
    pub(super) fn of(world: &'a World, region: usize) -> RegionStream<'a> {
        let seed = world.spec.seed;
        let here = |f: &usize| world.feeders[*f].region == region;
        let feeders: Vec<usize> = (0..world.feeders.len()).filter(here).collect();
        let meters = feeders.iter().flat_map(|f| world.feeders[*f].meters.clone());
        let source = |meter: usize| {
            let mut home = Home::drawn(seed, meter as u64);
            home.begin_day(seed, meter as u64, 0);
            // What is on when the demo begins was begun before.
            for tick in -240..0 {
                let at = world.start + tick * INTERVAL_MS;
                home.watts(at, world.presence(meter, at));
            }
            Source { meter, home, before: 0.0 }
        };
        RegionStream {
            sources: meters.map(source).collect(),
            feeders,
            random: Random::of(seed, 1 << 32, region as u64),
            tick: 0,
            ticks: (world.end - world.start) / INTERVAL_MS,
            numbered: 0,
            pending: BinaryHeap::new(),
            newest: None,
            sent: Sent::default(),
            world,
        }
    }

    /// What was sent so far.
    pub(super) fn sent(&self) -> Sent {
        self.sent
    }

    /// Readings of one interval, feeder by feeder.
    fn read(&mut self) {
        let (world, tick) = (self.world, self.tick);
        let at = world.start + tick * INTERVAL_MS;
        let mut loads = vec![0.0; world.feeders.len()];
        let mut sources = std::mem::take(&mut self.sources);
        for source in &mut sources {
            let meter = &world.meters[source.meter];
            let ts = at + meter.phase_ms;
            let (drawn, shown) = self.draw(source, ts);
            let part = meter.phase_ms as f64 / INTERVAL_MS as f64;
            loads[meter.feeder] += part * source.before + (1.0 - part) * drawn;
            source.before = drawn;
            if let Some(watts) = shown {
                self.send(meter.feeder, &meter.id, ts, kwh_of(watts));
            }
        }
        self.sources = sources;
        for feeder in self.feeders.clone() {
            let wobble = 1.0 + 0.001 * self.random.normal();
            let delivered = world.feeders[feeder].delivered(loads[feeder]) * wobble;
            // Before the first full interval there is nothing to read.
            if tick > 0 {
                let id = format!("substation-{feeder:04}");
                self.send(feeder, &id, at, kwh_of(delivered));
            }
        }
        self.tick += 1;
    }

    /// Watts drawn by a home, and what its meter shows, `None` if it sends nothing.
    fn draw(&self, source: &mut Source, ts: i64) -> (f64, Option<f64>) {
        let watts = source.home.watts(ts, self.world.presence(source.meter, ts));
        match &self.world.meters[source.meter].fate {
            Fate::Thief { during, keeps } if during.contains(&ts) => (watts, Some(watts * keeps)),
            Fate::Disconnected { from, talks } if ts >= *from => (0.0, talks.then_some(0.0)),
            Fate::Added { from } if ts < *from => (0.0, None),
            Fate::Silent { during } if during.contains(&ts) => (watts, None),
            _ => (watts, Some(watts)),
        }
    }

    fn send(&mut self, feeder: usize, id: &str, ts: i64, kwh: f64) {
        let region = REGIONS[self.world.feeders[feeder].region].0;
        let topic = format!("grid/{region}/{}/{id}", self.world.feeders[feeder].id);
        let volts = 230.0 + 3.0 * self.random.between(-1.0, 1.0);
        let text = format!(
            r#"{{"meter_id":"{id}","ts":"{}","kwh":{kwh:.6},"voltage":{volts:.1}}}"#,
            iso(ts)
        );
        let mut sent = ts + LATENCY_MS;
        if self.random.chance(DISPLACED) {
            sent += self.random.whole(0, DELAY_MS - 2 * LATENCY_MS);
        } else if self.random.chance(DELAYED) {
            sent += DELAY_MS + self.random.whole(10_000, 600_000);
        }
        if self.random.chance(NONSENSE) {
            let bad = self.nonsense(&text);
            self.queue(sent, None, &topic, bad);
            return;
        }
        if self.random.chance(TWICE) {
            let again = sent + self.random.whole(0, 30_000);
            self.sent.twice += 1;
            self.queue(again, Some(ts), &topic, text.clone().into_bytes());
        }
        self.queue(sent, Some(ts), &topic, text.into_bytes());
    }

    /// Something that is no reading.
    fn nonsense(&mut self, text: &str) -> Vec<u8> {
        match self.random.whole(0, 4) {
            0 => text.as_bytes()[..text.len() * 2 / 3].to_vec(),
            1 => text.replace("\"kwh\":", "\"kwh\":\"n/a\",\"was\":").into_bytes(),
            2 => b"\xff\xfe\x00rebooting".to_vec(),
            _ => text.replace("\"ts\":\"20", "\"ts\":\"soon 20").into_bytes(),
        }
    }

    fn queue(&mut self, sent: i64, ts: Option<i64>, topic: &str, payload: Vec<u8>) {
        self.numbered += 1;
        let (number, topic) = (self.numbered, topic.to_owned());
        self.pending.push(Reverse(Pending { sent, number, ts, topic, payload }));
    }

    /// Counts a message that leaves, by the rules of the watermark.
    fn count(&mut self, ts: Option<i64>) {
        self.sent.messages += 1;
        let Some(ts) = ts else {
            self.sent.bad += 1;
            return;
        };
        let window_end = ts - ts.rem_euclid(USAGE_MS) + USAGE_MS;
        let late = self.newest.is_some_and(|newest| window_end - 1 <= newest - DELAY_MS);
        self.sent.late += u64::from(late);
        self.newest = self.newest.max(Some(ts));
    }
}

impl Iterator for RegionStream<'_> {
    type Item = Message;

    fn next(&mut self) -> Option<Message> {
        // A reading of interval k is sent after the interval's begin, so all before it are known.
        let known = |stream: &Self| {
            let begin = stream.world.start + stream.tick * INTERVAL_MS;
            stream.pending.peek().is_some_and(|Reverse(first)| first.sent < begin)
        };
        while self.tick < self.ticks && !known(self) {
            self.read();
        }
        let Reverse(first) = self.pending.pop()?;
        // What was still under way at the end never arrives.
        if first.sent > self.world.end + DELAY_MS {
            return None;
        }
        self.count(first.ts);
        Some(Message { sent: first.sent, topic: first.topic, payload: first.payload })
    }
}

#[cfg(test)]
mod tests {
    use super::super::instants;
    use super::super::world::WorldSpec;
    use super::*;

    struct Reading {
        meter_id: String,
        ts: i64,
        kwh: f64,
    }

    /// What can be read of a message.
    fn reading(message: &Message) -> Option<Reading> {
        let row: serde_json::Value = serde_json::from_slice(&message.payload).ok()?;
        Some(Reading {
            meter_id: row["meter_id"].as_str()?.to_owned(),
            ts: instants::parse(row["ts"].as_str()?)?,
            kwh: row["kwh"].as_f64()?,
        })
    }

    fn world(minutes: i64) -> World {
        World::drawn(WorldSpec { seed: 7, meters: 400, minutes })
    }

    #[test]
    fn messages_repeat_are_in_order_and_their_counts_are_true() {
        let world = world(40);
        let mut stream = RegionStream::of(&world, 2);
        let messages: Vec<Message> = stream.by_ref().collect();
        assert!(messages.is_sorted_by_key(|m| m.sent));
        assert!(messages == RegionStream::of(&world, 2).collect::<Vec<_>>());
        assert!(messages.iter().all(|m| m.topic.starts_with("grid/east/feeder-")));
        let sent = stream.sent();
        assert_eq!(sent.messages, messages.len() as u64);
        let bad = messages.iter().filter(|m| reading(m).is_none()).count() as u64;
        assert!(bad > 0 && bad == sent.bad, "{bad} {sent:?}");
        let mut mark = i64::MIN;
        let mut late = 0;
        for reading in messages.iter().filter_map(reading) {
            let window_end = reading.ts.div_euclid(USAGE_MS) * USAGE_MS + USAGE_MS;
            late += u64::from(window_end - 1 <= mark);
            mark = mark.max(reading.ts - DELAY_MS);
        }
        assert!(late > 0 && late == sent.late, "{late} {sent:?}");
    }

    #[test]
    fn a_substation_delivers_what_homes_draw_and_a_thief_hides_what_he_should() {
        let mut world = world(60);
        world.meters.iter_mut().for_each(|m| m.fate = Fate::Honest);
        let total = |world: &World, id: &str| -> f64 {
            let messages = (0..REGIONS.len()).flat_map(|r| RegionStream::of(world, r));
            let readings = messages.filter_map(|m| reading(&m));
            readings.filter(|r| r.meter_id.starts_with(id)).map(|r| r.kwh).sum()
        };
        let (homes, delivered) = (total(&world, "meter"), total(&world, "substation"));
        assert!((1.0..1.06).contains(&(delivered / homes)), "{delivered} {homes}");
        let honest = total(&world, "meter-000011");
        world.meters[11].fate = Fate::Thief { during: 0..i64::MAX, keeps: 0.25 };
        let shown = total(&world, "meter-000011");
        assert!((shown / honest - 0.25).abs() < 0.02, "{shown} {honest}");
        let still = total(&world, "substation");
        assert!((still / delivered - 1.0).abs() < 1e-3, "{still} {delivered}");
    }

    #[test]
    fn honest_homes_are_spiky() {
        let mut world = world(60);
        world.meters.iter_mut().for_each(|m| m.fate = Fate::Honest);
        let mut by_meter: std::collections::BTreeMap<String, Vec<f64>> = Default::default();
        for reading in (0..4).flat_map(|r| RegionStream::of(&world, r)).filter_map(|m| reading(&m))
        {
            if reading.meter_id.starts_with("meter") {
                by_meter.entry(reading.meter_id).or_default().push(reading.kwh);
            }
        }
        let below_half = |all: &Vec<f64>| {
            let mean = all.iter().sum::<f64>() / all.len() as f64;
            all.iter().filter(|kwh| **kwh < mean / 2.0).count() as f64 / all.len() as f64
        };
        let share = by_meter.values().map(below_half).sum::<f64>() / by_meter.len() as f64;
        assert!((0.05..0.3).contains(&share), "{share}");
    }
}
