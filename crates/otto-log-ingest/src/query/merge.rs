//! The runs of a reading, merged.
//!
//! Lines of one run come in their order. Between runs they are ordered by time; a run's time never falls for this, so
//! that a clock set back delays nobody. Where the blocks of all runs together need more memory than a reading may have,
//! some are read again when their turn comes, and are then shown as a whole.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use otto_log_store::{Cursor, From, Item, ReadError, RunId, RunInfo, Store};
use otto_proto::v1::{LineGap, LogGap, LogLine};

use super::head::Head;
use super::search::Search;
use super::token::{Position, check_of};

/// What a cursor of the store reads ahead at most, bytes.
const READ_AHEAD: u64 = 1 << 20;

/// What comes next.
pub(super) enum Next {
    Line(LogLine),
    Gap(LineGap),
}

/// Where a run begins to be shown.
#[derive(Clone, Copy, Debug)]
pub(super) enum Start {
    Sequence(u64),
    Time(i64),
    /// It was shown to its end before.
    Done,
}

enum State {
    /// Its cursor is in `work`, or not made yet (`dormant`).
    Away,
    /// Has lines to show.
    Lines(Box<Cursor>, Box<Head>),
    /// Has a gap to show.
    Gap(Box<(Cursor, LogGap)>),
    /// Had lines to show, which were put away for lack of memory.
    Parked,
    /// Nothing more is shown of it by this reading.
    Done,
}

struct Source {
    run: RunId,
    check: u16,
    worker_id: String,
    run_id: String,
    start: Start,
    /// Next sequence to show.
    next: u64,
    /// Nothing from here on is shown.
    end: u64,
    /// Time of what was shown last; never falls.
    time: i64,
    /// What its cursor may have read ahead, bytes.
    ahead: usize,
    /// The block that is being read shall be shown as a whole.
    whole: bool,
    /// There will never be more of it: its Finish was met, or it is no more. Not so where a reading of what is stored now
    /// has met the end of that.
    finished: bool,
    state: State,
}

impl Source {
    /// All up to `end` was shown. A later reading goes on there.
    fn reach_end(&mut self) {
        self.next = self.next.max(self.end);
        self.state = State::Done;
    }
}

enum Outcome {
    Loaded(Result<Loaded, ReadError>),
    Woken(bool),
}

/// What a cursor met.
enum Loaded {
    /// Nothing for now.
    Nothing,
    /// Lines from this sequence on, of which those of the head are wanted.
    Lines(u64, Option<Box<Head>>),
    Gap(LogGap),
    Finish,
}

/// Reads what comes next, and picks the wanted lines up to before `end`.
async fn next(cursor: &mut Cursor, end: u64, search: &Search) -> Result<Loaded, ReadError> {
    Ok(match cursor.next().await? {
        None => Loaded::Nothing,
        Some(Item::Gap(gap)) => Loaded::Gap(gap),
        Some(Item::Finish(_)) => Loaded::Finish,
        Some(Item::Block(block)) => {
            let from = block.from;
            let head = search.look(block, move |block, matcher| Head::new(block, end, matcher)).await?;
            Loaded::Lines(from, head.map(Box::new))
        }
    })
}

/// See the module.
pub(super) struct Merge {
    store: Store,
    search: Search,
    follow: bool,
    budget: usize,
    sources: Vec<Source>,
    /// Sources with something to show, by time.
    ready: BinaryHeap<Reverse<(i64, usize)>>,
    /// Sources not begun, by the time of their first line.
    dormant: BinaryHeap<Reverse<(i64, usize)>>,
    work: FuturesUnordered<BoxFuture<'static, (usize, Cursor, Outcome)>>,
    /// Of `work`: how many are reading (the others wait for something to come).
    loading: usize,
    /// Memory of all heads.
    bytes: usize,
}

impl Merge {
    pub(super) fn new(store: Store, search: Search, follow: bool, budget: usize) -> Self {
        Self {
            store,
            search,
            follow,
            budget,
            sources: Vec::new(),
            ready: BinaryHeap::new(),
            dormant: BinaryHeap::new(),
            work: FuturesUnordered::new(),
            loading: 0,
            bytes: 0,
        }
    }

