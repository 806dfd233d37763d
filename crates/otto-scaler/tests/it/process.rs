//! The process driver with the real agent, under kills.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use otto_proto::v1::TaskState;
use otto_testkit::{eventually, eventually_progressing};
use rustix::process::{Pid, Signal, kill_process};

use crate::setup::{Fixture, lines, shell};

fn run_dirs(fixture: &Fixture) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(fixture.dir.path().join("scaler-data/runs")) else { return Vec::new() };
    let names = entries.map(|entry| entry.unwrap().path());
    names.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("otto-")).collect()
}

fn number(path: &Path) -> Option<i32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn runs(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Tells the pids of a shell, of a child in its group, and of one in a session of its own.
fn family(pids: &Path) -> String {
    let pids = pids.display();
    format!(
        "sleep 1000 & setsid sleep 1000 & until [ $(pgrep -P $$ sleep | wc -l) = 2 ]; do :; done; \
         echo $$ > {pids}.tmp; pgrep -P $$ sleep >> {pids}.tmp; mv {pids}.tmp {pids}; wait"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_fails_its_worker_and_leaves_nothing_behind() {
    let mut fixture = Fixture::start(&[]).await;
    let pids = fixture.dir.path().join("pids");
    let mut request = shell("lost", 1, &family(&pids));
    request.build_config.insert("max_attempts".into(), "1".into());
    fixture.calls.scale_up(request).await.unwrap();
    eventually("the job runs", || async { pids.exists().then_some(()) }).await;
    let family: Vec<i32> = lines(&pids).iter().map(|line| line.parse().unwrap()).collect();
    assert_eq!(family.len(), 3, "{family:?}");
    let agent = number(&run_dirs(&fixture)[0].join("lock")).unwrap();
    kill_process(Pid::from_raw(agent).unwrap(), Signal::KILL).unwrap();
    let task = fixture.until_state("lost", TaskState::Failed).await;
    assert!(task.error_message.contains("its agent was killed"), "{}", task.error_message);
    assert!(!family.iter().any(|pid| runs(*pid)), "{family:?}");
    eventually("its run directory is removed", || async { run_dirs(&fixture).is_empty().then_some(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_agent_is_tried_again_if_the_event_says_so_and_never_twice_at_once() {
    let mut fixture = Fixture::start(&["--retry-backoff-min", "10ms"]).await;
    let starts = fixture.dir.path().join("starts");
    let script = format!(
        "echo start $OTTO_JOB_ATTEMPT >> {0}; [ $OTTO_JOB_ATTEMPT = 2 ] && exit 0; trap 'echo end >> {0}' EXIT; sleep 1000",
        starts.display()
    );
    let mut request = shell("again", 1, &script);
    request.build_config.insert("max_attempts".into(), "2".into());
    fixture.calls.scale_up(request).await.unwrap();
    eventually("the job runs", || async { (lines(&starts).len() == 1).then_some(()) }).await;
    let agent = number(&run_dirs(&fixture)[0].join("lock")).unwrap();
    kill_process(Pid::from_raw(agent).unwrap(), Signal::KILL).unwrap();
    fixture.until_state("again", TaskState::Succeeded).await;
    assert_eq!(lines(&starts), ["start 1", "start 2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_workers_are_started_exactly_once_though_the_scaler_is_killed() {
    const WORKERS: usize = 200;
    let mut fixture = Fixture::start(&["--max-workers", "16"]).await;
    let starts = fixture.dir.path().join("starts");
    let script = format!("echo $OTTO_JOB_WORKER_ID >> {}", starts.display());
    fixture.calls.scale_up(shell("many", WORKERS as i32, &script)).await.unwrap();
    for part in 1..=5 {
        let at_least = WORKERS * part / 6;
        eventually_progressing("more have begun", || async {
            let begun = lines(&starts).len();
            (begun >= at_least).then_some(()).ok_or(begun)
        })
        .await;
        fixture.kill_and_restart().await;
    }
    let task = fixture.until_state("many", TaskState::Succeeded).await;
    assert_eq!(task.succeeded_workers as usize, WORKERS);
    let mut started: BTreeMap<String, u32> = BTreeMap::new();
    for name in lines(&starts) {
        *started.entry(name).or_default() += 1;
    }
    let wrong: Vec<_> = started.iter().filter(|(name, times)| **times != 1 || !name.ends_with("-1")).collect();
    assert!(wrong.is_empty() && started.len() == WORKERS, "{} started, wrong: {wrong:?}", started.len());
}
