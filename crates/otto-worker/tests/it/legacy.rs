//! Servers of the earlier system.

use otto_proto::v1::LoggingConfig;

use crate::agent::{PATIENCE, Setup, stderr};
use crate::legacy_server::{LegacyServer, State};

fn numbers(count: usize) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn lines_one_by_one() {
    let server = LegacyServer::start(State::default()).await;
    let setup = Setup::new(server.url());
    let output = setup.run_script("seq 1000; echo err >&2; printf 'bad \\377\\n'; exit 2").await;
    assert_eq!(output.status.code(), Some(2));
    {
        let state = server.state.lock().unwrap();
        let entry = |message: &str| state.entries.iter().find(|entry| entry.message == message).unwrap();
        let err = entry("err");
        assert_eq!((err.source.as_str(), err.level.as_str(), err.task_id.as_str()), ("stderr", "ERROR", "task"));
        assert!(err.timestamp.ends_with('Z') && err.sequence.is_none());
        assert_eq!(entry("bad \u{fffd}").metadata["otto.lossy"], "true");
        assert_eq!(state.dropped_unregistered, 0);
    }
    let messages = server.messages();
    assert_eq!(messages.len(), 1002);
    let of_stdout: Vec<_> = messages.into_iter().filter(|message| message.parse::<u32>().is_ok()).collect();
    assert_eq!(of_stdout, numbers(1000));
    setup.assert_spool_is_empty();
}

#[tokio::test]
async fn its_low_limits_are_kept() {
    let config = LoggingConfig { rate_limit: 100, buffer_size: 50, max_message_size: 1024, include_metadata: true };
    let server = LegacyServer::start(State { config, ..State::default() }).await;
    let setup = Setup::new(server.url());
    let start = std::time::Instant::now();
    let output = setup.run_script("seq 150; head -c 3000 /dev/zero | tr '\\0' y; echo").await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(start.elapsed() > std::time::Duration::from_millis(300), "{:?}", start.elapsed());
    let messages = server.messages();
    assert_eq!(messages[..150], numbers(150));
    assert_eq!(messages[150..].concat(), "y".repeat(3000));
    assert!(messages.iter().all(|message| message.len() <= 1024));
}

#[tokio::test]
async fn empty_lines_are_given_up_and_the_rest_goes_on() {
    let server = LegacyServer::start(State::default()).await;
    let setup = Setup::new(server.url());
    let output = setup.run_script("echo a; echo; echo b; echo; echo; echo c").await;
    assert!(output.status.success());
    assert_eq!(server.messages(), ["a", "b", "c"]);
    assert!(stderr(&output).contains("3 lines are missing in the log"), "{}", stderr(&output));
}

#[tokio::test]
async fn what_is_missing_is_counted_over_all_streams() {
    let server = LegacyServer::start(State { cuts: vec![150], ..State::default() }).await;
    let setup = Setup::new(server.url());
    let output = setup.run_script("echo; echo; seq 300; echo").await;
    assert!(output.status.success());
    assert!(stderr(&output).contains("\"3 lines are missing in the log"), "{}", stderr(&output));
}

#[tokio::test]
async fn gaps_are_told_of_by_entries() {
    let server = LegacyServer::start(State { cuts: vec![20, 100], ..State::default() }).await;
    let flags = ["--tee", "false", "--compression", "none", "--spool-bytes", "1MiB", "--on-full", "drop"];
    let setup = Setup::without_server().flags(&flags);
    let script = "line=$(head -c 1000 /dev/zero | tr '\\0' y); yes $line | head -n 3000; exit 1";
    assert_eq!(setup.run_script(script).await.status.code(), Some(1));
    let setup = setup.flags(&["--log-server", server.url()]);
    let output = setup.drain().await;
    assert!(output.status.success(), "{}", stderr(&output));
    let state = server.state.lock().unwrap();
    let gaps: std::collections::HashSet<&str> =
        state.entries.iter().filter_map(|entry| entry.metadata.get("otto.gap").map(String::as_str)).collect();
    let missing: u64 = gaps
        .iter()
        .map(|gap| {
            let (first, last) = gap.split_once('-').unwrap();
            let (first, last) = (first.parse::<u64>().unwrap(), last.parse::<u64>().unwrap());
            let text = format!("otto: lines {first} to {last} are missing: ");
            let entry = state.entries.iter().find(|entry| entry.message.starts_with(&text)).unwrap();
            assert_eq!(entry.metadata["otto.gap_reason"], "spool_full");
            last - first + 1
        })
        .sum();
    assert!((1000..3000).contains(&missing), "{gaps:?}");
    assert!(state.entries.iter().filter(|entry| entry.message.starts_with('y')).count() as u64 + missing >= 3000);
    let text = format!("\"{missing} lines are missing in the log");
    assert!(stderr(&output).contains(&text), "{text} {}", stderr(&output));
}

#[tokio::test]
async fn its_retries_are_obeyed() {
    let server = LegacyServer::start(State { retry_every: 50, ..State::default() }).await;
    let setup = Setup::new(server.url());
    assert!(setup.run_script("seq 300").await.status.success());
    let mut messages: Vec<u32> = server.messages().iter().map(|message| message.parse().unwrap()).collect();
    assert_eq!(messages.len(), 300);
    messages.sort_unstable();
    assert_eq!(messages, (1..=300).collect::<Vec<_>>());
}

#[tokio::test]
async fn after_a_break_it_registers_again_and_nothing_is_lost() {
    let server = LegacyServer::start(State { cuts: vec![5, 0, 20], ..State::default() }).await;
    let setup = Setup::new(server.url());
    assert!(setup.run_script("seq 300").await.status.success());
    let mut messages: Vec<u32> = server.messages().iter().map(|message| message.parse().unwrap()).collect();
    messages.dedup();
    messages.sort_unstable();
    messages.dedup();
    assert_eq!(messages, (1..=300).collect::<Vec<_>>());
    let state = server.state.lock().unwrap();
    assert!(state.registrations >= 4 && state.dropped_unregistered == 0);
}

#[tokio::test]
async fn a_block_of_very_many_lines_is_no_burden() {
    let server = LegacyServer::start(State::default()).await;
    let setup = Setup::new(server.url()).flags(&["--tee", "false"]);
    let agent = setup.start_script("seq 1000000 1060000");
    let status = format!("/proc/{}/status", agent.pid.as_raw_nonzero());
    let (mut most, start) = (0, std::time::Instant::now());
    while server.state.lock().unwrap().entries.len() < 60_001 {
        assert!(start.elapsed() < PATIENCE, "only {} entries", server.messages().len());
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0 kB");
        most = most.max(peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert!(agent.output().await.status.success());
    assert!(server.messages() == (1_000_000..=1_060_000).map(|number| number.to_string()).collect::<Vec<_>>());
    assert!((1..60_000).contains(&most), "{most} KiB");
}
