//! `RegisterWorker` and `StreamLogs`.

use otto_proto::v1::log_response::Status;
use otto_proto::v1::registration_response::Status as Registered;
use otto_service::status::retry_delay;
use tonic::Code;
use tonic_types::StatusExt;

use crate::support::wire::*;
use crate::support::*;

fn numbered(worker: &str, sequence: u64) -> LogEntry {
    LogEntry { sequence: Some(sequence), ..entry(worker, format!("line {sequence}")) }
}

#[tokio::test]
async fn registration_keeps_to_the_contract() {
    let server = Server::start().await;
    let mut client = server.logs().await;
    for (field, registration) in [
        ("worker_id", WorkerRegistration { worker_id: String::new(), ..registration("w", "") }),
        ("task_id", WorkerRegistration { task_id: String::new(), ..registration("w", "") }),
        ("worker_id", registration(&"w".repeat(254), "")),
        ("run_id", registration("w", &"r".repeat(65))),
    ] {
        let status = assert_code(client.register_worker(registration).await, Code::InvalidArgument, field);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    let first = server.register("w", "run-1").await;
    assert_eq!(first.status(), Registered::Success);
    assert!(!first.session_id.is_empty());
    let config = first.config.unwrap();
    assert_eq!((config.max_message_size, config.include_metadata), (1 << 20, true));
    assert_eq!(server.register("w", "run-1").await.status(), Registered::AlreadyRegistered);
    assert_eq!(server.register("w", "run-2").await.status(), Registered::Success);
    // Clients of the earlier system name no run: each registration is a new one.
    assert_eq!(server.register("old", "").await.status(), Registered::Success);
    assert_eq!(server.register("old", "").await.status(), Registered::Success);
}

#[tokio::test]
async fn one_answer_per_entry_for_a_client_that_waits_for_each() {
    let server = Server::start().await;
    server.register("w", "").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    for n in 1..=20 {
        let answer = stream.exchange(entry("w", format!("line {n}"))).await;
        assert_eq!((answer.status(), answer.sequence, answer.message.as_str()), (Status::Ack, n, ""));
    }
    stream.close();
    stream.end().await.unwrap();
    // A second stream of the same registration goes on.
    let mut stream = Entries::begin(&mut server.logs().await).await;
    assert_eq!(stream.exchange(entry("w", "line 21")).await.sequence, 21);
    assert_eq!(server.texts("w").await, numbers(1, 21));
    // A new registration is a new run, which begins at 1.
    server.register("w", "").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    assert_eq!(stream.exchange(entry("w", "again")).await.sequence, 1);
    assert_eq!(server.texts("w").await.last().unwrap(), "again");
}

#[tokio::test]
async fn thousands_in_flight_are_answered_in_order() {
    const LINES: u64 = 20_000;
    let server = Server::start().await;
    server.register("w", "").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    let sending = async {
        for n in 1..=LINES {
            stream.send(entry("w", format!("line {n}"))).await;
        }
    };
    sending.await;
    // Nothing was read until here: answers that wait cost no memory and stop nothing.
    for n in 1..=LINES {
        let answer = stream.next().await;
        assert_eq!((answer.status(), answer.sequence), (Status::Ack, n as i64));
    }
    stream.close();
    stream.end().await.unwrap();
    assert_eq!(server.texts("w").await, numbers(1, LINES));
}

#[tokio::test]
async fn numbered_entries_are_acknowledged_up_to_a_number() {
    let server = Server::start().await;
    server.register("w", "run").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    for n in 1..=500 {
        stream.send(numbered("w", n)).await;
    }
    let (mut last, mut answers) = (0, 0);
    while last < 500 {
        let answer = stream.next().await;
        assert_eq!(answer.status(), Status::Ack);
        assert!(answer.sequence > last);
        (last, answers) = (answer.sequence, answers + 1);
    }
    assert!(answers <= 500);
    // Duplicates are dropped and acknowledged; a client that sends one and waits is answered.
    assert_eq!(stream.exchange(numbered("w", 17)).await.sequence, 500);
    // A hole is told once for what follows it, and again if the client comes back to the wrong place.
    for wrong in [600, 601, 602] {
        stream.send(numbered("w", wrong)).await;
    }
    let answer = stream.next().await;
    assert_eq!((answer.status(), answer.sequence), (Status::Retry, 501));
    let answer = stream.exchange(numbered("w", 502)).await;
    assert_eq!((answer.status(), answer.sequence), (Status::Retry, 501));
    let answer = stream.exchange(numbered("w", 501)).await;
    assert_eq!((answer.status(), answer.sequence), (Status::Ack, 501));
    assert_eq!(server.texts("w").await, numbers(1, 501));
}

#[tokio::test]
async fn what_breaks_the_contract_is_named_and_what_came_before_is_stored() {
    let server = Server::start().await;
    server.register("w", "run").await;
    let cases: [(&str, LogEntry); 4] = [
        ("sequence", numbered("w", 1)),
        ("worker_id", LogEntry { worker_id: String::new(), ..entry("w", "x") }),
        ("task_id", LogEntry { task_id: String::new(), ..entry("w", "x") }),
        ("sequence", LogEntry { sequence: Some(0), ..entry("w", "x") }),
    ];
    for (n, (field, wrong)) in (1..).zip(cases) {
        let mut stream = Entries::begin(&mut server.logs().await).await;
        stream.send(entry("w", "good")).await;
        stream.send(wrong).await;
        assert_eq!(stream.next().await.sequence, n);
        let status = assert_code(stream.end().await, Code::InvalidArgument, field);
        assert_eq!(status.get_details_bad_request().unwrap().field_violations[0].field, field);
    }
    assert_eq!(server.texts("w").await.len(), 4);
    let mut stream = Entries::begin(&mut server.logs().await).await;
    stream.send(LogEntry { worker_id: String::new(), ..entry("w", "x") }).await;
    assert_code(stream.end().await, Code::InvalidArgument, "worker_id");
}

#[tokio::test]
async fn a_worker_that_never_registered_is_refused() {
    let server = Server::start().await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    stream.send(entry("stranger", "x")).await;
    let status = assert_code(stream.end().await, Code::FailedPrecondition, "RegisterWorker");
    assert_eq!(status.get_details_precondition_failure().unwrap().violations[0].r#type, "NOT_REGISTERED");
    assert_eq!(retry_delay(&status), None);
}

#[tokio::test]
async fn what_can_never_be_stored_is_dropped_and_leaves_a_gap() {
    let server = Server::with(&["--max-line-bytes", "100B"]).await;
    server.register("w", "").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    assert_eq!(stream.exchange(entry("w", "one")).await.status(), Status::Ack);
    let answer = stream.exchange(entry("w", "x".repeat(101))).await;
    assert_eq!((answer.status(), answer.sequence), (Status::Drop, 2));
    assert!(answer.message.contains("100 bytes"), "{}", answer.message);
    assert_eq!(stream.exchange(entry("w", "x".repeat(100))).await.status(), Status::Ack);
    let answer = stream.exchange(entry("other", "x")).await;
    assert_eq!((answer.status(), answer.sequence), (Status::Drop, 4));
    assert!(answer.message.contains("\"w\""), "{}", answer.message);
    assert_eq!(stream.exchange(entry("w", "")).await.sequence, 5);
    let read = server.read(ReadLogsRequest { worker_id: "w".to_owned(), ..task() }).await;
    assert_eq!(read.sequences(), [1, 3, 5]);
    let gaps: Vec<_> = read.gaps.iter().filter_map(|gap| gap.gap.as_ref()).collect();
    assert_eq!(gaps.iter().map(|gap| (gap.first_sequence, gap.last_sequence)).collect::<Vec<_>>(), [(2, 2), (4, 4)]);
    assert!(gaps.iter().all(|gap| gap.reason() == log_gap::Reason::Refused && !gap.message.is_empty()));
    assert!(!read.status[0].runs[0].complete);
}

#[tokio::test]
async fn texts_of_an_entry_become_attributes() {
    let server = Server::start().await;
    server.register("w", "").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    let mut first = entry("w", "two\nlines \u{1F600}\n");
    first.timestamp = "2026-01-02T03:04:05.5+01:00".to_owned();
    first.level = "Error".to_owned();
    first.source = "STDERR".to_owned();
    first.metadata.insert("key".to_owned(), "value".to_owned());
    stream.exchange(first).await;
    let mut second = entry("w", "");
    second.timestamp = "the day before".to_owned();
    stream.exchange(second).await;
    let read = server.read(task()).await;
    let [first, second] = &read.lines[..] else { panic!("{read:?}") };
    assert_eq!(first.message, "two\nlines \u{1F600}\n".as_bytes());
    assert_eq!(first.time_unix_nanos, 1_767_319_445_500_000_000);
    assert_eq!((first.level(), first.source()), (LogLevel::Error, LogSource::Stderr));
    assert_eq!(first.metadata["key"], "value");
    assert_eq!((second.level(), second.source()), (LogLevel::Unspecified, LogSource::Stdout));
    assert_eq!(second.metadata["otto.invalid_timestamp"], "the day before");
    assert!(second.time_unix_nanos > first.time_unix_nanos && !second.unterminated);
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_only_its_own_stream() {
    let server = Server::start().await;
    server.register("w", "").await;
    server.register("other", "").await;
    let mut client = server.logs().await;
    let mut other = Entries::begin(&mut client).await;
    other.exchange(entry("other", "before")).await;
    let mut stream = Entries::begin(&mut client).await;
    stream.send(entry("w", "x".repeat(9 << 20))).await;
    assert_code(stream.end().await, Code::ResourceExhausted, "too large");
    assert_eq!(other.exchange(entry("other", "after")).await.sequence, 2);
}

#[tokio::test]
async fn a_newer_stream_takes_over() {
    let server = Server::start().await;
    server.register("w", "").await;
    let mut older = Entries::begin(&mut server.logs().await).await;
    older.exchange(entry("w", "one")).await;
    let mut newer = Entries::begin(&mut server.logs().await).await;
    assert_eq!(newer.exchange(entry("w", "two")).await.sequence, 2);
    assert_code(older.end().await, Code::Aborted, "newer session");
    assert_eq!(newer.exchange(entry("w", "three")).await.sequence, 3);
    assert_eq!(server.texts("w").await, ["one", "two", "three"]);
}

#[tokio::test]
async fn whoever_sends_nothing_takes_nobodys_place() {
    let server = Server::with(&["--max-sessions", "1"]).await;
    let _silent = Entries::begin(&mut server.logs().await).await;
    server.register("w", "").await;
    let mut stream = Entries::begin(&mut server.logs().await).await;
    assert_eq!(stream.exchange(entry("w", "x")).await.sequence, 1);
    // Whoever sends something does.
    server.register("v", "").await;
    let mut other = Entries::begin(&mut server.logs().await).await;
    other.send(entry("v", "x")).await;
    assert_code(other.end().await, tonic::Code::ResourceExhausted, "max-sessions");
}
