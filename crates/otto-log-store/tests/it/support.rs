use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use otto_log_store::{Clock, Cursor, From, Item, Options, Record, RunId, RunKey, Store};
use otto_proto::block::{Attributes, Builder};
use otto_proto::v1::{FinishRun, LogBlock, LogLevel, LogSource, WorkerEvent, log_gap::Reason, worker_event};

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A clock that a test moves: the wall clock, and nanoseconds of it that were jumps.
#[derive(Debug)]
pub(crate) struct ManualClock(AtomicI64, AtomicI64);

impl ManualClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(1_000_000_000_000), AtomicI64::new(0)))
    }

    /// So much time goes by.
    pub(crate) fn advance(&self, by: Duration) {
        self.0.fetch_add(by.as_nanos() as i64, Ordering::SeqCst);
    }

    /// The wall clock is set otherwise.
    pub(crate) fn jump(&self, nanos: i64) {
        self.0.fetch_add(nanos, Ordering::SeqCst);
        self.1.fetch_add(nanos, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_unix_nanos(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        let nanos = self.0.load(Ordering::SeqCst) - self.1.load(Ordering::SeqCst);
        Duration::from_nanos(nanos as u64)
    }
}

/// Small segments, no merging unless a test wants it.
pub(crate) fn options(directory: &Path) -> Options {
    Options { segment_bytes: 64 << 10, merge: false, ..Options::new(directory) }
}

pub(crate) fn open(directory: &Path) -> Store {
    Store::open(options(directory)).unwrap()
}

pub(crate) fn key(task: &str, worker: &str) -> RunKey {
    RunKey { task_id: task.into(), worker_id: worker.into(), run_id: "r1".into() }
}

/// The line with this number: its length varies, it is never the same as another's.
pub(crate) fn line(run: u64, sequence: u64) -> Vec<u8> {
    let filler = (sequence.wrapping_mul(2_654_435_761) ^ run) % 90;
    let mut line = format!("run {run} line {sequence} ").into_bytes();
    line.extend((0..filler).map(|at| b'a' + ((at + sequence) % 26) as u8));
    line.push(b'\n');
    line
}

pub(crate) fn time_of(sequence: u64) -> i64 {
    1_700_000_000_000_000_000 + sequence as i64 * 1_000
}

pub(crate) fn block(run: u64, first: u64, lines: u64) -> LogBlock {
    let mut builder = Builder::new();
    for sequence in first..first + lines {
        let level = if sequence % 10 == 0 { LogLevel::Error } else { LogLevel::Info };
        let source = if sequence % 7 == 0 { LogSource::Stderr } else { LogSource::Stdout };
        let attributes = Attributes { time_unix_nanos: time_of(sequence), level, source };
        if sequence % 50 == 0 {
            let values = [("key".to_owned(), sequence.to_string())];
            builder.push_with_metadata(&line(run, sequence), attributes, values);
        } else {
            builder.push(&line(run, sequence), attributes);
        }
    }
    builder.finish(first, (lines > 100).then_some(1)).unwrap()
}

pub(crate) async fn append(store: &Store, run: RunId, seed: u64, first: u64, lines: u64) {
    assert_eq!(store.append(run, Record::Block(block(seed, first, lines))).await, Ok(first + lines));
}

pub(crate) fn finish(last_sequence: u64) -> Record {
    Record::Finish(FinishRun { last_sequence, exit_code: Some(0), ..FinishRun::default() })
}

/// What a reader saw.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) lines: Vec<(u64, Vec<u8>)>,
    pub(crate) gaps: Vec<(u64, u64, Reason)>,
    pub(crate) finished: bool,
}

impl Seen {
    pub(crate) fn add(&mut self, item: Item) {
        match item {
            Item::Block(block) => {
                for line in block.lines() {
                    assert_eq!(line.attributes.time_unix_nanos, time_of(line.sequence));
                    assert_eq!(line.attributes.level == LogLevel::Error, line.sequence.is_multiple_of(10));
                    assert_eq!(line.metadata.is_some(), line.sequence.is_multiple_of(50));
                    self.lines.push((line.sequence, line.bytes.to_vec()));
                }
            }
            Item::Gap(gap) => self.gaps.push((gap.first_sequence, gap.last_sequence, gap.reason())),
            Item::Finish(_) => self.finished = true,
        }
    }

    /// Every line is the one that was written under its number; lines and gaps together leave no hole.
    pub(crate) fn check(&self, seed: u64, from: u64, end: u64) {
        let mut next = from;
        let mut gaps = self.gaps.iter().peekable();
        for (sequence, bytes) in &self.lines {
            while let Some((first, last, _)) = gaps.next_if(|(first, last, _)| *last == 0 || *first == next) {
                if *last != 0 {
                    assert_eq!(*first, next);
                    next = last + 1;
                }
            }
            assert_eq!(*sequence, next, "order of lines");
            assert_eq!(*bytes, line(seed, *sequence));
            next += 1;
        }
        for (first, last, _) in gaps.filter(|(_, last, _)| *last != 0) {
            assert_eq!(*first, next);
            next = last + 1;
        }
        assert_eq!(next, end, "the end of what was seen");
    }
}

/// Everything that is there now.
pub(crate) async fn drain(cursor: &mut Cursor) -> Seen {
    let mut seen = Seen::default();
    while let Some(item) = cursor.next().await.unwrap() {
        seen.add(item);
    }
    seen
}

pub(crate) async fn read(store: &Store, run: RunId, from: From) -> Seen {
    drain(&mut store.cursor(run, from)).await
}

pub(crate) fn event(task: &str, id: &str, kind: worker_event::Type) -> WorkerEvent {
    WorkerEvent {
        event_id: id.into(),
        task_id: task.into(),
        r#type: kind.into(),
        message: format!("event {id}"),
        ..WorkerEvent::default()
    }
}

/// Waits for a state.
pub(crate) async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(begun.elapsed() < PATIENCE, "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// When there is a new segment, gives the background thread its time: one that is far behind, as on a busy machine, takes
/// segments into the index as they are. `segments` is how many there were.
pub(crate) async fn let_merge(store: &Store, segments: &mut u64) {
    let before = store.stats();
    if before.segments > std::mem::replace(segments, before.segments) {
        let merged = async {
            while store.stats().merged_segments == before.merged_segments {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        // Not every segment is worth it.
        let _ = tokio::time::timeout(Duration::from_secs(5), merged).await;
    }
}

/// Names of the segment files.
pub(crate) fn segment_files(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory.join("segments"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
