//! A log server that keeps what it gets in memory, checks the protocol, and misbehaves when told to.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use otto_proto::block::DecodedBlock;
use otto_proto::digest::Digest;
use otto_proto::v1::log_batch_request::Kind as Ask;
use otto_proto::v1::log_batch_response::Kind as Answer;
use otto_proto::v1::log_streaming_service_server::{LogStreamingService, LogStreamingServiceServer};
use otto_proto::v1::*;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use crate::agent::{PATIENCE, eventually};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Line {
    pub(crate) sequence: u64,
    pub(crate) source: LogSource,
    pub(crate) level: LogLevel,
    pub(crate) time: i64,
    pub(crate) bytes: Vec<u8>,
}

/// One run, as stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Run {
    pub(crate) lines: Vec<Line>,
    pub(crate) gaps: Vec<LogGap>,
    pub(crate) finish: Option<FinishRun>,
    pub(crate) metadata: Option<WorkerMetadata>,
    expected: u64,
}

impl Run {
    /// All bytes of a source, or of both.
    pub(crate) fn text(&self, source: Option<LogSource>) -> Vec<u8> {
        let lines = self.lines.iter().filter(|line| source.is_none_or(|source| line.source == source));
        lines.flat_map(|line| line.bytes.iter().copied()).collect()
    }

    pub(crate) fn messages(&self) -> Vec<String> {
        self.lines.iter().map(|line| String::from_utf8_lossy(&line.bytes).trim_end_matches('\n').to_owned()).collect()
    }

    fn assert_complete(&self, digest: bool) {
        let finish = self.finish.as_ref().expect("finished");
        assert_eq!(finish.last_sequence, self.expected - 1);
        if digest {
            let mut computed = Digest::new();
            self.lines.iter().for_each(|line| computed.update(&line.bytes));
            assert_eq!(finish.digest, computed.finish().to_vec());
        }
    }
}

/// What goes wrong. Counters are used up.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults {
    /// So many streams break after so many messages.
    pub(crate) cuts: Vec<usize>,
    /// So many blocks are answered RETRY, with this delay.
    pub(crate) retries: u32,
    pub(crate) retry_delay_ms: u32,
    /// Blocks are taken without an acknowledgement; at this one RETRY is answered, and what was taken is lost.
    pub(crate) forget_at_block: Option<u32>,
    /// Blocks that begin there or later are refused, so many.
    pub(crate) drop_from: Option<u64>,
    pub(crate) drops: u32,
    /// Before each acknowledgement.
    pub(crate) ack_delay: Duration,
    /// Registrations answered SERVER_FULL.
    pub(crate) full: u32,
    pub(crate) config: LoggingConfig,
    /// Largest message the transport takes, bytes.
    pub(crate) message_limit: Option<usize>,
    /// No answer at all, to anything.
    pub(crate) mute: bool,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) runs: HashMap<(String, String, String), Run>,
    registered: HashSet<(String, String)>,
    pub(crate) registrations: u32,
    pub(crate) streams: u32,
    pub(crate) blocks: u32,
    pub(crate) compressed: u32,
    pub(crate) largest_block_lines: u32,
    /// When the first RETRY with a delay was answered, and how long after it what it was about came again.
    pub(crate) first_retry: Option<Instant>,
    pub(crate) came_again_after: Option<Duration>,
    pub(crate) faults: Faults,
}

#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<State>>);

impl Store {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// The only run.
    pub(crate) fn run(&self) -> Run {
        let state = self.lock();
        assert_eq!(state.runs.len(), 1, "{:?}", state.runs.keys());
        state.runs.values().next().unwrap().clone()
    }
}

/// The server. Stopped when dropped.
pub(crate) struct Server {
    pub(crate) store: Store,
    address: SocketAddr,
    /// Keeps others from the address while nobody listens there.
    _reserved: TcpSocket,
    /// Of its own, so that it can end at once with all its connections.
    runtime: Option<Runtime>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.vanish();
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::start_with(Faults::default()).await
    }

    pub(crate) async fn start_with(faults: Faults) -> Self {
        let mut server = Self::absent().await;
        server.store.lock().faults = faults;
        server.appear().await;
        server
    }

    /// An address where nobody listens yet.
    pub(crate) async fn absent() -> Self {
        let reserved = TcpSocket::new_v4().unwrap();
        reserved.set_reuseaddr(true).unwrap();
        reserved.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = reserved.local_addr().unwrap();
        Server { store: Store::default(), address, _reserved: reserved, runtime: None }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) async fn appear(&mut self) {
        let faults = self.store.lock().faults.clone();
        let mut service = LogStreamingServiceServer::new(Service { store: self.store.clone() });
        if let Some(limit) = faults.message_limit {
            service = service.max_decoding_message_size(limit);
        }
        let listener = eventually("the address is free", || std::net::TcpListener::bind(self.address).ok()).await;
        listener.set_nonblocking(true).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await.unwrap();
        });
        self.runtime = Some(runtime);
    }

    /// Ends at once, connections too. What is stored stays.
    pub(crate) fn vanish(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.store.lock().registered.clear();
    }

    /// The finished only run.
    pub(crate) async fn finished(&self) -> Run {
        eventually("the run is finished", || {
            let state = self.store.lock();
            state.runs.values().all(|run| run.finish.is_some()).then_some(())?;
            (!state.runs.is_empty()).then_some(())
        })
        .await;
        self.store.run()
    }

    /// The finished only run; everything is there and the digest is right.
    pub(crate) async fn complete(&self) -> Run {
        let run = self.finished().await;
        run.assert_complete(true);
        run
    }

    /// As [`Server::complete`], where the agent cannot know the digest.
    pub(crate) async fn complete_without_digest(&self) -> Run {
        let run = self.finished().await;
        run.assert_complete(false);
        assert!(run.finish.as_ref().unwrap().digest.is_empty());
        run
    }
}

