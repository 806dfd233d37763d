use std::collections::VecDeque;

use otto_log_store::{From, Item, ReadError, RunInfo, Store};
use otto_proto::block::LineRef;
use otto_proto::v1::{LineGap, LogGap, LogLine};

use super::{Budget, Direction};
use crate::http::position::Position;
use crate::query::request::Matcher;

/// Bytes of lines looked at in one step backwards; one that costs more is made smaller.
const STEP_BYTES: u64 = 32 << 20;
/// Sequences looked at by a step backwards that is always finished.
const SMALL_STEP: u64 = 16;

/// One run being read.
pub(super) struct Lane<'a> {
    pub(super) run: &'a RunInfo,
    /// Where it began: forwards the first sequence wanted, backwards the one after the last.
    pub(super) start: u64,
    /// Lines loaded and not taken, in the order of reading.
    pub(super) lines: VecDeque<LogLine>,
    direction: Direction,
    /// Forwards: next sequence to load. Backwards: everything from here on was loaded.
    next: u64,
    /// Forwards: sequence after the last one there is.
    end: u64,
    gaps: Vec<LogGap>,
    chunk: usize,
    /// Sequences looked at by the next step backwards.
    stride: u64,
    /// Time of what was loaded last; rules the order until the next line is known.
    last_time: Option<i64>,
}

impl<'a> Lane<'a> {
    pub(super) fn new(
        run: &'a RunInfo,
        direction: Direction,
        from: Option<&Position>,
        to_sequence: Option<u64>,
        chunk: usize,
    ) -> Self {
        let end = run.expected.min(to_sequence.map_or(u64::MAX, |to| to.saturating_add(1)));
        let given = from.map(|position| position.runs.get(&run.id).copied().unwrap_or(1).max(1));
        let start = match direction {
            Direction::Forward => given.unwrap_or(1),
            Direction::Backward => given.unwrap_or(run.expected).min(end),
        };
        Self {
            run,
            start,
            lines: VecDeque::new(),
            direction,
            next: start,
            end,
            gaps: Vec::new(),
            chunk,
            stride: chunk as u64,
            last_time: None,
        }
    }

    /// Whether everything was taken.
    pub(super) fn is_done(&self) -> bool {
        self.lines.is_empty() && self.is_loaded()
    }

    fn is_loaded(&self) -> bool {
        match self.direction {
            Direction::Forward => self.next >= self.end,
            Direction::Backward => self.next <= 1,
        }
    }

    /// Where the next piece goes on: what was looked at and did not match counts as read.
    pub(super) fn edge(&self) -> u64 {
        match (self.direction, self.lines.front()) {
            (_, None) => self.next,
            (Direction::Forward, Some(line)) => line.sequence,
            (Direction::Backward, Some(line)) => line.sequence + 1,
        }
    }

    /// The lane with the highest rank is next. A lane that is not loaded ranks by the earliest (latest) time its lines can
    /// have, so that runs which do not overlap are not read at the same time.
    pub(super) fn rank(&self) -> i128 {
        let untouched = self.last_time.is_none();
        let time = match (self.lines.front(), self.direction) {
            (Some(line), _) => line.time_unix_nanos,
            (None, Direction::Forward) if untouched => self.run.first_time_unix_nanos.unwrap_or(i64::MIN),
            (None, Direction::Backward) if untouched => self.run.last_time_unix_nanos.unwrap_or(i64::MAX),
            (None, _) => self.last_time.unwrap_or_default(),
        };
        match self.direction {
            Direction::Forward => -i128::from(time),
            Direction::Backward => i128::from(time),
        }
    }

    /// Loads the next chunk.
    pub(super) async fn load(
        &mut self,
        store: &Store,
        matcher: &Matcher,
        budget: &mut Budget,
    ) -> Result<(), ReadError> {
        match self.direction {
            Direction::Forward => self.load_forward(store, matcher, budget).await,
            Direction::Backward => self.load_backward(store, matcher, budget).await,
        }
    }

