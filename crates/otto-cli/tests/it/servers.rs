//! A scaler and a log server that answer what a test wants, and remember what they were asked.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use otto_proto::v1::log_query_service_server::{LogQueryService, LogQueryServiceServer};
use otto_proto::v1::ottoscaler_service_server::{OttoscalerService, OttoscalerServiceServer};
use otto_proto::v1::task_service_server::{TaskService, TaskServiceServer};
use otto_proto::v1::watch_workers_response::Kind;
use otto_proto::v1::*;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::sync::Notify;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status};

pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What happens to one stream of a reader, in order.
pub(crate) enum Step {
    Part(ReadLogsResponse),
    Fail(Status),
    /// Until the test says so.
    Wait(Arc<Notify>),
    /// For as long as the reader likes.
    Hang,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) ups: Vec<ScaleRequest>,
    pub(crate) downs: Vec<ScaleRequest>,
    pub(crate) reads: Vec<ReadLogsRequest>,
    /// How often the workers of a log were asked for.
    pub(crate) lists: usize,
    pub(crate) deleted: Vec<String>,
    pub(crate) replayed: Vec<String>,
    pub(crate) pipelines: Vec<PipelineRequest>,
    /// `authorization` of the last call.
    pub(crate) token: Option<String>,

    pub(crate) scale: Option<Result<ScaleResponse, Status>>,
    /// Tasks that the scaler knows.
    pub(crate) tasks: Vec<Task>,
    pub(crate) statuses: Vec<WorkerPodStatus>,
    pub(crate) dead: Vec<DeadLetter>,
    pub(crate) delete: Option<Status>,
    pub(crate) pipeline: Option<Vec<PipelineProgress>>,
    /// Workers that the log server knows; `None`: it does not know the task.
    pub(crate) workers: Option<Vec<LogWorker>>,
    /// One list per stream that is opened; then Hang.
    pub(crate) streams: VecDeque<Vec<Step>>,
    /// The task is told as ended when this is notified, and in this way.
    pub(crate) ending: Option<(Arc<Notify>, Task)>,
}

#[derive(Clone, Default)]
pub(crate) struct Servers {
    pub(crate) state: Arc<Mutex<State>>,
    address: Option<SocketAddr>,
}

impl Servers {
    /// Both on one port.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let servers = Self { address: Some(listener.local_addr().unwrap()), ..Self::default() };
        let router = tonic::transport::Server::builder()
            .add_service(OttoscalerServiceServer::new(servers.clone()))
            .add_service(TaskServiceServer::new(servers.clone()))
            .add_service(LogQueryServiceServer::new(servers.clone()));
        tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
        servers
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address.unwrap())
    }

    pub(crate) fn set<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap())
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = otto();
        command.args(["--scaler", &self.url(), "--log-server", &self.url()]).args(arguments);
        command
    }

    pub(crate) async fn otto(&self, arguments: &[&str]) -> Said {
        run(self.command(arguments)).await
    }

    fn heard<T>(&self, request: Request<T>) -> T {
        let token = request.metadata().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        self.set(|state| state.token = token);
        request.into_inner()
    }

    fn stream(&self, request: ReadLogsRequest) -> ReceiverStream<Result<ReadLogsResponse, Status>> {
        let steps = self.set(|state| {
            state.reads.push(request);
            state.streams.pop_front().unwrap_or_else(|| vec![Step::Hang])
        });
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            for step in steps {
                let sent = match step {
                    Step::Part(part) => sender.send(Ok(part)).await,
                    Step::Fail(status) => sender.send(Err(status)).await,
                    Step::Wait(notify) => {
                        notify.notified().await;
                        Ok(())
                    }
                    Step::Hang => {
                        sender.closed().await;
                        return;
                    }
                };
                if sent.is_err() {
                    return;
                }
            }
        });
        ReceiverStream::new(receiver)
    }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The program, without what the environment of the tests may hold.
