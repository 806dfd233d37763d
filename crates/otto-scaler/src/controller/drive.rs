//! The loop and the driver: what is observed into facts, plans into calls.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use otto_service::telemetry;
use tracing::Instrument;

use super::Controller;
use super::observe::count_lingering;
use super::task::Task;
use crate::driver::{DriverError, Launch, Observed, Removal, State, WorkerKey};
use crate::plan::admission::Standing;
use crate::plan::admission::door::Answer;
use crate::plan::{self, Attempt, Fact, Plan, Refused, Weight};
use crate::task::{Class, Millis, Outcome, Record, WorkerPhase};

/// Workers whose task nobody knows run so long before they are stopped.
const ORPHAN_GRACE: Millis = 10 * 60_000;
/// A call that panicked may have sent its request: milliseconds.
const PANICKED: u32 = 60_000;
/// What is removed has gone so long after its grace period, where its node lives.
const LEAVES_WITHIN: Millis = 30_000;
/// A failed stop is tried again after this.
const STOP_RETRY: Millis = 1_000;
/// What failed is tried again after so many times the first wait, at the longest.
const MOST_WAITS: Millis = 10;

/// What came of a call to the driver.
#[derive(Debug)]
pub(super) enum Driven {
    Created { key: WorkerKey, resource_class: String, result: Result<(), DriverError> },
    Stopped { key: WorkerKey, result: anyhow::Result<()> },
    Removed { key: WorkerKey, result: anyhow::Result<Removal> },
    Listed(anyhow::Result<Vec<Observed>>),
}

/// A call whose panic is a failure like any other.
pub(super) async fn caught<T>(call: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    AssertUnwindSafe(call).catch_unwind().await.unwrap_or_else(|_| Err(anyhow::anyhow!("the driver panicked")))
}

/// Twice as long with every failure, up to [`MOST_WAITS`] times the first wait.
fn more_and_more(first: Millis, failures: u32) -> Millis {
    first.saturating_mul((1 << failures.min(10)).min(MOST_WAITS))
}

impl Controller {
    /// Plans what something happened to, and starts what may start.
    pub(super) fn carry_out(&mut self) {
        loop {
            self.plan_dirty();
            while self.creating < self.options.creations {
                let (doors, now) = (&self.doors, self.clock.now());
                let Some((task_id, index)) = self.admission.next(|class| doors.admit(class, now)) else { break };
                self.create(&task_id, index);
            }
            // What was no longer as it had been planned is planned again.
            if self.dirty.is_empty() {
                break;
            }
        }
        self.look_at_doors();
        self.evict();
    }

    fn plan_dirty(&mut self) {
        while !self.dirty.is_empty() {
            for task_id in std::mem::take(&mut self.dirty) {
                if let Some(mut task) = self.tasks.remove(&task_id) {
                    self.plan(&task_id, &mut task);
                    if !(task.is_idle() && task.stored.is_none()) {
                        self.tasks.insert(task_id, task);
                    } else if let Some(wake) = task.wake {
                        self.timers.remove(&(wake, task_id));
                    }
                }
            }
        }
    }

