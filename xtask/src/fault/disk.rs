//! A small file system that can be filled: a tmpfs in a mount namespace of its own.
//!
//! A process that only sleeps holds the namespace; weir enters it with `nsenter`. From outside the
//! files are seen through `/proc/PID/root`. When the holder and weir have ended nothing is left.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::process;

const SIZE: &str = "48m";
const CHUNK: usize = 4 << 10;
const READY_MAX: Duration = Duration::from_secs(10);

/// The file system; dropping it ends its holder.
pub(super) struct SmallDisk {
    /// Its folder, as weir sees it.
    pub(super) inside: PathBuf,
    /// Its folder, as we see it.
    pub(super) outside: PathBuf,
    holder: Child,
    as_root: bool,
}

impl SmallDisk {
    /// Makes a file system at a folder.
    pub(super) fn make(folder: &Path) -> Result<SmallDisk> {
        fs::create_dir_all(folder)?;
        let mount = format!("mount -t tmpfs -o size={SIZE} none '{}'", folder.display());
        let works = |flags: &&str| {
            let mut tried = Command::new("unshare");
            process::quietly(tried.args([flags, "sh", "-c", &mount])).is_ok()
        };
        let flags = ["-m", "-rm"].into_iter().find(works);
        let flags = flags.context("a tmpfs needs root or user namespaces (`unshare -rm`)")?;
        let ready = folder.with_extension("ready");
        let script = format!("{mount} && touch '{}' && exec sleep 100000", ready.display());
        let mut hold = Command::new("setpriv");
        hold.args(["--pdeathsig", "KILL", "--", "unshare", flags, "sh", "-c", &script]);
        let holder = process::spawn(&mut hold)?;
        let inside = folder.to_owned();
        let root = PathBuf::from(format!("/proc/{}/root", holder.id()));
        let outside = root.join(folder.strip_prefix("/").unwrap_or(folder));
        let disk = SmallDisk { inside, outside, holder, as_root: flags == "-m" };
        let began = Instant::now();
        while !ready.exists() {
            ensure!(began.elapsed() < READY_MAX, "no tmpfs at {}", folder.display());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(disk)
    }

    /// The words that start a program where this disk is seen.
    pub(super) fn enter(&self) -> Vec<String> {
        let pid = self.holder.id().to_string();
        let user = if self.as_root { &[][..] } else { &["-U", "--preserve-credentials"] };
        let words = ["nsenter", "-t", &pid, "-m"].into_iter().chain(user.iter().copied());
        words.chain(["--"]).map(str::to_owned).collect()
    }

    fn filler(&self) -> PathBuf {
        self.outside.join("filler")
    }

    /// Fills what is free.
    pub(super) fn fill(&self) -> Result<()> {
        let mut file = OpenOptions::new().create(true).append(true).open(self.filler())?;
        loop {
            match file.write_all(&[0; CHUNK]) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Makes room again; there may be room already.
    pub(super) fn free(&self) -> Result<()> {
        match fs::remove_file(self.filler()) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        process::signal_group(self.holder.id(), libc::SIGKILL);
        let _gone = self.holder.wait();
    }
}
