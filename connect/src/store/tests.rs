//! The same laws for local folders and memory; messages of what goes wrong.
#![allow(clippy::unwrap_used)]

use super::*;
use expect_test::expect;
use std::io::Write as _;

fn check_laws(url: &str) {
    let store = Store::open(url, &StoreOptions::none()).unwrap();
    assert_eq!(store.kind("").unwrap(), Kind::Nothing);
    assert_eq!(store.list("").unwrap(), []);
    for path in ["b.json", "a/z.json", "a/b/c.json", ".hidden", "a b/ü%20.json"] {
        let put = store.put(path, path.as_bytes().to_vec(), PutMode::Replace).unwrap();
        assert_eq!(put, PutOutcome::Written);
    }
    let listed = |path: &str| -> Vec<String> {
        store.list(path).unwrap().into_iter().map(|e| format!("{} {}", e.path, e.size)).collect()
    };
    assert_eq!(
        listed(""),
        ["a b/ü%20.json 14", "a/b/c.json 10", "a/z.json 8", "b.json 6"],
        "{url}"
    );
    assert_eq!(listed("a"), ["a/b/c.json 10", "a/z.json 8"]);
    assert_eq!(listed("b.json"), ["b.json 6"]);
    assert_eq!(store.kind("a").unwrap(), Kind::Folder);
    assert_eq!(store.kind("a/z.json").unwrap(), Kind::File(8));
    assert_eq!(store.read_all("a b/ü%20.json").unwrap(), "a b/ü%20.json".as_bytes());
    assert_eq!(store.read("a/b/c.json", 2..5).unwrap(), &b"b/c"[..]);

    let again = store.put("b.json", "other", PutMode::IfAbsent).unwrap();
    assert_eq!(again, PutOutcome::AlreadyThere);
    assert_eq!(store.read_all("b.json").unwrap(), &b"b.json"[..]);
    let fresh = store.put("new.json", "new", PutMode::IfAbsent).unwrap();
    assert_eq!(fresh, PutOutcome::Written);

    check_drafts(&store);
    store.delete("b.json").unwrap();
    store.delete("b.json").unwrap();
    assert_eq!(store.kind("b.json").unwrap(), Kind::Nothing);
    let single = Store::open(&format!("{url}/new.json"), &StoreOptions::none()).unwrap();
    assert_eq!(single.list("").unwrap(), [Entry { path: String::new(), size: 3 }]);
    assert_eq!(single.read_all("").unwrap(), &b"new"[..]);
    assert_eq!(single.name(""), format!("{url}/new.json"));
    store.probe_write().unwrap();
}

fn check_drafts(store: &Store) {
    let part: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
    let mut draft = store.draft("big").unwrap();
    for _ in 0..7 {
        draft.write_all(&part).unwrap();
    }
    assert_eq!(store.kind("parts").unwrap(), Kind::Nothing, "seen before its end");
    assert_eq!(draft.size(), 21_000_000);
    assert_eq!(draft.publish(store, "new.json").unwrap(), PutOutcome::AlreadyThere);
    assert_eq!(store.read_all("new.json").unwrap(), &b"new"[..]);
    assert!(!draft.is_at(store, "new.json").unwrap());
    let no = || Err(ConnectorError::fatal("not now"));
    let refused = draft.publish_if(store, "parts/big.bin", &no).unwrap_err();
    assert_eq!(refused.message, "not now");
    assert!(store.list("parts").unwrap().is_empty());
    assert_eq!(draft.publish(store, "parts/big.bin").unwrap(), PutOutcome::Written);
    assert!(draft.is_at(store, "parts/big.bin").unwrap());
    assert_eq!(draft.read(2_999_999..3_000_002).unwrap(), &[part[2_999_999], 0, 1][..]);
    assert_eq!(store.read_all("parts/big.bin").unwrap(), part.repeat(7));
    let mut other = part.repeat(7);
    other[20_999_999] ^= 1;
    store.put("parts/other.bin", other, PutMode::Replace).unwrap();
    assert!(!draft.is_at(store, "parts/other.bin").unwrap(), "its last byte is another");
    store.delete("parts/other.bin").unwrap();
    drop(draft);
    let mut given_up = store.draft("other").unwrap();
    given_up.write_all(b"x").unwrap();
    drop(given_up);
    assert_eq!(store.list("parts").unwrap().len(), 1);
}

#[test]
fn folders_and_memory_behave_alike() {
    let folder = tempfile::tempdir().unwrap();
    check_laws(&format!("{}/below/here", folder.path().display()));
    check_laws(&format!("file://{}/url", folder.path().display()));
    check_laws("memory://laws/some/prefix");
    let left = std::fs::read_dir(folder.path().join("below/here")).unwrap();
    let staged =
        left.filter(|f| f.as_ref().unwrap().path().extension().is_some_and(|e| e == "inprogress"));
    assert_eq!(staged.count(), 0);
}

