//! The real program against servers of these tests.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking; clippy knows only #[test] functions as tests")]

mod follow;
mod logs;
mod servers;
mod submit;
mod tasks;
mod usage;
