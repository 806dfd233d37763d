//! Processes that end with us.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

const TICK: Duration = Duration::from_millis(20);
/// Longest time a program may drain.
const DRAIN_WITHIN: Duration = Duration::from_secs(20);

/// A process in a group of its own, so that Ctrl-C reaches only us, and we end the programs in their order.
pub(crate) struct Child {
    name: &'static str,
    process: std::process::Child,
    log: PathBuf,
}

impl Child {
    pub(crate) fn start(name: &'static str, command: &mut Command, log: &Path) -> anyhow::Result<Self> {
        let out = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).process_group(0);
        let process = command.spawn().with_context(|| format!("starting {name}"))?;
        Ok(Self { name, process, log: log.to_owned() })
    }

    pub(crate) fn log(&self) -> &Path {
        &self.log
    }

    pub(crate) fn check_running(&mut self) -> anyhow::Result<()> {
        let Some(status) = self.process.try_wait()? else { return Ok(()) };
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let last: Vec<_> = text.lines().rev().take(10).collect();
        let last: Vec<_> = last.into_iter().rev().collect();
        bail!("{} ended with {status}:\n{}", self.name, last.join("\n"));
    }

    /// SIGTERM, then SIGKILL; an error if it did not end well.
    pub(crate) fn end(mut self) -> anyhow::Result<()> {
        self.terminate()
    }

    fn terminate(&mut self) -> anyhow::Result<()> {
        if self.process.try_wait()?.is_some() {
            return Ok(());
        }
        signal(self.process.id(), Signal::TERM);
        let start = Instant::now();
        while self.process.try_wait()?.is_none() {
            if start.elapsed() > DRAIN_WITHIN {
                self.process.kill()?;
                self.process.wait()?;
                bail!("{} did not end within {DRAIN_WITHIN:?} of SIGTERM and was killed", self.name);
            }
            thread::sleep(TICK);
        }
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Err(error) = self.terminate() {
            eprintln!("xtask: {error:#}");
        }
    }
}

/// Ends the workers whose run directories are in `runs`, and waits for them.
pub(crate) fn end_workers(runs: &Path) {
    let live = || -> Vec<u32> {
        let Ok(entries) = fs::read_dir(runs) else { return Vec::new() };
        let pids = entries.flatten().filter_map(|entry| fs::read_to_string(entry.path().join("lock")).ok());
        pids.filter_map(|text| text.trim().parse().ok()).filter(|pid| is_worker(*pid)).collect()
    };
    for pid in live() {
        signal(pid, Signal::TERM);
    }
    let start = Instant::now();
    while !live().is_empty() {
        if start.elapsed() > DRAIN_WITHIN {
            live().into_iter().for_each(|pid| signal(pid, Signal::KILL));
            return;
        }
        thread::sleep(TICK);
    }
}

/// The pid may have been given to another process since it was written.
fn is_worker(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|exe| exe.file_name().is_some_and(|name| name.to_string_lossy().starts_with("otto-worker")))
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // It may have ended by itself meanwhile.
        let _ = kill_process(pid, signal);
    }
}
