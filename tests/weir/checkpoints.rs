//! `weir checkpoints` on the state of a job that was killed: lists, describes, verifies.

use serde_json::Value;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use weir_engine::store::seal;

use crate::helping::{WEIR, until};

/// A state with two checkpoints at the least.
struct State {
    folder: tempfile::TempDir,
}

impl State {
    fn made() -> State {
        let state = State { folder: tempfile::tempdir().unwrap() };
        let mut text = String::new();
        for n in 0..24_000u64 {
            let (ts, meter) = (1_767_225_600_000 + n * 100, n % 40);
            let _ = writeln!(text, "{{\"meter\": \"m{meter}\", \"ts\": {ts}}}");
        }
        fs::write(state.path("in.jsonl"), text).unwrap();
        let sql = "CREATE TABLE readings (
  meter STRING, ts BIGINT, t AS TO_TIMESTAMP_LTZ(ts, 3),
  WATERMARK FOR t AS t - INTERVAL '5' SECOND
) WITH ('connector' = 'filesystem', 'path' = 'in.jsonl', 'format' = 'json');
CREATE TABLE usage (meter STRING, w TIMESTAMP_LTZ(3), n BIGINT)
  WITH ('connector' = 'filesystem', 'path' = 'out', 'format' = 'json');
INSERT INTO usage SELECT meter, TUMBLE_START(t, INTERVAL '1' MINUTE), COUNT(*)
FROM readings GROUP BY meter, TUMBLE(t, INTERVAL '1' MINUTE);
";
        fs::write(state.path("script.sql"), sql).unwrap();
        let mut command = Command::new(WEIR);
        command.args(["run", "-q", "--epoch", "20rows", "--checkpoint-interval", "20ms"]);
        command.args(["--state", "state", "script.sql"]).current_dir(state.folder.path());
        let mut weir = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        until("two checkpoints", || {
            assert!(weir.try_wait().unwrap().is_none(), "it ended before");
            state.manifests().len() >= 2
        });
        weir.kill().unwrap();
        weir.wait().unwrap();
        state
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn object(&self, name: &str) -> PathBuf {
        self.path("state/usage").join(name)
    }

    /// Epochs of the manifests that are there, oldest first.
    fn manifests(&self) -> Vec<u64> {
        let entries = fs::read_dir(self.object("checkpoints")).into_iter().flatten().flatten();
        let names = entries.map(|entry| entry.file_name().into_string().unwrap());
        let mut epochs: Vec<u64> = names
            .filter_map(|name| name.strip_suffix("-00000000000000000001.json")?.parse().ok())
            .collect();
        epochs.sort_unstable();
        epochs
    }

    /// Exit code, standard output, standard error.
    fn checkpoints(&self, flags: &[&str]) -> (Option<i32>, String, String) {
        let mut command = Command::new(WEIR);
        command.args(["checkpoints", "state"]).args(flags).current_dir(self.folder.path());
        let output = command.env_remove("WEIR_LOG").output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    }

