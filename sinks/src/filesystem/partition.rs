//! Hive partitions: which folder a row belongs to, and what is left of it for the file.

use arrow::array::{Array, ArrayRef, RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use weir_engine::keys::encode_value;

/// Partitions whose folder names are remembered between batches.
const FOLDERS_MAX: usize = 4096;

/// The columns of a table, divided into those that make folders and those that go into files.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    partition_columns: Vec<(usize, String)>,
    file_columns: Vec<usize>,
    file_schema: SchemaRef,
    default_name: String,
    /// Folder of each partition seen, by the encoding of its columns.
    folders: HashMap<Vec<u8>, Arc<str>>,
}

impl Layout {
    /// Divides `schema` by the names of the partition columns; unknown names are ignored, the
    /// caller has refused them.
    pub(crate) fn of(schema: &Schema, partitioned_by: &[String], default_name: &str) -> Layout {
        let place = |name: &String| Some((schema.index_of(name).ok()?, name.clone()));
        let partition_columns: Vec<_> = partitioned_by.iter().filter_map(place).collect();
        let in_file = |i: &usize| partition_columns.iter().all(|(p, _)| p != i);
        let file_columns: Vec<usize> = (0..schema.fields().len()).filter(in_file).collect();
        let fields: Vec<_> = file_columns.iter().map(|&i| schema.fields()[i].clone()).collect();
        Layout {
            partition_columns,
            file_columns,
            file_schema: Arc::new(Schema::new(fields)),
            default_name: default_name.to_owned(),
            folders: HashMap::new(),
        }
    }

    /// What the files hold.
    pub(crate) fn file_schema(&self) -> SchemaRef {
        self.file_schema.clone()
    }

    /// The rows of each folder (`""` without partitions) in their order; folders in the order of
    /// their first rows.
    pub(crate) fn divide(
        &mut self,
        rows: &RecordBatch,
    ) -> Result<Vec<(Arc<str>, RecordBatch)>, ArrowError> {
        let in_file = rows.project(&self.file_columns)?;
        if self.partition_columns.is_empty() {
            return Ok(vec![(Arc::from(""), in_file)]);
        }
        if self.folders.len() > FOLDERS_MAX {
            self.folders.clear();
        }
        let columns: Vec<&ArrayRef> =
            self.partition_columns.iter().map(|(i, _)| rows.column(*i)).collect();
        let mut places: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut parts: Vec<(Arc<str>, Vec<u32>)> = Vec::new();
        let mut key = Vec::new();
        for row in 0..rows.num_rows() {
            key.clear();
            columns.iter().for_each(|c| encode_value(c.as_ref(), row, &mut key));
            let part = match places.get(&key) {
                Some(part) => *part,
                None => {
                    let folder = match self.folders.get(&key) {
                        Some(folder) => folder.clone(),
                        None => {
                            let folder: Arc<str> = Arc::from(self.folder(&columns, row)?);
                            self.folders.insert(key.clone(), folder.clone());
                            folder
                        }
                    };
                    // Two keys may share a folder: NULL and the empty text.
                    let known = parts.iter().position(|(f, _)| *f == folder);
                    let part = known.unwrap_or_else(|| {
                        parts.push((folder, Vec::new()));
                        parts.len() - 1
                    });
                    places.insert(key.clone(), part);
                    part
                }
            };
            parts[part].1.push(row as u32);
        }
        let taken = parts.into_iter().map(|(folder, indices)| {
            Ok((folder, take_record_batch(&in_file, &UInt32Array::from(indices))?))
        });
        taken.collect()
    }

    fn folder(&self, columns: &[&ArrayRef], row: usize) -> Result<String, ArrowError> {
        let options = FormatOptions::new()
            .with_timestamp_format(Some("%Y-%m-%d %H:%M:%S%.f"))
            .with_timestamp_tz_format(Some("%Y-%m-%d %H:%M:%S%.fZ"));
        let mut folder = String::new();
        for ((_, name), column) in self.partition_columns.iter().zip(columns) {
            if !folder.is_empty() {
                folder.push('/');
            }
            escape(name, &mut folder);
            folder.push('=');
            let value = if column.is_null(row) {
                String::new()
            } else {
                ArrayFormatter::try_new(column.as_ref(), &options)?.value(row).try_to_string()?
            };
            escape(if value.is_empty() { &self.default_name } else { &value }, &mut folder);
        }
        Ok(folder)
    }
}

/// Escapes what a path cannot hold as `%XX`, the set of Flink's `PartitionPathUtils` (and Hive's);
/// also a name of dots alone, which would lead elsewhere.
fn escape(text: &str, out: &mut String) {
    let dots = !text.is_empty() && text.bytes().all(|b| b == b'.');
    for c in text.chars() {
        let special = matches!(
            c,
            '\u{1}'
                ..='\u{1f}'
                    | '\u{0}'
                    | '"'
                    | '#'
                    | '%'
                    | '\''
                    | '*'
                    | '/'
                    | ':'
                    | '='
                    | '?'
                    | '\\'
                    | '\u{7f}'
                    | '{'
                    | '['
                    | ']'
                    | '^'
        );
        if special || dots {
            // Writing to a String cannot fail.
            let _ = write!(out, "%{:02X}", c as u32);
        } else {
            out.push(c);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use arrow::array::{Int64Array, StringArray, TimestampMillisecondArray};

    #[test]
    fn rows_go_to_escaped_folders_in_order_of_first_sight() {
        let batch = RecordBatch::try_from_iter([
            ("v", Arc::new(Int64Array::from(vec![1, 2, 3, 4, 5])) as ArrayRef),
            (
                "k",
                Arc::new(StringArray::from(vec![
                    Some("b/c"),
                    None,
                    Some("b/c"),
                    Some(""),
                    Some(".."),
                ])),
            ),
            ("t", Arc::new(TimestampMillisecondArray::from(vec![0, 500, 0, 500, 0]))),
        ])
        .unwrap();
        let by = ["k".to_owned(), "t".to_owned()];
        let mut layout = Layout::of(&batch.schema(), &by, "__D__");
        let parts = layout.divide(&batch).unwrap();
        let shown: Vec<String> = parts
            .iter()
            .map(|(f, r)| {
                format!("{f} {:?}", r.column(0).to_data().buffers()[0].typed_data::<i64>())
            })
            .collect();
        expect_test::expect![[r#"
            k=b%2Fc/t=1970-01-01 00%3A00%3A00 [1, 3]
            k=__D__/t=1970-01-01 00%3A00%3A00.500 [2, 4]
            k=%2E%2E/t=1970-01-01 00%3A00%3A00 [5]"#]]
        .assert_eq(&shown.join("\n"));
        assert_eq!(layout.file_schema().fields().len(), 1);
    }
}
