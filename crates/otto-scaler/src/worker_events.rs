//! What happens to workers, told to the log server, to the Redis stream `otto:worker:events`, and to gRPC watchers.
//! Nothing of this delays starting a worker.

use std::sync::Arc;

use futures::future::BoxFuture;
use otto_proto::v1::WorkerEvent;

use crate::task::EntryId;

/// A place that takes worker events, in order, at least once (readers tell repeats by `event_id`).
pub(crate) trait Sink: Send + Sync + 'static {
    /// For logs and metrics: `log_server`, `redis`.
    fn name(&self) -> &'static str;

    /// Takes all of `events` (at most 1,000) or fails; after a failure the same ones come again, with backoff.
    fn publish<'a>(&'a self, events: &'a [Arc<WorkerEvent>]) -> BoxFuture<'a, anyhow::Result<()>>;
}

/// Cheap handle; never blocks.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {}

impl Publisher {
    /// An entry of the stream was deleted or trimmed before it could be applied. `task_id` if it is known.
    pub(crate) fn event_lost(&self, _entry: EntryId, _task_id: Option<&str>) {}
}
