use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::age::nanos;

/// Where the store takes its time from.
pub trait Clock: Send + Sync + 'static {
    /// Nanoseconds since the Unix epoch. May jump, back and forth.
    fn now_unix_nanos(&self) -> i64;

    /// Time since some moment that stays the same while the process lives. Goes on at the real pace, also while the
    /// machine sleeps, and never jumps. Retention believes the other clock only as far as this one bears it out.
    fn monotonic(&self) -> Duration;
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_unix_nanos(&self) -> i64 {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, nanos)
    }

    fn monotonic(&self) -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
        Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), nanos)
    }
}

/// How a store works. [`Options::new`] has defaults for everything but the directory.
#[derive(Clone)]
pub struct Options {
    /// Where everything is kept. Created if its parent exists.
    pub data_dir: PathBuf,
    /// A segment is sealed when it reaches this size, bytes. 64 KiB to 1 GiB; default 64 MiB.
    pub segment_bytes: u64,
    /// Lines older than this (by the time they were stored) are removed, segment by segment: at the latest when they
    /// are an eighth older. A clock that jumps forward while the store is open makes nothing older: lines then stay
    /// until they are really that old, or the store is opened again. `None`: never. Default 7 days.
    pub retention_age: Option<Duration>,
    /// The oldest segments are removed when all together are larger, bytes. `None`: no limit. Default 10 GiB.
    pub retention_bytes: Option<u64>,
    /// How long the bookkeeping of a run that is neither finished nor written to outlives its lines, so that a worker
    /// silent for so long can still go on. Default 30 days.
    pub idle_run_age: Duration,
    /// Most bytes waiting to be written. One record is always accepted. Default 32 MiB.
    pub queue_bytes: usize,
    /// Most records waiting to be written. Default 16,384.
    pub queue_records: usize,
    /// Most bytes of one group commit (a single larger record is one by itself). Default 2 MiB: more is no faster, and what
    /// arrives meanwhile waits longer.
    pub commit_bytes: usize,
    /// Memory for pages of the index, bytes. Default 4 MiB.
    pub index_cache_bytes: usize,
    /// Whether small neighbouring blocks are merged when a segment is sealed. Default true.
    pub merge: bool,
    /// Where the store takes its time from.
    pub clock: Arc<dyn Clock>,
    /// For tests: makes the disk fail.
    #[doc(hidden)]
    pub faults: Arc<dyn Faults>,
}

/// For tests: called before the disk is asked, in the writer's thread and while opening.
#[doc(hidden)]
pub trait Faults: Send + Sync + 'static {
    /// An error is what the write then fails with.
    ///
    /// # Errors
    /// As the test wants.
    fn before_write(&self, _bytes: u64) -> io::Result<()> {
        Ok(())
    }

    /// An error is what fdatasync then fails with.
    ///
    /// # Errors
    /// As the test wants.
    fn before_sync(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A disk that works.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFaults;

impl Faults for NoFaults {}

impl Options {
    /// Defaults, in this directory.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            segment_bytes: 64 << 20,
            retention_age: Some(Duration::from_secs(7 * 24 * 3600)),
            retention_bytes: Some(10 << 30),
            idle_run_age: Duration::from_secs(30 * 24 * 3600),
            queue_bytes: 32 << 20,
            queue_records: 16_384,
            commit_bytes: 2 << 20,
            index_cache_bytes: 4 << 20,
            merge: true,
            clock: Arc::new(SystemClock),
            faults: Arc::new(NoFaults),
        }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("data_dir", &self.data_dir)
            .field("segment_bytes", &self.segment_bytes)
            .field("retention_age", &self.retention_age)
            .field("retention_bytes", &self.retention_bytes)
            .field("queue_bytes", &self.queue_bytes)
            .field("merge", &self.merge)
            .finish_non_exhaustive()
    }
}
