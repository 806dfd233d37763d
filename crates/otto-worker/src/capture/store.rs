//! Gathers lines into blocks and puts them into the spool; what happens when it is full.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use otto_proto::block::{Attributes, Builder};
use otto_proto::digest::Digest;
use otto_proto::v1::{LogBlock, LogGap, LogLevel, log_gap};

use super::batch::{Compressor, Feedback, Policy};
use super::split::Piece;
use crate::spool::{AppendError, Record, Spool, Writer};

/// How often a full disk is tried again; a full spool is tried as soon as something was acknowledged.
const TRY_AGAIN: Duration = Duration::from_millis(500);
/// Of 256: from here on less important lines are dropped, until it is emptier than `SHED_UNTIL`.
const SHED_FROM: u64 = 224;
const SHED_UNTIL: u64 = 192;
/// A block of nothing but less important lines that would fill more than this is dropped, too: one read may be larger than
/// what is left from `SHED_FROM` on.
const SHED_BLOCKS_FROM: u64 = 240;

/// What happens to output when the spool is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnFull {
    /// The job waits.
    Block,
    /// Lines are dropped, those below level error first, and a gap is recorded.
    Drop,
}

/// What came of a run.
pub(crate) struct Captured {
    /// To add the end with.
    pub(crate) writer: Writer,
    /// Sequence of the last line; 0: none.
    pub(crate) last_sequence: u64,
    /// Of all lines that were not dropped; empty: a gap could not be noted, so it says nothing.
    pub(crate) digest: Vec<u8>,
    /// Lines dropped because the spool was full.
    pub(crate) dropped: u64,
}

/// Lines on their way into the spool.
pub(super) struct Store {
    writer: Writer,
    spool: Spool,
    feedback: Arc<Feedback>,
    policy: Policy,
    compressor: Compressor,
    on_full: OnFull,

    builder: Builder,
    first_at: Option<Instant>,
    /// Of the first line in the builder.
    first_sequence: u64,
    digest: Digest,
    /// Before the lines in the builder.
    digest_before: Digest,

    /// Lines dropped since the last record.
    gap: Option<(u64, u64)>,
    shedding: bool,
    /// The lines of this read are dropped.
    drop_read: bool,
    /// The lines there are are errors.
    important: bool,
    dropped: u64,
    told_full: bool,
}

impl Store {
    pub(super) fn new(writer: Writer, spool: Spool, options: &super::Options, feedback: Arc<Feedback>) -> Self {
        Store {
            first_sequence: writer.next_sequence(),
            writer,
            spool,
            feedback,
            policy: options.policy,
            compressor: options.compressor.clone(),
            on_full: options.on_full,
            builder: Builder::new(),
            first_at: None,
            digest: Digest::new(),
            digest_before: Digest::new(),
            gap: None,
            shedding: false,
            drop_read: false,
            important: false,
            dropped: 0,
            told_full: false,
        }
    }

    /// Lines of this level follow.
    pub(super) fn begin_read(&mut self, level: LogLevel) {
        if self.on_full == OnFull::Drop {
            let fill = self.spool.fill();
            self.shedding = fill >= if self.shedding { SHED_UNTIL } else { SHED_FROM };
            self.drop_read = self.shedding && level < LogLevel::Error;
        }
    }

    pub(super) fn push(&mut self, piece: &Piece<'_>, attributes: Attributes, stop: &AtomicBool) {
        let (Piece::Lines(bytes) | Piece::Open(bytes)) = piece;
        if self.drop_read {
            self.flush(stop);
            let lines = match piece {
                Piece::Lines(bytes) => memchr::memchr_iter(b'\n', bytes).count() as u64,
                Piece::Open(_) => 1,
            };
            self.drop_lines(self.first_sequence + lines - 1);
            return;
        }
        let important = attributes.level >= LogLevel::Error;
        // Where little room is left, errors are not to be in one block with what does not get in.
        let apart = important != self.important && self.on_full == OnFull::Drop && self.spool.fill() >= SHED_UNTIL;
        if apart || !self.builder.fits(bytes.len()) {
            self.flush(stop);
        }
        self.important = important;
        if self.first_at.is_none() {
            self.first_at = Some(Instant::now());
            self.digest_before = self.digest.clone();
        }
        self.digest.update(bytes);
        match piece {
            Piece::Lines(bytes) => {
                self.builder.push_terminated(bytes, attributes);
            }
            Piece::Open(bytes) => self.builder.push(bytes, attributes),
        }
    }

