//! Workers that all others of their resource class would share the fate of: they are told why they wait, and try in turn.

use super::task::Task;
use super::{Controller, DOOR};
use crate::driver::WorkerKey;
use crate::plan::Refused;
use crate::plan::admission::door::{Answer, Move};
use crate::plan::patience::same_trouble;
use crate::task::{Class, Millis, Phase, Record, WorkerPhase};

impl Controller {
    /// What came of a creation. Everybody who waits for the same is planned again when that begins or ends.
    pub(super) fn door_answered(&mut self, class: &str, key: &WorkerKey, answer: Answer) {
        let passed = matches!(answer, Answer::Passed);
        let moved = self.doors.answered(class, key, answer, self.clock.now()) != Move::None;
        let opened = passed && !self.admission.is_waiting(class) && self.doors.open(class);
        if !(moved || opened) {
            return;
        }
        let waits = |record: &Record| {
            record.phase == Phase::Live
                && record.spec.resource_class == class
                && record.workers.iter().any(|worker| worker.phase == WorkerPhase::Queued)
        };
        let tasks = self.tasks.iter().filter(|(_, task)| task.stored.as_deref().is_some_and(waits));
        self.dirty.extend(tasks.map(|(task_id, _)| task_id.clone()));
    }

    /// Notes of a task's queued workers what keeps all of their class from being created.
    pub(super) fn note_door(&self, task: &mut Task, stored: &Record, now: Millis) {
        let Some(why) = self.doors.reason(&stored.spec.resource_class).filter(|_| stored.phase == Phase::Live) else {
            return task.facts.refused.retain(|_, refused| !refused.common);
        };
        for worker in stored.workers.iter().filter(|worker| worker.phase == WorkerPhase::Queued) {
            if !task.facts.is_free(worker) || worker.not_before.is_some_and(|at| at > now) {
                continue;
            }
            let refused = task.facts.refused.entry((worker.index, worker.attempt));
            let refused =
                refused.or_insert_with(|| Refused { until: now, since: now, why: why.clone(), common: true, times: 1 });
            if refused.common && !same_trouble(&refused.why, why) {
                refused.since = if refused.why.class == why.class { refused.since } else { now };
                refused.why = why.clone();
            }
            // A quota that is full of our own workers is a queue like any other: patience is for what others took.
            if refused.common && refused.why.class == Class::Quota {
                refused.since = refused.since.max(self.last_live);
            }
        }
    }

    /// Sets when the next one may try; and takes note of how long workers of ours are there.
    pub(super) fn look_at_doors(&mut self) {
        if self.admission.taken() > self.doors.trying() {
            self.last_live = self.clock.now();
        }
        let at = self.doors.next_at(self.clock.now());
        if at != self.door_at {
            self.door_at = at;
            if let Some(at) = at {
                self.chore_at(DOOR, at);
            }
        }
    }
}
