//! Follows one worker to its end, and its output to the log server.
//!
//! The files of the run directory say what is true; a wake-up only says that it is time to look. So a scaler that comes
//! later goes on wherever another was killed.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::process::Signal;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Shared;
use super::agent::Agent;
use super::notify::Watch;
use super::remnants::{Dead, now_ticks};
use super::run_dir::{Lock, now};
use super::worker::Worker;
use crate::driver::{DriverError, State};
use crate::task::{Class, Millis, Outcome};

/// Agents that end without having begun the job, before the attempt counts as failed.
const STARTS: u32 = 3;
/// What is still in the spool of a lost worker goes before its end is told, if that is possible so quickly.
const DRAIN_BEFORE_TOLD: Duration = Duration::from_secs(5);
/// One try to drain.
const DRAIN_WITHIN: Duration = Duration::from_secs(60);
const DRAIN_RETRY_MAX: Duration = Duration::from_secs(300);
/// Where the directory cannot be watched, and where an agent has not told its pid yet.
const LOOK_AGAIN: Duration = Duration::from_millis(250);
/// What cannot be read is looked at again after this.
const RETRY: Duration = Duration::from_secs(1);
/// After SIGTERM, the agent gives the job its grace period; then it needs a moment itself.
const STOP_MARGIN: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 5_000 });

/// When it ended, and how.
type End = (Millis, Outcome);

/// The task that follows a worker.
pub(super) struct Follower {
    shared: Arc<Shared>,
    worker: Arc<Worker>,
    /// The process that holds the lock, as far as known.
    agent: Option<Agent>,
    watch: Option<Watch>,
    starts: u32,
    /// Clock ticks at which the agent was known to be alive.
    alive_at: Option<u64>,
    /// SIGTERM was sent; SIGKILL follows.
    kill_at: Option<Instant>,
    killed: bool,
}

impl Follower {
    /// `agent`: just started, or `None` for a survivor of an earlier scaler.
    pub(super) fn new(shared: Arc<Shared>, worker: Arc<Worker>, agent: Option<Agent>) -> Self {
        let starts = u32::from(agent.is_some());
        Self { shared, worker, agent, watch: None, starts, alive_at: None, kill_at: None, killed: false }
    }

    /// Until the worker is finished. May be dropped at any time: what comes next finds the files.
    pub(super) async fn run(mut self) {
        match self.shared.watches.add(self.worker.dir.path(), &self.worker) {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => tracing::warn!(
                %error, worker = self.worker.name,
                "a run directory cannot be watched (fs.inotify.max_user_watches?); it is looked at every {LOOK_AGAIN:?}"
            ),
        }
        if let Err(error) = self.worker.dir.bound_agent_log() {
            tracing::debug!(%error, worker = self.worker.name, "the agent's messages cannot be bounded");
        }
        let (at, outcome) = self.job_end().await;
        self.shared.report(&self.worker, State::Ended { at, outcome }).await;
        self.drained(at).await;
    }

    async fn job_end(&mut self) -> End {
        loop {
            let unreadable = match self.look().await {
                Ok(Some(end)) => return end,
                Ok(None) => None,
                Err(error) => {
                    self.cannot_look(&error);
                    Some(Instant::now() + RETRY)
                }
            };
            let Some(agent) = self.agent.take() else {
                match self.without_agent(None).await {
                    Some(end) => return end,
                    None => continue,
                }
            };
            if self.worker.is_stopping() && self.kill_at.is_none() {
                agent.signal(Signal::TERM);
                self.kill_at = Some(Instant::now() + self.shared.options.stop_grace + STOP_MARGIN);
            }
            let kill_at = self.kill_at.filter(|_| !self.killed);
            let look_at = self.watch.is_none().then(|| Instant::now() + LOOK_AGAIN);
            let wake_at = kill_at.into_iter().chain(look_at).chain(unreadable).min();
            tokio::select! {
                () = agent.ended() => {
                    if let Some(end) = self.without_agent(Some(agent)).await {
                        return end;
                    }
                    continue;
                }
                () = self.worker.woken() => {}
                () = sleep_until(wake_at.unwrap_or_else(Instant::now)), if wake_at.is_some() => {
                    if kill_at.is_some_and(|at| at <= Instant::now()) {
                        tracing::warn!(worker = self.worker.name, "a worker did not stop in time and is killed");
                        agent.signal(Signal::KILL);
                        self.killed = true;
                    }
                }
            }
            self.agent = Some(agent);
        }
    }

