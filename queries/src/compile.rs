//! Weir's expressions compiled to DataFusion's physical expressions.
//!
//! # Rows that fail
//! A chunk is evaluated whole. If that fails it is halved until the rows at fault stand alone: the
//! cost is O(failures · log rows) evaluations of pieces, and nothing where all rows are well.
//!
//! # Columns
//! Only the columns that an expression names are handed over, dictionaries spelled out; the
//! recorded time, where it is read, is one more column behind them.

use arrow::array::{ArrayRef, RecordBatch, RecordBatchOptions, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion_common::config::ConfigOptions;
use datafusion_common::{DataFusionError, ScalarValue};
use datafusion_expr::{
    ColumnarValue, Operator, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility,
};
use datafusion_physical_expr::expressions::{self as physical, Column, Literal};
use datafusion_physical_expr::{PhysicalExpr, ScalarFunctionExpr};
use std::collections::BTreeMap;
use std::sync::Arc;
use weir_engine::expression::{self, Evaluated, Expression, ExpressionRef, RowFailure};
use weir_engine::time::Millis;

use crate::functions;
use crate::plan::{BinaryOp, Datum, Scalar, ScalarKind};
use crate::types::{is_decimal, is_interval, ltz_ms};

type Made<T> = Result<T, DataFusionError>;

/// Compiles an expression over rows of this schema.
pub(crate) fn compile(scalar: &Scalar, input: &SchemaRef) -> Result<ExpressionRef, String> {
    if let Some(index) = scalar.as_column() {
        let data_type = scalar.data_type.clone();
        return Ok(Arc::new(expression::Column { index, data_type }));
    }
    let mut places = BTreeMap::new();
    scalar.for_each_column(&mut |index| {
        places.insert(index, 0);
    });
    for (place, value) in places.values_mut().enumerate() {
        *value = place;
    }
    let columns: Vec<usize> = places.keys().copied().collect();
    let mut fields: Vec<Field> = Vec::new();
    for &column in &columns {
        let field = input.fields().get(column).ok_or("a column beyond the input")?;
        fields.push(field.as_ref().clone().with_nullable(true));
    }
    let uses_time = scalar.uses_time();
    if uses_time {
        fields.push(Field::new("__recorded_time", ltz_ms(), false));
    }
    let schema = Arc::new(Schema::new(fields));
    let mut local = scalar.clone();
    local.move_columns(&|index| places.get(&index).copied().unwrap_or(0));
    let made = physical(&local, &schema).map_err(|e| e.to_string())?;
    let data_type = scalar.data_type.clone();
    Ok(Arc::new(Compiled { made, columns, schema, data_type, uses_time }))
}

#[derive(Debug)]
struct Compiled {
    made: Arc<dyn PhysicalExpr>,
    /// The columns of the rows that it reads.
    columns: Vec<usize>,
    schema: SchemaRef,
    data_type: DataType,
    uses_time: bool,
}

impl Compiled {
    fn batch(&self, rows: &RecordBatch, time: Millis) -> Result<RecordBatch, String> {
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for (&index, field) in self.columns.iter().zip(self.schema.fields()) {
            let column = rows.column(index);
            let plain = if column.data_type() == field.data_type() {
                column.clone()
            } else {
                arrow::compute::cast(column, field.data_type()).map_err(|e| e.to_string())?
            };
            columns.push(plain);
        }
        if self.uses_time {
            let times = TimestampMillisecondArray::from(vec![time; rows.num_rows()]);
            columns.push(Arc::new(times.with_timezone("UTC")));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.num_rows()));
        RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)
            .map_err(|e| e.to_string())
    }

    fn whole(&self, batch: &RecordBatch) -> Result<ArrayRef, String> {
        let value = self.made.evaluate(batch).map_err(|e| reason(&e))?;
        let column = value.into_array(batch.num_rows()).map_err(|e| reason(&e))?;
        if *column.data_type() == self.data_type {
            return Ok(column);
        }
        arrow::compute::cast(&column, &self.data_type).map_err(|e| e.to_string())
    }

    fn failures(&self, batch: &RecordBatch, first: usize, why: String, out: &mut Vec<RowFailure>) {
        let rows = batch.num_rows();
        if rows <= 1 {
            out.push(RowFailure { row: first, reason: why });
            return;
        }
        let half = rows / 2;
        for (from, len) in [(0, half), (half, rows - half)] {
            let part = batch.slice(from, len);
            if let Err(why) = self.whole(&part) {
                self.failures(&part, first + from, why, out);
            }
        }
    }
}

