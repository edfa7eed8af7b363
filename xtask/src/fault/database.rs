//! A database of one run, asked directly.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::truth::Results;

/// What the names of its tables begin with.
const PREFIX: &str = "fault";

/// It is there from [`Database::make`] to [`Database::drop`].
pub(super) struct Database {
    server: String,
    name: String,
    url: String,
    /// `host:port` in the URL.
    address: String,
}

impl Database {
    pub(super) fn make(server: &str, name: &str) -> Result<Database> {
        let (before, _) = server.rsplit_once('/').context("no database in the URL")?;
        let url = format!("{before}/{name}");
        let (_, address) = before.split_once('@').context("no user in the URL")?;
        let (server, name, address) = (server.to_owned(), name.to_owned(), address.to_owned());
        let made = Database { server, name, url, address };
        made.drop()?;
        ask(&made.server, &format!("CREATE DATABASE {}", made.name))?;
        Ok(made)
    }

    pub(super) fn drop(&self) -> Result<()> {
        ask(&self.server, &format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name))
            .map(|_| ())
    }

    /// `host:port`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// The options of a table, reached through a proxy if there is one.
    pub(super) fn options(&self, table: &str, proxy: Option<SocketAddr>) -> String {
        let url = match proxy {
            // The proxy reads along.
            Some(proxy) => {
                let through = self.url.replace(&self.address, &proxy.to_string());
                format!("{through}?sslmode=disable")
            }
            None => self.url.clone(),
        };
        format!("'connector' = 'postgres', 'url' = '{url}', 'table-name' = '{PREFIX}_{table}'")
    }

    pub(super) fn results(&self) -> Results {
        Results::Postgres { url: self.url.clone(), prefix: PREFIX.to_owned() }
    }

    pub(super) fn query(&self, text: &str) -> Result<String> {
        ask(&self.url, text)
    }

    /// How far each shard is; `None` where that cannot be told now.
    pub(super) fn progress(&self) -> Option<String> {
        let sql = "SELECT string_agg(concat_ws(' ', sink, shard, epoch), '; ' \
                   ORDER BY sink, shard) FROM weir_progress";
        self.query(sql).ok()
    }
}

fn ask(url: &str, text: &str) -> Result<String> {
    let mut psql = Command::new("psql");
    psql.arg(url).args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", text]);
    Ok(process::quietly(psql.env("PGCONNECT_TIMEOUT", "5"))?.trim().to_owned())
}
