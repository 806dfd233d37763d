//! When the job is told to stop, and when it is made to.
//!
//! Pure: the time is an argument.

use std::time::{Duration, Instant};

/// Why the job was stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Why {
    /// We were told to.
    Told,
    /// It ran longer than it may.
    Deadline,
}

/// What to do to the job's process group now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    Nothing,
    Terminate,
    Kill,
}

/// Follows one job.
#[derive(Debug)]
pub(crate) struct Stop {
    deadline: Option<Instant>,
    grace: Duration,
    why: Option<Why>,
    kill_at: Option<Instant>,
    end_by: Option<Instant>,
    interrupted: bool,
}

/// Of the grace period, what is kept for sending the rest of the output: a fifth, at most this.
const FOR_THE_REST: Duration = Duration::from_secs(3);

impl Stop {
    /// `timeout`: how long the job may run from now. `grace`: within it the job has ended after it was told to stop, and
    /// its output is sent.
    pub(crate) fn new(now: Instant, timeout: Option<Duration>, grace: Duration) -> Self {
        let deadline = timeout.and_then(|timeout| now.checked_add(timeout));
        Stop { deadline, grace, why: None, kill_at: None, end_by: None, interrupted: false }
    }

    /// SIGTERM or (`interrupt`) SIGINT came and is passed on to the job. Somebody who presses Ctrl-C twice wants it to
    /// end; a supervisor may well repeat its SIGTERM.
    pub(crate) fn told(&mut self, now: Instant, interrupt: bool) -> Act {
        let again = interrupt && std::mem::replace(&mut self.interrupted, true);
        // Also when it is being stopped for its deadline: whoever tells us kills us when the grace period is over.
        self.end_by.get_or_insert(now + self.grace);
        self.begin(now, Why::Told);
        if again { Act::Kill } else { Act::Nothing }
    }

    fn begin(&mut self, now: Instant, why: Why) {
        if self.why.is_none() {
            self.why = Some(why);
            self.kill_at = Some(now + (self.grace - (self.grace / 5).min(FOR_THE_REST)));
        }
    }

    /// Call it at [`Stop::wake_at`], or at any time.
    pub(crate) fn act(&mut self, now: Instant) -> Act {
        if self.kill_at.is_some_and(|at| at <= now) {
            // Again each second: a process may be created while its group is killed.
            self.kill_at = Some(now + Duration::from_secs(1));
            return Act::Kill;
        }
        if self.why.is_none() && self.deadline.is_some_and(|at| at <= now) {
            self.begin(now, Why::Deadline);
            return Act::Terminate;
        }
        Act::Nothing
    }

    /// When [`Stop::act`] has something to do.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        self.kill_at.or(self.deadline)
    }

    /// When whoever told us to stop will kill us.
    pub(crate) fn end_by(&self) -> Option<Instant> {
        self.end_by
    }

    /// Why the job was stopped, if it was.
    pub(crate) fn why(&self) -> Option<Why> {
        self.why
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn told_to_stop_it_is_killed_before_the_grace_period_ends() {
        let now = Instant::now();
        let mut stop = Stop::new(now, None, 10 * SECOND);
        assert_eq!((stop.wake_at(), stop.act(now + 100 * SECOND)), (None, Act::Nothing));
        assert_eq!(stop.told(now, false), Act::Nothing);
        assert_eq!(stop.wake_at(), Some(now + 8 * SECOND));
        // Told again: nothing changes.
        assert_eq!(stop.told(now + SECOND, false), Act::Nothing);
        assert_eq!(stop.act(now + 7 * SECOND), Act::Nothing);
        assert_eq!(stop.act(now + 8 * SECOND), Act::Kill);
        assert_eq!(stop.act(now + 8 * SECOND), Act::Nothing);
        assert_eq!((stop.act(now + 9 * SECOND), stop.why()), (Act::Kill, Some(Why::Told)));
        assert_eq!(stop.end_by(), Some(now + 10 * SECOND));
    }

    #[test]
    fn the_deadline_terminates_then_kills() {
        let now = Instant::now();
        let mut stop = Stop::new(now, Some(5 * SECOND), SECOND);
        assert_eq!(stop.wake_at(), Some(now + 5 * SECOND));
        assert_eq!(stop.act(now + 5 * SECOND), Act::Terminate);
        assert_eq!(stop.act(now + 5 * SECOND), Act::Nothing);
        assert_eq!(stop.told(now + 5 * SECOND, false), Act::Nothing);
        assert_eq!(stop.act(now + 6 * SECOND), Act::Kill);
        assert_eq!(stop.why(), Some(Why::Deadline));
    }

    #[test]
    fn a_second_interrupt_kills_at_once() {
        let now = Instant::now();
        let mut stop = Stop::new(now, None, 10 * SECOND);
        assert_eq!(stop.told(now, true), Act::Nothing);
        assert_eq!(stop.told(now, false), Act::Nothing);
        assert_eq!(stop.told(now, true), Act::Kill);
    }
}