struct Service {
    store: Store,
}

type Key = (String, String, String);

#[tonic::async_trait]
impl LogStreamingService for Service {
    type StreamLogsStream = ReceiverStream<Result<LogResponse, Status>>;
    type StreamLogBatchesStream = ReceiverStream<Result<LogBatchResponse, Status>>;

    async fn register_worker(
        &self,
        request: Request<WorkerRegistration>,
    ) -> Result<Response<RegistrationResponse>, Status> {
        if self.store.lock().faults.mute {
            tokio::time::sleep(PATIENCE * 2).await;
        }
        let request = request.into_inner();
        let mut state = self.store.lock();
        state.registrations += 1;
        let mut response =
            RegistrationResponse { config: Some(state.faults.config), ..RegistrationResponse::default() };
        if state.faults.full > 0 {
            state.faults.full -= 1;
            response.set_status(registration_response::Status::ServerFull);
            return Ok(Response::new(response));
        }
        state.registered.insert((request.task_id.clone(), request.worker_id.clone()));
        let key = (request.task_id, request.worker_id, request.run_id);
        if state.runs.contains_key(&key) {
            response.set_status(registration_response::Status::AlreadyRegistered);
        }
        let run = state.runs.entry(key).or_insert_with(|| Run { expected: 1, ..Run::default() });
        run.metadata = request.metadata;
        Ok(Response::new(response))
    }

    async fn stream_logs(&self, _: Request<Streaming<LogEntry>>) -> Result<Response<Self::StreamLogsStream>, Status> {
        panic!("a server with the batch method gets batches");
    }

