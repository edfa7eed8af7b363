//! What Weir wrote: suspects as JSON lines, flags of the literal rule as Parquet, read back as
//! anybody would.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, TimeUnit, TimestampMillisecondType};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::instants;
use super::judge::Suspicion;

/// A row of the table `suspects`; the columns that are shown.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(super) struct Suspect {
    pub(super) meter_id: String,
    pub(super) window_start: String,
    pub(super) window_end: String,
    pub(super) reading_kwh: f64,
    pub(super) baseline_kwh: f64,
    pub(super) ratio: f64,
    pub(super) low_readings: u64,
    pub(super) avg_kwh: f64,
    pub(super) usual_kwh: f64,
    pub(super) missing_w: f64,
    pub(super) severity: String,
    pub(super) customer_id: String,
    pub(super) feeder_id: String,
}

impl Suspect {
    /// What it says, `None` if its times are no times.
    pub(super) fn suspicion(&self) -> Option<Suspicion> {
        Some(Suspicion {
            meter_id: self.meter_id.clone(),
            from: instants::parse(&self.window_start)?,
            until: instants::parse(&self.window_end)?,
        })
    }
}

/// Files with this ending in a folder, in the order of their names; none if there is no folder yet.
pub(super) fn files(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.path());
    let whole = |path: &PathBuf| path.extension().is_some_and(|e| e == ending);
    let mut found: Vec<PathBuf> = entries.filter(whole).collect();
    found.sort();
    found
}

/// Reads each file of suspects once.
pub(super) struct Suspects {
    folder: PathBuf,
    read: BTreeSet<PathBuf>,
}

impl Suspects {
    /// Those that come to a folder.
    pub(super) fn of(folder: PathBuf) -> Suspects {
        Suspects { folder, read: BTreeSet::new() }
    }

    /// The rows of files that are new since the last time.
    ///
    /// # Errors
    /// A file that cannot be read, or a line that is no suspect.
    pub(super) fn fresh(&mut self) -> Result<Vec<Suspect>, String> {
        let mut rows = Vec::new();
        for path in files(&self.folder, "jsonl") {
            if self.read.contains(&path) {
                continue;
            }
            let text = fs::read_to_string(&path).map_err(|e| said(&path, &e))?;
            for line in text.lines() {
                rows.push(serde_json::from_str(line).map_err(|e| said(&path, &e))?);
            }
            self.read.insert(path);
        }
        Ok(rows)
    }
}

/// Number of lines in the JSON files of a folder.
pub(super) fn lines(folder: &Path) -> Result<u64, String> {
    let mut lines = 0;
    for path in files(folder, "jsonl") {
        let text = fs::read(&path).map_err(|e| said(&path, &e))?;
        lines += text.iter().filter(|&&byte| byte == b'\n').count() as u64;
    }
    Ok(lines)
}

/// The flags of the literal rule: a suspicion a reading.
pub(super) fn literal(folder: &Path) -> Result<Vec<Suspicion>, String> {
    let mut flags = Vec::new();
    for path in files(folder, "parquet") {
        let file = File::open(&path).map_err(|e| said(&path, &e))?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|builder| builder.build())
            .map_err(|e| said(&path, &e))?;
        for batch in reader {
            let batch = batch.map_err(|e| said(&path, &e))?;
            let column = |name: &str, kind: &DataType| {
                let column = batch.column_by_name(name).ok_or_else(|| said(&path, &name))?;
                arrow::compute::cast(column, kind).map_err(|e| said(&path, &e))
            };
            let meters = column("meter_id", &DataType::Utf8)?;
            let times = column("ts", &DataType::Timestamp(TimeUnit::Millisecond, None))?;
            let (meters, times) =
                (meters.as_string::<i32>(), times.as_primitive::<TimestampMillisecondType>());
            flags.extend((0..meters.len()).map(|row| Suspicion {
                meter_id: meters.value(row).to_owned(),
                from: times.value(row),
                until: times.value(row),
            }));
        }
    }
    Ok(flags)
}

fn said(path: &Path, what: &dyn std::fmt::Display) -> String {
    format!("cannot read the result {}: {what}", path.display())
}
