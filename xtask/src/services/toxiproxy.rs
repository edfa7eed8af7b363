//! toxiproxy: links that are slow, cut or reset on demand. Tests make proxies by its HTTP API.

use std::path::Path;

use anyhow::Result;

use super::{Kind, Life, Server, accepts, command_for, free_ports, install, launch, pair};

pub(super) fn start(data: &Path, life: Life) -> Result<Server> {
    let [port] = free_ports()?;
    let data = data.to_owned();
    let launch = move || {
        let mut server = command_for(install::toxiproxy(), life, "TERM");
        server.args(["-host", "127.0.0.1", "-port", &port.to_string()]);
        launch(server, &data, || accepts(port))
    };
    let env = vec![pair("WEIR_TEST_TOXIPROXY", format!("127.0.0.1:{port}"))];
    Server::start(Kind::Toxiproxy, libc::SIGTERM, env, Box::new(launch))
}
