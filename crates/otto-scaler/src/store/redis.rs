//! Task records in Redis, beside the event stream: record, marker and acknowledgement change in one step.
//!
//! A record is a hash `{STREAM}:task:ID`: `format`, `version`, `record` (JSON) and `entries`, the ids of the latest
//! entries that were applied to it. Redis keeps what its own settings make durable (appendonly).

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::future::BoxFuture;
use redis::{RedisError, Script};

use super::{StoreError, TaskStore};
use crate::inbox::redis::keys::Keys;
use crate::inbox::redis::link::Link;
use crate::inbox::redis::owner::{Owned, Owner};
use crate::inbox::redis::progress::Progress;
use crate::task::{EntryId, Millis, Record};

static PUT: LazyLock<Script> =
    LazyLock::new(|| Script::new(concat!(include_str!("../inbox/redis/ids.lua"), include_str!("redis/put.lua"))));
static REMOVE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/remove.lua")));
static EXPIRE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("redis/expire.lua")));
static ACKNOWLEDGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(concat!(include_str!("../inbox/redis/ids.lua"), include_str!("../inbox/redis/acknowledge.lua")))
});

/// What is written to `format`; a record with a higher one is of a newer version of this program.
const FORMAT: u32 = 1;
/// Records fetched at once.
const PAGE: usize = 200;
/// Changes by others that are kept for the leader. One that lags further behind reads all records again.
const CHANGES: u32 = 10_000;

/// Task records in Redis.
#[derive(Clone, Debug)]
pub(crate) struct RedisStore {
    link: Link,
    keys: Arc<Keys>,
    progress: Arc<Progress>,
    /// After this time without a scaler that removes it, an ended record expires by itself.
    expiry: Duration,
    owner: Owner,
    /// Its writes are told to the leader.
    tells: bool,
}

/// `format`, `version` and `record` of a stored hash.
type Stored = (Option<u32>, Option<u64>, Option<String>);

impl RedisStore {
    /// `retention`: how long records of ended tasks are kept; they expire by themselves after twice that time.
    /// Nothing is read or written while another one than `owner` has the stream.
    pub(crate) fn new(link: Link, keys: Arc<Keys>, progress: Arc<Progress>, retention: Duration, owner: Owner) -> Self {
        Self { link, keys, progress, expiry: retention.saturating_mul(2), owner, tells: false }
    }

    /// The same for a replica that does not lead: the leader is told of each write, in the same step.
    pub(crate) fn telling(self) -> Self {
        Self { tells: true, ..self }
    }

    fn unavailable(&self, error: &RedisError) -> StoreError {
        StoreError::Unavailable(self.link.describe(error))
    }

    async fn fetch(&self, task_id: &str) -> Result<Option<Record>, StoreError> {
        // Workers are started by what is read here, so a scaler that lost the stream must not even read.
        self.owner.allow().await?;
        let stored: Stored = redis::cmd("HMGET")
            .arg(self.keys.record(task_id))
            .arg(&["format", "version", "record"])
            .query_async(&mut self.link.clone())
            .await
            .map_err(|e| self.unavailable(&e))?;
        decode(task_id, stored)
    }

    async fn load_tasks(&self, ended: usize) -> Result<Vec<Record>, StoreError> {
        self.owner.allow().await?;
        let mut link = self.link.clone();
        let mut records: BTreeMap<String, Record> = BTreeMap::new();
        // The live ones first: a task that ends meanwhile is seen at least once.
        let most = isize::try_from(ended).unwrap_or(isize::MAX);
        for (index, most) in [(self.keys.live(), isize::MAX), (self.keys.ended(), most)] {
            if most == 0 {
                continue;
            }
            let ids: Vec<String> = redis::cmd("ZREVRANGE")
                .arg(index)
                .arg(0)
                .arg(most - 1)
                .query_async(&mut link)
                .await
                .map_err(|e| self.unavailable(&e))?;
            for ids in ids.chunks(PAGE) {
                self.load_page(ids, &mut records).await?;
            }
        }
        Ok(records.into_values().collect())
    }

