use std::fmt;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use otto_proto::v1::{LogGap, WorkerEvent, WorkerMetadata};
use tokio::sync::{oneshot, watch};

use crate::catalogue::TaskSnapshot;
use crate::directory::Directory;
use crate::error::{Health, OpenError, ReadError, StoreError};
use crate::index::IndexError;
use crate::options::Options;
use crate::queue::{Job, Reply};
use crate::record::MAX_BODY;
use crate::recover::{Recovered, recover};
use crate::sealer::Sealer;
use crate::shared::{Shared, get};
use crate::types::{Record, RunId, RunInfo, RunKey, RunState, Stats, TaskInfo, TaskPage};
use crate::watch::Watch;
use crate::writer::Writer;
use crate::{Cursor, From};

/// Longest part of a key, bytes.
const MAX_NAME: usize = 1_024;
/// Largest metadata, finish, message of a gap, bytes.
const MAX_DETAILS: usize = 64 << 10;
/// Largest event, bytes.
const MAX_EVENT: usize = 256 << 10;
/// Events answered at once.
const MAX_EVENTS: usize = 1_000;
/// Most tasks of a page.
const MAX_TASKS: usize = 1_000;
/// About what a record takes besides its body.
const RECORD: usize = 128;

/// A cheap handle to an open store. The store is closed when the last handle is dropped (which waits for what was
/// queued) or by [`Store::close`].
#[derive(Clone)]
pub struct Store {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Handle {
    /// Blocks until everything queued is written and the directory is free.
    fn close(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        self.shared.queue.close();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // The writer's own end tells of a failure.
            let _ = thread.join();
        }
        self.shared.index.close();
        self.shared.directory.unlock();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.close();
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("data_dir", &self.shared().options.data_dir).finish_non_exhaustive()
    }
}

/// Resolves when the record is on disk, with the sequence the run expects next. Dropping it does not undo the append.
#[derive(Debug)]
#[must_use = "only a resolved append is stored"]
pub struct Append(Result<oneshot::Receiver<Result<u64, StoreError>>, StoreError>);

impl Future for Append {
    type Output = Result<u64, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match &mut self.0 {
            Ok(receiver) => Pin::new(receiver).poll(context).map(|answer| answer.unwrap_or(Err(StoreError::Closed))),
            Err(error) => Poll::Ready(Err(error.clone())),
        }
    }
}

/// Tells of changes of a task, or of all tasks.
pub struct TaskWatch(Watching);

enum Watching {
    One(Watch<Arc<str>>),
    All(Watch<()>),
}

impl TaskWatch {
    /// Waits for a change since the watch was made or since this last returned; `false`: the store was closed.
    pub async fn changed(&mut self) -> bool {
        match &mut self.0 {
            Watching::One(watch) => watch.changed().await,
            Watching::All(watch) => watch.changed().await,
        }
    }
}

impl fmt::Debug for TaskWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TaskWatch")
    }
}

impl std::convert::From<IndexError> for ReadError {
    fn from(error: IndexError) -> Self {
        Self::Io(error.to_string())
    }
}

