//! Waiting: between attempts longer each time, and never beyond a stop; side by side, so that
//! nothing waits behind something else that waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::run::Trouble;

/// The first pause, and the longest.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// How often a stop is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// How long to wait after so many attempts in a row: not at all after the first.
pub(crate) fn pause_after(tries: u32) -> Duration {
    match tries {
        0 | 1 => Duration::ZERO,
        more => (PAUSE * 2_u32.saturating_pow(more - 2)).min(PAUSE_MAX),
    }
}

/// Waits, but not beyond a stop.
pub(crate) fn rest(pause: Duration, stop: &AtomicBool) {
    let began = Instant::now();
    while began.elapsed() < pause && !stop.load(Ordering::SeqCst) {
        thread::sleep(LOOK);
    }
}

/// Begins something that was under way before: what may pass is said and waited for, since a server
/// that is away must not turn a lost generation into a lost job. `None` where it is stopped
/// meanwhile.
pub(crate) fn patiently<T>(
    stop: &AtomicBool,
    mut begin: impl FnMut() -> Result<T, Trouble>,
) -> Option<Result<T, Trouble>> {
    let mut tries = 1;
    while !stop.load(Ordering::SeqCst) {
        match begin() {
            Err(trouble) if trouble.passing => {
                tries += 1;
                tracing::warn!("{}; trying again until it works", String::from(trouble));
                rest(pause_after(tries), stop);
            }
            done => return Some(done),
        }
    }
    None
}

/// Does the same with all of these, each on a thread of its own; what comes of them, in their
/// order.
pub(crate) fn side_by_side<T: Send, Done: Send>(
    all: Vec<T>,
    work: impl Fn(T) -> Result<Done, Trouble> + Sync,
) -> Vec<Result<Done, Trouble>> {
    let (work, mut all) = (&work, all);
    // Alone it needs no thread.
    if all.len() == 1
        && let Some(one) = all.pop()
    {
        return vec![work(one)];
    }
    thread::scope(|scope| {
        let threads: Vec<_> = all.into_iter().map(|one| scope.spawn(move || work(one))).collect();
        let ended = |thread: thread::ScopedJoinHandle<'_, Result<Done, Trouble>>| {
            let panicked = |_| Err(Trouble::new("a thread panicked; this is a bug in Weir"));
            thread.join().unwrap_or_else(panicked)
        };
        threads.into_iter().map(ended).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_another_does_not_keep_it_waiting() {
        let barrier = std::sync::Barrier::new(3);
        let done = side_by_side(vec![1, 2, 3], |n| {
            barrier.wait();
            if n == 2 { Err(Trouble::new("two")) } else { Ok(n) }
        });
        assert_eq!(done, [Ok(1), Err(Trouble::new("two")), Ok(3)]);
        let panicked =
            side_by_side(vec![0, 1], |n| if n == 1 { panic!("a test's own") } else { Ok(n) });
        assert!(panicked[0].is_ok() && panicked[1].is_err());
    }

    #[test]
    fn pauses_grow_to_a_limit() {
        let pauses: Vec<u128> = (0..9).map(|tries| pause_after(tries).as_millis()).collect();
        assert_eq!(pauses, [0, 0, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000]);
    }

    #[test]
    fn what_may_pass_is_waited_for_and_nothing_else_is() {
        let stop = AtomicBool::new(false);
        let mut left = vec![true, false];
        let mut begin = || match left.pop() {
            Some(passing) => Err(Trouble { passing: !passing, ..Trouble::new("away") }),
            None => Ok(()),
        };
        // The first attempt may pass, the second may not.
        assert!(patiently(&stop, &mut begin).is_some_and(|done| done.is_err()));
        assert_eq!(patiently(&stop, &mut begin), Some(Ok(())));
        let stops = || -> Result<(), Trouble> {
            stop.store(true, Ordering::SeqCst);
            Err(Trouble { passing: true, ..Trouble::new("away") })
        };
        assert_eq!(patiently(&stop, stops), None);
    }
}
