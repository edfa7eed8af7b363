//! The `mqtt` source: MQTT 3.1.1 and 5, through the ingest journal.
//!
//! A *slot* is a connection with a persistent session, a journal and a split: one per topic filter,
//! or several of a shared subscription. Each has two threads. `receiver.rs` takes messages off the
//! broker, journals them and acknowledges what is on disk; `feeder.rs` follows the journal and
//! makes rows. So the broker never waits for the dataflow, and what waits does so on disk.
//!
//! # What is promised
//! With QoS 1 every message that the broker saw acknowledged is in the journal, and every message
//! in the journal becomes a row, or a bad row. After a restart the journal is read from its
//! beginning: nothing acknowledged is lost, rows may come twice. It survives the process, and
//! the disk where there are two copies. Where the job has several processes, another one than the
//! slot's has the second copy: the process after it.
//!
//! # Limits
//! Until checkpoints say what is no longer needed, a journal only grows, up to `journal.bytes-max`;
//! then receiving stops, and says so. Order is that of one connection. A broker that drops what
//! waits too long, or forgets a session, loses it; a forgotten session is reported.

mod connection;
mod feeder;
mod inbox;
mod options;
pub(crate) mod packet;
mod receiver;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use arrow::datatypes::{DataType, TimeUnit};
use weir_connect::options::{bad_table, bad_value};
use weir_engine::connector::{ConnectorError, OptionDoc, OptionError, Remedy, TableSpec};
use weir_engine::source::{Chunk, Source, SourceHandle, SplitQueue, SplitSpec};

use feeder::{Columns, Feeder};
use options::{Client, MqttOptions};
use receiver::{Identity, Receiver, Shared};
use weir_engine::journal::{
    Disk, Folder, Journal, JournalError, Mirror, Remote, Replacing, SEGMENT_BYTES, SUFFIX, is_lost,
};

/// How long a journal that somebody has is waited for: longer than children whose parent was killed
/// may take to end.
const LOCKED_FOR: Duration = Duration::from_secs(5);

/// The manual of the options.
pub fn options() -> Vec<OptionDoc> {
    MqttOptions::docs()
}

/// METADATA columns: key and natural type.
pub fn metadata() -> Vec<(&'static str, DataType)> {
    vec![
        ("split", DataType::Int64),
        ("offset", DataType::Int64),
        ("arrival", DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()))),
        ("topic", DataType::Utf8),
    ]
}

/// Checks the options and makes the source. Touches nothing outside.
///
/// # Errors
/// Everything that is wrong with the options and the columns.
pub fn source(table: &TableSpec) -> Result<Box<dyn Source>, Vec<OptionError>> {
    let (client, slots) = options::read(table)?;
    let complain = |text: String| bad_table(table, &format!("cannot be read from mqtt: {text}"));
    let columns =
        Columns::of(table).map_err(|wrong| wrong.into_iter().map(complain).collect::<Vec<_>>())?;
    columns
        .decoder(client.json)
        .map_err(|e| vec![bad_value(table, "format", &format!("does not fit: {e}"))])?;
    Ok(Box::new(Mqtt { client, slots, columns }))
}

struct Mqtt {
    client: Client,
    /// The topic filter of each slot.
    slots: Vec<String>,
    columns: Columns,
}

impl Source for Mqtt {
    fn splits(&self) -> Result<Vec<SplitSpec>, ConnectorError> {
        let slots = self.slots.iter().enumerate().map(|(number, filter)| SplitSpec {
            number: number as u64,
            name: filter.clone(),
            bounded: false,
            lazy: false,
            carries: Vec::new(),
            detail: serde_json::Value::Null,
            joined: false,
        });
        Ok(slots.collect())
    }

    fn open(&self, queues: Vec<Arc<SplitQueue>>) -> Result<Box<dyn SourceHandle>, ConnectorError> {
        let mut handle = Handle { slots: Vec::new(), threads: Vec::new() };
        for queue in queues {
            self.open_slot(queue, &mut handle)?;
        }
        Ok(Box::new(handle))
    }

