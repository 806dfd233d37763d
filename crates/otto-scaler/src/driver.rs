//! Starts, watches and ends workers somewhere: child processes here, Pods in a cluster.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::mpsc;

use crate::task::{Class, Millis, Outcome, Spec};

pub(crate) mod kubernetes;
mod name;
pub(crate) mod process;

/// Which attempt of which worker; its name is derived from it and nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct WorkerKey {
    pub(crate) task_id: String,
    pub(crate) index: u32,
    pub(crate) attempt: u32,
}

/// What to start.
#[derive(Clone, Debug)]
pub(crate) struct Launch {
    pub(crate) key: WorkerKey,
    pub(crate) spec: Arc<Spec>,
    /// W3C trace context of the scaler's span.
    pub(crate) traceparent: Option<String>,
}

/// A worker as the driver sees it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Observed {
    pub(crate) key: WorkerKey,
    pub(crate) state: State,
    pub(crate) created_at: Millis,
    pub(crate) started_at: Option<Millis>,
    pub(crate) node_name: String,
    /// Its job has ended, and what it took is not given back yet: a Pod whose agent still delivers the log.
    pub(crate) lingers: bool,
    /// What is wrong with it, if it has not ended as far as is known.
    pub(crate) trouble: Option<Trouble>,
}

/// What is wrong with a worker that may live, though nobody hears of it, or that does not go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Never `Success` or `Stopped`.
    pub(crate) outcome: Outcome,
    /// Told if it lasts so long: milliseconds.
    pub(crate) lasts: Millis,
}

/// Where it is in its life.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum State {
    /// It exists; the job has not begun. With a reason if it cannot begin yet.
    Created {
        waiting: Option<Waiting>,
    },
    Running,
    /// The job has ended (its log may still be draining).
    Ended {
        at: Millis,
        outcome: Outcome,
    },
    /// It has been removed.
    Gone,
}

/// Why the job of a worker cannot begin yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Waiting {
    /// What it waits for, as it would be told if it never came. Never `Success` or `Stopped`.
    pub(crate) outcome: Outcome,
    /// It never comes by itself: there is no use in patience.
    pub(crate) hopeless: bool,
    /// Every worker waits so for a moment: told only if it lasts.
    pub(crate) usual: bool,
}

/// Why a driver did not do it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriverError {
    /// Never possible for this launch; counts as a failed attempt with this outcome.
    #[error("{}", .0.message)]
    Refused(Outcome),
    /// Not now; try again after the given milliseconds. It is not there, as far as can be known: its place is given to
    /// others meanwhile. A driver that does not know asks again by itself for a while; should the worker come about all the
    /// same, it is observed, and the next call is about the same one (the name makes it so). As long as it may still come
    /// about, nobody else may have its name.
    #[error("{message}")]
    Busy {
        /// What kept it from being created: told to the reader of the log.
        class: Class,
        /// Milliseconds.
        retry_after: u32,
        /// What the driver said.
        message: String,
        /// Every worker of this resource class would be told the same.
        common: bool,
        /// For so long, in milliseconds, a request that nobody has an answer to may still create it. 0: there is none.
        unclear_for: u32,
    },
}

/// What came of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Nothing is left.
    Gone,
    /// It was accepted, and something is still there.
    Leaving,
}

/// A place where workers run. Every call may be repeated after a crash: the name makes it the same worker.
pub(crate) trait Driver: Send + Sync + 'static {
    /// For logs and messages: `process`, `kubernetes`.
    fn name(&self) -> &'static str;

    /// Pod or run-directory name of a worker: valid as a DNS-1123 label, at most 63 bytes, the same for the same key.
    fn worker_name(&self, key: &WorkerKey) -> String;

    /// All workers that exist, survivors of an earlier scaler included. A failure is never "none".
    fn list(&self) -> BoxFuture<'_, anyhow::Result<Vec<Observed>>>;

    /// Starts a worker. One that exists already under this name is left as it is: that is success, it is the same one.
    fn create(&self, launch: Launch) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Asks a worker to stop: SIGTERM, then SIGKILL after the grace period. Ending is observed.
    fn stop<'a>(&'a self, key: &'a WorkerKey) -> BoxFuture<'a, anyhow::Result<()>>;

    /// Removes what is left of an ended worker whose log is drained.
    fn remove<'a>(&'a self, key: &'a WorkerKey) -> BoxFuture<'a, anyhow::Result<Removal>>;

    /// Every change from now on, sent into `changes`; called once, before `list`.
    fn watch(&self, changes: mpsc::Sender<Observed>) -> anyhow::Result<()>;

    /// Calls under way are given so long when the scaler ends, and are then abandoned: whoever follows it waits for that.
    fn ends_within(&self) -> Duration;

    /// Waits until the driver has ended everything of its own, after it was told to stop. Workers live on.
    fn closed(&self) -> BoxFuture<'_, ()>;
}
