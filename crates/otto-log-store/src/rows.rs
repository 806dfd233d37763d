//! What is known of a run, a task and a stored block, in memory, in segments and in the index.

use std::collections::HashMap;
use std::sync::Arc;

use otto_proto::v1::{FinishRun, LogGap, WorkerMetadata, log_gap::Reason};
use prost::Message;

use crate::record::{Header, Kind};
use crate::types::{RunId, RunInfo, RunKey, TaskInfo};

/// Gaps listed with a run; a reader meets all of them all the same.
pub(crate) const MAX_GAPS: usize = 1_000;

/// Characters of a gap's message that are listed with a run.
const GAP_TEXT: usize = 200;

/// Bytes of names and values of a task's context that are kept.
pub(crate) const MAX_CONTEXT: usize = 64 << 10;

/// A run. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct RunRow {
    pub(crate) id: u64,
    pub(crate) task: u64,
    pub(crate) key: Arc<RunKey>,
    pub(crate) metadata: Option<Arc<WorkerMetadata>>,
    pub(crate) expected: u64,
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
    /// Without EXPIRED.
    pub(crate) gaps: Arc<Vec<LogGap>>,
    /// Lines inside gaps after `expired_through`.
    pub(crate) missing: u64,
    /// A gap without an end begins at `expected`: nothing was stored after it.
    pub(crate) open_gap: bool,
    pub(crate) finish: Option<Arc<FinishRun>>,
    pub(crate) first_time: Option<i64>,
    pub(crate) last_time: Option<i64>,
    pub(crate) opened_at: i64,
    pub(crate) active_at: i64,
    /// Retention removed everything up to here.
    pub(crate) expired_through: u64,
    /// It exists no more; the row hides what older layers know.
    pub(crate) removed: bool,
    /// Segment of its newest record, once that is in the index.
    pub(crate) last_segment: u64,
}

impl RunRow {
    pub(crate) fn new(id: u64, task: u64, key: Arc<RunKey>, now: i64) -> Self {
        Self {
            id,
            task,
            key,
            metadata: None,
            expected: 1,
            lines: 0,
            bytes: 0,
            gaps: Arc::default(),
            missing: 0,
            open_gap: false,
            finish: None,
            first_time: None,
            last_time: None,
            opened_at: now,
            active_at: now,
            expired_through: 0,
            removed: false,
            last_segment: 0,
        }
    }

    /// Counts a gap from the expected sequence on.
    pub(crate) fn add_gap(&mut self, gap: &LogGap) {
        self.open_gap = gap.last_sequence == 0;
        if gap.last_sequence >= gap.first_sequence {
            self.missing += gap.last_sequence - gap.first_sequence + 1;
            self.expected = gap.last_sequence + 1;
        }
        if self.gaps.len() < MAX_GAPS {
            // The whole message is with the gap itself.
            let message = gap.message.chars().take(GAP_TEXT).collect();
            Arc::make_mut(&mut self.gaps).push(LogGap { message, ..*gap });
        }
    }

    /// Everything up to `through` is gone; `lines` and `bytes` of it had been stored.
    pub(crate) fn expire(&mut self, through: u64, lines: u64, bytes: u64) {
        self.expired_through = self.expired_through.max(through);
        self.lines = self.lines.saturating_sub(lines);
        self.bytes = self.bytes.saturating_sub(bytes);
        let (gone, left): (Vec<_>, Vec<_>) =
            self.gaps.iter().cloned().partition(|gap| gap.first_sequence <= self.expired_through);
        for gap in gone.iter().filter(|gap| gap.last_sequence > 0) {
            self.missing = self.missing.saturating_sub(gap.last_sequence - gap.first_sequence + 1);
        }
        self.gaps = Arc::new(left);
    }

