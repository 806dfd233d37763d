//! Whether this process may act, and for how long: what every write to a cluster asks before it is sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A leader's right to act. Counted by CLOCK_BOOTTIME, which goes on while the machine sleeps and which nobody sets: a
/// process that was frozen finds its right gone.
#[derive(Clone, Debug)]
pub(crate) struct Leadership {
    /// Nanoseconds of CLOCK_BOOTTIME until which it lasts. `None`: for ever.
    until: Option<Arc<AtomicU64>>,
}

impl Leadership {
    /// One that nobody disputes.
    #[cfg(test)]
    pub(crate) fn unlimited() -> Self {
        Self { until: None }
    }

    /// One that is to be won first.
    pub(crate) fn none_yet() -> Self {
        Self { until: Some(Arc::new(AtomicU64::new(0))) }
    }

    /// Lasts until then (nanoseconds of CLOCK_BOOTTIME); 0: it is lost.
    pub(crate) fn extend(&self, until: u64) {
        if let Some(shared) = &self.until {
            shared.store(until, Ordering::SeqCst);
        }
    }

    /// What is left of it. `None`: nothing may be written. A write's deadline must be shorter than what is left.
    pub(crate) fn left(&self) -> Option<Duration> {
        let Some(until) = &self.until else { return Some(Duration::MAX) };
        let left = until.load(Ordering::SeqCst).saturating_sub(now());
        (left > 0).then(|| Duration::from_nanos(left))
    }
}

/// A scaler that leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its Pod (or host) and a random part.
    pub(crate) name: String,
    /// `HOST:PORT` of its gRPC server, if it says so.
    pub(crate) address: Option<String>,
}

/// Nanoseconds of CLOCK_BOOTTIME.
pub(crate) fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
