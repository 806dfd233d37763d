//! Keeps to the lines per second that the log server allows.

use std::time::{Duration, Instant};

const SHORTEST_WAIT: Duration = Duration::from_micros(100);

/// A bucket that fills with the rate and holds one second's worth. It may go into debt by one message, which is paid
/// before the next.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Lines per second; `None`: no limit.
    rate: Option<f64>,
    level: f64,
    at: Instant,
}

impl Pace {
    /// `rate` in lines per second, 0 or less: no limit.
    pub(crate) fn new(rate: i32, now: Instant) -> Self {
        let rate = (rate > 0).then(|| f64::from(rate));
        Pace { rate, level: rate.unwrap_or(0.0), at: now }
    }

    /// Most lines that one message should hold.
    pub(crate) fn message_lines(&self) -> u64 {
        self.rate.map_or(u64::MAX, |rate| (rate as u64).max(1))
    }

    /// When the next message may be sent; `None`: now.
    pub(crate) fn wait_until(&mut self, now: Instant) -> Option<Instant> {
        let rate = self.rate?;
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.level = (self.level + passed * rate).min(rate);
        self.at = self.at.max(now);
        // Rounding must not make it a moment that has come.
        let wait = || Duration::from_secs_f64((1.0 - self.level) / rate).max(SHORTEST_WAIT);
        (self.level < 1.0).then(|| now + wait())
    }

    /// So many lines were sent.
    pub(crate) fn sent(&mut self, lines: u64) {
        if self.rate.is_some() {
            self.level -= lines as f64;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_rate_is_kept_and_used(rate in 1..5000i32, sizes in prop::collection::vec(1..500u64, 50..100)) {
            let start = Instant::now();
            let mut now = start;
            let mut pace = Pace::new(rate, now);
            let (mut lines, mut last) = (0, 0);
            for size in sizes {
                let size = size.min(pace.message_lines());
                while let Some(until) = pace.wait_until(now) {
                    prop_assert!(until > now);
                    now = until;
                }
                pace.sent(size);
                lines += size;
                last = size;
            }
            let seconds = (now - start).as_secs_f64();
            let allowed = f64::from(rate) * (seconds + 1.0);
            prop_assert!((lines - last) as f64 <= allowed, "{lines} in {seconds}");
            // And no slower than needed: two seconds' worth of slack.
            prop_assert!(lines as f64 + 2.0 * f64::from(rate) >= f64::from(rate) * seconds);
        }
    }

    #[test]
    fn no_limit() {
        let now = Instant::now();
        let mut pace = Pace::new(0, now);
        pace.sent(1 << 40);
        assert_eq!(pace.wait_until(now), None);
    }
}
