//! Installs what the servers and the checks need, and only what is missing.
//!
//! Debian packages go into the system; jars, Go programs and the Python environment go into the
//! folder [`places::installed`], each under its version, so that a second call finds all there and
//! returns at once. A part that was interrupted is not taken for whole: it is made beside its place
//! and moved there when done.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Kind, postgres};
use crate::{places, process};

const KAFKA: &str = "4.3.0";
const KAFKA_LOGGING: &str = "2.24.3";
const VERSITYGW: &str = "v1.8.0";
const TOXIPROXY: &str = "v2.5.0";
const PYTHON_PACKAGES: [&str; 5] = [
    "duckdb==2.0.0",
    "numpy==2.4.6",
    "pyarrow==26.0.1",
    "confluent-kafka==2.16.1",
    "paho-mqtt==2.2.0",
];

/// A program, and the Debian package that brings it.
type Needed = (&'static str, &'static str);

const FOR_THE_BUILD: [Needed; 4] =
    [("cc", "build-essential"), ("cmake", "cmake"), ("pkg-config", "pkg-config"), ("git", "git")];
const FOR_KAFKA: [Needed; 2] = [("java", "openjdk-17-jre-headless"), ("mvn", "maven")];
const FOR_MQTT: [Needed; 4] = [
    ("mosquitto", "mosquitto"),
    ("mosquitto_passwd", "mosquitto"),
    ("mosquitto_pub", "mosquitto-clients"),
    ("openssl", "openssl"),
];

/// The jars of Kafka.
pub(super) fn kafka_jars() -> PathBuf {
    places::installed().join(format!("kafka-{KAFKA}"))
}

/// The S3 gateway.
pub(super) fn versitygw() -> PathBuf {
    places::installed().join(format!("versitygw-{VERSITYGW}/versitygw"))
}

/// The proxy's server.
pub(super) fn toxiproxy() -> PathBuf {
    places::installed().join(format!("toxiproxy-{TOXIPROXY}/server"))
}

/// Installs what these servers need, and the Python environment of the checks.
pub(crate) fn install(kinds: &[Kind]) -> Result<()> {
    fs::create_dir_all(places::installed())?;
    packages(kinds)?;
    python()?;
    for kind in kinds {
        match kind {
            Kind::Kafka => kafka()?,
            Kind::S3 => go(&versitygw(), "github.com/versity/versitygw/cmd/versitygw", VERSITYGW)?,
            Kind::Toxiproxy => {
                go(&toxiproxy(), "github.com/Shopify/toxiproxy/v2/cmd/server", TOXIPROXY)?;
            }
            Kind::Mosquitto | Kind::Postgres => {}
        }
    }
    Ok(())
}

/// Installs what building and running the checks needs besides Rust.
pub(crate) fn prerequisites() -> Result<()> {
    apt(&missing(&[]))
}

fn packages(kinds: &[Kind]) -> Result<()> {
    apt(&missing(kinds))?;
    let wants_go = kinds.iter().any(|kind| matches!(kind, Kind::S3 | Kind::Toxiproxy));
    if wants_go && process::find_program("go").is_none() {
        bail!("Go is missing: install 1.24 or newer from https://go.dev/dl (Debian's is too old)");
    }
    Ok(())
}

/// The Debian packages that bring what is not there.
fn missing(kinds: &[Kind]) -> Vec<&'static str> {
    let mut needed = FOR_THE_BUILD.to_vec();
    needed.extend([("setpriv", "util-linux"), ("curl", "curl"), ("python3", "python3")]);
    for kind in kinds {
        match kind {
            Kind::Kafka => needed.extend(FOR_KAFKA),
            Kind::Mosquitto => needed.extend(FOR_MQTT),
            Kind::Postgres | Kind::S3 | Kind::Toxiproxy => {}
        }
    }
    let absent = |&(program, _): &Needed| process::find_program(program).is_none();
    let mut packages: Vec<_> = needed.into_iter().filter(absent).map(|(_, deb)| deb).collect();
    if !Path::new("/usr/include/openssl/ssl.h").exists() {
        packages.push("libssl-dev");
    }
    if !Path::new("/usr/include/zlib.h").exists() {
        packages.push("zlib1g-dev");
    }
    // librdkafka's build looks for curl's headers, whether or not it is used.
    let curl = ["/usr/include/curl/curl.h", "/usr/include/x86_64-linux-gnu/curl/curl.h"];
    if !curl.iter().any(|header| Path::new(header).exists()) {
        packages.push("libcurl4-openssl-dev");
    }
    let venv = process::capture(Command::new("python3").args(["-c", "import ensurepip"]));
    if !venv.is_ok_and(|venv| venv.status.success()) {
        packages.push("python3-venv");
    }
    if kinds.contains(&Kind::Postgres) && postgres::programs().is_none() {
        packages.extend(["postgresql-15", "postgresql-client-15"]);
    }
    packages.sort_unstable();
    packages.dedup();
    packages
}

