//! Mergeable aggregates on columns, grouped by dense ids.
//!
//! # Invariant
//! The state of a group is a function of the multiset of its rows: adding, merging and evicting in
//! any order give the same results, bit for bit. Sums of doubles are exact (see `exact`) and round
//! once.
//!
//! # Meaning
//! Flink's: an aggregate of no (non-null) value is NULL, a count 0. SUM and AVG of integers wrap
//! around and truncate; a SUM or AVG of decimals beyond 38 digits is NULL (of the exact sum:
//! Flink's is NULL if some partial sum overflows, which depends on the order); AVG of decimals
//! rounds half up. AVG of floats is the correctly rounded sum divided by the count; VAR and STDDEV
//! come from the exact sums of values and squares, round their numerator once, and are NULL for one
//! value where `n − 1` divides. Order of floats for MIN and MAX: see `extremes`. DISTINCT tells
//! −0.0 from 0.0, as Java does.
//!
//! # Sharing
//! Calls over the same arguments, filter and DISTINCT share one feed; within it AVG, SUM, COUNT,
//! VAR and STDDEV share sums, MIN and MAX share extremes.
//!
//! # Limits
//! Group ids are `u32` and dense: memory is the greatest id times the cells of one group (8 bytes a
//! count, 32 a sum of doubles with its count, 16 a MIN with its MAX). Counts are exact below 2^63.

mod distinct;
mod exact;
mod extremes;
mod finish;
mod interner;
mod narrow;
mod saved;
mod states;
#[cfg(test)]
mod tests;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field};
use std::sync::Arc;
use weir_engine::expression::{ExpressionRef, RowFailure};
use weir_engine::operator::OperatorError;
use weir_engine::rows::Attachment;
use weir_engine::time::MARK_NONE;

use distinct::DistinctValues;
pub use interner::KeyInterner;
pub(crate) use narrow::{constant, narrow, widened};
pub use saved::Form;
use states::{Feed, Kind, State};

/// An aggregate function that is mergeable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum AggregateFunction {
    /// COUNT(*).
    CountRows,
    /// COUNT(x, …): rows where no argument is NULL.
    Count,
    /// SUM(x).
    Sum,
    /// AVG(x).
    Avg,
    /// MIN(x).
    Min,
    /// MAX(x).
    Max,
    /// STDDEV_POP(x).
    StddevPop,
    /// STDDEV_SAMP(x).
    StddevSamp,
    /// VAR_POP(x).
    VarPop,
    /// VAR_SAMP(x).
    VarSamp,
}

/// One call of an aggregate.
///
/// Arguments and filter are evaluated when rows are pushed, so they must not read the recorded
/// time; the planner computes such expressions in a projection before.
#[derive(Clone, Debug)]
pub struct AggregateCall {
    /// The function.
    pub function: AggregateFunction,
    /// DISTINCT.
    pub distinct: bool,
    /// The arguments.
    pub arguments: Vec<ExpressionRef>,
    /// FILTER (WHERE …): only rows where it is true take part.
    pub filter: Option<ExpressionRef>,
    /// The type of the result.
    pub output: DataType,
}

/// The arguments and filters of all calls, evaluated over a chunk.
#[derive(Clone, Debug)]
pub struct Arguments {
    columns: Vec<ArrayRef>,
}

impl Arguments {
    /// The arguments of some rows, in the order of `indices`.
    pub fn take(&self, indices: &UInt32Array) -> Result<Arguments, OperatorError> {
        let columns = self.columns.iter().map(|c| arrow::compute::take(c, indices, None));
        Ok(Arguments { columns: columns.collect::<Result<_, _>>()? })
    }
}

/// Calls that see the same values of the same rows, and what is kept for them.
#[derive(Debug)]
struct Source {
    /// Places among the evaluated columns.
    arguments: Vec<usize>,
    filter: Option<usize>,
    distinct: Option<DistinctValues>,
    states: Vec<(Kind, State)>,
}

/// Where a call finds its result.
#[derive(Clone, Debug, PartialEq)]
struct Call {
    function: AggregateFunction,
    output: DataType,
    argument: Option<DataType>,
    source: usize,
}

