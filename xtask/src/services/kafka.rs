//! Apache Kafka: one node that is broker and controller, from the jars of Maven Central.
//!
//! Beside the plain listener there is one that wants TLS and a password (SASL_SSL; PLAIN and
//! SCRAM-SHA-512 know the same user).

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{
    Kind, Life, Server, accepts, certificates, command_for, free_ports, install, launch, pair,
};
use crate::process;

/// Any 16 bytes do: a cluster of one has nobody to confuse it with.
const CLUSTER_ID: &str = "MkU3OEVBNTcwNTJENDM2Qk";

const USER: &str = "weir";
const PASSWORD: &str = "weir-secret";

const LOGGING: &str = r#"<Configuration status="WARN">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %m (%c)%n"/></Console></Appenders>
  <Loggers><Root level="INFO"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"#;

pub(super) fn start(data: &Path, life: Life) -> Result<Server> {
    let [port, controller, secure] = free_ports()?;
    let tls = data.join("tls");
    certificates::make(&tls)?;
    let key = fs::read_to_string(tls.join("server.key"))?;
    fs::write(tls.join("server.pem"), key + &fs::read_to_string(tls.join("server.crt"))?)?;
    let properties = data.join("server.properties");
    let plain = settings(data, port, controller, secure);
    fs::write(&properties, plain + &secure_settings(&tls))?;
    fs::write(data.join("log4j2.xml"), LOGGING)?;
    let class_path = install::kafka_jars().join("*");
    let logging = format!("-Dlog4j2.configurationFile={}", data.join("log4j2.xml").display());
    let java = move |command: &mut Command| {
        command.arg("-Xmx512m").arg("-cp").arg(&class_path).arg(&logging);
    };

    let mut format = Command::new("java");
    java(&mut format);
    format.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"]).arg(&properties);
    format.arg("--add-scram").arg(format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]"));
    process::quietly(&mut format)?;

    let data = data.to_owned();
    let launch = move || {
        let mut broker = command_for("java", life, "TERM");
        java(&mut broker);
        broker.arg("kafka.Kafka").arg(&properties);
        let log = data.join("log");
        launch(broker, &data, || {
            let text = fs::read_to_string(&log).unwrap_or_default();
            text.contains("Kafka Server started") && accepts(port) && accepts(secure)
        })
    };
    let env = vec![
        pair("WEIR_TEST_KAFKA", format!("127.0.0.1:{port}")),
        pair("WEIR_TEST_KAFKA_SASL", format!("127.0.0.1:{secure}")),
        pair("WEIR_TEST_KAFKA_SASL_USER", USER),
        pair("WEIR_TEST_KAFKA_SASL_SECRET", PASSWORD),
        pair("WEIR_TEST_KAFKA_SASL_CA", tls.join("ca.crt").display()),
    ];
    Server::start(Kind::Kafka, libc::SIGTERM, env, Box::new(launch))
}

/// `server.properties`: few partitions for the inner topics, and no wait before a first rebalance.
fn settings(data: &Path, port: u16, controller: u16, secure: u16) -> String {
    let log_dirs = data.join("data");
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller},\
         SASL_SSL://127.0.0.1:{secure}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL_SSL://127.0.0.1:{secure}\n\
         inter.broker.listener.name=PLAINTEXT\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,\
         SASL_SSL:SASL_SSL\n\
         controller.listener.names=CONTROLLER\n\
         log.dirs={}\n\
         offsets.topic.replication.factor=1\n\
         offsets.topic.num.partitions=4\n\
         transaction.state.log.replication.factor=1\n\
         transaction.state.log.min.isr=1\n\
         transaction.state.log.num.partitions=4\n\
         group.initial.rebalance.delay.ms=0\n",
        log_dirs.display()
    )
}

/// Who may use the listener with a password, and what it shows of itself.
fn secure_settings(tls: &Path) -> String {
    let module = |name: &str| format!("org.apache.kafka.common.security.{name} required");
    let plain = module("plain.PlainLoginModule");
    let scram = module("scram.ScramLoginModule");
    format!(
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-512\n\
         listener.name.sasl_ssl.plain.sasl.jaas.config={plain} user_{USER}=\"{PASSWORD}\";\n\
         listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config={scram};\n\
         ssl.keystore.type=PEM\n\
         ssl.keystore.location={}\n",
        tls.join("server.pem").display()
    )
}
