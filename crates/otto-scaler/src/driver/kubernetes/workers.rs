//! The workers whose Pods exist, as the watch shows them; and what of it is still to be told.
//!
//! What is to be told is kept per worker: a reader that is slow gets the newest state, never loses the last one, and
//! holds up nobody.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::calls::Spoilt;
use super::classify::{Life, classify};
use super::events::Learnt;
use super::now;
use super::pod::key_of;
use super::seen::SeenPod;
use crate::driver::{Observed, State, WorkerKey, name};
use crate::task::Millis;

/// A Pod that says nothing about why its job does not begin is looked into after this.
const QUIET: Duration = Duration::from_secs(20);
/// And again after this, twice this, and so on.
const QUIET_AGAIN: Duration = Duration::from_secs(60);
/// At the longest.
const QUIET_LONGEST: Duration = Duration::from_secs(600);
/// So often, at least, within the time that a start is waited for,
const LOOKS: u32 = 8;
/// but not after less than this.
const SHORTEST: Duration = Duration::from_secs(5);

/// A request that nobody had an answer to does not come through any more after this: an API server gives up after 60 s.
const DOUBT: Duration = Duration::from_secs(300);

/// A Pod of ours.
#[derive(Debug)]
struct Known {
    uid: Box<str>,
    life: Life,
    /// When it was seen first that the job has ended. By a clock that nobody sets.
    ended_since: Option<Instant>,
    created_at: Millis,
    node_name: Box<str>,
    /// Created, without a word about what it waits for.
    quiet: Option<Quiet>,
}

#[derive(Debug)]
struct Quiet {
    look_at: Instant,
    looks: u32,
    learnt: Learnt,
}

impl Known {
    fn observed(&self, key: &WorkerKey) -> Observed {
        let state = match (&self.life.state, self.quiet.as_ref().map(|quiet| &quiet.learnt)) {
            (state, Some(Learnt::Trouble(why))) if says_nothing(state) => State::Created { waiting: Some(why.clone()) },
            (state, Some(Learnt::OnItsWay)) if says_nothing(state) => State::Created { waiting: None },
            (state, _) => state.clone(),
        };
        Observed {
            key: key.clone(),
            state,
            created_at: self.created_at,
            started_at: self.life.started_at,
            node_name: self.node_name.to_string(),
            lingers: self.life.lingers,
            trouble: self.life.trouble.clone(),
        }
    }
}

/// The job has not begun, and nothing but what is usual is said about why.
fn says_nothing(state: &State) -> bool {
    matches!(state, State::Created { waiting } if waiting.as_ref().is_none_or(|waiting| waiting.usual))
}

/// What is to be told of a worker: first how it is, then that it is gone.
#[derive(Debug, Default)]
struct News {
    seen: Option<Observed>,
    gone: Option<Observed>,
}

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<WorkerKey, Known>,
    /// Those which a list under way has shown. `None`: there is none.
    listing: Option<HashSet<WorkerKey>>,
    /// Being created by this process; whether the watch has shown it since.
    making: HashMap<WorkerKey, bool>,
    /// Created by this process, and not shown by the watch yet, which may lag behind: they exist all the same.
    made: HashMap<WorkerKey, Made>,
    /// An earlier request of this process may have created it, or may still; and when that was.
    doubtful: HashMap<WorkerKey, Instant>,
    /// Created, changed by the cluster, and still to be deleted.
    spoilt: HashMap<WorkerKey, Spoilt>,
    /// Who waits until it is gone: dropped then.
    leaving: HashMap<WorkerKey, Vec<oneshot::Sender<()>>>,
    /// Somebody wants to be told.
    told: bool,
    queue: VecDeque<WorkerKey>,
    news: HashMap<WorkerKey, News>,
}

#[derive(Debug)]
struct Made {
    created_at: Millis,
    /// A list was complete since, and did not show it. It may have begun before the creation; the next one did not.
    missed: bool,
}

impl Made {
    fn observed(&self, key: &WorkerKey, state: State) -> Observed {
        Observed {
            key: key.clone(),
            state,
            created_at: self.created_at,
            started_at: None,
            node_name: String::new(),
            lingers: false,
            trouble: None,
        }
    }
}

/// What is needed to delete a Pod.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) uid: Box<str>,
    /// Since when it is known that the job has ended, if it has.
    pub(super) ended_since: Option<Instant>,
    /// The agent is through with the log.
    pub(super) drained: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Workers {
    inner: Mutex<Inner>,
    news: Notify,
    /// How long a start is waited for.
    patience: Option<Duration>,
}

impl Workers {
    /// `patience`: how long a start is waited for; 0: for ever.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience: Some(patience).filter(|patience| !patience.is_zero()), ..Self::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A list begins.
    pub(super) fn listing(&self) {
        self.inner().listing = Some(HashSet::new());
    }

