//! Starts agents.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// How long a state is waited for: the machine may be loaded.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A place for an agent, and what it is told.
pub(crate) struct Setup {
    pub(crate) dir: tempfile::TempDir,
    flags: Vec<String>,
    env: Vec<(String, String)>,
}

impl Setup {
    pub(crate) fn new(log_server: &str) -> Self {
        let setup = Self::without_server();
        setup.flags(&["--log-server", log_server])
    }

    pub(crate) fn without_server() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let flags = ["--task-id", "task", "--worker-id", "worker", "--spool-dir"].map(str::to_owned);
        let mut flags = flags.to_vec();
        flags.push(dir.path().join("spool").display().to_string());
        Setup { dir, flags, env: Vec::new() }
    }

    pub(crate) fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(ToString::to_string));
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.path("spool")
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_otto-worker"));
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("OTTO_")) {
            command.env_remove(name);
        }
        command
            .arg(verb)
            .args(&self.flags)
            .envs(self.env.iter().cloned())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts an agent with a job.
    pub(crate) fn start<A: AsRef<OsStr>>(&self, job: impl IntoIterator<Item = A>) -> Agent {
        let child = self.command("run").arg("--").args(job).spawn().unwrap();
        let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        Agent { child, pid }
    }

    /// As [`Setup::start`], with a script.
    pub(crate) fn start_script(&self, script: &str) -> Agent {
        self.start(["sh", "-c", script])
    }

    /// Runs a script to the end of the agent.
    pub(crate) async fn run_script(&self, script: &str) -> Output {
        self.start_script(script).output().await
    }

    pub(crate) async fn drain(&self) -> Output {
        let child = self.command("drain").spawn().unwrap();
        tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("the drain ends").unwrap()
    }

    /// Nothing of a run is left.
    pub(crate) fn assert_spool_is_empty(&self) {
        let left: Vec<_> = std::fs::read_dir(self.spool()).into_iter().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// An agent that runs. Killed when dropped.
pub(crate) struct Agent {
    pub(crate) child: Child,
    pub(crate) pid: Pid,
}

impl Agent {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    pub(crate) async fn output(self) -> Output {
        tokio::time::timeout(PATIENCE, self.child.wait_with_output()).await.expect("the agent ends").unwrap()
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Waits until `probe` gives a value.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The file's text once it ends with a newline.
pub(crate) async fn line_of(path: &Path) -> String {
    eventually(&format!("a line in {}", path.display()), || {
        std::fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'))
    })
    .await
    .trim()
    .to_owned()
}

/// Whether a process lives (zombies do not).
pub(crate) fn lives(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

/// Bytes that look random, the same each time.
pub(crate) fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}
