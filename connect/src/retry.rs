//! Trying again: how long to wait, when to give up, and how it is seen from outside.
//!
//! # The policy
//! A server that was **never reached** is probably misspelt or not running: after 15 s the job
//! ends with a readable error. A server that **was reached once** is only away: it is tried again
//! for ever, and the notice says since when and why. Errors that no repetition mends
//! (`Reconfigure`, `Fatal`) come back at once.
//!
//! # Waiting
//! 100 ms, doubled each time up to 10 s, of which between a half and the whole is waited: shards
//! that lost one server together do not come back together. The share comes from a hash of the
//! seed and the attempt, never from a random generator, so that a test sees the same waits each
//! time.
//!
//! Loops of their own (an MQTT client) tell [`Retrying`] what happened with
//! [`succeeded`](Retrying::succeeded) and [`failed`](Retrying::failed); others use
//! [`run`](Retrying::run).

use std::time::{Duration, Instant};
use weir_engine::connector::{ConnectorError, Remedy};

/// The first wait.
pub const WAIT_FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
pub const WAIT_MAX: Duration = Duration::from_secs(10);
/// A server that has not been reached after this time counts as not there.
pub const NEVER_REACHED_MAX: Duration = Duration::from_secs(15);
/// Errors that change faster than this are not all logged.
const LOG_EVERY_MIN: Duration = Duration::from_secs(10);
/// How long a wait goes on after somebody has asked to stop.
const STOP_POLL: Duration = Duration::from_millis(50);

/// Waits that double, with a deterministic share taken off.
#[derive(Clone, Debug)]
pub struct Backoff {
    attempt: u32,
    seed: u64,
}

impl Backoff {
    /// Waits for one of several clients; each has a seed of its own.
    pub fn seeded(seed: u64) -> Backoff {
        Backoff { attempt: 0, seed }
    }

    /// How long to wait before the next attempt.
    pub fn wait(&mut self) -> Duration {
        let whole = WAIT_FIRST.saturating_mul(1 << self.attempt.min(16)).min(WAIT_MAX);
        let share = mixed(self.seed ^ (u64::from(self.attempt) << 32)) % 512;
        self.attempt = self.attempt.saturating_add(1);
        whole.mul_f64(0.5 + share as f64 / 1024.0)
    }

    /// The next wait is the first again.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Attempts that have failed in a row.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014).
fn mixed(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Tries until it works, visibly.
pub struct Retrying<'a> {
    what: String,
    notice: Box<dyn Fn(Option<String>) + Send + 'a>,
    stop: Box<dyn Fn() -> bool + Send + 'a>,
    backoff: Backoff,
    never_reached_max: Duration,
    reached: bool,
    failing_since: Option<Instant>,
    /// The error that was logged last, and when.
    logged: Option<(String, Instant)>,
}

impl<'a> Retrying<'a> {
    /// Tries to reach `what` (`PostgreSQL at 127.0.0.1:5432 for table …`; never a secret). What a
    /// person should know now goes to `notice`; `stop` says whether nobody waits for success any
    /// more.
    pub fn new(
        what: impl Into<String>,
        notice: impl Fn(Option<String>) + Send + 'a,
        stop: impl Fn() -> bool + Send + 'a,
    ) -> Retrying<'a> {
        let what = what.into();
        let seed = what.bytes().fold(0, |seed, byte| mixed(seed ^ u64::from(byte)));
        Retrying {
            what,
            notice: Box::new(notice),
            stop: Box::new(stop),
            backoff: Backoff::seeded(seed),
            never_reached_max: NEVER_REACHED_MAX,
            reached: false,
            failing_since: None,
            logged: None,
        }
    }

