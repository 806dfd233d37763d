//! Reading: from a (new) connection until it fails, again and again.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{self, BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use otto_service::client::Backoff;
use redis::aio::MultiplexedConnection;
use redis::{RedisError, RedisResult};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::dead_letters::RedisDeadLetters;
use super::entry::{self, Entry};
use super::group::{Group, Position};
use super::link::Health;
use super::owner::{NotHad, Owned, Owner};
use super::{Redis, STRAY, Target};
use crate::controller::{Applied, ApplyError};
use crate::event::parse;
use crate::metrics::{Metrics, ResultLabel};
use crate::store::StoreError;
use crate::store::redis::RedisStore;
use crate::task::EntryId;

/// The server's side of a read waits so long. A reader that is frozen takes entries with it no later than this.
const BLOCK: Duration = if cfg!(test) { Duration::from_millis(200) } else { Duration::from_secs(5) };
/// Between looks after strays, losses and what can be trimmed.
pub(super) const UPKEEP: Duration = BLOCK;
/// Entries of one read, unless they are large.
const READ: usize = 128;
/// Bytes of one read to aim at.
const READ_BYTES: usize = 4 * 1024 * 1024;
/// Entries under way; no more are read while there are so many.
const UNDER_WAY: usize = 256;
/// After a failure, so long for the answers of what is under way, before it is submitted again.
const SETTLE: Duration = Duration::from_secs(10);
/// A session that lasted so long did well.
const STEADY: Duration = Duration::from_secs(5);
/// The reason in the dead letter of an entry that was deleted while it was pending.
const DELETED: &str = "deleted from the stream before it was applied";
/// A group that holds back this many entries from being trimmed is named in the log.
const HELD_BACK: u64 = 100_000;

/// Reads the event stream while it is this scaler's.
pub(crate) struct Inbox {
    redis: Redis,
    owner: Owner,
    group: Group,
    store: RedisStore,
    dead_letters: RedisDeadLetters,
    target: Arc<dyn Target>,
    metrics: Metrics,
    health: watch::Sender<Health>,
}

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error("{0}")]
    Redis(RedisError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Owned(Owned),
    #[error("this scaler does not lead (any more)")]
    NotLeading,
    #[error("event {entry} could not be applied: {message}")]
    Unavailable { entry: EntryId, message: String },
    /// The controller is ending.
    #[error("the scaler is stopping")]
    Stopping,
}

impl From<RedisError> for Failed {
    fn from(error: RedisError) -> Self {
        Self::Redis(error)
    }
}

impl From<NotHad> for Failed {
    fn from(error: NotHad) -> Self {
        match error {
            NotHad::Owned(owned) => Self::Owned(owned),
            NotHad::NotLeading => Self::NotLeading,
            NotHad::Redis(error) => Self::Redis(error),
        }
    }
}

impl Inbox {
    pub(super) fn new(redis: Redis, target: Arc<dyn Target>, metrics: Metrics) -> Self {
        let group = Group { link: redis.link.clone(), keys: Arc::clone(&redis.keys) };
        let (health, _) = watch::channel(Health::NotServing("not reading yet".to_owned()));
        Self {
            store: redis.store(),
            dead_letters: redis.dead_letters(),
            owner: redis.owner(),
            group,
            redis,
            target,
            metrics,
            health,
        }
    }

    /// Whether events are being read.
    pub(crate) fn health(&self) -> watch::Receiver<Health> {
        self.health.subscribe()
    }

