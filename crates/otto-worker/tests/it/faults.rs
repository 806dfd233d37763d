//! A log server that is late, away, forgetful or picky.

use std::time::Duration;

use crate::agent::{Setup, eventually, stderr};
use crate::server::{Faults, Server, Tunnel, lose_everything};

fn numbers(count: usize) -> Vec<String> {
    (1..=count).map(|number| number.to_string()).collect()
}

#[tokio::test]
async fn absent_from_start_to_end() {
    let mut server = Server::absent().await;
    let setup = Setup::new(&server.url()).env("OTTO_DRAIN_TIMEOUT", "300ms");
    let output = setup.run_script("seq 100; exit 3").await;
    assert_eq!(output.status.code(), Some(3));
    let text = stderr(&output);
    assert!(text.contains("100 lines are kept in") && text.contains(&setup.spool().display().to_string()), "{text}");
    assert!(text.contains("otto-worker drain"), "{text}");
    // And nothing is lost.
    server.appear().await;
    let setup = setup.env("OTTO_DRAIN_TIMEOUT", "20s");
    let output = setup.drain().await;
    assert!(output.status.success(), "{}", stderr(&output));
    let run = server.complete().await;
    assert_eq!(run.messages(), numbers(100));
    assert_eq!(run.finish.unwrap().exit_code, Some(3));
    setup.assert_spool_is_empty();
}

#[tokio::test]
async fn no_log_server_at_all() {
    let setup = Setup::without_server();
    let output = setup.run_script("echo hello").await;
    assert_eq!(output.status.code(), Some(0));
    let text = stderr(&output);
    assert!(text.contains("--log-server") && text.contains("1 line is kept in"), "{text}");
    assert_eq!(output.stdout, b"hello\n");
}

#[tokio::test]
async fn it_appears_later() {
    let mut server = Server::absent().await;
    let setup = Setup::new(&server.url());
    let agent = setup.start_script("seq 1 50; touch begun; while [ ! -e go ]; do sleep 0.01; done; seq 51 100");
    eventually("the job runs without it", || setup.path("begun").exists().then_some(())).await;
    server.appear().await;
    eventually("what was printed before arrives", || {
        server.store.lock().runs.values().next().filter(|run| run.lines.len() == 50).map(drop)
    })
    .await;
    std::fs::write(setup.path("go"), "").unwrap();
    assert!(agent.output().await.status.success());
    assert_eq!(server.complete().await.messages(), numbers(100));
}

#[tokio::test]
async fn streams_break_again_and_again() {
    let faults = Faults { cuts: vec![0, 1, 2, 3, 1, 5], ack_delay: Duration::from_millis(2), ..Faults::default() };
    let server = Server::start_with(faults).await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false", "--batch-lines", "100", "--drain-timeout", "20s"]);
    let output = setup.run_script("for i in 1 2 3 4 5 6 7 8; do seq 1000; sleep 0.05; done").await;
    assert!(output.status.success());
    let run = server.complete().await;
    let expected: Vec<_> = (0..8).flat_map(|_| numbers(1000)).collect();
    assert!(run.messages() == expected, "{} lines", run.lines.len());
    assert!(server.store.lock().streams >= 5);
}

#[tokio::test]
async fn it_restarts_while_lines_are_on_their_way() {
    let mut server = Server::start().await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false", "--batch-lines", "500"]);
    let agent = setup.start_script("seq 1 20000; while [ ! -e go ]; do sleep 0.01; done; seq 20001 40000");
    let stored = |server: &Server| server.store.lock().runs.values().next().map_or(0, |run| run.lines.len());
    eventually("some lines", || (stored(&server) > 0).then_some(())).await;
    server.vanish();
    std::fs::write(setup.path("go"), "").unwrap();
    server.appear().await;
    assert!(agent.output().await.status.success());
    assert!(server.complete().await.messages() == numbers(40000));
}

