//! How much may go on at the same time.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::problem::Problem;

/// Streams open at the same time.
const STREAMS: usize = 1_000;
/// Downloads at the same time.
const DOWNLOADS: usize = 64;
/// Searches at the same time: each takes a processor and some megabytes.
const READS: usize = 8;
/// Logs measured at the same time, for the length of a download.
const MEASURES: usize = 2;
/// How long a search waits for its turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is left of each.
#[derive(Debug, Clone)]
pub(super) struct Limits {
    streams: Arc<Semaphore>,
    downloads: Arc<Semaphore>,
    reads: Arc<Semaphore>,
    measures: Arc<Semaphore>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            streams: Arc::new(Semaphore::new(STREAMS)),
            downloads: Arc::new(Semaphore::new(DOWNLOADS)),
            reads: Arc::new(Semaphore::new(READS)),
            measures: Arc::new(Semaphore::new(MEASURES)),
        }
    }
}

impl Limits {
    /// A place among the streams, or 503.
    pub(super) fn streams(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let taken = self.streams.clone().try_acquire_owned();
        taken.map_err(|_| Problem::busy(format!("{STREAMS} streams are open, which is the limit"), 5))
    }

    /// A place among the downloads, or 503.
    pub(super) fn downloads(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let taken = self.downloads.clone().try_acquire_owned();
        taken.map_err(|_| Problem::busy(format!("{DOWNLOADS} downloads are under way, which is the limit"), 5))
    }

    /// A place among the searches, or 503 after a while.
    pub(super) async fn reads(&self) -> Result<OwnedSemaphorePermit, Problem> {
        match tokio::time::timeout(PATIENCE, self.reads.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Problem::busy("too many searches are under way", 2)),
        }
    }

    /// Waits for its turn to measure.
    pub(super) async fn measuring(&self) -> Result<OwnedSemaphorePermit, Problem> {
        self.measures.clone().acquire_owned().await.map_err(|_| Problem::busy("the log server is ending", 5))
    }
}