pub(crate) fn otto() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_otto"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTTO_")) {
        command.env_remove(name);
    }
    command.env_remove("TRACEPARENT").stdin(Stdio::null()).kill_on_drop(true);
    command
}

pub(crate) async fn run(mut command: Command) -> Said {
    tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").unwrap().into()
}

pub(crate) fn start(mut command: Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

pub(crate) async fn end(child: Child) -> Said {
    tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap().into()
}

pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) fn task(id: &str, state: TaskState, wanted: u32) -> Task {
    let time = prost_types::Timestamp { seconds: 1_700_000_000, nanos: 0 };
    let ended = !matches!(state, TaskState::Pending | TaskState::Running);
    Task {
        task_id: id.into(),
        state: state.into(),
        wanted_workers: wanted,
        created_at: Some(time),
        ended_at: ended.then_some(time),
        ..Task::default()
    }
}

/// A line of the only run of a worker.
pub(crate) fn line(worker: &str, sequence: u64, message: &[u8]) -> LogLine {
    LogLine {
        worker_id: worker.into(),
        run_id: "run".into(),
        sequence,
        time_unix_nanos: 1_700_000_000_000_000_000,
        source: LogSource::Stdout.into(),
        message: message.to_vec().into(),
        ..LogLine::default()
    }
}

pub(crate) fn lines(worker: &str, sequences: std::ops::RangeInclusive<u64>) -> ReadLogsResponse {
    let lines = sequences.map(|n| line(worker, n, format!("line {n}").as_bytes())).collect();
    ReadLogsResponse { lines, ..ReadLogsResponse::default() }
}

/// The last message of a stream.
pub(crate) fn status(workers: Vec<LogWorker>) -> Step {
    Step::Part(ReadLogsResponse { status: workers, ..ReadLogsResponse::default() })
}

/// A worker whose log is all there.
pub(crate) fn complete(worker: &str, lines: u64) -> LogWorker {
    let finish = FinishRun { last_sequence: lines, ..FinishRun::default() };
    let run = LogRun { run_id: "run".into(), lines, finish: Some(finish), complete: true, ..LogRun::default() };
    LogWorker { worker_id: worker.into(), runs: vec![run], ..LogWorker::default() }
}

