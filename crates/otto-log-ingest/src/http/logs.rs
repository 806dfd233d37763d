//! Lines as JSON, a window at a time.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use http::Uri;
use otto_log_store::RunInfo;
use serde::Serialize;

use super::Shared;
use super::model::{Gap, Line};
use super::params::Params;
use super::path::{TaskPath, WorkerPath};
use super::position::{self, Position, Question};
use super::problem::Problem;
use super::reply::json;
use super::window::{self, Direction, Wanted};
use crate::query::request::Matcher;

/// Lines of an answer if nothing else is asked for.
const DEFAULT_LIMIT: u64 = 1_000;
/// Most lines of one answer.
const MAX_LIMIT: u64 = 10_000;

const OF_TASK: &[&str] = &["limit", "tail", "before", "after", "q", "regex", "level", "source", "since", "until"];
const OF_WORKER: &[&str] =
    &["run", "from", "to", "limit", "tail", "before", "after", "q", "regex", "level", "source", "since", "until"];

/// Answer of the `logs` endpoints.
#[derive(Serialize)]
struct Logs<'a> {
    task_id: &'a str,
    lines: Vec<Line<'a>>,
    gaps: Vec<Gap<'a>>,
    /// For `before`: the lines before these.
    before: String,
    /// For `after`, here and in a stream: what comes after these.
    after: String,
    has_before: bool,
    has_after: bool,
    /// Where one run is read: the sequence to go on `from`; absent at its end.
    next_from: Option<u64>,
    searched_lines: u64,
}

/// `GET /api/v1/tasks/{task}/logs`: all workers, merged by time.
pub(super) async fn of_task(
    State(shared): State<Shared>,
    TaskPath(task_id): TaskPath,
    uri: Uri,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, OF_TASK)?;
    super::listing::known_task(&shared, &task_id).await?;
    let runs = shared.app.store.runs(&task_id).await?;
    answer(&shared, Question { task_id: &task_id, worker_id: "", run_id: "" }, runs, &params).await
}

/// `GET /api/v1/tasks/{task}/workers/{worker}/logs`
pub(super) async fn of_worker(
    State(shared): State<Shared>,
    WorkerPath(task_id, worker_id): WorkerPath,
    uri: Uri,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, OF_WORKER)?;
    let run_id = params.one("run")?;
    let mut runs = super::worker_runs(&shared, &task_id, &worker_id, run_id).await?;
    // Sequences are of one run: without `run` they mean the newest.
    if params.one("from")?.is_some() || params.one("to")?.is_some() {
        runs.drain(..runs.len().saturating_sub(1));
    }
    let question = Question { task_id: &task_id, worker_id: &worker_id, run_id: run_id.unwrap_or_default() };
    answer(&shared, question, runs, &params).await
}

async fn answer(
    shared: &Shared,
    question: Question<'_>,
    mut runs: Vec<RunInfo>,
    params: &Params,
) -> Result<Response, Problem> {
    let matcher = Matcher::new(&params.filter()?)?;
    let limit = params.number("limit", 1, MAX_LIMIT)?;
    let tail = params.number("tail", 1, MAX_LIMIT)?;
    let from = params.number("from", 0, u64::MAX)?;
    let to = params.number("to", 1, u64::MAX)?;
    let before = position(params, "before", question, &mut runs)?;
    let after = position(params, "after", question, &mut runs)?;
    let conflict = |one: &'static str, other: &str| {
        Problem::parameter(one, &format!("it cannot be given together with `{other}`"), "one of the two")
    };
    if after.is_some() && (tail.is_some() || before.is_some()) {
        return Err(conflict("after", if tail.is_some() { "tail" } else { "before" }));
    }
    if from.is_some() && (tail.is_some() || before.is_some() || after.is_some()) {
        return Err(conflict(
            "from",
            if tail.is_some() {
                "tail"
            } else if before.is_some() {
                "before"
            } else {
                "after"
            },
        ));
    }
    if tail.is_some() && limit.is_some() {
        return Err(conflict("tail", "limit"));
    }
    let direction = if tail.is_some() || before.is_some() { Direction::Backward } else { Direction::Forward };
    let begin = match from {
        Some(from) => Some(Position { runs: runs.iter().map(|run| (run.id, from.max(1))).collect(), event: 0 }),
        None => before.or(after),
    };
    let known_event = begin.as_ref().map_or(0, |position| position.event);
    let wanted = Arc::new(Wanted {
        runs,
        from: begin,
        to_sequence: to,
        direction,
        limit: usize::try_from(tail.or(limit).unwrap_or(DEFAULT_LIMIT)).unwrap_or(1),
        matcher,
    });
    let _permit = shared.limits.reads().await?;
    let mut found = window::read(&shared.app.store, wanted.clone()).await?;
    // Events are no part of this answer; a stream that goes on after it tells those that are new then.
    let event = position::next_event(&shared.app.store, question.task_id, known_event).await?;
    (found.before.event, found.after.event) = (event, event);
    let runs = &wanted.runs[..];
    let next_from = match runs {
        [run] if found.has_after => found.after.runs.get(&run.id).copied(),
        _ => None,
    };
    json(&Logs {
        task_id: question.task_id,
        lines: found.lines.iter().map(Line::from).collect(),
        gaps: found.gaps.iter().filter_map(Gap::of).collect(),
        before: found.before.encode(question, runs),
        after: found.after.encode(question, runs),
        has_before: found.has_before,
        has_after: found.has_after,
        next_from,
        searched_lines: found.searched,
    })
}

/// A position that this server gave out. Runs that it leaves out are taken from `runs`.
fn position(
    params: &Params,
    name: &'static str,
    question: Question<'_>,
    runs: &mut Vec<RunInfo>,
) -> Result<Option<Position>, Problem> {
    let Some(text) = params.one(name)? else { return Ok(None) };
    match Position::decode(text, question, runs) {
        Some(position) => Ok(Some(position)),
        None => Err(Problem::parameter(
            name,
            "it is no position here",
            format!("`{name}` of an earlier answer for the same task, worker and run"),
        )),
    }
}
