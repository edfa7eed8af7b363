//! Random numbers that depend on a seed alone: xoshiro256++, seeded by splitmix64.
//!
//! Source: Blackman and Vigna, "Scrambled linear pseudorandom number generators" (2021). Nothing
//! here is fit for secrets. Each meter draws from a stream of its own, so that what one meter does
//! never depends on how many others there are.

/// A stream of random numbers.
#[derive(Clone, Debug)]
pub(super) struct Random {
    state: [u64; 4],
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// The stream `(seed, purpose, number)`; different triples give unrelated streams.
    pub(super) fn of(seed: u64, purpose: u64, number: u64) -> Random {
        let mut state = seed;
        for part in [purpose, number] {
            state = splitmix(&mut state) ^ part;
        }
        Random { state: std::array::from_fn(|_| splitmix(&mut state)) }
    }

    fn next(&mut self) -> u64 {
        let [a, b, c, d] = self.state;
        let drawn = a.wrapping_add(d).rotate_left(23).wrapping_add(a);
        let (c, d) = (c ^ a, d ^ b);
        self.state = [a ^ d, b ^ c, c ^ (b << 17), d.rotate_left(45)];
        drawn
    }

    /// Uniform in [0, 1).
    pub(super) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub(super) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Uniform in low .. high, `low` if that is empty.
    pub(super) fn whole(&mut self, low: i64, high: i64) -> i64 {
        low + self.between(0.0, (high - low).max(1) as f64) as i64
    }

    /// True with this probability.
    pub(super) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    /// Normal with mean 0 and variance 1: by Box and Muller, the second value is thrown away.
    pub(super) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Puts values in a random order (Fisher and Yates).
    pub(super) fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            let other = self.whole(0, last as i64 + 1) as usize;
            values.swap(last, other);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_repeat_and_differ() {
        let draw = |seed, number| {
            let mut random = Random::of(seed, 1, number);
            [random.unit(), random.unit()]
        };
        assert_eq!(draw(1, 1), draw(1, 1));
        assert_ne!(draw(1, 1), draw(1, 2));
        assert_ne!(draw(1, 1), draw(2, 1));
    }

    #[test]
    fn moments_are_right() {
        let mut random = Random::of(3, 0, 0);
        let n = 100_000;
        let normals: Vec<f64> = (0..n).map(|_| random.normal()).collect();
        let mean = normals.iter().sum::<f64>() / n as f64;
        let variance = normals.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.03, "{mean} {variance}");
        let units = (0..n).map(|_| random.unit()).sum::<f64>() / n as f64;
        assert!((units - 0.5).abs() < 0.01, "{units}");
    }

    #[test]
    fn shuffling_keeps_all() {
        let mut values: Vec<u32> = (0..50).collect();
        Random::of(4, 0, 0).shuffle(&mut values);
        assert_ne!(values, (0..50).collect::<Vec<_>>());
        values.sort_unstable();
        assert_eq!(values, (0..50).collect::<Vec<_>>());
    }
}