    async fn load_forward(&mut self, store: &Store, matcher: &Matcher, budget: &mut Budget) -> Result<(), ReadError> {
        let mut cursor = store.cursor(self.run.id, From::Sequence(self.next)).with_filter(matcher.filter());
        loop {
            match cursor.next().await? {
                Some(Item::Block(block)) => {
                    for line in block.lines() {
                        if line.sequence >= self.end || self.lines.len() >= self.chunk {
                            break;
                        }
                        self.next = line.sequence + 1;
                        self.look_at(&line, matcher, budget, true);
                    }
                }
                Some(Item::Gap(gap)) => self.gaps.push(gap),
                Some(Item::Finish(_)) | None => {
                    self.next = self.next.max(self.end);
                    return Ok(());
                }
            }
            // Blocks without a wanted line are passed over: the cursor is further than the last line seen.
            if self.lines.len() < self.chunk {
                self.next = self.next.max(cursor.position().min(self.end));
            }
            if self.lines.len() >= self.chunk || self.next >= self.end || budget.is_spent() {
                return Ok(());
            }
        }
    }

    async fn load_backward(&mut self, store: &Store, matcher: &Matcher, budget: &mut Budget) -> Result<(), ReadError> {
        // It is called when all lines were taken.
        let (gaps, last_time) = (self.gaps.len(), self.last_time);
        while !self.step_back(store, matcher, budget).await? {
            // What was found lies before lines not looked at. Nothing of it counts; a small step is finished in every case, so
            // that whoever asks again and again gets on.
            self.lines.clear();
            self.gaps.truncate(gaps);
            (self.last_time, self.stride) = (last_time, SMALL_STEP);
        }
        Ok(())
    }

    /// Reads the stride before what was loaded; `false` if that costs too much.
    async fn step_back(&mut self, store: &Store, matcher: &Matcher, budget: &mut Budget) -> Result<bool, ReadError> {
        let upper = self.next;
        let lower = upper.saturating_sub(self.stride).max(1);
        let mut cursor = store.cursor(self.run.id, From::Sequence(lower)).with_filter(matcher.filter());
        let mut next = lower;
        let begun = budget.bytes;
        'blocks: loop {
            match cursor.next().await? {
                Some(Item::Block(block)) => {
                    for line in block.lines() {
                        if line.sequence >= upper {
                            break 'blocks;
                        }
                        self.look_at(&line, matcher, budget, false);
                        // Only the newest are kept; the others are for the next time.
                        if self.lines.len() > self.chunk
                            && let Some(oldest) = self.lines.pop_back()
                        {
                            next = oldest.sequence + 1;
                        }
                    }
                    let costly = budget.bytes - begun >= STEP_BYTES || budget.is_spent();
                    if costly && self.stride > SMALL_STEP && cursor.position() < upper {
                        return Ok(false);
                    }
                }
                // One of unknown end comes after everything.
                Some(Item::Gap(gap)) if gap.first_sequence >= upper && upper < self.run.expected => break,
                Some(Item::Gap(gap)) => self.gaps.push(gap),
                Some(Item::Finish(_)) | None => break,
            }
        }
        self.next = next;
        if self.lines.len() < self.chunk / 2 {
            self.stride = self.stride.saturating_mul(4).min(1 << 18);
        }
        Ok(true)
    }

    fn look_at(&mut self, line: &LineRef<'_>, matcher: &Matcher, budget: &mut Budget, append: bool) {
        budget.searched += 1;
        budget.bytes += line.bytes.len() as u64;
        self.last_time = Some(line.attributes.time_unix_nanos);
        if !matcher.matches(line) {
            return;
        }
        let line = LogLine {
            worker_id: self.run.key.worker_id.clone(),
            run_id: self.run.key.run_id.clone(),
            sequence: line.sequence,
            time_unix_nanos: line.attributes.time_unix_nanos,
            level: line.attributes.level.into(),
            source: line.attributes.source.into(),
            // A copy: a slice would keep the whole block in memory.
            message: bytes::Bytes::copy_from_slice(line.message()),
            unterminated: line.unterminated(),
            metadata: line.metadata.cloned().unwrap_or_default(),
        };
        if append {
            self.lines.push_back(line);
        } else {
            self.lines.push_front(line);
        }
    }

    /// The gaps between where it began and its edge. A gap belongs to where it begins, so that of two neighbouring windows
    /// one has it; a window that was asked to begin inside a gap has that one too.
    pub(super) fn gaps_passed(&mut self, into: &mut Vec<LineGap>) {
        let edge = self.edge();
        let (low, high) = match self.direction {
            // At its end a gap of unknown end may follow.
            Direction::Forward if self.is_done() && self.end == self.run.expected => (self.start, u64::MAX),
            Direction::Forward => (self.start, edge),
            Direction::Backward if self.start == self.run.expected => (edge, u64::MAX),
            Direction::Backward => (edge, self.start),
        };
        let forward = self.direction == Direction::Forward;
        let mut found: Vec<LogGap> = self.gaps.drain(..).map(|gap| whole(gap, &self.run.gaps)).collect();
        found.sort_by_key(|gap| gap.first_sequence);
        found.dedup_by_key(|gap| gap.first_sequence);
        found.retain(|gap| {
            (low..high).contains(&gap.first_sequence)
                || (forward && gap.first_sequence < low && gap.last_sequence >= low)
        });
        into.extend(found.into_iter().map(|gap| LineGap {
            worker_id: self.run.key.worker_id.clone(),
            run_id: self.run.key.run_id.clone(),
            gap: Some(gap),
        }));
    }
}

