//! The real agent and real jobs against real gRPC servers.

// Helpers of tests, which clippy does not take for tests.
#![allow(clippy::unwrap_used)]

mod agent;
mod capture;
mod container;
mod crash;
mod faults;
mod legacy;
mod legacy_server;
mod life;
mod memory;
mod pod;
mod run_dir;
mod server;
mod spool;
mod users;