impl Expression for Compiled {
    fn data_type(&self) -> DataType {
        self.data_type.clone()
    }

    fn evaluate(&self, rows: &RecordBatch, recorded_time: Millis) -> Evaluated {
        let all = |reason: String| {
            let failure = |row| RowFailure { row, reason: reason.clone() };
            (0..rows.num_rows()).map(failure).collect::<Vec<_>>()
        };
        let batch = self.batch(rows, recorded_time).map_err(all)?;
        self.whole(&batch).map_err(|why| {
            let mut failures = Vec::new();
            self.failures(&batch, 0, why, &mut failures);
            failures
        })
    }
}

/// The innermost reason, without the names of layers around it.
fn reason(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::Execution(text) => text.clone(),
        DataFusionError::ArrowError(error, _) => error.to_string(),
        other => other.strip_backtrace(),
    }
}

fn operator(op: BinaryOp) -> Operator {
    match op {
        BinaryOp::And => Operator::And,
        BinaryOp::Or => Operator::Or,
        BinaryOp::Eq => Operator::Eq,
        BinaryOp::NotEq => Operator::NotEq,
        BinaryOp::Lt => Operator::Lt,
        BinaryOp::LtEq => Operator::LtEq,
        BinaryOp::Gt => Operator::Gt,
        BinaryOp::GtEq => Operator::GtEq,
        BinaryOp::Plus => Operator::Plus,
        BinaryOp::Minus => Operator::Minus,
        BinaryOp::Multiply => Operator::Multiply,
        BinaryOp::Divide => Operator::Divide,
        BinaryOp::Modulo => Operator::Modulo,
        BinaryOp::DistinctFrom => Operator::IsDistinctFrom,
        BinaryOp::NotDistinctFrom => Operator::IsNotDistinctFrom,
    }
}

/// A literal as DataFusion holds it.
fn literal(datum: &Datum, data_type: &DataType) -> Made<ScalarValue> {
    let null = || ScalarValue::try_from(data_type);
    match datum {
        Datum::Null => null(),
        Datum::Boolean(value) => Ok(ScalarValue::Boolean(Some(*value))),
        Datum::Text(text) if *data_type == DataType::Utf8 => {
            Ok(ScalarValue::Utf8(Some(text.clone())))
        }
        Datum::Text(text) => ScalarValue::try_from_string(text.clone(), data_type),
        Datum::Integer(value) if is_interval(data_type) => Ok(match data_type {
            DataType::Interval(_) => {
                ScalarValue::IntervalYearMonth(Some(i32::try_from(*value).unwrap_or(i32::MAX)))
            }
            _ => ScalarValue::DurationMillisecond(Some(*value)),
        }),
        Datum::Integer(value) => match data_type {
            DataType::Date32 | DataType::Time32(_) => {
                let narrow = i32::try_from(*value).unwrap_or(i32::MAX);
                ScalarValue::Int32(Some(narrow)).cast_to(data_type)
            }
            _ => ScalarValue::Int64(Some(*value)).cast_to(data_type),
        },
    }
}

