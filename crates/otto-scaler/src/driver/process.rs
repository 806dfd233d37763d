//! Workers as child processes of this machine.
//!
//! A worker is a run directory (ARCHITECTURE.md, "Run directory"), in which its agent, `otto-worker`, holds a lock and
//! makes a start mark before the job's first instruction. The files say what is true, so a scaler that was killed at any
//! moment is followed by one which finds everything again:
//!
//! | lock | `started` | `exit.json` | |
//! |---|---|---|---|
//! | free | no | no | never began: an agent is started (again) |
//! | held | no | no | about to begin |
//! | held | yes | no | runs |
//! | any | any | yes | has ended |
//! | free | yes | no | the agent was killed: what is left of the job is killed too, its spool is sent, it counts as lost |
//!
//! Invariants: an attempt is started at most once, which the agent's lock and mark see to, not this code; a process is
//! signalled by a descriptor of it, never by a pid that may be another's; a run directory is renamed before it is removed.
//!
//! `image` means nothing here, and is reported once per task.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Driver, DriverError, Launch, Observed, Removal, State, WorkerKey, name};
use crate::task::{Class, Outcome};

mod agent;
mod children;
mod drains;
mod follow;
mod launch;
mod notify;
mod remnants;
mod run_dir;
mod runs;
mod settings;
mod spawn;
mod worker;

pub(crate) use settings::Settings;

use agent::Agent;
use children::{Child, Children};
use drains::Drains;
use follow::{Follower, infrastructure};
use launch::{LaunchFile, c_strings};
use notify::Watches;
use run_dir::{Lock, RunDir};
use runs::Runs;
use worker::{Seen, Worker};

/// Milliseconds after which a start that the machine refused is tried again.
const BUSY: u32 = 1_000;

/// What the driver goes by.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// `DATA_DIR`; run directories are in `DATA_DIR/runs`.
    pub(crate) data_dir: PathBuf,
    /// The program `otto-worker`.
    pub(crate) worker_binary: PathBuf,
    /// Further flags of it.
    pub(crate) worker_args: Vec<String>,
    pub(crate) log_server: String,
    pub(crate) auth_token_file: Option<PathBuf>,
    /// From SIGTERM to SIGKILL of a job.
    pub(crate) stop_grace: Duration,
    /// So long after a worker's end its output is kept for a log server that does not take it.
    pub(crate) drain_limit: Duration,
}

/// The driver `process`.
pub(crate) struct ProcessDriver {
    shared: Arc<Shared>,
}

struct Shared {
    options: Options,
    runs: Runs,
    /// By name.
    workers: Mutex<HashMap<String, Arc<Worker>>>,
    changes: OnceLock<mpsc::Sender<Observed>>,
    watches: Watches,
    children: Children,
    drains: Drains,
    /// Looking at every process of the machine is for one at a time.
    sweeps: Semaphore,
    /// The first list also removes what was never completed.
    listed: OnceLock<()>,
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl ProcessDriver {
    /// Takes `DATA_DIR/runs`. `stop` ends the following of workers, not the workers. Must be called within a tokio runtime;
    /// may block for a few seconds while a scaler that was killed lets go.
    ///
    /// # Errors
    /// When the directory cannot be used, or another scaler uses it; when `otto-worker` is not there.
    pub(crate) fn open(options: Options, stop: CancellationToken) -> anyhow::Result<Self> {
        let options = Options { worker_binary: settings::program(&options.worker_binary)?, ..options };
        let shared = Arc::new(Shared {
            runs: Runs::open(&options.data_dir)?,
            options,
            workers: Mutex::default(),
            changes: OnceLock::new(),
            watches: Watches::new().context("cannot watch run directories (fs.inotify.max_user_instances?)")?,
            children: Children::default(),
            drains: Drains::new(),
            sweeps: Semaphore::new(1),
            listed: OnceLock::new(),
            stop: stop.clone(),
            tracker: TaskTracker::new(),
        });
        shared.tracker.spawn(shared.watches.run(stop.clone()));
        shared.tracker.spawn(shared.children.clone().reap_orphans(stop));
        Ok(Self { shared })
    }
}

impl Shared {
    fn workers(&self) -> MutexGuard<'_, HashMap<String, Arc<Worker>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn worker(&self, key: &WorkerKey) -> Option<Arc<Worker>> {
        self.workers().get(&name::worker_name(key)).filter(|worker| worker.key == *key).cloned()
    }

