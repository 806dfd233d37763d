//! With real processes: an agent that keeps to the contract, as a shell script, so that it can be made to misbehave.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use otto_testkit::PATIENCE;
use tempfile::TempDir;

use super::*;
use crate::task::Spec;

mod crash;
mod ends;
mod life;
mod survivors;

/// The stand-in. `--mode=…` makes it misbehave. A drained spool goes to `drained-output` beside the run directories.
const AGENT: &str = r#"#!/bin/bash
verb=$1; shift
mode=
while [ $# -gt 0 ]; do
    case $1 in
        --run-dir=*) dir=${1#*=} ;;
        --mode=*) mode=${1#*=} ;;
        --) shift; break ;;
    esac
    shift
done
cd "$dir/../.." || exit 1
[ "$mode" = hang ] && [ $verb = run ] && sleep 1000
[ "$mode" = fail ] && { echo "error: no good" >&2; exit 9; }
exec 9>>"$dir/lock"
flock -n 9 || exit 75
echo $$ >"$dir/lock"
drain() {
    [ "$mode" = undrained ] && [ ! -e "$dir/../../log-server" ] && exit 1
    cat "$dir/spool/"* >>drained-output 2>/dev/null
    rm -rf "$dir/spool"
    : >"$dir/drained"
    exit 0
}
[ $verb = drain ] && drain
stopped= job=
trap 'stopped=1; [ -n "$job" ] && kill -TERM -- -$job 2>/dev/null' TERM
[ "$mode" = deaf ] && trap '' TERM
(set -C; echo "{\"pid\":$$,\"started_at_ms\":$(date +%s%3N)}" >"$dir/started") 2>/dev/null || drain
mkdir -p "$dir/spool"
set -m
"$@" >"$dir/spool/out" 2>&1 9>&- &
job=$!
set +m
[ -n "$stopped" ] && kill -TERM -- -$job
code=; while [ -z "$code" ]; do wait $job; code=$?; kill -0 $job 2>/dev/null && code=; done
class=exited; [ $code = 0 ] && class=success; [ -n "$stopped" ] && class=stopped
echo "{\"exit_code\":$code,\"class\":\"$class\",\"message\":\"ended with $code\",\"ended_at_ms\":$(date +%s%3N)}" >"$dir/exit.tmp"
mv "$dir/exit.tmp" "$dir/exit.json"
drain
"#;

/// A data directory and the stand-in in it.
struct Place {
    dir: TempDir,
}

/// A driver and what it told.
struct Driven {
    driver: ProcessDriver,
    changes: mpsc::Receiver<Observed>,
    /// The latest of each worker.
    seen: BTreeMap<WorkerKey, Observed>,
    stop: CancellationToken,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        write_agent(dir.path());
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn run_dir(&self, key: &WorkerKey) -> PathBuf {
        self.path("runs").join(name::worker_name(key))
    }

    fn open(&self, mode: &str) -> Driven {
        Driven::open(options(self.dir.path(), mode))
    }
}

/// Written by another process: what this one has open for writing is open, for a moment, in every process that a test
/// beside this one starts, and cannot be executed meanwhile.
fn write_agent(dir: &Path) {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", r#"printf %s "$AGENT" >"$0" && chmod 755 "$0""#]).arg(dir.join("otto-worker"));
    assert!(command.env("AGENT", AGENT).status().unwrap().success());
}

fn options(dir: &Path, mode: &str) -> Options {
    Options {
        data_dir: dir.to_owned(),
        worker_binary: dir.join("otto-worker"),
        worker_args: vec![format!("--mode={mode}")],
        log_server: "http://127.0.0.1:1".to_owned(),
        auth_token_file: None,
        stop_grace: Duration::from_millis(300),
        drain_limit: Duration::from_secs(3_600),
    }
}

fn key(task_id: &str, index: u32) -> WorkerKey {
    WorkerKey { task_id: task_id.to_owned(), index, attempt: 1 }
}

fn shell(key: &WorkerKey, script: &str) -> Launch {
    let spec = Spec { command: vec!["sh".into(), "-c".into(), script.into()], ..Spec::default() };
    Launch { key: key.clone(), spec: spec.into(), traceparent: None }
}

impl Driven {
    fn open(options: Options) -> Self {
        let stop = CancellationToken::new();
        let driver = ProcessDriver::open(options, stop.clone()).unwrap();
        let (sender, changes) = mpsc::channel(16);
        driver.watch(sender).unwrap();
        Self { driver, changes, seen: BTreeMap::new(), stop }
    }

    async fn list(&mut self) -> usize {
        let all = self.driver.list().await.unwrap();
        let count = all.len();
        self.seen.extend(all.into_iter().map(|seen| (seen.key.clone(), seen)));
        count
    }

    /// Waits until a worker is seen as wanted.
    async fn until(&mut self, key: &WorkerKey, wanted: impl Fn(&Observed) -> bool) -> Observed {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            if let Some(seen) = self.seen.get(key).filter(|seen| wanted(seen)) {
                return seen.clone();
            }
            match tokio::time::timeout_at(deadline, self.changes.recv()).await {
                Ok(Some(seen)) => drop(self.seen.insert(seen.key.clone(), seen)),
                Ok(None) => panic!("the driver tells nothing more"),
                Err(_) => panic!("not within {PATIENCE:?}; last seen: {:?}", self.seen.get(key)),
            }
        }
    }

    async fn running(&mut self, key: &WorkerKey) -> Observed {
        self.until(key, |seen| seen.state == State::Running).await
    }

    async fn ended(&mut self, key: &WorkerKey) -> Outcome {
        let seen = self.until(key, |seen| matches!(seen.state, State::Ended { .. })).await;
        match seen.state {
            State::Ended { outcome, .. } => outcome,
            _ => unreachable!(),
        }
    }

    /// As if the scaler had ended: workers live on.
    async fn close(self) {
        self.stop.cancel();
        self.driver.closed().await;
    }

    /// Removes a worker, which may not be possible at once.
    async fn remove(&self, key: &WorkerKey) {
        let start = Instant::now();
        while let Err(error) = self.driver.remove(key).await {
            assert!(start.elapsed() < PATIENCE, "{error:#}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The pid of a process is still that of one which runs.
fn runs(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}
