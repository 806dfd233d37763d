//! Who leads: the rules. Pure: no clock, no cluster.
//!
//! A Lease is held by whoever wrote its own name into it last. Nobody compares times of two machines: a candidate takes
//! another's Lease only after *it* has seen it unchanged for the Lease's whole duration; a leader counts the same
//! duration, less a margin, from the *sending* of its last successful write. The write came between its sending and the
//! moment another one saw it, so the leader's count ends first, however long requests take and whatever the clocks say.
//! What is relied on is that clocks go at the same speed, as far as the margin allows.

use std::time::Duration;

/// Nanoseconds of CLOCK_BOOTTIME.
pub(super) type Nanos = u64;

/// How long what takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    /// A Lease that is not renewed for so long may be taken by another.
    pub(crate) lease: Duration,
    /// A leader that cannot renew for so long gives up.
    pub(crate) renew_deadline: Duration,
    /// From one attempt that failed to the next.
    pub(crate) retry: Duration,
}

impl Timing {
    /// For clocks of different speed, and for the time between a look at the clock and what follows from it.
    pub(super) fn margin(&self) -> Duration {
        (self.lease / 10).min(Duration::from_secs(1))
    }

    /// Between two renewals: one may fail, and the next still comes before the deadline.
    pub(super) fn renew_every(&self) -> Duration {
        (self.lease / 3).min(self.renew_deadline / 2)
    }

    /// Longest wait for one answer, for who stands by.
    pub(super) fn request(&self) -> Duration {
        self.renew_deadline / 2
    }

    /// Longest wait for the answer to one renewal. Most of the time until the deadline, for a server that is slow; what is
    /// left is for one more, over another connection, where this one is dead.
    pub(super) fn renewal(&self) -> Duration {
        (self.renew_deadline - self.renew_every()) * 3 / 4
    }

    /// # Errors
    /// Names the flags that do not fit each other, and what is accepted.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Timing { lease, renew_deadline, retry } = *self;
        if lease < Duration::from_secs(1) {
            return Err(format!("--lease-duration is {lease:?} (accepted: 1s or longer)"));
        }
        if retry < Duration::from_millis(50) {
            return Err(format!("--lease-retry is {retry:?} (accepted: 50ms or longer)"));
        }
        if renew_deadline < retry.saturating_mul(2) {
            return Err(format!(
                "--lease-renew-deadline is {renew_deadline:?} and --lease-retry {retry:?} (accepted: a deadline of at \
                 least two retries)"
            ));
        }
        if lease - self.margin() <= renew_deadline {
            return Err(format!(
                "--lease-renew-deadline is {renew_deadline:?} and --lease-duration {lease:?} (accepted: a deadline \
                 shorter than the duration less {:?})",
                self.margin()
            ));
        }
        Ok(())
    }
}

/// A Lease as far as the rules look at it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    /// Changes with every write, whoever writes.
    pub(super) version: String,
    /// Empty: nobody.
    pub(super) holder: String,
    /// As its holder wrote it.
    pub(super) duration: Duration,
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Write our name, over what was seen last (create the Lease if there is none).
    Write,
    /// Nothing before this time, unless something is seen.
    Wait(Nanos),
    /// We lead no longer.
    Lost(Loss),
}

/// Why a leader leads no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Loss {
    #[error("{} holds it", if .0.is_empty() { "nobody" } else { .0 })]
    Taken(String),
    #[error("it could not be renewed for {0:?} (--lease-renew-deadline)")]
    NotRenewed(Duration),
    #[error("it was not renewed within {0:?}: this process was frozen, or its machine was asleep")]
    Expired(Duration),
}

/// What came of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// It is stored like this.
    Done(Seen),
    /// It was certainly not stored: the Lease is another than the one that was seen. To be looked at before the next
    /// step.
    Refused,
    /// Nobody knows.
    Unclear,
}

