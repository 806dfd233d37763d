//! Pauses between attempts.

use rand::Rng;
use std::time::Duration;

/// Exponential backoff with full jitter: each pause is a random time between `min` and a bound that begins at twice
/// `min` and doubles up to `max`. Many clients that lost the same server so come back spread over time.
/// <https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>
#[derive(Clone, Debug)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    attempt: u32,
}

impl Backoff {
    /// Pauses from `min` to `max`. A `max` below `min` is `min`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Backoff { min, max: max.max(min), attempt: 0 }
    }

    /// The next pause.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Duration {
        self.next_with(&mut rand::rng())
    }

    /// The next pause, by this source of randomness.
    pub fn next_with(&mut self, random: &mut impl Rng) -> Duration {
        let doublings = self.attempt.saturating_add(1).min(31);
        self.attempt = self.attempt.saturating_add(1);
        let bound = self.min.saturating_mul(1 << doublings).min(self.max);
        self.min + bound.saturating_sub(self.min).mul_f64(random.random::<f64>())
    }

    /// Begins again: after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Pauses taken since the beginning or the last success.
    pub fn attempts(&self) -> u32 {
        self.attempt
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn pauses_grow_within_their_bounds_and_begin_again() {
        let (min, max) = (Duration::from_millis(100), Duration::from_secs(5));
        let mut random = rand::rngs::StdRng::seed_from_u64(7);
        for _ in 0..100 {
            let mut backoff = Backoff::new(min, max);
            for attempt in 0..100_u32 {
                let bound = min.saturating_mul(2_u32.saturating_pow(attempt + 1)).min(max);
                let pause = backoff.next_with(&mut random);
                assert!(pause >= min && pause <= bound, "attempt {attempt}: {pause:?}");
            }
            assert_eq!(backoff.attempts(), 100);
            backoff.reset();
            assert!(backoff.next_with(&mut random) <= min * 2);
        }
    }

    #[test]
    fn pauses_differ() {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_secs(60));
        let pauses: std::collections::HashSet<_> = (0..20).map(|_| backoff.next()).collect();
        assert!(pauses.len() > 15, "{pauses:?}");
    }

    #[test]
    fn a_bound_below_the_least_is_the_least() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::ZERO);
        assert_eq!(backoff.next(), Duration::from_secs(1));
    }
}
