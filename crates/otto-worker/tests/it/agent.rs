//! Starts agents.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_otto-worker");

/// How long a state is waited for: the machine may be loaded.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// A place for an agent, and what it is told.
pub(crate) struct Setup {
    pub(crate) dir: tempfile::TempDir,
    spool: PathBuf,
    flags: Vec<String>,
    /// Of `run` only.
    run_flags: Vec<String>,
    env: Vec<(String, String)>,
    /// What starts the program, with its arguments.
    wrapper: Vec<String>,
    program: PathBuf,
}

impl Setup {
    pub(crate) fn new(log_server: &str) -> Self {
        let setup = Self::without_server();
        setup.flags(&["--log-server", log_server])
    }

    pub(crate) fn without_server() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().join("spool");
        Self::with(dir, spool)
    }

    /// As in a Pod: the run directory is in a volume, and so is the spool.
    pub(crate) fn in_pod(log_server: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("otto");
        std::fs::create_dir(&volume).unwrap();
        let run = volume.join("run");
        let spool = run.join("spool");
        Self::with(dir, spool).flags(&["--run-dir", &run.display().to_string(), "--log-server", log_server])
    }

    fn with(dir: tempfile::TempDir, spool: PathBuf) -> Self {
        let spool_flag = spool.display().to_string();
        let flags = ["--task-id", "task", "--worker-id", "worker", "--spool-dir", &spool_flag].map(str::to_owned);
        Setup {
            dir,
            spool,
            flags: flags.to_vec(),
            run_flags: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
            program: BINARY.into(),
        }
    }

    pub(crate) fn flags(mut self, flags: &[&str]) -> Self {
        self.flags.extend(flags.iter().map(ToString::to_string));
        self
    }

    /// Flags that the drain does not get.
    pub(crate) fn run_flags(mut self, flags: &[&str]) -> Self {
        self.run_flags.extend(flags.iter().map(ToString::to_string));
        self
    }

    /// The agent is started by this command.
    pub(crate) fn wrapper<A: ToString>(mut self, words: &[A]) -> Self {
        self.wrapper = words.iter().map(ToString::to_string).collect();
        self
    }

    /// Another copy of the agent.
    pub(crate) fn program(mut self, path: PathBuf) -> Self {
        self.program = path;
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
        self.spool.clone()
    }

    /// Whether a segment of the spool holds this text. (Blocks below 4 KiB are never compressed.)
    pub(crate) fn is_spooled(&self, text: &str) -> bool {
        let runs = std::fs::read_dir(&self.spool).into_iter().flatten().flatten();
        let files = runs.flat_map(|run| std::fs::read_dir(run.path()).into_iter().flatten().flatten());
        let mut segments = files.filter(|file| file.path().extension().is_some_and(|extension| extension == "seg"));
        segments.any(|file| {
            std::fs::read(file.path()).is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
        })
    }

    /// The run directory of one in a Pod.
    pub(crate) fn run_dir(&self) -> PathBuf {
        self.path("otto/run")
    }

    fn command(&self, verb: &str) -> Command {
        let mut words = self.wrapper.iter().map(OsStr::new).chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words);
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
        Agent::of(self.command("run").args(&self.run_flags).arg("--").args(job).spawn().unwrap())
    }

    /// Starts the drain that waits for the job's agent.
    pub(crate) fn start_drainer(&self) -> Agent {
        Agent::of(self.command("drain").arg("--wait").spawn().unwrap())
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
    fn of(child: Child) -> Self {
        let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
        Agent { child, pid }
    }

    /// The agent that a wrapper has started as its only child.
    pub(crate) async fn inside(&self) -> Pid {
        let outer = self.pid.as_raw_nonzero();
        eventually("the wrapper has started the agent", || {
            let text = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).ok()?;
            let pid = text.trim().parse().ok()?;
            let program = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
            program.ends_with("otto-worker").then(|| Pid::from_raw(pid).unwrap())
        })
        .await
    }

    /// It runs, and has gone to wait for something.
    pub(crate) fn assert_lives(&mut self) {
        assert_eq!(self.child.try_wait().unwrap(), None, "it has ended");
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Reads its standard output, little by little.
    pub(crate) fn trickle(&mut self) -> tokio::task::JoinHandle<()> {
        use tokio::io::AsyncReadExt as _;
        let mut stdout = self.child.stdout.take().unwrap();
        tokio::spawn(async move {
            let mut bytes = [0; 4096];
            while stdout.read(&mut bytes).await.is_ok_and(|count| count > 0) {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        })
    }

    pub(crate) async fn ended(&mut self) -> std::process::ExitStatus {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.expect("the agent ends").unwrap()
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
