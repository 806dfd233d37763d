//! Time as the controller sees it: the wall clock's at the start, then counted by the monotonic clock, so that a jump of
//! the wall clock fires no timer and ends no worker.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::task::Millis;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    wall: Millis,
    base: Instant,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall: i64::try_from(since.as_millis()).unwrap_or(i64::MAX), base: Instant::now() }
    }

    pub(crate) fn now(&self) -> Millis {
        self.wall + i64::try_from(self.base.elapsed().as_millis()).unwrap_or(i64::MAX / 2)
    }

    /// When the time is `at`. Rounded up, so that a timer for it never finds itself too early.
    pub(crate) fn instant(&self, at: Millis) -> Instant {
        self.base + Duration::from_millis(u64::try_from(at - self.wall).unwrap_or(0))
    }
}