    /// Gives up on a server that was never reached after this time instead.
    #[must_use]
    pub fn never_reached_max(mut self, time: Duration) -> Retrying<'a> {
        self.never_reached_max = time;
        self
    }

    /// A server that is known to have been there is only away from the beginning on.
    #[must_use]
    pub fn known(mut self, known: bool) -> Retrying<'a> {
        self.reached = known;
        self
    }

    /// Whether it worked at least once, or was known to have been there.
    pub fn reached(&self) -> bool {
        self.reached
    }

    /// It worked: the notice goes, and the next failure waits the shortest time again.
    pub fn succeeded(&mut self) {
        self.logged = None;
        if let Some(since) = self.failing_since.take() {
            if self.reached {
                let seconds = since.elapsed().as_secs_f64();
                tracing::warn!(target = %self.what, seconds, "reached again");
            }
            (self.notice)(None);
        }
        self.reached = true;
        self.backoff.reset();
    }

    /// It failed at `now`. Says how long to wait before the next attempt.
    ///
    /// # Errors
    /// The error itself if no repetition mends it; one that says so if the server was never reached
    /// and the time for that is over.
    pub fn failed(
        &mut self,
        error: ConnectorError,
        now: Instant,
    ) -> Result<Duration, ConnectorError> {
        if error.remedy != Remedy::Retry {
            return Err(error);
        }
        let since = *self.failing_since.get_or_insert(now);
        self.log(&error.message, now);
        let lasted = now.saturating_duration_since(since);
        let wait = self.backoff.wait();
        if !self.reached && lasted + wait > self.never_reached_max {
            return Err(self.never_reached(&error, lasted));
        }
        let times = self.backoff.attempts();
        (self.notice)(Some(format!(
            "trying to reach {} again (attempt {}, for {} s): {}",
            self.what,
            times + 1,
            lasted.as_secs(),
            error.message
        )));
        Ok(wait)
    }

    /// Once a change, not once an attempt: the notice shows the rest, where there is a terminal.
    fn log(&mut self, error: &str, now: Instant) {
        let quiet = self.logged.as_ref().is_some_and(|(said, at)| {
            said == error || now.saturating_duration_since(*at) < LOG_EVERY_MIN
        });
        if !quiet {
            tracing::warn!(target = %self.what, error, "failed; trying again");
            self.logged = Some((error.to_owned(), now));
        }
    }

    fn never_reached(&self, error: &ConnectorError, lasted: Duration) -> ConnectorError {
        let seconds = lasted.as_secs_f64().ceil();
        let message =
            format!("cannot reach {} (tried for {seconds} s): {}", self.what, error.message);
        let hint = error.hint.clone();
        let hint = hint.unwrap_or_else(|| "is it running, and is the address right?".to_owned());
        // It may be there later: whoever can wait tries again.
        ConnectorError::retry(message).hint(hint)
    }

    /// Repeats `attempt` until it works.
    ///
    /// # Errors
    /// As [`failed`](Retrying::failed); also the last error, as a final one, once `stop` says so.
    pub fn run<T>(
        &mut self,
        attempt: impl FnMut() -> Result<T, ConnectorError>,
    ) -> Result<T, ConnectorError> {
        self.run_for(None, attempt)
    }

    /// Repeats `attempt` until it works or it has failed for as long as `time_max`.
    ///
    /// # Errors
    /// As [`run`](Retrying::run); also the last error, as a final one, after that time.
    pub fn run_for<T>(
        &mut self,
        time_max: Option<Duration>,
        mut attempt: impl FnMut() -> Result<T, ConnectorError>,
    ) -> Result<T, ConnectorError> {
        let began = Instant::now();
        loop {
            let error = match attempt() {
                Ok(value) => {
                    self.succeeded();
                    return Ok(value);
                }
                Err(error) => error,
            };
            let message = error.message.clone();
            let wait = self.failed(error, Instant::now())?;
            let over = time_max.is_some_and(|max| began.elapsed() + wait > max);
            if over || self.wait(wait) {
                let seconds = began.elapsed().as_secs_f64().ceil();
                let message = format!("gave up on {} after {seconds} s: {message}", self.what);
                return Err(ConnectorError::fatal(message));
            }
        }
    }

    /// Waits; true if somebody asked to stop meanwhile.
    fn wait(&self, time: Duration) -> bool {
        let until = Instant::now() + time;
        loop {
            if (self.stop)() {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            std::thread::sleep(left.min(STOP_POLL));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::Cell;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn refused() -> ConnectorError {
        ConnectorError::retry("connection refused")
    }

    #[test]
    fn waits_double_between_a_half_and_the_whole() {
        let mut backoff = Backoff::seeded(7);
        let mut whole = WAIT_FIRST;
        for _ in 0..12 {
            let wait = backoff.wait();
            assert!(wait >= whole / 2 && wait < whole, "{wait:?} of {whole:?}");
            whole = (whole * 2).min(WAIT_MAX);
        }
        let waits = |seed| Backoff::seeded(seed).wait();
        assert_eq!(waits(1), waits(1));
        assert_ne!(waits(1), waits(2));
    }

    #[test]
    fn gives_up_on_a_server_that_was_never_reached_and_on_no_other() {
        let began = Instant::now();
        let mut never = Retrying::new("the broker b:1", |_| (), || false);
        let mut now = began;
        let error = loop {
            match never.failed(refused(), now) {
                Ok(wait) => now += wait,
                Err(error) => break error,
            }
        };
        let lasted = now - began;
        assert!(lasted <= NEVER_REACHED_MAX && lasted > NEVER_REACHED_MAX / 3, "{lasted:?}");
        assert!(error.message.starts_with("cannot reach the broker b:1 (tried for"), "{error}");
        assert!(error.message.ends_with("connection refused"), "{error}");
        assert_eq!(error.remedy, Remedy::Retry, "who can wait may try again");

        let mut lost = Retrying::new("the broker b:1", |_| (), || false).known(true);
        assert!((0..1000).all(|hour| {
            lost.failed(refused(), began + Duration::from_secs(3600 * hour)).is_ok()
        }));
    }

    #[test]
    fn shows_the_outage_and_its_end() {
        let seen = Mutex::new(Vec::new());
        let tries = Cell::new(0);
        let mut retrying = Retrying::new("db", |text| seen.lock().unwrap().push(text), || false);
        let value = retrying.run(|| {
            tries.set(tries.get() + 1);
            if tries.get() < 3 { Err(refused()) } else { Ok(tries.get()) }
        });
        assert_eq!(value.unwrap(), 3);
        drop(retrying);
        let seen = seen.into_inner().unwrap();
        assert_eq!(
            seen,
            [
                Some(
                    "trying to reach db again (attempt 2, for 0 s): connection refused".to_owned()
                ),
                Some(
                    "trying to reach db again (attempt 3, for 0 s): connection refused".to_owned()
                ),
                None
            ]
        );
    }

    #[test]
    fn final_errors_and_stops_end_it() {
        let mut wrong = Retrying::new("db", |_| (), || false);
        let error =
            wrong.run(|| Err::<(), _>(ConnectorError::reconfigure("password"))).unwrap_err();
        assert_eq!((error.remedy, error.message.as_str()), (Remedy::Reconfigure, "password"));

        let stop = AtomicBool::new(false);
        let stop_given = || stop.load(Ordering::Relaxed);
        let mut stopped = Retrying::new("db", |_| (), stop_given).known(true);
        let error = stopped.run(|| {
            stop.store(true, Ordering::Relaxed);
            Err::<(), _>(refused())
        });
        assert_eq!(error.unwrap_err().remedy, Remedy::Fatal);
    }
}