impl Store {
    /// Opens the store, making it if the directory is empty or absent, and recovers what a crash left. Blocks: call it
    /// before the runtime serves, or in `spawn_blocking`.
    ///
    /// # Errors
    /// [`OpenError`] names the directory and what is wrong with it.
    pub fn open(options: Options) -> Result<Self, OpenError> {
        check_options(&options)?;
        let directory = Directory::open(&options.data_dir)?;
        let Recovered { catalogue, active, next_segment, sealed, damaged } = recover(&options, &directory)?;
        let frozen: Vec<u64> = catalogue.frozen.iter().map(|layer| layer.bytes).collect();
        let shared = Arc::new(Shared::new(options, directory, catalogue));
        let counters = &shared.counters;
        counters.damaged.store(damaged, Ordering::Relaxed);
        counters.sealed_segments.store((sealed.len() + frozen.len()) as u64, Ordering::Relaxed);
        let bytes = sealed.values().map(|row| row.bytes).chain(frozen).sum();
        counters.sealed_bytes.store(bytes, Ordering::Relaxed);
        counters.active_bytes.store(active.as_ref().map_or(0, |active| active.end), Ordering::Relaxed);
        let sealer = Sealer::new(shared.clone(), sealed);
        let writer = Writer::new(shared.clone(), active, next_segment);
        // From here on, dropping the handle ends what was begun.
        let handle = Handle { shared, threads: Mutex::default() };
        let data_dir = handle.shared.options.data_dir.clone();
        let begin = |name: &str, work: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(work).map_err(|source| OpenError::Io {
                path: data_dir.clone(),
                action: "start a thread for",
                source,
            })
        };
        let threads = vec![
            begin("store-writer", Box::new(move || writer.run()))?,
            begin("store-sealer", Box::new(move || sealer.run()))?,
        ];
        *handle.threads.lock().unwrap_or_else(PoisonError::into_inner) = threads;
        Ok(Self { handle: Arc::new(handle) })
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }

    fn send<T>(
        &self,
        bytes: usize,
        job: impl FnOnce(Reply<T>) -> Job,
    ) -> Result<oneshot::Receiver<Result<T, StoreError>>, StoreError> {
        if let Some(failure) = self.shared().failure() {
            return Err(failure);
        }
        let (reply, answer) = oneshot::channel();
        self.shared().queue.push(job(reply), bytes + RECORD, false)?;
        Ok(answer)
    }

    async fn ask<T>(&self, bytes: usize, job: impl FnOnce(Reply<T>) -> Job) -> Result<T, StoreError> {
        self.send(bytes, job)?.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Reads the index where it may block.
    async fn look<T: Send + 'static>(
        &self,
        look: impl Fn(&Shared) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let shared = self.shared().clone();
        blocking(move || look(&shared)).await
    }

    /// Finds a run, or makes it. With metadata given, that of a known run is replaced. What it answers is on disk.
    ///
    /// # Errors
    /// Like [`append`](Self::append); [`StoreError::Invalid`] for an empty or too long part of the key.
    pub async fn open_run(&self, key: &RunKey, metadata: Option<WorkerMetadata>) -> Result<RunState, StoreError> {
        check_name("task_id", &key.task_id, 1)?;
        check_name("worker_id", &key.worker_id, 1)?;
        check_name("run_id", &key.run_id, 0)?;
        if metadata.as_ref().is_some_and(|metadata| prost::Message::encoded_len(metadata) > MAX_DETAILS) {
            return Err(StoreError::Invalid(format!("metadata: accepted are at most {MAX_DETAILS} bytes")));
        }
        self.ask(512, |reply| Job::OpenRun(key.clone(), metadata, reply)).await
    }

    /// Queues a record, in the order of calls, and returns a future that resolves when it is on disk. Never blocks.
    /// Several appends of one run may be under way: if one is refused, those after it are refused with
    /// [`StoreError::Sequence`] (or with the same error). The block's header and checksum are verified here.
    pub fn append(&self, run: RunId, record: Record) -> Append {
        Append(check_record(&record).and_then(|bytes| self.send(bytes, |reply| Job::Append(run, record, reply))))
    }

    /// Waits until the queue has room (less than half of its bounds), or the store cannot write any more.
    pub async fn ready(&self) {
        self.shared().queue.ready().await;
    }

    /// Stores events that are not stored yet (by task and event id), in this order; returns how many were new.
    ///
    /// # Errors
    /// Like [`append`](Self::append); [`StoreError::Invalid`] for an empty `task_id` or `event_id`. All or none is stored.
    pub async fn put_events(&self, events: Vec<WorkerEvent>) -> Result<u32, StoreError> {
        let mut bytes = 0;
        for event in &events {
            check_name("task_id", &event.task_id, 1)?;
            check_name("event_id", &event.event_id, 1)?;
            let size = prost::Message::encoded_len(event);
            if size > MAX_EVENT {
                let id = &event.event_id;
                return Err(StoreError::Invalid(format!("event {id}: accepted are at most {MAX_EVENT} bytes")));
            }
            bytes += RECORD + size;
        }
        if events.is_empty() {
            return Ok(0);
        }
        if bytes > MAX_BODY {
            return Err(StoreError::Invalid(format!("events: {bytes} bytes, accepted are at most {MAX_BODY}")));
        }
        self.ask(bytes, |reply| Job::PutEvents(events, reply)).await
    }

    /// Hides a task with its runs and events at once and for good; their bytes are freed with their segments. A run of
    /// the same key opened later is a new one. Returns whether there was such a task.
    ///
    /// # Errors
    /// Like [`append`](Self::append).
    pub async fn delete_task(&self, task_id: &str) -> Result<bool, StoreError> {
        check_name("task_id", task_id, 1)?;
        self.ask(RECORD, |reply| Job::RemoveTask(task_id.to_owned(), reply)).await
    }

    /// Tasks, newest (by first sight) first: at most `limit` (1 to 1,000), after `page` (`TaskPage::next`).
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn tasks(&self, page: Option<u64>, limit: usize) -> Result<TaskPage, ReadError> {
        let limit = limit.clamp(1, MAX_TASKS);
        self.look(move |shared| {
            let snapshot = shared.catalogue().tasks_snapshot()?;
            snapshot.page(page, limit)
        })
        .await
    }

    async fn look_at_task<T: Default + Send + 'static>(
        &self,
        task_id: &str,
        look: impl Fn(&TaskSnapshot) -> Result<T, IndexError> + Send + 'static,
    ) -> Result<T, ReadError> {
        let task_id = task_id.to_owned();
        self.look(move |shared| {
            let snapshot = shared.catalogue().task_snapshot(&task_id)?;
            snapshot.map_or_else(|| Ok(T::default()), |snapshot| look(&snapshot))
        })
        .await
    }

    /// One task; `None` if nothing of it is stored.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn task(&self, task_id: &str) -> Result<Option<TaskInfo>, ReadError> {
        self.look_at_task(task_id, |task| Ok(task.row()?.map(|row| row.info()))).await
    }

    /// Runs of a task, in the order they were opened first. Empty if there is no such task.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn runs(&self, task_id: &str) -> Result<Vec<RunInfo>, ReadError> {
        let shared = self.shared().clone();
        self.look_at_task(task_id, move |task| {
            Ok(task.runs()?.iter().map(|row| shared.unreadable.taken_from(row.info())).collect())
        })
        .await
    }

    /// One run; `None` if it is not known.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn run(&self, run: RunId) -> Result<Option<RunInfo>, ReadError> {
        self.look(move |shared| {
            let lookup = shared.catalogue().run_lookup(run.0)?;
            Ok(lookup.row()?.map(|row| shared.unreadable.taken_from(row.info())))
        })
        .await
    }

    /// Finds a run without making it.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn find_run(&self, key: &RunKey) -> Result<Option<RunInfo>, ReadError> {
        let key = key.clone();
        self.look(move |shared| {
            let found = shared.catalogue().find_lookup(&key)?;
            let id = match found {
                Ok(id) => Some(id),
                Err(reader) => reader.find(&key)?,
            };
            let Some(id) = id else { return Ok(None) };
            let lookup = shared.catalogue().run_lookup(id)?;
            Ok(lookup.row()?.map(|row| row.info()))
        })
        .await
    }

    /// Events of a task, in the order they were stored, from number `from` (0: the first stored) on; at most 1,000 a
    /// call. Each with its number, so that a follower goes on at the last number + 1.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn events(&self, task_id: &str, from: u64) -> Result<Vec<(u64, WorkerEvent)>, ReadError> {
        self.look_at_task(task_id, move |task| task.events(from, MAX_EVENTS)).await
    }

    /// A reader of one run. Costs nothing until it is used.
    #[must_use]
    pub fn cursor(&self, run: RunId, from: From) -> Cursor {
        Cursor::new(self.shared().clone(), run, from)
    }

    /// Tells of new runs, new events, ends of runs and the deletion of a task (not of lines: those are a cursor's). Make
    /// the watch first, then read, then wait. The task need not exist yet.
    #[must_use]
    pub fn watch_task(&self, task_id: &str) -> TaskWatch {
        TaskWatch(Watching::One(self.shared().tasks.watch(task_id.into())))
    }

    /// As [`watch_task`](Self::watch_task), for all tasks.
    #[must_use]
    pub fn watch_tasks(&self) -> TaskWatch {
        TaskWatch(Watching::All(self.shared().all_tasks.watch(())))
    }

    /// Whether the store can do its work now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.shared().health.borrow().clone()
    }

    /// Follows [`health`](Self::health).
    #[must_use]
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        self.shared().health.subscribe()
    }

    /// Counters and sizes, for metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counters = &self.shared().counters;
        let (queued_records, queued_bytes) = self.shared().queue.size();
        let active = get(&counters.active_bytes);
        Stats {
            segment_bytes: get(&counters.sealed_bytes) + active,
            segments: get(&counters.sealed_segments) + u64::from(active > 0),
            index_bytes: self.shared().index.bytes(),
            queued_records,
            queued_bytes,
            records: get(&counters.records),
            lines: get(&counters.lines),
            written_bytes: get(&counters.written_bytes),
            commits: get(&counters.commits),
            sync_nanos: get(&counters.sync_nanos),
            sync_counts: counters.sync_counts.each_ref().map(get),
            damaged: get(&counters.damaged),
            expired_segments: get(&counters.expired_segments),
            merged_segments: get(&counters.merged_segments),
        }
    }

    /// Removes what is too old or too much, now rather than within a minute.
    ///
    /// # Errors
    /// If the disk cannot be written, or the store has failed or is closed.
    pub async fn apply_retention(&self) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        if self.shared().closing.load(Ordering::Relaxed) {
            return Err(StoreError::Closed);
        }
        self.shared().wake_sealer(|inbox| {
            if !inbox.ended {
                inbox.retention.push(done);
            }
        });
        answer.await.unwrap_or_else(|_| Err(self.shared().failure().unwrap_or(StoreError::Closed)))
    }

    /// Writes what was queued, ends the threads and frees the directory for the next process. Appends after it fail.
    pub async fn close(&self) {
        let handle = self.handle.clone();
        // Joining the threads blocks.
        let _ = tokio::task::spawn_blocking(move || handle.close()).await;
    }
}

