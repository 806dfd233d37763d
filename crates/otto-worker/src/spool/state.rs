//! What writer, reader and acknowledgements share.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Notify;

use super::record::Record;
use super::segment_path;
use crate::access::Access;
use crate::lock::Locked;

/// Bytes of records kept in memory for the reader, so that in the usual case nothing is read back from the files.
const RECENT_BYTES: u64 = 2 << 20;

/// File that is there when the log server has not all lines.
const INCOMPLETE: &str = "incomplete";

/// A run's spool. Cheap to clone; all clones are one.
#[derive(Clone)]
pub(crate) struct Spool(Arc<Shared>);

struct Shared {
    files: Files,
    limit: u64,
    reserve: u64,
    state: Mutex<State>,
    room: Condvar,
    changed: Notify,
}

pub(super) struct Files {
    pub(super) dir: PathBuf,
    pub(super) access: Access,
    pub(super) acked: File,
    /// Held as long as the spool is.
    #[allow(dead_code)]
    pub(super) lock: Locked,
}

/// A segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// Sequence of the first record in it.
    pub(super) first: u64,
    /// Sequence after the last.
    pub(super) end: u64,
    pub(super) bytes: u64,
}

/// A record that was just written, by its place.
pub(super) struct Recent {
    pub(super) segment: u64,
    pub(super) offset: u64,
    pub(super) next: u64,
    pub(super) record: Record,
    pub(super) bytes: u64,
}

pub(super) struct State {
    /// Oldest first; the last is the one being written.
    pub(super) segments: VecDeque<Segment>,
    /// After the last line or gap.
    pub(super) next_sequence: u64,
    /// Everything before is with the log server.
    pub(super) acked: u64,
    /// Of all segments.
    pub(super) bytes: u64,
    pub(super) recent: VecDeque<Recent>,
    pub(super) recent_bytes: u64,
    /// Lines known to be missing.
    pub(super) gap_lines: u64,
    /// No record will be added.
    pub(super) complete: bool,
    /// So many want acknowledged segments to stay.
    pub(super) held: u32,
}

impl Default for State {
    fn default() -> Self {
        State {
            segments: VecDeque::new(),
            next_sequence: 1,
            acked: 0,
            bytes: 0,
            recent: VecDeque::new(),
            recent_bytes: 0,
            gap_lines: 0,
            complete: false,
            held: 0,
        }
    }
}

/// What the log server does not have yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Lines, those inside gaps too.
    pub(crate) lines: u64,
    /// Sequence of the last line.
    pub(crate) last_sequence: u64,
    /// Bytes of files, acknowledged ones that are not freed yet too.
    pub(crate) bytes: u64,
}

impl Spool {
    pub(super) fn new(files: Files, limit: u64, reserve: u64, state: State) -> Self {
        Spool(Arc::new(Shared {
            files,
            limit,
            reserve,
            state: Mutex::new(state),
            room: Condvar::new(),
            changed: Notify::new(),
        }))
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        // Every change of the state is whole before its lock is released.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory of this run.
    pub(crate) fn dir(&self) -> &Path {
        &self.0.files.dir
    }

    /// Who may use its files.
    pub(super) fn access(&self) -> Access {
        self.0.files.access
    }

    /// Sequence of the line after those that the log server has acknowledged.
    pub(crate) fn next_to_send(&self) -> u64 {
        self.state().acked + 1
    }

    /// Sequence of the oldest line that can still be sent, acknowledged or not, and keeps it so until the answer is dropped:
    /// a log server may have lost what it acknowledged.
    pub(crate) fn hold(&self) -> Held {
        let mut state = self.state();
        state.held += 1;
        let first = state.segments.front().map_or(u64::MAX, |segment| segment.first);
        Held { spool: self.clone(), first: first.min(state.acked + 1) }
    }

    /// The log server has less than it had acknowledged: what lies after `sequence` is to be sent again.
    pub(crate) fn back_to(&self, sequence: u64) {
        let mut state = self.state();
        if sequence < state.acked {
            state.acked = sequence;
            drop(state);
            self.note_acked(sequence);
        }
    }

    /// What the log server does not have yet.
    pub(crate) fn pending(&self) -> Pending {
        let state = self.state();
        Pending {
            lines: (state.next_sequence - 1).saturating_sub(state.acked),
            last_sequence: state.next_sequence - 1,
            bytes: state.bytes,
        }
    }

    /// Whether no record will be added any more.
    pub(crate) fn is_complete(&self) -> bool {
        self.state().complete
    }

    /// Returns after the next change: a record was added, or none will be. A change between two calls is not missed.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Everything up to `sequence` is with the log server: frees what is no longer needed.
    pub(crate) fn acknowledge(&self, sequence: u64) {
        let freed = {
            let mut state = self.state();
            let sequence = sequence.min(state.next_sequence - 1);
            if sequence <= state.acked {
                return;
            }
            state.acked = sequence;
            state.free()
        };
        self.note_acked(sequence);
        self.remove_segments(&freed);
        self.0.room.notify_all();
    }

    /// How far the log server has it, for whoever drains the spool after us.
    fn note_acked(&self, sequence: u64) {
        if let Err(error) = self.0.files.acked.write_all_at(&acked_bytes(sequence), 0) {
            // The log server knows it too, and tells when the run is resumed.
            tracing::debug!("noting what was acknowledged: {error}");
        }
    }

    pub(super) fn remove_segments(&self, numbers: &[u64]) {
        for number in numbers {
            let path = segment_path(self.dir(), *number);
            // A reader may have it open still: its room is free all the same.
            let _ = File::options().write(true).open(&path).and_then(|file| file.set_len(0));
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!("removing {}: {error}", path.display());
            }
        }
    }

