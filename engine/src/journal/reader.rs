//! Reading a journal: a cursor over one segment's records, and a reader over all that is durable.

use std::sync::Arc;
use std::time::Duration;

use super::record::{self, Head, Header, RECORD_HEAD_BYTES, Record};
use super::{Disk, JournalError, Segment, Shared, failed, wait_beyond};

const READ_BYTES: usize = 256 << 10;

/// What stands at a cursor's position.
pub(super) enum Step {
    /// A sound record, which the cursor now stands behind.
    Record(Head),
    /// The end, with nothing left over.
    End,
    /// Something that is no record, and why not.
    Bad(String),
}

/// Reads the records of one segment one after the other.
pub(super) struct Cursor {
    disk: Arc<dyn Disk>,
    name: String,
    /// Position in the file of the next record.
    at: u64,
    /// Where the file ends, as far as this cursor may know.
    end: u64,
    buffer: Vec<u8>,
    /// Where in the buffer the next record begins, and the last one read.
    start: usize,
    last: usize,
}

impl Cursor {
    pub(super) fn new(disk: Arc<dyn Disk>, name: String, at: u64, end: u64) -> Cursor {
        Cursor { disk, name, at, end, buffer: Vec::new(), start: 0, last: 0 }
    }

    /// Position in the file of the next record.
    pub(super) fn position(&self) -> u64 {
        self.at
    }

    /// Reads the record at the position, which has to be that of `offset`.
    pub(super) fn step(&mut self, offset: u64) -> Result<Step, JournalError> {
        if self.at == self.end {
            return Ok(Step::End);
        }
        if !self.ensure(RECORD_HEAD_BYTES)? {
            return Ok(Step::Bad("the file ends within a record".to_owned()));
        }
        let head = match record::read_head(&self.buffer[self.start..]) {
            Ok(head) => head,
            Err(reason) => return Ok(Step::Bad(reason.to_owned())),
        };
        let size = RECORD_HEAD_BYTES + head.body;
        if !self.ensure(size)? {
            return Ok(Step::Bad("the file ends within a record".to_owned()));
        }
        if let Err(reason) = record::check_record(&head, &self.buffer[self.start..]) {
            return Ok(Step::Bad(reason.to_owned()));
        }
        if head.offset != offset {
            let found = head.offset;
            return Ok(Step::Bad(format!("offset {found} stands where {offset} should")));
        }
        self.last = self.start;
        self.start += size;
        self.at += size as u64;
        Ok(Step::Record(head))
    }

    /// The record of the last successful step.
    fn record(&self, head: &Head) -> Record<'_> {
        record::view(head, &self.buffer[self.last..])
    }

    /// Sees to it that `bytes` bytes from the position are in the buffer; false where the file
    /// ends.
    fn ensure(&mut self, bytes: usize) -> Result<bool, JournalError> {
        let have = self.buffer.len() - self.start;
        if have >= bytes {
            return Ok(true);
        }
        if self.end - self.at < bytes as u64 {
            return Ok(false);
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let wanted = (bytes.max(READ_BYTES) as u64).min(self.end - self.at) as usize;
        self.buffer.resize(wanted, 0);
        let read = self
            .disk
            .read(&self.name, self.at + have as u64, &mut self.buffer[have..])
            .map_err(|e| failed("read", &self.name, e))?;
        self.buffer.truncate(have + read);
        Ok(self.buffer.len() >= bytes)
    }
}

/// The header of a segment.
pub(super) fn header_of(disk: &dyn Disk, segment: &Segment) -> Result<Header, JournalError> {
    let most = record::HEADER_HEAD_BYTES + record::LABEL_BYTES_MAX + 4;
    let mut bytes = vec![0; most.min(segment.bytes as usize)];
    let read =
        disk.read(&segment.name, 0, &mut bytes).map_err(|e| failed("read", &segment.name, e))?;
    Ok(record::read_header(&bytes[..read]))
}