    fn follow(self: &Arc<Self>, worker: Arc<Worker>, agent: Option<Agent>) {
        let stop = self.stop.clone();
        let follower = Follower::new(Arc::clone(self), worker, agent);
        self.tracker.spawn(async move { stop.run_until_cancelled(follower.run()).await });
    }

    /// Notes a worker's state and tells the core.
    async fn report(&self, worker: &Worker, state: State) {
        if let Some(seen) = worker.seen().as_mut() {
            seen.state = state;
        }
        if let (Some(changes), Some(observed)) = (self.changes.get(), worker.observed()) {
            // Nobody listens any more: the scaler is ending.
            let _ = changes.send(observed).await;
        }
    }

    /// Makes a run directory and starts its agent. `None`: there was one already. Blocks.
    fn make(&self, worker: &Worker, launch: &Launch) -> Result<(LaunchFile, Option<Child>), DriverError> {
        let file = LaunchFile::new(launch, run_dir::now());
        file.check().map_err(DriverError::Refused)?;
        let busy = |error: io::Error| DriverError::Busy {
            class: Class::Infrastructure,
            retry_after: BUSY,
            message: format!("the run directory {} cannot be made: {error}", worker.dir.path().display()),
            common: false,
            unclear_for: 0,
        };
        if !worker.dir.make().map_err(busy)? {
            match worker.dir.launch() {
                Ok(Some(there)) if there.key() == launch.key => return Ok((there, None)),
                Ok(Some(there)) => {
                    let message = format!(
                        "the name {} is taken by a worker of the task `{}`; try another task id",
                        worker.name, there.task_id
                    );
                    return Err(DriverError::Refused(infrastructure(message)));
                }
                // Damaged, but somebody began here.
                Err(error) if error.kind() != io::ErrorKind::InvalidData => return Err(busy(error)),
                Err(_) if worker.dir.is_started() => return Ok((file, None)),
                // Never completed, so nothing was started here.
                Ok(None) | Err(_) => {}
            }
        }
        let started = match worker.dir.write_launch(&file) {
            Ok(()) => self.start_agent(worker, &file),
            Err(error) => Err(busy(error)),
        };
        match started {
            Ok(child) => Ok((file, Some(child))),
            Err(error) => {
                // Left as it is, a later scaler would start it.
                if let Err(error) = self.runs.remove(&worker.name) {
                    tracing::error!(%error, worker = worker.name, "the run directory of a failed start stays");
                }
                Err(error)
            }
        }
    }

    /// Starts `otto-worker run`. Blocks.
    fn start_agent(&self, worker: &Worker, launch: &LaunchFile) -> Result<Child, DriverError> {
        let start = || -> io::Result<Child> {
            let arguments = c_strings(&launch.run_arguments(&self.options, &worker.name, worker.dir.path()))?;
            let environment = launch.environment(std::env::vars_os());
            self.children.spawn(&arguments, &environment, &worker.dir.open_agent_log()?)
        };
        start().map_err(|error| self.start_error(&error))
    }

    fn start_error(&self, error: &io::Error) -> DriverError {
        let program = self.options.worker_binary.display();
        match error.kind() {
            io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::InvalidInput => DriverError::Refused(infrastructure(format!(
                "the agent {program} cannot be started: {error} (--worker-binary of otto-scaler)"
            ))),
            io::ErrorKind::ArgumentListTooLong => DriverError::Refused(Outcome {
                class: Class::Config,
                exit_code: None,
                signal: None,
                message: "the command and its environment are larger than the system passes to a program".to_owned(),
            }),
            _ if error.raw_os_error() == Some(libc::ENOEXEC) => DriverError::Refused(infrastructure(format!(
                "the agent {program} cannot be started: {error} (--worker-binary of otto-scaler)"
            ))),
            _ => DriverError::Busy {
                class: Class::Infrastructure,
                retry_after: BUSY,
                message: format!("no process can be started: {error}"),
                common: false,
                unclear_for: 0,
            },
        }
    }

