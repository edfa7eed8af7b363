//! The workers of a set, one of which works at a time.
//!
//! Timely wants a thread for each worker of a cluster. So each has one, which waits for the baton:
//! whoever gets it does one step and gives it back. Their clock is none: what a worker would do
//! later it may do at its next step, so that nothing depends on how long anything takes.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use timely::CommunicationConfig as Communication;
use timely::communication::{WorkerGuards, initialize_from};
use timely::worker::Worker;

use super::fate::lock;
use crate::flow::{JobInput, Placed};
use crate::graph::Graph;
use crate::job::JobControl;

/// What a worker is told.
enum Order {
    Step,
    /// Leave everything as it is.
    Die,
}

/// One worker's place.
pub(super) struct Seat {
    pub(super) control: Arc<JobControl>,
    pub(super) graph: Box<dyn Fn(usize) -> Graph + Send>,
    pub(super) job: JobInput,
    /// Workers of its process, and whether that is the only one.
    pub(super) place: (usize, bool),
}

/// One worker, as the scheduler sees it.
struct Hand {
    orders: Sender<Order>,
    reports: Receiver<bool>,
    ended: bool,
}

/// The workers of a set.
pub(super) struct Crew {
    hands: Vec<Hand>,
    guards: Option<WorkerGuards<()>>,
}

impl Crew {
    /// Starts them; each builds its dataflow at its first step. `bytes`: rows travel as bytes, as
    /// they do between processes.
    pub(super) fn start(seats: Vec<Seat>, bytes: bool) -> Result<Crew, String> {
        let communication = match seats.len() {
            1 => Communication::Thread,
            count if bytes => Communication::ProcessBinary(count),
            count => Communication::Process(count),
        };
        let (builders, others) = communication.try_build()?;
        let (mut hands, mut places) = (Vec::new(), Vec::new());
        for seat in seats {
            let ((orders, theirs), (reports, ours)) = (channel(), channel());
            hands.push(Hand { orders, reports: ours, ended: false });
            places.push(Some((seat, theirs, reports)));
        }
        let places = Mutex::new(places);
        let work = move |allocator: timely::communication::Allocator| {
            let place = lock(&places)[allocator.index()].take();
            if let Some((seat, orders, reports)) = place {
                let worker = Worker::new(timely::WorkerConfig::default(), allocator, None);
                serve(worker, seat, &orders, &reports);
            }
        };
        let guards = Some(initialize_from(builders, others, work)?);
        Ok(Crew { hands, guards })
    }

    /// Whether a worker has done all that it can.
    pub(super) fn has_ended(&self, worker: usize) -> bool {
        self.hands[worker].ended
    }

    /// Whether all have.
    pub(super) fn is_done(&self) -> bool {
        self.hands.iter().all(|hand| hand.ended)
    }

    /// Gives a worker the baton for a step.
    pub(super) fn step(&mut self, worker: usize) {
        let hand = &mut self.hands[worker];
        if hand.ended {
            return;
        }
        let _ = hand.orders.send(Order::Step);
        match hand.reports.recv() {
            Ok(goes_on) => hand.ended = !goes_on,
            Err(_) => panic!("worker {worker} has panicked"),
        }
    }

    /// A worker is no more; what it has is dropped.
    pub(super) fn end(&mut self, worker: usize) {
        let hand = &mut self.hands[worker];
        hand.ended = true;
        if hand.orders.send(Order::Die).is_ok() {
            // Until it has dropped what it had.
            let _ = hand.reports.recv();
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        (0..self.hands.len()).for_each(|worker| self.end(worker));
        if let Some(guards) = self.guards.take() {
            guards.join().into_iter().for_each(drop);
        }
    }
}

fn serve(mut worker: Worker, seat: Seat, orders: &Receiver<Order>, reports: &Sender<bool>) {
    let mut placed = None;
    while let Ok(Order::Step) = orders.recv() {
        let goes_on = match &placed {
            None => {
                let graph = (seat.graph)(worker.peers());
                let Seat { job, control, place, .. } = &seat;
                placed = Some(Placed::build(&mut worker, graph, job, control, *place));
                true
            }
            Some(placed) => placed.step(&mut worker, Duration::ZERO),
        };
        if !goes_on {
            // What it holds ends with it, as it does where a worker's thread ends.
            drop((placed, seat, worker));
            let _ = reports.send(false);
            return;
        }
        let _ = reports.send(true);
    }
    drop((placed, seat, worker));
    let _ = reports.send(false);
}
