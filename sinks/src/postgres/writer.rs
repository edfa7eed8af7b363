//! One shard: gathers whole epochs and sends them as groups.
//!
//! # How large a group is
//! All epochs that wait, as [`Pace`] says, with `sink.buffer-flush.interval` for a rest; or as many
//! rows as a transaction may take. That number follows the link: a transaction of more than a
//! second halves it, a faster one of that size doubles it, up to `sink.buffer-flush.max-rows`. So
//! on a slow link transactions stay short, and a lost one costs little.

use arrow::array::RecordBatch;
use arrow::buffer::ScalarBuffer;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use weir_connect::retry::Retrying;
use weir_engine::connector::ConnectorError;
use weir_engine::sink::{Progress, ShardEnd, SinkReport, SinkWriter};
use weir_engine::time::Epoch;

use super::Plan;
use super::broken::{Guard, is_off};
use super::group::{Prepared, prepare};
use super::nul;
use super::progress::{ProgressTable, Step};
use super::session::Session;
use crate::group::Group;
use crate::pace::Pace;

/// A transaction should not take longer.
const TRANSACTION_AIM: Duration = Duration::from_secs(1);
const ROWS_MIN: usize = 16;
const BYTES_MAX: usize = 8 << 20;

/// Writes one shard.
pub(crate) struct Writer {
    plan: Arc<Plan>,
    session: Session,
    retrying: Retrying<'static>,
    report: Arc<SinkReport>,
    group: Group,
    pace: Pace,
    rows_aim: usize,
    /// The end of the last epoch.
    ended: ShardEnd,
    committed: Epoch,
    once: Option<Once>,
}

/// What a writer of a job that lasts knows of its progress.
struct Once {
    table: ProgressTable,
    shard: u32,
    /// As the database has it, unless `unsure`.
    progress: Option<Progress>,
    /// Whether a commit may have happened without a reply.
    unsure: bool,
}

impl Writer {
    /// Opens a shard; `once` where the job lasts.
    pub(crate) fn open(
        plan: Arc<Plan>,
        shard: u32,
        once: Option<ProgressTable>,
        report: Arc<SinkReport>,
    ) -> Result<Writer, ConnectorError> {
        let mut session = Session::of(plan.clone())?;
        let (notices, stop) = (report.clone(), report.clone());
        let (notice, stop) = (move |text| notices.notice(text), move || stop.given_up());
        // It was there a moment ago where the sink was taken over.
        let mut retrying = Retrying::new(plan.what(), notice, stop).known(once.is_some());
        retrying.run(|| session.reach())?;
        let once = match once {
            None => None,
            Some(table) => {
                let row = retrying.run(|| session.progress(&table, shard));
                let progress = row.map_err(|e| plan.blamed(e))?.progress;
                Some(Once { table, shard, progress, unsure: false })
            }
        };
        Ok(Writer {
            group: Group::keyed_by(plan.target.key().to_vec()),
            rows_aim: plan.options.rows_max.get() as usize,
            pace: Pace::with_rest(plan.options.rest),
            plan,
            session,
            retrying,
            report,
            ended: ShardEnd::at(0, 0),
            committed: 0,
            once,
        })
    }

    /// Sends the group, however long that takes (at most `time_max`).
    fn commit(&mut self, time_max: Option<Duration>) -> Result<(), ConnectorError> {
        if self.group.rows() > 0 || self.has_refused_only() {
            let prepared = prepare(&self.group);
            let prepared =
                prepared.map_err(|e| ConnectorError::fatal(format!("rows for PostgreSQL: {e}")))?;
            let bytes = prepared.written.as_ref().map_or(0, Vec::len);
            let mut began = Instant::now();
            let (session, once, ended) = (&mut self.session, &mut self.once, self.ended);
            self.retrying
                .run_for(time_max, || {
                    began = Instant::now();
                    match once {
                        None => session.send(&prepared, "COMMIT"),
                        Some(once) => once.send(session, &prepared, ended),
                    }
                })
                .map_err(|e| self.plan.blamed(e))?;
            self.adapt(began.elapsed());
            self.report.committed(prepared.rows, bytes as u64);
            self.group.clear();
            self.pace.sent();
        }
        self.committed = self.ended.epoch;
        Ok(())
    }

