//! Real servers for tests, benches and demos: Kafka, Mosquitto, PostgreSQL, an S3 gateway,
//! toxiproxy.
//!
//! # Promise
//! Each server listens on loopback only, on ports that were free, and keeps its data in a temporary
//! folder of its own. [`Services`] stops what it started, by process id, when it is dropped; should
//! this process be killed, the kernel tells the servers (`--pdeathsig`).
//!
//! # How a test finds them
//! By the environment variables of [`Services::env`]: `WEIR_TEST_KAFKA` and the like.
//! A test that needs a server fails where its variable is missing; it is never skipped.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::{places, process};

mod certificates;
mod install;
mod kafka;
mod mosquitto;
mod postgres;
mod s3;
mod toxiproxy;
mod up;

pub(crate) use install::{install, prerequisites};
pub(crate) use up::command;

const READY_MAX: Duration = Duration::from_secs(60);
const STOP_MAX: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(50);
const LOG_LINES_SHOWN: usize = 25;

/// A kind of server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Apache Kafka, one node in KRaft mode, with a plain listener and one with TLS and passwords.
    Kafka,
    /// Mosquitto with a plain, a password, a TLS and a mutual TLS listener.
    Mosquitto,
    /// PostgreSQL without a password.
    Postgres,
    /// The Versity gateway over a folder.
    S3,
    /// toxiproxy's control port; proxies are made through its HTTP API.
    Toxiproxy,
}

impl Kind {
    /// All kinds, in the order in which they are started.
    pub(crate) const ALL: [Kind; 5] =
        [Kind::Kafka, Kind::Mosquitto, Kind::Postgres, Kind::S3, Kind::Toxiproxy];

    /// The name on the command line and of the data folder.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Kafka => "kafka",
            Kind::Mosquitto => "mosquitto",
            Kind::Postgres => "postgres",
            Kind::S3 => "s3",
            Kind::Toxiproxy => "toxiproxy",
        }
    }

    /// The kinds that a command line names; all of them if it names none.
    pub(crate) fn named(words: &[String]) -> Result<Vec<Kind>> {
        if words.is_empty() {
            return Ok(Kind::ALL.to_vec());
        }
        words.iter().map(|word| word.parse()).collect()
    }
}

impl FromStr for Kind {
    type Err = anyhow::Error;

    fn from_str(word: &str) -> Result<Kind> {
        let known = Kind::ALL.into_iter().find(|kind| kind.name() == word);
        known
            .with_context(|| format!("no server `{word}`: {}", Kind::ALL.map(Kind::name).join(" ")))
    }
}

/// How long a server lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    /// No longer than this process.
    Ours,
    /// Until `services down`.
    Detached,
}

/// A server that answers.
struct Server {
    kind: Kind,
    child: Child,
    /// What asks it to stop in order.
    stop_signal: libc::c_int,
    env: Vec<(String, String)>,
    /// Launches it on the same ports and data, and waits until it answers.
    launch: Launch,
}

/// What starts a server, the first time and again.
type Launch = Box<dyn Fn() -> Result<Child>>;

impl Server {
    /// Launches a server and waits until it answers.
    fn start(
        kind: Kind,
        stop_signal: libc::c_int,
        env: Vec<(String, String)>,
        launch: Launch,
    ) -> Result<Server> {
        Ok(Server { kind, child: launch()?, stop_signal, env, launch })
    }
}

/// Servers that this process started; dropping them stops them and removes their data.
pub(crate) struct Services {
    folder: PathBuf,
    servers: Vec<Server>,
}

impl Services {
    /// Starts servers and waits until each answers. What is not installed is installed first.
    pub(crate) fn start(kinds: &[Kind]) -> Result<Services> {
        install(kinds)?;
        Services::start_in(run_folder()?, kinds, Life::Ours)
    }

    fn start_in(folder: PathBuf, kinds: &[Kind], life: Life) -> Result<Services> {
        let mut services = Services { folder, servers: Vec::new() };
        for &kind in kinds {
            let data = services.folder.join(kind.name());
            fs::create_dir_all(&data)?;
            let began = Instant::now();
            let server = match kind {
                Kind::Kafka => kafka::start(&data, life),
                Kind::Mosquitto => mosquitto::start(&data, life),
                Kind::Postgres => postgres::start(&data, life),
                Kind::S3 => s3::start(&data, life),
                Kind::Toxiproxy => toxiproxy::start(&data, life),
            };
            services
                .servers
                .push(server.with_context(|| format!("{} did not start", kind.name()))?);
            println!("{} ready after {:.1} s", kind.name(), began.elapsed().as_secs_f64());
        }
        Ok(services)
    }

    /// The variables that tell a test where the servers are.
    pub(crate) fn env(&self) -> Vec<(String, String)> {
        let python = pair("WEIR_PYTHON", places::python().display());
        self.servers.iter().flat_map(|server| server.env.clone()).chain([python]).collect()
    }

