//! `OttoscalerService`: the calls of the earlier system's clients.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::BoxStream;
use otto_proto::v1::ottoscaler_service_client::OttoscalerServiceClient;
use otto_proto::v1::ottoscaler_service_server::OttoscalerService;
use otto_proto::v1::scale_response::Status as Outcome;
use otto_proto::v1::{
    FailureClass, PipelineProgress, PipelineRequest, ScaleRequest, ScaleResponse, WorkerPodStatus, WorkerStatusRequest,
    WorkerStatusResponse,
};
use otto_service::{status, telemetry};
use tonic::{Code, Request, Response, Status};

use super::desk::Desk;
use super::{never_applied, not_applied, rfc3339};
use crate::controller::{Applied, Change};
use crate::driver::{Driver, WorkerKey};
use crate::event::{Direction, parse};
use crate::task::{Class, Phase, Record, Worker, WorkerPhase};
use crate::worker_events::derive::failure_class;

/// Workers that are not live and are told of when no task is named.
const OTHERS: usize = 1_000;

pub(crate) struct Scaler {
    pub(crate) desk: Arc<Desk>,
    pub(crate) driver: Arc<dyn Driver>,
}

impl Scaler {
    async fn scale(
        &self,
        request: Request<ScaleRequest>,
        direction: Direction,
    ) -> Result<Response<ScaleResponse>, Status> {
        let traceparent = telemetry::traceparent(&tracing::Span::current()).or_else(|| {
            // Where traces are not exported, the caller's is passed on as it came.
            Some(request.metadata().get("traceparent")?.to_str().ok()?.to_owned())
        });
        let mut event = parse::from_request(request.into_inner(), direction)
            .map_err(|error| status::invalid_argument(error.field, error.reason))?;
        event.spec.context.traceparent = event.spec.context.traceparent.or(traceparent);
        let task_id = event.task_id.clone();
        let count = event.count;
        let (change, outcome) = match self.desk.apply(event).await.map_err(not_applied)? {
            Applied::Changed(change) => (change, Outcome::Success),
            Applied::AlreadyProcessed(change) => (change, Outcome::AlreadyProcessed),
            Applied::Dead(reason) => return Err(never_applied(&reason, &task_id)),
        };
        let message = message(&change, outcome, direction, count);
        Ok(Response::new(ScaleResponse {
            status: outcome.into(),
            message,
            processed_count: i32::try_from(change.worker_names.len()).unwrap_or(i32::MAX),
            worker_pod_names: change.worker_names,
            started_at: rfc3339(Some(change.record.created_at)),
            completed_at: rfc3339(change.record.ended_at),
        }))
    }

    fn row(&self, record: &Record, worker: &Worker) -> WorkerPodStatus {
        let key = WorkerKey { task_id: record.task_id.clone(), index: worker.index, attempt: worker.attempt };
        let status = status_of(worker);
        let (class, error_message) = why(record, worker);
        let mut labels = HashMap::from([
            ("index".to_owned(), worker.index.to_string()),
            ("attempt".to_owned(), worker.attempt.to_string()),
        ]);
        if !record.spec.repository.is_empty() {
            labels.insert("repository".to_owned(), record.spec.repository.clone());
        }
        WorkerPodStatus {
            pod_name: self.driver.worker_name(&key),
            task_id: record.task_id.clone(),
            status: status.to_owned(),
            created_at: rfc3339(worker.created_at),
            started_at: rfc3339(worker.started_at),
            completed_at: rfc3339(worker.ended_at),
            node_name: worker.node_name.clone(),
            pod_ip: String::new(),
            labels,
            error_message,
            failure_class: class.map_or(FailureClass::Unspecified, failure_class).into(),
        }
    }

    async fn passed_on(
        &self,
        request: &Request<WorkerStatusRequest>,
    ) -> Option<Result<Response<WorkerStatusResponse>, Status>> {
        let call = async |channel, request| {
            let mut client = OttoscalerServiceClient::new(channel).max_decoding_message_size(usize::MAX);
            client.get_worker_status(request).await
        };
        self.desk.ask_leader(request, call).await
    }

