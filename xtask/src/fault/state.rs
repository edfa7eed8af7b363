//! The state folder of a job, looked at from outside.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// The folder of the only job below a state folder, once it is there.
pub(super) fn job(state: &Path) -> Option<PathBuf> {
    let mut folders = fs::read_dir(state).ok()?.flatten().map(|entry| entry.path());
    folders.find(|path| path.is_dir())
}

/// Names in a folder of the job, oldest first: their numbers have the same width. Drafts, whose
/// names begin with a dot, come first. None where there is no such folder yet.
pub(super) fn names(state: &Path, folder: &str) -> Vec<String> {
    let Some(job) = job(state) else { return Vec::new() };
    let Ok(entries) = fs::read_dir(job.join(folder)) else { return Vec::new() };
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<String> = entries.flatten().map(name).collect();
    names.sort();
    names
}

/// Manifests, oldest first.
pub(super) fn manifests(state: &Path) -> Vec<String> {
    let mut names = names(state, "checkpoints");
    names.retain(|name| !name.starts_with('.') && name.ends_with(".json"));
    names
}

/// Whether a manifest names a file of pieces.
pub(super) fn is_named(state: &Path, file: &str) -> bool {
    let Some(folder) = job(state).map(|job| job.join("checkpoints")) else { return false };
    manifests(state).iter().any(|manifest| {
        fs::read_to_string(folder.join(manifest)).is_ok_and(|text| text.contains(file))
    })
}

/// The newest manifest, and a file of pieces that only it names, if there is one.
pub(super) fn newest(state: &Path) -> Result<(PathBuf, Option<PathBuf>)> {
    let job = job(state).context("no state")?;
    let all = manifests(state);
    let (newest, before) = all.split_last().context("no checkpoint")?;
    let read = |name: &String| fs::read_to_string(job.join("checkpoints").join(name));
    let text = read(newest)?;
    let others = before.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    let own = names(state, "pieces")
        .into_iter()
        .rfind(|name| text.contains(name) && !others.iter().any(|other| other.contains(name)));
    Ok((job.join("checkpoints").join(newest), own.map(|name| job.join("pieces").join(name))))
}

/// Changes a byte of a file: the one at this share of its length.
pub(super) fn flip(path: &Path, permille: u64) -> Result<usize> {
    let mut bytes = fs::read(path)?;
    ensure!(!bytes.is_empty(), "{} is empty", path.display());
    let at = (bytes.len() as u64 * permille.min(999) / 1_000) as usize;
    bytes[at] ^= 0x10;
    fs::write(path, bytes)?;
    Ok(at)
}

/// Copies a folder as a snapshot of its disk would: with all files, and without any lock.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
        if path.is_dir() {
            copy(&path, &to.join(name))?;
        } else {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_checkpoint_and_what_only_it_names() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let job = folder.path().join("job");
        for (path, text) in [
            ("checkpoints/001.json", "a.pieces"),
            ("checkpoints/002.json", "a.pieces b.pieces"),
            ("checkpoints/.003.json", "a draft"),
            ("pieces/a.pieces", "aaaa"),
            ("pieces/b.pieces", "bbbb"),
        ] {
            fs::create_dir_all(job.join(path).parent().context("a folder")?)?;
            fs::write(job.join(path), text)?;
        }
        let (manifest, own) = newest(folder.path())?;
        assert_eq!(manifest, job.join("checkpoints/002.json"));
        assert_eq!(own, Some(job.join("pieces/b.pieces")));
        assert!(is_named(folder.path(), "b.pieces") && !is_named(folder.path(), "c.pieces"));

        let snapshot = folder.path().join("snapshot");
        copy(&job, &snapshot)?;
        assert_eq!(flip(&snapshot.join("pieces/b.pieces"), 500)?, 2);
        assert_eq!(fs::read(snapshot.join("pieces/b.pieces"))?, b"bbrb");
        assert_eq!(fs::read(job.join("pieces/b.pieces"))?, b"bbbb");
        Ok(())
    }
}
