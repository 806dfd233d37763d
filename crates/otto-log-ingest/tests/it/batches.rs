//! `StreamLogBatches` and `UploadLogs`.

use otto_proto::digest::Digest;
use otto_service::status::retry_delay;
use tonic::Code;

use crate::support::wire::*;
use crate::support::*;

fn finish(last: u64) -> FinishRun {
    let mut digest = Digest::new();
    for line in numbers(1, last) {
        digest.update(format!("{line}\n").as_bytes());
    }
    FinishRun {
        last_sequence: last,
        digest: digest.finish().to_vec().into(),
        exit_code: Some(0),
        ..FinishRun::default()
    }
}

async fn finished(stream: &mut Batches) -> RunFinished {
    loop {
        match stream.next().await {
            Reply::Finished(finished) => return finished,
            Reply::Ack(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_run_from_its_open_to_its_finish() {
    let server = Server::start().await;
    let (mut stream, opened) = server.open("w", "run").await;
    assert_eq!((opened.expected_sequence, opened.finished), (1, false));
    assert_eq!(opened.config.unwrap().max_message_size, 1 << 20);
    for n in 0..50 {
        stream.send(Request::Block(numbered_block(n * 10 + 1, n * 10 + 10))).await;
    }
    stream.acknowledged(500).await;
    assert!(server.run("w", "run").await.connected);
    stream.send(Request::Finish(finish(500))).await;
    let RunFinished { last_sequence, missing_lines } = finished(&mut stream).await;
    assert_eq!((last_sequence, missing_lines), (500, 0));
    stream.end().await.unwrap();
    let run = server.run("w", "run").await;
    assert!(run.complete && !run.connected, "{run:?}");
    assert_eq!(run.finish.unwrap(), finish(500));
    assert_eq!(server.texts("w").await, numbers(1, 500));
    // The same run opened again wants nothing; its Finish sent again is answered, more lines are not taken.
    let (mut stream, opened) = server.open("w", "run").await;
    assert_eq!((opened.expected_sequence, opened.finished), (501, true));
    stream.send(Request::Finish(finish(500))).await;
    finished(&mut stream).await;
    let (mut stream, _) = server.open("w", "run").await;
    stream.send(Request::Block(numbered_block(501, 502))).await;
    assert_code(stream.end().await, Code::FailedPrecondition, "finished");
}

#[tokio::test]
async fn duplicates_are_dropped_overlaps_are_cut_holes_are_told() {
    let server = Server::start().await;
    let (mut stream, _) = server.open("w", "run").await;
    stream.send(Request::Block(numbered_block(1, 10))).await;
    stream.acknowledged(10).await;
    stream.send(Request::Block(numbered_block(3, 7))).await;
    stream.acknowledged(10).await;
    stream.send(Request::Block(numbered_block(8, 20))).await;
    stream.acknowledged(20).await;
    for first in [30, 35, 40] {
        stream.send(Request::Block(numbered_block(first, first + 4))).await;
    }
    let Reply::Retry(retry) = stream.next().await else { panic!() };
    assert_eq!((retry.sequence, retry.delay_ms), (21, 0));
    // Going back to the wrong place is told again.
    stream.send(Request::Block(numbered_block(25, 29))).await;
    let Reply::Retry(retry) = stream.next().await else { panic!() };
    assert_eq!(retry.sequence, 21);
    stream.send(Request::Block(numbered_block(21, 30))).await;
    stream.acknowledged(30).await;
    stream.send(Request::Finish(finish(40))).await;
    let Reply::Retry(retry) = stream.next().await else { panic!() };
    assert_eq!(retry.sequence, 31);
    assert_eq!(server.texts("w").await, numbers(1, 30));
}

#[tokio::test]
async fn what_the_server_expects_and_nobody_has_becomes_a_gap() {
    let server = Server::start().await;
    let (mut stream, _) = server.open("w", "run").await;
    stream.send(Request::Block(numbered_block(1, 5))).await;
    stream.acknowledged(5).await;
    drop(stream);
    let mut stream = Batches::begin(&mut server.logs().await).await;
    stream.send(Request::Open(OpenRun { first_available: 101, ..open("w", "run") })).await;
    let Reply::Opened(opened) = stream.next().await else { panic!() };
    assert_eq!(opened.expected_sequence, 101);
    stream.send(Request::Block(numbered_block(101, 110))).await;
    stream.acknowledged(110).await;
    stream.send(Request::Finish(FinishRun { last_sequence: 110, ..FinishRun::default() })).await;
    assert_eq!(finished(&mut stream).await.missing_lines, 95);
    let run = server.run("w", "run").await;
    assert!(!run.complete);
    assert_eq!(run.gaps.len(), 1);
    assert_eq!(run.gaps[0].reason(), log_gap::Reason::ServerLost);
    let read = server.read(task()).await;
    assert_eq!(read.texts(), [numbers(1, 5), numbers(101, 110)].concat());
    assert_eq!(read.gaps[0].gap.as_ref().unwrap().last_sequence, 100);
}

#[tokio::test]
async fn gaps_told_by_the_worker() {
    let server = Server::start().await;
    let (mut stream, _) = server.open("w", "run").await;
    let gap = |first_sequence, last_sequence, reason: log_gap::Reason| {
        Request::Gap(LogGap { first_sequence, last_sequence, reason: reason.into(), message: "why".to_owned() })
    };
    stream.send(Request::Block(numbered_block(1, 3))).await;
    stream.send(gap(4, 6, log_gap::Reason::SpoolFull)).await;
    stream.acknowledged(6).await;
    // Partly there already, then all of it.
    stream.send(gap(5, 8, log_gap::Reason::SpoolFull)).await;
    stream.acknowledged(8).await;
    stream.send(gap(5, 8, log_gap::Reason::SpoolFull)).await;
    stream.acknowledged(8).await;
    // The end is unknown: it does not move the run on, and is stored once however often it is sent.
    for _ in 0..3 {
        stream.send(gap(9, 0, log_gap::Reason::AgentLost)).await;
        stream.acknowledged(8).await;
    }
    stream.send(gap(20, 22, log_gap::Reason::SpoolFull)).await;
    let Reply::Retry(retry) = stream.next().await else { panic!() };
    assert_eq!(retry.sequence, 9);
    let read = server.read(task()).await;
    let gaps: Vec<_> = read
        .gaps
        .iter()
        .map(|gap| gap.gap.as_ref().unwrap())
        .map(|gap| (gap.first_sequence, gap.last_sequence))
        .collect();
    assert_eq!(gaps, [(4, 6), (7, 8), (9, 0)]);
    stream.send(gap(9, 3, log_gap::Reason::SpoolFull)).await;
    assert_code(stream.end().await, Code::InvalidArgument, "gap.last_sequence");
}

#[tokio::test]
async fn a_gap_of_unknown_end_is_stored_once_however_many_gaps_there_were() {
    let server = Server::start().await;
    let (mut stream, _) = server.open("w", "run").await;
    let gap = |first_sequence, last_sequence| {
        let reason = log_gap::Reason::SpoolFull.into();
        Request::Gap(LogGap { first_sequence, last_sequence, reason, ..LogGap::default() })
    };
    // More than are listed with a run.
    for first in 1..=1_050 {
        stream.send(gap(first, first)).await;
        if first % 50 == 0 {
            stream.acknowledged(first).await;
        }
    }
    for _ in 0..3 {
        stream.send(gap(1_051, 0)).await;
        stream.acknowledged(1_050).await;
    }
    let read = server.read(task()).await;
    let open = read.gaps.iter().filter(|gap| gap.gap.as_ref().unwrap().last_sequence == 0).count();
    assert_eq!(open, 1);
}

#[tokio::test]
async fn a_newer_session_wins() {
    let server = Server::start().await;
    let (mut older, _) = server.open("w", "run").await;
    older.send(Request::Block(numbered_block(1, 10))).await;
    older.acknowledged(10).await;
    let (mut newer, opened) = server.open("w", "run").await;
    assert_eq!(opened.expected_sequence, 11);
    assert_code(older.end().await, Code::Aborted, "newer session");
    newer.send(Request::Block(numbered_block(11, 12))).await;
    newer.acknowledged(12).await;
    assert_eq!(server.texts("w").await, numbers(1, 12));
}

#[tokio::test]
async fn what_breaks_the_contract_is_named() {
    let server = Server::start().await;
    server.register("w", "run").await;
    let begin = async |first: Request| {
        let stream = Batches::begin(&mut server.logs().await).await;
        stream.send(first).await;
        stream
    };
    let mut stream = begin(Request::Block(numbered_block(1, 2))).await;
    assert_code(stream.end().await, Code::InvalidArgument, "open");
    for (field, wrong) in [
        ("open.worker_id", OpenRun { worker_id: String::new(), ..open("w", "run") }),
        ("open.task_id", OpenRun { task_id: String::new(), ..open("w", "run") }),
        ("open.run_id", OpenRun { run_id: String::new(), ..open("w", "run") }),
        ("open.first_available", OpenRun { first_available: u64::MAX, ..open("w", "run") }),
    ] {
        assert_code(begin(Request::Open(wrong)).await.end().await, Code::InvalidArgument, field);
    }
    assert_code(
        begin(Request::Open(open("w", "unknown"))).await.end().await,
        Code::FailedPrecondition,
        "RegisterWorker",
    );
    let good = numbered_block(1, 2);
    for (field, wrong) in [
        ("format", LogBlock { format: 2, ..good.clone() }),
        ("payload_crc32c", LogBlock { payload_crc32c: 1, ..good.clone() }),
        ("first_sequence", LogBlock { first_sequence: 0, ..good.clone() }),
        ("line_count", LogBlock { line_count: 0, ..good.clone() }),
        ("compression", LogBlock { compression: 9, ..good.clone() }),
        ("first_sequence", LogBlock { first_sequence: u64::MAX, ..good.clone() }),
    ] {
        let (mut stream, _) = server.open("w", "run").await;
        stream.send(Request::Block(wrong)).await;
        assert_code(stream.end().await, Code::InvalidArgument, field);
    }
    let (mut stream, _) = server.open("w", "run").await;
    stream.send(Request::Open(open("w", "run"))).await;
    assert_code(stream.end().await, Code::InvalidArgument, "open");
    let (mut stream, _) = server.open("w", "run").await;
    stream.send(Request::Block(good)).await;
    stream.acknowledged(2).await;
    stream.send(Request::Finish(FinishRun { last_sequence: 1, ..FinishRun::default() })).await;
    assert_code(stream.end().await, Code::InvalidArgument, "finish.last_sequence");
}

#[tokio::test]
async fn what_can_never_be_stored_becomes_a_gap() {
    let server = Server::start().await;
    let (mut stream, _) = server.open("w", "run").await;
    stream.send(Request::Block(numbered_block(1, 10))).await;
    stream.acknowledged(10).await;
    // It overlaps: what is stored stays.
    stream.send(Request::Block(LogBlock { payload_bytes: u32::MAX, ..numbered_block(6, 20) })).await;
    let Reply::Drop(refused) = stream.next().await else { panic!() };
    assert_eq!((refused.first_sequence, refused.last_sequence), (11, 20));
    assert!(refused.message.contains("too large"), "{}", refused.message);
    stream.send(Request::Block(numbered_block(21, 30))).await;
    stream.acknowledged(30).await;
    stream.send(Request::Finish(FinishRun { last_sequence: 30, ..FinishRun::default() })).await;
    assert_eq!(finished(&mut stream).await.missing_lines, 10);
    let run = server.run("w", "run").await;
    assert_eq!((run.gaps.len(), run.gaps[0].reason()), (1, log_gap::Reason::Refused));
    assert_eq!(server.texts("w").await, [numbers(1, 10), numbers(21, 30)].concat());
    // One that is damaged as well is not judged by what it says of itself.
    let (mut stream, _) = server.open("x", "run").await;
    stream.send(Request::Block(LogBlock { payload_bytes: u32::MAX, payload_crc32c: 1, ..numbered_block(1, 2) })).await;
    assert_code(stream.end().await, Code::InvalidArgument, "payload_");
}

#[tokio::test]
async fn a_stream_that_does_not_open_ends() {
    let server = Server::with(&["--open-timeout", "100ms"]).await;
    let mut stream = Batches::begin(&mut server.logs().await).await;
    assert_code(stream.end().await, Code::DeadlineExceeded, "open");
}

#[tokio::test]
async fn uploads_are_answered_at_their_end() {
    let server = Server::start().await;
    server.register("w", "run").await;
    let upload = async |messages: Vec<Request>| {
        let messages = messages.into_iter().map(|kind| LogBatchRequest { kind: Some(kind) });
        let call = server.logs().await.upload_logs(tokio_stream::iter(messages)).await;
        call.map(tonic::Response::into_inner)
    };
    let answer = upload(vec![Request::Open(open("w", "run")), Request::Block(numbered_block(1, 10))]).await.unwrap();
    assert_eq!((answer.stored_sequence, answer.duplicate_lines, answer.finished), (10, 0, false));
    let answer = upload(vec![
        Request::Open(open("w", "run")),
        Request::Block(numbered_block(1, 5)),
        Request::Block(numbered_block(6, 20)),
        Request::Finish(finish(20)),
    ])
    .await
    .unwrap();
    assert_eq!((answer.stored_sequence, answer.duplicate_lines), (20, 10));
    assert_eq!((answer.finished, answer.missing_lines), (true, 0));
    assert_eq!(server.texts("w").await, numbers(1, 20));
    server.register("x", "run").await;
    let hole = upload(vec![Request::Open(open("x", "run")), Request::Block(numbered_block(5, 6))]).await;
    let status = assert_code(hole, Code::FailedPrecondition, "sequence 1");
    assert_eq!(retry_delay(&status), None);
    assert_code(upload(vec![]).await, Code::InvalidArgument, "open");
}