    async fn load_page(&self, ids: &[String], records: &mut BTreeMap<String, Record>) -> Result<(), StoreError> {
        let mut pipeline = redis::pipe();
        for id in ids {
            pipeline.cmd("HMGET").arg(self.keys.record(id)).arg(&["format", "version", "record"]);
        }
        let page: Vec<Stored> = pipeline.query_async(&mut self.link.clone()).await.map_err(|e| self.unavailable(&e))?;
        for (id, stored) in ids.iter().zip(page) {
            match decode(id, stored) {
                Ok(Some(record)) => {
                    let newest = records.entry(id.clone()).or_insert_with(|| record.clone());
                    if newest.version < record.version {
                        *newest = record;
                    }
                }
                // It expired by itself; its place in the index goes too.
                Ok(None) => drop(self.remove_if(id, 0).await?),
                // One damaged record must not stop all the others. Writes of its task fail until somebody decides.
                Err(error) => tracing::error!(task_id = %id, "{error}; the record is left out"),
            }
        }
        Ok(())
    }

    async fn write(&self, record: &Record, applied: Option<EntryId>) -> Result<(), StoreError> {
        let corrupt = |reason: String| StoreError::Corrupt { task_id: record.task_id.clone(), reason };
        let json = serde_json::to_string(record).map_err(|e| corrupt(e.to_string()))?;
        let expected = record.version.checked_sub(1).ok_or_else(|| corrupt("version 0 is never stored".into()))?;
        let ended_at = record.ended_at.filter(|_| record.phase.is_terminal());
        let expiry = if ended_at.is_some() { self.expiry.as_millis() } else { 0 };
        let text = |id: Option<EntryId>| id.map(|id| id.to_string()).unwrap_or_default();
        let marker = applied.and_then(|entry| self.progress.marker_with(entry));
        let mut call = PUT.prepare_invoke();
        call.key(self.keys.record(&record.task_id))
            .key(self.keys.live())
            .key(self.keys.ended())
            .key(self.keys.applied())
            .key(&self.keys.stream)
            .key(self.keys.owner())
            .key(self.keys.changes())
            .arg(&record.task_id)
            .arg(expected)
            .arg(record.version)
            .arg(json)
            .arg(record.created_at)
            .arg(ended_at.map(|at| at.to_string()).unwrap_or_default())
            .arg(u64::try_from(expiry).unwrap_or(u64::MAX).min(i64::MAX as u64 / 2))
            .arg(&self.keys.group)
            .arg(text(applied))
            .arg(text(marker))
            .arg(self.owner.id())
            .arg(if self.tells { CHANGES } else { 0 });
        let answer: String = call.invoke_async(&mut self.link.clone()).await.map_err(|e| self.unavailable(&e))?;
        match answer.as_str() {
            "written" | "applied" => Ok(()),
            other if let Some(name) = other.strip_prefix("owned ") => {
                Err(StoreError::Unavailable(Owned(name.to_owned()).to_string()))
            }
            _ => Err(StoreError::Conflict(record.task_id.clone())),
        }
    }

    /// The entry needs no more work: acknowledges it and moves the marker.
    pub(crate) async fn settle(&self, entry: EntryId) -> Result<(), StoreError> {
        let marker = self.progress.marker_with(entry);
        self.acknowledge_all(marker, &[entry]).await
    }

    /// Moves the marker if it is behind what is settled.
    pub(crate) async fn mark(&self) -> Result<(), StoreError> {
        match self.progress.overdue() {
            Some(marker) => self.acknowledge_all(Some(marker), &[]).await,
            None => Ok(()),
        }
    }