    pub(crate) fn encode(&self, created: bool) -> Vec<u8> {
        WireRun {
            id: self.id,
            task: self.task,
            task_id: self.key.task_id.clone(),
            worker_id: self.key.worker_id.clone(),
            run_id: self.key.run_id.clone(),
            metadata: self.metadata.as_deref().cloned(),
            expected: self.expected,
            lines: self.lines,
            bytes: self.bytes,
            gaps: self.gaps.to_vec(),
            missing: self.missing,
            open_gap: self.open_gap,
            finish: self.finish.as_deref().cloned(),
            first_time: self.first_time,
            last_time: self.last_time,
            opened_at: self.opened_at,
            active_at: self.active_at,
            expired_through: self.expired_through,
            last_segment: self.last_segment,
            created,
        }
        .encode_to_vec()
    }

    /// The row, and whether the run was made by the record.
    pub(crate) fn decode(bytes: &[u8]) -> Option<(Self, bool)> {
        let wire = WireRun::decode(bytes).ok()?;
        let row = Self {
            id: wire.id,
            task: wire.task,
            key: Arc::new(RunKey { task_id: wire.task_id, worker_id: wire.worker_id, run_id: wire.run_id }),
            metadata: wire.metadata.map(Arc::new),
            expected: wire.expected,
            lines: wire.lines,
            bytes: wire.bytes,
            gaps: Arc::new(wire.gaps),
            missing: wire.missing,
            open_gap: wire.open_gap,
            finish: wire.finish.map(Arc::new),
            first_time: wire.first_time,
            last_time: wire.last_time,
            opened_at: wire.opened_at,
            active_at: wire.active_at,
            expired_through: wire.expired_through,
            removed: false,
            last_segment: wire.last_segment,
        };
        Some((row, wire.created))
    }

    pub(crate) fn info(&self) -> RunInfo {
        let mut gaps = Vec::with_capacity(self.gaps.len() + 1);
        if self.expired_through > 0 {
            gaps.push(expired(1, self.expired_through));
        }
        gaps.extend(self.gaps.iter().cloned());
        RunInfo {
            id: RunId(self.id),
            key: RunKey::clone(&self.key),
            metadata: self.metadata.as_deref().cloned(),
            expected: self.expected,
            lines: self.lines,
            bytes: self.bytes,
            gaps,
            missing_lines: self.missing + self.expired_through,
            open_gap: self.open_gap,
            finish: self.finish.as_deref().cloned(),
            first_time_unix_nanos: self.first_time,
            last_time_unix_nanos: self.last_time,
            opened_at_unix_nanos: self.opened_at,
            active_at_unix_nanos: self.active_at,
        }
    }
}

/// What a reader is told where retention removed lines.
pub(crate) fn expired(first: u64, last: u64) -> LogGap {
    LogGap {
        first_sequence: first,
        last_sequence: last,
        reason: Reason::Expired.into(),
        message: "removed by retention".to_owned(),
    }
}

/// What a reader is told where stored bytes are damaged.
pub(crate) fn damaged(first: u64, last: u64) -> LogGap {
    LogGap {
        first_sequence: first,
        last_sequence: last,
        reason: Reason::Damaged.into(),
        message: "the stored bytes are damaged".to_owned(),
    }
}

/// A task. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct TaskRow {
    /// Number of the task, rising with first sight.
    pub(crate) number: u64,
    pub(crate) name: Arc<str>,
    pub(crate) first_seen: i64,
    pub(crate) last_seen: i64,
    pub(crate) workers: u32,
    pub(crate) runs: u32,
    pub(crate) lines: u64,
    pub(crate) bytes: u64,
    pub(crate) state: Arc<str>,
    pub(crate) context: Arc<HashMap<String, String>>,
    /// Number the next event gets.
    pub(crate) next_event: u64,
    /// It exists no more; the row hides what older layers know.
    pub(crate) removed: bool,
    /// Segment of its newest record, once that is in the index.
    pub(crate) last_segment: u64,
}