/// Follows a journal from an offset, and sees what is durable.
pub struct Reader {
    shared: Arc<Shared>,
    next: u64,
    cursor: Option<Cursor>,
}

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, offset: u64) -> Reader {
        Reader { shared, next: offset, cursor: None }
    }

    /// The offset of the next record.
    pub fn offset(&self) -> u64 {
        self.next
    }

    /// Durable records that have not been read yet.
    pub fn behind(&self) -> u64 {
        self.shared.bounds().1.saturating_sub(self.next)
    }

    /// Whether the writer is gone and everything has been read.
    pub fn is_over(&self) -> bool {
        let durable = self.shared.durable();
        durable.closed && durable.end <= self.next
    }

    /// Waits until a record can be read, the journal is closed, or the time is over; says whether
    /// one can be read.
    pub fn wait(&self, time: Duration) -> bool {
        wait_beyond(&self.shared, self.next, time) > self.next
    }

    /// The next durable record, `None` if there is none yet.
    ///
    /// # Errors
    /// [`JournalError::Corrupt`] names the file and the byte; [`JournalError::Trimmed`].
    pub fn read(&mut self) -> Result<Option<Record<'_>>, JournalError> {
        match self.advance()? {
            Some(head) => Ok(self.cursor.as_ref().map(|cursor| cursor.record(&head))),
            None => Ok(None),
        }
    }

    fn advance(&mut self) -> Result<Option<Head>, JournalError> {
        // Within what is known to be durable there is nothing to ask the writer.
        match self.cursor.as_mut() {
            Some(cursor) if cursor.at < cursor.end => match cursor.step(self.next)? {
                Step::Record(head) => {
                    self.next += 1;
                    return Ok(Some(head));
                }
                Step::Bad(reason) => return Err(corrupt(&cursor.name, cursor.at, reason)),
                Step::End => {}
            },
            _ => {}
        }
        let (first, end) = self.shared.bounds();
        if self.next < first {
            return Err(JournalError::Trimmed { wanted: self.next, first });
        }
        if self.next >= end {
            return Ok(None);
        }
        let Some((segment, following)) = self.shared.segment_of(self.next) else {
            return Ok(None);
        };
        if self.cursor.as_ref().is_none_or(|cursor| cursor.name != segment.name) {
            self.cursor = Some(self.enter(&segment)?);
        }
        let Some(cursor) = self.cursor.as_mut() else { return Ok(None) };
        cursor.end = segment.bytes;
        match cursor.step(self.next)? {
            Step::Record(head) => {
                self.next += 1;
                Ok(Some(head))
            }
            Step::Bad(reason) => Err(corrupt(&segment.name, cursor.at, reason)),
            Step::End => {
                let after = following.map_or(end, |s| s.base);
                let missing = format!("it ends before offset {}, and {after} is next", self.next);
                Err(corrupt(&segment.name, cursor.at, missing))
            }
        }
    }

    /// A cursor that stands at the next record, in this segment.
    fn enter(&self, segment: &Segment) -> Result<Cursor, JournalError> {
        let disk = Arc::clone(&self.shared.disk);
        let header = match header_of(disk.as_ref(), segment)? {
            Header::Sound { bytes, .. } => bytes as u64,
            _ => return Err(corrupt(&segment.name, 0, "its header is not sound".to_owned())),
        };
        let mut cursor = Cursor::new(disk, segment.name.clone(), header, segment.bytes);
        for offset in segment.base..self.next {
            match cursor.step(offset)? {
                Step::Record(_) => {}
                Step::Bad(reason) => return Err(corrupt(&segment.name, cursor.at, reason)),
                Step::End => {
                    let reason = format!("it ends before offset {offset}");
                    return Err(corrupt(&segment.name, cursor.at, reason));
                }
            }
        }
        Ok(cursor)
    }
}

fn corrupt(file: &str, at: u64, reason: String) -> JournalError {
    JournalError::Corrupt { file: file.to_owned(), at, reason }
}
