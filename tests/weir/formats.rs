//! What an earlier build left is gone on from, or refused with the reason.
//!
//! `tests/golden/state-1` is a job that was killed behind its second checkpoint: its script, its
//! input, what it had put and its state, with all paths from its own folder. It was made by
//! `weir run --epoch 2rows --checkpoint-interval 1ms --state state script.sql`. A record whose form
//! changes on purpose gets a second state beside it; this one is read for ever.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use weir_engine::source::SplitSpec;
use weir_engine::store::{open, seal};

use crate::helping::WEIR;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
const CLAIM: &str = "generations/00000000000000000001.json";
const BEGUN: &str = "generations/00000000000000000001.begun.json";
/// What the stored job gives, whoever ends it.
const DIGESTS: [&str; 2] =
    ["usage a364e5871f2dc2cfbaef4140df80b129", "visits 47f5c415ca931b53b0c79151077a7c82"];

/// A folder with the job in it.
struct Job {
    folder: tempfile::TempDir,
}

struct Ended {
    code: Option<i32>,
    out: String,
    said: String,
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name())).unwrap();
        if path.is_dir() {
            copy(&path, &to.join(name));
        } else {
            fs::copy(&path, to.join(name)).unwrap();
        }
    }
}

impl Job {
    /// As it was left.
    fn stored() -> Job {
        let folder = tempfile::tempdir().unwrap();
        copy(&Path::new(GOLDEN).join("state-1"), folder.path());
        Job { folder }
    }