    /// When the lines there are become a block; `None`: there are none.
    pub(super) fn due(&self, more: bool) -> Option<Instant> {
        let first_at = self.first_at?;
        let (bytes, lines) = (self.builder.text_bytes(), self.builder.lines());
        Some(self.policy.due(bytes, lines, first_at, more, self.feedback.demand()).unwrap_or(first_at))
    }

    pub(super) fn flush_if_due(&mut self, more: bool, stop: &AtomicBool) {
        if self.due(more).is_some_and(|due| due <= Instant::now()) {
            self.flush(stop);
        }
    }

    /// Puts the lines there are into the spool as a block; returns when they are there, or dropped.
    fn flush(&mut self, stop: &AtomicBool) {
        self.first_at = None;
        let level = self.compressor.level(self.builder.text_bytes());
        let Some(block) = self.builder.finish(self.first_sequence, level) else { return };
        if level.is_some() {
            self.compressor.tried(block.compression());
        }
        let last = block.end_sequence() - 1;
        if self.keeps_room_from(&block) {
            return self.drop_block(last);
        }
        // Blocks are dropped under either policy once the capture is to stop.
        if self.gap.is_some() && !self.add_gap(stop) {
            return self.drop_block(last);
        }
        if self.add_block(block, stop) {
            self.first_sequence = last + 1;
        } else {
            self.drop_block(last);
        }
    }

    /// The little room that is left is for more important lines than these.
    fn keeps_room_from(&self, block: &LogBlock) -> bool {
        let unimportant = u64::from(block.level_mask) < 1 << LogLevel::Error as u32;
        self.on_full == OnFull::Drop
            && unimportant
            && self.spool.fill_with(block.payload.len() as u64) > SHED_BLOCKS_FROM
    }

    /// Whether the block is in the spool.
    fn add_block(&mut self, block: LogBlock, stop: &AtomicBool) -> bool {
        loop {
            // Bytes are shared, so that a copy to try again with costs nothing.
            let stopping = stop.load(Ordering::Acquire);
            match self.writer.append(Record::Block(block.clone()), stopping) {
                Ok(()) => {
                    if std::mem::take(&mut self.told_full) {
                        tracing::info!("there is room in the spool again");
                    }
                    return true;
                }
                Err(error) => {
                    if self.on_full == OnFull::Drop || stopping {
                        return false;
                    }
                    self.tell_full(&error);
                    self.spool.wait_for_room(Instant::now() + TRY_AGAIN);
                }
            }
        }
    }

    fn tell_full(&mut self, error: &AppendError) {
        if std::mem::replace(&mut self.told_full, true) {
            return;
        }
        let pending = self.spool.pending();
        let dir = self.spool.dir().display();
        tracing::warn!(
            "{error}: {} lines in {dir} wait for the log server, and the job waits too (--on-full block)",
            pending.lines
        );
    }

    /// Puts the gap before the next lines into the spool. Small, so it may use the reserve.
    fn add_gap(&mut self, stop: &AtomicBool) -> bool {
        let Some((first, last)) = self.gap else { return true };
        let gap = LogGap {
            first_sequence: first,
            last_sequence: last,
            reason: log_gap::Reason::SpoolFull.into(),
            message: format!("{} lines were dropped: the worker's spool was full", last - first + 1),
        };
        let added = self.writer.append(Record::Gap(gap), true);
        if added.is_ok() {
            self.gap = None;
        } else if !stop.load(Ordering::Acquire) {
            // Only until there is room for it.
            tracing::debug!("the gap waits for room in the spool");
        }
        added.is_ok()
    }

    fn drop_block(&mut self, last: u64) {
        self.digest = self.digest_before.clone();
        self.drop_lines(last);
    }

    /// Counts the lines from the next sequence up to `last` as dropped.
    fn drop_lines(&mut self, last: u64) {
        if last < self.first_sequence {
            return;
        }
        if self.dropped == 0 {
            tracing::warn!("the spool {} is full: lines are dropped", self.spool.dir().display());
        }
        self.dropped += last - self.first_sequence + 1;
        let first = self.gap.map_or(self.first_sequence, |(first, _)| first);
        self.gap = Some((first, last));
        self.first_sequence = last + 1;
    }

