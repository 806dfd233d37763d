//! Worker events out of records and observations. Pure; an event derived twice has the same id.

use std::collections::HashMap;
use std::sync::Arc;

use otto_proto::v1::worker_event::Type;
use otto_proto::v1::{FailureClass, WorkerEvent};
use prost_types::Timestamp;

use crate::driver::{Driver, WorkerKey};
use crate::plan::Attempt;
use crate::plan::patience::without_numbers;
use crate::task::{Class, Millis, Outcome, Phase, Record, Trouble, Worker};

pub(crate) fn timestamp(at: Millis) -> Timestamp {
    Timestamp {
        seconds: at.div_euclid(1000),
        nanos: i32::try_from(at.rem_euclid(1000) * 1_000_000).unwrap_or_default(),
    }
}

pub(crate) fn failure_class(class: Class) -> FailureClass {
    match class {
        Class::Success => FailureClass::Unspecified,
        Class::Exited => FailureClass::Exited,
        Class::OutOfMemory => FailureClass::OutOfMemory,
        Class::Deadline => FailureClass::Deadline,
        Class::Stopped => FailureClass::Stopped,
        Class::Image => FailureClass::Image,
        Class::Unschedulable => FailureClass::Unschedulable,
        Class::Quota => FailureClass::Quota,
        Class::Admission => FailureClass::Admission,
        Class::Config => FailureClass::Config,
        Class::Volume => FailureClass::Volume,
        Class::Evicted => FailureClass::Evicted,
        Class::Preempted => FailureClass::Preempted,
        Class::NodeLost => FailureClass::NodeLost,
        Class::AgentLost => FailureClass::AgentLost,
        Class::Infrastructure => FailureClass::Infrastructure,
    }
}

/// `succeeded`, `failed` or `cancelled`; `None`: it has not ended.
pub(crate) fn task_state(phase: Phase) -> Option<&'static str> {
    match phase {
        Phase::Live | Phase::Cancelling => None,
        Phase::Succeeded => Some("succeeded"),
        Phase::Failed => Some("failed"),
        Phase::Cancelled => Some("cancelled"),
    }
}

/// Makes the events of one task.
pub(crate) struct Teller<'a> {
    /// Names the workers.
    pub(crate) driver: &'a dyn Driver,
    pub(crate) record: &'a Record,
}

