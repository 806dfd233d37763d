//! What happens to workers, told to the log server, to the Redis stream `otto:worker:events`, and to gRPC watchers.
//! Nothing of this delays starting a worker: telling costs a push into bounded queues.
//!
//! A sink that is away is tried again with backoff, in order. If its queue overflows meanwhile, what was left out is
//! derived from the records again once it is back (and after every start): ids are deterministic, so nothing shows twice.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use otto_proto::v1::WorkerEvent;
use otto_proto::v1::worker_event::Type;
use otto_service::client::Backoff;
use prost::Message as _;
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

/// Events a sink may lag behind,
const QUEUE: usize = 16_384;
/// and their bytes.
const QUEUE_BYTES: usize = 32 << 20;
/// Events a watcher may lag behind before it skips.
const WATCHERS: usize = 4_096;
/// Events given to a sink at once; the log server's maximum.
const BATCH: usize = 1_000;
/// Bytes given to a sink at once, unless one event has more: servers take messages of at least four times as many.
const BATCH_BYTES: usize = 1 << 20;
/// Between two batches: in a burst, many small ones would cost more than what is in them.
const APART: Duration = Duration::from_millis(10);

/// A place that takes worker events, in order, at least once (readers tell repeats by `event_id`).
pub(crate) trait Sink: Send + Sync + 'static {
    /// For logs and metrics: `log_server`, `redis`.
    fn name(&self) -> &'static str;

    /// Takes all of `events` (at most 1,000) or fails; after a failure the same ones come again, with backoff, or, if they
    /// are refused, in smaller parts.
    fn publish<'a>(&'a self, events: &'a [Arc<WorkerEvent>]) -> BoxFuture<'a, Result<(), NotTaken>>;
}

/// Why a sink did not take events.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotTaken {
    /// It may take them later.
    #[error("{0:#}")]
    Away(anyhow::Error),
    /// It would say the same of the same events again: it does not like one of them, or they are too many together.
    #[error("{0:#}")]
    Refused(anyhow::Error),
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
    events: Mutex<Waiting>,
    more: Notify,
    /// Something did not fit, or may be missing from before the start.
    incomplete: AtomicBool,
    metrics: Metrics,
}

#[derive(Debug, Default)]
struct Waiting {
    events: VecDeque<Arc<WorkerEvent>>,
    bytes: usize,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, events: &[Arc<WorkerEvent>]) {
        let mut waiting = self.waiting();
        let mut left_out = 0;
        for event in events {
            let bytes = event.encoded_len();
            // None after one that did not fit: they go in order.
            if left_out > 0 || waiting.events.len() >= QUEUE || waiting.bytes + bytes > QUEUE_BYTES {
                left_out += 1;
                continue;
            }
            waiting.bytes += bytes;
            waiting.events.push_back(Arc::clone(event));
        }
        drop(waiting);
        if left_out > 0 {
            self.incomplete.store(true, Ordering::Release);
            self.metrics.worker_events_overflowed.get_or_create(&SinkLabel { sink: self.sink }).inc_by(left_out);
        }
        self.more.notify_one();
    }

    /// As many as are given to a sink at once.
    fn first(&self) -> Vec<Arc<WorkerEvent>> {
        let waiting = self.waiting();
        let count = batch(waiting.events.iter());
        waiting.events.iter().take(count).cloned().collect()
    }

    fn taken(&self, count: usize) {
        let mut waiting = self.waiting();
        let count = count.min(waiting.events.len());
        let bytes: usize = waiting.events.drain(..count).map(|event| event.encoded_len()).sum();
        waiting.bytes = waiting.bytes.saturating_sub(bytes);
    }
}

/// How many of these, from the first on, are given to a sink at once.
fn batch<'a>(events: impl Iterator<Item = &'a Arc<WorkerEvent>>) -> usize {
    let mut bytes = 0;
    let fits = |event: &&Arc<WorkerEvent>| {
        bytes += event.encoded_len();
        bytes <= BATCH_BYTES
    };
    // One that is larger goes alone.
    let mut events = events.take(BATCH).peekable();
    let some = usize::from(events.peek().is_some());
    events.take_while(fits).count().max(some)
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
            let mut rest = &events[..];
            while !rest.is_empty() {
                let (part, after) = rest.split_at(batch(rest.iter()));
                self.deliver(part).await;
                rest = after;
            }
        }
    }

    async fn deliver(&self, events: &[Arc<WorkerEvent>]) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let mut told = false;
        // Parts that are refused as a whole are given in halves; the first one is next.
        let mut parts = vec![events];
        while let Some(part) = parts.pop() {
            let label = SinkLabel { sink: self.sink.name() };
            match self.sink.publish(part).await {
                Ok(()) => {
                    if std::mem::take(&mut told) {
                        tracing::info!(sink = self.sink.name(), "worker events are taken again");
                    }
                    backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
                    let sent = u64::try_from(part.len()).unwrap_or_default();
                    self.queue.metrics.worker_events_sent.get_or_create(&label).inc_by(sent);
                }
                Err(NotTaken::Refused(error)) => match part {
                    [event] => {
                        tracing::error!(
                            sink = self.sink.name(),
                            event = event.event_id,
                            error = format!("{error:#}"),
                            "a worker event is refused; it is left out"
                        );
                        self.queue.metrics.worker_events_refused.get_or_create(&label).inc();
                    }
                    many => {
                        let (first, second) = many.split_at(many.len() / 2);
                        parts.extend([second, first].into_iter().filter(|part| !part.is_empty()));
                    }
                },
                Err(NotTaken::Away(error)) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            sink = self.sink.name(),
                            error = format!("{error:#}"),
                            "worker events are not taken; trying again"
                        );
                    }
                    tokio::time::sleep(backoff.next()).await;
                    parts.push(part);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
