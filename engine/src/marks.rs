//! Marks: the watermark of one split, row by row.
//!
//! # Invariant
//! A row's mark is the greatest event time seen earlier in its split, less the delay; rows that the
//! future guard holds back do not count. It depends on the split's rows alone.
//!
//! # Cost
//! One pass that keeps a running maximum and looks whether any row has `ts <= mark + 1`; only then
//! a second pass writes the marks down. About a nanosecond a row for data that is nearly in order.

use crate::time::{MARK_NONE, Millis, mark_less};

/// The running mark of a split.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplitMark {
    greatest: Millis,
    delay: Millis,
    max_ahead: Option<Millis>,
}

/// What a chunk's event times meant for their split.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ChunkMarks {
    /// The mark of each row, only where a row has `ts <= mark + 1`.
    pub marks: Option<Vec<Millis>>,
    /// Rows that the future guard held back.
    pub future: u64,
}

impl SplitMark {
    /// The mark of a split of which nothing has been read.
    pub fn start(delay: Millis, max_ahead: Option<Millis>) -> SplitMark {
        SplitMark { greatest: MARK_NONE, delay, max_ahead }
    }

    /// The mark after all rows so far.
    pub fn mark(&self) -> Millis {
        mark_less(self.greatest, self.delay)
    }

    /// Goes on where the mark was this, with this delay.
    pub fn resume(&mut self, mark: Millis, delay: Millis) {
        if mark != MARK_NONE && mark != crate::time::MARK_END {
            self.greatest = mark.saturating_add(delay);
        }
    }

    fn guarded(&self, time: Millis, arrival: Option<Millis>) -> bool {
        match (self.max_ahead, arrival) {
            (Some(ahead), Some(arrival)) => time > arrival.saturating_add(ahead),
            _ => false,
        }
    }

    /// Takes up a chunk's event times in order, with their arrivals where the source knows them.
    pub fn take(&mut self, times: &[Millis], arrivals: Option<&[Millis]>) -> ChunkMarks {
        let before = self.greatest;
        let mut greatest = before;
        let mut straggler = false;
        let mut future = 0;
        let guard = arrivals.filter(|_| self.max_ahead.is_some());
        // `ts <= greatest - delay + 1`, written so that an unset mark cannot overflow.
        let slack = self.delay - 1;
        match guard {
            None => {
                for &time in times {
                    straggler |= time.saturating_add(slack) <= greatest;
                    greatest = greatest.max(time);
                }
            }
            Some(arrivals) => {
                for (&time, &arrival) in times.iter().zip(arrivals) {
                    straggler |= time.saturating_add(slack) <= greatest;
                    if self.guarded(time, Some(arrival)) {
                        future += 1;
                    } else {
                        greatest = greatest.max(time);
                    }
                }
            }
        }
        self.greatest = greatest;
        let marks = straggler.then(|| self.replay(before, times, guard));
        ChunkMarks { marks, future }
    }

    fn replay(&self, before: Millis, times: &[Millis], arrivals: Option<&[Millis]>) -> Vec<Millis> {
        let mut greatest = before;
        let mark_of = |(row, &time): (usize, &Millis)| {
            let mark = mark_less(greatest, self.delay);
            if !self.guarded(time, arrivals.map(|a| a[row])) {
                greatest = greatest.max(time);
            }
            mark
        };
        times.iter().enumerate().map(mark_of).collect()
    }

    /// The mark before which a split holds the watermark until it is read, given its first rows:
    /// the first event time that can move the mark, less the delay and one millisecond.
    pub fn hold(&self, times: &[Millis], arrivals: Option<&[Millis]>) -> Option<Millis> {
        let movable = |row: &usize| !self.guarded(times[*row], arrivals.map(|a| a[*row]));
        let first = (0..times.len()).find(movable)?;
        Some(mark_less(times[first], self.delay.saturating_add(1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn marks_trail_the_greatest_time() {
        let mut split = SplitMark::start(5, None);
        assert_eq!(split.take(&[10, 20, 17], None), ChunkMarks::default());
        assert_eq!(split.mark(), 15);
        // 16 is on time, yet within a millisecond of the mark: a session may want to know.
        let marks = split.take(&[16, 30, 12], None).marks;
        assert_eq!(marks, Some(vec![15, 15, 25]));
        assert_eq!(split.mark(), 25);
    }

    #[test]
    fn the_guard_counts_and_holds_back() {
        let mut split = SplitMark::start(0, Some(100));
        let got = split.take(&[10, 500, 20], Some(&[10, 10, 20]));
        assert_eq!((got.future, split.mark()), (1, 20));
        assert_eq!(split.hold(&[500, 20], Some(&[10, 20])), Some(19));
    }

    proptest! {
        /// However a split is cut into chunks, a row has the same mark.
        #[test]
        fn chunks_do_not_matter(
            rows in prop::collection::vec((0i64..200, 0i64..200), 1..80),
            cut in 0usize..80,
            delay in 0i64..20,
        ) {
            let (times, arrivals): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
            let cut = cut.min(times.len());
            let mut whole = SplitMark::start(delay, Some(30));
            let all = whole.replay(MARK_NONE, &times, Some(&arrivals));
            whole.take(&times, Some(&arrivals));
            let mut parts = SplitMark::start(delay, Some(30));
            for range in [0..cut, cut..times.len()] {
                let got = parts.take(&times[range.clone()], Some(&arrivals[range.clone()]));
                match got.marks {
                    Some(marks) => prop_assert_eq!(&marks[..], &all[range]),
                    None => for row in range {
                        prop_assert!(all[row] == MARK_NONE || times[row] > all[row] + 1);
                    },
                }
            }
            prop_assert_eq!(parts.mark(), whole.mark());
        }
    }

    #[test]
    fn a_mark_that_is_taken_up_again_goes_on_as_it_would_have() {
        let times = [100, 250, 240, 90, 251, 400, 130, 380, 379];
        for cut in 0..times.len() {
            let mut whole = SplitMark::start(20, None);
            whole.take(&times[..cut], None);
            let mut again = SplitMark::start(20, None);
            again.resume(whole.mark(), 20);
            assert_eq!(again, whole, "after {cut}");
            assert_eq!(again.take(&times[cut..], None), whole.take(&times[cut..], None));
        }
    }
}
