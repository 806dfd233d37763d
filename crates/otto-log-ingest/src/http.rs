//! JSON, Server-Sent Events, raw download, the page.

use axum::Router;

use crate::AppState;

/// Everything served on `--http-addr`.
pub fn router(_state: AppState) -> Router {
    Router::new()
}
