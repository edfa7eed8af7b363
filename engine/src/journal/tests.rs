//! The laws of the journal, on a disk that loses power.
#![allow(clippy::unwrap_used)]

use expect_test::expect;
use proptest::prelude::*;

use super::simulated::{Simulated, Whims};
use super::*;

fn entry(payload: &[u8]) -> Entry<'_> {
    Entry { arrival: 1_700_000_000_123, kind: Kind::Message, topic: "grid/3/m", payload }
}

fn open(disk: &Arc<Simulated>, segment_bytes: u64) -> Result<Journal, JournalError> {
    Journal::open(Arc::clone(disk) as Arc<dyn Disk>, "grid/#", segment_bytes)
}

fn read_all(journal: &Journal) -> Result<Vec<(u64, Vec<u8>)>, JournalError> {
    let mut reader = journal.reader(journal.bounds().0);
    let mut all = Vec::new();
    while let Some(record) = reader.read()? {
        assert_eq!((record.entry.topic, record.entry.arrival), ("grid/3/m", 1_700_000_000_123));
        all.push((record.offset, record.entry.payload.to_vec()));
    }
    Ok(all)
}

#[test]
fn what_was_synced_is_read_and_nothing_else() {
    let disk = Arc::new(Simulated::default());
    let mut journal = open(&disk, 180).unwrap();
    for payload in ["one", "two", "three", "four", "five"] {
        journal.append(&entry(payload.as_bytes())).unwrap();
        assert!(payload == "five" || journal.sync().is_ok());
    }
    let read = read_all(&journal).unwrap();
    assert_eq!(read.len(), 4);
    assert_eq!(read[3], (3, b"four".to_vec()));
    assert_eq!(journal.bounds(), (0, 4));
    let names: Vec<String> = disk.list().unwrap().into_iter().map(|f| f.0).collect();
    assert_eq!(names, ["00000000000000000000.journal", "00000000000000000003.journal"]);
    let mut reader = journal.reader(2);
    assert_eq!(reader.behind(), 2);
    assert_eq!(reader.read().unwrap().unwrap().entry.payload, b"three");
}

