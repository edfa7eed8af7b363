//! A set of processes on this machine that run the same jobs together.
//!
//! The parent plans, finds the splits, begins the jobs' generations and chooses addresses; each
//! child gets all of that as the first line of its standard input and runs its share. More lines
//! may follow: to stop, or to end a job that has failed in another process. What a child has to say
//! are lines of its standard output: that it is alive, what happens to its jobs, and that a source
//! has more splits.
//!
//! Each child also has the second copies of journals of the one before it (`journal/copies.rs`),
//! under a secret of the set, and ends only once nobody has one open any more.
//!
//! # Ends
//! - A job that fails somewhere is ended everywhere; the other jobs go on.
//! - A child that ends badly, or says nothing for 8 s, ends the set: the others are
//!   killed. What is shown is why the first one ended; that others lost their connection to it is a
//!   consequence.
//! - Where a source has more splits, all are killed as well: the next generation begins with them,
//!   and what was not committed comes again.
//! - Where standard input closes the parent is gone: jobs that last end where they are, others
//!   stop their sources and commit.

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use weir_engine::flow::Cluster;
use weir_engine::job::JobControl;
use weir_engine::journal::{CopyServer, Peer, new_secret};

use crate::discovery::{self, Discovery, Watch};
use crate::jobs::{Jobs, News};
use crate::lasting::{Begun, Set, StateOptions};
use crate::run::{PreparedJob, RunOptions, Trouble};

/// Of what a child says, beside what it logs, the newest is kept: about so many bytes.
const SAID_MAX: usize = 64 << 10;
/// Marks the lines of a child's standard output that are for its parent.
const SAYS: &str = "weir-says ";
/// How often a child says that it is alive.
const ALIVE: Duration = Duration::from_millis(500);
/// A child that says nothing for so long is lost.
const SILENCE_MAX: Duration = Duration::from_secs(8);
/// How often the parent looks whether children have ended.
const LOOK: Duration = Duration::from_millis(5);
/// How long it looks for the one that ended first, where others only say that it is gone.
const FIRST_CAUSE: Duration = Duration::from_millis(500);
/// What a child ends with that has lost its connection to another.
const LOST_ANOTHER: i32 = 75;
/// How long a child without a parent takes at the most.
const ORPHANED: Duration = Duration::from_secs(3);

/// A job as the processes of a set get it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Assigned {
    /// The job.
    pub job: PreparedJob,
    /// Its generation, if it lasts.
    pub begun: Option<Begun>,
}

#[derive(Serialize, Deserialize)]
struct Assignment {
    jobs: Vec<Assigned>,
    /// Addresses of all processes, by job.
    addresses: Vec<Vec<String>>,
    /// All processes, as those that have second copies of journals.
    peers: Vec<Peer>,
    process: usize,
    set: Set,
    digest: bool,
    state: Option<StateOptions>,
}

/// What a child says.
#[derive(Serialize, Deserialize)]
enum Said {
    Alive,
    News {
        job: usize,
        news: News,
    },
    Refused(Trouble),
    /// The next generation is to begin.
    Renew {
        why: String,
    },
}

/// What a child is told.
#[derive(Serialize, Deserialize)]
enum Told {
    Stop,
    End { job: usize },
}

// The parent's side ------------------------------------------------------------------------------

/// How a set has ended.
#[derive(Debug, PartialEq, Eq)]
pub enum SetEnd {
    /// All jobs have ended, well or not.
    Done,
    /// A process was lost.
    Lost {
        /// Why, in words.
        why: String,
        /// Whether what its jobs need was away, so that it is no fault of theirs.
        passing: bool,
    },
}

struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    said: Vec<JoinHandle<String>>,
    heard: Instant,
    /// Whether what it says is being passed on: who reads that may take any time.
    passing_on: Arc<AtomicBool>,
}

/// Jobs that end everywhere, and those of them that have failed.
#[derive(Default)]
struct Ending {
    jobs: BTreeSet<usize>,
    failed: BTreeSet<usize>,
}

/// Children that run.
pub struct Processes {
    running: Vec<Running>,
    news: Receiver<(usize, Said)>,
}

impl Processes {
    /// Starts a set.
    ///
    /// # Errors
    /// A process cannot be started; no port is free.
    pub fn start(jobs: &[Assigned], options: &RunOptions, set: Set) -> Result<Processes, String> {
        let free = free_addresses(set.processes * (jobs.len() + 1))?;
        let mut addresses: Vec<Vec<String>> =
            free.chunks(set.processes).map(<[String]>::to_vec).collect();
        let peers = peers(addresses.pop().unwrap_or_default())?;
        let (sender, news) = channel();
        let mut processes = Processes { running: Vec::new(), news };
        for process in 0..set.processes {
            let assignment = Assignment {
                jobs: jobs.to_vec(),
                addresses: addresses.clone(),
                peers: peers.clone(),
                process,
                set,
                digest: options.digest,
                state: options.state.clone(),
            };
            processes.running.push(start(&assignment, &sender)?);
        }
        Ok(processes)
    }

