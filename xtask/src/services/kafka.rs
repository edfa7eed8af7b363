//! Apache Kafka: one node that is broker and controller, from the jars of Maven Central.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

use super::{Kind, Life, Server, accepts, command_for, free_ports, install, launch, pair};
use crate::process;

/// Any 16 bytes do: a cluster of one has nobody to confuse it with.
const CLUSTER_ID: &str = "MkU3OEVBNTcwNTJENDM2Qk";

const LOGGING: &str = r#"<Configuration status="WARN">
  <Appenders><Console name="out"><PatternLayout pattern="%d %p %m (%c)%n"/></Console></Appenders>
  <Loggers><Root level="INFO"><AppenderRef ref="out"/></Root></Loggers>
</Configuration>
"#;

pub(super) fn start(data: &Path, life: Life) -> Result<Server> {
    let [port, controller] = free_ports()?;
    let properties = data.join("server.properties");
    fs::write(&properties, settings(data, port, controller))?;
    fs::write(data.join("log4j2.xml"), LOGGING)?;
    let class_path = install::kafka_jars().join("*");
    let java = |command: &mut Command| {
        command
            .arg("-Xmx512m")
            .arg("-cp")
            .arg(&class_path)
            .arg(format!("-Dlog4j2.configurationFile={}", data.join("log4j2.xml").display()));
    };

    let mut format = Command::new("java");
    java(&mut format);
    format.args(["kafka.tools.StorageTool", "format", "-t", CLUSTER_ID, "-c"]).arg(&properties);
    process::quietly(&mut format)?;

    let mut broker = command_for("java", life, "TERM");
    java(&mut broker);
    broker.arg("kafka.Kafka").arg(&properties);
    let log = data.join("log");
    let child = launch(broker, data, || {
        let text = fs::read_to_string(&log).unwrap_or_default();
        text.contains("Kafka Server started") && accepts(port)
    })?;
    let env = vec![pair("WEIR_TEST_KAFKA", format!("127.0.0.1:{port}"))];
    Ok(Server { kind: Kind::Kafka, child, stop_signal: libc::SIGTERM, env })
}

/// `server.properties`: few partitions for the inner topics, and no wait before a first rebalance.
fn settings(data: &Path, port: u16, controller: u16) -> String {
    let log_dirs = data.join("data");
    format!(
        "process.roles=broker,controller\n\
         node.id=1\n\
         controller.quorum.voters=1@127.0.0.1:{controller}\n\
         listeners=PLAINTEXT://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{port}\n\
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
