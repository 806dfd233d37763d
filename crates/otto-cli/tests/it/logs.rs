//! `otto logs` without `-f`.

use otto_proto::v1::{LogLevel, LogSource, ReadLogsResponse};
use tokio::io::{AsyncBufReadExt, BufReader};
use tonic::Status;

use super::servers::*;

#[tokio::test]
async fn a_log_is_printed_and_said_to_be_complete() {
    let servers = Servers::start().await;
    servers.set(|state| {
        state.workers = Some(vec![complete("w", 3)]);
        state.streams = vec![vec![Step::Part(lines("w", 1..=3)), status(vec![complete("w", 3)])]].into();
    });
    let arguments = ["logs", "t", "w", "--tail", "9", "--since", "2026-01-31T12:00:00Z", "--grep", "a.c", "--level"];
    let said = servers.otto(&[&arguments[..], &["warn", "--level", "ERROR", "--source", "stderr"]].concat()).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "line 1\nline 2\nline 3\n"), "{said:?}");
    assert_eq!(said.err, "otto: complete, 3 of 3 lines\n");
    let read = servers.set(|state| state.reads.remove(0));
    assert_eq!((read.task_id.as_str(), read.worker_id.as_str(), read.tail_lines), ("t", "w", 9));
    assert_eq!((read.regex.as_str(), read.since.unwrap().seconds), ("a.c", 1_769_860_800));
    assert_eq!(read.levels, [LogLevel::Warn as i32, LogLevel::Error as i32]);
    assert_eq!(read.sources, [LogSource::Stderr as i32]);
}

#[tokio::test]
async fn a_live_log_is_no_fault_but_a_gap_is() {
    let servers = Servers::start().await;
    let mut live = complete("w", 1);
    live.runs[0].complete = false;
    live.runs[0].finish = None;
    servers.set(|state| {
        state.workers = Some(vec![live.clone()]);
        state.streams = vec![vec![Step::Part(lines("w", 1..=1)), status(vec![live.clone()])]].into();
    });
    let said = servers.otto(&["logs", "t"]).await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), "otto: w: 1 lines so far\n"), "{said:?}");
    live.runs[0].gaps = vec![otto_proto::v1::LogGap { first_sequence: 2, ..Default::default() }];
    servers.set(|state| state.streams = vec![vec![status(vec![live])]].into());
    let said = servers.otto(&["logs", "t"]).await;
    assert_eq!(said.code, Some(5), "{said:?}");
    assert!(said.err.contains("lines from 2 are missing"), "{said:?}");
}

#[tokio::test]
async fn raw_is_the_jobs_bytes_worker_after_worker() {
    let servers = Servers::start().await;
    let mut strange = line("a", 2, b"\xff\x00 50%\r100%");
    strange.unterminated = true;
    let part = ReadLogsResponse { lines: vec![line("a", 1, b""), strange], ..ReadLogsResponse::default() };
    servers.set(|state| {
        state.workers = Some(vec![complete("a", 2), complete("b", 1)]);
        state.streams = vec![
            vec![Step::Part(part), status(vec![complete("a", 2)])],
            vec![Step::Part(lines("b", 1..=1)), status(vec![complete("b", 1)])],
        ]
        .into();
    });
    let mut command = servers.command(&["logs", "t", "--raw"]);
    let output = command.output().await.unwrap();
    assert_eq!(output.stdout, b"\n\xff\x00 50%\r100%line 1\n");
    assert!(output.status.success());
    let workers = servers.set(|state| state.reads.iter().map(|read| read.worker_id.clone()).collect::<Vec<_>>());
    assert_eq!(workers, ["a", "b"]);
    assert_eq!(servers.otto(&["logs", "t", "c", "--raw"]).await.code, Some(3));
}

#[tokio::test]
async fn json_has_one_object_a_line() {
    let servers = Servers::start().await;
    let mut strange = line("w", 2, b"\xff");
    strange.level = LogLevel::Error.into();
    strange.source = LogSource::Stderr.into();
    let mut part = lines("w", 1..=1);
    part.lines.push(strange);
    servers.set(|state| {
        state.workers = Some(vec![complete("w", 2)]);
        state.streams = vec![vec![Step::Part(part), status(vec![complete("w", 2)])]].into();
    });
    let said = servers.otto(&["--output", "json", "logs", "t"]).await;
    let objects: Vec<serde_json::Value> = said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(objects[0]["message"], "line 1");
    assert_eq!(objects[0]["time"], "2023-11-14T22:13:20Z");
    assert_eq!((&objects[1]["level"], &objects[1]["source"]), (&"error".into(), &"stderr".into()));
    assert_eq!(objects[1]["message_base64"], "/w==");
}

#[tokio::test]
async fn an_unknown_task_is_3_and_a_break_in_the_middle_is_none() {
    let servers = Servers::start().await;
    let said = servers.otto(&["logs", "nobody"]).await;
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.err.contains("log server http://127.0.0.1:") && said.err.contains("nobody"), "{said:?}");
    let mut first = lines("w", 1..=2);
    first.resume_token = "after 2".into();
    servers.set(|state| {
        state.workers = Some(vec![complete("w", 3)]);
        state.streams = vec![
            vec![Step::Part(first), Step::Fail(Status::unavailable("gone"))],
            vec![Step::Part(lines("w", 3..=3)), status(vec![complete("w", 3)])],
        ]
        .into();
    });
    let said = servers.otto(&["logs", "t"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "line 1\nline 2\nline 3\n"), "{said:?}");
    // But one that never begins is told at once.
    servers.set(|state| state.streams = vec![vec![Step::Fail(Status::unavailable("the disk is full"))]].into());
    let said = servers.otto(&["logs", "t"]).await;
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.err.contains("the disk is full"), "{said:?}");
}

#[tokio::test]
async fn head_ends_it_quietly() {
    let servers = Servers::start().await;
    let steps = (0..200).map(|part| Step::Part(lines("w", part * 1_000 + 1..=part * 1_000 + 1_000))).collect();
    servers.set(|state| {
        state.workers = Some(vec![complete("w", 200_000)]);
        state.streams = vec![steps].into();
    });
    let mut child = start(servers.command(&["logs", "t"]));
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(out.next_line().await.unwrap().unwrap(), "line 1");
    drop(out);
    let said = end(child).await;
    assert_eq!((said.code, said.err.as_str()), (Some(0), ""), "{said:?}");
}