    fn plan(&mut self, task_id: &str, task: &mut Task) {
        let now = self.clock.now();
        // A plan costs a look at every worker of the task: a large one gathers changes for a moment.
        let pause = i64::try_from(task.facts.workers.len() / 100).unwrap_or(i64::MAX);
        let due = task.planned.map_or(now, |planned| planned + pause);
        if due > now {
            let at = task.wake.map_or(due, |wake| wake.min(due));
            return self.wake_at(task_id, task, Some(at));
        }
        task.planned = (pause > 0).then_some(now);
        task.facts.complete = self.driver_listed.known;
        task.facts.unclear.retain(|_, until| *until > now);

        if task.uncertain && !task.busy {
            match &mut self.outage {
                Some(outage) => {
                    outage.stuck.insert(task_id.to_owned());
                }
                None if self.loaded.is_cancelled() => self.read(task_id, task, None),
                None => {}
            }
        }
        let deleting = task.deleting.is_some() && !task.uncertain;
        let Some(stored) = task.stored.clone() else {
            if let Some(reply) = task.deleting.take_if(|_| deleting && !task.busy) {
                task.deleting = self.delete(task_id, task, reply);
            }
            return self.plan_orphans(task_id, task, now);
        };
        task.facts.refused.retain(|(index, attempt), _| {
            let worker = stored.worker(*index).filter(|worker| worker.attempt == *attempt);
            worker.is_some_and(|worker| worker.phase == WorkerPhase::Queued)
        });
        self.note_door(task, &stored, now);
        self.tell_observed(task);
        let policy = &self.options.policy;
        let settled = plan::settle(&stored, &task.facts, policy, now);
        let mut plan = plan::actions(&stored, &task.facts, policy, now);
        if deleting && stored.phase.is_terminal() {
            let policy = plan::Policy { keep_ended: 0, ..policy.clone() };
            plan.remove = plan::actions(&stored, &task.facts, &policy, now).remove;
        }
        match settled {
            Some((record, weight)) => {
                let record = Arc::new(record);
                self.board.show(Arc::clone(&record));
                self.write_when_due(task_id, task, &record, weight, now);
            }
            None => task.soft_due = None,
        }
        if task.busy || task.uncertain {
            // What is decided right now may be something else.
            plan.ready.clear();
        }
        let wake = [plan.wake, task.soft_due].into_iter().flatten().min();
        self.wake_at(task_id, task, wake);
        self.act(task_id, task, Some(&stored), plan);
        if let Some(reply) = task.deleting.take_if(|_| deleting) {
            task.deleting = self.delete(task_id, task, reply);
        }
    }

    fn write_when_due(&mut self, task_id: &str, task: &mut Task, record: &Record, weight: Weight, now: Millis) {
        if task.busy || task.uncertain {
            return;
        }
        if weight == Weight::Soft {
            let due = *task.soft_due.get_or_insert_with(|| self.soft_writes.turn(now));
            if due > now {
                return;
            }
        }
        match &mut self.outage {
            Some(outage) => {
                outage.stuck.insert(task_id.to_owned());
                task.soft_due = None;
            }
            None => self.write_settled(task_id, task, record.clone()),
        }
    }

    fn plan_orphans(&mut self, task_id: &str, task: &mut Task, now: Millis) {
        let stop_live = match task.orphaned {
            Some((since, asked_again)) if !task.busy && !task.uncertain => {
                let due = since + ORPHAN_GRACE <= now;
                if due && !asked_again && task.facts.workers.values().any(|fact| fact.is_live()) {
                    // Before it is killed, the store is asked once more.
                    task.uncertain = true;
                    self.dirty.insert(task_id.to_owned());
                }
                due && asked_again
            }
            _ => false,
        };
        let mut plan = plan::orphans(&task.facts, stop_live, &self.options.policy, now);
        if task.busy || task.uncertain {
            // The store is being asked: a record may say otherwise.
            plan.remove.clear();
        }
        if let Some((since, false)) = task.orphaned {
            let due = since + ORPHAN_GRACE;
            plan.wake = Some(plan.wake.map_or(due, |wake| wake.min(due))).filter(|at| *at > now);
        }
        self.wake_at(task_id, task, plan.wake);
        self.act(task_id, task, None, plan);
    }

    /// Sets when a task is planned again, if nothing happens to it before.
    fn wake_at(&mut self, task_id: &str, task: &mut Task, at: Option<Millis>) {
        if task.wake == at {
            return;
        }
        if let Some(before) = std::mem::replace(&mut task.wake, at) {
            self.timers.remove(&(before, task_id.to_owned()));
        }
        if let Some(at) = at {
            self.timers.insert((at, task_id.to_owned()));
        }
    }

    fn act(&mut self, task_id: &str, task: &mut Task, stored: Option<&Record>, plan: Plan) {
        for attempt in plan.forget {
            self.forget(task_id, task, attempt);
        }
        for attempt in plan.stop {
            self.call(task_id, task, attempt, true);
        }
        for attempt in plan.remove {
            self.call(task_id, task, attempt, false);
        }
        let there = |attempt: &Attempt| task.facts.workers.get(attempt).is_some_and(|fact| fact.takes_place());
        let taken = task.facts.workers.values().filter(|fact| fact.takes_place()).count()
            + task.facts.creating.iter().filter(|attempt| !there(attempt)).count();
        let standing = stored.map_or_else(Standing::default, |record| Standing {
            repository: &record.spec.repository,
            resource_class: &record.spec.resource_class,
            priority: record.spec.priority,
            created_at: record.created_at,
        });
        self.admission.set(task_id, standing, plan.ready, taken);
    }

