//! The job's output: read, masked, cut into lines, gathered into blocks, put into the spool.
//!
//! A thread of its own does it with blocking calls: the disk and compression may take their time without holding up
//! signals and the connection. Bounds: two read buffers' worth of lines in memory; everything else is in the pipes (the
//! job waits) or in the spool.

mod batch;
mod mask;
mod source;
mod split;
mod store;
mod tee;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use otto_proto::block::Attributes;
use otto_proto::v1::{LogLevel, LogSource};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use tokio::sync::oneshot;

pub(crate) use batch::{Compressor, Demand, Feedback, Policy};
pub(crate) use mask::Secrets;
use source::{Read, Source};
use store::Store;
pub(crate) use store::{Captured, OnFull};
pub(crate) use tee::Tee;

use crate::spool::{Spool, Writer};

/// First size of the read buffer; it grows when reads fill it.
const SMALL_READ: usize = 16 << 10;

/// How output is captured.
pub(crate) struct Options {
    pub(crate) policy: Policy,
    pub(crate) compressor: Compressor,
    pub(crate) on_full: OnFull,
    pub(crate) stdout_level: LogLevel,
    pub(crate) stderr_level: LogLevel,
    /// The beginning of a line is given out when its end has not come for so long.
    pub(crate) partial_delay: Duration,
    /// Largest read, bytes.
    pub(crate) read_bytes: usize,
    pub(crate) secrets: Option<Secrets>,
    pub(crate) tee: Option<Tee>,
}

/// A capture that runs.
pub(crate) struct Capture {
    control: Arc<Control>,
    done: oneshot::Receiver<Captured>,
    copied: oneshot::Receiver<()>,
}

struct Control {
    stop: AtomicBool,
    wake: OwnedFd,
    spool: Spool,
}

impl Capture {
    /// Begins to read the job's pipes.
    ///
    /// # Errors
    /// When there can be no more threads or descriptors.
    pub(crate) fn start(
        [stdout, stderr]: [OwnedFd; 2],
        options: Options,
        writer: Writer,
        spool: Spool,
        feedback: Arc<Feedback>,
    ) -> anyhow::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).context("making an eventfd")?;
        let control = Arc::new(Control { stop: AtomicBool::new(false), wake, spool });
        for fd in [&stdout, &stderr] {
            rustix::io::ioctl_fionbio(fd, true).context("making a pipe non-blocking")?;
        }
        let secrets = options.secrets.as_ref();
        let sources = [
            Source::new(stdout, LogSource::Stdout, options.stdout_level, secrets),
            Source::new(stderr, LogSource::Stderr, options.stderr_level, secrets),
        ];
        let (sender, done) = oneshot::channel();
        let (copy, copied) = oneshot::channel();
        let thread = Thread {
            sources,
            store: Store::new(writer, control.spool.clone(), &options, feedback.clone()),
            buffer: vec![0; SMALL_READ.min(options.read_bytes)],
            options,
            feedback,
            control: Arc::clone(&control),
        };
        let run = move || {
            // Nobody to tell: the agent is ending.
            let (captured, tee) = thread.run();
            let _ = sender.send(captured);
            if let Some(tee) = tee {
                tee.finish();
            }
            let _ = copy.send(());
        };
        thread::Builder::new().name("capture".into()).spawn(run).context("starting the capture's thread")?;
        Ok(Capture { control, done, copied })
    }

    /// When the copy of the output is with whoever reads it, or he was given up.
    pub(crate) fn into_copied(self) -> oneshot::Receiver<()> {
        self.copied
    }

    /// Waits for the end of both outputs. May be cancelled and called again.
    ///
    /// # Errors
    /// When the thread has died.
    pub(crate) async fn ended(&mut self) -> anyhow::Result<Captured> {
        (&mut self.done).await.context("the capture of the output has died")
    }

    /// The job is over and its processes are killed: what is in the pipes is read, then it ends, whoever else may hold
    /// them open.
    pub(crate) fn stop(&self) {
        self.control.stop.store(true, Ordering::Release);
        // The counter of an eventfd is never full after one.
        let _ = rustix::io::write(&self.control.wake, &1u64.to_ne_bytes());
        self.control.spool.wake_writer();
    }
}

struct Thread {
    sources: [Source; 2],
    store: Store,
    buffer: Vec<u8>,
    options: Options,
    feedback: Arc<Feedback>,
    control: Arc<Control>,
}

