//! What really happened to a Pod, from its status. Pure.

use super::seen::SeenPod;
use crate::driver::State;
use crate::task::Millis;

/// Where a Pod is in its life.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Life {
    pub(super) state: State,
    /// When the job's container began, if it did.
    pub(super) started_at: Option<Millis>,
    /// The agent's container has ended: nothing more will be sent.
    pub(super) drained: bool,
}

/// Reads a Pod's status. `deleted`: the API server says that the Pod is gone, and this was its last state.
pub(super) fn classify(_pod: &SeenPod, _deleted: bool) -> Life {
    Life { state: State::Created { waiting: None }, started_at: None, drained: false }
}
