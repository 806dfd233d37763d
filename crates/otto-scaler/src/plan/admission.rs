//! Which of the workers that are ready may start now: within the limits, by priority, then by age. Pure, and every step
//! costs the logarithm of what waits, so that ten thousand waiting workers do not slow one event.
//!
//! One step of priority is worth [`STEP`] of waiting. So a task with a higher priority goes first, and yet none waits
//! for ever behind a stream of more important ones. Resource classes whose workers would all be turned away ([`door`]) are
//! passed over.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::Facts;
use crate::task::{Millis, Worker};

pub(crate) mod door;

/// Waiting time that one step of priority is worth, in milliseconds.
pub(crate) const STEP: Millis = 10 * 60 * 1000;

impl Facts {
    /// The worker's attempt may be created: neither it nor a later one is there, and none of its index is being created.
    pub(crate) fn is_free(&self, worker: &Worker) -> bool {
        let mut creating = self.creating.range((worker.index, 0)..=(worker.index, u32::MAX));
        self.newest(worker.index).is_none_or(|(attempt, _)| attempt < worker.attempt) && creating.next().is_none()
    }
}

/// How many workers may be live (created and not ended) at once; `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) total: Option<usize>,
    pub(crate) per_repository: Option<usize>,
    pub(crate) per_task: Option<usize>,
}

/// Order among tasks: smaller goes first.
type Rank = (Millis, Millis, String);

/// What decides when a task's workers start.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Standing<'a> {
    pub(crate) repository: &'a str,
    pub(crate) resource_class: &'a str,
    pub(crate) priority: i32,
    pub(crate) created_at: Millis,
}

#[derive(Debug)]
struct Task {
    repository: String,
    class: String,
    rank: Rank,
    ready: BTreeSet<u32>,
    taken: usize,
}

#[derive(Debug, Default)]
struct Repository {
    /// Tasks that have a ready worker and a free place of their own, by resource class.
    eligible: BTreeMap<String, BTreeSet<Rank>>,
    taken: usize,
    /// How it is listed among the repositories with a free place, by resource class.
    listed: BTreeMap<String, Rank>,
}

/// What waits, and what is taken.
#[derive(Debug)]
pub(crate) struct Admission {
    limits: Limits,
    tasks: HashMap<String, Task>,
    repositories: HashMap<String, Repository>,
    /// The best task of every repository that has a free place, by resource class.
    heads: BTreeMap<String, BTreeSet<(Rank, String)>>,
    taken: usize,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, tasks: HashMap::new(), repositories: HashMap::new(), heads: BTreeMap::new(), taken: 0 }
    }

    /// Places taken: by workers, and by creations under way.
    pub(crate) fn taken(&self) -> usize {
        self.taken
    }

    /// A worker of this resource class may start, as far as the limits go.
    pub(crate) fn is_waiting(&self, class: &str) -> bool {
        self.heads.contains_key(class)
    }

    /// Sets which workers of a task are ready, and how many of its places are taken; a task with neither is forgotten.
    pub(crate) fn set(&mut self, task_id: &str, standing: Standing<'_>, ready: BTreeSet<u32>, taken: usize) {
        let Standing { repository, resource_class, priority, created_at } = standing;
        let idle = ready.is_empty() && taken == 0;
        let place = (created_at.saturating_sub(Millis::from(priority) * STEP), created_at);
        let same = |task: &Task| {
            task.ready == ready
                && task.taken == taken
                && (task.rank.0, task.rank.1) == place
                && task.repository == repository
                && task.class == resource_class
        };
        // One that was held has an entry, even if nothing of it is left to start.
        if self.tasks.get(task_id).map_or(idle, |task| !idle && same(task)) {
            return;
        }
        self.forget(task_id);
        if idle {
            return;
        }
        self.taken += taken;
        self.repositories.entry(repository.to_owned()).or_default().taken += taken;
        let rank = (place.0, place.1, task_id.to_owned());
        let (repository_of, class) = (repository.to_owned(), resource_class.to_owned());
        self.tasks.insert(task_id.to_owned(), Task { repository: repository_of, class, rank, ready, taken });
        self.list_task(task_id, repository);
    }

    /// Nothing of a task may start until it is [`set`](Self::set) again.
    pub(crate) fn hold(&mut self, task_id: &str) {
        self.unlist_task(task_id);
        if let Some(task) = self.tasks.get_mut(task_id) {
            task.ready.clear();
        }
    }

    fn forget(&mut self, task_id: &str) {
        self.unlist_task(task_id);
        if let Some(task) = self.tasks.remove(task_id) {
            self.taken -= task.taken;
            if let Some(group) = self.repositories.get_mut(&task.repository) {
                group.taken -= task.taken;
            }
            self.list_repository(&task.repository);
        }
    }

    /// Takes a place for the next worker that may start: its task and index. `None`: none may. `admit`: whether workers of
    /// a resource class are created at all.
    pub(crate) fn next(&mut self, admit: impl Fn(&str) -> bool) -> Option<(String, u32)> {
        if self.limits.total.is_some_and(|limit| self.taken >= limit) {
            return None;
        }
        let heads = self.heads.iter().filter(|(class, _)| admit(class));
        let (rank, repository) = heads.filter_map(|(_, heads)| heads.first()).min().cloned()?;
        let task_id = rank.2;
        self.unlist_task(&task_id);
        let task = self.tasks.get_mut(&task_id)?;
        let index = task.ready.pop_first()?;
        task.taken += 1;
        self.taken += 1;
        self.repositories.entry(repository.clone()).or_default().taken += 1;
        self.list_task(&task_id, &repository);
        Some((task_id, index))
    }

    fn unlist_task(&mut self, task_id: &str) {
        let Some(task) = self.tasks.get(task_id) else { return };
        let (repository, class) = (task.repository.clone(), task.class.clone());
        if let Some(group) = self.repositories.get_mut(&repository)
            && let Some(eligible) = group.eligible.get_mut(&class)
        {
            eligible.remove(&task.rank);
        }
        self.list_repository(&repository);
    }

    fn list_task(&mut self, task_id: &str, repository: &str) {
        if let Some(task) = self.tasks.get(task_id)
            && !task.ready.is_empty()
            && self.limits.per_task.is_none_or(|limit| task.taken < limit)
            && let Some(group) = self.repositories.get_mut(repository)
        {
            group.eligible.entry(task.class.clone()).or_default().insert(task.rank.clone());
        }
        self.list_repository(repository);
    }

    fn list_repository(&mut self, repository: &str) {
        let Some(group) = self.repositories.get_mut(repository) else { return };
        // Work without a repository has no group of its own to share with.
        let limit = self.limits.per_repository.filter(|_| !repository.is_empty());
        let free = limit.is_none_or(|limit| group.taken < limit);
        for (class, eligible) in &group.eligible {
            let head = eligible.first().filter(|_| free);
            if head == group.listed.get(class) {
                continue;
            }
            let heads = self.heads.entry(class.clone()).or_default();
            if let Some(listed) = group.listed.remove(class) {
                heads.remove(&(listed, repository.to_owned()));
            }
            if let Some(head) = head {
                heads.insert((head.clone(), repository.to_owned()));
                group.listed.insert(class.clone(), head.clone());
            }
            if heads.is_empty() {
                self.heads.remove(class);
            }
        }
        group.eligible.retain(|_, eligible| !eligible.is_empty());
        if group.eligible.is_empty() && group.taken == 0 {
            self.repositories.remove(repository);
        }
    }
}

#[cfg(test)]
mod tests;
