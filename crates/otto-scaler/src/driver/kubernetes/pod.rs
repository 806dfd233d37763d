//! The Pod of a worker.

use super::seen::SeenMetadata;
use crate::driver::{Launch, WorkerKey};
use crate::task::Outcome;

/// Makes Pods from launches.
#[derive(Debug)]
pub(super) struct PodMaker {}

impl PodMaker {
    /// The Pod as JSON, ready to be sent; `anchor_uid` is that of the ConfigMap which owns it.
    ///
    /// # Errors
    /// Why there can be no such Pod (an unknown resource class, …).
    pub(super) fn make(&self, _launch: &Launch, _anchor_uid: &str) -> Result<Vec<u8>, Outcome> {
        Ok(Vec::new())
    }
}

/// Which worker a Pod is, by its labels and annotations. `None`: not one of ours.
pub(super) fn key_of(_metadata: &SeenMetadata) -> Option<WorkerKey> {
    None
}
