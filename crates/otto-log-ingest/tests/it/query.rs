//! `LogQueryService`.

use otto_proto::v1::worker_event::Type;
use prost_types::Timestamp;
use tonic::Code;

use crate::support::wire::*;
use crate::support::*;

/// A run with lines "line 1" to "line N", whose times are their numbers in seconds.
async fn fill(server: &Server, worker: &str, run: &str, lines: u64) -> Batches {
    let (mut stream, opened) = server.open(worker, run).await;
    let mut next = opened.expected_sequence;
    while next <= lines {
        let last = (next + 99).min(lines);
        stream.send(Request::Block(numbered_block(next, last))).await;
        next = last + 1;
    }
    stream.acknowledged(lines).await;
    stream
}

async fn finish(stream: &mut Batches, last_sequence: u64) {
    stream.send(Request::Finish(FinishRun { last_sequence, ..FinishRun::default() })).await;
    stream.end().await.unwrap();
}

fn of(worker: &str) -> ReadLogsRequest {
    ReadLogsRequest { worker_id: worker.to_owned(), ..task() }
}

fn second(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

fn event(id: &str, worker: &str, kind: Type) -> WorkerEvent {
    let mut event = WorkerEvent {
        event_id: id.to_owned(),
        task_id: TASK.to_owned(),
        worker_id: worker.to_owned(),
        message: format!("message of {id}"),
        time: second(1),
        ..WorkerEvent::default()
    };
    event.set_type(kind);
    if kind == Type::TaskEnded {
        event.task_state = "succeeded".to_owned();
    }
    event
}

async fn report(server: &Server, events: Vec<WorkerEvent>) -> u32 {
    let request = ReportWorkerEventsRequest { events };
    server.events().await.report_worker_events(request).await.unwrap().into_inner().stored
}

async fn tail(server: &Server, request: ReadLogsRequest) -> tonic::Streaming<ReadLogsResponse> {
    server.queries().await.tail_logs(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn tasks_and_workers_are_listed() {
    let server = Server::start().await;
    let mut queries = server.queries().await;
    assert_code(
        queries.list_log_workers(ListLogWorkersRequest { task_id: TASK.to_owned() }).await,
        Code::NotFound,
        TASK,
    );
    for n in 0..5 {
        let registration = WorkerRegistration { task_id: format!("t-{n}"), ..registration("w", "r") };
        server.logs().await.register_worker(registration).await.unwrap();
    }
    let page = |page_size, page_token: &str| ListLogTasksRequest { page_size, page_token: page_token.to_owned() };
    let first = queries.list_log_tasks(page(3, "")).await.unwrap().into_inner();
    let second = queries.list_log_tasks(page(3, &first.next_page_token)).await.unwrap().into_inner();
    let names: Vec<_> = first.tasks.iter().chain(&second.tasks).map(|task| task.task_id.as_str()).collect();
    assert_eq!(names, ["t-4", "t-3", "t-2", "t-1", "t-0"]);
    assert_eq!(second.next_page_token, "");
    assert_code(queries.list_log_tasks(page(1001, "")).await, Code::InvalidArgument, "page_size");
    assert_code(queries.list_log_tasks(page(1, "x")).await, Code::InvalidArgument, "page_token");

    let mut stream = fill(&server, "w", "run", 10).await;
    finish(&mut stream, 10).await;
    let _open = fill(&server, "w", "run-2", 3).await;
    report(&server, vec![event("e", "w", Type::Started)]).await;
    let request = ListLogWorkersRequest { task_id: TASK.to_owned() };
    let answer = queries.list_log_workers(request).await.unwrap().into_inner();
    let [worker] = &answer.workers[..] else { panic!("{answer:?}") };
    let [first, second] = &worker.runs[..] else { panic!("{worker:?}") };
    assert_eq!((first.lines, first.last_sequence, first.complete, first.connected), (10, 10, true, false));
    assert_eq!((second.lines, second.complete, second.connected), (3, false, true));
    assert_eq!(first.first_time.unwrap().seconds, 1);
    assert_eq!(first.last_time.unwrap().seconds, 10);
    assert_eq!(answer.events[0].event_id, "e");
}

#[tokio::test]
async fn ranges_filters_and_the_end() {
    let server = Server::start().await;
    let mut stream = fill(&server, "w", "run", 1000).await;
    let sequences = async |request: ReadLogsRequest| server.read(request).await.sequences();
    assert_eq!(sequences(ReadLogsRequest { from_sequence: 990, ..of("w") }).await, (990..=1000).collect::<Vec<_>>());
    assert_eq!(sequences(ReadLogsRequest { from_sequence: 2000, ..of("w") }).await, [0u64; 0]);
    assert_eq!(sequences(ReadLogsRequest { tail_lines: 3, ..task() }).await, [998, 999, 1000]);
    assert_eq!(sequences(ReadLogsRequest { tail_lines: 5000, ..task() }).await.len(), 1000);
    let contains = ReadLogsRequest { contains: "line 99".to_owned(), ..task() };
    assert_eq!(sequences(contains.clone()).await, [vec![99], (990..=999).collect()].concat());
    // The last lines of those that match, however far back they are.
    assert_eq!(sequences(ReadLogsRequest { tail_lines: 2, ..contains }).await, [998, 999]);
    let regex = ReadLogsRequest { regex: "^line [12]$".to_owned(), ..task() };
    assert_eq!(sequences(ReadLogsRequest { tail_lines: 7, ..regex.clone() }).await, [1, 2]);
    assert_eq!(sequences(ReadLogsRequest { since: second(5), until: second(8), ..task() }).await, [5, 6, 7]);
    assert_eq!(sequences(ReadLogsRequest { since: second(998), ..task() }).await, [998, 999, 1000]);
    assert_eq!(sequences(ReadLogsRequest { limit: 2, ..task() }).await, [1, 2]);
    assert_eq!(sequences(ReadLogsRequest { levels: vec![LogLevel::Error.into()], ..task() }).await, [0u64; 0]);
    assert_eq!(sequences(ReadLogsRequest { levels: vec![LogLevel::Info.into()], limit: 1, ..task() }).await, [1]);
    assert_eq!(sequences(ReadLogsRequest { sources: vec![LogSource::Stderr.into()], ..task() }).await, [0u64; 0]);
    let status = server.read(regex).await.status;
    assert_eq!(status[0].runs[0].lines, 1000);
    finish(&mut stream, 1000).await;
    assert!(server.read(task()).await.status[0].runs[0].complete);

    let mut queries = server.queries().await;
    for (request, code, part) in [
        (ReadLogsRequest::default(), Code::InvalidArgument, "task_id"),
        (ReadLogsRequest { regex: "(".to_owned(), ..task() }, Code::InvalidArgument, "regex"),
        (ReadLogsRequest { resume_token: "x".to_owned(), ..task() }, Code::InvalidArgument, "resume_token"),
        (ReadLogsRequest { task_id: "nothing".to_owned(), ..task() }, Code::NotFound, "\"nothing\""),
        (of("nobody"), Code::NotFound, "\"nobody\""),
        (ReadLogsRequest { run_id: "none".to_owned(), ..of("w") }, Code::NotFound, "\"none\""),
    ] {
        assert_code(queries.read_logs(request).await, code, part);
    }
}

#[tokio::test]
async fn a_token_goes_on_right_after_its_message() {
    let server = Server::start().await;
    for worker in ["a", "b", "c"] {
        let mut stream = fill(&server, worker, "run", 500).await;
        finish(&mut stream, 500).await;
    }
    let whole = server.read(task()).await;
    assert_eq!(whole.lines.len(), 1500);
    let mut pieces = Vec::new();
    let mut request = ReadLogsRequest { limit: 97, ..task() };
    loop {
        let read = server.read(request.clone()).await;
        if read.lines.is_empty() {
            break;
        }
        request.resume_token = read.token;
        pieces.extend(read.lines);
    }
    assert_eq!(pieces, whole.lines);
    let other = ReadLogsRequest { worker_id: "a".to_owned(), ..request };
    assert_code(server.queries().await.read_logs(other).await, Code::InvalidArgument, "resume_token");
}

#[tokio::test]
async fn workers_are_merged_by_time_each_in_its_own_order() {
    // With so little memory some blocks are put away and read again.
    for flags in [&[][..], &["--reader-bytes", "20KiB"]] {
        let server = Server::with(flags).await;
        for worker in 0..5u64 {
            let (mut stream, _) = server.open(&format!("w-{worker}"), "run").await;
            for first in (1..=300).step_by(100) {
                let lines = numbers(first, first + 99);
                let lines: Vec<_> = lines.iter().map(String::as_str).collect();
                let block = block_at(first, &lines, |sequence| (sequence * 10 + worker) as i64);
                stream.send(Request::Block(block)).await;
            }
            stream.acknowledged(300).await;
        }
        let read = server.read(task()).await;
        assert_eq!(read.lines.len(), 1500);
        for worker in 0..5u64 {
            let own = read.lines.iter().filter(|line| line.worker_id == format!("w-{worker}"));
            assert!(own.map(|line| line.sequence).eq(1..=300));
        }
        let sorted = read.lines.is_sorted_by_key(|line| line.time_unix_nanos);
        assert_eq!(sorted, flags.is_empty(), "{flags:?}");
        if flags.is_empty() {
            let last = server.read(ReadLogsRequest { tail_lines: 7, ..task() }).await;
            assert_eq!(last.lines, read.lines[1493..]);
        }
    }
}

#[tokio::test]
async fn following_neither_loses_nor_repeats() {
    let server = Server::start().await;
    let mut stream = fill(&server, "w", "run", 1000).await;
    let mut following = tail(&server, of("w")).await;
    let mut late = tail(&server, ReadLogsRequest { tail_lines: 10, ..of("w") }).await;
    let (mut read, mut last) = (Read::default(), Read::default());
    assert!(last.one(&mut late).await);
    assert_eq!(last.sequences(), (991..=1000).collect::<Vec<_>>());
    for first in (1001..2000).step_by(50) {
        stream.send(Request::Block(numbered_block(first, first + 49))).await;
    }
    stream.acknowledged(2000).await;
    while read.lines.len() < 2000 {
        assert!(read.one(&mut following).await);
    }
    nothing_yet(following.message()).await;
    finish(&mut stream, 2000).await;
    // Nobody told of the task: its end is that of its runs.
    while read.one(&mut following).await {}
    while last.one(&mut late).await {}
    assert_eq!(read.sequences(), (1..=2000).collect::<Vec<_>>());
    assert_eq!(last.sequences(), (991..=2000).collect::<Vec<_>>());
    assert!(read.status[0].runs[0].complete);
    // A reader that comes later sees the same, and one that was cut goes on.
    let mut again = Read::default();
    let mut stream = tail(&server, ReadLogsRequest { resume_token: last.token.clone(), ..of("w") }).await;
    while again.one(&mut stream).await {}
    assert_eq!(again.sequences(), [0u64; 0]);
}

#[tokio::test]
async fn a_task_is_followed_through_its_events_to_its_end() {
    let server = Server::start().await;
    // Before anything is known of it.
    let mut following = tail(&server, task()).await;
    let mut read = Read::default();
    assert_eq!(report(&server, vec![event("1", "", Type::Queued), event("2", "w", Type::Created)]).await, 2);
    assert_eq!(report(&server, vec![event("2", "w", Type::Created), event("3", "w", Type::Started)]).await, 1);
    while read.events.len() < 3 {
        assert!(read.one(&mut following).await);
    }
    let mut stream = fill(&server, "w", "run", 10).await;
    finish(&mut stream, 10).await;
    let mut second = fill(&server, "w-2", "run", 5).await;
    while read.lines.len() < 15 {
        assert!(read.one(&mut following).await);
    }
    report(&server, vec![event("4", "w", Type::Succeeded), event("5", "", Type::TaskEnded)]).await;
    while read.events.len() < 5 {
        assert!(read.one(&mut following).await);
    }
    // A worker is still connected: its last lines are waited for.
    nothing_yet(following.message()).await;
    second.send(Request::Block(numbered_block(6, 7))).await;
    second.acknowledged(7).await;
    finish(&mut second, 7).await;
    while read.one(&mut following).await {}
    assert_eq!(read.lines.len(), 17);
    assert_eq!(read.events.iter().map(|event| event.event_id.as_str()).collect::<Vec<_>>(), ["1", "2", "3", "4", "5"]);
    assert_eq!(read.status.len(), 2);
    let tasks = server.queries().await.list_log_tasks(ListLogTasksRequest::default()).await.unwrap().into_inner();
    assert_eq!((tasks.tasks[0].task_state.as_str(), tasks.tasks[0].lines), ("succeeded", 17));
}

#[tokio::test]
async fn following_a_task_whose_workers_never_ran_ends_with_a_last_message() {
    let server = Server::start().await;
    let events = vec![event("1", "w", Type::Created), event("2", "w", Type::Failed), event("3", "", Type::TaskEnded)];
    report(&server, events).await;
    let mut following = tail(&server, task()).await;
    let (mut events, mut last) = (0, false);
    while let Some(part) = following.message().await.unwrap() {
        assert!(!last, "something after the last message");
        events += part.events.len();
        last = part.last;
    }
    assert_eq!((events, last), (3, true));
}

#[tokio::test]
async fn an_ended_task_does_not_wait_for_ever_for_a_lost_worker() {
    let server = Server::with(&["--tail-linger", "200ms"]).await;
    let stream = fill(&server, "w", "run", 3).await;
    report(&server, vec![event("1", "w", Type::Failed), event("2", "", Type::TaskEnded)]).await;
    let mut following = tail(&server, task()).await;
    let mut read = Read::default();
    while read.lines.len() < 3 {
        assert!(read.one(&mut following).await);
    }
    drop(stream);
    while read.one(&mut following).await {}
    assert!(!read.status[0].runs[0].complete);
}

#[tokio::test]
async fn a_new_run_of_a_followed_worker_appears() {
    let server = Server::start().await;
    let lost = fill(&server, "w", "run-1", 3).await;
    let mut following = tail(&server, of("w")).await;
    let mut read = Read::default();
    while read.lines.len() < 3 {
        assert!(read.one(&mut following).await);
    }
    drop(lost);
    let mut second = fill(&server, "w", "run-2", 2).await;
    while read.lines.len() < 5 {
        assert!(read.one(&mut following).await);
    }
    finish(&mut second, 2).await;
    // The older run has ended without telling.
    while read.one(&mut following).await {}
    assert_eq!(read.status[0].runs.len(), 2);
    assert_eq!(
        read.lines.iter().map(|line| line.run_id.as_str()).collect::<Vec<_>>()[2..],
        ["run-1", "run-2", "run-2"]
    );
    // A sequence means the newest run.
    let newest = server.read(ReadLogsRequest { from_sequence: 1, ..of("w") }).await;
    assert!(newest.lines.iter().all(|line| line.run_id == "run-2"));
    assert_eq!(newest.lines.len(), 2);
}

#[tokio::test]
async fn a_reader_that_does_not_read_slows_nobody() {
    let server = Server::start().await;
    let (mut stream, _) = server.open("w", "run").await;
    let _stuck = tail(&server, task()).await;
    let mut reader = tail(&server, task()).await;
    let line = "x".repeat(1000);
    let lines = vec![line.as_str(); 1000];
    for n in 0..30 {
        stream.send(Request::Block(block(n * 1000 + 1, &lines))).await;
    }
    stream.acknowledged(30_000).await;
    let mut read = Read::default();
    while read.lines.len() < 30_000 {
        assert!(read.one(&mut reader).await);
    }
    assert!(read.sequences().into_iter().eq(1..=30_000));
}

#[tokio::test]
async fn events_are_checked() {
    let server = Server::start().await;
    let mut events = server.events().await;
    let mut send = async |list: Vec<WorkerEvent>| {
        events.report_worker_events(ReportWorkerEventsRequest { events: list }).await.map(tonic::Response::into_inner)
    };
    assert_eq!(send(vec![]).await.unwrap().stored, 0);
    let good = event("1", "w", Type::Created);
    for (field, wrong) in [
        ("events[1].event_id", WorkerEvent { event_id: String::new(), ..good.clone() }),
        ("events[1].task_id", WorkerEvent { task_id: String::new(), ..good.clone() }),
        ("events[1].worker_id", WorkerEvent { worker_id: "w".repeat(300), ..good.clone() }),
        ("events[1].message", WorkerEvent { message: "m".repeat(100 << 10), ..good.clone() }),
    ] {
        assert_code(send(vec![good.clone(), wrong]).await, Code::InvalidArgument, field);
    }
    assert_code(send(vec![good.clone(); 1001]).await, Code::InvalidArgument, "1000");
    // Nothing of a refused request was stored.
    assert_eq!(send(vec![good]).await.unwrap().stored, 1);
}

#[tokio::test]
async fn a_reading_of_a_run_that_goes_on_is_gone_on_with() {
    let server = Server::start().await;
    // Its first lines, one run without any line, and one that has ended.
    let mut stream = fill(&server, "w", "run", 10).await;
    let (mut empty, _) = server.open("empty", "run").await;
    let mut ended = fill(&server, "ended", "run", 3).await;
    finish(&mut ended, 3).await;
    let mut read = server.read(task()).await;
    assert_eq!(read.lines.len(), 13);
    let on = async |request: ReadLogsRequest, token: &str| {
        server.read(ReadLogsRequest { resume_token: token.to_owned(), ..request }).await
    };
    for last in [25, 130] {
        // Nothing new, however often it is asked.
        read = on(task(), &read.token).await;
        assert_eq!(read.sequences(), [0u64; 0]);
        let next = last - 14;
        stream.send(Request::Block(numbered_block(next, last))).await;
        stream.acknowledged(last).await;
        read = on(task(), &read.token).await;
        assert_eq!(read.sequences(), (next..=last).collect::<Vec<_>>());
        if last == 25 {
            stream.send(Request::Block(numbered_block(26, 115))).await;
            stream.acknowledged(115).await;
            read = on(task(), &read.token).await;
            assert_eq!(read.sequences(), (26..=115).collect::<Vec<_>>());
        }
    }
    empty.send(Request::Block(numbered_block(1, 2))).await;
    empty.acknowledged(2).await;
    read = on(task(), &read.token).await;
    assert_eq!(read.sequences(), [1, 2]);
    finish(&mut stream, 130).await;
    finish(&mut empty, 2).await;
    // A follower goes on there as well, and a filter changes nothing.
    let filtered = ReadLogsRequest { contains: "line 5".to_owned(), ..of("other") };
    let mut other = fill(&server, "other", "run", 4).await;
    let first = server.read(filtered.clone()).await;
    assert_eq!(first.sequences(), [0u64; 0]);
    other.send(Request::Block(numbered_block(5, 6))).await;
    other.acknowledged(6).await;
    finish(&mut other, 6).await;
    let resumed = tail(&server, ReadLogsRequest { resume_token: first.token, ..filtered }).await;
    assert_eq!(Read::all(resumed).await.sequences(), [5]);
}
