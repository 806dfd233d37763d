//! More than can be written, and a disk that fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use otto_log_ingest::server::{self, Bound};
use otto_log_ingest::settings::Settings;
use otto_log_store::{Faults, Store};
use otto_proto::v1::log_response::Status;
use otto_service::drain::Drain;
use otto_service::settings::load_from;
use tempfile::TempDir;
use tonic::Code;

use crate::support::wire::*;
use crate::support::*;

/// A worker that obeys: sends blocks ahead, goes back where it is told to.
async fn obedient(server: &Clients, worker: &str, lines: u64) -> u64 {
    let (mut stream, opened) = server.open(worker, "run").await;
    let (mut next, mut acknowledged, mut retries) = (opened.expected_sequence, 0, 0);
    loop {
        if next <= lines && next - acknowledged < 300 {
            let last = (next + 19).min(lines);
            stream.send(Request::Block(numbered_block(next, last))).await;
            next = last + 1;
            continue;
        }
        if next == lines + 1 {
            stream.send(Request::Finish(FinishRun { last_sequence: lines, ..FinishRun::default() })).await;
            next += 1;
        }
        match stream.next().await {
            Reply::Ack(ack) => acknowledged = ack.sequence,
            Reply::Retry(retry) => {
                retries += 1;
                next = retry.sequence;
                tokio::time::sleep(std::time::Duration::from_millis(retry.delay_ms.into())).await;
            }
            Reply::Finished(_) => break,
            other => panic!("{other:?}"),
        }
    }
    stream.end().await.unwrap();
    retries
}

async fn numbered(server: &Clients, worker: &str, lines: u64) {
    server.register(worker, "run").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    let (mut next, mut acknowledged) = (1, 0);
    while acknowledged < lines {
        if next <= lines && next - acknowledged < 500 {
            stream.send(LogEntry { sequence: Some(next), ..entry(worker, format!("line {next}")) }).await;
            next += 1;
            continue;
        }
        let answer = stream.next().await;
        match answer.status() {
            Status::Ack => acknowledged = u64::try_from(answer.sequence).unwrap(),
            Status::Retry => next = u64::try_from(answer.sequence).unwrap(),
            Status::Drop => panic!("{answer:?}"),
        }
    }
}

/// A client that waits for each answer, and sends again what it has to.
async fn patient(server: &Clients, worker: &str, lines: u64) {
    server.register(worker, "").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    let mut next = 1;
    while next <= lines {
        let answer = stream.exchange(entry(worker, format!("line {next}"))).await;
        assert_eq!(answer.sequence as u64, next);
        match answer.status() {
            Status::Ack => next += 1,
            Status::Retry => assert!(answer.retry_delay_ms > 0),
            Status::Drop => panic!("{answer:?}"),
        }
    }
}

/// A client that sends everything, then reads the answers.
async fn hasty(server: &Clients, worker: &str, lines: u64) {
    server.register(worker, "").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    for n in 1..=lines {
        stream.send(entry(worker, format!("line {n}"))).await;
    }
    for n in 1..=lines {
        let answer = stream.next().await;
        assert_eq!((answer.status(), answer.sequence as u64), (Status::Ack, n));
    }
}

#[tokio::test]
async fn under_pressure_everything_arrives_once_and_in_order() {
    const LINES: u64 = 3000;
    // Room for a few records only; once with patience, once giving back at once what cannot be queued.
    for busy_wait in ["10s", "0s"] {
        let flags = ["--max-in-flight-bytes", "4KiB", "--stream-in-flight-bytes", "16KiB"];
        let server = Server::with(&[&flags[..], &["--busy-wait", busy_wait, "--busy-delay", "1ms"]].concat()).await;
        let batches = ["b-1", "b-2", "b-3", "b-4"].map(|worker| obedient(&server, worker, LINES));
        let (retries, ..) = soon("all of it", async {
            tokio::join!(futures::future::join_all(batches), numbered(&server, "n", LINES), hasty(&server, "u", LINES))
        })
        .await;
        let retries: u64 = retries.into_iter().sum();
        assert_eq!(retries > 0, busy_wait == "0s", "{retries} with --busy-wait {busy_wait}");
        for worker in ["b-1", "b-2", "b-3", "b-4", "n", "u"] {
            assert_eq!(server.texts(worker).await, numbers(1, LINES), "{worker}");
        }
    }
}

