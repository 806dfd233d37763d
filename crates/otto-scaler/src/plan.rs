//! The rules of a task's life. Pure: from a task's record, what is observed of its workers, and the time, to the next
//! record and the actions. Nothing here keeps state, so a plan can be made again at any moment, after any crash, and
//! comes to the same end.
//!
//! [`settle`] brings a record up to the facts; what it changes must be stored before [`actions`] of it are carried out.
//! [`admission`] then says which of the workers that are ready may start within the limits, and in which order.
//!
//! Rules, by failure class:
//! - the job's own failures (`exited`, `out_of_memory`, `deadline`, `agent_lost`) count against `max_attempts`. An agent
//!   that died is among them, because its job had begun and running it again might do its work twice;
//! - failures of the place it ran on (`evicted`, `preempted`, `node_lost`, `volume`, `infrastructure`, `quota`,
//!   `unschedulable`, `stopped` by somebody else) have a bound of their own; what fails at once as `infrastructure`, before
//!   its job begins, is tried again as long as it might have waited instead;
//! - what would fail again (`image`, `config`, `admission`) is not tried again.
//!
//! A worker whose job cannot begin is stopped when [`patience`] is over, at once if there is no hope, and has failed because
//! of what it waited for.
//!
//! A worker that failed for good fails its task, when the others have come to their own end.

use std::collections::BTreeSet;

use crate::driver::State;
use crate::task::{Class, Millis, Outcome, Phase, Record, Worker, WorkerPhase};

pub(crate) mod admission;
mod facts;
pub(crate) mod patience;
pub(crate) mod trouble;

pub(crate) use facts::{Attempt, Fact, Facts, Refused};
use patience::Patience;

/// What the configuration says about retries and clean-up. Times in milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    /// Attempts beyond the first after failures of the infrastructure, per worker.
    pub(crate) infrastructure_retries: u32,
    /// Wait before the second attempt; doubles with every further one.
    pub(crate) backoff_min: Millis,
    pub(crate) backoff_max: Millis,
    /// What is left of an ended worker stays so long after its result is stored: a second witness that it ran.
    pub(crate) keep_ended: Millis,
    /// The agent ends a job at its deadline by itself; this much later the scaler steps in.
    pub(crate) overdue: Millis,
    /// A stop without effect is sent again after this.
    pub(crate) stop_again: Millis,
    pub(crate) patience: Patience,
}

/// How much a settled record differs from the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weight {
    /// What a look at the driver would tell again after a crash: stored when there is time.
    Soft,
    /// A result, a new attempt, an end: stored before anything is done about it.
    Hard,
}

/// Brings a record up to the facts. `None`: it is. The version stays; whoever stores it raises it.
pub(crate) fn settle(stored: &Record, facts: &Facts, policy: &Policy, now: Millis) -> Option<(Record, Weight)> {
    if stored.phase.is_terminal() {
        return None;
    }
    let mut record = stored.clone();
    for position in 0..record.workers.len() {
        settle_worker(&mut record, position, facts, policy, now);
    }
    match record.phase {
        Phase::Live => {
            record.fill();
        }
        Phase::Cancelling | Phase::Succeeded | Phase::Failed | Phase::Cancelled => {}
    }
    finish(&mut record, now);
    if record == *stored {
        return None;
    }
    let weight = weight(stored, &record);
    Some((record, weight))
}

fn weight(stored: &Record, record: &Record) -> Weight {
    let hard = |(before, after): (&Worker, &Worker)| {
        before.attempt != after.attempt
            || (before.phase != after.phase && !matches!(after.phase, WorkerPhase::Created | WorkerPhase::Running))
    };
    let same = stored.phase == record.phase && stored.workers.len() == record.workers.len();
    if same && !stored.workers.iter().zip(&record.workers).any(hard) { Weight::Soft } else { Weight::Hard }
}

