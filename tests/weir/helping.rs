//! What several of these tests need.

use std::net::{SocketAddr, TcpListener};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The binary.
pub(crate) const WEIR: &str = env!("CARGO_BIN_EXE_weir");
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) fn env(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: `cargo xtask services up`"))
}

/// A name that no other test and no earlier run has used.
pub(crate) fn name(what: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
    format!("weir-{what}-{now}")
}

/// Looks again and again until it is so.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub(crate) fn signal(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// The children of a process, once there are `count`.
pub(crate) fn children(pid: u32, count: usize) -> Vec<u32> {
    let mut found = Vec::new();
    until("the processes", || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        found = text.unwrap().split_whitespace().map(|pid| pid.parse().unwrap()).collect();
        found.len() == count
    });
    found
}

/// A query's cells, asked of the database directly.
pub(crate) fn cell(query: &str) -> String {
    let url = env("WEIR_TEST_POSTGRES");
    let words = [url.as_str(), "-X", "-q", "-A", "-t", "-c", query];
    let answer = Command::new("psql").args(words).output().expect("psql is installed");
    assert!(answer.status.success(), "{answer:?}");
    String::from_utf8(answer.stdout).unwrap().trim().to_owned()
}

/// The rows of a table; none where it is not there yet.
pub(crate) fn rows_of(table: &str) -> u64 {
    if cell(&format!("SELECT to_regclass('{table}') IS NULL")) == "t" {
        return 0;
    }
    cell(&format!("SELECT count(*) FROM {table}")).parse().unwrap()
}

/// A way to the database that can be cut.
pub(crate) struct Proxy {
    name: String,
    upstream: String,
    pub(crate) listen: SocketAddr,
}

impl Proxy {
    pub(crate) fn to_postgres(name: &str) -> Proxy {
        let url = env("WEIR_TEST_POSTGRES");
        let upstream = url.split(['@', '/']).nth(3).unwrap().to_owned();
        let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let proxy = Proxy { name: name.to_owned(), upstream, listen };
        toxiproxy("POST", "/proxies", &proxy.state(true));
        proxy
    }

    pub(crate) fn enable(&self, enabled: bool) {
        toxiproxy("POST", &format!("/proxies/{}", self.name), &self.state(enabled));
    }

    fn state(&self, enabled: bool) -> String {
        let Proxy { name, upstream, listen } = self;
        format!(
            "{{\"name\":\"{name}\",\"listen\":\"{listen}\",\"upstream\":\"{upstream}\",\
             \"enabled\":{enabled}}}"
        )
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        toxiproxy("DELETE", &format!("/proxies/{}", self.name), "");
    }
}

fn toxiproxy(method: &str, path: &str, body: &str) {
    let url = format!("http://{}{path}", env("WEIR_TEST_TOXIPROXY"));
    let words = ["-sS", "--fail-with-body", "-X", method, "-d", body, &url];
    let answer = Command::new("curl").args(words).output().expect("curl is installed");
    // A test that has failed says why, not that it cannot clear up.
    assert!(answer.status.success() || std::thread::panicking(), "{answer:?}");
}