    /// Whether rows were left out and none came beside them: the progress has to tell of them.
    fn has_refused_only(&self) -> bool {
        let Some(once) = &self.once else { return false };
        let known = once.progress.map_or(0, |progress| progress.digest);
        self.ended.epoch > 0 && known != self.ended.digest
    }

    /// Counts rows that PostgreSQL cannot hold; says so at the first, the tenth, the hundredth.
    fn refuse(&self, epoch: Epoch, count: usize) {
        let before = self.report.refused.fetch_add(count as u64, Ordering::Relaxed);
        let after = before + count as u64;
        if before.checked_ilog10() != after.checked_ilog10() {
            tracing::warn!(
                table = %self.plan.table,
                epoch,
                rows = after,
                "rows left out: their text holds a NUL character, which PostgreSQL cannot store"
            );
        }
    }

    fn adapt(&mut self, took: Duration) {
        let rows_max = self.plan.options.rows_max.get() as usize;
        if took > TRANSACTION_AIM {
            self.rows_aim = (self.rows_aim.min(self.group.rows()) / 2).max(ROWS_MIN.min(rows_max));
        } else if self.group.rows() >= self.rows_aim {
            self.rows_aim = (self.rows_aim * 2).min(rows_max);
        }
    }
}

impl Plan {
    /// The error with the table's name, unless it is there already.
    pub(crate) fn blamed(&self, mut error: ConnectorError) -> ConnectorError {
        let name = format!("`{}`", self.table);
        if !error.message.contains(&name) {
            error.message = format!("table {name}: {}", error.message);
        }
        error
    }
}

impl Once {
    /// Sends a group that ends here, unless it is there already.
    fn send(
        &mut self,
        session: &mut Session,
        group: &Prepared,
        end: ShardEnd,
    ) -> Result<(), ConnectorError> {
        let to = Progress { epoch: end.epoch, digest: end.digest };
        if self.unsure && !is_off(Guard::Progress) {
            let found = session.progress(&self.table, self.shard)?.progress;
            if found == Some(to) {
                (self.progress, self.unsure) = (found, false);
                return Ok(());
            }
            if found != self.progress {
                let (found, known) = (told(found), told(self.progress));
                let message = format!("its progress is at {found}, and was left at {known}");
                return Err(ConnectorError::fatal(message)
                    .hint("does something else write to the progress table?"));
            }
        }
        self.unsure = true;
        let from = self.progress.map(|progress| progress.epoch);
        let step = Step { shard: self.shard, from, to };
        session.send(group, &self.table.commit_sql(step))?;
        (self.progress, self.unsure) = (Some(to), false);
        Ok(())
    }
}

fn told(progress: Option<Progress>) -> String {
    progress.map_or("nothing".to_owned(), |progress| format!("epoch {}", progress.epoch))
}

impl SinkWriter for Writer {
    fn progress(&self) -> Option<Progress> {
        self.once.as_ref()?.progress
    }

    fn keeps_progress(&self) -> bool {
        self.once.is_some()
    }

    fn write(
        &mut self,
        epoch: Epoch,
        rows: RecordBatch,
        diffs: Option<ScalarBuffer<i64>>,
    ) -> Result<(), ConnectorError> {
        let backwards = diffs.as_ref().is_some_and(|d| d.iter().any(|&diff| diff < 0));
        if backwards && !self.plan.target.has_key() {
            let message = "rows cannot be taken back without a primary key";
            return Err(self.plan.blamed(ConnectorError::fatal(message)));
        }
        let on_nul = self.plan.options.on_nul;
        let key = self.plan.target.key();
        let ((rows, diffs), refused) = nul::fit((rows, diffs), on_nul, key)
            .map_err(|e| ConnectorError::fatal(format!("rows for PostgreSQL: {e}")))?;
        if !refused.is_empty() {
            self.refuse(epoch, refused.len());
        }
        if rows.num_rows() > 0 {
            self.group.push(epoch, rows, diffs);
        }
        Ok(())
    }

    fn end_epoch(&mut self, end: ShardEnd) -> Result<Epoch, ConnectorError> {
        self.ended = end;
        let rows = self.group.rows();
        let full = rows >= self.rows_aim || self.group.bytes() >= BYTES_MAX;
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
