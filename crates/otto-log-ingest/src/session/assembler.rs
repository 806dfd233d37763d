//! Entries of one stream become records: numbered, checked, collected into blocks. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use otto_log_store::Record;
use otto_proto::block::{Attributes, Builder};
use otto_proto::v1::log_gap::Reason;
use otto_proto::v1::{LogEntry, LogGap, LogLevel};

use super::End;
use super::entry::{self, Timestamps};
use super::numbering::{Holes, Place, place};
use super::writer::{Submission, What};

/// A block is made of at most so many bytes of lines.
pub(crate) const BLOCK_BYTES: usize = 256 << 10;

/// What the client is told at once about an entry that is not stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Note {
    /// It was stored before (numbered clients): acknowledge what is on disk.
    Duplicate,
    /// It does not fit (numbered clients): send again from the expected sequence.
    Hole,
    /// It belongs to another stream (numbered clients whose number is not even expected): dropped without a gap, because
    /// no line of this run is missing.
    Foreign {
        /// The number it came with.
        sequence: u64,
        /// Why.
        message: Arc<str>,
    },
}

/// Whose entries they are, and who numbers them.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    pub(crate) task_id: String,
    pub(crate) worker_id: String,
    /// The client numbers.
    pub(crate) numbered: bool,
}

/// Collects the entries of one stream.
pub(crate) struct Assembler {
    stream: Stream,
    max_line_bytes: usize,
    /// Sequence of the next line.
    next: u64,
    holes: Holes,
    builder: Builder,
    /// Sequence of the builder's first line.
    first: u64,
    /// Bytes of lines and metadata in the builder.
    open_bytes: usize,
    scratch: Vec<u8>,
    timestamps: Timestamps,
    ready: VecDeque<Submission>,
    notes: Vec<Note>,
    foreign: Arc<str>,
    too_long: Arc<str>,
    duplicates: u64,
}

impl Assembler {
    pub(crate) fn new(stream: Stream, max_line_bytes: usize, next: u64) -> Self {
        Self {
            foreign: format!(
                "the entry is not of worker {:?} of task {:?}, whose stream this is",
                stream.worker_id, stream.task_id
            )
            .into(),
            too_long: format!("message and metadata are longer than {max_line_bytes} bytes (max-line-bytes)").into(),
            stream,
            max_line_bytes,
            next,
            holes: Holes::default(),
            builder: Builder::new(),
            first: next,
            open_bytes: 0,
            scratch: Vec::new(),
            timestamps: Timestamps::default(),
            ready: VecDeque::new(),
            notes: Vec::new(),
            duplicates: 0,
        }
    }

    pub(crate) fn numbered(&self) -> bool {
        self.stream.numbered
    }

    /// Sequence of the next line.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Bytes of lines and metadata that are in no record yet.
    pub(crate) fn open_bytes(&self) -> usize {
        self.open_bytes
    }