    /// Whether `bytes` more fit; `with_reserve`: also into what is kept for the end.
    pub(super) fn fits(&self, state: &State, bytes: u64, with_reserve: bool) -> bool {
        let limit = if with_reserve { self.0.limit } else { self.0.limit - self.0.reserve };
        state.bytes + bytes <= limit
    }

    /// Share of the room for a running job that is taken, in 1/256.
    pub(crate) fn fill(&self) -> u64 {
        self.fill_with(0)
    }

    /// The same, if there were so many bytes more.
    pub(crate) fn fill_with(&self, more: u64) -> u64 {
        let bytes = self.state().bytes + more;
        bytes * 256 / (self.0.limit - self.0.reserve).max(1)
    }

    /// Waits until something was acknowledged, or `until`, or [`Spool::wake_writer`].
    pub(crate) fn wait_for_room(&self, until: Instant) {
        let state = self.state();
        let wait = until.saturating_duration_since(Instant::now());
        drop(self.0.room.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends a wait for room early.
    pub(crate) fn wake_writer(&self) {
        // Taking the lock orders this after a check that was made before its wait.
        drop(self.state());
        self.0.room.notify_all();
    }

    pub(super) fn added(&self, recent: Recent, sequence: Option<u64>, gap_lines: u64) {
        {
            let mut state = self.state();
            let bytes = recent.next - recent.offset;
            state.bytes += bytes;
            if let Some(sequence) = sequence {
                state.next_sequence = state.next_sequence.max(sequence);
            }
            state.gap_lines += gap_lines;
            let next_sequence = state.next_sequence;
            if let Some(segment) = state.segments.back_mut() {
                segment.end = next_sequence;
                segment.bytes += bytes;
            }
            if state.recent_bytes + recent.bytes <= RECENT_BYTES {
                state.recent_bytes += recent.bytes;
                state.recent.push_back(recent);
            }
        }
        self.0.changed.notify_one();
    }

    pub(super) fn completed(&self) {
        self.state().complete = true;
        self.0.changed.notify_one();
    }

    /// Notes that the log server has not all lines that are here, so that whoever drains the spool after us knows that
    /// the digest of all lines says nothing.
    pub(crate) fn note_incomplete(&self) {
        if let Err(error) = self.0.files.access.write(&self.dir().join(INCOMPLETE), b"") {
            tracing::warn!("noting that the log is incomplete: {error}");
        }
    }

    /// Whether the log server lacks lines that were here, as far as [`Spool::note_incomplete`] told.
    pub(crate) fn is_incomplete(&self) -> bool {
        self.dir().join(INCOMPLETE).exists()
    }

    /// Removes the run's directory: the log server has everything.
    pub(crate) fn remove(&self) -> io::Result<()> {
        fs::remove_dir_all(self.dir())
    }
}

/// Segments that are acknowledged and kept all the same. Dropped, they may go.
pub(crate) struct Held {
    spool: Spool,
    /// Sequence of the oldest line that can be sent.
    pub(crate) first: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let freed = {
            let mut state = self.spool.state();
            state.held = state.held.saturating_sub(1);
            state.free()
        };
        self.spool.remove_segments(&freed);
        self.spool.0.room.notify_all();
    }
}

impl State {
    /// Takes out the segments that are acknowledged and not being written; returns their numbers.
    fn free(&mut self) -> Vec<u64> {
        let mut freed = Vec::new();
        while self.held == 0
            && self.segments.len() > 1
            && let Some(segment) = self.segments.front()
            && segment.end <= self.acked + 1
        {
            freed.push(segment.number);
            self.bytes -= segment.bytes;
            self.segments.pop_front();
        }
        freed
    }

    /// As `free`, after a new segment was begun behind the last one.
    pub(super) fn begin_segment(&mut self, number: u64) -> Vec<u64> {
        let next = self.next_sequence;
        self.segments.push_back(Segment { number, first: next, end: next, bytes: 0 });
        self.free()
    }

    /// Whether the segment being written holds records, and all of them are acknowledged.
    pub(super) fn last_is_acknowledged(&self) -> bool {
        self.segments.back().is_some_and(|segment| segment.bytes > 0 && segment.end <= self.acked + 1)
    }
}

/// Content of the file `acked`.
pub(super) fn acked_bytes(sequence: u64) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&sequence.to_le_bytes());
    let checksum = crc32c::crc32c(&bytes[..8]);
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Reads the file `acked`; 0 if it is damaged or not there.
pub(super) fn read_acked(file: &File) -> u64 {
    let mut bytes = [0; 12];
    if file.read_exact_at(&mut bytes, 0).is_err() {
        return 0;
    }
    let sequence = bytes.first_chunk().copied().map_or(0, u64::from_le_bytes);
    if acked_bytes(sequence) == bytes { sequence } else { 0 }
}
