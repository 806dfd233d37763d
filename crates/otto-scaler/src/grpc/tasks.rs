//! `TaskService`: tasks, their workers' events as they happen, and the dead letters.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use otto_proto::v1::task_service_client::TaskServiceClient;
use otto_proto::v1::task_service_server::TaskService;
use otto_proto::v1::watch_workers_response::Kind;
use otto_proto::v1::worker_event::Type;
use otto_proto::v1::{
    self as proto, DeleteTaskRequest, DeleteTaskResponse, GetTaskRequest, ListDeadLettersRequest,
    ListDeadLettersResponse, ListTasksRequest, ListTasksResponse, ReplayDeadLetterRequest, ReplayDeadLetterResponse,
    TaskState, WatchWorkersRequest, WatchWorkersResponse, WorkerEvent,
};
use otto_service::client::Channel;
use otto_service::drain::Drain;
use otto_service::status;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::TaskTracker;
use tonic::{Code, Request, Response, Status};

use super::desk::{Desk, Lead};
use super::scaler::status_of;
use super::{not_applied, store_failed};
use crate::controller::board::Position;
use crate::controller::{DeleteError, Handle};
use crate::driver::Driver;
use crate::inbox::DeadLetters;
use crate::task::{Phase, Record};
use crate::worker_events::derive::{Teller, timestamp};

/// Messages a watcher may lag behind before the broadcast's own bound counts.
const AHEAD: usize = 64;

pub(crate) struct Tasks {
    pub(crate) desk: Arc<Desk>,
    pub(crate) driver: Arc<dyn Driver>,
    /// `None`: there is no Redis.
    pub(crate) dead_letters: Option<Arc<dyn DeadLetters>>,
    /// Owns the watchers.
    pub(crate) watchers: TaskTracker,
    pub(crate) drain: Drain,
}

impl Tasks {
    async fn record(&self, task_id: &str) -> Result<Arc<Record>, Status> {
        if task_id.is_empty() {
            return Err(status::invalid_argument("task_id", "must not be empty"));
        }
        self.desk.record(task_id).await?.ok_or_else(|| status::not_found("task", task_id))
    }

    fn dead_letters(&self) -> Result<&Arc<dyn DeadLetters>, Status> {
        self.dead_letters.as_ref().ok_or_else(|| {
            status::precondition(
                "NO_REDIS",
                "dead letters",
                "dead letters are kept in Redis; give the scaler --redis-url",
            )
        })
    }
}

fn page_size(size: u32) -> usize {
    match size {
        0 => 100,
        size => usize::try_from(size).unwrap_or(1_000).min(1_000),
    }
}

fn position(token: &str) -> Result<Option<Position>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let parsed = token.split_once('.').and_then(|(at, id)| Some((at.parse().ok()?, id.to_owned())));
    parsed.map(Some).ok_or_else(|| status::invalid_argument("page_token", "is none that this method returned"))
}

fn state(record: &Record) -> TaskState {
    match record.phase {
        Phase::Succeeded => TaskState::Succeeded,
        Phase::Failed => TaskState::Failed,
        Phase::Cancelled => TaskState::Cancelled,
        Phase::Live | Phase::Cancelling => {
            let begun = record.workers.iter().any(|worker| worker.started_at.is_some() || worker.attempt > 1);
            if begun { TaskState::Running } else { TaskState::Pending }
        }
    }
}

/// What is wrong with one of its workers.
fn trouble(record: &Record) -> Option<String> {
    let mut troubled = record.workers.iter().filter_map(|worker| Some((worker.index, worker.trouble.as_ref()?)));
    let (index, trouble) = troubled.next()?;
    let message = &trouble.why.message;
    Some(match troubled.count() {
        0 if record.workers.len() == 1 => message.clone(),
        0 => format!("worker {index}: {message}"),
        more => format!("worker {index} and {more} more: {message}"),
    })
}

/// What one of its workers waits for before it can start.
fn waiting(record: &Record) -> Option<String> {
    let mut waiting = record.workers.iter().filter_map(|worker| Some((worker.index, worker.waiting.as_ref()?)));
    let (index, why) = waiting.next()?;
    Some(match waiting.count() {
        0 if record.workers.len() == 1 => format!("waiting: {}", why.message),
        0 => format!("worker {index} waits: {}", why.message),
        more => format!("worker {index} and {more} more wait: {}", why.message),
    })
}