    /// Memory of lines that were not taken yet, about, bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.open_bytes + self.ready.iter().map(|submission| submission.bytes).sum::<usize>()
    }

    /// The range collected and not taken yet: its first sequence, and the one after its last.
    pub(crate) fn collected(&self) -> (u64, u64) {
        let first = self.ready.front().map_or(self.first, |submission| submission.first);
        (if self.is_empty() { self.next } else { first }, self.next)
    }

    /// Whether there is anything that [`take`](Self::take) would give.
    pub(crate) fn is_empty(&self) -> bool {
        self.builder.is_empty() && self.ready.is_empty()
    }

    /// The next finished record, if there is one.
    pub(crate) fn take_finished(&mut self) -> Option<Submission> {
        self.ready.pop_front()
    }

    /// The next record; what was collected becomes one.
    pub(crate) fn take(&mut self) -> Option<Submission> {
        if self.ready.is_empty() {
            self.seal();
        }
        self.ready.pop_front()
    }

    /// What is to be told at once, and how many lines were duplicates.
    pub(crate) fn take_notes(&mut self) -> (Vec<Note>, u64) {
        (std::mem::take(&mut self.notes), std::mem::take(&mut self.duplicates))
    }

    /// Whether too many notes wait: then nothing more should be read.
    pub(crate) fn is_noisy(&self) -> bool {
        self.notes.len() >= 64
    }

    /// Goes back to `next`: everything collected since was refused. Gives the range collected and not taken yet.
    pub(crate) fn rewind(&mut self, next: u64) -> (u64, u64) {
        let range = self.collected();
        self.ready.clear();
        // Only its allocations are wanted.
        drop(self.builder.finish(1, None));
        self.open_bytes = 0;
        self.next = next;
        self.first = next;
        if self.stream.numbered {
            self.holes.told(range.1);
        }
        range
    }

    /// Whether the entry is one of this worker.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    pub(crate) fn check(&self, entry: &LogEntry) -> Result<bool, End> {
        let own = entry.worker_id == self.stream.worker_id && entry.task_id == self.stream.task_id;
        if !own {
            check_ids(entry)?;
        }
        if entry.sequence.is_some() != self.stream.numbered {
            return Err(End::Invalid {
                field: "sequence",
                description: "set in some entries of the stream and not in others; set it in all or in none".to_owned(),
            });
        }
        Ok(own)
    }

    /// The client was told to go back after it had sent up to before `end`.
    pub(crate) fn pass_over(&mut self, end: u64) {
        self.holes.told(end);
    }

    /// Takes an entry that arrived at `now` (nanoseconds since the Unix epoch).
    ///
    /// # Errors
    /// If it breaks the contract; the stream ends then, after what came before it was answered.
    pub(crate) fn accept(&mut self, entry: LogEntry, now: i64) -> Result<(), End> {
        let own = self.check(&entry)?;
        if let Some(sequence) = entry.sequence {
            if sequence == 0 || sequence >= i64::MAX as u64 {
                return Err(End::Invalid {
                    field: "sequence",
                    description: format!("is {sequence}; accepted is 1 to 2^63 - 2"),
                });
            }
            if !own && sequence != self.next {
                self.notes.push(Note::Foreign { sequence, message: self.foreign.clone() });
                return Ok(());
            }
            match place(self.next, sequence, sequence + 1) {
                Place::Next => self.holes.fits(),
                Place::Duplicate | Place::Overlap => {
                    self.duplicates += 1;
                    if self.notes.last() != Some(&Note::Duplicate) {
                        self.notes.push(Note::Duplicate);
                    }
                    return Ok(());
                }
                Place::Hole => {
                    if self.holes.misfit(sequence, sequence + 1) {
                        self.notes.push(Note::Hole);
                    }
                    return Ok(());
                }
            }
        }
        let metadata_bytes: usize = entry.metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
        if !own {
            self.refuse(&self.foreign.clone());
        } else if entry.message.len().saturating_add(metadata_bytes) > self.max_line_bytes {
            self.refuse(&self.too_long.clone());
        } else {
            self.collect(entry, metadata_bytes, now);
        }
        Ok(())
    }

    fn collect(&mut self, entry: LogEntry, metadata_bytes: usize, now: i64) {
        if self.open_bytes >= BLOCK_BYTES {
            self.seal();
        }
        self.open_bytes += entry.message.len() + metadata_bytes + 8;
        let mut metadata = entry.metadata;
        let time_unix_nanos = if entry.timestamp.is_empty() {
            now
        } else if let Some(time) = self.timestamps.read(&entry.timestamp) {
            time
        } else {
            let kept = entry.timestamp.floor_char_boundary(64);
            metadata.insert(entry::INVALID_TIMESTAMP.to_owned(), entry.timestamp[..kept].to_owned());
            now
        };
        let level = if entry.level.is_empty() { LogLevel::Unspecified } else { entry::level(&entry.level) };
        let attributes = Attributes { time_unix_nanos, level, source: entry::source(&entry.source) };
        self.scratch.clear();
        self.scratch.extend_from_slice(entry.message.as_bytes());
        self.scratch.push(b'\n');
        if metadata.is_empty() {
            self.builder.push(&self.scratch, attributes);
        } else {
            self.builder.push_with_metadata(&self.scratch, attributes, metadata);
        }
        self.next += 1;
    }

    fn refuse(&mut self, why: &Arc<str>) {
        self.seal();
        let sequence = self.next;
        self.next += 1;
        self.first = self.next;
        if let Some(Submission { record: Record::Gap(gap), end, what: What::Refused(reason), .. }) =
            self.ready.back_mut()
            && Arc::ptr_eq(reason, why)
            && *end == sequence
        {
            gap.last_sequence = sequence;
            *end = self.next;
            return;
        }
        let gap = LogGap {
            first_sequence: sequence,
            last_sequence: sequence,
            reason: Reason::Refused.into(),
            message: why.to_string(),
        };
        let bytes = 256 + why.len();
        let what = What::Refused(why.clone());
        self.ready.push_back(Submission { record: Record::Gap(gap), first: sequence, end: self.next, what, bytes });
    }

    fn seal(&mut self) {
        let first = self.first;
        self.first = self.next;
        self.open_bytes = 0;
        if let Some(block) = self.builder.finish(first, None) {
            let bytes = block.payload.len() + 256;
            self.ready.push_back(Submission {
                end: block.end_sequence(),
                record: Record::Block(block),
                first,
                what: What::Lines,
                bytes,
            });
        }
    }
}

