//! A log server that is late, away, forgetful or picky.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use otto_proto::v1::log_gap;

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

/// The agent has heard that the server has everything up to this line.
async fn knows(setup: &Setup, sequence: u64) {
    eventually("the agent knows", || {
        let runs = std::fs::read_dir(setup.spool()).into_iter().flatten();
        let mut acked = runs.flatten().filter_map(|run| std::fs::read(run.path().join("acked")).ok());
        acked.any(|acked| acked.starts_with(&sequence.to_le_bytes())).then_some(())
    })
    .await;
}

#[tokio::test]
async fn data_that_the_server_lost_is_sent_again() {
    let mut server = Server::start().await;
    let setup = Setup::new(&server.url());
    let agent = setup.start_script("seq 1 10; while [ ! -e go ]; do sleep 0.01; done; seq 11 20");
    eventually("ten lines", || server.store.lock().runs.values().next().filter(|run| run.lines.len() == 10).map(drop))
        .await;
    knows(&setup, 10).await;
    server.vanish();
    lose_everything(&server.store);
    std::fs::write(setup.path("go"), "").unwrap();
    server.appear().await;
    assert!(agent.output().await.status.success());
    let run = server.complete().await;
    assert_eq!(run.messages(), numbers(20));
    assert!(run.gaps.is_empty(), "{:?}", run.gaps);
}

/// What was acknowledged and is not here any more is a gap, and ends no loop.
#[tokio::test]
async fn data_that_is_nowhere_any_more_is_a_gap() {
    let mut server = Server::start().await;
    // Segments of 128 KiB: the first ones are gone when the server has their lines.
    let flags = ["--tee", "false", "--spool-bytes", "1MiB", "--compression", "none"];
    let setup = Setup::new(&server.url()).flags(&flags);
    let agent = setup.start_script("seq 1 200000; while [ ! -e go ]; do sleep 0.01; done; seq 200001 200020");
    knows(&setup, 200_000).await;
    server.vanish();
    lose_everything(&server.store);
    std::fs::write(setup.path("go"), "").unwrap();
    server.appear().await;
    assert!(agent.output().await.status.success());
    let run = server.complete_without_digest().await;
    let [gap] = &run.gaps[..] else { panic!("{:?}", run.gaps) };
    assert_eq!(gap.first_sequence, 1);
    assert!(gap.last_sequence < 200_000, "{gap:?}");
    assert!(run.messages() == numbers(200_020)[usize::try_from(gap.last_sequence).unwrap()..]);
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

/// One bad byte on the worker's disk costs one block, and nobody waits for it.
#[tokio::test]
async fn a_damaged_record_of_the_spool_costs_itself_alone() {
    let mut server = Server::start().await;
    server.vanish();
    let setup = Setup::new(&server.url()).flags(&["--tee", "false", "--compression", "none"]);
    let agent = setup.start_script("seq 1000000; while [ ! -e go ]; do sleep 0.01; done");
    let segment = |number: u32| {
        let mut runs = std::fs::read_dir(setup.spool()).ok()?.flatten();
        let path = runs.next()?.path().join(format!("{number:08}.seg"));
        Some((path.metadata().ok()?.len(), path))
    };
    // The first segment is whole: the next one has begun.
    let path = eventually("the spool fills", || segment(2).and_then(|_| segment(1)).map(|(_, path)| path)).await;
    // Behind what is in memory.
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 3 << 20).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 3 << 20).unwrap();
    server.appear().await;
    std::fs::write(setup.path("go"), "").unwrap();
    assert!(agent.output().await.status.success());
    let run = server.complete_without_digest().await;
    let [gap] = &run.gaps[..] else { panic!("{:?}", run.gaps) };
    assert_eq!(gap.reason(), log_gap::Reason::Damaged);
    let missing = usize::try_from(gap.last_sequence + 1 - gap.first_sequence).unwrap();
    assert!(missing < 200_000 && run.lines.len() + missing == 1_000_000, "{missing} of {}", run.lines.len());
}
