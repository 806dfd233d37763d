//! A running log server, and clients as others would write them.

use std::time::Duration;

use otto_testkit::{LogIngest, PATIENCE};
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use wire::*;

/// What the tests use of the contract.
pub(crate) mod wire {
    pub(crate) use otto_proto::v1::log_batch_request::Kind as Request;
    pub(crate) use otto_proto::v1::log_batch_response::Kind as Reply;
    pub(crate) use otto_proto::v1::log_query_service_client::LogQueryServiceClient;
    pub(crate) use otto_proto::v1::log_streaming_service_client::LogStreamingServiceClient;
    pub(crate) use otto_proto::v1::worker_event_service_client::WorkerEventServiceClient;
    pub(crate) use otto_proto::v1::*;
}

/// A server with a data directory of its own.
pub(crate) struct Server {
    pub(crate) ingest: LogIngest,
    pub(crate) dir: TempDir,
    clients: Clients,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(&[]).await
    }

    pub(crate) async fn with(flags: &[&str]) -> Self {
        Self::within(tempfile::tempdir().unwrap(), flags).await
    }

    /// Its data is in `dir`/log-data.
    pub(crate) async fn within(dir: TempDir, flags: &[&str]) -> Self {
        let ingest = LogIngest::start(dir.path(), flags).await.unwrap();
        let clients = Clients { url: ingest.grpc_url() };
        Self { ingest, dir, clients }
    }
}

impl std::ops::Deref for Server {
    type Target = Clients;

    fn deref(&self) -> &Clients {
        &self.clients
    }
}

/// Clients of a server.
pub(crate) struct Clients {
    pub(crate) url: String,
}

impl Clients {
    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(self.url.clone()).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn logs(&self) -> LogStreamingServiceClient<Channel> {
        LogStreamingServiceClient::new(self.channel().await)
    }

    pub(crate) async fn queries(&self) -> LogQueryServiceClient<Channel> {
        LogQueryServiceClient::new(self.channel().await)
    }

    pub(crate) async fn events(&self) -> WorkerEventServiceClient<Channel> {
        WorkerEventServiceClient::new(self.channel().await)
    }

    /// Registers, again where the server cannot now.
    pub(crate) async fn register(&self, worker: &str, run: &str) -> RegistrationResponse {
        eventually("the registration", async || {
            match self.logs().await.register_worker(registration(worker, run)).await {
                Ok(answer) => Some(answer.into_inner()),
                Err(status) => {
                    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
                    None
                }
            }
        })
        .await
    }

    /// Registers, opens a stream of batches and reads its first answer.
    pub(crate) async fn open(&self, worker: &str, run: &str) -> (Batches, RunOpened) {
        self.register(worker, run).await;
        let mut batches = Batches::begin(&mut self.logs().await).await;
        batches.send(Request::Open(open(worker, run))).await;
        let Reply::Opened(opened) = batches.next().await else { panic!("no `opened`") };
        (batches, opened)
    }

    /// All lines of a request, and the last message.
    pub(crate) async fn read(&self, request: ReadLogsRequest) -> Read {
        let stream = self.queries().await.read_logs(request).await.unwrap().into_inner();
        Read::all(stream).await
    }

    pub(crate) async fn texts(&self, worker: &str) -> Vec<String> {
        self.read(ReadLogsRequest { worker_id: worker.to_owned(), ..task() }).await.texts()
    }

    /// A run's state as readers see it.
    pub(crate) async fn run(&self, worker: &str, run: &str) -> LogRun {
        let request = ListLogWorkersRequest { task_id: TASK.to_owned() };
        let answer = self.queries().await.list_log_workers(request).await.unwrap().into_inner();
        let worker = answer.workers.into_iter().find(|known| known.worker_id == worker).unwrap();
        worker.runs.into_iter().find(|known| known.run_id == run).unwrap()
    }
}

/// Every test's task.
pub(crate) const TASK: &str = "task-1";

pub(crate) fn registration(worker: &str, run: &str) -> WorkerRegistration {
    WorkerRegistration {
        worker_id: worker.to_owned(),
        task_id: TASK.to_owned(),
        run_id: run.to_owned(),
        ..WorkerRegistration::default()
    }
}

pub(crate) fn task() -> ReadLogsRequest {
    ReadLogsRequest { task_id: TASK.to_owned(), ..ReadLogsRequest::default() }
}

pub(crate) fn open(worker: &str, run: &str) -> OpenRun {
    OpenRun { worker_id: worker.to_owned(), task_id: TASK.to_owned(), run_id: run.to_owned(), first_available: 0 }
}

pub(crate) fn entry(worker: &str, message: impl Into<String>) -> LogEntry {
    LogEntry { worker_id: worker.to_owned(), task_id: TASK.to_owned(), message: message.into(), ..LogEntry::default() }
}

/// A block of lines, `first` being the sequence of the first one and the time of each in seconds.
pub(crate) fn block(first: u64, lines: &[&str]) -> LogBlock {
    block_at(first, lines, |sequence| sequence as i64 * 1_000_000_000)
}

pub(crate) fn block_at(first: u64, lines: &[&str], time: impl Fn(u64) -> i64) -> LogBlock {
    let mut builder = otto_proto::block::Builder::new();
    for (sequence, line) in (first..).zip(lines) {
        let attributes = otto_proto::block::Attributes {
            time_unix_nanos: time(sequence),
            level: LogLevel::Info,
            source: LogSource::Stdout,
        };
        builder.push(format!("{line}\n").as_bytes(), attributes);
    }
    builder.finish(first, Some(1)).unwrap()
}