/// Both must be there, in every entry.
pub(crate) fn check_ids(entry: &LogEntry) -> Result<(), End> {
    for (field, value) in [("worker_id", &entry.worker_id), ("task_id", &entry.task_id)] {
        if value.is_empty() {
            return Err(End::Invalid { field, description: "must not be empty".to_owned() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use otto_proto::block::DecodedBlock;
    use proptest::prelude::*;

    use super::*;

    const MAX: usize = 100;

    fn assembler(numbered: bool, next: u64) -> Assembler {
        let stream = Stream { task_id: "t".to_owned(), worker_id: "w".to_owned(), numbered };
        Assembler::new(stream, MAX, next)
    }

    fn entry(message: &str, sequence: Option<u64>) -> LogEntry {
        LogEntry {
            worker_id: "w".to_owned(),
            task_id: "t".to_owned(),
            message: message.to_owned(),
            sequence,
            ..LogEntry::default()
        }
    }

    fn all(assembler: &mut Assembler) -> Vec<Submission> {
        std::iter::from_fn(|| assembler.take()).collect()
    }

    fn texts(submissions: &[Submission]) -> Vec<(u64, Option<String>)> {
        let mut out = Vec::new();
        for submission in submissions {
            match &submission.record {
                Record::Block(block) => out.extend(
                    DecodedBlock::decode(block)
                        .unwrap()
                        .lines()
                        .map(|line| (line.sequence, Some(String::from_utf8(line.message().to_vec()).unwrap()))),
                ),
                Record::Gap(gap) => out.extend((gap.first_sequence..=gap.last_sequence).map(|n| (n, None))),
                Record::Finish(_) => {}
            }
        }
        out
    }

    proptest! {
        /// Whatever comes, the records of an un-numbered stream have one sequence an entry, in order, without holes.
        #[test]
        fn one_sequence_an_entry(kinds in prop::collection::vec((0..4u8, 0..90usize), 0..200)) {
            let mut assembler = assembler(false, 7);
            for (n, (kind, length)) in kinds.iter().enumerate() {
                let mut entry = entry(&"x".repeat(*length), None);
                match kind {
                    0 => entry.message = "y".repeat(MAX + 1),
                    1 => entry.worker_id = "other".to_owned(),
                    _ => {}
                }
                assembler.accept(entry, n as i64).unwrap();
            }
            let submissions = all(&mut assembler);
            let mut next = 7;
            for submission in &submissions {
                prop_assert_eq!(submission.first, next);
                next = submission.end;
            }
            prop_assert_eq!(next, 7 + kinds.len() as u64);
            let wanted: Vec<_> = kinds.iter().enumerate()
                .map(|(n, (kind, length))| (7 + n as u64, (*kind > 1).then(|| "x".repeat(*length)))).collect();
            prop_assert_eq!(texts(&submissions), wanted);
        }

        /// A numbered stream stores each line once, in order, however often and out of order it is sent.
        #[test]
        fn each_line_once(sequences in prop::collection::vec(1..30u64, 0..200)) {
            let mut assembler = assembler(true, 1);
            for sequence in &sequences {
                assembler.accept(entry(&sequence.to_string(), Some(*sequence)), 0).unwrap();
            }
            let stored = texts(&all(&mut assembler));
            let wanted: Vec<_> = (1..assembler.next()).map(|n| (n, Some(n.to_string()))).collect();
            prop_assert_eq!(stored, wanted);
        }
    }

    #[test]
    fn attributes_and_metadata_are_kept() {
        let mut assembler = assembler(false, 1);
        let mut first = entry("one", None);
        first.timestamp = "1970-01-01T00:00:02Z".to_owned();
        first.level = "WARN".to_owned();
        first.source = "stderr".to_owned();
        first.metadata.insert("k".to_owned(), "v".to_owned());
        assembler.accept(first, 9).unwrap();
        let mut second = entry("", None);
        second.timestamp = "half past nine".to_owned();
        assembler.accept(second, 9).unwrap();
        let Some(Submission { record: Record::Block(block), .. }) = assembler.take() else { panic!() };
        let decoded = DecodedBlock::decode(&block).unwrap();
        let lines: Vec<_> = decoded.lines().collect();
        assert_eq!(lines[0].attributes.time_unix_nanos, 2_000_000_000);
        assert_eq!(lines[0].attributes.level, LogLevel::Warn);
        assert_eq!(lines[0].metadata.unwrap()["k"], "v");
        assert_eq!(lines[1].attributes.time_unix_nanos, 9);
        assert_eq!(lines[1].bytes, b"\n");
        assert_eq!(lines[1].metadata.unwrap()[entry::INVALID_TIMESTAMP], "half past nine");
    }

    #[test]
    fn neighbouring_refusals_are_one_gap() {
        let mut assembler = assembler(false, 1);
        for _ in 0..3 {
            assembler.accept(entry(&"y".repeat(MAX + 1), None), 0).unwrap();
        }
        let submissions = all(&mut assembler);
        assert_eq!(submissions.len(), 1);
        assert_eq!((submissions[0].first, submissions[0].end), (1, 4));
    }

    #[test]
    fn a_foreign_entry_makes_no_endless_loop_and_no_wrong_gap() {
        let mut assembler = assembler(true, 5);
        let mut foreign = entry("x", Some(900));
        foreign.worker_id = "other".to_owned();
        assembler.accept(foreign.clone(), 0).unwrap();
        assert!(matches!(assembler.take_notes().0[..], [Note::Foreign { sequence: 900, .. }]));
        assert!(assembler.take().is_none());
        foreign.sequence = Some(5);
        assembler.accept(foreign, 0).unwrap();
        assert_eq!(texts(&all(&mut assembler)), [(5, None)]);
        assert_eq!(assembler.next(), 6);
    }

    #[test]
    fn what_breaks_the_contract_ends_the_stream() {
        let mut assembler = assembler(true, 1);
        assert!(matches!(assembler.accept(entry("x", None), 0), Err(End::Invalid { field: "sequence", .. })));
        assert!(matches!(assembler.accept(entry("x", Some(0)), 0), Err(End::Invalid { field: "sequence", .. })));
        let mut anonymous = entry("x", Some(1));
        anonymous.worker_id.clear();
        assert!(matches!(assembler.accept(anonymous, 0), Err(End::Invalid { field: "worker_id", .. })));
    }

    #[test]
    fn after_a_rewind_it_goes_on_from_there() {
        let mut assembler = assembler(true, 1);
        for n in 1..=5 {
            assembler.accept(entry(&n.to_string(), Some(n)), 0).unwrap();
        }
        let taken = assembler.take().unwrap();
        assert_eq!((taken.first, taken.end), (1, 6));
        assembler.accept(entry("6", Some(6)), 0).unwrap();
        assert_eq!(assembler.rewind(1), (6, 7));
        // What was under way is passed over without another RETRY, then the client goes back.
        assembler.accept(entry("7", Some(7)), 0).unwrap();
        assert!(assembler.take_notes().0.is_empty());
        assembler.accept(entry("1", Some(1)), 0).unwrap();
        assert_eq!(texts(&all(&mut assembler)), [(1, Some("1".to_owned()))]);
    }
}
