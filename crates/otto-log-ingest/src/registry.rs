//! Which workers are registered and which runs have an open session.
//!
//! Registrations are also in the store (a registered run exists there), so a restart loses none; what is here bounds
//! how many workers are served at once and finds a worker's newest run quickly.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use otto_log_store::RunId;
use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// How long a new session waits for the one it replaces to store what it has read.
const TAKEOVER_PATIENCE: Duration = Duration::from_secs(10);

/// Registered workers and open sessions, in memory.
#[derive(Debug)]
pub struct Registry {
    inner: Mutex<Inner>,
    max_workers: usize,
    worker_ttl: Duration,
    max_sessions: usize,
    admissions: Arc<Semaphore>,
    open: Gauge,
}

#[derive(Debug, Default)]
struct Inner {
    /// By task and worker: the newest run, and when it was registered.
    workers: HashMap<(String, String), (RunId, Instant)>,
    sessions: HashMap<RunId, Slot>,
    next_session: u64,
    purged: Option<Instant>,
}

#[derive(Debug)]
struct Slot {
    number: u64,
    stop: CancellationToken,
    ended: CancellationToken,
}

/// No more workers can be registered now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Registry {
    /// `worker_ttl`: a registered worker without an open session is forgotten after so long (its run is not).
    /// `open` counts the streams that are open.
    #[must_use]
    pub fn new(max_workers: usize, worker_ttl: Duration, max_sessions: usize, open: Gauge) -> Self {
        Self {
            inner: Mutex::default(),
            max_workers,
            worker_ttl,
            max_sessions,
            admissions: Arc::new(Semaphore::new(max_sessions.min(Semaphore::MAX_PERMITS))),
            open,
        }
    }

    /// Whether a session of this run is open now.
    #[must_use]
    pub fn is_connected(&self, run: RunId) -> bool {
        self.lock().sessions.contains_key(&run)
    }

    /// Registered workers.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.lock().workers.len()
    }

    /// Counts a stream while it is open.
    pub(crate) fn open(&self) -> Open {
        self.open.inc();
        Open(self.open.clone())
    }

    /// A place for a stream; how many places there are if none is free.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, usize> {
        self.admissions.clone().try_acquire_owned().map_err(|_| self.max_sessions)
    }

    /// Whether one more worker may be registered (one that is registered may be registered again).
    pub(crate) fn check_room(&self, task_id: &str, worker_id: &str) -> Result<(), Full> {
        let mut inner = self.lock();
        if inner.workers.len() < self.max_workers {
            return Ok(());
        }
        let now = Instant::now();
        // Walking over all of them is done once a second at most.
        if inner.purged.is_none_or(|purged| now.duration_since(purged) > Duration::from_secs(1)) {
            inner.purged = Some(now);
            let Inner { workers, sessions, .. } = &mut *inner;
            workers
                .retain(|_, (run, since)| now.duration_since(*since) < self.worker_ttl || sessions.contains_key(run));
        }
        let known = inner.workers.contains_key(&(task_id.to_owned(), worker_id.to_owned()));
        if known || inner.workers.len() < self.max_workers { Ok(()) } else { Err(Full) }
    }

    /// The worker's newest run is this.
    pub(crate) fn register(&self, task_id: String, worker_id: String, run: RunId) {
        self.lock().workers.insert((task_id, worker_id), (run, Instant::now()));
    }

    /// The run is finished: the worker needs no place any more.
    pub(crate) fn forget(&self, task_id: &str, worker_id: &str, run: RunId) {
        let key = (task_id.to_owned(), worker_id.to_owned());
        let mut inner = self.lock();
        if inner.workers.get(&key).is_some_and(|(registered, _)| *registered == run) {
            inner.workers.remove(&key);
        }
    }

    /// The newest run of a registered worker.
    pub(crate) fn run_of(&self, task_id: &str, worker_id: &str) -> Option<RunId> {
        self.lock().workers.get(&(task_id.to_owned(), worker_id.to_owned())).map(|(run, _)| *run)
    }

    /// Opens a session of a run, ends the one that was open, and waits until that has stored what it read.
    pub(crate) async fn enter(self: &Arc<Self>, run: RunId) -> Session {
        let (session, older) = {
            let mut inner = self.lock();
            let number = inner.next_session;
            inner.next_session += 1;
            let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
            let older = inner.sessions.insert(run, Slot { number, stop: stop.clone(), ended: ended.clone() });
            (Session { registry: self.clone(), run, number, stop, ended }, older)
        };
        if let Some(older) = older {
            older.stop.cancel();
            if tokio::time::timeout(TAKEOVER_PATIENCE, older.ended.cancelled()).await.is_err() {
                tracing::warn!(run = run.0, "the older session of a run does not end; the newer one goes on");
            }
        }
        session
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stream that is open, counted.
#[derive(Debug)]
pub(crate) struct Open(Gauge);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The right to write a run, until a newer session begins.
#[derive(Debug)]
pub(crate) struct Session {
    registry: Arc<Registry>,
    run: RunId,
    number: u64,
    stop: CancellationToken,
    ended: CancellationToken,
}

impl Session {
    /// Waits until a newer session of the run begins.
    pub(crate) async fn taken_over(&self) {
        self.stop.cancelled().await;
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut inner = self.registry.lock();
        if inner.sessions.get(&self.run).is_some_and(|slot| slot.number == self.number) {
            inner.sessions.remove(&self.run);
        }
        drop(inner);
        self.ended.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn registry(max_workers: usize, ttl: Duration, max_sessions: usize) -> Arc<Registry> {
        Arc::new(Registry::new(max_workers, ttl, max_sessions, Gauge::default()))
    }

    #[tokio::test]
    async fn the_newest_session_wins_and_waits_for_the_older_one() {
        let registry = registry(10, Duration::from_secs(60), 10);
        let older = registry.enter(RunId(1)).await;
        let entering = tokio::spawn({
            let registry = registry.clone();
            async move { registry.enter(RunId(1)).await }
        });
        older.taken_over().await;
        assert!(!entering.is_finished());
        drop(older);
        let newer = entering.await.unwrap();
        assert!(registry.is_connected(RunId(1)));
        drop(newer);
        assert!(!registry.is_connected(RunId(1)));
    }

    #[test]
    fn full_until_a_worker_is_forgotten() {
        let registry = registry(2, Duration::from_secs(3600), 10);
        for (n, worker) in ["a", "b"].into_iter().enumerate() {
            registry.check_room("t", worker).unwrap();
            registry.register("t".to_owned(), worker.to_owned(), RunId(n as u64));
        }
        assert_eq!(registry.check_room("t", "c"), Err(Full));
        assert_eq!(registry.check_room("t", "a"), Ok(()));
        registry.forget("t", "a", RunId(7));
        assert_eq!(registry.check_room("t", "c"), Err(Full));
        registry.forget("t", "a", RunId(0));
        assert_eq!(registry.check_room("t", "c"), Ok(()));
    }

    #[tokio::test]
    async fn silent_workers_make_room_but_connected_ones_stay() {
        let registry = registry(2, Duration::ZERO, 10);
        for (n, worker) in ["a", "b"].into_iter().enumerate() {
            registry.register("t".to_owned(), worker.to_owned(), RunId(n as u64));
        }
        let _session = registry.enter(RunId(0)).await;
        assert_eq!(registry.check_room("t", "c"), Ok(()));
        assert_eq!(registry.run_of("t", "a"), Some(RunId(0)));
        assert_eq!(registry.run_of("t", "b"), None);
    }

    #[test]
    fn streams_are_counted_and_bounded() {
        let open = Gauge::default();
        let registry = Registry::new(1, Duration::ZERO, 2, open.clone());
        let (first, _second) = (registry.admit().unwrap(), registry.admit().unwrap());
        assert_eq!(registry.admit().unwrap_err(), 2);
        drop(first);
        assert!(registry.admit().is_ok());
        let (first, _second) = (registry.open(), registry.open());
        assert_eq!(open.get(), 2);
        drop(first);
        assert_eq!(open.get(), 1);
    }
}
