//! The job's bytes, exactly.

use http::StatusCode;
use otto_proto::block::Attributes;
use otto_proto::v1::{LogSource, log_gap};
use otto_testkit::eventually;

use super::http_support::{Server, Worker, at};

const RAW: &str = "/api/v1/tasks/t/workers/w/logs/raw";

/// A small generator, so that every run of a test is the same.
fn random(seed: u64) -> impl FnMut(u64) -> u64 {
    let mut state = seed;
    move |bound| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % bound.max(1)
    }
}

/// Output with everything a job can print: no UTF-8, NUL, `\r`, empty lines, long lines, no newline at the end.
async fn print_everything(worker: &mut Worker, blocks: usize) -> [Vec<u8>; 2] {
    let mut random = random(7);
    let mut printed = [Vec::new(), Vec::new()];
    for block in 0..blocks {
        let mut lines = Vec::new();
        for line in 0..1 + random(40) {
            let length = if random(30) == 0 { random(20_000) } else { random(120) };
            let mut bytes: Vec<u8> = (0..length).map(|_| random(256) as u8).filter(|byte| *byte != b'\n').collect();
            if random(12) != 0 {
                bytes.push(b'\n');
            }
            let source = if random(3) == 0 { LogSource::Stderr } else { LogSource::Stdout };
            lines.push((bytes, Attributes { source, ..at(block as i64 * 100 + line as i64) }));
        }
        for (bytes, attributes) in &lines {
            printed[usize::from(attributes.source == LogSource::Stderr)].extend_from_slice(bytes);
        }
        worker.send(lines).await;
    }
    worker.flushed().await;
    printed
}

#[tokio::test]
async fn bytes_and_ranges_are_exact() {
    let server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    let [out, err] = print_everything(&mut worker, 60).await;
    worker.finish(0).await;
    for (query, wanted) in [("?source=stdout", &out), ("?source=stderr", &err)] {
        let reply = server.get(&format!("{RAW}{query}")).await;
        assert!(reply.body[..] == wanted[..], "{query}");
        assert_eq!(reply.header("content-length"), wanted.len().to_string());
    }
    let whole = server.get(RAW).await;
    assert_eq!(whole.body.len(), out.len() + err.len());
    assert_eq!((whole.header("accept-ranges"), whole.header("otto-log-complete")), ("bytes", "true"));
    let head = server.send("HEAD", RAW, &[]).await;
    assert_eq!(
        (head.status, head.body.len(), head.header("content-length")),
        (StatusCode::OK, 0, whole.header("content-length"))
    );

    let length = whole.body.len() as u64;
    let mut random = random(11);
    for n in 0..150 {
        let (source, bytes) = if n % 3 == 0 { ("?source=stdout", &out[..]) } else { ("", &whole.body[..]) };
        let total = bytes.len() as u64;
        let first = random(total);
        let last = (first + random(if n % 2 == 0 { 100 } else { total })).min(total - 1);
        let range = match n % 5 {
            0 => format!("bytes={first}-"),
            _ => format!("bytes={first}-{last}"),
        };
        let end = if n % 5 == 0 { total } else { last + 1 };
        let reply = server.send("GET", &format!("{RAW}{source}"), &[("range", &range)]).await;
        assert_eq!(reply.status, StatusCode::PARTIAL_CONTENT, "{range}");
        assert_eq!(reply.header("content-range"), format!("bytes {first}-{}/{total}", end - 1));
        assert!(reply.body[..] == bytes[first as usize..end as usize], "{range} of {total}");
    }
    let last = server.send("GET", RAW, &[("range", "bytes=-10")]).await;
    assert!(last.body[..] == whole.body[whole.body.len() - 10..]);
    let beyond = server.send("GET", RAW, &[("range", &format!("bytes={length}-"))]).await;
    assert_eq!((beyond.status.as_u16(), beyond.header("content-range")), (416, format!("bytes */{length}").as_str()));
    let tag = whole.header("etag");
    let same = server.send("GET", RAW, &[("range", "bytes=0-3"), ("if-range", tag)]).await;
    assert_eq!(same.status, StatusCode::PARTIAL_CONTENT);
    let other = server.send("GET", RAW, &[("range", "bytes=0-3"), ("if-range", "\"other\"")]).await;
    assert_eq!((other.status, other.body.len()), (StatusCode::OK, whole.body.len()));
}