    /// The records that a request is about.
    async fn records(&self, task_id: &str) -> Result<Vec<Arc<Record>>, Status> {
        if !task_id.is_empty() {
            return Ok(self.desk.record(task_id).await?.into_iter().collect());
        }
        let board = self.desk.board().await?;
        let live = board.live();
        let mut others = board.page(None, OTHERS, |record| record.phase.is_terminal());
        others.extend(live);
        others.sort_by(|a, b| (b.created_at, &b.task_id).cmp(&(a.created_at, &a.task_id)));
        Ok(others)
    }
}

fn message(change: &Change, outcome: Outcome, direction: Direction, count: u32) -> String {
    let record = &change.record;
    if outcome == Outcome::AlreadyProcessed {
        return match record.phase {
            Phase::Live => format!("the task had this target before ({} workers)", record.wanted),
            Phase::Cancelling => "the task is being cancelled".to_owned(),
            Phase::Succeeded => "the task has ended: succeeded".to_owned(),
            Phase::Failed => "the task has ended: failed".to_owned(),
            Phase::Cancelled => "the task has ended: cancelled".to_owned(),
        };
    }
    let touched = change.worker_names.len();
    match direction {
        Direction::Up if count == 0 => "no workers are wanted; the task has ended".to_owned(),
        Direction::Up => format!("{touched} workers are started; the target is {count}"),
        Direction::Down if record.workers.is_empty() => {
            "no such task was known; it is cancelled, so that a late scale_up starts nothing".to_owned()
        }
        Direction::Down if count == 0 => format!("the task is cancelled; {touched} workers are stopped"),
        Direction::Down => format!("{touched} workers are stopped; the target is {count}"),
    }
}

/// Why a worker failed, does not begin, or may never tell its end: its class and a sentence; empty: there is nothing to say.
fn why(record: &Record, worker: &Worker) -> (Option<Class>, String) {
    if let Some(trouble) = &worker.trouble {
        return (Some(trouble.why.class), trouble.why.message.clone());
    }
    if let Some(why) = &worker.waiting {
        return (Some(why.class), format!("waiting: {}", why.message));
    }
    match (&worker.outcome, worker.phase) {
        (_, WorkerPhase::Stopped) if matches!(record.phase, Phase::Cancelled | Phase::Cancelling) => {
            (Some(Class::Stopped), "cancelled".to_owned())
        }
        (Some(why), WorkerPhase::Failed | WorkerPhase::Stopped) => (Some(why.class), why.message.clone()),
        (Some(why), WorkerPhase::Queued | WorkerPhase::Created) => {
            (Some(why.class), format!("trying again: {}", why.message))
        }
        _ => (None, String::new()),
    }
}

/// `pending`, `running`, `succeeded` or `failed`.
pub(super) fn status_of(worker: &Worker) -> &'static str {
    match worker.phase {
        WorkerPhase::Queued | WorkerPhase::Created => "pending",
        WorkerPhase::Running => "running",
        WorkerPhase::Stopping if worker.started_at.is_some() => "running",
        WorkerPhase::Stopping => "pending",
        WorkerPhase::Succeeded => "succeeded",
        WorkerPhase::Failed | WorkerPhase::Stopped => "failed",
    }
}

#[tonic::async_trait]
impl OttoscalerService for Scaler {
    async fn scale_up(&self, request: Request<ScaleRequest>) -> Result<Response<ScaleResponse>, Status> {
        self.scale(request, Direction::Up).await
    }

    async fn scale_down(&self, request: Request<ScaleRequest>) -> Result<Response<ScaleResponse>, Status> {
        self.scale(request, Direction::Down).await
    }

