//! Exact sums against big integers, in any order, through merges and evictions.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn sums(values: &[f64]) -> FloatSums {
    let mut sums = FloatSums::default();
    sums.grow(1);
    sums.add_each(values.iter().map(|&x| (0, x)));
    sums
}

fn sum(values: &[f64]) -> f64 {
    sums(values).sum(0)
}

/// Shewchuk's sum of partials, as Python's `math.fsum` does it.
fn fsum(values: &[f64]) -> f64 {
    let mut partials: Vec<f64> = Vec::new();
    for &value in values {
        let (mut x, mut kept) = (value, Vec::new());
        for &partial in &partials {
            let (mut big, mut small) = (x, partial);
            if big.abs() < small.abs() {
                std::mem::swap(&mut big, &mut small);
            }
            let high = big + small;
            let low = small - (high - big);
            if low != 0.0 {
                kept.push(low);
            }
            x = high;
        }
        if x != 0.0 {
            kept.push(x);
        }
        partials = kept;
    }
    let Some(mut high) = partials.pop() else { return 0.0 };
    let mut low = 0.0;
    while let Some(next) = partials.pop() {
        let before = high;
        high = before + next;
        low = next - (high - before);
        if low != 0.0 {
            break;
        }
    }
    let next = partials.last().copied().unwrap_or(0.0);
    if low < 0.0 && next < 0.0 || low > 0.0 && next > 0.0 {
        let (twice, rounded) = (low * 2.0, high + low * 2.0);
        if twice == rounded - high {
            high = rounded;
        }
    }
    high
}

/// Doubles of all magnitudes that a sum of 60 cannot overflow, and many like each other.
fn doubles() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => -1e5..1e5_f64,
        2 => (any::<u64>(), 0..2000_u64).prop_map(|(bits, exponent)| {
            f64::from_bits(bits & !(0x7ff << 52) | exponent << 52)
        }),
        2 => (any::<u32>(), 0..200_i32).prop_map(|(m, e)| f64::from(m) * 2_f64.powi(e - 100)),
        1 => prop_oneof![Just(0.0), Just(-0.0), Just(131_072.0), Just(5e-324), Just(1e300)],
    ]
}

/// The same, and what is no number.
fn any_doubles() -> impl Strategy<Value = f64> {
    prop_oneof![
        20 => doubles(),
        1 => prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(f64::NEG_INFINITY)],
    ]
}

fn forms() -> impl Strategy<Value = Form> {
    prop_oneof![Just(Form::Equal), Just(Form::AsKept), Just(Form::Narrow)]
}

#[test]
fn what_is_not_ordinary() {
    let inf = f64::INFINITY;
    assert_eq!(sum(&[]).to_bits(), 0.0_f64.to_bits());
    assert_eq!(sum(&[-0.0]).to_bits(), 0.0_f64.to_bits());
    assert_eq!(sum(&[inf, 1.0]), inf);
    assert!(sum(&[inf, -inf]).is_nan() && sum(&[f64::NAN, 1.0]).is_nan());
    assert_eq!(sum(&[f64::MAX, f64::MAX]), inf);
    assert_eq!(sum(&[f64::MAX, f64::MAX, -f64::MAX]), f64::MAX);
    assert_eq!(sum(&[5e-324, 5e-324]), 1e-323);
    assert_eq!(sum(&[1e308, 1.0, -1e308]), 1.0);
    assert_eq!(sum(&[0.1; 10]), 1.0);
    // Halves go to even, and the last bit of another bin decides.
    let half = 2_f64.powi(-53);
    assert_eq!(sum(&[1.0, half]), 1.0);
    assert_eq!(sum(&[1.0, half, 5e-324]), 1.0 + 2.0 * half);
    assert_eq!(sum(&[-1.0, -half, -5e-324]), -1.0 - 2.0 * half);
}

#[test]
fn infinities_can_be_taken_away_again() {
    let mut sums = sums(&[2.5]);
    sums.add_times(0, f64::INFINITY, 1);
    sums.add_times(0, f64::NAN, 1);
    sums.add_times(0, f64::NAN, -1);
    assert_eq!(sums.sum(0), f64::INFINITY);
    sums.add_times(0, f64::INFINITY, -1);
    assert_eq!((sums.sum(0), sums.count(0)), (2.5, 1));
}