    fn peek(&self, _: &SplitSpec) -> Result<Option<Chunk>, ConnectorError> {
        Ok(None)
    }

    fn guarantee(&self) -> String {
        let survives = match self.client.journal_copy_path {
            None => "survives a process, not a machine",
            Some(_) => {
                "survives a process and the loss of one of two disks, not a machine; with several \
                 processes another one than the slot's has the second copy"
            }
        };
        if self.client.qos == 0 {
            return format!(
                "QoS 0: what is under way when something fails is lost; what is in the journal \
                 {survives}"
            );
        }
        format!("at least once: acknowledged when on disk; {survives}")
    }
}

impl Mqtt {
    fn open_slot(&self, queue: Arc<SplitQueue>, handle: &mut Handle) -> Result<(), ConnectorError> {
        let slot = queue.split.number;
        let filter = usize::try_from(slot).ok().and_then(|n| self.slots.get(n)).cloned();
        let filter =
            filter.ok_or_else(|| ConnectorError::fatal(format!("mqtt has no slot {slot}")))?;
        let client = &self.client;
        let path = client.journal_path.join(slot.to_string());
        let cannot = |e: &dyn std::fmt::Display| unusable(client, &path, e);
        let folders = folders(client, &queue, &path)?;
        let disk = disk(client, &folders)?;
        let journal = Journal::open(disk, &filter, SEGMENT_BYTES).map_err(|e| match e {
            JournalError::Label { .. } => ConnectorError::reconfigure(format!(
                "table `{}`, {}: {e}",
                client.table,
                path.display()
            ))
            .hint("its slots have changed: set another 'journal.path', or remove the folder"),
            e if e.is_lost() => lost_copy(client, &e),
            e => cannot(&e),
        })?;
        let identity =
            Identity::open(client, folders, slot).map_err(|e| of_disk(client, &path, e))?;
        let decoder = self.columns.decoder(client.json).map_err(|e| cannot(&e))?;
        let shared = Arc::new(Shared::default());
        let first = journal.bounds().0;
        let start = queue.start_offset().unwrap_or(first);
        if start < first || start > journal.next_offset() {
            let (table, path, next) = (&client.table, path.display(), journal.next_offset());
            let message = format!(
                "table `{table}`: the job goes on at offset {start} of slot {slot}, but its \
                 journal {path} holds {first} to {next}"
            );
            return Err(ConnectorError::fatal(message)
                .hint("bring the journal back, or start the job anew under another state"));
        }
        let feeder = Feeder {
            slot,
            reader: journal.reader(start),
            decoder,
            columns: self.columns.clone(),
            packet_bytes_max: client.packet_bytes_max,
            queue: Arc::clone(&queue),
            shared: Arc::clone(&shared),
        };
        let receiver = Receiver {
            client: client.clone(),
            filter,
            slot,
            journal,
            identity,
            queue,
            shared: Arc::clone(&shared),
        };
        handle.slots.push((slot, shared));
        handle.start(format!("mqtt-{slot}-receive"), move || receiver.run())?;
        handle.start(format!("mqtt-{slot}-feed"), move || feeder.run())
    }
}

/// A folder that a slot's journal is in, of this machine or of another process's.
struct SlotFolder {
    disk: Arc<dyn Replacing>,
    /// For people.
    name: String,
}

