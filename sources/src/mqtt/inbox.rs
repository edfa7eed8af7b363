//! From messages to journal entries to acknowledgements.
//!
//! # Invariant
//! The acknowledgement of a message leaves [`Batch::commit`] only after the fsync that made its
//! entry durable has returned; and it is sent on the connection that the message came from, or
//! never.
//!
//! # Argument
//! Acknowledgements are made by nothing but `commit`, after `Journal::sync`. They live in a
//! [`Batch`], which a connection owns: when it breaks they go with it, and the broker sends those
//! messages again under packet ids of the next connection. So no id is used on a connection that
//! did not give it out.

use super::packet::{self, Publish};
use weir_engine::journal::{Entry, Journal, JournalError, Kind};

/// How much of a message beyond the size limit is kept.
const CUT_PAYLOAD_BYTES: usize = 1_024;

/// Messages of one connection between two fsyncs.
#[derive(Debug, Default)]
pub(super) struct Batch {
    packet_ids: Vec<u16>,
    acknowledgements: Vec<u8>,
}

impl Batch {
    /// Journals a message; `whole` is false for one beyond the size limit.
    pub(super) fn take(
        &mut self,
        journal: &mut Journal,
        publish: &Publish<'_>,
        whole: bool,
        arrival: i64,
    ) -> Result<(), JournalError> {
        let (kind, payload) = if whole {
            (Kind::Message, publish.payload)
        } else {
            (Kind::Cut, &publish.payload[..publish.payload.len().min(CUT_PAYLOAD_BYTES)])
        };
        journal.append(&Entry { arrival, kind, topic: publish.topic, payload })?;
        if publish.qos > 0 {
            self.packet_ids.push(publish.packet_id);
        }
        Ok(())
    }

    /// Makes everything taken durable, and gives the packets that acknowledge it.
    pub(super) fn commit(&mut self, journal: &mut Journal) -> Result<&[u8], JournalError> {
        journal.sync()?;
        self.acknowledgements.clear();
        for packet_id in self.packet_ids.drain(..) {
            packet::write_puback(&mut self.acknowledgements, packet_id);
        }
        Ok(&self.acknowledgements)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use weir_engine::journal::simulated::{Simulated, Whims};
    use weir_engine::journal::{Disk, SEGMENT_BYTES};

    fn open(disk: &Arc<Simulated>) -> Journal {
        Journal::open(Arc::clone(disk) as Arc<dyn Disk>, "#", SEGMENT_BYTES).unwrap()
    }

    /// Messages come until the power goes; whether all acknowledged ones are there afterwards.
    fn acknowledged_are_kept(disk: Simulated, seed: u64) -> bool {
        let disk = Arc::new(disk);
        let mut whims = Whims(seed);
        disk.fuse(4 + whims.below(60) as usize);
        let mut acknowledged = BTreeSet::new();
        let run = || -> Result<(), JournalError> {
            let mut journal = open(&disk);
            let mut batch = Batch::default();
            for id in 1..=200u16 {
                let payload = id.to_be_bytes();
                let publish = Publish { qos: 1, topic: "t", packet_id: id, payload: &payload };
                batch.take(&mut journal, &publish, true, 0)?;
                if whims.below(4) == 0 {
                    let acks = batch.commit(&mut journal)?;
                    acknowledged.extend(acks.chunks(4).map(|ack| [ack[2], ack[3]]));
                }
            }
            Ok(())
        };
        let mut run = run;
        drop(run());
        let journal = match Journal::open(
            Arc::new(disk.after_crash(seed)) as Arc<dyn Disk>,
            "#",
            SEGMENT_BYTES,
        ) {
            Ok(journal) => journal,
            Err(_) => return false,
        };
        let mut reader = journal.reader(0);
        let mut kept = BTreeSet::new();
        while let Ok(Some(record)) = reader.read() {
            kept.insert([record.entry.payload[0], record.entry.payload[1]]);
        }
        assert!(seed > 0 || !acknowledged.is_empty());
        acknowledged.is_subset(&kept)
    }

    #[test]
    fn no_acknowledgement_precedes_its_fsync() {
        assert!((0..500).all(|seed| acknowledged_are_kept(Simulated::default(), seed)));
    }

    #[test]
    fn with_an_fsync_that_lies_acknowledged_messages_are_lost() {
        let lost = (0..500).filter(|seed| !acknowledged_are_kept(Simulated::lying(), *seed));
        assert!(lost.count() > 100);
    }

    #[test]
    fn acknowledgements_go_with_their_connection() {
        let disk = Arc::new(Simulated::default());
        let mut journal = open(&disk);
        let publish = Publish { qos: 1, topic: "t", packet_id: 9, payload: b"{}" };
        let mut broken = Batch::default();
        broken.take(&mut journal, &publish, true, 0).unwrap();
        drop(broken);
        let mut batch = Batch::default();
        batch.take(&mut journal, &Publish { packet_id: 1, ..publish }, true, 0).unwrap();
        batch.take(&mut journal, &Publish { qos: 0, packet_id: 0, ..publish }, true, 0).unwrap();
        assert_eq!(batch.commit(&mut journal).unwrap(), [0x40, 2, 0, 1]);
        assert_eq!(journal.bounds(), (0, 3));
    }
}