/// The states of a set of calls for groups `0 .. len`.
#[derive(Debug)]
pub struct Accumulators {
    expressions: Vec<ExpressionRef>,
    sources: Vec<Source>,
    calls: Vec<Call>,
    /// Where COUNT(*) is read off: see [`RowCount`].
    row_count: Option<RowCount>,
    len: usize,
}

/// COUNT(*) without a pass of its own: what `counted`, a source without filter or DISTINCT, counts,
/// and the rows where its argument is NULL, which are all that `nulls` then counts.
#[derive(Clone, Copy, Debug)]
struct RowCount {
    nulls: usize,
    counted: usize,
}

impl Accumulators {
    /// States for `calls`, without a group yet. An error if a function isn't defined for its
    /// argument.
    pub fn new(calls: &[AggregateCall]) -> Result<Accumulators, OperatorError> {
        let mut made = Accumulators {
            expressions: Vec::new(),
            sources: Vec::new(),
            calls: Vec::new(),
            row_count: None,
            len: 0,
        };
        for call in calls {
            made.add_call(call)?;
        }
        // A count is read off any sum over the same rows; only where there is none is it kept.
        for call in &made.calls {
            let source = &mut made.sources[call.source];
            let counts = call.function == AggregateFunction::CountRows
                || call.function == AggregateFunction::Count;
            if counts && !source.states.iter().any(|(kind, _)| kind.counts()) {
                source.states.push((Kind::Count, State::new(Kind::Count)));
            }
        }
        let plain = |source: &Source| source.filter.is_none() && source.distinct.is_none();
        let nulls = made.sources.iter().position(|s| plain(s) && s.arguments.is_empty());
        let counted = made.sources.iter().position(|source| {
            let counts = source.states.iter().any(|(kind, _)| kind.counts());
            plain(source) && source.arguments.len() == 1 && counts
        });
        made.row_count = nulls.zip(counted).map(|(nulls, counted)| RowCount { nulls, counted });
        Ok(made)
    }

    fn add_call(&mut self, call: &AggregateCall) -> Result<(), OperatorError> {
        let arguments: Vec<usize> = call.arguments.iter().map(|e| self.expression(e)).collect();
        let filter = call.filter.as_ref().map(|e| self.expression(e));
        let argument = call.arguments.first().map(|e| plain_type(&e.data_type()));
        let kinds = kinds_of(call.function, argument.as_ref())?;
        let extreme = matches!(call.function, AggregateFunction::Min | AggregateFunction::Max);
        let distinct = call.distinct && !extreme && !arguments.is_empty();
        let found = self.sources.iter().position(|source| {
            source.arguments == arguments
                && source.filter == filter
                && source.distinct.is_some() == distinct
        });
        let source = match found {
            Some(source) => source,
            None => {
                let types = call.arguments.iter().map(|e| plain_type(&e.data_type())).collect();
                let distinct = distinct.then(|| DistinctValues::new(types)).transpose()?;
                self.sources.push(Source { arguments, filter, distinct, states: Vec::new() });
                self.sources.len() - 1
            }
        };
        for &kind in kinds {
            let states = &mut self.sources[source].states;
            if !states.iter().any(|&(other, _)| other == kind) {
                states.push((kind, State::new(kind)));
            }
        }
        let output = call.output.clone();
        self.calls.push(Call { function: call.function, output, argument, source });
        Ok(())
    }

    fn expression(&mut self, expression: &ExpressionRef) -> usize {
        let same = |other: &ExpressionRef| {
            Arc::ptr_eq(other, expression)
                || other.column().is_some() && other.column() == expression.column()
        };
        self.expressions.iter().position(same).unwrap_or_else(|| {
            self.expressions.push(expression.clone());
            self.expressions.len() - 1
        })
    }

    /// Number of groups that have cells.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no group has cells.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes room for groups `0 .. groups`; new ones are empty.
    pub fn grow(&mut self, groups: usize) {
        if groups <= self.len {
            return;
        }
        self.len = groups;
        for source in &mut self.sources {
            source.states.iter_mut().for_each(|(_, state)| state.grow(groups));
            source.distinct.iter_mut().for_each(|values| values.grow(groups));
        }
    }

    /// Whether what was added can be taken away again (no MIN, no MAX).
    pub fn is_invertible(&self) -> bool {
        let mut states = self.sources.iter().flat_map(|source| &source.states);
        states.all(|(_, state)| state.is_invertible())
    }

