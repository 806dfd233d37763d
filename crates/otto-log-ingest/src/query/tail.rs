//! Where "the last N lines" begin.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};

use otto_log_store::{From, Item, ReadError, RunId, RunInfo, Store};

use super::search::Search;

/// Finds the sequence of each run from which on the runs together have `count` wanted lines, the newest by their time.
/// Reads each run from its end, in growing steps, only as far as needed.
pub(super) async fn starts(
    store: &Store,
    runs: &[RunInfo],
    count: usize,
    search: &Search,
) -> Result<HashMap<RunId, u64>, ReadError> {
    let mut newest_first: Vec<&RunInfo> = runs.iter().collect();
    newest_first.sort_by_key(|run| Reverse(run.last_time_unix_nanos));
    // The newest `count` lines so far, the oldest of them on top.
    let mut kept: BinaryHeap<Reverse<(i64, RunId, u64)>> = BinaryHeap::new();
    for run in newest_first {
        let Some(last) = run.last_time_unix_nanos else { continue };
        if kept.len() >= count && kept.peek().is_some_and(|Reverse((oldest, ..))| last < *oldest) {
            continue;
        }
        for (time, sequence) in last_lines(store, run, count, search).await? {
            kept.push(Reverse((time, run.id, sequence)));
            if kept.len() > count {
                kept.pop();
            }
        }
    }
    let mut starts: HashMap<RunId, u64> = runs.iter().map(|run| (run.id, run.expected)).collect();
    for Reverse((_, run, sequence)) in kept {
        starts.entry(run).and_modify(|start| *start = sequence.min(*start));
    }
    Ok(starts)
}

/// Time (never falling) and sequence of the last `count` wanted lines of a run.
async fn last_lines(
    store: &Store,
    run: &RunInfo,
    count: usize,
    search: &Search,
) -> Result<VecDeque<(i64, u64)>, ReadError> {
    let mut window = if search.matcher().is_open() { count as u64 } else { (count as u64 * 4).max(1024) };
    loop {
        let mut found = VecDeque::new();
        let mut time = i64::MIN;
        let mut cursor = store.cursor(run.id, From::Tail(window)).with_filter(search.matcher().filter());
        while let Some(item) = cursor.next().await? {
            let Item::Block(block) = item else { continue };
            if block.from >= run.expected {
                break;
            }
            let expected = run.expected;
            (time, found) = search
                .look(block, move |block, matcher| {
                    for line in block.lines() {
                        if line.sequence < expected && matcher.matches(&line) {
                            time = time.max(line.attributes.time_unix_nanos);
                            found.push_back((time, line.sequence));
                            if found.len() > count {
                                found.pop_front();
                            }
                        }
                    }
                    (time, found)
                })
                .await?;
        }
        if found.len() >= count || window >= run.lines {
            return Ok(found);
        }
        window = window.saturating_mul(8);
    }
}
