//! The `blackhole` sink: takes everything, keeps nothing but the count.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::num::NonZeroU32;
use std::sync::Arc;
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, TableSpec};
use weir_engine::rows::sliced_bytes;
use weir_engine::sink::{Author, ShardEnd, Sink, SinkReport, SinkWriter};
use weir_engine::time::Epoch;

weir_connect::options! {
    /// Options of the `blackhole` sink.
    pub struct BlackholeOptions {
        /// Number of writers.
        pub shards: NonZeroU32 = "sink.shards", default "1";
    }
}

/// The manual of the sink's options.
pub fn options() -> Vec<OptionDoc> {
    BlackholeOptions::docs()
}

/// Checks the options and makes the sink.
///
/// # Errors
/// Everything that is wrong with the options.
pub fn sink(table: &TableSpec) -> Result<Box<dyn Sink>, Vec<OptionError>> {
    Ok(Box::new(BlackholeSink { shards: BlackholeOptions::read(table, &[])?.shards.get() }))
}

struct BlackholeSink {
    shards: u32,
}

impl Sink for BlackholeSink {
    fn shards(&self) -> u32 {
        self.shards
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
        Ok(Box::new(Counter { report, rows: 0, bytes: 0, ended: 0 }))
    }

    fn probe(&self) -> Result<(), ConnectorError> {
        Ok(())
    }

    fn guarantee(&self) -> String {
        "nothing is kept".to_owned()
    }
}

struct Counter {
    report: Arc<SinkReport>,
    rows: u64,
    bytes: u64,
    ended: Epoch,
}

impl SinkWriter for Counter {
    fn write(
        &mut self,
        _: Epoch,
        rows: RecordBatch,
        _: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError> {
        self.rows += rows.num_rows() as u64;
        self.bytes += sliced_bytes(&rows) as u64;
        Ok(())
    }

    fn end_epoch(&mut self, end: ShardEnd) -> Result<Epoch, ConnectorError> {
        let epoch = end.epoch;
        if self.rows > 0 {
            self.report.committed(self.rows, self.bytes);
            (self.rows, self.bytes) = (0, 0);
        }
        self.ended = epoch;
        Ok(epoch)
    }

    fn flush(&mut self) -> Result<Epoch, ConnectorError> {
        Ok(self.ended)
    }

    fn finish(&mut self) -> Result<(), ConnectorError> {
        Ok(())
    }
}
