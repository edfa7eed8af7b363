//! Jobs that last, as a user sees them: killed, stopped, started with other workers and processes,
//! with a process that dies, with a job that fails beside one that does not.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::helping::{WEIR, children, signal, until};

const ROWS: u64 = 24_000;

/// A job over files, and where everything of it is.
struct Job {
    folder: tempfile::TempDir,
}

impl Job {
    fn new() -> Job {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("in");
        std::fs::create_dir_all(&input).unwrap();
        for part in 0..3 {
            let mut text = String::new();
            for n in (part..ROWS).step_by(3) {
                let behind = if n % 97 == 0 { 70_000 } else { n % 5 * 500 };
                let ts = 1_767_225_600_000 + (n * 100).saturating_sub(behind);
                let (meter, kwh) = (n * 7919 % 40, (n % 1013) as f64 / 977.0);
                let _ = writeln!(text, "{{\"meter\": \"m{meter}\", \"ts\": {ts}, \"kwh\": {kwh}}}");
            }
            std::fs::write(input.join(format!("part-{part}.jsonl")), text).unwrap();
        }
        Job { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The script that writes to a folder; small files, so that many are closed on the way.
    fn script(&self, out: &str) -> PathBuf {
        let (input, target) = (self.path("in"), self.path(out));
        let sql = format!(
            "CREATE TABLE readings (
  meter STRING, ts BIGINT, kwh DOUBLE, t AS TO_TIMESTAMP_LTZ(ts, 3),
  WATERMARK FOR t AS t - INTERVAL '5' SECOND
) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'json');
CREATE TABLE usage (meter STRING, w TIMESTAMP_LTZ(3), n BIGINT, total DOUBLE)
  WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'json',
        'sink.rolling-policy.file-size' = '8kb');
INSERT INTO usage
SELECT meter, TUMBLE_START(t, INTERVAL '1' MINUTE), COUNT(*), SUM(kwh)
FROM readings GROUP BY meter, TUMBLE(t, INTERVAL '1' MINUTE);
",
            input.display(),
            target.display()
        );
        let path = self.path(&format!("{out}.sql"));
        std::fs::write(&path, sql).unwrap();
        path
    }

    /// Starts it; epochs of few rows, so that there is time to disturb it.
    fn start(&self, out: &str, flags: &[&str]) -> Run {
        let log = self.path(&format!("{out}.log"));
        let err = std::fs::File::options().create(true).append(true).open(&log).unwrap();
        let mut command = Command::new(WEIR);
        command.args(["run", "--epoch", "20rows", "--checkpoint-interval", "20ms", "--digest"]);
        command.arg("--state").arg(self.path(&format!("{out}.state"))).args(flags);
        command.arg(self.script(out)).stdout(Stdio::piped()).stderr(err);
        Run { child: command.spawn().unwrap(), log }
    }

    /// Manifests that are there.
    fn checkpoints(&self, out: &str) -> Vec<String> {
        let folder = self.path(&format!("{out}.state/usage/checkpoints"));
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> =
            entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.retain(|name| name.ends_with(".json") && !name.starts_with('.'));
        names.sort();
        names
    }

    /// Waits for a checkpoint newer than those that are there.
    fn until_checkpoint(&self, out: &str, run: &mut Run) {
        let before = self.checkpoints(out).pop();
        until("a checkpoint", || {
            assert!(run.child.try_wait().unwrap().is_none(), "ended: {}", run.said());
            self.checkpoints(out).pop() > before
        });
    }

    /// What was written: the files' contents in the order of their shards and first epochs.
    fn contents(&self, out: &str) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        for entry in std::fs::read_dir(self.path(out)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_file() && !name.starts_with(['_', '.']) {
                // Names begin with the job's, which no two jobs have in common.
                let (_, place) = name.rsplit_once('-').unwrap();
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(found.insert(place.to_owned(), text).is_none(), "{name} twice");
            }
        }
        found
    }

    /// All rows, in order.
    fn rows(&self, out: &str) -> Vec<String> {
        let contents = self.contents(out);
        let lines = contents.values().flat_map(|text| text.lines().map(str::to_owned));
        let mut rows: Vec<String> = lines.collect();
        rows.sort_unstable();
        rows
    }
}

struct Run {
    child: Child,
    log: PathBuf,
}

