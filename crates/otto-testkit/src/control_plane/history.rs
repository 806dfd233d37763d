//! Every Pod that a namespace ever had.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{ListParams, PartialObjectMeta, WatchEvent, WatchParams};
use kube::core::ObjectMeta;
use tokio::task::JoinHandle;

/// Name → uids of the Pods that had it.
type Seen = BTreeMap<String, BTreeSet<String>>;

/// Sees every Pod of a namespace come and go, from its beginning on: an audit log does not tell of a creation whose client
/// was gone before the answer.
pub struct PodHistory {
    pods: Api<Pod>,
    seen: Arc<Mutex<Seen>>,
    following: JoinHandle<()>,
}

impl PodHistory {
    /// Begins now, with what is there.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub(super) async fn start(pods: Api<Pod>) -> anyhow::Result<Self> {
        let listed = pods.list_metadata(&ListParams::default()).await?;
        let version = listed.metadata.resource_version.context("a list without a version")?;
        let seen = Arc::new(Mutex::new(Seen::new()));
        note(&seen, listed.items);
        let following = tokio::spawn(follow(pods.clone(), version, Arc::clone(&seen)));
        Ok(Self { pods, seen, following })
    }

    /// All Pods so far: name → uids. More than one: the name was used again.
    ///
    /// # Errors
    /// When the API server does not answer, or the history has a hole.
    pub async fn all(&self) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
        // What exists now, though the watch may be a moment behind.
        note(&self.seen, self.pods.list_metadata(&ListParams::default()).await?.items);
        anyhow::ensure!(!self.following.is_finished(), "the watch of all Pods has failed");
        Ok(self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Drop for PodHistory {
    fn drop(&mut self) {
        self.following.abort();
    }
}

fn note(seen: &Mutex<Seen>, pods: impl IntoIterator<Item = PartialObjectMeta<Pod>>) {
    let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
    for pod in pods {
        let ObjectMeta { name, uid, .. } = pod.metadata;
        seen.entry(name.unwrap_or_default()).or_default().insert(uid.unwrap_or_default());
    }
}

/// Ends when it cannot go on from where it was.
async fn follow(pods: Api<Pod>, mut version: String, seen: Arc<Mutex<Seen>>) {
    while let Ok(events) = pods.watch_metadata(&WatchParams::default(), &version).await {
        let mut events = std::pin::pin!(events);
        while let Ok(Some(event)) = events.try_next().await {
            match event {
                WatchEvent::Added(pod) | WatchEvent::Modified(pod) | WatchEvent::Deleted(pod) => {
                    version = pod.metadata.resource_version.clone().unwrap_or(version);
                    note(&seen, [pod]);
                }
                WatchEvent::Bookmark(bookmark) => version = bookmark.metadata.resource_version,
                WatchEvent::Error(_) => return,
            }
        }
    }
}
