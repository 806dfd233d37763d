//! Server-Sent Events: in order, at once, resumed without loss or repetition, and at nobody else's cost.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use http::StatusCode;
use otto_proto::v1::worker_event::Type;
use otto_proto::v1::{WorkerEvent, log_gap};
use otto_testkit::eventually;
use rustix::process::Signal;
use tokio::sync::watch;

use super::http_support::{Server, Worker, at, event, sequences, within};

const STREAM: &str = "/api/v1/tasks/t/workers/w/logs/stream";

#[tokio::test]
async fn lines_gaps_events_and_the_end_come_as_they_happen() {
    let server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    worker.print([("one\n", at(1))]).await;
    let mut events = server.events(STREAM, None).await;
    let first = events.until("lines").await;
    assert_eq!((sequences(&first.data), first.id.is_some()), (vec![1], true));
    assert_eq!((&first.data[0]["message"], &first.data[0]["worker_id"]), (&"one".into(), &"w".into()));

    worker.print([("two\n", at(2)), ("three\n", at(3))]).await;
    let mut seen = Vec::new();
    while seen.len() < 2 {
        seen.extend(sequences(&events.until("lines").await.data));
    }
    assert_eq!(seen, [2, 3]);

    worker.lose(10, log_gap::Reason::Refused).await;
    let gap = events.until("gap").await;
    assert_eq!(
        (&gap.data["first_sequence"], &gap.data["last_sequence"], &gap.data["reason"]),
        (&4.into(), &10.into(), &"refused".into())
    );

    server.report(vec![event("t", "w", Type::Started, "runs")]).await;
    assert_eq!(events.until("event").await.data["type"], "started");

    worker.finish(0).await;
    let ended = WorkerEvent { task_state: "succeeded".into(), ..event("t", "", Type::TaskEnded, "") };
    server.report(vec![event("t", "w", Type::Succeeded, ""), ended]).await;
    let mut last_id = None;
    let end = loop {
        let event = events.next().await.expect("an end");
        last_id = event.id.clone().or(last_id);
        if event.name == "end" {
            break event;
        }
    };
    assert_eq!((&end.data["reason"], &end.data["resume"]), (&"complete".into(), &false.into()));
    assert!(events.next().await.is_none());
    // An EventSource comes back by itself; this keeps it away. A server that is too slow to know tells the end once more.
    let id = last_id.expect("a position");
    eventually("the answer that keeps it away", async || {
        let over = server.send("GET", STREAM, &[("last-event-id", &id)]).await;
        assert!(over.status == StatusCode::NO_CONTENT || over.text().contains("event: end\n"), "{}", over.text());
        (over.status == StatusCode::NO_CONTENT).then_some(())
    })
    .await;
}

#[tokio::test]
async fn where_to_begin_and_what_to_leave_out() {
    let server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    worker.print((1..=100).map(|n| (format!("line {n}\n"), at(n)))).await;
    for (query, wanted) in [
        ("from=98", vec![98, 99, 100]),
        ("tail=2", vec![99, 100]),
        ("q=line%209", vec![9, 90, 91, 92, 93, 94, 95, 96, 97, 98, 99]),
        ("regex=0%24&from=80", vec![80, 90, 100]),
        ("run=r-w&from=100", vec![100]),
    ] {
        let mut events = server.events(&format!("{STREAM}?{query}"), None).await;
        let mut seen = Vec::new();
        while seen.len() < wanted.len() {
            seen.extend(sequences(&events.until("lines").await.data));
        }
        assert_eq!(seen, wanted, "{query}");
    }
    // A window and then the stream, without a seam.
    let window = server.json("/api/v1/tasks/t/workers/w/logs?tail=5").await;
    let mut events = server.events(&format!("{STREAM}?after={}", window["after"].as_str().unwrap()), None).await;
    worker.print([("next\n", at(101))]).await;
    assert_eq!(sequences(&events.until("lines").await.data), [101]);
}

/// Readers that lose their connection again and again while workers print.
#[tokio::test]
async fn resuming_loses_and_repeats_nothing_under_load() {
    const WORKERS: u64 = 3;
    const LINES: u64 = 12_000;
    let server = std::sync::Arc::new(Server::start(&[]).await);
    let mut printing = tokio::task::JoinSet::new();
    let mut workers = Vec::new();
    for w in 0..WORKERS {
        workers.push(Worker::connect(&server, "t", if w == 0 { "w" } else { ["", "x", "y"][w as usize] }).await);
    }
    // Each quarter is printed once both readers have connected once more.
    let (opened, _) = watch::channel([0; 2]);
    for mut worker in workers {
        let mut opened = opened.subscribe();
        printing.spawn(async move {
            while worker.next <= LINES {
                let first = worker.next;
                opened.wait_for(|opened| opened.iter().all(|opened| *opened > (first - 1) * 4 / LINES)).await.unwrap();
                worker.send((first..(first + 37).min(LINES + 1)).map(|n| (format!("{n}\n"), at(n as i64)))).await;
                if first.is_multiple_of(5) {
                    worker.flushed().await;
                }
            }
            worker.finish(0).await;
        });
    }
    for (reader, path, total) in [(0, STREAM, LINES), (1, "/api/v1/tasks/t/logs/stream", LINES * WORKERS)] {
        let (server, opened) = (server.clone(), opened.clone());
        printing.spawn(async move {
            let mut seen: HashMap<String, u64> = HashMap::new();
            let (mut count, mut id, mut connections) = (0, None::<String>, 0);
            while count < total {
                let mut events = server.events(path, id.as_deref()).await;
                connections += 1;
                opened.send_modify(|opened| opened[reader] = connections);
                // Cut after the first lines of a quarter, then after ever more events, so that there is an end.
                for n in 1.. {
                    let Some(event) = events.next().await else { break };
                    let lines = event.name == "lines";
                    if lines {
                        for line in event.data.as_array().unwrap() {
                            let last = seen.entry(line["worker_id"].as_str().unwrap().to_owned()).or_default();
                            assert_eq!(
                                line["sequence"].as_u64().unwrap(),
                                *last + 1,
                                "{path}, connection {connections}"
                            );
                            *last += 1;
                            count += 1;
                        }
                    }
                    id = event.id.or(id);
                    if count >= total || if connections < 4 { lines } else { n > connections } {
                        break;
                    }
                }
            }
            assert_eq!(count, total);
            assert!(connections > 3, "{connections} connections");
        });
    }
    within(Duration::from_secs(60), "everything printed is read", async {
        while let Some(done) = printing.join_next().await {
            done.unwrap();
        }
    })
    .await;
}

