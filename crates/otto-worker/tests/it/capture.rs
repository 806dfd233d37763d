//! Every byte arrives, in order, once.

use std::fs;

use otto_proto::v1::{LogLevel, LogSource, LoggingConfig};

use crate::agent::{Setup, eventually, noise};
use crate::server::{Faults, Server};

#[tokio::test]
async fn lines_of_both_outputs_with_their_level_and_time() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url()).flags(&["--node-name", "node-7", "--label", "a=b"]);
    let before = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as i64;
    let output = setup.run_script("echo one; echo two >&2; printf 'three\\n\\nno end'").await;
    assert_eq!(output.status.code(), Some(0));
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"one\nthree\n\nno end"[..], &b"two\n"[..]));
    let run = server.complete().await;
    assert_eq!(run.text(Some(LogSource::Stdout)), b"one\nthree\n\nno end");
    assert_eq!(run.text(Some(LogSource::Stderr)), b"two\n");
    for line in &run.lines {
        let level = if line.source == LogSource::Stderr { LogLevel::Error } else { LogLevel::Info };
        assert_eq!(line.level, level);
        assert!(line.time >= before && line.time < before + 60_000_000_000);
    }
    assert!(run.lines.iter().zip(1..).all(|(line, sequence)| line.sequence == sequence));
    let finish = run.finish.unwrap();
    assert_eq!((finish.last_sequence, finish.exit_code, finish.signal), (5, Some(0), None));
    assert!(finish.error_message.is_empty() && finish.ended_at.is_some());
    let metadata = run.metadata.unwrap();
    assert_eq!((metadata.node_name.as_str(), metadata.labels["a"].as_str()), ("node-7", "b"));
    setup.assert_spool_is_empty();
}

#[tokio::test]
async fn noise_nul_bytes_and_lines_of_ten_megabytes() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false", "--compression", "zstd"]);
    let mut bytes = noise(3_000_000, 7);
    bytes.extend(vec![0; 100_000]);
    bytes.push(b'\n');
    bytes.extend(vec![b'x'; 10_000_000]);
    bytes.extend(b"\n\n\r50%\r100%\r\n\x1b[31mred\xff\xfe\n".iter());
    bytes.extend(noise(1000, 8));
    fs::write(setup.path("bytes"), &bytes).unwrap();
    let output = setup.start(["cat", "bytes"]).output().await;
    assert!(output.status.success());
    let run = server.complete().await;
    assert!(run.text(None) == bytes, "not the same bytes");
    assert!(run.lines.iter().all(|line| line.bytes.len() <= (64 << 10) + 1));
    assert!(server.store.lock().compressed > 0);
}

#[tokio::test]
async fn half_a_million_lines() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false"]);
    let output = setup.start(["seq", "500000"]).output().await;
    assert!(output.status.success());
    let run = server.complete().await;
    assert_eq!(run.lines.len(), 500_000);
    assert!(run.lines.iter().all(|line| line.bytes == format!("{}\n", line.sequence).as_bytes()));
    let state = server.store.lock();
    assert!(state.blocks < 5_000, "{} blocks", state.blocks);
}

#[tokio::test]
async fn a_prompt_is_seen_before_its_line_ends() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url());
    let agent = setup.start_script("printf 'Continue? '; while [ ! -e go ]; do sleep 0.01; done; echo yes");
    eventually("the prompt", || {
        let state = server.store.lock();
        let run = state.runs.values().next()?;
        (run.text(None) == b"Continue? ").then_some(())
    })
    .await;
    fs::write(setup.path("go"), "").unwrap();
    assert!(agent.output().await.status.success());
    let run = server.complete().await;
    assert_eq!(run.messages(), ["Continue? ", "yes"]);
}

#[tokio::test]
async fn the_servers_limits_are_kept() {
    let config = LoggingConfig { rate_limit: 2000, buffer_size: 50, max_message_size: 1024, include_metadata: true };
    let server = Server::start_with(Faults { config, ..Faults::default() }).await;
    let setup = Setup::new(&server.url());
    // The agent first learns the limit of a line from the server.
    let agent = setup.start_script(
        "echo hello; while [ ! -e go ]; do sleep 0.01; done; seq 1 3000; head -c 5000 /dev/zero | tr '\\0' y",
    );
    eventually("the first line", || {
        server.store.lock().runs.values().next().filter(|run| !run.lines.is_empty()).map(drop)
    })
    .await;
    let start = std::time::Instant::now();
    fs::write(setup.path("go"), "").unwrap();
    assert!(agent.output().await.status.success());
    // The first second's worth may go at once.
    assert!(start.elapsed() > std::time::Duration::from_millis(400), "{:?}", start.elapsed());
    let run = server.complete().await;
    assert!(run.lines.iter().all(|line| line.bytes.len() <= 1025));
    assert_eq!(run.lines.len(), 1 + 3000 + 5);
    assert!(server.store.lock().largest_block_lines <= 50);
}

#[tokio::test]
async fn secrets_are_masked_wherever_they_are_cut() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url())
        .flags(&["--mask-env", "TOKEN,NOT_SET", "--mask-file", "secrets"])
        .env("TOKEN", "hunter2-hunter2");
    fs::write(setup.path("secrets"), "from-a-file\n\n").unwrap();
    let output = setup
        .run_script(
            "printf 'a hunter2-'; sleep 0.2; printf 'hunter2 b\\n'; echo $TOKEN >&2; echo from-a-file; printf hunter2",
        )
        .await;
    assert!(output.status.success());
    assert_eq!(output.stdout, b"a *** b\n***\nhunter2");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("hunter2-hunter2"));
    let run = server.complete().await;
    assert_eq!(run.text(Some(LogSource::Stdout)), b"a *** b\n***\nhunter2");
    assert_eq!(run.text(Some(LogSource::Stderr)), b"***\n");
}

#[tokio::test]
async fn nobody_reads_the_copy() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url());
    // The pipes of `agent` are not read before its end.
    let mut agent = setup.start_script("head -c 3000000 /dev/zero | tr '\\0' '\\n'");
    let run = server.complete().await;
    assert_eq!(run.lines.len(), 3_000_000);
    assert!(agent.child.wait().await.unwrap().success());
}

#[tokio::test]
async fn output_that_is_closed_early_is_no_end() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url());
    let output = setup.run_script("echo bye; exec >&- 2>&-; sleep 0.2; exit 5").await;
    assert_eq!(output.status.code(), Some(5));
    assert_eq!(server.complete().await.messages(), ["bye"]);
}