    /// As it was before its first start.
    fn anew() -> Job {
        let job = Job::stored();
        fs::remove_dir_all(job.path("state")).unwrap();
        fs::remove_dir_all(job.path("out")).unwrap();
        job
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// An object of its state.
    fn object(&self, name: &str) -> PathBuf {
        self.path("state/usage-visits").join(name)
    }

    fn weir(&self, words: &[&str]) -> Ended {
        let mut command = Command::new(WEIR);
        command.args(words).current_dir(self.folder.path()).env_remove("WEIR_LOG");
        let output = command.output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        Ended { code: output.status.code(), out: text(output.stdout), said: text(output.stderr) }
    }

    fn run(&self, flags: &[&str]) -> Ended {
        self.weir(&[&["run", "--digest", "--state", "state"], flags, &["script.sql"]].concat())
    }

    /// What was put for a table: the files' contents by what their names say beside the job.
    fn contents(&self, table: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(self.path("out").join(table)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_file() && !name.starts_with('.') {
                let (_, epoch) = name.rsplit_once('-').unwrap();
                let text = fs::read_to_string(&path).unwrap();
                assert!(found.insert(epoch.to_owned(), text).is_none(), "{name} twice");
            }
        }
        found
    }

    /// The rows of a table, in order. In which files they are depends on today's date: a file that
    /// was begun long ago is closed.
    fn rows(&self, table: &str) -> Vec<String> {
        let contents = self.contents(table);
        let mut rows: Vec<String> =
            contents.values().flat_map(|text| text.lines().map(str::to_owned)).collect();
        rows.sort_unstable();
        rows
    }

    /// Refused: with exit code 1, this message, and nothing written.
    fn is_refused(&self, message: &str) {
        let generations = || fs::read_dir(self.object("generations")).unwrap().count();
        let before = (generations(), self.contents("usage"), self.contents("visits"));
        let ended = self.run(&[]);
        assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{}", ended.said);
        assert!(ended.said.contains(message), "{}", ended.said);
        assert!((generations(), self.contents("usage"), self.contents("visits")) == before);
    }
}

impl Ended {
    /// It ended well, with these sums.
    fn gives(&self, digests: [&str; 2]) {
        assert_eq!(self.code, Some(0), "{}", self.said);
        let sum = |line: &str| line.split(' ').skip(1).take(2).collect::<Vec<_>>().join(" ");
        let sums: Vec<String> = self.out.lines().map(sum).collect();
        assert_eq!(sums, digests, "{}", self.said);
    }
}

fn text_of(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_state_of_format_1_is_gone_on_from() {
    let whole = Job::anew();
    whole.run(&["--epoch", "2rows"]).gives(DIGESTS);
    for flags in [&["-w", "1"][..], &["-w", "3"], &["--processes", "2"]] {
        let job = Job::stored();
        let listed = job.weir(&["checkpoints", "state"]);
        assert_eq!((listed.code, listed.out.matches("  sound: ").count()), (Some(0), 2));
        let ended = job.run(flags);
        ended.gives(DIGESTS);
        let told = "generation 2: goes on from the checkpoint at epoch 14, by recorded cuts to 21";
        assert!(ended.said.contains(told), "{}", ended.said);
        for table in ["usage", "visits"] {
            assert_eq!(job.rows(table), whole.rows(table), "{table}: {flags:?}");
        }
        let begun = seal(r#"{"format":1,"generation":2,"base":21}"#);
        let path = job.object("generations/00000000000000000002.begun.json");
        assert_eq!(fs::read(path).unwrap(), begun);
    }
}

#[test]
fn a_job_begins_with_records_of_format_1() {
    let job = Job::anew();
    job.run(&["--epoch", "2rows"]).gives(DIGESTS);
    let golden = Path::new(GOLDEN).join("state-1/state/usage-visits");
    for name in [CLAIM, BEGUN] {
        assert_eq!(text_of(&job.object(name)), text_of(&golden.join(name)));
    }
    // All but the name that no other job has.
    let record = |path: &Path| {
        let sealed = text_of(path);
        let line = open(sealed.as_bytes()).unwrap();
        let id = serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_owned();
        assert!(id.starts_with("usage-visits-") && id.len() == 29, "{id}");
        line.replace(&id, "").replace(env!("CARGO_PKG_VERSION"), "0.1.0")
    };
    assert_eq!(record(&job.object("job.json")), record(&golden.join("job.json")));
}

#[test]
fn a_list_of_splits_counts_in_place_of_the_jobs_own() {
    let golden = fs::read(Path::new(GOLDEN).join("splits-1.json")).unwrap();
    let splits: Vec<Vec<SplitSpec>> = serde_json::from_str(open(&golden).unwrap()).unwrap();
    let joined: Vec<(&str, bool)> =
        splits[0].iter().map(|split| (split.name.as_str(), split.joined)).collect();
    let names =
        ["in/readings/part-0.jsonl", "in/readings/part-1.jsonl", "in/readings/part-2.jsonl"];
    assert_eq!(joined, [(names[0], false), (names[1], false), (names[2], true)]);
    assert_eq!(seal(&serde_json::to_string(&splits).unwrap()), golden);
    // Once without the list, once with it.
    let told = [false, true].map(|listed| {
        let job = Job::stored();
        let more = "{\"seq\":100,\"meter\":\"m1\",\"ts\":1767226500000,\"kwh\":7.5}\n";
        fs::write(job.path("in/readings/part-2.jsonl"), more).unwrap();
        if listed {
            let path = job.object("splits/00000000000000000002.json");
            fs::create_dir(path.parent().unwrap()).unwrap();
            fs::write(path, &golden).unwrap();
        }
        assert_eq!(job.run(&[]).code, Some(0));
        let row = r#"{"meter":"m1","w":"2026-01-01 00:15:00Z","n":1,"total":7.5}"#;
        let rows = job.rows("usage");
        (rows.len(), rows.iter().filter(|line| *line == row).count())
    });
    assert_eq!(told, [(27, 0), (28, 1)]);
}

#[test]
fn a_script_that_was_edited_is_refused() {
    let edits = [
        ("SUM(kwh)", "MAX(kwh)", "its query has changed"),
        ("t - INTERVAL '5' SECOND", "t - INTERVAL '6' SECOND", "its query has changed"),
        ("total DOUBLE", "totals DOUBLE", "table `usage` has other columns or keys"),
        ("'2 min'", "'3 min'", "table `readings` has another 'dedup.within'"),
        ("'path' = 'out/visits'", "'path' = 'out'", "table `visits` has another 'path'"),
        ("readings", "reading", "table `reading` stands where `readings` was"),
    ];
    for (was, is, what) in edits {
        let job = Job::stored();
        let script = text_of(&job.path("script.sql"));
        // Paths stay.
        let edited = script.replace(was, is).replace("in/reading'", "in/readings'");
        assert!(edited != script, "{was}");
        fs::write(job.path("script.sql"), edited).unwrap();
        job.is_refused(&format!(
            "error: the job `usage, visits` is not what its state was made by: {what}\n  \
             hint: run the script as it was, or start the changed one under another --state"
        ));
        // As it was, it goes on.
        fs::write(job.path("script.sql"), script).unwrap();
        job.run(&[]).gives(DIGESTS);
    }
}

#[test]
fn a_record_of_another_format_is_refused() {
    let job = Job::stored();
    let begun = "00000000000000000001.begun.json";
    for (path, name) in [("job.json", "job.json"), (&format!("generations/{begun}"), begun)] {
        let path = job.object(path);
        let sealed = text_of(&path);
        // Nothing else of another form need be there.
        fs::write(&path, seal(r#"{"format":7}"#)).unwrap();
        job.is_refused(&format!("{name}: has format 7, this build reads 1"));
        fs::write(&path, sealed.replacen("\"format\"", "\"farmat\"", 1)).unwrap();
        job.is_refused(&format!("{name}: has a wrong checksum"));
        fs::write(&path, sealed).unwrap();
    }
    job.run(&[]).gives(DIGESTS);
}

#[test]
fn a_sink_that_is_ahead_of_the_state_is_refused() {
    let job = Job::stored();
    job.run(&[]).gives(DIGESTS);
    let (put, kept) = (job.contents("usage"), Job::stored());
    // The newest of its files has rows from this epoch on.
    let newest: u64 = put.keys().next_back().unwrap().trim_end_matches(".jsonl").parse().unwrap();
    assert!(newest > 21, "{newest}");
    let swap = |name: &str| {
        fs::rename(job.object(name), job.path(name)).unwrap();
        copy(&kept.object(name), &job.object(name));
    };
    swap("checkpoints");
    swap("cuts-0");
    let ended = job.run(&[]);
    assert_eq!((ended.code, ended.out.as_str()), (Some(1), ""), "{}", ended.said);
    let message = format!(
        "error: table `usage`: it holds rows up to epoch {newest}, but the job's state ends with \
         epoch 21: going on would write rows twice"
    );
    assert!(ended.said.contains(&message), "{}", ended.said);
    let hint = "hint: bring back the cut log of the last run (its folder `cuts-0`), or write to an \
                empty table under another --state";
    assert!(ended.said.contains(hint), "{}", ended.said);
    assert!(job.contents("usage") == put, "something was written");
    // The hint is right.
    fs::remove_dir_all(job.object("cuts-0")).unwrap();
    fs::rename(job.path("cuts-0"), job.object("cuts-0")).unwrap();
    job.run(&[]).gives(DIGESTS);
    assert!(job.contents("usage") == put, "something was written twice");
}