/// Why it failed or was cancelled; while it has not ended, first what keeps it.
fn why(record: &Record) -> String {
    let (error, trouble) = (record.error.clone(), trouble(record));
    let why = if record.phase.is_terminal() { error.or(trouble) } else { trouble.or(error) };
    why.or_else(|| waiting(record)).unwrap_or_default()
}

fn message(record: &Record) -> proto::Task {
    let mut task = proto::Task {
        task_id: record.task_id.clone(),
        state: state(record).into(),
        wanted_workers: record.wanted,
        image: record.spec.image.clone(),
        command: record.spec.command.clone(),
        args: record.spec.args.clone(),
        repository: record.spec.repository.clone(),
        commit_sha: record.spec.commit_sha.clone(),
        triggered_by: record.spec.triggered_by.clone(),
        reason: record.spec.reason.clone(),
        priority: record.spec.priority,
        created_at: Some(timestamp(record.created_at)),
        ended_at: record.ended_at.map(timestamp),
        error_message: why(record),
        metadata: record.spec.metadata.clone().into_iter().collect(),
        ..proto::Task::default()
    };
    for worker in &record.workers {
        let count = match status_of(worker) {
            "pending" => &mut task.pending_workers,
            "running" => &mut task.running_workers,
            "succeeded" => &mut task.succeeded_workers,
            _ => &mut task.failed_workers,
        };
        *count += 1;
    }
    task
}

#[tonic::async_trait]
impl TaskService for Tasks {
    async fn list_tasks(&self, request: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        let call = async |channel, request| client(channel).list_tasks(request).await;
        if let Some(answer) = self.desk.ask_leader(&request, call).await {
            return answer;
        }
        let request = request.into_inner();
        let before = position(&request.page_token)?;
        let mut states = HashSet::new();
        for state in &request.states {
            match TaskState::try_from(*state) {
                Ok(state) if state != TaskState::Unspecified => states.insert(state),
                _ => return Err(status::invalid_argument("states", format!("{state} is no state of a task"))),
            };
        }
        let size = page_size(request.page_size);
        let wanted = |record: &Record| states.is_empty() || states.contains(&state(record));
        let page = self.desk.board().await?.page(before.as_ref(), size, wanted);
        let last = page.last().filter(|_| page.len() == size);
        let next_page_token = last.map_or_else(String::new, |last| format!("{}.{}", last.created_at, last.task_id));
        let tasks = page.iter().map(|record| message(record)).collect();
        Ok(Response::new(ListTasksResponse { tasks, next_page_token }))
    }

    async fn get_task(&self, request: Request<GetTaskRequest>) -> Result<Response<proto::Task>, Status> {
        match self.record(&request.get_ref().task_id).await {
            Ok(record) => Ok(Response::new(message(&record))),
            // The store is away; the leader remembers.
            Err(status) if status.code() == Code::Unavailable => {
                let call = async |channel, request| client(channel).get_task(request).await;
                self.desk.ask_leader(&request, call).await.unwrap_or(Err(status))
            }
            Err(status) => Err(status),
        }
    }

    async fn delete_task(&self, request: Request<DeleteTaskRequest>) -> Result<Response<DeleteTaskResponse>, Status> {
        let call = async |channel, request| client(channel).delete_task(request).await;
        if let Some(answer) = self.desk.ask_leader(&request, call).await {
            return answer;
        }
        let task_id = request.into_inner().task_id;
        if task_id.is_empty() {
            return Err(status::invalid_argument("task_id", "must not be empty"));
        }
        let lead = self.desk.lead().ok_or_else(|| self.desk.elsewhere())?;
        match lead.handle.delete(task_id.clone()).await {
            Ok(()) => Ok(Response::new(DeleteTaskResponse {})),
            Err(DeleteError::NotFound) => Err(status::not_found("task", task_id)),
            Err(DeleteError::Live) => {
                let why = "the task has not ended; cancel it first (ScaleDown with worker_count 0)";
                Err(status::precondition("LIVE", format!("task/{task_id}"), why))
            }
            Err(DeleteError::Remains(why)) => Err(status::precondition("REMAINS", format!("task/{task_id}"), why)),
            Err(DeleteError::Apply(error)) => Err(not_applied(error)),
        }
    }

    type WatchWorkersStream = BoxStream<'static, Result<WatchWorkersResponse, Status>>;