/// A disk that does not do what it should.
#[derive(Default)]
struct Disk {
    /// fdatasync fails.
    broken: AtomicBool,
    /// Every third write finds no space.
    narrow: AtomicBool,
    writes: AtomicU64,
}

struct Through(Arc<Disk>);

impl Faults for Through {
    fn before_write(&self, _bytes: u64) -> std::io::Result<()> {
        let full = self.0.narrow.load(Ordering::SeqCst) && self.0.writes.fetch_add(1, Ordering::SeqCst) % 3 == 2;
        if full { Err(rustix::io::Errno::NOSPC.into()) } else { Ok(()) }
    }

    fn before_sync(&self) -> std::io::Result<()> {
        if self.0.broken.load(Ordering::SeqCst) { Err(rustix::io::Errno::IO.into()) } else { Ok(()) }
    }
}

/// The program inside the test, on such a disk.
struct Program {
    disk: Arc<Disk>,
    settings: Settings,
    clients: Clients,
    drain: Drain,
    running: tokio::task::JoinHandle<anyhow::Result<()>>,
    _dir: TempDir,
}

impl Program {
    async fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data").display().to_string();
        let args = ["x", "--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir", &data_dir];
        let settings: Settings = load_from([&args[..], flags].concat(), |_| None).unwrap();
        let disk = Arc::new(Disk::default());
        let mut options = settings.store.options();
        options.faults = Arc::new(Through(disk.clone()));
        let store = tokio::task::spawn_blocking(move || Store::open(options)).await.unwrap().unwrap();
        let bound = Bound::new(&settings).unwrap();
        let clients = Clients { url: format!("http://{}", bound.grpc_addr().unwrap()) };
        let drain = Drain::new();
        let running = tokio::spawn(server::run(settings.clone(), bound, store, drain.clone()));
        Self { disk, settings, clients, drain, running, _dir: dir }
    }
}

#[tokio::test]
async fn a_disk_that_is_full_now_and_then_loses_and_repeats_nothing() {
    const LINES: u64 = 2000;
    let program = Program::start(&["--disk-full-delay", "5ms"]).await;
    let server = &program.clients;
    for worker in ["b-1", "b-2", "n", "p"] {
        server.register(worker, if worker == "p" { "" } else { "run" }).await;
    }
    program.disk.narrow.store(true, Ordering::SeqCst);
    let (first, second, ..) = soon("all of it", async {
        tokio::join!(
            obedient(server, "b-1", LINES),
            obedient(server, "b-2", LINES),
            numbered(server, "n", LINES),
            patient(server, "p", 300)
        )
    })
    .await;
    assert!(first + second > 0, "the disk was never full");
    for (worker, lines) in [("b-1", LINES), ("b-2", LINES), ("n", LINES), ("p", 300)] {
        assert_eq!(server.texts(worker).await, numbers(1, lines), "{worker}");
    }
    program.drain.request();
    soon("the end of the program", program.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn when_fsync_fails_nothing_is_acknowledged_and_the_program_ends() {
    let Program { disk, settings, clients, running, _dir, .. } = Program::start(&[]).await;
    let mut client = clients.logs().await;
    client.register_worker(registration("w", "run")).await.unwrap();
    client.register_worker(registration("e", "")).await.unwrap();
    let mut stream = Batches::begin(&mut client).await;
    stream.send(Request::Open(open("w", "run"))).await;
    stream.next().await;
    stream.send(Request::Block(numbered_block(1, 10))).await;
    stream.acknowledged(10).await;
    let mut entries = Entries::begin(&mut client).await;
    assert_eq!(entries.exchange(entry("e", "one")).await.sequence, 1);

    disk.broken.store(true, Ordering::SeqCst);
    stream.send(Request::Block(numbered_block(11, 20))).await;
    entries.send(entry("e", "two")).await;
    // The next thing either hears is the end.
    assert_code(soon("the end", stream.replies.message()).await, Code::Unavailable, "");
    assert_code(soon("the end", entries.replies.message()).await, Code::Unavailable, "");
    let error = soon("the end of the program", running).await.unwrap().unwrap_err();
    assert!(format!("{error:#}").contains("cannot write"), "{error:#}");

    // Opened again it has what was acknowledged.
    disk.broken.store(false, Ordering::SeqCst);
    let options = settings.store.options();
    let store = tokio::task::spawn_blocking(move || Store::open(options)).await.unwrap().unwrap();
    let runs = store.runs(TASK).await.unwrap();
    assert!(runs[0].expected >= 11 && runs[1].expected >= 2, "{runs:?}");
}
