//! Waiting: between attempts longer each time, where a pause never lasts beyond a stop; and side by
//! side, so that nothing waits behind something else that waits.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use crate::run::Trouble;

/// The first pause, and the longest.
const PAUSE: Duration = Duration::from_millis(500);
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
/// order. Each goes to `heard` when it comes, with its place.
pub(crate) fn side_by_side<T: Send, Done: Send>(
    all: Vec<T>,
    work: impl Fn(T) -> Result<Done, Trouble> + Sync,
    mut heard: impl FnMut(usize, &Result<Done, Trouble>),
) -> Vec<Result<Done, Trouble>> {
    let panicked = || Err(Trouble::new("a thread panicked; this is a bug in Weir"));
    let mut done: Vec<Option<Result<Done, Trouble>>> = all.iter().map(|_| None).collect();
    let work = &work;
    let scoped = std::panic::AssertUnwindSafe(|| {
        thread::scope(|scope| {
            let (sender, comes) = channel();
            for (place, one) in all.into_iter().enumerate() {
                let sender = sender.clone();
                // Who waits for it does so until all have come.
                scope.spawn(move || drop(sender.send((place, work(one)))));
            }
            drop(sender);
            for (place, one) in comes {
                heard(place, &one);
                done[place] = Some(one);
            }
        });
    });
    // A panic has been reported where it happened, and shows by what has not come.
    drop(std::panic::catch_unwind(scoped));
    done.into_iter().map(|one| one.unwrap_or_else(panicked)).collect()
}

/// All of them, or what is wrong: rather what does not pass than what may.
pub(crate) fn all_of<T>(mut done: Vec<Result<T, Trouble>>) -> Result<Vec<T>, Trouble> {
    let lasting = |one: &Result<T, Trouble>| one.as_ref().is_err_and(|trouble| !trouble.passing);
    let worst = done.iter().position(lasting);
    match worst {
        Some(place) => done.swap_remove(place).map(|_| Vec::new()),
        None => done.into_iter().collect(),
    }
}

/// All of them, or the last of what is wrong; the rest of it goes to `tell`.
pub(crate) fn all_or_told<T>(
    done: Vec<Result<T, Trouble>>,
    tell: &mut dyn FnMut(Trouble),
) -> Result<Vec<T>, Trouble> {
    let (mut well, mut wrong) = (Vec::new(), None);
    for one in done {
        match one {
            Ok(one) => well.push(one),
            Err(trouble) => wrong.replace(trouble).into_iter().for_each(&mut *tell),
        }
    }
    wrong.map_or(Ok(well), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_another_does_not_keep_it_waiting() {
        let barrier = std::sync::Barrier::new(3);
        let mut heard = Vec::new();
        let wait = |n| {
            barrier.wait();
            if n == 2 { Err(Trouble::new("two")) } else { Ok(n) }
        };
        let done = side_by_side(vec![1, 2, 3], wait, |place, one| heard.push((place, one.is_ok())));
        assert_eq!(done, [Ok(1), Err(Trouble::new("two")), Ok(3)]);
        heard.sort_unstable();
        assert_eq!(heard, [(0, true), (1, false), (2, true)]);
        let panics = |n| if n == 1 { panic!("a test's own") } else { Ok(n) };
        let done = side_by_side(vec![0, 1], panics, |_, _| {});
        assert!(done[0].is_ok() && done[1].is_err());
    }

    #[test]
    fn a_failure_is_heard_while_others_wait() {
        let (release, released) = std::sync::mpsc::channel();
        let released = std::sync::Mutex::new(released);
        let work = |fails: bool| match fails {
            true => Err(Trouble::new("at once")),
            false => released.lock().unwrap().recv().map_err(|e| Trouble::new(e.to_string())),
        };
        let done = side_by_side(vec![false, true], work, |_, one| {
            if one.is_err() {
                release.send(()).unwrap();
            }
        });
        assert!(done[0].is_ok() && done[1].is_err());
    }

    #[test]
    fn what_does_not_pass_is_said_first_and_all_of_it_is_told() {
        let away = || Trouble { passing: true, ..Trouble::new("away") };
        let done = || vec![Err(away()), Ok(1), Err(Trouble::new("wrong"))];
        assert_eq!(all_of(done()), Err(Trouble::new("wrong")));
        assert_eq!(all_of(vec![Ok(1), Err(away())]), Err(away()));
        assert_eq!(all_of(vec![Ok(1), Ok(2)]), Ok(vec![1, 2]));
        let mut told = Vec::new();
        let wrong = all_or_told(done(), &mut |trouble| told.push(trouble));
        assert_eq!((wrong, told), (Err(Trouble::new("wrong")), vec![away()]));
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
