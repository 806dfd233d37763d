//! What is remembered no longer: records whose retention has ended, tasks that somebody deletes, and ended tasks of which
//! memory holds too many (the store still has those).

use std::ops::Bound;
use std::sync::Arc;

use futures::FutureExt;

use super::keep::{DEADLINE, EXPIRE_BATCH, EXPIRE_EVERY, Kept, within};
use super::task::Task;
use super::{ApplyError, Controller, DeleteError, DeleteReply, ENDED_HELD, EXPIRE};
use crate::driver::WorkerKey;
use crate::plan::Fact;
use crate::store::StoreError;
use crate::task::Millis;

/// Ended tasks that are looked at in one go, for one that can be forgotten;
const LOOK: usize = 16;
/// so often without success.
const LOOKS: usize = 4;

impl Controller {
    pub(super) fn expire(&mut self, now: Millis) {
        if self.outage.is_some() {
            return self.chore_at(EXPIRE, now + EXPIRE_EVERY);
        }
        let before = now.saturating_sub(self.options.defaults.retention);
        let old = self.ended.iter().take_while(|(at, _)| *at < before).map(|(_, task_id)| task_id.clone());
        for task_id in old.collect::<Vec<_>>() {
            self.drop_ended(&task_id);
        }
        let store = Arc::clone(&self.store);
        self.keeping
            .push(async move { Kept::Expired(within(DEADLINE, store.expire(before, EXPIRE_BATCH)).await) }.boxed());
    }

    /// Holds no more ended tasks than it may.
    pub(super) fn evict(&mut self) {
        // From where the last look ended: those before it were not done, and some may stay so for long.
        let mut from = self.evicted_to.take();
        let mut in_vain = 0;
        while self.ended.len() > ENDED_HELD && in_vain < LOOKS {
            let after = from.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let look: Vec<_> = self.ended.range((after, Bound::Unbounded)).take(LOOK).cloned().collect();
            let done = |(_, id): &&(Millis, String)| self.tasks.get(id).is_none_or(Task::is_done);
            match look.iter().find(done) {
                Some((_, task_id)) => self.drop_ended(task_id),
                None => {
                    in_vain += 1;
                    // After the last one comes the first.
                    from = look.into_iter().nth(LOOK - 1);
                    if from.is_none() {
                        break;
                    }
                }
            }
        }
        self.evicted_to = from;
    }

    fn drop_ended(&mut self, task_id: &str) {
        let Some(task) = self.tasks.get(task_id).filter(|task| task.is_done()) else { return };
        let at = task.stored.as_ref().and_then(|record| record.ended_at).unwrap_or_default();
        if let Some(wake) = task.wake {
            self.timers.remove(&(wake, task_id.to_owned()));
        }
        self.ended.remove(&(at, task_id.to_owned()));
        self.tasks.remove(task_id);
        self.board.hide(task_id);
    }

    /// Goes on with a deletion. Returns the reply if it goes on later.
    pub(super) fn delete(&mut self, task_id: &str, task: &mut Task, reply: DeleteReply) -> Option<DeleteReply> {
        let Some(stored) = &task.stored else {
            let _ = reply.send(Err(DeleteError::NotFound));
            return None;
        };
        if !stored.phase.is_terminal() {
            let _ = reply.send(Err(DeleteError::Live));
            return None;
        }
        if !self.driver_listed.known {
            // Something of it may be there, by which a later task of this name would be taken for done.
            let message = "the workers are not known yet".to_owned();
            let _ = reply.send(Err(DeleteError::Apply(ApplyError::Unavailable { retry_after: 1_000, message })));
            return None;
        }
        let now = self.clock.now();
        let remains = |fact: &Fact| !fact.busy && !fact.gone && fact.hold.is_some_and(|until| until > now);
        if let Some(((index, attempt), _)) = task.facts.workers.iter().find(|(_, fact)| remains(fact)) {
            let key = WorkerKey { task_id: task_id.to_owned(), index: *index, attempt: *attempt };
            let name = self.driver.worker_name(&key);
            let why = format!(
                "what is left of worker `{name}` cannot be removed yet: its Pod may still be ending, or its log not be stored in full"
            );
            let _ = reply.send(Err(DeleteError::Remains(why)));
            return None;
        }
        // A later attempt may have ended since.
        if let Some((index, attempt)) = task.facts.unclear.keys().next() {
            let key = WorkerKey { task_id: task_id.to_owned(), index: *index, attempt: *attempt };
            let name = self.driver.worker_name(&key);
            let why =
                format!("nobody knows yet whether worker `{name}` was created; that shows within a minute or two");
            let _ = reply.send(Err(DeleteError::Remains(why)));
            return None;
        }
        if task.facts.workers.is_empty() && !task.busy {
            task.busy = true;
            task.removing = true;
            let (store, task_id, version) = (Arc::clone(&self.store), task_id.to_owned(), stored.version);
            let call = async move {
                let result = within(DEADLINE, store.remove(&task_id, version)).await;
                Kept::Removed { task_id, result }
            };
            self.keeping.push(call.boxed());
        }
        Some(reply)
    }

    pub(super) fn removed(&mut self, task_id: &str, result: Result<(), StoreError>) {
        let Some(mut task) = self.tasks.remove(task_id) else { return };
        task.busy = false;
        let reply = task.deleting.take();
        let answer = match result {
            Ok(()) => {
                self.stored(task_id, &mut task, None);
                task.removing = false;
                task.told.clear();
                Ok(())
            }
            Err(error) => {
                task.uncertain = true;
                Err(DeleteError::Apply(self.store_failed(&error)))
            }
        };
        if let Some(reply) = reply {
            let _ = reply.send(answer);
        }
        self.next_event(task_id, &mut task);
        self.tasks.insert(task_id.to_owned(), task);
        self.dirty.insert(task_id.to_owned());
    }
}