    /// Tells of what is new in the directory. `Some`: the job has ended.
    async fn look(&self) -> io::Result<Option<End>> {
        let dir = &self.worker.dir;
        let running = matches!(&*self.worker.seen(), Some(seen) if seen.state != State::Created { waiting: None });
        if !running && let Some(started_at) = dir.started_at() {
            if let Some(seen) = self.worker.seen().as_mut() {
                seen.started_at = Some(started_at);
            }
            self.shared.report(&self.worker, State::Running).await;
        }
        dir.outcome()
    }

    fn cannot_look(&self, error: &io::Error) {
        tracing::error!(%error, worker = self.worker.name, "whether a worker has ended cannot be read; looking again");
    }

    /// No agent is known: finds out where the worker is in its life, and what is to be done about it. `dead` has just
    /// ended and is not reaped yet. `Some`: the job has ended.
    async fn without_agent(&mut self, dead: Option<Agent>) -> Option<End> {
        let dir = self.worker.dir.clone();
        // In this order: whoever made the start mark holds the lock from before it until its death. So a mark that was
        // there, and a lock that is free after that, is a dead agent.
        let started = dir.is_started();
        let lock = match dir.lock() {
            Ok(lock) => lock,
            Err(error) => {
                tracing::error!(%error, worker = self.worker.name, "the lock of a worker cannot be looked at");
                sleep(RETRY).await;
                self.agent = dead;
                return None;
            }
        };
        if lock == Lock::Held {
            drop(dead);
            self.adopt().await;
            return None;
        }
        // It may have come to its end since it was looked at.
        match dir.outcome() {
            Ok(Some(end)) => {
                // What else is new is told first.
                let _ = self.look().await;
                return Some(end);
            }
            Ok(None) => {}
            Err(error) => {
                self.cannot_look(&error);
                sleep(RETRY).await;
                self.agent = dead;
                return None;
            }
        }
        if started {
            return Some(self.lost(dead, "its agent was killed").await);
        }
        if dir.is_started() {
            return None; // An agent of an earlier scaler was quick.
        }
        if matches!(dir.path().try_exists(), Ok(false)) {
            return Some(self.lost(dead, "its run directory was removed").await);
        }
        self.never_started(dead).await
    }

