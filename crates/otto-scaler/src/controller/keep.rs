//! The loop and the task store: events into records, records into the store, and what to do while the store is away.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use otto_service::client::Backoff;

use super::task::{Task, Waiter};
use super::{Applied, ApplyError, ApplyReply, Change, Command, Controller, DeleteError, EXPIRE, Reason};
use crate::apply::{Decision, apply};
use crate::driver::{Driver, WorkerKey};
use crate::plan;
use crate::store::StoreError;
use crate::task::{EntryId, Millis, Record, WorkerPhase};
use crate::worker_events::derive::Teller;

/// Longest wait for one answer of the store.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks for records whose retention has ended.
pub(super) const EXPIRE_EVERY: Millis = 60_000;
/// Expired records removed at once.
pub(super) const EXPIRE_BATCH: usize = 500;
/// Other writers an event gives way to, before its sender is asked to try again.
pub(crate) const CONFLICTS: u32 = 16;

pub(super) fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(100), Duration::from_secs(2))
}

/// The store is away.
#[derive(Debug)]
pub(super) struct Outage {
    pub(super) message: String,
    /// Tasks that wait for it.
    pub(super) stuck: HashSet<String>,
    pub(super) retry_after: u32,
}

/// Why a record is written.
#[derive(Debug)]
pub(super) enum Why {
    /// It was brought up to the facts.
    Settled,
    Event {
        waiter: Waiter,
        touched: Vec<u32>,
        unchanged: bool,
        conflicts: u32,
    },
}

/// What came of a call to the store.
#[derive(Debug)]
pub(super) enum Kept {
    Loaded(Result<Vec<Record>, StoreError>),
    Written { task_id: String, record: Arc<Record>, why: Why, result: Result<(), StoreError> },
    Read { task_id: String, waiter: Option<(Waiter, u32)>, result: Result<Option<Arc<Record>>, StoreError> },
    Acknowledged { applied: Box<Applied>, reply: ApplyReply, result: Result<(), StoreError> },
    Removed { task_id: String, result: Result<(), StoreError> },
    Pinged(Result<(), StoreError>),
    Expired(Result<usize, StoreError>),
    Reloaded(Result<Vec<Record>, StoreError>),
}

/// Names of the workers with these indexes; `None`: all that are not stopped.
pub(crate) fn worker_names(driver: &dyn Driver, record: &Record, indexes: Option<&[u32]>) -> Vec<String> {
    let wanted = |index: u32, phase: WorkerPhase| match indexes {
        Some(indexes) => indexes.contains(&index),
        None => !matches!(phase, WorkerPhase::Stopped | WorkerPhase::Stopping),
    };
    let workers = record.workers.iter().filter(|worker| wanted(worker.index, worker.phase));
    let key = |index, attempt| WorkerKey { task_id: record.task_id.clone(), index, attempt };
    workers.map(|worker| driver.worker_name(&key(worker.index, worker.attempt))).collect()
}

/// The store's answer, or that it did not answer in time.
pub(crate) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::Unavailable(format!("no answer within {} s", deadline.as_secs()))),
    }
}

impl Controller {
    pub(super) fn command(&mut self, command: Command) {
        match command {
            Command::Apply { event, reply } => {
                self.under_way += 1;
                if let Some(error) = self.away() {
                    return self.answer(reply, Err(error));
                }
                let task_id = event.task_id.clone();
                let mut task = self.tasks.remove(&task_id).unwrap_or_default();
                task.waiting.push_back((event, reply));
                self.next_event(&task_id, &mut task);
                self.tasks.insert(task_id, task);
            }
            Command::Delete { task_id, reply } => {
                if let Some(error) = self.away() {
                    let _ = reply.send(Err(error.into()));
                    return;
                }
                let task = self.tasks.entry(task_id.clone()).or_default();
                if task.stored.is_none() {
                    task.uncertain = true;
                }
                // What was to be tried again later is tried now.
                let ended = task.facts.workers.values_mut().filter(|fact| !fact.is_live() && !fact.busy);
                ended.for_each(|fact| fact.hold = None);
                if let Some(before) = task.deleting.replace(reply) {
                    let _ = before.send(Err(DeleteError::Remains("it is being deleted by another call".into())));
                }
                self.dirty.insert(task_id);
            }
            Command::Changed(task_ids) => self.changed(task_ids),
            Command::Reload => self.reload(),
        }
    }

