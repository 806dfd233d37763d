//! Where task records live: Redis, or a file in the data directory.

use futures::future::BoxFuture;

use crate::task::{EntryId, Millis, Record};

pub(crate) mod embedded;
pub(crate) mod redis;
#[cfg(test)]
pub(crate) mod tests_of_every_store;

/// Why the store did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    /// Somebody else wrote the record since it was read: read it again and decide again.
    #[error("record of task `{0}` was changed by another writer")]
    Conflict(String),
    /// Not reachable, or answers errors; try again with backoff.
    #[error("task store is not available: {0}")]
    Unavailable(String),
    /// Stored bytes that cannot be read.
    #[error("record of task `{task_id}` cannot be read: {reason}")]
    Corrupt {
        /// Whose record.
        task_id: String,
        /// What was wrong.
        reason: String,
    },
}

/// Durable task records. Every write compares the version that was read.
pub(crate) trait TaskStore: Send + Sync + 'static {
    /// All records that have not ended, and of those that have the `ended` ones that ended last. (Millions of ended
    /// records may be stored: they are never all in memory.)
    fn load(&self, ended: usize) -> BoxFuture<'_, Result<Vec<Record>, StoreError>>;

    /// Answers when the store can be read and written.
    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// One record.
    fn get<'a>(&'a self, task_id: &'a str) -> BoxFuture<'a, Result<Option<Record>, StoreError>>;

    /// Writes `record` if the stored version is `record.version - 1` (0: no record is stored). With `applied`, the stream
    /// entry is marked as applied and acknowledged in the same atomic step.
    ///
    /// Many are in flight at once, polled in the order of their events; of one task never more than one.
    fn put<'a>(&'a self, record: &'a Record, applied: Option<EntryId>) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Acknowledges a stream entry that changes no record (already processed).
    fn acknowledge<'a>(&'a self, entry: EntryId) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Removes a record if its version is still `version`.
    fn remove<'a>(&'a self, task_id: &'a str, version: u64) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Removes at most `limit` of the records whose `ended_at` is before `before`; returns how many. Called again until it
    /// is less than `limit`. A store that lets records expire by itself (with the retention it was given) returns 0.
    fn expire(&self, before: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>>;
}
