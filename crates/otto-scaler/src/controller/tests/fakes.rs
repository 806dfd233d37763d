//! A store and a driver in memory, whose faults the tests command.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures::FutureExt;
use tokio::sync::Notify;

use super::*;
use crate::driver::{DriverError, Launch, Removal, State, WorkerKey};
use crate::store::StoreError;
use crate::task::{EntryId, Outcome};

/// What the store does with the next calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Mood {
    #[default]
    Well,
    Away,
    /// It writes, and its answer is lost.
    Mumbling,
}

#[derive(Default)]
pub(super) struct MemoryStore {
    pub(super) records: Mutex<HashMap<String, Record>>,
    pub(super) acknowledged: Mutex<BTreeSet<EntryId>>,
    pub(super) mood: Mutex<Mood>,
    pub(super) puts: AtomicU32,
    /// Ended records are stored, but not loaded.
    pub(super) forgetful: AtomicBool,
    /// Writes of this task wait for `go`.
    pub(super) slow: Mutex<Option<String>>,
    pub(super) go: Notify,
    /// Reads of this task, and those of all records (`""`), wait for `go` with what they have read.
    pub(super) slow_read: Mutex<Option<String>>,
    pub(super) reads: AtomicU32,
    /// The task whose record cannot be read.
    pub(super) damaged: Mutex<Option<String>>,
}

impl MemoryStore {
    pub(super) fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    pub(super) fn record(&self, task_id: &str) -> Option<Record> {
        self.records.lock().unwrap().get(task_id).cloned()
    }

    async fn was_read<T>(&self, what: &str, value: T) -> T {
        let slow = self.slow_read.lock().unwrap().as_deref() == Some(what);
        if slow {
            self.reads.fetch_add(1, Ordering::Relaxed);
            self.go.notified().await;
        }
        value
    }

    fn call<T>(&self, effect: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        let away = || Err(StoreError::Unavailable("away".into()));
        match *self.mood.lock().unwrap() {
            Mood::Well => effect(),
            Mood::Away => away(),
            Mood::Mumbling => effect().and_then(|_| away()),
        }
    }
}

/// Answers a moment later, as a real one does.
async fn soon<T>(value: T) -> T {
    tokio::task::yield_now().await;
    value
}

impl TaskStore for MemoryStore {
    fn load(&self, ended: usize) -> BoxFuture<'_, Result<Vec<Record>, StoreError>> {
        let ended = if self.forgetful.load(Ordering::Relaxed) { 0 } else { ended };
        let records = self.call(|| {
            let records = self.records.lock().unwrap();
            let (over, live): (Vec<_>, Vec<_>) = records.values().cloned().partition(|r| r.phase.is_terminal());
            Ok(live.into_iter().chain(over.into_iter().take(ended)).collect())
        });
        async move { self.was_read("", soon(records).await).await }.boxed()
    }

    fn ping(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        soon(self.call(|| Ok(()))).boxed()
    }

    fn get<'a>(&'a self, task_id: &'a str) -> BoxFuture<'a, Result<Option<Record>, StoreError>> {
        async move {
            let damaged = self.damaged.lock().unwrap().as_deref() == Some(task_id);
            let read = || match damaged {
                true => Err(StoreError::Corrupt { task_id: task_id.to_owned(), reason: "bad bytes".into() }),
                false => Ok(self.record(task_id)),
            };
            let read = self.call(read);
            self.was_read(task_id, soon(read).await).await
        }
        .boxed()
    }

    fn put<'a>(&'a self, record: &'a Record, applied: Option<EntryId>) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            tokio::task::yield_now().await;
            let slow = self.slow.lock().unwrap().as_ref() == Some(&record.task_id);
            if slow {
                self.go.notified().await;
            }
            self.call(|| {
                if self.damaged.lock().unwrap().as_ref() == Some(&record.task_id) {
                    return Err(StoreError::Conflict(record.task_id.clone()));
                }
                let mut records = self.records.lock().unwrap();
                let version = records.get(&record.task_id).map_or(0, |record| record.version);
                if version + 1 != record.version {
                    return Err(StoreError::Conflict(record.task_id.clone()));
                }
                self.puts.fetch_add(1, Ordering::Relaxed);
                records.insert(record.task_id.clone(), record.clone());
                self.acknowledged.lock().unwrap().extend(applied);
                Ok(())
            })
        }
        .boxed()
    }

    fn acknowledge<'a>(&'a self, entry: EntryId) -> BoxFuture<'a, Result<(), StoreError>> {
        soon(self.call(|| {
            self.acknowledged.lock().unwrap().insert(entry);
            Ok(())
        }))
        .boxed()
    }

    fn remove<'a>(&'a self, task_id: &'a str, version: u64) -> BoxFuture<'a, Result<(), StoreError>> {
        let task_id = task_id.to_owned();
        soon(self.call(|| {
            let mut records = self.records.lock().unwrap();
            if records.get(&task_id).is_some_and(|record| record.version == version) {
                records.remove(&task_id);
                return Ok(());
            }
            Err(StoreError::Conflict(task_id))
        }))
        .boxed()
    }

    fn expire(&self, before: Millis, limit: usize) -> BoxFuture<'_, Result<usize, StoreError>> {
        soon(self.call(|| {
            let mut records = self.records.lock().unwrap();
            let old = |record: &Record| record.ended_at.is_some_and(|at| at < before);
            let old: Vec<_> = records.values().filter(|r| old(r)).map(|r| r.task_id.clone()).take(limit).collect();
            old.iter().for_each(|id| drop(records.remove(id)));
            Ok(old.len())
        }))
        .boxed()
    }
}

