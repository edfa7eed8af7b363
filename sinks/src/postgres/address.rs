//! Where the database is and who asks, from the URL and the options that go before it.

use std::path::PathBuf;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode as WireMode};
use weir_connect::options::{OptionValue, bad_value};
use weir_connect::tls::{TlsOptions, Verify};
use weir_engine::connector::{OptionError, TableSpec};

use super::{PostgresOptions, SslMode};

/// How the database is reached.
pub(crate) struct Address {
    pub(crate) config: Config,
    /// `None`: no encryption.
    pub(crate) tls: Option<TlsOptions>,
    /// The URL without any secret.
    pub(crate) shown: String,
}

impl Address {
    pub(crate) fn of(table: &TableSpec, options: &PostgresOptions) -> Result<Address, OptionError> {
        // Flink's scripts say `jdbc:postgresql://…`.
        let given = options.url.trim();
        let given = given.strip_prefix("jdbc:").unwrap_or(given);
        if !given.starts_with("postgresql://") && !given.starts_with("postgres://") {
            let error = bad_value(table, "url", "must start with postgresql://");
            let hint = "write for example 'url' = 'postgresql://db:5432/telemetry'".to_owned();
            return Err(OptionError { hint: Some(hint), ..error });
        }
        let (text, mode_in_url) = without_ssl_mode(table, given)?;
        let mut config: Config = text.parse().map_err(|error: tokio_postgres::Error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let why = cause.unwrap_or_else(|| "it cannot be read".to_owned());
            bad_value(table, "url", &format!("is no PostgreSQL URL: {why}"))
        })?;
        if let Some(user) = &options.username {
            config.user(user);
        }
        if let Some(password) = &options.password {
            config.password(password.expose());
        }
        if config.get_hosts().is_empty() {
            return Err(bad_value(table, "url", "names no host"));
        }
        let mode = options.ssl_mode.or(mode_in_url).unwrap_or(SslMode::Prefer);
        let tls = tls_options(&mut config, mode, options);
        config.application_name("weir");
        config.connect_timeout(options.connect_timeout);
        config.tcp_user_timeout(options.statement_timeout);
        config.keepalives(true);
        config.keepalives_idle(std::time::Duration::from_secs(10));
        config.keepalives_interval(std::time::Duration::from_secs(5));
        config.keepalives_retries(3);
        let shown = shown(&config);
        Ok(Address { config, tls, shown })
    }
}

/// Takes `sslmode` out of the query, because the client does not know all of its values.
fn without_ssl_mode(
    table: &TableSpec,
    url: &str,
) -> Result<(String, Option<SslMode>), OptionError> {
    let Some((before, query)) = url.split_once('?') else { return Ok((url.to_owned(), None)) };
    let mut mode = None;
    let mut rest = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.strip_prefix("sslmode=") {
            None => rest.push(pair),
            Some(value) => {
                let parsed = SslMode::parse(value).map_err(|bad| {
                    bad_value(table, "url", &format!("has an sslmode that is not {}", bad.expected))
                })?;
                mode = Some(parsed);
            }
        }
    }
    let query = if rest.is_empty() { String::new() } else { format!("?{}", rest.join("&")) };
    Ok((format!("{before}{query}"), mode))
}

fn tls_options(
    config: &mut Config,
    mode: SslMode,
    options: &PostgresOptions,
) -> Option<TlsOptions> {
    let (wire, verify) = match mode {
        SslMode::Disable => (WireMode::Disable, None),
        SslMode::Prefer => (WireMode::Prefer, Some(Verify::Nothing)),
        SslMode::Require => (WireMode::Require, Some(Verify::Nothing)),
        SslMode::VerifyCa => (WireMode::Require, Some(Verify::Chain)),
        SslMode::VerifyFull => (WireMode::Require, Some(Verify::Full)),
    };
    config.ssl_mode(wire);
    let path = |file: &Option<String>| file.as_ref().map(PathBuf::from);
    Some(TlsOptions {
        verify: verify?,
        ca_file: path(&options.ca_file),
        cert_file: path(&options.cert_file),
        key_file: path(&options.key_file),
    })
}

/// `postgresql://user@host:port/database`, from parts that hold no secret.
fn shown(config: &Config) -> String {
    let ports = config.get_ports();
    let port = |i: usize| ports.get(i).or(ports.first()).copied().unwrap_or(5432);
    let hosts = config.get_hosts().iter().enumerate().map(|(i, host)| match host {
        Host::Tcp(name) => format!("{name}:{}", port(i)),
        Host::Unix(path) => format!("{}:{}", path.display(), port(i)),
    });
    let hosts: Vec<String> = hosts.collect();
    let user = config.get_user().map(|user| format!("{user}@")).unwrap_or_default();
    let database = config.get_dbname().map(|name| format!("/{name}")).unwrap_or_default();
    format!("postgresql://{user}{}{database}", hosts.join(","))
}