    fn forget(&mut self, task_id: &str, task: &mut Task, attempt: Attempt) {
        if let Some(mut fact) = task.facts.workers.remove(&attempt)
            && let Some(since) = fact.ended_since
        {
            count_lingering(&self.metrics, &mut fact.lingers, false);
            self.remains.remove(&(since, task_id.to_owned(), attempt.0, attempt.1));
        }
        task.told.remove(&attempt);
        task.asked.remove(&attempt.0);
    }

    fn call(&mut self, task_id: &str, task: &mut Task, attempt: Attempt, stop: bool) {
        let Some(fact) = task.facts.workers.get_mut(&attempt) else { return };
        fact.busy = true;
        let driver = Arc::clone(&self.driver);
        let key = WorkerKey { task_id: task_id.to_owned(), index: attempt.0, attempt: attempt.1 };
        self.driving.spawn(async move {
            if stop {
                let result = caught(async { driver.stop(&key).await }).await;
                Driven::Stopped { key, result }
            } else {
                let result = caught(async { driver.remove(&key).await }).await;
                Driven::Removed { key, result }
            }
        });
    }

    fn create(&mut self, task_id: &str, index: u32) {
        let Some(task) = self.tasks.get_mut(task_id) else { return };
        // What was ready when it was planned may be stopped, or be there, by now.
        let Some((stored, worker)) = task.may_start(index) else {
            self.dirty.insert(task_id.to_owned());
            return;
        };
        let key = WorkerKey { task_id: task_id.to_owned(), index, attempt: worker.attempt };
        task.facts.creating.insert((index, worker.attempt));
        // One that fails for a reason of its own says nothing about the others, and does not stand in their way.
        if task.facts.refused.get(&(index, worker.attempt)).is_none_or(|refused| refused.common) {
            self.doors.tries(&stored.spec.resource_class, &key);
        }
        self.creating += 1;
        let span = tracing::info_span!("start_worker", task_id, index, attempt = worker.attempt);
        if let Some(parent) = &stored.spec.traceparent {
            telemetry::parent_from(&span, parent);
        }
        let traceparent = telemetry::traceparent(&span).or_else(|| stored.spec.traceparent.clone());
        let driver = Arc::clone(&self.driver);
        let call = async move {
            let resource_class = stored.spec.resource_class.clone();
            let launch = Launch { key: key.clone(), spec: Arc::clone(&stored.spec), traceparent };
            let created = AssertUnwindSafe(async { driver.create(launch).await }).catch_unwind().await;
            let panicked = |_| {
                Err(DriverError::Busy {
                    class: Class::Infrastructure,
                    retry_after: 1_000,
                    message: "the driver panicked".to_owned(),
                    common: false,
                    unclear_for: PANICKED,
                })
            };
            Driven::Created { key, resource_class, result: created.unwrap_or_else(panicked) }
        };
        self.driving.spawn(call.instrument(span));
    }

    pub(super) fn driven(&mut self, driven: Driven) {
        match driven {
            Driven::Created { key, resource_class, result } => self.was_created(&key, &resource_class, result),
            Driven::Listed(result) => self.was_listed(result),
            Driven::Stopped { key, result } => {
                let now = self.clock.now();
                if let Err(error) = &result {
                    self.metrics.driver_errors.inc();
                    let (worker, error) = (self.driver.worker_name(&key), format!("{error:#}"));
                    tracing::warn!(worker, error, "a worker could not be told to stop; trying again");
                }
                if let Some(fact) = self.fact(&key) {
                    fact.busy = false;
                    fact.stop_sent = Some(now).filter(|_| result.is_ok()).or(fact.stop_sent);
                    fact.hold = result.is_err().then(|| now + more_and_more(STOP_RETRY, fact.stops_failed));
                    fact.stops_failed = if result.is_err() { fact.stops_failed.saturating_add(1) } else { 0 };
                }
                self.dirty.insert(key.task_id);
            }
            Driven::Removed { key, result } => self.was_removed(key, &result),
        }
    }