    /// A list is complete: what it did not show is gone.
    pub(super) fn synced(&self) -> usize {
        let mut guard = self.inner();
        let inner = &mut *guard;
        if let Some(listed) = inner.listing.take() {
            let gone: Vec<WorkerKey> = inner.known.keys().filter(|key| !listed.contains(key)).cloned().collect();
            for key in gone {
                inner.remove(&key);
            }
            let mut gone = Vec::new();
            inner.made.retain(|key, made| {
                let missed = std::mem::replace(&mut made.missed, true);
                if missed {
                    gone.push(made.observed(key, State::Gone));
                }
                !missed
            });
            gone.into_iter().for_each(|gone| inner.tell(gone));
        }
        let count = inner.known.len();
        drop(guard);
        self.news.notify_one();
        count
    }

    /// A Pod was added or changed, or is in a list.
    pub(super) fn applied(&self, pod: &SeenPod) {
        let Some(key) = key_of(&pod.metadata) else { return not_ours(pod) };
        let life = classify(pod, false);
        let mut inner = self.inner();
        if let Some(listing) = &mut inner.listing {
            listing.insert(key.clone());
        }
        let changed = inner.apply(&key, pod, life);
        drop(inner);
        if changed {
            self.news.notify_one();
        }
    }

    /// A Pod was deleted; this is its last state.
    pub(super) fn deleted(&self, pod: &SeenPod) {
        let Some(key) = key_of(&pod.metadata) else { return };
        let mut inner = self.inner();
        if let Some(listing) = &mut inner.listing {
            listing.remove(&key);
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        if inner.known.get(&key).is_some_and(|known| &*known.uid != uid) {
            // Of an earlier Pod of that name: the one that is there now came after it.
            return;
        }
        inner.apply(&key, pod, classify(pod, true));
        inner.remove(&key);
        drop(inner);
        self.news.notify_one();
    }

    /// All that exist.
    pub(super) fn all(&self) -> Vec<Observed> {
        let inner = self.inner();
        let known = inner.known.iter().map(|(key, known)| known.observed(key));
        let made = inner.made.iter().map(|(key, made)| made.observed(key, State::Created { waiting: None }));
        known.chain(made).collect()
    }

    pub(super) fn find(&self, key: &WorkerKey) -> Option<Found> {
        let inner = self.inner();
        let known = inner.known.get(key)?;
        Some(Found { uid: known.uid.clone(), ended_since: known.ended_since, drained: known.life.drained })
    }

    /// Ends when a Pod is not there any more, as far as the watch shows.
    pub(super) async fn gone(&self, key: &WorkerKey) {
        let (gone, told) = oneshot::channel();
        {
            let mut inner = self.inner();
            if !inner.known.contains_key(key) {
                return;
            }
            let waiting = inner.leaving.entry(key.clone()).or_default();
            waiting.retain(|waiting| !waiting.is_closed());
            waiting.push(gone);
        }
        let _ = told.await;
    }

    // ---- creations

    /// Begins a creation. `None`: it exists.
    pub(super) fn make(&self, key: &WorkerKey) -> Option<Making<'_>> {
        let mut inner = self.inner();
        if inner.known.contains_key(key) || inner.made.contains_key(key) {
            return None;
        }
        inner.making.insert(key.clone(), false);
        Some(Making { workers: self, key: key.clone() })
    }

    #[cfg(test)]
    pub(super) fn is_making(&self, key: &WorkerKey) -> bool {
        self.inner().making.contains_key(key)
    }

    // ---- news

    /// From now on somebody is told of every change.
    pub(super) fn tell(&self) {
        self.inner().told = true;
    }

    /// The next news: how a worker is, or that it is gone, or both. Waits for it. Cancel-safe.
    pub(super) async fn next_news(&self) -> (Option<Observed>, Option<Observed>) {
        loop {
            if let Some(news) = self.take_news() {
                return news;
            }
            self.news.notified().await;
        }
    }

    fn take_news(&self) -> Option<(Option<Observed>, Option<Observed>)> {
        let mut inner = self.inner();
        let key = inner.queue.pop_front()?;
        let News { seen, gone } = inner.news.remove(&key)?;
        Some((seen, gone))
    }

    // ---- silent ones

    /// A Pod that has been created long ago and says nothing, if it is time to look into it.
    pub(super) fn quiet(&self, now: Instant) -> Option<(WorkerKey, Box<str>)> {
        let mut inner = self.inner();
        let (key, known) = inner
            .known
            .iter_mut()
            .filter(|(_, known)| known.quiet.as_ref().is_some_and(|quiet| quiet.look_at <= now))
            .min_by_key(|(_, known)| known.quiet.as_ref().map(|quiet| quiet.look_at))?;
        let quiet = known.quiet.as_mut()?;
        let pause = QUIET_AGAIN.saturating_mul(1 << quiet.looks.min(8)).min(QUIET_LONGEST);
        // Several times before it is given up: what it waits for changes.
        let often = self.patience.map_or(pause, |patience| (patience / LOOKS).max(SHORTEST));
        quiet.look_at = now + pause.min(often);
        quiet.looks += 1;
        Some((key.clone(), known.uid.clone()))
    }