    async fn get_worker_status(
        &self,
        request: Request<WorkerStatusRequest>,
    ) -> Result<Response<WorkerStatusResponse>, Status> {
        let WorkerStatusRequest { task_id, worker_pod_name, status_filter } = request.get_ref().clone();
        if !["", "pending", "running", "succeeded", "failed"].contains(&status_filter.as_str()) {
            let accepted =
                format!("{status_filter:?} is none of: pending, running, succeeded, failed, or empty for all");
            return Err(status::invalid_argument("status_filter", accepted));
        }
        // Many records: the leader holds them all.
        if task_id.is_empty()
            && let Some(answer) = self.passed_on(&request).await
        {
            return answer;
        }
        let records = match self.records(&task_id).await {
            Ok(records) => records,
            // The store is away; the leader remembers.
            Err(status) if status.code() == Code::Unavailable => {
                return self.passed_on(&request).await.unwrap_or(Err(status));
            }
            Err(status) => return Err(status),
        };
        let mut response = WorkerStatusResponse::default();
        let mut others = 0_usize;
        for record in records {
            for worker in &record.workers {
                if task_id.is_empty() && !worker.phase.is_live() {
                    others += 1;
                    if others > OTHERS {
                        continue;
                    }
                }
                let status = status_of(worker);
                if !status_filter.is_empty() && status_filter != status {
                    continue;
                }
                let row = self.row(&record, worker);
                if !worker_pod_name.is_empty() && worker_pod_name != row.pod_name {
                    continue;
                }
                match status {
                    "pending" => response.pending_count += 1,
                    "running" => response.running_count += 1,
                    "succeeded" => response.succeeded_count += 1,
                    _ => response.failed_count += 1,
                }
                response.total_count += 1;
                response.workers.push(row);
            }
        }
        Ok(Response::new(response))
    }

    type ExecutePipelineStream = BoxStream<'static, Result<PipelineProgress, Status>>;

    async fn execute_pipeline(
        &self,
        _request: Request<PipelineRequest>,
    ) -> Result<Response<Self::ExecutePipelineStream>, Status> {
        Err(Status::unimplemented("this version runs no pipelines; run each stage with ScaleUp"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Outcome, Trouble};

    #[test]
    fn a_row_says_why_it_failed_or_does_not_begin() {
        let outcome =
            |class, message: &str| Some(Outcome { class, exit_code: None, signal: None, message: message.to_owned() });
        let trouble = |why| Some(Trouble { why, since: 1 });
        let worker = |phase, outcome, waiting| Worker { phase, outcome, waiting, ..Worker::queued(0, 1) };
        let mut record = Record {
            task_id: "t".into(),
            version: 1,
            spec: std::sync::Arc::default(),
            wanted: 1,
            phase: Phase::Live,
            workers: Vec::new(),
            created_at: 0,
            ended_at: None,
            last_entry: None,
            error: None,
        };
        let memory = outcome(Class::OutOfMemory, "killed for using more memory than its limit of 128Mi");
        let image = outcome(Class::Image, "image x cannot be pulled: not found");
        let quota = outcome(Class::Quota, "exceeded quota: pods");
        for (worker, class, message) in [
            (worker(WorkerPhase::Queued, None, None), None, ""),
            (worker(WorkerPhase::Queued, None, quota.clone()), Some(Class::Quota), "waiting: exceeded quota: pods"),
            (
                worker(WorkerPhase::Created, memory.clone(), image.clone()),
                Some(Class::Image),
                "waiting: image x cannot be pulled: not found",
            ),
            (
                worker(WorkerPhase::Queued, memory.clone(), None),
                Some(Class::OutOfMemory),
                "trying again: killed for using more memory than its limit of 128Mi",
            ),
            (worker(WorkerPhase::Running, memory.clone(), None), None, ""),
            (
                Worker {
                    trouble: outcome(Class::NodeLost, "node n").and_then(trouble),
                    ..worker(WorkerPhase::Stopping, None, image.clone())
                },
                Some(Class::NodeLost),
                "node n",
            ),
            (
                worker(WorkerPhase::Failed, memory.clone(), None),
                Some(Class::OutOfMemory),
                "killed for using more memory than its limit of 128Mi",
            ),
            (worker(WorkerPhase::Succeeded, outcome(Class::Success, ""), None), None, ""),
        ] {
            assert_eq!(why(&record, &worker), (class, message.to_owned()), "{worker:?}");
        }
        record.phase = Phase::Cancelled;
        let stopped = worker(WorkerPhase::Stopped, outcome(Class::Stopped, "stopped as told"), None);
        assert_eq!(why(&record, &stopped), (Some(Class::Stopped), "cancelled".to_owned()));
    }
}
