//! Workers of which nobody knows whether they live: what is told of them, and how often they are told to stop. Pure.

use super::patience::same_trouble;
use super::{Fact, Policy};
use crate::driver::Trouble;
use crate::task::{Millis, Worker};

/// A worker that does not go is told to stop again after this at the latest: milliseconds.
const STOP_LONGEST: Millis = 300_000;

/// What is wrong with a worker, as it was seen.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Seen {
    trouble: Trouble,
    /// Since when, by the scaler's own clock.
    since: Millis,
}

impl Fact {
    /// Takes note of what is wrong with it, or that nothing is.
    pub(crate) fn troubles(&mut self, trouble: Option<Trouble>, now: Millis) {
        if self.trouble.as_ref().map(|seen| &seen.trouble) != trouble.as_ref() {
            self.trouble = trouble.map(|trouble| Seen { trouble, since: now });
        }
    }

    /// When that is to be told.
    pub(super) fn trouble_due(&self) -> Option<Millis> {
        self.trouble.as_ref().map(|seen| seen.since.saturating_add(seen.trouble.lasts))
    }

    /// When it is told to stop again: of one that does not go, less and less often.
    pub(super) fn stop_again(&self, policy: &Policy) -> Option<Millis> {
        let sent = self.stop_sent?;
        let age = self.trouble.as_ref().map_or(0, |seen| sent - seen.since);
        Some(sent + policy.stop_again.max((age / 2).min(STOP_LONGEST)))
    }
}

/// Brings what a record says is wrong with a worker up to what was seen. The text stays while the trouble does.
pub(super) fn note(worker: &mut Worker, fact: &Fact, now: Millis) {
    let Some(seen) = fact.trouble.as_ref().filter(|_| fact.is_live()) else {
        worker.trouble = None;
        return;
    };
    let told = worker.trouble.as_ref().is_some_and(|told| same_trouble(&told.why, &seen.trouble.outcome));
    // What was told before stays until it is certain that it is something else by now.
    if !told && fact.trouble_due().is_some_and(|due| due <= now) {
        worker.trouble = Some(crate::task::Trouble { why: seen.trouble.outcome.clone(), since: seen.since });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::State;
    use crate::plan::patience::Patience;
    use crate::task::{Class, Outcome};

    const POLICY: Policy = Policy {
        infrastructure_retries: 0,
        backoff_min: 0,
        backoff_max: 0,
        keep_ended: 0,
        overdue: 0,
        stop_again: 40_000,
        patience: Patience { start: None, schedule: None },
    };

    fn trouble(message: &str, lasts: Millis) -> Option<Trouble> {
        let outcome = Outcome { class: Class::NodeLost, exit_code: None, signal: None, message: message.to_owned() };
        Some(Trouble { outcome, lasts })
    }

    fn noted(worker: &mut Worker, fact: &Fact, now: Millis) -> Option<(String, Millis)> {
        note(worker, fact, now);
        worker.trouble.as_ref().map(|told| (told.why.message.clone(), told.since))
    }

    #[test]
    fn trouble_is_told_when_it_lasts_and_taken_back_when_it_is_over() {
        let (mut fact, mut worker) = (Fact::new(State::Running, 0), Worker::queued(0, 1));
        let said = |text: &str, since| Some((text.to_owned(), since));
        fact.troubles(trouble("away", 0), 5);
        assert_eq!(noted(&mut worker, &fact, 5), said("away", 5));
        // Another scaler sees it anew.
        fact.troubles(None, 6);
        fact.troubles(trouble("away", 0), 7);
        assert_eq!(noted(&mut worker, &fact, 8), said("away", 5));
        fact.troubles(trouble("stays", 100), 10);
        assert_eq!(fact.trouble_due(), Some(110));
        assert_eq!(noted(&mut worker, &fact, 109), said("away", 5));
        fact.troubles(trouble("stays", 100), 109);
        assert_eq!(noted(&mut worker, &fact, 110), said("stays", 10));
        fact.troubles(None, 120);
        assert_eq!(noted(&mut worker, &fact, 120), None);
        fact.troubles(trouble("away", 0), 130);
        fact.state = State::Ended { at: 130, outcome: trouble("", 0).unwrap().outcome };
        assert_eq!(noted(&mut worker, &fact, 130), None);
    }

    #[test]
    fn one_that_does_not_go_is_told_so_less_and_less_often() {
        let mut fact = Fact::new(State::Running, 0);
        assert_eq!(fact.stop_again(&POLICY), None);
        fact.stop_sent = Some(1_000_000);
        assert_eq!(fact.stop_again(&POLICY), Some(1_040_000));
        let mut after = |since| {
            fact.troubles(None, 0);
            fact.troubles(trouble("stays", 90_000), since);
            fact.stop_again(&POLICY).unwrap() - 1_000_000
        };
        assert_eq!([after(1_000_100), after(950_000), after(800_000), after(0)], [40_000, 40_000, 100_000, 300_000]);
    }
}