    /// Adds a run, up to before `end`. Runs must be added by rising id.
    pub(super) fn add(&mut self, run: &RunInfo, start: Start, end: u64) {
        let next = match start {
            Start::Sequence(sequence) => sequence.max(1),
            Start::Time(_) => 1,
            Start::Done => 0,
        };
        self.sources.push(Source {
            run: run.id,
            check: check_of(&run.key),
            worker_id: run.key.worker_id.clone(),
            run_id: run.key.run_id.clone(),
            start,
            next,
            end,
            time: i64::MIN,
            ahead: usize::try_from(run.bytes.min(READ_AHEAD)).unwrap_or(usize::MAX),
            whole: false,
            finished: matches!(start, Start::Done),
            state: if matches!(start, Start::Done) { State::Done } else { State::Away },
        });
        if !matches!(start, Start::Done) {
            // A run without a line has nothing to be ordered by.
            let first = run.first_time_unix_nanos.unwrap_or(i64::MIN);
            self.dormant.push(Reverse((first, self.sources.len() - 1)));
        }
    }

    /// Whether this run was added.
    pub(super) fn newest(&self) -> Option<RunId> {
        self.sources.last().map(|source| source.run)
    }

    /// Runs added.
    pub(super) fn len(&self) -> usize {
        self.sources.len()
    }

    /// Where every run is.
    pub(super) fn positions(&self) -> Vec<Position> {
        let position = |source: &Source| Position {
            run: source.run,
            check: source.check,
            next: if source.finished { 0 } else { source.next },
        };
        self.sources.iter().map(position).collect()
    }

    /// Waits until [`take`](Self::take) has something (`true`) or has nothing for now, or for ever if nothing is
    /// followed (`false`). Dropping the future loses nothing.
    pub(super) async fn settle(&mut self) -> Result<bool, ReadError> {
        loop {
            // Whatever is being read may be the earliest.
            while self.loading > 0 {
                if let Some(done) = self.work.next().await {
                    self.done(done)?;
                }
            }
            // Wake-ups that are there already.
            while let Some(Some(done)) = self.work.next().now_or_never() {
                self.done(done)?;
            }
            if self.loading > 0 {
                continue;
            }
            let due = match (self.dormant.peek(), self.ready.peek()) {
                (Some(Reverse((first, _))), Some(Reverse((time, _)))) => first <= time,
                (dormant, _) => dormant.is_some(),
            };
            if due && let Some(Reverse((_, index))) = self.dormant.pop() {
                self.begin(index);
                continue;
            }
            if let Some(Reverse((_, index))) = self.ready.peek()
                && matches!(self.sources[*index].state, State::Parked)
            {
                let index = *index;
                self.ready.pop();
                self.sources[index].whole = true;
                self.begin(index);
                continue;
            }
            return Ok(!self.ready.is_empty());
        }
    }

