//! Second copies of MQTT journals in a set of processes, as a user has them: each process in turn
//! is killed while messages come, and a disk of one is lost.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bad_endings::{Run, mqtt, publish, soon};
use crate::helping::{WEIR, env, name, signal, until};

/// Messages of one publishing, and how many there are of them.
const MESSAGES: u64 = 2_000;
const TURNS: u64 = 6;

/// A job of two slots, one on each process, with second copies.
struct Job {
    folder: tempfile::TempDir,
    topic: String,
}

impl Job {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn start(&self) -> Run {
        let filters = format!("{0}/a;{0}/b", self.topic);
        let more = format!(
            ", 'journal.copies' = '2', 'journal.copy-path' = '{}', 'dedup.within' = '1 h'",
            self.path("copy").display()
        );
        let from = mqtt(&env("WEIR_TEST_MQTT"), &filters, &self.path("journal"), &more);
        let to = soon(&self.path("out"));
        let sql = format!(
            "CREATE TABLE a (n BIGINT, t AS TO_TIMESTAMP_LTZ(n, 3), WATERMARK FOR t AS t - INTERVAL
               '1' HOUR, PRIMARY KEY (n) NOT ENFORCED) WITH ({from});
             CREATE TABLE b (n BIGINT) WITH ({to});
             INSERT INTO b SELECT n FROM a;"
        );
        let state = self.path("state").display().to_string();
        let flags = ["--processes", "2", "--checkpoint-interval", "200ms", "--state", &state];
        Run::of(Command::new(WEIR), &flags, self.folder.path(), &sql)
    }

    /// Sends the messages of a turn, half of them to each slot.
    fn publish(&self, turn: u64) {
        for (slot, name) in ["a", "b"].into_iter().enumerate() {
            let mut lines = String::new();
            for n in (turn * MESSAGES..(turn + 1) * MESSAGES).filter(|n| n % 2 == slot as u64) {
                let _ = writeln!(lines, "{{\"n\":{n}}}");
            }
            publish(&env("WEIR_TEST_MQTT"), &format!("{}/{name}", self.topic), &lines);
        }
    }

    /// The numbers in the files that are whole.
    fn rows(&self) -> Vec<u64> {
        let mut rows = Vec::new();
        for entry in fs::read_dir(self.path("out")).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_file() && !name.starts_with(['.', '_']) {
                let text = fs::read_to_string(path).unwrap();
                let digits =
                    |line: &str| line.trim_matches(|c: char| !c.is_ascii_digit()).to_owned();
                rows.extend(text.lines().map(|line| digits(line).parse::<u64>().unwrap()));
            }
        }
        rows
    }

    fn segments(&self, folder: &str, slot: u64) -> Vec<Vec<u8>> {
        let mut paths: Vec<PathBuf> = fs::read_dir(self.path(folder).join(slot.to_string()))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_some_and(|end| end == "journal"))
            .collect();
        paths.sort();
        paths.iter().map(|path| fs::read(path).unwrap()).collect()
    }
}

/// Who has a file open: of these processes.
fn holders(processes: &[u32], path: &Path) -> BTreeSet<u32> {
    let path = fs::canonicalize(path).unwrap();
    let has = |pid: &&u32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        open.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|file| file.starts_with(&path))
    };
    processes.iter().filter(has).copied().collect()
}

#[test]
fn either_process_may_go_and_either_disk() {
    let folder = tempfile::tempdir().unwrap();
    let job = Job { folder, topic: name("copies") };
    let mut run = job.start();
    let subscribed = |slot: &str| {
        let session = job.path("journal").join(slot).join("session");
        fs::read_to_string(session).is_ok_and(|text| text.lines().count() == 2)
    };
    until("the subscriptions", || ["0", "1"].into_iter().all(subscribed));
    let set = run.processes(2);
    for slot in ["0", "1"] {
        let [here, there] =
            ["journal", "copy"].map(|folder| holders(&set, &job.path(folder).join(slot)));
        assert!(here.len() == 1 && there.len() == 1 && here != there, "{here:?} {there:?}");
    }
    for turn in 0..TURNS {
        if turn == TURNS / 2 {
            // It ends well, and what is on both disks is equal then.
            run.interrupted();
            for slot in [0, 1] {
                assert_eq!(job.segments("journal", slot), job.segments("copy", slot));
            }
            // The disk of the first process: its slot, and its copy of the other's.
            fs::remove_dir_all(job.path("journal/0")).unwrap();
            fs::remove_dir_all(job.path("copy/1")).unwrap();
            run = job.start();
        }
        std::thread::scope(|scope| {
            let publishing = scope.spawn(|| job.publish(turn));
            if turn != TURNS / 2 {
                let set = run.processes(2);
                signal(set[turn as usize % 2], "-KILL");
            }
            publishing.join().unwrap();
        });
        let count = (turn + 1) * MESSAGES;
        until(&format!("{count} rows, after {}", run.said()), || job.rows().len() as u64 >= count);
    }
    let mut rows = job.rows();
    rows.sort_unstable();
    assert!(rows.into_iter().eq(0..TURNS * MESSAGES));
    let said = run.interrupted();
    assert!(said.contains("was behind: made whole"), "{said}");
    assert!(
        said.contains("ended by signal 9") && !said.contains("which has the second copy"),
        "{said}"
    );
}
