//! How a worker and its logs are, in words.

use otto_proto::v1::{FailureClass, LogRun, WorkerEvent, log_gap, worker_event::Type};

use super::failure_class;

/// A worker's state, drawn from its events and its runs.
pub(super) struct Told {
    /// queued, created, running, waiting, retrying, succeeded, failed, stopped or unknown.
    pub(super) name: &'static str,
    /// Why, where there is something to say.
    pub(super) message: Option<String>,
    /// What that is about.
    pub(super) class: Option<&'static str>,
    /// No more output is expected.
    pub(super) ended: bool,
}

/// The scaler's latest word counts; without one, what the log itself tells.
pub(super) fn of_worker(runs: &[LogRun], events: &[&WorkerEvent]) -> Told {
    let last = events.iter().rev().find(|event| named(event.r#type()).is_some());
    let finish = runs.last().and_then(|run| run.finish.as_ref());
    if let Some(event) = last {
        let (name, ended) = named(event.r#type()).unwrap_or(("unknown", false));
        // The log's end is often here before the scaler's event.
        if ended || finish.is_none() {
            let event = trouble_since(events).unwrap_or(event);
            return Told { name, message: reason(event), class: failure_class(event.failure_class()), ended };
        }
    }
    match finish {
        Some(finish) if !finish.error_message.is_empty() => {
            Told { name: "failed", message: Some(finish.error_message.clone()), class: None, ended: true }
        }
        Some(finish) => match (finish.exit_code, finish.signal) {
            (_, Some(signal)) => {
                Told { name: "failed", message: Some(format!("ended by signal {signal}")), class: None, ended: true }
            }
            (Some(0), None) => Told { name: "succeeded", message: None, class: None, ended: true },
            (Some(code), None) => {
                Told { name: "failed", message: Some(format!("exit code {code}")), class: None, ended: true }
            }
            (None, None) => Told { name: "ended", message: None, class: None, ended: true },
        },
        None if runs.iter().any(|run| run.connected) => {
            Told { name: "running", message: None, class: None, ended: false }
        }
        None => Told { name: "unknown", message: None, class: None, ended: false },
    }
}

/// What is wrong with the worker by the scaler's latest word, which says nothing of its state.
fn trouble_since<'a>(events: &[&'a WorkerEvent]) -> Option<&'a WorkerEvent> {
    let since = events.iter().rev().take_while(|event| named(event.r#type()).is_none());
    let last = since.copied().find(|event| event.r#type() == Type::Troubled);
    last.filter(|event| event.failure_class() != FailureClass::Unspecified)
}

fn named(kind: Type) -> Option<(&'static str, bool)> {
    match kind {
        Type::Queued => Some(("queued", false)),
        Type::Created => Some(("created", false)),
        Type::Started => Some(("running", false)),
        Type::Succeeded => Some(("succeeded", true)),
        // A retry is another worker (the attempt is part of its id): this one has failed.
        Type::Failed | Type::Retrying => Some(("failed", true)),
        Type::Stopped => Some(("stopped", true)),
        Type::Waiting => Some(("waiting", false)),
        Type::Unspecified | Type::TaskEnded | Type::EventLost | Type::Troubled => None,
    }
}

fn reason(event: &WorkerEvent) -> Option<String> {
    if !event.message.is_empty() {
        return Some(event.message.clone());
    }
    match (event.signal, event.exit_code) {
        (Some(signal), _) => Some(format!("ended by signal {signal}")),
        (None, Some(code)) if code != 0 => Some(format!("exit code {code}")),
        _ => None,
    }
}

/// "complete, 12,345 of 12,345 lines", or exactly what is missing.
pub(super) fn run_summary(run: &LogRun, worker_ended: bool) -> String {
    let lines = grouped(run.lines);
    let missing = missing(run);
    match &run.finish {
        Some(_) if run.complete && run.lines == 0 => "complete, nothing was printed".to_owned(),
        Some(finish) if run.complete => format!("complete, {lines} of {} lines", grouped(finish.last_sequence)),
        Some(finish) => format!("incomplete, {lines} of {} lines{missing}", grouped(finish.last_sequence)),
        None if run.connected => format!("live, {} so far{missing}", counted(run.lines)),
        None if worker_ended => {
            format!("{} stored, its end was never told, more may be missing{missing}", counted(run.lines))
        }
        None => format!("not connected now, {} so far{missing}", counted(run.lines)),
    }
}

fn missing(run: &LogRun) -> String {
    let mut text = String::new();
    for gap in run.gaps.iter().take(3) {
        let range = match gap.last_sequence {
            0 => format!("lines from {} on", grouped(gap.first_sequence)),
            last if last == gap.first_sequence => format!("line {}", grouped(last)),
            last => format!("lines {} to {}", grouped(gap.first_sequence), grouped(last)),
        };
        let why = match gap.reason() {
            log_gap::Reason::Unspecified => "missing",
            log_gap::Reason::ServerLost => "lost by the log server",
            log_gap::Reason::SpoolFull => "dropped, the worker's buffer was full",
            log_gap::Reason::AgentLost => "lost with the worker's agent",
            log_gap::Reason::Refused => "refused by the log server",
            log_gap::Reason::Damaged => "damaged on disk",
            log_gap::Reason::Expired => "removed by retention",
        };
        text.push_str(&format!("; {range} {why}"));
        if !gap.message.is_empty() {
            text.push_str(&format!(" ({})", gap.message));
        }
    }
    if run.gaps.len() > 3 {
        text.push_str(&format!("; and {} more gaps", grouped(run.gaps.len() as u64 - 3)));
    }
    text
}

/// Of all runs, or why there is none.
pub(super) fn worker_summary(runs: &[&str], told: &Told) -> String {
    // These two say no more than the state does.
    let class = told.class.filter(|class| !["exited", "stopped"].contains(class));
    let about = class.map_or_else(String::new, |class| format!(" ({})", class.replace('_', " ")));
    let yet = if told.ended { "" } else { " yet" };
    match (runs, &told.message) {
        ([], Some(message)) => format!("no log{yet}: {}{about}: {message}", told.name),
        ([], None) => format!("no log{yet}: {}{about}", told.name),
        ([one], _) => (*one).to_owned(),
        ([.., last], _) => format!("{} runs; the last: {last}", runs.len()),
    }
}

fn counted(lines: u64) -> String {
    if lines == 1 { "1 line".to_owned() } else { format!("{} lines", grouped(lines)) }
}

/// 12345 → "12,345".
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use otto_proto::v1::{FinishRun, LogGap};

    use super::*;

    fn run(lines: u64, finish: Option<u64>, gaps: Vec<LogGap>) -> LogRun {
        LogRun {
            lines,
            last_sequence: finish.unwrap_or(lines),
            complete: gaps.is_empty() && finish == Some(lines),
            finish: finish.map(|last_sequence| FinishRun { last_sequence, exit_code: Some(3), ..FinishRun::default() }),
            gaps,
            ..LogRun::default()
        }
    }

    fn gap(first: u64, last: u64, reason: log_gap::Reason) -> LogGap {
        LogGap { first_sequence: first, last_sequence: last, reason: reason.into(), message: String::new() }
    }

    #[test]
    fn a_log_says_whether_it_is_complete_or_what_is_missing() {
        assert_eq!(run_summary(&run(12_345, Some(12_345), vec![]), true), "complete, 12,345 of 12,345 lines");
        assert_eq!(run_summary(&run(0, Some(0), vec![]), true), "complete, nothing was printed");
        let gaps = vec![gap(1, 10, log_gap::Reason::Expired), gap(50, 50, log_gap::Reason::Damaged)];
        assert_eq!(
            run_summary(&run(989, Some(1000), gaps), true),
            "incomplete, 989 of 1,000 lines; lines 1 to 10 removed by retention; line 50 damaged on disk"
        );
        let many = (1..=5).map(|n| gap(n * 10, n * 10, log_gap::Reason::Refused)).collect();
        assert!(run_summary(&run(45, Some(50), many), true).ends_with("; and 2 more gaps"));
        assert_eq!(
            run_summary(&run(7, None, vec![gap(8, 0, log_gap::Reason::AgentLost)]), true),
            "7 lines stored, its end was never told, more may be missing; lines from 8 on lost with the worker's agent"
        );
        assert_eq!(run_summary(&LogRun { connected: true, ..run(1, None, vec![]) }, false), "live, 1 line so far");
    }

    #[test]
    fn the_scalers_word_and_the_logs_end_make_the_state() {
        let event = |kind: Type, message: &str| WorkerEvent {
            r#type: kind.into(),
            message: message.into(),
            ..WorkerEvent::default()
        };
        let (started, waiting) = (event(Type::Started, ""), event(Type::Waiting, "image cannot be pulled: x"));
        let told = of_worker(&[], &[&waiting]);
        assert_eq!((told.name, told.ended), ("waiting", false));
        assert_eq!(worker_summary(&[], &told), "no log yet: waiting: image cannot be pulled: x");
        assert_eq!(of_worker(&[run(1, None, vec![])], &[&started]).name, "running");
        let away = WorkerEvent {
            failure_class: FailureClass::NodeLost.into(),
            ..event(Type::Troubled, "node n cannot be reached")
        };
        let told = of_worker(&[run(1, None, vec![])], &[&started, &away]);
        assert_eq!((told.name, told.class, told.ended), ("running", Some("node_lost"), false));
        assert_eq!(told.message.as_deref(), Some("node n cannot be reached"));
        let back = event(Type::Troubled, "it is heard of again");
        assert_eq!(of_worker(&[], &[&started, &away, &back]).class, None);
        assert_eq!(of_worker(&[], &[&started, &away, &event(Type::Failed, "x")]).message.as_deref(), Some("x"));
        let told = of_worker(&[run(1, Some(1), vec![])], &[&started]);
        assert_eq!((told.name, told.message.as_deref(), told.ended), ("failed", Some("exit code 3"), true));
        let stopped = event(Type::Stopped, "");
        assert_eq!(of_worker(&[run(1, Some(1), vec![])], &[&started, &stopped]).name, "stopped");
        assert_eq!(of_worker(&[run(1, None, vec![])], &[]).name, "unknown");
    }

    #[test]
    fn digits_are_grouped() {
        assert_eq!([0, 999, 1000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