    /// Waits until something may have come. Never resolves if no run is followed. Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) -> Result<(), ReadError> {
        match self.work.next().await {
            Some(done) => self.done(done),
            None => std::future::pending().await,
        }
    }

    /// Whether [`take`](Self::take) would give a gap.
    pub(super) fn is_gap_next(&self) -> bool {
        self.ready.peek().is_some_and(|Reverse((_, index))| matches!(self.sources[*index].state, State::Gap(_)))
    }

    /// What comes next, after [`settle`](Self::settle) said that there is something. `None`: settle again.
    pub(super) fn take(&mut self) -> Option<Next> {
        if self.loading > 0 {
            return None;
        }
        let Reverse((time, index)) = *self.ready.peek()?;
        if self.dormant.peek().is_some_and(|Reverse((first, _))| *first <= time) {
            return None;
        }
        let source = &mut self.sources[index];
        match std::mem::replace(&mut source.state, State::Away) {
            State::Lines(cursor, mut head) => {
                let line = head.take(&source.worker_id, &source.run_id, self.search.matcher());
                if let Some(line) = &line {
                    source.next = line.sequence + 1;
                }
                match head.time() {
                    Some(next) => {
                        source.time = source.time.max(next);
                        let (whole, time) = (source.whole, source.time);
                        source.state = State::Lines(cursor, head);
                        if !whole && let Some(mut top) = self.ready.peek_mut() {
                            *top = Reverse((time, index));
                        }
                    }
                    None => {
                        self.bytes -= (head.bytes() + source.ahead).min(self.bytes);
                        self.ready.pop();
                        source.whole = false;
                        source.next = source.next.max(cursor.position().min(source.end));
                        self.load(index, *cursor);
                    }
                }
                line.map(Next::Line)
            }
            State::Gap(gap) => {
                self.ready.pop();
                let (cursor, gap) = *gap;
                if gap.last_sequence >= gap.first_sequence {
                    source.next = source.next.max(gap.last_sequence + 1);
                }
                let shown =
                    LineGap { worker_id: source.worker_id.clone(), run_id: source.run_id.clone(), gap: Some(gap) };
                self.load(index, cursor);
                Some(Next::Gap(shown))
            }
            other => {
                source.state = other;
                None
            }
        }
    }

    fn begin(&mut self, index: usize) {
        let source = &self.sources[index];
        let from = match source.start {
            Start::Time(time) if source.next == 1 => From::Time(time),
            _ => From::Sequence(source.next),
        };
        let cursor = self.store.cursor(source.run, from).with_filter(self.search.matcher().filter());
        self.load(index, cursor);
    }

    fn load(&mut self, index: usize, mut cursor: Cursor) {
        self.sources[index].state = State::Away;
        self.loading += 1;
        let (end, search) = (self.sources[index].end, self.search.clone());
        self.work.push(
            async move {
                let loaded = next(&mut cursor, end, &search).await;
                (index, cursor, Outcome::Loaded(loaded))
            }
            .boxed(),
        );
    }

    fn done(&mut self, (index, mut cursor, outcome): (usize, Cursor, Outcome)) -> Result<(), ReadError> {
        let loaded = match outcome {
            Outcome::Woken(true) => {
                self.load(index, cursor);
                return Ok(());
            }
            // The store was closed.
            Outcome::Woken(false) => {
                self.sources[index].state = State::Done;
                return Ok(());
            }
            Outcome::Loaded(loaded) => {
                self.loading -= 1;
                loaded
            }
        };
        let source = &mut self.sources[index];
        match loaded {
            // It was deleted or has expired meanwhile: there is nothing more of it.
            Err(ReadError::UnknownRun) | Ok(Loaded::Finish) => {
                source.finished = true;
                source.state = State::Done;
            }
            Err(error) => return Err(error),
            Ok(Loaded::Nothing) if !self.follow => source.reach_end(),
            Ok(Loaded::Nothing) => {
                self.work.push(
                    async move {
                        let more = cursor.changed().await;
                        (index, cursor, Outcome::Woken(more))
                    }
                    .boxed(),
                );
            }
            Ok(Loaded::Gap(gap)) => {
                let open = gap.last_sequence == 0;
                if gap.first_sequence > source.end || (gap.first_sequence == source.end && !open) {
                    source.reach_end();
                } else {
                    source.state = State::Gap(Box::new((cursor, gap)));
                    self.ready.push(Reverse((source.time, index)));
                }
            }
            Ok(Loaded::Lines(from, head)) => {
                if from >= source.end {
                    source.reach_end();
                    return Ok(());
                }
                source.next = source.next.max(from);
                match head {
                    None => {
                        source.next = source.next.max(cursor.position().min(source.end));
                        self.load(index, cursor);
                    }
                    Some(head) => {
                        source.time = source.time.max(head.time().unwrap_or(i64::MIN));
                        let bytes = head.bytes() + source.ahead;
                        if source.whole {
                            self.bytes += bytes;
                            source.state = State::Lines(Box::new(cursor), head);
                            self.ready.push(Reverse((i64::MIN, index)));
                        } else {
                            if self.bytes > 0 && self.bytes + bytes > self.budget {
                                source.state = State::Parked;
                            } else {
                                self.bytes += bytes;
                                source.state = State::Lines(Box::new(cursor), head);
                            }
                            self.ready.push(Reverse((source.time, index)));
                        }
                    }
                }
            }
        }
        Ok(())
    }
}
