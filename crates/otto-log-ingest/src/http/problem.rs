//! Errors as RFC 9457 problem details.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::query::QueryError;

/// An error answer. `application/problem+json` with the extensions `parameter` and `accepted` where a parameter is to
/// blame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem(Box<Details>);

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Details {
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    status: u16,
    detail: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accepted: Option<String>,
    #[serde(skip)]
    retry_after: Option<u32>,
    #[serde(skip)]
    headers: Vec<(header::HeaderName, HeaderValue)>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self(Box::new(Details {
            kind: "about:blank",
            title: status.canonical_reason().unwrap_or("Error"),
            status: status.as_u16(),
            detail: detail.into(),
            parameter: None,
            accepted: None,
            retry_after: None,
            headers: Vec::new(),
        }))
    }

    /// 400, naming the parameter, what was wrong with it and what is accepted.
    pub(super) fn parameter(name: impl Into<String>, wrong: &str, accepted: impl Into<String>) -> Self {
        let (name, accepted) = (name.into(), accepted.into());
        let detail = format!("parameter `{name}`: {wrong}; accepted: {accepted}");
        let mut problem = Self::new(StatusCode::BAD_REQUEST, detail);
        problem.0.parameter = Some(name);
        problem.0.accepted = Some(accepted);
        problem
    }

    /// 404.
    pub(super) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("{what} is not known to this log server"))
    }

    /// 503, to be tried again after so many seconds.
    pub(super) fn busy(detail: impl Into<String>, retry_after: u32) -> Self {
        let mut problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, detail);
        problem.0.retry_after = Some(retry_after);
        problem
    }

    #[cfg(test)]
    pub(super) fn details(&self) -> &impl Serialize {
        &self.0
    }

    pub(super) fn with_header(mut self, name: header::HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Invalid { field, description } => {
                // The names of the API where they differ from those of ReadLogsRequest.
                let name = match field {
                    "from_sequence" => "from",
                    "tail_lines" => "tail",
                    "run_id" => "run",
                    "contains" => "q",
                    "levels" => "level",
                    "sources" => "source",
                    "resume_token" => "after",
                    other => other,
                };
                let mut problem = Self::new(StatusCode::BAD_REQUEST, format!("parameter `{name}`: {description}"));
                problem.0.parameter = Some(name.to_owned());
                problem
            }
            QueryError::NotFound(what) => Self::not_found(what),
            QueryError::Busy(detail) => {
                let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, detail);
                problem.0.retry_after = Some(2);
                problem
            }
            QueryError::Store(_) => Self::busy(error.to_string(), 5),
        }
    }
}

impl From<otto_log_store::ReadError> for Problem {
    fn from(error: otto_log_store::ReadError) -> Self {
        QueryError::Store(error).into()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let status = StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if let Some(seconds) = self.0.retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        for (name, value) in self.0.headers {
            headers.insert(name, value);
        }
        response
    }
}
