use otto_proto::block::{DecodedBlock, LineRef};
use otto_proto::v1::{FinishRun, LogGap};

use crate::{ReadError, RunId};

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

/// Reads one run in order and follows it, without losing or repeating a line. Never slows a writer; holds no more than
/// a few blocks. Dropping a pending future of it loses nothing.
#[derive(Debug)]
pub struct Cursor {
    run: RunId,
    filter: Filter,
}

impl Cursor {
    pub(crate) fn new(run: RunId) -> Self {
        Self { run, filter: Filter::default() }
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

    /// Sequence after what was returned last.
    #[must_use]
    pub fn position(&self) -> u64 {
        1
    }

    /// The next item; `None` if there is none now: then wait for [`changed`](Self::changed).
    ///
    /// # Errors
    /// [`ReadError::UnknownRun`] if it was deleted; otherwise the disk cannot be read, and the call can be repeated.
    pub async fn next(&mut self) -> Result<Option<Item>, ReadError> {
        Err(ReadError::UnknownRun)
    }

    /// Waits until [`next`](Self::next) has something: `true`; or until it never will again because the Finish was
    /// returned or the run was deleted or the store closed: `false`.
    pub async fn changed(&mut self) -> bool {
        false
    }
}
