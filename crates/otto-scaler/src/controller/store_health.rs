//! Whether the task store answers, what is done about it while it does not, and reading all of it.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;

use super::keep::{DEADLINE, EXPIRE_EVERY, Kept, Outage, within};
use super::{ApplyError, Controller, ENDED_HELD, EXPIRE, LOAD, PROBE};
use crate::store::StoreError;
use crate::task::{Millis, Record};

/// Longest wait for all its records.
pub(super) const LOAD_DEADLINE: Duration = Duration::from_secs(120);
/// Between two looks at a store that is well.
const PROBE_EVERY: Millis = 5_000;
/// Results that are looked for again after the store was away were stored within this.
const LOSABLE: Millis = 60 * 60_000;

impl Controller {
    /// Notes that the store does not answer; the error for whoever asked.
    pub(super) fn store_failed(&mut self, error: &StoreError) -> ApplyError {
        self.metrics.store_errors.inc();
        let wait = self.store_backoff.next();
        let retry_after = u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(100);
        let message = error.to_string();
        if matches!(error, StoreError::Unavailable(_)) {
            match &mut self.outage {
                Some(outage) => {
                    outage.retry_after = retry_after;
                    outage.message.clone_from(&message);
                }
                None => {
                    tracing::error!(error = message, "the task store is away; running workers go on");
                    self.outage = Some(Outage { message: message.clone(), stuck: HashSet::new(), retry_after });
                }
            }
            self.health.send_if_modified(|health| std::mem::replace(&mut health.store, false));
            self.probe_at(self.clock.now() + Millis::from(retry_after));
        } else {
            tracing::error!(error = message, "the task store refused");
        }
        ApplyError::Unavailable { retry_after, message }
    }

    pub(super) fn store_well(&mut self) {
        self.store_backoff.reset();
        if let Some(outage) = self.outage.take() {
            tracing::info!(tasks = outage.stuck.len(), "the task store is back");
            self.dirty.extend(outage.stuck);
            // It may have come back with less than it had.
            let since = self.clock.now().saturating_sub(LOSABLE);
            for (task_id, task) in &mut self.tasks {
                if task.stored.as_ref().is_some_and(|record| record.ended_at.is_none_or(|at| at >= since)) {
                    task.uncertain = true;
                    self.dirty.insert(task_id.clone());
                }
            }
        }
        if self.loaded.is_cancelled() {
            self.health.send_if_modified(|health| !std::mem::replace(&mut health.store, true));
        }
        self.probe_at(self.clock.now() + PROBE_EVERY);
    }

    fn probe_at(&mut self, at: Millis) {
        if let Some(before) = self.probe_at.replace(at) {
            self.timers.remove(&(before, format!("{}{PROBE}", super::CHORE)));
        }
        self.chore_at(PROBE, at);
    }

    pub(super) fn probe(&mut self) {
        self.probe_at = None;
        let store = Arc::clone(&self.store);
        self.keeping.push(async move { Kept::Pinged(within(DEADLINE, store.ping()).await) }.boxed());
    }

    // ---- all records

    pub(super) fn load(&mut self) {
        let store = Arc::clone(&self.store);
        self.keeping.push(async move { Kept::Loaded(within(LOAD_DEADLINE, store.load(ENDED_HELD)).await) }.boxed());
    }

    pub(super) fn records_loaded(&mut self, result: Result<Vec<Record>, StoreError>) {
        let records = match result {
            Ok(records) => records,
            Err(error) => {
                self.metrics.store_errors.inc();
                self.load_failed = true;
                let wait = self.store_backoff.next();
                tracing::error!(%error, retry_in = ?wait, "the task store cannot be read; no event is taken until it can");
                self.chore_at(LOAD, self.clock.now() + i64::try_from(wait.as_millis()).unwrap_or(1_000));
                return;
            }
        };
        let now = self.clock.now();
        let latest = now.saturating_add(self.options.policy.backoff_max);
        let count = records.len();
        for mut record in records {
            // The clock may have been set back since they were written.
            for worker in &mut record.workers {
                worker.not_before = worker.not_before.map(|at| at.min(latest));
            }
            let record = Arc::new(record);
            let task_id = record.task_id.clone();
            if record.phase.is_terminal() {
                self.ended.insert((record.ended_at.unwrap_or_default(), task_id.clone()));
            } else {
                self.dirty.insert(task_id.clone());
            }
            self.board.show(Arc::clone(&record));
            self.tasks.entry(task_id).or_default().stored = Some(record);
        }
        tracing::info!(tasks = count, live = self.dirty.len(), "the task store has been read");
        self.loaded.cancel();
        self.store_well();
        if std::mem::take(&mut self.load_overtaken) {
            self.reload();
        }
        self.chore_at(EXPIRE, now + EXPIRE_EVERY);
        self.list();
    }
}