fn settle_worker(record: &mut Record, position: usize, facts: &Facts, policy: &Policy, now: Millis) {
    let cancelling = record.phase == Phase::Cancelling;
    let spec_attempts = record.spec.max_attempts;
    let timeout = Millis::from(record.spec.timeout_seconds) * 1000;
    let seed = seed(&record.task_id);
    let worker = &mut record.workers[position];
    if !worker.phase.is_live() {
        return;
    }
    // A store that lost its last writes knows less than the driver: an attempt that exists was decided on.
    if let Some((attempt, _)) = facts.newest(worker.index)
        && attempt > worker.attempt
    {
        let stopping = worker.phase == WorkerPhase::Stopping;
        worker.again(None);
        worker.attempt = attempt;
        worker.phase = if stopping { WorkerPhase::Stopping } else { WorkerPhase::Created };
    }
    if cancelling && worker.phase != WorkerPhase::Stopping {
        worker.phase = WorkerPhase::Stopping;
    }
    let key = (worker.index, worker.attempt);
    let Some(fact) = facts.workers.get(&key) else {
        // Not there. Before the first list, and while it is being created, that means nothing.
        if facts.complete && !facts.creating.contains(&key) {
            worker.trouble = None;
            let refused = facts.refused.get(&key).filter(|_| worker.phase == WorkerPhase::Queued);
            if let Some(outcome) = refused.and_then(|refused| patience::refused_too_long(refused, policy, now)) {
                return failed(worker, outcome, now, spec_attempts, policy, seed, now);
            }
            if worker.phase == WorkerPhase::Queued {
                waits_for(worker, refused.map(|refused| &refused.why));
            }
            if worker.phase == WorkerPhase::Created
                && let Some(outcome) = patience::failed_waiting(None, None, worker.waiting.as_ref(), policy)
            {
                return failed(worker, outcome, now, spec_attempts, policy, seed, now);
            }
            match worker.phase {
                // Who may still come about has not been stopped yet.
                WorkerPhase::Stopping if facts.unclear.get(&key).is_some_and(|until| *until > now) => {}
                WorkerPhase::Stopping => stopped(worker, now, None),
                WorkerPhase::Created | WorkerPhase::Running => {
                    let outcome = Outcome {
                        class: Class::NodeLost,
                        exit_code: None,
                        signal: None,
                        message: "the worker disappeared; nobody knows how its job ended".to_owned(),
                    };
                    failed(worker, outcome, now, spec_attempts, policy, seed, now);
                }
                WorkerPhase::Queued | WorkerPhase::Succeeded | WorkerPhase::Failed | WorkerPhase::Stopped => {}
            }
        }
        return;
    };
    worker.created_at = Some(fact.created_at);
    worker.started_at = fact.started_at.or(worker.started_at);
    if worker.node_name != fact.node_name {
        worker.node_name.clone_from(&fact.node_name);
    }
    trouble::note(worker, fact, now);
    match (&fact.state, worker.phase) {
        (State::Created { .. }, WorkerPhase::Queued | WorkerPhase::Created) => {
            worker.phase = WorkerPhase::Created;
            waits_for(worker, fact.waiting(now));
        }
        (State::Running, WorkerPhase::Queued | WorkerPhase::Created | WorkerPhase::Running) => {
            worker.phase = WorkerPhase::Running;
            worker.waiting = None;
        }
        (State::Ended { at, outcome }, WorkerPhase::Stopping) => {
            // It came to its end before the stop reached it: then it need not run again.
            if outcome.class == Class::Success {
                succeeded(worker, outcome.clone(), *at);
            } else {
                stopped(worker, *at, Some(outcome));
            }
        }
        (State::Ended { at, outcome }, _) => {
            let waited = worker.waiting.take();
            let began = worker.started_at.is_some();
            let mut outcome = patience::how_it_ended(fact, outcome, waited.as_ref(), began, policy);
            let ran = worker.started_at.map_or(0, |started| at - started);
            if outcome.class == Class::Stopped && timeout > 0 && ran >= timeout {
                outcome.class = Class::Deadline;
            }
            if outcome.class == Class::Success {
                succeeded(worker, outcome, *at);
            } else {
                failed(worker, outcome, *at, spec_attempts, policy, seed, now);
            }
        }
        // A stop is under way. `Gone` is never kept as a fact.
        (State::Created { .. } | State::Running, _) | (State::Gone, _) => {}
    }
}

/// Notes what it waits for. The text changes only if the trouble does, not with every number in it.
fn waits_for(worker: &mut Worker, why: Option<&Outcome>) {
    let same = match (&worker.waiting, why) {
        (Some(before), Some(why)) => patience::same_trouble(before, why),
        (before, why) => before.is_none() && why.is_none(),
    };
    if !same {
        worker.waiting = why.cloned();
    }
}

fn succeeded(worker: &mut Worker, outcome: Outcome, at: Millis) {
    worker.phase = WorkerPhase::Succeeded;
    worker.waiting = None;
    worker.ended_at = Some(at);
    worker.outcome = Some(outcome);
}