    /// Waits until all children have ended. What happens to jobs goes to `tell`: their failure
    /// once, their end once a process.
    pub fn wait(mut self, stop: &AtomicBool, mut tell: impl FnMut(usize, News)) -> SetEnd {
        let (mut asked, mut ending) = (false, Ending::default());
        let mut looked = Instant::now();
        loop {
            if stop.load(Ordering::SeqCst) && !std::mem::replace(&mut asked, true) {
                self.running.iter_mut().for_each(|one| one.tell(&Told::Stop));
            }
            match self.news.recv_timeout(LOOK) {
                Ok((process, Said::Alive)) => self.running[process].heard = Instant::now(),
                Ok((process, Said::News { job, news })) => {
                    self.pass_on(process, job, news, &mut ending, &mut tell);
                }
                Ok((process, Said::Refused(trouble))) => {
                    let passing = trouble.passing;
                    let trouble = String::from(trouble);
                    self.kill();
                    let why = format!("process {process} cannot take part: {trouble}");
                    return SetEnd::Lost { why, passing };
                }
                // One that is about to end does not begin anew.
                Ok((_, Said::Renew { .. })) if asked => {}
                Ok((_, Said::Renew { why })) => {
                    self.kill();
                    self.hear_out(&mut ending, &mut tell);
                    return SetEnd::Lost { why, passing: true };
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {}
            }
            // Whoever stood still must not blame others.
            if looked.elapsed() > 4 * ALIVE {
                self.running.iter_mut().for_each(|one| one.heard = Instant::now());
            }
            looked = Instant::now();
            if let Some(end) = self.look() {
                self.hear_out(&mut ending, &mut tell);
                return end;
            }
        }
    }

    /// What children that have ended said before counts.
    fn hear_out(&mut self, ending: &mut Ending, tell: &mut impl FnMut(usize, News)) {
        while let Ok((process, said)) = self.news.recv_timeout(LOOK) {
            if let Said::News { job, news } = said {
                self.pass_on(process, job, news, ending, tell);
            }
        }
    }

    fn pass_on(
        &mut self,
        process: usize,
        job: usize,
        news: News,
        ending: &mut Ending,
        tell: &mut impl FnMut(usize, News),
    ) {
        if matches!(news, News::Ended(_)) {
            return tell(job, news);
        }
        if ending.jobs.insert(job) {
            let others = self.running.iter_mut().enumerate().filter(|(other, _)| *other != process);
            others.for_each(|(_, one)| one.tell(&Told::End { job }));
        }
        // The first cause only; that a process ends because of another's is none.
        if matches!(news, News::Failed(_)) && ending.failed.insert(job) {
            tell(job, news);
        }
    }

    /// Whether the set has ended.
    fn look(&mut self) -> Option<SetEnd> {
        let mut ended = 0;
        for process in 0..self.running.len() {
            let one = &mut self.running[process];
            match one.child.try_wait() {
                Ok(None) if one.passing_on.load(Ordering::SeqCst) => one.heard = Instant::now(),
                Ok(None) if one.heard.elapsed() > SILENCE_MAX => {
                    let seconds = SILENCE_MAX.as_secs();
                    let cause = format!("process {process} has said nothing for {seconds} s");
                    return Some(self.lost(cause, false));
                }
                Ok(None) => {}
                Ok(Some(status)) if status.success() => ended += 1,
                Ok(Some(_)) | Err(_) => {
                    let (cause, passing) = self.first_cause();
                    return Some(self.lost(cause, passing));
                }
            }
        }
        if ended < self.running.len() {
            return None;
        }
        // Their last words have been read once their threads are done.
        self.running.iter_mut().for_each(|one| drop(one.words()));
        Some(SetEnd::Done)
    }

    /// Why the first process ended that ended by itself, and whether none did: then it is the way
    /// between them, or a disk that a second copy is on, and may be back.
    fn first_cause(&mut self) -> (String, bool) {
        let began = Instant::now();
        loop {
            for (process, one) in self.running.iter_mut().enumerate() {
                let Ok(Some(status)) = one.child.try_wait() else { continue };
                if status.success() || status.code() == Some(LOST_ANOTHER) {
                    continue;
                }
                if let Some(signal) = status.signal() {
                    let words = one.words();
                    let words = if words.is_empty() { words } else { format!(": {words}") };
                    return (
                        format!("process {process} was ended by signal {signal}{words}"),
                        false,
                    );
                }
                let code = status.code().unwrap_or_default();
                return (
                    format!("process {process} ended with code {code}: {}", one.words()),
                    false,
                );
            }
            if began.elapsed() > FIRST_CAUSE {
                let mut said = Vec::new();
                for (process, one) in self.running.iter_mut().enumerate() {
                    if matches!(one.child.try_wait(), Ok(Some(_))) {
                        said.push(format!("process {process}: {}", one.words()));
                    }
                }
                let said = said.join("; ");
                let lost = format!("processes have lost their connection to each other: {said}");
                return (lost, true);
            }
            thread::sleep(LOOK);
        }
    }

    fn lost(&mut self, why: String, passing: bool) -> SetEnd {
        self.kill();
        SetEnd::Lost { why, passing }
    }

    fn kill(&mut self) {
        for one in &mut self.running {
            // It may have ended by itself meanwhile.
            drop(one.child.kill());
        }
        for one in &mut self.running {
            drop(one.child.wait());
            drop(one.words());
        }
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Running {
    /// A child that is gone need not be told.
    fn tell(&mut self, told: &Told) {
        if let (Some(stdin), Ok(text)) = (&mut self.stdin, serde_json::to_string(told)) {
            let _ = writeln!(stdin, "{text}").and_then(|()| stdin.flush());
        }
    }

    /// The last line of what an ended child has said, beside what it logged.
    fn words(&mut self) -> String {
        let said: String =
            self.said.drain(..).map(|thread| thread.join().unwrap_or_default()).collect();
        let mut lines = said.lines().filter(|line| !line.trim().is_empty());
        let told = |line: &&str| !line.starts_with("note:") && !line.starts_with("stack backtrace");
        lines.rfind(told).unwrap_or_default().trim().to_owned()
    }
}

fn free_addresses(count: usize) -> Result<Vec<String>, String> {
    let listen = |_| TcpListener::bind("127.0.0.1:0");
    // All are held until all are chosen, so that no two are the same.
    let held: Result<Vec<_>, _> = (0..count).map(listen).collect();
    let held = held.map_err(|e| format!("no free port on loopback: {e}"))?;
    held.iter().map(|l| l.local_addr().map(|a| a.to_string()).map_err(|e| e.to_string())).collect()
}

/// The processes of a set at these addresses, under a secret that only they know.
fn peers(addresses: Vec<String>) -> Result<Vec<Peer>, String> {
    let secret = new_secret().map_err(|e| format!("no secret for a set of processes: {e}"))?;
    let peer = |(process, address)| Peer { process, address, secret: secret.clone() };
    Ok(addresses.into_iter().enumerate().map(peer).collect())
}

fn start(assignment: &Assignment, news: &Sender<(usize, Said)>) -> Result<Running, String> {
    let failed = |e: &dyn std::fmt::Display| format!("cannot start a process: {e}");
    let binary = std::env::current_exe().map_err(|e| failed(&e))?;
    let mut child = Command::new(binary)
        .arg("process")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| failed(&e))?;
    let text = serde_json::to_string(assignment).map_err(|e| failed(&e))?;
    let mut stdin = child.stdin.take();
    if let Some(stdin) = stdin.as_mut() {
        // One that has ended already is found when it is looked at.
        let _ = writeln!(stdin, "{text}");
    }
    let (process, news) = (assignment.process, news.clone());
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let passing_on = Arc::new(AtomicBool::new(false));
    let busy = passing_on.clone();
    let said = vec![
        thread::spawn(move || {
            hear(out, &busy, |said| drop(news.send((process, said))));
            String::new()
        }),
        thread::spawn(move || keep(err)),
    ];
    Ok(Running { child, stdin, said, heard: Instant::now(), passing_on })
}

/// Reads what a child says on its standard output.
fn hear(out: Option<ChildStdout>, busy: &AtomicBool, mut tell: impl FnMut(Said)) {
    let Some(out) = out else { return };
    for line in BufReader::new(out).lines().map_while(Result::ok) {
        match line.strip_prefix(SAYS).map(serde_json::from_str) {
            Some(Ok(said)) => tell(said),
            // Half a line of one that was killed.
            Some(Err(_)) => {}
            None => {
                busy.store(true, Ordering::SeqCst);
                crate::cli::out(&format!("{line}\n"));
                busy.store(false, Ordering::SeqCst);
            }
        }
    }
}

/// Reads a child's standard error: what it logs goes on, the rest is kept.
fn keep(err: Option<ChildStderr>) -> String {
    let mut said = String::new();
    let Some(err) = err else { return said };
    for line in BufReader::new(err).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line);
        if is_logged(&line) {
            eprintln!("{line}");
            continue;
        }
        if said.len() > SAID_MAX {
            let half = said.len() / 2;
            let end = said.as_bytes()[half..].iter().position(|&byte| byte == b'\n');
            said.drain(..end.map_or(said.len(), |end| half + end + 1));
        }
        said.push_str(&line);
        said.push('\n');
    }
    said
}

