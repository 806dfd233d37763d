//! A log server as the earlier system has it: no batch method; a session ends with its stream; entries of an
//! unregistered worker are dropped; an empty message is answered RETRY every time; responses carry no sequence; little is
//! taken at a time; errors are UNKNOWN.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use otto_proto::v1::log_streaming_service_server::{LogStreamingService, LogStreamingServiceServer};
use otto_proto::v1::*;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// What it stored, and how it behaves.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) entries: Vec<LogEntry>,
    pub(crate) registrations: u32,
    pub(crate) dropped_unregistered: u32,
    pub(crate) registered: HashSet<String>,
    /// Streams that break with UNKNOWN after so many entries.
    pub(crate) cuts: Vec<usize>,
    /// Every so manieth entry is answered RETRY the first time.
    pub(crate) retry_every: usize,
    pub(crate) seen: usize,
    pub(crate) config: LoggingConfig,
}

pub(crate) struct LegacyServer {
    pub(crate) state: Arc<Mutex<State>>,
    url: String,
    task: JoinHandle<()>,
}

impl LegacyServer {
    pub(crate) async fn start(state: State) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Mutex::new(state));
        let service = LogStreamingServiceServer::new(Service(Arc::clone(&state)));
        let server = tonic::transport::Server::builder().add_service(service);
        let task = tokio::spawn(async move {
            server.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        LegacyServer { state, url, task }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    pub(crate) fn messages(&self) -> Vec<String> {
        self.state.lock().unwrap().entries.iter().map(|entry| entry.message.clone()).collect()
    }
}

impl Drop for LegacyServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Service(Arc<Mutex<State>>);

#[tonic::async_trait]
impl LogStreamingService for Service {
    type StreamLogsStream = ReceiverStream<Result<LogResponse, Status>>;
    type StreamLogBatchesStream = ReceiverStream<Result<LogBatchResponse, Status>>;

    async fn register_worker(
        &self,
        request: Request<WorkerRegistration>,
    ) -> Result<Response<RegistrationResponse>, Status> {
        let mut state = self.0.lock().unwrap();
        state.registrations += 1;
        state.registered.insert(request.into_inner().worker_id);
        Ok(Response::new(RegistrationResponse { config: Some(state.config), ..RegistrationResponse::default() }))
    }

    async fn stream_logs(
        &self,
        request: Request<Streaming<LogEntry>>,
    ) -> Result<Response<Self::StreamLogsStream>, Status> {
        let mut input = request.into_inner();
        // As a Go server: not even headers before the first entry.
        let first = input.message().await?;
        let (sender, receiver) = mpsc::channel(16);
        let state = Arc::clone(&self.0);
        let cut = {
            let mut state = state.lock().unwrap();
            if state.cuts.is_empty() { None } else { Some(state.cuts.remove(0)) }
        };
        tokio::spawn(async move {
            let mut next = first;
            let mut count = 0;
            let mut worker = None;
            while let Some(entry) = next {
                count += 1;
                worker = Some(entry.worker_id.clone());
                if cut.is_some_and(|cut| count > cut) {
                    let _ = sender.send(Err(Status::unknown("something went wrong"))).await;
                    break;
                }
                let status = answer(&mut state.lock().unwrap(), entry);
                let response = LogResponse { status: status.into(), ..LogResponse::default() };
                if sender.send(Ok(response)).await.is_err() {
                    break;
                }
                next = input.message().await.ok().flatten();
            }
            if let Some(worker) = worker {
                state.lock().unwrap().registered.remove(&worker);
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn stream_log_batches(
        &self,
        _: Request<Streaming<LogBatchRequest>>,
    ) -> Result<Response<Self::StreamLogBatchesStream>, Status> {
        Err(Status::unimplemented("unknown method StreamLogBatches"))
    }

    async fn upload_logs(
        &self,
        _: Request<Streaming<LogBatchRequest>>,
    ) -> Result<Response<UploadLogsResponse>, Status> {
        Err(Status::unimplemented("unknown method UploadLogs"))
    }
}

fn answer(state: &mut State, entry: LogEntry) -> log_response::Status {
    use log_response::Status as S;
    if !state.registered.contains(&entry.worker_id) {
        state.dropped_unregistered += 1;
        return S::Drop;
    }
    if entry.message.is_empty() {
        return S::Retry;
    }
    if state.config.max_message_size > 0 && entry.message.len() > state.config.max_message_size as usize {
        return S::Drop;
    }
    state.seen += 1;
    if state.retry_every > 0 && state.seen.is_multiple_of(state.retry_every) {
        return S::Retry;
    }
    state.entries.push(entry);
    S::Ack
}
