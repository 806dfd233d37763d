use otto_proto::v1::worker_event_service_server::WorkerEventService;
use otto_proto::v1::{ReportWorkerEventsRequest, ReportWorkerEventsResponse, WorkerEvent};
use otto_service::status;
use tonic::{Request, Response, Status};

use crate::session::registration::MAX_ID;
use crate::session::{Context, End};

/// Most events of a request.
const MAX_EVENTS: usize = 1000;
/// Largest event, bytes.
const MAX_EVENT: usize = 64 << 10;

/// `WorkerEventService`.
pub(super) struct Events(pub(super) Context);

#[tonic::async_trait]
impl WorkerEventService for Events {
    async fn report_worker_events(
        &self,
        request: Request<ReportWorkerEventsRequest>,
    ) -> Result<Response<ReportWorkerEventsResponse>, Status> {
        let events = request.into_inner().events;
        if events.len() > MAX_EVENTS {
            return Err(status::invalid_argument(
                "events",
                format!("{} events; at most {MAX_EVENTS} a request", events.len()),
            ));
        }
        let violations: Vec<(String, String)> =
            events.iter().enumerate().flat_map(|(index, event)| check(index, event)).take(20).collect();
        if !violations.is_empty() {
            return Err(status::invalid_arguments(violations));
        }
        if events.is_empty() {
            return Ok(Response::new(ReportWorkerEventsResponse { stored: 0 }));
        }
        let stored = self
            .0
            .store
            .put_events(events)
            .await
            .map_err(|error| End::from_store(error, self.0.limits.disk_full_delay))?;
        Ok(Response::new(ReportWorkerEventsResponse { stored }))
    }
}

fn check(index: usize, event: &WorkerEvent) -> Vec<(String, String)> {
    let mut violations = Vec::new();
    let mut wrong = |field: &str, description: String| {
        violations.push((format!("events[{index}].{field}"), description));
    };
    for (field, value, required) in
        [("event_id", &event.event_id, true), ("task_id", &event.task_id, true), ("worker_id", &event.worker_id, false)]
    {
        // An event id names task, worker and more.
        let longest = if field == "event_id" { 1024 } else { MAX_ID };
        if required && value.is_empty() {
            wrong(field, "must not be empty".to_owned());
        } else if value.len() > longest {
            wrong(field, format!("has {} bytes; at most {longest}", value.len()));
        }
    }
    let size = prost::Message::encoded_len(event);
    if size > MAX_EVENT {
        wrong("message", format!("the event has {size} bytes; at most {MAX_EVENT}"));
    }
    violations
}
