//! The ConfigMap that owns every worker's Pod. Whoever removes it removes them all, and nothing else does: no rollout of
//! the scaler touches it.

use std::sync::{Arc, Mutex, PoisonError};

use http::Request;
use http::header::{ACCEPT, CONTENT_TYPE};
use tokio::sync::Semaphore;

use super::cluster::{Cluster, get};
use super::errors::{Asked, Failure, explain};
use super::feed::{Event, Selection};
use super::names::{ANCHOR, MANAGED_BY_LABEL};
use super::seen::{SeenMetadata, SeenPod};
use crate::leadership::Leadership;

/// The anchor as it is known.
#[derive(Debug)]
pub(super) struct Anchor {
    uid: Mutex<Option<Arc<str>>>,
    /// One creation at a time.
    making: Semaphore,
}

/// A list of the anchor that is under way.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// It held the anchor.
    found: bool,
    /// What was known when it began: one that was made meanwhile may not be in it.
    before: Option<Arc<str>>,
}

impl Anchor {
    pub(super) fn new() -> Self {
        Self { uid: Mutex::default(), making: Semaphore::new(1) }
    }

    /// Selects it alone.
    pub(super) fn selection() -> Selection {
        Selection { resource: "configmaps", selector: format!("fieldSelector=metadata.name%3D{ANCHOR}") }
    }

    /// What a feed of [`Anchor::selection`] tells. One that is being deleted is none: what it owns will be collected.
    pub(super) fn follow(&self, event: Event, look: &mut Look) {
        match event {
            Event::Listing => *look = Look { found: false, before: self.known() },
            Event::Listed(object) | Event::Applied(object) => {
                look.found = true;
                self.set(alive(&object.metadata));
            }
            Event::Synced if !look.found && self.known() == look.before => self.set(None),
            Event::Synced | Event::Well => {}
            Event::Deleted(object) => {
                let mut uid = self.uid.lock().unwrap_or_else(PoisonError::into_inner);
                if uid.as_deref() == object.metadata.uid.as_deref() {
                    tracing::error!(
                        "the ConfigMap {ANCHOR} was deleted: the cluster deletes every worker's Pod now; a new one is made"
                    );
                    *uid = None;
                }
            }
            Event::Failing(why) => {
                tracing::warn!(error = why, "the ConfigMap {ANCHOR} cannot be followed; trying again")
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_known(&self) -> bool {
        self.known().is_some()
    }

    fn known(&self) -> Option<Arc<str>> {
        self.uid.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, new: Option<Arc<str>>) {
        *self.uid.lock().unwrap_or_else(PoisonError::into_inner) = new;
    }

    /// Its uid; makes it if there is none.
    ///
    /// # Errors
    /// Why it cannot be made, as a sentence, with the failure.
    pub(super) async fn uid(&self, cluster: &Cluster, leadership: &Leadership) -> Result<Arc<str>, (String, Failure)> {
        if let Some(uid) = self.known() {
            return Ok(uid);
        }
        // Never closed.
        let _one = self.making.acquire().await;
        if let Some(uid) = self.known() {
            return Ok(uid);
        }
        let (verb, failure) = match self.make(cluster, leadership).await {
            Ok(uid) => {
                self.set(Some(Arc::clone(&uid)));
                return Ok(uid);
            }
            Err(failed) => failed,
        };
        let asked = Asked { verb, resource: "configmaps", namespace: cluster.namespace(), url: cluster.url() };
        Err((format!("the ConfigMap {ANCHOR}, owner of every worker: {}", explain(&failure, asked)), failure))
    }

    async fn make(&self, cluster: &Cluster, leadership: &Leadership) -> Result<Arc<str>, (&'static str, Failure)> {
        let (label, value) = MANAGED_BY_LABEL;
        let body = serde_json::json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": ANCHOR,
                "labels": { label: value },
                "annotations": { "ottoscaler.io/purpose": "Owner of every worker's Pod: deleting it deletes them all." },
            },
        });
        let request = Request::post(cluster.path("configmaps"))
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json");
        let (verb, answer) = match cluster.write(request, body.to_string().into_bytes(), leadership).await {
            Ok(answer) => ("create", answer),
            Err(failure) if failure.code() == Some(409) => {
                let path = cluster.path(&format!("configmaps/{ANCHOR}"));
                ("get", cluster.read(get(&path)).await.map_err(|failure| ("get", failure))?)
            }
            Err(failure) => return Err(("create", failure)),
        };
        let object = serde_json::from_slice::<SeenPod>(&answer.body)
            .map_err(|error| (verb, Failure::Lost(format!("the answer cannot be read: {error}"))))?;
        alive(&object.metadata).ok_or_else(|| (verb, Failure::Unsent("it is being deleted".to_owned())))
    }
}

fn alive(metadata: &SeenMetadata) -> Option<Arc<str>> {
    metadata.uid.as_deref().filter(|_| metadata.deletion_timestamp.is_none()).map(Arc::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_from_before_its_creation_does_not_take_it_away() {
        let (anchor, mut look) = (Anchor::new(), Look::default());
        anchor.follow(Event::Listing, &mut look);
        anchor.set(Some("made".into()));
        anchor.follow(Event::Synced, &mut look);
        assert!(anchor.is_known());
        // The next one does not hold it either: it is gone.
        anchor.follow(Event::Listing, &mut look);
        anchor.follow(Event::Synced, &mut look);
        assert!(!anchor.is_known());
    }
}
