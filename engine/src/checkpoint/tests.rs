//! Which checkpoints count, and what may be removed.

#![allow(clippy::unwrap_used)]
use super::*;
use crate::cut::{Quota, SourceSnapshot, SplitFacts, SplitState};
use crate::rows::SplitId;
use std::collections::BTreeSet;

fn name(epoch: Epoch, generation: u64) -> Name {
    Name { epoch, generation }
}

fn began(number: u64, base: Option<Epoch>) -> Generation {
    Generation { number, begun: Some(base) }
}

#[test]
fn what_a_zombie_made_beyond_the_next_base_does_not_count() {
    let generations = [began(1, None), began(2, Some(20)), Generation { number: 3, begun: None }];
    assert!(counts(name(20, 1), &generations));
    assert!(!counts(name(21, 1), &generations));
    assert!(counts(name(21, 2), &generations), "generation 3 has not begun");
    let anew = [began(1, None), began(2, None)];
    assert!(!counts(name(1, 1), &anew), "generation 2 began from nothing");
    let paths = [name(10, 1), name(30, 1), name(20, 1), name(25, 2)].map(Name::path);
    let newest_first = in_force(&paths, &generations);
    assert_eq!(newest_first, [name(25, 2), name(20, 1), name(10, 1)]);
    assert_eq!(Name::of(&name(25, 2).path()), Some(name(25, 2)));
    assert_eq!(Name::of("checkpoints/x.json"), None);
}

#[test]
fn what_is_named_or_newer_is_never_removed() {
    let generations = [began(1, None), began(2, Some(20))];
    let manifests = [name(10, 1), name(20, 1), name(25, 2), name(30, 1)].map(Name::path);
    let file =
        |generation: u64, epoch: u64| format!("pieces/{generation:020}-{epoch:020}-0.pieces");
    let files = [file(1, 10), file(1, 20), file(1, 30), file(2, 25), file(3, 40)];
    let named: BTreeSet<String> = [file(1, 10), file(2, 25)].into();
    let sound: BTreeSet<Name> = [name(10, 1), name(20, 1), name(25, 2), name(30, 1)].into();
    let kept = to_keep(&manifests, &generations, &sound).unwrap();
    assert_eq!(kept, [name(20, 1), name(25, 2)].into(), "30 is a zombie's");
    let gone = to_collect(&manifests, &files, &kept, &named, 2);
    assert_eq!(gone, [name(10, 1).path(), name(30, 1).path(), file(1, 20), file(1, 30)]);
    let by_old = to_collect(&manifests, &files, &kept, &named, 1);
    assert!(!by_old.contains(&file(3, 40)) && !by_old.contains(&file(2, 25)));
    assert!(!by_old.contains(&name(25, 2).path()));
    // Something that Weir did not put there stays.
    let strange = ["pieces/notes.txt".to_owned()];
    assert!(to_collect(&[], &strange, &kept, &BTreeSet::new(), 9).is_empty());
}

#[test]
fn what_is_not_known_to_be_sound_does_not_count_among_the_kept() {
    let generations = [began(1, None), began(2, Some(30))];
    let manifests = [name(10, 1), name(20, 1), name(30, 2)].map(Name::path);
    let sound: BTreeSet<Name> = [name(10, 1), name(30, 2)].into();
    assert_eq!(to_keep(&manifests, &generations, &sound), Some(sound));
    let one: BTreeSet<Name> = [name(30, 2)].into();
    assert_eq!(to_keep(&manifests, &generations, &one), None, "then nothing is removed");
}

fn golden() -> Manifest {
    let split = SplitFacts {
        split: SplitId::of(0, 3),
        offset: 1_000,
        mark: 1_700_000_000_000,
        state: SplitState::Reading,
        stride: 10,
        lost: 2,
        width: 64,
    };
    let all_idle = Some((5, 6));
    let source = SourceSnapshot { watermark: 7, all_idle, splits: vec![split] };
    let quota = Quota { split: split.split, rows: 9 };
    Manifest {
        format: FORMAT,
        weir: "0.1.0".to_owned(),
        generation: 3,
        epoch: 1_700_000_000_123,
        workers: 2,
        next_piece: 12,
        cuts: CutSnapshot {
            recorded_time: 1_700_000_000_100,
            sources: vec![source],
            decisions: vec![(1_700_000_000_124, vec![quota])],
        },
        shards: vec![ShardRecord { shard: (0, 1), digest: format!("{:032x}", 10) }],
        pieces: vec![PieceRecord {
            id: PieceId(11),
            owner: Owner::Operator(0),
            kind: "groups".to_owned(),
            key_groups: KeyGroups { first: 0, last: 127 },
            file: "pieces/00000000000000000003-00000001700000000123-0.pieces".to_owned(),
            offset: 0,
            length: 512,
            checksum: 0xdead_beef,
        }],
    }
}

#[test]
fn manifests_of_format_1_are_read_for_ever() {
    let bytes = include_bytes!("../../tests/golden/manifest-1.json");
    assert_eq!(load::parse(bytes).unwrap(), golden());
    let text = serde_json::to_string(&golden()).unwrap();
    assert_eq!(String::from_utf8(crate::store::seal(&text)).unwrap().as_bytes(), bytes);
}

#[test]
fn parts_of_format_1_are_read_for_ever() {
    let Manifest { format, generation, epoch, next_piece, shards, pieces, .. } = golden();
    let part = parts::Part { format, generation, epoch, next_piece, shards, pieces };
    let bytes = include_bytes!("../../tests/golden/part-1.json");
    let read: parts::Part = serde_json::from_str(crate::store::open(bytes).unwrap()).unwrap();
    assert_eq!(read, part);
    assert_eq!(crate::store::seal(&serde_json::to_string(&part).unwrap()), bytes);
    let place = "pieces/00000000000000000003-00000001700000000123-1.part.json";
    assert_eq!(part.path(1), place);
}

#[test]
fn another_format_is_named() {
    let other = Manifest { format: 2, weir: "9.0".to_owned(), ..golden() };
    let sealed = crate::store::seal(&serde_json::to_string(&other).unwrap());
    let error = load::parse(&sealed).unwrap_err();
    assert_eq!(error, "has format 2 (Weir 9.0); this build reads 1");
    let torn = &sealed[..sealed.len() - 20];
    assert!(load::parse(torn).unwrap_err().contains("ends before its checksum"));
}
