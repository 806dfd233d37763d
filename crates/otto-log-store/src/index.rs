//! The index of sealed segments: runs, tasks, events, and where blocks are. Everything in it can be made again from the
//! segments; it is written once per sealed segment, in one transaction.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use otto_proto::v1::WorkerEvent;
use prost::Message;
use redb::{
    Database, Range, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition, TableError,
};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::layer::Layer;
use crate::rows::{ENTRY_BYTES, Entry, RunRow, TaskRow};
use crate::types::RunKey;

mod write;

pub(crate) use write::{Expiry, Merged};

type Bytes = &'static [u8];

const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
const RUNS: TableDefinition<'_, u64, Bytes> = TableDefinition::new("runs");
const KEYS: TableDefinition<'_, (&str, &str, &str), u64> = TableDefinition::new("keys");
const TASKS: TableDefinition<'_, &str, Bytes> = TableDefinition::new("tasks");
const TASK_NAMES: TableDefinition<'_, u64, &str> = TableDefinition::new("task_names");
const TASK_RUNS: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("task_runs");
/// (run, first, rank of the entry).
const BLOCKS: TableDefinition<'_, (u64, u64, u8), &[u8; ENTRY_BYTES]> = TableDefinition::new("blocks");
const EVENTS: TableDefinition<'_, (u64, u64), Bytes> = TableDefinition::new("events");
const EVENT_IDS: TableDefinition<'_, (u64, &str), u64> = TableDefinition::new("event_ids");
/// Generation, bytes, oldest, newest (the last two as bits of an i64).
const SEGMENTS: TableDefinition<'_, u64, (u32, u64, u64, u64)> = TableDefinition::new("segments");
/// (segment, run): sequence after the last one in it, lines, payload bytes.
const SEGMENT_RUNS: TableDefinition<'_, (u64, u64), (u64, u64, u64)> = TableDefinition::new("segment_runs");
const SEGMENT_TASKS: TableDefinition<'_, (u64, u64), ()> = TableDefinition::new("segment_tasks");
/// (segment, task, event).
const SEGMENT_EVENTS: TableDefinition<'_, (u64, u64, u64), ()> = TableDefinition::new("segment_events");

const INDEX_FORMAT: u64 = 1;

/// Why the index could not be read or written.
#[derive(Clone, Debug, thiserror::Error)]
#[error("index: {0}")]
pub(crate) struct IndexError(pub(crate) String);

impl<E: Into<redb::Error>> From<E> for IndexError {
    fn from(error: E) -> Self {
        Self(error.into().to_string())
    }
}

impl IndexError {
    /// The disk is full.
    pub(crate) fn is_no_space(&self) -> bool {
        // The engine's errors keep the text of the operating system's.
        ["os error 28", "os error 122", "os error 27"].iter().any(|code| self.0.contains(code))
    }

    /// Another thread is about to open the file again after a failed write.
    pub(crate) fn is_passing(&self) -> bool {
        self.0 == redb::Error::PreviousIo.to_string()
    }
}

type Result<T> = std::result::Result<T, IndexError>;

/// A sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRow {
    pub(crate) generation: u32,
    pub(crate) bytes: u64,
    pub(crate) oldest: i64,
    pub(crate) newest: i64,
}

/// What the index says of itself.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meta {
    /// All segments up to here are in the index.
    pub(crate) covered: u64,
    pub(crate) next_run: u64,
    pub(crate) next_task: u64,
}

pub(crate) struct Index {
    path: PathBuf,
    cache_bytes: usize,
    /// `None` once it is closed.
    database: RwLock<Option<Arc<Database>>>,
}

impl Index {
    /// Opens the index or makes an empty one. One that is damaged or of another format is removed first: then
    /// `Meta::covered` is 0, and the caller reads the segments.
    pub(crate) fn open(path: &Path, cache_bytes: usize) -> Result<(Self, Meta)> {
        let attempt = || -> Result<(Database, Meta)> {
            let database = open_database(path, cache_bytes)?;
            let meta = prepare(&database)?;
            Ok((database, meta))
        };
        let (database, meta) = match attempt() {
            Ok(opened) => opened,
            Err(error) if error.is_no_space() => return Err(error),
            Err(error) => {
                tracing::warn!(%error, path = %path.display(), "the index cannot be used and is built anew");
                remove(path).map_err(|error| IndexError(error.to_string()))?;
                attempt()?
            }
        };
        let index = Self { path: path.to_owned(), cache_bytes, database: RwLock::new(Some(Arc::new(database))) };
        Ok((index, meta))
    }

