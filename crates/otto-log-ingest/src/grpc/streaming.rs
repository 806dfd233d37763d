use std::panic::AssertUnwindSafe;

use futures::FutureExt;
use futures::stream::{MapErr, TryStreamExt};
use otto_proto::v1::log_streaming_service_server::LogStreamingService;
use otto_proto::v1::{
    LogBatchRequest, LogBatchResponse, LogEntry, LogResponse, RegistrationResponse, UploadLogsResponse,
    WorkerRegistration,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::session::outbox::Replies;
use crate::session::{Context, End, batches, entries, outbox, registration};

/// `LogStreamingService`.
pub(super) struct Streaming(pub(super) Context);

impl Streaming {
    /// Runs a session in a task of its own, which outlives neither its client nor the program.
    fn spawn(&self, session: impl Future<Output = ()> + Send + 'static) {
        let span = tracing::info_span!(
            "session",
            task_id = tracing::field::Empty,
            worker_id = tracing::field::Empty,
            run_id = tracing::field::Empty
        );
        self.0.tasks.spawn(
            async move {
                // The outbox has told the client by being dropped.
                if AssertUnwindSafe(session).catch_unwind().await.is_err() {
                    tracing::error!("a session panicked");
                }
            }
            .instrument(span),
        );
    }
}

type Answers<T> = MapErr<Replies<T>, fn(End) -> Status>;

#[tonic::async_trait]
impl LogStreamingService for Streaming {
    async fn register_worker(
        &self,
        request: Request<WorkerRegistration>,
    ) -> Result<Response<RegistrationResponse>, Status> {
        Ok(Response::new(registration::register(&self.0, request.into_inner()).await?))
    }

    type StreamLogsStream = Answers<LogResponse>;

    async fn stream_logs(
        &self,
        request: Request<tonic::Streaming<LogEntry>>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let gone = CancellationToken::new();
        let (outbox, replies) = outbox::pair(gone.clone());
        self.spawn(entries::run(self.0.clone(), request.into_inner(), outbox, gone));
        Ok(Response::new(replies.map_err(Status::from)))
    }

    type StreamLogBatchesStream = Answers<LogBatchResponse>;

    async fn stream_log_batches(
        &self,
        request: Request<tonic::Streaming<LogBatchRequest>>,
    ) -> Result<Response<Self::StreamLogBatchesStream>, Status> {
        let gone = CancellationToken::new();
        let (outbox, replies) = outbox::pair(gone.clone());
        self.spawn(batches::run(self.0.clone(), request.into_inner(), outbox, gone));
        Ok(Response::new(replies.map_err(Status::from)))
    }

    async fn upload_logs(
        &self,
        request: Request<tonic::Streaming<LogBatchRequest>>,
    ) -> Result<Response<UploadLogsResponse>, Status> {
        Ok(Response::new(batches::upload(self.0.clone(), request.into_inner()).await?))
    }
}
