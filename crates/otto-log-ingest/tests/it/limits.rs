//! Bounds, and clients that do not do their part.

use otto_proto::v1::registration_response::Status as Registered;
use otto_service::status::retry_delay;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::wire::*;
use crate::support::*;

#[tokio::test]
async fn a_full_server_says_so_and_has_room_again() {
    let server = Server::with(&["--max-workers", "2", "--max-sessions", "2", "--max-readers", "1"]).await;
    let (mut first, _) = server.open("a", "run").await;
    let (_second, _) = server.open("b", "run").await;
    let refused = server.register("c", "run").await;
    assert_eq!(refused.status(), Registered::ServerFull);
    assert!(refused.message.contains("max-workers"), "{}", refused.message);
    assert_eq!(server.register("a", "run").await.status(), Registered::AlreadyRegistered);

    let mut third = Batches::begin(&mut server.logs().await).await;
    third.send(Request::Open(open("a", "run"))).await;
    let status = assert_code(third.end().await, Code::ResourceExhausted, "max-sessions");
    assert!(retry_delay(&status).is_some());
    assert_eq!(status.get_details_quota_failure().unwrap().violations[0].subject, "max-sessions");

    let tail = server.queries().await.tail_logs(task()).await.unwrap();
    assert_code(server.queries().await.read_logs(task()).await, Code::ResourceExhausted, "max-readers");
    drop(tail);
    eventually("room for a reader", async || server.queries().await.read_logs(task()).await.ok()).await;

    // A finished worker makes room.
    first.send(Request::Finish(FinishRun::default())).await;
    first.end().await.unwrap();
    assert_eq!(server.register("c", "run").await.status(), Registered::Success);
    eventually("room for a stream", async || {
        let mut stream = Batches::begin(&mut server.logs().await).await;
        stream.send(Request::Open(open("c", "run"))).await;
        stream.replies.message().await.ok()
    })
    .await;
}

#[tokio::test]
async fn a_client_that_never_reads_is_stored_and_costs_little() {
    let mut server = Server::start().await;
    server.register("w", "").await;
    let before = server.ingest.process.resident_bytes().unwrap();
    let stuck = Entries::begin(&mut server.logs().await).await;
    let message = "x".repeat(1000);
    for _ in 0..50_000 {
        stuck.send(entry("w", message.clone())).await;
    }
    eventually("all lines stored", async || {
        let request = ListLogWorkersRequest { task_id: TASK.to_owned() };
        let answer = server.queries().await.list_log_workers(request).await.unwrap().into_inner();
        (answer.workers[0].runs[0].lines == 50_000).then_some(())
    })
    .await;
    let grown = server.ingest.process.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 48 << 20, "{} MiB more", grown >> 20);
    // Another worker goes on.
    server.register("other", "").await;
    let mut other = Entries::begin(&mut server.logs().await).await;
    assert_eq!(other.exchange(entry("other", "x")).await.sequence, 1);
    server.ingest.process.check_running().unwrap();
}

#[tokio::test]
async fn clients_that_never_write_hinder_nobody() {
    let server = Server::start().await;
    let mut client = server.logs().await;
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(Entries::begin(&mut client).await);
    }
    server.register("w", "").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    assert_eq!(stream.exchange(entry("w", "x")).await.sequence, 1);
    let metrics = metrics(&server).await;
    assert!(metrics.contains("\notto_log_sessions 101\n"), "{metrics}");
    drop(silent);
    eventually("the end of their sessions", async || {
        crate::limits::metrics(&server).await.contains("\notto_log_sessions 1\n").then_some(())
    })
    .await;
}

/// What Prometheus would get.
pub(crate) async fn metrics(server: &Server) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = server.ingest.http_url().replace("http://", "");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut text = String::new();
    soon("the metrics", stream.read_to_string(&mut text)).await.unwrap();
    text
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let server = Server::with(&["--max-line-bytes", "10B"]).await;
    server.register("w", "run").await;
    let (mut stream, _) = server.open("w", "run").await;
    stream.send(Request::Block(numbered_block(1, 10))).await;
    stream.acknowledged(10).await;
    stream.send(Request::Block(numbered_block(1, 10))).await;
    stream.acknowledged(10).await;
    stream.send(Request::Block(numbered_block(20, 21))).await;
    let Reply::Retry(_) = stream.next().await else { panic!() };
    server.register("e", "").await;
    let mut entries = Entries::begin(&mut server.logs().await).await;
    entries.exchange(entry("e", "longer than ten bytes")).await;
    let text = metrics(&server).await;
    for line in [
        "otto_log_lines_stored_total 10",
        "otto_log_duplicate_lines_total 10",
        "otto_log_retry_total{reason=\"hole\"} 1",
        "otto_log_dropped_lines_total{reason=\"refused\"} 1",
        "otto_log_sessions 2",
        "otto_log_store_segments 1",
    ] {
        assert!(text.contains(&format!("\n{line}\n")), "{line} is missing in\n{text}");
    }
    assert!(
        text.contains("\notto_log_sync_seconds_count ") && text.contains("\notto_log_bytes_stored_total "),
        "{text}"
    );
    assert!(!text.contains(TASK), "a metric names a task");
}

/// A data directory on a disk of its own. `None` where that may not be made.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted =
            std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=24m", "tmpfs"]).arg(at).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| Self(at.to_owned()))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Lines that can hardly be compressed, a kibibyte each.