    fn json(&self, flags: &[&str]) -> Vec<Value> {
        let (code, out, said) = self.checkpoints(&[&["--json"], flags].concat());
        assert_eq!(code, Some(0), "{out}{said}");
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Spoils the newest checkpoint's own file at a byte, or mends it again; gives the file.
    fn flip(&self, piece: &Value, at: u64) -> String {
        let file = piece["file"].as_str().unwrap().to_owned();
        let mut bytes = fs::read(self.object(&file)).unwrap();
        bytes[usize::try_from(at).unwrap()] ^= 4;
        fs::write(self.object(&file), bytes).unwrap();
        file
    }
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap()
}

#[test]
fn checkpoints_are_listed_and_described() {
    let state = State::made();
    let epochs = state.manifests();
    let (code, out, said) = state.checkpoints(&[]);
    assert_eq!((code, out.lines().count(), said.as_str()), (Some(0), epochs.len(), ""), "{out}");
    for (line, epoch) in out.lines().zip(&epochs) {
        let begins = format!("usage  epoch {epoch} (of a replay)  generation 1  sound: ");
        assert!(line.starts_with(&begins) && line.ends_with(" of its own), 1 workers"), "{line}");
    }
    let listed = state.json(&[]);
    let told: Vec<u64> = listed.iter().map(|line| number(&line["epoch"])).collect();
    assert_eq!(told, epochs);
    let newest = listed.last().unwrap();
    assert_eq!(newest.get("manifest"), None, "only what is described has it");
    for (key, value) in [("job", "usage"), ("state", "sound")] {
        assert_eq!(newest[key], value);
    }
    let epoch = epochs.last().unwrap().to_string();
    let (code, out, said) = state.checkpoints(&["--job", "usage", "--epoch", &epoch]);
    assert_eq!((code, said.as_str()), (Some(0), ""));
    let [described] = &state.json(&["--epoch", &epoch])[..] else { panic!("not one: {out}") };
    let manifest = &described["manifest"];
    let pieces = manifest["pieces"].as_array().unwrap();
    let lengths = pieces.iter().map(|piece| number(&piece["length"])).sum::<u64>();
    assert_eq!(number(&described["pieces"]), pieces.len() as u64);
    assert_eq!(number(&described["bytes"]), lengths);
    assert!((1..=lengths).contains(&number(&described["own_bytes"])));
    let source = &manifest["cuts"]["sources"][0];
    let split = &source["splits"][0];
    let digest = manifest["shards"][0]["digest"].as_str().unwrap();
    let (watermark, offset, mark) = (&source["watermark"], &split["offset"], &split["mark"]);
    for line in [
        format!("  source 0: watermark {watermark}\n"),
        format!("    split 0: offset {offset}, mark {mark}, reading\n"),
        "  operator 0: ".to_owned(),
        format!("  sink 0, shard 0: digest {digest}\n"),
    ] {
        assert!(out.contains(&line), "{line}: {out}");
    }
}

#[test]
fn what_is_not_there_is_said() {
    let state = State::made();
    let no_job = (Some(2), String::new(), "error: there is no job `other` in state\n");
    let (code, out, said) = state.checkpoints(&["--job", "other"]);
    assert_eq!((code, out, said.split_inclusive('\n').next().unwrap()), no_job);
    let no_epoch = "error: there is no checkpoint at epoch 999999\n".to_owned();
    assert_eq!(state.checkpoints(&["--epoch", "999999"]), (Some(2), String::new(), no_epoch));
    // What a later generation did not go on from counts no more, and is no harm.
    let (first, epochs) = (state.manifests()[0], state.manifests());
    let begun = format!(r#"{{"format":1,"generation":2,"base":{first}}}"#);
    let path = state.object("generations/00000000000000000002.begun.json");
    fs::write(path, seal(&begun)).unwrap();
    let states: Vec<Value> = state.json(&[]).iter().map(|line| line["state"].clone()).collect();
    assert_eq!(states.len(), epochs.len());
    assert!(states[0] == "sound" && states[1..].iter().all(|state| state == "void"), "{states:?}");
}

#[test]
fn a_flipped_byte_in_a_piece_is_found_and_named() {
    let state = State::made();
    let epochs = state.manifests();
    let newest = epochs.last().unwrap().to_string();
    let described = state.json(&["--epoch", &newest]);
    let own = format!("pieces/00000000000000000001-{newest:0>20}-");
    let pieces = described[0]["manifest"]["pieces"].as_array().unwrap();
    let is_own = |piece: &&Value| piece["file"].as_str().unwrap().starts_with(&own);
    let own: Vec<&Value> = pieces.iter().filter(is_own).collect();
    assert!(own.len() > 1, "{pieces:?}");
    for piece in [own[0], own[own.len() - 1]] {
        let [id, offset, length] = ["id", "offset", "length"].map(|key| number(&piece[key]));
        for at in [offset, offset + length / 2, offset + length - 1] {
            let file = state.flip(piece, at);
            let (code, out, _) = state.checkpoints(&[]);
            assert_eq!(code, Some(1), "{out}");
            let wrong = format!("piece {id} in {file} at byte {offset} has a wrong checksum");
            let (others, last) = out.trim_end().rsplit_once('\n').unwrap();
            assert!(last.contains(&format!("epoch {newest} ")) && last.contains(&wrong), "{out}");
            assert!(others.lines().all(|line| line.contains("  sound: ")), "{out}");
            state.flip(piece, at);
        }
    }
    assert_eq!(state.checkpoints(&[]).0, Some(0), "mended");
    let file = own[0]["file"].as_str().unwrap();
    fs::remove_file(state.object(file)).unwrap();
    let (code, out, _) = state.checkpoints(&[]);
    assert!(code == Some(1) && out.contains(&format!("its file {file} is gone")), "{out}");
}

#[test]
fn a_flipped_byte_in_a_manifest_is_found() {
    let state = State::made();
    let newest = *state.manifests().last().unwrap();
    let path = state.object(&format!("checkpoints/{newest:020}-00000000000000000001.json"));
    let mut bytes = fs::read(&path).unwrap();
    bytes[40] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (code, out, _) = state.checkpoints(&["--epoch", &newest.to_string()]);
    assert!(code == Some(1) && out.contains("has a wrong checksum"), "{out}");
}