/// A cursor that begins inside a gap tells the rest of it.
fn whole(gap: LogGap, known: &[LogGap]) -> LogGap {
    let after = known.partition_point(|other| other.first_sequence <= gap.first_sequence);
    match after.checked_sub(1).and_then(|index| known.get(index)) {
        Some(other) if other.last_sequence >= gap.first_sequence => other.clone(),
        _ => gap,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use otto_log_store::{Options, Record, RunKey};
    use otto_proto::block::{Attributes, Builder};
    use otto_proto::v1::{LogLevel, LogSource, ReadLogsRequest};

    use super::*;

    #[tokio::test]
    async fn a_step_backwards_keeps_to_the_budget_and_gets_on() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new(dir.path().join("data"));
        let store = tokio::task::spawn_blocking(move || Store::open(options)).await.unwrap().unwrap();
        let key = RunKey { task_id: "t".to_owned(), worker_id: "w".to_owned(), run_id: "r".to_owned() };
        let run = store.open_run(&key, None).await.unwrap().id;
        for first in (1..=2000).step_by(20) {
            let mut builder = Builder::new();
            for n in first..first + 20 {
                let time = Attributes { time_unix_nanos: n, level: LogLevel::Info, source: LogSource::Stdout };
                builder.push(format!("line {n}\n").as_bytes(), time);
            }
            store.append(run, Record::Block(builder.finish(first as u64, None).unwrap())).await.unwrap();
        }
        let run = store.run(run).await.unwrap().unwrap();
        let request = ReadLogsRequest { task_id: "t".to_owned(), ..ReadLogsRequest::default() };
        let matcher = Matcher::new(&request).unwrap();
        // Time is up: what one call still does is small, and goes on where the last one was.
        let mut edge = None;
        let mut seen = Vec::new();
        for _ in 0..10 {
            let mut budget = Budget { deadline: Instant::now(), bytes: 0, searched: 0 };
            let from = edge.map(|edge| Position { runs: [(run.id, edge)].into(), ..Position::default() });
            let mut lane = Lane::new(&run, Direction::Backward, from.as_ref(), None, 1000);
            lane.load(&store, &matcher, &mut budget).await.unwrap();
            assert!(budget.searched < 100, "{}", budget.searched);
            seen.extend(lane.lines.drain(..).map(|line| line.sequence));
            edge = Some(lane.edge());
        }
        assert_eq!(seen, (1841..=2000).rev().collect::<Vec<_>>());
        // With time enough all of the step is read.
        let mut budget = Budget { deadline: Instant::now() + Duration::from_secs(60), bytes: 0, searched: 0 };
        let mut lane = Lane::new(&run, Direction::Backward, None, None, 1000);
        lane.load(&store, &matcher, &mut budget).await.unwrap();
        assert_eq!(lane.lines.len(), 1000);
    }
}