    /// One variable of [`Services::env`].
    pub(crate) fn var(&self, name: &str) -> Result<String> {
        let found = self.env().into_iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value).with_context(|| format!("no server that sets {name} runs"))
    }

    /// Stops a server as its machine would by failing: nothing is brought to an end in order.
    /// PostgreSQL gets what `pg_ctl stop -m immediate` sends, others are killed.
    pub(crate) fn crash(&mut self, kind: Kind) -> Result<()> {
        let server = self.server(kind)?;
        let signal = if kind == Kind::Postgres { libc::SIGQUIT } else { libc::SIGKILL };
        process::signal(server.child.id(), signal);
        process::wait(&mut server.child, Some(STOP_MAX)).map(|_| ())
    }

    /// Stops a server in order.
    pub(crate) fn stop(&mut self, kind: Kind) -> Result<()> {
        let server = self.server(kind)?;
        process::signal(server.child.id(), server.stop_signal);
        process::wait(&mut server.child, Some(STOP_MAX)).map(|_| ())
    }

    /// Starts a server that has been stopped or has crashed, on the same ports and data.
    pub(crate) fn revive(&mut self, kind: Kind) -> Result<()> {
        let server = self.server(kind)?;
        server.child = (server.launch)().with_context(|| format!("{} again", kind.name()))?;
        Ok(())
    }

    /// Whether a server runs.
    pub(crate) fn runs(&mut self, kind: Kind) -> Result<bool> {
        Ok(matches!(self.server(kind)?.child.try_wait(), Ok(None)))
    }

    fn server(&mut self, kind: Kind) -> Result<&mut Server> {
        let found = self.servers.iter_mut().find(|server| server.kind == kind);
        found.with_context(|| format!("{} was not started", kind.name()))
    }

    /// The log of a server, for who must wait until the server has seen something.
    pub(crate) fn log(&self, kind: Kind) -> PathBuf {
        self.folder.join(kind.name()).join("log")
    }
}

impl Drop for Services {
    fn drop(&mut self) {
        for server in self.servers.iter().rev() {
            process::signal(server.child.id(), server.stop_signal);
        }
        let asked = Instant::now();
        for server in self.servers.iter_mut().rev() {
            while asked.elapsed() < STOP_MAX && matches!(server.child.try_wait(), Ok(None)) {
                thread::sleep(POLL);
            }
            if matches!(server.child.try_wait(), Ok(None)) {
                process::signal_group(server.child.id(), libc::SIGKILL);
                let _gone = server.child.wait();
            }
        }
        let _left_behind = fs::remove_dir_all(&self.folder);
    }
}

/// A new folder for data. Not below the repository: it may lie where user `postgres` cannot go.
fn run_folder() -> Result<PathBuf> {
    let folder = tempfile::Builder::new().prefix("weir-services-").tempdir()?.keep();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o755))?;
    Ok(folder)
}

/// Different free ports of the loopback interface.
///
/// All are held until the last is found. Another process may still take one before the server does;
/// then the server says so in its log, and does not start.
fn free_ports<const N: usize>() -> Result<[u16; N]> {
    let mut held = Vec::new();
    for _ in 0..N {
        held.push(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?);
    }
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&held) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

/// Whether something accepts connections on a port of the loopback interface.
fn accepts(port: u16) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok()
}

/// A command whose process ends with ours, if that is its life.
fn command_for(program: impl AsRef<Path>, life: Life, death_signal: &str) -> Command {
    let program = program.as_ref();
    match life {
        Life::Detached => Command::new(program),
        Life::Ours => {
            let mut command = Command::new("setpriv");
            command.arg("--pdeathsig").arg(death_signal).arg("--").arg(program);
            command
        }
    }
}

/// Starts a server with its output in `data/log`, and waits until `ready`.
fn launch(mut command: Command, data: &Path, ready: impl Fn() -> bool) -> Result<Child> {
    let path = data.join("log");
    let log = fs::File::create(&path)?;
    command.stdout(log.try_clone()?).stderr(log);
    let mut child = process::spawn(&mut command)?;
    let began = Instant::now();
    loop {
        let problem = if let Some(status) = child.try_wait()? {
            process::ended(status)
        } else if ready() {
            return Ok(child);
        } else if process::interrupted() {
            "interrupted".to_owned()
        } else if began.elapsed() > READY_MAX {
            format!("not ready after {} s", READY_MAX.as_secs())
        } else {
            thread::sleep(POLL);
            continue;
        };
        process::end(&mut child);
        bail!("{problem}\n{}", tail(&path));
    }
}

/// The end of a log.
fn tail(path: &Path) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}

fn pair(name: &str, value: impl ToString) -> (String, String) {
    (name.to_owned(), value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_dies_says_why() -> Result<()> {
        let data = tempfile::tempdir()?;
        let mut command = Command::new("sh");
        command.args(["-c", "echo no such port >&2; exit 4"]);
        let failed = launch(command, data.path(), || false).err();
        let text = failed.map(|error| error.to_string()).unwrap_or_default();
        assert!(text.contains("exit code 4") && text.contains("no such port"), "{text}");
        Ok(())
    }

    #[test]
    fn free_ports_differ() -> Result<()> {
        let [a, b, c] = free_ports()?;
        assert!(a != b && b != c && a != c);
        Ok(())
    }

    #[test]
    fn unknown_servers_are_refused_by_name() {
        assert!(Kind::named(&["kafka".to_owned(), "minio".to_owned()]).is_err());
        assert_eq!(Kind::named(&[]).ok(), Some(Kind::ALL.to_vec()));
    }
}