    async fn watch_workers(
        &self,
        request: Request<WatchWorkersRequest>,
    ) -> Result<Response<Self::WatchWorkersStream>, Status> {
        let call = async |channel, request| client(channel).watch_workers(request).await;
        if let Some(answer) = self.desk.ask_leader(&request, call).await {
            return Ok(Response::new(until_drained(answer?.into_inner(), &self.drain)));
        }
        let Lead { handle, publisher } = self.desk.lead().ok_or_else(|| self.desk.elsewhere())?;
        let task_id = request.into_inner().task_id;
        // From before the look at the state, so that nothing falls between.
        let events = publisher.watch();
        let records = if task_id.is_empty() { handle.board().live() } else { vec![self.record(&task_id).await?] };
        let (sender, receiver) = mpsc::channel(AHEAD);
        let watcher = Watcher {
            task_id: Some(task_id).filter(|task_id| !task_id.is_empty()),
            handle,
            driver: Arc::clone(&self.driver),
            sender,
        };
        let drain = self.drain.clone();
        self.watchers.spawn(async move {
            let gone = watcher.sender.clone();
            tokio::select! {
                _ = watcher.run(records, events) => {}
                () = gone.closed() => {}
                () = drain.requested() => {
                    // A full queue belongs to a reader that does not read.
                    let _ = gone.try_send(Err(stopping()));
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    async fn list_dead_letters(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Result<Response<ListDeadLettersResponse>, Status> {
        let request = request.into_inner();
        let size = page_size(request.page_size);
        let after = Some(request.page_token.as_str()).filter(|token| !token.is_empty());
        let letters = self.dead_letters()?.list(size, after).await.map_err(|error| store_failed(&error))?;
        let last = letters.last().filter(|_| letters.len() == size);
        let next_page_token = last.map_or_else(String::new, |last| last.id.clone());
        let dead_letters = letters
            .into_iter()
            .map(|letter| proto::DeadLetter {
                id: letter.id,
                entry_id: letter.entry.to_string(),
                reason: letter.reason,
                fields: fields(letter.fields),
                dead_at: Some(timestamp(letter.dead_at)),
            })
            .collect();
        Ok(Response::new(ListDeadLettersResponse { dead_letters, next_page_token }))
    }

    async fn replay_dead_letter(
        &self,
        request: Request<ReplayDeadLetterRequest>,
    ) -> Result<Response<ReplayDeadLetterResponse>, Status> {
        let id = request.into_inner().id;
        if id.is_empty() {
            return Err(status::invalid_argument("id", "must not be empty; ListDeadLetters tells it"));
        }
        match self.dead_letters()?.replay(&id).await.map_err(|error| store_failed(&error))? {
            Some(entry) => Ok(Response::new(ReplayDeadLetterResponse { entry_id: entry.to_string() })),
            None => Err(status::not_found("dead letter", id)),
        }
    }
}

fn client(channel: Channel) -> TaskServiceClient<Channel> {
    TaskServiceClient::new(channel).max_decoding_message_size(usize::MAX)
}

fn stopping() -> Status {
    status::unavailable(std::time::Duration::from_secs(1), "the scaler is stopping")
}

/// What the leader sends, until this replica ends.
fn until_drained(
    stream: tonic::Streaming<WatchWorkersResponse>,
    drain: &Drain,
) -> BoxStream<'static, Result<WatchWorkersResponse, Status>> {
    let end = futures::stream::once(drain.token().cancelled_owned()).map(|()| Err(stopping()));
    // Whichever comes first: after the leader's last word nothing is waited for.
    let told = stream.map(Some).chain(futures::stream::once(async { None }));
    let all = futures::stream::select(told, end.map(Some));
    let mut ended = false;
    let until_first_end = all.take_while(move |item| {
        let more = !ended && item.is_some();
        ended |= item.as_ref().is_some_and(Result::is_err);
        std::future::ready(more)
    });
    until_first_end.filter_map(std::future::ready).boxed()
}

fn fields(fields: BTreeMap<String, String>) -> HashMap<String, String> {
    fields.into_iter().collect()
}

/// One reader of WatchWorkers.
struct Watcher {
    task_id: Option<String>,
    handle: Handle,
    driver: Arc<dyn Driver>,
    sender: mpsc::Sender<Result<WatchWorkersResponse, Status>>,
}

impl Watcher {
    async fn send(&self, kind: Kind) -> Option<()> {
        self.sender.send(Ok(WatchWorkersResponse { kind: Some(kind) })).await.ok()
    }

    /// Ends with the task, or (`None`) with the reader.
    async fn run(&self, records: Vec<Arc<Record>>, mut events: broadcast::Receiver<Arc<WorkerEvent>>) -> Option<()> {
        let mut told = HashSet::new();
        for record in records {
            for event in (Teller { driver: &*self.driver, record: &record }).all(record.created_at) {
                told.insert(event.event_id.clone());
                self.send(Kind::Event(event)).await?;
            }
            if self.task_id.is_some() && record.phase.is_terminal() {
                return self.send(Kind::TaskEnded(message(&record))).await;
            }
        }
        loop {
            match events.recv().await {
                Ok(event) => {
                    let mine = self.task_id.as_ref().is_none_or(|task_id| *task_id == event.task_id);
                    if !mine || told.remove(&event.event_id) {
                        continue;
                    }
                    let ended = event.r#type() == Type::TaskEnded;
                    self.send(Kind::Event(WorkerEvent::clone(&event))).await?;
                    if ended && self.task_id.is_some() {
                        self.ended().await?;
                        return Some(());
                    }
                }
                Err(RecvError::Lagged(skipped)) => {
                    self.send(Kind::Skipped(skipped)).await?;
                    // Its end may have been among them.
                    self.ended().await?;
                }
                Err(RecvError::Closed) => return Some(()),
            }
            if self.sender.is_closed() {
                return None;
            }
        }
    }

    /// Tells the task's end, if one was named and has ended: then `None`.
    async fn ended(&self) -> Option<()> {
        let Some(task_id) = &self.task_id else { return Some(()) };
        match self.handle.board().get(task_id) {
            Some(record) if record.phase.is_terminal() => {
                self.send(Kind::TaskEnded(message(&record))).await?;
                None
            }
            Some(_) => Some(()),
            // It was there when this began, and what has not ended stays.
            None => {
                let why = format!(
                    "the task `{task_id}` has ended, and is not held any more: GetTask tells whether it is kept"
                );
                self.sender.send(Err(Status::not_found(why))).await.ok()?;
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Class, Outcome, Trouble, Worker, WorkerPhase};

    #[test]
    fn a_task_says_what_its_workers_wait_for() {
        let worker = |index, why: &str| Worker {
            waiting: (!why.is_empty()).then(|| Outcome {
                class: Class::Image,
                exit_code: None,
                signal: None,
                message: why.to_owned(),
            }),
            ..Worker::queued(index, 1)
        };
        let record = |workers: Vec<Worker>| Record {
            task_id: "t".into(),
            version: 1,
            spec: Arc::default(),
            wanted: 3,
            phase: Phase::Live,
            workers,
            created_at: 0,
            ended_at: None,
            last_entry: None,
            error: None,
        };
        let told = |workers: Vec<Worker>| message(&record(workers)).error_message;
        assert_eq!(told(vec![worker(0, "")]), "");
        assert_eq!(told(vec![worker(0, "no image")]), "waiting: no image");
        assert_eq!(told(vec![worker(0, ""), worker(1, "no image")]), "worker 1 waits: no image");
        let all = vec![worker(0, "no image"), worker(1, "no node"), worker(2, "no node")];
        assert_eq!(told(all), "worker 0 and 2 more wait: no image");
        let troubled = |index| {
            let why = worker(index, "node n is away").waiting.unwrap();
            Worker { trouble: Some(Trouble { why, since: 1 }), ..worker(index, "no image") }
        };
        assert_eq!(told(vec![troubled(0)]), "node n is away");
        assert_eq!(told(vec![worker(0, "no image"), troubled(1)]), "worker 1: node n is away");
        // What keeps a cancelled task from its end says more than that it is cancelled; it never ran.
        let stopping = Worker { phase: WorkerPhase::Stopping, ..troubled(0) };
        let cancelling = Record { phase: Phase::Cancelling, error: Some("cancelled".into()), ..record(vec![stopping]) };
        let task = message(&cancelling);
        assert_eq!((task.pending_workers, task.running_workers), (1, 0));
        assert_eq!(task.error_message, "node n is away");
        let cancelled = Record { phase: Phase::Cancelled, workers: Vec::new(), ..cancelling };
        assert_eq!(message(&cancelled).error_message, "cancelled");
    }
}