    /// Starts `otto-worker drain`, without the job's environment: it is none of the job's processes. Blocks.
    fn start_drain(&self, worker: &Worker) -> anyhow::Result<Child> {
        let launch = worker.dir.launch()?.context("no launch.json")?;
        let arguments = c_strings(&launch.drain_arguments(&self.options, &worker.name, worker.dir.path()))?;
        let environment = LaunchFile { env: Default::default(), ..launch }.environment(std::env::vars_os());
        Ok(self.children.spawn(&arguments, &environment, &worker.dir.open_agent_log()?)?)
    }

    async fn create(self: Arc<Self>, launch: Launch) -> Result<(), DriverError> {
        let name = name::worker_name(&launch.key);
        let worker = {
            let mut workers = self.workers();
            if let Some(worker) = workers.get(&name) {
                if worker.key == launch.key {
                    return Ok(());
                }
                let message = format!("the name {name} is taken by a worker of the task `{}`", worker.key.task_id);
                return Err(DriverError::Refused(infrastructure(message)));
            }
            let worker = Arc::new(Worker::new(name.clone(), launch.key.clone(), self.runs.dir(&name), None));
            workers.insert(name.clone(), Arc::clone(&worker));
            worker
        };
        if !launch.spec.image.is_empty() && launch.key.index == 0 && launch.key.attempt == 1 {
            tracing::warn!(
                task_id = launch.key.task_id,
                image = launch.spec.image,
                "the image is ignored: workers are processes of this machine (--driver process)"
            );
        }
        let made = {
            let (shared, worker) = (Arc::clone(&self), Arc::clone(&worker));
            tokio::task::spawn_blocking(move || shared.make(&worker, &launch)).await
        };
        let failed = |error| DriverError::Busy {
            class: Class::Infrastructure,
            retry_after: BUSY,
            message: format!("starting a worker: {error}"),
            common: false,
            unclear_for: 0,
        };
        match made.map_err(failed).and_then(|made| made) {
            Ok((file, child)) => {
                worker.set_mark(&file);
                let created_at = file.created_at_ms;
                *worker.seen() = Some(Seen {
                    state: State::Created { waiting: None },
                    created_at,
                    started_at: None,
                    finished: false,
                });
                let agent = match child {
                    Some(child) => Some(Agent::started(child).await),
                    None => None,
                };
                self.follow(worker, agent);
                Ok(())
            }
            Err(error) => {
                self.workers().remove(&name);
                Err(error)
            }
        }
    }

    async fn list(self: Arc<Self>) -> anyhow::Result<Vec<Observed>> {
        let shared = Arc::clone(&self);
        let found = tokio::task::spawn_blocking(move || shared.find()).await??;
        for (worker, finished) in found {
            let worker = {
                let mut workers = self.workers();
                if workers.contains_key(&worker.name) {
                    continue;
                }
                let worker = Arc::new(worker);
                workers.insert(worker.name.clone(), Arc::clone(&worker));
                worker
            };
            if !finished {
                self.follow(worker, None);
            }
        }
        let _ = self.listed.set(());
        Ok(self.workers().values().filter_map(|worker| worker.observed()).collect())
    }

    /// Run directories that are not known yet; forgets what somebody removed. Blocks.
    fn find(&self) -> anyhow::Result<Vec<(Worker, bool)>> {
        let names: HashSet<String> =
            self.runs.names().context("run directories cannot be listed")?.into_iter().collect();
        self.workers()
            .retain(|name, worker| names.contains(name) || worker.seen().as_ref().is_none_or(|seen| !seen.finished));
        let known: HashSet<String> = self.workers().keys().cloned().collect();
        let mut found = Vec::new();
        for name in names.difference(&known) {
            let dir = self.runs.dir(name);
            match dir.launch() {
                Ok(Some(launch)) if name::worker_name(&launch.key()) == *name => {
                    let worker = found_worker(name, dir, &launch);
                    found.push(worker.with_context(|| format!("the run directory {name} cannot be read"))?);
                }
                Ok(Some(launch)) => {
                    tracing::error!(
                        directory = name,
                        task_id = launch.task_id,
                        "a run directory has another's launch.json"
                    );
                }
                // Its scaler was killed before it was complete: nothing was ever started in it.
                Ok(None) if self.listed.get().is_none() && !dir.is_started() => {
                    if let Err(error) = self.runs.remove(name) {
                        tracing::warn!(%error, directory = name, "an incomplete run directory cannot be removed");
                    }
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    // Whose it is cannot be told, and leaving out one that runs would say that it does not.
                    if dir.lock()? == Lock::Held {
                        bail!(
                            "the worker {name} is running and its launch.json is damaged ({error}): end it, or wait for it"
                        );
                    }
                    tracing::error!(%error, directory = name, "a worker's launch.json is damaged and its agent is gone; it is left alone");
                }
                Err(error) => return Err(error).with_context(|| format!("the launch.json of {name} cannot be read")),
            }
        }
        Ok(found)
    }