impl Teller<'_> {
    fn event(&self, kind: Type, of: Option<Attempt>, at: Millis, message: String, repeat: &str) -> WorkerEvent {
        let record = self.record;
        let (index, attempt) = of.unwrap_or_default();
        let worker_id = of.map_or_else(String::new, |(index, attempt)| {
            self.driver.worker_name(&WorkerKey { task_id: record.task_id.clone(), index, attempt })
        });
        // A task that was forgotten and runs again is another one: its creation time tells them apart.
        let mut event_id = format!("{}/{}/{index}/{attempt}/{}", record.task_id, record.created_at, kind.as_str_name());
        if !repeat.is_empty() {
            event_id.push('/');
            event_id.push_str(repeat);
        }
        let spec = &record.spec;
        let context = [
            ("repository", &spec.repository),
            ("commit_sha", &spec.commit_sha),
            ("triggered_by", &spec.triggered_by),
            ("reason", &spec.reason),
        ];
        let context: HashMap<_, _> = context
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| (name.to_owned(), value.clone()))
            .collect();
        WorkerEvent {
            event_id,
            task_id: record.task_id.clone(),
            worker_id,
            index,
            attempt,
            r#type: kind.into(),
            time: Some(timestamp(at)),
            message,
            failure_class: FailureClass::Unspecified.into(),
            exit_code: None,
            signal: None,
            retry_at: None,
            task_state: String::new(),
            node_name: String::new(),
            context,
        }
    }

    pub(crate) fn queued(&self) -> WorkerEvent {
        let message = match self.record.wanted {
            1 => "accepted: 1 worker wanted".to_owned(),
            count => format!("accepted: {count} workers wanted"),
        };
        self.event(Type::Queued, None, self.record.created_at, message, "")
    }

    pub(crate) fn created(&self, of: Attempt, at: Millis, node: &str) -> WorkerEvent {
        let image = &self.record.spec.image;
        let message = match self.driver.name() {
            "process" if !image.is_empty() => format!("created; image `{image}` is ignored by the process driver"),
            _ => "created".to_owned(),
        };
        let mut event = self.event(Type::Created, Some(of), at, message, "");
        node.clone_into(&mut event.node_name);
        event
    }

    pub(crate) fn started(&self, of: Attempt, at: Millis, node: &str) -> WorkerEvent {
        let mut event = self.event(Type::Started, Some(of), at, "the job runs".to_owned(), "");
        node.clone_into(&mut event.node_name);
        event
    }

    pub(crate) fn waiting(&self, of: Attempt, at: Millis, why: &Outcome) -> WorkerEvent {
        // Each reason once: the text tells repeats apart, but for the numbers in it.
        let repeat = format!("{}/{:016x}", why.class.as_str(), xor_fold(without_numbers(&why.message)));
        let mut event = self.event(Type::Waiting, Some(of), at, why.message.clone(), &repeat);
        event.failure_class = failure_class(why.class).into();
        event
    }

    fn troubled(&self, of: Attempt, trouble: &Trouble) -> WorkerEvent {
        let Trouble { why, since } = trouble;
        let mut event = self.event(Type::Troubled, Some(of), *since, why.message.clone(), &since.to_string());
        event.failure_class = failure_class(why.class).into();
        event
    }

    /// The trouble is over, and the worker lives.
    fn untroubled(&self, of: Attempt, at: Millis, trouble: &Trouble) -> WorkerEvent {
        let repeat = format!("{}/over", trouble.since);
        self.event(Type::Troubled, Some(of), at, "it is heard of again".to_owned(), &repeat)
    }

    fn ended(&self, of: Attempt, at: Millis, outcome: &Outcome, node: &str) -> WorkerEvent {
        let kind = match outcome.class {
            Class::Success => Type::Succeeded,
            Class::Stopped => Type::Stopped,
            _ => Type::Failed,
        };
        let mut event = self.event(kind, Some(of), at, outcome.message.clone(), "");
        event.failure_class = failure_class(outcome.class).into();
        event.exit_code = outcome.exit_code;
        event.signal = outcome.signal;
        node.clone_into(&mut event.node_name);
        event
    }

    fn retrying(&self, of: Attempt, at: Millis, retry_at: Millis, outcome: &Outcome) -> WorkerEvent {
        let message = format!("attempt {} follows: {}", of.1 + 1, outcome.message);
        let mut event = self.event(Type::Retrying, Some(of), at, message, "");
        event.failure_class = failure_class(outcome.class).into();
        event.retry_at = Some(timestamp(retry_at));
        event
    }

    fn task_ended(&self) -> Option<WorkerEvent> {
        let state = task_state(self.record.phase)?;
        let at = self.record.ended_at.unwrap_or(self.record.created_at);
        let message = self.record.error.clone().unwrap_or_else(|| match self.record.wanted {
            0 => "no workers were wanted".to_owned(),
            _ => "all workers succeeded".to_owned(),
        });
        let mut event = self.event(Type::TaskEnded, None, at, message, state);
        state.clone_into(&mut event.task_state);
        Some(event)
    }

    /// What happened between the stored record `before` and this one; `now` where nothing tells a better time.
    pub(crate) fn since(&self, before: Option<&Record>, now: Millis) -> Vec<WorkerEvent> {
        let mut events = Vec::new();
        if before.is_none() {
            events.push(self.queued());
        }
        for worker in &self.record.workers {
            let old = before.and_then(|record| record.worker(worker.index));
            self.attempt_since(old, worker, now, &mut events);
        }
        if before.is_none_or(|record| record.phase != self.record.phase) {
            events.extend(self.task_ended());
        }
        events
    }

    fn attempt_since(&self, old: Option<&Worker>, worker: &Worker, now: Millis, events: &mut Vec<WorkerEvent>) {
        let terminal = !worker.phase.is_live();
        let of = (worker.index, worker.attempt);
        match (old, &worker.outcome) {
            (Some(old), Some(outcome)) if old.attempt < worker.attempt => {
                let of = (old.index, old.attempt);
                if old.phase.is_live() {
                    events.push(self.ended(of, now, outcome, &old.node_name));
                }
                if outcome.class != Class::Stopped || worker.not_before.is_some() {
                    events.push(self.retrying(of, now, worker.not_before.unwrap_or(now), outcome));
                }
            }
            _ => {}
        }
        let before = old.filter(|old| old.attempt == worker.attempt).and_then(|old| old.trouble.as_ref());
        match (before, &worker.trouble) {
            (before, Some(trouble)) if before != Some(trouble) => events.push(self.troubled(of, trouble)),
            (Some(before), None) if !terminal => events.push(self.untroubled(of, now, before)),
            _ => {}
        }
        let changed = old.is_none_or(|old| old.attempt != worker.attempt || old.phase != worker.phase);
        if let Some(outcome) = worker.outcome.as_ref().filter(|_| terminal && changed) {
            events.push(self.ended(of, worker.ended_at.unwrap_or(now), outcome, &worker.node_name));
        }
    }

    /// Everything that the record alone still tells, oldest first.
    pub(crate) fn all(&self, now: Millis) -> Vec<WorkerEvent> {
        let mut events = vec![self.queued()];
        let record_time = self.record.created_at;
        for worker in &self.record.workers {
            for past in &worker.past {
                let of = (worker.index, past.attempt);
                events.push(self.ended(of, past.ended_at, &past.outcome, &past.node_name));
                if let Some(retry_at) = past.retry_at {
                    events.push(self.retrying(of, past.ended_at, retry_at, &past.outcome));
                }
            }
            let of = (worker.index, worker.attempt);
            if let Some(at) = worker.created_at {
                events.push(self.created(of, at, &worker.node_name));
            }
            if let Some(at) = worker.started_at {
                events.push(self.started(of, at, &worker.node_name));
            }
            match &worker.outcome {
                Some(outcome) if !worker.phase.is_live() => {
                    events.push(self.ended(of, worker.ended_at.unwrap_or(now), outcome, &worker.node_name));
                }
                _ => {}
            }
            if let Some(why) = &worker.waiting {
                events.push(self.waiting(of, worker.created_at.unwrap_or(record_time), why));
            }
            events.extend(worker.trouble.as_ref().map(|trouble| self.troubled(of, trouble)));
        }
        events.extend(self.task_ended());
        events
    }
}

/// All of them, shared.
pub(crate) fn shared(events: Vec<WorkerEvent>) -> impl Iterator<Item = Arc<WorkerEvent>> {
    events.into_iter().map(Arc::new)
}

fn xor_fold(text: impl Iterator<Item = u8>) -> u64 {
    text.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