/// One bin would overflow after 2^43 of these: it spills.
#[test]
fn bins_overflow_into_the_table_beside() {
    let mut sums = sums(&[]);
    for _ in 0..5 {
        sums.add_times(0, 131_071.0, 1 << 60);
    }
    sums.add_times(0, 1.0, 1);
    assert_eq!(sums.sum(0), 5.0 * 131_071.0 * 2_f64.powi(60));
    for _ in 0..5 {
        sums.add_times(0, 131_071.0, -(1 << 60));
    }
    assert_eq!(sums.sum(0), 1.0);
    assert_eq!(sums.count(0), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_sum_is_the_correctly_rounded_one(values in prop::collection::vec(doubles(), 0..60)) {
        prop_assert_eq!(sum(&values).to_bits(), fsum(&values).to_bits());
    }

    #[test]
    fn order_merges_and_evictions_cannot_be_seen(
        values in prop::collection::vec(any_doubles(), 0..40),
        cut in 0..40_usize,
        gone in prop::collection::vec(any_doubles(), 0..20),
        form in forms(),
    ) {
        let cut = cut.min(values.len());
        let mut whole = FloatSums::default();
        whole.grow(3);
        whole.add_each(gone.iter().map(|&x| (0, x)));
        whole.add_each(values[cut..].iter().rev().map(|&x| (0, x)));
        values[..cut].iter().for_each(|&x| whole.add_times(1, x, 1));
        whole.add_each(gone.iter().rev().map(|&x| (2, x)));
        whole.combine(None, 1, 0, 1);
        whole.combine(None, 2, 0, -1);
        let plain = sums(&values);
        prop_assert_eq!(whole.sum(0).to_bits(), plain.sum(0).to_bits());
        prop_assert_eq!(whole.count(0), values.len() as i64);
        prop_assert_eq!(whole.save(0, Form::Equal), plain.save(0, Form::Equal));
        let mut loaded = FloatSums::default();
        loaded.grow(1);
        let (m, e, rest) = plain.save(0, form);
        loaded.load(0, plain.count(0), (m, e, rest.as_deref())).unwrap();
        prop_assert_eq!(loaded.save(0, Form::Equal), plain.save(0, Form::Equal));
        prop_assert_eq!(loaded.sum(0).to_bits(), plain.sum(0).to_bits());
        // Into a cell that holds something.
        let mut merged = sums(&values[..cut]);
        let (m, e, rest) = sums(&values[cut..]).save(0, form);
        merged.load(0, (values.len() - cut) as i64, (m, e, rest.as_deref())).unwrap();
        prop_assert_eq!(merged.save(0, Form::Equal), plain.save(0, Form::Equal));
        prop_assert_eq!(merged.count(0), plain.count(0));
    }

    /// Of integers the variance's numerator is an integer: compare with 128-bit arithmetic.
    #[test]
    fn squares_are_exact(
        values in prop::collection::vec(-1_000_000_000..1_000_000_000_i64, 0..30),
        scale in -200..200_i32,
        form in forms(),
    ) {
        let unit = 2_f64.powi(scale);
        let (mut plain, mut squares) = (FloatSums::default(), SquareSums::default());
        plain.grow(2);
        squares.grow(2);
        for (at, &x) in values.iter().enumerate() {
            plain.add_times(at % 2, x as f64 * unit, 1);
            squares.add(at % 2, x as f64 * unit, 3);
            squares.add(at % 2, x as f64 * unit, -2);
        }
        plain.combine(None, 1, 0, 1);
        squares.combine(None, 1, 0, 1);
        let n = values.len() as i128;
        let total: i128 = values.iter().map(|&x| i128::from(x)).sum();
        let square: i128 = values.iter().map(|&x| i128::from(x) * i128::from(x)).sum();
        let wanted = (n * square - total * total) as f64 * unit * unit;
        let got = ExactBins::spread(values.len() as i64, &plain.exact(0), &squares.exact(0));
        prop_assert_eq!(got, wanted);
        squares.combine(None, 1, 0, -1);
        let mut loaded = SquareSums::default();
        loaded.grow(1);
        let (m, e, rest) = squares.save(0, form);
        loaded.load(0, (m, e, rest.as_deref())).unwrap();
        prop_assert_eq!(loaded.save(0, Form::Equal), squares.save(0, Form::Equal));
    }
}
