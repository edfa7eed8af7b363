//! When a group of whole epochs is sent.
//!
//! # Rule
//! At the end of an epoch behind which no other waits, once the rest since the last group is over;
//! or when the group is full. So rows that come after a pause do not wait, those that come within
//! the rest wait until it is over and no longer (the shard flushes then), and where epochs come
//! faster than transactions are made, all that wait share one. A single epoch is never cut.

use std::time::{Duration, Instant};

use weir_engine::sink::ShardEnd;

/// Time between groups.
pub(crate) struct Pace {
    /// The least time from the end of one group to the beginning of the next.
    rest: Duration,
    sent_at: Option<Instant>,
}

impl Pace {
    /// A pace with this rest; before the first group there is none.
    pub(crate) fn with_rest(rest: Duration) -> Pace {
        Pace { rest, sent_at: None }
    }

    /// A group was sent.
    pub(crate) fn sent(&mut self) {
        self.sent_at = Some(Instant::now());
    }

    /// What is left of the rest.
    pub(crate) fn left(&self) -> Duration {
        self.sent_at.map_or(Duration::ZERO, |sent| self.rest.saturating_sub(sent.elapsed()))
    }

    /// Whether a group that is not full is sent at this end of an epoch.
    pub(crate) fn is_due(&self, end: ShardEnd) -> bool {
        !end.more && self.left().is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_wait_for_the_rest_and_for_epochs_that_are_there() {
        let mut pace = Pace::with_rest(Duration::from_secs(60));
        let (last, follows) = (ShardEnd::at(1, 0), ShardEnd { more: true, ..ShardEnd::at(1, 0) });
        assert!(pace.is_due(last) && pace.left().is_zero());
        assert!(!pace.is_due(follows));
        pace.sent();
        assert!(!pace.is_due(last) && pace.left() > Duration::from_secs(50));
        let mut without = Pace::with_rest(Duration::ZERO);
        without.sent();
        assert!(without.is_due(last) && !without.is_due(follows));
    }
}
