//! The real otto-scaler with the process driver and the real otto-worker. The log server is away in all of them: nothing
//! here needs it, and nothing may wait for it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking; clippy knows only #[test] functions as tests")]

mod calls;
mod ha;
mod life;
mod process;
mod redis;
mod setup;