impl TaskRow {
    pub(crate) fn new(number: u64, name: Arc<str>, now: i64) -> Self {
        Self {
            number,
            name,
            first_seen: now,
            last_seen: now,
            workers: 0,
            runs: 0,
            lines: 0,
            bytes: 0,
            state: "".into(),
            context: Arc::default(),
            next_event: 0,
            removed: false,
            last_segment: 0,
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        WireTask {
            number: self.number,
            name: self.name.to_string(),
            first_seen: self.first_seen,
            last_seen: self.last_seen,
            workers: self.workers,
            runs: self.runs,
            lines: self.lines,
            bytes: self.bytes,
            state: self.state.to_string(),
            context: HashMap::clone(&self.context),
            next_event: self.next_event,
            last_segment: self.last_segment,
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let wire = WireTask::decode(bytes).ok()?;
        Some(Self {
            number: wire.number,
            name: wire.name.into(),
            first_seen: wire.first_seen,
            last_seen: wire.last_seen,
            workers: wire.workers,
            runs: wire.runs,
            lines: wire.lines,
            bytes: wire.bytes,
            state: wire.state.into(),
            context: Arc::new(wire.context),
            next_event: wire.next_event,
            removed: false,
            last_segment: wire.last_segment,
        })
    }

    pub(crate) fn info(&self) -> TaskInfo {
        TaskInfo {
            task_id: self.name.to_string(),
            first_seen_unix_nanos: self.first_seen,
            last_seen_unix_nanos: self.last_seen,
            workers: self.workers,
            runs: self.runs,
            lines: self.lines,
            bytes: self.bytes,
            task_state: self.state.to_string(),
            context: HashMap::clone(&self.context),
        }
    }
}

/// Where a block or a gap of a run is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) first: u64,
    /// Sequence after the last one. A gap whose end is unknown has `end == first`.
    pub(crate) end: u64,
    pub(crate) min_time: i64,
    pub(crate) max_time: i64,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    pub(crate) generation: u32,
    pub(crate) body_len: u32,
    pub(crate) payload_bytes: u32,
    pub(crate) level_mask: u32,
    pub(crate) source_mask: u32,
    pub(crate) kind: EntryKind,
}

/// What an [`Entry`] points to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum EntryKind {
    Block = 1,
    Gap = 2,
    /// Found damaged; nothing to read.
    Damaged = 3,
}

/// Bytes of an [`Entry`] in the index (its key has `first`).
pub(crate) const ENTRY_BYTES: usize = 61;

impl Entry {
    pub(crate) fn new(kind: EntryKind, header: &Header, end: u64, segment: u64, generation: u32, offset: u64) -> Self {
        Self {
            first: header.first,
            end,
            min_time: header.min_time,
            max_time: header.max_time,
            segment,
            offset,
            generation,
            body_len: header.body_len,
            payload_bytes: if header.kind == Kind::Block { header.payload_bytes } else { 0 },
            level_mask: header.level_mask,
            source_mask: header.source_mask,
            kind,
        }
    }

    /// A hole that was found.
    pub(crate) fn hole(first: u64, end: u64, segment: u64, generation: u32) -> Self {
        Self {
            first,
            end,
            min_time: i64::MIN,
            max_time: i64::MAX,
            segment,
            offset: 0,
            generation,
            body_len: 0,
            payload_bytes: 0,
            level_mask: 0,
            source_mask: 0,
            kind: EntryKind::Damaged,
        }
    }

    /// Entries of a run are ordered by (first, rank): a gap without an end comes before what follows it.
    pub(crate) fn rank(&self) -> u8 {
        u8::from(self.end > self.first)
    }

    pub(crate) fn lines(&self) -> u64 {
        if self.kind == EntryKind::Block { self.end - self.first } else { 0 }
    }

    /// Whether a reader at this position is past it. `rank` 1: the gap without an end at `position` has been told.
    pub(crate) fn is_before(&self, position: u64, rank: u8) -> bool {
        if self.end == self.first {
            self.first < position || (self.first == position && rank > 0)
        } else {
            self.end <= position
        }
    }

    pub(crate) fn encode(&self) -> [u8; ENTRY_BYTES] {
        let mut out = [0; ENTRY_BYTES];
        let words = [self.end, self.min_time as u64, self.max_time as u64, self.segment, self.offset];
        for (index, word) in words.into_iter().enumerate() {
            out[index * 8..index * 8 + 8].copy_from_slice(&word.to_le_bytes());
        }
        let halves = [self.generation, self.body_len, self.payload_bytes, self.level_mask, self.source_mask];
        for (index, half) in halves.into_iter().enumerate() {
            out[40 + index * 4..44 + index * 4].copy_from_slice(&half.to_le_bytes());
        }
        out[60] = self.kind as u8;
        out
    }

