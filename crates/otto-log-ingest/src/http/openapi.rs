//! The description of the interface.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, header};

/// OpenAPI 3.1, kept by hand; tests hold it against the routes.
const DOCUMENT: &str = include_str!("openapi.json");

/// `GET /openapi.json`
pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], DOCUMENT).into_response()
}