fn stopped(worker: &mut Worker, at: Millis, outcome: Option<&Outcome>) {
    worker.phase = WorkerPhase::Stopped;
    worker.waiting = None;
    worker.ended_at = Some(at);
    worker.outcome = Some(Outcome {
        class: Class::Stopped,
        exit_code: outcome.and_then(|outcome| outcome.exit_code),
        signal: outcome.and_then(|outcome| outcome.signal),
        message: match worker.started_at {
            Some(_) => "stopped as told".to_owned(),
            None => "stopped before it began".to_owned(),
        },
    });
}

/// Who is to blame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    Job,
    Infrastructure,
    /// It would fail again.
    Request,
}

fn blame(class: Class) -> Blame {
    match class {
        Class::Exited | Class::OutOfMemory | Class::Deadline | Class::AgentLost | Class::Success => Blame::Job,
        Class::Image | Class::Config | Class::Admission => Blame::Request,
        Class::Stopped
        | Class::Unschedulable
        | Class::Quota
        | Class::Volume
        | Class::Evicted
        | Class::Preempted
        | Class::NodeLost
        | Class::Infrastructure => Blame::Infrastructure,
    }
}

fn failed(
    worker: &mut Worker,
    outcome: Outcome,
    at: Millis,
    max_attempts: u32,
    policy: &Policy,
    seed: u64,
    now: Millis,
) {
    worker.failing_since = match worker.failing_since {
        _ if outcome.class != Class::Infrastructure || worker.started_at.is_some() => None,
        // One that waited has had its time, or part of it. (By one clock, which is not ours.)
        since => since.or(Some(now - worker.created_at.map_or(0, |created| (at - created).max(0)))),
    };
    let retry = match blame(outcome.class) {
        Blame::Job => {
            worker.job_failures = worker.job_failures.saturating_add(1);
            worker.job_failures < max_attempts
        }
        Blame::Infrastructure => {
            worker.infrastructure_failures = worker.infrastructure_failures.saturating_add(1);
            worker.infrastructure_failures <= policy.infrastructure_retries || may_pass(worker, policy, now)
        }
        Blame::Request => false,
    };
    worker.outcome = Some(outcome);
    if retry {
        let failures = worker.job_failures.saturating_add(worker.infrastructure_failures);
        let delay = backoff(failures, seed ^ u64::from(worker.index) << 32 ^ u64::from(worker.attempt), policy);
        let retry_at = Some(now.saturating_add(delay));
        worker.keep_past(at, retry_at);
        worker.again(retry_at);
    } else {
        worker.phase = WorkerPhase::Failed;
        worker.waiting = None;
        worker.ended_at = Some(at);
    }
}

/// A registry that is away for a moment, say, fails a start within seconds, one after the other: it has as much time to come
/// back as it would have if the start waited for it.
fn may_pass(worker: &Worker, policy: &Policy, now: Millis) -> bool {
    let Some(since) = worker.failing_since else { return false };
    policy.patience.start.is_none_or(|patience| since.saturating_add(patience) > now)
}

/// Doubles with every failure; between a half and the whole of it, by the seed, so that workers which failed together
/// do not come back together.
fn backoff(failures: u32, seed: u64, policy: &Policy) -> Millis {
    let doubled = policy.backoff_min.saturating_mul(1_i64.checked_shl(failures.saturating_sub(1).min(40)).unwrap_or(1));
    let whole = doubled.clamp(0, policy.backoff_max.max(0));
    // SplitMix64's last steps: a spread over all bits is all that is wanted.
    let mut mixed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^= mixed >> 31;
    let half = whole / 2;
    half + i64::try_from(mixed % (u64::try_from(whole - half).unwrap_or(0) + 1)).unwrap_or(0)
}

fn seed(task_id: &str) -> u64 {
    task_id.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

fn finish(record: &mut Record, now: Millis) {
    if record.workers.iter().any(|worker| worker.phase.is_live()) {
        return;
    }
    record.phase = match record.phase {
        Phase::Cancelling => Phase::Cancelled,
        _ => match record.workers.iter().find(|worker| worker.phase == WorkerPhase::Failed) {
            Some(worker) => {
                let why = worker.outcome.as_ref().map_or("", |outcome| outcome.message.as_str());
                record.error = Some(format!("worker {} failed: {why}", worker.index));
                Phase::Failed
            }
            None => Phase::Succeeded,
        },
    };
    record.ended_at = Some(now);
}

/// What is to be done for a task whose record is stored as given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Indexes whose attempt may be created as far as the task itself is concerned; the limits come on top.
    pub(crate) ready: BTreeSet<u32>,
    pub(crate) stop: Vec<Attempt>,
    pub(crate) remove: Vec<Attempt>,
    /// Facts of which nothing is left, in the driver or to be stored.
    pub(crate) forget: Vec<Attempt>,
    /// Plan again at this time.
    pub(crate) wake: Option<Millis>,
}

