use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

use crate::PATIENCE;

/// One of our programs, as built beside the running test.
///
/// # Errors
/// When it has not been built; the message says how.
pub fn binary(name: &str) -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let built = test.ancestors().skip(1).take(3).map(|dir| dir.join(name)).find(|path| path.is_file());
    built
        .with_context(|| format!("{name} is not built; run `cargo build --workspace --bins` (`cargo xtask test` does)"))
}

/// A program of the machine, or one that `cargo xtask test` built into `target/tools`.
///
/// # Errors
/// When it is not there; the message says how to get it.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let tools = std::env::current_exe()?.ancestors().find_map(|dir| {
        let path = dir.join("tools").join(name);
        path.is_file().then_some(path)
    });
    let path = std::env::var_os("PATH").unwrap_or_default();
    tools
        .or_else(|| std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file()))
        .with_context(|| format!("{name} is not installed; `cargo xtask test` installs or builds it"))
}

/// A process we started, ended with its last handle. Its stderr goes to a file that is shown when something fails.
pub struct Process {
    child: Child,
    pid: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts a program; stdout and stderr go to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        program: &Path,
        args: impl IntoIterator<Item = A>,
        env: &[(&str, &str)],
        log: &Path,
    ) -> anyhow::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        let child = Command::new(program)
            .args(args)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("starting {}", program.display()))?;
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())).context("no pid")?;
        Ok(Self { child, pid, log: log.to_owned() })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it is gone.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill_process(self.pid, signal)?)
    }

    /// SIGKILL, and waits for the end.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        Ok(())
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end within the patience of a test; the message holds the end of its log.
    pub async fn wait(&mut self) -> anyhow::Result<ExitStatus> {
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("process {:?} did not end; its log:\n{}", self.pid, self.log_tail()),
        }
    }

    /// Fails when it has ended.
    ///
    /// # Errors
    /// With its status and the end of its log.
    pub fn check_running(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("it ended with {status}; its log:\n{}", self.log_tail()),
        }
    }

    /// Resident memory, bytes.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resident_bytes(&self) -> anyhow::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid.as_raw_nonzero()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kib * 1024)
    }

    /// CPU time it has used so far, user and system, seconds.
    ///
    /// # Errors
    /// When it is gone.
    pub fn cpu_seconds(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid.as_raw_nonzero()))?;
        // Fields 14 and 15 of proc_pid_stat(5); the name before them may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("no name")?;
        let ticks = fields.split_ascii_whitespace().skip(11).take(2).map(str::parse::<u64>);
        Ok(ticks.sum::<Result<u64, _>>()? as f64 / rustix::param::clock_ticks_per_second() as f64)
    }

    /// All it wrote.
    #[must_use]
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last 4 KiB it wrote: for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&text[text.len().saturating_sub(4096)..]).into_owned()
    }
}
