//! The binary as a user starts it: JSON files through a window into JSON files, the same bytes on
//! one worker, two workers and two processes; and endings that are not happy.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use crate::helping::WEIR;

fn weir(arguments: &[&str]) -> Output {
    Command::new(WEIR).args(arguments).output().unwrap()
}

/// Three overlapping files of readings: 40 meters, out of order within 3 s, some rows late.
fn write_readings(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    for part in 0..3u64 {
        let mut text = String::new();
        for i in 0..6_000u64 {
            let n = i * 3 + part;
            let behind = match n % 97 {
                0 => 70_000,
                m if m % 5 == 0 => 2_500,
                _ => 0,
            };
            let at = 1_767_225_600_000 + (n * 100).saturating_sub(behind);
            let (second, millis) = ((at / 1000) % 60, at % 1000);
            let minute = (at / 60_000) % 60;
            let hour = (at / 3_600_000) % 24;
            let meter = (n * 7919) % 40;
            let kwh = (n % 1013) as f64 / 977.0;
            let ts = format!("2026-01-01T{hour:02}:{minute:02}:{second:02}.{millis:03}");
            let meter = format!("meter-{meter}");
            let row = serde_json::json!({ "meter_id": meter, "ts": ts, "kwh": kwh });
            let _ = writeln!(text, "{row}");
            if n % 1_999 == 1 {
                text.push_str("{\"meter_id\": \"broken\n");
            }
        }
        std::fs::write(folder.join(format!("part-{part}.jsonl")), text).unwrap();
    }
}

fn script(input: &Path, output: &Path) -> String {
    let (input, output) = (input.display(), output.display());
    format!(
        "CREATE TABLE readings (
  meter_id STRING, ts TIMESTAMP(3), kwh DOUBLE,
  WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
) WITH ('connector' = 'filesystem', 'path' = '{input}', 'format' = 'json',
        'json.timestamp-format.standard' = 'ISO-8601', 'dead-letter.table' = 'bad');
CREATE TABLE usage_1m (
  meter_id STRING, window_start TIMESTAMP(3), n BIGINT, total DOUBLE, mean DOUBLE, peak DOUBLE
) WITH ('connector' = 'filesystem', 'path' = '{output}/usage', 'format' = 'json');
CREATE TABLE late (
  meter_id STRING, ts TIMESTAMP(3), kwh DOUBLE, late_reason STRING, mark TIMESTAMP(3)
) WITH ('connector' = 'filesystem', 'path' = '{output}/late', 'format' = 'json');
CREATE TABLE bad (payload BYTES, split STRING, `offset` BIGINT, reason STRING)
  WITH ('connector' = 'filesystem', 'path' = '{output}/bad', 'format' = 'json');
INSERT INTO usage_1m
SELECT meter_id, TUMBLE_START(ts, INTERVAL '1' MINUTE), COUNT(*), SUM(kwh), AVG(kwh), MAX(kwh)
FROM readings
GROUP BY meter_id, TUMBLE(ts, INTERVAL '1' MINUTE)
ON LATE INTO late;
"
    )
}

/// All files below a folder, by name within it.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(&path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    found
}

fn lines(files: &BTreeMap<String, Vec<u8>>, folder: &str) -> Vec<String> {
    let mine = files.iter().filter(|(name, _)| name.starts_with(folder));
    let text = mine.map(|(_, bytes)| String::from_utf8(bytes.clone()).unwrap());
    text.flat_map(|t| t.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
}

#[test]
fn the_same_bytes_on_one_worker_two_workers_and_two_processes() {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_readings(&input);
    let mut outcomes = Vec::new();
    let ways: [&[&str]; 4] = [&[], &["-w", "2"], &["--processes", "2"], &["-w", "3"]];
    for (way, flags) in ways.iter().enumerate() {
        let output = folder.path().join(format!("out-{way}"));
        let file = folder.path().join(format!("script-{way}.sql"));
        std::fs::write(&file, script(&input, &output)).unwrap();
        let mut arguments = vec!["run", file.to_str().unwrap(), "--epoch", "1000rows"];
        arguments.extend_from_slice(flags);
        let ended = weir(&arguments);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        outcomes.push(files(&output));
    }
    let one = &outcomes[0];
    let rows = lines(one, "usage");
    let count = |line: &String| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        row["n"].as_u64().unwrap()
    };
    let late = lines(one, "late").len() as u64;
    assert!(late > 50, "{late} late rows");
    assert_eq!(rows.iter().map(count).sum::<u64>() + late, 18_000);
    assert_eq!(lines(one, "bad").len(), 10);
    for (other, flags) in outcomes.iter().zip(ways) {
        assert!(other == one, "{flags:?} gives other bytes");
    }
}

