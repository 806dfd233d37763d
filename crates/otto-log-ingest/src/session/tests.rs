//! Sessions on a store whose disk does what the test says.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use futures::StreamExt;
use otto_log_store::{Faults, RunInfo};
use otto_proto::block::{Attributes, Builder};
use otto_proto::v1::log_batch_request::Kind as Request;
use otto_proto::v1::log_batch_response::Kind as Reply;
use otto_proto::v1::log_response::Status;
use otto_proto::v1::{
    FinishRun, LogBatchRequest, LogBatchResponse, LogBlock, LogEntry, LogGap, LogLevel, LogResponse, LogSource, OpenRun,
};
use otto_service::settings::load_from;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::outbox::{self, Replies};
use super::*;
use crate::settings::Settings;

const PATIENCE: Duration = Duration::from_secs(30);

/// A disk that can be stopped, and can be full for one write.
#[derive(Default)]
struct Disk {
    stopped: Mutex<bool>,
    goes_on: Condvar,
    full: AtomicBool,
    writes: AtomicU64,
}

struct Through(Arc<Disk>);

impl Disk {
    fn stop(&self, stopped: bool) {
        *self.stopped.lock().unwrap() = stopped;
        self.goes_on.notify_all();
    }

    fn writes(&self) -> u64 {
        self.writes.load(Ordering::SeqCst)
    }
}

impl Faults for Through {
    fn before_write(&self, _bytes: u64) -> io::Result<()> {
        let Disk { stopped, goes_on, full, writes } = &*self.0;
        writes.fetch_add(1, Ordering::SeqCst);
        // A test that fails does not hang.
        drop(goes_on.wait_timeout_while(stopped.lock().unwrap(), PATIENCE, |stopped| *stopped).unwrap());
        if full.swap(false, Ordering::SeqCst) { Err(rustix::io::Errno::NOSPC.into()) } else { Ok(()) }
    }
}

struct Setup {
    context: Context,
    disk: Arc<Disk>,
    _dir: TempDir,
}

impl Setup {
    async fn new(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data").display().to_string();
        let args = [&["x", "--data-dir", &data_dir], flags].concat();
        let settings: Settings = load_from(args, |_| None).unwrap();
        let disk = Arc::new(Disk::default());
        let mut options = settings.store.options();
        options.faults = Arc::new(Through(disk.clone()));
        let store = tokio::task::spawn_blocking(move || Store::open(options)).await.unwrap().unwrap();
        let limits = Arc::new(settings.limits);
        let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default(), store.clone());
        let registry = Registry::new(10, Duration::from_secs(3600), 10, metrics.sessions.clone());
        let context = Context {
            store,
            registry: Arc::new(registry),
            memory: memory::Memory::new(limits.max_held_bytes.as_usize()),
            limits,
            metrics,
            drain: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        Self { context, disk, _dir: dir }
    }

    async fn register(&self, worker: &str) {
        let key = key(worker);
        let run = self.context.store.open_run(&key, None).await.unwrap();
        self.context.registry.register(key.task_id, key.worker_id, run.id);
    }

    /// A stream of batches that was opened.
    async fn batches(&self, worker: &str) -> Client<LogBatchRequest, LogBatchResponse> {
        self.register(worker).await;
        let (sender, receiver) = mpsc::channel(64);
        let gone = CancellationToken::new();
        let (outbox, replies) = outbox::pair(gone.clone());
        let input = ReceiverStream::new(receiver).map(Ok::<_, End>);
        self.context.tasks.spawn(batches::run(self.context.clone(), input, outbox, gone));
        let mut client = Client { sender, replies };
        let RunKey { task_id, worker_id, run_id } = key(worker);
        client.tell(Request::Open(OpenRun { task_id, worker_id, run_id, first_available: 0 })).await;
        assert!(matches!(client.reply().await, Reply::Opened(_)));
        client
    }

