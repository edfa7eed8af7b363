//! The types that the parts of a dataflow hand to each other.

use std::cell::RefCell;
use std::rc::Rc;
use timely::dataflow::{Stream, StreamVec};

use super::carrier::Carrier;
use crate::cut::EpochFacts;
use crate::graph::Outlet;
use crate::operator::Operator;
use crate::time::Epoch;

/// Rows on their way.
pub(crate) type RowsStream<'scope> = Stream<'scope, Epoch, Carrier>;

/// What each epoch's cut says, on every worker.
pub(crate) type FactsStream<'scope> = StreamVec<'scope, Epoch, EpochFacts>;

/// An operator core, shared with the functions that ask it for its output's watermark.
pub(crate) type SharedCore = Rc<RefCell<Box<dyn Operator>>>;

/// A lifted node: the streams of those outlets that somebody reads.
pub(crate) struct Lifted<'scope> {
    pub(crate) streams: Vec<(Outlet, RowsStream<'scope>)>,
}
