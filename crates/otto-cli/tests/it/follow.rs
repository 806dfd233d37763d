//! `otto logs -f` over everything that breaks.

use std::sync::Arc;

use otto_proto::v1::{LineGap, LogGap, log_gap::Reason};
use tokio::sync::Notify;
use tonic::Status;

use super::servers::*;

fn with_token(mut part: otto_proto::v1::ReadLogsResponse, token: &str) -> Step {
    part.resume_token = token.into();
    Step::Part(part)
}

#[tokio::test]
async fn a_broken_stream_goes_on_where_it_was() {
    let servers = Servers::start().await;
    servers.set(|state| {
        state.workers = Some(vec![]);
        state.streams = vec![
            vec![with_token(lines("w", 1..=3), "after 3"), Step::Fail(Status::unavailable("draining"))],
            // Ends without its last message, as behind a proxy.
            vec![with_token(lines("w", 4..=5), "after 5")],
            vec![Step::Fail(Status::unavailable("not yet"))],
            vec![Step::Part(lines("w", 6..=6)), status(vec![complete("w", 6)])],
        ]
        .into();
    });
    let said = servers.otto(&["logs", "-f", "t", "--grep", "line", "--tail", "10"]).await;
    assert_eq!(
        (said.code, said.out.as_str()),
        (Some(0), "line 1\nline 2\nline 3\nline 4\nline 5\nline 6\n"),
        "{said:?}"
    );
    assert!(said.err.contains("draining; trying again") && said.err.contains("connected again"), "{said:?}");
    let reads = servers.set(|state| std::mem::take(&mut state.reads));
    let tokens: Vec<&str> = reads.iter().map(|read| read.resume_token.as_str()).collect();
    assert_eq!(tokens, ["", "after 3", "after 5", "after 5"]);
    assert!(reads.iter().all(|read| read.regex == "line" && read.tail_lines == 10), "{reads:?}");
}

#[tokio::test]
async fn a_task_whose_workers_never_ran_is_followed_to_its_end() {
    let servers = Servers::start().await;
    servers.set(|state| {
        state.workers = Some(vec![]);
        let last = otto_proto::v1::ReadLogsResponse { last: true, ..Default::default() };
        state.streams = vec![vec![Step::Part(last)]].into();
    });
    let said = servers.otto(&["logs", "-f", "t"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), ""), "{said:?}");
    assert!(!said.err.contains("trying again"), "{said:?}");
}

#[tokio::test]
async fn lines_that_come_again_without_a_token_are_printed_once() {
    let servers = Servers::start().await;
    let gap = LogGap { first_sequence: 4, last_sequence: 5, reason: Reason::SpoolFull.into(), ..LogGap::default() };
    let gaps = vec![LineGap { worker_id: "w".into(), run_id: "run".into(), gap: Some(gap) }];
    let mut first = lines("w", 1..=3);
    first.gaps.clone_from(&gaps);
    let mut again = lines("w", 1..=3);
    again.gaps = gaps;
    again.lines.extend(lines("w", 6..=6).lines);
    let mut lossy = complete("w", 6);
    lossy.runs[0].complete = false;
    servers.set(|state| {
        state.workers = Some(vec![]);
        state.streams = vec![
            vec![Step::Part(first), Step::Fail(Status::unavailable("gone"))],
            vec![Step::Part(again), status(vec![lossy])],
        ]
        .into();
    });
    let said = servers.otto(&["logs", "-f", "t"]).await;
    assert_eq!((said.code, said.out.as_str()), (Some(5), "line 1\nline 2\nline 3\nline 6\n"), "{said:?}");
    assert_eq!(said.err.matches("lines 4 to 5 are missing: the agent's spool was full").count(), 1, "{said:?}");
}

#[tokio::test]
async fn an_unknown_task_is_waited_for_but_not_for_ever() {
    let servers = Servers::start().await;
    let said = servers.otto(&["logs", "-f", "nobody", "--wait", "200ms"]).await;
    assert_eq!(said.code, Some(3), "{said:?}");
    assert!(said.err.contains("there is no task \"nobody\""), "{said:?}");
    assert!(servers.set(|state| state.reads.is_empty()));

    servers.set(|state| {
        state.streams = vec![vec![Step::Part(lines("w", 1..=1)), status(vec![complete("w", 1)])]].into();
    });
    let child = start(servers.command(&["logs", "-f", "late"]));
    let before = servers.set(|state| state.lists);
    eventually("it asks again and again", || servers.set(|state| state.lists > before + 2)).await;
    servers.set(|state| state.workers = Some(vec![]));
    let said = end(child).await;
    assert_eq!((said.code, said.out.as_str()), (Some(0), "line 1\n"), "{said:?}");
}

#[tokio::test]
async fn lines_are_shown_as_they_come() {
    use tokio::io::{AsyncBufReadExt, BufReader};
    let servers = Servers::start().await;
    let go = Arc::new(Notify::new());
    servers.set(|state| {
        state.workers = Some(vec![]);
        let rest = [Step::Wait(Arc::clone(&go)), status(vec![complete("w", 1)])];
        state.streams = vec![[vec![Step::Part(lines("w", 1..=1))], rest.into()].into_iter().flatten().collect()].into();
    });
    let mut child = start(servers.command(&["logs", "-f", "t"]));
    let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
    // The stream goes on only when this line was read.
    let first = tokio::time::timeout(PATIENCE, out.next_line()).await.expect("a line").unwrap();
    assert_eq!(first.as_deref(), Some("line 1"));
    go.notify_one();
    assert_eq!(end(child).await.code, Some(0));
}

#[tokio::test]
async fn a_refusal_is_not_tried_again() {
    let servers = Servers::start().await;
    servers.set(|state| {
        state.workers = Some(vec![]);
        state.streams = vec![vec![Step::Fail(Status::invalid_argument("regex: unclosed group"))]].into();
    });
    let said = servers.otto(&["logs", "-f", "t", "--grep", "("]).await;
    assert_eq!(said.code, Some(2), "{said:?}");
    assert!(said.err.contains("regex: unclosed group"), "{said:?}");
    assert_eq!(servers.set(|state| state.reads.len()), 1);
}
