use otto_log_store::ReadError;

/// Why a question has no answer. The texts are for the person who asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A field of the request cannot be (gRPC INVALID_ARGUMENT, HTTP 400).
    #[error("{field}: {description}")]
    Invalid {
        /// Its name in `ReadLogsRequest`.
        field: &'static str,
        /// What was wrong and what is accepted.
        description: String,
    },
    /// Nothing of it is stored (gRPC NOT_FOUND, HTTP 404).
    #[error("{0} is not known to this log server")]
    NotFound(String),
    /// Too many readers (gRPC RESOURCE_EXHAUSTED, HTTP 429).
    #[error("{0}")]
    Busy(String),
    /// The store cannot be read (gRPC UNAVAILABLE, HTTP 503).
    #[error("the log store cannot be read: {0}")]
    Store(#[from] ReadError),
}