    /// Why events cannot be taken now.
    fn away(&self) -> Option<ApplyError> {
        if let Some(outage) = &self.outage {
            return Some(ApplyError::Unavailable { retry_after: outage.retry_after, message: outage.message.clone() });
        }
        (!self.loaded.is_cancelled())
            .then(|| ApplyError::Unavailable { retry_after: 500, message: "its records are being read".to_owned() })
    }

    fn answer(&mut self, reply: ApplyReply, result: Result<Applied, ApplyError>) {
        self.under_way = self.under_way.saturating_sub(1);
        self.metrics.event(match &result {
            Ok(Applied::Changed(_)) => "applied",
            Ok(Applied::AlreadyProcessed(_)) => "already_processed",
            Ok(Applied::Dead(_)) => "dead_letter",
            Err(_) => "unavailable",
        });
        // A caller that went away has no use for it; the effect stands.
        let _ = reply.send(result);
    }

    /// Takes up the event that waits longest, unless something of the task is under way.
    pub(super) fn next_event(&mut self, task_id: &str, task: &mut Task) {
        if task.busy || task.waiting.is_empty() {
            return;
        }
        if task.uncertain {
            self.dirty.insert(task_id.to_owned());
        } else if let Some(waiter) = task.waiting.pop_front() {
            self.decide(task_id, task, waiter, 0, false);
        }
    }

    /// `read`: the store was asked just now.
    fn decide(&mut self, task_id: &str, task: &mut Task, waiter: Waiter, conflicts: u32, read: bool) {
        let now = self.clock.now();
        task.facts.complete = self.driver_listed.known;
        if let Some(stored) = task.stored.clone() {
            self.note_door(task, &stored, now);
        }
        let settled = task
            .stored
            .as_ref()
            .and_then(|stored| plan::settle(stored, &task.facts, &self.options.policy, now).map(|(record, _)| record));
        let base = settled.as_ref().or(task.stored.as_deref());
        match apply(base, &waiter.0, &self.options.defaults, now) {
            Decision::Put { record, touched, unchanged } => {
                let entry = waiter.0.entry;
                self.write(task_id, task, record, entry, Why::Event { waiter, touched, unchanged, conflicts });
            }
            // It came again, perhaps because the store went back to before it was applied: then the store must have it
            // before the entry is acknowledged.
            // And a call may be about what another replica has changed since.
            Decision::AlreadyProcessed if !read => {
                self.read(task_id, task, Some((waiter, conflicts)));
            }
            Decision::AlreadyProcessed => {
                let Some(record) = task.stored.clone() else { return };
                let worker_names = self.names(&record, None);
                let applied = Applied::AlreadyProcessed(Change { record, worker_names });
                self.acknowledge(waiter, applied);
                self.next_event(task_id, task);
            }
            // Not held in memory does not mean not stored.
            Decision::Dead(_) if task.stored.is_none() && !read => self.read(task_id, task, Some((waiter, conflicts))),
            Decision::Dead(reason) => {
                self.answer(waiter.1, Ok(Applied::Dead(reason)));
                self.next_event(task_id, task);
            }
        }
    }

    fn acknowledge(&mut self, (event, reply): Waiter, applied: Applied) {
        let Some(entry) = event.entry else { return self.answer(reply, Ok(applied)) };
        let store = Arc::clone(&self.store);
        let call = async move {
            let result = within(DEADLINE, store.acknowledge(entry)).await;
            Kept::Acknowledged { applied: Box::new(applied), reply, result }
        };
        self.keeping.push(call.boxed());
    }

    fn names(&self, record: &Record, indexes: Option<&[u32]>) -> Vec<String> {
        worker_names(&*self.driver, record, indexes)
    }

    /// Stores what was settled.
    pub(super) fn write_settled(&mut self, task_id: &str, task: &mut Task, mut record: Record) {
        record.version += 1;
        self.write(task_id, task, record, None, Why::Settled);
    }

    fn write(&mut self, task_id: &str, task: &mut Task, record: Record, entry: Option<EntryId>, why: Why) {
        task.busy = true;
        task.soft_due = None;
        self.admission.hold(task_id);
        let (store, record, task_id) = (Arc::clone(&self.store), Arc::new(record), task_id.to_owned());
        let writing = Arc::clone(&self.writing);
        let call = async move {
            // Never closed. The deadline begins with the turn.
            let _turn = writing.acquire().await;
            let result = within(DEADLINE, store.put(&record, entry)).await;
            Kept::Written { task_id, record, why, result }
        };
        self.keeping.push(call.boxed());
    }

