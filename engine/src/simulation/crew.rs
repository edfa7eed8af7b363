//! The workers of a set, one of which works at a time.
//!
//! Timely wants a thread for each of several workers. So each has one, which waits for the baton:
//! whoever gets it does one step and gives it back. Their clock is none: what a worker would do
//! later it may do at its next step, so that nothing depends on how long anything takes.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use timely::CommunicationConfig as Communication;
use timely::communication::allocator::Thread;
use timely::communication::{Allocator, WorkerGuards, initialize_from};
use timely::worker::Worker;

use super::fate::lock;
use crate::flow::{Host, JobInput, Placed};
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
    pub(super) host: Host,
}

/// One worker, as the scheduler sees it.
enum Hand {
    /// It is alone, so that it needs no thread of its own.
    Near(Box<Desk>),
    Far(Sender<Order>, Receiver<bool>),
    Ended,
}

/// A worker with what it works on.
struct Desk {
    placed: Option<Placed>,
    seat: Seat,
    worker: Worker,
}

impl Desk {
    fn of(seat: Seat, allocator: Allocator) -> Desk {
        let worker = Worker::new(timely::WorkerConfig::default(), allocator, None);
        Desk { placed: None, seat, worker }
    }

    /// Does a step; false once nothing is left to do.
    fn step(&mut self) -> bool {
        let Desk { placed, seat, worker } = self;
        match placed {
            None => {
                let graph = (seat.graph)(worker.peers());
                let Seat { job, control, host, .. } = seat;
                *placed = Some(Placed::build(worker, graph, job, control, host));
                true
            }
            Some(placed) => placed.step(worker, Duration::ZERO),
        }
    }
}

/// The workers of a set.
pub(super) struct Crew {
    hands: Vec<Hand>,
    guards: Option<WorkerGuards<()>>,
}

impl Crew {
    /// Starts them; each builds its dataflow at its first step. `bytes`: rows travel as bytes, as
    /// they do between processes.
    pub(super) fn start(mut seats: Vec<Seat>, bytes: bool) -> Result<Crew, String> {
        if seats.len() == 1
            && let Some(seat) = seats.pop()
        {
            let desk = Box::new(Desk::of(seat, Allocator::Thread(Thread::default())));
            return Ok(Crew { hands: vec![Hand::Near(desk)], guards: None });
        }
        let count = seats.len();
        let communication =
            if bytes { Communication::ProcessBinary(count) } else { Communication::Process(count) };
        let (builders, others) = communication.try_build()?;
        let (mut hands, mut places) = (Vec::new(), Vec::new());
        for seat in seats {
            let ((orders, theirs), (reports, ours)) = (channel(), channel());
            hands.push(Hand::Far(orders, ours));
            places.push(Some((seat, theirs, reports)));
        }
        let places = Mutex::new(places);
        let work = move |allocator: Allocator| {
            let place = lock(&places)[allocator.index()].take();
            if let Some((seat, orders, reports)) = place {
                serve(Desk::of(seat, allocator), &orders, &reports);
            }
        };
        let guards = Some(initialize_from(builders, others, work)?);
        Ok(Crew { hands, guards })
    }

    /// Whether a worker has done all that it can.
    pub(super) fn has_ended(&self, worker: usize) -> bool {
        matches!(self.hands[worker], Hand::Ended)
    }

    /// Whether all have.
    pub(super) fn is_done(&self) -> bool {
        (0..self.hands.len()).all(|worker| self.has_ended(worker))
    }

    /// Gives a worker the baton for a step.
    pub(super) fn step(&mut self, worker: usize) {
        let goes_on = match &mut self.hands[worker] {
            Hand::Ended => return,
            Hand::Near(desk) => desk.step(),
            Hand::Far(orders, reports) => {
                let sent = orders.send(Order::Step).is_ok();
                let report = reports.recv().ok().filter(|_| sent);
                report.unwrap_or_else(|| panic!("worker {worker} has panicked"))
            }
        };
        if !goes_on {
            self.hands[worker] = Hand::Ended;
        }
    }

    /// A worker is no more; what it has is dropped.
    pub(super) fn end(&mut self, worker: usize) {
        let hand = std::mem::replace(&mut self.hands[worker], Hand::Ended);
        if let Hand::Far(orders, reports) = hand
            && orders.send(Order::Die).is_ok()
        {
            // Until it has dropped what it had.
            let _ = reports.recv();
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

fn serve(mut desk: Desk, orders: &Receiver<Order>, reports: &Sender<bool>) {
    while let Ok(Order::Step) = orders.recv() {
        if !desk.step() {
            break;
        }
        let _ = reports.send(true);
    }
    drop(desk);
    let _ = reports.send(false);
}
