//! The stream of events that could not be applied: `otto:scale:events:dead`.
//!
//! A dead letter has `entry_id`, `reason`, `dead_at` (RFC 3339) and the original fields, each as `field.NAME`, so that no
//! name collides. It is written once per entry, before the entry is acknowledged. One of an event that was deleted has
//! no fields.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use futures::future::BoxFuture;
use redis::{RedisError, Script};

use super::entry::{Entries, Entry};
use super::keys::Keys;
use super::link::Link;
use crate::event::parse::{self, Fields, names_task};
use crate::inbox::{DeadLetter, DeadLetters};
use crate::store::StoreError;
use crate::task::EntryId;

static BURY: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("bury.lua")));

/// Of an event that is too large to be ever accepted, this much of each value and this many fields are kept.
const KEPT_BYTES: usize = 4096;
const KEPT_FIELDS: usize = 200;
/// Marks such a letter: it cannot be replayed.
const TRUNCATED: &str = "truncated";

/// The dead letters of one event stream.
#[derive(Clone, Debug)]
pub(crate) struct RedisDeadLetters {
    /// To the dead letters: they may have another slot than the events.
    dead: Link,
    events: Link,
    keys: Arc<Keys>,
    max: u64,
}

impl RedisDeadLetters {
    /// At most about `max` are kept.
    pub(crate) fn new(dead: Link, events: Link, keys: Arc<Keys>, max: u64) -> Self {
        Self { dead, events, keys, max: max.max(1) }
    }

    /// Makes Redis know the script, so that the first letter is not overtaken by the next while it learns it.
    pub(crate) async fn prepare(&self) -> Result<(), StoreError> {
        BURY.load_async(&mut self.dead.clone()).await.map(drop).map_err(|e| unavailable(&self.dead, &e))
    }

    /// Writes the dead letter of an entry, if it is not written yet. True: it was not.
    pub(crate) async fn bury(&self, entry: &Entry, reason: &str) -> Result<bool, StoreError> {
        self.bury_as(&entry.id.to_string(), entry, reason).await
    }

    /// Writes the dead letter of something with the given name, if there is none of that name yet. True: there was not.
    pub(crate) async fn bury_as(&self, name: &str, entry: &Entry, reason: &str) -> Result<bool, StoreError> {
        let now = jiff::Timestamp::now();
        let mut call = BURY.prepare_invoke();
        call.key(&self.keys.dead)
            .key(self.keys.dead_ids())
            .arg(self.max)
            .arg(name)
            .arg(now.as_millisecond())
            .arg("entry_id")
            .arg(entry.id.to_string())
            .arg("reason")
            .arg(reason)
            .arg("dead_at")
            .arg(now.to_string());
        let whole = entry.fields.len() <= KEPT_FIELDS && entry.bytes() <= parse::MAX_BYTES;
        if !whole {
            call.arg(TRUNCATED).arg(format!("{} bytes in {} fields", entry.bytes(), entry.fields.len()));
        }
        for (name, value) in entry.fields.iter().take(KEPT_FIELDS) {
            let kept = |bytes: &[u8]| bytes[..if whole { bytes.len() } else { bytes.len().min(KEPT_BYTES) }].to_vec();
            call.arg([b"field.".as_slice(), &kept(name)].concat()).arg(kept(value));
        }
        let new: u8 = call.invoke_async(&mut self.dead.clone()).await.map_err(|e| unavailable(&self.dead, &e))?;
        Ok(new == 1)
    }

    async fn page(&self, limit: usize, after: Option<&str>) -> Result<Vec<DeadLetter>, StoreError> {
        let newest = match after {
            // An id that no stream has is no page token of ours; Redis would answer an error for it.
            Some(after) => match after.parse::<EntryId>() {
                Ok(id) => format!("({id}"),
                Err(_) => return Ok(Vec::new()),
            },
            None => "+".to_owned(),
        };
        let entries: Entries = redis::cmd("XREVRANGE")
            .arg(&self.keys.dead)
            .arg(newest)
            .arg("-")
            .arg("COUNT")
            .arg(limit.clamp(1, 1000))
            .query_async(&mut self.dead.clone())
            .await
            .map_err(|e| unavailable(&self.dead, &e))?;
        Ok(entries.0.into_iter().map(letter).collect())
    }