    /// Reads until `stop`, or until the controller is gone. What is under way then is pending, or is acknowledged by the
    /// controller's writes.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(2));
        let mut began = Instant::now();
        while let Some(Err(error)) = stop.run_until_cancelled(self.session()).await {
            let reason = match &error {
                Failed::Stopping => break,
                Failed::Redis(error) => self.redis.link.describe(error),
                other => other.to_string(),
            };
            let reason = format!("events are not read: {reason}");
            let news = self.health.send_if_modified(|health| {
                let was_serving = *health == Health::Serving;
                let changed = *health != Health::NotServing(reason.clone());
                *health = Health::NotServing(reason.clone());
                changed || was_serving
            });
            if news {
                tracing::warn!(stream = self.group.keys.stream, "{reason}; trying again");
            }
            // One that fails as soon as it has begun is not tried ever faster.
            if began.elapsed() >= STEADY {
                backoff.reset();
            }
            if stop.run_until_cancelled(tokio::time::sleep(backoff.next())).await.is_none() {
                break;
            }
            began = Instant::now();
        }
        self.health.send_replace(Health::NotServing("not reading any more".to_owned()));
    }

    async fn session(&self) -> Result<Infallible, Failed> {
        self.owner.claim().await?;
        let position = self.group.ensure(self.redis.options.start, self.redis.options.retention).await?;
        self.redis.progress.reset(position.marker);
        self.dead_letters.prepare().await?;
        let reader = self.redis.link.dedicated(BLOCK).await?;
        let mut pump = Pump { inbox: self, under_way: FuturesUnordered::new() };
        let ended = tokio::select! {
            ended = self.read_on(reader, &position, &mut pump) => ended,
            ended = self.owner.keep() => ended.map_err(Failed::from),
        };
        match ended {
            // Everything under way answers before any of it is submitted again.
            Err(error) => {
                let _ = tokio::time::timeout(SETTLE, pump.drain()).await;
                Err(error)
            }
            Ok(never) => match never {},
        }
    }

    async fn read_on(
        &self,
        reader: MultiplexedConnection,
        position: &Position,
        pump: &mut Pump<'_>,
    ) -> Result<Infallible, Failed> {
        self.tell_unread().await?;
        self.claim(pump, Duration::ZERO).await?;
        // What is not pending now was settled before.
        if let Some(delivered) = position.delivered {
            self.redis.progress.known_up_to(delivered);
        }
        self.tell_lost().await?;
        if self.health.send_replace(Health::Serving) != Health::Serving {
            tracing::info!(stream = self.group.keys.stream, redis = %self.redis.link.host(), "reading events");
        }
        let mut upkeep = Instant::now();
        let mut count = READ;
        let mut read: Option<BoxFuture<'_, RedisResult<Vec<Entry>>>> = None;
        loop {
            if read.is_none() && pump.under_way.len() < UNDER_WAY {
                read = Some(Box::pin(self.read(reader.clone(), count)));
            }
            // A read is never dropped half-way: its entries would be pending until they count as strays.
            let batch = async {
                match read.as_mut() {
                    Some(read) => read.await,
                    None => future::pending().await,
                }
            };
            tokio::select! {
                Some(settled) = pump.under_way.next() => pump.settled(settled).await?,
                batch = batch => {
                    read = None;
                    let batch = batch?;
                    let bytes: usize = batch.iter().map(Entry::bytes).sum();
                    count = next_count(batch.len(), bytes);
                    for entry in batch {
                        pump.deliver(entry, false).await?;
                    }
                }
            }
            if read.is_none() && upkeep.elapsed() >= UPKEEP {
                self.claim(pump, STRAY).await?;
                self.tell_lost().await?;
                self.store.mark().await?;
                self.trim().await?;
                upkeep = Instant::now();
            }
        }
    }

    async fn read(&self, mut reader: MultiplexedConnection, count: usize) -> RedisResult<Vec<Entry>> {
        entry::read_reply(self.group.read(count, BLOCK).query_async(&mut reader).await?)
    }

    /// Takes over what was delivered and not settled.
    async fn claim(&self, pump: &mut Pump<'_>, idle: Duration) -> Result<(), Failed> {
        let mut cursor = Some("0-0".to_owned());
        let mut claimed = 0_usize;
        while let Some(from) = cursor {
            let (next, entries) = self.group.claim(idle, &from).await?;
            cursor = next;
            for entry in entries {
                if !self.redis.progress.is_under_way(entry.id) {
                    claimed += 1;
                    pump.deliver(entry, true).await?;
                }
            }
            pump.make_room().await?;
        }
        if claimed > 0 {
            tracing::info!(stream = self.group.keys.stream, claimed, "took over entries that were pending");
        }
        Ok(())
    }

    /// Reports entries that were deleted before they were settled.
    async fn tell_lost(&self) -> Result<(), Failed> {
        loop {
            let lost = self.group.lost().await?;
            if lost.is_empty() {
                return Ok(());
            }
            // What is said may be lost with this process, what is written is not.
            for entry in &lost {
                self.dead_letters.bury(&Entry { id: *entry, fields: Vec::new() }, DELETED).await?;
            }
            self.group.forget_lost(&lost).await?;
            for entry in &lost {
                tracing::error!(stream = self.group.keys.stream, %entry, "an event was deleted before it was applied");
                self.metrics.event("lost");
                self.target.lost(*entry);
            }
        }
    }

    /// Reports entries that were deleted before they were read.
    async fn tell_unread(&self) -> Result<(), Failed> {
        if let Some(unread) = self.group.unread().await? {
            let (count, after) = (unread.count, &unread.after);
            let reason = format!("deleted from the stream before it was read: at least {count} events after {after}");
            // Not under the entry's id: that entry may be there, and fail by itself.
            let entry = Entry { id: unread.id, fields: Vec::new() };
            self.dead_letters.bury_as(&format!("unread {}", unread.name), &entry, &reason).await?;
            self.group.told_unread(&unread).await?;
            tracing::error!(
                stream = self.group.keys.stream,
                after = unread.after,
                count = unread.count,
                "events were deleted before they were read (at least {count} after {after})"
            );
            self.metrics.events.get_or_create(&ResultLabel { result: "lost" }).inc_by(unread.count);
            self.target.lost(unread.id);
        }
        Ok(())
    }

    async fn trim(&self) -> Result<(), Failed> {
        let Some(keep) = self.redis.options.keep_events else { return Ok(()) };
        let (trimmed, holder) = self.group.trim(keep).await?;
        if trimmed > 0 {
            tracing::debug!(stream = self.group.keys.stream, trimmed, "trimmed settled entries");
        } else if !holder.is_empty() && holder != self.group.keys.group {
            let mut length = redis::cmd("XLEN");
            let length: u64 = length.arg(&self.group.keys.stream).query_async(&mut self.redis.link.clone()).await?;
            if length > HELD_BACK {
                tracing::warn!(
                    stream = self.group.keys.stream,
                    length,
                    "the stream grows: consumer group `{holder}` has not read and acknowledged its entries"
                );
            }
        }
        Ok(())
    }
}

