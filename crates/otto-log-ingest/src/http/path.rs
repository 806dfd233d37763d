//! Task and worker ids in paths. They are percent-encoded and may hold anything, "/" too.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequestParts, Path};
use http::StatusCode;
use http::request::Parts;

use super::problem::Problem;

/// Ids longer than this are nobody's, bytes.
const MAX_ID: usize = 1024;

/// `{task}`
pub(super) struct TaskPath(pub(super) String);

/// `{task}` and `{worker}`
pub(super) struct WorkerPath(pub(super) String, pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for TaskPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path(task) = Path::<String>::from_request_parts(parts, state).await.map_err(refuse)?;
        check("task", &task)?;
        Ok(Self(task))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for WorkerPath {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Path((task, worker)) = Path::<(String, String)>::from_request_parts(parts, state).await.map_err(refuse)?;
        check("task", &task)?;
        check("worker", &worker)?;
        Ok(Self(task, worker))
    }
}

fn refuse(rejection: PathRejection) -> Problem {
    Problem::new(
        StatusCode::BAD_REQUEST,
        format!("the path: {}; accepted: percent-encoded UTF-8", rejection.body_text()),
    )
}

fn check(name: &'static str, id: &str) -> Result<(), Problem> {
    if id.len() > MAX_ID {
        return Err(Problem::parameter(name, "it is too long", format!("at most {MAX_ID} bytes")));
    }
    Ok(())
}
