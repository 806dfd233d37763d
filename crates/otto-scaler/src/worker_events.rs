//! What happens to workers, told to the log server, to the Redis stream `otto:worker:events`, and to gRPC watchers.
//! Nothing of this delays starting a worker: telling costs a push into bounded queues.
//!
//! A sink that is away is tried again with backoff, in order. If its queue overflows meanwhile, what was left out is
//! derived from the records again once it is back (and after every start): ids are deterministic, so nothing shows twice.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use otto_proto::v1::WorkerEvent;
use otto_proto::v1::worker_event::Type;
use otto_service::client::Backoff;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::controller::board::Board;
use crate::driver::Driver;
use crate::metrics::{Metrics, SinkLabel};
use crate::task::{EntryId, Millis};

pub(crate) mod derive;
pub(crate) mod log_server;

use derive::Teller;

/// Events a sink may lag behind.
const QUEUE: usize = 16_384;
/// Events a watcher may lag behind before it skips.
const WATCHERS: usize = 4_096;
/// Events given to a sink at once; the log server's maximum.
const BATCH: usize = 1_000;
/// Between two batches: in a burst, many small ones would cost more than what is in them.
const APART: Duration = Duration::from_millis(10);

/// A place that takes worker events, in order, at least once (readers tell repeats by `event_id`).
pub(crate) trait Sink: Send + Sync + 'static {
    /// For logs and metrics: `log_server`, `redis`.
    fn name(&self) -> &'static str;

    /// Takes all of `events` (at most 1,000) or fails; after a failure the same ones come again, with backoff.
    fn publish<'a>(&'a self, events: &'a [Arc<WorkerEvent>]) -> BoxFuture<'a, anyhow::Result<()>>;
}

/// Cheap handle; never blocks.
#[derive(Clone, Debug)]
pub(crate) struct Publisher {
    watchers: broadcast::Sender<Arc<WorkerEvent>>,
    queues: Arc<[Arc<Queue>]>,
}

impl Publisher {
    /// Tells everybody.
    pub(crate) fn publish(&self, events: Vec<WorkerEvent>) {
        if events.is_empty() {
            return;
        }
        let events: Vec<_> = derive::shared(events).collect();
        for queue in self.queues.iter() {
            queue.push(&events);
        }
        for event in events {
            // No watcher is no failure.
            let _ = self.watchers.send(event);
        }
    }

    /// Everything from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<Arc<WorkerEvent>> {
        self.watchers.subscribe()
    }

    /// An entry of the stream was deleted or trimmed before it could be applied. `task_id` if it is known.
    pub(crate) fn event_lost(&self, entry: EntryId, task_id: Option<&str>) {
        let at = i64::try_from(entry.millis).unwrap_or_default();
        self.publish(vec![WorkerEvent {
            event_id: format!("lost/{entry}"),
            task_id: task_id.map_or_else(|| entry.to_string(), str::to_owned),
            r#type: Type::EventLost.into(),
            time: Some(derive::timestamp(at)),
            message: format!("entry {entry} of the event stream was deleted before it could be applied"),
            ..WorkerEvent::default()
        }]);
    }
}

/// What one sink has to take yet.
#[derive(Debug)]
struct Queue {
    sink: &'static str,
    events: Mutex<VecDeque<Arc<WorkerEvent>>>,
    more: Notify,
    /// Something did not fit, or may be missing from before the start.
    incomplete: AtomicBool,
    metrics: Metrics,
}

impl Queue {
    fn push(&self, events: &[Arc<WorkerEvent>]) {
        let mut queue = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = events.len().min(QUEUE.saturating_sub(queue.len()));
        queue.extend(events[..fits].iter().cloned());
        drop(queue);
        if fits < events.len() {
            self.incomplete.store(true, Ordering::Release);
            let left_out = u64::try_from(events.len() - fits).unwrap_or_default();
            self.metrics.worker_events_overflowed.get_or_create(&SinkLabel { sink: self.sink }).inc_by(left_out);
        }
        self.more.notify_one();
    }

