//! Copies the job's output to our own stdout and stderr, for whoever reads there (a terminal, `kubectl logs`).
//!
//! A thread of its own writes, so that a reader who stops cannot stop the job: the capture waits for a slow reader, but
//! one who takes nothing for [`PATIENCE`] is left behind, and is told how much he missed when he comes back. The log
//! has it all.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;

/// Bytes that wait to be written.
const QUEUE_BYTES: usize = 1 << 20;
/// How long a reader may take nothing.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a reader who takes a little again and again may keep the end waiting.
pub(crate) const LAST: Duration = Duration::from_secs(2);

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Stdout,
    Stderr,
}

/// The copy. Dropped, it ends with what is queued.
pub(crate) struct Tee(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    filled: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<(Target, Vec<u8>)>,
    bytes: usize,
    /// The reader was given up until he takes something.
    stalled: bool,
    skipped: u64,
    /// Counts what was written, to see progress.
    progress: u64,
    closed: bool,
    broken: [bool; 2],
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tee {
    /// Starts the thread.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub(crate) fn start() -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        // Not joined: it may stand in a write that nobody takes. It ends with the process.
        thread::Builder::new().name("tee".into()).stack_size(128 << 10).spawn(move || write_all(&writer))?;
        Ok(Tee(shared))
    }

    /// Queues a copy.
    pub(crate) fn write(&self, target: Target, bytes: &[u8]) {
        let mut state = self.0.state();
        if state.broken[target as usize] {
            return;
        }
        while state.bytes > 0 && state.bytes + bytes.len() > QUEUE_BYTES {
            if !state.stalled {
                state = self.wait(state, PATIENCE);
            }
            if state.stalled {
                state.skipped += bytes.len() as u64;
                return;
            }
        }
        state.bytes += bytes.len();
        state.queue.push_back((target, bytes.to_vec()));
        drop(state);
        self.0.filled.notify_one();
    }

    /// Waits until all is written, or nothing was for [`PATIENCE`]; for [`LAST`] at the longest.
    pub(crate) fn finish(&self) {
        let mut state = self.0.state();
        state.closed = true;
        self.0.filled.notify_one();
        let until = Instant::now() + LAST;
        while state.bytes > 0 && !state.stalled && Instant::now() < until {
            state = self.wait(state, PATIENCE);
        }
    }

    /// Waits for progress; without any, the reader is stalled.
    fn wait<'a>(&self, state: MutexGuard<'a, State>, patience: Duration) -> MutexGuard<'a, State> {
        let before = state.progress;
        let until = Instant::now() + patience;
        let mut state = state;
        while state.progress == before {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.stalled = true;
                break;
            }
            state = self.0.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }
}

impl Drop for Tee {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.filled.notify_one();
    }
}

fn write_all(shared: &Shared) {
    let mut state = shared.state();
    loop {
        let Some((target, bytes)) = state.queue.pop_front() else {
            if state.closed {
                return;
            }
            state = shared.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        let skipped = std::mem::take(&mut state.skipped);
        let broken = state.broken[target as usize];
        drop(state);
        let progress = |_: usize| {
            let mut state = shared.state();
            state.progress += 1;
            state.stalled = false;
            drop(state);
            shared.written.notify_all();
        };
        let written = if broken {
            Ok(())
        } else {
            put(target, &bytes, progress).and_then(|()| {
                if skipped == 0 {
                    return Ok(());
                }
                let note = format!("\n[otto-worker: {skipped} bytes are not shown here, nobody read in time]\n");
                put(target, note.as_bytes(), progress)
            })
        };
        state = shared.state();
        state.bytes -= bytes.len();
        state.progress += 1;
        if written.is_err() {
            // Nobody will read there any more.
            state.broken[target as usize] = true;
        }
        shared.written.notify_all();
    }
}

fn put(target: Target, mut bytes: &[u8], progress: impl Fn(usize)) -> Result<(), Errno> {
    let fd: BorrowedFd<'_> = match target {
        Target::Stdout => rustix::stdio::stdout(),
        Target::Stderr => rustix::stdio::stderr(),
    };
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => {
                bytes = &bytes[count..];
                progress(count);
            }
            Err(Errno::INTR) => {}
            // Somebody who shares it made it non-blocking.
            Err(Errno::AGAIN) => {
                poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None)?;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
