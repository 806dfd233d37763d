//! What others write: replicas that do not lead apply the events that come to them by gRPC, and tell the leader.

use std::sync::Arc;

use futures::FutureExt;

use super::keep::{Kept, within};
use super::store_health::LOAD_DEADLINE;
use super::{Controller, ENDED_HELD, RELOAD};
use crate::store::StoreError;
use crate::task::{Millis, Record};

/// Records that could not be read again are read after this.
const RELOAD_RETRY: Millis = 1_000;

impl Controller {
    /// The records of these tasks are read again before anything else is done to them.
    pub(super) fn changed(&mut self, task_ids: Vec<String>) {
        if !self.loaded.is_cancelled() {
            // They may be being read, and these ones have been.
            self.load_overtaken = true;
            return;
        }
        for task_id in task_ids {
            let task = self.tasks.entry(task_id.clone()).or_default();
            task.uncertain = true;
            task.overtaken = task.busy;
            self.dirty.insert(task_id);
        }
    }

    pub(super) fn reload(&mut self) {
        if !self.loaded.is_cancelled() {
            self.load_overtaken = true;
            return;
        }
        let store = Arc::clone(&self.store);
        self.keeping.push(async move { Kept::Reloaded(within(LOAD_DEADLINE, store.load(ENDED_HELD)).await) }.boxed());
    }

    pub(super) fn reloaded(&mut self, result: Result<Vec<Record>, StoreError>) {
        let records = match result {
            Ok(records) => records,
            Err(error) => {
                self.store_failed(&error);
                return self.chore_at(RELOAD, self.clock.now() + RELOAD_RETRY);
            }
        };
        for record in records {
            let held = self.tasks.get(&record.task_id);
            let newer = held.and_then(|task| task.stored.as_ref()).is_none_or(|held| held.version < record.version);
            // Not taken as it is: it may be older than a write that is under way.
            if newer {
                self.changed(vec![record.task_id]);
            }
        }
    }
}
