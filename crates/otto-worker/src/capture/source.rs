//! One of the job's two outputs.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use otto_proto::v1::{LogLevel, LogSource};
use rustix::io::Errno;

use super::mask::{Masker, Secrets};
use super::split::{Piece, Splitter};
use super::tee::Target;

/// What came of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// So many bytes are at the front of the buffer.
    Bytes(usize),
    /// Nothing at the moment.
    Nothing,
    /// Everybody who could write has closed it.
    End,
}

/// A pipe and what was read of the line that is not complete.
pub(super) struct Source {
    fd: Option<OwnedFd>,
    pub(super) source: LogSource,
    pub(super) level: LogLevel,
    splitter: Splitter,
    partial_since: Option<Instant>,
    masker: Option<Masker>,
    masked: Vec<u8>,
}

impl Source {
    pub(super) fn new(fd: OwnedFd, source: LogSource, level: LogLevel, secrets: Option<&Secrets>) -> Self {
        Source {
            fd: Some(fd),
            source,
            level,
            splitter: Splitter::default(),
            partial_since: None,
            masker: secrets.cloned().map(Masker::new),
            masked: Vec::new(),
        }
    }

    /// `None` after the end.
    pub(super) fn fd(&self) -> Option<&OwnedFd> {
        self.fd.as_ref()
    }

    pub(super) fn target(&self) -> Target {
        if self.source == LogSource::Stderr { Target::Stderr } else { Target::Stdout }
    }

    /// Reads once, without waiting.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Read {
        let Some(fd) = &self.fd else { return Read::End };
        loop {
            return match rustix::io::read(fd, &mut *buffer) {
                Ok(0) => Read::End,
                Ok(count) => Read::Bytes(count),
                Err(Errno::INTR) => continue,
                Err(Errno::AGAIN) => Read::Nothing,
                Err(error) => {
                    tracing::warn!("reading the job's {:?}: {error}", self.target());
                    Read::End
                }
            };
        }
    }

    /// Masks what was read, gives it to `tee` and cuts it into lines.
    pub(super) fn feed(
        &mut self,
        input: &[u8],
        limit: usize,
        now: Instant,
        tee: impl FnOnce(&[u8]),
        sink: &mut impl FnMut(Piece<'_>),
    ) {
        let Some(masker) = &mut self.masker else {
            tee(input);
            return self.split(input, limit, now, sink);
        };
        let mut masked = std::mem::take(&mut self.masked);
        masker.feed(input, &mut masked);
        tee(&masked);
        self.split(&masked, limit, now, sink);
        masked.clear();
        self.masked = masked;
    }

    fn split(&mut self, input: &[u8], limit: usize, now: Instant, sink: &mut impl FnMut(Piece<'_>)) {
        let had_partial = self.splitter.has_partial();
        let mut cut = false;
        self.splitter.feed(input, limit, &mut |piece| {
            cut = true;
            sink(piece);
        });
        if !self.splitter.has_partial() {
            self.partial_since = None;
        } else if cut || !had_partial {
            self.partial_since = Some(now);
        }
    }

    /// When the beginning of a line is given out though its end has not come.
    pub(super) fn partial_due(&self, delay: Duration) -> Option<Instant> {
        self.partial_since.map(|since| since + delay)
    }

    /// Counts the time for the end of a line from now.
    pub(super) fn restart_partial(&mut self, now: Instant) {
        if let Some(since) = &mut self.partial_since {
            *since = now;
        }
    }

    /// Gives it out.
    pub(super) fn flush_partial(&mut self, now: Instant, sink: &mut impl FnMut(Piece<'_>)) {
        self.splitter.flush(sink);
        self.partial_since = self.splitter.has_partial().then_some(now);
    }

    /// Closes the pipe and gives out what was held back.
    pub(super) fn end(
        &mut self,
        limit: usize,
        now: Instant,
        tee: impl FnOnce(&[u8]),
        sink: &mut impl FnMut(Piece<'_>),
    ) {
        self.fd = None;
        if let Some(masker) = &mut self.masker {
            let mut rest = Vec::new();
            masker.finish(&mut rest);
            tee(&rest);
            self.split(&rest, limit, now, sink);
        }
        self.splitter.finish(sink);
        self.partial_since = None;
    }
}
