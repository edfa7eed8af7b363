//! A group of epochs as COPY data: rows to write, and keys to delete.

use arrow::array::ArrayRef;
use arrow::error::ArrowError;

use super::copy::CopyStream;
use crate::group::{Action, Group};

/// A group as it is sent.
pub(crate) struct Prepared {
    /// COPY data of the rows to write.
    pub(crate) written: Option<Vec<u8>>,
    /// COPY data of the keys to delete.
    pub(crate) gone: Option<Vec<u8>>,
    /// Rows that the group was made of.
    pub(crate) rows: u64,
}

/// The data of a group. Without a key all of its rows are written.
///
/// # Errors
/// A value that COPY has no form for.
pub(crate) fn prepare(group: &Group) -> Result<Prepared, ArrowError> {
    let rows = group.rows() as u64;
    if group.key().is_empty() {
        let mut stream = CopyStream::start();
        for part in group.parts() {
            stream.append(part.rows.columns(), 0..part.rows.num_rows())?;
        }
        let written = (rows > 0).then(|| stream.finish());
        return Ok(Prepared { written, gone: None, rows });
    }
    let actions = group.last_actions();
    Ok(Prepared {
        written: encode(group, &actions, false)?,
        gone: encode(group, &actions, true)?,
        rows,
    })
}

fn encode(group: &Group, actions: &[Action], delete: bool) -> Result<Option<Vec<u8>>, ArrowError> {
    if actions.iter().all(|a| a.delete != delete) {
        return Ok(None);
    }
    let mut stream = CopyStream::start();
    for run in actions.chunk_by(|a, b| a.part == b.part) {
        let columns = group.parts()[run[0].part].rows.columns();
        let of_key: Vec<ArrayRef> = group.key().iter().map(|&i| columns[i].clone()).collect();
        let sent = if delete { &of_key[..] } else { columns };
        stream.append(sent, run.iter().filter(|a| a.delete == delete).map(|a| a.row))?;
    }
    Ok(Some(stream.finish()))
}