#[tokio::test]
async fn retries_are_obeyed() {
    let faults = Faults { retries: 5, retry_delay_ms: 100, full: 2, ..Faults::default() };
    let server = Server::start_with(faults).await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false", "--batch-lines", "50"]);
    assert!(setup.run_script("seq 5000").await.status.success());
    assert!(server.complete().await.messages() == numbers(5000));
    let (registrations, pause) = {
        let state = server.store.lock();
        (state.registrations, state.came_again_after.expect("a retry"))
    };
    assert!(registrations >= 3);
    // Although those on their way at the same time were sent back without a delay.
    assert!(pause >= Duration::from_millis(100), "{pause:?}");
}

#[tokio::test]
async fn a_retry_is_no_acknowledgement() {
    let server = Server::start_with(Faults { forget_at_block: Some(3), ..Faults::default() }).await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false", "--batch-lines", "500"]);
    let output = setup.run_script("seq 50000").await;
    assert!(output.status.success());
    assert!(!stderr(&output).contains("missing"), "{}", stderr(&output));
    let run = server.complete().await;
    assert!(run.messages() == numbers(50_000), "{} lines", run.lines.len());
    assert!(run.gaps.is_empty(), "{:?}", run.gaps);
}

/// Lines that are blocks of their own.
const THREE_BLOCKS: &str =
    "echo a; while [ ! -e one ]; do sleep 0.01; done; echo b; while [ ! -e two ]; do sleep 0.01; done; echo c";

/// Lets the second of [`THREE_BLOCKS`] come, and waits until the server has refused it.
async fn refuse_the_second(server: &Server, setup: &Setup) {
    let run = || server.store.lock().runs.values().next().cloned();
    eventually("the first line", || run().filter(|run| run.lines.len() == 1)).await;
    std::fs::write(setup.path("one"), "").unwrap();
    eventually("the second is refused", || run().filter(|run| run.gaps.len() == 1)).await;
}

#[tokio::test]
async fn what_is_refused_is_a_gap_and_the_rest_goes_on() {
    let faults = Faults { drop_from: Some(2), drops: 1, ..Faults::default() };
    let server = Server::start_with(faults).await;
    let setup = Setup::new(&server.url());
    let agent = setup.start_script(THREE_BLOCKS);
    refuse_the_second(&server, &setup).await;
    std::fs::write(setup.path("two"), "").unwrap();
    let output = agent.output().await;
    assert!(output.status.success());
    assert!(stderr(&output).contains("missing in the log"), "{}", stderr(&output));
    let run = server.complete_without_digest().await;
    assert_eq!(run.messages(), ["a", "c"]);
    assert_eq!((run.gaps[0].first_sequence, run.gaps[0].last_sequence), (2, 2));
}

#[tokio::test]
async fn what_was_refused_is_still_known_when_another_drains_the_spool() {
    let faults = Faults { drop_from: Some(2), drops: 1, ..Faults::default() };
    let mut server = Server::start_with(faults).await;
    let setup = Setup::new(&server.url()).env("OTTO_DRAIN_TIMEOUT", "300ms");
    let agent = setup.start_script(THREE_BLOCKS);
    refuse_the_second(&server, &setup).await;
    eventually("the agent knows", || {
        let runs = std::fs::read_dir(setup.spool()).unwrap();
        runs.flatten().any(|run| run.path().join("incomplete").exists()).then_some(())
    })
    .await;
    server.vanish();
    std::fs::write(setup.path("two"), "").unwrap();
    assert!(agent.output().await.status.success());
    server.appear().await;
    let setup = setup.env("OTTO_DRAIN_TIMEOUT", "20s");
    let output = setup.drain().await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(server.complete_without_digest().await.messages(), ["a", "c"]);
}

