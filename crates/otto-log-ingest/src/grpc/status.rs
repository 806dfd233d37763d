//! Our errors as gRPC statuses with details.

use std::time::Duration;

use otto_service::grpc::map_decode_status;
use otto_service::status;
use tonic::{Code, Status};

use crate::query::QueryError;
use crate::session::End;

impl From<End> for Status {
    fn from(end: End) -> Self {
        let message = end.to_string();
        match end {
            End::Invalid { field, description } => status::invalid_argument(field, description),
            End::Precondition { kind, subject, description } => status::precondition(kind, subject, description),
            End::TakenOver => Status::aborted(message),
            End::Unavailable { retry_after, message } => status::unavailable(retry_after, message),
            End::Exhausted { limit, description } => {
                status::resource_exhausted(limit, description, Some(Duration::from_secs(1)))
            }
            End::Late(_) => Status::deadline_exceeded(message),
            End::Transport { code, message } => Status::new(Code::from_i32(code), message),
            End::Gone => Status::cancelled(message),
        }
    }
}

/// What a broken input stream means to a session.
impl From<Status> for End {
    fn from(status: Status) -> Self {
        let status = map_decode_status(status);
        End::Transport { code: status.code() as i32, message: status.message().to_owned() }
    }
}

impl From<QueryError> for Status {
    fn from(error: QueryError) -> Self {
        let message = error.to_string();
        match error {
            QueryError::Invalid { field, description } => status::invalid_argument(field, description),
            QueryError::NotFound(_) => Status::not_found(message),
            QueryError::Busy(_) => status::resource_exhausted("max-readers", message, Some(Duration::from_secs(1))),
            QueryError::Store(error) => {
                tracing::error!(%error, "the log store cannot be read");
                status::unavailable(Duration::from_secs(1), "the log store cannot be read")
            }
        }
    }
}
