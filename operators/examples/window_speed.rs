//! CPU time a row of window operators, and of the exact aggregates alone, on one thread.
//!
//! `cargo run -p weir-operators --example window_speed [-- part]`: `aggregates`, `tumble` (20 M
//! rows, 10 000 string keys, 5 minutes, five aggregates) or `hop` (1 h by 15 s over 100 000 keys
//! against TUMBLE 15 s on the same rows). Best of three runs.
#![allow(clippy::print_stdout)]

use arrow::array::*;
use arrow::datatypes::*;
use std::sync::Arc;
use weir_engine::expression::{Column, ExpressionRef};
use weir_engine::operator::{EpochEnd, Operator, OperatorError, Output};
use weir_engine::rows::Delta;
use weir_engine::time::{MARK_END, Millis};
use weir_operators::aggregates::{Accumulators, AggregateCall, AggregateFunction};
use weir_operators::window::{WindowAggregate, WindowAggregateSpec, WindowShape};

const CHUNK: usize = 8192;

fn time_type() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, None)
}

fn input() -> SchemaRef {
    let key = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8));
    Arc::new(Schema::new(vec![
        Field::new("key", key, false),
        Field::new("ts", time_type(), false),
        Field::new("temperature", DataType::Float64, false),
        Field::new("humidity", DataType::Float64, false),
    ]))
}

fn call(function: AggregateFunction, column: usize) -> AggregateCall {
    let column: ExpressionRef = Arc::new(Column { index: column, data_type: DataType::Float64 });
    let counts = function == AggregateFunction::CountRows;
    AggregateCall {
        function,
        distinct: false,
        arguments: if counts { Vec::new() } else { vec![column] },
        filter: None,
        output: if counts { DataType::Int64 } else { DataType::Float64 },
    }
}

/// CPU seconds of this thread so far: other processes do not count.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0) * 1e-9
}

fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Chunks of `rows` rows over `keys` keys, `per_second` rows a second, 2 % of them up to 4 s late.
fn chunks(rows: usize, keys: usize, per_second: f64) -> Vec<Delta> {
    let names = StringArray::from_iter_values((0..keys).map(|key| format!("sensor-{key:06}")));
    let names: ArrayRef = Arc::new(names);
    let mut state = 42;
    let mut made = Vec::new();
    for first in (0..rows).step_by(CHUNK) {
        let (mut ids, mut times, mut a, mut b) = (vec![], vec![], vec![], vec![]);
        for row in first..(first + CHUNK).min(rows) {
            let bits = random(&mut state);
            ids.push((bits % keys as u64) as i32);
            let late = if bits >> 40 & 63 == 0 { (bits >> 46) as i64 % 4000 } else { 0 };
            times.push((row as f64 * 1000.0 / per_second) as i64 - late);
            a.push((random(&mut state) % 5000) as f64 * 0.01 - 10.0);
            b.push((random(&mut state) % 10_000) as f64 * 0.01);
        }
        let key = DictionaryArray::new(Int32Array::from(ids), names.clone());
        let columns: Vec<ArrayRef> = vec![
            Arc::new(key),
            Arc::new(TimestampMillisecondArray::from(times)),
            Arc::new(Float64Array::from(a)),
            Arc::new(Float64Array::from(b)),
        ];
        made.extend(RecordBatch::try_new(input(), columns).map(Delta::fired));
    }
    made
}

fn operator(
    shape: WindowShape,
    calls: Vec<AggregateCall>,
) -> Result<WindowAggregate, OperatorError> {
    let mut fields = vec![
        Field::new("key", DataType::Utf8, false),
        Field::new("window_start", time_type(), false),
        Field::new("window_end", time_type(), false),
    ];
    fields.extend(calls.iter().map(|call| Field::new("call", call.output.clone(), true)));
    WindowAggregate::new(WindowAggregateSpec {
        shape,
        time: 1,
        keys: vec![0],
        calls,
        collect_late: false,
        input: input(),
        output: Arc::new(Schema::new(fields)),
    })
}

/// Seconds in push and in advance, and rows fired. An epoch is one chunk.
fn drive(mut core: WindowAggregate, chunks: &[Delta]) -> Result<(f64, f64, u64), OperatorError> {
    let (mut push, mut advance, mut out) = (0.0, 0.0, Output::default());
    for (epoch, chunk) in chunks.iter().enumerate() {
        let times = chunk.rows.column(1).as_primitive::<TimestampMillisecondType>().values();
        let mark = times.iter().max().map_or(0, |ts| ts - 5000);
        let start = cpu();
        core.push(0, chunk.clone(), &mut out)?;
        push += cpu() - start;
        let end = EpochEnd { epoch: epoch as u64, recorded_time: 0, watermarks: &[mark] };
        let start = cpu();
        core.advance(end, &mut out)?;
        out.rows.clear();
        advance += cpu() - start;
    }
    let end = EpochEnd { epoch: u64::MAX, recorded_time: 0, watermarks: &[MARK_END] };
    core.advance(end, &mut out)?;
    Ok((push, advance, out.counts.fired))
}