/// What a creation answers, if not success.
pub(super) type Refusal = Box<dyn Fn(&WorkerKey) -> Option<DriverError> + Send + Sync>;

#[derive(Default)]
pub(crate) struct MemoryDriver {
    pub(super) workers: Mutex<BTreeMap<WorkerKey, Observed>>,
    pub(super) created: Mutex<Vec<WorkerKey>>,
    pub(super) stops: Mutex<Vec<WorkerKey>>,
    started: Mutex<HashSet<WorkerKey>>,
    changes: Mutex<Option<mpsc::Sender<Observed>>>,
    pub(super) list_fails: AtomicBool,
    pub(super) refusal: Mutex<Option<Refusal>>,
    pub(super) remove_fails: AtomicBool,
    /// Removals are accepted, and nothing goes.
    pub(super) stays: AtomicBool,
    /// A stop does what it is to do, and its answer is lost.
    pub(super) stop_mumbles: AtomicBool,
    /// Creations of this task wait for `go`.
    pub(super) slow: Mutex<Option<String>>,
    pub(super) go: Notify,
    /// Creations of this task take so long.
    pub(super) takes: Mutex<HashMap<String, Duration>>,
}

pub(super) fn key(task_id: &str, index: u32, attempt: u32) -> WorkerKey {
    WorkerKey { task_id: task_id.to_owned(), index, attempt }
}

pub(super) fn outcome(class: Class) -> Outcome {
    Outcome { class, exit_code: None, signal: None, message: class.as_str().to_owned() }
}

impl MemoryDriver {
    /// What ends from its first state never began.
    pub(super) fn put(&self, key: &WorkerKey, state: State) {
        let never_began = match &state {
            State::Created { .. } => true,
            State::Ended { .. } => matches!(self.state(key), Some(State::Created { .. })),
            State::Running | State::Gone => false,
        };
        let seen = Observed {
            key: key.clone(),
            started_at: (!never_began).then_some(1),
            state,
            created_at: 1,
            node_name: String::new(),
            lingers: false,
            trouble: None,
        };
        self.workers.lock().unwrap().insert(key.clone(), seen);
    }

    pub(super) fn tell(&self, key: &WorkerKey) {
        let seen = self.workers.lock().unwrap().get(key).cloned();
        if let (Some(seen), Some(changes)) = (seen, &*self.changes.lock().unwrap()) {
            // The tests keep fewer changes under way than the channel holds.
            changes.try_send(seen).unwrap();
        }
    }

