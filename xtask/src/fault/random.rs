//! Dice that a seed replays: SplitMix64 (Steele, Lea, Flood 2014).

use std::time::Duration;

/// A sequence of numbers.
pub(super) struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub(super) fn seeded(seed: u64) -> Random {
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A time from `least` on and below `most`, in milliseconds.
    pub(super) fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(least + self.below(most - least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_replays() {
        let numbers = |seed| {
            let mut random = Random::seeded(seed);
            [(); 5].map(|()| random.below(1_000))
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
        let mut random = Random::seeded(1);
        for _ in 0..1_000 {
            let time = random.millis(300, 2_000).as_millis();
            assert!((300..2_000).contains(&time), "{time}");
        }
    }
}