type Stream<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl OttoscalerService for Servers {
    async fn scale_up(&self, request: Request<ScaleRequest>) -> Result<Response<ScaleResponse>, Status> {
        let request = self.heard(request);
        self.set(|state| {
            state.ups.push(request);
            state.scale.clone().unwrap_or_else(|| Ok(ScaleResponse::default())).map(Response::new)
        })
    }

    async fn scale_down(&self, request: Request<ScaleRequest>) -> Result<Response<ScaleResponse>, Status> {
        let request = self.heard(request);
        self.set(|state| {
            state.downs.push(request);
            state.scale.clone().unwrap_or_else(|| Ok(ScaleResponse::default())).map(Response::new)
        })
    }

    async fn get_worker_status(
        &self,
        request: Request<WorkerStatusRequest>,
    ) -> Result<Response<WorkerStatusResponse>, Status> {
        let task_id = self.heard(request).task_id;
        let mut workers = self.set(|state| state.statuses.clone());
        workers.retain(|worker| worker.task_id == task_id);
        Ok(Response::new(WorkerStatusResponse { workers, ..WorkerStatusResponse::default() }))
    }

    type ExecutePipelineStream = Stream<PipelineProgress>;

    async fn execute_pipeline(
        &self,
        request: Request<PipelineRequest>,
    ) -> Result<Response<Self::ExecutePipelineStream>, Status> {
        let request = self.heard(request);
        let steps = self.set(|state| {
            state.pipelines.push(request);
            state.pipeline.take()
        });
        let Some(steps) = steps else { return Err(Status::unimplemented("this version runs no pipelines")) };
        let (sender, receiver) = tokio::sync::mpsc::channel(steps.len().max(1));
        for step in steps {
            sender.try_send(Ok(step)).unwrap();
        }
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

#[tonic::async_trait]
impl TaskService for Servers {
    async fn list_tasks(&self, request: Request<ListTasksRequest>) -> Result<Response<ListTasksResponse>, Status> {
        let request = self.heard(request);
        let mut tasks = self.set(|state| state.tasks.clone());
        tasks.retain(|task| request.states.is_empty() || request.states.contains(&task.state));
        // Pages of two, so that there are several.
        let from: usize = request.page_token.parse().unwrap_or(0);
        let to = (from + 2.min(request.page_size as usize)).min(tasks.len());
        let next_page_token = if to < tasks.len() { to.to_string() } else { String::new() };
        Ok(Response::new(ListTasksResponse { tasks: tasks[from..to].to_vec(), next_page_token }))
    }

    async fn get_task(&self, request: Request<GetTaskRequest>) -> Result<Response<Task>, Status> {
        let id = self.heard(request).task_id;
        let found = self.set(|state| state.tasks.iter().find(|task| task.task_id == id).cloned());
        found.map(Response::new).ok_or_else(|| Status::not_found(format!("there is no task {id:?}")))
    }

    async fn delete_task(&self, request: Request<DeleteTaskRequest>) -> Result<Response<DeleteTaskResponse>, Status> {
        let id = self.heard(request).task_id;
        self.set(|state| {
            state.deleted.push(id);
            state.delete.clone().map_or(Ok(Response::new(DeleteTaskResponse {})), Err)
        })
    }

    type WatchWorkersStream = Stream<WatchWorkersResponse>;

    async fn watch_workers(
        &self,
        request: Request<WatchWorkersRequest>,
    ) -> Result<Response<Self::WatchWorkersStream>, Status> {
        self.heard(request);
        let ending = self.set(|state| state.ending.clone());
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        tokio::spawn(async move {
            match ending {
                Some((notify, task)) => {
                    notify.notified().await;
                    notify.notify_one();
                    let _ = sender.send(Ok(WatchWorkersResponse { kind: Some(Kind::TaskEnded(task)) })).await;
                }
                None => sender.closed().await,
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn list_dead_letters(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Result<Response<ListDeadLettersResponse>, Status> {
        self.heard(request);
        let dead_letters = self.set(|state| state.dead.clone());
        Ok(Response::new(ListDeadLettersResponse { dead_letters, next_page_token: String::new() }))
    }

    async fn replay_dead_letter(
        &self,
        request: Request<ReplayDeadLetterRequest>,
    ) -> Result<Response<ReplayDeadLetterResponse>, Status> {
        let id = self.heard(request).id;
        self.set(|state| state.replayed.push(id));
        Ok(Response::new(ReplayDeadLetterResponse { entry_id: "7-0".into() }))
    }
}

#[tonic::async_trait]
impl LogQueryService for Servers {
    async fn list_log_tasks(
        &self,
        _request: Request<ListLogTasksRequest>,
    ) -> Result<Response<ListLogTasksResponse>, Status> {
        Err(Status::unimplemented("not asked here"))
    }

    async fn list_log_workers(
        &self,
        request: Request<ListLogWorkersRequest>,
    ) -> Result<Response<ListLogWorkersResponse>, Status> {
        let id = self.heard(request).task_id;
        let workers = self.set(|state| {
            state.lists += 1;
            state.workers.clone()
        });
        let workers = workers.ok_or_else(|| Status::not_found(format!("there is no task {id:?}")))?;
        Ok(Response::new(ListLogWorkersResponse { workers, events: Vec::new() }))
    }

    type ReadLogsStream = Stream<ReadLogsResponse>;

    async fn read_logs(&self, request: Request<ReadLogsRequest>) -> Result<Response<Self::ReadLogsStream>, Status> {
        let request = self.heard(request);
        Ok(Response::new(self.stream(request)))
    }

    type TailLogsStream = Stream<ReadLogsResponse>;

    async fn tail_logs(&self, request: Request<ReadLogsRequest>) -> Result<Response<Self::TailLogsStream>, Status> {
        let request = self.heard(request);
        Ok(Response::new(self.stream(request)))
    }
}
