//! Lists, reads, merges, filters and follows logs, without knowing a transport.

mod error;

use std::sync::Arc;

use otto_log_store::Store;
use otto_proto::v1::{ListLogTasksResponse, ListLogWorkersResponse, ReadLogsRequest, ReadLogsResponse};

pub use error::QueryError;

use crate::registry::Registry;

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
}

impl Query {
    /// Reads from `store`; `registry` tells which runs have a session.
    #[must_use]
    pub fn new(store: Store, registry: Arc<Registry>) -> Self {
        Self { store, registry }
    }

    /// Tasks that have a log or an event, newest first. `page_size` 0: 100; at most 1,000. `page_token` is empty or the
    /// `next_page_token` of the page before.
    ///
    /// # Errors
    /// [`QueryError::Invalid`] for a page size or token that cannot be.
    pub async fn tasks(&self, _page_size: u32, _page_token: &str) -> Result<ListLogTasksResponse, QueryError> {
        Ok(ListLogTasksResponse::default())
    }

    /// Workers of a task, each with its runs and what is missing of them, and the scaler's events.
    ///
    /// # Errors
    /// [`QueryError::NotFound`] if nothing of the task is stored.
    pub async fn workers(&self, task_id: &str) -> Result<ListLogWorkersResponse, QueryError> {
        let _ = (&self.store, &self.registry);
        Err(QueryError::NotFound(format!("task {task_id:?}")))
    }

    /// Begins to read. The same request and mode as `ReadLogs` and `TailLogs`.
    ///
    /// # Errors
    /// [`QueryError::Invalid`] names the field; [`QueryError::NotFound`] for an unknown task (with [`Mode::Read`] only),
    /// worker or run.
    pub async fn read(&self, _request: ReadLogsRequest, _mode: Mode) -> Result<Reading, QueryError> {
        Ok(Reading {})
    }
}

/// Lines being read. Pulls from the store as fast as it is asked to, so a slow reader slows only itself.
pub struct Reading {}

impl Reading {
    /// The next part; `None` after the last one, which carries `status`. Each part with a `resume_token` can be the
    /// last a client saw: a new request with that token goes on right after it. Dropping the future loses nothing.
    ///
    /// # Errors
    /// If the store cannot be read; then the reading is over.
    pub async fn next(&mut self) -> Option<Result<ReadLogsResponse, QueryError>> {
        None
    }
}
