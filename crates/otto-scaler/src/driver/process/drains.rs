//! How many spools are sent at a time by agents of ours, and how soon again where the log server takes nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep_until};

/// Agents at a time.
const AT_A_TIME: usize = 4;
/// Longest pause after a failure; so long after its return a log server may wait.
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// Paces the draining of all workers: a thousand spools that nobody takes cost no more than a few.
#[derive(Debug)]
pub(super) struct Drains {
    places: Semaphore,
    pace: Mutex<Pace>,
}

#[derive(Debug)]
struct Pace {
    /// In a row, of any worker.
    failures: u32,
    not_before: Instant,
}

impl Drains {
    pub(super) fn new() -> Self {
        let pace = Pace { failures: 0, not_before: Instant::now() };
        Self { places: Semaphore::new(AT_A_TIME), pace: Mutex::new(pace) }
    }

    /// Waits for a turn, which ends with the drop of what is returned. `None`: never.
    pub(super) async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        let place = self.places.acquire().await.ok()?;
        loop {
            let not_before = self.lock().not_before;
            if not_before <= Instant::now() {
                return Some(place);
            }
            // A success meanwhile makes it earlier, but a second is soon enough.
            sleep_until(not_before.min(Instant::now() + Duration::from_secs(1))).await;
        }
    }

    /// Notes what came of a turn.
    pub(super) fn ended(&self, delivered: bool) {
        let mut pace = self.lock();
        if delivered {
            *pace = Pace { failures: 0, not_before: Instant::now() };
        } else {
            let pause = Duration::from_millis(250 << pace.failures.min(8)).min(PAUSE_MAX);
            pace.failures = pace.failures.saturating_add(1);
            pace.not_before = Instant::now() + pause;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pace> {
        self.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn failures_slow_everybody_down_and_a_success_ends_it() {
        let drains = Drains::new();
        let start = Instant::now();
        for _ in 0..12 {
            drop(drains.turn().await.unwrap());
            drains.ended(false);
        }
        let slow = start.elapsed();
        assert!(slow > Duration::from_secs(60) && slow < Duration::from_secs(150), "{slow:?}");
        drop(drains.turn().await.unwrap());
        drains.ended(true);
        let start = Instant::now();
        let held = [drains.turn().await, drains.turn().await, drains.turn().await, drains.turn().await];
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(tokio::time::timeout(Duration::from_secs(5), drains.turn()).await.is_err());
        drop(held);
    }
}
