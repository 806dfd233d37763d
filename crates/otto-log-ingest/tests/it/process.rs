//! The program: its start, its end, and what it finds when it starts again.

use std::path::Path;
use std::process::Stdio;

use otto_proto::v1::log_response::Status;
use otto_testkit::binary;
use rustix::process::Signal;
use tonic::Code;

use crate::limits::tonic_health_client;
use crate::support::wire::*;
use crate::support::*;

#[tokio::test]
async fn killed_while_writing_it_has_everything_it_acknowledged_once_and_in_order() {
    const LINES: u64 = 60_000;
    let mut server = Server::start().await;
    server.register("w", "run").await;
    server.register("e", "entries").await;
    let (mut written, mut kills) = (0, 0);
    let mut single = 0;
    while written < LINES {
        let mut stream = Batches::begin(&mut server.logs().await).await;
        stream.send(Request::Open(open("w", "run"))).await;
        let Reply::Opened(opened) = stream.next().await else { panic!() };
        assert!(opened.expected_sequence > written, "acknowledged lines are gone");
        written = opened.expected_sequence - 1;
        let mut entries = Entries::begin(&mut server.logs().await).await;
        let stop_at = (written + LINES / 4).min(LINES);
        // Sends ahead of what is acknowledged, and is killed with much under way.
        let mut next = written + 1;
        while next <= stop_at {
            let last = (next + 499).min(LINES);
            stream.send(Request::Block(numbered_block(next, last))).await;
            next = last + 1;
            if kills < 3 && next > stop_at {
                let sequence = single + 1;
                entries.send(LogEntry { sequence: Some(sequence), ..entry("e", format!("line {sequence}")) }).await;
                single = u64::try_from(entries.next().await.sequence).unwrap();
                server.ingest.process.kill().await.unwrap();
                kills += 1;
            }
        }
        while let Ok(Ok(Some(reply))) = tokio::time::timeout(otto_testkit::PATIENCE, stream.replies.message()).await {
            if let Some(Reply::Ack(ack)) = reply.kind {
                assert!(ack.sequence >= written);
                written = ack.sequence;
            }
            if written >= stop_at {
                break;
            }
        }
        if server.ingest.process.check_running().is_err() {
            server.ingest.restart().await.unwrap();
        }
    }
    assert_eq!(kills, 3);
    assert_eq!(server.texts("w").await, numbers(1, LINES));
    assert_eq!(server.texts("e").await, numbers(1, single));
}

#[tokio::test]
async fn unnumbered_entries_survive_a_restart_without_another_registration() {
    let mut server = Server::start().await;
    server.register("w", "").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    stream.exchange(entry("w", "one")).await;
    server.ingest.process.kill().await.unwrap();
    stream.end().await.unwrap_err();
    server.ingest.restart().await.unwrap();
    let mut stream = Entries::begin(&mut server.logs().await).await;
    let answer = stream.exchange(entry("w", "two")).await;
    assert_eq!((answer.status(), answer.sequence), (Status::Ack, 2));
    assert_eq!(server.texts("w").await, ["one", "two"]);
}

#[tokio::test]
async fn drained_it_tells_its_clients_to_come_back() {
    let mut server = Server::start().await;
    let (mut stream, _) = server.open("w", "run").await;
    stream.send(Request::Block(numbered_block(1, 10))).await;
    stream.acknowledged(10).await;
    server.register("e", "").await;
    let mut entries = Entries::begin(&mut server.logs().await).await;
    entries.exchange(entry("e", "x")).await;
    let mut silent = Entries::begin(&mut server.logs().await).await;
    let mut tail = server.queries().await.tail_logs(task()).await.unwrap().into_inner();
    let mut read = Read::default();
    while read.lines.len() < 11 {
        assert!(read.one(&mut tail).await);
    }
    server.ingest.process.signal(Signal::TERM).unwrap();
    assert_code(stream.end().await, Code::Unavailable, "connect again");
    assert_code(entries.end().await, Code::Unavailable, "connect again");
    assert_code(silent.end().await, Code::Unavailable, "connect again");
    assert_code(tail.message().await, Code::Unavailable, "connect again");
    assert!(server.ingest.process.wait().await.unwrap().success());
    server.ingest.restart().await.unwrap();
    assert_eq!(server.texts("w").await, numbers(1, 10));
}

#[tokio::test]
async fn health_and_reflection() {
    let server = Server::start().await;
    let mut health = tonic_health_client(&server).await;
    for service in
        ["", "ottoscaler.v1.LogStreamingService", "ottoscaler.v1.LogQueryService", "ottoscaler.v1.WorkerEventService"]
    {
        assert!(health(service).await, "{service}");
    }
}

/// Runs the program, which should end by itself, and gives its stderr.
async fn refused(args: &[&str]) -> (i32, String) {
    let mut command = tokio::process::Command::new(binary("otto-log-ingest").unwrap());
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("OTTO_")) {
        command.env_remove(name);
    }
    let output = soon("the end of the program", command.output()).await.unwrap();
    assert!(!output.status.success());
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

fn flags(dir: &Path) -> Vec<String> {
    ["--grpc-addr", "127.0.0.1:0", "--http-addr", "127.0.0.1:0", "--data-dir"]
        .into_iter()
        .map(str::to_owned)
        .chain([dir.display().to_string()])
        .collect()
}