impl Thread {
    /// And the copy, whose reader nothing else waits for.
    fn run(mut self) -> (Captured, Option<Tee>) {
        let mut more = false;
        while self.sources.iter().any(|source| source.fd().is_some()) {
            if self.control.stop.load(Ordering::Acquire) {
                self.read_the_rest();
                break;
            }
            if !more {
                self.wait();
            }
            more = self.read_each_once();
            self.flush_partials();
            self.store.flush_if_due(more, &self.control.stop);
        }
        for index in 0..self.sources.len() {
            self.end(index);
        }
        let Thread { store, options, control, .. } = self;
        (store.finish(&control.stop), options.tee)
    }

    /// Until there is something to read or to do.
    fn wait(&self) {
        let due = self.sources.iter().filter_map(|source| source.partial_due(self.options.partial_delay)).min();
        let due = [due, self.store.due(false)].into_iter().flatten().min();
        let timeout = due.map(|due| {
            let left = due.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds = vec![PollFd::new(&self.control.wake, PollFlags::IN)];
        fds.extend(self.sources.iter().filter_map(Source::fd).map(|fd| PollFd::new(fd, PollFlags::IN)));
        // Interrupted is as good as woken. Reads tell what there is.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    /// Whether there is probably more.
    fn read_each_once(&mut self) -> bool {
        let mut more = false;
        for index in 0..self.sources.len() {
            match self.sources[index].read(&mut self.buffer) {
                Read::Bytes(count) => {
                    self.take(index, count);
                    more |= count == self.buffer.len();
                }
                Read::Nothing => {}
                Read::End => self.end(index),
            }
        }
        if more && self.buffer.len() < self.options.read_bytes {
            self.buffer.resize((self.buffer.len() * 4).min(self.options.read_bytes), 0);
        }
        more
    }

    fn take(&mut self, index: usize, count: usize) {
        let Thread { sources, store, buffer, options, feedback, control } = self;
        let source = &mut sources[index];
        let attributes = attributes(source);
        let target = source.target();
        let tee = |bytes: &[u8]| {
            if let Some(tee) = &options.tee {
                tee.write(target, bytes);
            }
        };
        store.begin_read(source.level);
        source.feed(&buffer[..count], feedback.max_line(), Instant::now(), tee, &mut |piece| {
            store.push(&piece, attributes, &control.stop);
        });
        // A full spool may have held us in there, and the job in the middle of its line: it gets its time from now.
        source.restart_partial(Instant::now());
    }

    fn end(&mut self, index: usize) {
        let Thread { sources, store, options, feedback, control, .. } = self;
        let source = &mut sources[index];
        let attributes = attributes(source);
        let target = source.target();
        let tee = |bytes: &[u8]| {
            if let Some(tee) = &options.tee {
                tee.write(target, bytes);
            }
        };
        store.begin_read(source.level);
        source.end(feedback.max_line(), Instant::now(), tee, &mut |piece| {
            store.push(&piece, attributes, &control.stop);
        });
    }

    fn flush_partials(&mut self) {
        let now = Instant::now();
        let Thread { sources, store, options, control, .. } = self;
        for source in sources {
            if source.partial_due(options.partial_delay).is_some_and(|due| due <= now) {
                let attributes = attributes(source);
                store.begin_read(source.level);
                source.flush_partial(now, &mut |piece| store.push(&piece, attributes, &control.stop));
            }
        }
    }

    /// No more than a pipe can hold: whoever still writes is not of the job.
    fn read_the_rest(&mut self) {
        for index in 0..self.sources.len() {
            let capacity = self.sources[index].fd().and_then(|fd| rustix::pipe::fcntl_getpipe_size(fd).ok());
            let mut left = capacity.unwrap_or(64 << 10);
            while left > 0
                && let Read::Bytes(count) = self.sources[index].read(&mut self.buffer)
            {
                self.take(index, count);
                left = left.saturating_sub(count);
                self.store.flush_if_due(true, &self.control.stop);
            }
        }
    }
}

fn attributes(source: &Source) -> Attributes {
    Attributes { time_unix_nanos: now_unix_nanos(), level: source.level, source: source.source }
}

/// Nanoseconds since the Unix epoch.
pub(crate) fn now_unix_nanos() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_nanos()).unwrap_or(i64::MAX)
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    (now_unix_nanos() / 1_000_000).cast_unsigned()
}
