//! A live agent process, held by a descriptor of it: neither waiting for it nor signalling it can reach another process
//! that was given its pid later.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::children::Child;
use super::run_dir::{Lock, RunDir};

/// A process that is, or was, an agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) pid: i32,
    fd: AsyncFd<OwnedFd>,
    /// Ours to reap. `None`: a survivor of an earlier scaler.
    child: Option<Child>,
}

impl Agent {
    /// One that was just started. Waits, telling why, while no descriptor is left: it runs already.
    pub(super) async fn started(child: Child) -> Self {
        let pid = child.pid();
        loop {
            // Not reaped, so the pid is still its own.
            let opened = pidfd_open(pid, PidfdFlags::empty()).map_err(io::Error::from);
            match opened.and_then(readable) {
                Ok(fd) => return Self { pid: pid.as_raw_nonzero().get(), fd, child: Some(child) },
                Err(error) => {
                    tracing::error!(%error, "a worker cannot be followed yet; trying again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    /// The one that holds the lock. `None`: nobody does (any more), or it has not told its pid yet.
    ///
    /// # Errors
    /// When there is no descriptor left, or the lock cannot be looked at.
    pub(super) fn holding(dir: &RunDir) -> io::Result<Option<Self>> {
        let Some(pid) = dir.lock_pid() else { return Ok(None) };
        let Some(raw) = Pid::from_raw(pid) else { return Ok(None) };
        let fd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Held still, and by the same: so what was opened is the holder, and not a process that was given its pid.
        if dir.lock()? == Lock::Free || dir.lock_pid() != Some(pid) {
            return Ok(None);
        }
        Ok(Some(Self { pid, fd: readable(fd)?, child: None }))
    }

    /// Waits for its end. It is not reaped by that.
    pub(super) async fn ended(&self) {
        if let Err(error) = self.fd.readable().await {
            // The runtime is going away, and this task with it.
            tracing::debug!(%error, "an agent can no longer be waited for");
            std::future::pending::<()>().await;
        }
    }

    /// Sends a signal; nothing if it has ended.
    pub(super) fn signal(&self, signal: Signal) {
        if let Err(error) = pidfd_send_signal(self.fd.get_ref(), signal)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(%error, pid = self.pid, ?signal, "a signal cannot be sent to an agent");
        }
    }

    /// Whether it is a child of this process: then its pid, and the id of its session, is not given to another before
    /// this is dropped.
    pub(super) fn is_child(&self) -> bool {
        self.child.is_some()
    }

    /// How it ended, for people. Only of a child that has ended and was not reaped.
    pub(super) fn end(&self) -> Option<String> {
        self.child.as_ref()?;
        let status = self.wait(WaitIdOptions::NOWAIT)?;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => Some(format!("exit code {code}")),
            (_, Some(signal)) => Some(format!("signal {signal}")),
            _ => None,
        }
    }

    fn wait(&self, options: WaitIdOptions) -> Option<WaitIdStatus> {
        use std::os::fd::AsFd;
        let id = WaitId::PidFd(self.fd.get_ref().as_fd());
        waitid(id, WaitIdOptions::EXITED | WaitIdOptions::NOHANG | options).ok().flatten()
    }
}

/// To wait until a descriptor can be read: a process's, when it has ended.
#[allow(unsafe_code)]
pub(super) fn readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it is owned, so it is valid until the `AsyncFd` is dropped, and nobody replaces it.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.child.is_some() {
            // Nothing if it lives on, because the scaler is ending: then it is nobody's child.
            let _ = self.wait(WaitIdOptions::empty());
        }
    }
}
