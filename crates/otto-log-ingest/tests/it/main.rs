//! The real program and real clients.

mod batches;
mod entries;
mod http_api;
mod http_browser;
mod http_raw;
mod http_stream;
mod http_support;
mod limits;
mod process;
mod query;
mod support;
