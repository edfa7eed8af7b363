//! Failures of disks and object stores in words that say where, and what to do.

use std::error::Error as _;
use std::io::ErrorKind;
use weir_engine::connector::{ConnectorError, Remedy};

/// What was being done, for messages: `read`, `write`, `list`.
pub(super) type Doing = &'static str;

/// A failure of the local disk.
pub(super) fn of_disk(error: &std::io::Error, doing: Doing, name: &str) -> ConnectorError {
    let failed =
        |remedy, what: &str| ConnectorError::new(remedy, format!("cannot {doing} {name}: {what}"));
    match error.kind() {
        ErrorKind::NotFound => {
            ConnectorError::reconfigure(format!("no such file or folder: {name}"))
                .hint("check 'path'; a relative path starts where weir was started")
        }
        ErrorKind::PermissionDenied => failed(Remedy::Reconfigure, "permission denied")
            .hint("give the user that runs weir access to it, or choose another 'path'"),
        ErrorKind::ReadOnlyFilesystem => {
            failed(Remedy::Reconfigure, "the file system is read-only")
                .hint("choose another 'path'")
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            failed(Remedy::Retry, "no space left on the device").hint("free space there")
        }
        ErrorKind::NotADirectory => {
            failed(Remedy::Reconfigure, "a part of the path is a file, not a folder")
        }
        ErrorKind::IsADirectory => failed(Remedy::Reconfigure, "it is a folder"),
        ErrorKind::UnexpectedEof => {
            failed(Remedy::Fatal, "it became shorter while it was being read")
        }
        ErrorKind::InvalidFilename => failed(Remedy::Reconfigure, "no valid file name"),
        _ => failed(Remedy::Fatal, &error.to_string()),
    }
}

/// A failure of an object store. `server` is its address, `bucket` its bucket.
pub(super) fn of_store(
    error: &object_store::Error,
    doing: Doing,
    name: &str,
    (server, bucket): (&str, &str),
) -> ConnectorError {
    use object_store::Error;
    let whole = chain(error);
    let denied = || {
        ConnectorError::reconfigure(format!("cannot {doing} {name}: access denied by {server}"))
            .hint(
                "check 's3.access-key' and 's3.secret-key' (or AWS_ACCESS_KEY_ID and \
                   AWS_SECRET_ACCESS_KEY) and what they may do in the bucket",
            )
    };
    let says = |code: &str| whole.contains(code);
    if says("NoSuchBucket") {
        return ConnectorError::reconfigure(format!(
            "cannot {doing} {name}: there is no bucket `{bucket}` on {server}"
        ))
        .hint("create the bucket, or correct 'path' or 's3.endpoint'");
    }
    if says("SignatureDoesNotMatch") || says("InvalidAccessKeyId") || says("AccessDenied") {
        return denied();
    }
    match error {
        Error::NotFound { .. } => ConnectorError::reconfigure(format!("no such object: {name}")),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => denied(),
        Error::InvalidPath { .. } => {
            ConnectorError::reconfigure(format!("{name} is no valid object name"))
        }
        Error::Generic { .. } if unreachable(&whole) => {
            let why = root_cause(error);
            ConnectorError::retry(format!(
                "cannot {doing} {name}: {server} cannot be reached: {why}"
            ))
            .hint("check 's3.endpoint' and that the server runs")
        }
        Error::Generic { .. } if whole.contains("Missing") || whole.contains("credential") => {
            ConnectorError::reconfigure(format!("cannot {doing} {name}: {}", root_cause(error)))
                .hint("set 's3.access-key' and 's3.secret-key', or the AWS_ variables")
        }
        _ => ConnectorError::retry(format!(
            "cannot {doing} {name} on {server}: {}",
            root_cause(error)
        )),
    }
}

fn unreachable(whole: &str) -> bool {
    let words = ["error sending request", "connect", "timed out", "dns error", "Connection"];
    words.iter().any(|word| whole.contains(word))
}

/// All messages of an error and its causes.
fn chain(error: &object_store::Error) -> String {
    let mut all = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        all.push_str(" - ");
        all.push_str(&next.to_string());
        cause = next.source();
    }
    all
}

/// The innermost message, without what the layers above repeat; one line, not too long.
fn root_cause(error: &object_store::Error) -> String {
    let mut last = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        last = next.to_string();
        cause = next.source();
    }
    let line: String = last.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(200).collect()
}
