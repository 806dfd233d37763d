//! The runtime the scaler runs on: one thread, which in a burst is woken for many answers at once.
//!
//! Nearly all the scaler does is little, and an answer to something that has come in. With a thread per core, each
//! answer wakes a thread for a few microseconds; in a burst, falling asleep and waking up would be a third of all the
//! CPU time used, on both sides. So the work is done by one thread; and as network cards do it (interrupt
//! moderation), once it is woken very often it waits a moment before it looks for what has come, so that more has come
//! by then. What comes alone is never kept waiting.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::{Builder, Runtime};

/// So often in a second the thread is woken at once.
const AT_ONCE: u32 = 250;
/// Beyond that, what has come is looked for after this.
const MOMENT: Duration = Duration::from_millis(1);

/// A runtime with timers and network.
///
/// # Errors
/// When the system gives no thread or no poll.
pub(crate) fn build() -> io::Result<Runtime> {
    let wakes = Mutex::new(Wakes::new(Instant::now()));
    let before_sleep = move || {
        let moment = wakes.lock().unwrap_or_else(PoisonError::into_inner).next(Instant::now());
        if !moment.is_zero() {
            std::thread::sleep(moment);
        }
    };
    Builder::new_multi_thread().worker_threads(1).enable_all().on_thread_park(before_sleep).build()
}

/// How often the thread was woken of late: a bucket that a second fills.
#[derive(Debug)]
struct Wakes {
    left: u32,
    filled: Instant,
}

impl Wakes {
    fn new(now: Instant) -> Self {
        Self { left: AT_ONCE, filled: now }
    }

    /// The thread is about to sleep until something comes: for how long it does not look.
    fn next(&mut self, now: Instant) -> Duration {
        let each = Duration::from_secs(1) / AT_ONCE;
        let more = u32::try_from(now.duration_since(self.filled).as_nanos() / each.as_nanos()).unwrap_or(u32::MAX);
        if more > 0 {
            self.left = self.left.saturating_add(more).min(AT_ONCE);
            // What is left of a part of the bucket is lost only when it was full.
            self.filled = if self.left == AT_ONCE { now } else { self.filled + each * more };
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                Duration::ZERO
            }
            None => MOMENT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_alone_is_not_kept_waiting() {
        let start = Instant::now();
        let mut wakes = Wakes::new(start);
        for tick in 0..10_000_u32 {
            assert_eq!(wakes.next(start + Duration::from_millis(5) * tick), Duration::ZERO);
        }
    }

    #[test]
    fn in_a_burst_much_is_taken_at_once() {
        let start = Instant::now();
        let mut wakes = Wakes::new(start);
        let at_once = |wakes: &mut Wakes, at: Duration| (0..1_000).filter(|_| wakes.next(start + at).is_zero()).count();
        assert_eq!(at_once(&mut wakes, Duration::ZERO), 250);
        assert_eq!(at_once(&mut wakes, Duration::from_millis(10)), 2);
        assert_eq!(at_once(&mut wakes, Duration::from_millis(16)), 2);
        assert_eq!(at_once(&mut wakes, Duration::from_secs(100)), 250);
    }
}
