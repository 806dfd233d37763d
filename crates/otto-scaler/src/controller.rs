//! The loop that owns the tasks: it applies events, follows the driver, stores results, and carries out the plan.
//!
//! One task runs it; it never waits for the store or the driver, whose calls run beside it and come back as messages. Only
//! tasks that something happened to are planned again, so ten thousand live workers cost nothing while they run.
//!
//! Invariants:
//! - of one task at most one write is under way; events that come meanwhile wait their turn, in order;
//! - an attempt is created only if the stored record has it as queued, and the driver's list is known;
//! - a result is stored before what is left of the worker is removed, or its next attempt created;
//! - a failure of the driver's list is never "none running"; a failed write is never "not written": the record is read
//!   again before anything else happens to its task.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesUnordered, StreamExt};
use otto_service::client::Backoff;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::apply::Defaults;
pub(crate) use crate::apply::Reason;
use crate::driver::{Driver, Observed};
use crate::event::ScaleEvent;
use crate::metrics::Metrics;
use crate::plan::Policy;
use crate::plan::admission::door::Doors;
use crate::plan::admission::{Admission, Limits};
use crate::store::TaskStore;
use crate::task::{Millis, Record};
use crate::worker_events::Publisher;

pub(crate) mod board;
mod clock;
mod doors;
mod drive;
mod forget;
mod keep;
mod observe;
mod others;
mod remains;
mod soft;
mod store_health;
mod task;
mod tell;

use board::Board;
use clock::Clock;
pub(crate) use keep::{CONFLICTS, DEADLINE, within, worker_names};
use task::Task;

/// Events under way at once; more wait in their inboxes.
const UNDER_WAY: usize = 1_024;
/// When the scaler ends, calls to the task store are given so long, or as long as those to the driver.
const STORE_ENDS: Duration = Duration::from_secs(1);
/// Records of ended tasks held in memory; older ones are read from the store when asked for.
pub(crate) const ENDED_HELD: usize = if cfg!(test) { 100 } else { 10_000 };

/// What came of an event.
#[derive(Clone, Debug)]
pub(crate) enum Applied {
    /// The record was written, and the stream entry acknowledged with it.
    Changed(Change),
    /// The task had this target before, or has ended; the stream entry is acknowledged.
    AlreadyProcessed(Change),
    /// It can never be applied. Nothing was stored, nothing is acknowledged.
    Dead(Reason),
}

/// A task after an event.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) record: Arc<Record>,
    /// Changed: workers that this event starts or stops. Already processed: the task's workers.
    pub(crate) worker_names: Vec<String>,
}

/// Why nothing is known of an event's application.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// The task store is away. Submit it again: an event has its effect once.
    #[error("task store is not available: {message}")]
    Unavailable {
        /// Milliseconds.
        retry_after: u32,
        /// What the store said.
        message: String,
    },
    /// The scaler is ending.
    #[error("the scaler is stopping")]
    Stopping,
}

/// Why a task was not deleted.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum DeleteError {
    /// No such task.
    #[error("there is no such task")]
    NotFound,
    /// It has not ended.
    #[error("the task is live; cancel it first")]
    Live,
    /// What is left of its workers cannot be removed yet.
    #[error("{0}")]
    Remains(String),
    /// The task store is away.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

type ApplyReply = oneshot::Sender<Result<Applied, ApplyError>>;
type DeleteReply = oneshot::Sender<Result<(), DeleteError>>;

/// What the loop is asked to do.
#[derive(Debug)]
enum Command {
    Apply {
        event: Box<ScaleEvent>,
        reply: ApplyReply,
    },
    Delete {
        task_id: String,
        reply: DeleteReply,
    },
    /// Another replica wrote these tasks' records.
    Changed(Vec<String>),
    /// Others may have written any.
    Reload,
}

/// Cheap handle to the controller.
#[derive(Clone, Debug)]
pub(crate) struct Handle {
    commands: mpsc::Sender<Command>,
    board: Arc<Board>,
}

impl Handle {
    /// Hands an event over; events are applied in the order in which `submit` was called. The answer comes by the
    /// receiver (dropped without an answer: the scaler is stopping). Waits while too many are under way.
    pub(crate) async fn submit(
        &self,
        event: ScaleEvent,
    ) -> Result<oneshot::Receiver<Result<Applied, ApplyError>>, ApplyError> {
        let (reply, answer) = oneshot::channel();
        let command = Command::Apply { event: Box::new(event), reply };
        self.commands.send(command).await.map_err(|_| ApplyError::Stopping)?;
        Ok(answer)
    }

    /// [`Handle::submit`] and its answer.
    pub(crate) async fn apply(&self, event: ScaleEvent) -> Result<Applied, ApplyError> {
        self.submit(event).await?.await.map_err(|_| ApplyError::Stopping)?
    }

