//! A place in the logs of a task: of each run the first sequence that lies after it. For clients it is the same opaque text
//! as a stream's event ids and the `resume_token` of gRPC, so that one goes on where another ended.

use std::collections::BTreeMap;

use otto_log_store::{ReadError, RunId, RunInfo, Store};

use crate::query::token::{self, Token, check_of};

/// What the text was given for, and is good for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Question<'a> {
    pub(super) task_id: &'a str,
    /// Empty: all workers.
    pub(super) worker_id: &'a str,
    /// Empty: all runs.
    pub(super) run_id: &'a str,
}

/// A place in the logs of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// A run that is not here lies after the position as a whole.
    pub(super) runs: BTreeMap<RunId, u64>,
    /// Number of the first event of the task that lies after it.
    pub(super) event: u64,
}

impl Position {
    /// Writes it for a client. `runs`: those that were asked about; those before the first of them stay left out.
    pub(super) fn encode(&self, question: Question<'_>, runs: &[RunInfo]) -> String {
        let positions = runs.iter().filter_map(|run| {
            let next = *self.runs.get(&run.id)?;
            Some(token::Position { run: run.id, check: check_of(&run.key), next })
        });
        let token =
            Token { event: self.event, floor: runs.first().map_or(0, |run| run.id.0), positions: positions.collect() };
        token.encode(question.task_id, question.worker_id, question.run_id)
    }

    /// Reads a text of ours; `None`: it is something else, or was given for another question. `runs` are left with those
    /// that it does not leave out.
    pub(super) fn decode(text: &str, question: Question<'_>, runs: &mut Vec<RunInfo>) -> Option<Self> {
        let token = Token::decode(text, question.task_id, question.worker_id, question.run_id)?;
        // Numbers of runs are the store's: a place in another one leaves out nothing here.
        if token.fits(runs) {
            runs.retain(|run| run.id.0 >= token.floor);
        }
        let mut position = Self { runs: BTreeMap::new(), event: token.event };
        for run in runs {
            if let Some(next) = token.next_of(run.id, &run.key) {
                // 0: it was shown to its end.
                position.runs.insert(run.id, if next == 0 { run.expected } else { next });
            }
        }
        Some(position)
    }
}

/// The number after that of the last event of a task, looked for from `known` on.
pub(super) async fn next_event(store: &Store, task_id: &str, known: u64) -> Result<u64, ReadError> {
    let mut next = known;
    while let Some((last, _)) = store.events(task_id, next).await?.last() {
        next = last + 1;
    }
    Ok(next)
}

#[cfg(test)]
mod tests {
    use otto_log_store::RunKey;

    use super::*;

    fn run(id: u64, expected: u64) -> RunInfo {
        RunInfo {
            id: RunId(id),
            key: RunKey { task_id: "t".into(), worker_id: format!("w{id}"), run_id: "r".into() },
            metadata: None,
            expected,
            lines: expected - 1,
            bytes: 0,
            gaps: Vec::new(),
            missing_lines: 0,
            open_gap: false,
            finish: None,
            first_time_unix_nanos: None,
            last_time_unix_nanos: None,
            opened_at_unix_nanos: 0,
            active_at_unix_nanos: 0,
        }
    }

    #[test]
    fn a_position_survives_its_text_and_fits_only_its_question() {
        let question = Question { task_id: "t", worker_id: "", run_id: "" };
        let runs = [run(3, 100), run(4, 7)];
        let position = Position { runs: [(RunId(3), 50), (RunId(4), 7)].into(), event: 9 };
        let text = position.encode(question, &runs);
        // A run before the first asked about stays left out, a new one is read from its start.
        let mut now = vec![run(1, 5), run(3, 200), run(4, 9), run(8, 2)];
        assert_eq!(Position::decode(&text, question, &mut now), Some(position));
        assert_eq!(now.iter().map(|run| run.id.0).collect::<Vec<_>>(), [3, 4, 8]);
        assert_eq!(Position::decode(&text, Question { task_id: "u", ..question }, &mut now), None);
        assert_eq!(Position::decode("nonsense", question, &mut now), None);
        // The same runs by other numbers, in a store that was made anew.
        let mut anew = vec![RunInfo { id: RunId(1), ..run(3, 5) }, RunInfo { id: RunId(2), ..run(4, 5) }];
        let position = Position::decode(&text, question, &mut anew).unwrap();
        assert_eq!((anew.len(), position.runs.len()), (2, 0));
    }
}
