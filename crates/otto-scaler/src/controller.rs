//! The loop that owns the task records: applies events, plans, drives, records results.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

pub(crate) use crate::apply::Reason;
use crate::event::ScaleEvent;
use crate::task::Record;

/// What came of an event.
#[derive(Clone, Debug)]
pub(crate) enum Applied {
    /// The record was written, and the stream entry acknowledged with it.
    Changed(Change),
    /// The task had this target before, or has ended; the stream entry is acknowledged.
    AlreadyProcessed(Change),
    /// It can never be applied. Nothing was stored, nothing is acknowledged.
    Dead(Reason),
}

/// A task after an event.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) record: Arc<Record>,
    /// Changed: workers that this event starts or stops. Already processed: the task's workers.
    pub(crate) worker_names: Vec<String>,
}

/// Why nothing is known of an event's application.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// The task store is away. Submit it again: an event has its effect once.
    #[error("task store is not available: {message}")]
    Unavailable {
        /// Milliseconds.
        retry_after: u32,
        /// What the store said.
        message: String,
    },
    /// The scaler is ending.
    #[error("the scaler is stopping")]
    Stopping,
}

pub(crate) struct Command {
    event: ScaleEvent,
    reply: oneshot::Sender<Result<Applied, ApplyError>>,
}

/// Cheap handle to the controller.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
}

impl Handle {
    /// Hands an event over; events are applied in the order in which `submit` was called. The answer comes by the
    /// receiver (dropped without an answer: the scaler is stopping). Waits while too many are under way.
    pub(crate) async fn submit(
        &self,
        event: ScaleEvent,
    ) -> Result<oneshot::Receiver<Result<Applied, ApplyError>>, ApplyError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command { event, reply }).await.map_err(|_| ApplyError::Stopping)?;
        Ok(answer)
    }

    /// [`Handle::submit`] and its answer.
    pub(crate) async fn apply(&self, event: ScaleEvent) -> Result<Applied, ApplyError> {
        self.submit(event).await?.await.map_err(|_| ApplyError::Stopping)?
    }
}