/// Fewer entries at once where they are large: a read is held in memory as a whole.
fn next_count(entries: usize, bytes: usize) -> usize {
    match bytes.checked_div(entries) {
        Some(average) if bytes > READ_BYTES => (READ_BYTES / average.max(1)).clamp(1, READ),
        _ => READ,
    }
}

/// An entry with what came of it.
type Settled = (EntryId, Result<(), Failed>);

/// Entries under way: submitted in order, settled in any.
struct Pump<'a> {
    inbox: &'a Inbox,
    under_way: FuturesUnordered<BoxFuture<'a, Settled>>,
}

impl<'a> Pump<'a> {
    /// Sends an entry on its way. `again`: it was delivered before, so it may have been applied.
    async fn deliver(&mut self, entry: Entry, again: bool) -> Result<(), Failed> {
        let inbox = self.inbox;
        let progress = &inbox.redis.progress;
        let again = again || progress.floor().is_some_and(|floor| entry.id <= floor);
        progress.deliver(entry.id);
        let event = match parse::from_fields(entry.id, &entry.fields) {
            Ok(event) => event,
            Err(invalid) => {
                // What the controller refuses, it counts itself.
                inbox.metrics.event("dead_letter");
                self.under_way
                    .push(Box::pin(async move { (entry.id, inbox.bury(&entry, &invalid.to_string()).await) }));
                return Ok(());
            }
        };
        // An event of the same task may have failed meanwhile; nothing may overtake it.
        while let Some(Some(settled)) = self.under_way.next().now_or_never() {
            self.settled(settled).await?;
        }
        if again && inbox.group.applied_before(&event.task_id, entry.id).await? {
            tracing::debug!(entry = %entry.id, task_id = event.task_id, "was applied before");
            return self.settled((entry.id, Ok(()))).await;
        }
        let task_id = event.task_id.clone();
        let answer = match inbox.target.submit(event).await {
            Ok(answer) => answer,
            Err(ApplyError::Stopping) => return Err(Failed::Stopping),
            Err(ApplyError::Unavailable { message, .. }) => {
                return Err(Failed::Unavailable { entry: entry.id, message });
            }
        };
        self.under_way.push(Box::pin(async move { (entry.id, inbox.conclude(&entry, &task_id, answer).await) }));
        Ok(())
    }

    /// Takes note of an entry that needs no more work.
    async fn settled(&mut self, (entry, result): Settled) -> Result<(), Failed> {
        result?;
        self.inbox.redis.progress.settle(entry);
        if self.under_way.is_empty() {
            self.inbox.store.mark().await?;
        }
        Ok(())
    }

    /// Waits until more can be delivered.
    async fn make_room(&mut self) -> Result<(), Failed> {
        while self.under_way.len() >= UNDER_WAY {
            if let Some(settled) = self.under_way.next().await {
                self.settled(settled).await?;
            }
        }
        Ok(())
    }

    /// Waits for all of them, whatever comes of them.
    async fn drain(&mut self) {
        while self.under_way.next().await.is_some() {}
    }
}

impl Inbox {
    /// Waits for the controller's answer to an event and does what is left to do.
    async fn conclude(
        &self,
        entry: &Entry,
        task_id: &str,
        answer: oneshot::Receiver<Result<Applied, ApplyError>>,
    ) -> Result<(), Failed> {
        match answer.await {
            Ok(Ok(Applied::Changed(_) | Applied::AlreadyProcessed(_))) => Ok(()),
            // After a group was lost, entries come again from the marker on, which may lag behind: those that were applied
            // look as if they came too late.
            Ok(Ok(Applied::Dead(_))) if self.group.applied_before(task_id, entry.id).await? => Ok(()),
            Ok(Ok(Applied::Dead(reason))) => self.bury(entry, &reason.to_string()).await,
            Ok(Err(ApplyError::Unavailable { message, .. })) => Err(Failed::Unavailable { entry: entry.id, message }),
            Ok(Err(ApplyError::Stopping)) | Err(_) => Err(Failed::Stopping),
        }
    }

    /// Writes the dead letter, then acknowledges the entry.
    async fn bury(&self, entry: &Entry, reason: &str) -> Result<(), Failed> {
        if self.dead_letters.bury(entry, reason).await? {
            tracing::warn!(stream = self.group.keys.stream, entry = %entry.id, "dead letter: {reason}");
        }
        Ok(self.store.settle(entry.id).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_entries_are_read_in_small_pages() {
        assert_eq!(next_count(0, 0), READ);
        assert_eq!(next_count(128, 128 * 200), READ);
        assert_eq!(next_count(8, 8 * 1024 * 1024), 4);
        assert_eq!(next_count(1, 500 * 1024 * 1024), 1);
    }
}
