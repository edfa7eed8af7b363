//! Objects behind `object_store`: S3 and memory.

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::aws::AmazonS3Builder;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutOptions,
    RetryConfig,
};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::task::JoinHandle;
use weir_engine::connector::ConnectorError;

use super::draft::May;
use super::exclusive::ExclusiveConnector;
use super::fault::{Doing, of_store};
use super::{Entry, Kind, PutMode, PutOutcome, StoreOptions};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES_MAX: usize = 3;
const RETRY_TIMEOUT: Duration = Duration::from_secs(15);
/// Size of a part of an upload; S3 wants at least 5 MiB.
const PART_BYTES: u64 = 8 << 20;
const PARTS_IN_FLIGHT: usize = 2;
/// What of two files is compared at a time.
const COMPARED_BYTES: u64 = 8 << 20;

/// The process's runtime for network traffic: one thread that does nothing else.
fn runtime() -> &'static Handle {
    static RUNTIME: OnceLock<Handle> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime needs no more than a few file descriptors");
        let handle = runtime.handle().clone();
        let drive = move || runtime.block_on(std::future::pending::<()>());
        let thread = std::thread::Builder::new().name("weir-store".to_owned()).spawn(drive);
        thread.expect("one more thread can be started");
        handle
    })
}

/// A bucket with a prefix in it.
pub(super) struct Bucket {
    store: Arc<dyn ObjectStore>,
    prefix: String,
    /// Address for messages.
    server: String,
    bucket: String,
    /// Larger files go up in parts. Memory takes everything at once, because only its puts can be
    /// conditional.
    single_put_max: u64,
}

impl Bucket {
    pub(super) fn open(
        scheme: &str,
        rest: &str,
        options: &StoreOptions,
    ) -> Result<Arc<Bucket>, ConnectorError> {
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let (store, server): (Arc<dyn ObjectStore>, String) = match scheme {
            "s3" | "s3a" => s3(bucket, options)?,
            "memory" => (memory(bucket), "memory".to_owned()),
            _ => {
                let message = format!("there is no storage called {scheme}://");
                let hint = "write a local path, s3://bucket/prefix or memory://name/prefix";
                return Err(ConnectorError::reconfigure(message).hint(hint));
            }
        };
        let prefix = prefix.trim_matches('/').to_owned();
        let single_put_max = if scheme == "memory" { u64::MAX } else { PART_BYTES };
        let bucket = bucket.to_owned();
        Ok(Arc::new(Bucket { store, prefix, server, bucket, single_put_max }))
    }

    /// The object's key: the names as they are, nothing escaped, so that listings agree with it.
    fn path(&self, path: &str) -> Path {
        let key = match (self.prefix.as_str(), path) {
            ("", path) => path.to_owned(),
            (prefix, "") => prefix.to_owned(),
            (prefix, path) => format!("{prefix}/{path}"),
        };
        Path::parse(&key).unwrap_or_else(|_| Path::from(key))
    }

    fn fault(&self, error: &object_store::Error, doing: Doing, name: &str) -> ConnectorError {
        of_store(error, doing, name, (&self.server, &self.bucket))
    }

    fn wait<T>(
        &self,
        doing: Doing,
        name: &str,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, ConnectorError> {
        runtime().block_on(work).map_err(|e| self.fault(&e, doing, name))
    }

    pub(super) fn kind(&self, path: &str, name: &str) -> Result<Kind, ConnectorError> {
        let place = self.path(path);
        if !place.as_ref().is_empty() {
            match runtime().block_on(self.store.head(&place)) {
                Ok(meta) => return Ok(Kind::File(meta.size)),
                // A missing bucket shows in the listing below, with its reason.
                Err(Error::NotFound { .. }) => {}
                Err(e) => return Err(self.fault(&e, "read", name)),
            }
        }
        let mut below = self.store.list(Some(&place));
        let first = self.wait("list", name, below.try_next())?;
        Ok(if first.is_some() { Kind::Folder } else { Kind::Nothing })
    }

    pub(super) fn list(&self, path: &str, name: &str) -> Result<Vec<Entry>, ConnectorError> {
        let place = self.path(path);
        let all: Vec<_> = self.wait("list", name, self.store.list(Some(&place)).try_collect())?;
        let start = if self.prefix.is_empty() { 0 } else { self.path("").as_ref().len() + 1 };
        let mut entries: Vec<Entry> = all
            .into_iter()
            .filter_map(|meta| {
                let path = meta.location.as_ref().get(start..)?.to_owned();
                let hidden = path.split('/').any(|part| part.starts_with('.'));
                (!hidden).then_some(Entry { path, size: meta.size })
            })
            .collect();
        if entries.is_empty() && !place.as_ref().is_empty() {
            // A listing is of what is below; the object itself is asked for by name.
            if let Kind::File(size) = self.kind(path, name)? {
                entries.push(Entry { path: path.to_owned(), size });
            }
        }
        Ok(entries)
    }

    pub(super) fn size(&self, path: &str, name: &str) -> Result<u64, ConnectorError> {
        let place = self.path(path);
        match runtime().block_on(self.store.head(&place)) {
            Ok(meta) => Ok(meta.size),
            Err(e) => {
                // The answer to HEAD has no body, so a listing must tell why.
                let gone = matches!(e, Error::NotFound { .. });
                if gone {
                    self.kind(path, name)?;
                }
                Err(self.fault(&e, "read", name))
            }
        }
    }

    pub(super) fn read(
        &self,
        path: &str,
        range: Range<u64>,
        name: &str,
    ) -> Result<Bytes, ConnectorError> {
        self.wait("read", name, self.store.get_range(&self.path(path), range))
    }

    pub(super) fn put(
        &self,
        path: &str,
        bytes: Bytes,
        mode: PutMode,
        name: &str,
    ) -> Result<PutOutcome, ConnectorError> {
        use object_store::PutMode as Mode;
        let mode = match mode {
            PutMode::Replace => Mode::Overwrite,
            PutMode::IfAbsent => Mode::Create,
        };
        let place = self.path(path);
        let put = self.store.put_opts(&place, bytes.into(), PutOptions::from(mode));
        match runtime().block_on(put) {
            Ok(_) => Ok(PutOutcome::Written),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                Ok(PutOutcome::AlreadyThere)
            }
            Err(e) => Err(self.fault(&e, "write", name)),
        }
    }