    pub(crate) fn decode(first: u64, bytes: &[u8; ENTRY_BYTES]) -> Self {
        let word = |index: usize| {
            let mut out = [0; 8];
            out.copy_from_slice(&bytes[index * 8..index * 8 + 8]);
            u64::from_le_bytes(out)
        };
        let half = |index: usize| {
            let mut out = [0; 4];
            out.copy_from_slice(&bytes[40 + index * 4..44 + index * 4]);
            u32::from_le_bytes(out)
        };
        Self {
            first,
            end: word(0),
            min_time: word(1) as i64,
            max_time: word(2) as i64,
            segment: word(3),
            offset: word(4),
            generation: half(0),
            body_len: half(1),
            payload_bytes: half(2),
            level_mask: half(3),
            source_mask: half(4),
            kind: match bytes[60] {
                1 => EntryKind::Block,
                2 => EntryKind::Gap,
                _ => EntryKind::Damaged,
            },
        }
    }
}

#[derive(Clone, PartialEq, Message)]
struct WireRun {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    task: u64,
    #[prost(string, tag = "3")]
    task_id: String,
    #[prost(string, tag = "4")]
    worker_id: String,
    #[prost(string, tag = "5")]
    run_id: String,
    #[prost(message, optional, tag = "6")]
    metadata: Option<WorkerMetadata>,
    #[prost(uint64, tag = "7")]
    expected: u64,
    #[prost(uint64, tag = "8")]
    lines: u64,
    #[prost(uint64, tag = "9")]
    bytes: u64,
    #[prost(message, repeated, tag = "10")]
    gaps: Vec<LogGap>,
    #[prost(uint64, tag = "11")]
    missing: u64,
    #[prost(message, optional, tag = "12")]
    finish: Option<FinishRun>,
    #[prost(sint64, optional, tag = "13")]
    first_time: Option<i64>,
    #[prost(sint64, optional, tag = "14")]
    last_time: Option<i64>,
    #[prost(sint64, tag = "15")]
    opened_at: i64,
    #[prost(sint64, tag = "16")]
    active_at: i64,
    #[prost(uint64, tag = "17")]
    expired_through: u64,
    #[prost(uint64, tag = "18")]
    last_segment: u64,
    #[prost(bool, tag = "19")]
    created: bool,
    #[prost(bool, tag = "20")]
    open_gap: bool,
}

#[derive(Clone, PartialEq, Message)]
struct WireTask {
    #[prost(uint64, tag = "1")]
    number: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(sint64, tag = "3")]
    first_seen: i64,
    #[prost(sint64, tag = "4")]
    last_seen: i64,
    #[prost(uint32, tag = "5")]
    workers: u32,
    #[prost(uint32, tag = "6")]
    runs: u32,
    #[prost(uint64, tag = "7")]
    lines: u64,
    #[prost(uint64, tag = "8")]
    bytes: u64,
    #[prost(string, tag = "9")]
    state: String,
    #[prost(map = "string, string", tag = "10")]
    context: HashMap<String, String>,
    #[prost(uint64, tag = "11")]
    next_event: u64,
    #[prost(uint64, tag = "12")]
    last_segment: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_comes_back() {
        let entry = Entry {
            first: 9,
            end: 1 << 40,
            min_time: -3,
            max_time: i64::MAX,
            segment: 77,
            offset: 1 << 33,
            generation: 2,
            body_len: 3,
            payload_bytes: 4,
            level_mask: 5,
            source_mask: 6,
            kind: EntryKind::Gap,
        };
        assert_eq!(Entry::decode(9, &entry.encode()), entry);
    }

    #[test]
    fn a_reader_meets_a_gap_without_an_end_once() {
        let open = Entry::hole(5, 5, 1, 0);
        assert!(!open.is_before(5, 0));
        assert!(open.is_before(5, 1));
        assert!(open.is_before(6, 0));
        assert!(!Entry::hole(5, 8, 1, 0).is_before(5, 1));
    }
}
