//! Tells of new files in run directories: one inotify descriptor for all of them.

use std::collections::HashMap;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::io::Errno;
use tokio::io::unix::AsyncFd;
use tokio_util::sync::CancellationToken;

use super::agent::readable;
use super::run_dir::{AGENT_LOG, DRAINED, EXIT, STARTED};
use super::worker::Worker;

type Watched = Arc<Mutex<HashMap<i32, Arc<Worker>>>>;

/// Watches of run directories.
#[derive(Debug)]
pub(super) struct Watches {
    inotify: Arc<AsyncFd<OwnedFd>>,
    watched: Watched,
}

/// A watch, ended with its drop.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: Arc<AsyncFd<OwnedFd>>,
    watched: Watched,
    descriptor: i32,
}

impl Drop for Watch {
    fn drop(&mut self) {
        lock(&self.watched).remove(&self.descriptor);
        // Gone already if the directory is.
        let _ = inotify::remove_watch(&*self.inotify, self.descriptor);
    }
}

fn lock(watched: &Watched) -> std::sync::MutexGuard<'_, HashMap<i32, Arc<Worker>>> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watches {
    /// # Errors
    /// When the kernel has no inotify instance left for this user. Must be called within a tokio runtime.
    pub(super) fn new() -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        Ok(Self { inotify: Arc::new(readable(inotify)?), watched: Watched::default() })
    }

    /// From now on, `worker` is woken by what matters in `directory`.
    ///
    /// # Errors
    /// When the directory is gone, or the kernel's limit of watches is reached.
    pub(super) fn add(&self, directory: &Path, worker: &Arc<Worker>) -> io::Result<Watch> {
        let flags = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::MODIFY | WatchFlags::ONLYDIR;
        // Under the lock, so that no event of it is looked up before it is in the map.
        let mut watched = lock(&self.watched);
        let descriptor = inotify::add_watch(&*self.inotify, directory, flags)?;
        watched.insert(descriptor, Arc::clone(worker));
        drop(watched);
        Ok(Watch { inotify: Arc::clone(&self.inotify), watched: Arc::clone(&self.watched), descriptor })
    }

    /// Passes events on until `stop`.
    pub(super) fn run(&self, stop: CancellationToken) -> impl Future<Output = ()> + use<> {
        let (inotify, watched) = (Arc::clone(&self.inotify), Arc::clone(&self.watched));
        async move {
            loop {
                let mut ready = tokio::select! {
                    () = stop.cancelled() => return,
                    ready = inotify.readable() => match ready {
                        Ok(ready) => ready,
                        Err(error) => {
                            tracing::error!(%error, "run directories are no longer watched");
                            return;
                        }
                    },
                };
                if let Err(error) = read(&inotify, &watched) {
                    tracing::error!(%error, "events of run directories cannot be read");
                }
                // Read until it would block. An event that came since is not cleared: tokio counts.
                ready.clear_ready();
            }
        }
    }
}

fn read(inotify: &AsyncFd<OwnedFd>, watched: &Watched) -> io::Result<()> {
    let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
    let mut reader = Reader::new(inotify.get_ref(), &mut buffer);
    loop {
        let event = match reader.next() {
            Ok(event) => event,
            Err(Errno::WOULDBLOCK) => return Ok(()),
            Err(Errno::INTR) => continue,
            Err(error) => return Err(error.into()),
        };
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            // Some were lost: everybody looks.
            for worker in lock(watched).values() {
                worker.wake();
            }
            continue;
        }
        let Some(name) = event.file_name().and_then(|name| name.to_str().ok()) else { continue };
        let complete = event.events().intersects(ReadFlags::CLOSE_WRITE | ReadFlags::MOVED_TO);
        match name {
            STARTED | EXIT | DRAINED if complete => {
                if let Some(worker) = lock(watched).get(&event.wd()) {
                    worker.wake();
                }
            }
            AGENT_LOG => {
                let worker = lock(watched).get(&event.wd()).cloned();
                if let Some(worker) = worker
                    && let Err(error) = worker.dir.bound_agent_log()
                {
                    tracing::debug!(%error, worker = worker.name, "the agent's messages cannot be bounded");
                }
            }
            _ => {}
        }
    }
}
