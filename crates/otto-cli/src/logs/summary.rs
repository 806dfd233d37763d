//! "complete, 12,345 of 12,345 lines", or exactly what is missing and why.

use otto_proto::v1::log_gap::Reason;
use otto_proto::v1::{LogGap, LogRun, LogWorker};

use crate::output::thousands;

/// One sentence about a run.
pub(super) struct Line {
    pub(super) text: String,
    /// Something is missing.
    pub(super) fault: bool,
}

/// A sentence about each run that is not complete, and one about all that are.
pub(super) fn lines(workers: &[LogWorker], ended: bool) -> Vec<Line> {
    let mut all = Vec::new();
    let (mut complete, mut lines) = (Vec::new(), 0);
    for worker in workers {
        for run in &worker.runs {
            if run.complete {
                complete.push(worker.worker_id.as_str());
                lines += run.lines;
            } else {
                all.push(about(&worker.worker_id, run, ended));
            }
        }
    }
    let lines = thousands(lines);
    let text = match (complete.as_slice(), all.is_empty()) {
        ([], _) => return all,
        ([_], true) => format!("complete, {lines} of {lines} lines"),
        ([worker], false) => format!("{worker}: complete, {lines} of {lines} lines"),
        (many, true) => format!("complete, {lines} of {lines} lines of {} logs", many.len()),
        (many, false) => format!("{} other logs are complete, {lines} of {lines} lines", many.len()),
    };
    all.push(Line { text, fault: false });
    all
}

fn about(worker: &str, run: &LogRun, ended: bool) -> Line {
    let lines = thousands(run.lines);
    let mut parts = Vec::new();
    match &run.finish {
        Some(finish) => parts.push(format!("{lines} of {} lines", thousands(finish.last_sequence))),
        None if ended => parts.push(format!("{lines} lines, and its agent never said that it ended")),
        None => parts.push(format!("{lines} lines so far")),
    }
    parts.extend(run.gaps.iter().map(missing));
    Line { text: format!("{worker}: {}", parts.join("; ")), fault: ended || !run.gaps.is_empty() }
}

/// "lines 5 to 7 are missing: the server lost them".
pub(super) fn missing(gap: &LogGap) -> String {
    let which = match (gap.first_sequence, gap.last_sequence) {
        (first, 0) => format!("lines from {} are missing", thousands(first)),
        (first, last) if first == last => format!("line {} is missing", thousands(first)),
        (first, last) => format!("lines {} to {} are missing", thousands(first), thousands(last)),
    };
    let why = match gap.reason() {
        Reason::Unspecified => "for no known reason",
        Reason::ServerLost => "the log server lost them",
        Reason::SpoolFull => "the agent's spool was full",
        Reason::AgentLost => "the agent was killed",
        Reason::Refused => "they were refused",
        Reason::Damaged => "they are damaged on disk",
        Reason::Expired => "retention removed them",
    };
    if gap.message.is_empty() { format!("{which}: {why}") } else { format!("{which}: {why} ({})", gap.message) }
}

#[cfg(test)]
mod tests {
    use otto_proto::v1::FinishRun;

    use super::*;

    fn run(lines: u64, last: Option<u64>, gaps: Vec<LogGap>) -> LogRun {
        let finish = last.map(|last_sequence| FinishRun { last_sequence, ..FinishRun::default() });
        let complete = last == Some(lines) && gaps.is_empty();
        LogRun { lines, finish, gaps, complete, ..LogRun::default() }
    }

    #[test]
    fn it_says_complete_or_what_is_missing() {
        let complete = || run(12_345, Some(12_345), vec![]);
        let worker = |runs| LogWorker { worker_id: "w".into(), runs, ..LogWorker::default() };
        let texts = |workers: &[LogWorker]| lines(workers, true).into_iter().map(|line| line.text).collect::<Vec<_>>();
        assert_eq!(texts(&[worker(vec![complete()])]), ["complete, 12,345 of 12,345 lines"]);
        let two = [worker(vec![complete()]), worker(vec![complete()])];
        assert_eq!(texts(&two), ["complete, 24,690 of 24,690 lines of 2 logs"]);
        assert!(texts(&[]).is_empty());
        let gap = LogGap { first_sequence: 3, last_sequence: 5, reason: Reason::SpoolFull.into(), ..LogGap::default() };
        let line = about("w", &run(7, Some(10), vec![gap]), true);
        assert_eq!(line.text, "w: 7 of 10 lines; lines 3 to 5 are missing: the agent's spool was full");
        assert!(line.fault);
    }

    #[test]
    fn a_live_log_is_no_fault() {
        assert!(!about("w", &run(7, None, vec![]), false).fault);
        assert!(about("w", &run(7, None, vec![]), true).fault);
    }
}