/// Runs what may wait for a disk. After a failed write the index is unreadable for a moment: then it is tried again.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl Fn() -> Result<T, IndexError> + Send + 'static,
) -> Result<T, ReadError> {
    let attempts = move || {
        for _ in 0..5 {
            match work() {
                Err(error) if error.is_passing() => std::thread::sleep(std::time::Duration::from_millis(50)),
                result => return result,
            }
        }
        work()
    };
    match tokio::task::spawn_blocking(attempts).await {
        Ok(result) => result.map_err(ReadError::from),
        Err(error) => Err(ReadError::Io(error.to_string())),
    }
}

fn check_options(options: &Options) -> Result<(), OpenError> {
    if !((64 << 10)..=(1 << 30)).contains(&options.segment_bytes) {
        let segment_bytes = options.segment_bytes;
        return Err(OpenError::Option(format!(
            "segment size: {segment_bytes} bytes, accepted are 65,536 to 1,073,741,824"
        )));
    }
    if options.queue_bytes == 0 || options.queue_records == 0 || options.commit_bytes == 0 {
        return Err(OpenError::Option("queue bounds: accepted is 1 or more".to_owned()));
    }
    Ok(())
}

fn check_name(field: &str, name: &str, least: usize) -> Result<(), StoreError> {
    if (least..=MAX_NAME).contains(&name.len()) {
        return Ok(());
    }
    let len = name.len();
    Err(StoreError::Invalid(format!("{field}: {len} bytes, accepted are {least} to {MAX_NAME}")))
}

