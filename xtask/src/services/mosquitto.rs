//! Mosquitto: one broker, four listeners that share its topics.
//!
//! # Settings that matter
//! - `max_queued_messages 0`: the default of 1000 drops QoS 1 and 2 beyond it in silence.
//! - `max_inflight_messages`: the default of 20 caps a subscriber whose acknowledgement waits for a
//!   disk.
//! - Persistence by the clock, not on every change: that would rewrite the whole store, queue and
//!   all, at each message. A broker that is killed may so forget its last second; tests kill Weir.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::{Kind, Life, Server, accepts, certificates, command_for, free_ports, launch, pair};
use crate::process;

const USER: &str = "weir";
const PASSWORD: &str = "weir-secret";

pub(super) fn start(data: &Path, life: Life) -> Result<Server> {
    let ports: [u16; 4] = free_ports()?;
    certificates::make(&data.join("tls"))?;
    let passwords = data.join("passwords");
    let mut hash = Command::new("mosquitto_passwd");
    hash.args(["-c", "-b"]).arg(&passwords).args([USER, PASSWORD]);
    process::quietly(&mut hash)?;
    let config = data.join("mosquitto.conf");
    fs::write(&config, settings(data, ports))?;

    let program = process::find_program("mosquitto").context("mosquitto is not installed")?;
    let folder = data.to_owned();
    let launch = move || {
        let mut broker = command_for(&program, life, "TERM");
        broker.arg("-c").arg(&config);
        launch(broker, &folder, || ports.into_iter().all(accepts))
    };

    let [plain, password, tls, mutual] = ports.map(|port| format!("127.0.0.1:{port}"));
    let tls_file = |name: &str| data.join("tls").join(name).display().to_string();
    let env = vec![
        pair("WEIR_TEST_MQTT", plain),
        pair("WEIR_TEST_MQTT_PASSWORD", password),
        pair("WEIR_TEST_MQTT_PASSWORD_USER", USER),
        pair("WEIR_TEST_MQTT_PASSWORD_SECRET", PASSWORD),
        pair("WEIR_TEST_MQTT_TLS", tls),
        pair("WEIR_TEST_MQTT_TLS_CA", tls_file("ca.crt")),
        pair("WEIR_TEST_MQTT_MTLS", mutual),
        pair("WEIR_TEST_MQTT_MTLS_CERT", tls_file("client.crt")),
        pair("WEIR_TEST_MQTT_MTLS_KEY", tls_file("client.key")),
        pair("WEIR_TEST_MQTT_LOG", data.join("log").display()),
    ];
    Server::start(Kind::Mosquitto, libc::SIGTERM, env, Box::new(launch))
}

fn settings(data: &Path, [plain, password, tls, mutual]: [u16; 4]) -> String {
    let root = process::quietly(Command::new("id").arg("-un")).unwrap_or_default();
    let data = data.display();
    let server = format!(
        "cafile {data}/tls/ca.crt\ncertfile {data}/tls/server.crt\nkeyfile {data}/tls/server.key\n"
    );
    format!(
        "per_listener_settings true\n\
         user {}\n\
         log_dest stderr\n\
         log_type error\nlog_type warning\nlog_type notice\nlog_type information\n\
         log_type subscribe\n\
         max_queued_messages 0\n\
         max_inflight_messages 5000\n\
         persistence true\n\
         persistence_location {data}/\n\
         autosave_interval 1\n\
         autosave_on_changes false\n\n\
         listener {plain} 127.0.0.1\nallow_anonymous true\n\n\
         listener {password} 127.0.0.1\nallow_anonymous false\npassword_file {data}/passwords\n\n\
         listener {tls} 127.0.0.1\nallow_anonymous true\n{server}\n\
         listener {mutual} 127.0.0.1\n{server}\
         require_certificate true\nuse_identity_as_username true\n",
        root.trim()
    )
}