/// One candidate's view.
#[derive(Clone, Debug)]
pub(super) struct Election {
    me: String,
    timing: Timing,
    /// Names of processes that have certainly ended.
    ended: Vec<String>,
    /// As it was seen last, and since when it is like that. Kept when it is deleted: its holder may not know yet.
    seen: Option<(Seen, Nanos)>,
    exists: bool,
    /// When the last successful write was sent. `None`: it was never ours.
    held: Option<Nanos>,
    retry_at: Nanos,
}

fn after(at: Nanos, time: Duration) -> Nanos {
    at.saturating_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX))
}

impl Election {
    /// `me`: a name that no other process has, nor this one after a restart. `ended`: names of processes that have
    /// certainly ended: nobody waits for what they hold.
    pub(super) fn new(me: String, timing: Timing, ended: Vec<String>) -> Self {
        Self { me, timing, ended, seen: None, exists: false, held: None, retry_at: 0 }
    }

    /// The Lease as it is now (`now`: when the answer was received, or later). `None`: there is none.
    pub(super) fn saw(&mut self, lease: Option<Seen>, now: Nanos) {
        self.exists = lease.is_some();
        let Some(lease) = lease else { return };
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != lease) {
            self.seen = Some((lease, now));
        }
    }

    /// What came of a write that was sent at `sent`.
    pub(super) fn wrote(&mut self, sent: Nanos, written: Written, now: Nanos) {
        match written {
            Written::Done(lease) => {
                self.saw(Some(lease), now);
                self.held = Some(sent);
                self.retry_at = 0;
            }
            // Never as fast as the server answers, whatever it answers.
            Written::Refused => self.retry_at = after(now, self.timing.retry / 10),
            // Counted from the sending: who waited for an answer has waited.
            Written::Unclear => self.retry_at = after(sent, self.timing.retry),
        }
    }

    /// Until when we may act as the leader. `None`: we may not.
    pub(super) fn valid_until(&self) -> Option<Nanos> {
        Some(after(self.held?, self.timing.lease - self.timing.margin()))
    }

    /// When a leader gives up.
    pub(super) fn deadline(&self) -> Option<Nanos> {
        Some(after(self.held?, self.timing.renew_deadline))
    }

    /// Whether there is a Lease, as far as was seen.
    pub(super) fn exists(&self) -> bool {
        self.exists
    }

    /// Whom others should turn to: the holder that was seen last.
    pub(super) fn holder(&self) -> Option<&str> {
        self.seen.as_ref().filter(|_| self.exists).map(|(seen, _)| seen.holder.as_str()).filter(|name| !name.is_empty())
    }

    pub(super) fn next(&self, now: Nanos) -> Step {
        match self.held {
            Some(sent) => self.lead(sent, now),
            None => self.stand_by(now),
        }
    }

    fn lead(&self, sent: Nanos, now: Nanos) -> Step {
        if let Some((seen, _)) = &self.seen
            && self.exists
            && seen.holder != self.me
        {
            return Step::Lost(Loss::Taken(seen.holder.clone()));
        }
        if self.valid_until().is_none_or(|until| now >= until) {
            return Step::Lost(Loss::Expired(self.timing.lease));
        }
        let deadline = after(sent, self.timing.renew_deadline);
        if now >= deadline {
            return Step::Lost(Loss::NotRenewed(self.timing.renew_deadline));
        }
        match after(sent, self.timing.renew_every()).max(self.retry_at) {
            due if due <= now => Step::Write,
            due => Step::Wait(due.min(deadline)),
        }
    }

    /// Released; ours by a write whose answer was lost; or a process's that is no more.
    fn is_free(&self, holder: &str) -> bool {
        holder.is_empty() || holder == self.me || self.ended.iter().any(|name| name == holder)
    }

    fn stand_by(&self, now: Nanos) -> Step {
        let free = match &self.seen {
            None => 0,
            Some((seen, _)) if self.exists && self.is_free(&seen.holder) => 0,
            // One that was deleted was not released.
            Some((seen, at)) => after(*at, seen.duration.max(self.timing.lease)),
        };
        match free.max(self.retry_at) {
            due if due <= now => Step::Write,
            due => Step::Wait(due),
        }
    }
}

#[cfg(test)]
mod tests;
