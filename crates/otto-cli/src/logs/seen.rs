//! Which lines were printed: after a break, a log server may send some again that it has not given a token for.

use std::collections::{HashMap, HashSet};

use otto_proto::v1::ReadLogsResponse;

/// Events remembered; a log has few.
const EVENTS: usize = 10_000;

/// Where each run stands.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Run → its last sequence, lines and gaps alike.
    runs: HashMap<(String, String), u64>,
    events: HashSet<String>,
}

impl Seen {
    /// Takes away what came before.
    pub(super) fn filter(&mut self, part: &mut ReadLogsResponse) {
        let runs = &mut self.runs;
        // Gaps are judged by what came before this part: its lines may be on both sides of them.
        let mut gaps = Vec::new();
        part.gaps.retain(|gap| {
            let Some(missing) = &gap.gap else { return false };
            let run = (gap.worker_id.clone(), gap.run_id.clone());
            let new = runs.get(&run).is_none_or(|last| missing.first_sequence > *last);
            gaps.push((run, missing.last_sequence.max(missing.first_sequence)));
            new
        });
        part.lines.retain(|line| {
            // Lines without a number cannot be told apart.
            if line.sequence == 0 {
                return true;
            }
            let run = (line.worker_id.clone(), line.run_id.clone());
            let last = runs.entry(run).or_default();
            let new = line.sequence > *last;
            *last = line.sequence.max(*last);
            new
        });
        for (run, last) in gaps {
            let known = runs.entry(run).or_default();
            *known = last.max(*known);
        }
        part.events.retain(|event| {
            if self.events.len() >= EVENTS {
                self.events.clear();
            }
            event.event_id.is_empty() || self.events.insert(event.event_id.clone())
        });
    }
}

#[cfg(test)]
mod tests {
    use otto_proto::v1::{LineGap, LogGap, LogLine, WorkerEvent};

    use super::*;

    fn line(run: &str, sequence: u64) -> LogLine {
        LogLine { worker_id: "w".into(), run_id: run.into(), sequence, ..LogLine::default() }
    }

    fn gap(first_sequence: u64, last_sequence: u64) -> LineGap {
        let gap = Some(LogGap { first_sequence, last_sequence, ..LogGap::default() });
        LineGap { worker_id: "w".into(), run_id: "a".into(), gap }
    }

    #[test]
    fn what_comes_again_is_left_out() {
        let mut seen = Seen::default();
        let event = WorkerEvent { event_id: "e".into(), ..WorkerEvent::default() };
        let part = ReadLogsResponse {
            lines: vec![line("a", 1), line("a", 2), line("b", 1), line("a", 6)],
            gaps: vec![gap(3, 5)],
            events: vec![event],
            ..ReadLogsResponse::default()
        };
        let mut first = part.clone();
        seen.filter(&mut first);
        assert_eq!(first, part);
        let mut again = part.clone();
        again.lines.push(line("a", 7));
        again.gaps.push(gap(8, 8));
        seen.filter(&mut again);
        assert_eq!(again.lines, [line("a", 7)]);
        assert_eq!(again.gaps, [gap(8, 8)]);
        assert!(again.events.is_empty());
    }
}
