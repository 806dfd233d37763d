//! A replica that does not lead, on a Redis that it shares with the leader: it takes events all the same, and knows the
//! stored records.

use std::sync::Arc;
use std::time::Duration;

use otto_service::client::Backoff;
use tokio::time::Instant;

use crate::apply::{Decision, Defaults, apply};
use crate::controller::board::Board;
use crate::controller::{Applied, ApplyError, CONFLICTS, Change, DEADLINE, ENDED_HELD, Reason, within, worker_names};
use crate::driver::Driver;
use crate::event::ScaleEvent;
use crate::metrics::Metrics;
use crate::store::{StoreError, TaskStore};

/// Records are read again for a list of tasks after this.
const FRESH: Duration = Duration::from_secs(1);
/// Longest wait for all of them.
const LOAD_DEADLINE: Duration = Duration::from_secs(30);

/// Applies events to stored records, by the same rules as the controller; the store tells the leader of it.
pub(crate) struct Follower {
    store: Arc<dyn TaskStore>,
    driver: Arc<dyn Driver>,
    defaults: Defaults,
    metrics: Metrics,
    /// Held while all records are read.
    shown: tokio::sync::Mutex<Option<(Instant, Arc<Board>)>>,
}

impl Follower {
    /// `store`: one that tells the leader of what is written.
    pub(crate) fn new(
        store: Arc<dyn TaskStore>,
        driver: Arc<dyn Driver>,
        defaults: Defaults,
        metrics: Metrics,
    ) -> Self {
        Self { store, driver, defaults, metrics, shown: tokio::sync::Mutex::default() }
    }

    /// Applies an event that came by gRPC.
    pub(crate) async fn apply(&self, event: &ScaleEvent) -> Result<Applied, ApplyError> {
        let result = self.decide(event).await;
        self.metrics.event(match &result {
            Ok(Applied::Changed(_)) => "applied",
            Ok(Applied::AlreadyProcessed(_)) => "already_processed",
            Ok(Applied::Dead(_)) => "dead_letter",
            Err(_) => "unavailable",
        });
        result
    }

    async fn decide(&self, event: &ScaleEvent) -> Result<Applied, ApplyError> {
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(50));
        let mut conflicts = 0;
        loop {
            let current = match within(DEADLINE, self.store.get(&event.task_id)).await {
                Ok(current) => current,
                Err(StoreError::Corrupt { reason, .. }) => return Ok(Applied::Dead(Reason::Unreadable(reason))),
                Err(error) => return Err(self.failed(&error)),
            };
            // Compared with a stream entry's time only, and this event is none.
            let now = jiff::Timestamp::now().as_millisecond();
            let (record, touched) = match apply(current.as_ref(), event, &self.defaults, now) {
                Decision::Put { record, touched, .. } => (record, touched),
                Decision::AlreadyProcessed => {
                    let Some(record) = current else { continue };
                    let worker_names = worker_names(&*self.driver, &record, None);
                    return Ok(Applied::AlreadyProcessed(Change { record: Arc::new(record), worker_names }));
                }
                Decision::Dead(reason) => return Ok(Applied::Dead(reason)),
            };
            match within(DEADLINE, self.store.put(&record, None)).await {
                Ok(()) => {
                    let worker_names = worker_names(&*self.driver, &record, Some(&touched));
                    return Ok(Applied::Changed(Change { record: Arc::new(record), worker_names }));
                }
                Err(StoreError::Conflict(_)) if conflicts < CONFLICTS => {
                    conflicts += 1;
                    tokio::time::sleep(backoff.next()).await;
                }
                Err(error) => return Err(self.failed(&error)),
            }
        }
    }

    fn failed(&self, error: &StoreError) -> ApplyError {
        self.metrics.store_errors.inc();
        ApplyError::Unavailable { retry_after: 1_000, message: error.to_string() }
    }

    /// All records, not older than a moment.
    ///
    /// # Errors
    /// The store is away.
    pub(crate) async fn board(&self) -> Result<Arc<Board>, StoreError> {
        let mut shown = self.shown.lock().await;
        if let Some((at, board)) = &*shown
            && at.elapsed() < FRESH
        {
            return Ok(Arc::clone(board));
        }
        let records = within(LOAD_DEADLINE, self.store.load(ENDED_HELD)).await?;
        // What it counts is counted by the leader.
        let board = Arc::new(Board::new(Metrics::default()));
        for record in records {
            board.show(Arc::new(record));
        }
        *shown = Some((Instant::now(), Arc::clone(&board)));
        Ok(board)
    }
}
