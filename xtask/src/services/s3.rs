//! The Versity gateway: S3 over a folder, where objects are plain files that DuckDB can read.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Kind, Life, Server, accepts, command_for, free_ports, install, launch, pair};
use crate::process;

const KEY: &str = "weir-test-key";
const SECRET: &str = "weir-test-secret";
const BUCKET: &str = "weir-test";
const REGION: &str = "us-east-1";
/// curl signs this header only if it is given.
const NO_BODY: &str =
    "x-amz-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

pub(super) fn start(data: &Path, life: Life) -> Result<Server> {
    let [port] = free_ports()?;
    let objects = data.join("objects");
    fs::create_dir_all(&objects)?;
    let endpoint = format!("http://127.0.0.1:{port}");
    let env = vec![
        pair("WEIR_TEST_S3", &endpoint),
        pair("WEIR_TEST_S3_KEY", KEY),
        pair("WEIR_TEST_S3_SECRET", SECRET),
        pair("WEIR_TEST_S3_REGION", REGION),
        pair("WEIR_TEST_S3_BUCKET", BUCKET),
        pair("WEIR_TEST_S3_FOLDER", objects.join(BUCKET).display()),
    ];
    let data = data.to_owned();
    let launch = move || {
        let mut gateway = command_for(install::versitygw(), life, "TERM");
        gateway.env("ROOT_ACCESS_KEY", KEY).env("ROOT_SECRET_KEY", SECRET);
        gateway.arg("--port").arg(format!("127.0.0.1:{port}")).args(["--quiet", "posix"]);
        gateway.arg(&objects);
        launch(gateway, &data, || accepts(port))
    };
    let server = Server::start(Kind::S3, libc::SIGTERM, env, Box::new(launch))?;
    let mut make = Command::new("curl");
    make.args(["-sS", "--fail-with-body", "-X", "PUT", "-H", NO_BODY]);
    make.args(["--aws-sigv4", &format!("aws:amz:{REGION}:s3")]);
    make.args(["--user", &format!("{KEY}:{SECRET}"), &format!("{endpoint}/{BUCKET}")]);
    match process::quietly(&mut make) {
        Ok(_) => Ok(server),
        Err(error) => {
            let mut child = server.child;
            process::end(&mut child);
            Err(error)
        }
    }
}