    /// Evaluates arguments and filters. If some rows fail: all that do, each once, with a reason.
    pub fn arguments(&self, rows: &RecordBatch) -> Result<Arguments, Vec<RowFailure>> {
        let (mut columns, mut failures) = (Vec::new(), Vec::<RowFailure>::new());
        for expression in &self.expressions {
            match expression.evaluate(rows, MARK_NONE) {
                Ok(column) => columns.push(plain(column)),
                Err(failed) => failures.extend(failed),
            }
        }
        if failures.is_empty() {
            return Ok(Arguments { columns });
        }
        failures.sort_by_key(|failure| failure.row);
        failures.dedup_by_key(|failure| failure.row);
        Err(failures)
    }

    /// Adds each row to its group, `diffs` times (`None`: once; negative: taken away). Groups must
    /// have cells. A negative diff is an error where the calls are not invertible.
    pub fn update(
        &mut self,
        groups: &[u32],
        arguments: &Arguments,
        diffs: Option<&[i64]>,
    ) -> Result<(), OperatorError> {
        if let Some(diffs) = diffs
            && diffs.iter().any(|&diff| diff < 0)
            && !self.is_invertible()
        {
            let text = "MIN and MAX cannot take back a row: the input must be append-only";
            return Err(OperatorError::Expression(text.into()));
        }
        let counted = self.row_count.map(|count| self.sources[count.counted].arguments[0]);
        for (at, source) in self.sources.iter_mut().enumerate() {
            let columns = || source.arguments.iter().map(|&place| &arguments.columns[place]);
            let filter = source.filter.map(|place| arguments.columns[place].as_boolean());
            let rows = match (self.row_count, counted) {
                (Some(count), Some(counted)) if count.nulls == at => {
                    Some(null_rows(&arguments.columns[counted]))
                }
                _ => rows_taking_part(columns(), filter, groups.len()),
            };
            let feed = Feed { groups, rows: rows.as_deref(), diffs };
            let column = source.arguments.first().map(|&place| &arguments.columns[place]);
            match &mut source.distinct {
                None => {
                    source.states.iter_mut().for_each(|(_, state)| state.update(feed, column));
                }
                Some(values) => {
                    let columns: Vec<ArrayRef> = columns().cloned().collect();
                    let (rows, diffs) = values.update(feed, &columns)?;
                    let feed = Feed { groups, rows: Some(&rows), diffs: Some(&diffs) };
                    source.states.iter_mut().for_each(|(_, state)| state.update(feed, column));
                }
            }
        }
        Ok(())
    }

    /// Adds groups `from` of `other`, a set of the same calls, to groups `into`, pair by pair.
    pub fn merge(
        &mut self,
        other: &Accumulators,
        from: &[u32],
        into: &[u32],
    ) -> Result<(), OperatorError> {
        self.combine(Some(other), from, into, 1)
    }

    /// Adds groups `from` to groups `into` of the same set, pair by pair.
    pub fn merge_within(&mut self, from: &[u32], into: &[u32]) -> Result<(), OperatorError> {
        self.combine(None, from, into, 1)
    }

    /// Takes groups `from` of `other` away from groups `into`. Only where [`Self::is_invertible`].
    pub fn subtract(
        &mut self,
        other: &Accumulators,
        from: &[u32],
        into: &[u32],
    ) -> Result<(), OperatorError> {
        debug_assert!(self.is_invertible());
        self.combine(Some(other), from, into, -1)
    }

    /// Takes groups `from` away from groups `into` of the same set, pair by pair.
    pub fn subtract_within(&mut self, from: &[u32], into: &[u32]) -> Result<(), OperatorError> {
        debug_assert!(self.is_invertible());
        self.combine(None, from, into, -1)
    }

    fn combine(
        &mut self,
        other: Option<&Accumulators>,
        from: &[u32],
        into: &[u32],
        sign: i64,
    ) -> Result<(), OperatorError> {
        for (at, source) in self.sources.iter_mut().enumerate() {
            let other = other.map(|other| &other.sources[at]);
            let Some(values) = &mut source.distinct else {
                for (place, (_, state)) in source.states.iter_mut().enumerate() {
                    state.combine(other.map(|other| &other.states[place].1), from, into, sign);
                }
                continue;
            };
            let others = other.and_then(|other| other.distinct.as_ref());
            let changed = values.combine(others, from, into, sign)?;
            let feed = Feed { groups: &changed.groups, rows: None, diffs: Some(&changed.diffs) };
            let column = changed.columns.first();
            source.states.iter_mut().for_each(|(_, state)| state.update(feed, column));
        }
        Ok(())
    }