    pub(super) fn delete(&self, path: &str, name: &str) -> Result<(), ConnectorError> {
        match runtime().block_on(self.store.delete(&self.path(path))) {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.fault(&e, "delete", name)),
        }
    }

    /// Makes a staged file of `bytes` bytes the object at `path`, unless one is there, if it `may`
    /// when all but the last request is done. The reply of a put can be lost: a name that was free,
    /// and after an attempt (`tried`) holds exactly the staged bytes, is ours.
    pub(super) fn publish(
        &self,
        path: &str,
        (file, bytes): (&mut File, u64),
        tried: &mut Option<String>,
        may: May<'_>,
        name: &str,
    ) -> Result<PutOutcome, ConnectorError> {
        let ours = |file: &mut File| -> Result<PutOutcome, ConnectorError> {
            let same = self.same(path, file, bytes, name)?;
            Ok(if same { PutOutcome::Written } else { PutOutcome::AlreadyThere })
        };
        if self.kind(path, name)? != Kind::Nothing {
            let again = tried.as_deref() == Some(path);
            return if again { ours(file) } else { Ok(PutOutcome::AlreadyThere) };
        }
        *tried = Some(path.to_owned());
        file.seek(SeekFrom::Start(0)).map_err(|e| of_staging(&e))?;
        let outcome = if bytes <= self.single_put_max {
            let whole = staged(file, bytes)?;
            may()?;
            self.put(path, whole, PutMode::IfAbsent, name)?
        } else {
            self.upload(path, (file, bytes), may, name)?
        };
        match outcome {
            // It was free a moment ago: a lost reply, or another run's file.
            PutOutcome::AlreadyThere => ours(file),
            PutOutcome::Written => Ok(PutOutcome::Written),
        }
    }

    /// Uploads in parts what the file still holds; completed only if it may and the name is free.
    fn upload(
        &self,
        path: &str,
        (file, bytes): (&mut File, u64),
        may: May<'_>,
        name: &str,
    ) -> Result<PutOutcome, ConnectorError> {
        let place = self.path(path);
        let upload = self.wait("write", name, self.store.put_multipart(&place))?;
        let mut parts = Parts { upload: Some(upload), in_flight: VecDeque::new() };
        let fault = |e: object_store::Error| self.fault(&e, "write", name);
        let mut left = bytes;
        while left > 0 {
            let length = left.min(PART_BYTES);
            parts.send(staged(file, length)?).map_err(fault)?;
            left -= length;
        }
        parts.settle(0).map_err(fault)?;
        may()?;
        match parts.finish() {
            Ok(()) => Ok(PutOutcome::Written),
            Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => {
                Ok(PutOutcome::AlreadyThere)
            }
            Err(e) => Err(fault(e)),
        }
    }

    /// Whether the object holds exactly the staged bytes. It is read back: that says more than a
    /// checksum kept beside it, and is asked only of names that were taken.
    pub(super) fn same(
        &self,
        path: &str,
        file: &mut File,
        bytes: u64,
        name: &str,
    ) -> Result<bool, ConnectorError> {
        if self.size(path, name)? != bytes {
            return Ok(false);
        }
        file.seek(SeekFrom::Start(0)).map_err(|e| of_staging(&e))?;
        let mut at = 0;
        while at < bytes {
            let length = (bytes - at).min(COMPARED_BYTES);
            if self.read(path, at..at + length, name)? != staged(file, length)? {
                return Ok(false);
            }
            at += length;
        }
        Ok(true)
    }
}

/// The next bytes of a staged file.
fn staged(file: &mut File, length: u64) -> Result<Bytes, ConnectorError> {
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes).map_err(|e| of_staging(&e))?;
    Ok(bytes.into())
}