/// Readers that open a stream and never read.
#[tokio::test]
async fn a_stalled_reader_costs_nobody_else() {
    let server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    worker.print([("first\n", at(0))]).await;
    let mut stalled = Vec::new();
    for _ in 0..20 {
        stalled.push(server.open("GET", STREAM, &[]).await);
    }
    let before = server.program.process.resident_bytes().unwrap();
    let line = format!("{}\n", "x".repeat(200));
    for block in 0..100i64 {
        worker.send((0..1000).map(|n| (&line, at(block * 1000 + n)))).await;
        worker.flushed().await;
    }
    let grown = server.program.process.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 100 << 20, "{} MiB for 20 readers that do not read 20 MB", grown >> 20);
    // One that reads has everything at once.
    let mut events = server.events(&format!("{STREAM}?tail=1"), None).await;
    assert_eq!(sequences(&events.until("lines").await.data), [100_001]);
    drop(stalled);
}

#[tokio::test]
async fn a_line_is_shown_when_it_is_on_disk_not_when_a_timer_fires() {
    let server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    worker.print([("first\n", at(0))]).await;
    let mut events = server.events(STREAM, None).await;
    events.until("lines").await;
    let (mut stored, mut shown) = (Vec::new(), Vec::new());
    for n in 1..=100 {
        let printed = Instant::now();
        worker.print([(format!("{n}\n"), at(n))]).await;
        let acknowledged = Instant::now();
        assert_eq!(sequences(&events.until("lines").await.data), [n as u64 + 1]);
        stored.push(acknowledged - printed);
        shown.push(acknowledged.elapsed());
    }
    stored.sort_unstable();
    shown.sort_unstable();
    // Measured against the way to the disk in the same run, so that a busy machine does not matter.
    let bound = Duration::from_millis(10) + stored[50] * 2;
    assert!(shown[50] < bound, "median {:?} after the acknowledgement, which took {:?}", shown[50], stored[50]);
}

#[tokio::test]
async fn an_idle_stream_is_kept_alive() {
    let server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    worker.print([("first\n", at(0))]).await;
    let began = Instant::now();
    let mut events = server.events(STREAM, None).await;
    loop {
        let event = events.next_raw().await.expect("a comment");
        if event.name == ":" {
            break;
        }
    }
    assert!(began.elapsed().as_secs() >= 14, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_server_that_ends_says_so_and_its_successor_goes_on() {
    let mut server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    worker.print([("one\n", at(0))]).await;
    let mut events = server.events(STREAM, None).await;
    let id = events.until("lines").await.id.expect("a position");
    server.program.process.signal(Signal::TERM).unwrap();
    let end = events.until("end").await;
    assert_eq!((&end.data["reason"], &end.data["resume"]), (&"draining".into(), &true.into()));
    drop(worker);
    within(Duration::from_secs(30), "the server's end", server.program.process.wait()).await.unwrap();
    server.program.restart().await.unwrap();
    let mut events = server.events(STREAM, Some(&id)).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    assert_eq!(worker.next, 2);
    worker.print([("two\n", at(1))]).await;
    assert_eq!(sequences(&events.until("lines").await.data), [2]);
}

#[tokio::test]
async fn a_new_worker_joins_the_stream_of_its_task() {
    let server = Server::start(&[]).await;
    server.report(vec![event("t", "", Type::Queued, "")]).await;
    let mut events = server.events("/api/v1/tasks/t/logs/stream", None).await;
    assert_eq!(events.until("event").await.data["type"], "queued");
    for name in ["a", "b"] {
        let mut worker = Worker::connect(&server, "t", name).await;
        worker.print([(name, at(0))]).await;
        let lines = events.until("lines").await;
        assert_eq!((&lines.data[0]["worker_id"], &lines.data[0]["message"]), (&name.into(), &name.into()));
        worker.finish(0).await;
    }
    while events.until("status").await.data["task"]["workers"] != 2 {}
}

/// A worker that may come back is not the end of the log.
#[tokio::test]
async fn a_stream_that_waited_in_vain_is_not_called_complete() {
    let server = Server::start(&["--tail-linger", "200ms"]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    worker.print([("one\n", at(0))]).await;
    let mut events = server.events(STREAM, None).await;
    let id = events.until("lines").await.id.expect("a position");
    server.report(vec![event("t", "", Type::TaskEnded, "")]).await;
    drop(worker);
    let end = events.until("end").await;
    assert_eq!((&end.data["reason"], &end.data["resume"]), (&"unfinished".into(), &true.into()));
    let mut worker = Worker::connect(&server, "t", "w").await;
    let mut events = server.events(STREAM, Some(&id)).await;
    worker.print([("two\n", at(1))]).await;
    assert_eq!(sequences(&events.until("lines").await.data), [2]);
    worker.finish(0).await;
    let end = events.until("end").await;
    assert_eq!((&end.data["reason"], &end.data["resume"]), (&"complete".into(), &false.into()));
}