#[test]
fn the_bytes_of_format_version_1_do_not_change() {
    let disk = Arc::new(Simulated::default());
    let mut journal = open(&disk, SEGMENT_BYTES).unwrap();
    journal.append(&entry(b"{\"kwh\":1}")).unwrap();
    journal.sync().unwrap();
    let cut = Entry { arrival: -1, kind: Kind::Cut, topic: "", payload: b"x" };
    journal.append(&cut).unwrap();
    journal.sync().unwrap();
    let bytes = disk.bytes("00000000000000000000.journal");
    let lines: Vec<String> = bytes
        .chunks(16)
        .map(|line| line.iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(" "))
        .collect();
    expect![[r#"
        57 45 49 52 4a 52 4e 4c 01 00 00 00 06 00 00 00
        00 00 00 00 00 00 00 00 67 72 69 64 2f 23 c9 16
        9c 31 57 52 45 43 2c 98 12 0c 11 00 00 00 08 00
        00 00 00 00 00 00 00 00 00 00 7b 68 e5 cf 8b 01
        00 00 00 00 00 00 00 00 00 00 67 72 69 64 2f 33
        2f 6d 7b 22 6b 77 68 22 3a 31 7d 57 52 45 43 6c
        f1 a4 d8 01 00 00 00 00 00 01 00 01 00 00 00 00
        00 00 00 ff ff ff ff ff ff ff ff 01 00 00 00 00
        00 00 00 78"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn trimming_removes_whole_segments_and_keeps_the_last() {
    let disk = Arc::new(Simulated::default());
    let mut journal = open(&disk, 100).unwrap();
    for n in 0..5u8 {
        journal.append(&entry(&[n; 20])).unwrap();
        journal.sync().unwrap();
    }
    let before = journal.bytes();
    journal.trim(3).unwrap();
    assert_eq!(journal.bounds(), (3, 5));
    assert!(journal.bytes() < before);
    let mut reader = journal.reader(1);
    assert!(matches!(reader.read(), Err(JournalError::Trimmed { wanted: 1, first: 3 })));
    journal.trim(99).unwrap();
    assert_eq!(journal.bounds(), (4, 5));
    drop(journal);
    assert_eq!(read_all(&open(&disk, 100).unwrap()).unwrap(), [(4, vec![4; 20])]);
}

#[test]
fn a_full_disk_is_an_error_until_there_is_room() {
    let disk = Arc::new(Simulated::default());
    let mut journal = open(&disk, SEGMENT_BYTES).unwrap();
    journal.append(&entry(b"first")).unwrap();
    journal.sync().unwrap();
    disk.capacity(Some(150));
    journal.append(&entry(&[7; 100])).unwrap();
    let error = journal.sync().unwrap_err().to_string();
    assert!(error.contains("cannot append to"), "{error}");
    disk.capacity(None);
    assert_eq!(journal.append(&entry(b"second")).unwrap(), 1);
    journal.sync().unwrap();
    assert_eq!(read_all(&journal).unwrap()[1], (1, b"second".to_vec()));
}

#[test]
fn after_a_failed_fsync_nothing_is_accepted() {
    let disk = Arc::new(Simulated::default());
    let mut journal = open(&disk, SEGMENT_BYTES).unwrap();
    journal.append(&entry(b"first")).unwrap();
    // The append still works, the fsync does not.
    disk.fuse(1);
    assert!(matches!(journal.sync(), Err(JournalError::Io { doing: "sync", .. })));
    assert!(matches!(journal.append(&entry(b"x")), Err(JournalError::Unsure { .. })));
    assert!(matches!(journal.sync(), Err(JournalError::Unsure { .. })));
    assert!(read_all(&journal).unwrap().is_empty());
}

#[test]
fn another_label_or_version_is_refused() {
    let disk = Arc::new(Simulated::default());
    let mut journal = open(&disk, SEGMENT_BYTES).unwrap();
    journal.append(&entry(b"first")).unwrap();
    journal.sync().unwrap();
    drop(journal);
    let other = Journal::open(Arc::clone(&disk) as Arc<dyn Disk>, "plant/#", SEGMENT_BYTES);
    let error = other.err().unwrap().to_string();
    expect!["journal file 00000000000000000000.journal belongs to `grid/#`, not to `plant/#`"]
        .assert_eq(&error);
    disk.damage("00000000000000000000.journal", 8);
    let error = open(&disk, SEGMENT_BYTES).err().unwrap().to_string();
    let (file, found) = error.split_once(" has ").unwrap();
    assert_eq!(file, "journal file 00000000000000000000.journal");
    assert_eq!(found, "format version 254, this build reads version 1");
}

/// Three batches of two records in one segment, and a second segment with one record.
fn damaged(at: usize) -> (Arc<Simulated>, usize) {
    let disk = Arc::new(Simulated::default());
    let mut journal = open(&disk, 380).unwrap();
    for n in 0..7u8 {
        journal.append(&entry(&[n; 10])).unwrap();
        if n % 2 == 1 || n == 6 {
            journal.sync().unwrap();
        }
    }
    let size = disk.bytes("00000000000000000000.journal").len();
    if at < size {
        disk.damage("00000000000000000000.journal", at);
    } else {
        disk.damage("00000000000000000006.journal", at - size);
    }
    (disk, size)
}

#[test]
fn a_damaged_byte_is_reported_wherever_it_is_unless_nothing_was_written_after_it() {
    let (_, first) = damaged(0);
    for at in 0..first + 92 {
        let (disk, _) = damaged(at);
        match open(&disk, 380).and_then(|journal| read_all(&journal)) {
            Err(JournalError::Corrupt { file, at: reported, .. }) => {
                assert!(file.starts_with("00000000000000000000") == (at < first));
                assert!(reported as usize <= at);
            }
            Err(JournalError::Version { .. }) => assert!((8..12).contains(&(at % first))),
            Err(other) => panic!("byte {at}: {other}"),
            // The last segment: its single record looks like a torn tail.
            Ok(read) => {
                assert!(at >= first, "byte {at} was read over");
                assert_eq!(read.len(), 6);
            }
        }
    }
}

#[test]
fn a_missing_segment_is_reported() {
    let disk = Arc::new(Simulated::default());
    let mut journal = open(&disk, 100).unwrap();
    for n in 0..4u8 {
        journal.append(&entry(&[n; 20])).unwrap();
        journal.sync().unwrap();
    }
    drop(journal);
    disk.remove("00000000000000000002.journal").unwrap();
    let error = read_all(&open(&disk, 100).unwrap()).unwrap_err().to_string();
    assert!(error.contains("00000000000000000001.journal is damaged at byte 102"), "{error}");
    assert!(error.ends_with("it ends before offset 2, and 3 is next"), "{error}");
}

#[derive(Clone, Debug)]
enum Deed {
    Append(u8),
    Sync,
    Trim(u8),
}

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let deed = prop_oneof![
        5 => any::<u8>().prop_map(Deed::Append),
        3 => Just(Deed::Sync),
        1 => any::<u8>().prop_map(Deed::Trim),
    ];
    prop::collection::vec(deed, 1..60)
}

/// Does the deeds until the power goes, or the process alone, then looks at what is left; several
/// times over. The last time it is the power.
fn law(first: Simulated, rounds: &[(Vec<Deed>, usize, u64)]) -> Result<(), String> {
    let mut disk = Arc::new(first);
    let mut known: Vec<Vec<u8>> = Vec::new();
    let (mut trimmed, mut acknowledged) = (0, 0);
    for (round, (deeds, fuse, seed)) in rounds.iter().enumerate() {
        disk.fuse(*fuse);
        if let Ok(mut journal) = open(&disk, 300) {
            let end = journal.bounds().1 as usize;
            if end < acknowledged {
                return Err(format!("begun again at {end}, acknowledged were {acknowledged}"));
            }
            // What a process that died had not synced is there, or it is not.
            known.truncate(end);
            let done = (|| -> Result<(), JournalError> {
                acknowledged = known.len();
                for (n, deed) in deeds.iter().enumerate() {
                    match deed {
                        Deed::Append(size) => {
                            let payload = vec![n as u8; usize::from(*size)];
                            known.push(payload.clone());
                            let offset = journal.append(&entry(&payload))?;
                            assert_eq!(offset as usize, known.len() - 1);
                        }
                        Deed::Sync => acknowledged = journal.sync()? as usize,
                        Deed::Trim(percent) => {
                            let upto = acknowledged * usize::from(*percent) / 255;
                            trimmed = trimmed.max(upto);
                            journal.trim(upto as u64)?;
                        }
                    }
                }
                Ok(())
            })();
            drop(done);
        }
        if seed.is_multiple_of(3) && round + 1 < rounds.len() {
            disk.power_back();
            continue;
        }
        disk = Arc::new(disk.after_crash(*seed));
        let journal = open(&disk, 300).map_err(|e| format!("cannot be opened: {e}"))?;
        let read = read_all(&journal).map_err(|e| format!("cannot be read: {e}"))?;
        let (begin, end) = journal.bounds();
        if begin as usize > trimmed {
            return Err(format!("begins at {begin}, trimmed to {trimmed}"));
        }
        if (end as usize) < acknowledged {
            return Err(format!("ends at {end}, acknowledged were {acknowledged}"));
        }
        for (offset, payload) in &read {
            if known[*offset as usize] != *payload {
                return Err(format!("offset {offset} is altered"));
            }
        }
        if read.len() as u64 != end - begin {
            return Err(format!("{} records from {begin} to {end}", read.len()));
        }
        known.truncate(end as usize);
        acknowledged = known.len();
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn what_was_acknowledged_survives_a_crash_at_any_point(
        rounds in prop::collection::vec((deeds(), 0usize..60, any::<u64>()), 1..5)
    ) {
        law(Simulated::default(), &rounds).map_err(TestCaseError::fail)?;
    }
}

#[test]
fn a_disk_whose_fsync_lies_is_found_out() {
    let rounds = |seed: u64| {
        let mut whims = Whims(seed);
        let deeds: Vec<Deed> = (0..40)
            .map(|_| match whims.below(3) {
                0 => Deed::Sync,
                _ => Deed::Append(whims.below(200) as u8),
            })
            .collect();
        vec![(deeds, whims.below(40) as usize + 5, seed)]
    };
    let caught = (0..100).filter(|seed| law(Simulated::lying(), &rounds(*seed)).is_err()).count();
    assert!(caught > 50, "only {caught} of 100 crashes showed the lie");
    assert!((0..100).all(|seed| law(Simulated::default(), &rounds(seed)).is_ok()));
}

#[test]
fn a_real_folder_is_for_one_user_and_survives_a_torn_tail() {
    let folder = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(Folder::open(folder.path()).unwrap());
    let taken = Folder::open(folder.path()).unwrap_err();
    assert_eq!(taken.kind(), io::ErrorKind::WouldBlock);
    let mut journal = Journal::open(Arc::clone(&disk), "grid/#", 4_000).unwrap();
    for n in 0..100u8 {
        journal.append(&entry(&[n; 100])).unwrap();
        journal.sync().unwrap();
    }
    journal.trim(30).unwrap();
    let (begin, _) = journal.bounds();
    assert!(begin > 0 && begin <= 30);
    drop((journal, disk));

    let disk: Arc<dyn Disk> = Arc::new(Folder::open(folder.path()).unwrap());
    let (last, size) = disk.list().unwrap().into_iter().rfind(|f| f.0 != "lock").unwrap();
    disk.append(&last, b"WREC and then the power went").unwrap();
    let journal = Journal::open(Arc::clone(&disk), "grid/#", 4_000).unwrap();
    assert_eq!(read_all(&journal).unwrap().len() as u64, 100 - begin);
    assert_eq!(disk.list().unwrap().into_iter().find(|f| f.0 == last).unwrap().1, size);
}
