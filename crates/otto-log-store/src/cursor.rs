use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use otto_proto::block::{DecodedBlock, LineRef};
use otto_proto::v1::{FinishRun, LogGap};

use crate::catalogue::Step;
use crate::error::ReadError;
use crate::rows::{Entry, EntryKind, damaged, expired};
use crate::segment::{Loaded, load_cached};
use crate::shared::Shared;
use crate::store::blocking;
use crate::types::RunId;
use crate::watch::Watch;

mod fetch;

use fetch::{Fetched, fetch, item_of, resolve};

/// Blocks with more bytes before compression are opened where it may take a while.
const INLINE: u32 = 256 << 10;

/// Where a cursor begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At this sequence; 0 and 1: from the start. May lie ahead of what is stored.
    Sequence(u64),
    /// At the last so many lines stored when the cursor is first used; 0: only what comes.
    Tail(u64),
    /// At the first block that has a line at or after this time, nanoseconds since the Unix epoch.
    Time(i64),
}

/// Blocks that cannot hold a wanted line are passed over without being read. Lines inside a block are not filtered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Bit n: a line of `LogLevel` n is wanted; 0: all.
    pub level_mask: u32,
    /// Bit n: a line of `LogSource` n is wanted; 0: all.
    pub source_mask: u32,
    /// Only lines at or after this time.
    pub since_unix_nanos: Option<i64>,
    /// Only lines before this time.
    pub until_unix_nanos: Option<i64>,
}

/// Lines as they are stored.
#[derive(Clone, Debug)]
pub struct Block {
    /// The whole block.
    pub decoded: DecodedBlock,
    /// First sequence wanted; larger than the block's first one where a cursor began in the middle of it.
    pub from: u64,
}

impl Block {
    /// The lines wanted: those of the block from [`from`](Self::from) on.
    pub fn lines(&self) -> impl Iterator<Item = LineRef<'_>> {
        self.decoded.lines().skip_while(|line| line.sequence < self.from)
    }
}

/// What a cursor meets.
#[derive(Clone, Debug)]
pub enum Item {
    /// Lines.
    Block(Block),
    /// Lines that are missing: told by the worker, damaged, or removed by retention.
    Gap(LogGap),
    /// The end of the run; the last item.
    Finish(FinishRun),
}

/// Reads one run in order and follows it, without losing or repeating a line. Never slows a writer; holds about a
/// megabyte of blocks at most (or one larger block). Dropping a pending future of it loses nothing.
pub struct Cursor {
    shared: Arc<Shared>,
    run: RunId,
    /// `None` once the position is known.
    from: Option<From>,
    filter: Filter,
    position: u64,
    /// 1: a gap without an end at the position has been told.
    rank: u8,
    /// What was read ahead.
    ahead: VecDeque<Fetched>,
    drained: bool,
    ended: bool,
    watch: Watch<u64>,
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("run", &self.run).field("position", &self.position).finish_non_exhaustive()
    }
}

impl Cursor {
    pub(crate) fn new(shared: Arc<Shared>, run: RunId, from: From) -> Self {
        let watch = shared.runs.watch(run.0);
        Self {
            shared,
            run,
            from: Some(from),
            filter: Filter::default(),
            position: 1,
            rank: 0,
            ahead: VecDeque::new(),
            drained: false,
            ended: false,
            watch,
        }
    }

    /// The same cursor with a filter.
    #[must_use]
    pub fn with_filter(mut self, filter: Filter) -> Self {
        self.filter = filter;
        self
    }

    /// The run read.
    #[must_use]
    pub fn run(&self) -> RunId {
        self.run
    }