impl Run {
    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its processes, once there are `count`.
    fn processes(&self, count: usize) -> Vec<u32> {
        children(self.child.id(), count)
    }

    /// Waits for its end; exit code and standard output.
    fn end(self) -> (Option<i32>, String) {
        let output = self.child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    }
}

fn is_gone(pid: u32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn undisturbed_crashed_twice_and_rescaled_give_the_same_digest_and_the_same_files() {
    let job = Job::new();
    let (code, digest) = job.start("whole", &[]).end();
    assert_eq!(code, Some(0));
    assert!(digest.starts_with("digest usage ") && !digest.contains("digest usage 0000"));
    let whole = job.contents("whole");
    assert!(whole.len() > 3, "{} files", whole.len());
    let ways: [[&[&str]; 3]; 3] = [
        [&["-w", "1"], &["-w", "1"], &["-w", "1"]],
        [&["-w", "1"], &["-w", "3"], &["-w", "2"]],
        [&["-w", "1"], &["--processes", "3"], &["--processes", "2"]],
    ];
    for (way, sets) in ways.into_iter().enumerate() {
        let out = format!("way-{way}");
        for flags in &sets[..2] {
            let mut run = job.start(&out, flags);
            job.until_checkpoint(&out, &mut run);
            run.kill();
        }
        let run = job.start(&out, sets[2]);
        let log = run.log.clone();
        let (code, again) = run.end();
        let said = std::fs::read_to_string(log).unwrap();
        assert_eq!(code, Some(0), "{said}");
        assert_eq!(said.matches("goes on from the checkpoint").count(), 2, "{said}");
        assert_eq!(sum_of(&again), sum_of(&digest), "{sets:?}\n{said}");
        assert!(job.contents(&out) == whole, "other files: {sets:?}");
    }
}

/// The sum in a line of digests; how many rows came behind the restart differs.
fn sum_of(line: &str) -> &str {
    line.split_whitespace().nth(2).unwrap()
}

#[test]
fn a_process_that_dies_is_replaced_at_once() {
    let job = Job::new();
    let (_, digest) = job.start("whole", &[]).end();
    let mut run = job.start("set", &["--processes", "2"]);
    job.until_checkpoint("set", &mut run);
    let before = run.processes(2);
    signal(before[1], "-KILL");
    until("the next generation", || run.said().contains("generation 2"));
    assert!(run.said().contains("was ended by signal 9; the next generation begins"));
    until("the end of the first set", || before.iter().all(|pid| is_gone(*pid)));
    let log = run.log.clone();
    let (code, again) = run.end();
    assert_eq!(code, Some(0), "{}", std::fs::read_to_string(log).unwrap());
    assert_eq!(sum_of(&again), sum_of(&digest));
    assert!(job.contents("set") == job.contents("whole"), "other files");
}

#[test]
fn a_set_whose_parent_is_killed_ends_and_the_next_one_goes_on() {
    let job = Job::new();
    let (_, digest) = job.start("whole", &[]).end();
    let mut run = job.start("set", &["--processes", "2"]);
    job.until_checkpoint("set", &mut run);
    let orphans = run.processes(2);
    run.kill();
    // Started at once: it waits for the logs until the orphans have ended.
    let run = job.start("set", &["--processes", "2"]);
    until("the orphans' end", || orphans.iter().all(|pid| is_gone(*pid)));
    let log = run.log.clone();
    let (code, again) = run.end();
    assert_eq!(code, Some(0), "{}", std::fs::read_to_string(log).unwrap());
    assert_eq!(sum_of(&again), sum_of(&digest));
}

#[test]
fn a_stop_of_several_processes_keeps_what_has_not_fired() {
    let job = Job::new();
    let (_, digest) = job.start("whole", &[]).end();
    let mut run = job.start("set", &["--processes", "2"]);
    job.until_checkpoint("set", &mut run);
    signal(run.child.id(), "-TERM");
    let log = run.log.clone();
    assert_eq!(run.end().0, Some(0), "{}", std::fs::read_to_string(log).unwrap());
    let (code, again) = job.start("set", &["-w", "2"]).end();
    assert_eq!(code, Some(0));
    assert_eq!(sum_of(&again), sum_of(&digest));
    // A stop closes an epoch early: with other cuts files end elsewhere.
    assert!(job.rows("set") == job.rows("whole"), "other rows");
}

#[test]
fn a_job_whose_process_dies_at_one_place_three_times_is_failed() {
    let job = Job::new();
    let mut run = job.start("set", &["--processes", "2"]);
    let (pid, mut killed) = (run.child.id(), Vec::new());
    until("the end", || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        for child in text.unwrap_or_default().split_whitespace() {
            // It may have ended meanwhile.
            drop(Command::new("kill").args(["-KILL", child]).status());
            killed.push(child.to_owned());
        }
        run.child.try_wait().unwrap().is_some()
    });
    assert_eq!(run.child.wait().unwrap().code(), Some(1));
    let said = run.said();
    assert!(said.contains("3 generations have begun at its beginning and none got beyond it"));
    assert!(said.contains("generation 3") && said.contains("was ended by signal 9"), "{said}");
    assert!(killed.len() >= 3);
    // Nothing is lost by it.
    let (_, digest) = job.start("whole", &[]).end();
    let (code, again) = job.start("set", &[]).end();
    assert_eq!((code, sum_of(&again)), (Some(0), sum_of(&digest)));
}

