//! What the tests of the HTTP side share: the program, a client that hides nothing, and workers.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use otto_proto::block::{Attributes, Builder};
use otto_proto::v1::log_batch_request::Kind;
use otto_proto::v1::log_batch_response::Kind as Answer;
use otto_proto::v1::log_streaming_service_client::LogStreamingServiceClient;
use otto_proto::v1::worker_event_service_client::WorkerEventServiceClient;
use otto_proto::v1::{
    FinishRun, LogBatchRequest, LogBatchResponse, LogGap, LogLevel, LogSource, OpenRun, ReportWorkerEventsRequest,
    WorkerEvent, WorkerRegistration,
};
use otto_testkit::{LogIngest, PATIENCE};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tonic::Streaming;
use tonic::transport::Channel;

/// The program with a directory of its own.
pub(crate) struct Server {
    pub(crate) program: LogIngest,
    _dir: TempDir,
}

impl Server {
    pub(crate) async fn start(extra: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { program: LogIngest::start(dir.path(), extra).await.unwrap(), _dir: dir }
    }

    pub(crate) fn http_addr(&self) -> String {
        self.program.http_url().trim_start_matches("http://").to_owned()
    }

    /// Sends a request; the body is read as it is asked for.
    pub(crate) async fn open(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
        let stream = TcpStream::connect(self.http_addr()).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        // Ends with the response's body.
        tokio::spawn(connection);
        let mut request = Request::builder().method(method).uri(path).header("host", "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = sender.send_request(request.body(Empty::<Bytes>::new()).unwrap());
        tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap()
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Reply {
        let (parts, body) = self.open(method, path, headers).await.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
        Reply { status: parts.status, headers: parts.headers, body }
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send("GET", path, &[]).await
    }

    /// A 200 with JSON.
    pub(crate) async fn json(&self, path: &str) -> Value {
        let reply = self.get(path).await;
        assert_eq!(reply.status, StatusCode::OK, "{path}: {}", reply.text());
        assert_eq!(reply.header("content-type"), "application/json", "{path}");
        reply.json()
    }

    /// Opens a stream of events.
    pub(crate) async fn events(&self, path: &str, last_id: Option<&str>) -> Events {
        let headers: Vec<(&str, &str)> = last_id.map(|id| ("last-event-id", id)).into_iter().collect();
        let response = self.open("GET", path, &headers).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Events { body: response.into_body(), buffer: Vec::new() }
    }

    pub(crate) async fn report(&self, events: Vec<WorkerEvent>) {
        let mut client = WorkerEventServiceClient::new(self.program.channel().await.unwrap());
        client.report_worker_events(ReportWorkerEventsRequest { events }).await.unwrap();
    }
}

pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Reply {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }
}

/// One Server-Sent Event.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

/// A stream of events, read as a browser does.
pub(crate) struct Events {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Events {
    /// The next block, comments included (as an event named ":"); `None` at the end.
    pub(crate) async fn next_raw(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(parse(std::str::from_utf8(&block).unwrap()));
            }
            let frame = tokio::time::timeout(PATIENCE, self.body.frame()).await.expect("an event in time")?;
            // A server that was killed cuts the body off: for a reader that is the end too.
            self.buffer.extend_from_slice(&frame.ok()?.into_data().unwrap());
        }
    }

    /// The next event. Comments keep a stream alive for ever, but not a test.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        let next = async {
            loop {
                let event = self.next_raw().await?;
                if event.name != ":" {
                    return Some(event);
                }
            }
        };
        within(PATIENCE, "an event", next).await
    }

    /// Reads on to an event of this name.
    pub(crate) async fn until(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await.unwrap_or_else(|| panic!("the stream ended before `{name}`"));
            if event.name == name {
                return event;
            }
        }
    }
}

fn parse(block: &str) -> Event {
    let mut event = Event { name: ":".into(), id: None, data: Value::Null };
    for line in block.lines() {
        if let Some(name) = line.strip_prefix("event: ") {
            event.name = name.into();
        } else if let Some(id) = line.strip_prefix("id: ") {
            event.id = Some(id.into());
        } else if let Some(data) = line.strip_prefix("data: ") {
            event.data = serde_json::from_str(data).unwrap();
        }
    }
    event
}

/// Time of line 1 of every test's log: 2026-01-31T12:00:00Z.
pub(crate) const NOON: i64 = 1_769_860_800_000_000_000;

/// A line of stdout without a level, `millis` after noon.
pub(crate) fn at(millis: i64) -> Attributes {
    Attributes { time_unix_nanos: NOON + millis * 1_000_000, level: LogLevel::Unspecified, source: LogSource::Stdout }
}