fn physical(scalar: &Scalar, schema: &SchemaRef) -> Made<Arc<dyn PhysicalExpr>> {
    let sub = |e: &Scalar| physical(e, schema);
    Ok(match &scalar.kind {
        ScalarKind::Column(index) => Arc::new(Column::new(schema.field(*index).name(), *index)),
        ScalarKind::RecordedTime => {
            Arc::new(Column::new("__recorded_time", schema.fields().len() - 1))
        }
        ScalarKind::Literal(datum) => {
            Arc::new(Literal::new(literal(datum, &scalar.data_type)?)) as Arc<dyn PhysicalExpr>
        }
        ScalarKind::Binary(op, left, right) if is_decimal(&scalar.data_type) => {
            let name = match op {
                BinaryOp::Plus => "DECIMAL+",
                BinaryOp::Minus => "DECIMAL-",
                BinaryOp::Multiply => "DECIMAL*",
                BinaryOp::Divide => "DECIMAL/",
                _ => "DECIMAL%",
            };
            call(name, vec![sub(left)?, sub(right)?], &scalar.data_type)
        }
        ScalarKind::Binary(op, left, right) => {
            physical::binary(sub(left)?, operator(*op), sub(right)?, schema)?
        }
        ScalarKind::Not(inner) => physical::not(sub(inner)?)?,
        ScalarKind::IsNull(inner) => physical::is_null(sub(inner)?)?,
        ScalarKind::Case(whens, otherwise) => {
            let pair = |(when, then): &(Scalar, Scalar)| Ok((sub(when)?, sub(then)?));
            let whens = whens.iter().map(pair).collect::<Made<Vec<_>>>()?;
            physical::case(None, whens, Some(sub(otherwise)?))?
        }
        ScalarKind::Cast(inner, true) => {
            physical::try_cast(sub(inner)?, schema, scalar.data_type.clone())?
        }
        ScalarKind::Cast(inner, false) => {
            physical::cast(sub(inner)?, schema, scalar.data_type.clone())?
        }
        ScalarKind::Field(inner, name) => {
            let args = vec![sub(inner)?, Arc::new(Literal::new(ScalarValue::from(name.as_str())))];
            call("FIELD", args, &scalar.data_type)
        }
        ScalarKind::Call(name, args) if name == "LIKE" => {
            physical::like(false, false, sub(&args[0])?, sub(&args[1])?, schema)?
        }
        ScalarKind::Call(name, args) if name == "IN" => {
            let list = args[1..].iter().map(sub).collect::<Made<Vec<_>>>()?;
            physical::in_list(sub(&args[0])?, list, &false, schema)?
        }
        ScalarKind::Call(name, args) => {
            let args = args.iter().map(sub).collect::<Made<Vec<_>>>()?;
            call(name, args, &scalar.data_type)
        }
    })
}

fn call(name: &str, args: Vec<Arc<dyn PhysicalExpr>>, result: &DataType) -> Arc<dyn PhysicalExpr> {
    let function = FlinkFunction {
        name: name.to_owned(),
        result: result.clone(),
        signature: Signature::variadic_any(Volatility::Immutable),
    };
    let field: FieldRef = Arc::new(Field::new(name, result.clone(), true));
    let config = Arc::new(ConfigOptions::default());
    let function = Arc::new(ScalarUDF::new_from_impl(function));
    Arc::new(ScalarFunctionExpr::new(name, function, args, field, config))
}

/// A function of [`functions`] as DataFusion calls it.
#[derive(Debug, PartialEq, Eq, Hash)]
struct FlinkFunction {
    name: String,
    result: DataType,
    signature: Signature,
}

impl ScalarUDFImpl for FlinkFunction {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _args: &[DataType]) -> Made<DataType> {
        Ok(self.result.clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Made<ColumnarValue> {
        let rows = args.number_rows;
        if self.name == "FIELD" {
            return field_of(&args, rows);
        }
        let columns = args.args.iter().map(|a| a.to_array(rows)).collect::<Made<Vec<_>>>()?;
        functions::run(&self.name, &columns, rows, &self.result)
            .map(ColumnarValue::Array)
            .map_err(DataFusionError::Execution)
    }
}

fn field_of(args: &ScalarFunctionArgs, rows: usize) -> Made<ColumnarValue> {
    use arrow::array::{Array, StructArray};
    let column = args.args[0].to_array(rows)?;
    let ColumnarValue::Scalar(ScalarValue::Utf8(Some(name))) = &args.args[1] else {
        return Err(DataFusionError::Execution("a field needs a name".into()));
    };
    let row = column.as_any().downcast_ref::<StructArray>();
    let inner = row.and_then(|row| row.column_by_name(name));
    let Some(inner) = inner else {
        return Err(DataFusionError::Execution(format!("the row has no field `{name}`")));
    };
    // A field of a NULL row is NULL, whatever lies beneath.
    match column.nulls() {
        None => Ok(ColumnarValue::Array(inner.clone())),
        Some(nulls) => {
            let missing = arrow::array::BooleanArray::new(!nulls.inner(), None);
            Ok(ColumnarValue::Array(arrow::compute::nullif(inner, &missing)?))
        }
    }
}
