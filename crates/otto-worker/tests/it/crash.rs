//! An agent that is killed.

use otto_proto::v1::log_gap;
use rustix::process::Signal;

use crate::agent::{Setup, eventually, line_of, lives, stderr};
use crate::server::{Faults, Server};

#[tokio::test]
async fn what_was_spooled_is_sent_and_the_rest_is_a_gap() {
    let mut server = Server::absent().await;
    let setup = Setup::new(&server.url());
    let agent = setup.start_script("echo $$ > pid; seq 1 1000; touch printed; while :; do sleep 0.01; done");
    let job = line_of(&setup.path("pid")).await;
    eventually("printed", || setup.path("printed").exists().then_some(())).await;
    eventually("spooled", || setup.is_spooled("1000\n").then_some(())).await;
    agent.signal(Signal::KILL);
    let _ = agent.output().await;
    eventually("the job dies with its agent", || (!lives(&job)).then_some(())).await;
    server.appear().await;
    let output = setup.drain().await;
    assert!(output.status.success(), "{}", stderr(&output));
    let run = server.complete_without_digest().await;
    assert_eq!(run.messages(), (1..=1000).map(|number| number.to_string()).collect::<Vec<_>>());
    let gap = run.gaps.last().unwrap();
    assert_eq!((gap.reason(), gap.first_sequence, gap.last_sequence), (log_gap::Reason::AgentLost, 1001, 0));
    assert!(!run.finish.unwrap().error_message.is_empty());
    setup.assert_spool_is_empty();
    // Nothing is left to do.
    assert!(setup.drain().await.status.success());
}

#[tokio::test]
async fn a_drain_goes_on_where_the_agent_was() {
    let faults = Faults { cuts: vec![3, 100], ..Faults::default() };
    let mut server = Server::start_with(faults).await;
    let setup = Setup::new(&server.url()).flags(&["--tee", "false", "--batch-lines", "100"]);
    let agent = setup.start_script("seq 1 5000; touch printed; while :; do sleep 0.01; done");
    eventually("printed", || setup.path("printed").exists().then_some(())).await;
    eventually("all stored", || {
        server.store.lock().runs.values().next().filter(|run| run.lines.len() == 5000).map(drop)
    })
    .await;
    agent.signal(Signal::KILL);
    let _ = agent.output().await;
    server.vanish();
    server.appear().await;
    assert!(setup.drain().await.status.success());
    let run = server.complete_without_digest().await;
    assert_eq!(run.messages(), (1..=5000).map(|number| number.to_string()).collect::<Vec<_>>());
    setup.assert_spool_is_empty();
}

#[tokio::test]
async fn a_worker_started_again_sends_what_its_earlier_run_left() {
    let mut server = Server::absent().await;
    let setup = Setup::new(&server.url()).env("OTTO_DRAIN_TIMEOUT", "100ms");
    assert!(setup.run_script("echo first").await.status.success());
    server.appear().await;
    let setup = setup.env("OTTO_DRAIN_TIMEOUT", "20s");
    assert!(setup.run_script("echo second").await.status.success());
    let state = server.store.lock();
    let mut messages: Vec<_> = state.runs.values().map(|run| run.messages().join(" ")).collect();
    messages.sort();
    assert_eq!(messages, ["first", "second"]);
    setup.assert_spool_is_empty();
}

#[tokio::test]
async fn a_drain_leaves_a_live_agent_alone() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url());
    let agent = setup.start_script("echo a; while [ ! -e go ]; do sleep 0.01; done; echo b");
    eventually("the first line", || {
        server.store.lock().runs.values().next().filter(|run| !run.lines.is_empty()).map(drop)
    })
    .await;
    let output = setup.drain().await;
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
    std::fs::write(setup.path("go"), "").unwrap();
    assert!(agent.output().await.status.success());
    assert_eq!(server.complete().await.messages(), ["a", "b"]);
}
