//! What came of the demo, in words: files, thieves, recall, false alarms, delays; the literal rule
//! beside the hardened one.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use super::judge::{Verdict, judge, quantile};
use super::results::{self, Suspects};
use super::screen::{Facts, clock, grouped};
use super::stream::Sent;
use super::world::World;

/// What is known at the end.
pub(super) struct Outcome<'a> {
    pub(super) world: &'a World,
    /// Folder of the results.
    pub(super) folder: &'a Path,
    pub(super) facts: Facts,
    /// The truth about what was sent.
    pub(super) sent: Sent,
    /// The event time that was reached.
    pub(super) shown: i64,
}

impl Outcome<'_> {
    /// The whole report, from the files.
    ///
    /// # Errors
    /// Files that cannot be read.
    pub(super) fn text(&self) -> Result<String, String> {
        let suspects = Suspects::of(self.folder.join("suspects")).fresh()?;
        let suspicions = suspects.iter().filter_map(results::Suspect::suspicion).collect();
        let hardened = judge(self.world, suspicions, self.shown);
        let flags = results::literal(&self.folder.join("literal_flags"))?;
        let flagged = flags.len() as u64;
        let literal = judge(self.world, flags, self.shown);
        let mut text = self.files()?;
        text.push_str(&thieves(&hardened));
        text.push_str(&rule("hardened rule", &hardened));
        for alarm in &hardened.false_alarms {
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "  false alarm: {}, {}, from {} to {}",
                alarm.meter_id,
                alarm.truth,
                clock(alarm.first),
                clock(alarm.last)
            );
        }
        text.push_str(&rule("literal rule", &literal));
        let meters: BTreeSet<&str> =
            literal.false_alarms.iter().map(|a| a.meter_id.as_str()).collect();
        let _ = writeln!(
            text,
            "  it flags {:.1} % of all readings, those of {} honest meters among them",
            100.0 * flagged as f64 / self.facts.readings.max(1) as f64,
            grouped(meters.len() as u64)
        );
        Ok(text)
    }

    fn files(&self) -> Result<String, String> {
        let mut text = format!("\nfiles in {}\n", self.folder.display());
        text.push_str(&self.facts.written());
        let late = results::lines(&self.folder.join("late_readings"))?;
        let bad = results::lines(&self.folder.join("bad_readings"))?;
        let _ = writeln!(
            text,
            "  of {} messages sent, {} came twice; {} rows were late (truth: {}), \
             {} were bad (truth: {})",
            grouped(self.sent.messages),
            grouped(self.sent.twice),
            grouped(late),
            grouped(self.sent.late),
            grouped(bad),
            grouped(self.sent.bad)
        );
        Ok(text)
    }
}

fn thieves(verdict: &Verdict) -> String {
    let mut text = String::from("\nthieves, by the truth\n");
    for thief in &verdict.thieves {
        let found = match thief.found {
            Some(at) => {
                let minutes = (at - thief.from) as f64 / 60_000.0;
                format!("found at {}, after {minutes:.1} min", clock(at))
            }
            None if thief.due => "not found".to_owned(),
            None => "not found (under 15 min within the demo)".to_owned(),
        };
        let _ = writeln!(
            text,
            "  {} hides {:2.0} % from {} to {}: {found}",
            thief.meter_id,
            100.0 * thief.hidden,
            clock(thief.from),
            clock(thief.until)
        );
    }
    text
}

/// Recall, false alarms and delays of a rule.
fn rule(name: &str, verdict: &Verdict) -> String {
    let (due, found) = verdict.recall();
    let delays = verdict.delays();
    let minutes = |part: f64| match quantile(&delays, part) {
        Some(delay) => format!("{:.1} min", delay as f64 / 60_000.0),
        None => "none".to_owned(),
    };
    let recall = match due {
        0 => "no thief was due".to_owned(),
        _ => {
            let share = 100.0 * found as f64 / due as f64;
            format!("{found} of {due} thieves found (recall {share:.0} %)")
        }
    };
    let alarms = verdict.false_alarms.len() as u64;
    format!(
        "\n{name}: {recall}, {} false alarm{} in {} episodes, delay p50 {}, p99 {}\n",
        grouped(alarms),
        if alarms == 1 { "" } else { "s" },
        grouped(verdict.episodes as u64),
        minutes(0.5),
        minutes(0.99)
    )
}

#[cfg(test)]
mod tests {
    use super::super::judge::Suspicion;
    use super::super::world::{Fate, MINUTE_MS, WorldSpec};
    use super::*;

    #[test]
    fn a_verdict_in_words() {
        let mut world = World::drawn(WorldSpec { seed: 1, meters: 3, minutes: 60 });
        let at = |minutes: i64| world.start + minutes * MINUTE_MS;
        let (during, said) = (at(10)..at(40), (at(0), at(17)));
        let alarm = Suspicion { meter_id: "meter-000000".to_owned(), from: at(1), until: at(2) };
        let right = Suspicion { meter_id: "meter-000001".to_owned(), from: said.0, until: said.1 };
        world.meters.iter_mut().for_each(|m| m.fate = Fate::Honest);
        world.meters[1].fate = Fate::Thief { during, keeps: 0.25 };
        let verdict = judge(&world, vec![alarm, right], world.end);
        expect_test::expect![[r#"

            thieves, by the truth
              meter-000001 hides 75 % from 17:10:00 to 17:40:00: found at 17:17:00, after 7.0 min

            it: 1 of 1 thieves found (recall 100 %), 1 false alarm in 2 episodes, delay p50 7.0 min, p99 7.0 min
        "#]]
        .assert_eq(&format!("{}{}", thieves(&verdict), rule("it", &verdict)));
    }
}
