//! A bounded piece of the log of one or several runs, forwards or backwards from a position, filtered. Runs are merged by
//! the times of their lines; the order within a run is never changed.
//!
//! The work of one call is bounded too: after [`Budget`] it ends where it is, and the caller goes on from the position it
//! is given.

mod lane;

use std::collections::BinaryHeap;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use otto_log_store::{ReadError, RunInfo, Store};
use otto_proto::v1::{LineGap, LogLine};

use super::position::Position;
use crate::query::request::Matcher;
use lane::Lane;

/// Where to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// Older lines to newer ones.
    Forward,
    /// The last lines before the position.
    Backward,
}

/// What is wanted.
pub(super) struct Wanted {
    pub(super) runs: Vec<RunInfo>,
    /// Forwards: where to begin. Backwards: the lines before it. `None`: the start, or the end.
    pub(super) from: Option<Position>,
    /// Forwards: no line after this sequence.
    pub(super) to_sequence: Option<u64>,
    pub(super) direction: Direction,
    /// At most so many lines.
    pub(super) limit: usize,
    pub(super) matcher: Matcher,
}

/// A piece of the log, older lines first.
#[derive(Debug, Default)]
pub(super) struct Window {
    pub(super) lines: Vec<LogLine>,
    pub(super) gaps: Vec<LineGap>,
    /// Before the first line.
    pub(super) before: Position,
    /// After the last line.
    pub(super) after: Position,
    /// There may be (matching) lines before it.
    pub(super) has_before: bool,
    /// There may be (matching) lines after it.
    pub(super) has_after: bool,
    /// Lines looked at.
    pub(super) searched: u64,
}

/// What one call may spend.
struct Budget {
    deadline: Instant,
    bytes: u64,
    searched: u64,
}

/// Time after which a search answers with what it has.
const MAX_TIME: Duration = Duration::from_millis(1500);
/// Bytes of lines looked at.
const MAX_SEARCHED: u64 = 512 << 20;
/// Bytes of messages returned.
const MAX_RETURNED: usize = 4 << 20;

impl Budget {
    fn is_spent(&self) -> bool {
        self.bytes >= MAX_SEARCHED || Instant::now() >= self.deadline
    }
}

/// Reads a window, on a thread of its own: a search can keep a processor busy, and those that serve have others waiting.
pub(super) async fn read(store: &Store, wanted: Arc<Wanted>) -> Result<Window, ReadError> {
    let (store, runtime) = (store.clone(), tokio::runtime::Handle::current());
    let task = tokio::task::spawn_blocking(move || runtime.block_on(search(&store, &wanted)));
    task.await.unwrap_or_else(|error| Err(ReadError::Io(error.to_string())))
}

async fn search(store: &Store, wanted: &Wanted) -> Result<Window, ReadError> {
    let mut budget = Budget { deadline: Instant::now() + MAX_TIME, bytes: 0, searched: 0 };
    let chunk = (wanted.limit * 2 / wanted.runs.len().max(1)).clamp(16, wanted.limit.max(16));
    let mut lanes: Vec<Lane<'_>> = wanted
        .runs
        .iter()
        .map(|run| Lane::new(run, wanted.direction, wanted.from.as_ref(), wanted.to_sequence, chunk))
        .collect();
    let taken = merge(store, &mut lanes, wanted, &mut budget).await?;

    let (mut edges, mut starts) = (Position::default(), Position::default());
    let mut more = false;
    let mut gaps = Vec::new();
    for lane in &mut lanes {
        edges.runs.insert(lane.run.id, lane.edge());
        starts.runs.insert(lane.run.id, lane.start);
        more |= !lane.is_done();
        lane.gaps_passed(&mut gaps);
    }
    let mut window = Window { gaps, searched: budget.searched, ..Window::default() };
    match wanted.direction {
        Direction::Forward => {
            window.has_before = lanes.iter().any(|lane| lane.start > 1);
            window.has_after = more;
            (window.before, window.after) = (starts, edges);
            window.lines = taken.into();
        }
        Direction::Backward => {
            window.has_before = more;
            window.has_after = lanes.iter().any(|lane| lane.start < lane.run.expected);
            (window.before, window.after) = (edges, starts);
            window.lines = taken.into_iter().rev().collect();
        }
    }
    Ok(window)
}

/// Takes lines from the lanes, the one that is next by time first, until there are enough or the budget is spent.
async fn merge(
    store: &Store,
    lanes: &mut [Lane<'_>],
    wanted: &Wanted,
    budget: &mut Budget,
) -> Result<VecDeque<LogLine>, ReadError> {
    let mut heap: BinaryHeap<(i128, usize)> =
        (0..lanes.len()).map(|index| (lanes[index].rank(), usize::MAX - index)).collect();
    let mut taken = VecDeque::new();
    let mut bytes = 0;
    while let Some((_, reversed)) = heap.pop() {
        let lane = &mut lanes[usize::MAX - reversed];
        if let Some(line) = lane.lines.pop_front() {
            bytes += line.message.len() + 64;
            taken.push_back(line);
            if taken.len() >= wanted.limit || bytes >= MAX_RETURNED {
                break;
            }
        } else if lane.is_done() {
            continue;
        } else if budget.is_spent() {
            // What comes next in this lane is not known, so nothing can follow.
            break;
        } else {
            lane.load(store, &wanted.matcher, budget).await?;
        }
        heap.push((lane.rank(), reversed));
    }
    Ok(taken)
}
