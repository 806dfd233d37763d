//! The run directory: at most one start, and how it ended.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use crate::agent::{Setup, eventually, line_of, lives, stderr};
use crate::server::Server;

fn json(setup: &Setup, name: &str) -> Value {
    serde_json::from_slice(&fs::read(setup.path("run").join(name)).unwrap()).unwrap()
}

#[tokio::test]
async fn start_mark_end_and_drained() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url()).flags(&["--run-dir", "run"]);
    let agent = setup.start_script("cat run/started > seen; echo $$ > pid; echo hi; exit 3");
    let pid = agent.pid.as_raw_nonzero().get();
    let output = agent.output().await;
    assert_eq!(output.status.code(), Some(3));
    let started: Value = serde_json::from_slice(&fs::read(setup.path("seen")).unwrap()).unwrap();
    assert_eq!(started["pid"], pid);
    assert_eq!(started["job_pid"].to_string(), line_of(&setup.path("pid")).await);
    assert_eq!(fs::read_to_string(setup.path("run/lock")).unwrap(), pid.to_string());
    let exit = json(&setup, "exit.json");
    assert_eq!((exit["exit_code"].as_i64(), exit["class"].as_str()), (Some(3), Some("exited")));
    assert!(exit["started_at_ms"].as_u64() <= exit["ended_at_ms"].as_u64() && exit["signal"].is_null());
    assert_eq!(fs::read(setup.path("run/drained")).unwrap(), b"");
    server.complete().await;
    // Again: nothing is started, the code is the same.
    fs::remove_file(setup.path("pid")).unwrap();
    let output = setup.run_script("echo $$ > pid").await;
    assert_eq!(output.status.code(), Some(3), "{}", stderr(&output));
    assert!(!setup.path("pid").exists());
}

#[tokio::test]
async fn an_end_that_cannot_be_written_is_written_when_it_can() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url()).flags(&["--run-dir", "run"]);
    // In the place of the file that it is written to first.
    let agent = setup.start_script("mkdir run/exit.json.tmp; exit 3");
    eventually("drained", || setup.path("run/drained").exists().then_some(())).await;
    assert!(!setup.path("run/exit.json").exists());
    fs::remove_dir(setup.path("run/exit.json.tmp")).unwrap();
    assert_eq!(agent.output().await.status.code(), Some(3));
    assert_eq!(json(&setup, "exit.json")["exit_code"], 3);
}

#[tokio::test]
async fn of_agents_that_begin_at_once_one_starts_the_job() {
    let server = Server::start().await;
    let setup = Setup::new(&server.url()).flags(&["--run-dir", "run"]);
    let agents: Vec<_> = (0..8).map(|_| setup.start_script("echo started >> starts; sleep 0.2")).collect();
    let mut codes = Vec::new();
    for agent in agents {
        codes.push(agent.output().await.status.code().unwrap());
    }
    assert_eq!(fs::read_to_string(setup.path("starts")).unwrap(), "started\n");
    assert!(codes.contains(&0) && codes.iter().all(|code| matches!(code, 0 | 125)), "{codes:?}");
}

#[tokio::test]
async fn classes_of_ends() {
    let server = Server::start().await;
    for (flags, job, class, code) in [
        (&[][..], &["true"][..], "success", Some(0)),
        (&[], &["no-such-program"], "image", Some(127)),
        (&["--timeout", "100ms"], &["sleep", "100"], "deadline", Some(143)),
        (&[], &["sh", "-c", "kill -KILL $$"], "exited", Some(137)),
    ] {
        let setup = Setup::new(&server.url()).flags(&["--run-dir", "run"]).flags(flags);
        let output = setup.start(job).output().await;
        assert_eq!(output.status.code(), code, "{job:?}: {}", stderr(&output));
        let exit = json(&setup, "exit.json");
        assert_eq!(exit["class"], class, "{job:?}");
        assert_eq!(exit["message"].as_str().unwrap().is_empty(), class == "success", "{job:?}");
        assert!(setup.path("run/drained").exists());
    }
    let setup = Setup::new(&server.url()).flags(&["--run-dir", "run"]);
    let agent = setup.start_script("echo $$ > pid; exec sleep 100");
    line_of(&setup.path("pid")).await;
    agent.signal(Signal::TERM);
    assert_eq!(agent.output().await.status.code(), Some(143));
    assert_eq!(json(&setup, "exit.json")["class"], "stopped");
}

#[tokio::test]
async fn a_killed_agents_job_is_ended_and_counts_as_lost() {
    let mut server = Server::absent().await;
    let setup = Setup::new(&server.url()).flags(&["--run-dir", "run", "--drain-timeout", "20s"]);
    // One that stays in the group, and one that left it but carries the job's environment.
    let agent = setup.start_script(
        "echo before; trap '' HUP; sleep 100 & echo $! > in-group; setsid sh -c 'echo $$ > away; exec sleep 100' &
         while :; do sleep 0.01; done",
    );
    let (in_group, away) = (line_of(&setup.path("in-group")).await, line_of(&setup.path("away")).await);
    eventually("spooled", || setup.is_spooled("before\n").then_some(())).await;
    agent.signal(Signal::KILL);
    let _ = agent.output().await;
    assert!(lives(&in_group) && lives(&away));
    server.appear().await;
    let output = setup.run_script("touch again").await;
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    assert!(!setup.path("again").exists());
    assert!(!lives(&in_group) && !lives(&away));
    let exit = json(&setup, "exit.json");
    assert_eq!((exit["class"].as_str(), exit["exit_code"].as_i64()), (Some("agent_lost"), None));
    assert!(setup.path("run/drained").exists());
    assert_eq!(server.complete_without_digest().await.messages(), ["before"]);
}

#[tokio::test]
async fn a_drain_after_the_scaler_noted_the_end() {
    let mut server = Server::absent().await;
    let setup = Setup::new(&server.url()).flags(&["--run-dir", "run"]).env("OTTO_DRAIN_TIMEOUT", "200ms");
    assert_eq!(setup.run_script("echo x; exit 6").await.status.code(), Some(6));
    assert!(!setup.path("run/drained").exists());
    assert_eq!(setup.drain().await.status.code(), Some(1));
    assert!(!setup.path("run/drained").exists());
    server.appear().await;
    let output = setup.env("OTTO_DRAIN_TIMEOUT", "20s").drain().await;
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(server.complete().await.finish.unwrap().exit_code, Some(6));
}