fn report(
    name: &str,
    shape: WindowShape,
    calls: &[AggregateCall],
    chunks: &[Delta],
) -> Result<f64, OperatorError> {
    let rows: usize = chunks.iter().map(Delta::len).sum();
    let mut best = (f64::MAX, f64::MAX, 0);
    for _ in 0..3 {
        let run = drive(operator(shape, calls.to_vec())?, chunks)?;
        if run.0 + run.1 < best.0 + best.1 {
            best = run;
        }
    }
    let ns = |seconds: f64| seconds * 1e9 / rows as f64;
    let (push, advance, fired) = best;
    println!(
        "{name}: push {:.1} + advance {:.1} = {:.1} ns a row, {fired} fired",
        ns(push),
        ns(advance),
        ns(push + advance)
    );
    Ok(ns(push + advance))
}

fn aggregates() -> Result<(), OperatorError> {
    use AggregateFunction::*;
    for keys in [10_000, 100_000] {
        let mut state = 7;
        let groups: Vec<Vec<u32>> = (0..2441)
            .map(|_| (0..CHUNK).map(|_| (random(&mut state) % keys) as u32).collect())
            .collect();
        let rows = &chunks(CHUNK, 1, 1000.0)[0].rows;
        for (name, calls) in [
            (
                "AVG+MIN+MAX+COUNT",
                vec![call(Avg, 2), call(Min, 2), call(Max, 2), call(CountRows, 0)],
            ),
            ("AVG", vec![call(Avg, 2)]),
            ("MIN+MAX", vec![call(Min, 2), call(Max, 2)]),
            ("COUNT", vec![call(CountRows, 0)]),
        ] {
            let mut best = f64::MAX;
            for _ in 0..3 {
                let mut accumulators = Accumulators::new(&calls)?;
                accumulators.grow(keys as usize);
                let arguments = accumulators
                    .arguments(rows)
                    .map_err(|_| OperatorError::Expression("a column cannot fail".into()))?;
                let start = cpu();
                for groups in &groups {
                    accumulators.update(groups, &arguments, None)?;
                }
                let ns = (cpu() - start) * 1e9 / (groups.len() * CHUNK) as f64;
                best = best.min(ns);
            }
            println!("aggregates {name} over {keys} groups: {best:.1} ns a row");
        }
    }
    Ok(())
}

fn main() -> Result<(), OperatorError> {
    use AggregateFunction::*;
    let wanted = std::env::args().nth(1);
    let runs = |part: &str| wanted.as_deref().is_none_or(|wanted| wanted == part);
    if runs("aggregates") {
        aggregates()?;
    }
    if runs("tumble") {
        let calls = [call(Avg, 2), call(Max, 2), call(Min, 2), call(CountRows, 0), call(Avg, 3)];
        let shape = WindowShape::Tumble { size: 300_000, offset: 0 };
        report("TUMBLE 5 min, 10 000 keys", shape, &calls, &chunks(20_000_000, 10_000, 2000.0))?;
    }
    if runs("slide") {
        let calls = [call(Avg, 2), call(CountRows, 0)];
        let shape = WindowShape::Tumble { size: 15_000, offset: 0 };
        report("TUMBLE 15 s", shape, &calls, &chunks(20_000_000, 100_000, 4000.0))?;
    }
    if runs("hop") {
        const SLIDE: Millis = 15_000;
        let rows = chunks(20_000_000, 100_000, 4000.0);
        for (name, calls) in
            [("AVG, COUNT", vec![call(Avg, 2), call(CountRows, 0)]), ("MAX", vec![call(Max, 2)])]
        {
            let tumble = WindowShape::Tumble { size: SLIDE, offset: 0 };
            let tumble = report(&format!("TUMBLE 15 s {name}"), tumble, &calls, &rows)?;
            let hop = WindowShape::Hop { size: 3_600_000, slide: SLIDE, offset: 0 };
            let hop = report(&format!("HOP 1 h by 15 s {name}"), hop, &calls, &rows)?;
            println!("ratio {:.2}", hop / tumble);
        }
    }
    Ok(())
}
