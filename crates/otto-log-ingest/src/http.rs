//! JSON, Server-Sent Events, raw download, the page. `http/openapi.json` describes the interface.
//!
//! **Invariants.** What a job printed is never sent as a document that a browser would interpret. An answer's memory is
//! bounded whatever is asked for, and a client that does not read holds up nobody else.

mod assets;
mod frame;
mod limits;
mod listing;
mod logs;
mod model;
mod openapi;
mod params;
mod path;
mod position;
mod problem;
mod raw;
mod reply;
mod security;
mod stream;
mod window;

use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn;
use axum::routing::get;
use http::StatusCode;
use otto_log_store::RunInfo;
use otto_service::auth::Policy;

use crate::AppState;
use limits::Limits;
use problem::Problem;

/// Probes carry no token.
const PROBES: &[&str] = &["/livez", "/readyz"];

/// What the handlers share.
#[derive(Clone)]
struct Shared {
    app: AppState,
    limits: Limits,
    measures: Arc<raw::Measures>,
}

/// Everything served on `--http-addr`: the page, the API, and `admin` (`/metrics` and the probes). `policy` holds for all
/// but the page and the description of the interface, which hold nothing of anybody's, and the probes.
pub fn router(state: AppState, policy: &Policy, admin: Router) -> Router {
    let shared = Shared { app: state, limits: Limits::default(), measures: Arc::default() };
    let api = Router::new()
        .route("/tasks", get(listing::tasks))
        .route("/tasks/{task}/workers", get(listing::workers))
        .route("/tasks/{task}/logs", get(logs::of_task))
        .route("/tasks/{task}/logs/stream", get(stream::of_task))
        .route("/tasks/{task}/workers/{worker}/logs", get(logs::of_worker))
        .route("/tasks/{task}/workers/{worker}/logs/raw", get(raw::raw))
        .route("/tasks/{task}/workers/{worker}/logs/stream", get(stream::of_worker));
    let guarded = Router::new()
        .nest("/api/v1", api)
        .fallback(nothing_here)
        .with_state(shared)
        .merge(admin)
        .layer(policy.http_layer(PROBES));
    assets::routes().route("/openapi.json", get(openapi::document)).merge(guarded).layer(from_fn(security::headers))
}

async fn nothing_here() -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path; /openapi.json describes what there is")
}

/// The runs of a worker in order, or the one asked for; 404 naming what is not known.
async fn worker_runs(
    shared: &Shared,
    task_id: &str,
    worker_id: &str,
    run_id: Option<&str>,
) -> Result<Vec<RunInfo>, Problem> {
    let mut runs = shared.app.store.runs(task_id).await?;
    runs.retain(|run| run.key.worker_id == worker_id);
    if runs.is_empty() {
        listing::known_task(shared, task_id).await?;
        return Err(Problem::not_found(format!("a log of worker {worker_id:?} of task {task_id:?}")));
    }
    if let Some(run_id) = run_id {
        runs.retain(|run| run.key.run_id == run_id);
        if runs.is_empty() {
            return Err(Problem::not_found(format!("run {run_id:?} of worker {worker_id:?} of task {task_id:?}")));
        }
    }
    Ok(runs)
}