impl Plan {
    fn wake_at(&mut self, at: Millis) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }
}

/// The actions for a record that is stored as it is.
pub(crate) fn actions(stored: &Record, facts: &Facts, policy: &Policy, now: Millis) -> Plan {
    let mut plan = Plan::default();
    if stored.phase == Phase::Live && facts.complete {
        for worker in stored.workers.iter().filter(|worker| worker.phase == WorkerPhase::Queued) {
            if !facts.is_free(worker) {
                continue;
            }
            let refused = facts.refused.get(&(worker.index, worker.attempt));
            if let Some(due) = refused.and_then(|refused| patience::given_up_at(refused, policy)).filter(|at| *at > now)
            {
                plan.wake_at(due);
            }
            let until = refused.map(|refused| refused.until);
            match worker.not_before.max(until).filter(|at| *at > now) {
                Some(at) => plan.wake_at(at),
                None => {
                    plan.ready.insert(worker.index);
                }
            }
        }
    }
    facts.unclear.values().filter(|until| **until > now).for_each(|until| plan.wake_at(*until));
    let timeout = Millis::from(stored.spec.timeout_seconds) * 1000;
    for (key, fact) in &facts.workers {
        let worker = stored.worker(key.0).filter(|worker| worker.attempt == key.1);
        let wanted = worker.is_some_and(|worker| {
            matches!(worker.phase, WorkerPhase::Queued | WorkerPhase::Created | WorkerPhase::Running)
        });
        // An attempt that the record does not know of yet is adopted by `settle` first.
        let unknown = !stored.phase.is_terminal()
            && stored.worker(key.0).is_some_and(|worker| worker.phase.is_live() && worker.attempt < key.1);
        if unknown {
            continue;
        }
        if fact.is_live() {
            let (told, given_up) = fact.waits_until(policy);
            let deadline = fact.running_since.filter(|_| timeout > 0).map(|since| since + timeout + policy.overdue);
            match deadline.or(given_up) {
                _ if !wanted => stop(&mut plan, *key, fact, policy, now),
                Some(due) if due <= now => stop(&mut plan, *key, fact, policy, now),
                due => due.into_iter().chain(told).filter(|at| *at > now).for_each(|at| plan.wake_at(at)),
            }
        } else if facts.creating.contains(key) {
            // Forgotten now, it would be taken for alive when the answer to its creation comes.
        } else if !wanted && worker.is_none_or(|worker| worker.phase != WorkerPhase::Stopping) {
            // Nobody needs a witness of a job that never began, and what is left of it keeps its node from others.
            let began = fact.started_at.is_some() || worker.is_some_and(|worker| worker.started_at.is_some());
            let keep = if fact.lingers && !began { 0 } else { policy.keep_ended };
            ended(&mut plan, *key, fact, keep, now);
        }
    }
    plan
}

/// The actions for workers of which no record exists. Live ones are stopped once `stop_live` says that the store was
/// asked again and still knows nothing.
pub(crate) fn orphans(facts: &Facts, stop_live: bool, policy: &Policy, now: Millis) -> Plan {
    let mut plan = Plan::default();
    for (key, fact) in &facts.workers {
        if !fact.is_live() {
            if !facts.creating.contains(key) {
                ended(&mut plan, *key, fact, policy.keep_ended, now);
            }
        } else if stop_live {
            stop(&mut plan, *key, fact, policy, now);
        }
    }
    plan
}

fn stop(plan: &mut Plan, key: Attempt, fact: &Fact, policy: &Policy, now: Millis) {
    if fact.busy {
        return;
    }
    match fact.hold.max(fact.stop_again(policy)).filter(|at| *at > now) {
        Some(at) => plan.wake_at(at),
        None => plan.stop.push(key),
    }
}

fn ended(plan: &mut Plan, key: Attempt, fact: &Fact, keep: Millis, now: Millis) {
    if fact.gone {
        plan.forget.push(key);
        return;
    }
    if fact.busy {
        return;
    }
    let due = fact.ended_since.map(|since| since + keep);
    match fact.hold.max(due).filter(|at| *at > now) {
        Some(at) => plan.wake_at(at),
        None => plan.remove.push(key),
    }
}

#[cfg(test)]
mod tests;
