//! Which processes are children of this one, and who reaps them.
//!
//! Agents are reaped by those who follow them. Where the scaler is a container's first process, the kernel also gives it
//! the orphans of killed agents; these are reaped here.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::spawn::spawn;

/// The agents that are followed.
#[derive(Clone, Debug, Default)]
pub(super) struct Children(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// Read while an agent is started and not yet noted, written while orphans are looked for.
    starting: RwLock<()>,
    pids: Mutex<HashSet<i32>>,
}

/// A started agent. Forgotten with its drop, which must come after it was reaped.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    children: Children,
}

impl Child {
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.children.pids().remove(&self.pid.as_raw_nonzero().get());
    }
}

impl Children {
    /// Starts an agent. Blocks until it is executed.
    ///
    /// # Errors
    /// As [`spawn()`].
    pub(super) fn spawn(&self, arguments: &[CString], environment: &[CString], stderr: &File) -> io::Result<Child> {
        // Noted before anybody can take it for an orphan.
        let _starting = self.0.starting.read().unwrap_or_else(PoisonError::into_inner);
        let pid = spawn(arguments, environment, stderr.as_fd())?;
        self.pids().insert(pid.as_raw_nonzero().get());
        Ok(Child { pid, children: self.clone() })
    }

    fn pids(&self) -> MutexGuard<'_, HashSet<i32>> {
        self.0.pids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reaps orphans until `stop`, if the kernel gives them to this process.
    pub(super) async fn reap_orphans(self, stop: CancellationToken) {
        if rustix::process::getpid() != Pid::INIT {
            return;
        }
        let mut deaths = match signal(SignalKind::child()) {
            Ok(deaths) => deaths,
            Err(error) => {
                tracing::warn!(%error, "orphans of workers will not be reaped");
                return;
            }
        };
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                death = deaths.recv() => if death.is_none() { return },
            }
            // Deaths come in groups.
            tokio::time::sleep(Duration::from_millis(200)).await;
            if let Err(error) = self.reap() {
                tracing::debug!(%error, "orphans cannot be found");
            }
        }
    }

    /// Reaps children that have ended and are no agents.
    fn reap(&self) -> io::Result<()> {
        let _nothing_starting = self.0.starting.write().unwrap_or_else(PoisonError::into_inner);
        for task in std::fs::read_dir("/proc/self/task")? {
            let children = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            for pid in children.split_whitespace().filter_map(|pid| pid.parse().ok()) {
                if !self.pids().contains(&pid)
                    && let Some(pid) = Pid::from_raw(pid)
                {
                    let _ = waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
                }
            }
        }
        Ok(())
    }
}
