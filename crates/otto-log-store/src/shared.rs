//! What the writer, the sealer and the readers share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tokio::sync::{oneshot, watch};

use crate::catalogue::Catalogue;
use crate::directory::Directory;
use crate::error::{Health, StoreError};
use crate::index::Index;
use crate::options::Options;
use crate::queue::Queue;
use crate::types::SYNC_BOUNDS_SECONDS;
use crate::unreadable::Unreadable;
use crate::watch::Watchers;

pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) directory: Directory,
    pub(crate) queue: Queue,
    catalogue: RwLock<Catalogue>,
    pub(crate) index: Arc<Index>,
    pub(crate) runs: Watchers<u64>,
    pub(crate) tasks: Watchers<Arc<str>>,
    /// Changes of any task.
    pub(crate) all_tasks: Watchers<()>,
    pub(crate) health: watch::Sender<Health>,
    pub(crate) counters: Counters,
    pub(crate) unreadable: Unreadable,
    /// Why sealed segments cannot be taken into the index; empty: they can.
    pub(crate) index_blocked: Mutex<Option<Health>>,
    /// The store is being closed: nothing long is begun.
    pub(crate) closing: AtomicBool,
    sealer: Mutex<SealerInbox>,
    sealer_wake: Condvar,
}

/// What the sealer is told.
#[derive(Default)]
pub(crate) struct SealerInbox {
    /// Something may have changed: look.
    pub(crate) woken: bool,
    /// Retention is wanted now; answered when nothing is left to remove.
    pub(crate) retention: Vec<oneshot::Sender<Result<(), StoreError>>>,
    /// The writer has ended.
    pub(crate) closing: bool,
    /// The sealer itself has ended: nobody looks any more.
    pub(crate) ended: bool,
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) records: AtomicU64,
    pub(crate) lines: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) commits: AtomicU64,
    pub(crate) sync_nanos: AtomicU64,
    pub(crate) sync_counts: [AtomicU64; SYNC_BOUNDS_SECONDS.len() + 1],
    pub(crate) damaged: AtomicU64,
    pub(crate) expired_segments: AtomicU64,
    pub(crate) merged_segments: AtomicU64,
    pub(crate) sealed_segments: AtomicU64,
    pub(crate) sealed_bytes: AtomicU64,
    pub(crate) active_bytes: AtomicU64,
}

/// Adds to a counter.
pub(crate) fn add(counter: &AtomicU64, by: u64) {
    counter.fetch_add(by, Ordering::Relaxed);
}

/// Reads a counter.
pub(crate) fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Shared {
    pub(crate) fn new(options: Options, directory: Directory, catalogue: Catalogue) -> Self {
        Self {
            queue: Queue::new(options.queue_bytes, options.queue_records),
            options,
            directory,
            index: catalogue.index.clone(),
            catalogue: RwLock::new(catalogue),
            runs: Watchers::new(),
            tasks: Watchers::new(),
            all_tasks: Watchers::new(),
            health: watch::channel(Health::Ok).0,
            counters: Counters::default(),
            unreadable: Unreadable::default(),
            index_blocked: Mutex::default(),
            closing: AtomicBool::new(false),
            sealer: Mutex::default(),
            sealer_wake: Condvar::new(),
        }
    }

    pub(crate) fn catalogue(&self) -> RwLockReadGuard<'_, Catalogue> {
        self.catalogue.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn catalogue_mut(&self) -> RwLockWriteGuard<'_, Catalogue> {
        self.catalogue.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn sealer(&self) -> MutexGuard<'_, SealerInbox> {
        self.sealer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wake_sealer(&self, tell: impl FnOnce(&mut SealerInbox)) {
        let mut inbox = self.sealer();
        inbox.woken = true;
        tell(&mut inbox);
        self.sealer_wake.notify_all();
    }

    /// Waits until the sealer is woken, at most so long.
    pub(crate) fn wait_for_sealer<'a>(
        &self,
        inbox: MutexGuard<'a, SealerInbox>,
        timeout: std::time::Duration,
    ) -> MutexGuard<'a, SealerInbox> {
        self.sealer_wake.wait_timeout(inbox, timeout).unwrap_or_else(PoisonError::into_inner).0
    }

    pub(crate) fn set_health(&self, health: Health) {
        self.health.send_if_modified(|now| {
            // A failed store stays failed.
            let change = *now != health && !matches!(now, Health::Failed(_));
            if change {
                *now = health;
            }
            change
        });
    }

    pub(crate) fn set_index_blocked(&self, why: Option<Health>) {
        *self.index_blocked.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    pub(crate) fn index_blocked(&self) -> Option<Health> {
        self.index_blocked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why nothing can be written any more.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        match &*self.health.borrow() {
            Health::Failed(reason) => Some(StoreError::Failed(reason.clone())),
            _ => None,
        }
    }
}
