//! The store against a real S3 server: `WEIR_TEST_S3` and its companions name it.
#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Write as _;
use std::sync::{Arc, Barrier};
use weir_connect::options::Secret;
use weir_connect::store::{Entry, Kind, PutMode, PutOutcome, Store, StoreOptions};
use weir_engine::connector::{ConnectorError, Remedy};

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: cargo xtask services up"))
}

fn options() -> StoreOptions {
    let mut options = StoreOptions::none();
    options.endpoint = Some(variable("WEIR_TEST_S3"));
    options.access_key = Some(variable("WEIR_TEST_S3_KEY"));
    options.secret_key = Some(Secret::new(variable("WEIR_TEST_S3_SECRET")));
    options.region = Some(variable("WEIR_TEST_S3_REGION"));
    options
}

fn url(name: &str) -> String {
    let bucket = variable("WEIR_TEST_S3_BUCKET");
    format!("s3://{bucket}/store-{}/{name}", std::process::id())
}

#[test]
fn objects_come_and_go_whole() {
    let store = Store::open(&url("laws"), &options()).unwrap();
    assert_eq!(store.kind("").unwrap(), Kind::Nothing);
    assert_eq!(store.list("").unwrap(), []);
    for path in ["b.json", "a/b/c.json", "day=1/part=a%20b/x y.json"] {
        let put = store.put(path, path.as_bytes().to_vec(), PutMode::Replace).unwrap();
        assert_eq!(put, PutOutcome::Written);
    }
    let paths: Vec<String> = store.list("").unwrap().into_iter().map(|e| e.path).collect();
    assert_eq!(paths, ["a/b/c.json", "b.json", "day=1/part=a%20b/x y.json"]);
    assert_eq!(store.list("a").unwrap(), [Entry { path: "a/b/c.json".into(), size: 10 }]);
    assert_eq!(store.kind("a").unwrap(), Kind::Folder);
    assert_eq!(store.kind("b.json").unwrap(), Kind::File(6));
    assert_eq!(store.read("b.json", 2..4).unwrap(), &b"js"[..]);
    let odd = "day=1/part=a%20b/x y.json";
    assert_eq!(store.read_all(odd).unwrap(), odd.as_bytes());

    let again = store.put("b.json", "other", PutMode::IfAbsent).unwrap();
    assert_eq!(again, PutOutcome::AlreadyThere);
    assert_eq!(store.read_all("b.json").unwrap(), &b"b.json"[..]);
    let single = Store::open(&url("laws/b.json"), &options()).unwrap();
    assert_eq!(single.list("").unwrap(), [Entry { path: String::new(), size: 6 }]);
    store.delete("b.json").unwrap();
    store.delete("b.json").unwrap();
    assert_eq!(store.kind("b.json").unwrap(), Kind::Nothing);
    store.probe_write().unwrap();
}

#[test]
fn a_file_in_parts_is_seen_at_its_end() {
    let store = Store::open(&url("parts"), &options()).unwrap();
    let part: Vec<u8> = (0..5_000_000u32).map(|i| (i % 253) as u8).collect();
    let mut draft = store.draft("big").unwrap();
    for _ in 0..5 {
        draft.write_all(&part).unwrap();
    }
    assert_eq!(store.list("").unwrap(), []);
    let no = || Err(ConnectorError::fatal("not now"));
    assert_eq!(draft.publish_if(&store, "big.bin", &no).unwrap_err().message, "not now");
    assert_eq!(store.list("").unwrap(), []);
    assert_eq!(draft.publish(&store, "big.bin").unwrap(), PutOutcome::Written);
    assert!(draft.is_at(&store, "big.bin").unwrap());
    assert!(store.read_all("big.bin").unwrap() == part.repeat(5));
    let again = draft.publish(&store, "big.bin").unwrap();
    assert_eq!(again, PutOutcome::Written, "its own bytes, as after a reply that was lost");
    drop(draft);
    assert_eq!(store.list("").unwrap().len(), 1);
}

/// Both find the name free; the completion of the slower one must not replace the other's object.
#[test]
fn of_two_uploads_to_one_name_the_first_one_stays() {
    let store = Store::open(&url("race"), &options()).unwrap();
    let ready = Arc::new(Barrier::new(2));
    let runs: Vec<_> = (0..2u8)
        .map(|run| {
            let (store, ready) = (store.clone(), ready.clone());
            std::thread::spawn(move || {
                let mut draft = store.draft("race").unwrap();
                draft.write_all(&vec![run; 20_000_000]).unwrap();
                ready.wait();
                draft.publish(&store, "one.bin").unwrap()
            })
        })
        .collect();
    let outcomes: Vec<_> = runs.into_iter().map(|run| run.join().unwrap()).collect();
    let written = outcomes.iter().filter(|o| **o == PutOutcome::Written).count();
    assert_eq!(written, 1, "{outcomes:?}");
    let winner = outcomes.iter().position(|o| *o == PutOutcome::Written).unwrap() as u8;
    assert!(store.read_all("one.bin").unwrap() == vec![winner; 20_000_000]);
}

#[test]
fn what_is_refused_says_where_and_what_to_do() {
    let server = variable("WEIR_TEST_S3");
    let store = Store::open("s3://no-such-bucket-here/x", &options()).unwrap();
    for error in [
        store.list("").unwrap_err(),
        store.read_all("a").unwrap_err(),
        store.probe_write().unwrap_err(),
    ] {
        assert_eq!(error.remedy, Remedy::Reconfigure, "{error}");
        let expected = format!("there is no bucket `no-such-bucket-here` on {server}");
        assert!(error.message.ends_with(&expected), "{error}");
    }
    let mut wrong = options();
    wrong.secret_key = Some(Secret::new("not-the-secret"));
    let store = Store::open(&url("denied"), &wrong).unwrap();
    for error in [store.list("").unwrap_err(), store.probe_write().unwrap_err()] {
        assert_eq!(error.remedy, Remedy::Reconfigure, "{error}");
        assert!(error.message.ends_with(&format!("access denied by {server}")), "{error}");
        assert!(!format!("{error:?}").contains("not-the-secret"));
    }
    let missing = Store::open(&url("nothing"), &options()).unwrap().reader("a").err().unwrap();
    assert!(missing.message.starts_with("no such object: s3://"), "{missing}");
}