    pub(super) fn read(&mut self, task_id: &str, task: &mut Task, waiter: Option<(Waiter, u32)>) {
        task.busy = true;
        let (store, task_id) = (Arc::clone(&self.store), task_id.to_owned());
        let call = async move {
            let result = within(DEADLINE, store.get(&task_id)).await.map(|record| record.map(Arc::new));
            Kept::Read { task_id, waiter, result }
        };
        self.keeping.push(call.boxed());
    }

    pub(super) fn kept(&mut self, kept: Kept) {
        match kept {
            Kept::Loaded(result) => self.records_loaded(result),
            Kept::Written { task_id, record, why, result } => {
                let mut task = self.tasks.remove(&task_id).unwrap_or_default();
                task.busy = false;
                // Whatever is read from now on is not from before.
                task.overtaken = false;
                self.written(&task_id, &mut task, record, why, result);
                self.tasks.insert(task_id.clone(), task);
                self.dirty.insert(task_id);
            }
            Kept::Read { task_id, waiter, result } => {
                let mut task = self.tasks.remove(&task_id).unwrap_or_default();
                task.busy = false;
                let overtaken = std::mem::take(&mut task.overtaken);
                self.was_read(&task_id, &mut task, waiter, result);
                task.uncertain |= overtaken;
                self.tasks.insert(task_id.clone(), task);
                self.dirty.insert(task_id);
            }
            Kept::Acknowledged { applied, reply, result } => match result {
                Ok(()) => self.answer(reply, Ok(*applied)),
                Err(error) => {
                    let error = self.store_failed(&error);
                    self.answer(reply, Err(error));
                }
            },
            Kept::Removed { task_id, result } => self.removed(&task_id, result),
            Kept::Pinged(Ok(())) => self.store_well(),
            Kept::Pinged(Err(error)) => {
                self.store_failed(&error);
            }
            Kept::Reloaded(result) => self.reloaded(result),
            Kept::Expired(Ok(count)) if count >= EXPIRE_BATCH => self.chore_at(EXPIRE, self.clock.now()),
            Kept::Expired(Ok(_)) => self.chore_at(EXPIRE, self.clock.now() + EXPIRE_EVERY),
            Kept::Expired(Err(error)) => {
                self.store_failed(&error);
                self.chore_at(EXPIRE, self.clock.now() + EXPIRE_EVERY);
            }
        }
    }

    fn written(
        &mut self,
        task_id: &str,
        task: &mut Task,
        record: Arc<Record>,
        why: Why,
        result: Result<(), StoreError>,
    ) {
        match (result, why) {
            (Ok(()), why) => {
                if let Why::Event { touched, .. } = &why {
                    let now = self.clock.now();
                    task.asked.extend(touched.iter().map(|index| (*index, now)));
                }
                self.stored(task_id, task, Some(Arc::clone(&record)));
                if let Why::Event { waiter: (_, reply), touched, unchanged, .. } = why {
                    let worker_names = self.names(&record, (!unchanged).then_some(&touched));
                    let change = Change { record, worker_names };
                    let applied = if unchanged { Applied::AlreadyProcessed(change) } else { Applied::Changed(change) };
                    self.answer(reply, Ok(applied));
                }
                self.next_event(task_id, task);
            }
            (Err(StoreError::Conflict(_)), Why::Event { waiter, conflicts, .. }) if conflicts < CONFLICTS => {
                self.read(task_id, task, Some((waiter, conflicts + 1)));
            }
            (Err(StoreError::Conflict(_)), Why::Settled) => self.read(task_id, task, None),
            (Err(error), why) => {
                // It may have been written all the same.
                task.uncertain = true;
                let error = self.store_failed(&error);
                if let Why::Event { waiter: (_, reply), .. } = why {
                    self.answer(reply, Err(error.clone()));
                }
                self.turn_away(task, &error);
            }
        }
    }

    fn turn_away(&mut self, task: &mut Task, error: &ApplyError) {
        while let Some((_, reply)) = task.waiting.pop_front() {
            self.answer(reply, Err(error.clone()));
        }
        if let Some(reply) = task.deleting.take() {
            let _ = reply.send(Err(DeleteError::Apply(error.clone())));
        }
    }