    fn first(&self) -> Vec<Arc<WorkerEvent>> {
        let queue = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        queue.iter().take(BATCH).cloned().collect()
    }

    fn taken(&self, count: usize) {
        let mut queue = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let count = count.min(queue.len());
        queue.drain(..count);
    }
}

/// Carries the events of one sink.
pub(crate) struct Carrier {
    queue: Arc<Queue>,
    sink: Arc<dyn Sink>,
}

/// The publisher, and the carriers that are to be run.
pub(crate) fn new(sinks: Vec<Arc<dyn Sink>>, metrics: &Metrics) -> (Publisher, Vec<Carrier>) {
    let (watchers, _) = broadcast::channel(WATCHERS);
    let carriers: Vec<_> = sinks
        .into_iter()
        .map(|sink| Carrier {
            queue: Arc::new(Queue {
                sink: sink.name(),
                events: Mutex::default(),
                more: Notify::new(),
                // What the scaler could not tell before it ended is told after its start.
                incomplete: AtomicBool::new(true),
                metrics: metrics.clone(),
            }),
            sink,
        })
        .collect();
    let queues = carriers.iter().map(|carrier| Arc::clone(&carrier.queue)).collect();
    (Publisher { watchers, queues }, carriers)
}

impl Carrier {
    /// Runs until `stop`, then gives what is left one last try.
    pub(crate) async fn run(
        self,
        board: Arc<Board>,
        driver: Arc<dyn Driver>,
        loaded: CancellationToken,
        stop: CancellationToken,
    ) {
        tokio::select! {
            () = self.carry(&board, &*driver, &loaded) => {}
            () = stop.cancelled() => {
                let last = async {
                    loop {
                        let events = self.queue.first();
                        if events.is_empty() || self.sink.publish(&events).await.is_err() {
                            break;
                        }
                        self.queue.taken(events.len());
                    }
                };
                // They are derived again after the next start: not worth more.
                let _ = tokio::time::timeout(Duration::from_secs(2), last).await;
            }
        }
    }

    async fn carry(&self, board: &Board, driver: &dyn Driver, loaded: &CancellationToken) {
        let mut next = Instant::now();
        loop {
            let events = self.queue.first();
            if !events.is_empty() && next > Instant::now() {
                tokio::time::sleep_until(next).await;
            } else if !events.is_empty() {
                next = Instant::now() + APART;
                self.deliver(&events).await;
                self.queue.taken(events.len());
            } else if loaded.is_cancelled() && self.queue.incomplete.swap(false, Ordering::AcqRel) {
                self.tell_again(board, driver).await;
            } else {
                tokio::select! {
                    () = self.queue.more.notified() => {}
                    () = loaded.cancelled(), if !loaded.is_cancelled() => {}
                }
            }
        }
    }

    /// Everything that the records still tell, oldest task first.
    async fn tell_again(&self, board: &Board, driver: &dyn Driver) {
        let mut before = None;
        loop {
            let page = board.page(before.as_ref(), 200, |_| true);
            let Some(last) = page.last() else { return };
            before = Some((last.created_at, last.task_id.clone()));
            let now: Millis = last.created_at;
            let events: Vec<_> =
                page.iter().flat_map(|record| Teller { driver, record }.all(now)).map(Arc::new).collect();
            for events in events.chunks(BATCH) {
                self.deliver(events).await;
            }
        }
    }

    async fn deliver(&self, events: &[Arc<WorkerEvent>]) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut told = false;
        loop {
            match self.sink.publish(events).await {
                Ok(()) => {
                    if told {
                        tracing::info!(sink = self.sink.name(), "worker events are taken again");
                    }
                    let sent = u64::try_from(events.len()).unwrap_or_default();
                    let label = SinkLabel { sink: self.sink.name() };
                    self.queue.metrics.worker_events_sent.get_or_create(&label).inc_by(sent);
                    return;
                }
                Err(error) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            sink = self.sink.name(),
                            error = format!("{error:#}"),
                            "worker events are not taken; trying again"
                        );
                    }
                    tokio::time::sleep(backoff.next()).await;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
