//! The Redis Stream of events: read by a consumer group, applied in the order of ids, acknowledged by the same atomic step
//! that stores what they did ([`crate::store::redis`]).
//!
//! Delivery is at least once, the effect exactly once:
//! - entries that were delivered and not settled are claimed at every start of a session, from every consumer, before new
//!   ones are read; a stray that a frozen reader took with it is claimed after [`STRAY`];
//! - an entry that comes again is known by its task's record and only acknowledged;
//! - an entry that was deleted before it was settled is reported;
//! - a group that was lost begins where everything was settled.
//!
//! One scaler at a time reads a stream ([`owner`]), so that the order holds.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::oneshot;

use self::changes::Changes;
use self::dead_letters::RedisDeadLetters;
use self::keys::{EventStart, Keys};
use self::link::{Link, Url};
use self::owner::{Identity, Owner, Turn};
use self::progress::Progress;
use self::session::Inbox;
use self::worker_events::RedisWorkerEvents;
use crate::controller::{Applied, ApplyError, Handle};
use crate::event::ScaleEvent;
use crate::metrics::Metrics;
use crate::store::redis::RedisStore;
use crate::task::EntryId;
use crate::worker_events::Publisher;

pub(crate) mod changes;
pub(crate) mod dead_letters;
mod entry;
mod group;
pub(crate) mod keys;
pub(crate) mod link;
pub(crate) mod owner;
pub(crate) mod progress;
mod session;
#[cfg(test)]
mod tests;
pub(crate) mod worker_events;

/// An entry that is pending for so long, and not under way here, was taken by a reader that is gone.
const STRAY: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(10) };

/// What is to be known about Redis.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) url: Url,
    /// PEM certificates of the authorities to trust for `rediss://`; `None`: the public ones.
    pub(crate) ca: Option<Vec<u8>>,
    /// `otto:scale:events`
    pub(crate) stream: String,
    /// `ottoscaler`
    pub(crate) group: String,
    /// Where a group that is created for the first time begins.
    pub(crate) start: EventStart,
    /// How long records of ended tasks are kept.
    pub(crate) retention: Duration,
    /// Settled entries are trimmed after this time; `None`: never.
    pub(crate) keep_events: Option<Duration>,
    /// Most dead letters, about.
    pub(crate) max_dead_letters: u64,
    /// `otto:worker:events`
    pub(crate) worker_events: String,
    /// Most worker events in their stream, about.
    pub(crate) max_worker_events: u64,
}

/// Everything of the scaler that is in Redis. Cheap handle; connects when it is used.
#[derive(Clone, Debug)]
pub(crate) struct Redis {
    options: Arc<Options>,
    keys: Arc<Keys>,
    /// To the event stream and the task store.
    link: Link,
    dead_link: Link,
    worker_events_link: Link,
    progress: Arc<Progress>,
    me: Option<Arc<Identity>>,
    turn: Option<Turn>,
}

impl Redis {
    /// # Errors
    /// A name that cannot be used, naming its flag.
    pub(crate) fn new(options: Options) -> Result<Self, String> {
        let keys = Arc::new(Keys::new(&options.stream, &options.group)?);
        // One each, because on a Redis Cluster each of the three may be at another node.
        let link = || Link::new(options.url.clone(), options.ca.clone());
        Ok(Self {
            keys,
            link: link(),
            dead_link: link(),
            worker_events_link: link(),
            progress: Arc::default(),
            me: None,
            turn: None,
            options: Arc::new(options),
        })
    }

    /// The same for a scaler that claims the stream for itself: while another one has it, nothing is read or written.
    pub(crate) fn owned_by(self, me: Identity) -> Self {
        Self { me: Some(Arc::new(me)), ..self }
    }

    /// The same for a scaler that was elected by other means: it takes the stream from the leader before it, and does
    /// nothing when its turn is over.
    pub(crate) fn led_by(&self, me: Identity, turn: Turn) -> Self {
        Self { me: Some(Arc::new(me)), turn: Some(turn), ..self.clone() }
    }

    /// Whose the stream is.
    pub(crate) fn owner(&self) -> Owner {
        let (link, keys) = (self.link.clone(), Arc::clone(&self.keys));
        Owner { link, keys, me: self.me.clone(), turn: self.turn.clone() }
    }

    /// The task store.
    pub(crate) fn store(&self) -> RedisStore {
        let (keys, progress) = (Arc::clone(&self.keys), Arc::clone(&self.progress));
        RedisStore::new(self.link.clone(), keys, progress, self.options.retention, self.owner())
    }

    /// The task store as a replica uses it that does not lead: it is asked for nothing but the version of what it writes,
    /// and tells the leader of it.
    pub(crate) fn follower_store(&self) -> RedisStore {
        Self { me: None, turn: None, ..self.clone() }.store().telling()
    }

    /// What others than the leader write.
    pub(crate) fn changes(&self) -> Changes {
        Changes::new(self.link.clone(), self.keys.changes().to_owned())
    }

    /// The events that could not be applied.
    pub(crate) fn dead_letters(&self) -> RedisDeadLetters {
        let keys = Arc::clone(&self.keys);
        RedisDeadLetters::new(self.dead_link.clone(), self.link.clone(), keys, self.options.max_dead_letters)
    }

    /// The sink for worker events.
    pub(crate) fn worker_events(&self) -> RedisWorkerEvents {
        let stream = self.options.worker_events.clone();
        RedisWorkerEvents::new(self.worker_events_link.clone(), stream, self.options.max_worker_events)
    }

    /// The reader of the event stream.
    pub(crate) fn inbox(&self, target: Arc<dyn Target>, metrics: Metrics) -> Inbox {
        Inbox::new(self.clone(), target, metrics)
    }
}

/// Where events go.
pub(crate) trait Target: Send + Sync + 'static {
    /// See [`Handle::submit`].
    fn submit(
        &self,
        event: ScaleEvent,
    ) -> BoxFuture<'_, Result<oneshot::Receiver<Result<Applied, ApplyError>>, ApplyError>>;

    /// An entry was deleted before it could be applied.
    fn lost(&self, entry: EntryId);
}

/// The controller, and those who are told of losses.
impl Target for (Handle, Publisher) {
    fn submit(
        &self,
        event: ScaleEvent,
    ) -> BoxFuture<'_, Result<oneshot::Receiver<Result<Applied, ApplyError>>, ApplyError>> {
        Box::pin(self.0.submit(event))
    }

    fn lost(&self, entry: EntryId) {
        self.1.event_lost(entry, None);
    }
}