    async fn acknowledge_all(&self, marker: Option<EntryId>, entries: &[EntryId]) -> Result<(), StoreError> {
        let mut call = ACKNOWLEDGE.prepare_invoke();
        call.key(self.keys.applied())
            .key(&self.keys.stream)
            .arg(&self.keys.group)
            .arg(marker.map(|marker| marker.to_string()).unwrap_or_default());
        for entry in entries {
            call.arg(entry.to_string());
        }
        call.invoke_async::<()>(&mut self.link.clone()).await.map_err(|e| self.unavailable(&e))
    }

    /// False: it has another version.
    async fn remove_if(&self, task_id: &str, version: u64) -> Result<bool, StoreError> {
        let answer: String = REMOVE
            .key(self.keys.record(task_id))
            .key(self.keys.live())
            .key(self.keys.ended())
            .arg(task_id)
            .arg(version)
            .invoke_async(&mut self.link.clone())
            .await
            .map_err(|e| self.unavailable(&e))?;
        Ok(answer != "conflict")
    }

    async fn expire_ended(&self, before: Millis, limit: usize) -> Result<usize, StoreError> {
        let mut link = self.link.clone();
        let mut removed = 0;
        while removed < limit {
            let ids: Vec<String> = redis::cmd("ZRANGEBYSCORE")
                .arg(self.keys.ended())
                .arg("-inf")
                .arg(format!("({before}"))
                .arg("LIMIT")
                .arg(0)
                .arg((limit - removed).min(PAGE))
                .query_async(&mut link)
                .await
                .map_err(|e| self.unavailable(&e))?;
            let mut call = EXPIRE.prepare_invoke();
            call.key(self.keys.ended()).arg(before);
            for id in &ids {
                call.key(self.keys.record(id)).arg(id);
            }
            let page: usize = call.invoke_async(&mut link).await.map_err(|e| self.unavailable(&e))?;
            removed += page;
            if page == 0 {
                break;
            }
        }
        Ok(removed)
    }

    async fn check(&self) -> Result<(), StoreError> {
        self.owner.allow().await?;
        // A write: a replica, or a Redis whose disk is full, answers reads for ever.
        redis::cmd("SET")
            .arg(self.keys.ping())
            .arg(1)
            .arg("EX")
            .arg(60)
            .query_async::<()>(&mut self.link.clone())
            .await
            .map_err(|e| self.unavailable(&e))
    }
}

fn decode(task_id: &str, (format, version, json): Stored) -> Result<Option<Record>, StoreError> {
    let (Some(version), Some(json)) = (version, json) else { return Ok(None) };
    let corrupt = |reason: String| StoreError::Corrupt { task_id: task_id.to_owned(), reason };
    let format = format.unwrap_or(FORMAT);
    if format > FORMAT {
        return Err(corrupt(format!("it has format {format}, written by a newer version (this one reads {FORMAT})")));
    }
    let record: Record = serde_json::from_str(&json).map_err(|e| corrupt(e.to_string()))?;
    if record.version != version || record.task_id != task_id {
        return Err(corrupt(format!("it is version {} of `{}` inside", record.version, record.task_id)));
    }
    Ok(Some(record))
}

impl TaskStore for RedisStore {
    fn load(&self, ended: usize) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        Box::pin(self.load_tasks(ended))
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(self.check())
    }

    fn get<'a>(&'a self, task_id: &'a str) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        Box::pin(self.fetch(task_id))
    }

    fn put<'a>(&'a self, record: &'a Record, applied: Option<EntryId>) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.write(record, applied))
    }

    fn acknowledge<'a>(&'a self, entry: EntryId) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(self.settle(entry))
    }

    fn remove<'a>(&'a self, task_id: &'a str, version: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(async move {
            if self.remove_if(task_id, version).await? { Ok(()) } else { Err(StoreError::Conflict(task_id.to_owned())) }
        })
    }

    fn expire(&self, before: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        Box::pin(self.expire_ended(before, limit))
    }
}