    /// Forgets a task that has ended, and what is left of its workers.
    pub(crate) async fn delete(&self, task_id: String) -> Result<(), DeleteError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Delete { task_id, reply }).await.map_err(|_| ApplyError::Stopping)?;
        answer.await.map_err(|_| ApplyError::Stopping)?
    }

    /// Others wrote the records of these tasks.
    pub(crate) async fn changed(&self, task_ids: Vec<String>) {
        if !task_ids.is_empty() {
            // A scaler that is ending has no use for it.
            let _ = self.commands.send(Command::Changed(task_ids)).await;
        }
    }

    /// Others may have written any record.
    pub(crate) async fn reload(&self) {
        let _ = self.commands.send(Command::Reload).await;
    }

    /// Every task held, as it is now.
    pub(crate) fn board(&self) -> &Arc<Board> {
        &self.board
    }
}

/// What the controller goes by.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) defaults: Defaults,
    pub(crate) policy: Policy,
    pub(crate) limits: Limits,
    /// Creations under way at once.
    pub(crate) creations: usize,
    /// Records being written at once.
    pub(crate) writes: usize,
    /// Ended attempts that the driver keeps, however young: of more, the oldest go within about a minute, and at once if
    /// there are twice as many.
    pub(crate) remains: usize,
}

/// Whether the task store answers; and whether its records have been read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) store: bool,
    /// The driver's workers are known.
    pub(crate) driver: bool,
}

/// The controller: made by [`new`], consumed by [`Controller::run`].
pub(crate) struct Controller {
    options: Options,
    store: Arc<dyn TaskStore>,
    driver: Arc<dyn Driver>,
    publisher: Publisher,
    metrics: Metrics,
    clock: Clock,
    board: Arc<Board>,
    commands: mpsc::Receiver<Command>,
    health: watch::Sender<Health>,
    /// Set once the store's records are on the board.
    loaded: CancellationToken,
    stop: CancellationToken,

    tasks: HashMap<String, Task>,
    /// Ended tasks that are held, oldest end first.
    ended: BTreeSet<(Millis, String)>,
    /// How far the last look for one that can be forgotten went.
    evicted_to: Option<(Millis, String)>,
    /// Ended attempts that the driver keeps, oldest end first.
    remains: BTreeSet<(Millis, String, u32, u32)>,
    /// There are too many, and some go soon.
    shortening: bool,
    admission: Admission,
    doors: Doors,
    /// When one may try again where all are turned away.
    door_at: Option<Millis>,
    /// When a worker was there last.
    last_live: Millis,
    dirty: HashSet<String>,
    timers: BTreeSet<(Millis, String)>,
    soft_writes: soft::SoftWrites,
    keeping: FuturesUnordered<BoxFuture<'static, keep::Kept>>,
    /// Who may write a record.
    writing: Arc<Semaphore>,
    driving: JoinSet<drive::Driven>,
    creating: usize,
    /// Events that were taken and not answered yet.
    under_way: usize,
    outage: Option<keep::Outage>,
    driver_listed: observe::Listed,
    store_backoff: Backoff,
    probe_at: Option<Millis>,
    /// The store could not be read at the start: callers are told instead of kept waiting.
    load_failed: bool,
    /// Others wrote records while all were being read.
    load_overtaken: bool,
}

/// A controller and its handle. `stop` ends the loop; `loaded` is set when the store has been read.
pub(crate) fn new(
    options: Options,
    store: Arc<dyn TaskStore>,
    driver: Arc<dyn Driver>,
    publisher: Publisher,
    board: Arc<Board>,
    metrics: Metrics,
    (loaded, stop): (CancellationToken, CancellationToken),
) -> (Controller, Handle, watch::Receiver<Health>) {
    let (commands, received) = mpsc::channel(UNDER_WAY);
    let (health, health_seen) = watch::channel(Health::default());
    let writing = Arc::new(Semaphore::new(options.writes.clamp(1, Semaphore::MAX_PERMITS)));
    let handle = Handle { commands, board: Arc::clone(&board) };
    let controller = Controller {
        admission: Admission::new(options.limits),
        options,
        store,
        driver,
        publisher,
        metrics,
        clock: Clock::start(),
        board,
        commands: received,
        health,
        loaded,
        stop,
        tasks: HashMap::new(),
        ended: BTreeSet::new(),
        evicted_to: None,
        remains: BTreeSet::new(),
        shortening: false,
        doors: Doors::default(),
        door_at: None,
        last_live: 0,
        dirty: HashSet::new(),
        timers: BTreeSet::new(),
        soft_writes: soft::SoftWrites::default(),
        keeping: FuturesUnordered::new(),
        writing,
        driving: JoinSet::new(),
        creating: 0,
        under_way: 0,
        outage: None,
        driver_listed: observe::Listed::default(),
        store_backoff: keep::backoff(),
        probe_at: None,
        load_failed: false,
        load_overtaken: false,
    };
    (controller, handle, health_seen)
}