    /// The last block and gap.
    pub(super) fn finish(mut self, stop: &AtomicBool) -> Captured {
        self.flush(stop);
        let last_sequence = self.first_sequence - 1;
        let digest = if self.add_gap(stop) {
            self.digest.finish().to_vec()
        } else {
            // The upload finds that they are missing by the sequence the run ends with.
            let (first, last) = self.gap.unwrap_or_default();
            tracing::error!("the last {} lines are lost: the spool or its disk is full", last - first + 1);
            Vec::new()
        };
        Captured { writer: self.writer, last_sequence, digest, dropped: self.dropped }
    }
}

#[cfg(test)]
mod tests {
    use otto_proto::v1::LogSource;

    use super::*;
    use crate::spool::{Reader, RunInfo, create};

    const LIMIT: u64 = 64 << 10;

    fn store(dir: &std::path::Path, on_full: OnFull) -> (Store, Spool) {
        let (writer, spool) = create(dir, &RunInfo::new("t", "w", 1), LIMIT, 0).unwrap();
        let options = super::super::Options {
            policy: Policy { bytes: 1 << 20, lines: 1 << 20, delay: Duration::from_secs(3600) },
            compressor: Compressor::new(None),
            on_full,
            stdout_level: LogLevel::Info,
            stderr_level: LogLevel::Error,
            partial_delay: Duration::from_secs(3600),
            read_bytes: 1 << 20,
            secrets: None,
            tee: None,
        };
        (Store::new(writer, spool.clone(), &options, Arc::new(Feedback::new(1 << 20))), spool)
    }

    fn add(store: &mut Store, bytes: usize, stop: &AtomicBool) {
        add_of(store, LogLevel::Info, bytes, stop);
    }

    fn add_of(store: &mut Store, level: LogLevel, bytes: usize, stop: &AtomicBool) {
        let mut line = vec![b'x'; bytes - 1];
        line.push(b'\n');
        let attributes = Attributes { time_unix_nanos: 1, level, source: LogSource::Stdout };
        store.begin_read(level);
        store.push(&Piece::Lines(&line), attributes, stop);
        store.flush(stop);
    }

    #[test]
    fn lines_dropped_at_the_end_of_a_job_that_waits_are_a_gap() {
        let temporary = tempfile::tempdir().unwrap();
        let (mut store, spool) = store(temporary.path(), OnFull::Block);
        let stop = AtomicBool::new(true);
        for bytes in [40_000, 40_000, 30_000, 100] {
            add(&mut store, bytes, &stop);
        }
        let captured = store.finish(&stop);
        assert_eq!((captured.last_sequence, captured.dropped), (4, 2));
        let mut digest = Digest::new();
        for bytes in [40_000, 100] {
            digest.update(&vec![b'x'; bytes - 1]);
            digest.update(b"\n");
        }
        assert_eq!(captured.digest, digest.finish());
        let mut reader = Reader::at(spool.clone(), 1).unwrap();
        let records: Vec<_> = std::iter::from_fn(|| reader.next().unwrap()).collect();
        let places: Vec<_> = records.iter().map(|record| (record.first().unwrap(), record.end().unwrap())).collect();
        assert_eq!(places, [(1, 2), (2, 3), (3, 4), (4, 5)]);
        assert!(matches!(&records[2], Record::Gap(gap) if gap.reason() == log_gap::Reason::SpoolFull));
    }

    #[test]
    fn less_important_lines_leave_room_for_more_important_ones() {
        let temporary = tempfile::tempdir().unwrap();
        let (mut store, _) = store(temporary.path(), OnFull::Drop);
        let stop = AtomicBool::new(false);
        // The last one is read while there still seems to be room, and would take all of it.
        for bytes in [30_000, 26_000, 9_200] {
            add(&mut store, bytes, &stop);
        }
        assert_eq!(store.dropped, 1);
        add_of(&mut store, LogLevel::Error, 500, &stop);
        assert_eq!(store.dropped, 1);
    }

    #[test]
    fn lines_without_room_for_their_gap_still_count() {
        for on_full in [OnFull::Block, OnFull::Drop] {
            let temporary = tempfile::tempdir().unwrap();
            let (mut store, spool) = store(temporary.path(), on_full);
            let stop = AtomicBool::new(true);
            add_of(&mut store, LogLevel::Error, 60_000, &stop);
            // Less is left than a gap takes.
            while store.gap.is_none() {
                add_of(&mut store, LogLevel::Error, 1, &stop);
            }
            let last = store.first_sequence - 1;
            let captured = store.finish(&stop);
            assert_eq!((captured.last_sequence, spool.pending().last_sequence), (last, last - 1));
            assert!(captured.digest.is_empty(), "it would tell of a complete log");
        }
    }
}
