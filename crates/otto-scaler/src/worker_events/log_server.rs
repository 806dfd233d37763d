//! Worker events to the log server, so that a reader sees where the log would be why a worker could not start.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use otto_proto::v1::worker_event_service_client::WorkerEventServiceClient;
use otto_proto::v1::{ReportWorkerEventsRequest, WorkerEvent};
use otto_service::client::Channel;

use super::Sink;

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

    fn publish<'a>(&'a self, events: &'a [Arc<WorkerEvent>]) -> BoxFuture<'a, anyhow::Result<()>> {
        let mut client = self.client.clone();
        async move {
            let events = events.iter().map(|event| WorkerEvent::clone(event)).collect();
            let mut request = tonic::Request::new(ReportWorkerEventsRequest { events });
            request.set_timeout(DEADLINE);
            match tokio::time::timeout(DEADLINE, client.report_worker_events(request)).await? {
                Ok(_) => Ok(()),
                // A log server of another make that knows no worker events: nobody to tell.
                Err(status) if status.code() == tonic::Code::Unimplemented => Ok(()),
                Err(status) => Err(anyhow::anyhow!("{:?}: {}", status.code(), status.message())),
            }
        }
        .boxed()
    }
}