    /// Empties groups; they may be used again.
    pub fn clear(&mut self, groups: &[u32]) {
        for source in &mut self.sources {
            source.states.iter_mut().for_each(|(_, state)| state.clear(groups));
            source.distinct.iter_mut().for_each(|values| values.clear(groups));
        }
    }

    /// The results of `groups`, a column a call.
    pub fn evaluate(&self, groups: &[u32]) -> Result<Vec<ArrayRef>, OperatorError> {
        let mut columns: Vec<ArrayRef> = Vec::new();
        for (at, call) in self.calls.iter().enumerate() {
            let column = match self.calls[..at].iter().position(|other| other == call) {
                Some(same) => columns[same].clone(),
                None => {
                    let also = self.row_count.filter(|count| count.nulls == call.source);
                    let also = also.map(|count| &self.sources[count.counted].states[..]);
                    finish::evaluate(call, &self.sources[call.source].states, also, groups)?
                }
            };
            columns.push(column);
        }
        Ok(columns)
    }

    /// The columns of [`Self::state`], named `{prefix}0`, `{prefix}1`, ….
    pub fn state_fields(&self, prefix: &str) -> Vec<Field> {
        let types = self.sources.iter().flat_map(|source| match &source.distinct {
            Some(_) => vec![DataType::Binary],
            None => source.states.iter().flat_map(|(kind, _)| kind.types()).cloned().collect(),
        });
        let name = |(at, data_type)| Field::new(format!("{prefix}{at}"), data_type, true);
        types.enumerate().map(name).collect()
    }

    /// The state of `groups` as columns, one row a group.
    pub fn state(&self, groups: &[u32], form: Form) -> Vec<ArrayRef> {
        let mut columns: Vec<ArrayRef> = Vec::new();
        for source in &self.sources {
            match &source.distinct {
                Some(values) => columns.push(values.save(groups)),
                None => {
                    let saved =
                        source.states.iter().flat_map(|(_, state)| state.save(groups, form));
                    columns.extend(saved);
                }
            }
        }
        columns
    }

    /// The state of `groups` as a set of its own, group n of it from `groups[n]`, which is empty
    /// then.
    pub fn split_off(&mut self, groups: &[u32]) -> Result<Accumulators, OperatorError> {
        let split = self.pick(groups)?;
        self.clear(groups);
        Ok(split)
    }

    /// The same, but the groups stay as they are.
    pub fn pick(&self, groups: &[u32]) -> Result<Accumulators, OperatorError> {
        let pick = |source: &Source| {
            let states = source.states.iter().map(|(kind, state)| (*kind, state.pick(groups)));
            Ok::<_, OperatorError>(Source {
                arguments: source.arguments.clone(),
                filter: source.filter,
                distinct: source.distinct.as_ref().map(|values| values.pick(groups)).transpose()?,
                states: states.collect(),
            })
        };
        Ok(Accumulators {
            expressions: self.expressions.clone(),
            sources: self.sources.iter().map(pick).collect::<Result<_, _>>()?,
            calls: self.calls.clone(),
            row_count: self.row_count,
            len: groups.len(),
        })
    }

    /// Adds states written by [`Self::state`], row by row, to `groups`, which must have cells.
    pub fn restore(&mut self, groups: &[u32], columns: &[ArrayRef]) -> Result<(), OperatorError> {
        let bad = || OperatorError::State("aggregate state does not fit the calls".into());
        let mut rest = columns;
        let mut next = |width: usize| {
            let (head, tail) = rest.split_at_checked(width).ok_or_else(bad)?;
            rest = tail;
            Ok::<_, OperatorError>(head)
        };
        for source in &mut self.sources {
            if let Some(values) = &mut source.distinct {
                let saved = next(1)?[0].as_binary_opt::<i32>().ok_or_else(bad)?;
                let changed = values.load(groups, saved)?;
                let feed =
                    Feed { groups: &changed.groups, rows: None, diffs: Some(&changed.diffs) };
                let column = changed.columns.first();
                source.states.iter_mut().for_each(|(_, state)| state.update(feed, column));
                continue;
            }
            for (kind, state) in &mut source.states {
                state.load(groups, next(kind.types().len())?).ok_or_else(bad)?;
            }
        }
        Ok(())
    }
}