    async fn upload_logs(
        &self,
        _: Request<Streaming<LogBatchRequest>>,
    ) -> Result<Response<UploadLogsResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn stream_log_batches(
        &self,
        request: Request<Streaming<LogBatchRequest>>,
    ) -> Result<Response<Self::StreamLogBatchesStream>, Status> {
        let mut input = request.into_inner();
        let (sender, receiver) = mpsc::channel(16);
        let store = self.store.clone();
        let cut = {
            let mut state = store.lock();
            state.streams += 1;
            if state.faults.cuts.is_empty() { None } else { Some(state.faults.cuts.remove(0)) }
        };
        tokio::spawn(async move {
            let ended = serve(&store, &mut input, &sender, cut).await;
            if let Err(status) = ended {
                let _ = sender.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

async fn serve(
    store: &Store,
    input: &mut Streaming<LogBatchRequest>,
    answers: &mpsc::Sender<Result<LogBatchResponse, Status>>,
    cut: Option<usize>,
) -> Result<(), Status> {
    let answer = async |kind| {
        let _ = answers.send(Ok(LogBatchResponse { kind: Some(kind) })).await;
    };
    let Some(LogBatchRequest { kind: Some(Ask::Open(open)) }) = input.message().await? else {
        panic!("the first message is `open`");
    };
    let key: Key = (open.task_id, open.worker_id, open.run_id);
    let opened = {
        let mut state = store.lock();
        if !state.registered.contains(&(key.0.clone(), key.1.clone())) {
            return Err(Status::failed_precondition("not registered"));
        }
        let config = Some(state.faults.config);
        let run = state.runs.get_mut(&key).expect("registered");
        if open.first_available > run.expected {
            run.gaps.push(LogGap {
                first_sequence: run.expected,
                last_sequence: open.first_available - 1,
                reason: log_gap::Reason::ServerLost.into(),
                message: String::new(),
            });
            run.expected = open.first_available;
        }
        RunOpened { expected_sequence: run.expected, config, finished: run.finish.is_some() }
    };
    answer(Answer::Opened(opened)).await;
    let mut messages = 0;
    while let Some(message) = input.message().await? {
        messages += 1;
        if cut.is_some_and(|cut| messages > cut) {
            return Err(Status::unknown("cut by the test"));
        }
        let delay = store.lock().faults.ack_delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let kind = handle(&mut store.lock(), &key, message.kind.expect("a kind"));
        let finished = matches!(kind, Some(Answer::Finished(_)));
        if let Some(kind) = kind {
            answer(kind).await;
        }
        if finished {
            return Ok(());
        }
    }
    Ok(())
}

fn handle(state: &mut State, key: &Key, ask: Ask) -> Option<Answer> {
    let run = state.runs.get_mut(key).expect("opened");
    let retry =
        |expected, delay_ms| Some(Answer::Retry(RunRetry { sequence: expected, delay_ms, message: "test".to_owned() }));
    match ask {
        Ask::Open(_) => panic!("open twice"),
        Ask::Block(block) => {
            state.blocks += 1;
            state.compressed += u32::from(block.compression() == Compression::Zstd);
            state.largest_block_lines = state.largest_block_lines.max(block.line_count);
            block.check().expect("a sound block");
            if block.end_sequence() <= run.expected {
                return Some(Answer::Ack(RunAck { sequence: run.expected - 1 }));
            }
            if block.first_sequence != run.expected {
                return retry(run.expected, 0);
            }
            if let Some(first) = state.first_retry {
                state.came_again_after.get_or_insert(first.elapsed());
            }
            if state.faults.retries > 0 {
                state.faults.retries -= 1;
                state.first_retry.get_or_insert_with(Instant::now);
                return retry(run.expected, state.faults.retry_delay_ms);
            }
            if state.faults.drop_from.is_some_and(|from| block.first_sequence >= from) && state.faults.drops > 0 {
                state.faults.drops -= 1;
                let (first_sequence, last_sequence) = (block.first_sequence, block.end_sequence() - 1);
                let reason = log_gap::Reason::Refused.into();
                run.gaps.push(LogGap { first_sequence, last_sequence, reason, message: String::new() });
                run.expected = block.end_sequence();
                return Some(Answer::Drop(RunDrop { first_sequence, last_sequence, message: "test".to_owned() }));
            }
            if state.faults.forget_at_block == Some(state.blocks) {
                state.faults.forget_at_block = None;
                let expected = run.expected;
                run.lines.clear();
                run.expected = 1;
                return retry(expected, 0);
            }
            for line in DecodedBlock::decode(&block).expect("a block that can be read").lines() {
                run.lines.push(Line {
                    sequence: line.sequence,
                    source: line.attributes.source,
                    level: line.attributes.level,
                    time: line.attributes.time_unix_nanos,
                    bytes: line.bytes.to_vec(),
                });
            }
            run.expected = block.end_sequence();
            if state.faults.forget_at_block.is_some() {
                return None;
            }
            Some(Answer::Ack(RunAck { sequence: run.expected - 1 }))
        }
        Ask::Gap(gap) => {
            if gap.first_sequence != run.expected {
                return retry(run.expected, 0);
            }
            run.expected = run.expected.max(gap.last_sequence + 1);
            run.gaps.push(gap);
            Some(Answer::Ack(RunAck { sequence: run.expected - 1 }))
        }
        Ask::Finish(finish) => {
            if finish.last_sequence + 1 != run.expected {
                return retry(run.expected, 0);
            }
            let missing_lines =
                run.gaps.iter().map(|gap| (gap.last_sequence + 1).saturating_sub(gap.first_sequence)).sum();
            run.finish = Some(finish);
            Some(Answer::Finished(RunFinished { last_sequence: run.expected - 1, missing_lines }))
        }
    }
}

/// The server's data is gone.
pub(crate) fn lose_everything(store: &Store) {
    store.lock().runs.clear();
}

/// A way to a server on which connections can go silent, as when a machine on the way is gone.
pub(crate) struct Tunnel {
    address: SocketAddr,
    block: watch::Sender<bool>,
    count: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Tunnel {
    pub(crate) async fn to(server: &Server) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (target, (block, _), count) = (server.address, watch::channel(false), Arc::<AtomicU32>::default());
        let (sender, counter) = (block.clone(), Arc::clone(&count));
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                counter.fetch_add(1, Ordering::Relaxed);
                // Those that come later are not blocked.
                sender.send_replace(false);
                let mut blocked = sender.subscribe();
                connections.spawn(async move {
                    let mut far = TcpStream::connect(target).await.unwrap();
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        _ = async { blocked.wait_for(|blocked| *blocked).await.map(drop) } => {}
                    }
                    std::future::pending::<()>().await;
                });
            }
        });
        Tunnel { address, block, count, task }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn block(&self) {
        self.block.send_replace(true);
    }

    pub(crate) fn connections(&self) -> u32 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.task.abort();
    }
}
