use std::time::Duration;

use otto_log_store::StoreError;

/// How a session ends, other than by the client having sent everything.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum End {
    /// A message breaks the contract.
    #[error("{field}: {description}")]
    Invalid {
        /// Name in the message.
        field: &'static str,
        /// What was wrong, and what is accepted.
        description: String,
    },
    /// The contract's order of calls was broken; the kind is a constant for programs.
    #[error("{description}")]
    Precondition {
        /// `NOT_REGISTERED`, `RUN_FINISHED`, `HOLE`, `RUN_DELETED`.
        kind: &'static str,
        /// What it is about, such as `worker/w-1`.
        subject: String,
        /// For people.
        description: String,
    },
    /// A newer session of the same run has begun.
    #[error("a newer session of this run has begun")]
    TakenOver,
    /// It can go on later, on a new stream.
    #[error("{message}")]
    Unavailable {
        /// When to come back.
        retry_after: Duration,
        /// Why, for people.
        message: String,
    },
    /// A bound is reached.
    #[error("{limit}: {description}")]
    Exhausted {
        /// The setting's name.
        limit: &'static str,
        /// What was too much.
        description: String,
    },
    /// The client did not do in time what it had to.
    #[error("{0}")]
    Late(&'static str),
    /// The transport failed while reading: its code as a number of gRPC, and its text.
    #[error("{message}")]
    Transport {
        /// gRPC status code.
        code: i32,
        /// As the transport said.
        message: String,
    },
    /// The client is gone; nobody will see it.
    #[error("the client is gone")]
    Gone,
}

impl End {
    pub(crate) fn draining() -> Self {
        Self::Unavailable {
            retry_after: Duration::from_secs(1),
            message: "the log server is being stopped; connect again and go on after what was acknowledged".to_owned(),
        }
    }

    pub(crate) fn not_registered(task_id: &str, worker_id: &str) -> Self {
        Self::Precondition {
            kind: "NOT_REGISTERED",
            subject: format!("worker/{worker_id}"),
            description: format!(
                "worker {worker_id:?} of task {task_id:?} is not registered; call RegisterWorker before the stream"
            ),
        }
    }

    pub(crate) fn finished() -> Self {
        Self::Precondition {
            kind: "RUN_FINISHED",
            subject: "run".to_owned(),
            description: "the run is finished; a new run needs another run_id".to_owned(),
        }
    }

    /// What a refusal of the store means to a session that cannot try again by itself.
    pub(crate) fn from_store(error: StoreError, disk_full_delay: Duration) -> Self {
        match error {
            StoreError::Sequence { expected } => Self::Precondition {
                kind: "HOLE",
                subject: "sequence".to_owned(),
                description: format!("the run goes on at sequence {expected}"),
            },
            StoreError::Finished => Self::finished(),
            StoreError::UnknownRun => Self::Precondition {
                kind: "RUN_DELETED",
                subject: "run".to_owned(),
                description: "the run was deleted; register again".to_owned(),
            },
            StoreError::Invalid(text) => Self::Invalid { field: "block", description: text },
            StoreError::Busy => Self::Unavailable {
                retry_after: Duration::from_millis(200),
                message: "too much is waiting to be written; try again".to_owned(),
            },
            StoreError::DiskFull => Self::Unavailable {
                retry_after: disk_full_delay,
                message: "the log server's disk is full; try again later".to_owned(),
            },
            // The detail is logged where the program notices that the store has failed.
            StoreError::Failed(_) | StoreError::Closed => Self::Unavailable {
                retry_after: Duration::from_secs(1),
                message: "the log store cannot write; the server starts again".to_owned(),
            },
        }
    }
}
