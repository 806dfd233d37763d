use std::pin::Pin;

use futures::Stream;
use otto_proto::v1::log_query_service_server::LogQueryService;
use otto_proto::v1::{
    ListLogTasksRequest, ListLogTasksResponse, ListLogWorkersRequest, ListLogWorkersResponse, ReadLogsRequest,
    ReadLogsResponse,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::query::{Mode, Query, Reading};
use crate::session::End;

/// `LogQueryService`.
pub(super) struct Queries {
    pub(super) query: Query,
    pub(super) drain: CancellationToken,
}

type Parts = Pin<Box<dyn Stream<Item = Result<ReadLogsResponse, Status>> + Send>>;

impl Queries {
    async fn read(&self, request: ReadLogsRequest, mode: Mode) -> Result<Response<Parts>, Status> {
        let reading = self.query.read(request, mode).await?;
        Ok(Response::new(Box::pin(parts(reading, self.drain.clone()))))
    }
}

/// Pulls a part when the transport has room for one, so that a slow reader costs no memory.
fn parts(reading: Reading, drain: CancellationToken) -> impl Stream<Item = Result<ReadLogsResponse, Status>> + Send {
    futures::stream::unfold(Some((reading, drain)), |state| async move {
        let (mut reading, drain) = state?;
        tokio::select! {
            biased;
            () = drain.cancelled() => Some((Err(End::draining().into()), None)),
            part = reading.next() => match part? {
                Ok(part) => Some((Ok(part), Some((reading, drain)))),
                Err(error) => Some((Err(error.into()), None)),
            },
        }
    })
}

#[tonic::async_trait]
impl LogQueryService for Queries {
    async fn list_log_tasks(
        &self,
        request: Request<ListLogTasksRequest>,
    ) -> Result<Response<ListLogTasksResponse>, Status> {
        let request = request.into_inner();
        Ok(Response::new(self.query.tasks(request.page_size, &request.page_token).await?))
    }

    async fn list_log_workers(
        &self,
        request: Request<ListLogWorkersRequest>,
    ) -> Result<Response<ListLogWorkersResponse>, Status> {
        Ok(Response::new(self.query.workers(&request.into_inner().task_id).await?))
    }

    type ReadLogsStream = Parts;

    async fn read_logs(&self, request: Request<ReadLogsRequest>) -> Result<Response<Parts>, Status> {
        self.read(request.into_inner(), Mode::Read).await
    }

    type TailLogsStream = Parts;

    async fn tail_logs(&self, request: Request<ReadLogsRequest>) -> Result<Response<Parts>, Status> {
        self.read(request.into_inner(), Mode::Follow).await
    }
}
