//! gRPC errors with machine-readable details (`google.rpc.*`, <https://google.aip.dev/193>).

use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// INVALID_ARGUMENT naming the field (`BadRequest`). `field` as in the proto, nested by dots: `spec.command`.
pub fn invalid_argument(field: impl Into<String>, description: impl Into<String>) -> Status {
    invalid_arguments([(field.into(), description.into())])
}

/// INVALID_ARGUMENT naming several fields.
pub fn invalid_arguments(violations: impl IntoIterator<Item = (String, String)>) -> Status {
    let mut details = ErrorDetails::new();
    let mut message = String::new();
    for (field, description) in violations {
        if !message.is_empty() {
            message.push_str("; ");
        }
        message.push_str(&field);
        message.push_str(": ");
        message.push_str(&description);
        details.add_bad_request_violation(field, description);
    }
    Status::with_error_details(Code::InvalidArgument, message, details)
}

/// UNAVAILABLE, to be tried again after `retry_after` (`RetryInfo`).
pub fn unavailable(retry_after: Duration, message: impl Into<String>) -> Status {
    Status::with_error_details(Code::Unavailable, message, ErrorDetails::with_retry_info(Some(retry_after)))
}

/// RESOURCE_EXHAUSTED: `subject` (a limit's name, such as `max-workers`) is used up (`QuotaFailure`); with
/// `retry_after` if waiting helps.
pub fn resource_exhausted(
    subject: impl Into<String>,
    description: impl Into<String>,
    retry_after: Option<Duration>,
) -> Status {
    let (subject, description) = (subject.into(), description.into());
    let message = format!("{subject}: {description}");
    let mut details = ErrorDetails::with_quota_failure_violation(subject, description);
    if retry_after.is_some() {
        details.set_retry_info(retry_after);
    }
    Status::with_error_details(Code::ResourceExhausted, message, details)
}

/// FAILED_PRECONDITION (`PreconditionFailure`): `kind` is a constant such as `NOT_REGISTERED`, `subject` what it is
/// about, such as `worker/w-1`.
pub fn precondition(kind: impl Into<String>, subject: impl Into<String>, description: impl Into<String>) -> Status {
    let description = description.into();
    let message = description.clone();
    let details = ErrorDetails::with_precondition_failure_violation(kind, subject, description);
    Status::with_error_details(Code::FailedPrecondition, message, details)
}

/// NOT_FOUND naming what was asked for (`ResourceInfo`), such as `task`, `task-123`.
pub fn not_found(kind: impl Into<String>, name: impl Into<String>) -> Status {
    let (kind, name) = (kind.into(), name.into());
    let message = format!("there is no {kind} {name:?}");
    let details = ErrorDetails::with_resource_info(kind, name, "", "");
    Status::with_error_details(Code::NotFound, message, details)
}

/// The delay a server asked for (`RetryInfo`), if it did.
pub fn retry_delay(status: &Status) -> Option<Duration> {
    status.get_details_retry_info().and_then(|info| info.retry_delay)
}

/// Whether the same idempotent call may succeed if tried again: the server or the way to it was not there, was too
/// busy, or gave up. UNKNOWN is included, because servers of the earlier system answer it for passing troubles.
pub fn is_transient(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted | Code::Aborted | Code::DeadlineExceeded | Code::Unknown => true,
        // h2 resets and lost connections in the middle of a stream.
        Code::Cancelled | Code::Internal => std::error::Error::source(status).is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_wire() {
        let status = invalid_argument("task_id", "must not be empty");
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "task_id: must not be empty");
        let bad = status.get_details_bad_request().unwrap();
        assert_eq!(bad.field_violations[0].field, "task_id");

        let status = unavailable(Duration::from_secs(2), "Redis is away");
        assert_eq!(retry_delay(&status), Some(Duration::from_secs(2)));
        assert!(is_transient(&status));

        let status = resource_exhausted("max-workers", "100 workers are running", Some(Duration::from_secs(1)));
        assert_eq!(status.get_details_quota_failure().unwrap().violations[0].subject, "max-workers");
        assert_eq!(retry_delay(&status), Some(Duration::from_secs(1)));
        assert_eq!(retry_delay(&resource_exhausted("a", "b", None)), None);

        let status = precondition("NOT_REGISTERED", "worker/w-1", "register first");
        assert_eq!(status.get_details_precondition_failure().unwrap().violations[0].r#type, "NOT_REGISTERED");
        assert!(!is_transient(&status));

        let status = not_found("task", "t-1");
        assert_eq!(status.message(), "there is no task \"t-1\"");
        assert_eq!(status.get_details_resource_info().unwrap().resource_name, "t-1");
    }
}
