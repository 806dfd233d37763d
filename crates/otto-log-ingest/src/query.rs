//! Lists, reads, merges, filters and follows logs, without knowing a transport.

mod error;
mod head;
mod merge;
mod reading;
pub(crate) mod request;
mod search;
mod summary;
mod tail;
pub(crate) mod token;

use std::sync::Arc;
use std::time::Duration;

use otto_log_store::Store;
use otto_proto::v1::{ListLogTasksResponse, ListLogWorkersResponse, ReadLogsRequest};
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Semaphore;

pub use error::QueryError;
pub use reading::Reading;

use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::settings::Limits;

/// Whether a reading ends with what is stored, or goes on with what comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// What is stored now, then the end (`ReadLogs`).
    Read,
    /// As `Read`, then what comes, until the task is complete (`TailLogs`). An unknown task is waited for.
    Follow,
}

/// Answers questions about logs. Cheap to clone.
#[derive(Clone)]
pub struct Query {
    store: Store,
    registry: Arc<Registry>,
    readers: Gauge,
    admissions: Arc<Semaphore>,
    /// Costly searches at the same time.
    searches: Arc<Semaphore>,
    reader_bytes: usize,
    tail_linger: Duration,
}

impl Query {
    /// Reads from `store`; `registry` tells which runs have a session.
    #[must_use]
    pub fn new(store: Store, registry: Arc<Registry>, limits: &Limits, metrics: &Metrics) -> Self {
        Self {
            store,
            registry,
            readers: metrics.readers.clone(),
            admissions: Arc::new(Semaphore::new(limits.max_readers as usize)),
            searches: Arc::new(Semaphore::new(
                std::thread::available_parallelism().map_or(1, |count| count.get().div_ceil(2)),
            )),
            reader_bytes: limits.reader_bytes.as_usize(),
            tail_linger: limits.tail_linger,
        }
    }

    /// Tasks that have a log or an event, newest first. `page_size` 0: 100; at most 1,000. `page_token` is empty or the
    /// `next_page_token` of the page before.
    ///
    /// # Errors
    /// [`QueryError::Invalid`] for a page size or token that cannot be.
    pub async fn tasks(&self, page_size: u32, page_token: &str) -> Result<ListLogTasksResponse, QueryError> {
        let limit = match page_size {
            0 => 100,
            1..=1000 => page_size as usize,
            _ => {
                return Err(QueryError::Invalid {
                    field: "page_size",
                    description: format!("is {page_size}; accepted is 0 (100) to 1,000"),
                });
            }
        };
        let page = match page_token {
            "" => None,
            token => Some(token.parse().map_err(|_| QueryError::Invalid {
                field: "page_token",
                description: "is not one that this server gave".to_owned(),
            })?),
        };
        let found = self.store.tasks(page, limit).await?;
        Ok(ListLogTasksResponse {
            tasks: found.tasks.into_iter().map(summary::task).collect(),
            next_page_token: found.next.map(|next| next.to_string()).unwrap_or_default(),
        })
    }

    /// Workers of a task, each with its runs and what is missing of them, and the scaler's events.
    ///
    /// # Errors
    /// [`QueryError::NotFound`] if nothing of the task is stored.
    pub async fn workers(&self, task_id: &str) -> Result<ListLogWorkersResponse, QueryError> {
        if task_id.is_empty() {
            return Err(QueryError::Invalid { field: "task_id", description: "must not be empty".to_owned() });
        }
        if self.store.task(task_id).await?.is_none() {
            return Err(QueryError::NotFound(format!("task {task_id:?}")));
        }
        let workers = summary::workers(self.store.runs(task_id).await?, &self.registry);
        let mut events = Vec::new();
        let mut from = 0;
        loop {
            let more = self.store.events(task_id, from).await?;
            let Some((last, _)) = more.last() else { break };
            from = last + 1;
            events.extend(more.into_iter().map(|(_, event)| event));
        }
        Ok(ListLogWorkersResponse { workers, events })
    }

    /// Begins to read. The same request and mode as `ReadLogs` and `TailLogs`.
    ///
    /// # Errors
    /// [`QueryError::Invalid`] names the field; [`QueryError::NotFound`] for an unknown task, worker or run (with
    /// [`Mode::Read`] only); [`QueryError::Busy`] if too many readings are open.
    pub async fn read(&self, request: ReadLogsRequest, mode: Mode) -> Result<Reading, QueryError> {
        let wanted = request::Wanted::new(request)?;
        let permit =
            self.admissions.clone().try_acquire_owned().map_err(|_| {
                QueryError::Busy("too many readings are open (max-readers); try again later".to_owned())
            })?;
        let mut reading = Reading::new(self.clone(), wanted, mode, permit);
        reading.begin().await?;
        Ok(reading)
    }
}
