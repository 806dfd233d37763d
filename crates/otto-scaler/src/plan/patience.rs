//! What a worker waits for before its job begins, and how long it may. Pure.

use super::{Fact, Policy, Refused};
use crate::driver::{State, Waiting};
use crate::task::{Class, Millis, Outcome};

/// What every worker waits for at its beginning is told when it lasts longer than this: milliseconds.
pub(super) const USUALLY_WITHIN: Millis = 60_000;

/// How long a worker may wait, in milliseconds; `None`: for ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Patience {
    /// For its image, its configuration, its volumes, and whatever else is to be there before the job can begin.
    pub(crate) start: Option<Millis>,
    /// For a place: a node, or room in a quota.
    pub(crate) schedule: Option<Millis>,
}

/// A part of a worker's way to its job's first instruction; they follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Schedule,
    /// What every start takes its time for.
    SetUp,
    Start,
}

fn stage(waiting: &Waiting) -> Stage {
    match waiting.outcome.class {
        Class::Unschedulable | Class::Quota => Stage::Schedule,
        _ if waiting.usual => Stage::SetUp,
        _ => Stage::Start,
    }
}

impl Patience {
    fn of(&self, class: Class) -> Option<Millis> {
        match class {
            Class::Unschedulable | Class::Quota => self.schedule,
            _ => self.start,
        }
    }
}

/// What a worker waits for, or waited for last, before its job began.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Waited {
    pub(crate) waiting: Waiting,
    /// Since when, by the scaler's own clock. Other reasons of the same stage do not begin it anew: they may take turns.
    pub(crate) since: Millis,
}

impl Fact {
    /// Takes note of why its job cannot begin, if it can be told.
    pub(crate) fn waits(&mut self, now: Millis) {
        let waiting = match &self.state {
            State::Created { waiting: Some(waiting) } => waiting,
            State::Running => return self.waited = None,
            State::Created { waiting: None } | State::Ended { .. } | State::Gone => return,
        };
        match &mut self.waited {
            Some(waited) => {
                if stage(&waited.waiting) < stage(waiting) {
                    waited.since = now;
                }
                waited.waiting = waiting.clone();
            }
            None => self.waited = Some(Waited { waiting: waiting.clone(), since: now }),
        }
    }

    /// What it waits for now, if that is worth telling.
    pub(crate) fn waiting(&self, now: Millis) -> Option<&Outcome> {
        let State::Created { waiting: Some(waiting) } = &self.state else { return None };
        let since = self.waited.as_ref().map_or(now, |waited| waited.since);
        (!waiting.usual || since + USUALLY_WITHIN <= now).then_some(&waiting.outcome)
    }

    /// When something is to be done or told because it waits, or is in trouble: at the first time, it is told; at the second,
    /// given up.
    pub(super) fn waits_until(&self, policy: &Policy) -> (Option<Millis>, Option<Millis>) {
        let trouble = self.trouble_due();
        let State::Created { waiting: Some(waiting) } = &self.state else { return (trouble, None) };
        let Some(since) = self.waited.as_ref().map(|waited| waited.since) else { return (trouble, None) };
        let told = waiting.usual.then_some(since + USUALLY_WITHIN).or(trouble);
        let patience = if waiting.hopeless { Some(0) } else { policy.patience.of(waiting.outcome.class) };
        (told, patience.map(|patience| since.saturating_add(patience)))
    }
}

/// How an attempt that came to an end without having begun failed, if it was for what it waited for: it was stopped by
/// the scaler's patience, by its deadline, or by somebody who had none.
///
/// `stored`: what the record says it waited for; a scaler that was started again knows no more.
pub(super) fn failed_waiting(
    fact: Option<&Fact>,
    ended: Option<&Outcome>,
    stored: Option<&Outcome>,
    policy: &Policy,
) -> Option<Outcome> {
    // The answer to the stop may come later than what it did.
    let given_up = fact.is_some_and(|fact| fact.busy || fact.stop_sent.is_some());
    let ended_by_stop = match ended.map(|ended| ended.class) {
        None | Some(Class::Stopped | Class::Deadline) => true,
        // It vanished without a word after it was told to stop.
        Some(Class::NodeLost) => given_up && fact.is_some_and(|fact| fact.gone),
        Some(_) => false,
    };
    if !ended_by_stop {
        return None;
    }
    let waited = fact.and_then(|fact| fact.waited.as_ref());
    let why = waited.map(|waited| &waited.waiting.outcome).or(stored)?;
    let hopeless = waited.is_some_and(|waited| waited.waiting.hopeless);
    let patience = policy.patience.of(why.class).filter(|_| given_up && !hopeless);
    Some(given_up_after(why, patience))
}

