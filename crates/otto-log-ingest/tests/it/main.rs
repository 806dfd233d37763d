//! The real program and real clients.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking; clippy knows only #[test] functions as tests")]

mod batches;
mod entries;
mod http_api;
mod http_browser;
mod http_raw;
mod http_stream;
mod http_support;
mod limits;
mod pressure;
mod process;
mod query;
mod support;
