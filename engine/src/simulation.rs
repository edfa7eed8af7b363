//! The engine in a simulated world, driven by a seed.
//!
//! # What is real
//! The dataflow (driver, cuts, exchanges, adapters, sinks' shards), the cut log and its recorder,
//! checkpoints and their collection, the choice and the beginning of generations, the journal.
//!
//! # What is simulated
//! - *Disks* that forget what was not synced, in part; that are full, lost, or fail to sync.
//! - *An object store* with puts where nothing is, lost replies, requests that arrive late.
//! - *Transactional tables*, one of rows and one of changes, and *a folder of files* as targets,
//!   with lost replies, refusals and commits that arrive late or twice.
//! - *Sources that can be read again* and get more splits, and *a broker* that delivers at least
//!   once, out of order, into a journal.
//! - *Machines* with clocks that are wrong, stand still or step back; *processes* that end in the
//!   middle of any operation, with or without their machine's power; and what is left of an old
//!   generation, which goes on while the next one works.
//!
//! # One thing at a time
//! The I/O threads of the engine are tasks (`tasks.rs`), stepped by the scheduler. Timely wants a
//! thread for each worker; they have one baton among them (`crew.rs`). All choices are drawn from
//! one seed (`fate.rs`), so that a seed replays. Its trace is a hash over all choices.
//!
//! # What is checked
//! At the end all targets hold exactly what a naive computation over the splits gives
//! (`job/truth.rs`), each row once; where splits were idle or came later, the counts and sums by
//! key. Windows fire once, at every shard in the same epoch; what changes take back was there.
//! Every acknowledged message is in the journal, no oftener than it was sent. No generation fails
//! but by an injected fault, each start that may succeed does, and a run ends within a number of
//! turns.
//!
//! # Choosing seeds
//! `WEIR_SIM_SEEDS=from..to` runs these seeds; `WEIR_SIM_RUNS=n` so many from 0. One seed alone
//! prints its trace.

mod broker;
mod crew;
mod drive;
mod fate;
mod feed;
mod files;
mod job;
mod runner;
mod set;
mod shelf;
mod start;
mod table;
mod tests;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use set::Events;
use world::World;

/// What a test takes away from the world, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Breakage {
    /// An fsync of the cut log returns without having done anything.
    LyingDisk,
    /// The recorder says of every cut that it is on disk.
    Hasty,
    /// A sink asks the cut log of its own process only.
    OwnLogOnly,
    /// The table lets every generation write.
    NoFence,
    /// The table does not compare the progress that it sets.
    NoCompare,
    /// Messages are acknowledged before the journal has them on disk.
    EarlyAcknowledgement,
    /// Pieces of state reach the store behind the manifest that names them.
    PiecesLast,
    /// An operator is not flushed where a checkpoint is made.
    NoFlush,
    /// An operator takes up all key groups of a checkpoint but one.
    ForgottenGroup,
    /// A split that comes later is read from where it ends.
    LaterFromEnd,
    /// Splits that have come are not stored.
    SplitsForgotten,
    /// The watermark waits for splits that have come, as if they had been there before.
    NotJoined,
}

/// How a run went.
struct Outcome {
    /// Why it failed, if it did.
    failure: Option<String>,
    /// A hash over all choices.
    trace: u64,
    /// The last things that happened.
    told: String,
    events: Events,
}

/// Runs a seed.
fn run(seed: u64, breakage: Option<Breakage>) -> Outcome {
    let mut world = World::of(seed, breakage);
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    let failure = ran.unwrap_or_else(|panic| {
        Err(format!("panicked: {}", crate::flow::panic_text(panic.as_ref())))
    });
    let (trace, told) = (world.fate().hash(), world.fate().told());
    Outcome { failure: failure.err(), trace, told, events: world.events.clone() }
}
