//! How old something is, for retention: by the wall clock, as far as it can be believed.
//!
//! What is stored bears the wall clock's time, since it has to be comparable after a restart. But that clock can be set
//! wrong while the store is open, and one wrong jump forward longer than the retention age would remove everything at
//! the next look, for good. So the time that ages are counted from never runs ahead of the time that really went by:
//! by the monotonic clock, from the moment the store was opened, give or take [`TOLERANCE`].
//!
//! | the wall clock, since the last look | ages are counted from |
//! |---|---|
//! | went on with the monotonic clock, or differs by no more than [`TOLERANCE`] (corrections, leap seconds) | the wall clock |
//! | jumped forward by more | the last believed time and what went by since: things go on to age, at the real pace |
//! | jumped back | the wall clock: nothing is older than it says |
//!
//! A jump forward that was right (a machine whose clock was behind, a virtual machine that was stopped) is believed when
//! the store is opened again. Until then lines are kept longer than was asked for, never shorter, and the limit by size
//! bounds them all the same. At opening the wall clock is believed: how long the store was closed only that clock knows.

use std::time::Duration;

use crate::options::Clock;

/// The wall clock may be ahead of the time that went by, by so much at a look, and still be believed.
const TOLERANCE: Duration = Duration::from_secs(3600);

/// The time that ages are counted from.
pub(crate) struct AgeClock {
    /// Nanoseconds since the Unix epoch.
    believed: i64,
    /// The monotonic clock at that moment.
    at: Duration,
    /// The wall clock is ahead and was told of.
    ahead: bool,
}

impl AgeClock {
    /// Believes the wall clock as it is now.
    pub(crate) fn new(clock: &dyn Clock) -> Self {
        Self { believed: clock.now_unix_nanos(), at: clock.monotonic(), ahead: false }
    }

    /// Nanoseconds since the Unix epoch, at most the wall clock's.
    pub(crate) fn now(&mut self, clock: &dyn Clock) -> i64 {
        let (wall, at) = (clock.now_unix_nanos(), clock.monotonic());
        let went_by = self.believed.saturating_add(nanos(at.saturating_sub(self.at)));
        self.at = at;
        let ahead = wall > went_by.saturating_add(nanos(TOLERANCE));
        if ahead && !self.ahead {
            let seconds = wall.saturating_sub(went_by) / 1_000_000_000;
            tracing::warn!(
                seconds,
                "the clock jumped forward: nothing is removed for its age because of it; if the clock is right now, a \
                 restart lets it count"
            );
        } else if self.ahead && !ahead {
            tracing::info!("the clock agrees with the time that went by again");
        }
        self.ahead = ahead;
        self.believed = if ahead { went_by } else { wall };
        self.believed
    }
}

/// A duration as nanoseconds; the longest there is for longer ones.
pub(crate) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3600;

    /// Both clocks, in seconds.
    #[derive(Default)]
    struct Seconds(AtomicI64, AtomicU64);

    impl Seconds {
        fn go(&self, real: i64, jump: i64) {
            self.0.fetch_add(real + jump, Ordering::SeqCst);
            self.1.fetch_add(real as u64, Ordering::SeqCst);
        }

        fn seconds(&self, ages: &mut AgeClock) -> i64 {
            ages.now(self) / 1_000_000_000
        }
    }

    impl Clock for Seconds {
        fn now_unix_nanos(&self) -> i64 {
            self.0.load(Ordering::SeqCst) * 1_000_000_000
        }

        fn monotonic(&self) -> Duration {
            Duration::from_secs(self.1.load(Ordering::SeqCst))
        }
    }

    #[test]
    fn a_jump_forward_does_not_make_things_older_and_they_go_on_to_age() {
        let clock = Seconds::default();
        let mut ages = AgeClock::new(&clock);
        clock.go(60, 0);
        assert_eq!(clock.seconds(&mut ages), 60);
        // A correction is followed.
        clock.go(60, HOUR);
        assert_eq!(clock.seconds(&mut ages), HOUR + 120);
        // A jump is not, at no later look either.
        clock.go(60, 24 * HOUR);
        for look in 3..50 {
            assert_eq!(clock.seconds(&mut ages), HOUR + look * 60);
            clock.go(60, 0);
        }
        // It is put right, back and beyond.
        clock.go(0, -24 * HOUR);
        assert_eq!(clock.seconds(&mut ages), HOUR + 50 * 60);
        clock.go(60, -10 * HOUR);
        assert_eq!(clock.seconds(&mut ages), HOUR + 51 * 60 - 10 * HOUR);
        // Believed when it is opened again.
        clock.go(0, 48 * HOUR);
        assert!(clock.seconds(&mut ages) < 0);
        assert_eq!(AgeClock::new(&clock).now(&clock), clock.now_unix_nanos());
    }

    proptest! {
        #[test]
        fn the_time_is_never_ahead_of_the_wall_clock_nor_runs_faster_than_real_time_and_its_corrections(
            steps in proptest::collection::vec((0..100_000i64, -1_000_000..1_000_000i64), 1..50),
        ) {
            let clock = Seconds::default();
            let mut ages = AgeClock::new(&clock);
            let mut before = 0;
            for (real, jump) in steps {
                clock.go(real, jump);
                let now = clock.seconds(&mut ages);
                prop_assert!(now <= clock.0.load(Ordering::SeqCst));
                prop_assert!(now - before <= real + HOUR);
                before = now;
            }
        }
    }
}