/// The folders of a slot.
fn folders(
    client: &Client,
    queue: &SplitQueue,
    path: &Path,
) -> Result<Vec<SlotFolder>, ConnectorError> {
    let here = |path: &Path| -> Result<SlotFolder, ConnectorError> {
        let disk = Folder::open_within(path, LOCKED_FOR).map_err(|e| of_disk(client, path, e))?;
        Ok(SlotFolder { disk: Arc::new(disk), name: path.display().to_string() })
    };
    let mut folders = vec![here(path)?];
    let slot = queue.split.number.to_string();
    if let Some(path) = client.journal_copy_path.as_ref().map(|path| path.join(slot)) {
        folders.push(match queue.second_copy() {
            None => here(&path)?,
            Some(peer) => {
                let path = std::path::absolute(&path).unwrap_or(path);
                let disk =
                    Remote::open(peer, &path, LOCKED_FOR).map_err(|e| of_disk(client, &path, e))?;
                let name = disk.name().to_owned();
                SlotFolder { disk: Arc::new(disk), name }
            }
        });
    }
    Ok(folders)
}

/// The disk of a slot's journal, or two as one.
fn disk(client: &Client, folders: &[SlotFolder]) -> Result<Arc<dyn Disk>, ConnectorError> {
    let disk = |folder: &SlotFolder| -> Arc<dyn Disk> { folder.disk.clone() };
    let [first, second] = folders else { return Ok(disk(&folders[0])) };
    let (mirror, mended) = Mirror::open([disk(first), disk(second)], SUFFIX).map_err(|error| {
        if is_lost(&error) {
            return lost_copy(client, &error);
        }
        let what = format!("its two copies cannot be compared: {error}");
        unusable(client, Path::new(&first.name), &what)
    })?;
    if let Some(mended) = mended {
        let folder = &folders[mended.disk].name;
        let (table, bytes) = (&client.table, mended.bytes);
        tracing::warn!(table, folder, bytes, "this copy of the journal was behind: made whole");
    }
    Ok(Arc::new(mirror))
}

/// What is wrong with a folder.
fn of_disk(client: &Client, path: &Path, error: io::Error) -> ConnectorError {
    match error.kind() {
        _ if is_lost(&error) => lost_copy(client, &error),
        io::ErrorKind::WouldBlock => in_use(client, path),
        _ => unusable(client, path, &error),
    }
}

/// The second copy is out of reach.
fn lost_copy(client: &Client, error: &dyn std::fmt::Display) -> ConnectorError {
    let message = format!("journal of table `{}`: {error}", client.table);
    ConnectorError::new(Remedy::Restart, message)
}

fn unusable(client: &Client, path: &Path, error: &dyn std::fmt::Display) -> ConnectorError {
    let path = path.display();
    ConnectorError::fatal(format!("journal {path} of table `{}`: {error}", client.table))
}

fn in_use(client: &Client, path: &Path) -> ConnectorError {
    let path = path.display();
    let message = format!("journal {path} of table `{}` is in use by another job", client.table);
    ConnectorError::reconfigure(message).hint("stop that job, or set another 'journal.path'")
}

/// The threads of the slots that a worker has opened.
struct Handle {
    slots: Vec<(u64, Arc<Shared>)>,
    threads: Vec<JoinHandle<()>>,
}

impl Handle {
    fn start(
        &mut self,
        name: String,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<(), ConnectorError> {
        let thread = std::thread::Builder::new().name(name).spawn(work);
        let thread =
            thread.map_err(|e| ConnectorError::fatal(format!("cannot start a thread: {e}")))?;
        self.threads.push(thread);
        Ok(())
    }
}

impl SourceHandle for Handle {
    fn committed(&mut self, _: &[(u64, u64)]) {
        // Rows in windows that have not fired are below these offsets, and are needed again after a
        // restart: only a checkpoint says what can go.
    }

    fn forget(&mut self, offsets: &[(u64, u64)]) {
        for (slot, shared) in &self.slots {
            if let Some((_, offset)) = offsets.iter().find(|(number, _)| number == slot) {
                shared.needed_from.fetch_max(*offset, Ordering::Relaxed);
            }
        }
    }

    fn stop(&mut self) {
        for (_, slot) in &self.slots {
            slot.stop.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            // A panic has been reported where it happened.
            drop(thread.join());
        }
    }
}