#[test]
fn drafts_of_the_dead_are_swept_and_those_of_the_living_stay() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), &StoreOptions::none()).unwrap();
    for left in [".part-0-7-1-0.inprogress", ".part-00-1-1.inprogress", ".part-0-notes"] {
        std::fs::write(folder.path().join(left), "half").unwrap();
    }
    let alive = store.draft("part-0-8").unwrap();
    store.sweep("part-0-").unwrap();
    let mut names: Vec<String> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    let own = format!(".part-0-8-{}-", std::process::id());
    assert!(names[0].starts_with(&own), "{names:?}");
    assert_eq!(names[1..], [".part-0-notes", ".part-00-1-1.inprogress"]);
    drop(alive);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// What is on a full disk is lost in part, so that no repetition helps.
#[test]
fn a_draft_on_a_full_disk_says_where_and_is_final() {
    let folder = tempfile::tempdir().unwrap();
    let mut draft = draft::hidden(folder.path(), "part", "out for table `archive`").unwrap();
    draft.file = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = draft.write_all(b"x").unwrap_err().downcast::<ConnectorError>().unwrap();
    expect![[r#"
        Fatal: cannot write out for table `archive`: no space left on the device
        free space there
    "#]]
    .assert_eq(&told(error, "\0"));

    let mut draft = draft::nameless().unwrap();
    draft.file = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = draft.write_all(b"x").unwrap_err().downcast::<ConnectorError>().unwrap();
    let staging = std::env::temp_dir();
    assert!(error.message.contains(staging.to_str().unwrap()), "{error}");
    assert_eq!(error.hint.as_deref(), Some("TMPDIR names another folder"));
}

#[test]
fn memory_is_shared_by_name() {
    let put = Store::open("memory://shared/a", &StoreOptions::none()).unwrap();
    put.put("x", "1", PutMode::Replace).unwrap();
    let all = Store::open("memory://shared", &StoreOptions::none()).unwrap();
    assert_eq!(all.list("").unwrap(), [Entry { path: "a/x".into(), size: 1 }]);
    let other = Store::open("memory://elsewhere", &StoreOptions::none()).unwrap();
    assert_eq!(other.list("").unwrap(), []);
}

/// The message, with the folder's own name taken out.
fn told(error: ConnectorError, folder: &str) -> String {
    let hint = error.hint.unwrap_or_default();
    format!("{:?}: {}\n{hint}\n", error.remedy, error.message).replace(folder, "F")
}

#[test]
fn messages_say_where_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path().to_str().unwrap();
    let store = Store::open(at, &StoreOptions::none()).unwrap();
    store.put("readings.jsonl", "{}", PutMode::Replace).unwrap();
    let missing = Store::open(&format!("{at}/redings.jsonl"), &StoreOptions::none()).unwrap();
    expect![[r#"
        Reconfigure: no such file: F/redings.jsonl
        beside it there is readings.jsonl
    "#]]
    .assert_eq(&told(missing.reader("").err().unwrap(), at));
    expect![[r#"
        Reconfigure: no such file: F/a/b
        its folder does not exist either; check 'path'
    "#]]
    .assert_eq(&told(store.read_all("a/b").unwrap_err(), at));
    let under_file = store.put("readings.jsonl/x", "1", PutMode::Replace).unwrap_err();
    expect![[r#"
        Reconfigure: cannot write F/readings.jsonl/x: a part of the path is a file, not a folder

    "#]]
    .assert_eq(&told(under_file, at));
    let full = Store::open("/dev/full", &StoreOptions::none()).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let error = std::io::Write::write_all(&mut &file, b"x").unwrap_err();
    expect![[r#"
        Retry: cannot write /dev/full: no space left on the device
        free space there
    "#]]
    .assert_eq(&told(fault::of_disk(&error, "write", &full.name("")), at));
}

#[test]
fn an_s3_url_is_checked_before_it_is_used() {
    let open = |url: &str, change: &dyn Fn(&mut StoreOptions)| {
        let mut options = StoreOptions::none();
        change(&mut options);
        told(Store::open(url, &options).err().unwrap(), "\0")
    };
    let all = [
        open("gs://bucket/x", &|_| ()),
        open("s3:///x", &|_| ()),
        open("s3://b/x", &|o| o.endpoint = Some("http://s3.example.org".into())),
        open("s3://b/x", &|o| o.access_key = Some("k".into())),
    ];
    expect![[r#"
        Reconfigure: there is no storage called gs://
        write a local path, s3://bucket/prefix or memory://name/prefix

        Reconfigure: 'path' names no bucket
        write s3://bucket/prefix

        Reconfigure: the S3 server http://s3.example.org would be reached without TLS
        use https://, or set 's3.allow-http' = 'true'

        Reconfigure: 's3.access-key' and 's3.secret-key' only work together

    "#]]
    .assert_eq(&all.join("\n"));
}

#[test]
fn an_unreachable_server_is_worth_another_try() {
    let mut options = StoreOptions::none();
    options.endpoint = Some("http://127.0.0.1:9".into());
    options.access_key = Some("k".into());
    options.secret_key = Some(Secret::new("very-secret"));
    let store = Store::open("s3://b/x", &options).unwrap();
    let error = store.list("").unwrap_err();
    assert_eq!(error.remedy, weir_engine::connector::Remedy::Retry);
    assert!(error.message.contains("http://127.0.0.1:9 cannot be reached"), "{error}");
    assert!(error.message.contains("refused"), "{error}");
    assert!(!format!("{error:?} {options:?}").contains("very-secret"));
}