#[test]
fn a_job_that_fails_leaves_the_others_alone() {
    for flags in [&["-w", "2"][..], &["--processes", "2"]] {
        let job = Job::new();
        let (_, digest) = job.start("whole", &[]).end();
        let mut sql = std::fs::read_to_string(job.script("both")).unwrap();
        // A second job reads a file that ends in the middle of it.
        let broken = job.path("broken.parquet");
        std::fs::write(&broken, b"PAR1 and no more").unwrap();
        let _ = write!(
            sql,
            "CREATE TABLE broken (x BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}',
  'format' = 'parquet');
CREATE TABLE copy (x BIGINT) WITH ('connector' = 'blackhole');
INSERT INTO copy SELECT x FROM broken;
",
            broken.display()
        );
        let file = job.path("two.sql");
        std::fs::write(&file, sql).unwrap();
        let mut command = Command::new(WEIR);
        command.args(["run", "--digest", "--epoch", "1000rows"]).args(flags).arg(&file);
        let ended = command.output().unwrap();
        let (out, said) =
            (String::from_utf8(ended.stdout).unwrap(), String::from_utf8(ended.stderr).unwrap());
        assert_eq!(ended.status.code(), Some(1), "{said}");
        assert_eq!(said.matches("error").count(), 1, "{said}");
        assert!(said.contains("broken"), "{said}");
        assert_eq!(sum_of(&out), sum_of(&digest), "{out}{said}");
        assert!(!out.contains("digest copy"), "{out}");
    }
}

#[test]
fn where_one_job_cannot_begin_none_has_begun() {
    for flags in [&["-w", "2"][..], &["--processes", "2"]] {
        let job = Job::new();
        let mut sql = std::fs::read_to_string(job.script("both")).unwrap();
        for lacking in ["first", "second"] {
            let path = job.path(lacking);
            let _ = write!(
                sql,
                "CREATE TABLE {lacking} (x BIGINT) WITH ('connector' = 'filesystem',
  'path' = '{}', 'format' = 'json');
CREATE TABLE from_{lacking} (x BIGINT) WITH ('connector' = 'blackhole');
INSERT INTO from_{lacking} SELECT x FROM {lacking};
",
                path.display()
            );
        }
        let (file, state) = (job.path("three.sql"), job.path("state"));
        std::fs::write(&file, sql).unwrap();
        let mut command = Command::new(WEIR);
        command.args(["run", "--epoch", "1000rows", "--state"]).arg(&state).args(flags).arg(&file);
        let ended = command.output().unwrap();
        let said = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{said}");
        // Both are told, and the one that could begin has left nothing behind.
        for lacking in ["first", "second"] {
            let told = format!("error: table `{lacking}`");
            assert_eq!(said.matches(&told).count(), 1, "{lacking}: {said}");
        }
        assert!(!state.join("usage/job.json").exists() && !said.contains("generation"), "{said}");
        for lacking in ["first", "second"] {
            std::fs::create_dir(job.path(lacking)).unwrap();
            std::fs::write(job.path(lacking).join("a.jsonl"), "{\"x\": 1}\n").unwrap();
        }
        let ended = command.output().unwrap();
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        assert!(state.join("usage/job.json").exists());
    }
}