/// Whether a child has logged this line: a time and a level begin it. What else it says is kept
/// for the case that it fails.
fn is_logged(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let time = words.next().is_some_and(|word| word.starts_with("20") && word.ends_with('Z'));
    time && words.next().is_some_and(|level| ["WARN", "ERROR", "INFO"].contains(&level))
}

// The child's side -------------------------------------------------------------------------------

fn say(said: &Said) {
    if let Ok(text) = serde_json::to_string(said) {
        crate::cli::out(&format!("{SAYS}{text}\n"));
    }
}

/// Runs a process of a set.
pub fn child() -> ExitCode {
    // Timely's threads panic where another process is gone: nothing can be done without it.
    let panics = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        panics(panic);
        let text = panic.payload_as_str().unwrap_or_default();
        if text.starts_with("timely communication error") {
            std::process::exit(LOST_ANOTHER);
        }
    }));
    match run_child() {
        Ok(()) => ExitCode::SUCCESS,
        Err(trouble) => {
            say(&Said::Refused(trouble));
            ExitCode::FAILURE
        }
    }
}

fn run_child() -> Result<(), Trouble> {
    let mut line = String::new();
    let mut stdin = BufReader::new(std::io::stdin());
    stdin.read_line(&mut line).map_err(|e| Trouble::new(e.to_string()))?;
    let assignment: Assignment = serde_json::from_str(&line)
        .map_err(|e| Trouble::new(format!("`weir process` is started by `weir run`: {e}")))?;
    // Signals go to whole groups of processes: what is to be done the parent says.
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, Arc::default())
            .map_err(|e| Trouble::new(format!("cannot listen for signals: {e}")))?;
    }
    let stop = Arc::new(AtomicBool::new(false));
    thread::spawn(|| {
        loop {
            say(&Said::Alive);
            thread::sleep(ALIVE);
        }
    });
    let Assignment { jobs, addresses, peers, process, set, digest, state } = assignment;
    let Peer { address, secret, .. } = &peers[process];
    let copies = CopyServer::start(address, secret)
        .map_err(|e| Trouble::new(format!("cannot listen at {address}: {e}")))?;
    let next = peers.get((process + 1) % set.processes).filter(|_| set.processes > 1);
    let cluster = |addresses| {
        let (threads, second_copy) = (set.workers, next.cloned());
        Cluster { threads, process, addresses, second_copy }
    };
    let clusters: Vec<Cluster> = addresses.into_iter().map(cluster).collect();
    let mut startable = Vec::new();
    for Assigned { job, begun } in jobs {
        let lasting = match (&state, begun) {
            (Some(state), Some(begun)) => Some(state.join(&begun, None, set, process)?),
            _ => None,
        };
        startable.push((job, lasting));
    }
    let lasting = state.is_some();
    let watch = Watch::of(startable.iter().map(|(job, _)| job).filter(|_| process == 0));
    let jobs = Jobs::start(startable, &clusters, digest);
    let discovery = Discovery::start(watch, jobs.controls(), move |why| match lasting {
        true => say(&Said::Renew { why: why.to_owned() }),
        false => discovery::next_time(why),
    });
    let (controls, asked) = (jobs.controls().to_vec(), stop.clone());
    thread::spawn(move || obey(stdin, &controls, &asked, lasting));
    jobs.wait(
        || stop.load(Ordering::SeqCst),
        |job, news| {
            if let News::Disconnected(message) = &news {
                eprintln!("{message}");
                std::process::exit(LOST_ANOTHER);
            }
            say(&Said::News { job, news });
        },
    );
    // With nothing left to do it must not end the set for more splits.
    drop(discovery);
    copies.finish();
    Ok(())
}

/// Does what the parent says, until it is gone.
fn obey(stdin: impl BufRead, controls: &[Arc<JobControl>], stop: &AtomicBool, lasting: bool) {
    for line in stdin.lines().map_while(Result::ok) {
        match serde_json::from_str(&line) {
            Ok(Told::Stop) => stop.store(true, Ordering::SeqCst),
            Ok(Told::End { job }) => {
                if let Some(control) = controls.get(job) {
                    control.interrupt();
                }
            }
            Err(error) => tracing::warn!(%error, "what the parent says cannot be read"),
        }
    }
    if !lasting {
        return stop.store(true, Ordering::SeqCst);
    }
    controls.iter().for_each(|control| control.interrupt());
    thread::sleep(ORPHANED);
    std::process::exit(LOST_ANOTHER);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_child_logs_is_told_from_what_it_says_when_it_fails() {
        assert!(is_logged("2026-01-02T03:04:05.000006Z  WARN weir_connect::retry: failed"));
        assert!(!is_logged("thread 'main' panicked at src/main.rs:1:1:"));
        assert!(!is_logged("weir-says {\"message\":\"20Z WARN\"}"));
    }
}
