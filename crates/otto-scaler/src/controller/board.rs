//! What readers see: every task the scaler holds, as it is now. Written by the controller, read by gRPC without asking it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use crate::metrics::{Metrics, StateLabel};
use crate::task::{Millis, Record, WorkerPhase};

/// Tasks by age: the time they were created, then their id.
pub(crate) type Position = (Millis, String);

#[derive(Debug, Default)]
struct Tasks {
    by_id: HashMap<String, Arc<Record>>,
    by_age: BTreeSet<Position>,
    live: BTreeSet<Position>,
}

impl Tasks {
    fn move_to(&mut self, before: Option<&Record>, record: &Record) {
        if let Some(before) = before {
            let position = (before.created_at, before.task_id.clone());
            self.by_age.remove(&position);
            self.live.remove(&position);
        }
        let position = (record.created_at, record.task_id.clone());
        if !record.phase.is_terminal() {
            self.live.insert(position.clone());
        }
        self.by_age.insert(position);
    }
}

/// Locks are held for the time of a look-up or of one page.
#[derive(Debug)]
pub(crate) struct Board {
    tasks: RwLock<Tasks>,
    metrics: Metrics,
}

impl Board {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { tasks: RwLock::default(), metrics }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Tasks> {
        self.tasks.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Shows a task as it is now.
    pub(crate) fn show(&self, record: Arc<Record>) {
        let mut tasks = self.tasks.write().unwrap_or_else(PoisonError::into_inner);
        let shown = Arc::clone(&record);
        let before = match tasks.by_id.get_mut(&record.task_id) {
            Some(before) => Some(std::mem::replace(before, shown)),
            None => tasks.by_id.insert(record.task_id.clone(), shown),
        };
        let place = |record: &Record| (record.created_at, !record.phase.is_terminal());
        if before.as_deref().map(place) != Some(place(&record)) {
            tasks.move_to(before.as_deref(), &record);
        }
        self.metrics.live_tasks.set(i64::try_from(tasks.live.len()).unwrap_or(i64::MAX));
        drop(tasks);
        self.count(before.as_deref(), Some(&record));
    }

    /// Shows a task no longer.
    pub(super) fn hide(&self, task_id: &str) {
        let mut tasks = self.tasks.write().unwrap_or_else(PoisonError::into_inner);
        let Some(before) = tasks.by_id.remove(task_id) else { return };
        let position = (before.created_at, before.task_id.clone());
        tasks.by_age.remove(&position);
        tasks.live.remove(&position);
        self.metrics.live_tasks.set(i64::try_from(tasks.live.len()).unwrap_or(i64::MAX));
        drop(tasks);
        self.count(Some(&before), None);
    }

    fn count(&self, before: Option<&Record>, after: Option<&Record>) {
        let mut change = [0_i64; 4];
        for (record, step) in [(before, -1), (after, 1)] {
            for worker in record.into_iter().flat_map(|record| &record.workers) {
                let state = match worker.phase {
                    WorkerPhase::Queued => 0,
                    WorkerPhase::Created => 1,
                    WorkerPhase::Running => 2,
                    WorkerPhase::Stopping => 3,
                    WorkerPhase::Succeeded | WorkerPhase::Failed | WorkerPhase::Stopped => continue,
                };
                change[state] += step;
            }
        }
        for (state, change) in ["queued", "created", "running", "stopping"].into_iter().zip(change) {
            if change != 0 {
                self.metrics.workers.get_or_create(&StateLabel { state }).inc_by(change);
            }
        }
    }

    pub(crate) fn get(&self, task_id: &str) -> Option<Arc<Record>> {
        self.read().by_id.get(task_id).cloned()
    }

    /// At most `limit` tasks that `wanted` accepts, newest first, older than `before`.
    pub(crate) fn page(
        &self,
        before: Option<&Position>,
        limit: usize,
        wanted: impl Fn(&Record) -> bool,
    ) -> Vec<Arc<Record>> {
        let tasks = self.read();
        let all = (Millis::MAX, String::new());
        let range = tasks.by_age.range(..before.unwrap_or(&all)).rev();
        range.filter_map(|(_, id)| tasks.by_id.get(id)).filter(|record| wanted(record)).take(limit).cloned().collect()
    }

    /// All tasks that have not ended, oldest first.
    pub(crate) fn live(&self) -> Vec<Arc<Record>> {
        let tasks = self.read();
        tasks.live.iter().filter_map(|(_, id)| tasks.by_id.get(id)).cloned().collect()
    }
}