/// The bytes of its body, if the record can be stored.
fn check_record(record: &Record) -> Result<usize, StoreError> {
    let invalid = |text: &str| Err(StoreError::Invalid(text.to_owned()));
    match record {
        Record::Block(block) => {
            block.check().map_err(|error| StoreError::Invalid(error.to_string()))?;
            if block.payload.len() > MAX_BODY {
                return invalid("payload: accepted are at most 17,825,792 bytes");
            }
            Ok(block.payload.len())
        }
        Record::Gap(LogGap { first_sequence, last_sequence, message, .. }) => {
            if *first_sequence == 0 {
                return invalid("first_sequence of a gap is 0, accepted is 1 or more");
            }
            if *last_sequence != 0 && last_sequence < first_sequence {
                return invalid("last_sequence of a gap is below its first_sequence; accepted is that or more, or 0");
            }
            if *last_sequence >= i64::MAX as u64 {
                return invalid("last_sequence of a gap: accepted is below 2^63 - 1");
            }
            if message.len() > MAX_DETAILS {
                return invalid("message of a gap: accepted are at most 65,536 bytes");
            }
            Ok(message.len())
        }
        Record::Finish(finish) if finish.last_sequence >= i64::MAX as u64 => {
            invalid("last_sequence of the finish: accepted is below 2^63 - 1")
        }
        Record::Finish(finish) => {
            let bytes = prost::Message::encoded_len(finish);
            if bytes > MAX_DETAILS { invalid("finish: accepted are at most 65,536 bytes") } else { Ok(bytes) }
        }
    }
}
