use std::pin::Pin;
use std::task::{Context, Poll};

use otto_proto::v1::{WorkerEvent, WorkerMetadata};
use tokio::sync::{oneshot, watch};

use crate::{
    Cursor, From, Health, OpenError, Options, ReadError, Record, RunId, RunInfo, RunKey, RunState, Stats, StoreError,
    TaskInfo, TaskPage,
};

/// A cheap handle to an open store. The store is closed when the last handle is dropped or by [`Store::close`].
#[derive(Clone, Debug)]
pub struct Store {}

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
#[derive(Debug)]
pub struct TaskWatch {
    changes: watch::Receiver<u64>,
}

impl TaskWatch {
    /// Waits for a change since the watch was made or since this last returned; `false`: the store was closed.
    pub async fn changed(&mut self) -> bool {
        self.changes.changed().await.is_ok()
    }
}

impl Store {
    /// Opens the store, making it if the directory is empty or absent, and recovers what a crash left. Blocks: call it
    /// before the runtime serves, or in `spawn_blocking`.
    ///
    /// # Errors
    /// [`OpenError`] names the directory and what is wrong with it.
    pub fn open(_options: Options) -> Result<Self, OpenError> {
        Ok(Self {})
    }

    /// Finds a run, or makes it. With metadata given, that of a known run is replaced. What it answers is on disk.
    ///
    /// # Errors
    /// Like [`append`](Self::append); [`StoreError::Invalid`] for an empty or too long part of the key.
    pub async fn open_run(&self, _key: &RunKey, _metadata: Option<WorkerMetadata>) -> Result<RunState, StoreError> {
        Err(StoreError::Closed)
    }

    /// Queues a record, in the order of calls, and returns a future that resolves when it is on disk. Never blocks.
    /// Several appends of one run may be under way: if one is refused, those after it are refused with
    /// [`StoreError::Sequence`] (or with the same error). The block's header and checksum are verified here.
    pub fn append(&self, _run: RunId, _record: Record) -> Append {
        Append(Err(StoreError::Closed))
    }

    /// Waits until the queue has room (less than half of its bounds), or the store cannot write any more.
    pub async fn ready(&self) {}

    /// Stores events that are not stored yet (by task and event id), in this order; returns how many were new.
    ///
    /// # Errors
    /// Like [`append`](Self::append); [`StoreError::Invalid`] for an empty `task_id` or `event_id`. All or none is stored.
    pub async fn put_events(&self, _events: Vec<WorkerEvent>) -> Result<u32, StoreError> {
        Err(StoreError::Closed)
    }

    /// Hides a task with its runs and events at once and for good; their bytes are freed with their segments. A run of
    /// the same key opened later is a new one. Returns whether there was such a task.
    ///
    /// # Errors
    /// Like [`append`](Self::append).
    pub async fn delete_task(&self, _task_id: &str) -> Result<bool, StoreError> {
        Err(StoreError::Closed)
    }

    /// Tasks, newest (by first sight) first: at most `limit` (1 to 1,000), after `page` (`TaskPage::next`).
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn tasks(&self, _page: Option<u64>, _limit: usize) -> Result<TaskPage, ReadError> {
        Ok(TaskPage::default())
    }

    /// One task; `None` if nothing of it is stored.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn task(&self, _task_id: &str) -> Result<Option<TaskInfo>, ReadError> {
        Ok(None)
    }

    /// Runs of a task, in the order they were opened first. Empty if there is no such task.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn runs(&self, _task_id: &str) -> Result<Vec<RunInfo>, ReadError> {
        Ok(Vec::new())
    }

    /// One run; `None` if it is not known.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn run(&self, _run: RunId) -> Result<Option<RunInfo>, ReadError> {
        Ok(None)
    }

    /// Finds a run without making it.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn find_run(&self, _key: &RunKey) -> Result<Option<RunInfo>, ReadError> {
        Ok(None)
    }

    /// Events of a task, in the order they were stored, from number `from` (0: the first stored) on; at most 1,000 a
    /// call. Each with its number, so that a follower goes on at the last number + 1.
    ///
    /// # Errors
    /// If the index cannot be read.
    pub async fn events(&self, _task_id: &str, _from: u64) -> Result<Vec<(u64, WorkerEvent)>, ReadError> {
        Ok(Vec::new())
    }

    /// A reader of one run. Costs nothing until it is used.
    #[must_use]
    pub fn cursor(&self, run: RunId, _from: From) -> Cursor {
        Cursor::new(run)
    }

    /// Tells of new runs, new events, ends of runs and the deletion of a task (not of lines: those are a cursor's). Make
    /// the watch first, then read, then wait. The task need not exist yet.
    #[must_use]
    pub fn watch_task(&self, _task_id: &str) -> TaskWatch {
        TaskWatch { changes: watch::channel(0).1 }
    }

    /// As [`watch_task`](Self::watch_task), for all tasks.
    #[must_use]
    pub fn watch_tasks(&self) -> TaskWatch {
        TaskWatch { changes: watch::channel(0).1 }
    }

    /// Whether the store can do its work now.
    #[must_use]
    pub fn health(&self) -> Health {
        Health::Ok
    }

    /// Follows [`health`](Self::health).
    #[must_use]
    pub fn watch_health(&self) -> watch::Receiver<Health> {
        watch::channel(Health::Ok).1
    }

    /// Counters and sizes, for metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::default()
    }

    /// Removes what is too old or too much, now rather than within a minute.
    ///
    /// # Errors
    /// If the index cannot be written.
    pub async fn apply_retention(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Writes what was queued, ends the threads and frees the directory for the next process. Appends after it fail.
    pub async fn close(&self) {}
}