    async fn entries(&self, worker: &str) -> Client<LogEntry, LogResponse> {
        self.register(worker).await;
        let (sender, receiver) = mpsc::channel(64);
        let gone = CancellationToken::new();
        let (outbox, replies) = outbox::pair(gone.clone());
        let input = ReceiverStream::new(receiver).map(Ok::<_, End>);
        self.context.tasks.spawn(entries::run(self.context.clone(), input, outbox, gone));
        Client { sender, replies }
    }

    async fn run(&self, worker: &str) -> RunInfo {
        self.context.store.find_run(&key(worker)).await.unwrap().unwrap()
    }

    fn queued(&self) -> u64 {
        self.context.store.stats().queued_records
    }
}

struct Client<M, R> {
    sender: mpsc::Sender<M>,
    replies: Replies<R>,
}

impl<M, R: outbox::Reply> Client<M, R> {
    async fn send(&self, message: M) {
        // The session may have ended; then the answer tells.
        let _ = self.sender.send(message).await;
    }

    async fn next(&mut self) -> R {
        let next = tokio::time::timeout(PATIENCE, self.replies.next()).await;
        next.expect("no answer in time").expect("the session has ended").unwrap()
    }
}

impl Client<LogBatchRequest, LogBatchResponse> {
    async fn tell(&self, kind: Request) {
        self.send(LogBatchRequest { kind: Some(kind) }).await;
    }

    async fn reply(&mut self) -> Reply {
        self.next().await.kind.unwrap()
    }