    /// Sequence after what was returned (or passed over by the filter) last. Before the first call of
    /// [`next`](Self::next), 1.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next item; `None` if there is none now: then wait for [`changed`](Self::changed).
    ///
    /// # Errors
    /// [`ReadError::UnknownRun`] if it was deleted; otherwise the disk cannot be read, and the call can be repeated.
    pub async fn next(&mut self) -> Result<Option<Item>, ReadError> {
        if self.ended {
            return Ok(None);
        }
        if let Some(from) = self.from {
            let (shared, run) = (self.shared.clone(), self.run.0);
            let Some((position, rank)) = blocking(move || resolve(&shared, run, from)).await? else {
                return self.unknown();
            };
            (self.position, self.rank, self.from) = (position, rank, None);
        }
        loop {
            let fetched = match self.ahead.pop_front() {
                Some(_) if self.shared.catalogue().run_in_memory(self.run.0).is_some_and(|row| row.removed) => {
                    Fetched::Unknown
                }
                Some(fetched) => fetched,
                None => {
                    self.watch.mark_seen();
                    match self.at_hand() {
                        Some(fetched) => fetched,
                        None => {
                            self.read_ahead().await?;
                            continue;
                        }
                    }
                }
            };
            match fetched {
                Fetched::Item(item, end, rank) => {
                    (self.position, self.rank) = (end, rank);
                    self.ended = matches!(*item, Item::Finish(_));
                    if let Item::Gap(gap) = &*item {
                        self.shared.unreadable.met(self.run.0, gap);
                    }
                    return Ok(Some(*item));
                }
                Fetched::Skipped(end, rank) => (self.position, self.rank) = (end, rank),
                Fetched::Nothing => {
                    self.drained = true;
                    return Ok(None);
                }
                Fetched::Unknown => return self.unknown(),
            }
        }
    }

    fn unknown(&mut self) -> Result<Option<Item>, ReadError> {
        self.ended = true;
        Err(ReadError::UnknownRun)
    }

    /// What comes next, if it is known and read without waiting.
    fn at_hand(&self) -> Option<Fetched> {
        let step = self.shared.catalogue().step(self.run.0, self.position, self.rank)?;
        let (entry, file) = match step {
            Step::Entry(entry, file) if entry.kind != EntryKind::Damaged && !self.filter.passes_over(&entry) => {
                (entry, file?)
            }
            step => return simple(step, self.position, &self.filter),
        };
        if entry.payload_bytes > INLINE {
            return None;
        }
        let place = fetch::place(&self.shared, &entry);
        let loaded = load_cached(&file, place, entry.offset, entry.body_len);
        if matches!(loaded, Loaded::NotCached) {
            return None;
        }
        Some(item_of(&self.shared, &entry, loaded, self.position))
    }

    async fn read_ahead(&mut self) -> Result<(), ReadError> {
        let (shared, run, filter) = (self.shared.clone(), self.run.0, self.filter);
        let (position, rank) = (self.position, self.rank);
        self.ahead = blocking(move || fetch(&shared, run, position, rank, &filter)).await?;
        Ok(())
    }

    /// Waits until [`next`](Self::next) has something: `true`; or until it never will again because the Finish was
    /// returned or the run was deleted or the store closed: `false`.
    pub async fn changed(&mut self) -> bool {
        if self.ended {
            return false;
        }
        if !self.drained {
            return true;
        }
        let more = self.watch.changed().await;
        self.drained = false;
        more
    }
}

/// A step that needs no reading.
fn simple(step: Step, position: u64, filter: &Filter) -> Option<Fetched> {
    Some(match step {
        Step::Unknown => Fetched::Unknown,
        Step::Expired(through) => Fetched::gap(expired(position, through)),
        Step::Hole(end) => Fetched::gap(damaged(position, end - 1)),
        Step::End(None) => Fetched::Nothing,
        Step::End(Some(finish)) => Fetched::Item(Box::new(Item::Finish(FinishRun::clone(&finish))), position, 1),
        Step::Entry(entry, _) if entry.kind == EntryKind::Damaged => {
            Fetched::gap(damaged(position.max(entry.first), entry.end - 1))
        }
        Step::Entry(entry, _) if filter.passes_over(&entry) => Fetched::Skipped(entry.end, 0),
        Step::Entry(..) => return None,
    })
}

impl Filter {
    /// Whether no line of the block is wanted. Gaps are always told.
    fn passes_over(&self, entry: &Entry) -> bool {
        entry.kind == EntryKind::Block
            && ((self.level_mask != 0 && self.level_mask & entry.level_mask == 0)
                || (self.source_mask != 0 && self.source_mask & entry.source_mask == 0)
                || self.since_unix_nanos.is_some_and(|since| entry.max_time < since)
                || self.until_unix_nanos.is_some_and(|until| entry.min_time >= until))
    }
}
