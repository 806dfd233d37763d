//! Ctrl-C.

use std::io;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

const TICK: Duration = Duration::from_millis(20);

/// SIGINT or SIGTERM, noted. A second one ends this process at once.
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    pub(crate) fn install() -> anyhow::Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    pub(crate) fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn wait(&self) {
        while !self.is_requested() {
            thread::sleep(TICK);
        }
    }

    /// # Errors
    /// If it is requested.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        if self.is_requested() {
            bail!("interrupted");
        }
        Ok(())
    }

    /// Sleeps unless it is requested; then that is an error.
    pub(crate) fn pause(&self, time: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        while start.elapsed() < time {
            self.check()?;
            thread::sleep(TICK.min(time));
        }
        self.check()
    }

    /// Waits for the end of a child in our process group; `None`: interrupted first.
    pub(crate) fn wait_for(&self, child: &mut Child) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = child.try_wait()? {
                // A child in the foreground gets Ctrl-C as we do, and may have ended by it.
                return Ok((!self.is_requested()).then_some(status));
            }
            if self.is_requested() {
                let _ = child.kill();
                child.wait()?;
                return Ok(None);
            }
            thread::sleep(TICK);
        }
    }

    /// Runs a command to its end; its failure, or being interrupted, is an error.
    pub(crate) fn run(&self, command: &mut Command) -> anyhow::Result<()> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command.spawn().with_context(|| format!("starting {name}"))?;
        match self.wait_for(&mut child)? {
            None => bail!("interrupted"),
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("{name} ended with {status}"),
        }
    }
}