    async fn remove(self: Arc<Self>, key: WorkerKey) -> anyhow::Result<Removal> {
        let name = name::worker_name(&key);
        match self.worker(&key) {
            Some(worker) => match &*worker.seen() {
                Some(Seen { finished: true, .. }) => {}
                Some(Seen { state: State::Ended { .. }, .. }) => bail!("the output of {name} is not delivered yet"),
                Some(_) | None => bail!("{name} has not ended"),
            },
            None if self.runs.dir(&name).path().exists() => bail!("{name} is not this worker's, or was not listed yet"),
            None => return Ok(Removal::Gone),
        }
        let shared = Arc::clone(&self);
        let removed = name.clone();
        tokio::task::spawn_blocking(move || shared.runs.remove(&removed))
            .await?
            .with_context(|| format!("the run directory {name} cannot be removed"))?;
        self.workers().remove(&name);
        Ok(Removal::Gone)
    }
}

/// A worker of an earlier scaler, and whether nothing happens in it any more.
fn found_worker(name: &str, dir: RunDir, launch: &LaunchFile) -> io::Result<(Worker, bool)> {
    let started_at = dir.started_at();
    let state = match dir.outcome()? {
        Some((at, outcome)) => State::Ended { at, outcome },
        None if started_at.is_some() => State::Running,
        None => State::Created { waiting: None },
    };
    let finished = matches!(state, State::Ended { .. }) && (dir.is_drained() || !dir.has_spool());
    let seen = Seen { state, created_at: launch.created_at_ms, started_at, finished };
    let worker = Worker::new(name.to_owned(), launch.key(), dir, Some(seen));
    worker.set_mark(launch);
    Ok((worker, finished))
}

impl Driver for ProcessDriver {
    fn name(&self) -> &'static str {
        "process"
    }

    fn worker_name(&self, key: &WorkerKey) -> String {
        name::worker_name(key)
    }

    fn list(&self) -> BoxFuture<'_, anyhow::Result<Vec<Observed>>> {
        Arc::clone(&self.shared).list().boxed()
    }

    fn create(&self, launch: Launch) -> BoxFuture<'_, Result<(), DriverError>> {
        // In a task of its own: given up half way, the worker would be followed by nobody.
        let created = self.shared.tracker.spawn(Arc::clone(&self.shared).create(launch));
        async move {
            created.await.unwrap_or_else(|error| {
                Err(DriverError::Busy {
                    class: Class::Infrastructure,
                    retry_after: BUSY,
                    message: format!("starting a worker: {error}"),
                    common: false,
                    unclear_for: 0,
                })
            })
        }
        .boxed()
    }

    fn stop<'a>(&'a self, key: &'a WorkerKey) -> BoxFuture<'a, anyhow::Result<()>> {
        if let Some(worker) = self.shared.worker(key) {
            worker.request_stop();
        }
        futures::future::ready(Ok(())).boxed()
    }

    fn remove<'a>(&'a self, key: &'a WorkerKey) -> BoxFuture<'a, anyhow::Result<Removal>> {
        Arc::clone(&self.shared).remove(key.clone()).boxed()
    }

    fn watch(&self, changes: mpsc::Sender<Observed>) -> anyhow::Result<()> {
        self.shared.changes.set(changes).map_err(|_| anyhow::anyhow!("the process driver is watched already"))
    }

    fn ends_within(&self) -> Duration {
        // A worker that is being started is followed by nobody before it is.
        Duration::from_secs(5)
    }

    fn closed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            self.shared.tracker.close();
            self.shared.tracker.wait().await;
        })
    }
}

#[cfg(test)]
mod tests;