/// Lines "first" to "last" by their numbers.
pub(crate) fn numbers(first: u64, last: u64) -> Vec<String> {
    (first..=last).map(|n| format!("line {n}")).collect()
}

pub(crate) fn numbered_block(first: u64, last: u64) -> LogBlock {
    let lines = numbers(first, last);
    block(first, &lines.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Bounds every wait of a test.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

/// Something that should not come does not come at once. Only for what would come within a millisecond if it did.
pub(crate) async fn nothing_yet<T: std::fmt::Debug>(future: impl Future<Output = T>) {
    if let Ok(value) = tokio::time::timeout(Duration::from_millis(50), future).await {
        panic!("came too early: {value:?}");
    }
}

/// An open `StreamLogs`.
pub(crate) struct Entries {
    sender: Option<mpsc::Sender<LogEntry>>,
    pub(crate) replies: Streaming<LogResponse>,
}

impl Entries {
    pub(crate) async fn begin(client: &mut LogStreamingServiceClient<Channel>) -> Self {
        let (sender, receiver) = mpsc::channel(1024);
        let replies = soon("the stream", client.stream_logs(ReceiverStream::new(receiver))).await.unwrap().into_inner();
        Self { sender: Some(sender), replies }
    }

    pub(crate) async fn send(&self, entry: LogEntry) {
        // The stream may have ended; then the answer tells.
        let _ = soon("room to send", self.sender.as_ref().unwrap().send(entry)).await;
    }

    pub(crate) async fn next(&mut self) -> LogResponse {
        soon("an answer", self.replies.message()).await.unwrap().expect("the stream ended")
    }

    pub(crate) async fn exchange(&mut self, entry: LogEntry) -> LogResponse {
        self.send(entry).await;
        self.next().await
    }

    /// Sends nothing more.
    pub(crate) fn close(&mut self) {
        self.sender = None;
    }

    /// How the stream ends, after any answers.
    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        end(&mut self.replies).await
    }
}

/// An open `StreamLogBatches`.
pub(crate) struct Batches {
    sender: Option<mpsc::Sender<LogBatchRequest>>,
    pub(crate) replies: Streaming<LogBatchResponse>,
}

impl Batches {
    pub(crate) async fn begin(client: &mut LogStreamingServiceClient<Channel>) -> Self {
        let (sender, receiver) = mpsc::channel(64);
        let replies =
            soon("the stream", client.stream_log_batches(ReceiverStream::new(receiver))).await.unwrap().into_inner();
        Self { sender: Some(sender), replies }
    }

    pub(crate) async fn send(&self, kind: Request) {
        // The stream may have ended; then the answer tells.
        let message = LogBatchRequest { kind: Some(kind) };
        let _ = soon("room to send", self.sender.as_ref().unwrap().send(message)).await;
    }

    pub(crate) async fn next(&mut self) -> Reply {
        soon("an answer", self.replies.message()).await.unwrap().expect("the stream ended").kind.unwrap()
    }

    /// Waits until everything up to `sequence` is acknowledged, and nothing else is said.
    pub(crate) async fn acknowledged(&mut self, sequence: u64) {
        loop {
            match self.next().await {
                Reply::Ack(ack) if ack.sequence >= sequence => return assert_eq!(ack.sequence, sequence),
                Reply::Ack(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    pub(crate) async fn end(&mut self) -> Result<(), Status> {
        end(&mut self.replies).await
    }
}

async fn end<T>(replies: &mut Streaming<T>) -> Result<(), Status> {
    soon("the end of the stream", async {
        while replies.message().await?.is_some() {}
        Ok(())
    })
    .await
}

pub(crate) fn assert_code<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, part: &str) -> Status {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(part), "{status:?}");
    status
}

/// What a reading gave.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) lines: Vec<LogLine>,
    pub(crate) gaps: Vec<LineGap>,
    pub(crate) events: Vec<WorkerEvent>,
    pub(crate) status: Vec<LogWorker>,
    pub(crate) token: String,
}

impl Read {
    pub(crate) async fn all(mut stream: Streaming<ReadLogsResponse>) -> Self {
        let mut read = Self::default();
        while read.one(&mut stream).await {}
        assert!(!read.status.is_empty() || read.lines.is_empty(), "no status at the end");
        read
    }

    /// Takes one more message; false at the end.
    pub(crate) async fn one(&mut self, stream: &mut Streaming<ReadLogsResponse>) -> bool {
        let Some(part) = soon("a part", stream.message()).await.unwrap() else { return false };
        self.lines.extend(part.lines);
        self.gaps.extend(part.gaps);
        self.events.extend(part.events);
        self.status.extend(part.status);
        if !part.resume_token.is_empty() {
            self.token = part.resume_token;
        }
        true
    }

    pub(crate) fn texts(&self) -> Vec<String> {
        self.lines.iter().map(|line| String::from_utf8_lossy(&line.message).into_owned()).collect()
    }

    pub(crate) fn sequences(&self) -> Vec<u64> {
        self.lines.iter().map(|line| line.sequence).collect()
    }
}

/// Tries until there is a value.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    soon(what, async {
        loop {
            if let Some(value) = probe().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
}
