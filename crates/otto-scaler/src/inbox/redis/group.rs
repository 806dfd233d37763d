//! The consumer group: made, claimed from, reported on and trimmed. Each step is one script.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use redis::{RedisResult, Script};

use super::entry::{Entries, Entry};
use super::keys::{EventStart, Keys};
use super::link::Link;
use crate::task::EntryId;

static ENSURE: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("ids.lua"), include_str!("ensure_group.lua"))));
static CLAIM: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("claim.lua")));
static APPLIED_BEFORE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("applied_before.lua")));
static TRIM: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("ids.lua"), include_str!("trim.lua"))));
static UNREAD: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("ids.lua"), include_str!("unread.lua"))));

/// The one consumer of the group: only the leader reads, and a new leader takes over what the old one left.
const CONSUMER: &str = "otto-scaler";
/// Entries of one page.
const PAGE: usize = 128;

/// The consumer group of the event stream.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) link: Link,
    pub(super) keys: Arc<Keys>,
}

/// Where the group is.
pub(super) struct Position {
    /// Up to here everything is settled, as far as is known.
    pub(super) marker: Option<EntryId>,
    /// Up to here everything was delivered: it is settled or pending.
    pub(super) delivered: Option<EntryId>,
}

/// Entries that nobody will read any more.
pub(super) struct Unread {
    /// At least so many.
    pub(super) count: u64,
    /// One of them, or the last id of the stream: names the loss.
    pub(super) id: EntryId,
    /// They came after this one.
    pub(super) after: String,
    /// Names this loss among all.
    pub(super) name: String,
}

impl Group {
    /// Makes sure that it exists.
    pub(super) async fn ensure(&self, start: EventStart, retention: Duration) -> RedisResult<Position> {
        let (done, id, skipped): (String, String, u64) = ENSURE
            .key(&self.keys.stream)
            .key(self.keys.applied())
            .key(self.keys.lost_unread())
            .arg(&self.keys.group)
            .arg(start.to_string())
            .arg(format!("{}-0", before(retention)))
            .invoke_async(&mut self.link.clone())
            .await?;
        let (stream, group) = (&self.keys.stream, &self.keys.group);
        match done.as_str() {
            "first" if skipped > 0 => tracing::warn!(
                stream,
                group,
                "created the consumer group at the end of the stream (--event-start {start}): {skipped} entries before it \
                 are not read"
            ),
            "first" => tracing::info!(stream, group, "created the consumer group; it reads after {id}"),
            "recreated" => tracing::warn!(
                stream,
                group,
                "the consumer group was lost: created it again after the highest entry that was applied, {id}"
            ),
            "replaced" => tracing::warn!(
                stream,
                group,
                "the stream was lost and began again with lower ids: created the consumer group at its beginning"
            ),
            _ => {}
        }
        let marker: Option<String> =
            redis::cmd("GET").arg(self.keys.applied()).query_async(&mut self.link.clone()).await?;
        Ok(Position { marker: marker.and_then(|marker| marker.parse().ok()), delivered: id.parse().ok() })
    }

    /// A page of entries that are pending for at least `idle`, of all consumers, in the order of their ids; and the cursor
    /// of the next page, `None` after the last.
    pub(super) async fn claim(&self, idle: Duration, cursor: &str) -> RedisResult<(Option<String>, Vec<Entry>)> {
        let (next, entries): (String, Entries) = CLAIM
            .key(&self.keys.stream)
            .key(self.keys.lost())
            .arg(&self.keys.group)
            .arg(CONSUMER)
            .arg(u64::try_from(idle.as_millis()).unwrap_or(u64::MAX))
            .arg(cursor)
            .arg(PAGE)
            .invoke_async(&mut self.link.clone())
            .await?;
        Ok(((next != "0-0").then_some(next), entries.0))
    }

    /// The command that reads new entries.
    pub(super) fn read(&self, count: usize, block: Duration) -> redis::Cmd {
        let mut command = redis::cmd("XREADGROUP");
        command
            .arg("GROUP")
            .arg(&self.keys.group)
            .arg(CONSUMER)
            .arg("COUNT")
            .arg(count)
            .arg("BLOCK")
            .arg(u64::try_from(block.as_millis()).unwrap_or(u64::MAX))
            .arg("STREAMS")
            .arg(&self.keys.stream)
            .arg(">");
        command
    }

    /// Whether the task's record says that the entry was applied before; then it is acknowledged.
    pub(super) async fn applied_before(&self, task_id: &str, entry: EntryId) -> RedisResult<bool> {
        APPLIED_BEFORE
            .key(self.keys.record(task_id))
            .key(&self.keys.stream)
            .arg(&self.keys.group)
            .arg(entry.to_string())
            .invoke_async(&mut self.link.clone())
            .await
    }

    /// Entries that were deleted before they were settled, and are not reported yet.
    pub(super) async fn lost(&self) -> RedisResult<Vec<EntryId>> {
        let lost: Vec<String> =
            redis::cmd("ZRANGE").arg(self.keys.lost()).arg(0).arg(PAGE - 1).query_async(&mut self.link.clone()).await?;
        Ok(lost.iter().filter_map(|id| id.parse().ok()).collect())
    }

    /// They are reported.
    pub(super) async fn forget_lost(&self, lost: &[EntryId]) -> RedisResult<()> {
        let mut command = redis::cmd("ZREM");
        command.arg(self.keys.lost());
        for id in lost {
            command.arg(id.to_string());
        }
        command.query_async(&mut self.link.clone()).await
    }

    /// Entries that were deleted before they were read, until they are told.
    pub(super) async fn unread(&self) -> RedisResult<Option<Unread>> {
        let answer: redis::Value = UNREAD
            .key(&self.keys.stream)
            .key(self.keys.lost_unread())
            .arg(&self.keys.group)
            .invoke_async(&mut self.link.clone())
            .await?;
        let parsed: Result<(u64, String, String, String), _> = redis::from_redis_value(answer);
        let Ok((count, id, after, name)) = parsed else { return Ok(None) };
        Ok(id.parse().ok().map(|id| Unread { count, id, after, name }))
    }

    /// They are told.
    pub(super) async fn told_unread(&self, unread: &Unread) -> RedisResult<()> {
        let mut command = redis::cmd("HSET");
        command.arg(self.keys.lost_unread()).arg("told").arg(&unread.name);
        command.query_async(&mut self.link.clone()).await
    }

    /// Trims what is settled in every group and older than `keep`. Returns how many, and the group which holds most back.
    pub(super) async fn trim(&self, keep: Duration) -> RedisResult<(u64, String)> {
        TRIM.key(&self.keys.stream).arg(format!("{}-0", before(keep))).invoke_async(&mut self.link.clone()).await
    }
}

/// Milliseconds since the epoch, `age` ago.
fn before(age: Duration) -> u64 {
    let now = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
    now.saturating_sub(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
}