#[tokio::test]
async fn lost_data_becomes_a_gap_and_no_loop() {
    let mut server = Server::start().await;
    let setup = Setup::new(&server.url());
    let agent = setup.start_script("seq 1 10; while [ ! -e go ]; do sleep 0.01; done; seq 11 20");
    eventually("ten lines", || server.store.lock().runs.values().next().filter(|run| run.lines.len() == 10).map(drop))
        .await;
    eventually("the agent knows", || {
        let runs = std::fs::read_dir(setup.spool()).unwrap();
        let mut acked = runs.flatten().filter_map(|run| std::fs::read(run.path().join("acked")).ok());
        acked.any(|acked| acked.starts_with(&10_u64.to_le_bytes())).then_some(())
    })
    .await;
    server.vanish();
    lose_everything(&server.store);
    std::fs::write(setup.path("go"), "").unwrap();
    server.appear().await;
    assert!(agent.output().await.status.success());
    let run = server.complete_without_digest().await;
    assert_eq!(run.messages(), numbers(20)[10..]);
    assert_eq!((run.gaps.len(), run.gaps[0].first_sequence, run.gaps[0].last_sequence), (1, 1, 10));
}

#[tokio::test]
async fn messages_the_transport_refuses_are_cut() {
    let server = Server::start_with(Faults { message_limit: Some(70_000), ..Faults::default() }).await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false"]);
    assert!(setup.run_script("seq 200000").await.status.success());
    assert!(server.complete().await.messages() == numbers(200_000));
}

#[tokio::test]
async fn a_line_the_transport_never_takes_is_a_gap() {
    let server = Server::start_with(Faults { message_limit: Some(20_000), ..Faults::default() }).await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false", "--compression", "none"]);
    let output = setup.run_script("echo a; head -c 50000 /dev/zero | tr '\\0' y; echo; seq 10000; echo b").await;
    assert!(output.status.success());
    assert!(stderr(&output).contains("1 line is missing in the log"), "{}", stderr(&output));
    let run = server.complete_without_digest().await;
    assert_eq!(run.gaps.iter().map(|gap| (gap.first_sequence, gap.last_sequence)).collect::<Vec<_>>(), [(2, 2)]);
    assert_eq!((run.lines.len(), run.messages()[0].as_str(), run.messages()[10_001].as_str()), (10_002, "a", "b"));
}

#[tokio::test]
async fn a_connection_that_goes_nowhere_is_noticed() {
    let server = Server::start().await;
    let tunnel = Tunnel::to(&server).await;
    let setup = Setup::new(&tunnel.url()).flags(&["--answer-timeout", "500ms", "--drain-timeout", "20s"]);
    let agent = setup.start_script("echo a; while [ ! -e go ]; do sleep 0.01; done; echo b");
    eventually("the first line", || {
        server.store.lock().runs.values().next().filter(|run| !run.lines.is_empty()).map(drop)
    })
    .await;
    // Connections made before stay open, but nothing passes.
    tunnel.block();
    std::fs::write(setup.path("go"), "").unwrap();
    assert!(agent.output().await.status.success());
    assert_eq!(server.complete().await.messages(), ["a", "b"]);
    assert!(tunnel.connections() >= 2);
}

#[tokio::test]
async fn a_server_that_says_nothing_does_not_hold_up_the_job() {
    let server = Server::start_with(Faults { mute: true, ..Faults::default() }).await;
    let setup = Setup::new(&server.url()).flags(&["--drain-timeout", "300ms"]);
    let output = setup.run_script("seq 10").await;
    assert_eq!(output.status.code(), Some(0));
    assert!(stderr(&output).contains("10 lines are kept"), "{}", stderr(&output));
}

#[tokio::test]
async fn told_to_end_it_does_not_wait_for_the_server() {
    let server = Server::absent().await;
    let setup = Setup::new(&server.url()).flags(&["--drain-timeout", "1h", "--run-dir", "run"]);
    let agent = setup.start_script("echo x; exit 6");
    eventually("the job has ended", || setup.path("run/exit.json").exists().then_some(())).await;
    agent.signal(rustix::process::Signal::TERM);
    let output = agent.output().await;
    assert_eq!(output.status.code(), Some(6));
    assert!(stderr(&output).contains("1 line is kept"), "{}", stderr(&output));
    // Somebody may still send it.
    assert!(!setup.path("run/drained").exists());
}
