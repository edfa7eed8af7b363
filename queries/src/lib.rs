//! SQL in Flink's spelling and meaning to Weir's plan, and the plan to the engine's graph.
//!
//! [`plan_script`] reads a script: `tokens` and `parse` make statements of it, `bind` gives names
//! and types their meaning and makes a [`plan::JobPlan`] of every INSERT, `prune` drops the columns
//! that nobody reads. The plan is Weir's own, serialisable and versioned: it is planned once and
//! shipped. [`build()`] makes the engine's graph of it on every worker; `compile` turns its
//! expressions into DataFusion's physical expressions, `functions` are Flink's where DataFusion's
//! mean something else.
//!
//! Whatever of Flink's SQL isn't run is refused at planning, with the clause named and its place.

mod ast;
mod bind;
mod build;
mod compile;
mod diagnostics;
mod explain;
mod functions;
mod parse;
mod places;
pub mod plan;
mod prune;
mod push;
#[cfg(test)]
mod tests;
mod tokens;
mod types;

use std::collections::BTreeMap;
use weir_engine::connector::Connectors;

pub use build::{BuildError, build};
pub use diagnostics::{Diagnostic, Diagnostics, Span};
pub use explain::explain;
pub use places::address_of;
pub use plan::JobPlan;

/// A script, planned.
#[derive(Clone, Debug)]
pub struct Script {
    /// The jobs in the order of their statements.
    pub jobs: Vec<JobPlan>,
    /// The texts that EXPLAIN statements ask for.
    pub explains: Vec<String>,
    /// What SET statements set.
    pub settings: BTreeMap<String, String>,
}

/// Plans a script. All errors that can be found are reported, in the order of their places; nothing
/// outside is touched.
pub fn plan_script(
    file_name: &str,
    text: &str,
    connectors: &Connectors,
) -> Result<Script, Diagnostics> {
    let parsed = parse::parse_script(text);
    let mut planner = bind::Planner::new(connectors, parsed.broken);
    planner.errors = parsed.errors;
    let mut planned = bind::Planned::default();
    for statement in parsed.statements {
        planner.statement(statement, &mut planned);
    }
    planner.check_unused();
    let settings = planner.settings.clone();
    let mut errors = planner.errors;
    errors.retain(|e| !e.message.is_empty());
    if !errors.is_empty() {
        return Err(Diagnostics::new(file_name, text, errors));
    }
    let explained = planned.explained.iter().map(|plan| explain(plan, connectors));
    let explains = explained.collect::<Result<Vec<_>, _>>().map_err(|e| {
        let error = Diagnostic::new(Span::START, e.to_string());
        Diagnostics::new(file_name, text, vec![error])
    })?;
    Ok(Script { jobs: planned.jobs, explains, settings })
}