    /// The job begins. Panics if it began before.
    pub(super) fn start(&self, key: &WorkerKey) {
        assert!(self.started.lock().unwrap().insert(key.clone()), "{key:?} started twice");
        self.put(key, State::Running);
        self.tell(key);
    }

    pub(super) fn end(&self, key: &WorkerKey, class: Class) {
        self.put(key, State::Ended { at: 2, outcome: outcome(class) });
        self.tell(key);
    }

    /// It has ended, and what it took is not given back.
    pub(super) fn linger(&self, key: &WorkerKey, class: Class) {
        self.put(key, State::Ended { at: 2, outcome: outcome(class) });
        self.workers.lock().unwrap().get_mut(key).unwrap().lingers = true;
        self.tell(key);
    }

    pub(super) fn state(&self, key: &WorkerKey) -> Option<State> {
        self.workers.lock().unwrap().get(key).map(|seen| seen.state.clone())
    }

    pub(super) fn times_created(&self, key: &WorkerKey) -> usize {
        self.created.lock().unwrap().iter().filter(|created| *created == key).count()
    }
}

impl Driver for MemoryDriver {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn worker_name(&self, key: &WorkerKey) -> String {
        format!("{}-{}-{}", key.task_id, key.index, key.attempt)
    }

    fn list(&self) -> BoxFuture<'_, anyhow::Result<Vec<Observed>>> {
        let workers = self.workers.lock().unwrap().values().cloned().collect();
        let fails = self.list_fails.load(Ordering::Relaxed);
        soon(if fails { Err(anyhow::anyhow!("no list")) } else { Ok(workers) }).boxed()
    }

    fn create(&self, launch: Launch) -> BoxFuture<'_, Result<(), DriverError>> {
        async move {
            tokio::task::yield_now().await;
            let slow = self.slow.lock().unwrap().as_ref() == Some(&launch.key.task_id);
            if slow {
                self.go.notified().await;
            }
            let takes = self.takes.lock().unwrap().get(&launch.key.task_id).copied();
            if let Some(takes) = takes {
                tokio::time::sleep(takes).await;
            }
            if let Some(error) = self.refusal.lock().unwrap().as_ref().and_then(|refusal| refusal(&launch.key)) {
                return Err(error);
            }
            self.created.lock().unwrap().push(launch.key.clone());
            if self.state(&launch.key).is_none() {
                self.put(&launch.key, State::Created { waiting: None });
                self.tell(&launch.key);
            }
            Ok(())
        }
        .boxed()
    }

    fn stop<'a>(&'a self, key: &'a WorkerKey) -> BoxFuture<'a, anyhow::Result<()>> {
        async move {
            tokio::task::yield_now().await;
            self.stops.lock().unwrap().push(key.clone());
            // One of which nobody hears does not hear of it.
            let heard = self.workers.lock().unwrap().get(key).is_some_and(|worker| worker.trouble.is_none());
            if heard && !matches!(self.state(key), None | Some(State::Ended { .. })) {
                self.end(key, Class::Stopped);
            }
            anyhow::ensure!(!self.stop_mumbles.load(Ordering::Relaxed), "no answer");
            Ok(())
        }
        .boxed()
    }

    fn remove<'a>(&'a self, key: &'a WorkerKey) -> BoxFuture<'a, anyhow::Result<Removal>> {
        async move {
            tokio::task::yield_now().await;
            anyhow::ensure!(!self.remove_fails.load(Ordering::Relaxed), "not drained");
            if self.stays.load(Ordering::Relaxed) {
                return Ok(Removal::Leaving);
            }
            self.workers.lock().unwrap().remove(key);
            Ok(Removal::Gone)
        }
        .boxed()
    }

    fn watch(&self, changes: mpsc::Sender<Observed>) -> anyhow::Result<()> {
        *self.changes.lock().unwrap() = Some(changes);
        Ok(())
    }

    fn ends_within(&self) -> Duration {
        Duration::from_millis(500)
    }

    fn closed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