    /// What was found out about it.
    pub(super) fn explain(&self, key: &WorkerKey, uid: &str, learnt: Learnt) {
        let mut guard = self.inner();
        let inner = &mut *guard;
        let Some(known) = inner.known.get_mut(key).filter(|known| &*known.uid == uid) else { return };
        let Some(quiet) = &mut known.quiet else { return };
        if quiet.learnt == learnt {
            return;
        }
        quiet.learnt = learnt;
        let observed = known.observed(key);
        inner.tell(observed);
        drop(guard);
        self.news.notify_one();
    }
}

fn not_ours(pod: &SeenPod) {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    tracing::warn!(pod = name, "a Pod has the labels of a worker but is none; it is left alone");
}

impl Inner {
    /// Takes over what a Pod shows. Whether there is news.
    fn apply(&mut self, key: &WorkerKey, pod: &SeenPod, mut life: Life) -> bool {
        if let Some(seen) = self.making.get_mut(key) {
            *seen = true;
        }
        self.made.remove(key);
        self.doubtful.remove(key);
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let node_name = pod.spec.node_name.as_deref().unwrap_or_default();
        let before = self.known.get(key);
        if let Some(before) = before {
            if &*before.uid != uid {
                tracing::error!(
                    worker = name::worker_name(key),
                    "the Pod of a worker was replaced by another one of the same name; it goes on with that"
                );
            } else {
                life = life.after(&before.life);
                if before.life == life && &*before.node_name == node_name {
                    return false;
                }
            }
        }
        let quiet = says_nothing(&life.state).then(|| {
            let fresh = || Quiet { look_at: Instant::now() + QUIET, looks: 0, learnt: Learnt::Nothing };
            // What was found out holds as long as nothing goes on.
            let same = self.known.get_mut(key).filter(|before| &*before.uid == uid && before.life.state == life.state);
            same.and_then(|before| before.quiet.take()).unwrap_or_else(fresh)
        });
        let created_at = pod.metadata.creation_timestamp.as_ref().map(|time| time.0.as_millisecond());
        let ended_since = matches!(life.state, State::Ended { .. }).then(|| {
            let before = self.known.get(key).filter(|before| &*before.uid == uid);
            before.and_then(|before| before.ended_since).unwrap_or_else(Instant::now)
        });
        let known = Known {
            uid: uid.into(),
            life,
            ended_since,
            created_at: created_at.unwrap_or_default(),
            node_name: node_name.into(),
            quiet,
        };
        let observed = self.told.then(|| known.observed(key));
        self.known.insert(key.clone(), known);
        if let Some(observed) = observed {
            self.tell(observed);
        }
        true
    }

    fn remove(&mut self, key: &WorkerKey) {
        let Some(known) = self.known.remove(key) else { return };
        self.leaving.remove(key);
        if self.told {
            let observed = Observed { state: State::Gone, ..known.observed(key) };
            self.tell(observed);
        }
    }

    fn tell(&mut self, observed: Observed) {
        if !self.told {
            return;
        }
        let news = self.news.entry(observed.key.clone()).or_insert_with(|| {
            self.queue.push_back(observed.key.clone());
            News::default()
        });
        if observed.state == State::Gone {
            news.gone = Some(observed);
        } else {
            *news = News { seen: Some(observed), gone: None };
        }
    }
}

/// A creation under way.
#[derive(Debug)]
pub(super) struct Making<'a> {
    workers: &'a Workers,
    key: WorkerKey,
}

impl Making<'_> {
    /// The watch has shown the Pod since it began.
    pub(super) fn is_seen(&self) -> bool {
        self.workers.inner().making.get(&self.key).copied().unwrap_or_default()
    }
}

impl Making<'_> {
    /// A request of an earlier call may have created it, or may still; and when that was.
    pub(super) fn doubt(&self) -> Option<Instant> {
        let mut inner = self.workers.inner();
        inner.doubtful.retain(|_, since| since.elapsed() < DOUBT);
        inner.doubtful.get(&self.key).copied()
    }

    /// What an earlier call left to be deleted.
    pub(super) fn take_spoilt(&self) -> Option<Spoilt> {
        self.workers.inner().spoilt.remove(&self.key)
    }

    /// The next call deletes it.
    pub(super) fn keep_spoilt(&self, spoilt: Spoilt) {
        self.workers.inner().spoilt.insert(self.key.clone(), spoilt);
    }

    /// Nobody knows what came of the requests, the last of which was sent then.
    pub(super) fn stays_doubtful(&self, since: Instant) {
        self.workers.inner().doubtful.insert(self.key.clone(), since);
    }

    /// The server says that it exists, whether the watch has shown it or not.
    pub(super) fn exists(&self) {
        let mut inner = self.workers.inner();
        if inner.making.get(&self.key) == Some(&false) {
            inner.made.insert(self.key.clone(), Made { created_at: now(), missed: false });
        }
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.workers.inner().making.remove(&self.key);
    }
}

#[cfg(test)]
mod tests;