#[tokio::test]
async fn a_growing_log_of_several_runs_is_fetched_piece_by_piece() {
    let server = Server::start(&[]).await;
    let channel = server.program.channel().await.unwrap();
    let mut first = Worker::over(channel.clone(), "t", "w", "one").await;
    first.print([("from the first run\n", at(0))]).await;
    let mut second = Worker::over(channel, "t", "w", "two").await;
    let mut expected = b"from the first run\n".to_vec();
    let mut fetched = Vec::new();
    let mut tags = std::collections::HashSet::new();
    for n in 0..20i64 {
        let lines: Vec<String> = (0..50).map(|line| format!("{n}: {line}\n")).collect();
        expected.extend(lines.concat().into_bytes());
        second.print(lines.iter().map(|line| (line, at(n)))).await;
        let range = format!("bytes={}-", fetched.len());
        let reply = server.send("GET", RAW, &[("range", &range)]).await;
        assert_eq!(reply.status, StatusCode::PARTIAL_CONTENT);
        assert!(tags.insert(reply.header("etag").to_owned()), "the tag did not change");
        assert_eq!(reply.header("otto-log-complete"), "false");
        fetched.extend_from_slice(&reply.body);
        assert!(fetched == expected);
    }
    let one = server.get(&format!("{RAW}?run=one")).await;
    assert_eq!(one.text(), "from the first run\n");
}

#[tokio::test]
async fn an_empty_log_and_one_with_gaps() {
    let server = Server::start(&[]).await;
    Worker::connect(&server, "t", "w").await.finish(0).await;
    let empty = server.get(RAW).await;
    assert_eq!((empty.status, empty.body.len(), empty.header("content-length")), (StatusCode::OK, 0, "0"));
    let mut worker = Worker::connect(&server, "u", "w").await;
    worker.print([("before\n", at(0))]).await;
    worker.lose(5, log_gap::Reason::AgentLost).await;
    worker.print([("after", at(1))]).await;
    worker.finish(1).await;
    let holed = server.get("/api/v1/tasks/u/workers/w/logs/raw").await;
    assert_eq!(holed.text(), "before\nafter");
    assert_eq!((holed.header("otto-log-complete"), holed.header("otto-missing-lines")), ("false", "4"));
}

/// Many megabytes to a client that takes them slowly must not gather in the server's memory.
#[tokio::test]
async fn a_large_download_is_streamed() {
    use http_body_util::BodyExt as _;

    let server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    let line = format!("{}\n", "0123456789".repeat(100));
    for block in 0..200i64 {
        worker.send((0..500).map(|n| (&line, at(block * 500 + n)))).await;
        if block % 20 == 0 {
            worker.flushed().await;
        }
    }
    worker.finish(0).await;
    let length = line.len() as u64 * 100_000;
    let before = server.program.process.resident_bytes().unwrap();
    let mut slow = Vec::new();
    for _ in 0..8 {
        let response = server.open("GET", RAW, &[]).await;
        assert_eq!(response.headers()["content-length"], length.to_string());
        slow.push(response.into_body());
    }
    // All have begun, none goes on.
    for body in &mut slow {
        body.frame().await.unwrap().unwrap();
    }
    let grown = server.program.process.resident_bytes().unwrap().saturating_sub(before);
    assert!(grown < 60 << 20, "{} MiB for eight downloads of {} MiB", grown >> 20, length >> 20);
    let mut first = slow.swap_remove(0);
    drop(slow);
    let mut rest = 0;
    while let Some(frame) = first.frame().await {
        rest += frame.unwrap().into_data().unwrap().len() as u64;
    }
    assert!(rest < length && rest > length - (8 << 20));
    // What the others had taken is free again.
    eventually("the downloads' places are free", async || {
        let all: Vec<_> = futures::future::join_all((0..8).map(|_| server.send("HEAD", RAW, &[]))).await;
        all.iter().all(|reply| reply.status == StatusCode::OK).then_some(())
    })
    .await;
}