    fn database(&self) -> Result<Arc<Database>> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner).clone();
        database.ok_or_else(|| IndexError("it is closed".to_owned()))
    }

    /// Lets the next process have the file.
    pub(crate) fn close(&self) {
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// After a failed write the engine refuses everything until the file is opened again. Readers wait meanwhile.
    pub(crate) fn reopen(&self) -> Result<()> {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        // What readers hold ends in a moment; two engines must not have the file.
        let begun = std::time::Instant::now();
        while let Some(handle) = database.take() {
            match Arc::try_unwrap(handle) {
                Ok(old) => drop(old),
                Err(handle) => {
                    *database = Some(handle);
                    if begun.elapsed().as_secs() >= 2 {
                        return Err(IndexError("it is in use".to_owned()));
                    }
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
            }
        }
        *database = Some(Arc::new(open_database(&self.path, self.cache_bytes)?));
        Ok(())
    }

    /// Whether a write of about so many bytes will find space.
    pub(crate) fn has_space(&self, bytes: u64) -> bool {
        let Some(directory) = self.path.parent() else { return true };
        rustix::fs::statvfs(directory).map_or(true, |status| status.f_bavail.saturating_mul(status.f_frsize) > bytes)
    }

    /// The index as it is now; later changes are not seen by it.
    pub(crate) fn reader(&self) -> Result<Reader> {
        Ok(Reader { transaction: self.database()?.begin_read()? })
    }

    /// Bytes of the file.
    pub(crate) fn bytes(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |metadata| metadata.len())
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn open_database(path: &Path, cache_bytes: usize) -> Result<Database> {
    let file = File::options().read(true).write(true).create(true).truncate(false).mode(0o640).open(path);
    let file = file.map_err(|error| IndexError(error.to_string()))?;
    // A file damaged in a way the engine did not foresee must not end the process.
    let opened =
        std::panic::catch_unwind(|| Database::builder().set_cache_size(cache_bytes).create_with_backend(Space(file)));
    opened.map_err(|_| IndexError("the engine failed on this file".to_owned()))?.map_err(IndexError::from)
}

/// The index file. Its length is never more than the space it has, so that a full disk is noticed when it grows, and not
/// in the midst of a change. The data directory's lock keeps other processes from it.
#[derive(Debug)]
struct Space(File);

impl StorageBackend for Space {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let now = self.0.metadata()?.len();
        if len <= now {
            return self.0.set_len(len);
        }
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), now, len - now) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.0.set_len(len),
            result => Ok(result?),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }
}

/// Makes the tables, unless they are there: then nothing is written, since the disk may be full.
fn prepare(database: &Database) -> Result<Meta> {
    let reader = Reader { transaction: database.begin_read()? };
    match reader.open(META) {
        Ok(table) => {
            let get = |name| -> Result<Option<u64>> { Ok(table.get(name)?.map(|value| value.value())) };
            if get("format")? != Some(INDEX_FORMAT) {
                return Err(IndexError("written by another version".to_owned()));
            }
            Ok(Meta {
                covered: get("covered")?.unwrap_or(0),
                next_run: get("next_run")?.unwrap_or(1),
                next_task: get("next_task")?.unwrap_or(1),
            })
        }
        Err(TableError::TableDoesNotExist(_)) => make_tables(database),
        Err(error) => Err(error.into()),
    }
}

fn make_tables(database: &Database) -> Result<Meta> {
    let transaction = database.begin_write()?;
    transaction.open_table(META)?.insert("format", INDEX_FORMAT)?;
    transaction.open_table(RUNS)?;
    transaction.open_table(KEYS)?;
    transaction.open_table(TASKS)?;
    transaction.open_table(TASK_NAMES)?;
    transaction.open_table(TASK_RUNS)?;
    transaction.open_table(BLOCKS)?;
    transaction.open_table(EVENTS)?;
    transaction.open_table(EVENT_IDS)?;
    transaction.open_table(SEGMENTS)?;
    transaction.open_table(SEGMENT_RUNS)?;
    transaction.open_table(SEGMENT_TASKS)?;
    transaction.open_table(SEGMENT_EVENTS)?;
    transaction.commit()?;
    Ok(Meta { covered: 0, next_run: 1, next_task: 1 })
}

/// One moment of the index.
pub(crate) struct Reader {
    transaction: ReadTransaction,
}

impl Reader {
    fn open<K: redb::Key + 'static, V: redb::Value + 'static>(
        &self,
        definition: TableDefinition<'_, K, V>,
    ) -> std::result::Result<ReadOnlyTable<K, V>, TableError> {
        self.transaction.open_table(definition)
    }

    pub(crate) fn run(&self, id: u64) -> Result<Option<RunRow>> {
        let Some(value) = self.open(RUNS)?.get(id)? else { return Ok(None) };
        let (row, _) = RunRow::decode(value.value()).ok_or_else(|| IndexError(format!("row of run {id}")))?;
        Ok(Some(row))
    }

    pub(crate) fn task(&self, name: &str) -> Result<Option<TaskRow>> {
        let Some(value) = self.open(TASKS)?.get(name)? else { return Ok(None) };
        Ok(Some(TaskRow::decode(value.value()).ok_or_else(|| IndexError(format!("row of task {name}")))?))
    }

    pub(crate) fn find(&self, key: &RunKey) -> Result<Option<u64>> {
        let found = self.open(KEYS)?.get((&*key.task_id, &*key.worker_id, &*key.run_id))?;
        Ok(found.map(|value| value.value()))
    }