    async fn acknowledged(&mut self, sequence: u64) {
        loop {
            match self.reply().await {
                Reply::Ack(ack) if ack.sequence == sequence => return,
                Reply::Ack(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }
}

fn key(worker: &str) -> RunKey {
    RunKey { task_id: "t".to_owned(), worker_id: worker.to_owned(), run_id: "r".to_owned() }
}

fn lines(first: u64, last: u64) -> LogBlock {
    let mut builder = Builder::new();
    for n in first..=last {
        let attributes = Attributes { time_unix_nanos: n as i64, level: LogLevel::Info, source: LogSource::Stdout };
        builder.push(format!("line {n}\n").as_bytes(), attributes);
    }
    builder.finish(first, None).unwrap()
}

fn entry(worker: &str, sequence: Option<u64>, message: impl Into<String>) -> LogEntry {
    let RunKey { task_id, worker_id, .. } = key(worker);
    LogEntry { task_id, worker_id, sequence, message: message.into(), ..LogEntry::default() }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

#[tokio::test]
async fn a_gap_of_unknown_end_is_not_lost_on_a_full_disk() {
    // Whether there is a delay or not, and whether the client sends the gap again or not.
    for (delay, again) in [("0s", true), ("0s", false), ("20ms", true), ("20ms", false)] {
        for finishes in [true, false] {
            let setup = Setup::new(&["--disk-full-delay", delay]).await;
            let mut client = setup.batches("w").await;
            client.tell(Request::Block(lines(1, 3))).await;
            client.acknowledged(3).await;
            let gap = LogGap { first_sequence: 4, last_sequence: 0, ..LogGap::default() };
            let last = if finishes {
                Request::Finish(FinishRun { last_sequence: 3, ..FinishRun::default() })
            } else {
                Request::Block(lines(4, 5))
            };
            let writes = setup.disk.writes();
            setup.disk.stop(true);
            setup.disk.full.store(true, Ordering::SeqCst);
            client.tell(Request::Gap(gap.clone())).await;
            client.tell(last.clone()).await;
            until("the gap is being written", || setup.disk.writes() > writes).await;
            // What must not be queued behind it would be at once.
            let _ = tokio::time::timeout(Duration::from_millis(50), until("", || setup.queued() > 0)).await;
            setup.disk.stop(false);
            loop {
                match client.reply().await {
                    Reply::Retry(retry) => {
                        assert_eq!(retry.sequence, 4);
                        tokio::time::sleep(Duration::from_millis(retry.delay_ms.into())).await;
                        if again {
                            client.tell(Request::Gap(gap.clone())).await;
                        }
                        client.tell(last.clone()).await;
                    }
                    Reply::Ack(ack) if ack.sequence < 5 => {}
                    Reply::Ack(_) | Reply::Finished(_) => break,
                    other => panic!("{other:?}"),
                }
            }
            let run = setup.run("w").await;
            assert_eq!(run.gaps.len(), 1, "{delay} {again} {run:?}");
            assert_eq!(run.gaps[0].first_sequence, 4);
            assert_eq!((run.finish.is_some(), run.expected), if finishes { (true, 4) } else { (false, 6) });
        }
    }
}

#[tokio::test]
async fn what_there_is_no_memory_for_is_given_back_at_once() {
    let flags = ["--max-in-flight-bytes", "1B", "--max-held-bytes", "500B", "--busy-wait", "1h", "--busy-delay", "1ms"];
    let setup = Setup::new(&flags).await;
    let (mut first, mut second) = (setup.batches("a").await, setup.batches("b").await);
    let (mut numbered, mut other) = (setup.entries("n").await, setup.entries("u").await);
    let writes = setup.disk.writes();
    setup.disk.stop(true);
    // One is being written, one waits in the store, one in the session.
    first.tell(Request::Block(lines(1, 2))).await;
    until("the first is being written", || setup.disk.writes() > writes).await;
    first.tell(Request::Block(lines(3, 4))).await;
    until("the second is queued", || setup.queued() == 1).await;
    first.tell(Request::Block(lines(5, 6))).await;
    until("the third is held", || setup.context.memory.is_below(500)).await;
    // For others nothing is left.
    second.tell(Request::Block(lines(1, 2))).await;
    let Reply::Retry(retry) = second.reply().await else { panic!() };
    assert_eq!(retry.sequence, 1);
    numbered.send(entry("n", Some(1), "x".repeat(400))).await;
    let answer = numbered.next().await;
    assert_eq!((answer.status(), answer.sequence), (Status::Retry, 1));
    // Who does not number is owed its answers in order.
    other.send(entry("u", None, "x")).await;
    other.send(entry("u", None, "y")).await;
    setup.disk.stop(false);
    for n in 1..=2 {
        let answer = other.next().await;
        assert_eq!((answer.status(), answer.sequence), (Status::Ack, n));
    }
    first.acknowledged(6).await;
    until("all memory is free", || !setup.context.memory.is_below(500)).await;
    // Who comes sooner than it was told to is given the same answer again.
    tokio::time::sleep(Duration::from_millis(retry.delay_ms.into())).await;
    second.tell(Request::Block(lines(1, 2))).await;
    second.acknowledged(2).await;
}

#[tokio::test]
async fn lines_collected_while_the_disk_is_slow_are_bounded_for_all_streams_together() {
    let setup = Setup::new(&["--max-held-bytes", "1000B", "--busy-delay", "1ms"]).await;
    let (mut numbered, mut other) = (setup.entries("n").await, setup.entries("u").await);
    let writes = setup.disk.writes();
    setup.disk.stop(true);
    numbered.send(entry("n", Some(1), "one")).await;
    until("the first is being written", || setup.disk.writes() > writes).await;
    numbered.send(entry("n", Some(2), "two")).await;
    until("the second is queued", || setup.queued() == 1).await;
    numbered.send(entry("n", Some(3), "x".repeat(2000))).await;
    let answer = numbered.next().await;
    assert_eq!((answer.status(), answer.sequence), (Status::Retry, 3));
    other.send(entry("u", None, "x".repeat(2000))).await;
    until("its first is queued", || setup.queued() == 2).await;
    for n in 2..=20 {
        other.send(entry("u", None, format!("{n}"))).await;
    }
    setup.disk.stop(false);
    for n in 1..=20 {
        let answer = other.next().await;
        assert_eq!((answer.status(), answer.sequence), (Status::Ack, n));
    }
    let answer = numbered.next().await;
    assert_eq!((answer.status(), answer.sequence > 0), (Status::Ack, true));
    until("all memory is free", || !setup.context.memory.is_below(1000)).await;
}