/// Runs a script with these replacements; gives exit code and standard error.
fn ending(replace: &[(&str, &str)]) -> (Option<i32>, String) {
    let folder = tempfile::tempdir().unwrap();
    let input = folder.path().join("in");
    write_readings(&input);
    let mut sql = script(&input, &folder.path().join("out"));
    for (from, to) in replace {
        assert!(sql.contains(from), "{from}");
        sql = sql.replace(from, to);
    }
    let file = folder.path().join("script.sql");
    std::fs::write(&file, sql).unwrap();
    let ended = weir(&["run", file.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(!said.contains("panicked") && !said.contains("stack backtrace"), "{said}");
    (ended.status.code(), said)
}

#[test]
fn a_missing_input_is_one_readable_error() {
    let (code, said) = ending(&[("/in'", "/elsewhere'")]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("readings") && said.contains("elsewhere"), "{said}");
}

#[test]
fn a_misspelt_column_is_refused_with_its_place() {
    let (code, said) = ending(&[("SUM(kwh)", "SUM(kwhh)")]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("script.sql:15:") && said.contains("did you mean"), "{said}");
}

#[test]
fn the_manual_in_docs_is_the_one_that_the_binary_prints() {
    let printed = String::from_utf8(weir(&["manual"]).stdout).unwrap();
    let kept =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/options.md"));
    assert!(kept.unwrap() == printed, "docs/options.md is old: `weir manual > docs/options.md`");
}

/// Three row groups of 1 000 readings, one a second, every fiftieth 200 s behind.
fn write_archive(path: &Path) {
    use arrow::array::{ArrayRef, Float64Array, RecordBatch, TimestampMillisecondArray};
    let batch = |group: i64| {
        let at = |n: i64| 1_767_225_600_000 + n * 1000 - if n % 50 == 49 { 200_000 } else { 0 };
        let times = (group * 1000..(group + 1) * 1000).map(at);
        let times = TimestampMillisecondArray::from_iter_values(times);
        let kwh = Float64Array::from_iter_values((0..1000).map(f64::from));
        let columns = [("ts", Arc::new(times) as ArrayRef), ("kwh", Arc::new(kwh))];
        RecordBatch::try_from_iter(columns).unwrap()
    };
    let file = std::fs::File::create(path).unwrap();
    let mut writer = parquet::arrow::ArrowWriter::try_new(file, batch(0).schema(), None).unwrap();
    for group in 0..3 {
        writer.write(&batch(group)).unwrap();
        writer.flush().unwrap();
    }
    writer.close().unwrap();
}

#[test]
fn row_groups_that_a_filter_rules_out_are_not_read_and_change_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("archive.parquet");
    write_archive(&archive);
    let bound = "ts >= TIMESTAMP '2026-01-01 00:20:00'";
    // The second form says the same, but not in a way that is offered to the source.
    let outcome = |name: &str, filter: &str| {
        let output = folder.path().join(name);
        let (input, out) = (archive.display(), output.display());
        let text = format!(
            "CREATE TABLE archive (ts TIMESTAMP(3), kwh DOUBLE,
               WATERMARK FOR ts AS ts - INTERVAL '5' SECOND
             ) WITH ('connector' = 'filesystem', 'path' = '{input}', 'format' = 'parquet');
             CREATE TABLE usage (s TIMESTAMP(3), n BIGINT, kwh DOUBLE)
             WITH ('connector' = 'filesystem', 'path' = '{out}/usage', 'format' = 'json');
             CREATE TABLE late (ts TIMESTAMP(3), kwh DOUBLE, late_reason STRING)
             WITH ('connector' = 'filesystem', 'path' = '{out}/late', 'format' = 'json');
             INSERT INTO usage
             SELECT TUMBLE_START(ts, INTERVAL '1' MINUTE), COUNT(*), SUM(kwh) FROM archive
             WHERE {filter} GROUP BY TUMBLE(ts, INTERVAL '1' MINUTE) ON LATE INTO late;"
        );
        let file = folder.path().join(format!("{name}.sql"));
        let report = folder.path().join(format!("{name}.report"));
        std::fs::write(&file, text).unwrap();
        let (file, path) = (file.to_str().unwrap(), report.to_str().unwrap());
        let ended = weir(&["run", file, "--epoch", "100rows", "--report", path]);
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        let report = std::fs::read_to_string(&report).unwrap();
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        let files = files(&output);
        let rows = report[0]["sources"][0][1]["rows"].as_u64().unwrap();
        (lines(&files, "usage"), lines(&files, "late"), rows)
    };
    let (usage, late, read) = outcome("pushed", bound);
    let (all_usage, all_late, all_read) = outcome("kept", &format!("({bound} OR {bound})"));
    assert_eq!((read, all_read), (2000, 3000));
    assert_eq!((usage.len(), late.len()), (30, 32), "not the rows that this test is about");
    assert_eq!((usage, late), (all_usage, all_late));
}
