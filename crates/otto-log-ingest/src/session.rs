//! What happens to a stream of lines: numbering, duplicates, holes, takeover, acknowledgements.
//!
//! A session is one task that owns one input stream. It turns what it reads into records, queues them in the store
//! without waiting for the disk, and tells an [`outbox`] what became of them; the response stream empties the outbox at
//! its own speed. Acknowledgements that were not fetched yet merge into one range, so a client that reads late or never
//! costs no memory and never stops the lines.
//!
//! Order of a session's parts, by what they know:
//! [`numbering`] (pure) → [`assembler`] (pure: entries to records) → [`writer`] (records to the store and back) →
//! [`entries`], [`batches`] (the loops).

pub(crate) mod assembler;
pub(crate) mod batches;
pub(crate) mod end;
pub(crate) mod entries;
pub(crate) mod entry;
pub(crate) mod memory;
pub(crate) mod numbering;
mod opening;
pub(crate) mod outbox;
pub(crate) mod registration;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

use std::sync::Arc;

use otto_log_store::{RunKey, Store};
use otto_proto::v1::LoggingConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub(crate) use end::End;

use crate::metrics::Metrics;
use crate::registry::Registry;
use crate::settings::Limits;

/// What sessions share. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) registry: Arc<Registry>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) metrics: Arc<Metrics>,
    /// For what the store cannot take yet.
    pub(crate) memory: memory::Memory,
    /// Cancelled when the program drains.
    pub(crate) drain: CancellationToken,
    /// Owns the sessions' tasks.
    pub(crate) tasks: TaskTracker,
}

impl Context {
    /// What a worker is told to keep to.
    pub(crate) fn logging_config(&self) -> LoggingConfig {
        LoggingConfig {
            rate_limit: 0,
            buffer_size: i32::try_from(self.limits.client_buffer_lines).unwrap_or(i32::MAX),
            max_message_size: i32::try_from(self.limits.max_line_bytes.as_u64()).unwrap_or(i32::MAX),
            include_metadata: true,
        }
    }
}

/// Names the run in the session's span.
pub(crate) trait NameSpan {
    fn name_span(&self);
}

impl NameSpan for RunKey {
    fn name_span(&self) {
        let span = tracing::Span::current();
        span.record("task_id", self.task_id.as_str());
        span.record("worker_id", self.worker_id.as_str());
        span.record("run_id", self.run_id.as_str());
    }
}
