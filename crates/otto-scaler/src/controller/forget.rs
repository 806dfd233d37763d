//! What is remembered no longer: records whose retention has ended, tasks that somebody deletes, and ended tasks of which
//! memory holds too many (the store still has those).

use std::sync::Arc;

use futures::FutureExt;

use super::keep::{DEADLINE, EXPIRE_BATCH, EXPIRE_EVERY, Kept, within};
use super::task::Task;
use super::{Controller, DeleteError, DeleteReply, ENDED_HELD, EXPIRE};
use crate::driver::WorkerKey;
use crate::store::StoreError;
use crate::task::Millis;

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
        while self.ended.len() > ENDED_HELD {
            let done = |id: &String| self.tasks.get(id).is_none_or(Task::is_done);
            let Some(task_id) = self.ended.iter().take(16).map(|(_, id)| id).find(|id| done(id)).cloned() else {
                return;
            };
            self.drop_ended(&task_id);
        }
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
        if let Some(((index, attempt), _)) = task.facts.workers.iter().find(|(_, fact)| fact.hold.is_some()) {
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