impl Controller {
    /// Runs until `stop`. Workers outlive it; writes under way are given a moment to come back.
    pub(crate) async fn run(mut self) -> anyhow::Result<()> {
        let (sender, mut changes) = mpsc::channel::<Observed>(UNDER_WAY);
        self.driver.watch(sender)?;
        self.load();
        let stop = self.stop.clone();
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        loop {
            self.carry_out();
            let due = self.timers.first().map(|(at, _)| self.clock.instant(*at));
            if let Some(due) = due.filter(|due| *due != timer.deadline()) {
                timer.as_mut().reset(due);
            }
            let loaded = self.loaded.is_cancelled();
            // What came together is planned together.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                Some(done) = self.keeping.next(), if !self.keeping.is_empty() => {
                    self.kept(done);
                    for _ in 0..UNDER_WAY {
                        let Some(Some(done)) = self.keeping.next().now_or_never() else { break };
                        self.kept(done);
                    }
                }
                Some(done) = self.driving.join_next(), if !self.driving.is_empty() => {
                    self.called(done);
                    for _ in 0..UNDER_WAY {
                        let Some(done) = self.driving.try_join_next() else { break };
                        self.called(done);
                    }
                }
                Some(change) = changes.recv(), if loaded => {
                    self.observed(change);
                    for _ in 0..UNDER_WAY {
                        let Ok(change) = changes.try_recv() else { break };
                        self.observed(change);
                    }
                }
                Some(command) = self.commands.recv(), if self.under_way < UNDER_WAY && (loaded || self.load_failed) => {
                    self.command(command);
                    while self.under_way < UNDER_WAY && let Ok(command) = self.commands.try_recv() {
                        self.command(command);
                    }
                }
                () = timer.as_mut(), if due.is_some() => self.timers_due(),
            }
        }
        self.finish().await;
        Ok(())
    }

    fn called(&mut self, done: Result<drive::Driven, JoinError>) {
        match done {
            Ok(done) => self.driven(done),
            // Calls catch their own panics; what is left is a cancelled one, and nothing cancels them.
            Err(error) => tracing::error!(%error, "a driver call was lost"),
        }
    }

    /// Lets the calls under way come back for a moment, so that callers get their answers: another scaler may wait to lead.
    async fn finish(&mut self) {
        self.commands.close();
        let mut driving = std::mem::take(&mut self.driving);
        let for_driver = self.driver.ends_within();
        let driven = async { while driving.join_next().await.is_some() {} };
        let kept = async {
            while let Some(done) = self.keeping.next().await {
                self.kept(done);
            }
        };
        let (driven, kept) = tokio::join!(
            tokio::time::timeout(for_driver, driven),
            tokio::time::timeout(for_driver.max(STORE_ENDS), kept)
        );
        for (who, ended) in [("driver", driven), ("task store", kept)] {
            if ended.is_err() {
                tracing::warn!("the {who} did not answer in time; calls to it are abandoned");
            }
        }
        driving.shutdown().await;
    }

    fn timers_due(&mut self) {
        let now = self.clock.now();
        while self.timers.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.timers.pop_first() else { return };
            match key.strip_prefix(CHORE) {
                Some(chore) => self.chore(chore, now),
                None => {
                    if let Some(task) = self.tasks.get_mut(&key) {
                        task.wake = None;
                    }
                    self.dirty.insert(key);
                }
            }
        }
    }

    /// Sets when a chore of the loop itself is done.
    fn chore_at(&mut self, chore: &'static str, at: Millis) {
        self.timers.insert((at, format!("{CHORE}{chore}")));
    }

    fn chore(&mut self, chore: &str, now: Millis) {
        match chore {
            LIST => self.list(),
            EXPIRE => self.expire(now),
            PROBE => self.probe(),
            LOAD => self.load(),
            RELOAD => self.reload(),
            SHORTEN => self.shorten(),
            // Creations are looked for after every turn of the loop.
            DOOR => self.door_at = None,
            other => tracing::error!(chore = other, "unknown chore"),
        }
    }
}

/// Begins the key of a timer that belongs to no task. A task id never holds it.
const CHORE: &str = "\0";
const LIST: &str = "list";
const EXPIRE: &str = "expire";
const PROBE: &str = "probe";
const LOAD: &str = "load";
const RELOAD: &str = "reload";
const SHORTEN: &str = "shorten";
const DOOR: &str = "door";

#[cfg(test)]
pub(crate) mod tests;
