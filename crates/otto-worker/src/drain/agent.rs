//! Waits until the job's agent, in another container, has come and gone.
//!
//! It may come in hours, when the image is pulled at last, and stay for days. So there is nothing to look at by the clock:
//! directories are watched until it is there, and then its lock is waited for, which the kernel gives us at its end,
//! whatever that was.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

use crate::child::Signals;
use crate::rundir::{Occupant, RunDir};

/// Looked at again although nothing was told: a file system may be one that tells nothing (some sandboxes).
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// As above, where directories cannot be watched: a user may have few watches, and all agents of a machine be one user.
const LOOK: Duration = Duration::from_secs(1);

/// What came of the wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// We were told to end before any agent came.
    Never,
    /// An agent was there and has ended; whether we were told to end meanwhile.
    Gone { told: bool },
    /// We were told twice.
    Enough,
}

/// Waits for the end of the agent that will use the run directory `path`, which need not be there yet. Told to end, it
/// waits for an agent that is there (which was told, too), but for none to come.
///
/// # Errors
/// When the directory is there and cannot be used.
pub(super) async fn gone(path: &Path, signals: &mut Signals) -> anyhow::Result<Waited> {
    let mut watch = Watch::new(path)?;
    let mut told = false;
    loop {
        // Watched before it is looked at, so that nothing happens in between.
        watch.arm();
        match RunDir::look(path)? {
            Occupant::Gone => return Ok(Waited::Gone { told }),
            Occupant::None if told => return Ok(Waited::Never),
            Occupant::None => {
                tokio::select! {
                    () = watch.changed() => {}
                    // It is looked once more.
                    () = signals.told_to_end() => told = true,
                }
            }
            Occupant::Agent(lock) => {
                // One instance less of what there are few of.
                watch.end();
                let free = tokio::task::spawn_blocking(move || wait_for(&lock));
                tokio::pin!(free);
                loop {
                    tokio::select! {
                        free = &mut free => {
                            let was_here = free.context("waiting")?.context("waiting for the lock of the job's agent")?;
                            if was_here {
                                return Ok(Waited::Gone { told });
                            }
                            break;
                        }
                        () = signals.told_to_end() => {
                            // The thread is left to wait; it ends with us.
                            if std::mem::replace(&mut told, true) {
                                return Ok(Waited::Enough);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Returns when nobody holds the lock: whether it was an agent that did, which notes its pid. (The job may have removed the
/// file meanwhile.)
fn wait_for(lock: &File) -> io::Result<bool> {
    loop {
        match lock.lock_shared() {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            locked => {
                locked?;
                lock.unlock()?;
                return Ok(lock.metadata()?.len() > 0);
            }
        }
    }
}

#[allow(unsafe_code)]
fn watches() -> io::Result<AsyncFd<OwnedFd>> {
    let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
    // SAFETY: it owns its descriptor, which nobody replaces or closes while it is registered.
    Ok(unsafe { AsyncFd::register_with_interest(inotify, Interest::READABLE)? })
}

/// Watches a directory that may not be there yet, by the next one above it that is.
struct Watch {
    path: PathBuf,
    /// Absent: there are no watches (any more), so it is looked by the clock.
    inotify: Option<AsyncFd<OwnedFd>>,
}

impl Watch {
    fn new(path: &Path) -> io::Result<Self> {
        let inotify = watches().inspect_err(|error| tracing::debug!("directories cannot be watched: {error}")).ok();
        Ok(Watch { path: std::path::absolute(path)?, inotify })
    }

    /// Watches what is there now.
    fn arm(&mut self) {
        let Some(inotify) = &self.inotify else { return };
        // Watches of directories that are watched already stay as they are.
        let add = |dir: &Path| {
            let what = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::MODIFY | WatchFlags::ONLYDIR;
            inotify::add_watch(inotify.get_ref(), dir, what | WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF)
        };
        let mut below: Option<&Path> = None;
        for dir in self.path.ancestors() {
            match add(dir) {
                // What is below may have been made before this watch; then it is taken up with the next look.
                Ok(_) if below.is_none_or(|below| !below.exists()) => return,
                Ok(_) => return self.arm(),
                Err(Errno::NOENT) => below = Some(dir),
                Err(error) => {
                    tracing::debug!("{} cannot be watched: {error}", dir.display());
                    self.inotify = None;
                    return;
                }
            }
        }
    }

    /// Returns after something happened there, or when it is time to look again. May be cancelled.
    async fn changed(&mut self) {
        let Some(inotify) = &self.inotify else { return sleep(LOOK).await };
        tokio::select! {
            () = sleep(LOOK_AGAIN) => {}
            ready = inotify.readable() => match ready {
                Ok(mut ready) => {
                    let mut events = [0_u8; 4096];
                    // What happened does not matter: it is looked at anyway.
                    while matches!(rustix::io::read(inotify.get_ref(), &mut events), Ok(1..) | Err(Errno::INTR)) {}
                    ready.clear_ready();
                }
                Err(_) => self.inotify = None,
            }
        }
    }

    fn end(&mut self) {
        self.inotify = None;
    }
}