fn noise(first: u64, last: u64) -> Vec<String> {
    let mut state = 0u64;
    let mut word = |seed: u64| {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ seed;
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        format!("{:016x}", (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb))
    };
    (first..=last).map(|n| (0..64).map(|_| word(n)).collect()).collect()
}

#[tokio::test]
async fn a_full_disk_is_told_and_survived() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(&dir.path().join("log-data")) else {
        eprintln!("not tested: no disk of its own can be mounted here");
        return;
    };
    let flags = ["--disk-full-delay", "100ms"];
    let server = Server::within(dir, &flags).await;
    let (mut stream, _) = server.open("w", "run").await;
    server.register("e", "").await;
    server.register("n", "").await;
    let mut single = Entries::begin(&mut server.logs().await).await;
    let mut numbered = Entries::begin(&mut server.logs().await).await;
    single.exchange(entry("e", "before")).await;
    numbered.exchange(LogEntry { sequence: Some(1), ..entry("n", "before") }).await;
    // Incompressible, and more than there is space for.
    let filler = disk.0.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 64 << 10]).is_ok() {}
    drop(file);
    let mut health = tonic_health_client(&server).await;
    let (mut sequence, mut written) = (1, Vec::new());
    let retried = loop {
        let lines = noise(sequence, sequence + 99);
        written.extend(lines.clone());
        stream.send(Request::Block(block(sequence, &lines.iter().map(String::as_str).collect::<Vec<_>>()))).await;
        match stream.next().await {
            Reply::Ack(ack) => sequence = ack.sequence + 1,
            Reply::Retry(retry) => break retry,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((retried.sequence, retried.delay_ms), (sequence, 100));
    assert!(retried.message.contains("disk is full"), "{}", retried.message);
    use otto_proto::v1::log_response::Status;
    // What still fits is taken; then they are told.
    let mut small = [1, 1];
    for (stored, number) in small.iter_mut().zip([false, true]) {
        let (stream, worker) = if number { (&mut numbered, "n") } else { (&mut single, "e") };
        let retried = loop {
            let sequence = number.then_some(*stored + 1);
            let answer = stream.exchange(LogEntry { sequence, ..entry(worker, "x".repeat(5000)) }).await;
            match answer.status() {
                Status::Ack => *stored += 1,
                _ => break answer,
            }
        };
        assert_eq!(
            (retried.status(), retried.sequence, retried.retry_delay_ms),
            (Status::Retry, *stored as i64 + 1, 100)
        );
    }
    let mut client = server.logs().await;
    let refused = eventually("a registration that does not fit", async || {
        let metadata = WorkerMetadata { node_name: "n".repeat(50_000), ..WorkerMetadata::default() };
        let registration = WorkerRegistration { metadata: Some(metadata), ..registration("late", "run") };
        client.register_worker(registration).await.err()
    })
    .await;
    let status = assert_code::<()>(Err(refused), Code::Unavailable, "disk is full");
    assert_eq!(retry_delay(&status), Some(std::time::Duration::from_millis(100)));
    assert!(!health("ottoscaler.v1.LogStreamingService").await);
    assert!(health("ottoscaler.v1.LogQueryService").await);
    assert_eq!(server.texts("e").await.len() as u64, small[0]);

    std::fs::remove_file(filler).unwrap();
    for (stored, number) in small.iter().zip([false, true]) {
        let (stream, worker) = if number { (&mut numbered, "n") } else { (&mut single, "e") };
        let sequence = number.then_some(stored + 1);
        eventually("the next line", async || {
            let answer = stream.exchange(LogEntry { sequence, ..entry(worker, "after") }).await;
            (answer.status() == Status::Ack).then(|| assert_eq!(answer.sequence as u64, stored + 1))
        })
        .await;
        let texts = server.texts(worker).await;
        assert_eq!(
            (texts.len() as u64, texts[0].as_str(), texts[texts.len() - 1].as_str()),
            (stored + 1, "before", "after")
        );
    }
    let last = sequence + 99;
    eventually("the next block", async || {
        stream.send(Request::Block(numbered_block(sequence, last))).await;
        matches!(stream.next().await, Reply::Ack(ack) if ack.sequence == last).then_some(())
    })
    .await;
    eventually("health", async || health("ottoscaler.v1.LogStreamingService").await.then_some(())).await;
    written.truncate(usize::try_from(sequence - 1).unwrap());
    written.extend(numbers(sequence, last));
    assert_eq!(server.texts("w").await, written);
}

/// Asks whether a service is SERVING.
pub(crate) async fn tonic_health_client(server: &Server) -> impl AsyncFnMut(&str) -> bool + use<> {
    use tonic_health::pb::health_check_response::ServingStatus;
    let mut client = tonic_health::pb::health_client::HealthClient::new(server.channel().await);
    async move |service: &str| {
        let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
        soon("health", client.check(request)).await.unwrap().into_inner().status() == ServingStatus::Serving
    }
}

#[tokio::test]
async fn readers_of_a_slow_reader_do_not_pile_up() {
    // A follower that is dropped is forgotten, although nothing comes.
    let server = Server::start().await;
    let _stream = server.open("w", "run").await;
    let mut tails = Vec::new();
    for _ in 0..20 {
        tails.push(server.queries().await.tail_logs(task()).await.unwrap());
    }
    assert!(metrics(&server).await.contains("\notto_log_readers 20\n"));
    drop(tails);
    eventually("the end of the readings", async || {
        metrics(&server).await.contains("\notto_log_readers 0\n").then_some(())
    })
    .await;
}
