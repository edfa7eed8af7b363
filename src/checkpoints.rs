//! `weir checkpoints`: what is in a state store, and whether it is sound.

use clap::Args;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use weir_connect::store::{Store, StoreOptions};
use weir_engine::checkpoint::{self, Manifest, Name, Owner};
use weir_engine::connector::ConnectorError;
use weir_engine::store::{Generation, JobStore};
use weir_engine::time::Epoch;

/// Arguments of the command.
#[derive(Args, Clone)]
pub struct CheckpointsArgs {
    /// The state: what `weir run --state` was given
    state: String,
    /// Only this job (the name of its folder)
    #[arg(long)]
    job: Option<String>,
    /// Describes the checkpoint at this epoch: splits, operators, sinks
    #[arg(long)]
    epoch: Option<Epoch>,
    /// Prints JSON, an object a line
    #[arg(long)]
    json: bool,
}

/// A checkpoint in the list.
#[derive(Debug, Serialize)]
struct Line {
    job: String,
    epoch: Epoch,
    generation: u64,
    /// `sound`, `void`, or what is wrong with it.
    state: String,
    workers: usize,
    pieces: usize,
    bytes: u64,
    /// Of these, what it has written itself.
    own_bytes: u64,
}

/// Lists, verifies and describes. True: all that count are sound.
///
/// # Errors
/// The store's; a job or an epoch that is not there.
pub fn run(args: &CheckpointsArgs) -> Result<(String, bool), ConnectorError> {
    let all = Store::open(&args.state, &StoreOptions::none())?;
    let mut jobs: Vec<String> = Vec::new();
    for entry in all.list("")? {
        if let Some(job) = entry.path.strip_suffix("/job.json") {
            jobs.push(job.to_owned());
        }
    }
    if let Some(wanted) = &args.job {
        jobs.retain(|job| job == wanted);
    }
    if jobs.is_empty() {
        let named = args.job.as_ref().map(|job| format!(" `{job}`")).unwrap_or_default();
        let message = format!("there is no job{named} in {}", all.url());
        let hint = "name what `weir run --state` was given";
        return Err(ConnectorError::reconfigure(message).hint(hint));
    }
    let (mut text, mut sound, mut found) = (String::new(), true, false);
    for job in jobs {
        let url = format!("{}/{job}", args.state.trim_end_matches('/'));
        let store = JobStore::over(Arc::new(Store::open(&url, &StoreOptions::none())?));
        let generations = store.generations()?;
        let paths = store.objects().list("checkpoints")?;
        let mut names: Vec<Name> = paths.iter().filter_map(|path| Name::of(path)).collect();
        names.retain(|name| args.epoch.is_none_or(|epoch| epoch == name.epoch));
        names.sort_unstable();
        found |= !names.is_empty();
        for name in names {
            let manifest = checkpoint::verify(&store, name)?;
            let line = line(&job, name, &generations, &manifest);
            sound &= line.state == "sound" || line.state == "void";
            let described = args.epoch.is_some();
            write_line(&mut text, &line, manifest.ok().filter(|_| described), args.json);
        }
    }
    if let Some(epoch) = args.epoch.filter(|_| !found) {
        let message = format!("there is no checkpoint at epoch {epoch}");
        return Err(ConnectorError::reconfigure(message));
    }
    if text.is_empty() && !args.json {
        text.push_str("no checkpoint yet\n");
    }
    Ok((text, sound))
}

fn line(
    job: &str,
    name: Name,
    generations: &[Generation],
    manifest: &Result<Manifest, String>,
) -> Line {
    let state = match manifest {
        Err(reason) => reason.clone(),
        Ok(_) if !checkpoint::counts(name, generations) => "void".to_owned(),
        Ok(_) => "sound".to_owned(),
    };
    let pieces = manifest.as_ref().map_or(&[][..], |manifest| &manifest.pieces);
    let own = format!("pieces/{:020}-{:020}-", name.generation, name.epoch);
    let own = pieces.iter().filter(|piece| piece.file.starts_with(&own));
    Line {
        job: job.to_owned(),
        epoch: name.epoch,
        generation: name.generation,
        state,
        workers: manifest.as_ref().map_or(0, |manifest| manifest.workers),
        pieces: pieces.len(),
        bytes: pieces.iter().map(|piece| piece.length).sum(),
        own_bytes: own.map(|piece| piece.length).sum(),
    }
}

fn write_line(text: &mut String, line: &Line, manifest: Option<Manifest>, json: bool) {
    if json {
        let mut value = serde_json::json!(line);
        if let Some(manifest) = manifest {
            value["manifest"] = serde_json::json!(manifest);
        }
        let _ = writeln!(text, "{value}");
        return;
    }
    let Line { job, epoch, generation, state, workers, pieces, bytes, own_bytes } = line;
    let _ = writeln!(
        text,
        "{job}  epoch {epoch} ({})  generation {generation}  {state}: {pieces} pieces, {} ({} of \
         its own), {workers} workers",
        time_of(*epoch),
        size(*bytes),
        size(*own_bytes),
    );
    if let Some(manifest) = manifest {
        describe(text, &manifest);
    }
}

fn describe(text: &mut String, manifest: &Manifest) {
    for (number, source) in manifest.cuts.sources.iter().enumerate() {
        let _ = writeln!(text, "  source {number}: watermark {}", source.watermark);
        for facts in &source.splits {
            let (split, offset, mark) = (facts.split.number(), facts.offset, facts.mark);
            let state = format!("{:?}", facts.state).to_lowercase();
            let _ = writeln!(text, "    split {split}: offset {offset}, mark {mark}, {state}");
        }
    }
    let mut by_owner: BTreeMap<&Owner, (usize, u64)> = BTreeMap::new();
    for piece in &manifest.pieces {
        let sum = by_owner.entry(&piece.owner).or_default();
        *sum = (sum.0 + 1, sum.1 + piece.length);
    }
    for (owner, (pieces, bytes)) in by_owner {
        let owner = match owner {
            Owner::Operator(number) => format!("operator {number}"),
            Owner::Shard(sink, shard) => format!("sink {sink}, shard {shard}"),
        };
        let _ = writeln!(text, "  {owner}: {pieces} pieces, {}", size(bytes));
    }
    for shard in &manifest.shards {
        let (sink, number) = shard.shard;
        let _ = writeln!(text, "  sink {sink}, shard {number}: digest {}", shard.digest);
    }
}

/// Epochs of live jobs are times.
fn time_of(epoch: Epoch) -> String {
    let millis = i64::try_from(epoch).unwrap_or(i64::MAX);
    if millis < 1_000_000_000_000 {
        return "of a replay".to_owned();
    }
    let time = arrow::array::TimestampMillisecondArray::from(vec![millis]);
    arrow::util::display::array_value_to_string(&time, 0).unwrap_or_default()
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}
