//! What the driver shows of its workers, into facts.

use std::collections::HashSet;
use std::sync::Arc;

use super::drive::{Driven, caught};
use super::{Controller, LIST};
use crate::driver::{Observed, State, WorkerKey};
use crate::metrics::Metrics;
use crate::plan::Fact;
use crate::task::{Class, Millis, Outcome};

/// Between two looks at everything the driver has, to find what vanished without a word.
const LIST_EVERY: Millis = 60_000;

/// What is known of the driver's list.
#[derive(Debug, Default)]
pub(super) struct Listed {
    /// It was read once.
    pub(super) known: bool,
    running: bool,
    failures: u32,
    /// Gone since the list under way began: an older look must not bring them back.
    gone: HashSet<WorkerKey>,
    /// Live before the list under way began.
    live: HashSet<WorkerKey>,
    /// Live ones that were not in the last list.
    missing: HashSet<WorkerKey>,
}

pub(super) fn count_lingering(metrics: &Metrics, before: &mut bool, now: bool) {
    let before = std::mem::replace(before, now);
    metrics.lingering.inc_by(i64::from(now) - i64::from(before));
}

fn rank(state: &State) -> u8 {
    match state {
        State::Created { .. } => 0,
        State::Running => 1,
        State::Ended { .. } => 2,
        State::Gone => 3,
    }
}

impl Controller {
    pub(super) fn list(&mut self) {
        if std::mem::replace(&mut self.driver_listed.running, true) {
            return;
        }
        self.driver_listed.gone.clear();
        let live = self.tasks.iter().flat_map(|(task_id, task)| {
            let live = task.facts.workers.iter().filter(|(_, fact)| fact.is_live());
            live.map(|((index, attempt), _)| WorkerKey { task_id: task_id.clone(), index: *index, attempt: *attempt })
        });
        self.driver_listed.live = live.collect();
        let driver = Arc::clone(&self.driver);
        self.driving.spawn(async move { Driven::Listed(caught(async { driver.list().await }).await) });
    }

    pub(super) fn was_listed(&mut self, result: anyhow::Result<Vec<Observed>>) {
        self.driver_listed.running = false;
        let now = self.clock.now();
        let workers = match result {
            Ok(workers) => workers,
            Err(error) => {
                self.metrics.driver_errors.inc();
                self.driver_listed.failures = self.driver_listed.failures.saturating_add(1);
                let wait = (100_i64 << self.driver_listed.failures.min(7)).min(10_000);
                let error = format!("{error:#}");
                tracing::error!(error, driver = self.driver.name(), "the driver cannot list its workers; trying again");
                return self.chore_at(LIST, now + wait);
            }
        };
        self.driver_listed.failures = 0;
        let mut missing = std::mem::take(&mut self.driver_listed.live);
        let gone = std::mem::take(&mut self.driver_listed.gone);
        for worker in workers {
            missing.remove(&worker.key);
            if !gone.contains(&worker.key) {
                self.observed(worker);
            }
        }
        // Missing twice: it vanished. Once may be a look from before it was made.
        let before = std::mem::replace(&mut self.driver_listed.missing, missing.clone());
        for key in missing.intersection(&before) {
            self.vanished(key);
        }
        if !std::mem::replace(&mut self.driver_listed.known, true) {
            self.health.send_if_modified(|health| !std::mem::replace(&mut health.driver, true));
            let all = self.tasks.iter().filter(|(_, task)| !task.is_done()).map(|(task_id, _)| task_id.clone());
            self.dirty.extend(all.collect::<Vec<_>>());
        }
        self.chore_at(LIST, now + LIST_EVERY);
    }

    /// Notes what the driver saw. A look never takes a worker back in its life: looks may be older than changes.
    pub(super) fn observed(&mut self, seen: Observed) {
        let now = self.clock.now();
        let Observed { key, state, created_at, started_at, node_name, lingers, trouble } = seen;
        if state == State::Gone {
            if self.driver_listed.running {
                self.driver_listed.gone.insert(key.clone());
            }
            return self.vanished(&key);
        }
        let task = self.tasks.entry(key.task_id.clone()).or_default();
        if task.stored.is_none() && !task.busy && task.orphaned.is_none() {
            task.uncertain = true;
        }
        let attempt = (key.index, key.attempt);
        let fact = task
            .facts
            .workers
            .entry(attempt)
            .or_insert_with(|| Box::new(Fact::new(State::Created { waiting: None }, created_at)));
        if rank(&state) < rank(&fact.state) {
            return;
        }
        fact.created_at = created_at;
        fact.started_at = started_at.or(fact.started_at);
        fact.node_name = node_name;
        let took_place = fact.takes_place();
        count_lingering(&self.metrics, &mut fact.lingers, lingers && !fact.abandoned);
        if state == State::Running {
            fact.running_since.get_or_insert(now);
        }
        if matches!(state, State::Ended { .. }) && fact.ended_since.is_none() {
            fact.ended_since = Some(now);
            self.remains.insert((now, key.task_id.clone(), key.index, key.attempt));
        }
        if !matches!(fact.state, State::Ended { .. }) {
            fact.state = state;
        }
        fact.waits(now);
        fact.troubles(trouble, now);
        if took_place && !fact.takes_place() {
            self.doors.room();
        }
        self.dirty.insert(key.task_id);
        self.shorten_remains();
    }

    /// Nothing is left of a worker.
    pub(super) fn vanished(&mut self, key: &WorkerKey) {
        let now = self.clock.now();
        let Some(task) = self.tasks.get_mut(&key.task_id) else { return };
        let Some(fact) = task.facts.workers.get_mut(&(key.index, key.attempt)) else { return };
        self.doors.room();
        count_lingering(&self.metrics, &mut fact.lingers, false);
        fact.gone = true;
        if fact.is_live() {
            fact.state = State::Ended {
                at: now,
                outcome: Outcome {
                    class: Class::NodeLost,
                    exit_code: None,
                    signal: None,
                    message: "the worker disappeared; nobody knows how its job ended".to_owned(),
                },
            };
            fact.ended_since = Some(now);
        }
        self.dirty.insert(key.task_id.clone());
    }
}