    async fn replay_one(&self, id: &str) -> Result<Option<EntryId>, StoreError> {
        let Ok(id) = id.parse::<EntryId>() else { return Ok(None) };
        let mut dead = self.dead.clone();
        let mut found: Entries = redis::cmd("XRANGE")
            .arg(&self.keys.dead)
            .arg(id.to_string())
            .arg(id.to_string())
            .query_async(&mut dead)
            .await
            .map_err(|e| unavailable(&self.dead, &e))?;
        let Some(letter) = found.0.pop() else { return Ok(None) };
        if own(&letter, TRUNCATED).is_some() {
            let reason = format!("dead letter {id} holds only a part of it, it was too large");
            return Err(StoreError::Corrupt { task_id: own(&letter, "entry_id").unwrap_or_default(), reason });
        }
        let entry_id = own(&letter, "entry_id").unwrap_or_default();
        let mut fields = original(&letter);
        if fields.is_empty() {
            let reason = format!("dead letter {id} only tells of a loss: what the event said is not known");
            return Err(StoreError::Corrupt { task_id: entry_id, reason });
        }
        if !names_task(&fields) {
            fields.push((b"task_id".to_vec(), entry_id.clone().into_bytes()));
        }
        let mut add = redis::cmd("XADD");
        add.arg(&self.keys.stream).arg("*");
        for (name, value) in fields {
            add.arg(name).arg(value);
        }
        // First added, then removed: after a failure in between it is there twice, and the task runs once.
        let added: String =
            add.query_async(&mut self.events.clone()).await.map_err(|e| unavailable(&self.events, &e))?;
        redis::pipe()
            .cmd("XDEL")
            .arg(&self.keys.dead)
            .arg(id.to_string())
            .ignore()
            .cmd("ZREM")
            .arg(self.keys.dead_ids())
            .arg(entry_id)
            .ignore()
            .query_async::<()>(&mut dead)
            .await
            .map_err(|e| unavailable(&self.dead, &e))?;
        added.parse().map(Some).map_err(StoreError::Unavailable)
    }
}

impl DeadLetters for RedisDeadLetters {
    fn list<'a>(&'a self, limit: usize, after: Option<&'a str>) -> BoxFuture<'a, Result<Vec<DeadLetter>, StoreError>> {
        Box::pin(self.page(limit, after))
    }

    fn replay<'a>(&'a self, id: &'a str) -> BoxFuture<'a, Result<Option<EntryId>, StoreError>> {
        Box::pin(self.replay_one(id))
    }
}

fn unavailable(link: &Link, error: &RedisError) -> StoreError {
    StoreError::Unavailable(link.describe(error))
}

/// A field that the letter itself has.
fn own(letter: &Entry, name: &str) -> Option<String> {
    let found = letter.fields.iter().find(|(field, _)| field == name.as_bytes());
    found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
}

/// The fields of the event.
fn original(letter: &Entry) -> Fields {
    let fields = letter.fields.iter();
    fields.filter_map(|(name, value)| Some((name.strip_prefix(b"field.")?.to_vec(), value.clone()))).collect()
}

fn letter(letter: Entry) -> DeadLetter {
    let mut fields = BTreeMap::new();
    for (name, value) in original(&letter) {
        fields.insert(String::from_utf8_lossy(&name).into_owned(), String::from_utf8_lossy(&value).into_owned());
    }
    // Somebody may have added one by hand.
    let entry = own(&letter, "entry_id").and_then(|id| id.parse().ok());
    let dead_at = own(&letter, "dead_at").and_then(|at| at.parse::<jiff::Timestamp>().ok());
    DeadLetter {
        id: letter.id.to_string(),
        entry: entry.unwrap_or(EntryId { millis: 0, sequence: 0 }),
        reason: own(&letter, "reason").unwrap_or_default(),
        fields,
        dead_at: dead_at
            .map_or_else(|| i64::try_from(letter.id.millis).unwrap_or(i64::MAX), jiff::Timestamp::as_millisecond),
    }
}