impl Attachment for Accumulators {
    fn columns(&self, pieces: &[u32]) -> Vec<(Field, ArrayRef)> {
        let fields = self.state_fields("__state").into_iter();
        let columns = self.state(pieces, Form::AsKept);
        let typed = |(field, column): (Field, ArrayRef)| {
            (field.with_data_type(column.data_type().clone()).with_nullable(true), column)
        };
        fields.zip(columns).map(typed).collect()
    }
}

impl Kind {
    /// Whether its cells hold a count.
    fn counts(self) -> bool {
        matches!(self, Kind::Count | Kind::FloatSum | Kind::IntegerSum | Kind::DecimalSum)
    }
}

/// What is to be kept for a function of an argument of this type.
fn kinds_of(
    function: AggregateFunction,
    argument: Option<&DataType>,
) -> Result<&'static [Kind], OperatorError> {
    use AggregateFunction::*;
    let refuse = || {
        let of = argument.map_or_else(|| "no argument".into(), ToString::to_string);
        OperatorError::Expression(format!("{function:?} of {of} is not defined"))
    };
    let Some(argument) = argument else {
        let counts = matches!(function, CountRows | Count);
        return if counts { Ok(&[]) } else { Err(refuse()) };
    };
    let decimal = matches!(argument, DataType::Decimal128(_, _));
    match function {
        CountRows | Count => Ok(&[]),
        Sum | Avg if argument.is_floating() => Ok(&[Kind::FloatSum]),
        Sum | Avg if argument.is_integer() => Ok(&[Kind::IntegerSum]),
        Sum | Avg if decimal => Ok(&[Kind::DecimalSum]),
        StddevPop | StddevSamp | VarPop | VarSamp
            if argument.is_floating() || argument.is_integer() || decimal =>
        {
            Ok(&[Kind::FloatSum, Kind::Squares])
        }
        Min | Max => match argument {
            DataType::Decimal128(_, _) => Ok(&[Kind::WideExtremes]),
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View | DataType::Binary => {
                Ok(&[Kind::TextExtremes])
            }
            DataType::Boolean | DataType::Float32 | DataType::Float64 => Ok(&[Kind::Extremes]),
            DataType::Float16 | DataType::Interval(_) => Err(refuse()),
            other if other.is_primitive() && other.primitive_width() <= Some(8) => {
                Ok(&[Kind::Extremes])
            }
            _ => Err(refuse()),
        },
        _ => Err(refuse()),
    }
}

fn plain_type(data_type: &DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, values) => (**values).clone(),
        other => other.clone(),
    }
}

/// Unpacks a dictionary.
fn plain(column: ArrayRef) -> ArrayRef {
    match column.as_any_dictionary_opt() {
        Some(packed) => {
            arrow::compute::take(packed.values(), packed.keys(), None).unwrap_or(column)
        }
        None => column,
    }
}

/// Rows where a column is NULL.
fn null_rows(column: &ArrayRef) -> Vec<u32> {
    match column.logical_nulls() {
        None => Vec::new(),
        Some(nulls) => {
            let null = |row: &u32| nulls.is_null(*row as usize);
            (0..column.len() as u32).filter(null).collect()
        }
    }
}

/// Rows that pass the filter and where no argument is NULL; `None` means all.
fn rows_taking_part<'a>(
    columns: impl Iterator<Item = &'a ArrayRef>,
    filter: Option<&BooleanArray>,
    rows: usize,
) -> Option<Vec<u32>> {
    let mut nulls = None;
    for column in columns {
        nulls = arrow::buffer::NullBuffer::union(nulls.as_ref(), column.logical_nulls().as_ref());
    }
    let valid = nulls.map(|nulls| nulls.into_inner());
    let passing = filter.map(|filter| match filter.nulls() {
        Some(nulls) => filter.values() & nulls.inner(),
        None => filter.values().clone(),
    });
    let taking_part = match (valid, passing) {
        (Some(valid), Some(passing)) => &valid & &passing,
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return None,
    };
    debug_assert_eq!(taking_part.len(), rows);
    Some(taking_part.set_indices().map(|row| row as u32).collect())
}
