//! A worker as the driver holds it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::Notify;

use super::launch::LaunchFile;
use super::run_dir::RunDir;
use crate::driver::{Observed, State, WorkerKey};
use crate::task::Millis;

/// Shared by the driver's calls, the follower, and the watch of its run directory.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) name: String,
    pub(super) key: WorkerKey,
    pub(super) dir: RunDir,
    /// `None`: it is being created, and may turn out impossible.
    seen: Mutex<Option<Seen>>,
    /// By which processes of its job are known; set once its launch is.
    pub(super) mark: OnceLock<String>,
    /// It shall stop.
    stop: AtomicBool,
    woken: Notify,
}

/// What is known of it.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) state: State,
    pub(super) created_at: Millis,
    pub(super) started_at: Option<Millis>,
    /// Ended, no agent is left, and its output was delivered or given up: nothing happens here any more.
    pub(super) finished: bool,
}

impl Worker {
    pub(super) fn new(name: String, key: WorkerKey, dir: RunDir, seen: Option<Seen>) -> Self {
        let (mark, stop, woken) = (OnceLock::new(), AtomicBool::new(false), Notify::new());
        Self { name, key, dir, seen: Mutex::new(seen), mark, stop, woken }
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Option<Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the core is told. `None`: it is being created.
    pub(super) fn observed(&self) -> Option<Observed> {
        let seen = self.seen().clone()?;
        Some(Observed {
            key: self.key.clone(),
            state: seen.state,
            created_at: seen.created_at,
            started_at: seen.started_at,
            node_name: String::new(),
            // A process that sends the rest of a log takes nothing to speak of.
            lingers: false,
            trouble: None,
        })
    }

    pub(super) fn set_mark(&self, launch: &LaunchFile) {
        if let Some(mark) = launch.mark() {
            // The same, if it was set before.
            let _ = self.mark.set(mark);
        }
    }

    pub(super) fn request_stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        self.wake();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Makes the follower look again.
    pub(super) fn wake(&self) {
        self.woken.notify_one();
    }

    /// Until [`Worker::wake`], which is remembered if nobody waits.
    pub(super) async fn woken(&self) {
        self.woken.notified().await;
    }
}
