//! Lines that were stored and turn out to be unreadable when somebody reads them. Rows say what was written; this is what a
//! reader could not have. In memory: after a restart, the next reader meets the damage again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use otto_proto::v1::LogGap;
use otto_proto::v1::log_gap::Reason;

use crate::rows::damaged;
use crate::types::RunInfo;

/// Runs that are remembered.
const RUNS: usize = 10_000;
/// Gaps that a run's information holds.
const GAPS: usize = 1_000;

/// By run: first and last sequence of what cannot be read.
#[derive(Default)]
pub(crate) struct Unreadable(Mutex<HashMap<u64, BTreeMap<u64, u64>>>);

impl Unreadable {
    /// A reader of this run met a gap.
    pub(crate) fn met(&self, run: u64, gap: &LogGap) {
        if gap.reason() != Reason::Damaged || gap.last_sequence < gap.first_sequence {
            return;
        }
        let mut runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if runs.len() >= RUNS && !runs.contains_key(&run) {
            return;
        }
        let ranges = runs.entry(run).or_default();
        let (mut first, mut last) = (gap.first_sequence, gap.last_sequence);
        // Readers may have begun in the middle of it.
        while let Some((&from, &to)) = ranges.range(..=last).next_back().filter(|(_, to)| **to >= first) {
            ranges.remove(&from);
            (first, last) = (first.min(from), last.max(to));
        }
        ranges.insert(first, last);
    }

    /// Takes what cannot be read from what is said to be there.
    pub(crate) fn taken_from(&self, mut info: RunInfo) -> RunInfo {
        let runs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(ranges) = runs.get(&info.id.0) else { return info };
        let known = std::mem::take(&mut info.gaps);
        let mut gaps = known.clone();
        for (&first, &last) in ranges {
            let overlaps = known.iter().filter(|gap| gap.last_sequence >= gap.first_sequence).map(|gap| {
                let (from, to) = (gap.first_sequence.max(first), gap.last_sequence.min(last));
                (to + 1).saturating_sub(from)
            });
            let lines = (last + 1 - first).saturating_sub(overlaps.sum());
            if lines > 0 {
                info.lines = info.lines.saturating_sub(lines);
                info.missing_lines += lines;
                gaps.push(damaged(first, last));
            }
        }
        gaps.sort_by_key(|gap| gap.first_sequence);
        gaps.truncate(GAPS);
        RunInfo { gaps, ..info }
    }
}
