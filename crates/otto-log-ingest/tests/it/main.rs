//! The real program and real clients.

mod batches;
mod entries;
mod limits;
mod process;
mod query;
mod support;