    /// Runs of a worker.
    pub(crate) fn worker_runs(&self, task_id: &str, worker_id: &str) -> Result<Vec<u64>> {
        let table = self.open(KEYS)?;
        let mut runs = Vec::new();
        for item in table.range((task_id, worker_id, "")..)? {
            let (key, value) = item?;
            let (task, worker, _) = key.value();
            if (task, worker) != (task_id, worker_id) {
                break;
            }
            runs.push(value.value());
        }
        Ok(runs)
    }

    pub(crate) fn run_ids(&self, task: u64) -> Result<Vec<u64>> {
        let table = self.open(TASK_RUNS)?;
        let mut ids = Vec::new();
        for item in table.range((task, 0)..=(task, u64::MAX))? {
            ids.push(item?.0.value().1);
        }
        Ok(ids)
    }

    pub(crate) fn has_event(&self, task: u64, event_id: &str) -> Result<bool> {
        Ok(self.open(EVENT_IDS)?.get((task, event_id))?.is_some())
    }

    pub(crate) fn events(&self, task: u64, from: u64, limit: usize) -> Result<Vec<(u64, WorkerEvent)>> {
        let table = self.open(EVENTS)?;
        let mut events = Vec::new();
        for item in table.range((task, from)..=(task, u64::MAX))?.take(limit) {
            let (key, value) = item?;
            let event = WorkerEvent::decode(value.value())
                .map_err(|error| IndexError(format!("event of task {task}: {error}")))?;
            events.push((key.value().1, event));
        }
        Ok(events)
    }

    /// Tasks with a number below `before`, newest first, until `take` says false.
    pub(crate) fn tasks_before(&self, before: u64, mut take: impl FnMut(TaskRow) -> bool) -> Result<()> {
        let names = self.open(TASK_NAMES)?;
        for item in names.range(..before)?.rev() {
            let (_, name) = item?;
            if let Some(row) = self.task(name.value())?
                && !take(row)
            {
                break;
            }
        }
        Ok(())
    }

    /// The first entries of a run that a reader at (`position`, `rank`) is not past.
    pub(crate) fn entries(&self, run: u64, position: u64, rank: u8, limit: usize) -> Result<Vec<Entry>> {
        let table = self.open(BLOCKS)?;
        // The one that begins at or before the position may still cover it.
        let mut start = (run, position, rank);
        if let Some(item) = table.range((run, 0, 0)..(run, position, 1))?.next_back() {
            let (key, value) = item?;
            let entry = Entry::decode(key.value().1, value.value());
            if !entry.is_before(position, rank) {
                start = (run, entry.first, entry.rank());
            }
        }
        collect(table.range(start..=(run, u64::MAX, u8::MAX))?, limit)
    }

    /// Entries of a run from the end back, until `take` says false.
    pub(crate) fn entries_back(&self, run: u64, mut take: impl FnMut(Entry) -> bool) -> Result<()> {
        let table = self.open(BLOCKS)?;
        for item in table.range((run, 0, 0)..=(run, u64::MAX, u8::MAX))?.rev() {
            let (key, value) = item?;
            if !take(Entry::decode(key.value().1, value.value())) {
                break;
            }
        }
        Ok(())
    }

    /// Sealed segments, oldest first.
    pub(crate) fn segments(&self) -> Result<Vec<(u64, SegmentRow)>> {
        let mut segments = Vec::new();
        for item in self.open(SEGMENTS)?.iter()? {
            let (key, value) = item?;
            let (generation, bytes, oldest, newest) = value.value();
            let row = SegmentRow { generation, bytes, oldest: oldest as i64, newest: newest as i64 };
            segments.push((key.value(), row));
        }
        Ok(segments)
    }

    /// What a segment holds.
    pub(crate) fn expiry(&self, segment: u64) -> Result<Expiry> {
        let mut expiry = Expiry { segment, ..Expiry::default() };
        for item in self.open(SEGMENT_RUNS)?.range((segment, 0)..=(segment, u64::MAX))? {
            let (key, value) = item?;
            let (end, lines, bytes) = value.value();
            expiry.runs.push((key.value().1, end, lines, bytes));
        }
        let names = self.open(TASK_NAMES)?;
        for item in self.open(SEGMENT_TASKS)?.range((segment, 0)..=(segment, u64::MAX))? {
            if let Some(name) = names.get(item?.0.value().1)? {
                expiry.tasks.push(name.value().into());
            }
        }
        Ok(expiry)
    }
}

fn collect(range: Range<'_, (u64, u64, u8), &[u8; ENTRY_BYTES]>, limit: usize) -> Result<Vec<Entry>> {
    let mut entries = Vec::with_capacity(limit.min(64));
    for item in range.take(limit) {
        let (key, value) = item?;
        entries.push(Entry::decode(key.value().1, value.value()));
    }
    Ok(entries)
}

fn storage(error: StorageError) -> IndexError {
    IndexError::from(error)
}