fn apt(packages: &[&str]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    println!("installing {}", packages.join(" "));
    // SAFETY: geteuid has no preconditions.
    let root = unsafe { libc::geteuid() } == 0;
    let may = |program: &str| process::quietly(Command::new(program).args(["-n", "true"])).is_ok();
    if process::find_program("apt-get").is_none() || !(root || may("sudo")) {
        bail!("please type: sudo apt-get install -y {}", packages.join(" "));
    }
    let apt_get = |words: &[&str]| {
        let mut command = Command::new(if root { "env" } else { "sudo" });
        if !root {
            command.arg("env");
        }
        // Run level 1 keeps packages from starting the daemons that they bring.
        command.args(["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get"]);
        process::quietly(command.args(words))
    };
    let install = [&["install", "-y", "--no-install-recommends"], packages].concat();
    if apt_get(&install).is_ok() {
        return Ok(());
    }
    apt_get(&["update"])?;
    apt_get(&install).map(|_| ())
}

/// Builds a part in a folder beside its place and moves it there once it is whole.
fn make(place: &Path, what: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    if place.exists() {
        return Ok(());
    }
    println!("installing {what}");
    let draft = tempfile::Builder::new().prefix(".draft-").tempdir_in(places::installed())?;
    build(draft.path()).with_context(|| format!("{what} was not installed"))?;
    match fs::rename(draft.path(), place) {
        // Another run was faster.
        Err(_) if place.exists() => Ok(()),
        done => Ok(done?),
    }
}

fn kafka() -> Result<()> {
    make(&kafka_jars(), &format!("Kafka {KAFKA}"), |draft| {
        fs::write(draft.join("pom.xml"), pom())?;
        let mut maven = Command::new("mvn");
        maven.args(["-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=."]);
        process::quietly(maven.current_dir(draft)).map(|_| ())
    })
}

fn pom() -> String {
    let dependency = |group: &str, artifact: &str, version: &str| {
        format!(
            "<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>\
             <version>{version}</version></dependency>"
        )
    };
    format!(
        "<project><modelVersion>4.0.0</modelVersion><groupId>weir</groupId>\
         <artifactId>kafka</artifactId><version>1</version><dependencies>{}{}</dependencies>\
         </project>\n",
        dependency("org.apache.kafka", "kafka_2.13", KAFKA),
        dependency("org.apache.logging.log4j", "log4j-slf4j-impl", KAFKA_LOGGING)
    )
}

fn go(program: &Path, package: &str, version: &str) -> Result<()> {
    let place = program.parent().context("a program in a folder")?;
    make(place, &format!("{package} {version}"), |draft| {
        let program = process::find_program("go").context("Go is missing")?;
        let mut build = Command::new(program);
        build.args(["install", &format!("{package}@{version}")]).env("GOBIN", draft);
        process::quietly(&mut build).map(|_| ())
    })
}

/// The environment of the checks. Its programs name its path, so it is not moved: a stamp ends it.
fn python() -> Result<()> {
    let place = places::installed().join("venv");
    let (stamp, wanted) = (place.join("weir.packages"), PYTHON_PACKAGES.join(" "));
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    println!("installing Python packages: {wanted}");
    process::quietly(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place))?;
    let mut pip = Command::new(places::python());
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
    process::quietly(pip.args(PYTHON_PACKAGES))?;
    Ok(fs::write(stamp, wanted)?)
}
