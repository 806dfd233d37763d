//! When lines that were collected become a block, and whether it is compressed.
//!
//! Pure: the time is an argument.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use otto_proto::v1::Compression;

/// What the upload is doing, as far as batches care.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Demand {
    /// There is no connection: blocks only go to the spool.
    Away = 0,
    /// Nothing is in flight: what comes first goes at once.
    Idle = 1,
    /// Something is in flight.
    Busy = 2,
    /// The window is full: larger blocks lose no time.
    Behind = 3,
}

/// What the upload tells the capture, while both run.
#[derive(Debug)]
pub(crate) struct Feedback {
    demand: AtomicU8,
    max_line: AtomicUsize,
    /// As set by the user.
    own_max_line: usize,
}

impl Feedback {
    /// `max_line_bytes` is the user's own limit.
    pub(crate) fn new(max_line_bytes: usize) -> Self {
        Feedback {
            demand: AtomicU8::new(Demand::Away as u8),
            max_line: AtomicUsize::new(max_line_bytes),
            own_max_line: max_line_bytes,
        }
    }

    pub(crate) fn set_demand(&self, demand: Demand) {
        self.demand.store(demand as u8, Ordering::Relaxed);
    }

    pub(crate) fn demand(&self) -> Demand {
        match self.demand.load(Ordering::Relaxed) {
            1 => Demand::Idle,
            2 => Demand::Busy,
            3 => Demand::Behind,
            _ => Demand::Away,
        }
    }

    /// The server's limit of a line, 0 or less: none. Holds for lines that are read from now on.
    pub(crate) fn limit_lines(&self, bytes: i32) {
        let limit = usize::try_from(bytes).ok().filter(|bytes| *bytes > 0).unwrap_or(usize::MAX);
        self.max_line.store(limit.min(self.own_max_line), Ordering::Relaxed);
    }

    pub(crate) fn max_line(&self) -> usize {
        self.max_line.load(Ordering::Relaxed)
    }
}

/// When to make a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// Bytes of lines.
    pub(crate) bytes: usize,
    pub(crate) lines: u32,
    /// Counted from the first line.
    pub(crate) delay: Duration,
}

/// How much longer than the delay lines wait when the window is full, or there is no connection.
const BEHIND: u32 = 10;

impl Policy {
    /// When lines that are there since `first_at` become a block; `None`: now. `more`: there is probably more to read.
    ///
    /// Without a connection nobody waits for them, but they should soon be where they survive us.
    pub(crate) fn due(
        &self,
        bytes: usize,
        lines: u32,
        first_at: Instant,
        more: bool,
        demand: Demand,
    ) -> Option<Instant> {
        if bytes >= self.bytes || lines >= self.lines {
            return None;
        }
        match demand {
            Demand::Idle if !more => None,
            Demand::Idle | Demand::Busy => Some(first_at + self.delay),
            Demand::Behind | Demand::Away => Some(first_at + self.delay * BEHIND),
        }
    }
}

/// Decides block by block whether compressing is worth trying: output that is compressed or random is left alone, and
/// tried again now and then.
#[derive(Clone, Debug)]
pub(crate) struct Compressor {
    level: Option<i32>,
    misses: u32,
    skip: u32,
}

/// Smaller blocks gain nothing that matters; the log server compresses when it merges them.
const WORTH_IT: usize = 4 << 10;
/// Most blocks that go by before the next try.
const MOST_SKIPPED: u32 = 64;

impl Compressor {
    /// zstd at this level; `None`: never.
    pub(crate) fn new(level: Option<i32>) -> Self {
        Compressor { level, misses: 0, skip: 0 }
    }

    /// The level for the next block.
    pub(crate) fn level(&mut self, bytes: usize) -> Option<i32> {
        if bytes < WORTH_IT {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.level
    }

    /// What came of a block that was tried.
    pub(crate) fn tried(&mut self, result: Compression) {
        if result == Compression::Zstd {
            (self.misses, self.skip) = (0, 0);
        } else {
            self.misses = (self.misses + 1).min(MOST_SKIPPED.ilog2());
            self.skip = 1 << self.misses;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Policy = Policy { bytes: 1000, lines: 10, delay: Duration::from_millis(1) };

    #[test]
    fn the_delay_counts_from_the_first_line() {
        let first = Instant::now();
        assert_eq!(POLICY.due(10, 1, first, false, Demand::Busy), Some(first + Duration::from_millis(1)));
        assert_eq!(POLICY.due(10, 1, first, false, Demand::Away), Some(first + Duration::from_millis(10)));
        assert_eq!(POLICY.due(10, 1, first, true, Demand::Idle), Some(first + Duration::from_millis(1)));
        assert_eq!(POLICY.due(10, 1, first, false, Demand::Idle), None);
        assert_eq!(POLICY.due(1000, 1, first, true, Demand::Behind), None);
        assert_eq!(POLICY.due(10, 10, first, true, Demand::Behind), None);
    }

    #[test]
    fn what_does_not_shrink_is_tried_less_and_less() {
        let mut compressor = Compressor::new(Some(1));
        let mut tries = 0;
        for _ in 0..1000 {
            if compressor.level(WORTH_IT).is_some() {
                tries += 1;
                compressor.tried(Compression::None);
            }
        }
        assert!((10..30).contains(&tries), "{tries}");
        while compressor.level(WORTH_IT).is_none() {}
        compressor.tried(Compression::Zstd);
        assert_eq!(compressor.level(WORTH_IT), Some(1));
        assert_eq!(compressor.level(WORTH_IT - 1), None);
        assert_eq!(Compressor::new(None).level(1 << 20), None);
    }

    #[test]
    fn the_smaller_limit_of_lines_holds() {
        let feedback = Feedback::new(1000);
        for (server, limit) in [(0, 1000), (-1, 1000), (10, 10), (5000, 1000)] {
            feedback.limit_lines(server);
            assert_eq!(feedback.max_line(), limit);
        }
    }
}