/// How an attempt ended: as it is observed, unless its job never `began`. `stored` as above.
pub(super) fn how_it_ended(
    fact: &Fact,
    ended: &Outcome,
    stored: Option<&Outcome>,
    began: bool,
    policy: &Policy,
) -> Outcome {
    if began {
        return ended.clone();
    }
    failed_waiting(Some(fact), Some(ended), stored, policy).unwrap_or_else(|| match ended.class {
        // No fault of a job that has not begun: its image, say, took all the time there was.
        Class::Deadline => {
            let message = format!("the job did not begin in time: {}", ended.message);
            Outcome { class: Class::Infrastructure, message, ..ended.clone() }
        }
        _ => ended.clone(),
    })
}

/// Why an attempt that could never be created has failed; `None`: it is tried further.
pub(super) fn refused_too_long(refused: &Refused, policy: &Policy, now: Millis) -> Option<Outcome> {
    let due = given_up_at(refused, policy)?;
    (due <= now).then(|| given_up_after(&refused.why, Some(due - refused.since)))
}

/// When patience with that is over.
pub(super) fn given_up_at(refused: &Refused, policy: &Policy) -> Option<Millis> {
    // Everything else that keeps one from being created is over some day, without anybody's doing.
    let patience = policy.patience.of(refused.why.class).filter(|_| refused.why.class == Class::Quota)?;
    Some(refused.since.saturating_add(patience))
}

fn given_up_after(why: &Outcome, patience: Option<Millis>) -> Outcome {
    let mut why = why.clone();
    if let Some(patience) = patience {
        why.message.push_str(&format!("; given up after {}", short(patience)));
    }
    why
}

/// `15m`, `90s`, `2h`: the largest unit without a rest.
fn short(time: Millis) -> String {
    let (seconds, rest) = (time / 1000, time % 1000);
    match seconds {
        _ if rest != 0 => format!("{time}ms"),
        0 => "0s".to_owned(),
        _ if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
        _ if seconds % 60 == 0 => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

/// Whether two texts tell the same trouble: numbers in them may change (how many nodes there are, how long something is
/// put off, which port a connection had).
pub(crate) fn same_trouble(one: &Outcome, other: &Outcome) -> bool {
    one.class == other.class && without_numbers(&one.message).eq(without_numbers(&other.message))
}

/// What stays of a message from one try to the next.
pub(crate) fn without_numbers(message: &str) -> impl Iterator<Item = u8> + '_ {
    message.bytes().filter(|byte| !byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(class: Class, usual: bool) -> State {
        let outcome = Outcome { class, exit_code: None, signal: None, message: class.as_str().to_owned() };
        State::Created { waiting: Some(Waiting { outcome, hopeless: false, usual }) }
    }

    #[test]
    fn reasons_that_take_turns_do_not_begin_anew() {
        let mut fact = Fact::new(waiting(Class::Unschedulable, false), 0);
        fact.waits(10);
        let mut see = |state, now| {
            fact.state = state;
            fact.waits(now);
            fact.waited.as_ref().unwrap().since
        };
        assert_eq!(see(waiting(Class::Quota, false), 20), 10);
        assert_eq!(see(waiting(Class::Volume, true), 30), 30);
        assert_eq!(see(waiting(Class::Image, false), 40), 40);
        assert_eq!(see(State::Created { waiting: None }, 50), 40);
        assert_eq!(see(waiting(Class::Config, false), 60), 40);
        assert_eq!(see(waiting(Class::Volume, true), 70), 40);
        assert_eq!(see(waiting(Class::Unschedulable, false), 80), 40);
    }

    #[test]
    fn the_usual_is_told_when_it_lasts() {
        let mut fact = Fact::new(waiting(Class::Volume, true), 0);
        fact.waits(0);
        assert_eq!(fact.waiting(USUALLY_WITHIN - 1), None);
        assert_eq!(fact.waiting(USUALLY_WITHIN).unwrap().class, Class::Volume);
        fact.state = waiting(Class::Image, false);
        assert_eq!(fact.waiting(1).unwrap().class, Class::Image);
    }

    #[test]
    fn times_are_told_short() {
        let told: Vec<_> = [0, 1, 90_000, 300_000, 900_000, 7_200_000].into_iter().map(short).collect();
        assert_eq!(told, ["0s", "1ms", "90s", "5m", "15m", "2h"]);
    }
}
