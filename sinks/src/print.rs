//! The `print` sink: rows on standard output, as Flink prints them: `+I[a, 1.5]`.
//!
//! NULL is `null`; a row that is taken back starts with `-D`. Several shards would mix their rows,
//! so there is one. Lines of one epoch are written together.

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::DataType;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use std::fmt::Write as _;
use std::io::Write as _;
use std::sync::Arc;
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};
use weir_engine::sink::{Author, ShardEnd, Sink, SinkReport, SinkWriter};
use weir_engine::time::Epoch;

weir_connect::options! {
    /// Options of the `print` sink.
    pub struct PrintOptions {
        /// Text before each row, followed by `> `.
        pub identifier: Option<String> = "print-identifier", optional;
        /// Whether rows go to standard error instead.
        pub standard_error: bool = "standard-error", default "false";
    }
}

/// The manual of the sink's options.
pub fn options() -> Vec<OptionDoc> {
    PrintOptions::docs()
}

/// Checks the options and makes the sink.
///
/// # Errors
/// Everything that is wrong with the options.
pub fn sink(table: &TableSpec) -> Result<Box<dyn Sink>, Vec<OptionError>> {
    Ok(Box::new(PrintSink { options: PrintOptions::read(table, &[])? }))
}

struct PrintSink {
    options: PrintOptions,
}

impl Sink for PrintSink {
    fn shards(&self) -> u32 {
        1
    }

    fn accepts_retractions(&self) -> bool {
        true
    }

    fn open(
        &self,
        _: u32,
        _: Option<&Author>,
        report: Arc<SinkReport>,
    ) -> Result<Box<dyn SinkWriter>, ConnectorError> {
        let options = self.options.clone();
        Ok(Box::new(Printer { options, report, text: String::new(), rows: 0, ended: 0 }))
    }

    fn probe(&self) -> Result<(), ConnectorError> {
        Ok(())
    }

    fn guarantee(&self) -> String {
        "rows on the terminal, once each while the process lives".to_owned()
    }
}

struct Printer {
    options: PrintOptions,
    report: Arc<SinkReport>,
    text: String,
    rows: u64,
    ended: Epoch,
}

impl Printer {
    fn print(&mut self) -> Result<(), ConnectorError> {
        let text = self.text.as_bytes();
        let wrote = if self.options.standard_error {
            std::io::stderr().lock().write_all(text)
        } else {
            let mut out = std::io::stdout().lock();
            out.write_all(text).and_then(|()| out.flush())
        };
        wrote.map_err(|e| ConnectorError::fatal(format!("cannot print: {e}")))?;
        if self.rows > 0 {
            self.report.committed(self.rows, text.len() as u64);
        }
        self.text.clear();
        self.rows = 0;
        Ok(())
    }
}

