//! A certificate authority for one test run, and a server and a client that it vouches for.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::process;

const DAYS: &str = "30";

/// Writes `ca.crt`, `server.{crt,key}` (for 127.0.0.1 and localhost) and `client.{crt,key}`.
pub(super) fn make(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut authority = openssl(folder, "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256");
    authority.args(["-nodes", "-days", DAYS, "-subj", "/CN=weir test authority"]);
    authority.args(["-addext", "basicConstraints=critical,CA:TRUE"]);
    authority.args(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
    process::quietly(authority.args(["-keyout", "ca.key", "-out", "ca.crt"]))?;

    let names = "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n";
    issue(folder, "server", "localhost", names)?;
    issue(folder, "client", "weir", "extendedKeyUsage=clientAuth\n")
}

fn issue(folder: &Path, name: &str, subject: &str, extensions: &str) -> Result<()> {
    fs::write(folder.join(format!("{name}.ext")), extensions)?;
    let mut request =
        openssl(folder, "req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes");
    request.args(["-subj", &format!("/CN={subject}")]);
    request.args(["-keyout", &format!("{name}.key"), "-out", &format!("{name}.csr")]);
    process::quietly(&mut request)?;
    let mut sign = openssl(folder, "x509 -req -CA ca.crt -CAkey ca.key -CAcreateserial");
    sign.args(["-days", DAYS, "-in", &format!("{name}.csr"), "-out", &format!("{name}.crt")]);
    process::quietly(sign.args(["-extfile", &format!("{name}.ext")]))?;
    Ok(())
}

fn openssl(folder: &Path, words: &str) -> Command {
    let mut command = Command::new("openssl");
    command.args(words.split(' ')).current_dir(folder);
    command
}
