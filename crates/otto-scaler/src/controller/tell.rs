//! What the loop tells: worker events, and the metrics of attempts.

use otto_proto::v1::worker_event::Type;

use super::Controller;
use super::task::{Task, Told};
use crate::driver::State;
use crate::metrics::ClassLabel;
use crate::task::Record;
use crate::worker_events::derive::Teller;

impl Controller {
    /// Tells of what was seen and not told yet.
    pub(super) fn tell_observed(&mut self, task: &mut Task) {
        let Some(record) = &task.stored else { return };
        let teller = Teller { driver: &*self.driver, record };
        let mut events = Vec::new();
        for (attempt, fact) in &task.facts.workers {
            if fact.gone && fact.created_at == fact.ended_since.unwrap_or_default() {
                continue; // Refused: there never was one.
            }
            let told = task.told.entry(*attempt).or_default();
            let waiting = match &fact.state {
                State::Created { waiting: Some(why) } => {
                    teller.waiting(*attempt, fact.created_at, &why.outcome).event_id
                }
                _ => String::new(),
            };
            let seen = Told {
                created: true,
                started: told.started || matches!(fact.state, State::Running) || fact.started_at.is_some(),
                waiting: if waiting.is_empty() { told.waiting.clone() } else { waiting },
            };
            if *told == seen {
                continue;
            }
            for event in teller.observed(*attempt, fact) {
                let new = match event.r#type() {
                    Type::Created => !told.created,
                    Type::Started => !told.started,
                    _ => told.waiting != event.event_id,
                };
                if new {
                    events.push(event);
                }
            }
            if seen.started
                && !told.started
                && let Some(asked) = task.asked.remove(&attempt.0)
                && attempt.1 == 1
            {
                let took = fact.started_at.unwrap_or(asked) - asked;
                self.metrics
                    .start_seconds
                    .observe(std::time::Duration::from_millis(took.max(0).unsigned_abs()).as_secs_f64());
            }
            *told = seen;
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