/// A worker's connection.
pub(crate) struct Worker {
    requests: mpsc::Sender<LogBatchRequest>,
    answers: Streaming<LogBatchResponse>,
    pub(crate) next: u64,
    acknowledged: u64,
}

impl Worker {
    /// Registers and opens the run "r-WORKER".
    pub(crate) async fn connect(server: &Server, task: &str, worker: &str) -> Self {
        Self::over(server.program.channel().await.unwrap(), task, worker, &format!("r-{worker}")).await
    }

    pub(crate) async fn over(channel: Channel, task: &str, worker: &str, run: &str) -> Self {
        let mut client = LogStreamingServiceClient::new(channel);
        let registration = WorkerRegistration {
            worker_id: worker.into(),
            task_id: task.into(),
            run_id: run.into(),
            ..WorkerRegistration::default()
        };
        client.register_worker(registration).await.unwrap();
        let (requests, receiver) = mpsc::channel(64);
        let open = OpenRun { worker_id: worker.into(), task_id: task.into(), run_id: run.into(), first_available: 1 };
        requests.send(LogBatchRequest { kind: Some(Kind::Open(open)) }).await.unwrap();
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let answers = client.stream_log_batches(stream).await.unwrap().into_inner();
        let mut worker = Self { requests, answers, next: 1, acknowledged: 0 };
        match worker.answer().await {
            Answer::Opened(opened) => worker.next = opened.expected_sequence,
            other => panic!("{other:?}"),
        }
        worker
    }

    async fn answer(&mut self) -> Answer {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer in time");
        answer.unwrap().unwrap().kind.unwrap()
    }

    /// Sends one block of lines, each with its newline if it has one.
    pub(crate) async fn send<B: AsRef<[u8]>>(&mut self, lines: impl IntoIterator<Item = (B, Attributes)>) {
        let mut builder = Builder::new();
        for (line, attributes) in lines {
            builder.push(line.as_ref(), attributes);
        }
        let lines = builder.lines();
        let block = builder.finish(self.next, Some(1)).unwrap();
        self.next += u64::from(lines);
        self.requests.send(LogBatchRequest { kind: Some(Kind::Block(block)) }).await.unwrap();
    }

    /// Sends lines and waits until they are on disk.
    pub(crate) async fn print<B: AsRef<[u8]>>(&mut self, lines: impl IntoIterator<Item = (B, Attributes)>) {
        self.send(lines).await;
        self.flushed().await;
    }

    /// Waits until everything sent is on disk.
    pub(crate) async fn flushed(&mut self) {
        while self.acknowledged + 1 < self.next {
            match self.answer().await {
                Answer::Ack(ack) => self.acknowledged = ack.sequence,
                other => panic!("{other:?}"),
            }
        }
    }

    /// Lines up to `last` will never come.
    pub(crate) async fn lose(&mut self, last: u64, reason: otto_proto::v1::log_gap::Reason) {
        let gap =
            LogGap { first_sequence: self.next, last_sequence: last, reason: reason.into(), message: String::new() };
        self.next = last + 1;
        self.requests.send(LogBatchRequest { kind: Some(Kind::Gap(gap)) }).await.unwrap();
        self.flushed().await;
    }

    /// Ends the run.
    pub(crate) async fn finish(mut self, exit_code: i32) {
        self.flushed().await;
        let finish = FinishRun { last_sequence: self.next - 1, exit_code: Some(exit_code), ..FinishRun::default() };
        self.requests.send(LogBatchRequest { kind: Some(Kind::Finish(finish)) }).await.unwrap();
        match self.answer().await {
            Answer::Finished(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// An event of a worker.
pub(crate) fn event(task: &str, worker: &str, kind: otto_proto::v1::worker_event::Type, message: &str) -> WorkerEvent {
    WorkerEvent {
        event_id: format!("{task}/{worker}/{kind:?}"),
        task_id: task.into(),
        worker_id: worker.into(),
        attempt: 1,
        r#type: kind.into(),
        time: Some(prost_types::Timestamp { seconds: NOON / 1_000_000_000, nanos: 0 }),
        message: message.into(),
        context: HashMap::from([("repository".to_owned(), "acme/rocket".to_owned())]),
        ..WorkerEvent::default()
    }
}

/// Sequences of the lines of an answer or event.
pub(crate) fn sequences(lines: &Value) -> Vec<u64> {
    lines.as_array().unwrap().iter().map(|line| line["sequence"].as_u64().unwrap()).collect()
}

/// Everything there is must come within this time.
pub(crate) async fn within<T>(limit: Duration, what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(limit, future).await.unwrap_or_else(|_| panic!("not within {limit:?}: {what}"))
}
