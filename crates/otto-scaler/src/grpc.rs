//! The gRPC edge: requests into events, records into answers.

use std::time::Duration;

use jiff::Timestamp;
use otto_service::status;
use tonic::Status;

use crate::controller::{ApplyError, Reason};
use crate::store::StoreError;
use crate::task::Millis;

pub(crate) mod desk;
pub(crate) mod scaler;
pub(crate) mod tasks;

/// RFC 3339; empty: not yet.
fn rfc3339(at: Option<Millis>) -> String {
    at.and_then(|at| Timestamp::from_millisecond(at).ok()).map_or_else(String::new, |at| format!("{at:.3}"))
}

fn not_applied(error: ApplyError) -> Status {
    match error {
        ApplyError::Unavailable { retry_after, message } => {
            let message = format!("the task store is not available: {message}");
            status::unavailable(Duration::from_millis(retry_after.into()), message)
        }
        ApplyError::Stopping => status::unavailable(Duration::from_secs(1), "the scaler is stopping"),
    }
}

fn never_applied(reason: &Reason, task_id: &str) -> Status {
    let text = reason.to_string();
    match reason {
        Reason::Contradicts { .. } => status::precondition("CONTRADICTS", format!("task/{task_id}"), text),
        Reason::Unusable { field, .. } => status::invalid_argument(format!("build_config.{field}"), text),
        Reason::TooMany { .. } => status::invalid_argument("worker_count", text),
        Reason::UnknownTask(_) => status::not_found("task", task_id),
        Reason::OutOfOrder { .. } | Reason::TooOld { .. } => {
            status::precondition("OUT_OF_ORDER", format!("task/{task_id}"), text)
        }
        Reason::Unreadable(_) => Status::data_loss(text),
    }
}

fn store_failed(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable(_) => status::unavailable(Duration::from_secs(1), error.to_string()),
        StoreError::Conflict(_) => Status::aborted(error.to_string()),
        StoreError::Corrupt { .. } => Status::data_loss(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;
    use tonic_types::StatusExt;

    use super::*;

    #[test]
    fn what_cannot_run_names_the_callers_field() {
        let reason = Reason::Unusable { field: "image", detail: "is empty".to_owned() };
        let status = never_applied(&reason, "t");
        assert_eq!(status.code(), Code::InvalidArgument);
        let details = status.get_error_details();
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "build_config.image");
    }
}