    /// Somebody holds the lock.
    async fn adopt(&mut self) {
        match Agent::holding(&self.worker.dir) {
            Ok(Some(agent)) => {
                self.alive_at = now_ticks();
                self.agent = Some(agent);
            }
            // It has not written its pid yet, or has just ended.
            Ok(None) => {
                let _ = timeout(LOOK_AGAIN / 10, self.worker.woken()).await;
            }
            Err(error) => {
                tracing::error!(%error, worker = self.worker.name, "a worker that survived cannot be followed yet");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// Lock free, no start mark: starts an agent (again), unless it shall not be.
    async fn never_started(&mut self, dead: Option<Agent>) -> Option<End> {
        let end = dead.as_ref().and_then(Agent::end);
        drop(dead);
        if self.worker.is_stopping() {
            return self.forbid(Class::Stopped, "stopped before it began".to_owned());
        }
        if self.starts >= STARTS {
            let mut message = String::from("the agent ended before it began the job");
            if let Some(end) = end {
                message.push_str(&format!(" ({end})"));
            }
            let tail = self.worker.dir.agent_log_tail();
            if !tail.is_empty() {
                message.push_str(": ");
                message.push_str(&tail);
            }
            return self.forbid(Class::Infrastructure, message);
        }
        if self.starts > 0 {
            // What hindered it may be over in a moment.
            sleep(Duration::from_millis(20) * self.starts).await;
        }
        let shared = Arc::clone(&self.shared);
        let worker = Arc::clone(&self.worker);
        let started = tokio::task::spawn_blocking(move || match worker.dir.launch() {
            Ok(Some(launch)) => shared.start_agent(&worker, &launch),
            Ok(None) => Err(DriverError::Refused(infrastructure("its launch.json disappeared".to_owned()))),
            Err(error) => Err(DriverError::Refused(infrastructure(format!("its launch.json cannot be read: {error}")))),
        });
        match started.await {
            Ok(Ok(child)) => {
                self.starts += 1;
                self.agent = Some(Agent::started(child).await);
                None
            }
            Ok(Err(DriverError::Refused(outcome))) => self.forbid(outcome.class, outcome.message),
            Ok(Err(DriverError::Busy { retry_after, message, .. })) => {
                tracing::warn!(worker = self.worker.name, message, "an agent cannot be started again yet");
                let _ = timeout(Duration::from_millis(retry_after.into()), self.worker.woken()).await;
                None
            }
            Err(error) => {
                tracing::error!(%error, worker = self.worker.name, "starting an agent panicked");
                self.forbid(Class::Infrastructure, "otto-scaler failed to start the agent".to_owned())
            }
        }
    }

    /// Ends a worker that has not begun. `None`: it has, meanwhile.
    fn forbid(&self, class: Class, message: String) -> Option<End> {
        let dir = &self.worker.dir;
        let outcome = Outcome { class, exit_code: None, signal: None, message };
        match dir.forbid_start() {
            Ok(true) => {}
            Ok(false) => return None,
            // Without the mark an agent might start it after all: but none is there, and none will be sent.
            Err(error) => tracing::error!(%error, worker = self.worker.name, "a start mark cannot be made"),
        }
        let at = now();
        self.keep_outcome(&outcome, at);
        Some((at, outcome))
    }

    /// Started, no agent, no result: ends the job and keeps what is left of its output.
    async fn lost(&mut self, dead: Option<Agent>, why: &str) -> End {
        let dir = self.worker.dir.clone();
        let killed_by = dead.as_ref().and_then(Agent::end);
        let session = dead.as_ref().map(|dead| dead.pid).or_else(|| dir.started_pid()).or_else(|| dir.lock_pid());
        let is_child = dead.as_ref().is_some_and(Agent::is_child);
        let alive_at = if is_child { Some(u64::MAX) } else { self.alive_at };
        let remnants = Dead { mark: self.worker.mark.get().cloned(), session, alive_at };
        let ended = {
            let _one_at_a_time = self.shared.sweeps.acquire().await;
            tokio::task::spawn_blocking(move || remnants.end_remnants()).await
        };
        // Reaped only now: until here, the number of its session could not be another's.
        drop(dead);
        let mut message = if self.killed {
            "it did not stop within its grace period and was killed".to_owned()
        } else {
            let by = killed_by.map(|by| format!(" ({by})")).unwrap_or_default();
            format!("nobody knows how the job ended: {why}{by}")
        };
        match ended.context("panicked").and_then(|ended| Ok(ended?)) {
            Ok(0) => {}
            Ok(processes) => {
                tracing::info!(worker = self.worker.name, processes, "what a lost worker left running was killed");
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), worker = self.worker.name, "a lost job may still run");
                message.push_str(&format!("; some of its processes may still run: {error:#}"));
            }
        }
        let stopping = self.worker.is_stopping();
        let class = if stopping { Class::Stopped } else { Class::AgentLost };
        let signal = self.killed.then_some(Signal::KILL.as_raw());
        let mut outcome = Outcome { class, exit_code: signal.map(|signal| 128 + signal), signal, message };
        let mut at = now();
        if !self.keep_outcome(&outcome, at)
            && let Some(told) = self.told().await
        {
            (at, outcome) = told;
        }
        // What is new is told; the end is known.
        let _ = self.look().await;
        let _ = timeout(DRAIN_BEFORE_TOLD, self.drain()).await;
        (at, outcome)
    }

    /// The end that somebody has written down; looks until it can be read.
    async fn told(&self) -> Option<End> {
        loop {
            match self.worker.dir.outcome() {
                Ok(end) => return end,
                Err(error) => self.cannot_look(&error),
            }
            sleep(RETRY).await;
        }
    }

    /// So that every later look finds the same.
    fn keep_outcome(&self, outcome: &Outcome, at: Millis) -> bool {
        match self.worker.dir.write_outcome(outcome, at) {
            Ok(ours) => ours,
            Err(error) if !self.worker.dir.path().exists() => {
                tracing::debug!(%error, worker = self.worker.name, "no run directory is left");
                true
            }
            Err(error) => {
                tracing::error!(%error, worker = self.worker.name, "the end of a worker cannot be written down");
                true
            }
        }
    }

    /// After the end: until its output is delivered or given up, and no agent is left.
    async fn drained(&mut self, ended_at: Millis) {
        let limit = Millis::try_from(self.shared.options.drain_limit.as_millis()).unwrap_or(Millis::MAX);
        let mut pause = Duration::from_secs(1);
        loop {
            if let Some(agent) = self.agent.take() {
                agent.ended().await;
                continue;
            }
            let dir = &self.worker.dir;
            if dir.lock().is_ok_and(|lock| lock == Lock::Held) {
                self.adopt().await;
                continue;
            }
            if dir.is_drained() {
                if let Some(missing) = dir.undelivered() {
                    tracing::warn!(worker = self.worker.name, missing, "output of a worker was given up");
                }
                break;
            }
            if !dir.has_spool() {
                break;
            }
            if now().saturating_sub(ended_at) > limit {
                tracing::error!(
                    worker = self.worker.name,
                    "the log server did not take a worker's output for {:?}; it is given up",
                    self.shared.options.drain_limit
                );
                break;
            }
            self.drain().await;
            if !self.worker.dir.is_drained() {
                let _ = timeout(pause, self.worker.woken()).await;
                pause = (pause * 2).min(DRAIN_RETRY_MAX);
            }
        }
        if let Some(seen) = self.worker.seen().as_mut() {
            seen.finished = true;
        }
    }

    /// Sends what is in the spool, once.
    async fn drain(&mut self) {
        if !self.worker.dir.has_spool() || self.worker.dir.is_drained() {
            return;
        }
        let Some(_turn) = self.shared.drains.turn().await else { return };
        // It may not be needed any more.
        if self.worker.dir.is_drained() {
            return;
        }
        let (shared, worker) = (Arc::clone(&self.shared), Arc::clone(&self.worker));
        let started = tokio::task::spawn_blocking(move || shared.start_drain(&worker)).await;
        let agent = match started.context("panicked").and_then(|started| started) {
            Ok(child) => Agent::started(child).await,
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(worker = self.worker.name, error, "the output of a lost worker cannot be sent yet");
                self.shared.drains.ended(false);
                return;
            }
        };
        // In `self` while it is waited for, so that it is waited for further if this is given up.
        let agent = self.agent.insert(agent);
        if timeout(DRAIN_WITHIN, agent.ended()).await.is_err() {
            agent.signal(Signal::TERM);
            if timeout(STOP_MARGIN, agent.ended()).await.is_err() {
                agent.signal(Signal::KILL);
                agent.ended().await;
            }
        }
        self.agent = None;
        self.shared.drains.ended(self.worker.dir.is_drained());
    }
}

pub(super) fn infrastructure(message: String) -> Outcome {
    Outcome { class: Class::Infrastructure, exit_code: None, signal: None, message }
}
