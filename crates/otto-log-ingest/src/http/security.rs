//! Headers every answer carries, and errors of the layers outside as problem details.

use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, StatusCode, header};

use super::problem::Problem;

const ALWAYS: &[(&str, &str)] = &[
    ("x-content-type-options", "nosniff"),
    ("x-frame-options", "DENY"),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cross-origin-opener-policy", "same-origin"),
    // The page has its own; nothing else is ever a document.
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; sandbox"),
    ("cache-control", "no-store"),
];

/// The outermost layer of the router.
pub(super) async fn headers(request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let mut response = next.run(request).await;
    let status = response.status();
    let plain = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_none_or(|kind| kind != "application/problem+json" && !kind.as_bytes().starts_with(b"text/plain"));
    if status == StatusCode::UNAUTHORIZED {
        let challenge = response.headers().get(header::WWW_AUTHENTICATE).cloned();
        let problem =
            Problem::new(status, "a valid bearer token is required: send the header `authorization: Bearer TOKEN`");
        response = problem
            .with_header(
                header::WWW_AUTHENTICATE,
                challenge.unwrap_or(HeaderValue::from_static("Bearer realm=\"ottoscaler\"")),
            )
            .into_response();
    } else if status == StatusCode::METHOD_NOT_ALLOWED && plain {
        let allow = response.headers().get(header::ALLOW).cloned();
        let mut problem = Problem::new(status, format!("{method} is not possible here; accepted: GET, HEAD"));
        if let Some(allow) = allow {
            problem = problem.with_header(header::ALLOW, allow);
        }
        response = problem.into_response();
    }
    let answer = response.headers_mut();
    for (name, value) in ALWAYS {
        if !answer.contains_key(*name) {
            answer.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
    }
    response
}
