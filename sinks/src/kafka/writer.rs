//! One shard: gathers whole epochs and sends them as groups.
//!
//! # How large a group is
//! All epochs that wait, as [`Pace`] says, with `sink.buffer-flush.interval` for a rest; or as many
//! rows or bytes as a group may have.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::sync::Arc;
use std::time::Duration;
use weir_connect::retry::Retrying;
use weir_engine::connector::ConnectorError;
use weir_engine::sink::{Author, Progress, ShardEnd, SinkReport, SinkWriter};
use weir_engine::time::Epoch;

use super::client::Reporting;
use super::session::Session;
use super::{Kind, Plan};
use crate::group::Group;
use crate::pace::Pace;

const BYTES_MAX: usize = 8 << 20;

/// Writes one shard.
pub(super) struct Writer {
    plan: Arc<Plan>,
    session: Session,
    retrying: Retrying<'static>,
    report: Arc<SinkReport>,
    group: Group,
    pace: Pace,
    ended: Progress,
    committed: Epoch,
}

impl Writer {
    pub(super) fn open(
        plan: Arc<Plan>,
        shard: u32,
        author: Option<&Author>,
        report: Arc<SinkReport>,
    ) -> Result<Writer, ConnectorError> {
        let mut session = Session::of(plan.clone(), shard, author.cloned());
        let (notices, stop) = (report.clone(), report.clone());
        let (notice, stop) = (move |text| notices.notice(text), move || stop.given_up());
        // It was there a moment ago where the sink was taken over.
        let mut retrying = Retrying::new(plan.what(), notice, stop).known(author.is_some());
        retrying.run(|| {
            let waiting = Reporting::to(&report, plan.what());
            session.open(&waiting).inspect(|()| waiting.over())
        })?;
        Ok(Writer {
            group: Group::keyed_by(plan.columns.primary.clone()),
            committed: session.there().map_or(0, |there| there.epoch),
            pace: Pace::with_rest(plan.options.rest),
            plan,
            session,
            retrying,
            report,
            ended: Progress { epoch: 0, digest: 0 },
        })
    }

    /// Sends the group, however long that takes (at most `time_max`).
    fn commit(&mut self, time_max: Option<Duration>) -> Result<(), ConnectorError> {
        if self.group.rows() > 0 {
            let messages = self.plan.columns.messages(&self.group);
            let messages =
                messages.map_err(|e| ConnectorError::fatal(format!("rows for Kafka: {e}")))?;
            let (session, report, plan) = (&mut self.session, &self.report, &self.plan);
            let after = self.ended;
            self.retrying.run_for(time_max, || {
                let waiting = Reporting::to(report, plan.what());
                session.send(&messages, after, &waiting).inspect(|()| waiting.over())
            })?;
            self.report.committed(messages.rows, messages.bytes.len() as u64);
            self.group.clear();
            self.pace.sent();
        }
        self.committed = self.committed.max(self.ended.epoch);
        Ok(())
    }
}

impl SinkWriter for Writer {
    fn progress(&self) -> Option<Progress> {
        self.session.there()
    }

    fn keeps_progress(&self) -> bool {
        self.session.keeps_progress()
    }

    fn write(
        &mut self,
        epoch: Epoch,
        rows: RecordBatch,
        diffs: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError> {
        let backwards = diffs.as_ref().is_some_and(|d| d.iter().any(|&diff| diff < 0));
        if backwards && self.plan.kind == Kind::Append {
            let table = &self.plan.table;
            let message = format!("table `{table}`: connector 'kafka' cannot take rows back");
            let hint = "use the connector 'upsert-kafka' and a PRIMARY KEY";
            return Err(ConnectorError::fatal(message).hint(hint));
        }
        if rows.num_rows() > 0 {
            self.group.push(epoch, rows, diffs);
        }
        Ok(())
    }

    fn end_epoch(&mut self, end: ShardEnd) -> Result<Epoch, ConnectorError> {
        self.ended = Progress { epoch: end.epoch, digest: end.digest };
        let rows = self.group.rows();
        let full = rows >= self.plan.options.rows_max as usize || self.group.bytes() >= BYTES_MAX;
        if rows == 0 || full || self.pace.is_due(end) {
            self.commit(None)?;
        }
        Ok(self.committed)
    }

    fn patience(&self) -> Duration {
        self.pace.left()
    }

    fn flush(&mut self) -> Result<Epoch, ConnectorError> {
        self.commit(None)?;
        Ok(self.committed)
    }

    fn finish(&mut self) -> Result<(), ConnectorError> {
        let rows = self.group.rows();
        self.commit(Some(self.plan.options.close_timeout)).map_err(|mut error| {
            error.message = format!("{} ({rows} rows were not written)", error.message);
            error
        })
    }
}
