//! JSON: lists, windows, filters, errors, who may, headers, the description.

use http::StatusCode;
use otto_proto::block::Attributes;
use otto_proto::v1::worker_event::Type;
use otto_proto::v1::{FailureClass, LogLevel, LogSource, log_gap};
use otto_testkit::eventually;
use serde_json::Value;

use super::http_support::{Server, Worker, at, event, sequences};

/// "a/b ü" in a path.
const TASK: &str = "a/b ü?#%";
const ENCODED: &str = "a%2Fb%20%C3%BC%3F%23%25";

#[tokio::test]
async fn tasks_and_workers_say_how_they_are() {
    let server = Server::start(&[]).await;
    let mut good = Worker::connect(&server, TASK, "w/0").await;
    good.print([("one\n", at(1)), ("two\n", at(2))]).await;
    good.finish(0).await;
    let mut bad = Worker::connect(&server, TASK, "w/1").await;
    bad.print([("one\n", at(3))]).await;
    bad.lose(10, log_gap::Reason::SpoolFull).await;
    bad.print([("eleven\n", at(4))]).await;
    bad.finish(3).await;
    let mut waiting = event(TASK, "w/2", Type::Waiting, "image x cannot be pulled");
    waiting.failure_class = FailureClass::Image.into();
    server.report(vec![waiting]).await;
    let mut live = Worker::connect(&server, TASK, "w/3").await;
    live.print([("so far\n", at(5))]).await;

    let tasks = server.json("/api/v1/tasks").await;
    assert_eq!(tasks["next_page_token"], Value::Null);
    let task = &tasks["tasks"][0];
    assert_eq!((&task["task_id"], &task["state"], &task["lines"]), (&TASK.into(), &Value::Null, &5.into()));
    assert_eq!(task["context"]["repository"], "acme/rocket");

    let all = server.json(&format!("/api/v1/tasks/{ENCODED}/workers")).await;
    let told: Vec<_> = all["workers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|w| {
            ["worker_id", "state", "state_message", "summary"].map(|key| w[key].as_str().unwrap_or("-").to_owned())
        })
        .collect();
    let expected = [
        ["w/2", "waiting", "image x cannot be pulled", "no log yet: waiting (image): image x cannot be pulled"],
        ["w/0", "succeeded", "-", "complete, 2 of 2 lines"],
        [
            "w/1",
            "failed",
            "exit code 3",
            "incomplete, 2 of 11 lines; lines 2 to 10 dropped, the worker's buffer was full",
        ],
        ["w/3", "running", "-", "live, 1 line so far"],
    ];
    assert_eq!(told, expected);
    let run = &all["workers"][2]["runs"][0];
    assert_eq!((&run["complete"], &run["ended"], &run["connected"]), (&false.into(), &true.into(), &false.into()));
    assert_eq!((&run["gaps"][0]["reason"], &run["gaps"][0]["last_sequence"]), (&"spool_full".into(), &10.into()));
    assert_eq!(all["events"][0]["type"], "waiting");
    assert_eq!(
        (&all["workers"][0]["failure_class"], &all["workers"][1]["failure_class"]),
        (&"image".into(), &Value::Null)
    );
}

