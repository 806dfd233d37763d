//! What needs no server, and what is said when there is none.

use std::os::unix::process::ExitStatusExt;

use otto_proto::v1::TaskState;

use tokio::io::{AsyncBufReadExt, BufReader};

use super::servers::*;

async fn said(arguments: &[&str]) -> Said {
    let mut command = otto();
    command.args(arguments);
    run(command).await
}

#[tokio::test]
async fn wrong_usage_names_what_is_wrong_and_ends_with_2() {
    for (arguments, words) in [
        (&["submit"][..], &["COMMAND"][..]),
        (&["submit", "--count", "many", "true"], &["--count", "many"]),
        (&["submit", "--env", "X", "true"], &["--env", "NAME=VALUE"]),
        (&["submit", "--timeout", "soon", "true"], &["--timeout", "soon", "30s"]),
        (&["logs", "t", "--level", "loud"], &["--level", "loud", "warn"]),
        (&["logs", "t", "--source", "stdin"], &["--source", "stderr"]),
        (&["logs", "t", "--since", "yesterday"], &["--since", "10m"]),
        (&["logs", "t", "--raw", "-f"], &["--raw", "--follow"]),
        (&["tasks", "--state", "lost"], &["--state", "succeeded"]),
        (&["--scaler", "localhost", "tasks"], &["--scaler", "http://HOST:PORT"]),
        (&["--output", "xml", "tasks"], &["--output", "table", "json"]),
        (&["frobnicate"], &["frobnicate"]),
        (&["pipeline", "run", "/no/such/file"], &["/no/such/file"]),
    ] {
        let said = said(arguments).await;
        assert_eq!(said.code, Some(2), "{arguments:?}: {said:?}");
        assert!(said.out.is_empty(), "{said:?}");
        for word in words {
            assert!(said.err.contains(word), "{arguments:?}: {word} is not in {}", said.err);
        }
    }
}

#[tokio::test]
async fn help_tells_the_exit_codes() {
    let said = said(&["--help"]).await;
    assert_eq!(said.code, Some(0));
    for word in ["Exit codes:", "130", "OTTO_SCALER", "dead-letters", "completions"] {
        assert!(said.out.contains(word), "{word} is not in {}", said.out);
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    // Bound and not listening: nobody else gets the port, and nobody answers.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}", socket.local_addr().unwrap());
    for arguments in [
        &["tasks"][..],
        &["workers", "t"],
        &["submit", "true"],
        &["scale", "t", "2"],
        &["cancel", "t"],
        &["dead-letters", "list"],
    ] {
        let said = said(&[&["--scaler", &url], arguments].concat()).await;
        assert_eq!(said.code, Some(4), "{arguments:?}: {said:?}");
        assert!(said.err.contains(&format!("scaler {url}: cannot be reached")), "{said:?}");
        assert!(said.err.contains("refused"), "{said:?}");
    }
    let said = said(&["--log-server", &url, "logs", "t"]).await;
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.err.contains(&format!("log server {url}: cannot be reached")), "{said:?}");
}

#[tokio::test]
async fn the_token_is_presented_and_a_refusal_is_explained() {
    let servers = Servers::start().await;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "s3cret\n").unwrap();
    let said = servers.otto(&["--auth-token-file", file.to_str().unwrap(), "tasks"]).await;
    assert_eq!(said.code, Some(0), "{said:?}");
    assert_eq!(servers.set(|state| state.token.clone()).as_deref(), Some("Bearer s3cret"));
    servers.set(|state| state.scale = Some(Err(tonic::Status::unauthenticated("a bearer token is required"))));
    let said = servers.otto(&["submit", "true"]).await;
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.err.contains("a bearer token is required") && said.err.contains("--auth-token-file"), "{said:?}");
    let said = servers.otto(&["--auth-token-file", "/no/token", "tasks"]).await;
    assert!(said.code != Some(0) && said.err.contains("/no/token"), "{said:?}");
}

#[tokio::test]
async fn settings_come_from_the_environment_and_a_file_too() {
    let servers = Servers::start().await;
    servers.set(|state| state.tasks = vec![task("one", TaskState::Running, 1)]);
    let mut by_environment = otto();
    by_environment.env("OTTO_SCALER", servers.url()).args(["tasks"]);
    assert!(run(by_environment).await.out.contains("one"));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("otto.toml");
    std::fs::write(&file, format!("scaler = \"{}\"\noutput = \"json\"\n", servers.url())).unwrap();
    let said = said(&["--config", file.to_str().unwrap(), "tasks"]).await;
    assert!(said.out.starts_with('{') && said.out.contains("\"one\""), "{said:?}");
}

#[tokio::test]
async fn completions_are_printed_for_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let said = said(&["completions", shell]).await;
        assert!(said.code == Some(0) && said.out.contains("dead-letters"), "{shell}: {said:?}");
    }
    assert_eq!(said(&["completions", "cmd"]).await.code, Some(2));
}

#[tokio::test]
async fn the_demo_prints_on_both_outputs_in_colour() {
    let mut command = otto();
    command.env("OTTO_JOB_INDEX", "3").args(["demo", "--lines", "20", "--rate", "0"]);
    let said = run(command).await;
    assert_eq!(said.code, Some(0));
    assert_eq!(said.out.lines().count(), 18, "{said:?}");
    assert_eq!(said.err.lines().count(), 2, "{said:?}");
    assert!(said.out.starts_with("worker 3: line 1 of 20\n"), "{said:?}");
    assert!(said.out.contains("\x1b[1;32m") && said.err.contains("\x1b[31m"), "{said:?}");
}

#[tokio::test]
async fn a_reader_that_has_seen_enough_is_no_error() {
    let mut command = otto();
    command.args(["demo", "--lines", "1000000", "--rate", "0"]).stderr(std::process::Stdio::null());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next_line().await.unwrap().unwrap(), "worker 0: line 1 of 1000000");
    drop(lines);
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.expect("it ends").unwrap();
    assert_eq!((status.code(), status.signal()), (Some(0), None));
}