impl SinkWriter for Printer {
    fn write(
        &mut self,
        _: Epoch,
        rows: RecordBatch,
        diffs: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError> {
        let prefix = self.options.identifier.as_ref().map(|i| format!("{i}> "));
        let shown = show(&rows, diffs.as_ref(), prefix.as_deref().unwrap_or(""), &mut self.text);
        shown.map_err(|e| ConnectorError::fatal(format!("cannot print a row: {e}")))?;
        self.rows += rows.num_rows() as u64;
        Ok(())
    }

    fn end_epoch(&mut self, end: ShardEnd) -> Result<Epoch, ConnectorError> {
        let epoch = end.epoch;
        self.print()?;
        self.ended = epoch;
        Ok(epoch)
    }

    fn flush(&mut self) -> Result<Epoch, ConnectorError> {
        Ok(self.ended)
    }

    fn finish(&mut self) -> Result<(), ConnectorError> {
        self.print()
    }
}

fn show(
    rows: &RecordBatch,
    diffs: Option<&ScalarBuffer<i64>>,
    prefix: &str,
    out: &mut String,
) -> Result<(), arrow::error::ArrowError> {
    let options = FormatOptions::new()
        .with_null("null")
        .with_timestamp_format(Some("%Y-%m-%dT%H:%M:%S%.f"))
        .with_timestamp_tz_format(Some("%Y-%m-%dT%H:%M:%S%.fZ"));
    let columns = rows.columns().iter().map(|c| Column::of(c.as_ref(), &options));
    let columns: Vec<Column<'_>> = columns.collect::<Result<_, _>>()?;
    for row in 0..rows.num_rows() {
        let diff = diffs.map_or(1, |d| d[row]);
        let _ = write!(out, "{prefix}{}[", if diff < 0 { "-D" } else { "+I" });
        for (place, column) in columns.iter().enumerate() {
            out.push_str(if place == 0 { "" } else { ", " });
            column.show(row, out)?;
        }
        out.push_str("]\n");
    }
    Ok(())
}

/// A column with the way to show it found once.
enum Column<'a> {
    /// ROW, as Flink shows it: `+I[a, b]` within the row.
    Row(&'a dyn Array, Vec<Column<'a>>),
    Double(&'a dyn Array),
    Other(ArrayFormatter<'a>),
}

impl<'a> Column<'a> {
    fn of(
        array: &'a dyn Array,
        options: &FormatOptions<'a>,
    ) -> Result<Column<'a>, arrow::error::ArrowError> {
        match array.data_type() {
            DataType::Struct(_) => {
                let children = array.as_struct().columns().iter();
                let children = children.map(|c| Column::of(c.as_ref(), options));
                Ok(Column::Row(array, children.collect::<Result<_, _>>()?))
            }
            DataType::Float64 => Ok(Column::Double(array)),
            _ => ArrayFormatter::try_new(array, options).map(Column::Other),
        }
    }

    fn show(&self, row: usize, out: &mut String) -> Result<(), arrow::error::ArrowError> {
        match self {
            Column::Row(array, _) | Column::Double(array) if array.is_null(row) => {
                out.push_str("null");
            }
            Column::Row(_, children) => {
                out.push_str("+I[");
                for (place, child) in children.iter().enumerate() {
                    out.push_str(if place == 0 { "" } else { ", " });
                    child.show(row, out)?;
                }
                out.push(']');
            }
            Column::Double(array) => {
                let value = array.as_primitive::<arrow::datatypes::Float64Type>().value(row);
                // `Debug` keeps the point of a whole number, as Java does.
                let _ = write!(out, "{value:?}");
            }
            Column::Other(formatter) => {
                let _ = write!(out, "{}", formatter.value(row).try_to_string()?);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow::array::{
        ArrayRef, Float64Array, StringArray, StructArray, TimestampMillisecondArray,
    };
    use arrow::datatypes::Field;

    #[test]
    fn rows_look_as_in_flink() {
        let meter = StringArray::from(vec![Some("m-1"), None]);
        let field = Arc::new(Field::new("inner", DataType::Float64, true));
        let inner: ArrayRef = Arc::new(Float64Array::from(vec![Some(1.5), None]));
        let rows = RecordBatch::try_from_iter([
            ("meter", Arc::new(meter) as ArrayRef),
            ("kwh", Arc::new(Float64Array::from(vec![2.0, -0.25]))),
            ("ts", Arc::new(TimestampMillisecondArray::from(vec![0, 1500]))),
            ("r", Arc::new(StructArray::from(vec![(field, inner)]))),
        ])
        .unwrap();
        let mut text = String::new();
        show(&rows, Some(&vec![1, -1].into()), "out> ", &mut text).unwrap();
        expect_test::expect![[r#"
            out> +I[m-1, 2.0, 1970-01-01T00:00:00, +I[1.5]]
            out> -D[null, -0.25, 1970-01-01T00:00:01.500, +I[null]]
        "#]]
        .assert_eq(&text);
    }
}