    fn was_removed(&mut self, key: WorkerKey, result: &anyhow::Result<Removal>) {
        let now = self.clock.now();
        if let Err(error) = result {
            let (worker, error) = (self.driver.worker_name(&key), format!("{error:#}"));
            tracing::debug!(worker, error, "an ended worker cannot be removed yet");
        }
        let attempt = (key.index, key.attempt);
        let task = self.tasks.get_mut(&key.task_id);
        if let Some(fact) = task.and_then(|task| task.facts.workers.get_mut(&attempt)) {
            fact.busy = false;
            fact.gone |= matches!(result, Ok(Removal::Gone));
            if matches!(result, Ok(Removal::Leaving)) && fact.lingers {
                // Its node is off: what it took there is of use to nobody, and it is no reason to start fewer elsewhere.
                let since = *fact.leaving_since.get_or_insert(now);
                if since + self.options.policy.stop_again + LEAVES_WITHIN <= now {
                    tracing::warn!(
                        worker = self.driver.worker_name(&key),
                        node = fact.node_name,
                        "what is left of a worker is to go and stays, its node is off, perhaps; it does not take a place any more"
                    );
                    count_lingering(&self.metrics, &mut fact.lingers, false);
                    fact.abandoned = true;
                    self.doors.room();
                }
            }
            // Its log may not be drained yet: asked less and less often.
            let age = now - fact.ended_since.filter(|since| *since > 0).unwrap_or(now);
            fact.hold = (!fact.gone).then_some(now + (age / 2).clamp(5_000, 300_000));
        }
        self.dirty.insert(key.task_id);
    }

    fn fact(&mut self, key: &WorkerKey) -> Option<&mut Fact> {
        let workers = &mut self.tasks.get_mut(&key.task_id)?.facts.workers;
        workers.get_mut(&(key.index, key.attempt)).map(|fact| &mut **fact)
    }

    fn was_created(&mut self, key: &WorkerKey, resource_class: &str, result: Result<(), DriverError>) {
        let now = self.clock.now();
        self.creating = self.creating.saturating_sub(1);
        let answer = match &result {
            Ok(()) => Answer::Passed,
            Err(DriverError::Busy { class, retry_after, message, common: true, .. }) => Answer::TurnedAway {
                why: Outcome { class: *class, exit_code: None, signal: None, message: message.clone() },
                wait: (*retry_after).into(),
            },
            Err(_) => Answer::Other,
        };
        self.door_answered(resource_class, key, answer);
        let Some(mut task) = self.tasks.remove(&key.task_id) else { return };
        let attempt = (key.index, key.attempt);
        task.facts.creating.remove(&attempt);
        let refused = task.facts.refused.remove(&attempt);
        task.facts.unclear.remove(&attempt);
        match result {
            Ok(()) => {
                let fresh = || Box::new(Fact::new(State::Created { waiting: None }, now));
                task.facts.workers.entry(attempt).or_insert_with(fresh);
            }
            Err(DriverError::Refused(outcome)) => {
                let mut fact = Fact::new(State::Ended { at: now, outcome }, now);
                fact.ended_since = Some(now);
                fact.gone = true;
                task.facts.workers.entry(attempt).or_insert(Box::new(fact));
            }
            Err(DriverError::Busy { class, retry_after, message, common, unclear_for }) => {
                // A full quota is a queue.
                if class != Class::Quota {
                    self.metrics.driver_errors.inc();
                }
                tracing::warn!(worker = self.driver.worker_name(key), message, "a worker cannot be created yet");
                if unclear_for > 0 {
                    task.facts.unclear.insert(attempt, now + Millis::from(unclear_for));
                }
                let why = Outcome { class, exit_code: None, signal: None, message };
                let before = refused.filter(|before| before.why.class == class);
                let (since, times) = before.map_or((now, 0), |before| (before.since, before.times));
                let wait = more_and_more(Millis::from(retry_after.max(10)), times);
                // Its turn is the door's to say, if it is one for all.
                let until = if common { now } else { now + wait };
                task.facts
                    .refused
                    .insert(attempt, Refused { until, since, why, common, times: times.saturating_add(1) });
            }
        }
        self.tasks.insert(key.task_id.clone(), task);
        self.dirty.insert(key.task_id.clone());
    }
}