    /// The store has this record now: tells what happened since the last one known.
    pub(super) fn stored(&mut self, task_id: &str, task: &mut Task, record: Option<Arc<Record>>) {
        let now = self.clock.now();
        let before = std::mem::replace(&mut task.stored, record);
        if let Some(before) = before.as_ref().filter(|before| before.phase.is_terminal()) {
            self.ended.remove(&(before.ended_at.unwrap_or_default(), task_id.to_owned()));
        }
        let Some(record) = task.stored.clone() else {
            self.board.hide(task_id);
            return;
        };
        task.orphaned = None;
        self.tell_observed(task);
        let events = Teller { driver: &*self.driver, record: &record }.since(before.as_deref(), now);
        self.count(before.as_deref(), &record);
        if record.phase.is_terminal() {
            self.ended.insert((record.ended_at.unwrap_or_default(), task_id.to_owned()));
        }
        self.board.show(record);
        self.publisher.publish(events);
    }

    /// The store had a record that it now has in an older version or not at all (it was restored, or crashed before all
    /// was on its disk), and nobody removed it.
    fn is_lost(&self, task: &Task, held: &Record, found: Option<&Record>) -> bool {
        let expired = self.clock.now().saturating_sub(self.options.defaults.retention);
        match found {
            // Another one of the same name is a later task's: this one's record was removed, or has expired.
            Some(found) => found.version < held.version && found.created_at == held.created_at,
            None => !task.removing && held.ended_at.is_none_or(|at| !held.phase.is_terminal() || at > expired),
        }
    }

    fn was_read(
        &mut self,
        task_id: &str,
        task: &mut Task,
        waiter: Option<(Waiter, u32)>,
        result: Result<Option<Arc<Record>>, StoreError>,
    ) {
        let held = task.stored.clone();
        let lost = held.filter(|held| result.as_ref().is_ok_and(|found| self.is_lost(task, held, found.as_deref())));
        match (result, waiter) {
            (Ok(found), waiter) if let Some(held) = lost => {
                // What was done by it was done: it is written again over what the store went back to.
                let version = found.map_or(0, |found| found.version) + 1;
                tracing::warn!(
                    task_id,
                    held = held.version,
                    version,
                    "the task store lost a record; it is written again"
                );
                task.uncertain = false;
                let entry = waiter.as_ref().and_then(|((event, _), _)| event.entry);
                let entry = entry.filter(|entry| held.last_entry == Some(*entry));
                if let Some((waiter, _)) = waiter {
                    task.waiting.push_front(waiter);
                }
                self.write(task_id, task, Record { version, ..(*held).clone() }, entry, Why::Settled);
            }
            (Ok(record), waiter) => {
                task.removing = false;
                let asked_before = task.orphaned.is_some();
                task.uncertain = false;
                match record {
                    Some(record) => {
                        let newer = task.stored.as_ref().is_none_or(|stored| *stored != record);
                        if newer {
                            let now = self.clock.now();
                            let before = task.stored.as_ref().map_or(0, |stored| stored.workers.len());
                            let asked = record.workers.iter().skip(before).map(|worker| (worker.index, now));
                            task.asked.extend(asked);
                            self.stored(task_id, task, Some(record));
                        }
                    }
                    None => {
                        self.stored(task_id, task, None);
                        if !task.facts.workers.is_empty() {
                            let since = task.orphaned.map_or_else(|| self.clock.now(), |(since, _)| since);
                            task.orphaned = Some((since, asked_before));
                        }
                    }
                }
                match waiter {
                    Some((waiter, conflicts)) => self.decide(task_id, task, waiter, conflicts, true),
                    None => self.next_event(task_id, task),
                }
            }
            (Err(StoreError::Corrupt { reason, .. }), Some(((_, reply), _))) => {
                self.answer(reply, Ok(Applied::Dead(Reason::Unreadable(reason))));
                self.next_event(task_id, task);
            }
            (Err(StoreError::Corrupt { task_id, reason }), None) => {
                // Reading it again would find the same. Its workers, if any, are left alone.
                tracing::error!(task_id, reason, "the record of a task cannot be read");
                task.uncertain = false;
                task.orphaned = Some((Millis::MAX / 4, false));
                self.next_event(&task_id, task);
            }
            (Err(error), waiter) => {
                task.uncertain = true;
                let error = self.store_failed(&error);
                if let Some(((_, reply), _)) = waiter {
                    self.answer(reply, Err(error.clone()));
                }
                self.turn_away(task, &error);
            }
        }
    }
}
