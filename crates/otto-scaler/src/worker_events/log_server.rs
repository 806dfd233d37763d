//! Worker events to the log server, so that a reader sees where the log would be why a worker could not start.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use otto_proto::v1::worker_event_service_client::WorkerEventServiceClient;
use otto_proto::v1::{ReportWorkerEventsRequest, WorkerEvent};
use otto_service::client::Channel;

use super::{NotTaken, Sink};

/// Longest wait for one answer.
const DEADLINE: Duration = Duration::from_secs(10);

pub(crate) struct LogServer {
    client: WorkerEventServiceClient<Channel>,
}

impl LogServer {
    pub(crate) fn new(channel: Channel) -> Self {
        Self { client: WorkerEventServiceClient::new(channel) }
    }
}

impl Sink for LogServer {
    fn name(&self) -> &'static str {
        "log_server"
    }

    fn publish<'a>(&'a self, events: &'a [Arc<WorkerEvent>]) -> BoxFuture<'a, Result<(), NotTaken>> {
        let mut client = self.client.clone();
        async move {
            let several = events.len() > 1;
            let events = events.iter().map(|event| WorkerEvent::clone(event)).collect();
            let mut request = tonic::Request::new(ReportWorkerEventsRequest { events });
            request.set_timeout(DEADLINE);
            let answer = tokio::time::timeout(DEADLINE, client.report_worker_events(request)).await;
            let Ok(answer) = answer else { return Err(NotTaken::Away(anyhow::anyhow!("no answer in {DEADLINE:?}"))) };
            let Err(status) = answer else { return Ok(()) };
            let error = anyhow::anyhow!("{:?}: {}", status.code(), status.message());
            match status.code() {
                // A log server of another make that knows no worker events: nobody to tell.
                tonic::Code::Unimplemented => Ok(()),
                // A message that is too large is OUT_OF_RANGE to one gRPC library and RESOURCE_EXHAUSTED to others, which
                // may also mean that there is no room now: a single event is not too large.
                tonic::Code::InvalidArgument | tonic::Code::OutOfRange => Err(NotTaken::Refused(error)),
                tonic::Code::ResourceExhausted if several => Err(NotTaken::Refused(error)),
                _ => Err(NotTaken::Away(error)),
            }
        }
        .boxed()
    }
}
