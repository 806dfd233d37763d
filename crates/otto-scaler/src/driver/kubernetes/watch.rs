//! Follows the Pods of workers and the anchor, and tells every change.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::anchor::{Anchor, Look};
use super::feed::{Event, Feed, Selection, encoded};
use super::names::{MANAGED_BY_LABEL, NAME_LABEL};
use super::preflight::{self, Checked};
use super::{Shared, events};
use crate::driver::Observed;

/// A part that panicked is begun anew after this.
const AGAIN: Duration = Duration::from_secs(1);

/// The Pods of all workers.
pub(super) fn selection() -> Selection {
    let selector = [NAME_LABEL, MANAGED_BY_LABEL].map(|(label, value)| format!("{label}={value}")).join(",");
    Selection { resource: "pods", selector: format!("labelSelector={}", encoded(&selector)) }
}

async fn pods(shared: Arc<Shared>, stop: CancellationToken) {
    // Of the look at the cluster that is under way, or was last.
    let number = AtomicU64::new(0);
    let each = |event| match event {
        Event::Listing => shared.workers.listing(),
        Event::Listed(pod) | Event::Applied(pod) => shared.workers.applied(&pod),
        Event::Deleted(pod) => shared.workers.deleted(&pod),
        Event::Synced => {
            let workers = shared.workers.synced();
            let done = shared.synced.send_if_modified(|synced| {
                let before = synced.is_done();
                synced.seen = Some(number.load(Ordering::Relaxed));
                !before && synced.is_done()
            });
            if done {
                tracing::info!(workers, namespace = shared.cluster.namespace(), "the workers of the cluster are known");
            }
        }
        Event::Failing(why) => {
            tracing::error!(error = why, "the cluster's Pods cannot be followed; trying again");
            shared.synced.send_if_modified(|synced| {
                let first = !synced.is_done();
                if first {
                    synced.why = why;
                }
                first
            });
        }
        Event::Well => tracing::info!("the cluster's Pods are followed again"),
    };
    let mut feed = Feed::new(&shared.cluster, selection(), each);
    let mut wanted = shared.synced.subscribe();
    let follow = async {
        loop {
            let current = wanted.borrow_and_update().wanted;
            number.store(current, Ordering::Relaxed);
            let another = async { wanted.wait_for(|synced| synced.wanted != current).await.is_ok() };
            tokio::select! {
                biased;
                more = another => if !more { return },
                () = feed.follow() => {}
            }
        }
    };
    let _ = stop.run_until_cancelled(follow).await;
}

async fn anchor(shared: Arc<Shared>, stop: CancellationToken) {
    let mut look = Look::default();
    let each = |event| shared.anchor.follow(event, &mut look);
    Feed::new(&shared.cluster, Anchor::selection(), each).run(stop).await;
}

async fn template(shared: Arc<Shared>, stop: CancellationToken) {
    if *shared.checked.borrow() != Checked::Good {
        let _ = stop.run_until_cancelled(preflight::run(&shared)).await;
    }
}

async fn silent_ones(shared: Arc<Shared>, stop: CancellationToken) {
    let _ = stop.run_until_cancelled(events::run(&shared)).await;
}

#[derive(Clone, Copy, Debug)]
enum Part {
    Pods,
    Anchor,
    Template,
    SilentOnes,
}

/// Keeps all parts going until `stop`. One that panics begins again.
pub(super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut parts = JoinSet::new();
    let spawn = |parts: &mut JoinSet<Part>, part: Part, pause: Duration| {
        let (shared, stop) = (Arc::clone(&shared), stop.clone());
        let task = async move {
            tokio::time::sleep(pause).await;
            match part {
                Part::Pods => pods(shared, stop).await,
                Part::Anchor => anchor(shared, stop).await,
                Part::Template => template(shared, stop).await,
                Part::SilentOnes => silent_ones(shared, stop).await,
            }
            part
        };
        parts.spawn(task).id()
    };
    let mut ids: Vec<_> = [Part::Pods, Part::Anchor, Part::Template, Part::SilentOnes]
        .map(|part| (spawn(&mut parts, part, Duration::ZERO), part))
        .into();
    while let Some(ended) = parts.join_next().await {
        let Err(error) = ended else { continue };
        let Some((id, part)) = ids.iter_mut().find(|(id, _)| *id == error.id()) else { continue };
        if !stop.is_cancelled() {
            tracing::error!(%error, ?part, "a part of the Kubernetes driver failed; it begins again");
            *id = spawn(&mut parts, *part, AGAIN);
        }
    }
}

/// Tells every change until `stop`, or until nobody listens.
pub(super) async fn tell(shared: Arc<Shared>, changes: mpsc::Sender<Observed>, stop: CancellationToken) {
    let tell = async {
        loop {
            let (seen, gone) = shared.workers.next_news().await;
            for news in [seen, gone].into_iter().flatten() {
                if changes.send(news).await.is_err() {
                    return;
                }
            }
        }
    };
    let _ = stop.run_until_cancelled(tell).await;
}
