//! Chance, time and death in the simulation: everything that happens is drawn here.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Clock;
use crate::journal::simulated::Whims;
use crate::time::Millis;

/// Choices that are shown of a failed run.
const SHOWN: usize = 80;

struct State {
    whims: Whims,
    /// A hash of all choices so far.
    hash: u64,
    choices: u64,
    last: VecDeque<String>,
}

/// The seed's choices, and a trace of them.
pub(super) struct Fate {
    state: Mutex<State>,
    now: AtomicI64,
}

pub(super) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fate {
    pub(super) fn of(seed: u64) -> Arc<Fate> {
        // Seeds that are neighbours must not be places in one sequence.
        let (whims, last) = (Whims(Whims(seed).below(u64::MAX)), VecDeque::new());
        let state = State { whims, hash: 0xCBF2_9CE4_8422_2325, choices: 0, last };
        Arc::new(Fate { state: Mutex::new(state), now: AtomicI64::new(1_000) })
    }

    /// A number below `n`.
    pub(super) fn below(&self, n: u64) -> u64 {
        let mut state = lock(&self.state);
        let drawn = state.whims.below(n);
        state.hash = (state.hash ^ drawn).wrapping_mul(0x100_0000_01B3);
        state.choices += 1;
        drawn
    }

    /// One of `n`, as an index.
    pub(super) fn index(&self, n: usize) -> usize {
        self.below(n as u64) as usize
    }

    /// From `least` to `most`, both included.
    pub(super) fn between(&self, least: i64, most: i64) -> i64 {
        least + self.below((most - least + 1) as u64) as i64
    }

    /// Once in `n` times.
    pub(super) fn once_in(&self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// Notes what has happened: part of the trace.
    pub(super) fn note(&self, what: &str) {
        let mut state = lock(&self.state);
        for byte in what.bytes() {
            state.hash = (state.hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
        }
        if state.last.len() == SHOWN {
            state.last.pop_front();
        }
        let line = format!("{:>7} at {} {what}", state.choices, self.now());
        state.last.push_back(line);
    }

    /// A hash of everything that was drawn and noted.
    pub(super) fn hash(&self) -> u64 {
        lock(&self.state).hash
    }

    /// The last notes, with the number of choices before each.
    pub(super) fn told(&self) -> String {
        lock(&self.state).last.iter().map(|line| format!("  {line}\n")).collect()
    }

    /// The time, in milliseconds.
    pub(super) fn now(&self) -> Millis {
        self.now.load(Ordering::Relaxed)
    }

    /// Time passes.
    pub(super) fn pass(&self, time: Millis) {
        self.now.fetch_add(time, Ordering::Relaxed);
    }
}

/// A machine's clock: wrong by some milliseconds, which change, or standing still.
pub(super) struct Skewed {
    pub(super) fate: Arc<Fate>,
    pub(super) off: AtomicI64,
    /// The time at which it stands, and until when.
    pub(super) stands: Mutex<(Millis, Millis)>,
}

impl Skewed {
    pub(super) fn of(fate: &Arc<Fate>) -> Skewed {
        let off = AtomicI64::new(fate.between(-40, 40));
        Skewed { fate: fate.clone(), off, stands: Mutex::default() }
    }
}

impl Clock for Skewed {
    fn now(&self) -> Millis {
        let (now, (stands, until)) = (self.fate.now(), *lock(&self.stands));
        if now < until { stands } else { now + self.off.load(Ordering::Relaxed) }
    }
}

/// Why a process cannot do anything to the world any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// Its operating system goes on, and keeps what was written.
    Killed,
    /// Its machine's power has gone.
    Power,
}

#[derive(Default)]
struct Span {
    /// Operations on the world until the end.
    fuse: Option<(u64, End)>,
    end: Option<End>,
}

/// The life of a process: whatever it does to the world asks it first, so that it can end in the
/// middle of anything.
pub(super) struct Life {
    pub(super) fate: Arc<Fate>,
    span: Mutex<Span>,
}

impl Life {
    pub(super) fn of(fate: &Arc<Fate>) -> Arc<Life> {
        Arc::new(Life { fate: fate.clone(), span: Mutex::default() })
    }

    /// Whether the operation that is about to be done is done: false from the end on.
    pub(super) fn goes_on(&self) -> bool {
        let mut span = lock(&self.span);
        match span.fuse {
            Some((0, end)) => (span.fuse, span.end) = (None, Some(end)),
            Some((left, end)) => span.fuse = Some((left - 1, end)),
            None => {}
        }
        span.end.is_none()
    }

    /// It ends during the operation after so many more.
    pub(super) fn burn(&self, operations: u64, end: End) {
        lock(&self.span).fuse = Some((operations, end));
    }

    /// It ends now.
    pub(super) fn end(&self, end: End) {
        lock(&self.span).end.get_or_insert(end);
    }

    /// How it ended, if it has.
    pub(super) fn ended(&self) -> Option<End> {
        lock(&self.span).end
    }
}
