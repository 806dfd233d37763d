//! What waits for the writer. Bounded by bytes and count; jobs of the store itself always fit.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use otto_proto::v1::{WorkerEvent, WorkerMetadata};
use tokio::sync::{Notify, oneshot};

use crate::error::StoreError;
use crate::index::Expiry;
use crate::types::{Record, RunId, RunKey, RunState};

/// Where an answer goes.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

/// Something for the writer to do.
pub(crate) enum Job {
    Append(RunId, Record, Reply<u64>),
    OpenRun(RunKey, Option<WorkerMetadata>, Reply<RunState>),
    PutEvents(Vec<WorkerEvent>, Reply<u32>),
    RemoveTask(String, Reply<bool>),
    /// Retention: hide what the segment holds. Runs that were last active before that time are not waited for.
    Expire(Expiry, i64, Reply<()>),
    /// Begin a new segment.
    Seal,
}

impl Job {
    /// Whether the job frees space, and so may use the reserve.
    pub(crate) fn frees_space(&self) -> bool {
        matches!(self, Self::RemoveTask(..) | Self::Expire(..))
    }

    pub(crate) fn refuse(self, error: StoreError) {
        // Whoever asked may have gone.
        match self {
            Self::Append(_, _, reply) => drop(reply.send(Err(error))),
            Self::OpenRun(_, _, reply) => drop(reply.send(Err(error))),
            Self::PutEvents(_, reply) => drop(reply.send(Err(error))),
            Self::RemoveTask(_, reply) => drop(reply.send(Err(error))),
            Self::Expire(_, _, reply) => drop(reply.send(Err(error))),
            Self::Seal => {}
        }
    }
}

struct Waiting {
    jobs: VecDeque<(Job, usize)>,
    bytes: usize,
    closed: bool,
}

pub(crate) struct Queue {
    waiting: Mutex<Waiting>,
    arrived: Condvar,
    room: Notify,
    max_bytes: usize,
    max_jobs: usize,
}

/// What the writer got.
pub(crate) enum Taken {
    Jobs(Vec<Job>),
    /// Nothing came in time.
    Idle,
    Closed,
}

impl Queue {
    pub(crate) fn new(max_bytes: usize, max_jobs: usize) -> Self {
        Self {
            waiting: Mutex::new(Waiting { jobs: VecDeque::new(), bytes: 0, closed: false }),
            arrived: Condvar::new(),
            room: Notify::new(),
            max_bytes,
            max_jobs,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a job of so many bytes, or says why not. `always`: whatever the bounds.
    pub(crate) fn push(&self, job: Job, bytes: usize, always: bool) -> Result<(), StoreError> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(StoreError::Closed);
        }
        let full = waiting.jobs.len() >= self.max_jobs || waiting.bytes + bytes > self.max_bytes;
        if full && !always && !waiting.jobs.is_empty() {
            return Err(StoreError::Busy);
        }
        waiting.bytes += bytes;
        waiting.jobs.push_back((job, bytes));
        let first = waiting.jobs.len() == 1;
        drop(waiting);
        if first {
            self.arrived.notify_one();
        }
        Ok(())
    }

    /// Takes all that waits, in order, up to so many bytes (one job at least). Waits for the first one.
    pub(crate) fn take(&self, bytes: usize, timeout: Option<Duration>) -> Taken {
        let mut waiting = self.lock();
        while waiting.jobs.is_empty() {
            if waiting.closed {
                return Taken::Closed;
            }
            waiting = match timeout {
                None => self.arrived.wait(waiting).unwrap_or_else(PoisonError::into_inner),
                Some(timeout) => {
                    let (guard, result) =
                        self.arrived.wait_timeout(waiting, timeout).unwrap_or_else(PoisonError::into_inner);
                    if result.timed_out() && guard.jobs.is_empty() && !guard.closed {
                        return Taken::Idle;
                    }
                    guard
                }
            };
        }
        let mut jobs = Vec::with_capacity(waiting.jobs.len().min(4096));
        let mut taken = 0;
        while let Some((job, size)) = waiting.jobs.pop_front() {
            if !jobs.is_empty() && taken + size > bytes {
                waiting.jobs.push_front((job, size));
                break;
            }
            taken += size;
            waiting.bytes -= size;
            jobs.push(job);
        }
        let room = self.has_room(&waiting);
        drop(waiting);
        if room {
            self.room.notify_waiters();
        }
        Taken::Jobs(jobs)
    }

    fn has_room(&self, waiting: &Waiting) -> bool {
        waiting.closed || (waiting.jobs.len() <= self.max_jobs / 2 && waiting.bytes <= self.max_bytes / 2)
    }

    /// Waits for room.
    pub(crate) async fn ready(&self) {
        loop {
            let notified = self.room.notified();
            if self.has_room(&self.lock()) {
                return;
            }
            notified.await;
        }
    }

    /// Records and bytes that wait.
    pub(crate) fn size(&self) -> (u64, u64) {
        let waiting = self.lock();
        (waiting.jobs.len() as u64, waiting.bytes as u64)
    }

    /// Nothing is taken any more; what waits is still written.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.arrived.notify_all();
        self.room.notify_waiters();
    }
}