#[tokio::test]
async fn what_cannot_be_started_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let with = |extra: &[&str]| {
        let mut all = flags(&data);
        // A later flag of the same name would be refused: it replaces.
        if let Some(at) = all.iter().position(|flag| Some(&flag.as_str()) == extra.first()) {
            all.drain(at..at + 2);
        }
        all.extend(extra.iter().map(ToString::to_string));
        all
    };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let foreign = dir.path().join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("diary.txt"), "dear diary").unwrap();
    let foreign = foreign.display().to_string();
    let nowhere = dir.path().join("a/b/c").display().to_string();
    let ready = dir.path().join("no/ready").display().to_string();
    for (extra, code, parts) in [
        (vec!["--colour"], 2, vec!["--colour"]),
        (vec!["--retention-age", "soon"], 2, vec!["--retention-age", "soon", "7d"]),
        (vec!["--max-line-bytes", "9MiB"], 2, vec!["--max-line-bytes", "4MiB"]),
        (vec!["--grpc-addr", &taken], 1, vec!["--grpc-addr", &taken, "in use"]),
        (vec!["--http-addr", &taken], 1, vec!["--http-addr", &taken, "in use"]),
        (vec!["--grpc-addr", "0.0.0.0:0"], 1, vec!["--auth-token-file", "--insecure-no-auth"]),
        (vec!["--data-dir", &foreign], 1, vec![&foreign, "diary.txt"]),
        (vec!["--data-dir", &nowhere], 1, vec![&nowhere]),
        (vec!["--ready-file", &ready], 1, vec![&ready, "--ready-file"]),
        (vec!["--segment-bytes", "1KiB"], 1, vec!["65,536"]),
        (vec!["--grpc-max-message-size", "1MiB"], 1, vec!["--grpc-max-message-size", "--max-line-bytes"]),
    ] {
        let args = with(&extra);
        let (status, text) = refused(&args.iter().map(String::as_str).collect::<Vec<_>>()).await;
        assert_eq!(status, code, "{extra:?}: {text}");
        for part in parts {
            assert!(text.contains(part), "{extra:?}: {part} is missing in {text}");
        }
    }
}

#[tokio::test]
async fn a_data_directory_has_one_process() {
    let server = Server::start().await;
    let data = server.dir.path().join("log-data");
    let (_, text) = refused(&flags(&data).iter().map(String::as_str).collect::<Vec<_>>()).await;
    assert!(text.contains("in use") && text.contains(&data.display().to_string()), "{text}");
}

#[tokio::test]
async fn a_token_is_demanded() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "open-sesame-0123456789\n").unwrap();
    let server = Server::with(&["--auth-token-file", &token.display().to_string()]).await;
    let status = server.logs().await.register_worker(registration("w", "run")).await;
    assert_code(status, Code::Unauthenticated, "bearer token");
    let channel = otto_service::client::Endpoint::new(
        &server.ingest.grpc_url(),
        &otto_service::auth::ClientAuth { auth_token_file: Some(token) },
    )
    .unwrap()
    .connect_lazy();
    let mut client = LogStreamingServiceClient::new(channel);
    client.register_worker(registration("w", "run")).await.unwrap();
    let mut health = tonic_health_client(&server).await;
    assert!(health("").await);
}

#[tokio::test]
async fn a_worker_s_token_is_good_for_sending_logs_and_for_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (full, worker) = (dir.path().join("token"), dir.path().join("worker-token"));
    std::fs::write(&full, "open-sesame-0123456789\n").unwrap();
    std::fs::write(&worker, "only-my-own-lines\n").unwrap();
    let flags = ["--auth-token-file", full.to_str().unwrap(), "--worker-token-file", worker.to_str().unwrap()];
    let server = crate::http_support::Server::start(&flags).await;
    let channel = |token: &std::path::Path| {
        let auth = otto_service::auth::ClientAuth { auth_token_file: Some(token.into()) };
        otto_service::client::Endpoint::new(&server.program.grpc_url(), &auth).unwrap().connect_lazy()
    };
    let theirs = channel(&worker);
    let mut client = LogStreamingServiceClient::new(theirs.clone());
    client.register_worker(registration("w", "")).await.unwrap();
    let one = tokio_stream::iter([entry("w", "line 1")]);
    let mut answers = client.stream_logs(one).await.unwrap().into_inner();
    assert_eq!(answers.message().await.unwrap().unwrap().sequence, 1);

    let alone = "good for ottoscaler.v1.LogStreamingService alone";
    let listed = LogQueryServiceClient::new(theirs.clone()).list_log_tasks(ListLogTasksRequest::default()).await;
    assert_code(listed, Code::PermissionDenied, alone);
    let read = LogQueryServiceClient::new(theirs.clone()).read_logs(task()).await;
    assert_code(read, Code::PermissionDenied, alone);
    let events = ReportWorkerEventsRequest::default();
    let reported = WorkerEventServiceClient::new(theirs).report_worker_events(events).await;
    assert_code(reported, Code::PermissionDenied, alone);
    for (token, status) in [("only-my-own-lines", 401), ("open-sesame-0123456789", 200)] {
        let bearer = format!("Bearer {token}");
        for path in ["/api/v1/tasks", "/metrics"] {
            let reply = server.send("GET", path, &[("authorization", &bearer)]).await;
            assert_eq!(reply.status.as_u16(), status, "{path} {token}");
        }
    }

    let ours = channel(&full);
    LogStreamingServiceClient::new(ours.clone()).register_worker(registration("w2", "")).await.unwrap();
    LogQueryServiceClient::new(ours).list_log_tasks(ListLogTasksRequest::default()).await.unwrap();
}
