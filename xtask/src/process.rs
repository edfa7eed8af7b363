//! Child processes: each in a group of its own, none left behind when the run is interrupted.
//!
//! # Invariant
//! A child that [`run`], [`capture`] or [`measure`] started has ended when they return, also after
//! SIGINT or SIGTERM. Being in a group of its own, it doesn't hear the terminal's Ctrl-C; this
//! process does, and passes it on to the whole group (a test binary is our grandchild).

use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

const POLL: Duration = Duration::from_millis(20);
const GRACE: Duration = Duration::from_secs(10);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// A cargo of its own. What `cargo run` told this process of its package must not reach it: build
/// scripts that look at those variables would rebuild half of the dependencies each time.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new("cargo");
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            cargo.env_remove(&name);
        }
    }
    cargo
}

/// From here on SIGINT, SIGTERM and SIGHUP end the run in order: see [`interrupted`].
pub(crate) fn handle_signals() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores into an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, on_signal as *const () as libc::sighandler_t) };
    }
}

/// Whether a signal asked for the end.
pub(crate) fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// An error once a signal has asked for the end.
pub(crate) fn check_interrupted() -> Result<()> {
    if interrupted() {
        bail!("interrupted");
    }
    Ok(())
}

/// Sends a signal to one process; false if it is gone.
pub(crate) fn signal(pid: u32, signal: libc::c_int) -> bool {
    // SAFETY: kill has no memory effects; the pid is one that we started.
    unsafe { libc::kill(pid as libc::pid_t, signal) == 0 }
}

/// Sends a signal to the group that a child of ours leads.
pub(crate) fn signal_group(pid: u32, signal: libc::c_int) {
    // SAFETY: as above; the group was made for this child.
    unsafe { libc::kill(-(pid as libc::pid_t), signal) };
}

/// Starts a child in a group of its own, without standard input.
pub(crate) fn spawn(command: &mut Command) -> Result<Child> {
    check_interrupted()?;
    command.process_group(0).stdin(Stdio::null());
    command.spawn().with_context(|| format!("cannot start `{}`", shown(command)))
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Waits for a child; after a signal or the time limit it is ended with its whole group.
pub(crate) fn wait(child: &mut Child, limit: Option<Duration>) -> Result<ExitStatus> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        let late = limit.is_some_and(|limit| began.elapsed() > limit);
        if late || interrupted() {
            end(child);
            if late {
                bail!("still running after {} s", began.elapsed().as_secs());
            }
            bail!("interrupted");
        }
        thread::sleep(POLL);
    }
}

/// Ends a child and its group: SIGTERM, and SIGKILL for who has not gone after a while.
pub(crate) fn end(child: &mut Child) {
    signal_group(child.id(), libc::SIGTERM);
    let began = Instant::now();
    while began.elapsed() < GRACE {
        if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
            return;
        }
        thread::sleep(POLL);
    }
    signal_group(child.id(), libc::SIGKILL);
    let _gone = child.wait();
}

/// Runs a command with our own output; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = wait(&mut spawn(command)?, None)?;
    if !status.success() {
        bail!("`{}` ended with {}", shown(command), ended(status));
    }
    Ok(())
}

/// What a command left behind.
pub(crate) struct Captured {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs a command and keeps what it prints.
pub(crate) fn capture(command: &mut Command) -> Result<Captured> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = spawn(command)?;
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let status = wait(&mut child, None)?;
    let text = |thread: Option<thread::JoinHandle<String>>| {
        thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
    };
    Ok(Captured { status, stdout: text(stdout), stderr: text(stderr) })
}

/// Runs a command quietly: what it printed is shown only if it fails.
pub(crate) fn quietly(command: &mut Command) -> Result<String> {
    let captured = capture(command)?;
    if !captured.status.success() {
        let said = format!("{}{}", captured.stdout, captured.stderr);
        bail!("`{}` ended with {}:\n{}", shown(command), ended(captured.status), said.trim_end());
    }
    Ok(captured.stdout)
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _partial = from.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What one whole process cost.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Wall time in seconds.
    pub(crate) wall_s: f64,
    /// User and system time in seconds.
    pub(crate) cpu_s: f64,
    /// Greatest resident set of the process or of one of its children, in bytes.
    pub(crate) peak_bytes: u64,
}

/// Runs a command to its end and measures it with the kernel's own account (`wait4`).
pub(crate) fn measure(command: &mut Command) -> Result<Cost> {
    let began = Instant::now();
    let child = spawn(command)?;
    let pid = child.id();
    let mut asked = None::<Instant>;
    loop {
        let mut status = 0;
        // SAFETY: rusage is plain data, and all zeroes is a value of it.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live locals; the pid is our child, reaped only here.
        let got = unsafe {
            libc::wait4(pid as libc::pid_t, &raw mut status, libc::WNOHANG, &raw mut usage)
        };
        if got == pid as libc::pid_t {
            check_interrupted()?;
            let status = ExitStatus::from_raw(status);
            if !status.success() {
                bail!("`{}` ended with {}", shown(command), ended(status));
            }
            let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
            return Ok(Cost {
                wall_s: began.elapsed().as_secs_f64(),
                cpu_s: seconds(usage.ru_utime) + seconds(usage.ru_stime),
                peak_bytes: usage.ru_maxrss as u64 * 1024,
            });
        }
        if interrupted() {
            let since = *asked.get_or_insert_with(Instant::now);
            let signal = if since.elapsed() > GRACE { libc::SIGKILL } else { libc::SIGTERM };
            signal_group(pid, signal);
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// How a process ended, in words.
pub(crate) fn ended(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit code {code}"),
        (_, Some(signal)) => format!("signal {signal}"),
        _ => "an unknown status".to_owned(),
    }
}

/// Where a program is: on the search path, or in one of the folders where Debian keeps daemons.
pub(crate) fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let extra = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/local/go/bin"].map(Into::into);
    std::env::split_paths(&path).chain(extra).map(|dir| dir.join(name)).find(|p| p.is_file())
}

/// A child that is ended with the value.
pub(crate) struct Ended(pub(crate) Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            end(&mut self.0);
        }
    }
}

/// Bytes of memory that a process has now.
pub(crate) fn resident(pid: u32) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: u64 = line.context("no VmRSS")?.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_an_error_with_its_words() {
        let failed = quietly(Command::new("sh").args(["-c", "echo so; exit 3"]));
        let text = failed.err().map(|e| e.to_string()).unwrap_or_default();
        assert!(text.contains("exit code 3") && text.contains("so"), "{text}");
    }

    #[test]
    fn the_time_limit_ends_the_whole_group() -> Result<()> {
        let mut child = spawn(Command::new("sh").args(["-c", "sleep 60 & wait"]))?;
        assert!(wait(&mut child, Some(Duration::from_millis(50))).is_err());
        assert!(child.try_wait()?.is_some());
        Ok(())
    }

    #[test]
    fn memory_and_time_are_those_of_the_child() -> Result<()> {
        let cost = measure(Command::new("sh").args(["-c", "sleep 0.1"]))?;
        assert!(cost.wall_s >= 0.1 && cost.wall_s > cost.cpu_s, "{cost:?}");
        assert!(cost.peak_bytes > 100_000, "{cost:?}");
        Ok(())
    }
}
