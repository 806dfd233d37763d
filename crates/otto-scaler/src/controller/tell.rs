//! What the loop tells: worker events, and the metrics of attempts.

use otto_proto::v1::WorkerEvent;

use super::Controller;
use super::task::{Task, Told};
use crate::driver::State;
use crate::metrics::ClassLabel;
use crate::task::Record;
use crate::worker_events::derive::Teller;

/// Reasons to wait that are told of one attempt: what changes all the time would fill the streams.
const REASONS: usize = 16;

impl Told {
    /// The event, if it was not told before.
    fn anew(&mut self, event: WorkerEvent) -> Option<WorkerEvent> {
        (self.waiting.len() < REASONS && self.waiting.insert(event.event_id.clone())).then_some(event)
    }
}

impl Controller {
    /// Tells of what was seen and not told yet.
    pub(super) fn tell_observed(&mut self, task: &mut Task) {
        let Some(record) = &task.stored else { return };
        let now = self.clock.now();
        let teller = Teller { driver: &*self.driver, record };
        let mut events = Vec::new();
        for (attempt, refused) in &task.facts.refused {
            let told = task.told.entry(*attempt).or_default();
            events.extend(told.anew(teller.waiting(*attempt, refused.since, &refused.why)));
        }
        for (attempt, fact) in &task.facts.workers {
            if fact.gone && fact.created_at == fact.ended_since.unwrap_or_default() {
                continue; // Refused: there never was one.
            }
            let told = task.told.entry(*attempt).or_default();
            let started = matches!(fact.state, State::Running) || fact.started_at.is_some();
            if !std::mem::replace(&mut told.created, true) {
                events.push(teller.created(*attempt, fact.created_at, &fact.node_name));
            }
            if let Some(why) = fact.waiting(now) {
                let since = fact.waited.as_ref().map_or(now, |waited| waited.since);
                events.extend(told.anew(teller.waiting(*attempt, since, why)));
            }
            if !started || std::mem::replace(&mut told.started, true) {
                continue;
            }
            events.push(teller.started(*attempt, fact.started_at.unwrap_or(fact.created_at), &fact.node_name));
            if let Some(asked) = task.asked.remove(&attempt.0)
                && attempt.1 == 1
            {
                // By one clock, where it was seen: the other is the node's, and tells whole seconds.
                let took = fact.running_since.or(fact.started_at).unwrap_or(asked) - asked;
                self.metrics
                    .start_seconds
                    .observe(std::time::Duration::from_millis(took.max(0).unsigned_abs()).as_secs_f64());
            }
        }
        self.publisher.publish(events);
    }

    /// Counts the attempts that ended between two stored records.
    pub(super) fn count(&self, before: Option<&Record>, after: &Record) {
        for worker in &after.workers {
            let old = before.and_then(|record| record.worker(worker.index));
            let Some(outcome) = &worker.outcome else { continue };
            let label = ClassLabel { class: outcome.class.as_str() };
            let was_live = old.is_some_and(|old| old.phase.is_live());
            let next = old.is_some_and(|old| old.attempt < worker.attempt);
            if was_live && (next || !worker.phase.is_live()) {
                self.metrics.ended.get_or_create(&label).inc();
            }
            if was_live && next {
                self.metrics.retries.get_or_create(&label).inc();
            }
        }
    }
}
