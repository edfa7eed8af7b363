//! When a cut is on disk everywhere: a stream without rows, for jobs of several processes.
//!
//! # Invariant
//! The stream's frontier passes epoch e on any worker only once every process has the cut of e, and
//! all before it, on disk.
//!
//! # Argument
//! Each worker keeps a capability for every epoch whose facts it has, until the memory of its own
//! process says that the cut is on disk. Timely's frontier passes e only when no worker holds it,
//! and none can still get its facts.

use std::collections::VecDeque;
use std::sync::Arc;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::Pipeline;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::lifted::FactsStream;
use crate::cutlog::CutMemory;
use crate::time::Epoch;

/// The stream without rows.
pub(crate) type Recorded<'scope> = StreamVec<'scope, Epoch, ()>;

/// Builds the operator.
pub(crate) fn recorded<'scope>(
    facts: FactsStream<'scope>,
    memory: &Arc<dyn CutMemory>,
) -> Recorded<'scope> {
    let scope = facts.scope();
    let mut builder = OperatorBuilder::new("Recorded".to_owned(), scope);
    let mut input = builder.new_input(facts, Pipeline);
    let (_output, recorded) = builder.new_output::<Vec<()>>();
    let activator = scope.worker().sync_activator_for(builder.operator_info().address.to_vec());
    memory.on_durable(Box::new(move || {
        // The worker may be gone; then nobody needs to know.
        let _ = activator.activate();
    }));
    let memory = memory.clone();
    let mut held: VecDeque<Capability<Epoch>> = VecDeque::new();
    builder.build(move |capabilities| {
        drop(capabilities);
        move |_| {
            input.for_each(|capability, _| held.push_back(capability.retain(0)));
            while held.front().is_some_and(|first| memory.is_durable(*first.time())) {
                held.pop_front();
            }
        }
    });
    recorded
}
