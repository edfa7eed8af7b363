//! Event time, epochs and watermarks as plain numbers with names.
//!
//! Event times, marks and watermarks are milliseconds since 1970-01-01T00:00:00Z in an `i64`.
//! Epochs are engine milliseconds in a `u64`: the timely timestamp. The two never mix.

/// Event time, mark or watermark in milliseconds since the Unix epoch.
pub type Millis = i64;

/// A mark or watermark that has not been set: nothing is late against it, nothing fires by it.
pub const MARK_NONE: Millis = i64::MIN;

/// The watermark after the last row of a bounded input: everything fires.
pub const MARK_END: Millis = i64::MAX;

/// The timely timestamp: what a query does becomes visible epoch by epoch.
pub type Epoch = u64;

/// `floor(ts / size) * size` for any sign, shifted by `offset`.
pub fn floor_to(ts: Millis, size: Millis, offset: Millis) -> Millis {
    let shifted = ts.saturating_sub(offset);
    shifted.div_euclid(size).saturating_mul(size).saturating_add(offset)
}

/// `mark - amount`, where an unset or final mark stays what it is.
pub fn mark_less(mark: Millis, amount: Millis) -> Millis {
    match mark {
        MARK_NONE | MARK_END => mark,
        _ => mark.saturating_sub(amount).max(MARK_NONE + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_towards_minus_infinity() {
        assert_eq!(floor_to(-1, 10, 0), -10);
        assert_eq!(floor_to(19, 10, 0), 10);
        assert_eq!(floor_to(19, 10, 15), 15);
        assert_eq!(floor_to(14, 10, 15), 5);
    }

    #[test]
    fn unset_and_final_marks_stay() {
        assert_eq!(mark_less(MARK_NONE, 5), MARK_NONE);
        assert_eq!(mark_less(MARK_END, 5), MARK_END);
        assert_eq!(mark_less(7, 5), 2);
    }
}