/// A failure of the disk on which uploads are staged.
pub(super) fn of_staging(error: &io::Error) -> ConnectorError {
    let message = format!("cannot stage a file in {}: {error}", staging());
    ConnectorError::fatal(message).hint("TMPDIR names another folder")
}

/// Where uploads are staged, for messages.
pub(super) fn staging() -> String {
    std::env::temp_dir().display().to_string()
}

/// An upload in parts, in progress.
struct Parts {
    /// `None` once it is complete.
    upload: Option<Box<dyn MultipartUpload>>,
    in_flight: VecDeque<JoinHandle<object_store::Result<()>>>,
}

impl Parts {
    /// Sends a part, once at most one other is under way.
    fn send(&mut self, bytes: Bytes) -> object_store::Result<()> {
        self.settle(PARTS_IN_FLIGHT - 1)?;
        if let Some(upload) = &mut self.upload {
            let part = upload.put_part(bytes.into());
            self.in_flight.push_back(runtime().spawn(part));
        }
        Ok(())
    }

    fn settle(&mut self, left: usize) -> object_store::Result<()> {
        while self.in_flight.len() > left
            && let Some(part) = self.in_flight.pop_front()
        {
            let done = runtime().block_on(part);
            done.unwrap_or_else(|e| Err(Error::JoinError { source: e }))?;
        }
        Ok(())
    }

    /// Completes it, once all parts are settled.
    fn finish(mut self) -> object_store::Result<()> {
        if let Some(upload) = &mut self.upload {
            runtime().block_on(upload.complete())?;
        }
        self.upload = None;
        Ok(())
    }
}

impl Drop for Parts {
    fn drop(&mut self) {
        if let Some(mut upload) = self.upload.take() {
            // Best effort, and not waited for: the server forgets what is never completed.
            runtime().spawn(async move { upload.abort().await });
        }
    }
}

/// The process's store in memory of this name.
fn memory(name: &str) -> Arc<InMemory> {
    static STORES: Mutex<BTreeMap<String, Arc<InMemory>>> = Mutex::new(BTreeMap::new());
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    stores.entry(name.to_owned()).or_default().clone()
}

fn s3(
    bucket: &str,
    options: &StoreOptions,
) -> Result<(Arc<dyn ObjectStore>, String), ConnectorError> {
    if bucket.is_empty() {
        let error = ConnectorError::reconfigure("'path' names no bucket");
        return Err(error.hint("write s3://bucket/prefix"));
    }
    let variable = |name: &str| std::env::var(name).ok().filter(|v| !v.is_empty());
    let endpoint = options.endpoint.clone().or_else(|| variable("AWS_ENDPOINT_URL_S3"));
    let endpoint = endpoint.or_else(|| variable("AWS_ENDPOINT_URL"));
    let region = options.region.clone().or_else(|| variable("AWS_REGION"));
    let region = region.or_else(|| variable("AWS_DEFAULT_REGION"));
    let mut client =
        ClientOptions::new().with_connect_timeout(CONNECT_TIMEOUT).with_timeout(REQUEST_TIMEOUT);
    if options.allow_http || endpoint.as_deref().is_some_and(is_loopback) {
        client = client.with_allow_http(true);
    } else if let Some(plain) = endpoint.as_deref().filter(|e| e.starts_with("http://")) {
        let message = format!("the S3 server {plain} would be reached without TLS");
        let hint = "use https://, or set 's3.allow-http' = 'true'";
        return Err(ConnectorError::reconfigure(message).hint(hint));
    }
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_region(region.unwrap_or_else(|| "us-east-1".to_owned()))
        .with_virtual_hosted_style_request(!options.path_style)
        .with_client_options(client)
        .with_http_connector(ExclusiveConnector)
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_TIMEOUT,
        });
    let server = endpoint.clone().unwrap_or_else(|| "Amazon S3".to_owned());
    if let Some(endpoint) = endpoint {
        let host = if options.path_style { endpoint } else { with_bucket(&endpoint, bucket) };
        builder = builder.with_endpoint(host.trim_end_matches('/'));
    }
    match (&options.access_key, &options.secret_key) {
        (Some(access), Some(secret)) => {
            builder = builder.with_access_key_id(access).with_secret_access_key(secret.expose());
        }
        (None, None) => {}
        _ => {
            let message = "'s3.access-key' and 's3.secret-key' only work together";
            return Err(ConnectorError::reconfigure(message));
        }
    }
    let store = builder.build().map_err(|e| {
        ConnectorError::reconfigure(format!("cannot use the bucket `{bucket}` of {server}: {e}"))
    })?;
    Ok((Arc::new(store), server))
}

fn is_loopback(endpoint: &str) -> bool {
    let url = url::Url::parse(endpoint).ok();
    match url.as_ref().and_then(url::Url::host) {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(ip)) => ip.is_loopback(),
        Some(url::Host::Ipv6(ip)) => ip.is_loopback(),
        None => false,
    }
}

/// The endpoint with the bucket as the first label of its host.
fn with_bucket(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) => format!("{scheme}://{bucket}.{host}"),
        None => endpoint.to_owned(),
    }
}