#[tokio::test]
async fn tasks_come_in_pages() {
    let server = Server::start(&[]).await;
    for n in 0..7 {
        server.report(vec![event(&format!("t{n}"), "w", Type::Created, "")]).await;
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    for _ in 0..3 {
        let page = server.json(&format!("/api/v1/tasks?page_size=3&page_token={token}")).await;
        seen.extend(page["tasks"].as_array().unwrap().iter().map(|task| task["task_id"].as_str().unwrap().to_owned()));
        token = page["next_page_token"].as_str().unwrap_or_default().to_owned();
    }
    assert_eq!(seen, ["t6", "t5", "t4", "t3", "t2", "t1", "t0"]);
    assert_eq!(token, "");
}

fn with(level: LogLevel, source: LogSource, millis: i64) -> Attributes {
    Attributes { level, source, ..at(millis) }
}

/// An answer with so many lines, or with all there are: one that took too long ends early, so it is asked for again.
async fn window(server: &Server, path: &str, limit: usize) -> Value {
    let more = if path.contains("tail=") { "has_before" } else { "has_after" };
    eventually("an answer that is whole", async || {
        let answer = server.json(path).await;
        (answer["lines"].as_array().unwrap().len() >= limit || answer[more] == false).then_some(answer)
    })
    .await
}

#[tokio::test]
async fn windows_go_both_ways_without_loss_or_repetition() {
    let server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    for block in 0..50i64 {
        worker.send((0..20).map(|n| (format!("line {}\n", block * 20 + n + 1), at(block * 20 + n)))).await;
    }
    worker.lose(1100, log_gap::Reason::AgentLost).await;
    worker.print((0..100).map(|n| (format!("line {}\n", 1101 + n), at(2000 + n)))).await;
    worker.finish(0).await;
    let whole: Vec<u64> = (1..=1000).chain(1101..=1200).collect();
    let logs = "/api/v1/tasks/t/workers/w/logs";

    let mut seen = Vec::new();
    let (mut gaps, mut from) = (Vec::new(), Some(1));
    while let Some(next) = from {
        let answer = server.json(&format!("{logs}?from={next}&limit=77")).await;
        seen.extend(sequences(&answer["lines"]));
        gaps.extend(answer["gaps"].as_array().unwrap().iter().cloned());
        from = answer["next_from"].as_u64();
    }
    assert!(seen == whole);
    assert_eq!(gaps.len(), 1, "{gaps:?}");

    let (mut seen, mut gaps) = (Vec::new(), Vec::new());
    let mut answer = server.json(&format!("{logs}?tail=77")).await;
    loop {
        let mut piece = sequences(&answer["lines"]);
        piece.extend(&seen);
        seen = piece;
        gaps.extend(answer["gaps"].as_array().unwrap().iter().cloned());
        if answer["has_before"] == false {
            break;
        }
        let before = answer["before"].as_str().unwrap();
        answer = server.json(&format!("{logs}?tail=77&before={before}")).await;
    }
    assert!(seen == whole);
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    // And forwards again from where that began.
    let after = answer["before"].as_str().unwrap();
    let again = window(&server, &format!("{logs}?limit=10000&after={after}"), 10_000).await;
    assert_eq!(sequences(&again["lines"]), whole);

    let piece = window(&server, &format!("{logs}?from=995&to=1103"), 1000).await;
    assert_eq!(sequences(&piece["lines"]), [995, 996, 997, 998, 999, 1000, 1101, 1102, 1103]);
    assert_eq!(piece["gaps"][0]["reason"], "agent_lost");
    let inside = window(&server, &format!("{logs}?from=1050&limit=1"), 1).await;
    assert_eq!((sequences(&inside["lines"]), &inside["gaps"][0]["first_sequence"]), (vec![1101], &1001.into()));
    let tail = window(&server, &format!("{logs}?tail=3"), 3).await;
    assert_eq!(sequences(&tail["lines"]), [1198, 1199, 1200]);
    assert_eq!((&tail["has_before"], &tail["has_after"]), (&true.into(), &false.into()));
}

#[tokio::test]
async fn lines_are_filtered_and_bytes_kept() {
    let server = Server::start(&[]).await;
    let mut worker = Worker::connect(&server, "t", "w").await;
    let lines: [(&[u8], Attributes); 6] = [
        (b"plain\n", with(LogLevel::Info, LogSource::Stdout, 0)),
        (b"disk full\n", with(LogLevel::Error, LogSource::Stderr, 1000)),
        (b"bytes \xff\x00\n", with(LogLevel::Unspecified, LogSource::Stdout, 2000)),
        (b"<script>alert(1)</script>\n", with(LogLevel::Warn, LogSource::Stdout, 3000)),
        (b"\n", with(LogLevel::Unspecified, LogSource::Stderr, 4000)),
        (b"no end", with(LogLevel::Unspecified, LogSource::Stdout, 5000)),
    ];
    worker.print(lines).await;
    let logs = "/api/v1/tasks/t/workers/w/logs";
    for (query, wanted) in [
        ("", &[1, 2, 3, 4, 5, 6][..]),
        ("q=l", &[1, 2, 4]),
        ("q=PLAIN", &[]),
        ("regex=(?i)PLAIN", &[1]),
        ("regex=%5Edisk%7Cend%24", &[2, 6]),
        ("regex=(?-u)%5Cxff", &[3]),
        ("level=error,warn", &[2, 4]),
        ("level=none", &[3, 5, 6]),
        ("source=stderr", &[2, 5]),
        ("source=stderr&q=disk", &[2]),
        ("since=2026-01-31T12:00:01Z&until=2026-01-31T12:00:03Z", &[2, 3]),
        ("tail=2&source=stdout", &[4, 6]),
        ("tail=1&q=plain", &[1]),
        ("limit=2&from=2", &[2, 3]),
    ] {
        let limit = if query.contains("tail=") || query.contains("limit=") { wanted.len() } else { 1000 };
        let answer = window(&server, &format!("{logs}?{query}"), limit).await;
        assert_eq!(sequences(&answer["lines"]), wanted, "{query}");
    }
    let lines = window(&server, logs, 1000).await["lines"].clone();
    assert_eq!(
        (&lines[2]["message"], &lines[2]["message_base64"]),
        (&"bytes \u{fffd}\0".into(), &"Ynl0ZXMg/wA=".into())
    );
    assert_eq!(lines[3]["message"], "<script>alert(1)</script>");
    assert_eq!(
        (&lines[0]["level"], &lines[1]["source"], &lines[0]["time"]),
        (&"info".into(), &"stderr".into(), &"2026-01-31T12:00:00Z".into())
    );
    assert_eq!((&lines[4]["unterminated"], &lines[5]["unterminated"]), (&Value::Null, &true.into()));
    assert_eq!(lines[0]["message_base64"], Value::Null);
}

#[tokio::test]
async fn workers_are_merged_by_time_both_ways() {
    let server = Server::start(&[]).await;
    let mut expected = Vec::new();
    for w in 0..5i64 {
        let mut worker = Worker::connect(&server, "t", &format!("w{w}")).await;
        // Overlapping in part only, so that not all runs are needed everywhere.
        let times: Vec<i64> = (0..200).map(|n| w * 400 + n * 7 + w).collect();
        for piece in times.chunks(30) {
            worker.send(piece.iter().map(|time| (format!("{time}\n"), at(*time)))).await;
        }
        worker.finish(0).await;
        expected.extend(times.iter().map(|time| (*time, w)));
    }
    expected.sort_unstable();
    let expected: Vec<String> = expected.iter().map(|(time, _)| time.to_string()).collect();
    let messages = |answer: &Value| -> Vec<String> {
        answer["lines"].as_array().unwrap().iter().map(|line| line["message"].as_str().unwrap().to_owned()).collect()
    };
    let logs = "/api/v1/tasks/t/logs";

    let mut answer = server.json(&format!("{logs}?limit=150")).await;
    let mut seen = messages(&answer);
    while answer["has_after"] == true {
        answer = server.json(&format!("{logs}?limit=150&after={}", answer["after"].as_str().unwrap())).await;
        seen.extend(messages(&answer));
    }
    assert_eq!(seen, expected);

    let mut answer = server.json(&format!("{logs}?tail=150")).await;
    let mut seen = messages(&answer);
    while answer["has_before"] == true {
        answer = server.json(&format!("{logs}?tail=150&before={}", answer["before"].as_str().unwrap())).await;
        let mut earlier = messages(&answer);
        earlier.extend(seen);
        seen = earlier;
    }
    assert_eq!(seen, expected);
}

#[tokio::test]
async fn bad_requests_name_the_parameter_and_what_is_accepted() {
    let server = Server::start(&[]).await;
    Worker::connect(&server, "t", "w").await.print([("x\n", at(0))]).await;
    let logs = "/api/v1/tasks/t/workers/w/logs";
    for (path, status, parameter, part) in [
        ("/api/v1/tasks?page_size=0".to_owned(), 400, "page_size", "1 to 1000"),
        ("/api/v1/tasks?page_token=x".to_owned(), 400, "page_token", "not one"),
        ("/api/v1/tasks?size=3".to_owned(), 400, "size", "page_size, page_token"),
        (format!("{logs}?limit=10001"), 400, "limit", "from 1 to 10000"),
        (format!("{logs}?limit=-1"), 400, "limit", "whole number"),
        (format!("{logs}?from=x"), 400, "from", "whole number"),
        (format!("{logs}?level=loud"), 400, "level", "fatal"),
        (format!("{logs}?source=stdin"), 400, "source", "stdout, stderr"),
        (format!("{logs}?regex=("), 400, "regex", "docs.rs/regex"),
        (format!("{logs}?regex=(%5Cw%7B1000%7D)%7B1000%7D"), 400, "regex", "too large"),
        (format!("{logs}?q=a&q=b"), 400, "q", "one value"),
        (format!("{logs}?q={}", "x".repeat(1001)), 400, "q", "1000 characters"),
        (format!("{logs}?since=never"), 400, "since", "RFC 3339"),
        (format!("{logs}?after=x"), 400, "after", "earlier answer"),
        (format!("{logs}?tail=1&from=1"), 400, "from", "tail"),
        (format!("{logs}?tail=1&limit=1"), 400, "tail", "limit"),
        (format!("{logs}/stream?from=x"), 400, "from", "whole number"),
        (format!("{logs}/stream?after=x"), 400, "after", "not one"),
        (format!("{logs}/raw?source=both"), 400, "source", "stdout or stderr"),
        ("/api/v1/tasks/nobody/workers".to_owned(), 404, "", "task \"nobody\" is not known"),
        ("/api/v1/tasks/nobody/logs".to_owned(), 404, "", "task \"nobody\""),
        ("/api/v1/tasks/nobody/logs/stream".to_owned(), 404, "", "task \"nobody\""),
        ("/api/v1/tasks/t/workers/nobody/logs".to_owned(), 404, "", "worker \"nobody\""),
        ("/api/v1/tasks/t/workers/nobody/logs/raw".to_owned(), 404, "", "worker \"nobody\""),
        ("/api/v1/tasks/t/workers/nobody/logs/stream".to_owned(), 404, "", "worker \"nobody\""),
        (format!("{logs}?run=nobody"), 404, "", "run \"nobody\""),
        ("/api/v1/tasks/%FF/logs".to_owned(), 400, "", "UTF-8"),
        (format!("/api/v1/tasks/{}/logs", "x".repeat(2000)), 400, "task", "at most"),
        ("/api/v2/tasks".to_owned(), 404, "", "/openapi.json"),
        ("/nothing".to_owned(), 404, "", "/openapi.json"),
    ] {
        let reply = server.get(&path).await;
        assert_eq!(reply.status.as_u16(), status, "{path}: {}", reply.text());
        assert_eq!(reply.header("content-type"), "application/problem+json", "{path}");
        let problem = reply.json();
        assert_eq!(problem["status"], status, "{path}");
        assert_eq!(problem["parameter"].as_str().unwrap_or_default(), parameter, "{path}: {problem}");
        assert!(problem["detail"].as_str().unwrap().contains(part), "{path}: {problem}");
    }
    let reply = server.send("POST", "/api/v1/tasks", &[]).await;
    assert_eq!((reply.status.as_u16(), reply.header("allow")), (405, "GET,HEAD"));
    assert_eq!(reply.header("content-type"), "application/problem+json");
}

#[tokio::test]
async fn the_token_is_demanded_where_there_is_something_to_see() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "s3cret\n").unwrap();
    let server = Server::start(&["--auth-token-file", file.to_str().unwrap()]).await;
    for path in [
        "/api/v1/tasks",
        "/metrics",
        "/api/v1/tasks/t/workers/w/logs/raw",
        "/api/v1/tasks/t/logs/stream",
        "/api/v1/nothing",
    ] {
        for headers in [&[][..], &[("authorization", "Bearer wrong")]] {
            let reply = server.send("GET", path, headers).await;
            assert_eq!(reply.status, StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(reply.header("content-type"), "application/problem+json", "{path}");
            assert!(reply.header("www-authenticate").starts_with("Bearer"), "{path}");
        }
    }
    for path in ["/", "/assets/main.js", "/openapi.json", "/livez", "/readyz"] {
        assert_eq!(server.get(path).await.status, StatusCode::OK, "{path}");
    }
    let bearer = [("authorization", "Bearer s3cret")];
    assert_eq!(server.send("GET", "/api/v1/tasks", &bearer).await.status, StatusCode::OK);
    let metrics = server.send("GET", "/metrics", &bearer).await;
    assert!(metrics.text().contains("otto_build_info"), "{}", metrics.text());
    assert_eq!(server.send("GET", "/api/v1/tasks/t/logs", &bearer).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn answers_carry_what_protects_a_browser() {
    let server = Server::start(&[]).await;
    Worker::connect(&server, "t", "w").await.print([("<script>x</script>\n", at(0))]).await;
    for path in [
        "/",
        "/assets/main.js",
        "/api/v1/tasks",
        "/api/v1/tasks/t/workers/w/logs/raw",
        "/livez",
        "/nothing",
        "/openapi.json",
    ] {
        let reply = server.get(path).await;
        assert_eq!(reply.header("x-content-type-options"), "nosniff", "{path}");
        assert_eq!(reply.header("x-frame-options"), "DENY", "{path}");
        let policy = reply.header("content-security-policy");
        assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{path}: {policy}");
        assert!(!policy.contains("unsafe"), "{path}: {policy}");
    }
    let page = server.get("/").await;
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.header("content-security-policy").contains("require-trusted-types-for 'script'"));
    let tag = page.header("etag");
    let again = server.send("GET", "/", &[("if-none-match", tag)]).await;
    assert_eq!((again.status, again.body.len()), (StatusCode::NOT_MODIFIED, 0));
    let raw = server.get("/api/v1/tasks/t/workers/w/logs/raw").await;
    assert_eq!(raw.header("content-type"), "application/octet-stream");
    assert!(raw.header("content-disposition").starts_with("attachment"));
}

#[tokio::test]
async fn the_description_says_what_is_there() {
    let server = Server::start(&[]).await;
    Worker::connect(&server, "t", "w").await.print([("x\n", at(0))]).await;
    let document = server.json("/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");
    let resolve = |value: &Value| match value["$ref"].as_str() {
        Some(reference) => {
            let found = document.pointer(reference.trim_start_matches('#'));
            found.unwrap_or_else(|| panic!("{reference} leads nowhere")).clone()
        }
        None => value.clone(),
    };
    // Every reference leads somewhere.
    let mut values = vec![&document];
    while let Some(value) = values.pop() {
        resolve(value);
        match value {
            Value::Object(map) => values.extend(map.values()),
            Value::Array(list) => values.extend(list),
            _ => {}
        }
    }
    // Every route is described, and every path described is a route that takes the parameters described and no other.
    let source = include_str!("../../src/http.rs");
    let routes = source.split(".route(\"").skip(1).map(|part| part.split('"').next().unwrap());
    for route in routes {
        let path = if route.starts_with("/tasks") { format!("/api/v1{route}") } else { route.to_owned() };
        assert!(document["paths"].get(&path).is_some(), "{path} is not described");
    }
    for (path, item) in document["paths"].as_object().unwrap() {
        let real = path.replace("{task}", "t").replace("{worker}", "w");
        if real.ends_with("/stream") {
            assert_eq!(server.open("GET", &real, &[]).await.status(), StatusCode::OK, "{path}");
        } else {
            assert_eq!(server.get(&real).await.status, StatusCode::OK, "{path}");
        }
        if !path.starts_with("/api/") {
            continue;
        }
        let refused = server.get(&format!("{real}?nonsense=1")).await.json();
        let mut accepted: Vec<&str> =
            refused["accepted"].as_str().unwrap().split(", ").filter(|name| *name != "none").collect();
        let parameters = item["get"]["parameters"].as_array().cloned().unwrap_or_default();
        let described: Vec<Value> =
            parameters.iter().map(resolve).filter(|parameter| parameter["in"] == "query").collect();
        let mut described: Vec<&str> = described.iter().map(|parameter| parameter["name"].as_str().unwrap()).collect();
        accepted.sort_unstable();
        described.sort_unstable();
        assert_eq!(accepted, described, "{path}");
    }
}
